"""OKS sigmas from how far labels lie from other labels of the same keypoints, or from what a network finds.

COCO defines a keypoint's sigma by `sigma^2 = E[d^2 / s^2]` over repeated labels, `s^2` the person's area. Distances
have outliers (exchanged sides, slips), so the mean is taken through the median here: for a Gaussian error in the plane
`d^2` is exponential, and its mean is its median over ln 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SMALLEST = 0.005
"""No label is truer than that, whatever few repeats say."""
FEW = 20
"""Distances below which an estimate is hardly one."""


@dataclass(frozen=True)
class Sigmas:
    """K estimates.

    Attributes:
        values: float64 `[K]`; the median of the others where a keypoint has no distances.
        low: lower end of the 95 % bootstrap interval over people; NaN without distances.
        high: upper end.
        counts: int64 `[K]`, distances that each rests on.
    """

    values: Floats
    low: Floats
    high: Floats
    counts: NDArray[np.int64]


def estimate_sigmas(distances: Floats, areas: Floats, *, both_err: bool, samples: int = 1000, seed: int = 0) -> Sigmas:
    """Estimates K sigmas.

    Args:
        distances: `[N, K]` in pixels; NaN where a keypoint is not labelled (twice), infinite where it was not found.
        areas: `[N]` in square pixels.
        both_err: whether both ends of a distance have the same error, as two labels have: then each has half of `d^2`.
            Otherwise the distance is to something truer, and an upper bound where that errs, too.
        samples: bootstrap draws over people.
        seed: of the draws.

    Raises:
        ValueError: no distance at all.
    """
    squares = distances**2 / areas[:, None] / (2 if both_err else 1)
    known = ~np.isnan(squares)
    if not known.any():
        raise ValueError("no keypoint is labelled in both: nothing to estimate from")
    rng = np.random.default_rng(seed)
    N = len(squares)
    drawn = [_sigma(squares[rng.integers(N, size=N)]) for _ in range(samples)]
    with np.errstate(invalid="ignore"):
        low, high = (_quantile(np.array(drawn), q) for q in (0.025, 0.975))
    values = _sigma(squares)
    usable = np.isfinite(values)
    filled = np.where(usable, values, np.median(values[usable]) if usable.any() else SMALLEST)
    return Sigmas(np.maximum(filled, SMALLEST), low, high, known.sum(0))


def _sigma(squares: Floats) -> Floats:
    """Sigma of each column through its median, NaN without a value."""
    found = np.full(squares.shape[1], np.nan)
    for k in range(squares.shape[1]):
        own = squares[~np.isnan(squares[:, k]), k]
        if len(own):
            middle = float(np.sort(own)[(len(own) - 1) // 2])  # infinite distances are larger than any
            found[k] = np.sqrt(middle / np.log(2))
    return found


def _quantile(values: Floats, q: float) -> Floats:
    """A quantile of each column, without NaN; NaN where nothing else is there."""
    out = np.full(values.shape[1], np.nan)
    for k in range(values.shape[1]):
        own = np.sort(values[~np.isnan(values[:, k]), k])
        if len(own):
            out[k] = own[min(len(own) - 1, int(q * len(own)))]
    return out
