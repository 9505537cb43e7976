"""Labels between two formats: images, each with its people, in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MARGIN = 0.1
"""How much a box around keypoints is larger than they are, on each side, as a share of its longer side."""


@dataclass(frozen=True)
class Person:
    """A labelled person, animal or thing.

    Attributes:
        keypoints: float64 `[K, 3]` (x, y, visibility 0 unlabelled, 1 occluded, 2 visible) in pixels from 0.
        box: (x, y, width, height) in pixels; None where the format has none.
    """

    keypoints: np.ndarray
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class LabelledImage:
    """An image and the people on it.

    Attributes:
        file_name: relative to the folder of the images.
        size: height and width in pixels.
        people: those labelled.
    """

    file_name: str
    size: tuple[int, int]
    people: tuple[Person, ...]


@dataclass(frozen=True)
class OwnLabels:
    """What a label file holds, whatever its format.

    Attributes:
        names: K keypoint names.
        folder: of the images.
        images: the images.
        edges: pairs of indices to draw.
        category: what is labelled, in a word.
        notes: what was left out or guessed, in sentences.
    """

    names: tuple[str, ...]
    folder: Path
    images: tuple[LabelledImage, ...]
    edges: tuple[tuple[int, int], ...] = ()
    category: str = "object"
    notes: tuple[str, ...] = ()


def box_around(keypoints: np.ndarray, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """A box around labelled keypoints with `MARGIN`, within the image.

    Args:
        keypoints: `[K, 3]` with at least one label.
        size: height and width of the image.
    """
    points = keypoints[keypoints[:, 2] > 0, :2]
    low, high = points.min(0), points.max(0)
    margin = max(MARGIN * float((high - low).max()), 1.0)
    x1, y1 = np.maximum(low - margin, 0.0).tolist()
    x2, y2 = np.minimum(high + margin, (size[1], size[0])).tolist()
    return x1, y1, max(x2 - x1, 1.0), max(y2 - y1, 1.0)


def points_of(names: Sequence[str], found: dict[str, tuple[float, float, int]]) -> np.ndarray:
    """Keypoints `[K, 3]` from (x, y, visibility) by name."""
    return np.array([found.get(name, (0.0, 0.0, 0)) for name in names], float).reshape(-1, 3)
