"""DFlare's published search loop, one image at a time: the peer that compdx is measured against.

Written from the description of Tian et al., "Finding Deviated Behaviors of the Compressed DNN Models for Image
Classifications" (TOSEM 2023) and the behaviour of the authors' code, with its quirks: truncation and modulo-256 wrap,
an operator rank that is never found, an acceptance that takes decreases as well as increases. The one liberty: all
randomness comes from one generator for each image, so that a run can be repeated. NumPy and OpenCV only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np

Array = np.ndarray
Scores = Callable[[Array], Array]  # uint8 [H, W, C] -> probabilities [K]

ADDITIVE_SIGMA = math.sqrt(0.1)  # in 8-bit levels
SALT_PEPPER_AMOUNT = 0.004
RANK_DECAY = 1 - 1 / 7
FITNESS_STEP = 1e-3
NOVELTY = 0.5  # squared L2 distance


def wrap(values: Array) -> Array:
    """Float to uint8 as x86 NumPy did it: truncate towards zero, then modulo 256."""
    return (np.trunc(values).astype(np.int64) & 255).astype(np.uint8)


def additive(image: Array, rng: np.random.Generator) -> Array:
    return wrap(image + rng.normal(0.0, ADDITIVE_SIGMA, image.shape))


def salt_pepper(image: Array, rng: np.random.Generator) -> Array:
    count = math.ceil(SALT_PEPPER_AMOUNT * image.size * 0.5)
    mutant = image.copy()
    for value in (255, 0):
        mutant[tuple(rng.integers(0, extent, count) for extent in image.shape)] = value
    return mutant


def multiplicative(image: Array, rng: np.random.Generator) -> Array:
    mean = rng.uniform(-0.5, 0.5)
    variance = rng.uniform(0.0, 0.05)
    return wrap(image + image * rng.normal(mean, math.sqrt(variance), image.shape))


def pixel(image: Array, rng: np.random.Generator) -> Array:
    count = int(rng.integers(0, 10))
    mutant = image.copy()
    mutant.reshape(-1)[rng.integers(0, image.size, count)] = rng.integers(0, 256, count)
    return mutant


def box(image: Array, rng: np.random.Generator) -> Array:
    size = int(rng.integers(1, 6))
    return cv2.blur(image, (size, size)).reshape(image.shape)


def gaussian(image: Array, rng: np.random.Generator) -> Array:
    size = 1 + 2 * int(rng.integers(0, 4))
    return cv2.GaussianBlur(image, (size, size), 0).reshape(image.shape)


def median(image: Array, rng: np.random.Generator) -> Array:
    size = 1 + 2 * int(rng.integers(0, 4))
    return cv2.medianBlur(image, size).reshape(image.shape)


OPERATORS = (additive, salt_pepper, multiplicative, pixel, box, gaussian, median)


@dataclass
class Chooser:
    """Metropolis choice of an operator, with the published rank look-up: it always fails and yields -1."""

    rng: np.random.Generator
    credit: list[int] = field(default_factory=lambda: [0] * len(OPERATORS))
    total: list[int] = field(default_factory=lambda: [0] * len(OPERATORS))

    def choose(self, last: int | None) -> int:
        if last is None:
            return int(self.rng.integers(len(OPERATORS)))
        order = list(self.rng.permutation(len(OPERATORS)))
        order.sort(key=lambda k: self.credit[k] / (self.total[k] + 1e-7), reverse=True)
        current = -1
        while True:
            proposed = int(self.rng.integers(len(OPERATORS)))
            if self.rng.random() < RANK_DECAY ** (proposed - current):
                return int(order[proposed])


class Archive:
    """States of both models seen so far; a state is novel when its squared distance to all of them exceeds 0.5."""

    def __init__(self, first: Array) -> None:
        self.states = first[None]

    def update(self, state: Array) -> bool:
        novel = bool(((self.states - state) ** 2).sum(axis=1).min() > NOVELTY)
        if novel:
            self.states = np.concatenate([self.states, state[None]])
        return novel


def label(probabilities: Array) -> int:
    """The last of an ascending sort: the highest index wins on ties."""
    return int(np.argsort(probabilities, kind="stable")[-1])


def fitter(novel: bool, delta: float, best: float) -> bool:
    return abs(abs(delta) - abs(best)) > FITNESS_STEP or novel


@dataclass(frozen=True)
class Result:
    """How one seed ended: `steps` is 0 when the pair deviates on the seed itself and -1 when the budget was spent."""

    steps: int
    queries: int
    image: Array | None


def search(
    original: Scores, compressed: Scores, seed_image: Array, *, max_steps: int, rng: np.random.Generator
) -> Result:
    """The published loop on one uint8 `[H, W, C]` image."""
    p, q = original(seed_image), compressed(seed_image)
    if label(p) != label(q):
        return Result(0, 1, seed_image)
    archive = Archive(np.concatenate([p, q]))
    chooser = Chooser(rng)
    current, last, best = seed_image, None, 0.0
    for step in range(1, max_steps + 1):
        operator = chooser.choose(last)
        chooser.total[operator] += 1
        mutant = OPERATORS[operator](current, rng)
        p, q = original(mutant), compressed(mutant)
        if label(p) != label(q):
            return Result(step, step + 1, mutant)
        delta = float(p.max()) - float(q.max())
        novel = archive.update(np.concatenate([p, q]))
        if fitter(novel, delta, best):
            chooser.credit[operator] += 1
            current, last, best = mutant, operator, delta
    return Result(-1, max_steps + 1, None)
