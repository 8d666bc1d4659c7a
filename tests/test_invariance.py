"""A trajectory is a pure function of run seed, seed index and scores: native runs against the oracle and each other."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

import compdx
import compdx.ops as ops
import oracle
from compdx.ops.backend import Host
from stubs import (
    IntegerPair,
    TwinPair,
    assert_bytes,
    assert_same,
    collect,
    drive,
    kinds,
    on_cuda,
    run,
    softmax,
    some_images,
)

ISAS = ops.available_isas()

PLAIN: dict[str, Any] = {
    "budget": 80,
    "selection": "metropolis",
    "acceptance": "improve",
    "bisect": 0,
    "coverage": "hash",
    "grid": 8,
    "overflow": "clip",
    "skip_identity": False,
}
ARTIFACT = PLAIN | {"selection": "rank", "acceptance": "change", "coverage": "nearest", "overflow": "wrap"}
# Name: settings, shape of the images, classes, what each model returns.
CASES: dict[str, tuple[dict[str, Any], tuple[int, int, int], int, tuple[str, str]]] = {
    "plain": (PLAIN, (1, 8, 8), 10, ("logits", "logits")),
    "artifact": (ARTIFACT, (1, 8, 8), 10, ("logits", "logits")),
    "skip": (PLAIN | {"skip_identity": True, "grid": 3}, (3, 5, 7), 3, ("logits", "logits")),
    "margin": (PLAIN | {"acceptance": "margin"}, (1, 8, 8), 10, ("logits", "logits")),
    "margin-mixed": (ARTIFACT | {"acceptance": "margin"}, (3, 5, 7), 3, ("probabilities", "logits")),
    "bisect": (PLAIN | {"acceptance": "margin", "bisect": 12}, (1, 8, 8), 10, ("logits", "logits")),
    "bisect-linf": (PLAIN | {"bisect": 3, "linf": 30, "overflow": "wrap"}, (3, 5, 7), 3, ("logits", "probabilities")),
    "bisect-artifact": (ARTIFACT | {"bisect": 255}, (1, 9, 4), 10, ("probabilities", "logits")),
    "bisect-never": (PLAIN | {"acceptance": "never", "bisect": 1}, (1, 8, 8), 3, ("logits", "logits")),
    "change-hash": (PLAIN | {"acceptance": "change"}, (3, 5, 7), 10, ("logits", "logits")),
    "improve-nearest": (ARTIFACT | {"acceptance": "improve", "threshold": 0.1}, (1, 9, 4), 3, ("logits", "logits")),
    "always-rank": (PLAIN | {"acceptance": "always", "selection": "rank"}, (1, 8, 8), 10, ("logits", "logits")),
    "never-uniform": (PLAIN | {"acceptance": "never", "selection": "uniform"}, (1, 8, 8), 10, ("logits", "logits")),
    "uniform-wrap": (
        PLAIN | {"selection": "uniform", "overflow": "wrap", "skip_identity": True},
        (3, 5, 7),
        3,
        ("logits", "logits"),
    ),
    "linf": (PLAIN | {"linf": 12, "overflow": "wrap"}, (1, 8, 8), 10, ("logits", "logits")),
    "linf-artifact": (ARTIFACT | {"linf": 40}, (3, 5, 7), 3, ("logits", "logits")),
    "tiny-hash": (ARTIFACT | {"coverage": "hash", "capacity": 16, "budget": 160}, (1, 8, 8), 10, ("logits", "logits")),
    "tiny-nearest": (ARTIFACT | {"capacity": 2, "threshold": 0.02, "budget": 160}, (1, 8, 8), 10, ("logits", "logits")),
    "two-classes": (PLAIN, (1, 8, 8), 2, ("logits", "probabilities")),
    "many-classes": (
        ARTIFACT | {"budget": 20, "coverage": "hash", "threshold": 0.01},
        (1, 8, 8),
        1000,
        ("logits", "logits"),
    ),
    "mixed": (PLAIN | {"acceptance": "change"}, (1, 8, 8), 10, ("probabilities", "logits")),
    "probabilities": (ARTIFACT, (1, 8, 8), 10, ("probabilities", "probabilities")),
}


def case(name: str, count: int = 40):
    settings, shape, classes, outputs = CASES[name]
    pair = softmax(
        IntegerPair(shape, classes, drop_bits=4), models=[m for m in (0, 1) if outputs[m] == "probabilities"]
    )
    return settings, some_images(count, shape, seed=classes), pair, outputs


def assert_is(outcomes, i: int, right: oracle.Outcome) -> None:
    """Row i of native outcomes is what the oracle says."""
    assert kinds(outcomes)[i] == right.kind, f"seed {right.seed_index}"
    np.testing.assert_array_equal(outcomes.traces[i], right.trace, err_msg=f"trace of seed {right.seed_index}")
    columns = [
        "seed_index",
        "step",
        "queries",
        "accepted",
        "states",
        "seed_label",
        "original_label",
        "compressed_label",
        "original_confidence",
        "compressed_confidence",
        "non_finite",
    ]
    # An exhausted chain leaves no picture.
    if right.kind != "exhausted":
        columns += ["l2_squared", "linf"]
        assert_bytes(outcomes.images[i], right.image, f"image of seed {right.seed_index}")
    for column in columns:
        np.testing.assert_equal(
            getattr(outcomes, column)[i], getattr(right, column), err_msg=f"{column} of {right.seed_index}"
        )


# Native against oracle -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_whole_runs_equal_the_oracle(name):
    settings, images, pair, outputs = case(name)
    search = oracle.OracleSearch(**settings)
    outcomes = run(compdx.MCMC(**settings), compdx.Seeds(images), pair, chains=13, seed=2**63 + 5, outputs=outputs)
    assert len(outcomes.seed_index) == len(images)
    rights = [search.run(image, i, pair, seed=2**63 + 5, outputs=outputs) for i, image in enumerate(images)]
    for i, right in enumerate(rights):
        assert_is(outcomes, i, right)
    # The comparison is worth something: chains that ran on, and chains that found something on the way.
    found = sum(right.kind in ("effective", "invalid") for right in rights)
    assert found >= 5
    assert sum(right.step for right in rights) > 200
    if name.startswith("tiny"):
        assert max(right.states for right in rights) > settings["capacity"]


def test_artifact_settings():
    settings, images, pair, _ = case("artifact")
    budget = settings["budget"]
    by_name = run(compdx.MCMC.artifact(budget=budget), compdx.Seeds(images), pair, seed=3)
    assert_same(by_name, run(compdx.MCMC(**settings), compdx.Seeds(images), pair, seed=3))


def test_default_hash_table_forgets_nothing():
    settings, images, pair, _ = case("change-hash")
    for budget in (5, 31, 32, 33, 65):
        few = settings | {"budget": budget}
        default = run(compdx.MCMC(**few), compdx.Seeds(images), pair)
        assert_same(default, run(compdx.MCMC(**few, capacity=65536), compdx.Seeds(images), pair))


def test_identities_beyond_32_bits():
    settings, images, pair, _ = case("plain", 6)
    indices = np.array([2**32, 2**32 + 1, 1, 0, 2**55 + 7, 2**56 - 1])
    outcomes = run(compdx.MCMC(**settings), compdx.Seeds(images, indices=indices), pair, seed=1)
    search = oracle.OracleSearch(**settings)
    for i, row in enumerate(np.argsort(indices)):
        assert_is(outcomes, i, search.run(images[row], int(indices[row]), pair, seed=1))


def test_labels_are_no_input():
    settings, images, pair, _ = case("plain")
    labelled = compdx.Seeds(images, np.arange(len(images)) % 10)
    assert_same(run(compdx.MCMC(**settings), labelled, pair), run(compdx.MCMC(**settings), compdx.Seeds(images), pair))


# Native against itself -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def baseline():
    settings, images, pair, _ = case("plain", 100)
    return run(compdx.MCMC(**settings), compdx.Seeds(images), pair, chains=64, seed=7, threads=1)


def again(*, indices: np.ndarray | None = None, scorer=None, **start):
    settings, images, pair, _ = case("plain", 100)
    if indices is None:
        indices = np.arange(len(images))
    seeds = compdx.Seeds(images[indices], indices=indices)
    return run(compdx.MCMC(**settings), seeds, scorer(pair) if scorer else pair, **{"chains": 64, "seed": 7} | start)


@pytest.mark.parametrize("chains", [1, 7, 64, 100, 1000])
def test_number_of_chains_is_no_input(baseline, chains):
    assert_same(again(chains=chains), baseline)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_number_of_threads_is_no_input(baseline, threads):
    assert_same(again(threads=threads), baseline)


@pytest.mark.parametrize("isa", ISAS)
def test_instruction_set_is_no_input(baseline, isa):
    assert_same(again(isa=isa), baseline)


@pytest.mark.parametrize("chains", [7, 1000])
def test_order_of_seeds_is_no_input(baseline, chains):
    for indices in (np.arange(100)[::-1], np.random.default_rng(0).permutation(100)):
        assert_same(again(indices=indices, chains=chains), baseline)


def test_other_seeds_are_no_input(baseline):
    """A seed searched alone ends as it did among the others."""
    for i in (0, 41, 99):
        alone = again(indices=np.array([i]), chains=3)
        assert alone.step[0] == baseline.step[i]
        np.testing.assert_array_equal(alone.traces[0], baseline.traces[i])
        assert alone.kind[0] == baseline.kind[i]


def test_run_seed_is_an_input(baseline):
    for seed in (8, 7 + 2**32):
        other = again(seed=seed)
        np.testing.assert_array_equal(other.seed_label, baseline.seed_label)
        ran = np.flatnonzero(baseline.step > 3)
        assert np.mean([np.array_equal(other.traces[i], baseline.traces[i]) for i in ran]) < 0.1


def test_scores_of_idle_slots_are_no_input(baseline):
    """With more slots than seeds, the scores of slots without work may be anything."""

    def poisoned(pair):
        def call(images):
            a, b = pair(images)
            a[100:], b[100:] = np.nan, np.inf
            return a, b

        return call

    assert_same(again(chains=117, scorer=poisoned), baseline)


def saved(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state through a file: plain arrays, no pickle."""
    file = io.BytesIO()
    np.savez(file, **state)
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.mark.parametrize(
    "name", ["plain", "margin", "artifact", "tiny-hash", "tiny-nearest", "linf", "bisect", "bisect-linf"]
)
@pytest.mark.parametrize("chains", [7, 64])
def test_interrupted_runs_end_the_same(name, chains):
    settings, images, pair, outputs = case(name, 60)
    seeds, mcmc = compdx.Seeds(images), compdx.MCMC(**settings)
    start = {"chains": chains, "seed": 5, "outputs": outputs}
    whole = run(mcmc, seeds, pair, **start)
    for until in np.random.default_rng([chains, len(name)]).integers(1, 60, 3):
        loop = mcmc.start(seeds, **start)
        parts = drive(loop, pair, iterations=int(until))
        state = saved(loop.state())
        for more in (0, 9):
            # Interrupted at the checkpoint, or killed some time after it: what has ended is not searched again.
            parts += drive(loop, pair, iterations=more)
            done = np.concatenate([part.seed_index for part in parts])
            resumed = mcmc.start(seeds, **start, state=state, done=done.tolist())
            assert_same(collect(parts + drive(resumed, pair)), whole)


def test_resume_without_checkpoint_searches_what_is_not_done(baseline):
    settings, images, pair, _ = case("plain", 100)
    seeds, mcmc = compdx.Seeds(images), compdx.MCMC(**settings)
    parts = drive(mcmc.start(seeds, chains=8, seed=7), pair, iterations=70)
    done = np.concatenate([part.seed_index for part in parts])
    assert 0 < len(done) < 100
    rest = drive(mcmc.start(seeds, chains=16, seed=7, done=done), pair)
    assert_same(collect(parts + rest), baseline)


@pytest.mark.parametrize("lag", [1, 3, 9])
@pytest.mark.parametrize("budget", [1, 2, 40])
def test_news_of_the_device_may_come_late(monkeypatch, lag, budget):
    """A loop on CUDA knows its counters some iterations late, and reads ended chains only when many have gathered."""
    settings, images, pair, _ = case("plain", 100)
    mcmc, seeds = compdx.MCMC(**settings | {"budget": budget}), compdx.Seeds(images)
    prompt = run(mcmc, seeds, pair, chains=7, seed=7)
    news = []

    def late(self, array):
        news.append(self.get(array))
        return news[max(0, len(news) - 1 - lag)]

    monkeypatch.setattr(Host, "poll", late)
    loop = mcmc.start(seeds, chains=7, seed=7)
    while loop.active:  # and no take() before the end, which would empty the ring
        loop.tell(*pair(loop.ask()))
    assert len(news) > lag
    assert_same(collect([loop.take()]), prompt)


def test_checkpointing_changes_nothing(baseline):
    settings, images, pair, _ = case("plain", 100)
    loop = compdx.MCMC(**settings).start(compdx.Seeds(images), chains=9, seed=7)
    parts = []
    while loop.active:
        scores = pair(loop.ask())
        loop.tell(*scores)
        loop.state()
        parts.append(loop.take())
    assert_same(collect(parts), baseline)


def test_progress_counts(baseline):
    settings, images, pair, _ = case("plain", 100)
    loop = compdx.MCMC(**settings).start(compdx.Seeds(images), chains=9, seed=7)
    ended = sum(len(part.seed_index) for part in drive(loop, pair, iterations=30))
    assert loop.progress.seeds == 100
    assert loop.progress.ended == ended
    assert loop.progress.iterations == 30
    assert loop.progress.queries == 30 * 9
    drive(loop, pair)
    assert loop.progress.queries == baseline.queries.sum()
    assert loop.progress.ended == 100
    endings = kinds(baseline)
    assert loop.progress.exhausted == endings.count("exhausted")
    assert loop.progress.already_deviating == endings.count("seed")


# What must hold of any run -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("acceptance", ["margin", "improve", "change", "always", "never"])
@pytest.mark.parametrize("coverage", ["hash", "nearest"])
def test_equal_models_never_deviate(acceptance, coverage):
    shape = (1, 8, 8)
    settings = compdx.MCMC(**PLAIN | {"budget": 33, "acceptance": acceptance, "coverage": coverage})
    outcomes = run(settings, compdx.Seeds(some_images(50, shape)), TwinPair(IntegerPair(shape, 10)), chains=16)
    assert kinds(outcomes) == ["exhausted"] * 50
    assert (outcomes.queries == 33).all()
    assert (outcomes.step == 32).all()
    if acceptance in ("always", "never"):
        assert (outcomes.accepted == (32 if acceptance == "always" else 0)).all()
    elif acceptance == "margin":
        assert 0 < outcomes.accepted.sum() < outcomes.step.sum()
    else:
        # Every difference is 0: `change` takes the new states and nothing else, `improve` those and more.
        news = outcomes.states - 1
        assert news.sum() > 100
        assert (outcomes.accepted == news).all() if acceptance == "change" else (outcomes.accepted >= news).all()


@pytest.mark.parametrize("acceptance", ["always", "never", "improve", "margin"])
@pytest.mark.parametrize("linf", [None, 9])
def test_every_mutant_is_one_operator_from_its_parent(acceptance, linf):
    """The images that ask() hands out, recomputed with apply from the trace: from the seed alone with never."""
    shape, index, seed = (3, 6, 5), 2**32 + 3, 11
    image = some_images(1, shape)
    settings = PLAIN | {"budget": 40, "acceptance": acceptance, "linf": linf, "overflow": "wrap"}
    pair = TwinPair(IntegerPair(shape, 4))
    asked = []

    def watched(images):
        asked.append(images.copy())
        return pair(images)

    outcomes = run(compdx.MCMC(**settings), compdx.Seeds(image, indices=[index]), watched, chains=1, seed=seed)
    (trace,) = outcomes.traces
    assert len(asked) == len(trace) + 1 == 40
    assert_bytes(asked[0], image)
    parent = image
    for step, entry in enumerate(trace, start=1):
        mutant = ops.apply(
            parent,
            ops.OPERATORS[entry & 7],
            seed=seed,
            index=index,
            step=step,
            overflow="wrap",
            linf=linf,
            origin=image,
        )
        assert_bytes(asked[step], mutant, f"step {step}")
        parent = mutant if entry >> 3 else parent
    assert (
        outcomes.accepted[0] == (trace >> 3).sum() == {"always": 39, "never": 0}.get(acceptance, outcomes.accepted[0])
    )


def test_improve_never_loses_ground():
    """With nothing novel, |d| of the accepted images (float64 softmax) never falls."""
    shape = (1, 8, 8)
    settings = PLAIN | {"coverage": "nearest", "threshold": 3.9, "budget": 150}
    pair = IntegerPair(shape, 10, drop_bits=4)
    climbs = 0
    for i, image in enumerate(some_images(20, shape, seed=10)):
        differences = []

        def watched(images, differences=differences):
            rows = pair(images)
            tops = [1 / np.exp(x.astype(float) - x.max()).sum() for x in (rows[0][0], rows[1][0])]
            differences.append(abs(tops[0] - tops[1]))
            return rows

        outcomes = run(compdx.MCMC(**settings), compdx.Seeds(image[None], indices=[i]), watched, chains=1)
        (trace,) = outcomes.traces
        taken = np.array(differences)[np.r_[True, trace >> 3 == 1]]
        assert (np.diff(taken) > -4e-6).all()
        climbs += (np.diff(taken) > 1e-3).sum()
    assert climbs > 20


def test_bisection_closes_in_on_the_boundary():
    """Every blend lies between the current and the far image, takes the place of the one on its side, and they are
    drawn until one deviates or their number is spent. What is asked is all that this test looks at."""
    shape, bisect = (1, 8, 8), 12
    pair = IntegerPair(shape, 10, drop_bits=2)
    settings = PLAIN | {"budget": 400, "acceptance": "margin", "bisect": bisect, "skip_identity": True}
    bisections = 0
    for index, image in enumerate(some_images(30, shape, seed=3)):
        asked = []

        def watched(images, asked=asked):
            asked.append(images[0].astype(int))
            return pair(images)

        outcomes = run(compdx.MCMC(**settings), compdx.Seeds(image[None], indices=[index]), watched, chains=1, seed=5)
        labels = [[int(np.argmax(row)) for row in pair(mutant[None].astype(np.uint8))] for mutant in asked]
        near, far, left = asked[0], None, 0
        for step, code in enumerate(outcomes.traces[0], start=1):
            mutant, (a, b) = asked[step], labels[step]
            assert (code & 7 == 7) == (left > 0), "blends are drawn while there are some left, and never else"
            if left:
                assert (mutant >= np.minimum(near, far)).all()
                assert (mutant <= np.maximum(near, far)).all()
                left -= 1
            if a != b:
                assert step == len(outcomes.traces[0])
            elif a != labels[0][0]:
                assert not code & 8
                left = left if code & 7 == 7 else bisect
                bisections += code & 7 != 7
                far = mutant
            elif code & 8:
                near = mutant
            assert code & 7 != 7 or a != b or bool(code & 8) == (a == labels[0][0])
    assert bisections > 10


def test_bisection_saves_queries():
    """Two linear classifiers, one with coarse weights: there is nothing between the boundaries but deviations."""
    weights = np.random.default_rng(0).integers(-32, 33, (64, 10))
    coarse = (weights + 4) // 8 * 8

    def pair(images):
        pixels = images.reshape(len(images), 64).astype(int) - 128
        return tuple((pixels @ w * 2.0**-12).astype(np.float32) for w in (weights, coarse))

    seeds = compdx.Seeds(some_images(200, (1, 8, 8)))
    with_it, without = (run(compdx.MCMC(bisect=blends), seeds, pair) for blends in (12, 0))
    assert kinds(with_it).count("exhausted") <= kinds(without).count("exhausted")
    assert with_it.queries.sum() < 0.8 * without.queries.sum()


def test_margin_never_grows():
    """The smaller margin of the two models (float64 softmax) never grows over the accepted images, and shrinks."""
    shape = (1, 8, 8)
    pair = IntegerPair(shape, 10, drop_bits=4)
    shrunk = 0
    for i, image in enumerate(some_images(20, shape, seed=10)):
        margins = []

        def watched(images, margins=margins):
            rows = pair(images)
            tops = [np.sort(np.exp(x[0].astype(float) - x[0].max()) / np.exp(x[0] - x[0].max()).sum()) for x in rows]
            margins.append(min(p[-1] - p[-2] for p in tops))
            return rows

        outcomes = run(compdx.MCMC(**PLAIN | {"acceptance": "margin"}), compdx.Seeds(image[None]), watched, chains=1)
        (trace,) = outcomes.traces
        taken = np.array(margins)[np.r_[True, trace >> 3 == 1]]
        assert (np.diff(taken) < 4e-6).all(), i
        shrunk += (np.diff(taken) < -1e-3).sum()
    assert shrunk > 20


def test_deviating_seed_costs_one_query():
    settings, images, pair, _ = case("plain", 200)
    a, b = pair(images)
    deviating = a.argmax(axis=1) != b.argmax(axis=1)
    assert 3 < deviating.sum() < 100
    outcomes = run(compdx.MCMC(**settings), compdx.Seeds(images), pair)
    assert [kind == "seed" for kind in kinds(outcomes)] == deviating.tolist()
    assert (outcomes.queries[deviating] == 1).all()
    assert (outcomes.step[deviating] == 0).all()
    assert all(len(outcomes.traces[i]) == 0 for i in np.flatnonzero(deviating))
    assert_bytes(outcomes.images[deviating], images[deviating])


def test_findings_are_facts():
    """Scored again, every reported image deviates, with the reported labels and distances."""
    settings, images, pair, _ = case("plain", 100)
    outcomes = run(compdx.MCMC(**settings), compdx.Seeds(images), pair)
    found = np.isin(kinds(outcomes), ("effective", "invalid", "seed"))
    assert found.sum() > 50
    a, b = (scores.argmax(axis=1) for scores in pair(outcomes.images))
    assert (a != b)[found].all()
    np.testing.assert_array_equal(outcomes.original_label[found], a[found])
    np.testing.assert_array_equal(outcomes.compressed_label[found], b[found])
    before = pair(images)[0].argmax(axis=1)
    np.testing.assert_array_equal(outcomes.seed_label, before)
    effective = np.array(kinds(outcomes)) == "effective"
    np.testing.assert_array_equal(effective[found & (outcomes.step > 0)], (a == before)[found & (outcomes.step > 0)])
    difference = (outcomes.images.astype(int) - images).reshape(100, -1)
    np.testing.assert_array_equal(outcomes.l2_squared[found], (difference**2).sum(axis=1)[found])
    np.testing.assert_array_equal(outcomes.linf[found], np.abs(difference).max(axis=1)[found])


@pytest.mark.parametrize("model", [0, 1])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_scores_end_their_chain_only(model, bad):
    settings, images, pair, _ = case("plain", 60)

    def failing(images):
        rows = pair(images)
        rows[model][images.reshape(len(images), -1).astype(int).sum(axis=1) % 61 == 0, 3] = bad
        return rows

    mcmc, seeds = compdx.MCMC(**settings), compdx.Seeds(images)
    outcomes, healthy = run(mcmc, seeds, failing, chains=16), run(mcmc, seeds, pair, chains=16)
    search = oracle.OracleSearch(**settings)
    ended = np.array([kind == "non-finite" for kind in kinds(outcomes)])
    assert 10 < ended.sum() < 55
    for i in range(60):
        assert_is(outcomes, i, search.run(images[i], i, failing))
        assert outcomes.non_finite[i] == (1 << model) * ended[i]
        common = min(len(outcomes.traces[i]), len(healthy.traces[i])) - 1
        np.testing.assert_array_equal(outcomes.traces[i][: max(common, 0)], healthy.traces[i][: max(common, 0)])
        if not ended[i]:
            np.testing.assert_array_equal(outcomes.traces[i], healthy.traces[i])


# CUDA ----------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_cuda_equals_cpu(name):
    settings, images, pair, outputs = case(name, 100)
    mcmc, seeds = compdx.MCMC(**settings), compdx.Seeds(images)
    start = {"seed": 9, "outputs": outputs}
    cpu = run(mcmc, seeds, pair, chains=64, **start)
    for chains in (1, 64, 257):
        assert_same(run(mcmc, seeds, on_cuda(pair), chains=chains, device="cuda", **start), cpu)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["plain", "tiny-hash", "tiny-nearest", "bisect"])
def test_interrupted_cuda_runs_end_the_same(name):
    settings, images, pair, outputs = case(name, 60)
    mcmc, seeds = compdx.MCMC(**settings), compdx.Seeds(images)
    start = {"chains": 16, "seed": 5, "outputs": outputs, "device": "cuda"}
    whole = run(mcmc, seeds, on_cuda(pair), **start)
    loop = mcmc.start(seeds, **start)
    parts = drive(loop, on_cuda(pair), iterations=31)
    done = np.concatenate([part.seed_index for part in parts])
    resumed = mcmc.start(seeds, **start, state=saved(loop.state()), done=done.tolist())
    assert_same(collect(parts + drive(resumed, on_cuda(pair))), whole)
