"""tools/check_imports.py finds what it is there to find, and nothing in this checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# One small file in each room, all of them in order.
SOUND = {
    "python/compdx/__init__.py": "from compdx import ops\nfrom compdx.api import search\n",
    "python/compdx/ops.py": "import numpy as np\nfrom compdx import _core\n",
    "python/compdx/seeds.py": "import pyarrow.parquet as pq\nfrom PIL import Image\n",
    "python/compdx/findings.py": "from compdx.seeds import Seeds\ndef save():\n    from compdx import store\n",
    "python/compdx/store.py": "from compdx.findings import Findings\n",
    "python/compdx/methods/__init__.py": "from compdx.methods import mcmc\n",
    "python/compdx/methods/base.py": "from typing import Protocol\n",
    "python/compdx/methods/mcmc.py": "from compdx import ops\nfrom .base import Loop\n",
    "python/compdx/methods/random.py": "from compdx.methods.base import Loop\n",
    "python/compdx/driver.py": "from compdx import methods\n",
    "python/compdx/training.py": "from compdx.seeds import Seeds\n",
    "python/compdx/screen.py": "def show():\n    from rich.live import Live\n",
    "python/compdx/zoo/__init__.py": (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n\n\ndef net():\n    import torch\n"
    ),
    "python/compdx/api.py": "from compdx import driver\nfrom compdx.screen import show\n",
    "python/compdx/cli/__init__.py": (
        "import compdx\ntry:\n    import typer\nexcept ModuleNotFoundError:\n    raise\nfrom compdx.cli import train\n"
    ),
    "python/compdx/cli/train.py": "import typer\nfrom compdx import zoo\n",
    "csrc/core/philox.h": '#include <cstdint>\n#include "core/platform.h"\n',
    "csrc/core/platform.h": "#include <cstddef>\n",
    "csrc/cpu/loops.cpp": '#include <immintrin.h>\n#include "core/philox.h"\n#include "cpu/loops.h"\n',
    "csrc/cuda/mutate.cu": '#include <cuda_runtime.h>\n#include "core/philox.h"\n',
    "csrc/bind/module.cpp": '#include <pybind11/pybind11.h>\n#include "cpu/loops.h"\n#include "cuda/launch.h"\n',
}

PLANTED = [
    ("python/compdx/seeds.py", "from compdx import _core", "only ops does"),
    ("python/compdx/__init__.py", "from compdx._core import mutate", "only ops does"),
    ("python/compdx/ops.py", "from compdx.seeds import Seeds", "'ops' imports 'seeds'"),
    ("python/compdx/ops.py", "from .seeds import Seeds", "'ops' imports 'seeds'"),
    ("python/compdx/driver.py", "from compdx.screen import show", "'driver' imports 'screen'"),
    ("python/compdx/methods/mcmc.py", "from compdx import training", "'methods.mcmc' imports 'training'"),
    ("python/compdx/training.py", "from compdx import zoo", "'training' imports 'zoo'"),
    ("python/compdx/zoo/__init__.py", "def f():\n    from compdx import api", "'zoo' imports 'api'"),
    ("python/compdx/zoo/__init__.py", "import safetensors.torch", "'safetensors' is imported at module level"),
    ("python/compdx/driver.py", "def run():\n    from compdx import zoo", "'driver' imports 'zoo'"),
    ("python/compdx/findings.py", "import compdx", "'findings' imports 'compdx', which stands above it"),
    ("python/compdx/findings.py", "from compdx.store import write", "'findings' imports 'store'"),
    ("python/compdx/methods/random.py", "from compdx.methods.mcmc import MCMC", "imports method 'methods.mcmc'"),
    ("python/compdx/methods/random.py", "from . import mcmc", "imports method 'methods.mcmc'"),
    ("python/compdx/zoo/__init__.py", "import torch.nn", "'torch' is imported at module level"),
    ("python/compdx/zoo/__init__.py", "class Net:\n    import torch", "'torch' is imported at module level"),
    (
        "python/compdx/api.py",
        "try:\n    import rich\nexcept ImportError:\n    pass",
        "'rich' is imported at module level",
    ),
    ("python/compdx/cli/train.py", "from torchao import quantization", "'torchao' is imported at module level"),
    ("python/compdx/api.py", "def f():\n    import pandas", "'pandas' is neither"),
    ("python/compdx/elsewhere.py", "import json", "module 'elsewhere' is in no room"),
    ("python/compdx/__init__.py", "from compdx.zoo import net as zoo", "the public name 'zoo' hides the module"),
    ("python/compdx/__init__.py", "def driver():\n    return 1", "the public name 'driver' hides the module"),
    ("csrc/core/philox.h", "#include <immintrin.h>", "core includes the C++ standard library and core only"),
    ("csrc/core/philox.h", "#include <cuda_runtime.h>", "core includes the C++ standard library and core only"),
    ("csrc/core/philox.h", "#  include <pybind11/numpy.h>", "core includes the C++ standard library and core only"),
    ("csrc/core/philox.h", '#include "cpu/loops.h"', "core does not include cpu"),
    ("csrc/core/philox.h", '#include "platform.h"', "write the path from csrc"),
    ("csrc/cpu/loops.cpp", "#include <cuda_fp16.h>", "cpu knows no CUDA"),
    ("csrc/cpu/loops.cpp", '#include "cuda/launch.h"', "cpu does not include cuda"),
    ("csrc/cpu/loops.cpp", "#include <pybind11/pybind11.h>", "only bind knows Python"),
    ("csrc/cuda/mutate.cu", '#include "bind/views.h"', "cuda does not include bind"),
    ("csrc/cuda/mutate.cu", "#include <torch/extension.h>", "nothing in csrc knows torch"),
    ("csrc/bind/module.cpp", "#include <torch/extension.h>", "nothing in csrc knows torch"),
    ("csrc/gpu/mutate.cu", '#include "core/philox.h"', "csrc/gpu is no room"),
]


def check(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "check_imports.py"), "--root", str(root)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in SOUND.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_sound_tree_passes(tree: Path) -> None:
    result = check(tree)
    assert (result.returncode, result.stdout) == (0, "imports and includes go one way\n"), result.stdout + result.stderr


@pytest.mark.parametrize(("name", "text", "message"), PLANTED)
def test_planted_violation_is_found(tree: Path, name: str, text: str, message: str) -> None:
    path = tree / name
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text() if path.exists() else ""
    path.write_text(before + text + "\n")
    result = check(tree)
    assert result.returncode == 1, result.stderr
    (only,) = result.stdout.splitlines()
    place, line, what = only.split(":", 2)
    assert (place, message in what) == (str(path), True), only
    assert before.count("\n") < int(line) <= before.count("\n") + text.count("\n") + 1, only


def test_this_checkout_passes() -> None:
    result = check(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
