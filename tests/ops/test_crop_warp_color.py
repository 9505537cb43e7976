"""crop_warp with a colour matrix per crop, on every backend."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import backends
from helpers.crop_cases import ATOL, FORMATS, IDENTITY, MEAN, STD, expected_crops, on, some_images, some_matrices
from torch import Tensor

from posekd.ops import PackedImages, crop_warp, library
from posekd.ops.reference import crop_warp as definition

PLAIN = torch.eye(3, 4)


def some_colors(count: int, seed: int = 0) -> Tensor:
    """Mixtures strong enough that all bounds are hit."""
    rng = np.random.default_rng(seed)
    colors = np.concatenate([rng.normal(0.4, 0.6, (count, 3, 3)), rng.uniform(-60, 120, (count, 3, 1))], -1)
    return torch.from_numpy(colors).float()


def expected_tinted(crops: np.ndarray, color: Tensor) -> np.ndarray:
    """Float64 of crops 0..1, mixed and clamped in 0..255, and divided by 255 again."""
    c = color.double().numpy()
    mixed = np.einsum("mij,mjhw->mihw", c[..., :3], crops * 255) + c[..., 3, None, None]
    return np.clip(mixed, 0, 255) / 255


class TestAgainstFloat64:
    @pytest.mark.parametrize("memory_format", FORMATS, ids=str)
    @pytest.mark.parametrize("dtype", list(ATOL), ids=str)
    def test_mixed_clamped_normalised(
        self, backend: backends.Backend, dtype: torch.dtype, memory_format: torch.memory_format
    ) -> None:
        images, matrices, index, color = some_images(3), some_matrices(4), [2, 0, 1, 0], some_colors(4)
        crops = crop_warp(
            on(backend, images), matrices.to(backend.device), (24, 41),
            image_index=torch.tensor(index, device=backend.device), color=color.to(backend.device),
            mean=MEAN, std=STD, dtype=dtype, memory_format=memory_format,
        )  # fmt: skip
        tinted = expected_tinted(expected_crops(images, matrices, index, (24, 41)), color)
        assert (tinted == 0).mean() > 0.02
        assert (tinted == 1).mean() > 0.02
        mean, std = (np.array(v).reshape(-1, 1, 1) for v in (MEAN, STD))
        np.testing.assert_allclose(crops.double().cpu().numpy(), (tinted - mean) / std, atol=2 * ATOL[dtype])

    def test_as_good_as_torch(self, backend: backends.Backend) -> None:
        images, matrices, color = some_images(2), some_matrices(2, seed=2), some_colors(2)
        planes = [image.permute(2, 0, 1) for image in images]
        low, ref64 = (
            definition.crop_warp(planes, matrices.to(d), None, (24, 21), 3, MEAN, STD, d, color)
            for d in (torch.float32, torch.float64)
        )
        given = color.to(backend.device)
        crops = crop_warp(on(backend, images), matrices.to(backend.device), (24, 21), color=given, mean=MEAN, std=STD)
        backends.assert_as_good_as_torch(crops, low, ref64, 2e-6)

    def test_rows_longer_than_the_buffers_of_the_cpu_kernel(self, backend: backends.Backend) -> None:
        images, color = some_images(1, 3, 60, 700), some_colors(1, 3)
        matrix = torch.tensor([[[1.1, 0.05, -30.0], [-0.02, 1.2, 12.0]]])
        crops = crop_warp(on(backend, images), matrix.to(backend.device), (5, 601), color=color.to(backend.device))
        expected = expected_tinted(expected_crops(images, matrix, [0], (5, 601)), color)
        np.testing.assert_allclose(crops.cpu().numpy(), expected, atol=2e-4)


class TestMeaning:
    def test_the_unit_matrix_changes_nothing(self, backend: backends.Backend) -> None:
        images, matrices = on(backend, some_images(2)), some_matrices(2).to(backend.device)
        plain = crop_warp(images, matrices, (24, 21), mean=MEAN, std=STD)
        color = PLAIN.expand(2, 3, 4).to(backend.device)
        crops = crop_warp(images, matrices, (24, 21), mean=MEAN, std=STD, color=color)
        torch.testing.assert_close(crops, plain, rtol=1e-6, atol=2e-6)

    def test_the_border_is_mixed_too(self, backend: backends.Backend) -> None:
        """Black becomes the summand, clamped: also where no pixel of the image is near, and without a usable matrix."""
        color = PLAIN.clone()
        color[:, 3] = torch.tensor([51.0, -20.0, 300.0])
        matrices = torch.cat([IDENTITY, IDENTITY, IDENTITY])
        matrices[1, 0, 2], matrices[2, 0, 0] = 1e5, math.nan
        images = [torch.zeros(4, 4, 3, dtype=torch.uint8)] * 3
        crops = crop_warp(
            on(backend, images), matrices.to(backend.device), (6, 33), color=color.expand(3, 3, 4).to(backend.device)
        ).cpu()
        expected = torch.tensor([0.2, 0.0, 1.0]).view(1, 3, 1, 1).expand(3, 3, 6, 33)
        torch.testing.assert_close(crops, expected, rtol=1e-6, atol=1e-7)

    def test_the_clamp_stands_before_mean_and_std(self, backend: backends.Backend) -> None:
        """A negative std turns the two bounds round."""
        images = [torch.full((4, 4, 3), 200, dtype=torch.uint8, device=backend.device)]
        color = torch.zeros(1, 3, 4)
        color[0, 0, 0], color[0, 1, 0], color[0, 2, 0] = 3.0, -3.0, 0.5
        crops = crop_warp(
            images, IDENTITY.to(backend.device), (4, 4), color=color.to(backend.device),
            mean=(0.5, 0.5, 0.5), std=(0.5, -0.25, -0.5),
        ).cpu()  # fmt: skip
        expected = torch.tensor([(1 - 0.5) / 0.5, (0 - 0.5) / -0.25, (100 / 255 - 0.5) / -0.5])
        torch.testing.assert_close(crops[0], expected.view(3, 1, 1).expand(3, 4, 4), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_what_is_not_finite(self, backend: backends.Backend, value: float) -> None:
        """NaN passes the clamp, as in torch; an infinite summand ends at a bound."""
        images, matrices, color = some_images(2), some_matrices(2, seed=3), some_colors(2)
        color[0, 1, 3] = value
        crops = crop_warp(on(backend, images), matrices.to(backend.device), (9, 35), color=color.to(backend.device))
        planes = [image.permute(2, 0, 1) for image in images]
        expected = definition.crop_warp(planes, matrices, None, (9, 35), 3, None, None, torch.float32, color)
        torch.testing.assert_close(crops.cpu(), expected, rtol=1e-4, atol=2e-4, equal_nan=True)
        assert bool(crops[0, 1].isnan().all()) == math.isnan(value)
        assert crops[1].isfinite().all()


class TestTorchIntegration:
    @pytest.mark.parametrize("channels_last", [False, True])
    def test_opcheck(self, channels_last: bool) -> None:
        packed, color = PackedImages.from_list(some_images(2)), some_colors(3)
        index = torch.tensor([1, 0, 1])
        rest = (some_matrices(3), index, color, 3, 8, 6, list(MEAN), list(STD), torch.float16, channels_last)
        sources = ([packed.pixels], packed.offsets, packed.shapes)
        torch.library.opcheck(torch.ops.posekd.crop_warp, (*sources, *rest))

    def test_out_and_no_core(self, monkeypatch: pytest.MonkeyPatch) -> None:
        images, matrices, color = some_images(2), some_matrices(2), some_colors(2)
        out = torch.empty(2, 3, 8, 6)
        crops = crop_warp(images, matrices, (8, 6), color=color)
        assert torch.equal(crop_warp(images, matrices, (8, 6), color=color, out=out), crops)
        monkeypatch.setattr(library, "_core", None)
        torch.testing.assert_close(crop_warp(images, matrices, (8, 6), color=color), crops, rtol=1e-4, atol=2e-4)

    def test_meta(self) -> None:
        packed = PackedImages.from_list(some_images(2))
        there = PackedImages(*(t.to("meta") for t in (packed.pixels, packed.offsets, packed.shapes)))
        crops = crop_warp(there, some_matrices(2).to("meta"), (8, 6), color=some_colors(2).to("meta"))
        assert crops.shape == (2, 3, 8, 6)
        assert crops.is_meta

    def test_no_crops(self, backend: backends.Backend) -> None:
        none, index = torch.zeros(0, 2, 3, device=backend.device), torch.zeros(0, dtype=torch.int64)
        color = torch.zeros(0, 3, 4, device=backend.device)
        crops = crop_warp(on(backend, some_images(2)), none, (4, 5), image_index=index.to(backend.device), color=color)
        assert crops.shape == (0, 3, 4, 5)

    def test_any_strides(self, backend: backends.Backend) -> None:
        images, matrices = on(backend, some_images(2)), some_matrices(2).to(backend.device)
        color = some_colors(2).to(backend.device)
        turned = color.transpose(1, 2).contiguous().transpose(1, 2)
        assert not turned.is_contiguous()
        found = crop_warp(images, matrices, (8, 6), color=turned)
        assert torch.equal(found, crop_warp(images, matrices, (8, 6), color=color))


@pytest.mark.parametrize(
    ("images", "color", "error", "message"),
    [
        (some_images(2), [1.0], TypeError, r"color must be a torch\.Tensor, got list"),
        (some_images(2), PLAIN, ValueError, r"color must have 3 dimensions \[M, 3, 4\], got shape \(3, 4\)"),
        (some_images(2), PLAIN[None], ValueError, r"color must have shape \(2, 3, 4\).*matrices.*got \(1, 3, 4\)"),
        (some_images(2), torch.zeros(2, 3, 3), ValueError, r"color must have shape \(2, 3, 4\).*got \(2, 3, 3\)"),
        (some_images(2), torch.zeros(2, 3, 4).double(), TypeError, r"color must be float32, got float64"),
        (some_images(2), torch.zeros(2, 3, 4, device="meta"), ValueError, r"color is on meta, but matrices is on cpu"),
        (some_images(2, 1), torch.zeros(2, 3, 4), ValueError, r"color mixes .* uint8 of 3 channels, got .* of 1"),
        (torch.rand(2, 3, 9, 9), torch.zeros(2, 3, 4), ValueError, r"color mixes .*got torch\.float32 of 3"),
    ],
)
def test_bad_input_is_answered_with_a_sentence(images: Any, color: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        crop_warp(images, some_matrices(2), (8, 6), color=color)
