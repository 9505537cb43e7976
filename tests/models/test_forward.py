"""Every family computes what its definition says, in every mode a user runs it in."""

from __future__ import annotations

import pytest
import torch
from helpers import reference_models as reference
from helpers.tiny_models import TINY_HRNET, TINY_RESNET, randomise, tiny_model

from posekd.models import create_model
from posekd.models.hrnet import HRNetConfig, HRNetTrunk

FAMILIES = ("hrnet_w32", "elpn_v1", "simplebaseline_r50")
DEFINITION = {
    "hrnet_w32": reference.hrnet,
    "elpn_v1": reference.hrnet,
    "simplebaseline_r50": reference.simplebaseline,
}


def images(batch: int = 2, size: tuple[int, int] = (64, 96)) -> torch.Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", FAMILIES)
def test_output_equals_the_definition(name):
    model = tiny_model(name).double()
    x = images().double()
    out = model(x)
    assert out.shape == (2, 5, 16, 24)
    assert out.std(dim=(2, 3)).min() > 0.01  # every map has something on it
    torch.testing.assert_close(out, DEFINITION[name](model.state_dict(), x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("hrnet_w32", {"modules": (2, 1, 2), "blocks": 2, "stage1_blocks": 2}),
        ("hrnet_w32", {"final_multiscale": True}),
        ("hrnet_w32", {"widths": (8, 12, 16, 20)}),  # widths need not double (SmallerHRNet)
        ("elpn_v2", {"dw_bn": False}),
        ("elpn_v2", {"gc_min_width": 1, "gc_ratio": 4, "stage1_blocks": 2}),
        ("simplebaseline_r101", {"blocks": (2, 1, 2, 1)}),
    ],
)
def test_every_setting_keeps_to_the_definition(name, overrides):
    model = tiny_model(name, **overrides).double()
    definition = reference.simplebaseline if name.startswith("simple") else reference.hrnet
    x = images().double()
    torch.testing.assert_close(model(x), definition(model.state_dict(), x), rtol=1e-9, atol=1e-9)


def test_trunk_gives_every_branch():
    """What SIMPLE and HigherHRNet build on: all scales, or the highest alone."""
    settings = {**TINY_HRNET, "spec": create_model("hrnet_w32", **TINY_HRNET).spec}
    trunk = HRNetTrunk(HRNetConfig(**settings, final_multiscale=True)).double().eval()
    randomise(trunk)
    x = images().double()
    features = trunk(x)
    assert [tuple(f.shape[1:]) for f in features] == [(8, 16, 24), (16, 8, 12), (32, 4, 6), (64, 2, 3)]
    for feature, expected in zip(features, reference.hrnet_features(trunk.state_dict(), x), strict=True):
        torch.testing.assert_close(feature, expected, rtol=1e-9, atol=1e-9)
    assert len(HRNetTrunk(HRNetConfig(**settings))(images())) == 1


def test_trunk_may_stop_at_stage_3():
    """TokenPose and DistilPose use HRNet up to stage 3."""
    trunk = HRNetTrunk(HRNetConfig(**{**TINY_HRNET, "modules": (1, 1)}, final_multiscale=True))
    assert [f.shape[1] for f in trunk(images())] == [8, 16, 32]
    assert not any(key.startswith(("stage4", "transition3")) for key in trunk.state_dict())


@pytest.mark.parametrize("name", FAMILIES)
def test_an_input_that_does_not_divide_is_refused(name):
    with pytest.raises(ValueError, match=r"multiples of 32, got 64x100; the nearest that works is 64x96"):
        tiny_model(name)(images(1, (64, 100)))


@pytest.mark.parametrize("name", FAMILIES)
def test_bf16_autocast_in_channels_last_agrees_with_float32(name):
    model = tiny_model(name).to(memory_format=torch.channels_last)
    x = images().contiguous(memory_format=torch.channels_last)
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
    assert out.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits: a relative error of 2^-9 a rounding, over some tens of layers in sequence
    assert (out.float() - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("name", FAMILIES)
def test_compiles_into_one_graph(name):
    model = tiny_model(name)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images()), model(images()))


@pytest.mark.parametrize("name", ["elpn_v1", "simplebaseline_r50"])
def test_exports_with_any_batch_size(name):
    model = tiny_model(name)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images(2),), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(images(3)), model(images(3)))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_official_initialisation_trains(name):
    """From fresh weights, 30 steps of Adam at HRNet's rate beat an empty heatmap by a third."""
    torch.manual_seed(0)
    model = create_model(name, 2, size=(64, 64), **(TINY_RESNET if name.startswith("simple") else TINY_HRNET))
    x, target = blobs(8)
    empty = (target**2).mean().item()
    assert ((model(x) - target) ** 2).mean().item() == pytest.approx(empty, rel=0.05)  # the small head starts near zero
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(30):
        loss = ((model(x) - target) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < empty * 2 / 3
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def blobs(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images `[count, 3, 64, 64]` of a red and a green blob, and their heatmaps `[count, 2, 16, 16]`."""
    centers = 3 + 10 * torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(2))
    grid = torch.stack(torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="xy"))  # x, y
    heatmaps = torch.exp(-((grid - centers[..., None, None]) ** 2).sum(2) / 8)
    images = torch.nn.functional.interpolate(heatmaps, scale_factor=4)
    return torch.cat((images, torch.zeros_like(images[:, :1])), dim=1), heatmaps
