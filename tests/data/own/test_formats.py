"""Other tools' labels: what is read is what is written, in pixels; and what each tool's own file means."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.coco_folder import HEIGHT, WIDTH, labels, person, write

from posekd.cli import main
from posekd.data import CocoKeypoints
from posekd.data.own.find import find_data
from posekd.data.own.formats import FORMATS, coco, recognise
from posekd.data.own.labels import LabelledImage, OwnLabels, Person, box_around


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((HEIGHT, WIDTH, 3), np.uint8))


def points_by_image(found):
    return {i.file_name: [p.keypoints.tolist() for p in i.people] for i in found.images}


def test_formats_that_are_written_come_back_the_same(tmp_path):
    points = [v for k in range(17) for v in (10.5 + k, 5.25 + 2 * k, 2)]
    points[:3] = [0, 0, 0]
    content = labels([person(1, 1, keypoints=points), person(2, 1), person(3, 2)], (1, 2))
    own = write(tmp_path, content)
    first = coco.read(Path(own.annotations), None)
    assert first.folder == Path(own.images)
    for name, target in (
        ("coco", "again.json"),
        ("deeplabcut", "images/again.csv"),
        ("yolo", "labels"),
        ("label-studio", "tasks.json"),
        ("cvat", "again.xml"),
    ):
        assert main(["convert", own.annotations, "--to", name, "--out", str(tmp_path / target)]) == 0
        assert recognise(tmp_path / target) == name
        again = FORMATS[name].read(tmp_path / target, Path(own.images))
        assert again.names == first.names
        before, after = points_by_image(first), points_by_image(again)
        for file, people in before.items():
            np.testing.assert_allclose(after[file], people, atol=1e-3)
    boxes = [p.box for i in FORMATS["yolo"].read(tmp_path / "labels", Path(own.images)).images for p in i.people]
    np.testing.assert_allclose(boxes, [[10, 5, 30, 40]] * 3, atol=0.01)


@pytest.mark.parametrize(("name", "target"), [("label-studio", "tasks.json"), ("cvat", "tasks.xml")])
def test_occluded_keypoints_boxes_and_categories_come_back(tmp_path, name, target):
    """Boxes that overlap, one that does not hold its keypoints, none at all, an image without anybody."""
    for file in ("a.png", "b.png", "c.png"):
        picture(tmp_path / file)
    names = ("nose", "left eye", "tail & <tip>")
    people = [
        Person(np.array([[0.0, 0, 0], [12, 13, 1], [14, 15, 2]]), (10.0, 10.0, 20.0, 20.0)),
        Person(np.array([[16.0, 17, 2], [18, 19, 2], [0, 0, 0]]), (8.0, 8.0, 25.0, 25.0)),
        Person(np.array([[60.0, 50, 2], [0, 0, 0], [70, 55, 1]]), (2.0, 3.0, 4.0, 5.0)),
    ]
    alone = [Person(np.array([[1.0, 2, 2], [3, 4, 2], [5, 6, 2]]))]
    images = [LabelledImage(f, (HEIGHT, WIDTH), tuple(p)) for f, p in (("a.png", people), ("b.png", alone))]
    images.append(LabelledImage("c.png", (HEIGHT, WIDTH), ()))
    file = tmp_path / target
    FORMATS[name].write(OwnLabels(names, tmp_path, tuple(images), category="cat"), file)
    assert recognise(file) == name
    found = FORMATS[name].read(file, None)
    assert (found.names, found.category) == (names, "cat")
    for image, again in zip(images, found.images, strict=False):
        assert (again.file_name, again.size, len(again.people)) == (image.file_name, image.size, len(image.people))
        for before, after in zip(image.people, again.people, strict=True):
            np.testing.assert_allclose(after.keypoints[:, 2], before.keypoints[:, 2])
            seen = before.keypoints[:, 2] > 0
            np.testing.assert_allclose(after.keypoints[seen], before.keypoints[seen], atol=0.006)
            assert (after.box is None) == (before.box is None)
            if before.box is not None:
                np.testing.assert_allclose(after.box, before.box, atol=0.011)


@pytest.mark.data
def test_a_mouse_of_deeplabcut(real_data, tmp_path, capsys):
    """90 images, 17 points of which 134 of 1530 are missing: counted with a spreadsheet, see the data's README."""
    source = real_data / "own-keypoints" / "mirror-mouse-example" / "CollectedData.csv"
    out = tmp_path / "mouse.json"
    assert main(["convert", str(source), "--out", str(out), "--category", "mouse"]) == 0
    assert "90 images, 90 people, 17 keypoints, 1396 labels" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="no OKS sigmas"):
        records = CocoKeypoints(find_data(str(out)).train).records  # the images are found by themselves
    assert (len(records), records.skeleton.name) == (90, "mouse")
    assert int((records.keypoints[..., 2] > 0).sum()) == 17 * 90 - 134
    first = records.keypoints[0]  # img01.png in the CSV: 77.25, 36.25, then 253.5, 101.9; tailBase_top is empty
    np.testing.assert_allclose(first[:2, :2], [[77.25, 36.25], [253.5, 101.9004]], atol=1e-3)
    assert first[4, 2] == 0


def test_several_animals_and_three_index_columns_of_deeplabcut(tmp_path):
    picture(tmp_path / "labeled-data" / "day1" / "img0.png")
    file = tmp_path / "labeled-data" / "day1" / "CollectedData_me.csv"
    file.write_text(
        "scorer,,,me,me,me,me,me,me,me,me\n"
        "individuals,,,a,a,a,a,b,b,b,b\n"
        "bodyparts,,,nose,nose,tail,tail,nose,nose,tail,tail\n"
        "coords,,,x,y,x,y,x,y,x,y\n"
        "labeled-data,day1,img0.png,1,2,3,4,,,30,40\n"
    )
    found = FORMATS["deeplabcut"].read(file, None)
    assert found.names == ("nose", "tail")
    assert points_by_image(found) == {"labeled-data/day1/img0.png": [[[1, 2, 2], [3, 4, 2]], [[0, 0, 0], [30, 40, 2]]]}


def test_label_studio_counts_in_percent_and_rectangles_hold_their_keypoints(tmp_path):
    picture(tmp_path / "a.png")
    size = {"original_width": WIDTH, "original_height": HEIGHT}

    def key(name, x, y):
        return {**size, "type": "keypointlabels", "value": {"x": x, "y": y, "keypointlabels": [name]}}

    def rectangle(name, x, y, w, h):
        value = {"x": x, "y": y, "width": w, "height": h, "rectanglelabels": ["cat"]}
        return {**size, "id": name, "type": "rectanglelabels", "value": value}

    result = [
        rectangle("r1", 0, 0, 50, 100),
        rectangle("r2", 50, 0, 50, 100),
        key("nose", 25, 50),
        key("nose", 75, 50),
        key("tail", 100, 100),
    ]
    task = {"id": 1, "data": {"image": "/data/upload/3/1a2b3c4d-a.png"}, "annotations": [{"result": result}]}
    empty = {"id": 2, "data": {"image": "a.png"}, "annotations": []}
    file = tmp_path / "export.json"
    file.write_text(json.dumps([task, empty]))
    assert recognise(file) == "label-studio"
    found = FORMATS["label-studio"].read(file, None)
    assert points_by_image(found) == {"a.png": [[[20, 30, 2], [0, 0, 0]], [[60, 30, 2], [80, 60, 2]]]}
    assert [p.box for p in found.images[0].people] == [(0, 0, 40, 60), (40, 0, 40, 60)]
    assert found.notes == ("1 tasks without labels were left out",)


def test_skeletons_and_loose_points_of_cvat(tmp_path):
    picture(tmp_path / "a.png")
    file = tmp_path / "annotations.xml"
    file.write_text(
        f"""<?xml version="1.0" encoding="utf-8"?><annotations>
        <image id="0" name="a.png" width="{WIDTH}" height="{HEIGHT}">
        <skeleton label="fox"><points label="nose" outside="0" occluded="0" points="10.5,20.0"/>
        <points label="tail" outside="0" occluded="1" points="30.0,40.0"/>
        <points label="ear" outside="1" occluded="0" points="0,0"/></skeleton>
        <points label="nose" points="50.0,5.0" occluded="0" group_id="2"/>
        <points label="tail" points="60.0,9.0" occluded="0" group_id="2"/>
        <box label="fox" xtl="45" ytl="2" xbr="65" ybr="12"/></image></annotations>"""
    )
    found = FORMATS["cvat"].read(file, None)
    assert found.names == ("nose", "tail", "ear")
    assert points_by_image(found)["a.png"] == [
        [[10.5, 20, 2], [30, 40, 1], [0, 0, 0]],
        [[50, 5, 2], [60, 9, 2], [0, 0, 0]],
    ]
    assert [p.box for p in found.images[0].people] == [None, (45, 2, 20, 10)]


def test_corner_boxes_and_fractions_are_mended(tmp_path, capsys):
    points = [v for k in range(17) for v in ((20 + k) / WIDTH, (10 + k) / HEIGHT, 2)]
    own = write(tmp_path, labels([person(1, 1, keypoints=points, bbox=[15, 5, 45, 40])], (1,)))
    out = tmp_path / "mended.json"
    assert main(["convert", own.annotations, "--boxes", "corners", "--out", str(out)]) == 0
    assert "note: coordinates lay between 0 and 1 and were multiplied" in capsys.readouterr().out
    (mended,) = json.loads(out.read_text())["annotations"]
    assert mended["bbox"] == [15, 5, 30, 35]
    np.testing.assert_allclose(mended["keypoints"][:6], [20, 10, 2, 21, 11, 2], atol=2e-3)


def test_a_box_around_keypoints_has_a_margin_and_stays_in_the_image():
    points = np.array([[10, 10, 2], [30, 20, 2], [0, 0, 0]], float)
    assert box_around(points, (60, 80)) == (8, 8, 24, 14)
    assert box_around(points, (20, 30)) == (8, 8, 22, 12)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "a,b\n1,2\n", "looks like none of these: COCO JSON (--from coco), DeepLabCut CSV"),
        ("x.csv", "scorer,me\nbodyparts,nose\n", "no rows `bodyparts` and `coords`"),
        ("x.csv", "scorer,m,m\nbodyparts,n,n\ncoords,x,y\nno.png,1,2\n", "lies beside none of its folders"),
        ("x.csv", "scorer,m,m\nbodyparts,n,n\ncoords,x,y\nno.png,1\n", "line 4 (no.png) has 2 columns, and the"),
        ("x.csv", "scorer,m\nbodyparts,n\ncoords,x\nno.png,1\n", "row `bodyparts` has 2 columns, and 3 are needed"),
        ("x.csv", "scorer,m,m\nbodyparts,n,n\ncoords,y,z\nno.png,1,2\n", "has no column `x` behind the file names"),
        ("x.csv", "scorer,m,m\nbodyparts,n,n\ncoords,x,x\nno.png,1,2\n", "has 3 columns, and 4 are needed"),
        ("x.csv", "scorer,m,m,m\nbodyparts,n,m,m\ncoords,x,x,y\nno.png,1,2,3\n", "`x` of n (number 2) has no column"),
        ("x.xml", "<annotations>", "is not XML"),
        ("x.json", '[{"annotations": [], "data": {}}]', "holds no keypoints (KeyPointLabels)"),
    ],
)
def test_files_of_another_kind_are_refused_in_words(tmp_path, capsys, name, text, message):
    (tmp_path / name).write_text(text)
    assert main(["convert", str(tmp_path / name), "--out", str(tmp_path / "out.json")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
