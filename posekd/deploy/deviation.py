"""How far an exported network is from the network itself, and whether that is too far."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MANY = 500
"""From so many people on the rule is AP's, below it that of single keypoints."""
LARGEST_SHIFT = 0.1
"""Pixels by which a keypoint may move whose place is beyond doubt."""
LARGEST_CHANGE = 0.1
"""Points (of 100) by which AP may move."""
TIES = {"fp32": 1e-4, "fp16": 1e-2, "int8": 1e-1}
"""Precision -> share of a heatmap's range within which two of its values count as equal."""


class ExportDriftError(RuntimeError):
    """An exported network does not say what the network says."""


@dataclass(frozen=True)
class Deviation:
    """How far an exported network's keypoints are from the network's, in image pixels.

    Attributes:
        names: of the K keypoints, in the data's order.
        persons: how many people were compared.
        median: float64 `[K]`, over all people.
        worst: float64 `[K]`.
        sure: how many of the keypoints have a place beyond doubt: one highest pixel, and neighbours that differ.
        worst_sure: the largest deviation among these.
        score: the largest difference of a keypoint's score.
        alone: how many people only one of the two has found.
    """

    names: tuple[str, ...]
    persons: int
    median: np.ndarray
    worst: np.ndarray
    sure: int
    worst_sure: float
    score: float
    alone: int = 0


def judge(deviation: Deviation, before: float, after: float, precision: str, limit: float | None) -> None:
    """Refuses an export that says something else than its network.

    Args:
        deviation: of the keypoints.
        before: the network's main score in points (of 100).
        after: the export's.
        precision: int8's loss is told, and refused only beyond `limit`.
        limit: points that the score may move; `LARGEST_CHANGE` (int8: anything) if None.

    Raises:
        ExportDriftError: it does.
    """
    allowed = limit if limit is not None else float("inf") if precision == "int8" else LARGEST_CHANGE
    if abs(after - before) > allowed and (deviation.persons >= MANY or limit is not None):
        raise ExportDriftError(
            f"the exported network scores {after:.2f}, the network itself {before:.2f}: {allowed:g} points are allowed"
        )
    if deviation.persons < MANY and precision != "int8" and deviation.worst_sure > LARGEST_SHIFT:
        raise ExportDriftError(
            f"the exported network moves a keypoint whose place is beyond doubt by {deviation.worst_sure:.3f} pixels: "
            f"{LARGEST_SHIFT:g} are allowed"
        )
