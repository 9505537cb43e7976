"""Students of several widths and depths from one teacher: what accuracy costs in time on this machine."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from posekd.engine.recipes.recipe import Recipe
from posekd.engine.train import train
from posekd.engine.training.loop import main_score
from posekd.files import check_writable, write_atomically
from posekd.models import create_model, create_model_from_card
from posekd.models.latency import SECONDS, Latency, measure_latency
from posekd.models.profile import profile_model
from posekd.models.weights import read_card

RESULTS = "frontier.json"
WEIGHTS = "last.safetensors"


@dataclass(frozen=True)
class Point:
    """One student of the frontier.

    Attributes:
        name: what is varied, e.g. `width=8 blocks=1`.
        score_name: of the score, e.g. `AP`.
        score: after the last step; NaN where there is none.
        params: parameters.
        macs: multiply-accumulates of one image.
        latency: of one image on this machine.
    """

    name: str
    score_name: str
    score: float
    params: int
    macs: int
    latency: Latency


def variants(recipe: Recipe, vary: Mapping[str, Sequence[Any]]) -> dict[str, Recipe]:
    """The recipe with each combination of settings of its student, in a folder of its own.

    Args:
        recipe: of the student.
        vary: setting of the student's network -> its values.

    Returns:
        Name, e.g. `width=8 blocks=1` -> recipe.

    Raises:
        ValueError: nothing to vary, a value twice, a setting that the network does not have, a combination that is no
            network, no validation data, or a student that starts from a checkpoint (which fits one network only).
    """
    if (recipe.val_data is None and recipe.hold_out is None) or not recipe.train.validate_every:
        raise ValueError("a frontier compares scores: the recipe needs val_data and train.validate_every above 0")
    if recipe.student.weights is not None or recipe.student.backbone is not None:
        raise ValueError("student.weights and student.backbone fit one network only: leave them out for a frontier")
    if not vary or not all(vary.values()):
        raise ValueError("nothing is varied: give settings of the student with their values, e.g. width=8,16")
    for key, values in vary.items():
        if len({json.dumps(value) for value in values}) < len(values):
            raise ValueError(f"{key} has a value twice: {list(values)}")
    found = {}
    for values in itertools.product(*vary.values()):
        changes = dict(zip(vary, values, strict=True))
        name = " ".join(f"{key}={_plain(value)}" for key, value in changes.items())
        student = replace(recipe.student, overrides={**recipe.student.overrides, **changes})
        with torch.device("meta"):  # a mistake is told now, not after the first student
            create_model(student.name, **student.overrides)
        folder = Path(recipe.out) / name.replace(" ", "_").replace("=", "")
        found[name] = replace(recipe, student=student, out=str(folder))
    return found


def train_frontier(
    recipes: Mapping[str, Recipe], on_run: Callable[[str, Path], None] | None = None
) -> dict[str, float]:
    """Trains each recipe; what was done before is not done again, and a run that was killed goes on.

    Args:
        recipes: as of `variants`.
        on_run: called with name and folder before each run.

    Returns:
        Name -> main score after the last step; NaN where the data allow none.

    Raises:
        What `train` raises.
    """
    scores = {}
    for name, recipe in recipes.items():
        folder = Path(recipe.out)
        check_writable(folder / WEIGHTS)
        if on_run is not None:
            on_run(name, folder)
        found = train(recipe, resume="auto")
        assert found is not None  # validated after the last step, as `variants` has checked
        value = main_score(found)[1]
        scores[name] = value if value >= 0 else math.nan
    return scores


def measure_frontier(recipes: Mapping[str, Recipe], scores: Mapping[str, float], device: torch.device) -> list[Point]:
    """Measures all trained students, one after another in one sitting, so that their times can be compared.

    Args:
        recipes: as of `variants`.
        scores: as of `train_frontier`.
        device: to measure on, with torch's present threads.

    Returns:
        The fastest first.
    """
    points = []
    for name, recipe in recipes.items():
        card = read_card(Path(recipe.out) / WEIGHTS)
        assert card is not None  # the training wrote it
        with torch.device("meta"):
            profile = profile_model(create_model_from_card(card))
        latency = measure_latency(create_model_from_card(card).to(device), profile.size, seconds=SECONDS)
        score_name = next(iter(card["metrics"]))
        points.append(Point(name, score_name, scores[name], profile.params, profile.macs, latency))
    return sorted(points, key=lambda point: point.latency.median)


def best_of(points: Sequence[Point]) -> set[str]:
    """The names of those that no other student equals in score without taking longer.

    Args:
        points: in any order; those without a score are never among them.
    """

    def beats(a: Point, b: Point) -> bool:
        better = a.score > b.score or a.latency.median < b.latency.median
        return better and a.score >= b.score and a.latency.median <= b.latency.median

    return {p.name for p in points if not math.isnan(p.score) and not any(beats(other, p) for other in points)}


def write_points(points: Sequence[Point], folder: Path, where: str) -> Path:
    """Writes the numbers as JSON.

    Args:
        points: of the students.
        folder: of the frontier.
        where: what they were measured on, in words.
    """
    rows = [{**asdict(p), "score": None if math.isnan(p.score) else p.score} for p in points]
    path = folder / RESULTS
    write_atomically(path, json.dumps({"measured_on": where, "students": rows}, indent=2) + "\n")
    return path


def _plain(value: Any) -> str:
    """A value for a name: `[1, 1]` is `1-1`."""
    return "-".join(map(_plain, value)) if isinstance(value, (list, tuple)) else str(value)
