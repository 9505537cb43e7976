"""PoseTrack18's JSON, a file for each video: frames with ignored regions, people with tracks; read and written.

A keypoint is there unless the file has (0, 0, 0) for it. Files that hold several videos (by `vid_id`, or by the folders
of the images) are taken apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posekd import coco_rules
from posekd.files import write_atomically

Floats = NDArray[np.float64]

JOINTS = (
    "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "right_wrist", "right_elbow",
    "right_shoulder", "left_shoulder", "left_elbow", "left_wrist", "head_bottom", "nose", "head_top",
)  # fmt: skip
"""The keypoints that are scored, in the official order. (Ears, which PoseTrack18 lists too, are not.)"""

NO_SCORE = -9999.0
NO_TRACK = -1


@dataclass(frozen=True)
class VideoPerson:
    """Somebody in one frame, labelled or predicted.

    Attributes:
        id: of the annotation.
        points: float64 `[K, 2]` in pixels.
        there: bool `[K]`, which keypoints are labelled, or predicted.
        scores: float64 `[K]`, of predictions; `NO_SCORE` where the file has none.
        track: the same number for the same person over a video; `NO_TRACK` where the file has none.
        score: of the person, where it is predicted.
        head: box of the head (x, y, width, height) in pixels; None where the file has none.
        box: likewise of the person.
    """

    id: int
    points: Floats
    there: NDArray[np.bool_]
    scores: Floats
    track: int = NO_TRACK
    score: float | None = None
    head: Floats | None = None
    box: Floats | None = None


@dataclass(frozen=True)
class VideoFrame:
    """One frame.

    Attributes:
        image_id: of the image.
        file_name: as the file has it, relative to the dataset's folder.
        people: whoever is labelled or predicted.
        ignored: polygons `[V, 2]` inside which neither labels nor predictions count.
        labelled: whether anybody has looked for people here (`is_labeled`).
        size: `(height, width)` in pixels; None where the file does not say.
    """

    image_id: int
    file_name: str
    people: tuple[VideoPerson, ...] = ()
    ignored: tuple[Floats, ...] = ()
    labelled: bool = True
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Video:
    """The frames of one video in their order.

    Attributes:
        name: of its file, without the suffix.
        keypoints: K names.
        edges: pairs of keypoints, from 0, that are drawn connected.
        frames: at least one.
        labelled: whether the file has a list of annotations.
    """

    name: str
    keypoints: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    frames: tuple[VideoFrame, ...]
    labelled: bool = True


# ---- Reading ---------------------------------------------------------------------------------------------------


def read_videos(path: Path, setting: str = "") -> list[Video]:
    """The videos of a file, or of all `.json` files of a folder by name.

    Args:
        path: the file or folder.
        setting: what named it, for messages.

    Raises:
        FileNotFoundError: there is no such file, or the folder has none.
        ValueError: a malformed file; the message names file, annotation and value.
    """
    if not path.is_dir():
        return _read_file(path, setting)
    files = sorted(path.glob("*.json"))
    if not files:
        raise FileNotFoundError(f"the folder {path} holds no .json file{f' (setting `{setting}`)' if setting else ''}")
    videos = [video for file in files for video in _read_file(file, setting)]
    names = [video.name for video in videos]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise ValueError(f"{path}: the video {twice} occurs twice")
    return videos


def _read_file(file: Path, setting: str) -> list[Video]:
    data = coco_rules.read_json(file, setting)
    name = str(file)
    labelled = not isinstance(data, Mapping) or "annotations" in data
    names, edges = _category(data, name)
    images = coco_rules.entries(data, "images", name)
    if not images:
        raise ValueError(f"{name}: the video has no frames (`images` is empty)")
    people: dict[Any, list[VideoPerson]] = {}
    for image in images:
        if image["id"] in people:
            raise ValueError(f"{name}: image {image['id']} is listed twice")
        people[image["id"]] = []
    annotations = coco_rules.entries(data, "annotations", name) if labelled else []
    coco_rules.refuse_unknown((a.get("image_id") for a in annotations), people, f"{name}: people are on", "the file")
    for annotation in annotations:
        people[annotation["image_id"]].append(_person(annotation, len(names), name))
    groups: dict[str, list[VideoFrame]] = {}
    for image in images:
        frame = _frame(image, tuple(people[image["id"]]), f"{name}: image {image['id']}")
        groups.setdefault(_video_of(image, frame), []).append(frame)
    if len(groups) == 1:
        return [Video(file.stem, names, edges, tuple(*groups.values()), labelled)]
    return [Video(group, names, edges, tuple(frames), labelled) for group, frames in groups.items()]


def _video_of(image: Mapping[str, Any], frame: VideoFrame) -> str:
    folder = PurePosixPath(frame.file_name).parent.name
    return folder or str(image.get("vid_id", ""))


def _category(data: Any, name: str) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    listed = coco_rules.entries(data, "categories", name)
    category = listed[0] if listed else {}
    names = tuple(coco_rules.keypoint_names(category, name))
    missing = [joint for joint in JOINTS if joint not in names]
    if missing:
        raise ValueError(f"{name}: its category lacks the keypoints {missing}: not a file of PoseTrack18")
    if len(set(names)) < len(names):
        raise ValueError(f"{name}: the category's keypoints must be different, got {list(names)}")
    drawn = coco_rules.with_good_edges(category, name, {})
    return names, tuple((a - 1, b - 1) for a, b in drawn.get("skeleton") or ())


def _frame(image: Mapping[str, Any], people: tuple[VideoPerson, ...], who: str) -> VideoFrame:
    file_name = image.get("file_name", "")
    if not isinstance(file_name, str) or "\0" in file_name:
        raise ValueError(f"{who}: file_name must be text, got {file_name!r:.80}")
    tracks = [person.track for person in people if person.track != NO_TRACK]
    if len(set(tracks)) < len(tracks):
        raise ValueError(f"{who}: a track_id occurs twice in one frame: {sorted(tracks)}")
    size = None
    if image.get("height") is not None and image.get("width") is not None:
        height, width = (coco_rules.whole(image[key], f"{who}: {key}") for key in ("height", "width"))
        if height < 1 or width < 1 or height * width > coco_rules.MAX_PIXELS:
            raise ValueError(f"{who} is {width} x {height} pixels; 1 to {coco_rules.MAX_PIXELS} can be read")
        size = height, width
    labelled = bool(image.get("is_labeled", True))
    return VideoFrame(
        coco_rules.whole(image["id"], f"{who}: id"), file_name, people, _regions(image, who), labelled, size
    )


def _regions(image: Mapping[str, Any], who: str) -> tuple[Floats, ...]:
    xs, ys = (image.get(f"ignore_regions_{axis}") or [] for axis in "xy")
    if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
        raise ValueError(
            f"{who}: ignore_regions_x and ignore_regions_y must be as many lists, got {xs!r:.60}, {ys!r:.60}"
        )
    if xs and not isinstance(xs[0], list):  # one polygon without a list around it
        xs, ys = [xs], [ys]
    polygons = []
    for x, y in zip(xs, ys, strict=True):
        count = len(x) if isinstance(x, list) else 0
        columns = [coco_rules.numbers(axis, count, f"{who}: an ignored region's coordinates") for axis in (x, y)]
        polygons.append(np.stack(columns, 1))
    return tuple(polygons)


def _person(annotation: Mapping[str, Any], K: int, name: str) -> VideoPerson:
    who = coco_rules.who_is(annotation, name)
    values = coco_rules.numbers(annotation.get("keypoints"), 3 * K, f"{who}: keypoints").reshape(K, 3)
    scores = np.full(K, NO_SCORE)
    if annotation.get("scores"):
        scores = coco_rules.numbers(annotation["scores"], K, f"{who}: scores")
    score = annotation.get("score")
    if score is not None:
        (score,) = coco_rules.numbers(score if isinstance(score, list) else [score], 1, f"{who}: score").tolist()
    boxes = [
        None if annotation.get(key) is None else coco_rules.numbers(annotation[key], 4, f"{who}: {key}")
        for key in ("bbox_head", "bbox")
    ]
    return VideoPerson(
        id=coco_rules.whole(annotation["id"], f"{who}: id"),
        points=values[:, :2],
        there=np.any(values != 0, axis=1),
        scores=scores,
        track=coco_rules.whole(annotation.get("track_id", NO_TRACK), f"{who}: track_id"),
        score=score,
        head=boxes[0],
        box=boxes[1],
    )


# ---- Writing ---------------------------------------------------------------------------------------------------


def as_json(video: Video) -> dict[str, Any]:
    """A video as PoseTrack18's files have it; coordinates to a thousandth of a pixel, scores to six digits."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for frame in video.frames:
        images.append(_image_entry(video, frame))
        annotations += [_annotation(person, frame.image_id) for person in frame.people]
    category = {
        "id": 1,
        "name": "person",
        "supercategory": "person",
        "keypoints": list(video.keypoints),
        "skeleton": [[a + 1, b + 1] for a, b in video.edges],
    }
    labels = {"annotations": annotations} if video.labelled else {}
    return {"images": images, **labels, "categories": [category]}


def _image_entry(video: Video, frame: VideoFrame) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "id": frame.image_id,
        "frame_id": frame.image_id,
        "file_name": frame.file_name,
        "vid_id": video.name.partition("_")[0],
        "nframes": len(video.frames),
        "is_labeled": frame.labelled,
        "ignore_regions_x": [polygon[:, 0].tolist() for polygon in frame.ignored],
        "ignore_regions_y": [polygon[:, 1].tolist() for polygon in frame.ignored],
    }
    return entry if frame.size is None else {**entry, "height": frame.size[0], "width": frame.size[1]}


def _annotation(person: VideoPerson, image_id: int) -> dict[str, Any]:
    points = np.where(person.there[:, None], person.points.round(3), 0.0)
    keypoints = np.concatenate((points, person.there[:, None]), 1)
    entry: dict[str, Any] = {
        "id": person.id,
        "image_id": image_id,
        "category_id": 1,
        "track_id": person.track,
        "keypoints": keypoints.reshape(-1).tolist(),
        "scores": [],
    }
    if person.score is not None:
        entry |= {"score": [round(person.score, 6)], "scores": person.scores.round(6).tolist()}
    else:
        entry |= {"iscrowd": False, "num_keypoints": int(person.there.sum())}
    for key, box in (("bbox_head", person.head), ("bbox", person.box)):
        if box is not None:
            entry[key] = box.round(3).tolist()
    return entry


def write_videos(videos: Sequence[Video], path: Path) -> None:
    """Writes each video to a file of its name in a folder; a single one to a file, if `path` ends in `.json`."""
    if path.suffix == ".json" and len(videos) == 1:
        write_atomically(path, json.dumps(as_json(videos[0])))
        return
    for video in videos:
        write_atomically(path / f"{video.name}.json", json.dumps(as_json(video)))
