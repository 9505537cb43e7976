"""YOLO-pose: a text file for each image, a line `class cx cy w h (x y [visibility]) ...` for each object, all in 0..1.

Names and the number of values of a keypoint are in `data.yaml` beside the folders (`kpt_shape`, `kpt_names`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from posekd.data.images import image_size
from posekd.data.own.labels import LabelledImage, OwnLabels, Person, box_around
from posekd.files import write_atomically

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def recognise(path: Path) -> bool:
    """Whether it is a folder of text files."""
    return path.is_dir() and any(path.rglob("*.txt"))


def read(path: Path, images: Path | None) -> OwnLabels:
    """Reads a folder of labels, with images in the folder `images` beside one called `labels`, or in the same.

    Raises:
        ValueError: lines of different lengths, or values that are no numbers.
        FileNotFoundError: no image belongs to the first file.
    """
    folder = images or _images_of(path)
    pictures = {file.with_suffix("").relative_to(folder): file for file in folder.rglob("*") if file.suffix in IMAGES}
    texts = sorted(file for file in path.rglob("*.txt") if file.with_suffix("").relative_to(path) in pictures)
    if not texts:
        raise FileNotFoundError(f"no text file in {path} has the name of an image in {folder}: give --images")
    facts = _facts(path)
    lines = {file: [line.split() for line in file.read_text().splitlines() if line.strip()] for file in texts}
    K, width_of_point = _shape(facts, lines, path)
    found = []
    for file in texts:
        picture = pictures[file.with_suffix("").relative_to(path)]
        size = image_size(picture)
        people = tuple(_person(line, size, K, width_of_point, file) for line in lines[file])
        found.append(LabelledImage(picture.relative_to(folder).as_posix(), size, people))
    names = facts.get("kpt_names") or [f"keypoint_{k + 1}" for k in range(K)]
    if isinstance(names, dict):  # by class
        names = next(iter(names.values()))
    given = () if facts.get("kpt_names") else (f"the keypoints have no names: called {names[0]} to {names[-1]}",)
    category = next(iter(dict(enumerate(facts.get("names") or ["object"])).values()))
    return OwnLabels(tuple(map(str, names)), folder, tuple(found), category=str(category), notes=given)


def _images_of(path: Path) -> Path:
    parts = ["images" if part == "labels" else part for part in path.absolute().parts]
    folder = Path(*parts)
    return folder if folder.is_dir() else path


def _facts(path: Path) -> dict[str, Any]:
    for folder in (path, *list(path.absolute().parents)[:2]):
        for name in ("data.yaml", "dataset.yaml"):
            if (folder / name).is_file():
                content = yaml.safe_load((folder / name).read_text(encoding="utf-8"))
                names = content.get("names")
                return {**content, "names": list(names.values()) if isinstance(names, dict) else names}
    return {}


def _shape(facts: dict[str, Any], lines: dict[Path, list[list[str]]], path: Path) -> tuple[int, int]:
    """K, and whether a keypoint has 2 or 3 values."""
    if facts.get("kpt_shape"):
        return int(facts["kpt_shape"][0]), int(facts["kpt_shape"][1])
    counts = {len(line) - 5 for found in lines.values() for line in found}
    if len(counts) != 1:
        raise ValueError(f"{path}: lines have {sorted(counts)} values after the box; all need the same number")
    count = counts.pop()
    return (count // 3, 3) if count % 3 == 0 else (count // 2, 2)


def _person(line: list[str], size: tuple[int, int], K: int, width_of_point: int, file: Path) -> Person:
    try:
        values = np.array([float(word) for word in line], float)
    except ValueError:
        raise ValueError(f"{file}: a line is no list of numbers: {' '.join(line)[:60]!r}") from None
    if len(values) != 5 + K * width_of_point:
        raise ValueError(f"{file}: a line has {len(values)} values, {5 + K * width_of_point} are needed")
    height, width = size
    cx, cy, w, h = (values[1:5] * (width, height, width, height)).tolist()
    points = np.full((K, 3), 2.0)
    points[:, :width_of_point] = values[5:].reshape(K, width_of_point)
    points[:, :2] *= (width, height)
    if width_of_point == 2:  # an unlabelled keypoint is 0, 0
        points[(points[:, :2] == 0).all(1), 2] = 0
    return Person(points, (cx - w / 2, cy - h / 2, w, h))


def write(labels: OwnLabels, path: Path) -> None:
    """Writes a text file for each image into a folder, and `data.yaml`."""
    for image in labels.images:
        height, width = image.size
        lines = []
        for person in image.people:
            x, y, w, h = person.box or box_around(person.keypoints, image.size)
            box = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
            points = [(px / width, py / height, v) if v > 0 else (0.0, 0.0, 0.0) for px, py, v in person.keypoints]
            values = [f"{v:.6f}" for v in box] + [
                t for px, py, v in points for t in (f"{px:.6f}", f"{py:.6f}", f"{v:.0f}")
            ]
            lines.append(" ".join(["0", *values]))
        write_atomically((path / image.file_name).with_suffix(".txt"), "".join(f"{line}\n" for line in lines))
    facts = {"kpt_shape": [len(labels.names), 3], "kpt_names": list(labels.names), "names": [labels.category]}
    write_atomically(path / "data.yaml", yaml.safe_dump(facts, sort_keys=False))
