"""What a page says of a record: a `Part`, and how its numbers are written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

WHERE = {"": "on a CPU", "-cuda": "on a GPU"}
NOTHING = "–"

Row = dict[str, Any]


@dataclass
class Part:
    """What one record says: Markdown, and plots by file name."""

    words: list[str] = field(default_factory=list)
    images: dict[str, str] = field(default_factory=dict)

    def table(self, title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        rows = list(rows)
        if rows:
            lines = [header, ["---"] * len(header), *rows]
            texts = ([cell.replace("|", "\\|") for cell in cells] for cells in lines)
            self.words += [f"{title}:", "\n".join(f"| {' | '.join(cells)} |" for cells in texts)]

    def plot(self, name: str, title: str, svg: str) -> None:
        self.images[name] = svg
        self.words.append(f"![{title}](performance/{name})")


def count(value: float | None) -> str:
    """A rate: 1,465,613 as 1.47 M."""
    if value is None:
        return NOTHING
    for size, unit in ((1e9, " G"), (1e6, " M")):
        if value >= size:
            return f"{value / size:.2f}{unit}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def share(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1%}"


def ratio(row: Row, name: str, digits: int = 3) -> str:
    """A median with its quartiles."""
    if row.get(name) is None:
        return NOTHING
    low, _, high = row[f"{name}_quartiles"]
    return f"{row[name]:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def size(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def place(row: Row) -> str:
    if "isa" not in row:
        return "GPU"
    return f"{row['isa']}, {row['threads']} core{'s' if row['threads'] > 1 else ''}"


def milliseconds(row: Row, name: str) -> str:
    """A median of seconds with its quartiles, as milliseconds."""
    scaled = {name: row[name] * 1e3, f"{name}_quartiles": [value * 1e3 for value in row[f"{name}_quartiles"]]}
    return ratio(scaled, name, 1)
