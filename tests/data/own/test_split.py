"""Splits: disjoint, reproducible, by image or by group; copies of an image stay together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.coco_folder import labels, person, write

from posekd.cli import main
from posekd.data import CocoKeypoints
from posekd.data.inspection import same_images
from posekd.data.own.find import find_data


@pytest.fixture
def ten(tmp_path):
    """Ten images with a person each; numbers 1 and 2 are copies, and each video has two or three images."""
    content = labels([person(10 * i, i) for i in range(1, 11)], range(1, 11))
    for image in content["images"]:
        image["video_id"] = image["id"] // 3
    own = write(tmp_path, content)
    shutil.copy(Path(own.images) / "1.png", Path(own.images) / "2.png")
    return own


def parts(folder):
    return [json.loads((folder / name).read_text()) for name in ("train.json", "val.json")]


def ids(part):
    return {image["id"] for image in part["images"]}


def test_the_parts_are_disjoint_and_found_again(ten, tmp_path, capsys):
    assert main(["split", ten.annotations, "--out", str(tmp_path / "a"), "--val", "0.3"]) == 0
    out = capsys.readouterr().out
    assert "note: 1 images are byte for byte another one" in out
    train, val = parts(tmp_path / "a")
    assert not ids(train) & ids(val)
    assert ids(train) | ids(val) == set(range(1, 11))
    assert 2 <= len(ids(val)) <= 4
    assert len({1, 2} & ids(val)) in (0, 2)  # copies go together
    assert {a["image_id"] for a in val["annotations"]} == ids(val)
    assert val["categories"] == train["categories"]
    own = find_data(str(tmp_path / "a"))
    assert own.val is not None
    assert not same_images(CocoKeypoints(own.train), CocoKeypoints(own.val))


def test_the_same_seed_gives_the_same_split_and_a_new_image_moves_few(ten, tmp_path):
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        main(["split", ten.annotations, "--out", str(tmp_path / name), "--val", "0.3", "--seed", seed])
    a, b, c = (ids(parts(tmp_path / name)[1]) for name in "abc")
    assert a == b != c
    content = json.loads(Path(ten.annotations).read_text())
    content["images"] = [i for i in content["images"] if i["id"] != min(a)]
    Path(ten.annotations).write_text(json.dumps(content))
    main(["split", ten.annotations, "--out", str(tmp_path / "d"), "--val", "0.3"])
    assert len(ids(parts(tmp_path / "d")[1]) - a) <= 1


@pytest.mark.parametrize("by", ["video_id", r"^(\d)", "folder"])
def test_groups_stay_together(ten, tmp_path, capsys, by):
    code = main(["split", ten.annotations, "--out", str(tmp_path / "a"), "--by", by, "--val", "0.3"])
    if by == "folder":  # all lie in one
        assert code == 2
        assert "all 10 images are one group" in capsys.readouterr().err
        return
    train, val = parts(tmp_path / "a")
    groups = [
        {i["video_id"] if by == "video_id" else i["file_name"][0] for i in part["images"]} for part in (train, val)
    ]
    assert not groups[0] & groups[1]
    assert groups[1]


def test_mistakes_are_told(ten, tmp_path, capsys):
    for words, message in (
        (["--by", "day(\\d)"], "is no entry of the images and does not match '1.png'"),
        (["--by", "day("], "is no entry of the images, and no regular expression"),
        (["--val", "1.5"], "between 0 and 1, got 1.5"),
        (["--images", str(tmp_path / "no")], ""),
    ):
        code = main(["split", ten.annotations, "--out", str(tmp_path / "a"), *words])
        if message:
            assert code == 2
            assert message in capsys.readouterr().err
