"""Crops of persons, ready for a network: the device half of top-down data.

Nothing here touches a pixel except `ops.crop_warp`, so the same code serves CPU and GPU; blur, noise and cut-outs of
augmentation come after it (`inputs.looks`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from posekd import geometry, ops
from posekd.codecs.heatmaps import STRIDE
from posekd.data.loading.teacher_maps import dequantise
from posekd.inputs.looks import change_looks, colors_of
from posekd.inputs.warp import warp
from posekd.structures import CachedMaps, CropBatch, InputSpec, PackedCropBatch

BEND_FROM = 0.1  # share of a peak, see `unzoom_peaks`


def prepare_crops(
    packed: PackedCropBatch,
    spec: InputSpec,
    flip_permutation: Sequence[int] | Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> CropBatch:
    """Crops a packed batch on the device where it is.

    Args:
        packed: B persons; the matrices follow from its centres, scales and draws.
        spec: size, normalisation and colour order of the network.
        flip_permutation: K keypoint indices that a mirror exchanges.
        dtype: of the images.
        memory_format: of the images.

    Returns:
        B normalised crops with keypoints in crop pixels. Keypoints of mirrored persons are exchanged; visibility is
        kept, and an unlabelled keypoint is (0, 0, 0).
    """
    matrices = packed.matrices(spec.size)
    images = warp(
        packed.pixels, matrices, spec, spec.size,
        color=colors_of(packed.looks), dtype=dtype, memory_format=memory_format,
    )  # fmt: skip
    images = change_looks(images, packed.looks, spec)
    keypoints = geometry.transform_keypoints(packed.keypoints, geometry.invert_matrices(matrices))
    keypoints = geometry.swap_flipped(keypoints, packed.flips, flip_permutation)
    teacher_maps = None
    if packed.teacher is not None:
        teacher_maps = warp_maps(packed.teacher, packed.flips, matrices, spec.size, flip_permutation)
    return CropBatch(
        images=images,
        keypoints=torch.where(keypoints[..., 2:] > 0, keypoints, 0.0),
        matrices=matrices,
        box_scores=packed.box_scores,
        boxes=packed.boxes,
        areas=(packed.scales * packed.zooms[:, None]).prod(-1),
        image_ids=packed.image_ids,
        sample_ids=packed.sample_ids,
        teacher_maps=teacher_maps,
        teacher_tokens=[] if packed.teacher is None else [tokens.float() for tokens in packed.teacher.tokens],
        pixels=packed.pixels,
    )


def warp_maps(
    teacher: CachedMaps,
    flips: Tensor,
    matrices: Tensor,
    size: tuple[int, int],
    flip_permutation: Sequence[int] | Tensor,
) -> Tensor:
    """A cached teacher's heatmaps of augmented crops: warped like the images, left and right exchanged if mirrored.

    Args:
        teacher: maps of B persons.
        flips: bool `[B]`, whether augmentation mirrors the person.
        matrices: `[B, 2, 3]`, crop pixel to image pixel.
        size: `(height, width)` of the crops.
        flip_permutation: K keypoint indices that a mirror exchanges.

    Returns:
        float32 `[B, K, height / 4, width / 4]`; what lies outside the cached crop is 0.
    """
    inverse = geometry.invert_matrices(teacher.matrices)
    moves = geometry.compose_matrices(inverse, geometry.heatmap_matrices(matrices, STRIDE))
    cached = dequantise(teacher.maps, teacher.ranges)
    maps = ops.crop_warp(cached, moves, (size[0] // STRIDE, size[1] // STRIDE))
    maps = unzoom_peaks(maps, cached.amax((2, 3), keepdim=True), moves)
    order = torch.as_tensor(flip_permutation, device=maps.device)
    return torch.where(flips[:, None, None, None], maps[:, order], maps)


def unzoom_peaks(maps: Tensor, peaks: Tensor, moves: Tensor) -> Tensor:
    """Restores the width of the peaks of zoomed heatmaps: a teacher draws the same width in every crop.

    A Gaussian that is z times as wide has its old width when it is raised to the power z^2, relative to its peak. What
    is below `BEND_FROM` of the peak is scaled by one factor instead, so that the background stays as low as it is.

    Args:
        maps: `[B, K, h, w]`, warped by `moves`.
        peaks: `[B, K, 1, 1]`, the largest value of each map before it was warped.
        moves: `[B, 2, 3]`, pixel of `maps` to pixel of the map before.
    """
    determinants = moves[:, 0, 0] * moves[:, 1, 1] - moves[:, 0, 1] * moves[:, 1, 0]
    zoomed = 1 / determinants.abs().clamp_min(1e-6)  # z^2
    share = (maps / peaks.clamp_min(1e-6)).clamp(BEND_FROM, 1)
    return maps * share ** (zoomed - 1)[:, None, None, None]
