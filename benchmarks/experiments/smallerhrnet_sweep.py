"""Does distilling tags help? SmallerHRNet's Table 2 on synthetic people, on CPU threads.

    python benchmarks/experiments/smallerhrnet_sweep.py [--out runs/smallerhrnet_sweep] [--seeds 0 1 2] [--threads 2]

Six trainings per seed, by the shipped recipes `smallerhrnet/tiny_teacher` and `smallerhrnet/tiny`, half as long again;
every student of a seed starts from the same weights, sees the same batches and takes as many steps:

    teacher      labels alone
    student      labels alone, no teacher
    heatmaps     + the teacher's heatmaps
    tags         + the teacher's heatmaps and tags, the tag term as a mean
    light        the same, the tag term a thousandth of that, like pull and push: `method.tag_weight`
    authors      what the paper's public code computes: the coarse heatmap term 1 + B times, no tags

The paper's gain from tags (24.4 to 27.6 AP on COCO) came with the code of the last arm, so the question is whether it
is the tag term or the repeated heatmap term. Scored is the network of the last step, on 1,000 validation persons or
more; none is picked by its score. Beside each difference stands its paired bootstrap interval over the images. A
comparison counts only if the student alone reaches an AP of 0.30: below that the task was not learnt, and the report
says so.
The task is small, two people in 128x128 pixels, so that a seed costs minutes. Its size and schedule were fixed after
trainings of the undistilled student alone (AP 0.46 after 8 epochs), before any distilled one was trained. The arm
`light` was added after the first seed's other arms had finished: read it as a suggestion, not as a test.
A killed run goes on where it stopped when it is started again.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
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

TEACHER, STUDENT = "smallerhrnet/tiny_teacher", "smallerhrnet/tiny"
LEARNT = 0.30  # AP of the student alone below which nothing is compared
PERSONS = 1000  # validation persons, at least
TASK = [
    "--val_data.images=550", "--train.epochs=12", "--train.validate_every=4", "--train.precision=bf16",
]  # fmt: skip
ARMS: dict[str, tuple[str, list[str]]] = {
    "teacher": (TEACHER, []),
    "student": (STUDENT, ["--method.name=associative_embedding", "--method.kind=exact", "--method.sigma=1.5"]),
    "heatmaps": (STUDENT, ["--method.distil_tags=false"]),
    "tags": (STUDENT, []),
    "light": (STUDENT, ["--method.tag_weight=0.001"]),
    "authors": (STUDENT, ["--method.tag_reduction=authors", "--method.teacher_mode=train"]),
}
"""Name -> recipe, and the words that change it."""

COMPARISONS = {
    "heatmap distillation": ("student", "heatmaps"),
    "tag distillation": ("heatmaps", "tags"),
    "tag distillation, light": ("heatmaps", "light"),
    "the authors' code": ("heatmaps", "authors"),
    "all of it": ("student", "tags"),
}
"""What it is -> the arm without and the arm with it."""


def recipe_of(arm: str, seed: int, out: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of an arm; the images are the same for all seeds."""
    name, words = ARMS[arm]
    folder = out / f"seed{seed}"
    places = [f"--seed={seed}", f"--out={folder / arm}"]
    if arm != "teacher":
        places.append(f"--teacher.weights={folder / 'teacher' / 'last.safetensors'}")
    return read_recipe(name, [*words, *TASK, *places, *overrides])


def run_arm(recipe: Recipe, validation: PoseSource) -> dict[str, Any]:
    """Trains (or goes on, or finds it done) and scores the last network; what it costs is kept over restarts."""
    folder = Path(recipe.out)
    done = folder / "result.json"
    if done.is_file():
        return json.loads(done.read_text())
    seconds = train_timed(recipe)
    model = load_model(folder / "last.safetensors")
    report = evaluate(model, validation, recipe.inference, loader=recipe.loader, results_file=folder / "people.json")
    assert report.main is not None
    profile = profile_model(model)
    result = {
        **{name: round(value, 4) for name, value in report.main.numbers.items()},
        "persons": len(report.main.result.people),
        "parameters": profile.params,
        "macs": profile.macs,
        "seconds": round(seconds, 1),
    }
    write_atomically(done, json.dumps(result, indent=2) + "\n")
    return result


def compare(out: Path, seeds: Sequence[int], truth: dict[str, Any]) -> dict[str, Any]:
    """For each comparison and seed: the difference of AP and its bootstrap interval."""
    comparisons: dict[str, Any] = {}
    for what, (without, with_it) in COMPARISONS.items():
        comparisons[what] = {}
        for seed in seeds:
            files = [out / f"seed{seed}" / arm / "people.json" for arm in (without, with_it)]
            gain = paired_bootstrap(truth, *files)
            interval = [round(gain.low, 4), round(gain.high, 4)]
            comparisons[what][str(seed)] = {"gain": round(gain.value, 4), "interval_95": interval}
    return comparisons


def verdict(results: dict[str, Any]) -> str:
    """Whether the comparisons count."""
    alone = [arms["student"]["AP"] for arms in results["seeds"].values()]
    persons = min(arms["student"]["persons"] for arms in results["seeds"].values())
    if persons < PERSONS:
        return f"does not count: {persons} validation persons, fewer than {PERSONS}"
    if min(alone) < LEARNT:
        return f"not learned: the student alone reaches an AP of {min(alone):.3f}, less than {LEARNT:.2f}"
    return "counts"


def report(results: dict[str, Any]) -> None:
    """Prints every arm of every seed, and what each part of the loss changed, gain or loss."""
    console = Console()
    table = Table(title="AP on synthetic validation people")
    table.add_column("")
    for seed in results["seeds"]:
        table.add_column(f"seed {seed}", justify="right")
    for column in ("parameters", "MMAC", "seconds"):
        table.add_column(column, justify="right")
    for arm in ARMS:
        runs = [arms[arm] for arms in results["seeds"].values()]
        seconds = " ".join(f"{run['seconds']:.0f}" for run in runs)
        macs = f"{runs[0]['macs'] / 1e6:.0f}"
        table.add_row(arm, *(f"{run['AP']:.3f}" for run in runs), f"{runs[0]['parameters']:,}", macs, seconds)
    console.print(table)
    for what, seeds in results["comparisons"].items():
        shown = "; ".join(
            f"{one['gain']:+.3f} ({one['interval_95'][0]:+.3f} to {one['interval_95'][1]:+.3f})"
            for one in seeds.values()
        )
        console.print(f"{what}: {shown}", highlight=False)
    console.print(results["verdict"], highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/smallerhrnet_sweep"), help="folder of runs and results")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of weights, order and augmentation"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options, overrides = parser.parse_known_args(argv)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    validation = open_dataset(recipe_of("teacher", 0, options.out, overrides).val_data)
    seeds = {
        str(seed): {arm: run_arm(recipe_of(arm, seed, options.out, overrides), validation) for arm in ARMS}
        for seed in options.seeds
    }
    results: dict[str, Any] = {
        "seeds": seeds,
        "comparisons": compare(options.out, options.seeds, validation.coco_ground_truth()),  # type: ignore[attr-defined]
        "overrides": list(overrides),
        "threads": options.threads,
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "posekd": posekd.__version__,
    }
    results["verdict"] = verdict(results)
    write_atomically(options.out / "results.json", json.dumps(results, indent=2) + "\n")
    report(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
