"""What SIMPLE does after its network, as a share of the network's own time: 32 people, one image of 512 x 512.

    python benchmarks/experiments/simple_after_network.py [--model simple_w18] [--rounds 5] [--channels-last]

One view. Processor time of one thread, which a busy machine changes less than a clock on the wall. The maps of people
are painted; the network sees noise, which costs as much.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from posekd import ops
from posekd.codecs import people
from posekd.models import create_model
from posekd.ops.reference.center_focal_loss import point_targets
from posekd.paradigms.single_network import SingleNetworkInference, find_people
from posekd.structures import PackedImageBatch, Pixels

SIDE, COUNT, K = 128, 32, 17  # of the maps; people; keypoints
BOX = torch.tensor([12.0, 26.0])


def painted() -> list[torch.Tensor]:
    """Ideal maps of 32 people in four rows."""
    place = torch.arange(COUNT)
    low = torch.stack((place % 8 * 15 + 4.0, place.div(8, rounding_mode="floor") * 30 + 3.0), 1)
    boxes = torch.cat((low, low + BOX), 1)[None]
    inside = torch.rand(COUNT, K, 2, generator=torch.Generator().manual_seed(1)) * BOX
    points = torch.cat((low[:, None] + inside, torch.ones(COUNT, K, 1)), -1)[None]
    maps = ops.render_heatmaps(points, (SIDE, SIDE), 2.0, "exact")[0]
    targets = point_targets(boxes, torch.tensor([COUNT]), (SIDE, SIDE), True)
    return [maps, targets.clamp(1e-4, 1 - 1e-4).logit(), torch.zeros(1, 6, SIDE, SIDE)]


def timed(what: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and its processor seconds."""
    start = time.thread_time()
    return what(), time.thread_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="simple_w18", help="name of a SIMPLE network")
    parser.add_argument("--rounds", type=int, default=5, help="after one that does not count")
    parser.add_argument("--channels-last", action="store_true", help="for network and images")
    options = parser.parse_args()
    torch.set_num_threads(1)
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    model = create_model(options.model).eval().to(memory_format=layout)  # type: ignore[call-overload]
    image = torch.randn(1, 3, 4 * SIDE, 4 * SIDE).contiguous(memory_format=layout)
    settings, said = SingleNetworkInference(flip_test=False), painted()
    to_image = torch.tensor([[[4.0, 0.0, 0.0], [0.0, 4.0, 0.0]]])
    packed = PackedImageBatch(
        pixels=Pixels.none(3), keypoints=torch.zeros(1, 0, K, 3), centers=torch.zeros(1, 2), scales=torch.ones(1, 2),
        rotations=torch.zeros(1), flips=torch.zeros(1, dtype=torch.bool), image_ids=torch.tensor([1]),
        image_sizes=torch.tensor([[4 * SIDE, 4 * SIDE]]), outlines=torch.zeros(1, 0, 4, 2),
    )  # fmt: skip

    def after() -> int:
        return len(find_people(model, people.final(said, K, settings), to_image, packed, settings))

    network, rest, found = [], [], 0
    with torch.inference_mode():
        for _ in range(options.rounds + 1):
            network.append(timed(lambda: model(image))[1])
            found, seconds = timed(after)
            rest.append(seconds)
    shares = sorted(b / a for a, b in zip(network[1:], rest[1:], strict=True))
    print(
        f"{options.model}, {found} people: network {statistics.median(network[1:]):.3f} s, the rest "
        f"{statistics.median(rest[1:]):.3f} s: {statistics.median(shares):.1%} ({shares[0]:.1%} to {shares[-1]:.1%})"
    )


if __name__ == "__main__":
    main()
