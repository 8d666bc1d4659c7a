"""How far the scores of two environments are apart, added up over chunks of images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.floating[Any]]
Floats = npt.NDArray[np.float64]
LEAST = 1e-30  # of a probability whose logarithm is taken


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Differences of the scores of B from those of A, over all images.

    Attributes:
        scores: What was compared: ``"logits"``, or ``"probabilities"`` where either side returns those.
        max_abs: The largest difference of a score.
        rmse: Root of the mean squared difference.
        sqnr_db: Signal to noise: ``10 log10`` of the sum of squares of A over that of the differences, in dB; infinite
            where there is no difference.
        cosine: Of the two score vectors of an image, the mean; a vector of zeros has 1 with itself and 0 with others.
        kl: Kullback-Leibler divergence of B's probabilities from A's, nats, the mean.
        confidence: Absolute difference of the probability of A's label, the mean.
    """

    scores: str
    max_abs: float
    rmse: float
    sqnr_db: float
    cosine: float
    kl: float
    confidence: float

    def to_json(self) -> dict[str, Any]:
        """All figures as JSON values; an infinite ``sqnr_db`` is None."""
        return {**vars(self), "sqnr_db": self.sqnr_db if math.isfinite(self.sqnr_db) else None}


class DriftSums:
    """The sums that a `Drift` is made of."""

    def __init__(self, outputs: tuple[str, str]) -> None:
        self._outputs = outputs
        self._images = self._values = 0
        self._max = self._signal = self._noise = self._cosine = self._kl = self._confidence = 0.0

    def add(self, a: Scores, b: Scores) -> None:
        """Add scores of the same images, finite ``[N, K]`` each."""
        if not len(a):
            return
        x, y = a.astype(np.float64), b.astype(np.float64)
        p, q = (probabilities(side, outputs) for side, outputs in zip((x, y), self._outputs, strict=True))
        if self._outputs[0] != self._outputs[1]:
            x, y = p, q
        difference = y - x
        self._images += len(a)
        self._values += x.size
        self._max = max(self._max, float(np.abs(difference).max()))
        self._signal += float((x * x).sum())
        self._noise += float((difference * difference).sum())
        self._cosine += float(_cosines(x, y).sum())
        self._kl += float((p * (np.log(np.maximum(p, LEAST)) - np.log(np.maximum(q, LEAST)))).sum())
        rows = np.arange(len(a))
        label = p.argmax(1)
        self._confidence += float(np.abs(p[rows, label] - q[rows, label]).sum())

    def result(self) -> Drift:
        """The figures of all that was added, of at least one image."""
        signal, noise = self._signal, self._noise
        with np.errstate(divide="ignore"):
            sqnr = 10 * (np.log10(signal) - np.log10(noise)) if noise else math.inf
        return Drift(
            scores=self._outputs[0] if self._outputs[0] == self._outputs[1] else "probabilities",
            max_abs=self._max,
            rmse=math.sqrt(noise / self._values),
            sqnr_db=float(sqnr),
            cosine=self._cosine / self._images,
            kl=max(self._kl / self._images, 0.0),  # of equal distributions rounding can leave -1e-18
            confidence=self._confidence / self._images,
        )


def probabilities(scores: Floats, outputs: str) -> Floats:
    """Softmax of logits; probabilities stay as they are: nothing is normalised twice."""
    if outputs == "probabilities":
        return scores
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True), np.float64)


def _cosines(a: Floats, b: Floats) -> Floats:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    same = (a == b).all(1)
    # Of equal vectors rounding gives 1 - 1e-16; a variant against itself has 1.
    cosines = np.divide((a * b).sum(1), norms, out=np.zeros(len(a)), where=norms > 0)
    return np.where(same, 1.0, cosines)
