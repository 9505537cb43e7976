"""The complete contract between a distillation method and the trainer.

A method is an `nn.Module` that holds the student, whatever trains beside it (adapters), and a frozen
teacher. It turns a batch into named loss terms, already weighted: their sum is what the trainer
differentiates, and their names are what it logs. `weights()` gives the factor of each term, because the papers
disagree on what alpha multiplies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from posekd.bridging import Bridge
from posekd.codecs import heatmaps
from posekd.codecs.heatmaps import TokenHeatmaps
from posekd.distill.convert import convert_images
from posekd.structures import CropBatch, InputSpec


def input_spec(model: nn.Module) -> InputSpec:
    """The input that a network expects, from its attribute `spec`.

    Raises:
        TypeError: it has no such attribute.
    """
    spec = getattr(model, "spec", None)
    if not isinstance(spec, InputSpec):
        raise TypeError(f"{type(model).__name__} has no attribute `spec: InputSpec`, so its input is not known")
    return spec


class FrozenTeacher:
    """A network that is only run: eval mode, no gradients.

    It is deliberately not a module. A method that keeps one has no teacher in `parameters()`,
    `state_dict()` or `train()`, so the teacher can neither be optimised nor saved nor have its batch
    statistics drift.

    Args:
        model: a network with `spec: InputSpec`; the method's codec reads its output.
        dtype: parameter and compute dtype; `None` keeps the parameters and follows autocast.
        bridge: what its keypoints were taken for, where they are not the student's.

    Attributes:
        sharded: its parameters are spread over processes, which must therefore run it together.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None, bridge: Bridge | None = None) -> None:
        self.dtype, self.sharded, self.bridge = dtype, False, bridge
        self.model = model.to(dtype=dtype).eval().requires_grad_(False)

    @property
    def spec(self) -> InputSpec:
        """The input that the teacher expects."""
        return input_spec(self.model)

    @property
    def gives_tokens(self) -> bool:
        """Whether the network's output has tokens."""
        return bool(getattr(self.model, "gives_tokens", False))

    @property
    def covered(self) -> Tensor | None:
        """Which of the student's keypoints it knows, bool `[K]` on its device; None if all."""
        if self.bridge is None or all(self.bridge.covered):
            return None
        covered: Tensor = self.model.covered  # type: ignore[assignment]
        return covered

    def known(self, weight: Tensor) -> Tensor:
        """Weights `[B, K]` of keypoints in a teacher's term: 0 for those that the teacher does not know."""
        return weight if self.covered is None else weight * self.covered

    @torch.no_grad()
    def outputs(self, images: Tensor, source: InputSpec, spec: InputSpec | None = None) -> Any:
        """All that the network returns for a batch that was made for the student.

        Args:
            images: `[B, 3, H, W]`, normalised as `source` says.
            source: the student's specification.
            spec: the input to convert to; the network's own specification if None.
        """
        images = convert_images(images, source, spec or self.spec)
        if self.dtype is None:
            return self.model(images)
        with torch.autocast(images.device.type, enabled=False):
            return self.model(images.to(self.dtype))

    def answer(self, batch: CropBatch, source: InputSpec) -> Any:
        """What the network returns for crops that were made for the student; a cache has only the last heatmaps, and
        perhaps tokens.
        """
        if batch.teacher_maps is not None and batch.teacher_tokens:
            return TokenHeatmaps(batch.teacher_maps, *batch.teacher_tokens)
        if batch.teacher_maps is not None:
            return [batch.teacher_maps]
        return self.outputs(batch.images, source)

    def heatmaps(self, batch: CropBatch, source: InputSpec) -> list[Tensor]:
        """Heatmaps of each stage for crops that were made for the student; a cache has only those of the last stage."""
        return heatmaps.read(self.answer(batch, source))

    def _apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Follows the method's `.to()`, but keeps its own dtype."""
        self.model._apply(fn)
        if self.dtype is not None:
            self.model.to(dtype=self.dtype)


class CachedTeacher(FrozenTeacher):
    """A teacher whose cached heatmaps come with every batch; there is no network.

    Args:
        tokens: whether its tokens come with them.
        bridge: what the teacher's keypoints were taken for, where they are not the student's.
    """

    def __init__(self, tokens: bool = False, bridge: Bridge | None = None) -> None:
        super().__init__(nn.Identity(), bridge=bridge)
        self._tokens = tokens
        if bridge is not None:
            self.model.register_buffer("covered", torch.tensor(bridge.covered), persistent=False)

    @property
    def gives_tokens(self) -> bool:
        """Whether its tokens are stored."""
        return self._tokens

    def outputs(self, images: Tensor, source: InputSpec, spec: InputSpec | None = None) -> Any:
        """Refuses, because there is no network to run.

        Raises:
            ValueError: always.
        """
        raise ValueError("the batch has no cached heatmaps, and with train.teacher_cache there is no teacher to run")


class Method(nn.Module):
    """A student, perhaps a teacher, and the loss between them.

    Args:
        student: the network that is trained; it has `spec: InputSpec`.
        teacher: the network it learns from.

    Attributes:
        paradigm: class attribute, the paradigm of its students (`posekd.paradigms.PARADIGMS`).
        outputs: class attribute, the outputs that its students may have (`posekd.codecs.CODECS`).
        teacher_paradigm: class attribute, the paradigm of its teachers.
        teacher_outputs: class attribute, the outputs that its teachers may have.
        taught: class attribute, whether it learns from a teacher.
        fixed_shapes: class attribute, whether the shapes of a batch, without its `pixels`, fix those of all that it
            computes, and no value is looked at: then a CUDA graph can hold its step.
    """

    paradigm: ClassVar[str] = "top_down"
    outputs: ClassVar[tuple[str, ...]] = ("heatmaps",)
    teacher_paradigm: ClassVar[str] = "top_down"
    teacher_outputs: ClassVar[tuple[str, ...]] = ("heatmaps",)
    taught: ClassVar[bool] = True
    fixed_shapes: ClassVar[bool] = True
    student: nn.Module
    teacher: FrozenTeacher | None

    def __init__(self, student: nn.Module, teacher: FrozenTeacher | None = None) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher

    def forward(self, batch: Any) -> dict[str, Tensor]:
        """The weighted loss terms of a batch, scalars; the loss is their sum.

        Args:
            batch: what the paradigm prepares: a `CropBatch` or an `ImageBatch`.
        """
        raise NotImplementedError

    def start_epoch(self, epoch: int) -> None:
        """Is told before the first batch of each epoch (and when a run goes on in the midst of one) which one begins.

        Args:
            epoch: counted from 0.
        """

    def weights(self) -> dict[str, float]:
        """The resolved factor of each term that `forward` returns."""
        raise NotImplementedError

    @classmethod
    def asks_norms_of_the_batch(cls, settings: Any) -> bool:
        """Whether the teacher's norms follow the batch, so that they must not be folded.

        Args:
            settings: of this method.
        """
        return False

    @classmethod
    def learns_tokens(cls, settings: Any) -> bool:
        """Whether the student learns the teacher's tokens, which fit unaugmented crops only if they are cached.

        Args:
            settings: of this method.
        """
        return False

    @classmethod
    def why_not_unlabelled(cls, settings: Any) -> str | None:
        """Why nothing would be learnt from persons without labels, and what to set; None if something would.

        Such persons are taught by the teacher's term alone, in methods whose settings give it a weight for them.

        Args:
            settings: of this method.
        """
        if getattr(settings, "unlabelled_weight", 0.0) > 0:
            if settings.alpha > 0:
                return None
            return (
                "method.alpha is 0, plain training that asks no teacher, so nothing can be learnt from persons without "
                "labels: give alpha another value"
            )
        return (
            "this method learns nothing from persons without labels: give it a method.unlabelled_weight above 0 (fpd "
            "and mapd have that)"
        )

    @classmethod
    def why_not_partial(cls, settings: Any) -> str | None:
        """Why it cannot learn from a teacher that lacks some of the student's keypoints, and what to set; None if it
        can: those are then learnt from labels alone.

        Args:
            settings: of this method.
        """
        return "this method needs a teacher that knows all keypoints of the data: choose mapd, fpd or distilpose"

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Method:
        super()._apply(fn, recurse)
        if self.teacher is not None:
            self.teacher._apply(fn)
        return self


def check_same_maps(teacher: Tensor, student: Tensor) -> None:
    """Refuses heatmaps of a teacher that are not of the student's shape.

    Raises:
        ValueError: they are not.
    """
    if teacher.shape != student.shape:
        raise ValueError(
            f"the teacher's heatmaps are {tuple(teacher.shape)}, the student's {tuple(student.shape)}: teacher and "
            "student must have the same keypoints and output resolutions"
        )


def heatmap_keypoints(keypoints: Tensor, images: Tensor, heatmaps: Tensor) -> Tensor:
    """Keypoints `[B, K, 3]` from input pixels to heatmap pixels (`heatmap = input / 4`, no half-pixel shift)."""
    scale = heatmaps.shape[-1] / images.shape[-1]
    return torch.cat((keypoints[..., :2] * scale, keypoints[..., 2:]), -1)


class _CarryGradient(torch.autograd.Function):
    """Has the value `value` and the gradient of `loss`."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, loss: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[None, Tensor]:
        return None, grad[0]


def name_terms(loss: Tensor, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Attaches the gradient of a fused loss to its detached terms.

    A fused kernel gives one differentiable sum and its terms as bare numbers. The trainer wants named
    terms whose sum it can differentiate: here the first term carries the gradient of the whole sum, so
    each term still shows its own value (and a non-finite one its own name).

    Args:
        loss: differentiable scalar, the sum of `terms`.
        terms: detached, weighted scalars.
    """
    first, *others = terms
    carried = _CarryGradient.apply(terms[first], loss)
    return {first: carried, **{name: terms[name] for name in others}}
