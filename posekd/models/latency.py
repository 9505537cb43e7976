"""How long a network takes on this machine, how many images a second it does, and what it needs in memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

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


def measure_latency(
    model: nn.Module, size: tuple[int, int], batch: int = 1, seconds: float = SECONDS, graph: bool = False
) -> Latency:
    """Times the network's forward pass in eval mode, where it lies, with torch's present threads.

    Args:
        model: of one image tensor `[batch, 3, H, W]`; left in the mode it was in.
        size: `(height, width)` of the images in pixels.
        batch: images in a pass.
        seconds: about how long to measure, after a first pass that does not count.
        graph: on a GPU, replay a CUDA graph of the pass, which spares the host the launches.
    """
    device = next(model.parameters()).device
    images = torch.zeros(batch, 3, *size, device=device)
    training = model.training
    model.eval()
    before = _peak(device)
    try:
        with torch.inference_mode():
            run = _captured(lambda: model(images)) if graph else lambda: model(images)
            times = _times(run, device, seconds)
    finally:
        model.train(training)
    low, median, high = _quantiles(times, 0.1, 0.5, 0.9)
    return Latency(batch, median, low, high, max(0, _peak(device) - (0 if device.type == "cuda" else before)))


def measure_ratios(
    models: Sequence[nn.Module], sizes: Sequence[tuple[int, int]], batch: int = 1, seconds: float = SECONDS
) -> list[tuple[float, float, float]]:
    """How many times as long each network takes as the first, pass beside pass, so that a busy machine slows all.

    Args:
        models: on one device.
        sizes: `(height, width)` of each network's images.
        batch: images in a pass.
        seconds: about how long to measure each network.

    Returns:
        Median, lower and upper quartile of each network's ratio; that of the first is 1.
    """
    device = next(models[0].parameters()).device
    modes = [model.training for model in models]
    images = [torch.zeros(batch, 3, *size, device=device) for size in sizes]
    try:
        with torch.inference_mode():
            once = [
                partial(_seconds, partial(model.eval(), x), device) for model, x in zip(models, images, strict=True)
            ]
            first = max(run() for run in once)
            rounds = [[run() for run in once] for _ in range(max(ROUNDS, min(1000, int(seconds / first))))]
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)
    columns = [[times[i] / times[0] for times in rounds] for i in range(len(models))]
    return [_quantiles(column, 0.5, 0.25, 0.75) for column in columns]


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


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return max(time.perf_counter() - start, 1e-6)


def _times(run: Callable[[], object], device: torch.device, seconds: float) -> list[float]:
    first = _seconds(run, device)  # memory is allocated, kernels are chosen
    rounds = max(ROUNDS, min(1000, int(seconds / first)))
    return [_seconds(run, device) for _ in range(rounds)]


def _quantiles(values: Sequence[float], *shares: float) -> Any:
    ordered = sorted(values)
    return tuple(ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in shares)


def _captured(run: Callable[[], object]) -> Callable[[], None]:
    """A CUDA graph of `run`, to be replayed. Never run here: no GPU was to be had."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):  # what is chosen and allocated at the first passes must not be captured
            run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not a POSIX system
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
