"""``compdx demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compdx import demo as demonstration
from compdx.cli import options as opt
from compdx.cli.answer import NOTHING, Answer
from compdx.cli.figures import figures


def command(
    out: Annotated[Path, typer.Option("--out", help="Directory for the run and the contact sheet.")] = Path("demo"),
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Number of seeds.")] = 500,
    budget: Annotated[int, typer.Option("--budget", min=1, help="Most queries on one seed.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", help="Run seed.")] = 0,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of the search.")] = None,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Train a small network on real digits, compress it to int8, search, verify and draw what was found."""
    with Answer("demo", as_json=as_json, debug=debug) as answer:
        result = demonstration.run(
            out=out,
            seeds=seeds,
            budget=budget,
            run_seed=seed,
            threads=threads,
            echo=_silence if as_json or quiet else answer.say,
            progress=not quiet,
        )
        answer.give(
            NOTHING,
            data={
                "out": str(out),
                **figures(result.findings),
                "grades": result.verification.counts,
                "sheet": str(result.sheet),
                "seconds": result.seconds,
            },
        )


def _silence(_: str) -> None:
    """Say nothing."""
