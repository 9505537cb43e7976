"""What teaches SIMPLE's networks where people are: of points CenterNet's losses, of anchors RetinaNet's.

RetinaNet's (Lin et al. 2017): an anchor is somebody's if their IoU is 0.5 or more, or if it is the one that overlaps
somebody most; nobody's below 0.4; those between do not count, nor do those in the middle of crowds. Over the anchors

    focal = 1/n sum -a (1 - p)^2 log p,    a = 0.25 of somebody's, p the probability of what the anchor is (else 0.75)
    boxes = 1/n sum of somebody's smooth L1 of shift and growth

with n the number of somebody's anchors.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from posekd.codecs import anchored_people, people
from posekd.codecs.anchored_people import AnchoredMaps
from posekd.codecs.people import PeopleMaps
from posekd.distill.people_boxes import map_boxes, there
from posekd.ops import center_focal_loss, tag_loss
from posekd.structures import ImageBatch

SOMEBODY, NOBODY = 0.5, 0.4  # IoU from which, and below which, an anchor counts as one
FOCAL = (0.25, 2.0)  # weight of somebody's anchors, and the exponent
EMBEDDING = 0.1  # CenterNet's weight of either term
BEND = 1 / 9  # of the smooth L1 (Detectron's)


def point_terms(said: PeopleMaps, batch: ImageBatch, radius: str) -> dict[str, Tensor]:
    """`{"points", "offsets"}` and, if corners have tags, `"embeddings"`.

    Focal losses of corners and centres, smooth L1 of their offsets, and `embedding_loss`.
    """
    boxes = map_boxes(batch)
    counts = torch.full((len(batch),), boxes.shape[1], device=boxes.device)
    focal = center_focal_loss(said.points, boxes, counts, batch.masks[0], radius=radius)
    terms = {"points": cast(Tensor, focal), "offsets": offset_loss(said.offsets.float(), boxes)}
    if said.tags is not None:
        terms["embeddings"] = embedding_loss(said.tags, boxes)
    return terms


def embedding_loss(tags: Tensor, boxes: Tensor) -> Tensor:
    """CenterNet's: 0.1 times the squared distances of a person's two tags from their mean m, and 0.1 times
    `max(0, 1 - |m_p - m_q|)` of people p and q, means over people and over ordered pairs of them, and over the batch.

    Args:
        tags: of top-left and bottom-right corners, `[B, 2, h, w]`.
        boxes: `[B, P, 4]` in map pixels.
    """
    seen = there(boxes)[..., None, None].expand(-1, -1, 2, 1)
    pull, push = tag_loss(tags, torch.cat((boxes.unflatten(-1, (2, 2)), seen.to(boxes)), -1), kind="max")
    return EMBEDDING * 2 * (pull + push).mean()  # the op has the mean of both tags, and half the pairs


def offset_loss(offsets: Tensor, boxes: Tensor) -> Tensor:
    """CenterNet's: smooth L1 between offsets and where corners and centres lie in their pixels, a mean over people.

    Args:
        offsets: `[B, 6, h, w]`.
        boxes: `[B, P, 4]` in map pixels.
    """
    height, width = offsets.shape[2:]
    x1, y1, x2, y2 = boxes.unbind(-1)
    points = torch.stack((x1, y1, x2, y2, (x1 + x2) / 2, (y1 + y2) / 2), 1)  # [B, 6, P]
    whole = points.floor()
    column = whole[:, 0::2].clamp(0, width - 1).long()
    row = whole[:, 1::2].clamp(0, height - 1).long()
    pixel = (row * width + column).repeat_interleave(2, 1)
    misses = F.smooth_l1_loss(offsets.flatten(2).gather(2, pixel), points - whole, reduction="none")
    some = there(boxes)
    return torch.where(some[:, None], misses, 0.0).sum() / (some.sum() + 1e-4)


def anchor_terms(said: AnchoredMaps, batch: ImageBatch, radius: str) -> dict[str, Tensor]:
    """`{"anchors", "anchor_boxes"}`, see the module."""
    height, width = said.heatmaps.shape[2:]
    values, labels = said.anchors.float(), F.pad(map_boxes(batch), (0, 0, 0, 1))  # and nobody, so that there is a row
    anchors = anchored_people.grid(height, width, values.device)
    somebody, nobody, person = match_anchors(anchors, labels)
    column, row = (anchors[:, i].round().long() for i in (0, 1))
    outside = (column >= width) | (row >= height)
    valid = batch.masks[0][:, row.clamp(max=height - 1), column.clamp(max=width - 1)] & ~outside
    counted = somebody | (nobody & valid)
    n = somebody.sum().clamp(min=1)
    weight, exponent = FOCAL
    logits = torch.where(somebody, values[..., 0], -values[..., 0])
    factor = torch.where(somebody, weight, 1 - weight)
    focal = -factor * logits.neg().sigmoid() ** exponent * F.logsigmoid(logits)
    own = (
        labels.gather(1, person[..., None].expand(-1, -1, 4)) if labels.shape[1] else torch.zeros_like(values[..., 1:])
    )
    target = torch.where(somebody[..., None], anchored_people.encode(own, anchors), 0.0)
    misses = F.smooth_l1_loss(values[..., 1:], target, reduction="none", beta=BEND).sum(-1)
    return {
        "anchors": torch.where(counted, focal, 0.0).sum() / n,
        "anchor_boxes": torch.where(somebody, misses, 0.0).sum() / n,
    }


def match_anchors(anchors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which anchors are whose.

    Args:
        anchors: `[N, 4]` (centre x and y, width, height).
        labels: people's boxes `[B, P, 4]` (x1, y1, x2, y2), P at least 1; without an extent for nobody.

    Returns:
        bool `[B, N]` somebody's, bool `[B, N]` nobody's, and whose, int64 `[B, N]`.
    """
    half = anchors[:, 2:] / 2
    corners = torch.cat((anchors[:, :2] - half, anchors[:, :2] + half), -1)
    share = anchored_people.overlaps(corners.expand(len(labels), -1, -1), labels)  # [B, N, P]
    share = torch.where(there(labels)[:, None], share, 0.0)
    best, person = share.max(2)
    most = share.amax(1, keepdim=True)
    theirs = (share == most) & (most > 0)  # the anchors that overlap somebody most
    forced = theirs.any(2)
    person = torch.where(forced, theirs.to(torch.uint8).argmax(2), person)
    somebody = (best >= SOMEBODY) | forced
    return somebody, (best < NOBODY) & ~somebody, person


DETECTION: dict[str, tuple[Any, tuple[str, ...]]] = {
    people.NAME: (point_terms, ("points", "offsets")),
    anchored_people.NAME: (anchor_terms, ("anchors", "anchor_boxes")),
}
"""Name of an output -> its detection losses, not yet weighted, and their names."""
