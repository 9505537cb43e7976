"""Whether an exported network that sees whole images finds the people that the network finds.

Who belongs to whom follows from where keypoints are. What a rounding may change is tried out: the network's output is
decoded again, several times, with noise of that size. A keypoint that stays where it is has a place beyond doubt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from posekd.data import LoaderSettings, PoseSource
from posekd.deploy.deviation import LARGEST_SHIFT, TIES, Deviation
from posekd.deploy.exported import ExportedFinder
from posekd.deploy.load import Ready
from posekd.names import match
from posekd.paradigms import paradigm_of
from posekd.paradigms.inference import evaluating, open_batches
from posekd.structures import Instances

DRAWS = 4
"""How often the output is decoded again: a choice between two equal values shows in all but one case of 16."""
STRANGER = 100.0  # pixels: what a keypoint that only one of two people has counts when they are compared


class Shaken(nn.Module):
    """A network that remembers what it said, and can say it again with noise.

    Args:
        model: the network, in eval mode.
        share: size of the noise, as a share of an output's range.
    """

    def __init__(self, model: Any, share: float) -> None:
        super().__init__()
        self.model, self.share = model, share
        self.said: list[list[Tensor]] = []
        self.noise: torch.Generator | None = None
        self.turn = 0

    def again(self, seed: int) -> None:
        """From here on what was said is repeated from its beginning, with other noise."""
        self.noise, self.turn = torch.Generator().manual_seed(seed), 0

    def forward(self, images: Tensor) -> list[Tensor]:
        """What the network says of images, now or when it was asked first."""
        if self.noise is None:
            self.said.append(list(self.model(images)))
            return self.said[-1]
        self.turn += 1
        return [maps + self._random(maps) * (maps.amax() - maps.amin()) for maps in self.said[self.turn - 1]]

    def group(self, crops: Tensor) -> Tensor:
        """The second half of a network that has one."""
        masks: Tensor = self.model.group(crops)
        return masks if self.noise is None else masks * (1 + self._random(masks))

    def _random(self, like: Tensor) -> Tensor:
        return (torch.rand(like.shape, generator=self.noise).to(like) * 2 - 1) * self.share


def compare_people(
    found: Ready,
    finder: ExportedFinder,
    source: PoseSource,
    batch_size: int = 16,
    on_image: Callable[[int, int], None] | None = None,
) -> tuple[Instances, Instances, Deviation]:
    """`verify.compare` where the network finds the people."""
    records, K = source.records, found.skeleton.num_keypoints
    total = 2 * records.num_images
    people, again = _of_network(found, source, batch_size, TIES[finder.facts.precision], on_image, total)
    order = list(match(found.skeleton.keypoints, records.skeleton.keypoints))
    for instances in (people, *again):
        instances.keypoints = instances.keypoints[:, order]

    def on_other(done: int, images: int) -> None:
        if on_image is not None:
            on_image(images + done, total)

    others = finder.find_in(source, on_other)
    shifts, scores, alone = _apart(people, others)
    sure = people.keypoints[..., 2].numpy() > 0
    for instances in again:
        sure &= _apart(people, instances)[0] < LARGEST_SHIFT / 2
    seen = np.isfinite(shifts) & (people.keypoints[..., 2].numpy() > 0)
    columns = [shifts[seen[:, k], k] for k in range(K)]
    return (
        people,
        others,
        Deviation(
            names=records.skeleton.keypoints,
            persons=len(people),
            median=np.array([np.median(column) if len(column) else 0.0 for column in columns]),
            worst=np.array([column.max(initial=0) for column in columns]),
            sure=int(sure.sum()),
            worst_sure=float(shifts[sure].max(initial=0)),
            score=float(scores[sure & seen].max(initial=0)),
            alone=alone,
        ),
    )


def _of_network(
    found: Ready,
    source: PoseSource,
    batch_size: int,
    share: float,
    on_image: Callable[[int, int], None] | None,
    total: int,
) -> tuple[Instances, list[Instances]]:
    """The network's people, and those of each repetition with noise."""
    paradigm, model, K = paradigm_of(found.model), found.model, found.skeleton.num_keypoints
    parts: list[list[Instances]] = [[] for _ in range(1 + DRAWS)]
    done = 0
    with evaluating(model):
        for packed in open_batches(model, source, found.settings, loader=LoaderSettings(batch_size, workers=0)):
            shaken = Shaken(model, share)
            for draw, part in enumerate(parts):
                if draw:
                    shaken.again(draw)
                part.append(paradigm.predict(shaken, packed, model.spec, found.skeleton.flip, found.settings))
            done += len(packed)
            if on_image is not None:
                on_image(done, total)
    people, *again = (Instances.concatenate(part, K) for part in parts)
    return people, again


def _apart(people: Instances, others: Instances) -> tuple[np.ndarray, np.ndarray, int]:
    """How far people are from those of others that are most like them, and how many are alone.

    Returns:
        Distances of keypoints in pixels, float64 `[N, K]`, infinite where only one of both has the keypoint;
        differences of their scores; how many people of either side have no partner.
    """
    ours, theirs = (instances.keypoints.double().numpy() for instances in (people, others))
    shifts, scores = np.full(ours.shape[:2], np.inf), np.full(ours.shape[:2], np.inf)
    alone = 0
    images, other_images = people.image_ids.numpy(), others.image_ids.numpy()
    for image in np.unique(np.concatenate([images, other_images])):
        rows, free = np.flatnonzero(images == image), np.flatnonzero(other_images == image).tolist()
        alone += abs(len(rows) - len(free))
        for row in rows:
            if not free:
                break
            gaps = _gaps(ours[row], theirs[free])
            best = int(np.minimum(gaps, STRANGER).mean(1).argmin())
            shifts[row], scores[row] = gaps[best], np.abs(ours[row, :, 2] - theirs[free.pop(best), :, 2])
    return shifts, scores, alone


def _gaps(person: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Distances `[n, K]` of the keypoints `[K, 3]` to those of n others; 0 if neither has one, infinite if one has."""
    has, have = person[:, 2] > 0, others[..., 2] > 0
    gaps = np.linalg.norm(others[..., :2] - person[:, :2], axis=-1)
    return np.where(has & have, gaps, np.where(has == have, 0.0, np.inf))
