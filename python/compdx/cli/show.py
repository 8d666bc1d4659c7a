"""``compdx show``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group
from rich.markup import escape

from compdx.cli import models
from compdx.cli import options as opt
from compdx.cli.answer import NOTHING, Answer
from compdx.cli.figures import PIXELS, figures, findings_table, summary_table, verdict
from compdx.store import read_run


def command(
    run: opt.Run,
    out: Annotated[Path | None, typer.Option("--out", help="Write the contact sheet here (.png).")] = None,
    seeds: Annotated[Path | None, typer.Option("--seeds", help="The seeds, for the contact sheet.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Show at most N findings.")] = 10,
    as_json: opt.Json = False,
    debug: opt.Debug = False,
) -> None:
    """Show the figures and the first findings of a run; with --out also their contact sheet."""
    with Answer("show", as_json=as_json, debug=debug) as answer:
        record = read_run(run)
        findings = record.findings()
        rows = findings.table.drop_columns(list(PIXELS)).slice(0, limit).to_pylist()
        if out is not None:
            findings.show(out, seeds=None if seeds is None else models.seeds(seeds, None), limit=limit)
        answer.give(
            NOTHING,
            data={
                "run": str(run),
                "finished": record.summary is not None,
                **figures(findings),
                "rows": rows,
                "sheet": None if out is None else str(out),
            },
            text=Group(
                verdict(findings) if record.summary is not None else "Not finished: interrupted, or still running.",
                summary_table(findings),
                *([findings_table(rows, len(findings))] if rows else []),
                *([] if out is None else [f"The contact sheet: {escape(str(out))}"]),
            ),
        )
