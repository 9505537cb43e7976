"""Does a cached teacher teach as well as a live one? The student of `mapd/quickstart`, both ways.

    python benchmarks/experiments/teacher_cache.py [--out runs/teacher_cache] [--seeds 0 1 2] [RECIPE KEYS]

For each seed the teacher of `supervised/quickstart` is trained, its heatmaps are cached (`posekd cache-teacher`, bytes,
margin 1.1), and the student of `mapd/quickstart` is trained twice: with the teacher running, and from the cache. Same
weights at the start, same images, same augmentation. Scored is the network of the last step by COCO's keypoint AP.
Then the two loops take steps in turn, and the time of a step is the median of these rounds.

`results.json` in the folder holds every seed's numbers, and for each arm mean and standard deviation over the seeds. A
killed run goes on where it stopped when the program is started again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

if __package__ in (None, ""):  # run as a file
    sys.path.append(str(Path(__file__).resolve().parents[2]))  # last: an installed posekd comes before the sources
    __package__ = "benchmarks.experiments"

from posekd.cli.quickstart import STUDENT, TEACHER
from posekd.data.loading.teacher_maps import CARD, TeacherMaps
from posekd.engine.build import build_job
from posekd.engine.recipes.recipe import Recipe, read_recipe
from posekd.engine.teacher_cache import cache_teacher
from posekd.engine.train import train
from posekd.files import write_atomically

from ..harness import environment
from ..train_throughput import measure, real_steps

ARMS = ("live", "cache")


def recipes(folder: Path, seed: int, overrides: Sequence[str]) -> dict[str, Recipe]:
    """The recipes of the teacher and of the two students of a seed."""
    seeds = ["--seed", str(seed), "--train_data.seed", str(seed), "--val_data.seed", str(seed), *overrides]
    teacher = read_recipe(TEACHER, [*seeds, "--out", str(folder / "teacher")])
    weights = str(folder / "teacher" / "last.safetensors")
    student = read_recipe(STUDENT, [*seeds, "--out", str(folder / "live"), "--teacher.weights", weights])
    cached = replace(student.train, teacher_cache=str(folder / "maps"))
    return {"teacher": teacher, "live": student, "cache": replace(student, train=cached, out=str(folder / "cache"))}


def run_seed(folder: Path, seed: int, overrides: Sequence[str], rounds: int, steps: int) -> dict[str, Any]:
    """Trains and measures one seed; what is done already is not done again."""
    given = recipes(folder, seed, overrides)
    scores = {"teacher": train(given["teacher"], resume="auto")}
    start = time.perf_counter()
    if not (folder / "maps" / CARD).is_file():
        cache_teacher(given["live"], folder / "maps")
    card, seconds = TeacherMaps(folder / "maps").card, time.perf_counter() - start
    scores |= {arm: train(given[arm], resume="auto") for arm in ARMS}
    loops = {arm: real_steps(build_job(given[arm])) for arm in ARMS}
    pace = measure(loops, steps, rounds, 2, torch.device("cpu"))
    batch = given["live"].loader.batch_size
    return {
        "seed": seed,
        "AP": {name: numbers and numbers["AP"] for name, numbers in scores.items()},
        "ms_per_step": {arm: batch / pace[arm]["samples_per_s"] * 1e3 for arm in ARMS},
        "cache": {**asdict(card), "bytes_per_person": card.bytes_per_person, "seconds": seconds},
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of each arm, of their difference seed by seed, and the ratio of their step times."""
    columns = {arm: [row["AP"][arm] for row in rows] for arm in ARMS}
    columns["cache_minus_live"] = [b - a for a, b in zip(*(columns[arm] for arm in ARMS), strict=True)]
    spread = {
        name: {"mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else None}
        for name, values in columns.items()
    }
    ratios = [row["ms_per_step"]["live"] / row["ms_per_step"]["cache"] for row in rows]
    return {"AP": spread, "speedup_of_a_step": statistics.median(ratios)}


def report(results: dict[str, Any]) -> None:
    """Prints the numbers."""
    for row in results["seeds"]:
        points = ", ".join(f"{name} {value:.3f}" for name, value in row["AP"].items())
        pace = ", ".join(f"{arm} {row['ms_per_step'][arm]:.0f}" for arm in ARMS)
        print(f"seed {row['seed']}: AP {points}; ms per step {pace}")
    card, total = results["seeds"][0]["cache"], results["summary"]
    print(f"cache: {card['bytes_per_person']:,} bytes per person, largest error {card['error']:.2g}")
    for name, row in total["AP"].items():
        spread = f" (sd {row['sd']:.3f} over {len(results['seeds'])} seeds)" if row["sd"] is not None else ""
        print(f"AP {name.replace('_', ' ')}: {row['mean']:+.3f}{spread}" if "minus" in name else
              f"AP {name}: {row['mean']:.3f}{spread}")  # fmt: skip
    print(f"a step from the cache is {total['speedup_of_a_step']:.2f}x as fast", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all seeds and writes `results.json` after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("runs/teacher_cache"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of timed steps (default 5)")
    parser.add_argument("--steps", type=int, default=5, help="timed steps per round (default 5)")
    options, overrides = parser.parse_known_args(argv)
    torch.set_num_threads(options.threads)
    env = environment(SimpleNamespace(device="cpu", threads=options.threads, warm=True))  # type: ignore[arg-type]
    results: dict[str, Any] = {"benchmark": "teacher_cache", "environment": env, "seeds": []}
    for seed in options.seeds:
        row = run_seed(options.out / f"seed{seed}", seed, overrides, options.rounds, options.steps)
        results["seeds"].append(row)
        results["summary"] = summary(results["seeds"])
        write_atomically(options.out / "results.json", json.dumps(results, indent=2) + "\n")
    report(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
