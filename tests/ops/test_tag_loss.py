"""tag_loss: against a loop over people that follows HigherHRNet's rules one by one, on every backend."""

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
from torch.utils.checkpoint import checkpoint

from posekd.ops import library, tag_loss
from posekd.ops.reference import tag_loss as definition

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
EPS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def person_by_person(tags: Tensor, keypoints: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """HigherHRNet's AE loss: per image, per person, per joint. Autograd gives its gradient.

    The loader's part is here too: `int()` truncation, and joints that are invisible or outside do not exist.
    """
    H, W = tags.shape[2:]
    pulls, pushes = [], []
    for maps, people in zip(tags, keypoints.tolist(), strict=True):
        means, pull = [], maps.sum() * 0
        for person in people:
            seen = []
            for k, (x, y, visibility) in enumerate(person):
                if visibility > 0 and math.isfinite(x) and math.isfinite(y) and 0 <= int(x) < W and 0 <= int(y) < H:
                    seen.append(maps[k if maps.shape[0] > 1 else 0, int(y), int(x)])
            if seen:
                values = torch.stack(seen)
                means.append(values.mean())
                pull = pull + (values - values.mean()).square().mean()
        n, push = len(means), maps.sum() * 0
        for i in range(n):
            for j in range(n):
                if i != j:
                    d = means[i] - means[j]
                    push = push + (torch.exp(-(d**2)) if kind == "exp" else (1 - d.abs()).clamp(min=0))
        pulls.append(pull / n if n else pull)
        pushes.append(0.5 * push / (n * (n - 1)) if n > 1 else push * 0)
    return torch.stack(pulls), torch.stack(pushes)


def make_case(
    B: int = 3, K: int = 4, H: int = 7, W: int = 9, P: int = 5, shared: bool = False, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Tags in [-1, 1], and people of whom some joints are invisible, outside, or at the border between pixels."""
    generator = torch.Generator().manual_seed(seed)
    tags = torch.rand(B, 1 if shared else K, H, W, generator=generator, dtype=torch.float64) * 2 - 1
    position = torch.rand(B, P, K, 2, generator=generator) * torch.tensor([W + 3.0, H + 3.0]) - 2
    visibility = torch.randint(0, 3, (B, P, K, 1), generator=generator).float()
    keypoints = torch.cat([position, visibility], -1)
    if P > 1:
        keypoints[0, 1] = keypoints[0, 0]  # two people on the same pixels
        keypoints[-1, 1:, :, 2] = 0  # an image with at most one person
    if B > 2:
        keypoints[1, :, :, 2] = 0  # and one with nobody
    return tags, keypoints


def losses_and_gradient(function: Any, tags: Tensor, keypoints: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Both losses, and the gradient of a sum that weighs every image and loss differently."""
    leaf = tags.detach().clone().requires_grad_()
    pull, push = function(leaf, keypoints, kind=kind)
    weights = torch.arange(1.0, 2 * len(pull) + 1, device=pull.device, dtype=pull.dtype)
    ((pull * weights[: len(pull)]).sum() + (push * weights[len(pull) :]).sum()).backward()
    return pull.detach(), push.detach(), leaf.grad


class TestAgainstTheLoop:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("kind", ["exp", "max"])
    @pytest.mark.parametrize("shared", [False, True], ids=["a map a joint", "one shared map"])
    def test_losses_and_gradient(self, backend: backends.Backend, shared: bool, kind: str, dtype: torch.dtype) -> None:
        if dtype == torch.float64 and not backend.float64:
            pytest.skip("float64 is for the CPU")
        tags, keypoints = make_case(shared=shared)
        tags = tags.to(dtype)  # as this dtype holds them; only the arithmetic is judged
        ref64 = losses_and_gradient(person_by_person, tags.double(), keypoints, kind)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        low = losses_and_gradient(person_by_person, tags.to(wide), keypoints, kind)
        ours = losses_and_gradient(tag_loss, tags.to(backend.device), keypoints.to(backend.device), kind)
        assert ours[0].dtype == ours[1].dtype == wide
        assert ours[2].dtype == dtype
        for found, plain, wanted, eps in zip(ours, low, ref64, (EPS[wide], EPS[wide], EPS[dtype]), strict=True):
            backends.assert_as_good_as_torch(found, plain, wanted, eps)

    @pytest.mark.parametrize(
        "shape", [(1, 1, 1, 1, 1), (1, 17, 16, 12, 40), (2, 33, 5, 3, 2), (5, 2, 3, 3, 9), (1, 2, 70, 64, 5)], ids=str
    )
    def test_sizes(self, backend: backends.Backend, shape: tuple[int, int, int, int, int]) -> None:
        tags, keypoints = make_case(*shape)
        ref64 = losses_and_gradient(person_by_person, tags, keypoints, "exp")
        ours = losses_and_gradient(tag_loss, tags.float().to(backend.device), keypoints.to(backend.device), "exp")
        for found, wanted in zip(ours, ref64, strict=True):
            torch.testing.assert_close(found.cpu().double(), wanted, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("kind", ["exp", "max"])
    def test_the_definition_agrees(self, kind: str) -> None:
        tags, keypoints = make_case()
        expected = losses_and_gradient(person_by_person, tags, keypoints, kind)
        function = lambda tags, keypoints, kind: definition.tag_loss(tags, keypoints, kind == "exp")  # noqa: E731
        for found, wanted in zip(losses_and_gradient(function, tags, keypoints, kind), expected, strict=True):
            torch.testing.assert_close(found, wanted)


def people_at(*positions: list[tuple[float, float]]) -> Tensor:
    """One image of people with visible joints at these positions: `[1, P, K, 3]`."""
    return torch.tensor([[[(x, y, 1.0) for x, y in person] for person in positions]])


class TestMeaning:
    """Numbers that can be worked out by hand."""

    def test_two_people_of_two_joints(self, backend: backends.Backend) -> None:
        tags = torch.tensor([[0.0, 1.0], [2.0, 4.0]], device=backend.device).view(1, 2, 1, 2)
        keypoints = people_at([(0, 0), (0, 0)], [(1, 0), (1, 0)]).to(backend.device)
        pull, push = tag_loss(tags, keypoints)
        # people (0, 2) and (1, 4): means 1 and 2.5, mean squared distances 1 and 2.25; 0.5 exp(-1.5^2) between them
        assert pull.item() == pytest.approx((1 + 2.25) / 2)
        assert push.item() == pytest.approx(0.5 * math.exp(-2.25), rel=1e-6)
        assert tag_loss(tags, keypoints, kind="max")[1].item() == 0  # 1.5 apart

    def test_kind_max(self, backend: backends.Backend) -> None:
        tags = torch.tensor([0.0, 0.25, 0.25], device=backend.device).view(1, 1, 1, 3)
        keypoints = people_at([(0, 0)], [(1, 0)], [(2, 0)]).to(backend.device)
        # pairs 0.75, 0.75, 1, each twice, and 0.5 / (3 * 2)
        assert tag_loss(tags, keypoints, kind="max")[1].item() == pytest.approx(0.5 * 5 / 6)

    def test_nobody_and_one_person(self, backend: backends.Backend) -> None:
        tags = torch.tensor([1.0, 3.0], device=backend.device).view(1, 2, 1, 1).expand(2, 2, 1, 1).contiguous()
        keypoints = torch.zeros(2, 3, 2, 3, device=backend.device)
        keypoints[1, 2, :, 2] = 2
        pull, push = tag_loss(tags, keypoints)
        assert pull.tolist() == [0.0, 1.0]
        assert push.tolist() == [0.0, 0.0]

    def test_positions_are_truncated_and_what_lies_outside_is_ignored(self, backend: backends.Backend) -> None:
        tags = torch.tensor([10.0, 20.0], device=backend.device).view(1, 1, 1, 2)
        for x, y, expected in (
            (0.99, 0.0, 10),
            (1.99, 0.99, 20),
            (-0.99, -0.5, 10),  # int() goes toward zero
            (-1.0, 0.0, None),
            (2.0, 0.0, None),
            (0.0, 1.0, None),
            (math.nan, 0.0, None),
            (math.inf, 0.0, None),
            (0.0, -math.inf, None),
        ):
            leaf = tags.clone().requires_grad_()
            # Against a person at 0 on a second map: pull 0, and a push that tells the tag.
            keypoints = people_at([(x, y)]).to(backend.device)
            pull, push = tag_loss(leaf, torch.cat([keypoints, people_at([(0.0, 0.0)]).to(backend.device)], 1))
            other = 0.0 if expected is None else 0.5 * math.exp(-((expected - 10.0) ** 2))
            assert pull.item() == 0
            assert push.item() == pytest.approx(other, abs=1e-30)

    def test_people_on_one_pixel_add_up(self, backend: backends.Backend) -> None:
        """Joint 0 of two people at one pixel, their joints 1 apart: the gradient is that of a shared variable."""
        tags = torch.tensor([[0.5, 0.0], [1.0, -2.0]], device=backend.device).view(1, 2, 1, 2).requires_grad_()
        keypoints = people_at([(0, 0), (0, 0)], [(0, 0), (1, 0)]).to(backend.device)
        tag_loss(tags, keypoints)[0].sum().backward()
        # d/dt of 1/2 [((t - a) / 2)^2 + ((t - b) / 2)^2], t = 0.5, a = 1, b = -2
        assert tags.grad[0, 0, 0].tolist() == pytest.approx([(0.5 - 1 + 0.5 + 2) / 4, 0])

    def test_a_shared_map_collects_all_joints_of_a_pixel(self, backend: backends.Backend) -> None:
        tags = torch.tensor([0.0, 1.0], device=backend.device).view(1, 1, 1, 2).requires_grad_()
        keypoints = people_at([(0, 0), (0, 0), (1, 0)]).to(backend.device)
        pull, _ = tag_loss(tags, keypoints)
        pull.sum().backward()
        assert pull.item() == pytest.approx(2 / 9)  # tags 0, 0, 1
        assert tags.grad.flatten().tolist() == pytest.approx([-4 / 9, 4 / 9])

    def test_half_gradients_add_up_before_they_are_rounded(self, backend: backends.Backend) -> None:
        """A thousand joints of a pixel, each of 1/1024 of it: in float16 the running sum would lose most of them."""
        people = 600
        tags = torch.tensor([0.0, 2.0], device=backend.device).view(1, 1, 1, 2).half().requires_grad_()
        keypoints = people_at(*[[(0, 0), (1, 0)]] * people).to(backend.device)
        (tag_loss(tags, keypoints)[0].sum() * 1000).backward()
        # each person: d pull / d t = 2 (t - m) / (2 P) = -1 / P at the first pixel
        assert tags.grad.flatten().tolist() == pytest.approx([-1000, 1000], rel=1e-3)


class TestBroken:
    @pytest.mark.parametrize("kind", ["exp", "max"])
    def test_nan_at_a_joint_shows_and_elsewhere_does_no_harm(self, backend: backends.Backend, kind: str) -> None:
        tags, keypoints = make_case(B=2)
        tags, keypoints = tags.float().to(backend.device), keypoints.to(backend.device)
        keypoints[0, 0, 0] = torch.tensor([2.0, 3.0, 1.0])
        keypoints[0, 2, 1] = torch.tensor([4.0, 1.0, 1.0])
        tags[0, 0, 3, 2] = math.nan
        pull, push = tag_loss(tags, keypoints, kind=kind)
        assert pull[0].isnan()
        assert push[0].isnan()
        assert pull[1].isfinite()
        keypoints[..., 2] = 0
        assert torch.stack(tag_loss(tags, keypoints, kind=kind)).eq(0).all()

    @pytest.mark.parametrize("shape", [(0, 2, 3, 3, 2), (2, 2, 3, 3, 0), (1, 2, 0, 3, 2)], ids=str)
    def test_empty(self, backend: backends.Backend, shape: tuple[int, ...]) -> None:
        B, K, H, W, P = shape
        tags = torch.zeros(B, K, H, W, device=backend.device, requires_grad=True)
        pull, push = tag_loss(tags, torch.ones(B, P, K, 3, device=backend.device))
        (pull.sum() + push.sum()).backward()
        assert pull.tolist() == push.tolist() == [0.0] * B
        assert (tags.grad == 0).all()
        assert tags.grad.shape == tags.shape

    @pytest.mark.parametrize("layout", ["transposed", "channels_last", "sliced"])
    def test_memory_layouts(self, backend: backends.Backend, layout: str) -> None:
        tags, keypoints = make_case(2, 4, 6, 8)
        tags, keypoints = tags.float().to(backend.device), keypoints.to(backend.device)
        changed = {
            "transposed": tags.transpose(2, 3).contiguous().transpose(2, 3),
            "channels_last": tags.contiguous(memory_format=torch.channels_last),
            "sliced": torch.cat([tags, tags], 3)[..., :8],
        }[layout]
        assert not changed.is_contiguous()
        twice = torch.cat([keypoints, keypoints], -1)[..., :3]
        gradients = []
        for maps, people in ((changed, twice), (tags, keypoints)):
            leaf = maps.detach().requires_grad_()
            pull, push = tag_loss(leaf, people)
            (pull + push).sum().backward()
            gradients.append(leaf.grad)
        assert torch.equal(*gradients)


class TestAutograd:
    @pytest.mark.parametrize("kind", ["exp", "max"])
    @pytest.mark.parametrize("shared", [False, True])
    def test_gradcheck(self, kind: str, shared: bool) -> None:
        tags, keypoints = make_case(2, 3, 4, 5, 4, shared)
        assert torch.autograd.gradcheck(lambda t: tag_loss(t, keypoints, kind=kind), (tags.requires_grad_(),))

    def test_one_of_the_losses_alone(self) -> None:
        tags, keypoints = make_case()
        for index in (0, 1):
            ours, plain = (tags.clone().requires_grad_() for _ in range(2))
            tag_loss(ours, keypoints)[index].sum().backward()
            person_by_person(plain, keypoints, "exp")[index].sum().backward()
            torch.testing.assert_close(ours.grad, plain.grad)

    def test_the_edge_of_max_is_that_of_clamp(self) -> None:
        """At a distance of exactly 1, and of 0, the slopes are those that autograd gives the plain form."""
        for second in (1.0, 0.0):
            tags = torch.tensor([0.0, second], dtype=torch.float64).view(1, 1, 1, 2)
            keypoints = people_at([(0, 0)], [(1, 0)])
            ours = losses_and_gradient(tag_loss, tags, keypoints, "max")
            plain = losses_and_gradient(person_by_person, tags, keypoints, "max")
            torch.testing.assert_close(ours, plain, rtol=0, atol=0)

    def test_the_same_bits_every_time_and_with_any_threads(self) -> None:
        tags, keypoints = make_case(8, 17, 64, 64, 30)
        results = []
        for count in (1, 2, 2):
            with threads(count):
                results.append(losses_and_gradient(tag_loss, tags.float(), keypoints, "exp"))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))

    def test_grad_scaler_keeps_half_gradients(self, backend: backends.Backend) -> None:
        """Of a loss weighted by 1e-8 every slope is 0 in float16 if it is rounded before the scale multiplies."""
        tags, keypoints = make_case()
        leaf = tags.half().to(backend.device).requires_grad_()
        pull, push = tag_loss(leaf, keypoints.to(backend.device))
        ((pull + push).sum() * 1e-8 * 2.0**16).backward()
        plain = tags.half().double().requires_grad_()
        pull, push = person_by_person(plain, keypoints, "exp")
        ((pull + push).sum() * 1e-8 * 2.0**16).backward()
        assert (plain.grad * 2.0**-16).half().eq(0).all()
        torch.testing.assert_close(leaf.grad.cpu().double(), plain.grad, rtol=2e-3, atol=1e-7)

    def test_double_backward_is_a_clear_error(self) -> None:
        tags, keypoints = make_case()
        tags.requires_grad_()
        (gradient,) = torch.autograd.grad(tag_loss(tags, keypoints)[0].sum(), tags, create_graph=True)
        with pytest.raises(RuntimeError, match="double backward is not supported"):
            torch.autograd.grad(gradient.sum(), tags)


class TestTorchIntegration:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
    def test_opcheck(self, layout: torch.memory_format, dtype: torch.dtype) -> None:
        tags, keypoints = make_case(2, 3, 4, 5, 3)
        tags = tags.to(dtype).contiguous(memory_format=layout)
        torch.library.opcheck(torch.ops.posekd.tag_loss, (tags.clone().requires_grad_(), keypoints, True))
        _, _, pull_slope, push_slope = torch.ops.posekd.tag_loss(tags, keypoints, True)
        upstream = torch.ones(2)
        torch.library.opcheck(
            torch.ops.posekd.tag_loss_backward,
            (upstream, upstream, pull_slope, push_slope, keypoints, tags),
        )

    @pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
    def test_compile_without_graph_breaks(self, compiler: str) -> None:
        tags, keypoints = make_case()

        def loss(tags: Tensor, keypoints: Tensor) -> Tensor:
            pull, push = tag_loss(tags * 2, keypoints)
            return (pull + push).mean()

        gradients = []
        for function in (loss, torch.compile(loss, fullgraph=True, backend=compiler)):
            leaf = tags.float().requires_grad_()
            function(leaf, keypoints).backward()
            gradients.append(leaf.grad)
        torch.testing.assert_close(*gradients)

    def test_activation_checkpointing(self) -> None:
        tags, keypoints = make_case()
        gradients = []
        for use in (lambda f, x: f(x), lambda f, x: checkpoint(f, x, use_reentrant=False)):
            leaf = tags.clone().requires_grad_()
            use(lambda x: sum(loss.sum() for loss in tag_loss(x, keypoints)), leaf).backward()
            gradients.append(leaf.grad)
        assert torch.equal(*gradients)

    def test_export_keeps_the_op(self) -> None:
        class Loss(torch.nn.Module):
            def forward(self, tags: Tensor, keypoints: Tensor) -> tuple[Tensor, Tensor]:
                return tag_loss(tags, keypoints)

        inputs = tuple(x.float() for x in make_case())
        batch = torch.export.Dim("batch")
        program = torch.export.export(Loss(), inputs, dynamic_shapes=({0: batch}, {0: batch}))
        assert "posekd.tag_loss" in str(program.graph)
        torch.testing.assert_close(program.module()(*inputs), tag_loss(*inputs))

    @pytest.mark.parametrize("kind", ["exp", "max"])
    def test_without_the_core_the_definition_serves(self, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
        tags, keypoints = make_case()
        results = []
        for core in (library._core, None):
            monkeypatch.setattr(library, "_core", core)
            results.append(losses_and_gradient(tag_loss, tags.float(), keypoints, kind))
        torch.testing.assert_close(*results)

    def test_autocast_takes_half_tags_and_returns_float32(self) -> None:
        conv = torch.nn.Conv2d(3, 4, 1)
        _, keypoints = make_case()
        with torch.autocast("cpu", torch.bfloat16):
            pull, push = tag_loss(conv(torch.rand(3, 3, 7, 9)), keypoints)
        assert pull.dtype == push.dtype == torch.float32
        (pull + push).sum().backward()
        assert conv.weight.grad.isfinite().all()


class TestProperties:
    @settings(max_examples=40, deadline=None)
    @given(
        K=st.integers(1, 5),
        P=st.integers(1, 8),
        kind=st.sampled_from(["exp", "max"]),
        shared=st.booleans(),
        seed=st.integers(0, 10**6),
    )
    def test_shifts_people_and_bounds(self, K: int, P: int, kind: str, shared: bool, seed: int) -> None:
        tags, keypoints = make_case(3, K, 6, 5, P, shared, seed)
        tags.requires_grad_()
        pull, push = tag_loss(tags, keypoints, kind=kind)
        assert (pull >= 0).all()
        assert ((push >= 0) & (push <= 0.5)).all()
        (pull + push).sum().backward()
        torch.testing.assert_close(
            tags.grad.sum((1, 2, 3)), torch.zeros(3, dtype=torch.float64)
        )  # shifts change nothing
        order = torch.randperm(P, generator=torch.Generator().manual_seed(seed))
        shifted = tag_loss(tags + 3, keypoints[:, order], kind=kind)
        torch.testing.assert_close(shifted, (pull, push))


TAGS, PEOPLE = torch.rand(2, 3, 4, 5), torch.rand(2, 6, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((TAGS[0], PEOPLE), ValueError, r"tags must have 4 dimensions .* \(3, 4, 5\)"),
        ((TAGS.int(), PEOPLE), TypeError, "tags must be float32.* got int32"),
        (([1.0], PEOPLE), TypeError, "tags must be a torch.Tensor, got list"),
        ((TAGS, PEOPLE[0]), ValueError, r"keypoints must have 4 dimensions .* \(6, 3, 3\)"),
        ((TAGS, PEOPLE[..., :2]), ValueError, r"keypoints must have shape \(2, 6, 3, 3\)"),
        ((TAGS, PEOPLE[:1]), ValueError, r"keypoints must have shape \(2, 6, 3, 3\) .* got \(1, 6, 3, 3\)"),
        ((TAGS[:, :2], PEOPLE), ValueError, r"tags must have shape \(2, 3, 4, 5\) to match keypoints"),
        ((TAGS, PEOPLE.to("meta")), ValueError, "keypoints is on meta, but tags is on cpu"),
    ],
)
def test_bad_input_gets_a_sentence(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tag_loss(*arguments)


def test_a_bad_kind_gets_a_sentence() -> None:
    with pytest.raises(ValueError, match="kind must be one of 'exp', 'max', got 'exponential'"):
        tag_loss(TAGS, PEOPLE, kind="exponential")
