"""The white-box search: its arithmetic, its pictures, its place on the driver."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import compdx
from compdx.methods.gradient import VARIANCES
from compdx.zoo import digits
from compdx.zoo.networks import build

VARIANCE = np.array(VARIANCES[3], np.float32)
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
OPTIONS: dict[str, Any] = {"mean": MEAN, "std": STD}


def images(count: int, shape: tuple[int, int, int] = (3, 8, 8), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def linear(weight: np.ndarray) -> nn.Module:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = torch.from_numpy(weight.astype(np.float32))
    return nn.Sequential(nn.Flatten(), layer).eval()


def linear_pair(seed: int = 0, noise: float = 0.05, classes: int = 10) -> tuple[compdx.Pair, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    w = rng.normal(0, 0.1, (classes, 192)).astype(np.float32)
    v = w + rng.normal(0, noise, w.shape).astype(np.float32)
    return compdx.Pair(compdx.Model(linear(w), **OPTIONS), compdx.Model(linear(v), **OPTIONS)), w, v


def network_pair() -> compdx.Pair:
    """A small residual network and a copy whose smaller weights are gone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build("resnet20").eval()
    pruned = copy.deepcopy(network)
    with torch.no_grad():
        for weight in pruned.parameters():
            if weight.ndim == 4:
                weight[weight.abs() < weight.abs().quantile(0.5)] = 0
    return compdx.Pair(compdx.Model(network, **OPTIONS), compdx.Model(pruned, **OPTIONS))


def search(pair: compdx.Pair, seeds: Any, **options: Any) -> compdx.Findings:
    method = options.pop("method", None) or compdx.Gradient(**options.pop("settings", {}))
    return compdx.search(pair, seeds, method=method, progress=False, **options)


def numpy_search(
    w: np.ndarray, v: np.ndarray, seeds: np.ndarray, steps: int, bound: np.ndarray | None, project: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Algorithm 1 for linear models, by hand: the gradient is known. Pictures and labels of both models."""
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (MEAN, STD))
    pictures = np.zeros((len(seeds), steps, *seeds.shape[1:]), np.uint8)
    labels = np.zeros((len(seeds), steps, 2), np.int64)
    for number, seed in enumerate(seeds):
        x = (seed.astype(np.float32) / np.float32(255) - mean) / std
        for step in range(steps):
            label = (w @ x.ravel()).argmax()
            change = (np.float32(0.9) * (w[label] - v[label])).reshape(x.shape)
            if bound is not None:
                change = np.clip(change, -bound[:, None, None], bound[:, None, None])
            x = x + change
            if project:
                x = np.clip(x, (0 - mean) / std, (1 - mean) / std)
            picture = np.clip(np.rint((x * std + mean) * 255), 0, 255).astype(np.uint8)
            asked = ((picture.astype(np.float32) / np.float32(255) - mean) / std).ravel()
            pictures[number, step] = picture
            labels[number, step] = (w @ asked).argmax(), (v @ asked).argmax()
    return pictures, labels


@pytest.mark.parametrize("constraint", ["per_step", "none"])
def test_pictures_and_labels_of_linear_models_are_those_drawn_by_hand(constraint: str) -> None:
    pair, w, v = linear_pair()
    seeds = images(40)
    found = search(pair, seeds, chains=16, settings={"constraint": constraint, "step": 2.0}).pictures
    # The step of 2.0 is put into the weights: the oracle has 0.9 built in.
    ratio = np.float32(2.0 / 0.9)
    expected, labels = numpy_search(w * ratio, v * ratio, seeds, 10, VARIANCE if constraint == "per_step" else None)
    change = np.abs(found.images.reshape(expected.shape).astype(int) - expected.astype(int))
    assert change.max() <= 1
    assert (change > 0).mean() < 0.01
    got = np.stack([found.original_label, found.compressed_label], 1).reshape(labels.shape)
    assert np.array_equal(got, labels)
    assert (labels[..., 0] != labels[..., 1]).any()


def test_the_linear_toy_of_the_paper_moves_as_it_must() -> None:
    """W_c - V_c = (10, 1, 0.01) on the channels: one step moves by (var, var, 0.009), two by twice that."""
    w = np.zeros((2, 12), np.float32)
    w[0] = np.repeat([10.0, 1.0, 0.01], 4)
    pair = compdx.Pair(compdx.Model(linear(w)), compdx.Model(linear(np.zeros_like(w))))
    seeds = np.full((1, 3, 2, 2), 100, np.uint8)  # any positive image has class 0
    intended = search(pair, seeds, settings={"budget": 2}).pictures.images[:, :, 0, 0].astype(int) - 100
    step = np.array([VARIANCE[0], VARIANCE[1], 0.009]) * 255
    assert intended.tolist() == [np.rint(step).tolist(), np.rint(2 * step).tolist()]
    artifact = search(pair, seeds, method=compdx.Gradient.artifact(budget=1)).pictures.images[:, :, 0, 0].astype(int)
    assert artifact.tolist() == [[255, 255, 102]]  # 9.0, 0.9 and 0.009 beyond 100 / 255


def test_no_step_is_longer_than_its_bound() -> None:
    pair, _, _ = linear_pair(noise=5.0)
    seeds = images(20)
    found = search(pair, seeds).pictures
    levels = np.rint(np.array(STD, np.float32) * VARIANCE * 255 * 2) / 2
    chain = found.images.reshape(20, 10, 3, 64).astype(int)
    origin = np.repeat(seeds.reshape(20, 1, 3, 64).astype(int), 1, axis=1)
    steps = np.abs(np.diff(np.concatenate([origin, chain], 1), axis=1)).max((0, 1, 3))
    assert (steps <= levels + 1).all()
    far = np.abs(chain[:, -1] - origin[:, 0]).max((0, 2))
    assert (far <= 10 * np.array(STD) * VARIANCE * 255 + 0.5 + 1e-3).all()
    assert far.max() > 25  # and the bound is reached


def test_the_total_bound_holds_at_every_step() -> None:
    pair, _, _ = linear_pair(noise=5.0)
    seeds = images(20)
    found = search(pair, seeds, settings={"constraint": "total", "variance": 0.1}).pictures
    change = np.abs(found.images.reshape(20, 10, 3, 8, 8).astype(int) - seeds[:, None].astype(int))
    assert (change.max((0, 1, 3, 4)) <= 0.1 * np.array(STD) * 255 + 0.5 + 1e-3).all()
    assert change.max() >= 6


def test_equal_models_have_nothing_to_find_and_end() -> None:
    pair, w, _ = linear_pair()
    same = compdx.Pair(pair.original, compdx.Model(linear(w), **OPTIONS))
    found = search(same, images(10))
    assert found.kinds["exhausted"] == 10
    assert found.pictures.counts()["valid"] == 100
    assert np.array_equal(found.pictures.images.reshape(10, 10, 3, 8, 8)[:, 9], images(10))
    network = network_pair()
    twins = compdx.Pair(network.original, network.original)
    found = search(twins, images(4, (3, 32, 32)), settings={"coverage": True, "budget": 2})
    assert found.kinds["exhausted"] == 4


def test_the_batch_changes_nothing() -> None:
    pair = network_pair()
    seeds = images(12, (3, 32, 32))
    settings = {"budget": 3, "coverage": True}
    whole = search(pair, seeds, chains=12, settings=settings, seed=5).pictures
    for chains in (1, 5):
        parts = search(pair, seeds, chains=chains, settings=settings, seed=5).pictures
        change = np.abs(parts.images.astype(int) - whole.images.astype(int))
        assert change.max() <= 1
        assert (change > 0).mean() < 1e-3
        assert np.array_equal(parts.original_label, whole.original_label)
    some = compdx.Seeds(seeds).select(np.array([7, 2]))
    part = search(pair, some, chains=2, settings=settings, seed=5).pictures
    chosen = whole.select(np.isin(whole.seed_index, (2, 7)))
    assert np.abs(part.images.astype(int) - chosen.images.astype(int)).max() <= 1


def test_a_seed_that_deviates_already_is_followed_but_is_no_finding_of_the_search() -> None:
    pair, _, _ = linear_pair(noise=0.08)
    seeds = images(60)
    a, b = pair(seeds)
    already = a.argmax(1) != b.argmax(1)
    assert 0 < already.sum() < 60
    found = search(pair, seeds)
    assert found.kinds["seed"] == already.sum()
    pictures = found.pictures
    assert len(pictures) == 600
    assert np.array_equal(pictures.already_deviating, np.repeat(already, 10))
    assert pictures.counts()["strict"] < pictures.counts()["effective"]


def test_the_finding_of_a_seed_is_its_first_effective_picture() -> None:
    pair, _, _ = linear_pair(noise=0.08)
    found = search(pair, images(60))
    assert found.kinds["effective"] > 5
    for row in found.table.to_pylist():
        if row["kind"] != "effective":
            continue
        own = found.pictures.select(found.pictures.seed_index == row["seed_index"])
        assert row["step"] == own.step[own.effective][0]
        assert row["original_label"] == row["seed_label"] != row["compressed_label"]
    assert [r["step"] for r in found.table.to_pylist() if r["kind"] == "seed"] == [0] * found.kinds["seed"]


def test_stopping_at_the_first_deviation_finds_the_same_and_asks_less() -> None:
    pair, _, _ = linear_pair(noise=0.08)
    seeds = images(60)
    every = search(pair, seeds)
    first = search(pair, seeds, settings={"stop": "deviation"})
    assert first.summary.queries < every.summary.queries == 60 * 11
    assert first.kinds["seed"] == every.kinds["seed"]
    assert first.kinds["exhausted"] == every.kinds["exhausted"]
    last = first.pictures.deviating
    assert last.sum() == first.kinds["effective"] + first.kinds["invalid"]


def test_a_killed_search_is_resumed_to_the_same_table(tmp_path) -> None:
    pair = network_pair()
    seeds = images(9, (3, 32, 32))
    method = compdx.Gradient(budget=3, coverage=True)
    expected = search(pair, seeds, method=method, chains=4, seed=1)

    class Stop(Exception):
        pass

    def stop_at(queries: int) -> Any:
        def listen(event: compdx.driver.Event) -> None:
            if event.queries >= queries and not event.finished:
                raise Stop

        return listen

    for queries in (6, 20):
        with pytest.raises(Stop):
            compdx.driver.run(
                pair,
                compdx.Seeds(seeds),
                method,
                chains=4,
                seed=1,
                device="cpu",
                out=tmp_path / "run",
                resume=True,
                listen=stop_at(queries),
                interval=0.0,
                commit_every=0.0,
            )
    found = search(pair, seeds, method=method, chains=4, seed=1, out=tmp_path / "run", resume=True)
    assert found.table.drop_columns(["pictures"]) == expected.table.drop_columns(["pictures"])
    assert np.array_equal(found.pictures.images, expected.pictures.images)
    assert found.summary.queries == expected.summary.queries


def test_findings_are_facts(tmp_path) -> None:
    pair = network_pair()
    found = search(pair, images(12, (3, 32, 32)), out=tmp_path / "run", settings={"budget": 4})
    assert len(found)
    assert compdx.verify(pair, tmp_path / "run").counts["gone"] == 0
    again = compdx.Findings.load(tmp_path / "run")
    again.check()
    relabelled = again.pictures.relabelled(pair)
    assert np.array_equal(relabelled.original_label, again.pictures.original_label)
    assert np.array_equal(relabelled.compressed_label, again.pictures.compressed_label)
    np.testing.assert_allclose(relabelled.compressed_confidence, again.pictures.compressed_confidence, atol=1e-5)


def test_models_are_byte_identical_after_a_search() -> None:
    pair = network_pair()
    before = [{k: v.clone() for k, v in m.module.state_dict().items()} for m in (pair.original, pair.compressed)]
    search(pair, images(4, (3, 32, 32)), settings={"budget": 2, "coverage": True})
    for model, state in zip((pair.original, pair.compressed), before, strict=True):
        assert all(torch.equal(state[name], value) for name, value in model.module.state_dict().items())
        assert not model.training
        assert all(weight.grad is None for weight in model.module.parameters())


def test_coverage_grows_and_is_a_share() -> None:
    pair = network_pair()
    seen: list[float | None] = []
    compdx.driver.run(
        pair,
        compdx.Seeds(images(8, (3, 32, 32))),
        compdx.Gradient(budget=3, coverage=True),
        chains=4,
        seed=0,
        device="cpu",
        listen=lambda event: seen.append(event.coverage),
        interval=0.0,
    )
    assert seen[0] == 0.0
    assert seen == sorted(seen)
    assert 0.3 < seen[-1] <= 1.0
    # Independent of the loop: neurons that are positive on the seeds are covered at the least.
    found: list[torch.Tensor] = []
    from compdx.derivatives import relu_inputs

    with relu_inputs(found), torch.no_grad():
        pair.compressed(images(8, (3, 32, 32)))
    assert seen[-1] >= sum(int((t > 0).any(0).sum()) for t in found) / sum(t[0].numel() for t in found)


def test_neuron_coverage_changes_what_is_drawn_and_the_run_seed_decides() -> None:
    pair = network_pair()
    seeds = images(4, (3, 32, 32))
    plain, one, two, other = (
        search(pair, seeds, seed=seed, settings={"budget": 3, "coverage": coverage}).pictures.images
        for seed, coverage in ((0, False), (0, True), (0, True), (1, True))
    )
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)
    assert not np.array_equal(plain, one)


def test_scores_that_are_not_finite_end_a_seed() -> None:
    class Breaks(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            bright = x.mean((1, 2, 3), keepdim=True).flatten(1) > 0.5
            return torch.where(bright, torch.nan, self.inner(x))

    pair, _, v = linear_pair()
    broken = compdx.Pair(pair.original, compdx.Model(Breaks(linear(v)).eval(), **OPTIONS))
    seeds = images(6) // 4
    seeds[2] = 250
    found = search(broken, seeds)
    assert found.kinds["non-finite"] == 1
    row = next(row for row in found.table.to_pylist() if row["kind"] == "non-finite")
    assert (row["seed_index"], row["non_finite"]) == (2, "compressed")
    assert len(found.pictures) == 50


def test_the_lattice_puts_the_image_itself_on_the_levels() -> None:
    pair, _, _ = linear_pair(noise=0.02)
    seeds = images(5)
    free = search(pair, seeds, settings={"step": 0.1}).pictures.images
    stuck = search(pair, seeds, settings={"step": 0.1, "lattice": True}).pictures.images
    # Steps below half a level are lost on the lattice, and add up without it.
    assert np.array_equal(stuck.reshape(5, 10, 3, 8, 8)[:, 9], seeds)
    assert not np.array_equal(free.reshape(5, 10, 3, 8, 8)[:, 9], seeds)


def test_ask_and_tell_without_a_driver() -> None:
    pair, _, _ = linear_pair(noise=0.08)
    seeds = images(20)
    loop = compdx.Gradient(budget=3).start(seeds, pair=pair, chains=8, inputs=pair.inputs)
    with pytest.raises(RuntimeError, match="expected a call of ask"):
        loop.tell(*pair.forward(np.zeros((8, 3, 8, 8), np.float32)))
    while loop.active:
        first, second = loop.ask().copy(), loop.ask()
        assert np.array_equal(first, second)
        loop.tell(*pair.forward(second))
    expected = search(pair, seeds, chains=8, settings={"budget": 3})
    assert np.array_equal(loop.findings().pictures.images, expected.pictures.images)
    assert loop.progress.queries == 20 * 4
    assert loop.progress.ended == 20


def test_uint8_is_asked_when_no_inputs_are_given() -> None:
    pair, _, _ = linear_pair()
    loop = compdx.Gradient(budget=1).start(images(3), pair=pair)
    assert loop.ask().dtype == np.uint8
    assert np.array_equal(loop.ask(), images(3))


def test_margins_find_more_than_logits() -> None:
    pair, _, _ = linear_pair(noise=0.05)
    seeds = images(60)
    logit, margin, confidence = (
        search(pair, seeds, settings={"score": score}).pictures for score in ("logit", "margin", "confidence")
    )
    assert margin.counts()["strict"] > logit.counts()["strict"] > 0
    assert not np.array_equal(logit.images, confidence.images)
    assert compdx.Gradient().score == compdx.Gradient.artifact().score == "logit"


@pytest.mark.slow
def test_grey_images_of_a_real_network() -> None:
    train, test = digits.load()
    network = digits.train(train, epochs=3)
    pruned = copy.deepcopy(network)
    with torch.no_grad():
        for weight in pruned.parameters():
            if weight.ndim > 1:
                weight[weight.abs() < weight.abs().quantile(0.7)] = 0
    pair = compdx.Pair(*(compdx.Model(m, mean=0.5, std=0.5) for m in (network, pruned)))
    seeds = test.select(slice(100))
    found = search(pair, seeds)
    counts = found.pictures.counts()
    assert counts["pictures"] == 1000
    assert counts["strict"] > 0
    assert counts["valid"] > 500
    assert compdx.verify(pair, found).counts["gone"] == 0


@pytest.mark.gpu
@pytest.mark.parametrize("coverage", [False, True])
def test_a_gpu_draws_the_same_pictures(coverage: bool) -> None:
    """The models' own arithmetic differs a little between devices; what is made of it does not."""
    pair = network_pair()
    there = compdx.Pair(
        *(compdx.Model(copy.deepcopy(m.module).cuda(), **OPTIONS) for m in (pair.original, pair.compressed))
    )
    seeds = images(12, (3, 32, 32))
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        here, found = (search(p, seeds, chains=5, settings={"budget": 3, "coverage": coverage}) for p in (pair, there))
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
    change = np.abs(here.pictures.images.astype(int) - found.pictures.images.astype(int))
    assert change.max() <= 1
    assert (change > 0).mean() < 0.01
    assert (here.pictures.original_label == found.pictures.original_label).mean() > 0.9


def test_names_and_settings() -> None:
    pair, _, _ = linear_pair()
    found = compdx.search(pair, images(2), method="gradient", budget=2, progress=False)
    assert found.settings["method"]["name"] == "gradient"
    assert found.settings["method"]["settings"]["budget"] == 2
    assert compdx.Gradient.artifact().constraint == "none"
    with pytest.raises(ValueError, match="must hold 'overflow' for a replay"):
        search(pair, images(40), settings={"step": 5.0}).replay(0, compdx.Seeds(images(40)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 0}, "budget"),
        ({"score": "entropy"}, "score must be one of"),
        ({"constraint": "l2"}, "constraint must be one of"),
        ({"stop": "soon"}, "stop must be one of"),
        ({"variance": -1.0}, "variance must be"),
        ({"variance": ()}, "variance must be"),
        ({"step": float("nan")}, "step must be finite"),
        ({"weight": float("inf")}, "weight must be finite"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compdx.Gradient(**settings)


def test_the_variance_must_fit_the_channels() -> None:
    pair, _, _ = linear_pair()
    with pytest.raises(ValueError, match=r"one per channel \(3\), got 2"):
        search(pair, images(1), settings={"variance": (0.1, 0.2)})
    with pytest.raises(ValueError, match=r"one per channel \(2\), got none"):
        compdx.Gradient().bounds(2)
    assert compdx.Gradient().bounds(1).tolist() == pytest.approx([0.0949])
