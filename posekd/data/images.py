"""Reading an image file as uint8 RGB, with a message that says what is wrong with a bad one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np

from posekd.data.records import BadImageError

# EXIF orientation is ignored unless asked for: COCO's annotations are made in the stored orientation, and HRNet reads
# with the same flag. Grey becomes three equal channels, alpha is dropped, 16 bits become 8.
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
_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*")
_DARK = 64  # of 255: no sensible 16-bit picture that uses its range is darker everywhere
_told: set[tuple[str, str]] = set()


def reduced_size(size: Sequence[int], reduction: int) -> tuple[int, int]:
    """Height and width of a JPEG of `size` that is decoded at `1 / reduction`: rounded up, as libjpeg does."""
    height, width = size
    return -(-height // reduction), -(-width // reduction)


def read_rgb(
    path: str | os.PathLike[str],
    size: tuple[int, int] | None = None,
    reduction: int = 1,
    apply_orientation: bool = False,
) -> np.ndarray:
    """Decodes an image file in its stored orientation.

    Pictures that look fine to a viewer and come out otherwise (turned by an EXIF tag; 16 bits of which few are used)
    are warned of, once for each kind and folder.

    Args:
        path: the file.
        size: the `(height, width)` that its labels state, checked if given.
        reduction: 1, or 2, 4 or 8 to have a JPEG decoded at that fraction of its size, which takes less time (libjpeg
            transforms fewer coefficients); other formats come whole.
        apply_orientation: turn or mirror the pixels as the EXIF tag says, which is what viewers show.

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
        flags = _FLAGS[reduction] & ~(cv2.IMREAD_IGNORE_ORIENTATION if apply_orientation else 0)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
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
    _warn_of_looks(str(path), data, image, apply_orientation)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _warn_of_looks(path: str, data: bytes, image: np.ndarray, apply_orientation: bool) -> None:
    """Warns where the pixels are not what a viewer shows, once for each kind in a folder."""
    tag = 1 if apply_orientation else exif_orientation(data)
    if tag != 1:
        _tell_once(
            path,
            f"EXIF {tag}",
            f"has the EXIF orientation {tag}, so viewers turn or mirror it; pixels are read as stored. If the labels "
            "were drawn on what a viewer shows, set apply_orientation: true",
        )
    deep = (data[:8] == _PNG and data[24:25] == b"\x10") or data[:4] in _TIFF
    if deep and image.max(initial=0) < _DARK:
        _tell_once(
            path,
            "dark",
            f"is nearly black: its brightest value is {image.max(initial=0)} of 255, because 16 bits are divided by "
            "256 and the picture uses few of them. Scale the files to the full range first",
        )


def _tell_once(path: str, kind: str, what: str) -> None:
    key = (os.path.dirname(path), kind)
    if key not in _told:
        _told.add(key)
        warnings.warn(f"{path}: the picture {what}. (Others of its folder may be like it.)", stacklevel=4)


def exif_orientation(data: bytes) -> int:
    """A JPEG's EXIF orientation, 1 to 8; 1 (as stored) where it states none."""
    at = 2
    while data[:2] == _JPEG and at + 10 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        if data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            return _orientation_entry(data[at + 10 : _next_marker(data, at)])
        at = _next_marker(data, at)
    return 1


def file_orientation(path: str | os.PathLike[str]) -> int:
    """The EXIF orientation of a file, from its beginning; 1 where it has none or cannot be read."""
    try:
        with open(path, "rb") as file:
            return exif_orientation(file.read(1 << 16))
    except OSError:
        return 1


def _orientation_entry(tiff: bytes) -> int:
    """Tag 0x0112 of a TIFF header's first directory."""
    order: Literal["little", "big"] = "little" if tiff[:2] == b"II" else "big"

    def read(at: int, count: int) -> int:
        return int.from_bytes(tiff[at : at + count], order)

    first = read(4, 4)
    for entry in range(first + 2, min(first + 2 + 12 * read(first, 2), len(tiff)), 12):
        if read(entry, 2) == 0x0112:
            value = read(entry + 8, 2)
            return value if 1 <= value <= 8 else 1
    return 1


def image_size(path: str | os.PathLike[str], apply_orientation: bool = False) -> tuple[int, int]:
    """Height and width of an image file, from its header where that is a JPEG's or PNG's.

    Args:
        path: the file.
        apply_orientation: of the image turned as its EXIF tag says, rather than as it is stored.

    Raises:
        BadImageError: the file is missing or not an image.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(1 << 16)
            if _stated_size(data) is None and data[:2] == _JPEG:  # a large EXIF block or colour profile comes first
                data += file.read()
    except OSError as error:
        raise BadImageError(f"{path}: cannot be read ({error.strerror})") from error
    size = _stated_size(data)
    if size is None or (apply_orientation and data[:2] != _JPEG):  # other formats may have tags too
        height, width = read_rgb(path, apply_orientation=apply_orientation).shape[:2]
        return height, width
    return size[::-1] if apply_orientation and exif_orientation(data) > 4 else size


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
