"""Gets a token with Authlib, and uses it at the MCP endpoint.

python authlib_client.py SETTINGS METHOD
"""

import json
import sys
from pathlib import Path

from authlib.integrations.requests_client import OAuth2Session
from authlib.oauth2.rfc7523 import PrivateKeyJWT

settings_file, method = sys.argv[1:]
settings = json.loads(Path(settings_file).read_text())
uses_key = method == "private_key_jwt"

session = OAuth2Session(
    settings["client_id"],
    settings["private_key"] if uses_key else settings["client_secret"],
    token_endpoint_auth_method=method,
    scope="mcp:call",
)
metadata = session.get(f"{settings['issuer']}/.well-known/oauth-authorization-server", withhold_token=True).json()
if uses_key:
    session.register_client_auth_method(PrivateKeyJWT(metadata["token_endpoint"]))
token = session.fetch_token(metadata["token_endpoint"], grant_type="client_credentials", resource=settings["url"])
reply = session.post(
    settings["url"],
    json={"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}},
    headers={"accept": "application/json, text/event-stream"},
)
about = {name: value for name, value in token.items() if name not in ("access_token", "expires_at")}
print(json.dumps({"status": reply.status_code, "lists": '"tools"' in reply.text, "token": about}))
