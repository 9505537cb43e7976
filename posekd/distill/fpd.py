"""FPD: fast pose distillation (Zhang, Zhu, Ye, "Fast Human Pose Estimation", CVPR 2019), section 3.

With student, teacher and label heatmaps s, t, g of K keypoints:

    g_k(p)  a Gaussian of standard deviation sigma about keypoint k                                (Eq. 2)
    L_mse = (1/K) sum_k ||s_k - g_k||^2                                                            (Eq. 3)
    L_pd  = (1/K) sum_k ||s_k - t_k||^2                                                            (Eq. 4)
    L_fpd = alpha L_pd + (1 - alpha) L_mse,  alpha = 0.5                                           (Eq. 5)

summed over the stages of the student. Paper and released code differ in several places:

* Eq. 2 prints the factor 1 / (2 pi sigma^2); the code draws a peak of 1, and so does this.
* Eq. 3 and 4 print a sum over pixels; the code takes half the mean over batch, keypoints and pixels, and so does this.
  All terms scale alike.
* The paper wants the teacher's maps for the keypoints that annotators missed; the code masks them by the labels'
  visibility. `masked` chooses, the code's way by default.

Keypoints that the teacher does not know (`posekd.bridging`) are left out of its term, and learn from labels alone.

A person without a single labelled keypoint is unlabelled: the loss has no label term, and the teacher's term counts
with all keypoints and the weight `unlabelled_weight` (the recipe's `labels` and `unlabelled_data` make such persons).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from posekd.codecs import heatmaps
from posekd.distill.base import (
    FrozenTeacher,
    Method,
    check_same_maps,
    heatmap_keypoints,
    input_spec,
    name_terms,
)
from posekd.distill.convert import resample
from posekd.ops import distill_loss, render_heatmaps
from posekd.structures import CropBatch

CLAMP = 1e-6


@dataclass(frozen=True)
class FPDSettings:
    """Settings of FPD.

    Attributes:
        alpha: weight of the teacher's term; the labels weigh 1 - alpha. 0 is plain training (Table 8), which
            asks no teacher, for unlabelled persons neither.
        teacher_stage: which heatmaps teach: `last`, the teacher's final ones at every stage of the student; or
            `matched`, stage by stage.
        loss: of the teacher's term: `mse` (Eq. 4), or `cross_entropy` between L1-normalised maps (Table 7).
        masked: whether keypoints without a label are left out of the teacher's term too.
        unlabelled_weight: weight of the teacher's term for persons without any label, in place of alpha.
        sigma: standard deviation of the label Gaussians in heatmap pixels.
        kind: how the labels are drawn, see `posekd.ops.render_heatmaps`.

    Raises:
        ValueError: a weight out of range.
    """

    alpha: float = 0.5
    teacher_stage: Literal["last", "matched"] = "last"
    loss: Literal["mse", "cross_entropy"] = "mse"
    masked: bool = True
    unlabelled_weight: float = 1.0
    sigma: float = 2.0
    kind: Literal["msra", "higherhrnet", "exact"] = "msra"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"fpd: alpha must be in 0..1, because the labels weigh 1 - alpha; got {self.alpha}")
        if self.unlabelled_weight < 0:
            raise ValueError(f"fpd: unlabelled_weight is a weight, 0 or more, got {self.unlabelled_weight}")


class FPD(Method):
    """The FPD loss between a student and a frozen teacher, each of one stage or several.

    Args:
        student: the network that is trained; it has `spec: InputSpec`.
        teacher: the network it learns from.
        settings: see `FPDSettings`.

    Raises:
        ValueError: no teacher.
    """

    def __init__(self, student: nn.Module, teacher: FrozenTeacher | None, settings: FPDSettings | None = None) -> None:
        if teacher is None:
            raise ValueError("fpd distils from a teacher, and none was given")
        super().__init__(student, teacher)
        self.settings = settings or FPDSettings()

    def forward(self, batch: CropBatch) -> dict[str, Tensor]:
        """`{"labels", "teacher"}`, each weighted and summed over the student's stages."""
        alpha = self.settings.alpha
        stages = heatmaps.read(self.student(batch.images))
        keypoints = heatmap_keypoints(batch.keypoints, batch.images, stages[0])
        size = (stages[0].shape[-2], stages[0].shape[-1])
        g, w = render_heatmaps(keypoints, size, self.settings.sigma, self.settings.kind)  # Eq. 2
        share = self._teacher_share(keypoints, w)
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for s, t in zip(stages, self._teacher_maps(batch, stages), strict=True):
            mse_teacher = t if self.settings.loss == "mse" else None
            loss, (pd, _, mse) = distill_loss(
                s, mse_teacher, g, weight=w, teacher_weight=share.sqrt(), alpha=alpha, beta=0.0, return_terms=True
            )  # Eq. 3, 4, 5
            if self.settings.loss == "cross_entropy" and t is not None:
                pd = cross_entropy(s, t, share)
                loss = loss + alpha * pd
            parts.append((loss, mse, pd.detach()))
        loss, mse, pd = (torch.stack(column).sum() for column in zip(*parts, strict=True))
        terms = {"labels": (1.0 - alpha) * mse, "teacher": alpha * pd}
        return name_terms(loss, {name: terms[name] for name, weight in self.weights().items() if weight != 0})

    def weights(self) -> dict[str, float]:
        """Eq. 5: labels 1 - alpha, teacher alpha."""
        return {"labels": 1.0 - self.settings.alpha, "teacher": self.settings.alpha}

    @classmethod
    def why_not_partial(cls, settings: FPDSettings) -> str | None:
        """See `Method.why_not_partial`: labels must have a weight."""
        return None if settings.alpha < 1 else "method.alpha is 1, so nothing is learnt from labels: lower it"

    def _teacher_maps(self, batch: CropBatch, stages: list[Tensor]) -> list[Tensor] | list[None]:
        """The heatmaps that each stage of the student learns from; the teacher is not run for a term of weight 0."""
        if self.settings.alpha == 0:
            return [None] * len(stages)
        assert self.teacher is not None
        taught = self.teacher.heatmaps(batch, input_spec(self.student))
        if self.settings.teacher_stage == "last":
            taught = taught[-1:] * len(stages)
        if len(taught) != len(stages):
            raise ValueError(
                f"the teacher has {len(taught)} stages and the student {len(stages)}, so they cannot teach stage by "
                "stage: set method.teacher_stage to last"
            )
        maps = [resample(t, (s.shape[-2], s.shape[-1])) for s, t in zip(stages, taught, strict=True)]
        check_same_maps(maps[0], stages[0])
        return maps

    def _teacher_share(self, keypoints: Tensor, w: Tensor) -> Tensor:
        """Weight `[B, K]` of each keypoint in the teacher's term, relative to alpha."""
        settings = self.settings
        labelled = (keypoints[..., 2] > 0).any(-1, keepdim=True)
        alone = settings.unlabelled_weight / settings.alpha if settings.alpha else 0.0
        share = torch.where(labelled, w if settings.masked else torch.ones_like(w), alone)
        return share if self.teacher is None else self.teacher.known(share)


def cross_entropy(s: Tensor, t: Tensor, weight: Tensor) -> Tensor:
    """Table 7: the cross entropy of student and teacher maps, each divided by its L1 norm.

    Heatmaps may be negative, where a logarithm does not exist: both are clamped to `CLAMP` first. Eq. 4 as printed, a
    sum over pixels, is 2 H W times its form here; the cross entropy is divided by the same, so that alpha keeps its
    meaning.

    Args:
        s: student's maps `[B, K, H, W]`.
        t: teacher's maps, same shape.
        weight: `[B, K]` of the keypoints; where it is 0 nothing is read.

    Returns:
        A scalar, float32 or wider: mean over B, K of `weight * ce / (2 H W)`.
    """
    wide = torch.promote_types(s.dtype, torch.float32)
    read = (weight > 0)[..., None, None]
    p, q = (torch.where(read, x.to(wide), 1.0).clamp_min(CLAMP).flatten(2) for x in (s, t))
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    entropy = -(q * p.log()).sum(-1)
    return (weight * entropy).mean() / (2 * s.shape[-2] * s.shape[-1])
