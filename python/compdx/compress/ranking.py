"""What ranks the weights of a network that is pruned by scores, and the mask of those that rank lowest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from compdx.compress.common import NEEDS, check_module
from compdx.model import import_optional

By = Literal["weight", "channel", "random"]


def rank(
    model: Any, by: By, *, layers: Sequence[str] | Literal["all"] | None = "all", seed: int = 0
) -> dict[str, npt.NDArray[Any]]:
    """Scores of weights without any data, for `prune` with ``scores=``: the baselines of NNSlicer.

    Args:
        model: A torch module. It is not changed.
        by: ``"weight"``: its magnitude. ``"channel"``: the sum of the magnitudes of its filter, so that a layer
            loses whole output channels, the last of them perhaps in part. ``"random"``: a place of its own for each.
        layers: Names of layers; ``"all"`` for all convolutions and linear layers, ``None`` for 2D convolutions.
        seed: Fixes the random places, which are drawn layer by layer. Nothing else is random.

    Returns:
        Arrays of the shapes of the weights, by the names of the layers.

    Raises:
        ModuleNotFoundError: torch is missing.
        TypeError, ValueError: An argument is of the wrong kind; a layer does not exist or has no weight of its own.

    Zhang et al., ESEC/FSE 2020, section 5.3.
    """
    if by not in get_args(By):
        msg = f"by must be one of {', '.join(map(repr, get_args(By)))}, got {by!r}"
        raise ValueError(msg)
    check_module(model, "model")
    rng = np.random.default_rng(seed)
    found: dict[str, npt.NDArray[Any]] = {}
    for name in choose(model, layers):
        size = model.get_submodule(name).weight.detach().cpu().double().abs().numpy()
        if by == "random":
            found[name] = rng.permutation(size.size).reshape(size.shape)
        elif by == "channel":
            sums = size.sum(tuple(range(1, size.ndim)), keepdims=True)
            found[name] = np.broadcast_to(sums, size.shape).copy()
        else:
            found[name] = size
    return found


def choose(network: Any, layers: Sequence[str] | str | None) -> list[str]:
    """Names of the layers to prune, in the order of the network."""
    torch = import_optional("torch", NEEDS)
    modules = dict(network.named_modules())
    if layers is None or layers == "all":
        nn = torch.nn
        kinds = (nn.Conv2d,) if layers is None else (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
        names = [name for name, module in modules.items() if isinstance(module, kinds)]
        if not names:
            wanted = "2D convolutions" if layers is None else "convolutions or linear layers"
            msg = f"model must have {wanted} to prune, got none; name its layers= instead"
            raise ValueError(msg)
    elif isinstance(layers, str):
        msg = f"layers must be a list of names, 'all' or None, got {layers!r}"
        raise ValueError(msg)
    else:
        names = list(layers)
        unknown = [name for name in names if name not in modules]
        if unknown or not names:
            msg = f"layers must name modules of the model, got {unknown[0]!r}" if names else "layers must not be empty"
            raise ValueError(msg)
        names = [name for name in modules if name in names]
    for name in names:
        weight = modules[name]._parameters.get("weight")
        if weight is None or weight.ndim < 2:
            msg = f"layer {name!r} must have a weight of its own, with two dimensions or more, to be pruned"
            raise ValueError(msg)
    return names


def by_layer(scores: Any) -> dict[str, Any]:
    """The scores of every layer; of a slice, those of its synapses."""
    synapses = getattr(scores, "synapses", None)
    if synapses is not None:
        return {
            name: np.abs(layer.signed) if layer.absolute is None else layer.absolute for name, layer in synapses.items()
        }
    if not isinstance(scores, Mapping):
        msg = f"scores must be a compdx.slicing.Slice or a mapping of layers, got {type(scores).__name__}"
        raise TypeError(msg)
    torch = import_optional("torch", NEEDS)
    return {
        name: np.asarray(array.detach().cpu() if isinstance(array, torch.Tensor) else array)
        for name, array in scores.items()
    }


def lowest(name: str, weight: Any, scores: Any, amount: float) -> Any:
    """The mask of a layer without the weights of lowest scores."""
    torch = import_optional("torch", NEEDS)
    if scores is None:
        msg = f"scores must have layer {name!r}, which is to be pruned"
        raise ValueError(msg)
    if scores.shape != tuple(weight.shape) or scores.dtype.kind not in "iuf" or not np.isfinite(scores).all():
        msg = (
            f"scores of layer {name!r} must be finite numbers of the shape of its weight, {tuple(weight.shape)}, got "
            f"{scores.dtype} {scores.shape}"
        )
        raise ValueError(msg)
    # 0.29 * 100 is less than 29 in binary; the number that was written is meant.
    count = math.floor(Fraction(str(amount)) * scores.size)
    mask = np.ones(scores.size, dtype=np.float32)
    mask[np.argsort(scores, axis=None, kind="stable")[:count]] = 0
    return torch.from_numpy(mask.reshape(scores.shape)).to(weight)
