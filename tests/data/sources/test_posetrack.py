"""PoseTrack18's files as a dataset: frames, people, ignored regions, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.posetrack_folder import NAMES, person, video, write_folder

from posekd.data.regions import decode_mask
from posekd.data.sources.posetrack import PoseTrackSettings, PoseTrackVideos
from posekd.posetrack_json import as_json, read_videos, write_videos
from posekd.skeleton import POSETRACK

TWO = {
    "a": video("a", [[person(1, 0), person(1, 1, 50.0)], [], [person(3, 1, 52.0)]]),
    "b": video("b", [[person(11, 5)], [person(12, 5)]], first=11),
}


def opened(root: Path, videos=TWO, **settings) -> PoseTrackVideos:
    labels = write_folder(root, videos)
    return PoseTrackVideos(PoseTrackSettings(str(root), str(labels), **settings))


def test_frames_are_images_and_videos_stay_together(tmp_path):
    source = opened(tmp_path, keep_images="all")
    records = source.records
    assert records.skeleton == POSETRACK
    assert records.image_ids.tolist() == [1, 2, 3, 11, 12]
    assert records.videos.tolist() == [0, 0, 0, 1, 1]
    assert records.image_rows.tolist() == [0, 0, 2, 3, 4]
    assert records.image_sizes.tolist() == [[80, 100]] * 5  # from the files: the labels say nothing
    assert records.metrics == ("posetrack",)
    assert records.keypoints[0, 0].tolist() == [20, 30, 2]
    assert (records.keypoints[0, :, 2] > 0).tolist() == ["ear" not in name for name in NAMES]
    assert source.load_image(3).shape == (80, 100, 3)
    assert source.image_name(3).endswith("images/val/b/000000.jpg")
    kept = records.take(np.array([3, 4]))
    assert kept.videos.tolist() == [1, 1]


def test_which_frames_are_kept(tmp_path):
    videos = {"a": video("a", [[person(1, 0)], [], [person(3, 1)]])}
    videos["a"]["images"][2]["is_labeled"] = False
    for keep, ids in (("all", [1, 2, 3]), ("annotated", [1, 2]), ("labelled", [1]), (None, [1])):
        assert opened(tmp_path, videos, keep_images=keep).records.image_ids.tolist() == ids


def test_ignored_regions_are_masked(tmp_path):
    """A polygon, and the box of somebody without labels; two polygons of an image are one mask."""
    nobody = person(1, 1, keypoints=[0.0] * 51, bbox=[60.0, 40.0, 10.0, 10.0])
    content = video("a", [[person(1, 0), nobody]], ignore_regions_x=[[0, 10, 10, 0]], ignore_regions_y=[[0, 0, 20, 20]])
    source = opened(tmp_path, {"a": content})
    assert len(source.records) == 1
    mask = decode_mask(source.records.ignored, 0, (80, 100))
    assert mask is not None
    expected = np.zeros((80, 100), bool)
    expected[:20, :10] = expected[40:50, 60:70] = True
    np.testing.assert_array_equal(mask > 0, expected)


def test_people_without_a_box_get_one_around_their_keypoints(tmp_path):
    content = video("a", [[person(1, 0, bbox=None), person(1, 1, bbox=[5.0, 5.0, 0.0, 0.0])]])
    boxes = opened(tmp_path, {"a": content}).records.boxes
    np.testing.assert_allclose(boxes[0], [20 - 0.15 * 32, 30, 1.3 * 32, 1])  # a line: 15 % more on both sides
    np.testing.assert_allclose(boxes[1], boxes[0])


def test_a_file_of_several_videos_is_taken_apart(tmp_path):
    write_folder(tmp_path, TWO)
    both = {**TWO["a"], "images": [*TWO["a"]["images"], *TWO["b"]["images"]]}
    both["annotations"] = [*TWO["a"]["annotations"], *TWO["b"]["annotations"]]
    file = tmp_path / "val.json"
    file.write_text(json.dumps(both))
    source = PoseTrackVideos(PoseTrackSettings(str(tmp_path), str(file), keep_images="all"))
    assert [v.name for v in source.videos] == ["a", "b"]
    assert source.records.videos.tolist() == [0, 0, 0, 1, 1]


def test_what_is_written_reads_the_same(tmp_path):
    videos = read_videos(write_folder(tmp_path, TWO, pictures=False))
    write_videos(videos, tmp_path / "again")
    again = read_videos(tmp_path / "again")
    assert [as_json(v) for v in again] == [as_json(v) for v in videos]
    assert json.loads((tmp_path / "again" / "a.json").read_text())["annotations"][0]["track_id"] == 0


@pytest.mark.data
def test_the_real_files(real_data: Path, tmp_path):
    """Three videos of which one frame each is here; what is written is what the official evaluator needs."""
    folder = real_data / "posetrack18"
    source = PoseTrackVideos(PoseTrackSettings(str(folder), str(folder / "annotations" / "val")))
    assert len(source.records) == 14
    assert [v.name for v in source.videos] == ["003418_mpii_test", "009473_mpii_test", "012834_mpii_test"]
    assert source.load_image(0).shape == (1080, 1920, 3)
    assert len(source.records.ignored) == 9 + 2 + 4
    joined = PoseTrackSettings(str(folder), str(folder / "annotations" / "test_posetrack18_val.json"))
    assert {v.name for v in PoseTrackVideos(joined).videos} == {v.name for v in source.videos}
    write_videos(source.videos, tmp_path)
    for file in sorted((folder / "annotations" / "val").glob("*.json")):
        before, after = json.loads(file.read_text()), json.loads((tmp_path / file.name).read_text())
        for key in ("id", "file_name", "vid_id", "ignore_regions_x", "ignore_regions_y"):
            assert [i[key] for i in after["images"]] == [i[key] for i in before["images"]]
        for a, b in zip(after["annotations"], before["annotations"], strict=True):
            assert (a["track_id"], a["image_id"]) == (b["track_id"], b["image_id"])
            np.testing.assert_allclose(a["keypoints"], b["keypoints"], atol=6e-4)
            np.testing.assert_allclose(a["bbox_head"], b["bbox_head"], atol=6e-4)


def test_boxes_of_a_detector(tmp_path):
    """All frames are kept, in whatever order the detector lists them; labels stay for the scores."""
    found = [
        {"image_id": i, "category_id": 1, "bbox": [1.0, 2.0, 30.0, 40.0], "score": s}
        for i, s in ((12, 0.9), (2, 0.5), (2, 0.1))
    ]
    file = tmp_path / "detections.json"
    file.write_text(json.dumps(found))
    source = opened(tmp_path, detections=str(file), detection_threshold=0.2)
    records = source.records
    assert records.image_ids.tolist() == [1, 2, 3, 11, 12]
    assert records.image_rows.tolist() == [1, 4]
    assert records.sample_ids.tolist() == [1, 0]
    np.testing.assert_allclose(records.box_scores, [0.5, 0.9])
    assert not records.keypoints.any()
    assert sum(len(frame.people) for video in source.videos for frame in video.frames) == 5
    file.write_text("[1]")
    with pytest.raises(ValueError, match="detection 0 must have image_id"):
        opened(tmp_path, detections=str(file))


@pytest.mark.data
def test_masks_are_those_of_the_dataset(real_data: Path):
    """PoseTrack18 also has its ignored regions as pictures (JPEGs): the polygons cover the same pixels."""
    folder = real_data / "posetrack18"
    source = PoseTrackVideos(PoseTrackSettings(str(folder), str(folder / "annotations" / "val")))
    for row in range(3):
        mask = decode_mask(source.records.ignored, row, (1080, 1920))
        assert mask is not None
        theirs = cv2.imread(source.image_name(row).replace("/images/", "/mask/"), cv2.IMREAD_GRAYSCALE) > 127
        assert (theirs & (mask > 0)).sum() / (theirs | (mask > 0)).sum() > 0.99


@pytest.mark.data
def test_a_real_detector_file(real_data: Path):
    """MMPose's boxes of the three frames."""
    folder = real_data / "posetrack18"
    detections = str(folder / "annotations" / "test_posetrack18_human_detections.json")
    source = PoseTrackVideos(PoseTrackSettings(str(folder), str(folder / "annotations" / "val"), detections))
    assert len(source.records) == len(json.loads(Path(detections).read_text()))


# ---- What is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(images=[]), r"a.json: the video has no frames"),
        (lambda c: c.pop("images"), r"a.json is not a COCO annotation file: it has no list 'images'"),
        (lambda c: c["categories"][0].update(keypoints=["nose"]), r"lacks the keypoints .*not a file of PoseTrack18"),
        (lambda c: c["images"][0].update(file_name=""), r"image 1 has no file_name"),
        (lambda c: c["images"][0].update(file_name=7), r"file_name must be text, got 7"),
        (lambda c: c["images"][1].update(id=1), r"image 1 is listed twice"),
        (lambda c: c["images"][0].update(width=-3, height=5), r"image 1 is -3 x 5 pixels"),
        (lambda c: c["images"][0].update(ignore_regions_x=[[1, 2]]), r"must be as many lists"),
        (
            lambda c: c["images"][0].update(ignore_regions_x=[[1, 2]], ignore_regions_y=[[1, "x"]]),
            r"an ignored region's coordinates must be 2 finite numbers",
        ),
        (lambda c: c["annotations"][0].update(image_id=77), r"people are on 1 images that the file does not list"),
        (lambda c: c["annotations"][0].update(keypoints=[1.0]), r"annotation 10 .*keypoints must be 51 numbers"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), r"annotation 10 .*bbox must be 4 numbers"),
        (lambda c: c["annotations"][0].update(track_id="x"), r"track_id must be a whole number, got the text 'x'"),
        (lambda c: c["annotations"][0].update(track_id=1), r"a track_id occurs twice in one frame: \[1, 1\]"),
    ],
)
def test_malformed_files_are_refused(tmp_path, change, message):
    content = json.loads(json.dumps(TWO["a"]))
    change(content)
    labels = write_folder(tmp_path, {"a": TWO["a"]})
    (labels / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        PoseTrackVideos(PoseTrackSettings(str(tmp_path), str(labels)))


def test_broken_json_and_missing_files(tmp_path):
    labels = write_folder(tmp_path, TWO)
    settings = PoseTrackSettings(str(tmp_path), str(labels), keep_images="all")
    (tmp_path / "images/val/a/000001.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 5 images .*'000001.jpg'.*on_missing_image: skip"):
        PoseTrackVideos(settings)
    with pytest.warns(UserWarning, match="going on without them"):
        source = PoseTrackVideos(PoseTrackSettings(**{**vars(settings), "on_missing_image": "skip"}))
    assert source.records.image_ids.tolist() == [1, 3, 11, 12]
    assert [len(v.frames) for v in source.videos] == [2, 2]  # nobody is labelled where nobody could look
    (labels / "a.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=r"a.json is not JSON \(setting `annotations`\)"):
        PoseTrackVideos(settings)
    with pytest.raises(FileNotFoundError, match=r"holds no .json file \(setting `annotations`\)"):
        PoseTrackVideos(PoseTrackSettings(str(tmp_path), str(tmp_path / "images")))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        PoseTrackVideos(PoseTrackSettings(str(tmp_path), str(tmp_path / "nowhere.json")))


def test_images_of_two_videos_with_one_id(tmp_path):
    with pytest.raises(ValueError, match="image 1 is in two videos"):
        opened(tmp_path, {"a": TWO["a"], "b": video("b", [[person(1, 0)]])})


def test_a_split_without_labels(tmp_path):
    videos = {"a": video("a", None)}
    assert opened(tmp_path, videos, keep_images="all").records.num_images == 3
    with pytest.raises(ValueError, match="none of its 3 frames has what keep_images: labelled asks for"):
        opened(tmp_path, videos)


JUNK = [None, "", "x", [], {}, [None], [[]], -1, 0.5, True, 1e300, float("nan"), 10**30, {"a": 1}]


def places(value, path=()):
    """Paths to everything in a file's content, of long lists to the beginning."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, below in items:
        yield (*path, key)
        yield from places(below, (*path, key))


def test_a_file_that_is_damaged_anywhere_is_read_or_refused_in_a_sentence(tmp_path):
    rng = np.random.default_rng(0)
    content = video(
        "a", [[person(1, 0)], []], ignore_regions_x=[[0, 9, 9]], ignore_regions_y=[[0, 0, 9]], width=100, height=80
    )
    labels = write_folder(tmp_path, {"a": content})
    everywhere = list(places(content))
    refused = 0
    for _ in range(200):
        damaged = json.loads(json.dumps(content))
        *way, last = everywhere[rng.integers(len(everywhere))]
        place = damaged
        for key in way:
            place = place[key]
        place[last] = JUNK[rng.integers(len(JUNK))]
        (labels / "a.json").write_text(json.dumps(damaged))
        try:
            PoseTrackVideos(PoseTrackSettings(str(tmp_path), str(labels), keep_images="all"))
        except (ValueError, FileNotFoundError):
            refused += 1
    assert 50 < refused < 200
