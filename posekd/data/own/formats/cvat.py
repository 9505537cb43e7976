"""CVAT's XML export "CVAT for images": skeletons, or points with a label each, with or without boxes."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from posekd.data.own.labels import LabelledImage, OwnLabels, Person, points_of

Found = dict[str, tuple[float, float, int]]


def recognise(path: Path) -> bool:
    """Whether a file is XML."""
    return path.suffix == ".xml"


def read(path: Path, images: Path | None) -> OwnLabels:
    """Reads an export. A skeleton is a person; loose points are one by their `group_id`, else one for each image.

    Raises:
        ValueError: it is not XML, not CVAT's for images, or has no points.
        FileNotFoundError: the images are not found.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is not XML: {error}") from None
    entries = root.findall("image")
    if not entries:
        raise ValueError(f"{path} lists no images: export as `CVAT for images 1.1`")
    folder = images or next(
        (place for place in (path.parent, path.parent / "images") if (place / entries[0].get("name", "")).is_file()),
        None,
    )
    if folder is None:
        raise FileNotFoundError(f"{entries[0].get('name')}, named by {path}, is not beside it: give --images")
    raw = [(entry, _people(entry)) for entry in entries]
    names = tuple(dict.fromkeys(name for _, people in raw for found, _ in people for name in found))
    if not names:
        raise ValueError(f"{path} holds no skeletons and no points")
    found = [
        LabelledImage(
            entry.get("name", ""),
            (int(float(entry.get("height", 0))), int(float(entry.get("width", 0)))),
            tuple(Person(points_of(names, own), box) for own, box in people if any(v for _, _, v in own.values())),
        )
        for entry, people in raw
    ]
    return OwnLabels(names, folder, tuple(found))


Box = tuple[float, float, float, float]


def _people(entry: ElementTree.Element) -> list[tuple[Found, Box | None]]:
    boxes = [_box(element) for element in entry.findall("box")]
    people: list[Found] = [_points(skeleton) for skeleton in entry.findall("skeleton")]
    groups: dict[str, Found] = {}
    for element in entry.findall("points"):
        groups.setdefault(element.get("group_id", "0"), {}).update(_point(element))
    people += list(groups.values())
    return [(found, _around(boxes, found)) for found in people]


def _points(skeleton: ElementTree.Element) -> Found:
    found: Found = {}
    for element in skeleton.findall("points"):
        found.update(_point(element))
    return found


def _point(element: ElementTree.Element) -> Found:
    x, y = (float(v) for v in element.get("points", "0,0").split(";")[0].split(","))
    seen = 0 if element.get("outside") == "1" else 1 if element.get("occluded") == "1" else 2
    return {element.get("label", "?"): (x, y, seen)}


def _box(element: ElementTree.Element) -> Box:
    left, top, right, bottom = (float(element.get(key, 0)) for key in ("xtl", "ytl", "xbr", "ybr"))
    return left, top, right - left, bottom - top


def _around(boxes: list[Box], found: Found) -> Box | None:
    """The smallest box that holds all labelled points."""
    points = [(x, y) for x, y, v in found.values() if v]
    around = [
        (w * h, (left, top, w, h))
        for left, top, w, h in boxes
        if all(0 <= x - left <= w and 0 <= y - top <= h for x, y in points)
    ]
    return min(around)[1] if around else None
