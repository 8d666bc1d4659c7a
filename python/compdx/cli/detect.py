"""``compdx detect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import typer
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from compdx import slicing, zoo
from compdx.checkup import Share
from compdx.cli import models
from compdx.cli import options as opt
from compdx.cli.answer import FOUND, NOTHING, Answer
from compdx.model import import_optional
from compdx.slicing.profiles import Kind

SHOWN = 20
"""Rows of the table of flagged images; JSON has them all."""


def command(
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help=f"The model: {opt.TARGET}")],
    data: opt.Data,
    seeds: Annotated[
        Path,
        typer.Option("--seeds", help='Images to judge: a folder, an .npz, Parquet, a run (its findings), "digits".'),
    ],
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Judge the first N images only.")] = None,
    images: Annotated[int, typer.Option("--images", min=1, help="Training images to learn from.")] = 1000,
    clean: Annotated[
        int, typer.Option("--clean", min=1, help="Clean test images that tell how many are flagged wrongly.")
    ] = 200,
    layer: Annotated[
        str | None, typer.Option("--layer", help="Whose synapses; the last convolution if not given.")
    ] = None,
    features: Annotated[
        str, typer.Option("--features", metavar="slice|activations", help="What the detector sees of the layer.")
    ] = "slice",
    baseline: Annotated[
        str, typer.Option("--baseline", metavar="dataset|class", help="The means that slices compare with.")
    ] = "dataset",
    criterion: Annotated[
        str,
        typer.Option("--criterion", metavar="label|all", help="Where slices start: the model's label or all outputs."),
    ] = "all",
    classifier: Annotated[
        str, typer.Option("--classifier", metavar="tree|forest", help="What learns the class from them.")
    ] = "tree",
    theta: Annotated[bool, typer.Option("--theta", help="Keep only the inputs of a neuron that count; slow.")] = False,
    seed: opt.Seed = 0,
    device: opt.Device = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of torch.")] = None,
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
    """Learn from slices of clean images what a class looks like, and flag images whose label does not fit."""
    with Answer("detect", as_json=as_json, debug=debug) as answer:
        import_optional("torch", "a detector")
        judged = models.model(
            "--model", model, opt.preprocessing(mean, std, bounds, layout, outputs, class_offset), device
        )
        models.set_threads(threads)
        train, test = (
            models.spread(part, count) for part, count in zip(zoo.read_data(data), (images, clean), strict=True)
        )
        asked = models.seeds(seeds, limit)
        options: dict[str, Any] = {"layer": layer, "features": features, "classifier": classifier, "seed": seed}
        profile = None
        if features != "slice" and (theta or criterion != "all" or baseline != "dataset"):
            msg = "--theta, --criterion and --baseline are of slices; leave them out with --features activations"
            raise ValueError(msg)
        if features == "slice":
            options |= {"criterion": criterion, "theta": slicing.Theta() if theta else None}
            profile = slicing.profile(judged, train, baseline=cast("Kind", baseline))
        detector = slicing.detector(judged, profile, train, **options)
        found, known = detector.judge(asked), detector.judge(test)
        right = known.labels == test.labels
        wrong = Share(int((known.flags & right).sum()), int(right.sum()))
        flagged = [
            {
                "seed_index": int(asked.indices[row]),
                "label": int(found.labels[row]),
                "class": int(found.classes[row]),
                "trust": float(found.trust[row]),
            }
            for row in np.flatnonzero(found.flags)
        ]
        answer.give(
            FOUND if flagged else NOTHING,
            data={
                "detector": detector.settings(),
                "images": len(found),
                "flagged": flagged,
                "clean_flagged": wrong.to_dict() if right.any() else None,
            },
            text="" if quiet else _told(detector, len(found), flagged, wrong),
        )


def _told(detector: slicing.Detector, count: int, flagged: list[dict[str, Any]], wrong: Share) -> RenderableType:
    lines = [
        f"{len(flagged)} of {count} images flagged",
        f"of clean test images with the right label: {wrong}",
        f"learned from {detector.samples:,} images, layer {detector.reader.layer}",
    ]
    table = Table(box=box.SIMPLE, title="flagged", title_justify="left")
    for name in ("image", "label", "detector says"):
        table.add_column(name)
    for row in flagged[:SHOWN]:
        table.add_row(str(row["seed_index"]), str(row["label"]), str(row["class"]))
    if len(flagged) > SHOWN:
        lines.append(f"the first {SHOWN}; --json has all")
    return Group(*lines, *([table] if flagged else []))
