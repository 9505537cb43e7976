"""A held-out part of the training data, and stopping where it shows no gain: what a test set must not choose."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.coco_folder import labels, person, write
from helpers.tiny_job import losses, make_job
from helpers.tiny_recipe import tiny_recipe

from posekd.data.synthetic import SyntheticSettings
from posekd.engine.hold_out import with_held_out
from posekd.engine.progress import read_log
from posekd.engine.train import train
from posekd.engine.training import checkpoint
from posekd.engine.training.loop import fit, load_state_dict


@pytest.fixture
def recipe(tmp_path):
    own = write(tmp_path, labels([person(i, i) for i in range(1, 11)], range(1, 11)))
    people = {"name": "coco", "images": own.images, "annotations": own.annotations}
    return tiny_recipe(tmp_path / "run", train_data=people, hold_out=0.3, train__validate_every=1, train__epochs=1)


def test_the_parts_are_disjoint_and_the_seed_does_not_choose_them(recipe):
    cut, again = with_held_out(recipe), with_held_out(replace(recipe, seed=5))
    kept, held = cut.train_data.image_ids, cut.val_data.image_ids
    assert sorted(kept + held) == list(range(1, 11))
    assert len(held) == 3
    assert again.val_data == cut.val_data
    assert cut.hold_out is None
    assert with_held_out(cut) is cut


@pytest.mark.usefixtures("quick")
def test_a_run_validates_on_it_and_goes_on_with_it(recipe):
    scores = train(recipe)
    assert scores is not None
    card = json.loads((Path(recipe.out) / "best.json").read_text())
    assert card["recipe"]["val_data"]["image_ids"] == with_held_out(recipe).val_data.image_ids
    assert train(recipe, resume="auto") == scores  # the same parts: nothing is told to have changed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hold_out": 1.5}, "hold_out 1.5: it is a share between 0 and 1"),
        ({"hold_out": 0.2, "val_data": SyntheticSettings(images=2)}, "hold_out 0.2: there is val_data already"),
    ],
)
def test_mistakes(recipe, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(recipe, **changes)


def test_a_dataset_that_cannot_be_cut_is_refused(recipe):
    with pytest.raises(ValueError, match="which this dataset does not have"):
        with_held_out(replace(recipe, train_data=SyntheticSettings(images=4)))


@pytest.mark.usefixtures("quick")
class TestPatience:
    """Six steps an epoch; a validation each, whose scores are made up."""

    def job(self, folder, scores, patience=2, epochs=10):
        job = make_job(folder, epochs=epochs, validate_every=1, patience=patience)
        told = iter(scores)
        job.validate = lambda model: {"AP": next(told)}
        return job

    def test_a_run_stops_after_validations_without_gain(self, tmp_path):
        job = self.job(tmp_path, [0.1, 0.2, 0.2, 0.15, 0.9])
        fit(job)
        assert job.learner.step == 4 * job.steps_per_epoch
        assert (job.best, job.stale) == (0.2, 2)
        assert read_log(tmp_path / "log.jsonl")[-1]["kind"] == "stopped"
        assert json.loads((tmp_path / "best.safetensors").read_text())["epoch"] == 2
        assert (tmp_path / "last.safetensors").is_file()

    def test_a_gain_in_time_goes_on(self, tmp_path):
        job = self.job(tmp_path, [0.1, 0.05, 0.2, 0.1], epochs=4)
        fit(job)
        assert job.learner.step == job.total_steps

    def test_a_resumed_run_remembers(self, tmp_path):
        first = self.job(tmp_path, [0.5, 0.4], epochs=2)
        fit(first)
        state = checkpoint.load_latest(first.checkpoints)[1]
        later = self.job(tmp_path, [0.3, 0.9], epochs=10)
        load_state_dict(later, state)
        assert later.stale == 1
        fit(later)
        assert later.learner.step == 3 * later.steps_per_epoch
        assert len(losses(later)) == 3 * later.steps_per_epoch

    def test_it_counts_validations(self):
        with pytest.raises(ValueError, match=r"train.patience counts validations: 1 or more, or null; got 0"):
            make_job(None, patience=0)
