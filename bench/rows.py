"""The rows of the table: the filters of a listener, the requests, and the twin, which is a filter of Envoy's own.

To add a row, add a `Row` to `rows`. The benchmark creates its listener, checks it once, measures it in each round and
compares it with its twin.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import chain

from credentials import Issuer, base62, garbage_token, new_api_key, sha256
from envoy_config import RATE_LIMIT_CLUSTER, Listener, api_key_auth, dynamic, jwt_authn, module
from wire import Request, list_request, mcp_call, token_request, tool_call

ORG = "acme-corp"
ORIGIN = "https://gateway.example"
KID = "bench"
CLIENT_SCOPES = ["mcp:call"]
SIZES = {"10": 10, "1k": 1_000, "100k": 100_000}
# The larger sizes are compared with this one.
SMALLEST = "10"
# Cold rows send this many tokens in turn, and the cache holds fewer. So the next token is never in the cache.
COLD_TOKENS = 1024
COLD_CACHE = 64
GARBAGE = 256
# Each client has a limit of tokens per second. Together they keep the worker busy.
CLIENTS = 128
CALL_BYTES = 1024
TOOLS = 1000
# Suffix of the rows with the dynamic module. The other rows of ours have the wasm module.
DYNAMIC = "_dynamic"
# Suffix of the rows whose requests are GET, without a body.
GET = "_get"
# These limits are never reached: the rows measure counting, not refusals.
LIMITS = {"rate": {"requests": 4_000_000_000, "per": "day"}, "monthly_quota": 4_000_000_000}


@dataclass(frozen=True, eq=False)
class Check:
    """A request that the listener of a row must answer with `status`."""

    request: Request
    status: int


@dataclass(frozen=True, eq=False)
class Row:
    name: str
    listener: Listener
    # The requests are sent in turn.
    requests: Callable[[], list[Request]]
    status: int = 200
    # The name of the twin. Its CPU time is divided by that of this row.
    native: str | None = None
    # Headers that the upstream must get for the first request. None: the header must not arrive.
    forwards: dict[str, str | None] = field(default_factory=dict)
    checks: Callable[[], list[Check]] = list
    connections: int = 16
    # Mean pause of a connection between two requests. 0: wrk sends as soon as it has an answer.
    pause_ms: float = 0
    # A row that is measured at the same time. Then neither row has a CPU time of its own.
    beside: "Row | None" = None


class Parties:
    """All clients with credentials, and their records in the policy."""

    def __init__(self, jwks_uri: str) -> None:
        self.jwks_uri = jwks_uri
        self.clients = [(f"apx_client_{base62(8)}", f"apx_secret_{base62(24)}") for _ in range(CLIENTS)]
        self.client_id, _ = self.clients[0]
        gateway_claims = {"sub": self.client_id, "client_id": self.client_id, "aud": f"{ORIGIN}/mcp/{ORG}"}
        idp_claims = {"sub": "agent-7", "aud": "apexmcp"}
        scope = {"scope": " ".join(CLIENT_SCOPES)}
        self.gateway = Issuer(ORIGIN, KID, "at+jwt", gateway_claims | scope)
        self.idp = Issuer("https://idp.example", "idp-1", "JWT", idp_claims | scope)
        self._keys: list[str] = []

    @property
    def environment(self) -> dict[str, str]:
        """Variables of Envoy's environment for the filter."""
        return {"APEXMCP_SIGNING_KEY": self.gateway.private_key_pem}

    def keys(self, count: int) -> list[str]:
        self._keys += [new_api_key() for _ in range(count - len(self._keys))]
        return self._keys[:count]

    def org(self, keys: list[str]) -> dict:
        clients = [
            {"client_id": client_id, "secret_sha256": [sha256(secret)], "scopes": CLIENT_SCOPES}
            for client_id, secret in self.clients
        ]
        idp = {"issuer": self.idp.url, "jwks_uri": self.jwks_uri, "audience": self.idp.claims["aud"]}
        return {
            "api_keys": [{"id": f"key_{number}", "sha256": sha256(key)} for number, key in enumerate(keys)],
            "oauth_clients": clients,
            "identity_providers": [idp],
        }


def plugin(orgs: dict, tokens: dict | None = None) -> dict:
    """The configuration of the module. Other settings have their defaults."""
    policy = {
        "version": "bench",
        "signing_keys": [{"kid": KID, "private_key_env": "APEXMCP_SIGNING_KEY"}],
        "orgs": orgs,
    }
    return {
        "gateway": {"origin": ORIGIN},
        "jwks": {"http_cluster": "jwks_http"},
        "tokens": tokens or {},
        "policy": {"inline": policy},
    }


def with_key(key: str, org: str = ORG) -> Request:
    return mcp_call(org).with_header("X-API-Key", key)


def with_token(token: str) -> Request:
    return mcp_call(ORG).with_header("Authorization", f"Bearer {token}")


def key_checks() -> list[Check]:
    return [Check(mcp_call(ORG), 401), Check(with_key(new_api_key()), 401)]


def token_checks(issuer: Issuer) -> Callable[[], list[Check]]:
    return lambda: [
        Check(mcp_call(ORG), 401),
        Check(with_token(garbage_token()), 401),
        Check(with_token(issuer.forged_token()), 401),
        Check(with_token(issuer.token(exp=1)), 401),
        Check(with_token(issuer.token(scope="mcp:call:elsewhere")), 403),
    ]


def ours(name: str, orgs: Callable[[], dict], tokens: dict | None = None, **sections) -> Listener:
    return Listener(name, lambda: [module(name, plugin(orgs(), tokens) | sections)], is_ours=True)


def native_jwt(name: str, issuer: Issuer, cached: bool) -> Listener:
    return Listener(name, lambda: jwt_authn(issuer.url, issuer.claims["aud"], issuer.jwks(), cached))


def no_filter_rows(parties: Parties) -> list[Row]:
    bare = Listener("no_filter")
    return [
        Row("no_filter", bare, lambda: [with_key(*parties.keys(1))]),
        Row("no_filter_with_authorization", bare, lambda: [with_token(parties.idp.token())]),
    ]


def key_rows(parties: Parties, gateway: Listener) -> list[Row]:
    (key,) = parties.keys(1)
    native = Listener("native_api_key", lambda: [api_key_auth(key, "key_0")])
    return [
        Row(
            "native_api_key",
            native,
            lambda: [with_key(key)],
            forwards={"x-client-id": "key_0", "x-api-key": None},
            checks=key_checks,
        ),
        Row(
            "api_key",
            gateway,
            lambda: [with_key(key)],
            native="native_api_key",
            forwards={"x-apexmcp-principal": f"{ORG}/key/key_0", "x-apexmcp-method": "api_key", "x-api-key": None},
            checks=key_checks,
        ),
    ]


def same_job_row(parties: Parties) -> Row:
    """An API key with what `api_key_auth` does: one header for the upstream, and no filter state."""
    forward = {"headers": ["subject"], "filter_state": []}
    listener = ours("same_job", lambda: {ORG: parties.org(parties.keys(1))}, forward=forward)
    return Row(
        "api_key_same_job",
        listener,
        lambda: [with_key(*parties.keys(1))],
        native="native_api_key",
        forwards={"x-apexmcp-subject": "key_0", "x-apexmcp-principal": None, "x-api-key": None},
        checks=key_checks,
    )


def token_rows(
    name: str, native_name: str, issuer: Issuer, principal: str, warm: Listener, cold: Listener
) -> list[Row]:
    """Tokens of one issuer, known and new. The twin is `jwt_authn` with `rbac`, for the same issuer and tokens."""

    def twins(state: str, native_state: str, listener: Listener, count: int) -> list[Row]:
        native = f"{native_name}_{native_state}"

        def requests() -> list[Request]:
            return [with_token(token) for token in issuer.tokens(count)]

        shared = {"requests": requests, "checks": token_checks(issuer)}
        subject = {"x-client-id": issuer.claims["sub"], "authorization": None}
        identity = {"x-apexmcp-principal": principal, "x-apexmcp-scope": "mcp:call", "authorization": None}
        return [
            Row(native, native_jwt(native, issuer, cached=native_state == "cached"), forwards=subject, **shared),
            Row(f"{name}_{state}", listener, native=native, forwards=identity, **shared),
        ]

    return twins("warm", "cached", warm, 1) + twins("cold", "uncached", cold, COLD_TOKENS)


def garbage_rows(parties: Parties, gateway: Listener) -> list[Row]:
    native = native_jwt("native_garbage", parties.idp, cached=False)

    def accepts() -> list[Check]:
        return [Check(with_token(parties.idp.token()), 200)]

    def twins(name: str, token: Callable[[], str]) -> list[Row]:
        tokens = [token() for _ in range(GARBAGE)]
        shared = {"requests": lambda: [with_token(text) for text in tokens], "status": 401, "checks": accepts}
        return [Row(f"native_{name}", native, **shared), Row(name, gateway, native=f"native_{name}", **shared)]

    return twins("garbage", garbage_token) + twins("garbage_known_kid", parties.idp.forged_token)


def issuing_rows(parties: Parties, gateway: Listener) -> list[Row]:
    def form() -> list[Request]:
        return [token_request(*client) for client in parties.clients]

    # The worker signs one token after the other while it serves requests with keys.
    issuing = Row("token_issued_beside_keys", gateway, form, connections=1)
    return [
        Row("token_issued", gateway, form, connections=4),
        Row("api_key_beside_tokens", gateway, lambda: [with_key(*parties.keys(1))], beside=issuing),
    ]


def tool_list() -> str:
    """A tool list of two connectors, with entries as long as those of real servers."""
    schema = {"type": "object", "properties": {"title": {"type": "string", "description": "What it is called."}}}
    tools = [
        {"name": f"{('notes', 'clock')[number % 2]}__tool_{number}", "description": "d" * 150, "inputSchema": schema}
        for number in range(TOOLS)
    ]
    return json.dumps({"jsonrpc": "2.0", "id": 1, "result": {"tools": tools}})


def scope_rows(parties: Parties) -> list[Row]:
    """A key for one of two connectors and a key for all. For the first, messages are read and lists are filtered."""
    whole, scoped = parties.keys(2)

    def orgs() -> dict:
        records = [
            {"id": "whole", "sha256": sha256(whole)},
            {"id": "scoped", "sha256": sha256(scoped), "connectors": ["notes"]},
        ]
        return {ORG: {"api_keys": records}}

    def filters(name: str) -> Callable[[], list[dict]]:
        return lambda: [module(name, plugin(orgs()))]

    calls = Listener("calls", filters("calls"), is_ours=True)
    lists = Listener("lists", filters("lists"), answer=tool_list, is_ours=True)

    def with_whole(request: Request) -> Callable[[], list[Request]]:
        return lambda: [request.with_header("X-API-Key", whole)]

    def with_scoped(request: Request) -> Callable[[], list[Request]]:
        return lambda: [request.with_header("X-API-Key", scoped)]

    def foreign() -> list[Check]:
        return [Check(tool_call(ORG, "clock__now", CALL_BYTES).with_header("X-API-Key", scoped), 403)]

    call, listing = tool_call(ORG, "notes__write", CALL_BYTES), list_request(ORG)
    return [
        Row("unscoped_call", calls, with_whole(call)),
        Row("scoped_call", calls, with_scoped(call), native="unscoped_call", checks=foreign),
        Row("list_1000_whole", lists, with_whole(listing)),
        Row("list_1000", lists, with_scoped(listing), native="list_1000_whole"),
    ]


def limit_rows(parties: Parties) -> list[Row]:
    """An API key of an organization with a rate and a quota. Its twin has no limits."""

    def orgs() -> dict:
        return {ORG: parties.org(parties.keys(1)) | {"limits": LIMITS}}

    service = {"cluster": RATE_LIMIT_CLUSTER, "timeout": "1s", "on_error": "deny"}
    by_service = {"store": "rate_limit_service", "rate_limit_service": service}

    def row(name: str, listener: Listener) -> Row:
        return Row(name, listener, lambda: [with_key(*parties.keys(1))], native="api_key", checks=key_checks)

    return [
        row("limits_local", ours("limits_local", orgs)),
        row("limits_service", ours("limits_service", orgs, limits=by_service)),
    ]


def size_rows(parties: Parties, label: str, size: int) -> list[Row]:
    """The same requests with larger policies. All records are used in turn, so that no CPU cache hides the cost."""
    native = None if label == SMALLEST else SMALLEST
    org_names = [ORG, *(f"org-{number}" for number in range(1, size))]

    def one_org() -> dict:
        return {ORG: parties.org(parties.keys(size))}

    def many_orgs() -> dict:
        keys = zip(org_names, parties.keys(size), strict=True)
        return {name: {"api_keys": [{"id": "key_0", "sha256": sha256(key)}]} for name, key in keys}

    def row(
        kind: str, orgs: Callable[[], dict], requests: Callable[[], list[Request]], tokens: dict | None = None
    ) -> Row:
        name = f"{kind}_{label}"
        return Row(name, ours(name, orgs, tokens), requests, native=native and f"{kind}_{native}")

    return [
        row("keys", one_org, lambda: [with_key(key) for key in parties.keys(size)]),
        row(
            "orgs",
            many_orgs,
            lambda: [with_key(key, org) for org, key in zip(org_names, parties.keys(size), strict=True)],
        ),
        row(
            "tokens",
            lambda: {ORG: parties.org([])},
            lambda: [with_token(token) for token in parties.idp.tokens(size)],
            {"cache_size": max(SIZES.values())},
        ),
    ]


def rows(parties: Parties) -> list[Row]:
    """All rows, in the order of the table. Twins are neighbors, so that the machine has the same speed for both."""

    def one_org() -> dict:
        return {ORG: parties.org(parties.keys(1))}

    gateway = ours("gateway", one_org)
    cold = ours("gateway_cold", one_org, {"cache_size": COLD_CACHE})
    of_client = f"{ORG}/client/{parties.client_id}"
    of_idp = f"{ORG}/idp/{parties.idp.url}#{parties.idp.claims['sub']}"
    return with_dynamic(
        [
            *no_filter_rows(parties),
            *with_get(key_rows(parties, gateway)),
            same_job_row(parties),
            *with_get(token_rows("idp_token", "native_jwt", parties.idp, of_idp, gateway, cold)),
            *token_rows("gateway_token", "native_gateway_jwt", parties.gateway, of_client, gateway, cold),
            *with_get(garbage_rows(parties, gateway)),
            *scope_rows(parties),
            *limit_rows(parties),
            *issuing_rows(parties, gateway),
            *chain.from_iterable(zip(*(size_rows(parties, label, size) for label, size in SIZES.items()), strict=True)),
        ]
    )


def with_get(rows: list[Row]) -> list[Row]:
    """The rows, and the same with GET requests, which have no body."""

    def get(row: Row) -> Row:
        requests, native = row.requests, row.native and f"{row.native}{GET}"
        # The row itself has checked what is forwarded.
        name, gets = f"{row.name}{GET}", lambda: [each.get() for each in requests()]
        return replace(row, name=name, requests=gets, native=native, forwards={})

    return [*rows, *map(get, rows)]


def with_dynamic(rows: list[Row]) -> list[Row]:
    """The rows. After each row of ours comes the same with the dynamic module."""
    listeners: dict[Listener, Listener] = {}
    ours = {row.name for row in rows if row.listener.is_ours}

    def listener(of: Listener) -> Listener:
        if of not in listeners:
            filters = of.filters
            listeners[of] = replace(
                of, name=f"{of.name}{DYNAMIC}", filters=lambda: [dynamic(each) for each in filters()]
            )
        return listeners[of]

    def other(row: Row) -> Row:
        native = f"{row.native}{DYNAMIC}" if row.native in ours else row.native
        beside = row.beside and other(row.beside)
        return replace(row, name=f"{row.name}{DYNAMIC}", listener=listener(row.listener), native=native, beside=beside)

    return [each for row in rows for each in ([row, other(row)] if row.listener.is_ours else [row])]
