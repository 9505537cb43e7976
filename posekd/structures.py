"""The typed batches and results that the parts of posekd exchange."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from posekd import geometry

Tree = TypeVar("Tree")


def map_tensors(tree: Tree, function: Callable[[Tensor], Tensor]) -> Tree:
    """A copy of a dataclass with `function` applied to every tensor in it, in nested dataclasses and lists too."""
    if isinstance(tree, Tensor):
        return function(tree)  # type: ignore[return-value]
    if isinstance(tree, list):
        return [map_tensors(item, function) for item in tree]  # type: ignore[return-value]
    if is_dataclass(tree) and not isinstance(tree, type):
        return replace(tree, **{f.name: map_tensors(getattr(tree, f.name), function) for f in fields(tree)})
    return tree


@dataclass(frozen=True)
class InputSpec:
    """The input that a network expects.

    Attributes:
        size: `(height, width)` of the input in pixels.
        mean: channel means after division by 255, in the network's channel order.
        std: channel standard deviations after division by 255, same order.
        bgr: whether the channels are blue, green, red (SimpleBaseline, FPD) rather than red, green, blue.
    """

    size: tuple[int, int] = (256, 192)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    bgr: bool = False


@dataclass
class Pixels:
    """Packed uint8 regions of N images (or masks), and the region that each of B rows is cut from.

    Attributes:
        data: uint8 `[bytes]`, the packed HWC regions.
        offsets: int64 `[N]`, first byte of each region in `data`.
        shapes: int64 `[N, 3]`, height, width, channels (3 red, green, blue; 1 for masks) of each region.
        origins: float32 `[N, 2]`, (x, y) of each region's corner in its decoded image.
        index: int64 `[B]`, region of each row.
        reductions: float32 `[N]`, factor 1, 2, 4 or 8 by which each image was decoded smaller; empty if all are whole.
    """

    data: Tensor
    offsets: Tensor
    shapes: Tensor
    origins: Tensor
    index: Tensor
    reductions: Tensor = field(default_factory=lambda: torch.empty(0))

    def rows(self, which: slice) -> Pixels:
        """The same regions for some of the rows; no byte is copied."""
        return replace(self, index=self.index[which])

    @staticmethod
    def none(channels: int) -> Pixels:
        """No region and no row."""
        shapes, ids = torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
        shapes[:, 2] = channels
        return Pixels(torch.empty(0, dtype=torch.uint8), ids, shapes, torch.zeros(0, 2), ids)


@dataclass
class Looks:
    """How augmentation changes the look of B inputs; an empty tensor changes nothing.

    Attributes:
        colors: float32 `[B, 3, 4]`, on (red, green, blue, 1) of 0 to 255; or `[0, 3, 4]`.
        blurred: int64 `[n]`, rows that are blurred.
        blurs: float32 `[n, taps]`, the kernel of each along a row or column of the input.
        noisy: int64 `[m]`, rows with noise.
        noises: float32 `[m]`, its standard deviation in grey levels of 255.
        noise_seeds: m seeds.
        rectangles: float32 `[B, R, 4]` (left, top, right, bottom) as shares of the input, cut out; zeros for none.
    """

    colors: Tensor
    blurred: Tensor
    blurs: Tensor
    noisy: Tensor
    noises: Tensor
    noise_seeds: list[int]
    rectangles: Tensor


@dataclass
class CachedMaps:
    """A teacher's stored heatmaps of B persons (`data.loading.teacher_maps`).

    Attributes:
        maps: uint8 or float16 `[B, K, h, w]`.
        ranges: float32 `[B, K, 2]`, what the bytes of `maps` mean.
        matrices: float32 `[B, 2, 3]`, pixel of `maps` to image pixel.
        tokens: the keypoint tokens and visual tokens of these crops, float16 `[B, K, D]` and `[B, N, D]`, or nothing.
    """

    maps: Tensor
    ranges: Tensor
    matrices: Tensor
    tokens: list[Tensor] = field(default_factory=list)


@dataclass
class PackedCropBatch:
    """What a loader's worker packs for top-down networks: decoded pixels, and facts about B persons.

    Several persons of one image share its pixels. Coordinates are pixels of the original image.

    Attributes:
        pixels: the regions that the crops sample, and the region of each person.
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
        teacher: the cached teacher's heatmaps of these persons, if there is a cache.
        looks: how augmentation changes the look of each crop; None where it does not.
    """

    pixels: Pixels
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
    teacher: CachedMaps | None = None
    looks: Looks | None = None

    def __len__(self) -> int:
        return self.keypoints.shape[0]

    def matrices(self, size: tuple[int, int]) -> Tensor:
        """Crop pixel to original-image pixel, float32 `[B, 2, 3]`, for crops of `size` (height, width)."""
        scales = self.scales * self.zooms[:, None]
        return geometry.crop_matrices(self.centers, scales, self.rotations, self.flips, size)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> PackedCropBatch:
        """Moves every tensor to `device`."""
        return map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PackedCropBatch:
        """Pins every tensor (called by the DataLoader)."""
        return map_tensors(self, Tensor.pin_memory)


@dataclass
class CropBatch:
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
        teacher_maps: float32 `[B, K, H / 4, W / 4]`, the cached teacher's heatmaps of these crops.
        teacher_tokens: the cached teacher's keypoint tokens and visual tokens, if they are stored.
        pixels: the pixels that the crops were cut from, so that a method can cut again (`inputs.warp`).
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
    teacher_tokens: list[Tensor] = field(default_factory=list)
    pixels: Pixels | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return self.keypoints.shape[0]

    @property
    def input_keypoints(self) -> Tensor:
        """All labels of each input in its pixels, float32 `[B, P, K, 3]`; P is 1 here."""
        return self.keypoints[:, None]

    def rows(self, which: slice) -> CropBatch:
        """Some of the persons."""
        return _rows(self, which)


@dataclass
class PackedImageBatch:
    """What a loader's worker packs for networks that see whole images: B images with all their people.

    Attributes:
        pixels: the regions that the crops sample; row i is image i.
        keypoints: float32 `[B, P, K, 3]` (x, y, visibility) in image pixels, padded with visibility 0 to the most
            people of an image (at least 1).
        centers: float32 `[B, 2]`, crop centre (x, y).
        scales: float32 `[B, 2]`, crop width and height in image pixels.
        rotations: float32 `[B]`, degrees of rotation drawn by augmentation (0 without).
        flips: bool `[B]`, whether augmentation mirrors the image.
        image_ids: int64 `[B]`.
        image_sizes: int64 `[B, 2]`, height and width of the whole images.
        outlines: float32 `[B, P, V, 2]`, points that bound each person, in image pixels; all alike for nobody.
        masks: rectangles around the ignored regions of M images, 255 inside; at most one per image.
        mask_rows: int64 `[M]`, row of the image that each mask belongs to.
        skipped: int64 `[S]`, dataset rows of images left out because they could not be read.
        looks: how augmentation changes the look of each image; None where it does not.
    """

    pixels: Pixels
    keypoints: Tensor
    centers: Tensor
    scales: Tensor
    rotations: Tensor
    flips: Tensor
    image_ids: Tensor
    image_sizes: Tensor
    outlines: Tensor = field(default_factory=lambda: torch.empty(0))
    masks: Pixels = field(default_factory=lambda: Pixels.none(1))
    mask_rows: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    skipped: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    looks: Looks | None = None

    def __len__(self) -> int:
        return self.keypoints.shape[0]

    def matrices(self, size: tuple[int, int]) -> Tensor:
        """Pixel of an output of `size` (height, width) to image pixel, float32 `[B, 2, 3]`.

        A mirrored output is mirrored in its own pixels: column x comes from `width - 1 - x`, whatever the resolution,
        so the matrices of two resolutions do not differ by a factor alone.
        """
        plain = geometry.crop_matrices(self.centers, self.scales, self.rotations, None, size)
        return geometry.mirror_matrices(plain, self.flips, size[1])

    def to(self, device: torch.device | str, non_blocking: bool = True) -> PackedImageBatch:
        """Moves every tensor to `device`."""
        return map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PackedImageBatch:
        """Pins every tensor (called by the DataLoader)."""
        return map_tensors(self, Tensor.pin_memory)


@dataclass
class ImageBatch:
    """B whole images on the device, ready for a network that sees all people at once.

    Attributes:
        images: `[B, 3, H, W]`, normalised by the student's `InputSpec`.
        keypoints: for each output resolution, float32 `[B, P, K, 3]` (x, y, visibility) in its pixels.
        masks: for each output resolution, bool `[B, h, w]`: false in ignored regions and outside the image.
        matrices: float32 `[B, 2, 3]`, input pixel to original-image pixel.
        image_ids: int64 `[B]`.
        boxes: float32 `[B, P, 4]` (x1, y1, x2, y2) in input pixels, of the same people, within the input; zeros for
            whom nothing is to be seen there. None where nobody asks for them.
        pixels: the pixels that the images were cut from, so that a method can cut again (`inputs.warp`).
        colors: float32 `[B, 3, 4]`, the colour matrices that they were cut with; None for none.
    """

    images: Tensor
    keypoints: list[Tensor]
    masks: list[Tensor]
    matrices: Tensor
    image_ids: Tensor
    boxes: Tensor | None = field(default=None, kw_only=True)
    pixels: Pixels | None = field(default=None, kw_only=True)
    colors: Tensor | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def sample_ids(self) -> Tensor:
        """The image ids, which error messages name."""
        return self.image_ids

    @property
    def input_keypoints(self) -> Tensor:
        """All labels of each input in its pixels, float32 `[B, P, K, 3]`."""
        finest = self.keypoints[-1].clone()
        finest[..., :2] *= self.images.shape[-1] / self.masks[-1].shape[-1]
        return finest

    def rows(self, which: slice) -> ImageBatch:
        """Some of the images."""
        return _rows(self, which)


Packed = PackedCropBatch | PackedImageBatch
"""The batches that loaders give, one type per paradigm."""
Batch = CropBatch | ImageBatch
"""The batches that methods are trained on, one type per paradigm."""


def _rows(batch: Any, which: slice) -> Any:
    """A batch of some rows: every tensor, list of tensors and `Pixels` in it has one entry per row."""

    def take(value: Any) -> Any:
        if isinstance(value, list):
            return [item[which] for item in value]
        return value.rows(which) if isinstance(value, Pixels) else value[which]

    given = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return replace(batch, **{name: take(value) for name, value in given.items() if value is not None})


@dataclass
class Instances:
    """N people that a network has found, in pixels of their images.

    Attributes:
        keypoints: float32 `[N, K, 3]` (x, y, score); (0, 0, 0) where a keypoint was not found.
        scores: `[N]`, one per person.
        boxes: float32 `[N, 4]` (x, y, width, height): the boxes that were cropped, or boxes around the keypoints.
        box_scores: float32 `[N]`, scores of the detector; 1 if there was none.
        areas: float32 `[N]`, area of the crop or of the box in square pixels, for OKS between people.
        image_ids: int64 `[N]`.
        sample_ids: int64 `[N]`, annotation id or row of the detection; -1 for people that the network itself found.
        track_ids: int64 `[N]`, the same number for the same person over a video's frames; None without tracking.
    """

    keypoints: Tensor
    scores: Tensor
    boxes: Tensor
    box_scores: Tensor
    areas: Tensor
    image_ids: Tensor
    sample_ids: Tensor
    track_ids: Tensor | None = None

    def __len__(self) -> int:
        return self.keypoints.shape[0]

    def take(self, rows: Tensor | Sequence[int]) -> Instances:
        """Some of the people, in the order of `rows` (int64 `[M]`, or bool `[N]` in the order they are in)."""
        index = torch.as_tensor(rows, device=self.keypoints.device)
        if index.dtype != torch.bool:
            index = index.long()
        return map_tensors(self, lambda column: column[index])

    def to(self, device: torch.device | str) -> Instances:
        """Moves every column to `device`."""
        return map_tensors(self, lambda column: column.to(device))

    @staticmethod
    def concatenate(parts: Sequence[Instances], num_keypoints: int) -> Instances:
        """The people of all parts, one after another, on the parts' device; no people if there is no part.

        Args:
            parts: on one device, all with track ids or all without.
            num_keypoints: K, for the shape if there are no people.
        """
        if not parts:
            none, ids = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
            return Instances(torch.zeros(0, num_keypoints, 3), none, torch.zeros(0, 4), none, none, ids, ids)
        columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(Instances)}
        joined = {name: torch.cat(column) for name, column in columns.items() if column[0] is not None}
        return Instances(**joined)
