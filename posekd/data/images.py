"""Reading one image file: bytes in, uint8 RGB out, or a sentence that says what is wrong with it."""

from __future__ import annotations

import os

import cv2
import numpy as np

from posekd.data.records import BadImageError

# EXIF orientation is ignored: COCO's annotations are made in the stored orientation, and HRNet reads with
# the same flag. Grey becomes three equal channels, alpha is dropped, 16 bits become 8.
_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION


def read_rgb(path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> np.ndarray:
    """Decodes an image file in its stored orientation.

    Args:
        path: the file.
        size: the `(height, width)` that its labels state, checked if given.

    Returns:
        uint8 RGB `[H, W, 3]`.

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
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _FLAGS)
    except cv2.error as error:
        raise BadImageError(f"{path}: cannot be decoded ({error.err})") from error
    if image is None:
        raise BadImageError(f"{path}: not an image that OpenCV can decode")
    if size is not None and image.shape[:2] != tuple(size):
        height, width = image.shape[:2]
        if (width, height) == tuple(size):
            cause = "were they made on the picture turned by its EXIF orientation? Pixels are read as stored"
        else:
            cause = "were the images resized after labelling?"
        raise BadImageError(
            f"{path}: the image is {width} x {height}, but its annotations say {size[1]} x {size[0]}; {cause}"
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def is_complete(data: bytes) -> bool:
    """Whether a JPEG or PNG stream holds its end marker.

    Decoders fill the missing rows of a truncated JPEG with grey and say nothing, so the marker is the only
    witness. Other formats pass.
    """
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return data.rfind(b"IEND") > 0
    if data[:2] == b"\xff\xd8":
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
        if marker == 0xFF:  # fill byte
            at += 1
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return len(data)
