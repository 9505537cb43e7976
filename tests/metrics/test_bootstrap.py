"""The paired bootstrap: its AP is pycocotools', its interval covers what it should."""

from __future__ import annotations

import numpy as np
import pytest

from posekd.metrics import evaluate_coco, paired_bootstrap
from posekd.skeleton import COCO


def scene(images: int = 30, seed: int = 0) -> tuple[dict, dict[str, list[dict]]]:
    """Labels, and results of three networks: exact, off by chance, and exact in every second image."""
    rng = np.random.default_rng(seed)
    labels, results = [], {"exact": [], "rough": [], "half": []}
    for image in range(images):
        for person in range(int(rng.integers(0, 4))):
            points = rng.uniform(20, 180, (17, 2))
            flat = np.column_stack((points, np.full(17, 2))).ravel().tolist()
            labels.append(
                {"id": len(labels) + 1, "image_id": image, "category_id": 1, "iscrowd": int(person == 3), "area": 9e3,
                 "bbox": [20, 20, 160, 160], "keypoints": flat, "num_keypoints": 17}
            )  # fmt: skip
            for name, spread in (("exact", 0.0), ("rough", 9.0), ("half", 0.0 if image % 2 else 400.0)):
                moved = np.column_stack((points + rng.normal(0, 1, (17, 2)) * spread, np.ones(17)))
                results[name].append(
                    {"image_id": image, "category_id": 1, "keypoints": moved.ravel().tolist(),
                     "score": float(rng.uniform(0.1, 1))}
                )  # fmt: skip
    truth = {
        "images": [{"id": i} for i in range(images)],
        "annotations": labels,
        "categories": [{"id": 1, "name": "person", "keypoints": list(COCO.keypoints)}],
    }
    return truth, results


@pytest.mark.parametrize("before", ["exact", "rough", "half"])
def test_the_ap_is_pycocotools(before):
    truth, results = scene()
    gain = paired_bootstrap(truth, results[before], results["exact"], samples=0)
    assert gain.before == pytest.approx(evaluate_coco(truth, results[before]).AP)
    assert gain.after == pytest.approx(1)
    assert gain.value == gain.after - gain.before


def test_the_interval():
    truth, results = scene()
    same = paired_bootstrap(truth, results["rough"], results["rough"], samples=50)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    gain = paired_bootstrap(truth, results["half"], results["exact"], samples=300)
    assert 0 < gain.low < gain.value < gain.high
    assert gain == paired_bootstrap(truth, results["half"], results["exact"], samples=300)
    assert gain != paired_bootstrap(truth, results["half"], results["exact"], samples=300, seed=1)
    # far fewer images, far less sure
    few, found = scene(images=6)
    wide = paired_bootstrap(few, found["half"], found["exact"], samples=300)
    assert wide.high - wide.low > gain.high - gain.low


def test_results_without_anybody():
    truth, results = scene()
    gain = paired_bootstrap(truth, [], results["exact"], samples=20)
    assert gain.before == 0
    assert gain.low == pytest.approx(1)
