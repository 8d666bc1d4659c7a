"""What `explain` finds: errors by layer and channel, synapses, and findings of one cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Change = Literal["pruned", "inverted", "changed"]
CHANGES: tuple[Change, ...] = ("pruned", "inverted", "changed")
FEW = 3
"""Up to so many channels can be the cause of a finding; an error in more of them is the layer's."""


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
        counts = {
            name: int(getattr(self, name).sum() if channel is None else getattr(self, name)[channel])
            for name in CHANGES
        }
        words = [f"{count:,} {name}" for name, count in counts.items() if count]
        return f"{', '.join(words)} of {size:,} weights" if words else f"all {size:,} weights as they were"


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


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Findings of the same cause.

    Attributes:
        labels: The classes of the original and of the compressed model.
        layer: The layer that makes the largest error of its own.
        channels: The fewest of its channels with half of that error; none where it takes more than three.
        top: The first channels of the layer by their error over all these findings.
        rows: Which findings.
    """

    labels: tuple[int, int]
    layer: str
    channels: tuple[int, ...]
    top: tuple[int, ...]
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        a, b = self.labels
        where = f"{self.layer}, {_channels(self.channels) if self.channels else 'many channels'}"
        return f"{len(self)} × {a if a == b else f'{a} → {b}'}: {where}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """Why a compressed model departs from its original on N findings.

    Attributes:
        layers: The L layers that could be compared, in the order of the network.
        findings: What was measured on the findings.
        seeds: And on their seeds, for the same two classes; ``None`` where none were given.
        synapses: Of every finding, the first synapses of the layer that comes first.
        weights: What happened to the weights, by layer.
        original_labels, compressed_labels: int64 ``[N]``, the classes on the findings.
        seed_index: int64 ``[N]``, identities of the seeds; ``None`` where they have none.
        unpaired: Layers with synapses that only one model has, under ``"original"`` and ``"compressed"``.
        settings: How it was made, as JSON values.
    """

    layers: tuple[str, ...]
    findings: Measures
    seeds: Measures | None
    synapses: tuple[tuple[Synapse, ...], ...]
    weights: dict[str, WeightChanges]
    original_labels: npt.NDArray[np.int64]
    compressed_labels: npt.NDArray[np.int64]
    seed_index: npt.NDArray[np.int64] | None
    unpaired: dict[str, tuple[str, ...]]
    settings: dict[str, Any]

    def __len__(self) -> int:
        return len(self.original_labels)

    def __repr__(self) -> str:
        return f"<Explanation of {len(self):,} findings: {len(self.layers)} layers, {len(self.signatures)} signatures>"

    def ranked(self, row: int | None = None) -> list[str]:
        """The layers by the error that they themselves make, largest first: of one finding, or the mean of all."""
        return self.findings.ranked(slice(None) if row is None else row)

    def ranked_channels(self, layer: str, row: int | None = None) -> list[int]:
        """The channels of a layer in the same order.

        Raises:
            ValueError: There is no such layer.
        """
        if layer not in self.layers:
            msg = f"layer must be one of {', '.join(map(repr, self.layers))}, got {layer!r}"
            raise ValueError(msg)
        return self.findings.ranked_channels(layer, slice(None) if row is None else row)

    @cached_property
    def signatures(self) -> tuple[Signature, ...]:
        """The findings by their cause, those of most findings first."""
        groups: dict[tuple[tuple[int, int], str, tuple[int, ...]], list[int]] = {}
        for row in range(len(self)):
            labels = (int(self.original_labels[row]), int(self.compressed_labels[row]))
            layer = self.ranked(row)[0]
            groups.setdefault((labels, layer, self._few(layer, row)), []).append(row)
        found = [
            Signature(
                labels=labels,
                layer=layer,
                channels=channels,
                top=tuple(self.findings.ranked_channels(layer, rows)[: self.settings["top"]]),
                rows=tuple(rows),
            )
            for (labels, layer, channels), rows in groups.items()
        ]
        return tuple(sorted(found, key=len, reverse=True))

    def _few(self, layer: str, row: int) -> tuple[int, ...]:
        """The channels that make half of a layer's error, smallest number first; none if they are many."""
        parts = self.findings.channels if self.findings.channels[layer][row].any() else self.findings.unweighted
        errors = parts[layer][row]
        order = self.findings.ranked_channels(layer, row)
        if not errors.any():
            return ()
        count = int(np.argmax(np.cumsum(errors[order]) * 2 >= errors.sum())) + 1
        return tuple(sorted(order[:count])) if count <= FEW else ()

    def rows(self, row: int | None = None, count: int | None = None) -> list[dict[str, Any]]:
        """A table as dicts: one for each of the first ``count`` layers of one finding, or of the mean of all.

        Each has ``layer``, ``error``, ``drift``, ``lost``, ``inverted`` (see `Measures`), ``channels``: the first of
        them with their errors, and with seeds ``seed_error`` and ``seed_drift``.
        """
        top = self.settings["top"]
        which: Any = slice(None) if row is None else slice(row, row + 1)
        found = []
        for layer in self.ranked(row)[: top if count is None else count]:
            place, errors = self.layers.index(layer), self.findings.channels[layer][which].mean(0)
            line: dict[str, Any] = {"layer": layer}
            for name in ("error", "drift", "lost", "inverted"):
                line[name] = float(getattr(self.findings, name)[which, place].mean())
            channels = self.ranked_channels(layer, row)[:top]
            line["channels"] = [{"channel": channel, "error": float(errors[channel])} for channel in channels]
            if self.seeds is not None:
                for name in ("error", "drift"):
                    line[f"seed_{name}"] = float(getattr(self.seeds, name)[which, place].mean())
            found.append(line)
        return found

    def to_json(self) -> dict[str, Any]:
        """All of it that is to be read, as JSON values: signatures, and of every finding the first layers."""
        return {
            "layers": list(self.layers),
            "unpaired": {side: list(names) for side, names in self.unpaired.items()},
            "weights": {
                name: {"size": w.size * len(w.pruned), **{c: int(getattr(w, c).sum()) for c in CHANGES}}
                for name, w in self.weights.items()
            },
            "mean": self.rows(),
            "findings": [
                {
                    "seed_index": None if self.seed_index is None else int(self.seed_index[row]),
                    "original_label": int(self.original_labels[row]),
                    "compressed_label": int(self.compressed_labels[row]),
                    "layers": self.rows(row),
                    "synapses": [{**asdict(s), "index": list(s.index)} for s in self.synapses[row]],
                }
                for row in range(len(self))
            ],
            "signatures": [
                {
                    "count": len(s),
                    "original_label": s.labels[0],
                    "compressed_label": s.labels[1],
                    "layer": s.layer,
                    "channels": list(s.channels),
                    "top": list(s.top),
                    "findings": list(s.rows),
                }
                for s in self.signatures
            ],
            "settings": self.settings,
        }

    def __str__(self) -> str:
        deviating = int((self.original_labels != self.compressed_labels).sum())
        lines = [f"{len(self):,} findings, {deviating:,} of them deviations; {len(self.layers)} layers compared"]
        for side, names in self.unpaired.items():
            if names:
                lines.append(f"only in the {side} model: {', '.join(names)}")
        lines.append(f"{'layer':24}{'error':>9}{'drift':>9}{'lost':>8}{'inverted':>10}  channels")
        for line in self.rows():
            channels = ", ".join(str(c["channel"]) for c in line["channels"] if c["error"] > 0)
            lines.append(
                f"{line['layer']:24}{line['error']:>9.2%}{line['drift']:>9.2%}{line['lost']:>8.1%}"
                f"{line['inverted']:>10.1%}  {channels}"
            )
        first = self.ranked()[0]
        if first in self.weights:
            channel = self.ranked_channels(first)[0]
            lines.append(f"{first}: {self.weights[first].text()}")
            lines.append(f"{first}, channel {channel}: {self.weights[first].text(channel)}")
        top = self.settings["top"]
        lines += [str(signature) for signature in self.signatures[:top]]
        if len(self.signatures) > top:
            lines.append(f"and {len(self.signatures) - top} more signatures")
        return "\n".join(lines)


def _descending(first: Floats, second: Floats) -> npt.NDArray[np.int64]:
    """The order of falling values; equal ones by the second, then by their places."""
    return np.lexsort((np.arange(len(first)), -second, -first))


def _mean(part: Floats) -> Floats:
    return part if part.ndim == 1 else part.mean(0)


def _channels(channels: tuple[int, ...]) -> str:
    return f"channel{'s' if len(channels) > 1 else ''} {', '.join(map(str, channels))}"
