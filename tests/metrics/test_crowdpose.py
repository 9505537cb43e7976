"""CrowdPose's numbers, worked out by hand from the rules of its official code."""

from __future__ import annotations

import math

import pytest

from posekd.metrics import CrowdPoseResult, evaluate_coco, evaluate_crowdpose, evaluate_people
from posekd.skeleton import COCO, CROWDPOSE, infer_flip, skeleton_from_category

NAMES = list(CROWDPOSE.keypoints)


def truth(indices=(0.1, 0.5, 0.9)) -> dict:
    """One person an image; box 100 x 100, keypoints on a diagonal."""
    joints = [v for k in range(14) for v in (10.0 + 5 * k, 20.0 + 5 * k, 2)]
    images = [{"id": i, "file_name": "", "height": 200, "width": 200, "crowdIndex": c} for i, c in enumerate(indices)]
    people = [
        {"id": i + 7, "image_id": i, "category_id": 1, "iscrowd": 0, "bbox": [0, 0, 100, 100], "keypoints": joints,
         "num_keypoints": 14}
        for i in range(len(indices))
    ]  # fmt: skip
    return {"images": images, "annotations": people, "categories": [{"id": 1, "name": "person", "keypoints": NAMES}]}


def found(labels: dict, shifts: dict[int, float]) -> list[dict]:
    """Each labelled person of these images, all keypoints moved to the right."""
    results = []
    for image, shift in shifts.items():
        joints = list(labels["annotations"][image]["keypoints"])
        joints[0::3] = [x + shift for x in joints[0::3]]
        results.append({"image_id": image, "category_id": 1, "keypoints": joints, "score": 0.9})
    return results


def test_facts():
    assert skeleton_from_category({"name": "person", "keypoints": NAMES}) is CROWDPOSE
    assert skeleton_from_category({"name": "person", "keypoints": list(COCO.keypoints)}) is COCO
    assert infer_flip(NAMES) == CROWDPOSE.flip


def test_levels_are_scored_by_themselves():
    labels = truth()
    result = evaluate_crowdpose(labels, found(labels, {0: 0.0, 1: 1000.0}))
    assert isinstance(result, CrowdPoseResult)
    assert result.numbers()["AP_easy"] == pytest.approx(1)
    assert result.AP_medium == 0
    assert result.AP_hard == 0
    assert list(result.numbers()) == ["AP", "AP50", "AP75", "AR", "AR50", "AR75", "AP_easy", "AP_medium", "AP_hard"]
    assert pytest.approx(1 / 3) == result.AR


@pytest.mark.parametrize(
    ("index", "level"), [(0.0, "easy"), (0.19, "easy"), (0.2, "medium"), (0.79, "medium"), (0.8, "hard"), (1.0, "hard")]
)
def test_borders_of_the_levels(index, level):
    """The official code's `get_type_result(first=0.2, second=0.8)`; a level without images has -1."""
    labels = truth((index,))
    numbers = evaluate_crowdpose(labels, found(labels, {0: 0.0})).numbers()
    levels = {"AP_easy": -1.0, "AP_medium": -1.0, "AP_hard": -1.0, f"AP_{level}": pytest.approx(1.0)}
    assert {name: numbers[name] for name in levels} == levels


def test_area_is_053_of_the_box():
    """OKS of a shift d: the mean over keypoints of exp(-d^2 / (2 (2 sigma)^2 0.53 w h))."""
    labels = truth((0.5,))
    shift = 6.0
    oks = sum(math.exp(-(shift**2) / (2 * (2 * s) ** 2 * 0.53 * 100 * 100)) for s in CROWDPOSE.sigmas) / 14
    result = evaluate_crowdpose(labels, found(labels, {0: shift}))
    assert result.people[0].oks == pytest.approx(oks)
    assert pytest.approx(sum(t <= oks for t in [0.5 + 0.05 * i for i in range(10)]) / 10) == result.AP


def test_the_metric_follows_the_file():
    labels = truth()
    results = found(labels, {0: 0.0})
    assert isinstance(evaluate_people(labels, results), CrowdPoseResult)
    for image in labels["images"]:
        del image["crowdIndex"]
    for person in labels["annotations"]:
        person["area"] = 5300.0
    assert evaluate_people(labels, results) == evaluate_coco(labels, results)
    with pytest.raises(ValueError, match="image 0 has no crowdIndex"):
        evaluate_crowdpose(labels, results)
