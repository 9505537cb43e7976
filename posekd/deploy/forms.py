"""How networks of a paradigm become a file, and how what the file gives becomes people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn

from posekd.data import PoseSource
from posekd.data.loading.boxes import crops_of
from posekd.deploy import grouping
from posekd.deploy.facts import Facts
from posekd.deploy.graphs import TopDownGraph
from posekd.deploy.load import Ready
from posekd.deploy.plain import LARGEST_MAP
from posekd.deploy.whole_graphs import BottomUpGraph, PeopleGraph
from posekd.paradigms import BOTTOM_UP, SINGLE_NETWORK, TOP_DOWN, Paradigm
from posekd.paradigms import bottom_up as tagged
from posekd.paradigms import single_network as single
from posekd.structures import Instances

Feed = dict[str, np.ndarray]
Run = Callable[[Feed], Mapping[str, np.ndarray]]
"""From a graph's inputs by name to its outputs by name."""


@dataclass(frozen=True)
class Form:
    """A paradigm's networks in a file.

    Attributes:
        paradigm: of the networks.
        module: from a network and the half precision to a module that the exporter can follow.
        inputs: example inputs by name.
        dynamic: for each input the names of its sizes that may be anything.
        outputs: names of the outputs.
        find: the people of one image (row) of a dataset, before duplicates are removed; the last argument is how many
            boxes go through the network together.
        feed: inputs of the graph, for calibration, from a row of a dataset: a person's, or an image's.
        grouped: whether people are grouped outside the graph (`deploy.grouping`).
    """

    paradigm: Paradigm
    module: Callable[[Ready, bool], nn.Module]
    inputs: Callable[[], dict[str, Tensor]]
    dynamic: Mapping[str, Mapping[int, str]]
    outputs: tuple[str, ...]
    find: Callable[[Run, Facts, PoseSource, int, int], Instances]
    feed: Callable[[PoseSource, int], Feed]
    grouped: bool = False


# ---- Boxes that are given ------------------------------------------------------------------------------------------


def _find_in_boxes(run: Run, facts: Facts, source: PoseSource, row: int, batch_size: int) -> Instances:
    """The people in the boxes of one image."""
    records, skeleton = source.records, facts.skeleton
    rows = np.flatnonzero(records.image_rows == row)
    if not len(rows):
        return Instances.concatenate([], skeleton.num_keypoints)
    boxes = records.boxes[rows].astype(np.float32)
    exact = records.are_exact()[rows]
    given = np.where(exact[:, None], _shrunk(boxes, facts.padding), boxes)
    image = source.load_image(row)
    parts = [
        run({"image": image, "boxes": given[start : start + batch_size]})["keypoints"]
        for start in range(0, len(rows), batch_size)
    ]
    keypoints = torch.from_numpy(np.concatenate(parts))
    refuse_non_finite(bool(keypoints.isfinite().all()), source, row)
    _, scales = crops_of(records, facts.spec.size, facts.padding, rows)
    return Instances(
        keypoints=keypoints,
        scores=keypoints[..., 2].mean(1),
        boxes=torch.from_numpy(boxes),
        box_scores=torch.from_numpy(records.box_scores[rows]),
        areas=scales.prod(-1),
        image_ids=torch.from_numpy(records.image_ids[records.image_rows[rows]]),
        sample_ids=torch.from_numpy(records.sample_ids[rows]),
    )


def _shrunk(boxes: np.ndarray, padding: float) -> np.ndarray:
    """Boxes that the graph's padding makes into those given: of crops that no padding should enlarge."""
    sides = boxes[:, 2:] / padding
    return np.concatenate([boxes[:, :2] + (boxes[:, 2:] - sides) / 2, sides], 1).astype(np.float32)


def refuse_non_finite(finite: bool, source: PoseSource, row: int) -> None:
    """Refuses what is no number, as prediction with the network itself does.

    Raises:
        FloatingPointError: names the image.
    """
    if not finite:
        raise FloatingPointError(
            f"the exported network gives NaN or infinite values for image {int(source.records.image_ids[row])}: check "
            "the weights it was made of, or export it as fp32"
        )


# ---- Whole images --------------------------------------------------------------------------------------------------


def _find_peaks(run: Run, facts: Facts, source: PoseSource, row: int, batch_size: int) -> Instances:
    """The people of one image, grouped from a graph's peaks."""
    image = source.load_image(row)
    height, width = image.shape[:2]
    short = facts.settings.size or min(facts.spec.size)
    tagged.input_size(height, width, short, max(facts.settings.scales), facts.settings)  # refuses very long images
    outputs = run({"image": image[None]})
    total = float(outputs["heatmaps"].sum(dtype=np.float64) + outputs["tag_maps"].sum(dtype=np.float64))
    refuse_non_finite(bool(np.isfinite(total)), source, row)
    ((keypoints, scores),) = grouping.people(outputs, asdict(facts.settings))
    ids = torch.full((len(scores),), int(source.records.image_ids[row]), dtype=torch.int64)
    return tagged.as_people(torch.from_numpy(keypoints), torch.from_numpy(scores), ids)


def _find_given_people(run: Run, facts: Facts, source: PoseSource, row: int, batch_size: int) -> Instances:
    """The people of one image, as the graph lists them."""
    image = source.load_image(row)
    height, width = image.shape[:2]
    short = facts.settings.size or min(facts.spec.size)
    ((high, wide),) = single.input_sizes(height, width, short, facts.settings)
    if max(high, wide) > LARGEST_MAP * single.STRIDE:
        raise ValueError(
            f"an image of {height} x {width} pixels would become an input of {high} x {wide}, and exported networks "
            f"see up to {LARGEST_MAP * single.STRIDE} pixels of a side: cut it into pieces, or export with "
            "--letterbox"
        )
    outputs = {name: torch.from_numpy(value[0]) for name, value in run({"image": image[None]}).items()}
    finite = all(bool(value.isfinite().all()) for value in outputs.values())
    refuse_non_finite(finite, source, row)
    found = outputs["box_scores"] > 0
    keypoints, scores, boxes, box_scores = (
        outputs[name][found] for name in ("keypoints", "scores", "boxes", "box_scores")
    )
    ids = torch.full((len(scores),), int(source.records.image_ids[row]), dtype=torch.int64)
    return single.as_people(keypoints, scores, boxes, box_scores, ids)


# ---- The table -----------------------------------------------------------------------------------------------------

# Of the example sizes no two are equal, or 1, which an exporter might take for a rule.
_IMAGES = {"image": {0: "B", 1: "H", 2: "W"}}


def _images() -> dict[str, Tensor]:
    return {"image": torch.zeros(2, 97, 143, 3, dtype=torch.uint8)}


def _image_of(source: PoseSource, row: int) -> Feed:
    return {"image": source.load_image(row)[None]}


FORMS = {
    form.paradigm.name: form
    for form in (
        Form(
            TOP_DOWN,
            lambda found, half: TopDownGraph(found.model, found.skeleton, found.settings, found.padding, half),
            lambda: {
                "image": torch.zeros(37, 53, 3, dtype=torch.uint8),
                "boxes": torch.tensor([[3.0, 4.0, 20.0, 30.0]]).repeat(5, 1),
            },
            {"image": {0: "H", 1: "W"}, "boxes": {0: "N"}},
            ("keypoints",),
            _find_in_boxes,
            lambda source, row: {
                "image": source.load_image(int(source.records.image_rows[row])),
                "boxes": source.records.boxes[row : row + 1].astype(np.float32),
            },
        ),
        Form(
            BOTTOM_UP,
            lambda found, half: BottomUpGraph(found.model, found.skeleton, found.settings, half),
            _images,
            _IMAGES,
            ("peaks", "scores", "tags", "heatmaps", "tag_maps", "matrices"),
            _find_peaks,
            _image_of,
            grouped=True,
        ),
        Form(
            SINGLE_NETWORK,
            lambda found, half: PeopleGraph(found.model, found.skeleton, found.settings, half),
            _images,
            _IMAGES,
            ("keypoints", "scores", "boxes", "box_scores"),
            _find_given_people,
            _image_of,
        ),
    )
}
"""Paradigm -> how its networks are exported."""


def calibration(source: PoseSource, paradigm: Paradigm, rows: int) -> Iterator[Feed]:
    """Inputs of a graph from at most so many people (or images, where a network sees whole ones) over a dataset."""
    count = len(source.records) if paradigm.crops_boxes else source.records.num_images
    for row in np.unique(np.linspace(0, count - 1, min(rows, count)).astype(int)).tolist():
        yield FORMS[paradigm.name].feed(source, row)
