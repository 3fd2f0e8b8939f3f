"""What the demo connectors share: where they listen, how they answer, what they log."""

import argparse
import json
import sys
from typing import Any

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.mcpserver import MCPServer


def serve(server: MCPServer) -> None:
    """Serve on 127.0.0.1:PORT/mcp until ended."""
    parser = argparse.ArgumentParser(description=f"The demo connector {server.name}.")
    parser.add_argument("--port", type=int, required=True, help="where on 127.0.0.1 it listens")
    port = parser.parse_args().port

    async def log_tool_calls(context: ServerRequestContext[Any], call_next: CallNext) -> HandlerResult:
        """One line of JSON on stderr for each tool call that got this far, in whatever form it was asked."""
        if context.method == "tools/call":
            line = {"server": server.name, "tool": (context.params or {}).get("name")}
            print(json.dumps(line), file=sys.stderr, flush=True)
        return await call_next(context)

    server.middleware.append(log_tool_calls)
    # Stateless: any request stands for itself, so the curl lines of the README work without a session.
    # JSON: Envoy 1.40's mcp_router passes an event stream on as `application/json` for prompts and resources.
    server.run(transport="streamable-http", host="127.0.0.1", port=port, stateless_http=True, json_response=True)
