"""Pictures of the best, the worst and random people of an evaluation, labels and what was found side by side."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from posekd.data import PoseSource
from posekd.metrics.errors import Found
from posekd.viz.crops import TILE, Tile, draw_numbered, save_picture, sheet

AROUND = 1.3  # how much more than the box is shown
COUNT = 6  # people on a sheet
COLUMNS = 4


def draw_cases(source: PoseSource, found: Found, folder: Path, seed: int = 0) -> list[Path]:
    """Writes `best.png`, `worst.png` and `random.png` into a folder.

    People are ordered by the mean error of their labelled keypoints in box sizes; those not found are the worst.

    Args:
        source: the dataset.
        found: labelled people and what was found of each; at least one.
        folder: where to write.
        seed: of the random choice.

    Returns:
        The files.
    """
    errors = found.mean_errors()
    order = np.argsort(errors, kind="stable")
    chosen = {
        "best": order[:COUNT],
        "worst": order[::-1][:COUNT],
        "random": np.random.default_rng(seed).permutation(len(errors))[:COUNT],
    }
    files = []
    for name, people in chosen.items():
        tiles = [tile for person in people for tile in _tiles(source, found, int(person), float(errors[person]))]
        rows = [tiles[i : i + COLUMNS] for i in range(0, len(tiles), COLUMNS)]
        title = f"{name} of {len(errors)} people: labels, and beside them what was found"
        picture = sheet(rows, source.records.skeleton, title)
        files.append(folder / f"{name}.png")
        save_picture(picture, str(files[-1]))
    return files


def _tiles(source: PoseSource, found: Found, person: int, error: float) -> tuple[Tile, Tile]:
    labels, own = draw_person(source, found, person)
    missed = not np.isfinite(found.points[person]).all()
    caption = "not found" if missed else f"found, {error:.3f} of the box off"
    row = int(np.flatnonzero(source.records.image_ids == found.image_ids[person])[0])
    return Tile(labels, source.image_name(row)), Tile(own, caption)


def draw_person(source: PoseSource, found: Found, person: int) -> tuple[np.ndarray, np.ndarray]:
    """A person with her labels, and with what was found of her, each uint8 RGB of `TILE` pixels.

    Args:
        source: the dataset.
        found: labelled people and what was found of each.
        person: her row in it.
    """
    records = source.records
    row = int(np.flatnonzero(records.image_ids == found.image_ids[person])[0])
    x, y, w, h = found.boxes[person]
    side = max(AROUND * max(w, h), 8.0)
    size = TILE // 2  # enlarged twice with what is drawn on it
    scale = size / side
    left, top = x + w / 2 - side / 2, y + h / 2 - side / 2
    move = np.array([[scale, 0, -left * scale], [0, scale, -top * scale]])
    crop = cv2.warpAffine(source.load_image(row), move, (size, size), flags=cv2.INTER_AREA)
    pictures = []
    missed = not np.isfinite(found.points[person]).all()
    points = np.nan_to_num(found.points[person])
    shown = np.zeros(len(points)) if missed else np.full(len(points), 2.0)
    for places, seen in ((found.truth[person, :, :2], found.truth[person, :, 2]), (points, shown)):
        moved = np.concatenate(((places - (left, top)) * scale, seen[:, None]), 1)
        pictures.append(draw_numbered(crop, moved[None], records.skeleton))
    return pictures[0], pictures[1]
