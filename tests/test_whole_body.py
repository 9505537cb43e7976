"""COCO-WholeBody: five lists of a file become one set of 133 keypoints, learnt from and scored as its own rule does."""

from __future__ import annotations

import copy
import json
import warnings

import numpy as np
import pytest
from helpers.coco_folder import labels, person, write

from posekd.cli import main
from posekd.data import CocoKeypoints, CropAugmentation, LoaderSettings, crop_loader
from posekd.engine.evaluate import score, score_file
from posekd.engine.recipes.datasets import DATASETS
from posekd.engine.scoring.coco import COCO_KEYPOINTS
from posekd.metrics import evaluate_coco
from posekd.skeleton import COCO, COCO_WHOLEBODY, skeleton_from_category
from posekd.structures import Instances
from posekd.whole_body import LISTS, PARTS

COUNTS = {"keypoints": 17, "foot_kpts": 6, "face_kpts": 68, "lefthand_kpts": 21, "righthand_kpts": 21}
SIGMAS = np.array(COCO_WHOLEBODY.sigmas)


def whole(annotation_id: int, image_id: int, **changes) -> dict:
    """A person with all 133 keypoints: keypoint k at (10 + k / 5, 5 + k / 4)."""
    points = [[10 + k / 5, 5 + k / 4, 2] for k in range(133)]
    lists = {key: [value for point in points[part] for value in point] for key, part in LISTS.items()}
    return {**person(annotation_id, image_id), **lists, "foot_valid": True, "face_box": [0, 0, 9, 9], **changes}


def result(who: dict, off: np.ndarray | float = 0.0, score: float = 0.9) -> dict:
    """A prediction in the official form, each keypoint `off` pixels to the right."""
    shifts = np.broadcast_to(off, 133)
    lists = {}
    for key, part in LISTS.items():
        points = np.array(who[key], float).reshape(-1, 3)
        points[:, 0] += shifts[part]
        lists[key] = points.reshape(-1).tolist()
    return {"image_id": who["image_id"], "category_id": 1, "score": score, **lists}


class TestSkeleton:
    def test_the_lists_are_those_of_the_data_set(self):
        assert {key: part.stop - part.start for key, part in LISTS.items()} == COUNTS
        assert sum(COUNTS.values()) == len(COCO_WHOLEBODY.keypoints) == len(set(COCO_WHOLEBODY.keypoints)) == 133
        assert COCO_WHOLEBODY.keypoints[:17] == COCO.keypoints

    def test_the_sigmas_are_the_published_ones(self):
        """jin-s13/COCO-WholeBody, evaluation/myeval_wholebody.py: the lists' sums and some of their values."""
        assert COCO_WHOLEBODY.sigmas[:17] == COCO.sigmas
        sums = [float(SIGMAS[part].sum()) for part in LISTS.values()]
        assert sums == pytest.approx([1.138, 0.48, 1.137, 0.553, 0.553])
        assert COCO_WHOLEBODY.sigmas[17:25] == (0.068, 0.066, 0.066, 0.092, 0.094, 0.094, 0.042, 0.043)
        assert COCO_WHOLEBODY.sigmas[39:42] == (0.045, 0.013, 0.012)
        assert (SIGMAS.min(), SIGMAS[91], SIGMAS[132]) == (0.007, 0.029, 0.031)
        assert COCO_WHOLEBODY.sigmas[91:112] == COCO_WHOLEBODY.sigmas[112:]

    @pytest.mark.parametrize(
        ("left", "right"),
        [("left_big_toe", "right_big_toe"), ("left_heel", "right_heel"), ("face-0", "face-16"), ("face-17", "face-26"),
         ("face-27", "face-27"), ("face-31", "face-35"), ("face-36", "face-45"), ("face-40", "face-47"),
         ("face-48", "face-54"), ("face-55", "face-59"), ("face-60", "face-64"), ("face-65", "face-67"),
         ("face-8", "face-8"), ("face-41", "face-46"),
         ("left_hand_root", "right_hand_root"), ("left_pinky_finger4", "right_pinky_finger4")],
    )  # fmt: skip
    def test_a_mirror_exchanges_mmposes_pairs(self, left, right):
        names = COCO_WHOLEBODY.keypoints
        assert names[COCO_WHOLEBODY.flip[names.index(left)]] == right

    def test_one_list_of_133_in_another_order_is_recognised(self):
        order = np.random.default_rng(0).permutation(133)
        names = [COCO_WHOLEBODY.keypoints[i] for i in order]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = skeleton_from_category({"name": "person", "keypoints": names})
        assert found.sigmas == tuple(COCO_WHOLEBODY.sigmas[i] for i in order)
        for i, name in enumerate(names):
            assert names[found.flip[i]] == COCO_WHOLEBODY.keypoints[COCO_WHOLEBODY.flip[order[i]]], name
        assert {names[i] for i in found.upper_body} == {COCO_WHOLEBODY.keypoints[i] for i in COCO_WHOLEBODY.upper_body}
        assert "left_thumb1" in {names[i] for i in found.upper_body}


class TestReading:
    def test_keypoints_alone_are_the_default_and_the_setting_is_named(self, tmp_path):
        with pytest.warns(
            UserWarning, match=r"only `keypoints` is; set whole_body: true to use all 133 keypoints \(2 such"
        ):
            source = CocoKeypoints(write(tmp_path, labels([whole(1, 1), whole(2, 2)])))
        assert source.records.skeleton == COCO

    def test_all_lists_are_joined_in_the_official_order(self, tmp_path):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            source = CocoKeypoints(write(tmp_path, labels([whole(1, 1)]), whole_body=True))
        assert source.records.skeleton == COCO_WHOLEBODY
        expected = [[10 + k / 5, 5 + k / 4, 2] for k in range(133)]
        np.testing.assert_allclose(source.records.keypoints[0], expected, rtol=1e-6)
        batch = next(
            iter(crop_loader(source, (64, 48), LoaderSettings(1, 0), training=True, augmentation=CropAugmentation()))
        )
        assert batch.keypoints.shape == (1, 133, 3)

    def test_who_is_labelled_is_decided_by_all_133(self, tmp_path):
        """A face alone (num_keypoints counts the body), a list that is not there, a confidence, nobody at all."""
        nothing = {key: [0] * 3 * count for key, count in COUNTS.items()}
        face = whole(1, 1, **{**nothing, "face_kpts": whole(1, 1)["face_kpts"]}, num_keypoints=0)
        handless = whole(2, 2)
        del handless["lefthand_kpts"]
        handless["foot_kpts"][2::3] = [0.4, 0, 0, 0, 0, 0]
        with pytest.warns(UserWarning, match="visibility 0.4: taken for a confidence"):
            source = CocoKeypoints(
                write(tmp_path, labels([face, handless, whole(3, 3, **nothing, num_keypoints=0)]), whole_body=True)
            )
        assert source.records.sample_ids.tolist() == [1, 2]
        assert [(row[:, 2] > 0).sum() for row in source.records.keypoints] == [68, 17 + 1 + 68 + 21]
        assert [p.annotation_id for p in evaluate_coco(source.coco_ground_truth(), []).people] == [1, 2]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                {"face_kpts": [1.0, 2.0, 2] * 67},
                r"annotation 1 \(image 1\) has 201 values in 'face_kpts'; whole_body needs 204",
            ),
            ({"foot_kpts": "none"}, r"annotation 1 \(image 1\) has no values in 'foot_kpts'"),
            ({"lefthand_kpts": [1.0, float("nan"), 2] * 21}, "'left_hand_root' is labelled but NaN"),
            ({"righthand_kpts": [1.0, 1.0, "x"] * 21}, "keypoints must be numbers"),
        ],
    )
    def test_lists_that_cannot_be_joined_are_refused(self, tmp_path, change, message):
        content = labels([whole(1, 1, **change)])
        with pytest.raises(ValueError, match=message):
            CocoKeypoints(write(tmp_path, content, whole_body=True))
        with pytest.raises(ValueError, match=message):
            evaluate_coco(content, [], whole_body=True)

    def test_other_files_are_refused(self, tmp_path):
        with pytest.raises(
            ValueError, match=r"labels\.json: no annotation has any of face_kpts, .* leave whole_body out"
        ):
            CocoKeypoints(write(tmp_path, labels([person(1, 1)]), whole_body=True))
        content = labels([whole(1, 1)])
        content["categories"][0]["keypoints"] = content["categories"][0]["keypoints"][::-1]
        with pytest.raises(
            ValueError, match="joins lists to COCO's 17 keypoints, and none of its categories has those"
        ):
            CocoKeypoints(write(tmp_path, content, whole_body=True))


class TestScoring:
    def test_a_known_oks_has_a_known_ap(self):
        """Each keypoint as far off, in its own unit, as is worth 0.72: five of the ten thresholds are reached."""
        people = [whole(1, 1), whole(2, 2)]
        off = 2 * SIGMAS * np.sqrt(-2 * np.log(0.72) * 1200)
        found = evaluate_coco(labels(people), [result(p, off) for p in people], whole_body=True)
        assert pytest.approx(0.5) == found.AP
        assert [p.oks for p in found.people] == pytest.approx([0.72, 0.72])
        assert [p.labelled for p in found.people] == [133, 133]

    def test_each_list_counts_by_its_keypoints(self):
        """OKS by the formula: the lists one by one are exact, all else far away."""
        who = whole(1, 1)
        for part in LISTS.values():
            off = np.full(133, 1e5)
            off[part] = 0
            (scored,) = evaluate_coco(labels([who]), [result(who, off)], whole_body=True).people
            assert scored.oks == pytest.approx((part.stop - part.start) / 133)

    def test_results_are_written_in_five_lists_and_score_the_same(self, tmp_path):
        settings = write(tmp_path, labels([whole(1, 1), whole(2, 2)]), whole_body=True)
        source = CocoKeypoints(settings)
        people = instances(source)
        people.keypoints[0, 40:, 0] += 50
        expected = score(source, people, people)[0]["coco_keypoints"]
        assert 0.2 < expected.numbers["AP"] < 0.9
        COCO_KEYPOINTS.write(source, people, tmp_path / "r.json")
        (first, _) = json.loads((tmp_path / "r.json").read_text())
        assert {key: len(first[key]) // 3 for key in COUNTS} == COUNTS
        again = score_file(DATASETS["coco"], settings, tmp_path / "r.json")[0]["coco_keypoints"]
        assert again.numbers == expected.numbers

    def test_the_command_takes_the_official_files(self, tmp_path, capsys):
        content = labels([whole(1, 1), whole(2, 2)])
        write(tmp_path, content)
        results = tmp_path / "r.json"
        results.write_text(json.dumps([result(content["annotations"][0]), result(content["annotations"][1], 1e4)]))
        words = ["eval", "--score-only", str(results), "--annotations", f"{tmp_path}/labels.json"]
        assert main([*words, "--whole-body", "--report", f"{tmp_path}/report.json"]) == 0
        report = json.loads((tmp_path / "report.json").read_text())
        assert (report["AP"], len(report["keypoints"])) == (pytest.approx(51 / 101), 133)
        short = json.loads(results.read_text())
        short[0]["foot_kpts"].pop()
        results.write_text(json.dumps(short))
        assert main([*words, "--whole-body"]) == 2
        assert "entry 0 has 17 values in 'foot_kpts'; whole_body needs 18" in capsys.readouterr().err

    @pytest.mark.data
    def test_xtcocotools_numbers(self, real_data):
        """MMPose's sample, two guesses for each person: the numbers of xtcocotools 1.14.3, `keypoints_wholebody`."""
        file = real_data / "coco" / "mmpose-sample" / "test_coco_wholebody.json"
        rng, guesses = np.random.default_rng(0), []
        for annotation in json.loads(file.read_text())["annotations"]:
            for _ in range(2):
                guess = {"image_id": annotation["image_id"], "category_id": 1, "score": float(rng.uniform(0.2, 1))}
                for key, part in LISTS.items():
                    points = np.array(annotation[key], float).reshape(-1, 3)
                    noise = rng.normal(size=points[:, :2].shape) * SIGMAS[part, None] * 2 * np.sqrt(annotation["area"])
                    points[:, :2] += noise * rng.choice([0.2, 0.5, 0.8])
                    points[:, 2] = 0.5
                    guess[key] = points.reshape(-1).round(3).tolist()
                guesses.append(guess)
        found = evaluate_coco(file, copy.deepcopy(guesses), whole_body=True)
        assert list(found.numbers().values()) == pytest.approx(
            [0.3989007412646027, 0.6691144114411438, 0.36795012834616797, 0.7227722772277227, 0.42104324718186115,
             0.7083333333333334, 1.0, 0.8333333333333334, 0.72, 0.7], abs=1e-12,
        )  # fmt: skip


def instances(source) -> Instances:
    """Whoever is in the dataset, found where the labels are."""
    import torch

    records = source.records
    points, ones = torch.from_numpy(records.keypoints.copy()), torch.ones(len(records))
    ids, images = torch.from_numpy(records.sample_ids), torch.from_numpy(records.image_ids[records.image_rows])
    return Instances(points, ones, torch.from_numpy(records.boxes), ones, ones, images, ids)


def test_parts_are_the_lists_beside_the_body():
    assert {"foot_kpts", "face_kpts", "lefthand_kpts", "righthand_kpts"} == PARTS
