"""What `explain` measures: errors by layer and channel, and what happened to weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Change = Literal["pruned", "inverted", "changed"]
CHANGES: tuple[Change, ...] = ("pruned", "inverted", "changed")


@dataclass(frozen=True, kw_only=True, eq=False)
class Measures:
    """How far a compressed model is from its original on N images, in every layer of L.

    All are relative to what the original's neurons differ from their means: sums of squares over the neurons of a
    layer, each weighted with the magnitude of its contribution to the original's decision, over the same sum of the
    squares of Δ.

    Attributes:
        channels: By layer, float64 ``[N, C]``: the error that the layer itself makes in each channel, when it is given
            what the original computed before it. The sum over channels is the layer's.
        unweighted: The same without contributions.
        drift: float64 ``[N, L]``, the error as the compressed model runs: its own and what it has inherited.
        lost: float64 ``[N, L]``, the part of the original's contributions whose neurons have none in the compressed
            model, 0 to 1, by magnitude.
        inverted: The part whose neurons contribute in the other direction there.
    """

    channels: dict[str, Floats]
    unweighted: dict[str, Floats]
    drift: Floats
    lost: Floats
    inverted: Floats

    @cached_property
    def error(self) -> Floats:
        """float64 ``[N, L]``, the error that each layer itself makes."""
        return np.stack([part.sum(1) for part in self.channels.values()], 1)

    @classmethod
    def concatenate(cls, parts: Sequence[Measures]) -> Measures:
        """The measures of all images of at least one part, in order."""

        def joined(layers: Sequence[dict[str, Floats]]) -> dict[str, Floats]:
            return {layer: np.concatenate([part[layer] for part in layers]) for layer in layers[0]}

        return cls(
            channels=joined([part.channels for part in parts]),
            unweighted=joined([part.unweighted for part in parts]),
            drift=np.concatenate([part.drift for part in parts]),
            lost=np.concatenate([part.lost for part in parts]),
            inverted=np.concatenate([part.inverted for part in parts]),
        )

    def select(self, layers: Sequence[str]) -> Measures:
        """The measures of some of the layers."""
        known = list(self.channels)
        places = [known.index(layer) for layer in layers]
        return Measures(
            channels={layer: self.channels[layer] for layer in layers},
            unweighted={layer: self.unweighted[layer] for layer in layers},
            drift=self.drift[:, places],
            lost=self.lost[:, places],
            inverted=self.inverted[:, places],
        )

    def ranked(self, rows: Any = slice(None)) -> list[str]:
        """The layers by their own error, the mean over these rows, largest first.

        Layers of equal error follow each other by what it is without contributions, then as in the network.
        """
        plain = np.array([part[rows].sum(-1).mean() for part in self.unweighted.values()])
        error = np.array([part[rows].sum(-1).mean() for part in self.channels.values()])
        names = list(self.channels)
        return [names[place] for place in _descending(error, plain)]

    def ranked_channels(self, layer: str, rows: Any = slice(None)) -> list[int]:
        """The channels of a layer in the same order."""
        error, plain = (_mean(part[layer][rows]) for part in (self.channels, self.unweighted))
        return [int(channel) for channel in _descending(error, plain)]


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightChanges:
    """What compression did to the weights of a layer; with batch normalization where only one of the two has it folded.

    Attributes:
        pruned: int64 ``[C]``, by output channel: weights that are 0 in the compressed model only.
        inverted: Weights whose sign is the other.
        changed: All others that are not the same: rounded, or trained further.
        size: Weights of a channel.
    """

    pruned: npt.NDArray[np.int64]
    inverted: npt.NDArray[np.int64]
    changed: npt.NDArray[np.int64]
    size: int

    def text(self, channel: int | None = None) -> str:
        """The three in words, of one channel or of the layer."""
        size = self.size if channel is not None else self.size * len(self.pruned)
        return in_words(self.counts(channel), size)

    def counts(self, channel: int | None = None) -> dict[str, int]:
        """The three as numbers, of one channel or of the layer."""
        return {
            name: int(getattr(self, name).sum() if channel is None else getattr(self, name)[channel])
            for name in CHANGES
        }


@dataclass(frozen=True, kw_only=True)
class Synapse:
    """A weight that compression changed, and its part in the error of its layer on one image.

    Attributes:
        layer: Where.
        index: Its place in the weight.
        original, compressed: What it was and what it is.
        change: What happened to it.
        share: 0 to 1: its |change of the weight| · |Δ of its input| · |contribution of its output|, over the positions
            of the layer, in the sum of all synapses.
    """

    layer: str
    index: tuple[int, ...]
    original: float
    compressed: float
    change: Change
    share: float


def in_words(counts: Mapping[str, int], size: int) -> str:
    """How many weights of so many were pruned, inverted and changed, in words."""
    words = [f"{counts[name]:,} {name}" for name in CHANGES if counts[name]]
    return f"{', '.join(words)} of {size:,} weights" if words else f"all {size:,} weights as they were"


def _descending(first: Floats, second: Floats) -> npt.NDArray[np.int64]:
    """The order of falling values; equal ones by the second, then by their places."""
    return np.lexsort((np.arange(len(first)), -second, -first))


def _mean(part: Floats) -> Floats:
    return part if part.ndim == 1 else part.mean(0)
