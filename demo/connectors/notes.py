"""A demo connector that keeps notes in memory: an MCP server over streamable HTTP."""

from mcp.server.mcpserver import MCPServer
from serving import serve

server = MCPServer("notes")
NOTES: dict[str, str] = {"welcome": "This note came through the gateway."}


@server.tool()
def write(title: str, text: str) -> str:
    """Store a note under a title. This replaces a note with the same title."""
    NOTES[title] = text
    return f"kept {title!r}"


@server.tool()
def read(title: str) -> str:
    """Return the note with this title."""
    return NOTES.get(title, f"there is no note {title!r}")


@server.tool()
def titles(prefix: str = "") -> list[str]:
    """Return the titles of all notes, or of those that begin with a prefix."""
    return sorted(title for title in NOTES if title.startswith(prefix))


@server.prompt()
def summarize(title: str) -> str:
    """Ask for a summary of a note."""
    return f"Summarize this note in one sentence:\n\n{read(title)}"


@server.resource("note://welcome")
def welcome() -> str:
    """The first note."""
    return NOTES["welcome"]


if __name__ == "__main__":
    serve(server)
