"""Bottom-up post-processing against the network itself: what HigherHRNet's users wait for.

    python -m benchmarks.bottomup_postprocessing [--rounds 25] [--threads 2] [--json FILE]

One image of 512x683 pixels, seen by HigherHRNet-W32 at 512x704 with flip test: two passes of the network, or what comes
after them. The network's own maps would hold no people (its weights are random here), so painted ones stand in their
place, of the sizes it gives: 30 people at random places, an eighth of their keypoints hidden, noise everywhere. "After"
is everything from the network's outputs to people in image pixels: enlarging, averaging and mirroring the maps,
projecting them to the input's size, peaks, matching, adjusting, refining, back-projection.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from posekd import ops
from posekd.models import create_model
from posekd.paradigms.bottom_up import BottomUpInference, aggregate, ask, group_people, resized
from posekd.skeleton import COCO
from posekd.structures import Instances

from .harness import Case, options_from, run

HEIGHT, WIDTH, PEOPLE, JOINTS = 512, 683, 30, 17
REACH = 6.0  # of a keypoint's tag, in pixels of the tag map


class Painted(nn.Module):
    """Gives the painted maps of an image and of its mirror image in turn, at no cost."""

    def __init__(self, outputs: Sequence[list[Tensor]]) -> None:
        super().__init__()
        self.outputs, self.calls = outputs, 0

    def forward(self, images: Tensor) -> list[Tensor]:
        """What the network would give."""
        self.calls += 1
        return self.outputs[(self.calls - 1) % 2]


def scene(size: tuple[int, int], seed: int = 0) -> list[list[Tensor]]:
    """Outputs for an image of `size` and for its mirror image: `[1, 34, h/4, w/4]`, `[1, 17, h/2, w/2]`."""
    rng = torch.Generator().manual_seed(seed)
    height, width = size
    cells = torch.randperm(36, generator=rng)[:PEOPLE]
    corner = torch.stack((cells % 6 * (width // 6), cells // 6 * (height // 6)), -1)[:, None]
    place = corner + torch.rand(PEOPLE, JOINTS, 2, generator=rng) * torch.tensor([width // 6 - 40, height // 6 - 40])
    seen = (torch.rand(PEOPLE, JOINTS, 1, generator=rng) > 0.125) * 2.0
    points = torch.cat((place, seen), -1)
    mirrored = points[:, list(COCO.flip)].clone()
    mirrored[..., 0] = width - 1 - mirrored[..., 0]
    own = torch.randperm(PEOPLE, generator=rng) * 2.0 + 1
    return [paint(people, own, size, rng) for people in (points, mirrored)]


def paint(people: Tensor, own: Tensor, size: tuple[int, int], rng: torch.Generator) -> list[Tensor]:
    """Heatmaps at both resolutions and tags at the coarse one, with noise."""
    maps = []
    for stride in (4, 2):
        shape = (size[0] // stride, size[1] // stride)
        heat = ops.render_heatmaps(people[None] / torch.tensor([stride, stride, 1]), shape, 2.0, "higherhrnet")[0]
        maps.append(heat * 0.9 + torch.rand(heat.shape, generator=rng) * 0.04)  # noise, or mirrored peaks would tie
    h, w = maps[0].shape[2:]
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    nearest, tags = torch.full((JOINTS, h, w), REACH**2), torch.zeros(JOINTS, h, w)
    for person, tag in zip(people / torch.tensor([4, 4, 1]), own, strict=True):
        px, py, seen = (person[:, i, None, None] for i in range(3))
        distance = torch.where(seen > 0, (x - px).square() + (y - py).square(), torch.inf)
        tags = torch.where(distance < nearest, tag, tags)
        nearest = torch.minimum(distance, nearest)
    tags = (tags + torch.randn(tags.shape, generator=rng) * 0.1)[None]
    return [torch.cat((maps[0], tags), 1), maps[1]]


def cases(options: argparse.Namespace) -> Iterator[Case]:
    settings = BottomUpInference(max_people=30)
    size = resized(HEIGHT, WIDTH, 512, 1.0, 1.0)
    image_sizes = torch.tensor([[HEIGHT, WIDTH]], device=options.device)
    image_ids = torch.zeros(1, dtype=torch.int64, device=options.device)
    images = torch.randn(1, 3, *size, device=options.device)
    outputs = [[maps.to(options.device) for maps in each] for each in scene(size)]
    model = create_model("higherhrnet_w32").to(options.device).eval()

    def after(settings: BottomUpInference = settings) -> Instances:
        painted = Painted(outputs)
        with torch.inference_mode():
            maps = aggregate(lambda _: ask(painted, images, COCO.flip, settings), size, settings)
            return group_people(*maps, image_ids, image_sizes, settings)

    def network() -> None:
        with torch.inference_mode():
            model(images)
            model(images.flip(-1))

    with torch.inference_mode():
        maps = aggregate(lambda _: ask(Painted(outputs), images, COCO.flip, settings), size, settings)
    found = len(after())
    title = f"{HEIGHT}x{WIDTH}, {found} people found of {PEOPLE}, 2 tag channels"
    baselines = {"HigherHRNet-W32 with flip": network}
    yield Case(f"{title}, all of it", after, baselines)
    yield Case(f"{title}, grouping alone", lambda: group_people(*maps, image_ids, image_sizes, settings), baselines)


def main(argv: Sequence[str] | None = None) -> None:
    options = options_from(argv, __doc__.splitlines()[0])
    run("bottomup_postprocessing", cases(options), options)


if __name__ == "__main__":
    main()
