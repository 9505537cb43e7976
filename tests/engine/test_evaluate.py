"""The top-down evaluation loop: flip test, decoding to the image, rescoring, OKS-NMS, results files."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from posekd import geometry, ops
from posekd.data import LoaderSettings, PoseRecords
from posekd.engine.evaluate import Poses, coco_results, evaluate, forward_heatmaps, predict
from posekd.engine.scoring import write_results
from posekd.paradigms import TopDownInference
from posekd.skeleton import Skeleton
from posekd.structures import CropBatch, InputSpec

FLIP = (0, 2, 1, 4, 3)
FIVE = Skeleton("five", ("n", "left_a", "right_a", "left_b", "right_b"), (), FLIP, (0.05,) * 5)
SPEC = InputSpec(size=(64, 48))
PLAIN = TopDownInference(flip=False)
LOADER = LoaderSettings(batch_size=3, workers=0)


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


class Painted:
    """A `PoseSource` of people whose joints are squares of one grey each: the network below reads them."""

    def __init__(self, labelled: bool = True) -> None:
        boxes = [(20, 30, 60, 80), (200, 100, 48, 64), (90, 20, 96, 128)]
        rng = np.random.default_rng(3)
        self.labelled = labelled
        self.images = np.zeros((2, 240, 320, 3), np.uint8)
        keypoints = np.full((3, 5, 3), 2, np.float32)
        rows = np.array([0, 0, 1])
        for person, (x, y, w, h) in enumerate(boxes):
            keypoints[person, :, 0] = np.round(x + w * rng.uniform(0.1, 0.9, 5))
            keypoints[person, :, 1] = np.round(y + h * (0.1 + 0.2 * np.arange(5)))
            for k, (px, py) in enumerate(keypoints[person, :, :2].astype(int)):
                self.images[rows[person], py - 4 : py + 5, px - 4 : px + 5] = 40 * (k + 1)
        self.records = PoseRecords(
            skeleton=FIVE,
            image_ids=np.array([7, 9]),
            image_sizes=np.array([[240, 320]] * 2),
            image_rows=rows,
            keypoints=keypoints,
            boxes=np.array(boxes, np.float32),
            box_scores=np.array([0.9, 0.8, 0.7], np.float32),
            sample_ids=np.array([11, 12, 13]),
        )

    def load_image(self, row: int) -> np.ndarray:
        return self.images[row]

    def image_name(self, row: int) -> str:
        return f"painted {row}"

    def coco_ground_truth(self) -> dict[str, Any]:
        r = self.records
        people = [
            {
                "id": int(r.sample_ids[i]),
                "image_id": int(r.image_ids[r.image_rows[i]]),
                "category_id": 4,
                "bbox": r.boxes[i].tolist(),
                "area": float(r.boxes[i, 2] * r.boxes[i, 3]),
                "keypoints": r.keypoints[i].reshape(-1).tolist(),
            }
            for i in range(3)
        ]
        return {
            "images": [{"id": int(i)} for i in r.image_ids],
            "categories": [{"id": 4, "name": "five", "keypoints": list(FIVE.keypoints)}],
            "annotations": people if self.labelled else [],
        }


class Reader(nn.Module):
    """Sees the colours of `Painted`: heatmap k is the share of a 4 x 4 block that has joint k's colour."""

    spec = InputSpec(size=(256, 192), mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        red = images[:, :1]
        maps = [((red - 40 * (k + 1)).abs() < 4).float() for k in range(5)]
        return torch.nn.functional.avg_pool2d(torch.cat(maps, 1), 17, 4, 8)[..., :64, :48]


def batch(heatmap_points: torch.Tensor, matrices: torch.Tensor | None = None) -> CropBatch:
    B = len(heatmap_points)
    identity = torch.eye(2, 3).expand(B, 2, 3).contiguous()
    return CropBatch(
        images=torch.zeros(B, 3, 64, 48),
        keypoints=heatmap_points,
        matrices=identity if matrices is None else matrices,
        box_scores=torch.full((B,), 0.5),
        boxes=torch.zeros(B, 4),
        areas=torch.full((B,), 3072.0),
        image_ids=torch.arange(B),
        sample_ids=torch.arange(B) + 100,
    )


def test_flip_test_is_the_explicit_computation():
    """Mirror, exchange left and right, shift right by one column (column 0 stays), average."""
    model, images = Strided(), torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        straight = model(images).numpy()
        mirrored = model(torch.from_numpy(images.numpy()[..., ::-1].copy())).numpy()
        got = forward_heatmaps(model, images, FLIP, TopDownInference())
        unshifted = forward_heatmaps(model, images, FLIP, TopDownInference(shift=False))
    back = mirrored[..., ::-1][:, list(FLIP)].copy()
    np.testing.assert_allclose(unshifted, (straight + back) / 2, rtol=1e-6, atol=1e-6)
    shifted = back.copy()
    for column in range(1, 12):
        shifted[..., column] = back[..., column - 1]
    np.testing.assert_allclose(got, (straight + shifted) / 2, rtol=1e-6, atol=1e-6)


def test_flip_test_of_a_symmetric_network_keeps_the_joints_apart():
    """A left joint seen in the mirror must come back as the left joint."""
    left = torch.zeros(1, 5, 16, 12)
    left[0, 1, 8, 3] = 1  # left_a at column 3

    class Watching(nn.Module):
        def forward(self, images):
            seen = left if images[0, 0, 0, 0] == 0 else left.flip(-1)[:, list(FLIP)]
            return seen

    images = torch.zeros(1, 3, 64, 48)
    images[..., -1] = 1
    got = forward_heatmaps(Watching(), images, FLIP, TopDownInference(shift=False))
    assert torch.equal(got, left)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_heatmaps_are_decoded_into_the_image(dtype):
    """Stride from the sizes, one matrix a crop: image = center + (out - size / 2) * scale / width (HRNet)."""
    points = torch.tensor([[[5.0, 7.0, 1.0], [9.0, 3.0, 1.0]]]).repeat(2, 1, 1)
    heatmaps, _ = ops.render_heatmaps(points, (16, 12), 1.0)
    centers, scales = torch.tensor([[100.0, 50.0], [10.0, 20.0]]), torch.tensor([[96.0, 128.0], [24.0, 32.0]])
    matrices = geometry.crop_matrices(centers, scales, None, None, (64, 48))
    poses = predict(Fixed(heatmaps.to(dtype)), [batch(points, matrices)], (1, 0), PLAIN)
    for b, zoom in enumerate((2.0, 0.5)):
        expected = centers[b] + (points[b, :, :2] * 4 - torch.tensor([24.0, 32.0])) * zoom
        np.testing.assert_allclose(poses.keypoints[b, :, :2], expected, atol=1e-4)
    assert poses.keypoints[..., 2] == pytest.approx(1.0)
    assert poses.keypoints.dtype == np.float32
    assert poses.sample_ids.tolist() == [100, 101]


@pytest.mark.parametrize("stride", [2, 8])
def test_stride_follows_from_the_sizes(stride):
    points = torch.tensor([[[3.0, 4.0, 1.0]]])
    heatmaps, _ = ops.render_heatmaps(points, (64 // stride, 48 // stride), 1.0)
    poses = predict(Fixed(heatmaps), [batch(points)], (0,), PLAIN)
    np.testing.assert_allclose(poses.keypoints[0, 0, :2], [3.0 * stride, 4.0 * stride])


def test_the_model_is_evaluated_in_eval_mode_and_left_as_it_was():
    class Moded(Strided):
        def forward(self, images):
            assert not self.training
            assert not torch.is_grad_enabled()
            return super().forward(images)

    model = Moded().train()
    predict(model, [batch(torch.zeros(1, 5, 3))], FLIP)
    assert model.training
    predict(model.eval(), [batch(torch.zeros(1, 5, 3))], FLIP)
    assert not model.training


def test_autocast_gives_float32_heatmaps_near_the_exact_ones():
    model, images = Strided(), torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        exact = forward_heatmaps(model, images, FLIP, TopDownInference())
        half = forward_heatmaps(model, images, FLIP, TopDownInference(precision="bf16"))
    assert half.dtype == torch.float32
    assert not torch.equal(half, exact)
    torch.testing.assert_close(half, exact, rtol=0.02, atol=0.2)


def test_a_broken_network_is_named():
    data = [batch(torch.zeros(2, 5, 3))]
    nan = torch.zeros(2, 5, 16, 12)
    nan[1, 2, 0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="NaN or infinite heatmaps for 1 of 2 persons, first 101 of image 1"):
        predict(Fixed(nan), data, FLIP, PLAIN)
    with pytest.raises(ValueError, match="the network has 17 heatmaps, the dataset 5 keypoints"):
        predict(Fixed(torch.zeros(2, 17, 16, 12)), data, FLIP, PLAIN)
    with pytest.raises(ValueError, match=r"gives heatmaps \[B, K, h, w\], one a stage or one; this one gives dict"):
        predict(Fixed({"heatmaps": torch.zeros(2, 5, 16, 12)}), data, FLIP, PLAIN)
    with pytest.raises(ValueError, match="heatmaps of 16x16 do not cover crops of 64x48 evenly"):
        predict(Fixed(torch.zeros(2, 5, 16, 16)), data, FLIP, PLAIN)
    with pytest.raises(ValueError, match="Fixed has no `spec`"):
        evaluate(Fixed(None), Painted())


def test_of_several_stages_the_last_counts():
    data = [batch(torch.zeros(2, 5, 3))]
    first, last = torch.rand(2, 2, 5, 16, 12, generator=torch.Generator().manual_seed(0))
    found = predict(Fixed([first, last]), data, FLIP, PLAIN)
    assert np.array_equal(found.keypoints, predict(Fixed(last), data, FLIP, PLAIN).keypoints)
    assert not np.array_equal(found.keypoints, predict(Fixed(first), data, FLIP, PLAIN).keypoints)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nms_threshold": 0.0}, "nms_threshold is an OKS"),
        ({"precision": "half"}, "precision must be fp32, bf16 or fp16, got 'half'"),
        ({"decode": "mean"}, "decode must be argmax, quarter or dark"),
    ],
)
def test_settings_refuse_what_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        TopDownInference(**change)


def poses_of(keypoints: np.ndarray, box_scores: list[float], image_ids: list[int]) -> Poses:
    n = len(keypoints)
    areas = np.full(n, 400.0, np.float32)
    scores, ids = np.array(box_scores, np.float32), np.array(image_ids)
    return Poses(keypoints.astype(np.float32), scores, areas, ids, np.arange(n))


def test_results_are_rescored_and_freed_of_duplicates_within_an_image():
    one = np.array([[0.0, 0.0, 0.9], [10.0, 10.0, 0.5], [20.0, 20.0, 0.1]])
    other = one + np.array([500.0, 0.0, 0.0])
    poses = poses_of(np.stack([one, other, one, one]), [0.5, 1.0, 1.0, 0.25], [3, 3, 3, 1])
    results = coco_results(poses, [0.05] * 3, TopDownInference(), category_id=2)
    # mean of the joint scores above 0.2: 0.7. Row 0 is a duplicate of row 2, row 3 is in another image.
    assert [(r["image_id"], round(r["score"], 6)) for r in results] == [(1, 0.175), (3, 0.7), (3, 0.7)]
    assert results[1]["keypoints"][::3] == [500.0, 510.0, 520.0]  # equal scores: the earlier row first
    assert all(r["category_id"] == 2 and len(r["keypoints"]) == 9 for r in results)
    kept = coco_results(poses, [0.05] * 3, TopDownInference(nms_threshold=1.0))
    assert len(kept) == 4


def test_results_are_plain_json_with_coordinates_to_a_thousandth(tmp_path):
    poses = poses_of(np.array([[[1.23456, 2.0, 0.5]]]), [1.0], [3])
    results = coco_results(poses, [0.05], TopDownInference())
    assert results == [{"image_id": 3, "category_id": 1, "keypoints": [1.235, 2.0, 0.5], "score": 0.5}]
    file = tmp_path / "new" / "results.json"
    write_results(results, file)
    assert json.loads(file.read_text()) == results
    assert [p.name for p in file.parent.iterdir()] == ["results.json"]  # no temporary file is left


def test_no_poses_give_no_results():
    assert coco_results(predict(Strided(), [], FLIP), FIVE.sigmas, TopDownInference()) == []


@pytest.mark.parametrize("flip", [False, True])
def test_evaluate_finds_painted_people_with_five_keypoints(flip, tmp_path):
    """From pixels to AP: crops, network, decoding, back-projection and scoring fit together."""
    calls = []
    settings = TopDownInference(flip=flip, shift=False)

    class Symmetric(Reader):
        """The mirror exchanges left and right; colours do not know that, so this network does."""

        def forward(self, images):
            heatmaps = super().forward(images)
            self.calls = getattr(self, "calls", 0) + 1
            return heatmaps[:, list(FLIP)] if flip and self.calls % 2 == 0 else heatmaps

    report = evaluate(
        Symmetric(),
        Painted(),
        settings,
        loader=LOADER,
        results_file=tmp_path / "r.json",
        on_batch=lambda *a: calls.append(a),
    )
    assert report.coco is not None
    assert report.coco.AP > 0.9
    assert report.persons == 3
    assert report.seconds > 0
    assert report.note == ""
    assert calls == [(3, 3)]
    assert json.loads((tmp_path / "r.json").read_text()) == report.results
    assert {r["category_id"] for r in report.results} == {4}
    assert max(row.median_error for row in report.coco.keypoints) < 3


def test_data_without_labels_are_written_not_scored(tmp_path):
    file = tmp_path / "results.json"
    report = evaluate(Reader(), Painted(labelled=False), PLAIN, loader=LOADER, results_file=file)
    assert report.coco is None
    assert report.note == "no labels: results written, not scored"
    assert len(json.loads(file.read_text())) == 3


def test_a_network_that_sees_nothing_scores_zero():
    """All-zero heatmaps: every joint at the crop's corner with score 0. Nothing fails."""

    class Blind(Reader):
        def forward(self, images):
            return super().forward(images) * 0

    report = evaluate(Blind(), Painted(), PLAIN, loader=LOADER)
    assert report.coco is not None
    assert report.coco.AP == 0
    assert {r["score"] for r in report.results} == {0.0}
