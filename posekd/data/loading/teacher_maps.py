"""A teacher's heatmaps on disk: one crop per person, unaugmented and a little larger than a training crop.

A folder holds `card.json`, `maps.bin` (`[N, K, h, w]`, one byte or a float16 per value) and, for bytes,
`ranges.bin` (float32 `[N, K, 2]`: a value is `low + step * byte`). Training warps a person's maps by the matrix that
also warps the image, so augmentation is not restricted, and the teacher is not run. If asked, there is a `tokens.bin`
(float16 `[N, length]`, each person's keypoint tokens and then visual tokens). Tokens cannot be warped: they are for
training without augmentation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from posekd import geometry
from posekd.data.loading.boxes import crops_of
from posekd.data.records import PoseRecords
from posekd.files import write_atomically
from posekd.structures import CachedMaps

CARD = "card.json"
FILES = ("maps.bin", "ranges.bin", "tokens.bin")


@dataclass(frozen=True)
class MapsCard:
    """A description of the files.

    Attributes:
        persons: N.
        shape: `(K, h, w)` of a person's maps.
        bits: 8, or 16 for float16.
        crop: `(height, width)` in pixels of the teacher's input; boxes are grown to its aspect ratio.
        margin: factor by which that input showed more of the image than an ordinary crop, in each direction.
        padding: factor by which ordinary crops are larger than boxes.
        dataset: hash of the persons, see `fingerprint`.
        teacher: the network and weights that made the maps.
        error: largest difference between a stored value of the maps and the teacher's.
        tokens: shapes of a person's keypoint tokens and visual tokens; empty if they are not stored.
        keypoints: each keypoint of the data -> the teacher's that it comes from (two: their midpoint; none: its maps
            are 0); empty where the teacher has the data's keypoints.
    """

    persons: int
    shape: tuple[int, int, int]
    bits: Literal[8, 16]
    crop: tuple[int, int]
    margin: float
    padding: float
    dataset: str
    teacher: dict[str, Any]
    error: float = 0.0
    tokens: tuple[tuple[int, int], ...] = ()
    keypoints: dict[str, list[str]] = field(default_factory=dict)

    @property
    def token_length(self) -> int:
        """Values of one person's tokens."""
        return sum(count * dim for count, dim in self.tokens)

    @property
    def bytes_per_person(self) -> int:
        """Disk space of one person."""
        K, h, w = self.shape
        return K * h * w * self.bits // 8 + (K * 8 if self.bits == 8 else 0) + 2 * self.token_length


@dataclass(frozen=True)
class Answers:
    """What a teacher says of B persons.

    Attributes:
        maps: float `[B, K, h, w]` on any device.
        tokens: its keypoint tokens and visual tokens, `[B, K, D]` and `[B, N, D]`, or nothing.
    """

    maps: Tensor
    tokens: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return self.maps.shape[0]


def fingerprint(records: PoseRecords) -> str:
    """Of the persons of a dataset, in their order: annotation ids and boxes, and the keypoints' names."""
    parts = [array.tobytes() for array in (records.sample_ids, records.boxes, records.are_exact())]
    return hashlib.sha256(b"".join((*parts, *map(str.encode, records.skeleton.keypoints)))).hexdigest()[:16]


def larger_crops(records: PoseRecords, rows: np.ndarray, card: MapsCard) -> tuple[Tensor, Tensor]:
    """Centres and scales `[B, 2]` of the cached crops of some persons."""
    centers, scales = crops_of(records, card.crop, card.padding, rows)
    return centers, scales * card.margin


def quantise(maps: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Compact form of heatmaps.

    Args:
        maps: float `[..., h, w]`.
        bits: 8, or 16 for float16.

    Returns:
        uint8 `[..., h, w]` and float32 `[..., 2]` (low, step), where a value is off by half a step at most, that
        is (max - min) / 510 of its map; or float16 maps and an empty tensor.
    """
    if bits == 16:
        return maps.half(), torch.empty(0)
    maps = maps.float()
    low, high = maps.amin((-2, -1)), maps.amax((-2, -1))
    step = (high - low) / 255
    levels = (maps - low[..., None, None]) / step.clamp_min(1e-30)[..., None, None]
    return levels.round().clamp(0, 255).byte(), torch.stack((low, step), -1)


def dequantise(maps: Tensor, ranges: Tensor) -> Tensor:
    """The inverse of `quantise`, float32."""
    if maps.dtype != torch.uint8:
        return maps.float()
    return torch.addcmul(ranges[..., :1, None], maps.float(), ranges[..., 1:, None])


class TeacherMaps:
    """The maps of a folder, read person by person; cheap to hand to worker processes.

    Args:
        folder: what `write_maps` wrote.

    Raises:
        FileNotFoundError: no complete cache there.
        ValueError: files that do not fit the card.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            facts = json.loads((folder / CARD).read_text(encoding="utf-8"))
            sizes = {key: tuple(facts[key]) for key in ("shape", "crop")}
            tokens = tuple(tuple(shape) for shape in facts.get("tokens", ()))
            self.card = MapsCard(**{**facts, **sizes, "tokens": tokens})
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{folder} holds no complete teacher cache: make it with `posekd cache-teacher`"
            ) from None
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{folder / CARD} is not the card of a teacher cache ({error})") from None
        found = sum((folder / name).stat().st_size for name in FILES if (folder / name).is_file())
        wanted = self.card.persons * self.card.bytes_per_person
        if found != wanted:
            raise ValueError(f"the teacher cache {folder} is damaged: {found} bytes instead of {wanted}; make it again")
        self._files: tuple[np.ndarray, ...] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": None}  # each process maps the files itself

    def check(self, records: PoseRecords) -> None:
        """Refuses a dataset that the cache was not made of.

        Raises:
            ValueError: the persons, boxes or number of keypoints differ.
        """
        K, persons = records.skeleton.num_keypoints, len(records)
        if (persons, K) != (self.card.persons, self.card.shape[0]) or fingerprint(records) != self.card.dataset:
            raise ValueError(
                f"the teacher cache {self.folder} is of another dataset ({self.card.persons} persons of "
                f"{self.card.shape[0]} keypoints; this one has {persons} of {K}): make it again"
            )

    def read(self, rows: np.ndarray, records: PoseRecords) -> CachedMaps:
        """What is stored of some dataset rows.

        Args:
            rows: int64 `[B]`.
            records: the dataset.
        """
        if self._files is None:
            shape = (self.card.persons, *self.card.shape)
            kind = np.uint8 if self.card.bits == 8 else np.float16
            maps: np.ndarray = np.memmap(self.folder / "maps.bin", kind, "r", shape=shape)
            ranges: np.ndarray = np.zeros((self.card.persons, 0), np.float32)
            if self.card.bits == 8:
                ranges = np.memmap(self.folder / "ranges.bin", np.float32, "r", shape=(*shape[:2], 2))
            tokens: np.ndarray = np.zeros((self.card.persons, 0), np.float16)
            if self.card.tokens:
                length = self.card.token_length
                tokens = np.memmap(self.folder / "tokens.bin", np.float16, "r", shape=(self.card.persons, length))
            self._files = maps, ranges, tokens
        maps_of, ranges_of, tokens_of = (torch.from_numpy(np.asarray(file[rows])) for file in self._files)
        parts = tokens_of.split([count * dim for count, dim in self.card.tokens], 1) if self.card.tokens else ()
        shaped = [part.unflatten(1, shape) for part, shape in zip(parts, self.card.tokens, strict=True)]
        return CachedMaps(maps_of, ranges_of, self.matrices(rows, records), shaped)

    def matrices(self, rows: np.ndarray, records: PoseRecords) -> Tensor:
        """Pixel of the cached maps to image pixel, float32 `[B, 2, 3]`, for some dataset rows."""
        crops = geometry.crop_matrices(*larger_crops(records, rows, self.card), None, None, self.card.crop)
        return geometry.heatmap_matrices(crops, self.card.crop[1] / self.card.shape[2])


def write_maps(folder: Path, card: MapsCard, batches: Iterable[Answers]) -> MapsCard:
    """Writes heatmaps, person after person; the card is written last, so an incomplete cache has none.

    Args:
        folder: created if it does not exist; an older cache in it is replaced.
        card: everything except `error`.
        batches: in the dataset's order; with tokens if the card has their shapes.

    Returns:
        The card with its measured error.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CARD).unlink(missing_ok=True)
    error = 0.0
    with ExitStack() as stack:
        maps_file, ranges_file, tokens_file = (stack.enter_context(open(folder / name, "wb")) for name in FILES)
        for answers in batches:
            maps, ranges = quantise(answers.maps, card.bits)
            error = max(error, float((dequantise(maps, ranges) - answers.maps).abs().max()))
            maps_file.write(maps.cpu().numpy().tobytes())
            ranges_file.write(ranges.cpu().numpy().tobytes())
            if answers.tokens:
                flat = torch.cat([tokens.flatten(1) for tokens in answers.tokens], 1)
                tokens_file.write(flat.half().cpu().numpy().tobytes())
    card = replace(card, error=error)
    write_atomically(folder / CARD, json.dumps(asdict(card), indent=2) + "\n")
    return card
