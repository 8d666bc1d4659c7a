"""Slices: which inputs and weights of an operation contribute to its output, and how."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from compdx import _core
from compdx.ops.backend import backend_for, optional_view
from compdx.ops.checks import as_array, as_memory, device_of, is_tensor, type_name, within

_MAX_EXTENT = 1 << 28
_MAX_ELEMENTS = (1 << 31) - 1

Shape = tuple[int, int, int, int]


def contributions(
    delta: Any,
    weight: Any,
    sign: Any,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    epsilon: float = 0.2,
    beta: float = 0.01,
    inputs: Any = None,
    signed: Any = None,
    absolute: Any = None,
    samples: Any = None,
    threads: int | None = None,
    isa: str | None = None,
) -> None:
    """Add up what the inputs and the weights of a weighted operation contribute to the neurons of its output.

    Linear layers, convolutions, average pools and additions are all seen as one 2-D convolution without bias. Of the
    products of every neuron whose sign is not 0 the large ones are kept that make up its sum; each contributes
    ``sign * sgn(weight) * sgn(delta)`` to its input and to its weight. Padding is no input. NNSlicer sections 3 and 4,
    docs/arithmetic.md section 8.

    Args:
        delta: float32 ``[B, C, H, W]``, difference of the operation's input from its mean; finite, which is not
            checked; copied when it is not C-contiguous, as are the next two.
        weight: float32 ``[O, C / groups, kH, kW]``, finite; at most 65,535 weights an output channel.
        sign: int8 ``[B, O, P, Q]``, what each neuron of the output passes on: -1, 0 or 1.
        stride, padding, dilation: vertical and horizontal, as of a PyTorch convolution.
        groups: of the channels.
        epsilon: a sum is reached when what is missing is less than this part of it, above 0.
        beta: part of the last product needed by which smaller ones are kept too, 0..1.
        inputs: int32 ``[B, C, H, W]``: the contributions of the inputs are added to it. None: not wanted; so for the
            next three. All are writable and C-contiguous.
        signed: int32 like ``weight``: those of the weights, summed over the samples, are added to it.
        absolute: int32 like ``weight``: the absolute values of every sample's are added to it.
        samples: int32 ``[B, O, C / groups, kH, kW]``: those of every sample are added to it.
        threads, isa: CPU only; they change the speed, not the result.

    Randomness: none.
    Device: that of ``delta``, where all other arrays must be; asynchronous on CUDA, on PyTorch's current stream. The
    CPU and CUDA give the same integers. On CUDA a kernel's products and counts must fit into shared memory, which
    limits the weights of an output channel to some 28,000 (RuntimeError).
    Errors: TypeError or ValueError that name the argument.
    """
    differences = as_array("delta", delta)
    device = device_of(differences)
    backend = backend_for(device, threads, isa)
    steps = {
        "stride": _pair("stride", stride, 1),
        "padding": _pair("padding", padding, 0),
        "dilation": _pair("dilation", dilation, 1),
    }
    within("groups", groups, 1, _MAX_EXTENT)
    _check_fractions(epsilon, beta)
    differences, of_input = _readable("delta", differences, "float32", device)
    kernel, of_weight = _readable("weight", as_array("weight", weight), "float32", device)
    _check_channels(of_input, of_weight, groups)
    output = _output(of_input, of_weight, **steps)
    signs, of_sign = _readable("sign", as_array("sign", sign), "int8", device)
    count, outputs = of_input[0], of_weight[0]
    if of_sign != (count, outputs, *output):
        msg = f"sign: expected shape {(count, outputs, *output)}, got {of_sign}"
        raise ValueError(msg)
    added = {
        name: None if array is None else as_memory(name, array, extents, ("int32",), device, written=True)
        for name, array, extents in (
            ("inputs", inputs, of_input),
            ("signed", signed, of_weight),
            ("absolute", absolute, of_weight),
            ("samples", samples, (count, *of_weight)),
        )
    }
    backend.call(
        "contributions",
        _core.Convolution(delta=of_input, weight=of_weight, output=output, groups=groups, **steps),
        epsilon=float(epsilon),
        beta=float(beta),
        delta=backend.view(differences),
        weight=backend.view(kernel),
        sign=backend.view(signs),
        inputs=optional_view(backend, added["inputs"]),
        signed_sum=optional_view(backend, added["signed"]),
        absolute=optional_view(backend, added["absolute"]),
        samples=optional_view(backend, added["samples"]),
    )


def _pair(name: str, value: object, low: int) -> tuple[int, int]:
    if not isinstance(value, tuple) or len(value) != 2:
        msg = f"{name}: expected (vertical, horizontal), got {value!r}"
        raise TypeError(msg)
    for number in value:
        within(name, number, low, _MAX_EXTENT)
    return value


def _check_fractions(epsilon: float, beta: float) -> None:
    for name, value in (("epsilon", epsilon), ("beta", beta)):
        if not isinstance(value, float | int | np.floating) or isinstance(value, bool):
            msg = f"{name}: expected a number, got {type(value).__name__}"
            raise TypeError(msg)
    if not (epsilon > 0 and math.isfinite(epsilon)):
        msg = f"epsilon: expected a finite number above 0, got {epsilon}"
        raise ValueError(msg)
    if not 0 <= beta <= 1:
        msg = f"beta: expected 0..1, got {beta}"
        raise ValueError(msg)


def _readable(name: str, array: Any, dtype: str, device: str) -> tuple[Any, Shape]:
    """The array as native code reads it, and its extents."""
    if type_name(array) != dtype:
        msg = f"{name}: expected {dtype}, got {type_name(array)}"
        raise TypeError(msg)
    if array.ndim != 4:
        msg = f"{name}: expected four axes, got shape {tuple(array.shape)}"
        raise ValueError(msg)
    if min(array.shape[1:]) < 1 or math.prod(array.shape[1:]) > _MAX_ELEMENTS:
        msg = f"{name}: expected 1..2**31-1 values along all axes but the first, got shape {tuple(array.shape)}"
        raise ValueError(msg)
    if device_of(array) != device:
        msg = f"{name}: expected an array on {device}, got {device_of(array)}"
        raise ValueError(msg)
    first, second, third, fourth = map(int, array.shape)
    readable = array.contiguous() if is_tensor(array) else np.require(array, requirements=["C", "A"])
    return readable, (first, second, third, fourth)


def _check_channels(delta: Shape, weight: Shape, groups: int) -> None:
    if delta[1] != groups * weight[1]:
        msg = f"weight: expected shape [O, {delta[1]} / {groups}, kH, kW] for {delta[1]} channels, got {weight}"
        raise ValueError(msg)
    if weight[0] < 1 or weight[0] % groups != 0:
        msg = f"weight: expected output channels that are a multiple of groups={groups}, got {weight[0]}"
        raise ValueError(msg)
    if math.prod(weight) > _MAX_ELEMENTS or math.prod(weight[1:]) > _core.MAX_TAPS:
        msg = (
            f"weight: expected at most {_core.MAX_TAPS} weights an output channel and 2**31-1 in all, "
            f"got shape {tuple(weight)}"
        )
        raise ValueError(msg)


def _output(
    delta: Shape,
    weight: Shape,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[int, int]:
    """Rows and columns of the output."""
    extents = []
    for axis in range(2):
        extent = delta[2 + axis] + 2 * padding[axis]
        reach = dilation[axis] * (weight[2 + axis] - 1) + 1
        if reach > extent:
            msg = f"weight: expected a window within the padded input of {extent}, got one of {reach} (axis {axis})"
            raise ValueError(msg)
        extents.append((extent - reach) // stride[axis] + 1)
    return extents[0], extents[1]
