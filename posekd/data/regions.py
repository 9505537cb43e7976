"""Regions that no bottom-up loss may look at, from COCO segmentations: crowds, and people without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from pycocotools import mask as rle

from posekd.data.records import Regions


def is_ignored(annotation: Mapping[str, Any]) -> bool:
    """Whether an annotation's region is ignored: a crowd, or a person without a labelled keypoint."""
    if annotation.get("iscrowd", 0):
        return True
    labelled = annotation.get("num_keypoints")
    if labelled is None:
        labelled = sum(v > 0 for v in (annotation.get("keypoints") or ())[2::3])
    return labelled == 0


def ignored_regions(
    annotations: Sequence[Mapping[str, Any]], images: Mapping[int, Mapping[str, Any]], file: str
) -> Regions:
    """The ignored regions of a label file, by HigherHRNet's rule. Without a segmentation nothing is ignored.

    Args:
        annotations: those of the category, on any image.
        images: image entries by id, in the order of the rows.
        file: its name, for messages.

    Raises:
        ValueError: a segmentation that cannot be read; the message names the annotation.
    """
    rows = {image_id: row for row, image_id in enumerate(images)}
    found: list[tuple[int, bytes]] = []
    for annotation in annotations:
        image = images.get(annotation.get("image_id", -1))
        if image is None or not is_ignored(annotation) or not annotation.get("segmentation"):
            continue
        try:
            runs = _encode(annotation["segmentation"], image["height"], image["width"])
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise ValueError(
                f"{file}: annotation {annotation.get('id')} (image {annotation['image_id']}) has a segmentation that "
                f"is neither polygons nor run lengths ({error})"
            ) from None
        if runs is not None:
            found.append((rows[annotation["image_id"]], runs))
    found.sort(key=lambda pair: pair[0])
    return Regions(
        image_rows=np.array([row for row, _ in found], np.int64),
        ends=np.cumsum([len(runs) for _, runs in found], dtype=np.int64),
        runs=np.frombuffer(b"".join(runs for _, runs in found), np.uint8),
    )


def _encode(segmentation: Any, height: int, width: int) -> bytes | None:
    """Compressed run lengths of polygons, or of run lengths in either form; None if the polygons have no area."""
    if isinstance(segmentation, Mapping):
        counts = segmentation["counts"]
        if isinstance(counts, str | bytes):  # compressed already
            return counts.encode() if isinstance(counts, str) else counts
        return rle.frPyObjects(segmentation, height, width)["counts"]
    polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
    return rle.merge(rle.frPyObjects(polygons, height, width))["counts"] if polygons else None


def decode_mask(regions: Regions, row: int, size: tuple[int, int]) -> np.ndarray | None:
    """The ignored pixels of image `row`, uint8 `[H, W]`, 255 inside; None where there are none.

    Args:
        regions: those of the dataset.
        row: row of the image.
        size: its `(height, width)`.
    """
    first, last = np.searchsorted(regions.image_rows, (row, row + 1))
    if first == last:
        return None
    bounds = np.concatenate(([regions.ends[first - 1] if first else 0], regions.ends[first:last]))
    pieces = (regions.runs[a:b].tobytes() for a, b in pairwise(bounds))
    merged = rle.merge([{"size": list(size), "counts": piece} for piece in pieces])
    return rle.decode(merged) * np.uint8(255)
