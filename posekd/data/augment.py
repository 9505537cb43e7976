"""Augmentation as arithmetic on a crop: draws in the worker, warp and joints on the device.

The draws follow deep-high-resolution-net, lib/dataset/JointsDataset.py. Nothing here touches a pixel except
`ops.crop_warp`, so the same code serves CPU and GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from posekd import codecs
from posekd.structures import InputSpec, PackedBatch, PoseBatch

STRIDE = 4  # crop pixels a heatmap pixel, in all top-down networks here
BEND_FROM = 0.1  # share of a peak, see `unzoom_peaks`
HALF_BODY_PADDING = 1.5  # half_body_transform: scale * 1.5


@dataclass(frozen=True)
class Augmentation:
    """How training crops vary.

    Attributes:
        flip: probability of a mirror image.
        rotation: in degrees; the standard deviation of a normal draw, clipped at twice that, or the bounds of a
            uniform one.
        scale: of the zoom factor about 1; the standard deviation, clipped at one, or the bounds.
        distribution: of rotation and scale: `normal` as in HRNet's code, or `uniform` within the given ranges (FPD's
            paper: scale 0.75 to 1.25, rotation +-30 degrees).
        rotation_probability: share of crops that are rotated at all.
        half_body: probability of cropping to the upper or lower body, for persons with many joints.
        half_body_min_joints: only persons with more labelled joints than this are halved.
    """

    flip: float = 0.5
    rotation: float = 40.0
    scale: float = 0.3
    rotation_probability: float = 0.6
    half_body: float = 0.0
    half_body_min_joints: int = 8
    distribution: Literal["normal", "uniform"] = "normal"

    def __post_init__(self) -> None:
        if self.distribution not in ("normal", "uniform"):
            raise ValueError(f"distribution must be normal or uniform, got {self.distribution!r}")
        for name in ("flip", "rotation_probability", "half_body"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, in 0..1, got {getattr(self, name)}")
        if not 0 <= self.scale < 1:
            raise ValueError(f"scale must be in [0, 1): zooms span 1 - scale..1 + scale, got {self.scale}")
        if self.rotation < 0:
            raise ValueError(f"rotation is a spread in degrees and cannot be negative, got {self.rotation}")


class Draw(NamedTuple):
    """One person's augmentation: crop (pixels), rotation (degrees), zoom (factor on the scale), mirror."""

    center: np.ndarray
    scale: np.ndarray
    rotation: float = 0.0
    zoom: float = 1.0
    flip: bool = False


def draw(
    augmentation: Augmentation,
    rng: np.random.Generator,
    center: np.ndarray,
    scale: np.ndarray,
    keypoints: np.ndarray,
    size: tuple[int, int],
    upper_body: Sequence[int],
) -> Draw:
    """Draws one person's augmentation.

    Args:
        augmentation: the ranges.
        rng: consumed in a fixed order.
        center: `[2]` (x, y) of the crop from the box.
        scale: `[2]` (width, height) of it.
        keypoints: `[K, 3]` in image pixels.
        size: `(height, width)` of the crop.
        upper_body: joint indices of the upper half.
    """
    a = augmentation
    labelled = keypoints[:, 2] > 0
    if a.half_body > 0 and labelled.sum() > a.half_body_min_joints and rng.random() < a.half_body:
        # The official code compares a normal draw with 0.5: the upper half wins in 69 % of cases.
        half = half_body(keypoints, upper_body, size, upper=rng.standard_normal() < 0.5)
        center, scale = half or (center, scale)
    if a.distribution == "uniform":
        zoom, angle = float(rng.uniform(1 - a.scale, 1 + a.scale)), float(rng.uniform(-a.rotation, a.rotation))
    else:
        zoom = float(np.clip(1 + a.scale * rng.standard_normal(), 1 - a.scale, 1 + a.scale))
        angle = float(np.clip(a.rotation * rng.standard_normal(), -2 * a.rotation, 2 * a.rotation))
    rotation = angle if rng.random() < a.rotation_probability else 0.0
    return Draw(center, scale, rotation, zoom, bool(rng.random() < a.flip))


def half_body(
    keypoints: np.ndarray, upper_body: Sequence[int], size: tuple[int, int], *, upper: bool
) -> tuple[np.ndarray, np.ndarray] | None:
    """Crop around the labelled joints of one half of a body.

    Returns:
        center `[2]` and scale `[2]`, float32; None if fewer than two joints are there.
    """
    labelled = keypoints[:, 2] > 0
    is_upper = np.isin(np.arange(len(keypoints)), upper_body)
    upper_joints, lower_joints = keypoints[labelled & is_upper, :2], keypoints[labelled & ~is_upper, :2]
    if upper and len(upper_joints) > 2:
        chosen = upper_joints
    else:
        chosen = lower_joints if len(lower_joints) > 2 else upper_joints
    if len(chosen) < 2 or not np.ptp(chosen, axis=0).any():
        return None
    w, h = np.ptp(chosen, axis=0)
    aspect = size[1] / size[0]
    scale = np.array([max(w, h * aspect), max(h, w / aspect)]) * HALF_BODY_PADDING
    return chosen.mean(0).astype(np.float32), scale.astype(np.float32)


def image_matrices(packed: PackedBatch, size: tuple[int, int]) -> Tensor:
    """Matrices of a batch, crop pixel to original-image pixel, float32 `[B, 2, 3]`."""
    scales = packed.scales * packed.zooms[:, None]
    return codecs.crop_matrices(packed.centers, scales, packed.rotations, packed.flips, size)


def warp(
    packed: PackedBatch,
    matrices: Tensor,
    spec: InputSpec,
    size: tuple[int, int],
    *,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Cuts normalised crops out of packed images, in the network's colour order.

    Args:
        packed: regions of images, and which crop is cut from which.
        matrices: `[B, 2, 3]`, crop pixel to original-image pixel.
        spec: normalisation and colour order; its size is not read.
        size: `(height, width)` of the crops.
        dtype: of the crops.
        memory_format: of the crops.

    Returns:
        `[B, 3, *size]`.
    """
    from posekd import ops  # here, because workers import this file and have no use for the compiled core

    if packed.reductions.numel():
        matrices = codecs.reduce_matrices(matrices, packed.reductions[packed.image_index])
    # The pixels are red, green, blue; the spec speaks the network's order.
    mean, std = (spec.mean[::-1], spec.std[::-1]) if spec.bgr else (spec.mean, spec.std)
    images = ops.crop_warp(
        ops.PackedImages(packed.pixels, packed.offsets, packed.shapes),
        codecs.translate_matrices(matrices, -packed.origins[packed.image_index]),
        size,
        image_index=packed.image_index,
        mean=mean,
        std=std,
        dtype=dtype,
        memory_format=memory_format,
    )
    return images.flip(1) if spec.bgr else images


def prepare(
    packed: PackedBatch,
    spec: InputSpec,
    flip_permutation: Sequence[int] | Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> PoseBatch:
    """Crops a packed batch, on the device where it lies.

    Args:
        packed: B persons; the matrices follow from its centres, scales and draws.
        spec: size, normalisation and colour order of the network.
        flip_permutation: K joint indices that a mirror exchanges.
        dtype: of the images.
        memory_format: of the images.

    Returns:
        B normalised crops with joints in crop pixels. Joints of mirrored persons are exchanged; visibility is
        kept, and an unlabelled joint is (0, 0, 0).
    """
    matrices = image_matrices(packed, spec.size)
    images = warp(packed, matrices, spec, spec.size, dtype=dtype, memory_format=memory_format)
    keypoints = codecs.transform_keypoints(packed.keypoints, codecs.invert_matrices(matrices))
    keypoints = codecs.swap_flipped(keypoints, packed.flips, flip_permutation)
    return PoseBatch(
        images=images,
        keypoints=torch.where(keypoints[..., 2:] > 0, keypoints, 0.0),
        matrices=matrices,
        box_scores=packed.box_scores,
        boxes=packed.boxes,
        areas=(packed.scales * packed.zooms[:, None]).prod(-1),
        image_ids=packed.image_ids,
        sample_ids=packed.sample_ids,
        teacher_maps=warp_maps(packed, matrices, spec.size, flip_permutation) if packed.teacher_maps.numel() else None,
    )


def warp_maps(
    packed: PackedBatch, matrices: Tensor, size: tuple[int, int], flip_permutation: Sequence[int] | Tensor
) -> Tensor:
    """A cached teacher's heatmaps of augmented crops: moved as the images are, left and right exchanged in mirrors.

    Args:
        packed: B persons with cached maps.
        matrices: `[B, 2, 3]`, crop pixel to image pixel.
        size: `(height, width)` of the crops.
        flip_permutation: K joint indices that a mirror exchanges.

    Returns:
        float32 `[B, K, height / 4, width / 4]`; what lies outside the cached crop is 0.
    """
    from posekd import ops
    from posekd.data.teacher_maps import dequantise

    inverse = codecs.invert_matrices(packed.teacher_matrices)
    moves = codecs.compose_matrices(inverse, codecs.heatmap_matrices(matrices, STRIDE))
    cached = dequantise(packed.teacher_maps, packed.teacher_ranges)
    maps = ops.crop_warp(cached, moves, (size[0] // STRIDE, size[1] // STRIDE))
    maps = unzoom_peaks(maps, cached.amax((2, 3), keepdim=True), moves)
    order = torch.as_tensor(flip_permutation, device=maps.device)
    return torch.where(packed.flips[:, None, None, None], maps[:, order], maps)


def unzoom_peaks(maps: Tensor, peaks: Tensor, moves: Tensor) -> Tensor:
    """Gives the peaks of zoomed heatmaps the width back that they had: a teacher draws it the same in every crop.

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
