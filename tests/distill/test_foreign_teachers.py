"""Teachers from elsewhere: ONNX files of heatmaps and of SimCC, and any PyTorch module; a student learns from each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.tiny_training import losses, tiny
from torch import nn

from posekd.codecs.foreign import Meaning, as_heatmaps, from_simcc, meaning_of
from posekd.data.loading.teacher_maps import TeacherMaps
from posekd.distill.convert import from_corners
from posekd.distill.teachers import OnnxTeacher, input_of, torch_teacher
from posekd.engine.build import open_training_data
from posekd.engine.teacher_cache import cache_teacher
from posekd.engine.teachers import build_teacher, open_cache, teacher_facts
from posekd.engine.train import train
from posekd.ops import decode_heatmaps
from posekd.skeleton import COCO
from posekd.structures import InputSpec

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

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
    if kind.startswith("coordinates"):  # means of the input's quarters, projected on x and y and made fractions
        numbers = {"coordinates": 2, "coordinates_scores": 3}[kind]
        names = ["points"]
        weights = np.random.default_rng(0).normal(size=(12, keypoints * numbers)).astype(np.float32)
        initializers = [
            onnx.numpy_helper.from_array(weights, "weights"),
            onnx.numpy_helper.from_array(np.array([0, keypoints, numbers]), "shape"),
        ]
        nodes = [
            make("AveragePool", ["images"], ["pooled"], kernel_shape=[size[0] // 2, size[1] // 2],
                 strides=[size[0] // 2, size[1] // 2]),
            make("Flatten", ["pooled"], ["flat"]),
            make("MatMul", ["flat", "weights"], ["projected"]),
            make("Sigmoid", ["projected"], ["fractions"]),
            make("Reshape", ["fractions", "shape"], ["points"]),
        ]  # fmt: skip
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


class Regressor(nn.Module):
    """Coordinates in pixels, `[B, 2 K]`."""

    spec = InputSpec((64, 64))

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2 * K)

    def forward(self, images):
        return 32 + 10 * self.layer(images.mean((2, 3)))


def regressor() -> nn.Module:
    torch.manual_seed(0)
    return Regressor()


def no_spec() -> nn.Module:
    return Module(told=False)


# ---- ONNX ------------------------------------------------------------------------------------------------------------


def test_heatmaps_of_a_file_are_its_own(tmp_path):
    teacher = OnnxTeacher(file(tmp_path / "t.onnx", "heatmaps"), {"mean": [0.5, 0.5, 0.5], "bgr": True})
    assert teacher.spec == InputSpec((64, 64), mean=(0.5, 0.5, 0.5), bgr=True)
    assert (teacher.meaning.codec, teacher.meaning.num_keypoints) == ("heatmaps", K)
    assert teacher.meaning.said == "t.onnx gives (1, 17, 16, 16): heatmaps"
    images = torch.randn(3, 3, 64, 64)
    weights = torch.from_numpy(np.random.default_rng(0).normal(size=(K, 3, 1, 1))).float()
    expected = nn.functional.conv2d(nn.functional.avg_pool2d(images, 4), weights)
    torch.testing.assert_close(teacher(images), expected, rtol=1e-4, atol=1e-5)
    fixed = OnnxTeacher(file(tmp_path / "two.onnx", "heatmaps", batch=2))  # a file of a fixed batch size
    torch.testing.assert_close(fixed(images), expected, rtol=1e-4, atol=1e-5)


def test_simcc_is_told_by_its_shapes(tmp_path):
    teacher = OnnxTeacher(file(tmp_path / "t.onnx", "simcc"))
    assert teacher.meaning.codec == "simcc"
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


def test_coordinates_of_a_file_become_gaussians_at_them(tmp_path):
    path = file(tmp_path / "t.onnx", "coordinates_scores")
    teacher = OnnxTeacher(path)
    assert teacher.meaning.said == (
        "t.onnx gives (1, 17, 3): coordinates as fractions of the input (values 0.50 to 0.50; teacher.units says "
        "otherwise), with scores"
    )
    images = torch.randn(2, 3, 64, 64)
    said = torch.from_numpy(onnxruntime.InferenceSession(path).run(None, {"images": images.numpy()})[0])
    maps = teacher(images)
    v, u = torch.arange(16.0)[:, None], torch.arange(16.0)
    x, y, score = said[1, 3]
    expected = score * torch.exp(-((u - x * 16) ** 2 + (v - y * 16) ** 2) / (2 * 2.0**2))
    torch.testing.assert_close(maps[1, 3], expected)
    pixels = OnnxTeacher(path, units="pixels")  # overridden
    assert pixels.meaning.said == "t.onnx gives (1, 17, 3): coordinates in pixels of the input, with scores"
    x, y = said[1, 3, :2] / 4
    torch.testing.assert_close(pixels(images)[1, 3], score * torch.exp(-((u - x) ** 2 + (v - y) ** 2) / (2 * 2.0**2)))


SHAPES = {
    "plain": ([(1, 5, 2)], "coordinates"),
    "with scores beside": ([(1, 5, 2), (1, 5)], "coordinates in pixels of the input (values 20.00 to 20.00; "
                           "teacher.units says otherwise), with scores"),
    "with sigmas": ([(1, 5, 4)], "with sigmas"),
    "with both beside": ([(1, 5, 2), (1, 5, 1), (1, 5, 2)], "with scores and sigmas"),
    "flat": ([(1, 10)], "(1, 10): coordinates in pixels"),
    "heatmaps": ([(1, 5, 16, 12)], "(1, 5, 16, 12): heatmaps"),
    "simcc": ([(1, 5, 96), (1, 5, 128)], "simcc"),
}  # fmt: skip


@pytest.mark.parametrize("case", SHAPES)
def test_the_meaning_of_shapes(case):
    shapes, words = SHAPES[case]
    found = meaning_of([torch.full(shape, 20.0) for shape in shapes], (64, 48))
    assert found.num_keypoints == 5
    assert words in found.said


def test_flat_outputs_of_three_numbers_need_the_number_of_keypoints():
    outputs = [torch.full((1, 15), 0.5)]
    assert meaning_of(outputs, (64, 48), num_keypoints=5).num_keypoints == 5
    with pytest.raises(ValueError, match=r"gives \[\(1, 15\)\], which are nothing that is known"):
        meaning_of(outputs, (64, 48))
    with pytest.raises(ValueError, match=r"teacher.units 'metres' is not known: pixels, fractions, centred"):
        meaning_of(outputs, (64, 48), units="metres", num_keypoints=5)
    with pytest.raises(ValueError, match=r"teacher.units are of coordinates, and the network gives heatmaps"):
        meaning_of([torch.zeros(1, 5, 8, 8)], (64, 48), units="pixels")


@pytest.mark.parametrize("units", ["pixels", "fractions", "centred"])
def test_sigmas_are_in_the_unit_of_their_coordinates(units):
    x, y, sx, sy = 12.0, 40.0, 8.0, 2.0  # input pixels; a sigma of half a heatmap pixel is drawn as 1
    scale = {"pixels": torch.ones(2), "fractions": torch.tensor([48.0, 64]), "centred": torch.tensor([48.0, 64])}[units]
    shift = 0.5 if units == "centred" else 0.0
    said = torch.cat((torch.tensor([x, y]) / scale - shift, torch.tensor([sx, sy]) / scale))[None, None]
    maps = as_heatmaps([said], Meaning("coordinates", 1, units, ""), (64, 48))
    u, v = torch.arange(12.0), torch.arange(16.0)[:, None]
    torch.testing.assert_close(maps[0, 0], torch.exp(-((u - 3) ** 2 / 4 + (v - 10) ** 2) / 2))


def test_heatmaps_of_udp_stand_where_the_students_do():
    """UDP: pixel u of 48 stands at input pixel u 191 / 47; the student's at 4 u."""
    at = torch.tensor([37.0, 50.0])
    u, v = torch.arange(48.0), torch.arange(64.0)[:, None]
    maps = torch.exp(-((u - at[0]) ** 2 + (v - at[1]) ** 2) / 8)[None, None]
    found = decode_heatmaps(from_corners(maps, (256, 192)), "dark")[0, 0]
    torch.testing.assert_close(found[:2], at * torch.tensor([191 / 47, 255 / 63]) / 4, rtol=0, atol=0.05)


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
        ({"name": "onnx"}, "and teacher.path belong together"),
        ({"name": "hrnet_w32", "weights": "w", "path": "t.onnx"}, "and teacher.path belong together"),
        ({"name": "torch", "path": "x"}, "belong together"),
        ({"name": "hrnet_w32", "weights": "w", "codec": "simcc"}, "teacher.codec is of a teacher of the name onnx"),
        ({"name": "onnx", "path": "x", "dataset": 1}, "teacher.dataset is of a teacher of the name huggingface"),
        ({"name": "huggingface"}, "teacher.name huggingface and teacher.path belong together"),
        ({"name": "hrnet_w32", "weights": "w", "udp": True}, "teacher.udp is of a network from elsewhere"),
        ({"name": "onnx", "path": "x", "weights": "w"}, "has its own weights"),
        ({"name": "onnx", "path": "x", "keypoints": "cocoa"}, "there is no set of keypoints 'cocoa': coco, "),
    ],
)
def test_settings_that_do_not_go_together(tmp_path, teacher, message):
    with pytest.raises(ValueError, match=message):
        recipe(tmp_path, teacher)


def test_keypoints_are_matched_by_name(tmp_path):
    names = [*reversed(COCO.keypoints), "tail"]
    path = file(tmp_path / "t.onnx", "heatmaps", keypoints=18)
    made = recipe(tmp_path, {"name": "onnx", "path": path, "keypoints": names})
    with pytest.warns(UserWarning, match=r"matched by name, and 1 of its keypoints are left out"):
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


@pytest.mark.parametrize("kind", ["simcc", "coordinates", "heatmaps"])
def test_a_cache_holds_what_it_says(tmp_path, kind):
    path = file(tmp_path / "t.onnx", kind)
    made = recipe(tmp_path / "run", {"name": "onnx", "path": path}, train_data={"name": "synthetic", "images": 2})
    card = cache_teacher(made, tmp_path / "cache", margin=1.0, bits=16)
    assert card.shape == (K, 16, 16)
    source = open_training_data(made)
    assert (
        len(TeacherMaps(tmp_path / "cache").read(np.arange(len(source.records)), source.records).maps) == card.persons
    )
    changed = replace(made, train=replace(made.train, teacher_cache=str(tmp_path / "cache")))
    assert open_cache(changed, source) is not None
    with pytest.raises(ValueError, match=r"was made with codec None, the recipe says 'heatmaps'"):
        open_cache(replace(changed, teacher=replace(made.teacher, codec="heatmaps")), source)


@pytest.mark.parametrize("kind", ["coordinates", "regressor", pytest.param("heatmaps", marks=pytest.mark.slow)])
def test_a_student_learns_from_it(tmp_path, kind):
    factories = {"regressor": "regressor"}
    teacher = {"name": "torch", "factory": f"{__name__}:{factories.get(kind)}"}
    if kind not in factories:
        teacher = {"name": "onnx", "path": file(tmp_path / "t.onnx", kind)}
    steps = {"train__epochs": 12, "loader__batch_size": 12, "optim": {"lr": 0.02}}  # each step sees everybody
    train(recipe(tmp_path / "run", teacher, **steps))
    values = [loss for _, loss in losses(tmp_path / "run")]
    assert np.isfinite(values).all()
    assert values[-1] < 0.97 * values[0]
