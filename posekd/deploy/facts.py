"""What an exported file says of itself: keypoints, sigmas, input and codec, as JSON texts in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from posekd.paradigms import PARADIGMS, Paradigm
from posekd.skeleton import Skeleton, skeleton_from_facts
from posekd.structures import InputSpec

FORMAT = 1


@dataclass(frozen=True)
class Facts:
    """A network in an exported file.

    Attributes:
        model: name of the network.
        paradigm: its kind.
        output: name of the codec of its output.
        skeleton: its K keypoints, with their sigmas.
        spec: size, normalisation and colour order of the network's input.
        settings: the paradigm's settings of inference, which the graph follows.
        padding: factor by which the graph's crops are larger than boxes.
        precision: `fp32`, `fp16` or `int8`.
    """

    model: str
    paradigm: Paradigm
    output: str
    skeleton: Skeleton
    spec: InputSpec
    settings: Any
    padding: float
    precision: str = "fp32"


def to_texts(facts: Facts) -> dict[str, str]:
    """The facts as metadata: name -> JSON."""
    content = {
        "posekd_format": FORMAT,
        "model": facts.model,
        "paradigm": facts.paradigm.name,
        "skeleton": asdict(facts.skeleton),
        "sigmas": list(facts.skeleton.sigmas),
        "input": asdict(facts.spec),
        "codec": {"name": facts.output, **asdict(facts.settings)},
        "padding": facts.padding,
        "precision": facts.precision,
    }
    return {name: json.dumps(value) for name, value in content.items()}


def from_texts(texts: Mapping[str, str], file: str) -> Facts:
    """Reads what `to_texts` wrote.

    Args:
        texts: a file's metadata.
        file: for messages.

    Raises:
        ValueError: another program's file, or one of a newer format.
    """
    if "posekd_format" not in texts:
        raise ValueError(f"{file} does not say what it is: `posekd export` did not write it")
    try:
        content = {name: json.loads(text) for name, text in texts.items()}
        if content["posekd_format"] != FORMAT:
            raise ValueError(f"its format is {content['posekd_format']}, this posekd reads {FORMAT}")
        paradigm = PARADIGMS[content["paradigm"]]
        codec = {k: tuple(v) if isinstance(v, list) else v for k, v in content["codec"].items()}
        output = str(codec.pop("name"))
        known = {field.name for field in fields(paradigm.inference)}
        spec: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content["input"].items()}
        return Facts(
            model=str(content["model"]),
            paradigm=paradigm,
            output=output,
            skeleton=skeleton_from_facts(content["skeleton"]),
            spec=InputSpec(**spec),
            settings=paradigm.inference(**{k: v for k, v in codec.items() if k in known}),
            padding=float(content["padding"]),
            precision=str(content["precision"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} has metadata that cannot be read: {error}") from error
