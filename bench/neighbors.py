"""Effects of an attack on another organization: refusals, and the 99th percentile of its response times.

The neighbor's load is far below the capacity of the worker. It is measured with the attack and without it in turn. The
attacker sends long heads that wait, at a steady rate, and keeps as many requests waiting as the gateway allows.
"""

import asyncio
import os
import statistics
import threading
from dataclasses import replace
from itertools import cycle
from types import TracebackType

from attack import Http2, Tally, Unfinished, padded
from load import WRK_CORE, Fault, Requests, Wrk
from wire import Request

ROUNDS, SECONDS = 5, 6
# The neighbor: 128 connections that send 16 requests a second each.
CONNECTIONS, PAUSE_MS = 128, 64
# The attacker: connections, requests that wait on each, and heads that it sends in a second.
ATTACKING, STREAMS, HEADS_PER_SECOND = 32, 100, 200
# Maximum effect of an attack on the neighbor's 99th percentile.
MAX_OF_QUIET = 2


class Attacker:
    """Sends requests that wait, of each kind in turn, until the end of a `with` block."""

    def __init__(self, port: int, requests: list[Request]) -> None:
        self.port = port
        self.requests = [Unfinished(padded(replace(request, body="")), 100) for request in requests]
        self.tally = Tally()
        self.is_over = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Attacker":
        self.thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.is_over.set()
        self.thread.join()

    def _run(self) -> None:
        # This applies to this thread only. Envoy has its own core.
        os.sched_setaffinity(0, {WRK_CORE})
        asyncio.run(self._attack())

    async def _attack(self) -> None:
        clients: list[Http2 | None] = [None] * ATTACKING
        for index, request in zip(cycle(range(ATTACKING)), cycle(self.requests), strict=False):
            if self.is_over.is_set():
                break
            client = clients[index]
            if client is None or client.reading.done() or len(client.open) >= STREAMS:
                if client:
                    await client.close()
                client = clients[index] = await Http2(self.port, self.tally).connect()
            client.begin(request, 1)
            await asyncio.sleep(1 / HEADS_PER_SECOND)
        for client in filter(None, clients):
            await client.close()


def measure(port: int, neighbor: Requests, attacks: list[Request]) -> dict:
    """The neighbor's figures without the attack (`quiet`) and with it."""

    def load() -> tuple[float, int]:
        result = Wrk(port, neighbor, CONNECTIONS, SECONDS, pause_ms=PAUSE_MS).result()
        if not result.requests:
            raise Fault("the neighbor got no answer")
        return result.p99_us, result.refused + result.broken

    quiet, attacked, refused, tally = [], [], 0, Tally()
    for number in range(ROUNDS):
        print(f"==> the neighbor without an attack and with one, {number + 1} of {ROUNDS}", flush=True)
        quiet.append(load()[0])
        with Attacker(port, attacks) as attacker:
            p99, failed = load()
        attacked.append(p99)
        refused += failed
        tally.requests += attacker.tally.requests
        tally.bytes += attacker.tally.bytes
        tally.answers += attacker.tally.answers
    return {
        "quiet_p99_us": round(statistics.median(quiet)),
        "attacked_p99_us": round(statistics.median(attacked)),
        "refused": refused,
        "attack": {
            "requests": tally.requests,
            "bytes": tally.bytes,
            "answers": {str(key): n for key, n in tally.answers.items()},
        },
    }


def faults(result: dict) -> list[str]:
    """The effects of the attack on the neighbor that exceed a limit."""
    found = [f"{result['refused']} requests of the neighbor failed during an attack"] if result["refused"] else []
    if result["attacked_p99_us"] > MAX_OF_QUIET * result["quiet_p99_us"]:
        found.append(
            f"the neighbor's p99 was {result['attacked_p99_us']} µs during an attack, "
            f"and {result['quiet_p99_us']} µs without"
        )
    return found
