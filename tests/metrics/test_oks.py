"""OKS, duplicate removal and rescoring, on cases that can be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from posekd import ops
from posekd.metrics.oks import keypoint_similarity, oks, oks_nms, rescore

SIGMA = 0.05  # (2 sigma)^2 = 0.01


def distance_for(similarity: float, area: float) -> float:
    """The distance at which one keypoint has the given similarity."""
    return math.sqrt(-2 * math.log(similarity) * area * (2 * SIGMA) ** 2)


def test_similarity_at_one_standard_deviation_is_exp_minus_half():
    # d = 2 sigma sqrt(area) = 0.1 * 20 px
    got = keypoint_similarity([[2.0, 0.0]], [[0.0, 0.0]], 400.0, [SIGMA])
    assert got == pytest.approx([math.exp(-0.5)])


def test_oks_is_the_mean_over_joints_with_the_mean_area():
    a = [[[0.0, 0.0], [0.0, 0.0]]]
    b = [[[3.0, 4.0], [0.0, 0.0]]]
    # area (300 + 500) / 2 = 400: e = 25 / 0.01 / 400 / 2 = 3.125
    got = oks(a, b, [300.0], [500.0], [SIGMA, SIGMA])
    assert got == pytest.approx(np.array([[(math.exp(-3.125) + 1) / 2]]))


def test_oks_is_symmetric_and_one_on_itself():
    rng = np.random.default_rng(0)
    poses, areas = rng.uniform(0, 50, (6, 17, 3)), rng.uniform(100, 900, 6)
    m = oks(poses, poses, areas, areas, np.full(17, SIGMA))
    assert np.allclose(m, m.T)
    assert np.allclose(np.diag(m), 1)
    assert (m > 0).all()


def test_score_column_does_not_enter_the_similarity():
    a, b = np.zeros((1, 1, 3)), np.zeros((1, 1, 3))
    b[..., 2] = 0.7
    assert oks(a, b, [1.0], [1.0], [SIGMA])[0, 0] == 1


@pytest.mark.parametrize(("similarity", "kept"), [(0.89, [1, 0]), (0.91, [1])])
def test_nms_removes_the_weaker_of_two_poses_above_the_threshold(similarity, kept):
    poses = [[[distance_for(similarity, 400.0), 0.0]], [[0.0, 0.0]]]
    assert oks_nms(poses, [0.3, 0.8], [400.0, 400.0], 0.9, sigmas=[SIGMA]).tolist() == kept


def test_nms_keeps_a_pose_exactly_at_the_threshold():
    poses = np.zeros((2, 2, 2))
    poses[1, 1] = 1e6  # one keypoint of two coincides: OKS is 1/2
    assert oks_nms(poses, [0.9, 0.8], [100.0, 100.0], 0.5, sigmas=[SIGMA, SIGMA]).tolist() == [0, 1]
    assert oks_nms(poses, [0.9, 0.8], [100.0, 100.0], 0.499, sigmas=[SIGMA, SIGMA]).tolist() == [0]


def test_a_removed_pose_removes_nobody():
    step = distance_for(0.92, 400.0)  # neighbours above 0.9; the ends, at 0.92^4, below
    poses = [[[i * step, 0.0]] for i in range(3)]
    assert oks_nms(poses, [0.9, 0.8, 0.7], [400.0] * 3, sigmas=[SIGMA]).tolist() == [0, 2]


def test_equal_scores_and_duplicates_leave_the_first():
    poses = np.tile(np.array([[[5.0, 5.0]]]), (4, 1, 1))
    assert oks_nms(poses, [0.5] * 4, [100.0] * 4, sigmas=[SIGMA]).tolist() == [0]
    far = np.arange(4.0)[:, None, None] * 1e4 + np.zeros((4, 1, 2))
    assert oks_nms(far, [0.5] * 4, [100.0] * 4, sigmas=[SIGMA]).tolist() == [0, 1, 2, 3]


def test_no_poses_and_threshold_one():
    assert oks_nms(np.zeros((0, 3, 2)), [], [], sigmas=[SIGMA] * 3).tolist() == []
    assert oks_nms(np.zeros((3, 1, 2)), [0.1, 0.3, 0.2], [9.0] * 3, 1.0, sigmas=[SIGMA]).tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("poses", "scores", "areas", "sigmas", "message"),
    [
        (np.zeros((2, 3)), [1, 1], [1, 1], [0.1] * 3, r"keypoints must be \[N, K, 2 or more\]"),
        (np.zeros((2, 3, 2)), [1], [1, 1], [0.1] * 3, r"scores must have shape \(2,\)"),
        (np.zeros((2, 3, 2)), [1, 1], [1, 1], [0.1] * 17, r"sigmas must have shape \(3,\)"),
        (
            np.full((1, 1, 2), np.nan),
            [1],
            [1],
            [0.1],
            "keypoints hold a value that is not finite, first in row 0",
        ),
        (np.zeros((2, 1, 2)), [1, np.inf], [1, 1], [0.1], "scores hold a value that is not finite.*row 1"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(poses, scores, areas, sigmas, message):
    with pytest.raises(ValueError, match=message):
        oks_nms(poses, scores, areas, sigmas=sigmas)


def test_duplicates_are_removed_by_the_kernel(monkeypatch):
    called = []
    kernel = ops.oks_nms
    monkeypatch.setattr(ops, "oks_nms", lambda *args, **options: called.append(1) or kernel(*args, **options))
    poses = np.random.default_rng(0).uniform(0, 50, (4, 3, 3))[::-1]  # whatever the strides
    assert sorted(oks_nms(poses, [0.1, 0.4, 0.3, 0.2], [900.0] * 4, 1.0, sigmas=[SIGMA] * 3).tolist()) == [0, 1, 2, 3]
    assert called


def test_rescoring_counts_joints_above_the_threshold_only():
    # HRNet's rule: box score x mean of the keypoint scores above 0.2; 0.2 itself does not count
    joints = [[0.9, 0.5, 0.2, 0.1], [0.2, 0.1, 0.0, -1.0]]
    assert rescore([0.5, 1.0], joints) == pytest.approx([0.5 * 0.7, 0.0])
    assert rescore([1.0], [[0.9, 0.5, 0.2, 0.1]], threshold=0.15) == pytest.approx([1.6 / 3])
