"""What PCK takes from the keypoints' names, whatever their number and order: columns, and what PCKh leaves out."""

from __future__ import annotations

import numpy as np
import pytest

from posekd.metrics import pck, pckh
from posekd.skeleton import COCO, CROWDPOSE, LSP, MPII, Skeleton


def missed(skeleton: Skeleton, *names: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One person whose keypoints of these names are far from where they belong; the others are met."""
    gt = np.zeros((1, skeleton.num_keypoints, 2))
    pred = gt.copy()
    for name in names:
        pred[0, skeleton.keypoints.index(name)] = 1e3
    return pred, gt, np.ones(gt.shape[:2]), np.array([10.0])


def named(*names: str) -> Skeleton:
    return Skeleton("own", names, (), tuple(range(len(names))), (0.1,) * len(names))


def test_columns_are_found_in_any_order():
    shuffled = named(*reversed(MPII.keypoints))
    groups = pckh(*missed(shuffled, "left_wrist"), skeleton=shuffled).groups
    assert groups == {"Head": 100, "Shoulder": 100, "Elbow": 100, "Wrist": 50, "Hip": 100, "Knee": 100, "Ankle": 100}
    assert groups == pckh(*missed(MPII, "left_wrist")).groups


def test_a_larger_set_with_the_papers_keypoints_has_their_columns():
    larger = named(*LSP.keypoints, "nose", "tail")  # 16, as many as MPII has
    groups = pck(*missed(larger, "neck"), skeleton=larger).groups
    assert groups["Head"] == 50
    assert pckh(*missed(larger, "neck"), skeleton=larger).mean == pytest.approx(100 * 15 / 16)


@pytest.mark.parametrize("count", [14, 16])
def test_as_many_keypoints_as_a_paper_has_are_not_that_papers(count):
    others = named(*(f"p{k}" for k in range(count)))
    result = pckh(*missed(others, "p6", "p7"), skeleton=others)  # where MPII has pelvis and thorax
    assert result.groups == {}
    assert result.mean == pytest.approx(100 * (count - 2) / count)


@pytest.mark.parametrize("skeleton", [COCO, CROWDPOSE], ids=lambda s: s.name)
def test_sets_without_a_head_top_have_no_columns(skeleton):
    assert pck(*missed(skeleton), skeleton=skeleton).groups == {}


def test_without_names_there_are_no_columns():
    result = pck(*missed(LSP, "neck"))
    assert result.groups == {}
    assert result.mean == pytest.approx(100 * 13 / 14)
    assert list(result.numbers()) == ["PCK@0.2", "AUC", "PCK@0.1"]


def test_pelvis_and_thorax_do_not_count_in_pckh_alone():
    people = missed(MPII, "pelvis", "thorax")
    assert pckh(*people).mean == 100
    assert pck(*people, skeleton=MPII).mean == 87.5


def test_keypoints_that_are_not_the_skeletons_are_refused_in_words():
    with pytest.raises(ValueError, match="gt has 14 keypoints per person, but the skeleton 'mpii' has 16: give"):
        pckh(*missed(LSP))
    with pytest.raises(ValueError, match="gt has 16 keypoints per person, but the skeleton 'lsp' has 14"):
        pck(*missed(MPII), skeleton=LSP)
