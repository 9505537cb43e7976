"""roi_align against the per-sample gather of public libraries, plain PyTorch and torch.compile.

The gather is torchvision's algorithm in C++, compiled natively, one thread, into reused outputs (torchvision itself is
timed too where it imports). The plain form is the separable product in PyTorch: two dense matrices a box, two batched
products. On the CPU our kernels are timed alone, into reused outputs as the gather's, and through
PyTorch, where every result is fresh.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from posekd.ops import library, roi_align

from ..baselines import gather
from ..harness import Case, options_from, run

SHAPES = (((16, 17, 64, 48), 64, (64, 48)), ((16, 17, 128, 128), 128, (64, 48)), ((2, 256, 128, 128), 512, (7, 7)))
SCALE, RATIO = 0.25, 2


def people_boxes(count: int, images: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Boxes `[count, 5]` in image pixels: 30 to 80 % of a map high, 3:4, spread over the map."""
    rng = torch.Generator().manual_seed(seed)
    h = (torch.rand(count, generator=rng) * 0.5 + 0.3) * height
    size = torch.stack([h * 0.75, h], 1).clamp(max=width)
    corner = torch.rand(count, 2, generator=rng) * (torch.tensor([width, height]) - size)
    index = torch.arange(count) % images
    return torch.cat([index[:, None], corner / SCALE, (corner + size) / SCALE], 1)


def axis_matrix(low: Tensor, high: Tensor, outputs: int, length: int) -> Tensor:
    """The dense matrix `[R, outputs, length]` of one axis for `RATIO` samples per bin, aligned."""
    start, extent = low * SCALE - 0.5, (high - low) * SCALE
    places = (torch.arange(outputs * RATIO, device=low.device) + 0.5) / (outputs * RATIO)
    at = start[:, None] + extent[:, None] * places
    inside = (at >= -1) & (at <= length)
    distance = (at.clamp(0, length - 1)[..., None] - torch.arange(length, device=low.device)).abs()
    weights = (1 - distance).clamp(min=0) * inside[..., None]
    return weights.unflatten(1, (outputs, RATIO)).mean(2)


def plain(maps: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """ROIAlign in plain PyTorch: one product along the columns for all boxes of an image, then one along the rows.

    Boxes are dealt out to the images in turn, as `people_boxes` does: nobody need be looked for.
    """
    images, channels, height, width = maps.shape
    each = len(boxes) // images
    y, x = (
        axis_matrix(boxes[:, 1 + i], boxes[:, 3 + i], size[1 - i], maps.shape[3 - i]).unflatten(0, (each, images))
        for i in (1, 0)
    )
    columns = maps.float().transpose(1, 2).reshape(images, height, channels * width)
    rows = y.transpose(0, 1).reshape(images, -1, height) @ columns  # [images, each * P, channels * width]
    rows = rows.view(images, each, size[0] * channels, width) @ x.permute(1, 0, 3, 2)
    crops = rows.view(images, each, size[0], channels, size[1]).permute(1, 0, 3, 2, 4)
    return crops.reshape(len(boxes), channels, *size).to(maps.dtype)


def torchvision_op() -> Callable[..., Tensor] | None:
    """The operator of torchvision, where it is installed."""
    try:
        from torchvision.ops import roi_align as operator
    except (ImportError, RuntimeError):
        return None
    return operator


def forward_baselines(
    maps: Tensor, boxes: Tensor, size: tuple[int, int], compiled: bool
) -> dict[str, Callable[[], object]]:
    baselines: dict[str, Callable[[], object]] = {}
    operator = torchvision_op()
    if operator is not None:
        baselines["torchvision"] = lambda: operator(maps, boxes, size, SCALE, RATIO, True)
    baselines["eager"] = lambda: plain(maps, boxes, size)
    if compiled:
        function = torch.compile(plain)
        baselines["torch.compile"] = lambda: function(maps, boxes, size)
    return baselines


def kernel_cases(title: str, maps: Tensor, boxes: Tensor, g: Tensor, moved: int) -> Iterator[Case]:
    """Both kernels beside the gather and the scatter, all on reused outputs."""
    crops, out, core, threads = torch.empty_like(g), torch.empty_like(maps), library.core(), library.threads
    words = boxes.shape[0] * (8 * sum(g.shape[2:]) + 1)
    scratch = maps.new_empty((words,), dtype=torch.int32) if maps.is_cuda else None
    forward = lambda: core.roi_align_forward(maps, boxes, crops, SCALE, RATIO, True, threads(), scratch)  # noqa: E731
    backward = lambda: core.roi_align_backward(out, boxes, g, SCALE, RATIO, True, threads())  # noqa: E731
    other, other_out = torch.empty_like(crops), torch.empty_like(out)
    gathers = {"per-sample gather (C++, 1 thread)": lambda: gather.forward(maps, boxes, other, SCALE, RATIO)}
    scatters = {"per-sample scatter (C++, 1 thread)": lambda: gather.backward(other_out, boxes, g, SCALE, RATIO)}
    yield Case(f"{title}, forward kernel, reused output", forward, gathers, moved)
    yield Case(f"{title}, backward kernel, reused output", backward, scatters, moved)


def backward_baselines(maps: Tensor, boxes: Tensor, g: Tensor, compiled: bool) -> dict[str, Callable[[], object]]:
    baselines: dict[str, Callable[[], object]] = {}
    size = (g.shape[2], g.shape[3])
    if compiled:
        from torch._functorch import config

        config.donated_buffer = False  # the graph is walked many times
    forms = {
        "torchvision": torchvision_op(),
        "eager": plain,
        "torch.compile": torch.compile(plain) if compiled else None,
    }
    for label, form in forms.items():
        if form is None:
            continue
        wanted = maps.detach().requires_grad_()
        crops = form(wanted, boxes, size, SCALE, RATIO, True) if label == "torchvision" else form(wanted, boxes, size)
        baselines[label] = lambda c=crops, w=wanted: torch.autograd.grad(c, w, g, retain_graph=True)
    return baselines


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Each shape forward and backward."""
    for shape, count, size in SHAPES:
        rng = torch.Generator().manual_seed(0)
        maps = torch.rand(shape, generator=rng).to(options.device, options.dtype)
        boxes = people_boxes(count, shape[0], *shape[2:]).to(options.device)
        g = torch.rand(count, shape[1], *size, generator=rng).to(options.device, options.dtype)
        moved = (maps.numel() + g.numel()) * maps.element_size()
        title = f"{list(shape)}, {count} boxes to {size[0]}x{size[1]}, {str(options.dtype).removeprefix('torch.')}"
        if gather.available() and maps.device.type == "cpu" and maps.dtype == torch.float32 and library.core():
            yield from kernel_cases(title, maps, boxes, g, moved)
        forward = lambda m=maps, b=boxes, s=size: roi_align(m, b, s, SCALE, RATIO)  # noqa: E731
        torch.testing.assert_close(forward(), plain(maps, boxes, size), rtol=1e-2, atol=1e-3)
        yield Case(
            f"{title}, forward, fresh", forward, forward_baselines(maps, boxes, size, not options.no_compile), moved
        )
        wanted = maps.detach().requires_grad_()
        crops = roi_align(wanted, boxes, size, SCALE, RATIO)
        backward = lambda c=crops, w=wanted, g=g: torch.autograd.grad(c, w, g, retain_graph=True)  # noqa: E731
        yield Case(
            f"{title}, backward, fresh", backward, backward_baselines(maps, boxes, g, not options.no_compile), moved
        )


def main(argv: Sequence[str] | None = None) -> None:
    options = options_from(argv, __doc__.splitlines()[0])
    run("roi_align", cases(options), options)
