"""Exported networks as a `Finder`: onnxruntime, and no weights of torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from posekd.data import PoseSource
from posekd.data.loading.boxes import crops_of
from posekd.data.sources.arrays import ImagesInMemory
from posekd.deploy.boxes import Boxes
from posekd.deploy.facts import Facts, from_texts
from posekd.names import match
from posekd.packages import open_session
from posekd.skeleton import Skeleton
from posekd.structures import Instances
from posekd.tracking import Look


class OnnxFinder:
    """A network that `posekd export` wrote.

    Args:
        path: the `.onnx` file.
        threads: of onnxruntime; those of torch by default.
        batch_size: people that go through the network together, at most.
        providers: onnxruntime's, by preference; the CPU's by default.

    Attributes:
        facts: what the file says of itself.

    Raises:
        MissingPackageError: onnxruntime is not installed.
        FileNotFoundError: no such file.
        ValueError: not an ONNX file, or not one of posekd's.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        threads: int | None = None,
        batch_size: int = 16,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        self.session = open_session(path, threads, providers)
        self.facts: Facts = from_texts(self.session.get_modelmeta().custom_metadata_map, str(path))
        self.skeleton: Skeleton = self.facts.skeleton
        self.crops_boxes = self.facts.paradigm.crops_boxes
        self.batch_size = batch_size
        self.settings = self.facts.settings
        self._find = FINDERS[self.facts.paradigm.crops_boxes]
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
            ValueError: the dataset has a keypoint that the network does not have, by name.
        """
        parts = []
        for row in range(source.records.num_images):
            parts.append(self._find(self, source, row))
            if on_image is not None:
                on_image(row + 1, source.records.num_images)
        found = Instances.concatenate([part for part in parts if len(part)], self.skeleton.num_keypoints)
        wanted = source.records.skeleton.keypoints
        if wanted == self.skeleton.keypoints:
            return found
        order = list(match(self.skeleton.keypoints, wanted))
        return replace(found, keypoints=found.keypoints[:, order])

    def run(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The graph's outputs.

        Raises:
            ValueError: an input of another form.
        """
        try:
            outputs: list[np.ndarray] = self.session.run(None, dict(feed))
            return outputs
        except Exception as error:  # onnxruntime's errors share no class
            raise ValueError(f"the exported network refused its input: {error}") from error


def _find_in_boxes(finder: OnnxFinder, source: PoseSource, row: int) -> Instances:
    """The people in the boxes of one image."""
    records, skeleton = source.records, finder.skeleton
    rows = np.flatnonzero(records.image_rows == row)
    if not len(rows):
        return Instances.concatenate([], skeleton.num_keypoints)
    boxes = records.boxes[rows].astype(np.float32)
    exact = records.are_exact()[rows]
    given = np.where(exact[:, None], _shrunk(boxes, finder.facts.padding), boxes)
    image = source.load_image(row)
    parts = [
        finder.run({"image": image, "boxes": given[start : start + finder.batch_size]})[0]
        for start in range(0, len(rows), finder.batch_size)
    ]
    keypoints = torch.from_numpy(np.concatenate(parts))
    _, scales = crops_of(records, finder.facts.spec.size, finder.facts.padding, rows)
    return Instances(
        keypoints=keypoints,
        scores=keypoints[..., 2].mean(1),
        boxes=torch.from_numpy(boxes),
        box_scores=torch.from_numpy(records.box_scores[rows]),
        areas=scales.prod(-1),
        image_ids=torch.from_numpy(records.image_ids[records.image_rows[rows]]),
        sample_ids=torch.from_numpy(records.sample_ids[rows]),
    )


def _shrunk(boxes: np.ndarray, padding: float) -> np.ndarray:
    """Boxes that the graph's padding makes into those given: of crops that no padding should enlarge."""
    sides = boxes[:, 2:] / padding
    return np.concatenate([boxes[:, :2] + (boxes[:, 2:] - sides) / 2, sides], 1).astype(np.float32)


FINDERS: dict[bool, Callable[[OnnxFinder, PoseSource, int], Instances]] = {True: _find_in_boxes}
"""Whether a network crops boxes -> how people are found in an image."""
