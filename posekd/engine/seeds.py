"""The same recipe with several seeds: one run after another, resumable, and a table of how much they differ."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from posekd.engine.recipes.recipe import Recipe
from posekd.engine.train import train
from posekd.files import check_writable, write_atomically

RESULTS = "seeds.json"


def train_seeds(
    recipe: Recipe, seeds: Sequence[int], on_run: Callable[[int, Path], None] | None = None
) -> dict[int, dict[str, float]]:
    """Trains a recipe with each seed, in `seedN` below its folder; what was done before is not done again.

    The seed decides weights, order and augmentation, not which data are held out.

    Args:
        recipe: of the runs.
        seeds: different from each other.
        on_run: called with seed and folder before each run.

    Returns:
        Seed -> scores after the last step. Also written to `seeds.json`, after each run.

    Raises:
        ValueError: no validation data, so that nothing could be compared, or a seed twice.
        And whatever `train` raises.
    """
    if (recipe.val_data is None and recipe.hold_out is None) or not recipe.train.validate_every:
        raise ValueError("--seeds compares scores: the recipe needs val_data and train.validate_every above 0")
    if len(set(seeds)) < len(seeds) or any(seed < 0 for seed in seeds):
        raise ValueError(f"--seeds are different numbers from 0 on, got {list(seeds)}")
    folder = Path(recipe.out)
    check_writable(folder / RESULTS)
    found: dict[int, dict[str, float]] = {}
    for seed in seeds:
        place = folder / f"seed{seed}"
        if on_run is not None:
            on_run(seed, place)
        scores = train(replace(recipe, seed=seed, out=str(place)), resume="auto")
        assert scores is not None  # validated after the last step, as checked above
        found[seed] = dict(scores)
        plain = {s: {k: v if math.isfinite(v) else None for k, v in row.items()} for s, row in found.items()}
        write_atomically(folder / RESULTS, json.dumps(plain, indent=2) + "\n")
    return found
