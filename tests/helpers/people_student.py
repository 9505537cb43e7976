"""A SIMPLE student whose boxes are given, a teacher that copies pixels, and a batch of people for both."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from posekd.data import LoaderSettings
from posekd.data.synthetic import SyntheticPeople, SyntheticSettings
from posekd.ops.reference.center_focal_loss import point_targets
from posekd.paradigms.single_network import open_loader, prepare
from posekd.skeleton import COCO
from posekd.structures import ImageBatch, InputSpec

SIDE, K, B = 128, 17, 2
SPEC = InputSpec(size=(SIDE, SIDE))


class Knowing(nn.Module):
    """A student whose points and offsets are given, and whose heatmaps are a quarter of the image, times a weight."""

    def __init__(self, points: Tensor, offsets: Tensor) -> None:
        super().__init__()
        self.spec, self.num_keypoints = SPEC, K
        self.points, self.offsets = nn.Parameter(points), nn.Parameter(offsets)
        self.weight = nn.Parameter(torch.ones(K))
        self.pose_head = nn.Conv2d(3, 4, 1)
        self.grouping = nn.Conv2d(K, K, 1)

    def forward(self, images: Tensor) -> list[Tensor]:
        self.pose_head(images[:, :, ::4, ::4])
        maps = images[:, :1, ::4, ::4].expand(-1, K, -1, -1) * self.weight[:, None, None]
        return [maps, self.points[: len(images)], self.offsets[: len(images)]]

    def group(self, crops: Tensor) -> Tensor:
        return self.grouping(crops).sigmoid()


class Quarter(nn.Module):
    """A teacher whose heatmaps are every fourth pixel of what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.spec, self.final_layer = InputSpec(size=(128, 96)), nn.Conv2d(3, 5, 1)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        self.final_layer(x[:, :, ::4, ::4])
        return x[:, :1, ::4, ::4].expand(-1, K, -1, -1)


def batch(training: bool = True, seed: int = 0) -> ImageBatch:
    source = SyntheticPeople(SyntheticSettings(images=B, size=(SIDE, SIDE + 30), people=(1, 2), difficulty=0.0))
    loader = open_loader(source, SPEC, LoaderSettings(B, 0), training=training, seed=seed)
    packed = next(iter(loader))
    packed.rotations += 20.0
    packed.flips[0] = True
    return prepare(packed, SPEC, COCO.flip)


def ideal(data: ImageBatch, sure: float = 9.0) -> tuple[Tensor, Tensor]:
    """Points and offsets from which the batch's boxes come back."""
    boxes = data.boxes / 4
    targets = point_targets(boxes, torch.full((B,), boxes.shape[1]), (32, 32), True)
    offsets = torch.zeros(B, 6, 32, 32)
    for b, own in enumerate(boxes.tolist()):
        for x1, y1, x2, y2 in own:
            for i, (x, y) in enumerate(((x1, y1), (x2, y2), ((x1 + x2) / 2, (y1 + y2) / 2))):
                offsets[b, 2 * i : 2 * i + 2, int(y), int(x)] = torch.tensor([x % 1, y % 1])
    return (targets - 0.5) * 2 * sure, offsets


def without_people(data: ImageBatch) -> ImageBatch:
    """The same images, of nobody."""
    empty = ImageBatch(**{**vars(data), "boxes": torch.zeros_like(data.boxes)})
    empty.keypoints = [torch.zeros_like(points) for points in data.keypoints]
    return empty
