"""Exported networks as a `Finder`, whatever runs them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from posekd.data import PoseSource
from posekd.data.sources.arrays import ImagesInMemory
from posekd.deploy.boxes import Boxes
from posekd.deploy.facts import Facts
from posekd.deploy.forms import FORMS, Run
from posekd.names import match
from posekd.skeleton import Skeleton
from posekd.structures import Instances
from posekd.tracking import Look

SUFFIXES = (".onnx", ".pt2")
"""Of exported files."""


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
        self.look: Look | None = self._look if self.crops_boxes else None

    def _look(self, image: np.ndarray, boxes: np.ndarray) -> Instances:
        return self.find_in(self.pack([image], [Boxes.of(boxes)]))

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


def is_exported(name: str | os.PathLike[str]) -> bool:
    """Whether a network's name is that of an exported file."""
    return Path(name).suffix in SUFFIXES


def open_exported(path: str | os.PathLike[str], batch_size: int = 16) -> ExportedFinder:
    """Opens a file that `posekd export` wrote, by its suffix.

    Raises:
        MissingPackageError: onnxruntime, which the file needs, is not installed.
        FileNotFoundError: no such file.
        ValueError: another suffix, or not such a file.
    """
    from posekd.deploy.onnx_finder import OnnxFinder
    from posekd.deploy.program import ProgramFinder

    if not is_exported(path):
        raise ValueError(f"{path} is no exported network: their names end in {' or '.join(SUFFIXES)}")
    if Path(path).suffix == SUFFIXES[0]:
        return OnnxFinder(path, batch_size=batch_size)
    return ProgramFinder(path, batch_size)
