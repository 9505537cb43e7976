"""What `posekd report` knows of each network: its evaluation, errors by keypoint and kind, cost, and curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from posekd.data import LoaderSettings, PoseSource
from posekd.engine.evaluate import evaluate
from posekd.engine.judging import Verdict, ap_per_keypoint, judge_report
from posekd.engine.recipes.recipe import Recipe
from posekd.engine.scoring import Report
from posekd.engine.teachers import build_teacher
from posekd.metrics.error_kinds import ErrorKinds, error_kinds
from posekd.models.latency import Latency, measure_latency
from posekd.models.profile import Profile, profile_model
from posekd.paradigms import paradigm_of
from posekd.paradigms.inference import spec_of
from posekd.skeleton import Skeleton

LATENCY_SECONDS = 0.5


@dataclass(frozen=True)
class Subject:
    """A network that is reported on.

    Attributes:
        name: of it in the page.
        model: the network.
        settings: its paradigm's settings of inference; the defaults if None.
        padding: factor by which crops are larger than boxes.
        card: what its checkpoint's card says; empty without one.
        log: the records of its run's log; empty without one.
        teaches: whether it is the teacher of another one.
    """

    name: str
    model: nn.Module
    settings: Any
    padding: float
    card: Mapping[str, Any]
    log: Sequence[Mapping[str, Any]]
    teaches: bool = False


@dataclass(frozen=True)
class Judged:
    """What is known of it.

    Attributes:
        subject: the network.
        source: the data that it was evaluated on, as its paradigm wants them.
        report: its evaluation.
        verdict: errors over all labelled people; None where nobody is labelled.
        kinds: errors by kind; None likewise.
        ap: AP by each keypoint alone; empty where the data are not scored by AP.
        profile: parameters and compute; None for networks that cannot be counted (ONNX files).
        latency: of one image; None where it was not measured.
    """

    subject: Subject
    source: PoseSource
    report: Report
    verdict: Verdict | None
    kinds: ErrorKinds | None
    ap: Mapping[str, float]
    profile: Profile | None
    latency: Latency | None


def judge_subject(
    subject: Subject,
    source: PoseSource,
    loader: LoaderSettings,
    device: torch.device,
    latency: bool = True,
    on_batch: Callable[[int, int], None] | None = None,
) -> Judged:
    """Evaluates a network and judges it.

    Args:
        subject: the network; it is moved to the device.
        source: the data.
        loader: batch size and workers; the padding is the network's own.
        device: where it runs.
        latency: whether its latency is measured.
        on_batch: see `evaluate`.

    Raises:
        ValueError: the network does not fit the data.
    """
    model = subject.model.to(device)
    report = evaluate(model, source, subject.settings, loader=loader, on_batch=on_batch)
    verdict = judge_report(source, report) if report.main is not None else None
    skeleton = source.records.skeleton
    kinds = None if verdict is None else error_kinds(verdict.found, skeleton.sigmas, skeleton.flip)
    profile = _profile(model)
    countable = profile is not None and latency
    measured = measure_latency(model, spec_of(model).size, seconds=LATENCY_SECONDS) if countable else None
    return Judged(subject, source, report, verdict, kinds, ap_per_keypoint(source, report), profile, measured)


def _profile(model: nn.Module) -> Profile | None:
    """Parameters and compute; None where the network is no PyTorch (an ONNX file), or cannot run on meta tensors."""
    if not any(True for _ in model.parameters()):
        return None
    try:
        return profile_model(model)
    except (ValueError, RuntimeError, NotImplementedError):
        return None


def teacher_subject(recipe: Recipe, skeleton: Skeleton, taught: str) -> tuple[Subject | None, str]:
    """The teacher of a run.

    Args:
        recipe: of the run.
        skeleton: of the data.
        taught: name of the run.

    Returns:
        The teacher, and None with a remark where it cannot be evaluated: there is none, its file is gone, or it does
        not know all keypoints.
    """
    if recipe.teacher is None or not recipe.method_type.taught:
        return None, ""
    try:
        teacher = build_teacher(recipe, recipe.teacher, skeleton)
    except (OSError, ValueError, RuntimeError) as error:
        return None, f"The teacher of {taught} could not be opened, and is left out: {error}"
    if teacher.covered is not None:
        return None, f"The teacher of {taught} does not know all keypoints of the data, and is left out."
    paradigm = paradigm_of(teacher.model)
    settings = recipe.inference if isinstance(recipe.inference, paradigm.inference) else None
    name = f"teacher of {taught}"
    return Subject(name, teacher.model, settings, recipe.loader.padding, {}, (), teaches=True), ""


def worst_people(judged: Judged, count: int) -> list[int]:
    """Rows of `verdict.found` by descending mean error, those not found first.

    Args:
        judged: with a verdict.
        count: at most.
    """
    assert judged.verdict is not None
    errors = judged.verdict.found.mean_errors()
    return [int(row) for row in np.argsort(-errors, kind="stable")[:count]]


def row_of(judged: Judged, sample_id: int) -> int | None:
    """The row of a person, by annotation id; None where this network's data lack her."""
    assert judged.verdict is not None
    rows = np.flatnonzero(judged.verdict.found.sample_ids == sample_id)
    return int(rows[0]) if len(rows) else None
