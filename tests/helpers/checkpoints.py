"""Checkpoints of tiny networks with cards, as `posekd train` writes them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from helpers.tiny_models import tiny_model
from posekd.models import PoseModel, save_weights
from posekd.skeleton import COCO


def checkpoint(folder: Path, name: str = "elpn_v1", recipe: dict[str, Any] | None = None, **overrides: Any) -> Path:
    """Writes `best.safetensors` of a tiny network with COCO's keypoints, and gives its path."""
    save(tiny_model(name, 17, **overrides), folder / "best.safetensors", recipe)
    return folder / "best.safetensors"


def save(model: PoseModel, path: Path, recipe: dict[str, Any] | None = None) -> None:
    """Writes weights and a card with skeleton and recipe."""
    own = {"inference": {"flip_test": False, "decode": "dark"}, "loader": {"padding": 1.1}}
    save_weights(model, path, {"skeleton": asdict(COCO), "recipe": own if recipe is None else recipe})
