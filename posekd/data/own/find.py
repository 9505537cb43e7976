"""What a word of a command line means: a label file or a folder of one, and where its images are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posekd import coco_rules
from posekd.data.sources.coco import CocoSettings

IMAGE_FOLDER = "image_folder"
"""Entry of a label file's `info` that says where its images are, relative to the file; `coco.write` puts it there."""
SPLITS = ("train.json", "val.json")


@dataclass(frozen=True)
class OwnData:
    """Labelled data.

    Attributes:
        train: the label file to learn from and its images.
        val: those to validate on, if there are any.
    """

    train: CocoSettings
    val: CocoSettings | None


def find_data(word: str, images: str | None = None, val: str | None = None) -> OwnData:
    """The labels that a word means.

    Args:
        word: a label file in COCO's form, or a folder with `train.json` and perhaps `val.json` (from `posekd split`).
        images: folder of the images; found by itself if None.
        val: label file to validate on.

    Raises:
        FileNotFoundError: no such file, no label file in the folder, or images that cannot be found.
        ValueError: a file of another format.
    """
    path = Path(word)
    if path.is_dir():
        files = [path / name for name in SPLITS]
        if not files[0].is_file():
            found = sorted(file.name for file in path.iterdir() if file.suffix in (".json", ".csv", ".xml"))
            hint = f"; it has {', '.join(found[:5])}: name one" if found else ""
            raise FileNotFoundError(f"{word} holds no train.json (`posekd split` writes one){hint}")
        held_out = Path(val) if val is not None else files[1]
        return OwnData(_settings(files[0], images), _settings(held_out, images) if held_out.is_file() else None)
    return OwnData(_settings(path, images), None if val is None else _settings(Path(val), images))


def _settings(file: Path, images: str | None) -> CocoSettings:
    if file.suffix != ".json" and file.is_file():
        raise ValueError(f"{file} is no COCO label file: `posekd convert {file} --out labels.json` makes one")
    content = coco_rules.read_json(file, "DATA")
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise ValueError(
            f"{file} is no COCO label file (it lists no `images`); `posekd convert {file} --out labels.json` may help"
        )
    if images is None:
        images = str(find_images(file, content))
    return CocoSettings(images=images, annotations=str(file))


def find_images(file: Path, content: dict[str, Any]) -> Path:
    """The folder that a label file's `file_name`s are relative to.

    Args:
        file: the label file.
        content: what it holds.

    Raises:
        FileNotFoundError: the first image is in none of the usual places.
    """
    names = [str(entry.get("file_name")) for entry in content["images"][:1] if isinstance(entry, dict)]
    if not names:
        raise ValueError(f"{file} lists no images")
    tried = list(dict.fromkeys(_places(file, content)))
    for folder in tried:
        if (folder / names[0]).is_file():
            return folder
    places = ", ".join(map(str, tried))
    raise FileNotFoundError(
        f"{names[0]}, the first image of {file}, is in none of {places}: give their folder (--images)"
    )


def _places(file: Path, content: dict[str, Any]) -> Iterator[Path]:
    info = content.get("info")
    if isinstance(info, dict) and isinstance(info.get(IMAGE_FOLDER), str):
        yield Path(os.path.normpath(file.parent / info[IMAGE_FOLDER]))
    split = file.stem.rsplit("_", 1)[-1]  # COCO's person_keypoints_val2017.json
    for base in (file.parent, file.parent.parent):
        yield base
        for name in ("images", "labeled-data", split, f"images/{split}"):
            yield base / name
