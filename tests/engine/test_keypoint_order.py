"""Networks, teachers and checkpoints that name their keypoints in another order than the data."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from helpers.tiny_recipe import TINY_NET, tiny_recipe

from posekd.data import LoaderSettings
from posekd.data.synthetic import SyntheticPeople, SyntheticSettings
from posekd.engine.build import assemble, build_method
from posekd.engine.evaluate import evaluate
from posekd.engine.teachers import build_teacher
from posekd.engine.training.loop import load_state_dict, state_dict
from posekd.models import create_model, load_model, save_weights
from posekd.paradigms.inference import find_people
from posekd.skeleton import COCO, Skeleton
from posekd.structures import InputSpec

ORDER = [0, 15, 16, *range(1, 15)]
PLACE = np.argsort(ORDER).tolist()
CPU = torch.device("cpu")


def other_order(skeleton: Skeleton) -> Skeleton:
    """The same keypoints, keypoint k being the old `ORDER[k]`."""
    return replace(
        skeleton,
        name="other",
        keypoints=tuple(skeleton.keypoints[k] for k in ORDER),
        sigmas=tuple(skeleton.sigmas[k] for k in ORDER),
        flip=tuple(PLACE[skeleton.flip[k]] for k in ORDER),
        edges=tuple((PLACE[a], PLACE[b]) for a, b in skeleton.edges),
        upper_body=tuple(sorted(PLACE[k] for k in skeleton.upper_body)),
    )


class OtherOrder(SyntheticPeople):
    """Drawn people whose labels list the keypoints in another order."""

    def __init__(self, settings: SyntheticSettings) -> None:
        super().__init__(settings)
        records = self.records
        self.records = replace(records, skeleton=other_order(COCO), keypoints=records.keypoints[:, ORDER])

    def coco_ground_truth(self):
        truth = super().coco_ground_truth()
        category = {**truth["categories"][0], "keypoints": list(self.records.skeleton.keypoints)}
        annotations = [
            {**a, "keypoints": np.reshape(a["keypoints"], (-1, 3))[ORDER].reshape(-1).tolist()}
            for a in truth["annotations"]
        ]
        return {**truth, "categories": [category], "annotations": annotations}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A network whose card names COCO's keypoints in COCO's order."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("net") / "net.safetensors"
    save_weights(create_model("elpn_v1", 17, **TINY_NET), file, {"skeleton": asdict(COCO)})
    return file


SETTINGS = SyntheticSettings(images=4, size=(96, 96), seed=3)


def test_evaluation_matches_by_name_and_says_so(weights):
    model, loader = load_model(weights), LoaderSettings(4, workers=0)
    usual = evaluate(model, SyntheticPeople(SETTINGS), loader=loader)
    with pytest.warns(UserWarning, match="the network elpn_v1 has its keypoints in another order than the data"):
        other = evaluate(model, OtherOrder(SETTINGS), loader=loader)
    assert other.numbers() == usual.numbers()
    assert torch.equal(other.found.keypoints, usual.found.keypoints[:, ORDER])


def test_arrays_are_matched_by_name_too(weights):
    model = load_model(weights)
    images = [SyntheticPeople(SETTINGS).load_image(0)]
    usual = find_people(model, images, COCO)
    with pytest.warns(UserWarning, match="the network has its keypoints in another order than the data"):
        other = find_people(model, images, other_order(COCO))
    assert torch.equal(other.keypoints, usual.keypoints[:, ORDER])


def test_a_teachers_heatmaps_are_those_of_the_students_keypoints(weights, tmp_path):
    teacher = {"name": "elpn_v1", "overrides": TINY_NET, "weights": str(weights)}
    recipe = tiny_recipe(
        tmp_path, method={"name": "mapd"}, teacher=teacher, train_data={"name": "synthetic"}, train__validate_every=0
    )
    images, spec = torch.randn(1, 3, 64, 64), InputSpec(size=(64, 64))
    (usual,) = [build_teacher(recipe, recipe.teacher, COCO).outputs(images, spec)]
    with pytest.warns(UserWarning, match="the teacher elpn_v1 has its keypoints in another order"):
        (other,) = build_teacher(recipe, recipe.teacher, other_order(COCO)).outputs(images, spec)
    assert torch.equal(other, usual[:, ORDER])


def test_initial_weights_of_another_order_are_refused(weights, tmp_path):
    student = {"name": "elpn_v1", "overrides": TINY_NET, "weights": str(weights)}
    recipe = tiny_recipe(tmp_path, student=student, train_data={"name": "synthetic"}, train__validate_every=0)
    build_method(recipe, COCO, CPU)
    with pytest.raises(ValueError, match=r"student\.weights has learnt the keypoints \['nose'"):
        build_method(recipe, other_order(COCO), CPU)


def test_a_checkpoint_of_another_order_is_refused(tmp_path):
    recipe = tiny_recipe(tmp_path, train_data={"name": "synthetic"}, train__validate_every=0)
    first = assemble(recipe, SyntheticPeople(SETTINGS), None, CPU, "first")
    second = assemble(recipe, OtherOrder(SETTINGS), None, CPU, "second")
    with pytest.raises(ValueError, match=r"the checkpoint learns the keypoints .* in this order: go on with the data"):
        load_state_dict(second, state_dict(first))
