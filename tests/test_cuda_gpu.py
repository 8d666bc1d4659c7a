"""The CUDA back end on a device: after every step of a search all memory equals that of the CPU, byte for byte.

Whole runs, operators and model inputs are compared in test_invariance.py, test_operators.py and test_model.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import compdx.ops as ops
from stubs import some_images

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
