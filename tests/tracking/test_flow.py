"""Poses that are moved by optical flow, and people who are looked for where they should be."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from posekd.skeleton import COCO
from posekd.structures import Instances
from posekd.tracking import Tracker, TrackSettings, dense_flow, move_points

BODY = np.random.default_rng(0).uniform((0, 0), (40, 100), (17, 2))


def people(*places: tuple[float, float], score: float = 0.9, box_score: float = 1.0) -> Instances:
    """People of 40 x 100 pixels whose top left corners are given."""
    points = [torch.from_numpy(np.column_stack((BODY + place, np.full(17, score)))).float() for place in places]
    one, ids = torch.ones(len(places)), torch.zeros(len(places), dtype=torch.int64)
    keypoints = torch.stack(points) if points else torch.zeros(0, 17, 3)
    return Instances(keypoints, one, torch.zeros(len(places), 4), box_score * one, 4000 * one, ids, ids)


def scene(shift: int) -> np.ndarray:
    """Smooth noise of 300 x 200 that has moved to the right by some pixels."""
    noise = np.random.default_rng(1).integers(0, 256, (25, 80, 3), dtype=np.uint8)
    return cv2.resize(noise, (640, 200), interpolation=cv2.INTER_CUBIC)[:, 160 - shift : 460 - shift]


def test_flow_finds_a_shift():
    flow = dense_flow(scene(0), scene(9))
    assert flow is not None
    inner = flow[30:-30, 30:-30]
    np.testing.assert_allclose(np.median(inner.reshape(-1, 2), 0), (9, 0), atol=0.1)
    moved = move_points(np.array([[100.0, 100.0], [120.5, 60.25], [900.0, 100.0]]), flow)
    np.testing.assert_allclose(moved[:2], [[109.0, 100.0], [129.5, 60.25]], atol=0.5)
    assert np.isfinite(moved).all()  # outside the image as at its border


def test_frames_of_other_sizes_have_no_flow():
    assert dense_flow(scene(0), scene(0)[:100]) is None
    assert dense_flow(scene(0)[:20], scene(0)[:20]) is None
    assert move_points(np.zeros((0, 2)), np.zeros((40, 40, 2), np.float32)).shape == (0, 2)


@pytest.mark.parametrize(("flow", "numbers"), [("dis", [0, 0, 0]), ("none", [0, 1, 2])])
def test_whoever_moves_fast_is_followed_with_flow_alone(flow, numbers):
    """19 pixels in a frame, half a body's width: too far for the OKS of neighbouring frames."""
    tracker = Tracker(COCO, TrackSettings(flow=flow, oks_threshold=0.5))
    found = [tracker.update(people((100.0 + 19 * i, 50.0)), scene(19 * i)) for i in range(3)]
    assert [int(one.track_ids[0]) for one in found] == numbers


def test_a_lost_pose_moves_on():
    """Nobody is found for two frames, and the scene goes on."""
    tracker = Tracker(COCO, TrackSettings(flow="dis", oks_threshold=0.5))
    tracker.update(people((60.0, 50.0)), scene(0))
    for i in (1, 2):
        assert len(tracker.update(people(), scene(12 * i))) == 0
    assert tracker.update(people((96.0, 50.0)), scene(36)).track_ids.tolist() == [0]


def test_a_frame_that_cannot_be_decoded_moves_nothing():
    tracker = Tracker(COCO, TrackSettings(flow="dis"))
    tracker.update(people((100.0, 50.0)), scene(0))
    assert tracker.update(people((100.0, 50.0)), None).track_ids.tolist() == [0]
    assert tracker.update(people((100.0, 50.0)), scene(0)).track_ids.tolist() == [0]


# ---- Whom nothing has detected ---------------------------------------------------------------------------------


class Eyes:
    """Finds in each box whom it was told of, and notes the boxes."""

    def __init__(self, *answers: Instances) -> None:
        self.answers, self.boxes = list(answers), []

    def __call__(self, image: np.ndarray, boxes: np.ndarray) -> Instances:
        self.boxes.append(boxes)
        found = self.answers.pop(0)
        return replace(found, sample_ids=torch.arange(len(found)))


IMAGE = np.zeros((300, 400, 3), np.uint8)


def test_somebody_lost_is_found_again_in_the_box_around_the_last_pose():
    eyes = Eyes(people((102.0, 50.0), score=0.8))
    tracker = Tracker(COCO, TrackSettings(propagate=1), look=eyes)
    tracker.update(people((100.0, 50.0), (300.0, 50.0)), IMAGE, 7)
    found = tracker.update(people((301.0, 50.0)), IMAGE, 8)
    assert found.track_ids.tolist() == [1, 0]
    assert found.image_ids.tolist()[1] == 8
    assert found.sample_ids.tolist()[1] == -1
    # the hull and 15 % of it on each side
    corner = np.array((100.0, 50.0))
    low, high = BODY.min(0) + corner, BODY.max(0) + corner
    margin = 0.15 * (high - low)
    np.testing.assert_allclose(eyes.boxes[0], [[*(low - margin), *(high - low + 2 * margin)]], rtol=1e-6)
    # the box scores less as the keypoints do, which had 0.9
    assert found.box_scores[1].item() == pytest.approx(0.8 / 0.9)
    assert found.scores[1].item() == pytest.approx(0.8 / 0.9 * 0.8)


def test_people_are_looked_for_a_number_of_frames():
    eyes = Eyes(*[people((100.0, 50.0))] * 3)
    tracker = Tracker(COCO, TrackSettings(propagate=2, keep=5), look=eyes)
    tracker.update(people((100.0, 50.0)), IMAGE)
    assert [len(tracker.update(people(), IMAGE)) for _ in range(4)] == [1, 1, 0, 0]
    assert tracker.update(people((100.0, 50.0)), IMAGE).track_ids.tolist() == [0]
    assert len(eyes.boxes) == 2


def test_a_chain_ends_where_the_score_has_faded():
    eyes = Eyes(*[people((100.0, 50.0), score=score) for score in (0.7, 0.8, 0.5, 0.6)])
    tracker = Tracker(COCO, TrackSettings(propagate=9, least_box=0.6), look=eyes)
    tracker.update(people((100.0, 50.0), score=0.9), IMAGE)
    found = [tracker.update(people(), IMAGE) for _ in range(4)]
    assert [len(one) for one in found] == [1, 1, 0, 0]
    assert found[1].box_scores.item() == pytest.approx(0.7 / 0.9)  # never more than before


def test_nobody_is_found_twice_and_nobody_else_begins_a_track():
    elsewhere, same = people((250.0, 50.0)), people((300.0, 50.0))
    for answer in (elsewhere, same):
        tracker = Tracker(COCO, TrackSettings(propagate=1, oks_threshold=0.1), look=Eyes(answer))
        tracker.update(people((100.0, 50.0), (300.0, 50.0)), IMAGE)
        assert tracker.update(people((300.0, 50.0)), IMAGE).track_ids.tolist() == [1]


def test_who_has_left_the_image_is_not_looked_for():
    eyes = Eyes(people())
    tracker = Tracker(COCO, TrackSettings(propagate=1), look=eyes)
    tracker.update(people((900.0, 50.0)), IMAGE)
    assert len(tracker.update(people(), IMAGE)) == 0
    assert not eyes.boxes


def test_weak_people_and_keypoints_are_left_out():
    """Simple Baselines leaves out boxes below 0.5 and keypoints below 0.4."""
    tracker = Tracker(COCO, TrackSettings(least_box=0.5, least_keypoint=0.4))
    strong, weak = people((0.0, 0.0)), people((200.0, 0.0), box_score=0.49)
    strong.keypoints[0, 3, 2] = 0.39
    found = tracker.update(Instances.concatenate([weak, strong], 17))
    assert len(found) == 1
    assert found.keypoints[0, 3].tolist() == [0, 0, 0]
    assert (found.keypoints[0, [0, 1, 2]] == strong.keypoints[0, [0, 1, 2]]).all()
    assert len(tracker.update(people((0.0, 0.0), score=0.3))) == 0  # of whom nothing is left


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"flow": "farneback"}, "flow must be none or dis, got 'farneback'"),
        ({"propagate": -1}, "propagate is a number of frames, 0 or more, got -1"),
        ({"least_box": -0.1}, "least_box is a score, 0 or more, got -0.1"),
        ({"least_keypoint": float("nan")}, "least_keypoint is a score"),
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        TrackSettings(**wrong)


def test_nobody_is_looked_for_without_eyes():
    with pytest.raises(ValueError, match="propagate looks for people in boxes, which this network cannot"):
        Tracker(COCO, TrackSettings(propagate=1))
