"""Blocks that several families share. Attribute names are those of the official checkpoints."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from posekd.models.corner_pooling import CascadeCornerPool as CascadeCornerPool
from posekd.models.corner_pooling import CenterPool as CenterPool
from posekd.models.corner_pooling import CornerPool as CornerPool

ConvFactory = Callable[[int, int], nn.Module]


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A padded 3x3 convolution without bias: a batch norm always follows."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 1x1 convolution without bias."""
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)


def conv_bn(conv: nn.Module, channels: int, *, relu: bool) -> nn.Sequential:
    """`conv`, batch norm over its `channels` outputs and, if asked, ReLU: keys `0.*` and `1.*`."""
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(channels)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if relu else nn.Sequential(*layers)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, `[B, C, H, W] -> [B, C, H, W]` (He et al. 2016).

    Args:
        channels: C.
        conv: makes the two convolutions from (in, out) channels. With `SeparableConv` this is ELPN's
            light block, in the MobileNet form: the batch norm and ReLU after the pointwise convolution
            are the block's own.
    """

    def __init__(self, channels: int, conv: ConvFactory = conv3x3) -> None:
        super().__init__()
        self.conv1 = conv(channels, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """`relu(x + residual(x))`."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + x)


class SeparableConv(nn.Module):
    """Depthwise 3x3, batch norm, ReLU, pointwise 1x1, `[B, in, H, W] -> [B, out, H, W]`.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        dw_bn: False drops the batch norm and ReLU between the two convolutions (ELPN's published counts
            allow both readings).
    """

    def __init__(self, in_channels: int, out_channels: int, dw_bn: bool = True) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        self.norm = nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True)) if dw_bn else nn.Identity()
        self.pointwise = conv1x1(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Filters each channel in space, then mixes the channels."""
        return self.pointwise(self.norm(self.depthwise(x)))


class GlobalContext(nn.Module):
    """The global context block of GCNet (Cao et al. 2019, figure 4d), `[B, C, H, W] -> [B, C, H, W]`.

    One attention map over all pixels pools the features into a context vector, two 1x1 convolutions
    transform it, and the result is added to every pixel. The last convolution starts at zero, so that
    the block starts as the identity.

    Args:
        channels: C.
        ratio: r; the transform's inner width is `max(min_width, C // r)`.
        min_width: floor of the inner width. Below 2 the layer norm sees a single number, returns only its
            bias, and the attention never gets a gradient.
    """

    def __init__(self, channels: int, ratio: int = 16, min_width: int = 4) -> None:
        super().__init__()
        inner = max(min_width, channels // ratio)
        self.mask = nn.Conv2d(channels, 1, 1)
        self.reduce = nn.Conv2d(channels, inner, 1)
        self.norm = nn.LayerNorm([inner, 1, 1])
        self.relu = nn.ReLU(inplace=True)
        self.expand = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`x` plus the transformed context vector at every pixel."""
        attention = self.mask(x).flatten(2).softmax(dim=-1)  # [B, 1, H*W]
        context = x.flatten(2) @ attention.transpose(1, 2)  # [B, C, 1]
        return x + self.expand(self.relu(self.norm(self.reduce(context.unsqueeze(-1)))))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut, `[B, in, H, W] -> [B, 4 * planes, H/stride, W/stride]`.

    The stride sits on the 3x3 convolution.

    Args:
        in_channels: channels in.
        planes: width of the 3x3 convolution; the block gives four times as many channels.
        stride: 1 or 2.
        context: a `GlobalContext` on the residual branch, before the addition (ELPN's Efficient
            Bottleneck); none by default.
    """

    expansion = 4

    def __init__(self, in_channels: int, planes: int, stride: int = 1, context: GlobalContext | None = None) -> None:
        super().__init__()
        out_channels = planes * self.expansion
        self.conv1 = conv1x1(in_channels, planes)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = conv1x1(planes, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.gc: nn.Module = context or nn.Identity()
        self.relu = nn.ReLU(inplace=True)
        same = stride == 1 and in_channels == out_channels
        self.downsample = (
            None if same else conv_bn(conv1x1(in_channels, out_channels, stride), out_channels, relu=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`relu(shortcut(x) + residual(x))`."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.gc(self.bn3(self.conv3(out)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(out + shortcut)


def init_weights(model: nn.Module) -> None:
    """Initialises as the official HRNet and SimpleBaseline code does.

    Convolutions and transposed convolutions from a normal distribution of standard deviation 0.001 with
    zero bias, norms to weight 1 and bias 0 (PyTorch's default). A batch norm behind a convolution makes
    its scale immaterial; the small head starts every heatmap near zero, which most of the target is.
    The last convolution of a `GlobalContext` starts at zero, as in GCNet.
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, std=0.001)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, GlobalContext):
            nn.init.zeros_(module.expand.weight)
