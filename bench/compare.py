"""`make bench AGAINST=OLD.wasm`: compares the cost of the module with that of an earlier build.

Each row gets a second listener in the same Envoy, with the same configuration and the earlier module. The two take
turns of 50 ms, and each round gives one ratio. The speed of a shared machine changes all the time. Two rows that
alternate so quickly get nearly the same speed, so the ratio varies far less than either figure. The ratio still
differs by some percent between starts of Envoy, because the place where V8 puts the code of a module matters. So
Envoy is started several times, and every second time the new module is loaded first.
"""

import json
import math
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from envoy_config import Listener, is_module, with_module
from load import Fault
from measure import Bench
from rows import Row

SUFFIX = "_before"
# wrk needs more time to read the 100,000 requests of these rows than a round lasts.
TOO_LARGE = "_100k"
SLICE_S = 0.05
# The worker is idle if it used less than this share of a short time. It never uses none: each VM has a tick.
IDLE_STEP_S = 0.002
IDLE_SHARE = 0.2
# The confidence interval of a median is exact for any distribution: it follows from the binomial distribution.
CONFIDENCE = 0.95


def pairs(rows: Iterable[Row], earlier: Path) -> list[tuple[Row, Row]]:
    """Pairs of rows: the row with the module at `earlier`, and the row with the new module."""
    listeners: dict[Listener, Listener] = {}

    def before(listener: Listener) -> Listener:
        if listener not in listeners:
            filters = [with_module(each, f"{listener.name}{SUFFIX}", earlier) for each in listener.filters()]
            listeners[listener] = replace(listener, name=f"{listener.name}{SUFFIX}", filters=lambda: filters)
        return listeners[listener]

    return [
        (replace(row, name=f"{row.name}{SUFFIX}", listener=before(row.listener), native=None), row)
        for row in rows
        if row.beside is None and not row.name.endswith(TOO_LARGE) and any(map(is_module, row.listener.filters()))
    ]


@dataclass(frozen=True)
class Costs:
    """The worker's CPU time for a request of one row in one round, in microseconds."""

    before_us: float
    after_us: float


def measure(bench: Bench, compared: list[tuple[Row, Row]], rounds: int, seconds: int) -> dict[str, list[Costs]]:
    """The costs of each row in each round. In every other round the new module is first: the order favors neither."""
    taken: dict[str, list[Costs]] = {}
    errors_before = bench.envoy.server_errors()
    for number in range(rounds):
        print(f"==> round {number + 1} of {rounds}", flush=True)
        for before, after in compared:
            costs = alternate(bench, (after, before) if number % 2 else (before, after), seconds)
            taken.setdefault(after.name, []).append(Costs(costs[before.name], costs[after.name]))
    # wrk can't tell a refusal from a failure.
    if bench.envoy.server_errors() != errors_before:
        raise Fault("some requests were answered with 500 or above")
    return taken


def alternate(bench: Bench, in_turn: tuple[Row, Row], seconds: int) -> dict[str, float]:
    """The worker's CPU time for a request of each row, in microseconds. Both loads run for `seconds`, in short slices:
    while one sends, the other is stopped."""
    loads = {row: bench.start(row, 2 * seconds) for row in in_turn}
    try:
        end = time.monotonic() + 2 * seconds
        for load in loads.values():
            load.pause()
        cpu = dict.fromkeys(in_turn, 0.0)
        while time.monotonic() < end:
            for row, load in loads.items():
                begin = bench.envoy.worker_cpu_us()
                load.resume()
                time.sleep(SLICE_S)
                load.pause()
                await_idle(bench)
                cpu[row] += bench.envoy.worker_cpu_us() - begin
        # Each load sees only when it runs again that its time is over, and sends a last few requests until then.
        for row, load in loads.items():
            begin = bench.envoy.worker_cpu_us()
            load.resume()
            finished = load.result().require(row.name, row.status)
            await_idle(bench)
            cpu[row] = (cpu[row] + bench.envoy.worker_cpu_us() - begin) / finished.requests
    finally:
        for load in loads.values():
            load.stop()
    return {row.name: figure for row, figure in cpu.items()}


def await_idle(bench: Bench) -> None:
    """Waits until the worker has answered what the stopped load had sent. Its time would count for the other row."""
    busy = math.inf
    while busy > IDLE_SHARE * IDLE_STEP_S * 1e6:
        begin = bench.envoy.worker_cpu_us()
        time.sleep(IDLE_STEP_S)
        busy = bench.envoy.worker_cpu_us() - begin


def summarize(compared: list[tuple[Row, Row]], starts: list[dict[str, list[Costs]]]) -> list[dict]:
    """One ratio for each start of Envoy, the median of its rounds: rounds of one start are alike."""
    return [_figures(after.name, [taken[after.name] for taken in starts]) for _, after in compared]


def _figures(name: str, starts: list[list[Costs]]) -> dict:
    ratios = sorted(statistics.median(costs.after_us / costs.before_us for costs in rounds) for rounds in starts)
    every = [costs for rounds in starts for costs in rounds]
    low, high = interval(ratios)
    return {
        "name": name,
        "before_us": round(statistics.median(costs.before_us for costs in every), 2),
        "after_us": round(statistics.median(costs.after_us for costs in every), 2),
        "ratio": round(statistics.median(ratios), 4),
        "low": low and round(low, 4),
        "high": high and round(high, 4),
    }


def interval(ordered: list[float]) -> tuple[float, float] | tuple[None, None]:
    """The narrowest symmetric pair of order statistics that contains the median with `CONFIDENCE`. There is none for
    fewer than six values."""
    count, outside, rank = len(ordered), 0.0, 0
    while 2 * (outside := outside + math.comb(count, rank) / 2**count) <= 1 - CONFIDENCE:
        rank += 1
    return (ordered[rank - 1], ordered[count - rank]) if rank else (None, None)


def table(summary: list[dict]) -> str:
    head = f"{'name':24}{'before us':>11}{'after us':>11}{'ratio':>9}   95 % of the median"
    lines = [
        f"{each['name']:24}{each['before_us']:>11}{each['after_us']:>11}{each['ratio']:>9.3f}"
        + (f"   {each['low']:.3f} to {each['high']:.3f}" if each["low"] else "   -")
        for each in summary
    ]
    return "\n".join([head, *lines])


def write(summary: list[dict], path: Path) -> None:
    path.write_text(json.dumps(summary, indent=2) + "\n")
