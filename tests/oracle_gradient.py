"""Sections 6 and 7 of docs/arithmetic.md in plain NumPy, one value's formula at a time and one row at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import oracle

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

NEURONS = 4
M = np.finfo(np.float32).max


# Section 6: gradient steps -------------------------------------------------------------------------------------------


def clamp(x: Floats, low: Floats | np.float32, high: Floats | np.float32) -> Floats:
    y = np.where(x > low, x, low)
    return np.where(y < high, y, high)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of one image; the settings are those of compdx.ops.Descent."""

    table: Floats
    step: float = 0.9
    bound: Floats | None = None
    total: Floats | None = None
    project: bool = True
    lattice: bool = False

    def take(self, state: Floats, gradient: Floats, seed: Bytes) -> tuple[Floats, Bytes, int, int]:
        """State float32 and picture uint8 [C, H, W] after the step, and the picture's two distances to the seed."""
        states, pictures = zip(
            *(self._channel(c, state[c], gradient[c], seed[c]) for c in range(len(seed))), strict=True
        )
        picture = np.stack(pictures)
        difference = picture.astype(np.int64) - seed
        return np.stack(states), picture, int((difference**2).sum()), int(np.abs(difference).max())

    def _channel(self, c: int, x: Floats, g: Floats, seed: Bytes) -> tuple[Floats, Bytes]:
        levels = self.table[c]
        with np.errstate(over="ignore", invalid="ignore"):
            g = np.where(np.isfinite(g), g, np.float32(0))
            bound = M if self.bound is None else self.bound[c]
            x = x + clamp(-(np.float32(self.step) * g), -bound, bound)
            if self.total is None:
                x = clamp(x, -M, M)
            else:
                x = clamp(x, levels[seed] - self.total[c], levels[seed] + self.total[c])
            x = clamp(x, levels[0], levels[255]) if self.project else clamp(x, -M, M)
            scale = np.float32(255 / (float(levels[255]) - float(levels[0])))
            picture = np.rint(clamp((x - levels[0]) * scale, np.float32(0), np.float32(255))).astype(np.uint8)
        return (levels[picture] if self.lattice else x), picture


# Section 7: neurons --------------------------------------------------------------------------------------------------


def below64(high: int, low: int, n: int) -> int:
    return ((int(high) << 32 | int(low)) * int(n)) >> 64


def qualifying(original: Floats, compressed: Floats) -> NDArray[np.bool_]:
    """Of one row of one layer, in C order."""
    return ((original > 0) & (compressed <= 0)).reshape(-1)


def select(
    original: Sequence[Floats], compressed: Sequence[Floats], *, seed: int, identity: int, step: int, trials: int
) -> tuple[int, int]:
    """Layer and position chosen in one row: a list of arrays of any shapes for each model."""
    lost = [qualifying(a, b) for a, b in zip(original, compressed, strict=True)]
    for w0, w1, w2, w3 in oracle.words(seed, identity, step, NEURONS, trials) if trials else ():
        layer = below64(w0, w1, len(lost))
        position = below64(w2, w3, len(lost[layer]))
        if lost[layer][position]:
            return layer, position
    weights = [int(q.sum()) * 2**48 // len(q) for q in lost]
    if sum(weights) == 0:
        return -1, -1
    key = np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32)
    last = np.array([0xFFFFFFFF, step, identity & 0xFFFFFFFF, NEURONS | (identity >> 32) << 8], np.uint32)
    w0, w1, w2, w3 = oracle.philox(key, last)
    r = below64(w0, w1, sum(weights))
    layer = next(k for k in range(len(weights)) if r < sum(weights[: k + 1]))
    places = np.flatnonzero(lost[layer])
    return layer, int(places[below64(w2, w3, len(places))])
