"""What looks wrong in a labelled dataset: each with a count, an example and the setting that mends it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from posekd.coco_rules import looks_like_corners
from posekd.data.images import file_orientation
from posekd.data.inspection.facts import Facts
from posekd.data.records import PoseSource
from posekd.names import unpaired

ACKNOWLEDGEABLE = ("corner_boxes", "normalised", "shared_images")
"""What is refused until a recipe's `acknowledged` names it; the rest is only warned of."""
FEW_LABELS = 20
ORIENTATIONS = 2000  # images whose tags are read, in a large dataset
_SHARE = 0.9


@dataclass(frozen=True)
class Judgement:
    """Something that looks wrong.

    Attributes:
        kind: a word for it, e.g. `corner_boxes`.
        count: how many it concerns.
        of: of how many.
        unit: what is counted.
        what: what they look like, in words; goes on after the count and the unit.
        example: the first of them.
        mend: what to do, with the setting that does it.
    """

    kind: str
    count: int
    of: int
    unit: str
    what: str
    example: str
    mend: str

    @property
    def refused(self) -> bool:
        """Whether training stops here until the recipe acknowledges it."""
        return self.kind in ACKNOWLEDGEABLE

    def __str__(self) -> str:
        return f"{self.count} of {self.of} {self.unit} {self.what} (e.g. {self.example}): {self.mend}"


def judge(source: PoseSource, facts: Facts, *, flip: float = 0.0, orientation: bool = True) -> list[Judgement]:
    """Judges a dataset, what is refused first.

    Args:
        source: the dataset.
        facts: of its records.
        flip: probability of a mirror image in training.
        orientation: whether the labels may not fit images with an EXIF orientation; looks into the files.
    """
    found: list[Judgement] = []
    for rule in (_corner_boxes, _normalised, _outside_boxes, _outside_images):
        found.extend(rule(source))
    found.extend(_names(facts, flip))
    found.extend(_few_labels(facts))
    if facts.sigmas_guessed:
        found.append(
            Judgement(
                "sigmas",
                facts.skeleton.num_keypoints,
                facts.skeleton.num_keypoints,
                "OKS sigmas",
                f"are guessed ({facts.skeleton.sigmas[0]:g} each), and AP depends on them",
                facts.skeleton.keypoints[0],
                "give `sigmas` on both datasets (`posekd sigmas` estimates them), or judge by pixels",
            )
        )
    if orientation:
        found.extend(_orientations(source))
    return found


def looks_normalised(values: np.ndarray) -> bool:
    """Whether coordinates are fractions of the image by the look of them: none is above 1, and not all are whole."""
    return bool(len(values) and np.abs(values).max() <= 1.0 and (values != np.round(values)).any())


def _corner_boxes(source: PoseSource) -> Iterator[Judgement]:
    records = source.records
    boxes = records.boxes if records.stated_boxes is None else records.stated_boxes
    odd = looks_like_corners(boxes, records.image_sizes[records.image_rows], records.keypoints)
    if odd.any():
        row = int(np.flatnonzero(odd)[0])
        box = [round(float(v), 1) for v in boxes[row]]
        height, width = records.image_sizes[records.image_rows[row]].tolist()
        yield Judgement(
            "corner_boxes",
            int(odd.sum()),
            len(records),
            "boxes",
            "look like corners (left, top, right, bottom) where (x, y, width, height) is meant",
            f"{box} in {_name(source, row)} of {width} x {height} pixels",
            "write width and height into `bbox` (`posekd convert FILE --boxes corners`)",
        )


def _normalised(source: PoseSource) -> Iterator[Judgement]:
    records = source.records
    labelled = records.keypoints[..., 2] > 0
    per_person = [
        looks_normalised(points[seen][:, :2]) for points, seen in zip(records.keypoints, labelled, strict=True)
    ]
    if per_person and np.mean(per_person) > _SHARE:
        row = per_person.index(True)
        point = [round(float(v), 3) for v in records.keypoints[row, np.flatnonzero(labelled[row])[0], :2]]
        yield Judgement(
            "normalised",
            sum(per_person),
            len(records),
            "people",
            "have all keypoints between 0 and 1, as if divided by the image's size; pixels are meant",
            f"{point} in {_name(source, row)}",
            "multiply by width and height (`posekd convert FILE` does)",
        )


def _outside_boxes(source: PoseSource) -> Iterator[Judgement]:
    records = source.records
    slack = 0.1 * records.boxes[:, None, 2:]
    low, high = records.boxes[:, None, :2] - slack, records.boxes[:, None, :2] + records.boxes[:, None, 2:] + slack
    yield from _mostly_outside(
        source,
        low,
        high,
        "outside_boxes",
        "their box",
        "look at the crops (`posekd inspect --draw`): is the box another person's, or of other units?",
    )


def _outside_images(source: PoseSource) -> Iterator[Judgement]:
    sizes = source.records.image_sizes[source.records.image_rows]
    high = sizes[:, None, ::-1].astype(float)
    yield from _mostly_outside(
        source,
        np.zeros_like(high),
        high,
        "outside_images",
        "the image",
        "were the images resized, or turned by their EXIF tag (`apply_orientation: true`), after labelling?",
    )


def _mostly_outside(
    source: PoseSource, low: np.ndarray, high: np.ndarray, kind: str, what: str, mend: str
) -> Iterator[Judgement]:
    """People of whose labelled keypoints more than half lie outside `[N, 1, 2]` corners."""
    points = source.records.keypoints
    labelled = points[..., 2] > 0
    outside = ((points[..., :2] < low) | (points[..., :2] > high)).any(-1) & labelled
    odd = outside.sum(1) > 0.5 * labelled.sum(1)
    if odd.any():
        row = int(np.flatnonzero(odd)[0])
        yield Judgement(
            kind,
            int(odd.sum()),
            len(points),
            "people",
            f"have most of their labelled keypoints outside {what}",
            f"{int(outside[row].sum())} of {int(labelled[row].sum())} in {_name(source, row)}",
            mend,
        )


def _names(facts: Facts, flip: float) -> Iterator[Judgement]:
    if not flip:
        return
    names, skeleton = facts.skeleton.keypoints, facts.skeleton
    mend = "give `flip_pairs`, or set `augmentation.flip: 0` and `inference.flip_test: false`"
    alone = unpaired(names, skeleton.flip)
    if alone:
        yield Judgement(
            "pairs",
            len(alone),
            len(names),
            "keypoint names",
            f"tell a side and have no partner, while `flip` is {flip:g}",
            alone[0],
            mend,
        )
    elif not facts.pairs and len(names) > 2:
        yield Judgement(
            "pairs",
            len(names),
            len(names),
            "keypoints",
            f"have no mirror pair among them, while `flip` is {flip:g}: right if none has a left and a right",
            ", ".join(names[:3]),
            mend,
        )


def _few_labels(facts: Facts) -> Iterator[Judgement]:
    few = [(int(n), name) for n, name in zip(facts.labels, facts.skeleton.keypoints, strict=True) if n < FEW_LABELS]
    if few and facts.labelled_people:
        number, name = min(few)
        yield Judgement(
            "few_labels",
            len(few),
            len(facts.labels),
            "keypoints",
            f"have fewer than {FEW_LABELS} labels: little is learnt of them, and their scores are mostly chance",
            f"{name} has {number}",
            "label more, or leave them out of the category's `keypoints`",
        )


def _orientations(source: PoseSource) -> Iterator[Judgement]:
    names = [source.image_name(row) for row in range(min(source.records.num_images, ORIENTATIONS))]
    turned = [(name, tag) for name in names if (tag := file_orientation(name)) != 1]
    if turned:
        looked = " looked at" if source.records.num_images > ORIENTATIONS else ""
        yield Judgement(
            "orientation",
            len(turned),
            len(names),
            f"images{looked}",
            "have an EXIF orientation: viewers turn them, and their pixels are read as stored",
            f"{turned[0][0]} has {turned[0][1]}",
            "set `apply_orientation: true` if the labels were drawn on what a viewer shows",
        )


def _name(source: PoseSource, row: int) -> str:
    records = source.records
    return f"annotation {records.sample_ids[row]}, {source.image_name(int(records.image_rows[row]))}"


def shared(pairs: Sequence[tuple[str, str]], images: int) -> list[Judgement]:
    """The judgement on images that both splits hold, if there are any; `images` are those of the first."""
    if not pairs:
        return []
    example = " is ".join(pairs[0]) if pairs[0][0] != pairs[0][1] else pairs[0][0]
    return [
        Judgement(
            "shared_images",
            len(pairs),
            images,
            "training images",
            "are in both splits, so the score is partly that of pictures that were learnt",
            example,
            "split anew (`posekd split`)",
        )
    ]
