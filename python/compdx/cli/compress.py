"""``compdx compress``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Group
from rich.markup import escape

from compdx import compress as ways
from compdx import slicing, training, zoo
from compdx.cli import models
from compdx.cli import options as opt
from compdx.cli.answer import NOTHING, Answer
from compdx.cli.epochs import Epochs
from compdx.cli.figures import figure, grid
from compdx.compress import Compressed, pruning, quantization
from compdx.model import import_optional
from compdx.seeds import Seeds
from compdx.zoo.pairs import CompressedPair, check_new

SCHEMES = ("prune", "quantize", "qat", "half")
NAMES = {"before": "original", "after": "compressed"}
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
        str | None,
        typer.Option(
            "--scope",
            metavar="global|layer",
            help="prune: rank the weights of all layers together (default) or of each by itself (with --for-classes).",
        ),
    ] = None,
    structured: Annotated[bool, typer.Option("--structured", help="prune: whole channels.")] = False,
    all_layers: Annotated[
        bool, typer.Option("--all-layers", help="prune: linear layers, too, not convolutions only.")
    ] = False,
    for_classes: Annotated[
        str | None,
        typer.Option(
            "--for-classes",
            metavar="A,B,...",
            help="prune: keep what slices of training images find to matter for these classes, in all layers.",
        ),
    ] = None,
    compensate: Annotated[
        bool, typer.Option("--compensate", help="prune: put the mean effect of what is gone back, as constants.")
    ] = False,
    images: Annotated[
        int,
        typer.Option("--images", min=1, help="--for-classes, --compensate: training images that are looked at."),
    ] = 2000,
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
    with quantization-aware training. With --data, accuracies are told, with --for-classes also those of these classes.
    """
    with Answer("compress", as_json=as_json, debug=debug) as answer:
        if scheme not in SCHEMES:
            msg = f"--scheme must be {', '.join(SCHEMES)}, got {scheme!r}"
            raise ValueError(msg)
        if scheme != "prune" and (for_classes is not None or compensate):
            msg = f"--for-classes and --compensate are for --scheme prune, got {scheme!r}"
            raise ValueError(msg)
        target = None if for_classes is None else opt.classes("--for-classes", for_classes)
        check_new(out)
        import_optional("torch", "compression")
        models.set_threads(threads)
        original = models.network("NETWORK", network)
        parts = None if data is None else zoo.read_data(data, size=size)
        observed: Seeds | None = None
        tuning = _tuning(scheme, original, parts, epochs, rate, flip)
        passes = tuning["recipe"].epochs if tuning else 0
        if scheme == "prune":
            options: dict[str, Any] = {
                "scope": scope,
                "structured": structured,
                "layers": "all" if all_layers else None,
            }
            compressed = _pruned(original, parts, amount, target, compensate, images, options)
            if tuning:
                with Epochs(passes, quiet=quiet) as screen:
                    compressed = ways.finetune(compressed, seed=seed, listen=lambda epoch, _: screen(epoch), **tuning)
        elif scheme == "quantize":
            observed = _drawn(_needed(parts, "quantize")[0], calibration, seed)
            compressed = ways.quantize(original.network, observed, inputs=original.inputs)
        elif scheme == "qat":
            observed = _drawn(_needed(parts, "qat")[0], calibration, seed)
            with Epochs(passes, quiet=quiet or not passes) as screen:
                compressed = ways.quantize(
                    original.network,
                    observed,
                    mode="qat",
                    seed=seed,
                    listen=lambda epoch, _: screen(epoch),
                    **{"inputs": original.inputs, **tuning},
                )
        else:
            compressed = ways.half(original.network, dtype)  # type: ignore[arg-type]
        CompressedPair(original=original, compressed=compressed, calibration=observed).save(out)
        test = None if parts is None else parts[1]
        accuracies = _accuracies(original, compressed, test, None)
        own = None if target is None else _accuracies(original, compressed, test, target)
        record = compressed.record
        rows = {
            "accuracy before": figure(accuracies["original"], ".2%"),
            "accuracy after": figure(accuracies["compressed"], ".2%"),
            **(
                {}
                if own is None
                else {f"of the classes {name}": figure(own[key], ".2%") for name, key in NAMES.items()}
            ),
            "zeros": f"{record['sparsity']:.1%}",
            "bytes": f"{record['bytes']:,} of {record['original_bytes']:,}",
        }
        answer.give(
            NOTHING,
            data={"out": str(out), "accuracy": accuracies, "classes": target, "class_accuracy": own, "record": record},
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


def _pruned(
    original: zoo.Pretrained,
    parts: tuple[Seeds, Seeds] | None,
    amount: float,
    target: list[int] | None,
    compensate: bool,
    images: int,
    options: dict[str, Any],
) -> Compressed:
    """Pruned by magnitude, or by what matters to the target classes, and compensated where that is wanted."""
    if target is None and not compensate:
        return ways.prune(original.network, amount, **options)
    train = models.spread(_needed(parts, "prune with --for-classes or --compensate")[0], images)
    means = slicing.profile(original.model(), train)
    scores = None
    if target is not None:
        found = slicing.class_scores(original.model(), means, train, classes=target)
        scores = found.of(target)
    pruned = ways.prune(original.network, amount, scores=scores, **options)
    if scores is not None:
        pruned.record["settings"]["scores"] = {"classes": target, **found.settings}
    return slicing.compensate(pruned, means) if compensate else pruned


def _accuracies(
    original: zoo.Pretrained, compressed: Compressed, test: Seeds | None, classes: list[int] | None
) -> dict[str, float | None]:
    """Of both networks on the test images, or on those of some classes."""
    if test is None:
        return {"original": None, "compressed": None}
    own = test if classes is None or test.labels is None else test.select(np.isin(test.labels, classes))
    networks = {"original": original.network, "compressed": compressed.model}
    return {name: training.accuracy(network, own, original.inputs) for name, network in networks.items()}


def _drawn(seeds: Seeds, count: int, seed: int) -> Seeds:
    rows = np.random.default_rng(seed).permutation(len(seeds))[:count]
    return seeds.select(np.sort(rows))


def _needed(parts: tuple[Seeds, Seeds] | None, what: str) -> tuple[Seeds, Seeds]:
    if parts is None:
        msg = f"--scheme {what} needs --data"
        raise ValueError(msg)
    return parts
