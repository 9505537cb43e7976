"""Label Studio's JSON export of keypoints (`KeyPointLabels`), with or without rectangles. Coordinates are percent."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

from posekd import coco_rules
from posekd.data.own.labels import LabelledImage, OwnLabels, Person, points_of

Found = dict[str, tuple[float, float, int]]


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
    return OwnLabels(tuple(names), folder, tuple(found), notes=notes)


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
            people.setdefault(owner, {})[label] = (x, y, 2)
    return [Person(points_of(names, found), boxes.get(str(key))) for key, found in people.items() if found]


def _smallest_around(boxes: dict[str, tuple[float, float, float, float]], x: float, y: float) -> str | None:
    around = [(w * h, key) for key, (left, top, w, h) in boxes.items() if 0 <= x - left <= w and 0 <= y - top <= h]
    return min(around)[1] if around else None
