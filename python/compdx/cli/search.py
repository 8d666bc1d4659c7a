"""``compdx search``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.markup import escape

import compdx
from compdx import methods
from compdx.cli import models
from compdx.cli import options as opt
from compdx.cli.answer import FOUND, NOTHING, Answer
from compdx.cli.figures import figures, summary_table, verdict
from compdx.methods.base import Method


def command(
    original: opt.Original,
    compressed: opt.Compressed,
    seeds: opt.SeedsPath,
    out: Annotated[Path, typer.Option("--out", help="Directory of the run.")],
    limit: opt.Limit = None,
    budget: Annotated[
        int | None, typer.Option("--budget", "--steps", min=1, help="Most queries on one seed; steps of gradient.")
    ] = None,
    chains: opt.Chains = "auto",
    seed: Annotated[int, typer.Option("--seed", help="Run seed.")] = 0,
    device: opt.Device = None,
    threads: opt.Threads = None,
    engine: opt.Engine = "auto",
    compile: opt.Compile = False,
    tf32: opt.Tf32 = None,
    method: Annotated[str, typer.Option("--method", metavar="mcmc|gradient", help="Search method.")] = "mcmc",
    coverage: Annotated[
        bool | None, typer.Option("--coverage/--no-coverage", help="gradient: raise neurons that pruning silenced.")
    ] = None,
    score: Annotated[
        str | None,
        typer.Option("--score", metavar="logit|margin|confidence", help="gradient: the scores that shall part."),
    ] = None,
    stop: Annotated[
        str | None, typer.Option("--stop", metavar="never|deviation", help="gradient: when a seed is done.")
    ] = None,
    method_option: Annotated[
        list[str] | None,
        typer.Option("--method-option", metavar="KEY=VALUE", help="Any other setting; repeatable."),
    ] = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    bounds: opt.Bounds = None,
    layout: opt.Layout = None,
    outputs: opt.Outputs = None,
    class_offset: opt.Offset = None,
    original_option: opt.OriginalOption = None,
    compressed_option: opt.CompressedOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Search for images on which the two models differ. Exit code 1 when there are any."""
    with Answer("search", as_json=as_json, debug=debug, resumes=out / "run.json") as answer:
        preprocessing = opt.preprocessing(mean, std, bounds, layout, outputs, class_offset)
        settings = method_of(method, budget, method_option or [], coverage=coverage, score=score, stop=stop)
        findings = compdx.search(
            models.pair(
                original, compressed, preprocessing, device, threads, opt.own(original_option, compressed_option)
            ),
            models.seeds(seeds, limit),
            method=settings,
            chains=opt.chains(chains),
            seed=seed,
            device=device,
            threads=threads,
            engine=engine,
            compile=compile,
            numerics=opt.numerics(tf32),
            out=out,
            resume=resume,
            progress=not quiet,
        )
        answer.give(
            FOUND if len(findings) else NOTHING,
            data={"out": str(out), **figures(findings)},
            text="" if quiet else Group(verdict(findings), summary_table(findings), f"The run: {escape(str(out))}"),
        )


def method_of(name: str, budget: int | None, assignments: list[str], **gradient: Any) -> Method:
    """The settings of a method: by ``--method-option KEY=VALUE``, and those of gradient that have their own options."""
    settings = methods.resolve(name, budget)
    known = settings.settings()
    changes: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or key not in known:
            msg = f"--method-option must be KEY=VALUE with one of the keys {', '.join(known)}, got {assignment!r}"
            raise ValueError(msg)
        changes[key] = opt.literal(value)
    for key, value in opt.given(**gradient).items():
        if name != "gradient":  # mcmc has a coverage, too, which is something else
            msg = f"--{key} is for --method gradient, got --method {name}"
            raise ValueError(msg)
        changes[key] = value
    return dataclasses.replace(settings, **changes)  # type: ignore[type-var]
