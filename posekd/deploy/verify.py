"""Whether an exported network says what the network says: keypoint by keypoint, on the same people."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from posekd.codecs import heatmaps
from posekd.data import LoaderSettings, PoseSource
from posekd.deploy.deviation import TIES, Deviation
from posekd.deploy.exported import ExportedFinder
from posekd.deploy.load import Ready
from posekd.deploy.verify_people import compare_people
from posekd.inputs import prepare_crops
from posekd.names import match
from posekd.paradigms import paradigm_of
from posekd.paradigms.inference import evaluating, open_batches
from posekd.paradigms.top_down import TopDownInference, as_people, ask
from posekd.structures import Instances


def compare(
    found: Ready,
    finder: ExportedFinder,
    source: PoseSource,
    *,
    batch_size: int = 16,
    on_done: Callable[[int, int], None] | None = None,
) -> tuple[Instances, Instances, Deviation]:
    """Runs a network and its export on a dataset.

    Args:
        found: the network, with the settings that were exported.
        finder: the export.
        source: the dataset, with as many keypoints as the network.
        batch_size: people (or images) per batch.
        on_done: called with (rows done, twice their number) while both run.

    Returns:
        The people that the network has found and those of the export, before duplicates are removed, and how far they
        are apart.

    Raises:
        ValueError: another number of keypoints, or nobody to compare.
    """
    records, K = source.records, found.skeleton.num_keypoints
    crops = paradigm_of(found.model).crops_boxes
    rows = len(records) if crops else records.num_images
    if records.skeleton.num_keypoints != K or not rows:
        raise ValueError(
            f"{rows} {'people' if crops else 'images'} with {records.skeleton.num_keypoints} keypoints cannot tell "
            f"whether a network with {K} keypoints was exported well"
        )
    both = compare_crops if crops else compare_people
    return both(found, finder, source, batch_size, on_done)


def compare_crops(
    found: Ready,
    finder: ExportedFinder,
    source: PoseSource,
    batch_size: int = 16,
    on_person: Callable[[int, int], None] | None = None,
) -> tuple[Instances, Instances, Deviation]:
    """`compare` where boxes are given: people are the same and stand in the same order."""
    records = source.records
    total = 2 * len(records)
    people, sure = _of_network(found, source, batch_size, finder.facts.precision, on_person, total)
    order = list(match(found.skeleton.keypoints, records.skeleton.keypoints))
    people.keypoints, sure = people.keypoints[:, order], sure[:, order]

    def on_image(done: int, images: int) -> None:
        if on_person is not None:
            on_person(len(records) + done * len(records) // images, total)

    others = finder.find_in(source, on_image)
    place = {sample: row for row, sample in enumerate(others.sample_ids.tolist())}
    others = others.take([place[sample] for sample in people.sample_ids.tolist()])
    gaps = (people.keypoints - others.keypoints).double().numpy()
    shifts, certain = np.linalg.norm(gaps[..., :2], axis=-1), sure.numpy()
    return (
        people,
        others,
        Deviation(
            names=records.skeleton.keypoints,
            persons=len(people),
            median=np.median(shifts, 0),
            worst=shifts.max(0),
            sure=int(certain.sum()),
            worst_sure=float(shifts[certain].max(initial=0)),
            score=float(np.abs(gaps[..., 2]).max()),
        ),
    )


def _of_network(
    found: Ready,
    source: PoseSource,
    batch_size: int,
    precision: str,
    on_person: Callable[[int, int], None] | None,
    total: int,
) -> tuple[Instances, Tensor]:
    """The network's people, and which of their keypoints are beyond doubt, bool `[N, K]`."""
    model, settings = found.model, found.settings
    loader = LoaderSettings(batch_size, workers=0, padding=found.padding)
    people: list[Instances] = []
    sure: list[Tensor] = []
    with evaluating(model):
        for packed in open_batches(model, source, settings, loader=loader):
            crops = prepare_crops(packed, model.spec, found.skeleton.flip)  # type: ignore[arg-type]
            codec, said = ask(model, crops.images, found.skeleton.flip, settings)
            people.append(as_people(crops, codec.decode(said, crops.matrices, model.spec.size, settings)))
            certain = torch.ones(said.shape[:2], dtype=torch.bool)  # nothing is chosen in a regression
            sure.append(beyond_doubt(said, settings, TIES[precision]) if codec is heatmaps else certain)
            if on_person is not None:
                on_person(sum(map(len, people)), total)
    return Instances.concatenate(people, found.skeleton.num_keypoints), torch.cat(sure)


def beyond_doubt(heatmaps: Tensor, settings: TopDownInference, share: float) -> Tensor:
    """Which keypoints rounding cannot move by a pixel: bool `[B, K]`.

    Their highest value is above 0 and above every other one, and the neighbours between which a quarter of a pixel is
    decided differ, both by more than a share of the map's range.

    Args:
        heatmaps: `[B, K, h, w]`.
        settings: how they are decoded.
        share: what rounding may change, as a share of a map's range.
    """
    h, w = heatmaps.shape[2:]
    flat = heatmaps.flatten(2)
    least = share * (flat.amax(2) - flat.amin(2))
    (first, second), place = flat.topk(2).values.unbind(2), flat.argmax(2)
    sure = (first > least) & (first - second > least)
    if settings.decode != "quarter":
        return sure
    x, y = place % w, place // w

    def at(dy: int, dx: int) -> Tensor:
        index = (y + dy).clamp(0, h - 1) * w + (x + dx).clamp(0, w - 1)
        return flat.gather(2, index[..., None]).squeeze(2)

    return sure & ((at(0, 1) - at(0, -1)).abs() > least) & ((at(1, 0) - at(-1, 0)).abs() > least)
