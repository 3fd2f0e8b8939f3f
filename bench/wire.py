"""Requests as bytes. wrk sends the same bytes that were checked before."""

import base64
import http.client
import json
import socket
from dataclasses import dataclass, replace
from urllib.parse import urlencode

HOST = "gateway.example"
TIMEOUT_S = 30


@dataclass(frozen=True)
class Request:
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    body: str = ""
    method: str = "POST"

    def get(self) -> "Request":
        """The same path and credential without a body."""
        headers = tuple(header for header in self.headers if header[0] != "Content-Type")
        return replace(self, headers=headers, body="", method="GET")

    def at(self, path: str) -> "Request":
        return replace(self, path=path)

    def with_header(self, name: str, value: str) -> "Request":
        return replace(self, headers=(*self.headers, (name, value)))

    def encode(self) -> bytes:
        length = () if self.method == "GET" else (("Content-Length", str(len(self.body))),)
        headers = (("Host", HOST), *self.headers, *length)
        lines = [f"{self.method} {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "", self.body]
        return "\r\n".join(lines).encode()


# Placeholders for a number that changes with each request. load.lua replaces their marks with a number of the same
# length, so that a placeholder may be in a body.
LONG_NUMBER, SHORT_NUMBER = "900000000009", "90000009"
MARKS = {
    LONG_NUMBER.encode(): b"\1",
    base64.urlsafe_b64encode(LONG_NUMBER.encode()): b"\2",
    SHORT_NUMBER.encode(): b"\3",
}


@dataclass(frozen=True)
class Numbered(Request):
    """A request that contains a number. wrk sends another number each time."""

    @staticmethod
    def of(request: Request) -> "Numbered":
        return Numbered(request.path, request.headers, request.body, request.method)

    def encode(self) -> bytes:
        text = super().encode()
        for number, mark in MARKS.items():
            text = text.replace(number, mark)
        return text


def mcp_call(org: str) -> Request:
    """A small call without a credential."""
    call = '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"notes__titles"}}'
    return Request(f"/mcp/{org}", (("Content-Type", "application/json"),), call)


def tool_call(org: str, name: str, size: int) -> Request:
    """A call of a tool. The message has `size` bytes."""
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": {"text": ""}}}
    call["params"]["arguments"]["text"] = "x" * (size - len(json.dumps(call)))
    return replace(mcp_call(org), body=json.dumps(call))


def list_request(org: str) -> Request:
    """A request for the list of tools."""
    return replace(mcp_call(org), body='{"jsonrpc":"2.0","id":1,"method":"tools/list"}')


def token_request(client_id: str, client_secret: str) -> Request:
    form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": client_secret}
    return Request("/oauth/token", (("Content-Type", "application/x-www-form-urlencoded"),), urlencode(form))


def send(port: int, request: Request) -> tuple[int, bytes]:
    """Sends a request and returns the status and body of the answer."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
        # Placeholders stay as they are.
        connection.sendall(Request.encode(request))
        response = http.client.HTTPResponse(connection, method="POST")
        response.begin()
        return response.status, response.read()
