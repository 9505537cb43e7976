"""MPII's multi-person AP: numbers by hand, and the official procedure written out in loops."""

from __future__ import annotations

import numpy as np
import pytest

from posekd.metrics import evaluate_groups
from posekd.metrics.mpii_groups import COLUMNS, JOINTS
from posekd.skeleton import MPII

BODY = np.random.default_rng(0).uniform(0, 60, (16, 2))
WRISTS = [MPII.keypoints.index(f"{side}_wrist") for side in ("left", "right")]


def someone(x: float, score: float | None = None) -> np.ndarray:
    """16 keypoints `[16, 2]`, or with a score `[16, 3]`."""
    points = BODY + np.array((x, 100.0))
    return points if score is None else np.column_stack((points, np.full(16, score)))


def group(*people: np.ndarray, head: float = 10.0):
    points = np.array(people).reshape(-1, 16, 2)
    return points, np.full(points.shape[:2], 2), np.full(len(points), head)


def test_by_hand():
    """Two people; one found, one found but for the wrists, and a third who is not there, ranked between them."""
    truth = group(someone(100), someone(300))
    second = someone(303, 0.7)
    second[WRISTS, 0] += 3  # 6 of 10 pixels: beyond half a head
    result = evaluate_groups([truth], [np.array([someone(101, 0.9), someone(600, 0.8), second])])
    columns = result.columns()
    # right, wrong, right: 1/2 at a precision of 1, 1/2 at 2/3; wrists: right, wrong, wrong
    assert columns["Head"] == pytest.approx(100 * (1 / 2 + 1 / 2 * 2 / 3))
    assert columns["Wri"] == pytest.approx(50)
    assert columns["mAP"] == pytest.approx((12 * 250 / 3 + 2 * 50) / 14)
    assert list(columns) == ["Head", "Shou", "Elb", "Wri", "Hip", "Knee", "Ank", "mAP"]
    assert (result.groups, result.people) == (1, 2)
    assert result.recall[-1] == pytest.approx(100 * (12 + 2 / 2) / 14)


def test_pelvis_and_thorax_do_not_count():
    assert len(JOINTS) == 14
    assert sorted(k for column in COLUMNS.values() for k in column) == list(range(14))
    found = someone(100, 0.9)
    found[[MPII.keypoints.index("pelvis"), MPII.keypoints.index("thorax")], :2] += 500
    assert evaluate_groups([group(someone(100))], [found[None]]).AP[-1] == pytest.approx(100)


def test_a_second_pose_of_one_person_is_wrong():
    """Of two people predicted alike the better one is right, whatever the scores; both are ranked."""
    worse = someone(104, 0.9)
    worse[:8, 0] += 4
    result = evaluate_groups([group(someone(100))], [np.array([worse, someone(100, 0.5)])])
    np.testing.assert_allclose(result.AP[:-1], 50)  # wrong at 0.9, right at 0.5


def test_nobody():
    none = np.zeros((0, 16, 3))
    assert evaluate_groups([group(someone(100))], [none]).AP[-1] == 0
    assert np.isnan(evaluate_groups([group()], [none]).AP[-1])
    half = group(someone(100))
    half[1][:, WRISTS] = 0
    assert np.isnan(evaluate_groups([half], [none]).columns()["Wri"])
    with pytest.raises(ValueError, match="1 groups are labelled, 2 predicted"):
        evaluate_groups([group()], [none, none])
    with pytest.raises(ValueError, match=r"group 0: head sizes must be above 0, got \[0.0\]"):
        evaluate_groups([group(someone(1), head=0.0)], [none])


def official(labels, predictions):
    """evaluateAP.m and assignGTmulti.m, keypoint by keypoint: AP `[14]`."""
    scores, right, count = [[] for _ in JOINTS], [[] for _ in JOINTS], np.zeros(len(JOINTS))
    for (points, visible, heads), found in zip(labels, predictions, strict=True):
        share = np.zeros((len(found), len(points)))
        hits = np.zeros((len(found), len(points), len(JOINTS)), bool)
        for p, pose in enumerate(found):
            for g in range(len(points)):
                labelled = 0
                for i, k in enumerate(JOINTS):
                    if visible[g, k]:
                        labelled += 1
                        if pose[k].any():
                            hits[p, g, i] = np.hypot(*(pose[k, :2] - points[g, k])) / heads[g] <= 0.5
                share[p, g] = hits[p, g].sum() / max(labelled, 1)
        for p in range(len(found)):  # a prediction stands for one person only
            best = share[p].argmax() if len(points) else 0
            share[p, [g for g in range(len(points)) if g != best]] = 0
        taken = {}
        for g in range(len(points)):
            count += [visible[g, k] > 0 for k in JOINTS]
            if len(found) and share[:, g].max() > 0:
                taken[int(share[:, g].argmax())] = g
        for p, pose in enumerate(found):
            for i, k in enumerate(JOINTS):
                if pose[k].any():
                    scores[i].append(pose[k, 2])
                    right[i].append(bool(p in taken and hits[p, taken[p], i]))
    found_AP = []
    for s, r, n in zip(scores, right, count, strict=True):
        order = sorted(range(len(s)), key=lambda j: -s[j])
        recall, precision, seen = [], [], 0
        for place, j in enumerate(order, start=1):
            seen += r[j]
            recall.append(seen / n)
            precision.append(seen / place)
        AP, last = 0.0, 0.0
        for j in range(len(recall)):
            AP += (recall[j] - last) * max(precision[j:])
            last = recall[j]
        found_AP.append(100 * AP)
    return np.array(found_AP)


def test_the_official_procedure():
    rng = np.random.default_rng(5)
    labels, predictions = [], []
    for _ in range(12):
        count = int(rng.integers(1, 5))
        points, visible, heads = group(*(someone(40.0 * i) for i in range(count)), head=16.0)
        visible = np.where(rng.random(visible.shape) < 0.2, 0, visible)
        shown = rng.permutation(count + 1)[: int(rng.integers(0, count + 2))]
        poses = [np.column_stack((someone(40.0 * i) + rng.normal(0, 5, (16, 2)), rng.random(16))) for i in shown]
        poses = [np.where(rng.random((16, 1)) < 0.1, 0, pose) for pose in poses]
        labels.append((points, visible, heads))
        predictions.append(np.array(poses).reshape(-1, 16, 3))
    result = evaluate_groups(labels, predictions)
    np.testing.assert_allclose(result.AP[:-1], official(labels, predictions), atol=1e-9)
    assert 10 < result.AP[-1] < 90
