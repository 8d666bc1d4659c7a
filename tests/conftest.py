"""What all tests share: the `gpu` marker, where the public data sets are, and a browser."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import browser
from compdx import ops

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if ops.cuda_device_count() > 0:
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device, or compdx was built without CUDA"))


@pytest.fixture(scope="session")
def data_sets() -> Path:
    """MNIST and CIFAR-10 as Parquet: too large for the repository, and no test downloads anything."""
    path = Path(os.environ.get("COMPDX_DATA", ROOT.parent / "shared" / "data"))
    if not all((path / name).is_dir() for name in ("mnist", "cifar10")):
        pytest.skip("set COMPDX_DATA to a directory with mnist/ and cifar10/")
    return path


@pytest.fixture(scope="session")
def chromium() -> Iterator[browser.Browser]:
    """A browser to look at pages in."""
    path = browser.find()
    if path is None:
        pytest.skip("no Chromium on the PATH, and CHROMIUM names none")
    with browser.browser(path) as started:
        yield started
