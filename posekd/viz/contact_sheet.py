"""Images with their labels drawn on them, side by side.

The sheet in the docs is made by `python -m posekd.viz.contact_sheet docs/images/synthetic.png`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from posekd.data.synthetic import SyntheticSettings, render
from posekd.skeleton import COCO, Skeleton
from posekd.viz.draw import draw_poses


def draw_labels(
    image: np.ndarray, annotations: Sequence[dict[str, Any]], skeleton: Skeleton = COCO, scale: int = 2
) -> np.ndarray:
    """Draws COCO annotations: poses as `draw_poses` draws labels, and their boxes.

    Args:
        image: uint8 RGB `[H, W, 3]`.
        annotations: with `keypoints` and `bbox`.
        skeleton: the K keypoints.
        scale: factor on the size of the result, so that thin lines stay thin.

    Returns:
        uint8 RGB `[scale H, scale W, 3]`.
    """
    poses = np.array([annotation["keypoints"] for annotation in annotations], float)
    canvas = draw_poses(image, poses, skeleton, zoom=scale, threshold=0.0, labels=True)
    for annotation in annotations:
        x, y, w, h = (round(v * scale) for v in annotation["bbox"])
        cv2.rectangle(canvas, (x, y), (x + w - 1, y + h - 1), (200, 200, 200), 1)
    return canvas


def contact_sheet(settings: SyntheticSettings, rows: int, columns: int, scale: int = 2) -> np.ndarray:
    """The first `rows * columns` synthetic images with their labels, uint8 RGB."""
    tiles = [draw_labels(*render(settings, i), scale=scale) for i in range(rows * columns)]
    return np.vstack([np.hstack(tiles[r * columns : (r + 1) * columns]) for r in range(rows)])


def main() -> None:
    """Writes a contact sheet; difficulty grows from the first row to the last."""
    from PIL import Image  # comes with matplotlib; its palettes keep a grainy PNG small

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("file")
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--columns", type=int, default=4)
    arguments = parser.parse_args()
    sheet = np.vstack(
        [
            contact_sheet(SyntheticSettings(seed=arguments.seed + row, difficulty=difficulty), 1, arguments.columns)
            for row, difficulty in enumerate((0.0, 0.2, 1.0))
        ]
    )
    small = cv2.resize(sheet, None, fx=0.42, fy=0.42, interpolation=cv2.INTER_AREA)
    Image.fromarray(small).quantize(192, dither=Image.Dither.NONE).save(arguments.file, optimize=True)


if __name__ == "__main__":
    main()
