"""`train(recipe)` on real batches of a few synthetic people: resume through the files, and what is refused."""

import dataclasses
import os
import stat

import pytest
import torch
from helpers.tiny_recipe import TINY_NET
from helpers.tiny_training import losses, tiny

from posekd.engine import build
from posekd.engine.recipes.recipe import ModelSettings
from posekd.engine.train import resume_job, train
from posekd.engine.training import checkpoint, loop
from posekd.models import create_model, load_model, save_weights

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    torch.manual_seed(7)
    save_weights(create_model("hrnet_w32", **TINY_NET), path)
    return str(path)


@pytest.mark.parametrize("workers", [0, 1])
def test_resume_auto_continues_bit_for_bit(tmp_path, teacher, monkeypatch, workers):
    """Killed in the second epoch; two micro-batches a step; validation and checkpoints between."""
    changes = {"loader__workers": workers, "train__accumulate": 2, "train__checkpoint_steps": 1}
    train(tiny(tmp_path / "whole", teacher, **changes))

    class KilledError(Exception):
        pass

    whole = losses(tmp_path / "whole")
    steps = 0
    original = loop.train_step

    def die(learner, batches):
        nonlocal steps
        if steps == len(whole) - 1:
            raise KilledError
        steps += 1
        return original(learner, batches)

    monkeypatch.setattr(loop, "train_step", die)
    with pytest.raises(KilledError):
        train(tiny(tmp_path / "parts", teacher, **changes))
    monkeypatch.setattr(loop, "train_step", original)
    train(tiny(tmp_path / "parts", teacher, **changes), resume="auto")
    assert losses(tmp_path / "parts") == whole
    for name in ("last", "best"):
        one, other = (load_model(tmp_path / run / f"{name}.safetensors") for run in ("whole", "parts"))
        for key, tensor in one.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[key]), key


def test_a_run_leaves_a_recipe_that_repeats_it_and_cards_that_rebuild_the_student(tmp_path, teacher):
    from posekd.engine.recipes.recipe import read_recipe
    from posekd.models.weights import read_card

    recipe = tiny(tmp_path, teacher, train__epochs=1)
    scores = train(recipe)
    assert read_recipe(str(tmp_path / "recipe.yaml")) == recipe
    card = read_card(tmp_path / "last.safetensors")
    assert card["metrics"] == scores
    assert card["recipe"]["method"]["name"] == "mapd"
    assert card["skeleton"]["name"] == "coco"
    assert load_model(tmp_path / "last.safetensors").spec.size == (64, 64)


def test_methods_start_from_the_same_student_and_see_the_same_batches(tmp_path, teacher):
    one = build.build_job(tiny(tmp_path, teacher))
    other = build.build_job(tiny(tmp_path, teacher, method={"name": "supervised"}))
    assert other.learner.method.teacher is None, "the supervised method never asks a teacher"
    for key, tensor in one.learner.method.state_dict().items():
        assert torch.equal(tensor, other.learner.method.state_dict()[key])
    first = [next(job.loader.epoch(0)) for job in (one, other)]
    assert torch.equal(first[0].sample_ids, first[1].sample_ids)
    assert torch.equal(first[0].rotations, first[1].rotations)


def test_a_finished_run_resumes_to_nothing_more(tmp_path, teacher):
    scores = train(tiny(tmp_path, teacher, train__epochs=1))
    before = losses(tmp_path)
    assert train(tiny(tmp_path, teacher, train__epochs=1), resume="auto") == scores
    assert losses(tmp_path) == before


def test_a_second_run_in_a_used_folder_is_refused(tmp_path, teacher):
    train(tiny(tmp_path, teacher, train__epochs=1))
    with pytest.raises(FileExistsError, match="already holds a run: go on with --resume auto"):
        train(tiny(tmp_path, teacher, train__epochs=1))


def test_a_changed_recipe_is_said_and_a_shorter_one_refused(tmp_path, teacher):
    train(tiny(tmp_path, teacher))
    with (
        pytest.warns(UserWarning, match=r"changed recipe: train.epochs 2 -> 1"),
        pytest.raises(ValueError, match="this recipe ends at step"),
    ):
        train(tiny(tmp_path, teacher, train__epochs=1), resume="auto")


def test_a_missing_checkpoint_is_named(tmp_path, teacher):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*nowhere"):
        train(tiny(tmp_path, teacher), resume=str(tmp_path / "nowhere.safetensors"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": {"name": "hrnet_w32"}}, "hrnet_w32 has no weights: an untrained teacher"),
        ({"teacher": None}, "mapd distils from a teacher"),
        ({"train__device": "cuda:99"}, "torch sees no GPU"),
        ({"train__device": "gpu"}, "'gpu' is not a device"),
        ({"student": {"name": "elpn_v9"}}, "unknown model 'elpn_v9'"),
        ({"loader__batch_size": 4096}, "lower batch_size"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(tmp_path, teacher, monkeypatch, changes, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        build.build_job(tiny(tmp_path / "run", teacher, **changes))
    assert not (tmp_path / "run").exists()


def test_a_backbone_start_and_full_weights_reach_the_student(tmp_path, teacher):
    settings = ModelSettings("hrnet_w32", overrides=TINY_NET)
    full = build.build_model(dataclasses.replace(settings, weights=teacher), 17)
    part = build.build_model(dataclasses.replace(settings, backbone=teacher), 17)
    assert torch.equal(full.conv1.weight, part.conv1.weight)
    assert not torch.equal(full.final_layer.weight, part.final_layer.weight), "the head starts afresh"


@pytest.mark.parametrize(
    ("which", "expected"),
    [("none", set()), ("student", {"student"}), ("teacher", {"teacher"}), ("both", {"student", "teacher"})],
)
def test_the_compile_flag_chooses_the_networks(tmp_path, teacher, monkeypatch, which, expected):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    method = build.build_job(tiny(tmp_path, teacher, train__compile=which)).learner.method
    networks = {"student": method.student, "teacher": method.teacher.model}
    assert compiled == [network for name, network in networks.items() if name in expected]


def test_regions_are_the_blocks_that_a_network_repeats(tmp_path, teacher, monkeypatch):
    blocks = build.repeated_blocks(create_model("hrnet_w8"))
    assert {type(block).__name__ for block in blocks} == {"Bottleneck", "ExchangeUnit"}
    assert len(blocks) == 12
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    monkeypatch.setattr(build, "repeated_blocks", lambda network: [network.conv1, network.conv2])
    method = build.build_job(
        tiny(tmp_path, teacher, train__compile="teacher", train__compile_regions=True)
    ).learner.method
    assert compiled == [method.teacher.model.conv1, method.teacher.model.conv2]


class TestResumingUnderAnotherRecipe:
    def test_another_optimiser_or_width_is_refused_in_a_sentence(self, tmp_path, teacher):
        train(tiny(tmp_path, teacher))
        wider = {"name": "elpn_v1", "overrides": {**TINY_NET, "width": 16}}
        for change, text in (
            ({"optim": {"name": "sgd"}}, "optim.name 'adam' -> 'sgd'"),
            ({"student": wider}, "student.overrides.width 8 -> 16"),
        ):
            with pytest.raises(ValueError, match="the run cannot go on under this recipe") as caught:
                train(tiny(tmp_path, teacher, **change), resume="auto")
            assert text in str(caught.value)
            assert len(str(caught.value)) < 500

    def test_another_precision_begins_with_a_fresh_scale(self, tmp_path, teacher):
        train(tiny(tmp_path, teacher))
        with pytest.warns(UserWarning, match="train.precision 'fp32' -> 'fp16'"):
            train(tiny(tmp_path, teacher, train__precision="fp16", train__epochs=3), resume="auto")

    def test_another_weight_decay_and_input_size_are_what_the_run_goes_on_with(self, tmp_path, teacher):
        train(tiny(tmp_path, teacher, train__epochs=1))
        student = {"name": "elpn_v1", "overrides": {**TINY_NET, "size": [128, 128]}}
        with pytest.warns(UserWarning, match="changed recipe") as said:
            train(tiny(tmp_path, teacher, student=student, optim={"weight_decay": 0.5}), resume="auto")
        assert [str(warning.message).split("recipe: ")[1] for warning in said] == [
            "optim.weight_decay 0.0 -> 0.5",
            "student.overrides.size [64, 64] -> [128, 128]",
            "train.epochs 1 -> 2",
        ]
        (saved,) = checkpoint.load_latest(tmp_path / "checkpoints")[1]["optimizer"]["param_groups"]
        assert saved["weight_decay"] == 0.5
        assert load_model(tmp_path / "last.safetensors").spec.size == (128, 128)

    def test_adamw_goes_on_with_the_averages_of_adam(self, tmp_path, teacher):
        train(tiny(tmp_path, teacher, train__epochs=1))
        kept = checkpoint.load_latest(tmp_path / "checkpoints")[1]["optimizer"]["state"]
        recipe = tiny(tmp_path, teacher, optim={"name": "adamw", "weight_decay": 0.5})
        state = checkpoint.load_latest(tmp_path / "checkpoints")[1]
        job = build.build_job(recipe)
        resume_job(job, state)
        optimizer = job.learner.optimizer
        assert type(optimizer) is torch.optim.AdamW
        marked = [group.get("decoupled_weight_decay", True) for group in optimizer.param_groups]  # 2.6: no mark
        assert all(marked)
        own = optimizer.state_dict()["state"]
        assert all(torch.equal(own[i]["exp_avg"], kept[i]["exp_avg"]) for i in kept)
        assert {float(slots["step"]) for slots in own.values()} == {float(state["step"])}
        with pytest.warns(
            UserWarning, match=r"optim.name 'adam' -> 'adamw' \(Adam's averages of the gradient are kept"
        ):
            train(recipe, resume="auto")

    def test_another_batch_size_is_told_in_epochs(self, tmp_path, teacher):
        """12 pictures of one person each: 3 steps of 4, or 2 of 6."""
        data = {"train_data": {"name": "synthetic", "images": 12, "people": [1, 1]}}
        train(tiny(tmp_path, teacher, **data, loader__batch_size=4))
        larger = {**data, "loader__batch_size": 6}
        ends = "at step 6, and this recipe ends at step 4: an epoch has 2 steps, and had 3; raise train.epochs"
        with pytest.warns(UserWarning, match="batch_size 4 -> 6"), pytest.raises(ValueError, match=ends):
            train(tiny(tmp_path, teacher, **larger), resume="auto")
        with pytest.warns(UserWarning, match="resuming") as told:
            train(tiny(tmp_path, teacher, **larger, train__epochs=4), resume="auto")
        said = "an epoch has 2 steps, and had 3, so step 6, after 2 epochs, is now after 3 of 4"
        assert any(said in str(warning.message) for warning in told)
        assert checkpoint.load_latest(tmp_path / "checkpoints")[1]["step"] == 8

    def test_a_folder_in_place_of_a_checkpoint_leads_to_one(self, tmp_path, teacher):
        train(tiny(tmp_path / "a", teacher, train__epochs=1))
        (newest,) = checkpoint.list_checkpoints(tmp_path / "a" / "checkpoints")[-1:]
        for folder in (tmp_path / "a", tmp_path / "a" / "checkpoints"):
            with pytest.raises(ValueError, match=f"{folder} is a folder, this run's: .* with --resume auto$"):
                train(tiny(tmp_path / "a", teacher), resume=str(folder))
            with pytest.raises(ValueError, match=f"another than this run's, .*: .* with --resume {newest}$"):
                train(tiny(tmp_path / "b", teacher), resume=str(folder))
        with pytest.raises(ValueError, match="is a folder, and it holds no checkpoint"):
            train(tiny(tmp_path / "b", teacher), resume=str(tmp_path))

    def test_checkpoints_none_of_which_can_be_read_are_no_new_run(self, tmp_path, teacher):
        train(tiny(tmp_path, teacher, train__epochs=1))
        for file in checkpoint.list_checkpoints(tmp_path / "checkpoints"):
            file.write_bytes(b"damaged")
        with (
            pytest.warns(UserWarning, match="damaged"),
            pytest.raises(ValueError, match="checkpoints holds no checkpoint that can be read: give another"),
        ):
            train(tiny(tmp_path, teacher, train__epochs=1), resume="auto")


def test_a_folder_that_cannot_be_written_is_refused_before_the_data_are_opened(tmp_path, teacher, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(build, "open_dataset", lambda *_: pytest.fail("data were opened"))
    with pytest.raises(NotADirectoryError, match=r"file/run/recipe\.yaml cannot be written: .*/file is not a folder"):
        train(tiny(tmp_path / "file" / "run", teacher))


def test_the_best_network_is_as_readable_as_any_new_file(tmp_path, teacher):
    before = os.umask(0o022)
    try:
        train(tiny(tmp_path, teacher, train__epochs=1))
    finally:
        os.umask(before)
    for name in ("best.safetensors", "best.json", "last.safetensors", "recipe.yaml"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o644, name
