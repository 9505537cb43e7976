"""DeepLabCut's `CollectedData_*.csv`: one animal an image, or several (`individuals`); the missing are empty."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from pathlib import Path

from posekd.data.images import image_size
from posekd.data.own.labels import LabelledImage, OwnLabels, Person, points_of
from posekd.files import write_atomically

HEADS = ("scorer", "individuals", "bodyparts", "coords")


def recognise(path: Path) -> bool:
    """Whether a file is a CSV that begins with `scorer`."""
    if path.suffix != ".csv":
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline().startswith("scorer")


def read(path: Path, images: Path | None) -> OwnLabels:
    """Reads a CSV; file names are relative to the project's folder, whose name the CSV does not say.

    Raises:
        ValueError: it lacks a row of the header, or a coordinate is no number.
        FileNotFoundError: the images are not found.
    """
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.reader(stream) if row]
    head: dict[str, list[str]] = {}
    while rows and rows[0][0] in HEADS:
        row = rows.pop(0)
        head[row[0]] = row
    if not {"bodyparts", "coords"} <= head.keys():
        raise ValueError(f"{path} is no DeepLabCut CSV: it has no rows `bodyparts` and `coords` in its header")
    columns = _columns(path, head, rows)
    index = columns[0]  # 1 column of the path, or 3: labeled-data, video, file
    names = tuple(dict.fromkeys(head["bodyparts"][i] for i in columns))
    who = head.get("individuals", [""] * len(head["coords"]))
    files = ["/".join(part for part in row[:index] if part) for row in rows]
    folder = images or _folder_of(path, files)
    found = []
    for file, row in zip(files, rows, strict=True):
        points: dict[str, dict[str, tuple[float, float, int]]] = defaultdict(dict)
        for i in columns:
            x, y = _number(row[i], path, file), _number(row[i + 1], path, file)
            if x is not None and y is not None:
                points[who[i]][head["bodyparts"][i]] = (x, y, 2)
        people = tuple(Person(points_of(names, own)) for own in points.values())
        found.append(LabelledImage(file, image_size(folder / file), people))
    return OwnLabels(names, folder, tuple(found), category="animal", notes=("boxes were drawn around the keypoints",))


def _columns(path: Path, head: dict[str, list[str]], rows: list[list[str]]) -> list[int]:
    """The columns of x, each with that of its y beside it.

    Raises:
        ValueError: a column or cell is missing.
    """
    parts, coords = head["bodyparts"], head["coords"]
    columns = [i for i, word in enumerate(coords) if word == "x"]
    if not columns or columns[0] == 0:
        raise ValueError(f"{path}: its row `coords` has no column `x` behind the file names: {', '.join(coords[:6])}")
    width = max(columns) + 2
    short = [name for name, row in head.items() if name != "scorer" and len(row) < width]
    if short:
        raise ValueError(f"{path}: its row `{short[0]}` has {len(head[short[0]])} columns, and {width} are needed")
    for i in columns:
        if coords[i + 1] != "y" or parts[i + 1] != parts[i]:
            raise ValueError(f"{path}: the column `x` of {parts[i]} (number {i + 1}) has no column `y` beside it")
    for number, row in enumerate(rows, len(head) + 1):
        if len(row) < width:
            raise ValueError(
                f"{path}: line {number} ({row[0]}) has {len(row)} columns, and the header {width}: columns are missing"
            )
    return columns


def _number(text: str, path: Path, file: str) -> float | None:
    try:
        value = float(text) if text.strip() else float("nan")
    except ValueError:
        raise ValueError(f"{path}: {file}: {text!r} is no coordinate") from None
    return None if value != value else value


def _folder_of(path: Path, files: list[str]) -> Path:
    """The folder that the names are relative to: the CSV's or one of those that it lies in."""
    for folder in path.absolute().parents:
        if files and (folder / files[0]).is_file():
            return folder
    raise FileNotFoundError(f"{files[0] if files else 'no image'}, named by {path}, lies beside none of its folders")


def write(labels: OwnLabels, path: Path) -> None:
    """Writes a CSV; several people on an image become individuals."""
    most = max((len(image.people) for image in labels.images), default=1)
    who = [f"individual{i + 1}" for i in range(most)] if most > 1 else [""]
    cells = [(one, name, axis) for one in who for name in labels.names for axis in "xy"]
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["scorer", *("posekd" for _ in cells)])
    if most > 1:
        table.writerow(["individuals", *(one for one, _, _ in cells)])
    table.writerow(["bodyparts", *(name for _, name, _ in cells)])
    table.writerow(["coords", *(axis for _, _, axis in cells)])
    for image in labels.images:
        values: list[str] = []
        for i in range(most):
            points = image.people[i].keypoints if i < len(image.people) else [(0.0, 0.0, 0)] * len(labels.names)
            for x, y, seen in points:
                values += [f"{x:.3f}", f"{y:.3f}"] if seen > 0 else ["", ""]
        table.writerow([image.file_name, *values])
    write_atomically(path, out.getvalue())
