"""An MCP server for the parts of the conformance suite that the demo connectors do not support.

It has sessions. Its answers are streams with notifications, progress, or requests to the client before the result.
"""

import argparse

from mcp.server.mcpserver import Context, Image, MCPServer
from mcp.types import SamplingMessage, TextContent
from pydantic import BaseModel

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360000002000001e221bc330000000049454e44ae426082"
)

server = MCPServer("streaming")


class Answer(BaseModel):
    """The answer of the client to an elicitation."""

    username: str
    email: str


@server.tool()
def test_simple_text() -> str:
    return "This is a simple text response for testing."


@server.tool()
def test_image_content() -> Image:
    return Image(data=PIXEL, format="png")


@server.tool()
def test_error_handling() -> str:
    raise ValueError("This tool intentionally returns an error for testing")


@server.tool()
async def test_tool_with_logging(context: Context) -> str:
    for step in ("started", "processing data", "completed"):
        await context.info(f"Tool execution {step}")
    return "logged"


@server.tool()
async def test_tool_with_progress(context: Context) -> str:
    for progress in (0, 50, 100):
        await context.report_progress(progress, 100)
    return "done"


@server.tool()
async def test_sampling(prompt: str, context: Context) -> str:
    question = SamplingMessage(role="user", content=TextContent(type="text", text=prompt))
    answer = await context.session.create_message([question], max_tokens=100)
    return f"LLM response: {answer.content.text}"


@server.tool()
async def test_elicitation(message: str, context: Context) -> str:
    answer = await context.elicit(message, Answer)
    return f"User response: {answer.action}"


@server.resource("test://static-text")
def static_text() -> str:
    return "This is the content of the static text resource."


@server.resource("test://static-binary", mime_type="image/png")
def static_binary() -> bytes:
    return PIXEL


@server.resource("test://template/{id}/data")
def template(id: str) -> str:
    return f"data of {id}"


@server.prompt()
def test_simple_prompt() -> str:
    return "This is a simple prompt for testing."


@server.prompt()
def test_prompt_with_arguments(arg1: str, arg2: str) -> str:
    return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"


parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, required=True)
server.run(transport="streamable-http", host="127.0.0.1", port=parser.parse_args().port)
