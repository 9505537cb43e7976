"""The house's plan, read from the sources: who may import whom, and that nobody asks of which paradigm a thing is.

What differs between paradigms is a field of their records (`paradigms.base.Paradigm`), so that a third one is a file
and a word. A comparison of names, types or flags elsewhere is a field that is missing there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import posekd
from posekd import structures
from posekd.paradigms import PARADIGMS

HOUSE = Path(posekd.__file__).parent
GUESTS = ("benchmarks", "configs")  # of an installed package, whose rooms stand beside it in a checkout
SOURCES = sorted(path for path in HOUSE.rglob("*.py") if path.relative_to(HOUSE).parts[0] not in GUESTS)

GROUND = {
    "geometry", "structures", "names", "skeleton", "files", "precision", "lengths", "coco_rules", "whole_body",
    "renames", "packages", "posetrack_json", "bridging",
}  # fmt: skip
CODECS = GROUND | {"ops", "codecs"}
ROOMS = {"models", "data", "metrics", "inputs", "distill"}
INFERENCE = CODECS | ROOMS | {"viz", "paradigms", "tracking"}
EVERYTHING = INFERENCE | {"engine", "cli", "deploy"}
ALLOWED: dict[str, set[str]] = {
    "geometry": set(),
    "names": set(),
    "skeleton": {"names"},
    "files": set(),
    "coco_rules": set(),
    "posetrack_json": {"coco_rules", "files"},
    "whole_body": {"skeleton", "coco_rules"},
    "precision": set(),
    "renames": set(),
    "packages": set(),
    "lengths": {"skeleton"},
    "bridging": {"names", "skeleton"},
    "structures": {"geometry"},
    "ops": GROUND | {"_C"},
    "nn": GROUND | {"ops"},
    "codecs": GROUND | {"ops"},
    "models": CODECS,
    "data": CODECS,
    "metrics": CODECS,
    "distill": CODECS | {"inputs"},
    "inputs": CODECS | {"data"},
    "viz": CODECS | ROOMS,
    "tracking": CODECS | {"metrics"},
    "paradigms": CODECS | ROOMS | {"viz"},
    "deploy": INFERENCE,
    "engine": INFERENCE | {"__version__"},
    "cli": EVERYTHING | {"__version__"},
    "__init__": EVERYTHING - {"cli"},  # the doors, which open when they are asked for
    "__main__": {"cli"},
}
"""Room (file or folder of `posekd`) -> the other rooms that it may import, at its head or later."""

BATCHES = {name for name in vars(structures) if name.endswith("Batch")} | {"Packed"}
FLAG = re.compile(rf"(is_|not_)?({'|'.join(PARADIGMS)})")
RECORDS = {name.upper() for name in PARADIGMS}

Found = Iterator[tuple[int, str]]


def room_of(path: Path) -> str:
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


# ---- Imports -------------------------------------------------------------------------------------------------------


def imported_rooms(tree: ast.AST) -> Found:
    """Line and room of each import from the house, names of the house's own `__init__` among them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: a relative import, which this test does not follow"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and name_of(node.func) == "import_module" and node.args:
            modules = [str(getattr(node.args[0], "value", ""))]
        else:
            continue
        for module in modules:
            top, *rest = module.split(".")
            if top == "posekd":
                yield node.lineno, rest[0] if rest else "__version__"


def upward_imports(tree: ast.AST, room: str) -> Found:
    for line, other in imported_rooms(tree):
        if other != room and other not in ALLOWED[room]:
            yield line, f"{room} imports {other}"


# ---- Questions that nobody may ask -----------------------------------------------------------------------------------


def name_of(node: ast.AST | None) -> str:
    """The name of a variable, or the last one of a dotted path; empty for anything else."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def names_in(node: ast.AST) -> set[str]:
    return {name_of(part) for part in ast.walk(node)}


def is_paradigm(node: ast.AST) -> bool:
    """Whether an operand is a paradigm's name or record: `"top_down"`, `x.paradigm.name`, `TOP_DOWN`."""
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return any(map(is_paradigm, node.elts))
    if isinstance(node, ast.Constant):
        return node.value in PARADIGMS
    owner = name_of(node.value) if isinstance(node, ast.Attribute) and node.attr == "name" else name_of(node)
    return owner in RECORDS or (owner.endswith("paradigm") and name_of(node) == "name")


def compared_paradigms(tree: ast.AST) -> Found:
    """`==`, `is`, `in` and `match` on a paradigm, and tables by its name. Two networks' may be compared."""
    for node in ast.walk(tree):
        asked: list[ast.AST] = []
        if isinstance(node, ast.Compare):
            asked = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            asked = [node.value]
        elif isinstance(node, ast.Dict):
            asked = [key for key in node.keys if key is not None]
        if any(map(is_paradigm, asked)):
            yield getattr(node, "lineno", 0), ast.unparse(node)


def probed_batches(tree: ast.AST) -> Found:
    """`hasattr` (or `getattr` with a default) of a batch, `isinstance` and `type` of one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            function, first = name_of(node.func), name_of(node.args[0])
            probed = function == "hasattr" or (function == "getattr" and len(node.args) == 3)
            if probed and re.fullmatch(r"(\w+_)?(batch|packed|crops)", first):
                yield node.lineno, ast.unparse(node)
            if function in ("isinstance", "issubclass") and names_in(node.args[-1]) & BATCHES:
                yield node.lineno, ast.unparse(node)
        if isinstance(node, ast.Compare) and "type" in names_in(node.left) and names_in(node) & BATCHES:
            yield node.lineno, ast.unparse(node)


def paradigm_flags(tree: ast.AST) -> Found:
    """Attributes, variables, arguments, functions and options that say of one paradigm whether a thing is of it."""
    for node in ast.walk(tree):
        names = [name_of(node)]
        if isinstance(node, (ast.arg, ast.keyword)):
            names = [node.arg or ""]
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names = [node.name]
        elif isinstance(node, ast.alias):
            names = [node.asname or node.name]
        elif isinstance(node, ast.Call):
            asked = node.args[1:2] if name_of(node.func) in ("getattr", "hasattr", "setattr") else node.args
            values = [str(arg.value) for arg in asked if isinstance(arg, ast.Constant)]
            options = [value[2:].replace("-", "_") for value in values if value.startswith("--")]
            names = values if asked is not node.args else options
        for name in names:
            if FLAG.fullmatch(name):
                yield getattr(node, "lineno", 0), f"{name} in {ast.unparse(node)}"


QUESTIONS: dict[Callable[[ast.AST], Found], set[str]] = {
    compared_paradigms: set(),
    probed_batches: set(),
    paradigm_flags: {f"paradigms/{name}.py" for name in PARADIGMS},
}
"""What is looked for -> the files that may have it."""


# ---- The tests -----------------------------------------------------------------------------------------------------


def test_every_room_has_its_row():
    assert {room_of(path) for path in SOURCES} == ALLOWED.keys()
    assert {room for rooms in ALLOWED.values() for room in rooms} <= ALLOWED.keys() | {"_C", "__version__"}


def test_no_room_imports_one_above_it():
    found = [
        f"{path.relative_to(HOUSE)}:{line}: {what}"
        for path in SOURCES
        for line, what in upward_imports(ast.parse(path.read_text(encoding="utf-8")), room_of(path))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.__name__)
def test_nobody_asks_of_which_paradigm_a_thing_is(question):
    found = [
        f"{name}:{line}: {what}"
        for path in SOURCES
        if (name := path.relative_to(HOUSE).as_posix()) not in QUESTIONS[question]
        for line, what in question(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not found, "\n".join(found)


# Guard: a test that reads sources and finds nothing may be blind.


@pytest.mark.parametrize(
    ("room", "code", "seen"),
    [
        ("paradigms", "from posekd.engine import distributed", "engine"),
        ("data", "def f():\n    from posekd.models import create_model", "models"),
        ("data", "from posekd import inputs", "inputs"),
        ("ops", "import posekd.codecs.heatmaps as h", "codecs"),
        ("models", "importlib.import_module('posekd.distill')", "distill"),
        ("engine", "if TYPE_CHECKING:\n    from posekd.cli.eval_options import EvalOptions", "cli"),
        ("metrics", "from posekd import __version__", "__version__"),
        ("skeleton", "from posekd.lengths import torso_lengths", "lengths"),
    ],
)
def test_an_upward_import_would_be_noticed(room, code, seen):
    assert [what for _, what in upward_imports(ast.parse(code), room)] == [f"{room} imports {seen}"]


@pytest.mark.parametrize(
    ("question", "code"),
    [
        (compared_paradigms, "paradigm.name == other"),
        (compared_paradigms, "x = 1 if paradigm_of(model) is BOTTOM_UP else 2"),
        (compared_paradigms, "model.paradigm != 'top_down'"),
        (compared_paradigms, "recipe.paradigm.name in names"),
        (compared_paradigms, "kind in ('bottom_up', 'other')"),
        (compared_paradigms, "kind == TOP_DOWN.name"),
        (compared_paradigms, "match kind:\n    case 'top_down':\n        pass"),
        (compared_paradigms, "{'top_down': f, 'bottom_up': g}[kind]"),
        (probed_batches, "hasattr(batch, 'masks')"),
        (probed_batches, "getattr(self.packed, 'teacher', None)"),
        (probed_batches, "isinstance(moved, PackedImageBatch)"),
        (probed_batches, "isinstance(moved, (int, structures.CropBatch))"),
        (probed_batches, "isinstance(moved, Packed | Batch)"),
        (probed_batches, "type(moved) is ImageBatch"),
        (paradigm_flags, "model.bottom_up"),
        (paradigm_flags, "def f(x, bottom_up=False): ..."),
        (paradigm_flags, "f(is_bottom_up=True)"),
        (paradigm_flags, "class C:\n    bottom_up: bool = False"),
        (paradigm_flags, "getattr(model, 'bottom_up', False)"),
        (paradigm_flags, "parser.add_argument('--bottom-up')"),
        (paradigm_flags, "from posekd.paradigms import bottom_up"),
    ],
)
def test_a_question_would_be_noticed(question, code):
    assert list(question(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "model.paradigm != method.paradigm",
        "raise ValueError(f'a {paradigm.name} student')",
        "name not in PARADIGMS",
        "class C:\n    paradigm = 'bottom_up'",
        "getattr(model, 'paradigm', TOP_DOWN.name)",
        "isinstance(images, PackedImages)",
        "hasattr(values, 'detach')",
        "from posekd.paradigms.bottom_up import BottomUpInference",
        "cast(PackedCropBatch, batch)",
    ],
)
def test_what_is_allowed_passes(code):
    assert not [found for question in QUESTIONS for found in question(ast.parse(code))]
