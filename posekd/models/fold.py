"""Batch norms of a frozen network, folded into the convolutions before them.

In eval mode a norm multiplies and shifts each channel by constants, which the convolution can do by itself (Jacob et
al. 2018, section 3.2): w' = w g / sqrt(v + eps), b' = (b - m) g / sqrt(v + eps) + beta. A third of the layers of an
HRNet disappear, and each of them was a pass over memory.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

Convolution = nn.Conv2d | nn.ConvTranspose2d
TOLERANCE = 1e-3  # of the largest output: what rounding may change; another use of a convolution's output changes more


@torch.no_grad()
def fold_norms(model: nn.Module, images: Tensor) -> int:
    """Folds every batch norm that stands directly behind a convolution, in place; the norm becomes an identity.

    Which norm stands behind which convolution is seen by running the network once. Norms before activations alone (the
    pre-activation blocks of an Hourglass) stay. Outputs are equal to rounding, in eval mode: that is looked at, and a
    network whose outputs change more gets its norms back. It cannot be trained afterwards, and its state dict has other
    names.

    Args:
        model: in eval mode, on any device.
        images: an input `[B, 3, H, W]` of its dtype, e.g. random.

    Returns:
        How many norms were folded.

    Raises:
        ValueError: a network in training mode, whose norms follow the batch.
    """
    if model.training:
        raise ValueError("norms are folded as they are in eval mode: call eval() first")
    pairs, before = _pairs(model, images)
    owners = {id(module): (owner, name) for owner in model.modules() for name, module in owner.named_children()}
    kept = [(convolution, convolution.weight, convolution.bias) for convolution, _ in pairs]
    for convolution, norm in pairs:
        _fold(convolution, norm)
        owner, name = owners[id(norm)]
        setattr(owner, name, nn.Identity())
    if _close(_tensors(model(images)), before):
        return len(pairs)
    for (convolution, weight, bias), (_, norm) in zip(kept, pairs, strict=True):
        convolution.weight, convolution.bias = weight, bias
        owner, name = owners[id(norm)]
        setattr(owner, name, norm)
    return 0


def _pairs(model: nn.Module, images: Tensor) -> tuple[list[tuple[Convolution, nn.BatchNorm2d]], list[Tensor]]:
    """Norms that are given a convolution's own output, each called once; and what the network says of the images."""
    made: dict[int, tuple[Convolution, Tensor]] = {}  # the tensor is kept so that its id stays its own
    calls: Counter[int] = Counter()
    pairs: list[tuple[Convolution, nn.BatchNorm2d]] = []

    def after_convolution(module: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
        made[id(output)] = module, output
        calls[id(module)] += 1

    def before_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[id(module)] += 1
        if id(inputs[0]) in made:
            assert isinstance(module, nn.BatchNorm2d)
            pairs.append((made[id(inputs[0])][0], module))

    handles = [
        module.register_forward_hook(after_convolution)
        if type(module) in (nn.Conv2d, nn.ConvTranspose2d)
        else module.register_forward_pre_hook(before_norm)
        for module in model.modules()
        if type(module) in (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d)
    ]
    try:
        output = _tensors(model(images))
    finally:
        for handle in handles:
            handle.remove()
    return [pair for pair in pairs if all(calls[id(module)] == 1 for module in pair)], output


def _fold(convolution: Convolution, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
        transpose=isinstance(convolution, nn.ConvTranspose2d),
    )


def _tensors(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else [part for part in output if isinstance(part, Tensor)]


def _close(found: list[Tensor], wanted: list[Tensor]) -> bool:
    largest = [(a - b).abs().max() <= TOLERANCE * b.abs().max() for a, b in zip(found, wanted, strict=True)]
    return all(map(bool, largest))
