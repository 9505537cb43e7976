"""Every named network says the same as its ONNX file."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from helpers.pictures import picture
from helpers.tiny_models import tiny_model

from posekd.deploy.load import Ready
from posekd.deploy.predict import predict, predict_with
from posekd.models import PoseModel, create_model
from posekd.models.zoo import MODELS
from posekd.paradigms import TopDownInference
from posekd.skeleton import COCO

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from posekd.deploy.export import export_onnx
from posekd.deploy.onnx_finder import OnnxFinder

TINY = ("hrnet_w32", "elpn_v1", "simplebaseline_r50", "hourglass_4x128", "pyranet")
OWN_SIZE = ("tokenpose_s", "distilpose_s", "deeppose_r50")  # patches fix the size
FAMILIES = (*TINY, *OWN_SIZE)
IN_CI = (
    "elpn_v1",
    "hourglass_4x128",
    "distilpose_s",
)  # SimpleBaseline is in test_export.py, others in test_whole_images


def load(name: str) -> ModuleType:
    """A program of `benchmarks/`, which is no package of an installed posekd's tests."""
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def network(name: str) -> PoseModel:
    if name in TINY:
        return tiny_model(name, 17)
    torch.manual_seed(0)
    return create_model(name, 17).eval()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in IN_CI else pytest.mark.long) for name in FAMILIES]
)
def test_every_family_s_export_is_equal(name, tmp_path):
    model, settings = network(name), TopDownInference(oks_threshold=1.0)
    export_onnx(Ready(model, COCO, settings, 1.25), tmp_path / "m.onnx")
    finder = OnnxFinder(tmp_path / "m.onnx", threads=1)
    rng = np.random.default_rng(0)
    boxes = [np.column_stack([rng.uniform(-5, 30, (n, 2)), rng.uniform(10, 50, (n, 2))]) for n in (3, 0, 1)]
    images = [picture(seed, 40 + 20 * seed, 64) for seed in range(3)]
    people = predict(model, images, boxes=boxes, settings=settings)
    others = predict_with(finder, images, boxes)
    assert len(people) == len(others) == 4
    for image in (0, 2):
        one, other = people.take(people.image_ids == image), others.take(others.image_ids == image)
        a, b = one.keypoints[torch.argsort(one.sample_ids)], other.keypoints[torch.argsort(other.sample_ids)]
        scale = float(a[..., 2].abs().max())
        torch.testing.assert_close(a[..., 2], b[..., 2], rtol=0, atol=1e-4 * scale)
        moved = (a[..., :2] - b[..., :2]).norm(dim=-1)
        assert float(moved.median()) < 1e-3
        assert float((moved < 0.1).float().mean()) > 0.9  # random networks have ties


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_every_named_model_s_export_is_equal(name):
    """With random weights, as `benchmarks/results/export_models.json` has it."""
    export_models = load("export_models")
    done = subprocess.run(
        [sys.executable, export_models.__file__, "--one", name], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    row = export_models.Row(**json.loads(done.stdout.splitlines()[-1]))
    assert row.sure > 0
    assert row.output < 1e-4
    assert row.worst < 0.1
