"""A network that knows the labels: ideal heatmaps, corners, centres and masks of people, mirrored or not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from posekd import geometry, ops
from posekd.codecs import people
from posekd.ops.reference.center_focal_loss import point_targets
from posekd.paradigms.single_network import input_matrices
from posekd.structures import InputSpec, PackedImageBatch

SURE = 1e-4
NOTHING = 1e-3  # a probability below this is none: sums of Gaussians' ends


class PeopleOracle(nn.Module):
    """Paints the labels of the image it sees; every second call of a flip test is mirrored.

    It is asked for masks with nothing but the heatmaps inside boxes, so the test hands it `watch_boxes` in place of
    `codecs.people.crop_table`.
    """

    def __init__(
        self,
        flip_permutation: Sequence[int],
        size: int = 512,
        flip: bool = True,
        letterbox: bool = False,
        first: int = 0,
        square: float | None = None,
    ) -> None:
        super().__init__()
        self.spec = InputSpec(size=(size, size))
        self.order, self.flip_test, self.view = torch.tensor(flip_permutation), flip, (letterbox, square)
        self.calls, self.first = 0, first * (1 + flip)  # the call at scale 1
        self.sizes: list[tuple[int, int]] = []

    def watch(self, batches: Iterable[PackedImageBatch]) -> Iterator[PackedImageBatch]:
        for packed in batches:
            self.packed, self.sizes = packed, []
            yield packed

    def watch_boxes(self, matrices: Tensor, images: Tensor) -> Tensor:
        self.asked = matrices, images
        return people_crop_table(matrices, images)

    def forward(self, images: Tensor) -> list[Tensor]:
        mirrored = self.flip_test and self.calls % 2 == 1
        self.calls += 1
        size = (images.shape[2], images.shape[3])
        self.sizes.append(size)
        points, boxes = self.labels(size, mirrored)
        grid = (size[0] // people.STRIDE, size[1] // people.STRIDE)
        heatmaps = ops.render_heatmaps(geometry.to_heatmap(points, people.STRIDE), grid, 2.0, "exact")[0]
        boxes = boxes / people.STRIDE
        targets = point_targets(boxes, torch.full((len(boxes),), boxes.shape[1]), grid, True)
        sure = torch.where(targets < NOTHING, SURE, targets.clamp(SURE, 1 - SURE))
        return [heatmaps, sure.logit(), paint_offsets(boxes, grid)]

    def labels(self, size: tuple[int, int], mirrored: bool) -> tuple[Tensor, Tensor]:
        """Keypoints `[B, P, K, 3]` and boxes `[B, P, 4]` in pixels of what the network sees."""
        matrices = geometry.invert_matrices(input_matrices(self.packed.image_sizes, size, *self.view))[:, None]
        points = geometry.transform_keypoints(self.packed.keypoints, matrices)
        outlines = geometry.transform_keypoints(self.packed.outlines, matrices)
        if mirrored:
            points = points[:, :, self.order]
            points[..., 0] = size[1] - 1 - points[..., 0]
            outlines[..., 0] = size[1] - 1 - outlines[..., 0]
        last = outlines.new_tensor([size[1] - 1.0, size[0] - 1.0])
        low, high = (corner.clamp(min=0).minimum(last) for corner in (outlines.amin(2), outlines.amax(2)))
        return points, torch.cat((low, high), -1)

    def group(self, crops: Tensor) -> Tensor:
        """The person's own Gaussians: of the person whose box the asked box overlaps most."""
        matrices, images = self.asked
        points, boxes = self.labels(self.sizes[self.first], False)
        points, boxes = geometry.to_heatmap(points, people.STRIDE), boxes / people.STRIDE
        corners = torch.tensor([[0.0, 0.0], [people.CROP[1], people.CROP[0]]]).expand(len(matrices), 2, 2)
        asked = geometry.transform_keypoints(corners, matrices)
        flat = boxes.flatten(0, 1)
        own = geometry.transform_keypoints(corners[:1].expand(len(flat), 2, 2), people.crop_matrices(flat))
        own = own.unflatten(0, boxes.shape[:2])
        gaps = (own[images] - asked[:, None]).abs().amax((2, 3))
        gaps = torch.where((boxes[images][..., 2] > boxes[images][..., 0]), gaps, torch.inf)
        mine = points[images, gaps.argmin(1)]
        inside = geometry.transform_keypoints(mine, geometry.invert_matrices(matrices))
        return ops.render_heatmaps(inside, people.CROP, 2.0, "exact")[0]


people_crop_table = people.crop_table


def paint_offsets(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Offsets `[B, 6, *size]`: at the pixel of each point where in the pixel it lies; a later person's wins."""
    B, P, _ = boxes.shape
    maps = torch.zeros(B, 6, *size)
    x1, y1, x2, y2 = boxes.unbind(-1)
    for point, (x, y) in enumerate(((x1, y1), (x2, y2), ((x1 + x2) / 2, (y1 + y2) / 2))):
        for b in range(B):
            for p in range(P):
                if x2[b, p] > x1[b, p] and y2[b, p] > y1[b, p]:
                    column, row = int(x[b, p]), int(y[b, p])
                    maps[b, 2 * point, row, column] = x[b, p] - column
                    maps[b, 2 * point + 1, row, column] = y[b, p] - row
    return maps
