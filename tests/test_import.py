"""``import compdx`` in a fresh process: what it brings along, what it leaves alone, what it says of itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import pytest

import compdx

OPTIONAL = {"torch", "torchao", "safetensors", "sklearn", "jinja2", "typer", "rich", "cv2", "tensorflow", "scipy"}


def fresh(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The finished run of a new interpreter."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )


@pytest.fixture(scope="module")
def imported() -> dict[str, Any]:
    """Modules that ``import compdx`` adds to an interpreter, and the processor time it takes after its dependencies."""
    code = """
import json, sys, time
import numpy, PIL.Image, pyarrow.compute, pyarrow.parquet
before, start = set(sys.modules), time.process_time()
import compdx
print(json.dumps({"seconds": time.process_time() - start, "modules": sorted(set(sys.modules) - before)}))
"""
    return dict(json.loads(fresh(code).stdout))


def test_no_optional_dependency_is_imported(imported: dict[str, Any]) -> None:
    assert "compdx._core" in imported["modules"]
    assert OPTIONAL.isdisjoint(name.split(".")[0] for name in imported["modules"])


def test_import_takes_less_than_a_second(imported: dict[str, Any]) -> None:
    assert imported["seconds"] < 1.0


@pytest.mark.skipif(
    sys.platform != "linux", reason="the loader of glibc tells what it looks for; CUDA is for Linux here"
)
def test_import_does_not_wake_cuda() -> None:
    # The static runtime opens the driver's library on its first call; the loader tells of the attempt even if it fails.
    asleep = fresh("import compdx", LD_DEBUG="libs").stderr
    assert "_core" in asleep
    assert "libcuda.so" not in asleep
    if compdx.build_info()["cuda_architectures"]:
        awake = fresh("from compdx import ops; ops.cuda_device_count()", LD_DEBUG="libs").stderr
        assert "libcuda.so" in awake, "this test cannot see CUDA being woken"


def test_build_info_describes_the_build() -> None:
    info = compdx.build_info()
    assert {"version", "compiler", "flags", "cuda_architectures", "isa"} <= info.keys()
    assert info["version"] == compdx.__version__ == version("compdx")
    assert info["isa"] in {"scalar", "avx2", "avx512"}
    assert "-ffp-contract=off" in info["flags"]
    assert "fast-math" not in info["flags"]
