"""What a localization found: every place with its errors, the suspects, and the first layer that matters."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from compdx.environments.layers.errors import Error
from compdx.environments.layers.matching import Place

FORMAT = 1
RESULT = "localization.json"
"""What a directory calls the file of a localization."""
GRADIENT = ({"stop": 0, "bgColor": "#ffffff"}, {"stop": 1, "bgColor": "#d62728"})


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What one place alone makes of the first variant's scores, when it is computed by the second.

    Attributes:
        scores: Their relative error.
        labels: Images whose label changes.
    """

    scores: float
    labels: int

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values: null for what is infinite."""
        return {"scores": self.scores if math.isfinite(self.scores) else None, "labels": self.labels}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Effect:
        """What `to_json` gave."""
        return cls(scores=math.inf if data["scores"] is None else data["scores"], labels=data["labels"])


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One place that both variants have.

    Attributes:
        place: Which.
        drift: The error as both run: what is wrong there, inherited or not.
        own: The error when the second variant is given what the first computed before it: what is wrong there alone.
        bound: The relative error that rounding of float32 explains.
        parameters: The error of its weights and biases, with what is folded into them; ``None`` where it has none.
        contrast: Its drift on images whose label differs over that on images like them whose label does not; ``None``
            where there are none of either, or nothing drifts.
        effect: Of this place alone; of the first suspects only, else ``None``.
    """

    place: Place
    drift: Error
    own: Error
    bound: float
    parameters: Error | None
    contrast: float | None
    effect: Effect | None

    @property
    def name(self) -> str:
        """The name of the layer, in the first variant's graph."""
        return self.place.name

    @property
    def suspect(self) -> bool:
        """Whether rounding does not explain the error that it makes itself."""
        return self.own.relative > self.bound

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "layer": self.name,
            "kind": self.place.kind,
            "a": self.place.a,
            "b": self.place.b,
            "covers": list(self.place.covers),
            "suspect": self.suspect,
            "own": self.own.to_json(),
            "bound": self.bound,
            "drift": self.drift.to_json(),
            "parameters": None if self.parameters is None else self.parameters.to_json(),
            "contrast": self.contrast,
            "effect": None if self.effect is None else self.effect.to_json(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Layer:
        """What `to_json` gave; its place knows names alone, and not what it takes to run it again."""
        parameters, effect = data["parameters"], data["effect"]
        return cls(
            place=Place(name=data["layer"], kind=data["kind"], a=data["a"], b=data["b"], covers=tuple(data["covers"])),
            drift=Error.from_json(data["drift"]),
            own=Error.from_json(data["own"]),
            bound=data["bound"],
            parameters=None if parameters is None else Error.from_json(parameters),
            contrast=data["contrast"],
            effect=None if effect is None else Effect.from_json(effect),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Localization:
    """Where two variants of a network begin to differ.

    Attributes:
        layers: All places, in the order of the first variant.
        first: The first place that matters: computed by the second variant with all before it, and the rest by the
            first variant, it makes the labels or the scores differ. ``None`` without suspects.
        last: The last place from which on the second variant still differs, given what the first computed before it.
            Where it is ``first``, that place explains all of it.
        scores: The error of the scores.
        flips: int64, the rows of the images whose labels differ.
        controls: int64, the rows of those that they are compared with; of the reference where one was given.
        images: How many images there were.
        unpaired: Operations that only one variant has, under ``"a"`` and ``"b"``.
        settings: How it was made, as JSON values. ``"looked_at"`` counts, for either variant, the images that get
            another label while its layers are looked at: where there are such, a runtime fuses to something else.
    """

    layers: tuple[Layer, ...]
    first: str | None
    last: str | None
    scores: Error
    flips: npt.NDArray[np.int64]
    controls: npt.NDArray[np.int64]
    images: int
    unpaired: dict[str, tuple[str, ...]]
    settings: dict[str, Any]

    def __repr__(self) -> str:
        return f"<Localization on {self.images:,} images: {len(self.suspects)} suspects of {len(self.layers)} layers>"

    @property
    def suspects(self) -> list[Layer]:
        """The layers whose own error is more than rounding, largest first."""
        return [layer for layer in self.ranked() if layer.suspect]

    def ranked(self) -> list[Layer]:
        """All layers: suspects first, by their own error; layers of equal error in the order of the network."""
        return sorted(self.layers, key=lambda layer: (not layer.suspect, -layer.own.relative))

    def ranked_parameters(self) -> list[Layer]:
        """The layers with parameters, by the error of these."""
        found = [(layer.parameters.relative, layer) for layer in self.layers if layer.parameters is not None]
        return [layer for _, layer in sorted(found, key=lambda pair: -pair[0])]

    def rows(self, count: int | None = None) -> list[dict[str, Any]]:
        """A table as dicts: the first ``count`` layers as they are ranked, `Layer.to_json` each."""
        return [layer.to_json() for layer in self.ranked()[:count]]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values, layers in the order of the network."""
        return {
            "format": FORMAT,
            "images": self.images,
            "flips": self.flips.tolist(),
            "controls": self.controls.tolist(),
            "scores": self.scores.to_json(),
            "first": self.first,
            "last": self.last,
            "suspects": [layer.name for layer in self.suspects],
            "layers": [layer.to_json() for layer in self.layers],
            "unpaired": {side: list(names) for side, names in self.unpaired.items()},
            "settings": self.settings,
        }

    def save(self, path: str | Path) -> Path:
        """Write `to_json` to a file."""
        path = Path(path)
        path.write_text(json.dumps(self.to_json(), allow_nan=False, indent=1) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> Localization:
        """What `save` wrote; see `Layer.from_json`.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It holds something else; names it.
        """
        try:
            return cls.from_json(json.loads(Path(path).read_bytes()))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            msg = f"{path}: not a localization: {error!r}"
            raise ValueError(msg) from error

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Localization:
        """What `to_json` gave."""
        if data.get("format") != FORMAT:
            msg = f"expected a localization of format {FORMAT}, got {data.get('format')!r}"
            raise ValueError(msg)
        return cls(
            layers=tuple(Layer.from_json(layer) for layer in data["layers"]),
            first=data["first"],
            last=data["last"],
            scores=Error.from_json(data["scores"]),
            flips=np.asarray(data["flips"], np.int64),
            controls=np.asarray(data["controls"], np.int64),
            images=data["images"],
            unpaired={side: tuple(names) for side, names in data["unpaired"].items()},
            settings=data["settings"],
        )

    def node_data(self, side: Literal["a", "b"] = "b", metric: Literal["own", "drift"] = "own") -> dict[str, Any]:
        """Relative errors as node data of Google's Model Explorer, by the names of the values in one variant's graph.

        The colours go from white to red by the value. An infinite error is left out: the format has no such number.

        Raises:
            ValueError: ``side`` or ``metric`` is none of these.
        """
        for argument, given, known in (("side", side, ("a", "b")), ("metric", metric, ("own", "drift"))):
            if given not in known:
                msg = f"{argument} must be {known[0]!r} or {known[1]!r}, got {given!r}"
                raise ValueError(msg)
        values = {getattr(layer.place, side): getattr(layer, metric).relative for layer in self.layers}
        results = {name: {"value": value} for name, value in values.items() if math.isfinite(value)}
        return {"results": results, "gradient": [dict(stop) for stop in GRADIENT]}

    def __str__(self) -> str:
        shown, names = self.ranked()[: self.settings["top"]], [layer.name for layer in self.suspects]
        lines = [
            f"{self.images:,} images, {len(self.flips):,} with different labels; scores differ by "
            f"{_number(self.scores.relative)} of their size; {len(self.layers)} places compared",
            f"{len(self.suspects)} suspects" + (f": {_names(names, 5)}" if names else ""),
        ]
        if self.first is not None:
            rest = "; it explains all of it" if self.first == self.last else f"; the last is {self.last}"
            lines.append(f"first layer that matters: {self.first}{rest}")
        for side, alone in self.unpaired.items():
            if alone:
                lines.append(f"only in {side}: {_names(alone, 8)}")
        for side, count in self.settings["looked_at"].items():
            if count:
                lines.append(f"{side} gives {count:,} images another label while it is looked at: see what it fuses")
        width = max([24, *(len(layer.name) + 2 for layer in shown)])
        lines.append(
            f"{'':2}{'layer':{width}}{'own':>9}{'rounding':>10}{'drift':>9}{'SQNR':>9}{'cosine':>9}{'max abs':>10}"
            f"{'weights':>9}{'contrast':>10}{'labels':>8}"
        )
        for layer in shown:
            weights = "" if layer.parameters is None else _number(layer.parameters.relative)
            contrast = "" if layer.contrast is None else f"{layer.contrast:.2f}"
            labels = "" if layer.effect is None else f"{layer.effect.labels:,}"
            sqnr = f"{layer.drift.sqnr:.1f}"
            lines.append(
                f"{'*' if layer.suspect else '':2}{layer.name:{width}}{_number(layer.own.relative):>9}"
                f"{_number(layer.bound):>10}{_number(layer.drift.relative):>9}{sqnr:>9}{layer.drift.cosine:>9.5f}"
                f"{_number(layer.drift.max_abs):>10}{weights:>9}{contrast:>10}{labels:>8}"
            )
        return "\n".join(lines)


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"


def _names(names: Sequence[str], most: int) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
