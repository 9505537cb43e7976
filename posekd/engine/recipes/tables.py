"""The papers' ablation tables, as changes to shipped recipes: `configs/<method>/tables.yaml`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from posekd.engine.recipes.configs import config_folder
from posekd.engine.recipes.recipe import Recipe, read_recipe


@dataclass(frozen=True)
class Row:
    """A line of a published table.

    Attributes:
        table: number or name of the table.
        row: text of its first column.
        recipe: name of a shipped recipe.
        overrides: dotted key of the recipe to its value.
        published: the numbers that the paper prints; None if they are not transcribed.
    """

    table: str
    row: str
    recipe: str
    overrides: Mapping[str, Any]
    published: Mapping[str, float | None]

    @property
    def words(self) -> list[str]:
        """The overrides as `posekd train` takes them."""
        return [f"--{key}={json.dumps(value)}" for key, value in self.overrides.items()]

    def resolve(self) -> Recipe:
        """The recipe of this row.

        Raises:
            ValueError: an override does not fit the recipe.
        """
        return read_recipe(self.recipe, self.words)


def read_tables(method: str) -> list[Row]:
    """The rows of a method's tables, in the papers' order.

    Args:
        method: the folder in `configs/`, e.g. `fpd`.

    Raises:
        FileNotFoundError: there are no tables of this method.
    """
    path = config_folder() / method / "tables.yaml"
    if not path.is_file():
        known = sorted(p.parent.name for p in config_folder().glob("*/tables.yaml"))
        raise FileNotFoundError(f"there are no tables of {method!r}; there are of {', '.join(known)}")
    tables = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [
        Row(str(table["table"]), row["row"], row.get("recipe", table["recipe"]), row["overrides"], row["published"])
        for table in tables
        for row in table["rows"]
    ]
