"""Parameters and compute in the conventions that the papers use.

Four counts of the same network are in print, all called "FLOPs"; none counts attention's products. The first three
count no norms, activations, up-sampling and biases either, and differ where convolutions are transposed:

| count | a convolution | a transposed convolution |
|---|---|---|
| `macs` | multiply-accumulates | weight elements x INPUT pixels: the true count |
| `hrnet_tool` | the same | weight elements x OUTPUT pixels, stride^2 too many (HRNet's summary tool) |
| `out_x_w0` | the same | output elements x elements of `weight[0]` (SmallerHRNet's student rows) |
| `mmcv` | and 1 for each output of a bias | as `macs` |

`mmcv` adds 2 for each element of a norm and 1 for each of a ReLU, a pooling or an up-sampling (DistilPose, MMPose).

HRNet, SimpleBaseline and ELPN print `hrnet_tool` / 2^30 and call it G; HigherHRNet prints it / 10^9; FPD and PyraNet
print 2 x `macs` / 10^9, counting a multiplication and an addition each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

_Conv = nn.modules.conv._ConvNd
# what mmcv counts beside convolutions and linear layers, per element of the input (of an up-sampling: of the output)
_PASSES: dict[type[nn.Module], int] = {
    nn.BatchNorm2d: 2, nn.LayerNorm: 2, nn.GroupNorm: 2, nn.ReLU: 1, nn.MaxPool2d: 1, nn.AvgPool2d: 1,
    nn.AdaptiveAvgPool2d: 1, nn.Upsample: 1,
}  # fmt: skip


@dataclass(frozen=True)
class Profile:
    """The cost of one forward pass.

    Attributes:
        name: the model's name.
        size: `(height, width)` of the input in pixels.
        batch: images in the pass; the counts are for all of them.
        params: number of trainable or frozen parameters (buffers not counted).
        macs: exact multiply-accumulates of convolutions and linear layers.
        hrnet_tool: what HRNet's summary tool counts.
        out_x_w0: output elements times elements of `weight[0]`.
        mmcv: what mmcv's counter says.
    """

    name: str
    size: tuple[int, int]
    batch: int
    params: int
    macs: int
    hrnet_tool: int
    out_x_w0: int
    mmcv: int

    @property
    def hrnet_gi(self) -> float:
        """`hrnet_tool` / 2^30, the "GFLOPs" of HRNet, SimpleBaseline and ELPN."""
        return self.hrnet_tool / 2**30


def profile_model(model: nn.Module, size: tuple[int, int] | None = None, batch: int = 1) -> Profile:
    """Counts parameters and compute of one forward pass, without computing it.

    The pass runs on meta tensors, whatever the model's device; the model is left as it was.

    Args:
        model: any network of one image tensor `[batch, 3, H, W]`.
        size: `(height, width)`; the model's `spec.size` when not given.
        batch: images in the pass.

    Raises:
        ValueError: no size given and none known, or the model cannot take this size.
    """
    spec = getattr(model, "spec", None)
    if size is None:
        if spec is None:
            raise ValueError(f"{type(model).__name__} has no spec: pass size=(height, width)")
        size = spec.size
    counts = {"macs": 0, "hrnet_tool": 0, "out_x_w0": 0, "mmcv": 0}

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for key, value in _layer_counts(module, inputs[0], output).items():
            counts[key] += value

    layers = [m for m in model.modules() if isinstance(m, (_Conv, nn.Linear, *_PASSES))]
    handles = [layer.register_forward_hook(count) for layer in layers]
    tensors = {k: torch.empty_like(v, device="meta") for k, v in _parameters_and_buffers(model)}
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    try:
        with _eval(model), torch.no_grad():
            functional_call(model, tensors, (torch.empty(batch, 3, *size, device="meta", dtype=dtype),))
    finally:
        for handle in handles:
            handle.remove()
    name = getattr(model, "name", type(model).__name__)
    return Profile(name, (size[0], size[1]), batch, sum(p.numel() for p in model.parameters()), **counts)


def activation_bytes(model: nn.Module, size: tuple[int, int] | None = None) -> int:
    """About how many bytes an image takes in float32 training: what every layer gives, once for each direction.

    Args:
        model: any network of one image tensor, on the meta device or not.
        size: `(height, width)`; the model's own when not given.
    """
    total = 0

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal total
        total += output.numel() if isinstance(output, Tensor) else 0

    leaves = [module for module in model.modules() if not list(module.children())]
    handles = [leaf.register_forward_hook(count) for leaf in leaves]
    try:
        profile_model(model, size)
    finally:
        for handle in handles:
            handle.remove()
    return 2 * 4 * total


def _layer_counts(module: nn.Module, x: Tensor, output: Tensor) -> dict[str, int]:
    """The counts of one layer, from its weight and the shapes that went through it."""
    if type(module) in _PASSES:
        elements = (output if isinstance(module, nn.Upsample) else x).numel()
        return {"mmcv": _PASSES[type(module)] * elements}
    weight = module.weight
    assert isinstance(weight, Tensor)
    per_output = output.numel() * weight[0].numel()
    if isinstance(module, nn.Linear):
        return dict.fromkeys(("macs", "hrnet_tool", "out_x_w0", "mmcv"), per_output)
    assert isinstance(module, _Conv)
    tool = weight.numel() * output.shape[0] * output.shape[2:].numel()
    macs = weight.numel() * x.shape[0] * x.shape[2:].numel() if module.transposed else per_output
    biases = output.numel() if module.bias is not None else 0
    return {"macs": macs, "hrnet_tool": tool, "out_x_w0": per_output, "mmcv": macs + biases}


def _parameters_and_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


@contextmanager
def _eval(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every module's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def profile_rows(profile: Profile) -> list[tuple[str, str, str, str]]:
    """The numbers to show: (quantity, value, unit, whose convention)."""
    p = profile
    return [
        ("parameters", f"{p.params:,}", "", "all papers"),
        (
            "compute, exact",
            f"{p.macs / 1e9:.4f}",
            "GMAC (10^9)",
            "multiply-accumulates, nothing counted twice",
        ),
        (
            "compute, HRNet tool",
            f"{p.hrnet_gi:.4f}",
            "GiMAC (2^30)",
            '"GFLOPs" of HRNet, SimpleBaseline, ELPN',
        ),
        ("compute, HRNet tool", f"{p.hrnet_tool / 1e9:.4f}", "GMAC (10^9)", '"GFLOPs" of HigherHRNet'),
        ("compute, 2 x MACs", f"{2 * p.macs / 1e9:.4f}", "GFLOP (10^9)", '"FLOPs" of FPD, PyraNet'),
        ("compute, mmcv", f"{p.mmcv / 1e9:.4f}", "GMAC (10^9)", '"GFLOPs" of DistilPose, MMPose'),
        ("compute, out x w0", f"{p.out_x_w0 / 1e9:.4f}", "GMAC (10^9)", '"GFLOPs" of SmallerHRNet students'),
    ]


def profile_title(profile: Profile) -> str:
    """What was measured, in words."""
    height, width = profile.size
    images = "1 image" if profile.batch == 1 else f"{profile.batch} images"
    return f"{profile.name}, {images} of {height}x{width} (height x width)"


def format_profile(profile: Profile) -> str:
    """The profile as plain text, one line per number, each with its unit and the papers that use this convention."""
    rows = profile_rows(profile)
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [
        f"{what:<{widths[0]}}  {value:>{widths[1]}}  {unit:<{widths[2]}}  {whose}" for what, value, unit, whose in rows
    ]
    return "\n".join([profile_title(profile), *lines])
