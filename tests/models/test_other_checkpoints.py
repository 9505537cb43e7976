"""Checkpoints as other trainers write them: wrappers, prefixes, MMPose's names."""

from __future__ import annotations

import pytest
import torch

from posekd.cli import main
from posekd.engine.build import build_model
from posekd.engine.recipes.recipe import ModelSettings
from posekd.models import create_model, init_backbone, load_weights, save_weights

SMALL = {
    "size": (64, 64),
    "width": 8,
    "modules": (1, 1),
    "blocks": 1,
    "stem_width": 8,
    "stage1_width": 4,
    "stage1_blocks": 1,
}


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(3)
    return create_model("elpn_v1", 17, **SMALL)


def saved(content, folder):
    torch.save(content, folder / "c.pth")
    return folder / "c.pth"


def same(model, other) -> bool:
    state = other.state_dict()
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("key", ["model_state_dict", "network", "net", "student", "params", "state_dict_ema", "ema"])
def test_the_usual_wrappers_are_opened(trained, tmp_path, key):
    model = create_model("elpn_v1", 17, **SMALL)
    load_weights(model, saved({"epoch": 3, key: trained.state_dict(), "optimizer_state_dict": {}}, tmp_path))
    assert same(model, trained)


@pytest.mark.parametrize("prefix", ["net.", "module.network.", "student."])
def test_prefixes_are_stripped(trained, tmp_path, prefix):
    model = create_model("elpn_v1", 17, **SMALL)
    load_weights(model, saved({"state_dict": {prefix + k: v for k, v in trained.state_dict().items()}}, tmp_path))
    assert same(model, trained)


class TestKey:
    def test_an_unusual_entry_is_named(self, trained, tmp_path):
        file = saved({"run": {"final": trained.state_dict()}, "epoch": 2}, tmp_path)
        assert same(create_model("elpn_v1", 17, file, weights_key="run.final", **SMALL), trained)
        settings = ModelSettings("elpn_v1", str(file), "run.final", overrides=SMALL)
        assert same(build_model(settings, 17), trained)

    def test_of_a_backbones_file_too(self, trained, tmp_path):
        file = saved({"run": {"final": trained.state_dict()}, "epoch": 2}, tmp_path)
        settings = ModelSettings("elpn_v1", backbone=str(file), backbone_key="run.final", overrides=SMALL)
        network, fresh = build_model(settings, 17), create_model("elpn_v1", 17, **SMALL)
        body = [key for key in trained.state_dict() if not key.startswith(trained.head_prefixes)]
        assert body
        assert all(torch.equal(network.state_dict()[key], trained.state_dict()[key]) for key in body)
        assert not same(fresh, trained)
        with pytest.raises(
            ValueError, match=r"has no entry 'no' \(weights_key 'no'\): there is a dictionary with 'run'"
        ):
            init_backbone(fresh, file, "no")

    def test_a_key_without_a_file_is_refused(self):
        for key in ("weights", "backbone"):
            with pytest.raises(ValueError, match=f"{key}_key names an entry of the file `{key}`: give both"):
                ModelSettings("elpn_v1", **{f"{key}_key": "run"})

    def test_the_message_leads_to_it(self, trained, tmp_path):
        file = saved({"run": trained.state_dict(), "epoch": 2}, tmp_path)
        with pytest.raises(ValueError, match=r"name the entry that holds the weights \(weights_key\), e\.g\. 'run'"):
            create_model("elpn_v1", 17, file, **SMALL)
        with pytest.raises(
            ValueError, match=r"has no entry 'end' \(weights_key 'end'\): there is a dictionary with 'run'"
        ):
            create_model("elpn_v1", 17, file, weights_key="end", **SMALL)


@pytest.mark.parametrize("head", ["keypoint_head.", "head."])
@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("hrnet_w32", ("final_layer",)),
        ("simplebaseline_r50", ("deconv_layers", "final_layer")),
        ("higherhrnet_w32", ("final_layers", "deconv_layers")),
    ],
)
def test_mmpose_names_are_the_official_ones_behind_a_prefix(tmp_path, name, heads, head):
    torch.manual_seed(0)
    theirs = create_model(name, size=(64, 64))
    state = {(head if key.startswith(heads) else "backbone.") + key: v for key, v in theirs.state_dict().items()}
    model = create_model(name, weights=saved({"meta": {"epoch": 210}, "state_dict": state}, tmp_path), size=(64, 64))
    assert same(model, theirs)


def test_mmposes_hourglass_is_another_network(tmp_path):
    state = {
        "backbone.stem.0.conv.weight": torch.zeros(1),
        "backbone.hourglass_modules.0.up1.0.conv1.weight": torch.zeros(1),
    }
    with pytest.raises(ValueError, match="MMPose's Hourglass, which is another network"):
        create_model("hourglass_8x256", weights=saved({"state_dict": state}, tmp_path))


def test_models_are_float32_whatever_the_default_is():
    torch.set_default_dtype(torch.float64)
    try:
        model = create_model("elpn_v1", 17, **SMALL)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


class TestEval:
    WORDS = ("--images", ".", "--annotations", "labels.json")

    def test_a_pth_is_told_whose_it_seems_to_be(self, tmp_path, capsys):
        file = saved(create_model("elpn_v1", 5).state_dict(), tmp_path)
        assert main(["eval", str(file), *self.WORDS]) == 2
        said = capsys.readouterr().err
        assert "does not say which model it is of. It looks like 'elpn_v1' with 5 keypoints" in said
        assert f"NAME --weights {file}" in said

    def test_a_folder_without_a_run_and_a_file_that_is_not_there(self, tmp_path, capsys):
        assert main(["eval", str(tmp_path), *self.WORDS]) == 2
        assert "holds no best.safetensors and no last.safetensors" in capsys.readouterr().err
        assert main(["eval", str(tmp_path / "typo.safetensor"), *self.WORDS]) == 2
        assert "no checkpoint at" in capsys.readouterr().err

    def test_the_last_network_where_there_is_no_best(self, trained, tmp_path, capsys):
        save_weights(trained, tmp_path / "last.safetensors")
        assert main(["eval", str(tmp_path), "--images", str(tmp_path), "--annotations", str(tmp_path / "no.json")]) == 2
        assert "no.json" in capsys.readouterr().err
