"""The page of a localization: where two variants of a network begin to differ, in a sentence, charts and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compdx.environments import Layer, Localization
from compdx.environments.layers.localization import RESULT as RESULT
from compdx.report import charts
from compdx.report.figures import Figure
from compdx.report.wording import flat, number, percent, plural, scientific

MOST = 12  # rows of a table; more are opened
CONTRASTS = 10  # layers by how much more flips drift than controls
ROWS = 40  # images that are named


@dataclass(frozen=True, kw_only=True)
class Row:
    """A layer in a table, as text.

    Attributes:
        name: In A's graph.
        about: Its kind, and what B calls it where that is another name.
        suspect: Whether rounding does not explain the error it makes itself.
        cells: Two figures each, of which the second explains the first.
    """

    name: str
    about: str
    suspect: bool
    cells: list[tuple[str, str]]


def content(directory: Path) -> dict[str, Any]:
    """What the template needs of the localization in a directory.

    Raises:
        ValueError: The file cannot be read; names it.
    """
    found = Localization.load(directory / RESULT)
    suspects = found.suspects
    contrasts = [(layer.contrast, layer.name) for layer in found.layers if layer.contrast is not None]
    return {
        "found": found,
        "name": directory.resolve().name,
        "sentence": sentence(found),
        "facts": [
            *(f"{side.upper()}: {found.settings[side]['name']} on {found.settings[side]['runtime']}" for side in "ab"),
            plural(found.images, "image"),
            f"{plural(len(found.layers), 'place')} compared",
        ],
        "notices": [
            f"{side.upper()} gives {plural(count, 'image')} another label while its layers are looked at: "
            "its runtime then computes something else than when it fuses them."
            for side, count in found.settings["looked_at"].items()
            if count
        ],
        "tiles": _tiles(found),
        "figures": _figures(found),
        "suspects": [row(layer) for layer in suspects],
        "layers": [row(layer) for layer in found.layers],
        "most": MOST,
        "bisection": bisection(found),
        "effects": [
            (layer.name, scientific(layer.effect.scores), f"{layer.effect.labels:,}")
            for layer in suspects
            if layer.effect is not None
        ],
        "spliced": min(found.images, found.settings["chunk"]),
        "flips": _flips(found),
        "contrasts": [
            (name, number(value, 2)) for value, name in sorted(contrasts, key=lambda pair: -pair[0])[:CONTRASTS]
        ],
        "unpaired": [
            (f"Only in {side.upper()}: {plural(len(names), 'operation')}", ", ".join(names))
            for side, names in found.unpaired.items()
            if names
        ],
        "settings": flat(found.settings),
    }


def sentence(found: Localization) -> tuple[str, str]:
    """The first words of the page, and what follows them."""
    images = plural(found.images, "image")
    suspects = found.suspects
    if not suspects:
        labels = f", though labels differ on {len(found.flips):,} of them" if len(found.flips) else ""
        return "No layer is a suspect:", f"rounding explains what each of them computes on {images}{labels}."
    count = f"{_are(len(suspects), len(found.layers))} {'a suspect' if len(suspects) == 1 else 'suspects'}"
    if found.first is None:
        worst = suspects[0]
        return worst.name, f"makes the largest error of its own, {_against(worst)}. {count} on {images}."
    rest = "explains all of the difference" if found.first == found.last else f"the last is {found.last}"
    return found.first, f"is the first layer that matters, and {rest}. {count} on {images}."


def bisection(found: Localization) -> str:
    """What splicing both variants told."""
    if not found.settings["bisect"]:
        return "The first layer that matters was not looked for."
    if not found.suspects:
        return "Without a suspect there is nothing to look for."
    if found.first is None:
        return "The scores do not differ on the images on which A and B were spliced."
    what = "labels that differ" if len(found.flips) else "difference of the scores"
    first = (
        f"With all up to {found.first} computed by B and the rest by A, at least half of the {what} "
        f"{'are' if len(found.flips) else 'is'} there, and with less computed by B not."
    )
    if found.first == found.last:
        return f"{first} Given what A computed up to there, B no longer differs: this place explains all of it."
    return f"{first} Given what A computed before, B still differs from {found.last} on, and no longer behind it."


def row(layer: Layer) -> Row:
    """A layer in a table."""
    drift, parameters = layer.drift, layer.parameters
    return Row(
        name=layer.name,
        about=layer.place.kind if layer.place.b == layer.name else f"{layer.place.kind}, in B {layer.place.b}",
        suspect=layer.suspect,
        cells=[
            (scientific(layer.own.relative), scientific(layer.bound)),
            (scientific(drift.relative), _decibels(drift.sqnr)),
            (number(drift.cosine, 5), scientific(drift.max_abs)),
            ("", "") if parameters is None else (scientific(parameters.relative), scientific(parameters.max_abs)),
        ],
    )


def _tiles(found: Localization) -> list[tuple[str, str, str]]:
    """Key figures: name, value, and what it is made of."""
    suspects, flips, scores = found.suspects, len(found.flips), found.scores
    worst = max(found.layers, key=lambda layer: layer.own.relative)
    alone = sum(map(len, found.unpaired.values()))
    return [
        ("Suspects", f"{len(suspects):,}", f"of {plural(len(found.layers), 'place')} compared"),
        ("Labels differ", f"{flips:,}", f"{percent(flips / found.images, 1)} of {plural(found.images, 'image')}"),
        ("Scores differ by", scientific(scores.relative), f"of their size, {_decibels(scores.sqnr)} SQNR"),
        ("Largest own error", scientific(worst.own.relative), f"where rounding explains {scientific(worst.bound)}"),
        ("Largest drift", scientific(max(layer.drift.relative for layer in found.layers)), "inherited or its own"),
        ("Not paired", f"{alone:,}", "operations of one variant alone"),
    ]


def _figures(found: Localization) -> list[Figure]:
    """Own error and drift along the network, on one scale."""
    layers = found.layers
    own, drift = ([getattr(layer, name).relative for layer in layers] for name in ("own", "drift"))
    bounds, suspects = [layer.bound for layer in layers], [layer.suspect for layer in layers]
    axis = charts.decades("relative error (logarithmic)", [*own, *drift, *bounds])
    worst = max(layers, key=lambda layer: layer.own.relative)
    above = f"{_are(sum(suspects), len(layers))} above it"
    far = max(layers, key=lambda layer: layer.drift.relative)

    def draw(values: Sequence[float], behind: Sequence[float] | None, label: str) -> str:
        return charts.columns(
            [layer.name for layer in layers],
            [min(value, axis.high) for value in values],
            behind,
            axis,
            label=label,
            titles=[
                f"{layer.name}: own error {_against(layer)}, drift {scientific(layer.drift.relative)}"
                for layer in layers
            ],
            marked=suspects,
        )

    notes = (
        "What each layer itself makes of what A computed before it, in the order of the network, and what rounding "
        f"explains; {above}. The largest is that of {worst.name}, {_against(worst)}.",
        "What is wrong at each layer as both variants run, inherited or its own. The largest is that of "
        f"{far.name}, {scientific(far.drift.relative)}.",
    )
    titles = ("Own error by layer", "Drift by layer")
    marks = [("c-invalid", "suspect")] if any(suspects) else []
    return [
        Figure(
            key="own",
            title=titles[0],
            note=notes[0],
            svg=draw(own, bounds, f"{titles[0]}. {notes[0]}"),
            legend=[*marks, ("c-accent", "other layer" if marks else "own error"), ("c-before", "rounding")],
            columns=("Layer", "Own error", "Rounding"),
            rows=[(layer.name, scientific(layer.own.relative), scientific(layer.bound)) for layer in layers],
        ),
        Figure(
            key="drift",
            title=titles[1],
            note=notes[1],
            svg=draw(drift, None, f"{titles[1]}. {notes[1]}"),
            legend=[*marks, ("c-accent", "other layer")] if marks else (),
            columns=("Layer", "Drift", "SQNR"),
            rows=[(layer.name, scientific(layer.drift.relative), _decibels(layer.drift.sqnr)) for layer in layers],
        ),
    ]


def _flips(found: Localization) -> str:
    """On which images labels differ, and what these are compared with."""
    flips, controls = found.flips, found.controls
    if not len(flips):
        return f"A and B give the same label on each of {plural(found.images, 'image')}."
    named = ", ".join(map(str, flips[:ROWS])) + (", …" if len(flips) > ROWS else "")
    told = f"Labels differ on {len(flips):,} of {plural(found.images, 'image')}: {named}."
    if not len(controls):
        return f"{told} There is none to compare them with."
    whose = "whose labels do not differ"
    if found.settings["reference"]:
        return f"{told} They are compared with their references {whose}, {len(controls):,} of them."
    return f"{told} They are compared with {plural(len(controls), 'image')} of nearest margin {whose}."


def _are(count: int, layers: int) -> str:
    return f"{count:,} of {plural(layers, 'layer')} {'is' if count == 1 else 'are'}"


def _against(layer: Layer) -> str:
    """An own error beside its bound."""
    return f"{scientific(layer.own.relative)} where rounding explains {scientific(layer.bound)}"


def _decibels(value: float) -> str:
    shown = number(value, 1) if math.isfinite(value) else scientific(value)
    return f"{shown}\N{NO-BREAK SPACE}dB"
