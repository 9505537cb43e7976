"""Plain bottom-up training on labels, as in HigherHRNet: for bottom-up teachers and as a baseline.

With heatmaps s_i and label heatmaps g_i at two resolutions i, and tags at the first (Newell et al. 2017):

    L = sum_i L_i + 0.001 L_pull + 0.001 L_push,    L_i = mean over B, K, H, W of m_i (s_i - g_i)^2

m_i is 0 in crowds, on people without labelled keypoints, and outside the image. Pull and push: `posekd.ops.tag_loss`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from posekd.codecs import tagged_heatmaps
from posekd.distill.base import FrozenTeacher, Method, name_terms
from posekd.ops import distill_loss, render_heatmaps, tag_loss
from posekd.structures import ImageBatch


@dataclass(frozen=True)
class AssociativeEmbeddingSettings:
    """Settings of bottom-up training; the defaults are HigherHRNet's.

    Attributes:
        sigma: standard deviation of the label Gaussians in pixels of either heatmap; null for a 64th of the heatmap's
            width (so 2 and 4 at 512), which SmallerHRNet's code does to its students.
        kind: how the labels are drawn: `higherhrnet` truncates a keypoint to a pixel; `exact` draws it where the
            parser's half pixel will find it again, continuously. On ideal maps of twelve crowded COCO images at 256
            pixels that is an AP of 0.95 instead of 0.89.
        pull: weight of the pull term (people's tags towards their mean).
        push: weight of the push term.
        push_form: how people push each other: `exp` or `max`, see `posekd.ops.tag_loss`.

    Raises:
        ValueError: a sigma that is not positive, or a negative weight.
    """

    sigma: float | None = 2.0
    kind: Literal["higherhrnet", "exact"] = "higherhrnet"
    pull: float = 1e-3
    push: float = 1e-3
    push_form: Literal["exp", "max"] = "exp"

    def __post_init__(self) -> None:
        if self.sigma is not None and not self.sigma > 0:
            raise ValueError(f"sigma must be positive, or null for a 64th of the heatmap; got {self.sigma}")
        if self.pull < 0 or self.push < 0:
            raise ValueError(f"pull and push are weights and cannot be negative, got {self.pull} and {self.push}")


class AssociativeEmbedding(Method):
    """HigherHRNet's loss.

    Args:
        student: the network that is trained; gives `[B, 2 K, h, w]` and perhaps `[B, K, h', w']`.
        teacher: accepted, so that all methods are built alike, and never run.
        settings: see `AssociativeEmbeddingSettings`.
    """

    paradigm = teacher_paradigm = "bottom_up"
    outputs = teacher_outputs = ("tagged_heatmaps",)
    taught = False

    def __init__(
        self,
        student: nn.Module,
        teacher: FrozenTeacher | None = None,
        settings: AssociativeEmbeddingSettings | None = None,
    ) -> None:
        super().__init__(student)
        self.settings = settings or AssociativeEmbeddingSettings()

    def forward(self, batch: ImageBatch) -> dict[str, Tensor]:
        """`{"labels", "pull", "push"}`, each weighted."""
        said = tagged_heatmaps.read(self.student(batch.images))
        targets = label_heatmaps(said.heatmaps, batch, self.settings)
        terms = [
            heatmap_terms(s, None, g, mask, labels=1.0, teacher_weight=0.0)
            for s, g, mask in zip(said.heatmaps, targets, batch.masks, strict=False)  # perhaps the coarse ones alone
        ]
        loss, value, _ = (torch.stack(parts).sum() for parts in zip(*terms, strict=True))
        return {
            **name_terms(loss, {"labels": value}),
            **tag_terms(said.tags, batch, self.settings, 1.0),
        }

    def weights(self) -> dict[str, float]:
        """`{"labels": 1, "pull": 0.001, "push": 0.001}`."""
        return {"labels": 1.0, "pull": self.settings.pull, "push": self.settings.push}


def label_heatmaps(heatmaps: list[Tensor], batch: ImageBatch, settings: AssociativeEmbeddingSettings) -> list[Tensor]:
    """The label heatmaps of each resolution, of all people of an image: `[B, K, h, w]` each."""
    targets = []
    for maps, keypoints in zip(heatmaps, batch.keypoints, strict=False):  # perhaps the coarse ones alone
        size = (maps.shape[2], maps.shape[3])
        if settings.kind == "exact":  # the parser takes a pixel's middle, so a keypoint lies half a pixel before it
            keypoints = torch.cat((keypoints[..., :2] - 0.5, keypoints[..., 2:]), -1)
        targets.append(render_heatmaps(keypoints, size, settings.sigma or size[1] / 64, settings.kind)[0])
    return targets


def heatmap_terms(
    student: Tensor,
    teacher: Tensor | None,
    target: Tensor,
    mask: Tensor,
    *,
    labels: float,
    teacher_weight: float,
    known: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted masked mean-squared errors of one resolution, from one pass over it.

    Args:
        student: `[B, K, h, w]`.
        teacher: `[B, K, h, w]`, or None.
        target: `[B, K, h, w]`.
        mask: bool `[B, h, w]`.
        labels: weight of `mean m (s - g)^2`.
        teacher_weight: weight of `mean m (s - t)^2`.
        known: `[B, K]`, 0 for keypoints that are left out of that mean's sum; None if none are.

    Returns:
        The sum, differentiable, and its two terms, detached.
    """
    total = labels + teacher_weight
    # the kernel halves its means, and its two weights are alpha and 1 - alpha
    loss, (from_teacher, _, from_labels) = distill_loss(
        student,
        teacher,
        target,
        mask=mask,
        teacher_weight=known,
        alpha=teacher_weight / total,
        beta=0.0,
        return_terms=True,
    )
    return cast(Tensor, 2 * total * loss), 2 * labels * from_labels, 2 * teacher_weight * from_teacher


def tag_terms(
    tags: Tensor, batch: ImageBatch, settings: AssociativeEmbeddingSettings, weight: float
) -> dict[str, Tensor]:
    """`{"pull", "push"}` of a batch, each weighted and times `weight`; one of weight 0 is left out."""
    pull, push = tag_loss(tags, batch.keypoints[0], kind=settings.push_form)
    terms = {"pull": weight * settings.pull * pull.mean(), "push": weight * settings.push * push.mean()}
    return {name: term for name, term in terms.items() if weight * getattr(settings, name) > 0}
