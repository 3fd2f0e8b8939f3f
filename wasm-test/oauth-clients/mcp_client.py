"""The official Python client of MCP as a machine.

It knows an endpoint and its credential, and discovers the rest.

    python mcp_client.py SETTINGS METHOD [STOP]

SETTINGS is a JSON file, METHOD is a client authentication method of the token endpoint. Each result is printed as a
line of JSON. With STOP, the program continues until a file of that name exists, and then prints "stopped". In each
round, the first client continues with its token, and a new client starts without a token.
"""

import asyncio
import json
import sys
from pathlib import Path

import httpx2
from mcp.client import Client
from mcp.client.auth.extensions.client_credentials import (
    ClientCredentialsOAuthProvider,
    PrivateKeyJWTOAuthProvider,
    SignedJWTParameters,
)
from mcp.client.streamable_http import streamable_http_client


class Memory:
    """Stores the token of a client."""

    tokens = None

    async def get_tokens(self):
        return self.tokens

    async def set_tokens(self, tokens):
        self.tokens = tokens


def provider(settings: dict, method: str):
    client_id, issuer = settings["client_id"], settings["issuer"]
    common = {"server_url": settings["url"], "storage": Memory(), "client_id": client_id, "issuer": issuer}
    if method == "private_key_jwt":
        key = SignedJWTParameters(issuer=client_id, subject=client_id, signing_key=settings["private_key"])
        return PrivateKeyJWTOAuthProvider(assertion_provider=key.create_assertion_provider(), **common)
    secret = settings["client_secret"]
    return ClientCredentialsOAuthProvider(client_secret=secret, token_endpoint_auth_method=method, **common)


async def work(client: Client, settings: dict) -> dict:
    tools = await client.list_tools(cache_mode="bypass")
    result = await client.call_tool(settings["tool"], settings["arguments"])
    return {"tools": sorted(tool.name for tool in tools.tools), "said": result.content[0].text}


async def main(settings_file: str, method: str, stop: str | None = None) -> None:
    settings = json.loads(Path(settings_file).read_text())

    def connect(http: httpx2.AsyncClient) -> Client:
        return Client(streamable_http_client(settings["url"], http_client=http), mode=settings.get("mode", "auto"))

    def http() -> httpx2.AsyncClient:
        return httpx2.AsyncClient(auth=provider(settings, method), timeout=30)

    async with http() as first_http, connect(first_http) as first:
        print(json.dumps(await work(first, settings)), flush=True)
        while stop and not Path(stop).exists():
            async with http() as new_http, connect(new_http) as new:
                for client in (first, new):
                    print(json.dumps(await work(client, settings)), flush=True)
    if stop:
        print("stopped")


asyncio.run(main(*sys.argv[1:]))
