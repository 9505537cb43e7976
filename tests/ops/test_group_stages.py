"""The stages of grouping: peaks, the assignment under ties, refinement. On every backend, against their definitions."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch
from helpers import backends, emulation
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from posekd.ops import match_by_tag, refine, top_k_peaks
from posekd.ops.reference import group_keypoints as definition
from posekd.ops.reference.assignment import lexicographic_assignment


def total_cost(found: Tensor, joint: int, use_score: bool) -> float:
    """What the official cost of two-joint people comes to."""
    first, second = found[:, 0], found[:, joint]
    both = (first[:, 2] > 0) & (second[:, 2] > 0)
    distance = (first[both, 3:].double() - second[both, 3:].double()).norm(dim=1)
    return float((distance.round() * 100 - second[both, 2].double()).sum() if use_score else distance.sum())


def make_tied_peaks(seed: int, people: int, detections: int, channels: int = 1) -> Tensor:
    """Peaks of two joints whose tags crowd together, so that rounded distances tie often, `[1, 2, M, 3 + T]`."""
    rng = np.random.default_rng(seed)
    peaks = torch.zeros(1, 2, max(people, detections), 3 + channels)
    for joint, count in ((0, people), (1, detections)):
        rows = np.concatenate(
            [
                rng.integers(0, 50, (count, 2)),
                -np.sort(-rng.uniform(0.2, 1, (count, 1)), 0),
                rng.uniform(0, 6, (count, channels)),
            ],
            1,
        )
        peaks[0, joint, :count] = torch.from_numpy(rows).float()
    return peaks


class TestTies:
    @pytest.mark.parametrize(("people", "detections"), [(30, 30), (30, 17), (11, 30), (1, 9), (9, 1)])
    @pytest.mark.parametrize("use_score", [True, False])
    def test_total_cost_is_the_optimum(
        self, backend: backends.Backend, people: int, detections: int, use_score: bool
    ) -> None:
        """With an unreachable threshold every assigned pair joins, so the result shows the whole assignment."""
        for seed in range(2 if backend.kind == "emu" else 10):
            peaks = make_tied_peaks(seed, people, detections, 1 + seed % 2)
            found = match_by_tag(
                peaks.to(backend.device), tag_threshold=1e6, use_detection_score=use_score, detection_threshold=0.1
            )
            tags = [peaks[0, joint, :count, 3:].double() for joint, count in ((0, people), (1, detections))]
            distance = torch.cdist(tags[1], tags[0], compute_mode="donot_use_mm_for_euclid_dist")
            cost = distance
            if use_score:
                cost = distance.round() * 100 - peaks[0, 1, :detections, 2:3].double()
            rows, columns = linear_sum_assignment(cost.numpy())
            ours = total_cost(found.keypoints[0].cpu(), 1, use_score)
            assert ours == pytest.approx(float(cost[rows, columns].sum()), abs=1e-7)
            assert int(found.counts) == max(people, detections)

    @pytest.mark.parametrize(("people", "detections"), [(5, 5), (6, 4), (3, 5)])
    def test_ties_go_to_the_smallest_sum_of_limited_distances(
        self, backend: backends.Backend, people: int, detections: int
    ) -> None:
        """Against all assignments, tried one by one."""
        tied = 0
        for seed in range(3 if backend.kind == "emu" else 20):
            peaks = make_tied_peaks(seed, people, detections, channels=2)  # in one dimension the seconds tie as well
            tags = peaks[0, :, :, 3:].double()
            distance = (tags[1, :detections, None] - tags[0, None, :people]).norm(dim=2)
            first = distance.round() * 100 - peaks[0, 1, :detections, 2:3].double()
            second = distance.clamp_max(1.0)
            swap = detections > people
            first, second = (x.T if swap else x for x in (first, second))
            rows = torch.arange(first.shape[0])
            totals = [
                (round(float(first[rows, list(c)].sum()), 6), float(second[rows, list(c)].sum()), c)
                for c in itertools.permutations(range(first.shape[1]), first.shape[0])
            ]
            best = min(totals)
            tied += sum(total[0] == best[0] for total in totals) > 1
            pairs = {(c, r) if swap else (r, c) for r, c in enumerate(best[2])}
            expected = {(d, p) for d, p in pairs if distance[d, p] < 1}
            found = match_by_tag(peaks.to(backend.device)).keypoints[0].cpu()
            joined = {
                (int((peaks[0, 1, :, 3] == row[1, 3]).nonzero()[0]), person)
                for person, row in enumerate(found[:people])
                if row[1, 2] > 0
            }
            assert joined == expected
        assert tied > 0

    @given(st.integers(1, 7), st.integers(1, 7), st.randoms(use_true_random=False))
    @settings(max_examples=60, deadline=None)
    def test_the_assignment_of_the_definition(self, rows: int, columns: int, rng: random.Random) -> None:
        costs = [[(float(rng.randint(0, 3)), rng.random()) for _ in range(columns)] for _ in range(rows)]
        assigned = lexicographic_assignment(costs)
        taken = [c for c in assigned if c is not None]
        assert len(taken) == len(set(taken)) == min(rows, columns)
        # Firsts are integers and the seconds add up to less than 10, so this one number orders the pairs.
        flat = np.array([[100 * a + b for a, b in row] for row in costs])
        least = flat[linear_sum_assignment(flat)].sum()
        assert sum(flat[r, c] for r, c in enumerate(assigned) if c is not None) == pytest.approx(least)

    def test_tied_scenes_give_the_definition_on_every_backend(self, backend: backends.Backend) -> None:
        """Equally spaced tags in one line tie at every joint."""
        generator = torch.Generator().manual_seed(1)
        peaks = torch.rand(2, 6, 8, 4, generator=generator)
        peaks[..., 3] = (peaks[..., 3] * 10).round() * 0.5
        peaks[..., 2] = peaks[..., 2].sort(descending=True).values
        found = match_by_tag(peaks.to(backend.device))
        expected = definition.match_by_tag(peaks, 48, 0.1, 1.0, list(range(6)), False, True)
        for ours, defined in zip(found, expected, strict=True):
            assert torch.equal(ours.cpu(), defined)

    def test_ties_of_irrational_distances_give_the_definition(self, backend: backends.Backend) -> None:
        """Three peaks with one tag compete for two people at distances whose sums are equal but for their rounding."""
        people = [[0.0, -1.0], [2.0, 0.0], [-1.0, -1.0], [1.0, 1.0]]
        first = [[i, i, 0.9 - 0.1 * i, *tag] for i, tag in enumerate(people)]
        second = [[i, 9, 0.95 - 0.1 * i, 0.0, 0.0] for i in range(3)]
        zeros = [0.0] * 5
        peaks = torch.tensor([[[*first, zeros, zeros], [*second, *[zeros] * 3]]])
        for threshold in (1.5, 2.5, 3.0):
            found = match_by_tag(peaks.to(backend.device), tag_threshold=threshold)
            expected = definition.match_by_tag(peaks, 12, 0.1, threshold, [0, 1], False, True)
            for ours, defined in zip(found, expected, strict=True):
                assert torch.equal(ours.cpu(), defined)

    def test_the_definitions_distances_are_rounded_correctly(self) -> None:
        """`torch.tensor(2.0).double().sqrt()` is 1.414213562373095 where MKL takes the root."""
        tags = torch.tensor([[1.0, 1.0], [3.0, 4.0], [1.5, 0.5]])
        found = definition._distances(tags, torch.zeros(2, 2))
        assert found.tolist() == [[math.sqrt(2.0)] * 2, [5.0] * 2, [math.sqrt(2.5)] * 2]


class TestPeaks:
    def test_without_suppression_it_is_topk(self, backend: backends.Backend) -> None:
        """Every pixel of a window of one is a peak: also more of them than a CUDA block's list holds."""
        heat = torch.rand(2, 2, 37, 53, generator=torch.Generator().manual_seed(0)).to(backend.device)
        peaks = top_k_peaks(heat, heat, max_people=20, nms_kernel=1)
        score, pixel = heat.flatten(2).topk(20)
        torch.testing.assert_close(peaks[..., 2], score, rtol=0, atol=0)
        torch.testing.assert_close(peaks[..., 0] + 53 * peaks[..., 1], pixel.float(), rtol=0, atol=0)
        torch.testing.assert_close(peaks[..., 3], score, rtol=0, atol=0)

    def test_on_a_plateau_every_pixel_is_a_peak_and_the_first_come_first(self, backend: backends.Backend) -> None:
        heat = torch.full((1, 1, 40, 64), 0.5, device=backend.device)
        heat[0, 0, 30:] = 0.75  # its border hides two rows of the lower plateau, no pixel of its own
        peaks = top_k_peaks(heat, heat, max_people=700).cpu()[0, 0]
        pixels = (peaks[:, 0] + 64 * peaks[:, 1]).long()
        assert pixels[:640].tolist() == list(range(30 * 64, 40 * 64))
        assert pixels[640:].tolist() == list(range(60))
        assert (peaks[:640, 2] == 0.75).all()

    def test_fewer_peaks_than_places(self, backend: backends.Backend) -> None:
        heat = torch.zeros(1, 2, 9, 11, device=backend.device)
        heat[0, 1, 4, 6] = 0.9
        tags = torch.arange(2 * 9 * 11, device=backend.device).view(1, 2, 9, 11).float()
        peaks = top_k_peaks(heat, tags, max_people=200)
        assert peaks.shape == (1, 2, 200, 4)
        assert peaks[0, 1, 0].tolist() == pytest.approx([6, 4, 0.9, 99 + 50])
        assert int((peaks != 0).sum()) == 4

    def test_the_threshold_itself_is_no_peak(self, backend: backends.Backend) -> None:
        heat = torch.zeros(1, 1, 5, 12, device=backend.device)
        heat[0, 0, 2, 2], heat[0, 0, 2, 9] = 0.5, 0.5 + 2**-20
        peaks = top_k_peaks(heat, heat, detection_threshold=0.5)
        assert peaks[0, 0, :, 0].tolist()[:2] == [9, 0]

    def test_nan_hides_its_window_and_infinity_is_no_peak(self, backend: backends.Backend) -> None:
        heat = torch.zeros(1, 1, 12, 40)
        for x in (3, 13, 23, 33):
            heat[0, 0, 6, x] = 0.5
        heat[0, 0, 4, 5] = torch.nan  # two away from the first peak: in its window
        heat[0, 0, 6, 16] = torch.nan  # three away from the second
        heat[0, 0, 6, 25] = torch.inf  # two away from the third
        heat[0, 0, 6, 36] = torch.inf  # three away from the fourth
        peaks = top_k_peaks(heat.to(backend.device), torch.zeros_like(heat).to(backend.device))
        assert peaks[0, 0, :, 0].tolist() == [13, 33] + [0] * 28
        pooled = torch.nn.functional.max_pool2d(heat, 5, 1, 2)  # the public rule that this follows
        assert pooled[0, 0, 6, 3].isnan()
        assert not pooled[0, 0, 6, 13].isnan()

    @pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 3, 1, 7), (2, 1, 9, 1), (1, 2, 65, 3), (1, 1, 33, 17)])
    def test_sizes(self, backend: backends.Backend, shape: tuple[int, int, int, int]) -> None:
        generator = torch.Generator().manual_seed(3)
        heat = (torch.rand(shape, generator=generator) * 20).round() / 20  # coarse: plateaus and ties
        tags = torch.rand(*shape, 2, generator=generator)
        found = top_k_peaks(heat.to(backend.device), tags.to(backend.device), max_people=5)
        assert torch.equal(found.cpu(), definition.top_k_peaks(heat, tags, 5, 0.1, 5))


class TestRefinement:
    def person(self, *joints: tuple[float, float, float], channels: int = 1) -> Tensor:
        """One person of one image, `[1, 1, K, 3 + T]`."""
        rows = torch.zeros(1, 1, len(joints), 3 + channels)
        rows[0, 0, :, :3] = torch.tensor(joints)
        return rows

    def run(self, backend: backends.Backend, *arguments: Tensor, **options: bool) -> Tensor:
        counts = torch.ones(arguments[0].shape[0], dtype=torch.int64)
        return refine(*(x.to(backend.device) for x in (*arguments, counts)), **options).cpu()

    def test_quarter_toward_the_higher_neighbour_and_half(self, backend: backends.Backend) -> None:
        heat = torch.zeros(1, 1, 6, 8)
        heat[0, 0, 3, 4], heat[0, 0, 3, 5] = 0.9, 0.4  # higher on the right, equal above and below
        moved = self.run(backend, heat, torch.zeros_like(heat), self.person((4, 3, 0.9)), fill=False)
        assert moved[0, 0, 0].tolist() == pytest.approx([4.75, 3.25, 0.9, 0])

    def test_at_the_border_the_pixel_stands_in_for_its_neighbour(self, backend: backends.Backend) -> None:
        heat = torch.zeros(1, 2, 4, 4)
        heat[0, 0, 0, 0] = heat[0, 1, 3, 3] = 0.9  # higher than their inner neighbours
        moved = self.run(backend, heat, torch.zeros_like(heat), self.person((0, 0, 0.9), (3, 3, 0.9)), fill=False)
        assert moved[0, 0, :, :2].tolist() == [[0.25, 0.25], [3.75, 3.75]]

    def test_the_first_of_equal_pixels_is_filled(self, backend: backends.Backend) -> None:
        heat = torch.zeros(1, 2, 40, 40)
        heat[0, 0, 5, 5] = 0.9
        heat[0, 1, 20, 30] = heat[0, 1, 21, 2] = heat[0, 1, 39, 39] = 0.3
        filled = self.run(backend, heat, torch.zeros_like(heat), self.person((5, 5, 0.9), (0, 0, 0)))
        assert filled[0, 0, 1].tolist() == pytest.approx([30.25, 20.25, 0.3, 0])

    def test_a_tag_half_a_unit_away_counts_as_equal(self, backend: backends.Backend) -> None:
        """Rounding is half to even: 0.5 is no distance, 1.5 is two."""
        heat = torch.zeros(1, 2, 8, 8)
        heat[0, 0, 1, 1], heat[0, 1, 2, 2], heat[0, 1, 6, 6] = 0.9, 0.2, 0.9
        tags = torch.zeros(1, 2, 8, 8)
        tags[0, 1, 2, 2], tags[0, 1, 6, 6] = 0.5, 1.5
        filled = self.run(backend, heat, tags, self.person((1, 1, 0.9), (0, 0, 0)))
        assert filled[0, 0, 1, 2].item() == pytest.approx(0.2)

    def test_nothing_is_filled_where_the_heatmap_is_not_positive(self, backend: backends.Backend) -> None:
        heat = torch.full((1, 2, 6, 6), -0.1)
        heat[0, 0, 1, 1] = 0.9
        filled = self.run(backend, heat, torch.zeros_like(heat), self.person((1, 1, 0.9), (0, 0, 0)), adjust=False)
        assert filled[0, 0, 1].tolist() == [0, 0, 0, 0]
        assert filled[0, 0, 0].tolist() == pytest.approx([1, 1, 0.9, 0])

    def test_pixels_that_are_no_numbers_are_passed_over(self, backend: backends.Backend) -> None:
        heat = torch.zeros(1, 3, 20, 20)
        heat[0, 0, 1, 1] = 0.9
        heat[0, 1, 3, 3], heat[0, 1, 4, 4], heat[0, 1, 5, 5], heat[0, 1, 6, 6] = torch.nan, torch.inf, 0.8, 0.3
        heat[0, 2] = torch.nan
        tags = torch.zeros(1, 3, 20, 20)
        tags[0, 1, 5, 5] = torch.nan
        filled = self.run(backend, heat, tags, self.person((1, 1, 0.9), (0, 0, 0), (0, 0, 0)))
        assert filled[0, 0, 1].tolist() == pytest.approx([6.25, 6.25, 0.3, 0])
        assert filled[0, 0, 2].tolist() == [0, 0, 0, 0]

    def test_people_without_joints_or_with_nan_tags_are_left_alone(self, backend: backends.Backend) -> None:
        heat = torch.full((2, 2, 6, 6), 0.4)
        tags = torch.zeros(2, 2, 6, 6)
        tags[1, 0, 1, 1] = torch.nan
        people = torch.cat([self.person((0, 0, 0), (0, 0, 0)), self.person((1, 1, 0.9), (0, 0, 0))])
        filled = self.run(backend, heat, tags, people, adjust=False)
        assert torch.equal(filled, people)

    def test_positions_outside_the_map_are_clamped(self, backend: backends.Backend) -> None:
        heat = torch.zeros(1, 5, 6, 8)
        people = self.person(
            (-3, 2.9, 0.5), (9, 7, 0.5), (torch.nan, 1, 0.5), (torch.inf, 0, 0.5), (0, -torch.inf, 0.5)
        )
        moved = self.run(backend, heat, torch.zeros_like(heat), people)
        assert moved[0, 0, :, :2].tolist() == [[0.25, 2.25], [7.25, 5.25], [0.25, 1.25], [7.25, 0.25], [0.25, 0.25]]

    def test_only_people_that_are_counted_are_touched(self, backend: backends.Backend) -> None:
        heat = torch.full((1, 1, 6, 6), 0.4, device=backend.device)
        people = torch.ones(1, 3, 1, 4, device=backend.device)
        for count in (0, 2, 3, 7):
            counts = torch.tensor([count], device=backend.device)
            moved = refine(heat, torch.zeros_like(heat), people, counts)
            assert (moved[0, :, 0, 0] != 1).tolist() == [i < count for i in range(3)]

    @pytest.mark.parametrize("channels", [1, 2, 3])
    @pytest.mark.parametrize("size", [(16, 16), (33, 47), (5, 70), (70, 5)])
    def test_pruning_changes_nothing(self, backend: backends.Backend, size: tuple[int, int], channels: int) -> None:
        """White noise and wild tags, where bounds say little; coarse values, where they tie."""
        generator = torch.Generator().manual_seed(channels)
        heat = torch.rand(1, 2, *size, generator=generator) - 0.3
        tags = torch.randn(1, 2, *size, channels, generator=generator) * 3
        heat[0, 1], tags[0, 1] = (heat[0, 1] * 4).round() / 4, tags[0, 1].round() / 2
        people = torch.zeros(1, 6, 2, 3 + channels)
        for person in range(6):
            x, y = person * 7 % size[1], person * 11 % size[0]
            people[0, person, person % 2, :3] = torch.tensor([x, y, 0.5])
        counts = torch.tensor([6])
        found = refine(*(x.to(backend.device) for x in (heat, tags, people, counts)))
        expected = definition.refine(heat, tags, people, counts, True, True)
        assert torch.equal(found.cpu(), expected)
        assert int((expected[..., 2] > 0).sum()) > 6

    def test_tags_far_beyond_whole_floats(self, backend: backends.Backend) -> None:
        """Distances above 2^23, where rounding has nothing to do."""
        heat = torch.rand(1, 2, 20, 20, generator=torch.Generator().manual_seed(0))
        tags = torch.randn(1, 2, 20, 20, generator=torch.Generator().manual_seed(1)) * 1e8
        people, counts = self.person((3, 3, 0.5), (0, 0, 0)), torch.tensor([1])
        expected = definition.refine(heat, tags, people, counts, True, True)
        assert torch.equal(self.run(backend, heat, tags, people), expected)


@pytest.mark.emu
def test_more_places_than_a_grid_has_rows() -> None:
    """A warp a place, four a block, in the grid's first dimension: the others end at 65535 on a device, here at 15."""
    heat, people = torch.rand(1, 1, 4, 4), torch.zeros(1, 61, 1, 4)
    people[0, -1, 0, :3] = torch.tensor([1.0, 1.0, 0.5])
    counts = torch.tensor([61])
    with backends.use("emu-forward"), emulation.grid_rows(15):
        found = refine(heat, heat, people, counts, fill=False)
    assert torch.equal(found, definition.refine(heat, heat, people, counts, True, False))


MAPS = torch.rand(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"keypoints": torch.zeros(2, 5, 4, 4)}, r"keypoints must have shape \(2, 5, 3, 4\)"),
        ({"counts": torch.zeros(3, dtype=torch.int64)}, r"counts must have shape \(2,\)"),
    ],
)
def test_refine_checks_what_it_is_given(changed: dict[str, Tensor], message: str) -> None:
    arguments = {"keypoints": torch.zeros(2, 5, 3, 4), "counts": torch.zeros(2, dtype=torch.int64), **changed}
    with pytest.raises(ValueError, match=message):
        refine(MAPS, MAPS, **arguments)
