"""The page of a comparison of environments: a heat map of label differences, and everything in tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compdx.environments import STABILITY, Comparison, Difference, Measured
from compdx.environments.comparison import RESULT as RESULT
from compdx.environments.comparison import count_text
from compdx.report.charts import SHADES, WIDTH, _svg, _text
from compdx.report.figures import Figure
from compdx.report.wording import flat, number, percent, plural, shortened

LETTERS, FEW = (17, 12), 10  # of a name beside the heat map of few and of more; the tables have all of it
LETTER = 6.4  # about the width of one
LARGEST = 44.0  # side of a cell


def content(directory: Path) -> dict[str, Any]:
    """What the template needs of the comparison in a directory."""
    found = Comparison.load(directory)
    measured = [pair for pair in found.pairs if pair.measured]
    return {
        "found": found,
        "name": directory.resolve().name,
        "sentence": sentence(found),
        "facts": [
            plural(len(found.environments), "environment"),
            plural(found.images, "image"),
            f"batch {found.settings['batch']:,}",
        ],
        "figure": differences(found),
        "environments": [_environment(one) for one in found.environments],
        "pairs": [_pair(pair) for pair in measured],
        "unmeasured": found.unmeasured,
        "ways": list(STABILITY.items()),
        "top": min((pair.overlap.k for pair in measured if pair.overlap is not None), default=0),
        "settings": [
            ("Comparison", flat(found.settings)),
            *((one.name, flat(one.about)) for one in found.environments),
        ],
    }


def sentence(found: Comparison) -> tuple[str, str]:
    """The first words of the page, and what follows them."""
    measured = sum(pair.measured for pair in found.pairs)
    where = f"on {plural(found.images, 'image')} in {plural(measured, 'pair')} of environments"
    if any(pair.measured and pair.non_finite for pair in found.pairs):
        where += ", those left out where a score is NaN or infinite"
    if found.differing:
        return f"Labels differ in {plural(found.differing, 'pair')}", f"of {measured:,} that were measured."
    if not measured:
        return "Nothing could be compared", "as no two environments could be measured."
    searched = [one for one in found.searches if one.found]
    if searched:
        seeds = plural(sum(one.found for one in searched), "image")
        return "No label differs", f"{where}; searches found {seeds} on which they do."
    if found.found:
        return "Labels change within an environment", f"that is asked in another way; none differs {where}."
    return "No label differs", f"{where}."


def differences(found: Comparison) -> Figure:
    """The heat map of label differences."""
    counts = found.matrix()
    most = max((pair for pair in found.pairs if pair.measured), key=lambda pair: pair.differing, default=None)
    if most is None:
        note = "No pair of environments was measured."
    elif not most.differing:
        note = "No two environments that were measured differ in a label on any of the images."
    else:
        note = (
            f"{most.a} and {most.b} differ most, on {plural(most.differing, 'image')} of {most.images:,}; "
            f"{most.surprising:,} of them where the best score is at least {most.threshold:g} above the second."
        )
    unknown = int(np.isnan(counts[np.triu_indices(len(counts), 1)]).sum())
    if unknown:
        note += (
            f" {plural(unknown, 'pair')} {'was' if unknown == 1 else 'were'} not measured, which a dashed cell says."
        )
    return Figure(
        key="environments",
        title="Images with different labels",
        note=note,
        svg=heat_map(found.names, counts, label=f"Matrix of label differences. {note}"),
        legend=[
            ("q0", "none"),
            *([("q1", "one"), ("q6", f"{most.differing:,}")] if most is not None and most.differing > 1 else []),
            *([("unmeasured", "not measured")] if unknown else []),
        ],
        columns=("Reference", "Environment", "Images"),
        rows=[(pair.a, pair.b, f"{pair.differing:,}" if pair.measured else "not measured") for pair in found.pairs],
    )


def heat_map(names: Sequence[str], counts: npt.NDArray[np.float64], *, label: str) -> str:
    """A symmetric heat map of counts as inline SVG, NaN as a dashed cell: rows with names, columns with their numbers.

    Shades go by the logarithm, as one environment of few bits has more differences than all others together.
    """
    size = len(names)
    shown = [f"{k} {shortened(name, LETTERS[size > FEW])}" for k, name in enumerate(names)]
    left = 8 + max(map(len, shown)) * LETTER
    cell = min((WIDTH - left - 2) / size, LARGEST)
    if cell < 11:  # of many environments the numbers are all that fits
        shown = [str(k) for k in range(size)]
        left = 8 + len(shown[-1]) * LETTER
        cell = min((WIDTH - left - 2) / size, LARGEST)
    top, most = 18.0, float(np.nanmax(counts, initial=0))
    written = cell >= max(len(count_text(most)) * 6.6 + 2, 11)
    body = []
    for k, name in enumerate(shown):
        middle = top + (k + 0.5) * cell
        body.append(_text(name, left - 6, middle + 4, "end"))
        if cell >= 11:
            body.append(_text(str(k), left + (k + 0.5) * cell, top - 6, "middle"))
    for i in range(size):
        for j in range(size):
            count = float(counts[i, j])
            x, y, side = left + j * cell, top + i * cell, cell - 1.5
            shade = "same" if i == j and not math.isnan(count) else shade_of(count, most)
            told = "not measured" if math.isnan(count) else f"{count_text(count)} different"
            body.append(
                f'<rect class="{shade}" x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" height="{side:.1f}" rx="2">'
                f"<title>{escape(f'{names[i]} – {names[j]}: {told}')}</title></rect>"
            )
            if written and count > 0:
                body.append(
                    f'<text class="cell on-{shade}" text-anchor="middle" x="{x + side / 2:.1f}" '
                    f'y="{y + side / 2 + 3.8:.1f}">{count_text(count)}</text>'
                )
    width = max(left + size * cell + 2, 240)
    return _svg("".join(body), label, width=width, height=top + size * cell + 2, kind="chart matrix")


def shade_of(count: float, most: float) -> str:
    """The class of a cell: ``q0`` of none to ``q6`` of the most, by the logarithm."""
    if math.isnan(count):
        return "unmeasured"
    return f"q{max(1, math.ceil(SHADES * math.log1p(count) / math.log1p(most) - 1e-9))}" if count else "q0"


def _environment(one: Measured) -> dict[str, Any]:
    """A line of the table of environments, as text."""
    latency = one.latency
    milliseconds = [] if latency is None else [1e3 * value for value in (latency.median, *latency.quartiles)]
    return {
        "name": one.name,
        "accuracy": percent(one.accuracy, 2),
        "non_finite": f"{one.non_finite:,}" if one.reason is None else "–",
        "time": number(milliseconds[0], 1) if milliseconds else "–",
        "quartiles": f"{number(milliseconds[1], 1)} to {number(milliseconds[2], 1)}" if milliseconds else "–",
        "rate": number(None if latency is None else latency.images_per_second),
        "flips": [
            f"{len(one.stability[way].rows):,} of {one.stability[way].images:,}" if way in one.stability else "–"
            for way in STABILITY
        ],
    }


def _pair(pair: Difference) -> dict[str, Any]:
    """A line of the table of pairs, as text."""
    overlap, drift, speed = pair.overlap, pair.drift, pair.speed
    verdict = None if speed is None else speed.anova
    low, high = pair.interval
    return {
        "a": pair.a,
        "b": pair.b,
        "differing": f"{pair.differing:,}",
        "share": percent(pair.share, 2),
        "interval": f"{percent(low, 2)} to {percent(high, 2)}",
        "surprising": f"{pair.surprising:,}",
        "flips": [f"{pair.flips[name]:,}" for name in ("right_to_wrong", "wrong_to_right", "wrong_to_wrong", "tie")],
        "overlap": [] if overlap is None else [number(getattr(overlap, name), 4) for name in ("jaccard", "rbo", "tau")],
        "max_abs": "–" if drift is None else f"{drift.max_abs:.2g}",
        "sqnr": "–" if drift is None else number(drift.sqnr_db, 1) if math.isfinite(drift.sqnr_db) else "∞",
        "time": "–" if speed is None else f"{speed.time_change:+.1f}".replace("-", "−"),
        "p": "–" if verdict is None else f"{verdict.p:.2g}",
        "rows": ", ".join(map(str, pair.rows[:40])) + (", …" if len(pair.rows) > 40 else ""),
    }
