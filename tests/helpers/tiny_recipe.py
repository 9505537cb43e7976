"""A recipe that trains in a second or two."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from posekd.engine.recipes.recipe import Recipe, recipe_from_dict

TINY_NET = {
    "size": [64, 64], "width": 8, "modules": [1], "blocks": 1, "stem_width": 8, "stage1_width": 4, "stage1_blocks": 1,
}  # fmt: skip
TINY_BOTTOM_UP = {
    "size": [64, 64], "width": 8, "modules": [1, 1], "blocks": 1, "stem_width": 8, "stage1_width": 4,
    "stage1_blocks": 1, "deconv_blocks": 1,
}  # fmt: skip


def tiny_recipe(folder: Path | str, /, **changes: Any) -> Recipe:
    """Two epochs of plain training of `TINY_NET`, every step in the log; without data.

    Args:
        folder: of the run.
        changes: `group={...}` in place of a whole group, `group__key=value` in place of one value.
    """
    values: dict[str, Any] = {
        "student": {"name": "elpn_v1", "overrides": TINY_NET},
        "method": {"name": "supervised"},
        "loader": {"batch_size": 2, "workers": 0},
        "train": {"epochs": 2, "log_every": 1},
        "inference": {"flip_test": False},
        "out": str(folder),
    }
    for key, value in changes.items():
        group, _, name = key.partition("__")
        values[group] = {**values[group], name: value} if name else value
    return recipe_from_dict(copy.deepcopy(values))
