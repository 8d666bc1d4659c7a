"""Keras: ``.keras`` and ``.h5``, on whichever of its back ends is there."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from compdx.runtimes.base import Array, Refused, Runner, Runtime, Wanted, only_input
from compdx.runtimes.batches import Parts
from compdx.runtimes.torch_export import extents, held_threads

BACKENDS = ("tensorflow", "torch", "jax")
# Older ones load code from .h5 files whatever safe_mode says.
OLDEST = (3, 12)


class Keras(Runner):
    """A Keras model; ``settings["backend"]`` says what computes.

    That is what KERAS_BACKEND names, or the program chose by importing Keras; else what Keras' own configuration
    names, or the first of TensorFlow, PyTorch and JAX, whichever is installed. Layers that carry code (Lambda) are
    refused. ``threads`` can be set on PyTorch only, where it holds for each call.
    """

    def _load(self, facts: Runtime) -> Any:
        with chosen_backend():
            return facts.load()

    def _open(self, package: Any, wanted: Wanted) -> None:
        if tuple(map(int, package.__version__.split(".")[:2])) < OLDEST:
            msg = f"it takes keras >= {'.'.join(map(str, OLDEST))}, this is {package.__version__}"
            raise Refused(msg)
        backend = package.backend.backend()
        if wanted.threads is not None and backend != "torch":
            msg = f"threads can be set for Keras on PyTorch only, its back end is {backend}"
            raise Refused(msg)
        self._threads, self._torch = wanted.threads, sys.modules.get("torch") if backend == "torch" else None
        # On PyTorch, Keras takes a GPU unasked.
        self._device = (lambda: package.device("cpu:0")) if backend == "torch" else nullcontext
        with self._device():
            self.session = package.saving.load_model(str(self.path), compile=False, safe_mode=True)
        only_input([tensor.name for tensor in self.session.inputs])
        if len(self.session.outputs) != 1:
            msg = f"a classifier has one output, this has {len(self.session.outputs)}"
            raise Refused(msg)
        taken, returned = self.session.inputs[0], self.session.outputs[0]
        self.input_shape, self.input_dtype = extents(taken), str(taken.dtype)
        self.classes = extents(returned)[-1]
        self._structure, self._pack = self.session.input, package.tree.pack_sequence_as
        self._call = self._ask
        if self.input_shape[0] is not None:
            parts = Parts([self._ask], self.input_shape[0])
            self._call, self.settings["batch"] = parts, parts.description
        self.settings |= {"version": package.__version__, "backend": backend}

    def _run(self, x: Array) -> Array:
        with self._device(), nullcontext() if self._torch is None else held_threads(self._torch, self._threads):
            return self._call(x)

    def _ask(self, x: Array) -> Array:
        fed = self._pack(self._structure, [x])
        if self._torch is None:
            return np.asarray(self.session.predict_on_batch(fed))
        # On PyTorch there is nothing to compile, and predict_on_batch goes through more hands.
        with self._torch.inference_mode():
            scores: Array = self.session(fed, training=False).cpu().numpy()
        return scores


@contextmanager
def chosen_backend() -> Iterator[None]:
    """For the first import of Keras, which reads its back end then and never again."""
    if "keras" in sys.modules or os.environ.get("KERAS_BACKEND"):
        yield
        return
    wanted = [*configured(), *BACKENDS]
    installed = [name for name in wanted if importlib.util.find_spec(name) is not None]
    if not installed:
        msg = 'keras needs PyTorch, TensorFlow or JAX: pip install "compdx[torch]"'
        raise ModuleNotFoundError(msg)
    os.environ["KERAS_BACKEND"] = installed[0]
    try:
        yield
    finally:
        del os.environ["KERAS_BACKEND"]


def configured() -> list[str]:
    """The back end in Keras' own configuration, if there is one."""
    home = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
    try:
        name = json.loads((home / "keras.json").read_text(encoding="utf-8")).get("backend")
    except (OSError, ValueError):
        return []
    return [name] if name in BACKENDS else []


KERAS = Runtime(
    name="keras",
    package="keras",
    extra="keras",
    suffixes=(".keras", ".h5"),
    runner=Keras,
)
