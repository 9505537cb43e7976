"""crop_warp under opcheck, torch.compile and torch.export, and what it says to bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.crop_cases import MEAN, STD, some_images, some_matrices
from torch import Tensor

from posekd.ops import PackedImages, crop_warp, library


class TestTorchIntegration:
    @pytest.mark.parametrize("channels_last", [False, True])
    def test_opcheck(self, channels_last: bool) -> None:
        images, matrices, index = some_images(2), some_matrices(3), torch.tensor([1, 0, 1])
        packed = PackedImages.from_list(images)
        floats = torch.randn(2, 3, 12, 10).contiguous(memory_format=torch.channels_last)
        rest = (matrices, index, None, 3, 8, 6, list(MEAN), list(STD), torch.float16, channels_last)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        out = torch.zeros(3, 3, 8, 6, dtype=torch.float16).contiguous(memory_format=layout)
        for sources in (
            (images, None, None),
            ([packed.pixels], packed.offsets, packed.shapes),
            ([floats], None, None),
        ):
            torch.library.opcheck(torch.ops.posekd.crop_warp, (*sources, *rest))
            torch.library.opcheck(torch.ops.posekd.crop_warp_into, (out, *sources, *rest))

    @pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
    def test_compile_without_graph_breaks(self, compiler: str) -> None:
        def step(images: list[Tensor], matrices: Tensor, out: Tensor) -> Tensor:
            crops = crop_warp(images, matrices * 1.5, (8, 6), mean=MEAN, std=STD)
            crop_warp(PackedImages.from_list(images), matrices, (8, 6), out=out)
            return crops * 2 + out

        images, matrices, outs = some_images(2), some_matrices(2), torch.zeros(2, 2, 3, 8, 6)
        compiled = torch.compile(step, fullgraph=True, backend=compiler)
        torch.testing.assert_close(compiled(images, matrices, outs[0]), step(images, matrices, outs[1]))
        torch.testing.assert_close(outs[0], outs[1])

    def test_export_keeps_the_op(self) -> None:
        class Crop(torch.nn.Module):
            def forward(self, pixels: Tensor, offsets: Tensor, shapes: Tensor, matrices: Tensor) -> Tensor:
                return crop_warp(PackedImages(pixels, offsets, shapes), matrices, (8, 6), mean=MEAN, std=STD)

        packed = PackedImages.from_list(some_images(2))
        inputs = (packed.pixels, packed.offsets, packed.shapes, some_matrices(2))
        program = torch.export.export(Crop(), inputs)
        assert "posekd.crop_warp" in str(program.graph)
        torch.testing.assert_close(program.module()(*inputs), Crop()(*inputs))

    def test_without_the_core_the_definition_serves(self, monkeypatch: pytest.MonkeyPatch) -> None:
        images, matrices = some_images(2), some_matrices(2)
        sources = (images, PackedImages.from_list(images), torch.rand(2, 3, 9, 9))
        with_core = [crop_warp(source, matrices, (8, 6)) for source in sources]
        monkeypatch.setattr(library, "_core", None)
        for source, expected in zip(sources, with_core, strict=True):
            torch.testing.assert_close(crop_warp(source, matrices, (8, 6)), expected, rtol=1e-4, atol=1e-4)

    def test_no_derivative(self) -> None:
        images = torch.rand(2, 3, 9, 9, requires_grad=True)
        assert not crop_warp(images, some_matrices(2), (8, 6)).requires_grad


BYTES = some_images(2)
PACKED = PackedImages.from_list(BYTES)
M2 = some_matrices(2)


@pytest.mark.parametrize(
    ("images", "options", "error", "message"),
    [
        (3, {}, TypeError, r"images must be a list of tensors, PackedImages or a tensor, got int"),
        ([], {}, ValueError, r"images is an empty list"),
        ([BYTES[0], BYTES[1].float()], {}, TypeError, r"images\[1\] must be a uint8 tensor, got torch\.float32"),
        ([BYTES[0], BYTES[1][..., :2]], {}, ValueError, r"images\[1\] must be \[H, W, C\].*got shape \(40, 40, 2\)"),
        ([BYTES[0], BYTES[1][..., :1]], {}, ValueError, r"images\[1\] has 1 channels, images\[0\] 3"),
        (torch.stack(BYTES[:1] * 2), {}, TypeError, r"got uint8; pass a list of \[H, W, C\] tensors"),
        (torch.rand(2, 9, 9), {}, ValueError, r"images must have 4 dimensions"),
        (PackedImages(PACKED.pixels[:-1], PACKED.offsets, PACKED.shapes), {}, ValueError, r"image 1 .*outside"),
        (PackedImages(PACKED.pixels, PACKED.offsets, PACKED.shapes, 1), {}, ValueError, r"has 3 channels.*says 1"),
        (PackedImages(PACKED.pixels, PACKED.offsets.int(), PACKED.shapes), {}, TypeError, r"int64 offsets"),
        (PackedImages(PACKED.pixels, PACKED.offsets, PACKED.shapes[:, :2]), {}, ValueError, r"shapes \[N, 3\]"),
        (BYTES, {"matrices": M2[:, :1]}, ValueError, r"matrices must have shape \(2, 2, 3\).*got \(2, 1, 3\)"),
        (BYTES, {"matrices": M2.int()}, TypeError, r"matrices must be float32, float64, got int32"),
        (BYTES, {"matrices": M2[:1]}, ValueError, r"1 matrices for 2 images: give image_index"),
        (BYTES, {"matrices": M2.to("meta")}, ValueError, r"matrices is on meta, but images is on cpu"),
        (BYTES, {"image_index": torch.tensor([0, 2])}, ValueError, r"image_index must lie in 0\.\.1, got 2"),
        (BYTES, {"image_index": torch.tensor([0, -1])}, ValueError, r"image_index must lie in 0\.\.1, got -1"),
        (BYTES, {"image_index": torch.tensor([0.0, 1.0])}, TypeError, r"image_index must be int64, int32"),
        (BYTES, {"image_index": torch.tensor([0])}, ValueError, r"image_index must have shape \(2,\)"),
        (BYTES, {"size": (0, 6)}, ValueError, r"size must be \(height, width\).*got \(0, 6\)"),
        (BYTES, {"mean": (0.5,)}, ValueError, r"mean has 1 numbers for 3 channels"),
        (BYTES, {"std": (1.0, 0.0, 1.0)}, ValueError, r"std must be finite and not zero"),
        (BYTES, {"dtype": torch.uint8}, TypeError, r"dtype must be .*got uint8"),
        (BYTES, {"dtype": torch.float64}, TypeError, r"dtype float64 needs float64 images, got torch\.uint8"),
        (BYTES, {"memory_format": torch.preserve_format}, ValueError, r"memory_format must be contiguous_format"),
        (torch.rand(2, 40, 5, 5), {"mean": [0.0] * 40}, ValueError, r"up to 32 channels, the images have 40"),
    ],
)  # fmt: skip
def test_bad_input_is_answered_with_a_sentence(
    images: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"matrices": M2, "size": (8, 6)} | options
    with pytest.raises(error, match=message):
        crop_warp(images, **arguments)
