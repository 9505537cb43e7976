"""`posekd eval` on MPII and LSP: the papers' tables, the JSON, the image, and options that do not fit."""

from __future__ import annotations

import contextlib
import json

import pytest
import torch

pytest.importorskip("scipy")

from helpers.pck_folders import head_boxes, hrnet_person, lsp_folder, mpii_folder

from posekd.cli import main
from posekd.models.registry import create_model
from posekd.models.weights import save_weights

COLUMNS = ["Head", "Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle", "Mean", "AUC"]


def checkpoint(folder, keypoints):
    torch.manual_seed(0)
    save_weights(create_model("elpn_v1", num_keypoints=keypoints, size=(64, 64)), folder / "net.safetensors")
    return str(folder / "net.safetensors")


@pytest.fixture
def mpii(tmp_path):
    people = [hrnet_person("a.png", 0), hrnet_person("b.png", 1)]
    settings = mpii_folder(tmp_path, people)
    boxes = head_boxes(tmp_path / "gt.mat", people, [[0, 0, 30, 40]] * 2)
    return ["--dataset", "mpii", "--annotations", settings.annotations, "--head-boxes", boxes]


def test_a_checkpoint_on_mpii_and_its_predictions_again(tmp_path, mpii, capsys):
    model, results = checkpoint(tmp_path, 16), str(tmp_path / "preds.mat")
    files = ["--results", results, "--report", str(tmp_path / "r.json"), "--curve", str(tmp_path / "c.png")]
    words = [model, *mpii, "--images", str(tmp_path / "images"), "--workers", "0", "--device", "cpu", *files]
    assert main(["eval", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("PCKh@0.5 of 2 people, in percent")
    assert lines[1].split() == COLUMNS
    assert len(lines[2].split()) == 9
    assert 'HRNet\'s "Mean@0.1", which is at 0.11:' in lines[3]
    assert any(line.startswith("torso PCK@0.5 (ELPN, Equation 5)") for line in lines)
    assert any(line.split()[:2] == ["left_wrist", "2"] for line in lines)
    report = json.loads((tmp_path / "r.json").read_text())
    assert list(report)[0] == "PCKh@0.5"  # noqa: RUF015 (the order is what is tested)
    assert len(report["curve"]) == len(report["thresholds"]) == 51
    assert report["keypoints"]["pelvis"]["labelled"] == 2
    ap = report["ap_by_sigmas"]  # of data that are not in COCO's form
    assert 0 <= ap["0.5"] <= ap["1"] <= ap["2"]
    assert any(line.startswith("AP ") and line.endswith(" at double") for line in lines)
    assert (tmp_path / "c.png").stat().st_size > 5000
    assert main(["eval", "--score-only", results, *mpii]) == 0
    assert capsys.readouterr().out.splitlines()[1:5] == lines[1:5]


def test_files_are_there_even_if_nobody_reads_the_tables(tmp_path, mpii, monkeypatch):
    """`posekd eval ... | head` closes the pipe while the tables are printed."""

    def closed(*args, **more):
        raise BrokenPipeError

    monkeypatch.setattr("posekd.engine.scoring.pck.print_pck", closed)
    monkeypatch.setattr("os.dup2", lambda *descriptors: None)  # standard output is pytest's own here
    people = json.loads((tmp_path / "labels.json").read_text())
    preds = [
        {"sample_id": i, "keypoints": [v for x, y in p["joints"] for v in (x, y, 1)]} for i, p in enumerate(people)
    ]
    (tmp_path / "p.json").write_text(json.dumps(preds))
    files = [tmp_path / "r.json", tmp_path / "c.png"]
    words = ["--score-only", str(tmp_path / "p.json"), *mpii, "--report", str(files[0]), "--curve", str(files[1])]
    with contextlib.suppress(BrokenPipeError):
        main(["eval", *words])
    assert all(file.is_file() for file in files)


def test_a_checkpoint_on_lsp(tmp_path, capsys):
    settings, _ = lsp_folder(tmp_path, range(1001, 1009))
    words = ["--dataset", "lsp", "--split", "test", "--images", settings.images, "--annotations", settings.annotations]
    words += ["--workers", "0", "--no-flip"]
    model = checkpoint(tmp_path, 14)
    assert main(["eval", model, *words]) == 2
    assert "992 of 1000 images named by" in capsys.readouterr().err
    assert main(["eval", model, *words, "--on-bad-image", "skip"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("PCK@0.2 of 8 people, in percent")
    assert lines[1].split() == COLUMNS
    assert lines[3].startswith("PCK@0.1")


def test_files_that_cannot_be_written_are_named(tmp_path, capsys):
    person = {k: v for k, v in hrnet_person("a.png").items() if not k.startswith("joints")}
    settings = mpii_folder(tmp_path, [person])
    words = [checkpoint(tmp_path, 16), "--dataset", "mpii", "--images", settings.images, "--workers", "0"]
    words += ["--annotations", settings.annotations, "--device", "cpu", "--report", "r.json", "--curve", "c.png"]
    assert main(["eval", *words]) == 0
    out = capsys.readouterr().out
    assert "note: nothing was scored, so these were not written: r.json, c.png" in out
    assert "note: no labels: not scored" in out


def test_a_results_file_that_cannot_be_scored_is_an_error(tmp_path, mpii, capsys):
    (tmp_path / "none.json").write_text("[]")
    assert main(["eval", "--score-only", str(tmp_path / "none.json"), *mpii]) == 2
    assert "none.json cannot be scored: no predictions" in capsys.readouterr().err


@pytest.mark.data
def test_stored_mpii_predictions_give_the_known_table(real_data, capsys):
    file = str(real_data / "mpii" / "tompson-valid" / "detections_our_format.mat")
    assert main(["eval", "--score-only", file, "--dataset", "mpii", "--annotations", file]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["95.60", "92.71", "83.36", "76.74", "81.93", "73.36", "65.45", "82.34", "55.78"]
    assert lines[3] == 'PCKh@0.1 28.97; HRNet\'s "Mean@0.1", which is at 0.11: 33.14'


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "mpii", "--sigmas", "0.1"], "--sigmas has no meaning for --dataset mpii"),
        (["--dataset", "lsp", "--head-boxes", "x"], "--head-boxes has no meaning for --dataset lsp"),
        (["--split", "test"], "--split has no meaning for --dataset coco"),
        (["--curve", "c.png"], "--curve draws PCK: it has no meaning for --dataset coco"),
        (["--dataset", "lsp"], "--dataset lsp needs --split test"),
        (["--dataset", "mpii"], "none.mat does not exist (setting `annotations`)"),
    ],
)
def test_options_that_do_not_fit_are_answered(words, message, capsys):
    assert main(["eval", "--score-only", "p.json", "--annotations", "none.mat", *words]) == 2
    assert message in capsys.readouterr().err
