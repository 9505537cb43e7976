"""Exported networks in onnxruntime, without weights of torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from posekd.deploy.exported import ExportedFinder
from posekd.deploy.facts import from_texts
from posekd.packages import open_session


class OnnxFinder(ExportedFinder):
    """A network that `posekd export` wrote as ONNX.

    Args:
        path: the `.onnx` file.
        threads: of onnxruntime; those of torch by default.
        batch_size: people that go through the network together, at most.
        providers: onnxruntime's, by preference; the CPU's by default.

    Attributes:
        facts: what the file says of itself.

    Raises:
        MissingPackageError: onnxruntime is not installed.
        FileNotFoundError: no such file.
        ValueError: not an ONNX file, or not one of posekd's.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        threads: int | None = None,
        batch_size: int = 16,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        self.session = open_session(path, threads, providers)
        self.outputs = [output.name for output in self.session.get_outputs()]
        facts = from_texts(self.session.get_modelmeta().custom_metadata_map, str(path))
        super().__init__(facts, self.ask, batch_size)

    def ask(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The graph's outputs by name.

        Raises:
            ValueError: an input of another form.
        """
        try:
            outputs = self.session.run(None, dict(feed))
        except Exception as error:  # onnxruntime's errors share no class
            raise ValueError(f"the exported network refused its input: {error}") from error
        return dict(zip(self.outputs, outputs, strict=True))
