"""Box AP of a network that detects people, from the same run as its keypoint AP."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from posekd.data import CocoSettings, CocoSource, PoseRecords, PoseSource
from posekd.engine.scoring.base import Metric, NotScoredError, Score
from posekd.engine.scoring.coco import category_id, write_results
from posekd.metrics import BoxResult, NoLabelsError, evaluate_boxes
from posekd.structures import Instances
from posekd.viz.tables import print_boxes


def box_results(people: Instances, category: int = 1) -> list[dict[str, Any]]:
    """Boxes in COCO's results format, in their order; coordinates to a thousandth of a pixel."""
    boxes = people.boxes.double().numpy().round(3)
    return [
        {"image_id": image_id, "category_id": category, "bbox": box.tolist(), "score": score}
        for image_id, box, score in zip(people.image_ids.tolist(), boxes, people.box_scores.tolist(), strict=True)
    ]


def _score(source: PoseSource, people: Instances) -> Score:
    truth = cast(CocoSource, source).coco_ground_truth()
    try:
        result = evaluate_boxes(truth, box_results(people, category_id(truth)))
    except NoLabelsError:
        raise NotScoredError("no labels") from None
    return Score(result.numbers(), result)


def _write(source: PoseSource, people: Instances, path: Path) -> None:
    write_results(box_results(people, category_id(cast(CocoSource, source).coco_ground_truth())), path)


def _check_file(source: PoseSource, path: Path) -> None:
    if path.suffix == ".mat":
        raise ValueError(f"{path}: boxes are written as .json, not as .mat")


def _score_file(settings: CocoSettings, labels: PoseRecords | None, path: Path) -> Score:
    raise NotScoredError(f"{path} holds keypoints, and boxes are scored with the network that finds them")


def _values(score: Score) -> dict[str, Any]:
    return asdict(cast(BoxResult, score.result))


def _show(score: Score, console: Console, title: str) -> None:
    print_boxes(score.result, console)


COCO_BOXES = Metric(
    scale=1.0,
    given=False,
    score=_score,
    write=_write,
    check_file=_check_file,
    score_file=_score_file,
    values=_values,
    show=_show,
)
