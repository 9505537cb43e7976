from collections.abc import Iterator

import pytest
from helpers.threads import threads

from posekd.engine.training import loop


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, and images only where they are looked at: they cost more than the tiny training."""
    monkeypatch.setattr(loop, "plot_curves", lambda runs, path: None)
    with threads(1):
        yield
