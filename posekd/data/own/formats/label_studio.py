"""Label Studio's JSON export of keypoints (`KeyPointLabels`), with or without rectangles. Coordinates are percent.

It knows no occluded keypoints: a note on the region, `occluded`, says it, and is read back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

from posekd import coco_rules
from posekd.data.own.labels import LabelledImage, OwnLabels, Person, box_around, points_of
from posekd.files import write_atomically

Found = dict[str, tuple[float, float, int]]
OCCLUDED = "occluded"  # a region's note
NAMES = "keypoints"  # in a task's `meta`: all of them in their order, where posekd wrote the file
POINT_WIDTH = 0.5  # percent, of the dot that is shown


def recognise(path: Path) -> bool:
    """Whether a file is a JSON list of tasks."""
    if path.suffix != ".json":
        return False
    content = coco_rules.read_json(path, "labels")
    return isinstance(content, list) and bool(content) and isinstance(content[0], dict) and "annotations" in content[0]


def read(path: Path, images: Path | None) -> OwnLabels:
    """Reads an export (the full JSON, not JSON-MIN). Keypoints in a rectangle, or with a parent, are a person's.

    Raises:
        ValueError: no keypoints at all, or a task without an image.
        FileNotFoundError: the images are not found.
    """
    tasks = coco_rules.read_json(path, "labels")
    folder = images or path.parent
    names: dict[str, None] = {}
    raw: list[tuple[str, tuple[int, int], list[dict[str, Any]]]] = []
    cancelled = 0
    for task in tasks:
        names.update(dict.fromkeys((task.get("meta") or {}).get(NAMES, ())))
        done = [a for a in task.get("annotations", ()) if not a.get("was_cancelled")]
        if not done:
            cancelled += 1
            continue
        result = [r for r in done[-1].get("result", ()) if isinstance(r.get("value"), dict)]
        sized = next((r for r in result if r.get("original_width")), None)
        if sized is None:
            cancelled += 1
            continue
        for item in result:
            names.update(dict.fromkeys(item["value"].get("keypointlabels", ())))
        raw.append((_file(task, folder), (int(sized["original_height"]), int(sized["original_width"])), result))
    if not names:
        raise ValueError(f"{path} holds no keypoints (KeyPointLabels)")
    found = [LabelledImage(file, size, tuple(_people(result, tuple(names), size))) for file, size, result in raw]
    notes = (f"{cancelled} tasks without labels were left out",) if cancelled else ()
    categories = (label for *_, result in raw for r in result for label in r["value"].get("rectanglelabels", ()))
    return OwnLabels(tuple(names), folder, tuple(found), category=next(categories, "object"), notes=notes)


def write(labels: OwnLabels, path: Path) -> None:
    """Writes tasks that Label Studio imports: the image, a rectangle for each person, and its keypoints below it.

    Images are named relative to their folder. A person without a box gets one around the keypoints where there are
    others in the image, from whom they could not be told apart.
    """
    tasks = [
        {
            "id": number,
            "data": {"image": image.file_name},
            "meta": {NAMES: list(labels.names)},
            "annotations": [{"result": _result(labels, image)}],
        }
        for number, image in enumerate(labels.images, 1)
    ]
    write_atomically(path, json.dumps(tasks, indent=1) + "\n")


def _result(labels: OwnLabels, image: LabelledImage) -> list[dict[str, Any]]:
    """The regions of one image."""
    height, width = image.size
    regions = []

    def add(key: str, kind: str, name: str, x: float, y: float, w: float, h: float, **more: Any) -> None:
        value = {"x": 100 * x / width, "y": 100 * y / height, "width": w, "height": h, "rotation": 0, kind: [name]}
        facts = {"original_width": width, "original_height": height, "to_name": "image", "from_name": kind}
        regions.append({"id": key, "type": kind, **facts, "value": value, **more})

    for number, person in enumerate(image.people, 1):
        owner, box = {}, person.box
        if box is None and len(image.people) > 1 and (person.keypoints[:, 2] > 0).any():
            box = box_around(person.keypoints, image.size)
        if box is not None:
            x, y, w, h = box
            add(f"p{number}", "rectanglelabels", labels.category, x, y, 100 * w / width, 100 * h / height)
            owner = {"parentID": f"p{number}"}
        for k, (name, (x, y, seen)) in enumerate(zip(labels.names, person.keypoints.tolist(), strict=True)):
            if seen > 0:
                note = {"meta": {"text": [OCCLUDED]}} if seen == 1 else {}
                add(f"p{number}k{k}", "keypointlabels", name, x, y, POINT_WIDTH, POINT_WIDTH, **owner, **note)
    return regions


def _file(task: dict[str, Any], folder: Path) -> str:
    """The image of a task below the folder: its whole path, or what is left of it when leading folders are dropped."""
    data = task.get("data") or {}
    url = next((v for v in data.values() if isinstance(v, str) and "." in v), None)
    if url is None:
        raise ValueError(f"task {task.get('id')} names no image")
    parsed = urlparse(url)
    local = parse_qs(parsed.query).get("d", [unquote(parsed.path)])[0]
    parts = [part for part in local.split("/") if part]
    names = ["/".join(parts[i:]) for i in range(len(parts))]
    names += [parts[-1].split("-", 1)[-1]]  # uploads get a prefix: 1a2b3c4d-image.png
    for name in names:
        if (folder / name).is_file():
            return name
    raise FileNotFoundError(f"the image {url} of task {task.get('id')} is not in {folder}: give --images")


def _people(result: list[dict[str, Any]], names: tuple[str, ...], size: tuple[int, int]) -> list[Person]:
    scale_x, scale_y = size[1] / 100, size[0] / 100
    boxes: dict[str, tuple[float, float, float, float]] = {}
    for item in result:
        value = item["value"]
        if "rectanglelabels" in value or item.get("type") == "rectangle":
            x, y, w, h = (float(value[key]) for key in ("x", "y", "width", "height"))
            boxes[str(item.get("id"))] = (x * scale_x, y * scale_y, w * scale_x, h * scale_y)
    people: dict[str | None, Found] = {key: {} for key in boxes}
    for item in result:
        value = item["value"]
        for label in value.get("keypointlabels", ())[:1]:
            x, y = float(value["x"]) * scale_x, float(value["y"]) * scale_y
            owner = item.get("parentID") or _smallest_around(boxes, x, y)
            notes = (item.get("meta") or {}).get("text") or ()
            people.setdefault(owner, {})[label] = (x, y, 1 if OCCLUDED in notes else 2)
    return [Person(points_of(names, found), boxes.get(str(key))) for key, found in people.items() if found]


def _smallest_around(boxes: dict[str, tuple[float, float, float, float]], x: float, y: float) -> str | None:
    around = [(w * h, key) for key, (left, top, w, h) in boxes.items() if 0 <= x - left <= w and 0 <= y - top <= h]
    return min(around)[1] if around else None
