"""Documents and recipes: what they point to is there, and the recipe keys that they name exist."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

import posekd
from posekd import ops
from posekd.cli import COMMANDS
from posekd.engine.recipes.recipe import CHOICES, ModelSettings, Recipe, TeacherSettings
from posekd.engine.recipes.schema import group_of, hints_of
from posekd.paradigms import PARADIGMS
from posekd.renames import RENAMED

ROOT = Path(__file__).parents[1]
GENERATED = ("commands.md", "recipe_keys.md", "api.md", "ops.md")  # by docs/generate.py, when the site is built
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
PATH = re.compile(
    r"(?<![\w/.])((?:docs|posekd|tests|benchmarks|configs|csrc)/[\w./-]*\.(?:md|py|yaml|h|cpp|cuh?|png|jpg))"
)
KEY = re.compile(r"`([a-z_]+)\.([a-z_]+)(?:[:= ][^`]*)?`")


def lines_of(file: Path) -> Iterator[tuple[int, str]]:
    return enumerate(file.read_text(encoding="utf-8").splitlines(), 1)


def recipe_keys() -> dict[str, set[str]]:
    """Group of a recipe -> its keys, of whatever dataclass its name or the paradigm chooses."""
    groups = {name: group_of(hint) for name, hint in hints_of(Recipe).items()}
    kinds = {name: [kind] for name, kind in groups.items() if kind is not None}
    kinds |= {group: list(choices.values()) for group, choices in CHOICES.items()}
    kinds |= {g: [getattr(p, g) for p in PARADIGMS.values()] for g in ("augmentation", "inference")}
    kinds["student"], kinds["teacher"] = [ModelSettings], [TeacherSettings]
    return {group: {"name"} | {f.name for kind in found for f in fields(kind)} for group, found in kinds.items()}


@pytest.mark.skipif(not (ROOT / "README.md").is_file(), reason="not in a checkout")
@pytest.mark.parametrize("file", DOCS + RECIPES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_what_a_document_points_to_is_there(file):
    missing = []
    for number, line in lines_of(file):
        targets = [file.parent / target for target in LINK.findall(line)] if file.suffix == ".md" else []
        targets += [ROOT / path for path in PATH.findall(line)]
        written = [target for target in targets if target.name not in GENERATED or target.parent != ROOT / "docs"]
        missing += [f"line {number}: {target}" for target in written if not target.exists()]
    assert not missing


@pytest.mark.skipif(not (ROOT / "README.md").is_file(), reason="not in a checkout")
@pytest.mark.parametrize("file", DOCS + RECIPES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_recipe_keys_in_backticks_exist(file):
    if file.name == "CHANGELOG.md":
        pytest.skip("it lists the old names")
    keys, old = recipe_keys(), {key for key in RENAMED if "." in key}
    wrong = [
        f"line {number}: {group}.{key}"
        for number, line in lines_of(file)
        for group, key in KEY.findall(line)
        if key not in ("json", "yaml", "mat", "py")  # a file
        and (group == "eval" or f"{group}.{key}" in old or key not in keys.get(group, (key,)))
    ]
    assert not wrong


@pytest.mark.skipif(not (ROOT / "mkdocs.yml").is_file(), reason="not in a checkout")
def test_every_page_has_its_place_on_the_site():
    """As `mkdocs build --strict` demands, which takes longer."""
    places = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert [page for page in (*pages, *GENERATED) if f": {page}\n" not in places] == []


@pytest.fixture(scope="module")
def generate():
    """The hook that writes pages from the code."""
    if not (ROOT / "docs" / "generate.py").is_file():
        pytest.skip("not in a checkout")
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestPagesFromTheCode:
    def test_names(self, generate):
        assert tuple(generate.PAGES) == GENERATED

    def test_every_command_says_what_its_options_are(self, generate):
        page = generate.commands()
        for name in COMMANDS:
            assert f"\n## posekd {name}\n" in page
            assert f"usage: posekd {name}" in page

    def test_every_key_of_a_recipe_has_type_default_and_meaning(self, generate):
        page = generate.recipe_keys()
        keys = {key for found in recipe_keys().values() for key in found} - {"name"}
        assert [key for key in sorted(keys) if f"| `{key}` | " not in page] == []
        assert "| `warmup_steps` | a whole number | `0` | " in page
        assert "\n## augmentation.photometric\n" in page
        assert "| `hue` | a number | `0.0` | largest turn of the hue in degrees, drawn evenly on both sides" in page

    def test_all_that_is_public_is_named(self, generate):
        for page, module in ((generate.op_pages(), ops), (generate.api(), posekd)):
            named = {line.rpartition(".")[2] for line in page.splitlines() if line.startswith("::: ")}
            assert set(module.__all__) - {"ops", "__version__"} <= named
        assert generate.home("posekd.ops.oks") == "posekd.ops.oks.oks"

    def test_a_key_without_an_explanation_is_an_error(self, generate):
        @dataclass
        class Silent:
            """Says nothing."""

            width: int = 3

        with pytest.raises(ValueError, match="Silent: the docstring does not explain width"):
            generate.table(Silent)


def test_the_checks_see_what_is_wrong():
    assert LINK.findall("[a](b.md) [c](https://d.e) [f](#g)") == ["b.md"]
    assert PATH.findall("see docs/no.md and `posekd/x/y.py`, not /docs/z.md") == ["docs/no.md", "posekd/x/y.py"]
    assert KEY.findall("`method.unlabelled: 1` and `train.epochs`") == [("method", "unlabelled"), ("train", "epochs")]
    assert "unlabelled" not in recipe_keys()["method"]
    assert {"flip_test", "search_border"} <= recipe_keys()["inference"]
