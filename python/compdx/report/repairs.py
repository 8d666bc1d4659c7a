"""What a repair changed, as the report shows it: ``repair.json`` of a run, of which any key may be missing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from compdx.report import charts
from compdx.report.figures import Figure
from compdx.report.wording import flat, number, percent, plural

FILE = "repair.json"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One figure before and after; ``share`` when it is an accuracy, 0..1, else a count."""

    name: str
    before: float
    after: float
    share: bool

    def write(self, value: float) -> str:
        """The figure as text."""
        return percent(value, 2) if self.share else number(value)

    @property
    def difference(self) -> str:
        """By how much it changed: points of an accuracy, percent of a count."""
        if self.share:
            points = round(100 * (self.after - self.before), 2) + 0.0
            return f"{'+' if points > 0 else ''}{number(points, 2)} points"
        if not self.before:
            return number(self.after - self.before)
        change = round(100 * (self.after - self.before) / self.before) + 0.0
        return f"{'+' if change > 0 else ''}{number(change)}\N{NO-BREAK SPACE}%"

    @property
    def row(self) -> tuple[str, str, str, str]:
        """Name, before, after, difference."""
        return self.name, self.write(self.before), self.write(self.after), self.difference


@dataclass(frozen=True, kw_only=True)
class Repair:
    """The section on a repair: a sentence, the figures before and after, charts and settings."""

    sentence: str
    changes: list[Change]
    figures: list[Figure]
    settings: list[tuple[str, str]]


def read(folder: Path) -> Repair | None:
    """The repair of a run; None when there was none.

    Raises:
        ValueError: The file cannot be read; names it.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read: {error}"
        raise ValueError(msg) from error
    if not isinstance(document, dict):
        msg = f"{path} must hold a JSON object, got {type(document).__name__}"
        raise ValueError(msg)
    counts, shares = _counts(document), _shares(document)
    figures = [
        *([_figure("repair-counts", "Effective pictures, before and after", counts)] if counts else []),
        *([_figure("repair-accuracy", "Accuracy, before and after", shares, high=1.0)] if shares else []),
        *_rounds(document.get("rounds")),
    ]
    settings = document.get("settings")
    return Repair(
        sentence=_sentence(counts, shares),
        changes=[*counts, *shares],
        figures=figures,
        settings=flat(settings) if isinstance(settings, dict) else [],
    )


def _counts(document: Mapping[str, Any]) -> list[Change]:
    unseen = document.get("unseen")
    seeds = unseen.get("seeds") if isinstance(unseen, dict) else None
    where = f"from {plural(seeds, 'unseen seed')}" if isinstance(seeds, int) else "from unseen seeds"
    named = [("in the repair set", document.get("findings")), (where, unseen)]
    return [change for name, entry in named if (change := _change(name, entry, share=False))]


def _shares(document: Mapping[str, Any]) -> list[Change]:
    attacks = document.get("fgsm")
    attacks = [entry for entry in attacks if isinstance(entry, dict)] if isinstance(attacks, list) else []
    named = [("accuracy", document.get("accuracy"))]
    named += [(f"under FGSM, ε = {_plain(entry.get('epsilon'))}", entry) for entry in attacks]
    return [change for name, entry in named if (change := _change(name, entry, share=True))]


def _change(name: str, entry: Any, *, share: bool) -> Change | None:
    before, after = (entry.get(key) if isinstance(entry, dict) else None for key in ("before", "after"))
    if not (_is_number(before) and _is_number(after)):
        return None
    return Change(name=name, before=before, after=after, share=share)


def _sentence(counts: list[Change], shares: list[Change]) -> str:
    parts = [f"effective pictures {c.name} went from {c.write(c.before)} to {c.write(c.after)}" for c in counts]
    parts += [f"accuracy changed by {one.difference}" for one in shares if one.name == "accuracy"]
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else "The record of the repair holds no figures."


def _figure(key: str, title: str, changes: list[Change], *, high: float | None = None) -> Figure:
    note = "; ".join(f"{c.name}: {c.write(c.before)} before, {c.write(c.after)} after" for c in changes) + "."
    svg = charts.pairs(
        [change.name for change in changes],
        [change.before for change in changes],
        [change.after for change in changes],
        [(change.write(change.before), change.write(change.after)) for change in changes],
        label=f"{title}. {note}",
        high=high,
    )
    return Figure(key=key, title=title, note="", svg=svg, legend=(("c-before", "before"), ("c-accent", "after")))


def _rounds(entries: Any) -> list[Figure]:
    """Of a repair in rounds: what a fresh search found before the first and after each."""
    entries = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    found = [change for entry in entries if (change := _change("", entry.get("found"), share=False))]
    if not found:
        return []
    names = ["before", *(f"after round {place}" for place in range(1, len(found) + 1))]
    values = [found[0].before, *(change.after for change in found)]
    note = (
        f"A fresh search from the same seeds found {number(values[0])} effective pictures before the first repair and "
        f"{number(values[-1])} after the last of {plural(len(found), 'round')}."
    )
    svg = charts.bars(
        names,
        [charts.Stack(values=values, colour="c-accent", name="effective pictures")],
        [number(value) for value in values],
        label=f"Effective pictures by round. {note}",
    )
    rows = [(name, number(value)) for name, value in zip(names, values, strict=True)]
    return [
        Figure(
            key="repair-rounds",
            title="Fresh searches, round by round",
            note=note,
            svg=svg,
            columns=("Search", "Effective pictures"),
            rows=rows,
        )
    ]


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _plain(value: Any) -> str:
    return f"{value:g}" if _is_number(value) else "?"
