"""OKS sigmas from distances: what Gaussian errors of known size give back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.coco_folder import labels, person, write

from posekd.cli import main
from posekd.metrics.sigmas import SMALLEST, estimate_sigmas


def drawn(sigma, count, area, rng):
    """Distances of points from the truth whose `E[d^2] = sigma^2 area`: COCO's definition."""
    return np.linalg.norm(rng.normal(0, sigma * np.sqrt(area / 2), (count, 2)), axis=1)


def test_gaussian_errors_give_their_sigma_back():
    rng = np.random.default_rng(0)
    areas = rng.uniform(1000, 9000, 4000)
    distances = np.stack([drawn(sigma, 4000, areas[:, None], rng) for sigma in (0.03, 0.1)], 1)
    found = estimate_sigmas(distances, areas, both_err=False, samples=200)
    np.testing.assert_allclose(found.values, [0.03, 0.1], rtol=0.03)
    assert ((found.low < [0.03, 0.1]) & (found.high > [0.03, 0.1])).all()
    assert found.counts.tolist() == [4000, 4000]


def test_two_labels_share_their_distance():
    rng = np.random.default_rng(1)
    a, b = (rng.normal(0, 0.05 * np.sqrt(5000 / 2), (5000, 2)) for _ in range(2))
    found = estimate_sigmas(np.linalg.norm(a - b, axis=1)[:, None], np.full(5000, 5000.0), both_err=True, samples=50)
    assert found.values[0] == pytest.approx(0.05, rel=0.03)


def test_outliers_and_missed_people_hardly_matter():
    rng = np.random.default_rng(2)
    distances = drawn(0.05, 2000, 5000, rng)[:, None]
    distances[:60], distances[60:120] = 900, np.inf
    found = estimate_sigmas(distances, np.full(2000, 5000.0), both_err=False, samples=50)
    assert found.values[0] == pytest.approx(0.05, rel=0.1)


def test_a_keypoint_without_distances_gets_the_others_median():
    distances = np.array([[5.0, 10.0, np.nan]] * 3)
    found = estimate_sigmas(distances, np.full(3, 1e4), both_err=False, samples=10)
    root = np.sqrt(np.log(2))
    np.testing.assert_allclose(found.values, [0.05 / root, 0.1 / root, 0.075 / root])
    assert found.counts.tolist() == [3, 3, 0]
    assert np.isnan(found.low[2])
    exact = estimate_sigmas(np.zeros((3, 1)), np.full(3, 1e4), both_err=False, samples=10)
    assert exact.values[0] == SMALLEST
    with pytest.raises(ValueError, match="no keypoint is labelled in both"):
        estimate_sigmas(np.full((2, 2), np.nan), np.ones(2), both_err=True)


def test_repeated_labels_on_the_command_line(tmp_path, capsys):
    """A second labeller on two of three pictures, in another order, two pixels off: of a box of 50 x 50."""
    rng = np.random.default_rng(0)
    for name, ids, moved in (("one", (1, 2, 3), 0.0), ("two", (3, 1), 2.0)):
        (tmp_path / name).mkdir()
        people = [person(i, i, bbox=[5, 2, 50, 50]) for i in ids]
        for a in people:
            a["keypoints"] = [v + moved * (k % 3 == 0) for k, v in enumerate(a["keypoints"])]
        write(tmp_path / name, labels(people, ids))
    files = [str(tmp_path / name / "labels.json") for name in ("one", "two")]
    assert main(["sigmas", files[0], "--repeat", files[1]]) == 0
    out = capsys.readouterr().out
    expected = np.sqrt(4 / 2500 / 2 / np.log(2))
    assert f"sigmas: [{', '.join([f'{expected:.3f}'] * 17)}]" in out
    assert "hardly an estimate: nose" in out
    content = json.loads((tmp_path / "two" / "labels.json").read_text())
    for image in content["images"]:
        image["file_name"] = f"other{image['id']}.png"
    (tmp_path / "two" / "other.json").write_text(json.dumps(content))
    for i in (1, 3):
        (tmp_path / "two" / "images" / f"other{i}.png").write_bytes(rng.bytes(10))
    assert main(["sigmas", files[0], "--repeat", str(tmp_path / "two" / "other.json")]) == 2
    assert "labels no picture of" in capsys.readouterr().err
