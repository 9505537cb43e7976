"""`posekd split DATA --out DIR`: train.json and val.json, disjoint by image or by group."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from posekd.cli import command_parser

EPILOG = """Frames of one video, or pictures of one animal, are alike: hold them out together.
  posekd split mouse.json --out data                       # each image by itself
  posekd split mouse.json --out data --by folder           # a folder's images stay together
  posekd split mouse.json --out data --by video_id         # an entry of the file's images
  posekd split mouse.json --out data --by '(mouse\\d+)_'    # a part of the file name"""


def main(argv: Sequence[str]) -> int:
    """Splits a label file and says what went where.

    Raises:
        ValueError, FileNotFoundError: labels or images that do not fit; nothing to hold out.
    """
    from posekd.data.own.find import find_data
    from posekd.data.own.split import split_labels
    from posekd.files import check_writable

    parser = command_parser("split", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("data", metavar="DATA", help="label file in COCO's form")
    add("--out", metavar="DIR", required=True, help="where train.json and val.json go")
    add("--images", metavar="DIR", help="folder of the images (looked for by itself)")
    add("--val", type=float, default=0.2, metavar="SHARE", help="share of the images to hold out (0.2)")
    add(
        "--by", default="image", metavar="GROUP", help="image, folder, an entry of the images, or an expression (image)"
    )
    add("--seed", type=int, default=0, metavar="N", help="of the draw (0)")
    options = parser.parse_args(argv)

    data = find_data(options.data, options.images).train
    check_writable(Path(options.out) / "train.json")
    done = split_labels(data, Path(options.out), share=options.val, by=options.by, seed=options.seed)
    grouped = "" if options.by == "image" else f", {done.groups[0]} and {done.groups[1]} groups"
    print(
        f"{options.out}/train.json: {done.images[0]} images, {done.people[0]} people; "
        f"{options.out}/val.json: {done.images[1]} images, {done.people[1]} people{grouped}"
    )
    if done.copies:
        print(f"note: {done.copies} images are byte for byte another one, and went where that went")
    return 0
