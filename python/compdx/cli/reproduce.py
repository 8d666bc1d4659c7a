"""``compdx reproduce``: the experiments of a paper, run again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.markdown import Markdown

from compdx import reproduce as studies
from compdx.cli import models
from compdx.cli import options as opt
from compdx.cli.answer import NOTHING, Answer

PAPERS = {"compd": studies.compd}


def command(
    paper: Annotated[str, typer.Argument(metavar="PAPER", help='Which: "compd".')],
    data: Annotated[Path, typer.Option("--data", help="A directory with train.parquet and test.parquet (CIFAR-10).")],
    out: Annotated[Path, typer.Option("--out", help="Directory of the study; one that was stopped goes on.")],
    model: Annotated[str, typer.Option("--model", help="A network of the zoo; resnet20 comes trained.")] = "resnet20",
    scheme: Annotated[str, typer.Option("--scheme", metavar="prune|quant", help="How it is compressed.")] = "prune",
    scale: Annotated[str, typer.Option("--scale", metavar="small|paper", help="How large the study is.")] = "small",
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Test images to search from.")] = None,
    reported: Annotated[int | None, typer.Option("--reported", min=1, help="Test images for accuracies.")] = None,
    seed: opt.Seed = 0,
    device: Annotated[str, typer.Option("--device", help="Where the networks run: cpu, cuda, cuda:1, ...")] = "cpu",
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of torch.")] = None,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Run the experiments of a paper again, and print its tables with ours beside them."""
    with Answer("reproduce", as_json=as_json, debug=debug) as answer:
        if paper not in PAPERS:
            msg = f"PAPER must be one of {', '.join(map(repr, PAPERS))}, got {paper!r}"
            raise ValueError(msg)
        models.set_threads(threads)
        changes = opt.given(seeds=seeds, reported=reported)
        size = dataclasses.replace(studies.scale_named(scale), **changes) if changes else scale
        figures = PAPERS[paper](
            data,
            out,
            model=model,
            scheme=scheme,
            scale=size,
            seed=seed,
            device=device,
            say=None if quiet else lambda line: typer.echo(line, err=True),
        )
        answer.give(
            NOTHING,
            data={"out": str(out), "figures": figures},
            text="" if quiet else Markdown(studies.render(figures)),
        )
