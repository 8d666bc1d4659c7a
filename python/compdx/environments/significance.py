"""What a count or a list of times says, and how sure it is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compdx.model import import_optional

CONFIDENCE = 0.95
SIGNIFICANT = 0.05


def wilson(count: int, total: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The Wilson score interval of a share ``count / total``, ``(0, 1)`` of nothing.

    It stays within 0 to 1 and has a width where the count is 0, unlike that of the normal approximation.

    Raises:
        ValueError: ``count`` is not in 0..total.
    """
    if not 0 <= count <= total:
        msg = f"count must be in 0..{total}, got {count}"
        raise ValueError(msg)
    if total == 0:
        return 0.0, 1.0
    z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
    share, weight = count / total, z * z / total
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / total + weight / (4 * total))
    # Where the count is at an end so is the interval, which rounding must not hide.
    return 0.0 if count == 0 else middle - half, 1.0 if count == total else middle + half


def time_change(before: float, after: float) -> float:
    """By how many percent the time grew: ``100 * (after - before) / before``. Positive is slower."""
    return 100 * (after - before) / before


def speed_gain(before: float, after: float) -> float:
    """By which part the work became faster: ``before / after - 1``. Positive is faster.

    Gains compose: ``(1 + gain(A, B)) * (1 + gain(B, C)) - 1`` is that from A to C; changes of time do likewise.
    """
    return before / after - 1


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Seconds that one call with a whole batch takes, warm.

    Attributes:
        seconds: One number a call, in the order of the rounds.
        batch: Images in each.
    """

    seconds: tuple[float, ...]
    batch: int

    @property
    def median(self) -> float:
        """The median, seconds a batch."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third, seconds a batch."""
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0]
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first, third

    @property
    def images_per_second(self) -> float:
        """At the median."""
        return self.batch / self.median

    def to_json(self) -> dict[str, Any]:
        """The figures and all times, as JSON values."""
        return {
            "median": self.median,
            "quartiles": list(self.quartiles),
            "images_per_second": self.images_per_second,
            "batch": self.batch,
            "seconds": list(self.seconds),
        }


@dataclass(frozen=True, kw_only=True)
class Anova:
    """A one-way analysis of variance of two lists of times.

    Attributes:
        f: The statistic; NaN where neither list varies and their means are one.
        p: How often times of one and the same law would be at least as far apart, 0 to 1.
    """

    f: float
    p: float

    @property
    def significant(self) -> bool:
        """Whether ``p`` is below 0.05."""
        return self.p < SIGNIFICANT


def anova(a: Sequence[float], b: Sequence[float]) -> Anova:
    """Whether two lists of times differ by more than their own spread: `scipy.stats.f_oneway`.

    Lists that do not vary at all have no statistic: equal ones get F = NaN and p = 1, others F = infinity and p = 0.

    Raises:
        ModuleNotFoundError: SciPy is missing.
        ValueError: A list has fewer than two times.
    """
    if min(len(a), len(b)) < 2:
        msg = f"a and b must each have at least two times, got {len(a)} and {len(b)}"
        raise ValueError(msg)
    stats = import_optional("scipy.stats", "an analysis of variance", "compare")
    if len(set(a)) == len(set(b)) == 1:  # SciPy warns of constant lists
        return Anova(f=math.nan, p=1.0) if a[0] == b[0] else Anova(f=math.inf, p=0.0)
    f, p = stats.f_oneway(a, b)
    return Anova(f=float(f), p=float(p))
