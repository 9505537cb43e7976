"""What is said about COCO's numbers where the rule's fine print has decided them. Nothing here changes a number."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

OFFICIAL_MAX_DETECTIONS = 20
"""Predictions of an image and category that the official rule counts."""
LEAST_TOLERANCE = 0.5
"""Pixels. Labels stand on whole pixels, so an error of this size cannot be avoided."""


def notes(
    annotations: Sequence[Mapping[str, Any]],
    detections: Sequence[Mapping[str, Any]],
    sigmas: Sequence[float],
    max_detections: int,
) -> str:
    """All remarks on an evaluation, or an empty string.

    Args:
        annotations: the people that are scored.
        detections: the results.
        sigmas: K OKS constants.
        max_detections: predictions of an image and category that are counted.
    """
    if not annotations:
        return "no labelled person in these images: every number is -1"
    if not detections:
        return f"no predictions for {len(annotations)} labelled people: AP and AR are 0"
    found = (
        _other_rule(max_detections),
        _too_many(detections, max_detections),
        _too_small(annotations, sigmas),
        _of_score_zero(detections),
        _without_keypoint_scores(detections),
    )
    return "; ".join(filter(None, found))


def tolerance(area: float, sigma: float) -> float:
    """The error in pixels that halves a keypoint's similarity, `2 sigma sqrt(2 ln 2 area)`.

    Beyond it an OKS of 0.5, the loosest threshold of AP, is out of reach for a person whose keypoints are all this far
    off and no more forgiving.

    Args:
        area: of the person in square pixels, not negative.
        sigma: OKS constant.
    """
    return 2 * sigma * math.sqrt(2 * math.log(2) * area)


def _other_rule(max_detections: int) -> str:
    if max_detections == OFFICIAL_MAX_DETECTIONS:
        return ""
    return (
        f"up to {max_detections} predictions of each image are counted, where the official rule counts "
        f"{OFFICIAL_MAX_DETECTIONS}: not to be compared with published numbers"
    )


def _too_many(detections: Sequence[Mapping[str, Any]], max_detections: int) -> str:
    counts = Counter((d["image_id"], d["category_id"]) for d in detections)
    crowded = list(dict.fromkeys(image for (image, _), n in counts.items() if n > max_detections))
    if not crowded:
        return ""
    shown = ", ".join(map(str, crowded[:5])) + (", ..." if len(crowded) > 5 else "")
    rule = "the official rule counts" if max_detections == OFFICIAL_MAX_DETECTIONS else "are counted"
    return (
        f"{len(crowded)} images have more than {max_detections} predictions, of which {rule} those with the highest "
        f"scores (--max-dets counts more): ids {shown}"
    )


def _too_small(annotations: Sequence[Mapping[str, Any]], sigmas: Sequence[float]) -> str:
    """People whose most forgiving labelled keypoint counts half or less when it is `LEAST_TOLERANCE` off."""
    widths = np.asarray(sigmas)
    small = []
    for annotation in annotations:
        labelled = np.asarray(annotation["keypoints"], np.float64)[2::3] > 0
        widest = float(widths[labelled].max()) if labelled.any() else 0.0  # nobody labelled: scored by the box
        if widest and tolerance(max(annotation["area"], 0.0), widest) < LEAST_TOLERANCE:
            small.append(annotation)
    if not small:
        return ""
    first = small[0]
    return (
        f"{len(small)} labelled people have areas so small that being half a pixel off misses OKS 0.5 (are the areas "
        f"in square pixels?): first annotation {first['source_id']} (image {first['image_id']}), area "
        f"{first['area']:g}"
    )


def _of_score_zero(detections: Sequence[Mapping[str, Any]]) -> str:
    zero = [d for d in detections if d["score"] == 0]
    if not zero:
        return ""
    return (
        f"{len(zero)} of {len(detections)} predictions have the score 0, so they rank last and their order decides "
        f"among them: first in image {zero[0]['image_id']}"
    )


def _without_keypoint_scores(detections: Sequence[Mapping[str, Any]]) -> str:
    """Predictions that xtcocotools drops before it begins."""
    zero = [d for d in detections if not np.asarray(d["keypoints"], np.float64)[2::3].any()]
    if not zero:
        return ""
    return (
        f"{len(zero)} of {len(detections)} predictions give all their keypoints the score 0: counted here, as "
        f"pycocotools does; MMPose's xtcocotools leaves them out: first in image {zero[0]['image_id']}"
    )
