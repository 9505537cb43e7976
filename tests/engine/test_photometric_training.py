"""Training with everything of augmentation turned on: the same run with and without workers, of every paradigm."""

from __future__ import annotations

import pytest
from helpers.threads import threads
from helpers.tiny_recipe import TINY_BOTTOM_UP, TINY_NET, tiny_recipe

from posekd.engine.progress import read_log
from posekd.engine.train import train

PEOPLE = {"name": "synthetic", "images": 4, "size": [64, 64], "people": [1, 1]}
LOOKS = {
    "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 20, "greyscale": 0.3, "blur": 0.6, "noise": 0.6,
    "cutout": 0.6, "noise_sigma": [2, 10],
}  # fmt: skip
GROUPING = {**TINY_NET, "modules": [1, 1], "head_dim": 8, "head_mid": 4, "grouping_widths": [4, 8]}
STUDENTS = {
    "top-down": ("elpn_v1", TINY_NET, {"name": "supervised"}),
    "bottom-up": ("higherhrnet_w32", TINY_BOTTOM_UP, {"name": "associative_embedding"}),
    "single network": ("simple_w18", GROUPING, {"name": "simple", "mimic": "labels"}),
}


def losses(folder, name, overrides, method, **changes):
    recipe = tiny_recipe(
        folder, student={"name": name, "overrides": overrides}, method=method, train_data=PEOPLE,
        inference={}, train__validate_every=0, train__epochs=1, **changes,
    )  # fmt: skip
    with threads(1):
        train(recipe)
    return [r["loss"] for r in read_log(folder / "log.jsonl") if r["kind"] == "train"]


@pytest.mark.parametrize("kind", STUDENTS)
def test_the_same_run_with_and_without_workers_and_another_than_without_looks(kind, tmp_path):
    on = {"augmentation": {"vertical_flip": 0.5, "photometric": LOOKS}}
    plain = losses(tmp_path / "plain", *STUDENTS[kind])
    here = losses(tmp_path / "here", *STUDENTS[kind], **on)
    assert len(here) == 2
    assert here != plain
    if kind == "top-down":  # starting workers takes seconds, and they are the same for all
        assert losses(tmp_path / "workers", *STUDENTS[kind], **on, loader={"batch_size": 2, "workers": 1}) == here
