"""roi_align: against torchvision's published algorithm, written out sample by sample, on every backend."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import backends
from helpers.threads import threads
from helpers.torchvision_roi_align import oracle, torchvision_weights, upstream
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posekd.ops import library, roi_align
from posekd.ops.reference import roi_align as definition
from posekd.ops.roi_align import fits_device

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
EPS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def run(maps: Tensor, boxes: Tensor, out: tuple[int, int], **rule: Any) -> tuple[Tensor, Tensor]:
    """Crops and gradient of the op."""
    maps = maps.detach().requires_grad_()
    crops = roi_align(maps, boxes, out, **rule)
    crops.backward(upstream(crops))
    assert maps.grad is not None
    return crops.detach(), maps.grad


def make_maps(N: int = 2, C: int = 3, H: int = 9, W: int = 7, seed: int = 0) -> Tensor:
    return torch.rand(N, C, H, W, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


BOXES = {
    "inside": [0, 1.3, 2.1, 5.2, 7.9],
    "second image": [1, 0.0, 0.0, 6.0, 8.0],
    "whole map": [0, 0.0, 0.0, 7.0, 9.0],
    "tiny": [1, 3.2, 3.1, 3.4, 3.15],
    "point": [0, 3.0, 4.0, 3.0, 4.0],
    "beyond the low edges": [0, -6.5, -4.2, 3.0, 2.0],
    "beyond the high edges": [1, 4.0, 5.0, 20.0, 13.0],
    "around the map": [0, -20.0, -30.0, 30.0, 40.0],
    "outside": [1, 50.0, 50.0, 60.0, 60.0],
    "exactly at the range's end": [0, 6.5, 8.5, 8.5, 10.5],
    "inverted": [0, 5.0, 7.0, 1.0, 2.0],
    "inverted along x only": [1, 5.0, 1.0, 2.0, 7.0],
    "fractional index": [1.9, 1.0, 1.0, 5.0, 5.0],
}
TABLE = torch.tensor(list(BOXES.values()), dtype=torch.float64)


class TestAgainstTorchvisionsAlgorithm:
    @pytest.mark.parametrize("aligned", [True, False])
    @pytest.mark.parametrize("ratio", [0, 1, 2, 3])
    @pytest.mark.parametrize("box", BOXES)
    def test_one_box_float64(self, box: str, ratio: int, aligned: bool) -> None:
        maps, boxes = make_maps(), torch.tensor([BOXES[box]], dtype=torch.float64)
        rule = {"sampling_ratio": ratio, "aligned": aligned}
        for mine, theirs in zip(run(maps, boxes, (4, 3), **rule), oracle(maps, boxes, (4, 3), **rule), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-13)

    @pytest.mark.parametrize("scale", [1.0, 0.25])
    @pytest.mark.parametrize("ratio", [0, 2])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_many_boxes(self, backend: backends.Backend, dtype: torch.dtype, ratio: int, scale: float) -> None:
        if dtype == torch.float64 and not backend.float64:
            pytest.skip("float64 is for the CPU")
        maps = make_maps().to(dtype)
        boxes = torch.cat([TABLE[:, :1], TABLE[:, 1:] / scale], 1)
        boxes = boxes.to(torch.float64 if dtype == torch.float64 else torch.float32)
        rule = {"sampling_ratio": ratio, "spatial_scale": scale}
        crops, gradient = run(maps.to(backend.device), boxes.to(backend.device), (5, 6), **rule)
        assert crops.dtype == gradient.dtype == dtype
        wide = maps.float() if dtype != torch.float64 else maps
        low = definition.roi_align(wide, boxes, (5, 6), scale, ratio, True)
        low_gradient = definition.roi_align_backward(
            upstream(crops.cpu()).to(wide.dtype), boxes, (2, 3, 9, 7), scale, ratio, True
        )
        expected, _ = oracle(maps, boxes, (5, 6), **rule)
        # The upstream gradient as this dtype holds it is the problem.
        rounded = upstream(crops.cpu()).double()
        exact = definition.roi_align_backward(rounded, boxes.double(), (2, 3, 9, 7), scale, ratio, True)
        backends.assert_as_good_as_torch(crops, low, expected, EPS[dtype])
        backends.assert_as_good_as_torch(gradient, low_gradient, exact, EPS[dtype])

    @pytest.mark.parametrize("out", [(1, 1), (7, 7), (3, 17), (20, 2), (12, 33)])
    @pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 5, 3, 11), (1, 2, 40, 21)])
    def test_sizes(self, backend: backends.Backend, shape: tuple[int, int, int, int], out: tuple[int, int]) -> None:
        maps = make_maps(*shape).float()
        H, W = shape[2:]
        boxes = torch.tensor([[0, 0.2 * W, 0.1 * H, 0.9 * W, 0.8 * H], [shape[0] - 1, -1, -1, W + 1, H + 1]])
        crops, gradient = run(maps.to(backend.device), boxes.to(backend.device), out, sampling_ratio=2)
        expected, expected_gradient = oracle(maps, boxes, out, sampling_ratio=2)
        torch.testing.assert_close(crops.cpu().double(), expected, rtol=0, atol=2e-5)
        torch.testing.assert_close(gradient.cpu().double(), expected_gradient, rtol=0, atol=5e-5)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize(
        ("shape", "out"), [((2, 8, 9, 37), (7, 7)), ((1, 264, 1, 3), (2, 3)), ((3, 16, 4, 8), (8, 1))], ids=str
    )
    def test_many_small_crops(
        self, backend: backends.Backend, shape: tuple[int, ...], out: tuple[int, int], dtype: torch.dtype
    ) -> None:
        """What a GPU has kernels of its own for: the same boxes on every image, and on images that are not there."""
        maps = make_maps(*shape).to(dtype)
        N, _, H, W = shape
        corners = torch.tensor([[0.2 * W, 0.1 * H, 0.9 * W, 0.8 * H], [-1, -1, W + 1, H + 1], [W - 2, 1.3, 1.5, 2.2]])
        boxes = torch.cat([torch.arange(-1.0, N + 1).repeat_interleave(3)[:, None], corners.repeat(N + 2, 1)], 1)
        if backend.kind == "cpu":  # which refuses a box on no image
            boxes = boxes[(boxes[:, 0] >= 0) & (boxes[:, 0] < N)]
        crops, gradient = run(maps.to(backend.device), boxes.to(backend.device), out, sampling_ratio=2)
        rounded = upstream(crops.cpu()).float()
        expected = definition.roi_align(maps.float(), boxes, out, 1.0, 2, True)
        exact = definition.roi_align_backward(rounded, boxes, shape, 1.0, 2, True)
        slack = 3e-6 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(crops.cpu().float(), expected, rtol=slack, atol=slack)
        torch.testing.assert_close(gradient.cpu().float(), exact, rtol=slack, atol=2 * slack * rounded.abs().max())

    def test_more_channels_than_a_block_takes(self, backend: backends.Backend) -> None:
        maps = make_maps(1, 37, 6, 5).float()
        crops, gradient = run(maps.to(backend.device), TABLE[:1].float().to(backend.device), (3, 4))
        expected, expected_gradient = oracle(maps, TABLE[:1].float(), (3, 4))
        torch.testing.assert_close(crops.cpu().double(), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(gradient.cpu().double(), expected_gradient, rtol=0, atol=1e-5)

    def test_the_definition_is_torchvisions(self) -> None:
        for ratio in (0, 2):
            for aligned in (True, False):
                mine = definition.roi_align(make_maps(), TABLE, (4, 3), 1.0, ratio, aligned)
                theirs, _ = oracle(make_maps(), TABLE, (4, 3), sampling_ratio=ratio, aligned=aligned)
                torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-13)

    @pytest.mark.parametrize("layout", ["transposed", "channels_last", "sliced"])
    def test_memory_layouts(self, backend: backends.Backend, layout: str) -> None:
        change = {
            "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
            "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
            "sliced": lambda x: torch.cat([x, x], 3)[..., :7],
        }[layout]
        maps, boxes = make_maps().float().to(backend.device), TABLE.float().to(backend.device)
        changed = change(maps)
        assert not changed.is_contiguous()
        for mine, plain in zip(run(changed, boxes, (4, 4)), run(maps, boxes, (4, 4)), strict=True):
            torch.testing.assert_close(mine, plain, rtol=0, atol=0)


class TestMeaning:
    def test_an_aligned_box_of_whole_pixels_copies_them(self, backend: backends.Backend) -> None:
        maps = make_maps(1, 2, 8, 8).float().to(backend.device)
        crop = roi_align(maps, [torch.tensor([[2.0, 1.0, 7.0, 5.0]], device=backend.device)], (4, 5))
        torch.testing.assert_close(crop[0], maps[0, :, 1:5, 2:7])

    def test_inverted_boxes_mirror_with_fixed_sampling_and_vanish_with_adaptive(
        self, backend: backends.Backend
    ) -> None:
        maps = make_maps().float().to(backend.device)
        box = torch.tensor([[0, 1.0, 2.0, 5.0, 7.0]], device=backend.device)
        inverted = box[:, [0, 3, 4, 1, 2]]
        mirrored = roi_align(maps, inverted, 4, sampling_ratio=2).flip(2, 3)
        torch.testing.assert_close(mirrored, roi_align(maps, box, 4, sampling_ratio=2), rtol=1e-5, atol=1e-6)
        assert (roi_align(maps, inverted, 4) == 0).all()
        assert (roi_align(maps, box[:, [0, 3, 2, 1, 4]], 4) == 0).all()  # where torchvision's CPU kernel throws

    def test_half_maps_keep_float32_coordinates(self, backend: backends.Backend) -> None:
        """A coordinate of 1000.3 in half is 1000.5: the crop of a ramp would be off by 0.2."""
        ramp = (torch.arange(1024.0, device=backend.device) - 1000).half().view(1, 1, 1, 1024).expand(1, 1, 2, 1024)
        box = torch.tensor([[0, 1000.3, 0, 1002.3, 2]], device=backend.device)
        crop = roi_align(ramp, box, (1, 1), sampling_ratio=2)
        assert crop.item() == pytest.approx(1001.3 - 0.5 - 1000, abs=1e-3)

    def test_a_list_of_boxes_is_the_table(self, backend: backends.Backend) -> None:
        maps = make_maps(3).float().to(backend.device)
        table = torch.tensor([[0, 1.0, 1, 4, 5], [0, 2, 2, 6, 6], [2, 0, 0, 3, 3]], device=backend.device)
        lists = [table[:2, 1:], table[:0, 1:], table[2:, 1:]]
        assert torch.equal(roi_align(maps, lists, 3), roi_align(maps, table, 3))

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("column", range(5))
    def test_boxes_that_are_not_finite_give_zeros(self, backend: backends.Backend, column: int, value: float) -> None:
        boxes = TABLE[:2].float().clone()
        boxes[0, column] = value
        crops, gradient = run(make_maps().float().to(backend.device), boxes.to(backend.device), (3, 3))
        assert (crops[0] == 0).all()
        assert (crops[1] != 0).any()
        assert (gradient[0] == 0).all()

    def test_huge_boxes_take_no_longer_than_the_map(self, backend: backends.Backend) -> None:
        maps = torch.ones(1, 1, 4, 4, device=backend.device)
        far = torch.tensor([[0, -1e6, -1e6, 1e6, 1e6], [0, 1e30, 0, 2e30, 4]], device=backend.device)
        crops = roi_align(maps, far, (2, 2))
        # Of 2e6 x 2e6 samples about 5 x 5 lie in range (a map of 4 pixels and one pixel around it).
        assert crops[0].sum().item() == pytest.approx(4 * 25 / 4e12, rel=1.0)
        assert (crops[1] == 0).all()

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize(("out", "copies"), [((10, 17), 1), ((7, 7), 10)])  # few large crops, many small ones
    def test_nan_and_inf_reach_what_reads_them_and_nothing_else(
        self, backend: backends.Backend, out: tuple[int, int], copies: int, value: float
    ) -> None:
        maps = make_maps(1, 2, 40, 40).float()
        maps[0, 1, 20, 20] = value
        boxes = torch.tensor([[0, 4.3, 4.1, 37.9, 38.2], [0, 1, 1, 12, 12]] * copies)
        crops, _ = run(maps.to(backend.device), boxes.to(backend.device), out, sampling_ratio=2)
        clean = roi_align(maps.nan_to_num(0, 0, 0), boxes, out, sampling_ratio=2)
        weights = torchvision_weights(
            boxes[0].double().tolist(), maps, out, {"spatial_scale": 1.0, "aligned": True, "sampling_ratio": 2}
        )
        hit = torch.from_numpy(weights[:, :, 20, 20] > 0)
        assert 0 < hit.sum() < 20
        assert torch.equal(~crops[0, 1].cpu().isfinite(), hit)
        torch.testing.assert_close(crops[0, 1].cpu()[~hit], clean[0, 1][~hit], rtol=1e-5, atol=1e-6)
        assert crops[:, 0].isfinite().all()
        assert crops[1].isfinite().all()

    def test_a_nan_gradient_reaches_only_its_own_pixels(self, backend: backends.Backend) -> None:
        maps = make_maps(1, 1, 40, 40).float().to(backend.device).requires_grad_()
        crops = roi_align(maps, torch.tensor([[0, 4.3, 4.1, 37.9, 38.2]], device=backend.device), 17, sampling_ratio=2)
        g = torch.ones_like(crops)
        g[0, 0, 8, 8] = math.nan
        crops.backward(g)
        assert 4 <= (~maps.grad.isfinite()).sum() <= 16

    def test_an_image_that_is_not_there(self, backend: backends.Backend) -> None:
        maps = make_maps().float().to(backend.device)
        for index in (-1.0, 2.0, 1e9):
            boxes = torch.tensor([[0, 1.0, 1, 4, 4], [index, 1, 1, 4, 4]], device=backend.device)
            if backend.kind == "cpu":
                with pytest.raises(ValueError, match=r"boxes\[1\] is on image .* there are 2 images"):
                    roi_align(maps, boxes, 3)
            else:
                crops, _ = run(maps, boxes, (3, 3))
                assert (crops[1] == 0).all()
                assert (crops[0] != 0).any()

    @pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 0, 8, 8), (2, 3, 8, 8)])
    def test_no_boxes_no_images_no_channels(self, backend: backends.Backend, shape: tuple[int, ...]) -> None:
        maps = torch.zeros(shape, device=backend.device, requires_grad=True)
        crops = roi_align(maps, torch.zeros(0, 5, device=backend.device), (4, 3))
        crops.sum().backward()
        assert crops.shape == (0, shape[1], 4, 3)
        assert maps.grad.shape == shape
        assert (maps.grad == 0).all()
        assert roi_align(maps, [torch.zeros(0, 4, device=backend.device)] * shape[0], 2).shape[0] == 0


class TestAutograd:
    def test_gradcheck(self) -> None:
        maps = make_maps(2, 1, 4, 5).requires_grad_()
        for ratio in (0, 2):
            assert torch.autograd.gradcheck(lambda m, r=ratio: roi_align(m, TABLE, (3, 2), 0.6, r), (maps,))

    def test_half_gradients_sum_in_float32(self, backend: backends.Backend) -> None:
        """1000 and 200 times 0.1: in half, whose spacing there is 0.5, the sum would stay 1000."""
        maps = torch.zeros(1, 1, 2, 2, dtype=torch.float16, device=backend.device, requires_grad=True)
        boxes = torch.tensor([[0, 0, 0, 2.0, 2.0]], device=backend.device).repeat(201, 1)
        g = torch.full((201, 1, 2, 2), 0.1, device=backend.device).half()
        g[0] = 1000
        roi_align(maps, boxes, 2).backward(g)
        torch.testing.assert_close(maps.grad.float(), torch.full_like(maps, 1020).float(), rtol=1e-3, atol=0)

    def test_deterministic_whatever_the_threads(self) -> None:
        maps, boxes = make_maps(3, 19, 32, 24).float(), torch.rand(40, 5) * 24
        boxes[:, 0] = torch.arange(40) % 3
        results = []
        for count in (1, 2, 2):
            with threads(count):
                results.append(run(maps, boxes, (16, 12), sampling_ratio=2))
        assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))

    def test_double_backward_is_a_clear_error(self) -> None:
        maps = torch.rand(1, 1, 4, 4, requires_grad=True)
        crops = roi_align(maps, [torch.tensor([[0.0, 0, 3, 3]])], 2)
        (gradient,) = torch.autograd.grad(crops.square().sum(), maps, create_graph=True)
        with pytest.raises(RuntimeError, match="double backward is not supported"):
            torch.autograd.grad(gradient.sum(), maps)

    def test_boxes_get_no_gradient(self) -> None:
        boxes = torch.tensor([[0.0, 0, 0, 3, 3]], requires_grad=True)
        roi_align(torch.rand(1, 1, 4, 4, requires_grad=True), boxes, 2).sum().backward()
        assert boxes.grad is None


class TestTorchIntegration:
    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_opcheck(self, dtype: torch.dtype, layout: torch.memory_format) -> None:
        maps = make_maps().to(dtype).contiguous(memory_format=layout).requires_grad_()
        boxes = TABLE.float()
        torch.library.opcheck(torch.ops.posekd.roi_align, (maps, boxes, 4, 3, 0.5, 0, True))
        g = torch.rand(len(boxes), 3, 3, 4, dtype=dtype).transpose(2, 3)
        torch.library.opcheck(torch.ops.posekd.roi_align_backward, (g, boxes, [2, 3, 9, 7], 0.5, 0, True))

    @pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
    def test_compile_without_graph_breaks(self, compiler: str) -> None:
        def step(maps: Tensor, boxes: list[Tensor]) -> Tensor:
            return roi_align(maps * 2, boxes, (4, 3), 0.5, 2).square().sum()

        boxes = [TABLE[:2, 1:].float(), TABLE[2:6, 1:].float()]
        gradients = []
        for function in (step, torch.compile(step, fullgraph=True, backend=compiler)):
            maps = make_maps().float().requires_grad_()
            function(maps, boxes).backward()
            gradients.append(maps.grad)
        torch.testing.assert_close(*gradients)

    def test_export_with_any_number_of_boxes(self) -> None:
        class Crop(torch.nn.Module):
            def forward(self, maps: Tensor, boxes: Tensor) -> Tensor:
                return roi_align(maps, boxes, (4, 3), 0.25, 2)

        inputs = (make_maps().float(), TABLE[:4].float())
        program = torch.export.export(Crop(), inputs, dynamic_shapes=(None, {0: torch.export.Dim("boxes")}))
        assert "posekd.roi_align" in str(program.graph)
        more = (inputs[0], TABLE.float())
        torch.testing.assert_close(program.module()(*more), roi_align(*more, (4, 3), 0.25, 2))

    def test_without_the_core_the_definition_serves(self, monkeypatch: pytest.MonkeyPatch) -> None:
        results = []
        for core in (library._core, None):
            monkeypatch.setattr(library, "_core", core)
            results.append(run(make_maps().float(), TABLE.float(), (4, 3), sampling_ratio=2))
        for mine, plain in zip(*results, strict=True):
            torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-5)
        with pytest.raises(ValueError, match="is on image"):
            roi_align(make_maps(), torch.tensor([[5.0, 0, 0, 1, 1]]), 2)


class TestProperties:
    @settings(max_examples=60, deadline=None)
    @given(
        box=st.lists(st.floats(-30, 30, width=32), min_size=4, max_size=4),
        out=st.tuples(st.integers(1, 6), st.integers(1, 6)),
        size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
        ratio=st.integers(0, 3),
        aligned=st.booleans(),
        scale=st.sampled_from([0.25, 0.5, 1.0, 1.7]),
    )
    def test_any_box_is_torchvisions(
        self, box: list[float], out: tuple[int, int], size: tuple[int, int], ratio: int, aligned: bool, scale: float
    ) -> None:
        maps, boxes = make_maps(1, 2, *size), torch.tensor([[0.0, *box]], dtype=torch.float64)
        rule = {"sampling_ratio": ratio, "aligned": aligned, "spatial_scale": scale}
        for mine, theirs in zip(run(maps, boxes, out, **rule), oracle(maps, boxes, out, **rule), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)

    @settings(max_examples=20, deadline=None)
    @given(seed=st.integers(0, 10**6), ratio=st.integers(0, 2))
    def test_backward_is_the_transpose_of_forward(self, seed: int, ratio: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        maps = make_maps(2, 2, 11, 9, seed).requires_grad_()
        boxes = torch.rand(5, 5, generator=rng, dtype=torch.float64) * 12 - 1
        boxes[:, 0] = torch.randint(0, 2, (5,), generator=rng)
        crops = roi_align(maps, boxes, (6, 18), sampling_ratio=ratio)
        g = torch.rand(crops.shape, generator=rng, dtype=torch.float64)
        crops.backward(g)
        torch.testing.assert_close((crops * g).sum(), (maps * maps.grad).sum())


MAPS = torch.rand(2, 3, 8, 6)


def test_numbers_may_be_numpys() -> None:
    table = TABLE.float()
    crops = roi_align(MAPS, table, np.int64(3), np.float32(0.5), np.int32(2))
    assert torch.equal(crops, roi_align(MAPS, table, (3, 3), 0.5, 2))
    assert torch.equal(crops, roi_align(MAPS, table, np.array([3, 3]), 0.5, 2))


def test_what_exceeds_a_gpus_limits_is_left_to_the_definition() -> None:
    """99 KB of shared memory in emulation, a part of which the kernels declare, and 65535 channels or images."""
    boxes = torch.zeros(1, 5)
    assert fits_device((1, 17, 128, 128), boxes, 64, 48)
    widest = max(width for width in range(600, 1000) if fits_device((1, 1, 64, width), boxes, 64, 48))
    words = 6 * (64 + 48) + 3 * (64 + widest) + 16 + 16 * (widest + 48) + 8192
    assert 98 * 1024 - 80 < 4 * words <= 98 * 1024
    assert not fits_device((1, 65536, 8, 8), boxes, 7, 7)
    assert not fits_device((65536, 1, 8, 8), boxes, 7, 7)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((MAPS[0], TABLE, 3), ValueError, r"input must have 4 dimensions"),
        ((MAPS.int(), TABLE, 3), TypeError, r"input must be float32, .* got int32"),
        ((MAPS, TABLE[:, 1:], 3), ValueError, r"boxes must be \[R, 5\].* or a list .* got \(13, 4\)"),
        ((MAPS, [TABLE[:, 1:]], 3), ValueError, r"boxes is a list of 1, but input holds 2 images"),
        ((MAPS, [TABLE, TABLE], 3), ValueError, r"boxes\[0\] must have shape \(13, 4\)"),
        ((MAPS, TABLE.long(), 3), TypeError, r"boxes must be float32"),
        ((MAPS, TABLE, (3, 0)), ValueError, r"output_size must be \(height, width\)"),
        ((MAPS, TABLE, (3.5, 3)), TypeError, r"output_size must be .* two whole numbers, got \(3.5, 3\)"),
        ((MAPS, TABLE, 3.5), TypeError, r"output_size must be .* two whole numbers, got 3.5"),
        ((MAPS, TABLE, "33"), TypeError, r"output_size must be .* two whole numbers, got '33'"),
        ((MAPS, None, 3), TypeError, r"boxes must be a tensor \[R, 5\] or a list of tensors .* got NoneType"),
        ((MAPS[:0], TABLE, 3), ValueError, r"boxes\[0\] is on image 0, but there are no images"),
        ((MAPS, TABLE, 3, 0.0), ValueError, r"spatial_scale must be positive"),
        ((MAPS, TABLE, 3, 1.0, 2.0), TypeError, r"sampling_ratio must be a whole number, got float"),
        ((MAPS, TABLE, 3, 1.0, 5000), ValueError, r"sampling_ratio must be at most 1024, got 5000"),
    ],
)
def test_bad_input_is_named(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        roi_align(*arguments)
