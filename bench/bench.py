"""`make bench`: measures the cost of the gateway in comparison with Envoy's own filters.

All rows are listeners of one Envoy, which has one worker on one core. wrk runs on another core. The figure of a row
is the worker's CPU time for each request, because it varies less than the requests per second. The table shows both.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "demo"))

import compare
import facts
import report
from load import Fault
from measure import Bench, Samples, median_rps
from rows import Parties, Row, rows
from start import begin, positive
from upstream import Upstream

OUT = ROOT / "target" / "bench"
RESULT = ROOT / "target" / "bench.json"
COMPARISON = ROOT / "target" / "bench-against.json"
# This row and its twin are also measured at half load.
HALF_LOAD_OF = "api_key"
HALF_LOAD = f"{HALF_LOAD_OF}_half_load"


def arguments(names: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=".tools/bin/python bench/bench.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            f"{__doc__.strip()}\n\n"
            "Each row is measured together with its twin. For a first look, use fewer or shorter rounds."
        ),
        epilog="names for --only:\n" + "\n".join(f"  {name}" for name in names),
    )
    parser.add_argument("--rounds", type=positive, default=5, help="number of measurements of each row (default: 5)")
    parser.add_argument("--against", type=module_file, metavar="OLD.wasm", help="compare with this earlier module")
    parser.add_argument("--seconds", type=positive, default=2, help="length of a measurement (default: 2)")
    parser.add_argument("--starts", type=positive, default=6, help="starts of Envoy for a comparison (default: 6)")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=names, help="measure only these rows and their twins"
    )
    return parser.parse_args()


def module_file(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"no such file: {text}")
    return path


def with_twins(wanted: set[str], every: list[Row]) -> list[Row]:
    base = wanted | ({HALF_LOAD_OF} if HALF_LOAD in wanted else set())
    chosen = [row for row in every if row.name in base or (row.beside and row.beside.name in base)]
    names = {row.name for row in chosen} | {row.native for row in chosen}
    return [row for row in every if row.name in names]


def prepare(bench: Bench) -> None:
    print("==> checking that each row admits, refuses and forwards the right requests", flush=True)
    for row in bench.rows:
        bench.check(row)
    print("==> warming up", flush=True)
    for row in bench.rows:
        bench.warm_up(row)


def measure(bench: Bench, count: int, seconds: int, half_load: bool) -> list[dict]:
    prepare(bench)
    samples = bench.rounds(bench.rows, count, seconds)
    return report.summarize(bench.rows, samples) + (at_half_load(bench, samples, count, seconds) if half_load else [])


def at_half_load(bench: Bench, samples: Samples, count: int, seconds: int) -> list[dict]:
    print(f"==> {HALF_LOAD_OF} and its twin at half the capacity of {HALF_LOAD_OF}", flush=True)
    capacity = median_rps(samples[HALF_LOAD_OF])
    (row,) = (row for row in bench.rows if row.name == HALF_LOAD_OF)
    halved = [bench.at_half_load(each, capacity) for each in bench.rows if each.name in (row.native, row.name)]
    return report.summarize(halved, bench.rounds(halved, count, seconds))


def run(options: argparse.Namespace, every: list[Row], parties: Parties, upstream: Upstream) -> list[dict]:
    wanted = set(options.only or names(every))
    summary = []
    if chosen := with_twins(wanted, every):
        print("==> creating credentials and starting Envoy", flush=True)
        with Bench(chosen, parties, upstream, OUT) as bench:
            summary += measure(bench, options.rounds, options.seconds, HALF_LOAD in wanted)
    for fact in facts.FACTS:
        if wanted & set(fact.names):
            print(f"==> {fact.title}", flush=True)
            summary += fact.measure(facts.Surroundings(parties, upstream, OUT, options.seconds))
    return summary


def run_against(options: argparse.Namespace, every: list[Row], parties: Parties, upstream: Upstream) -> list[dict]:
    wanted = set(options.only or names(every))
    compared = compare.pairs((row for row in every if row.name in wanted), options.against)
    starts: list[dict[str, list[compare.Costs]]] = []
    summary: list[dict] = []
    for start in range(options.starts):
        print(f"==> start {start + 1} of {options.starts}: creating credentials and starting Envoy", flush=True)
        served = [row for pair in compared for row in (pair[::-1] if start % 2 else pair)]
        folder = OUT / f"start-{start}"
        folder.mkdir(mode=0o700)
        with Bench(served, parties, upstream, folder) as bench:
            prepare(bench)
            starts.append(compare.measure(bench, compared, options.rounds, options.seconds))
        summary = compare.summarize(compared, starts)
        print(compare.table(summary), flush=True)
    return summary


def names(every: list[Row]) -> list[str]:
    besides = [row.beside.name for row in every if row.beside]
    return [row.name for row in every] + besides + [HALF_LOAD] + [name for fact in facts.FACTS for name in fact.names]


def main() -> None:
    upstream = Upstream()
    parties = Parties(upstream.jwks_uri)
    upstream.jwks = parties.idp.jwks()
    every = rows(parties)
    options = arguments(names(every))
    begin("make bench", OUT)
    try:
        summary = (run_against if options.against else run)(options, every, parties, upstream)
    except Fault as fault:
        sys.exit(f"make bench: {fault}")
    finally:
        upstream.stop()
    printed, result = (compare, COMPARISON) if options.against else (report, RESULT)
    printed.write(summary, result)
    print(f"\n{printed.table(summary)}\n\nwritten to {result.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
