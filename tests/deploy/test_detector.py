"""Detectors of each kind, told by their graphs: whatever they say becomes boxes in image pixels."""

from __future__ import annotations

import json
import warnings

import cv2
import numpy as np
import pytest
from helpers.checkpoints import checkpoint
from helpers.pictures import picture

from posekd.cli import main
from posekd.deploy.detector import Detector
from posekd.deploy.frames import Frame

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SIDE = 64


def says(path, *outputs, extra: bool = False):
    """A detector of 64 x 64 that says this whatever it sees."""
    value, make = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    inputs = [value("images", onnx.TensorProto.FLOAT, [1, 3, SIDE, SIDE])]
    if extra:
        inputs.append(value("orig_target_sizes", onnx.TensorProto.INT64, [1, 2]))
    nodes, results = [], []
    for i, array in enumerate(outputs):
        tensor = onnx.numpy_helper.from_array(np.asarray(array), f"t{i}")
        nodes.append(make("Constant", [], [f"o{i}"], value=tensor))
        results.append(value(f"o{i}", tensor.data_type, tensor.dims))
    graph = onnx.helper.make_graph(nodes, "detector", inputs, results)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


def f32(rows) -> np.ndarray:
    return np.array(rows, np.float32)


# an image of 48 x 64 fills an input of 64 x 64 with 8 rows of grey above and below it
PERSON = [10.0, 12.0, 30.0, 40.0]  # corners in the input
IN_IMAGE = [10.0, 4.0, 20.0, 28.0]  # x, y, width, height
CENTRE = [20.0, 26.0, 20.0, 28.0]
NEARLY = [20.5, 26.0, 20.0, 28.0]


def yolo(rows) -> np.ndarray:
    others = np.zeros((100 - len(rows), len(rows[0])), np.float32)
    return np.concatenate([f32(rows), others])


KINDS = {
    "yolo": lambda path: says(path, yolo([[*CENTRE, 0.9, 0.1], [*NEARLY, 0.8, 0], [*CENTRE, 0, 0.9]]).T[None]),
    "yolo_objectness": lambda path: says(
        path, yolo([[*CENTRE, 0.9, 1, 0, 0], [*NEARLY, 0.8, 1, 0, 0], [*CENTRE, 1, 0, 0.9, 0]])[None]
    ),
    "yolo_final": lambda path: says(path, f32([[[*PERSON, 0.9, 0], [*PERSON, 0.9, 1], [*PERSON, 0.1, 0]]])),
    "rtdetr": lambda path: says(
        path, np.array([[0, 1, 0]]), f32([[[10, 4, 30, 32]] * 3]), f32([[0.9, 0.9, 0.1]]), extra=True
    ),
    "rtmdet": lambda path: says(
        path, f32([[[10, 4, 30, 32, 0.9], [10, 4, 30, 32, 0.9], [10, 4, 30, 32, 0.1]]]), np.array([[0, 1, 0]])
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_told_and_gives_one_person(tmp_path, kind):
    detector = Detector(KINDS[kind](tmp_path / "d.onnx"))
    assert (detector.kind, detector.size) == (kind, (SIDE, SIDE))
    found = detector(Frame("a.png", 0, picture(0)))
    assert found.boxes.tolist() == [pytest.approx(IN_IMAGE, abs=1e-4)]
    assert found.scores.tolist() == [pytest.approx(0.9)]
    assert len(Detector(tmp_path / "d.onnx", threshold=0.95)(Frame("a.png", 0, picture(0)))) == 0
    assert len(Detector(tmp_path / "d.onnx", person_class=2)(Frame("a.png", 0, picture(0)))) == 0
    assert len(detector(Frame("a.png", 0, None, "not decoded"))) == 0


def test_what_a_detector_sees():
    from posekd.deploy.detector import KINDS as ALL

    image = np.full((48, 96, 3), (10, 20, 30), np.uint8)
    boxed = ALL["yolo"].fit(image, SIDE, SIDE)
    assert boxed.image[:16].max() == boxed.image[48:].min() == 114
    assert boxed.image[20, 20].tolist() == [10, 20, 30]
    assert ALL["rtmdet"].fit(image, SIDE, SIDE).image[32:].min() == 114
    assert ALL["rtdetr"].fit(image, SIDE, SIDE).image.shape == (SIDE, SIDE, 3)
    blue = ALL["rtmdet"].normalise(image)[0, 0]
    assert blue.tolist() == pytest.approx([(30 - 103.53) / 57.375, (20 - 116.28) / 57.12, (10 - 123.675) / 58.395])


def test_boxes_that_are_none_are_left_out_and_told_once(tmp_path):
    wrong = [[np.nan, 0, 5, 5], [30, 30, 20, 40], [-50, -50, -10, -10], [70, 0, 90, 9]]
    leaves = [-20, 8, 30, 200]  # the image, and that is allowed
    rows = [[*box, 0.9, 0] for box in [*wrong, leaves]]
    detector = Detector(says(tmp_path / "d.onnx", f32([rows])))
    with pytest.warns(UserWarning, match=r"NaN, have no extent or lie beyond the image, the first with.*nan"):
        found = detector(Frame("a.png", 0, picture(0)))
    assert found.boxes.tolist() == [[-20, 0, 50, 192]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector(Frame("a.png", 0, picture(0)))


def test_what_is_no_detector_is_refused_with_its_shapes(tmp_path):
    with pytest.raises(ValueError, match=r"no detector of a known kind.*\(1, 3\)"):
        Detector(says(tmp_path / "d.onnx", f32([[1, 2, 3]])))
    with pytest.raises(ValueError, match="unknown kind of detector 'yolox'; did you mean 'yolo'"):
        Detector(tmp_path / "d.onnx", kind="yolox")
    with pytest.raises(ValueError, match=r"gives \[\(1, 3\)\], which is not what yolo gives"):
        Detector(tmp_path / "d.onnx", kind="yolo")(Frame("a.png", 0, picture(0)))


def test_the_command_crops_what_the_detector_finds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    KINDS["yolo_final"](tmp_path / "d.onnx")
    cv2.imwrite("a.png", picture(0)[..., ::-1])
    model = str(checkpoint(tmp_path))
    assert main(["predict", model, "a.png", "--detector", "d.onnx", "--jsonl", "r.jsonl", "--device", "cpu"]) == 0
    (person,) = json.loads((tmp_path / "r.jsonl").read_text())["people"]
    assert person["box"] == pytest.approx(IN_IMAGE)
    assert "detector d.onnx: yolo_final at 64x64" in capsys.readouterr().err
    assert main(["predict", model, "a.png", "--detector", "d.onnx", "--boxes", "b.json"]) == 2
    assert "give --boxes or --detector" in capsys.readouterr().err
    assert main(["predict", model, "a.png", "--person-class", "1"]) == 2
    assert "--person-class is of a detector" in capsys.readouterr().err
