"""Coordinates: HRNet's three-point similarity is the oracle, written out here with cv2.getAffineTransform."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posekd import geometry
from posekd.skeleton import COCO

SIZE = (256, 192)


def three_point_matrix(center, scale, rotation, size):
    """deep-high-resolution-net, lib/utils/transforms.py: three corresponding points, output to image."""
    height, width = size
    angle = np.pi * rotation / 180
    up_image = np.array([np.sin(angle), -np.cos(angle)]) * scale[0] / 2  # (0, -w/2), turned by the angle
    up_out = np.array([0.0, -width / 2])

    def third(a, b):
        d = a - b
        return b + np.array([-d[1], d[0]])

    middle = np.array([width / 2, height / 2])
    image = [np.asarray(center), np.asarray(center) + up_image]
    out = [middle, middle + up_out]
    image.append(third(*image))
    out.append(third(*out))
    return cv2.getAffineTransform(np.float32(out), np.float32(image))


def matrix(center, scale, rotation=0.0, flip=False, size=SIZE):
    return geometry.crop_matrices(
        torch.tensor([center], dtype=torch.float32),
        torch.tensor([scale], dtype=torch.float32),
        torch.tensor([rotation], dtype=torch.float32),
        torch.tensor([flip]),
        size,
    )[0]


crops = st.fixed_dictionaries(
    {
        "center": st.tuples(st.floats(-200, 800), st.floats(-200, 800)),
        "scale": st.floats(20, 900).map(lambda w: (w, w * SIZE[0] / SIZE[1])),
        "rotation": st.floats(-90, 90),
    }
)


class TestBoxToCenterScale:
    def test_a_tall_box_grows_sideways_to_the_aspect_ratio_then_by_a_quarter(self):
        # box 60 x 240 in a 256 x 192 crop: width becomes 240 * 192 / 256 = 180; both sides x 1.25
        centers, scales = geometry.box_to_center_scale(torch.tensor([[100.0, 50.0, 60.0, 240.0]]), SIZE)
        assert centers.tolist() == [[130.0, 170.0]]
        assert scales.tolist() == [[225.0, 300.0]]

    def test_a_wide_box_grows_downwards(self):
        _, scales = geometry.box_to_center_scale(torch.tensor([[0.0, 0.0, 300.0, 100.0]]), SIZE)
        assert scales.tolist() == [[375.0, 500.0]]

    @given(box=st.tuples(*[st.floats(0, 500)] * 2, *[st.floats(1, 500)] * 2))
    def test_the_crop_contains_the_box_and_has_the_aspect_ratio(self, box):
        (center,), (scale,) = geometry.box_to_center_scale(torch.tensor([box]), SIZE)
        low, high = center - scale / 2, center + scale / 2
        assert (low <= torch.tensor(box[:2]) + 1e-2).all()
        assert (high >= torch.tensor(box[:2]) + torch.tensor(box[2:]) - 1e-2).all()
        assert float(scale[0] / scale[1]) == pytest.approx(192 / 256, rel=1e-5)

    def test_refuses_what_is_not_a_box(self):
        with pytest.raises(ValueError, match=r"\[\.\.\., 4\].*\(3,\)"):
            geometry.box_to_center_scale(torch.zeros(3), SIZE)
        with pytest.raises(ValueError, match=r"positive, got \(0, 192\)"):
            geometry.box_to_center_scale(torch.zeros(1, 4), (0, 192))


class TestCropMatrices:
    @given(crop=crops)
    def test_equal_the_official_three_point_transform(self, crop):
        expected = three_point_matrix(crop["center"], crop["scale"], crop["rotation"], SIZE)
        # the oracle itself takes float32 points
        np.testing.assert_allclose(matrix(**crop).numpy(), expected, rtol=2e-4, atol=2e-3)

    def test_the_output_middle_is_the_centre_and_only_the_width_scales(self):
        m = matrix((100.0, 80.0), (96.0, 9999.0))
        torch.testing.assert_close(m, torch.tensor([[0.5, 0.0, 52.0], [0.0, 0.5, 16.0]]))

    @settings(max_examples=25, deadline=None)
    @given(crop=crops, image_width=st.integers(50, 640))
    def test_a_flip_is_the_same_crop_of_the_mirrored_image(self, crop, image_width):
        """HRNet mirrors the image and moves the centre to W - x - 1; no matrix of ours knows W."""
        there = (image_width - crop["center"][0] - 1, crop["center"][1])
        mirrored = matrix(there, crop["scale"], crop["rotation"]).double()
        undo = torch.tensor([[-1.0, 0.0, image_width - 1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
        expected = torch.cat((undo[:, :2] @ mirrored[:, :2], undo[:, :2] @ mirrored[:, 2:] + undo[:, 2:]), 1)
        torch.testing.assert_close(matrix(**crop, flip=True).double(), expected, rtol=1e-5, atol=2e-3)

    def test_a_flipped_warp_equals_flipping_the_pixels_first(self):
        rng = np.random.default_rng(0)
        image = rng.integers(0, 256, (90, 121, 3), dtype=np.uint8)
        center, scale, rotation = (50.5, 40.25), (60.0, 80.0), 23.0
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        ours = cv2.warpAffine(image, matrix(center, scale, rotation, True).numpy(), SIZE[::-1], flags=flags)
        official = three_point_matrix((121 - center[0] - 1, center[1]), scale, rotation, SIZE)
        theirs = cv2.warpAffine(np.ascontiguousarray(image[:, ::-1]), official, SIZE[::-1], flags=flags)
        # cv2 quantises coordinates to 1/32 pixel, on either side of a tie; noise amplifies that to a few levels
        difference = np.abs(ours.astype(int) - theirs)
        assert np.mean(difference) < 2.0
        assert np.mean(difference > 24) < 0.01

    def test_without_rotation_and_flip(self):
        centers, scales = torch.tensor([[10.0, 20.0]]), torch.tensor([[30.0, 40.0]])
        zero = geometry.crop_matrices(centers, scales, torch.zeros(1), torch.zeros(1, dtype=torch.bool), SIZE)
        assert torch.equal(geometry.crop_matrices(centers, scales, None, None, SIZE), zero)

    def test_an_empty_batch(self):
        assert geometry.crop_matrices(torch.zeros(0, 2), torch.zeros(0, 2), None, None, SIZE).shape == (0, 2, 3)

    def test_refuses_shapes_that_do_not_match(self):
        with pytest.raises(ValueError, match=r"\[B, 2\], got \(3, 2\) and \(2, 2\)"):
            geometry.crop_matrices(torch.zeros(3, 2), torch.zeros(2, 2), None, None, SIZE)


class TestTransforms:
    @given(crop=crops, flip=st.booleans(), seed=st.integers(0, 2**16))
    def test_there_and_back_again(self, crop, flip, seed):
        points = torch.rand(1, 17, 3, generator=torch.Generator().manual_seed(seed)) * 200
        m = matrix(**crop, flip=flip)[None]
        back = geometry.transform_keypoints(geometry.transform_keypoints(points, m), geometry.invert_matrices(m))
        torch.testing.assert_close(back, points, rtol=1e-3, atol=2e-2)

    def test_the_inverse_equals_numpys(self):
        m = matrix((311.0, 97.0), (88.0, 117.0), 31.0, True).double().numpy()
        expected = np.linalg.inv(np.vstack((m, [0, 0, 1])))[:2]
        ours = geometry.invert_matrices(torch.from_numpy(m)[None])[0].numpy()
        np.testing.assert_allclose(ours, expected, rtol=1e-5)

    def test_visibility_rides_along(self):
        points = torch.tensor([[[1.0, 2.0, 2.0], [3.0, 4.0, 0.0]]])
        moved = geometry.transform_keypoints(points, torch.tensor([[[2.0, 0.0, 10.0], [0.0, 2.0, 20.0]]]))
        assert moved.tolist() == [[[12.0, 24.0, 2.0], [16.0, 28.0, 0.0]]]

    def test_a_translation_moves_the_result(self):
        m = matrix((50.0, 60.0), (30.0, 40.0), 10.0)[None]
        points = torch.rand(1, 5, 3)
        moved = geometry.transform_keypoints(points, geometry.translate_matrices(m, torch.tensor([[7.0, -3.0]])))
        expected = geometry.transform_keypoints(points, m) + torch.tensor([7.0, -3.0, 0.0])
        torch.testing.assert_close(moved, expected)

    def test_refuses_matrices_that_are_not_affine(self):
        with pytest.raises(ValueError, match=r"\[\.\.\., 2, 3\], got \(3, 3\)"):
            geometry.invert_matrices(torch.eye(3))
        with pytest.raises(ValueError, match=r"K, 2\] or .*got \(4, 5\)"):
            geometry.transform_keypoints(torch.zeros(4, 5), torch.zeros(2, 3))


class TestHeatmaps:
    @given(crop=crops, stride=st.sampled_from([2, 4, 8]))
    def test_a_heatmap_matrix_is_the_crop_matrix_at_the_smaller_output(self, crop, stride):
        """HRNet decodes with get_affine_transform(center, scale, 0, [W/4, H/4], inv=1)."""
        small = (SIZE[0] // stride, SIZE[1] // stride)
        ours = geometry.heatmap_matrices(matrix(**crop), stride)
        torch.testing.assert_close(ours, matrix(**crop, size=small), rtol=1e-4, atol=1e-3)

    def test_a_heatmap_coordinate_is_a_quarter_without_a_shift(self):
        points = torch.tensor([[[8.0, 6.0, 1.0]]])
        assert geometry.to_heatmap(points).tolist() == [[[2.0, 1.5, 1.0]]]
        assert torch.equal(geometry.from_heatmap(geometry.to_heatmap(points)), points)


class TestSwapFlipped:
    def test_only_mirrored_persons_exchange_left_and_right(self):
        points = torch.arange(2 * 17 * 3, dtype=torch.float32).view(2, 17, 3)
        swapped = geometry.swap_flipped(points, torch.tensor([False, True]), COCO.flip)
        assert torch.equal(swapped[0], points[0])
        assert torch.equal(swapped[1, 9], points[1, 10])  # left wrist from right wrist
        assert torch.equal(swapped[1, 0], points[1, 0])  # the nose stays

    def test_refuses_a_permutation_of_another_skeleton(self):
        with pytest.raises(ValueError, match="16 entries for 17 keypoints"):
            geometry.swap_flipped(torch.zeros(1, 17, 3), torch.tensor([True]), range(16))
