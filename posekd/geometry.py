"""Coordinates: box to crop, crop to image, heatmap to image. All follow HRNet's conventions.

Pixels are integer indices: the pixel in column 3 has x = 3. A heatmap coordinate is the input coordinate
divided by the stride, with no half-pixel shift. A crop is the three-point similarity of HRNet's
`get_affine_transform`: the output point (W/2, H/2) lies on the crop's centre, and the scale follows from the
crop's width alone::

    image = center + R(rotation) (out - (W/2, H/2)) (scale_w / W)

Every matrix maps the OUTPUT (crop, heatmap) pixel to the INPUT (image) pixel, which is what a warp needs.
Everything is computed in float64 and returned in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PADDING = 1.25  # deep-high-resolution-net, lib/dataset/coco.py: scale * 1.25


def box_to_center_scale(boxes: Tensor, size: tuple[int, int], padding: float = PADDING) -> tuple[Tensor, Tensor]:
    """Grows boxes to the aspect ratio of the crop and pads them.

    The shorter side is stretched about the centre, then both are multiplied by `padding`. The scale is in
    pixels; HRNet's own is the same divided by 200.

    Args:
        boxes: `[..., 4]` (x, y, width, height) in image pixels.
        size: `(height, width)` of the crop in pixels; only its aspect ratio matters.
        padding: factor on both sides, applied after the aspect ratio.

    Returns:
        centers `[..., 2]` (x, y) and scales `[..., 2]` (width, height), float32, in image pixels.

    Raises:
        ValueError: boxes that do not end in 4, or a size that is not positive.
    """
    _check_size(size)
    if boxes.ndim < 1 or boxes.shape[-1] != 4:
        raise ValueError(f"boxes must be [..., 4] (x, y, width, height), got {tuple(boxes.shape)}")
    x, y, w, h = boxes.to(torch.float64).unbind(-1)
    aspect = size[1] / size[0]
    centers = torch.stack((x + 0.5 * w, y + 0.5 * h), -1)
    scales = torch.stack((torch.maximum(w, h * aspect), torch.maximum(h, w / aspect)), -1) * padding
    return centers.float(), scales.float()


def crop_matrices(
    centers: Tensor,
    scales: Tensor,
    rotations: Tensor | None,
    flips: Tensor | None,
    size: tuple[int, int],
) -> Tensor:
    """Matrices from crop pixels to image pixels.

    HRNet mirrors the whole image and moves the centre to W - x - 1 before it crops. The crop of a mirrored
    image reads column W - 1 - x' where x' = W - 1 - center_x + d, which is center_x - d whatever W is: the
    offset d from the centre changes its sign, and the image itself need not be touched.

    Args:
        centers: `[B, 2]` (x, y) in image pixels.
        scales: `[B, 2]` (width, height) in image pixels; only the width counts.
        rotations: `[B]` degrees, or None for 0. Positive turns the sampled rectangle from +x towards +y.
        flips: bool `[B]`, whether the person is mirrored, or None for none.
        size: `(height, width)` of the crop in pixels.

    Returns:
        float32 `[B, 2, 3]`.

    Raises:
        ValueError: a wrong shape, or a size that is not positive.
    """
    _check_size(size)
    if centers.ndim != 2 or centers.shape[-1] != 2 or scales.shape != centers.shape:
        raise ValueError(
            f"centers and scales must both be [B, 2], got {tuple(centers.shape)} and {tuple(scales.shape)}"
        )
    center = centers.to(torch.float64)
    zoom = scales[:, 0].to(torch.float64) / size[1]
    angle = torch.zeros_like(zoom) if rotations is None else torch.deg2rad(rotations.to(torch.float64))
    mirror = torch.ones_like(zoom) if flips is None else 1.0 - 2.0 * flips.to(torch.float64)
    cos, sin = zoom * torch.cos(angle), zoom * torch.sin(angle)
    linear = torch.stack((mirror * cos, -mirror * sin, sin, cos), -1).view(-1, 2, 2)
    corner = center - linear[..., 0] * (size[1] / 2) - linear[..., 1] * (size[0] / 2)
    return torch.cat((linear, corner[..., None]), -1).float()


def invert_matrices(matrices: Tensor) -> Tensor:
    """Inverts affine matrices.

    Args:
        matrices: `[..., 2, 3]`.

    Returns:
        float32 `[..., 2, 3]`, with infinities or NaN where a matrix is singular (as in a division by zero).
    """
    _check_matrices(matrices)
    m = matrices.to(torch.float64)
    (a, b, x), (c, d, y) = m[..., 0, :].unbind(-1), m[..., 1, :].unbind(-1)
    top = torch.stack((d, -b, b * y - d * x), -1)
    bottom = torch.stack((-c, a, c * x - a * y), -1)
    return (torch.stack((top, bottom), -2) / (a * d - b * c)[..., None, None]).float()


def transform_keypoints(keypoints: Tensor, matrices: Tensor) -> Tensor:
    """Applies affine matrices to keypoints; the third column (visibility or score) is kept.

    Args:
        keypoints: `[..., K, 3]` or `[..., K, 2]`.
        matrices: `[..., 2, 3]`, one for each set of K points.

    Returns:
        Keypoints of the same shape, float32.
    """
    _check_matrices(matrices)
    if keypoints.ndim < 2 or keypoints.shape[-1] not in (2, 3):
        raise ValueError(f"keypoints must be [..., K, 2] or [..., K, 3], got {tuple(keypoints.shape)}")
    m = matrices.to(torch.float64)
    moved = keypoints[..., :2].to(torch.float64) @ m[..., :2].transpose(-1, -2) + m[..., None, :, 2]
    return torch.cat((moved.float(), keypoints[..., 2:].float()), -1)


def mirror_matrices(matrices: Tensor, flips: Tensor, width: int) -> Tensor:
    """Mirrors the output: where `flips` is true, pixel x of the result shows what pixel `width - 1 - x` showed.

    `crop_matrices` mirrors about the crop's centre W/2 (HRNet mirrors the image, and crops then); this mirrors the
    crop's pixels (HigherHRNet mirrors the crops, each resolution by itself).

    Args:
        matrices: `[B, 2, 3]`, output pixel to input pixel.
        flips: bool `[B]`.
        width: width of the output in pixels.
    """
    _check_matrices(matrices)
    m = matrices.to(torch.float64)
    column, corner = m[..., :1], m[..., 2:]
    mirrored = torch.cat((-column, m[..., 1:2], corner + column * (width - 1)), -1)
    return torch.where(flips[:, None, None], mirrored, m).float()


def translate_matrices(matrices: Tensor, offsets: Tensor) -> Tensor:
    """Adds `offsets` `[..., 2]` (x, y) to the coordinates that the matrices map to."""
    _check_matrices(matrices)
    shifted = matrices.to(torch.float64)[..., 2] + offsets.to(torch.float64)
    return torch.cat((matrices[..., :2].float(), shifted.float()[..., None]), -1)


def reduce_matrices(matrices: Tensor, reductions: Tensor) -> Tensor:
    """Matrices into images decoded at a fraction of their size, from those into the whole images.

    A pixel of an image decoded at 1 / r covers r x r pixels of the whole image, and the centres of both agree:
    x becomes (x + 1/2) / r - 1/2, also where the size is not a multiple of r.

    Args:
        matrices: `[..., 2, 3]`, output pixel to pixel of the whole image.
        reductions: `[...]`, r; a matrix with r = 1 is unchanged.
    """
    _check_matrices(matrices)
    m, r = matrices.to(torch.float64), reductions[..., None, None].to(torch.float64)
    return torch.cat((m[..., :2] / r, (m[..., 2:] + 0.5) / r - 0.5), -1).float()


def compose_matrices(outer: Tensor, inner: Tensor) -> Tensor:
    """The map that first applies `inner` `[..., 2, 3]`, then `outer` `[..., 2, 3]`; float32, same shape."""
    _check_matrices(outer)
    _check_matrices(inner)
    a, b = outer.to(torch.float64), inner.to(torch.float64)
    shift = a[..., :2] @ b[..., 2:] + a[..., 2:]
    return torch.cat((a[..., :2] @ b[..., :2], shift), -1).float()


def heatmap_matrices(matrices: Tensor, stride: float = 4.0) -> Tensor:
    """Matrices from heatmap pixels, given those from crop pixels; a heatmap pixel is `stride` crop pixels wide.

    Args:
        matrices: `[..., 2, 3]`, crop pixel to image pixel.
        stride: crop pixels per heatmap pixel.

    Returns:
        float32 `[..., 2, 3]`, heatmap pixel to image pixel.
    """
    _check_matrices(matrices)
    return torch.cat((matrices[..., :2] * stride, matrices[..., 2:]), -1).float()


def to_heatmap(keypoints: Tensor, stride: float = 4.0) -> Tensor:
    """Crop pixels to heatmap pixels: x / stride; the third column is kept. `[..., K, 3]`."""
    return torch.cat((keypoints[..., :2] / stride, keypoints[..., 2:]), -1)


def from_heatmap(keypoints: Tensor, stride: float = 4.0) -> Tensor:
    """Heatmap pixels to crop pixels: x * stride; the third column is kept. `[..., K, 3]`."""
    return torch.cat((keypoints[..., :2] * stride, keypoints[..., 2:]), -1)


def swap_flipped(keypoints: Tensor, flips: Tensor, permutation: Sequence[int] | Tensor) -> Tensor:
    """Exchanges left and right keypoints of mirrored persons: a mirrored left wrist is a right wrist.

    Args:
        keypoints: `[B, ..., K, 3]`, already at their mirrored positions.
        flips: bool `[B]`.
        permutation: K indices, as in `Skeleton.flip`.

    Returns:
        `[B, ..., K, 3]`.
    """
    if len(permutation) != keypoints.shape[-2]:
        raise ValueError(f"the flip permutation has {len(permutation)} entries for {keypoints.shape[-2]} keypoints")
    order = torch.as_tensor(permutation, device=keypoints.device)
    mirrored = flips.view(-1, *(1,) * (keypoints.ndim - 1))
    return torch.where(mirrored, keypoints.index_select(-2, order), keypoints)


def _check_size(size: tuple[int, int]) -> None:
    if len(size) != 2 or size[0] <= 0 or size[1] <= 0:
        raise ValueError(f"size must be (height, width), both positive, got {tuple(size)}")


def _check_matrices(matrices: Tensor) -> None:
    if matrices.ndim < 2 or matrices.shape[-2:] != (2, 3):
        raise ValueError(f"matrices must be [..., 2, 3], got {tuple(matrices.shape)}")
