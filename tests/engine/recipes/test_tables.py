"""The override tables: every row is a recipe that builds, and changes what the paper's table changes."""

import pytest
import torch

from posekd.data import CropAugmentation
from posekd.distill import (
    DistilPose,
    DistilPoseSettings,
    FPDSettings,
    FrozenTeacher,
    MAPDSettings,
    SupervisedSettings,
)
from posekd.engine.recipes.configs import list_configs
from posekd.engine.recipes.recipe import read_recipe
from posekd.engine.recipes.tables import read_tables
from posekd.models import create_model, profile_model

FPD, MAPD, DISTILPOSE = read_tables("fpd"), read_tables("mapd"), read_tables("distilpose")


def rows(tables, number):
    return [row for row in tables if row.table == number]


@pytest.mark.parametrize("row", FPD + MAPD, ids=lambda row: f"{row.recipe.split('/')[0]} {row.table} {row.row}")
def test_every_row_is_a_recipe_whose_networks_build(row):
    recipe = row.resolve()
    for settings in filter(None, (recipe.teacher, recipe.student)):
        with torch.device("meta"):
            model = create_model(settings.name, 16, **settings.overrides)
        assert model.spec.size == (256, 256)
    if "parameters" in row.published:  # a student of the published size; the papers round loosely
        profile = profile_model(model)
        assert profile.params / 1e6 == pytest.approx(row.published["parameters"], abs=0.6)
        if "flops" in row.published:
            assert 2 * profile.macs / 1e9 == pytest.approx(row.published["flops"], rel=0.04)
        else:
            assert profile.hrnet_gi == pytest.approx(row.published["gi"], abs=0.1)


def test_fpd_has_the_tables_4_to_8():
    assert [row.table for row in FPD] == ["4"] * 4 + ["5"] * 7 + ["6"] * 2 + ["7"] * 2 + ["8"] * 6 + ["released"] * 3
    methods = [row.resolve().method for row in rows(FPD, "8")]
    assert [method.alpha for method in methods] == [0.0, 0.05, 0.1, 0.5, 0.95, 0.99]
    assert [row.published["PCKh"] for row in rows(FPD, "8")] == [90.1, 90.8, 90.8, 90.9, 90.7, 90.7]
    assert [row.resolve().method.loss for row in rows(FPD, "7")] == ["mse", "cross_entropy"]
    assert {row.resolve().student.name for row in rows(FPD, "4")} == {"hourglass_4x128", "pyranet_4x128"}
    alone, scratch, continued = (row.resolve() for row in rows(FPD, "released"))
    assert alone.method == SupervisedSettings()
    assert alone.student.weights is None
    assert scratch.method == continued.method == FPDSettings(alpha=0.5)
    assert scratch.student.weights is None
    assert continued.student.weights is not None


def test_elpn_has_the_tables_4_to_7():
    assert [row.table for row in MAPD] == ["4"] * 4 + ["5"] * 6 + ["6"] * 4 + ["7"] * 10
    assert [row.resolve().method for row in rows(MAPD, "6")] == [
        MAPDSettings(alpha=0, beta=0),
        MAPDSettings(alpha=0.15, beta=0),
        MAPDSettings(alpha=0, beta=0.075),
        MAPDSettings(alpha=0.15, beta=0.075),
    ]
    assert [row.published["PCKh"] for row in rows(MAPD, "6")] == [78.2, 84.9, 83.6, 86.3]
    alphas = [row.resolve().method.alpha for row in rows(MAPD, "7")]
    assert alphas == pytest.approx([0.05 * i for i in range(10)])
    assert all(row.resolve().method.beta == pytest.approx(row.resolve().method.alpha / 2) for row in rows(MAPD, "7"))


@pytest.mark.parametrize("row", DISTILPOSE, ids=lambda row: f"{row.table} {row.row}")
def test_every_row_of_distilpose_builds_its_method(row):
    recipe = row.resolve()
    with torch.device("meta"):
        student = create_model(recipe.student.name, 17, **recipe.student.overrides)
        teacher = recipe.teacher and FrozenTeacher(create_model(recipe.teacher.name, 17, **recipe.teacher.overrides))
    method = DistilPose(student, teacher, recipe.method)
    assert method.weights().keys() >= {"labels"}
    if "parameters" in row.published:
        said = {
            "scores": True,
            "sigmas": True,
        }  # the paper counts the whole head, for students without distillation too
        with torch.device("meta"):
            profile = profile_model(create_model(recipe.student.name, 17, **said))
        assert profile.params / 1e6 == pytest.approx(row.published["parameters"], abs=0.06)
        assert profile.mmcv / 1e9 == pytest.approx(row.published["mmcv"], abs=0.005)


def test_distilpose_has_its_eight_rows():
    """The slides' table of terms: what each adds to 56.0 AP."""
    terms = rows(DISTILPOSE, "distillation terms")
    weights = [row.resolve().method.taught for row in terms]
    used = [[name for name, weight in w.items() if weight] for w in weights]
    heat, score, keypoint, visual = "simulated_heatmaps", "scores", "keypoint_tokens", "visual_tokens"
    tokens = [keypoint, visual]
    assert used == [[], [heat], [score], [heat, score], [keypoint], [visual], tokens, [heat, score, *tokens]]
    assert [row.published["AP"] for row in terms] == [56.0, 63.2, 56.4, 64.1, 67.1, 61.7, 67.5, 71.6]
    assert [row.resolve().student.overrides.get("scores", True) for row in terms] == [bool(score in u) for u in used]


@pytest.mark.parametrize("size", ["s", "l"])
def test_the_published_recipe_of_distilpose(size):
    """Adam 1e-3, 256 images, 500 steps of warm-up, tenths at 200 and 260 of 300 epochs; 1, 1, 0.01, 5e-4, 5e-4."""
    recipe = read_recipe(f"distilpose/{size}_coco_256x192")
    assert recipe.method == DistilPoseSettings()
    assert recipe.method.taught == {
        "simulated_heatmaps": 1.0, "scores": 0.01, "keypoint_tokens": 5e-4, "visual_tokens": 5e-4
    }  # fmt: skip
    assert (recipe.optim.name, recipe.optim.lr, recipe.optim.weight_decay, recipe.optim.clip_norm) == (
        "adam", 1e-3, 0.0, None
    )  # fmt: skip
    assert (recipe.loader.batch_size, recipe.train.epochs, recipe.schedule.milestones) == (256, 300, (200, 260))
    assert (recipe.schedule.warmup_steps, recipe.schedule.gamma) == (500, 0.1)
    augmentation = recipe.augmentation
    assert (augmentation.flip, augmentation.rotation, augmentation.scale, augmentation.half_body) == (
        0.5,
        45,
        0.35,
        0.3,
    )
    assert recipe.teacher.name == "distilpose_teacher_hrnet_w48"


@pytest.mark.parametrize("student", ["hourglass_8x256", "hourglass_4x128"])
@pytest.mark.parametrize(("data", "epochs"), [("mpii", 130), ("lsp", 70)])
def test_the_papers_recipe_of_fpd(student, data, epochs):
    """RMSProp 2.5e-4, batch 4, 130 epochs on MPII and 70 on LSP; scale 0.75 to 1.25, rotation +-30, flip."""
    folder = "fpd" if student == "hourglass_4x128" else "supervised"
    recipe = read_recipe(f"{folder}/{student}_{data}_256x256")
    assert (recipe.student.name, recipe.train.epochs, recipe.loader.batch_size) == (student, epochs, 4)
    assert (recipe.optim.name, recipe.optim.lr, recipe.schedule.milestones) == ("rmsprop", 2.5e-4, ())
    assert recipe.augmentation == CropAugmentation(
        flip=0.5, rotation=30, scale=0.25, distribution="uniform", rotation_probability=1.0
    )
    if student == "hourglass_4x128":
        assert recipe.method == FPDSettings(alpha=0.5)
        assert recipe.teacher.name == "hourglass_8x256"


def test_the_released_recipe_of_fpd():
    for name in ("supervised/hourglass_fpd_8x256_mpii_256x256", "fpd/hourglass_fpd_4x128_mpii_256x256"):
        recipe = read_recipe(name)
        assert (recipe.optim.name, recipe.optim.lr, recipe.loader.batch_size) == ("adam", 2.5e-4, 4)
        assert (recipe.train.epochs, recipe.schedule.milestones, recipe.schedule.gamma) == (140, (90, 120), 0.1)


@pytest.mark.parametrize("version", ["elpn_v1", "elpn_v2"])
def test_the_published_recipe_of_elpn_on_mpii(version):
    recipe = read_recipe(f"mapd/{version}_mpii_256x256")
    assert recipe.method == MAPDSettings(alpha=0.15, beta=0.075)
    assert (recipe.optim.name, recipe.optim.lr, recipe.loader.batch_size) == ("adam", 1e-3, 32)
    assert (recipe.train.epochs, recipe.schedule.milestones) == (210, (170, 200))
    augmentation = recipe.augmentation
    assert (augmentation.flip, augmentation.rotation, augmentation.scale, augmentation.half_body) == (0.5, 30, 0.4, 0)
    teacher = read_recipe("supervised/hrnet_w32_mpii_256x256")
    assert recipe.teacher.name == teacher.student.name == "hrnet_w32"
    assert (teacher.loader.batch_size, teacher.train.epochs, teacher.augmentation.scale) == (128, 210, 0.25)


def test_tables_are_no_recipes():
    assert not any(name.endswith("/tables") for name in list_configs())
    listed = "distilpose, fpd, mapd, simple, sm"
    with pytest.raises(FileNotFoundError, match=f"no tables of 'supervised'; there are of {listed}"):
        read_tables("supervised")
