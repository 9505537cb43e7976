"""Which keypoint of one common set is which of another's."""

from __future__ import annotations

import pytest

from posekd.bridging import KEYPOINT_SETS, Bridge, bridge

SIZES = {"coco": 17, "coco_wholebody": 133, "halpe26": 26, "mpii": 16, "lsp": 14, "crowdpose": 14, "posetrack": 17,
         "aic": 14}  # fmt: skip


def had(theirs: str, ours: str) -> dict[str, list[str]]:
    return bridge(KEYPOINT_SETS[theirs], KEYPOINT_SETS[ours]).names()


def test_the_sets_have_the_published_numbers_of_keypoints():
    assert {name: len(keypoints) for name, keypoints in KEYPOINT_SETS.items()} == SIZES
    assert all(len(set(keypoints)) == len(keypoints) for keypoints in KEYPOINT_SETS.values())


@pytest.mark.parametrize("theirs", KEYPOINT_SETS)
@pytest.mark.parametrize("ours", KEYPOINT_SETS)
def test_all_sets_share_the_limbs(theirs, ours):
    found = had(theirs, ours)
    for joint in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle"):
        for side in ("left", "right"):
            assert found[f"{side}_{joint}"] == [f"{side}_{joint}"]


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [  # MMPose's converters of these sets for its body of eight sets
        ("mpii", "halpe26", {"head": ["head_top"], "neck": ["upper_neck"], "hip": ["pelvis"], "nose": []}),
        ("crowdpose", "halpe26", {"head": ["head"], "neck": ["neck"]}),
        ("aic", "halpe26", {"head": ["head_top"], "neck": ["neck"]}),
        ("posetrack", "halpe26", {"head": ["head_top"], "neck": ["head_bottom"], "nose": ["nose"], "left_eye": []}),
        ("halpe26", "mpii", {"head_top": ["head"], "upper_neck": ["neck"], "pelvis": ["hip"],
                             "thorax": ["left_shoulder", "right_shoulder"]}),
        ("coco", "mpii", {"head_top": [], "upper_neck": [], "pelvis": ["left_hip", "right_hip"],
                          "thorax": ["left_shoulder", "right_shoulder"]}),
        ("coco", "crowdpose", {"head": [], "neck": ["left_shoulder", "right_shoulder"]}),
        ("lsp", "coco", {"nose": [], "left_eye": [], "left_ear": []}),
        ("halpe26", "coco_wholebody", {"left_big_toe": ["left_big_toe"], "right_heel": ["right_heel"], "face-0": [],
                                       "left_hand_root": ["left_wrist"], "left_thumb1": []}),
        ("coco_wholebody", "coco", {"left_wrist": ["left_wrist"]}),
    ],
)  # fmt: skip
def test_other_names_and_midpoints(theirs, ours, expected):
    found = had(theirs, ours)
    assert {name: found[name] for name in expected} == expected


def test_spellings_of_other_tools():
    found = bridge(["LShoulder", "R_Knee", "Hip", "Head"], ["left_shoulder", "right knee", "pelvis", "head_top", "hip"])
    assert found.sources == ((0,), (1,), (2,), (3,), (2,))
    assert found.is_plain


def test_what_is_there_twice_is_not_taken():
    assert bridge(["left_ear", "ear_left"], ["L-ear"]).sources == ((),)
    assert bridge(["left_ear", "ear_left"], ["left_ear"]).sources == ((0,),)


def test_several_people_have_no_midpoints():
    assert bridge(KEYPOINT_SETS["coco"], ["pelvis"], derive=False).sources == ((),)


def test_the_mapping_in_words():
    found = bridge(KEYPOINT_SETS["coco"], ["nose", "leftEar", "pelvis", "head_top"])
    assert found.lines("the teacher") == [
        "3 of the data's 4 keypoints are known to the teacher",
        "  by the same name: nose",
        "  by another name: leftEar = left_ear",
        "  derived: pelvis = midpoint of left_hip and right_hip",
        "  not known, learnt from labels alone: head_top",
        "  not used: left_eye, right_eye, right_ear, left_shoulder, right_shoulder, left_elbow, right_elbow, "
        "left_wrist, right_wrist, left_knee, right_knee, left_ankle and 1 more",
    ]
    again = Bridge.from_names(found.names(), found.ours)
    assert again.names() == found.names()
    assert again.covered == found.covered == (True, True, True, False)
