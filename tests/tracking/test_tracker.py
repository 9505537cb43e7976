"""Tracks keep their numbers while people cross, leave and come back; the One-Euro filter is the paper's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.pictures import picture

from posekd.deploy.frames import Clip, Frame
from posekd.deploy.predict import Found
from posekd.deploy.tracking import OneEuro, Tracker, TrackSettings, tracked
from posekd.skeleton import COCO
from posekd.structures import Instances


def at(*places: float, score: float = 0.9) -> Instances:
    """People standing at these x, 100 pixels high, in a random order of their own."""
    body = torch.from_numpy(np.random.default_rng(0).uniform(0, 100, (17, 2))).float() * torch.tensor([0.4, 1.0])
    keypoints = torch.stack([torch.cat((body + torch.tensor([x, 0.0]), torch.full((17, 1), score)), 1) for x in places])
    count = len(places)
    one, ids = torch.ones(count), torch.zeros(count, dtype=torch.int64)
    return Instances(keypoints, one, torch.zeros(count, 4), one, 4000 * one, ids, ids)


def numbers(tracker: Tracker, *places: float, **changes) -> list[int]:
    people = at(*places, **changes) if places else at(0.0).take([])
    return tracker.update(people).track_ids.tolist()


def test_people_keep_their_numbers_in_whatever_order_they_come():
    tracker = Tracker(COCO, TrackSettings())
    assert numbers(tracker, 0, 100) == [0, 1]
    assert numbers(tracker, 104, 4) == [1, 0]
    assert numbers(tracker, 300, 8, 108) == [2, 0, 1]


def test_the_likest_pair_is_made_first():
    tracker = Tracker(COCO, TrackSettings(oks_threshold=0.05))
    numbers(tracker, 0)
    assert numbers(tracker, 12, 2) == [1, 0]


def test_a_track_waits_for_a_while():
    tracker = Tracker(COCO, TrackSettings(keep=2))
    assert numbers(tracker, 0) == [0]
    assert [numbers(tracker), numbers(tracker)] == [[], []]
    assert numbers(tracker, 1) == [0]
    for _ in range(3):
        numbers(tracker)
    assert numbers(tracker, 1) == [1]


def test_unsure_keypoints_match_nobody():
    tracker = Tracker(COCO, TrackSettings(keypoint_threshold=0.2))
    numbers(tracker, 0)
    assert numbers(tracker, 0, score=0.1) == [1]


def test_the_filter_follows_the_paper_s_equations():
    # Casiez et al. 2012, algorithm 1, written out for two points and three frames at 10 Hz
    rate, min_cutoff, beta = 10.0, 1.0, 0.1
    xs = [[0.0, 5.0], [2.0, 5.0], [3.0, 9.0]]
    one_euro = OneEuro(rate, min_cutoff, beta)
    found = [one_euro(np.array([[x, 0.0] for x in row]), np.ones(2, bool))[:, 0].tolist() for row in xs]

    def alpha(cutoff: float) -> float:
        tau = 1 / (2 * math.pi * cutoff)
        return 1 / (1 + tau * rate)

    for point in range(2):
        value, speed = xs[0][point], 0.0
        assert found[0][point] == value
        for step in (1, 2):
            now = (xs[step][point] - value) * rate
            speed = alpha(1.0) * now + (1 - alpha(1.0)) * speed
            a = alpha(min_cutoff + beta * abs(speed))
            value = a * xs[step][point] + (1 - a) * value
            assert found[step][point] == pytest.approx(value)


def test_smoothing_calms_a_still_person_and_starts_anew_after_a_gap():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, (200, 17, 2))
    one_euro = OneEuro(25.0, 1.0, 0.0)
    seen = np.ones(17, bool)
    calm = np.array([one_euro(frame, seen) for frame in noise])
    assert calm[50:].std() < 0.5 * noise.std()
    seen[3] = False
    one_euro(noise[0], seen)
    seen[3] = True
    assert one_euro(np.full((17, 2), 100.0), seen)[3].tolist() == [100.0, 100.0]


def test_each_clip_has_numbers_of_its_own():
    def clip(name):
        return Clip(name, lambda threads: iter(()), 2, 25.0)

    a, b = clip("a"), clip("b")
    found = [Found(c, Frame("", i, picture(0)), i, at(0.0, 200.0)) for c in (a, b) for i in range(2)]
    settings = TrackSettings(smooth=True)
    assert [one.people.track_ids.tolist() for one in tracked(found, COCO, settings)] == [[0, 1]] * 4


@pytest.mark.parametrize("wrong", [{"oks_threshold": 1.0}, {"keep": -1}, {"min_cutoff": 0.0}, {"beta": -1.0}])
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrackSettings(**wrong)
