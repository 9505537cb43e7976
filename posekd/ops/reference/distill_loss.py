"""`distill_loss` in plain PyTorch: the definition that the kernels are tested against."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from posekd.ops.reference.render_heatmaps import render_heatmaps


def _mse(a: Tensor, b: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """Half the mean over B, K, H, W of `mask (weight (a - b))^2`; where weight or mask is 0, a and b are not read."""
    read = (weight != 0)[..., None, None] & mask[:, None]
    difference = torch.where(read, a - b, 0)
    return 0.5 * (weight[..., None, None] * difference).square().mean()


def _kl(teacher: Tensor, student: Tensor, weight: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """`T^2` mean over B, K of `weight KL(softmax(teacher / T), softmax(student / T))` over unmasked pixels."""
    B, K, H, W = student.shape
    if student.numel() == 0:
        return student.sum()
    read = (weight != 0)[..., None, None] & mask[:, None]
    t = torch.where(read, teacher, 0).reshape(B, K, H * W) / temperature
    s = torch.where(read, student, 0).reshape(B, K, H * W) / temperature
    unmasked = mask.reshape(B, 1, H * W).expand(B, K, H * W)
    empty = ~unmasked.any(-1, keepdim=True)  # a wholly masked map has no distribution: its divergence is 0
    outside = torch.finfo(s.dtype).min
    log_t = torch.where(unmasked | empty, t, outside).log_softmax(-1)
    log_s = torch.where(unmasked | empty, s, outside).log_softmax(-1)
    # exp(-inf) * (-inf - x) is NaN in floating point, 0 in the limit: 0 log 0 = 0
    pixel = torch.where(log_t == -torch.inf, 0, log_t.exp() * (log_t - log_s))
    divergence = torch.where(unmasked, pixel, 0).sum(-1)
    return temperature**2 * torch.where(weight != 0, weight * divergence, 0).mean()


class Inputs(NamedTuple):
    """The tensors of the loss; see `posekd.ops.distill_loss`."""

    student: Tensor
    teacher: Tensor | None = None
    target: Tensor | None = None
    keypoints: Tensor | None = None
    weight: Tensor | None = None
    teacher_weight: Tensor | None = None
    mask: Tensor | None = None


class Numbers(NamedTuple):
    """Its numbers, and how labels are drawn."""

    alpha: float = 0.15
    beta: float = 0.075
    temperature: float = 1.0
    sigma: float = 2.0
    kind: str = "msra"


def _labels(s: Tensor, inputs: Inputs, numbers: Numbers) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """The label maps, the labels' weight `[B, K]`, the teacher's weight `[B, K]`, the unmasked pixels `[B, H, W]`."""
    _, _, target, keypoints, weight, teacher_weight, mask = inputs
    B, K, H, W = s.shape
    label_weight = s.new_ones(B, K) if weight is None else weight.to(s.dtype)
    if keypoints is not None:
        target, rendered_weight = render_heatmaps(keypoints[:, None], (H, W), numbers.sigma, numbers.kind, s.dtype)
        label_weight = label_weight * rendered_weight.to(s.dtype)
    distill_weight = label_weight if teacher_weight is None else teacher_weight.to(s.dtype)
    read = torch.ones(B, H, W, dtype=torch.bool, device=s.device) if mask is None else mask != 0
    return target, label_weight, distill_weight, read


def distill_loss(inputs: Inputs, numbers: Numbers) -> tuple[Tensor, Tensor]:
    """The loss, a scalar, and its three unweighted terms `[3]`: teacher MSE, KL, label MSE."""
    student, teacher, *_ = inputs
    alpha, beta, temperature, *_ = numbers
    s = student.to(torch.promote_types(student.dtype, torch.float32))
    target, label_weight, distill_weight, read = _labels(s, inputs, numbers)
    terms = [s.new_zeros(()) for _ in range(3)]
    if s.numel() == 0:
        return s.sum() * 0, torch.stack(terms)
    if teacher is not None:
        t = teacher.detach().to(s.dtype)
        terms[0] = _mse(s, t, distill_weight, read)
        terms[1] = _kl(t, s, distill_weight, read, temperature)
    if target is not None:
        terms[2] = _mse(s, target.detach().to(s.dtype), label_weight, read)
    loss = s.new_zeros(())
    for factor, term in zip((alpha, beta, 1.0 - alpha - beta), terms, strict=True):
        if factor != 0:
            loss = loss + factor * term
    return loss, torch.stack([term.detach() for term in terms])


def distill_loss_backward(upstream: Tensor, inputs: Inputs, numbers: Numbers) -> Tensor:
    """The derivative of `distill_loss` by the student, written out; `upstream` is a scalar."""
    student, teacher, *_ = inputs
    alpha, beta, temperature, *_ = numbers
    s = student.to(torch.promote_types(student.dtype, torch.float32))
    B, K = s.shape[:2]
    gradient = torch.zeros_like(s)
    if s.numel() == 0:
        return gradient.to(student.dtype)
    target, label_weight, distill_weight, read = _labels(s, inputs, numbers)
    upstream = upstream.to(s.dtype)
    for factor, other, w in ((alpha, teacher, distill_weight), (1.0 - alpha - beta, target, label_weight)):
        if other is not None and factor != 0:
            w = w[..., None, None]
            slope = w.square() * (s - other.to(s.dtype)) * (upstream * factor / s.numel())
            gradient += torch.where((w != 0) & read[:, None], slope, 0)
    if teacher is not None and beta != 0:
        outside = ~read[:, None].expand_as(s)
        t = teacher.to(s.dtype)
        q_s, q_t = (
            (x.masked_fill(outside, -torch.inf) / temperature).flatten(2).softmax(-1).view_as(s) for x in (s, t)
        )
        w = distill_weight[..., None, None]
        slope = w * (q_s - q_t) * (upstream * beta * temperature / (B * K))
        gradient += torch.where((w != 0) & ~outside, slope, 0)
    return gradient.to(student.dtype)
