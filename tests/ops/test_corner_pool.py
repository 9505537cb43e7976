"""corner_pool and corner_pool_add: against loops in Python that follow CornerNet's code, on every backend."""

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

from posekd.ops import corner_pool, corner_pool_add, corner_pool_sum, library
from posekd.ops.reference import corner_pool as definition

DIRECTIONS = ["top", "bottom", "left", "right"]


def as_scan(x: Tensor, direction: str) -> Tensor:
    """The lines of `x` as rows, in the order of the scan: float64 `[lines, length]`."""
    x = x.detach().cpu().double()
    x = x if direction in ("left", "right") else x.transpose(2, 3)
    x = x.flip(3) if direction in ("top", "left") else x
    return x.reshape(-1, x.shape[3])


def pool_by_hand(x: Tensor, dy: Tensor, direction: str, ties: str) -> tuple[Tensor, Tensor]:
    """Scanned lines of the result and of the gradient, element by element: the rule in words.

    CornerNet's `top_pool.cpp` (and its three siblings) walks a line and moves the owner of the maximum only on a
    strictly larger value; `torch.cummax` moves it on an equal one too. NaN is larger than anything but NaN.
    """
    pooled, gradients = [], []
    for line, upstream in zip(as_scan(x, direction).tolist(), as_scan(dy, direction).tolist(), strict=True):
        owner, out, gradient = 0, [], [0.0] * len(line)
        for i, value in enumerate(line):
            best = line[owner]
            larger = value > best or (math.isnan(value) and not math.isnan(best))
            equal = value == best or (math.isnan(value) and math.isnan(best))
            if larger or (equal and ties == "last"):
                owner = i
            out.append(line[owner])
            gradient[owner] += upstream[i]
        pooled.append(out)
        gradients.append(gradient)
    return torch.tensor(pooled, dtype=torch.float64), torch.tensor(gradients, dtype=torch.float64)


class TestAgainstTheRuleInWords:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_values_and_gradients(self, backend: backends.Backend, direction: str, dtype: torch.dtype) -> None:
        if dtype == torch.float64 and not backend.float64:
            pytest.skip("float64 is for the CPU")
        for ties in ("first", "last"):
            x = make_map((2, 2, 6, 44), dtype, special=True)
            dy = upstream_of(x.shape, dtype)
            on_device = x.to(backend.device).requires_grad_()
            y = corner_pool(on_device, direction, ties=ties)
            y.backward(dy.to(backend.device))
            expected, gradient = pool_by_hand(x, dy, direction, ties)
            torch.testing.assert_close(as_scan(y, direction), expected, rtol=0, atol=0, equal_nan=True)
            assert on_device.grad.dtype == y.dtype == dtype
            error = (as_scan(on_device.grad, direction) - gradient).abs().max()
            assert error <= EPS[dtype] * dy.double().abs().sum(3).max()

    @pytest.mark.parametrize(
        "shape",
        [(1, 1, 1, 1), (1, 2, 1, 5), (2, 1, 7, 1), (1, 1, 3, 132), (1, 1, 150, 4), (1, 3, 33, 31), (1, 2, 36, 64)],
        ids=str,
    )
    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_sizes(self, backend: backends.Backend, direction: str, shape: tuple[int, ...]) -> None:
        x, dy = make_map(shape, torch.float32), upstream_of(shape, torch.float32)
        on_device = x.to(backend.device).requires_grad_()
        y = corner_pool(on_device, direction)
        y.backward(dy.to(backend.device))
        expected, gradient = pool_by_hand(x, dy, direction, "first")
        assert torch.equal(as_scan(y, direction), expected)
        torch.testing.assert_close(as_scan(on_device.grad, direction), gradient, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("direction", DIRECTIONS)
    @pytest.mark.parametrize("ties", ["first", "last"])
    def test_the_definition_agrees(self, direction: str, ties: str) -> None:
        x = make_map((2, 3, 5, 7), torch.float64, special=True).requires_grad_()
        dy = upstream_of(x.shape, torch.float64)
        y = definition.corner_pool(x, direction, ties)
        y.backward(dy)
        expected, gradient = pool_by_hand(x, dy, direction, ties)
        torch.testing.assert_close(as_scan(y, direction), expected, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(as_scan(x.grad, direction), gradient)

    @pytest.mark.parametrize("ties", ["first", "last"])
    @pytest.mark.parametrize("columns", ["top", "bottom"])
    def test_of_equal_zeros_the_owner_keeps_its_sign(self, columns: str, ties: str) -> None:
        """Rows as columns, bit by bit: scans of rows compare in another order."""
        x = torch.tensor([-1.0, -0.0, 0.0])[torch.randint(3, (1, 4, 37, 45), generator=torch.manual_seed(0))]
        rows = {"top": "left", "bottom": "right"}[columns]
        expected = corner_pool(x, columns, ties=ties)
        found = corner_pool(x.transpose(2, 3).contiguous(), rows, ties=ties).transpose(2, 3)
        assert torch.equal(found, expected)
        assert torch.equal(found.signbit(), expected.signbit())


class TestMeaning:
    """Numbers that can be read off."""

    def test_each_direction_looks_where_its_name_says(self, backend: backends.Backend) -> None:
        x = torch.tensor([[1.0, 5.0, 2.0], [4.0, 3.0, 6.0]], device=backend.device).view(1, 1, 2, 3)
        expected = {
            "top": [[4, 5, 6], [4, 3, 6]],  # the pixel and all below it
            "bottom": [[1, 5, 2], [4, 5, 6]],
            "left": [[5, 5, 2], [6, 6, 6]],  # the pixel and all to its right
            "right": [[1, 5, 5], [4, 4, 6]],
        }
        for direction, values in expected.items():
            assert corner_pool(x, direction)[0, 0].tolist() == values

    def test_ties(self, backend: backends.Backend) -> None:
        """CornerNet's top pool: the largest row index; cummax over the flipped map: the row nearest to the pixel."""
        for ties, expected in (("first", [0.0, 0.0, 3.0]), ("last", [1.0, 1.0, 1.0])):
            x = torch.full((1, 1, 3, 1), 2.0, device=backend.device, requires_grad=True)
            corner_pool(x, "top", ties=ties).sum().backward()
            assert x.grad.flatten().tolist() == expected

    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_ties_last_is_the_rule_of_cummax(self, backend: backends.Backend, direction: str) -> None:
        dim, descending = (2 if direction in ("top", "bottom") else 3), direction in ("top", "left")
        x, dy = make_map((2, 2, 9, 37), torch.float32, special=True), upstream_of((2, 2, 9, 37), torch.float32)
        plain = x.clone().requires_grad_()
        y = (plain.flip(dim) if descending else plain).cummax(dim).values
        y = y.flip(dim) if descending else y
        y.backward(dy)
        ours = x.to(backend.device).requires_grad_()
        z = corner_pool(ours, direction, ties="last")
        z.backward(dy.to(backend.device))
        torch.testing.assert_close(z.detach().cpu(), y.detach(), rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(ours.grad.cpu(), plain.grad, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("ties", ["first", "last"])
    def test_nan_wins_and_stays_both_ways(self, backend: backends.Backend, ties: str) -> None:
        x = torch.tensor([1.0, math.nan, 2.0, math.inf], device=backend.device).view(1, 1, 1, 4).requires_grad_()
        y = corner_pool(x, "right", ties=ties)
        y.backward(torch.ones_like(y))
        assert y[0, 0, 0, 0] == 1
        assert y[0, 0, 0, 1:].isnan().all()
        assert x.grad.flatten().tolist() == [1.0, 3.0, 0.0, 0.0]

    def test_signed_zeros_are_equal(self, backend: backends.Backend) -> None:
        for values in ([0.0, -0.0], [-0.0, 0.0]):
            x = torch.tensor(values, device=backend.device).view(1, 1, 1, 2).requires_grad_()
            corner_pool(x, "right").sum().backward()
            assert x.grad.flatten().tolist() == [2.0, 0.0]

    def test_nan_and_inf_in_the_gradient_stay_in_their_segment(self, backend: backends.Backend) -> None:
        x = torch.arange(40.0, device=backend.device).view(1, 1, 1, 40).requires_grad_()  # every element a head
        dy = torch.ones_like(x)
        dy[..., 7], dy[..., 20] = math.nan, math.inf
        corner_pool(x, "right").backward(dy)
        torch.testing.assert_close(x.grad, dy, rtol=0, atol=0, equal_nan=True)

    def test_half_gradients_are_summed_in_float32(self, backend: backends.Backend) -> None:
        x = torch.zeros(1, 1, 1, 4096, device=backend.device, dtype=torch.float16)
        x[..., 0] = 1
        x.requires_grad_()
        corner_pool(x, "right").backward(torch.ones_like(x))
        assert x.grad[0, 0, 0, 0].item() == 4096  # adding ones in float16 stops at 2048


class TestAdd:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_equals_the_sum(self, backend: backends.Backend, direction: str, dtype: torch.dtype) -> None:
        if dtype == torch.float64 and not backend.float64:
            pytest.skip("float64 is for the CPU")
        x = make_map((1, 2, 5, 36), dtype).to(backend.device).requires_grad_()
        other = upstream_of(x.shape, dtype).to(backend.device).requires_grad_()
        dy = upstream_of(x.shape, dtype).to(backend.device)
        apart = x.detach().clone().requires_grad_()
        y = corner_pool_add(x, other, direction)
        y.backward(dy)
        corner_pool(apart, direction).backward(dy)
        assert torch.equal(y.detach(), other.detach() + corner_pool(apart.detach(), direction))
        assert torch.equal(other.grad, dy)
        assert torch.equal(x.grad, apart.grad)

    def test_only_the_summand_needs_a_gradient(self, backend: backends.Backend) -> None:
        x = make_map((1, 1, 3, 4), torch.float32).to(backend.device)
        other = torch.zeros_like(x).requires_grad_()
        corner_pool_add(x, other, "left").sum().backward()
        assert (other.grad == 1).all()

    def test_other_dtypes_are_promoted(self, backend: backends.Backend) -> None:
        x = make_map((1, 1, 3, 4), torch.bfloat16).to(backend.device)
        other = torch.full(x.shape, 0.1, device=backend.device)
        y = corner_pool_add(x, other, "top")
        assert y.dtype == torch.float32
        assert torch.equal(y, other + corner_pool(x, "top"))


class TestSum:
    """A column scan and a row scan of two maps, added: the same bits as one after the other."""

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("directions", [("top", "left"), ("bottom", "right"), ("top", "right")], ids="-".join)
    def test_equals_two_pools(self, backend: backends.Backend, directions: tuple[str, str], dtype: torch.dtype) -> None:
        if dtype == torch.float64 and not backend.float64:
            pytest.skip("float64 is for the CPU")
        shapes = ((2, 2, 6, 44), "first"), ((1, 17, 3, 132), "last"), ((1, 1, 5, 1), "first"), ((1, 2, 21, 68), "last")
        for shape, ties in shapes:
            maps = make_map(shape, dtype, special=True), make_map(shape, dtype, special=True).flip(2)
            dy = upstream_of(shape, dtype).to(backend.device)
            fused, apart = ([m.to(backend.device).requires_grad_() for m in maps] for _ in range(2))
            y = corner_pool_sum(*fused, directions, ties=ties)
            z = corner_pool_add(apart[0], corner_pool(apart[1], directions[1], ties=ties), directions[0], ties=ties)
            torch.testing.assert_close(y, z, rtol=0, atol=0, equal_nan=True)
            for pooled in (y, z):
                pooled.backward(dy)
            for ours, theirs in zip(fused, apart, strict=True):
                torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=0, equal_nan=True)
            with torch.no_grad():
                again = corner_pool_sum(*fused, directions, ties=ties)
            torch.testing.assert_close(again, z.detach(), rtol=0, atol=0, equal_nan=True)

    def test_one_map_may_need_no_gradient(self, backend: backends.Backend) -> None:
        x = make_map((1, 2, 4, 6), torch.float32).to(backend.device)
        wanted = x.clone().requires_grad_()
        corner_pool_sum(x, wanted, ("top", "left")).sum().backward()
        alone = x.clone().requires_grad_()
        corner_pool(alone, "left").sum().backward()
        assert torch.equal(wanted.grad, alone.grad)

    def test_other_dtypes_layouts_and_no_pixels(self, backend: backends.Backend) -> None:
        x = make_map((1, 2, 3, 4), torch.bfloat16).to(backend.device)
        other = x.float().contiguous(memory_format=torch.channels_last) / 3
        y = corner_pool_sum(x, other, ("bottom", "right"))
        assert y.dtype == torch.float32
        assert torch.equal(y, corner_pool(x, "bottom") + corner_pool(other, "right"))
        assert corner_pool_sum(x[:0], x[:0], ("top", "left")).shape == (0, 2, 3, 4)

    def test_directions_that_do_not_cross_are_refused(self) -> None:
        x = torch.zeros(1, 1, 2, 2)
        with pytest.raises(ValueError, match=r"directions\[1\].*left"):
            corner_pool_sum(x, x, ("top", "bottom"))
        with pytest.raises(ValueError, match=r"directions\[0\].*top"):
            corner_pool_sum(x, x, ("left", "right"))
        with pytest.raises(ValueError, match="horizontal"):
            corner_pool_sum(x, x[..., :1], ("top", "left"))
        with pytest.raises(ValueError, match=r"directions must be a pair.*'top'"):
            corner_pool_sum(x, x, "top")


class TestMemory:
    @pytest.mark.parametrize("direction", DIRECTIONS)
    @pytest.mark.parametrize("layout", ["transposed", "channels_last", "sliced", "expanded gradient"])
    def test_layouts(self, backend: backends.Backend, layout: str, direction: str) -> None:
        x = make_map((2, 3, 6, 8), torch.float32).to(backend.device)
        changed = {
            "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
            "channels_last": x.contiguous(memory_format=torch.channels_last),
            "sliced": torch.cat([x, x], 3)[..., :8],
            "expanded gradient": x.clone(),
        }[layout]
        assert changed.is_contiguous() == (layout == "expanded gradient")
        changed = changed.detach().requires_grad_()
        plain = x.clone().requires_grad_()
        dy = torch.ones((), device=backend.device).expand(x.shape)  # strides of zero
        for leaf in (changed, plain):
            y = corner_pool(leaf, direction)
            assert y.is_contiguous()
            y.backward(dy if layout == "expanded gradient" else dy.contiguous())
        assert torch.equal(changed.grad, plain.grad)

    def test_an_unaligned_start(self, backend: backends.Backend) -> None:
        for direction in DIRECTIONS:
            x = make_map((1, 1, 6, 36), torch.float32).to(backend.device)
            moved = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
            assert torch.equal(corner_pool(moved, direction), corner_pool(x, direction))

    @pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (1, 2, 0, 5), (1, 2, 4, 0)], ids=str)
    def test_empty(self, backend: backends.Backend, shape: tuple[int, ...]) -> None:
        for direction in DIRECTIONS:
            x = torch.zeros(shape, device=backend.device, requires_grad=True)
            y = corner_pool(x, direction)
            y.sum().backward()
            assert y.shape == x.grad.shape == shape

    def test_one_bit_an_element_is_kept_and_only_for_a_gradient(self, backend: backends.Backend) -> None:
        x = make_map((2, 3, 5, 64), torch.float32, special=True).to(backend.device)
        for index, direction in enumerate(DIRECTIONS):
            for ties in ("first", "last"):
                _, heads = torch.ops.posekd.corner_pool(x, None, index, ties == "last", True)
                assert heads.numel() * 32 == x.numel()
                expected = definition.pack_bits(definition.corner_pool_heads(x.cpu(), direction, ties))
                assert torch.equal(heads.cpu(), expected)
        saved: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            corner_pool(x.clone().requires_grad_(), "top")
            corner_pool(x, "top")
        assert [t.numel() for t in saved] == [x.numel() // 32]

    def test_large_maps_take_the_same_values(self) -> None:
        """Beyond 8 MB the CPU stores past the cache, and beyond 16 planes it splits the work by planes."""
        x = torch.randn(2, 16, 260, 272, generator=torch.Generator().manual_seed(0))
        dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        for direction in DIRECTIONS:
            for part, upstream in ((x, dy), (x[:1, :3], dy[:1, :3])):
                leaf = part.clone().requires_grad_()
                y = corner_pool(leaf, direction)
                y.backward(upstream)
                assert torch.equal(y.detach(), definition.corner_pool(part, direction))
                expected = definition.corner_pool_backward(
                    upstream, definition.corner_pool_heads(part, direction), direction
                )
                torch.testing.assert_close(leaf.grad, expected, rtol=1e-4, atol=1e-4)


class TestAutograd:
    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_gradcheck(self, direction: str) -> None:
        generator = torch.Generator().manual_seed(0)
        x, other = (torch.randn(2, 2, 5, 18, generator=generator, dtype=torch.float64) for _ in range(2))
        x.requires_grad_()
        other.requires_grad_()
        assert torch.autograd.gradcheck(lambda x: corner_pool(x, direction), (x,))
        assert torch.autograd.gradcheck(lambda x, o: corner_pool_add(x, o, direction), (x, other))
        assert torch.autograd.gradcheck(lambda x, o: corner_pool_sum(x, o, ("bottom", "left")), (x, other))

    def test_double_backward_is_a_clear_error(self) -> None:
        x = torch.rand(1, 1, 3, 4, requires_grad=True)
        (gradient,) = torch.autograd.grad(corner_pool(x, "top").square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="double backward is not supported"):
            torch.autograd.grad(gradient.sum(), x)

    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_the_same_bits_every_time_and_with_any_threads(self, direction: str) -> None:
        x = make_map((3, 5, 120, 64), torch.float32)
        dy = upstream_of(x.shape, torch.float32)
        gradients = []
        for count in (1, 2, 2):
            with threads(count):
                leaf = x.clone().requires_grad_()
                corner_pool(leaf, direction).backward(dy)
                gradients.append(leaf.grad)
        assert torch.equal(gradients[0], gradients[1])
        assert torch.equal(gradients[1], gradients[2])


class TestTorchIntegration:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
    def test_opcheck(self, layout: torch.memory_format, dtype: torch.dtype) -> None:
        x = torch.randn(2, 3, 4, 5).to(dtype).contiguous(memory_format=layout).requires_grad_()
        other = torch.randn(2, 3, 4, 5).to(dtype).contiguous(memory_format=layout).requires_grad_()
        for direction, summand in ((0, None), (3, other)):
            torch.library.opcheck(torch.ops.posekd.corner_pool, (x, summand, direction, False, True))
        torch.library.opcheck(torch.ops.posekd.corner_pool, (x.detach(), None, 1, True, False))
        torch.library.opcheck(torch.ops.posekd.corner_pool_sum, (x, other, 0, 3, False, True))
        heads = torch.ops.posekd.corner_pool(x.detach(), None, 2, False, True)[1]
        torch.library.opcheck(torch.ops.posekd.corner_pool_backward, (other.detach(), heads, 2))

    @pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
    def test_compile_without_graph_breaks(self, compiler: str) -> None:
        def cascade(x: Tensor) -> Tensor:
            pooled = corner_pool_add(x.relu(), corner_pool(x * 2, "left"), "top")
            return corner_pool_sum(pooled, x.exp(), ("bottom", "right")) + 1

        gradients = []
        for function in (cascade, torch.compile(cascade, fullgraph=True, backend=compiler)):
            x = make_map((1, 2, 6, 8), torch.float32).requires_grad_()
            function(x).square().sum().backward()
            gradients.append(x.grad)
        torch.testing.assert_close(*gradients)

    def test_export_keeps_the_op(self) -> None:
        class Pool(torch.nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return corner_pool(x, "bottom")

        x = make_map((2, 2, 6, 8), torch.float32)
        program = torch.export.export(Pool(), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        assert "posekd.corner_pool" in str(program.graph)
        assert torch.equal(program.module()(x), corner_pool(x, "bottom"))

    @pytest.mark.parametrize("ties", ["first", "last"])
    def test_without_the_core_the_definition_serves(self, monkeypatch: pytest.MonkeyPatch, ties: str) -> None:
        x = make_map((2, 2, 6, 8), torch.float32, special=True)
        dy = upstream_of(x.shape, torch.float32)
        results = []
        for core in (library._core, None):
            monkeypatch.setattr(library, "_core", core)
            leaf = x.clone().requires_grad_()
            y = corner_pool_add(leaf, torch.ones_like(x), "left", ties=ties)
            y.backward(dy)
            results.append((y.detach(), leaf.grad))
        torch.testing.assert_close(*results, equal_nan=True)


class TestProperties:
    @settings(max_examples=60, deadline=None)
    @given(
        H=st.integers(1, 40),
        W=st.integers(1, 70),
        direction=st.sampled_from(DIRECTIONS),
        ties=st.sampled_from(["first", "last"]),
        seed=st.integers(0, 10**6),
    )
    def test_idempotent_monotone_and_the_gradient_is_handed_on_whole(
        self, H: int, W: int, direction: str, ties: str, seed: int
    ) -> None:
        x = make_map((1, 2, H, W), torch.float32, seed).requires_grad_()
        y = corner_pool(x, direction, ties=ties)
        assert (y >= x).all()
        assert torch.equal(corner_pool(y, direction), y)
        y.backward(torch.ones_like(y))
        dim = 2 if direction in ("top", "bottom") else 3
        assert (x.grad.sum(dim) == x.shape[dim]).all()
        # Only an element that is its own maximum can have been given anything.
        assert ((x.grad == 0) | (x == y)).all()


GOOD = torch.rand(1, 2, 3, 4)


@pytest.mark.parametrize(
    ("function", "arguments", "error", "message"),
    [
        (corner_pool, (GOOD[0], "top"), ValueError, r"x must have 4 dimensions .* \(2, 3, 4\)"),
        (corner_pool, (GOOD.int(), "top"), TypeError, "x must be float32.* got int32"),
        (corner_pool, ([1.0], "top"), TypeError, "x must be a torch.Tensor, got list"),
        (corner_pool, (GOOD, "up"), ValueError, "direction must be one of 'top'.* got 'up'"),
        (corner_pool_add, (GOOD, GOOD[:, :1], "top"), ValueError, r"other must have shape \(1, 2, 3, 4\)"),
        (corner_pool_add, (GOOD, GOOD.to("meta"), "top"), ValueError, "other is on meta, but x is on cpu"),
    ],
)
def test_bad_input_gets_a_sentence(
    function: Any, arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        function(*arguments)


def test_bad_ties_get_a_sentence() -> None:
    with pytest.raises(ValueError, match="ties must be one of 'first', 'last', got 'random'"):
        corner_pool(GOOD, "top", ties="random")
