"""The page for browsers: what it finds is what `posekd predict` finds, and it asks nobody but its own server."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.browser import Page, browser, served
from helpers.checkpoints import checkpoint
from helpers.pictures import picture
from helpers.tiny_models import tiny_model

from posekd.cli import main
from posekd.deploy import web
from posekd.deploy.load import Ready, ready
from posekd.deploy.predict import predict
from posekd.packages import MissingPackageError
from posekd.paradigms.bottom_up import BottomUpInference
from posekd.skeleton import COCO

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

TINY = {"width": 4, "deconv_width": 4}
HEIGHT, WIDTH = 96, 130


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("network"), "simplebaseline_r50", **TINY)


@pytest.fixture(scope="module")
def folder(network: Path) -> Path:
    """The page with a drawn image beside it."""
    try:
        web.runtime_files()
    except MissingPackageError as error:
        pytest.skip(str(error))
    folder = network.parent / "page"
    assert main(["export", str(network), "--format", "web", "--out", str(folder)]) == 0
    cv2.imwrite(str(folder / "drawn.png"), cv2.cvtColor(picture(5, HEIGHT, WIDTH), cv2.COLOR_RGB2BGR))
    return folder


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[tuple[str, Page]]:
    with served(folder) as address, browser() as page:
        yield address, page


def opened(running: tuple[str, Page], image: str) -> Page:
    address, page = running
    page.open(f"{address}/index.html?image={image}")
    page.wait("['done', 'failed'].includes(document.body.dataset.state)")
    assert page.ask("document.body.dataset.state") == "done", page.ask("document.getElementById('status').innerText")
    return page


def test_a_whole_image_is_what_predict_finds(
    running: tuple[str, Page], network: Path, folder: Path, tmp_path: Path
) -> None:
    results = opened(running, "drawn.png").ask("pose.results()")
    assert results["box"] == [0, 0, WIDTH, HEIGHT]
    assert results["names"] == list(COCO.keypoints)
    assert main(["predict", str(network), str(folder / "drawn.png"), "--jsonl", str(tmp_path / "poses.jsonl")]) == 0
    (person,) = json.loads((tmp_path / "poses.jsonl").read_text())["people"]
    expected, shown = np.array(person["keypoints"]).reshape(17, 3), np.array(results["people"])[0]
    assert np.linalg.norm(shown[:, :2] - expected[:, :2], axis=1).max() < 0.5
    np.testing.assert_allclose(shown[:, 2], expected[:, 2], rtol=1e-3)


def test_a_box_drawn_with_the_pointer(running: tuple[str, Page], network: Path) -> None:
    page = opened(running, "drawn.png")
    area = page.ask("document.getElementById('overlay').getBoundingClientRect().toJSON()")
    scale = area["width"] / WIDTH
    page.drag((area["x"] + 20 * scale, area["y"] + 10 * scale), (area["x"] + 90 * scale, area["y"] + 80 * scale))
    page.wait("document.body.dataset.state === 'done' && pose.results().box[0] > 0")
    results = page.ask("pose.results()")
    np.testing.assert_allclose(results["box"], [20, 10, 70, 70], atol=0.5)
    found = ready(str(network))
    people = predict(found.model, [picture(5, HEIGHT, WIDTH)], boxes=[np.array([results["box"]])],
                     settings=found.settings, padding=found.padding)  # fmt: skip
    shown = np.array(results["people"])[0]
    assert np.linalg.norm(shown[:, :2] - people.keypoints[0, :, :2].numpy(), axis=1).max() < 0.5


@pytest.mark.data
def test_a_photograph_is_drawn_upon(running: tuple[str, Page], folder: Path, real_data: Path, tmp_path: Path) -> None:
    shutil.copy(real_data / "demo" / "astronaut.png", folder)
    page = opened(running, "astronaut.png")
    page.screenshot(tmp_path / "page.png")
    shot = cv2.imread(str(tmp_path / "page.png"))
    area = page.ask("document.getElementById('overlay').getBoundingClientRect().toJSON()")
    scale = area["width"] / 512
    for x, y, score in page.ask("pose.results()")["people"][0]:
        column, row = round(area["x"] + (x + 0.5) * scale), round(area["y"] + (y + 0.5) * scale)
        inside = area["x"] + 2 < column < area["right"] - 2 and area["y"] + 2 < row < area["bottom"] - 2
        if score > 0.2 and inside:
            assert shot[row, column].min() > 200, "a keypoint is a white disc"


def test_the_webcam(running: tuple[str, Page]) -> None:
    page = opened(running, "drawn.png")
    page.ask("document.getElementById('webcam').click()")
    page.wait("document.body.dataset.state === 'done' && pose.results().image === 'webcam'")
    results = page.ask("pose.results()")
    assert np.isfinite(results["people"]).all()
    assert results["box"] == [0, 0, results["width"], results["height"]]
    page.ask("document.getElementById('webcam').click()")
    assert page.ask("document.getElementById('webcam').innerText") == "Webcam"


def test_a_file_that_is_no_image_is_refused_in_words(running: tuple[str, Page]) -> None:
    page = opened(running, "drawn.png")
    page.ask("pose.open(new Blob(['words']), 'words.txt')")
    assert "words.txt is no image" in page.ask("document.getElementById('status').innerText")


def test_everything_comes_from_the_same_server(running: tuple[str, Page]) -> None:
    page = opened(running, "drawn.png")
    asked = page.ask("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert any(name.endswith("student.onnx") for name in asked)
    assert all(name.startswith((running[0], "data:", "blob:")) for name in asked), asked


def test_without_the_registry_a_sentence_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSEKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9/")
    with pytest.raises(
        MissingPackageError, match=r"cannot be fetched: .*http://127.0.0.1:9/onnxruntime-web/-/onnx.*tgz"
    ):
        web.runtime_files()


def test_another_file_than_the_pinned_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "registry" / "onnxruntime-web" / "-"
    package.mkdir(parents=True)
    (package / web.RUNTIME).write_bytes(b"not it")
    monkeypatch.setenv("POSEKD_CACHE", str(tmp_path / "cache"))
    with served(tmp_path / "registry") as address:
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", address)
        with pytest.raises(MissingPackageError, match="its SHA-512 differs"):
            web.runtime_files()
    assert not (tmp_path / "cache").exists()


def test_networks_that_see_whole_images_are_refused_before_any_work(tmp_path: Path) -> None:
    found = Ready(tiny_model("higherhrnet_w32", 17), COCO, BottomUpInference(), 1.0)
    with pytest.raises(ValueError, match="shows networks that crop a person"):
        web.export_web(found, tmp_path / "page")
    assert not (tmp_path / "page").exists()
