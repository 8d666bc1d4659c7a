"""Section 8 of docs/arithmetic.md in integers of Python, one neuron and one product at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST = np.finfo(np.float32).max


def products_of(weights: Sequence[np.float32], deltas: Sequence[np.float32]) -> list[float]:
    """p_i, exactly as float32 has it."""
    with np.errstate(over="ignore", under="ignore"):
        rounded = [np.float32(w) * np.float32(x) for w, x in zip(weights, deltas, strict=True)]
    return [float(np.clip(p, -LARGEST, LARGEST)) for p in rounded]


def scaled(values: Sequence[float]) -> list[int]:
    """q_i: with 46 bits for the largest magnitude, the rest cut off."""
    largest = max(abs(p) for p in values)
    exponent = math.frexp(largest)[1]  # 2^(e - 1) <= m < 2^e
    factor = Fraction(2) ** (46 - exponent)
    return [math.trunc(Fraction(p) * factor) for p in values]


def kept(values: Sequence[float], epsilon: float = 0.2, beta: float = 0.01) -> set[int]:
    """The products that are kept, by their index among the real taps of one neuron."""
    if len(values) == 1:
        return {0}
    if not any(values):
        return set()
    q = scaled(values)
    total = sum(q)
    magnitudes = [abs(n) for n in q]
    if abs(total) < min(magnitudes) or 1000 * abs(total) < max(magnitudes):
        return set()
    reached = 0
    for i in sorted(range(len(values)), key=lambda i: (-abs(values[i]), i)):
        reached += q[i]
        if float(abs(reached - total)) < epsilon * float(abs(total)):
            threshold = abs(values[i]) * (1.0 - beta)
            return {j for j, p in enumerate(values) if abs(p) > threshold}
    msg = "the whole sum is not near itself"
    raise AssertionError(msg)


def sgn(value: Any) -> int:
    return int(value > 0) - int(value < 0)


def contributions(
    delta: NDArray[np.float32],
    weight: NDArray[np.float32],
    sign: NDArray[np.int8],
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    epsilon: float = 0.2,
    beta: float = 0.01,
) -> dict[str, NDArray[np.int32]]:
    """All four results of the operation, from zeros."""
    batch, _, height, width = delta.shape
    outputs, in_group, rows, columns = weight.shape
    inputs = np.zeros(delta.shape, np.int32)
    samples = np.zeros((batch, *weight.shape), np.int32)
    for b, o, p, q in product(*map(range, sign.shape)):
        if sign[b, o, p, q] == 0:
            continue
        first = o // (outputs // groups) * in_group
        taps = []
        for c, i, j in product(range(in_group), range(rows), range(columns)):
            y = p * stride[0] - padding[0] + i * dilation[0]
            x = q * stride[1] - padding[1] + j * dilation[1]
            if 0 <= y < height and 0 <= x < width:
                taps.append(((o, c, i, j), (b, first + c, y, x)))
        if not taps:
            continue
        values = products_of([weight[at] for at, _ in taps], [delta[at] for _, at in taps])
        for tap in kept(values, epsilon, beta):
            of_weight, of_input = taps[tap]
            contribution = int(sign[b, o, p, q]) * sgn(weight[of_weight]) * sgn(delta[of_input])
            inputs[of_input] += contribution
            samples[(b, *of_weight)] += contribution
    return {"inputs": inputs, "signed": samples.sum(0), "absolute": np.abs(samples).sum(0), "samples": samples}
