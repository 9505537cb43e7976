"""crop_warp: bilinear crops with a border of zeros, on every backend."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from helpers import backends
from helpers.crop_cases import ATOL, FORMATS, IDENTITY, MEAN, STD, expected_crops, on, some_images, some_matrices
from helpers.threads import threads
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posekd.ops import PackedImages, crop_warp
from posekd.ops.reference import crop_warp as definition


class TestAgainstFloat64:
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("memory_format", FORMATS, ids=str)
    @pytest.mark.parametrize("dtype", list(ATOL), ids=str)
    def test_ragged_bytes(
        self, backend: backends.Backend, dtype: torch.dtype, memory_format: torch.memory_format, channels: int
    ) -> None:
        images, matrices, index = some_images(3, channels), some_matrices(4), [2, 0, 1, 0]
        crops = crop_warp(
            on(backend, images), matrices.to(backend.device), (24, 21),
            image_index=torch.tensor(index, device=backend.device), mean=MEAN[:channels], std=STD[:channels],
            dtype=dtype, memory_format=memory_format,
        )  # fmt: skip
        assert crops.dtype == dtype
        assert crops.is_contiguous(memory_format=memory_format)
        mean, std = (np.array(v[:channels]).reshape(-1, 1, 1) for v in (MEAN, STD))
        expected = (expected_crops(images, matrices, index, (24, 21)) - mean) / std
        np.testing.assert_allclose(crops.double().cpu().numpy(), expected, atol=ATOL[dtype])

    def test_rows_longer_than_the_buffers_of_the_cpu_kernel(self) -> None:
        images = some_images(1, 3, 60, 700)
        matrix = torch.tensor([[[1.1, 0.05, 3.0], [-0.02, 1.2, 12.0]]])
        crops = crop_warp(images, matrix, (30, 601))
        np.testing.assert_allclose(crops.numpy(), expected_crops(images, matrix, [0], (30, 601)), atol=1e-4)

    @pytest.mark.parametrize("matrix", [[[0.0, 1.3, 5.0], [0.9, 0.0, 3.0]], [[0.0, 0.0, 7.25], [0.0, 0.0, 9.5]]])
    def test_quarter_turns_and_single_points(self, backend: backends.Backend, matrix: list[list[float]]) -> None:
        """Matrices with zeros: the kernels divide by their entries."""
        images, matrices = some_images(1), torch.tensor([matrix])
        crops = crop_warp(on(backend, images), matrices.to(backend.device), (20, 33))
        expected = expected_crops(images, matrices, [0], (20, 33))
        np.testing.assert_allclose(crops.cpu().numpy(), expected, atol=1e-4)

    @pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (3, 3), (2, 4), (5, 8), (8, 10)])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_tiny_pictures(self, backend: backends.Backend, shape: tuple[int, int], channels: int) -> None:
        images = some_images(1, channels, *shape)
        matrices = torch.tensor([[[0.3, 0.1, -1.5], [-0.05, 0.4, -1.0]], [[1.0, 0, 0], [0, 1.0, 0]]])
        index = torch.zeros(2, dtype=torch.int32, device=backend.device)
        crops = crop_warp(on(backend, images), matrices.to(backend.device), (16, 19), image_index=index)
        expected = expected_crops(images, matrices, [0, 0], (16, 19))
        np.testing.assert_allclose(crops.cpu().numpy(), expected, atol=1e-4)

    @pytest.mark.parametrize("size", [(1, 1), (1, 17), (40, 1), (5, 31)])
    def test_sizes(self, backend: backends.Backend, size: tuple[int, int]) -> None:
        images, matrices = some_images(2), some_matrices(2, seed=4)
        crops = crop_warp(on(backend, images), matrices.to(backend.device), size)
        np.testing.assert_allclose(crops.cpu().numpy(), expected_crops(images, matrices, [0, 1], size), atol=1e-4)

    def test_as_good_as_torch(self, backend: backends.Backend) -> None:
        images, matrices = some_images(2), some_matrices(2, seed=2)
        planes = [image.permute(2, 0, 1) for image in images]
        low, ref64 = (
            definition.crop_warp(planes, matrices.to(d), None, (24, 21), 3, MEAN, STD, d)
            for d in (torch.float32, torch.float64)
        )
        crops = crop_warp(on(backend, images), matrices.to(backend.device), (24, 21), mean=MEAN, std=STD)
        backends.assert_as_good_as_torch(crops, low, ref64, 2e-6)

    def test_opencv_agrees(self) -> None:
        """cv2.warpAffine rounds to whole grey values (and older versions to 1/32 of a pixel as well)."""
        rows, columns = np.mgrid[:60, :80]
        image = np.stack([3 * columns, 4 * rows, columns + rows], -1).astype(np.uint8)
        matrices = some_matrices(4, seed=6)
        crops = crop_warp([torch.from_numpy(image)], matrices, (40, 30), image_index=torch.zeros(4).long())
        for crop, matrix in zip(crops, matrices.numpy(), strict=True):
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            warped = cv2.warpAffine(image, matrix, (30, 40), flags=flags).astype(np.float64)
            difference = np.abs(crop.permute(1, 2, 0).numpy() * 255 - warped)
            assert np.median(difference) < 0.5
            assert difference.max() < 9


class TestMeaning:
    def test_the_identity_copies(self, backend: backends.Backend) -> None:
        images = some_images(1)
        crops = crop_warp(on(backend, images), IDENTITY.to(backend.device), (37, 45))
        expected = images[0].permute(2, 0, 1).double() / 255
        torch.testing.assert_close(crops[0].double().cpu(), expected, rtol=1e-6, atol=0)

    def test_a_mirror_and_a_shift(self, backend: backends.Backend) -> None:
        images = some_images(1)
        matrix = torch.tensor([[[-1.0, 0, 44.0], [0, 1.0, 2.0]]], device=backend.device)
        crops = crop_warp(on(backend, images), matrix, (35, 45)).cpu()
        expected = images[0].flip(1)[2:].permute(2, 0, 1) / 255
        torch.testing.assert_close(crops[0], expected, rtol=1e-6, atol=0)

    def test_the_border_is_a_zero_pixel_before_normalisation(self, backend: backends.Backend) -> None:
        white = [torch.full((4, 6, 3), 255, dtype=torch.uint8, device=backend.device)]
        matrix = torch.tensor([[[0.5, 0, -1.0], [0, 1.0, 0.0]]], device=backend.device)
        crop = crop_warp(white, matrix, (4, 16), mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))[0].cpu()
        # x = -1, -0.5, 0, ..., 5, 5.5, 6, 6.5: half of the outermost pixels' weight goes to the border
        weight = torch.tensor([0, 0.5, *[1.0] * 11, 0.5, 0, 0])
        for c, (mean, std) in enumerate(((0.5, 0.5), (0.25, 1.0), (0.0, 2.0))):
            torch.testing.assert_close(crop[c], ((weight - mean) / std).expand(4, 16), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("entry", range(6))
    def test_a_matrix_that_is_not_finite_gives_zero_pixels(
        self, backend: backends.Backend, value: float, entry: int
    ) -> None:
        images, matrices = some_images(2), torch.cat([IDENTITY, IDENTITY])
        matrices[0].view(-1)[entry] = value
        crops = crop_warp(on(backend, images), matrices.to(backend.device), (9, 11), mean=MEAN, std=STD).cpu()
        zero = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)]).view(3, 1, 1).expand(3, 9, 11)
        torch.testing.assert_close(crops[0], zero)
        assert not torch.allclose(crops[1], zero)

    @pytest.mark.parametrize("huge", [1e6, 1e20, 3e38, -3e38])
    def test_huge_matrices_read_nothing_outside(self, backend: backends.Backend, huge: float) -> None:
        images = some_images(1)
        planes = [images[0].permute(2, 0, 1)]
        for entries in ([huge, 0, 0, 0, 1, 0], [0, huge, 0, 1, 0, 0], [1, 0, huge, 0, 1, 0]):
            matrix = torch.tensor(entries).view(1, 2, 3)
            crops = crop_warp(on(backend, images), matrix.to(backend.device), (9, 11))
            low = definition.crop_warp(planes, matrix, None, (9, 11), 3, None, None, torch.float32)
            torch.testing.assert_close(crops.cpu(), low, rtol=1e-5, atol=1e-5)
        # Where huge entries cancel, float32 decides what is left of them: anything inside the picture, or nothing.
        matrix = torch.tensor([huge, -huge, 1, 0, 1, 0]).view(1, 2, 3)
        crops = crop_warp(on(backend, images), matrix.to(backend.device), (9, 11))
        assert 0 <= crops.min() <= crops.max() <= 1


class TestSources:
    def test_packed_images_are_the_list(self, backend: backends.Backend) -> None:
        images, matrices = on(backend, some_images(3)), some_matrices(3).to(backend.device)
        packed = PackedImages.from_list(images)
        assert packed.offsets.tolist() == [0, 37 * 45 * 3, 37 * 45 * 3 + 40 * 40 * 3]
        torch.testing.assert_close(
            crop_warp(packed, matrices, (24, 21)), crop_warp(images, matrices, (24, 21)), rtol=0, atol=0
        )

    def test_a_region_within_a_buffer(self, backend: backends.Backend) -> None:
        """Pictures may overlap, and leave bytes unused."""
        pixels = torch.randint(0, 256, (1000,), dtype=torch.uint8)
        packed = PackedImages(pixels, torch.tensor([5, 11]), torch.tensor([[7, 6, 1], [9, 4, 1]]), channels=1)
        matrices = some_matrices(2, seed=3)
        images = [pixels[5:47].view(7, 6, 1), pixels[11:47].view(9, 4, 1)]
        there = PackedImages(*(t.to(backend.device) for t in (packed.pixels, packed.offsets, packed.shapes)), 1)
        crops = crop_warp(there, matrices.to(backend.device), (12, 10)).cpu().numpy()
        np.testing.assert_allclose(crops, expected_crops(images, matrices, [0, 1], (12, 10)), atol=1e-4)

    @pytest.mark.parametrize(
        ("offset", "shape"),
        [(-1, [4, 4, 3]), (53, [4, 4, 3]), (0, [4, 9, 3]), (0, [2**40, 2**40, 3]), (0, [4, 4, 1]), (0, [-4, -4, 3])],
    )
    def test_the_kernels_read_no_picture_outside_its_buffer(
        self, backend: backends.Backend, offset: int, shape: list[int]
    ) -> None:
        """Past the public check, which a GPU's values escape: such a crop is zero."""
        pixels = torch.full((100,), 255, dtype=torch.uint8, device=backend.device)
        offsets = torch.tensor([offset, 0], device=backend.device)
        shapes = torch.tensor([shape, [4, 4, 3]], device=backend.device)
        matrices = IDENTITY.to(backend.device).repeat(4, 1, 1)
        index = torch.tensor([0, 1, 2, -1], device=backend.device)
        crops = torch.ops.posekd.crop_warp(
            [pixels], offsets, shapes, matrices, index, None, 3, 4, 4, None, None, torch.float32, False
        )
        assert crops.amax((1, 2, 3)).tolist() == [0, 1, 0, 0]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("channels", [2, 3, 7])
    def test_float_images(self, backend: backends.Backend, dtype: torch.dtype, channels: int) -> None:
        rng = torch.Generator().manual_seed(1)
        images = torch.randn(2, channels, 20, 23, generator=rng).to(dtype)
        matrices, mean, std = some_matrices(3), [0.1 * c for c in range(channels)], [1.0 + c for c in range(channels)]
        crops = crop_warp(
            images.to(backend.device), matrices.to(backend.device), (15, 18),
            image_index=torch.tensor([1, 0, 1], device=backend.device), mean=mean, std=std,
        )  # fmt: skip
        hwc = [image.permute(1, 2, 0).float() for image in images]
        expected = expected_crops(hwc, matrices, [1, 0, 1], (15, 18)) * 255
        expected = (expected - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1))
        np.testing.assert_allclose(crops.cpu().numpy(), expected, atol=2e-4)

    def test_float64(self) -> None:
        images = torch.randn(2, 3, 20, 23, dtype=torch.float64)
        matrices = some_matrices(2).double() + 1e-9
        crops = crop_warp(images, matrices, (15, 18), dtype=torch.float64, mean=MEAN, std=STD)
        expected = definition.crop_warp(list(images), matrices, None, (15, 18), 3, MEAN, STD, torch.float64)
        torch.testing.assert_close(crops, expected, rtol=1e-12, atol=1e-12)

    def test_strides_of_float_images(self, backend: backends.Backend) -> None:
        images = torch.randn(2, 3, 12, 14, generator=torch.Generator().manual_seed(2)).to(backend.device)
        matrices = some_matrices(2).to(backend.device)
        expected = crop_warp(images, matrices, (15, 18))
        for changed in (
            images.contiguous(memory_format=torch.channels_last),
            images.transpose(2, 3).contiguous().transpose(2, 3),
            torch.cat([images, images], 3)[..., 14:],
            images[:1].expand(2, -1, -1, -1),
        ):
            assert not changed.is_contiguous()
            if changed.stride(0) == 0:
                expected = crop_warp(changed.contiguous(), matrices, (15, 18))
            torch.testing.assert_close(crop_warp(changed, matrices, (15, 18)), expected, rtol=0, atol=0)

    def test_nan_and_inf_in_float_images(self, backend: backends.Backend) -> None:
        """They reach the crop wherever they are a neighbour, even of weight 0; outside the picture nothing counts."""
        image = torch.ones(1, 1, 4, 4)
        image[0, 0, 1, 2], image[0, 0, 3, 3] = math.nan, math.inf
        crop = crop_warp(image.to(backend.device), IDENTITY.to(backend.device), (5, 5))[0, 0].cpu()
        assert crop.isnan().nonzero().tolist() == [[0, 1], [0, 2], [1, 1], [1, 2], [2, 2], [2, 3], [3, 2]]
        assert crop[3, 3] == math.inf
        assert (crop[4] == 0).all()
        assert (crop[:, 4] == 0).all()

    def test_not_contiguous_pictures_of_a_list(self, backend: backends.Backend) -> None:
        image = some_images(1)[0]
        matrix = some_matrices(1).to(backend.device)
        view = image.transpose(0, 1)
        assert not view.is_contiguous()
        crops = crop_warp([view.to(backend.device)], matrix, (15, 18))
        torch.testing.assert_close(crops, crop_warp(on(backend, [view.contiguous()]), matrix, (15, 18)))

    def test_the_number_of_threads_changes_nothing(self) -> None:
        images, matrices = some_images(3), some_matrices(24)
        found = []
        for count in (1, 2):
            with threads(count):
                found.append(crop_warp(images, matrices, (70, 61), image_index=torch.arange(24) % 3))
        assert torch.equal(*found)

    def test_no_crops_and_no_pictures(self, backend: backends.Backend) -> None:
        none = torch.zeros(0, 2, 3, device=backend.device)
        index = torch.zeros(0, dtype=torch.int64, device=backend.device)
        assert crop_warp(on(backend, some_images(2)), none, (4, 5), image_index=index).shape == (0, 3, 4, 5)
        empty = torch.zeros(0, dtype=torch.int64, device=backend.device)
        packed = PackedImages(empty.to(torch.uint8), empty, empty.view(0, 3), channels=1)
        assert crop_warp(packed, none, (4, 5)).shape == (0, 1, 4, 5)
        hollow = [torch.zeros(0, 7, 3, dtype=torch.uint8, device=backend.device)]
        assert (crop_warp(hollow, IDENTITY.to(backend.device), (4, 5)) == 0).all()


class TestOut:
    @pytest.mark.parametrize("memory_format", FORMATS, ids=str)
    @pytest.mark.parametrize("dtype", list(ATOL), ids=str)
    def test_writes_into_out(
        self, backend: backends.Backend, dtype: torch.dtype, memory_format: torch.memory_format
    ) -> None:
        images, matrices = on(backend, some_images(2)), some_matrices(2).to(backend.device)
        options: dict[str, Any] = {"mean": MEAN, "std": STD, "dtype": dtype, "memory_format": memory_format}
        out = torch.full((2, 3, 24, 21), math.nan, dtype=dtype, device=backend.device)
        out = out.contiguous(memory_format=memory_format)
        assert crop_warp(images, matrices, (24, 21), **options, out=out) is out
        torch.testing.assert_close(out, crop_warp(images, matrices, (24, 21), **options), rtol=0, atol=0)

    @pytest.mark.parametrize(
        ("out", "error", "message"),
        [
            (torch.zeros(2, 3, 24, 20), ValueError, r"out must have shape \(2, 3, 24, 21\).*got \(2, 3, 24, 20\)"),
            (torch.zeros(2, 3, 24, 21).half(), TypeError, r"out must be float32, got float16"),
            (torch.zeros(2, 3, 21, 24).transpose(2, 3), ValueError, r"out must be dense in .*got strides"),
        ],
    )
    def test_an_out_that_does_not_fit(self, out: Tensor, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            crop_warp(some_images(2), some_matrices(2), (24, 21), out=out)


class TestProperties:
    @settings(max_examples=60, deadline=None)
    @given(
        entries=st.lists(st.floats(-4, 4, width=32), min_size=4, max_size=4),
        shift=st.lists(st.floats(-60, 60, width=32), min_size=2, max_size=2),
        height=st.integers(1, 40),
        width=st.integers(1, 40),
        seed=st.integers(0, 1000),
    )
    def test_any_affine_matrix(
        self, entries: list[float], shift: list[float], height: int, width: int, seed: int
    ) -> None:
        rng = np.random.default_rng(seed)
        image = torch.from_numpy(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        a, b, c, d = entries
        matrix = torch.tensor([[[a, b, shift[0]], [c, d, shift[1]]]])
        crops = crop_warp([image], matrix, (13, 37))
        expected = expected_crops([image], matrix, [0], (13, 37))
        np.testing.assert_allclose(crops.numpy(), expected, atol=2e-4)

    @settings(max_examples=20, deadline=None)
    @given(seed=st.integers(0, 1000), gain=st.floats(0.01, 10))
    def test_linear_in_the_picture(self, seed: int, gain: float) -> None:
        a, b = torch.randn(2, 1, 3, 15, 17, generator=torch.Generator().manual_seed(seed)).double()
        matrix, options = some_matrices(1, seed), {"dtype": torch.float64}
        both = crop_warp(a * gain + b, matrix, (12, 12), **options)
        apart = crop_warp(a, matrix, (12, 12), **options) * gain + crop_warp(b, matrix, (12, 12), **options)
        torch.testing.assert_close(both, apart, rtol=1e-9, atol=1e-9)
