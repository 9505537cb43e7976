"""Exported networks that see whole images find the people that the networks find."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from helpers.checkpoints import save
from helpers.painters import PeoplePainter
from helpers.pictures import picture
from helpers.tiny_models import tiny_model

from posekd.cli import main
from posekd.data import CocoKeypoints, CocoSettings, LoaderSettings
from posekd.data.sources.arrays import ImagesInMemory
from posekd.deploy.exported import ExportedFinder, open_exported
from posekd.deploy.facts import from_texts, to_texts
from posekd.deploy.forms import FORMS
from posekd.deploy.load import Ready
from posekd.deploy.plain import STAND_INS, top_k_peaks
from posekd.deploy.predict import predict, predict_with
from posekd.deploy.verify import compare
from posekd.engine.evaluate import evaluate
from posekd.ops import center_pool, corner_pool_add, corner_pool_sum, library, roi_align
from posekd.ops import top_k_peaks as kernel
from posekd.paradigms import BottomUpInference, SingleNetworkInference, paradigm_of
from posekd.skeleton import COCO

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from posekd.deploy.export import GROUPING, export_onnx, facts_of

SHAPES = ((48, 64), (64, 48), (1, 1), (30, 200), (200, 31), (90, 90))
TAGGED = BottomUpInference(max_people=10)
PEOPLE = SingleNetworkInference(max_boxes=3, top_k=4, max_peaks=6)


def eager(found: Ready) -> ExportedFinder:
    """The graph run by PyTorch, with what an exporter puts in place of our ops."""
    form = FORMS[paradigm_of(found.model).name]
    graph = form.module(found, False).eval()

    def run(feed):
        with torch.no_grad(), library.stood_in(STAND_INS):
            outputs = graph(*(torch.from_numpy(value) for value in feed.values()))
        return {name: value.numpy() for name, value in zip(form.outputs, outputs, strict=True)}

    return ExportedFinder(from_texts(to_texts(facts_of(found, "fp32")), "it"), run)


def assert_same(people, others):
    assert len(people) == len(others)
    assert people.image_ids.tolist() == others.image_ids.tolist()
    for name in ("keypoints", "scores", "boxes", "box_scores", "areas"):
        torch.testing.assert_close(getattr(people, name), getattr(others, name), rtol=1e-4, atol=5e-3)


# ---- The graphs, run by PyTorch ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"flip_test": False, "search_border": False, "adjust": False},
        {"scales": (0.5, 1.0, 2.0), "refine": False},
        {"project_to_input": False, "size": 128},
        {"square": 2.0, "flip_test": False},
    ],
    ids=str,
)
def test_a_bottom_up_graph_follows_the_settings(changes):
    settings = replace(TAGGED, **changes)
    model = tiny_model("higherhrnet_w32", 17, spec={"bgr": True, "mean": (0.1, 0.2, 0.3), "size": (64, 64)})
    finder = eager(Ready(model, COCO, settings, 1.0))
    for height, width in ((30, 200), (64, 48)) if changes else SHAPES:
        image = picture(3, height, width)
        people = predict(model, image, settings=settings)
        assert len(people) > 0
        assert_same(people, predict_with(finder, image))


def test_scales_that_a_graph_cannot_follow():
    model = tiny_model("higherhrnet_w32", 17)
    with pytest.raises(ValueError, match=r"scale 1 is 1\.5625 times the smallest one: choose others than \[0\.64, 1"):
        eager(Ready(model, COCO, replace(TAGGED, scales=(0.64, 1.0)), 1.0))
    simple = tiny_model("simple_w18", 17)
    with pytest.raises(ValueError, match=r"sees images at one scale, got scales \[1\.0, 2\.0\]"):
        eager(Ready(simple, COCO, replace(PEOPLE, scales=(1.0, 2.0)), 1.0))


@pytest.mark.parametrize(
    "changes", [{}, {"flip_test": False, "complete": False}, {"letterbox": True, "max_boxes": 2}], ids=str
)
def test_the_people_of_a_painting_are_found(changes):
    """Among them some who want the same peaks, for whom the graph has more rounds than it uses."""
    settings = SingleNetworkInference(**changes)
    for seed in range(3):
        model = PeoplePainter(seed).eval()
        image = picture(0, 90, 90)
        people = predict(model, image, settings=settings)
        assert len(people) >= 2
        assert_same(people, predict_with(eager(Ready(model, COCO, settings, 1.0)), image))


def test_a_network_that_finds_people_has_a_graph_for_any_image():
    model = tiny_model("simple_w18", 17, head_dim=8, head_mid=8, grouping_widths=(8, 8))
    with torch.no_grad():  # probabilities that are not 1 everywhere
        for head in model.detection.heat:
            head.weight.mul_(0.1)
        for head in model.detection.offset:
            head.weight.zero_()
    settings = replace(PEOPLE, max_boxes=12, top_k=64, flip_test=False, box_threshold=0.0)
    finder, found = eager(Ready(model, COCO, settings, 1.0)), 0
    for height, width in SHAPES:
        image = picture(3, height, width)
        people = predict(model, image, settings=settings)
        found += len(people)
        if height > 1:  # one pixel makes maps of equal values
            assert_same(people, predict_with(finder, image))
    assert found > 3


def test_images_too_long_for_a_graph_are_refused():
    found = Ready(PeoplePainter().eval(), COCO, PEOPLE, 1.0)
    for shape, message in (((1, 20_000), "become an input of 128 x 2560000"), ((20, 800), "up to 4096 pixels of a")):
        with pytest.raises(ValueError, match=message):
            predict_with(eager(found), np.zeros((*shape, 3), np.uint8))
    with pytest.raises(ValueError, match="of 1 x 20000 pixels would become an input of 128 x 2560000: cut it into"):
        predict(found.model, np.zeros((1, 20_000, 3), np.uint8), settings=PEOPLE)


def test_ops_of_ours_have_equals():
    torch.manual_seed(0)
    x, other = torch.randn(2, 3, 9, 14), torch.randn(2, 3, 9, 14)
    ours = [corner_pool_add(x, other, "left"), corner_pool_sum(x, other, ("top", "left")), center_pool(x, other)]
    ours += [corner_pool_sum(x, other, ("bottom", "right")), center_pool(x)]
    plain = [
        STAND_INS["corner_pool"](x, other, 2, False, False)[0],
        STAND_INS["corner_pool_sum"](x, other, 0, 2, False, False)[0],
        STAND_INS["center_pool"](x, other, False)[0],
        STAND_INS["corner_pool_sum"](x, other, 1, 3, False, False)[0],
        STAND_INS["center_pool"](x, None, False)[0],
    ]
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
    boxes = torch.tensor([[0.0, -3, -2, 20, 6], [1, 2.5, 1, 3, 8], [1, 4, 4, 4, 4]])
    expected = roi_align(x, boxes, (6, 4), 1.0, 2)
    torch.testing.assert_close(STAND_INS["roi_align"](x, boxes, 6, 4, 1.0, 2, True), expected)


def test_more_peaks_than_pixels():
    maps, tags = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4, 2)
    assert torch.equal(top_k_peaks(maps, tags, 30, 0.1, 3), kernel(maps, tags, max_people=30, nms_kernel=3))


# ---- Files ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    model = tiny_model("higherhrnet_w32", 17)
    found = Ready(model, COCO, TAGGED, 1.25)
    path = tmp_path_factory.mktemp("tagged") / "tiny.onnx"
    export_onnx(found, path)
    return found, path


def test_a_bottom_up_file(tagged):
    found, path = tagged
    finder = open_exported(path)
    assert (finder.settings, finder.skeleton) == (TAGGED, COCO)
    assert path.with_name(GROUPING).read_text().startswith('"""People from what an exported bottom-up network gives')
    images = [picture(seed, *shape) for seed, shape in enumerate(SHAPES)]
    assert_same(predict(found.model, images, settings=TAGGED), predict_with(finder, images))
    batch = finder.ask({"image": np.stack([picture(1), picture(2), picture(3)])})
    shapes = {name: value.shape for name, value in batch.items()}
    assert (shapes["peaks"], shapes["scores"], shapes["tags"]) == ((3, 17, 10, 2), (3, 17, 10), (3, 17, 10, 2))
    with torch.no_grad():
        expected = FORMS["bottom_up"].module(found, False)(torch.from_numpy(np.stack([picture(1)])))
    for name, value in zip(FORMS["bottom_up"].outputs[3:], expected[3:], strict=True):
        difference = np.abs(batch[name][:1] - value.numpy()).max()
        assert difference < 1e-4 * float(value.max() - value.min()), name


def test_the_commands_of_a_bottom_up_file(tagged, tmp_path, monkeypatch, capsys):
    found, path = tagged
    monkeypatch.chdir(tmp_path)
    person = {"category_id": 1, "iscrowd": 0, "area": 900.0, "num_keypoints": 17, "bbox": [5, 5, 40, 35]}
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in range(2)],
        "annotations": [{**person, "id": i + 1, "image_id": i, "keypoints": [20, 20, 2] * 17} for i in range(2)],
        "categories": [{"id": 1, "name": "p", "keypoints": list(COCO.keypoints)}],
    }
    for i in range(2):
        cv2.imwrite(f"{i}.png", picture(i)[..., ::-1])
    (tmp_path / "labels.json").write_text(json.dumps(content))
    save(found.model, tmp_path / "best.safetensors", {"inference": {"max_people": 10}})

    def export(found, out, precision, feeds):  # once is enough
        out.write_bytes(path.read_bytes())
        return open_exported(out).facts

    monkeypatch.setattr("posekd.deploy.export.export_onnx", export)
    assert main(["export", "best.safetensors", "--verify", "labels.json"]) == 0
    assert "have a place beyond doubt" in " ".join(capsys.readouterr().out.split())
    assert main(["predict", "best.onnx", "0.png", "--jsonl", "r.jsonl"]) == 0
    assert len(json.loads((tmp_path / "r.jsonl").read_text())["people"]) == len(
        predict(found.model, picture(0), settings=TAGGED)
    )
    data = ["--annotations", "labels.json", "--images", "."]
    assert main(["eval", "best.onnx", *data, "--report", "a.json", "--results", "results.json"]) == 0
    source = CocoKeypoints(CocoSettings(images=".", annotations="labels.json"))
    report = evaluate(found.model, source, TAGGED, loader=LoaderSettings(workers=0))
    assert json.loads((tmp_path / "a.json").read_text())["AP"] == pytest.approx(report.numbers()["AP"])
    results = json.loads((tmp_path / "results.json").read_text())
    scores = sorted(result["score"] for result in results)
    assert scores == pytest.approx(sorted(report.found.scores.tolist()), rel=1e-3)
    capsys.readouterr()
    cv2.imwrite("long.png", np.zeros((1, 20_000, 3), np.uint8))
    for words, message in (
        (["predict", "best.onnx", "long.png"], "an image of 1 x 20000 pixels would become an input of 64 x 1280000"),
        (["predict", "best.onnx", "0.png", "--boxes", "labels.json"], "sees whole images and needs none"),
        (["predict", "none.pt2", "0.png"], "no exported network at none.pt2"),
        (["predict", "bad.pt2", "0.png"], "bad.pt2 cannot be opened as a program of torch.export"),
        (["export", "best.safetensors", "--out", "x.bin"], "the names of such files end in .onnx"),
        (["export", "best.safetensors", "--compile"], "give --format pt2 with it"),
        (["export", "best.safetensors", "--format", "pt2", "--precision", "int8"], "int8 is a precision of ONNX files"),
    ):
        (tmp_path / "bad.pt2").write_bytes(b"x")
        assert main(words) == 2, words
        said = capsys.readouterr().err
        assert message in said, said
        assert "Traceback" not in said


def test_a_full_disk_is_said_in_a_sentence(tagged, tmp_path, monkeypatch, capsys):
    found, path = tagged
    onnx = __import__("onnx")
    save(found.model, tmp_path / "best.safetensors", {"inference": {"max_people": 10}})
    monkeypatch.setattr("posekd.deploy.export._proto", lambda *arguments, **options: onnx.load(str(path)))

    def refuse(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx, "save", refuse)
    assert main(["export", str(tmp_path / "best.safetensors")]) != 0
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "Traceback" not in said
    assert sorted(file.name for file in tmp_path.iterdir()) == ["best.json", "best.safetensors"]


@pytest.mark.slow
def test_a_file_that_finds_people(tmp_path, monkeypatch):
    monkeypatch.setattr("posekd.deploy.export.fold_norms", lambda *arguments: 0)  # a painter has none
    model = PeoplePainter().eval()
    found = Ready(model, COCO, replace(PEOPLE, max_boxes=2, top_k=8, flip_test=False), 1.25)
    export_onnx(found, tmp_path / "people.onnx")
    finder = open_exported(tmp_path / "people.onnx")
    domains = {node.domain for node in __import__("onnx").load(str(tmp_path / "people.onnx")).graph.node}
    assert domains == {""}
    outputs = finder.ask({"image": picture(0, 90, 90)[None]})
    shapes = {name: value.shape for name, value in outputs.items()}
    assert shapes == {"keypoints": (1, 2, 17, 3), "scores": (1, 2), "boxes": (1, 2, 4), "box_scores": (1, 2)}
    people = predict(model, picture(0, 90, 90), settings=found.settings)
    assert len(people) >= 2
    assert_same(people, predict_with(finder, picture(0, 90, 90)))


# ---- Verification --------------------------------------------------------------------------------------------------


def test_people_are_compared_with_those_most_like_them():
    model = PeoplePainter().eval()
    found = Ready(model, COCO, SingleNetworkInference(), 1.0)
    source = ImagesInMemory([picture(0, 90, 90), picture(1, 100, 100)], COCO)
    people, others, gap = compare(found, eager(found), source)
    assert (len(people), gap.alone) == (len(others), 0)
    assert 0 < gap.sure <= gap.persons * 17
    assert gap.worst_sure < 1e-3
    drifted = eager(found)
    run = drifted.run
    drifted.run = lambda feed: {n: v + 1 if n == "keypoints" else v for n, v in run(feed).items()}
    assert compare(found, drifted, source)[2].worst_sure == pytest.approx(2**0.5, abs=1e-3)
    drifted.run = lambda feed: {n: v * 0 if n == "box_scores" else v for n, v in run(feed).items()}
    lost = compare(found, drifted, source)[2]
    assert (lost.alone, lost.worst_sure) == (len(people), float("inf"))
