"""What the demo connectors share: where they listen."""

import argparse

from mcp.server.mcpserver import MCPServer


def serve(server: MCPServer) -> None:
    """Serve on 127.0.0.1:PORT/mcp until ended."""
    parser = argparse.ArgumentParser(description=f"The demo connector {server.name}.")
    parser.add_argument("--port", type=int, required=True, help="where on 127.0.0.1 it listens")
    port = parser.parse_args().port
    # Stateless: any request stands for itself, so the curl lines of the README work without a session.
    server.run(transport="streamable-http", host="127.0.0.1", port=port, stateless_http=True)
