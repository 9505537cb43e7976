"""Poses on pictures, and pictures on a sheet."""

import numpy as np

from posekd.skeleton import COCO
from posekd.viz.draw import LEFT, draw_poses, save_sheet


def test_poses_are_drawn_where_they_are_and_hidden_joints_are_not():
    image = np.full((40, 60, 3), 127, np.uint8)
    person = np.zeros((17, 3))
    person[5], person[7] = (10, 20, 2), (30, 20, 2)  # left shoulder, left elbow
    person[9] = (50, 20, 0.1)  # left wrist, below the threshold
    drawn = draw_poses(image, person, COCO, zoom=4)
    assert drawn.shape == (160, 240, 3)
    assert (image == 127).all()
    row = 4 * 20 + 2  # about the centre of pixel row 20
    assert tuple(drawn[row, 4 * 10 + 2]) == (255, 255, 255)
    assert tuple(drawn[row, 4 * 20]) == LEFT
    assert (drawn[:, 4 * 36 :] == 127).all()


def test_a_sheet_is_a_picture(tmp_path):
    picture = np.zeros((20, 30, 3), np.uint8)
    save_sheet({"one": [picture, picture], "two": [picture]}, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
