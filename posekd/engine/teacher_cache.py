"""`posekd cache-teacher`: computes the teacher's heatmaps once. Training reads them through `train.teacher_cache`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from posekd.codecs import heatmaps
from posekd.data import PoseSource, crop_loader
from posekd.data.loading.teacher_maps import Answers, MapsCard, fingerprint, write_maps
from posekd.distill.base import FrozenTeacher
from posekd.engine import distributed
from posekd.engine.build import open_training_data, pick_device
from posekd.engine.progress import counted
from posekd.engine.recipes.recipe import Recipe
from posekd.engine.teachers import build_teacher, teacher_facts
from posekd.precision import autocast

MARGIN = 1.1


def cache_teacher(
    recipe: Recipe,
    folder: Path,
    *,
    margin: float = MARGIN,
    bits: Literal[8, 16] = 8,
    tokens: bool = False,
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
        tokens: store its tokens too, in float16, for training without augmentation; `margin` must then be 1, because
            they are those of the crop that the student sees.
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
    if tokens and margin != 1:
        raise ValueError(
            f"tokens are those of the crop that the student sees: margin must be 1 with them, got {margin}"
        )
    if distributed.launched() > 1:
        raise ValueError("a teacher cache is written by one process: start it without torchrun")
    if not recipe.paradigm.crops_boxes:
        raise ValueError(f"a teacher cache holds crops of persons: a {recipe.paradigm.title} student has no use for it")
    device = pick_device(recipe.train.device)
    source = open_training_data(recipe)
    teacher = build_teacher(recipe, recipe.teacher, source.records.skeleton)
    teacher.model.to(device)
    if teacher.bridge is not None:
        print("\n".join(teacher.bridge.lines("the teacher")), file=sys.stderr)
    if tokens and not teacher.gives_tokens:
        raise ValueError(f"the teacher {recipe.teacher.name} gives no tokens: store its heatmaps alone")
    maps_shape, *token_shapes = _shapes(teacher, device, recipe.train.precision, tokens)
    card = MapsCard(
        persons=len(source.records),
        shape=(maps_shape[0], maps_shape[1], maps_shape[2]),
        tokens=tuple((count, dim) for count, dim in token_shapes),
        bits=bits,
        crop=teacher.spec.size,
        margin=margin,
        padding=recipe.loader.padding,
        dataset=fingerprint(source.records),
        teacher=teacher_facts(recipe.teacher),
        keypoints={} if teacher.bridge is None else teacher.bridge.names(),
    )
    batches = _answers(teacher, source, card, recipe, device)
    return write_maps(folder, card, counted(batches, card.persons, on_batch))


@torch.inference_mode()
def _answers(
    teacher: FrozenTeacher, source: PoseSource, card: MapsCard, recipe: Recipe, device: torch.device
) -> Iterator[Answers]:
    settings = replace(recipe.loader, on_bad_image="refuse")
    for packed in crop_loader(source, card.crop, settings, training=False, margin=card.margin):
        batch = recipe.paradigm.prepare(packed.to(device), teacher.spec, source.records.skeleton.flip)
        yield _ask(teacher, batch.images, recipe.train.precision, bool(card.tokens))


def _ask(teacher: FrozenTeacher, images: Tensor, precision: str, tokens: bool) -> Answers:
    """Heatmaps of the teacher's own input, float32, and if asked its tokens."""
    spec = teacher.spec
    with autocast(images.device, precision):
        answer = teacher.outputs(images, spec, spec)
    maps = heatmaps.read(answer)[-1].float()
    return Answers(maps, (answer.keypoint_tokens, answer.visual_tokens) if tokens else ())


def _shapes(teacher: FrozenTeacher, device: torch.device, precision: str, tokens: bool) -> list[torch.Size]:
    """Shapes of one person's maps and tokens."""
    with torch.inference_mode():
        answer = _ask(teacher, torch.zeros(1, 3, *teacher.spec.size, device=device), precision, tokens)
    return [part.shape[1:] for part in (answer.maps, *answer.tokens)]
