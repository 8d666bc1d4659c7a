"""What `explain` finds: errors by layer and channel, synapses, and findings of one cause."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compdx.slicing.measures import Measures, Synapse, WeightChanges

FILE = "explanation.json"
FEW = 3
"""Up to so many channels can be the cause of a finding; an error in more of them is the layer's."""


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
        where: Of every finding, where in the image that layer errs: float32 ``[h, w]``, at most 32 each, its error
            weighted with the contributions, over all channels; ``None`` where it is no convolution in two dimensions.
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
    where: tuple[npt.NDArray[np.float32] | None, ...]
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
        """All of it that is to be read, as JSON values, a few thousand characters a finding.

        ``layers``; ``by_layer``: the mean error and drift of all of them, and on the seeds; ``mean``: `rows` of the
        first; ``weights``; ``unpaired``; ``findings``: of each the classes, the identity of its seed, ``by_layer``,
        `rows` as ``layers``, ``synapses``, and ``where`` as bytes in base64, the largest 255; ``signatures``;
        ``settings``. Measures have five digits.
        """
        return {
            "layers": list(self.layers),
            "unpaired": {side: list(names) for side, names in self.unpaired.items()},
            "weights": {name: {"size": w.size * len(w.pruned), **w.counts()} for name, w in self.weights.items()},
            "by_layer": self._by_layer(slice(None), seeds=True),
            "mean": _rounded(self.rows()),
            "findings": [
                {
                    "seed_index": None if self.seed_index is None else int(self.seed_index[row]),
                    "original_label": int(self.original_labels[row]),
                    "compressed_label": int(self.compressed_labels[row]),
                    "by_layer": self._by_layer(slice(row, row + 1), seeds=False),
                    "layers": _rounded(self.rows(row)),
                    "synapses": [{**asdict(s), "index": list(s.index)} for s in self.synapses[row]],
                    "where": _as_bytes(self.where[row]),
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

    def _by_layer(self, rows: slice, *, seeds: bool) -> dict[str, list[float]]:
        """Mean error and drift of every layer, in the order of the network."""
        sides = {"": self.findings, **({"seed_": self.seeds} if seeds and self.seeds is not None else {})}
        return {
            f"{side}{name}": _rounded(getattr(measures, name)[rows].mean(0).tolist())
            for side, measures in sides.items()
            for name in ("error", "drift")
        }

    def save(self, directory: str | os.PathLike[str], name: str = FILE) -> Path:
        """Write `to_json` into a run directory, in place of an earlier explanation, and return the path.

        Args:
            directory: Where.
            name: The file; a report shows the one of the default name.

        Raises:
            NotADirectoryError: There is no such directory.
        """
        folder = Path(directory)
        if not folder.is_dir():
            msg = f"directory must be one that there is, got {folder}"
            raise NotADirectoryError(msg)
        path = folder / name
        temporary = path.with_name(f"{path.name}.tmp")
        temporary.write_text(json.dumps(self.to_json(), allow_nan=False) + "\n", encoding="utf-8")
        temporary.replace(path)
        return path

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


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `Explanation.save` wrote: the values of `Explanation.to_json`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, or holds something else; names it.
    """
    try:
        document = json.loads(Path(path).read_bytes())
    except ValueError as error:
        msg = f"{path} cannot be read: {error}"
        raise ValueError(msg) from error
    if not isinstance(document, dict):
        msg = f"{path} must hold a JSON object, got {type(document).__name__}"
        raise ValueError(msg)
    return document


def _rounded(value: Any) -> Any:
    """JSON values whose measures have five digits."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _as_bytes(values: npt.NDArray[np.float32] | None) -> dict[str, Any] | None:
    """Values from 0 upwards as bytes, the largest 255."""
    if values is None or not values.max() > 0:
        return None
    scaled = np.rint(values / values.max() * 255).astype(np.uint8)
    return {"shape": list(values.shape), "values": base64.b64encode(scaled.tobytes()).decode("ascii")}


def _channels(channels: tuple[int, ...]) -> str:
    return f"channel{'s' if len(channels) > 1 else ''} {', '.join(map(str, channels))}"
