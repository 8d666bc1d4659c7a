"""What all schemes share: a copy of the user's module, fine-tuning, and the figures of a record."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator
from typing import Any

from compdx.model import Inputs, Model, import_optional, weights_sha256
from compdx.seeds import Seeds
from compdx.training import Listener, Loss, Recipe, fit, set_mode

NEEDS = "compression"
FIXED = ("mask", "shift")
"""Buffers of a compression that no training changes, the last parts of their names."""


def copied(model: Any, argument: str = "model") -> Any:
    """A copy of a torch module, to be changed as a scheme likes.

    Raises:
        TypeError: It is no torch module.
        ValueError: It is in training mode.
    """
    check_module(model, argument)
    if Model(model, allow_training=True).training:
        msg = f"{argument} must be in eval mode, got one in training mode; call .eval() first"
        raise ValueError(msg)
    return copy.deepcopy(model)


def check_module(model: Any, argument: str) -> None:
    """Raise ``TypeError`` for what is no torch module."""
    torch = import_optional("torch", NEEDS)
    if not isinstance(model, torch.nn.Module):
        msg = f"{argument} must be a torch module, got {type(model).__name__}"
        raise TypeError(msg)


def check_training(train: Any, recipe: Any, inputs: Any, *, labelled: bool = True) -> None:
    """Check the arguments of a training before any work is done for it.

    Raises:
        TypeError: One of them is of the wrong kind.
        ValueError: There are no seeds for a recipe, or seeds without labels.
    """
    if recipe is not None and not isinstance(recipe, Recipe):
        msg = f"recipe must be a compdx.training.Recipe, got {type(recipe).__name__}"
        raise TypeError(msg)
    if train is None:
        if recipe is not None:
            msg = "recipe needs train=, the seeds to train with; got none"
            raise ValueError(msg)
        return
    if not isinstance(train, Seeds):
        msg = f"train must be compdx.Seeds, got {type(train).__name__}"
        raise TypeError(msg)
    if labelled and train.labels is None:
        msg = "train must have labels, got none"
        raise ValueError(msg)
    if train.labels is not None and train.labels.min() < 0:
        msg = f"train must have a label for every image, got {int((train.labels < 0).sum())} unknown ones"
        raise ValueError(msg)
    if not isinstance(inputs, Inputs):
        msg = f"inputs must be the compdx.Inputs that the model is fed with, got {type(inputs).__name__}"
        raise TypeError(msg)


def finetune(
    network: Any,
    train: Seeds,
    recipe: Recipe,
    *,
    inputs: Inputs,
    seed: int,
    listen: Listener | None,
    labels: Any = None,
    loss: Loss | None = None,
) -> dict[str, Any]:
    """Train ``network`` in place with `training.fit` and leave it in eval mode; torch's random state is untouched.

    Returns:
        What a record keeps of it. It holds no times, so that equal trainings have equal records.
    """
    labels = train.labels if labels is None else labels
    with _seeded(network, seed):
        epochs = fit(network, train.images, labels, recipe, inputs=inputs, seed=seed, loss=loss, listen=listen)
    set_mode(network, training=False)
    return {"images": len(train), "epochs": len(epochs), "loss": epochs[-1].loss, "accuracy": epochs[-1].accuracy}


@contextlib.contextmanager
def _seeded(network: Any, seed: int) -> Iterator[None]:
    """Let dropout draw from ``seed``, on the devices of the network and on no other."""
    torch = import_optional("torch", NEEDS)
    devices = sorted({p.device.index for p in network.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        torch.random.default_generator.manual_seed(seed)
        for index in devices:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


def figures(scheme: str, settings: dict[str, Any], original: Any, weights: Iterable[Any], size: int) -> dict[str, Any]:
    """What every record begins with.

    Args:
        original: The module before compression.
        weights: The tensors of weights in the module under test.
        size: Bytes that it takes to store that module.
    """
    tensors = list(weights)
    count = sum(tensor.numel() for tensor in tensors)
    zeros = sum(int((tensor == 0).sum()) for tensor in tensors)
    return {
        "scheme": scheme,
        "settings": settings,
        "parameters": count,
        "zeros": zeros,
        "sparsity": zeros / count if count else 0.0,
        "bytes": size,
        "original_parameters": sum(tensor.numel() for tensor in original.parameters()),
        "original_bytes": stored(original),
        "original_sha256": weights_sha256(original),
    }


def stored(module: Any) -> int:
    """Bytes of all parameters and buffers of a module."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))


def device_of(module: Any) -> Any:
    """The device of a module's first parameter or buffer; the CPU when it has none."""
    torch = import_optional("torch", NEEDS)
    return next((tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.device("cpu"))
