"""One JSON record a bench: what was measured, when, on which class of machine, with which versions."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "compdx",
    "numpy",
    "torch",
    "torchao",
    "opencv-python-headless",
    "scipy",
    "scikit-learn",
    "keras",
    "ai-edge-litert",
    "tensorflow",
    "foolbox",
    "adversarial-robustness-toolbox",
    "kornia",
    "onnxruntime",
    "openvino",
    "apache-tvm",
)


def record(name: str, payload: dict[str, Any], path: Path | None = None) -> Path:
    """Write ``payload`` with date, machine class, versions and build to ``path``, default ``results/NAME.json``."""
    path = RESULTS / f"{name}.json" if path is None else path
    document = {
        "bench": name,
        "command": command(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": versions(),
        "build": build(),
        **payload,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return path


def named(name: str, device: str) -> str:
    """The name of a bench's record: a GPU's stands beside the CPU's."""
    return name if device == "cpu" else f"{name}-cuda"


def command() -> str:
    """The command that is running; paths are replaced by the name of their option, as they differ between machines."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    words = ["python", "-m", spec.name] if spec is not None else ["python", Path(sys.argv[0]).name]
    option, given = "", (part for word in sys.argv[1:] for part in (word.split("=", 1) if word[0] == "-" else [word]))
    for word in given:
        if word.startswith("--"):
            option = word
        if option != "--out":
            words.append(option.lstrip("-").upper() if "/" in word else word)
    return " ".join(words)


def machine() -> dict[str, Any]:
    """The class of the machine, not its name."""
    facts: dict[str, Any] = {"cpu": cpu_model(), "cores": usable_cores(), "system": platform.system()}
    # A bench that used a GPU has imported torch; one that did not shall not start CUDA for its record.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["cuda"] = torch.version.cuda
    return facts


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def build() -> dict[str, Any] | None:
    """`compdx.build_info()`, None where compdx is not installed."""
    try:
        import compdx
    except ModuleNotFoundError:
        return None
    return compdx.build_info()
