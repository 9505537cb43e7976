"""The stages of associative-embedding grouping: peaks of the heatmaps, people from the peaks, refinement.

`posekd.ops.group_keypoints` runs them one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from posekd.ops import checks, library
from posekd.ops.reference import group_keypoints as definition

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
COCO_ORDER = (0, 1, 2, 3, 4, 5, 6, 11, 12, 7, 8, 9, 10, 13, 14, 15, 16)
STRIP_ROWS = 32  # rows of a map that one CUDA block scans
TILE = 16  # kTile of csrc/group_keypoints/group_keypoints.h
LARGEST_WINDOW = 32767  # for a kernel goes through every row of a window, on the map or not
MOST_JOINTS = 256  # kMaxJoints there
MOST_PEOPLE = 3072  # with a round of new peaks (kRound of peaks_cuda.cu) 4096: what any GPU's block can sort


class GroupedKeypoints(NamedTuple):
    """People of a batch of images, padded to a capacity.

    Attributes:
        keypoints: `[B, capacity, K, 3 + T]` float32: x, y, score, tags; rows of zeros for missing keypoints and people.
        scores: `[B, capacity]` float32: the mean score over all K keypoints, before refinement.
        counts: `[B]` int64: the people found. **More than the capacity means that the rest was dropped.**

    Examples:
        >>> import torch
        >>> from posekd.ops import GroupedKeypoints
        >>> people = GroupedKeypoints(torch.zeros(1, 30, 17, 4), torch.zeros(1, 30), torch.tensor([2]))
        >>> image = 0
        >>> people.keypoints[image, : people.counts[image]].shape  # those found, without the padding
        torch.Size([2, 17, 4])
    """

    keypoints: Tensor
    scores: Tensor
    counts: Tensor


def _maps(heatmaps: Tensor, tags: Tensor) -> tuple[Tensor, Tensor]:
    """Both contiguous and of one dtype, the tags as `[B, K or 1, H * W, T]`: what the core reads."""
    if heatmaps.dtype != tags.dtype:
        heatmaps, tags = heatmaps.float(), tags.float()
    B, _, H, W = heatmaps.shape
    planes = tags if tags.ndim == 5 else tags[..., None]
    return heatmaps.contiguous(), planes.reshape(B, planes.shape[1], H * W, planes.shape[4]).contiguous()


def _channels(tags: Tensor) -> int:
    return tags.shape[4] if tags.ndim == 5 else 1


# ---- Stage 1: peaks --------------------------------------------------------------------------------------------


def _peaks_output(heatmaps: Tensor, tags: Tensor, max_people: int) -> Tensor:
    shape = (*heatmaps.shape[:2], max_people, 3 + _channels(tags))
    return heatmaps.new_empty(shape, dtype=torch.float32)


def _peaks_kernel(heatmaps: Tensor, tags: Tensor, max_people: int, threshold: float, nms_kernel: int) -> Tensor:
    peaks = _peaks_output(heatmaps, tags, max_people)
    B, K, H, _ = heatmaps.shape
    workspace = None
    if library.on_device(heatmaps):
        workspace = heatmaps.new_empty((B * K, -(-H // STRIP_ROWS), max_people), dtype=torch.int64)
    library.core().top_k_peaks(*_maps(heatmaps, tags), peaks, workspace, threshold, nms_kernel, library.threads())
    return peaks


_top_k_peaks = library.define(
    "top_k_peaks(Tensor heatmaps, Tensor tags, int max_people, float threshold, int nms_kernel) -> Tensor",
    kernel=_peaks_kernel,
    reference=definition.top_k_peaks,
    fake=lambda heatmaps, tags, max_people, threshold, nms_kernel: _peaks_output(heatmaps, tags, max_people),
    supports=lambda heatmaps, *rest: heatmaps.numel() > 0 and heatmaps[0, 0].numel() < 2**31,
)


def check_maps(heatmaps: Tensor, tags: Tensor) -> None:
    """Checks heatmaps and tags, of which the latter come in three layouts."""
    checks.check_tensor("heatmaps", heatmaps, "B K H W", FLOATS)
    B, K, H, W = heatmaps.shape
    if H < 1 or W < 1:
        raise ValueError(f"heatmaps must have at least one pixel, got shape {tuple(heatmaps.shape)}")
    many = isinstance(tags, Tensor) and tags.ndim == 5
    checks.check_tensor("tags", tags, "B K H W T" if many else "B K H W", FLOATS)
    checks.check_device("tags", tags, heatmaps, "heatmaps")
    if tags.shape[0] != B or tags.shape[1] not in (K, 1) or tuple(tags.shape[2:4]) != (H, W):
        raise ValueError(
            f"tags must have shape {(B, K, H, W)} or {(B, 1, H, W)}, with an axis of tag channels at the end or "
            f"without, to match heatmaps; got {tuple(tags.shape)}"
        )
    if many and tags.shape[4] < 1:
        raise ValueError(f"tags must have at least one channel, got shape {tuple(tags.shape)}")


def check_count(name: str, value: int, least: int = 1, most: int | None = None) -> None:
    """Checks that `value` is an integer in a range."""
    if not checks.is_whole(value):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value < least or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be {limits}, got {value}")


def check_threshold(name: str, value: float) -> None:
    """Checks that `value` is a number, at least 0 and finite."""
    checks.check_number(name, value)
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be finite and at least 0, got {value}")


def top_k_peaks(
    heatmaps: Tensor,
    tags: Tensor,
    *,
    max_people: int = 30,
    detection_threshold: float = 0.1,
    nms_kernel: int = 5,
) -> Tensor:
    """Finds the highest peaks of every map and reads the tags under them.

    A peak is a pixel above the threshold that no pixel within its window exceeds: on a plateau every pixel is one
    (HigherHRNet compares the map with its max pooling). A NaN hides the peaks whose window holds it, as it does in
    `max_pool2d`; it is no peak itself, and neither is an infinite value. No derivative.

    Args:
        heatmaps: `[B, K, H, W]`, float32, float16 or bfloat16.
        tags: `[B, K, H, W]`, `[B, K, H, W, T]`, or one map for all keypoints, `[B, 1, H, W]` or `[B, 1, H, W, T]`.
        max_people: how many peaks of a map are kept, 1 to 3072.
        detection_threshold: at least 0; a peak is above it.
        nms_kernel: side of the window, odd, up to 32767.

    Returns:
        `[B, K, max_people, 3 + T]` float32: x, y (pixel indices), score, tags, by descending score, the earlier pixel
        first among equals; rows of zeros where there are fewer peaks.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, device or value; the message names it.

    Examples:
        >>> import torch
        >>> from posekd.ops import top_k_peaks
        >>> heatmaps, tags = torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), 3.0)
        >>> heatmaps[0, 0, 2, 5], heatmaps[0, 0, 6, 1] = 0.5, 0.75
        >>> top_k_peaks(heatmaps, tags, max_people=2).tolist()  # x, y, score, tag
        [[[[1.0, 6.0, 0.75, 3.0], [5.0, 2.0, 0.5, 3.0]]]]
    """
    check_maps(heatmaps, tags)
    check_count("max_people", max_people, 1, MOST_PEOPLE)
    check_threshold("detection_threshold", detection_threshold)
    check_count("nms_kernel", nms_kernel, 1, LARGEST_WINDOW)
    if nms_kernel % 2 == 0:
        raise ValueError(f"nms_kernel must be odd, so that a window has a centre, got {nms_kernel}")
    return _top_k_peaks(heatmaps.detach(), tags.detach(), max_people, float(detection_threshold), nms_kernel)


# ---- Stage 2: people -------------------------------------------------------------------------------------------


def _match_outputs(peaks: Tensor, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    B, K, _, width = peaks.shape
    return (
        peaks.new_empty((B, capacity, K, width)),
        peaks.new_empty((B, capacity)),
        peaks.new_empty((B,), dtype=torch.int64),
    )


def _match_kernel(
    peaks: Tensor,
    capacity: int,
    detection_threshold: float,
    tag_threshold: float,
    joint_order: list[int],
    ignore_too_many: bool,
    use_detection_score: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _match_outputs(peaks, capacity)
    B, K, max_people, width = peaks.shape
    core = library.core()
    size = core.match_workspace_bytes(K, max_people, width - 3)
    workspace = peaks.new_empty((B, size), dtype=torch.uint8)
    core.match_by_tag(
        peaks.contiguous(), *outputs, workspace, detection_threshold, tag_threshold, joint_order,
        ignore_too_many, use_detection_score, library.threads(),
    )  # fmt: skip
    return outputs


_match_by_tag = library.define(
    "match_by_tag(Tensor peaks, int capacity, float detection_threshold, float tag_threshold, int[] joint_order, "
    "bool ignore_too_many, bool use_detection_score) -> (Tensor, Tensor, Tensor)",
    kernel=_match_kernel,
    reference=definition.match_by_tag,
    fake=lambda peaks, capacity, *rest: _match_outputs(peaks, capacity),
    supports=lambda peaks, *rest: peaks.numel() > 0 and peaks.shape[1] <= MOST_JOINTS,
)


def resolve_order(joint_order: Sequence[int] | None, joints: int) -> list[int]:
    """The order in which keypoints are visited: given, HigherHRNet's for 17 keypoints, or ascending."""
    if joint_order is None:
        return list(COCO_ORDER) if joints == len(COCO_ORDER) else list(range(joints))
    order = list(joint_order)
    if sorted(order) != list(range(joints)):
        raise ValueError(f"joint_order must name each of the keypoints 0 to {joints - 1} once, got {order}")
    return [int(k) for k in order]


def match_by_tag(
    peaks: Tensor,
    *,
    capacity: int | None = None,
    detection_threshold: float = 0.1,
    tag_threshold: float = 1.0,
    joint_order: Sequence[int] | None = None,
    ignore_too_many: bool = False,
    use_detection_score: bool = True,
) -> GroupedKeypoints:
    """Assigns peaks to people by their tags: HigherHRNet's `match_by_tag`.

    The first keypoint (in `joint_order`) that has peaks starts a person with each. Of every further keypoint the peaks
    are assigned to the people so far (the first `max_people` = `peaks.shape[2]` of them) by their mean tags, at the
    least total cost, `100 * round(distance) - score` each. A peak that is assigned closer than `tag_threshold` joins,
    any other starts a person. A person who is started with the first tag of an earlier one is that one: the keypoint
    goes to that person, whose mean tag starts anew.

    Rounded distances tie often. Among equally cheap assignments the smallest sum of `min(distance, tag_threshold)`
    wins, so that peaks join people rather than start new ones. Where the cheapest assignment is unique, the result is
    the official one; the official solver's choice among several depends on its version.

    A row whose score is not finite, or not above the threshold, or whose tags are not finite, is no detection.
    Distances beyond 1e12 count as 1e12. No derivative.

    Args:
        peaks: `[B, K, max_people, 3 + T]` float32 from `top_k_peaks`.
        capacity: how many people an image has room for in the result; default K * max_people, which always suffices.
        detection_threshold: at least 0.
        tag_threshold: above 0.
        joint_order: a permutation of the keypoints; default HigherHRNet's order at K = 17, otherwise 0 to K - 1.
        ignore_too_many: skip a keypoint's peaks altogether once there are `max_people` people.
        use_detection_score: False takes the distance itself as the cost.

    Returns:
        `GroupedKeypoints`; people in the order in which they were started. A count above the capacity says how many
        there were; those beyond it are dropped.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape or value; the message names it.

    Examples:
        >>> import torch
        >>> from posekd.ops import match_by_tag
        >>> peaks = torch.zeros(1, 2, 2, 4)  # 2 keypoints, 2 peaks of each: x, y, score, tag
        >>> peaks[0, 0] = torch.tensor([[5.0, 2.0, 0.9, 1.0], [9.0, 2.0, 0.8, 7.0]])
        >>> peaks[0, 1] = torch.tensor([[9.0, 6.0, 0.9, 7.1], [5.0, 6.0, 0.7, 1.1]])
        >>> people = match_by_tag(peaks)
        >>> people.counts.tolist()
        [2]
        >>> people.keypoints[0, :2, :, :2].tolist()
        [[[5.0, 2.0], [5.0, 6.0]], [[9.0, 2.0], [9.0, 6.0]]]
    """
    checks.check_tensor("peaks", peaks, "B K max_people 3+T", (torch.float32,))
    if peaks.shape[3] < 4:
        raise ValueError(f"peaks must end in x, y, score and at least one tag, got shape {tuple(peaks.shape)}")
    check_count("max_people = peaks.shape[2]", peaks.shape[2], 1, MOST_PEOPLE)
    capacity = peaks.shape[1] * peaks.shape[2] if capacity is None else capacity
    check_count("capacity", capacity, 0 if peaks.shape[1] == 0 else 1)
    check_threshold("detection_threshold", detection_threshold)
    checks.check_positive("tag_threshold", tag_threshold)
    order = resolve_order(joint_order, peaks.shape[1])
    found = _match_by_tag(
        peaks.detach(), capacity, float(detection_threshold), float(tag_threshold), order,
        bool(ignore_too_many), bool(use_detection_score),
    )  # fmt: skip
    return GroupedKeypoints(*found)


# ---- Stage 3: refinement ---------------------------------------------------------------------------------------


def _refine_kernel(
    heatmaps: Tensor, tags: Tensor, keypoints: Tensor, counts: Tensor, adjust: bool, fill: bool
) -> Tensor:
    refined = torch.empty_like(keypoints, memory_format=torch.contiguous_format)
    B, K, H, W = heatmaps.shape
    channels = _channels(tags)
    means = keypoints.new_empty((B, keypoints.shape[1], channels))
    bounds = None
    if fill and library.on_device(heatmaps):
        bounds = keypoints.new_empty((B * K, 1 + 2 * channels, -(-H // TILE) * -(-W // TILE)))
    library.core().refine_people(
        *_maps(heatmaps, tags), keypoints.contiguous(), refined, counts.contiguous(), means, bounds,
        adjust, fill, library.threads(),
    )  # fmt: skip
    return refined


_refine = library.define(
    "refine_people(Tensor heatmaps, Tensor tags, Tensor keypoints, Tensor counts, bool adjust, bool fill) -> Tensor",
    kernel=_refine_kernel,
    reference=definition.refine,
    fake=lambda heatmaps, tags, keypoints, *rest: torch.empty_like(keypoints, memory_format=torch.contiguous_format),
    supports=lambda heatmaps, tags, keypoints, *rest: heatmaps.numel() > 0 and keypoints.numel() > 0,
)


def refine(
    heatmaps: Tensor,
    tags: Tensor,
    keypoints: Tensor,
    counts: Tensor,
    *,
    adjust: bool = True,
    fill: bool = True,
) -> Tensor:
    """Adjusts the keypoints of grouped people, and fills the missing ones: HigherHRNet's `adjust` and `refine`.

    * adjust: a keypoint with a score above 0 moves a quarter of a pixel toward the higher neighbour in x and in y (the
      lower side when they are equal; at the border the pixel stands in for its neighbour), then by 0.5.
    * fill: a missing keypoint (score 0) is put where `heatmap - round(tag distance)` is largest, in float32, the first
      such pixel in row-major order. The distance is to the person's mean tag, read back from the maps at the
      truncated positions of the person's keypoints. The same quarter and 0.5 are added, and the keypoint counts if the
      heatmap there is above 0; its tags stay 0. Scores of people do not change.

    A pixel is never chosen whose heatmap is NaN or infinite or whose tag is NaN. Nothing is filled for a person
    without keypoints, or whose mean tag is NaN. Positions outside the map are clamped into it. No derivative.

    Args:
        heatmaps: as for `top_k_peaks`.
        tags: as for `top_k_peaks`.
        keypoints: `[B, capacity, K, 3 + T]` float32 from `match_by_tag`.
        counts: `[B]` int64: the first `min(count, capacity)` rows of an image are people.
        adjust: whether to adjust.
        fill: whether to fill.

    Returns:
        New keypoints, `[B, capacity, K, 3 + T]`.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape or device; the message names it.

    Examples:
        >>> import torch
        >>> from posekd.ops import match_by_tag, refine, top_k_peaks
        >>> heatmaps, tags = torch.zeros(1, 2, 16, 16), torch.zeros(1, 2, 16, 16)
        >>> heatmaps[0, 0, 4, 6] = 0.9
        >>> heatmaps[0, 1, 9, 6] = 0.05  # below the detection threshold of 0.1
        >>> people = match_by_tag(top_k_peaks(heatmaps, tags))
        >>> people.keypoints[0, 0, :, :2].tolist()  # the second keypoint is missing
        [[6.0, 4.0], [0.0, 0.0]]
        >>> refine(heatmaps, tags, people.keypoints, people.counts)[0, 0, :, :2].tolist()
        [[6.25, 4.25], [6.25, 9.25]]
    """
    check_maps(heatmaps, tags)
    checks.check_tensor("keypoints", keypoints, "B P K 3+T", (torch.float32,))
    B, K = heatmaps.shape[:2]
    shape = (B, keypoints.shape[1], K, 3 + _channels(tags))
    checks.check_shape("keypoints", keypoints, shape, "heatmaps and tags")
    checks.check_tensor("counts", counts, "B", (torch.int64,))
    checks.check_shape("counts", counts, (B,), "heatmaps")
    for name, value in (("keypoints", keypoints), ("counts", counts)):
        checks.check_device(name, value, heatmaps, "heatmaps")
    return _refine(heatmaps.detach(), tags.detach(), keypoints.detach(), counts, bool(adjust), bool(fill))
