"""People by anchors: the grid, ideal anchors through the whole inference path, and what a flip test and scales do."""

from __future__ import annotations

import pytest
import torch
from helpers.people_oracle import PeopleOracle
from torch import Tensor

from posekd.codecs import anchored_people as codec
from posekd.codecs import people
from posekd.codecs.reordered import Reordered
from posekd.data import LoaderSettings
from posekd.data.synthetic import SyntheticPeople, SyntheticSettings
from posekd.paradigms.single_network import SingleNetworkInference, open_loader, predict, suppress
from posekd.skeleton import COCO


class AnchorOracle(PeopleOracle):
    """Knows the labels, and says them by anchors: the one that overlaps a person most is sure."""

    output = codec.NAME

    def forward(self, images: Tensor) -> list[Tensor]:
        mirrored = self.flip_test and self.calls % 2 == 1
        heatmaps = super().forward(images)[0]
        _, boxes = self.labels((images.shape[2], images.shape[3]), mirrored)
        anchors = codec.grid(heatmaps.shape[2], heatmaps.shape[3])
        corners = codec.place(torch.zeros(4).expand(len(anchors), -1), anchors)
        said = torch.zeros(len(boxes), len(anchors), 5)
        said[..., 0] = -9.0
        for image, own in enumerate(boxes / people.STRIDE):
            for box in own[own[:, 2] > own[:, 0]]:
                share = codec.overlaps(corners, box[None])[:, 0]
                for best in share.topk(3).indices:  # as a network does, several
                    said[image, best] = torch.cat((share[best][None] * 4, codec.encode(box, anchors[best])))
        return [heatmaps, said]


def test_the_grid():
    """Nine anchors of areas 8, 8 2^(1/3) and 8 2^(2/3) squared, in map pixels, where a strided convolution looks."""
    anchors = codec.grid(16, 24)
    assert anchors.shape == (9 * (8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1), 4)
    first = anchors[:9]
    assert (first[:, :2] == 0).all()
    areas = first[:, 2:].prod(1).sqrt()
    torch.testing.assert_close(areas, 8 * 2 ** (torch.arange(9) // 3 / 3))
    torch.testing.assert_close(first[:, 3] / first[:, 2], torch.tensor([0.5, 1.0, 2.0]).repeat(3))
    assert anchors[9 * 13, :2].tolist() == [2.0, 2.0]  # row 1, column 1 of the first level
    assert anchors[-1, :2].tolist() == [0.0, 0.0]


def test_boxes_come_back():
    anchors, boxes = codec.grid(16, 16)[:50], torch.tensor([3.0, 2.0, 9.0, 12.0]).expand(50, 4)
    torch.testing.assert_close(codec.place(codec.encode(boxes, anchors), anchors), boxes)


def test_overlaps():
    a, b = torch.tensor([[0.0, 0, 4, 4], [1, 1, 1, 1]]), torch.tensor([[2.0, 0, 6, 4], [0, 0, 4, 4], [8, 8, 9, 9]])
    torch.testing.assert_close(codec.overlaps(a, b), torch.tensor([[1 / 3, 1.0, 0.0], [0.0, 0.0, 0.0]]))


def test_suppression():
    """Of two that overlap by more than half the weaker goes; batches apart; nobody leaves zeros."""
    candidates = torch.tensor(
        [
            [[0.0, 0, 10, 10, 0.6], [1, 0, 10, 10, 0.9], [20, 0, 30, 10, 0.7], [0, 5, 10, 15, 0.5]],
            [[0.0, 0, 10, 10, 0.0]] * 4,
        ]
    )
    boxes, scores, counts = codec.suppressed(candidates, 5)
    assert scores[0].tolist() == pytest.approx([0.9, 0.7, 0.5, 0, 0])
    assert boxes[0, 0].tolist() == [1, 0, 10, 10]
    assert counts.tolist() == [3, 0]
    assert not boxes[1].any()
    assert codec.suppressed(candidates, 2)[2].tolist() == [2, 0]


@pytest.mark.parametrize(
    "changes", [{"flip_test": False}, {"flip_test": True}, {"flip_test": True, "scales": (0.5, 1.0, 1.5)}], ids=str
)
def test_ideal_anchors_give_back_everybody(changes, monkeypatch):
    """Once each, however many views: suppression removes those of the mirror image and of other scales."""
    settings = SingleNetworkInference(**changes)
    source = SyntheticPeople(SyntheticSettings(images=3, size=(160, 128), people=(1, 2), difficulty=0.0))
    oracle = AnchorOracle(COCO.flip, 128, settings.flip_test, first=settings.scales.index(1.0))
    monkeypatch.setattr(people, "crop_table", oracle.watch_boxes)
    loader = open_loader(source, oracle.spec, LoaderSettings(3, 0), training=False, inference=settings)
    (packed,) = oracle.watch(loader)
    found = suppress(predict(oracle, packed, oracle.spec, COCO.flip, settings), COCO, settings)
    records = source.records
    assert len(found) == len(records.boxes)
    for row, box in enumerate(records.boxes):
        here = found.take(found.image_ids == records.image_ids[records.image_rows[row]])
        assert (here.boxes - torch.tensor(box)).abs().amax(1).min() < 2.5  # half a pixel of the smallest map


def test_what_it_reads():
    anchors = len(codec.grid(8, 8))
    said = codec.read([torch.zeros(2, 3, 8, 8), torch.zeros(2, anchors, 5)], 3)
    assert said.anchors.shape == (2, anchors, 5)
    for wrong in ([torch.zeros(2, 3, 8, 8), torch.zeros(2, anchors + 1, 5)], [torch.zeros(2, 3, 8, 8)], "maps"):
        with pytest.raises(ValueError, match=r"finds people by anchors gives heatmaps \[B, 3, h, w\] and \[B, N, 5\]"):
            codec.read(wrong, 3)
    reordered = codec.reorder(
        [torch.arange(3.0)[None, :, None, None].expand(1, 3, 8, 8), said.anchors[:1]], torch.tensor([2, 0])
    )
    assert reordered[0][0, :, 0, 0].tolist() == [2.0, 0.0]
    assert Reordered(AnchorOracle(COCO.flip), [0, 1]).output == codec.NAME
