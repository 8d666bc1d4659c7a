"""``compdx slice``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import compdx
from compdx import slicing, zoo
from compdx.cli import models
from compdx.cli import options as opt
from compdx.cli.answer import NOTHING, Answer
from compdx.model import import_optional
from compdx.slicing import explanation as explanations


def command(
    run: opt.Run,
    original: opt.Original,
    compressed: opt.Compressed,
    data: opt.Data,
    seeds: Annotated[
        Path | None, typer.Option("--seeds", help="The seeds of the run: its findings are compared with them.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Explain the first N findings only.")] = None,
    images: Annotated[
        int, typer.Option("--images", min=1, help="Training images whose mean activations are the baseline.")
    ] = 1000,
    theta: Annotated[
        bool, typer.Option("--theta", help="Keep only the inputs of a neuron that count; slow. As in the paper.")
    ] = False,
    top: Annotated[int, typer.Option("--top", min=1, help="Layers, channels and synapses that are told.")] = 5,
    out: Annotated[
        Path | None,
        typer.Option("--out", help=f"The explanation as JSON; {explanations.FILE} in the run if not given."),
    ] = None,
    device: opt.Device = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of torch.")] = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    bounds: opt.Bounds = None,
    layout: opt.Layout = None,
    outputs: opt.Outputs = None,
    class_offset: opt.Offset = None,
    original_option: opt.OriginalOption = None,
    compressed_option: opt.CompressedOption = None,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Slice both models on what a search found: which layers, channels and weights made them differ."""
    with Answer("slice", as_json=as_json, debug=debug) as answer:
        import_optional("torch", "a slice")
        preprocessing = opt.preprocessing(mean, std, bounds, layout, outputs, class_offset)
        own = opt.own(original_option, compressed_option)
        pair = models.pair(original, compressed, preprocessing, device, threads, own)
        findings = compdx.Findings.load(run)
        if limit is not None:
            findings = compdx.Findings(
                findings.table.slice(0, limit),
                settings=findings.settings,
                summary=findings.summary,
                shape=findings.shape,
            )
        train, _ = zoo.read_data(data)
        explanation = slicing.explain(
            pair,
            findings,
            seeds=None if seeds is None else models.seeds(seeds, None),
            data=models.spread(train, images).images,
            theta=slicing.Theta() if theta else None,
            top=top,
        )
        path = explanation.save(run) if out is None else explanation.save(out.parent, out.name)
        answer.give(
            NOTHING,
            data={"run": str(run), "out": str(path), "explanation": explanation.to_json()},
            text="" if quiet else f"{explanation}\n\nAll of it: {path}",
        )
