"""SmallerHRNet: HigherHRNet distilled bottom-up, heatmaps and tags (the paper's Section 3.2).

With heatmaps s_i, t_i, g_i of student, teacher and labels at two resolutions, tags of student and teacher at the
first, and the mask m_i (0 in crowds, on people without labelled keypoints, outside the image):

    L_mse   = sum_i mean over B, K, H, W of m_i (s_i - g_i)^2                     heatmaps against the labels
    L_group = 0.001 L_pull + 0.001 L_push                                         associative embedding
    L_pd    = sum_i mean over B, K, H, W of m_i (s_i - t_i)^2                     heatmaps against the teacher
    L_gd    = sum over K, H, W of (tag_s - tag_t)^2                               tags against the teacher
    L       = alpha (L_mse + L_group) + (1 - alpha) (L_pd + L_gd),  alpha = 0.9

Alpha weighs the LABELS here, the teacher in FPD and MAPD. L_gd as printed is a sum of 17 x 128 x 128 squares beside
means of about 0.001, and would leave nothing else to learn; the authors' public code computes it, drops it, and takes
the coarse heatmap term once more in its place, summed over the batch. Hence three readings, `tag_reduction`:

    mean      mean over B, K, H, W of (tag_s - tag_t)^2                           the default
    paper     mean over B of the printed sum
    authors   sum over B of the coarse heatmap term, so L_pd(coarse) counts 1 + B times and no tag is distilled

Keypoints that the teacher does not know (`posekd.bridging`) are left out of L_pd and L_gd, and learn from labels alone.

Tags are not heatmaps: they lie several units apart, so even the mean is ten or twenty times the teacher's heatmap
term when both have been learnt. `tag_weight` multiplies L_gd; 0.001 sets it beside L_pull and L_push.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from posekd.codecs import tagged_heatmaps
from posekd.codecs.tagged_heatmaps import STRIDES, TaggedHeatmaps
from posekd.distill.associative_embedding import (
    AssociativeEmbeddingSettings,
    heatmap_terms,
    label_heatmaps,
    tag_terms,
)
from posekd.distill.base import FrozenTeacher, Method, check_same_maps, input_spec, name_terms
from posekd.structures import ImageBatch


@dataclass(frozen=True)
class SmallerHRNetSettings(AssociativeEmbeddingSettings):
    """Settings of SmallerHRNet's distillation.

    Attributes:
        alpha: weight of the labels' terms; the teacher's weigh 1 - alpha. The paper's ablation uses 0.5.
        distil_tags: whether the loss has the term L_gd ("+" in the paper's Table 2).
        tag_reduction: `mean`, `paper` or `authors`, see above.
        tag_weight: factor of L_gd besides 1 - alpha: 1 as printed; `authors` has no L_gd. The effect of 0.001 is in
            `docs/bottomup.md`.
        teacher_mode: `eval`, or `train`: batch norms of the teacher by the statistics of the batch, as the authors'
            code leaves them.

    Raises:
        ValueError: alpha outside 0..1, a negative tag_weight, and what `AssociativeEmbeddingSettings` refuses.
    """

    alpha: float = 0.9
    distil_tags: bool = True
    tag_reduction: Literal["mean", "paper", "authors"] = "mean"
    tag_weight: float = 1.0
    teacher_mode: Literal["eval", "train"] = "eval"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"smallerhrnet: alpha must be in 0..1, got {self.alpha}; the teacher weighs 1 - alpha")
        if self.tag_weight < 0:
            raise ValueError(f"smallerhrnet: tag_weight is a weight and cannot be negative, got {self.tag_weight}")


class SmallerHRNet(Method):
    """The SmallerHRNet loss between a student and a HigherHRNet teacher.

    Args:
        student: the network that is trained; gives `[B, 2 K, h, w]` and `[B, K, h', w']`.
        teacher: a network that gives maps of the same sizes.
        settings: see `SmallerHRNetSettings`.

    Raises:
        ValueError: no teacher.
    """

    paradigm = teacher_paradigm = "bottom_up"
    outputs = teacher_outputs = ("tagged_heatmaps",)

    def __init__(
        self, student: nn.Module, teacher: FrozenTeacher | None, settings: SmallerHRNetSettings | None = None
    ) -> None:
        if teacher is None:
            raise ValueError("smallerhrnet distils from a teacher, and none was given")
        super().__init__(student, teacher)
        self.settings = settings or SmallerHRNetSettings()
        teacher.model.train(self.settings.teacher_mode == "train")

    def forward(self, batch: ImageBatch) -> dict[str, Tensor]:
        """`{"labels", "teacher", "pull", "push", "teacher_tags"}`, each weighted; terms of weight 0 are left out."""
        settings, B = self.settings, len(batch)
        said = tagged_heatmaps.read(self.student(batch.images))
        s, s_tags = said.heatmaps, said.tags
        taught = self._ask_teacher(batch, s)
        t, t_tags = taught.heatmaps, taught.tags
        g = label_heatmaps(s, batch, settings)
        labels, teacher = settings.alpha, 1 - settings.alpha

        repeats = settings.distil_tags and settings.tag_reduction == "authors"
        coarse_teacher = teacher * (1 + B) if repeats else teacher
        assert self.teacher is not None
        known = None if self.teacher.covered is None else self.teacher.covered.float().expand(B, -1)
        coarse, fine = (
            heatmap_terms(s[i], t[i], g[i], batch.masks[i], labels=labels, teacher_weight=weight, known=known)
            for i, weight in enumerate((coarse_teacher, teacher))
        )
        l_mse, l_pd = coarse[1] + fine[1], coarse[2] + fine[2]

        terms = name_terms(coarse[0] + fine[0], {"labels": l_mse, "teacher": l_pd})
        terms |= tag_terms(s_tags, batch, settings, labels)
        if settings.distil_tags and not repeats and teacher * settings.tag_weight > 0:
            squares = (s_tags.float() - t_tags.float()).square()
            if known is not None:
                squares = squares * known[..., None, None]
            l_gd = squares.mean() if settings.tag_reduction == "mean" else squares.sum() / B
            terms["teacher_tags"] = teacher * settings.tag_weight * l_gd
        return terms

    @classmethod
    def asks_norms_of_the_batch(cls, settings: SmallerHRNetSettings) -> bool:
        """See `Method.asks_norms_of_the_batch`: in the mode that the authors' code leaves its teacher in."""
        return settings.teacher_mode == "train"

    def weights(self) -> dict[str, float]:
        """Alpha for the labels' terms, 1 - alpha for the teacher's; for `authors` see the module's docstring."""
        settings = self.settings
        own = {"labels": 1.0, "pull": settings.pull, "push": settings.push}
        weights = {name: settings.alpha * weight for name, weight in own.items()}
        weights["teacher"] = 1 - settings.alpha
        if settings.distil_tags and settings.tag_reduction != "authors":
            weights["teacher_tags"] = (1 - settings.alpha) * settings.tag_weight
        return weights

    @classmethod
    def why_not_partial(cls, settings: SmallerHRNetSettings) -> str | None:
        """See `Method.why_not_partial`: labels must have a weight."""
        return None if settings.alpha > 0 else "method.alpha is 0, so nothing is learnt from labels: raise it"

    def _ask_teacher(self, batch: ImageBatch, s: list[Tensor]) -> TaggedHeatmaps:
        """The teacher's heatmaps and tags of the batch, at the student's own size.

        Raises:
            ValueError: maps of another size or number of keypoints.
        """
        assert self.teacher is not None
        height, width = batch.images.shape[2:]
        seen = replace(self.teacher.spec, size=(height, width))  # it is convolutional: any size goes
        said = tagged_heatmaps.read(self.teacher.outputs(batch.images, input_spec(self.student), seen))
        if len(s) != len(STRIDES) or len(said.heatmaps) != len(STRIDES):
            raise ValueError(
                f"smallerhrnet distils heatmaps of two resolutions; the student has {len(s)}, and the teacher "
                f"{len(said.heatmaps)}: choose other networks, or associative_embedding for a student alone"
            )
        for mine, other in zip(s, said.heatmaps, strict=True):
            check_same_maps(other, mine)
        return said
