"""Poses drawn on pictures: left orange, right blue, hidden keypoints hollow, wherever they are drawn."""

from __future__ import annotations

import numpy as np
import pytest

from posekd.skeleton import COCO, Skeleton
from posekd.viz.contact_sheet import draw_labels
from posekd.viz.draw import LEFT, MIDDLE, RIGHT, draw_poses

ZOOM = 4
GREY = np.full((40, 60, 3), 127, np.uint8)


def person(**points: tuple[float, float, float]) -> np.ndarray:
    keypoints = np.zeros((COCO.num_keypoints, 3))
    for name, point in points.items():
        keypoints[COCO.keypoints.index(name)] = point
    return keypoints


def at(canvas: np.ndarray, x: float, y: float) -> tuple[int, ...]:
    """The colour where the pixel (x, y) of the picture was enlarged to."""
    return tuple(canvas[round(ZOOM * (y + 0.5) - 0.5), round(ZOOM * (x + 0.5) - 0.5)].tolist())


def test_left_is_orange_right_is_blue_and_what_joins_them_green():
    points = person(left_shoulder=(40, 10, 2), left_elbow=(40, 30, 2), right_shoulder=(20, 10, 2))
    points += person(right_elbow=(20, 30, 2))
    drawn = draw_poses(GREY, points, COCO, zoom=ZOOM)
    assert (at(drawn, 40, 20), at(drawn, 20, 20), at(drawn, 30, 10)) == (LEFT, RIGHT, MIDDLE)
    assert (LEFT, RIGHT) == ((230, 159, 0), (0, 114, 178))


def test_the_sheet_of_labels_has_the_same_colours():
    points = person(left_shoulder=(40, 10, 2), left_elbow=(40, 30, 2))
    annotation = {"keypoints": points.reshape(-1).tolist(), "bbox": [5, 5, 50, 30]}
    drawn = draw_labels(GREY, [annotation], scale=ZOOM)
    assert at(drawn, 40, 20) == LEFT
    assert tuple(drawn[ZOOM * 5, ZOOM * 30]) == (200, 200, 200)  # the box
    plain = draw_poses(GREY, points, COCO, zoom=ZOOM, labels=True)
    inside = np.s_[ZOOM * 5 + 1 : ZOOM * 35 - 1, ZOOM * 5 + 1 : ZOOM * 55 - 1]
    assert (drawn[inside] == plain[inside]).all()
    assert (draw_labels(GREY, [], scale=ZOOM) == 127).all()


def test_an_occluded_keypoint_is_hollow():
    labels = person(nose=(30, 20, 1), left_wrist=(10, 20, 2))
    drawn = draw_poses(GREY, labels, COCO, zoom=ZOOM, labels=True)
    assert at(drawn, 30, 20) == (127, 127, 127)
    assert at(drawn, 10, 20) == (255, 255, 255)
    ring = drawn[:, ZOOM * 24 : ZOOM * 37]
    assert (ring > 190).all(-1).sum() > 8  # its white line; what is not exactly white is anti-aliased
    assert (ring < 60).all(-1).sum() > 8


def test_a_score_of_one_is_no_visibility():
    drawn = draw_poses(GREY, person(nose=(30, 20, 1.0)), COCO, zoom=ZOOM)
    assert at(drawn, 30, 20) == (255, 255, 255)


@pytest.mark.parametrize(("names", "colour"), [(("L_hip", "L_knee"), LEFT), (("hipRight", "kneeRight"), RIGHT)])
def test_sides_are_read_from_any_spelling(names, colour):
    skeleton = Skeleton("mouse", names, ((0, 1),), (0, 1), (0.1, 0.1))
    drawn = draw_poses(GREY, np.array([[[10, 20, 2], [50, 20, 2]]]), skeleton, zoom=ZOOM)
    assert at(drawn, 30, 20) == colour
