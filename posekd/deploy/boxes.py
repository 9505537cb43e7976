"""Boxes of people for networks that crop them: from label and result files of COCO's format, by image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from posekd import coco_rules
from posekd.coco_rules import read_json
from posekd.deploy.frames import Frame


@dataclass(frozen=True)
class Boxes:
    """The people of one image before their keypoints are known.

    Attributes:
        boxes: float64 `[n, 4]` (x, y, width, height) in pixels.
        scores: float64 `[n]`, confidence of the detector.
        ids: int64 `[n]`, annotation id, or row of the detection.
    """

    boxes: np.ndarray
    scores: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)

    @staticmethod
    def of(boxes: Sequence[Sequence[float]] | np.ndarray, scores: Sequence[float] | np.ndarray | None = None) -> Boxes:
        """Boxes and their scores (1 without), numbered from 0."""
        own = np.asarray(boxes, np.float64).reshape(-1, 4)
        return Boxes(own, np.ones(len(own)) if scores is None else np.asarray(scores, np.float64), np.arange(len(own)))


FindBoxes = Callable[[Frame], Boxes]
"""Gives the boxes of each frame; those of a frame without an image are not used."""


@dataclass
class BoxFile:
    """Boxes read from a file; calling it with a frame gives that frame's.

    An image is found by its file name, which may be the end of its path; in a list of detections without file names by
    its `image_id`: the file's name without suffix, the number in that name (`000000000139.jpg` is 139), or the number
    of a video's frame.

    Attributes:
        file: the file, for messages.
        by_name: name -> boxes; a name that several folders have maps to the longest path that ends a frame's.
        by_id: `image_id` -> boxes.
        image_ids: name -> `image_id`, of a label file.
        asked: frames that were asked for.
        matched: how many of them the file knows.
    """

    file: str
    by_name: dict[str, Boxes]
    by_id: dict[str, Boxes]
    image_ids: dict[str, int] = field(default_factory=dict)
    asked: int = 0
    matched: int = 0

    def __call__(self, frame: Frame) -> Boxes:
        """The boxes of a frame; none if the file does not know it."""
        self.asked += 1
        found = self._find(frame)
        self.matched += found is not None
        return Boxes.of([]) if found is None else found

    def image_id(self, frame: Frame) -> int | None:
        """The label file's id of a frame; None if it has none."""
        return next((self.image_ids[end] for end in _ends(frame.name) if end in self.image_ids), None)

    def _find(self, frame: Frame) -> Boxes | None:
        for end in _ends(frame.name):
            if end in self.by_name:
                return self.by_name[end]
        stem = Path(frame.name).stem
        digits = "".join(filter(str.isdigit, stem))
        number = str(frame.index) if " frame " in frame.name else str(int(digits)) if digits else None
        return next((self.by_id[key] for key in (stem, number) if key is not None and key in self.by_id), None)

    def check_matched(self) -> None:
        """Refuses a file that knew none of the frames asked for.

        Raises:
            ValueError: it names images that were not looked at.
        """
        if self.asked and not self.matched and (self.by_name or self.by_id):
            known = next(iter(self.by_name), None) or f"image_id {next(iter(self.by_id))}"
            raise ValueError(
                f"{self.file} has no box for any of the {self.asked} images, so nobody was looked for: it knows "
                f"{known!r} and others. Images are found by file name, or by the number in it"
            )


def read_boxes(file: str | Path, threshold: float = 0.0) -> BoxFile:
    """Reads boxes: a COCO label file, or a list of detections (`image_id`, `bbox`, `score`).

    Args:
        file: JSON.
        threshold: detections with a lower score are left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is of another form, or a box is not four finite numbers; the message names it.
    """
    content = read_json(file)
    if isinstance(content, Mapping) and "images" in content:
        return _of_labels(content, str(file))
    if not isinstance(content, list):
        raise ValueError(f"{file} has no boxes: give COCO labels, or a list of detections (image_id, bbox, score)")
    named: dict[str, list[tuple[Any, ...]]] = {}
    numbered: dict[str, list[tuple[Any, ...]]] = {}
    for row, detection in enumerate(content):
        who = f"{file}: detection {row}"
        if not isinstance(detection, Mapping) or not {"image_id", "bbox"} <= detection.keys():
            raise ValueError(f"{who} must have image_id, bbox and score, got {detection!r:.120}")
        (score,) = coco_rules.numbers([detection.get("score", 1.0)], 1, f"{who}: score").tolist()
        entry = (_box(detection["bbox"], who), score, row)
        if score < threshold:
            continue
        if "file_name" in detection:
            named.setdefault(_normal(str(detection["file_name"])), []).append(entry)
        else:
            numbered.setdefault(str(detection["image_id"]), []).append(entry)
    return BoxFile(str(file), _grouped(named), _grouped(numbered))


def _of_labels(content: Mapping[str, Any], file: str) -> BoxFile:
    names: dict[Any, str] = {}
    for image in coco_rules.entries(content, "images", file):
        names[image["id"]] = _normal(str(image.get("file_name", image["id"])))
    named: dict[str, list[tuple[Any, ...]]] = {name: [] for name in names.values()}
    for annotation in coco_rules.entries({"annotations": [], **content}, "annotations", file):
        who = f"{file}: annotation {annotation['id']}"
        if annotation.get("image_id") not in names:
            raise ValueError(f"{who} names image {annotation.get('image_id')!r}, which is not among the file's images")
        if annotation.get("iscrowd") or "bbox" not in annotation:
            continue
        score = float(annotation.get("score", 1.0))
        named[names[annotation["image_id"]]].append((_box(annotation["bbox"], who), score, annotation["id"]))
    ids = {name: int(i) for i, name in names.items() if str(i).lstrip("-").isdigit()}
    return BoxFile(file, _grouped(named), {}, ids)


def _box(values: Any, who: str) -> list[float]:
    x, y, width, height = coco_rules.numbers(values, 4, f"{who}: bbox").tolist()
    if width < 0 or height < 0 or width + height <= 0:
        raise ValueError(f"{who}: bbox is x, y, width, height with an extent, got {values}")
    return [x, y, width, height]


def _grouped(entries: Mapping[str, Sequence[tuple[Any, ...]]]) -> dict[str, Boxes]:
    found = {}
    for name, rows in entries.items():
        boxes, scores, ids = zip(*rows, strict=True) if rows else ((), (), ())
        found[name] = Boxes(
            np.array(boxes, np.float64).reshape(-1, 4), np.array(scores, np.float64), np.array(ids, np.int64)
        )
    return found


def _normal(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./")


def _ends(name: str) -> list[str]:
    """All ends of a path, the longest first: `a/b.jpg`, `b.jpg`."""
    parts = Path(_normal(name)).parts
    return ["/".join(parts[i:]).replace("//", "/") for i in range(len(parts))]
