"""The text of the recipe that `posekd init` writes: every choice with its reason beside it."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from posekd.data import CocoSettings
from posekd.data.inspection import Facts
from posekd.engine.planning import BUDGETS, Plan

NAMES = ("teacher", "alone", "student")
"""The runs of such a recipe."""


def recipe_text(plan: Plan, facts: Facts, train: CocoSettings, val: CocoSettings | None, out: str, file: str) -> str:
    """A commented recipe for a teacher, a student alone and a student that the teacher taught.

    Args:
        plan: what was chosen.
        facts: about the training data.
        train: the data to learn from.
        val: the data to validate on; None for none.
        out: folder of the runs.
        file: name of the recipe, for its own comments.
    """
    what = BUDGETS[plan.budget]
    every = max(1, plan.epochs // 10)
    sigmas = "  # no OKS sigmas are known for these keypoints: 0.05 for each; `posekd sigmas` estimates them\n"
    flip_comment = f"mirror images: {plan.why_flip}"
    counts = f"{facts.images} images with {facts.people} people of {facts.skeleton.num_keypoints} keypoints"
    return f"""# Written by `posekd init` for {counts}, budget {plan.budget}
# ({what.words}). Every line may be changed, here or on the command line.
#   posekd train {file} --run teacher    a network larger than you need
#   posekd train {file} --run student    a small one that learns from labels and teacher
#   posekd train {file} --run alone      the same small one from the labels alone, to compare
out: {_value(out)}
runs:
  teacher:
    student: {{name: {plan.teacher[0]}, overrides: {_value({"size": list(plan.size), **plan.teacher[1]})}}}
    method: {{name: supervised, sigma: {what.sigma}}}
  student:
    # the card beside the weights knows the teacher's architecture
    teacher: {{weights: {_value(f"{out}/teacher/best.safetensors")}}}
    method: {{name: mapd, alpha: 0.15, beta: 0.075, sigma: {what.sigma}}}  # MAPD's weights of the teacher's terms
  alone:
    method: {{name: supervised, sigma: {what.sigma}}}
# the small network{_measured(plan)}
student:
  name: {plan.student[0]}
  # {plan.reasons["size"]}
  overrides: {_value({"size": list(plan.size), **plan.student[1]})}
train_data:
{_dataset(train)}{sigmas if facts.sigmas_guessed else ""}{_validation(val)}augmentation:
  # {flip_comment}
  flip: {0.5 if plan.flip else 0.0}
  rotation: 30.0
  scale: 0.25
  # light, colour, blur and noise vary too if you say so; `posekd inspect {file} --run student --draw FILE` shows it
  # photometric: {{brightness: 0.3, contrast: 0.3, hue: 10, blur: 0.1}}
loader:
  # {plan.reasons["batch"]}
  batch_size: {plan.batch}
  # how much larger crops are than boxes; {plan.reasons["padding"]}
  padding: {plan.padding}
{_loading(plan)}optim:
  name: adamw
  lr: {what.rate}
  weight_decay: 0.0001
schedule:
  kind: cosine
  warmup_steps: 50
train:
  # {plan.reasons["epochs"]}
  epochs: {plan.epochs}
  validate_every: {every}
  checkpoint_every: {max(1, plan.epochs // 20)}
  log_every: 10
  channels_last: true
inference:
  # the average with the mirror image: costs twice the time
  flip_test: {_value(plan.flip)}
"""


def _measured(plan: Plan) -> str:
    return f": {plan.reasons['student']}" if "student" in plan.reasons else ""


def _dataset(settings: CocoSettings) -> str:
    given: dict[str, Any] = {"name": "coco"}
    given |= {
        f.name: getattr(settings, f.name) for f in fields(settings) if getattr(settings, f.name) not in (f.default,)
    }
    return "".join(f"  {key}: {_value(value)}\n" for key, value in given.items())


def _validation(settings: CocoSettings | None) -> str:
    if settings is None:
        return "# no other labels were given to validate on, so a part of these is held out\nhold_out: 0.15\n"
    return f"val_data:\n{_dataset(settings)}"


def _loading(plan: Plan) -> str:
    if plan.cache_images:
        return "  # all images fit into memory: decoded once\n  cache_images: true\n  workers: 0\n"
    return "  workers: 4\n"


def _value(value: Any) -> str:
    """A value in YAML's short form; JSON is that, and texts need no quotes where they are plain."""
    if isinstance(value, str):
        plain = value and all(c.isalnum() or c in "/_.-" for c in value) and value[0].isalpha()
        return value if plain else json.dumps(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_value(below)}" for key, below in value.items()) + "}"
    return json.dumps(value)
