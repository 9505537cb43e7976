"""mimic_loss: ROIAlign + weighted squared error, fused, against the two steps written out, on every backend."""

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

from posekd.ops import library, mimic_loss, roi_align
from posekd.ops.reference import mimic_loss as definition

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
EPS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
BOXES = torch.tensor(
    [
        [0, 2.2, 4.1, 30.3, 25.9],
        [1, -8.0, -3.0, 17.0, 21.0],
        [0, 20.0, 20.0, 60.0, 70.0],
        [1, 30.0, 12.0, 10.0, 4.0],  # inverted
        [0, 100.0, 100.0, 120.0, 120.0],  # outside
    ]
)


def make_case(
    N: int = 2, K: int = 3, size: tuple[int, int] = (9, 7), crop: tuple[int, int] = (6, 5), M: int = 2, seed: int = 0
) -> dict[str, Tensor]:
    """Random inputs with a joint that one set does not weigh, and one that no set does."""
    rng = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.rand(*shape, generator=rng, dtype=torch.float64)  # noqa: E731
    R = len(BOXES)
    weight = random(M, R, K) + 0.1
    weight[0, 0, 0] = 0
    weight[:, 1, K - 1] = 0
    return {
        "heatmaps": random(N, K, *size) * 2 - 1,
        "boxes": BOXES.double(),
        "targets": random(M, R, K, *crop),
        "weight": weight,
    }


def leaf(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy that wants a gradient."""
    return x.detach().to(dtype, copy=True).requires_grad_()


def plain(case: dict[str, Tensor], dtype: torch.dtype, ratio: int = 2) -> tuple[Tensor, ...]:
    """Loss terms and both gradients of the definition by autograd, everything in `dtype`."""
    maps, targets = (leaf(case[n], dtype) for n in ("heatmaps", "targets"))
    terms = definition.mimic_loss(maps, case["boxes"].to(dtype), targets, case["weight"].to(dtype), 0.25, ratio, True)
    return terms, *torch.autograd.grad(terms.sum(), (maps, targets))


def run(case: dict[str, Tensor], backend: backends.Backend, dtype: torch.dtype, ratio: int = 2) -> tuple[Tensor, ...]:
    """Loss terms and both gradients of the op."""
    maps, targets = (leaf(case[n].to(backend.device), dtype) for n in ("heatmaps", "targets"))
    boxes, weight = (case[n].to(backend.device, torch.promote_types(dtype, torch.float32)) for n in ("boxes", "weight"))
    loss, terms = mimic_loss(maps, boxes, targets, weight, 0.25, sampling_ratio=ratio, return_terms=True)
    loss.backward()
    torch.testing.assert_close(loss, terms.sum(), equal_nan=True)
    return terms, maps.grad, targets.grad


CPU = backends.Backend("cpu", torch.device("cpu"))


class TestAgainstDefinition:
    @pytest.mark.parametrize("ratio", [0, 2])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_terms_and_gradients(self, backend: backends.Backend, dtype: torch.dtype, ratio: int) -> None:
        if dtype == torch.float64 and not backend.float64:
            pytest.skip("float64 is for the CPU")
        case = {
            n: v.to(dtype if n in ("heatmaps", "targets") else torch.float32).double() for n, v in make_case().items()
        }
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        exact, low = plain(case, torch.float64, ratio), plain(case, wide, ratio)
        terms, *gradients = run(case, backend, dtype, ratio)
        assert terms.dtype == wide
        assert all(g.dtype == dtype for g in gradients)
        backends.assert_as_good_as_torch(terms, low[0], exact[0], EPS[wide])
        for mine, lowprec, ref in zip(gradients, low[1:], exact[1:], strict=True):
            backends.assert_as_good_as_torch(mine, lowprec, ref, EPS[dtype])

    @pytest.mark.parametrize(
        ("size", "crop", "K", "M"),
        [((1, 1), (1, 1), 1, 1), ((5, 40), (3, 33), 2, 3), ((40, 5), (35, 2), 2, 1), ((9, 7), (6, 5), 19, 1)],
    )
    def test_sizes(
        self, backend: backends.Backend, size: tuple[int, int], crop: tuple[int, int], K: int, M: int
    ) -> None:
        case = make_case(K=K, size=size, crop=crop, M=M)
        exact, low = plain(case, torch.float64), plain(case, torch.float32)
        for mine, lowprec, ref in zip(run(case, backend, torch.float32), low, exact, strict=True):
            backends.assert_as_good_as_torch(mine, lowprec, ref, 4e-6)

    def test_definition_and_written_out_derivative(self) -> None:
        case = make_case()
        crops = roi_align(case["heatmaps"], case["boxes"], (6, 5), 0.25, 2)
        by_hand = (case["weight"][..., None, None] * (crops - case["targets"]).square()).sum((1, 2, 3, 4)) / 15
        terms, *gradients = plain(case, torch.float64)
        torch.testing.assert_close(terms, by_hand)
        written = definition.mimic_loss_backward(torch.ones(2).double(), *case.values(), 0.25, 2, True)
        for mine, theirs in zip(written, gradients, strict=True):
            torch.testing.assert_close(mine, theirs)

    @pytest.mark.parametrize("layout", ["transposed", "channels_last", "sliced"])
    def test_memory_layouts(self, backend: backends.Backend, layout: str) -> None:
        change = {
            "transposed": lambda x: x.transpose(-2, -1).contiguous().transpose(-2, -1),
            "channels_last": lambda x: x.movedim(-3, -1).contiguous().movedim(-1, -3),
            "sliced": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
        }[layout]
        case = {n: v.float().to(backend.device) for n, v in make_case().items()}
        results = []
        for alter in (lambda x: x, change):
            maps, targets = (alter(case[n]).detach().requires_grad_() for n in ("heatmaps", "targets"))
            loss = mimic_loss(maps, case["boxes"], targets, case["weight"], 0.25)
            loss.backward()
            results.append((loss.detach(), maps.grad, targets.grad))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


class TestMeaning:
    def test_sum_over_pixels_divided_by_boxes_and_joints(self, backend: backends.Backend) -> None:
        """SIMPLE, equations 14 and 15: maps of 3 against targets of 1, 4x5 pixels: 4 * 20 for every box and joint."""
        maps = torch.full((1, 2, 16, 16), 3.0, device=backend.device)
        boxes = [torch.tensor([[2.0, 2, 12, 12]], device=backend.device).repeat(3, 1)]
        targets = torch.ones(3, 2, 4, 5, device=backend.device)
        assert mimic_loss(maps, boxes, targets, None, 1.0).item() == pytest.approx(80)
        weight = torch.tensor([[1.0, 0.5], [0, 0], [0, 0]], device=backend.device)
        assert mimic_loss(maps, boxes, targets, weight, 1.0).item() == pytest.approx(80 * 1.5 / 6)

    def test_several_sets_are_the_sum_of_each(self, backend: backends.Backend) -> None:
        case = {n: v.float().to(backend.device) for n, v in make_case().items()}
        both, terms = mimic_loss(*case.values(), 0.25, return_terms=True)
        single = [
            mimic_loss(case["heatmaps"], case["boxes"], case["targets"][m], case["weight"][m], 0.25) for m in (0, 1)
        ]
        torch.testing.assert_close(terms, torch.stack(single))
        torch.testing.assert_close(both, sum(single))

    def test_terms_have_gradients_of_their_own(self, backend: backends.Backend) -> None:
        case = {n: v.float().to(backend.device) for n, v in make_case().items()}
        gradients = []
        for factors in ((1.0, 0.0), (0.0, 3.0), (1.0, 3.0)):
            maps = case["heatmaps"].detach().requires_grad_()
            _, terms = mimic_loss(maps, case["boxes"], case["targets"], case["weight"], 0.25, return_terms=True)
            (terms * terms.new_tensor(factors)).sum().backward()
            gradients.append(maps.grad)
        torch.testing.assert_close(gradients[0] + gradients[1], gradients[2], rtol=1e-4, atol=1e-5)

    def test_adapters_on_the_target_side_learn(self) -> None:
        adapter = torch.nn.Conv2d(3, 3, 3, padding=1)
        case = {n: v.float() for n, v in make_case().items()}
        mimic_loss(case["heatmaps"], BOXES, adapter(case["targets"][0]), case["weight"][0], 0.25).backward()
        assert (adapter.weight.grad != 0).any()

    def test_no_boxes_cost_nothing(self, backend: backends.Backend) -> None:
        maps = torch.rand(2, 3, 8, 8, device=backend.device, requires_grad=True)
        targets = torch.zeros(2, 0, 3, 4, 4, device=backend.device, requires_grad=True)
        loss = mimic_loss(maps, torch.zeros(0, 5, device=backend.device), targets, None, 0.25)
        loss.backward()
        assert loss.item() == 0
        assert (maps.grad == 0).all()
        assert targets.grad.shape == targets.shape

    def test_nan_behind_a_weight_of_zero_does_no_harm(self, backend: backends.Backend) -> None:
        case = {n: v.float() for n, v in make_case().items()}
        clean = run(case, backend, torch.float32)
        case["targets"][0, 0, 0] = math.nan
        case["targets"][:, 1, 2] = math.nan
        for a, b in zip(run(case, backend, torch.float32), clean, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)

    def test_elsewhere_nan_and_inf_propagate(self, backend: backends.Backend) -> None:
        for name, value in (("targets", math.nan), ("heatmaps", math.inf)):
            case = {n: v.float() for n, v in make_case().items()}
            case[name][..., 1, 3, 3] = value
            terms, by_maps, by_targets = run(case, backend, torch.float32)
            assert not terms.isfinite().any()
            assert not by_maps.isfinite().all()
            assert by_targets[:, :, 0].isfinite().all()

    def test_boxes_that_are_not_finite_crop_zeros(self, backend: backends.Backend) -> None:
        case = {n: v.float() for n, v in make_case().items()}
        case["boxes"][0, 0] = math.nan
        case["boxes"][1, 3] = math.inf
        _, by_maps, by_targets = run(case, backend, torch.float32)
        assert by_maps.isfinite().all()
        expected = 2 * case["weight"][..., None, None] * case["targets"] / 15
        torch.testing.assert_close(by_targets[:, :2].cpu(), expected[:, :2])

    def test_an_image_that_is_not_there(self, backend: backends.Backend) -> None:
        case = {n: v.float() for n, v in make_case().items()}
        case["boxes"][1, 0] = 7
        if backend.kind == "cpu":
            with pytest.raises(ValueError, match=r"boxes\[1\] is on image 7"):
                run(case, backend, torch.float32)
        else:
            assert (run(case, backend, torch.float32)[2][:, 1, 0] > 0).all()  # a crop of zeros

    def test_mixed_dtypes_give_float32(self, backend: backends.Backend) -> None:
        case = {n: v.to(backend.device) for n, v in make_case().items()}
        maps = case["heatmaps"].half().requires_grad_()
        targets = case["targets"].bfloat16().requires_grad_()
        loss = mimic_loss(maps, case["boxes"].float(), targets, case["weight"].half(), 0.25)
        loss.backward()
        assert (loss.dtype, maps.grad.dtype, targets.grad.dtype) == (torch.float32, torch.float16, torch.bfloat16)


class TestAutograd:
    def test_gradcheck(self) -> None:
        case = make_case(K=2, size=(5, 4), crop=(3, 2))
        maps, targets = case["heatmaps"].requires_grad_(), case["targets"].requires_grad_()

        def loss(maps: Tensor, targets: Tensor) -> Tensor:
            return mimic_loss(maps, case["boxes"], targets, case["weight"], 0.1, return_terms=True)[1]

        assert torch.autograd.gradcheck(loss, (maps, targets))

    def test_grad_scaler_keeps_half_gradients(self, backend: backends.Backend) -> None:
        case = make_case()
        case["heatmaps"], case["targets"] = case["heatmaps"] * 1e-6, case["targets"] * 1e-6
        maps = case["heatmaps"].to(backend.device).half().requires_grad_()
        targets = case["targets"].to(backend.device).half().requires_grad_()
        boxes, weight = (case[n].float().to(backend.device) for n in ("boxes", "weight"))
        (mimic_loss(maps, boxes, targets, weight, 0.25) * 2.0**16).backward()
        exact = {**case, "heatmaps": maps.detach().cpu().double(), "targets": targets.detach().cpu().double()}
        _, by_maps, by_targets = plain(exact, torch.float64)
        torch.testing.assert_close(maps.grad.double().cpu(), by_maps * 2**16, rtol=2e-3, atol=1e-5)
        torch.testing.assert_close(targets.grad.double().cpu(), by_targets * 2**16, rtol=2e-3, atol=1e-5)

    def test_deterministic_whatever_the_threads(self) -> None:
        case = {n: v.float() for n, v in make_case(K=17, size=(32, 24), crop=(32, 24)).items()}
        results = []
        for count in (1, 2):
            with threads(count):
                results.append(run(case, CPU, torch.float32))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))

    def test_double_backward_is_a_clear_error(self) -> None:
        case = {n: v.float() for n, v in make_case().items()}
        maps = case["heatmaps"].requires_grad_()
        loss = mimic_loss(maps, case["boxes"], case["targets"], case["weight"], 0.25)
        (gradient,) = torch.autograd.grad(loss, maps, create_graph=True)
        with pytest.raises(RuntimeError, match="double backward is not supported"):
            torch.autograd.grad(gradient.sum(), maps)

    def test_targets_alone(self) -> None:
        case = {n: v.float() for n, v in make_case().items()}
        targets = leaf(case["targets"], torch.float32)
        mimic_loss(case["heatmaps"], case["boxes"], targets, case["weight"], 0.25).backward()
        torch.testing.assert_close(targets.grad, run(case, CPU, torch.float32)[2], rtol=0, atol=0)
        assert case["heatmaps"].grad is None


class TestTorchIntegration:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_opcheck(self, dtype: torch.dtype) -> None:
        case = {n: v.float() for n, v in make_case().items()}
        maps = case["heatmaps"].to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
        targets = case["targets"].to(dtype).transpose(-1, -2).requires_grad_()
        arguments = (maps, case["boxes"], targets, case["weight"], 0.25, 2, True)
        torch.library.opcheck(torch.ops.posekd.mimic_loss, arguments)
        detached = [x.detach() if isinstance(x, Tensor) else x for x in arguments]
        for need_targets in (True, False):
            torch.library.opcheck(torch.ops.posekd.mimic_loss_backward, (torch.rand(2), *detached, need_targets))

    @pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
    def test_compile_without_graph_breaks(self, compiler: str) -> None:
        case = {n: v.float() for n, v in make_case().items()}

        def step(maps: Tensor, targets: Tensor) -> Tensor:
            return mimic_loss(maps * 2, case["boxes"], targets * 0.5, case["weight"], 0.25) + 1

        results: list[Any] = []
        for function in (step, torch.compile(step, fullgraph=True, backend=compiler)):
            maps, targets = (case[n].detach().requires_grad_() for n in ("heatmaps", "targets"))
            function(maps, targets).backward()
            results.append((maps.grad, targets.grad))
        torch.testing.assert_close(*results)

    def test_export_with_any_number_of_boxes(self) -> None:
        class Loss(torch.nn.Module):
            def forward(self, maps: Tensor, boxes: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
                return mimic_loss(maps, boxes, targets, weight, 0.25)

        inputs = tuple(v.float() for v in make_case().values())
        R = torch.export.Dim("boxes")
        program = torch.export.export(Loss(), inputs, dynamic_shapes=(None, {0: R}, {1: R}, {1: R}))
        assert "posekd.mimic_loss" in str(program.graph)
        fewer = (inputs[0], inputs[1][:3], inputs[2][:, :3], inputs[3][:, :3])
        torch.testing.assert_close(program.module()(*fewer), mimic_loss(*fewer, 0.25))

    def test_without_the_core_the_definition_serves(self, monkeypatch: pytest.MonkeyPatch) -> None:
        results = []
        for core in (library._core, None):
            monkeypatch.setattr(library, "_core", core)
            results.append(run(make_case(), CPU, torch.float64))
        for mine, definitions in zip(*results, strict=True):
            torch.testing.assert_close(mine, definitions)


class TestProperties:
    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 10**6), h=st.integers(1, 9), w=st.integers(1, 20), ratio=st.integers(0, 3))
    def test_zero_at_agreement_and_quadratic_around_it(self, seed: int, h: int, w: int, ratio: int) -> None:
        case = make_case(crop=(h, w), M=1, seed=seed)
        crops = roi_align(case["heatmaps"], case["boxes"], (h, w), 0.25, ratio)
        loss = lambda shift: mimic_loss(  # noqa: E731
            case["heatmaps"], case["boxes"], crops + shift, case["weight"][0], 0.25, sampling_ratio=ratio
        )
        assert loss(0.0).item() == pytest.approx(0, abs=1e-25)
        expected = case["weight"].sum() * h * w * 0.09 / 15
        torch.testing.assert_close(loss(0.3), expected)


CASE = {n: v.float() for n, v in make_case().items()}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"heatmaps": CASE["heatmaps"][0]}, ValueError, r"heatmaps must have 4 dimensions"),
        ({"boxes": BOXES[:, :4]}, ValueError, r"boxes must be \[R, 5\]"),
        ({"boxes": [BOXES[:, 1:]]}, ValueError, r"boxes is a list of 1, but heatmaps holds 2 images"),
        ({"targets": CASE["targets"][:, :2]}, ValueError, r"targets must have shape \(2, 5, 3, 6, 5\) to match boxes"),
        ({"targets": CASE["targets"][0, 0]}, ValueError, r"targets must have 4 dimensions \[R, K, h, w\]"),
        ({"weight": CASE["weight"][0]}, ValueError, r"weight must have 3 dimensions"),
        ({"weight": CASE["weight"][:, :, :1]}, ValueError, r"weight must have shape \(2, 5, 3\) to match targets"),
        ({"spatial_scale": -1.0}, ValueError, r"spatial_scale must be positive"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mimic_loss(**{**CASE, "spatial_scale": 0.25, **change})
