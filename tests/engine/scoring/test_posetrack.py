"""PoseTrack by `posekd eval` and by `evaluate`: native files in and out, tables, and what cannot be scored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.posetrack_folder import person, video, write_folder
from helpers.tiny_pose import TinyPose
from rich.console import Console

from posekd.cli import main
from posekd.data import LoaderSettings
from posekd.data.sources.posetrack import PoseTrackSettings, PoseTrackVideos
from posekd.data.synthetic import SyntheticVideos, SyntheticVideoSettings
from posekd.engine.evaluate import evaluate, score_file
from posekd.engine.recipes.datasets import DATASETS
from posekd.engine.scoring import METRICS, NotScoredError
from posekd.engine.scoring.posetrack import found_videos, score_videos
from posekd.engine.videos import follow
from posekd.paradigms import TopDownInference
from posekd.posetrack_json import as_json, read_videos, write_videos
from posekd.structures import InputSpec, Instances
from posekd.tracking import TrackSettings

LOADER = LoaderSettings(batch_size=8, workers=0)
SMALL = SyntheticVideoSettings(videos=2, frames=5, size=(96, 128), people=(2, 3), split="val")
METRIC = METRICS["posetrack"]


@pytest.fixture(scope="module")
def videos() -> SyntheticVideos:
    return SyntheticVideos(SMALL)


def labelled(source: SyntheticVideos, rows=slice(None)) -> Instances:
    """The labels as people found."""
    records = source.records
    keypoints = records.keypoints.copy()
    keypoints[..., 2] = 0.9 * (keypoints[..., 2] > 0)
    boxes = torch.from_numpy(records.boxes)
    one = torch.ones(len(records))
    ids = torch.from_numpy(records.image_ids[records.image_rows])
    people = Instances(torch.from_numpy(keypoints), one, boxes, one, boxes[:, 2:].prod(1), ids, ids)
    return people.take(np.arange(len(records))[rows])


def scored(source: SyntheticVideos, people: Instances, **settings) -> dict[str, float]:
    return dict(METRIC.score(source, follow(source, people, TrackSettings(**settings))).numbers)


def test_perfect_people_are_followed_perfectly(videos):
    expected = {"mAP": 100, "MOTA": 100, "MOTP": 100, "precision": 100, "recall": 100}
    for flow in ("none", "dis"):
        assert scored(videos, labelled(videos), flow=flow) == pytest.approx(expected, abs=0.1)


def test_flow_follows_people_who_are_fast():
    """Up to a quarter of the width in a frame, with labelled poses: only tracking can fail."""
    fast = SyntheticVideos(SyntheticVideoSettings(videos=4, frames=6, size=(120, 160), split="val", speed=0.25))
    scores = {flow: scored(fast, labelled(fast), flow=flow)["MOTA"] for flow in ("none", "dis")}
    assert scores["dis"] > scores["none"] + 10


def test_half_of_the_people(videos):
    """Every second person of each frame is missed: nobody is found who is not there."""
    people = labelled(videos)
    half = people.take(torch.arange(0, len(people), 2))
    numbers = scored(videos, half)
    assert numbers["precision"] == 100
    assert 40 < numbers["recall"] < 60
    assert numbers["MOTA"] <= numbers["recall"]


def test_without_tracks_people_count_for_AP_alone(videos):
    score = METRIC.score(videos, labelled(videos))
    assert score.numbers["mAP"] == pytest.approx(100)
    assert (score.numbers["MOTA"], score.numbers["recall"]) == (0, 0)
    assert score.note == f"{len(videos.records)} predicted people have no track and count for AP alone"


def test_a_lost_person_is_found_again(videos):
    """One person of one frame is not detected; a network that can look finds her where she was."""
    people, records = labelled(videos), videos.records
    frame = int(records.image_ids[2])
    lost = next(i for i in range(len(people)) if int(people.image_ids[i]) == frame)
    seen = people.take([i for i in range(len(people)) if i != lost])

    def look(image: np.ndarray, boxes: np.ndarray) -> Instances:
        return replace(people.take([lost] * len(boxes)), sample_ids=torch.arange(len(boxes)))

    without = follow(videos, seen, TrackSettings())
    found = follow(videos, seen, TrackSettings(propagate=1), look)
    assert (len(without), len(found)) == (len(people) - 1, len(people))
    assert (found.image_ids == frame).sum() == (people.image_ids == frame).sum()
    scores = [METRIC.score(videos, followed).numbers["MOTA"] for followed in (without, found)]
    assert scores[0] < scores[1] == 100


def test_the_network_is_asked_again_where_somebody_is_lost(videos):
    """A top-down network on labelled boxes, by `evaluate`: the same call on crops around moved poses."""
    torch.manual_seed(0)
    model = TinyPose(InputSpec(size=(64, 64)), keypoints=17)
    plain = TopDownInference(flip_test=False, oks_threshold=1.0)
    settings = {"loader": LOADER}
    few = SyntheticVideos(replace(SMALL, videos=1))
    full = evaluate(model, few, plain, **settings)
    assert list(full.numbers())[:3] == ["mAP", "MOTA", "MOTP"]
    assert full.found.track_ids is not None
    assert len(full.found) == len(few.records)
    strict = evaluate(model, few, plain, **settings, tracking=TrackSettings(least_box=1.5))
    assert len(strict.found) == 0
    assert strict.numbers()["recall"] == 0
    again = evaluate(model, few, plain, **settings, tracking=TrackSettings(propagate=2, oks_threshold=0.0))
    assert len(again.found) >= len(few.records)


class TestFiles:
    def test_results_score_the_same(self, videos, tmp_path):
        people = follow(videos, labelled(videos, slice(0, None, 3)), TrackSettings())
        METRIC.write(videos, people, tmp_path)
        assert sorted(file.name for file in tmp_path.iterdir()) == [f"{v.name}.json" for v in videos.videos]
        first = METRIC.score(videos, people)
        second = score_videos(videos.videos, read_videos(tmp_path), False)
        assert first.numbers == second.numbers

    def test_a_single_video_may_be_one_file(self, tmp_path):
        source = SyntheticVideos(replace(SMALL, videos=1))
        people = follow(source, labelled(source), TrackSettings())
        METRIC.check_file(source, tmp_path / "r.json")
        METRIC.write(source, people, tmp_path / "r.json")
        assert score_videos(source.videos, read_videos(tmp_path / "r.json"), False).numbers["MOTA"] == 100

    def test_paths_that_could_not_be_written(self, videos, tmp_path):
        (tmp_path / "file").write_text("")
        for name, message in (
            ("r.mat", r"written as \.json, not as \.mat"),
            ("r.json", r"2 videos are written as 2 files: name a folder"),
            ("file", r"is a file, and the videos' files need a folder"),
        ):
            with pytest.raises(ValueError, match=message):
                METRIC.check_file(videos, tmp_path / name)

    def test_a_missing_frame_is_named(self, videos):
        found = found_videos(videos, follow(videos, labelled(videos), TrackSettings()))
        short = [replace(found[0], frames=found[0].frames[:3]), found[1]]
        with pytest.raises(ValueError, match=r"lack 2 of the 5 frames of 000001_synthetic_val, .* image 10003"):
            score_videos(videos.videos, short, False)
        with pytest.raises(ValueError, match="lack 5 of the 5 frames of 000002"):
            score_videos(videos.videos, found[:1], False)

    def test_other_videos_beside_are_told(self, videos):
        found = found_videos(videos, follow(videos, labelled(videos), TrackSettings()))
        score = score_videos(videos.videos[:1], found, False)
        assert score.note == "5 predicted frames are of no labelled video: not scored"
        assert score.result.sequences == 1

    def test_videos_without_labels(self, tmp_path):
        content = {"a": video("a", [[person(1, 0)]]), "b": video("b", None, first=11)}
        labels = write_folder(tmp_path, content)
        source = PoseTrackVideos(PoseTrackSettings(str(tmp_path), str(labels), keep_images="all"))
        nobody = Instances.concatenate([], 17)
        assert METRIC.score(source, nobody).note == "1 of 2 videos have no labels: not scored"
        METRIC.write(source, nobody, tmp_path / "results")
        assert json.loads((tmp_path / "results" / "b.json").read_text())["annotations"] == []
        (labels / "a.json").unlink()
        source = PoseTrackVideos(PoseTrackSettings(str(tmp_path), str(labels), keep_images="all"))
        with pytest.raises(NotScoredError, match="no labels"):
            METRIC.score(source, nobody)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox_head": None}, r"1 of 2 labelled people \(the first is annotation 11\) have no box of the head"),
        ({"track_id": -1}, r"1 of 2 labelled people \(the first is annotation 11\) have no track_id"),
    ],
)
def test_labels_that_tracking_cannot_be_scored_by(tmp_path, change, message):
    labels = write_folder(tmp_path, {"a": video("a", [[person(1, 0), {**person(1, 1), **change}]])}, pictures=False)
    truth = read_videos(labels)
    with pytest.raises(NotScoredError, match=message):
        score_videos(truth, truth, False)


# ---- By the command --------------------------------------------------------------------------------------------


def test_score_only_prints_the_papers_columns(videos, tmp_path, capsys):
    """Misses, false positives and a switch that are counted by hand: see the numbers below."""
    labels = [[person(10 * f + 1, 0), person(10 * f + 1, 1, 50.0)] for f in range(4)]
    found = [[{**p, "scores": [0.9] * 17, "score": [0.9]} for p in frame] for frame in labels]
    del found[1][1]  # a miss
    found[2].append({**found[2][0], "id": 99, "track_id": 9, "keypoints": [900.0, 900.0, 1.0] * 17})  # false positives
    for p in found[3]:
        p["track_id"] = 1 - p["track_id"]  # both tracks are exchanged: two switches
    for folder, people in (("labels", labels), ("found", found)):
        content = video("a", people)
        for frame, own in zip(content["images"], people, strict=True):
            frame["id"] = own[0]["image_id"]
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.json").write_text(json.dumps(content))
    words = ["--score-only", str(tmp_path / "found"), "--dataset", "posetrack", "--report", str(tmp_path / "r.json")]
    assert main(["eval", *words, "--annotations", str(tmp_path / "labels")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["Head", "Shou", "Elb", "Wri", "Hip", "Knee", "Ankl", "Total"]
    assert lines[3] == ["MOTA", *["50.0"] * 8]  # 1 - (1 + 1 + 2) / 8
    assert lines[5] == ["precision", *["87.5"] * 8]  # 7 of 8
    assert lines[6] == ["recall", *["87.5"] * 8]
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["MOTA"] == pytest.approx(50)
    assert report["columns"]["MOTP"]["Total"] == pytest.approx(100)


@pytest.mark.data
def test_compat_is_the_official_answer(real_data: Path, tmp_path, capsys):
    """One of poseval's sequences by the command; of two together each keypoint's counts add up."""
    folder, name = real_data / "posetrack18" / "poseval", "000102_mpii_test"
    words = ["--score-only", str(folder / "pred" / f"{name}.json"), "--dataset", "posetrack"]
    words += ["--annotations", str(folder / "gt" / f"{name}.json"), "--report", str(tmp_path / "r.json")]
    assert main(["eval", *words, "--compat"]) == 0
    expected = json.loads((folder / "expected.json").read_text())[name]
    report = json.loads((tmp_path / "r.json").read_text())
    for ours, theirs in (("mAP", "AP"), ("MOTA", "mot_mota"), ("MOTP", "mot_motp"), ("recall", "mot_rec")):
        assert report[ours] == pytest.approx(expected[theirs][-1], abs=1e-6)
    assert main(["eval", *words]) == 0
    assert json.loads((tmp_path / "r.json").read_text())["MOTA"] != pytest.approx(report["MOTA"], abs=0.01)


def test_bad_predictions_are_a_sentence(tmp_path, capsys):
    labels = write_folder(tmp_path, {"a": video("a", [[person(1, 0)]])}, pictures=False)
    words = ["eval", "--dataset", "posetrack", "--annotations", str(labels), "--score-only"]
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "none").mkdir()
    for name, message in (
        ("broken.json", "broken.json is not JSON"),
        ("none", "none holds no .json file"),
        ("nowhere.json", "nowhere.json does not exist"),
    ):
        assert main([*words, str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err
    assert main(["eval", "--score-only", "x.json", "--annotations", str(labels), "--compat"]) == 2
    assert "--compat has no meaning for --dataset coco" in capsys.readouterr().err


def test_the_dataset_of_a_recipe_scores_files(videos, tmp_path):
    write_videos(videos.videos, tmp_path)
    scores, notes = score_file(DATASETS["posetrack"], PoseTrackSettings("", str(tmp_path)), tmp_path)
    assert scores["posetrack"].numbers["MOTA"] == 100
    assert notes == []
    console = Console(record=True, width=80)
    METRIC.show(scores["posetrack"], console, "labels")
    assert console.export_text().startswith("labels: 2 videos, in percent")
    assert as_json(videos.videos[0])["images"][0]["nframes"] == 5
