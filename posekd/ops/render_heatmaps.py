"""Gaussian heatmaps from keypoints."""

from __future__ import annotations

import torch
from torch import Tensor

from posekd.ops import checks, library
from posekd.ops.reference import render_heatmaps as definition

KINDS = ("msra", "higherhrnet", "exact")


def _weight(keypoints: Tensor) -> Tensor:
    return keypoints.new_empty((keypoints.shape[0], keypoints.shape[2]), dtype=torch.float32)


def _outputs(keypoints: Tensor, height: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    maps = keypoints.new_empty((keypoints.shape[0], keypoints.shape[2], height, width), dtype=dtype)
    return maps, _weight(keypoints)


def _kernel(
    keypoints: Tensor, height: int, width: int, sigma: float, kind: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    maps, weight = _outputs(keypoints, height, width, dtype)
    library.core().render_heatmaps(keypoints.float().contiguous(), maps, weight, sigma, kind, library.threads())
    return maps, weight


def _kernel_into(out: Tensor, keypoints: Tensor, sigma: float, kind: int) -> Tensor:
    weight = _weight(keypoints)
    library.core().render_heatmaps(keypoints.float().contiguous(), out, weight, sigma, kind, library.threads())
    return weight


def _reference_into(out: Tensor, keypoints: Tensor, sigma: float, kind: int) -> Tensor:
    maps, weight = _reference(keypoints, out.shape[2], out.shape[3], sigma, kind, out.dtype)
    out.copy_(maps)
    return weight


def _reference(
    keypoints: Tensor, height: int, width: int, sigma: float, kind: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return definition.render_heatmaps(keypoints.float(), (height, width), sigma, KINDS[kind], dtype)


def _supports(keypoints: Tensor, height: int, width: int, sigma: float, kind: int, dtype: torch.dtype) -> bool:
    """The device kernels have no float64; an empty batch has nothing to launch for."""
    empty = keypoints.shape[0] * keypoints.shape[2] == 0
    return not empty and not (dtype == torch.float64 and library.on_device(keypoints))


_render = library.define(
    "render_heatmaps(Tensor keypoints, int height, int width, float sigma, int kind, ScalarType dtype)"
    " -> (Tensor, Tensor)",
    kernel=_kernel,
    reference=_reference,
    fake=lambda keypoints, height, width, sigma, kind, dtype: _outputs(keypoints, height, width, dtype),
    supports=_supports,
)
_render_into = library.define(
    "render_heatmaps_into(Tensor(a!) out, Tensor keypoints, float sigma, int kind) -> Tensor",
    kernel=_kernel_into,
    reference=_reference_into,
    fake=lambda out, keypoints, sigma, kind: _weight(keypoints),
    supports=lambda out, keypoints, sigma, kind: _supports(
        keypoints, out.shape[2], out.shape[3], sigma, kind, out.dtype
    ),
)


def render_heatmaps(
    keypoints: Tensor,
    size: tuple[int, int],
    sigma: float = 2.0,
    kind: str = "msra",
    *,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draws one Gaussian per keypoint, peak 1, where the batch lives.

    The kinds differ in where the centre is and how far the Gaussian reaches; each is the rule of public code,
    for every sigma:

    * `"msra"`: HRNet (`JointsDataset.generate_target`). Centre `int(x + 0.5)`, window of 3 sigma. The weight
      is `min(visibility, 1)`, and 0 when the window lies outside the map; a keypoint is drawn if its weight is
      above 0.5. Where 3 sigma is not an integer HRNet's window is lopsided, its peak up to one pixel off.
    * `"higherhrnet"`: HigherHRNet (`HeatmapGenerator`). Centre `int(x)`, window of 3 sigma + 1. A keypoint
      counts (weight 1) if its visibility is above 0 and its centre inside the map. Where 3 sigma is not an
      integer the window's corner is rounded half to even, and the peak lies between pixels.
    * `"exact"`: DARK's unbiased encoding. Continuous centre c, no window. The weight is `min(visibility, 1)`, and 0
      when `int(c - 3 sigma)` is at least the map's size or `int(c + 3 sigma + 1)` is below 0 on either axis (`int`
      truncates toward zero); a keypoint is drawn if its weight is above 0.5.

    A keypoint with a NaN or infinite coordinate, or a NaN visibility, is not drawn and has weight 0. There is no
    derivative. Positions are taken as float32.

    Args:
        keypoints: float `[B, K, 3]` (x, y, visibility), or `[B, P, K, 3]` for P people in one map, who are
            merged by the maximum. Heatmap pixels, integers at pixel centres.
        size: `(height, width)` of the maps.
        sigma: standard deviation in heatmap pixels.
        kind: `"msra"`, `"higherhrnet"` or `"exact"`.
        dtype: of the maps.
        out: contiguous `[B, K, H, W]` in `dtype` to draw into; every pixel is written. A fresh buffer of many megabytes
            costs more than the drawing.

    Returns:
        heatmaps `[B, K, H, W]` in `dtype` (`out`, if given), and weights `[B, K]` in float32 (the maximum over people).

    Raises:
        TypeError: keypoints that are not a float tensor, or a `dtype` that is not a float type.
        ValueError: a wrong shape, size, sigma or kind.

    Examples:
        >>> import torch
        >>> from posekd.ops import render_heatmaps
        >>> keypoints = torch.tensor([[[20.0, 30.0, 2.0], [5.0, 5.0, 0.0]]])  # x, y, visibility
        >>> heatmaps, weights = render_heatmaps(keypoints, (64, 48), sigma=2.0)
        >>> heatmaps.shape, weights.tolist()
        (torch.Size([1, 2, 64, 48]), [[1.0, 0.0]])
        >>> heatmaps[0, 0, 30, 20].item()
        1.0
    """
    checks.check_tensor("keypoints", keypoints, "B P K 3" if _people_given(keypoints) else "B K 3")
    if keypoints.shape[-1] != 3:
        raise ValueError(f"keypoints must end in 3 numbers (x, y, visibility), got shape {tuple(keypoints.shape)}")
    checks.check_size("size", size)
    checks.check_positive("sigma", sigma)
    checks.check_choice("kind", kind, KINDS)
    checks.check_dtype("dtype", dtype)
    people = (keypoints if keypoints.ndim == 4 else keypoints.unsqueeze(1)).detach()
    height, width = int(size[0]), int(size[1])
    if out is None:
        return _render(people, height, width, float(sigma), KINDS.index(kind), dtype)
    checks.check_tensor("out", out, "B K H W", (dtype,))
    checks.check_shape("out", out, (people.shape[0], people.shape[2], height, width), "keypoints and size")
    checks.check_device("out", out, keypoints, "keypoints")
    if not out.is_contiguous():
        raise ValueError(f"out must be contiguous, got strides {out.stride()}")
    return out, _render_into(out, people, float(sigma), KINDS.index(kind))


def _people_given(keypoints: object) -> bool:
    return isinstance(keypoints, Tensor) and keypoints.ndim == 4
