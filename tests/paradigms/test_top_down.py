"""Top-down inference: flip test, decoding to the image, rescoring, OKS-NMS, results in COCO's format."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from posekd import geometry, ops
from posekd.engine.scoring.coco import coco_results, write_results
from posekd.paradigms import TopDownInference
from posekd.paradigms.inference import find_in_batches
from posekd.paradigms.top_down import ask, suppress
from posekd.skeleton import Skeleton
from posekd.structures import InputSpec, Instances, PackedCropBatch, Pixels

FLIP = (0, 2, 1, 4, 3)
FIVE = Skeleton("five", ("n", "left_a", "right_a", "left_b", "right_b"), (), FLIP, (0.05,) * 5)
ONE = Skeleton("one", ("n",), (), (0,), (0.05,))
TWO = Skeleton("two", ("left_a", "right_a"), (), (1, 0), (0.05,) * 2)
THREE = Skeleton("three", ("a", "b", "c"), (), (0, 1, 2), (0.05,) * 3)
SPEC = InputSpec(size=(64, 48))
PLAIN = TopDownInference(flip_test=False)


class Fixed(nn.Module):
    """Gives the same heatmaps whatever it sees."""

    def __init__(self, heatmaps: Any) -> None:
        super().__init__()
        self.heatmaps = heatmaps

    def forward(self, images: torch.Tensor) -> Any:
        return self.heatmaps


class Strided(nn.Module):
    """A fixed random convolution of stride 4: not symmetric, so that a mirror matters."""

    spec = SPEC

    def __init__(self, num_keypoints: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, num_keypoints, 4, 4)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.conv.weight.normal_(generator=generator)
            self.conv.bias.zero_()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images)


def batch(
    count: int, keypoints: int = 5, centers: torch.Tensor | None = None, scales: torch.Tensor | None = None
) -> PackedCropBatch:
    """Persons of one grey pixel; without centres and scales a pixel of the crop is one of the image."""
    pixels = Pixels(
        data=torch.full((3,), 128, dtype=torch.uint8),
        offsets=torch.zeros(1, dtype=torch.int64),
        shapes=torch.tensor([[1, 1, 3]]),
        origins=torch.zeros(1, 2),
        index=torch.zeros(count, dtype=torch.int64),
    )
    return PackedCropBatch(
        pixels=pixels,
        keypoints=torch.zeros(count, keypoints, 3),
        centers=torch.tensor([[24.0, 32.0]]).repeat(count, 1) if centers is None else centers,
        scales=torch.tensor([[48.0, 64.0]]).repeat(count, 1) if scales is None else scales,
        rotations=torch.zeros(count),
        zooms=torch.ones(count),
        flips=torch.zeros(count, dtype=torch.bool),
        boxes=torch.zeros(count, 4),
        box_scores=torch.full((count,), 0.5),
        image_ids=torch.arange(count),
        sample_ids=torch.arange(count) + 100,
    )


def predict(
    model: nn.Module, batches: list[PackedCropBatch], skeleton: Skeleton = FIVE, settings: Any = None
) -> Instances:
    return find_in_batches(model, batches, skeleton, settings, spec=SPEC)


def test_flip_test_is_the_explicit_computation():
    """Mirror, exchange left and right, shift right by one column (column 0 stays), average."""
    model, images = Strided(), torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        straight = model(images).numpy()
        mirrored = model(torch.from_numpy(images.numpy()[..., ::-1].copy())).numpy()
        got = ask(model, images, FLIP, TopDownInference())[1]
        unshifted = ask(model, images, FLIP, TopDownInference(shift_heatmaps=False))[1]
    back = mirrored[..., ::-1][:, list(FLIP)].copy()
    np.testing.assert_allclose(unshifted, (straight + back) / 2, rtol=1e-6, atol=1e-6)
    shifted = back.copy()
    for column in range(1, 12):
        shifted[..., column] = back[..., column - 1]
    np.testing.assert_allclose(got, (straight + shifted) / 2, rtol=1e-6, atol=1e-6)


def test_flip_test_of_a_symmetric_network_keeps_the_joints_apart():
    """A left keypoint seen in the mirror must come back as the left keypoint."""
    left = torch.zeros(1, 5, 16, 12)
    left[0, 1, 8, 3] = 1  # left_a at column 3

    class Watching(nn.Module):
        def forward(self, images):
            seen = left if images[0, 0, 0, 0] == 0 else left.flip(-1)[:, list(FLIP)]
            return seen

    images = torch.zeros(1, 3, 64, 48)
    images[..., -1] = 1
    got = ask(Watching(), images, FLIP, TopDownInference(shift_heatmaps=False))[1]
    assert torch.equal(got, left)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_heatmaps_are_decoded_into_the_image(dtype):
    """Stride from the sizes, one matrix a crop: image = center + (out - size / 2) * scale / width (HRNet)."""
    points = torch.tensor([[[5.0, 7.0, 1.0], [9.0, 3.0, 1.0]]]).repeat(2, 1, 1)
    heatmaps, _ = ops.render_heatmaps(points, (16, 12), 1.0)
    centers, scales = torch.tensor([[100.0, 50.0], [10.0, 20.0]]), torch.tensor([[96.0, 128.0], [24.0, 32.0]])
    packed = batch(2, 2, centers, scales)
    assert torch.equal(packed.matrices(SPEC.size), geometry.crop_matrices(centers, scales, None, None, (64, 48)))
    poses = predict(Fixed(heatmaps.to(dtype)), [packed], TWO, PLAIN)
    for b, zoom in enumerate((2.0, 0.5)):
        expected = centers[b] + (points[b, :, :2] * 4 - torch.tensor([24.0, 32.0])) * zoom
        np.testing.assert_allclose(poses.keypoints[b, :, :2], expected, atol=1e-4)
    assert poses.keypoints[..., 2].numpy() == pytest.approx(1.0)
    assert poses.keypoints.dtype == torch.float32
    assert poses.sample_ids.tolist() == [100, 101]


@pytest.mark.parametrize("stride", [2, 8])
def test_stride_follows_from_the_sizes(stride):
    points = torch.tensor([[[3.0, 4.0, 1.0]]])
    heatmaps, _ = ops.render_heatmaps(points, (64 // stride, 48 // stride), 1.0)
    poses = predict(Fixed(heatmaps), [batch(1, 1)], ONE, PLAIN)
    np.testing.assert_allclose(poses.keypoints[0, 0, :2], [3.0 * stride, 4.0 * stride])


def test_the_model_is_evaluated_in_eval_mode_and_left_as_it_was():
    class Moded(Strided):
        def forward(self, images):
            assert not self.training
            assert not torch.is_grad_enabled()
            return super().forward(images)

    model = Moded().train()
    predict(model, [batch(1)])
    assert model.training
    predict(model.eval(), [batch(1)])
    assert not model.training


def test_autocast_gives_float32_heatmaps_near_the_exact_ones():
    model, images = Strided(), torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        exact = ask(model, images, FLIP, TopDownInference())[1]
        half = ask(model, images, FLIP, TopDownInference(precision="bf16"))[1]
    assert half.dtype == torch.float32
    assert not torch.equal(half, exact)
    torch.testing.assert_close(half, exact, rtol=0.02, atol=0.2)


def test_a_broken_network_is_named():
    data = [batch(2)]
    nan = torch.zeros(2, 5, 16, 12)
    nan[1, 2, 0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="NaN or infinite values for 1 of 2 persons, first 101 of image 1"):
        predict(Fixed(nan), data, FIVE, PLAIN)
    with pytest.raises(ValueError, match="the network has 17 heatmaps, the dataset 5 keypoints"):
        predict(Fixed(torch.zeros(2, 17, 16, 12)), data, FIVE, PLAIN)
    with pytest.raises(
        ValueError, match=r"gives heatmaps \[B, K, h, w\], one tensor per stage or one; this one gives dict"
    ):
        predict(Fixed({"heatmaps": torch.zeros(2, 5, 16, 12)}), data, FIVE, PLAIN)
    with pytest.raises(ValueError, match="heatmaps of 16x16 do not cover crops of 64x48 evenly"):
        predict(Fixed(torch.zeros(2, 5, 16, 16)), data, FIVE, PLAIN)
    with pytest.raises(ValueError, match="Fixed has no `spec`"):
        find_in_batches(Fixed(None), data, FIVE)


def test_of_several_stages_the_last_counts():
    data = [batch(2)]
    first, last = torch.rand(2, 2, 5, 16, 12, generator=torch.Generator().manual_seed(0))
    found = predict(Fixed([first, last]), data, FIVE, PLAIN)
    assert torch.equal(found.keypoints, predict(Fixed(last), data, FIVE, PLAIN).keypoints)
    assert not torch.equal(found.keypoints, predict(Fixed(first), data, FIVE, PLAIN).keypoints)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"oks_threshold": 0.0}, "oks_threshold is an OKS"),
        ({"precision": "half"}, "precision must be fp32, bf16 or fp16, got 'half'"),
        ({"decode": "mean"}, "decode must be argmax, quarter or dark"),
    ],
)
def test_settings_refuse_what_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        TopDownInference(**change)


def poses_of(keypoints: np.ndarray, box_scores: list[float], image_ids: list[int]) -> Instances:
    n = len(keypoints)
    points = torch.from_numpy(keypoints.astype(np.float32))
    return Instances(
        keypoints=points,
        scores=points[..., 2].mean(1),
        boxes=torch.zeros(n, 4),
        box_scores=torch.tensor(box_scores),
        areas=torch.full((n,), 400.0),
        image_ids=torch.tensor(image_ids),
        sample_ids=torch.arange(n),
    )


def test_results_are_rescored_and_freed_of_duplicates_within_an_image():
    one = np.array([[0.0, 0.0, 0.9], [10.0, 10.0, 0.5], [20.0, 20.0, 0.1]])
    other = one + np.array([500.0, 0.0, 0.0])
    poses = poses_of(np.stack([one, other, one, one]), [0.5, 1.0, 1.0, 0.25], [3, 3, 3, 1])
    results = coco_results(suppress(poses, THREE, TopDownInference()), category_id=2)
    # mean of the keypoint scores above 0.2: 0.7. Row 0 is a duplicate of row 2, row 3 is in another image.
    assert [(r["image_id"], round(r["score"], 6)) for r in results] == [(1, 0.175), (3, 0.7), (3, 0.7)]
    assert results[1]["keypoints"][::3] == [500.0, 510.0, 520.0]  # equal scores: the earlier row first
    assert all(r["category_id"] == 2 and len(r["keypoints"]) == 9 for r in results)
    kept = coco_results(suppress(poses, THREE, TopDownInference(oks_threshold=1.0)))
    assert len(kept) == 4


def test_results_are_plain_json_with_coordinates_to_a_thousandth(tmp_path):
    poses = poses_of(np.array([[[1.23456, 2.0, 0.5]]]), [1.0], [3])
    results = coco_results(suppress(poses, ONE, TopDownInference()))
    assert results == [{"image_id": 3, "category_id": 1, "keypoints": [1.235, 2.0, 0.5], "score": 0.5}]
    file = tmp_path / "new" / "results.json"
    write_results(results, file)
    assert json.loads(file.read_text()) == results
    assert [p.name for p in file.parent.iterdir()] == ["results.json"]  # no temporary file is left


def test_no_poses_give_no_results():
    assert coco_results(suppress(predict(Strided(), []), FIVE, TopDownInference())) == []
