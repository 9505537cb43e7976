"""Networks that find people and their keypoints at once: boxes by points, and each person's keypoints inside the box.

SIMPLE (Zhang et al. 2021), with CenterNet's decoding of boxes. Images whose resized sizes agree share a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from posekd import geometry
from posekd.codecs import anchored_people, people
from posekd.codecs.anchored_people import MergedAnchored
from posekd.codecs.people import STRIDE, MergedPeople
from posekd.data import ImageAugmentation
from posekd.inputs import prepare_images, warp
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
from posekd.structures import ImageBatch, InputSpec, Instances, PackedImageBatch

CODECS: dict[str, Any] = {codec.NAME: codec for codec in (people, anchored_people)}
"""Name of an output -> its codec."""

Maps = MergedPeople | MergedAnchored


def codec_of(model: Any) -> Any:
    """The codec of a network's output; that of points if it does not say."""
    return CODECS[getattr(model, "output", people.NAME)]


@dataclass(frozen=True)
class SingleNetworkInference:
    """How a network that finds people and keypoints at once is run.

    Attributes:
        flip_test: ask of the mirror image, too: heatmaps and centres are averaged, and the boxes of both views are
            candidates.
        scales: factors on the image's size. Heatmaps are averaged, boxes of all scales are candidates; centres are
            those of scale 1, which must be among several (the published multi-scale test has 0.6, 1.0, 1.2, 1.5, 1.8).
        size: short side of the image at scale 1, in pixels; the shorter side of the network's input if null.
        letterbox: fit the whole image into a square of that side, instead: all images then share their batches.
        square: side of a square around the middle of the image to see, as `BottomUpInference.square`; null for the
            whole image.
        top_k: corners and centres listed of each map.
        max_boxes: boxes kept of an image.
        box_threshold: a box must score above this, 0..1.
        keypoint_threshold: peaks must be above this heatmap value, 0..1.
        max_peaks: peaks listed of each keypoint's map.
        complete: give a person without a peak for some keypoint the best place inside the box. On ideal maps of
            coco-mini that is a keypoint AP of 0.96 instead of 0.91.
        decode: where inside its pixel a peak is: `quarter`, HRNet's quarter pixel towards the higher neighbour, or
            `gaussian`, the top of the Gaussian through its neighbours, which suits small maps: on ideal maps of twelve
            crowded COCO images whose short side is 256 that is a keypoint AP of 0.93 instead of 0.89.
        oks_threshold: of two people of one image with a higher OKS the weaker is removed; 1 keeps all, which is best
            for AP, while a flip test finds most people twice, the second time with a low score (docs/simple.md has
            figures).
        precision: `fp32`, or autocast to `bf16` or `fp16`.
        channels_last: images in channels-last memory; null follows `train.channels_last` in a run's validations, and is
            false elsewhere.
    """

    flip_test: bool = True
    scales: tuple[float, ...] = (1.0,)
    size: int | None = None
    letterbox: bool = False
    square: float | None = None
    top_k: int = 32
    max_boxes: int = 32
    box_threshold: float = 0.1
    keypoint_threshold: float = 0.1
    max_peaks: int = 64
    complete: bool = True
    decode: Literal["quarter", "gaussian"] = "quarter"
    oks_threshold: float = 1.0
    precision: Precision = "fp32"
    channels_last: bool | None = None

    def __post_init__(self) -> None:
        if not self.scales or not all(scale > 0 for scale in self.scales):
            raise ValueError(f"scales must be positive, at least one, got {list(self.scales)}")
        if len(self.scales) > 1 and 1.0 not in self.scales:
            raise ValueError(f"scales must contain 1, where the centres are taken, got {list(self.scales)}")
        if self.size is not None and self.size < 1:
            raise ValueError(f"size is a side in pixels, got {self.size}")
        if self.square is not None and (self.letterbox or not self.square > 0):
            raise ValueError(
                f"square is a side in units of an image's short side, above 0, or null; got {self.square}"
                + (" beside letterbox, which is another square" if self.letterbox else "")
            )
        if self.decode not in ("quarter", "gaussian"):
            raise ValueError(f"decode must be quarter or gaussian, got {self.decode!r}")
        for name in ("top_k", "max_boxes", "max_peaks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("box_threshold", "keypoint_threshold"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 < self.oks_threshold <= 1:
            raise ValueError(f"oks_threshold is an OKS, above 0 and at most 1, got {self.oks_threshold}")
        check_precision(self.precision)


# ---- Sizes -----------------------------------------------------------------------------------------------------


def input_sizes(height: int, width: int, short: int, settings: SingleNetworkInference) -> tuple[tuple[int, int], ...]:
    """The size `(height, width)` of an image at each scale: both sides rounded up to multiples of 64.

    Args:
        height: height of the image in pixels.
        width: width of the image in pixels.
        short: the short side at scale 1.
        settings: scales, and whether the image is seen through a square.

    Raises:
        ValueError: a square whose side is not a multiple of 64, or an image too narrow (`whole_images.LARGEST`).
    """
    sizes = []
    for scale in settings.scales:
        if settings.square is not None:
            sizes.append((square_side(short, settings.square, scale),) * 2)
            continue
        least = _round_up(short * scale)
        longer = least if settings.letterbox else _round_up(least / min(height, width) * max(height, width))
        sizes.append((least, longer) if height <= width else (longer, least))
        refuse_large(height, width, sizes[-1], "fit it into a square (inference.letterbox)")
    return tuple(sizes)


def _round_up(side: float) -> int:
    return math.ceil(side / MULTIPLE) * MULTIPLE


def input_matrices(image_sizes: Tensor, size: tuple[int, int], letterbox: bool, square: float | None = None) -> Tensor:
    """Matrices from the pixels of the network's input to those of the image, float32 `[B, 2, 3]`.

    Args:
        image_sizes: int64 `[B, 2]`, heights and widths.
        size: `(height, width)` of the input.
        letterbox: the whole image fits into `size`; otherwise its short side fills the short side.
        square: or one part in `square` of it.
    """
    if not letterbox:
        return resize_matrices(image_sizes, size, square)
    centers = image_sizes.flip(1) / 2
    longest = image_sizes.amax(1, keepdim=True).expand(-1, 2)
    return geometry.crop_matrices(centers, longest, None, None, size)


# ---- Maps ------------------------------------------------------------------------------------------------------


def ask(
    model: nn.Module, images: Tensor, flip_permutation: Sequence[int] | Tensor, settings: SingleNetworkInference
) -> Maps:
    """Heatmaps, and what boxes are made of, of images, with those of the mirrored images in a flip test.

    Args:
        model: says what one of `CODECS` reads; already in the right mode.
        images: `[B, 3, H, W]`.
        flip_permutation: K keypoint indices that a mirror exchanges.
        settings: flip test, precision, `top_k`.

    Raises:
        ValueError: the network gives another output.
    """
    codec, K = codec_of(model), len(flip_permutation)
    with autocast(images.device, settings.precision):
        output = model(images)
    said: Maps = codec.final(output, K, settings)
    if not settings.flip_test:
        return said
    with autocast(images.device, settings.precision):
        output = model(images.flip(-1))
    both: Maps = codec.average(said, codec.unmirror(codec.final(output, K, settings), flip_permutation))
    return both


def predict_maps(
    model: nn.Module,
    packed: PackedImageBatch,
    spec: InputSpec,
    flip_permutation: Sequence[int] | Tensor,
    settings: SingleNetworkInference,
) -> tuple[Maps, Tensor]:
    """What the network says of images whose resized sizes agree, all views and scales together.

    Returns:
        Maps at scale 1, and the matrices from their pixels to those of the images, `[B, 2, 3]`.

    Raises:
        FloatingPointError: the network's output is not finite.
    """
    short = settings.size or min(spec.size)
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    (sizes,) = {input_sizes(height, width, short, settings) for height, width in packed.image_sizes.tolist()}
    parts = []
    for size in sizes:
        matrices = input_matrices(packed.image_sizes, size, settings.letterbox, settings.square)
        images = warp(packed.pixels, matrices, spec, size, memory_format=layout)
        parts.append((ask(model, images, flip_permutation, settings), geometry.heatmap_matrices(matrices, STRIDE)))
    first = settings.scales.index(1.0) if len(parts) > 1 else 0
    base, to_image = parts[first]
    grid = (base.heatmaps.shape[2], base.heatmaps.shape[3])
    from_image = geometry.invert_matrices(to_image)
    codec = codec_of(model)
    others = [
        codec.move(maps, geometry.compose_matrices(from_image, own), grid)
        for i, (maps, own) in enumerate(parts)
        if i != first
    ]
    maps = codec.together(base, others)
    if not bool(torch.isfinite(torch.stack([part.sum() for part in maps]).sum())):
        raise FloatingPointError(
            f"the network gives NaN or infinite maps for images {packed.image_ids.tolist()}: check its weights, or "
            "evaluate in fp32"
        )
    return maps, to_image


# ---- People ----------------------------------------------------------------------------------------------------


def find_people(
    model: Any, maps: Maps, to_image: Tensor, packed: PackedImageBatch, settings: SingleNetworkInference
) -> Instances:
    """The people in a batch's maps. The numbers of boxes are read on the host, which waits for the device once.

    Args:
        model: asked with `group` for the heatmaps inside boxes.
        maps: see `predict_maps`.
        to_image: `[B, 2, 3]`, map pixel to image pixel.
        packed: the images.
        settings: thresholds.

    Returns:
        One person for each box, image by image, by descending score of the box; those without a keypoint have zeros.
        The score is the box's times the mean of the keypoints found.
    """
    codec = codec_of(model)
    pixel = (to_image[:, 0, 0] * to_image[:, 1, 1] - to_image[:, 0, 1] * to_image[:, 1, 0]).abs()
    boxes, scores, _ = codec.boxes(maps, pixel, settings)
    peaks = codec.peaks_of(maps.heatmaps, settings)
    most = (peaks[..., 2] > 0).sum(-1).max()
    *counts, used = torch.cat(((scores > settings.box_threshold).sum(1), most[None])).tolist()
    rows = [(i, j) for i, count in enumerate(counts) for j in range(count)]
    image, place = torch.tensor(rows, dtype=torch.int64, device=scores.device).view(-1, 2).unbind(1)
    shown = peaks[:, :, : max(used, 1)]
    boxes, scores = boxes[image, place], scores[image, place]
    return _in_boxes(model, maps, shown, boxes, scores, image, max(counts), to_image, packed, settings)


def _in_boxes(
    model: Any,
    maps: Maps,
    peaks: Tensor,
    boxes: Tensor,
    scores: Tensor,
    image: Tensor,
    rounds: int,
    to_image: Tensor,
    packed: PackedImageBatch,
    settings: SingleNetworkInference,
) -> Instances:
    """One person for each of R boxes `[R, 4]` in map pixels, see `find_people` and `codec.keypoints`."""
    K = maps.heatmaps.shape[1]
    found = boxes.new_zeros((len(boxes), K, 3))
    if len(boxes):

        def group(crops: Tensor) -> Tensor:
            with autocast(crops.device, settings.precision):
                masks: Tensor = model.group(crops)
                return masks

        found = codec_of(model).keypoints(maps.heatmaps, peaks, boxes, scores, image, rounds, group, settings)
    keypoints, person_scores, boxes = finished(found, boxes, scores, to_image[image], packed.image_sizes[image])
    return as_people(keypoints, person_scores, boxes, scores, packed.image_ids[image])


def finished(
    found: Tensor, boxes: Tensor, scores: Tensor, to_image: Tensor, image_sizes: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """People of the maps as people of the image.

    Args:
        found: `[R, K, 3]` (x, y in map pixels, score), zeros where there is none.
        boxes: `[R, 4]` (x1, y1, x2, y2) in map pixels.
        scores: `[R]`, of the boxes.
        to_image: `[R, 2, 3]`, map pixel to image pixel.
        image_sizes: int64 `[R, 2]`, heights and widths.

    Returns:
        keypoints `[R, K, 3]` in image pixels, scores `[R]` of the people, boxes `[R, 4]` (x, y, width, height) within
        the image.
    """
    seen = found[..., 2] > 0
    keypoints = geometry.transform_keypoints(found, to_image)
    corners = geometry.transform_keypoints(boxes.unflatten(-1, (2, 2)), to_image)
    limits = image_sizes.flip(1)[:, None].to(corners.dtype)
    low, high = corners.clamp(min=0).minimum(limits).unbind(1)
    kept = (found[..., 2] * seen).sum(1) / seen.sum(1).clamp(min=1)
    return torch.where(seen[..., None], keypoints, 0.0), scores * kept, torch.cat((low, high - low), 1)


def as_people(keypoints: Tensor, scores: Tensor, boxes: Tensor, box_scores: Tensor, image_ids: Tensor) -> Instances:
    """People from what `finished` gives, the scores of their boxes and int64 ids of their images `[R]`."""
    return Instances(
        keypoints=keypoints,
        scores=scores,
        boxes=boxes,
        box_scores=box_scores,
        areas=boxes[:, 2:].clamp_min(1).prod(1),
        image_ids=image_ids,
        sample_ids=torch.full_like(image_ids, -1),
    )


def predict(
    model: nn.Module,
    packed: PackedImageBatch,
    spec: InputSpec,
    flip_permutation: Sequence[int] | Tensor,
    settings: SingleNetworkInference,
) -> Instances:
    """The people of a batch of images whose resized sizes agree, see `paradigms.base.Predict` and `find_people`.

    Raises:
        FloatingPointError: the network's output is not finite.
    """
    maps, to_image = predict_maps(model, packed, spec, flip_permutation, settings)
    return find_people(model, maps, to_image, packed, settings)


def look(
    model: nn.Module,
    packed: PackedImageBatch,
    spec: InputSpec,
    flip_permutation: Sequence[int] | Tensor,
    settings: SingleNetworkInference,
) -> Instances:
    """The people in the boxes that the dataset gives for one image, see `Paradigm.look`: grouping goes by these boxes.

    Raises:
        FloatingPointError: the network's output is not finite.
    """
    maps, to_image = predict_maps(model, packed, spec, flip_permutation, settings)
    corners = geometry.transform_keypoints(packed.outlines.flatten(1, 2), geometry.invert_matrices(to_image))
    corners = corners.unflatten(1, packed.outlines.shape[1:3]).flatten(0, 1)
    boxes = torch.cat((corners.amin(1), corners.amax(1)), 1)
    count = packed.outlines.shape[1]
    image = torch.arange(len(packed), device=boxes.device).repeat_interleave(count)
    peaks, scores = codec_of(model).peaks_of(maps.heatmaps, settings), torch.ones_like(boxes[:, 0])
    found = _in_boxes(model, maps, peaks, boxes, scores, image, count, to_image, packed, settings)
    return replace(found, sample_ids=torch.arange(len(boxes), device=boxes.device))


def suppress(found: Instances, skeleton: Skeleton, settings: SingleNetworkInference) -> Instances:
    """People with at least one keypoint and without duplicates, see `Paradigm.suppress`."""
    with_keypoints = found.take((found.keypoints[..., 2] > 0).any(1))
    return without_duplicates(with_keypoints, skeleton, settings.oks_threshold)


def prepare(
    packed: PackedImageBatch,
    spec: InputSpec,
    flip_permutation: Sequence[int] | Tensor,
    *,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> ImageBatch:
    """Whole images with keypoints and masks at 1/4 and people's boxes, see `paradigms.base.Prepare`."""
    return prepare_images(packed, spec, flip_permutation, (STRIDE,), boxes=True, memory_format=memory_format)


open_loader = loader_of_images(SingleNetworkInference, input_sizes)

SINGLE_NETWORK = Paradigm(
    name="single_network",
    unit="image",
    augmentation=ImageAugmentation,
    inference=SingleNetworkInference,
    training_images="annotated",
    evaluation_images="all",
    crops_boxes=False,
    finds_boxes=True,
    open_loader=open_loader,
    prepare=prepare,
    predict=predict,
    suppress=suppress,
    look=look,
)
