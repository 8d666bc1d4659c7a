"""``compdx localize``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from compdx import environments
from compdx.cli import models
from compdx.cli import options as opt
from compdx.cli.answer import FOUND, NOTHING, Answer
from compdx.environments.layers.localization import RESULT

NODES = "nodes-{}.json"


def command(
    a: Annotated[str, typer.Argument(metavar="A", help=f"The first variant, which is right: {opt.TARGET}")],
    b: Annotated[str, typer.Argument(metavar="B", help="The second variant, likewise.")],
    images: Annotated[Path, typer.Option("--images", help='Images: a folder, an .npz, Parquet, a run, or "digits".')],
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Use the first N images only.")] = None,
    reference: Annotated[
        Path | None,
        typer.Option("--reference", help="What flipped images are compared with, one for each: the seeds of findings."),
    ] = None,
    chunk: Annotated[int, typer.Option("--chunk", min=1, help="Images at a time.")] = 64,
    top: Annotated[int, typer.Option("--top", min=1, help="Layers in the table.")] = 10,
    bisect: Annotated[
        bool, typer.Option("--bisect/--no-bisect", help="Find the first layer that matters by splicing A and B.")
    ] = True,
    out: Annotated[
        Path | None,
        typer.Option("--out", help=f"Directory for {RESULT}, and node data of both for Model Explorer."),
    ] = None,
    a_option: Annotated[
        list[str] | None,
        typer.Option("--a-option", metavar="KEY=VALUE", help="For A alone, as in search: level=basic."),
    ] = None,
    b_option: Annotated[
        list[str] | None, typer.Option("--b-option", metavar="KEY=VALUE", help="For B alone, likewise.")
    ] = None,
    device: opt.Device = None,
    threads: opt.Threads = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    bounds: opt.Bounds = None,
    layout: opt.Layout = None,
    outputs: opt.Outputs = None,
    class_offset: opt.Offset = None,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Find the layer in which two variants of a network begin to differ; exit code 1 if one does."""
    with Answer("localize", as_json=as_json, debug=debug) as answer:
        preprocessing = opt.preprocessing(mean, std, bounds, layout, outputs, class_offset)
        variants = [
            models.model(name, target, {**preprocessing, **opt.own_settings(option, own)}, device, threads)
            for name, target, option, own in (("A", a, "--a-option", a_option), ("B", b, "--b-option", b_option))
        ]
        models.set_threads(threads)
        found = environments.localize(
            variants[0],
            variants[1],
            models.seeds(images, limit),
            reference=None if reference is None else models.seeds(reference, limit),
            chunk=chunk,
            top=top,
            bisect=bisect,
        )
        written = "" if out is None else f"\n\nAll of it: {_write(found, out)}"
        answer.give(
            FOUND if found.suspects else NOTHING,
            data={"out": None if out is None else str(out), "localization": found.to_json()},
            text="" if quiet else f"{found}{written}",
        )


def _write(found: environments.Localization, out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    for side in ("a", "b"):
        nodes = found.node_data("a" if side == "a" else "b")
        (out / NODES.format(side)).write_text(json.dumps(nodes, allow_nan=False, indent=1) + "\n", encoding="utf-8")
    return found.save(out / RESULT)
