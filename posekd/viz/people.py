"""People drawn as a network that detects them finds them: boxes, the points they are made of, and skeletons."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from posekd.skeleton import Skeleton
from posekd.viz.draw import LEFT, MIDDLE, RIGHT, draw_poses

POINTS = (LEFT, RIGHT, MIDDLE)  # colours of top-left corners, bottom-right corners and centres


def draw_boxes(canvas: np.ndarray, boxes: np.ndarray, zoom: int) -> None:
    """Draws boxes on an enlarged image.

    Args:
        canvas: uint8 RGB `[zoom H, zoom W, 3]`; changed.
        boxes: `[P, 4]` (x, y, width, height) in pixels of the image.
        zoom: by which the image was enlarged.
    """
    for x, y, width, height in np.asarray(boxes, float).reshape(-1, 4):
        low, high = _on_canvas(x, y, zoom), _on_canvas(x + width, y + height, zoom)
        cv2.rectangle(canvas, low, high, (0, 0, 0), zoom + 2)
        cv2.rectangle(canvas, low, high, (255, 255, 255), zoom)


def draw_points(canvas: np.ndarray, points: Sequence[np.ndarray], zoom: int) -> None:
    """Draws corners as angles that open towards the person, and centres as crosses.

    Args:
        canvas: uint8 RGB `[zoom H, zoom W, 3]`; changed.
        points: top-left corners, bottom-right corners and centres, `[n, 2]` each, in pixels of the image.
        zoom: by which the image was enlarged.
    """
    length = 6 * zoom
    arms = (((1, 0), (0, 1)), ((-1, 0), (0, -1)), ((1, 0), (-1, 0), (0, 1), (0, -1)))
    for kind, ways, colour in zip(points, arms, POINTS, strict=True):
        for column, row in np.asarray(kind, float).reshape(-1, 2).tolist():
            x, y = _on_canvas(column, row, zoom)
            for ink, width in (((0, 0, 0), zoom + 3), (colour, zoom + 1)):
                for dx, dy in ways:
                    cv2.line(canvas, (x, y), (x + dx * length, y + dy * length), ink, width, cv2.LINE_AA)


def draw_people(
    image: np.ndarray,
    keypoints: np.ndarray,
    boxes: np.ndarray,
    skeleton: Skeleton,
    *,
    zoom: int = 2,
    threshold: float = 0.2,
) -> np.ndarray:
    """The skeletons and boxes of an image's people, on the enlarged image.

    Args:
        image: uint8 RGB `[H, W, 3]`; not changed.
        keypoints: `[P, K, 3]` (x, y, score).
        boxes: `[P, 4]` (x, y, width, height).
        skeleton: the K keypoints.
        zoom: factor of enlargement.
        threshold: keypoints whose score is not above it are left out.
    """
    canvas = draw_poses(image, keypoints, skeleton, zoom=zoom, threshold=threshold)
    draw_boxes(canvas, boxes, zoom)
    return canvas


def _on_canvas(x: float, y: float, zoom: int) -> tuple[int, int]:
    """Where a point of the image lies on the canvas: pixel i spans zoom pixels."""
    return round(zoom * (x + 0.5) - 0.5), round(zoom * (y + 0.5) - 0.5)
