"""A page and a plot from a file of `posekd bench --json`: what was measured, where, and against what.

Usage: python -m posekd.benchmarks.report RESULTS.jsonl --page docs/benchmarks.md --plot docs/images/benchmarks.png
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SMALL_BYTES = 8 << 20
# Baselines that do other work than the op and stand beside it as a measure: not competitors.
YARDSTICKS = ("copy_", "max_pool2d", "HigherHRNet-W32")

NO_GPU = " GPU: not yet measured (`docs/gpu.md` has the commands)."

HEAD = """# What the kernels reach

Written by `benchmarks/report.py` from `{source}`; do not edit. {where}. Each contestant was timed once per round, in
turn; figures are medians, a ratio's quartiles are in brackets, and above 1 means that posekd is faster. `{caches}`
caches (see `benchmarks/harness.py`). The copy ran at {copy:.1f} GB/s, read plus written; its share is given where at
least {small} MB must move.{gpu}

![ratios](images/{plot})
"""


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a `--json` file, the last of each benchmark.

    Raises:
        ValueError: a line that is no such record.
    """
    records: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
            records[record["benchmark"]] = record
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}, line {number}: not a record of `posekd bench --json`") from None
    if not records:
        raise ValueError(f"{path} holds no record")
    return [records[name] for name in sorted(records)]


def page(records: Sequence[dict[str, Any]], source: str, plot: str) -> str:
    """The records as Markdown, one table per benchmark."""
    facts = records[0]["environment"]
    where = f"{facts['device']}, {facts['threads']} threads, torch {facts['torch']}, posekd {facts['posekd']}"
    if facts.get("commit"):
        where += f" at {facts['commit'][:10]}"
    if facts.get("driver"):
        where += f", driver {facts['driver']}"
    caches = Counter(record["environment"]["caches"] for record in records).most_common(1)[0][0]
    parts = [
        HEAD.format(
            source=source,
            where=where,
            caches=caches,
            copy=records[0]["copy_bytes_per_s"] / 1e9,
            small=SMALL_BYTES >> 20,
            gpu=NO_GPU if all(r["environment"].get("device_type", "cpu") == "cpu" for r in records) else "",
            plot=plot,
        )
    ]
    for record in records:
        own = record["environment"]["caches"]
        title = record["benchmark"] if own == caches else f"{record['benchmark']}, {own} caches"
        rows = [f"## {title}", "", "| case | posekd | of the copy | against |", "|---|---|---|---|"]
        for row in record["results"]:
            share = f"{row['share_of_copy']:.0%}" if row.get("bytes", 0) >= SMALL_BYTES else ""
            others = "; ".join(
                f"{label} {_time(other['ms'])}, {_ratio(other)}" for label, other in row["baselines"].items()
            )
            rows.append(f"| {row['case']} | {_time(row['ms'])} | {share} | {others} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def ratios(records: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """`op: baseline` -> the ratios of its cases."""
    found: dict[str, list[float]] = {}
    for record in records:
        for row in record["results"]:
            for label, other in row["baselines"].items():
                found.setdefault(f"{record['benchmark']}: {label}", []).append(other["ratio"])
    return found


def plot(records: Sequence[dict[str, Any]], path: Path) -> None:
    """One line per op and baseline, logarithmic: a dot per case, and a stroke from the least to the largest ratio."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = list(ratios(records).items())[::-1]
    figure, axes = pyplot.subplots(figsize=(10, 1.2 + 0.23 * len(rows)), layout="constrained")
    for y, (name, values) in enumerate(rows):
        yardstick = name.split(": ", 1)[1].startswith(YARDSTICKS)
        colours = ["#777777" if yardstick else "#2a7f62" if value >= 1 else "#b5523b" for value in values]
        axes.hlines(y, min(values), max(values), color="#bbbbbb", linewidth=1.5, zorder=1)
        axes.scatter(values, [y] * len(values), s=22, c=colours, zorder=2, edgecolors="white", linewidths=0.4)
    axes.axvline(1, color="black", linewidth=0.8, zorder=0)
    axes.grid(axis="x", color="#eeeeee", zorder=0)
    axes.set(xscale="log", ylim=(-0.6, len(rows) - 0.4))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("times as fast as the other, one dot per case (grey: a yardstick that does other work)")
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _time(ms: float) -> str:
    return f"{ms:.2f} ms" if ms >= 1 else f"{ms * 1e3:.0f} us"


def _ratio(other: dict[str, Any]) -> str:
    low, high = other["ratio_quartiles"]
    return f"{other['ratio']:.2f}x ({low:.2f} to {high:.2f})"


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the page and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("results", type=Path, help="a file of `posekd bench --json`")
    parser.add_argument("--page", type=Path, required=True, help="Markdown file to write")
    parser.add_argument("--plot", type=Path, required=True, help="plot to write (PNG)")
    options = parser.parse_args(argv)
    records = read(options.results)
    plot(records, options.plot)
    options.page.write_text(page(records, options.results.name, os.path.basename(options.plot)), encoding="utf-8")


if __name__ == "__main__":
    main()
