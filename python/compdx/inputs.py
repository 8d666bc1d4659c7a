"""What a model wants to be fed: how grey levels become numbers, in which layout and type."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Layout = Literal["NCHW", "NHWC"]
Dtype = Literal["float32", "bfloat16", "float16"]

# NumPy has no bfloat16, so both 16-bit formats travel as bit patterns.
CARRIER = {"float32": "float32", "bfloat16": "uint16", "float16": "uint16"}


@dataclass(frozen=True)
class Inputs:
    """What a model wants to be fed: ``((v / 255) * (hi - lo) + lo - mean) / std`` of every grey level ``v``.

    With ``bounds=(0, 1)`` this is torchvision's ``ToTensor`` and ``Normalize``, bit for bit.

    Args:
        mean: One number, or one per channel, in the units of ``bounds`` and the order of the image's channels.
        std: Likewise, positive.
        bounds: The range ``(lo, hi)`` that 0..255 is mapped to first.
        layout: ``"NCHW"`` or ``"NHWC"``.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``.

    Raises:
        TypeError: What should be a number is none.
        ValueError: A number is not finite or out of range, a layout or dtype is unknown.
    """

    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None
    bounds: tuple[float, float] = (0.0, 1.0)
    layout: Layout = "NCHW"
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        # Lists become tuples, so that equal preprocessing compares and hashes equal.
        for name in ("mean", "std", "bounds"):
            object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        if any(value <= 0 for value in _as_tuple(self.std)):
            msg = f"std must be positive, got {self.std}"
            raise ValueError(msg)
        bounds = _as_tuple(self.bounds)
        if len(bounds) != 2 or bounds[0] >= bounds[1]:
            msg = f"bounds must be two numbers (low, high) with low < high, got {self.bounds}"
            raise ValueError(msg)
        choose("layout", self.layout, ("NCHW", "NHWC"))
        choose("dtype", self.dtype, tuple(CARRIER))

    def table(self, channels: int) -> npt.NDArray[np.float32]:
        """The model input for every channel and grey level, float32 ``[channels, 256]``; each operation in float32.

        Raises:
            ValueError: ``mean`` or ``std`` has neither one value nor one per channel.
        """
        low, high = (np.float32(value) for value in self.bounds)
        levels = np.arange(256, dtype=np.float32) / np.float32(255)
        table = np.tile(levels * (high - low) + low, (channels, 1))
        if self.mean is not None:
            table -= _per_channel("mean", self.mean, channels)
        if self.std is not None:
            table /= _per_channel("std", self.std, channels)
        return table


def _numbers(name: str, value: Any) -> float | tuple[float, ...] | None:
    if value is None:
        return None
    try:
        numbers = tuple(float(number) for number in value) if np.ndim(value) else float(value)
    except (TypeError, ValueError) as error:
        msg = f"{name} must be a number or one number per channel, got {value!r}"
        raise TypeError(msg) from error
    if not all(math.isfinite(number) for number in _as_tuple(numbers)) or numbers == ():
        msg = f"{name} must be finite, got {value!r}"
        raise ValueError(msg)
    return numbers


def _as_tuple(value: float | Sequence[float] | None) -> tuple[float, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, (int, float)) else tuple(value)


def _per_channel(name: str, value: float | Sequence[float], channels: int) -> npt.NDArray[np.float32]:
    numbers = _as_tuple(value)
    if len(numbers) not in (1, channels):
        msg = f"{name} must have one value or one per channel ({channels}), got {len(numbers)}"
        raise ValueError(msg)
    return np.asarray(numbers, dtype=np.float32)[:, None]


def choose(name: str, value: Any, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        msg = f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}"
        raise ValueError(msg)
    return value
