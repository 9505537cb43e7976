"""An exported file says what its network says, for images and numbers of people of any size, and what it is."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import asdict, replace

import cv2
import numpy as np
import pytest
import torch
from helpers.checkpoints import save
from helpers.pictures import picture
from helpers.tiny_models import tiny_model

from posekd.cli import main
from posekd.codecs import heatmaps
from posekd.data import CocoKeypoints, CocoSettings, LoaderSettings
from posekd.deploy.deviation import Deviation, ExportDriftError, judge
from posekd.deploy.exported import open_exported
from posekd.deploy.graphs import TopDownGraph, cut
from posekd.deploy.load import Ready
from posekd.deploy.plain import running_max
from posekd.deploy.predict import predict, predict_with
from posekd.deploy.verify import beyond_doubt, compare
from posekd.engine.evaluate import evaluate
from posekd.geometry import box_to_center_scale, crop_matrices
from posekd.models import create_model
from posekd.ops import corner_pool, crop_warp, render_heatmaps
from posekd.paradigms import TopDownInference
from posekd.skeleton import COCO
from posekd.structures import InputSpec

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from posekd.deploy.export import export_onnx, quantised  # noqa: E402
from posekd.deploy.onnx_finder import OnnxFinder  # noqa: E402
from posekd.deploy.program import export_program  # noqa: E402

SETTINGS = TopDownInference(flip_test=True, oks_threshold=1.0)
SMALLEST = {"width": 4, "deconv_width": 4}
BGR = {"spec": {"size": (64, 64), "bgr": True, "mean": (0.1, 0.2, 0.3), "std": (0.9, 1.0, 1.1)}}


@pytest.fixture(scope="module")
def found():
    model = tiny_model("simplebaseline_r50", 17, **BGR, **SMALLEST)
    return Ready(model, COCO, SETTINGS, 1.1)


@pytest.fixture(scope="module")
def exported(found, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "tiny.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_onnx(found, path)
    return path


def assert_same(people, others, shift=1e-2):
    """Equal to rounding; the random networks here give scores of dozens."""
    order, other = torch.argsort(people.sample_ids), torch.argsort(others.sample_ids)
    torch.testing.assert_close(people.keypoints[order], others.keypoints[other], rtol=1e-4, atol=shift)
    torch.testing.assert_close(people.areas[order], others.areas[other], rtol=1e-5, atol=1e-3)


def test_any_image_and_number_of_people(found, exported):
    finder = OnnxFinder(exported, threads=1, batch_size=2)
    rng = np.random.default_rng(0)
    for (height, width), count in (((48, 64), 3), ((64, 48), 1), ((1, 1), 2), ((30, 200), 0), ((90, 90), 5)):
        boxes = rng.uniform(-10, 60, (count, 4))
        boxes[:, 2:] = np.abs(boxes[:, 2:]) + 5
        arguments = [picture(3, height, width)], [boxes]
        others = predict_with(finder, *arguments)
        assert len(others) == count
        people = predict(found.model, arguments[0], boxes=[boxes], settings=SETTINGS, padding=1.1)
        assert_same(people, others)


def test_the_file_is_plain_onnx_with_named_sizes(exported):
    proto = onnx.load(str(exported))
    onnx.checker.check_model(proto, full_check=True)
    assert {node.domain for node in proto.graph.node} <= {
        "",
        "pkg.onnxscript.torch_lib",
        "pkg.onnxscript.torch_lib.common",
    }
    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in [*proto.graph.input, *proto.graph.output]
    }
    assert shapes == {"image": ["H", "W", 3], "boxes": ["N", 4], "keypoints": ["N", 17, 3]}


def test_the_file_says_what_it_is(found, exported):
    texts = {entry.key: json.loads(entry.value) for entry in onnx.load(str(exported)).metadata_props}
    assert texts["skeleton"]["keypoints"] == list(COCO.keypoints)
    assert texts["sigmas"] == list(COCO.sigmas)
    assert texts["input"] == {"size": [64, 64], "mean": [0.1, 0.2, 0.3], "std": [0.9, 1.0, 1.1], "bgr": True}
    assert (texts["codec"]["name"], texts["codec"]["flip_test"]) == ("heatmaps", True)
    facts = OnnxFinder(exported, threads=1).facts
    assert facts.skeleton == COCO
    assert facts.settings == SETTINGS
    assert facts.spec == found.model.spec
    assert facts.padding == 1.1


def test_the_network_itself_is_left_alone(found, exported):
    assert not any(
        isinstance(module, torch.nn.Identity) and "bn" in name for name, module in found.model.named_modules()
    )
    assert next(found.model.parameters()).dtype == torch.float32


def test_crops_are_those_of_the_kernel():
    image = torch.from_numpy(picture(1))
    boxes = torch.tensor([[5.0, 5, 20, 30], [-30, -10, 60, 90], [63, 47, 1, 1], [200, 200, 9, 9]])
    matrices = crop_matrices(*box_to_center_scale(boxes, (64, 48), 1.2), None, None, (64, 48))
    expected = crop_warp([image], matrices, (64, 48), image_index=torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(cut(image, matrices, (64, 48)) / 255, expected, rtol=1e-5, atol=1e-5)


class Painter(torch.nn.Module):
    """A network that paints the keypoints of its pose, whatever it sees: rendered peaks."""

    output, name = "heatmaps", "painter"

    def __init__(self, points):
        super().__init__()
        self.spec = InputSpec((64, 48))
        maps, _ = render_heatmaps(points[None], (16, 12), kind="exact")
        self.register_buffer("maps", maps)

    def forward(self, images):
        return self.maps.expand(images.shape[0], -1, -1, -1)


@pytest.mark.parametrize("decode", ["argmax", "quarter", "dark"])
def test_rendered_peaks_are_decoded_as_the_kernel_does(decode):
    rng = np.random.default_rng(0)
    points = torch.from_numpy(np.column_stack([rng.uniform(0, 11, 17), rng.uniform(0, 15, 17), np.ones(17)])).float()
    settings = TopDownInference(flip_test=False, decode=decode)
    painter = Painter(points)
    graph = TopDownGraph(painter, COCO, settings, 1.25)
    boxes = torch.tensor([[10.0, 10, 30, 40], [0, 0, 64, 48]])
    with torch.no_grad():
        found = graph(torch.from_numpy(picture(0)), boxes)
    matrices = crop_matrices(*box_to_center_scale(boxes, (64, 48), 1.25), None, None, (64, 48))
    expected = heatmaps.decode(painter.maps.expand(2, -1, -1, -1), matrices, (64, 48), settings)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("direction", ["top", "bottom", "left", "right"])
def test_corners_are_pooled_without_our_ops(direction):
    x = torch.randn(2, 3, 9, 14)
    dim, backwards = {"top": (2, False), "bottom": (2, True), "left": (3, False), "right": (3, True)}[direction]
    assert torch.equal(running_max(x, dim, backwards), corner_pool(x, direction))


@pytest.mark.slow
def test_half_precision_moves_scores_a_little(found, tmp_path):
    export_onnx(found, tmp_path / "half.onnx", "fp16")
    proto = onnx.load(str(tmp_path / "half.onnx"))
    kinds = {tensor.data_type for tensor in proto.graph.initializer if len(tensor.dims) == 4}
    assert onnx.TensorProto.FLOAT16 in kinds
    image = picture(0)
    others = predict_with(OnnxFinder(tmp_path / "half.onnx", threads=1), image)
    people = predict(found.model, image, settings=SETTINGS, padding=1.1)
    scores = people.keypoints[..., 2], others.keypoints[..., 2]
    torch.testing.assert_close(*scores, rtol=2e-2, atol=2e-2 * float(scores[0].abs().max()))
    assert (scores[0] != scores[1]).any()


def test_int8_is_calibrated_and_has_a_scale_per_channel(found, exported, tmp_path):
    with pytest.raises(ValueError, match="int8 needs images to calibrate with"):
        export_onnx(found, tmp_path / "no.onnx", "int8")
    feeds = [{"image": picture(i), "boxes": np.array([[0, 0, 64, 48]], np.float32)} for i in range(4)]
    original = onnx.load(str(exported))
    proto = quantised(original, feeds)
    onnx.helper.set_model_props(proto, {entry.key: entry.value for entry in original.metadata_props})
    onnx.save(proto, str(tmp_path / "int8.onnx"))
    weights = [t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4]
    scales = {t.name: t for t in proto.graph.initializer}
    named = [n for n in proto.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in {t.name for t in weights}]
    assert len(named) > 10
    assert all(len(scales[node.input[1]].dims) == 1 for node in named)
    people = predict(found.model, picture(0), settings=SETTINGS, padding=1.1).keypoints[0, :, 2]
    others = predict_with(OnnxFinder(tmp_path / "int8.onnx", threads=1), picture(0)).keypoints[0, :, 2]
    assert np.corrcoef(people, others)[0, 1] > 0.9


# ---- Verification ----------------------------------------------------------------------------------------------------


def test_a_place_is_beyond_doubt_where_rounding_cannot_move_it():
    maps = torch.zeros(1, 4, 8, 8)
    maps[0, 0, 3, 3], maps[0, 0, 3, 4], maps[0, 0, 2, 3] = 1.0, 0.5, 0.5
    maps[0, 1, 3, 3], maps[0, 1, 6, 6] = 1.0, 0.99999  # two peaks
    maps[0, 2, 3, 3] = 1.0  # equal neighbours
    maps[0, 3] = -1.0  # nothing
    assert beyond_doubt(maps, TopDownInference(), 1e-4).tolist() == [[True, False, False, False]]
    assert beyond_doubt(maps, TopDownInference(decode="dark"), 1e-4).tolist() == [[True, False, True, False]]


def deviation(**changes) -> Deviation:
    return Deviation(**{
        "names": ("a",), "persons": 10, "median": np.zeros(1), "worst": np.zeros(1), "sure": 10, "worst_sure": 0.0,
        "score": 0.0, **changes,
    })  # fmt: skip


def test_an_export_is_judged_by_ap_or_by_single_keypoints():
    judge(deviation(), 70.0, 71.0, "fp32", None)  # of few people AP says nothing
    judge(deviation(persons=500, worst_sure=9.0), 70.0, 70.09, "fp32", None)
    judge(deviation(persons=500), 70.0, 60.0, "int8", None)
    with pytest.raises(ExportDriftError, match=r"scores 69\.80, the network itself 70\.00: 0\.1 points"):
        judge(deviation(persons=500), 70.0, 69.8, "fp16", None)
    with pytest.raises(ExportDriftError, match="1 points"):
        judge(deviation(), 70.0, 68.0, "int8", 1.0)
    with pytest.raises(ExportDriftError, match=r"beyond doubt by 0\.200 pixels: 0\.1 are allowed"):
        judge(deviation(worst_sure=0.2), 70.0, 70.0, "fp32", None)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "p", "keypoints": list(COCO.keypoints)}],
    }
    for i in range(3):
        cv2.imwrite(str(folder / f"{i}.png"), picture(i)[..., ::-1])
        content["images"].append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 48})
        person = {"id": i + 1, "image_id": i, "category_id": 1, "iscrowd": 0, "area": 900.0, "num_keypoints": 17}
        content["annotations"].append({**person, "bbox": [5, 5, 40, 35], "keypoints": [20, 20, 2] * 17})
    (folder / "labels.json").write_text(json.dumps(content))
    return folder / "labels.json"


def test_verification_compares_the_same_people(found, exported, labelled):
    source = CocoKeypoints(CocoSettings(images=str(labelled.parent), annotations=str(labelled)))
    people, others, gap = compare(found, OnnxFinder(exported, threads=1), source)
    assert people.sample_ids.tolist() == others.sample_ids.tolist() == [1, 2, 3]
    assert gap.persons == 3
    assert gap.worst_sure < 0.01
    swapped = replace(found, settings=replace(SETTINGS, flip_test=False))  # another network than the exported one
    assert compare(swapped, OnnxFinder(exported, threads=1), source)[2].worst.max() > 0.1


def test_the_commands(found, exported, labelled, tmp_path, monkeypatch, capsys):
    def export(found, path, precision, feeds):  # once is enough
        shutil.copy(exported, path)
        return OnnxFinder(path, threads=1).facts

    monkeypatch.setattr("posekd.deploy.export.export_onnx", export)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    recipe = {"inference": asdict(SETTINGS), "loader": {"padding": 1.1}}
    save(found.model, tmp_path / "best.safetensors", recipe)
    assert main(["export", ".", "--verify", str(labelled), "--batch-size", "2"]) == 0
    said = capsys.readouterr().out
    assert "best.onnx: simplebaseline_r50 at 64x64, 17 keypoints, fp32" in said
    assert "on 3 people: deviation in image pixels" in said
    assert main(["predict", "best.onnx", str(labelled.parent / "0.png"), "--jsonl", "r.jsonl"]) == 0
    assert len(json.loads((tmp_path / "r.jsonl").read_text())["people"]) == 1
    capsys.readouterr()
    data = ["--annotations", str(labelled), "--images", str(labelled.parent)]
    assert main(["eval", "best.onnx", *data, "--report", "report.json", "--results", "results.json"]) == 0
    source = CocoKeypoints(CocoSettings(images=str(labelled.parent), annotations=str(labelled)))
    report = evaluate(found.model, source, SETTINGS, loader=LoaderSettings(workers=0, padding=1.1))
    assert json.loads((tmp_path / "report.json").read_text())["AP"] == pytest.approx(report.numbers()["AP"])
    results = json.loads((tmp_path / "results.json").read_text())
    ours = report.found.keypoints.reshape(3, -1).tolist()
    assert [r["keypoints"] for r in results] == [pytest.approx(row, rel=1e-4, abs=1e-2) for row in ours]
    capsys.readouterr()
    for words, message in (
        (
            ["predict", "best.onnx", ".", "--size", "64", "64"],
            "best.onnx was exported with its settings: --size cannot",
        ),
        (["eval", "best.onnx", *data, "--no-flip"], "exported with its settings: --flip cannot"),
        (["export", ".", "--precision", "int8"], "int8 needs --calibrate"),
        (["export", ".", "--max-loss", "1"], "--max-loss is a limit of --verify"),
        (["predict", "none.onnx", "."], "no exported network at none.onnx"),
        (["predict", "bad.onnx", "."], "bad.onnx cannot be opened by onnxruntime"),
        (["predict", "other.onnx", "."], "other.onnx does not say what it is"),
    ):
        (tmp_path / "bad.onnx").write_bytes(b"x")
        write_identity(tmp_path / "other.onnx")
        assert main(words) == 2, words
        said = capsys.readouterr().err
        assert message in said, words
        assert "Traceback" not in said


def write_identity(path):
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", value[:1], value[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), str(path))


def test_regression_networks_have_a_graph_too():
    model = create_model("deeppose_r50", 17, size=(64, 64), width=8, blocks=(1, 1, 1, 1)).eval()
    boxes = np.array([[5.0, 5, 40, 30], [-20, 0, 60, 50]])
    with torch.no_grad():
        said = TopDownGraph(model, COCO, SETTINGS, 1.25)(torch.from_numpy(picture(0)), torch.from_numpy(boxes).float())
    people = predict(model, picture(0), boxes=[boxes], settings=SETTINGS)
    torch.testing.assert_close(people.keypoints[torch.argsort(people.sample_ids)], said, rtol=1e-4, atol=1e-2)


@pytest.mark.slow
def test_a_program_of_torch_export_says_the_same(found, labelled, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = {"inference": asdict(SETTINGS), "loader": {"padding": 1.1}}
    save(found.model, tmp_path / "best.safetensors", recipe)
    assert main(["export", ".", "--format", "pt2", "--verify", str(labelled)]) == 0
    assert "best.pt2: simplebaseline_r50 at 64x64" in capsys.readouterr().out
    finder = open_exported("best.pt2", 2)
    assert finder.facts.settings == SETTINGS
    boxes = np.array([[5.0, 5, 20, 30], [0, 0, 64, 48], [-3, 2, 9, 9]])
    people = predict(found.model, picture(3), boxes=[boxes], settings=SETTINGS, padding=1.1)
    assert_same(people, predict_with(finder, picture(3), [boxes]))
    assert main(["predict", "best.pt2", str(labelled.parent / "0.png"), "--jsonl", "r.jsonl"]) == 0
    data = ["--annotations", str(labelled), "--images", str(labelled.parent)]
    assert main(["eval", "best.pt2", *data, "--report", "report.json"]) == 0
    source = CocoKeypoints(CocoSettings(images=str(labelled.parent), annotations=str(labelled)))
    report = evaluate(found.model, source, SETTINGS, loader=LoaderSettings(workers=0, padding=1.1))
    assert json.loads((tmp_path / "report.json").read_text())["AP"] == pytest.approx(report.numbers()["AP"])


def test_a_missing_compiler_is_said(monkeypatch, tmp_path):
    """Only `--compile` needs one."""
    from torch._inductor.exc import InvalidCxxCompiler

    def refuse(*arguments, **options):
        raise InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", refuse)
    monkeypatch.setattr("posekd.deploy.program.trace", lambda *arguments: None)
    ready = Ready(tiny_model("elpn_v1", 17), COCO, SETTINGS, 1.1)
    with pytest.raises(RuntimeError, match=r"compiling needs a C\+\+ compiler .* or export without --compile"):
        export_program(ready, tmp_path / "m.pt2", compiled=True)
    assert not (tmp_path / "m.pt2").exists()
