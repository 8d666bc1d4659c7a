"""Charts as inline SVG: numbers in, markup out.

A chart is drawn at the width of a phone; the page scales it up. Colours are classes of the page's style sheet, so that
they follow its theme. All text that comes in is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt

from compdx.report.wording import number, percent, power, shortened

WIDTH, HEIGHT = 340, 216
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 26, 42
ROW, BAR = 27, 12  # of charts with horizontal bars
COLOURS = ("c-before", "c-accent")  # of what was before, and of what is after
MARKED = "c-invalid"  # of columns that stand out
SHADES = 6  # of the matrix: class q0 is none, q6 the most
PLOT = 120  # height of a plot with columns
TAIL = 14  # letters of a name below a column: its end, which tells it from others
DECADES = 7  # at most, that a logarithmic axis names
_LETTER = 6.4  # about the width of one
_CROWDED, _WIDEST = 13.0, 26.0  # of columns: names that are nearer than that lie on each other; no column is wider
_LEAST = 2.0  # width of a column that stands out

Numbers = Sequence[float] | npt.NDArray[np.floating | np.integer]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Values ``low``..``high``: positive when ``log``, shares 0..1 when ``percent``, integers when ``whole``."""

    title: str
    low: float
    high: float
    log: bool = False
    percent: bool = False
    whole: bool = False

    def ticks(self) -> list[float]:
        """Round values within the axis, about five."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            return [10.0**n for n in range(first, last + 1, math.ceil((last - first + 1) / DECADES))]
        step = _step(self.high - self.low, self.whole)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [n * step for n in range(first, last + 1)]

    def share(self, value: float) -> float:
        """Where a value lies, 0..1."""
        if self.log:
            return math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def write(self, value: float) -> str:
        """A tick's text."""
        if self.percent:
            step = 100 * _step(self.high - self.low, self.whole)
            return percent(round(value, 9), next((n for n in range(5) if abs(round(step, n) - step) < 1e-9), 5))
        if self.log and self.low < 1:
            return power(round(math.log10(value)))
        if abs(value) >= 1e6:
            return f"{value / 1e6:g} M"
        if abs(value) >= 1e4:
            return f"{value / 1e3:g} k"
        return number(value, 0 if value == round(value) else 2 if self.high - self.low < 0.4 else 1)


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve: points, a colour, whether it goes in steps (holds its value until the next point), and its trimmings."""

    xs: Numbers
    ys: Numbers
    colour: str
    step: bool = False
    fill: bool = False
    dot: bool = True  # at its end


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Counts of one colour, one each bin or bar."""

    values: Numbers
    colour: str
    name: str


def up_to(title: str, high: float, *, percent: bool = False, whole: bool = False) -> Axis:
    """An axis from 0 that reaches ``high``, or a bit further to a round value."""
    return Axis(title=title, low=0.0, high=_top(high, whole), percent=percent, whole=whole)


def decades(title: str, values: Numbers) -> Axis:
    """A logarithmic axis of whole decades around all positive, finite values; one decade at least."""
    known = [value for value in values if 0 < value < math.inf] or [1.0]
    low, high = math.floor(math.log10(min(known)) - 1e-9), math.ceil(math.log10(max(known)) - 1e-9)
    return Axis(title=title, low=10.0**low, high=10.0 ** max(high, low + 1), log=True)


def curves(x: Axis, y: Axis, lines: Sequence[Line], *, label: str, marks: Sequence[float] = ()) -> str:
    """Lines over a frame; ``marks`` are values of x with a line of their own."""
    body = [_frame(x, y)]
    for mark in marks:
        at = f"{_x(x, mark):.1f}"
        body.append(f'<line class="mark" x1="{at}" x2="{at}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    for line in lines:
        points = [(_x(x, a), _y(y, b)) for a, b in zip(line.xs, line.ys, strict=True)]
        if not points:
            continue
        path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
        path += "".join(f"H{a:.1f}V{b:.1f}" if line.step else f"L{a:.1f} {b:.1f}" for a, b in points[1:])
        if line.fill:
            area = f"{path}V{HEIGHT - BOTTOM}H{points[0][0]:.1f}Z"
            body.append(f'<path class="area {line.colour}" d="{area}"/>')
        body.append(f'<path class="line {line.colour}" d="{path}"/>')
        if line.dot:
            body.append(f'<circle class="{line.colour}" cx="{points[-1][0]:.1f}" cy="{points[-1][1]:.1f}" r="2.6"/>')
    return _svg("".join(body), label)


def histogram(x: Axis, y: Axis, edges: Numbers, stacks: Sequence[Stack], *, label: str, gap: float = 1.0) -> str:
    """Columns between edges, the stacks on top of one another."""
    body = [_frame(x, y)]
    if x.low < 0 < x.high:
        at = f"{_x(x, 0):.1f}"
        body.append(f'<line class="zero" x1="{at}" x2="{at}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    floor = np.zeros(len(edges) - 1)
    for stack in stacks:
        for k, value in enumerate(stack.values):
            if value:
                left, right = _x(x, edges[k]), _x(x, edges[k + 1])
                low, high = _y(y, floor[k]), _y(y, floor[k] + value)
                what = f"{x.write(edges[k])} to {x.write(edges[k + 1])}: {number(value)} {stack.name}"
                body.append(
                    f'<rect class="{stack.colour}" x="{left + gap / 2:.1f}" y="{high:.1f}" '
                    f'width="{max(right - left - gap, 0.5):.1f}" height="{max(low - high, 0.5):.1f}">'
                    f"<title>{escape(what)}</title></rect>"
                )
        floor += np.asarray(stack.values, float)
    return _svg("".join(body), label)


def bars(names: Sequence[str], stacks: Sequence[Stack], texts: Sequence[str], *, label: str) -> str:
    """Horizontal bars, the stacks behind one another, each with its text at the end."""
    longest = max((len(name) for name in names), default=0)
    left = min(8 + longest * _LETTER, WIDTH * 0.42)
    room = max((len(text) for text in texts), default=0) * _LETTER + 8
    totals = np.sum([np.asarray(stack.values, float) for stack in stacks], axis=0)
    unit = (WIDTH - left - room) / max(float(totals.max(initial=0.0)), 1e-12)
    body = []
    for row, (name, text) in enumerate(zip(names, texts, strict=True)):
        middle = row * ROW + ROW / 2
        start = left
        body.append(_text(name, left - 8, middle + 4, "end", room=left - 8))
        for stack in stacks:
            width = float(stack.values[row]) * unit
            body.append(_bar(start, middle - BAR / 2, width, stack.colour, f"{name}: {text}"))
            start += width
        body.append(_text(text, start + 6, middle + 4, "start", "value"))
    return _svg("".join(body), label, height=len(names) * ROW)


def pairs(
    names: Sequence[str],
    before: Sequence[float],
    after: Sequence[float],
    texts: Sequence[tuple[str, str]],
    *,
    label: str,
    high: float | None = None,
) -> str:
    """Two bars a row, before above after, with the name over them."""
    room = max((len(text) for both in texts for text in both), default=0) * _LETTER + 8
    most = max([*before, *after, 1e-12]) if high is None else high
    unit = (WIDTH - room) / most
    height = 2 * BAR + 30
    body = []
    for row, name in enumerate(names):
        top = row * height
        body.append(_text(name, 0, top + 13, "start", room=WIDTH))
        for place, (value, when) in enumerate(((before[row], "before"), (after[row], "after"))):
            y = top + 19 + place * (BAR + 2)
            body.append(_bar(0, y, value * unit, COLOURS[place], f"{name}, {when}: {texts[row][place]}"))
            body.append(_text(texts[row][place], value * unit + 6, y + BAR - 2, "start", "value"))
    return _svg("".join(body), label, height=len(names) * height)


def columns(
    names: Sequence[str],
    values: Numbers,
    behind: Numbers | None,
    y: Axis,
    *,
    label: str,
    titles: Sequence[str] | None = None,
    marked: Sequence[bool] | None = None,
    height: float = PLOT,
) -> str:
    """A column for each of many names, in order, and behind them wider ones of what they are compared with.

    Names are written below, turned where they are long, of crowded columns those of the highest. ``titles`` are shown
    over a column that is pointed at; without them all columns are one shape, which takes far less text. Columns with
    titles that are ``marked`` stand out. ``height`` is that of the plot.
    """
    ticks = [(value, y.write(value)) for value in y.ticks()]
    left = max(len(text) for _, text in ticks) * _LETTER + 10
    step = (WIDTH - left - 2) / max(len(names), 1)
    floor = TOP + height

    def level(value: float) -> float:
        return floor - y.share(value) * height

    body = [_text(y.title, 0, 11, "start", "title")]
    for value, text in ticks:
        kind = "grid" if value > y.low else "base"
        body.append(
            f'<line class="{kind}" x1="{left:.1f}" x2="{WIDTH}" y1="{level(value):.1f}" y2="{level(value):.1f}"/>'
        )
        body.append(_text(text, left - 6, level(value) + 4, "end", "tick"))
    for series, colour, share in ((behind, COLOURS[0], 0.9), (values, COLOURS[1], 0.9 if behind is None else 0.5)):
        if series is None:
            continue
        usual = min(share * step, share * _WIDEST)
        stands_out = [False] * len(names) if marked is None or series is behind else marked
        widths = [max(usual, _LEAST) if marks else usual for marks in stands_out]
        boxes = [
            (left + (k + 0.5) * step - width / 2, level(value), width)
            for k, (value, width) in enumerate(zip(series, widths, strict=True))
        ]
        if titles is None:
            path = "".join(f"M{x:.1f} {floor:.1f}V{top:.1f}h{width:.1f}V{floor:.1f}" for x, top, width in boxes)
            body.append(f'<path class="{colour}" d="{path}"/>')
            continue
        body += [
            f'<rect class="{MARKED if marks else colour}" x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" '
            f'height="{floor - top:.1f}"><title>{escape(title)}</title></rect>'
            for (x, top, width), title, marks in zip(boxes, titles, stands_out, strict=True)
        ]
    ends = [name if len(name) <= TAIL else "…" + name[1 - TAIL :] for name in names]
    middles = [left + (k + 0.5) * step for k in range(len(names))]
    longest = max(map(len, ends), default=0) * _LETTER
    if longest <= step:
        body += [_text(name, x, floor + 16, "middle", "tick") for name, x in zip(ends, middles, strict=True)]
        return _svg("".join(body), label, height=floor + 24)
    shown: list[int] = []
    for k in sorted(range(len(names)), key=lambda k: -values[k]):
        if all(abs(middles[k] - middles[other]) >= _CROWDED for other in shown):
            shown.append(k)
            turn = f"translate({middles[k] + 4:.1f} {floor + 6:.1f}) rotate(-90)"
            body.append(f'<text class="tick" text-anchor="end" transform="{turn}">{escape(ends[k])}</text>')
    return _svg("".join(body), label, height=floor + 10 + max(len(ends[k]) for k in shown) * _LETTER)


def matrix(names: Sequence[str], counts: npt.NDArray[np.int64], *, label: str, rows: str, columns: str) -> str:
    """A square heat map of counts; numbers are written where they fit."""
    size = len(names)
    shown = [shortened(name, 12) for name in names]
    longest = max(len(name) for name in shown)
    upright = longest <= 2
    left = 26 + longest * _LETTER
    cell = min((WIDTH - left - 2) / size, 44.0)
    top = 36.0 if upright else 26 + longest * _LETTER * 0.8
    most = max(int(counts.max(initial=0)), 1)
    digits = len(str(most))
    written = cell >= digits * 7 + 3
    named = cell >= 11 or size <= 26
    middle_x, middle_y = left + size * cell / 2, top + size * cell / 2
    body = [
        _text(columns, middle_x, 12, "middle", "title"),
        f'<text class="title" text-anchor="middle" transform="translate(11 {middle_y:.1f}) rotate(-90)">'
        f"{escape(rows)}</text>",
    ]
    for k, name in enumerate(shown if named else ()):
        x, y = left + (k + 0.5) * cell, top + (k + 0.5) * cell
        body.append(_text(name, left - 6, y + 4, "end"))
        turn = f"translate({x:.1f} {top - 6:.1f})" + ("" if upright else f" translate(4 0) rotate(-{52})")
        anchor = "middle" if upright else "start"
        body.append(f'<text class="tick" text-anchor="{anchor}" transform="{turn}">{escape(name)}</text>')
    for i in range(size):
        for j in range(size):
            count = int(counts[i, j])
            shade = "same" if i == j and not count else f"q{math.ceil(SHADES * count / most) if count else 0}"
            x, y = left + j * cell, top + i * cell
            what = f"{names[i]} → {names[j]}: {count:,}"
            body.append(
                f'<rect class="{shade}" x="{x:.1f}" y="{y:.1f}" width="{cell - 1.5:.1f}" height="{cell - 1.5:.1f}" '
                f'rx="2"><title>{escape(what)}</title></rect>'
            )
            if count and written:
                body.append(
                    f'<text class="cell on-{shade}" text-anchor="middle" x="{x + cell / 2 - 0.7:.1f}" '
                    f'y="{y + cell / 2 + 3.2:.1f}">{count}</text>'
                )
    tilt = 0.0 if upright else longest * _LETTER * 0.62
    width = left + max(size * cell, (size - 0.5) * cell + tilt) + 2
    return _svg("".join(body), label, width=max(width, 240), height=top + size * cell + 2, kind="chart matrix")


def shades(counts: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """The shades of a matrix of these counts that stand in its legend, each with the largest count it stands for."""
    most = max(int(counts.max(initial=0)), 1)
    tops = {most * shade // SHADES: shade for shade in (2, 4, 6)}
    return [(shade, top) for top, shade in tops.items() if top]


def strip(parts: Sequence[tuple[str, int]], *, label: str) -> str:
    """One bar of parts ``(kind, count)`` from edge to edge; it is stretched to the width of the page."""
    total = sum(count for _, count in parts)
    body, start = [], 0.0
    for kind, count in parts:
        width = 1000 * count / total if total else 0.0
        if count:
            body.append(f'<rect class="c-{kind}" x="{start:.2f}" width="{max(width - 2, 1.5):.2f}" height="14"/>')
        start += width
    return (
        f'<svg class="strip" viewBox="0 0 1000 14" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}">{"".join(body)}</svg>'
    )


def _frame(x: Axis, y: Axis) -> str:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for value in y.ticks():
        at = _y(y, value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(_text(y.write(value), LEFT - 6, at + 4, "end", "tick"))
    for value in x.ticks():
        at = _x(x, value)
        anchor = "end" if at > right - 10 else "middle"
        parts.append(f'<line class="base" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(_text(x.write(value), at + (RIGHT - 2 if anchor == "end" else 0), bottom + 16, anchor, "tick"))
    parts.append(f'<line class="base" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(_text(y.title, 0, 11, "start", "title"))
    parts.append(_text(x.title, right, HEIGHT - 6, "end", "title"))
    return "".join(parts)


def _text(text: str, x: float, y: float, anchor: str, kind: str = "tick", *, room: float | None = None) -> str:
    shown = text if room is None else shortened(text, max(int(room / _LETTER), 4))
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(shown)}</text>'


def _bar(x: float, y: float, width: float, colour: str, title: str) -> str:
    if width <= 0:
        return ""
    return (
        f'<rect class="{colour}" x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.8):.1f}" height="{BAR}" rx="1.5">'
        f"<title>{escape(title)}</title></rect>"
    )


def _svg(body: str, label: str, *, width: float = WIDTH, height: float = HEIGHT, kind: str = "chart") -> str:
    return (
        f'<svg class="{kind}" viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(label)}">'
        f"{body}</svg>"
    )


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.share(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.share(value) * (HEIGHT - TOP - BOTTOM)


def _steps(span: float, whole: bool) -> list[tuple[int, float]]:
    """Round steps (1, 2, 2.5, 5 times a power of ten) that cover a span, three to six times, and how often."""
    power = 10.0 ** math.floor(math.log10(span) - 1)
    steps = [factor * scale for scale in (power, 10 * power) for factor in (1.0, 2.0, 2.5, 5.0)]
    if whole:
        steps = [step for step in steps if step == round(step)] if span > 3 else [1.0]
    return [(count, step) for step in steps if (count := math.ceil(span / step - 1e-9)) <= 6 and (count >= 3 or whole)]


def _top(high: float, whole: bool) -> float:
    """The lowest end of an axis from 0 that is a multiple of a round step and not below ``high``."""
    return min(count * step for count, step in _steps(high, whole)) if high > 0 else 1.0


def _step(span: float, whole: bool) -> float:
    """The step between the ticks of an axis: one that ends on a tick if there is one, and then the widest."""
    _, negative = min((count * step, -step) for count, step in _steps(span, whole) if count >= 3 or span <= 3)
    return -negative
