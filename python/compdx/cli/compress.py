"""``compdx compress``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Group
from rich.markup import escape

from compdx import compress as ways
from compdx import training, zoo
from compdx.cli import models
from compdx.cli import options as opt
from compdx.cli.answer import NOTHING, Answer
from compdx.cli.epochs import Epochs
from compdx.cli.figures import figure, grid
from compdx.compress import pruning, quantization
from compdx.model import import_optional
from compdx.seeds import Seeds
from compdx.zoo.pairs import CompressedPair, check_new

SCHEMES = ("prune", "quantize", "qat", "half")
RECIPES = {"prune": pruning.RECIPE, "qat": quantization.RECIPE}


def command(
    network: Annotated[
        str,
        typer.Argument(
            metavar="NETWORK", help="A .safetensors file, the directory of a training, or resnet20-cifar10."
        ),
    ],
    scheme: Annotated[str, typer.Option("--scheme", metavar="|".join(SCHEMES), help="How to compress.")],
    out: Annotated[Path, typer.Option("--out", help="Directory of the compressed network.")],
    data: opt.DataIfAny = None,
    amount: Annotated[float, typer.Option("--amount", help="prune: share of the weights that become zero.")] = 0.75,
    scope: Annotated[
        str, typer.Option("--scope", metavar="global|layer", help="prune: rank the weights of all layers or of each.")
    ] = "global",
    structured: Annotated[bool, typer.Option("--structured", help="prune: whole channels.")] = False,
    all_layers: Annotated[
        bool, typer.Option("--all-layers", help="prune: linear layers, too, not convolutions only.")
    ] = False,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=0, help="prune, qat: fine-tune for N epochs (20, 10); 0 for not at all."),
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", help="prune, qat: learning rate of the fine-tuning (0.01, 0.001).")
    ] = None,
    flip: opt.Flip = None,
    calibration: Annotated[
        int, typer.Option("--calibration", min=1, help="quantize, qat: training images to observe ranges on.")
    ] = 512,
    dtype: Annotated[str, typer.Option("--dtype", metavar="bfloat16|float16", help="half: which.")] = "bfloat16",
    size: opt.ImageSize = None,
    seed: opt.Seed = 0,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of torch.")] = None,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Compress a reference network into a directory that --compressed takes.

    prune, quantize and qat need --data: to fine-tune with and to calibrate on. quantize is int8 after training, qat
    with quantization-aware training. With --data, accuracies are told.
    """
    with Answer("compress", as_json=as_json, debug=debug) as answer:
        if scheme not in SCHEMES:
            msg = f"--scheme must be {', '.join(SCHEMES)}, got {scheme!r}"
            raise ValueError(msg)
        check_new(out)
        import_optional("torch", "compression")
        models.set_threads(threads)
        original = models.network("NETWORK", network)
        parts = None if data is None else zoo.read_data(data, size=size)
        images: Seeds | None = None
        tuning = _tuning(scheme, original, parts, epochs, rate, flip)
        passes = tuning["recipe"].epochs if tuning else 0
        if scheme == "prune":
            with Epochs(passes, quiet=quiet or not passes) as screen:
                compressed = ways.prune(
                    original.network,
                    amount,
                    scope=scope,  # type: ignore[arg-type]
                    structured=structured,
                    layers="all" if all_layers else None,
                    seed=seed,
                    listen=lambda epoch, _: screen(epoch),
                    **tuning,
                )
        elif scheme == "quantize":
            images = _drawn(_needed(parts, "quantize")[0], calibration, seed)
            compressed = ways.quantize(original.network, images, inputs=original.inputs)
        elif scheme == "qat":
            images = _drawn(_needed(parts, "qat")[0], calibration, seed)
            with Epochs(passes, quiet=quiet or not passes) as screen:
                compressed = ways.quantize(
                    original.network,
                    images,
                    mode="qat",
                    seed=seed,
                    listen=lambda epoch, _: screen(epoch),
                    **{"inputs": original.inputs, **tuning},
                )
        else:
            compressed = ways.half(original.network, dtype)  # type: ignore[arg-type]
        CompressedPair(original=original, compressed=compressed, calibration=images).save(out)
        accuracies = (
            {"original": None, "compressed": None}
            if parts is None
            else {
                "original": training.accuracy(original.network, parts[1], original.inputs),
                "compressed": training.accuracy(compressed.model, parts[1], original.inputs),
            }
        )
        record = compressed.record
        rows = {
            "accuracy before": figure(accuracies["original"], ".2%"),
            "accuracy after": figure(accuracies["compressed"], ".2%"),
            "zeros": f"{record['sparsity']:.1%}",
            "bytes": f"{record['bytes']:,} of {record['original_bytes']:,}",
        }
        answer.give(
            NOTHING,
            data={"out": str(out), "accuracy": accuracies, "record": record},
            text="" if quiet else Group(grid(rows), f"The compressed network: {escape(str(out))}"),
        )


def _tuning(
    scheme: str,
    original: zoo.Pretrained,
    parts: tuple[Seeds, Seeds] | None,
    epochs: int | None,
    rate: float | None,
    flip: bool | None,
) -> dict[str, Any]:
    """What a scheme is told of its fine-tuning; nothing for none."""
    if scheme not in RECIPES or epochs == 0:
        return {}
    train = _needed(parts, f"{scheme} with --epochs above 0")[0]
    default = zoo.default_recipe(train.shape[0])
    recipe = opt.recipe_of(
        RECIPES[scheme], epochs=epochs, rate=rate, crop=default.crop, flip=default.flip if flip is None else flip
    )
    return {"train": train, "recipe": recipe, "inputs": original.inputs}


def _drawn(seeds: Seeds, count: int, seed: int) -> Seeds:
    rows = np.random.default_rng(seed).permutation(len(seeds))[:count]
    return seeds.select(np.sort(rows))


def _needed(parts: tuple[Seeds, Seeds] | None, what: str) -> tuple[Seeds, Seeds]:
    if parts is None:
        msg = f"--scheme {what} needs --data"
        raise ValueError(msg)
    return parts
