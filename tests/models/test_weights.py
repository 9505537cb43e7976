"""Weights: what is written comes back, what others wrote is read, what is wrong is named."""

from __future__ import annotations

import json
import os
import random
import zipfile

import numpy as np
import pytest
import torch
from helpers.tiny_models import tiny_model

from posekd.models import create_model, init_backbone, load_model, load_weights, save_weights
from posekd.models import weights as module
from posekd.models.hrnet import HRNetConfig, HRNetTrunk
from posekd.models.weights import read_state_dict


def test_saved_weights_come_back_with_their_card(tmp_path):
    model = tiny_model("elpn_v1").to(memory_format=torch.channels_last)
    path = tmp_path / "runs" / "best.safetensors"
    save_weights(model, path, {"metrics": {"AP": 0.71}, "skeleton": "coco"})
    assert sorted(p.name for p in path.parent.iterdir()) == ["best.json", "best.safetensors"]
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["metrics"] == {"AP": 0.71}
    assert card["model"]["name"] == "elpn_v1"

    again = load_model(path).to(memory_format=torch.channels_last)
    x = torch.randn(1, 3, 64, 64)
    assert again.config == model.config
    assert not again.training
    model.eval()
    assert torch.equal(again(x), model(x))
    assert load_weights(tiny_model("elpn_v1"), path)["skeleton"] == "coco"


def test_create_model_loads_weights(tmp_path):
    model = tiny_model("simplebaseline_r50")
    save_weights(model, tmp_path / "w.safetensors")
    again = create_model("simplebaseline_r50", 5, tmp_path / "w.safetensors", width=8, blocks=(1,) * 4, deconv_width=8)
    assert_same(again, model)


def assert_same(a: torch.nn.Module, b: torch.nn.Module) -> None:
    for key, tensor in b.state_dict().items():
        assert torch.equal(a.state_dict()[key], tensor), key


def hrnet_trainer_checkpoint(state):
    """What HRNet's trainer writes, NumPy score included."""
    prefixed = {f"module.{k}": v for k, v in state.items()}
    perf = np.float64(0.744)
    return {
        "epoch": 210,
        "model": "pose_hrnet",
        "state_dict": prefixed,
        "best_state_dict": state,
        "perf": perf,
    }


@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {f"1.{k}": v for k, v in s.items()},
        lambda s: {f"module.1.{k}": v for k, v in s.items()},
        hrnet_trainer_checkpoint,
        lambda s: {"best_state_dict": s},
        lambda s: {"model": s, "step": 3},
        lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},  # PyTorch < 0.4.1
    ],
    ids=["bare", "module.", "1.", "module.1.", "hrnet-trainer", "best", "model", "no-counters"],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_official_layouts(tmp_path, wrap, zipped):
    source, path = tiny_model("hrnet_w32"), tmp_path / "official.pth"
    torch.save(wrap(source.state_dict()), path, _use_new_zipfile_serialization=zipped)
    model = tiny_model("hrnet_w32", num_keypoints=5)
    torch.nn.init.zeros_(model.conv1.weight)
    assert load_weights(model, path) == {}
    assert_same(model, source)


def test_scores_written_under_numpy_1(tmp_path):
    """The files that exist name NumPy's old module; NumPy 2 writes another name."""
    source = tiny_model("hrnet_w32")
    torch.save(hrnet_trainer_checkpoint(source.state_dict()), tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for entry in new.namelist():
            old.writestr(entry, new.read(entry).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    model = tiny_model("hrnet_w32")
    load_weights(model, tmp_path / "old.pth")
    assert_same(model, source)


def test_half_precision_is_cast(tmp_path):
    """HigherHRNet's FP16 training leaves half convolutions beside float norms, under the prefix `1.`"""
    source = tiny_model("hrnet_w32")
    torch.save({f"1.{k}": v.half() if v.ndim == 4 else v for k, v in source.state_dict().items()}, tmp_path / "h.pth")
    model = tiny_model("hrnet_w32")
    load_weights(model, tmp_path / "h.pth")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.conv1.weight, source.conv1.weight.half().float())


class Attack:
    """Unpickled without care, this makes a directory."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    victim = tmp_path / "owned"
    torch.save({"state_dict": tiny_model("hrnet_w32").state_dict(), "extra": Attack(victim)}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil\.pth was refused.*could run code \((posix|nt)\.mkdir\)"):
        load_weights(tiny_model("hrnet_w32"), tmp_path / "evil.pth")
    assert not victim.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_missing_and_truncated_files(tmp_path, suffix):
    model, path = tiny_model("hrnet_w32"), tmp_path / f"w{suffix}"
    with pytest.raises(FileNotFoundError, match="no weights at"):
        load_weights(model, path)
    if suffix == ".pth":
        torch.save(model.state_dict(), path)
    else:
        save_weights(model, path)
    whole = path.read_bytes()
    for size in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"damaged or (not a safetensors file|was not written by torch\.save)"):
            load_weights(model, path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_damaged_pickle_is_a_value_error(tmp_path, zipped):
    """Flipped bytes make unpickling fail with whatever it meets; a person gets one kind of answer."""
    path, generator = tmp_path / "flipped.pth", random.Random(0)
    torch.save({"a.weight": torch.ones(3, 4)}, path, _use_new_zipfile_serialization=zipped)
    whole, refused = path.read_bytes(), 0
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[generator.randrange(len(whole))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            read_state_dict(path)
        except ValueError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no weights, but of type list"),
        ({}, "holds no weights, but a dictionary with nothing"),
        ({"epoch": 3}, "holds no state dict: entry 'epoch' is of type int"),
    ],
)
def test_a_file_without_weights(tmp_path, content, message):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=message):
        load_weights(tiny_model("hrnet_w32"), tmp_path / "odd.pth")


def zeros(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A state dict of the model's shapes that takes no memory."""
    return {k: torch.zeros(()).expand(v.shape) for k, v in model.state_dict().items()}


def saved(state, path):
    torch.save(state, path)
    return path


def test_another_architecture_is_named(tmp_path):
    with torch.device("meta"):
        w32, w48 = create_model("hrnet_w32"), create_model("hrnet_w48")
        r50, w32_mpii = create_model("simplebaseline_r50"), create_model("hrnet_w32", 16)
    path = saved(zeros(w48), tmp_path / "w48.pth")
    with pytest.raises(
        ValueError, match=r"does not fit hrnet_w32: 1\d+ other shape: \S+ \(file \(.*looks like 'hrnet_w48'"
    ):
        load_weights(w32, path)
    with pytest.raises(ValueError, match=r"2 other shape: final_layer\.weight .*'hrnet_w32' with 16 keypoints"):
        load_weights(w32, saved(zeros(w32_mpii), tmp_path / "mpii.pth"))
    with pytest.raises(
        ValueError, match=r"\d+ missing: .* more; \d+ unexpected: .* more.*'simplebaseline_r50' with 17"
    ):
        load_weights(w32, saved(zeros(r50), tmp_path / "r50.pth"))
    classifier = {**zeros(w32), "classifier.weight": torch.zeros(1000, 2048)}
    with pytest.raises(ValueError, match=r"1 unexpected: classifier\.weight\. It looks like an ImageNet classifier"):
        load_weights(w32, saved(classifier, tmp_path / "imagenet.pth"))


def test_a_refused_file_changes_nothing(tmp_path):
    model = tiny_model("hrnet_w32")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = {**zeros(model), "stray.weight": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"1 unexpected: stray\.weight"):
        load_weights(model, saved(state, tmp_path / "stray.pth"))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_card_says_how_settings_differ(tmp_path):
    path = tmp_path / "small.safetensors"
    save_weights(tiny_model("elpn_v1"), path)
    with pytest.raises(ValueError, match=r"Its card says 'elpn_v1' with 5 keypoints and width=8 \(here 12\)"):
        load_weights(tiny_model("elpn_v1", width=12), path)


def test_saving_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "best.safetensors"
    save_weights(tiny_model("elpn_v1"), path, {"epoch": 1})
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def disk_full(tensors, filename, metadata=None):
        filename.write_bytes(b"half a file")
        raise OSError("No space left on device")

    with pytest.raises(TypeError):
        save_weights(tiny_model("elpn_v1"), path, {"epoch": object()})
    monkeypatch.setattr(module, "save_file", disk_full)
    with pytest.raises(OSError, match="No space"):
        save_weights(tiny_model("elpn_v1"), path, {"epoch": 2})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_what_save_and_load_model_refuse(tmp_path):
    with pytest.raises(ValueError, match=r"written as \.safetensors, got 'w\.pth'"):
        save_weights(tiny_model("elpn_v1"), tmp_path / "w.pth")
    with pytest.raises(ValueError, match='"model" is written by save_weights'):
        save_weights(tiny_model("elpn_v1"), tmp_path / "w.safetensors", {"model": "mine"})
    save_weights(tiny_model("elpn_v1"), tmp_path / "w.safetensors")
    (tmp_path / "w.json").write_text("{broken")
    with pytest.raises(ValueError, match=r"w\.json is not valid JSON"):
        load_model(tmp_path / "w.safetensors")
    (tmp_path / "w.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no card \(\.json\) beside it"):
        load_model(tmp_path / "w.safetensors")


def imagenet_checkpoint(model, tmp_path, **settings):
    """An ImageNet HRNet: a trunk with every scale, and a classification head."""
    fields = ("width", "modules", "blocks", "stem_width", "stage1_width", "stage1_blocks")
    settings = {**{k: getattr(model.config, k) for k in fields}, **settings}
    trunk = HRNetTrunk(HRNetConfig(**settings, final_multiscale=True))
    head = {"final_layer.0.weight": torch.ones(2, 2), "classifier.weight": torch.ones(10, 2)}
    head |= {"incre_modules.0.0.conv1.weight": torch.ones(1), "downsamp_modules.0.0.weight": torch.ones(1)}
    return trunk, saved({**trunk.state_dict(), **head}, tmp_path / "imagenet.pth")


def test_an_imagenet_checkpoint_starts_the_backbone(tmp_path):
    model = tiny_model("hrnet_w32")
    head = model.final_layer.weight.clone()
    trunk, path = imagenet_checkpoint(model, tmp_path)
    report = init_backbone(model, path)
    assert report.loaded == len(model.state_dict()) - 2
    assert report.fresh == ("final_layer.weight", "final_layer.bias")
    assert "classifier.weight" in report.unused
    assert any(key.startswith("stage4.0.fuse_layers.1.") for key in report.unused)
    assert str(report) == f"{report.loaded} tensors loaded, 2 left as they were, {len(report.unused)} unused"
    assert torch.equal(model.final_layer.weight, head)
    assert torch.equal(model.stage4[0].fuse_layers[0][3][0].weight, trunk.stage4[0].fuse_layers[0][3][0].weight)


def test_a_backbone_of_another_kind_is_refused(tmp_path):
    model = tiny_model("hrnet_w32")
    _, path = imagenet_checkpoint(model, tmp_path, width=12)
    with pytest.raises(
        ValueError, match=r"cannot start the backbone of hrnet_w32: it has \d+ tensors of another shape"
    ):
        init_backbone(model, path)
    head_only = saved({"final_layer.weight": model.final_layer.weight.data}, tmp_path / "head.pth")
    with pytest.raises(ValueError, match=r"none of the model's: final_layer\.weight"):
        init_backbone(model, head_only)


def test_a_torchvision_style_resnet_starts_simplebaseline(tmp_path):
    source, model = tiny_model("simplebaseline_r50"), tiny_model("simplebaseline_r50")
    torch.nn.init.zeros_(model.conv1.weight)
    backbone = {k: v for k, v in source.state_dict().items() if not k.startswith(source.head_prefixes)}
    classifier = {"fc.weight": torch.ones(10, 4), "fc.bias": torch.ones(10)}
    report = init_backbone(model, saved({**backbone, **classifier}, tmp_path / "resnet.pth"))
    assert report.unused == ("fc.weight", "fc.bias")
    assert all(key.startswith(("deconv_layers.", "final_layer.")) for key in report.fresh)
    assert torch.equal(model.conv1.weight, source.conv1.weight)
