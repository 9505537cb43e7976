"""Kinds of networks by what they see: crops of persons, whole images (twice). One file each, and one entry here."""

from __future__ import annotations

from torch import nn

from posekd.paradigms.base import Paradigm
from posekd.paradigms.bottom_up import BOTTOM_UP, BottomUpInference
from posekd.paradigms.single_network import SINGLE_NETWORK, SingleNetworkInference
from posekd.paradigms.top_down import TOP_DOWN, TopDownInference

PARADIGMS = {paradigm.name: paradigm for paradigm in (TOP_DOWN, BOTTOM_UP, SINGLE_NETWORK)}
"""Name, as models, methods and cards have it -> the record."""


def paradigm_of(model: nn.Module) -> Paradigm:
    """The paradigm of a network, from its attribute `paradigm`; top-down if it has none.

    Raises:
        ValueError: a paradigm that is not known here.
    """
    name = getattr(model, "paradigm", TOP_DOWN.name)
    if name not in PARADIGMS:
        raise ValueError(f"{type(model).__name__} is of the paradigm {name!r}; known are {', '.join(PARADIGMS)}")
    return PARADIGMS[name]


__all__ = [
    "BOTTOM_UP",
    "PARADIGMS",
    "SINGLE_NETWORK",
    "TOP_DOWN",
    "BottomUpInference",
    "Paradigm",
    "SingleNetworkInference",
    "TopDownInference",
    "paradigm_of",
]
