"""PCK and PCKh: the share of keypoints found within a fraction of a reference length of each person.

PCKh (MPII) divides by the head size, PCK (LSP) by the torso. The rules are those of deep-high-resolution-net,
`lib/dataset/mpii.py`, whose validation numbers the MPII tables of HRNet, SimpleBaseline and FPD quote, and of the
official evaluation scripts for LSP and MPII (evalMPII, `evaluatePCK`): distances up to and including the threshold
count, the mean is over all counted keypoints, and the area under the curve is computed by trapezoids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posekd.skeleton import MPII, Skeleton

Floats = NDArray[np.float64]
_People = tuple[Floats, Floats, NDArray[np.bool_], Floats]
"""Predictions and labels `[N, K, 2]`, which keypoints are labelled `[N, K]`, reference lengths `[N]`."""

PCKH_THRESHOLD, PCK_THRESHOLD = 0.5, 0.2
STEP = 0.01  # of the curves

_LIMBS = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
# MPII's head is the head top alone, as in HRNet's table (the MPII server averages it with the upper neck)
_HEADS = (("neck", "head_top"), ("head_top",))
_NOT_IN_PCKH = ("pelvis", "thorax")


@dataclass(frozen=True)
class PckResult:
    """Shares of keypoints found, in percent.

    Attributes:
        kind: `PCKh` or `PCK`.
        threshold: fraction of the reference length, of `mean` and `per_joint`.
        per_joint: float64 `[K]`, percent found of each keypoint at the threshold; NaN if no person has it labelled.
        counts: int64 `[K]`, how many people have each keypoint labelled.
        groups: column of the papers' tables (Head, Shoulder, Elbow, Wrist, Hip, Knee, Ankle) -> mean of its
            left and right keypoint; empty without a skeleton that has these keypoints by name.
        mean: percent found of all counted keypoints together, that is the mean weighted by `counts`.
        thresholds: float64 `[T]`, 0 to 0.5 (PCKh) or 0.2 (PCK) in steps of 0.01.
        curve: float64 `[T]`, the mean at each threshold.
        auc: area under the curve in percent of the full area, by trapezoids.
        people: persons with a labelled keypoint.
    """

    kind: str
    threshold: float
    per_joint: Floats
    counts: NDArray[np.int64]
    groups: dict[str, float]
    mean: float
    thresholds: Floats
    curve: Floats
    auc: float
    people: int

    @property
    def name(self) -> str:
        """`PCKh@0.5` or `PCK@0.2`, for people."""
        return f"{self.kind}@{self.threshold:g}"

    @property
    def mean_at_10(self) -> float:
        """The mean at the threshold 0.10."""
        return float(self.curve[10])

    @property
    def hrnet_mean_at_01(self) -> float:
        """What HRNet's code prints as "Mean@0.1": the mean at 0.11, entry 11 of the thresholds 0, 0.01 ..."""
        return float(self.curve[11])

    def numbers(self) -> dict[str, float]:
        """The mean first, then area, mean at 0.1 and the columns, by name; columns without labels are left out."""
        return {
            self.name: self.mean,
            "AUC": self.auc,
            f"{self.kind}@0.1": self.mean_at_10,
            **{name: value for name, value in self.groups.items() if np.isfinite(value)},
        }


def pckh(pred: Any, gt: Any, visible: Any, head_size: Any, *, skeleton: Skeleton = MPII) -> PckResult:
    """PCKh at 0.5: keypoints within half a head size of their labels.

    A pelvis and a thorax, which MPII has, are left out of the mean, the curve and the area.

    Args:
        pred: `[N, K, 2]` (x, y), array or tensor.
        gt: `[N, K, 2]` in the same pixels. (MPII's files count from 1: predictions that count from 0 need 1 added.)
        visible: `[N, K]`, which keypoints are labelled (anything above 0). Coordinates of others do not matter.
        head_size: `[N]`, 0.6 times the head box's diagonal (see `head_sizes`), in pixels.
        skeleton: the K keypoints.

    Raises:
        ValueError: shapes that do not fit each other or the skeleton, a NaN at a labelled keypoint, a head size that is
            not positive, or nothing labelled at all.
    """
    people = _checked(pred, gt, visible, "head_size", head_size, skeleton)
    counted = [k for k, name in enumerate(skeleton.keypoints) if name not in _NOT_IN_PCKH]
    return _score("PCKh", people, PCKH_THRESHOLD, PCKH_THRESHOLD, np.array(counted, np.int64), skeleton)


def pck(
    pred: Any,
    gt: Any,
    visible: Any,
    reference_length: Any,
    threshold: float = PCK_THRESHOLD,
    *,
    skeleton: Skeleton | None = None,
) -> PckResult:
    """PCK: keypoints within a fraction of a reference length of their labels. All K keypoints are counted.

    Args:
        pred: `[N, K, 2]` (x, y), array or tensor.
        gt: `[N, K, 2]` in the same pixels.
        visible: `[N, K]`, which keypoints are labelled (anything above 0). LSP's occluded keypoints are labelled.
        reference_length: `[N]` in pixels; for LSP the torso (see `torso_lengths`).
        threshold: fraction of that length; 0.2 for LSP, 0.5 in ELPN's Equation 5. (The curve always spans 0 to 0.2.)
        skeleton: the K keypoints; without it the papers' columns (`groups`) are not computed.

    Raises:
        ValueError: shapes that do not fit each other or the skeleton, a NaN at a labelled keypoint, a length or
            threshold that is not positive, or nothing labelled at all.
    """
    if not 0 < threshold < np.inf:
        raise ValueError(f"threshold is a fraction of the reference length, above 0, got {threshold}")
    people = _checked(pred, gt, visible, "reference_length", reference_length, skeleton)
    counted = np.arange(people[1].shape[1])
    return _score("PCK", people, threshold, PCK_THRESHOLD, counted, skeleton)


def _columns(skeleton: Skeleton | None) -> dict[str, list[int]]:
    """The papers' columns by name: the head, then left and right of each limb; none if a keypoint is missing."""
    known = {name: k for k, name in enumerate(skeleton.keypoints)} if skeleton is not None else {}
    limbs = {joint.title(): (f"left_{joint}", f"right_{joint}") for joint in _LIMBS}
    head = next((names for names in _HEADS if known.keys() >= set(names)), None)
    if head is None or not all(name in known for names in limbs.values() for name in names):
        return {}
    return {column: [known[name] for name in names] for column, names in {"Head": head, **limbs}.items()}


def _score(
    kind: str,
    people: _People,
    threshold: float,
    curve_end: float,
    counted: NDArray[np.int64],
    skeleton: Skeleton | None,
) -> PckResult:
    found, truth, seen, length = people
    # people without a labelled keypoint may lack a length as well
    scale = np.where(seen.any(axis=1), length, 1.0)
    error = np.where(seen, np.linalg.norm(found - truth, axis=-1) / scale[:, None], np.inf)
    counts = seen.sum(axis=0)
    per_joint = _share(error, threshold, counts)
    thresholds: Floats = np.arange(round(curve_end / STEP) + 1, dtype=np.float64) * STEP
    ordered = np.sort(error[:, counted][seen[:, counted]])
    if not len(ordered):
        raise ValueError("no keypoint that counts is labelled: there is nothing to score")
    curve = 100.0 * np.searchsorted(ordered, thresholds, side="right") / len(ordered)
    return PckResult(
        kind=kind,
        threshold=threshold,
        per_joint=per_joint,
        counts=counts,
        groups={name: _mean(per_joint[joints]) for name, joints in _columns(skeleton).items()},
        mean=float(100.0 * (ordered <= threshold).mean()),
        thresholds=thresholds,
        curve=curve,
        auc=float(((curve[1:] + curve[:-1]) / 2).mean()),
        people=int(seen.any(axis=1).sum()),
    )


def _share(error: Floats, threshold: float, counts: NDArray[np.int64]) -> Floats:
    hits = (error <= threshold).sum(axis=0)
    return np.where(counts > 0, 100.0 * hits / np.maximum(counts, 1), np.nan)


def _mean(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _array(values: Any, name: str) -> Floats:
    if hasattr(values, "detach"):  # a tensor, on whatever device
        values = values.detach().cpu().double()
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be numbers, got {type(values).__name__}") from None


def _checked(pred: Any, gt: Any, visible: Any, length_name: str, lengths: Any, skeleton: Skeleton | None) -> _People:
    """The four inputs as arrays that fit each other; coordinates of unlabelled keypoints are 0."""
    found, truth = _array(pred, "pred"), _array(gt, "gt")
    flags, length = _array(visible, "visible"), _array(lengths, length_name)
    if truth.ndim != 3 or truth.shape[2] != 2:
        raise ValueError(f"gt must be [N, K, 2] (x, y), got shape {truth.shape}")
    N, K = truth.shape[:2]
    if skeleton is not None and skeleton.num_keypoints != K:
        raise ValueError(
            f"gt has {K} keypoints per person, but the skeleton {skeleton.name!r} has {skeleton.num_keypoints}: "
            "give the right `skeleton`"
        )
    expected: Mapping[str, tuple[Floats, tuple[int, ...]]] = {
        "pred": (found, (N, K, 2)),
        "visible": (flags, (N, K)),
        length_name: (length, (N,)),
    }
    for name, (values, shape) in expected.items():
        if values.shape != shape:
            raise ValueError(f"{name} must have shape {shape} for gt {truth.shape}, got {values.shape}")
    if np.isnan(flags).any():
        raise ValueError(f"visible holds a NaN, first for person {_first(np.isnan(flags).any(axis=1))}")
    seen = flags > 0
    for name, points in (("pred", found), ("gt", truth)):
        bad = (seen & ~np.isfinite(points).all(axis=-1)).any(axis=1)
        if bad.any():
            raise ValueError(
                f"{name} holds a NaN or infinite number at a labelled keypoint, first for person {_first(bad)}"
            )
    unusable = seen.any(axis=1) & ~((length > 0) & np.isfinite(length))
    if unusable.any():
        row = _first(unusable)
        raise ValueError(
            f"{length_name} must be positive, but {int(unusable.sum())} of {N} people have another, first person {row} "
            f"with {length[row]:g}: leave such people out"
        )
    found, truth = (np.where(seen[..., None], points, 0.0) for points in (found, truth))
    return found, truth, seen, length


def _first(rows: Any) -> int:
    return int(np.flatnonzero(rows)[0])
