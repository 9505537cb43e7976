"""Steadier keypoints: the One-Euro filter."""

from __future__ import annotations

import math

import numpy as np


class OneEuro:
    """The One-Euro filter (Casiez et al., CHI 2012) of K points: a low-pass whose cut-off grows with the speed.

    Equations 1 to 5 of the paper; the speed is filtered with a cut-off of 1 Hz, as there.

    Args:
        rate: frames per second.
        min_cutoff: cut-off at rest, in Hz.
        beta: how much the cut-off grows with the speed, in 1/pixel.
    """

    def __init__(self, rate: float, min_cutoff: float, beta: float) -> None:
        self.rate, self.min_cutoff, self.beta = rate, min_cutoff, beta
        self._points: np.ndarray | None = None
        self._speeds = np.zeros(0)

    def __call__(self, points: np.ndarray, seen: np.ndarray, frames: int = 1) -> np.ndarray:
        """The filtered points.

        Args:
            points: float64 `[K, 2]` in pixels.
            seen: bool `[K]`; the others are given back as they are, and are filtered anew when they are seen again.
            frames: how many frames have passed since the last call.
        """
        rate = self.rate / max(frames, 1)
        if self._points is None:
            self._points, self._speeds = np.full_like(points, np.nan), np.zeros_like(points)
        known = np.isfinite(self._points).all(1) & seen
        speeds = np.where(known[:, None], (points - np.nan_to_num(self._points)) * rate, 0.0)
        speeds = self._speeds + self._alpha(np.array(1.0), rate) * (speeds - self._speeds)
        cutoff = self.min_cutoff + self.beta * np.linalg.norm(speeds, axis=1, keepdims=True)
        smoothed = self._points + self._alpha(cutoff, rate) * (points - self._points)
        result = np.where(known[:, None], smoothed, points)
        self._points = np.where(seen[:, None], result, np.nan)
        self._speeds = np.where(known[:, None], speeds, 0.0)
        return result

    @staticmethod
    def _alpha(cutoff: np.ndarray, rate: float) -> np.ndarray:
        """Equation 5: the weight of a new value."""
        return 1 / (1 + rate / (2 * math.pi * cutoff))
