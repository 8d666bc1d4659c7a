"""The mutation operators and their random numbers, without state."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from compdx import _core
from compdx.ops.backend import Host, backend_for
from compdx.ops.checks import as_images, as_integers, check_flag, check_seed, device_of, integer, like, one_of, within

OPERATORS = ("additive", "salt_pepper", "multiplicative", "pixel", "box", "gaussian", "median")
TRACE_NAMES = (*OPERATORS, "blend")
"""What made a mutant, by its code in a trace: an operator, or the bisection of docs/arithmetic.md section 4."""
BLEND_STEPS = 16

_SIZES = {"pixel": range(10), "box": range(1, 6), "gaussian": (1, 3, 5, 7), "median": (1, 3, 5, 7)}
MAX_INDEX = 1 << 56


def philox(key: npt.ArrayLike, counter: npt.ArrayLike) -> npt.NDArray[np.uint32]:
    """Return the words of Philox4x32-10, the generator behind every random number of compdx (Salmon et al., SC 2011).

    Args:
        key: integers ``[..., 2]`` in 0..2**32-1; its leading axes are broadcast with those of ``counter``.
        counter: integers ``[..., 4]`` in 0..2**32-1.

    Returns:
        uint32 ``[..., 4]``, a new NumPy array.

    Randomness: a pure function of its arguments; which counters compdx uses is docs/arithmetic.md section 1.
    Device: CPU.
    Errors: TypeError or ValueError that name the argument.
    """
    keys = as_integers("key", key, 1 << 32).astype(np.uint32)
    counters = as_integers("counter", counter, 1 << 32).astype(np.uint32)
    try:
        lead = np.broadcast_shapes(keys.shape[:-1], counters.shape[:-1])
    except ValueError:
        lead = None
    if lead is None or keys.shape[-1:] != (2,) or counters.shape[-1:] != (4,):
        msg = f"key, counter: expected shapes [..., 2] and [..., 4], got {keys.shape} and {counters.shape}"
        raise ValueError(msg)
    keys = np.ascontiguousarray(np.broadcast_to(keys, (*lead, 2)))
    counters = np.ascontiguousarray(np.broadcast_to(counters, (*lead, 4)))
    out = np.empty_like(counters)
    host = Host(1, None)
    _core.philox(keys=host.view(keys), counters=host.view(counters), out=host.view(out), count=math.prod(lead))
    return out


def apply(
    images: Any,
    operator: str,
    *,
    size: int | None = None,
    seed: int = 0,
    index: Any = None,
    step: Any = 1,
    overflow: Literal["clip", "wrap"] = "clip",
    linf: int | None = None,
    origin: Any = None,
    skip_identity: bool = False,
    threads: int | None = None,
    isa: str | None = None,
) -> Any:
    """Return the images after one mutation operator (DFlare section 3; exact laws in docs/arithmetic.md section 2).

    Args:
        images: uint8 ``[N, C, H, W]``; any DLPack array, CPU or CUDA.
        operator: one of ``OPERATORS``.
        size: replaces the drawn window of ``box`` (1..5), ``gaussian`` and ``median`` (1, 3, 5, 7), or the drawn number
            of changed values of ``pixel`` (0..9). Not for the other operators.
        seed: run seed, 0..2**64-1.
        index: identity of each image, an integer or int64 ``[N]`` in 0..2**56-1; default 0..N-1.
        step: number of the mutant, an integer or int ``[N]`` in 0..2**32-1.
        overflow: ``"clip"`` saturates at 0 and 255; ``"wrap"`` is modulo 256, as in the published code.
        linf: largest difference from ``origin`` in grey levels (0..255); None: no bound.
        origin: seed images uint8 ``[N, C, H, W]`` or ``[1, C, H, W]``; needed with ``linf``.
        skip_identity: never draw a window of 1 or a change of no pixels.
        threads, isa: CPU only; they change the speed, not the result.

    Returns:
        uint8 ``[N, C, H, W]``, a new array on the same device: a PyTorch tensor when ``images`` is one and for every
        library on CUDA, else a NumPy array.

    Randomness: a pure function of (seed, index, step), see docs/arithmetic.md section 1.
    Device: that of ``images``; asynchronous on CUDA, on PyTorch's current stream.
    Errors: TypeError or ValueError that name the argument.
    """
    array = as_images("images", images)
    one_of("operator", operator, OPERATORS)
    one_of("overflow", overflow, ("clip", "wrap"))
    check_flag("skip_identity", skip_identity)
    if size is not None and integer("size", size) not in _SIZES.get(operator, ()):
        allowed = ", ".join(map(str, _SIZES.get(operator, ()))) or "none (this operator has no size)"
        msg = f"size: expected one of {allowed} for {operator!r}, got {size}"
        raise ValueError(msg)
    how = {"overflow": overflow, "linf": -1 if linf is None else linf, "skip_identity": skip_identity}
    origins = array if linf is None else _origin(array, origin, linf)
    out = _applied(array, origins, operator, -1 if size is None else size, seed, index, step, threads, isa, **how)
    return like(images, out)


def blend(
    near: Any,
    far: Any,
    weight: int,
    *,
    seed: int = 0,
    index: Any = None,
    step: Any = 1,
    threads: int | None = None,
    isa: str | None = None,
) -> Any:
    """Return images that lie between two others, as a bisection tries them (docs/arithmetic.md sections 2 and 4).

    Args:
        near: uint8 ``[N, C, H, W]``; any DLPack array, CPU or CUDA.
        far: uint8 ``[N, C, H, W]`` or ``[1, C, H, W]`` on the same device.
        weight: sixteenths of the way from ``near`` to ``far``, 1..15. Values that fall between two grey levels are
            rounded up or down at random, each value for itself.
        seed, index, step: as for ``apply``.
        threads, isa: CPU only; they change the speed, not the result.

    Returns:
        uint8 ``[N, C, H, W]``, as ``apply`` returns it; every value between those of ``near`` and ``far``.

    Randomness: a pure function of (seed, index, step), see docs/arithmetic.md section 1.
    Device: that of ``near``; asynchronous on CUDA, on PyTorch's current stream.
    Errors: TypeError or ValueError that name the argument.
    """
    array = as_images("near", near)
    others = _beside(array, far, "far")
    within("weight", weight, 1, BLEND_STEPS - 1)
    out = _applied(
        array, others, "blend", weight, seed, index, step, threads, isa, overflow="clip", linf=-1, skip_identity=True
    )
    return like(near, out)


def _applied(
    array: Any,
    origins: Any,
    operator: str,
    size: int,
    seed: int,
    index: Any,
    step: Any,
    threads: int | None,
    isa: str | None,
    **how: Any,
) -> Any:
    check_seed(seed)
    count = int(array.shape[0])
    backend = backend_for(device_of(array), threads, isa)
    indices = backend.put(
        _per_image("index", np.arange(count) if index is None else index, count, np.uint64, MAX_INDEX)
    )
    steps = backend.put(_per_image("step", step, count, np.uint32, 1 << 32))
    out = backend.zeros(tuple(array.shape), np.uint8)
    backend.call(
        "apply",
        operator=operator,
        size=size,
        seed=seed,
        shape=tuple(map(int, array.shape[1:])),
        count=count,
        images=backend.view(array),
        indices=backend.view(indices),
        steps=backend.view(steps),
        origins=backend.view(origins),
        origin_count=int(origins.shape[0]),
        out=backend.view(out),
        **how,
    )
    return out


def _origin(array: Any, origin: Any, linf: int) -> Any:
    within("linf", linf, 0, 255)
    if origin is None:
        msg = "origin: expected the seed images, which linf= is measured from; got None"
        raise ValueError(msg)
    return _beside(array, origin, "origin")


def _beside(array: Any, other: Any, name: str) -> Any:
    """Images that belong to those of the array, one to each or one to all."""
    others = as_images(name, other)
    if tuple(others.shape[1:]) != tuple(array.shape[1:]) or others.shape[0] not in (1, array.shape[0]):
        msg = f"{name}: expected shape {tuple(array.shape)} or 1 image of it, got {tuple(others.shape)}"
        raise ValueError(msg)
    if device_of(others) != device_of(array):
        msg = f"{name}: expected device {device_of(array)}, got {device_of(others)}"
        raise ValueError(msg)
    return others


def _per_image(name: str, value: Any, count: int, dtype: type[np.generic], limit: int) -> npt.NDArray[Any]:
    array = as_integers(name, value, limit)
    if array.ndim > 1 or (array.ndim == 1 and array.shape[0] != count):
        msg = f"{name}: expected an integer or shape [{count}], got {array.shape}"
        raise ValueError(msg)
    return np.ascontiguousarray(np.broadcast_to(array.astype(dtype), (count,)))
