"""Arguments as the operators want them: arrays of any DLPack library, names, ranges. Everything raises by the
argument's name."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt


def is_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_array(name: str, value: Any) -> Any:
    """Return a NumPy array (CPU, pinned memory included) or a PyTorch tensor (CUDA) over the same memory."""
    if isinstance(value, np.ndarray):
        return value
    if not hasattr(value, "__dlpack__") or not hasattr(value, "__dlpack_device__"):
        msg = f"{name}: expected an array that speaks DLPack, got {type(value).__name__}"
        raise TypeError(msg)
    if is_tensor(value) and value.is_cuda:
        return value.detach()
    try:
        if is_tensor(value):
            return value.detach().numpy()
        kind = int(value.__dlpack_device__()[0])
        if kind in (1, 3):  # memory of the CPU, pageable or pinned for CUDA
            return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        msg = f"{name}: expected an array that NumPy can read, got {type(value).__name__}: {error}"
        raise TypeError(msg) from error
    if kind == 2:
        return import_torch(name).utils.dlpack.from_dlpack(value)
    msg = f"{name}: expected an array on the CPU or on CUDA, got DLPack device type {kind}"
    raise TypeError(msg)


def import_torch(name: str) -> Any:
    """PyTorch, which owns the memory of CUDA devices here."""
    try:
        import torch
    except ModuleNotFoundError:
        msg = f'{name}: arrays on CUDA need PyTorch: pip install "compdx[torch]"'
        raise ModuleNotFoundError(msg) from None
    return torch


def device_of(array: Any) -> str:
    return str(array.device) if is_tensor(array) else "cpu"


def type_name(array: Any) -> str:
    """The element type without its library; types in another byte order have another name."""
    return _name_of(array.dtype)


@cache  # NumPy takes longer to spell a type than a small step of a search does
def _name_of(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def as_images(name: str, value: Any) -> Any:
    array = as_array(name, value)
    if type_name(array) != "uint8":
        msg = f"{name}: expected uint8, got {type_name(array)}"
        raise TypeError(msg)
    if array.ndim != 4:
        msg = f"{name}: expected shape [N, C, H, W], got {tuple(array.shape)}"
        raise ValueError(msg)
    if min(array.shape[1:]) < 1:
        msg = f"{name}: expected images with at least one value, got shape {tuple(array.shape)}"
        raise ValueError(msg)
    return array.contiguous() if is_tensor(array) else np.ascontiguousarray(array)


def as_memory(
    name: str, value: Any, shape: tuple[int, ...], types: tuple[str, ...], device: str, *, written: bool
) -> Any:
    """Return the caller's own memory, never a copy of it, for native code that knows no strides.

    A PyTorch tensor stays one on CUDA and becomes a NumPy array on the CPU, 16-bit floats as uint16 patterns.
    """
    array = value if is_tensor(value) else as_array(name, value)
    if type_name(array) not in types:
        msg = f"{name}: expected {' or '.join(types)}, got {type_name(array)}"
        raise TypeError(msg)
    if device_of(array) != device:
        msg = f"{name}: expected memory on {device}, got {device_of(array)}"
        raise ValueError(msg)
    if tuple(array.shape) != shape:
        msg = f"{name}: expected shape {shape}, got {tuple(array.shape)}"
        raise ValueError(msg)
    if is_tensor(array):
        if not array.is_contiguous():
            msg = f"{name}: expected a C-contiguous tensor, got strides {tuple(array.stride())}"
            raise ValueError(msg)
        if device != "cpu":
            return array
        if array.is_floating_point() and array.element_size() == 2:
            array = array.detach().view(sys.modules["torch"].uint16)  # NumPy cannot express bfloat16
        array = as_array(name, array)
    flags = array.flags
    if not (flags.c_contiguous and flags.aligned):
        msg = f"{name}: expected C-contiguous, aligned memory, got strides {array.strides}, aligned {flags.aligned}"
        raise ValueError(msg)
    if written and not flags.writeable:
        msg = f"{name}: expected writable memory, got a read-only array"
        raise ValueError(msg)
    return array


def as_scores(name: str, value: Any, device: str, count: int | None = None) -> Any:
    """Return floating scores ``[count, K]`` as contiguous float32, NumPy on the CPU and PyTorch on CUDA."""
    array = value.detach() if is_tensor(value) else as_array(name, value)
    if not (array.is_floating_point() if is_tensor(array) else array.dtype.kind == "f"):
        msg = f"{name}: expected floating scores, got {type_name(array)}"
        raise TypeError(msg)
    if device_of(array) != device:
        msg = f"{name}: expected scores on {device}, got {device_of(array)}"
        raise ValueError(msg)
    if array.ndim != 2 or count not in (None, array.shape[0]) or array.shape[1] < 2:
        rows = "B" if count is None else count
        msg = f"{name}: expected scores [{rows}, K] with K >= 2, got {tuple(array.shape)}"
        raise ValueError(msg)
    if is_tensor(array):
        array = array.float().contiguous()  # NumPy cannot express bfloat16
        return array if array.is_cuda else as_array(name, array)
    return np.require(array, np.float32, ["C", "A"])


def as_integers(name: str, value: Any, limit: int) -> npt.NDArray[Any]:
    """Return integers in 0..limit-1, of any shape and integer type."""
    if isinstance(value, int):
        within(name, value, 0, limit - 1)  # NumPy has no integers of this size, and no message of ours
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        msg = f"{name}: expected integers in an array on the CPU, got {type(value).__name__}: {error}"
        raise TypeError(msg) from error
    if array.dtype.kind not in "iu":
        msg = f"{name}: expected integers, got {array.dtype}"
        raise TypeError(msg)
    if array.size and (int(array.min()) < 0 or int(array.max()) >= limit):
        msg = f"{name}: expected values in 0..{limit - 1}, got {int(array.min())}..{int(array.max())}"
        raise ValueError(msg)
    return array


def like(value: Any, array: Any) -> Any:
    """Return a result in the library of the argument it came from, as far as that is PyTorch."""
    if is_tensor(value) and not is_tensor(array):
        return sys.modules["torch"].from_numpy(array)
    return array


def one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        msg = f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}"
        raise ValueError(msg)


def integer(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        msg = f"{name}: expected an integer, got {type(value).__name__}"
        raise TypeError(msg)
    return value


def within(name: str, value: object, low: int, high: int) -> None:
    if not low <= integer(name, value) <= high:
        msg = f"{name}: expected {low}..{high}, got {value}"
        raise ValueError(msg)


def check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        msg = f"{name}: expected True or False, got {type(value).__name__}"
        raise TypeError(msg)


def check_seed(seed: object) -> None:
    within("seed", seed, 0, (1 << 64) - 1)


def check_shape(shape: object) -> None:
    if not isinstance(shape, tuple) or len(shape) != 3:
        msg = f"shape: expected (C, H, W), got {shape!r}"
        raise TypeError(msg)
    for extent in shape:
        within("shape", extent, 1, 1 << 28)
    if shape[0] * shape[1] * shape[2] > 1 << 28:
        msg = f"shape: expected at most 2**28 values an image, got {shape}"
        raise ValueError(msg)
