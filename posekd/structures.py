"""The typed batches that rooms hand to each other."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class InputSpec:
    """What a network wants to see.

    Attributes:
        size: `(height, width)` of the input in pixels.
        mean: channel means after division by 255, in the network's channel order.
        std: channel standard deviations after division by 255, same order.
        bgr: whether channels arrive as blue, green, red (SimpleBaseline, FPD) rather than red, green, blue.
    """

    size: tuple[int, int] = (256, 192)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    bgr: bool = False


@dataclass
class PackedBatch:
    """What a loader worker sends: decoded pixels, packed, and plain facts about B persons.

    Several persons of one image share its pixels. Coordinates are pixels of the original image.

    Attributes:
        pixels: uint8 `[bytes]`, the packed HWC RGB regions.
        offsets: int64 `[N]`, first byte of each region in `pixels`.
        shapes: int64 `[N, 3]`, height, width, channels of each region.
        origins: float32 `[N, 2]`, (x, y) of each region's corner in its decoded image.
        image_index: int64 `[B]`, region of each person.
        keypoints: float32 `[B, K, 3]` (x, y, visibility); visibility 0 unlabelled, 1 occluded, 2 visible.
        centers: float32 `[B, 2]`, crop centre (x, y), of the box or of half a body.
        scales: float32 `[B, 2]`, crop width and height in pixels, before `zooms`.
        rotations: float32 `[B]`, degrees of rotation drawn by augmentation (0 without).
        zooms: float32 `[B]`, factor on `scales` drawn by augmentation (1 without).
        flips: bool `[B]`, whether augmentation mirrors the person.
        boxes: float32 `[B, 4]` (x, y, width, height).
        box_scores: float32 `[B]`, detector confidence (1 for labelled boxes).
        image_ids: int64 `[B]`.
        sample_ids: int64 `[B]`, annotation id, or the detection's row.
        skipped: int64 `[S]`, dataset rows of persons left out because their image could not be read.
        reductions: float32 `[N]`, 1, 2, 4 or 8, by which each image was decoded smaller; empty where all are whole.
        teacher_maps: uint8 or float16 `[B, K, h, w]`, cached heatmaps (`data.teacher_maps`); empty without a cache.
        teacher_ranges: float32 `[B, K, 2]`, what the bytes of `teacher_maps` mean.
        teacher_matrices: float32 `[B, 2, 3]`, pixel of `teacher_maps` to image pixel.
    """

    pixels: Tensor
    offsets: Tensor
    shapes: Tensor
    origins: Tensor
    image_index: Tensor
    keypoints: Tensor
    centers: Tensor
    scales: Tensor
    rotations: Tensor
    zooms: Tensor
    flips: Tensor
    boxes: Tensor
    box_scores: Tensor
    image_ids: Tensor
    sample_ids: Tensor
    skipped: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    reductions: Tensor = field(default_factory=lambda: torch.empty(0))
    teacher_maps: Tensor = field(default_factory=lambda: torch.empty(0))
    teacher_ranges: Tensor = field(default_factory=lambda: torch.empty(0))
    teacher_matrices: Tensor = field(default_factory=lambda: torch.empty(0))

    def __len__(self) -> int:
        return self.keypoints.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = True) -> PackedBatch:
        """Moves every tensor to `device`."""
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)}
        return replace(self, **moved)

    def pin_memory(self) -> PackedBatch:
        """Pins every tensor (called by the DataLoader)."""
        return replace(self, **{f.name: getattr(self, f.name).pin_memory() for f in fields(self)})


@dataclass
class PoseBatch:
    """B cropped persons on the device, ready for a network.

    Attributes:
        images: `[B, 3, H, W]`, normalised by the student's `InputSpec`.
        keypoints: float32 `[B, K, 3]` (x, y, visibility) in input pixels of the crop.
        matrices: float32 `[B, 2, 3]`, crop pixel to original-image pixel.
        box_scores: float32 `[B]`.
        boxes: float32 `[B, 4]` (x, y, width, height) in the original image.
        areas: float32 `[B]`, area of the (expanded) crop in original pixels.
        image_ids: int64 `[B]`.
        sample_ids: int64 `[B]`.
        teacher_maps: float32 `[B, K, H / 4, W / 4]`, what a cached teacher says of these crops.
    """

    images: Tensor
    keypoints: Tensor
    matrices: Tensor
    box_scores: Tensor
    boxes: Tensor
    areas: Tensor
    image_ids: Tensor
    sample_ids: Tensor
    teacher_maps: Tensor | None = None

    def __len__(self) -> int:
        return self.keypoints.shape[0]

    def rows(self, which: slice) -> PoseBatch:
        """Some of the persons."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: value[which] for name, value in given.items() if value is not None})


@dataclass
class PackedImageBatch(PackedBatch):
    """What a loader worker sends for bottom-up networks: B whole images, all their people with them.

    As `PackedBatch`, one row an image instead of a person: `keypoints` is `[B, P, K, 3]`, padded with visibility 0 to
    the most people of an image (at least 1), `boxes` and `sample_ids` are those of the images, `scales` the crop's
    sides in image pixels. Ignored regions travel as pictures of their own, 255 inside, cut to their rectangles.

    Attributes:
        image_sizes: int64 `[B, 2]`, height and width of the whole images.
        mask_pixels: uint8 `[bytes]`, the packed rectangles.
        mask_offsets: int64 `[M]`, first byte of each rectangle.
        mask_shapes: int64 `[M, 3]`, height, width and 1.
        mask_origins: float32 `[M, 2]`, (x, y) of each rectangle's corner in its image.
        mask_index: int64 `[M]`, image of each; at most one an image.
    """

    image_sizes: Tensor = field(default_factory=lambda: torch.empty(0, 2, dtype=torch.int64))
    mask_pixels: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    mask_offsets: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    mask_shapes: Tensor = field(default_factory=lambda: torch.empty(0, 3, dtype=torch.int64))
    mask_origins: Tensor = field(default_factory=lambda: torch.empty(0, 2))
    mask_index: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))


@dataclass
class ImageBatch:
    """B whole images on the device, ready for a bottom-up network.

    Attributes:
        images: `[B, 3, H, W]`, normalised by the student's `InputSpec`.
        keypoints: for each output resolution, float32 `[B, P, K, 3]` (x, y, visibility) in its pixels.
        masks: for each output resolution, bool `[B, h, w]`: false in ignored regions and outside the image.
        matrices: float32 `[B, 2, 3]`, input pixel to original-image pixel.
        image_ids: int64 `[B]`.
        sample_ids: int64 `[B]`, the image ids again: what an error message names.
    """

    images: Tensor
    keypoints: list[Tensor]
    masks: list[Tensor]
    matrices: Tensor
    image_ids: Tensor
    sample_ids: Tensor

    def __len__(self) -> int:
        return self.images.shape[0]
