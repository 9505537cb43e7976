"""Sheets of labelled network inputs, keypoints numbered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from torch import Tensor

from posekd.skeleton import Skeleton, side
from posekd.structures import InputSpec
from posekd.viz.draw import LEFT, MIDDLE, RIGHT, draw_poses

TILE = 320  # pixels of the longer side of a picture
CAPTION = 22  # pixels of the line below it
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_COLOURS = {"left": LEFT, "right": RIGHT, None: MIDDLE}
_INK, _PAPER = (30, 30, 30), (255, 255, 255)


@dataclass(frozen=True)
class Tile:
    """A picture of a sheet.

    Attributes:
        image: uint8 RGB `[H, W, 3]`.
        caption: the line below it.
    """

    image: np.ndarray
    caption: str


def to_pictures(images: Tensor, spec: InputSpec) -> list[np.ndarray]:
    """What normalised inputs `[B, 3, H, W]` look like, uint8 RGB `[H, W, 3]` each."""
    mean, std = (np.array(values)[:, None, None] for values in (spec.mean, spec.std))
    pixels = np.clip((images.float().cpu().numpy() * std + mean) * 255, 0, 255).round().astype(np.uint8)
    return [np.ascontiguousarray(picture[::-1] if spec.bgr else picture).transpose(1, 2, 0) for picture in pixels]


def draw_numbered(image: np.ndarray, keypoints: np.ndarray, skeleton: Skeleton) -> np.ndarray:
    """A picture enlarged to a tile, with its poses and the number of each keypoint, from 0.

    Args:
        image: uint8 RGB `[H, W, 3]`.
        keypoints: `[P, K, 3]` (x, y, visibility) in its pixels.
        skeleton: the K keypoints.
    """
    zoom = max(1, round(TILE / max(image.shape[:2])))
    canvas = draw_poses(np.ascontiguousarray(image), keypoints, skeleton, zoom=zoom, threshold=0.0, labels=True)
    for person in keypoints:
        for k, (x, y, seen) in enumerate(person.tolist()):
            if seen > 0:
                where = (round(zoom * (x + 0.5)) + 3, round(zoom * (y + 0.5)) - 3)
                for colour, width in ((_INK, 3), (_COLOURS[side(skeleton.keypoints[k])], 1)):
                    cv2.putText(canvas, str(k), where, _FONT, 0.4, colour, width, cv2.LINE_AA)
    return canvas


def sheet(rows: Sequence[Sequence[Tile]], skeleton: Skeleton, title: str) -> np.ndarray:
    """Tiles of equal size in rows, each with its caption, and the numbers' names beside them: uint8 RGB.

    Args:
        rows: tiles.
        skeleton: the K keypoints.
        title: above.
    """
    gap = 6
    height, width = rows[0][0].image.shape[:2]
    columns = max(map(len, rows))
    legend_width = 40 + 9 * max(map(len, skeleton.keypoints))
    grid_height = max(len(rows) * (height + CAPTION + gap), 18 * (len(skeleton.keypoints) + 2))
    canvas = np.full((grid_height + 40, columns * (width + gap) + gap + legend_width, 3), 255, np.uint8)
    cv2.putText(canvas, title, (gap, 24), _FONT, 0.55, _INK, 1, cv2.LINE_AA)
    for r, row in enumerate(rows):
        for c, tile in enumerate(row):
            top, left = 36 + r * (height + CAPTION + gap), gap + c * (width + gap)
            canvas[top : top + height, left : left + width] = tile.image
            room = width // 7
            text = tile.caption if len(tile.caption) <= room else "..." + tile.caption[3 - room :]
            cv2.putText(canvas, text, (left, top + height + 15), _FONT, 0.38, _INK, 1, cv2.LINE_AA)
    left = columns * (width + gap) + gap
    for k, name in enumerate(skeleton.keypoints):
        cv2.putText(canvas, f"{k}  {name}", (left, 50 + 18 * k), _FONT, 0.4, _COLOURS[side(name)], 1, cv2.LINE_AA)
    return canvas


def save_picture(picture: np.ndarray, path: str) -> None:
    """Writes a picture (uint8 RGB) as its name says, whole or not at all.

    Raises:
        ValueError: an ending that stands for no format.
    """
    from pathlib import Path

    from posekd.files import write_atomically

    suffix = Path(path).suffix.lower()
    try:
        done, data = cv2.imencode(suffix, picture[..., ::-1])
    except cv2.error:
        done = False
    if not done:
        raise ValueError(f"{path}: pictures are written as .png or .jpg")
    write_atomically(path, data.tobytes())
