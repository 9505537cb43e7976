"""Networks as ONNX files that take images and give keypoints, so that nothing is left to get wrong outside."""

from __future__ import annotations

import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from posekd.deploy import grouping
from posekd.deploy.facts import Facts, to_texts
from posekd.deploy.forms import FORMS, Feed, Form
from posekd.deploy.load import Ready
from posekd.deploy.plain import ONNX_STAND_INS
from posekd.files import replacing, write_atomically
from posekd.models.fold import fold_norms
from posekd.ops import library
from posekd.packages import need
from posekd.paradigms import paradigm_of

OPSET = 18
GROUPING = "posekd_grouping.py"  # beside a network whose people are grouped outside its graph
Precision = Literal["fp32", "fp16", "int8"]


def export_onnx(
    found: Ready,
    path: str | os.PathLike[str],
    precision: Precision = "fp32",
    calibration: Iterable[Feed] | None = None,
) -> Facts:
    """Writes an ONNX file that has everything between an image and keypoints in it.

    Of a bottom-up network everything up to the peaks; what groups them is written beside it (`GROUPING`).

    Args:
        found: the network; it is not changed.
        path: the file, whole or not at all.
        precision: `fp32`; `fp16`: the network's weights and arithmetic in float16; `int8`: its convolutions in 8 bits,
            with a scale for each channel of the weights.
        calibration: for `int8`: inputs of the graph, from which the ranges of its activations are taken.

    Returns:
        What the file says of itself.

    Raises:
        MissingPackageError: onnx or onnxscript is not installed (for int8 also onnxruntime).
        ValueError: settings that a graph cannot follow, or int8 without calibration.
        OSError: the file cannot be written.
    """
    onnx = need("onnx")
    need("onnxscript")
    form = FORMS[paradigm_of(found.model).name]
    if precision == "int8" and calibration is None:
        raise ValueError("int8 needs images to calibrate with")
    proto = _proto(found, form, half=precision == "fp16")
    facts = facts_of(found, precision)
    if precision == "int8":
        proto = quantised(proto, calibration or ())
    onnx.helper.set_model_props(proto, to_texts(facts))
    with replacing(path) as temporary:
        onnx.save(proto, str(temporary))
        onnx.checker.check_model(str(temporary), full_check=True)
    write_beside(form, path)
    return facts


def facts_of(found: Ready, precision: Precision) -> Facts:
    """What an exported file says of its network."""
    return Facts(
        model=found.model.name,
        paradigm=paradigm_of(found.model),
        output=found.model.output,
        skeleton=found.skeleton,
        spec=found.model.spec,
        settings=found.settings,
        padding=found.padding,
        precision=precision,
    )


def write_beside(form: Form, path: str | os.PathLike[str]) -> None:
    """Writes what a network's users need beside its file."""
    if form.grouped:
        write_atomically(Path(path).parent / GROUPING, Path(grouping.__file__).read_text(encoding="utf-8"))


def trace(
    found: Ready, form: Form, half: bool, instead: Mapping[str, Callable[..., Any]]
) -> torch.export.ExportedProgram:
    """A network and everything around it as one graph, for images and numbers of them of any size.

    Args:
        found: the network; it is not changed.
        form: of its paradigm.
        half: whether its weights and arithmetic become float16.
        instead: ops of ours and what to put in their place.
    """
    network = deepcopy(found.model).cpu().eval()
    network.__dict__.pop("predict", None)
    with torch.no_grad():
        fold_norms(network, torch.randn(1, 3, *network.spec.size, generator=torch.Generator().manual_seed(0)))
    if half:
        network.half()
    module, inputs = form.module(replace(found, model=network), half).eval(), form.inputs()
    sizes = {name: {d: torch.export.Dim(size) for d, size in form.dynamic[name].items()} for name in inputs}
    with quietly(), torch.no_grad(), library.stood_in(instead):
        # strict about what may vary: `torch.onnx.export` by itself falls back to fixed sizes, and says nothing
        program = torch.export.export(module, tuple(inputs.values()), dynamic_shapes=sizes, strict=False)
        return program.run_decompositions({})  # without which ONNX's exporter loses count of sizes that are calculated


def _proto(found: Ready, form: Form, half: bool) -> Any:
    """The graph in ONNX's form."""
    program = trace(found, form, half, ONNX_STAND_INS)
    with quietly(), torch.no_grad():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=list(form.inputs()),
            output_names=list(form.outputs),
            opset_version=OPSET,
            custom_translation_table={torch.ops.posekd.roi_align.default: _roi_align},
            verbose=False,
        )
    assert exported is not None
    proto = exported.model_proto
    _name_sizes(proto, form.dynamic)
    return proto


def _roi_align(maps: Any, boxes: Any, height: int, width: int, scale: float, ratio: int, aligned: bool) -> Any:
    """`ops.roi_align` as ONNX's RoiAlign, which since opset 16 knows `aligned` by another name."""
    op = need("onnxscript").opset18
    images = op.Cast(op.Gather(boxes, op.Constant(value_int=0), axis=1), to=7)  # int64
    corners = op.Slice(boxes, op.Constant(value_ints=[1]), op.Constant(value_ints=[5]), op.Constant(value_ints=[1]))
    return op.RoiAlign(
        maps,
        corners,
        images,
        coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
        mode="avg",
        output_height=height,
        output_width=width,
        sampling_ratio=max(ratio, 0),
        spatial_scale=scale,
    )


def _name_sizes(proto: Any, dynamic: Mapping[str, Mapping[int, str]]) -> None:
    """Gives the sizes that may vary their names, instead of the exporter's `s62`."""
    names = {}
    for value in proto.graph.input:
        for dim, size in enumerate(value.type.tensor_type.shape.dim):
            if dim in dynamic[value.name]:
                assert size.dim_param, f"{value.name} has a fixed size {size.dim_value} along {dim}"
                names[size.dim_param] = dynamic[value.name][dim]
    for value in [*proto.graph.input, *proto.graph.output, *proto.graph.value_info]:
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param in names:
                size.dim_param = names[size.dim_param]


@contextmanager
def quietly() -> Iterator[None]:
    """Without remarks on packages that we do not use, on progress, and on models of another kind."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def quantised(proto: Any, calibration: Iterable[Feed]) -> Any:
    """A graph with its convolutions in 8 bits, statically calibrated; weights have a scale per channel.

    Args:
        proto: an `onnx.ModelProto`.
        calibration: inputs of the graph.
    """
    onnx, quantization = need("onnx"), need("onnxruntime.quantization")
    feeds = iter(calibration)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined]
        def get_next(self) -> Feed | None:
            return next(feeds, None)

    with tempfile.TemporaryDirectory() as folder, quietly():
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(proto, str(source))
        quantization.quantize_static(
            str(source),
            str(target),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "ConvTranspose"],
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            activation_type=quantization.QuantType.QUInt8,
        )
        return onnx.load(str(target))
