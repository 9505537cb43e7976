"""People in images, videos and arrays: frames are decoded and packed ahead of the network, and nothing is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from posekd import geometry
from posekd.deploy.ahead import background
from posekd.deploy.boxes import Boxes, FindBoxes
from posekd.deploy.finder import Finder, NetworkFinder
from posekd.deploy.frames import Clip, Frame, Source, open_clips
from posekd.skeleton import COCO, Skeleton
from posekd.structures import Instances

GROUP_BYTES = 1 << 26  # pixels of a group of frames; it ends with the frame that exceeds this


@dataclass(frozen=True)
class Found:
    """The people of one frame.

    Attributes:
        clip: what the frame belongs to.
        frame: with its image, so that it can be drawn on.
        image_id: as results write it.
        people: on the CPU, by descending score; nobody in a frame that could not be decoded.
    """

    clip: Clip
    frame: Frame
    image_id: int
    people: Instances


def stream(
    finder: Finder,
    clips: Sequence[Clip],
    boxes: FindBoxes | None = None,
    *,
    image_id: Callable[[Frame], int | None] | None = None,
    batch_size: int = 16,
    threads: int = 2,
) -> Iterator[Found]:
    """Looks for people frame by frame; memory does not grow with the number of frames.

    Args:
        finder: what looks.
        clips: what to look at, one after another.
        boxes: the boxes of a frame, for a finder that crops them; each whole image as one person if None.
        image_id: the number that results give to a frame; where it gives None, and without it, frames are counted from
            0 over all clips.
        batch_size: people (or images) that are looked at together, at least.
        threads: that decode images.

    Raises:
        ValueError: boxes for a finder that sees whole images, or boxes of another form.
        FloatingPointError: a network's output is not finite.
    """

    def packed() -> Iterator[tuple[_Group, Any]]:
        for group in _groups(clips, boxes, batch_size, threads):
            shown = [(frame.image, own) for _, frame, own in group if frame.image is not None]
            own = None if boxes is None else [given for _, given in shown if given is not None]
            yield group, finder.pack([image for image, _ in shown if image is not None], own)

    number = 0
    for group, pack in background(packed()):
        people = _with_ids(finder.find(pack), [own for _, _, own in group if own is not None])
        row = 0
        for clip, frame, _ in group:
            mine = people.take(people.image_ids == (row if frame.image is not None else -1))
            row += frame.image is not None
            given = image_id(frame) if image_id is not None else None
            name = number if given is None else given
            yield Found(clip, frame, name, replace(mine, image_ids=torch.full_like(mine.image_ids, name)))
            number += 1


_Group = list[tuple[Clip, Frame, Boxes | None]]


def _groups(clips: Sequence[Clip], boxes: FindBoxes | None, batch_size: int, threads: int) -> Iterator[_Group]:
    """Frames with their boxes, together at least a batch of people; frames without an image have no boxes."""
    group: _Group = []
    rows, size = 0, 0
    for clip in clips:
        for frame in clip.read(threads):
            own = boxes(frame) if boxes is not None else None
            own = None if frame.image is None else own
            group.append((clip, frame, own))
            rows += 1 if boxes is None else len(own or ())
            size += 0 if frame.image is None else frame.image.nbytes
            if rows >= batch_size or size >= GROUP_BYTES:
                yield group
                group, rows, size = [], 0, 0
    if group:
        yield group


def _with_ids(people: Instances, boxes: Sequence[Boxes]) -> Instances:
    """People with the ids of their boxes, instead of their place among all boxes of a group."""
    ids = torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *(own.ids for own in boxes)]))
    return replace(people, sample_ids=ids[people.sample_ids]) if len(ids) and len(people) else people


def predict(
    model: nn.Module,
    images: Source | Sequence[Source],
    *,
    boxes: Sequence[np.ndarray] | None = None,
    box_scores: Sequence[np.ndarray] | None = None,
    skeleton: Skeleton = COCO,
    settings: Any = None,
    padding: float = geometry.PADDING,
    batch_size: int = 16,
    threads: int = 2,
) -> Instances:
    """All people in images, videos, arrays or tensors.

    Args:
        model: of any paradigm, on any device.
        images: see `deploy.frames.open_clips`.
        boxes: for a network that crops boxes: `[n, 4]` (x, y, width, height; pixels) for each frame; each whole image
            as one person if None.
        box_scores: `[n]` for each frame, confidence of its boxes.
        skeleton: the K keypoints of the network.
        settings: the paradigm's settings of inference.
        padding: factor by which crops are larger than boxes.
        batch_size: crops or images per batch.
        threads: that decode images.

    Returns:
        People by frame and descending score, on the CPU; `image_ids` count the frames from 0. Frames that cannot be
        decoded have nobody.

    Raises:
        FileNotFoundError: a file or folder that is not there.
        ValueError: sources, boxes or settings of another form, or fewer boxes than frames.
        FloatingPointError: the network's output is not finite.

    Examples:
        >>> import numpy as np
        >>> from posekd import create_model
        >>> from posekd.deploy.predict import predict
        >>> model = create_model("elpn_v1", size=(64, 64), width=8, modules=(1,), blocks=1, stem_width=8)
        >>> people = predict(model, np.zeros((2, 120, 100, 3), np.uint8))
        >>> tuple(people.keypoints.shape), people.image_ids.tolist()
        ((2, 17, 3), [0, 1])
    """
    finder = NetworkFinder(model, skeleton, settings, padding, batch_size)
    return predict_with(finder, images, boxes, box_scores, batch_size=batch_size, threads=threads)


def predict_with(
    finder: Finder,
    images: Source | Sequence[Source],
    boxes: Sequence[np.ndarray] | None = None,
    box_scores: Sequence[np.ndarray] | None = None,
    *,
    batch_size: int = 16,
    threads: int = 2,
) -> Instances:
    """`predict` with any finder."""
    clips = open_clips(images)
    given = None if boxes is None else iter(_paired(boxes, box_scores))

    def next_boxes(frame: Frame) -> Boxes:
        assert given is not None
        try:
            return next(given)
        except StopIteration:
            raise ValueError(f"boxes for {len(boxes or ())} frames were given, and {frame.name} is one more") from None

    found = stream(finder, clips, None if boxes is None else next_boxes, batch_size=batch_size, threads=threads)
    return everybody(found, finder.skeleton)


def everybody(found: Iterable[Found], skeleton: Skeleton) -> Instances:
    """The people of all frames as one set."""
    return Instances.concatenate([one.people for one in found], skeleton.num_keypoints)


def _paired(boxes: Sequence[np.ndarray], scores: Sequence[np.ndarray] | None) -> list[Boxes]:
    if scores is not None and [len(s) for s in scores] != [len(b) for b in boxes]:
        raise ValueError(
            f"scores for {[len(s) for s in scores]} boxes were given, with {[len(b) for b in boxes]} boxes"
        )
    if any(np.size(own) % 4 for own in boxes):
        raise ValueError(f"boxes are [n, 4] for each frame, got {[np.shape(own) for own in boxes]}")
    return [Boxes.of(own, None if scores is None else scores[i]) for i, own in enumerate(boxes)]
