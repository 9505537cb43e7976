"""posekd.nn: the bare ops as modules."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import posekd.nn as pnn
from posekd import ops
from posekd.models import layers

BOXES = torch.tensor([[0.0, 2.0, 3.0, 13.0, 11.0], [1.0, 0.0, 0.0, 8.0, 16.0]])
MAPS = torch.rand(2, 3, 16, 12, generator=torch.Generator().manual_seed(0))


class TestRoIAlign:
    @pytest.mark.parametrize("arguments", [(4,), ((3, 5), 0.5), ((3, 5), 0.5, 2), (2, 0.25, 1, False)])
    def test_is_the_function_with_the_same_arguments(self, arguments: tuple[Any, ...]) -> None:
        assert torch.equal(pnn.RoIAlign(*arguments)(MAPS, BOXES), ops.roi_align(MAPS, BOXES, *arguments))

    def test_aligned_is_the_default(self) -> None:
        """A box of whole pixels is a copy of them."""
        crop = pnn.RoIAlign(2)(MAPS, torch.tensor([[1.0, 3.0, 4.0, 5.0, 6.0]]))
        assert torch.equal(crop[0], MAPS[1, :, 4:6, 3:5])

    def test_a_list_of_boxes(self) -> None:
        lists = [BOXES[:1, 1:], BOXES[1:, 1:]]
        assert torch.equal(pnn.RoIAlign(4)(MAPS, lists), pnn.RoIAlign(4)(MAPS, BOXES))

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (((3, 0),), ValueError, r"output_size must be \(height, width\), both at least 1, got \(3, 0\)"),
            ((3, -1.0), ValueError, "spatial_scale must be positive"),
            ((3, 1.0, 0.5), TypeError, "sampling_ratio must be a whole number"),
        ],
    )
    def test_bad_settings_are_named_where_they_are_given(
        self, arguments: tuple[Any, ...], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            pnn.RoIAlign(*arguments)

    def test_there_is_no_pool_mode_and_the_page_says_so(self) -> None:
        with pytest.raises(TypeError, match="pool_mode"):
            pnn.RoIAlign(3, pool_mode="max")
        for page in (pnn.RoIAlign.__doc__, ops.roi_align.__doc__):
            assert "no `pool_mode`" in page
            assert "aligned=True" in page.splitlines()[2]  # the first thing that a user of torchvision must know


class TestPools:
    @pytest.mark.parametrize("direction", ["top", "bottom", "left", "right"])
    def test_corner_pool_is_the_function(self, direction: str) -> None:
        assert torch.equal(pnn.CornerPool(direction)(MAPS), ops.corner_pool(MAPS, direction))

    def test_an_unknown_direction_is_named_where_it_is_given(self) -> None:
        with pytest.raises(ValueError, match=r"direction must be one of 'top', .* got 'up'"):
            pnn.CornerPool("up")

    def test_center_pool_is_the_function(self) -> None:
        assert torch.equal(pnn.CenterPool()(MAPS), ops.center_pool(MAPS))


@pytest.mark.parametrize("module", [pnn.RoIAlign((3, 2), 0.5), pnn.CornerPool("left"), pnn.CenterPool()], ids=str)
class TestEveryModule:
    def test_has_no_state_and_survives_copies(self, module: nn.Module) -> None:
        inputs = (MAPS, BOXES) if isinstance(module, pnn.RoIAlign) else (MAPS,)
        assert module.state_dict() == {}
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert str(other) == str(module)
            assert torch.equal(other(*inputs), module(*inputs))

    def test_hands_the_gradient_on(self, module: nn.Module) -> None:
        x = MAPS.clone().requires_grad_()
        module(*((x, BOXES) if isinstance(module, pnn.RoIAlign) else (x,))).sum().backward()
        assert x.grad.abs().sum() > 0


def test_print_shows_the_settings() -> None:
    assert str(pnn.RoIAlign(3)) == "RoIAlign(output_size=(3, 3), spatial_scale=1.0, sampling_ratio=0, aligned=True)"
    assert str(pnn.CornerPool("top")) == "CornerPool('top')"


def test_the_published_blocks_stay_where_they_were() -> None:
    for block, module in ((layers.CornerPool(8, ("top", "left"), 4), pnn.CornerPool), (layers.CenterPool(8, 4), None)):
        assert "p1_conv1.conv.weight" in block.state_dict()
        assert module is None or not isinstance(block, module)
