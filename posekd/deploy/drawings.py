"""Images and videos with the people drawn on them who were found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from posekd.deploy.frames import Clip, Frame
from posekd.deploy.predict import Found
from posekd.deploy.results import Add
from posekd.files import replacing
from posekd.skeleton import Skeleton
from posekd.viz.draw import draw_poses

# a track's box and number; Okabe and Ito's colour-blind safe colours
TRACKS = ((240, 228, 66), (86, 180, 233), (213, 94, 0), (204, 121, 167), (0, 158, 115), (230, 159, 0), (0, 114, 178))


def draw_people(image: np.ndarray, found: Found, skeleton: Skeleton, threshold: float = 0.2) -> np.ndarray:
    """An image with its people, of the same size: keypoints above the threshold, edges, and the tracks' numbers.

    Args:
        image: uint8 RGB `[H, W, 3]`; not changed.
        found: the people of the image.
        skeleton: their keypoints.
        threshold: of keypoint scores.
    """
    height, width = image.shape[:2]
    line = max(2, round(max(height, width) / 300))
    people = found.people
    canvas = draw_poses(image, people.keypoints.numpy(), skeleton, zoom=1, threshold=threshold, line=line)
    for row in range(len(people)) if people.track_ids is not None else ():
        assert people.track_ids is not None
        seen = people.keypoints[row, people.keypoints[row, :, 2] > threshold, :2]
        if not len(seen):
            continue
        track = int(people.track_ids[row])
        x, y = (round(value) for value in seen.amin(0).tolist())
        place, size = (max(0, x), max(10 * line, y - 4 * line)), 0.45 * line
        for colour, thick in (((0, 0, 0), 2 * line + 1), (TRACKS[track % len(TRACKS)], line)):
            cv2.putText(canvas, str(track), place, cv2.FONT_HERSHEY_SIMPLEX, size, colour, thick, cv2.LINE_AA)
    return canvas


@contextmanager
def drawings(folder: Path, skeleton: Skeleton, threshold: float = 0.2) -> Iterator[Add]:
    """Draws each image into a PNG, and each video into an MP4 of the same frame rate and as many frames.

    A frame of a video that could not be decoded shows the frame before it. Of equal names the later ones get a number.

    Raises:
        OSError: a file cannot be written; what was drawn before is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    used: set[str] = set()
    video: _Video | None = None

    def add(found: Found) -> None:
        nonlocal video
        if video is not None and video.clip is not found.clip:
            video.close()
            video = None
        if found.clip.rate is None:
            if found.frame.image is not None:
                name = _free(Path(found.frame.name).stem, used)
                _write_png(draw_people(found.frame.image, found, skeleton, threshold), folder / f"{name}.png")
            return
        if video is None:
            video = _Video(folder / f"{_free(Path(found.clip.name).stem, used)}.mp4", found.clip)
        drawn = None if found.frame.image is None else draw_people(found.frame.image, found, skeleton, threshold)
        video.add(drawn, found.frame)

    try:
        yield add
    finally:
        if video is not None:
            video.close()


def _free(stem: str, used: set[str]) -> str:
    name, number = stem or "image", 1
    while name in used:
        number += 1
        name = f"{stem}-{number}"
    used.add(name)
    return name


def _write_png(image: np.ndarray, path: Path) -> None:
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise OSError(f"{path}: OpenCV cannot write an image of {image.shape}")
    with replacing(path) as temporary:
        temporary.write_bytes(data.tobytes())


class _Video:
    """A video that grows frame by frame; it keeps its name however it ends.

    Args:
        path: the file.
        clip: whose frames are drawn, at whose rate.
    """

    def __init__(self, path: Path, clip: Clip) -> None:
        self.path, self.clip, self.count, self._missing = path, clip, 0, 0
        self._writer: cv2.VideoWriter | None = None
        self._last: np.ndarray | None = None

    def add(self, drawn: np.ndarray | None, frame: Frame) -> None:
        """Appends a frame; None repeats the last one."""
        if drawn is None:
            if self._last is None:  # of which size is not known yet
                self._missing += 1
                return
            drawn = self._last
        if self._writer is None:
            self._open(drawn)
            for _ in range(self._missing):
                self._write(np.zeros_like(drawn))
        if self._last is not None and drawn.shape != self._last.shape:
            drawn = cv2.resize(drawn, self._last.shape[1::-1])
        self._write(drawn)
        self._last = drawn

    def _open(self, image: np.ndarray) -> None:
        height, width = image.shape[:2]
        assert self.clip.rate is not None
        writer = cv2.VideoWriter(str(self.path), cv2.VideoWriter.fourcc(*"mp4v"), self.clip.rate, (width, height))
        if not writer.isOpened():
            raise OSError(f"{self.path} cannot be written: OpenCV opens no MP4 of {width} x {height} there")
        self._writer = writer

    def _write(self, image: np.ndarray) -> None:
        assert self._writer is not None
        self._writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        self.count += 1

    def close(self) -> None:
        """Finishes the file, and reads its header: the writer itself says nothing of a full disk.

        Raises:
            OSError: the file has fewer frames than were written.
        """
        if self._writer is None:
            return
        self._writer.release()
        self._writer = None
        capture = cv2.VideoCapture(str(self.path))
        written = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
        capture.release()
        if written != self.count:
            raise OSError(f"{self.path} has {max(0, written)} of {self.count} frames: is the disk full?")
