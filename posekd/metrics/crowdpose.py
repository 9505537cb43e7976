"""The CrowdPose metric: COCO's AP with areas from boxes, and AP by how crowded an image is.

The rules are those of the official `crowdposetools` (Jeff-sjtu/CrowdPose, cocoeval.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from posekd.coco_rules import AREA_OF_BOX, numbers, read_json
from posekd.metrics.coco import CocoResult, evaluate_coco, score_labels
from posekd.metrics.coco_files import Source, read_labels, read_results, resolve_sigmas
from posekd.metrics.coco_notes import OFFICIAL_MAX_DETECTIONS

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
    max_detections: int = OFFICIAL_MAX_DETECTIONS,
    whole_body: bool = False,
) -> CocoResult:
    """`evaluate_crowdpose` where the images have a crowd index, else `evaluate_coco`; arguments as theirs."""
    truth = ground_truth if isinstance(ground_truth, Mapping) else read_json(ground_truth)
    images = truth.get("images") if isinstance(truth, Mapping) else None
    crowd = isinstance(images, list) and any(isinstance(i, Mapping) and "crowdIndex" in i for i in images)
    if crowd:
        return evaluate_crowdpose(ground_truth, results, sigmas, max_detections)
    return evaluate_coco(ground_truth, results, sigmas, max_detections, whole_body)


def evaluate_crowdpose(
    ground_truth: Mapping[str, Any] | Source,
    results: Sequence[Mapping[str, Any]] | Source,
    sigmas: Sequence[float] | None = None,
    max_detections: int = OFFICIAL_MAX_DETECTIONS,
) -> CrowdPoseResult:
    """Scores keypoint results as CrowdPose does.

    Args:
        ground_truth: a CrowdPose file (COCO's format, `crowdIndex` with every image), or its content.
        results: as for `evaluate_coco`.
        sigmas: K OKS constants; CrowdPose's for its 14 keypoints if not given.
        max_detections: as for `evaluate_coco`.

    Raises:
        NoLabelsError: the ground truth has no annotations.
        ValueError: an image without crowd index, and whatever `evaluate_coco` refuses.
    """
    labels = read_labels(ground_truth, AREA_OF_BOX)
    truth = ground_truth if isinstance(ground_truth, Mapping) else read_json(ground_truth)
    crowds = {}
    for image in truth["images"]:
        if "crowdIndex" not in image:
            raise ValueError(f"image {image.get('id')} has no crowdIndex: not a CrowdPose file")
        (crowds[image["id"]],) = numbers([image["crowdIndex"]], 1, f"{labels.name}: image {image['id']}: crowdIndex")
    constants = resolve_sigmas(labels, sigmas)
    found = read_results(results, labels)
    whole = score_labels(labels, found, constants, max_detections)
    values: dict[str, Any] = {f.name: getattr(whole, f.name) for f in fields(CocoResult)}
    for level, (low, high) in LEVELS.items():
        ids = {image for image, index in crowds.items() if low <= index < high}
        part = replace(
            labels,
            image_ids=tuple(i for i in labels.image_ids if i in ids),
            annotations=tuple(a for a in labels.annotations if a["image_id"] in ids),
        )
        values[f"AP_{level}"] = (
            score_labels(part, [r for r in found if r["image_id"] in ids], constants, max_detections).AP
            if part.annotations
            else -1.0
        )
    return CrowdPoseResult(**values)
