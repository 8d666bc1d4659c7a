"""The CUDA back end on a device: after every step of a search all memory equals that of the CPU, byte for byte.

Whole runs, operators and model inputs are compared in test_invariance.py, test_operators.py and test_model.py.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import compdx.ops as ops
from compdx import _core
from stubs import IntegerPair, some_images

pytestmark = pytest.mark.gpu

Scores = NDArray[np.float32]


class Twins:
    """One search twice, on the CPU and on the device, told the same scores."""

    def __init__(self, count: int, seeds: int, *, layout: str = "NCHW", dtype: str = "uint8", **rules: Any) -> None:
        self.rules = ops.Rules(**rules)
        self.how: dict[str, Any] = {"layout": layout, "dtype": dtype}
        images = some_images(seeds, self.rules.shape)
        identities = np.random.default_rng(1).integers(0, 1 << 56, seeds, np.uint64)
        self.searches = [
            ops.Chains(
                self.rules,
                images,
                identities=identities,
                queue=np.arange(seeds)[::-1].copy(),
                count=count,
                device=device,
            )
            for device in ("cpu", "cuda")
        ]
        self.inputs = [search.new_input(**self.how) for search in self.searches]
        self.tables: list[Any] = [None, None]
        if dtype != "uint8":
            table = np.random.default_rng(2).normal(size=(self.rules.shape[0], 256)).astype(np.float32)
            self.tables = [search.new_table(table, dtype) for search in self.searches]

    def mutate(self, which: int) -> None:
        ops.mutate(self.searches[which], self.inputs[which], table=self.tables[which], **self.how)

    def step(self, scores: tuple[Scores, Scores], *, drain: bool = True) -> None:
        """One iteration on both, compared after each of its four steps."""
        cpu, cuda = self.searches
        for search in self.searches:
            ops.refill(search)
        self.compare("refill")
        for which in range(2):
            self.mutate(which)
        self.compare("mutate")
        ops.judge(cpu, *scores)
        ops.judge(cuda, *on_device(scores))
        self.compare("judge")
        for search in self.searches:
            ops.harvest(search)
        self.compare("harvest")
        if drain:
            equal("drain", cpu.drain(), cuda.drain())

    def compare(self, step: str) -> None:
        cpu, cuda = self.searches
        assert cpu.counters == cuda.counters, step
        equal(step, cpu.state(), cuda.state())
        np.testing.assert_array_equal(
            as_bytes(self.inputs[0]), as_bytes(self.inputs[1].cpu().numpy()), err_msg=f"{step}: model input"
        )


def on_device(scores: tuple[Scores, Scores]) -> list[Any]:
    import torch

    return [torch.from_numpy(array).cuda() for array in scores]


def as_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def equal(step: str, cpu: dict[str, Any], cuda: dict[str, Any]) -> None:
    for name, right in cpu.items():
        what = f"{step}: {name}"
        if name == "traces" and isinstance(right, list):
            assert len(right) == len(cuda[name]), what
            right, left = np.concatenate([[], *right]), np.concatenate([[], *cuda[name]])
        else:
            left = cuda[name]
        np.testing.assert_array_equal(as_bytes(left), as_bytes(right), err_msg=what)


def some_scores(rng: np.random.Generator, count: int, classes: int, kinds: tuple[str, str]) -> tuple[Scores, Scores]:
    """Pairs that mostly agree; some deviate, tie, or are not finite."""
    raw = rng.normal(0, 4, (2, count, classes))
    raw[1] = np.where(rng.random((count, 1)) < 0.9, raw[0] * 0.999, raw[1])
    raw[:, rng.random(count) < 0.1] = 0.0
    scores = []
    for x, kind in zip(raw, kinds, strict=True):
        if kind == "probabilities":
            x = np.exp(x - x.max(axis=1, keepdims=True))
            x /= x.sum(axis=1, keepdims=True)
        x = x.astype(np.float32)
        x[rng.random(count) < 0.02, rng.integers(classes)] = rng.choice([np.nan, np.inf, -np.inf])
        scores.append(x)
    return scores[0], scores[1]


CASES: dict[str, tuple[dict[str, Any], int]] = {
    "small-hash": ({"shape": (2, 5, 3), "count": 70, "seeds": 200, "linf": 20}, 2),
    "small-nearest": (
        {"shape": (1, 7, 6), "count": 40, "seeds": 90, "coverage": "nearest", "capacity": 3, "threshold": 0.02},
        10,
    ),
    "pixel": ({"shape": (1, 1, 1), "count": 33, "seeds": 200, "overflow": "wrap", "capacity": 2}, 3),
    "mnist": (
        {"shape": (1, 28, 28), "count": 1000, "seeds": 2500, "dtype": "float32", "selection": "rank"},
        10,
    ),
    "cifar": (
        {"shape": (3, 32, 32), "count": 257, "seeds": 600, "dtype": "bfloat16", "layout": "NHWC", "overflow": "wrap"},
        10,
    ),
    "cifar-nearest": (
        {
            "shape": (3, 32, 32),
            "count": 100,
            "seeds": 250,
            "dtype": "float16",
            "coverage": "nearest",
            "capacity": 8,
            "acceptance": "change",
            "original_scores": "probabilities",
            "compressed_scores": "probabilities",
        },
        1000,
    ),
    "imagenet": (
        {"shape": (3, 224, 224), "count": 24, "seeds": 60, "dtype": "float32", "layout": "NHWC", "linf": 8},
        1000,
    ),
    "odd": ({"shape": (3, 37, 131), "count": 64, "seeds": 200, "dtype": "float32", "selection": "uniform"}, 33),
    "many-slots": ({"shape": (1, 2, 2), "count": 65536, "seeds": 100000, "capacity": 4, "acceptance": "always"}, 2),
    "one-warp": ({"shape": (1, 2, 2), "count": 5, "seeds": 9, "coverage": "nearest", "capacity": 2}, 20000),
}


@pytest.mark.parametrize("name", CASES)
def test_every_step_equals_the_cpu(name: str) -> None:
    settings, classes = CASES[name]
    twins = Twins(**{"budget": 9, **settings})
    rng = np.random.default_rng(3)
    kinds = (twins.rules.original_scores, twins.rules.compressed_scores)
    for i in range(16):
        # At times nobody reads the ring, and ended chains have to wait in their slots.
        twins.step(some_scores(rng, settings["count"], classes, kinds), drain=i % 4 != 1)
    assert twins.searches[0].counters["ended"] > settings["count"] / 2


def test_more_classes_than_shared_memory_holds() -> None:
    twins = Twins(2, 2, shape=(1, 1, 1), coverage="nearest", capacity=1)
    ops.refill(twins.searches[1])
    twins.mutate(1)
    scores = np.zeros((2, 60000), np.float32)
    with pytest.raises(RuntimeError, match="60000"):
        ops.judge(twins.searches[1], *on_device((scores, scores)))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 5, 7), (4, 64, 64)], ids=str)
def test_normalize_equals_the_cpu(shape: tuple[int, int, int], dtype: Any, layout: Any) -> None:
    import torch

    images = some_images(9, shape)
    table = np.random.default_rng(0).normal(size=(shape[0], 256)).astype(np.float32)
    right = ops.normalize(images, table, layout=layout, dtype=dtype)
    # One image in, the others are not where vectors of memory begin.
    shifted = torch.from_numpy(np.concatenate([[0], images.reshape(-1)]).astype(np.uint8)).cuda()[1:].view(images.shape)
    for on_cuda in (torch.from_numpy(images).cuda(), shifted):
        left = ops.normalize(on_cuda, table, layout=layout, dtype=dtype)
        np.testing.assert_array_equal(as_bytes(left.cpu().view(torch.uint8).numpy()), as_bytes(right))


def test_an_iteration_can_be_captured() -> None:
    """Nothing in an iteration waits, allocates or changes a shape: a CUDA graph of it replays the search."""
    import torch

    twins = Twins(300, 900, shape=(1, 28, 28), budget=6, dtype="float32")
    scores = some_scores(np.random.default_rng(5), 300, 10, ("logits", "logits"))
    static = on_device(scores)

    def iterate(which: int, told: Any) -> None:
        ops.refill(twins.searches[which])
        twins.mutate(which)
        ops.judge(twins.searches[which], *told)
        ops.harvest(twins.searches[which])

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        iterate(1, static)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        iterate(1, static)
    iterate(0, scores)
    for _ in range(12):
        graph.replay()
        iterate(0, scores)
    twins.compare("replay")
    equal("drain", twins.searches[0].drain(), twins.searches[1].drain())


# The four steps in one -----------------------------------------------------------------------------------------------


def start(device: str, count: int, seeds: int, **rules: Any) -> ops.Chains:
    settings = ops.Rules(**rules)
    return ops.Chains(
        settings,
        some_images(seeds, settings.shape),
        identities=np.random.default_rng(1).permutation(seeds).astype(np.uint64),
        queue=np.arange(seeds),
        count=count,
        device=device,
    )


def add_records(ended: dict[int, tuple[bytes, ...]], drained: dict[str, Any]) -> None:
    """All that is known of each ended chain, by the identity of its seed; pictures of those that have one."""
    exhausted = 4
    for record, image, trace in zip(drained["chains"], drained["images"], drained["traces"], strict=True):
        index = int(record["seed_index"])
        assert index not in ended
        picture = b"" if record["kind"] == exhausted else image.tobytes()
        ended[index] = (record.tobytes(), picture, trace.tobytes())


def finish(device: str, pair: IntegerPair, count: int, seeds: int, *, fused: bool, **rules: Any) -> dict[int, Any]:
    """A whole search with an integer-exact pair; the ring is read every third iteration."""
    import torch

    search = start(device, count, seeds, shape=pair.shape, **rules)
    images = search.new_input()
    ops.refill(search)
    ops.mutate(search, images)
    ended: dict[int, tuple[bytes, ...]] = {}
    iteration = 0
    while len(ended) < seeds:
        # The sums are integers below 2^24 and exact in any order; on the device they are made in float64 there.
        scores = pair(images) if device == "cpu" else scores_on_device(pair, images)
        if fused:
            ops.step(search, *scores, images)
        else:
            ops.judge(search, *scores)
            ops.harvest(search)
            ops.refill(search)
            ops.mutate(search, images)
        iteration += 1
        assert iteration < 10_000
        if iteration % 3 == 0:
            add_records(ended, search.drain())
    if device != "cpu":
        torch.cuda.synchronize()
    assert search.counters["active"] == 0
    return ended


def scores_on_device(pair: IntegerPair, images: Any) -> tuple[Any, Any]:
    """What the pair says, computed on the device: products and sums of integers below 2^53 in float64."""
    import torch

    rng = np.random.default_rng([pair.seed, pair.classes, *pair.shape])
    n = int(np.prod(pair.shape))
    weights, ripple = (
        torch.from_numpy(rng.integers(low, high, (n, pair.classes))).double().cuda()
        for low, high in [(-9, 10), (-40, 41)]
    )
    flat = images.reshape(len(images), n).double()
    sums = torch.floor((flat - 128) @ weights / 32) + torch.remainder(flat @ ripple, 512)
    sums = sums.long()
    coarse = sums >> pair.drop_bits << pair.drop_bits
    return (sums * 2.0**-7).float(), (coarse * 2.0**-7).float()


@pytest.mark.parametrize(("count", "seeds"), [(64, 300), (1000, 2500), (65536, 66000)])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 9, 11)], ids=str)
def test_one_kernel_finds_what_the_cpu_finds(shape: tuple[int, int, int], count: int, seeds: int) -> None:
    pair = IntegerPair(shape, 10)
    rules: dict[str, Any] = {"budget": 6, "capacity": 16}
    np.testing.assert_array_equal(
        np.stack([s.cpu().numpy() for s in scores_on_device(pair, on_device((some_images(50, shape),) * 2)[0])]),
        np.stack(pair(some_images(50, shape))),
    )
    right = finish("cpu", pair, min(count, 4096), seeds, fused=False, **rules)
    left = finish("cuda", pair, count, seeds, fused=True, **rules)
    assert left == right


@pytest.mark.parametrize("threads", [32, 128, 512])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 33, 31), (1, 1, 1), (1, 128, 128)], ids=str)
def test_every_group_equals_the_four_steps(
    shape: tuple[int, int, int], dtype: str, layout: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing ends, every slot keeps its chain, and all memory can be compared as it lies."""
    call = _core.cuda_step
    monkeypatch.setattr(_core, "cuda_step", lambda *args, **how: call(*args, **{**how, "threads": threads}))
    twins = Twins(70, 70, shape=shape, budget=50, acceptance="always", layout=layout, dtype=dtype, linf=40)
    for which in range(2):
        ops.refill(twins.searches[which])
    twins.mutate(0)
    twins.mutate(1)
    rng = np.random.default_rng(4)
    for i in range(20):
        raw = rng.normal(0, 4, (70, 10)).astype(np.float32)
        scores = (raw, raw * np.float32(0.999))
        for search, told, out, table in zip(
            twins.searches, (scores, on_device(scores)), twins.inputs, twins.tables, strict=True
        ):
            ops.step(search, *told, out, table=table, layout=layout, dtype=dtype)
        twins.compare(f"step {i}")
    assert twins.searches[0].counters["active"] == 70


@pytest.mark.parametrize("count", [70, 1000, 5000])
def test_captured_steps_equal_eager_ones(count: int) -> None:
    """A graph of some steps with the model inside, replayed; the ring is read between replays."""
    import torch

    pair = IntegerPair((1, 12, 12), 10)
    seeds = 2 * count
    rules: dict[str, Any] = {"budget": 10, "shape": pair.shape}
    right = finish("cuda", pair, count, seeds, fused=False, budget=10)
    search = start("cuda", count, seeds, **rules)
    images = search.new_input()
    ops.refill(search)
    ops.mutate(search, images)
    static = [torch.zeros((count, pair.classes), device="cuda") for _ in range(2)]
    n = images[0].numel()
    rng = np.random.default_rng([pair.seed, pair.classes, *pair.shape])
    weights = torch.from_numpy(rng.integers(-9, 10, (n, pair.classes))).double().cuda()
    ripple = torch.from_numpy(rng.integers(-40, 41, (n, pair.classes))).double().cuda()

    def iterate() -> None:
        flat = images.reshape(count, n).double()
        sums = (torch.floor((flat - 128) @ weights / 32) + torch.remainder(flat @ ripple, 512)).long()
        static[0].copy_(sums * 2.0**-7)
        static[1].copy_((sums >> pair.drop_bits << pair.drop_bits) * 2.0**-7)
        ops.step(search, *static, images)

    ended: dict[int, tuple[bytes, ...]] = {}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        iterate()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(4):
                iterate()
        for _ in range(200):
            graph.replay()
            add_records(ended, search.drain())
            if len(ended) == seeds:
                break
    assert ended == right


# Gradient searches ---------------------------------------------------------------------------------------------------


def to_host(array: Any) -> NDArray[Any]:
    host: NDArray[Any] = array.cpu().numpy()
    return host


def some_descent(shape: tuple[int, int, int], variant: int) -> ops.Descent:
    table = (np.arange(256, dtype=np.float32) / 255 - 0.4) / np.linspace(0.2, 0.3, shape[0])[:, None]
    return ops.Descent(
        shape=shape,
        table=table.astype(np.float32),
        bound=np.full(shape[0], 0.06) if variant & 1 else None,
        total=np.full(shape[0], 0.2) if variant & 2 else None,
        project=bool(variant & 4),
        lattice=bool(variant & 8),
    )


@pytest.mark.parametrize("variant", range(16))
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 7, 5), (2, 17, 19), (3, 224, 224), (1, 1, 1)], ids=str)
def test_descend_equals_the_cpu(shape: tuple[int, int, int], variant: int) -> None:
    import torch

    count = 37
    rng = np.random.default_rng(variant)
    descent = some_descent(shape, variant)
    origin = some_images(count, shape)
    gradient = rng.normal(0, 0.1, origin.shape).astype(np.float32)
    odd = rng.random(origin.shape) < 0.1
    gradient[odd] = rng.choice(np.float32([np.nan, np.inf, -np.inf, 3e38, -0.0]), int(odd.sum()))
    state = ops.normalize(origin, descent.table)
    picture = np.zeros_like(origin)
    active = (np.arange(count) % 5 != 2) if variant % 3 else None
    device = [torch.from_numpy(array).cuda() for array in (state, gradient, origin, picture)]
    for _ in range(3):
        right = ops.descend(descent, state, gradient, origin, picture, active=active)
        left = ops.descend(descent, *device, active=active)
        for a, b in zip((device[0], device[3], *left), (state, picture, *right), strict=True):
            np.testing.assert_array_equal(as_bytes(to_host(a)), as_bytes(b))


def some_layers(count: int, seed: int, lost: float) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    rng = np.random.default_rng(seed)
    a = [
        rng.normal(size=(count, *s)).astype(np.float32) for s in [(64, 32, 32), (17, 9, 5), (10,), (3, 2, 4, 2, 5)] * 30
    ]
    b = [np.where(rng.random(x.shape) < lost, -np.abs(x), x).astype(np.float32) for x in a]
    for x in (*a, *b):
        x[rng.random(x.shape) < 0.01] = np.nan
    return a, b


@pytest.mark.parametrize("trials", [0, 1, 64, 2000])
@pytest.mark.parametrize("lost", [0.2, 1e-4, 0.0])
def test_neurons_equal_the_cpu(trials: int, lost: float) -> None:
    import torch

    count = 21
    original, compressed = some_layers(count, trials, lost)
    device = [[torch.from_numpy(x).cuda() for x in side] for side in (original, compressed)]
    device[1] = [x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in device[1]]
    how: dict[str, Any] = {"seed": 7, "identities": np.arange(count) << 33, "steps": np.arange(count), "trials": trials}
    for active in (None, np.arange(count) % 4 != 1):
        right = ops.select_neurons(original, compressed, active=active, **how)
        left = ops.select_neurons(*device, active=None if active is None else torch.from_numpy(active).cuda(), **how)
        for a, b in zip(left, right, strict=True):
            np.testing.assert_array_equal(to_host(a), b)
    rng = np.random.default_rng(0)
    right_marks = [rng.choice(np.uint8([0, 0, 0, 1, 5]), x[0].size) for x in compressed]
    left_marks = [torch.from_numpy(marks.copy()).cuda() for marks in right_marks]
    ops.cover(compressed, right_marks, active=active)
    ops.cover(device[1], left_marks, active=active)
    for marks, expected in zip(left_marks, right_marks, strict=True):
        np.testing.assert_array_equal(to_host(marks), expected)
    assert ops.count_covered(left_marks) == ops.count_covered(right_marks)


@pytest.mark.parametrize("classes", [2, 10, 33, 1000])
@pytest.mark.parametrize(
    "outputs", [("logits", "logits"), ("probabilities", "logits"), ("probabilities",) * 2], ids=str
)
def test_verdicts_equal_the_cpu(outputs: tuple[str, str], classes: int) -> None:
    scores = some_scores(np.random.default_rng(classes), 333, classes, outputs)
    right = ops.verdicts(*scores, outputs=outputs)
    left = ops.verdicts(*on_device(scores), outputs=outputs)
    for name in ("labels", "confidences", "non_finite"):
        np.testing.assert_array_equal(to_host(getattr(left, name)), getattr(right, name), err_msg=name)


def test_a_gradient_step_waits_for_nothing() -> None:
    import torch

    shape, count = (3, 32, 32), 8
    descent = some_descent(shape, 5)
    origin = torch.from_numpy(some_images(count, shape)).cuda()
    state, picture = torch.zeros(origin.shape, device="cuda"), torch.zeros_like(origin)
    layers = [torch.randn(count, 4, 6, 6, device="cuda"), torch.randn(count, 9, device="cuda")]
    marks = [torch.zeros(x[0].numel(), dtype=torch.uint8, device="cuda") for x in layers]
    scores = torch.randn(count, 10, device="cuda")
    active = np.ones(count, bool)

    def step() -> None:
        ops.cover(layers, marks, active=active)
        numbers = np.arange(count)
        ops.select_neurons(layers, [-x for x in layers], seed=1, identities=numbers, steps=numbers, active=active)
        ops.descend(descent, state, torch.zeros_like(state), origin, picture, active=active)
        ops.verdicts(scores, scores)

    step()  # brings the descent's tables there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
