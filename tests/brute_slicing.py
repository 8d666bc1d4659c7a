"""NNSlicer's contributions neuron by neuron, in plain Python loops over neurons and their inputs.

Written from the paper's definitions; knows nothing of compdx. A network is a list of steps, whose values are numbered:
0 is the input, i + 1 what step i gives. Forward passes are torch's own functions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional

Term = tuple[int, int, float, "int | None"]
"""One input of a sum: number of the operand, flat index in it, weight, flat index of the weight."""


@dataclass
class Step:
    """One operation: its name, the values it takes, its settings and weights."""

    name: str
    sources: tuple[int, ...]
    settings: dict[str, Any] = field(default_factory=dict)


def forward(step: Step, *x: torch.Tensor) -> torch.Tensor:
    """What a step gives."""
    s, f = step.settings, functional
    one: dict[str, Callable[[], torch.Tensor]] = {
        "linear": lambda: f.linear(x[0], s["weight"], s["bias"]),
        "conv": lambda: (f.conv2d if s["space"] == 2 else f.conv1d)(
            x[0], s["weight"], s["bias"], s["stride"], s["padding"], s["dilation"], s["groups"]
        ),
        "norm": lambda: f.batch_norm(x[0], s["mean"], s["var"], s["gamma"], s["beta"]),
        "max": lambda: (f.max_pool2d if s["space"] == 2 else f.max_pool1d)(
            x[0], s["kernel"], s["stride"], s["padding"], s["dilation"], s["ceil"]
        ),
        "average": lambda: (f.avg_pool2d if s["space"] == 2 else f.avg_pool1d)(
            x[0], s["kernel"], s["stride"], s["padding"], s["ceil"], s["include"]
        ),
        "adaptive": lambda: (f.adaptive_avg_pool2d if s["space"] == 2 else f.adaptive_avg_pool1d)(x[0], s["size"]),
        "mean": lambda: x[0].mean(s["axes"], keepdim=s["keep"]),
        "add": lambda: x[0] + x[1],
        "subtract": lambda: x[0] - x[1],
        "multiply": lambda: x[0] * x[1],
        "concat": lambda: torch.cat(x, s["axis"]),
        "function": lambda: s["call"](x[0]),  # an activation: one neuron to one neuron
        "move": lambda: s["call"](x[0]),
    }
    return one[step.name]()


def means(steps: Sequence[Step], x: torch.Tensor) -> list[np.ndarray]:
    """The mean of every neuron of every value over some samples, float64."""
    return [value.double().numpy().mean(0) for value in values(steps, x)]


def values(steps: Sequence[Step], x: torch.Tensor) -> list[torch.Tensor]:
    found = [x]
    with torch.no_grad():
        for step in steps:
            found.append(forward(step, *(found[source] for source in step.sources)))
    return found


def contributions(
    steps: Sequence[Step],
    baseline: Sequence[np.ndarray],
    x: torch.Tensor,
    start: np.ndarray,
    theta: tuple[float, float] | None = None,
) -> tuple[list[np.ndarray], dict[int, np.ndarray]]:
    """Contributions of the neurons of every value, int64 ``[N, ...]``, and of the weights of steps, by their number.

    Args:
        baseline: Means of every value.
        x: Samples.
        start: CONTRIB of the outputs ``[N, K]``.
        theta: (epsilon, beta), or None: every input counts.
    """
    found = [value.numpy() for value in values(steps, x)]
    neurons = [np.zeros(value.shape, np.int64) for value in found]
    synapses = {
        number: np.zeros((len(x), *step.settings["weight"].shape), np.int64)
        for number, step in enumerate(steps)
        if "weight" in step.settings
    }
    neurons[-1][:] = start
    for sample in range(len(x)):
        own = [value[sample] for value in found]
        differences = [(v.astype(np.float64) - mean).astype(np.float32) for v, mean in zip(own, baseline, strict=True)]
        for number in reversed(range(len(steps))):
            step, operands = steps[number], steps[number].sources
            contribution = neurons[number + 1][sample]
            if step.name in ("move", "concat", "function", "norm"):
                for operand, at, to in _copies(step, [own[source] for source in operands], own[number + 1]):
                    neurons[operands[operand]][sample].reshape(-1)[at] += contribution.reshape(-1)[to]
                continue
            if step.name == "max":
                for to, at in _maxima(step, own[operands[0]], own[number + 1]):
                    neurons[operands[0]][sample].reshape(-1)[at] += contribution.reshape(-1)[to]
                continue
            wanted = contribution.reshape(-1).tolist()
            change = np.sign(differences[number + 1]).reshape(-1).tolist()
            inputs = [differences[source].reshape(-1).tolist() for source in operands]
            for n, terms in _sums(step, [own[source] for source in operands], own[number + 1]):
                goal = _sign(wanted[n]) * _sign(change[n])
                if goal == 0:
                    continue
                kept = range(len(terms))
                if theta is not None:
                    kept = selected([np.float32(w) * np.float32(inputs[o][i]) for o, i, w, _ in terms], *theta)
                for operand, i, weight, synapse in (terms[k] for k in kept):
                    part = goal * _sign(weight) * _sign(inputs[operand][i])
                    neurons[operands[operand]][sample].reshape(-1)[i] += part
                    if synapse is not None:
                        synapses[number][sample].reshape(-1)[synapse] += part
    return neurons, synapses


def selected(products: Sequence[np.float32], epsilon: float, beta: float) -> list[int]:
    """Who is kept of the products of one neuron, as in the paper's code."""
    sizes = [abs(float(p)) for p in products]
    if len(products) == 1:
        return [0]
    if not any(sizes):
        return []
    # Exact sums: every product is a whole multiple of the smallest float32 number.
    whole = [int(float(p) * 2.0**149) for p in products]
    total = sum(whole)
    if abs(total) < min(map(abs, whole)) or 1000 * abs(total) < max(map(abs, whole)):
        return []
    order = sorted(range(len(products)), key=lambda i: (-sizes[i], i))
    sums = list(itertools.accumulate(whole[i] for i in order))
    scale = 2.0**-149
    first = next(k for k, c in enumerate(sums) if abs(c - total) * scale < epsilon * (abs(total) * scale))
    least = sizes[order[first]] * (1 - beta)
    return [i for i, size in enumerate(sizes) if size > least]


def _sums(step: Step, x: Sequence[np.ndarray], y: np.ndarray) -> Iterator[tuple[int, list[Term]]]:
    """Every output neuron, by its flat index, with the terms that it is the sum of."""
    s = step.settings
    if step.name == "linear":
        weight = s["weight"].numpy()
        rows = x[0].reshape(-1, x[0].shape[-1])
        for row in range(len(rows)):
            for o in range(len(weight)):
                inputs = range(weight.shape[1])
                yield (
                    row * len(weight) + o,
                    [(0, row * len(inputs) + i, float(weight[o, i]), o * len(inputs) + i) for i in inputs],
                )
    elif step.name == "conv":
        yield from _convolved(step, x[0], y)
    elif step.name in ("average", "adaptive"):
        flat = np.arange(x[0].size).reshape(x[0].shape)
        for n, place in enumerate(np.ndindex(*y.shape)):
            yield n, [(0, int(i), 1.0, None) for i in flat[place[0]][_window(step, x[0], y, place[1:])].reshape(-1)]
    elif step.name == "mean":
        axes = [axis - 1 for axis in s["axes"]]
        flat = np.moveaxis(np.arange(x[0].size).reshape(x[0].shape), axes, range(-len(axes), 0))
        for n, group in enumerate(flat.reshape(y.size, -1)):
            yield n, [(0, int(i), 1.0, None) for i in group]
    else:
        places = [np.broadcast_to(np.arange(v.size).reshape(v.shape), y.shape).reshape(-1) for v in x]
        a, b = (np.broadcast_to(v, y.shape).reshape(-1) for v in x)
        for n, (i, j) in enumerate(zip(*places, strict=True)):
            weights = {"add": (1.0, 1.0), "subtract": (1.0, -1.0), "multiply": (float(b[n]), float(a[n]))}[step.name]
            yield n, [(0, int(i), weights[0], None), (1, int(j), weights[1], None)]


def _convolved(step: Step, x: np.ndarray, y: np.ndarray) -> Iterator[tuple[int, list[Term]]]:
    s, weight = step.settings, step.settings["weight"].numpy()
    axes = weight.ndim - 2
    stride, dilation = (_each(s[name], axes) for name in ("stride", "dilation"))
    if s["padding"] == "same":
        before = tuple(apart * (taps - 1) // 2 for apart, taps in zip(dilation, weight.shape[2:], strict=True))
    else:
        before = _each(s["padding"], axes)
    flat = np.arange(x.size).reshape(x.shape).tolist()
    synapse = np.arange(weight.size).reshape(weight.shape).tolist()
    weights = weight.tolist()
    per_group = len(weight) // s["groups"]
    taps = list(np.ndindex(*weight.shape[2:]))
    for n, (o, *place) in enumerate(np.ndindex(*y.shape)):
        first = o // per_group * weight.shape[1]
        terms: list[Term] = []
        for c in range(weight.shape[1]):
            for tap in taps:
                at = [p * st - b + t * d for p, st, b, t, d in zip(place, stride, before, tap, dilation, strict=True)]
                if all(0 <= a < extent for a, extent in zip(at, x.shape[1:], strict=True)):
                    terms.append(
                        (0, _at(flat[first + c], at), _at(weights[o][c], tap), _at(synapse[o][c], tap))  # type: ignore[arg-type]
                    )
        yield n, terms


def _window(step: Step, x: np.ndarray, y: np.ndarray, place: Sequence[int]) -> tuple[slice, ...]:
    """The elements that an output of average pooling is the mean of, axis by axis."""
    s, axes = step.settings, x.ndim - 1
    if step.name == "adaptive":
        return tuple(
            slice(p * extent // outputs, -(-(p + 1) * extent // outputs))
            for p, extent, outputs in zip(place, x.shape[1:], y.shape[1:], strict=True)
        )
    kernel, stride, padding = (_each(s[name], axes) for name in ("kernel", "stride", "padding"))
    return tuple(
        slice(max(0, p * st - pad), max(0, p * st - pad + k))
        for p, st, pad, k in zip(place, stride, padding, kernel, strict=True)
    )


def _maxima(step: Step, x: np.ndarray, y: np.ndarray) -> Iterator[tuple[int, int]]:
    """Every output of maximum pooling with every element that equals it, as flat indices."""
    s, axes = step.settings, x.ndim - 1
    kernel, stride, padding, dilation = (_each(s[name], axes) for name in ("kernel", "stride", "padding", "dilation"))
    flat = np.arange(x.size).reshape(x.shape)
    for n, (c, *place) in enumerate(np.ndindex(*y.shape)):
        for tap in np.ndindex(*kernel):
            at = [p * st - pad + t * d for p, st, pad, t, d in zip(place, stride, padding, tap, dilation, strict=True)]
            inside = all(0 <= a < extent for a, extent in zip(at, x.shape[1:], strict=True))
            if inside and x[(c, *at)] == y[(c, *place)]:
                yield n, int(flat[(c, *at)])


def _copies(step: Step, x: Sequence[np.ndarray], y: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Operand, place in it and place in the output of every neuron that is handed on."""
    if step.name in ("function", "norm"):
        yield from ((0, i, i) for i in range(y.size))
        return
    # Number the neurons and see where the numbers go; what padding adds has none. Below 2**24 float32 holds them.
    last, numbered = 0, []
    for operand in x:
        numbered.append(torch.arange(last + 1, last + 1 + operand.size).float().reshape(1, *operand.shape))
        last += operand.size
    ends = list(itertools.accumulate(operand.size for operand in x))
    for to, number in enumerate(forward(step, *numbered).reshape(-1).long().tolist()):
        if number > 0:
            operand = next(o for o, end in enumerate(ends) if number <= end)
            yield operand, number - 1 - (ends[operand] - x[operand].size), to


def _at(nested: Any, place: Sequence[int]) -> Any:
    for index in place:
        nested = nested[index]
    return nested


def _each(numbers: int | Sequence[int], axes: int) -> tuple[int, ...]:
    return (numbers,) * axes if isinstance(numbers, int) else tuple(numbers)


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)
