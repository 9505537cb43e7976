"""Fused loss of DistilPose: heatmaps simulated from regressed keypoints against a teacher's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from posekd.ops import checks, library
from posekd.ops.reference import simulated_heatmap_loss as definition

LONGEST_SIDES_ON_DEVICE = 4000  # height + width: 48 KB of shared memory hold a block's two profiles, and its sums
POINTS = (torch.float32, torch.float64)


def _outputs(coords: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and what a map contributes to it and its derivatives, `[B, K, 5]`."""
    B, K, _ = coords.shape
    return coords.new_empty_strided((), ()), coords.new_empty_strided((B, K, 5), (5 * K, 5, 1))


def _forward_kernel(coords: Tensor, sigmas: Tensor, teacher: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    loss, stats = _outputs(coords)
    library.core().simulated_heatmap_loss_forward(
        coords.contiguous(), sigmas.contiguous(), teacher.contiguous(),
        None if weight is None else library.dense(weight, coords.dtype),
        stats, loss, library.counter(loss), library.threads(),
    )  # fmt: skip
    return loss, stats


def _forward_reference(coords: Tensor, sigmas: Tensor, teacher: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    stats = definition.simulated_heatmap_stats(coords, sigmas, teacher, weight)
    return stats[..., 0].sum() / max(teacher.numel(), 1), stats


def _forward_fake(coords: Tensor, sigmas: Tensor, teacher: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    return _outputs(coords)


def _supports(coords: Tensor, sigmas: Tensor, teacher: Tensor, weight: Tensor | None) -> bool:
    """The device kernels have no float64 and a limit of size; without pixels there is nothing to launch for."""
    if teacher.numel() == 0 or not library.on_device(coords):
        return teacher.numel() > 0
    fits = teacher.shape[2] + teacher.shape[3] <= LONGEST_SIDES_ON_DEVICE
    return fits and coords.dtype != torch.float64 and teacher.dtype != torch.float64


def _backward_outputs(stats: Tensor) -> tuple[Tensor, Tensor]:
    B, K, _ = stats.shape
    shape, strides = (B, K, 2), (2 * K, 2, 1)
    return stats.new_empty_strided(shape, strides), stats.new_empty_strided(shape, strides)


def _backward_kernel(upstream: Tensor, stats: Tensor, coords: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor]:
    by_coords, by_sigmas = _backward_outputs(stats)
    library.core().simulated_heatmap_loss_backward(
        library.dense(upstream, stats.dtype), stats.contiguous(), by_coords, by_sigmas, library.threads()
    )
    return by_coords, by_sigmas


def _backward_reference(upstream: Tensor, stats: Tensor, coords: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor]:
    slopes = stats[..., 1:] * upstream.to(stats.dtype)
    return slopes[..., :2].contiguous(), slopes[..., 2:].clone(memory_format=torch.contiguous_format)


def _backward_fake(upstream: Tensor, stats: Tensor, coords: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor]:
    return _backward_outputs(stats)


_forward = library.define(
    "simulated_heatmap_loss(Tensor coords, Tensor sigmas, Tensor teacher, Tensor? weight) -> (Tensor, Tensor)",
    kernel=_forward_kernel,
    reference=_forward_reference,
    fake=_forward_fake,
    supports=_supports,
)
_backward = library.define(
    "simulated_heatmap_loss_backward(Tensor upstream, Tensor stats, Tensor coords, Tensor sigmas) -> (Tensor, Tensor)",
    kernel=_backward_kernel,
    reference=_backward_reference,
    fake=_backward_fake,
    supports=lambda upstream, stats, *rest: (
        stats.numel() > 0 and not (library.on_device(stats) and stats.dtype == torch.float64)
    ),
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    coords, sigmas, _, _ = inputs
    _, stats = output
    ctx.mark_non_differentiable(stats)
    ctx.set_materialize_grads(False)
    # Points are not read again: they let a second derivative through to its error.
    ctx.save_for_backward(stats, coords, sigmas)


def _gradient(ctx: Any, upstream: Tensor | None, *unused: Tensor | None) -> tuple[Tensor | None, ...]:
    if upstream is None:  # nobody used the loss
        return None, None, None, None
    by_coords, by_sigmas = _backward(upstream, *ctx.saved_tensors)
    need_coords, need_sigmas = ctx.needs_input_grad[:2]
    return by_coords if need_coords else None, by_sigmas if need_sigmas else None, None, None


library.differentiable("simulated_heatmap_loss", _gradient, _setup, results=1)
library.no_double_backward("simulated_heatmap_loss_backward")


def simulated_heatmap_loss(coords: Tensor, sigmas: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
    """Squared difference of heatmaps simulated from keypoints and a teacher's (DistilPose's simulated-heatmap loss).

    A keypoint (x, y) with (sigma_x, sigma_y) stands for the map, at column i and row j,

        h(i, j) = exp(-0.5 [(i - W x)^2 / (sigma_x^2 + 1e-9) + (j - H y)^2 / (sigma_y^2 + 1e-9)])

    of peak 1, over the whole map; the loss is `mean over B, K, H, W of (w (h - teacher))^2`, as released, without a
    factor 1/2. The maps are never stored: the teacher is read once, the two profiles of a map are computed, and the
    gradient comes along with the loss.

    A keypoint of weight 0 is not read: NaN there does no harm; the mean still divides by all B*K*H*W. Elsewhere NaN
    propagates. Coordinates may lie outside [0, 1], and where nothing is left of a Gaussian in the map its gradient is
    0. A sigma of 0 is the narrowest Gaussian (standard deviation 3e-5 pixels), and its own gradient is 0. The result
    is deterministic. The gradient goes to coords and sigmas.

    The released code does not mask per sample; its weights broadcast to
    `mean over k of [mean over i of w_ik^2] [mean over j, H, W of (h - teacher)_jk^2]`. That is this loss with
    `weight.square().mean(0, keepdim=True).sqrt().expand_as(weight)`.

    Args:
        coords: `[B, K, 2]` (x, y) as fractions of the crop's width and height, float32 or float64.
        sigmas: `[B, K, 2]` (sigma_x, sigma_y) in heatmap pixels, of the same type.
        teacher: heatmaps `[B, K, H, W]`, any float type.
        weight: `[B, K]`, any float type; None: 1.

    Returns:
        The loss, a scalar of the type of `coords`; 0 where there is no pixel.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape or device; the message names it and its value.

    Examples:
        >>> import torch
        >>> from posekd.ops import simulated_heatmap_loss
        >>> coords = torch.full((2, 17, 2), 0.5, requires_grad=True)  # the middle of the crop
        >>> sigmas = torch.full((2, 17, 2), 2.0, requires_grad=True)
        >>> teacher = torch.zeros(2, 17, 64, 48)
        >>> loss = simulated_heatmap_loss(coords, sigmas, teacher, torch.ones(2, 17))
        >>> round(loss.item() * 64 * 48, 3)  # the sum of a squared Gaussian: pi sigma^2
        12.566
        >>> loss.backward()
        >>> coords.grad.shape, sigmas.grad.shape
        (torch.Size([2, 17, 2]), torch.Size([2, 17, 2]))
        >>> bool((sigmas.grad > 0).all())  # narrower is nearer to a map of zeros
        True
    """
    checks.check_tensor("coords", coords, "B K 2", POINTS)
    checks.check_tensor("sigmas", sigmas, "B K 2", POINTS)
    checks.check_tensor("teacher", teacher, "B K H W")
    B, K, _, _ = teacher.shape
    checks.check_shape("coords", coords, (B, K, 2), "teacher")
    checks.check_shape("sigmas", sigmas, (B, K, 2), "teacher")
    if sigmas.dtype != coords.dtype:
        checks.check_dtype("sigmas, like coords,", sigmas.dtype, (coords.dtype,))
    checks.check_device("sigmas", sigmas, coords, "coords")
    checks.check_device("teacher", teacher, coords, "coords")
    if weight is not None:
        checks.check_beside("weight", weight, "B K", (B, K), coords, "coords")
    fixed = None if weight is None else checks.constant(weight)
    return _forward(coords, sigmas, checks.constant(teacher), fixed)[0]
