"""The boxes that SIMPLE's second half is trained with: the student's own, matched to people, and what lies inside."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from posekd import geometry, ops
from posekd.codecs import people
from posekd.codecs.anchored_people import AnchoredMaps, overlaps
from posekd.codecs.people import PeopleMaps
from posekd.structures import ImageBatch

MATCH = 0.5  # IoU from which a box is of a person (Mask R-CNN's rule)
BODY = 0.53  # a person's area as a share of its box (CrowdPose's number)


class Matched(NamedTuple):
    """R boxes of people in map pixels.

    Attributes:
        boxes: float32 `[R, 4]` (x1, y1, x2, y2); those that the student found come first.
        images: int64 `[R]`.
        persons: int64 `[R]`, row of the person among its image's.
        found: how many of the boxes the student found; the others are labels.
    """

    boxes: Tensor
    images: Tensor
    persons: Tensor
    found: int


def map_boxes(batch: ImageBatch) -> Tensor:
    """People's boxes in map pixels, `[B, P, 4]`; zeros for nobody.

    Raises:
        ValueError: the batch was prepared for a network that needs no boxes.
    """
    if batch.boxes is None:
        raise ValueError("the batch has no boxes of people: it was prepared for a network of another paradigm")
    return batch.boxes / people.STRIDE


def there(boxes: Tensor) -> Tensor:
    """Which of the boxes `[..., 4]` are some: bool `[...]`."""
    return (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])


def match_boxes(found: Tensor, scores: Tensor, labels: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which of an image's boxes are of which person, and whom none has found.

    Each box is of the person that it overlaps most, if by an IoU of 0.5 or more, so several may be of one person. By
    descending score the first `most` of an image are taken.

    Args:
        found: `[B, N, 4]`, by descending score.
        scores: `[B, N]`; 0 for none.
        labels: `[B, P, 4]`; without an extent for nobody.
        most: boxes taken of an image.

    Returns:
        person of each box, int64 `[B, N]`; whether the box is taken, bool `[B, N]`; persons without one, bool `[B, P]`.
    """
    best, person = torch.where(there(labels)[:, None], overlaps(found, labels), 0.0).max(2)
    taken = (scores > 0) & (best >= MATCH)
    taken = taken & (taken.cumsum(1) <= most)
    has_one = torch.zeros_like(labels[..., 0], dtype=torch.int64).scatter_add(1, person, taken.long()) > 0
    return person, taken, there(labels) & ~has_one


@torch.no_grad()
def find_and_match(said: PeopleMaps | AnchoredMaps, batch: ImageBatch, most: int, codec: Any = people) -> Matched:
    """The student's own boxes of people, and label boxes of the people it has not found.

    How many there are is read on the host, which waits for the device.

    Args:
        said: the student's maps.
        batch: with people's boxes.
        most: boxes of either kind taken of an image.
        codec: of these maps.
    """
    labels = map_boxes(batch)
    to_image = geometry.heatmap_matrices(batch.matrices, people.STRIDE)
    pixel = (to_image[:, 0, 0] * to_image[:, 1, 1] - to_image[:, 0, 1] * to_image[:, 1, 0]).abs()
    found, scores, _ = codec.found(said, pixel)
    person, taken, alone = match_boxes(found, scores, labels, most)
    alone = alone & (alone.cumsum(1) <= most)
    image, place = torch.cat((taken, alone), 1).nonzero().unbind(1)
    own = place < found.shape[1]
    order = (~own).to(torch.uint8).argsort(stable=True)  # the student's first
    image, place, own = image[order], place[order], own[order]
    first = place.clamp(max=found.shape[1] - 1)
    second = (place - found.shape[1]).clamp(min=0)
    persons = torch.where(own, person[image, first], second)
    boxes = torch.where(own[:, None], found[image, first], labels[image, persons])
    return Matched(boxes, image, persons, int(own.sum()))


@torch.no_grad()
def peaks_to_keep(
    heatmaps: Tensor, batch: ImageBatch, matched: Matched, matrices: Tensor, threshold: float, sigma: float, most: int
) -> tuple[Tensor, Tensor]:
    """For each box the student's own peaks that are its person's keypoints: what grouping is to reserve.

    Of the peaks that are within an OKS of 0.5 of a labelled keypoint the nearest is its own.

    Args:
        heatmaps: the student's, `[B, K, h, w]`.
        batch: with keypoints in map pixels.
        matched: R boxes.
        matrices: `[R, 2, 3]`, pixel inside the box to map pixel.
        threshold: value above which there is a peak.
        sigma: OKS constant, the same for all keypoints.
        most: peaks looked at in a map.

    Returns:
        the peaks, float32 `[R, K, 3]` (x, y, 1) in pixels inside the box, zeros where there is none; and bool `[R, K]`,
        whether the keypoint is labelled.
    """
    found = ops.top_k_peaks(
        heatmaps, heatmaps, max_people=most, detection_threshold=threshold, nms_kernel=people.PEAK_WINDOW
    )
    peaks = found[matched.images][..., :3]
    labels = batch.keypoints[0][matched.images, matched.persons]
    own = map_boxes(batch)[matched.images, matched.persons]
    areas = (own[:, 2:] - own[:, :2]).prod(-1) * BODY
    squared = (peaks[..., :2] - labels[:, :, None, :2]).square().sum(-1)
    similarity = torch.exp(-squared / (2 * (2 * sigma) ** 2 * areas.clamp(min=1e-6)[:, None, None]))
    best, which = torch.where(peaks[..., 2] > 0, similarity, 0.0).max(2)
    point = peaks[..., :2].gather(2, which[..., None, None].expand(-1, -1, 1, 2))[:, :, 0]
    labelled = labels[..., 2] > 0
    kept = torch.cat((point, (labelled & (best >= MATCH))[..., None].to(point)), -1)
    kept = geometry.transform_keypoints(kept, geometry.invert_matrices(matrices))
    return torch.where(kept[..., 2:] > 0, kept, 0.0), labelled
