from __future__ import annotations

import pytest
from helpers.threads import threads


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny tensors gain nothing from threads, and lose much when the machine is busy."""
    with threads(1):
        yield
