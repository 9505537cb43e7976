"""The grouping that is written beside an exported network is that of `ops.group_keypoints`, and needs NumPy alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from posekd.deploy import grouping
from posekd.ops import group_keypoints, match_by_tag, top_k_peaks
from posekd.ops.reference.assignment import lexicographic_assignment

SETTINGS = {"detection_threshold": 0.1, "tag_threshold": 1.0, "adjust": True, "refine": True}


def scene(seed: int, joints: int, people: int, channels: int, height: int = 28, width: int = 36):
    """Gaussians of people on noise `[1, K, H, W]`, with tags `[1, K, H, W, T]` that are now and then close."""
    rng = np.random.default_rng(seed)
    heat = rng.random((joints, height, width)) * 0.15
    tags = rng.normal(0, 0.3, (joints, height, width, channels))
    own = rng.uniform(-4, 4, (people, channels))
    y, x = np.mgrid[:height, :width]
    for person in range(people):
        for joint in np.flatnonzero(rng.random(joints) > 0.25):
            cx, cy = rng.uniform(0, width), rng.uniform(0, height)
            blob = rng.uniform(0.2, 1) * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 4.5)
            mine = blob > heat[joint]
            heat[joint] = np.where(mine, blob, heat[joint])
            tags[joint][mine] = own[person] + rng.normal(0, 0.1, (int(mine.sum()), channels))
    return torch.from_numpy(heat[None]).float(), torch.from_numpy(tags[None]).float()


def outputs_of(heatmaps: torch.Tensor, tags: torch.Tensor, most: int) -> dict[str, np.ndarray]:
    """What a graph gives for these maps."""
    peaks = top_k_peaks(heatmaps, tags, max_people=most).numpy()
    matrices = np.tile(np.array([[2.0, 0, 5], [0, 2.0, 7]], np.float32), (len(peaks), 1, 1))
    return {
        "peaks": peaks[..., :2], "scores": peaks[..., 2], "tags": peaks[..., 3:], "matrices": matrices,
        "heatmaps": heatmaps.numpy(), "tag_maps": tags.numpy(),
    }  # fmt: skip


@pytest.mark.parametrize(("joints", "people", "channels", "most"), [(17, 6, 1, 30), (5, 12, 2, 9), (3, 30, 2, 40)])
@pytest.mark.parametrize("stages", [{}, {"adjust": False}, {"refine": False}], ids=str)
def test_people_are_those_of_the_kernels(joints, people, channels, most, stages):
    settings = {**SETTINGS, **stages}
    for seed in range(4):
        heatmaps, tags = scene(seed, joints, people, channels)
        expected = group_keypoints(heatmaps, tags, max_people=most, **settings)
        ((keypoints, scores),) = grouping.people(outputs_of(heatmaps, tags, most), settings)
        count = int(expected.counts)
        assert len(keypoints) == count > 1
        wanted = expected.keypoints[0, :count, :, :3].numpy()
        wanted[..., :2] = np.where(wanted[..., 2:] > 0, wanted[..., :2] * 2 + np.array([5, 7]), 0)
        np.testing.assert_array_equal(keypoints, np.where(wanted[..., 2:] > 0, wanted, 0))
        np.testing.assert_allclose(scores, expected.scores[0, :count].numpy(), rtol=1e-6)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 7), (9, 4), (4, 9)])
def test_tied_assignments_are_those_of_the_definition(rows, columns):
    rng = np.random.default_rng(0)
    for _ in range(20):
        costs = np.stack([rng.integers(0, 3, (rows, columns)), rng.integers(0, 4, (rows, columns))], -1).astype(float)
        given = [[tuple(pair) for pair in row] for row in costs.tolist()]
        expected = [-1 if column is None else column for column in lexicographic_assignment(given)]
        assert grouping.assign(costs).tolist() == expected


def test_crowds_whose_tags_tie():
    """Rounded distances of many peaks tie, and peaks of no number are none."""
    rng = np.random.default_rng(1)
    for _ in range(5):
        peaks = torch.zeros(1, 4, 25, 4)
        peaks[..., :2] = torch.from_numpy(rng.integers(0, 50, (1, 4, 25, 2))).float()
        peaks[..., 2] = torch.from_numpy(-np.sort(-rng.uniform(0.05, 1, (1, 4, 25)))).float()
        peaks[..., 3] = torch.from_numpy(rng.uniform(0, 6, (1, 4, 25))).float()
        peaks[0, 1, 3, 3], peaks[0, 2, 0, 2] = torch.nan, torch.inf
        peaks[0, 3, :, 3] = peaks[0, 0, :, 3]  # the same first tags start no second people
        expected = match_by_tag(peaks)
        found = grouping.match(peaks[0].numpy(), 0.1, 1.0)
        count = int(expected.counts)
        np.testing.assert_array_equal(found, expected.keypoints[0, :count].numpy())


def test_nobody():
    heatmaps, tags = torch.zeros(2, 5, 8, 8), torch.zeros(2, 5, 8, 8, 1)
    for keypoints, scores in grouping.people(outputs_of(heatmaps, tags, 4), SETTINGS):
        assert (keypoints.shape, scores.shape) == ((0, 5, 3), (0,))


def test_the_file_needs_numpy_alone(tmp_path):
    (tmp_path / "alone.py").write_text(Path(grouping.__file__).read_text())
    code = """
import sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "posekd", "scipy", "onnxruntime"):
            raise ImportError(name)
sys.meta_path.insert(0, Refused())
import numpy as np
import alone
peaks = np.zeros((2, 3, 4), np.float32)
peaks[:, 0] = [[4, 5, 0.9, 1], [4, 7, 0.8, 1.1]]
print(alone.match(peaks, 0.1, 1.0)[0, :, 0].astype(int).tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[4, 4]", done.stderr
