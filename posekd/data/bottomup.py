"""Whole images for bottom-up networks: HigherHRNet's augmentation, all people of an image, and its ignored regions.

As for crops, everything random is drawn in the worker as a few numbers, and pixels, joints and masks are moved by
matrices on the device. The draws follow HigherHRNet-Human-Pose-Estimation, lib/dataset/transforms/transforms.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from posekd import codecs
from posekd.data.augment import warp
from posekd.data.loading import PoseLoader
from posekd.data.packing import PackedDataset, pack_regions
from posekd.data.records import PoseSource
from posekd.data.regions import decode_mask
from posekd.data.sampler import BatchPlan, Key
from posekd.structures import ImageBatch, InputSpec, PackedImageBatch

SCALE_UNIT = 200.0  # HigherHRNet's translation is in units of a crop of 200 pixels


@dataclass(frozen=True)
class ImageAugmentation:
    """How training images vary; the defaults are HigherHRNet's.

    Attributes:
        flip: probability of a mirror image.
        rotation: largest angle in degrees, drawn evenly on both sides.
        scale: smallest and largest side of the crop in units of the image's shorter side, drawn evenly: below 1 the
            picture is enlarged.
        translation: farthest shift of the crop in x and in y, in pixels of a crop of 200.
    """

    flip: float = 0.5
    rotation: float = 30.0
    scale: tuple[float, float] = (0.75, 1.5)
    translation: float = 40.0

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip is a probability, in 0..1, got {self.flip}")
        if self.rotation < 0 or self.translation < 0:
            raise ValueError(f"rotation and translation cannot be negative, got {self.rotation}, {self.translation}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale is a smallest and a largest factor, both positive, got {self.scale}")


@dataclass(frozen=True)
class ImageDraw:
    """One image's augmentation: crop (pixels of the image), rotation (degrees), mirror."""

    center: tuple[float, float]
    side: float
    rotation: float
    flip: bool


def draw_image(augmentation: ImageAugmentation, rng: np.random.Generator, height: int, width: int) -> ImageDraw:
    """Draws one image's augmentation; `rng` is consumed in a fixed order."""
    a = augmentation
    side = min(height, width) * (a.scale[0] + (a.scale[1] - a.scale[0]) * rng.random())
    rotation = a.rotation * (2 * rng.random() - 1)
    reach = int(a.translation * side / SCALE_UNIT)  # whole pixels, as in the official code
    dx, dy = rng.integers(-reach, reach, 2) if reach else (0, 0)
    return ImageDraw((width / 2 + float(dx), height / 2 + float(dy)), side, rotation, bool(rng.random() < a.flip))


class ImageDataset(PackedDataset):
    """Whole images with all their people.

    Args:
        source: the dataset.
        size: `(height, width)` of the network's input; `side` pixels of an image fill its shorter side.
        augmentation: None for evaluation, which takes the images as they are, all pixels of them.
        seed: of the draws, each of which depends on (seed, epoch, row) alone.
        on_bad_image: "refuse" or "skip".
        reduced_decode: see `LoaderSettings`.
    """

    def __init__(
        self,
        source: PoseSource,
        size: tuple[int, int],
        *,
        augmentation: ImageAugmentation | None = None,
        seed: int = 0,
        on_bad_image: Literal["refuse", "skip"] = "refuse",
        reduced_decode: bool = False,
    ) -> None:
        records = source.records
        super().__init__(source, np.arange(records.num_images), on_bad_image, reduced_decode)
        self.size, self.augmentation, self.seed = size, augmentation, seed
        # people of image i are rows first[i] to first[i + 1]
        self._first = np.searchsorted(records.image_rows, np.arange(records.num_images + 1))

    def draw(self, key: Key) -> ImageDraw:
        """The augmentation of one image."""
        epoch, row = key
        height, width = self.source.records.image_sizes[row].tolist()
        if self.augmentation is None:
            return ImageDraw((width / 2, height / 2), min(height, width), 0.0, False)
        rng = np.random.default_rng([self.seed, epoch, row])
        return draw_image(self.augmentation, rng, height, width)

    def pixel_size(self, key: Key) -> float:
        """Image pixels a pixel of the network's input."""
        return self.draw(key).side / min(self.size)

    def pack(self, keys: Sequence[Key], images: dict[int, np.ndarray]) -> PackedImageBatch:
        """The images of `keys`: of each the rectangle that its crop samples, its people and its ignored regions."""
        records = self.source.records
        rows = np.array([row for _, row in keys], np.int64)
        draws = [self.draw(key) for key in keys]
        B, unit = len(rows), min(self.size)
        batch = PackedImageBatch(
            pixels=torch.empty(0, dtype=torch.uint8),
            offsets=torch.zeros(0, dtype=torch.int64),
            shapes=torch.zeros(0, 3, dtype=torch.int64),
            origins=torch.zeros(0, 2),
            image_index=torch.arange(B),
            keypoints=self._people(rows),
            centers=torch.tensor([d.center for d in draws], dtype=torch.float32).reshape(-1, 2),
            scales=torch.tensor([[d.side * s / unit for s in self.size[::-1]] for d in draws]).reshape(-1, 2),
            rotations=torch.tensor([d.rotation for d in draws], dtype=torch.float32),
            zooms=torch.ones(B),
            flips=torch.tensor([d.flip for d in draws], dtype=torch.bool),
            boxes=torch.zeros(B, 4),
            box_scores=torch.ones(B),
            image_ids=torch.from_numpy(records.image_ids[rows]),
            sample_ids=torch.from_numpy(records.image_ids[rows]),
            image_sizes=torch.from_numpy(records.image_sizes[rows]),
        )
        pack_regions(batch, [images[row] for row in rows.tolist()], records.image_sizes[rows], self._corners(batch))
        if self.augmentation is not None:
            _pack_masks(batch, [self._mask(row) for row in rows.tolist()])
        return batch

    def _people(self, rows: np.ndarray) -> Tensor:
        """Keypoints `[B, P, K, 3]` of the people of each image, padded with zeros."""
        keypoints = self.source.records.keypoints
        groups = [keypoints[self._first[row] : self._first[row + 1]] for row in rows]
        padded = np.zeros((len(rows), max([1, *map(len, groups)]), *keypoints.shape[1:]), np.float32)
        for out, group in zip(padded, groups, strict=True):
            out[: len(group)] = group
        return torch.from_numpy(padded)

    def _corners(self, batch: PackedImageBatch) -> np.ndarray:
        """Corners of what is sampled of each image, `[B, 4, 2]` in its pixels: of the crop, or of all of it."""
        if self.augmentation is None:
            bottom, right = (batch.image_sizes - 1).float().unbind(1)
            zero = torch.zeros_like(right)
            return torch.stack([zero, zero, right, zero, zero, bottom, right, bottom], 1).view(-1, 4, 2).numpy()
        bottom_pixel, right_pixel = self.size[0] - 1.0, self.size[1] - 1.0
        corners = torch.tensor(
            [[0.0, 0.0], [right_pixel, 0.0], [0.0, bottom_pixel], [right_pixel, bottom_pixel]], dtype=torch.float32
        )
        return codecs.transform_keypoints(corners.expand(len(batch), 4, 2), output_matrices(batch, self.size)).numpy()

    def _mask(self, row: int) -> np.ndarray | None:
        records = self.source.records
        height, width = records.image_sizes[row].tolist()
        return decode_mask(records.ignored, row, (height, width))


def _pack_masks(batch: PackedImageBatch, masks: Sequence[np.ndarray | None]) -> None:
    """Puts the bounding rectangles of ignored regions into one flat buffer of `batch`."""
    pieces, origins, index = [], [], []
    for i, mask in enumerate(masks):
        if mask is None or not mask.any():
            continue
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        pieces.append(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
        origins.append((columns[0], rows[0]))
        index.append(i)
    if not pieces:
        return
    ends = np.cumsum([piece.size for piece in pieces])
    batch.mask_pixels = torch.from_numpy(np.concatenate([piece.ravel() for piece in pieces]))
    batch.mask_offsets = torch.from_numpy(ends - [piece.size for piece in pieces])
    batch.mask_shapes = torch.tensor([(*piece.shape, 1) for piece in pieces])
    batch.mask_origins = torch.tensor(origins, dtype=torch.float32)
    batch.mask_index = torch.tensor(index)


def output_matrices(packed: PackedImageBatch, size: tuple[int, int]) -> Tensor:
    """Matrices from the pixels of an output resolution to image pixels, float32 `[B, 2, 3]`.

    A mirrored output is mirrored in its own pixels: column x comes from `width - 1 - x`, whatever the resolution, so
    the matrices of two resolutions do not differ by a factor alone.

    Args:
        packed: the images and their draws.
        size: `(height, width)` of the output, in the aspect of the network's input.
    """
    plain = codecs.crop_matrices(packed.centers, packed.scales, packed.rotations, None, size)
    return codecs.mirror_matrices(plain, packed.flips, size[1])


def share_inside(image_sizes: Tensor, matrices: Tensor, size: tuple[int, int]) -> Tensor:
    """How much of each bilinear sample of an image lies in it, 0..1, float32 `[B, *size]`.

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
    """Where a loss may look, bool `[B, *size]`: inside the image, and in no ignored region.

    HigherHRNet warps the mask of valid pixels bilinearly, with nothing beyond the image, and takes what is above 1/2.
    Bilinear sampling is linear, so that mask is the share of the sample that lies in the image, less that in ignored
    regions: only these need to be sent and warped.

    Args:
        packed: the images.
        matrices: `[B, 2, 3]`, output pixel to image pixel.
        size: `(height, width)` of the output.
    """
    from posekd import ops

    share = share_inside(packed.image_sizes, matrices, size)
    if len(packed.mask_index):
        rectangles = ops.PackedImages(packed.mask_pixels, packed.mask_offsets, packed.mask_shapes, channels=1)
        own = codecs.translate_matrices(matrices[packed.mask_index], -packed.mask_origins)
        ignored = ops.crop_warp(rectangles, own, size)[:, 0]
        share = share.index_add(0, packed.mask_index, -ignored)
    return share > 0.5


def prepare_images(
    packed: PackedImageBatch,
    spec: InputSpec,
    flip_permutation: Sequence[int] | Tensor,
    strides: Sequence[int] = (4, 2),
    *,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> ImageBatch:
    """Cuts a packed batch of images out, on the device where it lies.

    Args:
        packed: B images with their draws.
        spec: size, normalisation and colour order of the network.
        flip_permutation: K joint indices that a mirror exchanges.
        strides: input pixels a pixel of each output resolution.
        dtype: of the images.
        memory_format: of the images.

    Returns:
        B normalised images; joints and masks for each output resolution. Joints of mirrored images are exchanged,
        an unlabelled joint is (0, 0, 0).
    """
    matrices = output_matrices(packed, spec.size)
    images = warp(packed, matrices, spec, spec.size, dtype=dtype, memory_format=memory_format)
    keypoints, masks = [], []
    for stride in strides:
        size = (spec.size[0] // stride, spec.size[1] // stride)
        output = output_matrices(packed, size)
        points = codecs.transform_keypoints(packed.keypoints, codecs.invert_matrices(output)[:, None])
        points = codecs.swap_flipped(points, packed.flips, flip_permutation)
        keypoints.append(torch.where(points[..., 2:] > 0, points, 0.0))
        masks.append(valid_masks(packed, output, size))
    return ImageBatch(images, keypoints, masks, matrices, packed.image_ids, packed.sample_ids)


class SizePlan(BatchPlan):
    """Batches of images that share a size class, each image once, in the order of the first of its class.

    Args:
        classes: one hashable value an image: images of equal values may share a batch.
        batch_size: images a batch, on each rank.
        rank: this process, in 0..world-1; batches go round the ranks.
        world: number of processes.
    """

    def __init__(self, classes: Sequence[Any], batch_size: int, rank: int = 0, world: int = 1) -> None:
        super().__init__(len(classes), batch_size, shuffle=False, drop_last=False, rank=rank, world=world)
        groups: dict[Any, list[int]] = {}
        for row, kind in enumerate(classes):
            groups.setdefault(kind, []).append(row)
        batches = [g[i : i + batch_size] for g in groups.values() for i in range(0, len(g), batch_size)]
        self._batches = batches[rank::world]

    def __len__(self) -> int:
        return len(self._batches)

    def batch(self, epoch: int, step: int) -> list[Key]:
        """Keys of one batch of this rank."""
        return [(epoch, row) for row in self._batches[step]]

    def __iter__(self) -> Iterator[list[Key]]:
        for step in range(self.start, len(self)):
            yield self.batch(self.epoch, step)


class ImageLoader(PoseLoader):
    """Packed batches of whole images, epoch by epoch: `PoseLoader` for bottom-up networks.

    Args:
        source: the dataset.
        size: `(height, width)` of the training crops.
        settings: batch size (images), workers, habits.
        training: shuffle, augment and drop the incomplete last batch; otherwise every image once.
        augmentation: used in training; None takes the square in the middle, as it is.
        size_class: for evaluation, from an image's height and width to what images of one batch must share.
        more: `seed`, `rank`, `world` as for `PoseLoader`.
    """

    lost = "The image is"

    def __init__(
        self,
        source: PoseSource,
        size: tuple[int, int],
        settings: Any = None,
        *,
        training: bool,
        augmentation: ImageAugmentation | None = None,
        size_class: Callable[[int, int], Any] = lambda height, width: (height, width),
        **more: Any,
    ) -> None:
        self._size_class = size_class
        if training and augmentation is None:
            augmentation = ImageAugmentation(flip=0.0, rotation=0.0, scale=(1.0, 1.0), translation=0.0)
        super().__init__(source, size, settings, training=training, augmentation=augmentation, **more)

    def _open(
        self, source: PoseSource, size: tuple[int, int], augmentation: ImageAugmentation | None, seed: int
    ) -> ImageDataset:
        return ImageDataset(source, size, augmentation=augmentation, seed=seed, **self._habits())

    def _plan(self, training: bool, seed: int, rank: int, world: int) -> BatchPlan:
        if training:
            return super()._plan(training, seed, rank, world)
        sizes = self.dataset.source.records.image_sizes.tolist()
        classes = [self._size_class(height, width) for height, width in sizes]
        return SizePlan(classes, self.settings.batch_size, rank, world)
