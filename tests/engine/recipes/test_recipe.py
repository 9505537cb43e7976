"""Recipes: composed of typed settings, and refused in words when something is wrong."""

import pytest
import yaml

from posekd.data import CocoSettings
from posekd.distill import METHODS, FPDSettings, MAPDSettings, SupervisedSettings
from posekd.engine.recipes.configs import find_config, list_configs
from posekd.engine.recipes.recipe import read_recipe, recipe_from_dict, recipe_to_dict

MINIMAL = {
    "student": {"name": "elpn_v1"},
    "method": {"name": "supervised"},
    "train_data": {"name": "synthetic", "images": 8},
    "train": {"validate_every": 0},
}


@pytest.fixture
def write(tmp_path):
    def write(**changes):
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({**MINIMAL, **changes}))
        return str(path)

    return write


def test_a_recipe_survives_the_way_through_yaml():
    recipe = recipe_from_dict(MINIMAL)
    assert recipe_from_dict(yaml.safe_load(yaml.safe_dump(recipe_to_dict(recipe)))) == recipe


@pytest.mark.parametrize("name", list_configs())
def test_every_shipped_recipe_is_valid(name):
    """A folder is a method; bottom-up and token teachers, and those of tiny configurations, stand beside their
    students."""
    method, folder = recipe_to_dict(read_recipe(name))["method"]["name"], name.split("/")[0]
    teachers = {("associative_embedding", "smallerhrnet"), ("supervised", "distilpose"), ("supervised", "simple")}
    assert method == folder or (method, folder) in teachers


@pytest.mark.parametrize("version", ["elpn_v1", "elpn_v2"])
def test_elpn_on_coco_is_the_published_recipe(version):
    """ELPN, section 4: Adam 1e-3, x 0.1 at 170 and 200 of 210 epochs, batch 32, flip .5, rotation 40, scale .3."""
    recipe = read_recipe(f"mapd/{version}_coco_256x192")
    assert recipe.method == MAPDSettings(alpha=0.15, beta=0.075, temperature=1.0, sigma=2.0)
    assert (recipe.student.name, recipe.teacher.name) == (version, "hrnet_w32")
    assert (recipe.optim.name, recipe.optim.lr, recipe.optim.weight_decay) == ("adam", 1e-3, 0.0)
    assert (recipe.schedule.milestones, recipe.schedule.gamma, recipe.train.epochs) == ((170, 200), 0.1, 210)
    assert (recipe.loader.batch_size, recipe.train.accumulate) == (32, 1)
    augmentation = recipe.augmentation
    assert (augmentation.flip, augmentation.rotation, augmentation.scale, augmentation.half_body) == (0.5, 40, 0.3, 0)


def test_overrides_change_one_key_and_leave_its_neighbours(write):
    path = write(optim={"name": "sgd", "lr": 0.5})
    recipe = read_recipe(path, ["--optim.lr", "1e-3", "--train.epochs=3", "--student.overrides", "{width: 8}"])
    assert (recipe.optim.name, recipe.optim.lr, recipe.train.epochs) == ("sgd", 1e-3, 3)
    assert recipe.student.overrides == {"width": 8}


def test_another_method_is_a_one_word_change():
    """The file's alpha and beta belong to the old name, and go with it, aloud."""
    with pytest.warns(
        UserWarning, match=r"method.name is supervised now.*dropped: method.alpha 0.15, method.beta 0.07"
    ):
        recipe = read_recipe("mapd/elpn_v1_coco_256x192", ["--method.name", "supervised"])
    assert recipe.method == SupervisedSettings()
    assert isinstance(recipe.train_data, CocoSettings)


def test_keys_that_both_names_have_keep_their_values(recwarn):
    """The quickstart draws its labels with sigma 1, whatever the method."""
    recipe = read_recipe("mapd/quickstart", ["--method.name", "fpd", "--val_data.name", "synthetic"])
    assert recipe.method.sigma == 1.0
    assert FPDSettings().sigma != 1.0
    assert recipe.val_data.images == 250
    (told,) = (str(w.message) for w in recwarn)
    assert told.endswith("dropped: method.beta 0.075; kept: method.alpha 0.15, method.sigma 1.0")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": {"lrr": 1.0}}, "unknown key 'optim.lrr'; did you mean 'lr'?"),
        ({"studnet": {}}, "unknown key 'studnet'; did you mean 'student'?"),
        ({"method": {"name": "mapd", "alhpa": 0.1}}, "unknown key 'method.alhpa'; did you mean 'alpha'?"),
        ({"method": {"name": "madp"}}, "method.name: unknown 'madp'; did you mean 'mapd'?"),
        ({"method": {"name": "supervised", "alpha": 0.1}}, "unknown key 'method.alpha'; valid: kind, sigma"),
        ({"method": {}}, f"method.name is missing; valid: {', '.join(sorted(METHODS))}"),
        ({"train_data": {"name": "synthetic", "image": 8}}, "unknown key 'train_data.image'; did you mean 'images'?"),
        ({"train_data": {"name": "coco", "images": "x"}}, "train_data.annotations is missing; it must be text"),
        ({"optim": {"lr": "fast"}}, "optim.lr must be a number, got 'fast'"),
        ({"optim": {"lr": None}}, "optim.lr is empty; it must be a number"),
        ({"optim": 3}, "optim must be a group of settings, got 3"),
        ({"optim": {"name": "lion"}}, "optim.name must be one of 'adam', 'adamw', 'sgd', 'rmsprop', got 'lion'"),
        ({"optim": {"betas": [0.9]}}, "optim.betas must be a list of 2 numbers, got [0.9]"),
        ({"train": {"epochs": 2.5}}, "train.epochs must be a whole number, got 2.5"),
        ({"optim": {"lr": -1.0}}, "optim.lr must be positive, got -1.0"),
        ({"loader": {"batch_size": 5}, "train": {"accumulate": 2, "validate_every": 0}}, "does not divide"),
        ({"train": {}}, "no val_data to validate on"),
        (
            {"labels": {"images": 4}},
            "learns nothing from persons without labels: give it a method.unlabelled_weight above 0 (fpd and mapd ",
        ),
        ({"unlabelled_data": {"name": "synthetic"}}, "and unlabelled_data to null"),
        (
            {"labels": {"images": 4}, "method": {"name": "fpd", "alpha": 0.0}},
            "method.alpha is 0, plain training that asks no teacher, so nothing can be learnt from persons without",
        ),
        ({"labels": {"images": 0, "others": "left_out"}}, "labels.images must be 1 or more, got 0"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_the_file(write, changes, message):
    path = write(**changes)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole text is checked)
        read_recipe(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optim.lrr", "1"], "unknown key 'optim.lrr'; did you mean 'lr'?"),
        (["--optim.lr", "fast"], "optim.lr must be a number, got 'fast'"),
        (["--optim.lr"], "--optim.lr needs a value"),
        (["--seed.value", "1"], "seed is a value, not a group"),
        (["loud"], "'loud' is not an option"),
    ],
)
def test_a_mistake_on_the_command_line_is_named_as_such(write, words, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_recipe(write(seed=1), words)
    assert str(caught.value).startswith("command line: ")
    assert message in str(caught.value)


def test_broken_yaml_names_the_file(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("optim: {lr: 1")
    with pytest.raises(ValueError, match=r"broken\.yaml: not valid YAML"):
        read_recipe(str(path))


def test_shipped_recipes_are_found_by_name_and_near_misses_are_helped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = find_config("mapd/elpn_v1_coco_256x192")
    assert path == find_config("configs/mapd/elpn_v1_coco_256x192.yaml")
    with pytest.raises(FileNotFoundError, match="did you mean 'mapd/elpn_v1_coco_256x192'"):
        find_config("mapd/elpn_v1_coco_256x129")
