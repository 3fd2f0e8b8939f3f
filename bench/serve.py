"""The management API and the console of `apexmcp serve` with 100,000 keys in one organization, on one core.

1. wrk reads from the API: one key, a page of 100 keys, and the organization.
2. Pages of the list of keys are rendered.
3. Keys are revoked, without traffic and beside as much traffic as the core can take. A gateway that waits for a change
   measures how long after the answer of the command it has the new policy.
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
from report import fact, table, write
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


def page_ms(settings: Settings, path: str, cookie: str) -> float:
    """The median time until a page is there."""
    connection = http.client.HTTPConnection("127.0.0.1", settings.console)
    times = []
    for _ in range(PAGES):
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


def measure(settings: Settings) -> list[dict]:
    facts: list[dict] = []

    def note(name: str, value: float, unit: str) -> None:
        facts.append(fact(name, round(value, 1), unit))
        print(f"    {name}: {value:,.1f} {unit}", flush=True)

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
        note(f"api_{name}", result.rps, "reads/s")
        note(f"api_{name}_p99", result.p99_us / 1000, "ms")

    connection = http.client.HTTPConnection("127.0.0.1", settings.console)
    connection.request("GET", f"{org}/keys?limit=1000", headers=dict(bearers[:1]))
    cursor = json.loads(connection.getresponse().read())["next"]
    pages = {
        "first": "",
        "after_1000": f"?cursor={cursor}",
        "search": "?search=agent",
        "search_rare": "?search=key_00000000c34f",
    }
    for name, query in pages.items():
        note(f"console_{name}_page", page_ms(settings, f"/orgs/{BIG}/keys{query}", sessions[0]), "ms")

    gateway = Gateway(settings)
    gateway.start()
    idle = delays_ms(settings, gateway, 0)
    shown = cycle(reads([f"/orgs/{BIG}/keys", f"/orgs/{BIG}/audit"], [("Cookie", cookie) for cookie in sessions]))
    traffic = [request for read in one_key for request in (read, next(shown))]
    wrk = Wrk(settings.console, Requests(traffic, OUT), CONNECTIONS, 600)
    try:
        busy = delays_ms(settings, gateway, CHANGES)
    finally:
        wrk.stop()
    for name, delays in (("idle", idle), ("busy", busy)):
        note(f"change_{name}", statistics.median(delays), "ms")
        note(f"change_{name}_longest", max(delays), "ms")
    note("memory", settings.memory_bytes() / 1e6, "MB")
    return facts


def main() -> None:
    begin("make bench", OUT)
    os.sched_setaffinity(0, os.sched_getaffinity(0) - {ENVOY_CORE} or os.sched_getaffinity(0))
    write_policy(OUT / "policy.json", 2 * KEYS, 2)
    try:
        with Settings(OUT, ENVOY_CORE, OUT / "policy.json", with_console=True) as settings:
            facts = measure(settings)
    except Fault as fault:
        sys.exit(f"make bench: {fault}")
    write(facts, RESULT)
    print(f"{table(facts)}\n\nwritten to {RESULT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
