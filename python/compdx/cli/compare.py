"""``compdx compare``."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from compdx import environments
from compdx.cli import models
from compdx.cli import options as opt
from compdx.cli.answer import FOUND, NOT_MEASURED, NOTHING, Answer
from compdx.cli.figures import figure
from compdx.environments import STABILITY, Comparison
from compdx.environments.comparison import NON_FINITE, count_text
from compdx.environments.recording import SETTINGS

FILES, RUNS = "files", "search"


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=f"The model: {opt.TARGET}")],
    env: Annotated[
        list[str],
        typer.Option(
            "--env",
            metavar="ENVIRONMENT",
            help="Where it runs, at least twice, the reference first: torch:inductor, onnxruntime:all:threads=1, "
            "openvino:bfloat16, torch:isa=avx2, tvm:3:batch=8, ...",
        ),
    ],
    images: Annotated[Path, typer.Option("--images", help='A folder of images, an .npz, Parquet, a run, or "digits".')],
    out: Annotated[
        Path | None, typer.Option("--out", help="Directory for scores, results, model files and searches.")
    ] = None,
    file: Annotated[
        list[str] | None,
        typer.Option("--file", metavar="RUNTIME=PATH", help="A file of the model made elsewhere: litert=a.tflite."),
    ] = None,
    file_option: Annotated[
        list[str] | None,
        typer.Option(
            "--file-option",
            metavar="RUNTIME:KEY=VALUE",
            help="Where a --file is fed or read otherwise than the model: litert:layout=NHWC.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Use the first N images only.")] = None,
    labels: Annotated[
        bool, typer.Option("--labels/--no-labels", help="Tell right from wrong where the images have labels.")
    ] = True,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images a call, where --env says nothing else.")] = 128,
    rechecked: Annotated[
        int, typer.Option("--rechecked", min=0, help="Ask about the first N images in other batches and again.")
    ] = 256,
    repeats: Annotated[int, typer.Option("--repeats", min=0, help="Timed calls of each environment.")] = 20,
    top: Annotated[int, typer.Option("--top", min=1, help="Length of the rankings that are compared.")] = 5,
    margin: Annotated[
        float, typer.Option("--margin", help="A flip is no surprise below this margin of the reference.")
    ] = 1e-3,
    search: Annotated[
        bool, typer.Option("--search", help="Search for images on which the reference and the others differ.")
    ] = False,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Images that a search starts from.")] = 100,
    method: Annotated[str, typer.Option("--method", metavar="mcmc|gradient", help="Method of the search.")] = "mcmc",
    budget: Annotated[
        int | None, typer.Option("--budget", "--steps", min=1, help="Most queries on one seed; steps of gradient.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Run seed of the search.")] = 0,
    mean: opt.Mean = None,
    std: opt.Std = None,
    bounds: opt.Bounds = None,
    layout: opt.Layout = None,
    outputs: opt.Outputs = None,
    class_offset: opt.Offset = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the comparison in --out.")] = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Run one model in several environments and compare labels, rankings, scores and times. Exit code 1 if labels
    differ, 2 if they do not but not everything could be measured."""
    started = None if out is None else out / SETTINGS
    with (
        Answer("compare", as_json=as_json, debug=debug, resumes=started, kept="what was measured") as answer,
        ExitStack() as stack,
    ):
        wanted = [environments.Environment.parse(text) for text in env]
        given = _files(file or [], file_option or [])
        preprocessing = opt.preprocessing(mean, std, bounds, layout, outputs, class_offset)
        chosen = models.seeds(images, limit)
        subject = models.model("MODEL", model, preprocessing, None)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) if out is None else out
        made = environments.variants(subject, wanted, folder / FILES, shape=chosen.shape, files=given)
        found = environments.compare(
            made,
            chosen,
            labels=None if labels else [-1] * len(chosen),
            batch=batch,
            rechecked=rechecked,
            repeats=repeats,
            top=top,
            margin=margin,
            directory=out,
            resume=resume,
            progress=not quiet,
        )
        if search:
            found = environments.search(
                found,
                chosen,
                method=method,
                budget=budget,
                limit=seeds,
                seed=seed,
                directory=None if out is None else out / RUNS,
                resume=resume,
                progress=not quiet,
            )
            if out is not None:
                found.save(out)
        answer.give(
            FOUND if found.found else NOTHING if found.complete else NOT_MEASURED,
            data={"out": None if out is None else str(out), **found.to_json()},
            text="" if quiet else Group(*_told(found, out)),
        )


def _files(assignments: list[str], options: list[str]) -> dict[str, dict[str, Any]]:
    """What ``RUNTIME=PATH`` and ``RUNTIME:KEY=VALUE`` texts say."""
    found: dict[str, dict[str, Any]] = {}
    for text in assignments:
        runtime, equals, path = text.partition("=")
        if not equals:
            msg = f"--file must be RUNTIME=PATH, got {text!r}"
            raise ValueError(msg)
        found[runtime] = {"path": path}
    for text in options:
        runtime, colon, assignment = text.partition(":")
        if not colon or runtime not in found:
            msg = f"--file-option must be RUNTIME:KEY=VALUE for a runtime with a --file, got {text!r}"
            raise ValueError(msg)
        found[runtime] |= opt.own_settings("--file-option", [assignment])
    return found


def _told(found: Comparison, out: Path | None) -> list[Any]:
    """The answer for people."""
    parts: list[Any] = [_verdict(found), _matrix(found), _environments(found)]
    for name, reason in found.unmeasured:
        parts.append(f"{escape(name)}: [bold]not measured[/]: {escape(reason)}")
    for one in found.environments:
        if one.non_finite:
            parts.append(f"{escape(one.name)}: {one.non_finite:,} of {found.images:,} images left out: {NON_FINITE}")
        for way, stability in one.stability.items():
            if len(stability.rows):
                parts.append(
                    f"{escape(one.name)}: {len(stability.rows):,} of {stability.images:,} labels change in "
                    f"{STABILITY[way]}"
                )
    for search in found.searches:
        told = f"{search.found:,} of {search.seeds:,} seeds" if search.reason is None else search.reason
        parts.append(f"search {escape(search.a)} – {escape(search.b)}: {escape(told)}")
    if out is not None:
        parts.append(f"The comparison: {escape(str(out))}")
    return parts


def _verdict(found: Comparison) -> str:
    """The one sentence."""
    measured = [pair for pair in found.pairs if pair.measured]
    if found.differing:
        return f"[bold red]Labels differ[/] in {found.differing:,} of {len(measured):,} pairs of environments."
    if any(search.found for search in found.searches):
        return "[bold red]Found[/]: environments differ on images of the search, on none that were given."
    if found.found:
        return "[bold red]Labels change[/] within an environment."
    if not measured:
        return "[bold]Nothing could be compared.[/]"
    rest = "" if found.complete else " [bold]Not everything could be measured.[/]"
    return f"[bold green]No label differs[/] on {found.images:,} images in {len(measured):,} pairs.{rest}"


def _matrix(found: Comparison) -> Table:
    """Label differences of every pair."""
    title = f"labels that differ, of {found.images:,} images"
    table = Table(box=box.SIMPLE, title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for index in range(len(found.names)):
        table.add_column(str(index), justify="right", no_wrap=True)
    for i, (name, row) in enumerate(zip(found.names, found.matrix(), strict=True)):
        cells = ["·" if i == j else count_text(value) for j, value in enumerate(row)]
        marked = [f"[bold red]{cell}[/]" if cell not in ("·", "0", "?") else cell for cell in cells]
        table.add_row(escape(f"{i} {name}"), *marked)
    return table


def _environments(found: Comparison) -> Table:
    """Accuracy and time of every environment, and its scores beside those of the first."""
    table = Table(box=box.SIMPLE)
    table.add_column("", no_wrap=True)
    for name in ("accuracy", "largest difference", "ms a batch", "images/s", "time change", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    beside = {pair.b: pair for pair in found.pairs if pair.a == found.names[0] and pair.measured}
    for one in found.environments:
        pair, latency = beside.get(one.name), one.latency
        speed = None if pair is None else pair.speed
        table.add_row(
            escape(one.name),
            figure(one.accuracy, ".2%"),
            figure(None if pair is None or pair.drift is None else pair.drift.max_abs, ".2g"),
            figure(None if latency is None else 1e3 * latency.median, ",.1f"),
            figure(None if latency is None else latency.images_per_second, ",.0f"),
            figure(None if speed is None else speed.time_change, "+.1f") + ("" if speed is None else " %"),
            figure(None if speed is None or speed.anova is None else speed.anova.p, ".2g"),
        )
    return table
