"""Fused heatmap distillation loss: teacher MSE, teacher KL, label MSE."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from posekd.ops import checks, library
from posekd.ops.reference import distill_loss as definition
from posekd.ops.reference.distill_loss import Inputs, Numbers

KINDS = ("msra", "higherhrnet", "exact")

_TENSORS = (
    "Tensor student, Tensor? teacher, Tensor? target, Tensor? keypoints, Tensor? weight, Tensor? teacher_weight, "
    "Tensor? mask"
)
_NUMBERS = "float alpha, float beta, float temperature, float sigma, int kind"


def _accumulate_dtype(student: Tensor) -> torch.dtype:
    return torch.float64 if student.dtype == torch.float64 else torch.float32


def _contiguous(
    student: Tensor,
    teacher: Tensor | None,
    target: Tensor | None,
    keypoints: Tensor | None,
    weight: Tensor | None,
    teacher_weight: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """The inputs as the core wants them: contiguous, weights in the accumulation type, mask as bytes."""
    wide = _accumulate_dtype(student)
    return (
        student.contiguous(),
        None if teacher is None else teacher.contiguous(),
        None if target is None else target.contiguous(),
        None if keypoints is None else library.dense(keypoints, torch.float32),
        None if weight is None else library.dense(weight, wide),
        None if teacher_weight is None else library.dense(teacher_weight, wide),
        None if mask is None else library.dense(mask, torch.bool),
    )


def _sort(args: tuple[Any, ...]) -> tuple[Inputs, Numbers]:
    """An op's flat arguments as the definition takes them."""
    *tensors, alpha, beta, temperature, sigma, kind = args
    return Inputs(*tensors), Numbers(alpha, beta, temperature, sigma, KINDS[kind])


def _supports(student: Tensor, teacher: Tensor | None, target: Tensor | None, *rest: Any) -> bool:
    """The device kernels have no float64; an empty batch has nothing to launch for."""
    if student.numel() == 0 or not library.on_device(student):
        return student.numel() > 0
    return all(x is None or x.dtype != torch.float64 for x in (student, teacher, target))


def _forward_outputs(student: Tensor, keep_gradient: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = _accumulate_dtype(student)
    B, K, H, W = student.shape
    rows = B * K
    return (
        student.new_empty_strided((), (), dtype=wide),  # quicker than new_empty, which asks for a memory format
        student.new_empty_strided((3,), (1,), dtype=wide),
        student.new_empty_strided((rows, 5), (5, 1), dtype=wide),
        student.new_empty_strided((B, K, H, W), (K * H * W, H * W, W, 1)) if keep_gradient else student.new_empty((0,)),
    )


def _forward_kernel(*args: Any) -> tuple[Tensor, ...]:
    *tensors, alpha, beta, temperature, sigma, kind, keep_gradient = args
    loss, terms, stats, gradient = _forward_outputs(args[0], keep_gradient)
    kept = library.core().distill_loss_forward(
        *_contiguous(*tensors), alpha, beta, temperature, sigma, kind,
        loss, terms, stats, gradient if keep_gradient else None, library.counter(loss), library.threads(),
    )  # fmt: skip
    return loss, terms, stats, gradient if kept or not keep_gradient else gradient.new_empty((0,))


def _forward_reference(*args: Any) -> tuple[Tensor, ...]:
    *rest, keep_gradient = args
    inputs, numbers = _sort(tuple(rest))
    _, _, stats, gradient = _forward_outputs(inputs.student, keep_gradient)
    loss, terms = definition.distill_loss(inputs, numbers)
    if keep_gradient:
        gradient = definition.distill_loss_backward(torch.ones_like(loss), inputs, numbers)
    return loss, terms, stats.zero_(), gradient


def _forward_fake(*args: Any) -> tuple[Tensor, ...]:
    return _forward_outputs(args[0], args[-1])


def _backward_kernel(upstream: Tensor, stats: Tensor, *args: Any) -> Tensor:
    gradient = torch.empty_like(args[0], memory_format=torch.contiguous_format)
    library.core().distill_loss_backward(
        *_contiguous(*args[:7]), *args[7:],
        library.dense(upstream, stats.dtype), stats, gradient, library.threads(),
    )  # fmt: skip
    return gradient


def _backward_reference(upstream: Tensor, stats: Tensor, *args: Any) -> Tensor:
    return definition.distill_loss_backward(upstream, *_sort(args))


def _backward_fake(upstream: Tensor, stats: Tensor, student: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(student, memory_format=torch.contiguous_format)


_forward = library.define(
    f"distill_loss({_TENSORS}, {_NUMBERS}, bool keep_gradient) -> (Tensor, Tensor, Tensor, Tensor)",
    kernel=_forward_kernel,
    reference=_forward_reference,
    fake=_forward_fake,
    supports=_supports,
)
_backward = library.define(
    f"distill_loss_backward(Tensor upstream, Tensor stats, {_TENSORS}, {_NUMBERS}) -> Tensor",
    kernel=_backward_kernel,
    reference=_backward_reference,
    fake=_backward_fake,
    supports=lambda upstream, stats, *args: _supports(*args),
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, terms, stats, gradient = output
    ctx.mark_non_differentiable(terms, stats, gradient)
    ctx.set_materialize_grads(False)  # or autograd fills a map with zeros for the output `gradient`
    ctx.save_for_backward(stats, *inputs[:7])
    ctx.numbers = inputs[7:12]
    # Not every map on a GPU fits the kernel that makes the gradient along with the loss.
    ctx.unit_gradient = gradient if inputs[12] and gradient.shape == inputs[0].shape else None


def _gradient(ctx: Any, upstream: Tensor | None, *unused: Tensor | None) -> tuple[Tensor | None, ...]:
    nothing = (None,) * 12
    if upstream is None:  # nobody used the loss
        return None, *nothing
    # The gradient computed along with the loss is given away once: scaled in place, with no other reference to it,
    # so that autograd need not clone it. A second backward pass (retain_graph) computes it anew, with the same bits.
    gradient, ctx.unit_gradient = ctx.unit_gradient, None
    if gradient is None or torch.is_grad_enabled():
        # Enabled means create_graph=True, where the op must say that it has no second derivative.
        gradient = _backward(upstream, *ctx.saved_tensors, *ctx.numbers)
    elif library.plain_device((upstream,), profiled=True) is None:
        # A tracer has no value to ask for, and may hold this output elsewhere.
        gradient = (gradient.to(upstream.dtype) * upstream).to(gradient.dtype)
    elif library.emulated() or (gradient.is_cuda and library.use_cuda_kernels()):
        library.core().distill_loss_scale(gradient, upstream)  # only the device asks whether it is 1
    elif gradient.is_cuda or upstream.item() != 1.0:  # on the CPU, where asking costs nothing
        gradient.mul_(upstream)
    return gradient, *nothing


library.differentiable("distill_loss", _gradient, _setup, results=2)
library.no_double_backward("distill_loss_backward")


def _check(
    student: Tensor,
    teacher: Tensor | None,
    target: Tensor | None,
    keypoints: Tensor | None,
    weight: Tensor | None,
    teacher_weight: Tensor | None,
    mask: Tensor | None,
) -> None:
    checks.check_tensor("student", student, "B K H W")
    B, K, H, W = student.shape
    if target is not None and keypoints is not None:
        raise ValueError("labels were given twice: pass either target (heatmaps) or keypoints, not both")
    if teacher is None and target is None and keypoints is None:
        raise ValueError("nothing to learn from: pass teacher, target, keypoints, or a teacher with one of the others")
    maps, points, check = student.shape, (B, K), checks.check_beside
    if teacher is not None:
        check("teacher", teacher, "B K H W", maps, student, "student")
    if target is not None:
        check("target", target, "B K H W", maps, student, "student")
    if keypoints is not None:
        check("keypoints", keypoints, "B K 3", (B, K, 3), student, "student")
    if weight is not None:
        check("weight", weight, "B K", points, student, "student")
    if teacher_weight is not None:
        check("teacher_weight", teacher_weight, "B K", points, student, "student")
    if mask is not None:
        kinds = (*checks.FLOATS, torch.bool, torch.uint8)
        check("mask", mask, "B H W", (B, H, W), student, "student", kinds)


def distill_loss(
    student: Tensor,
    teacher: Tensor | None = None,
    target: Tensor | None = None,
    *,
    keypoints: Tensor | None = None,
    sigma: float = 2.0,
    kind: str = "msra",
    weight: Tensor | None = None,
    teacher_weight: Tensor | None = None,
    mask: Tensor | None = None,
    alpha: float = 0.15,
    beta: float = 0.075,
    temperature: float = 1.0,
    return_terms: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Fused distillation loss: a teacher's MSE and KL divergence, and the labels' MSE.

    `alpha * mse(student, teacher) + beta * kl(teacher, student) + (1 - alpha - beta) * mse(student, labels)`, the loss
    of MAPD (ELPN) and, with `beta=0`, of FPD. With
    `mse(a, b, w) = 1/2 mean over B, K, H, W of mask (w (a - b))^2` and
    `kl = T^2 mean over B, K of w sum_p q_t (log q_t - log q_s)`, where `q` is the softmax of `x / T` over the
    unmasked pixels of a map. A term whose teacher or labels are absent is 0; the other weights stay as they are,
    so plain training is `alpha=0, beta=0`.

    A keypoint of weight 0, and a masked pixel, is not read: NaN there does no harm. The means still divide by all
    B*K*H*W (B*K). Elsewhere NaN and inf propagate. The result is deterministic. Only the student gets a gradient; a
    float16 gradient is multiplied by the upstream (loss-scaled) gradient before it is rounded.

    Args:
        student: heatmaps `[B, K, H, W]`, float32, float16, bfloat16 or float64.
        teacher: heatmaps `[B, K, H, W]`, any float type.
        target: label heatmaps `[B, K, H, W]`, any float type.
        keypoints: labels as `[B, K, 3]` (x, y, visibility) in heatmap pixels instead of `target`: rendered inside
            the kernel by `sigma` and `kind`, never stored; their visibility multiplies `weight`.
        sigma: standard deviation of rendered labels, in heatmap pixels.
        kind: "msra", "higherhrnet" or "exact", see `render_heatmaps`.
        weight: `[B, K]`, of the labels (default 1).
        teacher_weight: `[B, K]`, of the teacher's two terms (default: the labels' weight).
        mask: `[B, H, W]`, bool, or numbers of which 0 means masked.
        alpha: weight of the teacher's MSE.
        beta: weight of the KL divergence.
        temperature: T of the softmax.
        return_terms: also return the three terms before weighting.

    Returns:
        The loss, a float32 scalar (float64 for a float64 student); with `return_terms`, the loss and a detached
        `[3]` tensor: teacher MSE, KL, label MSE.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape or device; the message names it and its value.

    Examples:
        >>> import torch
        >>> from posekd.ops import distill_loss
        >>> student = torch.zeros(2, 17, 64, 48, requires_grad=True)
        >>> teacher = torch.ones(2, 17, 64, 48)
        >>> keypoints = torch.tensor([20.0, 30.0, 2.0]).expand(2, 17, 3)  # x, y, visibility in heatmap pixels
        >>> loss, terms = distill_loss(student, teacher, keypoints=keypoints, return_terms=True)
        >>> loss.shape, terms.shape
        (torch.Size([]), torch.Size([3]))
        >>> round(terms[0].item(), 3)  # the teacher's: half the mean squared difference
        0.5
        >>> loss.backward()
        >>> student.grad.shape
        torch.Size([2, 17, 64, 48])
    """
    _check(student, teacher, target, keypoints, weight, teacher_weight, mask)
    _check_settings(kind, sigma, temperature, alpha, beta)
    results = _forward(
        student, teacher, target, keypoints, weight, teacher_weight, mask,
        float(alpha), float(beta), float(temperature), float(sigma), KINDS.index(kind), _keeps_gradient(student),
    )  # fmt: skip
    return (results[0], results[1].detach()) if return_terms else results[0]


def _check_settings(kind: str, sigma: float, temperature: float, alpha: float, beta: float) -> None:
    checks.check_choice("kind", kind, KINDS)
    checks.check_positive("sigma", sigma)
    checks.check_positive("temperature", temperature)
    if not (0 <= alpha <= 1 and 0 <= beta <= 1):
        name, value = ("beta", beta) if 0 <= alpha <= 1 else ("alpha", alpha)
        raise ValueError(f"{name} must be between 0 and 1, got {value}")


def _keeps_gradient(student: Tensor) -> bool:
    """Whether the gradient is asked for along with the loss, which saves a pass over the maps.

    A gradient in float16 needs the upstream gradient first.
    """
    return (
        student.requires_grad
        and _stores_unit_gradient(student)
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def _stores_unit_gradient(student: Tensor) -> bool:
    if library.on_device(student):
        return student.dtype in (torch.float32, torch.bfloat16)
    return student.is_cpu and student.dtype in (torch.float32, torch.float64)
