"""`make soak`: checks that memory does not grow when all requests differ.

One Envoy with one worker runs on one core and gets its policy from `apexmcp serve`. wrk runs on the other core and
sends two kinds of traffic at the same time:

- Bad requests, each of them once: forged tokens with a good header and good claims, and made-up key ids, issuers,
  organizations, connectors, client ids and API keys.
- Good requests, in turn: good tokens, API keys, and requests for tokens. There are many more good tokens than the
  cache holds, so that each one is verified again. They are signed in advance, which takes a millisecond each. So there
  are some ten thousands of them, and not a million.

The program fails if a good request is refused, a bad one is admitted, an answer has a status of 500 or above, or memory
grows.

After that, another organization attacks with requests that wait (neighbors.py). The program fails if a good request is
refused during the attack, or if the 99th percentile of the response times more than doubles.
"""

import argparse
import json
import random
import socket
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "demo"))

import neighbors
from credentials import Issuer, base64url
from envoy_config import Listener, bootstrap, cluster, listener_config, module
from envoy_process import Envoy
from load import WRK_CORE, Fault, Requests, Wrk
from plot import chart
from rows import ORG, ORIGIN, with_key, with_token
from settings import CLUSTER, TOKEN_ENV, Settings
from start import begin, positive
from upstream import Upstream
from wire import LONG_NUMBER, SHORT_NUMBER, Numbered, Request, mcp_call, send, token_request

OUT = ROOT / "target" / "soak"
RESULT = ROOT / "target" / "soak.json"
PLOT = ROOT / "docs" / "security" / "memory.svg"
LISTENER = "gateway"
READY_TIMEOUT_S = 60
TOKEN_LIFE_S = 7 * 86_400
# The organization that attacks.
ATTACKER = "attacker"
KEYS = 64
# Each client may get ten tokens a second.
CLIENTS = 64
MAX_TOKENS = 50_000
# More than `tokens.cache_size`, so that a token is no longer in the cache when it is sent again.
MIN_TOKENS = 8_192
# One request with a key for each four tokens, and one request for a token for each hundred.
TOKENS_FOR_A_KEY, TOKENS_FOR_AN_ISSUED = 4, 100
# Concurrent good and bad requests.
GOOD_CONNECTIONS, BAD_CONNECTIONS = 6, 26
# Time after which wrk is restarted, and its counts are checked.
SLICE_S = 20
SAMPLE_EVERY_S = 2
# Share of the requests after which all caches are full.
WARM_AFTER = 0.2
WINDOW = 0.1
FLAT_PERCENT = 3
# wrk also counts requests that took over two seconds as broken. A busy machine may cause them.
BROKEN_OF = 100
# The reason with which each kind of bad request is refused and counted.
REFUSALS = {
    "tokens": "signature_invalid",
    "key ids": "key_unknown",
    "issuers": "issuer_unknown",
    "orgs": "api_key_unknown",
    "connectors": "scope_insufficient",
    "client ids": "invalid_client",
    "API keys": "api_key_unknown",
}


@dataclass(frozen=True)
class Sample:
    """Memory in bytes after a number of requests."""

    requests: int
    seconds: float
    resident: int
    heap: int
    module: int


class World:
    """Settings with an organization, and the requests of its clients."""

    def __init__(self, settings: Settings, upstream: Upstream, tokens: int) -> None:
        self.settings = settings
        self.idp = Issuer(
            "https://idp.example",
            "idp-1",
            "JWT",
            {"sub": "agent-7", "aud": "apexmcp", "scope": "mcp:call"},
            TOKEN_LIFE_S,
        )
        upstream.jwks = self.idp.jwks()
        create = settings.command
        create("org", "create", ORG)
        create("limits", "set", "--org", ORG, "--rate", "4000000000/day", "--monthly-quota", "4000000000")
        provider = ["--issuer", self.idp.url, "--jwks-uri", upstream.jwks_uri, "--audience", "apexmcp"]
        create("sso", "configure", "--org", ORG, *provider, "--allow-private-address", "--force")
        self.keys = [create("key", "create", "--org", ORG, "--name", f"key {number}")["key"] for number in range(KEYS)]
        self.scoped_key = create("key", "create", "--org", ORG, "--name", "scoped", "--connector", "notes")["key"]
        clients = [create("client", "create", "--org", ORG, "--name", f"client {number}") for number in range(CLIENTS)]
        self.clients = [(client["client_id"], client["client_secret"]) for client in clients]
        self.tokens = tokens
        # Accepts connections, but never reads from them.
        self.silent = socket.create_server(("127.0.0.1", 0))
        self.silent_idp = Issuer("https://silent.example", "idp-2", "JWT", {"sub": "agent-8", "aud": "apexmcp"})
        create("org", "create", ATTACKER)
        keys = f"http://127.0.0.1:{self.silent.getsockname()[1]}/keys"
        provider = ["--issuer", self.silent_idp.url, "--jwks-uri", keys, "--audience", "apexmcp"]
        create("sso", "configure", "--org", ATTACKER, *provider, "--allow-private-address", "--force")
        self.attacker_key = create("key", "create", "--org", ATTACKER, "--name", "scoped", "--connector", "notes")[
            "key"
        ]

    def attacks(self) -> list[Request]:
        """Requests that wait: for a form, a key set, a message, and the rest of a refused request."""
        call = mcp_call(ATTACKER)
        return [
            Request("/oauth/token", (("Content-Type", "application/x-www-form-urlencoded"),)),
            call.with_header("Authorization", f"Bearer {self.silent_idp.forged_token()}"),
            call.with_header("X-API-Key", self.attacker_key),
            call,
        ]

    def good(self) -> list[Request]:
        requests = [with_token(token) for token in self.idp.tokens(self.tokens)]
        requests += [with_key(self.keys[number % KEYS]) for number in range(self.tokens // TOKENS_FOR_A_KEY)]
        requests += [
            token_request(*self.clients[number % CLIENTS]) for number in range(self.tokens // TOKENS_FOR_AN_ISSUED)
        ]
        random.Random(7).shuffle(requests)
        return requests

    def bad(self) -> dict[str, Numbered]:
        header, claims = self.idp.header, self.idp.claims | {"exp": int(time.time()) + TOKEN_LIFE_S}
        # Below the modulus, so that only the whole of RSA shows that it is wrong.
        signature = ("AAAA" + LONG_NUMBER).ljust(342, "A")
        forged = "apx_secret_" + "x" * 24
        key = self.keys[0]
        requests = {
            "tokens": with_token(f"{_part(header)}.{_part(claims)}.{signature}"),
            "key ids": with_token(f"{_part(header, 'kid', 'kid-')}.{_part(claims)}.{'A' * 342}"),
            "issuers": with_token(f"{_part(header)}.{_part(claims, 'iss', 'https://idp-')}.{'A' * 342}"),
            "orgs": with_key(key, f"org-{LONG_NUMBER}"),
            "connectors": with_key(self.scoped_key).at(f"/mcp/{ORG}/connector-{LONG_NUMBER}"),
            "client ids": token_request(f"apx_client_{SHORT_NUMBER}", forged),
            "API keys": with_key(f"apx_live_sk_{'x' * 20}{LONG_NUMBER}"),
        }
        return {kind: Numbered.of(request) for kind, request in requests.items()}


def _part(members: dict, numbered: str = "", value: str = "") -> str:
    """A part of a token. base64 turns three bytes into four letters. The number in `numbered` begins at such a group,
    so that it can be replaced in the encoded text."""
    for pad in range(3):
        filled = members | ({numbered: f"{value}{'x' * pad}{LONG_NUMBER}"} if numbered else {})
        text = json.dumps(filled, separators=(",", ":"))
        if not numbered or text.index(LONG_NUMBER) % 3 == 0:
            return base64url(text.encode())
    raise AssertionError("one of three beginnings fits")


def envoy_config(settings: Settings, upstream: Upstream) -> dict:
    plugin = {
        "gateway": {"origin": ORIGIN},
        "jwks": {"http_cluster": "jwks_http"},
        "policy": {"remote": {"cluster": CLUSTER, "token_env": TOKEN_ENV}},
    }
    config = bootstrap(upstream.port)
    config["static_resources"]["clusters"].append(cluster(CLUSTER, settings.port))
    listener = Listener(LISTENER, lambda: [module("soak", plugin)])
    config["static_resources"]["listeners"] = [listener_config(listener, ORG)]
    return config


class Soak:
    def __init__(self, envoy: Envoy, good: Requests, bad: Requests, wanted: int) -> None:
        self.envoy, self.good, self.bad, self.wanted = envoy, good, bad, wanted
        self.port = envoy.ports()[LISTENER]
        self.began = time.monotonic()
        self.samples: list[Sample] = []
        self.sent_good = self.sent_bad = self.broken = 0

    def sample(self) -> Sample:
        envoy = self.envoy
        seconds = time.monotonic() - self.began
        taken = Sample(
            envoy.answered(), round(seconds, 1), envoy.memory_bytes(), envoy.heap_bytes(), envoy.module_bytes()
        )
        self.samples.append(taken)
        return taken

    def run(self) -> None:
        self.sample()
        while self.samples[-1].requests < self.wanted:
            self.slice()

    def slice(self) -> None:
        before, seconds = self.samples[-1], SLICE_S
        # wrk runs for whole seconds. The last slice ends about when the wanted number is reached.
        if before.seconds > 0 and (rate := before.requests / before.seconds):
            seconds = max(2, min(SLICE_S, round((self.wanted - before.requests) / rate)))
        running = [
            Wrk(self.port, self.good, GOOD_CONNECTIONS, seconds, skip=self.sent_good),
            Wrk(self.port, self.bad, BAD_CONNECTIONS, seconds, skip=self.sent_bad),
        ]
        while any(wrk.runs() for wrk in running):
            time.sleep(SAMPLE_EVERY_S)
            now = self.sample()
        good, bad = (wrk.result() for wrk in running)
        if good.refused:
            raise Fault(f"{good.refused} of {good.requests} good requests were refused; {self.reasons()}")
        if bad.refused != bad.requests:
            raise Fault(f"{bad.requests - bad.refused} of {bad.requests} bad requests were admitted; {self.reasons()}")
        # Requests without an answer at the end of a slice are not sent again.
        self.sent_good += good.requests + GOOD_CONNECTIONS
        self.sent_bad += bad.requests + BAD_CONNECTIONS
        self.broken += good.broken + bad.broken
        print(
            f"{now.requests:>12,} requests {(now.requests - before.requests) / (now.seconds - before.seconds):>8,.0f}/s"
            f"   resident {now.resident / 1e6:6.1f} MB   heap {now.heap / 1e6:6.1f} MB"
            f"   modules {now.module / 1e6:6.1f} MB",
            flush=True,
        )

    def reasons(self) -> dict[str, int]:
        """The count of each reason and outcome."""
        counted: dict[str, int] = {}
        for name, value in self.envoy.counters("apexmcp_(requests|endpoints)$").items():
            label = "reason" if name.endswith("_requests") else "outcome"
            word = name.split(f"{label}=.=")[1].split(";")[0]
            counted[word] = counted.get(word, 0) + value
        return counted

    def faults(self) -> list[str]:
        """What was not as it should be."""
        reasons, expected = set(self.reasons()), {"ok", *REFUSALS.values()}
        found = {
            f"never counted: {', '.join(sorted(expected - reasons))}": expected - reasons,
            f"counted, and not expected: {', '.join(sorted(reasons - expected))}": reasons - expected,
            f"{self.envoy.server_errors()} requests were answered with 500 or above": self.envoy.server_errors(),
            f"{self.broken} connections broke or waited for over two seconds": self.broken * BROKEN_OF
            > self.sent_good + self.sent_bad,
        }
        return [text for text, holds in found.items() if holds]


def growth(samples: list[Sample], wanted: int) -> dict:
    """Medians of a tenth of the run, once the caches are full and at the end."""

    def within(start: float) -> list[Sample]:
        return [each for each in samples if start * wanted <= each.requests <= (start + WINDOW) * wanted] or samples[
            -1:
        ]

    warm, end = within(WARM_AFTER), [each for each in samples if each.requests >= (1 - WINDOW) * wanted]
    figures = {}
    for what in ("resident", "heap", "module"):
        before, after = (statistics.median(getattr(each, what) for each in part) for part in (warm, end))
        figures[what] = {
            "warm": before,
            "end": after,
            "percent": round((after / before - 1) * 100, 2) if before else None,
        }
    return figures


def ready(port: int, requests: list[Request]) -> None:
    """Returns when the gateway has the policy and the key set."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    for request in requests:
        while (status := send(port, request)[0]) == 503 and time.monotonic() < deadline:
            time.sleep(0.1)
        if status != 200:
            raise Fault(f"a good request for {request.path} was answered with {status}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=".tools/bin/python bench/soak.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__.strip(),
    )
    parser.add_argument(
        "--requests",
        type=positive,
        default=10_000_000,
        help="total number of requests (default: 10,000,000, which takes half an hour)",
    )
    parser.add_argument(
        "--plot", type=Path, default=PLOT, metavar="FILE", help="file for the chart (default: docs/security/memory.svg)"
    )
    return parser.parse_args()


def run(options: argparse.Namespace, upstream: Upstream) -> dict:
    tokens = max(MIN_TOKENS, min(MAX_TOKENS, options.requests // 20))
    with Settings(OUT, WRK_CORE) as settings:
        print("==> creating an organization, its keys and clients", flush=True)
        world = World(settings, upstream, tokens)
        print(f"==> signing {tokens:,} good tokens", flush=True)
        good, bad = world.good(), world.bad()
        files = Requests(good, OUT), Requests(list(bad.values()), OUT)
        with Envoy("soak", envoy_config(settings, upstream), OUT, settings.environment) as envoy:
            ready(envoy.ports()[LISTENER], good[:50])
            print(f"==> {options.requests:,} requests", flush=True)
            soak = Soak(envoy, *files, options.requests)
            soak.run()
            reasons, faults = soak.reasons(), soak.faults()
            neighbor = neighbors.measure(soak.port, files[0], world.attacks())
    distinct = {kind: soak.sent_bad // len(bad) for kind in bad}
    return {
        "requests": soak.samples[-1].requests,
        "seconds": soak.samples[-1].seconds,
        "good_tokens": tokens,
        "distinct": distinct,
        "reasons": reasons,
        "broken": soak.broken,
        "faults": faults + neighbors.faults(neighbor),
        "neighbor": neighbor,
        "growth": growth(soak.samples, options.requests),
        "samples": [asdict(sample) for sample in soak.samples],
    }


def report(result: dict) -> str:
    lines = ["", f"{result['requests']:,} requests in {result['seconds']:,.0f} s; distinct values:"]
    lines += [f"  {count:>10,} {kind}" for kind, count in result["distinct"].items()]
    lines += [f"  {result['good_tokens']:>10,} good tokens, in turn", "", "requests by reason:"]
    lines += [f"  {count:>10,} {word}" for word, count in sorted(result["reasons"].items())]
    lines += ["", f"memory when the caches are full (after {WARM_AFTER:.0%} of the requests) and at the end:"]
    for what, figures in result["growth"].items():
        lines.append(
            f"  {what:9} {figures['warm'] / 1e6:7.1f} MB {figures['end'] / 1e6:7.1f} MB {figures['percent']:+6.2f} %"
        )
    neighbor = result["neighbor"]
    lines += [
        "",
        f"p99 of good requests {neighbor['quiet_p99_us']:,} µs; while another organization left requests waiting: "
        f"{neighbor['attacked_p99_us']:,} µs, {neighbor['refused']} refused",
        f"  the attack: {neighbor['attack']['requests']:,} requests of {neighbor['attack']['bytes']:,} bytes together; "
        f"answers: {neighbor['attack']['answers']}",
    ]
    return "\n".join(lines)


def draw(result: dict, path: Path) -> None:
    samples = result["samples"]
    lines = {
        name: [sample[key] / 1e6 for sample in samples]
        for name, key in (("Envoy, resident", "resident"), ("Envoy's heap", "heap"), ("the modules' memory", "module"))
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(chart("MB", "million requests", [sample["requests"] / 1e6 for sample in samples], lines))


def main() -> None:
    options = arguments()
    begin("make soak", OUT)
    upstream = Upstream()
    try:
        result = run(options, upstream)
    except Fault as fault:
        sys.exit(f"make soak: {fault}")
    finally:
        upstream.stop()
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    draw(result, options.plot)
    print(f"{report(result)}\n\nwritten to {RESULT.relative_to(ROOT)} and {options.plot}")
    percent = result["growth"]["resident"]["percent"]
    if percent > FLAT_PERCENT:
        result["faults"].append(f"resident memory grew by {percent} %, more than {FLAT_PERCENT} %")
    if result["faults"]:
        sys.exit("make soak: " + "\n           ".join(result["faults"]))
    print(f"memory does not grow: it changed by {percent:+} %, the maximum is {FLAT_PERCENT} %")


if __name__ == "__main__":
    main()
