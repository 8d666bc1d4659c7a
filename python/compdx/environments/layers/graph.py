"""A network as named values with operations between them, of which any part can be run by itself.

What looks at layers asks a network for one thing only, a *part*: some values are given, others are wanted, and what
lies between is computed. With the input given, that is a look at the layers; with all layers given, every layer by
itself; with the values at a cut given, the rest of the network behind it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

INPUT = "input"
"""The name of the value that a network is given."""
OUTPUT = "output"
"""The name of the place behind the last operation."""
WEIGHTED = ("linear", "convolution")
AFFINE = ("normalization", "scale")
"""What a conversion may fold into the layer before it."""
STEPS = ("move", "identity")
"""What computes nothing: it moves, copies or rounds."""

Array = npt.NDArray[Any]


class Port(NamedTuple):
    """Where an operation takes a value: its number among the values, not among the arguments."""

    operation: str
    number: int


Slot = str | Port
"""What can be given: a value, to all that take it, or one operand of one operation."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Operation:
    """One step of a network.

    Attributes:
        name: Of the value it gives, as the network's own graph calls it.
        layer: The path of the module that it is or that has its weights, as far as the network still knows it.
        kind: What it does: "convolution", "activation", ...; the same word in every runtime.
        function: What its runtime calls it, in lower case.
        operands: The names of the values it takes.
        parameters: Float32, "weight" ``[out, ...]`` and "bias" ``[out]``; empty for all that has none.
    """

    name: str
    layer: str
    kind: str
    function: str
    operands: tuple[str, ...]
    parameters: Mapping[str, Array]

    @property
    def weighted(self) -> bool:
        """Whether it has weights of its own, normalization aside."""
        return "weight" in self.parameters


class Part(ABC):
    """A piece of a network that can be run.

    Attributes:
        needs: Which of the slots that were given it really takes.
    """

    needs: tuple[Slot, ...]

    @abstractmethod
    def __call__(self, given: Mapping[Slot, Array]) -> dict[str, Array]:
        """The wanted values, float32, from the given ones."""


class Network(ABC):
    """A network whose values have names.

    Attributes:
        name: What messages call it.
        runtime: What runs it.
        operations: By the names of their values, in the order of execution.
        output: The name of the value that it returns.
        shapes: Of all values that are tensors of numbers, for one image; the batch first.
    """

    name: str
    runtime: str
    operations: dict[str, Operation]
    output: str
    shapes: dict[str, tuple[int, ...]]

    @abstractmethod
    def look(self, images: Array) -> None:
        """Learn the shapes of all values from one image, uint8 ``[1, C, H, W]``; before anything else is asked."""

    @abstractmethod
    def feed(self, images: Array) -> Array:
        """The network's input, float32, for images uint8 ``[N, C, H, W]``."""

    @abstractmethod
    def part(self, given: Collection[Slot], wanted: Sequence[str]) -> Part:
        """What computes the wanted values from the given ones and, where these do not reach, from the input.

        A value that is both given and wanted is computed, and whatever takes it is given the other.
        """

    def values(self, x: Array, names: Sequence[str]) -> dict[str, Array]:
        """Some of the values for an input."""
        return self.part([INPUT], names)({INPUT: x})

    def consumers(self, value: str) -> list[Operation]:
        """The operations that take a value."""
        return self._consumers.get(value, [])

    @cached_property
    def _consumers(self) -> dict[str, list[Operation]]:
        found: dict[str, list[Operation]] = {}
        for operation in self.operations.values():
            for value in dict.fromkeys(operation.operands):
                found.setdefault(value, []).append(operation)
        return found

    def affine(self, head: str, end: str) -> tuple[Array, Array]:
        """Factor and summand, float32 ``[channels]``, of the affine operations behind ``head`` up to ``end``."""
        if head == end:
            return np.ones(1, np.float32), np.zeros(1, np.float32)
        part, shape = self.part([head], [end]), self.shapes[head]
        zero, one = (part({head: np.full(shape, value, np.float32)})[end] for value in (0, 1))
        channels = [value[0].reshape(value.shape[1], -1)[:, 0] for value in (one - zero, zero)]
        return channels[0], channels[1]

    def terms(self, name: str) -> int:
        """How many products or summands make an element of a value."""
        operation = self.operations[name]
        if operation.weighted:
            return max(1, math.prod(operation.parameters["weight"].shape[1:]))
        taken = sum(math.prod(self.shapes[value][1:]) for value in operation.operands if value in self.shapes)
        return max(1, math.ceil(taken / max(1, math.prod(self.shapes[name][1:]))))
