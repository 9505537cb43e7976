"""CropAugmentation: the draws' distribution, and that pixels and keypoints move together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from posekd.data import CropAugmentation
from posekd.data.augment import draw, half_body
from posekd.inputs import prepare_crops
from posekd.skeleton import COCO
from posekd.structures import InputSpec, PackedCropBatch, Pixels

SIZE = (64, 48)
CENTER, SCALE = np.array([100.0, 90.0], np.float32), np.array([75.0, 100.0], np.float32)
BODY = np.concatenate((np.random.default_rng(0).uniform(40, 140, (17, 2)), np.full((17, 1), 2)), 1)


def draws(augmentation, count=4000, keypoints=BODY):
    rng = np.random.default_rng(0)
    return [draw(augmentation, rng, CENTER, SCALE, keypoints, SIZE, COCO.upper_body) for _ in range(count)]


class TestDraws:
    def test_follow_hrnets_clipped_normals(self):
        all_draws = draws(CropAugmentation(flip=0.5, rotation=40, scale=0.3))
        zooms = np.array([d.zoom for d in all_draws])
        assert (zooms.min(), zooms.max()) == (0.7, 1.3)  # clipped at one deviation: 16 % on either side
        assert np.mean(zooms == 0.7) == pytest.approx(0.159, abs=0.03)
        angles = np.array([d.rotation for d in all_draws])
        assert np.abs(angles).max() == 80  # clipped at two deviations
        assert np.mean(angles == 0) == pytest.approx(0.4, abs=0.03)
        assert np.std(angles[angles != 0]) == pytest.approx(40 * 0.96, rel=0.08)  # 4.6 % lie at the clip
        assert np.mean([d.flip for d in all_draws]) == pytest.approx(0.5, abs=0.03)

    def test_uniform_draws_fill_fpds_ranges(self):
        fpd = CropAugmentation(flip=0.5, rotation=30, scale=0.25, rotation_probability=1.0, distribution="uniform")
        all_draws = draws(fpd)
        for values, low, high in (
            ([d.zoom for d in all_draws], 0.75, 1.25),
            ([d.rotation for d in all_draws], -30, 30),
        ):
            shares, _ = np.histogram(values, bins=10, range=(low, high))
            assert shares.sum() == len(values)  # none outside
            np.testing.assert_allclose(shares / len(values), 0.1, atol=0.02)

    def test_nothing_at_zero(self):
        quiet = CropAugmentation(flip=0, rotation=0, scale=0)
        assert all(d[2:] == (0.0, 1.0, False) for d in draws(quiet, 20))

    def test_half_bodies_take_the_upper_half_in_69_percent(self):
        halves = draws(CropAugmentation(half_body=1.0, scale=0, rotation=0))
        upper = half_body(BODY, COCO.upper_body, SIZE, upper=True)[0]
        assert np.mean([np.array_equal(d.center, upper) for d in halves]) == pytest.approx(0.691, abs=0.03)

    def test_half_bodies_need_more_than_eight_joints(self):
        few = BODY.copy()
        few[8:, 2] = 0
        assert all(np.array_equal(d.center, CENTER) for d in draws(CropAugmentation(half_body=1.0), 50, few))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"flip": 1.5}, "flip is a probability, in 0..1, got 1.5"),
            ({"scale": 1.0}, r"scale must be in \[0, 1\)"),
            ({"rotation": -1.0}, "cannot be negative, got -1.0"),
            ({"distribution": "gauss"}, "must be normal or uniform, got 'gauss'"),
        ],
    )
    def test_impossible_settings_are_refused(self, settings, message):
        with pytest.raises(ValueError, match=message):
            CropAugmentation(**settings)


class TestHalfBody:
    def test_the_crop_surrounds_the_joints_at_the_aspect_ratio(self):
        keypoints = np.zeros((17, 3))
        keypoints[[5, 6, 7, 8]] = [(10, 20, 2), (50, 20, 2), (10, 100, 1), (50, 100, 2)]
        center, scale = half_body(keypoints, COCO.upper_body, SIZE, upper=True)
        assert center.tolist() == [30, 60]
        assert scale.tolist() == [90, 120]  # 40 x 80 -> 60 x 80 -> x 1.5

    def test_falls_back_to_the_half_that_has_joints(self):
        keypoints = np.zeros((17, 3))
        keypoints[[11, 12, 13]] = [(10, 20, 2), (50, 20, 2), (10, 100, 2)]
        assert half_body(keypoints, COCO.upper_body, SIZE, upper=True)[0][1] == pytest.approx(140 / 3)

    def test_one_joint_is_no_half(self):
        keypoints = np.zeros((17, 3))
        keypoints[5] = (10, 20, 2)
        assert half_body(keypoints, COCO.upper_body, SIZE, upper=True) is None


def dots(keypoints, height=160, width=200):
    """A dark image with a soft white dot at each keypoint, uint8 `[H, W, 3]`."""
    y, x = np.mgrid[:height, :width]
    image = np.zeros((height, width))
    for jx, jy in keypoints[:, :2]:
        image = np.maximum(image, np.exp(-((x - jx) ** 2 + (y - jy) ** 2) / (2 * 4.0**2)))
    return np.repeat((255 * image).round().astype(np.uint8)[..., None], 3, 2)


def packed(image, keypoints, rotation=0.0, zoom=1.0, flip=False, origin=(0, 0)):
    """One person whose region starts at `origin` of its image."""
    region = np.ascontiguousarray(image[origin[1] :, origin[0] :])
    one = torch.ones(1)
    return PackedCropBatch(
        pixels=Pixels(
            data=torch.from_numpy(region).flatten(),
            offsets=torch.zeros(1, dtype=torch.int64),
            shapes=torch.tensor([region.shape]),
            origins=torch.tensor([origin], dtype=torch.float32),
            index=torch.zeros(1, dtype=torch.int64),
        ),
        keypoints=torch.from_numpy(keypoints.astype(np.float32))[None],
        centers=torch.tensor([[100.0, 80.0]]),
        scales=torch.tensor([[120.0, 160.0]]),
        rotations=one * rotation,
        zooms=one * zoom,
        flips=torch.tensor([flip]),
        boxes=torch.tensor([[50.0, 20.0, 100.0, 120.0]]),
        box_scores=one,
        image_ids=torch.tensor([7]),
        sample_ids=torch.tensor([9]),
    )


JOINTS = np.array([(100, 50, 2), (80, 90, 2), (120, 84, 1), (0, 0, 0)], np.float64)
SWAP = (0, 2, 1, 3)
SPEC = InputSpec(size=(80, 60), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class TestPrepare:
    @pytest.mark.parametrize("flip", [False, True])
    @pytest.mark.parametrize("rotation", [0.0, 35.0, -80.0])
    @pytest.mark.parametrize("origin", [(0, 0), (31, 17)])
    def test_joints_stay_on_their_pixels(self, flip, rotation, origin):
        """The dot of every labelled keypoint is found in the crop where its keypoint says."""
        for joint in range(3):
            batch = prepare_crops(packed(dots(JOINTS[[joint]]), JOINTS, rotation, 1.1, flip, origin), SPEC, SWAP)
            y, x = divmod(int(batch.images[0, 0].argmax()), SPEC.size[1])
            place = SWAP[joint] if flip else joint
            assert batch.images[0, 0].max() > 0.8
            assert batch.keypoints[0, place, :2].tolist() == pytest.approx((x, y), abs=0.75)
            assert batch.keypoints[0, place, 2] == JOINTS[joint, 2]

    def test_unlabelled_joints_are_zero(self):
        assert prepare_crops(packed(dots(JOINTS), JOINTS, 20.0), SPEC, SWAP).keypoints[0, 3].tolist() == [0, 0, 0]

    def test_a_mirrored_person_is_the_mirror_image(self):
        plain = prepare_crops(packed(dots(JOINTS), JOINTS), SPEC, SWAP)
        mirrored = prepare_crops(packed(dots(JOINTS), JOINTS, flip=True), SPEC, SWAP)
        # x_out - W/2 changes its sign: column W/2 stays, column 0 has no partner
        torch.testing.assert_close(mirrored.images[..., 1:], plain.images[..., 1:].flip(-1))

    def test_the_region_gives_the_crop_of_the_whole_image(self):
        image = np.random.default_rng(1).integers(0, 256, (160, 200, 3), dtype=np.uint8)
        whole, part = (prepare_crops(packed(image, JOINTS, origin=o), SPEC, SWAP) for o in ((0, 0), (38, 0)))
        torch.testing.assert_close(part.images, whole.images, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(part.matrices, whole.matrices)

    def test_bgr_networks_get_blue_first_normalised_in_their_own_order(self):
        image = np.zeros((160, 200, 3), np.uint8)
        image[..., 0] = 255  # red
        spec = InputSpec(size=SIZE, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 0.5), bgr=True)
        middle = prepare_crops(packed(image, JOINTS), spec, SWAP).images[0, :, 32, 24]
        torch.testing.assert_close(middle, torch.tensor([-0.1, -0.2, (1 - 0.3) / 0.5]))

    def test_facts_ride_along_and_the_area_is_the_crops(self):
        batch = prepare_crops(packed(dots(JOINTS), JOINTS, zoom=0.5), SPEC, SWAP)
        assert batch.areas.tolist() == [120 * 160 * 0.25]
        assert batch.image_ids.tolist() == [7]
        assert batch.sample_ids.tolist() == [9]
        assert len(batch) == 1

    def test_dtype_and_memory_format(self):
        batch = prepare_crops(
            packed(dots(JOINTS), JOINTS), SPEC, SWAP, dtype=torch.bfloat16, memory_format=torch.channels_last
        )
        assert batch.images.dtype == torch.bfloat16
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.keypoints.dtype == torch.float32

    def test_matrices_of_a_batch_are_those_of_its_draws(self):
        batch = packed(dots(JOINTS), JOINTS, zoom=2.0)
        m = batch.matrices(SPEC.size)[0]
        assert m[0, 0].item() == pytest.approx(2.0 * 120 / 60)
