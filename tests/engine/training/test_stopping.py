"""Signals: the first is a request, the second interrupts, and neither interrupts a save."""

from __future__ import annotations

import os
import signal

import pytest

from posekd.engine.training.stopping import StopSignal


def test_a_second_signal_interrupts(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_nothing_interrupts_a_save(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        saved = False
        with stop.saving():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            saved = True
        assert saved
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
