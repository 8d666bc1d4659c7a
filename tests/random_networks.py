"""Small random networks over all operations that slicing knows, as steps for brute_slicing.py and as torch modules."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from brute_slicing import Step, forward

ACTIVATIONS: tuple[tuple[Callable[..., Any], Callable[[], nn.Module]], ...] = (
    (torch.relu, nn.ReLU),
    (functional.relu6, nn.ReLU6),
    (functional.leaky_relu, nn.LeakyReLU),
    (torch.sigmoid, nn.Sigmoid),
    (torch.tanh, nn.Tanh),
    (functional.gelu, nn.GELU),
    (functional.silu, nn.SiLU),
    (functional.hardswish, nn.Hardswish),
)


class Network(nn.Module):
    """Steps as a module, each written in one of the ways that PyTorch has for it."""

    def __init__(self, steps: list[Step], shapes: list[tuple[int, ...]], rng: np.random.Generator) -> None:
        super().__init__()
        self.steps = steps
        self.parts = nn.ModuleDict()
        self.functions: dict[int, Callable[..., Any]] = {}
        for number, step in enumerate(steps):
            part = written(step, [shapes[source] for source in step.sources], rng)
            if isinstance(part, nn.Module):
                self.parts[str(number)] = part
            else:
                self.functions[number] = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = [x]
        for number, step in enumerate(self.steps):
            part = self.functions[number] if number in self.functions else self.parts[str(number)]
            found.append(part(*(found[source] for source in step.sources)))
        return found[-1]


def written(step: Step, shapes: list[tuple[int, ...]], rng: np.random.Generator) -> Any:
    """A step as a module or as a function, by chance."""
    s, axes, module = step.settings, len(shapes[0]) - 1, bool(rng.integers(2))
    two = axes == 2
    if step.name in ("linear", "conv"):  # as modules, for these have the weights
        outputs, inputs = s["weight"].shape[:2]
        if step.name == "linear":
            layer: nn.Module = nn.Linear(inputs, outputs, bias=s["bias"] is not None)
        else:
            layer = (nn.Conv2d if two else nn.Conv1d)(
                *(inputs * s["groups"], outputs, tuple(s["weight"].shape[2:]), s["stride"], s["padding"]),
                *(s["dilation"], s["groups"], s["bias"] is not None),
            )
        layer.weight = nn.Parameter(s["weight"])
        if s["bias"] is not None:
            layer.bias = nn.Parameter(s["bias"])
        return layer
    if step.name == "norm":
        norm = (nn.BatchNorm2d if two else nn.BatchNorm1d)(len(s["mean"]))
        for name, key in (("running_mean", "mean"), ("running_var", "var"), ("weight", "gamma"), ("bias", "beta")):
            getattr(norm, name).data = s[key]
        return norm
    if step.name == "function":
        return s["module"]() if module else s["call"]
    if step.name in ("move", "max") and "module" in s and module:
        return s["module"]()
    if step.name == "max" and module:
        return (nn.MaxPool2d if two else nn.MaxPool1d)(
            *(s["kernel"], s["stride"], s["padding"], s["dilation"]), ceil_mode=s["ceil"]
        )
    if step.name == "average" and module:
        return (nn.AvgPool2d if two else nn.AvgPool1d)(s["kernel"], s["stride"], s["padding"], s["ceil"], s["include"])
    if step.name == "adaptive" and module:
        return (nn.AdaptiveAvgPool2d if two else nn.AdaptiveAvgPool1d)(s["size"])
    if step.name == "add":
        return (torch.add, operator.add, lambda a, b: a.add(b))[rng.integers(3)]
    return lambda *x: forward(step, *x)


def random_network(rng: np.random.Generator) -> tuple[Network, list[Step], tuple[int, ...]]:
    """A network of one image or one signal, its steps, and the shape of its input."""
    two, whole = bool(rng.integers(3)), bool(rng.integers(3))  # mostly images; mostly whole numbers, which have ties
    shape = (int(rng.integers(1, 4)), *((int(rng.integers(4, 7)),) * 2 if two else (int(rng.integers(5, 10)),)))
    steps: list[Step] = []
    shapes = [shape]

    def weights(*extents: int) -> torch.Tensor:
        drawn = rng.integers(-2, 3, extents) if whole else rng.normal(size=extents) * (rng.random(extents) < 0.9)
        return torch.from_numpy(np.asarray(drawn, np.float32))

    def put(name: str, *sources: int, **settings: Any) -> int:
        if name in ("conv", "max", "average", "adaptive"):
            settings["space"] = len(shapes[sources[0]]) - 1
        step = Step(name, sources, settings)
        given = forward(step, *(torch.zeros(2, *shapes[source]) for source in sources))
        steps.append(step)
        shapes.append(tuple(given.shape[1:]))
        return len(steps)

    def add_one(source: int) -> int:
        channels, *extents = shapes[source]
        side = min(extents)
        kind = rng.choice(["conv", "conv", "norm", "function", "function", "max", "average", "adaptive", "add", "two"])
        if kind == "conv":
            groups = int(rng.choice([g for g in (1, 1, 2, 3) if channels % g == 0]))
            outputs = groups * int(rng.integers(1, 3))
            kernel = tuple(int(rng.integers(1, min(3, side) + 1)) for _ in extents)
            same = rng.random() < 0.3
            dilation = 2 if side >= 5 and rng.random() < 0.3 else 1
            bias = weights(outputs) if rng.integers(2) else None
            return put(
                *("conv", source),
                weight=weights(outputs, channels // groups, *kernel),
                bias=bias,
                stride=1 if same else int(rng.integers(1, 3)),
                padding="same" if same else int(rng.integers(0, 2)),
                dilation=dilation,
                groups=groups,
            )
        if kind == "norm":
            gamma = weights(channels) if whole else weights(channels) + 0.1
            mean, var = weights(channels), torch.from_numpy(rng.uniform(0.5, 2, channels).astype(np.float32))
            return put("norm", source, mean=mean, var=var, gamma=gamma, beta=weights(channels))
        if kind == "function":
            call, module = ACTIVATIONS[rng.integers(3 if whole else len(ACTIVATIONS))]
            return put("function", source, call=call, module=module)
        if kind in ("max", "average"):
            kernel = int(rng.integers(1, min(3, side) + 1))
            pad = int(rng.integers(0, kernel // 2 + 1))
            common = {
                "kernel": kernel,
                "stride": int(rng.integers(1, 3)),
                "padding": pad,
                "ceil": bool(rng.integers(2)),
            }
            extra = {"dilation": 1} if kind == "max" else {"include": bool(rng.integers(2))}
            return put(str(kind), source, **common, **extra)
        if kind == "adaptive":
            size = tuple(int(rng.integers(1, extent + 1)) for extent in extents)
            return put("adaptive", source, size=size if len(size) == 2 else size[0])
        if kind == "add":  # a residual branch, sometimes with the sign turned
            branch = put(
                *("conv", source),
                weight=weights(channels, channels, *(1,) * len(extents)),
                bias=None,
                **{"stride": 1, "padding": 0, "dilation": 1, "groups": 1},
            )
            pair = (branch, source) if rng.integers(2) else (source, branch)
            return put("add" if rng.integers(3) else "subtract", *pair)
        return add_move(source)

    def add_move(source: int) -> int:
        _, *extents = shapes[source]
        kind = rng.choice(["concat", "pad", "cut", "turn", "gate", "flip"])
        if kind == "concat":
            other = put("function", source, call=torch.relu, module=nn.ReLU)
            return put("concat", other, source, axis=1)
        if kind == "pad":
            around = tuple(int(n) for n in rng.integers(0, 2, 2 * len(extents)))
            return put("move", source, call=lambda x: functional.pad(x, around))
        if kind == "cut":
            return put("move", source, call=lambda x: x[..., ::2])
        if kind == "turn":
            return put("move", source, call=lambda x: x.transpose(-1, 1))
        if kind == "flip":
            return put("move", source, call=lambda x: x.flip(-1))
        pooled = put("mean", source, axes=tuple(range(2, 2 + len(extents))), keep=True)
        gate = put("function", pooled, call=torch.sigmoid if not whole else torch.relu, module=nn.Identity)
        steps[-1].settings.pop("module")
        steps[-1].settings["module"] = nn.ReLU if whole else nn.Sigmoid
        return put("multiply", *((gate, source) if rng.integers(2) else (source, gate)))

    last = 0
    for _ in range(int(rng.integers(2, 5))):
        last = add_one(last)
    if rng.integers(3) == 0:
        last = put("mean", last, axes=tuple(range(2, 1 + len(shapes[last]))), keep=False)
    elif rng.integers(2):
        last = put("move", last, call=lambda x: x.flatten(1), module=nn.Flatten)
    else:
        last = put("move", last, call=lambda x: x.reshape(x.shape[0], -1))
    for outputs in (int(rng.integers(2, 5)), 3) if rng.integers(2) else (3,):
        weight = weights(outputs, shapes[last][0])
        last = put("linear", last, weight=weight, bias=weights(outputs) if rng.integers(2) else None)
    return Network(steps, shapes, rng).eval(), steps, shape


def random_samples(shape: tuple[int, ...], count: int, rng: np.random.Generator) -> torch.Tensor:
    """Inputs of whole numbers."""
    return torch.from_numpy(rng.integers(-2, 3, (count, *shape)).astype(np.float32))
