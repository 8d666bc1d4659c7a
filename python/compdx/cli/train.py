"""``compdx train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group
from rich.markup import escape

from compdx import zoo
from compdx.cli import models
from compdx.cli import options as opt
from compdx.cli.answer import NOTHING, Answer
from compdx.cli.epochs import Epochs
from compdx.cli.figures import grid
from compdx.model import Inputs, import_optional
from compdx.zoo import files
from compdx.zoo.train import RECORD


def command(
    network: Annotated[str, typer.Argument(metavar="NETWORK", help=f"One of {', '.join(zoo.NETWORKS)}.")],
    data: opt.Data,
    out: Annotated[Path, typer.Option("--out", help="Directory of the training.")],
    epochs: opt.Epochs = None,
    batch_size: opt.BatchSize = None,
    rate: opt.Rate = None,
    schedule: opt.Schedule = None,
    weight_decay: Annotated[float | None, typer.Option("--weight-decay", help="Of the weights.")] = None,
    crop: opt.Crop = None,
    flip: opt.Flip = None,
    erase: opt.Erase = None,
    average: opt.Average = None,
    precision: opt.Precision = None,
    mean: Annotated[
        str | None, typer.Option("--mean", help="Mean of the input; of the training images when not given.")
    ] = None,
    std: Annotated[str | None, typer.Option("--std", help="Standard deviation, likewise.")] = None,
    size: opt.ImageSize = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="The first N images of both parts only.")] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="NETWORK", help="Go on from the weights of this trained network.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Store float32 weights; float16 otherwise.")] = False,
    seed: opt.Seed = 0,
    device: Annotated[str, typer.Option("--device", help="Where to train: cpu, cuda, cuda:1, ...")] = "cpu",
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of torch.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the training in --out.")] = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Train a reference network, with a checkpoint after every epoch."""
    with Answer("train", as_json=as_json, debug=debug, resumes=out / RECORD, kept="the last whole epoch") as answer:
        import_optional("torch", "training")
        models.set_threads(threads)
        parts = zoo.read_data(data, size=size)
        if limit is not None:
            parts = parts[0].select(slice(limit)), parts[1].select(slice(limit))
        recipe = opt.recipe_of(
            zoo.default_recipe(parts[0].shape[0]),
            epochs=epochs,
            batch_size=batch_size,
            rate=rate,
            schedule=schedule,
            weight_decay=weight_decay,
            crop=crop,
            flip=flip,
            erase=erase,
            average=average,
            precision=precision,
        )
        with Epochs(recipe.epochs, quiet=quiet) as screen:
            trained = zoo.train_network(
                network,
                parts,
                out,
                recipe=recipe,
                inputs=_inputs(mean, std),
                seed=seed,
                device=device,
                half=not full,
                start=None if start is None else models.network("--from", start),
                resume=resume,
                listen=screen,
                tick=screen.tick,
            )
        weights = out / f"{network}{files.SUFFIX}"
        accuracy, parameters = trained.about["accuracy"], sum(p.numel() for p in trained.network.parameters())
        rows = {
            "accuracy": f"{accuracy:.2%}",
            "of test images": f"{len(parts[1]):,}",
            "parameters": f"{parameters:,}",
            "bytes": f"{weights.stat().st_size:,}",
        }
        answer.give(
            NOTHING,
            data={
                "out": str(out),
                "network": network,
                "weights": str(weights),
                "accuracy": accuracy,
                "parameters": parameters,
                "epochs": recipe.epochs,
            },
            text="" if quiet else Group(grid(rows), f"The network: {escape(str(weights))}"),
        )


def _inputs(mean: str | None, std: str | None) -> Inputs | None:
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        msg = f"--mean and --std go together, got only {'--std' if mean is None else '--mean'}"
        raise ValueError(msg)
    return Inputs(mean=opt.numbers("--mean", mean), std=opt.numbers("--std", std))
