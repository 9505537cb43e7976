"""Every op of a fixed shape, forward and backward, captured in a CUDA graph and replayed on other inputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import backends
from torch import Tensor

from posekd import ops

Call = Callable[..., Tensor | tuple[Tensor, ...]]


def make(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def boxes(seed: int) -> Tensor:
    """`[6, 5]` on two images."""
    low, size = make(6, 2, seed=seed) * 8, make(6, 2, seed=seed + 1) * 8 + 1
    return torch.cat([torch.arange(6)[:, None] % 2, low, low + size], 1)


def keypoints(seed: int) -> Tensor:
    """`[2, 4, 3, 3]`, all visible."""
    return torch.cat([make(2, 4, 3, 2, seed=seed) * 15, torch.ones(2, 4, 3, 1)], 3)


# name -> how many of the inputs want a gradient, the inputs by seed, the call
CASES: dict[str, tuple[int, Callable[[int], list[Tensor]], Call]] = {
    "corner_pool": (1, lambda s: [make(2, 3, 16, 16, seed=s)], lambda x: ops.corner_pool(x, "left")),
    "corner_pool_add": (
        2,
        lambda s: [make(2, 3, 16, 16, seed=s), make(2, 3, 16, 16, seed=s + 1)],
        lambda x, y: ops.corner_pool_add(x, y, "top"),
    ),
    "corner_pool_sum": (
        2,
        lambda s: [make(2, 3, 16, 16, seed=s), make(2, 3, 16, 16, seed=s + 1)],
        lambda x, y: ops.corner_pool_sum(x, y, ("top", "left")),
    ),
    "center_pool": (1, lambda s: [make(2, 3, 16, 16, seed=s)], ops.center_pool),
    "roi_align": (1, lambda s: [make(2, 3, 16, 16, seed=s), boxes(s)], lambda x, b: ops.roi_align(x, b, (4, 3))),
    "roi_align, a list": (
        1,
        lambda s: [make(2, 3, 16, 16, seed=s), boxes(s)[:3, 1:], boxes(s)[3:, 1:]],
        lambda x, *lists: ops.roi_align(x, lists, 4),
    ),
    "mimic_loss": (
        2,
        lambda s: [make(2, 3, 16, 16, seed=s), make(2, 6, 3, 8, 6, seed=s), boxes(s)],
        lambda x, t, b: ops.mimic_loss(x, b, t, None, 1.0),
    ),
    "distill_loss": (
        1,
        lambda s: [make(2, 3, 16, 16, seed=s), make(2, 3, 16, 16, seed=s + 1)],
        lambda x, t: ops.distill_loss(x, t, t),
    ),
    "tag_loss": (1, lambda s: [make(2, 3, 16, 16, seed=s), keypoints(s)], ops.tag_loss),
    "center_focal_loss": (
        1,
        lambda s: [make(2, 3, 16, 16, seed=s), make(2, 3, 4, seed=s).cumsum(-1) * 4],
        lambda x, b: ops.center_focal_loss(x, b, torch.full((2,), 3, device=x.device)),
    ),
    "simulated_heatmap_loss": (
        2,
        lambda s: [make(2, 3, 2, seed=s), make(2, 3, 2, seed=s + 1) + 0.5, make(2, 3, 16, 16, seed=s)],
        ops.simulated_heatmap_loss,
    ),
    "group_keypoints": (
        0,
        lambda s: [make(2, 3, 16, 16, seed=s), make(2, 3, 16, 16, 2, seed=s)],
        ops.group_keypoints,
    ),
    "oks_nms": (
        0,
        lambda s: [make(5, 17, 3, seed=s) * 50, make(5, seed=s), make(5, seed=s) * 900 + 100],
        lambda p, s, a: (ops.oks(p, p, a, a), *ops.oks_nms(p, s, a, 0.5, padded=True)),
    ),
    "soft_oks_nms": (
        0,
        lambda s: [make(5, 17, 3, seed=s) * 50, make(5, seed=s), make(5, seed=s) * 900 + 100],
        lambda p, s, a: ops.soft_oks_nms(p, s, a, 0.5, padded=True),
    ),
    "decode_heatmaps": (0, lambda s: [make(2, 3, 16, 16, seed=s)], ops.decode_heatmaps),
    "render_heatmaps": (0, lambda s: [keypoints(s)], lambda k: ops.render_heatmaps(k, (16, 16), 2.0)),
}


def step(name: str, inputs: list[Tensor]) -> list[Tensor]:
    """All outputs of the case, and the gradients that it wants."""
    wanted, _, call = CASES[name]
    leaves = [x.detach().requires_grad_() for x in inputs[:wanted]]
    found = call(*leaves, *inputs[wanted:])
    outputs = [found] if isinstance(found, Tensor) else list(found)
    if wanted:
        outputs += torch.autograd.grad([x for x in outputs if x.requires_grad], leaves, _ones(outputs))
    return [x.detach() for x in outputs]


def _ones(outputs: list[Tensor]) -> list[Tensor]:
    return [torch.ones_like(x) for x in outputs if x.requires_grad]


def capture(name: str, inputs: list[Tensor]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step(name, inputs)
    return graph, outputs


@pytest.mark.cuda
@pytest.mark.parametrize("name", CASES)
def test_a_replay_equals_the_call(name: str) -> None:
    """Two graphs, of which the second is replayed first: neither leans on what the other has set up."""
    _, build, _ = CASES[name]
    with backends.use("cuda"):
        static = [x.cuda() for x in build(0)]
        step(name, static)  # loads kernels, which a capture must not
        torch.cuda.synchronize()
        captured = [capture(name, static) for _ in range(2)]
        for seed in (1, 2):
            fresh = [x.cuda() for x in build(seed)]
            for old, new in zip(static, fresh, strict=True):
                old.copy_(new)
            expected = step(name, fresh)
            for graph, outputs in reversed(captured):
                graph.replay()
                for replayed, eager in zip(outputs, expected, strict=True):
                    torch.testing.assert_close(replayed, eager, rtol=0, atol=0, equal_nan=True)


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["mimic_loss", "distill_loss", "simulated_heatmap_loss"])
def test_compiled_to_cuda_graphs(name: str) -> None:
    """The ops that keep something between calls, in memory that torch.compile's graphs must not own."""
    _, build, call = CASES[name]
    with backends.use("cuda"):
        compiled = torch.compile(call, mode="reduce-overhead")
        for seed in range(4):  # warm-up, recording, replays
            inputs = [x.cuda() for x in build(seed)]
            torch.testing.assert_close(compiled(*inputs), call(*inputs))
