"""simulated_heatmap_loss: against DistilPose's formula, pixel by pixel in float64, on every backend."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import backends
from helpers.threads import threads
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posekd.ops import library, simulated_heatmap_loss
from posekd.ops.reference import simulated_heatmap_loss as definition

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
EPS = {torch.float32: 1e-6, torch.float64: 1e-12}
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def by_formula(coords: Tensor, sigmas: Tensor, teacher: Tensor, weight: Tensor | None) -> Tensor:
    """H(x, y) = exp(-0.5[(x - W px)^2/(sx^2+1e-9) + (y - H py)^2/(sy^2+1e-9)]); mean of (w (H - t))^2."""
    H, W = teacher.shape[2:]
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    px, py = coords[..., 0, None, None] * W, coords[..., 1, None, None] * H
    sx, sy = sigmas[..., 0, None, None], sigmas[..., 1, None, None]
    maps = torch.exp(-0.5 * ((x - px) ** 2 / (sx**2 + 1e-9) + (y - py) ** 2 / (sy**2 + 1e-9)))
    w = torch.ones_like(px) if weight is None else weight[..., None, None]
    return ((w * (maps - teacher.to(coords.dtype))) ** 2).mean()


def make_case(
    B: int = 3, K: int = 4, H: int = 16, W: int = 12, dtype: torch.dtype = torch.float64, seed: int = 0
) -> Inputs:
    """Centres of which some lie outside, sigmas from a third of a pixel, weights of which some are 0."""
    rng = torch.Generator().manual_seed(seed)
    coords = torch.rand(B, K, 2, generator=rng, dtype=torch.float64) * 1.4 - 0.2
    sigmas = torch.rand(B, K, 2, generator=rng, dtype=torch.float64) * 3 + 0.3
    teacher = torch.rand(B, K, H, W, generator=rng, dtype=torch.float64)
    weight = torch.randint(0, 3, (B, K), generator=rng).double()
    return coords.to(dtype), sigmas.to(dtype), teacher.to(dtype), weight.to(dtype)


def loss_and_gradients(
    function: Any, coords: Tensor, sigmas: Tensor, *rest: Tensor | None, upstream: float = 3.0
) -> tuple[Tensor, Tensor, Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in (coords, sigmas)]
    loss = function(*leaves, *rest)
    return (loss.detach(), *torch.autograd.grad(loss * upstream, leaves))


def to(device: torch.device, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.to(device) for x in tensors)


class TestAgainstTheFormula:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_loss_and_gradients(self, backend: backends.Backend, dtype: torch.dtype) -> None:
        """For every type of the teacher; the points are float32 beside a half."""
        if dtype == torch.float64 and not backend.float64:
            pytest.skip("float64 is for the CPU")
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        coords, sigmas, teacher, weight = make_case(dtype=wide)
        teacher = teacher.to(dtype)
        ref64 = loss_and_gradients(by_formula, *(x.double() for x in (coords, sigmas, teacher, weight)))
        low = loss_and_gradients(by_formula, coords, sigmas, teacher, weight)
        ours = loss_and_gradients(simulated_heatmap_loss, *to(backend.device, coords, sigmas, teacher, weight))
        for found, plain, wanted in zip(ours, low, ref64, strict=True):
            assert found.dtype == wide
            backends.assert_as_good_as_torch(found, plain, wanted, EPS[wide])

    @pytest.mark.parametrize(
        "shape",
        [(1, 1, 1, 1), (2, 3, 1, 7), (2, 3, 9, 1), (1, 2, 5, 3), (2, 2, 64, 48), (1, 3, 24, 18), (1, 2, 7, 33),
         (1, 1, 3, 100), (8, 17, 4, 8)],
        ids=str,
    )  # fmt: skip
    def test_sizes(self, backend: backends.Backend, shape: tuple[int, int, int, int]) -> None:
        """Rows of less than a vector, of whole vectors, and of a part more; maps for more than a block."""
        case = make_case(*shape, dtype=torch.float32)
        ref64 = loss_and_gradients(by_formula, *(x.double() for x in case))
        ours = loss_and_gradients(simulated_heatmap_loss, *to(backend.device, *case))
        for found, wanted in zip(ours, ref64, strict=True):
            scale = wanted.abs().max().item()
            torch.testing.assert_close(found.cpu().double(), wanted, rtol=1e-5, atol=1e-5 * scale)

    def test_the_definition_agrees_and_its_written_out_derivatives_too(self) -> None:
        case = make_case()
        expected = loss_and_gradients(by_formula, *case, upstream=1.0)
        torch.testing.assert_close(loss_and_gradients(definition.simulated_heatmap_loss, *case, upstream=1.0), expected)
        stats = definition.simulated_heatmap_stats(*case)
        torch.testing.assert_close(stats[..., 0].sum() / case[2].numel(), expected[0])
        torch.testing.assert_close((stats[..., 1:3], stats[..., 3:]), expected[1:])

    def test_without_weight_every_keypoint_counts_once(self, backend: backends.Backend) -> None:
        coords, sigmas, teacher, weight = to(backend.device, *make_case(dtype=torch.float32))
        found = loss_and_gradients(simulated_heatmap_loss, coords, sigmas, teacher, None)
        ones = loss_and_gradients(simulated_heatmap_loss, coords, sigmas, teacher, torch.ones_like(weight))
        for a, b in zip(found, ones, strict=True):
            assert torch.equal(a, b)


class TestMeaning:
    """Numbers that can be worked out by hand."""

    def test_a_wide_map_of_two_pixels(self, backend: backends.Backend) -> None:
        """W = 2, centre at column 0.5, sigma 1: both pixels are exp(-1/8), 0.5 away from the centre."""
        coords = torch.tensor([[[0.25, 0.0]]], device=backend.device, requires_grad=True)
        sigmas = torch.ones(1, 1, 2, device=backend.device, requires_grad=True)
        teacher = torch.tensor([[[[0.0, 1.0]]]], device=backend.device)
        weight = torch.full((1, 1), 2.0, device=backend.device)
        loss = simulated_heatmap_loss(coords, sigmas, teacher, weight)
        h = math.exp(-0.125)
        assert loss.item() == pytest.approx(4 * (h * h + (h - 1) ** 2) / 2, rel=1e-6)
        loss.backward()
        # d loss / d mx = 4/2 sum of 2 (h - t) h (x - mx) / sigma^2, and W = 2 times that by the fraction
        by_x = 2 * 4 * (h * h * -0.5 + (h - 1) * h * 0.5)
        by_sigma = 4 * (h * h * 0.25 + (h - 1) * h * 0.25)
        assert coords.grad.flatten().tolist() == pytest.approx([by_x, 0.0], rel=1e-5)
        assert sigmas.grad.flatten().tolist() == pytest.approx([by_sigma, 0.0], rel=1e-5)

    def test_the_own_map_costs_nothing(self, backend: backends.Backend) -> None:
        coords, sigmas, teacher, _ = make_case(dtype=torch.float32)
        maps = definition.simulated_heatmaps(coords, sigmas, (16, 12))
        assert maps.shape == teacher.shape
        assert simulated_heatmap_loss(*to(backend.device, coords, sigmas, maps)).item() < 1e-12

    def test_a_step_down_the_gradient_brings_the_centre_nearer(self) -> None:
        wanted, sigmas = torch.tensor([[[0.6, 0.4]]]), torch.full((1, 1, 2), 3.0)
        teacher = definition.simulated_heatmaps(wanted, sigmas, (64, 48))
        coords = torch.tensor([[[0.55, 0.45]]], requires_grad=True)
        (gradient,) = torch.autograd.grad(simulated_heatmap_loss(coords, sigmas, teacher), coords)
        assert gradient.sign().flatten().tolist() == [-1.0, 1.0]

    def test_the_released_broadcast_is_a_weight(self) -> None:
        """mmpose's JointsMSELoss with weights [N, K, 1, 1]: [N, 1, 1] times [N, HW] is [N, N, HW]."""
        coords, sigmas, teacher, weight = make_case()
        maps = definition.simulated_heatmaps(coords, sigmas, (16, 12)).flatten(2)
        released = torch.stack(
            [
                (weight[:, k, None, None] * (maps[:, k] - teacher.flatten(2)[:, k])).square().mean()
                for k in range(weight.shape[1])
            ]
        ).mean()
        same = weight.square().mean(0, keepdim=True).sqrt().expand_as(weight)
        torch.testing.assert_close(simulated_heatmap_loss(coords, sigmas, teacher, same), released)


class TestEdges:
    def test_weight_0_is_not_read(self, backend: backends.Backend) -> None:
        case = to(backend.device, *make_case(dtype=torch.float32))
        clean = loss_and_gradients(simulated_heatmap_loss, *case)
        broken = [x.clone() for x in case]
        unused = case[3] == 0
        assert unused.any()
        for x in broken[:3]:
            x[unused] = math.nan
        found = loss_and_gradients(simulated_heatmap_loss, *broken)
        for a, b in zip(found, clean, strict=True):
            assert torch.equal(a, b)
        assert found[1][unused].eq(0).all()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(library, "_core", None)
            patch.setattr(library, "_override", None)
            torch.testing.assert_close(loss_and_gradients(simulated_heatmap_loss, *broken), clean)

    @pytest.mark.parametrize("which", [0, 1, 2, 3], ids=["coords", "sigmas", "teacher", "weight"])
    def test_nan_shows(self, backend: backends.Backend, which: int) -> None:
        case = [x.clone() for x in make_case(dtype=torch.float32)]
        case[3].fill_(1)
        case[which][1, 2] = math.nan
        loss, by_coords, by_sigmas = loss_and_gradients(simulated_heatmap_loss, *to(backend.device, *case))
        assert loss.isnan()
        for gradient in (by_coords, by_sigmas):
            assert gradient[1, 2].isnan().all()
            assert gradient[0].isfinite().all()

    @pytest.mark.parametrize("sigma", [0.0, 1e-20, 1e-6, 1e-3, 0.05, -1.5, 1e4, 1e18], ids=str)
    @pytest.mark.parametrize("x", [0.25, 0.26, 0.9999], ids=["on a pixel", "beside it", "at the border"])
    def test_tiny_and_huge_sigmas(self, backend: backends.Backend, sigma: float, x: float) -> None:
        """The 1e-9 beside the square: a sigma of 0 is a point, which counts where it lies on a pixel."""
        coords, sigmas = torch.tensor([[[x, 0.5]]]), torch.tensor([[[sigma, 1.0]]])
        teacher = torch.full((1, 1, 8, 8), 0.125)
        ref64 = loss_and_gradients(by_formula, coords.double(), sigmas.double(), teacher.double(), None)
        ours = loss_and_gradients(simulated_heatmap_loss, *to(backend.device, coords, sigmas, teacher), None)
        for found, wanted in zip(ours, ref64, strict=True):
            assert found.isfinite().all()
            torch.testing.assert_close(found.cpu().double(), wanted, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("x", [-3.0, 5.0, 1e6, 1e25, -math.inf], ids=str)
    def test_far_away_there_is_a_map_of_zeros_without_a_gradient(self, backend: backends.Backend, x: float) -> None:
        coords, sigmas = torch.tensor([[[x, 0.5]]]), torch.tensor([[[1.5, 1.5]]])
        teacher = torch.full((1, 1, 16, 12), 0.5)
        loss, by_coords, by_sigmas = loss_and_gradients(
            simulated_heatmap_loss, *to(backend.device, coords, sigmas, teacher), None
        )
        assert loss.item() == 0.25
        assert by_coords.abs().max().item() < 1e-30
        assert by_sigmas.abs().max().item() < 1e-30

    @pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)], ids=str)
    def test_empty(self, backend: backends.Backend, shape: tuple[int, ...]) -> None:
        B, K, _, _ = shape
        coords, sigmas = (torch.rand(B, K, 2, device=backend.device, requires_grad=True) for _ in range(2))
        loss = simulated_heatmap_loss(coords, sigmas, torch.zeros(shape, device=backend.device))
        loss.backward()
        assert loss.item() == 0
        for x in (coords, sigmas):
            assert x.grad.shape == (B, K, 2)
            assert x.grad.eq(0).all()

    def test_memory_layouts(self, backend: backends.Backend) -> None:
        coords, sigmas, teacher, weight = to(backend.device, *make_case(dtype=torch.float32))
        both = torch.cat([coords, sigmas], -1)
        views = (
            both[..., :2],
            both[..., 2:],
            teacher.contiguous(memory_format=torch.channels_last),
            weight.T.contiguous().T,
        )
        assert not any(x.is_contiguous() for x in views)
        plain = loss_and_gradients(simulated_heatmap_loss, coords, sigmas, teacher, weight)
        leaf = both.clone().requires_grad_()
        loss = simulated_heatmap_loss(leaf[..., :2], leaf[..., 2:], *views[2:])
        (gradient,) = torch.autograd.grad(loss * 3.0, leaf)
        assert torch.equal(loss.detach(), plain[0])
        assert torch.equal(gradient, torch.cat(plain[1:], -1))

    def test_a_teacher_that_begins_between_vectors(self, backend: backends.Backend) -> None:
        coords, sigmas, teacher, weight = to(backend.device, *make_case(dtype=torch.float32))
        shifted = torch.cat([teacher.new_zeros(1), teacher.flatten()])[1:].view_as(teacher)
        expected = loss_and_gradients(simulated_heatmap_loss, coords, sigmas, teacher, weight)
        found = loss_and_gradients(simulated_heatmap_loss, coords, sigmas, shifted, weight)
        torch.testing.assert_close(found, expected)


class TestAutograd:
    @pytest.mark.parametrize("shape", [(2, 2, 4, 5), (1, 2, 5, 9)], ids=str)
    def test_gradcheck(self, shape: tuple[int, int, int, int]) -> None:
        coords, sigmas, teacher, weight = make_case(*shape)
        leaves = (coords.requires_grad_(), sigmas.requires_grad_())
        assert torch.autograd.gradcheck(lambda c, s: simulated_heatmap_loss(c, s, teacher, weight), leaves)

    def test_the_definition_has_second_derivatives(self) -> None:
        coords, sigmas, teacher, weight = make_case(1, 2, 4, 5)
        leaves = (coords.requires_grad_(), sigmas.requires_grad_())
        function = lambda c, s: definition.simulated_heatmap_loss(c, s, teacher, weight)  # noqa: E731
        assert torch.autograd.gradgradcheck(function, leaves)

    def test_teacher_and_weight_get_no_gradient(self) -> None:
        coords, sigmas, teacher, weight = (x.requires_grad_() for x in make_case())
        simulated_heatmap_loss(coords, sigmas, teacher, weight).backward()
        assert teacher.grad is None
        assert weight.grad is None
        assert not simulated_heatmap_loss(coords.detach(), sigmas.detach(), teacher, weight).requires_grad

    def test_the_gradients_are_of_their_own_memory(self) -> None:
        coords, sigmas, teacher, weight = make_case()
        leaves = (coords.requires_grad_(), sigmas.requires_grad_())
        first, second = torch.autograd.grad(simulated_heatmap_loss(*leaves, teacher, weight), leaves)
        before = second.clone()
        first.zero_()
        assert torch.equal(second, before)

    def test_double_backward_is_a_clear_error(self) -> None:
        coords, sigmas, teacher, weight = make_case()
        coords.requires_grad_()
        loss = simulated_heatmap_loss(coords, sigmas, teacher, weight)
        (gradient,) = torch.autograd.grad(loss, coords, create_graph=True)
        with pytest.raises(RuntimeError, match="double backward is not supported"):
            torch.autograd.grad(gradient.sum(), coords)

    def test_the_same_bits_every_time_and_with_any_threads(self) -> None:
        case = make_case(16, 17, 64, 48, torch.float32)
        results = []
        for count in (1, 2, 2):
            with threads(count):
                results.append(loss_and_gradients(simulated_heatmap_loss, *case))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


class TestTorchIntegration:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_opcheck(self, dtype: torch.dtype) -> None:
        coords, sigmas, teacher, weight = make_case(2, 3, 4, 5, torch.float32)
        teacher = teacher.to(dtype).contiguous(memory_format=torch.channels_last)
        leaves = (coords.requires_grad_(), sigmas.requires_grad_())
        torch.library.opcheck(torch.ops.posekd.simulated_heatmap_loss, (*leaves, teacher, weight))
        torch.library.opcheck(torch.ops.posekd.simulated_heatmap_loss, (*leaves, teacher, None))
        _, stats = torch.ops.posekd.simulated_heatmap_loss(coords.detach(), sigmas.detach(), teacher, weight)
        torch.library.opcheck(
            torch.ops.posekd.simulated_heatmap_loss_backward,
            (torch.tensor(2.0), stats, coords.detach(), sigmas.detach()),
        )

    @pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
    def test_compile_without_graph_breaks(self, compiler: str) -> None:
        case = make_case(dtype=torch.float32)

        def loss(coords: Tensor, sigmas: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
            return simulated_heatmap_loss(coords.sigmoid(), torch.nn.functional.softplus(sigmas), teacher, weight) * 2

        compiled = torch.compile(loss, fullgraph=True, backend=compiler)
        torch.testing.assert_close(loss_and_gradients(compiled, *case), loss_and_gradients(loss, *case))

    def test_export_keeps_the_op(self) -> None:
        class Loss(torch.nn.Module):
            def forward(self, coords: Tensor, sigmas: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
                return simulated_heatmap_loss(coords, sigmas, teacher, weight)

        inputs = make_case(dtype=torch.float32)
        batch = torch.export.Dim("batch")
        program = torch.export.export(Loss(), inputs, dynamic_shapes=({0: batch},) * 4)
        assert "posekd.simulated_heatmap_loss" in str(program.graph)
        torch.testing.assert_close(program.module()(*inputs), simulated_heatmap_loss(*inputs))

    def test_without_the_core_the_definition_serves(self, monkeypatch: pytest.MonkeyPatch) -> None:
        case = make_case(dtype=torch.float32)
        results = []
        for core in (library._core, None):
            monkeypatch.setattr(library, "_core", core)
            results.append(loss_and_gradients(simulated_heatmap_loss, *case))
        torch.testing.assert_close(*results)

    @pytest.mark.emu
    @pytest.mark.parametrize("size", [(1, 3999), (2, 3999), (5000, 1)], ids=str)
    def test_sides_too_long_for_a_block_go_to_the_definition(self, size: tuple[int, int]) -> None:
        case = make_case(1, 2, *size, dtype=torch.float32)
        with backends.use("emu-forward"):
            found = loss_and_gradients(simulated_heatmap_loss, *case)
        torch.testing.assert_close(found, loss_and_gradients(simulated_heatmap_loss, *case), rtol=1e-4, atol=1e-9)

    def test_autocast_leaves_it_alone(self) -> None:
        coords, sigmas, teacher, weight = make_case(dtype=torch.float32)
        plain = simulated_heatmap_loss(coords, sigmas, teacher.bfloat16(), weight)
        with torch.autocast("cpu", torch.bfloat16):
            found = simulated_heatmap_loss(coords, sigmas, teacher.bfloat16(), weight)
        assert found.dtype == torch.float32
        assert torch.equal(found, plain)


class TestProperties:
    @settings(max_examples=25, deadline=None)
    @given(H=st.integers(1, 20), W=st.integers(1, 70), K=st.integers(1, 4), seed=st.integers(0, 10**6))
    def test_mirrored_and_transposed_maps(self, H: int, W: int, K: int, seed: int) -> None:
        """Columns counted from the other end: W x becomes W - 1 - W x. Rows for columns: x and y change places."""
        coords, sigmas, teacher, weight = make_case(2, K, H, W, seed=seed)
        loss, by_coords, by_sigmas = loss_and_gradients(simulated_heatmap_loss, coords, sigmas, teacher, weight)
        mirrored = coords.clone()
        mirrored[..., 0] = (W - 1) / W - coords[..., 0]
        found = loss_and_gradients(simulated_heatmap_loss, mirrored, sigmas, teacher.flip(3), weight)
        torch.testing.assert_close(found, (loss, by_coords * torch.tensor([-1.0, 1.0]), by_sigmas))
        found = loss_and_gradients(
            simulated_heatmap_loss, coords.flip(-1), sigmas.flip(-1), teacher.transpose(2, 3), weight
        )
        torch.testing.assert_close(found, (loss, by_coords.flip(-1), by_sigmas.flip(-1)))
        assert loss >= 0


POINTS, MAPS = torch.rand(2, 3, 2), torch.rand(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0], POINTS, MAPS), TypeError, "coords must be a torch.Tensor, got list"),
        ((POINTS.half(), POINTS, MAPS), TypeError, "coords must be float32, float64, got float16"),
        ((POINTS, POINTS.bfloat16(), MAPS), TypeError, "sigmas must be float32, float64, got bfloat16"),
        ((POINTS, POINTS.double(), MAPS), TypeError, "sigmas, like coords, must be float32, got float64"),
        ((POINTS[0], POINTS, MAPS), ValueError, r"coords must have 3 dimensions .* \(3, 2\)"),
        ((POINTS[:1], POINTS, MAPS), ValueError, r"coords must have shape \(2, 3, 2\) .* got \(1, 3, 2\)"),
        ((POINTS, torch.rand(2, 3, 1), MAPS), ValueError, r"sigmas must have shape \(2, 3, 2\) .* got \(2, 3, 1\)"),
        ((POINTS, POINTS, MAPS[0]), ValueError, r"teacher must have 4 dimensions .* \(3, 4, 5\)"),
        ((POINTS, POINTS, MAPS.int()), TypeError, "teacher must be float32.* got int32"),
        ((POINTS, POINTS, MAPS, torch.ones(2, 3, 1)), ValueError, r"weight must have 2 dimensions .* \(2, 3, 1\)"),
        ((POINTS, POINTS, MAPS, torch.ones(3, 2)), ValueError, r"weight must have shape \(2, 3\) .* got \(3, 2\)"),
        ((POINTS, POINTS, MAPS.to("meta")), ValueError, "teacher is on meta, but coords is on cpu"),
    ],
)  # fmt: skip
def test_bad_input_gets_a_sentence(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        simulated_heatmap_loss(*arguments)
