"""What finds people in images: a network on its device. Deployment asks for nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from posekd import geometry
from posekd.codecs.reordered import in_order_of
from posekd.data import LoaderSettings
from posekd.data.sources.arrays import ImagesInMemory
from posekd.deploy.boxes import Boxes
from posekd.paradigms import paradigm_of
from posekd.paradigms.inference import find_in_batches, looker, open_batches, settings_for
from posekd.skeleton import Skeleton
from posekd.structures import Instances, Packed
from posekd.tracking import Look


class Finder(Protocol):
    """From images to people, in two steps, so that the next images are packed while these are looked at."""

    skeleton: Skeleton
    crops_boxes: bool
    look: Look | None
    """Finds people in boxes of an image, where the network can be asked for that."""

    def pack(self, images: Sequence[np.ndarray], boxes: Sequence[Boxes] | None) -> Any:
        """Prepares uint8 RGB images, with their boxes or (None) as one person each; runs in a thread."""

    def find(self, packed: Any) -> Instances:
        """The people of packed images, on the CPU; `image_ids` count the images, `sample_ids` all their boxes."""


class NetworkFinder:
    """A network of any paradigm as a `Finder`.

    Args:
        model: on any device.
        skeleton: its K keypoints, which are matched by name where its card tells them.
        settings: its paradigm's settings of inference.
        padding: factor by which crops are larger than boxes.
        batch_size: crops or images per batch.
    """

    def __init__(
        self,
        model: nn.Module,
        skeleton: Skeleton,
        settings: Any = None,
        padding: float = geometry.PADDING,
        batch_size: int = 16,
    ) -> None:
        self.paradigm = paradigm_of(model)
        names = getattr(model, "keypoint_names", None)
        self.model, self.skeleton = in_order_of(model, names, skeleton.keypoints, "the network"), skeleton
        self.crops_boxes = self.paradigm.crops_boxes
        self.settings = settings_for(self.paradigm, settings)
        self.loader = LoaderSettings(batch_size, workers=0, padding=padding, pin_memory=True)
        self.look: Look | None = looker(self.model, skeleton, self.settings, loader=self.loader)

    def pack(self, images: Sequence[np.ndarray], boxes: Sequence[Boxes] | None) -> list[Packed]:
        """See `Finder`: the bytes that the network's batches sample.

        Raises:
            ValueError: boxes for a network that sees whole images, or boxes of another form.
        """
        if boxes is not None and not self.crops_boxes:
            raise ValueError(f"a {self.paradigm.title} network sees whole images: it needs no boxes")
        given = None if boxes is None else [own.boxes for own in boxes]
        scores = None if boxes is None else [own.scores for own in boxes]
        if not images or (given is not None and not sum(map(len, given))):
            return []
        source = ImagesInMemory(images, self.skeleton, given, scores)
        return list(open_batches(self.model, source, self.settings, loader=self.loader))

    def find(self, packed: list[Packed]) -> Instances:
        """See `Finder`.

        Raises:
            ValueError: the network's output does not fit the paradigm or the keypoints.
            FloatingPointError: the network's output is not finite.
        """
        if not packed:
            return Instances.concatenate([], self.skeleton.num_keypoints)
        found = find_in_batches(self.model, packed, self.skeleton, self.settings)
        return self.paradigm.suppress(found, self.skeleton, self.settings)

    def to(self, device: torch.device | str) -> NetworkFinder:
        """Moves the network."""
        self.model.to(device)
        return self
