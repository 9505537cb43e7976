"""Exported networks as a `Finder`, whatever runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from posekd.data import PoseSource
from posekd.data.sources.arrays import ImagesInMemory
from posekd.deploy.boxes import Boxes
from posekd.deploy.facts import Facts
from posekd.deploy.forms import FORMS, Run
from posekd.names import match
from posekd.skeleton import Skeleton
from posekd.structures import Instances


class ExportedFinder:
    """A network that `posekd export` wrote.

    Args:
        facts: what its file says of itself.
        run: runs its graph.
        batch_size: people that go through the network together, at most.
    """

    def __init__(self, facts: Facts, run: Run, batch_size: int = 16) -> None:
        self.facts, self.run, self.batch_size = facts, run, batch_size
        self.skeleton: Skeleton = facts.skeleton
        self.crops_boxes = facts.paradigm.crops_boxes
        self.settings = facts.settings
        self._find = FORMS[facts.paradigm.name].find

    def pack(self, images: Sequence[np.ndarray], boxes: Sequence[Boxes] | None) -> PoseSource:
        """See `Finder`; the graph itself does the rest."""
        if boxes is not None and not self.crops_boxes:
            raise ValueError(f"a {self.facts.paradigm.title} network sees whole images: it needs no boxes")
        given = None if boxes is None else [own.boxes for own in boxes]
        scores = None if boxes is None else [own.scores for own in boxes]
        return ImagesInMemory(images, self.skeleton, given, scores)

    def find(self, packed: PoseSource) -> Instances:
        """See `Finder`."""
        found = self.find_in(packed)
        return self.facts.paradigm.suppress(found, self.skeleton, self.settings)

    def find_in(self, source: PoseSource, on_image: Callable[[int, int], None] | None = None) -> Instances:
        """All people of a dataset, before duplicates are removed, as `paradigms.inference.find_in_batches` gives them.

        Args:
            source: images and, for a network that crops boxes, their boxes.
            on_image: called with (images done, total) after each image.

        Raises:
            ValueError: the dataset has a keypoint that the network does not have, by name, or an image of a shape that
                the network cannot see.
            FloatingPointError: the network's output is not finite.
        """
        parts = []
        for row in range(source.records.num_images):
            parts.append(self._find(self.run, self.facts, source, row, self.batch_size))
            if on_image is not None:
                on_image(row + 1, source.records.num_images)
        found = Instances.concatenate([part for part in parts if len(part)], self.skeleton.num_keypoints)
        wanted = source.records.skeleton.keypoints
        if wanted == self.skeleton.keypoints:
            return found
        order = list(match(self.skeleton.keypoints, wanted))
        return replace(found, keypoints=found.keypoints[:, order])
