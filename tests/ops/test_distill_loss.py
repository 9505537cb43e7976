"""distill_loss: the fused MSE + KL of MAPD against its definition, on every backend."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import backends
from helpers.distill_cases import COMBINATIONS, DTYPES, EPS, make_case, plain

from posekd.ops import distill_loss, render_heatmaps
from posekd.ops.reference import distill_loss as definition
from posekd.ops.reference.distill_loss import Inputs, Numbers


class TestAgainstDefinition:
    @pytest.mark.parametrize("combination", COMBINATIONS)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_loss_terms_and_gradient(self, backend: backends.Backend, dtype: torch.dtype, combination: str) -> None:
        if dtype == torch.float64 and not backend.float64:
            pytest.skip("float64 is for the CPU")
        names, numbers = COMBINATIONS[combination]
        # The inputs as this dtype holds them are the problem; only the arithmetic on them is judged.
        case = {
            n: v if v.dtype == torch.bool else v.to(torch.float32 if n == "keypoints" else dtype).double()
            for n, v in make_case().items()
        }
        ref64 = plain(case, names, torch.float64, **numbers)
        low = plain(case, names, torch.float32 if dtype != torch.float64 else dtype, **numbers)
        arguments = {n: case[n] if case[n].dtype == torch.bool else case[n].to(dtype) for n in names}
        if "keypoints" in arguments:
            arguments["keypoints"] = case["keypoints"].float()
        arguments = {n: v.to(backend.device) for n, v in arguments.items()}
        student = case["student"].to(backend.device, dtype).requires_grad_()
        loss, terms = distill_loss(student, return_terms=True, **arguments, **numbers)
        loss.backward()
        assert loss.dtype == terms.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert not terms.requires_grad
        wide = EPS[torch.float64 if dtype == torch.float64 and "keypoints" not in names else torch.float32]
        backends.assert_as_good_as_torch(loss, low[0], ref64[0], wide)
        backends.assert_as_good_as_torch(terms, low[1], ref64[1], wide)
        backends.assert_as_good_as_torch(student.grad, low[2], ref64[2], max(wide, EPS[dtype]))

    @pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 1, 5), (1, 3, 7, 1), (1, 2, 3, 11), (3, 17, 16, 12)])
    def test_sizes(self, backend: backends.Backend, shape: tuple[int, int, int, int]) -> None:
        case = make_case(*shape)
        names = ("teacher", "target", "weight")
        ref64, low = (plain(case, names, dtype) for dtype in (torch.float64, torch.float32))
        arguments = {n: case[n].to(backend.device, torch.float32) for n in names}
        student = case["student"].to(backend.device, torch.float32).requires_grad_()
        loss = distill_loss(student, **arguments)
        loss.backward()
        backends.assert_as_good_as_torch(loss, low[0], ref64[0], 2e-6)
        backends.assert_as_good_as_torch(student.grad, low[2], ref64[2], 2e-6)

    @pytest.mark.parametrize(
        ("shape", "dtype"),
        [
            ((2, 2, 16, 48), torch.float32),  # one block a row, whole warps
            ((1, 2, 9, 12), torch.bfloat16),  # 108 pixels: no multiple of 8, so not from registers
            ((1, 2, 9, 16), torch.bfloat16),  # a warp of which 14 lanes have nothing
            ((1, 1, 48, 68), torch.float32),  # a cluster of blocks a row, the last one partly empty
            ((1, 1, 48, 96), torch.bfloat16),
            ((1, 1, 48, 96), torch.float16),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("labels", ["target", "keypoints"])
    def test_rows_in_registers(
        self, backend: backends.Backend, shape: tuple[int, int, int, int], dtype: torch.dtype, labels: str
    ) -> None:
        case = make_case(*shape)
        names = ("teacher", labels, "teacher_weight")
        case = {n: v.to(torch.float32 if n == "keypoints" else dtype).double() for n, v in case.items()}
        case["teacher"] *= 8  # warps with different maxima
        numbers = {"temperature": 0.5, "alpha": 0.25, "beta": 0.5}
        ref64, low = (plain(case, names, d, **numbers) for d in (torch.float64, torch.float32))
        arguments = {n: case[n].to(backend.device, torch.float32 if n == "keypoints" else dtype) for n in names}
        student = case["student"].to(backend.device, dtype).requires_grad_()
        loss, terms = distill_loss(student, **arguments, **numbers, return_terms=True)
        (loss * 2.7).backward()
        backends.assert_as_good_as_torch(terms, low[1], ref64[1], EPS[torch.float32])
        backends.assert_as_good_as_torch(student.grad, 2.7 * low[2], 2.7 * ref64[2], 2 * EPS[dtype])
        without_gradient = distill_loss(student.detach(), **arguments, **numbers)
        torch.testing.assert_close(without_gradient, loss.detach(), rtol=1e-6, atol=0)

    @pytest.mark.parametrize("layout", ["transposed", "channels_last", "sliced"])
    def test_memory_layouts(self, backend: backends.Backend, layout: str) -> None:
        case = {n: v.to(backend.device) for n, v in make_case(2, 4, 6, 8).items()}
        change = {
            "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
            "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
            "sliced": lambda x: torch.cat([x, x], 3)[..., :8],
        }[layout]
        maps = [case[n].float() for n in ("student", "teacher", "target")]
        changed = [change(m).detach().requires_grad_(i == 0) for i, m in enumerate(maps)]
        maps[0].requires_grad_()
        assert not changed[0].is_contiguous()
        distill_loss(*maps).backward()
        distill_loss(*changed).backward()
        torch.testing.assert_close(changed[0].grad, maps[0].grad, rtol=0, atol=0)

    def test_mixed_dtypes_give_float32(self, backend: backends.Backend) -> None:
        case = {n: v.to(backend.device) for n, v in make_case().items()}
        student = case["student"].half().requires_grad_()
        loss = distill_loss(student, case["teacher"].bfloat16(), case["target"].float())
        loss.backward()
        expected = plain(
            {**case, "student": student.detach().double(), "teacher": case["teacher"].bfloat16().double()},
            ("teacher", "target"),
            torch.float64,
        )
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.double(), expected[0], rtol=1e-5, atol=0)
        assert student.grad.dtype == torch.float16


class TestMeaning:
    """Numbers that can be worked out by hand."""

    def test_mse_is_half_the_mean_square(self, backend: backends.Backend) -> None:
        student = torch.full((1, 2, 2, 2), 3.0, device=backend.device)
        target = torch.ones_like(student)
        assert distill_loss(student, target=target, alpha=0.0, beta=0.0).item() == pytest.approx(0.5 * 4)
        weight = torch.tensor([[0.5, 0.0]], device=backend.device)  # (0.5 * 2)^2 on one joint of two
        assert distill_loss(student, target=target, weight=weight, alpha=0.0, beta=0.0).item() == pytest.approx(0.25)

    def test_kl_of_two_pixels(self, backend: backends.Backend) -> None:
        student = torch.tensor([0.0, math.log(3.0)], device=backend.device).view(1, 1, 1, 2)
        teacher = torch.tensor([0.0, 0.0], device=backend.device).view(1, 1, 1, 2)
        _, terms = distill_loss(student, teacher, return_terms=True)
        # q_t = (1/2, 1/2), q_s = (1/4, 3/4): KL = ln 2 / 2 + ln(2/3) / 2
        assert terms[1].item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=1e-5)

    def test_kl_ignores_a_constant_and_scales_with_temperature(self, backend: backends.Backend) -> None:
        case = {n: v.to(backend.device).float() for n, v in make_case().items()}
        kl = lambda s, t, T: distill_loss(s, t, temperature=T, return_terms=True)[1][1]  # noqa: E731
        s, t = case["student"], case["teacher"]
        torch.testing.assert_close(kl(s + 3, t, 1.0), kl(s, t, 1.0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(kl(2 * s, 2 * t, 2.0), 4 * kl(s, t, 1.0), rtol=1e-4, atol=1e-6)

    def test_weights_of_the_terms(self, backend: backends.Backend) -> None:
        case = {n: v.to(backend.device).float() for n, v in make_case().items()}
        loss, terms = distill_loss(
            case["student"], case["teacher"], case["target"], alpha=0.2, beta=0.3, return_terms=True
        )
        torch.testing.assert_close(loss, (terms * terms.new_tensor([0.2, 0.3, 0.5])).sum())

    @pytest.mark.parametrize("kind", ["msra", "higherhrnet", "exact"])
    def test_keypoints_equal_rendered_heatmaps(self, backend: backends.Backend, kind: str) -> None:
        case = {n: v.to(backend.device).float() for n, v in make_case(2, 6, 16, 12).items()}
        keypoints = case["keypoints"]
        keypoints[0, 1, 2] = 0  # unlabelled
        keypoints[0, 2, :2] = torch.tensor([-30.0, 4.0])  # out of the map
        keypoints[1, 3, :2] = torch.tensor([-0.4, 15.4])  # at its border
        maps, weight = render_heatmaps(keypoints, (16, 12), sigma=1.5, kind=kind)
        stored = distill_loss(case["student"], case["teacher"], maps, weight=weight)
        fused = distill_loss(case["student"], case["teacher"], keypoints=keypoints, sigma=1.5, kind=kind)
        torch.testing.assert_close(fused, stored, rtol=2e-6, atol=0)


class TestMissingAndBroken:
    def test_nan_behind_a_weight_of_zero_does_no_harm(self, backend: backends.Backend) -> None:
        case = {n: v.to(backend.device).float() for n, v in make_case().items()}
        weight = torch.ones(2, 3, device=backend.device)
        weight[0, 1] = 0
        clean = distill_loss(case["student"], case["teacher"], case["target"], weight=weight)
        for name in ("student", "teacher", "target"):
            case[name][0, 1] = math.nan
        student = case["student"].requires_grad_()
        loss = distill_loss(student, case["teacher"], case["target"], weight=weight)
        loss.backward()
        # Still a mean over all B*K joints.
        torch.testing.assert_close(loss, clean, rtol=0, atol=0)
        assert student.grad.isfinite().all()
        assert (student.grad[0, 1] == 0).all()

    def test_nan_behind_the_mask_does_no_harm(self, backend: backends.Backend) -> None:
        case = {n: v.to(backend.device) for n, v in make_case().items()}
        student, teacher = case["student"].float(), case["teacher"].float()
        clean = distill_loss(student, teacher, mask=case["mask"])
        hidden = ~case["mask"][:, None].expand_as(student)
        student[hidden] = math.nan
        teacher[hidden] = math.inf
        student.requires_grad_()
        loss = distill_loss(student, teacher, mask=case["mask"])
        loss.backward()
        torch.testing.assert_close(loss, clean, rtol=0, atol=0)
        assert (student.grad[hidden] == 0).all()
        assert student.grad.isfinite().all()

    @pytest.mark.parametrize("name", ["student", "teacher", "target"])
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_elsewhere_nan_and_inf_propagate_as_in_the_definition(
        self, backend: backends.Backend, name: str, value: float
    ) -> None:
        case = {n: v.to(backend.device).float() for n, v in make_case().items()}
        case[name][1, 2, 3, 4] = value
        loss, terms = distill_loss(case["student"], case["teacher"], case["target"], return_terms=True)
        inputs = Inputs(case["student"], case["teacher"], case["target"])
        expected_loss, expected_terms = definition.distill_loss(inputs, Numbers())
        torch.testing.assert_close(terms, expected_terms, equal_nan=True, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(loss, expected_loss, equal_nan=True, rtol=1e-4, atol=1e-6)

    def test_a_wholly_masked_person_costs_nothing(self, backend: backends.Backend) -> None:
        case = {n: v.to(backend.device) for n, v in make_case().items()}
        mask = torch.ones(2, 8, 12, dtype=torch.bool, device=backend.device)
        mask[0] = False
        student = case["student"].float().requires_grad_()
        loss, terms = distill_loss(student, case["teacher"].float(), mask=mask, return_terms=True)
        loss.backward()
        assert terms.isfinite().all()
        assert (student.grad[0] == 0).all()

    def test_empty_batch(self, backend: backends.Backend) -> None:
        student = torch.zeros(0, 17, 8, 6, device=backend.device, requires_grad=True)
        loss = distill_loss(student, torch.zeros_like(student))
        loss.backward()
        assert loss.item() == 0
        assert student.grad.shape == student.shape


class TestAutograd:
    def test_gradcheck(self) -> None:
        case = make_case(2, 2, 3, 5)
        student = case["student"].requires_grad_()
        arguments = {n: case[n] for n in ("teacher", "target", "weight", "teacher_weight", "mask")}
        assert torch.autograd.gradcheck(lambda s: distill_loss(s, **arguments, temperature=0.7), (student,))

    def test_the_written_out_derivative_is_that_of_the_definition(self) -> None:
        case = make_case()
        names = ("teacher", "target", "weight", "teacher_weight", "mask")
        _, _, gradient = plain(case, names, torch.float64, temperature=0.7)
        written = definition.distill_loss_backward(
            torch.tensor(1.0, dtype=torch.float64),
            Inputs(case["student"], **{n: case[n] for n in names}),
            Numbers(temperature=0.7),
        )
        torch.testing.assert_close(written, gradient)

    @pytest.mark.parametrize("width", [12, 13])  # one that fits the kernel with a row in registers, one not
    @pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
    def test_two_backward_passes_give_the_same_bits(
        self, backend: backends.Backend, width: int, dtype: torch.dtype
    ) -> None:
        case = {n: v.to(backend.device, dtype) for n, v in make_case(W=width).items()}
        student = case["student"].requires_grad_()
        loss = distill_loss(student, case["teacher"], case["target"]) * 3.7
        (first,) = torch.autograd.grad(loss, student, retain_graph=True)
        (second,) = torch.autograd.grad(loss, student)
        assert torch.equal(first, second)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_grad_scaler_keeps_half_gradients(self, backend: backends.Backend, dtype: torch.dtype) -> None:
        """The bare gradient of a mean over a heatmap batch is about 1e-8: all zero in float16 if rounded first."""
        B, K, H, W = 8, 17, 16, 12
        student = (torch.rand(B, K, H, W, device=backend.device) * 0.01).to(dtype).requires_grad_()
        teacher, target = torch.zeros_like(student), torch.zeros_like(student)
        scale = 2.0**16
        (distill_loss(student, teacher, target) * scale).backward()
        wide = student.detach().double().requires_grad_()
        distill_loss(wide.cpu(), teacher.double().cpu(), target.double().cpu()).backward()
        expected = wide.grad * scale
        assert (student.grad != 0).float().mean() > 0.9
        torch.testing.assert_close(student.grad.double().cpu(), expected.cpu(), rtol=2 * EPS[dtype], atol=1e-6)

    def test_autocast_takes_mixed_types_and_returns_float32(self) -> None:
        conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        image = torch.rand(2, 3, 8, 8)
        with torch.autocast("cpu", torch.bfloat16):
            heatmaps = conv(image)
            loss = distill_loss(heatmaps, torch.rand(2, 4, 8, 8), torch.rand(2, 4, 8, 8).half())
        assert heatmaps.dtype == torch.bfloat16
        assert loss.dtype == torch.float32
        loss.backward()
        assert conv.weight.grad.isfinite().all()

    def test_double_backward_is_a_clear_error(self) -> None:
        student = torch.rand(1, 2, 4, 4, requires_grad=True)
        (gradient,) = torch.autograd.grad(distill_loss(student, torch.rand(1, 2, 4, 4)), student, create_graph=True)
        with pytest.raises(RuntimeError, match="double backward is not supported"):
            torch.autograd.grad(gradient.sum(), student)

    def test_teacher_and_labels_get_no_gradient(self) -> None:
        teacher = torch.rand(1, 2, 4, 4, requires_grad=True)
        student = torch.rand(1, 2, 4, 4, requires_grad=True)
        distill_loss(student, teacher, teacher * 1).backward()
        assert teacher.grad is None
