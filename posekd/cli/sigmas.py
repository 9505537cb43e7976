"""`posekd sigmas DATA`: OKS sigmas from repeated labels, or from a teacher's disagreement with the labels."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from posekd.cli import command_parser

if TYPE_CHECKING:
    import numpy as np

    from posekd.data import CocoSettings
    from posekd.metrics.sigmas import Sigmas

EPILOG = """A keypoint's sigma says how far labels of it lie from each other, relative to the square root of the area.
(The box's area; a COCO file with areas of segments needs larger sigmas.) Label some pictures twice, best by two people.
Without repeats a teacher's distance from the labels is an upper bound: it holds the teacher's errors too. Give the
result as `sigmas` of train_data and val_data.

examples:
  posekd sigmas first.json --repeat second.json
  posekd sigmas data/val.json --teacher runs/mouse/teacher"""


def main(argv: Sequence[str]) -> int:
    """Prints an estimate for each keypoint, how sure it is, and the line for a recipe.

    Raises:
        ValueError, FileNotFoundError: labels or a teacher that do not fit.
    """
    from posekd.data.own.find import find_data
    from posekd.metrics.sigmas import estimate_sigmas

    parser = command_parser("sigmas", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("data", metavar="DATA", help="label file in COCO's form, or a folder with train.json")
    add("--images", metavar="DIR", help="folder of the images (looked for by itself)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--repeat", metavar="FILE", help="other labels of the same pictures")
    source.add_argument(
        "--teacher", metavar="RUN", help="a run's folder or checkpoint, best of a network not trained on DATA"
    )
    options = parser.parse_args(argv)

    data = find_data(options.data, options.images).train
    if options.repeat is not None:
        names, distances, areas = _repeated(data, find_data(options.repeat, options.images).train)
    else:
        names, distances, areas = _of_teacher(data, options.teacher)
    found = estimate_sigmas(distances, areas, both_err=options.repeat is not None)
    _print(names, found, repeated=options.repeat is not None)
    return 0


def _repeated(first: CocoSettings, second: CocoSettings) -> tuple[Sequence[str], np.ndarray, np.ndarray]:
    """Distances between two labels of the same people, matched by file name and OKS."""
    import warnings

    import numpy as np

    from posekd.data import CocoKeypoints
    from posekd.metrics.errors import assign
    from posekd.names import match

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, other = CocoKeypoints(first), CocoKeypoints(second)
    records, repeats = one.records, other.records
    order = list(match(repeats.skeleton.keypoints, records.skeleton.keypoints))
    rows_of = {other.image_name(row).rsplit("/", 1)[-1]: row for row in range(repeats.num_images)}
    distances, areas = [], []
    for row in range(records.num_images):
        twin = rows_of.get(one.image_name(row).rsplit("/", 1)[-1])
        if twin is None:
            continue
        own = np.flatnonzero(records.image_rows == row)
        theirs = repeats.keypoints[repeats.image_rows == twin][:, order]
        boxes = records.boxes if records.stated_boxes is None else records.stated_boxes
        area = np.abs(boxes[own, 2:].astype(float)).prod(1)
        truth = records.keypoints[own].astype(float)
        for person, pose in assign(truth, area, theirs.astype(float), [0.1] * truth.shape[1]).items():
            both = (truth[person, :, 2] > 0) & (theirs[pose, :, 2] > 0)
            distance = np.linalg.norm(truth[person, :, :2] - theirs[pose, :, :2], axis=1)
            distances.append(np.where(both, distance, np.nan))
            areas.append(area[person])
    if not distances:
        raise ValueError(f"{second.annotations} labels no picture of {first.annotations} again (by file name)")
    return records.skeleton.keypoints, np.array(distances), np.array(areas)


def _of_teacher(data: CocoSettings, teacher: str) -> tuple[Sequence[str], np.ndarray, np.ndarray]:
    """Distances between labels and what a network finds."""
    from posekd.cli.eval import run_model
    from posekd.cli.eval_options import read_options
    from posekd.engine.judging import match_people

    words = [teacher, "--images", data.images, "--annotations", data.annotations, "--workers", "0"]
    source, report = run_model(read_options(words), teacher)
    found = match_people(source, report)
    if found is None:
        raise ValueError(f"{data.annotations} has no labels")
    return found.names, found.errors(), found.boxes[:, 2:].prod(1)


def _print(names: Sequence[str], found: Sigmas, *, repeated: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from posekd.metrics.sigmas import FEW

    console = Console()
    table = Table(box=None, pad_edge=False)
    table.add_column("keypoint", no_wrap=True)
    for heading in ("sigma", "95 % interval", "labels"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, value, low, high, count in zip(names, found.values, found.low, found.high, found.counts, strict=True):
        table.add_row(name, f"{value:.3f}", f"{low:.3f} to {high:.3f}", str(count))
    console.print(table)
    few = [name for name, count in zip(names, found.counts, strict=True) if count < FEW]
    if few:
        print(f"note: fewer than {FEW} distances, so hardly an estimate: {', '.join(few)}")
    if not repeated:
        print(
            "note: upper bounds: they hold the teacher's errors, too; on pictures that it has learnt, they are too low"
        )
    print(f"sigmas: [{', '.join(f'{value:.3f}' for value in found.values)}]")
