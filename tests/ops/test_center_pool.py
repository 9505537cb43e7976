"""center_pool: against CenterNet's chain of four corner pools, written as loops, on every backend."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import backends
from helpers.pooling_maps import DTYPES, EPS, make_map, upstream_of
from helpers.threads import threads
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posekd.ops import center_pool, corner_pool, library
from posekd.ops.reference import center_pool as definition


def last_peak(values: list[float]) -> int:
    """The largest index of the maximum, NaN above all: the element that CenterNet's two scans leave as the owner."""
    nans = [i for i, value in enumerate(values) if math.isnan(value)]
    return nans[-1] if nans else max(i for i, value in enumerate(values) if value == max(values))


def pool_by_hand(vertical: Tensor, horizontal: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The result and both gradients, column by column and row by row, in float64."""
    vertical, horizontal, dy = (x.detach().cpu().double() for x in (vertical, horizontal, dy))
    N, C, H, W = vertical.shape
    y, dv, dh = (torch.zeros(N, C, H, W, dtype=torch.float64) for _ in range(3))
    for n in range(N):
        for c in range(C):
            for w in range(W):
                row = last_peak(vertical[n, c, :, w].tolist())
                y[n, c, :, w] += vertical[n, c, row, w]
                dv[n, c, row, w] = dy[n, c, :, w].sum()
            for h in range(H):
                column = last_peak(horizontal[n, c, h].tolist())
                y[n, c, h] += horizontal[n, c, h, column]
                dh[n, c, h, column] = dy[n, c, h].sum()
    return y, dv, dh


def run(x: Tensor, other: Tensor | None, dy: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    """The op's result and gradients, on the CPU."""
    leaf = x.to(device).detach().clone().requires_grad_()
    second = None if other is None else other.to(device).detach().clone().requires_grad_()
    y = center_pool(leaf, second)
    y.backward(dy.to(device))
    return y.detach().cpu(), leaf.grad.cpu(), None if second is None else second.grad.cpu()


class TestAgainstLoops:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("maps", [1, 2])
    def test_values_and_gradients(self, backend: backends.Backend, maps: int, dtype: torch.dtype) -> None:
        if dtype == torch.float64 and not backend.float64:
            pytest.skip("float64 is for the CPU")
        x, other = (make_map((2, 2, 6, 20), dtype, seed, special=True) for seed in (0, 1))
        dy = upstream_of(x.shape, dtype)
        y, dx, d_other = run(x, other if maps == 2 else None, dy, backend.device)
        expected, dv, dh = pool_by_hand(x, other if maps == 2 else x, dy)
        torch.testing.assert_close(y, expected.to(dtype), rtol=0, atol=0, equal_nan=True)
        allowed = EPS[dtype] * dy.double().abs().sum()
        assert y.dtype == dx.dtype == dtype
        assert (dx.double() - (dv if maps == 2 else dv + dh)).abs().max() <= allowed
        if d_other is not None:
            assert (d_other.double() - dh).abs().max() <= allowed

    @pytest.mark.parametrize(
        "shape", [(1, 1, 1, 1), (1, 2, 1, 5), (2, 1, 7, 1), (1, 1, 3, 132), (1, 1, 40, 4), (1, 1, 9, 33)], ids=str
    )
    def test_sizes(self, backend: backends.Backend, shape: tuple[int, ...]) -> None:
        x, other = (make_map(shape, torch.float32, seed) for seed in (0, 1))
        dy = upstream_of(shape, torch.float32)
        y, dx, d_other = run(x, other, dy, backend.device)
        expected, dv, dh = pool_by_hand(x, other, dy)
        assert torch.equal(y.double(), expected)
        torch.testing.assert_close(dx.double(), dv, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(d_other.double(), dh, rtol=1e-5, atol=1e-5)

    def test_the_definition_agrees(self) -> None:
        x, other = (make_map((2, 2, 5, 7), torch.float64, seed, special=True) for seed in (0, 1))
        dy = upstream_of(x.shape, torch.float64)
        leaves = [m.clone().requires_grad_() for m in (x, other)]
        y = definition.center_pool(*leaves)
        y.backward(dy)
        expected = pool_by_hand(x, other, dy)
        for found, wanted in zip((y.detach(), leaves[0].grad, leaves[1].grad), expected, strict=True):
            torch.testing.assert_close(found, wanted, equal_nan=True)


class TestMeaning:
    def test_a_cross_of_maxima(self, backend: backends.Backend) -> None:
        x = torch.tensor([[1.0, 5.0, 2.0], [4.0, 3.0, 6.0]], device=backend.device).view(1, 1, 2, 3)
        # columns 4 5 6, rows 5 6
        assert center_pool(x)[0, 0].tolist() == [[9, 10, 11], [10, 11, 12]]

    def test_the_gradient_of_equal_maxima_goes_to_the_largest_index(self, backend: backends.Backend) -> None:
        x = torch.zeros(1, 1, 2, 3, device=backend.device, requires_grad=True)
        center_pool(x).sum().backward()
        # three columns of two pixels each to row 1; two rows of three to column 2
        assert x.grad[0, 0].tolist() == [[0, 0, 3], [2, 2, 2 + 3]]

    def test_is_the_chain_of_four_corner_pools(self, backend: backends.Backend) -> None:
        """CenterNet's `pool_cross`: bottom(top(a)) + right(left(b)), values and gradients."""
        maps = [make_map((1, 2, 6, 8), torch.float32, seed).to(backend.device) for seed in (0, 1)]
        dy = upstream_of(maps[0].shape, torch.float32).to(backend.device)
        chained, fused = ([m.clone().requires_grad_() for m in maps] for _ in range(2))
        y = corner_pool(corner_pool(chained[0], "top"), "bottom")
        y = y + corner_pool(corner_pool(chained[1], "left"), "right")
        y.backward(dy)
        z = center_pool(*fused)
        z.backward(dy)
        assert torch.equal(z, y)
        for a, b in zip(fused, chained, strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)

    def test_half_gradients_are_summed_in_float32(self, backend: backends.Backend) -> None:
        x = torch.zeros(1, 1, 1, 2048, device=backend.device, dtype=torch.float16)
        x[..., 3] = 1
        x.requires_grad_()
        center_pool(torch.zeros_like(x), x).backward(torch.full_like(x, 2.0))
        assert x.grad[0, 0, 0, 3].item() == 4096

    def test_other_dtypes_are_promoted(self, backend: backends.Backend) -> None:
        x = make_map((1, 1, 3, 4), torch.float32).to(backend.device).requires_grad_()
        other = make_map((1, 1, 3, 4), torch.bfloat16, 1).to(backend.device).requires_grad_()
        y = center_pool(x, other)
        y.sum().backward()
        assert y.dtype == torch.float32
        assert other.grad.dtype == torch.bfloat16


class TestMemory:
    @pytest.mark.parametrize("layout", ["transposed", "channels_last", "sliced", "expanded gradient"])
    def test_layouts(self, backend: backends.Backend, layout: str) -> None:
        x = make_map((2, 3, 6, 8), torch.float32).to(backend.device)
        changed = {
            "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
            "channels_last": x.contiguous(memory_format=torch.channels_last),
            "sliced": torch.cat([x, x], 3)[..., :8],
            "expanded gradient": x.clone(),
        }[layout]
        dy = torch.ones((), device=backend.device).expand(x.shape)
        gradients = []
        for leaf in (changed.detach().requires_grad_(), x.clone().requires_grad_()):
            y = center_pool(leaf, leaf * 2)
            assert y.is_contiguous()
            y.backward(dy if layout == "expanded gradient" else dy.contiguous())
            gradients.append(leaf.grad)
        assert torch.equal(*gradients)

    @pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (1, 2, 0, 5), (1, 2, 4, 0)], ids=str)
    def test_empty(self, backend: backends.Backend, shape: tuple[int, ...]) -> None:
        x = torch.zeros(shape, device=backend.device, requires_grad=True)
        y = center_pool(x, x * 1)
        y.sum().backward()
        assert y.shape == x.grad.shape == shape

    def test_two_numbers_a_row_and_column_are_kept_and_only_for_a_gradient(self) -> None:
        x = make_map((2, 3, 5, 64), torch.float32)
        saved: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            center_pool(x.clone().requires_grad_())
            center_pool(x)
        assert sorted(t.numel() for t in saved) == [2 * 3 * 5, 2 * 3 * 64]
        assert {t.dtype for t in saved} == {torch.int32}

    def test_large_maps_take_the_same_values(self) -> None:
        """Beyond 8 MB the CPU stores past the cache."""
        x, other, dy = (
            torch.randn(1, 33, 260, 272, generator=torch.Generator().manual_seed(seed)) for seed in range(3)
        )
        for maps in ((x,), (x, other)):
            ours, plain = ([m.clone().requires_grad_() for m in maps] for _ in range(2))
            y, z = center_pool(*ours), definition.center_pool(*plain)
            y.backward(dy)
            z.backward(dy)
            assert torch.equal(y, z)
            for a, b in zip(ours, plain, strict=True):
                torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


class TestAutograd:
    def test_gradcheck(self) -> None:
        generator = torch.Generator().manual_seed(0)
        x, other = (torch.randn(2, 2, 5, 18, generator=generator, dtype=torch.float64) for _ in range(2))
        assert torch.autograd.gradcheck(center_pool, (x.requires_grad_(), other.requires_grad_()))
        assert torch.autograd.gradcheck(center_pool, (x,))
        assert torch.autograd.gradcheck(lambda o: center_pool(x.detach(), o), (other,))

    def test_double_backward_is_a_clear_error(self) -> None:
        x = torch.rand(1, 1, 3, 4, requires_grad=True)
        (gradient,) = torch.autograd.grad(center_pool(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="double backward is not supported"):
            torch.autograd.grad(gradient.sum(), x)

    def test_the_same_bits_every_time_and_with_any_threads(self) -> None:
        x, dy = make_map((3, 5, 120, 64), torch.float32), upstream_of((3, 5, 120, 64), torch.float32)
        gradients = []
        for count in (1, 2, 2):
            with threads(count):
                gradients.append(run(x, None, dy, torch.device("cpu"))[1])
        assert torch.equal(gradients[0], gradients[1])
        assert torch.equal(gradients[1], gradients[2])


class TestTorchIntegration:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
    def test_opcheck(self, layout: torch.memory_format, dtype: torch.dtype) -> None:
        x, other = (
            torch.randn(2, 3, 4, 5).to(dtype).contiguous(memory_format=layout).requires_grad_() for _ in range(2)
        )
        torch.library.opcheck(torch.ops.posekd.center_pool, (x, other, True))
        torch.library.opcheck(torch.ops.posekd.center_pool, (x, None, True))
        torch.library.opcheck(torch.ops.posekd.center_pool, (x.detach(), None, False))
        columns, rows = torch.ops.posekd.center_pool(x.detach(), None, True)[1:]
        for two_maps in (True, False):
            torch.library.opcheck(torch.ops.posekd.center_pool_backward, (other.detach(), columns, rows, two_maps))

    @pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
    def test_compile_without_graph_breaks(self, compiler: str) -> None:
        def cross(x: Tensor) -> Tensor:
            return center_pool(x.relu(), x * 2) + 1

        gradients = []
        for function in (cross, torch.compile(cross, fullgraph=True, backend=compiler)):
            x = make_map((1, 2, 6, 8), torch.float32).requires_grad_()
            function(x).square().sum().backward()
            gradients.append(x.grad)
        torch.testing.assert_close(*gradients)

    def test_export_keeps_the_op(self) -> None:
        class Pool(torch.nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return center_pool(x)

        x = make_map((2, 2, 6, 8), torch.float32)
        program = torch.export.export(Pool(), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        assert "posekd.center_pool" in str(program.graph)
        assert torch.equal(program.module()(x), center_pool(x))

    def test_without_the_core_the_definition_serves(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x, other = (make_map((2, 2, 6, 8), torch.float32, seed, special=True) for seed in (0, 1))
        dy = upstream_of(x.shape, torch.float32)
        for second in (other, None):
            results = []
            for core in (library._core, None):
                monkeypatch.setattr(library, "_core", core)
                results.append(run(x, second, dy, torch.device("cpu")))
            for a, b in zip(*results, strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    torch.testing.assert_close(a, b, equal_nan=True)
            monkeypatch.undo()


class TestProperties:
    @settings(max_examples=40, deadline=None)
    @given(H=st.integers(1, 40), W=st.integers(1, 70), seed=st.integers(0, 10**6))
    def test_transposing_swaps_the_maps_and_the_gradient_is_handed_on_whole(self, H: int, W: int, seed: int) -> None:
        x, other = (make_map((1, 2, H, W), torch.float32, seed + k).requires_grad_() for k in (0, 1))
        y = center_pool(x, other)
        assert torch.equal(y, center_pool(other.mT, x.mT).mT)
        y.backward(torch.ones_like(y))
        assert (x.grad.sum(2) == H).all()
        assert (other.grad.sum(3) == W).all()
        assert ((x.grad != 0).sum(2) == 1).all()


GOOD = torch.rand(1, 2, 3, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((GOOD[0],), ValueError, r"x_vertical must have 4 dimensions .* \(2, 3, 4\)"),
        ((GOOD.int(),), TypeError, "x_vertical must be float32.* got int32"),
        (([1.0],), TypeError, "x_vertical must be a torch.Tensor, got list"),
        ((GOOD, GOOD[:, :1]), ValueError, r"x_horizontal must have shape \(1, 2, 3, 4\)"),
        ((GOOD, GOOD.to("meta")), ValueError, "x_horizontal is on meta, but x_vertical is on cpu"),
    ],
)
def test_bad_input_gets_a_sentence(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        center_pool(*arguments)
