"""The data of a run are looked at before anything is trained or scored: a line for each, and refusals in words."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console

from posekd.data import PoseSource
from posekd.data.inspection import ACKNOWLEDGEABLE, Judgement, gather_facts, judge, same_images, shared
from posekd.engine import distributed
from posekd.engine.recipes.recipe import Recipe
from posekd.structures import InputSpec
from posekd.viz.crops import Tile, draw_numbered, sheet, to_pictures
from posekd.viz.inspection import short_lines

TOLD_ELSEWHERE = ("sigmas", "orientation")
"""Kinds of judgement that the short form leaves out: opening the data, or reading the images, warns of them."""


SAME_DATA = (
    "  note: val_data are the training data: their scores say what was learnt by heart, and the best network is chosen "
    "by them"
)


def examine_run(recipe: Recipe, source: PoseSource, validation: PoseSource | None) -> None:
    """Tells what a run's data hold, on standard error, and refuses what the recipe has not acknowledged.

    Args:
        recipe: of the run.
        source: the training data.
        validation: what it is validated on.

    Raises:
        ValueError: boxes that look like corners, coordinates that look normalised, or images that both splits hold
            (which is only noted where both are the same data).
    """
    flip = max(recipe.augmentation.flip, recipe.augmentation.vertical_flip)
    examine(source, recipe.train_data, "train_data", recipe.acknowledged, flip=flip)
    if validation is not None:
        examine(validation, recipe.val_data, "val_data", recipe.acknowledged)
        if recipe.val_data == recipe.train_data:  # which nobody writes by mistake
            _console().print(SAME_DATA, highlight=False, markup=False, soft_wrap=True)
        elif "shared_images" not in recipe.acknowledged:
            pairs = same_images(source, validation)
            _refuse(shared(pairs, source.records.num_images), "train_data and val_data", recipe.acknowledged)


def examine(
    source: PoseSource,
    settings: Any,
    title: str,
    acknowledged: Sequence[str] = (),
    *,
    flip: float = 0.0,
    card: bool = False,
) -> None:
    """The short form for one dataset: facts and judgements on standard error.

    Args:
        source: the dataset.
        settings: its settings.
        title: what it is called.
        acknowledged: kinds of judgement that are known of.
        flip: probability of a mirror image.
        card: whether the sigmas are those of a checkpoint's card.

    Raises:
        ValueError: a judgement that is refused and not acknowledged.
    """
    facts = gather_facts(source.records, settings, card=card)
    judgements = judge(source, facts, flip=flip, orientation=False)
    told = [j for j in judgements if j.kind not in TOLD_ELSEWHERE and not j.refused]
    console = _console()
    for line in short_lines(facts, told, title):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    _refuse(judgements, title, acknowledged)


def _console() -> Console:
    return Console(file=sys.stderr, quiet=not distributed.is_main())


def _refuse(judgements: Sequence[Judgement], title: str, acknowledged: Sequence[str]) -> None:
    found = [j for j in judgements if j.kind in ACKNOWLEDGEABLE and j.kind not in acknowledged]
    if found:
        kinds = ", ".join(judgement.kind for judgement in found)
        raise ValueError(
            f"{title}: {'; '.join(map(str, found))}. If it is meant so, say `acknowledged: [{kinds}]` in the recipe "
            f"(--acknowledged '[{kinds}]')"
        )


def draw_inputs(recipe: Recipe, source: PoseSource, spec: InputSpec, count: int = 12) -> np.ndarray:
    """A sheet of labelled inputs exactly as the network will get them, plain on the left and augmented beside it.

    Args:
        recipe: of the training.
        source: the training data.
        spec: the student's input.
        count: how many of them, spread over the dataset.

    Returns:
        uint8 RGB.
    """
    paradigm, skeleton = recipe.paradigm, source.records.skeleton
    loader = replace(recipe.loader, batch_size=1, workers=0, cache_images=False)
    sides: list[list[np.ndarray]] = []
    names: list[str] = []
    for augmentation in (None, recipe.augmentation):
        dataset = paradigm.open_loader(
            source, spec, loader, training=True, augmentation=augmentation, seed=recipe.seed
        ).dataset
        rows = np.unique(np.linspace(0, len(dataset) - 1, count).astype(int)).tolist()
        batch = paradigm.prepare(dataset.__getitems__([(0, row) for row in rows]), spec, skeleton.flip)
        pictures = to_pictures(batch.images, spec)
        sides.append(
            [draw_numbered(p, k, skeleton) for p, k in zip(pictures, batch.input_keypoints.numpy(), strict=True)]
        )
        names = [source.image_name(int(dataset.image_rows[row])) for row in rows]
    tiles = [
        tile
        for plain, changed, name in zip(*sides, names, strict=True)
        for tile in (Tile(plain, name), Tile(changed, "augmented"))
    ]
    columns = 6 if max(spec.size) <= 192 else 4
    height, width = spec.size
    title = f"inputs of {height} x {width} (height x width), plain and augmented, keypoints numbered; rings: occluded"
    return sheet([tiles[i : i + columns] for i in range(0, len(tiles), columns)], skeleton, title)
