"""COCO JSON, read leniently (`posekd convert` mends it) and written as `posekd` likes it best."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from posekd import coco_rules
from posekd.data.inspection.judge import looks_normalised
from posekd.data.own.find import IMAGE_FOLDER, find_images
from posekd.data.own.labels import LabelledImage, OwnLabels, Person, box_around
from posekd.files import write_atomically


def recognise(path: Path) -> bool:
    """Whether a file is JSON with `images`."""
    if path.suffix != ".json":
        return False
    content = coco_rules.read_json(path, "labels")
    return isinstance(content, dict) and "images" in content


def read(path: Path, images: Path | None, *, corners: bool = False) -> OwnLabels:
    """Reads a COCO file of one category.

    Args:
        path: the file.
        images: folder of its images; found by itself if None.
        corners: its boxes are (left, top, right, bottom).

    Raises:
        ValueError: no category with keypoints, several, or entries that are not what they should be.
    """
    content = coco_rules.read_json(path, "labels")
    entries = {key: coco_rules.entries(content, key, str(path)) for key in ("images", "annotations", "categories")}
    chosen = [c for c in entries["categories"] if c.get("keypoints")]
    if len(chosen) != 1:
        raise ValueError(f"{path} has {len(chosen)} categories with keypoints; one is converted at a time")
    names, K = tuple(chosen[0]["keypoints"]), len(chosen[0]["keypoints"])
    people: dict[Any, list[Person]] = {entry["id"]: [] for entry in entries["images"]}
    sizes = {e["id"]: (int(e["height"]), int(e["width"])) for e in entries["images"]}
    annotations = [a for a in entries["annotations"] if a.get("category_id") == chosen[0]["id"]]
    labelled = [a for a in annotations if len(a.get("keypoints") or ()) == 3 * K and not a.get("iscrowd")]
    points = np.array([a["keypoints"] for a in labelled], float).reshape(-1, K, 3)
    fractions = looks_normalised(points[points[..., 2] > 0][:, :2])
    for annotation, own in zip(labelled, points, strict=True):
        height, width = sizes[annotation["image_id"]]
        box = list(annotation.get("bbox") or ())
        if fractions:
            own[:, :2] *= (width, height)
        if box and looks_normalised(np.array(box, float)):
            box = [v * side for v, side in zip(box, (width, height, width, height), strict=True)]
        if corners and box:
            box = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
        whole = (float(box[0]), float(box[1]), float(box[2]), float(box[3])) if len(box) == 4 else None
        people[annotation["image_id"]].append(Person(own, whole))
    notes = []
    if len(labelled) < len(entries["annotations"]):
        notes.append(f"{len(entries['annotations']) - len(labelled)} annotations without keypoints were left out")
    if fractions:
        notes.append("coordinates lay between 0 and 1 and were multiplied by the images' sizes")
    found = [LabelledImage(e["file_name"], sizes[e["id"]], tuple(people[e["id"]])) for e in entries["images"]]
    edges = tuple((a - 1, b - 1) for a, b in chosen[0].get("skeleton") or ())
    folder = images or find_images(path, content)
    return OwnLabels(names, folder, tuple(found), edges, str(chosen[0].get("name", "object")), tuple(notes))


def write(labels: OwnLabels, path: Path) -> None:
    """Writes a COCO file; where a person has no box, one around its keypoints. Its area is the box's."""
    annotations: list[dict[str, Any]] = []
    for i, image in enumerate(labels.images):
        for person in image.people:
            count = int((person.keypoints[:, 2] > 0).sum())
            if not count:
                continue
            box = person.box or box_around(person.keypoints, image.size)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i + 1,
                    "category_id": 1,
                    "iscrowd": 0,
                    "bbox": [round(v, 3) for v in box],
                    "area": round(box[2] * box[3], 3),
                    "num_keypoints": count,
                    "keypoints": [round(v, 3) if j % 3 < 2 else int(v) for j, v in enumerate(_flat(person))],
                }
            )
    entries = [
        {"id": i + 1, "file_name": image.file_name, "height": image.size[0], "width": image.size[1]}
        for i, image in enumerate(labels.images)
    ]
    edges = [[a + 1, b + 1] for a, b in labels.edges]
    category = {"id": 1, "name": labels.category, "keypoints": list(labels.names), "skeleton": edges}
    folder = os.path.relpath(labels.folder, path.parent)
    content = {
        "info": {IMAGE_FOLDER: folder},
        "images": entries,
        "annotations": annotations,
        "categories": [category],
    }
    write_atomically(path, json.dumps(content) + "\n")


def _flat(person: Person) -> list[float]:
    return [float(v) for v in person.keypoints.reshape(-1)]
