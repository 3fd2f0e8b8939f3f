"""Uses an MCP server like an agent, with the official client, and prints the results as JSON.

python mcp_client.py URL MODE TOOL ARGUMENTS 'HEADER: VALUE'...
"""

import asyncio
import json
import sys

import httpx2
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client


async def main(url: str, mode: str, tool: str, arguments: str, *headers: str) -> None:
    async with httpx2.AsyncClient(headers=dict(header.split(": ", 1) for header in headers)) as http:
        async with Client(streamable_http_client(url, http_client=http), mode=mode) as client:
            tools = await client.list_tools()
            prompts = await client.list_prompts()
            resources = await client.list_resources()
            seen = {
                "protocol": client.protocol_version,
                "tools": sorted(tool.name for tool in tools.tools),
                "prompts": sorted(prompt.name for prompt in prompts.prompts),
                "resources": sorted(str(resource.uri) for resource in resources.resources),
            }
            try:
                called = await client.call_tool(tool, json.loads(arguments))
                seen |= {"is_error": called.is_error, "text": [part.text for part in called.content]}
            except MCPError as error:
                seen |= {"refused": str(error)}
    print(json.dumps(seen))


asyncio.run(main(*sys.argv[1:]))
