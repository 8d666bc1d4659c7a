"""The operators of a gradient search: native against the oracle to the byte, the paper's laws, what they refuse."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy import stats

import compdx
import oracle
import oracle_gradient
from compdx import _core, ops

SHAPES = [(1, 28, 28), (3, 32, 32), (3, 7, 5), (2, 17, 19), (1, 1, 1), (1, 40, 61)]
STATISTICS: dict[str, dict[str, Any]] = {
    "cifar": {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)},
    "imagenet": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "mnist": {"mean": 0.1307, "std": 0.3081},
    "identity": {},
    "symmetric": {"bounds": (-1.0, 1.0)},
    "levels": {"bounds": (0.0, 255.0)},
    "narrow": {"mean": 0.5, "std": 1e4},
}
# The published constants of CompD, in units of the model input.
VARIANCE = np.float32([0.0608027, 0.05892733, 0.06850188])


def table_of(name: str, channels: int = 3) -> np.ndarray:
    how = {
        key: value[:channels] if isinstance(value, tuple) and key != "bounds" else value
        for key, value in STATISTICS[name].items()
    }
    return compdx.Inputs(**how).table(channels)


def every_way() -> list[dict[str, Any]]:
    return [{"isa": isa, "threads": threads} for isa in ops.available_isas() for threads in (1, 2, 5)]


# Steps ---------------------------------------------------------------------------------------------------------------


def some_batch(shape: tuple[int, int, int], table: np.ndarray, count: int, seed: Any) -> dict[str, np.ndarray]:
    """Images near their seeds, gradients of all sizes, some not finite."""
    rng = np.random.default_rng(seed)
    origin = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    state = ops.normalize(origin, table) + rng.normal(0, 0.1, origin.shape).astype(np.float32)
    gradient = rng.normal(size=origin.shape) * 10.0 ** rng.integers(-4, 3, origin.shape)
    gradient[rng.random(origin.shape) < 0.05] = 0.0
    gradient = gradient.astype(np.float32)
    odd = rng.random(origin.shape) < 0.1
    gradient[odd] = rng.choice(np.float32([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, -0.0]), int(odd.sum()))
    odd = rng.random(origin.shape) < 0.02
    state[odd] = rng.choice(np.float32([np.nan, np.inf, -np.inf, 3e38, -3e38, -0.0]), int(odd.sum()))
    return {"state": state, "gradient": gradient, "origin": origin}


def limits(channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.01, 0.2, channels).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("project", "lattice"), list(product((False, True), repeat=2)))
@pytest.mark.parametrize(("bound", "total"), list(product((False, True), repeat=2)))
def test_descend_equals_the_oracle(shape, project, lattice, bound, total):
    channels, count = shape[0], 5
    table = table_of("cifar", channels)
    how = {
        "table": table,
        "step": 0.9,
        "bound": limits(channels) if bound else None,
        "total": 2 * limits(channels, 1) if total else None,
        "project": project,
        "lattice": lattice,
    }
    batch = some_batch(shape, table, count, seed=[*shape, project, lattice, bound, total])
    active = np.uint8([1, 0, 3, 1, 1])
    right = [
        oracle_gradient.Step(**how).take(*(batch[name][i] for name in ("state", "gradient", "origin")))
        for i in range(count)
    ]
    descent = ops.Descent(shape=shape, **how)
    for way in every_way():
        state, picture = batch["state"].copy(), np.full_like(batch["origin"], 7)
        l2_squared, linf = ops.descend(
            descent, state, batch["gradient"], batch["origin"], picture, active=active, **way
        )
        assert (l2_squared.dtype, linf.dtype) == (np.int64, np.uint8)
        for i, (moved, drawn, squares, largest) in enumerate(right):
            if not active[i]:
                moved, drawn, squares, largest = batch["state"][i], np.uint8(7), 0, 0
            assert state[i].tobytes() == moved.tobytes()
            assert (picture[i] == drawn).all()
            assert (l2_squared[i], linf[i]) == (squares, largest)


def test_descend_all_rows_are_active_by_default():
    table = table_of("mnist", 1)
    batch = some_batch((1, 9, 9), table, 4, 3)
    descent = ops.Descent(shape=(1, 9, 9), table=table)
    results = []
    for active in (None, np.ones(4, np.uint8), np.ones(4, bool)):
        state, picture = batch["state"].copy(), np.zeros_like(batch["origin"])
        l2_squared, _ = ops.descend(descent, state, batch["gradient"], batch["origin"], picture, active=active)
        results.append((state.tobytes(), picture.tobytes(), l2_squared.tolist()))
    assert results[0] == results[1] == results[2]


def test_descend_shares_many_images_among_threads():
    table = table_of("cifar")
    batch = some_batch((3, 32, 32), table, 67, 5)
    descent = ops.Descent(shape=(3, 32, 32), table=table, bound=VARIANCE, total=3 * VARIANCE, lattice=True)
    results = []
    for way in every_way():
        state, picture = batch["state"].copy(), np.zeros_like(batch["origin"])
        distances = ops.descend(descent, state, batch["gradient"], batch["origin"], picture, **way)
        results.append([array.tobytes() for array in (state, picture, *distances)])
    assert all(result == results[0] for result in results)


def test_descend_of_no_images():
    descent = ops.Descent(shape=(1, 2, 2), table=table_of("identity", 1))
    empty = np.zeros((0, 1, 2, 2), np.float32)
    l2_squared, linf = ops.descend(descent, empty, empty, empty.astype(np.uint8), empty.astype(np.uint8))
    assert l2_squared.shape == linf.shape == (0,)


def test_descend_in_tensors_and_strided_gradients():
    """PyTorch tensors are changed in place and answered by tensors; the layout of the gradient is of no account."""
    import torch

    shape = (3, 8, 6)
    table = table_of("cifar")
    batch = some_batch(shape, table, 4, 1)
    descent = ops.Descent(shape=shape, table=table, bound=VARIANCE)
    state, picture = batch["state"].copy(), np.zeros_like(batch["origin"])
    right = ops.descend(descent, state, batch["gradient"], batch["origin"], picture)
    for layout in (torch.contiguous_format, torch.channels_last):
        own = {name: torch.from_numpy(array.copy()) for name, array in batch.items()}
        drawn = torch.zeros_like(own["origin"])
        address = own["state"].data_ptr()
        own["state"].requires_grad_()
        gradient = own["gradient"].contiguous(memory_format=layout)
        left = ops.descend(
            descent, own["state"], gradient, own["origin"], drawn, active=torch.ones(4, dtype=torch.bool)
        )
        assert own["state"].data_ptr() == address
        assert own["state"].detach().numpy().tobytes() == state.tobytes()
        assert drawn.numpy().tobytes() == picture.tobytes()
        assert [type(a) for a in left] == [torch.Tensor] * 2
        assert all((a.numpy() == b).all() for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("name", STATISTICS)
def test_every_grey_level_is_its_own_picture(name):
    """A step of no gradient: the picture of a level's input is the level, and of its neighbourhood of half a level."""
    table = table_of(name)
    levels = np.broadcast_to(np.arange(256, dtype=np.uint8), (3, 1, 256))[None].copy()
    descent = ops.Descent(shape=(3, 1, 256), table=table, project=False)
    gap = (table[:, 255] - table[:, 0]).astype(float) / 255
    for part in (0.0, -0.49, 0.49):
        state = (table[None, :, None, :] + (part * gap)[None, :, None, None]).astype(np.float32)
        picture = np.zeros_like(levels)
        l2_squared, linf = ops.descend(descent, state, np.zeros_like(state), levels, picture)
        assert (picture == levels).all()
        assert l2_squared.tolist() == linf.tolist() == [0]


@pytest.mark.parametrize("name", ["cifar", "imagenet", "symmetric"])
def test_the_picture_is_the_nearest_level(name):
    """In float64: no other level is nearer by more than the rounding of float32."""
    table = table_of(name)
    rng = np.random.default_rng(0)
    state = rng.uniform(table.min() - 0.1, table.max() + 0.1, (1, 3, 50, 50)).astype(np.float32)
    before = state.copy()
    picture = np.zeros(state.shape, np.uint8)
    ops.descend(ops.Descent(shape=(3, 50, 50), table=table), state, np.zeros_like(state), picture.copy(), picture)
    low, high = table[:, 0, None, None], table[:, 255, None, None]
    np.testing.assert_array_equal(state[0], np.clip(before[0], low, high))
    chosen = np.stack([table[c][picture[0, c]] for c in range(3)]).astype(float)
    gap = (high - low).astype(float) / 255
    assert (np.abs(chosen - state[0]) / gap).max() <= 0.5 + 1e-4


def test_linear_toy():
    """Section 11 of the method's description: W_c - V_c = (10, 1, .01), loss gradient of the opposite sign."""
    table = table_of("cifar")
    gradient = np.broadcast_to(-np.float32([10, 1, 0.01])[:, None, None], (1, 3, 4, 4))
    origin = np.full((1, 3, 4, 4), 100, np.uint8)
    expected = {
        "per_step": ([0.0608027, 0.0589273, 0.009], [0.1216, 0.1179, 0.018]),
        "artifact": ([9.0, 0.9, 0.009], [18.0, 1.8, 0.018]),
        "total": ([0.0608027, 0.0589273, 0.009], [0.0608027, 0.0589273, 0.018]),
    }
    modes = {"per_step": {"bound": VARIANCE}, "artifact": {}, "total": {"total": VARIANCE}}
    for mode, how in modes.items():
        descent = ops.Descent(shape=(3, 4, 4), table=table, project=False, **how)
        state = ops.normalize(origin, table)
        start = state.copy()
        for moved in expected[mode]:
            picture = np.zeros_like(origin)
            ops.descend(descent, state, gradient, origin, picture)
            change = (state - start)[0]
            np.testing.assert_allclose(change, np.broadcast_to(np.array(moved)[:, None, None], change.shape), atol=6e-5)
        if mode == "artifact":
            assert (picture[0, 0] == 255).all()  # the picture is clamped where the image is not


def test_limits_hold_over_ten_steps():
    """Every change of a step is within the bound, k steps within k bounds, and the distance of the paper's Fig. 2."""
    table = table_of("cifar")
    rng = np.random.default_rng(2)
    origin = rng.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    descent = ops.Descent(shape=(3, 32, 32), table=table, bound=VARIANCE)
    state = ops.normalize(origin, table)
    start, picture = state.copy(), np.zeros_like(origin)
    bound = VARIANCE[None, :, None, None] * (1 + 1e-5)
    for k in range(1, 11):
        before = state.copy()
        ops.descend(descent, state, rng.normal(0, 5, state.shape).astype(np.float32), origin, picture)
        assert (np.abs(state - before) <= bound + 1e-6).all()
        assert (np.abs(state - start) <= k * bound + 1e-5).all()
    ops.descend(descent, state, np.full_like(state, -1e3), origin, picture)
    assert np.linalg.norm((state - start).reshape(4, -1), axis=1).max() / 3072 < 1.1 * 0.01135
    assert (np.abs(state - start) > 0).any()


# Neurons -------------------------------------------------------------------------------------------------------------

LAYERS = [(6, 5, 4), (16,), (3, 9, 7), (), (2, 3, 2, 5), (4, 1, 8)]


def some_activations(
    count: int, seed: int, layers: list[tuple[int, ...]] = LAYERS, *, alive: float = 0.5, lost: float = 0.1
):
    """Original and compressed activations that differ in sign at few places; some are 0 or NaN."""
    rng = np.random.default_rng(seed)
    pairs = []
    for shape in layers:
        a = np.abs(rng.normal(size=(count, *shape))) * np.where(rng.random((count, *shape)) < alive, 1, -1)
        b = np.where(rng.random(a.shape) < lost, -a, a * 1.1)
        b[rng.random(a.shape) < 0.05] = 0
        for x in (a, b):
            x[rng.random(a.shape) < 0.03] = np.nan
        pairs.append((a.astype(np.float32), b.astype(np.float32)))
    return [a for a, _ in pairs], [b for _, b in pairs]


def shuffled_memory(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same values in another order of the axes in memory, with room between the rows."""
    order = rng.permutation(array.ndim)
    padded = np.full([n + 2 * (axis == 0) for axis, n in enumerate(array.shape)], 1e9, np.float32)
    memory = np.empty([padded.shape[axis] for axis in order], np.float32).transpose(np.argsort(order))
    memory[...] = 1e9
    memory[: array.shape[0]] = array
    return memory[: array.shape[0]]


@pytest.mark.parametrize("trials", [0, 1, 3, 64])
@pytest.mark.parametrize("lost", [0.0, 0.02, 0.3])
def test_select_equals_the_oracle(trials, lost):
    count = 23
    original, compressed = some_activations(count, 5, lost=lost)
    identities = np.random.default_rng(1).integers(0, 1 << 56, count, np.uint64)
    steps = np.random.default_rng(2).integers(0, 1 << 32, count, np.uint64)
    active = np.arange(count) % 5 != 3
    right = [
        oracle_gradient.select(
            [a[i] for a in original],
            [b[i] for b in compressed],
            seed=(1 << 63) + 11,
            identity=int(identities[i]),
            step=int(steps[i]),
            trials=trials,
        )
        if active[i]
        else (-1, -1)
        for i in range(count)
    ]
    rng = np.random.default_rng(3)
    for number, way in enumerate(every_way()):
        layouts = [[x if number == 0 else shuffled_memory(x, rng) for x in side] for side in (original, compressed)]
        layer, position = ops.select_neurons(
            *layouts, seed=(1 << 63) + 11, identities=identities, steps=steps, trials=trials, active=active, **way
        )
        assert (layer.dtype, position.dtype) == (np.int32, np.int64)
        assert list(zip(layer.tolist(), position.tolist(), strict=True)) == right
    assert lost == 0.0 or len({layer for layer, _ in right}) > 3


def test_select_counts_positions_in_logical_order():
    """PyTorch's channels-last tensors, more axes than native code knows, steps backwards: the same neurons."""
    import torch

    original, compressed = some_activations(40, 8, [(7, 6, 5), (3, 2, 2, 2, 3), (12,)])
    how: dict[str, Any] = {"seed": 5, "identities": np.arange(40), "steps": np.ones(40, int), "trials": 2}
    right = ops.select_neurons(original, compressed, **how)
    tensors = [[torch.from_numpy(x) for x in side] for side in (original, compressed)]
    tensors[0][0] = tensors[0][0].contiguous(memory_format=torch.channels_last)
    five = tensors[1][1].permute(0, 5, 2, 4, 1, 3).contiguous().permute(0, 4, 2, 5, 3, 1)
    assert torch.equal(five.nan_to_num(9), tensors[1][1].nan_to_num(9))
    tensors[1][1] = five
    left = ops.select_neurons(*tensors, **how)
    assert all(isinstance(x, torch.Tensor) for x in left)
    backwards = [[x[:, ::-1].copy()[:, ::-1] for x in side] for side in (original, compressed)]
    for answer in (left, ops.select_neurons(*backwards, **how)):
        assert all((np.asarray(a) == b).all() for a, b in zip(answer, right, strict=True))


def test_select_depends_on_identity_and_step_alone():
    """Rows in another order, alone, or beside others: each keeps its neuron; another step or run seed moves it."""
    original, compressed = some_activations(30, 2)
    identities, steps = np.arange(100, 130), np.arange(30) % 4

    def chosen(rows: Any, seed: int = 9, later: int = 0) -> list[tuple[int, int]]:
        answer = ops.select_neurons(
            [a[rows] for a in original],
            [b[rows] for b in compressed],
            seed=seed,
            identities=identities[rows],
            steps=steps[rows] + later,
        )
        return list(zip(*(part.tolist() for part in answer), strict=True))

    whole = chosen(slice(None))
    order = np.random.default_rng(0).permutation(30)
    assert chosen(order) == [whole[i] for i in order]
    assert [chosen([i])[0] for i in range(30)] == whole
    assert chosen(slice(None), later=1) != whole
    assert chosen(slice(None), seed=10) != whole


SIZES, LOST = (4, 50, 7, 1000, 6), (1, 20, 7, 3, 0)


def crowd(count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The same activations for all of many rows, in the memory of one."""
    original, compressed = [], []
    for size, lost in zip(SIZES, LOST, strict=True):
        a = np.full(size, 1.0, np.float32)
        a[::2] = -1.0
        a[np.random.default_rng(size).permutation(size)[:lost]] = 2.0
        b = np.where(a == 2.0, np.float32(-1), a)
        original.append(np.broadcast_to(a, (count, size)))
        compressed.append(np.broadcast_to(b, (count, size)))
    return original, compressed


@pytest.mark.parametrize("trials", [0, 1, 2, 7, 64, 1000])
def test_select_has_the_law_of_endless_draws(trials):
    """Each layer with a probability proportional to its share of qualifying neurons, and in it each of them alike."""
    count = 100_000
    original, compressed = crowd(count)
    layer, position = ops.select_neurons(
        original, compressed, seed=trials, identities=np.arange(count), steps=np.zeros(count, int), trials=trials
    )
    assert (layer >= 0).all()
    for number in range(len(SIZES)):
        here = position[layer == number]
        assert (original[number][0][here] > 0).all()
        assert (compressed[number][0][here] <= 0).all()
    shares = np.array(LOST) / np.array(SIZES)
    kept = shares > 0
    expected = count * shares[kept] / shares.sum()
    assert stats.chisquare(np.bincount(layer, minlength=len(SIZES))[kept], expected).pvalue > 1e-3
    for number in np.flatnonzero(kept):
        places = np.flatnonzero((original[number][0] > 0) & (compressed[number][0] <= 0))
        found = np.bincount(position[layer == number], minlength=SIZES[number])[places]
        assert len(found) == 1 or stats.chisquare(found).pvalue > 1e-3


def test_select_keeps_an_earlier_draw():
    """More trials change only the rows whose draws had all failed."""
    original, compressed = some_activations(400, 6, lost=0.05)
    how: dict[str, Any] = {"seed": 1, "identities": np.arange(400), "steps": np.zeros(400, int)}
    few, many = (ops.select_neurons(original, compressed, trials=trials, **how) for trials in (20, 40))
    same = (few[0] == many[0]) & (few[1] == many[1])
    assert 0.5 < same.mean() < 1


def test_select_where_none_qualifies():
    original, compressed = some_activations(6, 1)
    how: dict[str, Any] = {"seed": 0, "identities": np.arange(6), "steps": np.zeros(6, int), "trials": 16}
    for a, b in (
        (original, original),  # the compressed model is the original
        ([np.zeros_like(x) for x in original], compressed),
        ([np.full_like(x, np.nan) for x in original], compressed),
        (original, [np.full_like(x, np.nan) for x in compressed]),
    ):
        layer, position = ops.select_neurons(a, b, **how)
        assert layer.tolist() == position.tolist() == [-1] * 6
    layer, _ = ops.select_neurons([np.full_like(x, np.inf) for x in original], [0 * np.abs(x) for x in original], **how)
    assert (layer >= 0).all()
    layer, _ = ops.select_neurons(original, compressed, active=np.zeros(6, np.uint8), **how)
    assert (layer == -1).all()


def test_select_finds_the_one_neuron_of_many():
    """A position beyond every chunk of the scan."""
    a, b = (np.full((2, 3, 41_000), value, np.float32) for value in (-1.0, -1.0))
    a[0, 2, 40_999] = a[1, 0, 1] = 1
    layer, position = ops.select_neurons([a, a], [b, a], seed=0, identities=[0, 1], steps=[0, 0], trials=4, threads=2)
    assert layer.tolist() == [0, 0]
    assert position.tolist() == [3 * 41_000 - 1, 1]


def test_cover_equals_the_oracle():
    count = 9
    values, _ = some_activations(count, 4, [*LAYERS, (40_000,)], alive=0.1)
    active = np.arange(count) % 3 != 1
    right = [np.where((x[active] > 0).any(axis=0).reshape(-1), 1, 5 * (np.arange(x[0].size) % 2)) for x in values]
    rng = np.random.default_rng(0)
    for number, way in enumerate(every_way()):
        covered = [(5 * (np.arange(x[0].size) % 2)).astype(np.uint8) for x in values]
        layouts = [x if number == 0 else shuffled_memory(x, rng) for x in values]
        assert ops.cover(layouts, covered, active=active, **way) is None
        for marks, expected in zip(covered, right, strict=True):
            np.testing.assert_array_equal(marks, expected)
    assert ops.count_covered(covered) == sum(np.count_nonzero(marks) for marks in right)


def test_cover_adds_up():
    """Two batches after each other mark what one batch of both does."""
    import torch

    values, _ = some_activations(8, 9, alive=0.2)
    whole, parts = ([torch.zeros(x[0].size, dtype=torch.uint8) for x in values] for _ in range(2))
    ops.cover([torch.from_numpy(x) for x in values], whole)
    for rows in (slice(0, 3), slice(3, 8)):
        ops.cover([torch.from_numpy(x)[rows] for x in values], parts)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert ops.count_covered(whole) == ops.count_covered(parts) == sum(int((x > 0).any(0).sum()) for x in values)


# Verdicts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 10, 33, 1000])
@pytest.mark.parametrize("outputs", list(product(("logits", "probabilities"), repeat=2)), ids="-".join)
def test_verdicts_equal_the_oracle(k, outputs):
    rng = np.random.default_rng(k)
    rows = []
    for form in outputs:
        x = rng.normal(size=(150, k)) * rng.choice([0.01, 1, 4, 3e4], (150, 1))
        if form == "probabilities":
            x = np.exp(x - x.max(axis=1, keepdims=True))
            x /= x.sum(axis=1, keepdims=True)
        x[:20] = np.round(x[:20], 1)  # ties
        x[rng.random(150) < 0.1, rng.integers(k)] = rng.choice([np.nan, np.inf, -np.inf])
        rows.append(x.astype(np.float32))
    read = [[oracle.read_scores(x, form) for x in row] for row, form in zip(rows, outputs, strict=True)]
    for way in every_way():
        verdicts = ops.verdicts(*rows, outputs=outputs, **way)
        assert (verdicts.labels.dtype, verdicts.confidences.dtype) == (np.int32, np.uint32)
        for m in range(2):
            assert verdicts.labels[:, m].tolist() == [-1 if s is None else s.label for s in read[m]]
            assert verdicts.confidences[:, m].tolist() == [0 if s is None else s.confidence for s in read[m]]
            assert (verdicts.non_finite >> m & 1).tolist() == [s is None for s in read[m]]
    assert 0 < (verdicts.non_finite != 0).mean() < 0.5


def test_verdicts_of_tensors_and_other_floats():
    import torch

    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    verdicts = ops.verdicts(x, x.double())
    assert verdicts.labels.tolist() == [[i, i] for i in x.float().argmax(1).tolist()]
    assert verdicts.confidences.dtype == torch.uint32
    confidence = verdicts.confidences.numpy().astype(float) / oracle.ONE
    np.testing.assert_allclose(confidence[:, 0], x.double().softmax(1).max(1).values, atol=1e-6)
    assert ops.verdicts(np.zeros((0, 3)), np.zeros((0, 3))).labels.shape == (0, 2)


# What is refused -----------------------------------------------------------------------------------------------------

SHAPE = (3, 4, 5)
TABLE = table_of("cifar")


def descent(**changed: Any) -> ops.Descent:
    return ops.Descent(**{"shape": SHAPE, "table": TABLE, **changed})


def descend(count: int = 2, **changed: Any) -> Any:
    arrays = {"state": "f4", "gradient": "f4", "origin": "u1", "picture": "u1"}
    arguments: dict[str, Any] = {name: np.zeros((count, *SHAPE), dtype) for name, dtype in arrays.items()}
    arguments |= {"descent": descent(), **changed}
    return ops.descend(**arguments)


def select(a: Any = None, b: Any = None, **changed: Any) -> Any:
    layers = [np.zeros((2, 3, 4), np.float32), np.zeros((2, 5), np.float32)]
    how: dict[str, Any] = {"seed": 0, "identities": [0, 1], "steps": [1, 1], **changed}
    return ops.select_neurons(layers if a is None else a, layers if b is None else b, **how)


def cover(values: Any = None, covered: Any = None, **changed: Any) -> None:
    if values is None:
        values = [np.zeros((2, 3, 4), np.float32)]
    ops.cover(values, [np.zeros(12, np.uint8)] if covered is None else covered, **changed)


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def meta(dtype: str, *shape: int) -> Any:
    import torch

    return torch.zeros(shape, dtype=getattr(torch, dtype), device="meta")


SQUARES = (np.arange(256, dtype=np.float32) ** 2 / 65025)[None].repeat(3, 0)
SCORES = np.zeros((2, 4), np.float32)
Row = tuple[Callable[[], Any], type[Exception], str]
ROWS: dict[str, Row] = {
    "descent-shape": (lambda: descent(shape=[3, 4, 5]), TypeError, "shape: expected (C, H, W), got [3, 4, 5]"),
    "descent-step": (lambda: descent(step="a"), TypeError, "step: expected a number, got str"),
    "descent-step-nan": (lambda: descent(step=float("nan")), ValueError, "step: expected a finite number of float32"),
    "descent-step-large": (
        lambda: descent(step=1e39),
        ValueError,
        "step: expected a finite number of float32, got 1e+39",
    ),
    "descent-project": (lambda: descent(project=1), TypeError, "project: expected True or False, got int"),
    "descent-lattice": (lambda: descent(lattice=None), TypeError, "lattice: expected True or False, got NoneType"),
    "descent-table": (lambda: descent(table=[1.0]), TypeError, "table: expected an array that speaks DLPack, got list"),
    "descent-table-shape": (lambda: descent(table=TABLE[:1]), ValueError, "table: expected shape (3, 256) on the CPU"),
    "descent-table-dtype": (lambda: descent(table=TABLE.astype(float)), TypeError, "table: expected float32, got"),
    "descent-table-nan": (lambda: descent(table=TABLE * np.nan), ValueError, "table: expected finite values that incr"),
    "descent-table-falls": (lambda: descent(table=-TABLE), ValueError, "table: expected finite values that increase"),
    "descent-table-uneven": (lambda: descent(table=SQUARES), ValueError, "table: expected evenly spaced values"),
    "descent-bound-shape": (
        lambda: descent(bound=[1.0]),
        ValueError,
        "bound: expected shape (3,), one number a channel",
    ),
    "descent-bound-scalar": (
        lambda: descent(bound=1.0),
        ValueError,
        "bound: expected shape (3,), one number a channel",
    ),
    "descent-bound-text": (lambda: descent(bound="abc"), TypeError, "bound: expected numbers, got <U3"),
    "descent-bound-negative": (lambda: descent(bound=[1, -1, 1]), ValueError, "bound: expected finite numbers of at"),
    "descent-total-nan": (lambda: descent(total=[1, np.nan, 1]), ValueError, "total: expected finite numbers of at le"),
    "descent-total-inf": (lambda: descent(total=[1, np.inf, 1]), ValueError, "total: expected finite numbers of at le"),
    "descend-descent": (lambda: descend(descent=None), TypeError, "descent: expected Descent, got NoneType"),
    "descend-state": (lambda: descend(state=[1]), TypeError, "state: expected an array that speaks DLPack, got list"),
    "descend-state-rank": (lambda: descend(state=np.zeros(3, "f4")), ValueError, "state: expected shape [B, 3, 4, 5]"),
    "descend-state-dtype": (lambda: descend(state=np.zeros((2, *SHAPE))), TypeError, "state: expected float32, got"),
    "descend-state-shape": (
        lambda: descend(state=np.zeros((2, 1, 4, 5), "f4")),
        ValueError,
        "state: expected shape (2, 3, 4, 5), got (2, 1, 4, 5)",
    ),
    "descend-state-strides": (
        lambda: descend(state=np.zeros((2, *SHAPE), "f4", order="F")),
        ValueError,
        "state: expected C-contiguous, aligned memory",
    ),
    "descend-state-read-only": (
        lambda: descend(state=read_only(np.zeros((2, *SHAPE), "f4"))),
        ValueError,
        "state: expected writable memory",
    ),
    "descend-state-device": (lambda: descend(state=meta("float32", 2, *SHAPE)), TypeError, "state: expected an array"),
    "descend-picture": (
        lambda: descend(picture=np.zeros((2, *SHAPE), "f4")),
        TypeError,
        "picture: expected uint8, got",
    ),
    "descend-picture-rows": (
        lambda: descend(picture=np.zeros((1, *SHAPE), "u1")),
        ValueError,
        "picture: expected shape",
    ),
    "descend-gradient": (lambda: descend(gradient=np.zeros((2, *SHAPE))), TypeError, "gradient: expected float32, got"),
    "descend-gradient-rows": (
        lambda: descend(gradient=np.zeros((3, *SHAPE), "f4")),
        ValueError,
        "gradient: expected shape (2, 3, 4, 5), got (3, 3, 4, 5)",
    ),
    "descend-origin": (
        lambda: descend(origin=np.zeros((2, *SHAPE), "i1")),
        TypeError,
        "origin: expected uint8, got int8",
    ),
    "descend-origin-rows": (
        lambda: descend(origin=np.zeros((1, *SHAPE), "u1")),
        ValueError,
        "origin: expected shape (2,",
    ),
    "descend-active": (lambda: descend(active=np.ones(2)), TypeError, "active: expected uint8 or bool, got float64"),
    "descend-active-rows": (
        lambda: descend(active=np.ones(3, bool)),
        ValueError,
        "active: expected shape (2,), got (3,)",
    ),
    "descend-threads": (lambda: descend(threads=0), ValueError, "threads: expected 1..4096, got 0"),
    "descend-isa": (lambda: descend(isa="mmx"), ValueError, "isa: expected one of '"),
    "select-array": (
        lambda: select(a=SCORES),
        TypeError,
        "original: expected a list of arrays, one a layer, got ndarray",
    ),
    "select-none": (lambda: select(a=[], b=[]), ValueError, "original: expected 1..1024 layers, got 0"),
    "select-many": (lambda: select(b=[SCORES] * 1025), ValueError, "compressed: expected 1..1024 layers, got 1025"),
    "select-dtype": (lambda: select(a=[SCORES, SCORES.astype(float)]), TypeError, "original[1]: expected float32, got"),
    "select-rows": (
        lambda: select(a=[SCORES, SCORES[:1]]),
        ValueError,
        "original[1]: expected shape [2, ...] with 1..2**",
    ),
    "select-rank": (
        lambda: select(a=[np.float32(1)[()] + np.zeros((), "f4")]),
        TypeError,
        "original[0]: expected an array",
    ),
    "select-empty": (
        lambda: select(a=[SCORES[:, :0]]),
        ValueError,
        "original[0]: expected shape [2, ...] with 1..2**31-1",
    ),
    "select-list": (
        lambda: select(b=[[0.0]]),
        TypeError,
        "compressed[0]: expected an array that speaks DLPack, got list",
    ),
    "select-shapes": (
        lambda: select(a=[SCORES]),
        ValueError,
        "original, compressed: expected layers of the same shapes",
    ),
    "select-seed": (lambda: select(seed=-1), ValueError, "seed: expected 0..18446744073709551615, got -1"),
    "select-trials": (lambda: select(trials=-1), ValueError, "trials: expected 0..2147483647, got -1"),
    "select-trials-type": (lambda: select(trials=1.0), TypeError, "trials: expected an integer, got float"),
    "select-identities": (
        lambda: select(identities=[0, 1 << 56]),
        ValueError,
        "identities: expected values in 0..7205",
    ),
    "select-identities-shape": (
        lambda: select(identities=[0]),
        ValueError,
        "identities: expected shape (2,), got (1,)",
    ),
    "select-steps": (
        lambda: select(steps=[0, 1 << 32]),
        ValueError,
        "steps: expected values in 0..4294967295, got 0..",
    ),
    "select-steps-type": (lambda: select(steps=[0.5, 1]), TypeError, "steps: expected integers, got float64"),
    "select-active": (
        lambda: select(active=[1, 1]),
        TypeError,
        "active: expected an array that speaks DLPack, got list",
    ),
    "cover-values": (lambda: cover(SCORES), TypeError, "values: expected a list of arrays, one a layer, got ndarray"),
    "cover-covered": (lambda: cover(covered=SCORES), TypeError, "covered: expected a list of arrays, one a layer, got"),
    "cover-layers": (lambda: cover(covered=[]), ValueError, "covered: expected an array for each of 1 layers, got 0"),
    "cover-shape": (
        lambda: cover(covered=[np.zeros(11, "u1")]),
        ValueError,
        "covered[0]: expected shape (12,), got (11,)",
    ),
    "cover-dtype": (lambda: cover(covered=[np.zeros(12, "?")]), TypeError, "covered[0]: expected uint8, got bool"),
    "cover-read-only": (
        lambda: cover(covered=[read_only(np.zeros(12, "u1"))]),
        ValueError,
        "covered[0]: expected writable memory, got a read-only array",
    ),
    "cover-active": (
        lambda: cover(active=np.ones((2, 1), bool)),
        ValueError,
        "active: expected shape (2,), got (2, 1)",
    ),
    "count-covered": (lambda: ops.count_covered(SCORES), TypeError, "covered: expected a list of arrays, one a layer"),  # type: ignore[arg-type]
    "verdicts-integers": (
        lambda: ops.verdicts(SCORES.astype(int), SCORES),
        TypeError,
        "a: expected floating scores, got",
    ),
    "verdicts-list": (
        lambda: ops.verdicts(SCORES, [[0.0, 1.0]] * 2),
        TypeError,
        "b: expected an array that speaks DLPack",
    ),
    "verdicts-rank": (
        lambda: ops.verdicts(SCORES[0], SCORES),
        ValueError,
        "a: expected scores [B, K] with K >= 2, got (4,)",
    ),
    "verdicts-one": (
        lambda: ops.verdicts(SCORES[:, :1], SCORES),
        ValueError,
        "a: expected scores [B, K] with K >= 2, got",
    ),
    "verdicts-rows": (
        lambda: ops.verdicts(SCORES, SCORES[:1]),
        ValueError,
        "b: expected scores [2, K] with K >= 2, got",
    ),
    "verdicts-classes": (
        lambda: ops.verdicts(SCORES, SCORES[:, :2]),
        ValueError,
        "a, b: expected scores of one shape, got",
    ),
    "verdicts-outputs": (
        lambda: ops.verdicts(SCORES, SCORES, outputs=("logits", "odds")),
        ValueError,
        "outputs: expected",
    ),
    "verdicts-output": (
        lambda: ops.verdicts(SCORES, SCORES, outputs="logits"),  # type: ignore[arg-type]
        TypeError,
        "outputs: expected one name for each model, got 'logits'",
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_refused_by_name(name: str) -> None:
    call, error, words = ROWS[name]
    with pytest.raises(error, match=re.escape(words)) as raised:
        call()
    assert raised.type is error


def layers(
    extents: Any = (3,), *, rows: int = 2, row: int = 3, strides: Any = (1,), models: int = 2, room: int = 24
) -> Any:
    memory = np.zeros(64, np.float32)
    values = [((memory.ctypes.data, room), row, list(strides)) for _ in range(models)]
    return _core.Layers(rows=rows, layers=[(list(extents), values, (memory.ctypes.data, 3))])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"room": 23}, "layers: expected at least 24 bytes, got 23"),
        ({"row": 4}, "layers: expected at least 28 bytes, got 24"),
        ({"row": -1}, "layers: expected strides that stay within memory"),
        ({"row": 1 << 62, "rows": 5}, "layers: expected strides that stay within memory"),
        ({"strides": (2,)}, "layers: expected at least 32 bytes, got 24"),
        ({"strides": (-1,)}, "layers: expected strides that stay within memory"),
        ({"strides": (1, 1)}, "layers: expected one stride for each extent"),
        ({"extents": ()}, "layers: expected 1..4 extents"),
        ({"extents": (1,) * 5}, "layers: expected 1..4 extents"),
        ({"extents": (0,)}, "layers: expected positive extents and less than 2^31 neurons"),
        ({"extents": (1 << 16, 1 << 16)}, "layers: expected positive extents and less than 2^31 neurons"),
        ({"models": 0}, "layers: expected the activations of one model or of two"),
        ({"models": 3}, "layers: expected the activations of one model or of two"),
        ({"models": 1, "extents": (4,), "row": 1, "room": 99}, "covered: expected at least 4 bytes, got 3"),
    ],
)
def test_native_code_follows_no_layer_out_of_its_memory(changed, words):
    assert isinstance(layers(), _core.Layers)
    with pytest.raises(ValueError, match=re.escape(words)):
        layers(**changed)


def test_kernels_read_layers_on_their_device_only():
    nothing = (0, 0)
    with pytest.raises(ValueError, match=r"layers: expected a call of place\(\)"):
        _core.cuda_cover(layers(models=1), active=nothing, stream=0)
    with pytest.raises(ValueError, match="layers: expected the activations of two models"):
        _core.cpu_select_neurons(
            layers(models=1),
            seed=0,
            trials=0,
            identities=nothing,
            steps=nothing,
            active=nothing,
            layer=nothing,
            position=nothing,
            threads=1,
            isa="",
        )
    with pytest.raises(ValueError, match="layers: expected the activations of one model"):
        _core.cpu_cover(layers(), active=nothing, threads=1, isa="")
