"""Keypoint sets: COCO's numbers, and reading those of others from their categories."""

from __future__ import annotations

import warnings

import pytest
from pycocotools.cocoeval import Params

from posekd.skeleton import COCO, DEFAULT_SIGMA, LSP, MPII, Skeleton, infer_flip, side, skeleton_from_category


def test_coco_is_the_official_set():
    assert COCO.num_keypoints == 17
    # HigherHRNet's FLIP_CONFIG for COCO
    assert COCO.flip == (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)
    assert COCO.sigmas == pytest.approx(Params(iouType="keypoints").kpt_oks_sigmas.tolist())
    assert [COCO.keypoints[i] for i in COCO.upper_body][-1] == "right_wrist"


def test_mpii_pairs_are_hrnets():
    # deep-high-resolution-net, lib/dataset/mpii.py: flip_pairs
    assert {(a, b) for a, b in enumerate(MPII.flip) if a < b} == {(0, 5), (1, 4), (2, 3), (10, 15), (11, 14), (12, 13)}


@pytest.mark.parametrize("skeleton", [COCO, MPII, LSP], ids=lambda s: s.name)
def test_the_names_alone_give_the_flip(skeleton):
    assert infer_flip(skeleton.keypoints) == skeleton.flip


@pytest.mark.parametrize(
    "names",
    [
        ("tail", "left_paw", "right_paw"),
        ("tail", "Left-Paw", "Right-Paw"),
        ("tail", "paw L", "paw R"),
        ("tail", "pawLeft", "pawRight"),
        ("tail", "l_paw", "r_paw"),
    ],
)
def test_sides_are_read_from_common_spellings(names):
    assert infer_flip(names) == (0, 2, 1)


def test_names_without_sides_have_no_mirror():
    assert infer_flip(("shell", "brightness", "left")) == (0, 1, 2)  # a lone side has no partner


class TestFromCategory:
    def test_cocos_own_category_gives_coco(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert skeleton_from_category({"name": "person", "keypoints": list(COCO.keypoints)}) is COCO

    def test_one_based_edges_become_zero_based(self):
        category = {"name": "mouse", "keypoints": ["nose", "tail"], "skeleton": [[1, 2]]}
        skeleton = skeleton_from_category(category, sigmas=[0.03, 0.1])
        assert skeleton.edges == ((0, 1),)
        assert skeleton.sigmas == (0.03, 0.1)
        assert skeleton.flip == (0, 1)

    def test_unknown_sigmas_are_guessed_loudly(self):
        with pytest.warns(UserWarning, match="'mouse' has 2 keypoints and no OKS sigmas"):
            skeleton = skeleton_from_category({"name": "mouse", "keypoints": ["nose", "tail"]})
        assert skeleton.sigmas == (DEFAULT_SIGMA,) * 2

    def test_flip_pairs_can_be_given(self):
        category = {"name": "x", "keypoints": ["port", "starboard", "bow"]}
        skeleton = skeleton_from_category(category, flip_pairs=[("port", "starboard")], sigmas=[0.1] * 3)
        assert skeleton.flip == (1, 0, 2)

    def test_an_unknown_name_in_a_pair_is_named(self):
        with pytest.raises(ValueError, match="'stern' is not among the keypoints"):
            skeleton_from_category({"name": "x", "keypoints": ["bow"]}, flip_pairs=[("bow", "stern")], sigmas=[1])

    def test_a_category_without_keypoints_is_refused(self):
        with pytest.raises(ValueError, match="'cat' has no 'keypoints'"):
            skeleton_from_category({"name": "cat"})


class TestSkeleton:
    def make(self, **changes):
        facts = {"name": "s", "keypoints": ("a", "b"), "edges": ((0, 1),), "flip": (1, 0), "sigmas": (0.1, 0.1)}
        return Skeleton(**{**facts, **changes})

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"flip": (0, 0)}, "not a permutation of 0..1"),
            ({"sigmas": (0.1,)}, "1 sigmas for 2 keypoints"),
            ({"sigmas": (0.1, 0.0)}, "must be positive"),
            ({"edges": ((0, 2),)}, r"\(0, 2\) names a keypoint outside 0..1"),
            ({"upper_body": (5,)}, "upper_body"),
        ],
    )
    def test_contradictions_are_refused(self, changes, message):
        with pytest.raises(ValueError, match=message):
            self.make(**changes)

    def test_a_flip_must_undo_itself(self):
        with pytest.raises(ValueError, match="does not undo itself"):
            self.make(keypoints=("a", "b", "c"), flip=(1, 2, 0), sigmas=(0.1,) * 3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("left_ear", "left"), ("Left-Ear", "left"), ("earLeft", "left"), ("L_ear", "left"), ("leftEar", "left"),
        ("right_ear", "right"), ("ear R", "right"), ("rightEar", "right"),
        ("nose", None), ("cleft", None), ("bright_spot", None), ("lower_lip", None), ("left_to_right", None),
    ],
)  # fmt: skip
def test_a_name_tells_its_side(name, expected):
    assert side(name) == expected
