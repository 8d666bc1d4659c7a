"""The CUDA kernels without a GPU: compiled for the host over a stand-in for CUDA's header, against the CPU back end.

tests/cuda_host/ runs every thread of a CTA as a fibre, in three orders, and compares all memory after every step.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "tests" / "cuda_host"
KERNELS = [
    ROOT / "csrc" / "cuda" / f"{name}.cu"
    for name in ("mutate", "judge", "harvest", "refill", "step", "descend", "neurons", "slicing", "device")
]
HOST = [
    *(HERE / f"{name}.cpp" for name in ("compare", "emulator")),
    *(ROOT / "csrc" / "cpu" / f"{name}.cpp" for name in ("search", "gradient", "slicing", "threads")),
]
# As in CMakeLists.txt where it decides the bytes; -O1 compiles in half the time.
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-fno-math-errno", "-fno-strict-aliasing", "-Wno-unknown-pragmas"]
INCLUDES = [f"-I{HERE}", f"-I{ROOT / 'csrc'}"]  # the stand-in before NVIDIA's own header

pytestmark = pytest.mark.slow


def compiler() -> list[str]:
    command = shlex.split(os.environ.get("CXX", "c++"))
    if shutil.which(command[0]) is None:
        pytest.fail(f"{command[0]}: no C++ compiler; set CXX")
    return command


def build(folder: Path) -> Path:
    scalar = ["-DCOMPDX_ISA_NAMESPACE=scalar"]
    jobs = [
        *((source, ["-x", "c++"]) for source in KERNELS),
        *((source, []) for source in HOST),
        (ROOT / "csrc" / "cpu" / "loops.cpp", scalar),
    ]

    def compiled(job: tuple[Path, list[str]]) -> Path:
        source, extra = job
        target = folder / f"{source.stem}-{source.parent.name}.o"
        command = [*compiler(), *FLAGS, *INCLUDES, *extra, "-c", str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, jobs))
    program = folder / "compare"
    threads = [] if platform.system() == "Darwin" else ["-pthread"]
    subprocess.run([*compiler(), *map(str, objects), "-o", str(program), *threads], check=True)
    return program


def test_kernels_on_the_host_equal_the_cpu(tmp_path):
    done = subprocess.run([build(tmp_path)], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"[1-9][0-9]{7,} bytes compared, 0 differences", done.stdout)
    cases = [int(n) for n in re.findall(r"medians of .*: (\d+) cases", done.stdout)]
    assert cases == [4**6, 6**8, 8**8]
    # The comparison is worth something: chains of every kind ended on the way.
    for kind in ("effective", "invalid", "seed", "non-finite", "exhausted"):
        assert sum(map(int, re.findall(rf"{kind} (\d+)", done.stdout))) >= 30, done.stdout
    assert sum(map(int, re.findall(r"parked (\d+)", done.stdout))) >= 1000, done.stdout  # the ring was full at times
    assert sum(map(int, re.findall(r"blends (\d+)", done.stdout))) >= 1000, done.stdout  # of bisections
    slices = re.search(r"contributions: (\d+) neurons, (\d+) contributions", done.stdout)
    assert int(slices[1]) >= 10_000, done.stdout
    assert int(slices[2]) >= 10_000, done.stdout
    for way in ("by draws", "by scan", "none"):
        assert int(re.search(rf"{way} (\d+)", done.stdout)[1]) >= 20, done.stdout
