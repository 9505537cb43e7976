"""Associative-embedding grouping in plain PyTorch: the definition of the three stages of `group_keypoints`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from posekd.ops.reference.assignment import Cost, lexicographic_assignment

FARTHEST = 1e12  # a tag distance beyond it (or infinite) counts as this, so that costs stay finite


def tag_planes(tags: Tensor, heatmaps: Tensor) -> Tensor:
    """Tags as float32 `[B, K, H * W, T]`, whichever of the public layouts they came in."""
    B, K, H, W = heatmaps.shape
    planes = tags if tags.ndim == 5 else tags[..., None]
    return planes.float().reshape(B, planes.shape[1], H * W, planes.shape[4]).expand(B, K, H * W, -1)


def top_k_peaks(heatmaps: Tensor, tags: Tensor, max_people: int, threshold: float, nms_kernel: int) -> Tensor:
    """See `posekd.ops.top_k_peaks`."""
    maps, planes = heatmaps.float(), tag_planes(tags, heatmaps)
    B, K, H, W = maps.shape
    peaks = maps.new_zeros((B, K, max_people, 3 + planes.shape[-1]))
    if maps.numel() == 0:
        return peaks
    highest = F.max_pool2d(maps, nms_kernel, 1, nms_kernel // 2)  # NaN wherever the window holds one
    is_peak = (maps == highest) & (maps > threshold) & maps.isfinite()
    score, pixel = torch.where(is_peak, maps, 0).flatten(2).sort(dim=-1, descending=True, stable=True)
    count = min(max_people, H * W)
    score, pixel = score[..., :count], pixel[..., :count]
    tag = planes.gather(2, pixel[..., None].expand(-1, -1, -1, planes.shape[-1]))
    rows = torch.cat([torch.stack([pixel % W, pixel // W, score], -1), tag], -1)
    peaks[:, :, :count] = torch.where((score > 0)[..., None], rows, 0)
    return peaks


class _People:
    """The people of one image: what match_by_tag builds up."""

    def __init__(self, joints: int, width: int, max_people: int) -> None:
        self.joints, self.width, self.max_people = joints, width, max_people
        self.keys: list[float] = []  # the first tag of the peak that started a person
        self.rows: list[Tensor] = []  # [K, 3 + T] each
        self.tag_sums: list[Tensor] = []  # [T] each, float32
        self.tag_counts: list[int] = []

    def candidates(self) -> Tensor:
        """Mean tags `[P, T]` of those whom later keypoints may join."""
        limit = self.max_people
        sums, counts = torch.stack(self.tag_sums[:limit]), torch.tensor(self.tag_counts[:limit])
        return sums / counts[:, None].to(sums)

    def join(self, person: int, joint: int, peak: Tensor) -> None:
        self.rows[person][joint] = peak
        self.tag_sums[person] = self.tag_sums[person] + peak[3:]
        self.tag_counts[person] += 1

    def start(self, joint: int, peak: Tensor) -> None:
        """A new person, unless one with the same key exists: that one takes the keypoint and forgets its other tags."""
        key = float(peak[3])
        if key not in self.keys:
            self.keys.append(key)
            self.rows.append(peak.new_zeros((self.joints, self.width)))
            self.tag_sums.append(peak[3:])
            self.tag_counts.append(0)
        person = self.keys.index(key)
        self.rows[person][joint] = peak
        self.tag_sums[person], self.tag_counts[person] = peak[3:], 1


def _distances(tags: Tensor, means: Tensor) -> Tensor:
    """Euclidean distances `[N, P]` in float64, added up channel by channel.

    The root is Python's, which rounds correctly; `Tensor.sqrt` may be a bit off, and then decide ties of its own.
    """
    squares = tags.new_zeros((len(tags), len(means)), dtype=torch.float64)
    for a, b in zip(tags.double().unbind(1), means.double().unbind(1), strict=True):
        squares = squares + (a[:, None] - b[None, :]).square()
    return squares.apply_(math.sqrt).clamp_max(FARTHEST)


def _costs(distances: Tensor, scores: Tensor, tag_threshold: float, use_detection_score: bool) -> list[list[Cost]]:
    """What assigning peak i to person j costs: the official cost, then what decides between equally cheap ones."""
    first = distances.round() * 100 - scores.double()[:, None] if use_detection_score else distances
    second = distances.clamp_max(tag_threshold)
    return [list(zip(*row, strict=True)) for row in zip(first.tolist(), second.tolist(), strict=True)]


def _match_image(
    peaks: Tensor,
    detection_threshold: float,
    tag_threshold: float,
    max_people: int,
    joint_order: Sequence[int],
    ignore_too_many: bool,
    use_detection_score: bool,
) -> _People:
    people = _People(peaks.shape[0], peaks.shape[2], max_people)
    for joint in joint_order:
        found = peaks[joint]
        found = found[(found[:, 2] > detection_threshold) & found[:, 2:].isfinite().all(1)]
        if len(found) == 0:
            continue
        if not people.keys:
            for peak in found:
                people.start(joint, peak)
            continue
        means = people.candidates()
        if ignore_too_many and len(means) == max_people:
            continue
        distances = _distances(found[:, 3:], means)
        costs = _costs(distances, found[:, 2], tag_threshold, use_detection_score)
        for peak, distance, person in zip(found, distances, lexicographic_assignment(costs), strict=True):
            if person is not None and distance[person] < tag_threshold:
                people.join(person, joint, peak)
            else:
                people.start(joint, peak)
    return people


def match_by_tag(
    peaks: Tensor,
    capacity: int,
    detection_threshold: float,
    tag_threshold: float,
    joint_order: Sequence[int],
    ignore_too_many: bool,
    use_detection_score: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `posekd.ops.match_by_tag`."""
    B, K, max_people, width = peaks.shape
    keypoints = peaks.new_zeros((B, capacity, K, width))
    counts = torch.zeros(B, dtype=torch.int64)
    for image, rows in enumerate(peaks.cpu()):
        people = _match_image(
            rows, detection_threshold, tag_threshold, max_people, joint_order, ignore_too_many, use_detection_score
        )
        counts[image] = len(people.rows)
        for person, joints in enumerate(people.rows[:capacity]):
            keypoints[image, person] = joints.to(keypoints)
    scores = keypoints[..., 2].double().sum(-1) / max(K, 1)
    return keypoints, scores.float(), counts.to(peaks.device)


def _toward_higher(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Pixel centre plus a quarter toward the higher neighbour, `[..., 2]`; equal neighbours count as the lower side.

    `maps` is `[K, H, W]`, `x` and `y` integer `[..., K]`. At the border the pixel stands in for its missing neighbour.
    """
    K, H, W = maps.shape
    joint = torch.arange(K, device=maps.device)
    right, left = maps[joint, y, (x + 1).clamp_max(W - 1)], maps[joint, y, (x - 1).clamp_min(0)]
    below, above = maps[joint, (y + 1).clamp_max(H - 1), x], maps[joint, (y - 1).clamp_min(0), x]
    quarter = torch.stack([right > left, below > above], -1).to(maps.dtype) * 0.5 - 0.25
    return torch.stack([x, y], -1).to(maps.dtype) + quarter + 0.5


def _pixels(people: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Truncated positions `[P, K]`, clamped into the map; NaN becomes 0."""
    x, y = people[..., 0].nan_to_num(0.0), people[..., 1].nan_to_num(0.0)
    return x.clamp(0, width - 1).long(), y.clamp(0, height - 1).long()


def _mean_tag(person: Tensor, planes: Tensor, pixel: Tensor) -> Tensor | None:
    """Mean `[T]` of the tags under the person's keypoints, added in their order in float32; None without keypoints."""
    present = (person[:, 2] > 0).nonzero().flatten().tolist()
    if not present:
        return None
    total = torch.zeros_like(planes[0, 0])
    for joint in present:
        total = total + planes[joint, pixel[joint]]
    return total / len(present)


def _best_pixels(maps: Tensor, planes: Tensor, mean: Tensor) -> Tensor:
    """For each keypoint the first pixel `[K]` of the largest finite heatmap - round(tag distance), in float32."""
    squares = torch.zeros_like(planes[..., 0])
    for channel in range(planes.shape[-1]):
        squares = squares + (planes[..., channel] - mean[channel]).square()
    value = maps.flatten(1) - squares.sqrt().round()
    return torch.where(maps.flatten(1).isfinite() & ~value.isnan(), value, -torch.inf).argmax(1)


def refine(heatmaps: Tensor, tags: Tensor, keypoints: Tensor, counts: Tensor, adjust: bool, fill: bool) -> Tensor:
    """See `posekd.ops.refine`."""
    result = keypoints.clone()
    if heatmaps.numel() == 0:
        return result
    B, _, H, W = heatmaps.shape
    all_planes = tag_planes(tags, heatmaps)
    for image in range(B):
        maps, planes = heatmaps[image].float(), all_planes[image]
        people = result[image, : int(counts[image])]
        x, y = _pixels(people, H, W)
        means = [_mean_tag(person, planes, pixel) for person, pixel in zip(people, y * W + x, strict=True)]
        if adjust:
            people[..., :2] = torch.where(people[..., 2:3] > 0, _toward_higher(maps, x, y), people[..., :2])
        for person, mean in zip(people, means, strict=True):
            missing = person[:, 2] == 0
            if not fill or mean is None or mean.isnan().any() or not missing.any():
                continue
            pixel = _best_pixels(maps, planes, mean)
            score = maps.flatten(1).gather(1, pixel[:, None]).squeeze(1)
            filled = torch.cat([_toward_higher(maps, pixel % W, pixel // W), score[:, None]], 1)
            use = missing & (score > 0) & score.isfinite()
            person[:, :3] = torch.where(use[:, None], filled, person[:, :3])
    return result
