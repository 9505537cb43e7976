"""Who is who over a video's frames, and steadier keypoints: greedy matching by OKS, and the One-Euro filter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from posekd.deploy.predict import Found
from posekd.metrics import keypoint_similarity
from posekd.skeleton import Skeleton
from posekd.structures import Instances


@dataclass(frozen=True)
class TrackSettings:
    """How people are followed.

    Attributes:
        oks_threshold: two poses of neighbouring frames may be one person if their OKS (0..1) is above this.
        keep: frames for which a person who is not seen keeps its number.
        keypoint_threshold: keypoints with a lower score do not count in the OKS.
        smooth: filter each track's keypoints (`OneEuro`).
        min_cutoff: of the filter, in Hz: lower is steadier, and later.
        beta: of the filter, in 1/pixel: how much the cut-off grows with a keypoint's speed; higher follows faster.
    """

    oks_threshold: float = 0.3
    keep: int = 30
    keypoint_threshold: float = 0.2
    smooth: bool = False
    min_cutoff: float = 1.0
    beta: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.oks_threshold < 1:
            raise ValueError(f"oks_threshold is an OKS, at least 0 and below 1, got {self.oks_threshold}")
        if self.keep < 0 or not self.min_cutoff > 0 or not self.beta >= 0:
            raise ValueError(
                f"keep and beta must be 0 or more, min_cutoff above 0, got {self.keep}, {self.beta}, {self.min_cutoff}"
            )


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


@dataclass
class _Track:
    number: int
    keypoints: np.ndarray  # [K, 3], as they were found
    area: float
    frame: int  # when it was seen last
    filter: OneEuro


class Tracker:
    """Numbers the people of one clip, frame by frame.

    Pairs of a track and a person are made greedily, the highest OKS first; who is left over is a new track.

    Args:
        skeleton: the keypoints, whose sigmas OKS uses.
        settings: thresholds and filter.
        rate: frames per second, for the filter.
    """

    def __init__(self, skeleton: Skeleton, settings: TrackSettings, rate: float = 25.0) -> None:
        self.skeleton, self.settings, self.rate = skeleton, settings, rate
        self._tracks: list[_Track] = []
        self._next, self._frame = 0, 0

    def update(self, people: Instances) -> Instances:
        """The people of the next frame with their tracks' numbers, from 0 on, and smoothed keypoints if asked for."""
        settings, self._frame = self.settings, self._frame + 1
        self._tracks = [track for track in self._tracks if self._frame - track.frame <= settings.keep + 1]
        keypoints = people.keypoints.double().numpy().copy()
        matched = self._match(keypoints, people.areas.double().numpy())
        numbers = np.zeros(len(people), np.int64)
        for row, points in enumerate(keypoints):
            track = matched.get(row)
            if track is None:
                one_euro = OneEuro(self.rate, settings.min_cutoff, settings.beta)
                track = _Track(self._next, points, 0.0, self._frame - 1, one_euro)
                self._tracks.append(track)
                self._next += 1
            numbers[row], passed = track.number, self._frame - track.frame
            track.keypoints, track.area, track.frame = points.copy(), float(people.areas[row]), self._frame
            if settings.smooth:
                seen = points[:, 2] > settings.keypoint_threshold
                points[:, :2] = track.filter(points[:, :2], seen, passed)
        return replace(
            people, keypoints=torch.from_numpy(keypoints).to(people.keypoints), track_ids=torch.from_numpy(numbers)
        )

    def _match(self, keypoints: np.ndarray, areas: np.ndarray) -> dict[int, _Track]:
        """Row of a person -> the track that it continues."""
        if not len(keypoints) or not self._tracks:
            return {}
        people = list(zip(keypoints, areas.tolist(), strict=True))
        likeness = np.array([[self._oks(track, *person) for track in self._tracks] for person in people])
        matched: dict[int, _Track] = {}
        while likeness.max() > self.settings.oks_threshold:
            row, column = np.unravel_index(likeness.argmax(), likeness.shape)
            matched[int(row)] = self._tracks[column]
            likeness[row], likeness[:, column] = -1, -1
        return matched

    def _oks(self, track: _Track, keypoints: np.ndarray, area: float) -> float:
        """OKS of a person and a track over the keypoints that both have; the area is the mean of both."""
        least = self.settings.keypoint_threshold
        both = (keypoints[:, 2] > least) & (track.keypoints[:, 2] > least)
        size = (area + track.area) / 2
        if not both.any() or not size > 0:
            return 0.0
        return float(keypoint_similarity(keypoints, track.keypoints, size, self.skeleton.sigmas)[both].mean())


def tracked(found: Iterable[Found], skeleton: Skeleton, settings: TrackSettings) -> Iterator[Found]:
    """The same frames, with `track_ids` and, if asked for, smoothed keypoints; numbers begin anew with each clip."""
    clip, tracker = None, Tracker(skeleton, settings)
    for one in found:
        if one.clip is not clip:
            clip, tracker = one.clip, Tracker(skeleton, settings, one.clip.rate or 25.0)
        yield replace(one, people=tracker.update(one.people))
