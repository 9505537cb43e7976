"""Images in memory as a dataset, for prediction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from posekd.coco_rules import usable
from posekd.data.records import PoseRecords
from posekd.skeleton import Skeleton


class ImagesInMemory:
    """A `PoseSource` of arrays, without labels.

    Args:
        images: uint8 RGB `[H, W, 3]` each; not copied.
        skeleton: the K keypoints of the network that will see them.
        boxes: for each image the boxes of its people, `[n, 4]` (x, y, width, height) in pixels; if None, one box around
            each whole image.
        box_scores: for each image the confidence of its boxes, `[n]`; 1 if None.

    Raises:
        ValueError: a malformed image or box, or numbers of boxes and images that disagree.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        skeleton: Skeleton,
        boxes: Sequence[np.ndarray] | None = None,
        box_scores: Sequence[np.ndarray] | None = None,
    ) -> None:
        for row, image in enumerate(images):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                raise ValueError(f"image {row} must be uint8 RGB [H, W, 3], got {image.dtype} {image.shape}")
        self._images = images
        sizes = np.array([image.shape[:2] for image in images], np.int64).reshape(-1, 2)
        if boxes is None:
            boxes = [np.array([[0.0, 0.0, width, height]]) for height, width in sizes.tolist()]
        given = [_checked_boxes(own, row) for row, own in enumerate(boxes)]
        scores = [np.ones(len(own)) for own in given] if box_scores is None else [np.asarray(s) for s in box_scores]
        if len(given) != len(images) or [len(own) for own in scores] != [len(own) for own in given]:
            raise ValueError(
                f"{len(images)} images, boxes for {len(given)} of them and scores for {[len(s) for s in scores]} boxes "
                f"({[len(b) for b in given]} are there): give as many lists as images and as many scores as boxes"
            )
        count = sum(map(len, given))
        self.records = PoseRecords(
            skeleton=skeleton,
            image_ids=np.arange(len(images)),
            image_sizes=sizes,
            image_rows=np.repeat(np.arange(len(images)), [len(own) for own in given]),
            keypoints=np.zeros((count, skeleton.num_keypoints, 3), np.float32),
            boxes=np.concatenate([np.zeros((0, 4)), *given]).astype(np.float32),
            box_scores=np.concatenate([np.zeros(0), *scores]).astype(np.float32),
            sample_ids=np.arange(count),
            metrics=(),
        )

    def load_image(self, row: int, reduction: int = 1) -> np.ndarray:
        """Image `row`, always whole."""
        return self._images[row]

    def image_name(self, row: int) -> str:
        """Name of image `row` for messages."""
        return f"image {row}"


def _checked_boxes(boxes: np.ndarray, row: int) -> np.ndarray:
    own = np.asarray(boxes, np.float64).reshape(-1, 4) if np.size(boxes) else np.zeros((0, 4))
    if not usable(own).all() or (own[:, 2:] < 0).any() or (own[:, 2:].sum(1) <= 0).any():
        raise ValueError(
            f"boxes of image {row} must be finite (x, y, width, height) with an extent, got {own.tolist()}"
        )
    return own
