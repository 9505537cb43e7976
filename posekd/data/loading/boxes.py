"""From the boxes of a dataset's persons to their crops."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from posekd import geometry
from posekd.data.records import PoseRecords


def crops_of(
    records: PoseRecords, size: tuple[int, int], padding: float, rows: np.ndarray | slice = slice(None)
) -> tuple[Tensor, Tensor]:
    """Centres and scales `[P, 2]` of persons' crops, float32, in image pixels.

    Args:
        records: the persons.
        size: `(height, width)` of the crops; only its ratio matters.
        padding: factor by which crops are larger than boxes; boxes that are crops already are not enlarged.
        rows: which persons.
    """
    boxes, exact = torch.from_numpy(records.boxes[rows]), torch.from_numpy(records.are_exact()[rows])
    centers, scales = geometry.box_to_center_scale(boxes, size, padding)
    return centers, torch.where(exact[:, None], geometry.box_to_center_scale(boxes, size, 1.0)[1], scales)
