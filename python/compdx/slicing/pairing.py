"""Which values of a network and of its compressed version stand for each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compdx.slicing.tracing import INPUT, Call, Operation

WEIGHTED = ("linear", "convolution")
_STEPS = ("move", "dropout", "identity")

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Place:
    """An operation that both networks have.

    A layer with weights counts together with the batch normalization behind it, which compression may fold into it.

    Attributes:
        name: That of the original's operation.
        layer: That of the compressed model's, where it has synapses; else ``None``.
        original, compressed: The names of its value in either network.
        channels: The axis of its channels, the batch being axis 0.
    """

    name: str
    layer: str | None
    original: str
    compressed: str
    channels: int


class Graph:
    """What pairing asks of a network that ran once.

    Args:
        calls: Its operations, in the order of execution.
        shapes: Of all its values.
    """

    def __init__(self, calls: Sequence[Call], shapes: Shapes) -> None:
        self.calls = {call.operation.name: call for call in calls}
        self.shapes = shapes
        self._consumers: dict[str, list[Operation]] = {}
        for call in calls:
            for operand in call.operation.operands:
                self._consumers.setdefault(operand, []).append(call.operation)

    def layers(self) -> dict[str, Call]:
        """The operations with synapses."""
        return {name: call for name, call in self.calls.items() if call.operation.kind in WEIGHTED}

    def end(self, layer: str) -> str:
        """The value of a layer: behind the batch normalization that takes it, where nothing else does."""
        consumers = self._consumers.get(layer, [])
        alone = len(consumers) == 1 and consumers[0].kind == "normalization"
        return consumers[0].name if alone else layer

    def source(self, value: str) -> tuple[str, tuple[int, ...]]:
        """Where the neurons of a value were computed, and the shape in which it has them."""
        shape = self.shapes[value][1:]
        while value in self.calls and _passes(self.calls[value].operation):
            value = self.calls[value].operation.operands[0]
        return value, shape

    def key(self, operation: Operation, of: Mapping[str, str]) -> tuple[Any, ...] | None:
        """What an operation does, and to which values in the names that ``of`` gives them; None where one has none."""
        sources = [self.source(operand) for operand in operation.operands]
        if any(value not in of for value, _ in sources):
            return None
        function = operation.function.lower() if "activation" in operation.kind else ""
        return operation.kind, function, *((of[value], shape) for value, shape in sources)


def places(original: Graph, compressed: Graph) -> list[Place]:
    """What both networks have, in the order of the compressed one.

    Layers with synapses are the same when their names (without a wrapper's), their kinds and the shapes of their
    weights are; any other operation when it is of one kind and takes the same values, whatever is rounded or moved on
    the way.
    """
    known = _without_wrapper(original.layers())
    names = {call.operation.name: name for name, call in _without_wrapper(compressed.layers()).items()}
    of = {INPUT: INPUT}
    keys: dict[tuple[Any, ...] | None, str] = {}
    for name, call in original.calls.items():
        keys.setdefault(original.key(call.operation, {value: value for value in original.shapes}), name)
    found: dict[str, Place] = {}
    for name, call in compressed.calls.items():
        operation = call.operation
        if name in of:
            continue
        if operation.kind in WEIGHTED:
            twin = known.get(names[name])
            if twin is None or not _alike(twin, call):
                continue
            value, end, layer = original.end(twin.operation.name), compressed.end(name), name
        else:
            key = None if _passes(operation) else compressed.key(operation, of)
            if key is None or key not in keys:
                continue
            value, end, layer = keys[key], name, None
        if original.shapes[value] != compressed.shapes[end]:
            continue
        of[end] = value
        axis = len(original.shapes[value]) - 1 if operation.kind == "linear" else 1
        found[end] = Place(
            name=value if layer is None else known[names[layer]].operation.name,
            layer=layer,
            original=value,
            compressed=end,
            channels=axis,
        )
    return list(found.values())


def _without_wrapper(layers: Mapping[str, Call]) -> dict[str, Call]:
    """Layers without the path that they all begin with: what a module is wrapped in."""
    paths = [name.split(".") for name in layers]
    shared = 0
    while paths and all(len(path) > shared + 1 and path[shared] == paths[0][shared] for path in paths):
        shared += 1
    return {".".join(path[shared:]): call for path, call in zip(paths, layers.values(), strict=True)}


def _passes(operation: Operation) -> bool:
    """Whether an operation only moves or rounds its neurons."""
    return operation.kind in _STEPS or "quantize" in operation.function.lower()


def _alike(a: Call, b: Call) -> bool:
    shapes = [tuple(call.arguments["weight"].shape) for call in (a, b)]
    return a.operation.kind == b.operation.kind and shapes[0] == shapes[1]
