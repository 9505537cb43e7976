"""From a recipe to objects: what fits together, and settings that reach the place they are for."""

from __future__ import annotations

import warnings

import pytest
import torch
from helpers.tiny_recipe import TINY_BOTTOM_UP, tiny_recipe

from posekd.data import LoaderSettings
from posekd.engine import build, distributed
from posekd.engine.build import batch_share, build_method, make_validate, validation_settings
from posekd.engine.recipes.datasets import DATASETS, open_dataset
from posekd.engine.recipes.recipe import recipe_from_dict, recipe_to_dict
from posekd.engine.scoring import METRICS
from posekd.models import create_model, save_weights
from posekd.skeleton import COCO

PEOPLE = {"name": "synthetic", "images": 4, "size": [96, 96]}
CPU = torch.device("cpu")


def recipe(folder, **changes):
    return tiny_recipe(folder, train_data=PEOPLE, val_data=PEOPLE, **changes)


class TestValidation:
    @pytest.mark.parametrize(
        ("training", "asked", "used"), [(True, None, True), (True, False, False), (False, True, True)]
    )
    def test_channels_last_follows_the_training_unless_inference_says_otherwise(self, tmp_path, training, asked, used):
        plan = recipe(tmp_path, train__channels_last=training, inference={"channels_last": asked})
        assert validation_settings(plan).channels_last is used

    @pytest.mark.parametrize(("accumulate", "world", "share"), [(1, 1, 8), (2, 1, 4), (2, 2, 2)])
    def test_a_validation_batch_is_no_larger_than_a_training_one(self, tmp_path, monkeypatch, accumulate, world, share):
        plan = recipe(tmp_path, loader__batch_size=8, train__accumulate=accumulate)
        seen: list[LoaderSettings] = []

        def evaluate(model, source, settings, *, loader, tracking):
            seen.append(loader)
            raise KeyboardInterrupt

        monkeypatch.setattr(build, "evaluate", evaluate)
        monkeypatch.setattr(distributed, "world", lambda: world)
        with pytest.raises(KeyboardInterrupt):
            make_validate(plan, open_dataset(plan.val_data))(torch.nn.Identity())
        assert seen[0].batch_size == batch_share(plan) == share


class TestWhatFits:
    def test_a_bottom_up_student_needs_a_method_for_it(self, tmp_path):
        student = {"name": "higherhrnet_w32", "overrides": TINY_BOTTOM_UP}
        plan = recipe(tmp_path, student=student, inference={})
        with pytest.raises(
            ValueError, match="bottom-up network that gives tagged heatmaps, and the method trains a top-down"
        ) as e:
            build_method(plan, COCO, CPU)
        assert "choose method.name among associative_embedding, smallerhrnet" in str(e.value)

    def test_a_teacher_that_says_something_else_is_refused(self, tmp_path):
        teacher = create_model("higherhrnet_w32", **TINY_BOTTOM_UP)
        save_weights(teacher, tmp_path / "teacher.safetensors")
        given = {
            "name": "higherhrnet_w32",
            "overrides": TINY_BOTTOM_UP,
            "weights": str(tmp_path / "teacher.safetensors"),
        }
        plan = recipe(tmp_path, method={"name": "mapd"}, teacher=given)
        with pytest.raises(
            ValueError, match="the teacher higherhrnet_w32 is a bottom-up network that gives tagged heatmaps"
        ):
            build_method(plan, COCO, CPU)


OLD = {
    "eval": {"flip": True, "nms_threshold": 0.5},
    "schedule": {"factor": 0.3},
    "method": {"name": "fpd", "unlabelled": 0.7},
}


class TestOldNames:
    def test_recipe_keys_are_read_under_their_old_names_and_told(self, tmp_path):
        values = recipe_to_dict(recipe(tmp_path))
        for group in ("inference", "schedule", "method"):
            del values[group]
        with pytest.warns(UserWarning, match="is called") as told:
            plan = recipe_from_dict({**values, **OLD})
        assert (plan.inference.flip_test, plan.inference.oks_threshold) == (True, 0.5)
        assert (plan.schedule.gamma, plan.method.unlabelled_weight) == (0.3, 0.7)
        lines = {str(line.message) for line in told}
        assert (
            "the recipe key eval.nms_threshold is called inference.oks_threshold now; the old name still works" in lines
        )
        assert "the recipe key schedule.factor is called schedule.gamma now; the old name still works" in lines

    def test_new_names_are_told_nothing(self, tmp_path):
        values = recipe_to_dict(recipe(tmp_path))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = recipe_from_dict(values)
        assert recipe_to_dict(again) == values

    def test_both_names_at_once_are_refused(self, tmp_path):
        values = recipe_to_dict(recipe(tmp_path))
        with pytest.raises(ValueError, match="eval is called inference now, and both are given: keep inference"):
            recipe_from_dict({**values, "eval": {}})
        values["inference"] = {"flip": True, "flip_test": False}
        with pytest.raises(ValueError, match=r"inference\.flip is called inference\.flip_test now, and both are given"):
            recipe_from_dict(values)


def test_a_dataset_says_what_it_is_scored_by(tmp_path):
    assert open_dataset(recipe(tmp_path).val_data).records.metrics == DATASETS["synthetic"].metrics
    assert all(name in METRICS for dataset in DATASETS.values() for name in dataset.metrics)
