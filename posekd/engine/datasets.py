"""The datasets that a recipe can name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from posekd.data import CocoKeypoints, CocoSettings, LspSettings, MpiiSettings, PoseSource, open_lsp, open_mpii
from posekd.data.coco import KeepImages
from posekd.data.synthetic import SyntheticPeople, SyntheticSettings

DATASETS: dict[str, tuple[type, Callable[[Any], PoseSource]]] = {
    "coco": (CocoSettings, CocoKeypoints),
    "mpii": (MpiiSettings, open_mpii),
    "lsp": (LspSettings, open_lsp),
    "synthetic": (SyntheticSettings, SyntheticPeople),
}
"""Name -> (the dataclass of its settings, what opens it)."""


def open_dataset(settings: Any, keep_images: KeepImages = "labelled") -> PoseSource:
    """Opens the dataset that `settings` describes.

    Args:
        settings: of a dataset.
        keep_images: which images count where the settings leave that open, see `CocoSettings`.

    Raises:
        TypeError: they are no dataset's settings.
    """
    if isinstance(settings, CocoSettings) and settings.keep_images is None:
        settings = replace(settings, keep_images=keep_images)
    for kind, opener in DATASETS.values():
        if type(settings) is kind:
            return opener(settings)
    raise TypeError(f"{type(settings).__name__} are not the settings of a dataset")
