"""What the ops say to the ways of taking a derivative that they do not have, and to tracers of the one they have."""

from __future__ import annotations

import pytest
import torch
from helpers.small_problems import NAMES, problem
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from posekd.ops import distill_loss
from posekd.ops.reference import corner_pool as corner_pool_definition


@pytest.mark.parametrize("name", NAMES)
class TestForwardMode:
    """Silence would be a derivative of 0."""

    def test_jvp_is_refused_in_words(self, name: str) -> None:
        x, call = problem(name)
        with pytest.raises(RuntimeError, match=r"posekd::\w+ has no forward-mode derivative .*torch.autograd.grad"):
            torch.func.jvp(call, (x,), (torch.ones_like(x),))

    @pytest.mark.parametrize("requires_grad", [False, True])
    def test_a_dual_tensor_is_refused_in_words(self, name: str, requires_grad: bool) -> None:
        x, call = problem(name)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x.requires_grad_(requires_grad), torch.ones_like(x))
            with pytest.raises(RuntimeError, match="has no forward-mode derivative"):
                call(dual)

    def test_without_a_tangent_there_is_nothing_to_refuse(self, name: str) -> None:
        x, call = problem(name)
        with forward_ad.dual_level():
            value = forward_ad.make_dual(torch.ones(()), torch.ones(())) * call(x).sum()
            assert forward_ad.unpack_dual(value).tangent.item() == pytest.approx(call(x).sum().item())

    def test_torch_func_grad_is_refused_in_words(self, name: str) -> None:
        x, call = problem(name)
        with pytest.raises(RuntimeError, match=r"posekd::\w+ takes no part in torch.func's derivatives"):
            torch.func.grad(lambda x: call(x).sum())(x)


def test_under_compile_as_well() -> None:
    x, call = problem("corner_pool")
    compiled = torch.compile(lambda x: torch.func.jvp(call, (x,), (x,))[1], backend="aot_eager")
    with pytest.raises(RuntimeError, match="has no forward-mode derivative"):
        compiled(x)


def test_the_definition_that_the_message_names_has_both() -> None:
    x = torch.tensor([1.0, 3.0, 2.0]).reshape(1, 1, 1, 3)

    def pool(x: Tensor) -> Tensor:
        return corner_pool_definition.corner_pool(x, "left", "first")

    tangent = torch.tensor([5.0, 7.0, 11.0]).reshape(1, 1, 1, 3)
    assert torch.func.jvp(pool, (x,), (tangent,))[1].flatten().tolist() == [7, 7, 11]
    assert torch.func.grad(lambda x: pool(x).sum())(x).flatten().tolist() == [0, 2, 1]


class TestTracers:
    @pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
    @pytest.mark.parametrize("name", NAMES)
    def test_make_fx_takes_op_and_gradient(self, name: str, mode: str) -> None:
        x, call = problem(name)

        def step(x: Tensor, upstream: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            return torch.autograd.grad((call(x) * upstream).sum(), x)[0]

        upstream = torch.tensor(3.0)
        graph = make_fx(step, tracing_mode=mode, _allow_non_fake_inputs=True)(x, upstream)
        called = {str(node.target) for node in graph.graph.nodes}
        assert any(target.startswith("posekd.") and "backward" not in target for target in called)
        for other in (upstream, torch.tensor(-0.5)):  # what the tracer saw is not written into the graph
            torch.testing.assert_close(graph(x, other), step(x, other), rtol=1e-6, atol=1e-8)

    def test_opcheck_of_the_loss_that_keeps_its_gradient(self) -> None:
        student, teacher = torch.randn(2, 3, 9, 8, requires_grad=True), torch.randn(2, 3, 9, 8)
        keypoints = torch.rand(2, 3, 3) * 8
        arguments = (student, teacher, None, keypoints, None, None, None, 0.15, 0.075, 1.0, 2.0, 0, True)
        torch.library.opcheck(torch.ops.posekd.distill_loss.default, arguments)

    def test_the_registered_loss_has_thirteen_arguments(self) -> None:
        names = [argument.name for argument in torch.ops.posekd.distill_loss.default._schema.arguments]
        assert names == [
            "student", "teacher", "target", "keypoints", "weight", "teacher_weight", "mask",
            "alpha", "beta", "temperature", "sigma", "kind", "keep_gradient",
        ]  # fmt: skip

    def test_a_profiler_does_not_change_the_gradient(self) -> None:
        student, teacher = torch.randn(2, 3, 9, 8, requires_grad=True), torch.randn(2, 3, 9, 8)
        gradients = []
        for watched in (False, True):
            with torch.autograd.profiler.profile(enabled=watched):
                gradients += torch.autograd.grad(3 * distill_loss(student, teacher), student)
        assert torch.equal(*gradients)
