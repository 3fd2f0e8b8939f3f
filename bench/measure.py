"""Checks the rows and measures them in rounds. A round measures each row once."""

import json
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

from envoy_config import PROBE, bootstrap, listener_config, rate_limit_cluster
from envoy_process import Envoy
from load import WRK_CORE, Fault, Load, Requests, Wrk
from rate_limit import RateLimitService
from rows import ORG, Check, Parties, Row
from upstream import Upstream
from wire import send

# A filter answers 503 until it has its policy and its key sets.
READY_TIMEOUT_S = 60
WARM_UP_S = 2
# With this many, the pauses at half load last several milliseconds. wrk counts pauses in whole milliseconds.
PAUSED_CONNECTIONS = 128


@dataclass(frozen=True)
class Sample:
    """One row in one round. `cpu_us` is the worker's CPU time for each request. None: it served another row too."""

    load: Load
    cpu_us: float | None


Samples = dict[str, list[Sample]]


class Bench:
    """One Envoy with a listener for each filter that the rows need."""

    def __init__(self, rows: list[Row], parties: Parties, upstream: Upstream, folder: Path) -> None:
        self.rows = rows
        served = [*rows, *(row.beside for row in rows if row.beside)]
        config = bootstrap(upstream.port)
        self.rate_limit_service = RateLimitService(folder, WRK_CORE)
        config["static_resources"]["clusters"].append(rate_limit_cluster(self.rate_limit_service.port))
        listeners = dict.fromkeys(row.listener for row in served)
        config["static_resources"]["listeners"] = [listener_config(listener, ORG) for listener in listeners]
        # Signing takes long, so it is done before Envoy starts. Otherwise tokens, which last an hour, could expire.
        self.requests = {row.name: Requests(row.requests(), folder) for row in served}
        try:
            self.envoy = Envoy("bench", config, folder, parties.environment)
        except BaseException:
            self.rate_limit_service.stop()
            raise
        self.ports = self.envoy.ports()

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *_) -> None:
        self.envoy.stop()
        self.rate_limit_service.stop()

    def port(self, row: Row) -> int:
        return self.ports[row.listener.name]

    def check(self, row: Row) -> None:
        """Checks that the row admits, refuses and forwards the right requests. Otherwise its figure has no meaning."""
        first = row.requests()[0]
        for check in (Check(first, row.status), *row.checks()):
            status = self._settled(self.port(row), check)
            if status != check.status:
                raise Fault(f"{row.name}: {check.request.path[:80]} was answered with {status}, not {check.status}")
        if row.forwards:
            _, body = send(self.port(row), first.at(f"{first.path}/{PROBE}"))
            arrived = json.loads(body)
            for name, value in row.forwards.items():
                if arrived.get(name) != value:
                    raise Fault(f"{row.name}: the upstream did not get {value} in {name}")
        if row.beside:
            self.check(row.beside)

    def _settled(self, port: int, check: Check) -> int:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while (status := send(port, check.request)[0]) == 503 and time.monotonic() < deadline:
            time.sleep(0.1)
        return status

    def start(self, row: Row, seconds: int, skip: int = 0) -> Wrk:
        return Wrk(self.port(row), self.requests[row.name], row.connections, seconds, skip=skip, pause_ms=row.pause_ms)

    def warm_up(self, row: Row) -> None:
        """Sends all requests of the row at least once, so that V8 compiles hot code again and caches are full."""
        sent = 0
        while sent < self.requests[row.name].count:
            sent += self.start(row, WARM_UP_S, sent).result().require(row.name, row.status).requests

    def measure(self, row: Row, seconds: int) -> dict[str, Sample]:
        cpu_before = self.envoy.worker_cpu_us()
        running = {row: self.start(row, seconds)}
        if row.beside:
            running[row.beside] = self.start(row.beside, seconds)
        loads = {each.name: wrk.result().require(each.name, each.status) for each, wrk in running.items()}
        cpu = self.envoy.worker_cpu_us() - cpu_before
        return {name: Sample(load, None if row.beside else cpu / load.requests) for name, load in loads.items()}

    def rounds(self, rows: list[Row], count: int, seconds: int) -> Samples:
        """Every second round has the reverse order, so that a machine that becomes slower favors no row."""
        samples: Samples = {}
        errors_before = self.envoy.server_errors()
        for number in range(count):
            print(f"==> round {number + 1} of {count}", flush=True)
            for row in rows[:: -1 if number % 2 else 1]:
                for name, sample in self.measure(row, seconds).items():
                    samples.setdefault(name, []).append(sample)
        # wrk cannot tell a refusal from a failure.
        if self.envoy.server_errors() != errors_before:
            raise Fault("some requests were answered with 500 or above")
        return samples

    def at_half_load(self, row: Row, capacity_rps: float) -> Row:
        """The row with half the load that the worker can handle.

        Each of many connections pauses for a random time after each answer. So requests arrive almost as from many
        independent clients.
        """
        name = f"{row.name}_half_load"
        self.requests[name] = self.requests[row.name]
        pause = PAUSED_CONNECTIONS / (capacity_rps / 2) * 1000
        native = row.native and f"{row.native}_half_load"
        return replace(row, name=name, native=native, connections=PAUSED_CONNECTIONS, pause_ms=pause)


def median_rps(samples: list[Sample]) -> float:
    return statistics.median(sample.load.rps for sample in samples)
