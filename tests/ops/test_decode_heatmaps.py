"""decode_heatmaps: HRNet's and DARK's published decoding, on every backend."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from helpers import backends
from helpers.threads import threads
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posekd.ops import decode_heatmaps, library, render_heatmaps
from posekd.ops.reference import decode_heatmaps as definition

METHODS = ["argmax", "quarter", "dark"]


def hrnet_decode(maps: np.ndarray, shift: bool) -> np.ndarray:
    """HRNet's argmax over `[B, K, H, W]`, and its quarter-pixel shift."""
    B, K, H, W = maps.shape
    found = np.zeros((B, K, 3))
    for b in range(B):
        for k in range(K):
            plane = maps[b, k]
            index = int(np.argmax(plane))
            score = plane.reshape(-1)[index]
            x, y = (index % W, index // W) if score > 0 else (0, 0)
            found[b, k] = x, y, score
            if shift and 1 < x < W - 1 and 1 < y < H - 1:
                found[b, k, 0] += 0.25 * np.sign(plane[y, x + 1] - plane[y, x - 1])
                found[b, k, 1] += 0.25 * np.sign(plane[y + 1, x] - plane[y - 1, x])
    return found


def dark_decode(maps: np.ndarray, kernel: int) -> np.ndarray:
    """DARK: blur over a zero border with OpenCV, rescale, clamp, logarithm, one Newton step with a 2x2 solve."""
    found = hrnet_decode(maps, shift=False)
    B, K, H, W = maps.shape
    border = kernel // 2
    for b in range(B):
        for k in range(K):
            x, y, score = found[b, k]
            x, y = int(x), int(y)
            padded = np.pad(maps[b, k].astype(np.float64), border)
            blurred = cv2.GaussianBlur(padded, (kernel, kernel), 0)[border:-border, border:-border]
            if not (1 < x < W - 2 and 1 < y < H - 2) or blurred.max() <= 0:
                continue
            log = np.log(np.maximum(blurred * score / blurred.max(), 1e-10))
            gradient = 0.5 * np.array([log[y, x + 1] - log[y, x - 1], log[y + 1, x] - log[y - 1, x]])
            xx = 0.25 * (log[y, x + 2] - 2 * log[y, x] + log[y, x - 2])
            yy = 0.25 * (log[y + 2, x] - 2 * log[y, x] + log[y - 2, x])
            xy = 0.25 * (log[y + 1, x + 1] - log[y - 1, x + 1] - log[y + 1, x - 1] + log[y - 1, x - 1])
            if xx * yy - xy**2 != 0:
                found[b, k, :2] -= np.linalg.solve([[xx, xy], [xy, yy]], gradient)
    return found


def noisy_maps(B: int = 2, K: int = 5, H: int = 16, W: int = 13, seed: int = 0) -> Tensor:
    """Gaussians of sigma 2 at random places, with 2 % of noise."""
    rng = torch.Generator().manual_seed(seed)
    keypoints = torch.rand(B, K, 3, generator=rng) * torch.tensor([W - 1.0, H - 1.0, 0]) + torch.tensor([0, 0, 1])
    maps, _ = render_heatmaps(keypoints, (H, W), kind="exact")
    return maps + 0.02 * torch.randn(maps.shape, generator=rng)


def decode_one(backend: backends.Backend, plane: Tensor, method: str = "quarter") -> list[float]:
    return decode_heatmaps(plane.to(backend.device)[None, None], method)[0, 0].tolist()


class TestPublishedRules:
    @pytest.mark.parametrize("method", ["argmax", "quarter"])
    @pytest.mark.parametrize("shape", [(2, 5, 16, 13), (1, 3, 8, 8), (1, 1, 64, 48), (2, 2, 3, 3), (1, 4, 1, 9)])
    def test_hrnet(self, backend: backends.Backend, method: str, shape: tuple[int, ...]) -> None:
        maps = noisy_maps(*shape)
        found = decode_heatmaps(maps.to(backend.device), method)
        np.testing.assert_array_equal(found.cpu().numpy(), hrnet_decode(maps.numpy(), method == "quarter"))

    @pytest.mark.parametrize("kernel", [11, 17])  # published for sigma 2 and 3
    def test_dark(self, backend: backends.Backend, kernel: int) -> None:
        maps = noisy_maps(2, 6, 20, 17)
        found = decode_heatmaps(maps.to(backend.device), "dark", blur_kernel=kernel)
        np.testing.assert_allclose(found.cpu().numpy(), dark_decode(maps.numpy(), kernel), atol=1e-3)

    def test_dark_where_its_clamp_acts(self, backend: backends.Backend) -> None:
        """Around a weak peak among negative values the blurred map is negative: log(1e-10) enters the step."""
        maps = torch.full((1, 2, 15, 15), -0.02)
        maps[0, 0, 7, 7], maps[0, 0, 7, 8] = 0.5, 0.4
        maps[0, 1, 4, 9], maps[0, 1, 5, 9], maps[0, 1, 4, 10] = 0.6, 0.3, 0.2
        expected = dark_decode(maps.numpy(), 11)
        assert not np.allclose(expected[..., :2], hrnet_decode(maps.numpy(), False)[..., :2])
        found = decode_heatmaps(maps.to(backend.device), "dark")
        np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=1e-4, atol=1e-4)

    def test_dark_without_a_positive_blur_stays(self, backend: backends.Backend) -> None:
        plane = torch.full((9, 9), -1.0)
        plane[4, 4] = 0.5
        assert decode_one(backend, plane, "dark") == [4, 4, 0.5]

    @pytest.mark.parametrize(("column", "moves"), [(0, False), (1, False), (2, True), (5, True), (6, True), (7, False)])
    def test_the_quarter_shift_leaves_out_column_one_but_not_the_last_but_one(
        self, backend: backends.Backend, column: int, moves: bool
    ) -> None:
        plane = torch.zeros(8, 8)
        plane[4, column] = 1.0
        if column < 7:
            plane[4, column + 1] = 0.5
        assert decode_one(backend, plane)[0] == column + (0.25 if moves else 0)
        assert decode_one(backend, plane.T.contiguous())[1] == column + (0.25 if moves else 0)

    def test_equal_neighbours_shift_nothing(self, backend: backends.Backend) -> None:
        plane = torch.zeros(8, 8)
        plane[4, 4] = 1
        plane[4, 3] = plane[4, 5] = 0.5
        plane[3, 4] = 0.25
        assert decode_one(backend, plane) == [4, 3.75, 1]

    @pytest.mark.parametrize("at", [[3, 17], [31, 32], [16, 79], [0, 1]])
    def test_the_first_maximum_wins(self, backend: backends.Backend, at: list[int]) -> None:
        plane = torch.zeros(80)
        plane[at] = 0.5
        x, y, _ = decode_one(backend, plane.view(8, 10), "argmax")
        assert 10 * y + x == min(at)

    @pytest.mark.parametrize("method", METHODS)
    def test_no_positive_value_is_the_origin(self, backend: backends.Backend, method: str) -> None:
        plane = torch.full((8, 8), -1.0)
        plane[5, 5] = -0.25
        assert decode_one(backend, plane, method) == [0, 0, -0.25]
        assert decode_one(backend, torch.zeros(8, 8), method) == [0, 0, 0]
        assert decode_one(backend, torch.full((8, 8), -math.inf), method) == [0, 0, -math.inf]


class TestMatrices:
    def test_points_are_mapped_after_the_origin_rule(self, backend: backends.Backend) -> None:
        maps = torch.zeros(1, 2, 16, 12)
        maps[0, 0, 5, 7] = 1
        matrices = torch.tensor([[[2.0, -0.5, 100.0], [0.25, 4.0, -30.0]]])
        found = decode_heatmaps(maps.to(backend.device), "argmax", matrices=matrices.to(backend.device))
        assert found[0, 0].tolist() == [2 * 7 - 0.5 * 5 + 100, 0.25 * 7 + 4 * 5 - 30, 1]
        assert found[0, 1].tolist() == [100, -30, 0]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_every_person_has_its_own(self, backend: backends.Backend, dtype: torch.dtype) -> None:
        maps = noisy_maps(3, 4)
        matrices = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(3), dtype=dtype) * 50
        found = decode_heatmaps(maps.to(backend.device), matrices=matrices.to(backend.device)).cpu()
        points = hrnet_decode(maps.numpy(), shift=True)
        for b in range(3):
            expected = points[b, :, :2] @ matrices[b, :, :2].numpy().T + matrices[b, :, 2].numpy()
            np.testing.assert_allclose(found[b, :, :2].numpy(), expected, rtol=1e-5, atol=1e-3)


class TestBrokenMaps:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("at", [0, 17, 100, 207])
    def test_a_nan_anywhere_makes_the_score_nan(self, backend: backends.Backend, method: str, at: int) -> None:
        maps = noisy_maps(1, 2)
        maps[0, 0].view(-1)[at] = math.nan
        broken, clean = decode_heatmaps(maps.to(backend.device), method)[0].tolist()
        assert broken[:2] == [0, 0]
        assert math.isnan(broken[2])
        assert clean[2] == maps[0, 1].max().item()

    @pytest.mark.parametrize("method", METHODS)
    def test_infinity_is_a_maximum_like_any_other(self, backend: backends.Backend, method: str) -> None:
        plane = torch.zeros(12, 12)
        plane[6, 5] = plane[6, 6] = math.inf
        x, y, score = decode_one(backend, plane, method)
        assert score == math.inf
        assert (x, y) == ((5.25, 6) if method == "quarter" else (5, 6))


class TestTypesAndShapes:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_half_maps_decode_as_their_float32_values(
        self, backend: backends.Backend, dtype: torch.dtype, method: str
    ) -> None:
        maps = noisy_maps().to(backend.device, dtype)
        found = decode_heatmaps(maps, method)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, decode_heatmaps(maps.float(), method), rtol=0, atol=0)

    @pytest.mark.parametrize("method", METHODS)
    def test_as_good_as_torch(self, backend: backends.Backend, method: str) -> None:
        maps = noisy_maps(2, 6, 20, 17)
        low, ref64 = (definition.decode_heatmaps(maps.to(d), method, None, 11) for d in (torch.float32, torch.float64))
        backends.assert_as_good_as_torch(decode_heatmaps(maps.to(backend.device), method), low, ref64, 2e-6)

    @pytest.mark.parametrize("method", METHODS)
    def test_float64(self, method: str) -> None:
        maps, matrices = noisy_maps(2, 6, 20, 17).double(), torch.randn(2, 2, 3, dtype=torch.float64)
        found = decode_heatmaps(maps, method, matrices=matrices)
        assert found.dtype == torch.float64
        expected = definition.decode_heatmaps(maps, method, matrices, 11)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("method", METHODS)
    def test_memory_layouts(self, backend: backends.Backend, method: str) -> None:
        maps = noisy_maps().to(backend.device)
        expected = decode_heatmaps(maps, method)
        for changed in (
            maps.contiguous(memory_format=torch.channels_last),
            maps.transpose(2, 3).contiguous().transpose(2, 3),
            torch.cat([maps, maps], 3)[..., 13:],
            torch.cat([torch.zeros(1, device=maps.device), maps.flatten()])[1:].view_as(maps),  # not 16-byte aligned
        ):
            torch.testing.assert_close(decode_heatmaps(changed, method), expected, rtol=0, atol=0)

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("shape", [(0, 17, 8, 6), (3, 0, 8, 6)])
    def test_empty(self, backend: backends.Backend, method: str, shape: tuple[int, ...]) -> None:
        maps = torch.zeros(shape, device=backend.device)
        matrices = torch.zeros(shape[0], 2, 3, device=backend.device)
        assert decode_heatmaps(maps, method, matrices=matrices).shape == (*shape[:2], 3)

    def test_a_map_larger_than_a_vector_index_of_16_bits(self, backend: backends.Backend) -> None:
        maps = torch.zeros(1, 1, 300, 401)
        maps[0, 0, 299, 398] = 1
        assert decode_heatmaps(maps.to(backend.device))[0, 0].tolist() == [398, 299, 1]

    @pytest.mark.parametrize("method", METHODS)
    def test_the_number_of_threads_changes_nothing(self, method: str) -> None:
        maps = noisy_maps(20, 17, 128, 104)  # above the size from which threads are used
        found = []
        for count in (1, 2):
            with threads(count):
                found.append(decode_heatmaps(maps, method))
        assert torch.equal(*found)

    def test_no_derivative(self) -> None:
        assert not decode_heatmaps(noisy_maps().requires_grad_()).requires_grad


class TestProperties:
    @settings(max_examples=40, deadline=None)
    @given(x=st.floats(8, 31), y=st.floats(8, 39), sigma=st.sampled_from([1.5, 2.0, 3.0]))
    def test_what_was_drawn_is_found(self, x: float, y: float, sigma: float) -> None:
        """The pixel by argmax, half of it at most by the quarter, a thousandth by DARK (on ideal maps)."""
        maps, _ = render_heatmaps(torch.tensor([[[x, y, 1.0]]]), (48, 40), sigma, "exact")
        for method, error in (("argmax", 0.5), ("quarter", 0.3), ("dark", 1e-3)):
            found = decode_heatmaps(maps, method)[0, 0]
            assert abs(found[0].item() - x) <= error + 1e-4
            assert abs(found[1].item() - y) <= error + 1e-4

    @settings(max_examples=40, deadline=None)
    @given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 10**6), method=st.sampled_from(METHODS))
    def test_the_place_does_not_depend_on_the_height(self, scale: float, seed: int, method: str) -> None:
        maps = noisy_maps(1, 2, 18, 18, seed).clamp_min(1e-3).double()
        found, scaled = decode_heatmaps(maps, method), decode_heatmaps(maps * scale, method)
        torch.testing.assert_close(scaled[..., :2], found[..., :2], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(scaled[..., 2], found[..., 2] * scale)


class TestTorchIntegration:
    @pytest.mark.parametrize("method", [0, 1, 2])
    def test_opcheck(self, method: int) -> None:
        maps = noisy_maps(2, 3, 12, 10)
        for sample in (maps, maps.half(), maps.contiguous(memory_format=torch.channels_last), maps[:0]):
            matrices = torch.rand(len(sample), 2, 3)
            torch.library.opcheck(torch.ops.posekd.decode_heatmaps, (sample, matrices, method, 11))
            torch.library.opcheck(torch.ops.posekd.decode_heatmaps, (sample, None, method, 11))

    @pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
    def test_compile_without_graph_breaks(self, compiler: str) -> None:
        def step(maps: Tensor, matrices: Tensor) -> Tensor:
            return decode_heatmaps(maps.abs(), "dark", matrices=matrices) * 2

        maps, matrices = noisy_maps(), torch.rand(2, 2, 3)
        compiled = torch.compile(step, fullgraph=True, backend=compiler)
        torch.testing.assert_close(compiled(maps, matrices), step(maps, matrices))

    def test_export_keeps_the_op(self) -> None:
        class Decode(torch.nn.Module):
            def forward(self, maps: Tensor) -> Tensor:
                return decode_heatmaps(maps, "dark")

        batch = torch.export.Dim("batch")
        program = torch.export.export(Decode(), (noisy_maps(),), dynamic_shapes=({0: batch},))
        assert "posekd.decode_heatmaps" in str(program.graph)
        other = noisy_maps(3, seed=4)
        torch.testing.assert_close(program.module()(other), decode_heatmaps(other, "dark"))

    @pytest.mark.parametrize("method", METHODS)
    def test_without_the_core_the_definition_serves(self, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
        maps, matrices = noisy_maps(2, 6, 20, 17), torch.rand(2, 2, 3)
        with_core = decode_heatmaps(maps, method, matrices=matrices)
        monkeypatch.setattr(library, "_core", None)
        torch.testing.assert_close(decode_heatmaps(maps, method, matrices=matrices), with_core, rtol=1e-4, atol=1e-4)


MAPS = torch.zeros(2, 5, 8, 6)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((MAPS.numpy(),), {}, TypeError, r"heatmaps must be a torch\.Tensor, got ndarray"),
        ((MAPS.int(),), {}, TypeError, r"heatmaps must be .*float32.*, got int32"),
        ((MAPS[0],), {}, ValueError, r"heatmaps must have 4 dimensions .*got shape \(5, 8, 6\)"),
        ((MAPS[:, :, :0],), {}, ValueError, r"at least one pixel, got shape \(2, 5, 0, 6\)"),
        ((MAPS, "udp"), {}, ValueError, r"method must be one of 'argmax'.*got 'udp'"),
        ((MAPS,), {"matrices": torch.zeros(3, 2, 3)}, ValueError, r"matrices must have shape \(2, 2, 3\)"),
        ((MAPS,), {"matrices": torch.zeros(2, 2, 3).half()}, TypeError, r"matrices must be .*got float16"),
        ((MAPS,), {"matrices": torch.zeros(2, 2, 3, device="meta")}, ValueError, r"matrices is on meta.*cpu"),
        ((MAPS,), {"blur_kernel": 10}, ValueError, r"blur_kernel must be an odd number from 3 to 63, got 10"),
    ],
)
def test_bad_input_is_answered_with_a_sentence(
    arguments: tuple[object, ...], options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        decode_heatmaps(*arguments, **options)
