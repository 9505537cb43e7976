"""Object keypoint similarity and the removal of duplicate poses by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from posekd.ops import checks, library
from posekd.ops.reference import oks as definition

# cocodataset/cocoapi, Params.setKpParams: kpt_oks_sigmas
COCO_SIGMAS = (
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072,
    0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089,
)  # fmt: skip


LARGEST_ON_DEVICE = (4096, 256)  # poses and keypoints per pose of the CUDA kernels, as in csrc/oks/oks.h


def _supports(keypoints: Tensor, *rest: Any) -> bool:
    """The kernel is for the CPU: elsewhere, and in the tests' emulation of a GPU, the definition runs."""
    return keypoints.device.type == "cpu" and not library.emulated()


def _supports_nms(keypoints: Tensor, *rest: Any) -> bool:
    """The device kernels have limits of size; without poses there is nothing to launch for."""
    if not library.on_device(keypoints):
        return keypoints.device.type == "cpu"
    return 0 < keypoints.shape[0] <= LARGEST_ON_DEVICE[0] and keypoints.shape[1] <= LARGEST_ON_DEVICE[1]


def _wide(x: Tensor) -> Tensor:
    return x.double().contiguous()


def _oks_kernel(a: Tensor, b: Tensor, areas_a: Tensor, areas_b: Tensor, sigmas: Sequence[float]) -> Tensor:
    out = a.new_empty((a.shape[0], b.shape[0]), dtype=torch.float64)
    library.core().oks(_wide(a), _wide(b), _wide(areas_a), _wide(areas_b), list(sigmas), out, library.threads())
    return out


def _padded(keypoints: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    return (
        keypoints.new_empty((capacity,), dtype=torch.int64),
        keypoints.new_empty((), dtype=torch.int64),
    )


def _choose(
    poses: tuple[Tensor, Tensor, Tensor],
    sigmas: Sequence[float],
    threshold: float,
    soft: bool,
    outputs: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Keypoints, scores and areas through the core."""
    scratch: tuple[Tensor | None, ...] = (None, None, None)
    if not library.on_device(poses[0]):
        poses = (_wide(poses[0]), _wide(poses[1]), _wide(poses[2]))
    elif not soft:
        N = poses[0].shape[0]
        like = outputs[0]
        bits, order = like.new_empty((N, (N + 31) // 32), dtype=torch.int32), like.new_empty((N,), dtype=torch.int32)
        scratch = (bits, order, library.counter(like))
    library.core().oks_nms(*poses, list(sigmas), threshold, soft, *outputs, *scratch)
    return outputs


def _nms_kernel(
    keypoints: Tensor, scores: Tensor, areas: Tensor, sigmas: Sequence[float], threshold: float
) -> tuple[Tensor, Tensor]:
    outputs = _padded(keypoints, keypoints.shape[0])
    return _choose((keypoints, scores, areas), sigmas, threshold, False, outputs)


def _soft_kernel(
    keypoints: Tensor, scores: Tensor, areas: Tensor, sigmas: Sequence[float], threshold: float, max_keep: int
) -> tuple[Tensor, Tensor]:
    outputs = _padded(keypoints, min(keypoints.shape[0], max_keep))
    return _choose((keypoints, scores, areas), sigmas, threshold, True, outputs)


_oks = library.define(
    "oks(Tensor a, Tensor b, Tensor areas_a, Tensor areas_b, float[] sigmas) -> Tensor",
    kernel=_oks_kernel,
    reference=definition.oks,
    fake=lambda a, b, *rest: a.new_empty((a.shape[0], b.shape[0]), dtype=torch.float64),
    supports=_supports,
)
_POSES = "Tensor keypoints, Tensor scores, Tensor areas, float[] sigmas, float threshold"
_nms = library.define(
    f"oks_nms({_POSES}) -> (Tensor, Tensor)",
    kernel=_nms_kernel,
    reference=definition.oks_nms,
    fake=lambda keypoints, *rest: _padded(keypoints, keypoints.shape[0]),
    supports=_supports_nms,
)
_soft_nms = library.define(
    f"soft_oks_nms({_POSES}, int max_keep) -> (Tensor, Tensor)",
    kernel=_soft_kernel,
    reference=definition.soft_oks_nms,
    fake=lambda keypoints, scores, areas, sigmas, threshold, max_keep: _padded(
        keypoints, torch.sym_min(keypoints.shape[0], max_keep)
    ),
    supports=_supports_nms,
)


def _points(name: str, keypoints: Tensor) -> Tensor:
    """Checks poses `[N, K, 2 or more]` and gives their coordinates."""
    checks.check_tensor(name, keypoints, "N K 3")
    if keypoints.shape[1] < 1 or keypoints.shape[2] < 2:
        raise ValueError(
            f"{name} must be [N, 1 or more, 2 or more] (poses, keypoints, x y ...), got {tuple(keypoints.shape)}"
        )
    return keypoints.detach()[..., :2]


def _row(name: str, values: Tensor, poses: Tensor, like: str) -> Tensor:
    """Checks one number per pose."""
    checks.check_tensor(name, values, "N")
    checks.check_shape(name, values, (poses.shape[0],), like)
    checks.check_device(name, values, poses, like)
    return values.detach()


def _sigmas(sigmas: Sequence[float] | Tensor | None, K: int) -> list[float]:
    if sigmas is None:
        if len(COCO_SIGMAS) != K:
            raise ValueError(f"sigmas must be given: the default is COCO's, for 17 keypoints, and these are {K}")
        return list(COCO_SIGMAS)
    try:
        values = sigmas.tolist() if isinstance(sigmas, Tensor) else [float(s) for s in sigmas]
    except TypeError:
        raise TypeError(f"sigmas must be {K} numbers, one per keypoint, got {sigmas!r}") from None
    if len(values) != K:
        raise ValueError(f"sigmas must be {K} numbers, one per keypoint, got {len(values)}")
    if not all(0 < s < float("inf") for s in values):
        raise ValueError(f"sigmas must be positive and finite, got {values}")
    return values


def oks(
    a: Tensor, b: Tensor, areas_a: Tensor, areas_b: Tensor, sigmas: Sequence[float] | Tensor | None = None
) -> Tensor:
    """Object keypoint similarity of every pose of `a` with every pose of `b`.

    The mean over the K keypoints of `exp(-d^2 / (2 (2 sigma)^2 area))`, the area of a pair being the mean of the two
    plus float64's epsilon: HRNet's `oks_iou`. All keypoints count, seen or not. (Against labels, pycocotools takes the
    label's area and labelled keypoints only: see `posekd.metrics`.) There is no derivative.

    Args:
        a: `[N, K, 2 or more]` (x, y, ...) in pixels, any float type.
        b: `[M, K, 2 or more]`.
        areas_a: `[N]` in square pixels.
        areas_b: `[M]`.
        sigmas: K constants; None: COCO's, for K = 17.

    Returns:
        float64 `[N, M]` in 0..1.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape or device; K is not 17 and sigmas are not given.

    Examples:
        >>> import torch
        >>> from posekd.ops import oks
        >>> a = torch.zeros(1, 17, 2)
        >>> b = torch.stack([torch.zeros(17, 2), torch.full((17, 2), 5.0)])
        >>> oks(a, b, torch.tensor([900.0]), torch.tensor([900.0, 900.0])).round(decimals=2).tolist()
        [[1.0, 0.25]]
    """
    points_a, points_b = _points("a", a), _points("b", b)
    if points_a.shape[1] != points_b.shape[1]:
        raise ValueError(f"a has {points_a.shape[1]} keypoints per pose, b has {points_b.shape[1]}")
    checks.check_device("b", b, a, "a")
    rows = _row("areas_a", areas_a, points_a, "a"), _row("areas_b", areas_b, points_b, "b")
    return _oks(points_a, points_b, *rows, _sigmas(sigmas, points_a.shape[1]))


def oks_nms(
    keypoints: Tensor,
    scores: Tensor,
    areas: Tensor,
    threshold: float,
    *,
    sigmas: Sequence[float] | Tensor | None = None,
    padded: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Removes duplicate poses of one image, greedily by score (HRNet's `oks_nms`).

    Poses are visited by descending score, the earlier of two equal ones first; one that is still there stays and
    removes every later pose whose OKS with it is above `threshold` (a pose exactly at it stays). Poses with a NaN or
    inf are removed.

    Args:
        keypoints: `[N, K, 2 or more]` (x, y, ...) in pixels, any float type; compared in float64.
        scores: `[N]`.
        areas: `[N]` in square pixels.
        threshold: in 0..1; 1 removes nothing.
        sigmas: K constants; None: COCO's, for K = 17.
        padded: keep the result's shape independent of the data, for `torch.compile` and CUDA graphs.

    Returns:
        int64 indices of the kept poses by descending score; with `padded`, `[N]` indices that end in -1, and their
        number, a scalar tensor.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, range or device.

    Examples:
        >>> import torch
        >>> from posekd.ops import oks_nms
        >>> poses = torch.tensor([0.0, 0.5, 40.0])[:, None, None].expand(3, 17, 2)  # the second is almost the first
        >>> oks_nms(poses, torch.tensor([0.8, 0.9, 0.7]), torch.full((3,), 900.0), threshold=0.9).tolist()
        [1, 2]
    """
    points = _points("keypoints", keypoints)
    rows = _row("scores", scores, points, "keypoints"), _row("areas", areas, points, "keypoints")
    checks.check_number("threshold", threshold)
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be between 0 and 1, got {threshold}")
    kept, count = _nms(points, *rows, _sigmas(sigmas, points.shape[1]), float(threshold))
    return (kept, count) if padded else kept[: int(count)]


def soft_oks_nms(
    keypoints: Tensor,
    scores: Tensor,
    areas: Tensor,
    threshold: float,
    *,
    sigmas: Sequence[float] | Tensor | None = None,
    max_keep: int = 20,
    padded: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Ranks the poses of one image, each lowering the scores of those like it (HRNet's `soft_oks_nms`).

    The pose of the highest score is taken (the earliest of equal ones), every other score is multiplied by
    `exp(-oks^2 / threshold)`, and so on, up to `max_keep` poses. Poses with a NaN or inf take no part.

    Args:
        keypoints: as for `oks_nms`.
        scores: as for `oks_nms`.
        areas: as for `oks_nms`.
        threshold: the Gaussian's width, above 0; smaller lowers more.
        sigmas: as for `oks_nms`.
        max_keep: the most poses that are taken; the official code takes 20.
        padded: as for `oks_nms`; the indices are then `[min(N, max_keep)]`.

    Returns:
        int64 indices in the order taken, that is by descending lowered score; with `padded`, indices that end in -1,
        and their number.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, range or device.

    Examples:
        >>> import torch
        >>> from posekd.ops import soft_oks_nms
        >>> poses = torch.tensor([0.0, 0.5, 40.0])[:, None, None].expand(3, 17, 2)  # the second is almost the first
        >>> soft_oks_nms(poses, torch.tensor([0.8, 0.9, 0.7]), torch.full((3,), 900.0), threshold=0.5).tolist()
        [1, 2, 0]
    """
    points = _points("keypoints", keypoints)
    rows = _row("scores", scores, points, "keypoints"), _row("areas", areas, points, "keypoints")
    checks.check_positive("threshold", threshold)
    if isinstance(max_keep, bool) or not isinstance(max_keep, int) or max_keep < 1:
        raise ValueError(f"max_keep must be a whole number, at least 1, got {max_keep!r}")
    kept, count = _soft_nms(points, *rows, _sigmas(sigmas, points.shape[1]), float(threshold), max_keep)
    return (kept, count) if padded else kept[: int(count)]
