"""Every named model, exported and verified: `python benchmarks/export_models.py`.

Weights are random, norms have the statistics of random images, inputs are as small as a network allows: what is looked
at is whether the file says what the network says, not how well. Each model is exported in a process of its own, for
exporting one takes minutes and gigabytes. A model whose row is in the results is not exported again; `--table` prints
the rows as Markdown for `docs/export.md`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "export_models.json"
SMALL = 64  # pixels of a side, where a network takes any size


@dataclass(frozen=True)
class Row:
    """A model's export.

    Attributes:
        model: its name.
        size: height and width of the input.
        megabytes: size of the file.
        nodes: operations in the graph.
        seconds: that the export took.
        output: largest deviation of a score (the heatmap's value at a keypoint), as a share of the largest score.
        keypoints: that were compared.
        sure: of these, with a place beyond doubt.
        worst: the largest deviation of these, in pixels of the image.
    """

    model: str
    size: tuple[int, int]
    megabytes: float
    nodes: int
    seconds: float
    output: float
    keypoints: int
    sure: int
    worst: float


def export(name: str) -> Row:
    """Exports one model with random weights, and compares."""
    import numpy as np
    import onnx
    import torch

    from posekd.data.sources.arrays import ImagesInMemory
    from posekd.deploy.export import export_onnx
    from posekd.deploy.load import Ready
    from posekd.deploy.onnx_finder import OnnxFinder
    from posekd.deploy.verify import compare
    from posekd.models import create_model
    from posekd.paradigms import paradigm_of
    from posekd.skeleton import COCO

    torch.manual_seed(0)
    try:
        model = create_model(name, COCO.num_keypoints, size=(SMALL, SMALL))
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, SMALL, SMALL))
    except (ValueError, RuntimeError):  # its patches, or its depth, need more pixels
        model = create_model(name, COCO.num_keypoints)
    settle(model)
    paradigm = paradigm_of(model)
    settings = paradigm.inference()
    lowest = {name: 0.0 for name in ("detection_threshold", "box_threshold", "keypoint_threshold") if not crops(model)}
    fewer = {"max_people": 20, "max_boxes": 8}
    changes = {key: value for key, value in {**lowest, **fewer, "oks_threshold": 1.0}.items() if hasattr(settings, key)}
    found = Ready(model, COCO, replace(settings, **changes), 1.25)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((90, 120), (120, 70), (64, 64))]
    boxes = [np.array([[5, 5, 60, 80], [-10, 20, 50, 50]]), np.array([[0, 0, 70, 120]]), np.zeros((0, 4))]
    source = ImagesInMemory(images, COCO, boxes if paradigm.crops_boxes else None)
    with tempfile.TemporaryDirectory() as folder:
        path, start = Path(folder) / "m.onnx", time.perf_counter()
        export_onnx(found, path)
        seconds = time.perf_counter() - start
        people, _, deviation = compare(found, OnnxFinder(path, threads=1), source)
        nodes, size = len(onnx.load(str(path)).graph.node), path.stat().st_size
    largest = float(people.keypoints[..., 2].abs().max())
    return Row(
        name, model.spec.size, round(size / 2**20, 2), nodes, round(seconds, 1), deviation.score / largest,
        deviation.persons * COCO.num_keypoints, deviation.sure, deviation.worst_sure,
    )  # fmt: skip


def crops(model: object) -> bool:
    """Whether a network sees crops."""
    from posekd.paradigms import paradigm_of

    return paradigm_of(model).crops_boxes  # type: ignore[arg-type]


def settle(model: object) -> None:
    """Gives norms the statistics of random images, so that a deep network neither vanishes nor explodes."""
    import torch

    assert isinstance(model, torch.nn.Module)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # a plain mean
    model.train()
    with torch.no_grad():
        for seed in range(2):
            images = torch.randn(4, 3, *model.spec.size, generator=torch.Generator().manual_seed(seed))  # type: ignore[misc]
            model(images)
    for norm in norms:
        norm.momentum = 0.1
    model.eval()


def read() -> dict[str, dict[str, object]]:
    """Rows so far, by model."""
    if not RESULTS.is_file():
        return {}
    rows: dict[str, dict[str, object]] = json.loads(RESULTS.read_text())
    return rows


def table(rows: dict[str, dict[str, object]]) -> str:
    """The rows in Markdown."""
    lines = [
        "| model | input | MiB | operations | scores: worst, of the largest | beyond doubt | the worst of them |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, values in rows.items():
        r = Row(**values)  # type: ignore[arg-type]
        lines.append(
            f"| `{name}` | {r.size[0]}x{r.size[1]} | {r.megabytes:.1f} | {r.nodes} | {r.output:.1e} | "
            f"{r.sure} of {r.keypoints} | {r.worst:.4f} px |"
        )
    return "\n".join(lines)


def main() -> int:
    """Exports what has no row yet; 1 if some model could not be exported."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", help="names (default: all)")
    parser.add_argument("--one", metavar="NAME", help="export this one and print its row as JSON")
    parser.add_argument("--table", action="store_true", help="print the table of the rows there are")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(asdict(export(options.one))))
        return 0
    if options.table:
        print(table(read()))
        return 0
    from posekd.files import write_atomically
    from posekd.models.zoo import MODELS

    failed = []
    for name in options.models or MODELS:
        rows = read()
        if name in rows:
            continue
        done = subprocess.run([sys.executable, __file__, "--one", name], capture_output=True, text=True, check=False)
        if done.returncode:
            failed.append(name)
            print(f"{name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        rows[name] = json.loads(done.stdout.strip().splitlines()[-1])
        order = [model for model in MODELS if model in rows]
        write_atomically(RESULTS, json.dumps({model: rows[model] for model in order}, indent=1) + "\n")
        print(f"{name}: {rows[name]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
