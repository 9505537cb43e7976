"""group_keypoints against one max pooling of the same maps, and against HigherHRNet's parser.

Max pooling (5x5, stride 1) is the first step of the official parser and of every plain PyTorch form of it: a yardstick,
not the same work. The parser is that of `baselines/official_grouping.py`, which gives the same people; it takes
seconds, so it is timed for one image and one crowd, and `--rounds` says how often.

Maps are as a network with a flip test gives them: 17 keypoints, heatmaps enlarged from half and two tag channels from a
quarter of the size, people at random places, an eighth of the keypoints hidden. "white noise" is what pruning likes
least: independent noise in every pixel of both.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from posekd.ops import group_keypoints, group_keypoints_list, top_k_peaks

from ..baselines import official_grouping
from ..harness import Case, options_from, run

JOINTS, SIZE, CHANNELS = 17, 512, 2
SIGMA, REACH = 2.0, 6.0  # of a keypoint's Gaussian and of its tag, in pixels of the half-size heatmap


def enlarged(maps: Tensor) -> Tensor:
    """Bilinear, to the full size, as the test code of HigherHRNet does."""
    return F.interpolate(maps, size=(SIZE, SIZE), mode="bilinear", align_corners=False)


def scene(people: int, seed: int, white: bool = False) -> tuple[Tensor, Tensor]:
    """Heatmaps `[17, 512, 512]` and tags `[17, 512, 512, 2]` of one image, float32."""
    rng = torch.Generator().manual_seed(seed)
    half = SIZE // 2
    heat = torch.rand(JOINTS, half, half, generator=rng) * 0.03
    tags = torch.randn(CHANNELS, JOINTS, half, half, generator=rng) * 0.1
    own = torch.stack([torch.randperm(people, generator=rng) * 3.0 + 1 for _ in range(CHANNELS)])
    cell = torch.randperm(36, generator=rng)[:people]  # of a 6 x 6 grid, so that few people hide one another
    centre = (torch.stack([cell % 6, cell // 6], -1)[:, None] + 0.5) * half / 6
    place = centre + (torch.rand(people, JOINTS, 2, generator=rng) - 0.5) * half / 6
    height = 0.3 + 0.7 * torch.rand(people, JOINTS, generator=rng)
    height[torch.rand(people, JOINTS, generator=rng) < 0.125] = 0
    grid = torch.arange(half)
    for person in range(people):
        x, y = (grid - place[person, :, axis, None] for axis in (0, 1))
        distance = x[:, None, :].square() + y[:, :, None].square()
        blob = height[person, :, None, None] * torch.exp(-distance / (2 * SIGMA**2))
        mine = (blob > heat) & (distance < REACH**2)
        heat = torch.where(mine, blob, heat)
        tags = torch.where(mine, own[:, person, None, None, None] + tags * 0.3, tags)
    heat, tags = enlarged(heat[None])[0], enlarged(F.avg_pool2d(tags, 2) if not white else tags)
    if white:
        heat = heat + torch.rand(heat.shape, generator=rng) * 0.03
        tags = tags + torch.randn(tags.shape, generator=rng) * 0.1
    return heat, tags.permute(1, 2, 3, 0).contiguous()


def batch(images: int, people: int, options: argparse.Namespace, white: bool = False) -> tuple[Tensor, Tensor]:
    """A batch of scenes, four different ones, on the device, in the dtype."""
    scenes = [scene(people, i, white) for i in range(min(images, 4))]
    heat, tags = (torch.stack(x) for x in zip(*(scenes[i % 4] for i in range(images)), strict=True))
    return heat.to(options.device, options.dtype), tags.to(options.device, options.dtype)


def case(name: str, ours: Callable[[], object], heat: Tensor, tags: Tensor, size: int, parser: bool = False) -> Case:
    """One row; bytes are those of the maps that must be read."""
    pool = {"max_pool2d(5, 1, 2)": lambda: F.max_pool2d(heat, 5, 1, 2)}
    if heat.device.type == "cpu" and len(heat) > 4:  # seconds per call, and no news
        pool = {}
    official = {"official parser's algorithm": lambda: official_grouping.parse(heat.float(), tags.float())}
    return Case(name, ours, {**pool, **(official if parser else {})}, size)


def check_same_people(heat: Tensor, tags: Tensor) -> None:
    """The baseline must do the same work: bit-identical keypoints."""
    for (ours, _), theirs in zip(group_keypoints_list(heat, tags), official_grouping.parse(heat, tags), strict=True):
        if not (ours.shape == theirs.shape and (ours.cpu().numpy() == theirs).all()):
            raise RuntimeError("group_keypoints and the official parser's algorithm found different people")


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Stages and the whole, by people and images."""
    kind = str(options.dtype).removeprefix("torch.")
    for images in (1, 4, 32):
        title = f"[{images}, {JOINTS}, {SIZE}, {SIZE}] x {CHANNELS} tags, {kind}"
        for people in (1, 10, 30) if images == 1 else (30,):
            heat, tags = batch(images, people, options)
            maps, both = (sum(x.numel() * x.element_size() for x in xs) for xs in ((heat,), (heat, tags)))
            if images == 1 and options.dtype == torch.float32:  # equal scores, which halves have, stand in any order
                check_same_people(heat, tags)
            whole = lambda h=heat, t=tags: group_keypoints(h, t)  # noqa: E731
            unrefined = lambda h=heat, t=tags: group_keypoints(h, t, refine=False)  # noqa: E731
            peaks = lambda h=heat, t=tags: top_k_peaks(h, t)  # noqa: E731
            name = f"{title}, {people} people"
            yield case(f"{name}, peaks alone", peaks, heat, tags, maps)
            yield case(f"{name}, without refinement", unrefined, heat, tags, maps)
            yield case(f"{name}, adjust and refine", whole, heat, tags, both, parser=images == 1 and people == 30)
    heat, tags = batch(1, 30, options, white=True)
    both = sum(x.numel() * x.element_size() for x in (heat, tags))
    yield case(f"30 people in white noise, {kind}", lambda: group_keypoints(heat, tags), heat, tags, both)


def main(argv: Sequence[str] | None = None) -> None:
    options = options_from(argv, __doc__.splitlines()[0])
    run("group_keypoints", cases(options), options)
