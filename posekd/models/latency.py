"""How long a network takes on this machine, how many images a second it does, and what it needs in memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

SECONDS = 1.0  # of measuring, for each batch size
ROUNDS = 5  # at least


@dataclass(frozen=True)
class Latency:
    """What was measured of one batch size.

    Attributes:
        batch: images in a pass.
        median: seconds of a pass.
        low: the 10th percentile.
        high: the 90th.
        peak_bytes: on a GPU the most memory that torch had in use; on a CPU by how much the process grew; 0 where that
            is not known.
    """

    batch: int
    median: float
    low: float
    high: float
    peak_bytes: int

    @property
    def images_per_second(self) -> float:
        """Throughput."""
        return self.batch / self.median


def measure_latency(model: nn.Module, size: tuple[int, int], batch: int = 1, seconds: float = SECONDS) -> Latency:
    """Times the network's forward pass in eval mode, where it lies, with torch's present threads.

    Args:
        model: of one image tensor `[batch, 3, H, W]`; left in the mode it was in.
        size: `(height, width)` of the images in pixels.
        batch: images in a pass.
        seconds: about how long to measure, after a first pass that does not count.
    """
    device = next(model.parameters()).device
    images = torch.zeros(batch, 3, *size, device=device)
    training = model.training
    model.eval()
    before = _peak(device)
    try:
        with torch.inference_mode():
            times = _times(lambda: model(images), device, seconds)
    finally:
        model.train(training)
    ordered = sorted(times)
    low, median, high = (ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in (0.1, 0.5, 0.9))
    return Latency(batch, median, low, high, max(0, _peak(device) - (0 if device.type == "cuda" else before)))


def measure_large_convolution(device: torch.device, seconds: float = 0.3) -> float:
    """Multiply-accumulates a second that one large convolution reaches here: what a network could at best."""
    layer = nn.Conv2d(64, 64, 3, padding=1, bias=False).to(device).eval()
    images = torch.zeros(4, 64, 64, 64, device=device)
    with torch.inference_mode():
        times = sorted(_times(lambda: layer(images), device, seconds))
    return 4 * 64 * 64 * 64 * 64 * 9 / times[len(times) // 2]


def count_layers(model: nn.Module) -> int:
    """Layers with weights that run one after another or beside each other: each is at least one call."""
    return sum(isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) for module in model.modules())


def _times(run: Callable[[], object], device: torch.device, seconds: float) -> list[float]:
    def once() -> float:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    first = once()  # memory is allocated, kernels are chosen
    rounds = max(ROUNDS, min(1000, int(seconds / max(first, 1e-6))))
    return [once() for _ in range(rounds)]


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not a POSIX system
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
