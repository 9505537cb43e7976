"""Regions that no bottom-up loss may look at, from COCO segmentations: crowds, and people without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from pycocotools import mask as rle

from posekd.coco_rules import Remarks, numbers, remark
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
    annotations: Sequence[Mapping[str, Any]],
    images: Mapping[int, Mapping[str, Any]],
    file: str,
    remarks: Remarks | None = None,
) -> Regions:
    """The ignored regions of a label file, by HigherHRNet's rule. Without a segmentation nothing is ignored.

    Args:
        annotations: those of the category, on any image.
        images: image entries by id, in the order of the rows.
        file: its name, for messages.
        remarks: to note regions in that are left out.

    Raises:
        ValueError: a segmentation that is none, or of an image of another size; the message names the annotation.
    """
    rows = {image_id: row for row, image_id in enumerate(images)}
    found: list[tuple[int, bytes]] = []
    for annotation in annotations:
        image = images.get(annotation.get("image_id", -1))
        if image is None or not is_ignored(annotation) or not annotation.get("segmentation"):
            continue
        who = f"{file}: annotation {annotation.get('id')} (image {annotation['image_id']})"
        runs = _encode(annotation["segmentation"], (image["height"], image["width"]), f"{who}: segmentation")
        if runs is not None:
            found.append((rows[annotation["image_id"]], runs))
        elif remarks is not None:
            remark(remarks, "its segmentation has no area in or near the image: nothing is ignored there", who)
    found.sort(key=lambda pair: pair[0])
    return Regions(
        image_rows=np.array([row for row, _ in found], np.int64),
        ends=np.cumsum([len(runs) for _, runs in found], dtype=np.int64),
        runs=np.frombuffer(b"".join(runs for _, runs in found), np.uint8),
    )


def _encode(segmentation: Any, size: tuple[int, int], who: str) -> bytes | None:
    """Compressed run lengths of polygons, or of run lengths in either form; None if there is no area.

    Everything is checked first: pycocotools takes memory by what a segmentation says, and reads beyond it.
    """
    if isinstance(segmentation, Mapping):
        counts = _counts(segmentation, size, who)
        runs: bytes = rle.frPyObjects({"size": list(size), "counts": counts}, *size)["counts"]
        return runs if sum(counts[1::2]) else None
    if not isinstance(segmentation, (list, tuple)):
        raise ValueError(f"{who} must be polygons or run lengths, got {segmentation!r:.80}")
    polygons = []
    for polygon in segmentation:
        if not isinstance(polygon, (list, tuple)) or len(polygon) % 2:
            raise ValueError(f"{who} must be polygons (lists of x, y, x, y, ...) or run lengths, got {polygon!r:.80}")
        points = numbers(polygon, len(polygon), who).reshape(-1, 2)
        extent = np.array(size[::-1], np.float64)
        if len(points) >= 3 and (points >= -extent).all() and (points <= 2 * extent).all():
            polygons.append(list(polygon))
    if not polygons:
        return None
    merged = rle.merge(rle.frPyObjects(polygons, *size))
    return bytes(merged["counts"]) if rle.area(merged) else None


def _counts(segmentation: Mapping[str, Any], size: tuple[int, int], who: str) -> list[int]:
    """Run lengths that fill an image of `size`."""
    stated = segmentation.get("size", size)
    if not isinstance(stated, (list, tuple)) or list(stated) != list(size):
        raise ValueError(f"{who} is of a picture of {stated!r:.40} (height, width), the image is {list(size)}")
    counts = segmentation.get("counts")
    if isinstance(counts, (str, bytes)):
        counts = _uncompress(counts.encode() if isinstance(counts, str) else counts)
    if not isinstance(counts, (list, tuple)) or not all(type(n) is int and n >= 0 for n in counts):
        raise ValueError(f"{who}: counts must be run lengths, whole numbers from 0 on, got {counts!r:.80}")
    if sum(counts) != size[0] * size[1]:
        raise ValueError(f"{who}: its run lengths fill {sum(counts)} pixels, the image has {size[0] * size[1]}")
    return list(counts)


def _uncompress(text: bytes) -> list[int] | None:
    """COCO's compressed run lengths as numbers; None if they are none.

    Five bits a character; each number but the first three is a difference to the last but one.
    """
    counts: list[int] = []
    value = shift = 0
    for byte in text:
        bits = byte - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return None if shift else counts


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
