"""Keypoints from heatmaps."""

from __future__ import annotations

import torch
from torch import Tensor

from posekd.ops import checks, library
from posekd.ops.reference import decode_heatmaps as definition

METHODS = ("argmax", "quarter", "dark")
LARGEST_BLUR = 63


def _output(heatmaps: Tensor) -> Tensor:
    wide = torch.float64 if heatmaps.dtype == torch.float64 else torch.float32
    return heatmaps.new_empty((*heatmaps.shape[:2], 3), dtype=wide)


def _kernel(heatmaps: Tensor, matrices: Tensor | None, method: int, blur: int) -> Tensor:
    keypoints = _output(heatmaps)
    if matrices is not None:
        matrices = matrices.to(keypoints.dtype).contiguous()
    library.core().decode_heatmaps(heatmaps.contiguous(), matrices, keypoints, method, blur, library.threads())
    return keypoints


def _reference(heatmaps: Tensor, matrices: Tensor | None, method: int, blur: int) -> Tensor:
    return definition.decode_heatmaps(heatmaps, METHODS[method], matrices, blur)


def _supports(heatmaps: Tensor, matrices: Tensor | None, method: int, blur: int) -> bool:
    """The device kernels have no float64; an empty batch has nothing to launch for."""
    return heatmaps.numel() > 0 and not (heatmaps.dtype == torch.float64 and library.on_device(heatmaps))


_decode = library.define(
    "decode_heatmaps(Tensor heatmaps, Tensor? matrices, int method, int blur) -> Tensor",
    kernel=_kernel,
    reference=_reference,
    fake=lambda heatmaps, matrices, method, blur: _output(heatmaps),
    supports=_supports,
)


def decode_heatmaps(
    heatmaps: Tensor,
    method: str = "quarter",
    *,
    matrices: Tensor | None = None,
    blur_kernel: int = 11,
) -> Tensor:
    """Finds the peak of every map.

    * `"argmax"`: the pixel of the maximum; the first in row-major order wins ties.
    * `"quarter"`: HRNet (`get_final_preds`). A quarter of a pixel toward the higher neighbour in x and in y,
      only if `1 < x < W - 1` and `1 < y < H - 1` (so column 1 is excluded, column W - 2 is not). Equal
      neighbours shift nothing.
    * `"dark"`: DARK (Zhang et al., CVPR 2020). The map is blurred as `cv2.GaussianBlur(map, (k, k), 0)` does
      over a zero border, rescaled to its former maximum, clamped at 1e-10 and its logarithm taken; one Newton
      step from the maximum, only if `1 < x < W - 2` and `1 < y < H - 2`. A step that is not finite, or a map
      whose blurred maximum is not positive, leaves the maximum's pixel.

    The score is the maximum. A keypoint whose maximum is not positive is put at (0, 0), as HRNet does, before
    the matrices are applied. A map that holds a NaN has score NaN, and is put at (0, 0) likewise. There is
    no derivative.

    Args:
        heatmaps: float `[B, K, H, W]`.
        method: `"argmax"`, `"quarter"` or `"dark"`.
        matrices: float `[B, 2, 3]`, heatmap pixel to image pixel (`posekd.geometry.heatmap_matrices`), or None
            for coordinates in heatmap pixels.
        blur_kernel: odd size of DARK's blur, 3 to 63: 11 for maps drawn with sigma 2, 17 for sigma 3. Up to 9 the taps
            are OpenCV's table, beyond it a Gaussian of sigma 0.3 ((k - 1) / 2 - 1) + 0.8.

    Returns:
        `[B, K, 3]` (x, y, score), float32 (float64 for float64 maps).

    Raises:
        TypeError: tensors that are not of a float type.
        ValueError: a wrong shape, method, device or blur.

    Examples:
        >>> import torch
        >>> from posekd.ops import decode_heatmaps, render_heatmaps
        >>> heatmaps, _ = render_heatmaps(torch.tensor([[[20.3, 31.75, 1.0]]]), (64, 48), kind="exact")
        >>> decode_heatmaps(heatmaps, "quarter")[0, 0, :2].tolist()
        [20.25, 31.75]
        >>> [round(x, 1) for x in decode_heatmaps(heatmaps, "dark")[0, 0, :2].tolist()]
        [20.3, 31.8]
    """
    checks.check_tensor("heatmaps", heatmaps, "B K H W")
    if heatmaps.shape[2] < 1 or heatmaps.shape[3] < 1:
        raise ValueError(f"heatmaps must have at least one pixel, got shape {tuple(heatmaps.shape)}")
    checks.check_choice("method", method, METHODS)
    if blur_kernel % 2 != 1 or not 3 <= blur_kernel <= LARGEST_BLUR:
        raise ValueError(f"blur_kernel must be an odd number from 3 to {LARGEST_BLUR}, got {blur_kernel}")
    if matrices is not None:
        checks.check_tensor("matrices", matrices, "B 2 3", (torch.float32, torch.float64))
        checks.check_shape("matrices", matrices, (heatmaps.shape[0], 2, 3), "heatmaps")
        checks.check_device("matrices", matrices, heatmaps, "heatmaps")
    return _decode(heatmaps.detach(), matrices, METHODS.index(method), int(blur_kernel))
