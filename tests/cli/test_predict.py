"""`posekd predict`: from files to files, and a sentence where that is not possible."""

from __future__ import annotations

import json

import pytest
from helpers.checkpoints import checkpoint
from helpers.pictures import write_pictures, write_video

from posekd.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(checkpoint(tmp_path_factory.mktemp("run")).parent)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "images", 3)


def predict(*words: str) -> int:
    return main(["predict", *map(str, words), "--device", "cpu"])


def test_everything_at_once(model, tmp_path, capfd):
    write_video(tmp_path / "v.avi", 4)
    boxes = [{"image_id": f"{i:03}", "bbox": [5, 5, 30, 30], "score": 0.9} for i in (0, 0, 2)]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    outputs = ("--draw", "drawn", "--results", "r.json", "--jsonl", "r.jsonl", "--save-labels", "l.json")
    assert predict(model, "images", "--boxes", "boxes.json", "--nms-threshold", 1, *outputs) == 0
    assert "3 people in 3 frames" in capfd.readouterr().err
    assert [r["image_id"] for r in json.loads((tmp_path / "r.json").read_text())] == [0, 0, 2]
    assert len(json.loads((tmp_path / "l.json").read_text())["annotations"]) == 3
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 3
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["000.png", "001.png", "002.png"]

    assert predict(model, "v.avi", "--smooth", "--jsonl", "/dev/stdout") == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [line["frame"] for line in lines] == [0, 1, 2, 3]
    assert lines[0]["people"][0]["track_id"] == 0


def test_people_are_followed_by_flow(model, tmp_path):
    """Frames that follow one another; whoever is not detected is looked for in the box around the last pose."""
    boxes = [{"image_id": f"{i:03}", "bbox": [5, 5, 30, 30], "score": 0.9} for i in (0, 2)]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    words = ("--track", "--flow", "dis", "--propagate", 1, "--keypoint-threshold", 0, "--track-oks", 0)
    assert predict(model, "images", "--boxes", "boxes.json", *words, "--jsonl", "r.jsonl") == 0
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [len(line["people"]) for line in lines][::2] == [1, 1]
    assert lines[0]["people"][0]["track_id"] == 0
    assert all(person["box_score"] <= 0.9 for person in lines[1]["people"])


def test_people_are_drawn_where_nothing_else_is_asked_for(model, tmp_path):
    assert predict(model, "images/000.png") == 0
    assert (tmp_path / "predictions" / "000.png").is_file()


def test_what_cannot_be_decoded_is_named_and_the_rest_is_done(model, tmp_path, capsys):
    (tmp_path / "images" / "001.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 40)
    assert predict(model, "images", "--jsonl", "r.jsonl") == 0
    said = capsys.readouterr().err
    assert "001.png: the file is truncated" in said
    assert "2 people in 3 frames, 1 of them not decoded" in said


def test_nobody_is_no_error(model, tmp_path, capsys):
    boxes = [{"image_id": "000", "bbox": [5, 5, 30, 30], "score": 0.1}, {"image_id": "001", "bbox": [5, 5, 9, 9]}]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    assert predict(model, "images/000.png", "images/001.png", "--boxes", "boxes.json", "--results", "r.json") == 0
    capsys.readouterr()
    (tmp_path / "boxes.json").write_text("[]")
    assert predict(model, "images", "--boxes", "boxes.json", "--results", "r.json") == 0
    assert "nobody in 3 frames" in capsys.readouterr().err
    assert json.loads((tmp_path / "r.json").read_text()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RUN", "nowhere"], "posekd: there is no file or folder nowhere"),
        (["elpn_v1", "images"], "posekd: elpn_v1 has no weights yet"),
        (["images/000.png", "images"], "posekd: "),
        (["RUN", "images", "--scales", "1"], "--scales has no meaning for a top-down network"),
        (["RUN", "images", "--boxes", "strange.json"], "has no box for any of the 3 images"),
        (["RUN", "images", "--boxes", "nan.json"], "detection 0: bbox must be 4 finite numbers"),
        (["RUN", "images", "--flow", "dis", "--track-oks", "0.5"], "--flow, --track-oks: these say how"),
        (["RUN", "images", "--track", "--propagate", "-1"], "propagate is a number of frames"),
        (["RUN", "images", "--jsonl", "images"], "images is a folder: give the name of a file"),
        (["RUN", "images", "--draw", "images/000.png"], "000.png is not a folder"),
        (["RUN", "images", "--skeleton", "mpii"], "the network has 17 keypoints, mpii has 16"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(model, tmp_path, capsys, words, message):
    (tmp_path / "strange.json").write_text('[{"image_id": "dog", "bbox": [1, 2, 3, 4], "score": 1}]')
    (tmp_path / "nan.json").write_text('[{"image_id": "dog", "bbox": [1, NaN, 3, 4], "score": 1}]')
    assert predict(*(model if word == "RUN" else word for word in words)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_a_full_disk_keeps_what_was_done(model, tmp_path, capsys, monkeypatch):
    from posekd.deploy import results

    calls = iter(range(10))

    def rows(people):
        if next(calls) == 2:
            raise OSError(28, "No space left on device", "r.jsonl")
        return []

    monkeypatch.setattr(results, "_rows", rows)
    assert predict(model, "images", "--jsonl", "r.jsonl", "--batch-size", 1) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "No space left on device: 'r.jsonl' (what was done before is kept: 2 frames)" in said
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 2
