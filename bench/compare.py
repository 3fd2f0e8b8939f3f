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
from dataclasses import replace
from pathlib import Path

from envoy_config import Listener, is_module, with_module
from measure import Bench
from rows import Row

SUFFIX = "_before"
# wrk needs more time to read the 100,000 requests of these rows than a round lasts.
TOO_LARGE = "_100k"
SLICE_S = 0.05
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


Taken = dict[str, list[dict[str, float]]]


def measure(bench: Bench, compared: list[tuple[Row, Row]], rounds: int, seconds: int, taken: Taken) -> None:
    """Measures in rounds. In every second round the new module is first, so that the order favors neither."""
    for number in range(rounds):
        print(f"==> round {number + 1} of {rounds}", flush=True)
        for before, after in compared:
            in_turn = (after, before) if number % 2 else (before, after)
            taken.setdefault(after.name, []).append(alternate(bench, in_turn, seconds))


def alternate(bench: Bench, in_turn: tuple[Row, Row], seconds: int) -> dict[str, float]:
    """The worker's CPU time for a request of each row, in microseconds.

    Both loads run for `seconds`, in short slices. While one sends, the other is stopped.
    """
    loads = {row: bench.start(row, 2 * seconds) for row in in_turn}
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
            cpu[row] += bench.envoy.worker_cpu_us() - begin
    # A load notices only when it runs again that its time is over, and sends a few requests until then.
    for row, load in loads.items():
        begin = bench.envoy.worker_cpu_us()
        load.resume()
        finished = load.result().require(row.name, row.status)
        cpu[row] = (cpu[row] + bench.envoy.worker_cpu_us() - begin) / finished.requests
    return {row.name: figure for row, figure in cpu.items()}


def summarize(compared: list[tuple[Row, Row]], taken: Taken) -> list[dict]:
    return [_figures(before.name, after.name, taken[after.name]) for before, after in compared]


def _figures(before: str, after: str, taken: list[dict[str, float]]) -> dict:
    ratios = sorted(each[after] / each[before] for each in taken)
    low, high = interval(ratios)
    return {
        "name": after,
        "before_us": round(statistics.median(each[before] for each in taken), 2),
        "after_us": round(statistics.median(each[after] for each in taken), 2),
        "ratio": round(statistics.median(ratios), 4),
        "low": round(low, 4),
        "high": round(high, 4),
    }


def interval(ordered: list[float]) -> tuple[float, float]:
    """The narrowest symmetric pair of order statistics that contains the median with `CONFIDENCE`."""
    count, outside, rank = len(ordered), 0.0, 0
    while rank < count // 2:
        outside += math.comb(count, rank) / 2**count
        if 2 * outside > 1 - CONFIDENCE:
            break
        rank += 1
    rank = max(rank - 1, 0)
    return ordered[rank], ordered[count - 1 - rank]


def table(summary: list[dict]) -> str:
    head = f"{'name':24}{'before us':>11}{'after us':>11}{'ratio':>9}   95 % of the median"
    lines = [
        f"{each['name']:24}{each['before_us']:>11}{each['after_us']:>11}{each['ratio']:>9.3f}"
        f"   {each['low']:.3f} to {each['high']:.3f}"
        for each in summary
    ]
    return "\n".join([head, *lines])


def write(summary: list[dict], path: Path) -> None:
    path.write_text(json.dumps(summary, indent=2) + "\n")
