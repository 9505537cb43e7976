"""Bottom-up inference equals the official procedure, one image at a time, whatever shares a batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.official_grouping import Parser
from helpers.oracle_network import BottomUpOracle
from torch import nn

from posekd.data import LoaderSettings, image_loader
from posekd.data.loading.whole_images import ImageAugmentation, ImageDataset
from posekd.data.records import PoseRecords
from posekd.data.synthetic import SyntheticPeople, SyntheticSettings
from posekd.inputs import prepare_images
from posekd.paradigms.bottom_up import (
    BottomUpInference,
    input_size,
    predict,
    predict_maps,
    resized,
)
from posekd.paradigms.whole_images import resize_matrices
from posekd.skeleton import COCO, Skeleton
from posekd.structures import InputSpec, Instances

SPEC = InputSpec(size=(64, 64))


class SmoothNet(nn.Module):
    """Maps that depend on the image: a few wide convolutions with fixed weights, peaks well above the threshold."""

    def __init__(self, keypoints: int = 17) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.K, self.spec, self.flip = keypoints, SPEC, COCO.flip
        self.coarse = nn.Conv2d(3, 2 * keypoints, 9, stride=4, padding=4)
        self.fine = nn.Conv2d(3, keypoints, 9, stride=2, padding=4)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        coarse, fine = self.coarse(x), self.fine(x)
        return [torch.cat((coarse[:, : self.K], 4 * coarse[:, self.K :]), 1), fine]


class Pictures(SyntheticPeople):
    """Synthetic people in images of several shapes."""

    def __init__(self, shapes: list[tuple[int, int]]) -> None:
        self.parts = [SyntheticPeople(SyntheticSettings(images=1, size=s, seed=i)) for i, s in enumerate(shapes)]
        first = self.parts[0].records
        rows = [np.full(len(p.records), i) for i, p in enumerate(self.parts)]
        stacked = {
            name: np.concatenate([getattr(p.records, name) for p in self.parts])
            for name in ("keypoints", "boxes", "box_scores", "sample_ids", "outlines")
        }
        self.records = replace(
            first,
            image_ids=np.arange(1, len(shapes) + 1),
            image_sizes=np.array(shapes),
            image_rows=np.concatenate(rows),
            **stacked,
        )

    def load_image(self, row: int) -> np.ndarray:
        return self.parts[row].load_image(0)


SHAPES = [(60, 90), (90, 60), (64, 64), (61, 91), (48, 100), (120, 180), (59, 89)]


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return Pictures(SHAPES)


# ---- Sizes --------------------------------------------------------------------------------------------------------


# HigherHRNet's get_multi_scale_size by hand: the short side first rounded up to a multiple of 64 at the smallest scale,
# then the long side; other scales multiply.
@pytest.mark.parametrize(
    ("image", "scale", "smallest", "expected"),
    [
        ((480, 640), 1, 1, (512, 704)),  # 512 / 480 * 640 = 682.7
        ((640, 480), 1, 1, (704, 512)),
        ((512, 512), 1, 1, (512, 512)),
        ((427, 640), 1, 1, (512, 768)),  # 767.4
        ((480, 640), 0.5, 0.5, (256, 384)),  # 341.3
        ((480, 640), 1, 0.5, (512, 768)),  # not 704: it follows the smallest scale
        ((480, 640), 2, 0.5, (1024, 1536)),
        ((480, 640), 1, 0.3, (640, 853)),  # 0.3 * 512 -> 192; 192 / 0.3 = 640; 256 / 0.3 = 853.3
    ],
)
def test_sizes(image, scale, smallest, expected):
    assert resized(*image, 512, scale, smallest) == expected


@pytest.mark.parametrize(("height", "width"), [(480, 640), (641, 480), (333, 500), (500, 333)])
def test_the_image_lies_centred_and_undistorted(height, width):
    """Short side to short side, the whole-pixel centre of the image on the centre of the input."""
    size = resized(height, width, 512, 1, 1)
    matrix = resize_matrices(torch.tensor([[height, width]]), size)[0].double()
    zoom = min(height, width) / 512
    assert torch.allclose(matrix[:, :2], torch.eye(2).double() * zoom)
    center = matrix @ torch.tensor([size[1] / 2, size[0] / 2, 1.0]).double()
    assert torch.allclose(center, torch.tensor([int(width / 2 + 0.5), int(height / 2 + 0.5)]).double(), atol=1e-3)


# ---- The official procedure, one image at a time ---------------------------------------------------------------------


def sample(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, zeros outside, in float64: `cv2.warpAffine` without its steps of 1/32 of a pixel."""
    x, y = np.meshgrid(np.arange(size[1]), np.arange(size[0]))
    u, v = (matrix[i, 0] * x + matrix[i, 1] * y + matrix[i, 2] for i in (0, 1))
    padded = np.pad(image.astype(np.float64), ((1, 2), (1, 2), (0, 0)))
    u, v = np.clip(u, -1, image.shape[1]) + 1, np.clip(v, -1, image.shape[0]) + 1
    i, j = v.astype(int), u.astype(int)
    a, b = (v - i)[..., None], (u - j)[..., None]
    top = padded[i, j] * (1 - b) + padded[i, j + 1] * b
    bottom = padded[i + 1, j] * (1 - b) + padded[i + 1, j + 1] * b
    return top * (1 - a) + bottom * a


def official_maps(model, image: np.ndarray, settings: BottomUpInference) -> tuple[torch.Tensor, torch.Tensor]:
    """Heatmaps `[K, H, W]` and tags `[K, H, W, T]`: each step as the official test script takes it."""
    height, width = image.shape[:2]
    smallest, K = min(settings.scales), model.K
    base = resized(height, width, 64, 1.0, smallest)
    total, tags = None, []
    for scale in sorted(settings.scales, reverse=True):
        size = resized(height, width, 64, scale, smallest)
        seen = sample(image, to_image(image, size), size) / 255
        x = torch.from_numpy((seen - model.spec.mean) / model.spec.std).permute(2, 0, 1)[None].float()
        heat, own_tags = [], []
        for mirrored in (False, True)[: 1 + settings.flip_test]:
            coarse, fine = model(x.flip(3) if mirrored else x)
            coarse = enlarge(coarse, fine.shape[2:])
            if mirrored:
                coarse, fine = coarse.flip(3), fine.flip(3)
            order = list(model.flip) if mirrored else list(range(K))
            heat.append(((coarse[:, :K] + fine) / 2)[:, order])
            own_tags.append(coarse[:, K:][:, order])
        if settings.project_to_input:
            heat, own_tags = ([enlarge(m, base) for m in maps] for maps in (heat, own_tags))
        if scale == 1 or len(settings.scales) == 1:
            if total is not None and not settings.project_to_input:
                own_tags = [enlarge(m, total.shape[2:]) for m in own_tags]
            tags = own_tags
        mean = sum(heat) / len(heat)
        if total is None:
            total = mean
        elif settings.project_to_input:
            total = total + mean
        else:
            total = total + enlarge(mean, total.shape[2:])
    return (total / len(settings.scales))[0], torch.stack(tags, -1)[0]


def enlarge(maps: torch.Tensor, size) -> torch.Tensor:
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def to_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """HigherHRNet's transform backwards: short side on short side, the whole-pixel centre on the centre."""
    height, width = image.shape[:2]
    zoom = width / size[1] if width < height else height / size[0]
    center = int(width / 2 + 0.5), int(height / 2 + 0.5)
    return np.array([[zoom, 0, center[0] - zoom * size[1] / 2], [0, zoom, center[1] - zoom * size[0] / 2]])


def by_image(packed, found: Instances) -> dict[int, Instances]:
    """The people of each image of a batch."""
    return {image_id: found.take(found.image_ids == image_id) for image_id in packed.image_ids.tolist()}


def batches(source, settings, batch_size):
    size_class = lambda h, w: resized(h, w, 64, 1.0, min(settings.scales))  # noqa: E731
    return image_loader(source, (64, 64), LoaderSettings(batch_size, 0), training=False, size_class=size_class)


@pytest.mark.parametrize("project", [True, False])
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 2.0), (2.0,)])
@pytest.mark.parametrize("flip", [True, False])
def test_maps_of_a_batch_are_those_of_the_official_procedure(pictures, flip, scales, project):
    model = SmoothNet().eval()
    settings = BottomUpInference(flip_test=flip, scales=scales, project_to_input=project)
    seen = []
    with torch.inference_mode():
        for packed in batches(pictures, settings, 3):
            maps = predict_maps(model, packed, SPEC, COCO.flip, settings)
            for image_id, heat, tags in zip(packed.image_ids.tolist(), *maps, strict=True):
                expected = official_maps(model, pictures.load_image(image_id - 1), settings)
                torch.testing.assert_close(heat, expected[0], rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(tags, expected[1], rtol=1e-4, atol=1e-4)
                seen.append(image_id)
    assert sorted(seen) == [1, 2, 3, 4, 5, 6, 7]


class Blobs:
    """Three keypoints a person, one a colour; how bright they are says whose they are."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.images = []
        for height, width in SHAPES:
            y, x = np.mgrid[:height, :width][..., None]
            image = np.zeros((height, width, 3))
            corners = [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)]
            for brightness, corner in zip((0.25, 0.5, 0.75, 1.0), corners, strict=True):
                at = (np.array(corner)[:, None] + rng.uniform(-0.12, 0.12, (2, 3))) * [[height], [width]]
                spread = 0.07 * min(height, width)
                image = np.maximum(image, brightness * np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / (2 * spread**2)))
            self.images.append((image * 255).astype(np.uint8))
        skeleton = Skeleton("rgb", ("r", "g", "b"), (), (0, 1, 2), (0.1,) * 3)
        count = len(SHAPES)
        self.records = PoseRecords(
            skeleton, np.arange(1, count + 1), np.array(SHAPES), np.zeros(0, np.int64), np.zeros((0, 3, 3), np.float32),
            np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64),
        )  # fmt: skip

    def load_image(self, row: int) -> np.ndarray:
        return self.images[row]


class BlobNet(nn.Module):
    """Heatmaps are the colours; tags their brightness nearby."""

    K, flip, spec = 3, (0, 1, 2), InputSpec((64, 64), (0, 0, 0), (1, 1, 1))

    def forward(self, x):
        coarse, brightness = F.avg_pool2d(x, 4), F.max_pool2d(F.max_pool2d(x, 4), 3, 1, 1)
        return [torch.cat((coarse, 10 * (4 * brightness).round()), 1), F.avg_pool2d(x, 2)]


@pytest.mark.parametrize("project", [True, False])
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 2.0)])
def test_people_of_a_batch_are_those_of_the_official_procedure(scales, project):
    source, model = Blobs(), BlobNet()
    settings = BottomUpInference(scales=scales, project_to_input=project)
    for packed in batches(source, settings, 3):
        found = predict(model, packed, model.spec, model.flip, settings)
        for image_id, people in by_image(packed, found).items():
            image = source.load_image(image_id - 1)
            heat, tags = official_maps(model, image, settings)
            parse = Parser()(heat.numpy(), tags.numpy())
            assert not parse.ambiguous
            matrix = to_image(image, heat.shape[1:])
            points = parse.people[..., :3].astype(np.float64)
            points[..., :2] = points[..., :2] @ matrix[:, :2].T + matrix[:, 2]
            assert len(people.scores) == len(points) >= 4
            np.testing.assert_allclose(people.keypoints, np.where(points[..., 2:] > 0, points, 0), atol=1e-3)
            np.testing.assert_allclose(people.scores, parse.scores, atol=1e-5)


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0)])
def test_a_batch_gives_what_each_image_gives_alone(scales):
    """Nothing of one image reaches another."""
    source, model, settings = Blobs(), BlobNet(), BottomUpInference(scales=scales)
    together, alone = (
        {image_id: people for packed in batches(source, settings, size)
         for image_id, people in by_image(packed, predict(model, packed, model.spec, model.flip, settings)).items()}
        for size in (4, 1)
    )  # fmt: skip
    assert together.keys() == alone.keys() == set(range(1, 8))
    for image_id, people in alone.items():
        np.testing.assert_allclose(together[image_id].keypoints, people.keypoints, atol=1e-4)
        np.testing.assert_allclose(together[image_id].scores, people.scores, atol=1e-6)


class Crowd:
    """38 people in one blank image, each in a cell of a 6 x 7 grid."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        cells = np.stack(np.meshgrid(np.arange(7), np.arange(6)), -1).reshape(-1, 2)[:38] * (90, 80) + (5, 0)
        joints = cells[:, None] + rng.uniform(8, (82, 72), (38, 17, 2))
        keypoints = np.concatenate((joints, np.full((38, 17, 1), 2)), -1).astype(np.float32)
        self.records = PoseRecords(
            COCO, np.array([1]), np.array([[480, 640]]), np.zeros(38, np.int64), keypoints,
            np.zeros((38, 4), np.float32), np.ones(38, np.float32), np.arange(38),
        )  # fmt: skip

    def load_image(self, row: int) -> np.ndarray:
        return np.zeros((480, 640, 3), np.uint8)


def test_thirty_eight_people_stay_thirty_eight():
    """HigherHRNet's parser keeps 30 peaks a keypoint, whoever they belong to: here as `max_people=30`."""
    source = Crowd()
    found = {}
    for limit in (BottomUpInference().max_people, 30):
        oracle = BottomUpOracle(COCO.flip, flip=False)
        settings = BottomUpInference(flip_test=False, max_people=limit)
        (packed,) = oracle.watch([ImageDataset(source, (512, 512)).__getitems__([(0, 0)])])
        found[limit] = predict(oracle, packed, oracle.spec, COCO.flip, settings)
    people = found[100]
    assert len(people.scores) == 38
    truth = source.records.keypoints[:, :, :2]
    distance = np.abs(people.keypoints.numpy()[:, None, :, :2] - truth[None]).max((2, 3))
    assert (distance.min(1) < 5).all()  # each is somebody, with all keypoints
    assert sorted(distance.argmin(1)) == list(range(38))
    assert len(found[30].scores) < 38


def test_a_square_is_the_training_crop_of_that_scale():
    """Images of any shape share a batch, and the network sees what it saw in training without augmentation."""
    shapes = [(50, 100), (100, 75), (61, 61)]
    source, spec = Pictures(shapes), InputSpec(size=(128, 128))
    keys = [(0, row) for row in range(len(shapes))]
    crops = ImageDataset(source, (128, 128), augmentation=ImageAugmentation(0.0, 0.0, (2.0, 2.0), 0.0)).__getitems__(
        keys
    )
    seen: list[torch.Tensor] = []

    class Camera(SmoothNet):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            seen.append(x)
            return super().forward(x)

    settings = BottomUpInference(flip_test=False, size=64, square=2.0)
    predict(Camera(), ImageDataset(source, (128, 128)).__getitems__(keys), spec, COCO.flip, settings)
    assert torch.allclose(seen[0], prepare_images(crops, spec, COCO.flip).images)
    assert len(seen) == 1


def test_people_come_back_from_a_square():
    source = Crowd()
    settings = BottomUpInference(flip_test=False, size=512, square=1.5)
    oracle = BottomUpOracle(COCO.flip, flip=False, square=1.5)
    (packed,) = oracle.watch([ImageDataset(source, (512, 512)).__getitems__([(0, 0)])])
    people = predict(oracle, packed, oracle.spec, COCO.flip, settings)
    truth = source.records.keypoints[:, :, :2]
    distance = np.abs(people.keypoints.numpy()[:, None, :, :2] - truth[None]).max((2, 3))
    assert len(people.scores) == 38
    assert (distance.min(1) < 5).all()


def test_a_square_must_be_a_multiple_of_64():
    with pytest.raises(ValueError, match=r"inference\.square 1\.1 times 64 pixels.*multiple of 64"):
        input_size(50, 50, 64, 1.0, BottomUpInference(square=1.1))


class PaintedBorder(nn.Module):
    """One keypoint in the image and one in what the image is filled up with."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = InputSpec(size=(64, 64))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        height, width = images.shape[2:]
        coarse = torch.zeros(len(images), 34, height // 4, width // 4)
        fine = torch.zeros(len(images), 17, height // 2, width // 2)
        fine[:, 0, 16, 32] = fine[:, 5, 16, 1] = 1.0
        return [coarse, fine]


def test_without_the_border_nobody_is_found_beyond_the_image():
    """66x100 pixels become 64x97, in the middle of 64x128: column 1 of the fine map lies 13 pixels left of it."""
    source = SyntheticPeople(SyntheticSettings(images=1, size=(66, 100), seed=1))
    packed = ImageDataset(source, (64, 64)).__getitems__([(0, 0)])
    joints = {}
    for border in (True, False):
        settings = BottomUpInference(flip_test=False, adjust=False, refine=False, search_border=border)
        people = predict(PaintedBorder(), packed, SPEC, COCO.flip, settings)
        joints[border] = {int(k): people.keypoints[i, k, :2] for i, k in (people.keypoints[..., 2] > 0).nonzero()}
    assert sorted(joints[True]) == [0, 5]
    assert joints[True][5][0] < 0
    assert sorted(joints[False]) == [0]
    assert np.allclose(joints[True][0], joints[False][0])


def test_evaluation_sends_all_pixels(pictures):
    packed = ImageDataset(pictures, (64, 64)).__getitems__([(0, 0)])
    assert packed.pixels.shapes.tolist() == [[60, 90, 3]]
    assert len(packed.masks.index) == len(packed.mask_rows) == 0
