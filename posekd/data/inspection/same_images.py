"""Images that two datasets share, by their bytes, whatever they are called."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable
from functools import cache

from posekd.data.records import PoseSource

HEAD = 1 << 14  # bytes that are compared before a whole file is read


def same_images(first: PoseSource, second: PoseSource) -> list[tuple[str, str]]:
    """Pairs of image files with equal bytes, one of each dataset; a file is named once.

    Only files of equal size are read, at first their beginning: two large datasets that share nothing cost little more
    than a look into their folders. Images that are no files (drawn ones) are not compared.

    Args:
        first: a dataset.
        second: another.
    """
    by_size: dict[int, list[str]] = defaultdict(list)
    for file in _files(second):
        by_size[os.path.getsize(file)].append(file)
    pairs = [(a, b) for a in _files(first) for b in by_size.get(os.path.getsize(a), ())]
    for digest in (_digest(HEAD), _digest(-1)):
        pairs = [(a, b) for a, b in pairs if digest(a) == digest(b)]
    return list({a: (a, b) for a, b in reversed(pairs)}.values())[::-1]


def _files(source: PoseSource) -> list[str]:
    names = dict.fromkeys(source.image_name(row) for row in range(source.records.num_images))
    return [name for name in names if os.path.isfile(name)]


def _digest(count: int) -> Callable[[str], bytes]:
    """A function from a file to a hash of its first `count` bytes (-1: all), which reads each file once."""

    @cache
    def digest(file: str) -> bytes:
        with open(file, "rb") as stream:
            return hashlib.sha256(stream.read(count)).digest()

    return digest
