"""Measures the cost of requests that wait: memory for each byte on the wire, and CPU time for each request.

There are several states in which the gateway holds a request. Each state is measured over HTTP/2 and HTTP/1.1, with a
new Envoy that has one worker. This Envoy gets more requests than it should hold, with heads of the maximum length. The
memory is the peak growth of Envoy's resident memory. The CPU time is the worker's for each request until the last one
has ended. It is compared with the CPU time for the same bytes without the filter.
"""

import asyncio
import socket
from dataclasses import dataclass, replace
from pathlib import Path

from attack import Http1, Http2, Tally, Unfinished, padded
from credentials import sha256
from envoy_config import RATE_LIMIT_CLUSTER, Listener, bootstrap, cluster, listener_config, module, rate_limit_cluster
from envoy_process import Envoy
from load import Fault
from rows import ORG, Parties, plugin, with_key
from settings import CLUSTER, TOKEN_ENV
from wire import Request, mcp_call

LISTENER, BARE = "held", "bare"
# HTTP/2: connections, and requests on each. Envoy accepts no more concurrent requests on a connection.
CONNECTIONS, STREAMS = 40, 100
# HTTP/1.1: a connection holds one request.
HTTP1_CONNECTIONS = 2_000
BODY_BYTES = 1_000_000
# Connections and requests for bodies of that length, 800 MB in total.
BODY_CONNECTIONS, BODY_STREAMS, HTTP1_BODY_CONNECTIONS = 20, 40, 800
# A refusal waits for the rest of a request up to 16 KiB.
REST_BYTES = 16_000
# Connections that are opened at the same time.
AT_A_TIME = 20
# This is longer than a measurement.
PATIENCE = "60s"
CONNECTOR = "notes"
LIMITED_ORG, LIMITS = "limited", {"monthly_quota": 4_000_000_000}
# A listening socket accepts this many connections, even if no program calls accept.
BACKLOG = 4_096
END_TIMEOUT_S, POLL_S = 90, 0.05
# Maximum cost of a state: memory, and a multiple of Envoy's own CPU time for the same bytes.
MAX_GROWTH_BYTES = 400_000_000
MAX_OF_BARE = 4
PROTOCOLS: dict[str, type] = {"http2": Http2, "http1": Http1}


@dataclass(frozen=True)
class State:
    """Something that requests wait for. To measure another one, add it to `states`."""

    name: str
    request: Unfinished
    # Changes of the plugin's configuration.
    sections: dict

    def size(self, protocol: str) -> tuple[int, int]:
        """The number of connections, and of requests on each."""
        has_body = bool(self.request.request.body)
        if protocol == "http1":
            return HTTP1_BODY_CONNECTIONS if has_body else HTTP1_CONNECTIONS, 1
        return (BODY_CONNECTIONS, BODY_STREAMS) if has_body else (CONNECTIONS, STREAMS)


class World:
    """The credentials, and the services that never answer."""

    def __init__(self, parties: Parties, folder: Path) -> None:
        self.parties, self.folder = parties, folder
        self.key, self.scoped_key, self.limited_key = parties.keys(3)
        # Accepts connections, but never reads from them.
        self.silent = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        self.silent_port = self.silent.getsockname()[1]

    def plugin(self, sections: dict) -> dict:
        org = self.parties.org([self.key])
        org["api_keys"].append({"id": "scoped", "sha256": sha256(self.scoped_key), "connectors": [CONNECTOR]})
        org["identity_providers"][0]["jwks_uri"] = f"http://127.0.0.1:{self.silent_port}/keys"
        limited = {"api_keys": [{"id": "limited", "sha256": sha256(self.limited_key)}], "limits": LIMITS}
        config = plugin({ORG: org, LIMITED_ORG: limited})
        return config | {"jwks": config["jwks"] | {"timeout": PATIENCE}} | sections

    def envoy(self, sections: dict) -> Envoy:
        """Starts a new Envoy with two listeners: one with the filter, and one without."""
        config = bootstrap(self.silent_port)
        config["static_resources"]["clusters"] += [
            rate_limit_cluster(self.silent_port),
            cluster(CLUSTER, self.silent_port),
        ]
        with_filter = Listener(LISTENER, lambda: [module(LISTENER, self.plugin(sections))])
        config["static_resources"]["listeners"] = [listener_config(each, ORG) for each in (with_filter, Listener(BARE))]
        return Envoy(LISTENER, config, self.folder, self.parties.environment | {TOKEN_ENV: "x" * 32})

    def states(self) -> list[State]:
        service = {"cluster": RATE_LIMIT_CLUSTER, "timeout": PATIENCE, "on_error": "deny"}
        remote = {"remote": {"cluster": CLUSTER, "token_env": TOKEN_ENV, "timeout": PATIENCE}}
        token = self.parties.idp.forged_token()

        def state(name: str, request: Request, length: int = 0, sections: dict | None = None) -> State:
            return State(name, Unfinished(padded(replace(request, body="")), length), sections or {})

        form = Request("/oauth/token", (("Content-Type", "application/x-www-form-urlencoded"),))
        message = mcp_call(ORG).with_header("X-API-Key", self.scoped_key)
        by_service = {"limits": {"store": "rate_limit_service", "rate_limit_service": service}}
        long_message = Unfinished(replace(message, body="x" * BODY_BYTES), BODY_BYTES + 1)
        return [
            state("held_form", form, 100),
            state("held_key_set", mcp_call(ORG).with_header("Authorization", f"Bearer {token}")),
            state("held_rate_limit", with_key(self.limited_key, LIMITED_ORG), sections=by_service),
            state("held_message", message, 100),
            State("held_message_1m", long_message, {}),
            state("held_refusal", mcp_call(ORG), REST_BYTES),
            state("held_first_policy", with_key(self.key), sections={"policy": remote}),
        ]


def peak_bytes(envoy: Envoy) -> int:
    """The peak of resident memory since `forget_peak`."""
    status = Path(f"/proc/{envoy.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def forget_peak(envoy: Envoy) -> None:
    """Resets the peak of resident memory to its present size (proc(5): 5 in `clear_refs`)."""
    Path(f"/proc/{envoy.process.pid}/clear_refs").write_text("5")


def active(envoy: Envoy) -> int:
    name = "http.gateway.downstream_rq_active"
    return envoy.counters(f"^{name}$").get(name, 0)


async def attack(envoy: Envoy, port: int, client: type, request: Unfinished, connections: int, streams: int) -> Tally:
    """Sends the requests. Returns when Envoy has read all of them and the clients have closed their connections."""
    tally, clients = Tally(), []
    for start in range(0, connections, AT_A_TIME):
        several = await asyncio.gather(
            *(client(port, tally).connect() for _ in range(min(AT_A_TIME, connections - start)))
        )
        clients += several
        await asyncio.gather(*(each.send(request, streams) for each in several))
    async with asyncio.timeout(END_TIMEOUT_S):
        # Some answers have not arrived yet.
        while active(envoy) != tally.held:
            await asyncio.sleep(POLL_S)
        seen = replace(tally, answers=tally.answers.copy())
        await asyncio.gather(*(each.close() for each in clients))
        while active(envoy):
            await asyncio.sleep(POLL_S)
    return seen


def measured(envoy: Envoy, listener: str, protocol: str, request: Unfinished, connections: int, streams: int) -> dict:
    port, before, cpu = envoy.ports()[listener], envoy.memory_bytes(), envoy.worker_cpu_us()
    forget_peak(envoy)
    try:
        tally = asyncio.run(attack(envoy, port, PROTOCOLS[protocol], request, connections, streams))
    except TimeoutError:
        raise Fault(f"requests were not over after {END_TIMEOUT_S} s, see {envoy.log}") from None
    growth = peak_bytes(envoy) - before
    return {
        "requests": tally.requests,
        "held": tally.held,
        "answers": {str(status): count for status, count in sorted(tally.answers.items(), key=str)},
        "bytes": round(tally.bytes / tally.requests),
        "growth_bytes": growth,
        "held_for_a_byte": round(growth / tally.bytes, 1),
        "cpu_us": round((envoy.worker_cpu_us() - cpu) / tally.requests, 1),
    }


def measure(world: World, states: list[State]) -> list[dict]:
    entries = []
    for protocol in PROTOCOLS:
        for state in states:
            print(f"==> {state.name} over {protocol}", flush=True)
            with world.envoy(state.sections) as envoy:
                bare = measured(envoy, BARE, protocol, state.request, *state.size(protocol))["cpu_us"]
            with world.envoy(state.sections) as envoy:
                figures = measured(envoy, LISTENER, protocol, state.request, *state.size(protocol))
                if "in-VM backtrace" in envoy.log.read_text():
                    raise Fault(f"{state.name} over {protocol}: the module trapped, see {envoy.log}")
            figures |= {"bare_us": bare, "of_bare": round(figures["cpu_us"] / bare, 1)}
            entries.append({"name": f"{state.name}_{protocol}"} | figures)
    return entries


def faults(entries: list[dict]) -> list[str]:
    """The entries that exceed a limit."""
    return [
        f"{entry['name']}: {what}"
        for entry in entries
        for what, is_beyond in (
            (f"{entry['growth_bytes'] / 1e6:.0f} MB held", entry["growth_bytes"] > MAX_GROWTH_BYTES),
            (f"{entry['of_bare']} times the CPU of the same bytes without the filter", entry["of_bare"] > MAX_OF_BARE),
        )
        if is_beyond
    ]


def printed(entries: list[dict]) -> str:
    columns = ("requests", "held", "bytes", "growth_mb", "held_for_a_byte", "cpu_us", "bare_us", "of_bare")
    lines = [f"{'name':28}" + "".join(f"{column:>16}" for column in columns) + "  answers"]
    for entry in entries:
        cells = entry | {"growth_mb": round(entry["growth_bytes"] / 1e6)}
        answers = ", ".join(f"{count} of {status}" for status, count in entry["answers"].items())
        lines.append(
            f"{entry['name']:28}" + "".join(f"{cells[column]:>16}" for column in columns) + f"  {answers or '-'}"
        )
    return "\n".join(lines)
