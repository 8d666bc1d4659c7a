"""The wheel holds the library and nothing else; the sdist holds what it takes to build the wheel.

Both are built here, once, unless COMPDX_SDIST and COMPDX_WHEEL name a finished sdist and the wheel built from it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

import compdx

ROOT = Path(__file__).resolve().parent.parent
MEBIBYTE = 1 << 20

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Paths of an sdist and of the wheel without CUDA that was built from it."""
    if "COMPDX_SDIST" in os.environ and "COMPDX_WHEEL" in os.environ:
        return Path(os.environ["COMPDX_SDIST"]), Path(os.environ["COMPDX_WHEEL"])
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", str(folder), "-C", "cmake.define.COMPDX_CUDA=OFF", str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="session")
def wheel(packages: tuple[Path, Path]) -> Path:
    return packages[1]


@pytest.fixture(scope="session")
def in_wheel(wheel: Path) -> set[PurePosixPath]:
    with zipfile.ZipFile(wheel) as archive:
        return {PurePosixPath(name) for name in archive.namelist()}


@pytest.fixture(scope="session")
def in_sdist(packages: tuple[Path, Path]) -> set[PurePosixPath]:
    """Paths below the top folder."""
    with tarfile.open(packages[0]) as archive:
        return {PurePosixPath(*PurePosixPath(member.name).parts[1:]) for member in archive if member.isfile()}


def test_every_native_source_is_built() -> None:
    sources = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*") if path.suffix in {".cpp", ".cu"}
    }
    assert sources == set(re.findall(r"csrc/[\w/]+\.(?:cpp|cu)", (ROOT / "CMakeLists.txt").read_text()))


def test_wheel_holds_the_whole_library(in_wheel: set[PurePosixPath]) -> None:
    sources = {path.relative_to(ROOT / "python") for path in (ROOT / "python" / "compdx").rglob("*.py")}
    assert {PurePosixPath(path) for path in sources} <= in_wheel
    assert {PurePosixPath("compdx/py.typed"), PurePosixPath("compdx/_core.pyi")} <= in_wheel
    assert len([path for path in in_wheel if path.match("compdx/_core.*.so")]) == 1


def test_wheel_holds_nothing_else(in_wheel: set[PurePosixPath]) -> None:
    information = f"compdx-{compdx.__version__}.dist-info"
    assert {path.parts[0] for path in in_wheel} == {"compdx", information}
    assert {path.suffix for path in in_wheel if path.parts[0] == "compdx"} == {
        ".py",
        ".pyi",
        ".typed",
        ".so",
        ".j2",
        ".json",
        ".safetensors",
    }
    assert not [path for path in in_wheel if path.name.startswith(("test_", "conftest"))]


def test_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < 2 * MEBIBYTE


def test_wheel_imports_and_was_built_without_cuda(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = "import compdx, json; print(json.dumps([compdx.__file__, compdx.build_info()]))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    ).stdout
    file, info = json.loads(output)
    assert Path(file).is_relative_to(tmp_path)
    assert (info["version"], info["cuda_architectures"]) == (compdx.__version__, "")


def test_sdist_holds_every_source(in_sdist: set[PurePosixPath]) -> None:
    native = {path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".h", ".cuh", ".cpp", ".cu"}}
    python = {path for folder in ("python", "tests", "tools") for path in (ROOT / folder).rglob("*.py")}
    assert {PurePosixPath(path.relative_to(ROOT)) for path in native | python} <= in_sdist
    assert {PurePosixPath(name) for name in ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE")} <= in_sdist


def test_sdist_holds_no_data_and_no_build(packages: tuple[Path, Path], in_sdist: set[PurePosixPath]) -> None:
    assert not [path for path in in_sdist if path.suffix in {".so", ".o", ".whl", ".pyc", ".pt", ".h5", ".tflite"}]
    assert {path.parts[0] for path in in_sdist}.isdisjoint({".ci", ".venv", "build", "demo", "dist", "shared"})
    assert not [path for path in in_sdist if path.parts[:2] == ("bench", "results")]
    assert packages[0].stat().st_size < 2 * MEBIBYTE
