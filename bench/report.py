"""Turns the samples into one list of figures, and writes it as JSON and as a table."""

import json
import statistics
from pathlib import Path

from measure import Sample, Samples
from rows import Row

COLUMNS = ("cpu_us", "mad", "rps", "p50_us", "p99_us", "ratio", "native")


def _figures(samples: list[Sample]) -> dict:
    cpu = [sample.cpu_us for sample in samples if sample.cpu_us is not None]
    median = statistics.median(cpu) if cpu else None
    loads = [sample.load for sample in samples]
    return {
        "cpu_us": median and round(median, 2),
        "mad": median and round(statistics.median(abs(value - median) for value in cpu), 2),
        "rps": round(statistics.median(load.rps for load in loads)),
        "p50_us": round(statistics.median(load.p50_us for load in loads)),
        "p99_us": round(statistics.median(load.p99_us for load in loads)),
    }


def _entry(name: str, **figures) -> dict:
    """All entries have the same members. Null: not measured."""
    return {"name": name} | dict.fromkeys((*COLUMNS, "value", "unit")) | figures


def summarize(rows: list[Row], samples: Samples) -> list[dict]:
    """Medians of the rounds. `mad` is the median absolute deviation of `cpu_us`. `ratio` is the twin's CPU time divided
    by ours."""
    natives = {row.name: row.native for row in rows}
    figures = {name: _figures(taken) for name, taken in samples.items()}
    summary = []
    for name, own in figures.items():
        native = natives.get(name)
        ratio = round(figures[native]["cpu_us"] / own["cpu_us"], 3) if native else None
        summary.append(_entry(name, **own, native=native, ratio=ratio))
    return summary


def unpaired(name: str, sample: Sample) -> dict:
    """The entry of a load without a twin that ran once."""
    return _entry(name, **_figures([sample]))


def fact(name: str, value: float, unit: str) -> dict:
    """The entry of a figure that does not come from a load."""
    return _entry(name, value=value, unit=unit)


def write(summary: list[dict], path: Path) -> None:
    path.write_text(json.dumps(summary, indent=2) + "\n")


def table(summary: list[dict]) -> str:
    loads = [entry for entry in summary if entry["value"] is None]
    lines = [f"{'name':30}" + "".join(f"{column:>10}" for column in COLUMNS[:-1]) + "  native"] if loads else []
    for entry in loads:
        cells = ["-" if entry[column] is None else entry[column] for column in COLUMNS]
        lines.append(f"{entry['name']:30}" + "".join(f"{cell:>10}" for cell in cells[:-1]) + f"  {cells[-1]}")
    facts = [
        f"{entry['name']:40}{entry['value']:>14,} {entry['unit']}" for entry in summary if entry["value"] is not None
    ]
    return "\n".join([*lines, "", *facts])
