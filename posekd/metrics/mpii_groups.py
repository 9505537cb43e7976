"""MPII's multi-person AP: keypoints of groups of people, by the official assignment (`metrics.people_ap`).

14 keypoints count (no pelvis and no thorax), over people with a box of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from posekd.metrics.people_ap import KeypointRanking, group_means, head_distances, with_mean
from posekd.skeleton import MPII

Floats = NDArray[np.float64]

JOINTS = tuple(k for k, name in enumerate(MPII.keypoints) if name not in ("pelvis", "thorax"))
"""Indices of the keypoints that are scored."""

_NAMES = [MPII.keypoints[k] for k in JOINTS]
_PARTS = {"Shou": "shoulder", "Elb": "elbow", "Wri": "wrist", "Hip": "hip", "Knee": "knee", "Ank": "ankle"}
COLUMNS: dict[str, tuple[int, ...]] = {
    "Head": (_NAMES.index("upper_neck"), _NAMES.index("head_top")),
    **{column: (_NAMES.index(f"left_{part}"), _NAMES.index(f"right_{part}")) for column, part in _PARTS.items()},
}
"""The columns of the papers' tables: each the mean of its keypoints."""


@dataclass(frozen=True)
class GroupsResult:
    """Percent, `[15]` each: the 14 keypoints in the order of `JOINTS`, then their mean; NaN where nothing is labelled.

    Attributes:
        AP: average precision.
        precision: of all predicted keypoints.
        recall: of all labelled keypoints.
        groups: how many.
        people: labelled people in them.
    """

    AP: Floats
    precision: Floats
    recall: Floats
    groups: int
    people: int

    def totals(self) -> dict[str, NDArray[np.float64]]:
        """Precision and recall of all predicted keypoints."""
        return {"precision": self.precision, "recall": self.recall}

    def columns(self) -> dict[str, float]:
        """AP in the papers' columns: Head Shou Elb Wri Hip Knee Ank, and the mean of all keypoints."""
        return {**group_means(self.AP, COLUMNS), "mAP": float(self.AP[-1])}


def evaluate_groups(
    labels: Sequence[tuple[Floats, NDArray[np.int64], Floats]], predictions: Sequence[Floats]
) -> GroupsResult:
    """Scores the people found in groups.

    Args:
        labels: of each group `[n, 16, 2]` keypoints, `[n, 16]` visibility (0 for unlabelled), `[n]` head sizes in
            pixels, all known.
        predictions: of each group `[m, 16, 3]` (x, y, score); (0, 0, 0) where a keypoint was not found.

    Raises:
        ValueError: other groups, or a head size that is none.
    """
    if len(labels) != len(predictions):
        raise ValueError(f"{len(labels)} groups are labelled, {len(predictions)} predicted")
    ranking, own = KeypointRanking(len(JOINTS)), list(JOINTS)
    for number, ((points, visibility, heads), found) in enumerate(zip(labels, predictions, strict=True)):
        if not (heads > 0).all():
            raise ValueError(f"group {number}: head sizes must be above 0, got {heads.tolist()}")
        there, seen = visibility[:, own] > 0, (found[:, own] != 0).any(-1)
        gaps = head_distances(points[:, own], there, found[:, own, :2], seen, heads)
        ranking.add(there, seen, found[:, own, 2], gaps)
    AP, precision, recall = map(with_mean, ranking.result())
    return GroupsResult(AP, precision, recall, len(labels), sum(len(points) for points, _, _ in labels))
