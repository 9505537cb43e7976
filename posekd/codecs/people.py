"""People: the output of SIMPLE for a whole image: heatmaps, and the corners and centres of people's boxes.

Boxes come from the corners (`boxes`), a person's keypoints from the heatmaps' peaks inside the box, weighed by what the
network's second half says of the heatmaps there (`Grouper`, `keypoints`). Map pixel x shows input pixel 4 x.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from posekd import geometry, ops
from posekd.codecs import heatmaps

NAME = "people"
STRIDE = 4  # input pixels per map pixel
CROP = (64, 48)  # (height, width) of the heatmaps inside a box: those of a top-down network that sees 256 x 192
MAX_BOXES = 32  # that training looks at
PADDING = geometry.PADDING  # by which these boxes are larger than people's, as top-down crops are
_FLOOR = 1e-4  # of heatmap values whose logarithm is taken
PEAK_WINDOW = 5  # side, in map pixels, of the window in which a keypoint's peak is the highest value

Grouper = Callable[[Tensor], Tensor]
"""From heatmaps inside R boxes `[R, K, *CROP]` to how far each pixel is the person's, 0..1
(`models.simple.Simple.group`)."""


class PeopleMaps(NamedTuple):
    """A network's output, taken apart; all maps have one resolution.

    Attributes:
        heatmaps: `[B, K, h, w]`.
        points: logits `[B, 3, h, w]` of top-left corners, bottom-right corners and centres.
        offsets: `[B, 6, h, w]`, x and y of each of these inside its pixel.
        tags: of both corners, `[B, 2, h, w]`, from a network that has them.
    """

    heatmaps: Tensor
    points: Tensor
    offsets: Tensor
    tags: Tensor | None = None


class MergedPeople(NamedTuple):
    """What inference uses, in pixels of the maps.

    Attributes:
        heatmaps: float32 `[B, K, h, w]`.
        centers: probabilities of centres, float32 `[B, 1, h, w]`.
        offsets: of centres, float32 `[B, 2, h, w]`.
        corners: the highest top-left and bottom-right corners of V views, float32 `[B, V, 2, k, 3]` (x, y, score).
        mirrored: of V' mirrored views the top-right and bottom-left corners, float32 `[B, V', 2, k, 3]`.
    """

    heatmaps: Tensor
    centers: Tensor
    offsets: Tensor
    corners: Tensor
    mirrored: Tensor


class PeopleSettings(Protocol):
    """The settings of inference that decoding uses, see `paradigms.single_network.SingleNetworkInference`."""

    @property
    def top_k(self) -> int: ...  # noqa: D102

    @property
    def max_boxes(self) -> int: ...  # noqa: D102

    @property
    def max_peaks(self) -> int: ...  # noqa: D102

    @property
    def box_threshold(self) -> float: ...  # noqa: D102

    @property
    def keypoint_threshold(self) -> float: ...  # noqa: D102

    @property
    def complete(self) -> bool: ...  # noqa: D102

    @property
    def decode(self) -> str: ...  # noqa: D102


def read(output: Any, num_keypoints: int | None = None) -> PeopleMaps:
    """The maps of a network that gives three, or four.

    Args:
        output: what the network returned.
        num_keypoints: K; that of the output if None.

    Raises:
        ValueError: another kind of output, or another number of keypoints.
    """
    parts = output if isinstance(output, (list, tuple)) else [output]
    shapes = [tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__ for maps in parts]
    K = num_keypoints
    fits = len(parts) in (3, 4) and all(isinstance(maps, Tensor) and maps.ndim == 4 for maps in parts)
    if fits and K is None:
        K = parts[0].shape[1]
    sizes = [(maps.shape[0], *maps.shape[2:]) for maps in parts] if fits else []
    channels = [K, 3, 6, 2][: len(parts)]
    if not fits or [maps.shape[1] for maps in parts] != channels or any(size != sizes[0] for size in sizes):
        raise ValueError(
            f"a network that finds people gives heatmaps [B, {'K' if K is None else K}, h, w], points [B, 3, h, w] and "
            f"offsets [B, 6, h, w]; this one gives {', '.join(map(str, shapes)) or 'nothing'}"
        )
    return PeopleMaps(*parts)


def reorder(output: Any, order: Tensor) -> list[Tensor]:
    """The output of a network whose keypoints stand in another order: keypoint k is its `order[k]`."""
    said = read(output)
    return [said.heatmaps[:, order], *(maps for maps in said[1:] if maps is not None)]


def final(output: Any, num_keypoints: int, settings: PeopleSettings) -> MergedPeople:
    """The maps of one view, its corners listed already.

    Raises:
        ValueError: see `read`.
    """
    said = PeopleMaps(*(maps.float() for maps in read(output, num_keypoints)[:3]))
    corners = ops.box_points(said.points[:, :2], said.offsets[:, :4], top_k=settings.top_k)[:, None]
    return MergedPeople(said.heatmaps, said.points[:, 2:].sigmoid(), said.offsets[:, 4:], corners, corners[:, :0])


def unmirror(maps: MergedPeople, order: Tensor | Sequence[int]) -> MergedPeople:
    """What was found in mirrored images, as found in the images.

    Heatmaps and centres are mirrored back, left and right keypoints exchanged; heatmaps, whose Gaussians lie at rounded
    positions, move a column to the right as a top-down flip test moves them. A mirrored box's top-left corner is the
    box's top-right one: corners keep their rows and stay apart from those of images that were not mirrored.

    Args:
        maps: of the mirrored images.
        order: K keypoint indices that a mirror exchanges.
    """
    last = maps.heatmaps.shape[-1] - 1 / STRIDE  # input pixel X of W becomes W - 1 - X
    x, rest = maps.corners[..., :1], maps.corners[..., 1:]
    return MergedPeople(
        unmirror_heatmaps(maps.heatmaps, order),
        maps.centers.flip(-1),
        torch.cat((1 - 1 / STRIDE - maps.offsets[:, :1], maps.offsets[:, 1:]), 1).flip(-1),
        maps.corners[:, :0],
        torch.cat((last - x, rest), -1),
    )


def unmirror_heatmaps(maps: Tensor, order: Tensor | Sequence[int]) -> Tensor:
    """Heatmaps `[B, K, h, w]` of mirrored images, see `unmirror`."""
    height, width = maps.shape[-2:]
    return heatmaps.unmirror(maps, order, (height * STRIDE, width * STRIDE), _SHIFTED)


class _Shifted:
    """The setting with which top-down heatmaps are mirrored back."""

    shift_heatmaps, decode, blur_kernel = True, "quarter", 11


_SHIFTED = _Shifted()


def average(maps: MergedPeople, mirrored: MergedPeople) -> MergedPeople:
    """Both views of a flip test together: means of the maps, and the corners of both."""
    return MergedPeople(
        (maps.heatmaps + mirrored.heatmaps) * 0.5,
        (maps.centers + mirrored.centers) * 0.5,
        maps.offsets,
        torch.cat((maps.corners, mirrored.corners), 1),
        torch.cat((maps.mirrored, mirrored.mirrored), 1),
    )


def move(maps: MergedPeople, moves: Tensor, size: tuple[int, int]) -> MergedPeople:
    """Maps of another scale in the pixels of scale 1's; centres, which are those of scale 1, stay as they are.

    Args:
        maps: of the other scale.
        moves: `[B, 2, 3]`, map pixel of that scale to map pixel of scale 1.
        size: `(height, width)` of scale 1's maps.
    """

    def moved(corners: Tensor) -> Tensor:
        return geometry.transform_keypoints(corners.flatten(1, 3), moves).view_as(corners)

    return maps._replace(
        heatmaps=ops.crop_warp(maps.heatmaps, geometry.invert_matrices(moves), size),
        corners=moved(maps.corners),
        mirrored=moved(maps.mirrored),
    )


def together(base: MergedPeople, others: Sequence[MergedPeople]) -> MergedPeople:
    """Maps of several scales in pixels of the first's: the mean of the heatmaps, all corners, the first's centres."""
    parts = (base, *others)
    return base._replace(
        heatmaps=torch.stack([maps.heatmaps for maps in parts]).mean(0),
        corners=torch.cat([maps.corners for maps in parts], 1),
        mirrored=torch.cat([maps.mirrored for maps in parts], 1),
    )


# ---- Boxes -----------------------------------------------------------------------------------------------------


def boxes(maps: MergedPeople, areas_scale: Tensor, settings: PeopleSettings) -> tuple[Tensor, Tensor, Tensor]:
    """The boxes of people, see `ops.pair_corners`: `[B, max_boxes, 4]` in map pixels, scores, counts.

    Args:
        maps: of one resolution.
        areas_scale: float32 `[B]`, square pixels of the original image per square map pixel.
        settings: `top_k` and `max_boxes`.
    """
    centers = ops.box_points(maps.centers.logit(), maps.offsets, top_k=settings.top_k)[:, 0]
    return ops.pair_corners(
        torch.cat((maps.corners, maps.mirrored), 1),
        centers,
        areas_scale,
        mirrored=maps.mirrored.shape[1],
        max_boxes=settings.max_boxes,
    )


def found(said: PeopleMaps, areas_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The boxes of one view, for training: see `ops.decode_boxes`."""
    return ops.decode_boxes(said.points, said.offsets, areas_scale, max_boxes=MAX_BOXES)


def crop_matrices(boxes: Tensor, size: tuple[int, int] = CROP) -> Tensor:
    """From pixels of the heatmaps inside boxes to those of the map, float32 `[R, 2, 3]`.

    A box grows to the crop's aspect ratio and by `PADDING`, as for a top-down network.

    Args:
        boxes: `[R, 4]` (x1, y1, x2, y2) in map pixels.
        size: `(height, width)` of the heatmaps inside a box.
    """
    low, high = boxes.unflatten(-1, (2, 2)).unbind(-2)
    centers, scales = geometry.box_to_center_scale(torch.cat((low, high - low), -1), size)
    return geometry.crop_matrices(centers, scales, None, None, size)


def crop_table(matrices: Tensor, images: Tensor, size: tuple[int, int] = CROP) -> Tensor:
    """The boxes whose ROIAlign samples where `crop_matrices` says, `[R, 5]` (image, x1, y1, x2, y2).

    ROIAlign takes pixels for squares and samples the middles of its bins; here a pixel is a point.

    Args:
        matrices: `[R, 2, 3]`, from `crop_matrices`.
        images: int64 `[R]`, the image of each box.
        size: `(height, width)` of the heatmaps inside a box.
    """
    pixel = matrices[:, [0, 1], [0, 1]]  # map pixels per crop pixel
    low = matrices[:, :, 2] + 0.5 - 0.5 * pixel
    high = low + pixel * pixel.new_tensor([size[1], size[0]])
    return torch.cat((images[:, None].to(low), low, high), 1)


# ---- Keypoints -------------------------------------------------------------------------------------------------


def peaks_of(heatmaps: Tensor, settings: PeopleSettings) -> Tensor:
    """The highest peaks of each keypoint's map, `[B, K, max_peaks, 3]` (x, y, score): see `ops.top_k_peaks`."""
    found = ops.top_k_peaks(
        heatmaps,
        heatmaps,
        max_people=settings.max_peaks,
        detection_threshold=settings.keypoint_threshold,
        nms_kernel=PEAK_WINDOW,
    )
    return found[..., :3]


def masks_at(masks: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """What the masks of boxes say at points `[R, K, P, 2]` in crop pixels, 0 outside, and which are inside."""
    height, width = masks.shape[2:]
    x, y = points.round().unbind(-1)
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    pixel = torch.where(inside, y * width + x, 0.0).long()
    return torch.where(inside, masks.flatten(2).gather(2, pixel), 0.0), inside


def keypoints(
    maps: Tensor,
    peaks: Tensor,
    boxes: Tensor,
    scores: Tensor,
    images: Tensor,
    rounds: int,
    group: Grouper,
    settings: PeopleSettings,
    used_rounds: Tensor | None = None,
) -> Tensor:
    """The keypoints of the people in boxes, without waiting for the device.

    Of the peaks in its box a person takes, for each keypoint, the one with the largest product of heatmap and mask. A
    peak that several want goes to the largest product of box score and mask, and the others take their next best.
    With `settings.complete` whoever has none of a keypoint gets the highest product inside the box: people whose
    keypoints fall on one pixel have one peak between them.

    Args:
        maps: heatmaps `[B, K, h, w]`.
        peaks: `[B, K, P, 3]`, see `peaks_of`.
        boxes: `[R, 4]` (x1, y1, x2, y2) in map pixels.
        scores: `[R]`, of the boxes.
        images: int64 `[R]`, image of each box.
        rounds: how often the losers choose again; as often as an image has boxes is nearly always enough, and whoever
            is then still in dispute goes without.
        group: the network's second half.
        settings: `complete`, `decode` and `keypoint_threshold`.
        used_rounds: int64 scalar, where only so many of the rounds shall count (for exporters).

    Returns:
        float32 `[R, K, 3]` (x, y in map pixels, moved inside the peak's pixel as `decode` says; the product as score);
        zeros where there is none.
    """
    matrices = crop_matrices(boxes)
    crops = ops.roi_align(maps, crop_table(matrices, images), CROP, 1.0, 2)
    own = peaks[images]
    inverse = geometry.invert_matrices(matrices)
    in_crop = geometry.transform_keypoints(own[..., :2].flatten(1, 2), inverse).unflatten(1, own.shape[1:3])
    masks = group(crops).float()
    shares, inside = masks_at(masks, in_crop)
    choice, score = _shared_out(
        own[..., 2] * shares * inside, shares, scores, images, maps.shape[0], rounds, used_rounds
    )
    points = own[..., :2].gather(2, choice[..., None, None].expand(-1, -1, 1, 2))[:, :, 0]
    points = points + _step(maps, points, images, settings.decode)
    found = torch.where((score > 0)[..., None], torch.cat((points, score[..., None]), -1), 0.0)
    if not settings.complete:
        return found
    filled = ops.decode_heatmaps(crops * masks, "quarter", matrices=matrices)
    filled = torch.where(filled[..., 2:] > settings.keypoint_threshold, filled, 0.0)
    return torch.where(found[..., 2:] > 0, found, filled)


def _shared_out(
    values: Tensor,
    shares: Tensor,
    scores: Tensor,
    images: Tensor,
    num_images: int,
    rounds: int,
    used_rounds: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Which peak each person takes for each keypoint, `[R, K]`, and its value there, 0 for none."""
    R, K, P = values.shape
    rows = torch.arange(R, device=values.device)[:, None].expand(R, K)
    joint = (images[:, None] * K + torch.arange(K, device=values.device)) * P
    for played in range(rounds + 1):
        best, choice = values.max(2)
        wanted = best > 0
        peak = (joint + choice).flatten()
        strength = torch.where(wanted, scores[:, None] * shares.gather(2, choice[..., None])[..., 0], -1.0)
        strongest = strength.new_full((num_images * K * P,), -1.0).scatter_reduce(0, peak, strength.flatten(), "amax")
        strong = wanted & (strength == strongest[peak].view(R, K))
        first = rows.new_full((num_images * K * P,), R)
        first = first.scatter_reduce(0, peak, torch.where(strong, rows, R).flatten(), "amin")
        wins = strong & (first[peak].view(R, K) == rows)
        if played == rounds:
            return choice, torch.where(wins, best, 0.0)
        left = values.scatter(2, choice[..., None], torch.where(wins | ~wanted, best, 0.0)[..., None])
        values = left if used_rounds is None else torch.where(used_rounds > played, left, values)
    raise AssertionError("the last round returns")


def _step(maps: Tensor, points: Tensor, images: Tensor, decode: str) -> Tensor:
    """From whole pixels `[R, K, 2]` to the top between them.

    `quarter` is HRNet's quarter pixel towards the higher neighbour, as in `ops.decode_heatmaps`; `gaussian` the top of
    the Gaussian through the values of three neighbours, each way, at most half a pixel away.
    """
    _, K, height, width = maps.shape
    x, y = points.long().unbind(-1)
    flat = maps.flatten()
    base = (images[:, None] * K + torch.arange(K, device=maps.device)) * (height * width)

    def at(dx: int, dy: int) -> Tensor:
        return flat[base + (y + dy).clamp(0, height - 1) * width + (x + dx).clamp(0, width - 1)]

    def sides(dx: int, dy: int) -> Tensor:
        before, after = at(-dx, -dy), at(dx, dy)
        if decode == "quarter":
            return 0.25 * torch.sign(after - before)
        low, top, high = (value.clamp(min=_FLOOR).log() for value in (before, at(0, 0), after))
        bend = low - 2 * top + high  # 0 in a plateau
        return (0.5 * (low - high) / bend.clamp(max=-_FLOOR)).clamp(-0.5, 0.5)

    border = 1 if decode == "quarter" else 0  # HRNet leaves out one pixel more than the neighbours need
    inside = (x > border) & (x < width - 1) & (y > border) & (y < height - 1)
    return torch.stack((sides(1, 0), sides(0, 1)), -1) * inside[..., None]
