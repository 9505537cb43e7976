"""Networks that paint the same people whatever they see: rendered peaks, whose places are known."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from posekd.models.grouping import PersonGrouping
from posekd.ops import render_heatmaps
from posekd.structures import InputSpec

BOXES = ((3, 3, 15, 25), (14, 5, 28, 27), (4, 4, 14, 22))  # of three people, x1, y1, x2, y2 in map pixels


class PeoplePainter(nn.Module):
    """Heatmaps, corners and centres of three people who overlap, on maps of 32 x 32."""

    paradigm, output, name, family = "single_network", "people", "painter", "painter"

    def __init__(self, seed: int = 0, num_keypoints: int = 17) -> None:
        super().__init__()
        self.spec, self.num_keypoints = InputSpec((128, 128)), num_keypoints
        rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        self.grouping = PersonGrouping(num_keypoints, (8, 8)).eval()
        heatmaps, points = torch.zeros(num_keypoints, 32, 32), torch.full((3, 32, 32), -9.0)
        for x1, y1, x2, y2 in BOXES:
            xs, ys = rng.uniform(x1, x2, num_keypoints), rng.uniform(y1, y2, num_keypoints)
            keypoints = torch.from_numpy(np.column_stack([xs, ys, np.ones(num_keypoints)])).float()
            maps, _ = render_heatmaps(keypoints[None], (32, 32), kind="exact")
            heatmaps = torch.maximum(heatmaps, maps[0] * rng.uniform(0.6, 1))
            for kind, (x, y) in enumerate(((x1, y1), (x2, y2), ((x1 + x2) // 2, (y1 + y2) // 2))):
                points[kind, y, x] = rng.uniform(1, 4)
        self.register_buffer("heatmaps", heatmaps)
        self.register_buffer("points", points)
        self.register_buffer("offsets", torch.from_numpy(rng.uniform(0, 1, (6, 32, 32))).float())

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `models.simple.Simple`."""
        maps = (self.heatmaps, self.points, self.offsets)
        return [m.expand(images.shape[0], -1, -1, -1) for m in maps]  # type: ignore[operator]

    def group(self, crops: Tensor) -> Tensor:
        """See `models.simple.Simple.group`."""
        masks: Tensor = self.grouping(crops)
        return masks
