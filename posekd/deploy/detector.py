"""Boxes of people from a detector in an ONNX file, whose kind is told by its inputs and outputs.

What they see and give:

* `yolo` (v8, 11): RGB / 255, letterboxed; `[1, 4 + C, A]`, rows of centre x, y, width, height and C class scores.
* `yolo_objectness` (v5, v7): the same; `[1, A, 5 + C]`, an objectness between box and class scores.
* `yolo_final` (v10, 26, or with NMS inside): the same; `[1, N, 6]`, corners x1, y1, x2, y2, score, class.
* `rtdetr`: RGB / 255, stretched, and the image's width and height; labels `[1, N]`, boxes `[1, N, 4]` (corners in the
  image) and scores `[1, N]`.
* `rtmdet` (as MMDeploy exports it): BGR less mean over deviation, in the upper left corner; dets `[1, N, 5]` (corners,
  score) and labels `[1, N]`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np

from posekd.deploy.boxes import Boxes
from posekd.deploy.frames import Frame
from posekd.deploy.onnx_finder import open_session
from posekd.files import nearest

PAD = 114  # grey beside an image that does not fill the input, in YOLO and RTMDet
DEFAULT_SIDE = 640  # of an input whose size may vary
MANY = 1000  # more rows than any detector gives at its end: they are anchors, before NMS
# RTMDet's data preprocessor: blue, green, red
RTMDET_MEAN, RTMDET_STD = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)


class Found(NamedTuple):
    """What a detector says: corners float `[n, 4]`, scores `[n]`, classes `[n]`."""

    corners: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


class Input(NamedTuple):
    """What a detector sees, uint8 RGB `[h, w, 3]`; the image's pixel is (input - offset) / scale, each (x, y)."""

    image: np.ndarray
    scale: np.ndarray
    offset: np.ndarray


@dataclass(frozen=True)
class Kind:
    """A kind of detectors.

    Attributes:
        fit: makes an input of a size from an image.
        read: takes the outputs apart.
        normalise: from uint8 RGB to floating-point `[h, w, 3]`.
        in_image: whether boxes are in pixels of the image, not of the input.
        nms: whether duplicates are still there.
    """

    fit: Callable[[np.ndarray, int, int], Input]
    read: Callable[[list[np.ndarray]], Found]
    normalise: Callable[[np.ndarray], np.ndarray]
    in_image: bool = False
    nms: bool = False


def _letterbox(image: np.ndarray, height: int, width: int, centred: bool = True) -> Input:
    """The image at its own aspect ratio, and grey beside it."""
    scale = min(height / image.shape[0], width / image.shape[1])
    h, w = (max(1, round(side * scale)) for side in image.shape[:2])
    canvas = np.full((height, width, 3), PAD, np.uint8)
    top, left = ((height - h) // 2, (width - w) // 2) if centred else (0, 0)
    canvas[top : top + h, left : left + w] = cv2.resize(image, (w, h))
    return Input(canvas, np.array([w / image.shape[1], h / image.shape[0]]), np.array([left, top]))


def _corner(image: np.ndarray, height: int, width: int) -> Input:
    return _letterbox(image, height, width, centred=False)


def _stretch(image: np.ndarray, height: int, width: int) -> Input:
    scale = np.array([width / image.shape[1], height / image.shape[0]])
    return Input(cv2.resize(image, (width, height)), scale, np.zeros(2))


def _unit(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32) / 255


def _rtmdet(image: np.ndarray) -> np.ndarray:
    mean, std = (np.array(values, np.float32) for values in (RTMDET_MEAN, RTMDET_STD))
    return (image[..., ::-1].astype(np.float32) - mean) / std


def _around(centres: np.ndarray) -> np.ndarray:
    """Corners of boxes that are given by centre and size."""
    return np.concatenate([centres[:, :2] - centres[:, 2:4] / 2, centres[:, :2] + centres[:, 2:4] / 2], 1)


def _best(boxes: np.ndarray, scores: np.ndarray) -> Found:
    classes = scores.argmax(1)
    return Found(_around(boxes), scores[np.arange(len(scores)), classes], classes)


def _read_yolo(outputs: list[np.ndarray]) -> Found:
    rows = outputs[0][0].T
    return _best(rows[:, :4], rows[:, 4:])


def _read_objectness(outputs: list[np.ndarray]) -> Found:
    rows = outputs[0][0]
    return _best(rows[:, :4], rows[:, 4:5] * rows[:, 5:])


def _read_final(outputs: list[np.ndarray]) -> Found:
    rows = outputs[0][0]
    return Found(rows[:, :4], rows[:, 4], rows[:, 5].round().astype(int))


def _read_rtdetr(outputs: list[np.ndarray]) -> Found:
    boxes = next(output for output in outputs if output.ndim == 3)
    flat = [output for output in outputs if output.ndim == 2]
    labels = next((output for output in flat if output.dtype.kind in "iu"), flat[0])
    scores = next(output for output in flat if output is not labels)
    return Found(boxes[0], scores[0], labels[0].astype(int))


def _read_rtmdet(outputs: list[np.ndarray]) -> Found:
    rows = next(output for output in outputs if output.ndim == 3)[0]
    labels = next(output for output in outputs if output.ndim == 2)[0]
    return Found(rows[:, :4], rows[:, 4], labels.astype(int))


KINDS = {
    "yolo": Kind(_letterbox, _read_yolo, _unit, nms=True),
    "yolo_objectness": Kind(_letterbox, _read_objectness, _unit, nms=True),
    "yolo_final": Kind(_letterbox, _read_final, _unit),
    "rtdetr": Kind(_stretch, _read_rtdetr, _unit, in_image=True),
    "rtmdet": Kind(_corner, _read_rtmdet, _rtmdet),
}
"""Name -> kind; the module's table says what they are."""


def kind_of(inputs: int, shapes: list[tuple[int, ...]]) -> str | None:
    """The kind of a detector.

    Args:
        inputs: number of its inputs.
        shapes: of what it gave for one image.

    Returns:
        A name in `KINDS`; None if there is none for it.
    """
    last = sorted((len(shape), shape[-1]) for shape in shapes)
    if inputs == 2 and last[-1] == (3, 4) and [n for n, _ in last] == [2, 2, 3]:
        return "rtdetr"
    if inputs != 1:
        return None
    if len(shapes) == 2 and last[1] == (3, 5) and last[0][0] == 2:
        return "rtmdet"
    if len(shapes) != 1 or len(shapes[0]) != 3:
        return None
    _, rows, columns = shapes[0]
    if columns == 6 and rows <= MANY:
        return "yolo_final"
    if rows < columns and rows > 4:
        return "yolo"
    return "yolo_objectness" if columns > 5 else None


class Detector:
    """Finds the boxes of people (or of another class) in a frame; a `FindBoxes`.

    Args:
        path: the `.onnx` file.
        person_class: index of the class that counts.
        threshold: boxes with a lower score are left out, 0..1.
        kind: a name in `KINDS`; told by inputs and outputs if None.
        nms_threshold: of two boxes that overlap by more (IoU, 0..1) the weaker is removed, where the detector has not.
        threads: of onnxruntime.

    Attributes:
        kind: see above.
        size: height and width of its input.

    Raises:
        MissingPackageError: onnxruntime is not installed.
        FileNotFoundError: no such file.
        ValueError: no detector of a known kind; the message gives its inputs and outputs.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        person_class: int = 0,
        threshold: float = 0.3,
        kind: str | None = None,
        nms_threshold: float = 0.65,
        threads: int | None = None,
    ) -> None:
        if kind is not None and kind not in KINDS:
            raise ValueError(f"unknown kind of detector {kind!r}{nearest(kind, KINDS)}")
        self.path, self.person_class, self.threshold, self.nms_threshold = path, person_class, threshold, nms_threshold
        self._session = open_session(path, threads)
        self._inputs = self._session.get_inputs()
        self.size = self._input_size()
        self._told = False
        if kind is None:
            outputs = self._run(_stretch(np.full((8, 8, 3), PAD, np.uint8), *self.size).image, _unit, (8, 8))
            kind = kind_of(len(self._inputs), [output.shape for output in outputs])
            if kind is None:
                raise ValueError(
                    f"{path} is no detector of a known kind: its inputs are "
                    f"{[(given.name, given.shape) for given in self._inputs]}, and it gives "
                    f"{[output.shape for output in outputs]}; if it is one, name its kind ({', '.join(KINDS)})"
                )
        self.kind = kind

    def __call__(self, frame: Frame) -> Boxes:
        """The boxes of a frame, by descending score; none of a frame without an image.

        Raises:
            ValueError: outputs that are not of the detector's kind.
        """
        if frame.image is None:
            return Boxes.of([])
        kind, (height, width) = KINDS[self.kind], frame.image.shape[:2]
        shown = kind.fit(frame.image, *self.size)
        outputs = self._run(shown.image, kind.normalise, (height, width))
        try:
            corners, scores, classes = kind.read(outputs)
        except (IndexError, StopIteration, ValueError) as error:
            shapes = [output.shape for output in outputs]
            raise ValueError(f"{self.path} gives {shapes}, which is not what {self.kind} gives") from error
        keep = (classes == self.person_class) & (scores >= self.threshold)
        corners, scores = corners[keep].astype(np.float64), scores[keep].astype(np.float64)
        if not kind.in_image:
            corners = (corners - np.tile(shown.offset, 2)) / np.tile(shown.scale, 2)
        boxes, scores = self._usable(corners, scores, height, width)
        order = np.argsort(-scores, kind="stable")
        if kind.nms and len(boxes):
            order = np.asarray(cv2.dnn.NMSBoxes(boxes.tolist(), scores.tolist(), 0.0, self.nms_threshold)).reshape(-1)
        return Boxes.of(boxes[order], scores[order])

    def _usable(
        self, corners: np.ndarray, scores: np.ndarray, height: int, width: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (x, y, width, height) that are numbers, have an extent and touch the image; others are told of once."""
        with np.errstate(invalid="ignore"):
            good = np.isfinite(corners).all(1) & (corners[:, 2:] > corners[:, :2]).all(1) & np.isfinite(scores)
            good &= (corners[:, 2:] > 0).all(1) & (corners[:, 0] < width) & (corners[:, 1] < height)
        if not good.all() and not self._told:
            self._told = True
            bad = np.round(corners[~good][0], 1).tolist()
            warnings.warn(
                f"{self.path} gives boxes that are NaN, have no extent or lie beyond the image, the first with the "
                f"corners {bad}: they are left out",
                stacklevel=2,
            )
        corners, scores = corners[good], scores[good]
        return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1), scores

    def _input_size(self) -> tuple[int, int]:
        shape = self._inputs[0].shape
        if len(shape) != 4 or (isinstance(shape[1], int) and shape[1] != 3):
            raise ValueError(
                f"{self.path} is no detector: its input is {shape}, and [1, 3, height, width] was expected"
            )
        height, width = (side if isinstance(side, int) and side > 0 else DEFAULT_SIDE for side in shape[2:])
        return height, width

    def _run(
        self, image: np.ndarray, normalise: Callable[[np.ndarray], np.ndarray], size: tuple[int, int]
    ) -> list[np.ndarray]:
        dtype = np.float16 if "float16" in self._inputs[0].type else np.float32
        feed: dict[str, Any] = {self._inputs[0].name: normalise(image).transpose(2, 0, 1)[None].astype(dtype)}
        for extra in self._inputs[1:]:  # RT-DETR's: width and height of the image
            whole = "int" in extra.type
            feed[extra.name] = np.array([size[::-1]], np.int64 if whole else np.float32)
        try:
            outputs: list[np.ndarray] = self._session.run(None, feed)
            return outputs
        except Exception as error:  # onnxruntime's errors share no class
            raise ValueError(f"{self.path} cannot be run as a detector: {error}") from error
