"""Evaluation of top-down networks: forward, flip test, decoding, and the dataset's metric: COCO's AP or PCK.

The rules are those of deep-high-resolution-net (`lib/core/function.py`, `lib/dataset/coco.py`), which the
published tables of HRNet, SimpleBaseline, FPD, ELPN and MAPD follow.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from posekd import codecs, ops
from posekd.data import LoaderSettings, PoseLoader, PoseSource, prepare
from posekd.engine import distributed
from posekd.engine.evaluate_pck import check_results_file, predictions, score_pck, write_mat
from posekd.engine.progress import counted
from posekd.engine.report import EvalReport, coco_result, not_scored, score_coco, to_thousandths, write_results
from posekd.metrics import oks_nms, rescore
from posekd.structures import InputSpec, PoseBatch

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class EvalSettings:
    """How a top-down network is evaluated; the defaults are HRNet's.

    Attributes:
        flip: average the heatmaps with those of the mirrored crop.
        shift: move the mirrored crop's heatmaps one column to the right before averaging.
        decode: how heatmaps become coordinates, see `ops.decode_heatmaps`.
        blur_kernel: of `dark`: 11 for heatmaps drawn with sigma 2, 17 for sigma 3.
        joint_threshold: joint scores above it make the pose's score.
        nms_threshold: of two poses with a higher OKS the weaker is removed; 1 keeps all.
        precision: `fp32`, or autocast to `bf16` or `fp16`.
        channels_last: crops in channels-last memory.
    """

    flip: bool = True
    shift: bool = True
    decode: Literal["argmax", "quarter", "dark"] = "quarter"
    blur_kernel: int = 11
    joint_threshold: float = 0.2
    nms_threshold: float = 0.9
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.nms_threshold <= 1:
            raise ValueError(f"nms_threshold is an OKS, above 0 and at most 1, got {self.nms_threshold}")
        if self.precision not in ("fp32", *AUTOCAST):
            raise ValueError(f"precision must be fp32, bf16 or fp16, got {self.precision!r}")
        if self.decode not in ("argmax", "quarter", "dark"):
            raise ValueError(f"decode must be argmax, quarter or dark, got {self.decode!r}")


@dataclass(frozen=True)
class Poses:
    """What a network says about N crops, in pixels of their images.

    Attributes:
        keypoints: float32 `[N, K, 3]` (x, y, heatmap maximum).
        box_scores: float32 `[N]`.
        areas: float32 `[N]`, of the crops in square pixels.
        image_ids: int64 `[N]`.
        sample_ids: int64 `[N]`, annotation id or row of the detection.
    """

    keypoints: np.ndarray
    box_scores: np.ndarray
    areas: np.ndarray
    image_ids: np.ndarray
    sample_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.keypoints)


def evaluate(
    model: nn.Module,
    source: PoseSource,
    settings: EvalSettings | None = None,
    *,
    loader: LoaderSettings | None = None,
    spec: InputSpec | None = None,
    results_file: str | os.PathLike[str] | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> EvalReport:
    """Runs a top-down network over a dataset and scores it, on the device where the network is.

    In a group of processes each runs its share, and all get the same report.

    Args:
        model: gives heatmaps `[B, K, h, w]`; evaluated in eval mode and left in the mode it was in.
        source: the dataset; its boxes (labelled or detected) are what is cropped.
        settings: how to evaluate.
        loader: how batches are made.
        spec: the network's input; `model.spec` by default.
        results_file: where to write the results, also for data without labels: in COCO's format; for PCK a list of
            predictions, or (`.mat`) the variables that MPII's and LSP's scripts read.
        on_batch: called with (crops done, crops in all) after each batch.

    Raises:
        ValueError: the network's output does not fit the dataset's keypoints.
        FloatingPointError: the network's output is not finite.
        BadImageError: an image cannot be read, and the loader is to refuse that.
    """
    start = time.perf_counter()
    settings, spec = settings or EvalSettings(), spec or _spec_of(model)
    device = device_of(model)
    # there once: a list would be copied with every batch, and the host wait for it
    flip = torch.as_tensor(source.records.skeleton.flip, device=device)
    if results_file is not None:
        check_results_file(source, Path(results_file))
    rank, world = distributed.rank(), distributed.world()
    batches = PoseLoader(source, spec.size, loader, training=False, rank=rank, world=world)
    crops = _crops(batches, spec, flip, device, settings)
    poses = predict(model, counted(crops, len(source.records), on_batch), flip, settings)
    if world > 1:
        poses = _gather(poses, source.records.sample_ids)
        batches.skipped = sum(distributed.gather(batches.skipped))
    results_file = results_file if distributed.is_main() else None
    judge = _judge_by_coco if source.records.metric == "coco" else _judge_by_pck
    report = judge(poses, source, settings, results_file)
    notes = [f"{batches.skipped} persons were skipped: unreadable images" if batches.skipped else "", report.note]
    note = "; ".join(n for n in notes if n)
    return replace(report, seconds=time.perf_counter() - start, note=note)


def _judge_by_coco(
    poses: Poses, source: PoseSource, settings: EvalSettings, results_file: str | os.PathLike[str] | None
) -> EvalReport:
    def results(category_id: int) -> list[dict[str, Any]]:
        return coco_results(poses, source.records.skeleton.sigmas, settings, category_id)

    return score_coco(results, source, results_file, len(poses))


def _judge_by_pck(
    poses: Poses, source: PoseSource, settings: EvalSettings, results_file: str | os.PathLike[str] | None
) -> EvalReport:
    results = predictions(poses.keypoints, poses.sample_ids, source)
    if results_file is not None and Path(results_file).suffix == ".mat":
        write_mat(results, source, Path(results_file))
    elif results_file is not None:
        write_results(results, results_file)
    score, torso, note = score_pck(poses.keypoints, poses.sample_ids, source.records)
    if score is None:
        note = not_scored(note, results_file)
    return EvalReport(None, results, len(poses), 0.0, note, score, torso)


def predict(
    model: nn.Module,
    batches: Iterable[PoseBatch],
    flip_permutation: Sequence[int] | Tensor,
    settings: EvalSettings | None = None,
) -> Poses:
    """Runs a network over crops and decodes its heatmaps into image pixels.

    Results stay on the device until the last batch: nothing waits for the device in between.

    Args:
        model: gives heatmaps `[B, K, h, w]`; run in eval mode and left in the mode it was in.
        batches: crops on the network's device.
        flip_permutation: K joint indices that a mirror exchanges; on the device, so that nothing waits for it.
        settings: flip test, decoding, precision.

    Raises:
        ValueError: the output is no heatmap tensor of K channels.
        FloatingPointError: the output is not finite.
    """
    settings = settings or EvalSettings()
    parts: list[tuple[Tensor, ...]] = []
    with evaluating(model):
        for batch in batches:
            heatmaps = forward_heatmaps(model, batch.images, flip_permutation, settings)
            keypoints = decode(heatmaps, batch, settings)
            parts.append((keypoints, batch.box_scores, batch.areas, batch.image_ids, batch.sample_ids))
    if not parts:
        K = len(flip_permutation)
        empty, ids = np.zeros(0, np.float32), np.zeros(0, np.int64)
        return Poses(np.zeros((0, K, 3), np.float32), empty, empty, ids, ids)
    poses = Poses(*(torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)))
    _refuse_non_finite(poses)
    return poses


def device_of(model: nn.Module) -> torch.device:
    """Where the network is."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without autograd for a while; then the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def forward_heatmaps(
    model: nn.Module, images: Tensor, flip_permutation: Sequence[int] | Tensor, settings: EvalSettings
) -> Tensor:
    """Heatmaps of crops, averaged with those of the mirrored crops in a flip test.

    The mirrored crop's heatmaps are mirrored back, left and right joints exchanged, and (`shift`) moved one
    column to the right, column 0 staying as it is. (Input column x becomes W - 1 - x, heatmap column x / 4
    should become W / 4 - x / 4 - 1 / 4, but mirroring the map gives W / 4 - x / 4 - 1: 3/4 of a column less.)

    Args:
        model: in the mode it is to run in.
        images: `[B, 3, H, W]`.
        flip_permutation: K joint indices that a mirror exchanges.
        settings: flip test and precision.

    Returns:
        float32 `[B, K, h, w]`.
    """
    heatmaps = _heatmaps(model, images, len(flip_permutation), settings.precision)
    if not settings.flip:
        return heatmaps
    mirrored = _heatmaps(model, images.flip(-1), len(flip_permutation), settings.precision)
    order = torch.as_tensor(flip_permutation, device=mirrored.device)
    mirrored = mirrored.flip(-1)[:, order]
    if settings.shift:
        mirrored = torch.cat((mirrored[..., :1], mirrored[..., :-1]), dim=-1)
    return (heatmaps + mirrored) * 0.5


def decode(heatmaps: Tensor, batch: PoseBatch, settings: EvalSettings) -> Tensor:
    """Keypoints `[B, K, 3]` (x, y, score) in image pixels from heatmaps of a batch's crops.

    Raises:
        ValueError: heatmaps whose aspect is not the crop's.
    """
    (height, width), (h, w) = batch.images.shape[-2:], heatmaps.shape[-2:]
    if height * w != width * h:
        raise ValueError(f"heatmaps of {h}x{w} do not cover crops of {height}x{width} evenly")
    matrices = codecs.heatmap_matrices(batch.matrices, width / w)
    return ops.decode_heatmaps(heatmaps, settings.decode, matrices=matrices, blur_kernel=settings.blur_kernel)


def coco_results(
    poses: Poses, sigmas: Sequence[float], settings: EvalSettings, category_id: int = 1
) -> list[dict[str, Any]]:
    """Poses in COCO's results format: rescored, and freed of duplicates image by image.

    Args:
        poses: in any order.
        sigmas: K OKS constants.
        settings: thresholds of rescoring and duplicate removal.
        category_id: the label file's id of the category.

    Returns:
        `{image_id, category_id, keypoints: 3K numbers, score}` by image id and descending score. Coordinates
        are rounded to a thousandth of a pixel.
    """
    scores = rescore(poses.box_scores, poses.keypoints[..., 2], settings.joint_threshold)
    keypoints = to_thousandths(poses.keypoints)
    order = np.argsort(poses.image_ids, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(poses.image_ids[order])) + 1) if len(order) else []
    results = []
    for rows in groups:
        kept = oks_nms(keypoints[rows], scores[rows], poses.areas[rows], settings.nms_threshold, sigmas=sigmas)
        results += [
            coco_result(int(poses.image_ids[row]), category_id, keypoints[row], scores[row]) for row in rows[kept]
        ]
    return results


def _heatmaps(model: nn.Module, images: Tensor, num_keypoints: int, precision: str) -> Tensor:
    dtype = AUTOCAST.get(precision)
    with torch.autocast(images.device.type, dtype, enabled=dtype is not None):
        output = model(images)
    if isinstance(output, (list, tuple)) and output:
        output = output[-1]  # of several stages the last has seen the most
    if not isinstance(output, Tensor) or output.ndim != 4:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"a top-down network gives heatmaps [B, K, h, w], one a stage or one; this one gives {found}")
    if output.shape[1] != num_keypoints:
        raise ValueError(f"the network has {output.shape[1]} heatmaps, the dataset {num_keypoints} keypoints")
    return output.float()


def _crops(
    batches: PoseLoader,
    spec: InputSpec,
    flip: Tensor,
    device: torch.device,
    settings: EvalSettings,
) -> Iterator[PoseBatch]:
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    for packed in batches:
        yield prepare(packed.to(device), spec, flip, memory_format=layout)


def _gather(poses: Poses, sample_ids: np.ndarray) -> Poses:
    """The poses of all processes, in the dataset's order: as one process would have found them."""
    parts = distributed.gather(poses)
    columns = [np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Poses)]
    place = {sample: row for row, sample in enumerate(sample_ids.tolist())}
    order = np.argsort([place[sample] for sample in columns[-1].tolist()], kind="stable")
    return Poses(*(column[order] for column in columns))


def _refuse_non_finite(poses: Poses) -> None:
    bad = np.flatnonzero(~np.isfinite(poses.keypoints).all(axis=(1, 2)))
    if len(bad):
        raise FloatingPointError(
            f"the network gives NaN or infinite heatmaps for {len(bad)} of {len(poses)} persons, first "
            f"{poses.sample_ids[bad[0]]} of image {poses.image_ids[bad[0]]}: check its weights, or evaluate "
            "in fp32"
        )


def _spec_of(model: nn.Module) -> InputSpec:
    spec = getattr(model, "spec", None)
    if not isinstance(spec, InputSpec):
        raise ValueError(f"{type(model).__name__} has no `spec`: say what input it wants with `spec=InputSpec(...)`")
    return spec
