"""Issue "From checkpoint to production": a tiny ViTPose and an ONNX SimCC teacher, each distilled into an ELPN."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.tiny_training import tiny

from posekd.engine.progress import read_log
from posekd.engine.train import train

pytestmark = pytest.mark.slow

STEPS = 50


def simcc(folder) -> str:
    """A convolutional network of random weights with RTMPose's two outputs, of SimCC's softmax-like peaks."""
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    make, value, array = onnx.helper.make_node, onnx.helper.make_tensor_value_info, onnx.numpy_helper.from_array
    rng = np.random.default_rng(0)
    nodes = [make("Conv", ["images", "kernel"], ["maps"], pads=[3, 3, 3, 3])]
    initializers = [array((rng.normal(size=(17, 3, 7, 7)) / 12).astype(np.float32), "kernel")]
    for name, axis in (("simcc_x", 2), ("simcc_y", 3)):
        initializers += [array(np.array([axis]), f"axis_{name}"), array(np.array([1, 1, 2], np.float32), f"by_{name}")]
        nodes += [
            make("ReduceMax", ["maps", f"axis_{name}"], [f"line_{name}"], keepdims=0),
            make("Resize", [f"line_{name}", "", f"by_{name}"], [f"fine_{name}"], mode="linear"),
            make("Sigmoid", [f"fine_{name}"], [name]),
        ]
    images = value("images", onnx.TensorProto.FLOAT, ["B", 3, 64, 64])
    outputs = [value(name, onnx.TensorProto.FLOAT, None) for name in ("simcc_x", "simcc_y")]
    graph = onnx.helper.make_graph(nodes, "simcc", [images], outputs, initializers)
    path = str(folder / "simcc.onnx")
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def vitpose(folder) -> str:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    backbone = transformers.VitPoseBackboneConfig(
        image_size=[64, 64], patch_size=[16, 16], hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        mlp_ratio=2, num_experts=2, part_features=8, out_indices=[2],
    )  # fmt: skip
    config = transformers.VitPoseConfig(backbone_config=backbone, num_labels=17, initializer_range=0.2)
    transformers.VitPoseForPoseEstimation(config).save_pretrained(folder / "vitpose")
    return str(folder / "vitpose")


@pytest.mark.parametrize("kind", ["huggingface", "onnx"])
def test_fifty_steps_from_a_foreign_teacher(tmp_path, kind, capsys):
    path = vitpose(tmp_path) if kind == "huggingface" else simcc(tmp_path)
    recipe = tiny(
        tmp_path / "run", "-", teacher={"name": kind, "path": path}, train__validate_every=0, val_data=None,
        method={"name": "mapd", "alpha": 0.8, "beta": 0.1},
        train__epochs=STEPS // 2, loader__batch_size=12, optim={"lr": 0.01},
    )  # fmt: skip
    train(recipe)
    told = capsys.readouterr().err
    assert ("expert 0 of 2: heatmaps; UDP's heatmaps" if kind == "huggingface" else "(1, 17, 128): simcc") in told
    records = [r for r in read_log(tmp_path / "run" / "log.jsonl") if r["kind"] == "train"]
    assert len(records) == STEPS  # 12 images have people for two batches
    for name in ("loss", "teacher_mse"):
        values = np.array([record[name] for record in records])
        assert np.isfinite(values).all()
        # by thirds, so that one step is no judge
        first, last = values[: STEPS // 3].mean(), values[-STEPS // 3 :].mean()
        print(f"{kind} {name}: {first:.5f} -> {last:.5f}")
        assert last < 0.9 * first, name
