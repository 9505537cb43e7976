"""Outlines of people: the points that bound them in every direction, so that a turned box is the hull of a turned
person.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as rle

DIRECTIONS = 32  # a turned hull is at most half a percent too small: 1 - cos(pi / 32)

BOX_MARGIN = 0.15
"""Of people without a box: how much the hull of their keypoints grows on each side (Simple Baselines' factor)."""

_ANGLES = np.arange(DIRECTIONS) * (2 * np.pi / DIRECTIONS)
_NORMALS = np.stack((np.cos(_ANGLES), np.sin(_ANGLES))).round(12)  # axes exactly


def outline_of(segmentation: Any, box: Sequence[float]) -> np.ndarray:
    """The points of a person that lie farthest in each direction, float32 `[DIRECTIONS, 2]`.

    Args:
        segmentation: COCO's polygons or run lengths; whatever is none leaves the box.
        box: (x, y, width, height), whose corners bound a person without a segmentation.
    """
    points = _points(segmentation)
    if points is None or not len(points):
        x, y, w, h = box
        points = np.array([(x, y), (x + w, y), (x, y + h), (x + w, y + h)])
    farthest: np.ndarray = points[(points @ _NORMALS).argmax(0)].astype(np.float32)
    return farthest


def _points(segmentation: Any) -> np.ndarray | None:
    """Points `[N, 2]` of a well-formed segmentation that bound it."""
    try:
        if isinstance(segmentation, Mapping):
            return _edges(segmentation)
        polygons = [
            np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in segmentation or () if len(polygon) >= 6
        ]
    except (TypeError, ValueError, KeyError):
        return None
    points = np.concatenate([np.zeros((0, 2)), *polygons])
    return points if np.isfinite(points).all() else None


def _edges(runs: Mapping[str, Any]) -> np.ndarray:
    """Corners of the first and last pixels of each row of run lengths."""
    height, width = runs["size"]
    counts = runs["counts"]
    if isinstance(counts, list):
        if sum(counts) != height * width:
            raise ValueError("not this size")
        counts = rle.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"]
    _, _, w, h = rle.toBbox({"size": [height, width], "counts": counts}).tolist()
    if not 0 < w <= width or not 0 < h <= height:
        raise ValueError("no area")
    mask = rle.decode({"size": [height, width], "counts": counts}).astype(bool)
    rows = np.flatnonzero(mask.any(1))
    left, right = mask[rows].argmax(1), width - mask[rows, ::-1].argmax(1)
    return np.concatenate([np.stack((x, y), 1) for x in (left, right) for y in (rows, rows + 1)]).astype(np.float64)


def hull_box(points: np.ndarray) -> tuple[float, float, float, float]:
    """The box (x, y, width, height) around points `[n, 2]`, larger by `BOX_MARGIN` on each side, a pixel at least."""
    low, high = points.min(0), points.max(0)
    margin = BOX_MARGIN * (high - low)
    x, y = (low - margin).tolist()
    width, height = np.maximum(high - low + 2 * margin, 1.0).tolist()
    return x, y, width, height
