"""A demo connector that tells the time: an MCP server over streamable HTTP."""

from datetime import datetime, timedelta, timezone

from mcp.server.mcpserver import MCPServer
from serving import serve

server = MCPServer("clock")


@server.tool()
def now(utc_offset_hours: float = 0) -> str:
    """Return the current time, at this offset from UTC."""
    return datetime.now(timezone(timedelta(hours=utc_offset_hours))).isoformat(timespec="seconds")


@server.tool()
def days_between(first: str, second: str) -> int:
    """Return the number of days between two dates such as 2026-11-23."""
    return (datetime.fromisoformat(second) - datetime.fromisoformat(first)).days


if __name__ == "__main__":
    serve(server)
