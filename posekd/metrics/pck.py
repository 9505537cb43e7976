"""PCK and PCKh: the share of joints found within a fraction of a reference length of each person.

PCKh (MPII) divides by the head size, PCK (LSP) by the torso. The rules are those of deep-high-resolution-net,
`lib/dataset/mpii.py`, whose validation numbers the MPII tables of HRNet, SimpleBaseline and FPD quote, and of the
official evaluation scripts for LSP and MPII (evalMPII, `evaluatePCK`): distances up to and including the threshold
count, the mean pools all counted joints, the area is that under the trapezoids of the curve.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posekd.skeleton import LSP, MPII, Skeleton

Floats = NDArray[np.float64]

PCKH_THRESHOLD, PCK_THRESHOLD = 0.5, 0.2
STEP = 0.01  # of the curves

_SIDED = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")


def _groups(skeleton: Skeleton, *head: str) -> dict[str, tuple[int, ...]]:
    """The papers' columns: the head, then left and right of each limb joint."""
    index = skeleton.keypoints.index
    limbs = {joint.title(): (index(f"left_{joint}"), index(f"right_{joint}")) for joint in _SIDED}
    return {"Head": tuple(map(index, head)), **limbs}


GROUPS: dict[int, dict[str, tuple[int, ...]]] = {
    # HRNet's head is the head top alone; the MPII server averages it with the upper neck
    MPII.num_keypoints: _groups(MPII, "head_top"),
    LSP.num_keypoints: _groups(LSP, "neck", "head_top"),
}
"""Number of keypoints -> column of the papers' tables -> keypoint indices."""

NOT_IN_PCKH: dict[int, tuple[str, ...]] = {MPII.num_keypoints: ("pelvis", "thorax")}
"""Number of keypoints -> keypoints that the mean of PCKh leaves out."""


@dataclass(frozen=True)
class PckResult:
    """Shares of joints found, in percent.

    Attributes:
        name: `PCKh@0.5` or `PCK@0.2`, by kind and threshold.
        per_joint: float64 `[K]`, percent found of each joint at the threshold; NaN where nobody has it labelled.
        counts: int64 `[K]`, how many people have each joint labelled.
        groups: column of the papers' tables (Head, Shoulder, Elbow, Wrist, Hip, Knee, Ankle) -> mean of its
            left and right joint; empty for keypoint sets other than MPII's and LSP's.
        mean: percent found of all counted joints together, that is the mean weighted by `counts`.
        thresholds: float64 `[T]`, 0 to 0.5 (PCKh) or 0.2 (PCK) in steps of 0.01.
        curve: float64 `[T]`, the mean at each threshold.
        auc: area under the curve in percent of the full area, by trapezoids.
        people: persons with a labelled joint.
    """

    name: str
    per_joint: Floats
    counts: NDArray[np.int64]
    groups: dict[str, float]
    mean: float
    thresholds: Floats
    curve: Floats
    auc: float
    people: int

    @property
    def mean_at_10(self) -> float:
        """The mean at the threshold 0.10."""
        return float(self.curve[10])

    @property
    def hrnet_mean_at_01(self) -> float:
        """What HRNet's code prints as "Mean@0.1": the mean at 0.11, entry 11 of the thresholds 0, 0.01 ..."""
        return float(self.curve[11])

    def numbers(self) -> dict[str, float]:
        """The mean first, then area, mean at 0.1 and the columns, by name; columns that nobody has are left out."""
        kind = self.name.partition("@")[0]
        return {
            self.name: self.mean,
            "AUC": self.auc,
            f"{kind}@0.1": self.mean_at_10,
            **{name: value for name, value in self.groups.items() if np.isfinite(value)},
        }


def pckh(pred: Any, gt: Any, visible: Any, head_size: Any) -> PckResult:
    """PCKh at 0.5: joints within half a head size of their labels.

    With MPII's 16 keypoints pelvis and thorax are left out of the mean, the curve and the area.

    Args:
        pred: `[N, K, 2]` (x, y), array or tensor.
        gt: `[N, K, 2]` in the same pixels. (MPII's files count from 1: predictions that count from 0 need 1 added.)
        visible: `[N, K]`, which joints are labelled (anything above 0). Coordinates of others do not matter.
        head_size: `[N]`, 0.6 times the head box's diagonal (see `head_sizes`), in pixels.

    Raises:
        ValueError: shapes that do not fit, a NaN at a labelled joint, a head size that is not positive, or nothing
            labelled at all.
    """
    K = np.shape(gt)[1] if np.ndim(gt) == 3 else 0
    left_out = [MPII.keypoints.index(name) for name in NOT_IN_PCKH.get(K, ())]
    counted = np.setdiff1d(np.arange(K), left_out)
    return _score("PCKh", pred, gt, visible, ("head_size", head_size), PCKH_THRESHOLD, counted, PCKH_THRESHOLD)


def pck(
    pred: Any,
    gt: Any,
    visible: Any,
    reference_length: Any,
    threshold: float = PCK_THRESHOLD,
) -> PckResult:
    """PCK: joints within a fraction of a reference length of their labels. All K joints are counted.

    Args:
        pred: `[N, K, 2]` (x, y), array or tensor.
        gt: `[N, K, 2]` in the same pixels.
        visible: `[N, K]`, which joints are labelled (anything above 0). LSP's occluded joints are labelled.
        reference_length: `[N]` in pixels; for LSP the torso (see `torso_lengths`).
        threshold: fraction of it; 0.2 for LSP, 0.5 in ELPN's Equation 5. (The curve always spans 0 to 0.2.)

    Raises:
        ValueError: shapes that do not fit, a NaN at a labelled joint, a length or threshold that is not positive,
            or nothing labelled at all.
    """
    if not 0 < threshold < np.inf:
        raise ValueError(f"threshold is a fraction of the reference length, above 0, got {threshold}")
    counted = np.arange(np.shape(gt)[1] if np.ndim(gt) == 3 else 0)
    lengths = ("reference_length", reference_length)
    return _score("PCK", pred, gt, visible, lengths, threshold, counted, PCK_THRESHOLD)


def _score(
    kind: str,
    pred: Any,
    gt: Any,
    visible: Any,
    lengths: tuple[str, Any],
    threshold: float,
    counted: NDArray[np.int64],
    curve_end: float,
) -> PckResult:
    found, truth, seen, length = _checked(pred, gt, visible, *lengths)
    # people without a labelled joint may lack a length as well
    scale = np.where(seen.any(axis=1), length, 1.0)
    error = np.where(seen, np.linalg.norm(found - truth, axis=-1) / scale[:, None], np.inf)
    counts = seen.sum(axis=0)
    per_joint = _share(error, threshold, counts)
    thresholds: Floats = np.arange(round(curve_end / STEP) + 1, dtype=np.float64) * STEP
    ordered = np.sort(error[:, counted][seen[:, counted]])
    if not len(ordered):
        raise ValueError("no joint that counts is labelled: there is nothing to score")
    curve = 100.0 * np.searchsorted(ordered, thresholds, side="right") / len(ordered)
    return PckResult(
        name=f"{kind}@{threshold:g}",
        per_joint=per_joint,
        counts=counts,
        groups={name: _mean(per_joint[list(ids)]) for name, ids in GROUPS.get(len(counts), {}).items()},
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


def _checked(
    pred: Any, gt: Any, visible: Any, length_name: str, lengths: Any
) -> tuple[Floats, Floats, NDArray[np.bool_], Floats]:
    """The four inputs as arrays that fit each other; coordinates of unlabelled joints are 0."""
    found, truth = _array(pred, "pred"), _array(gt, "gt")
    flags, length = _array(visible, "visible"), _array(lengths, length_name)
    if truth.ndim != 3 or truth.shape[2] != 2:
        raise ValueError(f"gt must be [N, K, 2] (x, y), got shape {truth.shape}")
    N, K = truth.shape[:2]
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
                f"{name} holds a NaN or infinite number at a labelled joint, first for person {_first(bad)}"
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
