"""Reading an image file as uint8 RGB, with a message that says what is wrong with a bad one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np

from posekd.data.records import BadImageError

# EXIF orientation is ignored: COCO's annotations are made in the stored orientation, and HRNet reads with
# the same flag. Grey becomes three equal channels, alpha is dropped, 16 bits become 8.
_FLAGS = {
    reduction: flag | cv2.IMREAD_IGNORE_ORIENTATION
    for reduction, flag in {
        1: cv2.IMREAD_COLOR,
        2: cv2.IMREAD_REDUCED_COLOR_2,
        4: cv2.IMREAD_REDUCED_COLOR_4,
        8: cv2.IMREAD_REDUCED_COLOR_8,
    }.items()
}
REDUCTIONS = tuple(_FLAGS)
"""Factors by which a JPEG can be decoded smaller."""
_JPEG = b"\xff\xd8"


def reduced_size(size: Sequence[int], reduction: int) -> tuple[int, int]:
    """Height and width of a JPEG of `size` that is decoded at `1 / reduction`: rounded up, as libjpeg does."""
    height, width = size
    return -(-height // reduction), -(-width // reduction)


def read_rgb(path: str | os.PathLike[str], size: tuple[int, int] | None = None, reduction: int = 1) -> np.ndarray:
    """Decodes an image file in its stored orientation.

    Args:
        path: the file.
        size: the `(height, width)` that its labels state, checked if given.
        reduction: 1, or 2, 4 or 8 to have a JPEG decoded at that fraction of its size, which takes less time (libjpeg
            transforms fewer coefficients); other formats are decoded whole.

    Returns:
        uint8 RGB `[H, W, 3]`, of `reduced_size` if it was reduced.

    Raises:
        BadImageError: the file is missing, not an image, truncated, or of another size.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise BadImageError(f"{path}: cannot be read ({error.strerror})") from error
    if not data:
        raise BadImageError(f"{path}: the file is empty")
    if not is_complete(data):
        raise BadImageError(f"{path}: the file is truncated ({len(data)} bytes, without its end marker)")
    if data[:2] != _JPEG or (size is not None and _stated_size(data) != tuple(size)):
        reduction = 1  # not of the stated size: the message below should give the size of the whole image
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _FLAGS[reduction])
    except cv2.error as error:
        raise BadImageError(f"{path}: cannot be decoded ({error.err})") from error
    if image is None:
        raise BadImageError(f"{path}: not an image that OpenCV can decode")
    if size is not None and image.shape[:2] != reduced_size(size, reduction):
        height, width = image.shape[:2]
        if (width, height) == tuple(size):
            cause = "were they made on the image turned by its EXIF orientation? Pixels are read as stored"
        else:
            cause = "were the images resized after labelling?"
        raise BadImageError(
            f"{path}: the image is {width} x {height}, but its annotations say {size[1]} x {size[0]}; {cause}"
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width of an image file in its stored orientation, from its header where that is a JPEG's or PNG's.

    Raises:
        BadImageError: the file is missing or not an image.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(1 << 16)
            size = _stated_size(data)
            if size is None and data[:2] == _JPEG:  # a large EXIF block or colour profile comes first
                size = _stated_size(data + file.read())
    except OSError as error:
        raise BadImageError(f"{path}: cannot be read ({error.strerror})") from error
    if size is None:
        height, width = read_rgb(path).shape[:2]
        return height, width
    return size


def _stated_size(data: bytes) -> tuple[int, int] | None:
    """What the header says: PNG's first chunk, or a JPEG's frame (SOF) segment; None if it is not in `data`."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 24:
        return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    at = 2
    while data[:2] == _JPEG and at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        at = _next_marker(data, at)
    return None


def missing_files(paths: Sequence[str], source: str, policy: Literal["refuse", "skip"]) -> set[str]:
    """The files among `paths` that do not exist; lists each folder once instead of testing file by file.

    Args:
        paths: image files.
        source: the file that names them, for the message.
        policy: "refuse" makes missing files an error, "skip" a warning.

    Raises:
        FileNotFoundError: a file is missing and the policy is "refuse".
    """
    listed: dict[str, set[str]] = {}
    missing: dict[str, None] = {}
    for path in paths:
        parent, name = os.path.split(path)
        if parent not in listed:
            listed[parent] = set(os.listdir(parent)) if os.path.isdir(parent) else set()
        if name not in listed[parent]:
            missing[path] = None
    if missing:
        parent, name = os.path.split(next(iter(missing)))
        report = (
            f"{len(missing)} of {len(set(paths))} images named by {source} are not there; the first is {name!r} "
            f"in {parent}"
        )
        if policy == "refuse":
            raise FileNotFoundError(f"{report}. Set `on_missing_image: skip` to go on without them.")
        warnings.warn(f"{report}: going on without them.", stacklevel=3)
    return set(missing)


def is_complete(data: bytes) -> bool:
    """Whether a JPEG or PNG stream holds its end marker.

    Decoders fill the missing rows of a truncated JPEG with grey and say nothing, so the marker is the only
    witness. Other formats pass.
    """
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return data.rfind(b"IEND") > 0
    if data[:2] == _JPEG:
        # Inside entropy-coded data 0xFF is always followed by 0 or a restart marker: any 0xFFD9 is the end.
        return data.rfind(b"\xff\xd9") > _start_of_scan(data)
    return True


def _start_of_scan(data: bytes) -> int:
    """Offset of a JPEG's first scan; skips headers, since an EXIF thumbnail has an end marker of its own."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:
            return at
        at = _next_marker(data, at)
    return len(data)


def _next_marker(data: bytes, at: int) -> int:
    """Offset of the JPEG marker after the one at `at`, which may be a fill byte."""
    return at + 1 if data[at + 1] == 0xFF else at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
