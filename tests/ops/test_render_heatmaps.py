"""render_heatmaps: the published drawing rules, on every backend."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import backends
from helpers.threads import threads
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posekd.ops import library, render_heatmaps
from posekd.ops.reference import render_heatmaps as definition

KINDS = ["msra", "higherhrnet", "exact"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
JUST_BELOW_A_HALF = 0.5 - 2.0**-25  # in float32, adding 0.5 to it gives 1


def hrnet_target(joints: np.ndarray, height: int, width: int, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """HRNet's target of one person, joint by joint: a Gaussian patch pasted around the rounded centre."""
    maps = np.zeros((len(joints), height, width))
    weights = np.minimum(joints[:, 2], 1.0)
    reach = sigma * 3
    for k, (x, y, _) in enumerate(joints):
        column, row = int(x + 0.5), int(y + 0.5)
        left, top = int(column - reach), int(row - reach)
        right, bottom = int(column + reach + 1), int(row + reach + 1)
        if left >= width or top >= height or right < 0 or bottom < 0:
            weights[k] = 0
            continue
        if weights[k] <= 0.5:
            continue
        axis = np.arange(0, 2 * reach + 1)
        middle = (2 * reach + 1) // 2
        patch = np.exp(-((axis - middle) ** 2 + (axis[:, None] - middle) ** 2) / (2 * sigma**2))
        y0, y1, x0, x1 = max(0, top), min(bottom, height), max(0, left), min(right, width)
        if y0 < y1 and x0 < x1:
            maps[k, y0:y1, x0:x1] = patch[y0 - top : y1 - top, x0 - left : x1 - left]
    return maps, weights


def higherhrnet_target(people: np.ndarray, height: int, width: int, sigma: float) -> np.ndarray:
    """HigherHRNet's target of several people: truncated centres, rounded windows, merged by the maximum."""
    maps = np.zeros((people.shape[1], height, width))
    reach = 3 * sigma + 1
    axis = np.arange(0, 6 * sigma + 3)
    patch = np.exp(-((axis - reach) ** 2 + (axis[:, None] - reach) ** 2) / (2 * sigma**2))
    for person in people:
        for k, (x, y, visible) in enumerate(person):
            column, row = int(x), int(y)
            if visible <= 0 or not (0 <= column < width and 0 <= row < height):
                continue
            left, top = int(np.round(column - reach)), int(np.round(row - reach))
            right, bottom = int(np.round(column + reach + 1)), int(np.round(row + reach + 1))
            y0, y1, x0, x1 = max(0, top), min(bottom, height), max(0, left), min(right, width)
            drawn = patch[y0 - top : y1 - top, x0 - left : x1 - left]
            maps[k, y0:y1, x0:x1] = np.maximum(maps[k, y0:y1, x0:x1], drawn)
    return maps


def some_keypoints(*shape: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Joints inside, at the border and outside of a map, of every visibility. Multiples of 1/8: exact in float32."""
    rng = np.random.default_rng(seed)
    x = np.round(rng.uniform(-width / 2, 1.5 * width, shape) * 8) / 8
    y = np.round(rng.uniform(-height / 2, 1.5 * height, shape) * 8) / 8
    return torch.from_numpy(np.stack([x, y, rng.integers(0, 3, shape)], -1)).float()


def render_one(
    backend: backends.Backend, x: float, y: float, visibility: float = 2.0, **options: object
) -> tuple[Tensor, float]:
    """One joint in a map of 16x12."""
    keypoints = torch.tensor([[[x, y, visibility]]], device=backend.device)
    maps, weight = render_heatmaps(keypoints, (16, 12), **options)
    return maps[0, 0].cpu(), weight.item()


class TestPublishedRules:
    @pytest.mark.parametrize("sigma", [1.0, 1.4, 2.0, 2.5, 3.0])
    def test_msra_is_hrnets_target(self, backend: backends.Backend, sigma: float) -> None:
        keypoints = some_keypoints(4, 9, height=16, width=13)
        maps, weight = render_heatmaps(keypoints.to(backend.device), (16, 13), sigma)
        for b in range(4):
            expected, weights = hrnet_target(keypoints[b].double().numpy(), 16, 13, sigma)
            np.testing.assert_allclose(maps[b].cpu().numpy(), expected, atol=1e-6)
            np.testing.assert_array_equal(weight[b].cpu().numpy(), weights.astype(np.float32))

    @pytest.mark.parametrize("sigma", [1.0, 1.4, 2.0, 2.5])
    def test_higherhrnet_is_its_target(self, backend: backends.Backend, sigma: float) -> None:
        keypoints = some_keypoints(2, 4, 5, height=16, width=13, seed=1)
        maps, weight = render_heatmaps(keypoints.to(backend.device), (16, 13), sigma, "higherhrnet")
        for b in range(2):
            expected = higherhrnet_target(keypoints[b].double().numpy(), 16, 13, sigma)
            np.testing.assert_allclose(maps[b].cpu().numpy(), expected, atol=1e-6)
            np.testing.assert_array_equal(weight[b].cpu().numpy(), expected.max((1, 2)) > 0)

    def test_exact_is_the_gaussian_itself(self, backend: backends.Backend) -> None:
        maps, weight = render_one(backend, 4.375, 7.875, sigma=1.5, kind="exact")
        y, x = np.mgrid[:16, :12]
        expected = np.exp(-((x - 4.375) ** 2 + (y - 7.875) ** 2) / (2 * 1.5**2))
        np.testing.assert_allclose(maps.numpy(), expected, rtol=1e-5, atol=1e-7)
        assert weight == 1

    def test_higherhrnet_peak_at_sigma_two_and_a_half(self, backend: backends.Backend) -> None:
        """160 / 64 is HigherHRNet's own default; its 18x18 patch has no middle pixel: peak exp(-0.04) = 0.961."""
        maps, _ = render_one(backend, 5.0, 8.0, sigma=2.5, kind="higherhrnet")
        assert maps.max().item() == pytest.approx(math.exp(-0.04), abs=1e-6)

    @pytest.mark.parametrize(("x", "column"), [(4.375, 4), (4.5, 5), (-0.625, 0), (-1.375, 0), (JUST_BELOW_A_HALF, 0)])
    def test_msra_rounds_toward_zero_after_adding_a_half(
        self, backend: backends.Backend, x: float, column: int
    ) -> None:
        maps, _ = render_one(backend, x, 3.0, sigma=1.0)
        assert maps[3].argmax().item() == column
        assert maps[3, column].item() == 1

    def test_a_window_that_ends_at_zero_keeps_its_weight(self, backend: backends.Backend) -> None:
        """HRNet's test is `end < 0` with an exclusive end: at end 0 the weight stays 1 while nothing is drawn."""
        maps, weight = render_one(backend, -7.5, 5.0, sigma=2.0)  # centre -7, window [-13, 0)
        assert weight == 1
        assert maps.max() == 0
        assert render_one(backend, -8.5, 5.0, sigma=2.0)[1] == 0

    @pytest.mark.parametrize(
        ("visibility", "kind", "weight", "drawn"),
        [
            (2.0, "msra", 1.0, True),
            (1.0, "msra", 1.0, True),
            (0.75, "msra", 0.75, True),
            (0.5, "msra", 0.5, False),
            (0.0, "msra", 0.0, False),
            (-1.0, "msra", 0.0, False),
            (math.nan, "msra", 0.0, False),
            (math.inf, "msra", 1.0, True),
            (0.75, "exact", 0.75, True),
            (0.25, "exact", 0.25, False),
            (0.25, "higherhrnet", 1.0, True),
            (math.nan, "higherhrnet", 0.0, False),
        ],
    )
    def test_visibility(
        self, backend: backends.Backend, visibility: float, kind: str, weight: float, drawn: bool
    ) -> None:
        maps, found = render_one(backend, 5.0, 8.0, visibility, kind=kind)
        assert found == weight
        assert (maps.max().item() == 1) is drawn

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf, 3e38, -3e38])
    def test_a_broken_coordinate_draws_nothing(self, backend: backends.Backend, kind: str, broken: float) -> None:
        for x, y in ((broken, 5.0), (5.0, broken)):
            maps, weight = render_one(backend, x, y, kind=kind)
            assert weight == 0
            assert (maps == 0).all()


class TestTypesAndShapes:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_half_maps_are_rounded_float32_maps(self, backend: backends.Backend, dtype: torch.dtype, kind: str) -> None:
        keypoints = some_keypoints(2, 5, height=16, width=12)
        maps, weight = render_heatmaps(keypoints.to(backend.device), (16, 12), 2.0, kind, dtype=dtype)
        expected, weights = definition.render_heatmaps(keypoints[:, None], (16, 12), 2.0, kind, torch.float64)
        assert maps.dtype == dtype
        assert weight.dtype == torch.float32
        backends.assert_as_good_as_torch(maps, expected.to(dtype), expected, 1e-6)
        torch.testing.assert_close(weight.cpu(), weights, rtol=0, atol=0)

    def test_float64_is_computed_in_float64(self) -> None:
        keypoints = some_keypoints(2, 5, height=16, width=12)
        maps, _ = render_heatmaps(keypoints, (16, 12), 2.0, "exact", dtype=torch.float64)
        expected, _ = definition.render_heatmaps(keypoints[:, None], (16, 12), 2.0, "exact", torch.float64)
        torch.testing.assert_close(maps, expected, rtol=1e-12, atol=1e-15)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
    def test_keypoints_of_any_float_type(self, backend: backends.Backend, dtype: torch.dtype) -> None:
        keypoints = some_keypoints(1, 5, height=16, width=12).to(backend.device, dtype)
        found = render_heatmaps(keypoints, (16, 12))
        torch.testing.assert_close(found, render_heatmaps(keypoints.float(), (16, 12)), rtol=0, atol=0)

    @pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (5, 3), (17, 33), (6, 24)])
    @pytest.mark.parametrize("kind", KINDS)
    def test_sizes(self, backend: backends.Backend, size: tuple[int, int], kind: str) -> None:
        keypoints = some_keypoints(2, 2, 3, height=size[0], width=size[1])
        maps, weight = render_heatmaps(keypoints.to(backend.device), size, 1.5, kind)
        expected, weights = definition.render_heatmaps(keypoints, size, 1.5, kind, torch.float32)
        torch.testing.assert_close(maps.cpu(), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(weight.cpu(), weights, rtol=0, atol=0)

    @pytest.mark.parametrize("shape", [(0, 17), (3, 0), (2, 0, 5), (0, 2, 5)])
    def test_empty(self, backend: backends.Backend, shape: tuple[int, ...]) -> None:
        """No joints, no maps; no people, maps of zeros and weights of zero."""
        maps, weight = render_heatmaps(torch.zeros(*shape, 3, device=backend.device), (8, 6))
        assert maps.shape == (shape[0], shape[-1], 8, 6)
        assert weight.shape == (shape[0], shape[-1])
        assert (maps == 0).all()
        assert (weight == 0).all()

    # The second is wider than a GPU's shared memory has room for the profiles of 32 people.
    @pytest.mark.parametrize("size", [(16, 12), (2, 1900)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_more_people_than_a_block_holds(
        self, backend: backends.Backend, dtype: torch.dtype, size: tuple[int, int]
    ) -> None:
        keypoints = some_keypoints(1, 70, 2, height=size[0], width=size[1])
        maps, weight = render_heatmaps(keypoints.to(backend.device), size, 1.0, dtype=dtype)
        expected, weights = definition.render_heatmaps(keypoints, size, 1.0, "msra", torch.float32)
        torch.testing.assert_close(maps.cpu().float(), expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 2e-3)
        torch.testing.assert_close(weight.cpu(), weights, rtol=0, atol=0)

    def test_memory_layout_of_the_keypoints(self, backend: backends.Backend) -> None:
        keypoints = some_keypoints(3, 5, height=16, width=12).to(backend.device)
        expected = render_heatmaps(keypoints, (16, 12))
        strided = keypoints.permute(2, 0, 1).contiguous().permute(1, 2, 0)
        sliced = torch.cat([keypoints, keypoints], -1)[..., :3]
        for changed in (strided, sliced):
            assert not changed.is_contiguous()
            torch.testing.assert_close(render_heatmaps(changed, (16, 12)), expected, rtol=0, atol=0)

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_number_of_threads_changes_nothing(self, kind: str) -> None:
        keypoints = some_keypoints(20, 2, 17, height=128, width=104)  # above the size from which threads are used
        found = []
        for count in (1, 2):
            with threads(count):
                found.append(render_heatmaps(keypoints, (128, 104), kind=kind))
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1])

    def test_no_derivative(self) -> None:
        keypoints = some_keypoints(1, 2, height=8, width=8).requires_grad_()
        maps, weight = render_heatmaps(keypoints, (8, 8), kind="exact")
        assert not maps.requires_grad
        assert not weight.requires_grad


class TestProperties:
    @settings(max_examples=40, deadline=None)
    @given(
        kind=st.sampled_from(KINDS),
        sigma=st.sampled_from([0.5, 1.0, 2.0, 2.5, 3.0]),
        people=st.integers(1, 4),
        seed=st.integers(0, 10**6),
    )
    def test_people_are_merged_by_the_maximum(self, kind: str, sigma: float, people: int, seed: int) -> None:
        keypoints = some_keypoints(1, people, 3, height=14, width=11, seed=seed)
        together, weight = render_heatmaps(keypoints, (14, 11), sigma, kind)
        alone = [render_heatmaps(keypoints[:, p], (14, 11), sigma, kind) for p in range(people)]
        assert torch.equal(together, torch.stack([maps for maps, _ in alone]).amax(0))
        assert torch.equal(weight, torch.stack([weights for _, weights in alone]).amax(0))

    @settings(max_examples=40, deadline=None)
    @given(x=st.floats(0, 11), y=st.floats(0, 15), dx=st.integers(-3, 3), dy=st.integers(-3, 3))
    def test_moving_a_joint_by_whole_pixels_moves_its_map(self, x: float, y: float, dx: int, dy: int) -> None:
        """Joints 8 pixels or more from the border of a map of 40x40. Positions are multiples of 1/16."""
        x, y = round(x * 16) / 16 + 12, round(y * 16) / 16 + 12
        for kind in KINDS:
            both = torch.tensor([[[x, y, 1.0], [x + dx, y + dy, 1.0]]])
            maps, _ = render_heatmaps(both, (40, 40), 1.0, kind)
            moved = torch.roll(maps[0, 0], (dy, dx), (0, 1))
            torch.testing.assert_close(maps[0, 1, 5:-5, 5:-5], moved[5:-5, 5:-5], rtol=0, atol=1e-6)


class TestTorchIntegration:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_opcheck(self, dtype: torch.dtype) -> None:
        keypoints = some_keypoints(2, 3, 4, height=8, width=6)
        for sample in (keypoints, keypoints.transpose(1, 2).contiguous().transpose(1, 2), keypoints[:0]):
            torch.library.opcheck(torch.ops.posekd.render_heatmaps, (sample, 8, 6, 2.0, 0, dtype))

    @pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
    def test_compile_without_graph_breaks(self, compiler: str) -> None:
        def step(keypoints: Tensor) -> Tensor:
            maps, weight = render_heatmaps(keypoints * 2, (16, 12), 1.5, "exact")
            return maps * weight[..., None, None] + 1

        keypoints = some_keypoints(2, 5, height=8, width=6)
        compiled = torch.compile(step, fullgraph=True, backend=compiler)
        torch.testing.assert_close(compiled(keypoints), step(keypoints))

    def test_export_keeps_the_op(self) -> None:
        class Render(torch.nn.Module):
            def forward(self, keypoints: Tensor) -> tuple[Tensor, Tensor]:
                return render_heatmaps(keypoints, (16, 12))

        keypoints = some_keypoints(2, 5, height=16, width=12)
        batch = torch.export.Dim("batch")
        program = torch.export.export(Render(), (keypoints,), dynamic_shapes=({0: batch},))
        assert "posekd.render_heatmaps" in str(program.graph)
        other = some_keypoints(3, 5, height=16, width=12, seed=5)
        torch.testing.assert_close(program.module()(other), render_heatmaps(other, (16, 12)))

    def test_without_the_core_the_definition_serves(self, monkeypatch: pytest.MonkeyPatch) -> None:
        keypoints = some_keypoints(2, 5, height=16, width=12)
        with_core = render_heatmaps(keypoints, (16, 12))
        monkeypatch.setattr(library, "_core", None)
        torch.testing.assert_close(render_heatmaps(keypoints, (16, 12)), with_core, rtol=0, atol=1e-6)


KEYPOINTS = torch.zeros(2, 5, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[1, 2, 3]], (8, 6)), TypeError, r"keypoints must be a torch\.Tensor, got list"),
        ((KEYPOINTS.int(), (8, 6)), TypeError, r"keypoints must be .*float32.*, got int32"),
        ((KEYPOINTS[0], (8, 6)), ValueError, r"keypoints must have 3 dimensions .*got shape \(5, 3\)"),
        ((KEYPOINTS[..., :2], (8, 6)), ValueError, r"x, y, visibility.*got shape \(2, 5, 2\)"),
        ((KEYPOINTS, (8, 0)), ValueError, r"size must be \(height, width\).*got \(8, 0\)"),
        ((KEYPOINTS, (8, 6), 0.0), ValueError, r"sigma must be positive and finite, got 0\.0"),
        ((KEYPOINTS, (8, 6), math.nan), ValueError, r"sigma must be positive and finite, got nan"),
        ((KEYPOINTS, (8, 6), 2.0, "udp"), ValueError, r"kind must be one of 'msra'.*got 'udp'"),
    ],
)
def test_bad_input_is_answered_with_a_sentence(
    arguments: tuple[object, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        render_heatmaps(*arguments)


def test_an_integer_dtype_is_refused() -> None:
    with pytest.raises(TypeError, match=r"dtype must be .*float32.*, got int32"):
        render_heatmaps(KEYPOINTS, (8, 6), dtype=torch.int32)


class TestReusedOutput:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_draws_into_out(self, backend: backends.Backend, dtype: torch.dtype) -> None:
        keypoints = torch.tensor([[[3.2, 4.0, 2.0], [30.0, 4.0, 2.0]], [[7.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
        keypoints = keypoints.to(backend.device)
        fresh, weight = render_heatmaps(keypoints, (12, 10), 1.5, dtype=dtype)
        out = torch.full_like(fresh, 7.0)
        drawn, again = render_heatmaps(keypoints, (12, 10), 1.5, dtype=dtype, out=out)
        assert drawn is out
        assert torch.equal(out, fresh)
        assert torch.equal(again, weight)

    def test_the_op_says_what_it_writes(self) -> None:
        out, keypoints = torch.zeros(1, 2, 8, 8), torch.rand(1, 1, 2, 3) * 8
        torch.library.opcheck(torch.ops.posekd.render_heatmaps_into, (out, keypoints, 2.0, 0))

    @pytest.mark.parametrize(
        ("out", "message"),
        [
            (torch.zeros(1, 2, 8, 9), "out must have shape"),
            (torch.zeros(1, 2, 8, 8, dtype=torch.float64), "out"),
            (torch.zeros(1, 2, 8, 8).transpose(2, 3), "out must be contiguous"),
        ],
    )
    def test_another_out_is_refused(self, out: Tensor, message: str) -> None:
        with pytest.raises((TypeError, ValueError), match=message):
            render_heatmaps(torch.zeros(1, 2, 3), (8, 8), 2.0, out=out)
