"""Distillation methods, one file each. The trainer knows them only by `base.Method`."""

from __future__ import annotations

from typing import Any

from posekd.distill.associative_embedding import AssociativeEmbedding, AssociativeEmbeddingSettings
from posekd.distill.base import CachedTeacher, FrozenTeacher, Method
from posekd.distill.distilpose import DistilPose, DistilPoseSettings
from posekd.distill.fpd import FPD, FPDSettings
from posekd.distill.mapd import MAPD, MAPDSettings
from posekd.distill.simple import Simple, SimpleSettings
from posekd.distill.smallerhrnet import SmallerHRNet, SmallerHRNetSettings
from posekd.distill.supervised import Supervised, SupervisedSettings

METHODS: dict[str, tuple[type[Any], type]] = {
    "associative_embedding": (AssociativeEmbedding, AssociativeEmbeddingSettings),
    "distilpose": (DistilPose, DistilPoseSettings),
    "fpd": (FPD, FPDSettings),
    "mapd": (MAPD, MAPDSettings),
    "simple": (Simple, SimpleSettings),
    "smallerhrnet": (SmallerHRNet, SmallerHRNetSettings),
    "supervised": (Supervised, SupervisedSettings),
}
"""Name in a recipe -> (the `Method`, built from student, teacher and settings; the dataclass of its settings)."""

__all__ = [
    "FPD",
    "MAPD",
    "METHODS",
    "AssociativeEmbedding",
    "AssociativeEmbeddingSettings",
    "CachedTeacher",
    "DistilPose",
    "DistilPoseSettings",
    "FPDSettings",
    "FrozenTeacher",
    "MAPDSettings",
    "Method",
    "Simple",
    "SimpleSettings",
    "SmallerHRNet",
    "SmallerHRNetSettings",
    "Supervised",
    "SupervisedSettings",
]
