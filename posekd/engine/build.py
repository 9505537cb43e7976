"""From a recipe to the objects that it describes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from posekd.data import FewLabels, PackedLoader, PoseSource, WithUnlabelled
from posekd.distill import METHODS, Method
from posekd.engine import distributed
from posekd.engine.evaluate import evaluate
from posekd.engine.examine import examine_run
from posekd.engine.hold_out import with_held_out
from posekd.engine.networks import build_model
from posekd.engine.recipes.datasets import open_dataset
from posekd.engine.recipes.recipe import Recipe, recipe_to_dict
from posekd.engine.scoring import METRICS, Report
from posekd.engine.teachers import kind_of, open_cache, teacher_card, teacher_of
from posekd.engine.training.ema import Ema
from posekd.engine.training.graph import CapturedSteps
from posekd.engine.training.loop import Job
from posekd.engine.training.optim import make_optimizer
from posekd.engine.training.step import Learner
from posekd.models import PoseModel, save_weights
from posekd.names import match
from posekd.paradigms import paradigm_of
from posekd.skeleton import Skeleton
from posekd.structures import Batch, Packed, map_tensors

Prepare = Callable[[Any], Batch]
Validate = Callable[[nn.Module], dict[str, float]]


def pick_device(name: str) -> torch.device:
    """The device of a name; `auto` is the GPU if there is one, under torchrun the GPU of this process.

    Raises:
        ValueError: not a device, or a GPU that does not exist.
    """
    name = distributed.local_device(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"{name!r} is not a device; use auto, cpu, cuda or cuda:0") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} was asked for, but torch sees no GPU here (`posekd doctor` says why)")
    return device


def build_method(recipe: Recipe, skeleton: Skeleton, device: torch.device) -> Method:
    """Student, teacher and loss on the device, compiled where the recipe says so."""
    loop, method_type = recipe.train, recipe.method_type
    student = build_model(recipe.student, skeleton.num_keypoints)
    _check_student(method_type, student)
    _check_names(student, skeleton)
    teacher = teacher_of(recipe, skeleton, student)
    student = distributed.synchronise_norms(student, device)
    method = cast(Any, method_type)(student, teacher, recipe.method)
    if loop.shard_teacher:  # moved to the device block by block, because the whole may not fit
        _shard_teacher(method, device)
    method.to(device)
    if loop.channels_last:
        _to_channels_last(method, loop.shard_teacher)
    return method


def _shard_teacher(method: Method, device: torch.device) -> None:
    if method.teacher is None:
        raise ValueError("train.shard_teacher: there is no teacher")
    distributed.shard(method.teacher.model, device)
    method.teacher.sharded = True


def _check_student(method: type[Method], model: PoseModel) -> None:
    """Refuses a student that the method cannot train."""
    if model.paradigm != method.paradigm or model.output not in method.outputs:
        fitting = sorted(
            name
            for name, (kind, _) in METHODS.items()
            if kind.paradigm == model.paradigm and model.output in kind.outputs
        )
        raise ValueError(
            f"{model.name} is a {kind_of(model.paradigm, model.output)}, and the method trains a "
            f"{kind_of(method.paradigm, *method.outputs)}: choose method.name among {', '.join(fitting) or 'none yet'}"
        )


def _check_names(student: PoseModel, skeleton: Skeleton) -> None:
    """Refuses initial weights that have learnt the keypoints in another order."""
    names = student.keypoint_names
    known = names is not None and len(names) == skeleton.num_keypoints
    if names is not None and not (known and _same_order(names, skeleton.keypoints)):
        raise ValueError(
            f"student.weights has learnt the keypoints {list(names)}, in this order, and the training data have "
            f"{list(skeleton.keypoints)}: start from other weights, or from a `backbone`"
        )


def _same_order(theirs: Sequence[str], ours: Sequence[str]) -> bool:
    try:
        return match(theirs, ours) == tuple(range(len(ours)))
    except ValueError:  # other keypoints
        return False


def _to_channels_last(method: Method, sharded: bool) -> None:  # FSDP takes contiguous parameters only
    method.student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if method.teacher is not None and not sharded:
        method.teacher.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _compile(method: Method, which: str, regions: bool) -> None:
    networks = [method.student] if which in ("student", "both") else []
    if which in ("teacher", "both") and method.teacher is not None:
        networks.append(method.teacher.model)
    for network in networks:
        for part in repeated_blocks(network) if regions else (network,):
            part.compile()


def repeated_blocks(network: nn.Module) -> list[nn.Module]:
    """The outermost modules of which a network has three or more of one class: what is compiled for one serves all."""
    counts = Counter(type(module) for module in network.modules())

    def below(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            ours = type(child).__module__.split(".")[0] not in ("torch", "torchvision")
            if ours and counts[type(child)] >= 3 and any(True for _ in child.children()):
                yield child
            else:
                yield from below(child)

    return list(below(network)) or [network]


def build_learner(recipe: Recipe, method: Method, device: torch.device) -> Learner:
    """The method with optimiser, scaler and average."""
    loop = recipe.train
    # copied before compilation, because a copy would share the compiled code
    ema = Ema(method.student, loop.ema_decay) if loop.ema_decay is not None else None
    _compile(method, loop.compile, loop.compile_regions)
    if loop.graph:
        _check_graph(recipe, device)
    learner = Learner(
        method=method,
        optimizer=make_optimizer(method.parameters(), recipe.optim, capturable=loop.graph),
        scaler=torch.amp.GradScaler(device.type, enabled=loop.precision == "fp16"),
        precision=loop.precision,
        clip_norm=recipe.optim.clip_norm,
        ema=ema,
        max_skips=loop.max_skips,
    )
    if loop.graph:
        learner.captured = CapturedSteps(learner)
    return learner


def _check_graph(recipe: Recipe, device: torch.device) -> None:
    """Refuses what a CUDA graph cannot hold. On the CPU the step runs as it is, so that a recipe can be tried there."""
    why = None
    if distributed.world() > 1:
        why = f"works in one process, and there are {distributed.world()}"
    elif recipe.train.shard_teacher:
        why = "cannot hold a teacher that is spread over processes (train.shard_teacher)"
    elif recipe.teacher is not None and recipe.teacher.name == "onnx" and recipe.method_type.taught:
        why = f"cannot hold the teacher {recipe.teacher.path}, which ONNX Runtime runs: write a cache of it first"
        why = None if recipe.train.teacher_cache is not None else why
    elif device.type not in ("cpu", "cuda"):
        why = f"needs a CUDA device, and this is {device}"
    if why is not None:
        raise ValueError(f"train.graph {why}; or set it to false")


def open_training_data(recipe: Recipe) -> PoseSource:
    """`train_data` with the labels that the recipe uses, followed by the unlabelled data."""
    source = open_dataset(recipe.train_data, recipe.paradigm.training_images)
    if recipe.labels is not None:
        source = FewLabels(source, recipe.labels)
    if recipe.unlabelled_data is not None:
        source = WithUnlabelled(source, open_dataset(recipe.unlabelled_data))
    return source


def batch_share(recipe: Recipe) -> int:
    """The number of rows per forward pass of this process: its share of the rows per optimiser step.

    Raises:
        ValueError: accumulation and processes do not divide the batch.
    """
    world, whole = distributed.world(), recipe.loader.batch_size
    share, rest = divmod(whole, recipe.train.accumulate * world)
    if rest or not share:
        raise ValueError(
            f"loader.batch_size {whole}, what one step sees, does not divide into train.accumulate "
            f"{recipe.train.accumulate} parts on each of {world} processes"
        )
    return share


def build_loader(recipe: Recipe, source: PoseSource, student: PoseModel) -> PackedLoader:
    """Training batches; one batch of the recipe is cut into `train.accumulate` of the loader's on each process."""
    loader = recipe.paradigm.open_loader(
        source,
        student.spec,
        replace(recipe.loader, batch_size=batch_share(recipe)),
        training=True,
        augmentation=recipe.augmentation,
        seed=recipe.seed,
        rank=distributed.rank(),
        world=distributed.world(),
        teacher_maps=open_cache(recipe, source),
    )
    loader.follow(recipe.train.epochs, len(loader) // recipe.train.accumulate * recipe.train.accumulate)
    return loader


def make_prepare(recipe: Recipe, model: PoseModel, source: PoseSource, device: torch.device) -> Prepare:
    """A function from packed bytes to a normalised batch on the device."""
    memory_format = torch.channels_last if recipe.train.channels_last else torch.contiguous_format
    prepare, spec = paradigm_of(model).prepare, model.spec
    # on the device once: a list would be copied at every step, and the host would wait for it
    flip = torch.as_tensor(source.records.skeleton.flip, device=device)
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def run(packed: Packed) -> Batch:
        moved = packed.to(device) if stream is None else _copy_beside(packed, device, stream)
        return prepare(moved, spec, flip, memory_format=memory_format)

    return run


def _copy_beside(packed: Packed, device: torch.device, stream: torch.cuda.Stream) -> Packed:
    """Copies a (pinned) batch on a stream of its own, so that it need not wait for the last step."""
    with torch.cuda.stream(stream):
        moved = packed.to(device)
    computing = torch.cuda.current_stream(device)
    computing.wait_stream(stream)

    def claim(tensor: torch.Tensor) -> torch.Tensor:
        tensor.record_stream(computing)  # the stream that owns the memory must not reuse it before it is read
        return tensor

    return map_tensors(moved, claim)


def validation_settings(recipe: Recipe) -> Any:
    """The settings of inference in a run's validations."""
    if recipe.inference.channels_last is not None:
        return recipe.inference
    return replace(recipe.inference, channels_last=recipe.train.channels_last)


def make_validate(recipe: Recipe, source: PoseSource, on_report: Callable[[Report], None] | None = None) -> Validate:
    """A function from a network to its scores on `source`, main one first; `on_report` gets the whole evaluation."""
    settings, loader = validation_settings(recipe), replace(recipe.loader, batch_size=batch_share(recipe))

    def run(model: nn.Module) -> dict[str, float]:
        report = evaluate(model, source, settings, loader=loader, tracking=recipe.tracking)
        if on_report is not None:
            on_report(report)
        numbers = report.numbers()
        if numbers is None:
            raise ValueError(f"nothing can be validated on val_data: {report.note}")
        return numbers

    return run


def build_job(recipe: Recipe, label: str = "train") -> Job:
    """Everything that the loop needs, at step 0.

    The student's initial weights depend on the seed alone, not on the method: two runs that differ in their
    method only start from the same student and see the same batches.

    Raises:
        ValueError, FileNotFoundError: data, weights or settings that do not fit, or data that look wrong (see
            `examine_run`); the message says which.
    """
    recipe = with_held_out(recipe)
    device = pick_device(recipe.train.device)
    source = open_training_data(recipe)
    keep = recipe.paradigm.evaluation_images
    validation = open_dataset(recipe.val_data, keep) if recipe.val_data is not None else None
    examine_run(recipe, source, validation)
    return assemble(recipe, source, validation, device, label)


def assemble(
    recipe: Recipe,
    source: PoseSource,
    validation: PoseSource | None,
    device: torch.device,
    label: str,
    on_report: Callable[[Report], None] | None = None,
) -> Job:
    """`build_job` with datasets that are already open; `on_report` gets every validation's whole evaluation."""
    skeleton = source.records.skeleton
    if validation is not None and validation.records.skeleton.keypoints != skeleton.keypoints:
        raise ValueError(
            f"train_data has the keypoints {list(skeleton.keypoints)}, "
            f"val_data {list(validation.records.skeleton.keypoints)}"
        )
    torch.manual_seed(recipe.seed)
    method = build_method(recipe, skeleton, device)
    student = method.student
    assert isinstance(student, PoseModel)
    metrics = validation.records.metrics if validation is not None else ()
    facts = {"recipe": recipe_to_dict(recipe), "skeleton": asdict(skeleton)}
    if method.teacher is not None and recipe.teacher is not None:
        facts["teacher"] = teacher_card(recipe.teacher, method.teacher)
    return Job(
        learner=build_learner(recipe, method, device),
        loader=build_loader(recipe, source, student),
        prepare=make_prepare(recipe, student, source, device),
        validate=make_validate(recipe, validation, on_report) if validation is not None else _no_validation,
        save_weights=lambda model, path, more: save_weights(cast(PoseModel, model), path, {**facts, **more}),
        folder=Path(recipe.out),
        settings=recipe.train,
        schedule=recipe.schedule,
        lr=recipe.optim.lr,
        facts=facts,
        label=label,
        seed=recipe.seed,
        scale=METRICS[metrics[0]].scale if metrics else 1.0,
        count_labelled=_count_labelled if recipe.has_unlabelled else None,
    )


def _count_labelled(packed: Packed) -> int:
    return int((packed.keypoints[..., 2] > 0).any(-1).sum())


def _no_validation(model: nn.Module) -> dict[str, float]:
    raise AssertionError("a recipe without val_data never validates")  # Recipe refuses the other settings
