"""Heatmaps of people side by side: labels, teacher and students, laid over what each network sees."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from posekd import geometry
from posekd.codecs import CODECS, heatmaps
from posekd.data import LoaderSettings
from posekd.data.sources.arrays import ImagesInMemory
from posekd.engine.report import Judged, row_of
from posekd.ops import render_heatmaps
from posekd.paradigms import paradigm_of
from posekd.paradigms.inference import device_of, evaluating, open_batches, spec_of
from posekd.viz.crops import to_pictures

HEIGHT = 256  # pixels of a picture
LABEL_SIGMA = 2.0  # heatmap pixels, where the run does not say
FAINT = 0.1  # what says nothing must not look like much


def heatmap_tiles(judged: Sequence[Judged], sample_id: int) -> list[tuple[np.ndarray, str]]:
    """Label heatmaps, and those of each network that has some, over a person's crop (or her whole image).

    Args:
        judged: networks with verdicts.
        sample_id: annotation id of the person.

    Returns:
        Pictures, uint8 RGB, with captions; none where no network has heatmaps.
    """
    tiles: list[tuple[np.ndarray, str]] = []
    for one in judged:
        row = row_of(one, sample_id)
        seen = None if row is None else _look(one, row)
        if seen is None:
            continue
        picture, maps, labels = seen
        if not tiles:
            tiles.append((_overlay(picture, labels), "labels"))
        peak = float(maps.amax())
        tiles.append((_overlay(picture, maps), f"{one.subject.name}, highest {peak:.2f}"))
    return tiles


def _look(judged: Judged, row: int) -> tuple[np.ndarray, torch.Tensor, torch.Tensor] | None:
    """A network's input, its heatmaps `[K, h, w]` and the labels'; None where it says something else."""
    subject, source = judged.subject, judged.source
    assert judged.verdict is not None
    found, skeleton, paradigm = judged.verdict.found, source.records.skeleton, paradigm_of(subject.model)
    place = int(np.flatnonzero(source.records.image_ids == found.image_ids[row])[0])
    boxes = [found.boxes[row : row + 1]] if paradigm.crops_boxes else None
    image = ImagesInMemory([source.load_image(place)], skeleton, boxes)
    loader = LoaderSettings(1, workers=0, padding=subject.padding)
    (packed,) = open_batches(subject.model, image, subject.settings, loader=loader)
    device, spec = device_of(subject.model), spec_of(subject.model)
    with evaluating(subject.model):
        batch = paradigm.prepare(packed.to(device), spec, skeleton.flip)
        said = CODECS[getattr(subject.model, "output", heatmaps.NAME)].read(subject.model(batch.images))
    maps = getattr(said, "heatmaps", said)
    maps = maps[-1] if isinstance(maps, list) else maps  # of several stages or resolutions the last
    if not isinstance(maps, torch.Tensor) or maps.ndim != 4:
        return None
    size = (maps.shape[-2], maps.shape[-1])
    truth = torch.as_tensor(found.truth[row], dtype=torch.float32)[None]
    inside = geometry.transform_keypoints(truth, geometry.invert_matrices(batch.matrices.cpu()))
    inside[..., :2] *= size[1] / batch.images.shape[-1]
    method = (subject.card.get("recipe") or {}).get("method") or {}
    labels = render_heatmaps(inside, size, float(method.get("sigma") or LABEL_SIGMA))[0]
    return to_pictures(batch.images, spec)[0], maps[0].float().cpu(), labels[0]


def _overlay(picture: np.ndarray, maps: torch.Tensor) -> np.ndarray:
    """The largest heatmap of each pixel in colour over a picture, scaled to its own highest value, or `FAINT`."""
    scale = HEIGHT / picture.shape[0]
    size = (max(1, round(picture.shape[1] * scale)), HEIGHT)
    large = cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)
    strongest = maps.amax(0).clamp_min(0).numpy()
    strongest = cv2.resize(strongest / max(float(strongest.max()), FAINT), size, interpolation=cv2.INTER_LINEAR)
    colours = cv2.applyColorMap((255 * strongest).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    weight = (0.25 + 0.65 * strongest)[..., None]
    grey = large.mean(2, keepdims=True)
    return ((1 - weight) * (0.5 * grey + 0.5 * large) + weight * colours).clip(0, 255).astype(np.uint8)
