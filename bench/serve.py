"""The management API and the console of `apexmcp serve` with 100,000 keys in one organization, on one core.

1. wrk reads from the API: one key, a page of 100 keys, and the organization.
2. Pages of the list of keys are rendered.
3. Keys are revoked, without traffic and beside as much traffic as the core can take. A gateway that waits for a change
   measures how long after the answer of the command it has the new policy.

Figures with a goal are compared with it. A missed goal is a failure.
"""

import contextlib
import http.client
import json
import os
import statistics
import sys
import threading
import time
from itertools import cycle
from pathlib import Path
from urllib.parse import urlencode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "demo"))

from envoy_process import ENVOY_CORE
from load import Fault, Load, Requests, Wrk
from report import fact, write
from scale import BIG, write_policy
from settings import TOKEN_ENV, Settings
from start import begin
from wire import Request

OUT = ROOT / "target" / "serve"
RESULT = ROOT / "target" / "serve.json"
KEYS = 100_000
MEDIA_TYPE = "application/vnd.apexmcp.policy-parts+json"
# Each may make 200 requests a second.
TOKENS = 160
SESSIONS = 20
SECONDS = 5
PAGES = 50
CHANGES = 20
# The number of connections that wrk uses.
CONNECTIONS = 16
# The goals of each kind of read, and of a page of the console.
MIN_READS_PER_S = 2_000
MAX_READ_MS = 20
MAX_PAGE_MS = 100
# Traffic may delay a change by at most one interval of the server's looks at the database.
MAX_DELAY_MS = 50
# Where the cursor of the page in the middle comes from: the API, by pages of this length.
LONGEST_PAGE = 1_000


def cookies(settings: Settings) -> list[str]:
    """Signs in, as a browser does."""
    found = []
    for _ in range(SESSIONS):
        link = settings.command("sign-in")["url"].split("link=")[1]
        connection = http.client.HTTPConnection("127.0.0.1", settings.console)
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin"}
        connection.request("POST", "/sign-in", urlencode({"link": link}), headers)
        answer = connection.getresponse()
        if answer.status != 303:
            raise Fault(f"sign-in was answered with {answer.status}")
        found.append(answer.getheader("Set-Cookie").split(";")[0])
    return found


def reads(paths: list[str], credentials: list[tuple[str, str]]) -> list[Request]:
    """Each path with each credential."""
    return [Request(path, (credential,), method="GET") for credential in credentials for path in paths]


def load(settings: Settings, name: str, requests: list[Request], seconds: int = SECONDS) -> Load:
    return Wrk(settings.console, Requests(requests, OUT), CONNECTIONS, seconds).result().require(name, 200)


class Figures:
    """The figures so far, each with its goal if it has one."""

    def __init__(self) -> None:
        self.facts: list[dict] = []

    def note(
        self, name: str, value: float, unit: str, *, at_least: float | None = None, at_most: float | None = None
    ) -> None:
        entry = fact(name, round(value, 1), unit) | {"at_least": at_least, "at_most": at_most}
        self.facts.append(entry)
        print(f"    {line(entry)}", flush=True)

    def missed(self) -> list[str]:
        """The figures that miss their goals."""
        return [line(entry) for entry in self.facts if is_met(entry) is False]


def is_met(entry: dict) -> bool | None:
    """Whether a figure meets its goal. `None`: it has none."""
    value, at_least, at_most = (entry[name] for name in ("value", "at_least", "at_most"))
    if at_least is None and at_most is None:
        return None
    return (at_least is None or value >= at_least) and (at_most is None or value <= at_most)


def line(entry: dict) -> str:
    """A figure, its goal and whether it meets the goal."""
    limits = [
        f"{word} {entry[name]:,}"
        for name, word in (("at_least", "at least"), ("at_most", "at most"))
        if entry[name] is not None
    ]
    verdict = {None: "", True: "met", False: "MISSED"}[is_met(entry)]
    return f"{entry['name']:32}{entry['value']:>12,} {entry['unit']:10}{' '.join(limits):18}{verdict}".rstrip()


def middle(settings: Settings, org: str, bearer: tuple[str, str]) -> str:
    """The cursor of the page in the middle of the list of keys."""
    connection = http.client.HTTPConnection("127.0.0.1", settings.console)
    cursor = ""
    for _ in range(KEYS // 2 // LONGEST_PAGE):
        query = f"?limit={LONGEST_PAGE}" + (f"&cursor={cursor}" if cursor else "")
        connection.request("GET", f"{org}/keys{query}", headers=dict([bearer]))
        cursor = json.loads(connection.getresponse().read())["next"]
    return cursor


def page_ms(settings: Settings, path: str, sessions: list[str]) -> float:
    """The median time until a page is there. The sessions take turns, because a search counts as several requests in
    the limit of its session."""
    connection = http.client.HTTPConnection("127.0.0.1", settings.console)
    times = []
    for _, cookie in zip(range(PAGES), cycle(sessions), strict=False):
        began = time.perf_counter()
        connection.request("GET", path, headers={"Cookie": cookie})
        answer = connection.getresponse()
        body = answer.read()
        times.append(time.perf_counter() - began)
        if answer.status != 200 or b"agent" not in body:
            raise Fault(f"{path} was answered with {answer.status}")
    return statistics.median(times) * 1000


class Gateway(threading.Thread):
    """A gateway that waits for changes, as our filter does. `times` has when each answer arrived."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(daemon=True)
        self.connection = http.client.HTTPConnection("127.0.0.1", settings.port, timeout=60)
        self.headers = {"Authorization": f"Bearer {settings.environment[TOKEN_ENV]}", "Accept": MEDIA_TYPE}
        self.arrived = threading.Condition()
        self.times: dict[str, float] = {}
        self.ask("")
        while not self.page["is_last"]:
            self.ask("")

    def ask(self, query: str) -> None:
        self.connection.request("GET", f"/v1/policy{query}", headers=self.headers)
        answer = self.connection.getresponse()
        body = answer.read()
        if answer.status == 200:
            self.page = json.loads(body)
            self.headers["If-None-Match"] = f'"{self.page["next"]}"'
            with self.arrived:
                self.times[self.page["version"]] = time.monotonic()
                self.arrived.notify_all()

    def run(self) -> None:
        # Until the server ends.
        with contextlib.suppress(OSError, http.client.HTTPException):
            while True:
                self.ask("?wait=30s")

    def await_change(self, after: int) -> float:
        """Returns when the first version after this one arrived."""
        with self.arrived:
            if not self.arrived.wait_for(lambda: any(int(version) > after for version in self.times), 30):
                raise Fault("a change never arrived")
            return min(at for version, at in self.times.items() if int(version) > after)


def delays_ms(settings: Settings, gateway: Gateway, first_key: int) -> list[float]:
    """How long after the answer of a command the gateway has its change."""
    delays = []
    for number in range(first_key, first_key + CHANGES):
        before = max(map(int, gateway.times))
        settings.command("key", "revoke", f"key_{number:012x}")
        done = time.monotonic()
        delays.append(max(gateway.await_change(before) - done, 0) * 1000)
    return delays


def measure(settings: Settings) -> Figures:
    figures = Figures()
    names = (f"bench-{number}" for number in range(TOKENS))
    tokens = [
        settings.command("admin-token", "create", "--name", name, "--role", "operator")["token"] for name in names
    ]
    bearers = [("Authorization", f"Bearer {token}") for token in tokens]
    sessions = cookies(settings)
    org = f"/api/v1/orgs/{BIG}"
    one_key = reads([f"{org}/keys/key_{number:012x}" for number in range(0, KEYS // 2, 997)], bearers)
    kinds = {"one_key": one_key, "page_of_keys": reads([f"{org}/keys"], bearers), "org": reads([org], bearers)}
    for name, requests in kinds.items():
        result = load(settings, name, requests)
        figures.note(f"api_{name}", result.rps, "reads/s", at_least=MIN_READS_PER_S)
        figures.note(f"api_{name}_p50", result.p50_us / 1000, "ms")
        figures.note(f"api_{name}_p99", result.p99_us / 1000, "ms", at_most=MAX_READ_MS)

    pages = {
        "first": "",
        "middle": f"?cursor={middle(settings, org, bearers[0])}",
        "search": "?search=agent",
        "search_rare": "?search=key_00000000c34f",
    }
    for name, query in pages.items():
        took = page_ms(settings, f"/orgs/{BIG}/keys{query}", sessions)
        figures.note(f"console_{name}_page", took, "ms", at_most=MAX_PAGE_MS)

    gateway = Gateway(settings)
    gateway.start()
    idle = delays_ms(settings, gateway, 0)
    shown = cycle(reads([f"/orgs/{BIG}/keys", f"/orgs/{BIG}/audit"], [("Cookie", cookie) for cookie in sessions]))
    traffic = [request for read in one_key for request in (read, next(shown))]
    wrk = Wrk(settings.console, Requests(traffic, OUT), CONNECTIONS, 600)
    try:
        busy = delays_ms(settings, gateway, CHANGES)
        # Without this check, refused requests would count as traffic.
        beside = wrk.end().require("traffic beside changes", 200)
    finally:
        wrk.stop()
    figures.note("change_idle", statistics.median(idle), "ms")
    figures.note("change_idle_longest", max(idle), "ms")
    for name, found in (("", statistics.median), ("_longest", max)):
        figures.note(f"change_busy{name}", found(busy), "ms", at_most=round(found(idle) + MAX_DELAY_MS, 1))
    figures.note("traffic_beside_changes", beside.rps, "reads/s")
    figures.note("memory", settings.memory_bytes() / 1e6, "MB")
    return figures


def main() -> None:
    begin("make bench", OUT)
    os.sched_setaffinity(0, os.sched_getaffinity(0) - {ENVOY_CORE} or os.sched_getaffinity(0))
    write_policy(OUT / "policy.json", 2 * KEYS, 2)
    try:
        with Settings(OUT, ENVOY_CORE, OUT / "policy.json", with_console=True) as settings:
            figures = measure(settings)
    except Fault as fault:
        sys.exit(f"make bench: {fault}")
    write(figures.facts, RESULT)
    print("\n".join(["", *map(line, figures.facts), "", f"written to {RESULT.relative_to(ROOT)}"]))
    if missed := figures.missed():
        sys.exit("make bench: " + "\n            ".join(missed))


if __name__ == "__main__":
    main()
