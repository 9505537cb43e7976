"""Who is who over a video's frames: greedy matching by OKS, with optical flow and without, as in Simple Baselines.

Xiao, Wu and Wei (ECCV 2018), Section 3: the poses of known people are moved to the next frame by optical flow and
compared with those found there; whom the detector has lost is looked for in the box around the moved pose. Here a
detected person always goes before one who is found again in that way, and nobody who is found again begins a track.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch

from posekd.metrics import keypoint_similarity
from posekd.skeleton import Skeleton
from posekd.structures import Instances
from posekd.tracking.flow import dense_flow, move_points
from posekd.tracking.smoothing import OneEuro

MARGIN = 0.15
"""How much a box around a moved pose is larger than it, on each side (Simple Baselines)."""
SAME = 0.5
"""Above this OKS somebody who is found again is a person who was detected already."""

Look = Callable[[np.ndarray, np.ndarray], Instances]
"""From an image and boxes `[n, 4]` (x, y, width, height) to the people in them; `sample_ids` count the boxes."""


@dataclass(frozen=True)
class TrackSettings:
    """How people are followed.

    Attributes:
        oks_threshold: two poses of neighbouring frames may be one person if their OKS (0..1) is above this.
        keep: frames for which a person who is not seen keeps its number.
        keypoint_threshold: keypoints with a lower score do not count in the OKS.
        flow: `dis` moves poses to the next frame by optical flow before they are compared, `none` leaves them.
        propagate: how many frames in a row somebody whom nothing detects is looked for in the box around the moved
            pose; 0 for never. Needs a network that can be asked for the people in boxes.
        least_box: people whose box scores less are removed (Simple Baselines: 0.5).
        least_keypoint: likewise keypoints (Simple Baselines: 0.4).
        smooth: filter each track's keypoints (`OneEuro`).
        min_cutoff: of the filter, in Hz: lower is steadier, and later.
        beta: of the filter, in 1/pixel: how much the cut-off grows with a keypoint's speed; higher follows faster.
    """

    oks_threshold: float = 0.3
    keep: int = 30
    keypoint_threshold: float = 0.0
    flow: Literal["none", "dis"] = "none"
    propagate: int = 0
    least_box: float = 0.0
    least_keypoint: float = 0.0
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
        if self.flow not in get_args(Literal["none", "dis"]):
            raise ValueError(f"flow must be none or dis, got {self.flow!r}")
        if self.propagate < 0:
            raise ValueError(f"propagate is a number of frames, 0 or more, got {self.propagate}")
        for name in ("least_box", "least_keypoint"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is a score, 0 or more, got {getattr(self, name)}")

    @property
    def needs_images(self) -> bool:
        """Whether frames are looked at, and not only what was found in them."""
        return self.flow != "none" or self.propagate > 0


def refuse_blind(settings: TrackSettings, look: Look | None) -> None:
    """Refuses settings by which people should be looked for where nothing can look.

    Raises:
        ValueError: says so.
    """
    if settings.propagate and look is None:
        raise ValueError(
            "propagate looks for people in boxes, which this network cannot: give 0 (it is for top-down networks, and "
            "for those that find boxes)"
        )


def _mean_score(scores: np.ndarray) -> float:
    """The mean of the scores `[K]` of those keypoints that were found."""
    return float(scores.clip(0).sum() / max((scores > 0).sum(), 1))


@dataclass
class _Track:
    number: int
    keypoints: np.ndarray  # [K, 3], as they were found, moved on to the present frame
    area: float
    box_score: float
    frame: int  # when it was seen last
    detected: int  # when it was last seen without being looked for
    filter: OneEuro


class Tracker:
    """Numbers the people of one clip, frame by frame.

    Pairs of a track and a person are made greedily, the highest OKS first; who is left over is a new track.

    Args:
        skeleton: the keypoints, whose sigmas OKS uses.
        settings: thresholds, flow and filter.
        rate: frames per second, for the filter.
        look: finds people in boxes, for `settings.propagate`.

    Raises:
        ValueError: people should be looked for, and nothing can look.
    """

    def __init__(
        self, skeleton: Skeleton, settings: TrackSettings, rate: float = 25.0, look: Look | None = None
    ) -> None:
        refuse_blind(settings, look)
        self.skeleton, self.settings, self.rate, self._ask = skeleton, settings, rate, look
        self._tracks: list[_Track] = []
        self._next, self._frame = 0, 0
        self._image: np.ndarray | None = None

    def update(self, people: Instances, image: np.ndarray | None = None, image_id: int = 0) -> Instances:
        """The people of the next frame with their tracks' numbers, from 0 on, and smoothed keypoints if asked for.

        Args:
            people: those found; without track ids.
            image: the frame, uint8 RGB `[H, W, 3]`; None if it could not be decoded, or nobody needs it.
            image_id: for people who are found again.

        Returns:
            The people in their order; with somebody found again, by descending score.
        """
        self._frame += 1
        self._tracks = [track for track in self._tracks if self._frame - track.frame <= self.settings.keep + 1]
        self._move(image)
        people = self._strong(people)
        matched = self._match(people, self._tracks)
        again, theirs = self._look_again(people, matched, image, image_id)
        if theirs:
            matched |= {len(people) + row: track for row, track in enumerate(theirs)}
            people = Instances.concatenate([people, again], self.skeleton.num_keypoints)
        numbered = self._number(people, matched, len(people) - len(theirs))
        return numbered.take(numbered.scores.argsort(descending=True, stable=True)) if theirs else numbered

    def _move(self, image: np.ndarray | None) -> None:
        """Takes all tracks on to the next frame."""
        if self.settings.flow == "dis":
            flow = None
            if image is not None and self._image is not None and self._tracks:
                flow = dense_flow(self._image, image)
            if flow is not None:
                for track in self._tracks:
                    track.keypoints[:, :2] = move_points(track.keypoints[:, :2], flow)
            self._image = image if image is not None else self._image

    def _strong(self, people: Instances) -> Instances:
        """People and keypoints that score enough."""
        least_box, least = self.settings.least_box, self.settings.least_keypoint
        if not least_box and not least:
            return people
        keypoints = torch.where(people.keypoints[..., 2:] >= least, people.keypoints, 0.0)
        kept = (people.box_scores >= least_box) & (keypoints[..., 2] > 0).any(1)
        return replace(people, keypoints=keypoints).take(kept)

    def _match(self, people: Instances, tracks: Sequence[_Track]) -> dict[int, _Track]:
        """Row of a person -> the track that it continues."""
        if not len(people) or not tracks:
            return {}
        likeness = self._likeness(people, [(track.keypoints, track.area) for track in tracks])
        matched: dict[int, _Track] = {}
        while likeness.max() > self.settings.oks_threshold:
            row, column = np.unravel_index(likeness.argmax(), likeness.shape)
            matched[int(row)] = tracks[int(column)]
            likeness[row], likeness[:, column] = -1, -1
        return matched

    def _likeness(self, people: Instances, others: Sequence[tuple[np.ndarray, float]]) -> np.ndarray:
        """OKS of people and other poses, `[people, others]`."""
        poses, areas = people.keypoints.double().numpy(), people.areas.double().tolist()
        rows = [[self._oks(pose, area, *other) for other in others] for pose, area in zip(poses, areas, strict=True)]
        return np.array(rows).reshape(len(people), len(others))

    def _oks(self, keypoints: np.ndarray, area: float, others: np.ndarray, other_area: float) -> float:
        """OKS of two poses over the keypoints that both have; the area is the mean of both."""
        least = self.settings.keypoint_threshold
        both = (keypoints[:, 2] > least) & (others[:, 2] > least)
        size = (area + other_area) / 2
        if not both.any() or not size > 0:
            return 0.0
        return float(keypoint_similarity(keypoints, others, size, self.skeleton.sigmas)[both].mean())

    # ---- Whom nothing has detected -----------------------------------------------------------------------------

    def _look_again(
        self, people: Instances, matched: dict[int, _Track], image: np.ndarray | None, image_id: int
    ) -> tuple[Instances, list[_Track]]:
        """People in the boxes around poses of the last frame that nobody continues, and their tracks."""
        nobody = people.take([])
        if self._ask is None or image is None or not self.settings.propagate:
            return nobody, []
        seen = {id(track) for track in matched.values()}
        boxes = [
            (track, box)
            for track in self._tracks
            if id(track) not in seen
            and track.frame == self._frame - 1
            and self._frame - track.detected <= self.settings.propagate
            and (box := self._box(track, image)) is not None
        ]
        if not boxes:
            return nobody, []
        found = self._ask(image, np.array([box for _, box in boxes]))
        kept, theirs = nobody, []
        for place in range(len(found)):
            track = boxes[int(found.sample_ids[place])][0]
            person = self._as_continued(found.take([place]), track, image_id)
            if len(person) and not (self._likeness(person, self._poses(people) + self._poses(kept)) > SAME).any():
                kept = Instances.concatenate([kept, person], self.skeleton.num_keypoints)
                theirs.append(track)
        return kept, theirs

    def _as_continued(self, person: Instances, track: _Track, image_id: int) -> Instances:
        """Somebody found in a track's box as a person of this frame; nobody if it is not alike, or too weak.

        The box scores as much less than the track's as the keypoints score less than the track's: it fades. (What
        networks give as a keypoint's score differs in scale.)
        """
        mean, before = (_mean_score(pose[:, 2]) for pose in (person.keypoints[0].double().numpy(), track.keypoints))
        box_score = torch.full_like(person.box_scores, track.box_score * min(1.0, mean / before if before else 0.0))
        person = replace(
            person,
            box_scores=box_score,
            scores=(box_score * mean).to(person.scores),
            image_ids=torch.full_like(person.image_ids, image_id),
            sample_ids=torch.full_like(person.sample_ids, -1),
        )
        person = self._strong(person)
        alike = self._likeness(person, [(track.keypoints, track.area)]) > self.settings.oks_threshold
        return person.take(torch.from_numpy(alike.any(1)))

    def _box(self, track: _Track, image: np.ndarray) -> np.ndarray | None:
        """The box around a track's keypoints, within the image; None if little is left of it."""
        points = track.keypoints[track.keypoints[:, 2] > self.settings.keypoint_threshold, :2]
        if len(points) < 2:
            return None
        low, high = points.min(0), points.max(0)
        low, high = low - MARGIN * (high - low), high + MARGIN * (high - low)
        limit = np.array(image.shape[1::-1], np.float64)
        low, high = low.clip(0, limit), high.clip(0, limit)
        return np.concatenate((low, high - low)) if (high - low >= 1).all() else None

    @staticmethod
    def _poses(people: Instances) -> list[tuple[np.ndarray, float]]:
        return list(zip(people.keypoints.double().numpy(), people.areas.double().tolist(), strict=True))

    # ---- Numbers -----------------------------------------------------------------------------------------------

    def _number(self, people: Instances, matched: dict[int, _Track], detected: int) -> Instances:
        """People with their tracks' numbers, of whom the first `detected` were not looked for."""
        settings = self.settings
        keypoints = people.keypoints.double().numpy().copy()
        numbers = np.zeros(len(people), np.int64)
        for row, points in enumerate(keypoints):
            track = matched.get(row)
            if track is None:
                one_euro = OneEuro(self.rate, settings.min_cutoff, settings.beta)
                track = _Track(self._next, points, 0.0, 0.0, self._frame - 1, self._frame, one_euro)
                self._tracks.append(track)
                self._next += 1
            numbers[row], passed = track.number, self._frame - track.frame
            track.keypoints, track.area, track.frame = points.copy(), float(people.areas[row]), self._frame
            track.box_score = float(people.box_scores[row])
            track.detected = self._frame if row < detected else track.detected
            if settings.smooth:
                seen = points[:, 2] > settings.keypoint_threshold
                points[:, :2] = track.filter(points[:, :2], seen, passed)
        return replace(
            people, keypoints=torch.from_numpy(keypoints).to(people.keypoints), track_ids=torch.from_numpy(numbers)
        )
