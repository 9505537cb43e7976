"""Persons, each with a crop of its image, packed by a loader's worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, cast

import numpy as np
import torch

from posekd import geometry
from posekd.data.augment import CropAugmentation, Draw, draw
from posekd.data.loading.boxes import crops_of
from posekd.data.loading.packing import PackedDataset, pack_regions
from posekd.data.loading.sampler import Key
from posekd.data.loading.teacher_maps import TeacherMaps
from posekd.data.photometric import looks_of
from posekd.data.records import PoseSource
from posekd.structures import PackedCropBatch, Pixels


class CropDataset(PackedDataset):
    """Persons, each with a crop of its image: each image once, and of it only what the crops of the batch sample.

    An augmentation draw depends on (seed, epoch, row) alone.

    Args:
        source: the dataset.
        size: `(height, width)` of the crops.
        augmentation: None for evaluation.
        seed: of the draws.
        on_bad_image: "refuse" or "skip".
        reduced_decode: see `LoaderSettings`.
        padding: factor by which crops are larger than boxes.
        margin: factor by which crops show more than that (a teacher cache's are larger than those trained on).
        teacher_maps: cached heatmaps of the dataset, to go with the batches.
    """

    def __init__(
        self,
        source: PoseSource,
        size: tuple[int, int],
        *,
        augmentation: CropAugmentation | None = None,
        seed: int = 0,
        on_bad_image: Literal["refuse", "skip"] = "refuse",
        reduced_decode: bool = False,
        padding: float = geometry.PADDING,
        margin: float = 1.0,
        teacher_maps: TeacherMaps | None = None,
    ) -> None:
        super().__init__(source, source.records.image_rows, on_bad_image, reduced_decode)
        self.size, self.augmentation, self.seed = size, augmentation, seed
        self.teacher_maps = teacher_maps
        centers, scales = crops_of(source.records, size, padding)
        self._centers, self._scales = centers.numpy(), (scales * margin).numpy()

    def draw(self, key: Key) -> Draw:
        """The augmentation of one sample."""
        epoch, row = key
        center, scale = self._centers[row], self._scales[row]
        if self.augmentation is None:
            return Draw(center, scale)
        records = self.source.records
        rng = np.random.default_rng([self.seed, epoch, row])
        keypoints = records.keypoints[row]
        return draw(self.augmentation, rng, center, scale, keypoints, self.size, records.skeleton.upper_body)

    def pixel_size(self, key: Key) -> float:
        """Image pixels per pixel of the person's crop."""
        drawn = self.draw(key)
        return float(drawn.scale[0]) * drawn.zoom / self.size[1]

    def stand_in(self, epoch: int, skipped: torch.Tensor) -> PackedCropBatch:
        """As `PackedDataset.stand_in`; cached heatmaps are empty, too."""
        batch = cast(PackedCropBatch, super().stand_in(epoch, skipped))
        if batch.teacher is not None:
            maps, ranges = map(torch.zeros_like, (batch.teacher.maps, batch.teacher.ranges))
            batch.teacher = replace(batch.teacher, maps=maps, ranges=ranges)
        return batch

    def pack(self, keys: Sequence[Key], images: dict[int, np.ndarray]) -> PackedCropBatch:
        """The persons of `keys`, and what their crops sample."""
        records = self.source.records
        rows = np.array([row for _, row in keys], np.int64)
        draws = [self.draw(key) for key in keys]
        slots = {image_row: slot for slot, image_row in enumerate(images)}
        index = np.array([slots[int(records.image_rows[row])] for row in rows], np.int64)
        batch = PackedCropBatch(
            pixels=Pixels.none(3),
            keypoints=torch.from_numpy(records.keypoints[rows]),
            centers=torch.from_numpy(np.array([d.center for d in draws], np.float32).reshape(-1, 2)),
            scales=torch.from_numpy(np.array([d.scale for d in draws], np.float32).reshape(-1, 2)),
            rotations=torch.tensor([d.rotation for d in draws], dtype=torch.float32),
            zooms=torch.tensor([d.zoom for d in draws], dtype=torch.float32),
            flips=torch.tensor([d.flip for d in draws], dtype=torch.bool),
            boxes=torch.from_numpy(records.boxes[rows]),
            box_scores=torch.from_numpy(records.box_scores[rows]),
            image_ids=torch.from_numpy(records.image_ids[records.image_rows[rows]]),
            sample_ids=torch.from_numpy(records.sample_ids[rows]),
            teacher=None if self.teacher_maps is None or not len(rows) else self.teacher_maps.read(rows, records),
        )
        if self.augmentation is not None:
            batch.looks = looks_of(self.augmentation.photometric, self.seed, keys)
        corners = _crop_corners(batch, self.size)
        batch.pixels = pack_regions(list(images.values()), records.image_sizes[list(images)], index, corners)
        return batch


def _crop_corners(batch: PackedCropBatch, size: tuple[int, int]) -> np.ndarray:
    """Image coordinates of the centres of the crops' corner pixels, float32 `[B, 4, 2]`."""
    bottom, right = size[0] - 1, size[1] - 1
    corners = torch.tensor([[0, 0], [right, 0], [0, bottom], [right, bottom]], dtype=torch.float32)
    return geometry.transform_keypoints(corners.expand(len(batch), 4, 2), batch.matrices(size)).numpy()
