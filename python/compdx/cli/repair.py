"""``compdx repair``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group
from rich.markup import escape

import compdx
from compdx import repair as repairs
from compdx import zoo
from compdx.cli import models
from compdx.cli import options as opt
from compdx.cli.answer import NOTHING, Answer
from compdx.cli.epochs import Epochs
from compdx.model import Pair, import_optional
from compdx.repair import RECIPE
from compdx.zoo.pairs import CompressedPair, check_new


def command(
    run: opt.Run,
    compressed: Annotated[
        Path,
        typer.Option("--compressed", metavar="DIR", help="The network that was searched: a directory of compress."),
    ],
    data: opt.Data,
    out: Annotated[Path, typer.Option("--out", help="Directory of the repaired network.")],
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over pictures and images.")] = RECIPE.epochs,
    rate: Annotated[float, typer.Option("--rate", help="Learning rate.")] = RECIPE.rate,
    flip: opt.Flip = None,
    patience: Annotated[
        int | None, typer.Option("--patience", min=1, help="End after N epochs that bring nothing.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0.0, help="The last epoch so close to the best accuracy is taken.")
    ] = 0.0,
    consistency: Annotated[
        float, typer.Option("--consistency", min=0.0, help="Weight of the agreement with the original's soft scores.")
    ] = 0.0,
    label_weight: Annotated[
        float, typer.Option("--label-weight", min=0.0, help="Weight of the labels; 0 learns the soft scores alone.")
    ] = 1.0,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start from the original's own weights, under the same compression.")
    ] = False,
    train_limit: Annotated[int | None, typer.Option("--train-limit", min=1, help="Most training images.")] = None,
    picture_limit: Annotated[int | None, typer.Option("--picture-limit", min=0, help="Most pictures; 0: none.")] = None,
    unseen: Annotated[
        Path | None, typer.Option("--unseen", help="Other seeds, searched from before and after the repair.")
    ] = None,
    test_limit: Annotated[
        int, typer.Option("--test-limit", min=1, help="Test images for the accuracies in the report.")
    ] = 2000,
    size: opt.ImageSize = None,
    seed: opt.Seed = 0,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of torch.")] = None,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Train a compressed network on what a search of it found; the report of the run tells what that changed."""
    with Answer("repair", as_json=as_json, debug=debug) as answer:
        check_new(out)
        import_optional("torch", "a repair")
        models.set_threads(threads)
        tested = zoo.load_pair(compressed)
        findings = compdx.Findings.load(run)
        train, test = zoo.read_data(data, size=size)
        default = zoo.default_recipe(train.shape[0])
        recipe = opt.recipe_of(
            RECIPE, epochs=epochs, rate=rate, crop=default.crop, flip=default.flip if flip is None else flip
        )
        layout = {"memory_format": "channels_last"}
        with Epochs(epochs, quiet=quiet) as screen:
            repaired = repairs.finetune(
                Pair(tested.original.model(**layout), tested.model(**layout)),
                findings,
                train=train,
                test=test.select(slice(test_limit)),
                unseen=None if unseen is None else models.seeds(unseen, None),
                recipe=recipe,
                patience=patience,
                tolerance=tolerance,
                consistency=consistency,
                label_weight=label_weight,
                restart=restart,
                train_limit=train_limit,
                picture_limit=picture_limit,
                seed=seed,
                progress=screen,
            )
        result = repaired.compressed
        if result is None:  # a model that was made of a Compressed comes back as one
            msg = f"the repair of {compressed} returned no compressed network"
            raise RuntimeError(msg)
        CompressedPair(original=tested.original, compressed=result, calibration=tested.calibration).save(out)
        repaired.report.save(run)
        answer.give(
            NOTHING,
            data={"run": str(run), "out": str(out), "report": repaired.report.to_json()},
            text="" if quiet else Group(str(repaired.report), f"The repaired network: {escape(str(out))}"),
        )
