"""The mutate step beside an OpenCV and NumPy loop over images, one core each, in one process.

    python -m bench.mutate [--smoke]

Both sides choose one of the seven operators uniformly for every image, draw its parameters, apply it and write the
float32 model input. They take turns in short slices; the figure is the median over slices of (time of the loop) / (time
of compdx). Before anything is timed, what mutate wrote is compared with the stateless operators, byte for byte.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from bench.augment import opencv_loop
from bench.record import record
from compdx import Inputs, ops

SHAPES = {"1x28x28": (1, 28, 28), "3x32x32": (3, 32, 32), "3x224x224": (3, 224, 224)}


def seconds_of(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def working_chains(images: np.ndarray, isa: str | None, threads: int) -> ops.Chains:
    """Chains on their first mutant: nothing was accepted yet, so the choice of the operator is uniform."""
    count = len(images)
    chains = ops.Chains(
        ops.Rules(shape=images.shape[1:], acceptance="never", skip_identity=False),
        images,
        identities=np.arange(count, dtype=np.uint64),
        queue=np.arange(count),
        count=count,
        threads=threads,
        isa=isa,
    )
    ops.refill(chains)
    ops.mutate(chains, chains.new_input())
    same = np.zeros((count, 2), np.float32)
    ops.judge(chains, same, same)
    return chains


def check(chains: ops.Chains, images: np.ndarray) -> None:
    out = chains.new_input()
    ops.mutate(chains, out)
    pending = chains.records["pending"]
    for code, operator in enumerate(ops.OPERATORS):
        rows = np.flatnonzero(pending == code)
        expected = ops.apply(images[rows], operator, index=rows, step=1, isa="scalar")
        if not np.array_equal(out[rows], expected):
            msg = f"mutate and apply disagree on {operator}"
            raise RuntimeError(msg)


def measure(name: str, isa: str, threads: int, slices: int, count: int) -> dict[str, Any]:
    shape = SHAPES[name]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    chains = working_chains(images, isa, threads)
    check(chains, images)
    table = chains.new_table(Inputs(mean=0.5, std=0.25).table(shape[0]), "float32")
    out = chains.new_input(dtype="float32")
    hwc = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    peer = hwc[: max(1, min(count, 2_000_000 // hwc[0].size))]

    def ours() -> None:
        ops.mutate(chains, out, table=table, dtype="float32")

    repeats = max(1, round(0.02 / max(min(seconds_of(ours) for _ in range(3)), 1e-6)))
    opencv_loop(peer[:8], rng)
    ratios, our_rates, peer_rates = [], [], []
    for _ in range(slices):
        loop = seconds_of(lambda: opencv_loop(peer, rng)) / len(peer)
        mine = seconds_of(lambda: [ours() for _ in range(repeats)]) / (repeats * count)
        ratios.append(loop / mine)
        our_rates.append(1 / mine)
        peer_rates.append(1 / loop)
    return {
        "shape": list(shape),
        "images": count,
        "isa": isa,
        "threads": threads,
        "slices": slices,
        "ratio": statistics.median(ratios),
        "ratio_quartiles": statistics.quantiles(ratios, n=4),
        "images_per_second": statistics.median(our_rates),
        "peer_images_per_second": statistics.median(peer_rates),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="small and short: does it run?")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    rows = []
    for name in list(SHAPES)[: 2 if options.smoke else 3]:
        count = 64 if options.smoke else {"1x28x28": 4096, "3x32x32": 2048, "3x224x224": 64}[name]
        for isa in ops.available_isas():
            row = measure(name, isa, 1, 3 if options.smoke else 15, count)
            rows.append(row)
            print(
                f"{name:<10} {isa:<7} {row['images_per_second']:>12,.0f} images/s   "
                f"{row['ratio']:6.1f} x the OpenCV and NumPy loop ({row['peer_images_per_second']:,.0f} images/s)"
            )
    if not options.smoke or options.out:
        record("mutate", {"rows": rows}, options.out)


if __name__ == "__main__":
    main()
