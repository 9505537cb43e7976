"""PoseTrack's AP of keypoints and its tracking accuracy (MOTA), by the rules of the official evaluator.

Distances are in units of the labelled head: 0.6 of its box's diagonal; a keypoint is found within half of it. For AP
each predicted person stands for the labelled one that it meets best, each labelled person takes the best of these, and
the keypoints of both are ranked by score, one by one. For MOTA a labelled keypoint keeps the track that it was last
matched to where that is near enough; the rest is assigned at the least distance, each keypoint by itself, whatever the
person.

`compat=True` is the official evaluator's answer with three of its habits: a sequence's last frame does not count for
tracking; a frame where nobody is labelled, or nobody predicted, counts as one miss and one false positive of every
keypoint; and MOTP adds up the distances of all events that its library notes, those of every pair within reach, and of
tracks that change hands, among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posekd import coco_rules
from posekd.ops.reference.assignment import lexicographic_assignment

Floats = NDArray[np.float64]

JOINTS = (
    "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "right_wrist", "right_elbow",
    "right_shoulder", "left_shoulder", "left_elbow", "left_wrist", "head_bottom", "nose", "head_top",
)  # fmt: skip
"""The keypoints that are scored, in the official order. (Ears, which PoseTrack18 lists too, are not.)"""

COLUMNS: dict[str, tuple[int, ...]] = {
    "Head": (14, 12, 13),
    "Sho": (8, 9),
    "Elb": (7, 10),
    "Wri": (6, 11),
    "Hip": (2, 3),
    "Knee": (1, 4),
    "Ankl": (0, 5),
}
"""The columns of the papers' tables: each the mean of its keypoints."""

REACH = 0.5  # head sizes
HEAD = 0.6  # of the diagonal of the head's box
NO_SCORE = -9999.0


@dataclass(frozen=True)
class Frame:
    """The people of one frame of a video.

    Attributes:
        points: float64 `[N, 15, 2]` in pixels.
        there: bool `[N, 15]`, which keypoints are labelled, or predicted.
        scores: float64 `[N, 15]`, of predictions.
        tracks: int64 `[N]`, the same number for the same person over a sequence.
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

    def numbers(self) -> dict[str, float]:
        """The means in the order of the papers' tables: mAP, MOTA, MOTP, precision, recall."""
        named = {
            "mAP": self.AP,
            "MOTA": self.MOTA,
            "MOTP": self.MOTP,
            "precision": self.track_precision,
            "recall": self.track_recall,
        }
        return {name: float(values[-1]) for name, values in named.items()}

    def columns(self, values: Floats) -> dict[str, float]:
        """The papers' columns of one of the arrays: groups of keypoints, then the total."""
        return {**{name: float(values[list(of)].mean()) for name, of in COLUMNS.items()}, "Total": float(values[-1])}


def evaluate_posetrack(
    labels: Sequence[Sequence[Frame]], predictions: Sequence[Sequence[Frame]], *, compat: bool = False
) -> PoseTrackResult:
    """Scores the tracked poses of some sequences.

    Args:
        labels: of each sequence its frames in order, see `read_posetrack`.
        predictions: the same frames.
        compat: reproduce the official evaluator's habits, see the module.

    Raises:
        ValueError: other frames than the labels have, a labelled person without a head, or a track twice in a frame.
    """
    if len(labels) != len(predictions):
        raise ValueError(f"{len(labels)} sequences are labelled, {len(predictions)} predicted")
    ranked: list[tuple[Floats, Floats]] = [(np.zeros(0), np.zeros(0))] * len(JOINTS)
    labelled, counts = np.zeros(len(JOINTS)), np.zeros((6, len(JOINTS)))
    for number, (truth, found) in enumerate(zip(labels, predictions, strict=True)):
        if len(truth) != len(found):
            raise ValueError(f"sequence {number} has {len(truth)} labelled frames and {len(found)} predicted ones")
        # whatever is predicted where nobody was labelled at all is not looked at
        pairs = [_counted(t, f) for t, f in zip(truth, found, strict=True) if len(t)]
        distances = [_distances(t, f, number) for t, f in pairs]
        for (t, f), d in zip(pairs, distances, strict=True):
            labelled += t.there.sum(0)
            hits = _hits(t, d)
            for j in range(len(JOINTS)):
                own = f.there[:, j]
                scores, right = ranked[j]
                ranked[j] = np.append(scores, f.scores[own, j]), np.append(right, hits[own, j])
        kept = slice(-1) if compat else slice(None)
        for j in range(len(JOINTS)):
            counts[:, j] += _follow(pairs[kept], distances[kept], j, compat)
    return _result(ranked, labelled, counts, len(labels))


# ---- Frames ----------------------------------------------------------------------------------------------------


def _counted(truth: Frame, found: Frame) -> tuple[Frame, Frame]:
    """Both without what lies in ignored regions, and without people of whom nothing is left."""
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


def _distances(truth: Frame, found: Frame, sequence: int) -> Floats:
    """In head sizes, `[labelled people, predicted people, 15]`; infinite where either has no such keypoint."""
    if not len(truth) or not len(found):
        return np.full((len(truth), len(found), len(JOINTS)), np.inf)
    if not (truth.heads > 0).all():
        raise ValueError(f"sequence {sequence}: a labelled person has no box of the head, in whose size distances are")
    gaps = np.linalg.norm(truth.points[:, None] - found.points, axis=-1) / truth.heads[:, None, None]
    return np.where(truth.there[:, None] & found.there, gaps, np.inf)


# ---- AP --------------------------------------------------------------------------------------------------------


def _hits(truth: Frame, distances: Floats) -> NDArray[np.bool_]:
    """Which keypoints of the predicted people are right, `[predicted people, 15]`."""
    people, predicted = distances.shape[:2]
    hits = np.zeros((predicted, len(JOINTS)), bool)
    if not people or not predicted:
        return hits
    near = distances <= REACH
    share = near.sum(2) / np.maximum(truth.there.sum(1), 1)[:, None]
    own = share.argmax(0)  # of each predicted person the labelled one that it meets best
    share = np.where(np.arange(people)[:, None] == own, share, 0.0)
    best = share.argmax(1)
    for person in np.flatnonzero(share.max(1) > 0):
        hits[best[person]] = near[person, best[person]]
    return hits


def _average_precision(scores: Floats, right: Floats, labelled: float) -> tuple[float, float, float]:
    """AP as Pascal VOC computes it, precision and recall of all; percent."""
    if not len(scores):
        return 0.0, 0.0, 0.0
    order = scores.argsort()[::-1]
    found = right[order].cumsum()
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, precision = found / labelled, found / np.arange(1, len(found) + 1)
    steps = np.diff(np.concatenate(([0.0], recall, [1.0])))
    envelope = np.maximum.accumulate(np.append(precision, 0.0)[::-1])[::-1]
    return 100 * float((steps * envelope).sum()), 100 * float(precision[-1]), 100 * float(recall[-1])


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
        people, predicted = truth.there[:, joint].nonzero()[0], found.there[:, joint].nonzero()[0]
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


def _result(
    ranked: Sequence[tuple[Floats, Floats]], labelled: Floats, counts: Floats, sequences: int
) -> PoseTrackResult:
    pose = [_average_precision(*of, count) for of, count in zip(ranked, labelled, strict=True)]
    misses, switches, false, objects, matched, distance = counts
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = 100 * (1 - (misses + switches + false) / objects)
        closeness = np.where(matched > 0, 100 * (1 - distance / np.maximum(matched, 1)), 0.0)
        shares = 100 * matched / (matched + false), 100 * matched / objects
    arrays = [*np.array(pose).T, np.where(objects > 0, accuracy, np.nan), closeness, *shares]
    AP, precision, recall, MOTA, MOTP, own_precision, own_recall = map(_with_mean, arrays)
    return PoseTrackResult(AP, precision, recall, MOTA, MOTP, own_precision, own_recall, sequences)


def _with_mean(values: Floats) -> Floats:
    known = values[~np.isnan(values)]
    return np.append(values, known.mean() if len(known) else np.nan)


# ---- Files -----------------------------------------------------------------------------------------------------


def read_posetrack(file: Path) -> list[Frame]:
    """The frames of one sequence from a file of PoseTrack18, labels or predictions.

    A keypoint is there unless the file has (0, 0, 0) for it.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is malformed; the message names file and value.
    """
    data = coco_rules.read_json(file)
    people = coco_rules.entries(data, "annotations", str(file))
    (category, *_) = coco_rules.entries(data, "categories", str(file)) or [{}]
    names = coco_rules.keypoint_names(category, str(file))
    missing = [name for name in JOINTS if name not in names]
    if missing:
        raise ValueError(f"{file}: its category lacks the keypoints {missing}: not a file of PoseTrack18")
    places = [names.index(name) for name in JOINTS]
    groups: dict[Any, list[dict[str, Any]]] = {
        image["id"]: [] for image in coco_rules.entries(data, "images", str(file))
    }
    coco_rules.refuse_unknown((p.get("image_id") for p in people), groups, f"{file}: people are on", "the file")
    for person in people:
        groups[person["image_id"]].append(person)
    frames = []
    for image in coco_rules.entries(data, "images", str(file)):
        rows = [_read_person(person, places, len(names), str(file)) for person in groups[image["id"]]]
        regions = zip(image.get("ignore_regions_x") or (), image.get("ignore_regions_y") or (), strict=True)
        ignored = tuple(np.array([x, y], np.float64).T for x, y in regions)
        frames.append(_frame(rows, ignored, f"{file}: image {image['id']}"))
    return frames


_Person = tuple[Floats, NDArray[np.bool_], Floats, int, float]


def _read_person(person: Mapping[str, Any], places: list[int], K: int, name: str) -> _Person:
    who = coco_rules.who_is(person, name)
    points = coco_rules.numbers(person.get("keypoints"), 3 * K, f"{who}: keypoints").reshape(K, 3)[places]
    scores = np.full(len(places), NO_SCORE)
    if person.get("scores"):
        scores = coco_rules.numbers(person["scores"], K, f"{who}: scores")[places]
    head = np.nan
    if person.get("bbox_head") is not None:
        head = HEAD * float(np.linalg.norm(coco_rules.numbers(person["bbox_head"], 4, f"{who}: bbox_head")[2:]))
    track = coco_rules.whole(person.get("track_id", -1), f"{who}: track_id")
    there: NDArray[np.bool_] = np.any(points != 0, axis=1)
    return points[:, :2], there, scores, track, head


def _frame(rows: Sequence[_Person], ignored: tuple[Floats, ...], who: str) -> Frame:
    tracks = [row[3] for row in rows if row[3] >= 0]
    if len(set(tracks)) < len(tracks):
        raise ValueError(f"{who}: a track_id occurs twice in one frame: {sorted(tracks)}")
    count = len(rows)
    return Frame(
        points=np.array([row[0] for row in rows]).reshape(count, len(JOINTS), 2),
        there=np.array([row[1] for row in rows], bool).reshape(count, len(JOINTS)),
        scores=np.array([row[2] for row in rows]).reshape(count, len(JOINTS)),
        tracks=np.array([row[3] for row in rows], np.int64),
        heads=np.array([row[4] for row in rows], np.float64),
        ignored=ignored,
    )
