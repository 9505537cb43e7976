"""The complete contract between a kind of network and the rest of posekd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from posekd.data import LoaderSettings, PackedLoader, PoseSource
from posekd.data.loading.teacher_maps import TeacherMaps
from posekd.data.sources.coco import KeepImages
from posekd.skeleton import Skeleton
from posekd.structures import Batch, InputSpec, Instances


class OpenLoader(Protocol):
    """From a dataset to its batches."""

    def __call__(
        self,
        source: PoseSource,
        spec: InputSpec,
        loader: LoaderSettings | None,
        *,
        training: bool,
        augmentation: Any = None,
        inference: Any = None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        teacher_maps: TeacherMaps | None = None,
    ) -> PackedLoader:
        """Opens a loader.

        Args:
            source: the dataset.
            spec: the input that the network expects.
            loader: batch size, workers, what to do about bad images.
            training: shuffled and augmented; otherwise every row once.
            augmentation: of the paradigm's type, for training.
            inference: of the paradigm's type, for everything else.
            seed: seed of shuffling and augmentation.
            rank: this process, in 0..world-1.
            world: number of processes.
            teacher_maps: cached heatmaps to go with the batches.
        """


class Prepare(Protocol):
    """From packed bytes on the device to the batch that a method is trained on."""

    def __call__(
        self,
        packed: Any,
        spec: InputSpec,
        flip_permutation: Sequence[int] | Tensor,
        *,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Batch:
        """Cuts and normalises the images, and transforms the labels accordingly."""


class Predict(Protocol):
    """From a batch to the people in it, on the batch's device."""

    def __call__(
        self, model: nn.Module, packed: Any, spec: InputSpec, flip_permutation: Sequence[int] | Tensor, settings: Any
    ) -> Instances:
        """Runs the network in its present mode, and decodes its output into image pixels."""


@dataclass(frozen=True)
class Paradigm:
    """How a kind of network processes images: a record of plain functions.

    Engine, command line and deployment use only this record. Code that would need to compare its name needs a new field
    here instead.

    Attributes:
        name: as `PoseModel.paradigm`, `Method.paradigm` and a checkpoint's card have it.
        unit: what a row of a batch is, `person` or `image`, for messages, throughput and reports.
        augmentation: the dataclass of a recipe's group `augmentation`.
        inference: the dataclass of a recipe's group `inference`.
        training_images: which images a COCO dataset keeps for training, unless its settings say so.
        evaluation_images: likewise for evaluation.
        crops_boxes: whether a row is a box that is given, by labels or a detector. Such a row may lack labels
            (`labels`, `unlabelled_data`), and a teacher's heatmaps of it can be stored (`train.teacher_cache`).
        finds_boxes: whether people come with boxes that the network has detected, which are scored as such.
        open_loader: see `OpenLoader`.
        prepare: see `Prepare`.
        predict: see `Predict`.
        suppress: scores the people found and removes duplicates, image by image, given the skeleton and the settings
            of inference; by image id and descending score.
        look: the people in boxes that the dataset gives, one for each in its order, which `sample_ids` count, and
            before duplicates are removed; None where the network cannot be asked for boxes. Like `predict` otherwise.
    """

    name: str
    unit: Literal["person", "image"]
    augmentation: type[Any]
    inference: type[Any]
    training_images: KeepImages
    evaluation_images: KeepImages
    crops_boxes: bool
    finds_boxes: bool
    open_loader: OpenLoader
    prepare: Prepare
    predict: Predict
    suppress: Callable[[Instances, Skeleton, Any], Instances]
    look: Predict | None = None

    @property
    def title(self) -> str:
        """The name in a sentence: `top-down`."""
        return self.name.replace("_", "-")
