"""People from heatmaps and tags: associative-embedding grouping."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from posekd.ops import group_stages
from posekd.ops.group_stages import GroupedKeypoints


def group_keypoints(
    heatmaps: Tensor,
    tags: Tensor,
    *,
    max_people: int = 30,
    capacity: int | None = None,
    detection_threshold: float = 0.1,
    tag_threshold: float = 1.0,
    nms_kernel: int = 5,
    joint_order: Sequence[int] | None = None,
    ignore_too_many: bool = False,
    use_detection_score: bool = True,
    adjust: bool = True,
    refine: bool = True,
) -> GroupedKeypoints:
    """Groups the peaks of heatmaps into people by associative embedding: HigherHRNet's parser.

    Runs `top_k_peaks`, `match_by_tag` and `refine`; their pages state the rules, also those for NaN. Where the cheapest
    assignment of peaks to people is unique, the people are those of the official parser, in the same order. Everything
    stays on the device of the maps, without synchronisation, so that it captures in a CUDA graph; the result is
    deterministic. No derivative.

    As in the official parser a person's score is the mean over all K keypoints before refinement, and people beyond
    `max_people` may arise: the default capacity has room for all that can. A smaller one saves memory; `counts` then
    says when people were dropped, by exceeding it. `group_keypoints_list` turns that into an error.

    Args:
        heatmaps: `[B, K, H, W]`, float32, float16 or bfloat16.
        tags: `[B, K, H, W]`, `[B, K, H, W, T]`, or one map for all keypoints, `[B, 1, H, W]` or `[B, 1, H, W, T]`.
        max_people: peaks kept per map, and people whom further keypoints may join.
        capacity: people that fit in the result of an image; default K * max_people.
        detection_threshold: peaks are above it; at least 0.
        tag_threshold: a peak joins a person whose mean tag is closer than this.
        nms_kernel: side of the window in which a peak is highest, odd.
        joint_order: a permutation of the keypoints; default HigherHRNet's order at K = 17, otherwise 0 to K - 1.
        ignore_too_many: skip a keypoint's peaks altogether once there are `max_people` people.
        use_detection_score: whether the assignment weighs rounded distances and scores, or the distances alone.
        adjust: a quarter of a pixel toward the higher neighbours, and 0.5 to the pixel's centre.
        refine: fill the keypoints that a person misses.

    Returns:
        `GroupedKeypoints`: `keypoints` `[B, capacity, K, 3 + T]` (x, y, score, tags, in pixels of the maps), `scores`
        `[B, capacity]`, `counts` `[B]`.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, device or value; the message names it.

    Examples:
        >>> import torch
        >>> from posekd.ops import group_keypoints
        >>> heatmaps, tags = torch.zeros(1, 2, 32, 32), torch.zeros(1, 2, 32, 32)
        >>> for x, tag in ((6, 1.0), (20, 5.0)):  # two people, two keypoints each
        ...     heatmaps[0, 0, 8, x], heatmaps[0, 1, 16, x] = 0.9, 0.8
        ...     tags[0, :, :, x] = tag
        >>> people = group_keypoints(heatmaps, tags)
        >>> people.keypoints.shape, people.counts.tolist()  # [B, capacity, K, x y score tag]
        (torch.Size([1, 60, 2, 4]), [2])
        >>> people.keypoints[0, :2, :, :2].tolist()
        [[[6.25, 8.25], [6.25, 16.25]], [[20.25, 8.25], [20.25, 16.25]]]
    """
    peaks = group_stages.top_k_peaks(
        heatmaps, tags, max_people=max_people, detection_threshold=detection_threshold, nms_kernel=nms_kernel
    )
    people = group_stages.match_by_tag(
        peaks,
        capacity=capacity,
        detection_threshold=detection_threshold,
        tag_threshold=tag_threshold,
        joint_order=joint_order,
        ignore_too_many=ignore_too_many,
        use_detection_score=use_detection_score,
    )
    if not (adjust or refine):
        return people
    refined = group_stages.refine(heatmaps, tags, people.keypoints, people.counts, adjust=adjust, fill=refine)
    return GroupedKeypoints(refined, people.scores, people.counts)


def group_keypoints_list(heatmaps: Tensor, tags: Tensor, **options: object) -> list[tuple[Tensor, Tensor]]:
    """`group_keypoints` as lists: one pair per image, of keypoints `[P, K, 3 + T]` and scores `[P]`.

    Waits for the device once, to learn how many people there are.

    Args:
        heatmaps: as for `group_keypoints`.
        tags: as for `group_keypoints`.
        options: the keyword arguments of `group_keypoints`.

    Raises:
        ValueError: an image has more people than `capacity` (never with the default capacity), and whatever
            `group_keypoints` raises.

    Examples:
        >>> import torch
        >>> from posekd.ops import group_keypoints_list
        >>> heatmaps, tags = torch.zeros(2, 17, 32, 32), torch.zeros(2, 17, 32, 32)
        >>> heatmaps[0, :, 8, 6] = 0.9  # one person in the first image, nobody in the second
        >>> [keypoints.shape for keypoints, scores in group_keypoints_list(heatmaps, tags)]
        [torch.Size([1, 17, 4]), torch.Size([0, 17, 4])]
    """
    keypoints, scores, counts = group_keypoints(heatmaps, tags, **options)  # type: ignore[arg-type]
    capacity = keypoints.shape[1]
    people = counts.tolist()
    for image, count in enumerate(people):
        if count > capacity:
            raise ValueError(
                f"image {image} of the batch has {count} people, but capacity is {capacity}: raise capacity, or "
                f"leave it at its default, which always suffices"
            )
    return [(keypoints[image, :count], scores[image, :count]) for image, count in enumerate(people)]
