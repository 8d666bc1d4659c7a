"""Every native operation beside a copy of the same number of bytes, in turns, in one process.

    python -m bench.kernels [--device cuda] [--shapes 1x28x28] [--only mutate judge] [--smoke]

mutate for each operator, each window of the blurs and the uniform mix, with float32, bfloat16 and without model input;
judge for 10, 100 and 1,000 classes; normalise; the whole step where the package has one; and what harvest and refill
add. On the CPU with every instruction set of the machine, on one core and on two, and beside a loop of OpenCV and NumPy
over images. On CUDA each figure is that of a replayed graph of 16 launches.

The limit is the copy: it reads and writes as many bytes together as the operation must (n = C * H * W pixels: mutate
reads n, writes n and the model input, 4n in float32, 2n in bfloat16, n as uint8). Before anything is timed, what mutate
wrote is compared with the stateless operators byte for byte, and the verdicts of judge with NumPy's.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

# The copy is torch's. Its threads shall sleep afterwards; by default they spin, on a core that is measured next.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch

from bench.record import named, record, usable_cores
from bench.timing import Laps, bar, captured, spread, take_turns
from compdx import Inputs, ops

Array = np.ndarray

SHAPES = {"1x28x28": (1, 28, 28), "3x32x32": (3, 32, 32), "3x224x224": (3, 224, 224)}
# On CUDA the working set is beyond every cache.
COUNTS = {
    "cpu": {"1x28x28": 4096, "3x32x32": 2048, "3x224x224": 64},
    "cuda": {"1x28x28": 65_536, "3x32x32": 16_384, "3x224x224": 512},
}
WINDOWS = {"box": range(1, 6), "gaussian": (1, 3, 5, 7), "median": (1, 3, 5, 7)}
DRAWS: tuple[tuple[str, int | None], ...] = tuple(
    (operator, window) for operator in ops.OPERATORS for window in WINDOWS.get(operator, (None,))
)
# Bytes of model input a pixel.
OUTPUTS = {"uint8": 1, "float32": 4, "bfloat16": 2}
CLASSES = (10, 100, 1000)
# Of a chain, judge reads and writes its record and looks into one sector of its coverage.
JUDGE_STATE = 128 + 96
QUERIES_PER_SEED = 36  # of the default search on a LeNet-1 and its 8-bit version
LAUNCHES = 16  # in one CUDA graph
INPUTS = Inputs(mean=0.5, std=0.25)


@dataclass(frozen=True)
class How:
    """Where an operation runs, and how long it is measured."""

    device: str
    isa: str | None
    threads: int | None
    slices: int
    seconds: float

    def facts(self) -> dict[str, Any]:
        where = {"device": "cuda"} if self.isa is None else {"device": "cpu", "isa": self.isa, "threads": self.threads}
        return {**where, "slices": self.slices}

    def zeros(self, *shape: int) -> Any:
        return np.zeros(shape, np.float32) if self.device == "cpu" else torch.zeros(shape, device=self.device)

    def put(self, array: Array) -> Any:
        return array if self.device == "cpu" else torch.from_numpy(array).to(self.device)


def first_mutants(images: Array, identities: Array, how: How, **rules: Any) -> ops.Chains:
    """Chains whose next query is their first mutant, again and again: nothing is judged, so nothing changes."""
    chains = ops.Chains(
        ops.Rules(shape=images.shape[1:], budget=2, acceptance="never", skip_identity=False, **rules),
        images,
        identities=identities.astype(np.uint64),
        queue=np.arange(len(images)),
        count=len(images),
        device=how.device,
        threads=how.threads,
        isa=how.isa,
    )
    ops.refill(chains)
    ops.mutate(chains, chains.new_input())
    same = how.zeros(len(images), 2)
    ops.judge(chains, same, same)
    return chains


@cache
def identities_of() -> dict[tuple[str, int | None], Array]:
    """Identities of seeds whose first mutant is drawn as a given operator and window: mutate itself is asked."""
    pool = np.arange(20_000)
    images = np.random.default_rng(1).integers(0, 256, (len(pool), 1, 8, 8), dtype=np.uint8)
    chains = first_mutants(images, pool, How("cpu", None, 1, 0, 0))
    out = chains.new_input()
    ops.mutate(chains, out)
    pending = chains.records["pending"]
    found = {}
    for operator, window in DRAWS:
        rows = np.flatnonzero(pending == ops.OPERATORS.index(operator))
        if window is not None:
            drawn = ops.apply(images[rows], operator, size=window, index=rows, step=1)
            rows = rows[(drawn == out[rows]).all(axis=(1, 2, 3))]
        found[operator, window] = rows
    return found


@cache
def pictures(name: str, count: int) -> Array:
    """Random images; nobody writes to them."""
    return np.random.default_rng(0).integers(0, 256, (count, *SHAPES[name]), dtype=np.uint8)


def check_mutants(chains: ops.Chains, images: Array, identities: Array) -> None:
    """Some mutants of every operator, as many as are checked in a moment, are those of the stateless operators."""
    most = max(4, (1 << 20) // images[0].size)
    out = chains.new_input()
    ops.mutate(chains, out)
    written = np.asarray(out if isinstance(out, np.ndarray) else out.cpu())
    pending = chains.records["pending"]
    for code, operator in enumerate(ops.OPERATORS):
        rows = np.flatnonzero(pending == code)[:most]
        expected = ops.apply(images[rows], operator, index=identities[rows], step=1, isa="scalar")
        if not np.array_equal(written[rows], expected):
            msg = f"mutate and apply disagree on {operator}"
            raise RuntimeError(msg)


def opencv(images: Array) -> Callable[[], Any]:
    """The loop of OpenCV and NumPy over images, on one core."""
    import cv2

    from bench.augment import opencv_loop

    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    return lambda: opencv_loop(images, rng)


def copier(size: int, how: How) -> Callable[[], Any]:
    """A copy that reads and writes ``size`` bytes together."""
    source = torch.ones(max(1, size // 2), dtype=torch.uint8, device=how.device)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


def beside_copy(
    run: Callable[[], Any],
    per_item: int,
    count: int,
    how: How,
    others: Mapping[str, Callable[[], Any]] = MappingProxyType({}),
    most: int = 1 << 30,
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Rates of ``run``, which does ``count`` items, beside the copy; and the seconds of each side, slice by slice."""
    if not how.slices:  # for a profiler: no clock, nothing beside it
        for _ in range(3):
            run()
        return {}, {}
    sides = {"run": run, "copy": copier(per_item * count, how)}
    items, about = count, {}
    if how.device == "cpu":
        torch.set_num_threads(how.threads or 1)
    else:
        items *= LAUNCHES
        launched = {name: many(side, LAUNCHES) for name, side in sides.items()}
        sides = {name: side for name, (side, _) in launched.items()}
        about = {"launched_by": launched["run"][1]}
    sides |= others
    seconds = take_turns(sides, slices=how.slices, seconds=how.seconds, device=how.device, most=most)
    total = per_item * items
    figures = {
        **spread("items_per_second", [items / value for value in seconds["run"]]),
        "bytes_per_item": per_item,
        **spread("bytes_per_second", [total / value for value in seconds["run"]]),
        **spread("copy_bytes_per_second", [total / value for value in seconds["copy"]]),
        **spread("share_of_copy", [copy / mine for mine, copy in zip(seconds["run"], seconds["copy"], strict=True)]),
        **about,
    }
    return figures, seconds


def many(run: Callable[[], Any], repeats: int) -> tuple[Callable[[], Any], str]:
    """``run`` so many times in one call, and what launches it; a graph that cannot be captured is said, not hidden."""

    def all_of_them() -> None:
        for _ in range(repeats):
            run()

    try:
        return captured(all_of_them), "graph"
    except RuntimeError as error:
        return all_of_them, f"calls, not a graph: {str(error).splitlines()[0]}"


def mutation(
    name: str, draw: tuple[str, int | None] | None, output: str, how: How, count: int, *, peer: bool = False
) -> dict[str, Any]:
    """mutate with one operator and window, or with the uniform mix of them all."""
    shape = SHAPES[name]
    pixels = int(np.prod(shape))
    images = pictures(name, count)
    identities = np.arange(count) if draw is None else np.resize(identities_of()[draw], count)
    sample = np.ascontiguousarray(images[: max(1, min(count, 500_000 // pixels))].transpose(0, 2, 3, 1))

    def mutating(where: How) -> Callable[[], Any]:
        chains = first_mutants(images, identities, where)
        check_mutants(chains, images, identities)
        out = chains.new_input(dtype=output)
        table = None if output == "uint8" else chains.new_table(INPUTS.table(shape[0]), output)
        return lambda: ops.mutate(chains, out, table=table, dtype=output)

    others = {"peer": opencv(sample)} if peer else {}
    if draw is None and output == "float32" and how.threads is not None and how.threads > 1:
        others["one core"] = mutating(replace(how, threads=1))
    figures, seconds = beside_copy(mutating(how), pixels * (2 + OUTPUTS[output]), count, how, others)
    operator, window = ("mix", None) if draw is None else draw
    row = {
        "what": "mutate",
        "operator": operator,
        "window": window,
        "output": output,
        "shape": list(shape),
        "items": count,
        **how.facts(),
    }
    if peer:
        theirs = [value / len(sample) for value in seconds["peer"]]
        figures |= spread("peer_items_per_second", [1 / value for value in theirs])
        figures |= spread("ratio", [b / (a / count) for a, b in zip(seconds["run"], theirs, strict=True)])
    if "one core" in others:
        figures |= spread("times_one_core", [b / a for a, b in zip(seconds["run"], seconds["one core"], strict=True)])
    return row | figures


def scores(count: int, classes: int, sets: int, how: How) -> list[tuple[Any, Any]]:
    """Logits of two models that agree on every label, and closely."""
    rng = np.random.default_rng(2)
    found = []
    for _ in range(sets):
        a = rng.normal(0, 2, (count, classes)).astype(np.float32)
        a[:, 0] = a.max(axis=1) + 1
        b = a + rng.uniform(-0.2, 0.2, a.shape).astype(np.float32)
        found.append((how.put(a), how.put(b)))
    return found


def working_chains(name: str, count: int, budget: int, how: How) -> ops.Chains:
    """Chains with the default settings but a uniform choice of operators, asked once."""
    shape = SHAPES[name]
    images = pictures(name, count)
    chains = ops.Chains(
        ops.Rules(shape=shape, budget=budget, capacity=2048, selection="uniform", skip_identity=False),
        images,
        identities=np.arange(count, dtype=np.uint64),
        queue=np.arange(count),
        count=count,
        device=how.device,
        threads=how.threads,
        isa=how.isa,
    )
    ops.refill(chains)
    ops.mutate(chains, chains.new_input())
    return chains


def check_verdicts(count: int, classes: int, how: How) -> None:
    """Chains end exactly where the labels of NumPy differ, and keep those labels."""
    rng = np.random.default_rng(4)
    a, b = (rng.normal(0, 1, (count, classes)).astype(np.float32) for _ in range(2))
    b[::2] = a[::2]
    chains = working_chains("1x28x28", count, 4, how)
    ops.judge(chains, how.put(a), how.put(b))
    records = chains.records
    labels = np.stack([records["original_label"], records["compressed_label"]])
    ended = records["status"] == ops.ENDED
    expected = np.stack([a.argmax(axis=1), b.argmax(axis=1)])
    if not (np.array_equal(ended, expected[0] != expected[1]) and np.array_equal(labels, expected)):
        msg = f"the verdicts of judge on {classes} classes are not those of NumPy"
        raise RuntimeError(msg)


def over_steps(chains: ops.Chains, run: Callable[[int], Any]) -> Callable[[], Any]:
    """``run(k)`` for k = 0, 1, ... of the given chains; they must not come to the end of their budget."""
    calls = iter(range(chains.rules.budget - 1))
    return lambda: run(next(calls))


def judging(classes: int, how: How, count: int) -> dict[str, Any]:
    """judge on scores of two models that agree, so that all chains go on."""
    check_verdicts(min(count, 256), classes, how)
    budget = 4096
    chains = working_chains("1x28x28", count, budget, how)
    sets = scores(count, classes, 4, how)
    run = over_steps(chains, lambda step: ops.judge(chains, *sets[step % len(sets)]))
    most = max(1, (budget - 200) // ((how.slices + 4) * (LAUNCHES if how.device != "cpu" else 1)))
    figures, _ = beside_copy(run, 8 * classes + JUDGE_STATE, count, how, most=most)
    check_working(chains)
    return {"what": "judge", "classes": classes, "items": count, **how.facts(), **figures}


def check_working(chains: ops.Chains) -> None:
    """Every chain was judged all the time."""
    if not (chains.records["status"] == ops.ACTIVE).all():
        msg = "chains ended while judge was measured"
        raise RuntimeError(msg)


def stepping(name: str, output: str, how: How, count: int) -> dict[str, Any]:
    """judge to mutate in one, as the search runs it: 10 classes, and the uniform mix of operators."""
    pixels = int(np.prod(SHAPES[name]))
    budget = 1024
    chains = working_chains(name, count, budget, how)
    sets = scores(count, 10, 4, how)
    out = chains.new_input(dtype=output)
    table = chains.new_table(INPUTS.table(SHAPES[name][0]), output)
    run = over_steps(
        chains,
        lambda step: ops.step(chains, *sets[step % len(sets)], out, layout="NCHW", dtype=output, table=table),
    )
    most = max(1, (budget - 200) // ((how.slices + 4) * (LAUNCHES if how.device != "cpu" else 1)))
    per_item = pixels * (2 + OUTPUTS[output]) + 8 * 10 + JUDGE_STATE
    figures, _ = beside_copy(run, per_item, count, how, most=most)
    check_working(chains)
    row = {"what": "step", "operator": "mix", "output": output, "shape": list(SHAPES[name]), "items": count}
    return row | how.facts() | figures


def normalising(name: str, how: How, count: int) -> dict[str, Any]:
    """normalize into memory that is there already: pixels in, float32 out."""
    shape = SHAPES[name]
    pixels = int(np.prod(shape))
    images = pictures(name, count)
    table = INPUTS.table(shape[0])
    expected = np.stack([table[channel][images[:8, channel]] for channel in range(shape[0])], axis=1)
    backend = ops.backend.backend_for(how.device, how.threads, how.isa)
    given, entries, out = backend.put(images), backend.put(table), backend.zeros(images.shape, np.float32)
    arguments = {"images": backend.view(given), "count": count, "shape": shape, "data": backend.view(out)}
    arguments |= {"table": backend.view(entries), "type": "float32", "layout": "NCHW"}
    backend.call("normalize", **arguments)
    if not np.array_equal(backend.get(out)[:8], expected):
        msg = "normalize is not a look-up in its table"
        raise RuntimeError(msg)
    figures, _ = beside_copy(lambda: backend.call("normalize", **arguments), 5 * pixels, count, how)
    return {"what": "normalise", "output": "float32", "shape": list(shape), "items": count, **how.facts(), **figures}


def housekeeping(name: str, how: How, count: int, iterations: int) -> dict[str, Any]:
    """What each step takes of the loop's own time when chains end as often as in a real search, the ring drained."""
    shape = SHAPES[name]
    images = pictures(name, count)
    chains = ops.Chains(
        ops.Rules(shape=shape),
        images,
        identities=np.arange(count, dtype=np.uint64),
        queue=np.resize(np.arange(count), count * (iterations + 2)),
        count=count,
        device=how.device,
        threads=how.threads,
        isa=how.isa,
    )
    ops.refill(chains)
    out = chains.new_input(dtype="float32")
    table = chains.new_table(INPUTS.table(shape[0]), "float32")
    rng = np.random.default_rng(7)
    sets = []
    for a, b in scores(count, 10, 8, How("cpu", how.isa, how.threads, 0, 0)):
        deviating = rng.random(count) < 1 / QUERIES_PER_SEED
        b[deviating, 1] = b[deviating].max(axis=1) + 1
        sets.append((how.put(a), how.put(b)))
    laps, drained = Laps(how.device), 0
    for iteration in range(iterations):
        a, b = sets[iteration % len(sets)]
        laps.start()
        ops.mutate(chains, out, table=table, dtype="float32")
        laps.lap("mutate")
        ops.judge(chains, a, b)
        laps.lap("judge")
        ops.harvest(chains)
        laps.lap("harvest")
        ops.refill(chains)
        laps.lap("refill")
        # As the loop does: on CUDA reading waits for the device, so the ring is given time to fill.
        if chains.poll()["ended"] - drained >= max(1, chains.ring_capacity // 4):
            drained += len(chains.drain()["chains"])
        laps.lap("drain")
    seconds = laps.totals()
    counters = chains.counters
    if counters["ended"] < iterations * count / QUERIES_PER_SEED / 2:
        msg = f"only {counters['ended']} chains ended; the share of harvest and refill would be that of idle steps"
        raise RuntimeError(msg)
    return {
        "what": "housekeeping",
        "shape": list(shape),
        "items": count,
        "iterations": iterations,
        "ended": counters["ended"],
        **how.facts(),
        "shares": {name: value / sum(seconds.values()) for name, value in seconds.items()},
        "nanoseconds_a_query": {name: value * 1e9 / (iterations * count) for name, value in seconds.items()},
    }


def traced(device: str, shapes: list[str]) -> None:
    """Three launches of what an iteration is made of, at full size and without clocks: for ncu and the like."""
    how, counts = How(device, None, None, 0, 0), COUNTS["cpu" if device == "cpu" else "cuda"]
    for name in shapes:
        mutation(name, None, "float32", how, counts[name])
        if hasattr(ops, "step"):
            stepping(name, "float32", how, counts[name])
    judging(10, how, counts["1x28x28"])


def places(device: str, smoke: bool) -> tuple[How, list[How]]:
    """The best way to run, and all of them."""
    slices, seconds = (3, 0.002) if smoke else (9, 0.025)
    if device != "cpu":
        best = How(device, None, None, slices, seconds / 2)
        return best, [best]
    isas = ops.available_isas()
    cores = [1, 2] if usable_cores() > 1 else [1]
    return How(device, isas[0], 1, slices, seconds), [
        How(device, isa, threads, slices, seconds) for isa in isas for threads in cores
    ]


def rows(device: str, shapes: list[str], only: list[str], smoke: bool) -> Iterator[dict[str, Any]]:
    """Everything that is asked for, one row after the other."""
    best, ways = places(device, smoke)
    counts = dict.fromkeys(SHAPES, 16) if smoke else COUNTS["cpu" if device == "cpu" else "cuda"]
    judged = 64 if smoke else 1024 if device == "cpu" else 65_536
    alone = [how for how in ways if how.threads in (1, None)]
    if "mutate" in only:
        for name in shapes:
            for how in ways:
                for output in OUTPUTS:
                    peer = output == "float32" and how.threads == 1
                    yield mutation(name, None, output, how, counts[name], peer=peer)
            for draw in DRAWS:
                for how in alone:
                    yield mutation(name, draw, "float32", how, counts[name])
                yield mutation(name, draw, "uint8", best, counts[name])
                if device != "cpu":
                    yield mutation(name, draw, "bfloat16", best, counts[name])
    if "step" in only and hasattr(ops, "step"):
        for name in shapes:
            for how in ways:
                for output in ("float32", "bfloat16"):
                    yield stepping(name, output, how, counts[name])
    if "judge" in only:
        for classes in CLASSES:
            for how in ways:
                yield judging(classes, how, judged)
    if "normalise" in only:
        for name in shapes:
            for how in ways:
                yield normalising(name, how, counts[name])
    if "housekeeping" in only:
        for name in shapes:
            if name != "3x224x224":
                yield housekeeping(name, best, counts[name], 20 if smoke else 300)


def show(row: dict[str, Any]) -> None:
    where = row.get("isa", "cuda") + (f" x{row['threads']}" if "threads" in row else "")
    about = "x".join(map(str, row["shape"])) if "shape" in row else f"K={row['classes']}"
    title = " ".join(str(row[key]) for key in ("operator", "window", "output") if row.get(key) is not None)
    print(f"{row['what']:<10} {about:<10} {where:<10} {title:<24}", end=" ")
    if row["what"] == "housekeeping":
        print("   ".join(f"{name} {share:.1%}" for name, share in row["shares"].items()), flush=True)
        return
    peer = f"   {row['ratio']:.1f} x OpenCV and NumPy" if "ratio" in row else ""
    if "times_one_core" in row:
        peer = f"   {row['times_one_core']:.2f} x one core"
    print(
        f"{bar(row['share_of_copy'])} {row['share_of_copy']:6.1%} of a copy   {row['items_per_second']:>13,.0f} /s   "
        f"{row['bytes_per_second'] / 1e9:7.2f} GB/s{peer}",
        flush=True,
    )


def main() -> None:
    kinds = ("mutate", "step", "judge", "normalise", "housekeeping")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--smoke", action="store_true", help="small and short: does it run?")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--trace", action="store_true", help="three launches and no clock, for a profiler")
    options = parser.parse_args()
    if options.trace:
        traced(options.device, options.shapes)
        return
    found: list[dict[str, Any]] = []

    def keep(complete: bool) -> None:
        if not options.smoke or options.out:
            record(named("kernels", options.device), {"complete": complete, "rows": found}, options.out)

    for row in rows(options.device, options.shapes, options.only, options.smoke):
        show(row)
        found.append(row)
        if len(found) % 20 == 0:
            keep(complete=False)
    keep(complete=True)


if __name__ == "__main__":
    main()
