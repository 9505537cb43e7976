"""Networks that see whole images as modules from images to peaks or people, for exporters.

How large an image becomes follows from its sides, so it is calculated within the graph, in float64 as the paradigms do
it. Ops of ours are called as everywhere; `deploy.plain` has what an exporter puts in their place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from posekd import geometry, ops
from posekd.codecs import people, tagged_heatmaps
from posekd.codecs.people import MergedPeople
from posekd.codecs.tagged_heatmaps import MergedMaps
from posekd.deploy.graphs import neighbours
from posekd.inputs.images import share_inside
from posekd.paradigms import bottom_up as tagged
from posekd.paradigms import single_network as single
from posekd.paradigms.bottom_up import MULTIPLE, BottomUpInference
from posekd.paradigms.single_network import SingleNetworkInference
from posekd.skeleton import Skeleton
from posekd.structures import InputSpec

Size = tuple[int, int]


class _WholeImages(nn.Module):
    """A network with what comes before it.

    Args:
        model: the network, in eval mode.
        skeleton: its K keypoints.
        settings: of inference.
        half: whether the network computes in float16; the rest is float32 always.
    """

    flip: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, skeleton: Skeleton, settings: Any, half: bool = False) -> None:
        super().__init__()
        self.model, self.half_network = model, half
        spec = model.spec
        assert isinstance(spec, InputSpec)
        self.spec, self.short = spec, settings.size or min(spec.size)
        mean, std = (spec.mean[::-1], spec.std[::-1]) if spec.bgr else (spec.mean, spec.std)  # the pixels are RGB
        self.register_buffer("flip", torch.tensor(skeleton.flip), persistent=False)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def asked(self, images: Tensor, flip_test: bool) -> list[Any]:
        """What the network says of images and, in a flip test, of their mirror images, which share its one batch."""
        given = torch.cat((images, images.flip(-1))) if flip_test else images
        output = list(self.model(given.half() if self.half_network else given))
        count = images.shape[0]
        return [output] if not flip_test else [[t[:count] for t in output], [t[count:] for t in output]]

    def resized(self, image: Tensor, matrix: Tensor, size: Size) -> Tensor:
        """Normalised images `[B, 3, *size]`: bilinear samples at one matrix without rotation, zero outside.

        Rows and columns are sampled one after the other, which rounds a little differently than `ops.crop_warp`.

        Args:
            image: uint8 `[B, H, W, 3]`.
            matrix: float32 `[2, 3]`, pixel of the result to pixel of the image.
            size: `(height, width)`.
        """
        x = (matrix[0, 0] * torch.arange(size[1], device=image.device) + matrix[0, 2])[None]
        y = (matrix[1, 1] * torch.arange(size[0], device=image.device) + matrix[1, 2])[None]
        rows = _lerped(image, y, 1)
        pixels = _lerped(rows, x, 2).permute(0, 3, 1, 2)
        images = (pixels / 255 - self.mean) / self.std
        return images.flip(1) if self.spec.bgr else images


def _lerped(image: Tensor, at: Tensor, dim: int) -> Tensor:
    """Linear samples of `[B, H, W, C]` at positions `[1, n]` along dimension 1 or 2, in float32."""
    parts = [
        image.index_select(dim, index[0]).float() * (weight[0][:, None, None] if dim == 1 else weight[0][:, None])
        for index, weight in neighbours(at, image.shape[dim])
    ]
    return parts[0] + parts[1]


def _sides(image: Tensor) -> tuple[Tensor, Tensor]:
    """Height and width of images `[B, H, W, 3]` as float64 scalars."""
    return (
        torch.scalar_tensor(image.shape[1], dtype=torch.float64, device=image.device),
        torch.scalar_tensor(image.shape[2], dtype=torch.float64, device=image.device),
    )


def _size(image: Tensor, least: int, longer: Callable[[Tensor], Tensor]) -> Size:
    """The size of a resized image: its shorter side is `least`, its longer one `longer` of what the aspect makes of it.

    Both are in units of `MULTIPLE` pixels, of which an exporter then knows that they can be halved.
    """
    height, width = _sides(image)
    most = longer(least / torch.minimum(height, width) * torch.maximum(height, width))
    short = torch.full_like(most, least // MULTIPLE)
    lying = height <= width
    units = [int_of(torch.where(lying, short, most)), int_of(torch.where(lying, most, short))]
    return units[0] * MULTIPLE, units[1] * MULTIPLE


def int_of(value: Tensor) -> int:
    """A positive whole number in a float64 scalar, as a size."""
    number = value.long().item()
    torch._check(number >= 1)
    torch._check(number <= 1 << 14)
    return number  # type: ignore[return-value]


def _image_sizes(image: Tensor) -> Tensor:
    """`[1, 2]`, height and width of the images, whole numbers in float64."""
    return torch.stack(_sides(image))[None]


class BottomUpGraph(_WholeImages):
    """A bottom-up network with its preprocessing, its maps' aggregation, and their peaks.

    Args:
        model: the network, in eval mode.
        skeleton: its K keypoints.
        settings: of inference.
        half: whether the network computes in float16.

    Raises:
        ValueError: a scale at which sides are no multiples of a pixel of the graph.
    """

    def __init__(self, model: nn.Module, skeleton: Skeleton, settings: BottomUpInference, half: bool = False) -> None:
        super().__init__(model, skeleton, settings, half)
        self.settings = settings
        smallest = min(settings.scales)
        for scale in settings.scales:
            if MULTIPLE * scale / smallest % MULTIPLE and settings.square is None:
                raise ValueError(
                    f"a graph can enlarge images by whole numbers only, and scale {scale:g} is {scale / smallest:g} "
                    f"times the smallest one: choose others than {list(settings.scales)}"
                )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The peaks of images of one size.

        Args:
            image: uint8 RGB `[B, H, W, 3]`.

        Returns:
            peaks `[B, K, M, 2]` (x, y in map pixels) by descending score, scores `[B, K, M]`, tags `[B, K, M, T]`,
            zeros where there are fewer than M; heatmaps `[B, K, h, w]`, tag_maps `[B, K, h, w, T]`, and matrices
            `[B, 2, 3]` from map pixels to image pixels. All float32.
        """
        settings, sizes = self.settings, _image_sizes(image)
        smallest = self._smallest_size(image)

        def size_at(scale: float) -> Size:
            if settings.square is not None:
                return tagged.input_size(MULTIPLE, MULTIPLE, self.short, scale, settings)
            factor = round(scale / min(settings.scales))
            return smallest[0] * factor, smallest[1] * factor

        def maps_at(scale: float) -> MergedMaps:
            size = size_at(scale)
            matrices = tagged.resize_matrices(sizes, size, settings.square)
            said = self.asked(self.resized(image, matrices[0], size), settings.flip_test)
            views = [tagged_heatmaps.final(output, len(self.flip)) for output in said]
            if not settings.flip_test:
                return views[0]
            return tagged_heatmaps.average(views[0], tagged_heatmaps.unmirror(views[1], self.flip))

        heatmaps, tags = tagged.aggregate(maps_at, size_at(1.0), settings)
        size = (heatmaps.shape[2], heatmaps.shape[3])
        matrices = tagged.resize_matrices(sizes, size, settings.square)
        if not settings.search_border:
            heatmaps = heatmaps * (share_inside(sizes.float(), matrices, size) > 0.5)[:, None]
        found = ops.top_k_peaks(
            heatmaps,
            tags,
            max_people=settings.max_people,
            detection_threshold=settings.detection_threshold,
            nms_kernel=settings.nms_kernel,
        )
        matrices = matrices.expand(image.shape[0], -1, -1)
        return found[..., :2], found[..., 2], found[..., 3:], heatmaps, tags, matrices

    def _smallest_size(self, image: Tensor) -> Size:
        """The size at the smallest scale, see `paradigms.bottom_up.resized`; nothing without its need."""
        if self.settings.square is not None:
            return 0, 0
        smallest = min(self.settings.scales)
        least, _ = tagged.resized(MULTIPLE, MULTIPLE, self.short, smallest, smallest)
        return _size(image, least, lambda side: ((side + (MULTIPLE - 1)) / MULTIPLE).floor())


class PeopleGraph(_WholeImages):
    """A network that finds people by itself, with its preprocessing and decoding.

    Args:
        model: the network, in eval mode.
        skeleton: its K keypoints.
        settings: of inference.
        half: whether the network computes in float16.

    Raises:
        ValueError: several scales.
    """

    def __init__(
        self, model: nn.Module, skeleton: Skeleton, settings: SingleNetworkInference, half: bool = False
    ) -> None:
        super().__init__(model, skeleton, settings, half)
        if len(settings.scales) > 1:
            raise ValueError(
                f"a graph sees images at one scale, got scales {list(settings.scales)}: choose one of them to export"
            )
        if single.codec_of(model) is not people:
            raise ValueError(
                f"{model.name} finds people by {single.codec_of(model).NAME}: only those by points can be exported"
            )
        self.settings = settings

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The people in images of one size.

        Args:
            image: uint8 RGB `[B, H, W, 3]`.

        Returns:
            keypoints `[B, M, K, 3]` (x, y, score) in image pixels, scores `[B, M]`, boxes `[B, M, 4]` (x, y, width,
            height), and box_scores `[B, M]` by descending score; zeros where there are fewer people than M. All
            float32.
        """
        settings, K = self.settings, len(self.flip)
        sizes, size = _image_sizes(image), self._input_size(image)
        matrices = single.input_matrices(sizes, size, settings.letterbox, settings.square)
        said = self.asked(self.resized(image, matrices[0], size), settings.flip_test)
        views = [people.final(output, K, settings) for output in said]
        maps = views[0]
        if settings.flip_test:
            maps = people.average(maps, people.unmirror(views[1], self.flip))
        to_image = geometry.heatmap_matrices(matrices, people.STRIDE)
        return self._found(maps, to_image.expand(image.shape[0], -1, -1), sizes)

    def _input_size(self, image: Tensor) -> Size:
        """See `paradigms.single_network.input_sizes`."""
        (least, _), *_ = single.input_sizes(MULTIPLE, MULTIPLE, self.short, self.settings)
        if self.settings.letterbox or self.settings.square is not None:
            return least, least
        return _size(image, least, lambda side: (side / MULTIPLE).ceil())

    def _found(self, maps: MergedPeople, to_image: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `paradigms.single_network.find_people`, with room for `max_boxes` people in each image."""
        settings = self.settings
        B, M = to_image.shape[0], settings.max_boxes
        pixel = (to_image[:, 0, 0] * to_image[:, 1, 1] - to_image[:, 0, 1] * to_image[:, 1, 0]).abs()
        boxes, scores, _ = people.boxes(maps, pixel, settings)
        peaks = people.peaks_of(maps.heatmaps, settings)
        scores = torch.where(scores > settings.box_threshold, scores, 0.0)
        boxes = torch.where((scores > 0)[..., None], boxes, 0.0)
        images = torch.arange(B, device=scores.device)[:, None].expand(-1, M).reshape(-1)
        found = people.keypoints(
            maps.heatmaps, peaks, boxes.flatten(0, 1), scores.flatten(), images, M, self._group, settings,
            (scores > 0).sum(1).max(),
        )  # fmt: skip
        found = torch.where((scores > 0).flatten()[:, None, None], found, 0.0)
        keypoints, own, boxes = single.finished(
            found, boxes.flatten(0, 1), scores.flatten(), to_image[images], sizes.expand(B * M, -1)
        )
        return keypoints.unflatten(0, (B, M)), own.unflatten(0, (B, M)), boxes.unflatten(0, (B, M)), scores

    def _group(self, crops: Tensor) -> Tensor:
        masks: Tensor = self.model.group(crops.half() if self.half_network else crops)  # type: ignore[operator]
        return masks.float()
