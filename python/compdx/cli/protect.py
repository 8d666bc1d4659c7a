"""``compdx protect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Group
from rich.markup import escape

from compdx import slicing, training, zoo
from compdx.cli import models
from compdx.cli import options as opt
from compdx.cli.answer import NOTHING, Answer
from compdx.cli.epochs import Epochs
from compdx.cli.figures import figure, grid
from compdx.model import Inputs, import_optional
from compdx.seeds import Seeds
from compdx.slicing import protection
from compdx.zoo import files
from compdx.zoo.pairs import check_new

PUBLIC, HIDDEN = f"public{files.SUFFIX}", f"hidden{files.SUFFIX}"


def command(
    network: Annotated[
        str,
        typer.Argument(
            metavar="NETWORK", help="A .safetensors file, the directory of a training, or resnet20-cifar10."
        ),
    ],
    data: opt.Data,
    for_classes: Annotated[str, typer.Option("--for-classes", metavar="A,B,...", help="The classes to protect.")],
    out: Annotated[Path, typer.Option("--out", help=f"Directory of {PUBLIC} and {HIDDEN}.")],
    share: Annotated[float, typer.Option("--share", help="Share of the weights of every layer that is hidden.")] = 0.5,
    images: Annotated[int, typer.Option("--images", min=1, help="Training images that are looked at.")] = 2000,
    attack: Annotated[
        int, typer.Option("--attack", min=0, help="Train an attacker on N images that the network labels; 0: none.")
    ] = 0,
    epochs: opt.Epochs = None,
    size: opt.ImageSize = None,
    seed: opt.Seed = 0,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of torch.")] = None,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Hide the weights that matter most to some classes: a network to publish, and what it lacks in another file.

    slicing.Hidden.load puts both together again. With --attack it is told what someone gets back who has the public
    network, N training images and the whole network's labels of them.
    """
    with Answer("protect", as_json=as_json, debug=debug) as answer:
        classes = opt.classes("--for-classes", for_classes)
        check_new(out)
        import_optional("torch", "a protection")
        models.set_threads(threads)
        original = models.network("NETWORK", network)
        train, test = zoo.read_data(data, size=size)
        seen = models.spread(train, images)
        means = slicing.profile(original.model(), seen)
        found = slicing.class_scores(original.model(), means, seen, classes=classes)
        public, hidden = slicing.protect(original.network, found.of(classes), share)
        out.mkdir(parents=True, exist_ok=True)
        _save(original, public, out / PUBLIC)
        hidden.save(out / HIDDEN)
        parts = {"target": classes, "others": sorted(set(range(len(found.counts))) - set(classes)), "all": None}
        accuracies = {
            name: {part: _accuracy(made, test, chosen, original.inputs) for part, chosen in parts.items()}
            for name, made in (("network", original.network), ("public", public))
        }
        if attack:
            recipe = opt.recipe_of(protection.RECIPE, epochs=epochs)
            with Epochs(recipe.epochs, quiet=quiet) as screen:
                reached = slicing.recover(
                    *(public, original.network, models.spread(train, attack)),
                    test=test,
                    inputs=original.inputs,
                    recipe=recipe,
                    seed=seed,
                    listen=screen,
                )
            accuracies["attacker"] = {part: reached.best(chosen) for part, chosen in parts.items() if chosen != []}
        rows = {
            f"{name}: target, other and all classes": ", ".join(figure(of.get(part), ".2%") for part in parts)
            for name, of in accuracies.items()
        }
        answer.give(
            NOTHING,
            data={"out": str(out), "classes": classes, "hidden": len(hidden), "accuracy": accuracies},
            text=""
            if quiet
            else Group(
                grid(rows), f"{len(hidden):,} weights are in {escape(str(out / HIDDEN))}, the rest beside them."
            ),
        )


def _accuracy(network: Any, test: Seeds, classes: list[int] | None, inputs: Inputs) -> float | None:
    """On the test images of some classes, or of all; None for those of no class."""
    chosen = test if classes is None or test.labels is None else test.select(np.isin(test.labels, classes))
    return training.accuracy(network, chosen, inputs) if len(chosen) else None


def _save(original: zoo.Pretrained, public: Any, path: Path) -> None:
    """Write the public network like any other of the zoo; what is known of it holds for the whole one only."""
    arguments = {key: original.about[key] for key in files.ARCHITECTURE}
    zoo.save(public, path, name=original.about["network"], inputs=original.inputs, half=False, **arguments)
