"""What keypoints' names tell, in the spellings that datasets use."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from posekd.codecs.reordered import Reordered, in_order_of
from posekd.names import infer_flip, infer_upper_body, match, side
from posekd.skeleton import COCO, CROWDPOSE, LSP, MPII, skeleton_from_category


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("left_ear", "right_ear"), ("leftEar", "rightEar"), ("LeftEar", "RightEar"), ("ear_left", "ear_right"),
        ("earL", "earR"), ("LEar", "REar"), ("L-ear", "R-ear"), ("l.ear", "r.ear"), ("ear l", "ear r"),
        ("Lt Ear", "Rt Ear"),
        ("lt_ear", "rt_ear"), ("LEFT EAR", "RIGHT EAR"), ("linkes Ohr", "rechtes Ohr"),
        ("oreille gauche", "oreille droite"),
        ("oreja_izquierda", "oreja_derecha"), ("orecchio sinistro", "orecchio destro"), ("leftear", "rightear"),
        ("左耳", "右耳"), ("front_left_paw", "front_right_paw"), ("pawFrontLeft2", "pawFrontRight2"),
    ],
)  # fmt: skip
def test_a_pair_is_found_in_every_spelling(left, right):
    assert (side(left), side(right)) == ("left", "right")
    assert infer_flip(["nose", left, right]) == (0, 2, 1)


@pytest.mark.parametrize("name", ["nose", "tail", "rear", "lip", "l_r", "upper_neck", "light", "bright"])
def test_other_names_tell_no_side(name):
    assert side(name) is None


def test_glued_letters_count_where_two_couples_have_them():
    assert infer_flip(["lear", "rear", "lhip", "rhip", "nose"]) == (1, 0, 3, 2, 4)
    assert infer_flip(["earl", "earr", "hipl", "hipr"]) == (1, 0, 3, 2)
    assert infer_flip(["lock", "rock", "nose"]) == (0, 1, 2)  # one couple may be chance


@pytest.mark.parametrize("skeleton", [COCO, CROWDPOSE, LSP, MPII], ids=lambda s: s.name)
def test_the_known_sets_are_read_as_they_are(skeleton):
    assert infer_flip(skeleton.keypoints) == skeleton.flip


@pytest.mark.parametrize(
    ("skeleton", "unclear"), [(COCO, set()), (LSP, set()), (CROWDPOSE, set())], ids=["coco", "lsp", "crowdpose"]
)
def test_the_upper_body_of_known_sets(skeleton, unclear):
    assert set(infer_upper_body(skeleton.keypoints)) == set(skeleton.upper_body) - unclear


def test_an_upper_body_needs_a_lower_one():
    assert infer_upper_body(["nose", "left_eye", "right_eye", "mouth"]) == ()
    assert infer_upper_body(
        ["Kopf", "Schulter links", "Schulter rechts", "Knie links", "Knie rechts", "Fuss links"]
    ) == (0, 1, 2)


class TestWarnings:
    def test_sides_without_a_partner_are_named(self):
        with pytest.warns(
            UserWarning, match="left_paw, ear1, ear2 look like keypoints of two sides and have no partner"
        ):
            skeleton_from_category({"name": "cat", "keypoints": ["nose", "left_paw", "ear1", "ear2"]}, sigmas=[0.1] * 4)

    def test_nothing_is_said_of_sets_that_are_in_order(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cat = skeleton_from_category(
                {"name": "cat", "keypoints": ["nose", "earL", "earR", "tail"]}, sigmas=[0.1] * 4
            )
            rod = skeleton_from_category({"name": "rod", "keypoints": ["top", "bottom"]}, sigmas=[0.1] * 2)
        assert (cat.flip, rod.flip) == ((0, 2, 1, 3), (0, 1))

    def test_pairs_are_given_by_name_or_by_index(self):
        category = {"name": "cat", "keypoints": ["ear1", "ear2", "nose"]}
        for pairs in ([("ear1", "ear2")], [[0, 1]]):
            assert skeleton_from_category(category, flip_pairs=pairs, sigmas=[0.1] * 3).flip == (1, 0, 2)
        for pairs, message in (
            ([["ear1", 7]], "7 is not among the keypoints"),
            (["ear1"], "pairs of keypoints, by name or by index"),
        ):
            with pytest.raises(ValueError, match=message):
                skeleton_from_category(category, flip_pairs=pairs, sigmas=[0.1] * 3)

    def test_the_upper_body_can_be_given(self):
        category = {"name": "cat", "keypoints": ["a", "b", "c"]}
        assert skeleton_from_category(category, sigmas=[0.1] * 3, upper_body=["c", "a"]).upper_body == (2, 0)
        with pytest.raises(ValueError, match="upper_body: 'd' is not among the keypoints"):
            skeleton_from_category(category, sigmas=[0.1] * 3, upper_body=["d"])


class TestMatch:
    def test_the_place_of_each_of_ours_among_theirs(self):
        assert match(["nose", "left_ear", "right_ear"], ["earR", "Nose", "ear left"]) == (2, 0, 1)
        assert match(["a", "b", "c"], ["c"]) == (2,)

    def test_what_is_missing_or_there_twice_is_named(self):
        with pytest.raises(ValueError, match="the keypoints tail are not among nose, left_ear, or not once"):
            match(["nose", "left_ear"], ["nose", "tail"])
        with pytest.raises(ValueError, match="the keypoints L-ear are not among"):
            match(["left_ear", "ear_left"], ["L-ear"])


class Maps(nn.Module):
    """Heatmaps that say which keypoint they are of."""

    paradigm, output = "top_down", "heatmaps"

    def __init__(self, keypoints: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.arange(float(keypoints)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :1] * self.scale[:, None, None]


class TestReordered:
    def test_keypoint_k_is_the_networks_order_k(self):
        images = torch.ones(1, 3, 2, 2)
        with pytest.warns(
            UserWarning, match="the net has its keypoints in another order than the data: they are matched by name$"
        ):
            model = in_order_of(Maps(3), ["a", "b", "c"], ["c", "a", "b"], "the net")
        (maps,) = model(images)
        assert maps[0, :, 0, 0].tolist() == [2, 0, 1]

    def test_some_of_the_networks_keypoints(self):
        with pytest.warns(UserWarning, match="matched by name, and 1 of its keypoints are left out"):
            model = in_order_of(Maps(3), ["a", "b", "c"], ["c", "a"], "the net")
        assert isinstance(model, Reordered)
        assert model(torch.ones(1, 3, 2, 2))[0][0, :, 0, 0].tolist() == [2, 0]

    def test_tags_go_with_their_heatmaps(self):
        class Tagged(Maps):
            paradigm, output = "bottom_up", "tagged_heatmaps"

            def forward(self, images):
                maps = super().forward(images)
                return [torch.cat((maps, maps + 10), 1), maps + 100]

        coarse, fine = Reordered(Tagged(3), (1, 2, 0))(torch.ones(1, 3, 2, 2))
        assert coarse[0, :, 0, 0].tolist() == [1, 2, 0, 11, 12, 10]
        assert fine[0, :, 0, 0].tolist() == [101, 102, 100]

    def test_where_names_agree_or_are_not_known_nothing_changes(self):
        model = Maps(2)
        assert in_order_of(model, None, ["x", "y"], "it") is model
        assert in_order_of(model, ["left_x", "y"], ["xL", "Y"], "it") is model

    def test_other_keypoints_are_refused(self):
        with pytest.raises(
            ValueError, match="the net has other keypoints than the data: the keypoints z are not among a, b"
        ):
            in_order_of(Maps(2), ["a", "b"], ["a", "z"], "the net")
