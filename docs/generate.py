"""Pages that the code writes: every command's help, every key of a recipe, the API. A hook of MkDocs (mkdocs.yml).

What has no explanation in the sources is an error here, so the site cannot be built without it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

import posekd
from posekd import ops
from posekd.cli import COMMANDS
from posekd.cli import main as run_command
from posekd.engine.recipes.recipe import CHOICES, Recipe
from posekd.engine.recipes.schema import describe, group_of, hints_of
from posekd.paradigms import PARADIGMS

WIDTH = "110"  # columns of a help text
MORE = (
    "posekd.deploy.predict.predict",
    "posekd.deploy.predict.stream",
    "posekd.deploy.export.export_onnx",
    "posekd.data.CropAugmentation",
    "posekd.data.ImageAugmentation",
    "posekd.data.Photometric",
    "posekd.data.color_matrix",
)


def on_files(files: Any, config: Any) -> Any:
    """MkDocs' event: adds the pages."""
    from mkdocs.structure.files import File

    for name, write in PAGES.items():
        files.append(File.generated(config, name, content=write()))
    return files


def commands() -> str:
    """What each command says about itself."""
    parts = ["# Commands\n", *(f"- [`posekd {name}`](#posekd-{name}): {text}" for name, text in COMMANDS.items())]
    for name in COMMANDS:
        parts.append(f"\n## posekd {name}\n\n```text\n{help_of(name)}\n```")
    return "\n".join(parts) + "\n"


def help_of(name: str) -> str:
    """The output of `posekd NAME --help`."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDTH
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
            run_command([name, "--help"])
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    text = out.getvalue().strip()
    if not text.startswith("usage:"):
        raise ValueError(f"posekd {name} --help says {text[:80]!r}")
    return text


def recipe_keys() -> str:
    """Tables of all keys of a recipe, one for each group and each of its kinds."""
    parts = [
        "# Recipe keys\n",
        "A recipe is a YAML file ([an example](own_keypoints.md)); every key can be overridden on the command line, as "
        "`--optim.lr 0.001`. `posekd train CONFIG --show` prints a recipe with every key spelt out. Files may describe "
        "several runs under `runs`, chosen by `--run`.\n",
        table(Recipe),
    ]
    for title, kind in dict(kinds()).items():
        parts.append(f"\n## {title}\n\n{table(kind)}")
    return "\n".join(parts) + "\n"


def kinds() -> Iterator[tuple[str, type]]:
    """Title and dataclass of every group, of whatever a name or a paradigm chooses."""
    followed = {"augmentation": "augmentation", "inference": "inference"}
    for key, hint in hints_of(Recipe).items():
        if key in CHOICES:
            if key in ("val_data", "unlabelled_data"):  # as train_data
                continue
            for name, kind in CHOICES[key].items():
                yield f"{key}: {{name: {name}}}", kind
        elif key in followed:
            found: dict[type, list[str]] = {}
            for paradigm in PARADIGMS.values():
                found.setdefault(getattr(paradigm, key), []).append(paradigm.title)
            for kind, titles in found.items():
                yield f"{key} ({', '.join(titles)})", kind
                yield from _inner(key, kind)
        elif (group := group_of(hint)) is not None:
            yield key, group
            yield from _inner(key, group)


def _inner(key: str, kind: type) -> Iterator[tuple[str, type]]:
    """Groups within a group."""
    for inner, hint in hints_of(kind).items():
        if (group := group_of(hint)) is not None:
            yield f"{key}.{inner}", group


def table(kind: type) -> str:
    """Key, type, default and explanation of a dataclass."""
    explained, hints = explanations(kind), hints_of(kind)
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for f in fields(kind):
        if f.name not in explained:
            raise ValueError(f"{kind.__module__}.{kind.__name__}: the docstring does not explain {f.name}")
        what = "a group, below" if f.name in CHOICES or group_of(hints[f.name]) else describe(hints[f.name])
        what = "a group, below" if hints[f.name] is Any else what
        cells = (f"`{f.name}`", what, _default(f), explained[f.name])
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) if len(rows) > 2 else "No keys.\n"


def explanations(kind: type) -> dict[str, str]:
    """Attribute -> what the docstrings of a dataclass and those it inherits from say of it."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not is_dataclass(base):
            continue
        lines = (base.__doc__ or "").partition("Attributes:\n")[2].splitlines()
        name, indent = None, 0
        for line in lines:
            head = re.match(r"^( +)(\w+): (.*)$", line)
            if head and (name is None or len(head[1]) == indent):
                indent, name = len(head[1]), head[2]
                found[name] = head[3]
            elif name is not None and line.strip() and len(line) - len(line.lstrip()) > indent:
                found[name] += " " + line.strip()
            elif line.strip():
                break
    return found


def _default(f: Field[Any]) -> str:
    value = f.default if f.default is not MISSING else None
    if f.default_factory is not MISSING:
        value = f.default_factory()
    elif f.default is MISSING:
        return "must be given"
    if is_dataclass(value):
        return ""
    words = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return f"`{words[value]}`"
    return f"`{list(value)}`" if isinstance(value, tuple) else f"`{value}`" if value != "" else "empty"


def api() -> str:
    """The top level, and what else a program calls, from the docstrings."""
    names = [f"posekd.{name}" for name in posekd.__all__ if name not in ("ops", "__version__")]
    return "# posekd\n\n" + "\n".join(f"::: {home(name)}\n" for name in (*names, *MORE))


def op_pages() -> str:
    """All public ops, from their docstrings."""
    return "# posekd.ops\n\n" + "\n".join(f"::: {home(f'posekd.ops.{name}')}\n" for name in ops.__all__)


def home(path: str) -> str:
    """Where a public name is defined: `posekd.ops.oks` alone would be the module of that name."""
    module, _, name = path.rpartition(".")
    return f"{getattr(importlib.import_module(module), name).__module__}.{name}"


PAGES = {"commands.md": commands, "recipe_keys.md": recipe_keys, "api.md": api, "ops.md": op_pages}
