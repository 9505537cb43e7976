"""Batched crops: scale, rotation, mirror, border, normalisation, type and layout in one pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posekd.ops import checks, library
from posekd.ops.reference import crop_warp as definition

MAX_NORMALISED = 32  # channels; as in csrc/crop_warp/crop_warp.h


@dataclass(frozen=True)
class PackedImages:
    """Images of different sizes in one buffer.

    Attributes:
        pixels: uint8 `[bytes]`.
        offsets: int64 `[N]`, the first byte of each image.
        shapes: int64 `[N, 3]`, height, width and channels of each; its pixels are HWC without gaps.
        channels: of every image, 1 or 3 (stated, so that no device must be asked).

    Examples:
        >>> import torch
        >>> from posekd.ops import PackedImages
        >>> images = [torch.zeros(4, 6, 3, dtype=torch.uint8), torch.zeros(2, 5, 3, dtype=torch.uint8)]
        >>> packed = PackedImages.from_list(images)
        >>> packed.pixels.shape
        torch.Size([102])
        >>> packed.offsets.tolist(), packed.shapes.tolist()
        ([0, 72], [[4, 6, 3], [2, 5, 3]])
    """

    pixels: Tensor
    offsets: Tensor
    shapes: Tensor
    channels: int = 3

    @classmethod
    def from_list(cls, images: Sequence[Tensor]) -> PackedImages:
        """Copies uint8 HWC images of equal channel count into one buffer on their device."""
        channels = _check_list(images)
        device = images[0].device
        sizes = torch.tensor([image.numel() for image in images], dtype=torch.int64)
        shapes = torch.tensor([image.shape for image in images], dtype=torch.int64)
        pixels = torch.cat([image.reshape(-1) for image in images])
        return cls(pixels, (sizes.cumsum(0) - sizes).to(device), shapes.to(device), channels)


# The op's arguments. `images` holds either one packed buffer (then offsets and shapes are given), or the images of
# a list, or one float tensor [N, C, H, W].
_SCHEMA = (
    "Tensor[] images, Tensor? offsets, Tensor? shapes, Tensor matrices, Tensor? image_index, Tensor? color, "
    "int channels, int height, int width, float[]? mean, float[]? std, ScalarType dtype, bool channels_last"
)


def _empty(matrices: Tensor, channels: int, height: int, width: int, dtype: torch.dtype, last: bool) -> Tensor:
    layout = torch.channels_last if last else torch.contiguous_format
    shape = (matrices.shape[0], channels, height, width)
    return torch.empty(shape, dtype=dtype, device=matrices.device, memory_format=layout)


def _result(*args: Any) -> Tensor:
    """The empty result for the op's arguments."""
    matrices, channels, height, width, dtype, last = args[3], *args[6:9], *args[11:13]
    return _empty(matrices, channels, height, width, dtype, last)


def _addresses(images: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Where the images of a list lie, and their shapes, as the core wants them."""
    addresses = torch.tensor([image.data_ptr() for image in images], dtype=torch.int64)
    shapes = torch.tensor([image.shape for image in images], dtype=torch.int64)
    return addresses.to(images[0].device), shapes.to(images[0].device)


def _numbers(scale: float, mean: list[float] | None, std: list[float] | None) -> tuple[list[float], list[float]]:
    """`(value * scale - mean) / std` as one factor and one summand per channel."""
    given = mean or std or []
    factors = [scale / s for s in std] if std else [scale] * len(given)
    summands = [-m / s for m, s in zip(mean, std or [1.0] * len(mean), strict=True)] if mean else [0.0] * len(given)
    return factors, summands


def _kernel_into(out: Tensor, fresh: bool, *args: Any) -> None:
    images, offsets, shapes, matrices, image_index, color, channels, _, _, mean, std, dtype, last = args
    images = list(images)
    if offsets is not None:
        images[0], offsets, shapes = images[0].contiguous(), offsets.contiguous(), shapes.contiguous()
    elif images[0].dtype == torch.uint8:
        images = [image.contiguous() for image in images]
        offsets, shapes = _addresses(images)
    byte_list = offsets is not None and args[1] is None
    is_bytes = images[0].dtype == torch.uint8
    if is_bytes and mean is None and std is None:
        mean = [0.0] * channels
    work = torch.float64 if dtype == torch.float64 else torch.float32
    library.core().crop_warp(
        None if byte_list else images[0], offsets, shapes, matrices.to(work).contiguous(),
        None if image_index is None else image_index.long().contiguous(),
        None if color is None else color.contiguous(),
        out, *_numbers(1 / 255 if is_bytes else 1.0, mean, std), last, fresh, library.threads(),
    )  # fmt: skip


def _reference(*args: Any) -> Tensor:
    images, offsets, shapes, matrices, image_index, color, channels, height, width, mean, std, dtype, last = args
    if offsets is not None:
        planes = definition.unpack(images[0], offsets, shapes, channels)
    elif images[0].dtype == torch.uint8:
        planes = [image.permute(2, 0, 1) for image in images]
    else:
        planes = list(images[0])
    matrices = matrices.to(torch.float64 if dtype == torch.float64 else torch.float32)
    crops = definition.crop_warp(planes, matrices, image_index, (height, width), channels, mean, std, dtype, color)
    return crops.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _kernel(*args: Any) -> Tensor:
    out = _result(*args)
    _kernel_into(out, True, *args)
    return out


def _reference_into(out: Tensor, *args: Any) -> None:
    out.copy_(_reference(*args))


def _supports(*args: Any) -> bool:
    """The device kernels have no float64; an empty batch has nothing to launch for."""
    images, matrices, channels, dtype = args[0], args[3], args[6], args[11]
    wide = dtype == torch.float64 or images[0].dtype == torch.float64
    return matrices.shape[0] * channels > 0 and not (wide and library.on_device(matrices))


_warp = library.define(
    f"crop_warp({_SCHEMA}) -> Tensor", kernel=_kernel, reference=_reference, fake=_result, supports=_supports
)
_warp_into = library.define(
    f"crop_warp_into(Tensor(a!) out, {_SCHEMA}) -> ()",
    kernel=lambda out, *args: _kernel_into(out, False, *args),
    reference=_reference_into,
    fake=lambda out, *args: None,
    supports=lambda out, *args: _supports(*args),
)


def crop_warp(
    images: Sequence[Tensor] | PackedImages | Tensor,
    matrices: Tensor,
    size: tuple[int, int],
    *,
    image_index: Tensor | None = None,
    color: Tensor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    out: Tensor | None = None,
) -> Tensor:
    """Cuts M crops out of N images by affine matrices, bilinearly, with a border of zeros.

    Output pixel (x, y) is sampled at `matrix @ (x, y, 1)`, integers being pixel centres, which is
    `cv2.warpAffine` with `WARP_INVERSE_MAP`. Each of the four neighbours that lies outside the image
    contributes zero. `color`, if given, then mixes red, green and blue. Bytes are divided by 255; then
    `(value - mean) / std`, so that a zero pixel of the border becomes `-mean / std`. A crop whose matrix is not
    finite, whose index names no image, or whose image reaches beyond the packed buffer, consists of zero pixels (on
    the CPU the last two are errors). There is no derivative, not even for float images.

    Args:
        images: a list of uint8 `[H, W, C]` tensors, or `PackedImages`, C = 1 or 3; or a float `[N, C, H, W]`
            tensor of any strides. Not-contiguous images of a list are copied; on a GPU a list is packed
            first, so a loop that counts microseconds hands over `PackedImages`.
        matrices: float32 (or float64) `[M, 2, 3]`, crop pixel to image pixel.
        size: `(height, width)` of the crops.
        image_index: int64 or int32 `[M]`, the image of each crop; None for crop m from image m.
        color: float32 `[M, 3, 4]`, of byte images of 3 channels: what a crop's sampled bytes (red, green, blue, 1),
            0 to 255, are multiplied by; the border's zeros too. The result is clamped to 0..255; NaN stays NaN.
            `posekd.data.color_matrix` composes such matrices.
        mean: C numbers in units of the scaled pixels, or None for 0.
        std: C numbers, or None for 1.
        dtype: of the crops. float64 for float64 images only.
        memory_format: `torch.contiguous_format` or `torch.channels_last` of the crops.
        out: a tensor to write into, with the shape, dtype and memory format of the result. A fresh buffer of
            some tens of megabytes costs more than the crops themselves: the kernel zeroes its pages.

    Returns:
        `[M, C, height, width]`.

    Raises:
        TypeError: a wrong type of tensor.
        ValueError: a wrong shape or value, mixed devices or channel counts.

    Examples:
        >>> import torch
        >>> from posekd.ops import crop_warp
        >>> images = [torch.full((40, 60, 3), 255, dtype=torch.uint8), torch.zeros(30, 20, 3, dtype=torch.uint8)]
        >>> half = torch.tensor([[2.0, 0.0, 10.0], [0.0, 2.0, 4.0]])  # from image pixel (10, 4), at half size
        >>> crops = crop_warp(images, half.expand(2, 2, 3), (16, 12))
        >>> crops.shape
        torch.Size([2, 3, 16, 12])
        >>> crops[:, 0, 0, 0].tolist()
        [1.0, 0.0]
    """
    if isinstance(images, Tensor):
        count, channels = _check_planes(images)
        parts: tuple[list[Tensor], Tensor | None, Tensor | None] = ([images.detach()], None, None)
    elif isinstance(images, PackedImages):
        count, channels = _check_packed(images)
        parts = ([images.pixels], images.offsets, images.shapes)
    else:
        channels, count = _check_list(images), len(images)
        parts = (list(images), None, None)
    _check_matrices(matrices, count, image_index, parts[0][0])
    _check_color(color, matrices, channels, parts[0][0].dtype)
    _check_output(size, channels, mean, std, dtype, memory_format)
    if dtype == torch.float64 and parts[0][0].dtype != torch.float64:
        raise TypeError(f"dtype float64 needs float64 images, got {parts[0][0].dtype}")
    arguments = (
        *parts, matrices, image_index, color, channels, int(size[0]), int(size[1]),
        None if mean is None else [float(m) for m in mean], None if std is None else [float(s) for s in std],
        dtype, memory_format == torch.channels_last,
    )  # fmt: skip
    if out is None:
        return _warp(*arguments)
    _check_out(out, (len(matrices), channels, int(size[0]), int(size[1])), dtype, memory_format, matrices)
    _warp_into(out, *arguments)
    return out


def _check_list(images: Sequence[Tensor]) -> int:
    """Checks a list of images and gives their channel count."""
    if not isinstance(images, Sequence) or isinstance(images, (str, bytes)):
        raise TypeError(f"images must be a list of tensors, PackedImages or a tensor, got {type(images).__name__}")
    if len(images) == 0:
        raise ValueError("images is an empty list: its channel count is unknown; pass PackedImages instead")
    for i, image in enumerate(images):
        if not isinstance(image, Tensor) or image.dtype != torch.uint8:
            found = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(f"images[{i}] must be a uint8 tensor, got {found}")
        if image.ndim != 3 or image.shape[2] not in (1, 3):
            raise ValueError(f"images[{i}] must be [H, W, C] with C = 1 or 3, got shape {tuple(image.shape)}")
        if image.shape[2] != images[0].shape[2]:
            raise ValueError(
                f"images[{i}] has {image.shape[2]} channels, images[0] {images[0].shape[2]}; "
                "crop them in two calls, or repeat the single channel"
            )
        if image.device != images[0].device:
            raise ValueError(f"images[{i}] is on {image.device}, images[0] on {images[0].device}")
    return images[0].shape[2]


def _check_planes(images: Tensor) -> tuple[int, int]:
    if images.dtype == torch.uint8:
        raise TypeError("a tensor of images must be of a float type, got uint8; pass a list of [H, W, C] tensors")
    checks.check_tensor("images", images, "N C H W")
    return images.shape[0], images.shape[1]


def _check_packed(images: PackedImages) -> tuple[int, int]:
    pixels, offsets, shapes = images.pixels, images.offsets, images.shapes
    if pixels.dtype != torch.uint8 or offsets.dtype != torch.int64 or shapes.dtype != torch.int64:
        raise TypeError(
            "PackedImages needs uint8 pixels and int64 offsets and shapes, "
            f"got {pixels.dtype}, {offsets.dtype} and {shapes.dtype}"
        )
    if pixels.ndim != 1 or offsets.ndim != 1 or shapes.shape != (len(offsets), 3):
        raise ValueError(
            "PackedImages needs pixels [bytes], offsets [N] and shapes [N, 3], got shapes "
            f"{tuple(pixels.shape)}, {tuple(offsets.shape)} and {tuple(shapes.shape)}"
        )
    if offsets.device != pixels.device or shapes.device != pixels.device:
        raise ValueError(
            f"PackedImages on mixed devices: pixels {pixels.device}, offsets {offsets.device}, shapes {shapes.device}"
        )
    if images.channels not in (1, 3):
        raise ValueError(f"PackedImages.channels must be 1 or 3, got {images.channels}")
    if pixels.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_regions(images)
    return len(offsets), images.channels


def _check_regions(images: PackedImages) -> None:
    """On the CPU, where values can be read without waiting, refuses images outside the buffer."""
    shapes, ends = images.shapes, images.offsets + images.shapes.prod(1)
    wrong = (images.offsets < 0) | (shapes < 0).any(1) | (ends > images.pixels.numel())
    if wrong.any():
        i = int(wrong.nonzero()[0])
        raise ValueError(
            f"packed image {i} of shape {shapes[i].tolist()} at byte {int(images.offsets[i])} reaches outside "
            f"the buffer of {images.pixels.numel()} bytes"
        )
    other = shapes[:, 2] != images.channels
    if other.any():
        i = int(other.nonzero()[0])
        raise ValueError(
            f"packed image {i} has {int(shapes[i, 2])} channels, PackedImages.channels says {images.channels}"
        )


def _check_matrices(matrices: Tensor, count: int, image_index: Tensor | None, images: Tensor) -> None:
    checks.check_tensor("matrices", matrices, "M 2 3", (torch.float32, torch.float64))
    checks.check_shape("matrices", matrices, (len(matrices), 2, 3), "M affine matrices")
    checks.check_device("matrices", matrices, images, "images")
    if image_index is None:
        if len(matrices) != count:
            raise ValueError(f"{len(matrices)} matrices for {count} images: give image_index to say which is whose")
        return
    checks.check_tensor("image_index", image_index, "M", (torch.int64, torch.int32))
    checks.check_shape("image_index", image_index, (len(matrices),), "matrices")
    checks.check_device("image_index", image_index, images, "images")
    if images.device.type == "cpu" and image_index.numel() and not torch.compiler.is_compiling():
        low, high = int(image_index.min()), int(image_index.max())
        if low < 0 or high >= count:
            raise ValueError(f"image_index must lie in 0..{count - 1}, got {low if low < 0 else high}")


def _check_color(color: Tensor | None, matrices: Tensor, channels: int, dtype: torch.dtype) -> None:
    if color is None:
        return
    checks.check_tensor("color", color, "M 3 4", (torch.float32,))
    checks.check_shape("color", color, (len(matrices), 3, 4), "matrices: a 3x4 matrix for each crop")
    checks.check_device("color", color, matrices, "matrices")
    if dtype != torch.uint8 or channels != 3:
        raise ValueError(
            f"color mixes red, green and blue bytes: images must be uint8 of 3 channels, got {dtype} of {channels}"
        )


def _check_output(
    size: tuple[int, int],
    channels: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> None:
    checks.check_size("size", size)
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != channels:
            raise ValueError(f"{name} has {len(values)} numbers for {channels} channels: {tuple(values)}")
    if (mean is not None or std is not None) and channels > MAX_NORMALISED:
        raise ValueError(f"mean and std work for up to {MAX_NORMALISED} channels, the images have {channels}")
    if std is not None and any(value == 0 or not math.isfinite(value) for value in std):
        raise ValueError(f"std must be finite and not zero, got {tuple(std)}")
    checks.check_dtype("dtype", dtype)
    if memory_format not in (torch.contiguous_format, torch.channels_last):
        raise ValueError(f"memory_format must be contiguous_format or channels_last, got {memory_format}")


def _check_out(
    out: Tensor, shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format, like: Tensor
) -> None:
    checks.check_tensor("out", out, "M C H W", (dtype,))
    checks.check_shape("out", out, shape, "the crops")
    checks.check_device("out", out, like, "matrices")
    if not out.is_contiguous(memory_format=memory_format):
        raise ValueError(f"out must be dense in {memory_format}, got strides {out.stride()}")
