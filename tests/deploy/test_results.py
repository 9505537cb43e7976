"""What was found can be read back, trained from and looked at, and is kept whatever happens."""

from __future__ import annotations

import errno
import json
import resource
import signal
from contextlib import contextmanager

import cv2
import numpy as np
import pytest
import torch
from helpers.pictures import picture, write_pictures, write_video

from posekd.data import CocoKeypoints, CocoSettings
from posekd.deploy.boxes import read_boxes
from posekd.deploy.drawings import drawings
from posekd.deploy.frames import Clip, Frame, open_clips
from posekd.deploy.predict import Found
from posekd.deploy.results import coco_labels, coco_results, json_lines, to_supervision
from posekd.files import growing
from posekd.metrics.coco_files import read_labels, read_results
from posekd.skeleton import COCO
from posekd.structures import Instances


def people(count: int, image_id: int = 0, score: float = 0.9, **changes) -> Instances:
    points = torch.arange(17.0)[:, None] + torch.tensor([3.0, 5.0])
    keypoints = torch.cat((points, torch.full((17, 1), score)), 1).expand(count, -1, -1).clone()
    box, one = torch.tensor([[2.0, 4.0, 20.0, 22.0]]).expand(count, -1), torch.ones(count)
    ids = torch.full((count,), image_id)
    columns = {"areas": 440 * one, "image_ids": ids, "sample_ids": torch.arange(count), **changes}
    return Instances(keypoints, score * one, box, one, **columns)


def found_in(clip: Clip, count: int = 1, **changes) -> list[Found]:
    return [Found(clip, frame, i, people(count, i, **changes)) for i, frame in enumerate(clip.read(1))]


@contextmanager
def disk_of(size: int):
    """Files may have at most `size` bytes; a longer write fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture
def clip(tmp_path):
    (clip,) = open_clips(write_pictures(tmp_path / "images", 3))
    return clip


def test_results_are_coco_s(clip, tmp_path):
    with coco_results(tmp_path / "r.json") as add:
        for one in found_in(clip, 2):
            add(one)
    truth = {
        "images": [{"id": i, "file_name": f"{i}.png"} for i in range(3)],
        "annotations": [{"id": 1, "image_id": 0, "category_id": 1, "area": 4.0, "iscrowd": 0, "bbox": [0, 0, 2, 2],
                         "keypoints": [1.0, 1.0, 2] * 17, "num_keypoints": 17}],
        "categories": [{"id": 1, "name": "person", "keypoints": list(COCO.keypoints)}],
    }  # fmt: skip
    results = read_results(tmp_path / "r.json", read_labels(truth))
    assert [r["image_id"] for r in results] == [0, 0, 1, 1, 2, 2]
    assert results[0]["keypoints"][3:6] == [4.0, 6.0, 0.9]


def test_no_people_are_an_empty_list(tmp_path):
    with coco_results(tmp_path / "r.json"):
        pass
    assert json.loads((tmp_path / "r.json").read_text()) == []


def test_lines_tell_frame_people_and_problem(clip, tmp_path):
    with json_lines(tmp_path / "r.jsonl") as add:
        first, *_ = found_in(clip, 1, track_ids=torch.tensor([7]))
        add(first)
        add(Found(clip, Frame("b.png", 1, None, "b.png: truncated"), 1, people(0)))
    one, other = map(json.loads, (tmp_path / "r.jsonl").read_text().splitlines())
    assert (one["frame"], one["people"][0]["track_id"], one["people"][0]["box"]) == (0, 7, [2.0, 4.0, 20.0, 22.0])
    assert (other["people"], other["problem"]) == ([], "b.png: truncated")


def test_a_full_disk_keeps_what_was_done(clip, tmp_path):
    done = found_in(clip)
    line = len(json.dumps(done[0].people.keypoints.tolist()))
    for file, writer in ((tmp_path / "r.jsonl", json_lines), (tmp_path / "r.json", coco_results)):
        with pytest.raises(OSError, match=str(file)) as error, disk_of(5 * line), writer(file) as add:
            list(map(add, done * 5))
        assert error.value.errno == errno.EFBIG
        text = file.read_text()
        kept = json.loads(text) if file.suffix == ".json" else list(map(json.loads, text.splitlines()))
        assert 1 <= len(kept) < 15
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "r.json", "r.jsonl"]


def test_a_growing_file_replaces_an_old_one_only_at_its_end(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")
    with growing(path, "<", ">") as append:
        append("a")
        assert path.read_text() == "old"
        (partial,) = tmp_path.glob(".f.*.partial")
        assert partial.read_text() == "<a>"  # what a kill would leave
        append("b")
    assert path.read_text() == "<ab>"


def test_labels_can_be_trained_from(clip, tmp_path):
    scores = torch.full((1, 17, 1), 0.9)
    scores[0, 3] = 0.1
    with coco_labels(tmp_path / "labels.json", COCO) as add:
        for one in found_in(clip):
            one.people.keypoints[..., 2:] = scores
            add(one)
    data = CocoKeypoints(CocoSettings(images=str(tmp_path / "images"), annotations=str(tmp_path / "labels.json")))
    assert data.records.skeleton == COCO
    assert len(data.records) == 3
    assert data.records.keypoints[0, 3].tolist() == [0, 0, 0]  # not sure enough
    assert data.records.keypoints[0, 4].tolist() == [7, 9, 2]
    assert data.load_image(0).shape == (48, 64, 3)
    entry = json.loads((tmp_path / "labels.json").read_text())["annotations"][0]
    assert entry["score"] == pytest.approx(0.9)
    assert entry["keypoint_scores"][3] == pytest.approx(0.1)
    assert entry["bbox"] == [2.0, 4.0, 20.0, 22.0]  # the detector's


def test_labels_of_a_video_are_refused(tmp_path):
    (clip,) = open_clips(write_video(tmp_path / "v.avi", 2))
    with pytest.raises(ValueError, match=r"v\.avi frame 0 is no image file"), coco_labels(tmp_path / "l", COCO) as add:
        add(found_in(clip)[0])


def test_drawn_images_and_videos_are_the_sources_with_poses(clip, tmp_path):
    (video,) = open_clips(write_video(tmp_path / "v.avi", 6))
    frames = found_in(video)
    frames[0] = Found(video, Frame("v frame 0", 0, None, "?"), 0, people(0))
    frames[3] = Found(video, Frame("v frame 3", 3, None, "?"), 3, people(0))
    with drawings(tmp_path / "drawn", COCO) as add:
        for one in [*found_in(clip, track_ids=torch.tensor([0])), *frames, *found_in(clip)]:
            add(one)
    names = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert names == ["000-2.png", "000.png", "001-2.png", "001.png", "002-2.png", "002.png", "v.mp4"]
    drawn = cv2.cvtColor(cv2.imread(str(tmp_path / "drawn" / "001-2.png")), cv2.COLOR_BGR2RGB)
    assert drawn.shape == (48, 64, 3)
    assert (drawn[40:] == picture(1)[40:]).all()  # where nobody is
    assert (drawn[5:22, 3:20] != picture(1)[5:22, 3:20]).any()
    (again,) = open_clips(tmp_path / "drawn" / "v.mp4")
    assert (again.count, again.rate) == (6, 12.5)
    images = [frame.image for frame in again.read(1)]
    assert images[0].max() < 30  # nothing is known of the first frame
    assert np.abs(images[3].astype(int) - images[2]).mean() < 5  # the one before it


def test_supervision_gets_the_same_numbers():
    pytest.importorskip("supervision")
    points = to_supervision(people(2, track_ids=torch.tensor([4, 5])))
    assert points.xy.shape == (2, 17, 2)
    assert points.keypoint_confidence.max() == pytest.approx(0.9)
    assert points.data["track_ids"].tolist() == [4, 5]


# ---- Boxes -----------------------------------------------------------------------------------------------------------


def frame(name: str, index: int = 0) -> Frame:
    return Frame(name, index, picture(0))


def detections(*entries: dict, file) -> str:
    file.write_text(json.dumps([{"category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5, **e} for e in entries]))
    return str(file)


def test_detections_are_found_by_name_number_and_frame(tmp_path):
    file = detections(
        {"image_id": 139}, {"image_id": "cat", "score": 0.1}, {"image_id": 0, "file_name": "a/b.jpg"}, {"image_id": 7},
        file=tmp_path / "d.json",
    )  # fmt: skip
    boxes = read_boxes(file)
    assert [len(boxes(frame(name))) for name in ("x/000000000139.jpg", "cat.png", "x/a/b.jpg", "b.jpg")] == [1, 1, 1, 0]
    assert boxes(frame("v.mp4 frame 7", 7)).ids.tolist() == [3]
    assert len(read_boxes(file, threshold=0.2)(frame("cat.png"))) == 0
    stranger = read_boxes(file)
    stranger(frame("dog.png"))
    with pytest.raises(ValueError, match=r"d\.json has no box for any of the 1 images.*it knows 'a/b\.jpg'"):
        stranger.check_matched()


def test_labels_give_boxes_and_image_ids(tmp_path):
    content = {
        "images": [{"id": 5, "file_name": "a.png"}, {"id": 6, "file_name": "b.png"}],
        "annotations": [{"id": 9, "image_id": 5, "bbox": [1, 2, 3, 4]}, {"id": 10, "image_id": 5, "iscrowd": 1}],
    }
    (tmp_path / "l.json").write_text(json.dumps(content))
    boxes = read_boxes(tmp_path / "l.json")
    assert boxes(frame("/x/a.png")).ids.tolist() == [9]
    assert len(boxes(frame("b.png"))) == 0
    assert (boxes.image_id(frame("/x/b.png")), boxes.image_id(frame("c.png"))) == (6, None)
    boxes.check_matched()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"image_id": 1, "bbox": [1, 2, float("nan"), 4]}, "detection 0: bbox must be 4 finite numbers"),
        ({"image_id": 1, "bbox": [1, 2, -3, 4]}, "bbox is x, y, width, height with an extent"),
        ({"image_id": 1, "score": "high"}, "detection 0: score"),
    ],
)
def test_bad_boxes_are_refused_before_any_work(tmp_path, entry, message):
    with pytest.raises(ValueError, match=message):
        read_boxes(detections(entry, file=tmp_path / "d.json"))


def test_what_holds_no_boxes_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match="has no boxes: give COCO labels, or a list of detections"):
        read_boxes(tmp_path / "x.json")
