"""Labelled data are looked at before training: what is counted, what looks wrong, and what passes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.coco_folder import HEIGHT, WIDTH, labels, person, write

from posekd.data import CocoKeypoints, CocoSettings
from posekd.data.inspection import gather_facts, judge, same_images, shared
from posekd.data.inspection.judge import looks_like_corners, looks_normalised
from posekd.skeleton import COCO

EXIF = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"


def many(count=24, **changes):
    """One person on each of `count` images, whose box holds all keypoints."""
    return labels([person(10 * i, i, bbox=[5, 2, 50, 50], **changes) for i in range(1, count + 1)], range(1, count + 1))


def kinds(folder: Path, content, flip=0.5, **settings) -> dict[str, str]:
    own = write(folder, content, **settings)
    data = CocoKeypoints(own)
    return {j.kind: str(j) for j in judge(data, gather_facts(data.records, own), flip=flip)}


def test_nothing_looks_wrong_in_good_data(tmp_path):
    assert kinds(tmp_path, many()) == {}


@pytest.mark.data
def test_real_labels_are_not_refused(real_data):
    folder = real_data / "coco" / "coco-mini"
    for split in ("train2017", "val2017"):
        labels_of = folder / "annotations" / f"person_keypoints_{split}.json"
        own = CocoSettings(str(folder / split), str(labels_of))
        data = CocoKeypoints(own)
        found = judge(data, gather_facts(data.records, own), flip=0.5)
        assert not [j for j in found if j.refused]
        assert not {"outside_images", "pairs", "sigmas"} & {j.kind for j in found}


def test_facts_are_counts(tmp_path):
    points = list(person(1, 1)["keypoints"])
    points[2], points[5] = 0, 1  # the nose is unlabelled, the left eye occluded
    content = labels(
        [
            person(1, 1, keypoints=points, num_keypoints=16),
            person(2, 1),
            person(3, 2, iscrowd=1),
            person(4, 2, keypoints=[0] * 51, num_keypoints=0),
            person(5, 3, area=0),
        ]
    )
    own = write(tmp_path, content)
    facts = gather_facts(CocoKeypoints(own).records, own)
    assert (facts.images, facts.people, facts.labelled_people) == (1, 2, 2)
    assert facts.labels[:3].tolist() == [1, 2, 2]
    assert (facts.visible[1], facts.occluded[1]) == (1, 1)
    assert facts.box_sizes[1].tolist() == [29, 39]  # one pixel less than labelled, HRNet's rule
    assert facts.left_out == {
        "crowds": 1,
        "without a labelled keypoint": 1,
        "without an area, or with none inside the image": 1,
    }
    assert ("left_eye", "right_eye") in facts.pairs
    assert facts.sigmas_from == "the usual ones of coco"
    assert not facts.sigmas_guessed


class TestCornerBoxes:
    def test_are_refused_with_count_example_and_mend(self, tmp_path):
        """Written as left, top, right, bottom: read as width and height, most reach beyond the image."""
        content = labels([person(i, i, bbox=[30, 10, 75, 55]) for i in range(1, 6)], range(1, 6))
        for a in content["annotations"]:
            a["keypoints"] = [v for k in range(17) for v in (32 + 2 * k, 12 + 2 * k, 2)]
        found = kinds(tmp_path, content)["corner_boxes"]
        assert found.startswith("5 of 5 boxes look like corners")
        assert "[30.0, 10.0, 75.0, 55.0] in annotation 1" in found
        assert "of 80 x 60 pixels" in found
        assert "convert" in found

    @pytest.mark.parametrize(
        "box",
        [
            [0, 0, WIDTH, HEIGHT],  # the whole image is both
            [10, 5, 30, 40],
            [40, 30, 40, 30],  # up to the image's corner
            [40, 30, 60, 45],  # beyond it, but as corners without most keypoints
        ],
    )
    def test_ordinary_boxes_are_not_taken_for_corners(self, box):
        points = np.zeros((1, 4, 3))
        points[0] = [(12, 8, 2), (45, 35, 2), (70, 50, 2), (75, 58, 2)]
        assert not looks_like_corners(np.array([box]), np.array([[HEIGHT, WIDTH]]), points).any()

    def test_one_person_that_leaves_the_image_is_no_reason(self):
        """Of ten boxes nine cannot be corners."""
        boxes = np.array([[20, 10, 15, 30]] * 9 + [[50, 30, 70, 55]])
        points = np.full((10, 3, 3), 2.0)
        points[:, :, :2] = [[55, 35], [60, 40], [65, 50]]
        assert not looks_like_corners(boxes, np.array([[HEIGHT, WIDTH]] * 10), points).any()


class TestNormalised:
    def test_keypoints_between_0_and_1(self, tmp_path):
        content = many(3)
        for a in content["annotations"]:
            a["keypoints"] = [v for k in range(17) for v in (0.1 + 0.05 * k, 0.5, 2)]
        found = kinds(tmp_path, content)["normalised"]
        assert found.startswith("3 of 3 people have all keypoints between 0 and 1")
        assert "[0.1, 0.5] in annotation 10" in found

    def test_boxes_between_0_and_1_explain_why_nobody_is_left(self, tmp_path):
        with pytest.raises(ValueError, match=r"no person to learn from.*The boxes lie between 0 and 1"):
            CocoKeypoints(write(tmp_path, labels([person(1, 1, bbox=[0.1, 0.2, 0.5, 0.5])])))

    def test_corners_of_the_image_are_pixels(self):
        assert looks_normalised(np.array([[0.2, 0.9]]))
        assert not looks_normalised(np.array([[0.0, 1.0], [1.0, 1.0]]))
        assert not looks_normalised(np.array([[0.2, 1.5]]))
        assert not looks_normalised(np.zeros((0, 2)))


def test_keypoints_outside_their_boxes_and_images(tmp_path):
    content = many(2)
    content["annotations"][0]["bbox"] = [60, 40, 15, 15]
    far = [v for k in range(17) for v in (100 + k, 20, 2)]
    content["annotations"][1] |= {"keypoints": far, "bbox": [5, 2, 50, 50]}
    found = kinds(tmp_path, content)
    assert found["outside_boxes"].startswith("2 of 2 people have most of their labelled keypoints outside their box")
    assert found["outside_images"].startswith("1 of 2 people have most of their labelled keypoints outside the image")


def test_names_without_pairs_matter_where_pictures_are_mirrored(tmp_path):
    names = ["nose", "pawLH", "pawRF", "leftEar"]
    content = labels([person(i, i, keypoints=[10, 10, 2] * 4, num_keypoints=4) for i in range(1, 4)])
    content["categories"][0]["keypoints"] = names
    with pytest.warns(UserWarning, match="leftEar look like"):
        found = kinds(tmp_path, content)
    assert found["pairs"].startswith("1 of 4 keypoint names tell a side and have no partner, while `flip` is 0.5")
    assert "flip_pairs" in found["pairs"]
    assert found["sigmas"].startswith("4 of 4 OKS sigmas are guessed (0.05 each)")
    assert found["few_labels"].startswith("4 of 4 keypoints have fewer than 20 labels")
    content["categories"][0]["keypoints"] = ["a", "b", "c", "d"]
    assert "have no mirror pair among them" in kinds(tmp_path, content)["pairs"]
    assert "pairs" not in kinds(tmp_path, content, flip=0.0)
    given = kinds(tmp_path, content, sigmas=[0.1] * 4, flip_pairs=[["a", "b"]])
    assert not {"pairs", "sigmas"} & given.keys()


def test_orientation_tags_are_seen_without_decoding(tmp_path):
    own = write(tmp_path, many(2))
    image = Path(own.images) / "1.png"
    image.write_bytes(b"\xff\xd8\xff\xe1" + (len(EXIF) + 2).to_bytes(2, "big") + EXIF + b"\xff\xda")
    data = CocoKeypoints(own)
    (found,) = (j for j in judge(data, gather_facts(data.records, own)) if j.kind == "orientation")
    assert str(found).startswith("1 of 2 images have an EXIF orientation")
    assert "1.png has 6" in found.example


class TestSharedImages:
    def test_are_found_by_content_whatever_they_are_called(self, tmp_path):
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
        one, two = write(tmp_path / "one", many(3)), write(tmp_path / "two", many(3))
        for i in (1, 3):  # other bytes
            data = bytearray((Path(two.images) / f"{i}.png").read_bytes())
            data[60] ^= 1
            (Path(two.images) / f"{i}.png").write_bytes(data)
        shutil.move(Path(two.images) / "2.png", Path(two.images) / "20.png")
        content = many(3)
        content["images"][1]["file_name"] = "20.png"
        Path(two.annotations).write_text(json.dumps(content))
        pairs = same_images(CocoKeypoints(one), CocoKeypoints(two))
        assert [(Path(a).name, Path(b).name) for a, b in pairs] == [("2.png", "20.png")]
        (found,) = shared(pairs, 3)
        assert found.refused
        assert str(found).startswith("1 of 3 training images are in both splits")

    def test_none(self):
        assert shared([], 3) == []


def test_boxes_as_stated_go_with_their_people(tmp_path):
    records = CocoKeypoints(write(tmp_path, many(3))).records
    assert records.stated_boxes[0].tolist() == [5, 2, 50, 50]
    assert records.take(np.array([2])).stated_boxes.shape == (1, 4)
    assert records.join(replace(records, stated_boxes=None)).stated_boxes is None
    assert records.skeleton is COCO
