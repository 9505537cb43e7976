"""What experiments of several arms share: a teacher, students that differ in one setting, seeds, comparisons.

An arm is a recipe and the words that change it. Every student of a seed starts from the same weights, sees the same
batches and takes as many steps. Scored is the network of the last step; none is picked by its score. Beside each
difference stands its paired bootstrap interval over the images (another seed may move it as much). A comparison counts
only if the plain student reaches an AP of `LEARNT` over `PERSONS` validation persons: below that the task was not
learnt, and the report says so.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import posekd
from posekd.data import PoseSource
from posekd.engine.evaluate import evaluate
from posekd.engine.recipes.datasets import open_dataset
from posekd.engine.recipes.recipe import Recipe, read_recipe
from posekd.engine.train import train_timed
from posekd.files import write_atomically
from posekd.metrics import paired_bootstrap
from posekd.models import load_model, profile_model

LEARNT = 0.30  # AP of the plain student below which nothing is compared
PERSONS = 1000  # validation persons, at least
TEACHER = "teacher"


@dataclass(frozen=True)
class Experiment:
    """Arms and what is compared.

    Attributes:
        arms: name -> recipe, and the words that change it; the one called `teacher` is trained first.
        plain: the arm that must have learnt the task.
        comparisons: what it is -> the arm without and the arm with it.
        task: words for all arms: data, length, precision.
        out: where runs and results go by default.
    """

    arms: Mapping[str, tuple[str, Sequence[str]]]
    plain: str
    comparisons: Mapping[str, tuple[str, str]]
    task: Sequence[str]
    out: str


def recipe_of(experiment: Experiment, arm: str, seed: int, out: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of an arm; the images are the same for all seeds."""
    name, words = experiment.arms[arm]
    folder = out / f"seed{seed}"
    places = [f"--seed={seed}", f"--out={folder / arm}"]
    if arm != TEACHER:
        places.append(f"--teacher.weights={folder / TEACHER / 'last.safetensors'}")
    return read_recipe(name, [*words, *experiment.task, *places, *overrides])


def run_arm(recipe: Recipe, validation: PoseSource) -> dict[str, Any]:
    """Trains (or goes on, or finds it done) and scores the last network; what it costs is kept over restarts."""
    folder = Path(recipe.out)
    done = folder / "result.json"
    if done.is_file():
        found: dict[str, Any] = json.loads(done.read_text())
        return found
    processor = time.process_time()
    seconds = train_timed(recipe)
    processor = time.process_time() - processor
    model = load_model(folder / "last.safetensors")
    report = evaluate(model, validation, recipe.inference, loader=recipe.loader, results_file=folder / "people.json")
    numbers = report.numbers()
    assert report.main is not None
    assert numbers is not None
    profile = profile_model(model)
    result = {
        **{name: round(value, 4) for name, value in numbers.items()},
        "persons": len(report.main.result.people),
        "parameters": profile.params,
        "macs": profile.macs,
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor, 1),  # of the last attempt
    }
    write_atomically(done, json.dumps(result, indent=2) + "\n")
    return result


def compare(experiment: Experiment, out: Path, seeds: Sequence[str], truth: dict[str, Any]) -> dict[str, Any]:
    """For each comparison and seed whose two arms are done: the difference of AP and its bootstrap interval."""
    comparisons: dict[str, Any] = {}
    for what, (without, with_it) in experiment.comparisons.items():
        comparisons[what] = {}
        for seed in seeds:
            files = [out / f"seed{seed}" / arm / "people.json" for arm in (without, with_it)]
            if all(file.is_file() for file in files):
                gain = paired_bootstrap(truth, *files)
                interval = [round(gain.low, 4), round(gain.high, 4)]
                comparisons[what][seed] = {"gain": round(gain.value, 4), "interval_95": interval}
    return comparisons


def verdict(experiment: Experiment, results: dict[str, Any]) -> str:
    """Whether the comparisons count."""
    plain = [arms[experiment.plain] for arms in results["seeds"].values() if experiment.plain in arms]
    if not plain:
        return f"nothing to compare with yet: the arm {experiment.plain} is not done"
    persons, weakest = min(one["persons"] for one in plain), min(one["AP"] for one in plain)
    if persons < PERSONS:
        return f"does not count: {persons} validation persons, fewer than {PERSONS}"
    if weakest < LEARNT:
        return f"not learned: the arm {experiment.plain} reaches an AP of {weakest:.3f}, less than {LEARNT:.2f}"
    return "counts"


def report(experiment: Experiment, results: dict[str, Any]) -> None:
    """Prints every arm of every seed, and what each part of the loss changed, gain or loss."""
    console = Console()
    table = Table(title="AP on synthetic validation people")
    table.add_column("")
    for seed in results["seeds"]:
        table.add_column(f"seed {seed}", justify="right")
    for column in ("parameters", "MMAC", "seconds"):
        table.add_column(column, justify="right")
    for arm in experiment.arms:
        runs = [arms.get(arm) for arms in results["seeds"].values()]
        done = [run for run in runs if run is not None]
        if not done:
            continue
        seconds = " ".join(f"{run['seconds']:.0f}" for run in done)
        shown = ("-" if run is None else f"{run['AP']:.3f}" for run in runs)
        table.add_row(arm, *shown, f"{done[0]['parameters']:,}", f"{done[0]['macs'] / 1e6:.0f}", seconds)
    console.print(table)
    for what, seeds in results["comparisons"].items():
        differences = "; ".join(
            f"{one['gain']:+.3f} ({one['interval_95'][0]:+.3f} to {one['interval_95'][1]:+.3f})"
            for one in seeds.values()
        )
        console.print(f"{what}: {differences or 'not done'}", highlight=False)
    console.print(results["verdict"], highlight=False)


def main(
    experiment: Experiment,
    description: str | None,
    argv: Sequence[str] | None = None,
    deadline: float = math.inf,
    facts: Mapping[str, Any] | None = None,
) -> int:
    """Runs all arms of all seeds, seed by seed, and writes `results.json` after each; a killed run goes on.

    Args:
        experiment: the arms.
        description: for `--help`.
        argv: the words of the command line; recipe keys for all arms may be among them.
        deadline: of `time.monotonic()`, after which no other arm begins; started again, the rest follows.
        facts: further entries of `results.json`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(experiment.out), help="folder of runs and results")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of weights, order and augmentation"
    )
    parser.add_argument("--arms", nargs="+", choices=list(experiment.arms), help="only these, after the teacher (all)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options, overrides = parser.parse_known_args(argv)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = [arm for arm in experiment.arms if options.arms is None or arm in (TEACHER, *options.arms)]
    validation = open_dataset(recipe_of(experiment, TEACHER, 0, options.out, overrides).val_data)
    truth = validation.coco_ground_truth()  # type: ignore[attr-defined]
    results: dict[str, Any] = {
        "seeds": {str(seed): {} for seed in options.seeds},
        "overrides": list(overrides),
        "threads": options.threads,
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "posekd": posekd.__version__,
        "comparisons": {},
        "verdict": "nothing is trained yet",
        **(facts or {}),
    }
    for seed, done in results["seeds"].items():
        for arm in wanted:
            if time.monotonic() > deadline and not (options.out / f"seed{seed}" / arm / "result.json").is_file():
                print(f"seed {seed}, {arm}: no time is left; start again to go on")
                continue
            done[arm] = run_arm(recipe_of(experiment, arm, int(seed), options.out, overrides), validation)
            results["comparisons"] = compare(experiment, options.out, list(results["seeds"]), truth)
            results["verdict"] = verdict(experiment, results)
            write_atomically(options.out / "results.json", json.dumps(results, indent=2) + "\n")
    report(experiment, results)
    return 0
