"""`posekd report`: the page is whole, needs nothing beside itself, and says what `posekd eval` says."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from helpers.checkpoints import checkpoint
from helpers.tiny_recipe import TINY_NET
from helpers.tiny_training import tiny

from posekd.cli import main
from posekd.data.synthetic import SyntheticPeople, SyntheticSettings
from posekd.engine.evaluate import evaluate
from posekd.engine.judging import ap_per_keypoint, judge_report
from posekd.engine.train import train
from posekd.models import load_model
from posekd.skeleton import COCO

SECTIONS = [
    "At a glance", "Training", "By keypoint", "Kinds of errors", "The worst people",
    "Where teacher and labels disagree most", "Heatmaps", "Where it comes from",
]  # fmt: skip


class Page(HTMLParser):
    """The headings, images and cells of a page, and every address in it."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.headings, self.rows, self.addresses, self.open = [], [], [], []
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for key, value in attrs if key in ("src", "href", "xlink:href")]
        if tag in ("h2", "h3"):
            self.headings.append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if "h2" in self.open or "h3" in self.open:
            self.headings[-1] += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    teacher = checkpoint(folder / "teacher", **{**TINY_NET, "size": (64, 64)})
    train(tiny(folder / "student", str(teacher), teacher={"weights": str(teacher)}, train__epochs=1))
    return folder / "student"


def test_one_page_with_everything(run, tmp_path, capsys):
    out = tmp_path / "report.html"
    words = ["report", str(run), "-o", str(out), "--people", "2", "--workers", "0", "--device", "cpu"]
    assert main(words) == 0
    assert "2 networks" in capsys.readouterr().out
    content = out.read_text(encoding="utf-8")
    page = Page(content)
    assert [heading for heading in page.headings if heading in SECTIONS] == SECTIONS
    outside = [a for a in page.addresses if not a.startswith(("data:image/", "#"))]
    assert not outside
    assert not re.search(r"<script|<link|@import|url\(http|src=.http", content)
    assert sum(a.startswith("data:image/jpeg") for a in page.addresses) >= 2 * 3 + 2 * 2 + 2 * 3
    assert content.count("<svg") == 1

    source = SyntheticPeople(SyntheticSettings(images=4, split="val"))
    model = load_model(run / "best.safetensors")
    report = evaluate(model, source, json_inference(run))
    verdict = judge_report(source, report)
    rows = {row[0]: row for row in page.rows if len(row) == 4 and row[0] in COCO.keypoints}
    by_box = {keypoint.name: keypoint for keypoint in verdict.by_box.keypoints}
    for name, row in rows.items():  # PCK: keypoint, labels, teacher, student
        assert row[1] == str(by_box[name].labelled)
        assert row[3] == f"{by_box[name].pck[0.1]:.3f}"
    assert len(rows) == 17
    assert set(ap_per_keypoint(source, report)) == set(COCO.keypoints)


def json_inference(run):
    from posekd.deploy.load import ready

    return ready(str(run)).settings


def test_ap_of_a_keypoint_is_that_of_labels_without_the_others():
    """An exact prediction of the nose and nothing else scores 1 by the nose, 0 by the others."""
    from dataclasses import replace

    import torch

    from posekd.structures import Instances

    source = SyntheticPeople(SyntheticSettings(images=3, split="val"))
    records = source.records
    keypoints = torch.from_numpy(records.keypoints.astype("float32")).clone()
    keypoints[:, 1:, :2] += 500
    n = len(keypoints)
    found = Instances(
        keypoints, torch.ones(n), torch.from_numpy(records.boxes.astype("float32")), torch.ones(n), torch.ones(n),
        torch.from_numpy(records.image_ids[records.image_rows]), torch.from_numpy(records.sample_ids),
    )  # fmt: skip
    from posekd.engine.scoring import Report

    ap = ap_per_keypoint(source, Report({}, replace(found), n, "person", ("coco_keypoints",)))
    assert ap["nose"] == pytest.approx(1.0)
    assert max(value for name, value in ap.items() if name != "nose") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere/run"], "no checkpoint at nowhere/run"),
        (["RUN", "--images", "x"], "--images and --annotations describe a dataset together"),
        (["CHECKPOINT"], "was not validated on any data: give --images and --annotations"),
        (["RUN", "-o", "."], "is a folder"),
        (["RUN", "--people", "-1"], "--people is a number of people, 0 or more, got -1"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(run, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    bare = checkpoint(tmp_path / "bare")
    card = json.loads(bare.with_suffix(".json").read_text())
    del card["recipe"]
    bare.with_suffix(".json").write_text(json.dumps(card))
    places = {"RUN": str(run), "CHECKPOINT": str(bare)}
    assert main(["report", *(places.get(word, word) for word in words), "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_the_teacher_among_the_runs_is_known_as_such(run, tmp_path, capsys):
    out = tmp_path / "r.html"
    teacher = str(run.parent / "teacher" / "best.safetensors")
    data = ["--people", "1", "--workers", "0", "--no-latency", "-o", str(out)]
    assert main(["report", str(run), teacher, *data]) == 0
    page = Page(out.read_text())
    assert [row[0] for row in page.rows if len(row) == 10][:3] == ["network", "student", "teacher"]
    assert "By the mean error of teacher against the labels" in out.read_text()


def test_names_that_differ(tmp_path):
    from posekd.cli.report import _names

    assert _names(["a/one", "b/two"]) == ["one", "two"]
    assert _names(["a/run", "b/run"]) == ["a/run", "b/run"]


def test_a_teacher_whose_file_is_gone_is_left_out_with_a_remark(run, tmp_path, capsys):
    card = json.loads((run / "best.json").read_text())
    moved = tmp_path / "moved"
    moved.mkdir()
    card["recipe"]["teacher"]["weights"] = str(tmp_path / "gone.safetensors")
    (moved / "best.json").write_text(json.dumps(card))
    (moved / "best.safetensors").write_bytes((run / "best.safetensors").read_bytes())
    out = tmp_path / "r.html"
    assert main(["report", str(moved), "-o", str(out), "--people", "1", "--workers", "0", "--no-latency"]) == 0
    assert "The teacher of moved could not be opened, and is left out" in out.read_text()
    assert "Where teacher and labels disagree" not in out.read_text()
