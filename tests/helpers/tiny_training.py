"""A distillation of a few synthetic people that trains in seconds, and the losses in its log."""

from pathlib import Path
from typing import Any

from helpers.tiny_recipe import TINY_NET, tiny_recipe
from posekd.engine.progress import read_log
from posekd.engine.recipes.recipe import Recipe


def tiny(folder: Path, weights: str, /, **changes: Any) -> Recipe:
    """MAPD from a teacher with these weights; `changes` as in `tiny_recipe`."""
    values: dict[str, Any] = {
        "teacher": {"name": "hrnet_w32", "overrides": TINY_NET, "weights": weights},
        "method": {"name": "mapd"},
        "train_data": {"name": "synthetic", "images": 12},
        "val_data": {"name": "synthetic", "images": 4, "split": "val"},
        "loader__batch_size": 8,
        "train__validate_every": 1,
        "train__channels_last": True,
        "train__ema_decay": 0.9,
    }
    return tiny_recipe(folder, **{**values, **changes})


def losses(folder: Path) -> list[tuple[int, float]]:
    """Step and loss of every training record of the run in this folder."""
    return [(r["step"], r["loss"]) for r in read_log(folder / "log.jsonl") if r["kind"] == "train"]
