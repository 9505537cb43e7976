"""Datasets, loading and augmentation: one file per dataset, one interface (`PoseSource`)."""

from posekd.data.augment import Augmentation, prepare
from posekd.data.coco import CocoKeypoints, CocoSettings
from posekd.data.labels import FewLabels, LabelSettings, WithUnlabelled
from posekd.data.loading import LoaderSettings, PoseLoader
from posekd.data.lsp import LspSettings, open_lsp
from posekd.data.mpii import MpiiSettings, open_mpii
from posekd.data.packing import PersonDataset
from posekd.data.records import BadImageError, CocoSource, PoseRecords, PoseSource

__all__ = [
    "Augmentation",
    "BadImageError",
    "CocoKeypoints",
    "CocoSettings",
    "CocoSource",
    "FewLabels",
    "LabelSettings",
    "LoaderSettings",
    "LspSettings",
    "MpiiSettings",
    "PersonDataset",
    "PoseLoader",
    "PoseRecords",
    "PoseSource",
    "WithUnlabelled",
    "open_lsp",
    "open_mpii",
    "prepare",
]
