"""Findings and figures, as JSON values and as text for people."""

from __future__ import annotations

import math
from typing import Any

from rich import box
from rich.table import Table

from compdx.findings import EXHAUSTED, KINDS, Findings

# Columns that hold images.
PIXELS = ("image", "pictures")


def figures(findings: Findings) -> dict[str, Any]:
    """The figures of a run as JSON values."""
    pictures = findings.pictures
    return {
        "findings": len(findings),
        "kinds": {kind: count for kind, count in findings.kinds.items() if kind != KINDS[EXHAUSTED]},
        "summary": findings.summary.to_json(),
        **({} if pictures is None else {"pictures": pictures.counts()}),
    }


def verdict(findings: Findings) -> str:
    """The one sentence."""
    if len(findings):
        return f"[bold red]Found[/]: the models differ on {len(findings):,} images."
    return f"[bold green]None within budget[/]: no difference in {findings.summary.queries:,} queries."


def summary_table(findings: Findings) -> Table:
    """The figures of a search; of one that keeps every picture, their classes too."""
    summary = findings.summary
    rows = {
        "seeds": f"{summary.seeds:,}",
        "found": f"{summary.found:,}",
        "already deviating": f"{summary.already_deviating:,}",
        "exhausted": f"{summary.exhausted:,}",
        "non-finite": f"{summary.non_finite:,}",
        "queries": f"{summary.queries:,}",
        "queries per finding": figure(summary.queries_per_finding, ",.1f"),
        "queries per second": figure(summary.queries_per_second, ",.0f"),
        "seconds": figure(summary.seconds, ",.1f"),
        "occupancy": figure(summary.occupancy, ".1%"),
        "engine": summary.engine or "unknown",
    }
    if findings.pictures is not None:
        counts = findings.pictures.counts()
        rows |= {
            "pictures": f"{counts['pictures']:,}",
            "effective": f"{counts['effective']:,}",
            "effective, strict": f"{counts['strict']:,}",
            "invalid": f"{counts['invalid']:,}",
            "valid": f"{counts['valid']:,}",
        }
    return grid(rows)


def grid(rows: dict[str, str]) -> Table:
    """Names and figures in two columns."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(justify="right")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def findings_table(rows: list[dict[str, Any]], total: int) -> Table:
    """The first findings, a line each."""
    table = Table(box=box.SIMPLE, title=f"{len(rows):,} of {total:,} findings", title_justify="left")
    for name in ("seed", "step", "label", "original", "compressed", "l2", "linf"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    for row in rows:
        table.add_row(
            str(row["seed_index"]),
            str(row["step"]),
            _label(row["seed_label"]),
            f"{_label(row['original_label'])} {figure(row['original_confidence'], '6.1%')}",
            f"{_label(row['compressed_label'])} {figure(row['compressed_confidence'], '6.1%')}",
            figure(row["l2"], ".2f"),
            str(row["linf"]),
            row["kind"] if row["non_finite"] is None else f"{row['kind']} ({row['non_finite']})",
        )
    return table


def figure(value: float | None, style: str) -> str:
    """A figure in this format, or a dash where it is unknown."""
    return "-" if value is None or math.isnan(value) else format(value, style)


def _label(label: int) -> str:
    return "-" if label < 0 else str(label)
