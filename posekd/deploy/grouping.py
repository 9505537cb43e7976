"""People from what an exported bottom-up network gives, with NumPy alone: this file needs nothing else of posekd.

`posekd export` writes it beside the network. HigherHRNet's associative embedding (`lib/core/group.py`), in the order of
calculations of `posekd.ops.group_keypoints`, to which it is equal::

    session = onnxruntime.InferenceSession("best.onnx")
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, {"image": images})))  # images: uint8 RGB [B, H, W, 3]
    settings = json.loads(session.get_modelmeta().custom_metadata_map["codec"])
    for keypoints, scores in people(outputs, settings):  # of each image: [P, K, 3] in its pixels, and [P]
        ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

COCO_ORDER = (0, 1, 2, 3, 4, 5, 6, 11, 12, 7, 8, 9, 10, 13, 14, 15, 16)  # in which HigherHRNet visits 17 keypoints
FARTHEST = 1e12  # a tag distance beyond it counts as this

Array = np.ndarray


def people(outputs: Mapping[str, Array], settings: Mapping[str, Any]) -> list[tuple[Array, Array]]:
    """The people of each image.

    Args:
        outputs: the graph's, by name: float32 `peaks` `[B, K, M, 2]` (x, y in map pixels), `scores` `[B, K, M]`, `tags`
            `[B, K, M, T]`, `heatmaps` `[B, K, h, w]`, `tag_maps` `[B, K, h, w, T]`, and `matrices` `[B, 2, 3]` from the
            maps' pixels to the image's.
        settings: `detection_threshold`, `tag_threshold`, `adjust` and `refine`; the file's metadata `codec`.

    Returns:
        For each image keypoints float32 `[P, K, 3]` (x, y in image pixels, score), zeros where one was not found, and
        the people's scores float32 `[P]`, the mean over all K keypoints before refinement.
    """
    found = []
    for peaks, scores, tags, heatmaps, tag_maps, matrix in zip(
        *(outputs[name] for name in ("peaks", "scores", "tags", "heatmaps", "tag_maps", "matrices")), strict=True
    ):
        rows = np.concatenate([peaks, scores[..., None], tags], -1)
        own = match(rows, settings["detection_threshold"], settings["tag_threshold"])
        person_scores = (own[..., 2].astype(np.float64).sum(-1) / own.shape[1]).astype(np.float32)
        own = refine(heatmaps, tag_maps, own, settings["adjust"], settings["refine"])[..., :3]
        m = matrix.astype(np.float64)
        own[..., :2] = own[..., :2].astype(np.float64) @ m[:, :2].T + m[:, 2]
        found.append((np.where(own[..., 2:] > 0, own, 0).astype(np.float32), person_scores))
    return found


def match(
    peaks: Array, detection_threshold: float, tag_threshold: float, joint_order: Sequence[int] | None = None
) -> Array:
    """People from peaks, by their tags.

    The first keypoint that has peaks starts a person with each. Of every further one the peaks are assigned to people
    by the distance to their mean tags, at the least total cost; whoever is too far from everybody starts a person.

    Args:
        peaks: float32 `[K, M, 3 + T]` (x, y, score, tags) by descending score, zeros where there is none.
        detection_threshold: a peak's score is above it.
        tag_threshold: a peak joins a person whose mean tag is closer than this.
        joint_order: the K keypoints in the order of visits; HigherHRNet's for 17, else ascending.

    Returns:
        float32 `[P, K, 3 + T]`, in the order in which people were started.
    """
    K, most, width = peaks.shape
    order = joint_order if joint_order is not None else COCO_ORDER if len(COCO_ORDER) == K else range(K)
    places: dict[float, int] = {}  # the first tag of the peak that started a person -> its place
    rows: list[Array] = []
    sums: list[Array] = []
    counts: list[int] = []

    def start(joint: int, peak: Array) -> None:
        place = places.setdefault(float(peak[3]), len(rows))
        if place == len(rows):
            rows.append(np.zeros((K, width), np.float32))
            sums.append(peak[3:])
            counts.append(0)
        rows[place][joint], sums[place], counts[place] = peak, peak[3:], 1

    for joint in order:
        found = peaks[joint]
        found = found[(found[:, 2] > detection_threshold) & np.isfinite(found[:, 2:]).all(1)]
        if not len(found):
            continue
        if not rows:
            for peak in found:
                start(joint, peak)
            continue
        means = np.stack(sums[:most]) / np.array(counts[:most], np.float32)[:, None]
        distances = _distances(found[:, 3:], means)
        costs = np.stack(
            [np.round(distances) * 100 - found[:, 2, None].astype(np.float64), np.minimum(distances, tag_threshold)], -1
        )
        for peak, distance, place in zip(found, distances, assign(costs).tolist(), strict=True):
            if place >= 0 and distance[place] < tag_threshold:
                rows[place][joint] = peak
                sums[place], counts[place] = sums[place] + peak[3:], counts[place] + 1
            else:
                start(joint, peak)
    return np.stack(rows) if rows else np.zeros((0, K, width), np.float32)


def _distances(tags: Array, means: Array) -> Array:
    """Euclidean distances `[N, P]` in float64, added up channel by channel."""
    squares = np.zeros((len(tags), len(means)))
    for a, b in zip(tags.T.astype(np.float64), means.T.astype(np.float64), strict=True):
        squares = squares + (a[:, None] - b[None, :]) ** 2
    return np.minimum(np.sqrt(squares), FARTHEST)


# ---- The cheapest assignment ---------------------------------------------------------------------------------------


def assign(costs: Array) -> Array:
    """Assigns as many rows to columns as there are of the fewer, at the least total cost.

    Costs are pairs, added component by component; the second decides between totals whose first ones are equal. The
    method of shortest augmenting paths (Jonker and Volgenant, 1987).

    Args:
        costs: float64 `[rows, columns, 2]`, finite.

    Returns:
        For each row its column, -1 for none.
    """
    if len(costs) > costs.shape[1]:
        row_of = assign(costs.transpose(1, 0, 2))
        result = np.full(len(costs), -1)
        result[row_of] = np.arange(len(row_of))
        return result
    rows, columns = costs.shape[:2]
    u, v, owner = np.zeros((rows, 2)), np.zeros((columns, 2)), np.full(columns, -1)
    for row in range(rows):
        _augment(costs, row, u, v, owner)
    result = np.full(rows, -1)
    result[owner[owner >= 0]] = np.flatnonzero(owner >= 0)
    return result


def _augment(costs: Array, row: int, u: Array, v: Array, owner: Array) -> None:
    """Gives a row a column and moves others along the cheapest path; the costs less `u` and `v` stay 0 or more."""
    columns = costs.shape[1]
    shortest, before = np.full((columns, 2), np.inf), np.full(columns, row)
    free, done = np.ones(columns, bool), []
    reach, i = np.zeros(2), row
    while True:
        through = ((reach + costs[i]) - u[i]) - v
        nearer = free & _less(through, shortest)
        shortest[nearer], before[nearer] = through[nearer], i
        j = _least(shortest, free)
        reach = shortest[j].copy()
        done.append(j)
        free[j] = False
        if owner[j] < 0:
            break
        i = owner[j]
    u[row] += reach
    for column in done[:-1]:
        slack = reach - shortest[column]
        u[owner[column]] += slack
        v[column] -= slack
    while True:  # hand the columns of the path on, from its end
        i = before[j]
        previous = np.flatnonzero(owner == i)
        owner[j] = i
        if not len(previous):
            return
        j = int(previous[0])


def _less(a: Array, b: Array) -> Array:
    """Whether pairs are less than others, first components first."""
    return (a[:, 0] < b[:, 0]) | ((a[:, 0] == b[:, 0]) & (a[:, 1] < b[:, 1]))


def _least(pairs: Array, among: Array) -> int:
    """The first of the least pairs."""
    first = np.where(among, pairs[:, 0], np.inf)
    least = among & (first == first.min())
    return int(np.where(least, pairs[:, 1], np.inf).argmin()) if least.sum() > 1 else int(least.argmax())


# ---- Refinement ----------------------------------------------------------------------------------------------------


def refine(heatmaps: Array, tag_maps: Array, rows: Array, adjust: bool, fill: bool) -> Array:
    """Moves keypoints a quarter of a pixel towards their higher neighbours, and fills in missing ones.

    A missing keypoint is put where the heatmap less the rounded distance of the tag to the person's mean tag is
    largest, if the heatmap is above 0 there.

    Args:
        heatmaps: float32 `[K, h, w]`.
        tag_maps: float32 `[K, h, w, T]`.
        rows: float32 `[P, K, 3 + T]`, see `match`.
        adjust: whether to move.
        fill: whether to fill in.
    """
    K, height, width = heatmaps.shape
    result, joints = rows.copy(), np.arange(K)
    flat = tag_maps.reshape(K, height * width, -1)
    x = np.clip(np.nan_to_num(rows[..., 0]), 0, width - 1).astype(np.int64)
    y = np.clip(np.nan_to_num(rows[..., 1]), 0, height - 1).astype(np.int64)
    if adjust:
        moved = _toward_higher(heatmaps, joints, x, y)
        result[..., :2] = np.where(rows[..., 2:3] > 0, moved, rows[..., :2])
    for person, pixels in zip(result, y * width + x, strict=True):
        missing = np.flatnonzero(person[:, 2] == 0)
        mean = _mean_tag(person, flat, pixels)
        if not fill or mean is None or np.isnan(mean).any() or not len(missing):
            continue
        pixel = _best_pixels(heatmaps.reshape(K, -1)[missing], flat[missing], mean)
        score = heatmaps.reshape(K, -1)[missing, pixel]
        points = _toward_higher(heatmaps, missing, pixel % width, pixel // width)
        use = (score > 0) & np.isfinite(score)
        person[missing[use], :3] = np.concatenate([points, score[:, None]], 1)[use]
    return result


def _toward_higher(heatmaps: Array, joints: Array, x: Array, y: Array) -> Array:
    """Pixel centres and a quarter towards the higher neighbour `[..., 2]`; equal ones count as the lower side."""
    _, height, width = heatmaps.shape
    right, left = heatmaps[joints, y, np.minimum(x + 1, width - 1)], heatmaps[joints, y, np.maximum(x - 1, 0)]
    below, above = heatmaps[joints, np.minimum(y + 1, height - 1), x], heatmaps[joints, np.maximum(y - 1, 0), x]
    quarter = np.stack([right > left, below > above], -1).astype(np.float32) * np.float32(0.5) - np.float32(0.25)
    return np.stack([x, y], -1).astype(np.float32) + quarter + np.float32(0.5)


def _mean_tag(person: Array, tags: Array, pixels: Array) -> Array | None:
    """Mean `[T]` of the tags `[K, pixels, T]` under a person's keypoints, in their order; None without keypoints."""
    present = np.flatnonzero(person[:, 2] > 0)
    if not len(present):
        return None
    total = np.zeros(tags.shape[2], np.float32)
    for joint in present:
        total = total + tags[joint, pixels[joint]]
    return total / np.float32(len(present))


def _best_pixels(heatmaps: Array, tags: Array, mean: Array) -> Array:
    """For each of n maps `[n, pixels]` the first pixel of the largest finite heatmap - round(tag distance)."""
    squares = np.zeros_like(heatmaps)
    for channel, value in enumerate(mean):
        squares = squares + (tags[..., channel] - value) ** 2
    fit = heatmaps - np.round(np.sqrt(squares))
    best: Array = np.where(np.isfinite(heatmaps) & ~np.isnan(fit), fit, -np.inf).argmax(1)
    return best
