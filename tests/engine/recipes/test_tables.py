"""The override tables: every row is a recipe that builds, and changes what the paper's table changes."""

import pytest
import torch

from posekd.data import CropAugmentation
from posekd.distill import FPDSettings, MAPDSettings, SupervisedSettings
from posekd.engine.recipes.configs import list_configs
from posekd.engine.recipes.recipe import read_recipe
from posekd.engine.recipes.tables import read_tables
from posekd.models import create_model, profile_model

FPD, MAPD = read_tables("fpd"), read_tables("mapd")


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
    with pytest.raises(
        FileNotFoundError, match="no tables of 'supervised'; there are of fpd, mapd, simple, smallerhrnet"
    ):
        read_tables("supervised")
