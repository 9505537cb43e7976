"""Synthetic people with exact COCO annotations: no download, deterministic, in memory or as a COCO folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from posekd.data.outlines import outline_of
from posekd.data.records import PoseRecords
from posekd.data.regions import ignored_regions
from posekd.data.sources.coco import CocoSettings
from posekd.data.synthetic.body import NUM_JOINTS, draw_figures
from posekd.data.synthetic.labels import annotate
from posekd.data.synthetic.paint import MAX_PEOPLE, SPLITS, check_drawn, draw_wardrobe, paint_figures
from posekd.data.synthetic.scene import develop, paint_background, paint_occluders
from posekd.skeleton import COCO


@dataclass(frozen=True)
class SyntheticSettings:
    """What to draw.

    Attributes:
        images: number of images.
        split: "train" or "val"; the two never share an image, whatever the seeds.
        seed: image i of (split, seed) is always the same.
        size: `(height, width)` of the images in pixels.
        people: fewest and most people per image.
        difficulty: 0..1; more clutter, occlusion, grain, unusual poses and mismatched clothes.
        keep_images: keep rendered images in memory; otherwise they are drawn anew each time.
    """

    images: int = 1000
    split: Literal["train", "val"] = "train"
    seed: int = 0
    size: tuple[int, int] = (240, 320)
    people: tuple[int, int] = (1, 4)
    difficulty: float = 0.2
    keep_images: bool = True

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"images must be 1 or more, got {self.images}")
        check_drawn(self.split, self.seed, self.size, self.people, self.difficulty)


def render(settings: SyntheticSettings, index: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Draws one image.

    Args:
        settings: everything but `images` and `keep_images` matters.
        index: number of the image, from 0.

    Returns:
        uint8 RGB `[H, W, 3]`, and its COCO annotations (image id `index + 1`).
    """
    s = settings
    rng = np.random.default_rng([SPLITS[s.split], s.seed, index])
    canvas = paint_background(rng, s.size, s.difficulty)
    figures = draw_figures(rng, int(rng.integers(s.people[0], s.people[1] + 1)), s.size, s.difficulty)
    angle = rng.uniform(-np.pi, 0)
    wardrobe = draw_wardrobe(rng, len(figures), s.difficulty)
    paint_figures(canvas, figures, wardrobe, rng, np.array((np.cos(angle), np.sin(angle))))
    paint_occluders(canvas, rng, figures.points[:, :NUM_JOINTS, :2], s.difficulty)
    annotations = annotate(figures, canvas[..., 3], index + 1, index * MAX_PEOPLE + 1)
    return develop(canvas, rng, s.difficulty), annotations


class SyntheticPeople:
    """The images of some settings as a dataset. A `PoseSource`.

    Args:
        settings: what to draw.
        progress: wraps the iteration over image numbers, for a progress bar.
    """

    def __init__(
        self, settings: SyntheticSettings, progress: Callable[[Iterable[int]], Iterable[int]] | None = None
    ) -> None:
        self.settings = settings
        self._kept: list[np.ndarray] = []
        self._annotations: list[dict[str, Any]] = []
        indices: Iterable[int] = range(settings.images)
        for index in indices if progress is None else progress(indices):
            image, annotations = render(settings, index)
            self._annotations.extend(annotations)
            if settings.keep_images:
                self._kept.append(image)
        labelled = [a for a in self._annotations if a["num_keypoints"]]
        if not labelled:
            raise ValueError(f"none of the {settings.images} images shows a person; draw more images")
        entries = {index + 1: _image_entry(settings, index, "jpg") for index in range(settings.images)}
        ignored = ignored_regions(self._annotations, entries, f"synthetic {settings.split}")
        self.records = replace(_to_records(labelled, settings), ignored=ignored)

    def load_image(self, row: int, reduction: int = 1) -> np.ndarray:
        """Image `row`, always whole: uint8 RGB `[H, W, 3]`; do not write to it."""
        return self._kept[row] if self._kept else render(self.settings, row)[0]

    def image_name(self, row: int) -> str:
        """Name of image `row`, for messages."""
        return f"synthetic {self.settings.split} image {row} (seed {self.settings.seed})"

    def coco_ground_truth(self) -> dict[str, Any]:
        """The labels as a COCO dictionary."""
        images = [_image_entry(self.settings, index, "jpg") for index in range(self.settings.images)]
        return _coco_dict(images, self._annotations)


def write_coco(
    folder: str | Path,
    images: int,
    seed: int = 0,
    *,
    settings: SyntheticSettings | None = None,
    image_format: Literal["jpg", "png"] = "jpg",
    processes: int = 1,
) -> CocoSettings:
    """Writes one split as a COCO folder: `<split>/*.jpg`, `annotations/person_keypoints_<split>.json`.

    Args:
        folder: created if it does not exist.
        images: number of images.
        seed: seed of the images.
        settings: split, size, people, difficulty; the defaults if None.
        image_format: "jpg" (quality 92) or "png" (exact).
        processes: that draw at once; the files are the same.

    Returns:
        The settings that read it back.
    """
    settings = replace(settings or SyntheticSettings(), images=images, seed=seed)
    pictures = Path(folder) / settings.split
    label_file = Path(folder) / "annotations" / f"person_keypoints_{settings.split}.json"
    pictures.mkdir(parents=True, exist_ok=True)
    label_file.parent.mkdir(exist_ok=True)
    draw = partial(_draw, settings, pictures, image_format)
    if processes > 1:
        with ProcessPoolExecutor(processes) as pool:
            drawn = list(pool.map(draw, range(images), chunksize=16))
    else:
        drawn = list(map(draw, range(images)))
    entries, labels = [entry for entry, _ in drawn], [label for _, own in drawn for label in own]
    label_file.write_text(json.dumps(_coco_dict(entries, labels)))
    return CocoSettings(images=str(pictures), annotations=str(label_file))


def _draw(
    settings: SyntheticSettings, pictures: Path, image_format: str, index: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Writes one image; its entry in the label file, and its people."""
    image, annotations = render(settings, index)
    entry = _image_entry(settings, index, image_format)
    file = pictures / entry["file_name"]
    options = [cv2.IMWRITE_JPEG_QUALITY, 92] if image_format == "jpg" else []
    if not cv2.imwrite(str(file), cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options):
        raise OSError(f"{file} could not be written")
    return entry, annotations


def _image_entry(settings: SyntheticSettings, index: int, extension: str) -> dict[str, Any]:
    height, width = settings.size
    return {"id": index + 1, "file_name": f"{index + 1:012d}.{extension}", "height": height, "width": width}


def _coco_dict(images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> dict[str, Any]:
    category = {
        "id": 1,
        "name": "person",
        "supercategory": "person",
        "keypoints": list(COCO.keypoints),
        "skeleton": [[a + 1, b + 1] for a, b in COCO.edges],
    }
    return {"images": images, "annotations": annotations, "categories": [category]}


def _to_records(labelled: list[dict[str, Any]], settings: SyntheticSettings) -> PoseRecords:
    rows = np.array([a["image_id"] - 1 for a in labelled], np.int64)
    return PoseRecords(
        skeleton=COCO,
        image_ids=np.arange(1, settings.images + 1, dtype=np.int64),
        image_sizes=np.tile(np.array(settings.size, np.int64), (settings.images, 1)),
        image_rows=rows,
        keypoints=np.array([a["keypoints"] for a in labelled], np.float32).reshape(-1, NUM_JOINTS, 3),
        boxes=np.array([a["bbox"] for a in labelled], np.float32),
        box_scores=np.ones(len(labelled), np.float32),
        sample_ids=np.array([a["id"] for a in labelled], np.int64),
        outlines=np.array([outline_of(a["segmentation"], a["bbox"]) for a in labelled]),
    )
