"""RetinaNet's losses, written out, and which anchors are whose."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.tiny_models import tiny_model
from torch import Tensor, nn

from posekd.codecs import anchored_people as codec
from posekd.codecs import people
from posekd.codecs.anchored_people import AnchoredMaps
from posekd.distill import Simple, SimpleSettings
from posekd.distill.people_boxes import find_and_match
from posekd.distill.people_detection import anchor_terms, embedding_loss, match_anchors
from posekd.models import create_model
from posekd.structures import ImageBatch

SIDE = 16  # of the maps


def batch(boxes: Tensor, mask: Tensor | None = None) -> ImageBatch:
    """Boxes in map pixels, as people of blank images."""
    B, P, _ = boxes.shape
    mask = torch.ones(B, SIDE, SIDE, dtype=torch.bool) if mask is None else mask
    return ImageBatch(
        torch.zeros(B, 3, 4 * SIDE, 4 * SIDE), [torch.zeros(B, P, 2, 3)], [mask], torch.eye(2, 3).expand(B, 2, 3),
        torch.arange(B), boxes=boxes * 4,
    )  # fmt: skip


def silent(B: int, logit: float = 0.0) -> AnchoredMaps:
    anchors = len(codec.grid(SIDE, SIDE))
    said = torch.zeros(B, anchors, 5)
    said[..., 0] = logit
    return AnchoredMaps(torch.zeros(B, 2, SIDE, SIDE), said.requires_grad_())


def test_whose_anchors_are():
    """From an IoU of 0.5 somebody's; below 0.4 nobody's; whoever has none takes the one that overlaps best."""
    anchors = torch.tensor([[5.0, 5, 10, 10], [5, 5, 10, 9], [5, 4, 10, 4.5], [30, 30, 4, 4], [50, 50, 8, 8]])
    labels = torch.tensor([[[0.0, 0, 10, 10], [29, 29, 30, 30], [0, 0, 0, 0]]])
    somebody, nobody, person = match_anchors(anchors, labels)
    assert somebody.tolist() == [[True, True, False, True, False]]  # the fourth shares a 16th with the second person
    assert nobody.tolist() == [[False, False, False, False, True]]
    assert person[0, [0, 1, 3]].tolist() == [0, 0, 1]


def test_the_losses_of_anchors():
    """One person who is an anchor exactly: RetinaNet's sums, by hand."""
    anchors = codec.grid(SIDE, SIDE)
    own = 9 * (3 * 8 + 4) + 1  # the square anchor of side 8 at row 3, column 4 of the first level: x 8, y 6
    assert anchors[own].tolist() == [8.0, 6.0, 8.0, 8.0]
    labels = torch.tensor([[[4.0, 2.0, 12.0, 10.0]]])
    somebody, nobody, _ = match_anchors(anchors, labels)
    said, data = silent(1), batch(labels)
    terms = anchor_terms(said, data, "centernet")
    n = int(somebody.sum())
    outside = (anchors[:, :2].round() >= SIDE).any(1)
    entropy = 0.5**2 * math.log(2)
    expected = entropy * (0.25 * n + 0.75 * int((nobody[0] & ~outside).sum())) / n
    assert terms["anchors"].item() == pytest.approx(expected, rel=1e-5)
    misses = codec.encode(labels[0].expand(len(anchors), -1), anchors)[somebody[0]].abs()
    smooth = torch.where(misses < 1 / 9, 4.5 * misses**2, misses - 1 / 18).sum() / n
    assert terms["anchor_boxes"].item() == pytest.approx(smooth.item(), rel=1e-5)
    sum(terms.values()).backward()
    gradient = said.anchors.grad
    assert gradient[0, own, 0] < 0
    assert not gradient[0, own, 1:].any()  # it lies where it should
    assert not gradient[0, ~somebody[0], 1:].any()


def test_crowds_and_nobody():
    """Anchors in the middle of a crowd do not count; without people all others are nobody's."""
    mask = torch.ones(1, SIDE, SIDE, dtype=torch.bool)
    mask[:, :, 8:] = False
    said = silent(1)
    anchor_terms(said, batch(torch.zeros(1, 0, 4), mask), "centernet")["anchors"].backward()
    column = codec.grid(SIDE, SIDE)[:, 0]
    assert not said.anchors.grad[0, column >= 8].any()
    assert (said.anchors.grad[0, column < 7, 0] > 0).any()
    terms = anchor_terms(silent(2), batch(torch.zeros(2, 3, 4)), "centernet")
    assert terms["anchor_boxes"] == 0
    assert terms["anchors"].isfinite()


class Anchored(nn.Module):
    """A student whose anchors are given."""

    output = codec.NAME

    def __init__(self, anchors: Tensor) -> None:
        super().__init__()
        self.num_keypoints, self.anchors = 2, nn.Parameter(anchors)
        self.maps = nn.Parameter(torch.rand(2, SIDE, SIDE))

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.maps.expand(len(images), -1, -1, -1), self.anchors]

    def group(self, crops: Tensor) -> Tensor:
        return crops.sigmoid()


def test_its_own_boxes_are_matched_and_mimicked():
    labels = torch.tensor([[[4.0, 2.0, 12.0, 10.0]]])
    said = silent(1, -9.0).anchors.detach().clone()
    said[0, 9 * (3 * 8 + 4) + 1, 0] = 4.0
    data = batch(labels)
    data.keypoints[0][..., :] = torch.tensor([7.0, 6.0, 1.0])
    trained = Simple(Anchored(said), None, SimpleSettings(mimic="labels", mimic_from=1)).train()
    matched = find_and_match(trained.codec.read(trained.student(data.images)), data, 8, trained.codec)
    assert (len(matched.images), matched.found) == (1, 1)
    torch.testing.assert_close(matched.boxes, labels[0])
    terms = trained(data)
    assert set(terms) == {"pose", "anchors", "anchor_boxes", "grouping", "mimic_labels"} == set(trained.weights())
    assert terms["mimic_labels"] > 0
    torch.stack(list(terms.values())).sum().backward()


def test_the_embeddings_of_corners():
    """CenterNet's sums: of two people, one whose tags differ by 1 and one whose are equal, means 0.5 and 0.75."""
    boxes = torch.tensor([[[2.0, 2.0, 9.0, 9.0], [4.0, 5.0, 12.0, 13.0], [0.0, 0.0, 0.0, 0.0]]])
    tags = torch.zeros(1, 2, SIDE, SIDE)
    tags[0, 1, 9, 9], tags[0, 0, 5, 4], tags[0, 1, 13, 12] = 1.0, 0.75, 0.75
    pull, push = (0.5**2 + 0.5**2) / 2, 2 * (1 - 0.25) / 2
    assert embedding_loss(tags, boxes).item() == pytest.approx(0.1 * (pull + push))
    assert embedding_loss(tags, boxes[:, 2:]) == 0


def test_a_student_whose_corners_have_tags():
    model = tiny_model("simple_w18", head_dim=8, head_mid=4, grouping_widths=(4, 8), embeddings=True).train()
    said = model(torch.zeros(1, 3, 64, 64))
    assert [maps.shape[1] for maps in said] == [5, 3, 6, 2]
    assert people.read(people.reorder(said, torch.tensor([1, 0]))).tags is said[3]
    data = batch(torch.tensor([[[4.0, 2.0, 12.0, 10.0], [1.0, 1.0, 6.0, 14.0]]]))
    data.keypoints = [torch.zeros(1, 2, 5, 3)]
    trained = Simple(model, None, SimpleSettings(mimic="none")).train()
    terms = trained(data)
    assert set(terms) == {"pose", "points", "offsets", "embeddings", "grouping"} == set(trained.weights())
    assert terms["embeddings"] > 0
    terms["embeddings"].backward()
    assert model.detection.tag[0].weight.grad.any()
    with pytest.raises(ValueError, match="embeddings are of detection modules, not of 'anchors'"):
        create_model("simple_w18", embeddings=True, detection="anchors")
