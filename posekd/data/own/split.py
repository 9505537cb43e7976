"""Two label files out of one: disjoint by image or by group, and the same each time."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posekd import coco_rules
from posekd.data.own.find import IMAGE_FOLDER, SPLITS
from posekd.data.sources.coco import CocoSettings
from posekd.files import write_atomically


@dataclass(frozen=True)
class Split:
    """What `split_labels` did.

    Attributes:
        images: numbers of images of the two parts.
        people: numbers of annotations.
        groups: numbers of groups.
        copies: images that are byte for byte another one, and went with it.
    """

    images: tuple[int, int]
    people: tuple[int, int]
    groups: tuple[int, int]
    copies: int


def split_labels(data: CocoSettings, out: Path, *, share: float = 0.2, by: str = "image", seed: int = 0) -> Split:
    """Writes `train.json` and `val.json` into a folder.

    Groups are ordered by a hash of seed and name, and the first go to the validation part until it has its share of the
    images: an image that is added later moves few others.

    Args:
        data: the label file and its images.
        out: the folder.
        share: of the images that are held out, in 0..1.
        by: `image`; `folder`, for all images of a folder (a video) to stay together; an entry of the file's images
            (`video_id`); or a regular expression for the file name, whose first group (or match) is the group's name.
        seed: of the draw.

    Raises:
        ValueError: nothing to hold out, an entry that images lack, an expression that does not match.
    """
    if not 0 < share < 1:
        raise ValueError(f"the share to hold out is between 0 and 1, got {share}")
    file = Path(data.annotations)
    content = coco_rules.read_json(file, "DATA")
    images = coco_rules.entries(content, "images", str(file))
    names = {image["id"]: str(image["file_name"]) for image in images}
    group_of = _groups(images, by)
    first = {}
    for originals in _copies([Path(data.images) / name for name in names.values()]).values():
        for path in originals[1:]:
            first[path] = originals[0]
    copies = {i: first.get(Path(data.images) / name) for i, name in names.items()}
    by_path = {Path(data.images) / name: i for i, name in names.items()}
    group = {i: group_of[i] if copy is None else group_of[by_path[copy]] for i, copy in copies.items()}
    order = sorted(set(group.values()), key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    count = {name: sum(g == name for g in group.values()) for name in order}
    held: set[str] = set()
    for name in order[:-1]:  # somebody stays to learn from
        if sum(count[g] for g in held) + count[name] / 2 > share * len(images) and held:
            break
        held.add(name)
    if not held:
        raise ValueError(f"{file}: all {len(images)} images are one group ({order[0]!r}): nothing can be held out")
    parts = ({i for i, g in group.items() if g not in held}, {i for i, g in group.items() if g in held})
    people = []
    for name, chosen in zip(SPLITS, parts, strict=True):
        annotations = [a for a in content.get("annotations", ()) if a.get("image_id") in chosen]
        people.append(len(annotations))
        info = {**(content.get("info") or {}), IMAGE_FOLDER: os.path.relpath(data.images, out)}
        kept = [image for image in content["images"] if image["id"] in chosen]
        part = {**content, "info": info, "images": kept, "annotations": annotations}
        write_atomically(out / name, json.dumps(part) + "\n")
    return Split(
        images=(len(parts[0]), len(parts[1])),
        people=(people[0], people[1]),
        groups=(len(order) - len(held), len(held)),
        copies=sum(copy is not None for copy in copies.values()),
    )


def _groups(images: Sequence[Mapping[str, Any]], by: str) -> dict[Any, str]:
    """The name of each image's group, by image id."""
    if by == "image":
        return {image["id"]: str(image["file_name"]) for image in images}
    if by == "folder":
        return {image["id"]: os.path.dirname(str(image["file_name"])) for image in images}
    if any(by in image for image in images):
        lacking = next((image for image in images if by not in image), None)
        if lacking is not None:
            raise ValueError(f"image {lacking['id']} ({lacking['file_name']}) has no entry {by!r}, and others have")
        return {image["id"]: str(image[by]) for image in images}
    try:
        pattern = re.compile(by)
    except re.error as error:
        raise ValueError(f"--by {by!r} is no entry of the images, and no regular expression ({error})") from None
    found = {image["id"]: pattern.search(str(image["file_name"])) for image in images}
    missed = next((image for image in images if found[image["id"]] is None), None)
    if missed is not None:
        raise ValueError(f"--by {by!r} is no entry of the images and does not match {missed['file_name']!r}")
    return {i: match.group(1) if match.groups() else match.group() for i, match in found.items() if match is not None}


def _copies(paths: Sequence[Path]) -> dict[bytes, list[Path]]:
    """Files with equal bytes; files that are not there are left to whoever reads them."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in paths:
        if path.is_file():
            by_size[path.stat().st_size].append(path)
    found: dict[bytes, list[Path]] = defaultdict(list)
    for group in by_size.values():
        for path in group if len(group) > 1 else ():
            found[hashlib.sha256(path.read_bytes()).digest()].append(path)
    return found
