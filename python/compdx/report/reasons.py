"""Why the models differ, as the report shows it: ``explanation.json`` of a run, of which any key may be missing."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from compdx.findings import KINDS, NON_FINITE
from compdx.report import charts
from compdx.report.figures import Figure
from compdx.report.wording import flat, label, number, percent, plural
from compdx.slicing.explanation import FILE
from compdx.slicing.explanation import read as read_document
from compdx.slicing.measures import CHANGES, in_words

if TYPE_CHECKING:
    from compdx.findings import Findings

SIGNATURES = 15  # that are listed
SMALL = 72  # height of the plot of one finding

Document = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A row of a table of layers, as text.

    Attributes:
        name: The layer.
        measures: Error, drift, lost and inverted, each with what it is on the seeds; "" where that is not known.
        channels: The first ones; "" where none errs.
        weights: What happened to the layer's weights; "" where it has none.
    """

    name: str
    measures: list[tuple[str, str]]
    channels: str
    weights: str


@dataclass(frozen=True, kw_only=True)
class Group:
    """Findings of one cause: how many, their classes, the layer and the channels that err."""

    count: int
    classes: str
    layer: str
    channels: str


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why one finding deviates.

    Attributes:
        layers: The layers that err most, first the worst.
        svg: The error of all layers beside the mean of all findings; "" where it is not known.
        synapses: Of the first layer: place in the weight, original, compressed, what happened, share of the error.
        where: Where in the image that layer errs, uint8 ``[h, w]``, 255 where it errs most; None: not known.
    """

    layers: list[Layer]
    svg: str
    synapses: list[tuple[str, str, str, str, str]]
    where: npt.NDArray[np.uint8] | None

    @property
    def size(self) -> int:
        """About how many characters it takes in the page."""
        return len(self.svg) + 220 * (len(self.layers) + len(self.synapses))


@dataclass(frozen=True, kw_only=True, eq=False)
class Why:
    """The section on an explanation.

    Attributes:
        sentence: Which layer comes first.
        notice: Which findings of the run it has; "" where it has them all and no others.
        layers: Means over all findings.
        figures: Error and drift along the network.
        groups: The first signatures.
        rest: How many more there are, in a sentence; "" without any.
        unpaired: Layers that only one model has, in a sentence; "" without any.
        settings: How it was made.
        entries: The findings of the run that it has, by the identity of the seed.
        mean: The mean error of all layers; empty where it is not known.
        names: Of all layers.
    """

    sentence: str
    notice: str
    layers: list[Layer]
    figures: list[Figure]
    groups: list[Group]
    rest: str
    unpaired: str
    settings: list[tuple[str, str]]
    entries: Mapping[int, Document]
    mean: Sequence[float]
    names: Sequence[str]

    @property
    def seeds(self) -> bool:
        """Whether the layers were measured on the seeds too."""
        return any(seed for layer in self.layers for _, seed in layer.measures)

    def reason(self, seed: int) -> Reason | None:
        """Why the finding from this seed deviates; None where that was not explained."""
        if seed not in self.entries:
            return None
        entry = self.entries[seed]
        layers = _layers(entry.get("layers"), {})
        errors = _numbers(_mapping(entry.get("by_layer")).get("error"), len(self.names))
        svg = ""
        if errors and self.mean:
            y = charts.up_to("error", max(*errors, *self.mean), percent=True)
            words = f"Error of {plural(len(errors), 'layer')} on this finding"
            first = f"; the largest is that of layer {layers[0].name}, {layers[0].measures[0][0]}" if layers else ""
            svg = charts.columns(self.names, errors, self.mean, y, label=f"{words}{first}.", height=SMALL)
        return Reason(
            layers=layers,
            svg=svg,
            synapses=_synapses(entry.get("synapses")),
            where=_where(_mapping(entry.get("where"))),
        )


def read(folder: Path, findings: Findings, names: Sequence[str] | None) -> Why | None:
    """The explanation of a run; None when there is none.

    Raises:
        ValueError: The file cannot be read; names it.
    """
    path = folder / FILE
    if not path.exists():
        return None
    document = read_document(path)
    explained = [entry for entry in _list(document.get("findings")) if isinstance(entry, dict)]
    entries = _of_the_run(explained, findings)
    layers = _layers(document.get("mean"), _mapping(document.get("weights")))
    known = [name for name in _list(document.get("layers")) if isinstance(name, str)]
    means = _mapping(document.get("by_layer"))
    groups = [group for one in _list(document.get("signatures")) if (group := _group(one, names))]
    settings = document.get("settings")
    return Why(
        sentence=_sentence(layers, len(explained)),
        notice=_notice(len(entries), len(explained), findings),
        layers=layers,
        figures=[
            figure
            for name, title, what in (
                ("error", "Error by layer", "The error that each layer makes itself"),
                ("drift", "Drift by layer", "The error in each layer as the model runs, inherited or its own"),
            )
            if (figure := _figure(name, title, what, known, means))
        ],
        groups=groups[:SIGNATURES],
        rest=_rest(groups),
        unpaired=_unpaired(_mapping(document.get("unpaired"))),
        settings=flat(settings) if isinstance(settings, dict) else [],
        entries=entries,
        mean=_numbers(means.get("error"), len(known)),
        names=known,
    )


def _of_the_run(explained: Sequence[Document], findings: Findings) -> dict[int, Document]:
    """The explained findings that the run has: from the same seed, with the same two labels."""
    columns = (findings.table[name].to_pylist() for name in ("seed_index", "original_label", "compressed_label"))
    there = set(zip(*columns, strict=True))
    keys = ("seed_index", "original_label", "compressed_label")
    found = {}
    for entry in explained:
        seed, a, b = (entry.get(key) for key in keys)
        if isinstance(seed, int) and isinstance(a, int) and isinstance(b, int) and (seed, a, b) in there:
            found[seed] = entry
    return found


def _notice(here: int, explained: int, findings: Findings) -> str:
    total = len(findings) - findings.kinds[KINDS[NON_FINITE]]
    parts = []
    if here < total:
        parts.append(f"The explanation has {here:,} of the {plural(total, 'finding')} of this run.")
    if here < explained:
        what = "another seed or other labels"
        parts.append(f"{explained - here:,} of the {explained:,} that were explained are not in this run: {what}.")
    return " ".join(parts)


def _sentence(layers: Sequence[Layer], explained: int) -> str:
    if not layers:
        return "The record of the explanation names no layer."
    first = layers[0]
    where = f", first in {first.channels}" if first.channels else ""
    return (
        f"On average over {plural(explained, 'explained finding')}, layer {first.name} makes the largest error of its "
        f"own: {first.measures[0][0]}{where}."
    )


def _layers(rows: Any, weights: Document) -> list[Layer]:
    return [_layer(row, weights) for row in _list(rows) if isinstance(row, dict) and "layer" in row]


def _layer(row: Document, weights: Document) -> Layer:
    name = str(row["layer"])
    channels = [entry for entry in _list(row.get("channels")) if isinstance(entry, dict) and entry.get("error")]
    measures = []
    for measure in ("error", "drift", "lost", "inverted"):
        of_seed = _number(row.get(f"seed_{measure}"))
        measures.append((percent(_number(row.get(measure)), 1), "" if of_seed is None else percent(of_seed, 1)))
    return Layer(
        name=name,
        measures=measures,
        channels=_channels([entry.get("channel") for entry in channels]),
        weights=_weights(_mapping(weights.get(name))),
    )


def _weights(counts: Document) -> str:
    known = {key: counts.get(key) for key in ("size", *CHANGES)}
    if not all(isinstance(value, int) for value in known.values()):
        return ""
    return in_words({change: int(counts[change]) for change in CHANGES}, int(counts["size"]))


def _group(entry: Any, names: Sequence[str] | None) -> Group | None:
    entry = _mapping(entry)
    a, b = (entry.get(f"{model}_label") for model in ("original", "compressed"))
    if not (isinstance(a, int) and isinstance(b, int)):
        return None
    channels, top = (_list(entry.get(key)) for key in ("channels", "top"))
    spread = f"many, first {', '.join(map(str, top))}" if top else "many"
    return Group(
        count=int(_number(entry.get("count")) or 0),
        classes=label(a, names) if a == b else f"{label(a, names)} → {label(b, names)}",
        layer=str(entry.get("layer", "")),
        channels=", ".join(map(str, channels)) if channels else spread,
    )


def _rest(groups: Sequence[Group]) -> str:
    """What is to be said of the signatures that are not listed."""
    left = groups[SIGNATURES:]
    if not left:
        return ""
    fewer = "" if left[0].count == 1 else " or fewer"
    return f"{plural(len(left), 'more signature')} of {plural(left[0].count, 'finding')}{fewer}."


def _figure(name: str, title: str, what: str, layers: Sequence[str], means: Document) -> Figure | None:
    """Error or drift of every layer, on the findings and, where they were given, on their seeds."""
    values, seeds = (_numbers(means.get(f"{side}{name}"), len(layers)) for side in ("", "seed_"))
    if not values:
        return None
    worst = max(range(len(values)), key=values.__getitem__)
    texts = [percent(value, 1) for value in values]
    of_seeds = [percent(value, 1) for value in seeds]
    note = f"{what}, in the order of the network. The largest is that of layer {layers[worst]}: {texts[worst]}"
    note += f", on the seeds {of_seeds[worst]}." if seeds else "."
    ends = [f"; on seeds {text}" for text in of_seeds] if seeds else [""] * len(texts)
    svg = charts.columns(
        layers,
        values,
        seeds or None,
        charts.up_to(name, max([*values, *seeds]), percent=True),
        label=f"{title}. {note}",
        titles=[f"{layer}: {text}{end}" for layer, text, end in zip(layers, texts, ends, strict=True)],
    )
    return Figure(
        key=f"why-{name}",
        title=title,
        note=note,
        svg=svg,
        legend=(("c-accent", "on findings"), ("c-before", "on their seeds")) if seeds else (),
        columns=("Layer", "On findings", *(["On seeds"] if seeds else [])),
        rows=list(zip(layers, texts, *([of_seeds] if seeds else []), strict=True)),
    )


def _synapses(entries: Any) -> list[tuple[str, str, str, str, str]]:
    return [
        (
            ", ".join(map(str, _list(entry.get("index")))),
            _short(_number(entry.get("original"))),
            _short(_number(entry.get("compressed"))),
            str(entry.get("change", "")),
            percent(_number(entry.get("share")), 1),
        )
        for entry in _list(entries)
        if isinstance(entry, dict)
    ]


def _where(entry: Document) -> npt.NDArray[np.uint8] | None:
    shape, values = entry.get("shape"), entry.get("values")
    if not (isinstance(shape, list) and isinstance(values, str)):
        return None
    try:
        h, w = shape
        return np.frombuffer(base64.b64decode(values, validate=True), np.uint8).reshape(h, w)
    except (TypeError, ValueError):
        return None


def _unpaired(sides: Document) -> str:
    parts = [
        f"only the {side} model has {', '.join(map(str, _list(layers)))}" for side, layers in sides.items() if layers
    ]
    return f"Not compared: {'; '.join(parts)}." if parts else ""


def _channels(channels: Sequence[Any]) -> str:
    return f"channel{'s' if len(channels) > 1 else ''} {', '.join(map(str, channels))}" if channels else ""


def _short(value: float | None) -> str:
    """Three digits."""
    return number(None) if value is None else f"{value + 0.0:.3g}".replace("-", "−")


def _number(value: Any) -> float | None:
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def _numbers(values: Any, count: int) -> list[float]:
    """So many numbers, not below 0; none of them where they are not."""
    found = [value for one in _list(values) if (value := _number(one)) is not None and value >= 0]
    return found if len(found) == count else []


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _mapping(value: Any) -> Document:
    return value if isinstance(value, dict) else {}
