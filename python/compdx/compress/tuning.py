"""Further training of what was compressed already."""

from __future__ import annotations

import copy
from dataclasses import replace

from compdx.compress import common
from compdx.compress.common import check_training
from compdx.compress.pruning import RECIPE
from compdx.compressed import Compressed
from compdx.model import Inputs
from compdx.seeds import Seeds
from compdx.training import Listener, Recipe


def finetune(
    compressed: Compressed,
    train: Seeds,
    *,
    inputs: Inputs,
    recipe: Recipe | None = None,
    seed: int = 0,
    listen: Listener | None = None,
) -> Compressed:
    """Train the twin of a compressed model on labelled images and compress again: masks, ranges and shifts stay.

    ``finetune(prune(model, ...), train, ...)`` is ``prune(model, ..., train=train, ...)``; what is done to the pruned
    model in between, such as `slicing.compensate`, is trained with.

    Args:
        compressed: It is not changed. Its record is kept but for the training.
        train: Images with labels.
        inputs: What the model is fed.
        recipe: How; default that of `prune`.
        seed: Fixes order, augmentation and dropout.
        listen: Called after every epoch; see `training.fit`.

    Raises:
        ModuleNotFoundError: torch is missing.
        TypeError, ValueError: An argument is of the wrong kind; the loss is not finite.

    Runs on the device of the twin.
    """
    if not isinstance(compressed, Compressed):
        msg = f"compressed must be a compdx.Compressed, got {type(compressed).__name__}"
        raise TypeError(msg)
    if train is None:
        msg = "train must be compdx.Seeds, got NoneType"
        raise TypeError(msg)
    check_training(train, recipe, inputs)
    recipe = recipe or RECIPE
    twin = copy.deepcopy(compressed.twin)
    trained = common.finetune(twin, train, recipe, inputs=inputs, seed=seed, listen=listen)
    settings = {**compressed.record["settings"], "recipe": recipe.settings(), "seed": seed}
    record = {**compressed.record, "settings": settings, "trained": trained}
    return replace(compressed.rebuilt(twin), record=record)
