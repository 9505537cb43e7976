"""Common parts of the benchmarks: interleaved rounds, medians with their spread, a table, a JSON file, a comparison.

Inputs past `SMALL_BYTES` are cold: before each sample the caches are filled with something else, as training fills them
between two calls. Smaller problems are timed in a loop, warm, and reported in microseconds.

On a GPU two things are measured apart: the device time, the sum of a call's kernels with cold caches as the profiler
has them, of which ratios and shares are made; and the wall time of a call that is enqueued again and again from Python,
which drowns the kernels of a small problem.

A benchmark is a module with `cases(options) -> Iterator[Case]` and `main(argv)`, which hands them to `run`.
Machines are shared and noisy: every contestant is timed once per round, in turn, and ratios are taken round by round.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

import posekd
from posekd.files import write_atomically
from posekd.ops import build_info

COPY_BYTES = 256 << 20
SAMPLE_MS = 5.0
DEVICE_ROUNDS = 5  # of a profiler's figures, which hardly vary
SMALL_BYTES = 8 << 20  # below it a share of bandwidth means nothing: launch latency dominates


@dataclass
class Case:
    """One row of a benchmark.

    Attributes:
        name: shape, dtype, direction.
        ours: runs the kernel once.
        baselines: label -> the same work done otherwise, as well as it can be.
        bytes: what must move, for the achieved share of the copy speed.
    """

    name: str
    ours: Callable[[], object]
    baselines: dict[str, Callable[[], object]] = field(default_factory=dict)
    bytes: int | None = None


def options_from(argv: Sequence[str] | None, description: str) -> argparse.Namespace:
    """The options of every benchmark."""
    parser = argparse.ArgumentParser(prog="posekd bench NAME ...", description=description)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--rounds", type=int, default=25, help="rounds counted after one of warm-up (default 25)")
    parser.add_argument("--warm", action="store_true", help="leave the caches as the calls before have left them")
    parser.add_argument("--no-compile", action="store_true", help="leave out the torch.compile baselines")
    parser.add_argument("--json", type=Path, help="append the results to this file (one JSON object per benchmark)")
    parser.add_argument("--compare", type=Path, help="an earlier --json file: print what became slower")
    options = parser.parse_args(argv)
    options.dtype = getattr(torch, options.dtype)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, but torch sees no CUDA device here")
    if options.compare and not options.compare.is_file():  # now, not after minutes of measuring
        parser.error(f"--compare: there is no file {options.compare}")
    return options


def _once(function: Callable[[], object], device: str) -> float:
    """Milliseconds of one call."""
    if device == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)
    begin_s = time.perf_counter()
    function()
    return (time.perf_counter() - begin_s) * 1e3


def _wall(function: Callable[[], object], device: str) -> float:
    """Milliseconds until the device has done it."""
    _wait(device)
    begin_s = time.perf_counter()
    function()
    _wait(device)
    return (time.perf_counter() - begin_s) * 1e3


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _repeats(function: Callable[[], object], device: str) -> int:
    """The number of calls per sample of at least `SAMPLE_MS`; the first call after other work is slow (cold code)."""
    function()
    return max(1, min(1000, math.ceil(SAMPLE_MS / max(_once(function, device), 1e-4))))


def _repeat(function: Callable[[], object], times: int) -> None:
    for _ in range(times):
        function()  # its result is dropped at once, as a training loop does


def measure(
    contestants: dict[str, Callable[[], object]],
    device: str,
    rounds: int,
    evict: Callable[[], object] | None = None,
    once: Callable[[Callable[[], object], str], float] = _once,
) -> dict[str, list[float]]:
    """Milliseconds per call of each contestant, one sample per round, in turn; cold after `evict`, else warm."""
    repeats = {label: 1 if evict else _repeats(function, device) for label, function in contestants.items()}
    samples: dict[str, list[float]] = {label: [] for label in contestants}
    for turn in range(rounds + 1):
        for label, function in contestants.items():
            n = repeats[label]
            if evict:
                evict()
            ms = once(partial(_repeat, function, n), device) / n
            if turn:  # the first round warms up: pages, compilation, threads
                samples[label].append(ms)
    return samples


@dataclass
class OnDevice:
    """What a GPU did for one contestant: milliseconds of kernels in each call, and how many there were."""

    ms: list[float] = field(default_factory=list)
    launches: int = 0


def kernels(function: Callable[[], object]) -> list[float]:
    """Milliseconds of each kernel, copy and fill of one call, as the profiler has them."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        function()
        torch.cuda.synchronize()
    events = profile.events() or ()
    return [e.time_range.elapsed_us() / 1e3 for e in events if e.device_type == torch.autograd.DeviceType.CUDA]


def measure_device(
    contestants: dict[str, Callable[[], object]], evict: Callable[[], object], rounds: int = DEVICE_ROUNDS
) -> dict[str, OnDevice]:
    """Device time of each contestant, one call a round, in turn, with cold caches."""
    found = {label: OnDevice() for label in contestants}
    for turn in range(rounds + 1):
        for label, function in contestants.items():
            evict()
            times = kernels(function)
            if turn:  # the first round warms up
                found[label].ms.append(sum(times))
                found[label].launches = len(times)
    return found


def usable(case: Case) -> dict[str, Callable[[], object]]:
    """Ours and the baselines that run here; of the others it is said why they do not."""
    contestants = {"posekd": case.ours}
    for label, function in case.baselines.items():
        try:
            function()
            contestants[label] = function
        except (RuntimeError, NotImplementedError, TypeError) as error:
            print(f"  {case.name}: {label} is left out: {str(error).strip().splitlines()[0][:200]}", flush=True)
    return contestants


def cache_bytes(device: str) -> int:
    """Size of the last-level cache, as far as the machine says; 64 MB where it does not."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).L2_cache_size)
    try:
        return max(os.sysconf("SC_LEVEL3_CACHE_SIZE"), 64 << 20)
    except (ValueError, OSError, AttributeError):
        return 64 << 20


def evictor(device: str) -> Callable[[], object]:
    """A function that fills the caches with something else."""
    other = torch.zeros(min(max(cache_bytes(device) * 5 // 4, 64 << 20), 1 << 30) // 4, device=device)
    return lambda: other.add_(1)


def copy_speed(device: str, evict: Callable[[], object]) -> float:
    """Bytes per second of a device-to-device (memory-to-memory) copy into a used buffer, read plus written."""
    source = torch.ones(COPY_BYTES // 4, device=device)
    target = torch.zeros_like(source)
    best = statistics.median(measure({"copy": lambda: target.copy_(source)}, device, 9, evict)["copy"])
    return 2 * COPY_BYTES / (best * 1e-3)


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return low, middle, high


def _result(
    case: Case, samples: dict[str, list[float]], copy: float, more: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """A row of the JSON: `ms` is the device time on a GPU, where `more` says a contestant's wall time and launches."""
    low, median, high = _quartiles(samples["posekd"])
    row: dict[str, Any] = {"case": case.name, "ms": median, "ms_quartiles": [low, high], "baselines": {}}
    row |= more.get("posekd", {})
    if case.bytes is not None:
        row["bytes"] = case.bytes
        row["share_of_copy"] = case.bytes / (median * 1e-3) / copy
    for label in [label for label in samples if label != "posekd"]:
        ratios = [b / a for a, b in zip(samples["posekd"], samples[label], strict=True)]
        r_low, r_median, r_high = _quartiles(ratios)
        row["baselines"][label] = {
            "ms": statistics.median(samples[label]),
            "ratio": r_median,
            "ratio_quartiles": [r_low, r_high],
            **more.get(label, {}),
        }
    return row


def _time(ms: float) -> str:
    return f"{ms:.2f} ms" if ms >= 1 else f"{ms * 1e3:.1f} us"


def _print(row: dict[str, Any]) -> None:
    low, high = row["ms_quartiles"]
    line = f"  {row['case']}\n      posekd {_time(row['ms'])} ({_time(low)} to {_time(high)}){_wall_words(row)}"
    if row.get("bytes", 0) >= SMALL_BYTES:
        line += f", {row['share_of_copy']:.0%} of the copy speed"
    for label, other in row["baselines"].items():
        low, high = other["ratio_quartiles"]
        line += f"\n      {label} {_time(other['ms'])}: {other['ratio']:.2f}x ({low:.2f} to {high:.2f})"
        line += _wall_words(other)
    print(line, flush=True)


def _wall_words(row: dict[str, Any]) -> str:
    """What a GPU's row has beside the device time."""
    return f" on the device in {row['launches']} launches, {_time(row['wall_ms'])} wall" if "wall_ms" in row else ""


def _said_by(*command: str) -> str | None:
    """The first line that a program prints, or None where it cannot."""
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return said[0] if said else None


def _commit() -> str | None:
    sources = Path(posekd.__file__).parents[1]
    return _said_by("git", "-C", str(sources), "rev-parse", "HEAD") if (sources / ".git").exists() else None


def environment(options: argparse.Namespace) -> dict[str, Any]:
    """The machine and the versions with which the figures were measured."""
    driver = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if options.device == "cpu" and cpuinfo.exists():
        models = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        device = models[0] if models else device
    return {
        "posekd": posekd.__version__,
        "commit": _commit(),
        "driver": _said_by(*driver) if options.device == "cuda" else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device,
        "device_type": options.device,
        "threads": options.threads,
        "caches": "warm" if options.warm else "cold",
        "build": build_info(),
    }


def _compare(old_file: Path, text: str, name: str, rows: Iterable[dict[str, Any]], now: dict[str, Any]) -> None:
    old: dict[str, dict[str, Any]] = {}
    before: dict[str, Any] = {}
    for record in map(json.loads, text.splitlines()):
        if record["benchmark"] == name:  # the last of them counts
            before = record["environment"]
            old |= {row["case"]: row for row in record["results"]}
    for fact in ("device", "threads", "caches", "torch"):
        if old and before.get(fact) != now[fact]:
            print(f"  {fact} differs: {before.get(fact)} in {old_file}, {now[fact]} now")
    for row in rows:
        if row["case"] not in old:
            print(f"  new    {row['case']}: not in {old_file}")
            continue
        then = old[row["case"]]
        change = row["ms"] / then["ms"]
        slower = row["ms_quartiles"][0] > then["ms_quartiles"][1]
        verdict = "SLOWER" if slower and change > 1.05 else "ok"
        print(f"  {verdict:<7}{row['case']}: {_time(then['ms'])} -> {_time(row['ms'])} ({change:.2f}x)")


def run(name: str, cases: Iterable[Case], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures, prints, and stores the cases of benchmark `name`."""
    torch.set_num_threads(options.threads)
    evict = evictor(options.device)
    copy = copy_speed(options.device, evict)
    print(f"{name} on {options.device}, {options.threads} threads; copy {copy / 1e9:.1f} GB/s (read + written)")
    rows: list[dict[str, Any]] = []
    facts = environment(options)
    record = {"benchmark": name, "environment": facts, "copy_bytes_per_s": copy, "results": rows}
    earlier = options.json.read_text(encoding="utf-8") if options.json and options.json.is_file() else ""
    before = options.compare.read_text(encoding="utf-8") if options.compare else ""
    for case in cases:
        contestants = usable(case)
        if options.device == "cuda":
            on_device = measure_device(contestants, evict)
            walls = measure(contestants, options.device, options.rounds, None, _wall)
            samples = {label: found.ms for label, found in on_device.items()}
            more = {
                label: {"wall_ms": statistics.median(walls[label]), "launches": found.launches}
                for label, found in on_device.items()
            }
        else:
            cold = evict if (case.bytes or 0) >= SMALL_BYTES and not options.warm else None
            samples, more = measure(contestants, options.device, options.rounds, cold), {}
        rows.append(_result(case, samples, copy, more))
        _print(rows[-1])
        if options.json:  # after each case: a run that is stopped leaves what it has
            write_atomically(options.json, earlier + json.dumps(record) + "\n")
    if options.compare:
        _compare(options.compare, before, name, rows, facts)
    sys.stdout.flush()
    return rows
