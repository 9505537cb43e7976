"""Small COCO folders for tests."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from posekd.data import CocoSettings
from posekd.skeleton import COCO

HEIGHT, WIDTH = 60, 80


def person(annotation_id: int, image_id: int, **changes) -> dict:
    """A person with all 17 keypoints along the diagonal of its box."""
    box = [10.0, 5.0, 30.0, 40.0]
    keypoints = [v for i in range(17) for v in (box[0] + i, box[1] + 2 * i, 2)]
    entry = {
        "id": annotation_id, "image_id": image_id, "category_id": 1, "iscrowd": 0, "area": 1200.0,
        "bbox": box, "num_keypoints": 17, "keypoints": keypoints,
    }  # fmt: skip
    return {**entry, **changes}


def labels(annotations: list[dict], image_ids=(1, 2, 3)) -> dict:
    """A COCO dictionary of those annotations."""
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in image_ids],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person", "keypoints": list(COCO.keypoints), "skeleton": []}],
    }


def write(folder: Path, content: dict | str, **changes) -> CocoSettings:
    """Writes the annotation file and one image for each entry; gives the settings that read it."""
    images = folder / "images"
    images.mkdir(exist_ok=True)
    file = folder / "labels.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    if isinstance(content, dict):
        for entry in content.get("images", ()):
            pixels = np.random.default_rng(entry["id"]).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            cv2.imwrite(str(images / entry["file_name"]), pixels)
    return CocoSettings(**{"images": str(images), "annotations": str(file), **changes})
