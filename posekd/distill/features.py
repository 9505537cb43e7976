"""Mimicking of features instead of heatmaps: Table 3's row of SIMPLE that does not help."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from posekd.distill.base import FrozenTeacher
from posekd.ops import roi_align


class FeatureMimic(nn.Module):
    """Squared distance between the student's shared features inside boxes and those before the teacher's last layer.

    A 1x1 convolution takes the student's features to the teacher's channels. Both are overheard where they enter the
    heads, when the networks run.

    Args:
        student: with `pose_head`.
        teacher: with `final_layer`, as an HRNet has.

    Raises:
        ValueError: networks without such heads.
    """

    def __init__(self, student: nn.Module, teacher: FrozenTeacher) -> None:
        super().__init__()
        self._heard: dict[str, Tensor] = {}
        own = self._listen("student", student, "pose_head")
        theirs = self._listen("teacher", teacher.model, "final_layer")
        self.adapter = nn.Conv2d(own, theirs, 1)

    def _listen(self, who: str, network: nn.Module, name: str) -> int:
        """Remembers what enters a head; gives its channels."""
        head = next((module for path, module in network.named_modules() if path.split(".")[-1] == name), None)
        layer = None if head is None else next((m for m in head.modules() if isinstance(m, nn.Conv2d)), None)
        if head is None or layer is None:
            raise ValueError(f"the {who} has no {name}, where its features could be read: mimic heatmaps instead")

        def hear(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._heard[who] = inputs[0]

        head.register_forward_pre_hook(hear)
        return layer.in_channels

    def forward(self, table: Tensor, size: tuple[int, int]) -> Tensor:
        """The loss of the boxes that the teacher was last asked about.

        Args:
            table: `[N, 5]`, their boxes in the student's maps.
            size: `(height, width)` of the teacher's maps.
        """
        own, theirs = self._heard["student"], self._heard.pop("teacher")
        crops = self.adapter(roi_align(own.float(), table, size, 1.0, 2))
        loss: Tensor = (crops - theirs.detach().float()).square().sum((2, 3)).mean()
        return loss if torch.is_grad_enabled() else loss.detach()
