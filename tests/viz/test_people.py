"""Boxes, corners and centres where they are, in their colours."""

from __future__ import annotations

import numpy as np

from posekd.skeleton import COCO
from posekd.viz.people import POINTS, draw_boxes, draw_people, draw_points


def test_boxes_and_points():
    canvas = np.zeros((80, 80, 3), np.uint8)
    draw_boxes(canvas, np.array([[5.0, 10.0, 20.0, 15.0]]), 2)
    assert (canvas[20:24, 30] == 255).all(1).any()  # the upper side, at y 10 of the image
    assert not canvas[40, 30].any()  # inside
    canvas = np.zeros((80, 80, 3), np.uint8)
    draw_points(canvas, [np.array([[10.0, 10.0]]), np.array([[30.0, 30.0]]), np.zeros((0, 2))], 2)
    assert tuple(canvas[20, 28]) == POINTS[0]  # right of a top-left corner, and not left of it
    assert not canvas[20, 12].any()
    assert tuple(canvas[60, 52]) == POINTS[1]
    assert not canvas[60, 72].any()


def test_people():
    image = np.zeros((40, 40, 3), np.uint8)
    keypoints = np.zeros((1, 17, 3))
    keypoints[0, :, :2], keypoints[0, :, 2] = 20.0, 0.1
    drawn = draw_people(image, keypoints, np.array([[2.0, 2.0, 30.0, 30.0]]), COCO, zoom=3)
    assert drawn.shape == (120, 120, 3)
    assert not drawn[61, 61].any()  # keypoints of a low score are left out
    assert draw_people(image, keypoints, np.zeros((0, 4)), COCO, zoom=3, threshold=0.0)[58:65, 58:65].any()
    assert not image.any()
