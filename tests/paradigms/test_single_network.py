"""Inference of a network that finds people and keypoints at once, with a network that knows the labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.people_oracle import PeopleOracle
from helpers.tiny_models import tiny_model
from torch import Tensor

from posekd import geometry, ops
from posekd.codecs import people
from posekd.codecs.reordered import Reordered
from posekd.data import LoaderSettings, PoseRecords
from posekd.data.sources.arrays import ImagesInMemory
from posekd.data.synthetic import SyntheticPeople, SyntheticSettings
from posekd.engine.evaluate import evaluate
from posekd.paradigms.inference import find_people
from posekd.paradigms.single_network import (
    SingleNetworkInference,
    input_matrices,
    input_sizes,
    look,
    open_loader,
    predict,
    prepare,
    suppress,
)
from posekd.skeleton import COCO
from posekd.structures import Instances

TINY = {"head_dim": 8, "head_mid": 4, "grouping_widths": (4, 8)}


class Drawn:
    """People given by keypoints and boxes in grey images, as a dataset."""

    def __init__(self, sizes: list[tuple[int, int]], points: list[np.ndarray], boxes: list[np.ndarray]) -> None:
        images = [np.full((*size, 3), 90, np.uint8) for size in sizes]
        bare = ImagesInMemory(images, COCO, boxes)
        self.records: PoseRecords = replace(bare.records, keypoints=np.concatenate(points).astype(np.float32))
        self.load_image, self.image_name = bare.load_image, bare.image_name


def figure(box: tuple[float, float, float, float]) -> np.ndarray:
    """17 keypoints spread over a box (x, y, width, height), `[1, 17, 3]`."""
    rng = np.random.default_rng(1)
    low, size = np.array(box[:2]), np.array(box[2:])
    return np.concatenate((low + size * (0.15 + 0.7 * rng.random((17, 2))), np.full((17, 1), 2.0)), 1)[None]


def drawn(sizes: list[tuple[int, int]], boxes: list[list[tuple[float, float, float, float]]]) -> Drawn:
    points = [np.concatenate([np.zeros((0, 17, 3)), *map(figure, own)]) for own in boxes]
    return Drawn(sizes, points, [np.array(own, np.float64).reshape(-1, 4) for own in boxes])


def find(source, settings: SingleNetworkInference, monkeypatch, size: int = 128) -> Instances:
    first, square = settings.scales.index(1.0), settings.square
    oracle = PeopleOracle(COCO.flip, size, settings.flip_test, settings.letterbox, first, square)
    monkeypatch.setattr(people, "crop_table", oracle.watch_boxes)
    loader = open_loader(source, oracle.spec, LoaderSettings(3, 0), training=False, inference=settings)
    with torch.inference_mode():
        parts = [predict(oracle, packed, oracle.spec, COCO.flip, settings) for packed in oracle.watch(loader)]
    return suppress(Instances.concatenate(parts, 17), COCO, settings)


SETTINGS = [
    {"flip_test": False},
    {"flip_test": True},
    {"flip_test": False, "letterbox": True},
    {"flip_test": True, "scales": (0.5, 1.0, 1.5)},
    {"flip_test": False, "scales": (1.0, 1.5), "size": 192},
    {"flip_test": True, "scales": (0.6, 1.0, 1.2, 1.5, 1.8)},  # the published multi-scale test
    {"flip_test": False, "square": 2.0, "decode": "gaussian"},
]
SIZES = [(130, 200), (200, 130), (150, 150), (131, 201)]
BOXES = [
    [(20.0, 30.0, 50.0, 80.0), (120.0, 25.0, 40.0, 90.0)],
    [(30.0, 60.0, 60.0, 120.0)],
    [],
    [(0.0, 10.0, 60.0, 121.0)],  # reaches the border
]


@pytest.mark.parametrize("changes", SETTINGS, ids=str)
def test_ideal_maps_give_back_everybody(changes, monkeypatch):
    """Boxes within a pixel of the map, keypoints near it: images of any shape, with nobody, people at the border."""
    source, settings = drawn(SIZES, BOXES), SingleNetworkInference(**changes)
    found = find(source, settings, monkeypatch)
    short = settings.size or 128
    for image, own in enumerate(BOXES):
        here = found.take(found.image_ids == image)
        best = here.take(here.box_scores > 0.8)
        assert len(best) == len(own)
        side = max(SIZES[image]) if settings.letterbox else min(SIZES[image])
        pixel = 4 * side / short  # of the map, in image pixels
        for box, points in zip(own, source.records.keypoints[source.records.image_rows == image], strict=True):
            gaps = (best.boxes - torch.tensor(box)).abs().amax(1)
            assert gaps.min() < pixel
            off = (best.keypoints[gaps.argmin(), :, :2] - torch.tensor(points[:, :2])).norm(dim=1)
            assert off.median() < (0.34 if settings.decode == "quarter" else 0.05) * pixel
            assert off.max() < 0.75 * pixel


def test_sixty_people_leave_as_many_as_are_asked_for(monkeypatch):
    grid = [(5.0 + 25 * i, 5.0 + 40 * j, 20.0, 34.0) for i in range(10) for j in range(6)]
    found = find(drawn([(256, 256)], [grid]), SingleNetworkInference(flip_test=False, top_k=64), monkeypatch, 256)
    assert 20 < len(found) <= 32
    every = SingleNetworkInference(flip_test=False, top_k=128, max_boxes=100)
    assert len(find(drawn([(256, 256)], [grid]), every, monkeypatch, 256)) >= 55


def test_a_dataset_of_nobody(monkeypatch):
    assert len(find(drawn([(100, 100)], [[]]), SingleNetworkInference(), monkeypatch)) == 0


def test_two_metrics_of_one_run(monkeypatch):
    """Keypoint and box AP, both near 1 for ideal maps, and the keypoints decide which network is the best."""
    source = SyntheticPeople(SyntheticSettings(images=6, size=(160, 128), people=(1, 1), difficulty=0.0))
    settings = SingleNetworkInference(flip_test=False)
    oracle = PeopleOracle(COCO.flip, 128, False)
    monkeypatch.setattr(people, "crop_table", oracle.watch_boxes)
    oracle.paradigm = "single_network"
    loader = LoaderSettings(6, 0)
    oracle.packed = next(iter(open_loader(source, oracle.spec, loader, training=False, inference=settings)))
    report = evaluate(oracle, source, settings, loader=loader)
    numbers = report.numbers()
    assert list(report.scores) == ["coco_keypoints", "coco_boxes"]
    assert next(iter(numbers)) == "AP"
    assert numbers["AP"] > 0.9
    assert numbers["box AP"] > 0.8


def shared_out(
    values: Tensor, shares: Tensor, scores: list[float], images: list[int], rounds: int = 5
) -> list[list[int]]:
    choice, score = people._shared_out(
        values, shares, torch.tensor(scores), torch.tensor(images), max(images) + 1, rounds
    )
    return torch.where(score > 0, choice, -1).tolist()


def test_a_peak_goes_to_whom_it_suits_best_and_the_loser_takes_the_next():
    values = torch.tensor([[[0.9, 0.5, 0.0]], [[0.8, 0.7, 0.1]], [[0.9, 0.0, 0.0]]])
    shares = torch.tensor([[[0.9, 0.5, 0.0]], [[0.8, 0.7, 0.1]], [[0.9, 0.0, 0.0]]])
    assert shared_out(values, shares, [0.5, 0.9, 0.4], [0, 0, 0]) == [[1], [0], [-1]]
    assert shared_out(values, shares, [0.5, 0.9, 0.4], [0, 0, 1]) == [[1], [0], [0]]  # of another image
    assert shared_out(values, shares, [0.5, 0.5, 0.5], [0, 0, 0]) == [[0], [1], [-1]]  # equals: the earlier box
    assert shared_out(values, shares, [0.5, 0.9, 0.4], [0, 0, 0], rounds=0) == [[-1], [0], [-1]]


def test_crops_are_sampled_where_their_matrices_say():
    """ROIAlign of a map that says its own coordinates."""
    y, x = torch.meshgrid(torch.arange(60.0), torch.arange(80.0), indexing="ij")
    maps = torch.stack((x, y))[None]
    boxes = torch.tensor([[20.0, 10.0, 40.0, 50.0], [30.0, 20.0, 50.0, 30.0]])
    matrices = people.crop_matrices(boxes)
    crops = ops.roi_align(maps, people.crop_table(matrices, torch.zeros(2, dtype=torch.int64)), people.CROP, 1.0, 2)
    v, u = torch.meshgrid(torch.arange(64.0), torch.arange(48.0), indexing="ij")
    grid = torch.stack((u, v), -1).view(1, -1, 2).expand(2, -1, 2)
    expected = geometry.transform_keypoints(grid, matrices).view(2, 64, 48, 2).permute(0, 3, 1, 2)
    inside = ((expected > 1) & (expected < torch.tensor([78.0, 58.0])[:, None, None])).all(1, keepdim=True)
    torch.testing.assert_close(crops * inside, expected * inside, atol=1e-3, rtol=1e-4)


def test_mirrored_maps_say_the_same():
    """A network that sees the mirror image finds the same corners, to a thousandth of a pixel."""
    source = drawn([(128, 128)], [[(20.0, 30.0, 51.0, 80.0)]])
    settings = SingleNetworkInference(flip_test=True)
    oracle = PeopleOracle(COCO.flip, 128)
    oracle.packed = next(iter(open_loader(source, oracle.spec, LoaderSettings(1, 0), training=False)))
    images = torch.zeros(1, 3, 128, 128)
    plain = people.final(oracle(images), 17, settings)
    mirrored = people.unmirror(people.final(oracle(images), 17, settings), COCO.flip)
    (left_top, right_bottom), (right_top, left_bottom) = (
        corners[0, 0, :, 0, :2] for corners in (plain.corners, mirrored.mirrored)
    )
    torch.testing.assert_close(torch.stack((left_bottom[0], right_top[1])), left_top, atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.stack((right_top[0], left_bottom[1])), right_bottom, atol=1e-3, rtol=0)
    assert plain.centers.argmax() == mirrored.centers.argmax()


def test_sizes():
    settings = SingleNetworkInference(scales=(0.6, 1.0, 1.2, 1.5, 1.8))
    assert input_sizes(480, 640, 512, settings) == ((320, 448), (512, 704), (640, 896), (768, 1024), (960, 1280))
    assert input_sizes(640, 480, 512, SingleNetworkInference(letterbox=True)) == ((512, 512),)
    assert input_sizes(640, 480, 256, SingleNetworkInference(square=1.75)) == ((448, 448),)
    with pytest.raises(ValueError, match=r"square 1.1 times 64 pixels.*choose them so that it is a multiple of 64"):
        input_sizes(640, 480, 64, SingleNetworkInference(square=1.1))
    sizes = torch.tensor([[480, 640]])
    corner = geometry.transform_keypoints(torch.tensor([[[0.0, 64.0]]]), input_matrices(sizes, (512, 512), True))
    assert corner[0, 0].tolist() == [0.0, 0.0]


def test_training_boxes_are_hulls_of_turned_outlines():
    """A lying bar, turned by 90 degrees, has a standing box; one pixel is too little to be seen."""
    source = drawn([(128, 128)], [[(44.0, 54.0, 40.0, 20.0), (10.0, 10.0, 0.5, 0.5)]])
    oracle = PeopleOracle(COCO.flip, 128)
    packed = next(iter(open_loader(source, oracle.spec, LoaderSettings(1, 0), training=False)))
    packed.rotations[:] = 90.0
    batch = prepare(packed, oracle.spec, COCO.flip)
    assert batch.boxes[0, 0].tolist() == pytest.approx([54.0, 44.0, 74.0, 84.0], abs=1e-3)
    assert not batch.boxes[0, 1].any()
    assert batch.keypoints[0].shape == (1, 2, 17, 3)
    packed.rotations[:] = 0.0
    packed.centers[:, 0] += 60.0  # the bar is cut by the input's left side: what is inside stays
    assert prepare(packed, oracle.spec, COCO.flip).boxes[0, 0].tolist() == pytest.approx([0.0, 54.0, 24.0, 74.0])
    packed.centers[:, 0] += 24.5
    assert not prepare(packed, oracle.spec, COCO.flip).boxes[0, 0].any()  # wholly outside


def test_a_real_network_goes_through():
    model = tiny_model("simple_w18", num_keypoints=17, **TINY)
    images = [np.random.default_rng(0).integers(0, 255, (70, 90, 3), np.uint8)]
    for settings in (SingleNetworkInference(), SingleNetworkInference(complete=False, oks_threshold=0.9)):
        found = find_people(model, images, COCO, settings)
        assert found.keypoints.isfinite().all()
        assert (found.boxes[:, 2:] >= 0).all()


def test_a_network_of_another_order_of_keypoints():
    model = tiny_model("simple_w18", num_keypoints=5, **TINY)
    order = [3, 0, 4]
    other = Reordered(model, order)
    x, crops = torch.randn(1, 3, 64, 64), torch.rand(2, 5, 64, 48)
    torch.testing.assert_close(other(x)[0], model(x)[0][:, order])
    crops[:, [1, 2]] = 0
    torch.testing.assert_close(other.group(crops[:, order]), model.group(crops)[:, order])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales": ()}, "scales must be positive"),
        ({"scales": (0.5, 2.0)}, "scales must contain 1"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"box_threshold": -0.1}, "box_threshold must be 0 or more"),
        ({"oks_threshold": 0.0}, "oks_threshold is an OKS"),
        ({"size": 0}, "size is a side in pixels"),
        ({"square": 0.0}, "square is a side in units of an image's short side, above 0, or null; got 0.0"),
        ({"square": 1.5, "letterbox": True}, "beside letterbox, which is another square"),
        ({"decode": "dark"}, "decode must be quarter or gaussian, got 'dark'"),
    ],
)
def test_settings_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SingleNetworkInference(**changes)


def test_outputs_that_are_refused():
    wrong = [torch.zeros(1, 17, 8, 8), torch.zeros(1, 2, 8, 8), torch.zeros(1, 6, 8, 8)]
    with pytest.raises(ValueError, match=r"points \[B, 3, h, w\] and offsets .* this one gives \(1, 17, 8, 8\)"):
        people.read(wrong)
    with pytest.raises(ValueError, match=r"gives heatmaps \[B, 5, h, w\]"):
        people.read([torch.zeros(1, k, 8, 8) for k in (17, 3, 6)], 5)


def test_people_in_given_boxes(monkeypatch):
    """As in tracking, where boxes come from the frame before: one person for each box, in the boxes' order."""
    settings = SingleNetworkInference(flip_test=False)
    box = [(120.0, 25.0, 40.0, 90.0), (20.0, 30.0, 50.0, 80.0)]
    source = drawn([(130, 200)], [box])
    oracle = PeopleOracle(COCO.flip, 128, False)
    monkeypatch.setattr(people, "crop_table", oracle.watch_boxes)
    loader = open_loader(source, oracle.spec, LoaderSettings(1, 0), training=False, inference=settings)
    with torch.inference_mode():
        (found,) = (look(oracle, packed, oracle.spec, COCO.flip, settings) for packed in oracle.watch(loader))
    assert found.sample_ids.tolist() == [0, 1]
    assert found.box_scores.tolist() == [1, 1]
    np.testing.assert_allclose(found.boxes.numpy(), box, atol=1e-3)
    np.testing.assert_allclose(found.keypoints[..., :2].numpy(), source.records.keypoints[..., :2], atol=2)
