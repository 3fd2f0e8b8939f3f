"""Shared code of the demo connectors: the server and its log."""

import argparse
import json
import sys
from typing import Any

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.mcpserver import MCPServer


def serve(server: MCPServer) -> None:
    """Serves on 127.0.0.1:PORT/mcp until the process ends."""
    parser = argparse.ArgumentParser(description=f"The demo connector {server.name}.")
    parser.add_argument("--port", type=int, required=True, help="the port on 127.0.0.1")
    port = parser.parse_args().port

    async def log_tool_calls(context: ServerRequestContext[Any], call_next: CallNext) -> HandlerResult:
        """Writes one line of JSON to stderr for each tool call that reaches the connector."""
        if context.method == "tools/call":
            line = {"server": server.name, "tool": (context.params or {}).get("name")}
            print(json.dumps(line), file=sys.stderr, flush=True)
        return await call_next(context)

    server.middleware.append(log_tool_calls)
    # Stateless, so that the curl lines of the README work without a session.
    # JSON, because mcp_router of Envoy 1.40 forwards an event stream as `application/json` for prompts and resources.
    server.run(transport="streamable-http", host="127.0.0.1", port=port, stateless_http=True, json_response=True)
