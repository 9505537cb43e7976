"""Augmented looks on the device: colours while cutting, then blur, noise and rectangles; and upside-down mirrors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from posekd.data import CropAugmentation, CropDataset, ImageAugmentation, ImageDataset, Photometric
from posekd.data.photometric import Look, pack_looks
from posekd.data.synthetic import SyntheticPeople, SyntheticSettings
from posekd.inputs import change_looks, prepare_crops, prepare_images
from posekd.inputs.looks import blur
from posekd.skeleton import COCO
from posekd.structures import InputSpec

SPEC = InputSpec(size=(64, 48))
PEOPLE = SyntheticPeople(SyntheticSettings(images=4, size=(96, 96), people=(1, 2)))
STILL = CropAugmentation(flip=0, rotation=0, scale=0)
STILL_IMAGE = ImageAugmentation(flip=0, rotation=0, scale=(1.0, 1.0), translation=0)
COLOURS = Photometric(brightness=0.5, contrast=0.5, saturation=0.5, hue=30, greyscale=0.3)
KEYS = [(0, row) for row in range(4)]


def crops(augmentation, spec=SPEC):
    packed = CropDataset(PEOPLE, spec.size, augmentation=augmentation).__getitems__(KEYS)
    return packed, prepare_crops(packed, spec, COCO.flip)


def images(augmentation, spec=SPEC):
    packed = ImageDataset(PEOPLE, spec.size, augmentation=augmentation).__getitems__(KEYS)
    return packed, prepare_images(packed, spec, COCO.flip)


def grey_levels(pictures, spec=SPEC):
    """Normalised inputs as 0 to 255, red, green, blue."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (spec.mean, spec.std))
    values = (pictures.float() * std + mean) * 255
    return values.flip(1) if spec.bgr else values


class TestColours:
    @pytest.mark.parametrize("make", [crops, images])
    @pytest.mark.parametrize("bgr", [False, True])
    def test_are_mixed_as_red_green_blue(self, make, bgr):
        spec = replace(SPEC, bgr=bgr, mean=(0.3, 0.4, 0.5))
        still = STILL if make is crops else STILL_IMAGE
        _, plain = make(still, spec)
        packed, changed = make(replace(still, photometric=COLOURS), spec)
        colors = packed.looks.colors
        assert colors.shape == (4, 3, 4)
        before = grey_levels(plain.images, spec)
        expected = torch.einsum("bij,bjhw->bihw", colors[..., :3], before) + colors[..., 3, None, None]
        found = grey_levels(changed.images, spec)
        torch.testing.assert_close(found, expected.clamp(0, 255), rtol=1e-4, atol=2e-2)
        assert (found - before).abs().mean() > 5

    def test_leave_positions_alone(self):
        _, plain = crops(CropAugmentation())
        _, changed = crops(CropAugmentation(photometric=COLOURS))
        assert torch.equal(plain.matrices, changed.matrices)
        assert torch.equal(plain.keypoints, changed.keypoints)


class TestSecondPass:
    def test_without_looks_nothing_is_touched(self):
        pictures = torch.randn(2, 3, 8, 8)
        assert change_looks(pictures, None, SPEC) is pictures
        assert torch.equal(change_looks(pictures, pack_looks([Look(), Look()]), SPEC), pictures)

    def test_blur_is_a_gaussian_of_its_sigma(self):
        dots = torch.zeros(2, 3, 41, 41)
        dots[:, :, 20, 20] = 1
        looks = pack_looks([Look(blur=1.0), Look(blur=2.0)])
        spread = change_looks(dots, looks, SPEC)
        x = torch.arange(41.0) - 20
        for picture, sigma in zip(spread, (1.0, 2.0), strict=True):
            line = torch.exp(-0.5 * (x / sigma) ** 2)
            expected = line[:, None] * line / line.sum() ** 2
            torch.testing.assert_close(picture[0], expected, rtol=0.02, atol=1e-4)  # cut at three deviations

    def test_blur_keeps_a_plain_picture(self):
        looks = pack_looks([Look(blur=3.0)])
        torch.testing.assert_close(blur(torch.full((1, 3, 9, 9), 0.7), looks.blurs), torch.full((1, 3, 9, 9), 0.7))

    def test_only_the_rows_that_were_drawn(self):
        pictures = torch.randn(3, 3, 12, 12)
        looks = [Look(), Look(blur=1.5, noise=4.0, noise_seed=1, rectangles=[(0.0, 0.0, 0.5, 0.5)]), Look()]
        changed = change_looks(pictures, pack_looks(looks), SPEC)
        assert torch.equal(changed[[0, 2]], pictures[[0, 2]])
        assert not torch.equal(changed[1], pictures[1])

    def test_noise_has_its_deviation_in_grey_levels(self):
        looks = pack_looks([Look(), Look(noise=8.0, noise_seed=5)])
        noise = grey_levels(change_looks(torch.zeros(2, 3, 200, 200), looks, SPEC))[1]
        noise = noise - 255 * torch.tensor(SPEC.mean).view(3, 1, 1)
        np.testing.assert_allclose(noise.std((1, 2)).numpy(), 8.0, rtol=0.02)
        assert noise.mean().abs() < 0.1

    def test_noise_is_of_its_seed_alone(self):
        first = change_looks(torch.zeros(2, 3, 8, 8), pack_looks([Look(noise=8.0, noise_seed=5), Look()]), SPEC)
        second = change_looks(torch.zeros(2, 3, 8, 8), pack_looks([Look(), Look(noise=8.0, noise_seed=5)]), SPEC)
        assert torch.equal(first[0], second[1])

    def test_rectangles_are_filled_with_the_mean_colour(self):
        looks = pack_looks([Look(rectangles=[(0.25, 0.5, 0.75, 1.2), (-0.1, -0.1, 0.125, 0.125)]), Look()])
        changed = change_looks(torch.ones(2, 3, 8, 8), looks, SPEC)
        expected = torch.ones(8, 8)
        expected[4:, 2:6] = 0
        expected[0, 0] = 0
        assert torch.equal(changed[0], expected.expand(3, 8, 8))
        assert (changed[1] == 1).all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_keeps_dtype_and_layout(self, dtype):
        pictures = torch.randn(2, 3, 8, 10).to(dtype).contiguous(memory_format=torch.channels_last)
        looks = [Look(blur=1.0, noise=3.0, rectangles=[(0.0, 0.0, 0.3, 0.3)]), Look()]
        changed = change_looks(pictures, pack_looks(looks), SPEC)
        assert changed.dtype == dtype
        assert changed.is_contiguous(memory_format=torch.channels_last)

    def test_nothing_is_read_from_the_device(self):
        looks = Photometric(brightness=0.2, blur=1.0, noise=1.0, cutout=1.0)
        packed = CropDataset(PEOPLE, SPEC.size, augmentation=replace(STILL, photometric=looks)).__getitems__(KEYS)
        batch = prepare_crops(packed.to("meta"), SPEC, torch.tensor(COCO.flip, device="meta"))
        assert batch.images.is_meta


class TestUpsideDown:
    def test_rows_and_keypoints_are_mirrored_and_pairs_exchanged(self):
        _, plain = crops(STILL)
        _, turned = crops(replace(STILL, vertical_flip=1.0))
        labelled = plain.keypoints[..., 2] > 0
        for k, partner in enumerate(COCO.flip):
            rows = labelled[:, partner]
            mirrored = plain.keypoints[rows, partner, :2] * torch.tensor([1.0, -1.0]) + torch.tensor([0.0, 64.0])
            torch.testing.assert_close(turned.keypoints[rows, k, :2], mirrored, rtol=1e-4, atol=1e-3)
        # about the crop's middle, H / 2, as HRNet mirrors: pixel y shows what H - y showed
        torch.testing.assert_close(turned.images[:, :, 1:], plain.images.flip(2)[:, :, :-1], rtol=1e-3, atol=1e-3)

    def test_both_mirrors_are_half_a_turn_and_exchange_nothing(self):
        _, plain = crops(STILL)
        _, turned = crops(replace(STILL, flip=1.0, vertical_flip=1.0))
        labelled = plain.keypoints[..., 2] > 0
        opposite = torch.tensor([48.0, 64.0]) - plain.keypoints[..., :2]
        torch.testing.assert_close(turned.keypoints[labelled][:, :2], opposite[labelled], rtol=1e-4, atol=1e-3)

    def test_whole_images_too(self):
        _, plain = images(STILL_IMAGE)
        _, turned = images(replace(STILL_IMAGE, vertical_flip=1.0))
        labelled = plain.keypoints[0][..., 2] > 0
        order = torch.tensor(COCO.flip)
        there = turned.keypoints[0][:, :, order]
        assert torch.equal(there[..., 2] > 0, labelled)
        heights = (there[..., 1] + plain.keypoints[0][..., 1])[labelled]
        torch.testing.assert_close(heights, heights.mean().expand_as(heights), rtol=0, atol=1e-2)
        across = (there[..., 0] - plain.keypoints[0][..., 0])[labelled]
        assert across.abs().max() <= 1.01  # the mirror of a row of pixels lies half a pixel off the crop's middle

    def test_runs_without_it_draw_what_they_drew(self):
        on = crops(CropAugmentation(vertical_flip=1e-12))[0]
        off = crops(CropAugmentation())[0]
        assert torch.equal(on.rotations, off.rotations)
        assert torch.equal(on.flips, off.flips)
