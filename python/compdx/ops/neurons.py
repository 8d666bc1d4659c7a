"""Neurons: the choice of one that compression has silenced, and the count of those that ever fired."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from compdx import _core
from compdx.ops.backend import Backend, active_rows, backend_for, optional_view
from compdx.ops.checks import (
    as_array,
    as_integers,
    as_memory,
    check_seed,
    device_of,
    is_tensor,
    like,
    type_name,
    within,
)
from compdx.ops.operators import MAX_INDEX


def select_neurons(
    original: Sequence[Any],
    compressed: Sequence[Any],
    *,
    seed: int,
    identities: Any,
    steps: Any,
    trials: int = 64,
    active: Any = None,
    threads: int | None = None,
    isa: str | None = None,
) -> tuple[Any, Any]:
    """Choose for every row a neuron that is positive in the original and not in the compressed model.

    A layer is drawn uniformly, then a position in it, until a neuron qualifies: original > 0 and compressed <= 0, which
    NaN never is. After ``trials`` draws all neurons are looked through instead, with the law of endless draws. CompD
    section 2, docs/arithmetic.md section 7.

    Args:
        original, compressed: the activations of each layer, float32 ``[B, ...]`` of the same shapes in both; 1..1024
            layers of less than 2**31 neurons. Positions are counted in C order of a row's shape, whatever the strides.
        seed: run seed, 0..2**64-1.
        identities: integers ``[B]``, the identity of each row's seed, 0..2**56-1.
        steps: integers ``[B]``, the number of the step, 0..2**32-1.
        trials: draws before all neurons are looked through, 0..2**31-1; a matter of speed alone.
        active: uint8 or bool ``[B]``, on the CPU or where the activations are; None is all.
        threads, isa: CPU only; they change the speed, not the result.

    Returns:
        Layer int32 ``[B]`` and position int64 ``[B]``; -1 where no neuron qualifies or the row is not active. PyTorch
        tensors when the activations are and for every library on CUDA, else NumPy.

    Randomness: Philox with the purpose neurons at (seed; identity, step): a pure function of them and of the row's
    activations, whatever the batch, the slot and the device.
    Device: that of the activations; asynchronous on CUDA, on PyTorch's current stream.
    Errors: TypeError or ValueError that name the argument.
    """
    check_seed(seed)
    within("trials", trials, 0, (1 << 31) - 1)
    left, right = _activations("original", original), _activations("compressed", compressed)
    if [tuple(a.shape) for a in left] != [tuple(b.shape) for b in right]:
        msg = "original, compressed: expected layers of the same shapes in both"
        raise ValueError(msg)
    if device_of(left[0]) != device_of(right[0]):
        msg = f"compressed: expected activations on {device_of(left[0])}, got {device_of(right[0])}"
        raise ValueError(msg)
    backend = backend_for(device_of(left[0]), threads, isa)
    rows = int(left[0].shape[0])
    layers = _Layers(backend, rows, [_layer(pair) for pair in zip(left, right, strict=True)])
    indices = backend.send(_per_row("identities", identities, rows, np.uint64, MAX_INDEX))
    numbers = backend.send(_per_row("steps", steps, rows, np.uint32, 1 << 32))
    taking_part = active_rows(backend, active, rows)
    layer, position = backend.zeros((rows,), np.int32), backend.zeros((rows,), np.int64)
    backend.call(
        "select_neurons",
        layers.native,
        seed=seed,
        trials=trials,
        identities=backend.view(indices),
        steps=backend.view(numbers),
        active=optional_view(backend, taking_part),
        layer=backend.view(layer),
        position=backend.view(position),
    )
    return like(original[0], layer), like(original[0], position)


def cover(
    values: Sequence[Any],
    covered: Sequence[Any],
    *,
    active: Any = None,
    threads: int | None = None,
    isa: str | None = None,
) -> None:
    """Mark the neurons that are positive in any active row.

    Args:
        values: the activations of each layer, float32 ``[B, ...]``, as for ``select_neurons``.
        covered: a mark for each neuron of each layer, uint8 ``[n]`` in C order of a row's shape, writable, C-contiguous
            and on the device of the activations: it becomes 1 where the neuron was positive and else stays what it is.
        active: uint8 or bool ``[B]``, on the CPU or where the activations are; None is all.
        threads, isa: CPU only; they change the speed, not the result.

    Randomness: none.
    Device: that of the activations; asynchronous on CUDA, on PyTorch's current stream.
    Errors: TypeError or ValueError that name the argument.
    """
    arrays = _activations("values", values)
    device = device_of(arrays[0])
    marks = _marks(covered)
    if len(marks) != len(arrays):
        msg = f"covered: expected an array for each of {len(arrays)} layers, got {len(marks)}"
        raise ValueError(msg)
    backend = backend_for(device, threads, isa)
    rows = int(arrays[0].shape[0])
    layers = []
    for number, (array, mark) in enumerate(zip(arrays, marks, strict=True)):
        shape = (math.prod(array.shape[1:]),)
        memory = as_memory(f"covered[{number}]", mark, shape, ("uint8",), device, written=True)
        layers.append(_layer((array,), backend.view(memory)))
    described = _Layers(backend, rows, layers)
    taking_part = active_rows(backend, active, rows)
    backend.call("cover", described.native, active=optional_view(backend, taking_part))


def count_covered(covered: Sequence[Any]) -> int:
    """Return how many neurons are marked in what ``cover`` wrote. Waits for the device on CUDA.

    Errors: TypeError or ValueError that name the argument.
    """
    arrays = [as_array(f"covered[{number}]", mark) for number, mark in enumerate(_marks(covered))]
    # One number leaves the device, not one a layer.
    return int(sum((array != 0).sum() for array in arrays))


def _marks(covered: Sequence[Any]) -> list[Any]:
    if not isinstance(covered, list | tuple):
        msg = f"covered: expected a list of arrays, one a layer, got {type(covered).__name__}"
        raise TypeError(msg)
    return list(covered)


def _activations(name: str, values: Sequence[Any]) -> list[Any]:
    """The layers of one model, all of the same batch on the same device, as native code can read them."""
    if not isinstance(values, list | tuple):
        msg = f"{name}: expected a list of arrays, one a layer, got {type(values).__name__}"
        raise TypeError(msg)
    if not 1 <= len(values) <= _core.MAX_LAYERS:
        msg = f"{name}: expected 1..{_core.MAX_LAYERS} layers, got {len(values)}"
        raise ValueError(msg)
    arrays = [as_array(f"{name}[{number}]", value) for number, value in enumerate(values)]
    first = arrays[0]
    for number, array in enumerate(arrays):
        if type_name(array) != "float32":
            msg = f"{name}[{number}]: expected float32, got {type_name(array)}"
            raise TypeError(msg)
        if array.ndim < 1 or array.shape[0] != first.shape[0] or not 1 <= math.prod(array.shape[1:]) < 1 << 31:
            rows = first.shape[0] if first.ndim else "B"
            msg = f"{name}[{number}]: expected shape [{rows}, ...] with 1..2**31-1 neurons, got {tuple(array.shape)}"
            raise ValueError(msg)
        if device_of(array) != device_of(first):
            msg = f"{name}[{number}]: expected activations on {device_of(first)}, got {device_of(array)}"
            raise ValueError(msg)
    return [_readable(array) for array in arrays]


def _readable(array: Any) -> Any:
    """The array, or a copy of one whose strides native code cannot follow."""
    if is_tensor(array):
        return array
    follows = array.flags.aligned and all(step >= 0 and step % array.itemsize == 0 for step in array.strides)
    return array if follows else np.array(array, order="C")


def _strides(array: Any) -> tuple[int, ...]:
    """From one element to the next along each axis, in elements."""
    return tuple(array.stride()) if is_tensor(array) else tuple(step // array.itemsize for step in array.strides)


def _axes(arrays: Sequence[Any]) -> tuple[list[int], list[list[int]]]:
    """The fewest axes that describe a row of all arrays in C order: their extents, and the strides of each array."""
    extents: list[int] = []
    strides: list[tuple[int, ...]] = []
    for extent, *steps in zip(arrays[0].shape[1:], *(_strides(array)[1:] for array in arrays), strict=True):
        if extent == 1:
            continue
        if strides and all(outer == extent * inner for outer, inner in zip(strides[-1], steps, strict=True)):
            extents[-1], strides[-1] = extents[-1] * int(extent), tuple(steps)
        else:
            extents.append(int(extent))
            strides.append(tuple(steps))
    if not extents:
        return [1], [[0]] * len(arrays)
    return extents, [list(steps) for steps in zip(*strides, strict=True)]


Layer = tuple[tuple[Any, ...], tuple[int, int]]


def _layer(arrays: Sequence[Any], covered: tuple[int, int] = (0, 0)) -> Layer:
    """Arrays of one layer that can be described, with the view of its marks."""
    if len(_axes(arrays)[0]) > _core.MAX_AXES:
        arrays = [array.contiguous() if is_tensor(array) else np.ascontiguousarray(array) for array in arrays]
    return tuple(arrays), covered


class _Layers:
    """Layers in native form. Keeps what it describes alive: the arrays, and the copy of the description on a device."""

    def __init__(self, backend: Backend, rows: int, layers: list[Layer]) -> None:
        described = []
        for arrays, covered in layers:
            extents, strides = _axes(arrays)
            values = [
                (_span(backend, array), _strides(array)[0], steps) for array, steps in zip(arrays, strides, strict=True)
            ]
            described.append((extents, values, covered))
        self.native = _core.Layers(rows=rows, layers=described)
        self._arrays = layers
        if backend.asynchronous:
            self._memory = backend.send(np.frombuffer(self.native.to_bytes(), np.uint8))
            self.native.place(backend.view(self._memory))


def _span(backend: Backend, array: Any) -> tuple[int, int]:
    """Address of the first element, and bytes up to the end of the last one."""
    if 0 in array.shape:
        return (0, 0)
    last = sum((extent - 1) * step for extent, step in zip(array.shape, _strides(array), strict=True))
    return backend.view(array)[0], 4 * (last + 1)


def _per_row(name: str, value: Any, rows: int, dtype: type[np.generic], limit: int) -> npt.NDArray[Any]:
    array = as_integers(name, value, limit)
    if array.shape != (rows,):
        msg = f"{name}: expected shape ({rows},), got {array.shape}"
        raise ValueError(msg)
    return array.astype(dtype)
