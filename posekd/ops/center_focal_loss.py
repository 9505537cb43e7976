"""CenterNet's focal loss of corners and centres, its targets drawn from boxes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from posekd.ops import checks, library
from posekd.ops.reference import center_focal_loss as definition

STRIP_ROWS = 8  # kFocalStripRows of csrc/center_focal_loss/center_focal_loss.h
MOST_PEOPLE_ON_DEVICE = 2048  # whose Gaussians fit into shared memory
RADII = ("centernet", "cornernet")
_ARGUMENTS = "Tensor logits, Tensor boxes, Tensor counts, Tensor? mask, bool divided"
Mask = Tensor | None


def _wide(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _outputs(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The losses of the maps, and their numbers of points."""
    return (
        logits.new_empty_strided((3,), (1,), dtype=_wide(logits)),
        logits.new_empty_strided((3,), (1,), dtype=torch.int64),
    )


def _fake(logits: Tensor, boxes: Tensor, counts: Tensor, mask: Mask, divided: bool, summed: bool) -> Any:
    loss, points = _outputs(logits)
    return loss.sum() if summed else loss, points


def _inputs(logits: Tensor, boxes: Tensor, counts: Tensor, mask: Mask) -> tuple[Tensor | None, ...]:
    return logits.contiguous(), boxes.contiguous(), counts.contiguous(), None if mask is None else mask.contiguous()


def _forward_kernel(
    logits: Tensor, boxes: Tensor, counts: Tensor, mask: Mask, divided: bool, summed: bool
) -> tuple[Tensor, Tensor]:
    loss, points = _outputs(logits)
    B, _, H, _ = logits.shape
    blocks = B * -(-H // STRIP_ROWS) if library.on_device(logits) else B
    partial = logits.new_empty_strided((2, 3, blocks), (3 * blocks, blocks, 1), dtype=torch.float64)
    library.core().center_focal_loss_forward(
        *_inputs(logits, boxes, counts, mask), divided, loss, points, partial, library.counter(loss), library.threads()
    )
    return loss.sum() if summed else loss, points


def _forward_reference(*args: Any) -> tuple[Tensor, Tensor]:
    *rest, summed = args
    loss, points = definition.center_focal_loss(*rest)
    return loss.sum() if summed else loss, points


def _backward_kernel(
    upstream: Tensor, points: Tensor, logits: Tensor, boxes: Tensor, counts: Tensor, mask: Mask, divided: bool
) -> Tensor:
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    library.core().center_focal_loss_backward(
        *_inputs(logits, boxes, counts, mask),
        divided,
        library.dense(upstream.expand(3), _wide(logits)),
        points.contiguous(),
        gradient,
        library.threads(),
    )
    return gradient


def _supports(logits: Tensor, boxes: Tensor, *rest: Any) -> bool:
    """The device kernels have no float64, and limits of people and of a grid's size; nothing empty has a launch."""
    if logits.numel() == 0 or boxes.numel() == 0 or not library.on_device(logits):
        return logits.numel() > 0 and boxes.numel() > 0
    return logits.dtype != torch.float64 and boxes.shape[1] <= MOST_PEOPLE_ON_DEVICE and 3 * logits.shape[0] <= 65535


_forward = library.define(
    f"center_focal_loss({_ARGUMENTS}, bool summed) -> (Tensor, Tensor)",
    kernel=_forward_kernel,
    reference=_forward_reference,
    fake=_fake,
    supports=_supports,
)
_backward = library.define(
    f"center_focal_loss_backward(Tensor upstream, Tensor points, {_ARGUMENTS}) -> Tensor",
    kernel=_backward_kernel,
    reference=lambda upstream, *args: definition.center_focal_loss_backward(upstream.expand(3), *args),
    fake=lambda upstream, points, logits, *rest: torch.empty_like(logits, memory_format=torch.contiguous_format),
    supports=lambda upstream, points, *args: _supports(*args),
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, boxes, counts, mask, divided, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], logits, boxes, counts, mask)
    ctx.divided = divided


def _gradient(ctx: Any, upstream: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
    return _backward(upstream, *ctx.saved_tensors, ctx.divided), None, None, None, None, None


library.differentiable("center_focal_loss", _gradient, _setup, results=1)
library.no_double_backward("center_focal_loss_backward")


def center_focal_loss(
    logits: Tensor,
    boxes: Tensor,
    counts: Tensor,
    mask: Tensor | None = None,
    *,
    radius: str = "centernet",
    return_terms: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Focal loss of the corners and centres of boxes (CornerNet, equation 1), targets drawn inside.

    A Gaussian of peak 1 lies at the pixel of each corner and centre, of a radius within which a corner gives a box of
    IoU 0.7, sigma a sixth (centres: a fifth) of its diameter. With probabilities p = sigmoid(logits), clamped to 1e-4
    of 0 and 1, and targets t, each of the three maps has

        L = -1/N [sum over t = 1 of (1 - p)^2 log p + sum over t < 1 of (1 - t)^4 p^2 log(1 - p)]

    with N pixels of t = 1 in the whole batch (no division where there is none); the loss is the sum of the three. The
    gradient goes to the logits alone and is deterministic.

    Args:
        logits: `[B, 3, H, W]` of top-left corners, bottom-right corners and centres, any float type.
        boxes: float32 `[B, P, 4]` (x1, y1, x2, y2) in map pixels, padded; one without an extent draws nothing.
        counts: int64 `[B]`, how many of the P boxes each image has.
        mask: bool `[B, H, W]`, false where a pixel that is no point does not count (crowds); None: all count.
        radius: `centernet`, that paper's code, or `cornernet`, the formula as CornerNet's code has it since it was
            corrected: 22.6 and 6.7 pixels for a box of 100 x 70.
        return_terms: also return the loss of each map.

    Returns:
        The loss, a float32 scalar (float64 for float64 logits); with `return_terms`, the loss and its terms `[3]`.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, device or value; the message names it.

    Examples:
        >>> import torch
        >>> from posekd.ops import center_focal_loss
        >>> logits = torch.zeros(1, 3, 16, 16, requires_grad=True)
        >>> loss = center_focal_loss(logits, torch.tensor([[[2.0, 3.0, 9.0, 13.0]]]), torch.tensor([1]))
        >>> round(loss.item(), 2)
        128.27
        >>> loss.backward()
        >>> logits.grad.shape
        torch.Size([1, 3, 16, 16])
    """
    checks.check_tensor("logits", logits, "B 3 H W")
    B, _, H, W = logits.shape
    checks.check_shape("logits", logits, (B, 3, H, W), "the three kinds of points")
    checks.check_tensor("boxes", boxes, "B P 4", (torch.float32,))
    checks.check_beside("boxes", boxes, "B P 4", (B, boxes.shape[1], 4), logits, "logits", (torch.float32,))
    checks.check_beside("counts", counts, "B", (B,), logits, "logits", (torch.int64,))
    if mask is not None:
        checks.check_beside("mask", mask, "B H W", (B, H, W), logits, "logits", (torch.bool,))
    checks.check_choice("radius", radius, RADII)
    loss: Tensor = _forward(logits, checks.constant(boxes), counts, mask, radius == "cornernet", not return_terms)[0]
    return (loss.sum(), loss) if return_terms else loss
