"""Object keypoint similarity and the two rules that turn top-down poses into detections.

The similarity is that of the COCO keypoint task (cocodataset/cocoapi, `COCOeval.computeOks`); duplicate
removal and rescoring are those of HRNet's evaluation, which SimpleBaseline, FPD, ELPN and MAPD share. Pairs of poses
and duplicates are the work of `posekd.ops`; here is what evaluation, which lives in NumPy, puts around it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from posekd import ops

Floats = NDArray[np.float64]

_EPS = float(np.spacing(1.0))  # the official code adds this to an area


def keypoint_similarity(points: ArrayLike, others: ArrayLike, areas: ArrayLike, sigmas: ArrayLike) -> Floats:
    """Similarity of corresponding keypoints, `exp(-d^2 / (2 area (2 sigma)^2))`.

    Args:
        points: `[..., K, >=2]` (x, y) in pixels; further columns are ignored.
        others: the same, broadcast against `points`.
        areas: `[...]` squared object scale in square pixels, broadcast against the leading axes.
        sigmas: `[K]` OKS constants.

    Returns:
        float64 `[..., K]` in 0..1; 1 where the keypoints coincide.
    """
    a = np.asarray(points, dtype=np.float64)[..., :2]
    b = np.asarray(others, dtype=np.float64)[..., :2]
    variances = (2 * np.asarray(sigmas, dtype=np.float64)) ** 2
    area = np.asarray(areas, dtype=np.float64)[..., None] + _EPS
    squared = ((a - b) ** 2).sum(axis=-1)
    return np.exp(-squared / variances / area / 2)


def oks(a: ArrayLike, b: ArrayLike, areas_a: ArrayLike, areas_b: ArrayLike, sigmas: ArrayLike) -> Floats:
    """OKS between predicted poses: the mean similarity of all K keypoints.

    The area of a pair is the mean of the two areas, as in HRNet's NMS. (Against labels, pycocotools takes the
    label's area and the labelled keypoints only: see `posekd.metrics.coco`.)

    Args:
        a: `[N, K, >=2]` (x, y) in pixels.
        b: `[M, K, >=2]`.
        areas_a: `[N]` in square pixels.
        areas_b: `[M]`.
        sigmas: `[K]`.

    Returns:
        float64 `[N, M]` in 0..1.
    """
    similarities: Floats = ops.oks(*map(_tensor, (a, b, areas_a, areas_b, sigmas))).numpy()
    return similarities


def oks_nms(
    keypoints: ArrayLike,
    scores: ArrayLike,
    areas: ArrayLike,
    threshold: float = 0.9,
    *,
    sigmas: ArrayLike,
) -> NDArray[np.int64]:
    """Greedy removal of duplicate poses of one image: `posekd.ops.oks_nms`, where the rule is described, for arrays.

    Poses that are not finite are an error here (the op removes them): a network that gives them must not be scored.

    Args:
        keypoints: `[N, K, >=2]` (x, y) in pixels. All K keypoints count, seen or not.
        scores: `[N]`.
        areas: `[N]` in square pixels.
        threshold: in 0..1; 1 removes nothing.
        sigmas: `[K]` OKS constants.

    Returns:
        int64 indices of the kept poses, by descending score.

    Raises:
        ValueError: shapes that do not fit each other, values that are not finite, a threshold out of range.
    """
    p, s, a, widths = (_tensor(x) for x in (keypoints, scores, areas, sigmas))
    _check_poses(p.numpy(), s.numpy(), a.numpy(), widths.numpy())
    kept = ops.oks_nms(p, s, a, threshold, sigmas=widths)
    assert isinstance(kept, Tensor)  # not padded
    indices: NDArray[np.int64] = kept.numpy()
    return indices


def rescore(box_scores: ArrayLike, joint_scores: ArrayLike, threshold: float = 0.2) -> Floats:
    """Score of a top-down pose: box score times the mean of its keypoint scores above `threshold`.

    Args:
        box_scores: `[N]`.
        joint_scores: `[N, K]`, heatmap maxima.
        threshold: keypoints at or below it do not count; a pose without any keypoint above it scores 0.

    Returns:
        float64 `[N]`.
    """
    joints = np.asarray(joint_scores, dtype=np.float64)
    counted = joints > threshold
    total = np.where(counted, joints, 0.0).sum(axis=-1)
    return np.asarray(box_scores, dtype=np.float64) * total / np.maximum(counted.sum(axis=-1), 1)


def _tensor(values: ArrayLike) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float64, order="C"))


def _check_poses(keypoints: Floats, scores: Floats, areas: Floats, sigmas: Floats) -> None:
    if keypoints.ndim != 3 or keypoints.shape[2] < 2:
        raise ValueError(f"keypoints must be [N, K, 2 or more] (x, y, ...), got shape {keypoints.shape}")
    expected: Sequence[tuple[str, Floats, int]] = (
        ("scores", scores, keypoints.shape[0]),
        ("areas", areas, keypoints.shape[0]),
        ("sigmas", sigmas, keypoints.shape[1]),
    )
    for name, values, length in expected:
        if values.shape != (length,):
            raise ValueError(f"{name} must have shape ({length},) for keypoints {keypoints.shape}, got {values.shape}")
    for name, values in (("keypoints", keypoints[..., :2]), ("scores", scores), ("areas", areas)):
        if not np.isfinite(values).all():
            row = int(np.argwhere(~np.isfinite(values))[0][0])
            raise ValueError(f"{name} hold a value that is not finite, first in row {row}: {values[row].tolist()}")
