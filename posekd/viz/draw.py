"""Poses drawn on images, and sheets of such images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from posekd.skeleton import Skeleton, side
from posekd.viz.curves import figure_to_png

# everywhere: left orange, right blue, middle green; Okabe and Ito's colour-blind safe colours
LEFT, RIGHT, MIDDLE = (230, 159, 0), (0, 114, 178), (0, 158, 115)
OCCLUDED = 1  # the visibility of a keypoint that is labelled, and hidden
_FRACTION_BITS = 4  # cv2 draws at sixteenths of a pixel


def draw_poses(
    image: np.ndarray,
    keypoints: np.ndarray,
    skeleton: Skeleton,
    *,
    zoom: int = 2,
    threshold: float = 0.2,
    labels: bool = False,
    line: int | None = None,
) -> np.ndarray:
    """Draws the poses of an image, enlarged.

    Args:
        image: uint8 RGB `[H, W, 3]`; not changed.
        keypoints: `[P, K, 3]` (x, y, visibility or score) in pixels of the image.
        skeleton: the K keypoints.
        zoom: factor of enlargement.
        threshold: keypoints whose visibility or score is not above it are left out.
        labels: the third number is a visibility, and occluded keypoints (1) are drawn hollow.
        line: radius of a keypoint in pixels of the result, and nearly the width of an edge; `zoom` if None.

    Returns:
        uint8 RGB `[zoom H, zoom W, 3]`.
    """
    line = zoom if line is None else line
    canvas = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
    unit = 1 << _FRACTION_BITS
    for person in np.asarray(keypoints, float).reshape(-1, skeleton.num_keypoints, 3):
        shown = person[:, 2] > threshold
        # pixel i of the image spans zoom pixels of the canvas, its centre is at zoom * (i + 0.5) - 0.5
        points = np.rint((zoom * (person[:, :2] + 0.5) - 0.5) * unit).astype(int)
        for a, b in skeleton.edges:
            if shown[a] and shown[b]:
                ends = tuple(points[a].tolist()), tuple(points[b].tolist())
                for colour, width in (((0, 0, 0), line + 3), (edge_colour(skeleton, a, b), line + 1)):
                    cv2.line(canvas, *ends, colour, width, cv2.LINE_AA, _FRACTION_BITS)
        for k in np.flatnonzero(shown):
            hollow = labels and person[k, 2] == OCCLUDED
            _draw_keypoint(canvas, tuple(points[k].tolist()), line, hollow)
    return canvas


def _draw_keypoint(canvas: np.ndarray, where: tuple[int, int], line: int, hollow: bool) -> None:
    """A white disc with a black rim, or a white ring with one; `where` in sixteenths of a pixel."""
    unit = 1 << _FRACTION_BITS
    radius = line * unit
    black, white = (0, 0, 0), (255, 255, 255)
    if hollow:  # a pixel wider, so that the hole is seen
        for colour, width in ((black, 3), (white, 1)):
            cv2.circle(canvas, where, radius + unit, colour, width, cv2.LINE_AA, _FRACTION_BITS)
        return
    cv2.circle(canvas, where, radius + unit // 2, black, -1, cv2.LINE_AA, _FRACTION_BITS)
    cv2.circle(canvas, where, radius, white, -1, cv2.LINE_AA, _FRACTION_BITS)


def edge_colour(skeleton: Skeleton, a: int, b: int) -> tuple[int, int, int]:
    """RGB of the edge between two keypoints: by the side of the body that it is on."""
    sides = {side(skeleton.keypoints[k]) for k in (a, b)} - {None}
    if sides == {"left"}:
        return LEFT
    return RIGHT if sides == {"right"} else MIDDLE


def save_sheet(columns: Mapping[str, Sequence[np.ndarray]], path: Path) -> None:
    """Saves images as a PNG sheet: one titled column per entry; each row shows the same scene.

    Args:
        columns: title -> images of equal size, uint8 RGB.
        path: the file.
    """
    from matplotlib.figure import Figure

    rows = max(len(pictures) for pictures in columns.values())
    height, width = next(iter(columns.values()))[0].shape[:2]
    inch = 3.2
    figure = Figure(figsize=(inch * len(columns), inch * height / width * rows + 0.4))
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0.0, hspace=0.0)
    grid = figure.subplots(rows, len(columns), squeeze=False)
    for column, (title, pictures) in enumerate(columns.items()):
        grid[0][column].set_title(title, fontsize=11)
        for row in range(rows):
            grid[row][column].set_axis_off()
            if row < len(pictures):
                grid[row][column].imshow(pictures[row])
    figure_to_png(figure, path, dpi=110)
