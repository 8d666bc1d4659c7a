"""Stand-ins for a pair of models, whose scores are exact so that no batch can change them, and the loop around them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compdx.findings import KINDS, Outcomes

Scores = NDArray[np.float32]
Scorer = Callable[[Any], tuple[Any, Any]]


@dataclass(frozen=True)
class IntegerPair:
    """Linear classifiers in int64 with a rippled score; the compressed one keeps fewer bits of each score.

    All sums are integers below 2^24 and are scaled by a power of two, so float32 holds every score exactly.
    """

    shape: tuple[int, int, int]
    classes: int
    drop_bits: int = 5
    seed: int = 0

    def sums(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        rng = np.random.default_rng([self.seed, self.classes, *self.shape])
        n = int(np.prod(self.shape))
        weights = rng.integers(-9, 10, (n, self.classes))
        ripple = rng.integers(-40, 41, (n, self.classes))
        flat = images.reshape(len(images), n).astype(np.int64)
        return (flat - 128) @ weights // 32 + (flat @ ripple) % 512

    def __call__(self, images: NDArray[np.uint8]) -> tuple[Scores, Scores]:
        sums = self.sums(np.asarray(images))
        coarse = sums >> self.drop_bits << self.drop_bits
        return (sums * 2.0**-7).astype(np.float32), (coarse * 2.0**-7).astype(np.float32)


@dataclass(frozen=True)
class TwinPair:
    """Two equal models: nothing can be found."""

    model: IntegerPair

    def __call__(self, images: NDArray[np.uint8]) -> tuple[Scores, Scores]:
        scores, _ = self.model(images)
        return scores, scores.copy()


def softmax(pair: Scorer, *, models: Iterable[int]) -> Scorer:
    """The pair with the scores of the named models (0 original, 1 compressed) as float32 probabilities."""

    def probabilities(x: Scores) -> Scores:
        # One row at a time and in float64, so that neither the batch nor its sums' order can show.
        rows = [np.exp(row.astype(np.float64) - row.max()) for row in x]
        return np.array([row / row.sum() for row in rows], np.float32)

    def call(images: NDArray[np.uint8]) -> tuple[Scores, Scores]:
        rows = list(pair(images))
        for m in models:
            rows[m] = probabilities(rows[m])
        return rows[0], rows[1]

    return call


def on_cuda(pair: Scorer) -> Scorer:
    """The pair for a loop on CUDA: torch tensors in and out, the scores still computed on the host."""
    import torch

    def call(images: Any) -> tuple[Any, Any]:
        a, b = pair(images.cpu().numpy())
        return torch.from_numpy(a).cuda(), torch.from_numpy(b).cuda()

    return call


def some_images(count: int, shape: tuple[int, int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Images of random contrast and brightness, some saturated."""
    rng = np.random.default_rng(seed)
    base = rng.normal(0.0, 1.0, (count, *shape))
    contrast = rng.uniform(10.0, 120.0, (count, 1, 1, 1))
    return np.clip(base * contrast + rng.uniform(30.0, 220.0, (count, 1, 1, 1)), 0, 255).astype(np.uint8)


def collect(parts: list[Outcomes]) -> Outcomes:
    """The parts as one, sorted by seed_index."""
    whole = Outcomes.concatenate(parts)
    return whole.select(np.argsort(whole.seed_index, kind="stable"))


def drive(loop: Any, pair: Scorer, *, iterations: int | None = None) -> list[Outcomes]:
    """Ask and tell until the loop ends, or for some iterations; what ended on the way."""
    parts = []
    while loop.active and (iterations is None or iterations > 0):
        loop.tell(*pair(loop.ask()))
        parts.append(loop.take())
        if iterations is not None:
            iterations -= 1
    return parts


def run(settings: Any, seeds: Any, pair: Scorer, **start: Any) -> Outcomes:
    """A whole run; the outcomes sorted by seed_index."""
    return collect(drive(settings.start(seeds, **start), pair))


def kinds(outcomes: Outcomes) -> list[str]:
    return [KINDS[code] for code in outcomes.kind]


def assert_same(left: Outcomes, right: Outcomes) -> None:
    """All columns equal, byte for byte; NaN equals NaN. Exhausted chains leave no picture to compare."""
    pictured = [kind != "exhausted" for kind in kinds(left)]
    for column in fields(Outcomes):
        a, b = getattr(left, column.name), getattr(right, column.name)
        if column.name == "traces":
            assert len(a) == len(b)
            for i, (x, y) in enumerate(zip(a, b, strict=True)):
                np.testing.assert_array_equal(x, y, err_msg=f"trace of row {i}")
        elif column.name == "images":
            assert a.shape == b.shape
            assert_bytes(a[pictured], b[pictured], "images")
        elif column.name == "trails":
            assert a is None
            assert b is None
        else:
            assert a.dtype == b.dtype, column.name
            np.testing.assert_array_equal(a, b, err_msg=column.name)


def assert_bytes(actual: NDArray[np.uint8], expected: NDArray[np.uint8], what: str = "") -> None:
    """Equal shape, dtype and bytes; the message names the first difference."""
    assert actual.dtype == expected.dtype == np.uint8
    assert actual.shape == expected.shape, what
    wrong = np.argwhere(actual != expected)
    if len(wrong):
        at = tuple(int(i) for i in wrong[0])
        message = (
            f"{what}: {len(wrong)} of {actual.size} bytes differ, first at {at}: {actual[at]}, expected {expected[at]}"
        )
        raise AssertionError(message)


def integer_modules(pair: IntegerPair) -> tuple[Any, Any]:
    """The pair as two torch modules for inputs of 0..255, on any device: sums in float64 are exact in every order."""
    import torch

    class Linear(torch.nn.Module):
        def __init__(self, drop_bits: int) -> None:
            super().__init__()
            rng = np.random.default_rng([pair.seed, pair.classes, *pair.shape])
            n = int(np.prod(pair.shape))
            for name, low, high in (("weights", -9, 10), ("ripple", -40, 41)):
                drawn = rng.integers(low, high, (n, pair.classes))
                self.register_buffer(name, torch.from_numpy(drawn.astype(np.float64)))
            self.step = 2.0**drop_bits

        def forward(self, x: Any) -> Any:
            flat = torch.round(x).flatten(1).double()
            sums = torch.floor((flat - 128) @ self.weights / 32) + torch.remainder(flat @ self.ripple, 512)
            return (torch.floor(sums / self.step) * self.step * 2.0**-7).float()

    return Linear(0).eval(), Linear(pair.drop_bits).eval()
