"""How training inputs vary in look: colours as one matrix per input, then blur, noise and cut-out rectangles.

Drawn in a loader's worker; `ops.crop_warp` mixes the colours while it cuts, `inputs.looks` does the rest on the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from posekd.structures import Looks

STREAM = 1  # of random numbers, apart from those of positions: what varies in look moves nothing else
MIDDLE = 128.0  # the grey that contrast leaves alone
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601: red, green, blue
# Luma, and two axes of colour around it (NTSC's YIQ): hue is the angle between those.
YIQ = np.array([LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
SMALLEST_BLUR = 0.1  # pixels; below, a kernel is the identity to three digits


@dataclass(frozen=True)
class Photometric:
    """How training inputs vary in look; nothing varies by default.

    Attributes:
        brightness: largest change of brightness: values are multiplied by 1 - brightness to 1 + brightness, drawn
            evenly; in 0..1.
        contrast: largest change of contrast about grey 128: a factor of 1 - contrast to 1 + contrast, drawn evenly; in
            0..1.
        saturation: largest change of saturation: a factor of 1 - saturation to 1 + saturation on the distance from
            grey, drawn evenly; in 0..1.
        hue: largest turn of the hue in degrees, drawn evenly on both sides; in 0..180.
        greyscale: probability of no colour at all.
        blur: probability of a Gaussian blur.
        blur_sigma: smallest and largest standard deviation of the blur in pixels of the input, drawn evenly.
        noise: probability of normal noise.
        noise_sigma: smallest and largest standard deviation of the noise in grey levels, of 255, drawn evenly.
        cutout: probability of rectangles that are cut out and filled with the mean colour.
        cutout_count: most rectangles in an input; at least one is cut.
        cutout_size: smallest and largest side of a rectangle as a share of the input's, drawn evenly; in 0..1.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    greyscale: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.5, 2.0)
    noise: float = 0.0
    noise_sigma: tuple[float, float] = (2.0, 10.0)
    cutout: float = 0.0
    cutout_count: int = 3
    cutout_size: tuple[float, float] = (0.1, 0.3)

    def __post_init__(self) -> None:
        for name in ("greyscale", "blur", "noise", "cutout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, in 0..1, got {getattr(self, name)}")
        for name, limit in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 180)):
            if not 0 <= getattr(self, name) <= limit:
                raise ValueError(f"{name} is a largest change, in 0..{limit}, got {getattr(self, name)}")
        for name in ("blur_sigma", "noise_sigma", "cutout_size"):
            low, high = getattr(self, name)
            if not 0 <= low <= high or not math.isfinite(high):
                raise ValueError(f"{name} is a smallest and a largest value, neither negative, got {(low, high)}")
        if self.cutout_size[1] > 1:
            raise ValueError(f"cutout_size is a share of the input, at most 1, got {self.cutout_size}")
        if self.cutout_count < 1:
            raise ValueError(f"cutout_count must be at least 1 (cutout: 0 turns it off), got {self.cutout_count}")

    @property
    def colors(self) -> bool:
        """Whether colours vary."""
        return any(getattr(self, name) > 0 for name in ("brightness", "contrast", "saturation", "hue", "greyscale"))

    @property
    def varies(self) -> bool:
        """Whether anything does."""
        return self.colors or self.blur > 0 or self.noise > 0 or self.cutout > 0


def color_matrix(
    brightness: float = 1.0, contrast: float = 1.0, saturation: float = 1.0, hue: float = 0.0
) -> np.ndarray:
    """The matrix that turns the hue, then changes saturation, brightness and contrast, in this order.

    Args:
        brightness: factor on values.
        contrast: factor on the distance from grey 128.
        saturation: factor on the distance from grey of the same luma; 0 is greyscale.
        hue: degrees, from red towards green.

    Returns:
        float64 `[3, 4]`, for (red, green, blue, 1), 0 to 255, as `ops.crop_warp` takes it.
    """
    c, s = math.cos(math.radians(hue)), math.sin(math.radians(hue))
    turn = np.linalg.inv(YIQ) @ np.array([[1, 0, 0], [0, c, s], [0, -s, c]]) @ YIQ
    fade = saturation * np.eye(3) + (1 - saturation) * np.ones((3, 1)) * LUMA
    linear = contrast * brightness * fade @ turn
    return np.concatenate([linear, np.full((3, 1), MIDDLE * (1 - contrast))], 1)


@dataclass
class Look:
    """How one input looks.

    Attributes:
        color: `[3, 4]`, as of `color_matrix`.
        blur: sigma in input pixels; 0 for none.
        noise: sigma in grey levels of 255; 0 for none.
        noise_seed: of its noise.
        rectangles: (left, top, right, bottom) as shares of the input.
    """

    color: np.ndarray = field(default_factory=color_matrix)
    blur: float = 0.0
    noise: float = 0.0
    noise_seed: int = 0
    rectangles: list[tuple[float, float, float, float]] = field(default_factory=list)


def draw_look(photometric: Photometric, seed: int, epoch: int, row: int) -> Look:
    """Draws how an input looks, from (seed, epoch, row) alone.

    Every number is drawn whether or not it is used, so that turning one on leaves the others as they were.
    """
    p, rng = photometric, np.random.default_rng([seed, epoch, row, STREAM])
    names = ("brightness", "contrast", "saturation")
    factors = {name: 1 + getattr(p, name) * (2 * rng.random() - 1) for name in names}
    hue, grey = p.hue * (2 * rng.random() - 1), rng.random() < p.greyscale
    if grey:
        factors["saturation"] = 0.0
    blurred, blur = rng.random() < p.blur, rng.uniform(*p.blur_sigma)
    noisy, noise, noise_seed = rng.random() < p.noise, rng.uniform(*p.noise_sigma), int(rng.integers(2**62))
    cut, count = rng.random() < p.cutout, int(rng.integers(1, p.cutout_count + 1))
    return Look(
        color_matrix(**factors, hue=hue),
        blur if blurred and blur >= SMALLEST_BLUR else 0.0,
        noise if noisy else 0.0,
        noise_seed,
        [_rectangle(p, rng) for _ in range(count)] if cut else [],
    )


def _rectangle(photometric: Photometric, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """A rectangle with its centre anywhere in the input: it may reach beyond."""
    width, height = rng.uniform(*photometric.cutout_size, 2)
    x, y = rng.random(2)
    return float(x - width / 2), float(y - height / 2), float(x + width / 2), float(y + height / 2)


def looks_of(photometric: Photometric, seed: int, keys: Sequence[tuple[int, int]]) -> Looks | None:
    """How the inputs of a batch look.

    Args:
        photometric: the ranges.
        seed: of the draws.
        keys: (epoch, row) of each input.

    Returns:
        None where nothing varies at all.
    """
    if not photometric.varies:
        return None
    return pack_looks([draw_look(photometric, seed, epoch, row) for epoch, row in keys], colors=photometric.colors)


def pack_looks(looks: Sequence[Look], *, colors: bool = True) -> Looks:
    """Looks as tensors: what varies in none of them is empty; `colors`: whether their colours count."""
    blurred = [i for i, look in enumerate(looks) if look.blur]
    noisy = [i for i, look in enumerate(looks) if look.noise]
    most = max((len(look.rectangles) for look in looks), default=0)
    rectangles = np.zeros((len(looks), most, 4), np.float32)
    for row, look in zip(rectangles, looks, strict=True):
        row[: len(look.rectangles)] = np.array(look.rectangles, np.float32).reshape(-1, 4)
    matrices = np.array([look.color for look in looks], np.float32).reshape(-1, 3, 4)
    return Looks(
        colors=torch.from_numpy(matrices) if colors else torch.empty(0, 3, 4),
        blurred=torch.tensor(blurred, dtype=torch.int64),
        blurs=torch.from_numpy(_kernels([looks[i].blur for i in blurred])),
        noisy=torch.tensor(noisy, dtype=torch.int64),
        noises=torch.tensor([looks[i].noise for i in noisy], dtype=torch.float32),
        noise_seeds=[looks[i].noise_seed for i in noisy],
        rectangles=torch.from_numpy(rectangles),
    )


def _kernels(sigmas: Sequence[float]) -> np.ndarray:
    """Gaussians to three standard deviations of the widest, float32 `[n, taps]`, each of sum 1."""
    reach = math.ceil(3 * max(sigmas, default=0.0))
    steps = np.arange(-reach, reach + 1)
    kernels = np.exp(-0.5 * (steps / np.array(sigmas).reshape(-1, 1)) ** 2)
    return (kernels / kernels.sum(1, keepdims=True)).astype(np.float32)
