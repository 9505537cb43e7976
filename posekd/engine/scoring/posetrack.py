"""PoseTrack's mAP and tracking accuracy of people in videos, and its result files: native JSON, one for each video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from rich.console import Console

from posekd.data import PoseRecords, PoseSource
from posekd.data.sources.posetrack import PoseTrackSettings, has_labels
from posekd.engine.scoring.base import Metric, NotScoredError, Score
from posekd.metrics import PoseTrackResult, evaluate_posetrack
from posekd.metrics.posetrack import frames_of
from posekd.posetrack_json import NO_TRACK, Video, VideoFrame, VideoPerson, read_videos, write_videos
from posekd.skeleton import Skeleton
from posekd.structures import Instances
from posekd.viz.tables import print_posetrack


class VideoSource(PoseSource, Protocol):
    """A dataset of videos."""

    videos: Sequence[Video]
    """All frames with their labels."""
    compat: bool
    """Whether the official evaluator's habits are reproduced."""


def found_videos(source: PoseSource, people: Instances) -> list[Video]:
    """The people found as PoseTrack's files have them; a keypoint's score is its own times that of its person's box."""
    videos, skeleton = cast(VideoSource, source).videos, source.records.skeleton
    rows: dict[int, list[int]] = {}
    for row, image_id in enumerate(people.image_ids.tolist()):
        rows.setdefault(image_id, []).append(row)
    return [_found(video, people, rows, skeleton) for video in videos]


def _found(video: Video, people: Instances, rows: dict[int, list[int]], skeleton: Skeleton) -> Video:
    keypoints = people.keypoints.double().numpy()
    scores = keypoints[..., 2] * people.box_scores.double().numpy()[:, None]
    boxes, whole = people.boxes.double().numpy(), people.scores.tolist()
    tracks = [NO_TRACK] * len(people) if people.track_ids is None else people.track_ids.tolist()

    def person(row: int) -> VideoPerson:
        there = keypoints[row, :, 2] > 0
        points = np.where(there[:, None], keypoints[row, :, :2].round(3), 0.0)
        own = np.where(there, scores[row].round(6), 0.0)
        return VideoPerson(row, points, there, own, tracks[row], whole[row], box=boxes[row])

    frames = tuple(
        replace(frame, people=tuple(map(person, rows.get(frame.image_id, ()))), ignored=()) for frame in video.frames
    )
    return Video(video.name, skeleton.keypoints, skeleton.edges, frames)


def score_videos(labels: Sequence[Video], found: Sequence[Video], compat: bool) -> Score:
    """Scores predictions; their frames are found by the ids of images, whatever the files are called.

    Raises:
        NotScoredError: nobody is labelled, or somebody has no box of the head or no track.
        ValueError: a labelled frame that the predictions do not list.
    """
    labelled = [video for video in labels if any(has_labels(p) for frame in video.frames for p in frame.people)]
    if not labelled:
        raise NotScoredError("no labels")
    people = [p for video in labelled for frame in video.frames for p in frame.people if has_labels(p)]
    for what, absent in (
        ("box of the head, in whose size distances are", [p.id for p in people if p.head is None]),
        ("track_id, so nobody can be followed", [p.id for p in people if p.track == NO_TRACK]),
    ):
        if absent:
            whom = f"{len(absent)} of {len(people)} labelled people (the first is annotation {absent[0]})"
            raise NotScoredError(f"{whom} have no {what}")
    given = {frame.image_id: (video, frame) for video in found for frame in video.frames}
    pairs = [(video, _matching(video, given)) for video in labelled]
    truth, predictions = ([frames_of(video) for video in side] for side in zip(*pairs, strict=True))
    result = evaluate_posetrack(truth, predictions, compat=compat)
    trackless = sum(int((frame.tracks < 0).sum()) for video in predictions for frame in video)
    notes = [f"{trackless} predicted people have no track and count for AP alone"] if trackless else []
    beyond = len(given) - sum(len(video.frames) for video in labels)
    if beyond > 0:
        notes.append(f"{beyond} predicted frames are of no labelled video: not scored")
    if len(labelled) < len(labels):
        notes.append(f"{len(labels) - len(labelled)} of {len(labels)} videos have no labels: not scored")
    return Score(result.numbers(), result, "; ".join(notes))


def _matching(video: Video, given: dict[int, tuple[Video, VideoFrame]]) -> Video:
    """The predicted frames of a labelled video, in its order."""
    absent = [frame.image_id for frame in video.frames if frame.image_id not in given]
    if absent:
        raise ValueError(
            f"the predictions lack {len(absent)} of the {len(video.frames)} frames of {video.name}, the first is image "
            f"{absent[0]}: list every frame under `images`, also where nobody is found"
        )
    source = given[video.frames[0].image_id][0]
    return replace(source, frames=tuple(given[frame.image_id][1] for frame in video.frames))


def _score(source: PoseSource, people: Instances) -> Score:
    videos = cast(VideoSource, source)
    return score_videos(videos.videos, found_videos(source, people), videos.compat)


def _write(source: PoseSource, people: Instances, path: Path) -> None:
    write_videos(found_videos(source, people), path)


def _check_file(source: PoseSource, path: Path) -> None:
    count = len(cast(VideoSource, source).videos)
    if path.suffix == ".mat":
        raise ValueError(f"{path}: this dataset's predictions are written as .json, not as .mat")
    if path.suffix == ".json" and count > 1:
        raise ValueError(f"{path}: {count} videos are written as {count} files: name a folder, without .json")
    if path.suffix != ".json" and path.is_file():
        raise ValueError(f"{path} is a file, and the videos' files need a folder: name another one")


def _score_file(settings: PoseTrackSettings, labels: PoseRecords | None, path: Path) -> Score:
    truth = read_videos(Path(settings.annotations), "annotations")
    return score_videos(truth, read_videos(path, "score_only"), settings.compat)


def _values(score: Score) -> dict[str, Any]:
    result = cast(PoseTrackResult, score.result)
    rows = {name: result.columns(values) for name, values in result.rows().items()}
    return {
        **_plain(score.numbers),
        "sequences": result.sequences,
        "columns": {name: _plain(row) for name, row in rows.items()},
        "note": score.note,
    }


def _plain(numbers: Any) -> dict[str, float | None]:
    """NaN, where no such keypoint is labelled, as null."""
    return {name: None if np.isnan(value) else value for name, value in numbers.items()}


def _show(score: Score, console: Console, title: str) -> None:
    print_posetrack(score.result, console, title)


POSETRACK = Metric(
    scale=100.0,
    given=False,
    score=_score,
    write=_write,
    check_file=_check_file,
    score_file=_score_file,
    values=_values,
    show=_show,
    folder=True,
)
