"""CVAT's XML export "CVAT for images": skeletons, or points with a label each, with or without boxes."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from posekd.data.own.labels import LabelledImage, OwnLabels, Person, points_of
from posekd.files import write_atomically

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
    category = next((s.get("label") for entry in entries for s in entry.findall("skeleton")), None)
    return OwnLabels(names, folder, tuple(found), category=category or "object")


def write(labels: OwnLabels, path: Path) -> None:
    """Writes "CVAT for images 1.1": a skeleton for each person, and its box if it has one, joined by a group."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    place = ElementTree.SubElement(ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task"), "labels")
    for name, kind, parent in (
        (labels.category, "skeleton", None),
        *((name, "points", labels.category) for name in labels.names),
    ):
        label = ElementTree.SubElement(place, "label")
        for key, text in (("name", name), ("type", kind), ("parent", parent)):
            if text is not None:
                ElementTree.SubElement(label, key).text = text
    for number, image in enumerate(labels.images):
        height, width = image.size
        facts = {"id": str(number), "name": image.file_name, "width": str(width), "height": str(height)}
        entry = ElementTree.SubElement(root, "image", facts)
        for group, person in enumerate(image.people, 1):
            _write_person(entry, labels, person, {"label": labels.category, "group_id": str(group), "source": "file"})
    ElementTree.indent(root)
    write_atomically(path, ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n")


def _write_person(entry: ElementTree.Element, labels: OwnLabels, person: Person, facts: dict[str, str]) -> None:
    if person.box is not None:
        x, y, w, h = person.box
        sides = {"xtl": x, "ytl": y, "xbr": x + w, "ybr": y + h}
        ElementTree.SubElement(entry, "box", {**facts, "occluded": "0", **{k: f"{v:.2f}" for k, v in sides.items()}})
    skeleton = ElementTree.SubElement(entry, "skeleton", facts)
    for name, (x, y, seen) in zip(labels.names, person.keypoints.tolist(), strict=True):
        state = {"outside": str(int(seen <= 0)), "occluded": str(int(seen == 1))}
        ElementTree.SubElement(skeleton, "points", {"label": name, **state, "points": f"{x:.2f},{y:.2f}"})


Box = tuple[float, float, float, float]


def _people(entry: ElementTree.Element) -> list[tuple[Found, Box | None]]:
    boxes = [_box(element) for element in entry.findall("box")]
    grouped = {e.get("group_id"): _box(e) for e in entry.findall("box") if e.get("group_id", "0") != "0"}
    skeletons = [(_points(skeleton), skeleton.get("group_id")) for skeleton in entry.findall("skeleton")]
    groups: dict[str, Found] = {}
    for element in entry.findall("points"):
        groups.setdefault(element.get("group_id", "0"), {}).update(_point(element))
    people = [*skeletons, *((found, group) for group, found in groups.items())]
    return [(found, grouped.get(group) or _around(boxes, found)) for found, group in people]


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
