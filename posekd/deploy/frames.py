"""What people are looked for in: image files, folders, videos, a webcam, arrays and tensors, as clips of frames."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import torch

from posekd.data.images import read_rgb
from posekd.data.records import BadImageError
from posekd.deploy.ahead import ahead

IMAGES = frozenset([".bmp", ".jp2", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp", ".ppm", ".pgm"])
VIDEOS = frozenset([".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"])
_RETRIES = 25  # frames in a row that cannot be decoded before a video counts as ended

Source = str | os.PathLike[str] | int | np.ndarray | torch.Tensor


@dataclass(frozen=True)
class Frame:
    """One image of a clip.

    Attributes:
        name: the file; of a video the file and the frame's number.
        index: number within its clip, from 0.
        image: uint8 RGB `[H, W, 3]`; None if it cannot be decoded.
        problem: why not.
    """

    name: str
    index: int
    image: np.ndarray | None
    problem: str | None = None


@dataclass(frozen=True)
class Clip:
    """Frames that belong together: a video, or images that were given side by side.

    Attributes:
        name: the video's file, or what the images are called together.
        read: gives the frames in order, decoded by as many threads as asked for.
        count: how many frames there are; None where nobody knows. A video's header may be wrong.
        rate: frames per second of a video; None for separate images.
    """

    name: str
    read: Callable[[int], Iterator[Frame]]
    count: int | None
    rate: float | None = None


def open_clips(sources: Source | Sequence[Source], apply_orientation: bool = False) -> list[Clip]:
    """Finds what sources mean, before any work.

    Args:
        sources: files of images or videos, folders, patterns (`*.jpg`), a number (webcam), uint8 arrays `[H, W]`,
            `[H, W, 3]` or `[B, H, W, 3]` (RGB), tensors of these forms or `[3, H, W]` and `[B, 3, H, W]`, uint8 or
            floating-point in 0..1; or several of these.
        apply_orientation: turn images as their EXIF tags say.

    Returns:
        Each video, and each run of images between videos, as one clip.

    Raises:
        FileNotFoundError: a file or folder that is not there, or holds nothing to look at.
        ValueError: a file of another kind, or an array of another form.
    """
    single = isinstance(sources, (str, os.PathLike, int, np.ndarray, torch.Tensor))
    clips: list[Clip] = []
    files: list[Path] = []
    arrays: list[np.ndarray] = []

    def close() -> None:
        if files:
            clips.append(_of_files(tuple(files), apply_orientation))
        if arrays:
            clips.append(_of_arrays(tuple(arrays)))
        files.clear()
        arrays.clear()

    given = cast("Sequence[str | os.PathLike[str] | int | np.ndarray | torch.Tensor]", [sources] if single else sources)
    for source in given:
        if isinstance(source, (np.ndarray, torch.Tensor)):
            if files:
                close()
            arrays += as_images(source)
            continue
        if not isinstance(source, int) and _is_camera(source):
            source = int(os.fspath(source))
        if isinstance(source, int):
            close()
            clips.append(_of_capture(source, f"camera {source}", live=True))
            continue
        for file in _files_of(os.fspath(source)):
            if file.suffix.lower() in VIDEOS:
                close()
                clips.append(_of_capture(str(file), str(file)))
            else:
                if arrays:
                    close()
                files.append(file)
    close()
    return clips


def as_images(source: np.ndarray | torch.Tensor) -> list[np.ndarray]:
    """An array or tensor as images, uint8 RGB `[H, W, 3]` each; see `open_clips`.

    Raises:
        ValueError: another form, type or range.
    """
    is_tensor = isinstance(source, torch.Tensor)
    array = source.detach().cpu().numpy() if isinstance(source, torch.Tensor) else np.asarray(source)
    form = f"{'a tensor' if is_tensor else 'an array'} of {array.dtype} {array.shape}"
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=-1)
    if is_tensor and array.ndim in (3, 4) and array.shape[-3] == 3:
        array = np.moveaxis(array, -3, -1)
    if array.ndim not in (3, 4) or array.shape[-1] != 3 or not array.size:
        raise ValueError(f"images are [H, W, 3] or [B, H, W, 3] (tensors also [3, H, W] or [B, 3, H, W]), got {form}")
    if array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):  # also false for NaN
            raise ValueError(
                f"floating-point images are in 0..1, got {form} in {array.min():g}..{array.max():g}: give them as they "
                "were before normalisation"
            )
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"images are uint8 in 0..255 or floating-point in 0..1, got {form}")
    array = np.ascontiguousarray(array)
    return list(array) if array.ndim == 4 else [array]


def _is_camera(source: str | os.PathLike[str]) -> bool:
    text = os.fspath(source)
    return text.isdigit() and not os.path.exists(text)


def _files_of(source: str) -> list[Path]:
    """The images and videos that a path or pattern means, by name."""
    path = Path(source)
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGES | VIDEOS)
        if not found:
            raise FileNotFoundError(f"the folder {source} holds no images and no videos")
        return found
    if path.is_file():
        if path.suffix.lower() not in IMAGES | VIDEOS:
            raise ValueError(f"{source} is neither an image ({_list(IMAGES)}) nor a video ({_list(VIDEOS)})")
        return [path]
    if glob.has_magic(source):
        matches = sorted(map(Path, glob.glob(source, recursive=True)))
        found = [file for file in matches if file.suffix.lower() in IMAGES | VIDEOS]
        if found:
            return found
        raise FileNotFoundError(
            f"nothing matches {source!r}" if not matches else f"{source!r} matches no image or video"
        )
    raise FileNotFoundError(f"there is no file or folder {source}")


def _list(suffixes: frozenset[str]) -> str:
    return " ".join(sorted(suffixes))


def _of_arrays(images: Sequence[np.ndarray]) -> Clip:
    def read(threads: int) -> Iterator[Frame]:
        for index, image in enumerate(images):
            yield Frame(f"image {index}", index, image)

    return Clip("images", read, len(images))


def _of_files(files: Sequence[Path], apply_orientation: bool) -> Clip:
    def decode(numbered: tuple[int, Path]) -> Frame:
        index, file = numbered
        try:
            return Frame(str(file), index, read_rgb(file, apply_orientation=apply_orientation))
        except BadImageError as error:
            return Frame(str(file), index, None, str(error))

    name = str(files[0]) if len(files) == 1 else os.path.commonpath([file.parent for file in map(Path.absolute, files)])
    return Clip(name, lambda threads: ahead(decode, enumerate(files), threads), len(files))


def _of_capture(source: str | int, name: str, live: bool = False) -> Clip:
    capture = cv2.VideoCapture(source)
    try:
        if not capture.isOpened():
            raise ValueError(f"{name} cannot be opened" + ("" if live else ": not a video that OpenCV can read"))
        count = None if live else max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))) or None
        rate = float(capture.get(cv2.CAP_PROP_FPS))
    finally:
        capture.release()
    return Clip(name, lambda threads: read_capture(source, name, count), count, rate if 0 < rate < 1000 else 25.0)


def read_capture(source: str | int, name: str, count: int | None) -> Iterator[Frame]:
    """Frame after frame of a video or webcam; one that cannot be decoded has no image, if another comes after it.

    Args:
        source: as `cv2.VideoCapture` takes it.
        name: for messages.
        count: how many frames the header states; a warning says if there are fewer.
    """
    capture = cv2.VideoCapture(source)
    index, lost = 0, 0
    try:
        while lost <= _RETRIES:
            read, image = capture.read()
            if not read:
                lost += 1
                continue
            for _ in range(lost):
                yield Frame(f"{name} frame {index}", index, None, f"{name}: frame {index} cannot be decoded")
                index += 1
            lost = 0
            yield Frame(f"{name} frame {index}", index, cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
            index += 1
    finally:
        capture.release()
    if count is not None and index < count:
        warnings.warn(f"{name} ends after {index} of the {count} frames that it states", stacklevel=2)
