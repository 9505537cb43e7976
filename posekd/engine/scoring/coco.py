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
from posekd.metrics.coco_notes import OFFICIAL_MAX_DETECTIONS
from posekd.structures import Instances
from posekd.viz.tables import print_result
from posekd.whole_body import split_result


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
    results, own = coco_results(people, category_id(truth)), truth.get("sample_categories", {})
    for result, sample in zip(results, people.sample_ids.tolist(), strict=True):
        result["category_id"] = own.get(sample, result["category_id"])
    return results


def _as_one_category(truth: dict[str, Any], people: Instances) -> tuple[dict[str, Any], str]:
    """The truth with all categories as the first, and a remark, where people were found whose category nobody knows.

    That is so where a network sees whole images: no box says what it has found there.
    """
    own = truth.get("sample_categories", {})
    if not own or all(sample in own for sample in people.sample_ids.tolist()):
        return truth, ""
    first = truth["categories"][0]
    annotations = [{**a, "category_id": first["id"]} for a in truth["annotations"]]
    count = len(truth["categories"])
    note = f"the network does not tell the {count} categories apart: all are scored as one, {first.get('name')!r}"
    return {**truth, "categories": [first], "annotations": annotations}, note


def truth_and_results(source: PoseSource, people: Instances) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """COCO's ground truth of a dataset, and the people found in the form of its results, in the same categories.

    A dataset that is not in COCO's form is brought into it (`truth_of_records`).
    """
    ask = getattr(source, "coco_ground_truth", None)
    given: dict[str, Any] = truth_of_records(source.records) if ask is None else ask()
    truth, _ = _as_one_category(given, people)
    return truth, _results(truth, people)


def truth_of_records(records: PoseRecords) -> dict[str, Any]:
    """COCO's ground truth made of any dataset's records: all labelled people, of one category.

    Areas are those of the boxes, which the OKS of these people depends on.
    """
    sizes = zip(records.image_ids.tolist(), records.image_sizes.tolist(), strict=True)
    images = [{"id": i, "height": height, "width": width, "file_name": str(i)} for i, (height, width) in sizes]
    annotations = []
    for row in np.flatnonzero((records.keypoints[..., 2] > 0).any(1)).tolist():
        points, box = records.keypoints[row].astype(float), records.boxes[row].astype(float)
        annotations.append(
            {
                "id": int(records.sample_ids[row]),
                "image_id": int(records.image_ids[records.image_rows[row]]),
                "category_id": 1,
                "iscrowd": 0,
                "keypoints": points.reshape(-1).tolist(),
                "num_keypoints": int((points[:, 2] > 0).sum()),
                "bbox": box.tolist(),
                "area": float(box[2] * box[3]),
            }
        )
    category = {"id": 1, "name": records.skeleton.name, "keypoints": list(records.skeleton.keypoints)}
    return {"images": images, "annotations": annotations, "categories": [category]}


def _score(source: PoseSource, people: Instances) -> Score:
    truth, note = _as_one_category(cast(CocoSource, source).coco_ground_truth(), people)
    found, sigmas = _results(truth, people), source.records.skeleton.sigmas
    try:
        result = evaluate_people(truth, found, sigmas, truth.get("max_detections", OFFICIAL_MAX_DETECTIONS))
    except NoLabelsError:
        raise NotScoredError("no labels") from None
    return _with_notes(_as_score(result), _uncropped(truth, found, sigmas), note)


def _uncropped(truth: dict[str, Any], found: Sequence[dict[str, Any]], sigmas: Sequence[float]) -> str:
    """What the people are worth in the score who never went through the network, if there are any."""
    uncropped = set(truth.get("uncropped", ()))
    if not uncropped:
        return ""
    most = truth.get("max_detections", OFFICIAL_MAX_DETECTIONS)
    kept = [a for a in truth["annotations"] if a["id"] not in uncropped]
    reason = f"{len(uncropped)} labelled people have no crop (no area, or no box in the image) and count as missed"
    try:
        AP = evaluate_people({**truth, "annotations": kept}, found, sigmas, most).AP
    except NoLabelsError:
        return reason
    return f"{reason}: without them AP is {AP:.4f}"


def _with_notes(score: Score, *notes: str) -> Score:
    return replace(score, note="; ".join(note for note in (score.note, *notes) if note))


def _as_score(result: CocoResult) -> Score:
    return Score(result.numbers(), result, result.note)


def _write(source: PoseSource, people: Instances, path: Path) -> None:
    truth = cast(CocoSource, source).coco_ground_truth()
    results = _results(truth, people)
    write_results([split_result(r) for r in results] if truth.get("whole_body") else results, path)


def _check_file(source: PoseSource, path: Path) -> None:
    if path.suffix == ".mat":
        raise ValueError(f"{path}: this dataset's predictions are written as .json, not as .mat")


def _score_file(settings: CocoSettings, labels: PoseRecords | None, path: Path) -> Score:
    if settings.category is not None:
        raise ValueError(
            f"category: {settings.category!r} chooses whom to crop; a results file is scored on all of its labels' "
            "categories"
        )
    rules = settings.sigmas, settings.max_detections, settings.whole_body
    return _as_score(evaluate_people(settings.annotations, path, *rules))


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
