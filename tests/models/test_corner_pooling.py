"""CornerPool, CenterPool, CascadeCornerPool: published names and counts, and the structure written out again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d

from posekd.models.layers import CascadeCornerPool, CenterPool, CornerPool

MANIFEST = Path(__file__).parent / "manifests" / "centernet_pools_dim32_mid128.json"
PUBLISHED = json.loads(MANIFEST.read_text())  # names and shapes of CenterNet's pool_cross, tl_pool and br_pool


def shapes(module: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in module.state_dict().items()}


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("module", "published", "count"),
    [
        (CenterPool(32), "center_pool", 121_536),
        (CascadeCornerPool(32), "cascade_corner_pool", 490_688),
        (CascadeCornerPool(32, ("bottom", "right")), "cascade_corner_pool", 490_688),
        (CornerPool(32), "center_pool", 121_536),  # CornerNet's module has the same parameters as pool_cross
    ],
)
def test_names_shapes_and_counts_are_the_published_ones(module: nn.Module, published: str, count: int) -> None:
    assert shapes(module) == PUBLISHED[published]
    assert parameters(module) == count


def scan(x: Tensor, direction: str) -> Tensor:
    dim = 2 if direction in ("top", "bottom") else 3
    x = x.flip(dim) if direction in ("top", "left") else x
    y = x.cummax(dim).values
    return y.flip(dim) if direction in ("top", "left") else y


def written_out(module: nn.Module, x: Tensor, directions: tuple[str, str]) -> Tensor:
    """CenterNet's modules as one function of their state dict, in eval mode, with `cummax` for the pools."""
    state = module.state_dict()

    def norm(y: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return batch_norm(y, mean, var, weight, bias)

    def conv(y: Tensor, name: str, padding: int = 1) -> Tensor:
        return conv2d(y, state[f"{name}.weight"], padding=padding)

    def branch(name: str) -> Tensor:
        return norm(conv(x, f"{name}.conv"), f"{name}.bn").relu()

    vertical, horizontal = directions
    p1, p2 = branch("p1_conv1"), branch("p2_conv1")
    if isinstance(module, CenterPool):
        p1, p2 = scan(scan(p1, "top"), "bottom"), scan(scan(p2, "left"), "right")
    else:
        if isinstance(module, CascadeCornerPool):
            p1 = conv(p1 + scan(branch("look_conv1"), horizontal), "P1_look_conv")
            p2 = conv(p2 + scan(branch("look_conv2"), vertical), "P2_look_conv")
        p1, p2 = scan(p1, vertical), scan(p2, horizontal)
    y = (norm(conv(p1 + p2, "p_conv1"), "p_bn1") + norm(conv(x, "conv1", 0), "bn1")).relu()
    return norm(conv(y, "conv2.conv"), "conv2.bn").relu()


@pytest.mark.parametrize("directions", [("top", "left"), ("bottom", "right")])
@pytest.mark.parametrize("family", [CornerPool, CenterPool, CascadeCornerPool])
def test_forward_is_the_published_structure(family: type[nn.Module], directions: tuple[str, str]) -> None:
    torch.manual_seed(0)
    module = family(6, mid=8) if family is CenterPool else family(6, directions, mid=8)
    module = module.double().eval()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 6, 7, 9, dtype=torch.float64)
    ours = x.clone().requires_grad_()
    plain = x.clone().requires_grad_()
    y, expected = module(ours), written_out(module, plain, directions)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    # The tie rules differ, but after a ReLU nearly all ties are zeros, whose gradient the ReLU stops.
    torch.testing.assert_close(ours.grad, plain.grad)


@pytest.mark.parametrize("family", [CornerPool, CenterPool, CascadeCornerPool])
def test_trains_and_compiles_without_graph_breaks(family: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module = family(4, mid=4)
    x = torch.randn(2, 4, 6, 5)
    gradients = []
    for forward in (module, torch.compile(module, fullgraph=True, backend="aot_eager")):
        module.zero_grad()
        forward(x).square().mean().backward()
        gradients.append([p.grad.clone() for p in module.parameters()])
    assert all(g.isfinite().all() for g in gradients[0])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("family", [CornerPool, CascadeCornerPool])
def test_bad_arguments_get_a_sentence(family: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"directions must be .* got \('left', 'top'\)"):
        family(4, ("left", "top"))
    with pytest.raises(ValueError, match="mid must be a positive number of channels, got 0"):
        family(4, mid=0)
