"""Associative-embedding loss of tag maps (Newell et al. 2017), as HigherHRNet computes it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from posekd.ops import checks, library
from posekd.ops.reference import tag_loss as definition

KINDS = ("exp", "max")
MOST_PEOPLE_ON_DEVICE = 2048  # an image's people fit into shared memory


def _outputs(tags: Tensor, keypoints: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = torch.float64 if tags.dtype == torch.float64 else torch.float32
    B, P, K, _ = keypoints.shape
    return (
        tags.new_empty_strided((B,), (1,), dtype=wide),
        tags.new_empty_strided((B,), (1,), dtype=wide),
        tags.new_empty_strided((B, P, K), (P * K, K, 1), dtype=wide),  # quicker than new_empty
        tags.new_empty_strided((B, P), (P, 1), dtype=wide),
    )


def _forward_kernel(tags: Tensor, keypoints: Tensor, exponential: bool) -> tuple[Tensor, ...]:
    outputs = _outputs(tags, keypoints)
    library.core().tag_loss_forward(
        tags.contiguous(), library.dense(keypoints, torch.float32), *outputs, exponential, library.threads()
    )
    return outputs


def _forward_reference(tags: Tensor, keypoints: Tensor, exponential: bool) -> tuple[Tensor, ...]:
    if tags.numel() == 0 or keypoints.numel() == 0:
        return tuple(x.zero_() for x in _outputs(tags, keypoints))
    return (
        *definition.tag_loss(tags, keypoints, exponential),
        *(slope.contiguous() for slope in definition.tag_slopes(tags, keypoints, exponential)),
    )


def _forward_fake(tags: Tensor, keypoints: Tensor, exponential: bool) -> tuple[Tensor, ...]:
    return _outputs(tags, keypoints)


def _backward_kernel(
    pull_upstream: Tensor, push_upstream: Tensor, pull_slope: Tensor, push_slope: Tensor, keypoints: Tensor,
    tags: Tensor,
) -> Tensor:  # fmt: skip
    gradient = torch.empty_like(tags, memory_format=torch.contiguous_format)
    wide = pull_slope.dtype
    if library.on_device(tags):  # whose kernel takes any stride, such as the gradient of a sum has
        pull, push = pull_upstream.to(wide), push_upstream.to(wide)
    else:
        pull, push = library.dense(pull_upstream, wide), library.dense(push_upstream, wide)
    library.core().tag_loss_backward(
        library.dense(keypoints, torch.float32), pull_slope.contiguous(), push_slope.contiguous(),
        pull, push, gradient, library.threads(),
    )  # fmt: skip
    return gradient


def _backward_reference(
    pull_upstream: Tensor, push_upstream: Tensor, pull_slope: Tensor, push_slope: Tensor, keypoints: Tensor,
    tags: Tensor,
) -> Tensor:  # fmt: skip
    if tags.numel() == 0 or keypoints.numel() == 0:
        return torch.zeros_like(tags, memory_format=torch.contiguous_format)
    return definition.tag_loss_backward(pull_upstream, push_upstream, pull_slope, push_slope, keypoints, tags)


def _backward_fake(
    pull_upstream: Tensor, push_upstream: Tensor, pull_slope: Tensor, push_slope: Tensor, keypoints: Tensor,
    tags: Tensor,
) -> Tensor:  # fmt: skip
    return torch.empty_like(tags, memory_format=torch.contiguous_format)


def _supports(tags: Tensor, keypoints: Tensor) -> bool:
    """The device kernels have no float64 and a limit of people; without keypoints there is nothing to launch for."""
    if tags.numel() == 0 or keypoints.numel() == 0 or not library.on_device(tags):
        return tags.numel() > 0 and keypoints.numel() > 0
    return tags.dtype != torch.float64 and keypoints.shape[1] <= MOST_PEOPLE_ON_DEVICE


_forward = library.define(
    "tag_loss(Tensor tags, Tensor keypoints, bool exponential) -> (Tensor, Tensor, Tensor, Tensor)",
    kernel=_forward_kernel,
    reference=_forward_reference,
    fake=_forward_fake,
    supports=lambda tags, keypoints, exponential: _supports(tags, keypoints),
)
_backward = library.define(
    "tag_loss_backward(Tensor pull_upstream, Tensor push_upstream, Tensor pull_slope, Tensor push_slope, "
    "Tensor keypoints, Tensor tags) -> Tensor",
    kernel=_backward_kernel,
    reference=_backward_reference,
    fake=_backward_fake,
    supports=lambda *args: _supports(args[5], args[4]),
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tags, keypoints, _ = inputs
    _, _, pull_slope, push_slope = output
    ctx.mark_non_differentiable(pull_slope, push_slope)
    ctx.set_materialize_grads(False)
    # The tags are not read again: they say the gradient's shape, and let a second derivative through to its error.
    ctx.save_for_backward(pull_slope, push_slope, keypoints, tags)


def _gradient(ctx: Any, pull: Tensor | None, push: Tensor | None, *unused: Any) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: activation checkpointing computes them when they are asked for
    slope = saved[0]
    zero = slope.new_zeros(slope.shape[0]) if pull is None or push is None else None
    return _backward(zero if pull is None else pull, zero if push is None else push, *saved), None, None


library.differentiable("tag_loss", _gradient, _setup, results=2)
library.no_double_backward("tag_loss_backward")


def tag_loss(tags: Tensor, keypoints: Tensor, *, kind: str = "exp") -> tuple[Tensor, Tensor]:
    """Pulls the tags of a person together, and pushes people apart, per image.

    With `t` the tag at a keypoint's pixel, `m_p` the mean over the keypoints of person p and n the people of an image

        pull = 1/n sum_p mean_k (t_pk - m_p)^2
        push = 0.5 / (n (n - 1)) sum_{p != q} exp(-(m_p - m_q)^2)      or max(0, 1 - |m_p - m_q|)

    as HigherHRNet's `AELoss`. Only keypoints with visibility above 0 inside the map count, and only people with such
    a keypoint; an image with nobody has pull 0 and push 0, one with a single person push 0. Positions are truncated
    toward zero, so -0.99 is pixel 0 and inside; keypoints beyond the border, or with NaN, are ignored, as
    HigherHRNet's loader does. Any number of people goes (HigherHRNet's loader stops at 30).

    The gradient flows through the mean. Keypoints that share a pixel add up, in a fixed order, before they are rounded;
    the result is deterministic. Sums are float32 (float64 for float64 tags).

    Args:
        tags: `[B, K, H, W]`, or `[B, 1, H, W]`, one map for all keypoints; float32, float16, bfloat16 or float64.
        keypoints: float `[B, P, K, 3]` (x, y, visibility) in tag-map pixels, padded with visibility 0. Positions are
            taken as float32.
        kind: `"exp"` or `"max"`.

    Returns:
        pull and push, `[B]` each, float32 (float64 for float64 tags), not yet weighted (HigherHRNet: 0.001 each).

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, value or device.

    Examples:
        >>> import torch
        >>> from posekd.ops import tag_loss
        >>> tags = torch.zeros(1, 2, 8, 8, requires_grad=True)
        >>> one, other = [[1.0, 1.0, 1.0], [2.0, 3.0, 1.0]], [[6.0, 1.0, 1.0], [7.0, 3.0, 1.0]]  # x, y, visibility
        >>> pull, push = tag_loss(tags, torch.tensor([[one, other]]))
        >>> pull.tolist(), push.tolist()  # all tags are equal: nothing to pull together, everything to push apart
        ([0.0], [0.5])
        >>> (0.001 * pull + 0.001 * push).sum().backward()
        >>> tags.grad.shape
        torch.Size([1, 2, 8, 8])
    """
    checks.check_tensor("tags", tags, "B K H W")
    checks.check_tensor("keypoints", keypoints, "B P K 3")
    B, P, K, last = keypoints.shape
    images, channels, H, W = tags.shape
    if images != B or last != 3:
        checks.check_shape("keypoints", keypoints, (images, P, K, 3), "tags")
    if channels not in (1, K):
        checks.check_shape("tags", tags, (B, K, H, W), "keypoints")
    checks.check_device("keypoints", keypoints, tags, "tags")
    checks.check_choice("kind", kind, KINDS)
    results = _forward(tags, keypoints, kind == "exp")
    return results[0], results[1]
