"""Plain SVG charts for docs/performance.md: the same bytes everywhere, so that a check can compare them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999", "#f0e442")
WIDTH = 760
LEFT, RIGHT, TOP, BOTTOM = 150, 24, 56, 44
LINE = 18

Series = dict[str, list[tuple[float, float]]]


def document(title: str, height: int, body: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12" role="img">'
    )
    back = f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>'
    return "\n".join(
        [head, f"<title>{escape(title)}</title>", back, text(LEFT, 20, title, weight="bold"), *body, "</svg>\n"]
    )


def text(x: float, y: float, words: str, *, anchor: str = "start", weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{escape(words)}</text>'


def rule(x1: float, y1: float, x2: float, y2: float, colour: str = "#dddddd", dash: str = "none") -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-dasharray="{dash}"/>'
    )


def legend(names: Sequence[str]) -> list[str]:
    parts, x = [], float(LEFT)
    for place, name in enumerate(names):
        parts.append(f'<rect x="{x:.1f}" y="30" width="12" height="12" fill="{COLOURS[place % len(COLOURS)]}"/>')
        parts.append(text(x + 16, 41, name))
        x += 34 + 6.6 * len(name)
    return parts


def lines(title: str, series: Series, *, x: str, y: str, log_y: bool = False, limit: float | None = None) -> str:
    """Points joined by lines over a logarithmic x axis; ``limit`` is drawn as a dashed line."""
    height = 340
    xs = [point[0] for points in series.values() for point in points]
    ys = [point[1] for points in series.values() for point in points] + ([] if limit is None else [limit])
    right = _scale(min(xs), max(xs), LEFT, WIDTH - RIGHT, log=True)
    low = min(ys) if log_y else 0.0
    up = _scale(low, max(ys) * (1 if log_y else 1.05), height - BOTTOM, TOP, log=log_y)
    body = legend(list(series))
    for tick in _ticks(low, max(ys), log_y):
        body += [rule(LEFT, up(tick), WIDTH - RIGHT, up(tick)), text(LEFT - 8, up(tick) + 4, short(tick), anchor="end")]
    for tick in sorted(set(xs)):
        body += [text(right(tick), height - BOTTOM + 18, short(tick), anchor="middle")]
    if limit is not None:
        body.append(rule(LEFT, up(limit), WIDTH - RIGHT, up(limit), "#333333", "4 3"))
    for place, points in enumerate(series.values()):
        colour = COLOURS[place % len(COLOURS)]
        path = " ".join(f"{right(a):.1f},{up(b):.1f}" for a, b in sorted(points))
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        body += [f'<circle cx="{right(a):.1f}" cy="{up(b):.1f}" r="3" fill="{colour}"/>' for a, b in points]
    body += [text((LEFT + WIDTH - RIGHT) / 2, height - 8, x, anchor="middle"), text(LEFT - 8, 41, y, anchor="end")]
    return document(title, height, body)


def bars(title: str, categories: Sequence[str], series: dict[str, list[float]], *, x: str) -> str:
    """Horizontal bars from 0, one colour a series; a dashed line stands at 1."""
    row = 10 * len(series) + 8
    height = TOP + row * len(categories) + BOTTOM
    most = max(1.0, *(value for values in series.values() for value in values))
    right = _scale(0.0, most * 1.05, LEFT, WIDTH - RIGHT)
    body = legend(list(series))
    for tick in _ticks(0.0, most, False):
        body += [
            rule(right(tick), TOP, right(tick), height - BOTTOM),
            text(right(tick), height - BOTTOM + 16, short(tick), anchor="middle"),
        ]
    for place, category in enumerate(categories):
        top = TOP + row * place + 4
        body.append(text(LEFT - 8, top + 5 * len(series) + 4, category, anchor="end"))
        for number, values in enumerate(series.values()):
            body.append(_bar(LEFT, top + 10 * number, right(values[place]) - LEFT, 9, COLOURS[number % len(COLOURS)]))
    body += [
        rule(right(1.0), TOP, right(1.0), height - BOTTOM, "#333333", "4 3"),
        text((LEFT + WIDTH - RIGHT) / 2, height - 8, x, anchor="middle"),
    ]
    return document(title, height, body)


def stacked(title: str, rows: dict[str, dict[str, float]], *, x: str) -> str:
    """One bar a row, made of its parts; parts are not negative."""
    row = 28
    height = TOP + row * len(rows) + BOTTOM
    most = max(1.0, *(sum(parts.values()) for parts in rows.values()))
    right = _scale(0.0, most, LEFT, WIDTH - RIGHT)
    names = list(dict.fromkeys(name for parts in rows.values() for name in parts))
    body = legend(names)
    for place, (label, parts) in enumerate(rows.items()):
        top, start = TOP + row * place + 4, 0.0
        body.append(text(LEFT - 8, top + 14, label, anchor="end"))
        for name, value in parts.items():
            colour = COLOURS[names.index(name) % len(COLOURS)]
            body.append(_bar(right(start), top, right(start + value) - right(start), 20, colour))
            start += value
    for tick in _ticks(0.0, most, False):
        body.append(text(right(tick), height - BOTTOM + 16, short(tick), anchor="middle"))
    body.append(text((LEFT + WIDTH - RIGHT) / 2, height - 8, x, anchor="middle"))
    return document(title, height, body)


def short(value: float) -> str:
    """A number for an axis: 0.25, 1024, 65k, 2M, 1e-05."""
    if value == 0 or 1e-3 <= abs(value) < 10_000:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0e}"


def _bar(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.0):.1f}" height="{height:.1f}" fill="{colour}"/>'


def _scale(low: float, high: float, start: float, end: float, *, log: bool = False) -> Callable[[float], float]:
    """The place of a value on an axis; an axis of one value shows it in the middle."""

    def where(value: float) -> float:
        return math.log(value) if log else value

    span = where(high) - where(low)
    return lambda value: (start + end) / 2 if span == 0 else start + (end - start) * (where(value) - where(low)) / span


def _ticks(low: float, high: float, log: bool) -> list[float]:
    if log:
        powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
        return [10.0**power for power in powers]
    rough = (high - low) / 5 or 1.0
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough - 1e-12)
    first = math.ceil(low / step - 1e-9)
    return [step * number for number in range(first, math.floor(high / step + 1e-9) + 1)]
