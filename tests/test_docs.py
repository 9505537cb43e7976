"""The pages and recipes name only files, links and recipe keys that exist."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from posekd.engine.recipes.recipe import CHOICES, Recipe
from posekd.engine.recipes.renames import RENAMED
from posekd.engine.recipes.schema import group_of, hints_of
from posekd.paradigms import PARADIGMS

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")
PATH = re.compile(r"(?<![\w./-])(?:docs|posekd|tests|benchmarks|configs|csrc)/[\w./*<>-]*")
WRITTEN = re.compile(r"--json \S+")  # files that a command on the page writes
CODE = re.compile(r"`[^`]+`")
KEY = re.compile(r"(?<![\w./])(?:--)?([a-z_]+)\.([a-z_]+)(?![\w(/])")
SUFFIXES = {"py", "md", "yaml", "json", "jsonl", "mat", "png", "safetensors"}  # `train.py` is a file, not a key


def pages() -> list[Path]:
    """The pages and recipes of the source tree."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("configs/**/*.yaml")]
    return sorted(page for page in found if page.is_file())


@functools.cache
def recipe_keys() -> dict[str, set[str]]:
    """Group of a recipe -> its keys, whatever the method, the dataset and the paradigm."""
    keys: dict[str, set[str]] = {}
    for name, hint in hints_of(Recipe).items():
        kinds = [*CHOICES.get(name, {}).values()]
        kinds += [getattr(paradigm, name) for paradigm in PARADIGMS.values() if name in ("augmentation", "inference")]
        kinds += [group] if (group := group_of(hint)) is not None else []
        known = {f.name for kind in kinds if is_dataclass(kind) for f in fields(kind)}
        if known:
            keys[name] = known | ({"name"} if name in CHOICES else set())
    return keys


def wrong_links(line: str, page: Path) -> Iterator[str]:
    """Relative links of a line that lead nowhere."""
    for target in LINK.findall(line):
        if not (page.parent / target).exists():
            yield f"link to {target}"


def wrong_paths(line: str) -> Iterator[str]:
    """Paths in a line that do not exist; `<name>` and `*` stand for any name."""
    for path in PATH.findall(WRITTEN.sub("", line)):
        pattern = re.sub(r"<\w+>", "*", path.rstrip("./-"))
        if not any(ROOT.glob(pattern)):
            yield f"path {path}"


def wrong_keys(line: str) -> Iterator[str]:
    """Recipe keys in back-ticks that no recipe has, old names among them."""
    keys, old_groups = recipe_keys(), {old for old in RENAMED if "." not in old}
    for group, key in KEY.findall(" ".join(CODE.findall(line))):
        if key in SUFFIXES or group not in keys.keys() | old_groups:
            continue
        if key not in keys.get(group, set()):
            yield f"recipe key {group}.{key}"


def wrong_in(page: Path) -> list[str]:
    """`file:line: what` of everything wrong on a page."""
    found = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        wrong = [*wrong_links(line, page), *wrong_paths(line), *wrong_keys(line)]
        found += [f"{page.relative_to(ROOT)}:{number}: {what} does not exist" for what in wrong]
    return found


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_names_only_what_exists(page: Path) -> None:
    assert wrong_in(page) == []


def test_finds_what_is_wrong(tmp_path: Path) -> None:
    """A link, a path, an old group, an old key and a misspelt one are found; their right forms are not."""
    page = tmp_path / "page.md"
    page.write_text("")
    right = "[a](page.md#top) `posekd/engine/*.py` docs/gpu.md `--inference.max_people 30` `train.py` `optim.lr: 0.1`"
    wrong = "[a](gone.md) posekd/engine/gone.py `eval.max_people` `inference.flip` `--loader.batchsize 3`"
    assert [*wrong_links(right, page), *wrong_paths(right), *wrong_keys(right)] == []
    assert [*wrong_links(wrong, page), *wrong_paths(wrong), *wrong_keys(wrong)] == [
        "link to gone.md",
        "path posekd/engine/gone.py",
        "recipe key eval.max_people",
        "recipe key inference.flip",
        "recipe key loader.batchsize",
    ]
