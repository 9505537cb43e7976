"""PCK and PCKh: by hand on a few keypoints, and the stored MPII predictions to the last digit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from posekd.metrics import PckResult, head_sizes, pck, pckh, torso_lengths
from posekd.skeleton import LSP, MPII, Skeleton

COLUMNS = ["Head", "Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle"]


def people(errors: list[list[float]], length: float = 100.0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Predictions that miss by `errors` [N, K] pixels, each in another direction."""
    error = np.asarray(errors, float)
    gt = np.random.default_rng(0).uniform(-50, 500, (*error.shape, 2))
    angle = np.arange(error.size).reshape(error.shape)
    pred = gt + error[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    return pred, gt, np.ones(error.shape), np.full(len(error), length)


def points(count: int) -> Skeleton:
    """Keypoints that no paper names."""
    return Skeleton("points", tuple(f"p{k}" for k in range(count)), (), tuple(range(count)), (0.1,) * count)


def pckh_of_points(pred, gt, visible, head_size) -> PckResult:
    return pckh(pred, gt, visible, head_size, skeleton=points(gt.shape[1]))


class TestRules:
    def test_a_joint_counts_up_to_and_including_the_threshold(self):
        gt = np.zeros((1, 3, 2))
        pred = np.array([[[50.0, 0.0], [0.0, -50.0], [50.01, 0.0]]])
        result = pckh_of_points(pred, gt, np.ones((1, 3)), [100.0])
        assert result.per_joint.tolist() == [100, 100, 0]
        assert result.mean == pytest.approx(200 / 3)

    def test_each_person_is_measured_by_his_own_length(self):
        pred, gt, visible, _ = people([[30.0], [30.0]])
        assert pckh_of_points(pred, gt, visible, [100.0, 50.0]).mean == 50
        assert pck(pred, gt, visible, [160.0, 140.0], 0.2).mean == 50

    def test_the_mean_is_weighted_by_count_and_unlabelled_joints_do_not_exist(self):
        pred, gt, visible, size = people([[0.0, 0.0], [0.0, 99.0], [99.0, 99.0]])
        visible[2, 1] = visible[1, 1] = 0
        gt[2, 1] = pred[1, 1] = np.nan
        result = pckh_of_points(pred, gt, visible, size)
        assert result.per_joint == pytest.approx([200 / 3, 100])
        assert result.counts.tolist() == [3, 1]
        assert result.mean == 75  # 3 of 4, not the mean of the two columns

    def test_an_unlabelled_joint_is_nan_and_a_person_without_labels_needs_no_length(self):
        pred, gt, visible, size = people([[0.0, 0.0], [0.0, 0.0]])
        visible[:, 1], visible[1], size[1] = 0, 0, np.nan
        result = pckh_of_points(pred, gt, visible, size)
        assert result.mean == 100
        assert math.isnan(result.per_joint[1])
        assert result.people == 1

    def test_coordinates_of_unlabelled_joints_do_not_matter(self, recwarn):
        pred, gt, visible, size = people([[0.0, 0.0]])
        visible[0, 1], pred[0, 1], gt[0, 1] = 0, np.inf, np.inf
        assert pckh_of_points(pred, gt, visible, size).mean == 100
        assert not recwarn.list

    def test_occluded_and_visible_labels_count_alike(self):
        pred, gt, visible, size = people([[0.0, 99.0]])
        assert pckh_of_points(pred, gt, visible * [2, 1], size).mean == 50
        assert pckh_of_points(pred, gt, visible > 0, size).mean == 50

    def test_pelvis_and_thorax_are_left_out_of_mpii_means(self):
        errors = np.zeros((1, 16))
        errors[0, [MPII.keypoints.index("pelvis"), MPII.keypoints.index("thorax")]] = 99
        result = pckh(*people(errors.tolist()))
        assert result.per_joint[[6, 7]].tolist() == [0, 0]
        assert result.mean == result.auc == 100
        assert pck(*people(errors.tolist())).mean == 87.5  # PCK counts all of them

    def test_columns_are_the_papers(self):
        errors = np.zeros((1, 16))
        errors[0, MPII.keypoints.index("left_wrist")] = errors[0, MPII.keypoints.index("upper_neck")] = 99
        groups = pckh(*people(errors.tolist())).groups
        assert list(groups) == COLUMNS
        assert groups["Wrist"] == 50
        assert groups["Head"] == 100  # the head top alone, as in HRNet's table
        errors = np.zeros((1, 14))
        errors[0, LSP.keypoints.index("neck")] = 99
        groups = pck(*people(errors.tolist()), skeleton=LSP).groups
        assert list(groups) == COLUMNS
        assert groups["Head"] == 50  # neck and head top, as in LSP's tables

    def test_the_curve_and_its_area(self):
        """One keypoint missed by 0.105 of the length: 0 up to 0.10, 100 from 0.11 on."""
        args = people([[10.5]])
        result = pckh_of_points(*args)
        assert result.thresholds == pytest.approx(np.linspace(0, 0.5, 51))
        assert result.curve.tolist() == [0] * 11 + [100] * 40
        assert result.auc == pytest.approx(100 * (39 + 0.5) / 50)
        assert result.mean_at_10 == 0
        assert result.hrnet_mean_at_01 == 100  # HRNet's "Mean@0.1" is at 0.11
        lsp = pck(*args)
        assert lsp.thresholds == pytest.approx(np.linspace(0, 0.2, 21))
        assert lsp.auc == pytest.approx(100 * (9 + 0.5) / 20)
        assert list(lsp.numbers()) == ["PCK@0.2", "AUC", "PCK@0.1"]

    def test_tensors_of_any_dtype_give_what_arrays_give(self):
        args = people(np.random.default_rng(1).uniform(0, 80, (7, 16)).tolist())
        tensors = [torch.tensor(a, dtype=torch.float64, requires_grad=i == 0) for i, a in enumerate(args)]
        np.testing.assert_equal(pckh(*tensors).__dict__, pckh(*args).__dict__)
        assert pckh(*(t.bfloat16() for t in tensors)).mean == pytest.approx(pckh(*args).mean, abs=10)


class TestLengths:
    def test_a_head_size_is_six_tenths_of_the_diagonal(self):
        sizes = head_sizes([[10, 10, 40, 50], [np.nan] * 4])
        assert sizes[0] == 30
        assert math.isnan(sizes[1])
        with pytest.raises(ValueError, match=r"must be \[N, 4\] \(x1, y1, x2, y2\), got shape \(4,\)"):
            head_sizes([1, 2, 3, 4])

    @pytest.mark.parametrize("skeleton", [MPII, LSP], ids=lambda s: s.name)
    def test_a_torso_reaches_from_the_left_shoulder_to_the_right_hip(self, skeleton):
        keypoints = np.zeros((2, skeleton.num_keypoints, 3))
        keypoints[:, skeleton.keypoints.index("left_shoulder")] = [30, 0, 2]
        keypoints[0, skeleton.keypoints.index("right_hip")] = [0, 40, 1]
        lengths = torso_lengths(keypoints, skeleton)
        assert lengths[0] == 50
        assert math.isnan(lengths[1])
        with pytest.raises(ValueError, match=rf"{skeleton.name} must be \[N, {skeleton.num_keypoints}, 3\]"):
            torso_lengths(keypoints[:, 1:], skeleton)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gt": np.zeros((2, 3))}, r"gt must be \[N, K, 2\] \(x, y\), got shape \(2, 3\)"),
        ({"pred": np.zeros((2, 3, 3))}, r"pred must have shape \(2, 3, 2\) for gt \(2, 3, 2\), got \(2, 3, 3\)"),
        ({"visible": np.ones(3)}, r"visible must have shape \(2, 3\)"),
        ({"visible": np.full((2, 3), np.nan)}, "visible holds a NaN, first for person 0"),
        ({"visible": np.zeros((2, 3))}, "nothing to score"),
        ({"head_size": 4.0}, r"head_size must have shape \(2,\)"),
        ({"head_size": [5.0, 0.0]}, "head_size must be positive, but 1 of 2 people have another, first person 1"),
        ({"head_size": [np.nan, 5.0]}, "first person 0 with nan: leave such people out"),
        ({"pred": np.full((2, 3, 2), np.nan)}, "pred holds a NaN or infinite number at a labelled keypoint"),
        ({"gt": np.full((2, 3, 2), np.inf)}, "gt holds a NaN or infinite number at a labelled keypoint, first for"),
        ({"pred": [["a"]]}, "pred must be numbers"),
    ],
)  # fmt: skip
def test_bad_input_is_answered_with_a_sentence(change, message):
    good = {"pred": np.zeros((2, 3, 2)), "gt": np.zeros((2, 3, 2)), "visible": np.ones((2, 3)), "head_size": [1.0, 1.0]}
    with pytest.raises(ValueError, match=message):
        pckh(**{**good, **change}, skeleton=points(3))


@pytest.mark.parametrize("threshold", [0.0, -1.0, math.inf, math.nan])
def test_a_threshold_that_is_none_is_refused(threshold):
    with pytest.raises(ValueError, match="threshold is a fraction of the reference length, above 0"):
        pck(*people([[1.0]]), threshold=threshold)


@pytest.mark.data
def test_stored_mpii_predictions_give_the_known_table(real_data):
    """2958 people of the MPII validation split with stored predictions, as HRNet's code scores them."""
    loadmat = pytest.importorskip("scipy.io").loadmat
    stored = loadmat(real_data / "mpii" / "tompson-valid" / "detections_our_format.mat")
    pred, gt = (np.moveaxis(stored[name], 2, 0) for name in ("pos_pred_src", "pos_gt_src"))
    boxes = np.moveaxis(stored["headboxes_src"], 2, 0).reshape(-1, 4)
    visible = 1 - stored["jnt_missing"].T
    result: PckResult = pckh(pred, gt, visible, head_sizes(boxes))
    assert result.people == 2958
    assert {name: round(value, 2) for name, value in result.groups.items()} == {
        "Head": 95.60, "Shoulder": 92.71, "Elbow": 83.36, "Wrist": 76.74, "Hip": 81.93, "Knee": 73.36, "Ankle": 65.45,
    }  # fmt: skip
    assert round(result.mean, 3) == 82.337
    assert round(result.mean_at_10, 3) == 28.975
    assert round(result.hrnet_mean_at_01, 3) == 33.138
    # by an independent integration: numpy.trapezoid over the 51 thresholds, divided by 0.5
    assert round(result.auc, 3) == 55.781
