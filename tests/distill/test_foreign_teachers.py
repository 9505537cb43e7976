"""Teachers from elsewhere: ONNX files of heatmaps and of SimCC, and any PyTorch module; a student learns from each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.tiny_training import losses, tiny
from torch import nn

from posekd.distill.teachers import OnnxTeacher, from_simcc, input_of, torch_teacher
from posekd.engine.build import build_teacher, teacher_facts
from posekd.engine.train import train
from posekd.ops import decode_heatmaps
from posekd.skeleton import COCO
from posekd.structures import InputSpec

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

K = 17


def file(path, kind: str, batch: int | str = "B", size=(64, 64), keypoints: int = K):
    """A network that blurs its input and projects it on K maps; `simcc` gives their columns and rows, twice as fine."""
    make, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    weights = np.random.default_rng(0).normal(size=(keypoints, 3, 1, 1)).astype(np.float32)
    stride = 4 if kind == "heatmaps" else 1
    nodes = [
        make("AveragePool", ["images"], ["pooled"], kernel_shape=[stride, stride], strides=[stride, stride]),
        make("Conv", ["pooled", "weights"], ["maps"]),
    ]
    names = ["maps"]
    initializers = [onnx.numpy_helper.from_array(weights, "weights")]
    if kind == "simcc":
        names = ["simcc_x", "simcc_y"]
        for name, axis in zip(names, (2, 3), strict=True):
            initializers.append(onnx.numpy_helper.from_array(np.array([axis]), f"axis_{name}"))
            nodes.append(make("ReduceMean", ["maps", f"axis_{name}"], [f"mean_{name}"], keepdims=0))
            initializers.append(onnx.numpy_helper.from_array(np.array([1, 1, 2], np.float32), f"scale_{name}"))
            nodes.append(make("Resize", [f"mean_{name}", "", f"scale_{name}"], [name], mode="nearest"))
    inputs = [value("images", onnx.TensorProto.FLOAT, [batch, 3, *size])]
    outputs = [value(name, onnx.TensorProto.FLOAT, None) for name in names]
    graph = onnx.helper.make_graph(nodes, "teacher", inputs, outputs, initializers)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), str(path))
    return str(path)


class Module(nn.Module):
    """What `factory` gives: someone's network, which knows nothing of posekd but the type of its input."""

    def __init__(self, told: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        if told:
            self.spec = InputSpec((64, 64))
        self.conv = nn.Conv2d(3, K, 4, 4)

    def forward(self, images):
        return self.conv(images)


def factory() -> nn.Module:
    return Module()


def no_spec() -> nn.Module:
    return Module(told=False)


# ---- ONNX ------------------------------------------------------------------------------------------------------------


def test_heatmaps_of_a_file_are_its_own(tmp_path):
    teacher = OnnxTeacher(file(tmp_path / "t.onnx", "heatmaps"), {"mean": [0.5, 0.5, 0.5], "bgr": True})
    assert teacher.spec == InputSpec((64, 64), mean=(0.5, 0.5, 0.5), bgr=True)
    assert (teacher.codec, teacher.num_keypoints) == ("heatmaps", K)
    assert teacher.said == "t.onnx gives (1, 17, 16, 16): heatmaps"
    images = torch.randn(3, 3, 64, 64)
    weights = torch.from_numpy(np.random.default_rng(0).normal(size=(K, 3, 1, 1))).float()
    expected = nn.functional.conv2d(nn.functional.avg_pool2d(images, 4), weights)
    torch.testing.assert_close(teacher(images), expected, rtol=1e-4, atol=1e-5)
    fixed = OnnxTeacher(file(tmp_path / "two.onnx", "heatmaps", batch=2))  # a file of a fixed batch size
    torch.testing.assert_close(fixed(images), expected, rtol=1e-4, atol=1e-5)


def test_simcc_is_told_by_its_shapes(tmp_path):
    teacher = OnnxTeacher(file(tmp_path / "t.onnx", "simcc"))
    assert teacher.codec == "simcc"
    maps = teacher(torch.randn(2, 3, 64, 64))
    assert maps.shape == (2, K, 16, 16)
    assert float(maps.min()) >= 0
    assert float(maps.max()) <= 1


def test_simcc_peaks_stand_where_rtmpose_decodes_them():
    """RTMPose decodes a keypoint at (argmax of the vector) / bins per pixel, with the smaller maximum as its score."""
    H, W, bins = 64, 48, 2
    x, y = torch.tensor([3.0, 20.0, 44.0]), torch.tensor([8.0, 31.0, 60.0])

    def vector(at, side, height):
        return height * torch.exp(-((torch.arange(side * bins) / bins - at[:, None]) ** 2) / (2 * 2.5**2))[None]

    maps = from_simcc(vector(x, W, 0.8), vector(y, H, 0.6), (H, W))
    assert maps.shape == (1, 3, 16, 12)
    found = decode_heatmaps(maps, "quarter")[0]
    torch.testing.assert_close(found[:, 2], torch.full((3,), 0.6), rtol=0, atol=1e-6)
    # to half a heatmap pixel, which is what four input pixels can tell
    torch.testing.assert_close(4 * found[:, 0], x, rtol=0, atol=2.0)
    torch.testing.assert_close(4 * found[:, 1], y, rtol=0, atol=2.0)


def test_what_is_no_teacher_is_refused_with_its_shapes(tmp_path):
    path = file(tmp_path / "t.onnx", "heatmaps")
    with pytest.raises(ValueError, match=r"gives \[\(1, 17, 16, 16\)\], which are not simcc: heatmaps are"):
        OnnxTeacher(path, codec="simcc")
    with pytest.raises(ValueError, match=r"the teacher's input is 64x64, and teacher\.overrides\.size says"):
        OnnxTeacher(path, {"size": [128, 128]})
    with pytest.raises(ValueError, match=r"teacher\.overrides\.means: .*did you mean 'mean'"):
        input_of({"means": 1}, (64, 64))
    with pytest.raises(ValueError, match=r"give teacher\.overrides\.size"):
        input_of({})
    with pytest.raises(FileNotFoundError):
        OnnxTeacher(tmp_path / "none.onnx")


# ---- PyTorch ---------------------------------------------------------------------------------------------------------


def test_a_function_gives_any_module_with_a_spec():
    network = torch_teacher(f"{__name__}:factory")
    assert isinstance(network, nn.Module)
    assert (network.paradigm, network.output, network.name) == ("top_down", "heatmaps", "factory")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_colon", "is package.module:function, got 'no_colon'"),
        ("nowhere.module:f", "cannot be found: No module named 'nowhere'"),
        ("posekd.names:nothing", "cannot be found: module 'posekd.names' has no attribute 'nothing'"),
        ("posekd.names:infer_flip", ""),
        (f"{__name__}:no_spec", "gave a Module, and a torch module with `spec: InputSpec` is needed"),
    ],
)
def test_functions_that_give_none_are_refused(name, message):
    if name.endswith("infer_flip"):  # the function's own error is its own
        with pytest.raises(TypeError):
            torch_teacher(name)
        return
    with pytest.raises(ValueError, match=message):
        torch_teacher(name)


# ---- Recipes ---------------------------------------------------------------------------------------------------------


def recipe(folder, teacher, **changes):
    return tiny(folder, "unused", teacher=teacher, train__validate_every=0, val_data=None, **changes)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"name": "onnx"}, "teacher.name onnx and teacher.path belong together"),
        ({"name": "hrnet_w32", "weights": "w", "path": "t.onnx"}, "teacher.name onnx and teacher.path belong together"),
        ({"name": "torch", "path": "x"}, "belong together"),
        ({"name": "torch", "factory": "a:b", "codec": "simcc"}, "teacher.codec says what the file"),
        ({"name": "onnx", "path": "x", "weights": "w"}, "has its own weights"),
        ({"name": "hrnet_w32", "weights": "w", "keypoints": ["a"]}, "of a network from elsewhere"),
    ],
)
def test_settings_that_do_not_go_together(tmp_path, teacher, message):
    with pytest.raises(ValueError, match=message):
        recipe(tmp_path, teacher)


def test_keypoints_are_matched_by_name(tmp_path):
    names = [*reversed(COCO.keypoints), "tail"]
    path = file(tmp_path / "t.onnx", "heatmaps", keypoints=18)
    made = recipe(tmp_path, {"name": "onnx", "path": path, "keypoints": names})
    with pytest.warns(UserWarning, match="matched by name, and 1 of its keypoints are left out"):
        teacher = build_teacher(made, made.teacher, COCO)
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(teacher.model(images)[-1], OnnxTeacher(path)(images)[:, list(range(16, -1, -1))])
    unnamed = recipe(tmp_path, {"name": "onnx", "path": path})
    with pytest.raises(ValueError, match=r"gives 18 keypoints, and 17 are expected: name them"):
        build_teacher(unnamed, unnamed.teacher, COCO)


def test_a_cache_knows_the_file_by_its_content(tmp_path):
    def facts(keypoints):
        path = file(tmp_path / "t.onnx", "heatmaps", keypoints=keypoints)
        return teacher_facts(recipe(tmp_path, {"name": "onnx", "path": path}).teacher)

    assert facts(17) == facts(17)
    assert facts(17)["path"] != facts(18)["path"]


@pytest.mark.parametrize("kind", ["heatmaps", "simcc", "torch"])
def test_a_student_learns_from_it(tmp_path, kind):
    teacher = {"name": "torch", "factory": f"{__name__}:factory"}
    if kind != "torch":
        teacher = {"name": "onnx", "path": file(tmp_path / "t.onnx", kind)}
    steps = {"train__epochs": 12, "loader__batch_size": 12, "optim": {"lr": 0.02}}  # each step sees everybody
    train(recipe(tmp_path / "run", teacher, **steps))
    values = [loss for _, loss in losses(tmp_path / "run")]
    assert np.isfinite(values).all()
    assert values[-1] < 0.97 * values[0]
