"""DARK by small kernels, whose taps OpenCV takes from a table; the weight of "exact" targets at the border."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from helpers import backends

from posekd.ops import decode_heatmaps, distill_loss, render_heatmaps
from posekd.ops.reference.decode_heatmaps import blur_taps

# OpenCV's table, in 256ths
TAPS = {
    3: [64, 128, 64],
    5: [16, 64, 96, 64, 16],
    7: [8, 28, 56, 72, 56, 28, 8],
    9: [4, 13, 30, 51, 60, 51, 30, 13, 4],
}


def dark(plane: np.ndarray, kernel: int) -> np.ndarray:
    """DARK in float64 around the maximum: zero border, blur, rescale, logarithm, one Newton step."""
    taps = np.array(TAPS[kernel]) / 256
    y, x = np.unravel_index(plane.argmax(), plane.shape)
    along = np.apply_along_axis(np.convolve, 1, plane.astype(np.float64), taps, "same")
    blurred = np.apply_along_axis(np.convolve, 0, along, taps, "same")
    log = np.log(np.maximum(blurred * plane.max() / blurred.max(), 1e-10))
    gradient = 0.5 * np.array([log[y, x + 1] - log[y, x - 1], log[y + 1, x] - log[y - 1, x]])
    xx = 0.25 * (log[y, x + 2] - 2 * log[y, x] + log[y, x - 2])
    yy = 0.25 * (log[y + 2, x] - 2 * log[y, x] + log[y - 2, x])
    xy = 0.25 * (log[y + 1, x + 1] - log[y - 1, x + 1] - log[y + 1, x - 1] + log[y - 1, x - 1])
    return np.array([x, y]) - np.linalg.solve([[xx, xy], [xy, yy]], gradient)


class TestDarkWithSmallKernels:
    @pytest.mark.parametrize("kernel", TAPS)
    def test_the_taps_are_opencvs(self, kernel: int) -> None:
        assert blur_taps(kernel) == [tap / 256 for tap in TAPS[kernel]]
        if kernel < 9:  # older OpenCV has no row for 9
            assert blur_taps(kernel) == cv2.getGaussianKernel(kernel, 0)[:, 0].tolist()

    @pytest.mark.parametrize("kernel", [11, 13, 17, 63])
    def test_wider_kernels_follow_the_formula(self, kernel: int) -> None:
        np.testing.assert_allclose(blur_taps(kernel), cv2.getGaussianKernel(kernel, 0)[:, 0], rtol=1e-12)

    @pytest.mark.parametrize("kernel", TAPS)
    def test_decoding_blurs_with_them(self, backend: backends.Backend, kernel: int) -> None:
        maps, _ = render_heatmaps(torch.tensor([[[8.3, 11.75, 1.0]]]), (20, 17), kind="exact")
        maps = maps + 0.02 * torch.randn(maps.shape, generator=torch.Generator().manual_seed(0))
        found = decode_heatmaps(maps.to(backend.device), "dark", blur_kernel=kernel)[0, 0, :2]
        np.testing.assert_allclose(found.cpu().numpy(), dark(maps[0, 0].numpy(), kernel), atol=1e-4)

    def test_a_pixel_of_half_the_height_beside_the_peak(self, backend: backends.Backend) -> None:
        plane = torch.zeros(9, 9)
        plane[4, 4], plane[4, 5] = 1.0, 0.5
        x, y, score = decode_heatmaps(plane.to(backend.device)[None, None], "dark", blur_kernel=5)[0, 0].tolist()
        assert (x, y, score) == (pytest.approx(4.288754, abs=1e-5), pytest.approx(4, abs=1e-5), 1.0)


# DARK's adjust_target_weight at sigma 2: weight 0 if int(x - 6) >= size or int(x + 7) < 0, int() toward zero
BORDER = [(-6.9, 1), (-7.1, 1), (-7.9, 1), (-8.0, 0), (-8.1, 0), (53.4, 1), (53.9, 1), (54.0, 0), (54.1, 0)]


class TestExactTargetsAtTheBorder:
    @pytest.mark.parametrize(("x", "weight"), BORDER)
    def test_the_windows_ends_are_truncated_toward_zero(
        self, backend: backends.Backend, x: float, weight: float
    ) -> None:
        keypoints = torch.tensor([[[x, 20.0, 1.0], [20.0, x, 1.0]]], device=backend.device)
        assert render_heatmaps(keypoints, (48, 48), 2.0, "exact")[1].tolist() == [[weight, weight]]

    @pytest.mark.parametrize(("x", "weight"), BORDER)
    def test_labels_drawn_inside_the_loss_follow(self, backend: backends.Backend, x: float, weight: float) -> None:
        """With a weight of 0 the student's map of ones is not read; with 1 it is half the mean square of 1 - label."""
        student, keypoints = torch.ones(1, 1, 48, 48), torch.tensor([[[x, 20.0, 1.0]]])
        loss = distill_loss(
            student.to(backend.device), keypoints=keypoints.to(backend.device), kind="exact", alpha=0, beta=0
        )
        labels, _ = render_heatmaps(keypoints, (48, 48), 2.0, "exact")
        assert loss.item() == pytest.approx(weight * 0.5 * (1 - labels).square().mean().item(), abs=1e-6)
