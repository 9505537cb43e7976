"""A detector's result file in HRNet's format: a list of `image_id`, `category_id`, `bbox`, `score`."""

from __future__ import annotations

import warnings
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from posekd import coco_rules
from posekd.coco_rules import Remarks
from posekd.data.sources.coco_json import finite_numbers, load_json


@dataclass(frozen=True)
class Detection:
    """A box that a detector has found.

    Attributes:
        image_id: of its image.
        row: in the file.
        category_id: what it is of.
        box: (x, y, width, height) in pixels.
        score: in the detector's units.
    """

    image_id: int
    row: int
    category_id: int
    box: tuple[float, float, float, float]
    score: float


def read_detections(
    file: Path, images: Container[int], categories: Container[int], threshold: float, listed: str | None
) -> list[Detection]:
    """The detections of some categories on some images that score `threshold` or more.

    Args:
        file: the file.
        images: ids.
        categories: ids.
        threshold: in the detector's units.
        listed: the file that lists the images, if a detection on another one is worth a warning.

    Raises:
        FileNotFoundError, ValueError: the file is missing or malformed; the message names file and detection.
    """
    detections = load_json(file, "detections")
    if not isinstance(detections, list):
        raise ValueError(f"{file}: a detection file is a list of detections, this is a {type(detections).__name__}")
    found, unlisted = [], 0
    left_out: Remarks = {}
    for row, detection in enumerate(detections):
        who = f"{file}: detection {row}"
        if not isinstance(detection, dict) or not {"image_id", "category_id", "bbox", "score"} <= detection.keys():
            raise ValueError(f"{who} must have image_id, category_id, bbox and score, got {detection!r:.120}")
        for key in ("image_id", "category_id"):
            detection[key] = coco_rules.whole(detection[key], f"{who}: {key}")
        if detection["category_id"] not in categories:
            continue
        (score,) = finite_numbers([detection["score"]], 1, f"{who}: score")
        x, y, w, h = finite_numbers(detection["bbox"], 4, f"{who}: bbox")
        if detection["image_id"] not in images:
            unlisted += listed is not None
        elif w < 0 or h < 0 or w + h == 0:
            coco_rules.remark(left_out, "the box has no area: left out", f"{who} (image {detection['image_id']})")
        elif score >= threshold:
            found.append(Detection(detection["image_id"], row, detection["category_id"], (x, y, w, h), score))
        elif score == 0:  # others below the threshold are what it is for
            reason = f"the score is 0, below detection_threshold {threshold:g}: left out"
            coco_rules.remark(left_out, reason, f"{who} (image {detection['image_id']})")
    coco_rules.tell(left_out)
    if unlisted:
        warnings.warn(
            f"{file}: {unlisted} detections are on images that {listed} does not list: left out.",
            stacklevel=4,
        )
    return found
