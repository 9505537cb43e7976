"""The networks written a second time, as plain functions of a state dict: the oracle of the forward tests.

Written from the papers' figures and the key naming of the official checkpoints; shares no code with the
package.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def conv(s: State, key: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
    weight = s[f"{key}.weight"]
    return F.conv2d(x, weight, s.get(f"{key}.bias"), stride, weight.shape[-1] // 2, groups=groups)


def bn(s: State, key: str, x: Tensor) -> Tensor:
    shape = (1, -1, 1, 1)
    mean, var, weight, bias = (s[f"{key}.{n}"].view(shape) for n in ("running_mean", "running_var", "weight", "bias"))
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def relu(x: Tensor) -> Tensor:
    return x.clamp_min(0)


def separable(s: State, key: str, x: Tensor) -> Tensor:
    x = conv(s, f"{key}.depthwise", x, groups=x.shape[1])
    if f"{key}.norm.0.weight" in s:
        x = relu(bn(s, f"{key}.norm.0", x))
    return conv(s, f"{key}.pointwise", x)


def basic(s: State, key: str, x: Tensor) -> Tensor:
    inner = separable if f"{key}.conv1.depthwise.weight" in s else conv
    out = relu(bn(s, f"{key}.bn1", inner(s, f"{key}.conv1", x)))
    return relu(bn(s, f"{key}.bn2", inner(s, f"{key}.conv2", out)) + x)


def global_context(s: State, key: str, x: Tensor) -> Tensor:
    B, C = x.shape[:2]
    attention = conv(s, f"{key}.mask", x).view(B, 1, -1).exp()
    context = (x.view(B, C, -1) * attention / attention.sum(-1, keepdim=True)).sum(-1)
    inner = context @ s[f"{key}.reduce.weight"][:, :, 0, 0].T + s[f"{key}.reduce.bias"]
    inner = (inner - inner.mean(1, keepdim=True)) / (inner.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    inner = relu(inner * s[f"{key}.norm.weight"].view(-1) + s[f"{key}.norm.bias"].view(-1))
    return x + (inner @ s[f"{key}.expand.weight"][:, :, 0, 0].T + s[f"{key}.expand.bias"]).view(B, C, 1, 1)


def bottleneck(s: State, key: str, x: Tensor, stride: int = 1) -> Tensor:
    out = relu(bn(s, f"{key}.bn1", conv(s, f"{key}.conv1", x)))
    out = relu(bn(s, f"{key}.bn2", conv(s, f"{key}.conv2", out, stride)))
    out = bn(s, f"{key}.bn3", conv(s, f"{key}.conv3", out))
    if f"{key}.gc.mask.weight" in s:
        out = global_context(s, f"{key}.gc", out)
    if f"{key}.downsample.0.weight" in s:
        x = bn(s, f"{key}.downsample.1", conv(s, f"{key}.downsample.0", x, stride))
    return relu(out + x)


def _count(s: State, prefix: str) -> int:
    """How many numbered children a prefix has: 1 + the largest number."""
    numbers = [int(k[len(prefix) :].split(".")[0]) for k in s if k.startswith(prefix)]
    return max(numbers, default=-1) + 1


def hrnet_features(s: State, x: Tensor) -> list[Tensor]:
    x = relu(bn(s, "bn1", conv(s, "conv1", x, 2)))
    x = relu(bn(s, "bn2", conv(s, "conv2", x, 2)))
    for i in range(_count(s, "layer1.")):
        x = bottleneck(s, f"layer1.{i}", x)
    features = [x]
    for stage in (2, 3, 4):
        t = f"transition{stage - 1}"
        new = f"{t}.{stage - 1}.0"
        widened = [f"{t}.0"] if stage == 2 else []
        coarser = relu(bn(s, f"{new}.1", conv(s, f"{new}.0", features[-1], 2)))
        features = [relu(bn(s, f"{k}.1", conv(s, f"{k}.0", features[0]))) for k in widened] or features
        features = [*features, coarser]
        for module in range(_count(s, f"stage{stage}.")):
            features = _exchange(s, f"stage{stage}.{module}", features)
    return features


def _exchange(s: State, key: str, features: list[Tensor]) -> list[Tensor]:
    for b in range(len(features)):
        for block in range(_count(s, f"{key}.branches.{b}.")):
            features[b] = basic(s, f"{key}.branches.{b}.{block}", features[b])
    outputs = []
    for i in range(_count(s, f"{key}.fuse_layers.")):
        total = features[i]
        for j, x in enumerate(features):
            path = f"{key}.fuse_layers.{i}.{j}"
            if j > i:  # coarser: match channels, then repeat each pixel
                x = bn(s, f"{path}.1", conv(s, f"{path}.0", x))
                total = total + x.repeat_interleave(2 ** (j - i), -1).repeat_interleave(2 ** (j - i), -2)
            elif j < i:  # finer: halve i - j times, ReLU between
                for k in range(i - j):
                    x = bn(s, f"{path}.{k}.1", conv(s, f"{path}.{k}.0", relu(x) if k else x, 2))
                total = total + x
        outputs.append(relu(total))
    return outputs


def hrnet(s: State, x: Tensor) -> Tensor:
    x = hrnet_features(s, x)[0]
    if "gc.mask.weight" in s:
        x = global_context(s, "gc", x)
    return conv(s, "final_layer", x)


def higherhrnet(s: State, x: Tensor) -> list[Tensor]:
    x = hrnet_features(s, x)[0]
    coarse = conv(s, "final_layers.0", x)
    x = _transposed(torch.cat((x, coarse), 1), s["deconv_layers.0.0.0.weight"])
    x = relu(bn(s, "deconv_layers.0.0.1", x))
    for block in range(1, _count(s, "deconv_layers.0.")):
        x = basic(s, f"deconv_layers.0.{block}.0", x)
    return [coarse, conv(s, "final_layers.1", x)]


def simplebaseline(s: State, x: Tensor) -> Tensor:
    x = relu(bn(s, "bn1", conv(s, "conv1", x, 2)))
    x = F.max_pool2d(x, 3, 2, 1)
    for stage in (1, 2, 3, 4):
        for i in range(_count(s, f"layer{stage}.")):
            x = bottleneck(s, f"layer{stage}.{i}", x, stride=2 if stage > 1 and i == 0 else 1)
    for i in (0, 3, 6):
        x = _transposed(x, s[f"deconv_layers.{i}.weight"])
        x = relu(bn(s, f"deconv_layers.{i + 1}", x))
    return conv(s, "final_layer", x)


def _transposed(x: Tensor, weight: Tensor) -> Tensor:
    """A transposed convolution 4x4, stride 2, padding 1: spread the pixels, then correlate mirrored."""
    B, C, H, W = x.shape
    spread = torch.zeros(B, C, 2 * H - 1, 2 * W - 1, dtype=x.dtype)
    spread[..., ::2, ::2] = x
    return F.conv2d(spread, weight.flip(-1, -2).transpose(0, 1), padding=2)


def preact(s: State, bn_key: str, conv_key: str, x: Tensor) -> Tensor:
    return conv(s, conv_key, relu(bn(s, bn_key, x)))


def preact_bottleneck(s: State, key: str, x: Tensor) -> Tensor:
    out = x
    for i in (1, 2, 3):
        out = preact(s, f"{key}.bn{i}", f"{key}.conv{i}", out)
    return out + (conv(s, f"{key}.downsample.0", x) if f"{key}.downsample.0.weight" in s else x)


def one_hourglass(s: State, key: str, level: int, x: Tensor, block) -> Tensor:
    """The recursive form of the paper's figure 3; level 0 is the innermost."""
    below = block(s, f"{key}.hg.{level}.1", F.max_pool2d(x, 2))
    below = one_hourglass(s, key, level - 1, below, block) if level else block(s, f"{key}.hg.0.3", below)
    below = block(s, f"{key}.hg.{level}.2", below)
    return block(s, f"{key}.hg.{level}.0", x) + below.repeat_interleave(2, -1).repeat_interleave(2, -2)


def stacked(s: State, x: Tensor, block, stem_block, after) -> list[Tensor]:
    x = relu(bn(s, "bn1", conv(s, "conv1", x, 2)))
    x = F.max_pool2d(stem_block(s, "layer1", x), 2)
    x = stem_block(s, "layer3", stem_block(s, "layer2", x))
    maps = []
    while f"score.{len(maps)}.weight" in s:
        i = len(maps)
        y = after(s, f"res.{i}", one_hourglass(s, f"hg.{i}", 3, x, block))
        y = relu(bn(s, f"fc.{i}.1", conv(s, f"fc.{i}.0", y)))
        maps.append(conv(s, f"score.{i}", y))
        if f"fc_.{i}.weight" in s:
            x = x + conv(s, f"fc_.{i}", y) + conv(s, f"score_.{i}", maps[-1])
    return maps


def hourglass(s: State, x: Tensor) -> list[Tensor]:
    def block(s: State, key: str, x: Tensor) -> Tensor:
        return preact_bottleneck(s, f"{key}.0", x)

    return stacked(s, x, block, block, block)


def fixed_fractional_pool(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.fractional_max_pool2d(x, 2, size, _random_samples=torch.zeros(*x.shape[:2], 2, dtype=x.dtype))


def pyramid_residual(s: State, key: str, x: Tensor) -> Tensor:
    def norm_conv(key: str, x: Tensor) -> Tensor:
        return preact(s, f"{key}.0", f"{key}.2", x) if f"{key}.2.weight" in s else conv(s, f"{key}.0", x)

    y = norm_conv(f"{key}.branch.1", norm_conv(f"{key}.branch.0", x))
    if f"{key}.pyramid.1.weight" in s:
        z = relu(bn(s, f"{key}.pyramid.1", norm_conv(f"{key}.pyramid.0", x)))
        C = sum(k.startswith(f"{key}.pyramid.3.convs.") and k.endswith("weight") for k in s)
        scaled = []
        for i in range(C):
            size = tuple(int(side * 2 ** (-(i + 1) / C)) for side in z.shape[-2:])
            level = conv(s, f"{key}.pyramid.3.convs.{i}", fixed_fractional_pool(z, size))
            scaled.append(F.interpolate(level, z.shape[-2:], mode="bilinear", align_corners=True))
        y = y + norm_conv(f"{key}.pyramid.4", sum(scaled))
    shortcut = norm_conv(f"{key}.shortcut", x) if f"{key}.shortcut.2.weight" in s else x
    return shortcut + norm_conv(f"{key}.merge", y)


def pyranet(s: State, x: Tensor) -> list[Tensor]:
    def after(s: State, key: str, x: Tensor) -> Tensor:
        return relu(bn(s, f"{key}.0", x))

    return stacked(s, x, pyramid_residual, pyramid_residual, after)
