"""Top-down networks: one person in a crop.

The rules are those of deep-high-resolution-net (`lib/core/function.py`, `lib/dataset/coco.py`), which the
published tables of HRNet, SimpleBaseline, FPD, ELPN and MAPD follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from posekd.codecs import coordinates, heatmaps
from posekd.data import CropAugmentation, LoaderSettings, PackedLoader, PoseSource, crop_loader
from posekd.data.loading.teacher_maps import TeacherMaps
from posekd.inputs import prepare_crops
from posekd.metrics import oks_nms, rescore
from posekd.paradigms.base import Paradigm
from posekd.precision import Precision, autocast, check_precision
from posekd.skeleton import Skeleton
from posekd.structures import CropBatch, InputSpec, Instances, PackedCropBatch

CODECS = {codec.NAME: codec for codec in (coordinates, heatmaps)}
"""The outputs of top-down networks, by `PoseModel.output`."""


@dataclass(frozen=True)
class TopDownInference:
    """How a top-down network is run; the defaults are HRNet's.

    Attributes:
        flip_test: average the network's output for a crop with that for the mirrored crop.
        shift_heatmaps: move the mirrored crop's heatmaps one column to the right before averaging.
        decode: how heatmaps become coordinates, see `ops.decode_heatmaps`.
        blur_kernel: width of the blur of `dark` in heatmap pixels: 11 for heatmaps drawn with sigma 2, 17 for sigma 3.
        released_flip: the flip test of a regression network as DistilPose released it: mirrored coordinates a pixel too
            far, scores of left and right not exchanged.
        keypoint_threshold: a person's score uses the keypoint scores above this, in 0..1.
        oks_threshold: of two poses with a higher OKS (0..1) the weaker is removed; 1 keeps all.
        precision: `fp32`, or autocast to `bf16` or `fp16`.
        channels_last: crops in channels-last memory; null follows `train.channels_last` in a run's validations, and is
            false elsewhere.
    """

    flip_test: bool = True
    shift_heatmaps: bool = True
    decode: Literal["argmax", "quarter", "dark"] = "quarter"
    blur_kernel: int = 11
    released_flip: bool = False
    keypoint_threshold: float = 0.2
    oks_threshold: float = 0.9
    precision: Precision = "fp32"
    channels_last: bool | None = None

    def __post_init__(self) -> None:
        if not 0 < self.oks_threshold <= 1:
            raise ValueError(f"oks_threshold is an OKS, above 0 and at most 1, got {self.oks_threshold}")
        check_precision(self.precision)
        if self.decode not in ("argmax", "quarter", "dark"):
            raise ValueError(f"decode must be argmax, quarter or dark, got {self.decode!r}")


def open_loader(
    source: PoseSource,
    spec: InputSpec,
    loader: LoaderSettings | None,
    *,
    training: bool,
    augmentation: CropAugmentation | None = None,
    inference: TopDownInference | None = None,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
    teacher_maps: TeacherMaps | None = None,
) -> PackedLoader:
    """Batches of crops, see `paradigms.base.OpenLoader`."""
    return crop_loader(
        source,
        spec.size,
        loader,
        training=training,
        augmentation=augmentation,
        seed=seed,
        rank=rank,
        world=world,
        teacher_maps=teacher_maps,
    )


def ask(
    model: nn.Module, images: Tensor, flip_permutation: Sequence[int] | Tensor, settings: TopDownInference
) -> tuple[Any, Any]:
    """The output of a network for crops, in a flip test averaged with that for the mirrored crops.

    Args:
        model: already in the right mode; `model.output` names its codec (heatmaps if it has none).
        images: `[B, 3, H, W]`.
        flip_permutation: K keypoint indices that a mirror exchanges.
        settings: flip test and precision.

    Returns:
        The codec, and what it has read, e.g. heatmaps float32 `[B, K, h, w]`.

    Raises:
        ValueError: an output that the codec cannot read.
    """
    codec = CODECS[getattr(model, "output", heatmaps.NAME)]
    K = len(flip_permutation)
    with autocast(images.device, settings.precision):
        output = model(images)
    said = codec.final(output, K)
    if not settings.flip_test:
        return codec, said
    with autocast(images.device, settings.precision):
        output = model(images.flip(-1))
    size = (images.shape[-2], images.shape[-1])
    return codec, codec.average(said, codec.unmirror(codec.final(output, K), flip_permutation, size, settings))


def predict(
    model: nn.Module,
    packed: PackedCropBatch,
    spec: InputSpec,
    flip_permutation: Sequence[int] | Tensor,
    settings: TopDownInference,
) -> Instances:
    """The people of a batch of crops, one per crop, see `paradigms.base.Predict`. Nothing waits for the device."""
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    crops = prepare_crops(packed, spec, flip_permutation, memory_format=layout)
    codec, said = ask(model, crops.images, flip_permutation, settings)
    return as_people(crops, codec.decode(said, crops.matrices, spec.size, settings))


def as_people(crops: CropBatch, keypoints: Tensor) -> Instances:
    """The people of crops, whose keypoints `[B, K, 3]` are in image pixels; scores are the mean of the keypoints'."""
    return Instances(
        keypoints=keypoints,
        scores=keypoints[..., 2].mean(1),
        boxes=crops.boxes,
        box_scores=crops.box_scores,
        areas=crops.areas,
        image_ids=crops.image_ids,
        sample_ids=crops.sample_ids,
    )


def suppress(found: Instances, skeleton: Skeleton, settings: TopDownInference) -> Instances:
    """Rescored people without duplicates, see `Paradigm.suppress`.

    A person's score is the box score times the mean of the keypoint scores above `keypoint_threshold`; poses are
    compared with coordinates of a thousandth of a pixel, as result files have them.
    """
    keypoints = found.keypoints.numpy().astype(np.float64)
    scores = rescore(found.box_scores.numpy(), found.keypoints[..., 2].numpy(), settings.keypoint_threshold)
    keypoints[..., :2] = keypoints[..., :2].round(3)
    areas, image_ids = found.areas.numpy(), found.image_ids.numpy()
    order = np.argsort(image_ids, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(image_ids[order])) + 1) if len(order) else []
    kept = [
        rows[oks_nms(keypoints[rows], scores[rows], areas[rows], settings.oks_threshold, sigmas=skeleton.sigmas)]
        for rows in groups
    ]
    rescored = replace(found, scores=torch.from_numpy(scores))
    return rescored.take(torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *kept])))


TOP_DOWN = Paradigm(
    name="top_down",
    unit="person",
    augmentation=CropAugmentation,
    inference=TopDownInference,
    training_images="labelled",
    evaluation_images="labelled",
    crops_boxes=True,
    finds_boxes=False,
    open_loader=open_loader,
    prepare=prepare_crops,
    predict=predict,
    suppress=suppress,
    look=predict,
)
