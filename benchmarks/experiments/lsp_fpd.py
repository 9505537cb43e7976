"""Real training on real images: what FPD brings a small Hourglass on Leeds Sports Pose, on two CPU threads.

    python benchmarks/experiments/lsp_fpd.py --data FOLDER [--out runs/lsp_fpd] [--seeds 0 1 2] [--threads 2]

FOLDER holds `images/` and `joints.mat` of LSP. Five trainings per seed, by the shipped recipes
`supervised/hourglass_2x64_lsp_128x128` and `fpd/hourglass_1x32_lsp_128x128`, all of the same number of optimiser steps:

    teacher          2 stages of 64 channels, all 1000 training labels
    student          1 stage of 32 channels, all labels, no teacher
    fpd              the same student and the teacher
    student_200      the student, 200 of the labels, no teacher, the other images left out
    fpd_200_800      the student, the same 200 labels, and the teacher alone on the other 800 images

Students of a seed start from the same weights. Scored is the network of the last step, none is picked by its test
score: PCK@0.2 by the torso over all 1000 test images, with flip test. Beside it stands a predictor that has seen no
image: the mean training pose. The teacher has learnt from all labels, so the last arm shows what unlabelled images
bring where a good teacher exists, not what 200 labels can do by themselves.

The task and the schedule were fixed before any test image was scored, from plainly trained networks alone: short runs
on training images 1 to 800, scored on 801 to 1000. A killed run goes on where it stopped when it is started again.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import posekd
from posekd import geometry
from posekd.data import PoseSource
from posekd.data.loading.boxes import crops_of
from posekd.engine.evaluate import evaluate
from posekd.engine.progress import read_log
from posekd.engine.recipes.datasets import open_dataset
from posekd.engine.recipes.recipe import Recipe, read_recipe
from posekd.engine.train import train_timed
from posekd.files import write_atomically
from posekd.metrics import PckResult, pck
from posekd.models import load_model, profile_model
from posekd.viz.curves import COLOURS, figure_to_png

TRAINING_PICTURES = 1000
TEACHER, STUDENT = "supervised/hourglass_2x64_lsp_128x128", "fpd/hourglass_1x32_lsp_128x128"
PLAIN = ["--method.name=supervised", "--method.sigma=2.0"]
ARMS: dict[str, tuple[str, list[str]]] = {
    "teacher": (TEACHER, []),
    "student": (STUDENT, PLAIN),
    "fpd": (STUDENT, []),
    "student_200": (STUDENT, [*PLAIN, "--labels={images: 200, others: left_out}"]),
    "fpd_200_800": (STUDENT, ["--labels={images: 200}"]),
}
"""Name -> recipe, and the words that change it."""

COMPARISONS = {"the teacher's term": ("fpd", "student"), "unlabelled images": ("fpd_200_800", "student_200")}


def recipe_of(arm: str, seed: int, data: Path, out: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of an arm. An epoch of fewer images is shorter, so there are more: equal steps for all."""
    name, words = ARMS[arm]
    folder = out / f"seed{seed}"
    places = [f"--seed={seed}", f"--out={folder / arm}"]
    for split in ("train_data", "val_data"):
        places += [f"--{split}.images={data / 'images'}", f"--{split}.annotations={data / 'joints.mat'}"]
    if arm != "teacher":
        places.append(f"--teacher.weights={folder / 'teacher' / 'last.safetensors'}")
    recipe = read_recipe(name, [*words, *places, *overrides])
    if recipe.labels is None:
        return recipe
    recipe = replace(recipe, labels=replace(recipe.labels, seed=seed))
    if recipe.labels.others == "unlabelled":
        return recipe
    times = TRAINING_PICTURES // recipe.labels.images
    longer = {key: getattr(recipe.train, key) * times for key in ("epochs", "validate_every", "checkpoint_every")}
    return replace(recipe, train=replace(recipe.train, **longer))


def run_arm(recipe: Recipe, test: PoseSource) -> dict[str, Any]:
    """Trains (or goes on, or finds it done) and scores the last network; what it costs is kept over restarts."""
    folder = Path(recipe.out)
    done = folder / "result.json"
    if done.is_file():
        return json.loads(done.read_text())
    seconds = train_timed(recipe)
    model = load_model(folder / "last.safetensors")
    report = evaluate(model, test, recipe.inference, loader=recipe.loader)
    assert report.main is not None
    found, _ = report.main.result
    profile = profile_model(model)
    result = {
        **summary(found),
        "parameters": profile.params,
        "macs": profile.macs,
        "steps": read_log(folder / "log.jsonl")[-1]["step"],
        "seconds": round(seconds, 1),
    }
    write_atomically(done, json.dumps(result, indent=2) + "\n")
    return result


def summary(result: PckResult) -> dict[str, Any]:
    """The mean, the area, the papers' columns and the curve."""
    numbers = {name: round(value, 2) for name, value in result.numbers().items()}
    return {**numbers, "people": result.people, "curve": [round(float(value), 3) for value in result.curve]}


def mean_pose(training: PoseSource, test: PoseSource, size: tuple[int, int], padding: float) -> PckResult:
    """PCK of the mean pose of the training images, in crop coordinates, put into every test crop."""

    def crops(source: PoseSource) -> torch.Tensor:
        return geometry.crop_matrices(*crops_of(source.records, size, padding), None, None, size)

    records = test.records
    points = torch.from_numpy(training.records.keypoints)
    points = geometry.transform_keypoints(points, geometry.invert_matrices(crops(training)))
    seen = (points[..., 2:] > 0).float()
    mean = (points[..., :2] * seen).sum(0) / seen.sum(0)
    found = geometry.transform_keypoints(mean.expand(len(records), -1, -1), crops(test)).numpy()
    assert records.reference_lengths is not None
    labels, visible = records.keypoints[..., :2], records.keypoints[..., 2]
    return pck(found, labels, visible, records.reference_lengths, skeleton=records.skeleton)


def draw(results: dict[str, Any], path: Path) -> None:
    """PCK over its threshold for each arm, all seeds, and the mean pose."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    for colour, arm in zip(COLOURS, ARMS, strict=False):
        for i, arms in enumerate(results["seeds"].values()):
            curve = arms[arm]["curve"]
            scores = [each[arm]["PCK@0.2"] for each in results["seeds"].values()]
            label = None if i else f"{arm}  {np.mean(scores):.1f}"
            axes.plot(np.arange(len(curve)) / 100, curve, color=colour, lw=1.4, label=label)
    curve = results["mean_pose"]["curve"]
    label = f"mean pose  {results['mean_pose']['PCK@0.2']:.1f}"
    axes.plot(np.arange(len(curve)) / 100, curve, color="0.5", lw=1.2, ls="--", label=label)
    axes.set(xlabel="threshold, in units of the torso", ylabel="PCK (%)", xlim=(0, 0.2), ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    figure_to_png(figure, path)


def report(results: dict[str, Any]) -> None:
    """Prints every arm of every seed, and what the teacher and the unlabelled images changed, gain or loss."""
    console = Console()
    table = Table(title=f"LSP, PCK@0.2 over {results['mean_pose']['people']} test images")
    table.add_column("")
    for seed in results["seeds"]:
        table.add_column(f"seed {seed}", justify="right")
    table.add_column("parameters", justify="right")
    table.add_column("MMAC", justify="right")
    table.add_column("seconds", justify="right")
    table.add_row("mean pose", *[f"{results['mean_pose']['PCK@0.2']:.2f}"] * len(results["seeds"]), "", "", "")
    for arm in ARMS:
        runs = [arms[arm] for arms in results["seeds"].values()]
        scores = (f"{run['PCK@0.2']:.2f}" for run in runs)
        seconds = " ".join(f"{run['seconds']:.0f}" for run in runs)
        table.add_row(arm, *scores, f"{runs[0]['parameters']:,}", f"{runs[0]['macs'] / 1e6:.0f}", seconds)
    console.print(table)
    for what, (with_it, without) in COMPARISONS.items():
        gains = [arms[with_it]["PCK@0.2"] - arms[without]["PCK@0.2"] for arms in results["seeds"].values()]
        shown = ", ".join(f"{gain:+.2f}" for gain in gains)
        console.print(f"{what}: {with_it} - {without} = {shown} points", highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="LSP's folder: images/ and joints.mat")
    parser.add_argument("--out", type=Path, default=Path("runs/lsp_fpd"), help="folder of the runs and results")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="seeds of weights, order, augmentation and labels"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options, overrides = parser.parse_known_args(argv)
    torch.set_num_threads(options.threads)
    first = recipe_of("teacher", 0, options.data, options.out, overrides)
    training, test = open_dataset(first.train_data), open_dataset(first.val_data)
    height, width = first.student.overrides["size"]
    results: dict[str, Any] = {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "posekd": posekd.__version__,
        "torch": torch.__version__,
        "threads": options.threads,
        "machine": platform.processor() or platform.machine(),
        "mean_pose": summary(mean_pose(training, test, (height, width), first.loader.padding)),
        "seeds": {},
    }
    for seed in options.seeds:
        arms = {}
        for arm in ARMS:
            arms[arm] = run_arm(recipe_of(arm, seed, options.data, options.out, overrides), test)
        results["seeds"][str(seed)] = arms
        write_atomically(options.out / "results.json", json.dumps(results, indent=2) + "\n")
    draw(results, options.out / "pck.png")
    report(results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
