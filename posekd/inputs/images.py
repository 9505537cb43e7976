"""Whole images, ready for a network that sees all people at once: the device half of bottom-up data.

Pixels, keypoints and masks are moved by matrices, as for crops. Masks follow HigherHRNet-Human-Pose-Estimation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from posekd import geometry, ops
from posekd.codecs.tagged_heatmaps import STRIDES
from posekd.inputs.looks import change_looks, colors_of
from posekd.inputs.warp import warp
from posekd.structures import ImageBatch, InputSpec, PackedImageBatch


def share_inside(image_sizes: Tensor, matrices: Tensor, size: tuple[int, int]) -> Tensor:
    """The share of each bilinear sample that lies inside the image, 0..1, float32 `[B, *size]`.

    Args:
        image_sizes: int64 `[B, 2]`, heights and widths.
        matrices: `[B, 2, 3]`, output pixel to image pixel.
        size: `(height, width)` of the output.
    """
    y, x = (torch.arange(side, device=matrices.device, dtype=torch.float32) for side in size)
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    points = grid @ matrices[:, None, :, :2].transpose(-1, -2) + matrices[:, None, None, :, 2]
    limits = image_sizes.flip(1)[:, None, None]  # width, height
    return torch.minimum(points + 1, limits - points).clamp(0, 1).prod(-1)


def valid_masks(packed: PackedImageBatch, matrices: Tensor, size: tuple[int, int]) -> Tensor:
    """The pixels that count in a loss, bool `[B, *size]`: inside the image and outside ignored regions.

    HigherHRNet warps the mask of valid pixels bilinearly, with nothing beyond the image, and takes what is above 1/2.
    Bilinear sampling is linear, so that mask is the share of the sample that lies in the image, less that in ignored
    regions: only these need to be sent and warped.

    Args:
        packed: the images.
        matrices: `[B, 2, 3]`, output pixel to image pixel.
        size: `(height, width)` of the output.
    """
    share = share_inside(packed.image_sizes, matrices, size)
    if len(packed.mask_rows):
        masks = packed.masks
        rectangles = ops.PackedImages(masks.data, masks.offsets, masks.shapes, channels=1)
        own = geometry.translate_matrices(matrices[packed.mask_rows], -masks.origins[masks.index])
        ignored = ops.crop_warp(rectangles, own, size, image_index=masks.index)[:, 0]
        share = share.index_add(0, packed.mask_rows, -ignored)
    return share > 0.5


def prepare_images(
    packed: PackedImageBatch,
    spec: InputSpec,
    flip_permutation: Sequence[int] | Tensor,
    strides: Sequence[int] = STRIDES,
    *,
    boxes: bool = False,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> ImageBatch:
    """Turns a packed batch into network inputs and labels, on the device where it is.

    Args:
        packed: B images with their draws.
        spec: size, normalisation and colour order of the network.
        flip_permutation: K keypoint indices that a mirror exchanges.
        strides: input pixels per pixel of each output resolution.
        boxes: make people's boxes, too.
        dtype: of the images.
        memory_format: of the images.

    Returns:
        B normalised images; keypoints and masks for each output resolution. Keypoints of mirrored images are exchanged,
        an unlabelled keypoint is (0, 0, 0).
    """
    matrices = packed.matrices(spec.size)
    colors = colors_of(packed.looks)
    images = warp(packed.pixels, matrices, spec, spec.size, color=colors, dtype=dtype, memory_format=memory_format)
    images = change_looks(images, packed.looks, spec)
    keypoints, masks = [], []
    for stride in strides:
        size = (spec.size[0] // stride, spec.size[1] // stride)
        output = packed.matrices(size)
        points = geometry.transform_keypoints(packed.keypoints, geometry.invert_matrices(output)[:, None])
        points = geometry.swap_flipped(points, packed.flips, flip_permutation)
        keypoints.append(torch.where(points[..., 2:] > 0, points, 0.0))
        masks.append(valid_masks(packed, output, size))
    found = people_boxes(packed, matrices, spec.size) if boxes else None
    return ImageBatch(
        images, keypoints, masks, matrices, packed.image_ids, boxes=found, pixels=packed.pixels, colors=colors
    )


def people_boxes(packed: PackedImageBatch, matrices: Tensor, size: tuple[int, int]) -> Tensor:
    """The boxes of people within the input, float32 `[B, P, 4]` (x1, y1, x2, y2) in its pixels.

    A box is the upright hull of the person's outline as augmentation has turned it, clipped to the input's pixels;
    zeros for somebody of whom less than a pixel's width or height is left.

    Args:
        packed: the images.
        matrices: `[B, 2, 3]`, input pixel to image pixel.
        size: `(height, width)` of the input.
    """
    outlines = geometry.transform_keypoints(packed.outlines, geometry.invert_matrices(matrices)[:, None])
    last = outlines.new_tensor([size[1] - 1.0, size[0] - 1.0])
    low, high = (corner.clamp(min=0).minimum(last) for corner in (outlines.amin(2), outlines.amax(2)))
    seen = (high - low).amin(-1, keepdim=True) >= 1
    return torch.where(seen, torch.cat((low, high), -1), 0.0)
