"""Calls that leave out torch's dispatcher: taken in plain eager mode, with the same bits and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from helpers.small_problems import NAMES, problem
from helpers.ways import GRADIENT_BY_FORWARD, assert_same, both, by_dispatcher, gradient_op_of, noted, op_of
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from posekd import ops


@pytest.fixture
def short() -> Iterator[list[str]]:
    with noted() as taken:
        yield taken


@pytest.mark.parametrize("name", NAMES)
class TestPlainEagerMode:
    def test_takes_the_short_way_there_and_back(self, name: str, short: list[str]) -> None:
        x, call = problem(name)
        both(call, x)
        assert short[0] == op_of(name)
        assert set(short[1:]) == (set() if name in GRADIENT_BY_FORWARD else {gradient_op_of(name)})

    def test_and_without_a_gradient(self, name: str, short: list[str]) -> None:
        x, call = problem(name)
        with torch.no_grad():
            y = call(x.requires_grad_())
        assert short == [op_of(name)]
        assert not y.requires_grad

    def test_a_parameter_is_a_tensor(self, name: str, short: list[str]) -> None:
        x, call = problem(name)
        call(torch.nn.Parameter(x)).sum().backward()
        assert short[0] == op_of(name)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
    def test_gives_the_dispatchers_bits(self, name: str, dtype: torch.dtype, layout: str, short: list[str]) -> None:
        x, call = problem(name, dtype)
        if layout == "channels_last":
            x = x.to(memory_format=torch.channels_last)
        elif layout == "sliced":
            x = torch.cat([x, x], 3)[..., ::2][..., : x.shape[3]]
        straight = both(call, x)
        count = len(short)
        with by_dispatcher():
            dispatched = both(call, x)
        assert len(short) == count > 0
        assert_same(straight, dispatched)

    def test_a_second_backward_gives_the_first(self, name: str) -> None:
        x, call = problem(name)
        x = x.requires_grad_()
        y = call(x)
        upstream = torch.full_like(y, 0.375)
        first = torch.autograd.grad(y, x, upstream, retain_graph=True)[0].clone()
        second = torch.autograd.grad(y, x, upstream)[0]
        torch.testing.assert_close(second, first, rtol=1e-6, atol=1e-9)
        with by_dispatcher():
            y = call(x)
            other = [torch.autograd.grad(y, x, upstream, retain_graph=True)[0].clone() for _ in range(2)]
        assert torch.equal(first, other[0])
        assert torch.equal(second, other[1])

    def test_double_backward_is_refused_with_the_same_sentence(self, name: str) -> None:
        x, call = problem(name)

        def sentence() -> str:
            own = x.detach().requires_grad_()
            y = call(own)
            upstream = torch.ones_like(y, requires_grad=True)
            (gradient,) = torch.autograd.grad(y, own, upstream, create_graph=True)
            with pytest.raises(RuntimeError) as raised:
                gradient.sum().backward()
            return str(raised.value).splitlines()[0]

        straight = sentence()
        assert "is itself a derivative, and has none: double backward is not supported" in straight
        with by_dispatcher():
            assert sentence() == straight

    def test_the_result_may_be_changed_in_place(self, name: str) -> None:
        x, call = problem(name)
        straight = both(lambda x: call(x).mul_(2), x)
        with by_dispatcher():
            assert_same(straight, both(lambda x: call(x).mul_(2), x))

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_under_activation_checkpointing(self, name: str, reentrant: bool, short: list[str]) -> None:
        x, call = problem(name)
        call(x.requires_grad_()).sum().backward()
        assert x.grad is not None
        plain, x.grad = x.grad, None
        short.clear()
        checkpoint(lambda x: call(x * 1), x, use_reentrant=reentrant).sum().backward()
        assert torch.equal(x.grad, plain)
        # Once more in the backward pass, unless nothing is asked for that was left out.
        again = reentrant or name not in GRADIENT_BY_FORWARD
        assert short.count(op_of(name)) == 1 + again

    def test_with_saved_tensors_elsewhere(self, name: str) -> None:
        x, call = problem(name)
        plain = both(call, x)
        packed: list[Tensor] = []

        def pack(tensor: Tensor) -> Tensor:
            packed.append(tensor)
            return tensor.clone()

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor.clone()):
            assert_same(both(call, x), plain)
        assert packed
        with torch.autograd.graph.save_on_cpu():
            assert_same(both(call, x), plain)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast_changes_neither_dtype_nor_bits(self, name: str, dtype: torch.dtype) -> None:
        x, call = problem(name)
        plain = both(call, x)
        with torch.autocast("cpu", dtype=dtype):
            straight = both(call, x)
            with by_dispatcher():
                dispatched = both(call, x)
        assert_same(straight, plain)
        assert_same(dispatched, plain)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in GRADIENT_BY_FORWARD])
def test_after_a_freed_graph_torch_speaks(name: str) -> None:
    x, call = problem(name)
    y = call(x.requires_grad_()).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def _of_any_size(name: str, x: Tensor) -> tuple[Tensor, ...]:
    """The op of maps `[N, C, H, W]`, its other arguments made to fit them."""
    N, C, H, W = x.shape
    other = torch.linspace(-1, 1, x.numel()).reshape(x.shape).flip(3)
    boxes = torch.tensor([[0.0, 0.0, 0.0, W / 2, H], [max(N - 1, 0), -1.0, 0.5, W, H / 3]])[: 2 if N else 0]
    keypoints = torch.linspace(0, 6, N * 4 * C * 3).reshape(N, 4, C, 3)
    targets = torch.linspace(0, 1, 2 * len(boxes) * C * 6).reshape(2, len(boxes), C, 3, 2)
    points = x[:, :, :1, :1].expand(N, C, 2, 2)
    people, logits = boxes[:, None, 1:].expand(len(boxes), 2, 4)[:1].expand(N, 2, 4), x[:, :1].expand(N, 3, H, W)
    calls: dict[str, Callable[[], Tensor | tuple[Tensor, ...]]] = {
        "corner_pool": lambda: ops.corner_pool(x, "right", ties="last"),
        "corner_pool_add": lambda: ops.corner_pool_add(x, other, "bottom"),
        "corner_pool_sum": lambda: ops.corner_pool_sum(x, other, ("top", "left"), ties="last"),
        "center_pool": lambda: ops.center_pool(x, other),
        "roi_align": lambda: ops.roi_align(x, boxes, (2, 3), 0.7, 2, False),
        "distill_loss": lambda: ops.distill_loss(x, other, keypoints=keypoints[:, 0], kind="exact", return_terms=True),
        "mimic_loss": lambda: ops.mimic_loss(x, boxes, targets, torch.full(targets.shape[:3], 0.5), 0.5),
        "tag_loss": lambda: ops.tag_loss(x, keypoints, kind="max"),
        "center_focal_loss": lambda: ops.center_focal_loss(
            logits, people, torch.full((N,), 2), radius="cornernet", return_terms=True
        ),
        "simulated_heatmap_loss": lambda: ops.simulated_heatmap_loss(points[..., 0], points[..., 1], other),
    }
    result = calls[name]()
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 2, 16, 5), (2, 3, 33, 70), (0, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_size_gives_the_dispatchers_bits(name: str, shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(3)).requires_grad_()

    def there_and_back() -> tuple[Tensor, ...]:
        results = _of_any_size(name, x)
        (gradient,) = torch.autograd.grad([y.sum() * 3 for y in results if y.requires_grad], x)
        return (*(y.detach() for y in results), gradient)

    with noted() as short:
        straight = there_and_back()
    assert short
    with by_dispatcher():
        assert_same(straight, there_and_back())


class TestSomeOfTheInputs:
    @pytest.mark.parametrize("wanted", [(True, False), (False, True), (True, True)])
    @pytest.mark.parametrize(
        "name", ["corner_pool_add", "corner_pool_sum", "center_pool", "mimic_loss", "simulated_heatmap_loss"]
    )
    def test_have_the_dispatchers_gradients(self, name: str, wanted: tuple[bool, bool], short: list[str]) -> None:
        rng = torch.Generator().manual_seed(1)
        x = torch.rand(2, 3, 7, 9, generator=rng)
        boxes = torch.tensor([[0.0, 0.3, 0.2, 5.0, 4.0], [1.0, 2.0, 1.0, 7.0, 6.5]])
        maps = torch.rand(2, 3, 5, 4, generator=rng)
        other = torch.rand((2, 2, 3, 4, 5) if name == "mimic_loss" else x.shape, generator=rng)
        calls: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "corner_pool_add": lambda x, y: ops.corner_pool_add(x, y, "right", ties="last"),
            "corner_pool_sum": lambda x, y: ops.corner_pool_sum(x, y, ("bottom", "right")),
            "center_pool": ops.center_pool,
            "mimic_loss": lambda x, y: ops.mimic_loss(x, boxes, y, None, 0.5, return_terms=True)[1] * 3,
            "simulated_heatmap_loss": lambda x, y: ops.simulated_heatmap_loss(x[:, :, 0, :2], y[:, :, 1, :2], maps),
        }

        def gradients() -> list[Tensor | None]:
            inputs = [t.clone().requires_grad_(w) for t, w in zip((x, other), wanted, strict=True)]
            calls[name](*inputs).square().sum().backward()
            return [t.grad for t in inputs]

        straight = gradients()
        assert short
        with by_dispatcher():
            dispatched = gradients()
        assert [g is not None for g in straight] == list(wanted)
        for a, b in zip(straight, dispatched, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)  # type: ignore[arg-type]


def test_a_kernels_own_refusal_comes_through() -> None:
    maps = torch.zeros(1, 1, 4, 4, requires_grad=True)
    with pytest.raises(ValueError, match=r"boxes\[1\] is on image 3, but there are 1 images"):
        ops.roi_align(maps, torch.tensor([[0.0, 0, 0, 2, 2], [3.0, 0, 0, 2, 2]]), 2)
