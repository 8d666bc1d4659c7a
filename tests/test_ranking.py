"""Rankings, drift, intervals, times: the worked examples of DeltaNN's comparison, SciPy, and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compdx.environments import anova, ranking, speed_gain, time_change, wilson
from compdx.environments.drift import DriftSums

# DeltaNN's example: two top-5 lists of an image, and the times 0.10 s and 0.15 s.
A = np.array([[541, 10, 20, 30, 40]])
B = np.array([[541, 20, 10, 30, 50]])


def lists(draw_classes: int = 9, k: int = 4):
    one = st.permutations(range(draw_classes)).map(lambda order: list(order[:k]))
    return st.tuples(one, one)


def test_worked_example():
    assert ranking.jaccard(A, B) == pytest.approx([4 / 6])
    assert ranking.footrule(A, B) == pytest.approx([76.0])
    assert ranking.overlaps(A, B)[0] == pytest.approx([1, 0.5, 1, 1, 0.8])
    assert ranking.rank_biased_overlap(A, B, extrapolated=False) == pytest.approx([0.57594], abs=5e-6)
    assert ranking.rank_biased_overlap(A, B) == pytest.approx([0.83808], abs=5e-6)
    assert time_change(0.10, 0.15) == pytest.approx(50.0)
    assert speed_gain(0.10, 0.15) == pytest.approx(-1 / 3)


def test_a_list_with_itself():
    assert ranking.jaccard(A, A) == 1
    assert ranking.footrule(A, A) == 100
    assert ranking.rank_biased_overlap(A, A) == pytest.approx([1.0])
    assert ranking.rank_biased_overlap(A, A, extrapolated=False) == pytest.approx([0.67232])  # 1 - .8^5
    assert ranking.kendall_tau(A, A) == 1
    assert time_change(0.1, 0.1) == speed_gain(0.1, 0.1) == 0


def test_lists_without_a_common_class():
    other = A + 1000
    assert ranking.jaccard(A, other) == ranking.footrule(A, other) == ranking.rank_biased_overlap(A, other) == 0
    # Ranks 1..5, then five times 6, against five times 6, then 1..5.
    assert ranking.kendall_tau(A, other) == pytest.approx(brute_tau(A[0], other[0]))
    assert ranking.kendall_tau(A[:, :1], A[:, :1]) == 1
    assert ranking.kendall_tau(A[:, :1], other[:, :1]) == -1


@settings(max_examples=200, deadline=None)
@given(st.lists(lists(), min_size=1, max_size=4))
def test_against_brute_force_and_scipy(pairs):
    a, b = (np.array(side) for side in zip(*pairs, strict=True))
    for row, (x, y) in enumerate(pairs):
        k = len(x)
        common = [c for c in x if c in y]
        assert ranking.jaccard(a, b)[row] == pytest.approx(len(set(x) & set(y)) / len(set(x) | set(y)))
        footrule = 100 / k * sum(1 - abs(x.index(c) - y.index(c)) / (2 * k) for c in common)
        assert ranking.footrule(a, b)[row] == pytest.approx(footrule)
        agreement = [len(set(x[:d]) & set(y[:d])) / d for d in range(1, k + 1)]
        truncated = 0.2 * sum(0.8 ** (d - 1) * agreement[d - 1] for d in range(1, k + 1))
        assert ranking.rank_biased_overlap(a, b, extrapolated=False)[row] == pytest.approx(truncated)
        # Webber's extrapolation: the tail of the series at the last agreement, summed far down.
        tail = 0.2 * sum(0.8 ** (d - 1) * agreement[-1] for d in range(k + 1, 400))
        assert ranking.rank_biased_overlap(a, b)[row] == pytest.approx(truncated + tail)
        assert ranking.kendall_tau(a, b)[row] == pytest.approx(brute_tau(x, y))


def brute_tau(x, y):
    from scipy.stats import kendalltau

    x, y = list(x), list(y)
    union = sorted({*x, *y})
    ranks = [[side.index(c) + 1 if c in side else len(side) + 1 for c in union] for side in (x, y)]
    return kendalltau(*ranks).statistic


@settings(max_examples=50, deadline=None)
@given(lists(), st.permutations(range(9)))
def test_what_classes_are_called_changes_nothing(pair, renamed):
    a, b = (np.array([side]) for side in pair)
    names = np.array(renamed)
    measures = (ranking.jaccard, ranking.footrule, ranking.rank_biased_overlap, ranking.kendall_tau)
    for measure in measures:
        assert measure(names[a], names[b]) == measure(a, b)
        assert measure(b, a) == pytest.approx(measure(a, b))


def test_top_takes_the_lower_class_of_a_tie():
    scores = np.array([[1.0, 3.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    assert ranking.top(scores, 3).tolist() == [[1, 2, 3], [0, 1, 2]]
    assert ranking.top(scores, 9).shape == (2, 4)


def test_lists_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"one shape with K >= 1, got \[1, 5\] and \[1, 4\]"):
        ranking.jaccard(A, B[:, :4])
    with pytest.raises(ValueError, match="p must be between 0 and 1, got 1"):
        ranking.rank_biased_overlap(A, B, p=1)


@pytest.mark.parametrize("count", [0, 1, 7, 50, 99, 100])
def test_wilson_against_scipy(count):
    from scipy.stats import binomtest

    expected = binomtest(count, 100).proportion_ci(0.95, method="wilson")
    assert wilson(count, 100) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_wilson_of_nothing():
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match=r"count must be in 0\.\.3, got 4"):
        wilson(4, 3)


def test_speeds_compose():
    a, b, c = 0.31, 0.17, 0.44
    assert speed_gain(a, c) == pytest.approx((1 + speed_gain(a, b)) * (1 + speed_gain(b, c)) - 1)
    through = 1 + time_change(a, c) / 100
    assert through == pytest.approx((1 + time_change(a, b) / 100) * (1 + time_change(b, c) / 100))


def test_anova_of_known_lists():
    rng = np.random.default_rng(0)
    times = rng.normal(1.0, 0.01, 100).tolist()
    same = anova(times, times)
    assert (same.f, same.p, same.significant) == (pytest.approx(0.0, abs=1e-12), 1.0, False)
    apart = anova(times, rng.normal(1.1, 0.01, 100).tolist())
    assert apart.p < 1e-10
    assert apart.significant


def test_anova_by_its_definition():
    a, b = [1.0, 2.0, 3.0, 4.0], [2.5, 3.5, 4.5]
    mean = np.mean(a + b)
    between = len(a) * (np.mean(a) - mean) ** 2 + len(b) * (np.mean(b) - mean) ** 2
    within = sum((x - np.mean(side)) ** 2 for side in (a, b) for x in side)
    assert anova(a, b).f == pytest.approx(between / (within / (len(a) + len(b) - 2)))


def test_anova_of_lists_that_do_not_vary():
    assert math.isnan(anova([1.0, 1.0], [1.0, 1.0]).f)
    assert anova([1.0, 1.0], [1.0, 1.0]).p == 1.0
    assert anova([1.0, 1.0], [2.0, 2.0]).p == 0.0
    with pytest.raises(ValueError, match="at least two times, got 1 and 2"):
        anova([1.0], [1.0, 2.0])


def test_drift_by_its_definitions():
    rng = np.random.default_rng(3)
    a = rng.normal(0, 3, (40, 6)).astype(np.float32)
    b = a + rng.normal(0, 0.1, a.shape).astype(np.float32)
    sums = DriftSums(("logits", "logits"))
    for rows in (slice(0, 7), slice(7, 40)):  # chunks change nothing
        sums.add(a[rows], b[rows])
    found, x, y = sums.result(), a.astype(float), b.astype(float)
    p, q = (np.exp(s) / np.exp(s).sum(1, keepdims=True) for s in (x, y))
    assert found.scores == "logits"
    assert found.max_abs == np.abs(x - y).max()
    assert found.rmse == pytest.approx(np.sqrt(np.mean((x - y) ** 2)))
    assert found.sqnr_db == pytest.approx(10 * np.log10((x**2).sum() / ((x - y) ** 2).sum()))
    cosines = [np.dot(s, t) / np.linalg.norm(s) / np.linalg.norm(t) for s, t in zip(x, y, strict=True)]
    assert found.cosine == pytest.approx(np.mean(cosines))
    assert found.kl == pytest.approx(np.mean((p * np.log(p / q)).sum(1)))
    best = x.argmax(1)
    assert found.confidence == pytest.approx(np.mean([abs(p[i, best[i]] - q[i, best[i]]) for i in range(40)]))


def test_drift_of_nothing_is_none():
    a = np.array([[0.0, 0.0, 0.0], [1e30, -2.0, 3.0]], np.float32)
    sums = DriftSums(("logits", "logits"))
    sums.add(a, a)
    found = sums.result()
    assert (found.max_abs, found.rmse, found.cosine, found.kl, found.confidence) == (0, 0, 1, 0, 0)
    assert found.sqnr_db == math.inf
    assert found.to_json()["sqnr_db"] is None


def test_logits_meet_probabilities_as_probabilities():
    """Softmax once, on the side that needs it: DeltaNN's code takes it twice where the model ends in one."""
    logits = np.array([[2.0, 1.0, -1.0]], np.float32)
    powers = np.exp(logits.astype(float))
    sums = DriftSums(("logits", "probabilities"))
    sums.add(logits, (powers / powers.sum()).astype(np.float32))
    found = sums.result()
    assert found.scores == "probabilities"
    assert found.max_abs < 1e-7


def test_every_measure_sees_every_swap():
    """No measure but the overlap of sets is the same for two different orders of the same classes."""
    orders = np.array(list(itertools.permutations(range(4))))
    first = np.broadcast_to(orders[0], orders.shape)
    assert (ranking.jaccard(first, orders) == 1).all()
    for measure in (ranking.footrule, ranking.rank_biased_overlap, ranking.kendall_tau):
        values = measure(first, orders)
        assert values[0] == values.max()
        assert (values[1:] < values[0]).all()
