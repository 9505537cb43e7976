"""The recipe that `posekd init` writes: what follows from the data, and that it can be read and trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml
from helpers.coco_folder import labels, person, write

from posekd.data import CocoKeypoints
from posekd.data.inspection import gather_facts
from posekd.engine import planning
from posekd.engine.planning import BUDGETS, fit_latency, input_size, make_plan
from posekd.engine.recipe_text import NAMES, recipe_text
from posekd.engine.recipes.recipe import pick_run, recipe_from_dict
from posekd.models import create_model
from posekd.models.latency import Latency
from posekd.models.profile import activation_bytes


def plan_of(folder, content, budget="small", **settings):
    own = write(folder, content, **settings)
    records = CocoKeypoints(own).records
    facts = gather_facts(records, own)
    return make_plan(records, facts, budget), facts, own


def people(count, box=(5, 2, 30, 50), names=None):
    content = labels([person(i, i, bbox=list(box)) for i in range(1, count + 1)], range(1, count + 1))
    if names is not None:
        content["categories"][0]["keypoints"] = names
        for a in content["annotations"]:
            a |= {"keypoints": a["keypoints"][: 3 * len(names)], "num_keypoints": len(names)}
    return content


@pytest.mark.parametrize(
    ("aspect", "pixels", "size"),
    [
        (1.0, 128 * 128, (128, 128)),
        (0.75, 256 * 192, (256, 192)),  # COCO's usual input
        (2.0, 128 * 128, (96, 192)),
        (20.0, 128 * 128, (96, 192)),  # no strip of a few pixels
        (0.01, 128 * 128, (192, 96)),
    ],
)
def test_the_input_has_the_aspect_of_the_boxes(aspect, pixels, size):
    assert input_size(aspect, pixels) == size


def test_batch_and_epochs_follow_from_the_number_of_people(tmp_path):
    plan, *_ = plan_of(tmp_path, people(40))
    assert plan.batch == 8  # a quarter of the people at most, a power of 2
    assert plan.epochs * (40 // plan.batch) == BUDGETS["small"].steps
    assert plan.cache_images
    assert plan.flip


@pytest.mark.parametrize(
    ("names", "flip", "why"),
    [
        (["head", "tail"], True, "no keypoint has a left and a right"),
        (["pawLH", "pawRF", "tail"], False, "no mirror pairs are known"),
        (["ear_left", "ear_right", "paw_left"], False, "paw_left tell a side and have no partner"),
    ],
)
@pytest.mark.filterwarnings("ignore:category")
def test_pictures_are_mirrored_only_where_pairs_are_known(tmp_path, names, flip, why):
    plan, *_ = plan_of(tmp_path, people(8, names=names))
    assert plan.flip is flip
    assert why in plan.why_flip


def test_crops_are_hardly_larger_than_boxes_that_fill_their_image(tmp_path):
    (tmp_path / "full").mkdir()
    assert plan_of(tmp_path / "full", people(4, box=(0, 0, 80, 60)))[0].padding == 1.05
    assert plan_of(tmp_path, people(4))[0].padding == 1.25


@pytest.mark.parametrize("budget", BUDGETS)
def test_what_is_written_is_three_recipes_that_can_be_read(tmp_path, budget):
    plan, facts, own = plan_of(tmp_path, people(8), budget)
    for val in (own, None):
        values = yaml.safe_load(recipe_text(plan, facts, own, val, "runs/mine", "mine.yaml"))
        recipes = {name: recipe_from_dict(pick_run(values, ["--run", name])[0]) for name in NAMES}
        assert recipes["teacher"].out == "runs/mine/teacher"
        assert recipes["student"].teacher.weights == "runs/mine/teacher/best.safetensors"
        assert recipes["student"].hold_out == (None if val else 0.15)
        assert recipes["alone"].student == recipes["student"].student
        assert recipes["alone"].teacher is None
        assert recipes["student"].train_data == own
        assert recipes["student"].val_data == val
        with torch.device("meta"):
            for name in ("teacher", "student"):
                settings = recipes[name].student
                assert create_model(settings.name, 17, **settings.overrides).spec.size == plan.size


def test_settings_of_the_data_survive(tmp_path):
    """Names with blanks and non-ASCII letters, pairs and sigmas are written so that YAML reads them."""
    folder = tmp_path / "mäuse 1: #a"
    folder.mkdir()
    pairs, sigmas = [["left_eye", "right_eye"]], [0.1] * 17
    plan, facts, own = plan_of(folder, people(8), flip_pairs=pairs, sigmas=sigmas)
    values = yaml.safe_load(recipe_text(plan, facts, own, None, "runs/1", "mine.yaml"))
    train = recipe_from_dict(pick_run(values, ["--run", "alone"])[0]).train_data
    assert (train.images, train.annotations, train.sigmas) == (own.images, own.annotations, sigmas)
    assert [list(pair) for pair in train.flip_pairs] == pairs


def test_memory_of_a_layer_by_hand():
    """A convolution that gives 8 x 4 x 6 numbers, each once forward and once backward, 4 bytes."""
    assert activation_bytes(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1)), (4, 6)) == 2 * 4 * 8 * 4 * 6


def test_too_few_people_are_refused(tmp_path):
    with pytest.raises(ValueError, match="1 labelled people are too few"):
        plan_of(tmp_path, people(1))


def test_percentages_are_of_the_image(tmp_path):
    plan, *_ = plan_of(tmp_path, people(4, box=(0, 0, 41, 61)))  # clipped to 40 x 59 of 80 x 60 pixels
    assert plan.reasons["padding"] == f"boxes take {np.float64(40 * 59 / 4800):.0%} of their images (median)"


def test_a_student_is_chosen_by_its_time_on_this_machine(tmp_path, monkeypatch):
    """The largest that is fast enough; times are made up, by the number of parameters."""
    plan, *_ = plan_of(tmp_path, people(8))

    def pretend(model, size, seconds):
        assert size == plan.size
        return Latency(1, sum(p.numel() for p in model.parameters()) / 1e7, 0.0, 0.0, 0)

    monkeypatch.setattr(planning, "measure_latency", pretend)
    chosen = fit_latency(plan, 17, 0.12)
    assert chosen.student == ("elpn_v1", {})  # 1.1 million parameters; elpn_v2 has 4.7
    assert "110.8 ms an image here" in chosen.reasons["student"]
    assert fit_latency(plan, 17, 0.01).student == BUDGETS["small"].student  # 61,995
    with pytest.raises(ValueError, match=r"the smallest student takes .*, more than 0.1 ms"):
        fit_latency(plan, 17, 1e-4)
