"""Which operator comes next: the closed form of docs/arithmetic.md section 3 and what native runs do."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

import compdx
import oracle
from stubs import IntegerPair, TwinPair, run, some_images

# P(rank) of methods/dflare.md section 4, from the current rank k1.
METROPOLIS = {
    0: [0.2164, 0.1855, 0.1590, 0.1363, 0.1168, 0.1001, 0.0858],
    3: [0.1607, 0.1607, 0.1607, 0.1607, 0.1378, 0.1181, 0.1012],
    6: [1 / 7] * 7,
}
UNIFORM = [1 / 7] * 7


def law(selection: str, k1: int | None) -> list[float]:
    if selection == "uniform" or k1 is None:
        return UNIFORM
    weights = [min(1.0, (6 / 7) ** (k2 - k1)) if selection == "metropolis" else (6 / 7) ** k2 for k2 in range(7)]
    return [w / sum(weights) for w in weights]


def test_law_agrees_with_the_published_figures():
    for k1, probabilities in METROPOLIS.items():
        np.testing.assert_allclose(law("metropolis", k1), probabilities, atol=6e-5)
        np.testing.assert_allclose(law("rank", k1), METROPOLIS[0], atol=6e-5)


def test_law_is_the_limit_of_proposing_and_accepting():
    """A uniform proposal accepted with min(1, (6/7)^(k2 - k1)), else proposed again, as the paper says."""
    rng = np.random.default_rng(0)
    for k1 in (0, 3, 6):
        k2 = rng.integers(0, 7, 200_000)
        k2 = k2[rng.random(k2.size) < (6 / 7) ** np.maximum(k2 - k1, 0)]
        np.testing.assert_allclose(np.bincount(k2) / k2.size, law("metropolis", k1), atol=5e-3)


@pytest.mark.parametrize("row", range(9))
def test_thresholds(row):
    k1, selection = (row, "metropolis") if row < 7 else (0, ("rank", "uniform")[row - 7])
    thresholds = oracle.table("selection_thresholds")[7 * row : 7 * row + 6]
    exact = np.cumsum(law(selection, k1))[:6] * 2**32
    assert np.abs(np.array(thresholds) - exact).max() < 2


@pytest.mark.parametrize("selection", ["metropolis", "rank", "uniform"])
@pytest.mark.parametrize("k1", [None, 0, 3, 6])
def test_rank_frequencies(selection, k1):
    w0 = oracle.words(7, 0, 1, oracle.CHOOSE, 20_000)[:, 0]
    ranks = [oracle.choose_rank(selection, k1, int(w)) for w in w0]
    np.testing.assert_allclose(np.bincount(ranks, minlength=7) / 20_000, law(selection, k1), atol=0.01)


def test_permutations_are_a_bijection():
    edges = [-(-code * 2**32 // 5040) for code in range(5040)]
    orders = {tuple(oracle.permutation(w1)) for w1 in edges}
    assert len(orders) == 5040
    assert oracle.permutation(0) == [0, 1, 2, 3, 4, 5, 6]
    assert oracle.permutation(2**32 - 1) == [6, 5, 4, 3, 2, 1, 0]
    # 1/7 of the codes further on, the next operator leads.
    assert oracle.permutation(edges[720]) == [1, 0, 2, 3, 4, 5, 6]


def test_rank_order():
    ascending, descending = 0, 2**32 - 1
    # 1/2 before 1/3 before none; the unused and the unlucky keep the order of the permutation.
    credit, total = [0, 1, 0, 1, 0, 0, 0], [9, 3, 0, 2, 1, 0, 4]
    assert oracle.ranking(credit, total, ascending) == [3, 1, 0, 2, 4, 5, 6]
    assert oracle.ranking(credit, total, descending) == [3, 1, 6, 5, 4, 2, 0]
    # Equal ratios: the one with more tries first; fully equal ones in the order of the permutation.
    credit, total = [1, 2, 3, 2, 0, 0, 0], [2, 4, 6, 4, 0, 0, 1]
    assert oracle.ranking(credit, total, ascending) == [2, 1, 3, 0, 4, 5, 6]
    assert oracle.ranking(credit, total, descending) == [2, 3, 1, 0, 6, 5, 4]
    # The same as the artifact's credit / (total + 1e-7).
    rng = np.random.default_rng(3)
    for _ in range(200):
        total = rng.integers(0, 6, 7)
        credit = rng.integers(0, total + 1)
        w1 = int(rng.integers(0, 2**32))
        place = oracle.permutation(w1)
        scores = credit / (total + 1e-7)
        artifact = sorted(range(7), key=lambda a: (-round(scores[a], 12), place.index(a)))
        assert oracle.ranking(credit.tolist(), total.tolist(), w1) == artifact


def test_ties_are_in_random_order():
    w1 = oracle.words(5, 0, 1, oracle.CHOOSE, 7_000)[:, 1]
    first = Counter(oracle.ranking([0] * 7, [0] * 7, int(w))[0] for w in w1)
    assert all(abs(first[a] - 1000) < 4 * math.sqrt(1000 * 6 / 7) for a in range(7))


def transitions(outcomes, *, seed: int, rewarded: bool) -> dict[int | None, np.ndarray]:
    """Counts of the drawn rank by the current rank, from the traces alone."""
    counts: dict[int | None, np.ndarray] = {}
    for index, trace in zip(outcomes.seed_index, outcomes.traces, strict=True):
        credit, total, last = [0] * 7, [0] * 7, None
        counters = np.array([[0, step, index, oracle.CHOOSE] for step in range(1, len(trace) + 1)], np.uint32)
        ties = oracle.philox(np.array([seed, 0], np.uint32), counters)[:, 1]
        for entry, w1 in zip(trace, ties, strict=True):
            operator, accepted = int(entry & 7), bool(entry >> 3)
            order = oracle.ranking(credit, total, int(w1))
            k1 = None if last is None else order.index(last)
            counts.setdefault(k1, np.zeros(7))[order.index(operator)] += 1
            total[operator] += 1
            if accepted:
                credit[operator] += 1
                last = operator
        assert (last is not None) == rewarded
    return counts


@pytest.mark.parametrize("selection", ["metropolis", "rank", "uniform"])
def test_native_frequencies(selection):
    """Native traces follow the closed form: every move from every rank, within four standard errors."""
    shape = (1, 4, 4)
    settings = compdx.MCMC(
        budget=121, selection=selection, acceptance="always", bisect=0, coverage="nearest", skip_identity=False
    )
    outcomes = run(settings, compdx.Seeds(some_images(100, shape)), TwinPair(IntegerPair(shape, 3)), chains=50, seed=2)
    counts = transitions(outcomes, seed=2, rewarded=True)
    assert sum(c.sum() for c in counts.values()) == 100 * 120
    assert set(counts) == {None, *range(7)}
    for k1, drawn in counts.items():
        p = np.array(law(selection, k1))
        error = np.sqrt(p * (1 - p) / drawn.sum())
        assert (np.abs(drawn / drawn.sum() - p) < 4 * error).all(), (k1, drawn)


def test_native_choice_is_uniform_until_something_is_accepted():
    shape = (1, 4, 4)
    settings = compdx.MCMC(
        budget=51, selection="metropolis", acceptance="never", bisect=0, coverage="nearest", skip_identity=False
    )
    outcomes = run(settings, compdx.Seeds(some_images(200, shape)), TwinPair(IntegerPair(shape, 3)), seed=4)
    drawn = transitions(outcomes, seed=4, rewarded=False)[None]
    operators = np.bincount(np.concatenate(outcomes.traces), minlength=7)
    for counts in (drawn, operators):
        assert counts.sum() == 200 * 50
        np.testing.assert_allclose(counts / counts.sum(), UNIFORM, atol=0.012)
