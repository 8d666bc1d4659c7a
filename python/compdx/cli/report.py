"""``compdx report``."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from compdx import report as reports
from compdx.cli import models
from compdx.cli import options as opt
from compdx.cli.answer import NOTHING, Answer


def command(
    run: opt.Run,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The page; report.html in the run when not given.")
    ] = None,
    seeds: Annotated[Path | None, typer.Option("--seeds", help="The seeds, to show beside the findings.")] = None,
    opens: Annotated[bool, typer.Option("--open/--no-open", help="Show the page in the browser.")] = False,
    as_json: opt.Json = False,
    debug: opt.Debug = False,
) -> None:
    """Write a run as one HTML page that needs no network."""
    with Answer("report", as_json=as_json, debug=debug) as answer:
        page = run / "report.html" if out is None else out
        chosen = None if seeds is None else models.seeds(seeds, None)
        reports.write(run, page, seeds=chosen, names=None if chosen is None else chosen.names)
        if opens:
            webbrowser.open(page.resolve().as_uri())
        answer.give(NOTHING, data={"run": str(run), "page": str(page)}, text=f"The report: {escape(str(page))}")
