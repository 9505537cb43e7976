"""Reasons for which a run stops before its end: a signal, or data that cannot be loaded."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class LoadingError(RuntimeError):
    """The next batch could not be loaded: an unreadable image, a vanished folder, a worker that was killed."""


class StopSignal:
    """Turns SIGINT and SIGTERM into a request that the loop answers between two steps; a second one interrupts, but for
    what is being saved.

    Under torchrun a single Ctrl-C arrives twice, from the terminal and from torchrun, so there no number of signals
    interrupts: torchrun itself kills processes that take too long.
    """

    def __init__(self) -> None:
        self.requested = False
        self._saving = False
        self._patient = "TORCHELASTIC_RUN_ID" in os.environ
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread, which alone may set handlers
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """A block that no further signal interrupts: an impatient second Ctrl-C must not lose what the first saves."""
        self._saving = True
        try:
            yield
        finally:
            self._saving = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and not self._patient and not self._saving:
            raise KeyboardInterrupt
        self.requested = True
