"""The CrowdPose metric: COCO's AP with areas from boxes, and AP by how crowded an image is.

The rules are those of the official `crowdposetools` (Jeff-sjtu/CrowdPose, cocoeval.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any

from posekd.metrics.coco import CocoResult, evaluate_coco
from posekd.metrics.coco_files import NoLabelsError, Source, read_json

AREA_OF_BOX = 0.53  # a person's area as a share of the box
LEVELS = {"easy": (-math.inf, 0.2), "medium": (0.2, 0.8), "hard": (0.8, math.inf)}
"""Level -> crowd index from (inclusive) and to (exclusive). The paper says 0.1 for the first border, its code 0.2."""


@dataclass(frozen=True)
class CrowdPoseResult(CocoResult):
    """As `CocoResult`, and AP by level (-1 if no person is labelled); CrowdPose does not report by area.

    Attributes:
        AP_easy: of images with a crowd index below 0.2.
        AP_medium: from 0.2 to below 0.8.
        AP_hard: from 0.8.
    """

    AP_easy: float = -1.0
    AP_medium: float = -1.0
    AP_hard: float = -1.0

    def numbers(self) -> dict[str, float]:
        """The nine numbers by name, in the order of the official table."""
        names = ("AP", "AP50", "AP75", "AR", "AR50", "AR75", "AP_easy", "AP_medium", "AP_hard")
        return {name: getattr(self, name) for name in names}


def evaluate_people(
    ground_truth: Mapping[str, Any] | Source,
    results: Sequence[Mapping[str, Any]] | Source,
    sigmas: Sequence[float] | None = None,
) -> CocoResult:
    """`evaluate_crowdpose` where the images have a crowd index, else `evaluate_coco`; arguments as theirs."""
    truth = ground_truth if isinstance(ground_truth, Mapping) else read_json(ground_truth)
    crowd = isinstance(truth, Mapping) and any("crowdIndex" in image for image in truth.get("images", ()))
    return evaluate_crowdpose(truth, results, sigmas) if crowd else evaluate_coco(ground_truth, results, sigmas)


def evaluate_crowdpose(
    ground_truth: Mapping[str, Any] | Source,
    results: Sequence[Mapping[str, Any]] | Source,
    sigmas: Sequence[float] | None = None,
) -> CrowdPoseResult:
    """Scores keypoint results as CrowdPose does.

    Args:
        ground_truth: a CrowdPose file (COCO's format, `crowdIndex` with every image), or its content.
        results: as for `evaluate_coco`.
        sigmas: K OKS constants; CrowdPose's for its 14 keypoints if not given.

    Raises:
        NoLabelsError: the ground truth has no annotations.
        ValueError: an image without crowd index, and whatever `evaluate_coco` refuses.
    """
    truth = ground_truth if isinstance(ground_truth, Mapping) else read_json(ground_truth)
    found: Any = read_json(results) if isinstance(results, str | PathLike) else results
    for image in truth.get("images", ()):
        if "crowdIndex" not in image:
            raise ValueError(f"image {image.get('id')} has no crowdIndex: not a CrowdPose file")
    people = [{**a, "area": a["bbox"][2] * a["bbox"][3] * AREA_OF_BOX} for a in truth.get("annotations") or ()]
    whole = evaluate_coco({**truth, "annotations": people}, found, sigmas)
    numbers: dict[str, Any] = {f.name: getattr(whole, f.name) for f in fields(CocoResult)}
    for level, (low, high) in LEVELS.items():
        images = [image for image in truth["images"] if low <= image["crowdIndex"] < high]
        ids = {image["id"] for image in images}
        part = {**truth, "images": images, "annotations": [a for a in people if a["image_id"] in ids]}
        try:
            numbers[f"AP_{level}"] = evaluate_coco(part, [r for r in found if r["image_id"] in ids], sigmas).AP
        except NoLabelsError:
            numbers[f"AP_{level}"] = -1.0
    return CrowdPoseResult(**numbers)
