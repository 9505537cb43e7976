"""Photometric augmentation: what is drawn, and the matrices that it is composed to."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch

from posekd.data import CropAugmentation, ImageAugmentation, Photometric, color_matrix
from posekd.data.photometric import draw_look, looks_of

ALL = Photometric(
    brightness=0.4, contrast=0.4, saturation=0.5, hue=20, greyscale=0.2, blur=0.5, noise=0.5, cutout=0.5
)  # fmt: skip
RED, GREY, SKIN = (255.0, 0.0, 0.0), (90.0, 90.0, 90.0), (220.0, 170.0, 140.0)


def mixed(matrix, color):
    return matrix @ [*color, 1.0]


class TestColorMatrix:
    def test_nothing_by_default(self):
        np.testing.assert_allclose(color_matrix(), np.eye(3, 4), atol=1e-9)

    def test_brightness_is_a_factor(self):
        np.testing.assert_allclose(mixed(color_matrix(brightness=1.2), SKIN), 1.2 * np.array(SKIN), rtol=1e-6)

    def test_contrast_leaves_128_alone(self):
        np.testing.assert_allclose(mixed(color_matrix(contrast=0.3), (128, 128, 128)), 128, rtol=1e-6)
        np.testing.assert_allclose(mixed(color_matrix(contrast=0.5), (28, 128, 228)), (78, 128, 178), rtol=1e-6)

    def test_without_saturation_the_luma_is_left(self):
        """Rec. 601: 0.299 red, 0.587 green, 0.114 blue."""
        np.testing.assert_allclose(mixed(color_matrix(saturation=0), RED), 255 * 0.299, rtol=1e-6)
        np.testing.assert_allclose(mixed(color_matrix(saturation=0), (0, 0, 255)), 255 * 0.114, rtol=1e-6)

    def test_hue_turns_colours_and_leaves_grey_and_luma(self):
        turned = mixed(color_matrix(hue=20), SKIN)
        np.testing.assert_allclose(mixed(color_matrix(hue=20), GREY), GREY, rtol=1e-4)
        assert turned @ [0.299, 0.587, 0.114] == pytest.approx(np.array(SKIN) @ [0.299, 0.587, 0.114], rel=1e-5)
        before, after = (360 * colorsys.rgb_to_hsv(*(c / 255 for c in color))[0] for color in (SKIN, turned))
        assert after - before == pytest.approx(20, abs=8)  # HSV's angle is another than YIQ's
        full = color_matrix(hue=180) @ np.vstack([color_matrix(hue=180), [0, 0, 0, 1]])
        np.testing.assert_allclose(full, np.eye(3, 4), atol=1e-6)

    def test_the_order_is_hue_saturation_brightness_contrast(self):
        one = mixed(color_matrix(1.3, 0.7, 0.5, 30), SKIN)
        steps = mixed(color_matrix(saturation=0.5), mixed(color_matrix(hue=30), SKIN))
        steps = mixed(color_matrix(contrast=0.7), mixed(color_matrix(brightness=1.3), steps))
        np.testing.assert_allclose(one, steps, rtol=1e-6)


class TestDraws:
    def test_are_functions_of_seed_epoch_and_row(self):
        first, again = (looks_of(ALL, 3, [(1, row) for row in range(8)]) for _ in range(2))
        assert torch.equal(first.colors, again.colors)
        assert first.noise_seeds == again.noise_seeds
        alone = draw_look(ALL, 3, 1, 5)
        np.testing.assert_allclose(first.colors[5].numpy(), alone.color, rtol=1e-6)
        for other in ((4, 1, 5), (3, 2, 5), (3, 1, 6)):
            assert not np.allclose(draw_look(ALL, *other).color, alone.color)

    def test_keep_to_their_ranges(self):
        looks = [draw_look(Photometric(brightness=0.4, contrast=0.3), 0, 0, row) for row in range(2000)]
        contrast = np.array([1 - look.color[0, 3] / 128 for look in looks])
        gain = np.array([look.color[:, :3].sum(1).mean() for look in looks]) / contrast
        for factor, reach in ((contrast, 0.3), (gain, 0.4)):
            shares, _ = np.histogram(factor, bins=5, range=(1 - reach, 1 + reach))
            assert shares.sum() == 2000
            np.testing.assert_allclose(shares / 2000, 0.2, atol=0.04)

    def test_happen_as_often_as_asked(self):
        looks = [draw_look(ALL, 0, 0, row) for row in range(2000)]
        grey = [np.allclose(look.color[0], look.color[1]) for look in looks]
        for found, share in (
            (grey, 0.2),
            ([look.blur > 0 for look in looks], 0.5),
            ([look.noise > 0 for look in looks], 0.5),
            ([bool(look.rectangles) for look in looks], 0.5),
        ):
            assert np.mean(found) == pytest.approx(share, abs=0.04)
        assert {len(look.rectangles) for look in looks} == {0, 1, 2, 3}

    def test_turning_one_on_leaves_the_others(self):
        plain, more = Photometric(brightness=0.3), Photometric(brightness=0.3, noise=1.0, cutout=1.0)
        np.testing.assert_array_equal(draw_look(plain, 0, 0, 1).color, draw_look(more, 0, 0, 1).color)

    def test_nothing_varies_by_default(self):
        assert looks_of(Photometric(), 0, [(0, 0)]) is None
        assert CropAugmentation().photometric == ImageAugmentation().photometric == Photometric()

    def test_what_varies_in_no_row_is_empty(self):
        looks = looks_of(Photometric(noise=1.0), 0, [(0, 0), (0, 1)])
        assert [len(part) for part in (looks.colors, looks.blurred, looks.noisy)] == [0, 0, 2]
        assert looks.rectangles.shape == (2, 0, 4)
        assert looks_of(ALL, 0, []).colors.shape == (0, 3, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"brightness": 1.5}, r"brightness is a largest change, in 0\.\.1, got 1\.5"),
        ({"hue": -3}, r"hue is a largest change, in 0\.\.180, got -3"),
        ({"greyscale": 2}, r"greyscale is a probability, in 0\.\.1, got 2"),
        ({"blur_sigma": (2.0, 1.0)}, r"blur_sigma is a smallest and a largest value.*got \(2\.0, 1\.0\)"),
        ({"noise_sigma": (0.0, float("nan"))}, r"noise_sigma is a smallest and a largest value"),
        ({"cutout_size": (0.2, 1.4)}, r"cutout_size is a share of the input, at most 1"),
        ({"cutout_count": 0}, r"cutout_count must be at least 1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Photometric(**settings)
