"""Pages and a plot from files of `posekd bench --json`: what was measured, where, and against what.

Usage: python -m posekd.benchmarks.report RESULTS.jsonl --page docs/benchmarks.md --plot docs/images/benchmarks.png
           [--gpu runs/gpu] [--gpu-page docs/gpu.md]

`--gpu` is the folder that `benchmarks/gpu_run.py` wrote (`kernels.jsonl`, `train.jsonl`, `gpu_run.json`; of what is
missing it is said so): the page then has the CPU and the GPU side by side.
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

GPU_HEAD = """# On a machine with a GPU

Written by `benchmarks/report.py`; do not edit. Until these programs have run, GPU figures are *not yet measured*.

```bash
python benchmarks/gpu_run.py --minutes 30 --out runs/gpu       # builds if need be, most valuable first
python benchmarks/experiments/gpu_evidence.py --minutes 60     # what distillation brings; resumable
python -m benchmarks.report benchmarks/results/cpu_xeon_2_threads_warm.jsonl --page docs/benchmarks.md \\
    --plot docs/images/benchmarks.png --gpu runs/gpu --gpu-page docs/gpu.md
```

`gpu_run.py --list` says what it runs: the captured step against the eager one, every benchmark (device time with cold
caches from the profiler, launches, wall time per call), `posekd bench calls`, four trainings, `pytest -m cuda`, and a
selection under `compute-sanitizer`. By hand, for longer than its limits allow:

```bash
POSEKD_CUDA=ON pip install '.[test]' -c constraints.txt        # CUDAARCHS=90-real builds for one architecture only
pytest -n0 -m cuda                                             # every op's tests on the device
PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python -m pytest -n0 -q -m cuda -k "sizes or layouts"
compute-sanitizer --tool racecheck python -m pytest -n0 -q -m cuda -k "sizes"
compute-sanitizer --tool initcheck python -m pytest -n0 -q -m cuda -k "sizes"
compute-sanitizer --tool synccheck python -m pytest -n0 -q -m cuda -k "sizes"
posekd bench --device cuda --json kernels.jsonl                # and again with --dtype bfloat16
```

Commit the folder's JSON under `benchmarks/results/`, with the device's name in the folder's name.

The kernels were rewritten from prototypes that were measured on an H200; [the table](kernels/designs.md) has each
prototype's figure, the target, and what only a GPU can show.
"""

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


def page(records: Sequence[dict[str, Any]], source: str, plot: str, gpu: Sequence[dict[str, Any]] = ()) -> str:
    """The records as Markdown, one table per benchmark; those of a GPU stand beside the same cases."""
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
            gpu=_gpu_words(records, gpu),
            plot=plot,
        )
    ]
    for record in records:
        own = record["environment"]["caches"]
        title = record["benchmark"] if own == caches else f"{record['benchmark']}, {own} caches"
        beside = _cases(gpu, record["benchmark"])
        more = " on the GPU: device, wall | of the copy | against |" if beside else ""
        rows = [
            f"## {title}",
            "",
            f"| case | posekd | of the copy | against |{more}",
            "|---|---|---|---|" + "---|" * more.count("|"),
        ]
        for row in record["results"]:
            cells = f"| {row['case']} | {_cells(row)} |"
            if beside:
                own = beside.pop(_key(row["case"]), None)
                cells += f" {_cells(own)} |" if own else " | | |"
            rows.append(cells)
        rows += [f"| {row['case']} | | | | {_cells(row)} |" for row in beside.values()]
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _gpu_words(records: Sequence[dict[str, Any]], gpu: Sequence[dict[str, Any]]) -> str:
    """What the page's head says of a GPU."""
    if gpu:
        facts = gpu[0]["environment"]
        speed = gpu[0]["copy_bytes_per_s"] / 1e9
        return (
            f" Beside it: {facts['device']}, torch {facts['torch']}, driver {facts.get('driver')}, copy {speed:.0f} "
            "GB/s. The device time is the sum of a call's kernels with cold caches, the wall time that of calls that "
            "are enqueued from Python again and again."
        )
    return NO_GPU if all(r["environment"].get("device_type", "cpu") == "cpu" for r in records) else ""


def _key(case: str) -> str:
    """A case's name without what only says how it was timed."""
    return case.removesuffix(", warm")


def _cases(records: Sequence[dict[str, Any]], benchmark: str) -> dict[str, dict[str, Any]]:
    return {
        _key(row["case"]): row for record in records if record["benchmark"] == benchmark for row in record["results"]
    }


def _cells(row: dict[str, Any]) -> str:
    """Time (on a GPU device and wall time), share of the copy, baselines."""
    time = _time(row["ms"])
    if "wall_ms" in row:
        time += f" ({row['launches']} launches), {_time(row['wall_ms'])}"
    share = f"{row['share_of_copy']:.0%}" if row.get("bytes", 0) >= SMALL_BYTES else ""
    others = "; ".join(f"{label} {_time(other['ms'])}, {_ratio(other)}" for label, other in row["baselines"].items())
    return f"{time} | {share} | {others}"


def gpu_page(folder: Path | None) -> str:
    """What to run on a GPU, and what came out of it in `folder`."""
    parts = [GPU_HEAD]
    if folder is None or not (folder / "gpu_run.json").is_file():
        return GPU_HEAD + "\n## Results\n\nNot yet measured.\n"
    pieces = json.loads((folder / "gpu_run.json").read_text(encoding="utf-8"))
    rows = ["## What ran", "", "| piece | seconds | ended |", "|---|---|---|"]
    parts.append("\n".join(rows + [f"| {name} | {row['seconds']} | {row['ended']} |" for name, row in pieces.items()]))
    for name, title in (("kernels", "Kernels"), ("kernels_bf16", "Kernels, bfloat16")):
        parts.append(f"## {title}\n\n{_kernels(folder / f'{name}.jsonl')}")
    parts.append(f"## Training\n\n{_training(folder / 'train.jsonl')}")
    return "\n\n".join(parts) + "\n"


def _kernels(path: Path) -> str:
    if not path.is_file():
        return "Not yet measured."
    rows = ["| op | case | device, wall | of the copy | against |", "|---|---|---|---|---|"]
    rows += [
        f"| {record['benchmark']} | {row['case']} | {_cells(row)} |"
        for record in read(path)
        for row in record["results"]
    ]
    return "\n".join(rows)


def _training(path: Path) -> str:
    if not path.is_file():
        return "Not yet measured."
    rows = ["| recipe | batch | graph | loop | samples/s | waits for data |", "|---|---|---|---|---|---|"]
    for record in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        recipe = record["recipe"]
        what = f"| {recipe['student']['name']} | {recipe['loader']['batch_size']} | {recipe['train']['graph']}"
        for loop, row in record["loops"].items():
            low, high = row["samples_per_s_extremes"]
            rate = f"{row['samples_per_s']:.0f} ({low:.0f} to {high:.0f})"
            rows.append(f"{what} | {loop} | {rate} | {row['data_wait']:.0%} |")
    return "\n".join(rows)


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
    parser.add_argument("--gpu", type=Path, help="folder that benchmarks/gpu_run.py wrote")
    parser.add_argument("--gpu-page", type=Path, help="Markdown file to write about the GPU")
    parser.add_argument("--plot", type=Path, required=True, help="plot to write (PNG)")
    options = parser.parse_args(argv)
    records = read(options.results)
    plot(records, options.plot)
    beside = options.gpu / "kernels.jsonl" if options.gpu else None
    gpu = read(beside) if beside is not None and beside.is_file() else []
    text = page(records, options.results.name, os.path.basename(options.plot), gpu)
    options.page.write_text(text, encoding="utf-8")
    if options.gpu_page:
        options.gpu_page.write_text(gpu_page(options.gpu), encoding="utf-8")


if __name__ == "__main__":
    main()
