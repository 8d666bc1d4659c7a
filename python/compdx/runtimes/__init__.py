"""Deployed model files as functions: one module a runtime, each imported when such a file is opened.

This room knows files, shapes and scores. What an image must become to be an input is `compdx.Model`'s business.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compdx.runtimes.base import Runner, Runtime, Wanted, as_path
from compdx.runtimes.keras import KERAS
from compdx.runtimes.litert import LITERT
from compdx.runtimes.onnxruntime import ONNX_RUNTIME
from compdx.runtimes.openvino import OPENVINO
from compdx.runtimes.torch_export import TORCH
from compdx.runtimes.tvm import TVM

__all__ = ["RUNTIMES", "SUFFIXES", "Runner", "Runtime", "of", "open"]

RUNTIMES: dict[str, Runtime] = {facts.name: facts for facts in (ONNX_RUNTIME, LITERT, KERAS, OPENVINO, TORCH, TVM)}
"""The facts of every runtime by name; nothing needs to be installed to read them."""
SUFFIXES = tuple(dict.fromkeys(suffix for facts in RUNTIMES.values() for suffix in facts.suffixes))
"""What model files may end in."""


def of(path: str | os.PathLike[str]) -> str:
    """The name of the runtime that opens a file with this suffix when nothing else is said.

    Raises:
        ValueError: No runtime knows the suffix.
    """
    suffix = Path(path).suffix.lower()
    for facts in RUNTIMES.values():
        if suffix in facts.suffixes:
            return facts.name
    msg = f"a model file must end in one of {', '.join(SUFFIXES)}, got {os.fspath(path)!r}"
    raise ValueError(msg)


def open(
    path: str | os.PathLike[str],
    *,
    runtime: str | None = None,
    level: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    device: str = "cpu",
    options: Mapping[str, Any] | None = None,
) -> Runner:
    """Open a model file as a function from inputs to scores.

    Args:
        path: The file.
        runtime: One of `RUNTIMES`; None: by the suffix of the file.
        level: The runtime's own name of an optimisation level, ``RUNTIMES[runtime].levels``.
        precision: In what the runtime computes, ``"float32"``, ``"bfloat16"`` or ``"float16"``, if it can be told.
        threads: CPU threads.
        device: Where it computes, ``"cpu"`` or ``"cuda[:i]"``. Inputs and scores are NumPy arrays in any case.
        options: What else the runtime can be told, ``RUNTIMES[runtime].options``; ``output`` names the output that
            holds the scores where it is not the first.

    None leaves a choice to the runtime; ``Runner.settings`` says what it is wherever the runtime does.

    Raises:
        FileNotFoundError: There is no such file.
        ModuleNotFoundError: The runtime is not installed; the message has the ``pip install`` line.
        TypeError, ValueError: An argument is of the wrong kind or unknown to the runtime, or the runtime cannot open
            the file.
    """
    place = as_path(path)
    name = of(place) if runtime is None else runtime
    if name not in RUNTIMES:
        msg = f"runtime must be one of {', '.join(map(repr, RUNTIMES))}, got {runtime!r}"
        raise ValueError(msg)
    facts = RUNTIMES[name]
    wanted = Wanted(level=level, precision=precision, threads=threads, device=device, options=dict(options or {}))
    facts.check(wanted)
    return facts.runner(facts, place, wanted)
