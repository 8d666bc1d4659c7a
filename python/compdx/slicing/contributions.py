"""What a slice holds: contributions of neurons by value, of synapses by layer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from compdx.slicing import files

Ints = npt.NDArray[np.int32]
Aggregate = Literal["signed", "absolute"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Contributions:
    """Of the neurons of one value, or of the synapses of one layer; summed over the samples of a slice.

    Attributes:
        signed: int32, of the shape of the value without the batch, or of the weight: above 0 helps the criterion.
        absolute: Sums of the samples' magnitudes, likewise; ``None`` where not asked for.
        samples: int32 ``[N, ...]``, every sample by itself; ``None`` where not asked for.
    """

    signed: Ints
    absolute: Ints | None = None
    samples: Ints | None = None

    @property
    def members(self) -> npt.NDArray[np.bool_]:
        """Who is in the slice: whose sum over the samples is not 0."""
        return cast("npt.NDArray[np.bool_]", self.signed != 0)

    @property
    def size(self) -> int:
        """How many there are."""
        return int(self.signed.size)

    @property
    def count(self) -> int:
        """How many are in the slice."""
        return int(np.count_nonzero(self.signed))

    @property
    def share(self) -> float:
        """The part that is in the slice, 0 to 1."""
        return self.count / self.size if self.size else 0.0

    def of(self, aggregate: Aggregate) -> Ints:
        """``signed`` or ``absolute``.

        Raises:
            ValueError: It is neither, or was not asked for when the slice was made.
        """
        if aggregate not in ("signed", "absolute"):
            msg = f"aggregate must be 'signed' or 'absolute', got {aggregate!r}"
            raise ValueError(msg)
        array = self.signed if aggregate == "signed" else self.absolute
        if array is None:
            msg = "the slice holds no absolute sums of these synapses; make it with absolute=True"
            raise ValueError(msg)
        return array

    def channels(self, aggregate: Aggregate = "signed") -> npt.NDArray[np.int64]:
        """The paper's neurons, int64 ``[C]``: the sum over all but the first axis.

        That is over the positions of a value, or over all synapses of an output channel.
        """
        array = self.of(aggregate)
        return array.reshape(len(array), -1).sum(1, dtype=np.int64) if array.ndim else array.astype(np.int64)


class Layers(Mapping[str, Contributions]):
    """Contributions by name, in the order of the network, and what is in the slice of all of them."""

    def __init__(self, layers: Mapping[str, Contributions]) -> None:
        self._layers = dict(layers)

    def __getitem__(self, name: str) -> Contributions:
        return self._layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        return f"<Layers: {self.count:,} of {self.size:,} in the slice, {len(self)} layers>"

    @property
    def size(self) -> int:
        """How many there are."""
        return sum(layer.size for layer in self._layers.values())

    @property
    def count(self) -> int:
        """How many are in the slice."""
        return sum(layer.count for layer in self._layers.values())

    @property
    def share(self) -> float:
        """The part that is in the slice, 0 to 1."""
        return self.count / self.size if self.size else 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Slice:
    """Who contributed to a criterion on a set of samples, and in which direction.

    Attributes:
        neurons: By value: the name of the operation that gave it, ``"input"`` for the network's own. What passes
            unchanged through batch normalization, activations and the like stands under each of their names.
        synapses: By layer with weights.
        labels: int64 ``[N]``, the classes that the model gave the samples.
        settings: How it was made, as JSON values.
    """

    neurons: Layers
    synapses: Layers
    labels: npt.NDArray[np.int64]
    settings: dict[str, Any]

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        parts = ", ".join(
            f"{layers.count:,} of {layers.size:,} {name}"
            for name, layers in (("neurons", self.neurons), ("synapses", self.synapses))
        )
        return f"<Slice of {len(self):,} samples: {parts}>"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the slice to a ``.safetensors`` file and return its path."""
        arrays: dict[str, npt.NDArray[Any]] = {"labels": self.labels}
        for kind, layers in (("neurons", self.neurons), ("synapses", self.synapses)):
            for name, layer in layers.items():
                for part in ("signed", "absolute", "samples"):
                    if (array := getattr(layer, part)) is not None:
                        arrays[f"{kind}/{part}/{name}"] = array
        # A safetensors file has an order of its own.
        order = {"neurons": list(self.neurons), "synapses": list(self.synapses)}
        return files.write(path, "slice", arrays, {"settings": self.settings, "order": order})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Slice:
        """Read what `save` wrote; see `files.read` for the errors."""
        arrays, about = files.read(path, "slice")

        def layers(kind: str) -> Layers:
            found = {
                name: {part: arrays.get(f"{kind}/{part}/{name}") for part in ("signed", "absolute", "samples")}
                for name in about["order"][kind]
            }
            return Layers({name: Contributions(**cast("dict[str, Any]", parts)) for name, parts in found.items()})

        with files.complete(path, "slice"):
            neurons, synapses = layers("neurons"), layers("synapses")
            return cls(neurons=neurons, synapses=synapses, labels=arrays["labels"], settings=about["settings"])
