"""People by anchors: heatmaps of a whole image, and boxes of people as RetinaNet finds them (Lin et al. 2017).

As `codecs.people`, but for where boxes come from: of each anchor, a box of fixed size at a pixel of one of five levels,
the network says how surely it is a person's and how that person's box lies to it. Overlapping ones are removed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from posekd import geometry, ops
from posekd.codecs import people
from posekd.codecs.people import STRIDE, PeopleSettings

NAME = "anchored_people"
LEVELS = 5  # at 1/8 to 1/128 of the input
SIZE = 4.0  # of an anchor of aspect 1, in pixels of its level
OCTAVES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
ASPECTS = (0.5, 1.0, 2.0)  # height by width
ANCHORS = len(OCTAVES) * len(ASPECTS)  # at a pixel
OVERLAP = 0.5  # IoU above which the weaker of two boxes is removed
CANDIDATES = 128  # boxes of a view that are looked at
_LARGEST = math.log(1000 / 16)  # Detectron's limit of how much larger than its anchor a box can be, as a logarithm


class AnchoredMaps(NamedTuple):
    """A network's output, taken apart.

    Attributes:
        heatmaps: `[B, K, h, w]`.
        anchors: `[B, N, 5]` for the anchors of `grid(h, w)`: logit, and the box's shift and logarithmic growth.
    """

    heatmaps: Tensor
    anchors: Tensor


class MergedAnchored(NamedTuple):
    """What inference uses, in pixels of the maps.

    Attributes:
        heatmaps: float32 `[B, K, h, w]`.
        candidates: float32 `[B, N, 5]` (x1, y1, x2, y2, probability), of all views.
    """

    heatmaps: Tensor
    candidates: Tensor


# ---- Anchors -----------------------------------------------------------------------------------------------------


def level_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """The sizes of the levels below maps of a size: halved, rounded up, again and again."""
    sizes = []
    for _ in range(LEVELS):
        height, width = -(-height // 2), -(-width // 2)
        sizes.append((height, width))
    return sizes


def grid(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """All anchors below maps of a size, in map pixels, float32 `[N, 4]` (centre x and y, width, height).

    Level by level, row by row; the anchors of a pixel by octave and aspect.
    """
    octaves, aspects = (torch.tensor(values, device=device) for values in (OCTAVES, ASPECTS))
    heights = SIZE * octaves[:, None] * aspects.sqrt()
    shapes = torch.stack((SIZE * octaves[:, None] / aspects.sqrt(), heights), -1).flatten(0, 1)
    levels = []
    for i, (rows, columns) in enumerate(level_sizes(height, width), 1):
        y, x = torch.meshgrid(
            *(torch.arange(n, device=device, dtype=torch.float32) for n in (rows, columns)), indexing="ij"
        )
        centers = torch.stack((x, y), -1)[:, :, None].expand(-1, -1, ANCHORS, -1)
        levels.append(2.0**i * torch.cat((centers, shapes.expand(rows, columns, -1, -1)), -1).flatten(0, 2))
    return torch.cat(levels)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """How boxes `[..., 4]` (x1, y1, x2, y2) lie to anchors `[..., 4]`: shift and logarithmic growth, `[..., 4]`."""
    sizes = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-6)
    middles = (boxes[..., :2] + boxes[..., 2:]) / 2
    return torch.cat(((middles - anchors[..., :2]) / anchors[..., 2:], (sizes / anchors[..., 2:]).log()), -1)


def place(said: Tensor, anchors: Tensor) -> Tensor:
    """The inverse of `encode`: boxes `[..., 4]` (x1, y1, x2, y2)."""
    middles = anchors[..., :2] + said[..., :2] * anchors[..., 2:]
    half = 0.5 * anchors[..., 2:] * said[..., 2:].clamp(max=_LARGEST).exp()
    return torch.cat((middles - half, middles + half), -1)


def overlaps(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes `[..., N, 4]` and `[..., M, 4]` (x1, y1, x2, y2): `[..., N, M]`, 0 for boxes without an extent."""
    low = torch.maximum(a[..., :, None, :2], b[..., None, :, :2])
    high = torch.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    first, second = ((boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1) for boxes in (a, b))
    return shared / (first[..., :, None] + second[..., None, :] - shared).clamp(min=1e-6)


# ---- The codec ---------------------------------------------------------------------------------------------------


def read(output: Any, num_keypoints: int | None = None) -> AnchoredMaps:
    """The maps and anchors of a network that gives both.

    Args:
        output: what the network returned.
        num_keypoints: K; that of the output if None.

    Raises:
        ValueError: another kind of output, or another number of keypoints or anchors.
    """
    parts = output if isinstance(output, (list, tuple)) else [output]
    shapes = [tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__ for maps in parts]
    if len(parts) == 2 and [len(shape) for shape in shapes] == [4, 3]:
        B, K, h, w = parts[0].shape
        N = ANCHORS * sum(rows * columns for rows, columns in level_sizes(h, w))
        if num_keypoints in (None, K) and shapes[1] == (B, N, 5):
            return AnchoredMaps(*parts)
    raise ValueError(
        f"a network that finds people by anchors gives heatmaps [B, {num_keypoints or 'K'}, h, w] and [B, N, 5] for "
        f"the N anchors below them; this one gives {', '.join(map(str, shapes)) or 'nothing'}"
    )


def reorder(output: Any, order: Tensor) -> list[Tensor]:
    """The output of a network whose keypoints stand in another order: keypoint k is its `order[k]`."""
    said = read(output)
    return [said.heatmaps[:, order], said.anchors]


def final(output: Any, num_keypoints: int, settings: PeopleSettings) -> MergedAnchored:
    """The heatmaps of one view, and its most probable boxes.

    Raises:
        ValueError: see `read`.
    """
    said = read(output, num_keypoints)
    return MergedAnchored(said.heatmaps.float(), _candidates(said))


def _candidates(said: AnchoredMaps) -> Tensor:
    """The most probable boxes, by descending probability: `[B, at most CANDIDATES, 5]`."""
    h, w = said.heatmaps.shape[2:]
    values = said.anchors.detach().float()
    logits, best = values[..., 0].topk(min(CANDIDATES, values.shape[1]), 1)
    rows = best[..., None].expand(-1, -1, 4)
    anchors = grid(h, w, values.device).expand(len(values), -1, -1)
    boxes = place(values[..., 1:].gather(1, rows), anchors.gather(1, rows))
    corners = boxes.unflatten(-1, (2, 2))
    limits = boxes.new_tensor([w, h]) - 1 / STRIDE  # the last pixel of the input
    return torch.cat((corners.clamp(min=0).minimum(limits).flatten(-2), logits.sigmoid()[..., None]), -1)


def unmirror(maps: MergedAnchored, order: Tensor | Sequence[int]) -> MergedAnchored:
    """What was found in mirrored images, as found in the images: see `codecs.people.unmirror`."""
    last = maps.heatmaps.shape[-1] - 1 / STRIDE
    x1, y1, x2, y2, score = maps.candidates.unbind(-1)
    return MergedAnchored(
        people.unmirror_heatmaps(maps.heatmaps, order), torch.stack((last - x2, y1, last - x1, y2, score), -1)
    )


def average(maps: MergedAnchored, mirrored: MergedAnchored) -> MergedAnchored:
    """Both views of a flip test together: the mean of the heatmaps, and the boxes of both."""
    return MergedAnchored(
        (maps.heatmaps + mirrored.heatmaps) * 0.5, torch.cat((maps.candidates, mirrored.candidates), 1)
    )


def move(maps: MergedAnchored, moves: Tensor, size: tuple[int, int]) -> MergedAnchored:
    """Maps of another scale in the pixels of scale 1's: see `codecs.people.move`."""
    corners = geometry.transform_keypoints(maps.candidates[..., :4].unflatten(-1, (2, 2)).flatten(1, 2), moves)
    boxes = corners.unflatten(1, (-1, 2)).flatten(2)
    return MergedAnchored(
        ops.crop_warp(maps.heatmaps, geometry.invert_matrices(moves), size),
        torch.cat((boxes, maps.candidates[..., 4:]), -1),
    )


def together(base: MergedAnchored, others: Sequence[MergedAnchored]) -> MergedAnchored:
    """Maps of several scales, all in pixels of the first's: the mean of the heatmaps, and all boxes."""
    parts = (base, *others)
    return MergedAnchored(
        torch.stack([maps.heatmaps for maps in parts]).mean(0), torch.cat([maps.candidates for maps in parts], 1)
    )


def boxes(maps: MergedAnchored, areas_scale: Tensor, settings: PeopleSettings) -> tuple[Tensor, Tensor, Tensor]:
    """The boxes of people: `[B, max_boxes, 4]` in map pixels, scores, counts. Nothing waits for the device.

    Args:
        maps: of one resolution.
        areas_scale: not used, as no rule here depends on a person's size.
        settings: `max_boxes`.
    """
    return suppressed(maps.candidates, settings.max_boxes)


def found(said: AnchoredMaps, areas_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The boxes of one view, for training: see `boxes`."""
    return suppressed(_candidates(said), people.MAX_BOXES)


def suppressed(candidates: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of boxes that overlap by an IoU above 0.5 the most probable: non-maximum suppression of a batch.

    Args:
        candidates: `[B, N, 5]` (x1, y1, x2, y2, probability).
        most: how many are kept.

    Returns:
        boxes `[B, most, 4]` by descending probability, probabilities `[B, most]`, counts int64 `[B]`; zeros behind
        those kept.
    """
    corners, left = candidates[..., :4], candidates[..., 4]
    kept = []
    for _ in range(most):
        score, best = left.max(1)
        row = corners.gather(1, best[:, None, None].expand(-1, 1, 4))
        kept.append(torch.cat((row[:, 0], score[:, None]), 1))
        near = overlaps(row, corners)[:, 0] > OVERLAP
        left = left.masked_fill(near, 0.0).scatter(1, best[:, None], 0.0)
    rows = torch.stack(kept, 1)
    some = rows[..., 4] > 0
    rows = torch.where(some[..., None], rows, 0.0)
    return rows[..., :4], rows[..., 4], some.sum(1)


keypoints = people.keypoints
peaks_of = people.peaks_of
