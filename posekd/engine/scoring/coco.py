"""Keypoint AP as the COCO server computes it (CrowdPose's if images have a crowd index), and its result files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.console import Console

from posekd.data import CocoSettings, CocoSource, PoseRecords, PoseSource
from posekd.engine.scoring.base import Metric, NotScoredError, Score
from posekd.files import write_atomically
from posekd.metrics import CocoResult, NoLabelsError, evaluate_people
from posekd.structures import Instances
from posekd.viz.tables import print_result


def coco_results(people: Instances, category_id: int = 1) -> list[dict[str, Any]]:
    """People in COCO's results format, in their order.

    Args:
        people: on the CPU.
        category_id: the label file's id of the category.

    Returns:
        `{image_id, category_id, keypoints: 3K numbers, score}`; coordinates to a thousandth of a pixel.
    """
    keypoints = people.keypoints.numpy().astype(np.float64)
    keypoints[..., :2] = keypoints[..., :2].round(3)
    return [
        {"image_id": image_id, "category_id": category_id, "keypoints": points.reshape(-1).tolist(), "score": score}
        for image_id, points, score in zip(people.image_ids.tolist(), keypoints, people.scores.tolist(), strict=True)
    ]


def write_results(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes results as a JSON file that the COCO server accepts, whole or not at all."""
    write_atomically(path, json.dumps(list(results)))


def category_id(truth: dict[str, Any]) -> int:
    """The label file's id of its first category; 1 where it lists none."""
    return int(truth["categories"][0]["id"]) if truth.get("categories") else 1


def _results(truth: dict[str, Any], people: Instances) -> list[dict[str, Any]]:
    """People as results; of several categories each has that of the box that was cropped."""
    results = coco_results(people, category_id(truth))
    if len(truth.get("categories", ())) > 1:
        categories = {a["id"]: a["category_id"] for a in truth["annotations"]}
        for result, sample in zip(results, people.sample_ids.tolist(), strict=True):
            result["category_id"] = categories[sample]
    return results


def _score(source: PoseSource, people: Instances) -> Score:
    truth = cast(CocoSource, source).coco_ground_truth()
    found, sigmas = _results(truth, people), source.records.skeleton.sigmas
    try:
        result = evaluate_people(truth, found, sigmas)
    except NoLabelsError:
        raise NotScoredError("no labels") from None
    return _with_notes(_as_score(result), _uncropped(truth, found, sigmas))


def _uncropped(truth: dict[str, Any], found: Sequence[dict[str, Any]], sigmas: Sequence[float]) -> str:
    """What the people are worth in the score who never went through the network, if there are any."""
    uncropped = set(truth.get("uncropped", ()))
    if not uncropped:
        return ""
    kept = [a for a in truth["annotations"] if a["id"] not in uncropped]
    reason = f"{len(uncropped)} labelled people have no crop (no area, or no box in the image) and count as missed"
    try:
        AP = evaluate_people({**truth, "annotations": kept}, found, sigmas).AP
    except NoLabelsError:
        return reason
    return f"{reason}: without them AP is {AP:.4f}"


def _with_notes(score: Score, *notes: str) -> Score:
    return replace(score, note="; ".join(note for note in (score.note, *notes) if note))


def _as_score(result: CocoResult) -> Score:
    return Score(result.numbers(), result, result.note)


def _write(source: PoseSource, people: Instances, path: Path) -> None:
    write_results(_results(cast(CocoSource, source).coco_ground_truth(), people), path)


def _check_file(source: PoseSource, path: Path) -> None:
    if path.suffix == ".mat":
        raise ValueError(f"{path}: this dataset's predictions are written as .json, not as .mat")


def _score_file(settings: CocoSettings, labels: PoseRecords | None, path: Path) -> Score:
    if settings.category is not None:
        raise ValueError(
            f"category: {settings.category!r} chooses whom to crop; a results file is scored on all of its labels' "
            "categories"
        )
    return _as_score(evaluate_people(settings.annotations, path, settings.sigmas))


def _values(score: Score) -> dict[str, Any]:
    numbers = dict(score.numbers)
    return {**numbers, **{name: value for name, value in asdict(score.result).items() if name not in numbers}}


def _show(score: Score, console: Console, title: str) -> None:
    print_result(
        replace(score.result, note=""), console, title=title
    )  # notes are printed once, together with the others


COCO_KEYPOINTS = Metric(
    scale=1.0,
    given=False,
    score=_score,
    write=_write,
    check_file=_check_file,
    score_file=_score_file,
    values=_values,
    show=_show,
    boxes="coco_boxes",
)
