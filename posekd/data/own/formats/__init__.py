"""Other tools' label files, one file each; all are read into `own.labels.OwnLabels`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from posekd.data.own.formats import coco, cvat, deeplabcut, label_studio, yolo
from posekd.data.own.labels import OwnLabels


@dataclass(frozen=True)
class Format:
    """A format of label files.

    Attributes:
        title: its name in a sentence.
        recognise: whether a file or folder is of it, by its look.
        read: from a file or folder, and the folder of its images if given, to labels.
        write: from labels to a file or folder.
    """

    title: str
    recognise: Callable[[Path], bool]
    read: Callable[[Path, Path | None], OwnLabels]
    write: Callable[[OwnLabels, Path], None]


FORMATS: dict[str, Format] = {
    "coco": Format("COCO JSON", coco.recognise, coco.read, coco.write),
    "deeplabcut": Format("DeepLabCut CSV", deeplabcut.recognise, deeplabcut.read, deeplabcut.write),
    "yolo": Format("YOLO-pose text", yolo.recognise, yolo.read, yolo.write),
    "label-studio": Format("Label Studio JSON", label_studio.recognise, label_studio.read, label_studio.write),
    "cvat": Format("CVAT XML", cvat.recognise, cvat.read, cvat.write),
}
"""Word on the command line -> the format."""


def recognise(path: Path) -> str:
    """The format of a file or folder, by its look.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is of no known format.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}")
    for name, known in FORMATS.items():
        if known.recognise(path):
            return name
    titles = ", ".join(f"{known.title} (--from {name})" for name, known in FORMATS.items())
    raise ValueError(f"{path} looks like none of these: {titles}")


__all__ = ["FORMATS", "Format", "recognise"]
