"""ROIAlign: crops of feature maps, bilinear samples averaged over bins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from posekd.ops import checks, library
from posekd.ops.reference import roi_align as definition

MAX_SAMPLING_RATIO = 1024
MANY_SMALL = 64  # bins of a crop up to which a GPU's backward kernel may want its gradient channels last
FEW_BOXES = 64  # up to here Python reads them faster than tensor operations do
_NUMBERS = "int height, int width, float spatial_scale, int sampling_ratio, bool aligned"


def coordinates(maps: Tensor, boxes: Tensor) -> Tensor:
    """Boxes as the kernels want them: never in half precision."""
    return library.dense(boxes, torch.float64 if maps.dtype == torch.float64 else torch.float32)


def check_image_index(boxes: Tensor, images: int) -> None:
    """Refuses boxes on images that are not there. On the CPU only: on a GPU it would have to wait for the device."""
    if not boxes.is_cpu or library.emulated():
        return
    if boxes.shape[0] <= FEW_BOXES:
        for box in boxes.tolist():
            if not -1 < box[0] < images:
                break
        else:
            return
    finite = boxes.isfinite().all(1)
    wrong = finite & ~((boxes[:, 0] > -1) & (boxes[:, 0] < images))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        there = f"there are {images} images (0 to {images - 1})" if images else "there are no images"
        raise ValueError(f"boxes[{row}] is on image {boxes[row, 0].item():g}, but {there}")


def fits_device(size: Sequence[int], boxes: Tensor, height: int, width: int) -> bool:
    """Whether the tables of a box and the rows in work fit a block's shared memory (as in roi_align_device.cuh)."""
    N, C, H, W = (int(n) for n in size)
    words = 6 * (height + width) + 3 * (H + W) + 16 + 16 * (W + width) + max(8192, W)
    words += 256  # what the kernels declare beside it
    available = 99 * 1024
    if boxes.device.type == "cuda":
        properties = torch.cuda.get_device_properties(boxes.device)
        available = getattr(properties, "shared_memory_per_block_optin", 48 * 1024)
    return 4 * words <= available and max(N, C) <= 65535  # of which a grid has no more


def supports(size: Sequence[int], dtype: torch.dtype, boxes: Tensor, height: int, width: int) -> bool:
    """Whether the kernels take maps of `size`: not float64 on a GPU; nothing empty, for which there is no launch."""
    if 0 in size or boxes.shape[0] == 0:
        return False
    return not library.on_device(boxes) or (dtype != torch.float64 and fits_device(size, boxes, height, width))


def _forward_supports(maps: Tensor, boxes: Tensor, height: int, width: int, *rest: Any) -> bool:
    return supports(maps.shape, maps.dtype, boxes, height, width)


def _backward_supports(upstream: Tensor, boxes: Tensor, size: Sequence[int], *rest: Any) -> bool:
    _, _, height, width = upstream.shape
    return supports(size, upstream.dtype, boxes, height, width)


def _tables(like: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Where a GPU's kernels write down the pixels that each box reads (csrc/roi_align/roi_align.h, `scratch`)."""
    return like.new_empty((boxes.shape[0] * (8 * (height + width) + 1),), dtype=torch.int32)


def _forward_kernel(
    maps: Tensor, boxes: Tensor, height: int, width: int, scale: float, ratio: int, aligned: bool
) -> Tensor:
    check_image_index(boxes, maps.shape[0])
    boxes, pixels = coordinates(maps, boxes), height * width
    R, C = boxes.shape[0], maps.shape[1]
    crops = maps.new_empty_strided((R, C, height, width), (C * pixels, pixels, width, 1))
    scratch = _tables(maps, boxes, height, width) if library.on_device(maps) else None
    library.core().roi_align_forward(maps.contiguous(), boxes, crops, scale, ratio, aligned, library.threads(), scratch)
    return crops


def _forward_reference(
    maps: Tensor, boxes: Tensor, height: int, width: int, scale: float, ratio: int, aligned: bool
) -> Tensor:
    check_image_index(boxes, maps.shape[0])
    return definition.roi_align(maps, coordinates(maps, boxes), (height, width), scale, ratio, aligned)


def _forward_fake(maps: Tensor, boxes: Tensor, height: int, width: int, *rest: Any) -> Tensor:
    return maps.new_empty((boxes.shape[0], maps.shape[1], height, width))


def _backward_kernel(
    upstream: Tensor, boxes: Tensor, size: Sequence[int], scale: float, ratio: int, aligned: bool
) -> Tensor:
    N, C, H, W = size
    gradient = upstream.new_empty_strided((N, C, H, W), (C * H * W, H * W, W, 1))
    scratch = turned = None
    if library.on_device(upstream):
        height, width = upstream.shape[2:]
        scratch = _tables(upstream, boxes, height, width)
        turned = upstream.new_empty(upstream.shape) if height * width <= MANY_SMALL else None
    library.core().roi_align_backward(
        gradient, coordinates(upstream, boxes), upstream.contiguous(), scale, ratio, aligned, library.threads(),
        scratch, turned,
    )  # fmt: skip
    return gradient


def _backward_reference(
    upstream: Tensor, boxes: Tensor, size: Sequence[int], scale: float, ratio: int, aligned: bool
) -> Tensor:
    N, C, H, W = size
    return definition.roi_align_backward(upstream, coordinates(upstream, boxes), (N, C, H, W), scale, ratio, aligned)


_forward = library.define(
    f"roi_align(Tensor input, Tensor boxes, {_NUMBERS}) -> Tensor",
    kernel=_forward_kernel,
    reference=_forward_reference,
    fake=_forward_fake,
    supports=_forward_supports,
)
_backward = library.define(
    "roi_align_backward(Tensor upstream, Tensor boxes, SymInt[] size, float spatial_scale, int sampling_ratio, "
    "bool aligned) -> Tensor",
    kernel=_backward_kernel,
    reference=_backward_reference,
    fake=lambda upstream, boxes, size, *rest: upstream.new_empty(tuple(size)),
    supports=_backward_supports,
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    maps, boxes = inputs[:2]
    ctx.save_for_backward(boxes)
    ctx.rest = maps.shape, *inputs[4:]


def _gradient(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    return _backward(upstream, *ctx.saved_tensors, *ctx.rest), None, None, None, None, None, None


library.differentiable("roi_align", _gradient, _setup)
library.no_double_backward("roi_align_backward")


def as_table(boxes: Tensor | Sequence[Tensor], maps: Tensor, name: str = "input") -> Tensor:
    """Checks boxes for `maps`, the argument `name`, and turns a list of `[R_i, 4]` into `[R, 5]`, image index first."""
    if isinstance(boxes, Tensor):
        if boxes.ndim == 2 and boxes.shape[1] == 5 and boxes.dtype in checks.FLOATS and boxes.device == maps.device:
            return checks.constant(boxes)  # nearly always
        checks.check_tensor("boxes", boxes, "R 5")
        if boxes.shape[1] != 5:
            raise ValueError(
                f"boxes must be [R, 5] (image, x1, y1, x2, y2) or a list of [R_i, 4], got {tuple(boxes.shape)}"
            )
        checks.check_device("boxes", boxes, maps, name)
        return checks.constant(boxes)
    if not isinstance(boxes, Sequence):
        raise TypeError(f"boxes must be a tensor [R, 5] or a list of tensors [R_i, 4], got {type(boxes).__name__}")
    if len(boxes) != maps.shape[0]:
        raise ValueError(f"boxes is a list of {len(boxes)}, but {name} holds {maps.shape[0]} images: one each")
    rows = [maps.new_zeros((0, 5), dtype=torch.float32)]
    for i, own in enumerate(boxes):
        checks.check_tensor(f"boxes[{i}]", own, "R 4")
        checks.check_shape(f"boxes[{i}]", own, (own.shape[0], 4), "(x1, y1, x2, y2) rows")
        checks.check_device(f"boxes[{i}]", own, maps, name)
        wide = own.detach().to(torch.promote_types(own.dtype, torch.float32))
        rows.append(torch.cat([wide.new_full((own.shape[0], 1), i), wide], 1))
    return torch.cat(rows)


def check_sampling(spatial_scale: float, sampling_ratio: int) -> None:
    """Checks the two numbers that say where samples lie."""
    checks.check_positive("spatial_scale", spatial_scale)
    if type(sampling_ratio) is int and sampling_ratio <= MAX_SAMPLING_RATIO:
        return  # nearly always
    if not checks.is_whole(sampling_ratio):
        raise TypeError(f"sampling_ratio must be a whole number, got {type(sampling_ratio).__name__}")
    if sampling_ratio > MAX_SAMPLING_RATIO:
        raise ValueError(f"sampling_ratio must be at most {MAX_SAMPLING_RATIO}, got {sampling_ratio}")


def roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """Crops boxes out of feature maps, each resized to `output_size` (ROIAlign of Mask R-CNN, average pooling).

    **The default is `aligned=True`; torchvision's is False.** Pass `aligned=False` for what `torchvision.ops.roi_align`
    gives by default; with the same `aligned` the two are equal. The pooling is always the average, as torchvision's:
    there is no `pool_mode` (mmcv's argument), and so no maximum.

    A bin's value is the mean of `sampling_ratio`^2 bilinear samples (`ceil(bin size)` per axis if it is 0 or negative);
    a sample more than one pixel outside the map counts as 0; a box is at least 1 pixel wide only if not `aligned`. An
    inverted box gives a mirrored crop (zeros with adaptive sampling, also where torchvision's CPU kernel fails). A box
    with a coordinate that is not finite gives zeros.

    The gradient goes to `input` alone. It is deterministic, on CUDA too: no atomics. Coordinates and sums are float32
    for half inputs (float64 for float64). A bin takes at most 2^20 samples per axis.

    Args:
        input: `[N, C, H, W]`, float32, float16, bfloat16 or float64.
        boxes: `[R, 5]` (image index, x1, y1, x2, y2), or a list of N tensors `[R_i, 4]`; input-image pixels, that is
            `1 / spatial_scale` per map pixel. On CUDA a box on an image that is not there gives zeros.
        output_size: height and width of a crop, or one number for both.
        spatial_scale: map pixels per box pixel.
        sampling_ratio: samples per bin along each axis; 0: as many as the bin has pixels, rounded up.
        aligned: pixel centres at half-integers, so that a box of whole pixels copies them.

    Returns:
        `[R, C, height, width]` in input's dtype, contiguous.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: a wrong shape, size, scale or device; on the CPU, a box on an image that is not there.

    Examples:
        >>> import torch
        >>> from posekd.ops import roi_align
        >>> features = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> boxes = torch.tensor([[0.0, 1.0, 1.0, 3.0, 3.0]])  # image, x1, y1, x2, y2
        >>> roi_align(features, boxes, 2).tolist()
        [[[[5.0, 6.0], [9.0, 10.0]]]]
        >>> roi_align(torch.rand(2, 8, 64, 48), [boxes[:, 1:], boxes[:, 1:]], (7, 5), spatial_scale=1 / 4).shape
        torch.Size([2, 8, 7, 5])
    """
    checks.check_tensor("input", input, "N C H W")
    if type(output_size) is int and output_size > 0:  # often, and quickly seen
        height = width = output_size
    else:
        size: Any = (output_size, output_size) if checks.is_whole(output_size) else output_size
        checks.check_size("output_size", size)
        height, width = map(int, size)
    check_sampling(spatial_scale, sampling_ratio)
    table = as_table(boxes, input)
    return _forward(input, table, height, width, float(spatial_scale), int(sampling_ratio), bool(aligned))
