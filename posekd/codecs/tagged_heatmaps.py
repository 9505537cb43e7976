"""Tagged heatmaps: the output of HigherHRNet and SmallerHRNet for a whole image.

The network gives heatmaps at two resolutions and, at the coarse one, a tag per pixel and keypoint: keypoints of one
person have like tags. The rules are those of HigherHRNet-Human-Pose-Estimation (`lib/core/inference.py`,
`lib/core/group.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from posekd import geometry, ops

NAME = "tagged_heatmaps"
STRIDES = (4, 2)  # input pixels per pixel of the coarse and of the fine maps
DERIVES = False  # maps of several people do not tell whose left and right hip belong together


class TaggedHeatmaps(NamedTuple):
    """A network's output, taken apart.

    Attributes:
        coarse: heatmaps `[B, K, h, w]`.
        fine: heatmaps `[B, K, h', w']`; None from a network of one resolution.
        tags: `[B, K, h, w]`.
    """

    coarse: Tensor
    fine: Tensor | None
    tags: Tensor

    @property
    def heatmaps(self) -> list[Tensor]:
        """The heatmaps of all resolutions, coarse first."""
        return [self.coarse] if self.fine is None else [self.coarse, self.fine]


class MergedMaps(NamedTuple):
    """The maps that inference uses, at the finest resolution.

    Attributes:
        heatmaps: float32 `[B, K, h', w']`, the mean of all resolutions.
        tags: float32 `[B, K, h', w']`, one or (with the mirrored image's) two.
    """

    heatmaps: Tensor
    tags: list[Tensor]


class GroupingSettings(Protocol):
    """The settings of inference that grouping uses, see `paradigms.bottom_up.BottomUpInference`."""

    @property
    def max_people(self) -> int: ...  # noqa: D102

    @property
    def detection_threshold(self) -> float: ...  # noqa: D102

    @property
    def tag_threshold(self) -> float: ...  # noqa: D102

    @property
    def nms_kernel(self) -> int: ...  # noqa: D102

    @property
    def adjust(self) -> bool: ...  # noqa: D102

    @property
    def refine(self) -> bool: ...  # noqa: D102


def read(output: Any, num_keypoints: int | None = None) -> TaggedHeatmaps:
    """The heatmaps and tags of a network.

    Args:
        output: what the network returned: `[B, 2 K, h, w]` (heatmaps, then tags) and, unless it has one resolution
            only, `[B, K, h', w']`.
        num_keypoints: K; that of the output if None.

    Raises:
        ValueError: another kind of output, or another number of keypoints.
    """
    parts = list(output) if isinstance(output, (list, tuple)) else [output]
    fits = len(parts) in (1, 2) and all(isinstance(maps, Tensor) and maps.ndim == 4 for maps in parts)
    K = num_keypoints
    if fits and K is None:
        K = parts[1].shape[1] if len(parts) == 2 else parts[0].shape[1] // 2
    if not fits or (len(parts) == 1 and parts[0].shape[1] != 2 * (K or 0)):
        raise ValueError(
            f"a bottom-up network gives [B, {2 * K if K else '2 K'}, h, w] and perhaps [B, {K or 'K'}, h', w']; "
            f"this one gives {_described(output)}"
        )
    assert K is not None
    coarse, fine = parts[0], parts[1] if len(parts) == 2 else None
    if fine is not None and (coarse.shape[1], fine.shape[1]) != (2 * K, K):
        raise ValueError(
            f"the network has {fine.shape[1]} heatmaps and {coarse.shape[1]} coarse maps, the dataset {K} keypoints: "
            f"{2 * K} and {K} were expected"
        )
    return TaggedHeatmaps(coarse[:, :K], fine, coarse[:, K:])


def _described(output: Any) -> str:
    parts = output if isinstance(output, (list, tuple)) else [output]
    shapes = [str(tuple(part.shape)) if isinstance(part, Tensor) else type(part).__name__ for part in parts]
    return ", ".join(shapes) or "nothing"


def reorder(output: Any, order: Tensor) -> list[Tensor]:
    """The output of a network whose keypoints stand in another order: keypoint k is its `order[k]`."""
    said = read(output)
    coarse = torch.cat((said.coarse[:, order], said.tags[:, order]), 1)
    return [coarse] if said.fine is None else [coarse, said.fine[:, order]]


def bridged(output: Any, order: Tensor, covered: Tensor, midway: Tensor, couples: Tensor) -> list[Tensor]:
    """The maps of another set of keypoints, see `codecs.heatmaps.bridged`; there are no midpoints here."""
    coarse, fine = reorder(output, order)
    return [torch.where(covered.repeat(2)[:, None, None], coarse, 0), torch.where(covered[:, None, None], fine, 0)]


def final(output: Any, num_keypoints: int) -> MergedMaps:
    """The maps that inference uses: the coarse ones enlarged, heatmaps averaged over all resolutions.

    Raises:
        ValueError: see `read`.
    """
    K, said = num_keypoints, read(output, num_keypoints)
    if said.fine is None:
        return MergedMaps(said.coarse.float(), [said.tags.float()])
    fine = said.fine
    enlarged = enlarge(output[0].float(), (fine.shape[2], fine.shape[3]))  # heatmaps and tags in one pass
    return MergedMaps((enlarged[:, :K] + fine.float()) * 0.5, [enlarged[:, K:]])


def enlarge(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps `[B, C, h, w]` at another size, bilinearly."""
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def unmirror(maps: MergedMaps, order: Tensor | Sequence[int]) -> MergedMaps:
    """Maps of mirrored images as those of the images: mirrored back, left and right keypoints exchanged.

    Args:
        maps: of the mirrored images.
        order: K keypoint indices that a mirror exchanges.
    """
    index = torch.as_tensor(order, device=maps.heatmaps.device)
    return MergedMaps(maps.heatmaps.flip(-1)[:, index], [tags.flip(-1)[:, index] for tags in maps.tags])


def average(maps: MergedMaps, mirrored: MergedMaps) -> MergedMaps:
    """Both views of a flip test together: the mean of the heatmaps, and the tags of both."""
    return MergedMaps((maps.heatmaps + mirrored.heatmaps) * 0.5, [*maps.tags, *mirrored.tags])


def decode(
    heatmaps: Tensor, tags: Tensor, matrices: Tensor, settings: GroupingSettings
) -> tuple[Tensor, Tensor, list[int]]:
    """Groups the maps of a batch into people, on their device.

    Args:
        heatmaps: `[B, K, H, W]`.
        tags: `[B, K, H, W, T]`.
        matrices: float32 `[B, 2, 3]`, map pixel to image pixel.
        settings: thresholds, see `ops.group_keypoints`.

    Returns:
        keypoints float32 `[B, P, K, 3]` (x, y, score) in image pixels, (0, 0, 0) where a keypoint was not found, scores
        float32 `[B, P]` (the mean over all K keypoints before refinement), and how many of the P people each image has.
        The counts are read on the host, which waits for the device.
    """
    grouped = ops.group_keypoints(
        heatmaps,
        tags,
        max_people=settings.max_people,
        detection_threshold=settings.detection_threshold,
        tag_threshold=settings.tag_threshold,
        nms_kernel=settings.nms_kernel,
        adjust=settings.adjust,
        refine=settings.refine,
    )
    counts: list[int] = grouped.counts.tolist()
    most = max(counts, default=0)
    keypoints = geometry.transform_keypoints(grouped.keypoints[:, :most, :, :3], matrices[:, None])
    return torch.where(keypoints[..., 2:] > 0, keypoints, 0.0), grouped.scores[:, :most], counts
