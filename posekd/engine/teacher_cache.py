"""`posekd cache-teacher`: computes the teacher's heatmaps once. Training reads them through `train.teacher_cache`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from posekd.codecs import heatmaps
from posekd.data import PoseSource, crop_loader
from posekd.data.loading.teacher_maps import MapsCard, fingerprint, write_maps
from posekd.distill.base import FrozenTeacher
from posekd.engine import distributed
from posekd.engine.build import build_teacher, open_training_data, pick_device, teacher_facts
from posekd.engine.progress import counted
from posekd.engine.recipes.recipe import Recipe
from posekd.precision import autocast

MARGIN = 1.1


def cache_teacher(
    recipe: Recipe,
    folder: Path,
    *,
    margin: float = MARGIN,
    bits: Literal[8, 16] = 8,
    on_batch: Callable[[int, int], None] | None = None,
) -> MapsCard:
    """Runs the recipe's teacher once over its training persons, unaugmented, and stores its heatmaps.

    Args:
        recipe: teacher, training data, precision and device; its method and student do not matter.
        folder: where the cache is written.
        margin: factor, 1 or more, by which the teacher is shown more of the image than in an ordinary crop, so that
            rotated and zoomed crops are covered. The number of input pixels stays the same, because a network's
            heatmaps depend on it: it has learnt where the edge of its input is.
        bits: bits per value: 8 (error at most (max - min) / 510 of each map) or 16 (float16).
        on_batch: called with (persons done, total number of persons) after each batch.

    Returns:
        The card of the cache, with its size and its measured error.

    Raises:
        ValueError: no teacher in the recipe, one without weights, or settings out of range.
        BadImageError: an image cannot be read. (A person without maps could not be trained on.)
    """
    if recipe.teacher is None:
        raise ValueError("the recipe has no teacher to cache")
    if not margin >= 1 or bits not in (8, 16):
        raise ValueError(f"margin must be 1 or more and bits 8 or 16, got {margin} and {bits}")
    if distributed.launched() > 1:
        raise ValueError("a teacher cache is written by one process: start it without torchrun")
    if not recipe.paradigm.crops_boxes:
        raise ValueError(f"a teacher cache holds crops of persons: a {recipe.paradigm.title} student has no use for it")
    device = pick_device(recipe.train.device)
    source = open_training_data(recipe)
    teacher = build_teacher(recipe, recipe.teacher, source.records.skeleton)
    teacher.model.to(device)
    card = MapsCard(
        persons=len(source.records),
        shape=_shape(teacher, device, recipe.train.precision),
        bits=bits,
        crop=teacher.spec.size,
        margin=margin,
        padding=recipe.loader.padding,
        dataset=fingerprint(source.records),
        teacher=teacher_facts(recipe.teacher),
    )
    batches = _heatmaps(teacher, source, card, recipe, device)
    return write_maps(folder, card, counted(batches, card.persons, on_batch))


@torch.inference_mode()
def _heatmaps(
    teacher: FrozenTeacher, source: PoseSource, card: MapsCard, recipe: Recipe, device: torch.device
) -> Iterator[Tensor]:
    settings = replace(recipe.loader, on_bad_image="refuse")
    for packed in crop_loader(source, card.crop, settings, training=False, margin=card.margin):
        batch = recipe.paradigm.prepare(packed.to(device), teacher.spec, source.records.skeleton.flip)
        yield _ask(teacher, batch.images, recipe.train.precision)


def _ask(teacher: FrozenTeacher, images: Tensor, precision: str) -> Tensor:
    """Heatmaps of the teacher's own input, float32."""
    spec = teacher.spec
    with autocast(images.device, precision):
        return heatmaps.read(teacher.outputs(images, spec, spec))[-1].float()


def _shape(teacher: FrozenTeacher, device: torch.device, precision: str) -> tuple[int, int, int]:
    with torch.inference_mode():
        K, h, w = _ask(teacher, torch.zeros(1, 3, *teacher.spec.size, device=device), precision).shape[1:]
    return K, h, w
