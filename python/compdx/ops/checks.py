"""Arguments as the operators want them: arrays of any DLPack library, names, ranges. Everything raises by the
argument's name."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def is_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_array(name: str, value: Any) -> Any:
    """Return a NumPy array (CPU) or a PyTorch tensor (CUDA) over the same memory where possible."""
    if isinstance(value, np.ndarray):
        return value
    if not hasattr(value, "__dlpack__"):
        msg = f"{name}: expected an array that speaks DLPack, got {type(value).__name__}"
        raise TypeError(msg)
    if is_tensor(value):
        value = value.detach()
        return value if value.is_cuda else value.numpy()
    kind = int(value.__dlpack_device__()[0])
    if kind == 1:
        return np.from_dlpack(value)
    if kind == 2:
        import torch  # PyTorch owns the memory of CUDA devices here

        return torch.utils.dlpack.from_dlpack(value)
    msg = f"{name}: expected an array on the CPU or on CUDA, got DLPack device type {kind}"
    raise TypeError(msg)


def device_of(array: Any) -> str:
    return str(array.device) if is_tensor(array) else "cpu"


def as_images(name: str, value: Any) -> Any:
    array = as_array(name, value)
    if str(array.dtype).removeprefix("torch.") != "uint8":
        msg = f"{name}: expected uint8, got {str(array.dtype).removeprefix('torch.')}"
        raise TypeError(msg)
    if array.ndim != 4:
        msg = f"{name}: expected shape [N, C, H, W], got {tuple(array.shape)}"
        raise ValueError(msg)
    if min(array.shape[1:]) < 1:
        msg = f"{name}: expected images with at least one value, got shape {tuple(array.shape)}"
        raise ValueError(msg)
    return array.contiguous() if is_tensor(array) else np.ascontiguousarray(array)


def like(value: Any, array: Any) -> Any:
    """Return a result in the library of the argument it came from."""
    if is_tensor(value) and not is_tensor(array):
        return sys.modules["torch"].from_numpy(array)
    return array


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        msg = f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}"
        raise ValueError(msg)


def within(name: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        msg = f"{name}: expected an integer, got {type(value).__name__}"
        raise TypeError(msg)
    if not low <= value <= high:
        msg = f"{name}: expected {low}..{high}, got {value}"
        raise ValueError(msg)


def check_seed(seed: int) -> None:
    if not isinstance(seed, int) or isinstance(seed, bool):
        msg = f"seed: expected an integer, got {type(seed).__name__}"
        raise TypeError(msg)
    if not 0 <= seed < 1 << 64:
        msg = f"seed: expected 0..2**64-1, got {seed}"
        raise ValueError(msg)
