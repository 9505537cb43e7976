"""group_keypoints: people from heatmaps and tags, against an independent parser and against its definition."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from helpers import backends
from helpers.official_grouping import Parse, Parser
from helpers.threads import threads
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posekd.ops import group_keypoints, group_keypoints_list, library, match_by_tag, top_k_peaks
from posekd.ops.reference import group_keypoints as definition

SIGMA = 1.5


def make_scene(
    seed: int, joints: int = 5, height: int = 36, width: int = 44, people: int = 4, channels: int = 2,
    noise: float = 0.05, missing: float = 0.2,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """An image of people: Gaussians on noise, and tags that differ by 3 and more between people, `[K, H, W(, T)]`."""
    rng = np.random.default_rng(seed)
    heat = rng.random((joints, height, width)) * noise
    tags = rng.normal(0, 0.1, (joints, height, width, channels))
    own = np.stack([rng.permutation(people) * 3.0 + 1 for _ in range(channels)], -1)
    y, x = np.mgrid[:height, :width]
    for person, joint in itertools.product(range(people), range(joints)):
        if rng.random() < missing:
            continue
        cx, cy = rng.uniform(0, width), rng.uniform(0, height)
        blob = rng.uniform(0.3, 1) * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * SIGMA**2))
        mine = blob > heat[joint]
        heat[joint] = np.where(mine, blob, heat[joint])
        tags[joint][mine] = own[person] + rng.normal(0, 0.05, (int(mine.sum()), channels))
    return torch.from_numpy(heat).float(), torch.from_numpy(tags).float()


def official(heat: Tensor, tags: Tensor, **options: Any) -> Parse:
    return Parser(**options)(heat.numpy(), tags.numpy())


def assert_same_people(people: Tensor, scores: Tensor, expected: Parse) -> None:
    """Bit-identical keypoints in the same order; scores to the rounding of a mean."""
    assert people.shape == expected.people.shape
    np.testing.assert_array_equal(people.cpu().numpy(), expected.people)
    np.testing.assert_allclose(scores.cpu().numpy(), expected.scores, rtol=1e-6)


def clear_scenes(count: int, options: dict[str, Any], **scene: Any) -> tuple[Tensor, Tensor, list[Parse]]:
    """A batch of scenes whose result no tie can change, and the official results."""
    found: list[tuple[Tensor, Tensor, Parse]] = []
    for seed in range(10 * count):
        heat, tags = make_scene(seed, **scene)
        parse = official(heat, tags, **options)
        if not parse.ambiguous:
            found.append((heat, tags, parse))
        if len(found) == count:
            heats, tag_maps, parses = zip(*found, strict=True)
            return torch.stack(heats), torch.stack(tag_maps), list(parses)
    raise AssertionError(f"only {len(found)} of {10 * count} scenes are free of ties")


STAGES = {
    "match only": {"adjust": False, "refine": False},
    "adjust": {"adjust": True, "refine": False},
    "refine": {"adjust": False, "refine": True},
    "adjust and refine": {},
}


class TestAgainstOfficialParser:
    @pytest.mark.parametrize("stages", STAGES)
    @pytest.mark.parametrize("channels", [1, 2])
    def test_people(self, backend: backends.Backend, channels: int, stages: str) -> None:
        heat, tags, expected = clear_scenes(2, STAGES[stages], channels=channels)
        found = group_keypoints_list(heat.to(backend.device), tags.to(backend.device), **STAGES[stages])
        assert max(len(parse.people) for parse in expected) > 3
        for (people, scores), parse in zip(found, expected, strict=True):
            assert_same_people(people, scores, parse)

    def test_coco_joints_are_visited_in_the_official_order(self, backend: backends.Backend) -> None:
        scene = {"joints": 17, "height": 20, "width": 24, "people": 3}
        heat, tags, (expected,) = clear_scenes(1, {}, **scene)
        ((people, scores),) = group_keypoints_list(heat.to(backend.device), tags.to(backend.device))
        assert_same_people(people, scores, expected)
        # The order matters: wrists before hips would start other people first.
        order = list(range(16, -1, -1))
        ((backward, scores),) = group_keypoints_list(
            heat.to(backend.device), tags.to(backend.device), joint_order=order
        )
        assert_same_people(backward, scores, official(heat[0], tags[0], order=order))
        assert backward.shape != people.shape or not torch.equal(backward, people)

    @pytest.mark.parametrize("option", [{"ignore_too_many": True}, {}, {"use_detection_score": False}], ids=str)
    def test_more_people_than_allowed(self, backend: backends.Backend, option: dict[str, Any]) -> None:
        options = {"max_people": 3, **option}
        heat, tags, expected = clear_scenes(2, options, people=6, missing=0.1)
        found = group_keypoints_list(heat.to(backend.device), tags.to(backend.device), **options)
        for (people, scores), parse in zip(found, expected, strict=True):
            assert_same_people(people, scores, parse)
        most = max(len(parse.people) for parse in expected)
        assert most == 3 if option.get("ignore_too_many") else most > 3

    @pytest.mark.parametrize(
        "options",
        [{"nms_kernel": 3}, {"nms_kernel": 7, "max_people": 6}, {"detection_threshold": 0.6}, {"tag_threshold": 4.5}],
        ids=str,
    )
    def test_options(self, backend: backends.Backend, options: dict[str, Any]) -> None:
        heat, tags, (expected,) = clear_scenes(1, options, height=20, width=24)
        ((people, scores),) = group_keypoints_list(heat.to(backend.device), tags.to(backend.device), **options)
        assert_same_people(people, scores, expected)

    def test_crowds_on_large_maps(self) -> None:
        """Several vectors of tiles, a ragged edge, more peaks than some people find."""
        heat, tags, (expected,) = clear_scenes(1, {}, joints=17, height=150, width=201, people=25, missing=0.1)
        assert len(expected.people) >= 25
        ((people, scores),) = group_keypoints_list(heat, tags)
        assert_same_people(people, scores, expected)

    def test_one_tag_map_for_all_joints(self, backend: backends.Backend) -> None:
        heat, tags = (x.to(backend.device) for x in make_scene(0, height=20, width=24))
        for shared in (tags[:1], tags[:1, ..., 0]):
            expanded = shared.expand(len(heat), *shared.shape[1:])
            shared_people, own_people = (group_keypoints(heat[None], t[None]) for t in (shared, expanded))
            for ours, expected in zip(shared_people, own_people, strict=True):
                assert torch.equal(ours, expected)
        parse = official(heat.cpu(), tags[:1].expand_as(tags).cpu())
        if not parse.ambiguous:
            assert_same_people(*group_keypoints_list(heat[None], tags[None, :1])[0], parse)

    def test_an_equal_first_tag_is_the_same_person(self, backend: backends.Backend) -> None:
        """Joint 1 starts a person with the key of an earlier one: he takes the joint, and his mean tag starts anew."""
        peaks = torch.zeros(1, 3, 2, 5)
        peaks[0, 0, 0] = torch.tensor([3, 4, 0.9, 1.0, 0.0])  # starts a person with key 1
        peaks[0, 1, 0] = torch.tensor([5, 6, 0.8, 1.0, 8.0])  # far away, with the same key
        peaks[0, 2, 0] = torch.tensor([7, 8, 0.7, 1.0, 8.4])  # near the new mean, far from the old and the average
        found = match_by_tag(peaks.to(backend.device))
        assert found.counts.tolist() == [1]
        assert torch.equal(found.keypoints[0, 0].cpu(), peaks[0, :, 0])


class TestResult:
    def test_no_people(self, backend: backends.Backend) -> None:
        heat = torch.zeros(3, 4, 8, 8, device=backend.device)
        found = group_keypoints(heat, heat)
        assert found.counts.tolist() == [0, 0, 0]
        assert found.keypoints.shape == (3, 4 * 30, 4, 4)
        assert not found.keypoints.any()
        assert [len(people) for people, _ in group_keypoints_list(heat, heat)] == [0, 0, 0]

    @pytest.mark.parametrize("shape", [(0, 4, 8, 8), (2, 0, 8, 8)])
    def test_no_images_and_no_joints(self, backend: backends.Backend, shape: tuple[int, ...]) -> None:
        heat = torch.zeros(shape, device=backend.device)
        found = group_keypoints(heat, heat)
        assert found.keypoints.shape == (shape[0], shape[1] * 30, shape[1], 4)
        assert found.counts.shape == (shape[0],)
        assert group_keypoints_list(heat, heat) == [] or shape[0] > 0

    def test_overflow_of_the_capacity_is_reported(self, backend: backends.Backend) -> None:
        heat, tags = (x[None].to(backend.device) for x in make_scene(1, people=6, height=24, width=30))
        everyone = group_keypoints(heat, tags)
        count = int(everyone.counts)
        assert count > 3
        some = group_keypoints(heat, tags, capacity=3)
        assert int(some.counts) == count
        assert torch.equal(some.keypoints, everyone.keypoints[:, :3])
        assert torch.equal(some.scores, everyone.scores[:, :3])
        with pytest.raises(ValueError, match=rf"image 0 of the batch has {count} people, but capacity is 3"):
            group_keypoints_list(heat, tags, capacity=3)

    def test_nobody_fits_more_than_the_default_capacity(self, backend: backends.Backend) -> None:
        """The worst case: every peak is a person of its own."""
        peaks = torch.rand(1, 4, 3, 4, device=backend.device) + 0.1
        peaks[..., 3] = torch.arange(12, device=backend.device).view(1, 4, 3) * 100.0
        found = match_by_tag(peaks)
        assert found.keypoints.shape[1] == int(found.counts) == 12
        torch.testing.assert_close(found.scores[0], found.keypoints[0, ..., 2].sum(-1) / 4)

    def test_scores_are_means_over_all_joints_before_refinement(self, backend: backends.Backend) -> None:
        heat, tags = (x[None].to(backend.device) for x in make_scene(2, height=24, width=30))
        matched = group_keypoints(heat, tags, refine=False)
        refined = group_keypoints(heat, tags)
        assert torch.equal(matched.scores, refined.scores)
        torch.testing.assert_close(matched.scores, matched.keypoints[..., 2].mean(-1))
        assert int((refined.keypoints[..., 2] > 0).sum()) > int((matched.keypoints[..., 2] > 0).sum())

    def test_rows_that_are_no_numbers_are_no_detections(self, backend: backends.Backend) -> None:
        peaks = torch.zeros(1, 2, 4, 5)
        peaks[0, :, :, 2] = 0.9
        peaks[0, :, :, 3] = torch.arange(4) * 10.0
        peaks[0, 0, 1, 3], peaks[0, 0, 2, 4] = torch.nan, torch.inf
        peaks[0, 1, 0, 2], peaks[0, 1, 1, 2] = torch.nan, torch.inf
        found = match_by_tag(peaks.to(backend.device))
        assert found.keypoints[0, : int(found.counts), :, 3].tolist() == [[0, 0], [30, 30], [0, 20]]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_that_of_the_maps_alone(self, backend: backends.Backend, dtype: torch.dtype) -> None:
        heat, tags = (x[None].to(backend.device, dtype) for x in make_scene(3, height=20, width=24))
        found = group_keypoints(heat, tags)
        for ours, wide in zip(found, group_keypoints(heat.float(), tags.float()), strict=True):
            assert torch.equal(ours, wide)
        mixed = group_keypoints(heat, tags.float())
        assert torch.equal(mixed.keypoints, found.keypoints)

    @pytest.mark.parametrize("layout", ["transposed", "channels_last", "sliced"])
    def test_memory_layouts(self, backend: backends.Backend, layout: str) -> None:
        heat, tags = (x[None].to(backend.device) for x in make_scene(4, height=20, width=24, channels=1))
        change = {
            "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
            "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
            "sliced": lambda x: torch.cat([x, x], 3)[..., : x.shape[3]],
        }[layout]
        maps = (heat, tags[..., 0])
        changed = [change(x) for x in maps]
        assert not changed[0].is_contiguous()
        for ours, plain in zip(group_keypoints(*changed), group_keypoints(*maps), strict=True):
            assert torch.equal(ours, plain)

    def test_threads_change_nothing(self) -> None:
        scenes = [make_scene(seed) for seed in range(4)]
        heat, tags = (torch.stack(x) for x in zip(*scenes, strict=True))
        results = []
        for count in (1, 2):
            with threads(count):
                results.append(group_keypoints(heat, tags))
        for one, two in zip(*results, strict=True):
            assert torch.equal(one, two)

    def test_no_gradient(self) -> None:
        heat, tags = (x[None].requires_grad_() for x in make_scene(0, height=20, width=24))
        assert not group_keypoints(heat, tags).keypoints.requires_grad

    @given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 12), st.integers(1, 20), st.integers(1, 2))
    @settings(max_examples=40, deadline=None)
    def test_coarse_random_maps_give_the_definition(
        self, seed: int, joints: int, height: int, width: int, channels: int
    ) -> None:
        """Coarse values tie everywhere: peaks, distances, refinement."""
        generator = torch.Generator().manual_seed(seed)
        heat = (torch.rand(1, joints, height, width, generator=generator) * 10).round() / 10
        tags = (torch.rand(1, joints, height, width, channels, generator=generator) * 12).round() / 4
        found = group_keypoints(heat, tags, max_people=5)
        peaks = definition.top_k_peaks(heat, tags, 5, 0.1, 5)
        people, scores, counts = definition.match_by_tag(peaks, 5 * joints, 0.1, 1.0, list(range(joints)), False, True)
        people = definition.refine(heat, tags, people, counts, True, True)
        for ours, defined in zip(found, (people, scores, counts), strict=True):
            assert torch.equal(ours, defined)


class TestInference:
    @pytest.mark.parametrize("channels", [1, 2])
    def test_opcheck(self, channels: int) -> None:
        heat, tags = (x[None] for x in make_scene(0, joints=3, height=12, width=16, people=2, channels=channels))
        heat = heat.contiguous(memory_format=torch.channels_last)
        torch.library.opcheck(torch.ops.posekd.top_k_peaks, (heat, tags, 5, 0.1, 5))
        peaks = top_k_peaks(heat, tags, max_people=5)
        torch.library.opcheck(torch.ops.posekd.match_by_tag, (peaks, 7, 0.1, 1.0, [0, 2, 1], False, True))
        people, _, counts = match_by_tag(peaks, capacity=7)
        people = people.transpose(0, 1).contiguous().transpose(0, 1)
        torch.library.opcheck(torch.ops.posekd.refine_people, (heat, tags, people, counts, True, True))

    @pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
    def test_compile_without_graph_breaks(self, compiler: str) -> None:
        def parse(heat: Tensor, tags: Tensor) -> tuple[Tensor, Tensor]:
            found = group_keypoints(heat * 1.0, tags, max_people=6)
            return found.keypoints * 2, found.counts

        heat, tags = (x[None] for x in make_scene(0, height=20, width=24))
        compiled = torch.compile(parse, fullgraph=True, backend=compiler)
        for ours, eager in zip(compiled(heat, tags), parse(heat, tags), strict=True):
            assert torch.equal(ours, eager)

    def test_export_with_a_dynamic_batch(self) -> None:
        class Parse(torch.nn.Module):
            def forward(self, heat: Tensor, tags: Tensor) -> tuple[Tensor, ...]:
                return tuple(group_keypoints(heat, tags, max_people=6))

        scenes = [make_scene(seed, height=20, width=24) for seed in range(3)]
        heat, tags = (torch.stack(x) for x in zip(*scenes, strict=True))
        batch = torch.export.Dim("batch")
        program = torch.export.export(Parse(), (heat[:2], tags[:2]), dynamic_shapes=({0: batch}, {0: batch}))
        assert all(f"posekd.{op}" in str(program.graph) for op in ("top_k_peaks", "match_by_tag", "refine_people"))
        for ours, eager in zip(program.module()(heat, tags), group_keypoints(heat, tags, max_people=6), strict=True):
            assert torch.equal(ours, eager)

    def test_without_the_core_the_definition_serves(self, monkeypatch: pytest.MonkeyPatch) -> None:
        heat, tags = (x[None] for x in make_scene(5, height=20, width=24))
        results = []
        for core in (library._core, None):
            monkeypatch.setattr(library, "_core", core)
            results.append(group_keypoints(heat, tags))
        for kernel, plain in zip(*results, strict=True):
            assert torch.equal(kernel, plain)


HEAT = torch.rand(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"heatmaps": [1.0]}, TypeError, "heatmaps must be a torch.Tensor, got list"),
        ({"heatmaps": HEAT[0]}, ValueError, r"heatmaps must have 4 dimensions \[B, K, H, W\], got shape \(3, 8, 8\)"),
        ({"heatmaps": HEAT.double()}, TypeError, "heatmaps must be float32, float16, bfloat16, got float64"),
        ({"tags": HEAT[:, :2]}, ValueError, r"tags must have shape \(2, 3, 8, 8\) or \(2, 1.*got \(2, 2, 8, 8\)"),
        ({"tags": HEAT[..., None][..., :0]}, ValueError, "tags must have at least one channel"),
        ({"heatmaps": HEAT[..., :0]}, ValueError, "heatmaps must have at least one pixel"),
        ({"max_people": 0}, ValueError, "max_people must be from 1 to 3072, got 0"),
        ({"max_people": 2.5}, TypeError, "max_people must be an integer, got float"),
        ({"capacity": 0}, ValueError, "capacity must be at least 1, got 0"),
        ({"detection_threshold": -0.1}, ValueError, "detection_threshold must be finite and at least 0, got -0.1"),
        ({"tag_threshold": 0.0}, ValueError, "tag_threshold must be positive and finite, got 0.0"),
        ({"nms_kernel": 4}, ValueError, "nms_kernel must be odd.* got 4"),
        ({"nms_kernel": 2**31 - 1}, ValueError, "nms_kernel must be from 1 to 32767, got 2147483647"),
        ({"joint_order": [0, 1, 1]}, ValueError, r"joint_order must name each of .* once, got \[0, 1, 1\]"),
        ({"joint_order": [0.5, 1, 2]}, ValueError, r"joint_order must name each of .* once, got \[0.5, 1, 2\]"),
    ],
)  # fmt: skip
def test_bad_input_gets_a_sentence(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        group_keypoints(**{"heatmaps": HEAT, "tags": HEAT, **arguments})
