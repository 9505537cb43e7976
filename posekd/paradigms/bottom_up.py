"""Bottom-up networks: all people of a whole image.

The rules are those of HigherHRNet-Human-Pose-Estimation (`lib/core/inference.py`, `lib/utils/transforms.py`), which
SmallerHRNet follows. Images of equal resized size are processed in one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from posekd.codecs import tagged_heatmaps
from posekd.codecs.tagged_heatmaps import MergedMaps, enlarge
from posekd.data import ImageAugmentation
from posekd.inputs import prepare_images, warp
from posekd.inputs.images import share_inside
from posekd.paradigms.base import Paradigm
from posekd.paradigms.whole_images import (
    MULTIPLE,
    loader_of_images,
    refuse_large,
    resize_matrices,
    square_side,
    without_duplicates,
)
from posekd.precision import Precision, autocast, check_precision
from posekd.skeleton import Skeleton
from posekd.structures import InputSpec, Instances, PackedImageBatch


@dataclass(frozen=True)
class BottomUpInference:
    """How a bottom-up network is run; the defaults are HigherHRNet's except for `max_people`.

    Attributes:
        flip_test: average the heatmaps with those of the mirrored image, and group by both tags.
        scales: factors on the image's size, over which the heatmaps are averaged. With several, 1 must be among them:
            the tags are those of scale 1.
        project_to_input: enlarge the maps to the input's size at scale 1 before grouping.
        size: short side of the image at scale 1, in pixels; the shorter side of the network's input if null.
        square: side of a square around the middle of the image to see, in units of its short side, as a training crop
            of that `augmentation.scale`. All images then share their batches, whatever their shapes; what lies beyond
            the square is lost. null, the official way, uses the whole image.
        max_people: peaks kept per keypoint, and people to whom further keypoints are matched. HigherHRNet's is 30,
            beyond which its parser breaks people into pieces (38 people became 180).
        detection_threshold: peaks must be above this heatmap value, 0..1.
        tag_threshold: a peak can be added to a person if its distance to the person's mean tag is below this.
        nms_kernel: side, in map pixels and odd, of the window in which a peak is the highest value.
        adjust: move keypoints a quarter of a map pixel towards the higher neighbour.
        refine: fill in each person's missing keypoints, wherever the tag fits best. A stray peak then becomes a second
            copy of that person: see `oks_threshold`.
        search_border: look for keypoints beyond the image too, where the network's input is filled up to a multiple of
            64: the official way, although its training loss never looks there and a network may give anything.
        oks_threshold: of two people of one image with a higher OKS the weaker is removed; 1, the official way, keeps
            all. For counting and drawing, not for AP: copies are scored low and cost little, while two people whom
            `refine` gave the same keypoints look alike (docs/bottomup.md has figures).
        precision: `fp32`, or autocast to `bf16` or `fp16`.
        channels_last: images in channels-last memory; null follows `train.channels_last` in a run's validations, and is
            false elsewhere.
    """

    flip_test: bool = True
    scales: tuple[float, ...] = (1.0,)
    project_to_input: bool = True
    size: int | None = None
    square: float | None = None
    max_people: int = 100
    detection_threshold: float = 0.1
    tag_threshold: float = 1.0
    nms_kernel: int = 5
    adjust: bool = True
    refine: bool = True
    search_border: bool = True
    oks_threshold: float = 1.0
    precision: Precision = "fp32"
    channels_last: bool | None = None

    def __post_init__(self) -> None:
        if not self.scales or not all(scale > 0 for scale in self.scales):
            raise ValueError(f"scales must be positive, at least one, got {list(self.scales)}")
        if len(self.scales) > 1 and 1.0 not in self.scales:
            raise ValueError(f"scales must contain 1, where the tags are taken, got {list(self.scales)}")
        if not 0 <= self.detection_threshold < math.inf:
            raise ValueError(f"detection_threshold must be 0 or more, got {self.detection_threshold}")
        if not 0 < self.oks_threshold <= 1:
            raise ValueError(f"oks_threshold is an OKS, above 0 and at most 1, got {self.oks_threshold}")
        check_precision(self.precision)
        if self.size is not None and self.size < 1:
            raise ValueError(f"size is a side in pixels, got {self.size}")
        if self.square is not None and not self.square > 0:
            raise ValueError(f"square is a side in units of an image's short side, or null; got {self.square}")


# ---- Sizes -----------------------------------------------------------------------------------------------------


def resized(height: int, width: int, short: int, scale: float, smallest: float) -> tuple[int, int]:
    """The size of an image at one scale: `(height, width)` in pixels.

    At the smallest scale the short side is `short * smallest` and the long side what the aspect makes of it, both
    rounded up to multiples of 64; other scales multiply that.

    Args:
        height: height of the image in pixels.
        width: width of the image in pixels.
        short: the short side at scale 1.
        scale: which scale.
        smallest: the smallest of all scales.
    """
    least = _round_up(smallest * short)
    longer = _round_up(least / min(height, width) * max(height, width))
    sides = int(least * scale / smallest), int(longer * scale / smallest)
    return sides if height <= width else sides[::-1]


def input_size(height: int, width: int, short: int, scale: float, settings: BottomUpInference) -> tuple[int, int]:
    """The size of an image at one scale, with or without `settings.square`: `(height, width)` in pixels.

    Raises:
        ValueError: a square whose side is not a multiple of 64, or an image too narrow (`whole_images.LARGEST`).
    """
    if settings.square is None:
        size = resized(height, width, short, scale, min(settings.scales))
        refuse_large(height, width, size, "use a square of it (inference.square)")
        return size
    side = square_side(short, settings.square, scale)
    return side, side


def _round_up(side: float) -> int:
    return int((side + MULTIPLE - 1) // MULTIPLE * MULTIPLE)


# ---- Maps ------------------------------------------------------------------------------------------------------


def ask(
    model: nn.Module, images: Tensor, flip_permutation: Sequence[int] | Tensor, settings: BottomUpInference
) -> MergedMaps:
    """Heatmaps and tags of images at the network's finest resolution.

    In a flip test heatmaps are averaged with those of the mirrored images, whose tags are a second channel.

    Args:
        model: gives `[B, 2 K, h, w]` and `[B, K, h', w']`; already in the right mode.
        images: `[B, 3, H, W]`.
        flip_permutation: K keypoint indices that a mirror exchanges.
        settings: flip test and precision.

    Raises:
        ValueError: the network gives another output.
    """
    codec, K = tagged_heatmaps, len(flip_permutation)
    with autocast(images.device, settings.precision):
        output = model(images)
    said = codec.final(output, K)
    if not settings.flip_test:
        return said
    with autocast(images.device, settings.precision):
        output = model(images.flip(-1))
    return codec.average(said, codec.unmirror(codec.final(output, K), flip_permutation))


def aggregate(
    maps_at: Callable[[float], MergedMaps], size: tuple[int, int], settings: BottomUpInference
) -> tuple[Tensor, Tensor]:
    """Averages the heatmaps of all scales, and stacks the tags of scale 1.

    Args:
        maps_at: heatmaps and tags of one scale, see `ask`.
        size: `(height, width)` of the input at scale 1, to which the maps are enlarged with `project_to_input`;
            otherwise they get the size of the largest scale's.
        settings: scales and projection.

    Returns:
        heatmaps `[B, K, H, W]` and tags `[B, K, H, W, T]`.
    """
    scales = sorted(settings.scales, reverse=True)
    total: Tensor | None = None
    tags: list[Tensor] = []
    for scale in scales:
        heatmaps, channels = maps_at(scale)
        if not settings.project_to_input:
            size = (heatmaps.shape[2], heatmaps.shape[3]) if total is None else (total.shape[2], total.shape[3])
        heatmaps = enlarge(heatmaps, size)
        total = heatmaps if total is None else total + heatmaps
        if scale == 1 or len(scales) == 1:
            tags = [enlarge(channel, size) for channel in channels]
    assert total is not None
    return total / len(scales) if len(scales) > 1 else total, torch.stack(tags, dim=-1)


# ---- People ----------------------------------------------------------------------------------------------------


def predict_maps(
    model: nn.Module,
    packed: PackedImageBatch,
    spec: InputSpec,
    flip_permutation: Sequence[int] | Tensor,
    settings: BottomUpInference,
) -> tuple[Tensor, Tensor]:
    """The maps of a batch of images whose resized sizes agree, flip and scales averaged: see `aggregate`."""
    short = settings.size or min(spec.size)
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    shapes = packed.image_sizes.tolist()

    def size_at(scale: float) -> tuple[int, int]:
        (common,) = {input_size(height, width, short, scale, settings) for height, width in shapes}
        return common

    def maps_at(scale: float) -> MergedMaps:
        size = size_at(scale)
        matrices = resize_matrices(packed.image_sizes, size, settings.square)
        images = warp(packed.pixels, matrices, spec, size, memory_format=layout)
        return ask(model, images, flip_permutation, settings)

    return aggregate(maps_at, size_at(1.0), settings)


def group_people(
    heatmaps: Tensor, tags: Tensor, image_ids: Tensor, image_sizes: Tensor, settings: BottomUpInference
) -> Instances:
    """Groups the maps of a batch into people in image pixels, on the maps' device.

    Args:
        heatmaps: `[B, K, H, W]`.
        tags: `[B, K, H, W, T]`.
        image_ids: int64 `[B]`.
        image_sizes: int64 `[B, 2]`, heights and widths of the images that the maps cover.
        settings: thresholds.

    Returns:
        All people, image by image; scores are the mean over all K keypoints before refinement.
    """
    size = (heatmaps.shape[2], heatmaps.shape[3])
    matrices = resize_matrices(image_sizes, size, settings.square)
    if not settings.search_border:
        inside = share_inside(image_sizes, matrices, size) > 0.5
        heatmaps = heatmaps * inside[:, None]
    keypoints, scores, counts = tagged_heatmaps.decode(heatmaps, tags, matrices, settings)
    rows = [(i, j) for i, count in enumerate(counts) for j in range(count)]
    image, person = torch.tensor(rows, dtype=torch.int64, device=scores.device).view(-1, 2).unbind(1)
    return as_people(keypoints[image, person], scores[image, person], image_ids[image])


def as_people(keypoints: Tensor, scores: Tensor, image_ids: Tensor) -> Instances:
    """People whose boxes are those around their keypoints.

    Args:
        keypoints: `[N, K, 3]`, at least one found of each.
        scores: `[N]`.
        image_ids: int64 `[N]`.
    """
    boxes = boxes_around(keypoints)
    return Instances(
        keypoints=keypoints,
        scores=scores,
        boxes=boxes,
        box_scores=torch.ones_like(boxes[:, 0]),
        areas=boxes[:, 2:].clamp_min(1).prod(1),
        image_ids=image_ids,
        sample_ids=torch.full_like(image_ids, -1),
    )


def boxes_around(keypoints: Tensor) -> Tensor:
    """Boxes `[N, 4]` (x, y, width, height) around keypoints `[N, K, 3]` whose score is above 0, at least one each."""
    found = keypoints[..., 2:] > 0
    low = torch.where(found, keypoints[..., :2], math.inf).amin(1)
    high = torch.where(found, keypoints[..., :2], -math.inf).amax(1)
    return torch.cat((low, high - low), 1)


def predict(
    model: nn.Module,
    packed: PackedImageBatch,
    spec: InputSpec,
    flip_permutation: Sequence[int] | Tensor,
    settings: BottomUpInference,
) -> Instances:
    """The people of a batch of images whose resized sizes agree, see `paradigms.base.Predict`.

    Args:
        model: see `ask`.
        packed: whole images.
        spec: normalisation, colour order and, unless the settings say so, size of the network's input.
        flip_permutation: K keypoint indices that a mirror exchanges.
        settings: everything except `oks_threshold` is used.

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
    return group_people(heatmaps, tags, packed.image_ids, packed.image_sizes, settings)


def suppress(found: Instances, skeleton: Skeleton, settings: BottomUpInference) -> Instances:
    """People without duplicates, see `Paradigm.suppress`; the official way, an OKS of 1, keeps all of them."""
    return without_duplicates(found, skeleton, settings.oks_threshold)


open_loader = loader_of_images(
    BottomUpInference, lambda height, width, short, settings: input_size(height, width, short, 1.0, settings)
)

BOTTOM_UP = Paradigm(
    name="bottom_up",
    unit="image",
    augmentation=ImageAugmentation,
    inference=BottomUpInference,
    training_images="annotated",
    evaluation_images="all",
    crops_boxes=False,
    finds_boxes=False,
    open_loader=open_loader,
    prepare=prepare_images,
    predict=predict,
    suppress=suppress,
)
