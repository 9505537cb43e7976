"""Teachers of another set of keypoints: midpoints are drawn, and what they do not know is learnt from labels alone."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch
from helpers.tiny_recipe import TINY_NET
from helpers.tiny_training import tiny
from torch import nn

from posekd.codecs.reordered import Bridged, bridged_to
from posekd.distill import FPD, MAPD, DistilPose, DistilPoseSettings, FPDSettings, FrozenTeacher, MAPDSettings
from posekd.distill.smallerhrnet import SmallerHRNet
from posekd.engine.teacher_cache import cache_teacher
from posekd.engine.teachers import build_teacher
from posekd.engine.train import train
from posekd.models import create_model, save_weights
from posekd.ops import decode_heatmaps, render_heatmaps
from posekd.skeleton import COCO, MPII
from posekd.structures import CropBatch, ImageBatch, InputSpec

SPEC = InputSpec((64, 64))
BODY = ("left_hip", "right_hip", "left_knee", "right_knee")
WANTED = ("left_knee", "pelvis", "head_top")


class Peaks(nn.Module):
    """Heatmaps of four keypoints at known places, whatever the image."""

    paradigm, output, name = "top_down", "heatmaps", "peaks"
    spec, keypoint_names = SPEC, BODY

    def forward(self, images):
        points = torch.tensor([[4.0, 5, 1], [10, 7, 1], [3, 12, 1], [12, 13, 1]])
        return render_heatmaps(points.expand(len(images), 4, 3), (16, 16), 1.0)[0]


def teacher() -> FrozenTeacher:
    network, found = bridged_to(Peaks(), BODY, WANTED, "it")
    return FrozenTeacher(network, bridge=found)


def batch(visibility=(2.0, 2.0, 2.0)) -> CropBatch:
    keypoints = torch.tensor([[[20.0, 40, 2], [28, 24, 2], [32, 8, 2]]]).repeat(2, 1, 1)
    keypoints[..., 2] = torch.tensor(visibility)
    none, ids = torch.zeros(2), torch.arange(2)
    return CropBatch(torch.randn(2, 3, 64, 64), keypoints, torch.eye(2, 3).repeat(2, 1, 1), none, none, none, ids, ids)


class Student(nn.Module):
    """One heatmap each, a parameter: its gradient shows what it learns from."""

    spec = SPEC

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Parameter(torch.full((3, 16, 16), 0.1))

    def forward(self, images):
        return self.maps.expand(len(images), -1, -1, -1)


def gradient(method, given):
    sum(method(given).values()).backward()
    return method.student.maps.grad.abs().sum((1, 2))


def test_maps_are_the_teachers_midpoints_or_empty():
    asked = teacher()
    assert isinstance(asked.model, Bridged)
    assert asked.covered.tolist() == [True, True, False]
    (maps,) = asked.heatmaps(batch(), SPEC)
    whole = Peaks()(torch.zeros(2, 3, 64, 64))
    assert torch.equal(maps[:, 0], whole[:, 2])
    assert not maps[:, 2].any()
    drawn = decode_heatmaps(maps[:, 1:2], "argmax")[0, 0]
    assert drawn.tolist() == pytest.approx([7, 6, 1])  # between (4, 5) and (10, 7)


def test_a_teacher_of_nothing_that_is_wanted_is_refused():
    with pytest.raises(
        ValueError, match=r"it knows none of the data's keypoints: it has left_hip, .* and the data tail"
    ):
        bridged_to(Peaks(), BODY, ["tail", "trunk"], "it")


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (MAPD, MAPDSettings()),
        (MAPD, MAPDSettings(kl="clamped")),
        (MAPD, MAPDSettings(unlabelled_weight=0.5)),
        (FPD, FPDSettings()),
        (FPD, FPDSettings(masked=False)),
        (FPD, FPDSettings(loss="cross_entropy")),
    ],
    ids=["mapd", "mapd-clamped", "mapd-unlabelled", "fpd", "fpd-unmasked", "fpd-cross-entropy"],
)
def test_unknown_keypoints_learn_from_labels_alone(method, settings):
    """The gradient of the unknown keypoint is that of a teacher that says anything else, and not 0."""

    class Other(Peaks):
        def forward(self, images):
            return 0.5 * super().forward(images).roll((1, 2), (2, 3)) + 0.1

    both = []
    for network in (Peaks(), Other()):
        asked = FrozenTeacher(*(lambda pair: (pair[0], None, pair[1]))(bridged_to(network, BODY, WANTED, "it")))
        both.append(gradient(method(Student(), asked, settings), batch()))
    assert both[0][2] > 0
    assert both[0][2] == both[1][2]
    assert both[0][0] != both[1][0]
    assert both[0][1] != both[1][1]
    unlabelled = method(Student(), teacher(), settings)
    assert gradient(unlabelled, batch((0.0, 0.0, 0.0)))[2] == 0


def test_distilpose_draws_the_labels_of_unknown_keypoints():
    model = create_model("distilpose_s", 3, size=(64, 64), patch=(4, 4), width=8, dim=12, depth=1, heads=2)
    method = DistilPose(model, teacher(), DistilPoseSettings(keypoint_tokens=0, visual_tokens=0))
    given = batch()
    drawn = method._drawn(given, torch.zeros(2, 3, 16, 16))
    assert decode_heatmaps(drawn, "argmax")[0, :, :2].tolist() == [[5, 10], [7, 6], [8, 2]]
    assert set(method(given)) == {"labels", "simulated_heatmaps", "scores"}
    assert all(term.isfinite() for term in method(given).values())


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (MAPD, MAPDSettings(alpha=0.9, beta=0.1), "method.alpha and beta are 1 together"),
        (FPD, FPDSettings(alpha=1.0), "method.alpha is 1"),
        (DistilPose, DistilPoseSettings(labels=0.0), "method.labels is 0"),
    ],
)
def test_methods_without_labels_cannot(method, settings, message):
    assert message in method.why_not_partial(settings)


def test_bottom_up_teachers_too():
    class Tagged(nn.Module):
        paradigm, output, name, spec = "bottom_up", "tagged_heatmaps", "tagged", SPEC

        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def forward(self, images):
            return [images.new_full((1, 4, 16, 16), self.value), images.new_full((1, 2, 32, 32), self.value)]

    class Maps(nn.Module):
        spec = SPEC

        def __init__(self) -> None:
            super().__init__()
            g = torch.Generator().manual_seed(0)
            shapes = (1, 4, 16, 16), (1, 2, 32, 32)
            self.maps = nn.ParameterList([torch.rand(shape, generator=g) for shape in shapes])

        def forward(self, images):
            return list(self.maps)

    points = [torch.tensor([[[[4.0, 5, 2], [8, 8, 2]]]]) * torch.tensor([s, s, 1.0]) for s in (1, 2)]
    masks = [torch.ones(1, 16, 16, dtype=torch.bool), torch.ones(1, 32, 32, dtype=torch.bool)]
    given = ImageBatch(torch.randn(1, 3, 64, 64), points, masks, torch.eye(2, 3)[None], torch.zeros(1))

    def gradients(value):
        network, found = bridged_to(Tagged(value), ("left_hip", "right_hip"), ("left_hip", "pelvis"), "it")
        assert found.covered == (True, False)  # nobody knows whose hips belong together
        method = SmallerHRNet(Maps(), FrozenTeacher(network, bridge=found))
        sum(method(given).values()).backward()
        return [maps.grad.abs().sum((0, 2, 3)) for maps in method.student.maps]

    (coarse, fine), (other_coarse, other_fine) = gradients(0.0), gradients(0.7)
    assert (coarse == other_coarse).tolist() == [False, True, False, True]  # two heatmaps, two tags
    assert (fine == other_fine).tolist() == [False, True]
    assert fine[1] > 0


# ---- Runs ------------------------------------------------------------------------------------------------------------


def peaks() -> nn.Module:
    return Peaks()


@pytest.mark.parametrize("cached", [False, True], ids=["network", "cache"])
def test_a_run_says_what_is_what_and_writes_it_down(tmp_path, capsys, cached):
    given = {"name": "torch", "factory": f"{__name__}:peaks", "licence": "MIT"}
    recipe = tiny(tmp_path / "run", "-", teacher=given, train__validate_every=0, val_data=None, train__epochs=1)
    if cached:
        cache_teacher(recipe, tmp_path / "cache")
        changes = {"train__teacher_cache": str(tmp_path / "cache"), "train__validate_every": 0, "val_data": None}
        recipe = tiny(tmp_path / "run", "-", teacher=given, **changes)
    train(recipe)
    said = capsys.readouterr().err
    assert "4 of the data's 17 keypoints are known to the teacher" in said
    assert "not known, learnt from labels alone: nose, left_eye" in said
    told = json.loads((tmp_path / "run" / "last.json").read_text())["teacher"]
    assert told["keypoints"] == {name: [name] if name in BODY else [] for name in COCO.keypoints}
    assert (told["name"], told["licence"]) == ("torch", "MIT")


def test_a_method_that_needs_all_keypoints_refuses_before_the_first_step(tmp_path):
    given = {"name": "torch", "factory": f"{__name__}:peaks"}
    method = {"name": "fpd", "alpha": 1.0}
    recipe = tiny(tmp_path, "-", teacher=given, method=method, train__validate_every=0, val_data=None)
    with pytest.raises(
        ValueError, match=r"the teacher does not know the keypoints nose, left_eye, .*: method.alpha is 1"
    ):
        train(recipe)


def test_a_teacher_of_another_aspect_ratio_is_refused_before_the_first_step(tmp_path):
    given = {"name": "torch", "factory": f"{__name__}:tall"}
    recipe = tiny(tmp_path, "-", teacher=given, train__validate_every=0, val_data=None)
    with pytest.raises(
        ValueError, match=r"the teacher's input is 64x48 .* and the student's 64x64: another aspect ratio"
    ):
        train(recipe)


def test_an_onnx_teacher_of_another_size_is_refused_before_the_first_step(tmp_path):
    """A file for 64x48 crops, a student of 64x64: both sizes are said, and what to do."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    value, tensor = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    weights = onnx.numpy_helper.from_array(torch.ones(17, 3, 4, 4).numpy(), "weights")
    node = onnx.helper.make_node("Conv", ["images", "weights"], ["maps"], strides=[4, 4])
    images, maps = value("images", tensor, ["B", 3, 64, 48]), value("maps", tensor, None)
    graph = onnx.helper.make_graph([node], "teacher", [images], [maps], [weights])
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(made, str(tmp_path / "t.onnx"))
    given = {"name": "onnx", "path": str(tmp_path / "t.onnx")}
    recipe = tiny(tmp_path / "run", "-", teacher=given, train__validate_every=0, val_data=None)
    with pytest.raises(ValueError, match=r"the teacher's input is 64x48 .* and the student's 64x64"):
        train(recipe)


def test_a_teacher_of_no_keypoint_is_refused_before_the_first_step(tmp_path):
    given = {"name": "torch", "factory": f"{__name__}:peaks", "keypoints": ["snout", "tail", "fin", "gill"]}
    recipe = tiny(tmp_path, "-", teacher=given, train__validate_every=0, val_data=None)
    with pytest.raises(ValueError, match=r"knows none of the data's keypoints: it has snout, tail, fin, gill, and the"):
        train(recipe)


def test_a_regression_network_of_posekd_teaches_heatmaps(tmp_path):
    overrides = {"size": [64, 64], "patch": [4, 4], "width": 8, "dim": 12, "depth": 1, "heads": 2}
    model = create_model(
        "distilpose_s", 17, **{k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()}
    )
    weights = tmp_path / "teacher.safetensors"
    save_weights(model, weights, {"skeleton": asdict(COCO)})
    recipe = tiny(tmp_path / "run", "-", teacher={"weights": str(weights)}, train__validate_every=0, val_data=None)
    taught = build_teacher(recipe, recipe.teacher, COCO)
    images = torch.randn(1, 3, 64, 64)
    (maps,) = taught.heatmaps(replace(batch(), images=images), SPEC)
    assert maps.shape == (1, 17, 16, 16)
    said = model.eval()(images)
    x, y = (said.coords[0, 5] * 16).tolist()
    sigma = said.sigmas[0, 5].clamp_min(1.0)
    u, v = torch.arange(16.0), torch.arange(16.0)[:, None]
    expected = torch.exp(-(((u - x) / sigma[0]) ** 2 + ((v - y) / sigma[1]) ** 2) / 2) * said.scores[0, 5].clamp(0, 1)
    torch.testing.assert_close(maps[0, 5], expected, rtol=1e-3, atol=1e-4)


def test_own_weights_that_name_no_keypoints_are_of_the_set_that_is_given(tmp_path):
    weights = tmp_path / "teacher.safetensors"
    save_weights(create_model("elpn_v1", 17, **TINY_NET), weights)
    values = {"name": "elpn_v1", "overrides": TINY_NET, "weights": str(weights), "keypoints": "coco"}
    recipe = tiny(tmp_path / "run", "-", teacher=values, train__validate_every=0, val_data=None)
    taught = build_teacher(recipe, recipe.teacher, MPII)
    assert taught.bridge.names()["pelvis"] == ["left_hip", "right_hip"]
    assert taught.heatmaps(batch(), SPEC)[0].shape == (2, 16, 16, 16)


def tall() -> nn.Module:
    network = Peaks()
    network.spec = InputSpec((64, 48))
    return network
