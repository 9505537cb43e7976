"""The stacked Hourglass in its two shapes, PyraNet, and the three kinds of checkpoint that exist of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from helpers import reference_models as reference
from helpers.tiny_models import tiny_model

from posekd.models import create_model, load_weights
from posekd.models.pyranet import fractional_max_pool
from posekd.structures import InputSpec

MANIFESTS = Path(__file__).parent / "manifests"
DEFINITION = {"hourglass": reference.hourglass, "pyranet": reference.pyranet}
# sha256 of the key-and-shape manifests (JSON with sorted keys) of the official 8-stack networks
FPD_8X256 = "b405c3a35e9f9b5d648ff9fc31553d2be0effd433e3cc7feafd25c963d0b4899"
ROOMS = ("hgs", "features", "outs", "merge_features", "merge_preds")
PRINCETON_8X256 = "0e198fe3acf126690509c72cf17b582d218ad795d10d1a70ef9c591eba1366ba"


def images(batch: int = 2, size: tuple[int, int] = (64, 128)) -> torch.Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def shapes(state) -> dict[str, list[int]]:
    return {key: list(tensor.shape) for key, tensor in state.items()}


def digest(manifest: dict[str, list[int]]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("hourglass", {}),
        ("hourglass", {"stages": 1}),
        ("hourglass", {"stages": 3, "width": 64, "stem": "fpd"}),
        ("pyranet", {}),
        ("pyranet", {"stages": 1, "width": 24, "base_width": 5, "cardinality": 3}),
    ],
)
def test_every_stage_equals_the_definition(name, overrides):
    model = tiny_model(name, **overrides).double()
    x = images().double()
    heatmaps, expected = model(x), DEFINITION[name](model.state_dict(), x)
    assert len(heatmaps) == model.config.stages
    for found, wanted in zip(heatmaps, expected, strict=True):
        assert found.shape == (2, 5, 16, 32)
        assert found.std(dim=(2, 3)).min() > 0.01  # every map has something on it
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_the_released_fpd_networks_have_the_official_names():
    with torch.device("meta"):
        student, teacher = create_model("hourglass_fpd_4x128", 16), create_model("hourglass_fpd_8x256", 16)
    manifest = json.loads((MANIFESTS / "hourglass_fpd_4x128.json").read_text())
    assert len(manifest) == 1298
    assert shapes(student.state_dict()) == manifest
    assert digest(shapes(teacher.state_dict())) == FPD_8X256


def test_princeton_checkpoints_are_read(tmp_path):
    """Under the prefixes that its trainer leaves; shortcuts that it never runs are dropped."""
    manifest = json.loads((MANIFESTS / "hourglass_princeton_2x256.json").read_text())
    generator = torch.Generator().manual_seed(0)
    state = {key: torch.rand(shape, generator=generator) for key, shape in manifest.items()}
    path = tmp_path / "princeton.pt"
    torch.save({"state_dict": {f"model.module.{k}": v for k, v in state.items()}, "optimizer": {}, "epoch": 3}, path)
    model = create_model("hourglass_princeton_2x256", 16)
    load_weights(model, path)
    own = model.state_dict()
    same = {
        "conv1.weight": "pre.0.conv.weight",
        "bn1.running_var": "pre.0.bn.running_var",
        "layer1.0.downsample.0.bias": "pre.1.skip_layer.conv.bias",
        "layer2.0.conv2.weight": "pre.3.conv2.conv.weight",
        "hg.1.hg.3.0.0.conv1.weight": "hgs.1.0.up1.conv1.conv.weight",
        "hg.0.hg.2.1.0.bn2.bias": "hgs.0.0.low2.low1.bn2.bias",
        "hg.0.hg.0.2.0.conv3.bias": "hgs.0.0.low2.low2.low2.low3.conv3.conv.bias",
        "hg.0.hg.0.3.0.bn1.weight": "hgs.0.0.low2.low2.low2.low2.bn1.weight",
        "res.1.0.conv2.weight": "features.1.0.conv2.conv.weight",
        "fc.1.1.weight": "features.1.1.bn.weight",
        "score.1.bias": "outs.1.conv.bias",
        "fc_.0.weight": "merge_features.0.conv.conv.weight",
        "score_.0.weight": "merge_preds.0.conv.conv.weight",
    }
    for ours, theirs in same.items():
        assert torch.equal(own[ours], state[theirs].to(own[ours].dtype)), ours
    unused = len(state) - len(own)
    assert unused == 2 * sum(k.endswith("skip_layer.conv.weight") and s[0] == s[1] for k, s in manifest.items())


def test_the_princeton_teacher_needs_every_key_of_its_checkpoint():
    with torch.device("meta"):
        model = create_model("hourglass_princeton_8x256", 16)
        two = json.loads((MANIFESTS / "hourglass_princeton_2x256.json").read_text())
        eight = dict(two)  # every stage is as the first; only the last does not merge
        for stage in range(1, 8):
            for key, shape in two.items():
                room, number, *rest = key.split(".")
                if room in ROOMS and number == "0" and not (stage == 7 and room.startswith("merge")):
                    eight[".".join([room, str(stage), *rest])] = shape
        assert digest(eight) == PRINCETON_8X256
        renamed = model.own_names({key: torch.empty(shape) for key, shape in eight.items()})
    assert shapes(renamed) == shapes(model.state_dict())


def test_what_the_networks_saw():
    """FPD: COLOR_RGB false, ImageNet statistics. princeton-vl: RGB divided by 255, nothing else."""
    with torch.device("meta"):
        assert create_model("hourglass_4x128", 16).spec == InputSpec(size=(256, 256), bgr=True)
        raw = InputSpec(size=(256, 256), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        assert create_model("hourglass_princeton_8x256", 16).spec == raw


def test_a_checkpoint_of_the_other_stem_is_named(tmp_path):
    torch.save(tiny_model("hourglass", width=64, stem="fpd").state_dict(), tmp_path / "fpd.pth")
    with pytest.raises(ValueError, match=r"stages=2, width=64, stem='fpd' and 5 keypoints"):
        load_weights(tiny_model("hourglass", width=64), tmp_path / "fpd.pth")


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("hourglass", {"stem": "lua"}, r"stem must be one of \('paper', 'fpd'\), got 'lua'"),
        ("hourglass", {"width": 30}, "width must be a multiple of 8, got 30"),
        ("hourglass", {"stages": 0}, "stages must be a positive integer.*got 0"),
        ("hourglass", {"size": (96, 96)}, "multiples of 64, got 96x96"),
        ("pyranet", {"width": 8}, "at least base_width 9, got 8"),
    ],
)
def test_what_cannot_be_is_refused(name, overrides, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, 16, **overrides)


@pytest.mark.parametrize("name", DEFINITION)
def test_an_input_that_does_not_divide_is_refused(name):
    with pytest.raises(ValueError, match=r"multiples of 64, got 64x96"):
        tiny_model(name)(images(1, (64, 96)))


@pytest.mark.parametrize("name", DEFINITION)
def test_compiles_and_exports(name):
    model = tiny_model(name, stages=1)
    expected = model(images())
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images()), expected)
    program = torch.export.export(model, (images(),), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=9)},))
    torch.testing.assert_close(program.module()(images(3)), model(images(3)))


@pytest.mark.parametrize("name", DEFINITION)
def test_bf16_autocast_in_channels_last_agrees_with_float32(name):
    model = tiny_model(name).to(memory_format=torch.channels_last)
    x = images().contiguous(memory_format=torch.channels_last)
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
    for low, full in zip(out, expected, strict=True):
        assert (low.float() - full).norm() < 0.05 * full.norm()


@pytest.mark.parametrize("name", DEFINITION)
def test_fresh_weights_train_in_every_stage(name):
    torch.manual_seed(0)
    model = create_model(name, 2, stages=2, width=16, size=(64, 64))
    loss = sum((stage**2).mean() for stage in model(images(2, (64, 64))))
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize(("side", "n"), [(64, 53), (64, 32), (16, 13), (8, 4), (5, 4)])
def test_fractional_pooling_is_torchs_with_samples_of_zero(side, n):
    x = torch.randn(2, 3, side, side + 3, generator=torch.Generator().manual_seed(side), dtype=torch.float64)
    assert torch.equal(fractional_max_pool(x, (n, n)), reference.fixed_fractional_pool(x, (n, n)))
