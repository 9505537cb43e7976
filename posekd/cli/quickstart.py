"""`posekd quickstart`: on synthetic people a teacher, a student without it and the same student with it, side by side.

It shows a typical case for distillation: you have images, labels for a tenth of them, and a teacher that was trained on
other images. The three runs are ordinary ones. The teacher is trained by `configs/supervised/quickstart.yaml` on
labelled images of its own, and the distilled student by `configs/mapd/quickstart.yaml` on all of your images. The
undistilled student uses the same recipe with `method.name: supervised` on the labelled tenth, for more epochs and so
for as many steps. Both start from the same weights. The networks of the last step are compared; none is chosen by its
validation score. The share of labels and `method.unlabelled_weight` were fixed before such a student had been trained.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from posekd.cli import command_parser
from posekd.data import PoseSource
from posekd.data.sources.labels import FewLabels, LabelSettings
from posekd.engine.build import assemble, pick_device
from posekd.engine.progress import read_log
from posekd.engine.recipes.datasets import open_dataset
from posekd.engine.recipes.recipe import Recipe, read_recipe, save_recipe
from posekd.engine.scoring import Report
from posekd.engine.training.loop import fit
from posekd.files import check_writable, write_atomically
from posekd.metrics import NUMBERS
from posekd.viz.curves import plot_curves
from posekd.viz.draw import draw_poses, save_sheet

TEACHER, STUDENT = "supervised/quickstart", "mapd/quickstart"
PICTURES = 4  # rows of poses.png
NETWORKS = ("teacher", "distilled", "undistilled")
SHARE = 10  # one image in this many is labelled
OTHER_PICTURES = 1000  # added to the seed of the teacher's images

EPILOG = """DIR then holds results.json, curves.png, poses.png, and a folder for each of the three runs with its
recipe, log and weights. Recipe keys can be overridden for all three: --train.device cuda. (The student that has
labels alone trains more epochs, for as many steps.)"""


@dataclass(frozen=True)
class Run:
    """One of the three trainings.

    Attributes:
        recipe: the recipe of the run.
        report: the evaluation of the last step's network.
        parameters: number of parameters of that network.
        seconds: wall-clock, validations included.
    """

    recipe: Recipe
    report: Report
    parameters: int
    seconds: float

    def numbers(self) -> dict[str, float]:
        """The ten COCO numbers, parameters and seconds."""
        numbers = self.report.numbers()
        assert numbers is not None
        return {**numbers, "parameters": self.parameters, "seconds": round(self.seconds, 1)}


def main(argv: Sequence[str]) -> int:
    """Reads the options and runs `quickstart`."""
    parser = command_parser("quickstart", epilog=EPILOG, allow_abbrev=False)
    parser.add_argument("--out", metavar="DIR", default="quickstart", help="where to write (default: quickstart)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of images, weights and order (default: 0)")
    options, overrides = parser.parse_known_args(argv)
    if options.seed < 0:
        raise ValueError(f"--seed must not be negative, got {options.seed}")
    quickstart(Path(options.out), options.seed, overrides)
    return 0


def quickstart(out: Path, seed: int = 0, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Runs all of it and writes checkpoints, `results.json`, `curves.png` and `poses.png` into a folder.

    Args:
        out: the folder; runs of an earlier quickstart in it are replaced.
        seed: seed of the images, the weights, the order and the augmentation.
        overrides: `--group.key value` words for both recipes (tests make them tiny).

    Returns:
        What `results.json` holds.

    Raises:
        ValueError: overrides that do not fit.
    """
    start, cpu_start = time.perf_counter(), time.process_time()
    check_writable(out / "results.json")
    console = Console(stderr=True)
    seeds = ["--seed", str(seed), "--train_data.seed", str(seed), "--val_data.seed", str(seed), *overrides]
    weights = out / "teacher" / "last.safetensors"
    teacher = read_recipe(TEACHER, [*seeds, "--out", str(out / "teacher")])
    teacher = replace(teacher, train_data=replace(teacher.train_data, seed=teacher.train_data.seed + OTHER_PICTURES))
    student = read_recipe(STUDENT, [*seeds, "--out", str(out / "distilled"), "--teacher.weights", str(weights)])
    console.print("quickstart: drawing synthetic people", highlight=False)
    pictures, validation = open_dataset(student.train_data), open_dataset(student.val_data)
    labels = LabelSettings(max(1, student.train_data.images // SHARE))
    training = {
        "teacher": open_dataset(teacher.train_data),
        "undistilled": FewLabels(pictures, replace(labels, others="left_out")),
        "distilled": FewLabels(pictures, labels),
    }
    everybody, labelled = (len(training[name].records) for name in ("distilled", "undistilled"))
    distilled, undistilled = students(student, teacher, labels, everybody, labelled)
    drawn = time.perf_counter() - start
    persons = {
        "labelled": labelled,
        "unlabelled": everybody - labelled,
        "teacher": len(training["teacher"].records),
        "validation": len(validation.records),
    }
    console.print(
        f"quickstart: {persons['labelled']} persons with labels and {persons['unlabelled']} without, "
        f"{persons['teacher']} others for the teacher, {persons['validation']} to validate on ({drawn:.0f} s)",
        highlight=False,
    )
    recipes = {"teacher": teacher, "undistilled": undistilled, "distilled": distilled}
    runs = {name: _train(name, recipe, training[name], validation) for name, recipe in recipes.items()}
    results: dict[str, Any] = {name: runs[name].numbers() for name in NETWORKS}
    results["gain"] = results["distilled"]["AP"] - results["undistilled"]["AP"]
    results |= {"seed": seed, "persons": persons, "threads": torch.get_num_threads(), "torch": torch.__version__}
    plot_curves({name: read_log(out / name / "log.jsonl") for name in runs}, out / "curves.png")
    _draw(runs, validation, out / "poses.png")
    results["seconds"] = round(time.perf_counter() - start, 1)
    results["cpu_seconds"] = round(time.process_time() - cpu_start, 1)
    write_atomically(out / "results.json", json.dumps(results, indent=2) + "\n")
    report(results, out)
    return results


def students(
    student: Recipe, teacher: Recipe, labels: LabelSettings, everybody: int, labelled: int
) -> tuple[Recipe, Recipe]:
    """The recipes of the distilled and of the undistilled student.

    Args:
        student: what both have in common.
        teacher: its method is the undistilled student's.
        labels: which images have labels.
        everybody: number of persons in all images.
        labelled: number of persons in those with labels.

    Raises:
        ValueError: the labelled persons do not fill a batch, or the recipe chooses labels of its own.
    """
    if student.labels is not None or student.unlabelled_data is not None:
        raise ValueError("the quickstart itself decides who has labels: give it no --labels and no --unlabelled_data")
    batch, loop = student.loader.batch_size, student.train
    if labelled < batch:
        raise ValueError(
            f"{labelled} persons with labels, on one image in {SHARE}, do not fill a batch of {batch}: raise "
            "train_data.images, or lower loader.batch_size"
        )
    longer = (everybody // batch) / (labelled // batch)  # in training an incomplete batch is dropped
    whole = {name: round(longer * getattr(loop, name)) for name in ("epochs", "validate_every", "checkpoint_every")}
    distilled = replace(student, labels=labels, method=replace(student.method, unlabelled_weight=1.0))
    undistilled = replace(
        student,
        labels=replace(labels, others="left_out"),
        method=teacher.method,
        teacher=None,
        train=replace(loop, **whole),
        out=str(Path(student.out).with_name("undistilled")),
    )
    return distilled, undistilled


def _train(name: str, recipe: Recipe, training: PoseSource, validation: PoseSource) -> Run:
    folder = Path(recipe.out)
    if (folder / "recipe.yaml").is_file():  # an earlier quickstart's
        shutil.rmtree(folder)
    start = time.perf_counter()
    reports: list[Report] = []
    job = assemble(recipe, training, validation, pick_device(recipe.train.device), name, reports.append)
    save_recipe(recipe, folder / "recipe.yaml")
    fit(job)
    parameters = sum(parameter.numel() for parameter in job.learner.method.student.parameters())
    return Run(recipe, reports[-1], parameters, time.perf_counter() - start)


def _draw(runs: dict[str, Run], validation: PoseSource, path: Path) -> None:
    """The first images with several persons, labels and the three networks side by side."""
    records = validation.records
    skeleton = records.skeleton
    people = np.bincount(records.image_rows, minlength=records.num_images)
    rows = np.argsort(people < 2, kind="stable")[:PICTURES]
    labels = {row: records.keypoints[records.image_rows == row] for row in rows}
    columns = {"labels": [draw_poses(validation.load_image(row), labels[row], skeleton, labels=True) for row in rows]}
    for name in NETWORKS:
        numbers = runs[name].report.numbers()
        title = f"{name}  AP {numbers['AP']:.3f}" if numbers is not None else name
        columns[title] = [
            draw_poses(validation.load_image(row), _poses(runs[name].report, int(records.image_ids[row])), skeleton)
            for row in rows
        ]
    save_sheet(columns, path)


def _poses(report: Report, image_id: int) -> np.ndarray:
    return report.found.keypoints[report.found.image_ids == image_id].numpy()


def report(results: dict[str, Any], out: Path) -> None:
    """Prints the numbers, and in one sentence what distillation changed, gain or loss."""
    console = Console()
    table = Table(title=f"quickstart, seed {results['seed']}: {results['persons']['validation']} persons")
    table.add_column()
    columns = [results[name] for name in NETWORKS]
    for name in NETWORKS:
        table.add_column(name, justify="right")
    for key in NUMBERS:
        table.add_row(key, *(f"{numbers[key]:.3f}" for numbers in columns))
    table.add_row("parameters", *(f"{numbers['parameters']:,}" for numbers in columns))
    table.add_row("seconds", *(f"{numbers['seconds']:.0f}" for numbers in columns))
    console.print(table)
    gain = results["gain"]
    change = "raised" if gain > 0 else "lowered" if gain < 0 else "left"
    before, after = results["undistilled"]["AP"], results["distilled"]["AP"]
    sentence = (
        f"With labels for {results['persons']['labelled']} persons, distillation on "
        f"{results['persons']['unlabelled']} more without labels {change} the student's AP: "
        f"{before:.3f} -> {after:.3f} ({gain:+.3f})."
    )
    console.print(sentence, highlight=False)
    console.print(
        f"{results['seconds']:.0f} s on {results['threads']} CPU threads. Look at {out / 'poses.png'} and "
        f"{out / 'curves.png'}; numbers in {out / 'results.json'}.",
        highlight=False,
        soft_wrap=True,
    )
