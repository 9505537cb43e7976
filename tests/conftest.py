import os
from pathlib import Path

# Several workers share the cores: a thread that waits for work must not spin. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores; tests that need two threads ask for them


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real sample data; tests that need it skip without."""
    folder = os.environ.get("POSEKD_TEST_DATA")
    if not folder:
        pytest.skip("POSEKD_TEST_DATA is not set: no real sample data here")
    path = Path(folder)
    assert path.is_dir(), f"POSEKD_TEST_DATA={folder} is not a folder"
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests come first, so that the workers end together; tests of an hour are for those who ask for them."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)  # stable: the same order in every worker
    if not os.environ.get("POSEKD_LONG_TESTS"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes an hour: set POSEKD_LONG_TESTS=1 to run it"))
