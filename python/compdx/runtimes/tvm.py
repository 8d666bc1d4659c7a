"""Apache TVM (Relax): compiled ``.so`` and ``.tar``, and ``.onnx`` and ``.pt2`` that are compiled when opened."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from compdx.optional import import_optional
from compdx.runtimes import torch_archive
from compdx.runtimes.base import Array, Refused, Runner, Runtime, Wanted, files_of, output_place
from compdx.runtimes.batches import Parts

COMPILED = (".so", ".tar")
TARGET = "llvm"
LEVELS = ("0", "2", "3")
LEVEL = "2"
"""Where nothing else is said; Relax depends little on it."""
# What a compiled function says of its parameters, for its own messages.
_PARAMETER = re.compile(r"fn=main, loc=param\[(\d+)\].*?annotation=R\.Tensor\(\((.*?)\), dtype=\"(\w+)\"\)")


class Tvm(Runner):
    """The function ``main`` of a Relax module on its virtual machine.

    A compiled module is native code like any library: open none that you would not run. Its level was fixed when it
    was compiled; for the other files ``level`` is TVM's ``opt_level``, `LEVEL` if nothing else is said. ``threads`` is
    set for the whole process, TVM has no other way. ``options``: ``output``, the place of the scores as text, "0" for
    the first.
    """

    def _open(self, package: Any, wanted: Wanted) -> None:
        relax = import_optional("tvm.relax", "a model file for tvm", "tvm")
        ready = self.path.suffix in COMPILED
        if ready and wanted.level is not None:
            msg = "the level of a compiled module was fixed when it was compiled; leave level out"
            raise Refused(msg)
        module = package.runtime.load_module(str(self.path)) if ready else self._compiled(package, wanted)
        self.session = relax.VirtualMachine(module, package.cpu())
        self.files = files_of(self.path)
        self._main, self._tensor = self.session["main"], package.runtime.tensor
        about = str((module if ready else module.mod)["stats"]())
        self.input_shape, self.input_dtype = signature(about)
        # What comes out is written nowhere.
        out = self._main(self._tensor(self._probe(self.input_shape[0] or 1)))
        outputs = [out] if hasattr(out, "numpy") else list(out)
        self._place = output_place([str(place) for place in range(len(outputs))], wanted.options)
        self.classes = int(outputs[self._place].shape[-1])
        if wanted.threads is not None:
            package.get_global_func("runtime.config_threadpool")(-1, wanted.threads)
        self._call = self._ask
        if self.input_shape[0] is not None:
            parts = Parts([self._ask], self.input_shape[0])
            self._call, self.settings["batch"] = parts, parts.description
        self.settings |= {
            "version": package.__version__,
            "level": None if ready else wanted.level or LEVEL,
            "output": str(self._place),
        }

    def _run(self, x: Array) -> Array:
        return self._call(x)

    def _ask(self, x: Array) -> Array:
        out = self._main(self._tensor(x))
        scores: Array = (out if hasattr(out, "numpy") else out[self._place]).numpy()
        return scores

    def _compiled(self, package: Any, wanted: Wanted) -> Any:
        if self.path.suffix == ".onnx":
            return compiled(package, from_onnx(self.path), wanted.level)
        torch = import_optional("torch", "a .pt2 file")
        return compiled(package, from_exported_program(torch_archive.load(torch, self.path)), wanted.level)


def from_onnx(path: Path) -> Any:
    """An ONNX file as a module of Relax, its weights constants."""
    onnx = import_optional("onnx", "an ONNX file for tvm", "onnx")
    frontend = import_optional("tvm.relax.frontend.onnx", "an ONNX file for tvm", "tvm")
    return frontend.from_onnx(onnx.load(str(path)), keep_params_in_input=False)


def from_exported_program(program: Any) -> Any:
    """A program of torch.export as a module of Relax, its weights constants."""
    frontend = import_optional("tvm.relax.frontend.torch", "a .pt2 file for tvm", "tvm")
    return frontend.from_exported_program(program, keep_params_as_input=False, unwrap_unit_return_tuple=True)


def compiled(package: Any, module: Any, level: str | None) -> Any:
    """A module of Relax, compiled for this processor."""
    with package.transform.PassContext(opt_level=int(level or LEVEL)):
        return package.compile(module, target=package.target.Target({"kind": TARGET}))


def signature(text: str) -> tuple[tuple[int | None, ...], str]:
    """Shape and dtype of the only parameter, from the statistics of a compiled module."""
    parameters = set(_PARAMETER.findall(text))
    if len(parameters) != 1:
        msg = f"its function main must take one tensor of a declared shape, it takes {len(parameters)}"
        raise Refused(msg)
    ((_, shape, dtype),) = parameters
    plain = (re.sub(r"T\.int64\((\d+)\)", r"\1", extent).strip() for extent in shape.split(","))
    return tuple(int(extent) if extent.isdigit() else None for extent in plain if extent), dtype


TVM = Runtime(
    name="tvm",
    package="tvm",
    extra="tvm",
    suffixes=(*COMPILED, ".onnx", ".pt2"),
    levels=LEVELS,
    options=("output",),
    runner=Tvm,
)
