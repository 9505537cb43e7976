"""Where the recipes that come with posekd are."""

from __future__ import annotations

from pathlib import Path

import posekd
from posekd.files import nearest


def config_folder() -> Path:
    """The folder of the shipped recipes: inside the installed package, or beside it in a source tree."""
    package = Path(posekd.__file__).parent
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"the shipped recipes are neither in {package} nor beside it: reinstall posekd")


def list_configs() -> list[str]:
    """Names of the shipped recipes, e.g. `mapd/elpn_v1_coco_256x192`; a `tables.yaml` holds changes to them."""
    folder = config_folder()
    files = (path for path in folder.rglob("*.yaml") if path.name != "tables.yaml")
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in files)


def find_config(name: str) -> Path:
    """The file of a recipe.

    Args:
        name: a path to a YAML file, or the name of a shipped recipe, with or without `.yaml`.

    Raises:
        FileNotFoundError: neither exists; the nearest shipped name is given.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = list_configs()
    wanted = path.with_suffix("").as_posix() if path.suffix == ".yaml" else path.as_posix()
    wanted = wanted.removeprefix("configs/")
    if wanted in shipped:
        return config_folder() / f"{wanted}.yaml"
    raise FileNotFoundError(f"there is no recipe {name!r}, neither a file nor a shipped name{nearest(wanted, shipped)}")
