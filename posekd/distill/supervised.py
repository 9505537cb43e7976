"""Plain training on labels, for teachers and as the baseline of distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from posekd.codecs import heatmaps
from posekd.distill.base import FrozenTeacher, Method, heatmap_keypoints
from posekd.ops import distill_loss
from posekd.structures import CropBatch


@dataclass(frozen=True)
class SupervisedSettings:
    """Settings of plain training.

    Attributes:
        sigma: standard deviation of the label Gaussians in heatmap pixels.
        kind: how the labels are drawn, see `posekd.ops.render_heatmaps`.
    """

    sigma: float = 2.0
    kind: Literal["msra", "higherhrnet", "exact"] = "msra"


class Supervised(Method):
    """HRNet's keypoint MSE: half the mean over B, K, H, W of `(w_k (s - g))^2`, `w_k` 0 for unlabelled keypoints.

    A network of several stages is supervised at each (Newell et al. 2016): the loss is the sum over its stages.

    Args:
        student: the network that is trained.
        teacher: accepted, so that all methods are built alike, and never run.
        settings: see `SupervisedSettings`.
    """

    taught = False

    def __init__(
        self,
        student: nn.Module,
        teacher: FrozenTeacher | None = None,
        settings: SupervisedSettings | None = None,
    ) -> None:
        super().__init__(student)
        self.settings = settings or SupervisedSettings()

    def forward(self, batch: CropBatch) -> dict[str, Tensor]:
        """`{"labels": loss}`."""
        stages = heatmaps.read(self.student(batch.images))
        keypoints = heatmap_keypoints(batch.keypoints, batch.images, stages[0])
        sigma, kind = self.settings.sigma, self.settings.kind
        losses = [distill_loss(s, keypoints=keypoints, sigma=sigma, kind=kind, alpha=0.0, beta=0.0) for s in stages]
        return {"labels": torch.stack(cast(list[Tensor], losses)).sum()}

    def weights(self) -> dict[str, float]:
        """`{"labels": 1.0}`."""
        return {"labels": 1.0}
