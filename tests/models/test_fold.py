"""Norms folded into convolutions: every named network says the same, to rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from posekd.models import create_model, list_models
from posekd.models.fold import fold_norms
from posekd.models.tokenpose import TokenPoseConfig
from posekd.models.zoo import MODELS

SIZE = (64, 64)
TOKENS = (64, 96)  # patches of 4x3: multiples of 16 and 12, on HRNet of 32


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def with_history(model: nn.Module) -> nn.Module:
    """As after training: statistics and parameters of the norms are not those of a fresh network."""
    generator = torch.Generator().manual_seed(1)
    for norm in norms(model):
        for tensor, low, high in (
            (norm.running_mean, -0.2, 0.2), (norm.running_var, 0.5, 2.0),
            (norm.weight, 0.5, 1.5), (norm.bias, -0.2, 0.2),
        ):  # fmt: skip
            tensor.data = low + (high - low) * torch.rand(tensor.shape, generator=generator)
    return model.eval().requires_grad_(False)


def outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    said = model(images)
    return [said] if isinstance(said, Tensor) else [part for part in said if isinstance(part, Tensor)]


@pytest.mark.parametrize("name", list_models())
def test_every_named_network_says_the_same(name):
    torch.manual_seed(0)
    size = TOKENS if isinstance(MODELS[name], TokenPoseConfig) else SIZE
    model = with_history(create_model(name, size=size)).double()
    images = torch.randn(1, 3, *size, dtype=torch.float64)
    before, there = outputs(model, images), len(norms(model))
    folded = fold_norms(model, images)
    assert folded == there - len(norms(model)) > 0
    other = torch.randn(2, 3, *size, dtype=torch.float64)
    for found, wanted in zip(outputs(model, images), before, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12 * float(wanted.abs().max()))
    assert len(outputs(model, other)[0]) == 2


@pytest.mark.parametrize(
    ("name", "left"), [("hrnet_w32", 0), ("higherhrnet_w32", 0), ("simplebaseline_r50", 0), ("hourglass_4x128", 59)]
)
def test_only_norms_behind_a_convolution_go(name, left):
    """HRNet and its kin norm every convolution; the Hourglass norms before activations, its stem and heads excepted."""
    model = with_history(create_model(name, size=SIZE))
    fold_norms(model, torch.randn(1, 3, *SIZE))
    assert len(norms(model)) == left


class Shared(nn.Module):
    """A convolution whose output is also used without the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) + y


class Twice(nn.Module):
    """One convolution and two norms that take turns."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.conv(self.first(self.conv(x))))


@pytest.mark.parametrize("kind", [Shared, Twice])
def test_a_network_that_would_change_keeps_its_norms(kind):
    torch.manual_seed(0)
    model = with_history(kind())
    images = torch.randn(2, 3, 8, 8)
    before, names = model(images), list(model.state_dict())
    assert fold_norms(model, images) == 0
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(images), before, rtol=0, atol=0)


def test_a_network_in_training_is_refused():
    with pytest.raises(ValueError, match="call eval"):
        fold_norms(create_model("elpn_v1", size=SIZE), torch.randn(1, 3, *SIZE))
