"""Kinds of errors by the definitions of Ronchi and Perona (2017), on people whose similarities are known."""

from __future__ import annotations

import numpy as np
import pytest

from posekd.metrics.error_kinds import KINDS, error_kinds
from posekd.metrics.errors import Found
from posekd.skeleton import COCO

AREA = 10000.0
NOSE, LEFT, RIGHT = 0, 15, 16  # right and left ankle are mirror partners


def people() -> np.ndarray:
    truth = np.zeros((2, 17, 3))
    truth[:, :, 2] = 2
    for n in range(2):
        truth[n, :, 0] = 300 * n + 40 * (np.arange(17) % 4)
        truth[n, :, 1] = 40 * np.arange(17)
    return truth


def kinds(points: np.ndarray, truth: np.ndarray, images=(1, 1)) -> np.ndarray:
    boxes = np.tile([0.0, 0, 100, 100], (2, 1))
    found = Found(COCO.keypoints, truth, points, boxes, np.array(images), np.arange(2), np.full(2, AREA))
    return error_kinds(found, COCO.sigmas, COCO.flip).counts


def distance(similarity: float, keypoint: int) -> float:
    """Pixels at which a keypoint's similarity is that: exp(-d^2 / (2 area (2 sigma)^2))."""
    return float(np.sqrt(-2 * np.log(similarity) * AREA) * 2 * COCO.sigmas[keypoint])


@pytest.mark.parametrize(
    ("similarity", "kind"), [(1.0, "good"), (0.86, "good"), (0.84, "jitter"), (0.51, "jitter"), (0.49, "miss")]
)
def test_the_limits_of_good_and_jitter(similarity, kind):
    truth = people()
    points = truth[..., :2].copy()
    points[0, NOSE, 0] -= distance(similarity, NOSE)
    counts = kinds(points, truth)
    expected = np.zeros(6, int)
    expected[0] += 1  # the other person's nose
    expected[KINDS.index(kind)] += 1
    assert counts[NOSE].tolist() == expected.tolist()


def test_inversion_swap_and_miss():
    truth = people()
    points = truth[..., :2].copy()
    points[0, LEFT] = truth[0, RIGHT, :2]  # at its partner: inversion
    points[0, NOSE] = truth[1, NOSE, :2]  # at the other's nose: swap
    points[1, RIGHT] = truth[0, LEFT, :2]  # at the other's partner: swap
    points[1, 5] = (900, 900)  # nowhere: miss
    points[1, 7] = truth[1, 9, :2]  # the same person's wrist is no partner of an elbow: miss
    counts = kinds(points, truth)
    assert dict(zip(KINDS, counts[LEFT], strict=True)) == dict(zip(KINDS, (1, 0, 1, 0, 0, 0), strict=True))
    assert counts[NOSE].tolist() == [1, 0, 0, 1, 0, 0]
    assert counts[RIGHT].tolist() == [1, 0, 0, 1, 0, 0]
    assert counts[5].tolist() == [1, 0, 0, 0, 1, 0]
    assert counts[7].tolist() == [1, 0, 0, 0, 1, 0]
    apart = kinds(points, truth, images=(1, 2))  # people of other images swap nothing
    assert apart[NOSE].tolist() == [1, 0, 0, 0, 1, 0]


def test_people_who_were_not_found_and_keypoints_without_labels():
    truth = people()
    truth[0, NOSE, 2] = 0
    points = truth[..., :2].copy()
    points[1] = np.nan
    counts = kinds(points, truth)
    assert counts[NOSE].tolist() == [0, 0, 0, 0, 0, 1]
    assert counts[LEFT].tolist() == [1, 0, 0, 0, 0, 1]
    found = error_kinds(
        Found(COCO.keypoints, truth, points, np.ones((2, 4)), np.ones(2), np.arange(2), np.full(2, AREA)),
        COCO.sigmas,
        COCO.flip,
    )
    assert sum(found.shares().values()) == pytest.approx(1)
    assert found.shares()["not found"] == pytest.approx(17 / 33)
    assert found.shares_of(NOSE)["not found"] == 1


def test_a_label_of_the_partner_that_is_missing_is_no_inversion():
    truth = people()
    points = truth[..., :2].copy()
    points[0, LEFT] = truth[0, RIGHT, :2]
    truth[0, RIGHT, 2] = 0
    assert kinds(points, truth)[LEFT].tolist() == [1, 0, 0, 0, 1, 0]
