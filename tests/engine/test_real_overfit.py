"""Real pictures through the ordinary command: a small net learns twelve of them by heart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posekd.cli import main


def first_images(annotations: Path, count: int = 12) -> list[int]:
    """The first images, by id, with two labelled persons or more."""
    people: dict[int, int] = {}
    for person in json.loads(annotations.read_text())["annotations"]:
        if person["num_keypoints"] > 0 and not person["iscrowd"]:
            people[person["image_id"]] = people.get(person["image_id"], 0) + 1
    return sorted(image for image, number in people.items() if number >= 2)[:count]


@pytest.mark.slow
@pytest.mark.data
def test_posekd_train_overfits_twelve_real_pictures(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "coco" / "coco-mini"
    labels = folder / "annotations" / "person_keypoints_train2017.json"
    ids = first_images(labels)
    assert len(ids) == 12
    words = {
        # ELPN cut down; continuous targets and DARK, because a 40x32 map cannot hold rounded centres exactly enough;
        # wider crops, because some labelled joints lie outside the usual ones.
        "student.name": "elpn_v1",
        "student.backbone": "null",
        "student.overrides": "{size: [160, 128], width: 24, modules: [1, 1, 1], blocks: 1, stem_width: 32, "
        "stage1_width: 16, stage1_blocks: 1}",
        "method.kind": "exact",
        "method.sigma": "1.5",
        "eval.decode": "dark",
        "eval.flip": "false",
        "loader.padding": "1.5",
        "loader.batch_size": "21",
        "loader.workers": "0",
        "loader.cache_images": "true",
        "loader.pin_memory": "false",
        "optim.lr": "0.004",
        "schedule.milestones": "[140, 180]",
        "train.epochs": "200",
        "train.precision": "fp32",
        "train.channels_last": "true",
        "train.validate_every": "100",
        "train.checkpoint_every": "100",
        **{f"augmentation.{name}": "0" for name in ("flip", "rotation", "scale", "half_body")},
        **{f"{split}_data.images": str(folder / "train2017") for split in ("train", "val")},
        **{f"{split}_data.annotations": str(labels) for split in ("train", "val")},
        **{f"{split}_data.image_ids": str(ids) for split in ("train", "val")},
        "out": str(tmp_path / "run"),
    }
    options = [word for key, value in words.items() for word in (f"--{key}", value)]
    assert main(["train", "supervised/hrnet_w32_coco_256x192", *options]) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    scores = [record for record in records if record["kind"] == "validation"]
    assert scores[-1]["AP"] >= 0.9, scores
