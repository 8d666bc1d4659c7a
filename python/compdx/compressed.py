"""A compressed model: what is under test, what its gradients flow through, and how the one comes from the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, kw_only=True, eq=False)
class Compressed:
    """What every function of `compdx.compress` returns.

    Attributes:
        model: The torch module under test, in eval mode: its labels are the verdict.
        twin: The torch module in eval mode through which gradients flow and which can be trained further; ``model``
            itself where that can do both.
        record: What was done and what it saves, as JSON values: ``scheme``, ``settings``, ``parameters``, ``zeros``,
            ``sparsity`` (0..1), ``bytes`` and ``original_bytes`` of the stored weights, ``original_sha256`` of the
            original's, and what a scheme adds.
        convert: From a twin, perhaps trained further, to a module under test in eval mode. It does not change the twin,
            and shares no memory with it. It holds what it needs of the compression, such as calibration batches, so a
            `Compressed` can be kept without the call that made it.
        start: The state of the twin before its first training: the original's own weights, compressed, or those that a
            student was given with. ``None`` where the twin is that still.
    """

    model: Any
    twin: Any
    record: dict[str, Any]
    convert: Callable[[Any], Any]
    start: Mapping[str, Any] | None = None

    def rebuilt(self, twin: Any) -> Compressed:
        """The same compression of this twin, which is taken as it is and should be in eval mode.

        The record is kept: no training changes how many weights there are, which of them are zero or how they are
        stored.
        """
        start = state_of(self.twin) if self.start is None else self.start
        return replace(self, model=self.convert(twin), twin=twin, start=start)


def state_of(network: Any) -> dict[str, Any]:
    """A copy of a torch module's state that no training changes."""
    return {key: tensor.detach().clone() for key, tensor in network.state_dict().items()}
