"""Evaluation of bottom-up networks: a dataset's images in batches of like size, COCO's or CrowdPose's numbers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from torch import nn

from posekd.data import LoaderSettings, PoseSource
from posekd.data.bottomup import ImageLoader
from posekd.engine import distributed
from posekd.engine.bottomup import BottomUpSettings, People, find_people, input_size, remove_copies
from posekd.engine.evaluate import device_of, evaluating
from posekd.engine.progress import counted
from posekd.engine.report import EvalReport, coco_result, score_coco, to_thousandths
from posekd.structures import InputSpec, PackedImageBatch


def people_results(people: Sequence[People], category_id: int = 1) -> list[dict[str, Any]]:
    """People in COCO's results format, by image id and descending score; coordinates to a thousandth of a pixel."""
    results = []
    for image in sorted(people, key=lambda image: image.image_id):
        points = to_thousandths(image.keypoints)
        results += [
            coco_result(image.image_id, category_id, points[row], image.scores[row])
            for row in np.argsort(-image.scores, kind="stable")
        ]
    return results


def evaluate_bottom_up(
    model: nn.Module,
    source: PoseSource,
    settings: BottomUpSettings | None = None,
    *,
    loader: LoaderSettings | None = None,
    spec: InputSpec | None = None,
    results_file: str | os.PathLike[str] | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> EvalReport:
    """Runs a bottom-up network over the images of a dataset and scores it, on the device where the network is.

    In a group of processes each runs its share, and all get the same report.

    Args:
        model: see `forward_maps`; evaluated in eval mode and left in the mode it was in.
        source: the dataset, with every image that counts (`keep_images: all`).
        settings: how to evaluate.
        loader: how batches are made.
        spec: the network's input; `model.spec` by default.
        results_file: where to write the results in COCO's format, also for data without labels.
        on_batch: called with (images done, images in all) after each batch.

    Raises:
        ValueError: the network's output does not fit the dataset's keypoints, or the dataset is scored by PCK.
        FloatingPointError: the network's output is not finite.
        BadImageError: an image cannot be read, and the loader is to refuse that.
    """
    start = time.perf_counter()
    if source.records.metric != "coco":
        raise ValueError("a bottom-up network is scored by COCO's AP, and this dataset by PCK: evaluate it on crops")
    chosen, spec = settings or BottomUpSettings(), spec or model.spec  # type: ignore[assignment]
    assert isinstance(spec, InputSpec)
    skeleton, short = source.records.skeleton, chosen.size or min(spec.size)
    batches = ImageLoader(
        source,
        spec.size,
        loader,
        training=False,
        size_class=lambda height, width: input_size(height, width, short, 1.0, chosen),
        rank=distributed.rank(),
        world=distributed.world(),
    )
    device = device_of(model)
    people: list[People] = []
    with evaluating(model):
        for packed in counted(batches, source.records.num_images, on_batch):
            people += find_people(model, cast(PackedImageBatch, packed.to(device)), spec, skeleton.flip, chosen)
    people = [image for share in distributed.gather(people) for image in share]
    skipped = sum(distributed.gather(batches.skipped))
    people = [remove_copies(image, skeleton.sigmas, chosen.nms_threshold) for image in people]
    results_file = results_file if distributed.is_main() else None
    report = score_coco(lambda category_id: people_results(people, category_id), source, results_file, len(people))
    notes = [f"{skipped} images were skipped: unreadable" if skipped else "", report.note]
    return replace(report, seconds=time.perf_counter() - start, note="; ".join(note for note in notes if note))
