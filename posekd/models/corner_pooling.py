"""The corner and center pooling modules of CornerNet and CenterNet, with the names of the published checkpoints."""

from __future__ import annotations

from torch import Tensor, nn

from posekd.ops import center_pool, corner_pool_add, corner_pool_sum

TOP_LEFT, BOTTOM_RIGHT = ("top", "left"), ("bottom", "right")


class ConvBnRelu(nn.Module):
    """A padded convolution without bias, batch norm, ReLU: keys `conv.*` and `bn.*`."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """`relu(bn(conv(x)))`."""
        return self.relu(self.bn(self.conv(x)))


class _Pool(nn.Module):
    """Base of the three modules: two branches into `mid` channels, a sum of pools, and a residual tail."""

    def __init__(self, dim: int, mid: int) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("mid", mid)):
            if value < 1:
                raise ValueError(f"{name} must be a positive number of channels, got {value}")
        self.p1_conv1 = ConvBnRelu(dim, mid)
        self.p2_conv1 = ConvBnRelu(dim, mid)
        self.p_conv1 = nn.Conv2d(mid, dim, 3, padding=1, bias=False)
        self.p_bn1 = nn.BatchNorm2d(dim)
        self.conv1 = nn.Conv2d(dim, dim, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(dim)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = ConvBnRelu(dim, dim)

    def pooled(self, x: Tensor) -> Tensor:
        """The sum of the two branches' pools, `[B, mid, H, W]`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """`[B, dim, H, W] -> [B, dim, H, W]`."""
        pooled = self.p_bn1(self.p_conv1(self.pooled(x)))
        return self.conv2(self.relu1(pooled + self.bn1(self.conv1(x))))


def _check_directions(directions: tuple[str, str]) -> tuple[str, str]:
    if tuple(directions) not in (TOP_LEFT, BOTTOM_RIGHT):
        raise ValueError(f"directions must be {TOP_LEFT} or {BOTTOM_RIGHT}, got {tuple(directions)}")
    return directions[0], directions[1]


class CornerPool(_Pool):
    """The corner pooling module of CornerNet (Law and Deng 2018, figure 7), `[B, dim, H, W] -> [B, dim, H, W]`.

    For a bare pooling of one direction use `posekd.nn.CornerPool` or `posekd.ops.corner_pool`.

    Args:
        dim: channels in and out.
        directions: `("top", "left")` for top-left corners, `("bottom", "right")` for bottom-right ones.
        mid: width of the two branches; 128 in the published models, whatever `dim` is.
    """

    def __init__(self, dim: int, directions: tuple[str, str] = TOP_LEFT, mid: int = 128) -> None:
        super().__init__(dim, mid)
        self.vertical, self.horizontal = _check_directions(directions)

    def pooled(self, x: Tensor) -> Tensor:
        """`vertical(p1) + horizontal(p2)`."""
        return corner_pool_sum(self.p1_conv1(x), self.p2_conv1(x), (self.vertical, self.horizontal))


class CenterPool(_Pool):
    """The center pooling module of CenterNet (Duan et al. 2019, figure 5a), `[B, dim, H, W] -> [B, dim, H, W]`.

    For the bare pooling use `posekd.nn.CenterPool` or `posekd.ops.center_pool`.

    Args:
        dim: channels in and out.
        mid: width of the two branches.
    """

    def __init__(self, dim: int, mid: int = 128) -> None:
        super().__init__(dim, mid)

    def pooled(self, x: Tensor) -> Tensor:
        """Column maximum of the one branch plus row maximum of the other."""
        return center_pool(self.p1_conv1(x), self.p2_conv1(x))


class CascadeCornerPool(_Pool):
    """The cascade corner pooling module of CenterNet (figure 5b), `[B, dim, H, W] -> [B, dim, H, W]`.

    Before a branch pools along the border of an object it looks inward: the vertical branch along rows, the
    horizontal one along columns. Each of the three additions happens inside a pool.

    Args:
        dim: channels in and out.
        directions: `("top", "left")` for top-left corners, `("bottom", "right")` for bottom-right ones.
        mid: width of the branches.
    """

    def __init__(self, dim: int, directions: tuple[str, str] = TOP_LEFT, mid: int = 128) -> None:
        super().__init__(dim, mid)
        self.vertical, self.horizontal = _check_directions(directions)
        self.look_conv1 = ConvBnRelu(dim, mid)
        self.look_conv2 = ConvBnRelu(dim, mid)
        self.P1_look_conv = nn.Conv2d(mid, mid, 3, padding=1, bias=False)
        self.P2_look_conv = nn.Conv2d(mid, mid, 3, padding=1, bias=False)

    def pooled(self, x: Tensor) -> Tensor:
        """`vertical(P1(p1 + horizontal(look1))) + horizontal(P2(p2 + vertical(look2)))`."""
        down = self.P1_look_conv(corner_pool_add(self.look_conv1(x), self.p1_conv1(x), self.horizontal))
        across = self.P2_look_conv(corner_pool_add(self.look_conv2(x), self.p2_conv1(x), self.vertical))
        return corner_pool_sum(down, across, (self.vertical, self.horizontal))
