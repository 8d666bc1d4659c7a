"""Pruning by magnitude or by scores: masks that torch.nn.utils.prune or a slice chooses, and that stay for good."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from compdx.compress.common import (
    NEEDS,
    check_training,
    copied,
    device_of,
    figures,
    finetune,
    stored,
)
from compdx.compress.ranking import by_layer, choose, lowest
from compdx.compressed import Compressed, state_of
from compdx.model import Inputs, import_optional
from compdx.seeds import Seeds
from compdx.training import Listener, Recipe, set_mode

if TYPE_CHECKING:
    from compdx.slicing import Slice

RECIPE = Recipe(epochs=20, rate=0.01, schedule="constant", nesterov=False)
"""Fine-tuning as in the CompD paper; its code has ``rate=0.001``."""


def prune(
    model: Any,
    amount: float = 0.75,
    *,
    scope: Literal["global", "layer"] | None = None,
    structured: bool = False,
    layers: Sequence[str] | Literal["all"] | None = None,
    scores: Slice | Mapping[str, Any] | None = None,
    train: Seeds | None = None,
    recipe: Recipe | None = None,
    inputs: Inputs | None = None,
    seed: int = 0,
    listen: Listener | None = None,
) -> Compressed:
    """Set the smallest weights of a torch module to zero, for good, and fine-tune the rest when there are images.

    The twin multiplies each pruned weight by its mask (a `torch.nn.utils.parametrize` parametrization), so that masks
    hold under any optimizer, momentum and weight decay included; ``torch.nn.utils.prune``, which chooses the masks,
    would leave tensors behind that cannot be copied. The model under test has plain weights with zeros in them.

    Args:
        model: A torch module in eval mode. It is not changed.
        amount: Share of the weights (of the channels when ``structured``) that become zero, between 0 and 1.
        scope: ``"global"`` (default) ranks the weights of all layers together, so that layers lose different shares, as
            in CompD's code; ``"layer"`` takes the same share of every layer, the default with ``scores``.
        structured: Prune whole output channels by their L1 norm. ``"global"`` ranks channels of all layers by the mean
            of their absolute weights and leaves every layer its strongest one. Biases and normalisation stay.
        layers: Names of the modules whose ``weight`` is pruned; ``None`` for every 2D convolution, as in the paper, and
            with ``scores`` for every layer that has some; ``"all"`` for all convolutions and linear layers.
        scores: What ranks the weights in place of their magnitudes, by layer: a `slicing.Slice`, whose absolute sums
            count where it has them and else the magnitudes of its signed ones; or a mapping from names of layers to
            finite arrays of the shapes of their weights. Of every layer of N weights exactly ⌊``amount`` · N⌋ become
            zero, those of the smallest scores; of equal ones those of the smallest index.
        train: Labelled images to fine-tune with; ``None`` for no fine-tuning.
        recipe: How; default `RECIPE`.
        inputs: What the model is fed; needed with ``train``.
        seed: Fixes order, augmentation and dropout of the fine-tuning. Nothing else is random.
        listen: Called after every epoch; see `training.fit`.

    Returns:
        A `Compressed`; its record adds ``pruned_sparsity``, the share of zeros in the chosen layers, and ``layers``,
        that of each. ``bytes`` counts the weights other than zero and a bit for every weight (channel) of those layers.

    Raises:
        ModuleNotFoundError: torch is missing.
        TypeError, ValueError: An argument is of the wrong kind; a layer does not exist or has no weight of its own.

    Runs on the device of the module. CompD (Li et al., 2023), section 4; with the scores of a slice, NNSlicer (Zhang et
    al., 2020), section 5.3.
    """
    if isinstance(amount, bool) or not isinstance(amount, (int, float)):
        msg = f"amount must be a number between 0 and 1, got {type(amount).__name__}"
        raise TypeError(msg)
    if not 0 < amount < 1:
        msg = f"amount must be between 0 and 1, got {amount!r}"
        raise ValueError(msg)
    if scores is not None and (structured or scope == "global"):
        msg = "scores rank the single weights of each layer by itself; they need scope='layer' and structured=False"
        raise ValueError(msg)
    if scope is None:
        scope = "global" if scores is None else "layer"
    if scope not in ("global", "layer"):
        msg = f"scope must be 'global' or 'layer', got {scope!r}"
        raise ValueError(msg)
    check_training(train, recipe, inputs)
    plain = copied(model)
    ranks = None if scores is None else by_layer(scores)
    names = choose(plain, layers if ranks is None or layers is not None else list(ranks))
    if ranks is None:
        masks = _masks(plain, names, float(amount), scope, structured)
    else:
        masks = {name: lowest(name, plain.get_submodule(name).weight, ranks.get(name), amount) for name in names}
    twin = _masked(plain, masks)
    settings: dict[str, Any] = {
        "amount": amount,
        "scope": scope,
        "structured": structured,
        "layers": names,
        "scores": None if scores is None else ("mapping" if isinstance(scores, Mapping) else "slice"),
        "recipe": None,
        "seed": seed,
    }
    trained, start = None, None
    if train is not None and inputs is not None:
        start = state_of(twin)
        recipe = recipe or RECIPE
        settings["recipe"] = recipe.settings()
        trained = finetune(twin, train, recipe, inputs=inputs, seed=seed, listen=listen)

    def convert(twin: Any) -> Any:
        result = copy.deepcopy(plain)
        state = twin.state_dict()
        for name in names:
            for key in [key for key in state if key.startswith(f"{name}.parametrizations.weight.")]:
                del state[key]
            state[f"{name}.weight"] = twin.get_submodule(name).weight.detach()
        result.load_state_dict(state)
        return set_mode(result.to(device_of(twin)), training=False)

    result = convert(twin)
    pruned = {name: result.get_submodule(name).weight for name in names}
    record = figures("prune", settings, model, result.parameters(), _size(result, pruned, structured))
    zeros = {name: int((weight == 0).sum()) for name, weight in pruned.items()}
    record["pruned_sparsity"] = sum(zeros.values()) / sum(weight.numel() for weight in pruned.values())
    record["layers"] = {name: zeros[name] / weight.numel() for name, weight in pruned.items()}
    record["trained"] = trained
    return Compressed(model=result, twin=twin, record=record, convert=convert, start=start)


def _masks(network: Any, names: list[str], amount: float, scope: str, structured: bool) -> dict[str, Any]:
    """The mask of each layer, like its weight, 1 for what stays and 0 for what goes."""
    prune = import_optional("torch.nn.utils.prune", NEEDS)
    scratch = copy.deepcopy(network)
    layers = {name: scratch.get_submodule(name) for name in names}
    for layer in layers.values():
        layer.weight.data = (
            layer.weight.data.contiguous()
        )  # global_unstructured calls view(); training leaves channels last
    if structured and scope == "global":
        return _strongest_channels({name: layer.weight.detach() for name, layer in layers.items()}, amount)
    if scope == "global":
        parameters = [(layer, "weight") for layer in layers.values()]
        prune.global_unstructured(parameters, pruning_method=prune.L1Unstructured, amount=amount)
    else:
        for layer in layers.values():
            if structured:
                prune.ln_structured(layer, "weight", amount=amount, n=1, dim=0)
            else:
                prune.l1_unstructured(layer, "weight", amount=amount)
    return {name: layer.weight_mask.detach().clone() for name, layer in layers.items()}


def _strongest_channels(weights: dict[str, Any], amount: float) -> dict[str, Any]:
    torch = import_optional("torch", NEEDS)
    scores = [weight.abs().flatten(1).mean(1) for weight in weights.values()]
    for score in scores:
        score[score.argmax()] = math.inf  # a layer without any channel would make the whole network a constant
    ranked = torch.cat(scores)
    count = round(amount * len(ranked))
    if count > len(ranked) - len(scores):
        msg = (
            f"amount must leave every layer a channel: {count} of {len(ranked)} channels in {len(scores)} layers is "
            f"too many, got amount={amount!r}"
        )
        raise ValueError(msg)
    keeps = torch.ones_like(ranked).index_fill_(0, ranked.topk(count, largest=False).indices, 0)
    parts = keeps.split([len(score) for score in scores])
    return {
        name: part.reshape(-1, *[1] * (weight.ndim - 1)).expand_as(weight).clone()
        for (name, weight), part in zip(weights.items(), parts, strict=True)
    }


def _masked(plain: Any, masks: dict[str, Any]) -> Any:
    """A copy of the network whose weights are multiplied by their masks whenever they are used."""
    parametrize = import_optional("torch.nn.utils.parametrize", NEEDS)
    twin = copy.deepcopy(plain)
    for name, mask in masks.items():
        parametrize.register_parametrization(twin.get_submodule(name), "weight", _mask()(mask))
    return set_mode(twin, training=False)


@cache
def _mask() -> Any:
    torch = import_optional("torch", NEEDS)

    class Mask(torch.nn.Module):  # type: ignore[misc, name-defined]
        """What torch calls a parametrization: from the trained weight to the one that is used."""

        def __init__(self, mask: Any) -> None:
            super().__init__()
            self.register_buffer("mask", mask)

        def forward(self, weight: Any) -> Any:
            return weight * self.mask

    return Mask


def _size(network: Any, pruned: dict[str, Any], structured: bool) -> int:
    """Bytes of a network whose pruned layers are stored as the values that are left and a bit for each place."""
    size = stored(network)
    for weight in pruned.values():
        places = len(weight) if structured else weight.numel()
        dense = weight.numel() * weight.element_size()
        size -= max(0, dense - int((weight != 0).sum()) * weight.element_size() - math.ceil(places / 8))
    return size
