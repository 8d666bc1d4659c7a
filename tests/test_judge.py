"""From scores to labels, confidences, novelty and acceptance: oracle against float64, native against oracle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest

import compdx
import oracle
from compdx import ops
from stubs import collect, drive, kinds, run

FORMS = ("logits", "probabilities")


# Exponentials and confidence -----------------------------------------------------------------------------------------


def test_exponential_accuracy():
    """Less than one unit of Q24 everywhere, and 1e-7 relative plus the rounding where it matters."""
    x = -np.linspace(0, 20, 400_001).astype(np.float32)
    e = oracle.exponentials(x).astype(float)
    exact = np.exp(x.astype(float)) * 2**24
    assert e[0] == 2**24
    assert np.abs(e - exact).max() < 0.75
    assert (np.abs(e - exact) <= 1e-7 * exact + 0.51)[x > -17].all()
    assert (np.diff(e) <= 0).all()


@pytest.mark.parametrize("k", [2, 10, 1000])
def test_confidence_error_bound(k):
    """Confidence and state against a float64 softmax: each exponential is off by less than 0.75 / 2^24."""
    rng = np.random.default_rng(k)
    for scale in (0.01, 1, 5, 30, 1e4):
        for _ in range(40):
            x = (rng.normal(size=k) * scale).astype(np.float32)
            p = np.exp(x.astype(float) - x.max())
            p /= p.sum()
            scores = oracle.read_scores(x, "logits")
            bound = k * 0.75 * 2.0**-24
            assert scores.label == int(np.argmax(x))
            assert abs(scores.confidence / oracle.ONE - p.max()) < bound + 2.0**-30
            assert np.abs(scores.state / 2**15 - p).max() < bound + 2.0**-16 + 2.0**-24


def test_large_and_tiny_logits():
    largest = float(np.finfo(np.float32).max)
    for x in ([largest, -largest], [0.0, -17.0], [1e-45, 0.0], [-largest, -largest], [88.0, 88.0, 88.0]):
        scores = oracle.read_scores(np.float32(x), "logits")
        ties = x.count(max(x)) if x[0] != 1e-45 else 2
        assert abs(scores.confidence / oracle.ONE - 1 / ties) < 1e-7
        assert scores.label == 0


def test_probabilities_are_clamped():
    scores = oracle.read_scores(np.float32([-0.5, 1.5, 0.25]), "probabilities")
    assert (scores.label, scores.confidence, scores.state.tolist()) == (1, oracle.ONE, [0, 2**15, 2**13])


# Native, on scores chosen by seed ------------------------------------------------------------------------------------


def numbered_seeds(count: int) -> compdx.Seeds:
    """Seeds that carry their row in their two pixels."""
    rows = np.arange(count)
    return compdx.Seeds(np.stack([rows & 255, rows >> 8], axis=-1).astype(np.uint8).reshape(count, 1, 1, 2))


def looked_up(a: np.ndarray, b: np.ndarray):
    def pair(images):
        rows = images.reshape(-1, 2).astype(int) @ [1, 256] % len(a)
        return a[rows], b[rows]

    return pair


def first_judgement(a: np.ndarray, b: np.ndarray, outputs=("logits", "logits")):
    """What native makes of row i of both models as the scores of seed i, with a budget of one query."""
    settings = compdx.MCMC(budget=1, coverage="nearest")
    return run(settings, numbered_seeds(len(a)), looked_up(a, b), chains=16, outputs=outputs)


@pytest.mark.parametrize("k", [2, 3, 10, 17, 1000])
@pytest.mark.parametrize("outputs", list(product(FORMS, FORMS)), ids="-".join)
def test_native_labels_and_confidences(k, outputs):
    rng = np.random.default_rng(k)
    rows = []
    for form in outputs:
        x = rng.normal(size=(200, k)) * rng.choice([0.01, 1, 4, 20, 3e4], (200, 1))
        if form == "probabilities":
            x = np.exp(x - x.max(axis=1, keepdims=True))
            x /= x.sum(axis=1, keepdims=True)
        x[:20] = np.round(x[:20], 2)  # ties
        rows.append(x.astype(np.float32))
    outcomes = first_judgement(*rows, outputs=outputs)
    read = [[oracle.read_scores(x, form) for x in row] for row, form in zip(rows, outputs, strict=True)]
    deviating = [a.label != b.label for a, b in zip(*read, strict=True)]
    assert any(deviating)
    assert not all(deviating) or k == 1000
    assert kinds(outcomes) == ["seed" if d else "exhausted" for d in deviating]
    for i in np.flatnonzero(deviating):
        for scores, label, confidence in (
            (read[0][i], outcomes.original_label[i], outcomes.original_confidence[i]),
            (read[1][i], outcomes.compressed_label[i], outcomes.compressed_confidence[i]),
        ):
            assert label == scores.label
            assert confidence == scores.confidence / oracle.ONE
    assert (outcomes.queries == 1).all()
    assert (outcomes.step == 0).all()


@pytest.mark.parametrize("isa", ops.available_isas())
@pytest.mark.parametrize("k", [2, 15, 16, 17, 40, 257])
def test_every_instruction_set_reads_a_row_alike(k, isa):
    """Labels, confidences, margins and states; ties, signed zeros, extremes, and one class that has it all."""
    rng = np.random.default_rng(k)
    rows = rng.integers(-3, 4, (64, k)).astype(np.float32)
    rows[::4] *= np.float32(5.3)
    rows[1::8] *= np.float32(-0.0)
    rows[2::8] = rng.choice(np.float32([-3e38, -1e-45, 0.0, 1e-45, 3e38]), rows[2::8].shape)
    rows[3::8, rng.integers(0, k)] = 100.0
    read = [oracle.read_scores(row, "logits") for row in rows]

    seen = ops.verdicts(rows, rows, isa=isa)
    assert seen.labels.tolist() == [[row.label] * 2 for row in read]
    assert seen.confidences.tolist() == [[row.confidence] * 2 for row in read]

    rules = ops.Rules(shape=(1, 1, 2), budget=2, coverage="nearest", capacity=2)
    seeds = np.zeros((len(rows), 1, 1, 2), np.uint8)
    chains = ops.Chains(
        rules, seeds, identities=np.arange(len(rows)), queue=np.arange(len(rows)), count=len(rows), isa=isa
    )
    ops.refill(chains)
    ops.judge(chains, rows, rows)
    assert chains.records["best_margin"].tolist() == [row.margin for row in read]
    states = chains.state()["coverage"].view(np.uint16).reshape(len(rows), 2, 2, k)[:, 0]
    assert states.tolist() == [[row.state.tolist()] * 2 for row in read]


def test_ties_take_the_lowest_index():
    a = np.float32([[1, 1, 0], [0, 1, 1], [2, 2, 2], [-0.0, 0.0, -1]])
    b = np.float32([[0, 1, 1], [1, 0, 1], [0, 0, 1], [-1, 0.0, -0.0]])
    outcomes = first_judgement(a, b)
    assert outcomes.original_label.tolist() == [0, 1, 0, 0]
    assert outcomes.compressed_label.tolist() == [1, 0, 2, 1]
    assert kinds(outcomes) == ["seed"] * 4


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("k", [2, 10, 1000])
def test_non_finite_scores_name_the_model(form, bad, k):
    clean = np.linspace(0, 1, k, dtype=np.float32)
    a, b = np.tile(clean, (5, 1)), np.tile(clean, (5, 1))
    a[1, 0] = b[2, k - 1] = a[3, k // 2] = b[3, 0] = bad
    outcomes = first_judgement(a, b, (form, form))
    assert kinds(outcomes) == ["exhausted", "non-finite", "non-finite", "non-finite", "exhausted"]
    assert outcomes.non_finite.tolist() == [0, 1, 2, 3, 0]
    assert outcomes.original_label[1:4].tolist() == [-1, k - 1, -1]
    assert outcomes.compressed_label[1:4].tolist() == [k - 1, -1, -1]
    assert np.isnan(outcomes.original_confidence[[1, 3]]).all()
    assert np.isnan(outcomes.compressed_confidence[[2, 3]]).all()
    assert not np.isnan(outcomes.original_confidence[2])
    assert not np.isnan(outcomes.compressed_confidence[1])


# Novelty and acceptance: scores chosen by step -----------------------------------------------------------------------

Row = Sequence[float]


def accepted(script: list[tuple[Row, Row]], **settings) -> list[bool]:
    """Native's decisions on mutants 1.. when step t of the only chain gets the scores of row t (probabilities)."""
    loop = compdx.MCMC(budget=len(script), **settings).start(
        compdx.Seeds(np.zeros((1, 1, 2, 2), np.uint8)), chains=1, outputs=("probabilities", "probabilities")
    )
    rows = iter(script)

    def pair(_images):
        return tuple(np.array([row], np.float32) for row in next(rows))

    (trace,) = collect(drive(loop, pair)).traces
    return [bool(entry >> 3) for entry in trace]


def moved(delta: float) -> tuple[Row, Row]:
    """Confidence 1 in class 0 of both; delta moved from class 1 to class 2 of the original: 2 delta^2 from moved(0)."""
    return (1.0, 0.95 - delta, delta), (1.0, 0.0, 0.0)


def test_archive_example_of_the_oracle():
    def element(delta: float) -> tuple[np.ndarray, np.ndarray]:
        a = oracle.read_scores(np.float32([1 - delta, delta] + [0] * 8), "probabilities").state
        return a, oracle.read_scores(np.float32([1] + [0] * 9), "probabilities").state

    archive = oracle.Nearest(64, 0.5)
    assert archive.enter(*element(0))
    assert [archive.enter(*element(delta)) for delta in (0.49, 0.51, 0.60)] == [False, True, False]


def test_native_nearest_state():
    script = [moved(delta) for delta in (0, 0.49, 0.51, 0.60, 0, 0.51)]
    assert accepted(script, acceptance="change", coverage="nearest") == [False, True, False, False, False]


def test_native_nearest_threshold_is_strict():
    script = [
        ((1.0, 0.5, 0.0), (1.0, 0.5, 0.0)),
        ((1.0, 0.0, 0.0), (1.0, 0.0, 0.0)),
        ((1.0, 0.0, 0.5), (1.0, 0.0, 0.501)),
    ]
    assert accepted(script, acceptance="change", coverage="nearest") == [False, True]


def test_native_nearest_forgets_the_oldest():
    """Three states far apart in a memory of two: each return is novel again; in a memory of three none is."""
    x, y, z = ((1.0, 0.9, 0.0, 0.0), (1.0, 0.0, 0.9, 0.0), (1.0, 0.0, 0.0, 0.9))
    script = [(state, state) for state in (x, y, z, x, x, y, z)]
    settings = {"acceptance": "change", "coverage": "nearest"}
    assert accepted(script, capacity=2, **settings) == [True, True, True, False, True, True]
    assert accepted(script, capacity=3, **settings) == [True, True, False, False, False, False]


def test_native_hash_cells():
    """Four cells a unit: .375 to .624 is one of them. The seed's cell is known from the start."""
    script = [((1.0, p), (1.0, 0.5)) for p in (0.5, 0.62, 0.63, 0.38, 0.37, 0.63)]
    assert accepted(script, acceptance="change", coverage="hash", grid=4) == [False, True, False, True, False]


def test_native_hash_forgets_as_the_oracle_does():
    """Few more states than a table of 16 places keeps, visited again and again: each lost tag shows as novelty."""
    rng = np.random.default_rng(12)
    lost = 0
    for pool in range(40):
        cells = rng.integers(0, 10, (9 + pool % 6, 2, 2))
        visits = rng.integers(0, len(cells), 150)
        script = [tuple((1.0, *(cells[v, m] / 9)) for m in (0, 1)) for v in visits]
        archive = oracle.Hash(16, 9)
        novel = [archive.enter(*(oracle.read_scores(row, "probabilities").state for row in step)) for step in script]
        assert accepted(script, acceptance="change", coverage="hash", grid=9, capacity=16) == novel[1:]
        lost += sum(novel) - len(np.unique(visits))
    assert lost > 500


def test_native_hash_remembers_the_state_whose_hash_folds_to_zero():
    """An empty place is a tag of 0, so that state's tag is 1. It was found by trying 2^31 states."""
    zero = (32699 / 32768, 8112 / 32768), (1.0, 29400 / 32768)
    assert oracle.tag_of(*(oracle.read_scores(row, "probabilities").state for row in zero), 32768) == 1
    other = (1.0, 0.0), (1.0, 0.0)
    seen = accepted([other, zero, zero], acceptance="change", coverage="hash", grid=32768)
    assert seen == [True, False]


def test_native_hash_tells_the_models_apart():
    script = [((1.0, a), (1.0, b)) for a, b in ((0.0, 1.0), (1.0, 0.0), (0.0, 1.0))]
    assert accepted(script, acceptance="change", coverage="hash", grid=4) == [True, False]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "coverage", [{"coverage": "hash", "grid": 32768}, {"coverage": "nearest", "threshold": 2 / 2**30}]
)
def test_native_states_to_the_last_bit(form, coverage):
    """States a few units of Q15 apart: novelty tells how each of them was rounded."""
    rng = np.random.default_rng(8)
    base = np.array([3.0, 1.0, 0.5, -2.0, 2.5]) if form == "logits" else np.array([0.5, 0.1, 0.05, 0.001, 0.3])
    rows = (base + rng.integers(-3, 4, (400, 2, 5)) * (base if form == "logits" else 0.5) * 2.0**-16).astype(np.float32)
    # The last row deviates.
    rows[-1] = np.eye(5)[:2]
    settings = {"budget": 400, "acceptance": "change", "overflow": "clip", "skip_identity": False} | coverage
    seed, outputs = np.zeros((1, 2, 2), np.uint8), (form, form)
    steps = iter(rows)
    search = oracle.OracleSearch(selection="metropolis", **settings)
    right = search.run(seed, 0, lambda _images: next(steps)[:, None], outputs=outputs)
    steps = iter(rows)
    loop = compdx.MCMC(**settings).start(compdx.Seeds(seed[None]), chains=1, outputs=outputs)
    outcomes = collect(drive(loop, lambda _images: tuple(next(steps)[:, None])))
    np.testing.assert_array_equal(outcomes.traces[0], right.trace)
    assert outcomes.states[0] == right.states
    assert 10 < right.accepted < 380


def deltas(*pairs: tuple[float, bool]) -> list[tuple[Row, Row]]:
    """Scores with these differences of confidence; a marked state lies further than 1 from all unmarked ones."""
    return [
        ((0.95, 0.9 * new, 0.9 * new), (0.95 - d, 0.0, 0.0)) if d >= 0 else ((0.95 + d, 0, 0), (0.95, 0, 0))
        for d, new in pairs
    ]


F, T = False, True


@pytest.mark.parametrize(
    ("best", "mutant", "change"),
    [
        ((0.5, F), (0.2, F), True),
        ((0.2, F), (0.5, F), True),
        ((0.5, F), (0.5005, F), False),
        ((0.5, F), (0.5015, F), True),
        ((0.5, F), (-0.5, F), False),
        ((0.5, F), (0.5, T), True),
    ],
)
def test_change_truth_table(best, mutant, change):
    """Section 5 of methods/dflare.md. The first mutant is accepted: best starts at 0, not at the seed's own."""
    script = deltas((best[0], F), best, mutant)
    assert accepted(script, acceptance="change", coverage="nearest", threshold=1.0) == [True, change]
    now, old = (oracle.Fitness(round(abs(d) * oracle.ONE), 0, new) for d, new in (mutant, best))
    assert oracle.accepts("change", now, old) is change


def test_change_needs_a_change_from_zero():
    script = deltas((0.5, F), (0.0, F), (0.0009, F), (0.0011, F))
    assert accepted(script, acceptance="change", coverage="nearest", threshold=1.0) == [False, False, True]


@pytest.mark.parametrize(
    ("script", "answer"),
    [
        # From the seed's own difference upwards; as large is enough.
        ([(0.3, F), (0.25, F), (0.3, F), (0.5, F), (0.4, F), (-0.5, F), (-0.51, F)], [F, T, T, F, T, T]),
        # A new state beats any known one, also a smaller difference; then nothing known does.
        ([(0.5, F), (0.25, T), (0.75, F)], [T, F]),
    ],
)
def test_improve_truth_table(script, answer):
    assert accepted(deltas(*script), acceptance="improve", coverage="nearest", threshold=1.0) == answer


def test_margin_truth_table():
    """The smaller lead of the two models over their runners-up must not grow; it starts from the seed's."""
    rows = [
        ((0.8, 0.5, 0.1), (0.9, 0.1, 0.2)),  # .3 in the original
        ((0.8, 0.4, 0.1), (0.8, 0.4, 0.2)),  # .4 in both
        ((0.8, 0.0, 0.5), (0.9, 0.0, 0.0)),  # .3 again, from another runner-up
        ((0.9, 0.0, 0.0), (0.8, 0.6, 0.1)),  # .2 in the compressed
        ((0.5, 0.25, 0.1), (0.5, 0.2, 0.25)),  # .25 in both
        ((0.7, 0.7, 0.7), (1.0, 0.0, 0.0)),  # a tie: 0
        ((0.7, 0.6999, 0.0), (0.7, 0.6999, 0.0)),
        ((0.0, 0.0, 0.0), (0.4, 0.2, 0.2)),
    ]
    assert accepted(rows, acceptance="margin", coverage="nearest") == [F, T, T, F, T, F, T]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("k", [2, 3, 10, 1000])
def test_native_margins_to_the_last_bit(form, k):
    """Leads that differ by units of the last place, in either model: acceptance tells how each was rounded."""
    rng = np.random.default_rng(k)
    base = rng.normal(size=k) if form == "logits" else 0.3 + 0.05 * rng.normal(size=k)
    rows = base + rng.integers(0, 3, (300, 2, k)) * 2.0**-22
    rows[:, :, k // 2] = rows.max(axis=(1, 2), keepdims=True)[:, :, 0] + rng.integers(1, 40, (300, 2)) * 2.0**-22
    rows = rows.astype(np.float32)
    steps = iter(rows)
    loop = compdx.MCMC(budget=300, acceptance="margin").start(
        compdx.Seeds(np.zeros((1, 1, 2, 2), np.uint8)), chains=1, outputs=(form, form)
    )
    (trace,) = collect(drive(loop, lambda _images: tuple(next(steps)[:, None]))).traces
    margins = [min(oracle.read_scores(x, form).margin for x in row) for row in rows]
    lowest = np.minimum.accumulate(margins)
    assert (trace >> 3).tolist() == [int(m <= low) for m, low in zip(margins[1:], lowest[:-1], strict=True)]
    assert (trace >> 3).sum() > 3


def test_native_margin_of_logits_is_rounded_down():
    """The same lead over the runner-up, and a third class that moves the sum by fractions of the last place."""
    third = np.random.default_rng(0).uniform(1.48, 1.52, 300)
    rows = np.stack([np.full(300, 2.0), np.full(300, 2.0 - 2.0**-20), third], axis=1).astype(np.float32)
    steps = iter(rows)
    loop = compdx.MCMC(budget=300, acceptance="margin").start(
        compdx.Seeds(np.zeros((1, 1, 2, 2), np.uint8)), chains=1, outputs=("logits", "probabilities")
    )
    (trace,) = collect(drive(loop, lambda _images: (next(steps)[None], np.float32([[1, 0, 0]])))).traces
    margins = [oracle.read_scores(x, "logits").margin for x in rows]
    lowest = np.minimum.accumulate(margins)
    assert len(set(margins)) <= 4
    assert (trace >> 3).tolist() == [int(m <= low) for m, low in zip(margins[1:], lowest[:-1], strict=True)]


@pytest.mark.parametrize("k", [2, 10, 1000])
def test_margin_error_bound(k):
    rng = np.random.default_rng(k)
    for scale in (0.01, 1, 5, 30):
        for _ in range(40):
            x = (rng.normal(size=k) * scale).astype(np.float32)
            p = np.sort(np.exp(x.astype(float) - x.max()))
            exact = (p[-1] - p[-2]) / p.sum()
            assert abs(oracle.read_scores(x, "logits").margin / oracle.ONE - exact) < k * 0.75 * 2.0**-24 + 2.0**-23


@pytest.mark.parametrize("rule", ["always", "never"])
def test_wiring_without_fitness(rule):
    script = deltas((0.5, F), (0.1, F), (0.5, F), (0.5, T), (0.0, F))
    assert accepted(script, acceptance=rule, coverage="nearest") == [rule == "always"] * 4
