"""Tiny networks and batches for tests of losses and loops."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from posekd.structures import CropBatch, InputSpec

K = 3
SPEC = InputSpec(size=(32, 24))


class TinyPose(nn.Module):
    """One strided convolution, one norm, K heatmaps at a quarter of the input."""

    def __init__(self, spec: InputSpec = SPEC, seed: int = 0, keypoints: int = K) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.spec = spec
        self.conv = nn.Conv2d(3, 6, 4, stride=4)
        self.bn = nn.BatchNorm2d(6)
        self.head = nn.Conv2d(6, keypoints, 1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.bn(self.conv(images)).relu())


def random_batch(count: int = 4, seed: int = 0, spec: InputSpec = SPEC, keypoints: int = K) -> CropBatch:
    """Noise images; keypoints inside the crop, one of five unlabelled."""
    generator = torch.Generator().manual_seed(seed)
    height, width = spec.size
    points = torch.rand(count, keypoints, 3, generator=generator)
    points = points * torch.tensor([width - 1.0, height - 1.0, 1.0])
    points[..., 2] = (points[..., 2] > 0.2).float() * 2
    return CropBatch(
        images=torch.randn(count, 3, height, width, generator=generator),
        keypoints=points,
        matrices=torch.eye(2, 3).expand(count, 2, 3).clone(),
        box_scores=torch.ones(count),
        boxes=torch.zeros(count, 4),
        areas=torch.ones(count),
        image_ids=torch.arange(count),
        sample_ids=torch.arange(count) + 100,
    )
