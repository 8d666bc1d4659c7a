"""Distillation: a smaller network learns the scores of the original (Hinton, Vinyals and Dean, 2015)."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt

from compdx.compress.common import NEEDS, check_module, check_training, copied, figures, finetune, stored
from compdx.compressed import Compressed, state_of
from compdx.model import Inputs, import_optional
from compdx.seeds import Seeds
from compdx.training import Listener, Recipe, predict, set_mode


def distill(
    model: Any,
    student: Any,
    *,
    train: Seeds,
    inputs: Inputs,
    temperature: float = 4.0,
    alpha: float = 0.9,
    recipe: Recipe | None = None,
    seed: int = 0,
    listen: Listener | None = None,
) -> Compressed:
    """Train a student on the soft labels of a torch module.

    The loss of an image is ``alpha * T**2 * KL(softmax(teacher / T), softmax(student / T))`` plus ``1 - alpha`` times
    the cross-entropy with its label; without labels it is the first term alone, with ``alpha`` 1. Teacher and student
    see the same cropped and mirrored images.

    Args:
        model: The teacher, a torch module in eval mode. It is not changed.
        student: A torch module for the same input and classes, trained or not. It is copied; the copy is trained.
        train: Images, with or without labels.
        inputs: What both are fed.
        temperature: T, positive.
        alpha: Weight of the soft labels, 0..1; below 1 needs labels to matter.
        recipe: How; default ``Recipe()``, which trains from scratch.
        seed: Fixes order, augmentation and dropout.
        listen: Called after every epoch, see `training.fit`. Without labels, its accuracy is that of agreeing with what
            the teacher says of the whole image.

    Returns:
        A `Compressed` whose twin is the student itself.

    Raises:
        ModuleNotFoundError: torch is missing.
        TypeError, ValueError: An argument is of the wrong kind; the two score different numbers of classes.

    Runs on the device of the modules, which is one.
    """
    torch = import_optional("torch", NEEDS)
    if not temperature > 0:
        msg = f"temperature must be positive, got {temperature!r}"
        raise ValueError(msg)
    if not 0 <= alpha <= 1:
        msg = f"alpha must be in 0..1, got {alpha!r}"
        raise ValueError(msg)
    if train is None:
        msg = "train must be compdx.Seeds, got NoneType"
        raise TypeError(msg)
    check_training(train, recipe, inputs, labelled=False)
    check_module(student, "student")
    teacher, network = copied(model), copy.deepcopy(student)
    recipe = recipe or Recipe()
    share = alpha if train.labels is not None else 1.0
    _check_classes(teacher, network, train, inputs)
    targets = None if train.labels is None else torch.from_numpy(train.labels)
    functional = torch.nn.functional

    def loss(logits: Any, rows: npt.NDArray[np.int64], x: Any) -> Any:
        half = recipe.precision == "bfloat16"
        with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            soft = (teacher(x).float() / temperature).log_softmax(1)
        own = (logits / temperature).log_softmax(1)
        value = share * temperature**2 * functional.kl_div(own, soft, reduction="batchmean", log_target=True)
        if targets is not None:
            labels = targets[torch.from_numpy(rows)].to(logits.device)
            value = value + (1 - share) * functional.cross_entropy(logits, labels)
        return value

    labels = predict(teacher, train.images, inputs).argmax(1) if train.labels is None else train.labels
    start = state_of(network)
    trained = finetune(network, train, recipe, inputs=inputs, seed=seed, listen=listen, labels=labels, loss=loss)
    settings = {"temperature": temperature, "alpha": share, "recipe": recipe.settings(), "seed": seed}
    record = figures("distill", settings, model, network.parameters(), stored(network))
    record["trained"] = trained
    return Compressed(model=network, twin=network, record=record, convert=_copy, start=start)


def _copy(twin: Any) -> Any:
    return set_mode(copy.deepcopy(twin), training=False)


def _check_classes(teacher: Any, student: Any, train: Seeds, inputs: Inputs) -> None:
    """Ask both about two images before the training rather than at its first step."""
    student = _copy(student)
    shapes = [predict(network, train.images[:2], inputs).shape[1:] for network in (teacher, student)]
    if shapes[0] != shapes[1]:
        msg = f"student must score the same classes as model, got {list(shapes[1])} instead of {list(shapes[0])} scores"
        raise ValueError(msg)
