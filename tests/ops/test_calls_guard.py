"""Where torch's dispatcher has work to do, a call is not short: what is at work, and what another torch may lack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import torch
from helpers.small_problems import NAMES, problem
from helpers.ways import GRADIENT_BY_FORWARD, Call, assert_same, both, gradient_op_of, noted
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from posekd.ops import library


@pytest.fixture
def short() -> Iterator[list[str]]:
    with noted() as taken:
        yield taken


class _Seen(TorchDispatchMode):
    """Notes the ops of posekd that reach the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if function.namespace == "posekd":
            self.ops.append(function._schema.name.split("::")[1])
        return function(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return function(*args, **(kwargs or {}))


class _Tagged(Tensor):
    """A subclass with nothing of its own."""


def _compiled(call: Call, x: Tensor) -> Tensor:
    torch._dynamo.reset()
    return torch.compile(call, fullgraph=True, backend="eager")(x)


def _exported(call: Call, x: Tensor) -> Tensor:
    class Module(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return call(x)

    program = torch.export.export(Module(), (x,), strict=False)
    assert any(str(node.target).startswith("posekd.") for node in program.graph.nodes)
    return program.module()(x)


def _traced(call: Call, x: Tensor) -> Tensor:
    graph = make_fx(lambda x: call(x))(x)
    assert any(str(node.target).startswith("posekd.") for node in graph.graph.nodes)
    return graph(x)


def _watched(call: Call, x: Tensor) -> Tensor:
    with _Seen() as seen:
        y = call(x)
    assert seen.ops
    return y


def _under(context: Callable[[], AbstractContextManager[object]]) -> Callable[[Call, Tensor], Tensor]:
    def run(call: Call, x: Tensor) -> Tensor:
        with context():
            return call(x)

    return run


def _mapped(call: Call, x: Tensor) -> Tensor:
    return torch.func.vmap(call)(x[None])[0]


def _negated(call: Call, x: Tensor) -> Tensor:
    return call(torch._neg_view(-x))


def _tagged(call: Call, x: Tensor) -> Tensor:
    y = call(x.as_subclass(_Tagged))
    assert type(y) is _Tagged
    return y.as_subclass(Tensor)


AT_WORK: dict[str, Callable[[Call, Tensor], Tensor]] = {
    "compile": _compiled,
    "export": _exported,
    "make_fx": _traced,
    "dispatch mode": _watched,
    "function mode": _under(_Functions),
    "default device": _under(lambda: torch.device("cpu")),
    "dual level": _under(forward_ad.dual_level),
    "inference mode": _under(torch.inference_mode),
    "profiler": _under(torch.autograd.profiler.profile),
    "vmap": _mapped,
    "negated view": _negated,
    "subclass": _tagged,
}


@pytest.mark.parametrize("name", NAMES)
class TestWhereTheDispatcherHasWork:
    @pytest.mark.parametrize("what", AT_WORK)
    @pytest.mark.filterwarnings("ignore:There is a performance drop")
    def test_it_is_asked_and_answers_the_same(self, name: str, what: str, short: list[str]) -> None:
        x, call = problem(name)
        plain = call(x)
        short.clear()
        y = AT_WORK[what](call, x)
        assert short == []
        torch.testing.assert_close(y.clone(), plain, rtol=1e-6, atol=1e-7)

    def test_fake_tensors_have_shapes_and_no_kernel(self, name: str, short: list[str]) -> None:
        x, call = problem(name)
        shape = call(x).shape
        short.clear()
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            assert call(mode.from_tensor(x)).shape == shape
        assert short == []

    @pytest.mark.parametrize("transform", ["grad", "jvp"])
    def test_functorch_reaches_its_refusal(self, name: str, transform: str, short: list[str]) -> None:
        x, call = problem(name)
        derivatives: dict[str, Callable[[], object]] = {
            "grad": lambda: torch.func.grad(lambda x: call(x).sum())(x),
            "jvp": lambda: torch.func.jvp(call, (x,), (x,)),
        }
        with pytest.raises(RuntimeError, match=r"posekd::\w+ (takes no part in|has no forward-mode derivative)"):
            derivatives[transform]()
        assert short == []

    @pytest.mark.filterwarnings("ignore:There is a performance drop")
    def test_batched_upstream_gradients(self, name: str) -> None:
        x, call = problem(name)
        x = x.requires_grad_()
        upstream = torch.stack([torch.ones_like(call(x)), torch.full_like(call(x), -2.0)])
        batched = torch.autograd.grad(call(x), x, upstream, is_grads_batched=True)[0]
        for own, one in zip(upstream, batched, strict=True):
            torch.testing.assert_close(one, torch.autograd.grad(call(x), x, own)[0], rtol=1e-6, atol=1e-8)

    def test_a_wrapper_that_outlived_its_transform(self, name: str) -> None:
        x, call = problem(name)
        kept: list[Tensor] = []
        torch.func.grad(lambda x: kept.append(x) or x.sum())(x)  # type: ignore[func-returns-value]
        torch.testing.assert_close(call(kept[0]), call(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in GRADIENT_BY_FORWARD])
def test_a_mode_in_the_backward_pass_alone(name: str, short: list[str]) -> None:
    x, call = problem(name)
    x = x.requires_grad_()
    y = call(x)
    short.clear()
    with _Seen() as seen:
        torch.autograd.grad(y.sum(), x)
    assert set(seen.ops) == {gradient_op_of(name)}
    assert short == []


class TestAnotherTorch:
    """What the guard asks of torch is not promised to stay: without it, every call takes the dispatcher."""

    MISSING = (
        (torch._C, "DispatchKey"),
        (torch._C, "DispatchKeySet"),
        (torch._C, "_dispatch_tls_local_include_set"),
        (torch._C, "_dispatch_tls_is_dispatch_key_excluded"),
        (torch._C, "_dispatch_keys"),
        (torch._C, "_len_torch_function_stack"),
        (forward_ad, "_current_level"),
        (torch.autograd.profiler, "_is_profiler_enabled"),
    )

    @pytest.mark.parametrize(("owner", "name"), MISSING, ids=[name for _, name in MISSING])
    def test_a_missing_name_leaves_the_dispatcher(
        self, owner: object, name: str, monkeypatch: pytest.MonkeyPatch, short: list[str]
    ) -> None:
        x, call = problem("corner_pool")
        plain = both(call, x)
        assert short
        with pytest.MonkeyPatch.context() as patch:
            patch.delattr(owner, name)
            guard = library._guard()
        assert guard((x,)) is None
        monkeypatch.setattr(library, "_plain_device", guard)
        short.clear()
        assert_same(both(call, x), plain)
        assert short == []

    def test_other_dispatch_keys_leave_the_dispatcher(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x, _ = problem("corner_pool")
        assert library._guard()((x,)) == "cpu"
        monkeypatch.setattr(torch._C, "_dispatch_keys", lambda x: torch._C.DispatchKeySet(torch._C.DispatchKey.CPU))
        assert library._guard()((x,)) is None


def test_what_is_no_plain_argument_leaves_the_dispatcher() -> None:
    x = torch.zeros(2)
    assert library.plain_device((x, None, 1, 2.0, True, x.shape)) == "cpu"
    for other in ([1, 2], "top", x.to("meta"), x.as_subclass(_Tagged), x.to_sparse(), object()):
        assert library.plain_device((x, other)) is None


def test_below_autograd_there_is_no_derivative_to_make(short: list[str]) -> None:
    x, call = problem("center_pool")
    with torch._C._AutoDispatchBelowAutograd():
        assert not call(x.requires_grad_()).requires_grad
    assert short == []
