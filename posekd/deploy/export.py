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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from posekd.deploy.facts import Facts, to_texts
from posekd.deploy.graphs import TopDownGraph, plain_pooling
from posekd.deploy.load import Ready
from posekd.deploy.packages import need
from posekd.files import replacing
from posekd.models.fold import fold_norms
from posekd.paradigms import TOP_DOWN, Paradigm, paradigm_of

OPSET = 18
Precision = Literal["fp32", "fp16", "int8"]
Feed = dict[str, np.ndarray]


@dataclass(frozen=True)
class Export:
    """How networks of a paradigm become a graph.

    Attributes:
        paradigm: of the networks.
        module: from a network and the half precision to a module that the exporter can follow.
        inputs: example inputs by name.
        dynamic: for each input the names of its sizes that may be anything.
        outputs: names of the outputs.
    """

    paradigm: Paradigm
    module: Callable[[Ready, bool], nn.Module]
    inputs: Callable[[], dict[str, Tensor]]
    dynamic: Mapping[str, Mapping[int, str]]
    outputs: tuple[str, ...]


def _crops_graph(found: Ready, half: bool) -> nn.Module:
    return TopDownGraph(found.model, found.skeleton, found.settings, found.padding, half)


EXPORTS = {
    export.paradigm.name: export
    for export in (
        Export(
            TOP_DOWN,
            _crops_graph,
            # no two sizes are equal, or 1, which an exporter might take for a rule
            lambda: {
                "image": torch.zeros(37, 53, 3, dtype=torch.uint8),
                "boxes": torch.tensor([[3.0, 4.0, 20.0, 30.0]]).repeat(5, 1),
            },
            {"image": {0: "H", 1: "W"}, "boxes": {0: "N"}},
            ("keypoints",),
        ),
    )
}
"""Paradigm -> how its networks are exported."""


def export_onnx(
    found: Ready,
    path: str | os.PathLike[str],
    precision: Precision = "fp32",
    calibration: Iterable[Feed] | None = None,
) -> Facts:
    """Writes an ONNX file that has everything between an image and keypoints in it.

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
        ValueError: a network that cannot be exported, or int8 without calibration.
    """
    onnx = need("onnx")
    need("onnxscript")
    paradigm = paradigm_of(found.model)
    export = EXPORTS.get(paradigm.name)
    if export is None:
        raise ValueError(f"a {paradigm.title} network cannot be exported yet; these can: {', '.join(EXPORTS)}")
    if precision == "int8" and calibration is None:
        raise ValueError("int8 needs images to calibrate with")
    proto = _proto(found, export, half=precision == "fp16")
    facts = Facts(
        model=found.model.name,
        paradigm=paradigm,
        output=found.model.output,
        skeleton=found.skeleton,
        spec=found.model.spec,
        settings=found.settings,
        padding=found.padding,
        precision=precision,
    )
    if precision == "int8":
        proto = quantised(proto, calibration or ())
    onnx.helper.set_model_props(proto, to_texts(facts))
    with replacing(path) as temporary:
        onnx.save(proto, str(temporary))
        onnx.checker.check_model(str(temporary), full_check=True)
    return facts


def _proto(found: Ready, export: Export, half: bool) -> Any:
    """The graph in ONNX's form."""
    network = deepcopy(found.model).cpu().eval()
    network.__dict__.pop("predict", None)
    with torch.no_grad():
        fold_norms(network, torch.randn(1, 3, *network.spec.size, generator=torch.Generator().manual_seed(0)))
    if half:
        network.half()
    copy = Ready(network, found.skeleton, found.settings, found.padding)
    module, inputs = export.module(copy, half).eval(), export.inputs()
    sizes = {name: {d: torch.export.Dim(size) for d, size in export.dynamic[name].items()} for name in inputs}
    with plain_pooling(), _quietly(), torch.no_grad():
        # strict about what may vary: `torch.onnx.export` by itself falls back to fixed sizes, and says nothing
        program = torch.export.export(module, tuple(inputs.values()), dynamic_shapes=sizes, strict=False)
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=list(inputs),
            output_names=list(export.outputs),
            opset_version=OPSET,
            verbose=False,
        )
    assert exported is not None
    proto = exported.model_proto
    _name_sizes(proto, export.dynamic)
    return proto


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
def _quietly() -> Iterator[None]:
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

    with tempfile.TemporaryDirectory() as folder, _quietly():
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
