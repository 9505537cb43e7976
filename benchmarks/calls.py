"""What a call costs when the problem is small: forward and backward through autograd, checks and all.

`posekd bench calls` compares each op that has a derivative with a bare `torch.autograd.Function`, written here, which
makes the same calls of the compiled core and checks nothing, promotes nothing and knows of no tracer. Both take many
short turns one after the other, of which the tenth percentile counts: other work on the machine comes and goes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, grad

from posekd import ops
from posekd.ops import library

Call = Callable[[], object]
INT = torch.int32
CALLS_PER_TURN = 15


def _counter(x: Tensor) -> Tensor | None:
    """What kernels on a GPU count in."""
    return x.new_zeros(1, dtype=INT) if x.is_cuda else None


def bare(name: str, forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Any]:
    """A Function: `forward` gives (result, what backward needs), `backward` takes that and the result's gradients."""

    def remember(ctx: Any, *inputs: Tensor) -> Any:
        result, ctx.kept = forward(*inputs)
        return result

    def derive(ctx: Any, *upstream: Tensor) -> Any:
        return backward(ctx.kept, *upstream)

    return type(name, (Function,), {"forward": staticmethod(remember), "backward": staticmethod(derive)}).apply


def corner_pool_add_bare(core: Any, direction: int) -> Callable[..., Any]:
    """`corner_pool`, with or without a summand."""

    def forward(x: Tensor, other: Tensor | None = None) -> tuple[Tensor, Any]:
        y, heads = torch.empty_like(x), x.new_empty((*x.shape[:3], (x.shape[3] + 31) // 32), dtype=INT)
        core.corner_pool_forward(x, other, y, heads, direction, False, 1)
        return y, (heads, other is not None)

    def backward(kept: Any, dy: Tensor) -> Any:
        heads, has_other = kept
        dx = torch.empty_like(dy)
        core.corner_pool_backward(dy, heads, dx, direction, 1)
        return (dx, dy) if has_other else dx

    return bare("corner_pool", forward, backward)


def corner_pool_sum_bare(core: Any) -> Callable[..., Any]:
    """Two pools of crossing directions, added."""

    def forward(vertical: Tensor, horizontal: Tensor) -> tuple[Tensor, Any]:
        y = torch.empty_like(vertical)
        shape = (*y.shape[:3], (y.shape[3] + 31) // 32)
        down, across = (y.new_empty(shape, dtype=INT) for _ in range(2))
        core.corner_pool_sum_forward(vertical, horizontal, y, down, across, 0, 2, False, 1)
        return y, (down, across)

    def backward(kept: Any, dy: Tensor) -> Any:
        gradients = torch.empty_like(dy), torch.empty_like(dy)
        for heads, gradient, direction in zip(kept, gradients, (0, 2), strict=True):
            core.corner_pool_backward(dy, heads, gradient, direction, 1)
        return gradients

    return bare("corner_pool_sum", forward, backward)


def center_pool_bare(core: Any) -> Callable[..., Any]:
    """Of one map."""

    def forward(x: Tensor) -> tuple[Tensor, Any]:
        N, C, H, W = x.shape
        y, columns, rows = torch.empty_like(x), x.new_empty((N, C, W), dtype=INT), x.new_empty((N, C, H), dtype=INT)
        core.center_pool_forward(x, None, y, columns, rows, 1)
        return y, (columns, rows)

    def backward(kept: Any, dy: Tensor) -> Tensor:
        dx = torch.empty_like(dy)
        core.center_pool_backward(dy, *kept, dx, None, 1)
        return dx

    return bare("center_pool", forward, backward)


def roi_align_bare(core: Any, boxes: Tensor, size: int) -> Callable[..., Any]:
    """Crops of size x size at scale 1, adaptive sampling."""

    def forward(x: Tensor) -> tuple[Tensor, Any]:
        crops = x.new_empty((boxes.shape[0], x.shape[1], size, size))
        core.roi_align_forward(x, boxes, crops, 1.0, 0, True, 1)
        return crops, x.shape

    def backward(shape: Any, upstream: Tensor) -> Tensor:
        gradient = upstream.new_empty(shape)
        core.roi_align_backward(gradient, boxes, upstream, 1.0, 0, True, 1)
        return gradient

    return bare("roi_align", forward, backward)


def distill_loss_bare(core: Any, teacher: Tensor, target: Tensor) -> Callable[..., Any]:
    """The gradient comes with the loss, as the op has it on the CPU."""

    def forward(x: Tensor) -> tuple[Tensor, Any]:
        loss, terms, gradient = x.new_empty(()), x.new_empty(3), torch.empty_like(x)
        stats, counter = x.new_empty((x.shape[0] * x.shape[1], 5)), x.new_zeros(1, dtype=INT)
        inputs = (x, teacher, target, None, None, None, None)
        kept = None if x.is_cuda else gradient  # on a GPU the op computes it in the backward pass
        core.distill_loss_forward(*inputs, 0.15, 0.075, 1.0, 2.0, 0, loss, terms, stats, kept, counter, 1)
        return loss, (inputs, stats, gradient)

    def backward(kept: Any, upstream: Tensor) -> Tensor:
        inputs, stats, gradient = kept
        if upstream.is_cuda:
            core.distill_loss_backward(*inputs, 0.15, 0.075, 1.0, 2.0, 0, upstream, stats, gradient, 1)
            return gradient
        return gradient if upstream.item() == 1.0 else gradient * upstream

    return bare("distill_loss", forward, backward)


def mimic_loss_bare(core: Any, boxes: Tensor, targets: Tensor) -> Callable[..., Any]:
    """One set of targets, weights of 1."""

    def forward(x: Tensor) -> tuple[Tensor, Any]:
        weight = x.new_ones(targets.shape[:3])
        loss, stats = x.new_empty((1,)), x.new_empty(targets.shape[:3])
        counter = x.new_zeros(1, dtype=INT)
        core.mimic_loss_forward(x, boxes, targets, weight, 1.0, 2, True, stats, loss, counter, 1)
        return loss.sum(), (x, weight)

    def backward(kept: Any, upstream: Tensor) -> Tensor:
        x, weight = kept
        gradient = torch.empty_like(x)
        inputs = (x, boxes, targets, weight, 1.0, 2, True)
        core.mimic_loss_backward(*inputs, upstream.reshape(1), gradient, None, 1)
        return gradient

    return bare("mimic_loss", forward, backward)


def tag_loss_bare(core: Any, keypoints: Tensor) -> Callable[..., Any]:
    """The push is `exp`."""

    def forward(tags: Tensor) -> tuple[tuple[Tensor, Tensor], Any]:
        B, P, K, _ = keypoints.shape
        pull, push = tags.new_empty((B,)), tags.new_empty((B,))
        slopes = tags.new_empty((B, P, K)), tags.new_empty((B, P))
        core.tag_loss_forward(tags, keypoints, pull, push, *slopes, True, 1)
        return (pull, push), (slopes, tags)

    def backward(kept: Any, pull: Tensor, push: Tensor) -> Tensor:
        slopes, tags = kept
        gradient = torch.empty_like(tags)
        core.tag_loss_backward(keypoints, *slopes, pull, push, gradient, 1)
        return gradient

    return bare("tag_loss", forward, backward)


def center_focal_loss_bare(core: Any, boxes: Tensor, counts: Tensor) -> Callable[..., Any]:
    """No mask; the sum of the three maps' losses is part of it."""

    def forward(logits: Tensor) -> tuple[Tensor, Any]:
        loss, points = logits.new_empty((3,)), logits.new_empty((3,), dtype=torch.int64)
        partial = logits.new_empty((2, 3, logits.shape[0]), dtype=torch.float64)
        core.center_focal_loss_forward(logits, boxes, counts, None, False, loss, points, partial, _counter(logits), 1)
        return loss.sum(), (logits, points)

    def backward(kept: Any, upstream: Tensor) -> Tensor:
        logits, points = kept
        gradient = torch.empty_like(logits)
        core.center_focal_loss_backward(
            logits, boxes, counts, None, False, upstream.expand(3).contiguous(), points, gradient, 1
        )
        return gradient

    return bare("center_focal_loss", forward, backward)


def simulated_heatmap_loss_bare(core: Any, teacher: Tensor, weight: Tensor) -> Callable[..., Any]:
    """The gradient comes with the loss; backward scales it."""

    def forward(coords: Tensor, sigmas: Tensor) -> tuple[Tensor, Any]:
        loss, stats = coords.new_empty(()), coords.new_empty((*coords.shape[:2], 5))
        core.simulated_heatmap_loss_forward(coords, sigmas, teacher, weight, stats, loss, _counter(coords), 1)
        return loss, stats

    def backward(stats: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:
        gradients = stats.new_empty((*stats.shape[:2], 2)), stats.new_empty((*stats.shape[:2], 2))
        core.simulated_heatmap_loss_backward(upstream, stats, *gradients, 1)
        return gradients

    return bare("simulated_heatmap_loss", forward, backward)


def _both_ways(function: Callable[..., Any], *inputs: Tensor) -> Call:
    """Forward, and backward to all inputs."""
    upstream = [torch.ones_like(y) for y in _outputs(function(*inputs))]

    def call() -> object:
        return grad(_outputs(function(*inputs)), inputs, upstream)

    return call


def _outputs(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def contestants(device: str = "cpu") -> dict[str, tuple[Call, Call]]:
    """Op -> ours and the bare Function, on maps `[1, 2, 8, 8]`."""
    rng = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=rng).to(device)

    def given(values: Any) -> Tensor:
        return torch.tensor(values).to(device)

    x, other = (random(1, 2, 8, 8).requires_grad_() for _ in range(2))
    teacher, target = random(1, 2, 8, 8), random(1, 2, 8, 8)
    boxes = given([[0.0, 1.0, 2.0, 6.0, 7.0], [0.0, 0.0, 0.0, 4.0, 4.0]])
    targets = random(2, 2, 4, 4)
    keypoints = given([[[[1.0, 1.0, 1.0], [2.0, 3.0, 1.0]], [[6.0, 1.0, 1.0], [7.0, 3.0, 1.0]]]])
    points, sigmas = (random(1, 2, 2).requires_grad_() for _ in range(2))
    weight = torch.ones(1, 2, device=device)
    logits = random(1, 3, 8, 8).requires_grad_()
    people, counts = given([[[1.0, 1.0, 6.0, 7.0]]]), given([1])
    core = library.core()
    top = corner_pool_add_bare(core, 0)
    pairs: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[Tensor, ...]]] = {
        "corner_pool": (lambda x: ops.corner_pool(x, "top"), top, (x,)),
        "corner_pool_add": (lambda x, y: ops.corner_pool_add(x, y, "top"), top, (x, other)),
        "corner_pool_sum": (
            lambda x, y: ops.corner_pool_sum(x, y, ("top", "left")),
            corner_pool_sum_bare(core),
            (x, other),
        ),
        "center_pool": (ops.center_pool, center_pool_bare(core), (x,)),
        "roi_align": (lambda x: ops.roi_align(x, boxes, 3), roi_align_bare(core, boxes, 3), (x,)),
        "distill_loss": (
            lambda x: ops.distill_loss(x, teacher, target),
            distill_loss_bare(core, teacher, target),
            (x,),
        ),
        "mimic_loss": (
            lambda x: ops.mimic_loss(x, boxes, targets, None, 1.0),
            mimic_loss_bare(core, boxes, targets[None]),
            (x,),
        ),
        "tag_loss": (lambda x: ops.tag_loss(x, keypoints), tag_loss_bare(core, keypoints), (x,)),
        "center_focal_loss": (
            lambda logits: ops.center_focal_loss(logits, people, counts),
            center_focal_loss_bare(core, people, counts),
            (logits,),
        ),
        "simulated_heatmap_loss": (
            lambda points, sigmas: ops.simulated_heatmap_loss(points, sigmas, teacher, weight),
            simulated_heatmap_loss_bare(core, teacher, weight),
            (points, sigmas),
        ),
    }
    return {
        name: (_both_ways(ours, *inputs), _both_ways(base, *inputs)) for name, (ours, base, inputs) in pairs.items()
    }


def _check_equal(name: str, ours: Any, base: Any) -> None:
    if not all(torch.equal(a, b) for a, b in zip(ours, base, strict=True)):
        raise RuntimeError(f"{name}: the bare Function's gradients differ, so its time says nothing")


def quick_tenth(ours: Call, base: Call, turns: int, device: str) -> tuple[float, float]:
    """Microseconds per call of both: the tenth percentile of many short turns, which other work seldom disturbs."""
    samples: tuple[list[float], list[float]] = [], []
    for _ in range(turns):
        for function, times in zip((ours, base), samples, strict=True):
            start = time.perf_counter()
            for _ in range(CALLS_PER_TURN):
                function()
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(1e6 * (time.perf_counter() - start) / CALLS_PER_TURN)
    return sorted(samples[0])[turns // 10], sorted(samples[1])[turns // 10]


def rows(rounds: int, turns: int, device: str) -> list[tuple[str, float, float, list[float]]]:
    """Op, microseconds per call of ours and of the bare Function (medians over rounds), their ratio in each round."""
    contest = contestants(device)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contest}
    for name, (ours, base) in contest.items():
        _check_equal(name, ours(), base())
    for _ in range(rounds):
        for name, (ours, base) in contest.items():
            found[name].append(quick_tenth(ours, base, turns, device))
    return [
        (name, *(statistics.median(column) for column in zip(*times, strict=True)), sorted(a / b for a, b in times))
        for name, times in found.items()
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="posekd bench calls", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds over all ops (default 5)")
    parser.add_argument("--turns", type=int, default=200, help="turns of 15 calls in a round (default 200)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not (torch.cuda.is_available() and library.cuda_kernels()[0]):
        parser.error("--device cuda, but there is no GPU here that our kernels run on (see `posekd doctor`)")
    for name in ("rounds", "turns"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    if library.core() is None:
        parser.error("the compiled core did not load: there are no core calls to compare with (see `posekd doctor`)")
    torch.set_num_threads(1)
    print(f"forward and backward of [1, 2, 8, 8] float32 on {options.device}, one CPU thread, microseconds per call")
    print(f"{'op':<22} {'posekd':>8} {'bare':>8} {'ratio':>6}  over {options.rounds} rounds")
    for name, ours, base, ratios in rows(options.rounds, options.turns, options.device):
        middle = statistics.median(ratios)
        print(f"{name:<22} {ours:8.1f} {base:8.1f} {middle:6.2f}  {ratios[0]:.2f} to {ratios[-1]:.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
