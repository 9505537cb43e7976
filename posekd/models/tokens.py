"""The token-distilling encoder: patches of a feature map and learned keypoint tokens through a transformer.

Attribute names are those of TokenPose and DistilPose, whose checkpoints load strictly. Keypoint tokens stand first, the
256 visual tokens (of a 64x48 map in patches of 4x3) behind them. The fixed position table is added to the visual tokens
at the embedding and again before every block but the first, as both released code bases do (`sine-full` there). A
learnt table has rows for the keypoint tokens too, and is added at the embedding alone (`learnable` there).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


def sine_positions(rows: int, columns: int, dim: int) -> Tensor:
    """The 2-D sine table, float32 `[1, rows * columns, dim]`: half the channels for y, then half for x.

    Positions count from 1 and are scaled to 2 pi; temperature 10,000; sine and cosine alternate.
    """
    half = dim // 2
    frequency = 10_000 ** (2 * torch.div(torch.arange(half), 2, rounding_mode="floor") / half)

    def line(count: int) -> Tensor:
        position = torch.arange(1, count + 1) / (count + 1e-6) * 2 * math.pi
        angle = position[:, None] / frequency
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)

    y = line(rows)[:, None].expand(rows, columns, half)
    x = line(columns)[None].expand(rows, columns, half)
    return torch.cat((y, x), dim=2).reshape(1, rows * columns, dim)


class _Attention(nn.Module):
    """Multi-head self-attention `[B, N, D] -> [B, N, D]`."""

    def __init__(self, dim: int, heads: int, scale: float) -> None:
        super().__init__()
        self.heads, self.scale = heads, scale
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Every token asks all tokens."""
        q, k, v = self.to_qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.to_out(out.transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    """Two linear layers and an exact GELU; the released dropout of 0 leaves its number in the names."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Each token for itself."""
        return self.net(x)


class _PreNorm(nn.Module):
    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x))


class _Residual(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(x)


class _Blocks(nn.Module):
    """`depth` pre-norm blocks; the position table is added before every block but the first."""

    def __init__(self, dim: int, depth: int, heads: int, hidden: int, scale: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(
                (
                    _Residual(_PreNorm(dim, _Attention(dim, heads, scale))),
                    _Residual(_PreNorm(dim, _Mlp(dim, hidden))),
                )
            )
            for _ in range(depth)
        )

    def forward(self, x: Tensor, positions: Tensor | None) -> Tensor:
        """Tokens `[B, N, D]` after the last block; `positions`, if any, is `[1, N, D]`, 0 for keypoint tokens."""
        for i, block in enumerate(self.layers):
            x = x if i == 0 or positions is None else x + positions
            for part in block.children():
                x = part(x)
        return x


class TokenEncoder(nn.Module):
    """Feature maps `[B, C, h, w]` to keypoint tokens and visual tokens.

    Args:
        channels: C.
        grid: `(rows, columns)` of patches.
        patch: `(height, width)` of a patch in feature-map pixels.
        num_keypoints: K.
        dim: D, the length of a token.
        depth: blocks of each transformer.
        heads: attention heads.
        hidden: inner width of the blocks' MLP.
        scale: what attention's products are multiplied by.
        chained: transformers one behind the other (TokenPose-L has three); the keypoint tokens of all are concatenated.
        learned: whether the table of positions is learnt.
    """

    def __init__(
        self, channels: int, grid: tuple[int, int], patch: tuple[int, int], num_keypoints: int, dim: int, depth: int,
        heads: int, hidden: int, scale: float, chained: int = 1, learned: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.patch, self.num_keypoints, self.chained, self.learned = patch, num_keypoints, chained, learned
        self.keypoint_token = nn.Parameter(torch.zeros(1, num_keypoints, dim))
        table = torch.zeros(1, num_keypoints + grid[0] * grid[1], dim) if learned else sine_positions(*grid, dim)
        self.pos_embedding = nn.Parameter(table, requires_grad=learned)
        self.patch_to_embedding = nn.Linear(channels * patch[0] * patch[1], dim)
        names = ["transformer"] if chained == 1 else [f"transformer{i + 1}" for i in range(chained)]
        for name in names:
            setattr(self, name, _Blocks(dim, depth, heads, hidden, scale))
        self._names = names

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Keypoint tokens `[B, K, chained * D]` and visual tokens `[B, N, D]`, both before any norm."""
        height, width = self.patch
        visual = features.unflatten(3, (-1, width)).unflatten(2, (-1, height))  # [B, C, rows, height, columns, width]
        visual = self.patch_to_embedding(visual.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2))
        table = self.pos_embedding
        positions = table if self.learned else functional.pad(table, (0, 0, self.num_keypoints, 0))
        x = torch.cat((self.keypoint_token.expand(visual.shape[0], -1, -1), visual), dim=1) + positions
        again = None if self.learned else positions
        keypoints = []
        for name in self._names:
            x = getattr(self, name)(x, again)
            keypoints.append(x[:, : self.num_keypoints])
        return torch.cat(keypoints, dim=2), x[:, self.num_keypoints :]


def init_tokens(model: nn.Module) -> None:
    """Linear layers, keypoint tokens, learnt positions: a truncated normal of standard deviation 0.02; biases 0."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, TokenEncoder):
            nn.init.trunc_normal_(module.keypoint_token, std=0.02)
            if module.learned:
                nn.init.trunc_normal_(module.pos_embedding, std=0.02)
