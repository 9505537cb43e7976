"""Where people go who were found: JSON, JSONL, labels to train from, `supervision`; each written frame by frame.

Every writer is a context manager with `add(found)`. Whatever ends its block, what was added before is kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from posekd.deploy.predict import Found
from posekd.files import growing, write_atomically
from posekd.paradigms.bottom_up import boxes_around
from posekd.skeleton import Skeleton
from posekd.structures import Instances

if TYPE_CHECKING:
    import supervision

Add = Callable[[Found], None]
Writer = AbstractContextManager[Add]


@contextmanager
def coco_results(path: str | os.PathLike[str], category_id: int = 1) -> Iterator[Add]:
    """COCO's results format, a list: `image_id`, `category_id`, `keypoints`, `score`, with `file_name` beside them."""
    first = True
    with growing(path, "[", "\n]\n") as append:

        def add(found: Found) -> None:
            nonlocal first
            for person in _rows(found.people):
                entry = {
                    "image_id": found.image_id,
                    "category_id": category_id,
                    "keypoints": [value for point in person["keypoints"] for value in point],
                    "score": person["score"],
                    "file_name": found.frame.name,
                }
                append(("\n" if first else ",\n") + json.dumps(entry | _track(person)))
                first = False

        yield add


@contextmanager
def json_lines(path: str | os.PathLike[str]) -> Iterator[Add]:
    """A line for each frame: `source`, `frame`, `file`, `image_id` and its `people`; `problem` if it was not decoded.

    A person has `keypoints` (x, y, score for each), `score`, `box` and `box_score`, and `track_id` with tracking.
    """
    with growing(path) as append:

        def add(found: Found) -> None:
            line: dict[str, Any] = {
                "source": found.clip.name,
                "frame": found.frame.index,
                "file": found.frame.name,
                "image_id": found.image_id,
                "people": _rows(found.people),
            }
            if found.frame.problem is not None:
                line["problem"] = found.frame.problem
            append(json.dumps(line) + "\n")

        yield add


@contextmanager
def coco_labels(path: str | os.PathLike[str], skeleton: Skeleton, threshold: float = 0.2) -> Iterator[Add]:
    """Labels to train from, in COCO's format; file names are relative to the folder that holds all images.

    A keypoint whose score is above the threshold is labelled as visible, another one is unlabelled; people without any
    are left out. Annotations also have `score` and `keypoint_scores`, which training does not read. Boxes are those
    that were cropped, if the network was given some, and else boxes around the labelled keypoints.

    Args:
        path: the file.
        skeleton: the keypoints, whose names, edges and sigmas the category gets.
        threshold: of keypoint scores, 0..1.

    Raises:
        ValueError: a frame of a video, which is no file that could be trained from.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []

    def add(found: Found) -> None:
        if found.clip.rate is not None or not os.path.isfile(found.frame.name):
            raise ValueError(f"{found.frame.name} is no image file, so nothing can be trained from its labels")
        if found.frame.image is None:
            return
        height, width = found.frame.image.shape[:2]
        images.append({"id": found.image_id, "file_name": found.frame.name, "width": width, "height": height})
        for person in _labelled(found, skeleton, threshold):
            annotations.append({"id": len(annotations) + 1, "image_id": found.image_id, **person})

    try:
        yield add
    finally:
        if images:
            folder = os.path.commonpath([os.path.dirname(os.path.abspath(image["file_name"])) for image in images])
            for image in images:
                image["file_name"] = os.path.relpath(image["file_name"], folder)
            content = {"images": images, "annotations": annotations, "categories": [_category(skeleton)]}
            write_atomically(path, json.dumps(content))


def _labelled(found: Found, skeleton: Skeleton, threshold: float) -> Iterator[dict[str, Any]]:
    people = found.people
    for row in range(len(people)):
        points = people.keypoints[row].double().numpy()
        seen = points[:, 2] > threshold
        if not seen.any():
            continue
        given = bool(people.sample_ids[row] >= 0) and not _is_whole(found, row)
        box = people.boxes[row : row + 1] if given else boxes_around(people.keypoints[row : row + 1, seen])
        x, y, width, height = box[0].double().clamp_min(0).tolist()
        labels = np.where(seen[:, None], np.column_stack([points[:, :2].round(2), np.full(len(points), 2)]), 0)
        yield {
            "category_id": 1,
            "iscrowd": 0,
            "bbox": [round(v, 2) for v in (x, y, max(width, 1.0), max(height, 1.0))],
            "area": round(max(width, 1.0) * max(height, 1.0), 2),
            "num_keypoints": int(seen.sum()),
            "keypoints": labels.reshape(-1).tolist(),
            "score": round(float(people.scores[row]), 4),
            "keypoint_scores": points[:, 2].round(4).tolist(),
        }


def _is_whole(found: Found, row: int) -> bool:
    assert found.frame.image is not None
    height, width = found.frame.image.shape[:2]
    return found.people.boxes[row].tolist() == [0, 0, width, height]


def _category(skeleton: Skeleton) -> dict[str, Any]:
    edges = [[a + 1, b + 1] for a, b in skeleton.edges]
    return {"id": 1, "name": skeleton.name, "keypoints": list(skeleton.keypoints), "skeleton": edges}


def _rows(people: Instances) -> list[dict[str, Any]]:
    """People as JSON has them; coordinates to a thousandth of a pixel, scores to six digits."""
    keypoints = people.keypoints.double().numpy().round(6)
    keypoints[..., :2] = keypoints[..., :2].round(3)
    tracks: Sequence[Any] = [None] * len(people) if people.track_ids is None else people.track_ids.tolist()
    columns = (keypoints, people.scores.tolist(), people.boxes.tolist(), people.box_scores.tolist(), tracks)
    return [
        {
            "keypoints": points.tolist(),
            "score": round(score, 6),
            "box": [round(value, 3) for value in box],
            "box_score": round(box_score, 6),
            **({} if track is None else {"track_id": track}),
        }
        for points, score, box, box_score, track in zip(*columns, strict=True)
    ]


def _track(person: dict[str, Any]) -> dict[str, Any]:
    return {"track_id": person["track_id"]} if "track_id" in person else {}


def to_supervision(people: Instances) -> supervision.KeyPoints:
    """People as `supervision.KeyPoints`, with `image_ids` (and `track_ids`) under `data`.

    Raises:
        ImportError: `supervision` is not installed.
    """
    try:
        import supervision
    except ImportError as error:
        raise ImportError("supervision is not installed: pip install supervision") from error
    data: dict[str, Any] = {"image_ids": people.image_ids.numpy()}
    if people.track_ids is not None:
        data["track_ids"] = people.track_ids.numpy()
    return supervision.KeyPoints(
        xy=people.keypoints[..., :2].numpy(),
        keypoint_confidence=people.keypoints[..., 2].numpy(),
        detection_confidence=people.scores.float().numpy(),
        class_id=np.zeros(len(people), int),
        data=data,
    )
