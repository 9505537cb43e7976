"""Tiny videos in PoseTrack18's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from posekd.skeleton import POSETRACK

NAMES = list(POSETRACK.keypoints)


def person(image_id: int, track: int, place: float = 20.0, **changes: Any) -> dict[str, Any]:
    """Somebody whose 15 scored keypoints lie on a line, 2 pixels apart, with a head of 10 pixels."""
    points = [[place + 2 * k, 30.0, 1.0] if "ear" not in name else [0, 0, 0] for k, name in enumerate(NAMES)]
    return {
        "id": 10 * image_id + track,
        "image_id": image_id,
        "category_id": 1,
        "track_id": track,
        "keypoints": [value for point in points for value in point],
        "bbox_head": [place, 10.0, 10.0 / 0.6, 0.0],
        "bbox": [place, 10.0, 40.0, 50.0],
        **changes,
    }


def video(name: str, people: list[list[dict[str, Any]]] | None, first: int = 1, **images: Any) -> dict[str, Any]:
    """A file's content: people of each frame; None for three frames of a video without labels."""
    frames = [
        {"id": first + i, "file_name": f"images/val/{name}/{i:06d}.jpg", "vid_id": name, "is_labeled": True, **images}
        for i in range(3 if people is None else len(people))
    ]
    labels = {} if people is None else {"annotations": [someone for own in people for someone in own]}
    return {"images": frames, "categories": [{"id": 1, "name": "person", "keypoints": NAMES}], **labels}


def write_folder(root: Path, videos: dict[str, dict[str, Any]], pictures: bool = True) -> Path:
    """Writes label files, and grey pictures of 80 x 100 beside them; gives the folder of labels."""
    labels = root / "annotations" / "val"
    labels.mkdir(parents=True, exist_ok=True)
    for name, content in videos.items():
        (labels / f"{name}.json").write_text(json.dumps(content))
        for frame in content["images"] if pictures else ():
            file = root / frame["file_name"]
            file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(file), np.full((80, 100, 3), 90, np.uint8))
    return labels
