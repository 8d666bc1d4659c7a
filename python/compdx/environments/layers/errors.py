"""How far two arrays are from each other: sums that grow with every chunk, and the names that are given to them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Error:
    """How far values B are from the values A that they should be.

    Attributes:
        relative: ‖A - B‖ / ‖A‖; infinite where A is zero and B is not.
        sqnr: 20 log10(‖A‖ / ‖A - B‖) in dB, the ratio of signal and quantization noise; infinite where A is B.
        cosine: Of the angle between A and B; 1 where A is B.
        rmse: The root of the mean square of A - B.
        max_abs: The largest magnitude of A - B.
    """

    relative: float
    sqnr: float
    cosine: float
    rmse: float
    max_abs: float

    def to_json(self) -> dict[str, float | None]:
        """The same as JSON values: null for what is infinite."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Error:
        """What `to_json` gave."""
        known = {"sqnr": -math.inf if data["relative"] is None else math.inf}
        return cls(**{name: known.get(name, math.inf) if value is None else value for name, value in data.items()})


class Sums:
    """What an `Error` is made of, over any number of chunks."""

    def __init__(self) -> None:
        self._count = 0
        self._aa = self._bb = self._ab = self._dd = self._max = 0.0

    def add(self, a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> Floats:
        """Add a chunk, ``[N, ...]`` each, and return the relative error of every row, float64 ``[N]``.

        What is not finite in one of the two only is an infinite error; where both have the same, there is none.
        """
        x, y = (one.reshape(len(one), -1).astype(np.float64) for one in (a, b))
        if not (np.isfinite(x.sum()) and np.isfinite(y.sum())):
            x, y = _settled(x, y)
        delta = x - y
        squares = [np.einsum("ij,ij->i", *pair) for pair in ((x, x), (y, y), (x, y), (delta, delta))]
        self._count += x.size
        self._aa, self._bb, self._ab, self._dd = (
            total + float(part.sum())
            for total, part in zip((self._aa, self._bb, self._ab, self._dd), squares, strict=True)
        )
        self._max = max(self._max, float(delta.max(initial=0)), float(-delta.min(initial=0)))
        return np.array([_ratio(d, a) for d, a in zip(squares[3], squares[0], strict=True)])

    def error(self) -> Error:
        """The error over all chunks."""
        relative = _ratio(self._dd, self._aa)
        length = math.sqrt(self._aa * self._bb) if math.isfinite(self._bb) else 0.0
        return Error(
            relative=relative,
            sqnr=math.inf if relative == 0 else -math.inf if math.isinf(relative) else -20 * math.log10(relative),
            cosine=1.0 if self._dd == 0 else self._ab / length if length > 0 else 0.0,
            rmse=math.sqrt(self._dd / max(1, self._count)),
            max_abs=self._max,
        )


def error(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> Error:
    """The error of one array, of any shape."""
    sums = Sums()
    sums.add(a[None], b[None])
    return sums.error()


def _settled(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """What is not finite where both have the same becomes 0 in both; where they have not, infinite in ``y`` only."""
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    broken = ~same & ~(np.isfinite(x) & np.isfinite(y))
    infinite = same & ~np.isfinite(x)
    x = np.where(broken | infinite, 0.0, x)
    return x, np.where(broken, np.inf, np.where(infinite, 0.0, y))


def _ratio(delta: float, signal: float) -> float:
    if delta == 0:
        return 0.0
    return math.sqrt(delta / signal) if signal > 0 else math.inf
