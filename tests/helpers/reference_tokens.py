"""TokenPose, DistilPose and DeepPose written a second time, as plain functions of a state dict.

Written from the papers and the facts measured on the released code; shares no code with the package.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.reference_models import State, bn, bottleneck, conv, relu


def stem(s: State, x: Tensor) -> Tensor:
    for i in (1, 2):
        x = relu(bn(s, f"backbone.bn{i}", conv(s, f"backbone.conv{i}", x, 2)))
    while f"backbone.layer1.{(i := i + 1) - 3}.conv1.weight" in s:
        x = bottleneck(s, f"backbone.layer1.{i - 3}", x)
    return x


def linear(s: State, key: str, x: Tensor) -> Tensor:
    return x @ s[f"{key}.weight"].T + s.get(f"{key}.bias", 0)


def layer_norm(s: State, key: str, x: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * s[f"{key}.weight"] + s[f"{key}.bias"]


def sine_table(rows: int, columns: int, dim: int) -> Tensor:
    """DETR's: 1-based, scaled to 2 pi; channel c of a half has the frequency 10000^(-2 (c // 2) / half)."""
    half = dim // 2
    table = torch.zeros(rows, columns, dim, dtype=torch.float64)
    for row in range(rows):
        for column in range(columns):
            for start, position, count in ((0, row, rows), (half, column, columns)):
                angle = (position + 1) / (count + 1e-6) * 2 * math.pi
                for c in range(half):
                    wave = math.cos if c % 2 else math.sin
                    table[row, column, start + c] = wave(angle / 10_000 ** (2 * (c // 2) / half))
    return table.view(rows * columns, dim)


def encoder(
    s: State, key: str, maps: Tensor, patch: tuple[int, int], heads: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Keypoint tokens and visual tokens; position is added at the start and before every block but the first."""
    (height, width), (B, _, H, W) = patch, maps.shape
    rows = [maps[:, :, y : y + height, x : x + width] for y in range(0, H, height) for x in range(0, W, width)]
    patches = torch.stack([r.permute(0, 2, 3, 1).reshape(B, -1) for r in rows], 1)  # row, column, channel fastest
    table = sine_table(H // height, W // width, s[f"{key}.keypoint_token"].shape[-1]).to(maps.dtype)
    visual = linear(s, f"{key}.patch_to_embedding", patches) + table
    keypoints = s[f"{key}.keypoint_token"].expand(B, -1, -1)
    layer = 0
    while (block := f"{key}.transformer.layers.{layer}") + ".0.fn.norm.weight" in s:
        x = torch.cat((keypoints, visual + table if layer else visual), 1)
        q, k, v = linear(s, f"{block}.0.fn.fn.to_qkv", layer_norm(s, f"{block}.0.fn.norm", x)).chunk(3, -1)
        mixed = []
        for columns in torch.arange(q.shape[-1]).chunk(heads):
            weights = (q[..., columns] @ k[..., columns].transpose(1, 2) * scale).exp()
            mixed.append(weights / weights.sum(-1, keepdim=True) @ v[..., columns])
        x = x + linear(s, f"{block}.0.fn.fn.to_out.0", torch.cat(mixed, -1))
        inner = linear(s, f"{block}.1.fn.fn.net.0", layer_norm(s, f"{block}.1.fn.norm", x))
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        x = x + linear(s, f"{block}.1.fn.fn.net.3", inner)
        keypoints, visual = x[:, : keypoints.shape[1]], x[:, keypoints.shape[1] :]
        layer += 1
    return keypoints, visual


def tokenpose(s: State, x: Tensor, patch: tuple[int, int], heads: int, scale: float) -> tuple[Tensor, ...]:
    maps, head = stem(s, x), "keypoint_head.tokenpose"
    keypoints, visual = encoder(s, head, maps, patch, heads, scale)
    out, layer = keypoints, 0
    while f"{head}.mlp_head.{layer}.weight" in s:
        step = layer_norm if s[f"{head}.mlp_head.{layer}.weight"].ndim == 1 else linear
        out = step(s, f"{head}.mlp_head.{layer}", out)
        layer += 1
    return out.unflatten(-1, maps.shape[-2:]), keypoints, visual


def distilpose(s: State, x: Tensor, patch: tuple[int, int], heads: int, scale: float) -> tuple[Tensor, ...]:
    """x, y by a sigmoid, the score as it is, sigmas by softplus; and the tokens."""
    head = "keypoint_head.tokenhead"
    keypoints, visual = encoder(s, head, stem(s, x), patch, heads, scale)
    out = linear(s, f"{head}.mlp_head.1", layer_norm(s, f"{head}.mlp_head.0", keypoints))
    xy, score, sigmas = out.split((2, 1, 2), -1)
    return 1 / (1 + (-xy).exp()), score, (1 + sigmas.exp()).log(), keypoints, visual


def deeppose(s: State, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = relu(bn(s, "backbone.bn1", conv(s, "backbone.conv1", x, 2)))
    x = F.max_pool2d(x, 3, 2, 1)
    for stage in (1, 2, 3, 4):
        block = 0
        while (key := f"backbone.layer{stage}.{block}") + ".conv1.weight" in s:
            x = bottleneck(s, key, x, stride=2 if stage > 1 and block == 0 else 1)
            block += 1
    x = x.mean((2, 3))
    coords, scores, sigmas = (linear(s, f"keypoint_head.{name}", x) for name in ("fc", "fc_scores", "fc_sigmas"))
    return coords.unflatten(1, (-1, 2)), scores[..., None], (1 + sigmas.exp()).log().unflatten(1, (-1, 2))
