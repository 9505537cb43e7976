"""Inference of bottom-up networks: resize, flip and multi-scale test, grouping, back-projection.

The rules are those of HigherHRNet-Human-Pose-Estimation (`lib/core/inference.py`, `lib/utils/transforms.py`), which
SmallerHRNet follows. Images whose resized sizes agree go through together, and their people are grouped together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posekd import codecs, ops
from posekd.data.augment import warp
from posekd.data.bottomup import share_inside
from posekd.engine.evaluate import AUTOCAST
from posekd.metrics import oks_nms
from posekd.structures import InputSpec, PackedImageBatch

MULTIPLE = 64  # sides of what the network sees are multiples of this


@dataclass(frozen=True)
class BottomUpSettings:
    """How a bottom-up network is evaluated; the defaults are HigherHRNet's, `max_people` excepted.

    Attributes:
        flip: average the heatmaps with those of the mirrored image, and group by both tags.
        scales: sizes of the image to average over; with several, 1 must be among them, and gives the tags.
        project: enlarge the maps to the input's size at scale 1 before grouping.
        size: short side of the image at scale 1, in pixels; the shorter side of the network's input if null.
        square: side of a square around the middle of the image to see, in units of its short side, as a training crop
            of that `augmentation.scale`. All images then share their batches, whatever their shapes; what lies beyond
            the square is lost. null for the official way, all of the image.
        max_people: peaks kept a joint, and people whom further joints may join. HigherHRNet's is 30, beyond which its
            parser breaks people into pieces (38 people became 180).
        detection_threshold: peaks are above it.
        tag_threshold: a peak joins a person whose mean tag is closer than this.
        nms_kernel: side of the window in which a peak is highest, odd.
        adjust: move joints a quarter of a pixel toward the higher neighbour.
        refine: give everybody the joints that he misses, wherever his tag fits best. A stray peak then becomes a second
            copy of somebody: see `nms_threshold`.
        border: look for joints beyond the image too, where the network's input is filled up to a multiple of 64: the
            official way, although its training loss never looks there and a network may give anything.
        nms_threshold: of two people of one image with a higher OKS the weaker is removed; 1, the official way, keeps
            all. For counting and drawing, not for AP: copies are scored low and cost little, while two people whom
            `refine` gave the same joints look alike (docs/bottomup.md has figures).
        precision: `fp32`, or autocast to `bf16` or `fp16`.
        channels_last: images in channels-last memory.
    """

    flip: bool = True
    scales: tuple[float, ...] = (1.0,)
    project: bool = True
    size: int | None = None
    square: float | None = None
    max_people: int = 100
    detection_threshold: float = 0.1
    tag_threshold: float = 1.0
    nms_kernel: int = 5
    adjust: bool = True
    refine: bool = True
    border: bool = True
    nms_threshold: float = 1.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False

    def __post_init__(self) -> None:
        if not self.scales or not all(scale > 0 for scale in self.scales):
            raise ValueError(f"scales must be positive, at least one, got {list(self.scales)}")
        if len(self.scales) > 1 and 1.0 not in self.scales:
            raise ValueError(f"scales must contain 1, where the tags are taken, got {list(self.scales)}")
        if not 0 <= self.detection_threshold < math.inf:
            raise ValueError(f"detection_threshold must be 0 or more, got {self.detection_threshold}")
        if not 0 < self.nms_threshold <= 1:
            raise ValueError(f"nms_threshold is an OKS, above 0 and at most 1, got {self.nms_threshold}")
        if self.precision not in ("fp32", *AUTOCAST):
            raise ValueError(f"precision must be fp32, bf16 or fp16, got {self.precision!r}")
        if self.size is not None and self.size < 1:
            raise ValueError(f"size is a side in pixels, got {self.size}")
        if self.square is not None and not self.square > 0:
            raise ValueError(f"square is a side in units of an image's short side, or null; got {self.square}")


@dataclass(frozen=True)
class People:
    """Everybody whom a network finds in one image.

    Attributes:
        image_id: of the image.
        keypoints: float32 `[P, K, 3]` (x, y, score) in image pixels; (0, 0, 0) where a joint was not found.
        scores: float32 `[P]`, the mean over all K joints before refinement.
    """

    image_id: int
    keypoints: np.ndarray
    scores: np.ndarray


# ---- Sizes -----------------------------------------------------------------------------------------------------


def resized(height: int, width: int, short: int, scale: float, smallest: float) -> tuple[int, int]:
    """The size at which an image is seen at one scale: `(height, width)` in pixels.

    At the smallest scale the short side is `short * smallest` and the long side what the aspect makes of it, both
    rounded up to multiples of 64; other scales multiply that.

    Args:
        height: of the image in pixels.
        width: of the image in pixels.
        short: the short side at scale 1.
        scale: which scale.
        smallest: the smallest of all scales.
    """
    least = _round_up(smallest * short)
    longer = _round_up(least / min(height, width) * max(height, width))
    sides = int(least * scale / smallest), int(longer * scale / smallest)
    return sides if height <= width else sides[::-1]


def input_size(height: int, width: int, short: int, scale: float, settings: BottomUpSettings) -> tuple[int, int]:
    """The size at which an image is seen at one scale, with `settings.square` or without: `(height, width)` in pixels.

    Raises:
        ValueError: a square whose side is no multiple of 64.
    """
    if settings.square is None:
        return resized(height, width, short, scale, min(settings.scales))
    side = short * settings.square * scale
    if side % MULTIPLE:
        raise ValueError(
            f"eval.square {settings.square} times {short} pixels, the short side, at scale {scale} is {side:g}: choose "
            f"them so that it is a multiple of {MULTIPLE}"
        )
    return int(side), int(side)


def _round_up(side: float) -> int:
    return int((side + MULTIPLE - 1) // MULTIPLE * MULTIPLE)


def resize_matrices(image_sizes: Tensor, size: tuple[int, int], square: float | None = None) -> Tensor:
    """Matrices from the pixels of a resized image to those of the image, float32 `[B, 2, 3]`.

    The image's short side fills the short side of `size`, centre on centre; what is left of the long side is border.
    With `square` it fills one part in `square` of it.

    Args:
        image_sizes: int64 `[B, 2]`, heights and widths.
        size: `(height, width)` of the resized images, or of maps that cover them.
        square: see `BottomUpSettings`.
    """
    heights, widths = image_sizes.to(torch.float64).unbind(1)
    if square is not None:
        centers, sides = torch.stack((widths / 2, heights / 2), 1), torch.minimum(heights, widths) * square
        return codecs.crop_matrices(centers, sides[:, None].expand(-1, 2), None, None, size)
    # the official centre is a whole pixel
    centers = torch.stack(((widths / 2 + 0.5).floor(), (heights / 2 + 0.5).floor()), 1)
    zoom = torch.where(widths < heights, widths / size[1], heights / size[0])
    scales = zoom[:, None] * zoom.new_tensor([size[1], size[0]])
    return codecs.crop_matrices(centers, scales, None, None, size)


# ---- Maps ------------------------------------------------------------------------------------------------------


def forward_maps(
    model: nn.Module, images: Tensor, flip_permutation: Sequence[int], settings: BottomUpSettings
) -> tuple[Tensor, list[Tensor]]:
    """Heatmaps and tags of images at the network's finest resolution.

    The coarse maps are enlarged, heatmaps are averaged over the resolutions and, in a flip test, with those of the
    mirrored images; tags of the mirrored images are a second channel.

    Args:
        model: gives `[B, 2 K, h, w]` and `[B, K, h', w']`; in the mode it is to run in.
        images: `[B, 3, H, W]`.
        flip_permutation: K joint indices that a mirror exchanges.
        settings: flip test and precision.

    Returns:
        heatmaps float32 `[B, K, h', w']`, and one or two tag maps of that shape.
    """
    heatmaps, tags = _maps(model, images, len(flip_permutation), settings.precision)
    if not settings.flip:
        return heatmaps, [tags]
    order = torch.as_tensor(flip_permutation, device=images.device)
    mirrored = _maps(model, images.flip(-1), len(flip_permutation), settings.precision)
    mirrored_heatmaps, mirrored_tags = (maps.flip(-1)[:, order] for maps in mirrored)
    return (heatmaps + mirrored_heatmaps) * 0.5, [tags, mirrored_tags]


def _maps(model: nn.Module, images: Tensor, K: int, precision: str) -> tuple[Tensor, Tensor]:
    dtype = AUTOCAST.get(precision)
    with torch.autocast(images.device.type, dtype, enabled=dtype is not None):
        outputs = model(images)
    coarse, fine = check_outputs(outputs, K)
    enlarged = _enlarge(coarse.float(), (fine.shape[2], fine.shape[3]))
    return (enlarged[:, :K] + fine.float()) * 0.5, enlarged[:, K:]


def check_outputs(outputs: Any, num_keypoints: int) -> tuple[Tensor, Tensor]:
    """The two outputs of a bottom-up network.

    Raises:
        ValueError: they are not `[B, 2 K, h, w]` and `[B, K, h', w']`.
    """
    K = num_keypoints
    many = isinstance(outputs, (list, tuple)) and len(outputs) == 2
    if not many or not all(isinstance(maps, Tensor) and maps.ndim == 4 for maps in outputs):
        raise ValueError("a bottom-up network gives two outputs, [B, 2 K, h, w] and [B, K, h', w']; this one does not")
    if (outputs[0].shape[1], outputs[1].shape[1]) != (2 * K, K):
        raise ValueError(
            f"the network has {outputs[1].shape[1]} heatmaps and {outputs[0].shape[1]} coarse maps, the dataset "
            f"{K} keypoints: {2 * K} and {K} were expected"
        )
    return outputs[0], outputs[1]


def _enlarge(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def aggregate(
    maps_at: Callable[[float], tuple[Tensor, list[Tensor]]], size: tuple[int, int], settings: BottomUpSettings
) -> tuple[Tensor, Tensor]:
    """Averages the heatmaps of all scales, and stacks the tags of scale 1.

    Args:
        maps_at: heatmaps and tags of one scale, see `forward_maps`.
        size: `(height, width)` of the input at scale 1, to which the maps are enlarged with `project`; otherwise they
            get the size of the largest scale's.
        settings: scales and projection.

    Returns:
        heatmaps `[B, K, H, W]` and tags `[B, K, H, W, T]`.
    """
    scales = sorted(settings.scales, reverse=True)
    total: Tensor | None = None
    tags: list[Tensor] = []
    for scale in scales:
        heatmaps, channels = maps_at(scale)
        if not settings.project:
            size = (heatmaps.shape[2], heatmaps.shape[3]) if total is None else (total.shape[2], total.shape[3])
        heatmaps = _enlarge(heatmaps, size)
        total = heatmaps if total is None else total + heatmaps
        if scale == 1 or len(scales) == 1:
            tags = [_enlarge(channel, size) for channel in channels]
    assert total is not None
    return total / len(scales) if len(scales) > 1 else total, torch.stack(tags, dim=-1)


# ---- People ----------------------------------------------------------------------------------------------------


def predict_maps(
    model: nn.Module,
    packed: PackedImageBatch,
    spec: InputSpec,
    flip_permutation: Sequence[int],
    settings: BottomUpSettings,
) -> tuple[Tensor, Tensor]:
    """The maps of a batch of images whose resized sizes agree, flip and scales averaged: see `aggregate`."""
    short = settings.size or min(spec.size)
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    shapes = packed.image_sizes.tolist()

    def size_at(scale: float) -> tuple[int, int]:
        (common,) = {input_size(height, width, short, scale, settings) for height, width in shapes}
        return common

    def maps_at(scale: float) -> tuple[Tensor, list[Tensor]]:
        size = size_at(scale)
        matrices = resize_matrices(packed.image_sizes, size, settings.square)
        images = warp(packed, matrices, spec, size, memory_format=layout)
        return forward_maps(model, images, flip_permutation, settings)

    return aggregate(maps_at, size_at(1.0), settings)


def group_people(
    heatmaps: Tensor, tags: Tensor, image_sizes: Tensor, settings: BottomUpSettings
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Groups the maps of a batch into people, on their device, and brings these back to the images.

    Args:
        heatmaps: `[B, K, H, W]`.
        tags: `[B, K, H, W, T]`.
        image_sizes: int64 `[B, 2]`, heights and widths of the images that the maps cover.
        settings: thresholds.

    Returns:
        For each image the keypoints `[P, K, 3]` (x, y, score) in its pixels, zeros where a joint was not found, and the
        scores `[P]`, as `People` has them.
    """
    matrices = resize_matrices(image_sizes, (heatmaps.shape[2], heatmaps.shape[3]), settings.square)
    if not settings.border:
        inside = share_inside(image_sizes, matrices, (heatmaps.shape[2], heatmaps.shape[3])) > 0.5
        heatmaps = heatmaps * inside[:, None]
    grouped = ops.group_keypoints(
        heatmaps,
        tags,
        max_people=settings.max_people,
        detection_threshold=settings.detection_threshold,
        tag_threshold=settings.tag_threshold,
        nms_kernel=settings.nms_kernel,
        adjust=settings.adjust,
        refine=settings.refine,
    )
    counts = grouped.counts.tolist()  # waits for the device
    most = max(counts, default=0)
    keypoints = codecs.transform_keypoints(grouped.keypoints[:, :most, :, :3], matrices[:, None])
    points = torch.where(keypoints[..., 2:] > 0, keypoints, 0.0).cpu().numpy()
    scores = grouped.scores[:, :most].cpu().numpy()
    return [(points[i, :count], scores[i, :count]) for i, count in enumerate(counts)]


def find_people(
    model: nn.Module,
    packed: PackedImageBatch,
    spec: InputSpec,
    flip_permutation: Sequence[int],
    settings: BottomUpSettings,
) -> list[People]:
    """Everybody in a batch of images whose resized sizes agree, on the device where the batch lies.

    Args:
        model: see `forward_maps`; in the mode it is to run in.
        packed: whole images.
        spec: normalisation, colour order and, unless the settings say so, size of the network's input.
        flip_permutation: K joint indices that a mirror exchanges.
        settings: all of them but `nms_threshold`.

    Raises:
        FloatingPointError: the network's output is not finite.
    """
    heatmaps, tags = predict_maps(model, packed, spec, flip_permutation, settings)
    # one pass over the maps; a sum of finite numbers of this size does not overflow
    if not bool(torch.isfinite(heatmaps.sum() + tags.sum())):
        raise FloatingPointError(
            f"the network gives NaN or infinite maps for images {packed.image_ids.tolist()}: check its weights, or "
            "evaluate in fp32"
        )
    people = group_people(heatmaps, tags, packed.image_sizes, settings)
    ids = packed.image_ids.tolist()
    return [People(image_id, *found) for image_id, found in zip(ids, people, strict=True)]


def remove_copies(people: People, sigmas: Sequence[float], threshold: float) -> People:
    """OKS-NMS among the people of one image; the area of a pose is that of the box around its joints.

    Args:
        people: of one image.
        sigmas: K OKS constants.
        threshold: of two people with a higher OKS the weaker is removed; 1 keeps all.
    """
    if threshold >= 1 or len(people.scores) < 2:
        return people
    found = people.keypoints[..., 2:] > 0
    low = np.where(found, people.keypoints[..., :2], np.inf).min(1)
    high = np.where(found, people.keypoints[..., :2], -np.inf).max(1)
    areas = (high - low).clip(1, None).prod(1)
    kept = np.sort(oks_nms(people.keypoints, people.scores, areas, threshold, sigmas=sigmas))
    return People(people.image_id, people.keypoints[kept], people.scores[kept])
