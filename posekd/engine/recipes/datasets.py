"""The datasets that a recipe can name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from posekd.data import CocoKeypoints, CocoSettings, LspSettings, MpiiSettings, PoseRecords, PoseSource
from posekd.data.sources.coco import KeepImages
from posekd.data.sources.lsp import lsp_labels, open_lsp
from posekd.data.sources.mpii import mpii_labels, open_mpii
from posekd.data.sources.mpii_groups import MpiiGroups, MpiiGroupsSettings
from posekd.data.sources.posetrack import PoseTrackSettings, PoseTrackVideos
from posekd.data.synthetic import SyntheticPeople, SyntheticSettings, SyntheticVideos, SyntheticVideoSettings


@dataclass(frozen=True)
class Dataset:
    """A dataset that is chosen by name.

    Attributes:
        settings: the dataclass of its settings.
        open: makes the dataset from its settings.
        metrics: names of its metrics, the same as in its records.
        labels: from settings to the labels alone, for scoring result files without images; None where the metrics read
            the label file themselves.
    """

    settings: type[Any]
    open: Callable[[Any], PoseSource]
    metrics: tuple[str, ...] = ("coco_keypoints",)
    labels: Callable[[Any], PoseRecords] | None = None


DATASETS: dict[str, Dataset] = {
    "coco": Dataset(CocoSettings, CocoKeypoints),
    "mpii": Dataset(MpiiSettings, open_mpii, ("pckh", "pck_torso"), mpii_labels),
    "lsp": Dataset(LspSettings, open_lsp, ("pck",), lsp_labels),
    "mpii_groups": Dataset(MpiiGroupsSettings, MpiiGroups, ("mpii_groups",)),
    "posetrack": Dataset(PoseTrackSettings, PoseTrackVideos, ("posetrack",)),
    "synthetic": Dataset(SyntheticSettings, SyntheticPeople),
    "synthetic_video": Dataset(SyntheticVideoSettings, SyntheticVideos, ("posetrack",)),
}
"""Name in a recipe -> the dataset."""


def dataset_of(settings: Any) -> Dataset:
    """The dataset that `settings` belong to.

    Raises:
        TypeError: they are not the settings of a dataset.
    """
    for dataset in DATASETS.values():
        if type(settings) is dataset.settings:
            return dataset
    raise TypeError(f"{type(settings).__name__} are not the settings of a dataset")


def open_dataset(settings: Any, keep_images: KeepImages = "labelled") -> PoseSource:
    """Opens the dataset that `settings` describes.

    Args:
        settings: settings of a dataset.
        keep_images: which images to keep if the settings leave that open, see `CocoSettings`.

    Raises:
        TypeError: they are not the settings of a dataset.
    """
    if getattr(settings, "keep_images", "") is None:
        settings = replace(settings, keep_images=keep_images)
    return dataset_of(settings).open(settings)
