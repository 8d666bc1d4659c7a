"""What two environments make of the same images: labels that differ, rankings, scores, time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from compdx.environments import ranking
from compdx.environments.drift import Drift, DriftSums
from compdx.environments.significance import Anova, Latency, speed_gain, time_change, wilson

Rows = npt.NDArray[np.int64]
FLIPS = ("right_to_wrong", "wrong_to_right", "wrong_to_wrong", "tie", "unlabelled")
"""What a label difference is, B seen from A: ``tie`` where either side scores both labels alike, so that nothing but
the order of classes decided; ``unlabelled`` where the right class is not known."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How alike the rankings of the best classes are, means over all images.

    Attributes:
        k: Length of the rankings.
        same: Share of images with one and the same ranking.
        jaccard, footrule, rbo_truncated, rbo, tau: See `compdx.environments.ranking`; the second is DeltaNN's score.
    """

    k: int
    same: float
    jaccard: float
    footrule: float
    rbo_truncated: float
    rbo: float
    tau: float


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How long B takes compared with A, at the medians, for the same number of images.

    Attributes:
        time_change: Percent; positive is slower: ``100 * (t_B - t_A) / t_A``.
        speed_gain: A part; positive is faster: ``t_A / t_B - 1``.
        anova: Whether the difference is more than chance; None where it was not measured.
        reason: Why it was not.
    """

    time_change: float
    speed_gain: float
    anova: Anova | None
    reason: str | None = None

    @classmethod
    def of(cls, a: Latency, b: Latency, verdict: Anova | None, reason: str | None = None) -> Speed:
        """The two compared by the time of an image."""
        before, after = a.median / a.batch, b.median / b.batch
        return cls(
            time_change=time_change(before, after), speed_gain=speed_gain(before, after), anova=verdict, reason=reason
        )

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        verdict = None
        if self.anova is not None:
            f = self.anova.f if math.isfinite(self.anova.f) else None
            verdict = {"f": f, "p": self.anova.p, "significant": self.anova.significant}
        return {
            "time_change_percent": self.time_change,
            "speed_gain": self.speed_gain,
            "anova": verdict,
            "anova_not_measured": self.reason,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Difference:
    """Environment B seen from environment A, the reference, on the same images.

    Attributes:
        a, b: Their names.
        reason: Why nothing was measured; None when it was. All that follows is only there when it was.
        images: Images that both gave finite scores for: the base of every share.
        non_finite: Images left out because a score was NaN or infinite.
        rows: int64, the images on which the labels differ, ascending.
        labels: int64 ``[len(rows), 2]``, the labels there.
        margins: float64, how far A's best score is above its second there.
        threshold: The margin below which a flip is no surprise.
        close: Images whose margin is below the threshold, flipped or not.
        flips: Of the differing images, how many are what; see `FLIPS`.
        accuracy: Of A and of B, where the right classes are known.
        overlap, drift: Rankings and scores.
        speed: Time; None where it was not measured.
    """

    a: str
    b: str
    reason: str | None = None
    images: int = 0
    non_finite: int = 0
    rows: Rows
    labels: Rows
    margins: npt.NDArray[np.float64]
    threshold: float = 0.0
    close: int = 0
    flips: dict[str, int]
    accuracy: tuple[float, float] | None = None
    overlap: Overlap | None = None
    drift: Drift | None = None
    speed: Speed | None = None

    @classmethod
    def not_measured(cls, a: str, b: str, reason: str) -> Difference:
        """A pair of which nothing is known. It is not equal, it is unknown."""
        none = np.zeros(0, np.int64)
        return cls(a=a, b=b, reason=reason, rows=none, labels=none.reshape(0, 2), margins=np.zeros(0), flips={})

    @property
    def measured(self) -> bool:
        """Whether anything was."""
        return self.reason is None

    @property
    def differing(self) -> int:
        """Images with different labels."""
        return len(self.rows)

    @property
    def surprising(self) -> int:
        """Those of them whose margin in A is not below the threshold."""
        return int((self.margins >= self.threshold).sum())

    @property
    def share(self) -> float:
        """Differing images over all, NaN of none."""
        return self.differing / self.images if self.images else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of `share`."""
        return wilson(self.differing, self.images)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        if not self.measured:
            return {"a": self.a, "b": self.b, "not_measured": self.reason}
        return {
            "a": self.a,
            "b": self.b,
            "not_measured": None,
            "images": self.images,
            "non_finite": self.non_finite,
            "differing": self.differing,
            "share": self.share if self.images else None,
            "interval": list(self.interval),
            "margin": self.threshold,
            "differing_below_margin": self.differing - self.surprising,
            "differing_above_margin": self.surprising,
            "images_below_margin": self.close,
            "rows": self.rows.tolist(),
            "labels": self.labels.tolist(),
            "margins": self.margins.tolist(),
            "flips": self.flips,
            "accuracy": None if self.accuracy is None else list(self.accuracy),
            "overlap": None if self.overlap is None else vars(self.overlap),
            "drift": None if self.drift is None else self.drift.to_json(),
            "speed": None if self.speed is None else self.speed.to_json(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Difference:
        """What `to_json` gave."""
        if data["not_measured"] is not None:
            return cls.not_measured(data["a"], data["b"], data["not_measured"])
        drift, speed = data["drift"], data["speed"]
        if drift is not None:
            drift = Drift(**{**drift, "sqnr_db": math.inf if drift["sqnr_db"] is None else drift["sqnr_db"]})
        if speed is not None:
            verdict = speed["anova"]
            if verdict is not None:
                f = (math.inf if verdict["p"] == 0 else math.nan) if verdict["f"] is None else verdict["f"]
                verdict = Anova(f=f, p=verdict["p"])
            speed = Speed(
                time_change=speed["time_change_percent"],
                speed_gain=speed["speed_gain"],
                anova=verdict,
                reason=speed["anova_not_measured"],
            )
        return cls(
            a=data["a"],
            b=data["b"],
            images=data["images"],
            non_finite=data["non_finite"],
            rows=np.asarray(data["rows"], np.int64),
            labels=np.asarray(data["labels"], np.int64).reshape(-1, 2),
            margins=np.asarray(data["margins"], np.float64),
            threshold=data["margin"],
            close=data["images_below_margin"],
            flips=data["flips"],
            accuracy=None if data["accuracy"] is None else tuple(data["accuracy"]),
            overlap=None if data["overlap"] is None else Overlap(**data["overlap"]),
            drift=drift,
            speed=speed,
        )


Chunk = tuple[Rows, npt.NDArray[np.float32], npt.NDArray[np.float32]]


def measure(
    names: tuple[str, str],
    outputs: tuple[str, str],
    chunks: Iterable[Chunk],
    *,
    labels: Rows | None,
    top: int,
    margin: float,
    speed: Speed | None = None,
) -> Difference:
    """Compare two environments, chunk by chunk.

    Args:
        names, outputs: Of A and of B; outputs are ``"logits"`` or ``"probabilities"``.
        chunks: Image numbers and the scores of both, ``[N, K]`` each.
        labels: Right classes of all images, -1 for an unknown one.
        top: Length of the rankings; fewer where there are fewer classes.
        margin: The threshold that `Difference.surprising` goes by.
        speed: What is known of the time.
    """
    sums = DriftSums(outputs)
    images = non_finite = close = known = 0
    right = np.zeros(2, np.int64)
    flips = dict.fromkeys(FLIPS, 0)
    measures = np.zeros(6)
    length = top
    found: list[tuple[Rows, Rows, npt.NDArray[np.float64]]] = []
    for rows, a, b in chunks:
        finite = np.isfinite(a).all(1) & np.isfinite(b).all(1)
        non_finite += int((~finite).sum())
        rows, a, b = rows[finite], a[finite], b[finite]
        if not len(rows):
            continue
        images += len(rows)
        sums.add(a, b)
        length = min(top, a.shape[1])
        measures += _rankings(ranking.top(a, length), ranking.top(b, length))
        margins = margins_of(a)
        close += int((margins < margin).sum())
        both = np.stack([a.argmax(1), b.argmax(1)], 1).astype(np.int64)
        differ = both[:, 0] != both[:, 1]
        truth = np.full(len(rows), -1, np.int64) if labels is None else labels[rows]
        known += int((truth >= 0).sum())
        right += ((both == truth[:, None]) & (truth[:, None] >= 0)).sum(0)
        for name, count in _flips(a, b, both, truth, differ).items():
            flips[name] += count
        found.append((rows[differ], both[differ], margins[differ]))
    if not images:
        return Difference.not_measured(*names, f"none of {non_finite:,} images has finite scores in both")
    same, *means = measures / images
    keys = ("jaccard", "footrule", "rbo_truncated", "rbo", "tau")
    order = np.argsort(np.concatenate([rows for rows, _, _ in found]), kind="stable")
    return Difference(
        a=names[0],
        b=names[1],
        images=images,
        non_finite=non_finite,
        rows=np.concatenate([rows for rows, _, _ in found])[order],
        labels=np.concatenate([pair for _, pair, _ in found])[order],
        margins=np.concatenate([margins for _, _, margins in found])[order],
        threshold=margin,
        close=close,
        flips=flips,
        accuracy=(float(right[0] / known), float(right[1] / known)) if known else None,
        overlap=Overlap(k=length, same=float(same), **dict(zip(keys, map(float, means), strict=True))),
        drift=sums.result(),
        speed=speed,
    )


def margins_of(scores: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """How far the best score of every row is above the second, float64 ``[N]``."""
    two = np.partition(scores.astype(np.float64), -2, axis=1)[:, -2:]
    return np.asarray(two[:, 1] - two[:, 0], np.float64)


def _rankings(a: Rows, b: Rows) -> npt.NDArray[np.float64]:
    """Sums over rows: equal rankings, then the measures of `Overlap` in its order. Equal rows need no measuring."""
    same = (a == b).all(1)
    truncated = 1 - ranking.PERSISTENCE ** a.shape[1]
    sums = np.array([1.0, 1.0, 100.0, truncated, 1.0, 1.0]) * int(same.sum())
    if same.all():
        return sums
    a, b = a[~same], b[~same]
    rest = (
        ranking.jaccard(a, b),
        ranking.footrule(a, b),
        ranking.rank_biased_overlap(a, b, extrapolated=False),
        ranking.rank_biased_overlap(a, b),
        ranking.kendall_tau(a, b),
    )
    total: npt.NDArray[np.float64] = sums + np.array([0.0, *(values.sum() for values in rest)])
    return total


def _flips(
    a: npt.NDArray[Any], b: npt.NDArray[Any], both: Rows, truth: Rows, differ: npt.NDArray[np.bool_]
) -> dict[str, int]:
    """How many differing images are what; every one is one of them."""
    rows = np.arange(len(a))
    first, second = both[:, 0], both[:, 1]
    tie = differ & ((a[rows, first] == a[rows, second]) | (b[rows, first] == b[rows, second]))
    rest, known = differ & ~tie, truth >= 0
    return {
        "right_to_wrong": int((rest & known & (first == truth)).sum()),
        "wrong_to_right": int((rest & known & (second == truth)).sum()),
        "wrong_to_wrong": int((rest & known & (first != truth) & (second != truth)).sum()),
        "tie": int(tie.sum()),
        "unlabelled": int((rest & ~known).sum()),
    }
