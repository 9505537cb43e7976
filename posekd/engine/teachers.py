"""The teacher of a recipe: its network, its cache, the facts that identify it, and what a student's card says of it."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from posekd.bridging import KEYPOINT_SETS, Bridge
from posekd.codecs import coordinates
from posekd.codecs.foreign import Drawn
from posekd.codecs.reordered import bridged_to
from posekd.data import PoseSource
from posekd.data.loading.teacher_maps import TeacherMaps
from posekd.distill import CachedTeacher, FrozenTeacher, Method
from posekd.distill.teachers import Opened, names_of, open_foreign
from posekd.engine import distributed
from posekd.engine.networks import build_model, names_in_card
from posekd.engine.recipes.recipe import Recipe, TeacherSettings
from posekd.models import PoseModel
from posekd.models.fold import fold_norms
from posekd.models.weights import read_card
from posekd.precision import DTYPES
from posekd.skeleton import Skeleton, skeleton_from_category


def teacher_of(recipe: Recipe, skeleton: Skeleton, student: PoseModel) -> FrozenTeacher | None:
    """The teacher of a run, from its cache where it has one; what its keypoints are taken for is printed.

    Args:
        recipe: of the run.
        skeleton: of the data.
        student: whom it teaches.

    Returns:
        None where the method asks none, or the recipe names none.

    Raises:
        ValueError: a teacher that cannot teach this student by this method.
    """
    method = recipe.method_type
    if not method.taught:
        return None
    teacher: FrozenTeacher | None = None
    if recipe.train.teacher_cache is not None:
        if not recipe.paradigm.crops_boxes:
            raise ValueError(
                f"train.teacher_cache holds crops of persons: a {recipe.paradigm.title} student cannot use it"
            )
        teacher = CachedTeacher(_has_tokens(recipe), _cached_bridge(recipe, skeleton))
    elif recipe.teacher is not None:
        teacher = build_teacher(recipe, recipe.teacher, skeleton)
        _check_teacher(method, cast(PoseModel, teacher.model))
        if recipe.paradigm.crops_boxes:  # others cut their own crops, or resize any image
            _check_shapes(teacher, student)
    if teacher is not None and teacher.bridge is not None:
        _tell(teacher.bridge, method, recipe)
    return teacher


def _has_tokens(recipe: Recipe) -> bool:
    """Whether the teacher's tokens come from the cache; refuses them where augmentation changes what they are of."""
    assert recipe.train.teacher_cache is not None
    stored = bool(TeacherMaps(Path(recipe.train.teacher_cache)).card.tokens)
    if stored and recipe.augmentation.moves and recipe.method_type.learns_tokens(recipe.method):
        raise ValueError(
            "train.teacher_cache holds the tokens of unaugmented crops: set augmentation.flip, rotation, scale and "
            "half_body to 0, or learn from heatmaps alone (method.keypoint_tokens and method.visual_tokens 0)"
        )
    return stored


def _cached_bridge(recipe: Recipe, skeleton: Skeleton) -> Bridge | None:
    """What the keypoints of a cache's teacher were taken for."""
    names = TeacherMaps(Path(str(recipe.train.teacher_cache))).card.keypoints
    return Bridge.from_names(names, skeleton.keypoints) if names else None


def _tell(bridge: Bridge, method: type[Method], recipe: Recipe) -> None:
    """Prints what the teacher's keypoints are taken for, and refuses those with which the method cannot learn."""
    if distributed.is_main():
        print("\n".join(bridge.lines("the teacher")), file=sys.stderr)
    problem = None if all(bridge.covered) else method.why_not_partial(recipe.method)
    if problem is not None:
        missing = [name for name, known in zip(bridge.ours, bridge.covered, strict=True) if not known]
        raise ValueError(f"the teacher does not know the keypoints {', '.join(missing)}: {problem}")


def _check_shapes(teacher: FrozenTeacher, student: PoseModel) -> None:
    """Refuses a teacher that would be shown stretched people."""
    (H, W), (height, width) = student.spec.size, teacher.spec.size
    if H * width != W * height:
        raise ValueError(
            f"the teacher's input is {height}x{width} (height x width) and the student's {H}x{W}: another aspect ratio "
            "shows it stretched people. Give the student a size of the teacher's aspect ratio "
            "(student.overrides.size), or choose another teacher"
        )


def _check_teacher(method: type[Method], model: PoseModel) -> None:
    """Refuses a teacher that the method cannot ask; it may be of another paradigm, and say something else, than its
    student.
    """
    if model.paradigm != method.teacher_paradigm or model.output not in method.teacher_outputs:
        raise ValueError(
            f"the teacher {model.name} is a {kind_of(model.paradigm, model.output)}, and the method learns from a "
            f"{kind_of(method.teacher_paradigm, *method.teacher_outputs)}: choose another teacher"
        )


def kind_of(paradigm: str, *outputs: str) -> str:
    """In words, after `a` or `such as`: `top-down network that gives heatmaps`."""
    said = " or ".join(output.replace("_", " ") for output in outputs)
    return f"{paradigm.replace('_', '-')} network that gives {said}"


def build_teacher(recipe: Recipe, settings: TeacherSettings, skeleton: Skeleton) -> FrozenTeacher:
    """The teacher's network, its norms folded, in its own dtype if `train.teacher_dtype` gives one.

    Raises:
        ValueError: it has no weights, or cannot be read.
    """
    dtype = DTYPES[recipe.train.teacher_dtype] if recipe.train.teacher_dtype else None
    if settings.foreign:
        opened = open_foreign(settings.elsewhere(), skeleton.num_keypoints)
        _say(opened)
        who = f"the teacher {settings.path or settings.factory}"
        return FrozenTeacher(*_bridged(opened.network, dtype, opened.keypoints, skeleton, who))
    if settings.weights is None:
        raise ValueError(f"the teacher {settings.name} has no weights: an untrained teacher has nothing to teach")
    names = names_in_card(settings) or names_of(settings.keypoints)
    model = build_model(settings, skeleton.num_keypoints if names is None else len(names)).eval()
    if recipe.train.fold_teacher and not recipe.method_type.asks_norms_of_the_batch(recipe.method):
        fold_norms(model, torch.randn(1, 3, *model.spec.size, generator=torch.Generator().manual_seed(0)))
    says_points = model.output == coordinates.NAME and coordinates.NAME not in recipe.method_type.teacher_outputs
    network = Drawn(model) if says_points else model
    return FrozenTeacher(*_bridged(network, dtype, names, skeleton, f"the teacher {model.name}"))


def _say(opened: Opened) -> None:
    if opened.said and distributed.is_main():
        print(f"the teacher {opened.said}", file=sys.stderr)


def _bridged(
    network: nn.Module, dtype: torch.dtype | None, names: Sequence[str] | None, skeleton: Skeleton, who: str
) -> tuple[nn.Module, torch.dtype | None, Bridge | None]:
    """What a `FrozenTeacher` is made of."""
    ordered, bridge = bridged_to(network, names, skeleton.keypoints, who)
    return ordered, dtype, bridge


def foreign_network(recipe: Recipe) -> tuple[nn.Module, Skeleton]:
    """A recipe's teacher from elsewhere by itself, with its own keypoints, to predict with.

    Raises:
        ValueError: the recipe has no such teacher, or nobody tells its keypoints.
    """
    settings = recipe.teacher
    if settings is None or not settings.foreign:
        own = "it has none" if settings is None else f"{settings.name} is one of posekd: give its weights as the model"
        raise ValueError(f"a recipe in place of a model means its teacher from elsewhere, and {own}")
    opened = open_foreign(settings.elsewhere())
    _say(opened)
    if opened.keypoints is None:
        raise ValueError("nobody tells the names of the teacher's keypoints: give them as teacher.keypoints")
    like = next((name for name, points in KEYPOINT_SETS.items() if points == opened.keypoints), "teacher")
    return opened.network, skeleton_from_category({"name": like, "keypoints": list(opened.keypoints)})


def open_cache(recipe: Recipe, source: PoseSource) -> TeacherMaps | None:
    """The cache that the recipe trains from, if any.

    Raises:
        FileNotFoundError, ValueError: it is missing, damaged, or of another dataset, teacher or padding.
    """
    if recipe.train.teacher_cache is None:
        return None
    maps = TeacherMaps(Path(recipe.train.teacher_cache))
    maps.check(source.records)
    wanted = {"padding": recipe.loader.padding}
    found: dict[str, Any] = {"padding": maps.card.padding}
    if recipe.teacher is not None:
        wanted |= teacher_facts(recipe.teacher)
        found |= maps.card.teacher
    for key, value in wanted.items():
        if found.get(key) != value:
            raise ValueError(
                f"the teacher cache {maps.folder} was made with {key} {found.get(key)!r}, the recipe says {value!r}: "
                "make it again, or set train.teacher_cache to null"
            )
    return maps


def teacher_facts(settings: TeacherSettings) -> dict[str, Any]:
    """The facts that identify a teacher: its settings, and a hash of its weights if the file exists."""
    facts = json.loads(json.dumps(asdict(settings)))  # lists, as the card has them
    facts.pop("licence")
    for key in ("weights", "path"):
        file = facts.pop(key)
        if file is not None and (found := _hash_of(Path(file))):
            facts[key] = found
        elif key == "path" and file is not None:  # a name on the hub
            facts[key] = file
    return facts


def _hash_of(path: Path) -> str | None:
    """The first digits of the SHA-256 of a file, or of the weights in a folder; None where there is neither."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        if not file.is_file():
            return None
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16] if files else None


def teacher_card(settings: TeacherSettings, teacher: FrozenTeacher) -> dict[str, Any]:
    """What a student's card says of its teacher: its name, file, keypoints and licence."""
    where = settings.path or settings.factory or settings.weights
    facts = {
        "name": settings.name or getattr(teacher.model, "name", ""),
        "source": where,
        "sha256": None if settings.factory or where is None else _hash_of(Path(where)),
        "keypoints": None if teacher.bridge is None else teacher.bridge.names(),
        "licence": settings.licence or licence_of(settings, teacher) or "unknown",
    }
    return {key: value for key, value in facts.items() if value is not None}


def licence_of(settings: TeacherSettings, teacher: FrozenTeacher) -> str | None:
    """What a teacher's own card says of its licence; None where it says nothing."""
    told = [getattr(module, "licence", None) for module in teacher.model.modules()]
    if settings.weights is not None and Path(settings.weights).suffix == ".safetensors":
        told.append((read_card(settings.weights) or {}).get("licence"))
    return next((str(licence) for licence in told if isinstance(licence, str)), None)
