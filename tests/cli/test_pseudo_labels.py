"""`posekd predict --save-labels`: a teacher's poses as labels, and a student that is trained from them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from helpers.checkpoints import checkpoint
from helpers.pictures import write_pictures
from helpers.tiny_recipe import TINY_NET, tiny_recipe
from torch import nn

from posekd.bridging import KEYPOINT_SETS
from posekd.cli import main
from posekd.data.sources.coco import CocoKeypoints
from posekd.engine.progress import read_log
from posekd.engine.recipes.recipe import recipe_to_dict
from posekd.engine.train import train
from posekd.structures import InputSpec


class Teacher(nn.Module):
    """Halpe's 26 keypoints, with a peak of 1 at each."""

    spec, keypoint_names = InputSpec((64, 64)), KEYPOINT_SETS["halpe26"]

    def forward(self, images):
        maps = images.new_zeros(len(images), 26, 16, 16)
        for k in range(26):
            maps[:, k, 2 + k // 2, 3 + k % 10] = 1 if k else 0.1  # the nose is not sure
        return maps


def factory() -> nn.Module:
    return Teacher()


def teacher_recipe(folder):
    teacher = {"name": "torch", "factory": f"{__name__}:factory"}
    made = tiny_recipe(
        folder / "unused",
        teacher=teacher,
        train_data={"name": "synthetic"},
        train__validate_every=0,
        method={"name": "mapd"},
    )
    (folder / "teacher.yaml").write_text(yaml.safe_dump(recipe_to_dict(made)))
    return "teacher.yaml"


@pytest.mark.parametrize("kind", ["own", "foreign"])
def test_a_student_is_trained_from_a_teachers_poses(tmp_path, monkeypatch, capsys, kind):
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "images", 3)
    boxes = [{"image_id": f"{i:03}", "bbox": [8, 4, 40, 40], "score": 0.9} for i in range(3)]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    own = kind == "own"
    model = str(checkpoint(tmp_path / "teacher")) if own else teacher_recipe(tmp_path)
    words = ["images", "--boxes", "boxes.json", "--save-labels", "pseudo.json", "--results", "found.json"]
    assert main(["predict", model, *words, "--device", "cpu", *(["--keypoint-threshold", "-9"] if own else [])]) == 0
    labels = json.loads((tmp_path / "pseudo.json").read_text())
    assert len(labels["annotations"]) == 3
    assert all(len(a["keypoint_scores"]) > 0 and "score" in a for a in labels["annotations"])

    settings = {"name": "coco", "images": "images", "annotations": "pseudo.json"}
    student = {"name": "elpn_v1", "overrides": TINY_NET}
    recipe = tiny_recipe(tmp_path / "run", student=student, train_data=settings, train__validate_every=0)
    records = CocoKeypoints(recipe.train_data).records
    found = np.reshape([r["keypoints"] for r in json.loads((tmp_path / "found.json").read_text())], (3, -1, 3))
    seen = records.keypoints[..., 2] > 0
    np.testing.assert_allclose(records.keypoints[..., :2][seen], found[..., :2][seen], atol=0.006)
    if not own:
        assert records.skeleton.keypoints == KEYPOINT_SETS["halpe26"]
        assert seen[0].tolist() == [False] + [True] * 25  # what the teacher doubts is no label
    train(recipe)
    assert all(np.isfinite(r["loss"]) for r in read_log(tmp_path / "run" / "log.jsonl") if r["kind"] == "train")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "64", "64"], "--size: teacher.yaml says what its teacher is, in `teacher`"),
        (["--skeleton", "coco"], "--skeleton: teacher.yaml says"),
    ],
)
def test_options_that_the_recipe_answers(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "images", 1)
    teacher_recipe(tmp_path)
    assert main(["predict", "teacher.yaml", "images", *words]) == 2
    assert message in capsys.readouterr().err
