"""`predict` finds what evaluation's floor finds, whatever its sources are, and holds a bounded number of frames."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from helpers.checkpoints import checkpoint
from helpers.pictures import picture, write_pictures, write_video
from helpers.tiny_models import tiny_model

import posekd
from posekd.deploy.ahead import ahead, background
from posekd.deploy.finder import NetworkFinder
from posekd.deploy.frames import Clip, Frame, open_clips, read_capture
from posekd.deploy.load import load_model, ready
from posekd.deploy.predict import predict, stream
from posekd.paradigms import BottomUpInference, TopDownInference
from posekd.paradigms.inference import find_people
from posekd.skeleton import COCO


@pytest.fixture(scope="module")
def model():
    return tiny_model("elpn_v1", 17)


def assert_same(people, others):
    assert people.image_ids.tolist() == others.image_ids.tolist()
    # convolutions of other batch sizes round otherwise
    torch.testing.assert_close(people.keypoints, others.keypoints, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(people.scores, others.scores, rtol=1e-4, atol=1e-3)


def test_all_sources_give_the_people_of_the_inference_floor(model, tmp_path):
    files = write_pictures(tmp_path / "images", 5)
    images = [picture(seed) for seed in range(5)]
    expected = find_people(model, images, COCO)
    stack = np.stack(images)
    assert len(expected) == 5
    for source in (
        files,
        tmp_path / "images",
        str(tmp_path / "images" / "*.png"),
        stack,
        images,
        torch.from_numpy(stack).permute(0, 3, 1, 2),
        torch.from_numpy(stack).permute(0, 3, 1, 2) / 255,
        [torch.from_numpy(image) for image in images],
    ):
        assert_same(predict(model, source, batch_size=2), expected)


def test_boxes_several_people_and_nobody(model):
    images = [picture(0), picture(1), picture(2)]
    boxes = [np.array([[4, 4, 30, 30], [30, 10, 60, 90.0]]), np.zeros((0, 4)), np.array([[-5, -5, 40, 40.0]])]
    scores = [np.array([0.5, 0.9]), np.zeros(0), np.array([0.3])]
    expected = find_people(model, images, COCO, boxes=boxes, box_scores=scores)
    found = predict(model, images, boxes=boxes, box_scores=scores, batch_size=1)
    assert_same(found, expected)
    assert sorted(found.sample_ids.tolist()) == [0, 0, 1]  # the box's place among those of its image
    assert len(predict(model, images, boxes=[np.zeros((0, 4))] * 3)) == 0


def test_bottom_up_networks_look_at_whole_images():
    model = tiny_model("higherhrnet_w32", 17)
    settings = BottomUpInference(max_people=5, detection_threshold=0.0)
    images = [picture(seed, 40 + 16 * seed, 64) for seed in range(3)]
    expected = find_people(model, images, COCO, settings)
    assert len(expected)
    assert_same(predict(model, images, settings=settings, batch_size=2), expected)
    with pytest.raises(ValueError, match="sees whole images: it needs no boxes"):
        predict(model, images, boxes=[np.zeros((1, 4))] * 3)


def test_a_picture_of_one_pixel_and_a_long_one(model):
    assert len(predict(model, [np.zeros((1, 1, 3), np.uint8), np.zeros((1, 20_000, 3), np.uint8)])) == 2
    with pytest.raises(ValueError, match="would become an input of 64 x 1280000: cut it"):
        predict(tiny_model("higherhrnet_w32", 17), np.zeros((1, 20_000, 3), np.uint8))


def test_a_loaded_model_predicts_as_its_run_was_tested(tmp_path):
    path = checkpoint(tmp_path)
    loaded = posekd.load_model(path)
    expected = find_people(loaded, [picture(0)], COCO, TopDownInference(flip_test=False, decode="dark"), padding=1.1)
    assert_same(loaded.predict(picture(0)), expected)
    assert_same(load_model(tmp_path).predict(picture(0)), expected)  # the run's folder
    other = find_people(loaded, [picture(0)], COCO)
    assert (other.keypoints != expected.keypoints).any()


def test_what_a_card_says_is_read_under_its_old_names_too(tmp_path):
    recipe = {"eval": {"flip": False, "nms_threshold": 0.7}, "train": {"channels_last": True}}
    found = ready(checkpoint(tmp_path, recipe=recipe), inference={"decode": "argmax"})
    assert found.settings == TopDownInference(flip_test=False, oks_threshold=0.7, decode="argmax", channels_last=True)
    assert found.padding == 1.25
    with pytest.raises(ValueError, match=r"no setting inference\.decodes; did you mean 'decode'"):
        ready(tmp_path, inference={"decodes": 1})
    assert ready(tmp_path, size=(96, 64)).model.spec.size == (96, 64)


def test_a_network_without_a_card_needs_its_keypoints_named(tmp_path):
    path = checkpoint(tmp_path)
    path.with_suffix(".json").unlink()
    with pytest.raises(FileNotFoundError, match="has no card"):
        ready(path)
    with pytest.raises(ValueError, match="unknown skeleton 'cocoa'; did you mean 'coco'"):
        ready("elpn_v1", weights=str(path), skeleton="cocoa")
    with pytest.raises(ValueError, match="has no weights yet"):
        ready("elpn_v1")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((4, 4), np.int32), "uint8 in 0..255 or floating-point in 0..1, got an array of int32"),
        (np.zeros((4, 4, 4), np.uint8), r"images are \[H, W, 3\]"),
        (np.full((4, 4, 3), 2.0), r"in 0\.\.1, got an array of float64 \(4, 4, 3\) in 2\.\.2"),
        (np.full((4, 4, 3), np.nan), r"in 0\.\.1"),
        ("nowhere.png", "there is no file or folder nowhere.png"),
        ("nowhere/*.png", "nothing matches"),
    ],
)
def test_what_is_no_source_is_refused_in_a_sentence(model, source, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        predict(model, source)


def test_files_of_other_kinds_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="neither an image"):
        open_clips(tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match="holds no images and no videos"):
        open_clips(tmp_path)
    (tmp_path / "no.mp4").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="not a video that OpenCV can read"):
        open_clips(tmp_path / "no.mp4")


def test_images_and_videos_become_clips_in_their_order(tmp_path):
    write_pictures(tmp_path, 2)
    write_video(tmp_path / "100.avi", 3)
    write_pictures(tmp_path, 1, start=200)
    clips = open_clips(tmp_path)
    assert [(clip.count, clip.rate) for clip in clips] == [(2, None), (3, 12.5), (1, None)]
    names = [frame.name for clip in clips for frame in clip.read(2)]
    video = tmp_path / "100.avi"
    assert names[1:4] == [str(tmp_path / "001.png"), f"{video} frame 0", f"{video} frame 1"]


def test_a_video_that_ends_early_says_so(tmp_path):
    path = write_video(tmp_path / "v.avi", 20)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])  # OpenCV then states fewer frames, MP4's header not
    with pytest.warns(UserWarning, match=r"v\.avi ends after \d+ of the 20 frames that it states"):
        frames = list(read_capture(str(path), "v.avi", 20))
    assert 5 < len(frames) < 20
    assert all(frame.image is not None for frame in frames)


def test_an_image_that_cannot_be_decoded_has_nobody_and_a_reason(model, tmp_path):
    files = write_pictures(tmp_path, 3)
    files[1].write_bytes(b"not an image")
    finder = NetworkFinder(model, COCO)
    found = list(stream(finder, open_clips(files)))
    assert [len(one.people) for one in found] == [1, 0, 1]
    assert [one.image_id for one in found] == [0, 1, 2] == [*found[0].people.image_ids.tolist(), 1, 2]
    assert "not an image that OpenCV can decode" in found[1].frame.problem


def test_frames_in_memory_are_bounded_however_long_a_video_is(model):
    alive, most = set(), 0

    class Picture(np.ndarray):
        def __del__(self):
            alive.discard(id(self))

    def read(threads):
        nonlocal most
        for index in range(200):
            image = np.zeros((8, 8, 3), np.uint8).view(Picture)
            alive.add(id(image))
            most = max(most, len(alive))
            yield Frame(f"{index}", index, image)

    found = stream(NetworkFinder(model, COCO, batch_size=4), [Clip("long", read, 200)], batch_size=4)
    assert sum(len(one.people) for one in found) == 200
    assert most <= 4 * 6  # groups: one read, one packed, one waiting, one looked at, one handed out


def test_background_passes_on_errors_and_ends_with_its_reader():
    def items():
        yield 1
        raise KeyError("two")

    found = background(items())
    assert next(found) == 1
    with pytest.raises(KeyError, match="two"):
        next(found)
    closed = threading.Event()

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    endless_items = background(endless())
    next(endless_items)
    endless_items.close()
    assert closed.is_set()


def test_ahead_keeps_the_order_and_does_not_run_away():
    started = []
    results = ahead(lambda i: started.append(i) or i * i, range(100), threads=2)
    assert [next(results), next(results)] == [0, 1]
    assert len(started) <= 5
    assert list(results) == [i * i for i in range(2, 100)]
