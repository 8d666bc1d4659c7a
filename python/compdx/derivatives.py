"""Gradients of a pair with respect to the image, and the pre-activations that they pass through."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

from compdx.model import Model, Pair, import_optional

NEEDS = "a gradient"
SCORES = ("logit", "margin", "confidence")

Choose = Callable[[list[Any], list[Any]], tuple[Any, Any]]
"""From the pre-activations of both models to one neuron a row: layer and position, int64 ``[B]`` each, -1 for none."""


def scores(model: Model, x: Any) -> Any:
    """Scores float32 ``[N, K]`` of the model's twin for its input, float32 ``[N, C, H, W]``, with their graph.

    Raises:
        TypeError: The model has no gradients.
    """
    return model.twin(as_input(model, x))[:, model.class_offset :].float()


def as_input(model: Model, x: Any) -> Any:
    """What the model's module is called with for the input ``x``, float32 ``[N, C, H, W]``: its dtype and layout."""
    torch = import_optional("torch", NEEDS)
    x = x.to(getattr(torch, model.inputs.dtype))
    if x.ndim == 4 and model.memory_format == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    return x.permute(0, 2, 3, 1) if x.ndim == 4 and model.inputs.layout == "NHWC" else x


class PairGradient:
    """The gradient of CompD's loss with respect to the input, for every row of a batch by itself.

    The loss of a row is ``-(CS_o - CS_c)``, where CS is the score of the class that the original gives the row now;
    with a chosen neuron, ``weight`` times its pre-activation in the compressed model is subtracted too (Algorithm 2).

    Args:
        pair: Two models that want the same input and have gradients.
        score: ``"logit"``, ``"margin"`` (the logit less the largest other one) or ``"confidence"`` (softmax). Models
            that return probabilities have confidences only.
        weight: Of the pre-activation, the paper's lambda.

    Raises:
        TypeError: A model has no gradients.
        ValueError: The models want different inputs, or have no logits.
    """

    def __init__(self, pair: Pair, *, score: str = "logit", weight: float = 0.0) -> None:
        if pair.inputs is None:
            msg = (
                "a gradient search needs models that want the same input, but "
                f"{pair.original.name!r} wants {pair.original.inputs} and {pair.compressed.name!r} wants "
                f"{pair.compressed.inputs}"
            )
            raise ValueError(msg)
        for model in (pair.original, pair.compressed):
            if score != "confidence" and model.outputs != "logits":
                msg = f"score={score!r} needs logits, but model {model.name!r} returns {model.outputs}"
                raise ValueError(msg)
            _ = model.twin  # a model without gradients is refused now, not in the middle of a search
        self.pair, self.score, self.weight = pair, score, weight

    def __call__(self, x: Any, choose: Choose | None = None) -> Any:
        """The gradient, float32 ``[B, C, H, W]``, at ``x``, the input of both models, float32 ``[B, C, H, W]``.

        ``choose`` is given the pre-activations of both models, one tensor ``[B, ...]`` a ReLU, without their graph.
        """
        torch = import_optional("torch", NEEDS)
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            before_a: list[Any] = []
            before_b: list[Any] = []
            with nullcontext() if choose is None else relu_inputs(before_a):
                a = self._values(self.pair.original, x)
            with nullcontext() if choose is None else relu_inputs(before_b):
                b = self._values(self.pair.compressed, x)
            label = a.detach().argmax(1, keepdim=True)
            goal = (self._score(a, label) - self._score(b, label)).sum()
            if choose is not None:
                check_taps(before_a, before_b)
                layer, position = choose(*([t.detach().float() for t in side] for side in (before_a, before_b)))
                goal = goal + self.weight * _chosen(before_b, layer, position)
            (gradient,) = torch.autograd.grad(-goal, x)
        return gradient

    def _values(self, model: Model, x: Any) -> Any:
        """Scores ``[B, K]``: confidences when those are asked for, else as the model returns them."""
        values = scores(model, x)
        return values.softmax(1) if self.score == "confidence" and model.outputs == "logits" else values

    def _score(self, values: Any, label: Any) -> Any:
        """What the loss compares, ``[B, 1]``."""
        own = values.gather(1, label)
        if self.score != "margin":
            return own
        return own - values.scatter(1, label, float("-inf")).amax(1, keepdim=True)


def relu_inputs(found: list[Any]) -> AbstractContextManager[Any]:
    """Append the input of every ReLU that runs inside to ``found``: modules, functions, methods, exported operators.

    In-place ReLUs overwrite their input, so they are given a copy to remember.
    """
    return _taps()(found)  # type: ignore[no-any-return]


@cache
def _taps() -> Any:
    torch = import_optional("torch", NEEDS)
    aten = torch.ops.aten
    functional = torch.nn.functional
    in_place = {torch.relu_, torch.Tensor.relu_, aten.relu_.default}
    outer = {torch.relu, torch.Tensor.relu, functional.relu, aten.relu.default, functional.relu6, functional.hardtanh}

    class Taps(torch.overrides.TorchFunctionMode):  # type: ignore[misc, name-defined]
        def __init__(self, found: list[Any]) -> None:
            super().__init__()
            self.found = found

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func in outer or func in in_place:
                value = args[0] if args else kwargs["input"]
                overwrites = func in in_place or kwargs.get("inplace", False) or True in args[1:]
                self.found.append(value.clone() if overwrites else value)
            # While a mode handles a call it is switched off, so a ReLU that calls another one is seen once.
            return func(*args, **kwargs)

    return Taps


def check_taps(original: list[Any], compressed: list[Any]) -> None:
    """Refuse pre-activations that do not pair up.

    Raises:
        ValueError: There is no ReLU, or the models' ReLUs differ in number or shape; says where.
    """
    if not original or not compressed:
        which = "original" if not original else "compressed"
        msg = f"neuron coverage needs ReLUs whose inputs can be seen, but the {which} model runs none"
        raise ValueError(msg)
    shapes = [[tuple(t.shape[1:]) for t in side] for side in (original, compressed)]
    if shapes[0] != shapes[1]:
        place = next((n for n, (a, b) in enumerate(zip(*shapes, strict=False)) if a != b), min(map(len, shapes)))
        msg = (
            f"neuron coverage needs two models with the same ReLUs, got {len(shapes[0])} in the original and "
            f"{len(shapes[1])} in the compressed model, which differ from number {place} on"
        )
        raise ValueError(msg)


def _chosen(before: list[Any], layer: Any, position: Any) -> Any:
    """The sum of the chosen pre-activations; rows without one add nothing."""
    torch = import_optional("torch", NEEDS)
    total = before[0].new_zeros(())
    for number in torch.unique(layer).tolist():
        if number < 0:
            continue
        rows = (layer == number).nonzero().squeeze(1)
        shape = before[number].shape[1:]
        place, index = position[rows], []
        for extent in reversed(shape):
            index.append(place % extent)
            place = place // extent
        where = (rows, *reversed(index))
        total = total + before[number][where].float().sum()
    return total
