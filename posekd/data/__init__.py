"""Datasets, loading and augmentation: one file per dataset, one interface (`PoseSource`)."""

from posekd.data.augment import Augmentation, prepare
from posekd.data.coco import CocoKeypoints, CocoSettings
from posekd.data.loading import LoaderSettings, PersonDataset, PoseLoader
from posekd.data.records import BadImageError, PoseRecords, PoseSource

__all__ = [
    "Augmentation",
    "BadImageError",
    "CocoKeypoints",
    "CocoSettings",
    "LoaderSettings",
    "PersonDataset",
    "PoseLoader",
    "PoseRecords",
    "PoseSource",
    "prepare",
]
