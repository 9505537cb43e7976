"""PoseTrack's AP of keypoints and its tracking accuracy (MOTA), by the rules of the official evaluator.

Distances are in units of the labelled head: 0.6 of its box's diagonal; a keypoint is found within half of it. AP is
that of `metrics.people_ap`. For MOTA a labelled keypoint keeps the track that it was last matched to where that is near
enough; the rest is assigned at the least distance, each keypoint by itself, whatever the person.

`compat=True` is the official evaluator's answer with three of its habits: a sequence's last frame does not count for
tracking; a frame where nobody is labelled, or nobody predicted, counts as one miss and one false positive of every
keypoint; and MOTP adds up the distances of all events that its library notes, those of every pair within reach, and of
tracks that change hands, among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from posekd.lengths import head_sizes
from posekd.metrics.people_ap import REACH, KeypointRanking, group_means, head_distances, with_mean
from posekd.ops.reference.assignment import lexicographic_assignment
from posekd.posetrack_json import JOINTS, Video, VideoFrame, read_videos

Floats = NDArray[np.float64]

COLUMNS: dict[str, tuple[int, ...]] = {
    "Head": (14, 12, 13),
    "Shou": (8, 9),
    "Elb": (7, 10),
    "Wri": (6, 11),
    "Hip": (2, 3),
    "Knee": (1, 4),
    "Ankl": (0, 5),
}
"""The columns of the papers' tables: each the mean of its keypoints."""


@dataclass(frozen=True)
class Frame:
    """The people of one frame of a video.

    Attributes:
        points: float64 `[N, 15, 2]` in pixels.
        there: bool `[N, 15]`, which keypoints are labelled, or predicted.
        scores: float64 `[N, 15]`, of predictions.
        tracks: int64 `[N]`, the same number for the same person over a sequence; a predicted person without a track
            (-1) counts for AP alone.
        heads: float64 `[N]`, head sizes in pixels; NaN where the file has none.
        ignored: polygons `[V, 2]` inside which neither labels nor predictions count.
    """

    points: Floats
    there: NDArray[np.bool_]
    scores: Floats
    tracks: NDArray[np.int64]
    heads: Floats
    ignored: tuple[Floats, ...] = ()

    def __len__(self) -> int:
        return len(self.points)


@dataclass(frozen=True)
class PoseTrackResult:
    """Percent, `[16]` each: the 15 keypoints in the order of `JOINTS`, then their mean; NaN where nothing is labelled.

    Attributes:
        AP: average precision.
        precision: of all predicted keypoints.
        recall: of all labelled keypoints.
        MOTA: 100 (1 - (misses + false positives + switches) / labelled keypoints).
        MOTP: 100 (1 - mean distance of matches in head sizes).
        track_precision: of keypoints, as tracking matches them.
        track_recall: likewise.
        sequences: how many.
    """

    AP: Floats
    precision: Floats
    recall: Floats
    MOTA: Floats
    MOTP: Floats
    track_precision: Floats
    track_recall: Floats
    sequences: int

    def rows(self) -> dict[str, Floats]:
        """The arrays in the order of the papers' tables; precision and recall are those of tracking."""
        return {
            "mAP": self.AP,
            "MOTA": self.MOTA,
            "MOTP": self.MOTP,
            "precision": self.track_precision,
            "recall": self.track_recall,
        }

    def numbers(self) -> dict[str, float]:
        """The means of all keypoints: mAP, MOTA, MOTP, precision, recall."""
        return {name: float(values[-1]) for name, values in self.rows().items()}

    def columns(self, values: Floats) -> dict[str, float]:
        """The papers' columns of one of the arrays: groups of keypoints, then the total."""
        return {**group_means(values, COLUMNS), "Total": float(values[-1])}


def evaluate_posetrack(
    labels: Sequence[Sequence[Frame]], predictions: Sequence[Sequence[Frame]], *, compat: bool = False
) -> PoseTrackResult:
    """Scores the tracked poses of some sequences.

    Args:
        labels: of each sequence its frames in order, see `read_posetrack`.
        predictions: the same frames.
        compat: reproduce the official evaluator's habits, see the module.

    Raises:
        ValueError: other frames than the labels have, or a labelled person without a head or track.
    """
    if len(labels) != len(predictions):
        raise ValueError(f"{len(labels)} sequences are labelled, {len(predictions)} predicted")
    ranking, counts = KeypointRanking(len(JOINTS)), np.zeros((6, len(JOINTS)))
    for number, (truth, found) in enumerate(zip(labels, predictions, strict=True)):
        if len(truth) != len(found):
            raise ValueError(f"sequence {number} has {len(truth)} labelled frames and {len(found)} predicted ones")
        # whatever is predicted where nobody was labelled at all is not looked at
        pairs = [_counted(t, f, number) for t, f in zip(truth, found, strict=True) if len(t)]
        distances = [_distances(t, f) for t, f in pairs]
        for (t, f), d in zip(pairs, distances, strict=True):
            ranking.add(t.there, f.there, f.scores, d)
        kept = slice(-1) if compat else slice(None)
        for j in range(len(JOINTS)):
            counts[:, j] += _follow(pairs[kept], distances[kept], j, compat)
    return _result(ranking, counts, len(labels))


# ---- Frames ----------------------------------------------------------------------------------------------------


def _counted(truth: Frame, found: Frame, sequence: int) -> tuple[Frame, Frame]:
    """Both without what lies in ignored regions, and without people of whom nothing is left."""
    seen = truth.there.any(1)  # of the others nothing is compared
    if (truth.tracks[seen] < 0).any():
        raise ValueError(f"sequence {sequence}: a labelled person has no track, so nobody can be followed")
    if len(found) and not (truth.heads[seen] > 0).all():
        raise ValueError(f"sequence {sequence}: a labelled person has no box of the head, in whose size distances are")
    return _outside(truth, truth.ignored), _outside(found, truth.ignored)


def _outside(frame: Frame, regions: Sequence[Floats]) -> Frame:
    there = frame.there.copy()
    for region in regions:
        there &= ~_inside(frame.points, region)
    kept = there.any(1) if regions else np.ones(len(frame), bool)
    return Frame(frame.points[kept], there[kept], frame.scores[kept], frame.tracks[kept], frame.heads[kept])


def _inside(points: Floats, polygon: Floats) -> NDArray[np.bool_]:
    """Which points `[..., 2]` lie in a polygon `[V, 2]`, by the parity of the edges to their right."""
    x, y = points[..., 0], points[..., 1]
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(polygon, np.roll(polygon, -1, 0), strict=True):
        if ay != by:
            inside ^= ((ay > y) != (by > y)) & (x < (bx - ax) * (y - ay) / (by - ay) + ax)
    return inside


def _distances(truth: Frame, found: Frame) -> Floats:
    return head_distances(truth.points, truth.there, found.points, found.there, truth.heads)


# ---- Tracking --------------------------------------------------------------------------------------------------


def _follow(
    pairs: Sequence[tuple[Frame, Frame]], distances: Sequence[Floats], joint: int, compat: bool
) -> tuple[int, int, int, int, int, float]:
    """Of one keypoint in a sequence: misses, switches, false positives, labelled, matched, sum of matched distances."""
    misses = switches = false = labelled = matched = 0
    total = 0.0
    last: dict[int, int] = {}  # a labelled track -> the predicted one that it was last matched to
    notes = _Notes()
    for (truth, found), gaps in zip(pairs, distances, strict=True):
        if compat and (not len(truth) or not len(found)):
            misses, false, labelled = misses + 1, false + 1, labelled + 1
            continue
        people = truth.there[:, joint].nonzero()[0]
        predicted = (found.there[:, joint] & (found.tracks >= 0)).nonzero()[0]
        costs = gaps[np.ix_(people, predicted)][:, :, joint]
        costs = np.where(costs <= REACH, costs, np.inf)
        tracks, others = truth.tracks[people].tolist(), found.tracks[predicted].tolist()
        kept, new = _match(costs, tracks, others, last)
        matches = kept + new
        if compat:
            total += notes.distances(costs, tracks, others, kept, new, last)
        for row, column in matches:
            before = last.get(tracks[row])
            switches += before is not None and before != others[column]
            last[tracks[row]] = others[column]
            total += float(costs[row, column])
        labelled, matched = labelled + len(people), matched + len(matches)
        misses, false = misses + len(people) - len(matches), false + len(predicted) - len(matches)
    return misses, switches, false, labelled, matched, total


class _Notes:
    """What the official evaluator's library notes besides matches, for its MOTP."""

    def __init__(self) -> None:
        self._owner: dict[int, int] = {}  # a predicted track -> the labelled one that it was last newly matched to
        self._matched: tuple[set[int], set[int]] = set(), set()  # tracks of either kind that were matched before

    def distances(
        self,
        costs: Floats,
        tracks: list[int],
        others: list[int],
        kept: list[tuple[int, int]],
        new: list[tuple[int, int]],
        last: Mapping[int, int],
    ) -> float:
        """Of a frame: all pairs within reach; switches to a track not seen before; tracks that change hands."""
        total = float(costs[np.isfinite(costs)].sum())
        labelled, predicted = self._matched
        for row, column in kept + new:
            track, other, gap = tracks[row], others[column], float(costs[row, column])
            if (row, column) in new:
                total += gap * (last.get(track, other) != other and other not in predicted)
                total += gap * (self._owner.get(other, track) != track) * (1 + (track not in labelled))
                self._owner[other] = track
            labelled.add(track)
            predicted.add(other)
        return total


_Pairs = list[tuple[int, int]]


def _match(costs: Floats, tracks: list[int], others: list[int], last: Mapping[int, int]) -> tuple[_Pairs, _Pairs]:
    """Rows and columns that belong together: those that did before; and as many others as can be, nearest in sum."""
    matches: _Pairs = []
    for row, track in enumerate(tracks):
        if last.get(track) in others:
            column = others.index(last[track])
            if np.isfinite(costs[row, column]) and column not in [taken for _, taken in matches]:
                matches.append((row, column))
    rows = [row for row in range(len(tracks)) if row not in [taken for taken, _ in matches]]
    columns = [column for column in range(len(others)) if column not in [taken for _, taken in matches]]
    new: _Pairs = []
    if rows and columns:
        pairs = [[(0.0, float(costs[r, c])) if np.isfinite(costs[r, c]) else (1.0, 0.0) for c in columns] for r in rows]
        for row, place in zip(rows, lexicographic_assignment(pairs), strict=True):
            if place is not None and np.isfinite(costs[row, columns[place]]):
                new.append((row, columns[place]))
    return matches, new


def _result(ranking: KeypointRanking, counts: Floats, sequences: int) -> PoseTrackResult:
    misses, switches, false, objects, matched, distance = counts
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = 100 * (1 - (misses + switches + false) / objects)
        closeness = np.where(matched > 0, 100 * (1 - distance / np.maximum(matched, 1)), 0.0)
        shares = 100 * matched / (matched + false), 100 * matched / objects
    arrays = [*ranking.result(), np.where(objects > 0, accuracy, np.nan), closeness, *shares]
    AP, precision, recall, MOTA, MOTP, own_precision, own_recall = map(with_mean, arrays)
    return PoseTrackResult(AP, precision, recall, MOTA, MOTP, own_precision, own_recall, sequences)


# ---- Files -----------------------------------------------------------------------------------------------------


def read_posetrack(file: Path) -> list[Frame]:
    """The frames of one sequence from a file of PoseTrack18, labels or predictions.

    A keypoint is there unless the file has (0, 0, 0) for it.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is malformed; the message names file and value.
    """
    return [frame for video in read_videos(file) for frame in frames_of(video)]


def frames_of(video: Video) -> list[Frame]:
    """The frames of a video, with the keypoints that are scored."""
    places = [video.keypoints.index(name) for name in JOINTS]
    return [_frame(frame, places) for frame in video.frames]


def _frame(frame: VideoFrame, places: list[int]) -> Frame:
    people, shape = frame.people, (len(frame.people), len(JOINTS))
    boxes = [(np.nan,) * 4 if p.head is None else (0.0, 0.0, *np.abs(p.head[2:])) for p in people]
    return Frame(
        points=np.array([p.points[places] for p in people]).reshape(*shape, 2),
        there=np.array([p.there[places] for p in people], bool).reshape(shape),
        scores=np.array([p.scores[places] for p in people]).reshape(shape),
        tracks=np.array([p.track for p in people], np.int64),
        heads=head_sizes(np.array(boxes).reshape(-1, 4)),
        ignored=frame.ignored,
    )
