"""oks, oks_nms, soft_oks_nms: HRNet's rules, against loops over poses written from them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers import backends
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from posekd.ops import library, oks, oks_nms, soft_oks_nms
from posekd.ops.oks import COCO_SIGMAS
from posekd.ops.reference import oks as definition
from posekd.skeleton import COCO


def people(N: int = 12, K: int = 17, seed: int = 0, copies: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Poses, scores, areas: `copies` slightly moved versions of each person."""
    rng = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.rand(*shape, generator=rng, dtype=torch.float64)  # noqa: E731
    base = random(max(N // copies, 1), 1, K, 3) * 200
    poses = (base + random(base.shape[0], copies, K, 3) * 12).flatten(0, 1)[:N]
    return poses, random(len(poses)), random(len(poses)) * 4000 + 2000


def similarity(a: np.ndarray, b: np.ndarray, area_a: float, area_b: float, sigmas: Any = COCO_SIGMAS) -> float:
    """`oks_iou` of deep-high-resolution-net.pytorch, lib/nms/nms.py, without the visibility filter."""
    variances = (np.asarray(sigmas) * 2) ** 2
    d = ((a[:, :2] - b[:, :2]) ** 2).sum(-1)
    return float(np.mean(np.exp(-d / variances / ((area_a + area_b) / 2 + np.spacing(1)) / 2)))


def hard_by_loops(poses: Tensor, scores: Tensor, areas: Tensor, threshold: float) -> list[int]:
    p, a = poses.numpy(), areas.numpy()
    kept: list[int] = []
    for i in sorted(range(len(p)), key=lambda i: -float(scores[i])):
        if all(similarity(p[stays], p[i], a[stays], a[i]) <= threshold for stays in kept):
            kept.append(i)
    return kept


def soft_by_loops(poses: Tensor, scores: Tensor, areas: Tensor, threshold: float, most: int) -> list[int]:
    p, s, a = poses.numpy(), scores.double().numpy().copy(), areas.numpy()
    left, taken = list(range(len(p))), []
    while left and len(taken) < most:
        best = max(left, key=lambda i: s[i])
        left.remove(best)
        taken.append(best)
        for i in left:
            s[i] *= math.exp(-(similarity(p[best], p[i], a[best], a[i]) ** 2) / threshold)
    return taken


@pytest.fixture(params=["core", "definition"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything below holds for the C++ kernel and for the plain definition."""
    if request.param == "definition":
        monkeypatch.setattr(library, "_core", None)
    return request.param


class TestOks:
    def test_by_hand(self) -> None:
        """One keypoint, d = 10, sigma 0.5, areas 100 and 300: exp(-100 / 1 / 200 / 2) = exp(-1/4)."""
        a, b = torch.tensor([[[0.0, 0, 1]]]), torch.tensor([[[6.0, 8, 1]], [[0, 0, 0]]])
        result = oks(a, b, torch.tensor([100.0]), torch.tensor([300.0, 100]), sigmas=[0.5])
        torch.testing.assert_close(result, torch.tensor([[math.exp(-0.25), 1.0]]).double())

    @pytest.mark.parametrize("K", [1, 5, 14, 17, 133])
    def test_against_loops(self, K: int) -> None:
        poses, _, areas = people(7, K)
        others, _, other_areas = people(5, K, seed=1)
        sigmas = COCO_SIGMAS if K == 17 else [0.05 + 0.001 * k for k in range(K)]
        result = oks(poses, others, areas, other_areas, None if K == 17 else sigmas)
        expected = [
            [similarity(p, q, s, t, sigmas) for q, t in zip(others.numpy(), other_areas.tolist(), strict=True)]
            for p, s in zip(poses.numpy(), areas.tolist(), strict=True)
        ]
        torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64))

    def test_the_default_sigmas_are_those_of_the_skeleton(self) -> None:
        assert COCO.sigmas == COCO_SIGMAS

    def test_no_poses(self) -> None:
        poses, _, areas = people()
        assert oks(poses[:0], poses, areas[:0], areas).shape == (0, len(poses))

    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 10**6), K=st.integers(1, 20))
    def test_symmetric_one_at_home_within_0_and_1(self, seed: int, K: int) -> None:
        poses, _, areas = people(6, K, seed)
        result = oks(poses, poses, areas, areas, [0.07] * K)
        torch.testing.assert_close(result, result.T)
        torch.testing.assert_close(result.diag(), torch.ones(len(poses)).double())
        assert ((result >= 0) & (result <= 1)).all()


class TestHard:
    seeds = 5

    @pytest.mark.parametrize("threshold", [0.3, 0.6, 0.9, 1.0])
    def test_against_loops(self, threshold: float) -> None:
        for seed in range(self.seeds):
            poses, scores, areas = people(24, seed=seed)
            kept = oks_nms(poses, scores, areas, threshold)
            assert kept.tolist() == hard_by_loops(poses, scores, areas, threshold)
            assert threshold == 1 or len(kept) < 24 or threshold > 0.6

    def test_descending_scores_and_ties_by_index(self) -> None:
        far = (torch.arange(4.0)[:, None, None] * 1e4).expand(4, 17, 3)
        assert oks_nms(far, torch.tensor([0.5, 0.9, 0.5, 0.7]), torch.ones(4), 0.9).tolist() == [1, 3, 0, 2]

    def test_exactly_at_the_threshold_stays(self) -> None:
        poses, areas = torch.zeros(2, 1, 2), torch.ones(2)
        poses[1, 0, 0] = 3.0
        at = oks(poses[:1], poses[1:], areas[:1], areas[1:], [0.6]).item()
        assert oks_nms(poses, torch.tensor([0.9, 0.8]), areas, at, sigmas=[0.6]).tolist() == [0, 1]
        assert oks_nms(poses, torch.tensor([0.9, 0.8]), areas, at * (1 - 1e-12), sigmas=[0.6]).tolist() == [0]

    def test_a_removed_pose_removes_nobody(self) -> None:
        """A chain: 0 is near 1, 1 is near 2, 0 is far from 2."""
        poses = torch.zeros(3, 1, 2)
        poses[:, 0, 0] = torch.tensor([0.0, 1.0, 2.0])
        kept = oks_nms(poses, torch.tensor([0.9, 0.8, 0.7]), torch.ones(3), 0.5, sigmas=[0.5])
        assert kept.tolist() == [0, 2]

    def test_poses_that_are_not_finite_are_removed(self) -> None:
        poses, scores, areas = people(12)
        poses[3, 2, 0], scores[5], areas[8] = math.nan, math.nan, math.inf
        kept = oks_nms(poses, scores, areas, 0.9)
        rest = [i for i in range(12) if i not in (3, 5, 8)]
        assert [rest[i] for i in oks_nms(poses[rest], scores[rest], areas[rest], 0.9)] == kept.tolist()

    def test_padded(self) -> None:
        poses, scores, areas = people(12)
        kept, count = oks_nms(poses, scores, areas, 0.5, padded=True)
        assert kept.shape == (12,)
        assert kept[: int(count)].tolist() == oks_nms(poses, scores, areas, 0.5).tolist()
        assert (kept[int(count) :] == -1).all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
    def test_dtypes_and_layouts(self, dtype: torch.dtype) -> None:
        poses, scores, areas = (x.to(dtype) for x in people(12))
        strided = torch.cat([poses, poses], 2).transpose(0, 1).contiguous().transpose(0, 1)[:, :, :3]
        expected = oks_nms(poses.double(), scores.double(), areas.double(), 0.6).tolist()
        assert oks_nms(strided, scores, areas, 0.6).tolist() == expected

    def test_no_poses(self) -> None:
        assert oks_nms(torch.zeros(0, 17, 3), torch.zeros(0), torch.zeros(0), 0.9).shape == (0,)
        assert soft_oks_nms(torch.zeros(0, 17, 3), torch.zeros(0), torch.zeros(0), 0.9).shape == (0,)

    @settings(max_examples=25, deadline=None)
    @given(seed=st.integers(0, 10**6), threshold=st.floats(0.05, 0.95))
    def test_survivors_are_unlike_each_other_and_the_removed_are_like_one(self, seed: int, threshold: float) -> None:
        poses, scores, areas = people(16, seed=seed)
        kept = oks_nms(poses, scores, areas, threshold)
        pairs = oks(poses, poses, areas, areas)
        own = pairs[kept][:, kept] - torch.eye(len(kept)).double()
        assert (own <= threshold).all()
        removed = [i for i in range(16) if i not in kept.tolist()]
        assert (pairs[kept][:, removed] > threshold).any(0).all()


class TestSoft:
    seeds = 3

    @pytest.mark.parametrize("threshold", [0.05, 0.5, 0.9])
    @pytest.mark.parametrize("most", [1, 5, 20, 50])
    def test_against_loops(self, most: int, threshold: float) -> None:
        for seed in range(self.seeds):
            poses, scores, areas = people(24, seed=seed)
            taken = soft_oks_nms(poses, scores, areas, threshold, max_keep=most)
            assert taken.tolist() == soft_by_loops(poses, scores, areas, threshold, most)

    def test_the_official_code_takes_20(self) -> None:
        assert len(soft_oks_nms(*people(40), 0.9)) == 20

    def test_a_copy_falls_behind_an_unlike_pose(self) -> None:
        poses = torch.zeros(3, 17, 3)
        poses[2] = 1e4
        scores, areas = torch.tensor([0.9, 0.8, 0.3]), torch.full((3,), 100.0)
        assert soft_oks_nms(poses, scores, areas, 0.9).tolist() == [0, 2, 1]  # 0.8 exp(-1 / 0.9) = 0.26

    def test_padded_and_not_finite(self) -> None:
        poses, scores, areas = people(8)
        scores[2] = math.nan
        taken, count = soft_oks_nms(poses, scores, areas, 0.9, padded=True)
        assert int(count) == 7
        assert taken.shape == (8,)
        assert taken[7] == -1
        assert 2 not in taken.tolist()


EMULATED = [pytest.param(f"emu-{order}", marks=pytest.mark.emu) for order in backends.EMULATED]


class InEmulation:
    """The CUDA kernels, in every order of threads."""

    @pytest.fixture(params=EMULATED, autouse=True)
    def implementation(self, request: pytest.FixtureRequest) -> Iterator[str]:
        with backends.use(request.param):
            yield request.param


class TestHardInEmulation(InEmulation, TestHard):
    seeds = 1
    test_survivors_are_unlike_each_other_and_the_removed_are_like_one = None  # by hypothesis, and slow here

    def test_poses_of_many_blocks(self) -> None:
        poses, scores, areas = people(72, seed=3)  # three words of bits, nine blocks
        scores[60:] = scores[48:60].clone()  # ties
        assert oks_nms(poses, scores, areas, 0.5).tolist() == hard_by_loops(poses, scores, areas, 0.5)


class TestSoftInEmulation(InEmulation, TestSoft):
    seeds = 1

    @pytest.mark.parametrize("N", [272, 600])  # clusters of two and four blocks
    def test_poses_of_many_blocks(self, N: int) -> None:
        poses, scores, areas = people(N, seed=3)
        scores[200:272] = scores[100:172].clone()  # ties
        taken = soft_oks_nms(poses, scores, areas, 0.5, max_keep=4)
        assert taken.tolist() == soft_by_loops(poses, scores, areas, 0.5, 4)


class Recorded(TorchDispatchMode):
    """The names of all ops that run under it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


class TestTorchIntegration:
    def test_the_definition_neither_reads_values_back_nor_copies_from_the_host(self) -> None:
        """Either would wait for the GPU, and fail in a CUDA graph."""
        poses, scores, areas = people(6)
        with Recorded() as ran:
            definition.oks(poses[..., :2], poses[..., :2], areas, areas, COCO_SIGMAS)
            definition.oks_nms(poses[..., :2], scores, areas, COCO_SIGMAS, 0.5)
            definition.soft_oks_nms(poses[..., :2], scores, areas, COCO_SIGMAS, 0.5, 4)
        assert "aten::exp" in ran.names
        assert not ran.names & {"aten::_local_scalar_dense", "aten::lift_fresh"}

    def test_opcheck(self) -> None:
        poses, scores, areas = people(6)
        points = poses[..., :2]
        sigmas = list(COCO_SIGMAS)
        torch.library.opcheck(torch.ops.posekd.oks, (points, points, areas, areas, sigmas))
        torch.library.opcheck(torch.ops.posekd.oks_nms, (points, scores, areas, sigmas, 0.5))
        torch.library.opcheck(torch.ops.posekd.soft_oks_nms, (points, scores, areas, sigmas, 0.5, 4))

    @pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
    def test_compile_without_graph_breaks(self, compiler: str, implementation: str) -> None:
        if compiler == "inductor" and implementation == "definition":
            pytest.skip("Inductor once an op")

        def step(poses: Tensor, scores: Tensor, areas: Tensor) -> tuple[Tensor, ...]:
            hard, _ = oks_nms(poses * 2, scores, areas, 0.5, padded=True)
            soft, count = soft_oks_nms(poses, scores, areas, 0.5, padded=True)
            return oks(poses, poses, areas, areas) + 1, hard, soft, count

        compiled = torch.compile(step, fullgraph=True, backend=compiler)
        torch.testing.assert_close(compiled(*people(6)), step(*people(6)))

    def test_export_with_any_number_of_poses(self) -> None:
        class Nms(torch.nn.Module):
            def forward(self, poses: Tensor, scores: Tensor, areas: Tensor) -> tuple[Tensor, Tensor]:
                return oks_nms(poses, scores, areas, 0.5, padded=True)

        N = torch.export.Dim("poses")
        program = torch.export.export(Nms(), people(8), dynamic_shapes=({0: N}, {0: N}, {0: N}))
        assert "posekd.oks_nms" in str(program.graph)
        more = people(12)
        torch.testing.assert_close(program.module()(*more), oks_nms(*more, 0.5, padded=True))

    def test_no_derivative(self) -> None:
        poses, _, areas = people(4)
        assert not oks(poses.requires_grad_(), poses, areas, areas).requires_grad


POSES, SCORES, AREAS = people(4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: oks(POSES[0], POSES, AREAS, AREAS), ValueError, r"a must have 3 dimensions \[N, K, 3\]"),
        (lambda: oks(POSES, POSES[:, :5], AREAS, AREAS), ValueError, r"a has 17 keypoints per pose, b has 5"),
        (lambda: oks(POSES, POSES, AREAS[:2], AREAS), ValueError, r"areas_a must have shape \(4,\)"),
        (lambda: oks_nms(POSES[..., :1], SCORES, AREAS, 0.9), ValueError, r"keypoints must be \[N, 1 or more, 2"),
        (lambda: oks_nms(POSES, SCORES[:3], AREAS, 0.9), ValueError, r"scores must have shape \(4,\)"),
        (lambda: oks_nms(POSES, SCORES, AREAS, "0.9"), TypeError, r"threshold must be a number, got str"),
        (lambda: oks_nms(POSES, SCORES, AREAS, 0.9, sigmas=0.1), TypeError, r"sigmas must be 17 numbers.* got 0.1"),
        (lambda: oks_nms(POSES, SCORES, AREAS, 1.5), ValueError, r"threshold must be between 0 and 1, got 1.5"),
        (lambda: oks_nms(POSES[:, :14], SCORES, AREAS, 0.9), ValueError, r"sigmas must be given: .* these are 14"),
        (lambda: oks_nms(POSES, SCORES, AREAS, 0.9, sigmas=[0.1]), ValueError, r"sigmas must be 17 numbers"),
        (lambda: oks_nms(POSES, SCORES, AREAS, 0.9, sigmas=[0.0] * 17), ValueError, r"sigmas must be positive"),
        (lambda: soft_oks_nms(POSES, SCORES, AREAS, 0.0), ValueError, r"threshold must be positive"),
        (lambda: soft_oks_nms(POSES, SCORES, AREAS, 0.9, max_keep=0), ValueError, r"max_keep must be .* got 0"),
    ],
)
def test_bad_input_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
