"""A part of the training data to validate on, where no other is given: a test set then chooses nothing."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from posekd.engine.recipes.datasets import open_dataset
from posekd.engine.recipes.recipe import Recipe


def with_held_out(recipe: Recipe) -> Recipe:
    """The recipe with `hold_out` carried out: `train_data` and `val_data` are the same labels with other `image_ids`.

    Which images are held out depends on their ids and the share alone, not on the recipe's seed: runs of several seeds
    are validated on the same ones.

    Returns:
        A recipe without `hold_out`; the same recipe where it has none.

    Raises:
        ValueError: fewer than two images, or a dataset that cannot be cut by `image_ids`.
    """
    if recipe.hold_out is None:
        return recipe
    if not hasattr(recipe.train_data, "image_ids"):
        raise ValueError(
            "hold_out cuts train_data by `image_ids`, which this dataset does not have: give val_data instead"
        )
    ids = open_dataset(recipe.train_data, recipe.paradigm.training_images).records.image_ids.tolist()
    if len(ids) < 2:
        raise ValueError(f"hold_out: {len(ids)} image cannot be cut in two")
    order = sorted(ids, key=lambda i: hashlib.sha256(str(i).encode()).digest())
    count = min(len(ids) - 1, max(1, round(recipe.hold_out * len(ids))))
    held, kept = sorted(order[:count]), sorted(order[count:])
    return replace(
        recipe,
        hold_out=None,
        train_data=replace(recipe.train_data, image_ids=kept),
        val_data=replace(recipe.train_data, image_ids=held),
    )
