"""`posekd predict` beside its network alone, on one CPU thread: `python benchmarks/predict_throughput.py`.

The same people, 16 to a batch: once as crops that are ready in memory through the network alone, once as image files
from disk to keypoints (`deploy.predict.stream`: decoding, cropping, network, decoding of heatmaps, duplicates). Rounds
alternate. Processor time is of all threads, so decoding that runs beside the network counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from posekd.deploy.finder import NetworkFinder
from posekd.deploy.frames import open_clips
from posekd.deploy.predict import stream
from posekd.files import write_atomically
from posekd.models import create_model
from posekd.paradigms import TopDownInference
from posekd.skeleton import COCO

BATCH = 16
RESULTS = Path(__file__).parent / "results" / "predict_throughput.json"


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Processor and wall seconds."""
    processor, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - processor, time.perf_counter() - wall


def main() -> int:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description="posekd predict beside its network alone")
    parser.add_argument("--model", default="hrnet_w32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = create_model(options.model, 17).eval()
    settings = TopDownInference(flip_test=False)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(options.images):
            coarse = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
            cv2.imwrite(f"{folder}/{i:03}.jpg", cv2.resize(coarse, (640, 480), interpolation=cv2.INTER_CUBIC))
        finder = NetworkFinder(model, COCO, settings, batch_size=BATCH)
        crops = torch.randn(BATCH, 3, *model.spec.size)

        def network() -> None:
            with torch.inference_mode():
                for _ in range(options.images // BATCH):
                    model(crops)

        def predict() -> None:
            found = sum(len(one.people) for one in stream(finder, open_clips(folder), batch_size=BATCH, threads=1))
            assert found == options.images

        network(), predict()  # once to warm up
        rounds = [(timed(network), timed(predict)) for _ in range(options.rounds)]
    shares = {kind: [alone[i] / whole[i] for alone, whole in rounds] for i, kind in enumerate(("processor", "wall"))}
    row = {
        "model": options.model,
        "input": list(model.spec.size),
        "images": options.images,
        "batch": BATCH,
        "processor_seconds": [[round(alone[0], 3), round(whole[0], 3)] for alone, whole in rounds],
        **{f"share_of_network_{kind}": round(statistics.median(values), 3) for kind, values in shares.items()},
    }
    rows = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    write_atomically(RESULTS, json.dumps({**rows, options.model: row}, indent=1) + "\n")
    print(row)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
