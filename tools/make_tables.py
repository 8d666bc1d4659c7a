"""Generate csrc/core/tables.h, the constants of docs/arithmetic.md section 5.

    python tools/make_tables.py            rewrite the header
    python tools/make_tables.py --check    fail when the header is not what this script writes

Needs NumPy and the standard library only. Each table is printed with its approximation error.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from pathlib import Path

import numpy as np

HEADER = Path(__file__).resolve().parent.parent / "csrc" / "core" / "tables.h"


def normal_tables() -> tuple[list[int], list[int], float]:
    """Two-level linear inverse of the half-normal distribution in Q12: BASE, RISE, largest error of z."""

    def quantile(u: float) -> float:
        return statistics.NormalDist().inv_cdf(0.5 + (u + 0.5) / 65536.0) * 4096.0

    base, rise = [0] * 128, [0] * 128
    for i in range(63):
        base[i] = round(quantile(512 * i))
        rise[i] = round(quantile(512 * (i + 1))) - base[i]
    for i in range(64):
        start = 32256 + 8 * i
        last = i == 63
        base[64 + i] = round(quantile(start))
        end = quantile(start + 7) + (quantile(start + 7) - quantile(start + 6)) if last else quantile(start + 8)
        rise[64 + i] = round(end) - base[64 + i]
    u = np.arange(32768)
    tail = u >= 32256
    i = np.where(tail, 64 + ((u & 511) >> 3), u >> 9)
    f = np.where(tail, (u & 7) << 13, (u & 511) << 7)
    z = (np.array(base)[i] + ((np.array(rise)[i] * f) >> 16)) / 4096.0
    exact = np.array([quantile(float(v)) for v in u]) / 4096.0
    return base, rise, float(np.abs(z - exact).max())


def exp2_coefficients() -> tuple[list[int], float]:
    """C1..C6 (Q32) with 2^-x = 1 - x(C1 - x(C2 - ...)) on [0, 1); largest relative error."""
    # Chebyshev nodes, constrained to 1 at x = 0: fit (1 - 2^-x) / x.
    nodes = 0.5 + 0.5 * np.cos(np.pi * (np.arange(64) + 0.5) / 64)
    target = (1.0 - np.exp2(-nodes)) / nodes
    powers = np.stack([(-nodes) ** i for i in range(6)], axis=1)
    coefficients, *_ = np.linalg.lstsq(powers, target, rcond=None)
    fixed = [round(float(c) * 2**32) for c in coefficients]
    x = np.linspace(0.0, 1.0, 100001)[:-1]
    value = np.zeros_like(x)
    for c in reversed(fixed):
        value = c / 2**32 - value * x
    error = np.abs((1.0 - value * x) / np.exp2(-x) - 1.0).max()
    return fixed, float(error)


def selection_tables() -> tuple[list[list[int]], list[list[int]]]:
    """CDF thresholds (2^32) of the operator's rank: metropolis by current rank, and the three fixed laws."""

    def thresholds(weights: list[float]) -> list[int]:
        total = math.fsum(weights)
        return [math.floor(math.fsum(weights[: j + 1]) / total * 2**32) for j in range(6)]

    metropolis = [thresholds([min(1.0, (6 / 7) ** (k2 - k1)) for k2 in range(7)]) for k1 in range(7)]
    fixed = [thresholds([(6 / 7) ** k2 for k2 in range(7)]), thresholds([1.0] * 7)]
    return metropolis, fixed


def rows(values: list[int], suffix: str = "") -> str:
    lines = []
    for start in range(0, len(values), 12):
        lines.append("    " + ", ".join(f"{v}{suffix}" for v in values[start : start + 12]) + ",")
    return "\n".join(lines)


def render() -> str:
    base, rise, normal_error = normal_tables()
    exp2, exp2_error = exp2_coefficients()
    metropolis, fixed = selection_tables()
    selection = [value for row in [*metropolis, *fixed] for value in [*row, 2**32 - 1]]
    return f"""// Written by tools/make_tables.py; do not edit. See docs/arithmetic.md section 5.
#pragma once

#include <cstdint>

#include "core/platform.h"

namespace compdx {{
inline namespace COMPDX_ISA_NAMESPACE {{

// Inverse of the half-normal distribution, Q12: 63 segments of 512, then 64 of 8. |error of z| <= {normal_error:.1e}.
COMPDX_TABLE(int16_t, normal_base, 128,
{rows(base)}
)
COMPDX_TABLE(uint16_t, normal_rise, 128,
{rows(rise)}
)

// 2^-x = 1 - x(C1 - x(C2 - ... x C6)) on [0, 1), Q32. Relative error <= {exp2_error:.1e}.
COMPDX_TABLE(uint32_t, exp2_coefficients, 6,
{rows(exp2, "u")}
)

// Thresholds of the operator's rank, 7 a row (the last is unused).
// Rows 0..6: metropolis by current rank; 7: rank; 8: uniform.
COMPDX_TABLE(uint32_t, selection_thresholds, 63,
{rows(selection, "u")}
)

}}  // namespace COMPDX_ISA_NAMESPACE
}}  // namespace compdx
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    text = render()
    if parser.parse_args().check:
        if HEADER.read_text() != text:
            sys.stderr.write(f"{HEADER} is not what tools/make_tables.py writes\n")
            return 1
        return 0
    HEADER.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
