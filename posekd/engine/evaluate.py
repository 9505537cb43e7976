"""Evaluation: runs a network on a dataset and scores the people found by the dataset's metrics."""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from posekd.codecs.reordered import in_order_of
from posekd.data import LoaderSettings, PackedLoader, PoseRecords, PoseSource
from posekd.engine import distributed
from posekd.engine.progress import counted
from posekd.engine.recipes.datasets import Dataset
from posekd.engine.scoring import METRICS, Metric, NotScoredError, Report, Score
from posekd.engine.videos import follow
from posekd.paradigms import Paradigm, paradigm_of
from posekd.paradigms.inference import find_in_batches, looker, open_batches, settings_for
from posekd.structures import InputSpec, Instances
from posekd.tracking import Look, TrackSettings, refuse_blind


class ResultsNotWrittenError(OSError):
    """The results file could not be written, and all else is done.

    Attributes:
        report: what `evaluate` would have returned.
    """

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


def evaluate(
    model: nn.Module,
    source: PoseSource,
    settings: Any = None,
    *,
    loader: LoaderSettings | None = None,
    spec: InputSpec | None = None,
    results_file: str | os.PathLike[str] | None = None,
    on_batch: Callable[[int, int], None] | None = None,
    tracking: TrackSettings | None = None,
) -> Report:
    """Runs a network over a dataset and scores it, on the device where the network is.

    In a group of processes each runs its share, and all get the same report.

    Args:
        model: of any paradigm; evaluated in eval mode and left in the mode it was in.
        source: the dataset; for a network that crops boxes, its boxes (labelled or detected) are cropped.
        settings: the paradigm's settings of inference; its defaults if None.
        loader: how batches are made.
        spec: the network's input; `model.spec` by default.
        results_file: where to write the people, in the form of the dataset's first metric; also for data without
            labels.
        on_batch: called with (rows done, total number of rows) after each batch; a row is a crop or an image.
        tracking: how people are followed over the videos of a dataset that has some; the defaults if None.

    Raises:
        ValueError: the network's output or paradigm does not fit the dataset.
        FloatingPointError: the network's output is not finite.
        BadImageError: an image cannot be read, and `loader.on_bad_image` is "refuse".
        ResultsNotWrittenError: the results file cannot be written; the error holds the report.
    """
    start = time.perf_counter()
    paradigm, records = paradigm_of(model), source.records
    settings = settings_for(paradigm, settings)
    who = f"the network {getattr(model, 'name', '')}".rstrip()
    model = in_order_of(model, getattr(model, "keypoint_names", None), records.skeleton.keypoints, who)
    refuse_unfit(source, paradigm.crops_boxes, results_file)
    look = looker(model, records.skeleton, settings, loader=loader, spec=spec)
    if records.videos is not None:
        refuse_blind(tracking or TrackSettings(), look)
    rank, world = distributed.rank(), distributed.world()
    batches = open_batches(model, source, settings, loader=loader, spec=spec, rank=rank, world=world)
    shown = counted(batches, len(batches.dataset), on_batch)
    found = find_in_batches(model, shown, records.skeleton, settings, spec=spec)
    found, skipped = _gather(found, records), _skipped(batches, paradigm.unit)
    return report_people(
        source,
        found,
        paradigm,
        settings,
        start=start,
        count=len(batches.dataset),
        note=skipped,
        results_file=results_file,
        tracking=tracking,
        look=look,
    )


def report_people(
    source: PoseSource,
    found: Instances,
    paradigm: Paradigm,
    settings: Any,
    *,
    start: float,
    count: int,
    note: str = "",
    results_file: str | os.PathLike[str] | None = None,
    tracking: TrackSettings | None = None,
    look: Look | None = None,
) -> Report:
    """Removes duplicates, follows people over videos, writes people and scores them, whoever has found them.

    Args:
        source: the dataset.
        found: all people, before duplicates are removed.
        paradigm: of what has found them.
        settings: the paradigm's settings of inference.
        start: `time.perf_counter()` when the search began.
        count: rows that were looked at.
        note: a remark to go before those of the metrics.
        results_file: see `evaluate`.
        tracking: see `evaluate`.
        look: finds people in boxes of an image, for `tracking.propagate`.

    Raises:
        ValueError: people should be looked for, and nothing can look.
        ResultsNotWrittenError: see `evaluate`.
    """
    records = source.records
    skeleton = records.skeleton
    people = paradigm.suppress(found, skeleton, settings)
    given = bool(records.metrics) and METRICS[records.metrics[0]].given
    ties = "" if given else _ties(found, people, lambda everybody: paradigm.suppress(everybody, skeleton, settings))
    if records.videos is not None:
        people = follow(source, people, tracking or TrackSettings(), look)
    told = found if given else people
    failure = _write(source, told, results_file) if results_file is not None and distributed.is_main() else None
    scores, notes = score(
        source, found, people, written=results_file is not None and failure is None, boxes=paradigm.finds_boxes
    )
    seconds = time.perf_counter() - start
    note = "; ".join(remark for remark in (note, ties, *notes) if remark)
    report = Report(scores, told, count, paradigm.unit, records.metrics, seconds, note)
    if failure is not None:
        raise ResultsNotWrittenError(f"{results_file} cannot be written: {failure}", report) from failure
    return report


def _write(source: PoseSource, people: Instances, file: str | os.PathLike[str]) -> OSError | None:
    """Writes the results file before people are scored, and gives the error if that fails: they still can be."""
    try:
        METRICS[source.records.metrics[0]].write(source, people, Path(file))
    except OSError as error:
        return error
    return None


def score(
    source: PoseSource, found: Instances, people: Instances, *, written: bool = False, boxes: bool = False
) -> tuple[dict[str, Score], list[str]]:
    """Scores people by each of the dataset's metrics.

    Args:
        source: the dataset.
        found: all people that the network has found, for metrics of given persons.
        people: those that `suppress` has kept, for the other metrics.
        written: whether the people have been written to a file, for the note.
        boxes: whether `found` has detected boxes, which are scored too.

    Returns:
        The scores by metric, without those that could score nothing, and remarks on the numbers.
    """
    otherwise = "results written, not scored" if written else "not scored"
    metrics = source.records.metrics
    scores, notes = _score_each(
        metrics, lambda metric: metric.score(source, found if metric.given else people), otherwise
    )
    of_boxes = [name for metric in metrics if (name := METRICS[metric].boxes) is not None] if boxes else []
    more, remarks = _score_each(of_boxes, lambda metric: metric.score(source, found), otherwise)
    return scores | more, notes + [note for note in remarks if note not in notes]


def score_file(dataset: Dataset, settings: Any, path: Path) -> tuple[dict[str, Score], list[str]]:
    """Scores a results file by each of a dataset's metrics, without a network or images.

    Args:
        dataset: the kind of dataset.
        settings: settings of the dataset; the images are not read.
        path: the results file.

    Returns:
        As `score`.

    Raises:
        ValueError, FileNotFoundError: labels or results that are missing or malformed.
    """
    labels = dataset.labels(settings) if dataset.labels is not None else None
    return _score_each(dataset.metrics, lambda metric: metric.score_file(settings, labels, path), "not scored")


def _score_each(
    metrics: Sequence[str], ask: Callable[[Metric], Score], otherwise: str
) -> tuple[dict[str, Score], list[str]]:
    scores: dict[str, Score] = {}
    notes: list[str] = []
    for name in metrics:
        try:
            scores[name] = ask(METRICS[name])
            note = scores[name].note
        except NotScoredError as error:
            note = f"{error}: {otherwise}"
        notes += [note] if note and note not in notes else []
    return scores, notes


def refuse_unfit(source: PoseSource, crops_boxes: bool, results_file: str | os.PathLike[str] | None) -> None:
    """Refuses what cannot be evaluated, before any work is done.

    Raises:
        ValueError, IsADirectoryError: a network that finds people by itself on a dataset whose metric scores given
            persons, or a results file that could not be written.
    """
    metrics = source.records.metrics
    if metrics and METRICS[metrics[0]].given and not crops_boxes:
        raise ValueError(
            f"this dataset is scored by {metrics[0]}, person by person, and a network that sees whole images does not "
            "say which person it has found: evaluate it on crops"
        )
    if results_file is not None:
        if not metrics:
            raise ValueError(f"{results_file}: this dataset names no metric, so it has no form of results")
        if Path(results_file).is_dir() and not METRICS[metrics[0]].folder:
            raise IsADirectoryError(f"{results_file} is a folder: give the name of a file")
        METRICS[metrics[0]].check_file(source, Path(results_file))


def _skipped(batches: PackedLoader, unit: str) -> str:
    skipped = sum(distributed.gather(batches.skipped))
    return f"{skipped} {unit}s were skipped: unreadable images" if skipped else ""


def _ties(found: Instances, people: Instances, suppress: Callable[[Instances], Instances]) -> str:
    """A remark where the order of the people found decided whom the removal of duplicates has kept.

    That is so where a pose and one like it have equal scores. It shows by removing once more, the other way round, in
    the images where somebody was removed; the choice between two copies of the same pose makes no difference.

    Args:
        found: everybody, before duplicates were removed.
        people: those who were kept.
        suppress: removes duplicates.
    """
    before, after = (Counter(instances.image_ids.tolist()) for instances in (found, people))
    reduced = torch.tensor([before[i] > after[i] for i in found.image_ids.tolist()], dtype=torch.bool)
    if not reduced.any():
        return ""
    others = suppress(found.take(torch.nonzero(reduced).flatten().flip(0)))
    poses, other_poses = _poses_by_image(people), _poses_by_image(others)
    differ = [image for image, kept in other_poses.items() if kept != poses[image]]
    if not differ:
        return ""
    return (
        f"in {len(differ)} images people alike have equal scores, and their order decided whom OKS-NMS has kept: first "
        f"image {differ[0]}"
    )


def _poses_by_image(people: Instances) -> dict[int, Counter[bytes]]:
    poses: dict[int, Counter[bytes]] = defaultdict(Counter)
    for image, points in zip(people.image_ids.tolist(), people.keypoints.numpy(), strict=True):
        poses[image][points.tobytes()] += 1
    return poses


def _gather(found: Instances, records: PoseRecords) -> Instances:
    """The people of all processes in the dataset's order, as a single process would have found them."""
    if distributed.world() == 1:
        return found
    everybody = Instances.concatenate(distributed.gather(found), records.skeleton.num_keypoints)
    place = {sample: row for row, sample in enumerate(records.sample_ids.tolist())}
    order = np.argsort([place.get(sample, 0) for sample in everybody.sample_ids.tolist()], kind="stable")
    return everybody.take(torch.from_numpy(order))
