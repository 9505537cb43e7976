"""Every op against its definition on the devices of this machine, in seconds: what `posekd doctor` runs.

The tests compare them on hundreds of shapes; this says whether an installation works here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from posekd import ops
from posekd.ops import library

TOLERANCE = 1e-4  # of the largest value of an output, in float32
Case = Callable[[torch.device], list[Tensor]]


@dataclass(frozen=True)
class Outcome:
    """What became of the ops on a device.

    Attributes:
        device: its name.
        kernels: whether compiled kernels ran there; otherwise there was nothing to compare.
        checked: names of the ops that were run.
        failed: name of an op -> what is wrong.
        seconds: how long it took.
    """

    device: str
    kernels: bool
    checked: tuple[str, ...]
    failed: dict[str, str]
    seconds: float


def check_ops(device: torch.device) -> Outcome:
    """Runs every op and its derivative on a device, as compiled and by its plain definition, and compares."""
    start, failed = time.perf_counter(), {}
    cases = dict(_cases())
    for name, case in cases.items():
        try:
            compiled = case(device)
            with library.definitions():
                expected = case(device)
            worst = max((_difference(a, b) for a, b in zip(compiled, expected, strict=True)), default=0.0)
        except Exception as error:  # whatever a broken installation raises is what is to be told
            failed[name] = _reason(error)
            continue
        if not worst <= TOLERANCE:
            failed[name] = f"differs from its definition by {worst:.1e} of its largest value"
    kernels = library.core() is not None if device.type == "cpu" else library.cuda_kernels()[0]
    return Outcome(str(device), kernels, tuple(cases), failed, time.perf_counter() - start)


OLDER = "the compiled core is of another version than these sources"


def _reason(error: Exception) -> str:
    text = str(error)
    if isinstance(error, TypeError) and "incompatible function arguments" in text:  # pybind11's
        return OLDER
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"


def _difference(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    a, b = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-3))


def _draw(device: torch.device, *shape: int, seed: int = 0) -> Tensor:
    """Values in 0..1, the same on every device."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def _with_gradients(call: Callable[..., Any], *inputs: Tensor) -> list[Tensor]:
    """What a function gives, and the gradients of its sum, twice: a kernel may compute the first ones early."""
    own = [x.clone().requires_grad_() for x in inputs]
    output = call(*own)
    outputs = list(output) if isinstance(output, tuple) else [output]
    total = torch.stack([(out * (i + 1)).sum() for i, out in enumerate(outputs)]).sum()
    first = torch.autograd.grad(total, own, retain_graph=True)
    return [*outputs, *first, *torch.autograd.grad(total, own)]


def _cases() -> Iterator[tuple[str, Case]]:
    """Name of each op -> what runs it on a device."""
    yield from _pooling()
    yield from _losses()
    yield from _boxes()
    yield from _keypoints()


def _maps(device: torch.device, seed: int = 0) -> Tensor:
    return _draw(device, 2, 3, 21, 18, seed=seed)


def _pooling() -> Iterator[tuple[str, Case]]:
    yield "corner_pool", lambda d: _with_gradients(lambda x: ops.corner_pool(x, "top"), _maps(d))
    yield (
        "corner_pool_add",
        lambda d: _with_gradients(lambda x, y: ops.corner_pool_add(x, y, "left"), _maps(d), _maps(d, 1)),
    )
    yield (
        "corner_pool_sum",
        lambda d: _with_gradients(lambda x, y: ops.corner_pool_sum(x, y, ("bottom", "right")), _maps(d), _maps(d, 1)),
    )
    yield "center_pool", lambda d: _with_gradients(ops.center_pool, _maps(d))


def _people(device: torch.device) -> Tensor:
    """Two people of three keypoints in each of two maps, `[2, 2, 3, 3]`."""
    points = _draw(device, 2, 2, 3, 3, seed=2) * torch.tensor([17.0, 20.0, 0.0], device=device)
    return points + torch.tensor([0.0, 0.0, 2.0], device=device)


def _losses() -> Iterator[tuple[str, Case]]:
    yield (
        "distill_loss",
        lambda d: _with_gradients(
            lambda s: ops.distill_loss(s, _maps(d, 1), keypoints=_people(d)[:, 0].contiguous()), _maps(d)
        ),
    )
    yield (
        "simulated_heatmap_loss",
        lambda d: _with_gradients(
            lambda p, s: ops.simulated_heatmap_loss(p, 1 + s, _maps(d), _draw(d, 2, 3, seed=5)),
            _draw(d, 2, 3, 2, seed=3),
            _draw(d, 2, 3, 2, seed=4),
        ),
    )
    yield "tag_loss", lambda d: _with_gradients(lambda t: ops.tag_loss(t, _people(d)), 4 * _maps(d))
    yield (
        "mimic_loss",
        lambda d: _with_gradients(
            lambda maps, targets: ops.mimic_loss(maps, _table(d), targets, None, 0.5), _maps(d), _draw(d, 2, 3, 8, 6)
        ),
    )
    yield (
        "center_focal_loss",
        lambda d: _with_gradients(
            lambda x: ops.center_focal_loss(x, _table(d)[:, None, 1:].contiguous() / 2, _ones(d)), 4 * _maps(d) - 2
        ),
    )


def _table(device: torch.device) -> Tensor:
    """Boxes (image, x1, y1, x2, y2) `[2, 5]`."""
    return torch.tensor([[0.0, 2.3, 1.2, 25.0, 34.0], [1.0, 8.0, 4.0, 30.0, 38.5]], device=device)


def _ones(device: torch.device) -> Tensor:
    return torch.ones(2, dtype=torch.int64, device=device)


def _boxes() -> Iterator[tuple[str, Case]]:
    yield (
        "roi_align",
        lambda d: _with_gradients(lambda x: ops.roi_align(x, _table(d), (5, 4), 0.5, sampling_ratio=2), _maps(d)),
    )

    def points(d: torch.device) -> Tensor:
        return ops.box_points(8 * _maps(d) - 4, _draw(d, 2, 6, 21, 18), top_k=4)

    def corners(d: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Top-left and bottom-right corners, and centres between them."""
        pairs = torch.tensor([[[2.0, 3, 0.9], [4, 4, 0.5]], [[8.0, 15, 0.6], [14, 12, 0.7]]], device=d)
        centres = torch.tensor([[5.0, 9, 0.9], [9, 8, 0.8]], device=d)
        return pairs[None, None], centres[None], torch.tensor([16.0], device=d)

    yield "box_points", lambda d: [points(d)]
    yield "pair_corners", lambda d: list(ops.pair_corners(*corners(d)))
    size = [40.0, 40.0]
    yield (
        "decode_boxes",
        lambda d: list(
            ops.decode_boxes(8 * _maps(d) - 4, _draw(d, 2, 6, 21, 18), torch.tensor(size, device=d), top_k=4)
        ),
    )


def _keypoints() -> Iterator[tuple[str, Case]]:
    def crops(d: torch.device) -> list[Tensor]:
        images = [(255 * _draw(d, 30, 40, 3, seed=s)).byte() for s in (6, 7)]
        turn = torch.tensor([[1.2, 0.3, 2.0], [-0.3, 1.2, 5.0]], device=d).expand(2, 2, 3).contiguous()
        buffer = torch.empty(2, 3, 16, 12, device=d)
        return [ops.crop_warp(images, turn, (16, 12)), ops.crop_warp(images, turn, (16, 12), out=buffer)]

    def drawn(d: torch.device) -> list[Tensor]:
        people, size = _people(d), (21, 18)
        buffer = torch.empty(2, 3, *size, device=d)
        into = ops.render_heatmaps(people, size, kind="msra", out=buffer)
        return [*ops.render_heatmaps(people, size, kind="exact"), *into]

    def peaks(d: torch.device) -> Tensor:
        return ops.top_k_peaks(_maps(d), 5 * _maps(d, 1), max_people=4)

    def refined(d: torch.device) -> list[Tensor]:
        people = ops.match_by_tag(peaks(d))
        return [ops.refine(_maps(d), 5 * _maps(d, 1), people.keypoints, people.counts)]

    def poses(d: torch.device) -> Tensor:
        return 40 * _draw(d, 5, 17, 3, seed=8).repeat(2, 1, 1) + _draw(d, 10, 17, 3, seed=9)

    def scores(d: torch.device) -> tuple[Tensor, Tensor]:
        return _draw(d, 10, seed=10), torch.full((10,), 900.0, device=d)

    yield "crop_warp", crops
    yield "render_heatmaps", drawn
    yield "decode_heatmaps", lambda d: [ops.decode_heatmaps(_maps(d), method) for method in ("quarter", "dark")]
    yield "top_k_peaks", lambda d: [peaks(d)]
    yield "match_by_tag", lambda d: [*_tensors(ops.match_by_tag(peaks(d)))]
    yield "refine", refined
    yield "group_keypoints", lambda d: [*_tensors(ops.group_keypoints(_maps(d), 5 * _maps(d, 1)))]
    yield (
        "group_keypoints_list",
        lambda d: [x for pair in ops.group_keypoints_list(_maps(d), _maps(d, 1)) for x in pair],
    )
    yield "oks", lambda d: [ops.oks(poses(d)[:3], poses(d), scores(d)[1][:3], scores(d)[1])]
    yield "oks_nms", lambda d: [cast(Tensor, ops.oks_nms(poses(d), *scores(d), threshold=0.8))]
    yield "soft_oks_nms", lambda d: [cast(Tensor, ops.soft_oks_nms(poses(d), *scores(d), threshold=0.5))]


def _tensors(people: ops.GroupedKeypoints) -> tuple[Tensor, Tensor, Tensor]:
    """People without the padding, which may be anything."""
    kept = [people.keypoints[i, :n] for i, n in enumerate(people.counts.tolist())]
    scores = [people.scores[i, :n] for i, n in enumerate(people.counts.tolist())]
    return torch.cat(kept), torch.cat(scores), people.counts
