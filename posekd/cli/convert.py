"""`posekd convert FILE --out FILE`: labels of another tool in COCO's form, and back."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from posekd.cli import command_parser

EPILOG = """formats: coco (JSON), deeplabcut (CollectedData CSV), yolo (a folder of pose text files), label-studio (JSON
export), cvat (XML, "CVAT for images"). All are read and written; the format of FILE is seen by itself.

examples:
  posekd convert CollectedData.csv --out mouse.json
  posekd convert labels/train --images images/train --out train.json
  posekd convert labels.json --boxes corners --out mended.json   # boxes that are left, top, right, bottom
  posekd convert mouse.json --to yolo --out labels
  posekd convert mouse.json --to cvat --out mouse.xml"""


def main(argv: Sequence[str]) -> int:
    """Converts a label file, and says how many images and people there are.

    Raises:
        ValueError: a file that is not of the format.
        FileNotFoundError: labels or images that are not there.
    """
    from functools import partial

    from posekd.data.own.formats import FORMATS, coco, recognise
    from posekd.files import check_writable

    parser = command_parser("convert", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("labels", metavar="FILE", help="label file, or folder of text files")
    add("--out", metavar="FILE", required=True, help="what to write; for yolo a folder")
    add("--images", metavar="DIR", help="folder of the images (looked for by itself)")
    add("--from", dest="source", choices=FORMATS, help="format of FILE (seen by itself)")
    add("--to", choices=FORMATS, default="coco", help="format (coco)")
    add("--boxes", choices=("corners",), help="COCO: boxes are left, top, right, bottom, and get width and height")
    add("--category", metavar="NAME", help="what is labelled, in a word")
    options = parser.parse_args(argv)

    path, out = Path(options.labels), Path(options.out)
    check_writable(out / "data.yaml" if options.to == "yolo" else out)
    source = options.source or recognise(path)
    if options.boxes and source != "coco":
        raise ValueError(f"--boxes is for COCO files, and {path} is {FORMATS[source].title}")
    read = partial(coco.read, corners=True) if options.boxes else FORMATS[source].read
    labels = read(path, None if options.images is None else Path(options.images))
    if options.category is not None:
        from dataclasses import replace

        labels = replace(labels, category=options.category)
    FORMATS[options.to].write(labels, out)
    people = [person for image in labels.images for person in image.people]
    points = sum(int((person.keypoints[:, 2] > 0).sum()) for person in people)
    print(
        f"{FORMATS[source].title} -> {FORMATS[options.to].title}: {len(labels.images)} images, {len(people)} people, "
        f"{len(labels.names)} keypoints, {points} labels: {out}"
    )
    for note in labels.notes:
        print(f"note: {note}")
    return 0
