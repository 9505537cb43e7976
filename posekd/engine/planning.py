"""A recipe that fits one's own data: `posekd init` writes it, `posekd inspect` looks at the crops that it makes.

Rules of thumb, each beside its number: the recipe is a beginning, and every line of it can be changed.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from posekd.data import PoseRecords
from posekd.data.inspection import Facts
from posekd.geometry import PADDING
from posekd.models import create_model
from posekd.models.latency import measure_latency
from posekd.models.profile import activation_bytes
from posekd.names import unpaired

Budget = Literal["small", "medium", "large"]
STRIDE = 32  # the coarsest map of an HRNet of four branches: sides of the input are multiples
MAX_BATCH = 32
FILLED = 0.6  # boxes that take more of their images than this have little around them to show
MAX_EPOCHS = 1000  # of a few pictures: more passes only learn them by heart


@dataclass(frozen=True)
class Size:
    """What a budget buys.

    Attributes:
        pixels: of the network's input; its aspect is that of the boxes.
        teacher: name of the teacher, and settings to change.
        student: the same of the student.
        steps: optimiser steps of either run.
        rate: peak learning rate (AdamW).
        sigma: of the label Gaussians, in heatmap pixels.
        words: what it takes.
    """

    pixels: int
    teacher: tuple[str, dict[str, Any]]
    student: tuple[str, dict[str, Any]]
    steps: int
    rate: float
    sigma: float
    words: str


_SMALL_STEM = {"stem_width": 16, "stage1_width": 8, "stage1_blocks": 1}
BUDGETS: dict[str, Size] = {
    "small": Size(
        128 * 128,
        ("hrnet_w32", {"width": 16, "modules": [1, 1, 1], "blocks": 1, **_SMALL_STEM}),
        ("elpn_v1", {"width": 16, "modules": [1, 1], "blocks": 1, **_SMALL_STEM}),
        1200,
        0.004,
        1.0,
        "an hour or less on a few CPU cores; minutes on a GPU",
    ),
    "medium": Size(
        192 * 192,
        ("hrnet_w16", {}),
        ("elpn_v1", {"modules": [1, 1, 1]}),
        10_000,
        0.001,
        2.0,
        "an hour or two on a GPU",
    ),
    "large": Size(256 * 256, ("hrnet_w32", {}), ("elpn_v1", {}), 40_000, 0.0005, 2.0, "a day on a GPU"),
}
"""The quickstart's networks, then the papers' own; steps were chosen, not tuned."""


@dataclass(frozen=True)
class Plan:
    """The choices that `posekd init` makes from the data.

    Attributes:
        budget: the one asked for.
        size: `(height, width)` of the input.
        teacher: name and settings.
        student: name and settings.
        batch: people per step.
        epochs: passes over the training people.
        padding: factor by which crops are larger than boxes.
        cache_images: whether all decoded images fit into memory easily.
        flip: whether mirror images may be used.
        why_flip: in words.
        reasons: key of the recipe -> why it is what it is.
    """

    budget: Budget
    size: tuple[int, int]
    teacher: tuple[str, dict[str, Any]]
    student: tuple[str, dict[str, Any]]
    batch: int
    epochs: int
    padding: float
    cache_images: bool
    flip: bool
    why_flip: str
    reasons: dict[str, str] = field(default_factory=dict)


def make_plan(records: PoseRecords, facts: Facts, budget: Budget = "small") -> Plan:
    """Fits a recipe to data.

    Args:
        records: the training people.
        facts: about them.
        budget: how much may be computed.

    Raises:
        ValueError: fewer than two people.
    """
    if len(records) < 2:
        raise ValueError(f"{len(records)} labelled people are too few to learn from")
    what = BUDGETS[budget]
    aspect = float(facts.aspects[1])
    size = input_size(aspect, what.pixels)
    memory, where = memory_bytes()
    need = activation_bytes(_meta(what.teacher, facts.skeleton.num_keypoints, size))
    fits = max(1, 1 << int(math.log2(max(1, memory / 4 / need))))
    batch = max(1, min(MAX_BATCH, 1 << int(math.log2(max(1, len(records) // 4))), fits))
    epochs = min(MAX_EPOCHS, max(5, round(what.steps / max(1, len(records) // batch))))
    flip, why_flip = _may_flip(facts)
    filled = records.boxes[:, 2:].prod(1) / records.image_sizes[records.image_rows].prod(1)
    padding = 1.05 if float(np.median(filled)) > FILLED else PADDING
    decoded = int(records.image_sizes.prod(1).sum()) * 3
    return Plan(
        budget,
        size,
        what.teacher,
        what.student,
        batch,
        epochs,
        padding,
        cache_images=decoded < memory_bytes(gpu=False)[0] / 8,
        flip=flip,
        why_flip=why_flip,
        reasons={
            "size": f"height, width: boxes are {aspect:.2f} times as wide as high (median)",
            "batch": f"{len(records)} people; {need / 2**20:.0f} MiB each in the teacher's training, {where}",
            "padding": f"boxes take {np.median(filled):.0%} of their images (median)",
            "epochs": f"{epochs * max(1, len(records) // batch):,} steps",
        },
    )


STUDENTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("elpn_v2", {}),
    ("elpn_v1", {}),
    ("elpn_v1", {"modules": [1, 1, 1]}),
    ("elpn_v1", {"modules": [1, 1, 1], "blocks": 1, **_SMALL_STEM}),
    BUDGETS["small"].student,
    ("elpn_v1", {"width": 16, "modules": [1], "blocks": 1, **_SMALL_STEM}),
    ("elpn_v1", {"width": 8, "modules": [1], "blocks": 1, **_SMALL_STEM}),
)
"""From large to small, for `fit_latency`."""


def fit_latency(plan: Plan, K: int, seconds: float) -> Plan:
    """The plan with the largest of `STUDENTS` that takes no longer on this machine, with torch's present threads.

    Args:
        plan: gives the input's size.
        K: number of keypoints.
        seconds: of one image.

    Raises:
        ValueError: the smallest takes longer.
    """
    measured = math.inf
    for name, overrides in STUDENTS:
        model = create_model(name, K, size=plan.size, **overrides)
        measured = measure_latency(model, plan.size, seconds=0.3).median
        if measured <= seconds:
            where = f"{1e3 * measured:.1f} ms an image here, with {torch.get_num_threads()} threads"
            return replace(plan, student=(name, overrides), reasons={**plan.reasons, "student": where})
    raise ValueError(
        f"the smallest student takes {1e3 * measured:.1f} ms for {plan.size[0]} x {plan.size[1]} pixels here, more "
        f"than {1e3 * seconds:g} ms: allow more, or choose a smaller budget, whose input is smaller"
    )


def input_size(aspect: float, pixels: int) -> tuple[int, int]:
    """Height and width of about so many pixels, multiples of `STRIDE`, for boxes of a width over height."""
    aspect = min(max(aspect, 0.4), 2.5)
    height = math.sqrt(pixels / aspect)
    sides = (max(2, round(height / STRIDE)), max(2, round(height * aspect / STRIDE)))
    return sides[0] * STRIDE, sides[1] * STRIDE


def memory_bytes(*, gpu: bool = True) -> tuple[int, str]:
    """The memory to train in, and whose it is in words: the GPU's if there is one, else the machine's."""
    if gpu and torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory, "GPU memory"
    try:
        own = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        own = 8 << 30
    return own, f"{own / 2**30:.0f} GiB of memory"


def _meta(model: tuple[str, dict[str, Any]], K: int, size: tuple[int, int]) -> Any:
    with torch.device("meta"):
        return create_model(model[0], K, size=size, **model[1])


def _may_flip(facts: Facts) -> tuple[bool, str]:
    names = facts.skeleton.keypoints
    if facts.pairs:
        alone = unpaired(names, facts.skeleton.flip)
        if alone:
            return False, f"{', '.join(alone[:3])} tell a side and have no partner: name the pairs to use mirror images"
        return True, f"mirror pairs were {facts.pairs_from}"
    if len(names) <= 2:
        return True, "no keypoint has a left and a right"
    return False, "no mirror pairs are known: a mirrored picture would teach left for right. With `flip_pairs`, set 0.5"
