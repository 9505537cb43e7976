"""Modules that still import from where they were before the first release."""

from __future__ import annotations

import importlib

import pytest


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("posekd.engine.train", ["train"]),
        ("posekd.engine.recipe", ["Recipe", "read_recipe"]),
        ("posekd.data.images", ["read_rgb"]),
        ("posekd.data.regions", ["decode_mask"]),
        ("posekd.data.augment", ["draw"]),
        ("posekd.data.records", ["PoseRecords"]),
        ("posekd.data", ["CocoKeypoints", "CocoSettings"]),
        ("posekd.models", ["create_model", "load_weights", "layers"]),
    ],
)
def test_it_is_there(module: str, names: list[str]) -> None:
    found = importlib.import_module(module)
    if module == "posekd.models":
        importlib.import_module("posekd.models.layers")
    assert all(hasattr(found, name) for name in names)
