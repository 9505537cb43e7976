"""A recipe: one YAML file, typed by the settings classes of the packages. `Recipe` only combines them.

`method`, `train_data` and `val_data` are chosen by `name`, and which other keys they have follows from it; those of
`augmentation` and `inference` follow from the student's paradigm. An unknown key, a wrong type or a value out of range
is refused before anything heavy is built, with the file, the key and the nearest valid name.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from posekd.data import LabelSettings, LoaderSettings
from posekd.distill import METHODS, Method
from posekd.engine.recipes.configs import find_config
from posekd.engine.recipes.datasets import DATASETS
from posekd.engine.recipes.networks import ModelSettings, TeacherSettings
from posekd.engine.recipes.schema import check_keys, convert, hints_of
from posekd.engine.training.optim import OptimSettings, ScheduleSettings
from posekd.engine.training.settings import LoopSettings
from posekd.files import nearest
from posekd.models import paradigm_name
from posekd.paradigms import PARADIGMS, TOP_DOWN, Paradigm
from posekd.renames import modernise, new_name
from posekd.tracking import TrackSettings

_DATASETS = {name: dataset.settings for name, dataset in DATASETS.items()}

CHOICES: dict[str, dict[str, type]] = {
    "method": {name: settings for name, (_, settings) in METHODS.items()},
    "train_data": _DATASETS,
    "val_data": _DATASETS,
    "unlabelled_data": _DATASETS,
}
"""Group -> name -> the dataclass of its other keys."""


@dataclass(frozen=True)
class Recipe:
    """A training run.

    Attributes:
        student: the network that is trained.
        method: settings of a method; its type says which (`distill.METHODS`).
        train_data: settings of a dataset; its type says which (`engine.recipes.datasets.DATASETS`).
        val_data: the dataset to validate on; `null` for no validation.
        hold_out: share of `train_data`'s images, in 0..1, that is validated on and not learnt from, where there is no
            `val_data`; `null` for none.
        labels: which of `train_data`'s labels are used; `null` for all.
        unlabelled_data: a dataset that is mixed into `train_data` without its labels; `null` for none.
        teacher: the network that the student learns from.
        augmentation: how training crops, or images, vary; its type is that of the student's paradigm.
        loader: how batches are made; `batch_size` is what one optimiser step sees.
        optim: the optimiser.
        schedule: learning rate over time.
        train: length, precision and saving.
        inference: how the network is run in validation and `posekd eval`; its type follows from the student's paradigm.
        tracking: how people are followed over the videos of `val_data`, where it has some.
        acknowledged: what looks wrong in the data and is meant so: `corner_boxes`, `normalised` or `shared_images`
            (`posekd inspect` explains them); training refuses them otherwise.
        seed: seed of weights, shuffling and augmentation.
        out: folder of the run.
    """

    student: ModelSettings
    method: Any
    train_data: Any
    val_data: Any = None
    hold_out: float | None = None
    labels: LabelSettings | None = None
    unlabelled_data: Any = None
    teacher: TeacherSettings | None = None
    augmentation: Any = field(default_factory=TOP_DOWN.augmentation)
    loader: LoaderSettings = field(default_factory=LoaderSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    train: LoopSettings = field(default_factory=LoopSettings)
    inference: Any = field(default_factory=TOP_DOWN.inference)
    tracking: TrackSettings = field(default_factory=TrackSettings)
    acknowledged: list[Literal["corner_boxes", "normalised", "shared_images"]] = field(default_factory=list)
    seed: int = 0
    out: str = "runs/train"

    def __post_init__(self) -> None:
        if self.loader.batch_size % self.train.accumulate:
            raise ValueError(
                f"train.accumulate {self.train.accumulate} does not divide loader.batch_size {self.loader.batch_size}"
            )
        if not self.student.name:
            raise ValueError("student.name is missing; it must be text")
        if self.teacher is not None and not self.teacher.name and self.teacher.weights is None:
            raise ValueError("teacher.name is missing: give it, or the teacher's `weights` with their card beside them")
        if self.hold_out is not None and (not 0 < self.hold_out < 1 or self.val_data is not None):
            what = "it is a share between 0 and 1" if self.val_data is None else "there is val_data already"
            raise ValueError(f"hold_out {self.hold_out}: {what}")
        if self.val_data is None and self.hold_out is None and self.train.validate_every:
            raise ValueError(
                "there is no val_data to validate on: give it, or hold_out (a share of train_data), or set "
                "train.validate_every to 0"
            )
        for key, kind in _settings_of(self.paradigm).items():
            if type(getattr(self, key)) is not kind:
                found = type(getattr(self, key)).__name__
                raise ValueError(f"the student {self.student.name} needs {key} of type {kind.__name__}, got {found}")
        if not self.paradigm.crops_boxes and (self.labels is not None or self.unlabelled_data is not None):
            raise ValueError(
                f"a {self.paradigm.title} student needs labels for all people: labels and unlabelled_data must be null"
            )
        problem = self.method_type.why_not_unlabelled(self.method)
        if problem is not None and self.has_unlabelled:
            raise ValueError(f"{problem}, or set labels.others to left_out and unlabelled_data to null")

    @property
    def paradigm(self) -> Paradigm:
        """The student's paradigm."""
        return PARADIGMS[paradigm_name(self.student.name)]

    @property
    def method_type(self) -> type[Method]:
        """The method whose settings `method` is."""
        for method, settings in METHODS.values():
            if type(self.method) is settings:
                return method
        raise ValueError(f"{type(self.method).__name__} are not the settings of a method")

    @property
    def has_unlabelled(self) -> bool:
        """Whether persons without labels are among the training data."""
        few = self.labels is not None and self.labels.others == "unlabelled"
        return few or self.unlabelled_data is not None


def _settings_of(paradigm: Paradigm) -> dict[str, type]:
    """The dataclasses of the groups that follow from the student's paradigm."""
    return {"augmentation": paradigm.augmentation, "inference": paradigm.inference}


def read_recipe(config: str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and applies command-line overrides.

    Args:
        config: a path, or the name of a shipped recipe (see `find_config`).
        overrides: words `--group.key value` or `--group.key=value`; values are YAML. `--run NAME` chooses one of the
            file's `runs` (see `pick_run`).

    Raises:
        FileNotFoundError: no such recipe.
        ValueError: anything wrong in it; the message starts with the file, or with `command line`.
    """
    path = find_config(config)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from None
    try:
        values, overrides = pick_run(values, overrides)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    try:
        return recipe_from_dict(apply_overrides(values, overrides) if overrides else values)
    except ValueError as error:
        source = "command line" if overrides and _is_valid(values) else str(path)
        raise ValueError(f"{source}: {error}") from None


def pick_run(values: Any, words: Sequence[str]) -> tuple[Any, list[str]]:
    """One of the runs that a recipe file describes: `runs` maps a name to the keys in which that run differs.

    A group of a run goes over the file's key by key. Its `out` is a folder of the run's name in the file's `out`,
    unless it gives another.

    Args:
        values: of the file.
        words: of the command line; `--run NAME`, or `--run=NAME`, is taken out.

    Returns:
        The values of that run, and the other words.

    Raises:
        ValueError: no run was chosen and there are several, or there is none of that name.
    """
    rest, chosen = list(words), None
    for i, word in enumerate(rest):
        if word == "--run" or word.startswith("--run="):
            chosen = word.partition("=")[2] or (rest[i + 1] if i + 1 < len(rest) else "")
            del rest[i : i + (1 if "=" in word else 2)]
            break
    runs = values.get("runs") if isinstance(values, Mapping) else None
    if not isinstance(runs, Mapping):
        if chosen is not None:
            raise ValueError(f"--run {chosen}: the recipe has no `runs` to choose from")
        return values, rest
    if chosen not in runs:
        given = "choose one of its runs with --run" if chosen is None else f"it has no run {chosen!r}"
        raise ValueError(f"{given}: {', '.join(map(str, runs))}")
    merged = {key: value for key, value in values.items() if key != "runs"}
    merged["out"] = f"{values.get('out', 'runs')}/{chosen}"
    for key, value in (runs[chosen] or {}).items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            value = {**below, **value}
        merged[key] = value
    return merged, rest


def _is_valid(values: Any) -> bool:
    try:
        recipe_from_dict(values)
    except ValueError:
        return False
    return True


def recipe_from_dict(values: Any) -> Recipe:
    """Builds a recipe from nested mappings, as YAML gives them.

    Raises:
        ValueError: unknown key, wrong type, missing value, or a value that the settings refuse.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"a recipe is a group of settings, got {values!r}")
    schema: dict[str, Any] = hints_of(Recipe)
    plain = modernise(values)
    for key, choices in CHOICES.items():
        if plain.get(key) is not None:
            schema[key], plain[key] = _chosen(key, plain[key], choices)
    student = plain.get("student")
    name = student.get("name") if isinstance(student, Mapping) else None
    kinds = _settings_of(PARADIGMS[paradigm_name(str(name))])
    schema.update(kinds)
    check_keys(plain, schema)
    defaults = {f.name: _default(f) for f in fields(Recipe) if _default(f) is not MISSING}
    defaults.update({key: kind() for key, kind in kinds.items()})
    for key, choices in CHOICES.items():
        if plain.get(key) is None and key not in defaults:
            raise ValueError(f"{key} is missing; it must be a group with a `name`: {', '.join(sorted(choices))}")
    return Recipe(**convert(plain, schema, defaults))


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """The inverse of `recipe_from_dict`: plain values that YAML and JSON can hold."""
    values: dict[str, Any] = {}
    for f in fields(recipe):
        value = getattr(recipe, f.name)
        if is_dataclass(value) and not isinstance(value, type):
            names = [name for name, kind in CHOICES.get(f.name, {}).items() if type(value) is kind]
            value = {**({"name": names[0]} if names else {}), **asdict(value)}
        values[f.name] = _plain(value)
    return values


def apply_overrides(values: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """A copy of `values` with `--group.key value` words applied.

    Where a method or a dataset gets another `name`, keys that both have keep their values; the others are dropped, with
    a warning that lists them.

    Raises:
        ValueError: a word that is no option, or an option without a value.
    """
    result = _plain(modernise(values) if isinstance(values, Mapping) else values)
    for word, text in _pairs(words):
        key = new_name(word)
        *groups, last = key.split(".")
        place = result
        for depth, group in enumerate(groups):
            if place.get(group) is None:
                place[group] = {}
            place = place[group]
            if not isinstance(place, dict):
                raise ValueError(f"--{word}: {'.'.join(groups[: depth + 1])} is a value, not a group")
        value = yaml.safe_load(text)
        if last == "name" and len(groups) == 1 and groups[0] in CHOICES and place.get("name") != value:
            _drop_foreign(groups[0], place, value)
        place[last] = value
    return result


def _drop_foreign(group: str, place: dict[str, Any], name: Any) -> None:
    """Drops the keys of a group that are not among those of its new name, and says so."""
    kind = CHOICES[group].get(name) if isinstance(name, str) else None
    if kind is None:  # an unknown name is refused later
        return
    known = {f.name for f in fields(kind)}
    dropped = {key: place.pop(key) for key in list(place) if key not in known and key != "name"}
    if dropped:
        gone, kept = (
            ", ".join(f"{group}.{key} {value!r}" for key, value in keys.items() if key != "name")
            for keys in (dropped, place)
        )
        stays = f"; kept: {kept}" if kept else ""
        warnings.warn(
            f"{group}.name is {name} now, which lacks some keys of the old one: dropped: {gone}{stays}", stacklevel=4
        )


def _pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        if not word.startswith("--"):
            raise ValueError(f"{word!r} is not an option; overrides look like --optim.lr 0.0005")
        key, equals, text = word[2:].partition("=")
        if not equals:
            if not remaining:
                raise ValueError(f"--{key} needs a value")
            text = remaining.pop(0)
        pairs.append((key, text))
    return pairs


def _chosen(key: str, group: Any, choices: Mapping[str, type]) -> tuple[type, dict[str, Any]]:
    """The dataclass that `name` chooses, and the group without `name`."""
    if not isinstance(group, Mapping):
        raise ValueError(f"{key} must be a group with a `name`, got {group!r}")
    name = group.get("name")
    if name is None:
        raise ValueError(f"{key}.name is missing; valid: {', '.join(sorted(choices))}")
    if name not in choices:
        raise ValueError(f"{key}.name: unknown {name!r}{nearest(str(name), choices)}")
    return choices[name], {k: v for k, v in group.items() if k != "name"}


def _default(f: Any) -> Any:
    return f.default_factory() if f.default_factory is not MISSING else f.default


def _plain(value: Any) -> Any:
    """Mappings to dicts, tuples to lists, all the way down."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Writes the resolved recipe, every default spelt out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(recipe_to_dict(recipe), sort_keys=False), encoding="utf-8")
