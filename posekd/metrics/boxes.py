"""Box AP as the COCO server computes it for the persons of a keypoint file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from posekd.metrics.coco import run_cocoeval
from posekd.metrics.coco_files import Labels, Source, read_labels

_STATS = {"AP": 0, "AP50": 1, "AP75": 2, "APS": 3, "APM": 4, "APL": 5, "AR": 8}
BOX_NUMBERS = tuple(f"box {name}" for name in _STATS)


@dataclass(frozen=True)
class BoxResult:
    """Numbers in 0..1, or -1 if no box of that size is labelled (official rule).

    Attributes:
        AP: precision averaged over IoU thresholds 0.50, 0.55 ... 0.95, with at most 100 boxes per image.
        AP50: at threshold 0.50.
        AP75: at threshold 0.75.
        APS: for areas below 32^2 square pixels.
        APM: for areas of 32^2 to 96^2.
        APL: for areas above that.
        AR: recall with 100 boxes per image, averaged likewise.
        labelled: boxes of people that are scored, those without labelled keypoints among them; crowds are not.
        predictions: boxes that were scored.
    """

    AP: float
    AP50: float
    AP75: float
    APS: float
    APM: float
    APL: float
    AR: float
    labelled: int
    predictions: int

    def numbers(self) -> dict[str, float]:
        """The numbers by name, `box AP` first."""
        return {name: getattr(self, key) for name, key in zip(BOX_NUMBERS, _STATS, strict=True)}


def evaluate_boxes(ground_truth: Mapping[str, Any] | Source, boxes: Sequence[Mapping[str, Any]]) -> BoxResult:
    """Scores boxes as the COCO server does (pycocotools, `iouType="bbox"`). Nothing is printed.

    Args:
        ground_truth: a COCO keypoint file, or its content; all its people with a box count, with keypoints or without.
        boxes: `{image_id, category_id, bbox: (x, y, width, height), score}`.

    Raises:
        NoLabelsError: the ground truth has no annotations.
        ValueError: labels that cannot be scored, or a box that is not finite or of an image that is not listed.
    """
    labels = read_labels(ground_truth)
    with_box = tuple(a for a in labels.annotations if a["bbox"][2] > 0 and a["bbox"][3] > 0)
    known = set(labels.image_ids)
    for i, box in enumerate(boxes):
        if box["image_id"] not in known:
            raise ValueError(f"box {i} is on image {box['image_id']}, which {labels.name} does not list")
        if not np.isfinite([*box["bbox"], box["score"]]).all():
            raise ValueError(f"box {i} (image {box['image_id']}) is not finite: {box['bbox']}, score {box['score']}")
    scored = Labels(labels.name, labels.image_ids, labels.categories, labels.keypoints, with_box)
    stats = run_cocoeval(scored, [dict(box) for box in boxes], None).stats
    numbers = {name: float(stats[place]) for name, place in _STATS.items()}
    return BoxResult(**numbers, labelled=sum(not a["iscrowd"] for a in with_box), predictions=len(boxes))
