"""Errors over all labelled people, missed ones included: by hand, and against COCO's own matching."""

from __future__ import annotations

import numpy as np
import pytest

from posekd.metrics.errors import Found, assign, bootstrap_pck, keypoint_errors


def found(points, truth=None, boxes=None, images=None):
    """People with two keypoints at (0, 0) and (10, 0), in boxes of 100 x 50."""
    points = np.array(points, float)
    N = len(points)
    truth = np.tile([[0, 0, 2], [10, 0, 2]], (N, 1, 1)).astype(float) if truth is None else np.array(truth, float)
    boxes = np.tile([0, 0, 100, 50], (N, 1)).astype(float) if boxes is None else boxes
    images = np.arange(N) if images is None else np.array(images)
    return Found(("a", "b"), truth, points, boxes, images, np.arange(N))


NAN = [[np.nan, np.nan]] * 2


def test_medians_and_shares_by_hand():
    """Five people, errors of `a` 0, 2, 4, 20 pixels and one missed; the box's longer side is 100."""
    people = found([[[0, e], [10, 0]] for e in (0, 2, 4, 20)] + [NAN])
    result = keypoint_errors(people, people.box_lengths(), "box")
    a, b = result.keypoints
    assert (result.people, result.missed, a.labelled, a.missed) == (5, 1, 5, 1)
    assert (a.median, a.median_relative) == (4, 0.04)
    assert np.isinf(a.p90)  # a fifth was missed
    assert a.pck == {0.05: 0.6, 0.1: 0.6, 0.2: 0.8}
    assert (b.median, b.pck[0.05]) == (0, 0.8)
    assert result.total.labelled == 10
    assert result.total.pck[0.05] == 0.7


def test_unlabelled_keypoints_do_not_count_and_nobody_labelled_is_nan():
    truth = [[[0, 0, 0], [10, 0, 2]]] * 3
    result = keypoint_errors(found([[[5, 5], [11, 0]]] * 3, truth), np.full(3, 100.0), "box")
    a, b = result.keypoints
    assert a.labelled == 0
    assert np.isnan([a.median, a.p90, a.pck[0.1]]).all()
    assert (b.labelled, b.median, b.p90) == (3, 1, 1)


def test_a_pair_of_keypoints_as_the_measure():
    truth = [[[0, 0, 2], [10, 0, 2]], [[0, 0, 2], [10, 0, 0]], [[3, 3, 2], [3, 3, 2]]]
    people = found([[[0, 1], [10, 0]], [[0, 0], [0, 0]], [[3, 3], [3, 3]]], truth)
    lengths = people.pair_lengths("a", "b")
    np.testing.assert_array_equal(lengths, [10, np.nan, np.nan])  # unlabelled; of no length
    result = keypoint_errors(people, lengths, "a to b")
    assert (result.people, result.keypoints[0].median_relative, result.keypoints[0].pck[0.1]) == (1, 0.1, 1)
    with pytest.raises(ValueError, match="'nose' is not among the keypoints a, b"):
        people.pair_lengths("a", "nose")


def test_mean_errors_order_people():
    people = found([[[0, 10], [10, 0]], NAN, [[0, 0], [10, 0]]])
    np.testing.assert_array_equal(people.mean_errors(), [0.05, np.inf, 0])


class TestAssign:
    TRUTH = np.array([[[0, 0, 2], [10, 0, 2]], [[50, 0, 2], [60, 0, 2]]], float)

    def test_the_nearest_pose_is_a_persons(self):
        poses = self.TRUTH[::-1, :, :2] + 1.0
        assert assign(self.TRUTH, np.full(2, 900.0), poses, [0.1, 0.1]) == {0: 1, 1: 0}

    def test_a_pose_is_one_persons_and_a_far_one_nobodys(self):
        between = self.TRUTH[:1, :, :2] + 2.0
        assert assign(self.TRUTH, np.full(2, 900.0), between, [0.1, 0.1]) == {0: 0}
        assert assign(self.TRUTH, np.full(2, 900.0), between + 500, [0.1, 0.1]) == {}
        assert assign(self.TRUTH, np.full(2, 900.0), np.zeros((0, 2, 2)), [0.1, 0.1]) == {}

    def test_unlabelled_keypoints_say_nothing(self):
        truth = self.TRUTH.copy()
        truth[0, 1, 2] = 0
        pose = np.array([[[0, 0], [999, 999]]], float)
        assert assign(truth, np.full(2, 900.0), pose, [0.1, 0.1]) == {0: 0}


class TestBootstrap:
    def test_a_clear_gain_and_no_gain(self):
        rng = np.random.default_rng(0)
        near = found([[[0, rng.uniform(0, 5)], [10, 0]] for _ in range(60)])
        far = found([[[0, rng.uniform(0, 40)], [10, 0]] for _ in range(60)])
        before, after, low, high = bootstrap_pck(far, near)
        expected = ((far.errors() <= 10).mean(), (near.errors() <= 10).mean())
        assert (before, after) == pytest.approx(expected)
        assert 0 < low < after - before < high
        same = bootstrap_pck(far, far)
        assert same[2:] == (0, 0)

    def test_pictures_are_drawn_and_not_people(self):
        """All people of one picture come and go together: the interval is wider than of as many pictures."""
        rng = np.random.default_rng(1)
        good = rng.random(20) < 0.5
        points = [[[0, 0 if good[i // 10] else 50], [10, 0]] for i in range(200)]
        nothing = found([[[0, 50], [10, 0]]] * 200, images=np.arange(200) // 10)
        together = bootstrap_pck(nothing, found(points, images=np.arange(200) // 10))
        alone = found([[[0, 50], [10, 0]]] * 200)
        apart = bootstrap_pck(alone, found(points))
        assert together[:2] == apart[:2]
        assert together[3] - together[2] > 2 * (apart[3] - apart[2])

    def test_other_people_are_refused(self):
        with pytest.raises(ValueError, match="not of the same labelled people"):
            bootstrap_pck(found([NAN]), found([NAN, NAN]))
