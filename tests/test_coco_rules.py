"""What a label file says is believed alike by training, evaluation and scoring; what is mended is said."""

from __future__ import annotations

import copy
import json
import warnings

import numpy as np
import pytest
import torch
from helpers.coco_folder import labels, person, write
from pycocotools import mask as rle
from pycocotools.coco import COCO as Index  # noqa: N811
from pycocotools.cocoeval import COCOeval

from posekd.data import CocoKeypoints, LoaderSettings, image_loader
from posekd.data.regions import decode_mask
from posekd.engine.scoring.coco import COCO_KEYPOINTS
from posekd.metrics import evaluate_coco
from posekd.structures import Instances

NOBODY = {"num_keypoints": 0, "keypoints": [0] * 51}


def opened(folder, *people, **changes):
    """The dataset, and what was said when it was opened."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        source = CocoKeypoints(write(folder, labels(list(people)), **changes))
    return source, [str(warning.message) for warning in said]


def found(people, shift=0.0):
    """A result for each person, moved to the right."""
    results = []
    for a in people:
        points = np.array(a["keypoints"], float).reshape(-1, 3) + np.array([shift, 0, 0])
        entry = {"image_id": a["image_id"], "category_id": 1, "score": 0.9}
        results.append({**entry, "keypoints": np.nan_to_num(points).reshape(-1).tolist()})
    return results


def official(truth, results):
    """pycocotools by itself."""
    index = Index()
    index.dataset = copy.deepcopy(truth)
    index.createIndex()
    run = COCOeval(index, index.loadRes(copy.deepcopy(results)), "keypoints")
    run.evaluate()
    run.accumulate()
    run.summarize()
    return run.stats.tolist()


class TestRepaired:
    def test_a_box_drawn_backwards_is_turned_round(self, tmp_path):
        people = [person(1, 1, bbox=[40.0, 45.0, -30.0, -40.0]), person(2, 2, bbox=[40.0, 5.0, -30.0, 40.0])]
        source, said = opened(tmp_path, *people)
        assert source.records.boxes.tolist() == [[10, 5, 29, 39]] * 2
        assert len(said) == 1
        assert "annotation 1 (image 1) with the box [40.0, 45.0, -30.0, -40.0]" in said[0]
        assert "turned round (2 such in the file)" in said[0]

    def test_without_area_the_box_is_taken_in_training_and_scoring(self, tmp_path):
        people = [person(1, 1), person(2, 2)]
        del people[0]["area"]
        people[1]["area"] = None
        source, said = opened(tmp_path, *people)
        assert len(source.records) == 2
        assert "has no 'area', so the box's is taken" in said[0]
        result = evaluate_coco(source.coco_ground_truth(), found(people))
        assert [p.area for p in result.people] == [1200, 1200]

    def test_without_ids_annotations_are_counted(self, tmp_path):
        people = [person(1, 1), person(2, 2)]
        for a in people:
            del a["id"]
        source, _ = opened(tmp_path, *people)
        assert source.records.sample_ids.tolist() == [0, 1]
        assert [a["id"] for a in source.coco_ground_truth()["annotations"]] == [0, 1]
        with pytest.raises(ValueError, match=r"annotations\[0\] has no id, and others have"):
            opened(tmp_path, people[0], person(5, 2))

    def test_whole_numbers_may_be_written_with_a_point(self, tmp_path):
        source, _ = opened(tmp_path, person(1.0, 1.0, category_id=1.0, iscrowd=0.0, num_keypoints=17.0))
        assert source.records.sample_ids.tolist() == [1]
        with pytest.raises(ValueError, match=r"image_id must be a whole number, got 1\.5"):
            opened(tmp_path, person(1, 1.5))

    def test_a_confidence_above_zero_is_a_label(self, tmp_path):
        who = person(1, 1)
        who["keypoints"][2::3] = [0.41, 0.0, 1, 2] + [1e-3] * 13
        source, said = opened(tmp_path, who)
        assert source.records.keypoints[0, :, 2].tolist() == [2, 0, 1, 2] + [2] * 13
        assert "has the visibility 0.41: taken for a confidence" in said[0]

    def test_nan_at_an_unlabelled_joint_is_no_fault(self, tmp_path):
        who = person(1, 1)
        who["keypoints"][:3] = [float("nan"), float("inf"), 0]
        source, said = opened(tmp_path, who)
        assert not said
        assert source.records.keypoints[0, 0].tolist() == [0, 0, 0]
        assert pytest.approx(1) == evaluate_coco(source.coco_ground_truth(), found([who])).AP

    def test_somebody_with_a_box_only_is_unlabelled(self, tmp_path):
        bare = {k: v for k, v in person(2, 2).items() if k not in ("keypoints", "num_keypoints")}
        people = [person(1, 1), bare, person(3, 3, **NOBODY, bbox=None)]
        source, said = opened(tmp_path, *people)
        assert not said
        assert source.records.sample_ids.tolist() == [1]
        assert len(evaluate_coco(source.coco_ground_truth(), found(people[:1])).people) == 1

    @pytest.mark.parametrize("edges", [[[0, 1], [1, 2]], [[4, 3], [32, 33]], [[1]], "none", [[1, 2], [3.0, 4]]])
    def test_edges_that_cannot_be_drawn_are_left_out(self, tmp_path, edges):
        content = labels([person(1, 1)])
        content["categories"][0] |= {"name": "p", "keypoints": [f"p{i}" for i in range(17)], "skeleton": edges}
        with pytest.warns(UserWarning, match="joints count from 1 to 17, so no edges are drawn"):
            source = CocoKeypoints(write(tmp_path, content, sigmas=[0.05] * 17))
        assert source.records.skeleton.edges == ()
        with pytest.warns(UserWarning, match="no OKS sigmas"):
            assert pytest.approx(1) == evaluate_coco(content, found([person(1, 1)])).AP


class TestLeftOut:
    @pytest.mark.parametrize(
        "change",
        [{"area": 0}, {"bbox": [20.0, 20.0, 0, 0]}, {"bbox": [500.0, 5.0, 9.0, 9.0]},
         {"keypoints": [0] * 51}],
    )  # fmt: skip
    def test_who_is_never_cropped_is_counted_and_the_score_without_them_is_told(self, tmp_path, change):
        people = [person(1, 1), person(2, 2, **change), person(3, 3)]
        source, said = opened(tmp_path, *people)
        assert source.records.sample_ids.tolist() == [1, 3]
        assert "annotation 2" in said[0]
        assert "left out of training and never cropped, but counted in the score" in said[0]
        score = COCO_KEYPOINTS.score(source, instances(source))
        assert score.numbers["AP"] == pytest.approx(67 / 101)  # recall 2/3 with precision 1
        assert score.note.split("; ")[-1].startswith("1 labelled people have no crop")
        assert score.note.endswith("without them AP is 1.0000")

    def test_a_negative_area_is_left_out_of_training_and_of_no_size_that_pycocotools_scores(self, tmp_path):
        source, said = opened(tmp_path, person(1, 1), person(2, 2, area=-5.0))
        assert "annotation 2 (image 2) with the area -5" in said[0]
        score = COCO_KEYPOINTS.score(source, instances(source))
        assert (score.numbers["AP"], score.note) == (pytest.approx(1), "")

    def test_a_file_that_pycocotools_scores_keeps_its_number(self, tmp_path, capsys):
        crowd = person(9, 1, iscrowd=1, bbox=[60.0, 50.0, -20.0, -20.0])
        backwards = person(8, 3, **NOBODY, bbox=[40.0, 45.0, -30.0, -40.0])
        odd = person(7, 3, keypoints=[v + 3 if i % 3 == 2 else v for i, v in enumerate(person(1, 1)["keypoints"])])
        people = [person(1, 1), person(2, 2, area=0), person(3, 3, area=700.0), crowd, backwards, odd]
        truth, results = labels(people), found(people, 2.0)
        assert list(evaluate_coco(truth, results).numbers().values()) == official(truth, results)

    def test_annotations_of_no_category(self, tmp_path):
        source, said = opened(tmp_path, person(1, 1), person(2, 2, category_id=5), person(3, 2, category_id=None))
        assert len(source.records) == 1
        assert "is of a category that the file does not list: left out (2 such" in said[0]


def instances(source):

    records = source.records
    points = torch.from_numpy(records.keypoints)
    ones, boxes = torch.ones(len(records)), torch.from_numpy(records.boxes)
    images = torch.from_numpy(records.image_ids[records.image_rows])
    return Instances(points, ones, boxes, ones, ones, images, torch.from_numpy(records.sample_ids))


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"iscrowd": []}, r"annotation 1 \(image 1\): iscrowd must be a whole number, got \[\]"),
            ({"area": "1200"}, r"annotation 1 \(image 1\): area must be 1 finite numbers, got \['1200'\]"),
            ({"area": float("nan")}, r"annotation 1 \(image 1\): area must be"),
            ({"num_keypoints": "17"}, r"num_keypoints must be a whole number, got the text '17'"),
            ({"bbox": [1, 2, 3, 10**400]}, r"annotation 1 \(image 1\): bbox must be 4 finite numbers"),
            ({"category_id": "1"}, r"is of the category '1', an id that the labels write 1"),
        ],
    )
    def test_by_training_and_scoring_in_the_same_words(self, tmp_path, change, message):
        content = labels([person(1, 1, **change)])
        with pytest.raises(ValueError, match=message):
            evaluate_coco(content, [])
        if "category_id" in change:
            message = "annotation 1: category_id must be a whole number, got the text '1'"
        with pytest.raises(ValueError, match=message):
            CocoKeypoints(write(tmp_path, content))

    def test_equal_ids_before_training(self, tmp_path):
        with pytest.raises(ValueError, match=r"labels\.json: 1 annotation ids occur more than once, first 7"):
            opened(tmp_path, person(7, 1), person(7, 2))

    def test_an_image_larger_than_any_mask_may_be(self, tmp_path):
        content = labels([person(1, 1)])
        content["images"][0] |= {"height": 40_000, "width": 40_000}
        with pytest.raises(ValueError, match="image 1 is 40000 x 40000 pixels; 1 to 268435456 can be read"):
            CocoKeypoints(write(tmp_path, content))

    def test_json_that_goes_deeper_than_python(self, tmp_path):
        with pytest.raises(ValueError, match=r"labels\.json is not JSON"):
            CocoKeypoints(write(tmp_path, "[" * 100_000))

    def test_ids_of_another_type_are_named(self):
        truth = labels([person(1, 1)])
        with pytest.raises(ValueError, match="are for the image '1', an id that the labels write 1: one is text"):
            evaluate_coco(truth, [{**found(truth["annotations"])[0], "image_id": "1"}])
        torch = pytest.importorskip("torch")
        result = {**found(truth["annotations"])[0], "image_id": torch.tensor(1)}
        assert pytest.approx(1) == evaluate_coco(truth, [result]).AP

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"score": "0.9"}, r"entry 0 \(image 1\): score must be numbers"),
            ({"keypoints": None}, r"entry 0 \(image 1\) has no keypoint values"),
            ({"keypoints": ["1"] * 51}, r"entry 0 \(image 1\): keypoints must be numbers"),
            ({"image_id": [1]}, r"image_id must be a whole number, got \[1\]"),
        ],
    )
    def test_results_of_other_types(self, change, message):
        truth = labels([person(1, 1)])
        with pytest.raises(ValueError, match=message):
            evaluate_coco(truth, [{**found(truth["annotations"])[0], **change}])


class TestRegions:
    """Of a crowd in image 2; images are 60 x 80."""

    def open(self, folder, segmentation):
        crowd = person(90, 2, **NOBODY, iscrowd=1, segmentation=segmentation)
        return opened(folder, person(1, 1), crowd, keep_images="annotated")

    def runs(self, mask, compressed=True):
        packed = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
        return {"size": packed["size"], "counts": packed["counts"].decode()}

    def test_any_mask_survives_as_it_is(self, tmp_path):
        rng = np.random.default_rng(0)
        for density in (0.02, 0.5, 0.98):
            mask = rng.random((60, 80)) < density
            source, said = self.open(tmp_path, self.runs(mask))
            assert not said
            np.testing.assert_array_equal(decode_mask(source.records.ignored, 1, (60, 80)) > 0, mask)

    @pytest.mark.parametrize(
        ("segmentation", "message"),
        [
            ({"size": [30, 40], "counts": [1200]}, r"is of a picture of \[30, 40\] .*, the image is \[60, 80\]"),
            ({"size": [80, 60], "counts": [4800]}, r"is of a picture of \[80, 60\]"),
            ({"size": [60, 80], "counts": [100, 200]}, "its run lengths fill 300 pixels, the image has 4800"),
            ({"size": [60, 80], "counts": [-3, 4803]}, "counts must be run lengths, whole numbers from 0 on"),
            ({"size": [60, 80], "counts": [1.5, 4798.5]}, "counts must be run lengths"),
            ({"size": [60, 80], "counts": "\u00e9"}, "counts must be run lengths"),
            ({"size": [60, 80], "counts": "PPPPPPPPPPPPPPPPPPPPPPP"}, "counts must be run lengths"),
            ([[1, 2, 3, 4, 5, float("nan")]], "must be 6 finite numbers"),
            ([[1, 2, 3, 4, 5, 6, 7]], r"must be polygons \(lists of x, y, x, y"),
            (["abcdef"], "must be polygons"),
            (7, "must be polygons or run lengths, got 7"),
        ],
    )
    def test_what_is_refused_names_the_annotation(self, tmp_path, segmentation, message):
        with pytest.raises(ValueError, match=rf"labels\.json: annotation 90 \(image 2\): segmentation:? .*{message}"):
            self.open(tmp_path, segmentation)

    @pytest.mark.parametrize("polygon", [[1, 1, 5, 5], [3, 3, 3, 3, 3, 3], [1e9, 1, 1e9, 9, 2e9, 9]])
    def test_without_area_or_far_outside_nothing_is_ignored_and_it_is_said(self, tmp_path, polygon):
        source, said = self.open(tmp_path, [polygon])
        assert len(source.records.ignored) == 0
        assert "annotation 90 (image 2): its segmentation has no area in or near the image" in said[0]


def test_what_opens_can_be_scored(tmp_path):
    """Validation refuses nothing that was not refused at the start."""
    people = [
        person(1, 1),
        person(2, 1, iscrowd=1, keypoints=[], num_keypoints=0),
        person(3, 2, keypoints=[1, 2, 0.5] * 17),
    ]
    source, _ = opened(tmp_path, *people)
    truth = json.loads(json.dumps(source.coco_ground_truth()))
    assert len(evaluate_coco(truth, found([people[0]])).people) == 2


def species(*annotations):
    content = labels(list(annotations))
    dog = content["categories"][0]
    content["categories"] = [{**dog, "id": c, "name": name} for c, name in ((1, "dog"), (2, "cat"))]
    return content


def test_several_categories_of_one_skeleton_go_together_and_ap_is_the_mean_of_theirs(tmp_path):
    settings = write(tmp_path, species(person(1, 1), person(2, 2, category_id=2), person(3, 3)))
    source = CocoKeypoints(settings)
    assert source.records.sample_ids.tolist() == [1, 2, 3]
    assert COCO_KEYPOINTS.score(source, instances(source)).numbers["AP"] == pytest.approx(1)
    dogs_only = instances(source).take([0, 2])
    assert COCO_KEYPOINTS.score(source, dogs_only).numbers["AP"] == pytest.approx(0.5)
    COCO_KEYPOINTS.write(source, dogs_only, tmp_path / "r.json")
    assert [r["category_id"] for r in json.loads((tmp_path / "r.json").read_text())] == [1, 1]
    cats = CocoKeypoints(write(tmp_path, species(person(1, 1), person(2, 2, category_id=2)), category="cat"))
    assert cats.records.sample_ids.tolist() == [2]


def test_detections_of_several_categories_are_cropped_and_keep_theirs(tmp_path):
    """A dog and a cat that lie one over the other: each is right in its own category alone."""
    content = species(person(1, 1), person(2, 1, category_id=2, keypoints=[9.0, 9.0, 2] * 17), person(3, 3))
    box = {"bbox": [10, 5, 30, 40], "score": 0.9}
    given = [{"image_id": image, "category_id": which, **box} for image, which in ((1, 2), (1, 1), (1, 5), (3, 1))]
    (tmp_path / "d.json").write_text(json.dumps(given))
    source = CocoKeypoints(write(tmp_path, content, detections=str(tmp_path / "d.json")))
    assert source.records.sample_ids.tolist() == [0, 1, 3]  # rows of the file; nothing is of category 5
    people = instances(source)
    labelled = {1: content["annotations"][0], 0: content["annotations"][1], 3: content["annotations"][2]}
    poses = [np.reshape(labelled[i]["keypoints"], (17, 3)) for i in people.sample_ids.tolist()]
    people.keypoints[:] = torch.tensor(np.array(poses))
    assert COCO_KEYPOINTS.score(source, people).numbers["AP"] == pytest.approx(1)
    COCO_KEYPOINTS.write(source, people, tmp_path / "r.json")
    assert [r["category_id"] for r in json.loads((tmp_path / "r.json").read_text())] == [2, 1, 1]
    people.keypoints[[0, 1]] = people.keypoints[[1, 0]]  # a dog missed, then one found; no cat
    assert COCO_KEYPOINTS.score(source, people).numbers["AP"] == pytest.approx(51 / 101 / 4)
    dogs = CocoKeypoints(write(tmp_path, content, detections=str(tmp_path / "d.json"), category="dog"))
    assert dogs.records.sample_ids.tolist() == [1, 3]


def test_a_network_that_sees_whole_images_is_scored_on_all_categories_as_one(tmp_path):
    content = species(person(1, 1), person(2, 2, category_id=2), person(3, 3, category_id=2))
    source = CocoKeypoints(write(tmp_path, content, keep_images="all"))
    batch = next(iter(image_loader(source, (64, 64), LoaderSettings(3, 0), training=True)))
    assert len(batch.keypoints) == 3  # everybody is learnt from
    people = instances(source).take([0, 1])
    people.sample_ids[:] = -1  # as a bottom-up network gives them
    score = COCO_KEYPOINTS.score(source, people)
    assert score.numbers["AP"] == pytest.approx(67 / 101)  # 2 of 3, precision 1
    assert score.note == "the network does not tell the 2 categories apart: all are scored as one, 'dog'"
    dogs = CocoKeypoints(write(tmp_path, content, keep_images="all", category="dog"))
    assert COCO_KEYPOINTS.score(dogs, people.take([0])).numbers["AP"] == pytest.approx(1)
    assert COCO_KEYPOINTS.score(dogs, people.take([0])).note == ""


@pytest.mark.parametrize(("corners", "told"), [(True, True), (False, False)])
def test_boxes_written_as_corners_are_noticed(tmp_path, corners, told):
    """Images of 80 x 60 pixels. Boxes of 30 x 40 in the right half, in labels and in a detector's file."""
    box = [45.0, 15.0, 75.0, 55.0] if corners else [45.0, 15.0, 30.0, 40.0]
    points = [v for k in range(17) for v in (46.0 + k, 16.0 + 2 * k, 2)]
    people = [person(i, i, bbox=box, keypoints=points) for i in (1, 2, 3)]
    given = [{"image_id": p["image_id"], "category_id": 1, "bbox": box, "score": 0.9} for p in people]
    (tmp_path / "d.json").write_text(json.dumps(given))
    expected = (
        "3 of 3 boxes reach out of their images as x, y, width, height, and as corners x1, y1, x2, y2 they do not: if "
        "they are corners, write widths and heights"
    )
    for changes, file in (({}, "labels.json"), ({"detections": str(tmp_path / "d.json")}, "d.json")):
        _, said = opened(tmp_path, *people, **changes)
        assert [text for text in said if "corners" in text] == [f"{tmp_path / file}: {expected}"] * told


def test_lists_of_whole_bodies_are_not_read_and_it_is_said(tmp_path):
    source, said = opened(tmp_path, person(1, 1, foot_kpts=[1.0, 2, 2] * 6, face_kpts=[1.0, 2, 2] * 68))
    assert source.records.skeleton.num_keypoints == 17
    assert "annotation 1 (image 1) has ['face_kpts', 'foot_kpts']: these lists are not read" in said[0]


def test_a_results_file_is_not_scored_on_a_category_silently(tmp_path):
    settings = write(tmp_path, species(person(1, 1)), category="dog")
    with pytest.raises(ValueError, match="category: 'dog' chooses whom to crop; a results file is scored on all"):
        COCO_KEYPOINTS.score_file(settings, None, tmp_path / "r.json")
