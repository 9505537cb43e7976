"""The ten COCO numbers: against pycocotools' own output, and on cases that can be worked out by hand."""

# ruff: noqa: SIM300 - `result.AP == ...` is no Yoda condition

from __future__ import annotations

import copy
import json
import math
import re
import threading

import numpy as np
import pytest

from posekd.metrics import NUMBERS, CocoResult, NoLabelsError, evaluate_coco
from posekd.skeleton import COCO

SIGMA = 0.05  # (2 sigma)^2 = 0.01
NAMES = ["a", "b", "c", "d", "e"]
SIGMAS = [SIGMA] * 5
AREA = 10_000.0  # large; 50^2 is medium, 20^2 small


def person(ann_id, image_id=1, x=100.0, *, area=AREA, visible=(2, 2, 2, 2, 2), iscrowd=0):
    """Five keypoints on a line; K = 5 on purpose."""
    keypoints = [v for k, seen in enumerate(visible) for v in (x + 10 * k, 50.0, seen)]
    return {
        "id": ann_id,
        "image_id": image_id,
        "category_id": 1,
        "bbox": [x, 40.0, 40.0, 20.0],
        "area": area,
        "iscrowd": iscrowd,
        "num_keypoints": sum(v > 0 for v in visible),
        "keypoints": keypoints,
    }


def truth(*people, images=(1,)):
    return {
        "images": [{"id": i, "width": 640, "height": 480, "file_name": f"{i}.jpg"} for i in images],
        "categories": [{"id": 1, "name": "thing", "keypoints": NAMES, "skeleton": []}],
        "annotations": list(people),
    }


def guess(who, *, off=0.0, score=0.9):
    """A prediction `off` pixels to the right of a labelled person."""
    keypoints = [v + off if i % 3 == 0 else v for i, v in enumerate(who["keypoints"])]
    return {"image_id": who["image_id"], "category_id": 1, "keypoints": keypoints, "score": score}


def offset_for(oks, area=AREA):
    return math.sqrt(-2 * math.log(oks) * area * (2 * SIGMA) ** 2)


@pytest.mark.data
def test_the_ten_numbers_of_the_published_example(real_data):
    """Ground truth and 73 detections of xtcocoapi's example; the numbers stand in the data's README."""
    folder = real_data / "coco" / "eval-xtcocoapi"
    result = evaluate_coco(folder / "example_coco_val.json", folder / "example_coco_preds.json")
    expected = (0.86089, 0.99315, 0.91089, 0.77558, 0.93725, 0.875, 1.0, 0.91667, 0.78, 0.94286)
    assert tuple(result.numbers().values()) == pytest.approx(expected, abs=5e-6)
    assert tuple(result.numbers()) == NUMBERS
    assert result.predictions == 73
    assert len(result.people) == 12
    assert [row.name for row in result.keypoints] == list(COCO.keypoints)


@pytest.mark.data
def test_agrees_with_pycocotools_itself_on_noisy_labels(real_data):
    """Labels of 538 real images, moved at random: the numbers of plain COCOeval, to the last digit."""
    from pycocotools.coco import COCO as Index  # noqa: N811
    from pycocotools.cocoeval import COCOeval

    folder = real_data / "coco" / "val2017-subset538" / "annotations"
    labels = json.loads((folder / "person_keypoints_val2017.json").read_text())
    rng = np.random.default_rng(0)
    results = []
    for a in labels["annotations"]:
        if a["num_keypoints"] and rng.random() < 0.9:
            k = np.array(a["keypoints"], float).reshape(-1, 3)
            k[:, :2] += rng.normal(0, 0.06 * math.sqrt(a["area"]), (17, 2))
            score = round(float(rng.random()), 1)  # ties on purpose
            entry = {"image_id": a["image_id"], "category_id": 1}
            results.append({**entry, "keypoints": k.reshape(-1).tolist(), "score": score})
    ours = evaluate_coco(labels, results)
    index = Index()
    index.dataset = copy.deepcopy(labels)
    index.createIndex()
    official = COCOeval(index, index.loadRes(copy.deepcopy(results)), "keypoints")
    official.evaluate()
    official.accumulate()
    official.summarize()
    assert list(ours.numbers().values()) == official.stats.tolist()
    assert 0.2 < ours.AP < 0.9


def test_perfect_predictions_of_five_keypoints_score_one():
    people = [person(1), person(2, x=400)]
    result = evaluate_coco(truth(*people), [guess(p) for p in people], SIGMAS)
    assert (result.AP, result.APL, result.AR, result.ARL) == pytest.approx((1, 1, 1, 1))
    assert (result.APM, result.ARM) == (-1, -1)  # nobody is of medium size: the official -1
    assert all(p.found and p.oks == pytest.approx(1) for p in result.people)


def test_an_oks_of_072_passes_five_of_the_ten_thresholds():
    who = person(1)
    result = evaluate_coco(truth(who), [guess(who, off=offset_for(0.72))], SIGMAS)
    assert result.people[0].oks == pytest.approx(0.72)
    assert result.AP == pytest.approx(0.5)  # 0.50, 0.55, 0.60, 0.65, 0.70
    assert (result.AP50, result.AP75) == pytest.approx((1, 0))
    assert result.AR == pytest.approx(0.5)


def test_sigmas_decide():
    who = person(1)
    shifted = [guess(who, off=offset_for(0.72))]
    assert evaluate_coco(truth(who), shifted, [2 * SIGMA] * 5).AP == pytest.approx(0.9)  # 0.72^(1/4) = 0.921
    assert evaluate_coco(truth(who), shifted, [SIGMA / 2] * 5).AP == 0  # 0.72^4 = 0.27


def test_only_labelled_joints_count():
    who = person(1, visible=(2, 0, 1, 0, 0))
    bad = guess(who)
    bad["keypoints"][3] += 500  # keypoint b is not labelled
    result = evaluate_coco(truth(who), [bad], SIGMAS)
    assert result.AP == pytest.approx(1)
    assert result.people[0].labelled == 2


def test_a_duplicate_is_a_false_positive_when_it_ranks_before_a_hit():
    a, b = person(1), person(2, x=400)
    both = [guess(a, score=0.9), guess(b, score=0.5)]
    assert evaluate_coco(truth(a, b), both, SIGMAS).AP == pytest.approx(1)
    # ranked between them: precision 1 up to recall 1/2 (51 of the 101 recall points), 2/3 beyond
    result = evaluate_coco(truth(a, b), [*both, guess(a, score=0.7)], SIGMAS)
    assert result.AP == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert result.AR == pytest.approx(1)


def test_ties_keep_the_given_order():
    """Equal scores: the official sort is stable, so the earlier entry is matched first."""
    who = person(1)
    good, poor = guess(who, score=0.5), guess(who, off=offset_for(0.52), score=0.5)
    assert evaluate_coco(truth(who), [good, poor], SIGMAS).AP == pytest.approx(1)
    # the poor one takes the person at 0.50; above that it is a false positive before the hit
    assert evaluate_coco(truth(who), [poor, good], SIGMAS).AP == pytest.approx((1 + 9 * 0.5) / 10)


def test_sizes_are_medium_large_and_neither():
    people = [person(1, area=20.0**2), person(2, x=200, area=50.0**2), person(3, x=400)]
    result = evaluate_coco(truth(*people), [guess(people[1])], SIGMAS)
    assert result.ARM == pytest.approx(1)
    assert result.ARL == 0
    assert result.AR == pytest.approx(1 / 3)


def test_crowds_and_unlabelled_people_are_not_scored():
    crowd, blank = person(2, x=300, iscrowd=1), person(3, x=500, visible=(0,) * 5)
    who = person(1)
    result = evaluate_coco(truth(who, crowd, blank), [guess(who), guess(crowd, score=0.95)], SIGMAS)
    assert [p.annotation_id for p in result.people] == [1]
    assert result.AP == pytest.approx(1)  # the hit on the crowd is neither right nor wrong


def test_annotation_id_zero_can_be_found():
    """pycocotools alone takes a match with the annotation of id 0 for no match."""
    who = person(0)
    result = evaluate_coco(truth(who), [guess(who)], SIGMAS)
    assert result.AP == pytest.approx(1)
    assert result.people[0].annotation_id == 0


def test_no_predictions_score_zero_with_a_note():
    result = evaluate_coco(truth(person(1)), [], SIGMAS)
    assert (result.AP, result.AR, result.APL) == (0, 0, 0)
    assert result.note == "no predictions for 1 labelled people: AP and AR are 0"
    assert result.people[0].oks == 0
    assert not result.people[0].found
    assert result.keypoints[0].recall == 0


@pytest.mark.parametrize(("count", "told"), [(20, False), (21, True)])
def test_more_predictions_than_the_official_rule_counts_are_told(count, told):
    """The only hit has the lowest score: at 21 predictions it is not counted."""
    who = person(1, image_id=7)
    guesses = [guess(who, off=1000.0) for _ in range(count - 1)] + [guess(who, score=0.1)]
    result = evaluate_coco(truth(who, images=(7,)), guesses, SIGMAS)
    assert result.AR == pytest.approx(0 if told else 1)
    expected = "1 images have more than 20 predictions, of which the official rule counts those with the highest scores"
    assert result.note == (f"{expected} (--max-dets counts more): ids 7" if told else "")


def test_another_number_of_predictions_can_be_counted():
    """A hit of the lowest score after 20 misses: precision 1/21 at full recall. Only the best one: no hit."""
    who = person(1, image_id=7)
    guesses = [guess(who, score=0.1), *[guess(who, off=1000.0) for _ in range(20)]]
    result = evaluate_coco(truth(who, images=(7,)), guesses, SIGMAS, max_detections=21)
    assert (result.AP, result.AR) == (pytest.approx(1 / 21), pytest.approx(1))
    assert result.APM == -1
    assert result.people[0].found
    assert result.note == (
        "up to 21 predictions of each image are counted, where the official rule counts 20: not to be compared with "
        "published numbers"
    )
    result = evaluate_coco(truth(who, images=(7,)), guesses, SIGMAS, max_detections=1)
    assert (result.AP, result.AR) == (0, 0)
    assert "1 images have more than 1 predictions, of which are counted those with the highest scores" in result.note
    with pytest.raises(ValueError, match="max_detections must be 1 or more, got 0"):
        evaluate_coco(truth(who, images=(7,)), guesses, SIGMAS, max_detections=0)


def test_any_limit_above_the_most_predictions_gives_pycocotools_numbers():
    people = [person(i, image_id=i % 3 + 1, x=60.0 * i) for i in range(1, 9)]
    guesses = [guess(p, off=3.0 * i, score=0.1 + 0.1 * i) for i, p in enumerate(people)]
    labels = truth(*people, images=(1, 2, 3))
    official = evaluate_coco(labels, guesses, SIGMAS)
    assert 0 < official.AP < 1
    for limit in (3, 50):
        assert evaluate_coco(labels, guesses, SIGMAS, max_detections=limit).numbers() == official.numbers()
    assert evaluate_coco(labels, guesses, SIGMAS, max_detections=2).AR < official.AR


@pytest.mark.parametrize(("share", "told"), [(0.98, True), (1.02, False)])
def test_people_so_small_that_half_a_pixel_misses_are_told(share, told):
    """The area at which an error of half a pixel is worth an OKS of 0.5."""
    area = share * 0.5**2 / (2 * math.log(2) * (2 * SIGMA) ** 2)
    small, large = person(4, area=area), person(5, x=300)
    result = evaluate_coco(truth(small, large), [guess(small, off=0.5), guess(large)], SIGMAS)
    assert [p.found for p in result.people] == [not told, True]
    expected = (
        f"areas so small that being half a pixel off misses OKS 0.5 .*first annotation 4 .image 1., area {area:g}"
    )
    assert bool(re.fullmatch(f"1 labelled people have {expected}", result.note)) == told


def test_predictions_of_score_zero_are_told():
    people = [person(1), person(2, x=300), person(3, image_id=2)]
    guesses = [guess(people[0]), guess(people[1], score=0.0), guess(people[2], score=0)]
    result = evaluate_coco(truth(*people, images=(1, 2)), guesses, SIGMAS)
    assert result.AP == pytest.approx(1)
    assert result.note == (
        "2 of 3 predictions have the score 0, so they rank last and their order decides among them: first in image 1"
    )


def test_people_without_labelled_joints_only():
    result = evaluate_coco(truth(person(1, visible=(0,) * 5)), [], SIGMAS)
    assert set(result.numbers().values()) == {-1}
    assert "no labelled person" in result.note


@pytest.mark.parametrize("annotations", [None, []])
def test_a_split_without_labels_is_said_to_have_none(annotations):
    labels = truth(person(1))
    labels["annotations"] = annotations
    with pytest.raises(NoLabelsError, match="has no labels: results are written, not scored"):
        evaluate_coco(labels, [], SIGMAS)


def test_sigmas_of_the_skeleton_by_default():
    with pytest.warns(UserWarning, match="5 keypoints and no OKS sigmas were given"):
        result = evaluate_coco(truth(person(1)), [])
    assert result.AP == 0
    keypoints = [1.0, 1.0, 2.0] * 17
    named = {"id": 1, "name": "person", "keypoints": list(COCO.keypoints)}
    labels = {**truth({**person(1), "keypoints": keypoints}), "categories": [named]}
    off = [k + 0.5 if i % 3 == 0 else k for i, k in enumerate(keypoints)]
    result = evaluate_coco(labels, [{"image_id": 1, "category_id": 1, "keypoints": off, "score": 1.0}])
    expected = np.mean([math.exp(-0.25 / (2 * AREA * (2 * s) ** 2)) for s in COCO.sigmas])
    assert result.people[0].oks == pytest.approx(expected)


def broken(**changes):
    return {**guess(person(1)), **changes}


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([broken(image_id=7)], "results are for 1 images that the ground truth does not list: ids 7"),
        ([broken(category_id=3)], r"have category ids \[3\], but the ground truth has \[1\]"),
        (
            [broken(keypoints=[0.0] * 51)],
            r"entry 0 \(image 1\) has 51 keypoint values; 5 keypoints need 3 each",
        ),
        ([broken(), broken(keypoints=[math.nan] * 15)], r"entry 1 \(image 1\) holds .* NaN or infinite"),
        ([broken(score=math.inf)], "NaN or infinite"),
        ([{"image_id": 1, "category_id": 1}], "entry 0 has no 'keypoints', 'score'"),
        ({"annotations": []}, "must be a list of detections .* not dict"),
    ],
)
def test_results_that_cannot_be_scored_are_refused(results, message):
    with pytest.raises(ValueError, match=message):
        evaluate_coco(truth(person(1)), results, SIGMAS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keypoints": [1.0] * 12}, "annotation 1 .* has 12 keypoint values; 5 keypoints need 15"),
        ({"keypoints": [math.nan] * 15}, "annotation 1 .* NaN .* label a missing keypoint as 0, 0, 0"),
        ({"area": "1200"}, "annotation 1 .*: area must be 1 finite numbers, got .*1200"),
        ({"image_id": 9}, "annotations are of 1 images that the ground truth does not list: ids 9"),
    ],
)
def test_labels_that_cannot_be_scored_are_refused(change, message):
    who = {**person(1), **change}
    with pytest.raises(ValueError, match=message):
        evaluate_coco(truth(who), [], SIGMAS)


def test_other_mistakes_are_named():
    with pytest.raises(ValueError, match="17 sigmas were given, but the ground truth has 5 keypoints"):
        evaluate_coco(truth(person(1)), [], COCO.sigmas)
    with pytest.raises(ValueError, match="sigmas must be positive"):
        evaluate_coco(truth(person(1)), [], [0.0] * 5)
    with pytest.raises(ValueError, match="1 annotation ids occur more than once, first 4"):
        evaluate_coco(truth(person(4), person(4)), [], SIGMAS)
    boxes = [{k: v for k, v in person(1).items() if k != "keypoints"}]
    with pytest.raises(ValueError, match=r"give person_keypoints_\*.json rather than instances"):
        evaluate_coco(truth(*boxes), [], SIGMAS)
    with pytest.raises(ValueError, match="not a COCO annotation file: it has no 'images'"):
        evaluate_coco({"annotations": []}, [], SIGMAS)
    labels = truth(person(1))
    labels["categories"].append({"id": 2, "name": "other", "keypoints": ["x"]})
    with pytest.raises(ValueError, match="different numbers of keypoints"):
        evaluate_coco(labels, [], SIGMAS)


def test_files_are_read_and_their_mistakes_named(tmp_path):
    gt, dt = tmp_path / "gt.json", tmp_path / "dt.json"
    who = person(1)
    gt.write_text(json.dumps(truth(who)))
    dt.write_text(json.dumps([guess(who)]))
    assert evaluate_coco(gt, str(dt), SIGMAS).AP == pytest.approx(1)
    with pytest.raises(FileNotFoundError, match=r"no file .*absent\.json"):
        evaluate_coco(gt, tmp_path / "absent.json", SIGMAS)
    dt.write_text("[{")
    with pytest.raises(ValueError, match=r"dt\.json is not a JSON file"):
        evaluate_coco(gt, dt, SIGMAS)


def test_arguments_stay_as_they_are_and_nothing_is_printed(capsys):
    who = person(1)
    labels, results = truth(who), [guess(who)]
    before = copy.deepcopy((labels, results))
    evaluate_coco(labels, results, SIGMAS)
    assert (labels, results) == before
    assert capsys.readouterr().out == ""


def test_threads_do_not_disturb_each_other(capsys):
    """What others print while pycocotools works comes through."""
    who = person(1)
    answers: list[CocoResult] = []
    stop = threading.Event()

    def chatter():
        while not stop.is_set():
            print("still here")

    def work():
        answers.extend(evaluate_coco(truth(who), [guess(who)], SIGMAS) for _ in range(5))

    other = threading.Thread(target=chatter)
    workers = [threading.Thread(target=work) for _ in range(3)]
    other.start()
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    stop.set()
    other.join()
    assert [a.AP for a in answers] == pytest.approx([1.0] * 15)
    assert set(capsys.readouterr().out.splitlines()) == {"still here"}
