"""What may change when a run goes on."""

from __future__ import annotations

import pytest
from helpers.tiny_recipe import TINY_NET, tiny_recipe

from posekd.engine.recipes.changes import compare
from posekd.engine.recipes.recipe import recipe_to_dict


def values(tmp_path, **changes):
    return recipe_to_dict(tiny_recipe(tmp_path, train_data={"name": "synthetic"}, train__validate_every=0, **changes))


def test_an_equal_recipe_has_no_changes_wherever_it_is_written(tmp_path):
    changes = compare(values(tmp_path / "a"), values(tmp_path / "b"))
    assert (changes.taken, changes.refused) == ((), ())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"optim": {"lr": 0.5}}, "optim.lr 0.001 -> 0.5"),
        ({"train__precision": "fp16"}, "train.precision 'fp32' -> 'fp16'"),
        ({"train__epochs": 9}, "train.epochs 2 -> 9"),
        (
            {"optim": {"name": "adamw"}},
            "optim.name 'adam' -> 'adamw' (Adam's averages of the gradient are kept; from now on the weight decay acts "
            "the new optimiser's way)",
        ),
        (
            {"loader": {"batch_size": 4, "workers": 0}},
            "loader.batch_size 2 -> 4 (steps count on, and from now on each sees as many rows as this)",
        ),
        ({"train_data__images": 9}, "train_data.images 1000 -> 9 (from now on batches come from these data)"),
        (
            {"student": {"name": "elpn_v1", "overrides": {**TINY_NET, "size": [64, 96]}}},
            "student.overrides.size [64, 64] -> [64, 96]",
        ),
    ],
)
def test_what_a_run_can_go_on_with(tmp_path, change, text):
    changes = compare(values(tmp_path), values(tmp_path, **change))
    assert (changes.taken, changes.refused) == ((text,), ())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"optim": {"name": "sgd"}}, "optim.name 'adam' -> 'sgd' (the optimiser's state is of the other kind)"),
        ({"optim": {"name": "rmsprop"}}, "optim.name 'adam' -> 'rmsprop' (the optimiser's state is of the other kind)"),
        (
            {"student": {"name": "elpn_v2"}},
            "student.name 'elpn_v1' -> 'elpn_v2' (the weights are of the other network)",
        ),
        ({"train__ema_decay": 0.9}, "train.ema_decay None -> 0.9 (one keeps an average and the other does not)"),
    ],
)
def test_what_it_cannot(tmp_path, change, text):
    assert text in compare(values(tmp_path), values(tmp_path, **change)).refused


def test_initial_weights_have_no_effect_any_more(tmp_path):
    student = {"name": "elpn_v1", "weights": "w.pth"}
    (text,) = compare(values(tmp_path, student={"name": "elpn_v1"}), values(tmp_path, student=student)).taken
    assert text == "student.weights None -> 'w.pth' (no effect: the checkpoint's weights are used)"


def test_former_names_and_keys_that_came_later_are_no_changes(tmp_path):
    old = values(tmp_path)
    old["eval"] = old.pop("inference")
    old["eval"]["flip"] = old["eval"].pop("flip_test")
    del old["train"]["fold_teacher"], old["train_data"]["difficulty"]
    changes = compare(old, values(tmp_path))
    assert (changes.taken, changes.refused) == ((), ())
