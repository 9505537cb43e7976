"""distill_loss under opcheck, torch.compile and torch.export, its properties, and what it says to bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.distill_cases import make_case
from helpers.threads import threads
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posekd.ops import distill_loss, library


class TestTorchIntegration:
    @pytest.mark.parametrize("names", [("teacher", "target", "weight", "mask"), ("keypoints",)])
    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
    def test_opcheck(self, names: tuple[str, ...], layout: torch.memory_format) -> None:
        case = make_case(2, 3, 4, 4)
        values = [
            (case[n].float() if case[n].dtype != torch.bool else case[n]) if n in names else None
            for n in ("teacher", "target", "keypoints", "weight", "teacher_weight", "mask")
        ]
        student = case["student"].float().contiguous(memory_format=layout).requires_grad_()
        torch.library.opcheck(torch.ops.posekd.distill_loss, (student, *values, 0.15, 0.075, 1.0, 2.0, 0, False))
        stats = torch.ops.posekd.distill_loss(student, *values, 0.15, 0.075, 1.0, 2.0, 0, False)[2].detach()
        upstream = torch.tensor(1.0)
        torch.library.opcheck(
            torch.ops.posekd.distill_loss_backward,
            (upstream, stats, student.detach(), *values, 0.15, 0.075, 1.0, 2.0, 0),
        )

    @pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
    def test_compile_without_graph_breaks(self, compiler: str) -> None:
        case = {n: v.float() for n, v in make_case().items()}

        def step(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
            return distill_loss(student * 2, teacher, target, temperature=0.5) + 1

        gradients = []
        for function in (step, torch.compile(step, fullgraph=True, backend=compiler)):
            student = case["student"].clone().requires_grad_()
            function(student, case["teacher"], case["target"]).backward()
            gradients.append(student.grad)
        torch.testing.assert_close(*gradients)

    def test_export_keeps_the_op(self) -> None:
        class Loss(torch.nn.Module):
            def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
                return distill_loss(student, teacher)

        case = {n: v.float() for n, v in make_case().items()}
        inputs = (case["student"], case["teacher"])
        batch = torch.export.Dim("batch")
        program = torch.export.export(Loss(), inputs, dynamic_shapes=({0: batch}, {0: batch}))
        assert "posekd.distill_loss" in str(program.graph)
        torch.testing.assert_close(program.module()(*inputs), distill_loss(*inputs))

    def test_without_the_core_the_definition_serves(self, monkeypatch: pytest.MonkeyPatch) -> None:
        case = {n: v.float() for n, v in make_case().items()}
        results = []
        for core in (library._core, None):
            monkeypatch.setattr(library, "_core", core)
            student = case["student"].clone().requires_grad_()
            loss = distill_loss(student, case["teacher"], keypoints=case["keypoints"])
            loss.backward()
            results.append((loss.detach(), student.grad))
        torch.testing.assert_close(*results)


class TestProperties:
    @settings(max_examples=40, deadline=None)
    @given(
        B=st.integers(1, 3),
        K=st.integers(1, 4),
        H=st.integers(1, 9),
        W=st.integers(1, 9),
        seed=st.integers(0, 10**6),
    )
    def test_zero_at_agreement_positive_elsewhere(self, B: int, K: int, H: int, W: int, seed: int) -> None:
        case = {n: v.float() for n, v in make_case(B, K, H, W, seed).items()}
        student = case["student"].requires_grad_()
        same, terms = distill_loss(student, student.detach(), student.detach(), return_terms=True)
        same.backward()
        assert abs(same.item()) < 1e-6
        assert student.grad.abs().max() < 1e-7
        _, terms = distill_loss(student, case["teacher"], case["target"], return_terms=True)
        assert (terms > -1e-6).all()

    @settings(max_examples=20, deadline=None)
    @given(seed=st.integers(0, 10**6))
    def test_threads_do_not_change_a_bit(self, seed: int) -> None:
        case = {n: v.float() for n, v in make_case(4, 17, 16, 12, seed).items()}
        results = []
        for count in (1, 2):
            with threads(count):
                results.append(distill_loss(case["student"], case["teacher"], case["target"]))
        assert torch.equal(*results)


GOOD = torch.rand(2, 3, 8, 6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"student": GOOD[0], "teacher": GOOD}, ValueError, r"student must have 4 dimensions .* \(3, 8, 6\)"),
        ({"student": GOOD.int(), "teacher": GOOD}, TypeError, "student must be float32.* got int32"),
        (
            {"student": GOOD, "teacher": GOOD[:1]},
            ValueError,
            r"teacher must have shape \(2, 3, 8, 6\).*\(1, 3, 8, 6\)",
        ),
        ({"student": GOOD, "teacher": GOOD.long()}, TypeError, "teacher must be .*got int64"),
        (
            {"student": GOOD, "teacher": GOOD.to("meta")},
            ValueError,
            "teacher is on meta, but student is on cpu",
        ),
        ({"student": GOOD}, ValueError, "nothing to learn from"),
        (
            {"student": GOOD, "target": GOOD, "keypoints": torch.rand(2, 3, 3)},
            ValueError,
            "labels were given twice",
        ),
        (
            {"student": GOOD, "keypoints": torch.rand(2, 3, 2)},
            ValueError,
            r"keypoints must have shape \(2, 3, 3\)",
        ),
        (
            {"student": GOOD, "teacher": GOOD, "weight": torch.rand(2, 4)},
            ValueError,
            r"weight must have shape \(2, 3\)",
        ),
        (
            {"student": GOOD, "teacher": GOOD, "mask": torch.rand(2, 8, 7)},
            ValueError,
            r"mask must have shape \(2, 8, 6\)",
        ),
        (
            {"student": GOOD, "teacher": GOOD, "kind": "mrsa"},
            ValueError,
            "kind must be one of 'msra'.* got 'mrsa'",
        ),
        (
            {"student": GOOD, "teacher": GOOD, "sigma": 0.0},
            ValueError,
            "sigma must be positive and finite, got 0.0",
        ),
        ({"student": GOOD, "teacher": GOOD, "temperature": -1.0}, ValueError, "temperature must be positive"),
        (
            {"student": GOOD, "teacher": GOOD, "alpha": 1.5},
            ValueError,
            "alpha must be between 0 and 1, got 1.5",
        ),
        ({"student": [1.0], "teacher": GOOD}, TypeError, "student must be a torch.Tensor, got list"),
    ],
)
def test_bad_input_gets_a_sentence(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        distill_loss(**arguments)
