"""The datasets that a recipe can name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from posekd.data import CocoKeypoints, CocoSettings, LspSettings, MpiiSettings, PoseSource, open_lsp, open_mpii
from posekd.data.synthetic import SyntheticPeople, SyntheticSettings

DATASETS: dict[str, tuple[type, Callable[[Any], PoseSource]]] = {
    "coco": (CocoSettings, CocoKeypoints),
    "mpii": (MpiiSettings, open_mpii),
    "lsp": (LspSettings, open_lsp),
    "synthetic": (SyntheticSettings, SyntheticPeople),
}
"""Name -> (the dataclass of its settings, what opens it)."""


def open_dataset(settings: Any) -> PoseSource:
    """Opens the dataset that `settings` describes.

    Raises:
        TypeError: they are no dataset's settings.
    """
    for kind, opener in DATASETS.values():
        if type(settings) is kind:
            return opener(settings)
    raise TypeError(f"{type(settings).__name__} are not the settings of a dataset")
