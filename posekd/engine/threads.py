"""How many threads a run on a CPU uses, and whether the machine has them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

SLACK = 0.75  # of a core: what a shell and a browser use


@contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """Torch's and the kernels' threads within a block; None leaves them as they are."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cores() -> float:
    """Processor cores that this process may use: those it is bound to, and no more than its container's share."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return min(float(bound), int(quota) / int(period))  # "max" is no number: no limit
    return float(bound)


def oversubscribed(threads: int) -> str:
    """A sentence if others and these threads together want more cores than there are; empty otherwise.

    Args:
        threads: of this run.
    """
    have = cores()
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):  # not everywhere
        load = 0.0
    if threads + load <= have + SLACK:
        return ""
    free = max(1, int(have - load))
    busy = f"others keep {load:.1f} of the {have:g} cores busy" if load >= SLACK else f"there are {have:g} cores"
    wanted = f"{threads} thread{'s' if threads > 1 else ''}"
    advice = f"; {free} (--train.threads {free}) may be much faster" if free < threads else ""
    return f"this process uses {wanted}, and {busy}: threads that wait for a core slow all others down{advice}"
