"""ops.step on the CPU: the four steps in one call, the ring that it fills, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compdx import ops
from stubs import IntegerPair, some_images

PAIR = IntegerPair((2, 6, 5), 10)


def start(count: int, seeds: int, **rules: Any) -> ops.Chains:
    search = ops.Chains(
        ops.Rules(shape=PAIR.shape, **{"budget": 7, **rules}),
        some_images(seeds, PAIR.shape),
        identities=np.arange(seeds)[::-1].astype(np.uint64),
        queue=np.arange(seeds),
        count=count,
        threads=2,
    )
    ops.refill(search)
    return search


def everything(search: ops.Chains, images: Any) -> dict[str, Any]:
    return search.state() | search.counters | {"input": np.array(images)}


@pytest.mark.parametrize("dtype", ["uint8", "float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("coverage", ["hash", "nearest"])
def test_step_is_the_four_steps(coverage: str, layout: Any, dtype: str) -> None:
    searches = [start(20, 50, coverage=coverage) for _ in range(2)]
    how: dict[str, Any] = {"layout": layout, "dtype": dtype}
    if dtype != "uint8":
        how["table"] = searches[0].new_table(np.linspace(-1, 1, 512, dtype=np.float32).reshape(2, 256), dtype)
    inputs = [search.new_input(layout=layout, dtype=dtype) for search in searches]
    for search, images in zip(searches, inputs, strict=True):
        ops.mutate(search, images, **how)
    rng = np.random.default_rng(0)
    for i in range(25):
        raw = rng.normal(0, 3, (20, 10)).astype(np.float32)
        scores = (raw, np.where(rng.random((20, 1)) < 0.9, raw * np.float32(0.99), raw[::-1]))
        ops.step(searches[0], *scores, inputs[0], **how)
        ops.judge(searches[1], *scores)
        ops.harvest(searches[1])
        ops.refill(searches[1])
        ops.mutate(searches[1], inputs[1], **how)
        left, right = (everything(search, images) for search, images in zip(searches, inputs, strict=True))
        assert left.keys() == right.keys()
        for name in left:
            assert np.array_equal(left[name], right[name]), f"step {i}: {name}"
        if i % 5 == 4:
            drained = [search.drain()["chains"].tobytes() for search in searches]
            assert drained[0] == drained[1]
    assert searches[0].counters["ended"] > 20


def test_a_full_ring_parks_chains_until_it_is_read() -> None:
    """Budget 1: every chain ends at once, so the ring of 2 * count is full after two steps."""
    search = start(4, 30, budget=1)
    images = search.new_input()
    ops.mutate(search, images)
    ended: list[int] = []
    same = np.zeros((4, 10), np.float32)
    for _ in range(5):
        ops.step(search, same, same, images)
    counters = search.counters
    assert (counters["ended"], counters["consumed"], counters["next"]) == (8, 0, 12)
    assert counters["active"] == 0
    assert (search.records["status"] == ops.ENDED).all()
    ended += search.drain()["chains"]["seed_index"].tolist()
    assert search.counters["consumed"] == 8
    assert len(search.drain()["chains"]) == 0
    while search.counters["ended"] < 30:
        ops.step(search, same, same, images)
        ended += search.drain()["chains"]["seed_index"].tolist()
    # In the order of the queue, each seed once.
    assert ended == list(range(30))[::-1]


def test_a_new_chain_finds_its_table_empty() -> None:
    """One slot, many seeds with the same scores: what one chain has seen is new to the next."""
    search = start(1, 40, budget=4, acceptance="never")
    images = search.new_input()
    ops.mutate(search, images)
    rng = np.random.default_rng(2)
    states = [rng.normal(0, 2, (1, 10)).astype(np.float32) for _ in range(3)]
    found = []
    for i in range(160):
        scores = states[min(i % 4, 2)]  # three states, the last of them twice
        ops.step(search, scores, scores, images)
        found += search.drain()["chains"]["states"].tolist()
    assert found == [3] * 40


ZEROS = np.zeros((3, 10), np.float32)


@pytest.mark.parametrize(
    ("arguments", "how", "error", "message"),
    [
        ((ZEROS, ZEROS[:, :9], "out"), {}, ValueError, "original, compressed: expected scores of one shape"),
        ((ZEROS[:2], ZEROS, "out"), {}, ValueError, r"original: expected scores \[3, K\]"),
        ((ZEROS, ZEROS, np.zeros((2, 2, 6, 5), np.uint8)), {}, ValueError, r"out: expected shape \(3, 2, 6, 5\)"),
        ((ZEROS, ZEROS, "out"), {"dtype": "float32"}, TypeError, "out: expected float32, got uint8"),
        ((ZEROS, ZEROS, "out"), {"layout": "CHW"}, ValueError, "layout: expected one of"),
        ((ZEROS, ZEROS, "out"), {"table": ZEROS}, ValueError, "table: expected None for 'uint8'"),
    ],
)
def test_step_refuses_by_name_and_does_nothing(
    arguments: tuple[Any, ...], how: dict[str, Any], error: type[Exception], message: str
) -> None:
    search = start(3, 9)
    images = search.new_input()
    ops.mutate(search, images)
    before = everything(search, images)
    scores, out = arguments[:2], images if isinstance(arguments[2], str) else arguments[2]
    with pytest.raises(error, match=message):
        ops.step(search, *scores, out, **how)
    after = everything(search, images)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    with pytest.raises(TypeError, match="chains: expected Chains, got str"):
        ops.step("chains", ZEROS, ZEROS, images)  # type: ignore[arg-type]
