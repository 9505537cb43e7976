from collections.abc import Iterator

import pytest
from helpers import backends


@pytest.fixture(params=backends.BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[backends.Backend]:
    """Every place where a kernel runs: CPU vector levels, the CUDA sources in emulation, and a GPU."""
    with backends.use(request.param) as chosen:
        yield chosen
