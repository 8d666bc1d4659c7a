"""What all tests share: the `gpu` marker and the folder of data that lies beside a checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

from compdx import ops

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if ops.cuda_device_count() > 0:
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device, or compdx was built without CUDA"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data sets and published model pairs: too large for the repository, and no test downloads anything."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("the data sets are not beside this checkout (../shared)")
    return path
