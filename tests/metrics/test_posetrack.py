"""PoseTrack's metrics: the official evaluator's answers, and sequences whose misses and switches are counted by
hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from posekd.metrics import evaluate_posetrack, read_posetrack
from posekd.metrics.posetrack import JOINTS, Frame

K = len(JOINTS)
NAMES = {
    "AP": "AP",
    "pre": "precision",
    "rec": "recall",
    "mot_mota": "MOTA",
    "mot_motp": "MOTP",
    "mot_pre": "track_precision",
    "mot_rec": "track_recall",
}


@pytest.mark.data
@pytest.mark.parametrize("sequence", ["000101_mpii_test", "000102_mpii_test"])
def test_the_official_answers(real_data: Path, sequence):
    """Two sequences, ten and twelve frames of three people; the second exchanges two identities."""
    folder = real_data / "posetrack18" / "poseval"
    expected = json.loads((folder / "expected.json").read_text())
    assert expected["joints"][:12] == list(JOINTS[:12])
    labels, found = (read_posetrack(folder / kind / f"{sequence}.json") for kind in ("gt", "pred"))
    result = evaluate_posetrack([labels], [found], compat=True)
    for name, ours in NAMES.items():
        np.testing.assert_allclose(getattr(result, ours), expected[sequence][name], atol=1e-6, err_msg=name)


@pytest.mark.data
def test_labels_are_perfect_predictions(real_data: Path):
    """The files of PoseTrack18's validation split that are here, against themselves."""
    files = sorted((real_data / "posetrack18" / "annotations" / "val").glob("*.json"))
    labels = [read_posetrack(file) for file in files]
    result = evaluate_posetrack(labels, labels)
    assert result.sequences == 3
    known = ~np.isnan(result.MOTA)
    assert (result.MOTA[known] == 100).all()
    assert result.numbers()["mAP"] == pytest.approx(100)
    assert result.columns(result.AP)["Total"] == pytest.approx(100)


def frame(*people: tuple[float, int], score: float = 1.0, ignored=()) -> Frame:
    """People at some places, 100 pixels apart or more, with their tracks; heads of 10 pixels."""
    points = np.array([np.full((K, 2), place) for place, _ in people]).reshape(-1, K, 2)
    shape = (len(people), K)
    tracks = np.array([track for _, track in people], np.int64)
    return Frame(points, np.ones(shape, bool), np.full(shape, score), tracks, np.full(len(people), 10.0), ignored)


LABELS = [frame((100.0, 1), (300.0, 2))] * 4


def numbers(found: list[Frame], labels: list[Frame] = LABELS, **options) -> dict[str, float]:
    return evaluate_posetrack([labels], [found], **options).numbers()


def test_a_switch_costs_as_much_as_a_miss():
    """8 labelled keypoints of each kind. Both tracks are exchanged for good: 2 switches."""
    same, exchanged = frame((101.0, 7), (301.0, 8)), frame((101.0, 8), (301.0, 7))
    assert numbers([same] * 4)["MOTA"] == 100
    found = numbers([same, same, exchanged, exchanged])
    assert found["MOTA"] == pytest.approx(100 * (1 - 2 / 8))
    assert (found["precision"], found["recall"]) == (100, 100)
    assert found["MOTP"] == pytest.approx(100 * (1 - np.sqrt(2) / 10))
    assert found["mAP"] == pytest.approx(100)  # knows no tracks


def test_a_miss_and_a_false_positive():
    lost = [frame((100.0, 7), (300.0, 8)), frame((100.0, 7)), *[frame((100.0, 7), (300.0, 8))] * 2]
    assert numbers(lost)["MOTA"] == pytest.approx(100 * (1 - 1 / 8))  # the track goes on afterwards: no switch
    assert numbers(lost)["recall"] == pytest.approx(100 * 7 / 8)
    far = [frame((100.0, 7), (300.0, 8), (900.0, 9)), *[frame((100.0, 7), (300.0, 8))] * 3]
    assert numbers(far)["MOTA"] == pytest.approx(100 * (1 - 1 / 8))
    assert numbers(far)["precision"] == pytest.approx(100 * 8 / 9)


def test_a_track_stays_where_it_was_though_another_comes_nearer():
    """Within reach, 5 pixels, the last match has precedence over the nearest."""
    labels = [frame((100.0, 1))] * 2
    found = [frame((102.0, 7)), frame((103.0, 7), (100.0, 8))]
    assert numbers(found, labels)["MOTA"] == pytest.approx(100 * (1 - 1 / 2))  # a false positive, no switch


def test_scores_rank_keypoints():
    """One right keypoint and one wrong one of each kind: AP is 100 if the right one scores higher, else 50."""
    labels = [frame((100.0, 1))] * 2
    right, wrong = frame((100.0, 7), score=0.9), frame((500.0, 7), score=0.8)
    assert numbers([right, wrong], labels)["mAP"] == pytest.approx(50)  # the other person is not found
    both = frame((100.0, 7), (500.0, 8))
    both.scores[:] = np.array([[0.9], [0.8]])
    assert numbers([both], labels[:1])["mAP"] == pytest.approx(100)
    both.scores[:] = np.array([[0.7], [0.8]])
    assert numbers([both], labels[:1])["mAP"] == pytest.approx(50)


def test_ignored_regions():
    """People inside count neither way."""
    square = np.array([[250.0, 250.0], [350.0, 250.0], [350.0, 350.0], [250.0, 350.0]])
    labels = [frame((100.0, 1), (300.0, 2), ignored=(square,))]
    assert numbers([frame((100.0, 7))], labels)["MOTA"] == 100
    assert numbers([frame((100.0, 7), (310.0, 8))], labels)["MOTA"] == 100
    assert numbers([frame((100.0, 7), (400.0, 8))], labels)["MOTA"] == 0


def test_the_official_habits():
    """The last frame is left out; a frame without predictions is one miss and one false positive."""
    labels, full, empty = LABELS[:2], frame((100.0, 7), (300.0, 8)), frame()
    assert numbers([full, empty], labels, compat=True)["MOTA"] == 100
    assert numbers([full, empty], labels)["MOTA"] == pytest.approx(100 * (1 - 2 / 4))
    assert numbers([empty, full], labels, compat=True)["MOTA"] == pytest.approx(100 * (1 - 2 / 1))


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match="sequence 0 has 4 labelled frames and 1 predicted"):
        evaluate_posetrack([LABELS], [[frame()]])
    headless = frame((100.0, 1))
    headless.heads[:] = np.nan
    with pytest.raises(ValueError, match="has no box of the head"):
        evaluate_posetrack([[headless]], [[frame((100.0, 1))]])
    person = {"id": 1, "image_id": 5, "category_id": 1, "track_id": 3, "keypoints": [1.0] * 3 * K}
    content = {"images": [{"id": 5}], "categories": [{"id": 1, "name": "person", "keypoints": list(JOINTS)}]}
    file = tmp_path / "sequence.json"
    file.write_text(json.dumps({**content, "annotations": [person, {**person, "id": 2}]}))
    with pytest.raises(ValueError, match="a track_id occurs twice in one frame"):
        read_posetrack(file)
    file.write_text(json.dumps({**content, "annotations": [{**person, "keypoints": [1.0]}]}))
    with pytest.raises(ValueError, match=r"keypoints must be 45 numbers"):
        read_posetrack(file)
    content["categories"][0]["keypoints"] = ["nose"]
    file.write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(ValueError, match="not a file of PoseTrack18"):
        read_posetrack(file)
