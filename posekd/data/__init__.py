"""Datasets and loading: one file per dataset (`sources`), synthetic people (`synthetic`), batches (`loading`)."""

from posekd.data.augment import CropAugmentation, ImageAugmentation
from posekd.data.loading.crops import CropDataset
from posekd.data.loading.loader import LoaderSettings, PackedLoader, crop_loader, image_loader
from posekd.data.loading.whole_images import ImageDataset
from posekd.data.photometric import Photometric, color_matrix
from posekd.data.records import BadImageError, CocoSource, PoseRecords, PoseSource
from posekd.data.sources.coco import CocoKeypoints, CocoSettings
from posekd.data.sources.labels import FewLabels, LabelSettings, WithUnlabelled
from posekd.data.sources.lsp import LspSettings, open_lsp
from posekd.data.sources.mpii import MpiiSettings, open_mpii

__all__ = [
    "BadImageError",
    "CocoKeypoints",
    "CocoSettings",
    "CocoSource",
    "CropAugmentation",
    "CropDataset",
    "FewLabels",
    "ImageAugmentation",
    "ImageDataset",
    "LabelSettings",
    "LoaderSettings",
    "LspSettings",
    "MpiiSettings",
    "PackedLoader",
    "Photometric",
    "PoseRecords",
    "PoseSource",
    "WithUnlabelled",
    "color_matrix",
    "crop_loader",
    "image_loader",
    "open_lsp",
    "open_mpii",
]
