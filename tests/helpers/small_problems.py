"""A small problem of every op that has a derivative."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from posekd import ops

Problem = tuple[Tensor, Callable[[Tensor], Tensor]]


def _random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


BOXES = torch.tensor([[0.0, 0.3, 0.2, 5.0, 4.0], [1.0, 2.0, 1.0, 7.0, 6.5]])
KEYPOINTS = torch.tensor([[1.0, 2.0, 2.0], [4.0, 5.0, 1.0], [6.0, 3.0, 2.0]])  # K = 3: x, y, visibility
POINT_BOXES = torch.tensor([[[0.0, 1.0, 4.0, 5.0], [2.0, 2.0, 8.0, 6.0]], [[3.0, 0.0, 6.0, 6.0], [0.0, 0.0, 0.0, 0.0]]])


def problem(name: str, dtype: torch.dtype = torch.float32) -> Problem:
    """The input that wants a gradient, `[2, 3, 7, 9]`, and the op as a function of it alone."""
    x, other = _random(2, 3, 7, 9, dtype=dtype), _random(2, 3, 7, 9, dtype=dtype).flip(3).contiguous()
    people = KEYPOINTS.expand(2, 2, 3, 3) + torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1) * torch.tensor([1.0, 0, 0])
    targets = _random(2, 3, 4, 5, dtype=dtype)
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "corner_pool": lambda x: ops.corner_pool(x, "top"),
        "corner_pool_add": lambda x: ops.corner_pool_add(x, other, "left"),
        "corner_pool_sum": lambda x: ops.corner_pool_sum(x, other, ("bottom", "right")),
        "center_pool": ops.center_pool,
        "roi_align": lambda x: ops.roi_align(x, BOXES, (3, 2), 0.5),
        "distill_loss": lambda x: _only(ops.distill_loss(x, other, keypoints=KEYPOINTS.expand(2, 3, 3))),
        "mimic_loss": lambda x: _only(ops.mimic_loss(x, BOXES, targets, None, 0.5)),
        "tag_loss": lambda x: torch.stack(ops.tag_loss(x, people)),
        "center_focal_loss": lambda x: _only(ops.center_focal_loss(x, POINT_BOXES, torch.tensor([2, 1]))),
        "simulated_heatmap_loss": lambda x: ops.simulated_heatmap_loss(*_points(x), other),
    }
    return x, calls[name]


def _points(x: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates and sigmas `[2, 3, 2]`, views of `x` where its dtype allows it."""
    points = x.to(torch.promote_types(x.dtype, torch.float32))
    return points[:, :, 0, :2], points[:, :, 1, 3:5]


def _only(result: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    assert isinstance(result, Tensor)
    return result


NAMES = (
    "corner_pool",
    "corner_pool_add",
    "corner_pool_sum",
    "center_pool",
    "roi_align",
    "distill_loss",
    "mimic_loss",
    "tag_loss",
    "center_focal_loss",
    "simulated_heatmap_loss",
)
