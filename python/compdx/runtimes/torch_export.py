"""torch.export: ``.pt2``, as it is or compiled by ``torch.compile``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from compdx.runtimes import torch_archive
from compdx.runtimes.base import Array, Runner, Runtime, Wanted, only_input, output_place
from compdx.runtimes.batches import Parts


class TorchExport(Runner):
    """The module of a ``torch.export.save``; ``session`` is that module before it is compiled.

    Its level is the back end of ``torch.compile``, "eager" if nothing else is said: as it is. A precision is that of
    ``torch.autocast``. ``threads`` holds for each call, and what the process had before is given back. A file that
    holds pickled objects, compiled code or a graph of anything but registered operators is refused. ``options``:
    ``output``.
    """

    def _open(self, package: Any, wanted: Wanted) -> None:
        program = torch_archive.load(package, self.path)
        if wanted.device != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, wanted.device)
        signature = program.graph_signature
        values = {node.name: node.meta.get("val") for node in program.graph.nodes}
        given, scores = list(map(str, signature.user_inputs)), list(map(str, signature.user_outputs))
        taken, self._place = values[only_input(given)], output_place(scores, wanted.options)
        returned = values[scores[self._place]]
        self.input_shape, self.input_dtype = extents(taken), str(taken.dtype).removeprefix("torch.")
        self.classes = extents(returned)[-1] if returned.ndim else None
        # The guards of a program are Python text; what they would check is checked above.
        self.session = program.module(check_guards=False)
        self._torch, self._device = package, wanted.device
        self._threads = wanted.threads
        self._autocast: Any = nullcontext()
        if wanted.precision not in (None, "float32"):
            kind = wanted.device.partition(":")[0]
            self._autocast = package.autocast(kind, getattr(package, str(wanted.precision)))
        level = wanted.level or "eager"
        free = self.input_shape[0] is None
        # One compilation for all batches: recompiling for each would end in torch's limit, and then in eager code.
        self._module = self.session if level == "eager" else package.compile(self.session, backend=level, dynamic=free)
        self._call = self._ask
        if not free:
            parts = Parts([self._ask], int(self.input_shape[0] or 1))
            self._call, self.settings["batch"] = parts, parts.description
        self.settings |= {
            "version": str(package.__version__),
            "level": level,
            "output": scores[self._place],
        }

    def _run(self, x: Array) -> Array:
        with held_threads(self._torch, self._threads):
            return self._call(x)

    def _ask(self, x: Array) -> Array:
        torch = self._torch
        with torch.inference_mode(), self._autocast:
            # torch warns of read-only memory.
            out = self._module(torch.from_numpy(x if x.flags.writeable else x.copy()).to(self._device))
        flat, _ = torch.utils._pytree.tree_flatten(out)
        scores: Array = np.asarray(flat[self._place].float().cpu())
        return scores


@contextmanager
def held_threads(torch: Any, threads: int | None) -> Iterator[None]:
    """torch with so many threads; None leaves them alone."""
    before = torch.get_num_threads()
    change = threads not in (None, before)
    if change:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if change:
            torch.set_num_threads(before)


def extents(value: Any) -> tuple[int | None, ...]:
    """A shape with None for the extents that are free."""
    return tuple(extent if isinstance(extent, int) else None for extent in value.shape)


TORCH = Runtime(
    name="torch",
    package="torch",
    extra="torch",
    suffixes=(".pt2",),
    levels=("eager", "aot_eager", "inductor"),
    precisions=("float32", "bfloat16", "float16"),
    devices=("cpu", "cuda"),
    options=("output",),
    runner=TorchExport,
)
