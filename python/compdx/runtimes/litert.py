"""LiteRT: ``.tflite`` and ``.lite``."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import numpy as np

from compdx.runtimes.base import Array, Runner, Runtime, Scale, Wanted, only_input, output_place
from compdx.runtimes.batches import Parts, agree, usable_cpus

LEVELS = {
    "optimized": "AUTO",
    "no_xnnpack": "BUILTIN_WITHOUT_DEFAULT_DELEGATES",
    "reference": "BUILTIN_REF",
}
# Every size of batch has an interpreter of its own, because resizing one allocates anew. So many stay allocated.
KEPT = 4


class LiteRt(Runner):
    """Interpreters of a TFLite file; its level is the set of kernels, "optimized" (with XNNPACK) if nothing is said.

    A file for one batch is resized to the batch at hand where that gives the scores of single images, else each of
    several threads has an interpreter. Integers in and out are converted by the file's own quantization. ``options``:
    ``output``.
    """

    def _open(self, package: Any, wanted: Wanted) -> None:
        self._package, self._level, self._threads = package, wanted.level or "optimized", wanted.threads
        self._made: dict[int, Any] = {}
        self.session = self._interpreter(wanted.threads)
        given, scores = self.session.get_input_details(), self.session.get_output_details()
        only_input([tensor["name"] for tensor in given])
        names = [tensor["name"] for tensor in scores]
        self._place = output_place(names, wanted.options)
        score = scores[self._place]
        self.input_shape, self.input_dtype = declared(given[0]), np.dtype(given[0]["dtype"]).name
        self.classes = declared(score)[-1]
        self._input_scale, self._output_scale = scale_of(given[0]), scale_of(score)
        self._call = self._resized
        batch = self.input_shape[0]
        if batch is not None:
            alone = Parts([self._ask(self.session)], batch)
            self.settings["batch"] = "free, resized"
            if not self._resizes(alone, 2 * batch + 1):
                workers = (wanted.threads or usable_cpus()) if batch == 1 else 1
                single = [self._interpreter(1) for _ in range(workers)] if workers > 1 else [self.session]
                parts = Parts([self._ask(interpreter) for interpreter in single], batch)
                self._call, self.settings["batch"] = parts, parts.description
        self.settings |= {
            "version": metadata.version("ai-edge-litert"),
            "level": self._level,
            "output": names[self._place],
        }

    def _run(self, x: Array) -> Array:
        return self._call(x)

    def _interpreter(self, threads: int | None, shape: tuple[int, ...] | None = None) -> Any:
        kernels = getattr(self._package.OpResolverType, LEVELS[self._level])
        made = self._package.Interpreter(
            model_path=str(self.path), num_threads=threads, experimental_op_resolver_type=kernels
        )
        if shape is not None:
            made.resize_tensor_input(made.get_input_details()[0]["index"], shape)
        made.allocate_tensors()
        return made

    def _ask(self, interpreter: Any) -> Any:
        given = interpreter.get_input_details()[0]["index"]
        scores = interpreter.get_output_details()[self._place]["index"]

        def ask(x: Array) -> Array:
            interpreter.set_tensor(given, x)
            interpreter.invoke()
            out: Array = interpreter.get_tensor(scores)  # a copy
            return out

        return ask

    def _resized(self, x: Array) -> Array:
        call = self._made.pop(len(x), None) or self._ask(self._interpreter(self._threads, x.shape))
        self._made[len(x)] = call
        if len(self._made) > KEPT:
            del self._made[next(iter(self._made))]
        out: Array = call(x)
        return out

    def _resizes(self, alone: Parts, batch: int) -> bool:
        """Whether a resized graph gives each image the scores that it has in the graph as it is."""
        x = self._probe(batch)
        try:
            return agree(self._resized(x), alone(x))
        except (RuntimeError, ValueError):  # its graph is made for one batch
            return False
        finally:
            self._made.clear()


def declared(tensor: dict[str, Any]) -> tuple[int | None, ...]:
    """The shape as the file declares it."""
    shape = tensor["shape_signature"] if len(tensor["shape_signature"]) else tensor["shape"]
    return tuple(None if extent < 0 else int(extent) for extent in shape)


def scale_of(tensor: dict[str, Any]) -> Scale | None:
    """The quantization of an integer tensor, None where it has none."""
    scales, zeros = (tensor["quantization_parameters"][key] for key in ("scales", "zero_points"))
    if len(scales) != 1 or not np.issubdtype(tensor["dtype"], np.integer):
        return None
    return Scale(np.dtype(tensor["dtype"]).name, float(scales[0]), int(zeros[0]))


LITERT = Runtime(
    name="litert",
    package="ai_edge_litert.interpreter",
    extra="litert",
    suffixes=(".tflite", ".lite"),
    levels=tuple(LEVELS),
    options=("output",),
    runner=LiteRt,
)
