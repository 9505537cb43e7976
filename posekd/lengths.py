"""Reference lengths of people in pixels, by which PCK divides distances."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from posekd.skeleton import Skeleton

HEAD_SCALE = 0.6  # MPII: the head size is this times the diagonal of the head box


def head_sizes(boxes: Any) -> NDArray[np.float64]:
    """MPII's head sizes: 0.6 times the diagonal of the head box.

    Args:
        boxes: `[N, 4]` (x1, y1, x2, y2), NaN for people without one.

    Returns:
        float64 `[N]`, NaN for people without a box or with an empty one.

    Raises:
        ValueError: another shape.
    """
    corners = np.asarray(boxes, np.float64)
    if corners.ndim != 2 or corners.shape[1] != 4:
        raise ValueError(f"head boxes must be [N, 4] (x1, y1, x2, y2), got shape {corners.shape}")
    sizes = HEAD_SCALE * np.hypot(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1])
    return np.where(sizes > 0, sizes, np.nan)


def torso_lengths(keypoints: Any, skeleton: Skeleton) -> NDArray[np.float64]:
    """Distance from left shoulder to right hip: LSP's reference length, also that of ELPN's Equation 5.

    Args:
        keypoints: `[N, K, 3]` (x, y, visibility).
        skeleton: the K keypoints; it must have `left_shoulder` and `right_hip`.

    Returns:
        float64 `[N]` in pixels, NaN where one of the two is not labelled or both lie on one point.

    Raises:
        ValueError: another shape.
    """
    points = np.asarray(keypoints, np.float64)
    K = skeleton.num_keypoints
    if points.ndim != 3 or points.shape[1:] != (K, 3):
        raise ValueError(f"keypoints of {skeleton.name} must be [N, {K}, 3] (x, y, visibility), got {points.shape}")
    ends = [skeleton.keypoints.index(name) for name in ("left_shoulder", "right_hip")]
    (a, b), labelled = points[:, ends, :2].swapaxes(0, 1), (points[:, ends, 2] > 0).all(axis=1)
    lengths = np.hypot(*(a - b).T)
    return np.where(labelled & (lengths > 0), lengths, np.nan)
