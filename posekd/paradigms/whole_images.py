"""What paradigms share whose networks see whole images: sizes, loaders, and people who were found twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from posekd import geometry
from posekd.data import ImageAugmentation, LoaderSettings, PackedLoader, PoseSource, image_loader
from posekd.data.loading.teacher_maps import TeacherMaps
from posekd.metrics import oks_nms
from posekd.paradigms.base import OpenLoader
from posekd.skeleton import Skeleton
from posekd.structures import InputSpec, Instances

MULTIPLE = 64  # the sides of the network's input are multiples of this, in pixels
LARGEST = 1 << 26  # pixels of an input: a picture one pixel high would fill the memory


def resize_matrices(image_sizes: Tensor, size: tuple[int, int], square: float | None = None) -> Tensor:
    """Matrices from the pixels of a resized image to those of the image, float32 `[B, 2, 3]`.

    The image's short side fills the short side of `size`, centre on centre; what is left of the long side is border.
    With `square` it fills one part in `square` of it.

    Args:
        image_sizes: int64 `[B, 2]`, heights and widths.
        size: `(height, width)` of the resized images, or of maps that cover them.
        square: see `bottom_up.BottomUpInference`.
    """
    heights, widths = image_sizes.to(torch.float64).unbind(1)
    if square is not None:
        centers, sides = torch.stack((widths / 2, heights / 2), 1), torch.minimum(heights, widths) * square
        return geometry.crop_matrices(centers, sides[:, None].expand(-1, 2), None, None, size)
    # the official centre is a whole pixel
    centers = torch.stack(((widths / 2 + 0.5).floor(), (heights / 2 + 0.5).floor()), 1)
    zoom = torch.where(widths < heights, widths / size[1], heights / size[0])
    scales = torch.stack((zoom * size[1], zoom * size[0]), 1)
    return geometry.crop_matrices(centers, scales, None, None, size)


def refuse_large(height: int, width: int, size: tuple[int, int], remedy: str) -> None:
    """Refuses an image that would fill the memory.

    Raises:
        ValueError: the input has more than `LARGEST` pixels.
    """
    if size[0] * size[1] > LARGEST:
        raise ValueError(
            f"an image of {height} x {width} pixels would become an input of {size[0]} x {size[1]}: cut it into "
            f"pieces, or {remedy}"
        )


def square_side(short: int, square: float, scale: float) -> int:
    """The side of a square of `square` times the short side, in pixels of the network's input.

    Raises:
        ValueError: it is not a multiple of 64.
    """
    side = short * square * scale
    if side % MULTIPLE:
        raise ValueError(
            f"inference.square {square} times {short} pixels, the short side, at scale {scale} is {side:g}: "
            f"choose them so that it is a multiple of {MULTIPLE}"
        )
    return int(side)


def loader_of_images(default: Callable[[], Any], size_class: Callable[[int, int, int, Any], Any]) -> OpenLoader:
    """The `paradigms.base.OpenLoader` of a paradigm.

    Args:
        default: makes its settings of inference where none are given; they have a `size`.
        size_class: from an image's height and width, the short side at scale 1 and these settings to what images must
            agree in to share a batch.
    """

    def open_loader(
        source: PoseSource,
        spec: InputSpec,
        loader: LoaderSettings | None,
        *,
        training: bool,
        augmentation: ImageAugmentation | None = None,
        inference: Any = None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        teacher_maps: TeacherMaps | None = None,
    ) -> PackedLoader:
        """Batches of whole images, see `paradigms.base.OpenLoader`.

        Raises:
            ValueError: a teacher cache, which holds crops of persons.
        """
        if teacher_maps is not None:
            raise ValueError("a teacher cache holds crops of persons: a network that sees whole images cannot use it")
        settings = inference or default()
        short = settings.size or min(spec.size)
        return image_loader(
            source,
            spec.size,
            loader,
            training=training,
            augmentation=augmentation,
            size_class=lambda height, width: size_class(height, width, short, settings),
            seed=seed,
            rank=rank,
            world=world,
        )

    return open_loader


def without_duplicates(found: Instances, skeleton: Skeleton, oks_threshold: float) -> Instances:
    """People by image and descending score; of two of one image with a higher OKS the weaker is removed."""
    image_ids, scores = found.image_ids.numpy(), found.scores.numpy()
    order = np.lexsort((-scores, image_ids))  # stable: by image, then by descending score
    if oks_threshold < 1:
        groups = np.split(order, np.flatnonzero(np.diff(image_ids[order])) + 1) if len(order) else []
        order = np.concatenate(
            [np.zeros(0, np.int64), *(_originals(found, rows, skeleton, oks_threshold) for rows in groups)]
        )
    return found.take(torch.from_numpy(order))


def _originals(found: Instances, rows: np.ndarray, skeleton: Skeleton, oks_threshold: float) -> np.ndarray:
    """Those of some rows, all of one image, that OKS-NMS keeps, in their order."""
    given = found.keypoints.numpy()[rows], found.scores.numpy()[rows], found.areas.numpy()[rows]
    return rows[np.sort(oks_nms(*given, oks_threshold, sigmas=skeleton.sigmas))]
