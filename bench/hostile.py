"""`make hostile`: the cost of the most expensive requests of each kind.

Each hostile request is compared with two others. One has the same bytes and goes through no filter, because Envoy has
to read these bytes in any case. The other is a good request of the same kind. A figure is the worker's CPU time for
each request, with the Envoy and the load of `make bench`. The program fails if a hostile request costs a larger
multiple of the good one than docs/security/cost.md explains.

After that, clients send requests and leave them waiting (held.py). The program measures the memory that these requests
occupy for each byte on the wire, over HTTP/2 and HTTP/1.1. It fails if Envoy's memory grows too much, or if a held
request costs too much CPU time.

The file is long because it lists every hostile request beside the good one that it is compared with.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlencode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "demo"))

import held
from credentials import base64url, garbage_token, sha256
from envoy_config import Listener, module
from load import Fault
from measure import Bench, Samples
from rows import (
    CALL_BYTES,
    CLIENTS,
    COLD_CACHE,
    COLD_TOKENS,
    ORG,
    Parties,
    Row,
    plugin,
    tool_list,
    with_key,
    with_token,
)
from start import begin, positive
from upstream import Upstream
from wire import LONG_NUMBER, SHORT_NUMBER, Numbered, Request, list_request, mcp_call, token_request, tool_call

OUT = ROOT / "target" / "hostile"
RESULT = ROOT / "target" / "hostile.json"
# The maximum length of a token, and a length of a head that Envoy still accepts (60 KiB).
TOKEN_BYTES, HEAD_BYTES = 16 * 1024, 56 * 1024
# Envoy accepts 100 headers. Some of them are its own.
HEADERS = 85
FORM_BYTES = 16 * 1024
# The lengths are just below the limits of messages and lists.
MESSAGE_BYTES, LIST_BYTES = 1_040_000, 4_100_000
# Maximum number of entries of a list.
ENTRIES = 65_536
# The longest accepted RSA keys. An identity provider may publish several under one id.
LARGE_KID, LARGE_KEYS, LARGE_KEY_BYTES = "large", 4, 1024
# Nesting just below the limits.
CLAIMS_DEPTH, MESSAGE_DEPTH = 14, 60
VARIANTS = 64
# Concurrent large requests. With more, they would wait for each other, and for wrk to write them.
LARGE_AT_A_TIME = 2
CONNECTOR = "notes"
EVENTS = "text/event-stream"
# Scopes of different connectors that fit into a token.
SCOPES = 800
# Maximum length of a path with `unmatched_paths: allow`.
PATH_BYTES = 8 * 1024
# Default maximum cost, as a multiple of a good request. A slow, shared machine needs some room.
MULTIPLE = 8
# For long paths, compared with a request of 300 bytes: Envoy's own work, and several decodings of 8 KiB.
PATH_MULTIPLE = 25
# For a million empty events.
EVENTS_MULTIPLE = 15
# For the most expensive accepted keys.
KEYS_MULTIPLE = 15


@dataclass(frozen=True, eq=False)
class Hostile:
    """A hostile request, and the good request for comparison. To add one, add it to `hostiles`."""

    row: Row
    good: str
    at_most: float = MULTIPLE

    @property
    def bare(self) -> Row:
        """The same bytes and the same answer, without any filter."""
        listener = BARE_WITH_ANSWER.get(self.row.listener.answer, BARE)
        return Row(f"{self.row.name}_bare", listener, self.row.requests, connections=self.row.connections)


def large_key() -> dict:
    """A public key of random bytes. Verification does not need the factors of the modulus."""
    modulus = bytes([0xFF]) + os.urandom(LARGE_KEY_BYTES - 2) + bytes([0xFF])
    return {"kty": "RSA", "kid": LARGE_KID, "n": base64url(modulus), "e": base64url(b"\x01\xff\xff")}


def part(members: dict) -> str:
    return base64url(json.dumps(members, separators=(",", ":")).encode())


def filled(size: int, piece: Callable[[int], str], separator: str = ",") -> str:
    """Pieces with a total length of at most `size`."""
    pieces, length, number = [], 0, 0
    while length + len(text := piece(number)) + len(separator) <= size:
        pieces.append(text)
        length += len(text) + len(separator)
        number += 1
    return separator.join(pieces)


def members(size: int) -> str:
    """JSON members with a total length of at most `size`."""
    return filled(size, lambda number: f'"{number:x}":0')


def call(arguments: str) -> str:
    params = f'{{"name":"{CONNECTOR}__write","arguments":{arguments}}}'
    return f'{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}'


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def table(size: int) -> str:
    """Records, as in the arguments of a real tool."""

    def record(number: int) -> str:
        return json.dumps(
            {"id": number, "title": f"Title {number}", "tags": ["a", "b"], "is_done": False, "text": "x" * 40}
        )

    return f"[{filled(size - 2, record)}]"


def list_of(tool: Callable[[int], str]) -> str:
    return f'{{"jsonrpc":"2.0","id":1,"result":{{"tools":[{filled(LIST_BYTES, tool)}]}}}}'


def good_large_list() -> str:
    real = json.loads(tool_list())["result"]["tools"]
    return list_of(lambda number: json.dumps(real[number % len(real)]))


def large_list() -> str:
    """A list with the maximum number of entries."""

    def tool(number: int) -> str:
        name = f"{(CONNECTOR, 'clock')[number % 2]}__{number}"
        return f'{{"name":"{name.ljust(LIST_BYTES // ENTRIES - 11, "x")}"}}'

    return list_of(tool)


def empty_entries() -> str:
    return list_of(lambda _: "{}")


def many_events() -> str:
    return ":\n\n" * (LIST_BYTES // 3)


def events_with_data() -> str:
    return "data:{}\n\n" * (LIST_BYTES // 9)


BARE = Listener("bare")
BARE_WITH_ANSWER = {
    large_list: Listener("bare_list", answer=large_list),
    empty_entries: Listener("bare_empty_entries", answer=empty_entries),
    many_events: Listener("bare_events", answer=many_events, answer_type=EVENTS),
    events_with_data: Listener("bare_events_with_data", answer=events_with_data, answer_type=EVENTS),
}


class World:
    """The listeners and their requests."""

    def __init__(self, parties: Parties) -> None:
        self.parties = parties
        self.key, self.scoped_key = parties.keys(2)
        self.gateway = self._listener("gateway")
        self.cold = self._listener("gateway_cold", tokens={"cache_size": COLD_CACHE})
        self.open = self._listener("open", gateway={"unmatched_paths": "allow"})
        self.lists = self._listener("lists", tool_list)
        self.good_large_lists = self._listener("good_large_lists", good_large_list)
        self.large_lists = self._listener("large_lists", large_list)
        self.empty_entries = self._listener("empty_entries", empty_entries)
        self.events = self._listener("events", many_events, answer_type=EVENTS)
        self.events_with_data = self._listener("events_with_data", events_with_data, answer_type=EVENTS)
        scopes = " ".join(f"mcp:call:c{number}" for number in range(SCOPES))
        self.many_scopes = ("Authorization", f"Bearer {parties.idp.token(scope=scopes)}")

    def _listener(
        self,
        name: str,
        answer: Callable[[], str] = str,
        answer_type: str = "application/json",
        gateway: dict | None = None,
        tokens: dict | None = None,
    ) -> Listener:
        def filters() -> list[dict]:
            org = self.parties.org([self.key])
            org["api_keys"].append({"id": "scoped", "sha256": sha256(self.scoped_key), "connectors": [CONNECTOR]})
            config = plugin({ORG: org}, tokens)
            config["gateway"] |= gateway or {}
            return [module(name, config)]

        return Listener(name, filters, answer, answer_type)

    def goods(self) -> list[Row]:
        parties, scoped = self.parties, ("X-API-Key", self.scoped_key)
        return [
            Row("good_key", self.gateway, lambda: [with_key(self.key)]),
            Row("good_token", self.gateway, lambda: [with_token(parties.idp.token())]),
            Row("good_new_token", self.cold, lambda: [with_token(token) for token in parties.idp.tokens(COLD_TOKENS)]),
            Row(
                "good_call",
                self.gateway,
                lambda: [tool_call(ORG, f"{CONNECTOR}__write", CALL_BYTES).with_header(*scoped)],
            ),
            Row(
                "good_large_call",
                self.gateway,
                lambda: [tool_call(ORG, f"{CONNECTOR}__write", MESSAGE_BYTES).with_header(*scoped)],
                connections=LARGE_AT_A_TIME,
            ),
            Row(
                "good_table_call",
                self.gateway,
                lambda: [
                    replace(mcp_call(ORG), body=call(f'{{"records":{table(MESSAGE_BYTES)}}}')).with_header(*scoped)
                ],
                connections=LARGE_AT_A_TIME,
            ),
            Row("good_list", self.lists, lambda: [list_request(ORG).with_header(*scoped)]),
            Row(
                "good_large_list",
                self.good_large_lists,
                lambda: [list_request(ORG).with_header(*scoped)],
                connections=LARGE_AT_A_TIME,
            ),
            Row(
                "good_token_request",
                self.gateway,
                lambda: [token_request(*client) for client in parties.clients],
                connections=4,
            ),
        ]

    def hostiles(self) -> list[Hostile]:
        return [*self._tokens(), *self._heads(), *self._messages(), *self._forms()]

    def _tokens(self) -> list[Hostile]:
        idp, claims = self.parties.idp, self.parties.idp.claims | {"exp": 4_000_000_000}
        signature = base64url(bytes(1) + bytes(range(255)))

        def hostile(name: str, token: Callable[[int], str], at_most: float = MULTIPLE) -> Hostile:
            requests = [with_token(token(number)) for number in range(VARIANTS)]
            return Hostile(Row(name, self.gateway, lambda: requests, status=401), "good_new_token", at_most)

        def forged(name: str, claims_of: Callable[[int], str], others: dict = claims) -> Hostile:
            """A token with a wrong signature and as many claims as possible. The signature is checked last."""

            def token(number: int) -> str:
                plain = json.dumps(others | {"jti": str(number)}, separators=(",", ":"))
                room = TOKEN_BYTES - len(part(idp.header)) - len(signature) - 2
                text = f"{plain[:-1]},{claims_of(room * 3 // 4 - len(plain) - 2)}}}"
                return f"{part(idp.header)}.{base64url(text.encode())}.{signature}"

            return hostile(name, token)

        def of_kid(kid: str) -> str:
            return f"{part(idp.header | {'kid': kid})}.{part(claims)}.{signature}"

        def large_signature(number: int) -> str:
            return (
                f"{of_kid(LARGE_KID).rpartition('.')[0]}.{base64url(bytes([1, number]) + bytes(LARGE_KEY_BYTES - 2))}"
            )

        def signed_scopes() -> list[Request]:
            scopes = filled(8_000, lambda number: f"mcp:call:c{number}", " ")
            return [with_token(idp.token(scope=f"{scopes} mcp:call")) for _ in range(COLD_CACHE * 2)]

        def audiences(room: int) -> str:
            several = filled(room - 30, lambda number: f'"a{number}"')
            return f'"aud":[{several},"{claims["aud"]}"]'

        return [
            hostile("token_garbage", lambda _: garbage_token()),
            hostile("token_garbage_16k", lambda number: f"{number:04}".ljust(TOKEN_BYTES - 600, "A") + ".AAAA.AAAA"),
            hostile("token_too_long_56k", lambda number: f"{number:04}".ljust(HEAD_BYTES - 600, "A")),
            hostile("token_forged", lambda _: idp.forged_token()),
            hostile("token_unknown_kid", lambda number: of_kid(f"k{number}")),
            hostile("token_forged_large_keys", large_signature, KEYS_MULTIPLE),
            forged("token_forged_16k", lambda room: f'"text":"{(room - 9) * "x"}"'),
            forged(
                "token_deep_claims_16k", lambda room: f'"deep":[{filled(room - 9, lambda _: nested(CLAIMS_DEPTH))}]'
            ),
            forged("token_many_claims_16k", members),
            forged(
                "token_many_audiences_16k", audiences, {name: value for name, value in claims.items() if name != "aud"}
            ),
            Hostile(Row("token_many_scopes_8k", self.cold, signed_scopes), "good_new_token"),
        ]

    def _heads(self) -> list[Hostile]:
        def head(
            name: str, request: Request, status: int, listener: Listener = self.gateway, at_most: float = MULTIPLE
        ) -> Hostile:
            return Hostile(Row(name, listener, lambda: [request], status=status), "good_key", at_most)

        def with_headers(request: Request, name: str, value: str) -> Request:
            for number in range(HEADERS):
                request = request.with_header(f"{name}{number}", value)
            return request

        def path(name: str, text: str) -> list[Hostile]:
            """A path at a gateway that refuses unmatched paths, and at one that lets them pass."""

            def request(size: int) -> Request:
                return mcp_call(ORG).at("/" + filled(size - 1, lambda _: text, ""))

            return [
                head(f"path_56k_{name}", request(HEAD_BYTES - 600), 404, at_most=PATH_MULTIPLE),
                head(f"path_8k_{name}_open", request(PATH_BYTES), 200, self.open, PATH_MULTIPLE),
            ]

        key_elsewhere = Numbered.of(with_key(self.key, f"org-{LONG_NUMBER}"))
        return [
            head("key_unknown", Numbered.of(with_key(f"apx_live_sk_{'x' * 20}{LONG_NUMBER}")), 401),
            head("key_of_another_org", key_elsewhere, 401),
            head("no_credential", mcp_call(ORG), 401),
            head("headers_56k", with_headers(mcp_call(ORG), "x-padding-", "x" * (HEAD_BYTES // HEADERS - 30)), 401),
            head("headers_look_alike", with_headers(with_key(self.key), "x-apexmcp-", "x"), 200),
            # Encoded as often as the filter decodes. With a `/` after each, so that there are as many segments.
            *path("escapes", "%252541"),
            *path("segments", "a/"),
            *path("both", "%252541/"),
            # A server may resolve dots before, between or after its decodings.
            *path("dots", "a/%25252e%25252e/"),
        ]

    def _messages(self) -> list[Hostile]:
        scoped = ("X-API-Key", self.scoped_key)

        def message(name: str, body: str, status: int, credential: tuple[str, str] = scoped) -> Hostile:
            request = Request(f"/mcp/{ORG}", (("Content-Type", "application/json"), credential), body)
            return Hostile(
                Row(name, self.gateway, lambda: [request], status=status, connections=LARGE_AT_A_TIME),
                "good_table_call",
            )

        def batch(connectors: int) -> str:
            start, end = '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"c', '__a"}}'
            return f"[{filled(MESSAGE_BYTES, lambda number: f'{start}{number % connectors}{end}')}]"

        def listing(
            name: str, listener: Listener, credential: tuple[str, str] = scoped, at_most: float = MULTIPLE
        ) -> Hostile:
            request = list_request(ORG).with_header(*credential)
            return Hostile(
                Row(name, listener, lambda: [request], connections=LARGE_AT_A_TIME), "good_large_list", at_most
            )

        room = MESSAGE_BYTES - len(call("")) - 10
        deep = filled(room, lambda _: nested(MESSAGE_DEPTH))
        flat = call('{"a":[' + filled(room, lambda _: "0") + "]}")
        return [
            message("message_1m_nested", call('{"a":[' + deep + "]}"), 200),
            message("message_1m_members", call("{" + members(room) + "}"), 200),
            message("message_1m_elements", flat, 200),
            message("message_1m_batch", batch(MESSAGE_BYTES), 403),
            message("message_1m_batch_many_scopes", batch(SCOPES), 200, self.many_scopes),
            message("message_1m_broken", flat[:-1], 400),
            listing("list_4m", self.large_lists),
            listing("list_4m_many_scopes", self.large_lists, self.many_scopes),
            listing("list_4m_empty_entries", self.empty_entries),
            listing("list_4m_events", self.events, at_most=EVENTS_MULTIPLE),
            listing("list_4m_events_with_data", self.events_with_data, at_most=EVENTS_MULTIPLE),
        ]

    def _forms(self) -> list[Hostile]:
        secret = "apx_secret_" + "x" * 24

        def form(name: str, request: Request, status: int) -> Hostile:
            return Hostile(
                Row(name, self.gateway, lambda: [request], status=status, connections=LARGE_AT_A_TIME),
                "good_token_request",
            )

        def post(body: str, **headers: str) -> Request:
            request = Request("/oauth/token", (("Content-Type", "application/x-www-form-urlencoded"),), body)
            for header, value in headers.items():
                request = request.with_header(header, value)
            return request

        # The number in the id begins at a group of three bytes, which base64 turns into four letters.
        basic = base64url(f"apx_client_x{LONG_NUMBER}:{secret}".encode())
        basic = basic.ljust(-(-len(basic) // 4) * 4, "=").replace("-", "+").replace("_", "/")
        # Unknown ids, because assertions of a known client would soon be refused unread.
        claims = {"iss": f"apx_client_xx{LONG_NUMBER}"}
        while json.dumps(claims, separators=(",", ":")).index(LONG_NUMBER) % 3:
            claims["iss"] = claims["iss"].replace("x9", "xx9")
        claims |= {f"{number:x}": 0 for number in range(1_000)}
        assertion = f"{part({'alg': 'RS256', 'kid': 'k'})}.{part(claims)}.{'A' * 342}"
        jwt = {"grant_type": "client_credentials", "client_assertion": assertion}
        jwt["client_assertion_type"] = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
        known = self.parties.clients[CLIENTS - 1][0]
        escapes = "a=" + filled(FORM_BYTES - 2, lambda _: "%41", "")
        return [
            form("form_wrong_secret", Numbered.of(token_request(f"apx_client_{SHORT_NUMBER}", secret)), 401),
            form(
                "form_wrong_basic",
                Numbered.of(post("grant_type=client_credentials", Authorization=f"Basic {basic}")),
                401,
            ),
            form("form_too_many_attempts", token_request(f"{known}x", secret), 401),
            form("form_forged_assertion", Numbered.of(post(urlencode(jwt))), 401),
            form("form_16k_parameters", post(filled(FORM_BYTES, lambda number: f"{number:x}=", "&")), 401),
            form("form_16k_escapes", post(escapes), 401),
            form("form_too_long_1m", post("a" * MESSAGE_BYTES), 413),
        ]


def median_cpu(samples: Samples, name: str) -> float:
    return statistics.median(sample.cpu_us for sample in samples[name])


def summarize(hostiles: list[Hostile], goods: list[Row], samples: Samples) -> list[dict]:
    def entry(name: str, requests: Callable[[], list[Request]], **others) -> dict:
        size = len(Request.encode(requests()[0]))
        return {"name": name, "bytes": size, "cpu_us": round(median_cpu(samples, name), 1)} | others

    entries = [
        entry(row.name, row.requests, bare_us=None, of_bare=None, good=None, of_good=None, at_most=None)
        for row in goods
    ]
    for hostile in hostiles:
        cpu, bare, good = (median_cpu(samples, name) for name in (hostile.row.name, hostile.bare.name, hostile.good))
        against = {"bare_us": round(bare, 1), "of_bare": round(cpu / bare, 2)}
        against |= {"good": hostile.good, "of_good": round(cpu / good, 2), "at_most": hostile.at_most}
        entries.append(entry(hostile.row.name, hostile.row.requests, **against))
    return entries


def printed(entries: list[dict]) -> str:
    columns = ("bytes", "cpu_us", "bare_us", "of_bare", "of_good", "at_most")
    lines = [f"{'name':28}" + "".join(f"{column:>12}" for column in columns) + "  good"]
    for entry in entries:
        cells = "".join(f"{'-' if entry[column] is None else entry[column]:>12}" for column in columns)
        lines.append(f"{entry['name']:28}{cells}  {entry['good'] or '-'}")
    return "\n".join(lines)


def arguments(names: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=".tools/bin/python bench/hostile.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__.strip(),
        epilog="columns of requests:\n"
        "  bytes            length of the request\n"
        "  cpu_us           CPU time with the filter\n"
        "  bare_us          CPU time for the same bytes without any filter\n"
        "  of_bare          cpu_us divided by bare_us\n"
        "  of_good          cpu_us divided by the cpu_us of the good request in the last column\n"
        "  at_most          maximum of of_good\n\n"
        "columns of held requests:\n"
        "  growth_mb        maximum growth of Envoy's resident memory\n"
        "  held_for_a_byte  this growth divided by the bytes that were sent\n\n"
        "names for --only:\n" + "\n".join(f"  {name}" for name in names),
    )
    parser.add_argument(
        "--rounds", type=positive, default=3, help="number of measurements of each request (default: 3)"
    )
    parser.add_argument("--seconds", type=positive, default=2, help="length of a measurement (default: 2)")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=names, help="measure only these, and the requests for comparison"
    )
    return parser.parse_args()


def measure(options: argparse.Namespace, world: World, hostiles: list[Hostile], upstream: Upstream) -> list[dict]:
    compared = {hostile.good for hostile in hostiles}
    goods = [row for row in world.goods() if not options.only or row.name in compared]
    rows = goods + [row for hostile in hostiles for row in (hostile.bare, hostile.row)]
    with Bench(rows, world.parties, upstream, OUT) as bench:
        print("==> checking the answer to each request", flush=True)
        for row in rows:
            bench.check(row)
        print("==> warming up", flush=True)
        for row in rows:
            bench.warm_up(row)
        return summarize(hostiles, goods, bench.rounds(rows, options.rounds, options.seconds))


def main() -> None:
    upstream = Upstream()
    parties = Parties(upstream.jwks_uri)
    upstream.jwks = {"keys": parties.idp.jwks()["keys"] + [large_key() for _ in range(LARGE_KEYS)]}
    world = World(parties)
    hostiles = world.hostiles()
    held_world = held.World(parties, OUT)
    states = held_world.states()
    options = arguments([hostile.row.name for hostile in hostiles] + [state.name for state in states])
    begin("make hostile", OUT)
    chosen = [hostile for hostile in hostiles if not options.only or hostile.row.name in options.only]
    chosen_states = [state for state in states if not options.only or state.name in options.only]
    try:
        entries = measure(options, world, chosen, upstream) if chosen else []
        held_entries = held.measure(held_world, chosen_states)
    except Fault as fault:
        sys.exit(f"make hostile: {fault}")
    finally:
        upstream.stop()
    RESULT.write_text(json.dumps({"requests": entries, "held": held_entries}, indent=2) + "\n")
    tables = ([printed(entries)] if entries else []) + ([held.printed(held_entries)] if held_entries else [])
    print("\n" + "\n\n".join(tables) + f"\n\nwritten to {RESULT.relative_to(ROOT)}")
    costly = [entry["name"] for entry in entries if entry["good"] and entry["of_good"] > entry["at_most"]]
    faults = [f"cost more than the maximum: {', '.join(costly)}"] if costly else []
    if faults := faults + held.faults(held_entries):
        sys.exit("make hostile: " + "\n              ".join(faults))


if __name__ == "__main__":
    main()
