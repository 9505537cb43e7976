"""Synthetic videos: identities, exact labels, and PoseTrack's files of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from posekd.data.sources.posetrack import PoseTrackVideos
from posekd.data.synthetic import SyntheticVideos, SyntheticVideoSettings, render_video, write_posetrack
from posekd.metrics import evaluate_posetrack
from posekd.metrics.posetrack import frames_of
from posekd.skeleton import POSETRACK

SMALL = SyntheticVideoSettings(videos=2, frames=4, size=(96, 128), people=(2, 3))


def test_the_same_video_every_time():
    first, images = render_video(SMALL, 1)
    again, others = render_video(replace(SMALL, videos=9), 1)
    assert [f.image_id for f in first.frames] == [f.image_id for f in again.frames]
    np.testing.assert_array_equal(images, others)
    assert not np.array_equal(images[0], images[1])
    for other in (replace(SMALL, seed=1), replace(SMALL, split="val")):
        assert not np.array_equal(images[0], render_video(other, 1)[1][0])


def test_frames_drawn_anew_are_those_that_were_kept():
    kept, drawn = SyntheticVideos(SMALL), SyntheticVideos(replace(SMALL, keep_images=False))
    for row in (0, 5):
        np.testing.assert_array_equal(kept.load_image(row), drawn.load_image(row))
    assert kept.records.videos.tolist() == [0] * 4 + [1] * 4
    assert kept.image_name(5) == "synthetic train video 1 frame 1 (seed 0)"


def test_people_move_and_keep_their_tracks():
    """Some pixels from frame to frame, and never a fifth of the width."""
    moved = []
    for video in SyntheticVideos(replace(SMALL, videos=4)).videos:
        for before, after in zip(video.frames, video.frames[1:], strict=False):
            last = {p.track: p for p in before.people}
            for p in after.people:
                if p.track in last:
                    both = p.there & last[p.track].there
                    moved.append(np.linalg.norm(p.points[both] - last[p.track].points[both], axis=1).max())
    assert len(moved) > 20
    assert 1 < np.median(moved) < 20
    assert max(moved) < 0.2 * 128


def test_neck_and_head_top_are_labelled_and_ears_are_not():
    for frame in SyntheticVideos(SMALL).videos[0].frames:
        for p in frame.people:
            nose, neck, top = (POSETRACK.keypoints.index(name) for name in ("nose", "head_bottom", "head_top"))
            assert not p.there[3:5].any()
            if p.there[[neck, top]].all():
                assert p.head is not None
                x, y, w, h = p.head
                assert np.linalg.norm(p.points[top] - p.points[neck]) < 1.5 * h
                if p.there[nose]:
                    assert (np.abs(p.points[nose] - (x + w / 2, y + h / 2)) < (w, h)).all()


def test_labels_score_full_marks():
    truth = [frames_of(video) for video in SyntheticVideos(SMALL).videos]
    found = evaluate_posetrack(truth, truth)
    assert found.MOTA[-1] == 100
    assert found.AP[-1] == pytest.approx(100)


def test_written_files_read_the_same(tmp_path):
    source = SyntheticVideos(SMALL)
    again = PoseTrackVideos(write_posetrack(tmp_path, SMALL, keep_images="all"))
    assert [v.name for v in again.videos] == [v.name for v in source.videos]
    for name in ("keypoints", "image_ids", "image_sizes", "image_rows", "videos"):
        np.testing.assert_allclose(getattr(again.records, name), getattr(source.records, name), atol=2e-3)
    assert again.records.boxes.shape == source.records.boxes.shape
    assert np.abs(again.load_image(2).astype(int) - source.load_image(2)).mean() < 6  # JPEG


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"videos": 0}, "videos must be 1 or more, got 0"),
        ({"frames": 0}, "frames must be 1 or more, got 0"),
        ({"people": (0, 2)}, "people must be two numbers"),
        ({"speed": -1.0}, "speed is a share of the width"),
        ({"split": "test"}, "split must be 'train' or 'val'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        SyntheticVideoSettings(**wrong)
