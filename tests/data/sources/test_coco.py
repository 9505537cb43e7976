"""COCO-format files: who counts, what is refused and in which words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.coco_folder import labels, person, write
from hypothesis import given
from hypothesis import strategies as st

from posekd.data import CocoKeypoints, CocoSettings
from posekd.data.sources.coco import clip_box
from posekd.engine.recipes.recipe import recipe_from_dict
from posekd.skeleton import COCO


class TestWhoCounts:
    def test_persons_of_an_image_stand_together_with_their_facts(self, tmp_path):
        content = labels([person(7, 2), person(8, 1), person(9, 2)])
        records = CocoKeypoints(write(tmp_path, content)).records
        assert records.skeleton is COCO
        assert records.sample_ids.tolist() == [8, 7, 9]
        assert records.image_ids[records.image_rows].tolist() == [1, 2, 2]
        assert records.image_sizes.tolist() == [[60, 80], [60, 80]]  # image 3 shows nobody
        assert records.keypoints.shape == (3, 17, 3)
        assert records.keypoints[0, 1].tolist() == [11.0, 7.0, 2.0]
        assert records.box_scores.tolist() == [1.0, 1.0, 1.0]

    def test_crowds_unlabelled_persons_and_boxes_without_area_are_left_out_as_in_hrnet(self, tmp_path):
        nobody = [0] * 51
        content = labels(
            [
                person(1, 1),
                person(2, 1, iscrowd=1, keypoints=nobody, num_keypoints=0),
                person(3, 1, keypoints=nobody, num_keypoints=0),
                person(4, 1, num_keypoints=0),
                person(5, 1, area=0.0),
                person(6, 1, bbox=[200.0, 5.0, 20.0, 20.0]),  # beyond the right border
                person(7, 1, category_id=3),
            ]
        )
        assert CocoKeypoints(write(tmp_path, content)).records.sample_ids.tolist() == [1]

    def test_unlabelled_joints_are_zero_wherever_the_file_puts_them(self, tmp_path):
        keypoints = person(1, 1)["keypoints"]
        keypoints[:3] = [999, 999, 0]
        records = CocoKeypoints(write(tmp_path, labels([person(1, 1, keypoints=keypoints)]))).records
        assert records.keypoints[0, 0].tolist() == [0, 0, 0]

    def test_repeated_image_entries_count_once(self, tmp_path):
        content = labels([person(1, 1)], image_ids=(1, 1, 2, 1))
        source = CocoKeypoints(write(tmp_path, content))
        assert source.records.num_images == 1
        assert [entry["id"] for entry in source.coco_ground_truth()["images"]] == [1, 2]

    def test_an_annotation_without_area_uses_its_box(self, tmp_path):
        entry = person(1, 1)
        del entry["area"]
        assert len(CocoKeypoints(write(tmp_path, labels([entry]))).records) == 1

    def test_a_choice_of_images(self, tmp_path):
        content = labels([person(1, 1), person(2, 2), person(3, 3)])
        source = CocoKeypoints(write(tmp_path, content, image_ids=[3, 1]))
        assert source.records.image_ids.tolist() == [1, 3]
        assert [a["id"] for a in source.coco_ground_truth()["annotations"]] == [1, 3]
        with pytest.raises(ValueError, match=r"image_ids: \[44\] are not in"):
            CocoKeypoints(write(tmp_path, content, image_ids=[44]))

    def test_any_number_of_keypoints(self, tmp_path):
        content = labels([person(1, 1, keypoints=[1, 2, 2, 30, 40, 1], num_keypoints=2)])
        content["categories"] = [
            {"id": 5, "name": "table"},
            {"id": 1, "name": "mouse", "keypoints": ["left_ear", "right_ear"]},
        ]
        records = CocoKeypoints(write(tmp_path, content, sigmas=[0.1, 0.1])).records
        assert records.skeleton.flip == (1, 0)
        assert records.keypoints.shape == (1, 2, 3)

    def test_the_ground_truth_keeps_crowds_for_the_evaluator(self, tmp_path):
        content = labels([person(1, 1), person(2, 1, iscrowd=1), person(3, 1, category_id=9)])
        truth = CocoKeypoints(write(tmp_path, content)).coco_ground_truth()
        assert [a["id"] for a in truth["annotations"]] == [1, 2]


class TestClipBox:
    def test_an_inner_box_loses_one_pixel_a_side_as_in_the_official_code(self):
        assert clip_box([10, 20, 30, 40], 640, 480) == (10, 20, 29, 39)

    def test_an_overhanging_box_ends_at_the_last_pixel(self):
        assert clip_box([-5, 470, 30, 40], 640, 480) == (0, 470, 29, 9)

    @pytest.mark.parametrize("box", [[700, 10, 30, 30], [10, 500, 30, 30], [10, 10, 1, 1], [10, 10, -5, 0]])
    def test_nothing_left(self, box):
        assert clip_box(box, 640, 480) is None

    @given(st.tuples(*[st.floats(-1000, 1000)] * 2, *[st.floats(-10, 2000)] * 2))
    def test_what_is_left_lies_in_the_image_and_has_a_side(self, box):
        clean = clip_box(box, 640, 480)
        if clean is not None:
            x, y, w, h = clean
            assert x >= 0
            assert y >= 0
            assert x + w <= 639 + 1e-9
            assert y + h <= 479 + 1e-9
            assert max(w, h) > 0


class TestDetections:
    def write_both(self, folder: Path, detections, **changes) -> CocoSettings:
        file = folder / "detections.json"
        file.write_text(json.dumps(detections))
        return write(folder, labels([person(1, 1), person(2, 2)]), detections=str(file), **changes)

    def detection(self, image_id, score, box=(1.0, 2.0, 30.0, 40.0), category_id=1):
        return {"image_id": image_id, "category_id": category_id, "bbox": list(box), "score": score}

    def test_boxes_scores_and_rows_come_from_the_file(self, tmp_path):
        found = [self.detection(2, 0.9), self.detection(1, 0.3, (-4, 5, 600, 7)), self.detection(2, 0.8, category_id=3)]
        records = CocoKeypoints(self.write_both(tmp_path, found)).records
        assert records.sample_ids.tolist() == [1, 0]  # grouped by image, in the images' order
        assert records.boxes[0].tolist() == [-4, 5, 600, 7]  # taken as it is, not clipped
        np.testing.assert_allclose(records.box_scores, [0.3, 0.9])
        assert not records.keypoints.any()

    def test_a_threshold(self, tmp_path):
        found = [self.detection(2, 0.9), self.detection(1, 0.3)]
        records = CocoKeypoints(self.write_both(tmp_path, found, detection_threshold=0.5)).records
        assert records.sample_ids.tolist() == [0]

    def test_those_left_out_by_a_score_of_zero_or_a_box_without_area_are_told(self, tmp_path):
        one = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40], "score": 0.9}
        given = [one, {**one, "score": 0}, {**one, "score": 0.05}, {**one, "bbox": [1, 2, 0, 0]}, {**one, "score": 0.0}]
        with pytest.warns(UserWarning, match="left out") as said:
            source = CocoKeypoints(self.write_both(tmp_path, given, detection_threshold=0.1))
        assert len(source.records) == 1
        score, box = sorted(str(warning.message).partition("detections.json: ")[2] for warning in said)
        assert score.startswith(
            "detection 1 (image 1): the score is 0, below detection_threshold 0.1: left out (2 such"
        )
        assert box.startswith("detection 3 (image 1): the box has no area: left out (1 such")
        with pytest.warns(UserWarning, match="no area"):  # a threshold of 0 takes them
            assert len(CocoKeypoints(self.write_both(tmp_path, given)).records) == 4

    def test_detections_on_images_that_are_not_listed_are_counted(self, tmp_path):
        found = [self.detection(1, 0.9), self.detection(77, 0.9), self.detection(78, 0.9)]
        with pytest.warns(UserWarning, match="2 detections are on images"):
            assert len(CocoKeypoints(self.write_both(tmp_path, found)).records) == 1

    def test_a_split_without_labels_needs_only_detections(self, tmp_path):
        """image_info_test-dev2017.json: no annotations, and `person` without its keypoints."""
        settings = self.write_both(tmp_path, [self.detection(1, 0.9)])
        content = labels([])
        del content["annotations"], content["categories"][0]["keypoints"]
        Path(settings.annotations).write_text(json.dumps(content))
        source = CocoKeypoints(settings)
        assert source.records.skeleton is COCO
        assert source.coco_ground_truth()["annotations"] == []

    @pytest.mark.parametrize(
        ("found", "message"),
        [
            ({"annotations": []}, "a detection file is a list"),
            ([{"image_id": 1}], "detection 0 must have image_id, category_id, bbox and score"),
            ([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3], "score": 1}], "detection 0: bbox must be 4"),
            ([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": None}], "score must be 1 finite"),
            ([], "no detection of the category scores 0.0 or more"),
        ],
    )
    def test_broken_files_are_refused(self, tmp_path, found, message):
        with pytest.raises(ValueError, match=message):
            CocoKeypoints(self.write_both(tmp_path, found))


class TestRefusals:
    def test_no_annotation_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nowhere.json does not exist \(setting `annotations`\)"):
            CocoKeypoints(CocoSettings(str(tmp_path), str(tmp_path / "nowhere.json")))

    def test_not_json(self, tmp_path):
        with pytest.raises(ValueError, match=r"labels.json is not JSON"):
            CocoKeypoints(write(tmp_path, "<html>404</html>"))

    def test_not_coco(self, tmp_path):
        with pytest.raises(ValueError, match="is not a COCO annotation file: it has no list 'images'"):
            CocoKeypoints(write(tmp_path, "[1, 2]"))

    def test_no_image_folder(self, tmp_path):
        settings = write(tmp_path, labels([person(1, 1)]), images=str(tmp_path / "elsewhere"))
        with pytest.raises(FileNotFoundError, match=r"image folder .*elsewhere does not exist"):
            CocoKeypoints(settings)

    def test_an_annotation_that_names_an_unknown_image(self, tmp_path):
        with pytest.raises(ValueError, match=r"annotation 12 \(image 99\) names image 99, which is not among"):
            CocoKeypoints(write(tmp_path, labels([person(1, 1), person(12, 99)])))

    def test_a_missing_image_file(self, tmp_path):
        settings = write(tmp_path, labels([person(1, 1), person(2, 3)]))
        (Path(settings.images) / "3.png").unlink()
        with pytest.raises(FileNotFoundError, match=r"1 of 2 images .* the first is '3.png' in"):
            CocoKeypoints(settings)

    def test_missing_image_files_can_be_skipped(self, tmp_path):
        settings = write(tmp_path, labels([person(1, 1), person(2, 3)]), on_missing_image="skip")
        (Path(settings.images) / "3.png").unlink()
        with pytest.warns(UserWarning, match="going on without them"):
            source = CocoKeypoints(settings)
        assert source.records.image_ids.tolist() == [1]
        assert [a["id"] for a in source.coco_ground_truth()["annotations"]] == [1]

    def test_images_in_subfolders_are_found(self, tmp_path):
        settings = write(tmp_path, labels([person(1, 1)]))
        folder = Path(settings.images)
        (folder / "a" / "b").mkdir(parents=True)
        (folder / "1.png").rename(folder / "a" / "b" / "1.png")
        content = labels([person(1, 1)])
        content["images"][0]["file_name"] = "a/b/1.png"
        Path(settings.annotations).write_text(json.dumps(content))
        assert CocoKeypoints(settings).load_image(0).shape == (60, 80, 3)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"keypoints": [1, 2, 2] * 16}, "annotation 5 .* has 48 keypoint values; 17 keypoints need 51"),
            ({"keypoints": None}, "annotation 5 .* has no keypoint values"),
            ({"keypoints": [1, 2, 3] * 17}, "annotation 5 .*: visibility must be 0 .* got 3"),
            ({"keypoints": [1, float("nan"), 2] * 17}, "annotation 5 .*: keypoint 'nose' is labelled but"),
            ({"keypoints": [1, "2", 2] * 16 + [[], 1, 2]}, "annotation 5 .*: keypoints must be numbers"),
            ({"bbox": [1, 2, 3]}, r"annotation 5 .*: bbox must be 4 numbers, got \[1, 2, 3\]"),
            ({"bbox": [1, 2, 3, float("nan")]}, r"annotation 5 .*: bbox must be 4 finite numbers, got .*nan"),
            ({"bbox": None}, "annotation 5 .*: bbox must be 4 numbers, got None"),
        ],
    )
    def test_a_broken_annotation_is_named(self, tmp_path, changes, message):
        with pytest.raises(ValueError, match=message):
            CocoKeypoints(write(tmp_path, labels([person(5, 1, **changes)])))

    def test_an_empty_dataset(self, tmp_path):
        with pytest.raises(ValueError, match="no person to learn from among 1 annotations"):
            CocoKeypoints(write(tmp_path, labels([person(1, 1, iscrowd=1)])))

    def test_a_bare_list_of_images_needs_no_categories(self, tmp_path):
        content = {"images": labels([])["images"]}
        every = CocoKeypoints(write(tmp_path, content, keep_images="all")).records
        assert (every.num_images, len(every), every.skeleton) == (3, 0, COCO)
        mine = CocoKeypoints(write(tmp_path, content, keep_images="all", keypoints=["head", "tail"], sigmas=[0.1, 0.1]))
        assert mine.records.skeleton.keypoints == ("head", "tail")
        assert mine.coco_ground_truth()["categories"][0]["keypoints"] == ["head", "tail"]

    def test_pairs_may_be_given_by_index(self, tmp_path):
        values = {"name": "coco", "images": "i", "annotations": "a", "flip_pairs": [[0, 5]]}
        recipe = {"student": {"name": "elpn_v1"}, "method": {"name": "supervised"}, "train_data": values}
        assert recipe_from_dict({**recipe, "train": {"validate_every": 0}}).train_data.flip_pairs == [(0, 5)]

    def test_a_file_without_labels_or_detections(self, tmp_path):
        content = labels([])
        del content["annotations"]
        with pytest.raises(ValueError, match=r"has no 'annotations'.*give `detections`"):
            CocoKeypoints(write(tmp_path, content))

    def test_instance_annotations_instead_of_keypoints(self, tmp_path):
        content = labels([])
        del content["categories"][0]["keypoints"]
        with pytest.raises(ValueError, match=r"none of its categories \['person'\] has 'keypoints'"):
            CocoKeypoints(write(tmp_path, content))

    def test_several_categories_with_keypoints(self, tmp_path):
        content = labels([person(1, 1)])
        content["categories"].append({"id": 2, "name": "dog", "keypoints": ["nose"]})
        with pytest.raises(
            ValueError, match=r"\['person', 'dog'\]; choose one \(setting `category`, option --category\)"
        ):
            CocoKeypoints(write(tmp_path, content))
        assert len(CocoKeypoints(write(tmp_path, content, category="person")).records) == 1
        with pytest.raises(ValueError, match="no category 'cat'; it has"):
            CocoKeypoints(write(tmp_path, content, category="cat"))

    def test_image_entries_that_contradict_each_other(self, tmp_path):
        content = labels([person(1, 1)], image_ids=(1, 1))
        content["images"][1]["width"] = 81
        with pytest.raises(ValueError, match="image id 1 is listed twice, with width 80 and 81"):
            CocoKeypoints(write(tmp_path, content))

    def test_an_image_entry_without_a_size(self, tmp_path):
        content = labels([person(1, 1)])
        del content["images"][0]["height"], content["images"][0]["width"]
        with pytest.raises(ValueError, match="image 1 has no height, width"):
            CocoKeypoints(write(tmp_path, content))


@pytest.mark.data
class TestRealFiles:
    @pytest.mark.parametrize(
        ("split", "annotations", "crowds", "persons"), [("train2017", 172, 5, 86), ("val2017", 118, 1, 68)]
    )
    def test_coco_mini(self, real_data, split, annotations, crowds, persons):
        """Counts from the sample's own description; a person with keypoints is never a crowd."""
        folder = real_data / "coco" / "coco-mini"
        file = folder / "annotations" / f"person_keypoints_{split}.json"
        source = CocoKeypoints(CocoSettings(str(folder / split), str(file)))
        truth = source.coco_ground_truth()["annotations"]
        assert len(truth) == annotations
        assert sum(a["iscrowd"] for a in truth) == crowds
        assert len(source.records) == persons
        for row in range(source.records.num_images):  # decoded size is checked against the stated one
            assert source.load_image(row).dtype == np.uint8

    def test_repeated_image_entries_of_the_subset(self, real_data):
        folder = real_data / "coco" / "val2017-subset538"
        file = folder / "annotations" / "person_keypoints_val2017.json"
        raw = json.loads(file.read_text())["images"]
        images = next(path for path in folder.iterdir() if path.is_dir() and path.name != "annotations")
        with pytest.warns(UserWarning, match="going on without them"):
            source = CocoKeypoints(CocoSettings(str(images), str(file), on_missing_image="skip"))
        assert len(raw) > len({entry["id"] for entry in raw}) == 538
        assert source.records.num_images <= 34

    def test_detector_boxes_in_the_hrnet_format(self, real_data):
        folder = real_data / "coco" / "mmpose-sample"
        settings = CocoSettings(
            str(folder), str(folder / "test_coco.json"), detections=str(folder / "test_coco_det_AP_H_56.json")
        )
        records = CocoKeypoints(settings).records
        found = json.loads((folder / "test_coco_det_AP_H_56.json").read_text())
        assert len(found) == 118
        assert len(records) == sum(d["category_id"] == 1 for d in found)
        assert records.num_images == 4
