"""A bottom-up network that knows the labels: ideal heatmaps and tags, at both resolutions, mirrored or not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from posekd import geometry, ops
from posekd.paradigms.whole_images import resize_matrices
from posekd.structures import InputSpec, PackedImageBatch

REACH = 6.0  # of a keypoint's tag, in pixels of the tag map
STEP = 3.0  # between the tags of two people


class BottomUpOracle(nn.Module):
    """Paints the labels of the image it sees by HigherHRNet's rule: every second call of a flip test is mirrored."""

    def __init__(
        self, flip_permutation: Sequence[int], size: int = 512, flip: bool = True, sigma: float = 2.0,
        square: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.spec = InputSpec(size=(size, size))
        self.order, self.flip_test, self.sigma = torch.tensor(flip_permutation), flip, sigma
        self.calls, self.square = 0, square

    def watch(self, batches: Iterable[PackedImageBatch]) -> Iterator[PackedImageBatch]:
        for packed in batches:
            self.packed = packed
            yield packed

    def forward(self, images: Tensor) -> list[Tensor]:
        mirrored = self.flip_test and self.calls % 2 == 1
        self.calls += 1
        height, width = images.shape[2:]
        points = self.points((height, width), mirrored)
        coarse, fine = (geometry.to_heatmap(points, stride) for stride in (4, 2))
        heat = self.paint(coarse, (height // 4, width // 4))
        tags = paint_tags(coarse, (height // 4, width // 4))
        return [torch.cat((heat, tags), 1), self.paint(fine, (height // 2, width // 2))]

    def points(self, size: tuple[int, int], mirrored: bool) -> Tensor:
        """Keypoints `[B, P, K, 3]` in pixels of what the network sees: column x mirrored is `width - 1 - x`."""
        matrices = geometry.invert_matrices(resize_matrices(self.packed.image_sizes, size, self.square))
        points = geometry.transform_keypoints(self.packed.keypoints, matrices[:, None])
        if mirrored:
            points = points[:, :, self.order]
            points[..., 0] = size[1] - 1 - points[..., 0]
        return points

    def paint(self, points: Tensor, size: tuple[int, int]) -> Tensor:
        return ops.render_heatmaps(points, size, self.sigma, "higherhrnet")[0]


def paint_tags(points: Tensor, size: tuple[int, int]) -> Tensor:
    """Tag maps `[B, K, *size]`: near a keypoint its person's tag (of the nearest, where several are), elsewhere 0."""
    B, P, K, _ = points.shape
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in size), indexing="ij")
    nearest = torch.full((B, K, *size), REACH**2)
    tags = torch.zeros(B, K, *size)
    for person in range(P):
        px, py, seen = (points[:, person, :, i, None, None] for i in range(3))
        distance = torch.where(seen > 0, (x - px) ** 2 + (y - py) ** 2, torch.inf)
        closer = distance < nearest
        nearest = torch.where(closer, distance, nearest)
        tags = torch.where(closer, STEP * (person + 1), tags)
    return tags
