"""The search loop beside the bare forward passes of the same two models, in one process.

    python -m bench.search [--pairs lenet5 resnet20] [--chains 512] [--device cpu] [--smoke]

Both sides use the same models, batch size, layout and input dtype. They take turns in short slices, so that a machine
that changes its speed changes it for both; the figure is the median over slices of (time of the forwards) / (time of
the loop).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import compdx
from bench.networks import NETWORKS, pair
from bench.record import record


def timed(run: Callable[[], Any], device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(name: str, chains: int, device: str, slices: int, seconds: float, memory_format: str) -> dict[str, Any]:
    original, compressed, shape = pair(name)
    original, compressed = original.to(device), compressed.to(device)
    if memory_format == "channels_last":
        original = original.to(memory_format=torch.channels_last)
        compressed = compressed.to(memory_format=torch.channels_last)
    options: dict[str, Any] = {"mean": 0.5, "std": 0.25, "memory_format": memory_format}
    models = compdx.Pair(compdx.Model(original, **options), compdx.Model(compressed, **options))
    images = np.random.default_rng(0).integers(0, 256, (4 * chains, *shape), dtype=np.uint8)
    loop = compdx.MCMC(budget=1000).start(
        compdx.Seeds(images), chains=chains, seed=0, device=device, inputs=models.inputs, outputs=("logits", "logits")
    )

    # The first queries are the seeds themselves, as the models want them.
    inputs = models.inputs
    expected = compdx.ops.normalize(
        images[:chains], inputs.table(shape[0]), layout=inputs.layout, dtype=inputs.dtype, threads=1
    )
    if not np.array_equal(torch.as_tensor(loop.ask()).cpu().numpy(), expected):
        msg = "the loop does not feed the models what normalize makes of the seeds"
        raise RuntimeError(msg)

    def iterate(count: int) -> None:
        for _ in range(count):
            loop.tell(*models.forward(loop.ask()))

    # What the loop feeds the models, taken once: the same values in the same place in memory.
    static = torch.as_tensor(loop.ask()).clone()
    if memory_format == "channels_last":
        static = static.permute(0, 3, 1, 2)

    def forwards(count: int) -> None:
        with torch.inference_mode():
            for _ in range(count):
                original(static)
                compressed(static)

    iterate(5)
    forwards(5)
    count = max(1, round(seconds / max(timed(lambda: forwards(3), device) / 3, 1e-6)))
    ratios, loop_seconds, forward_seconds = [], [], []
    for _ in range(slices):
        if not loop.active:
            msg = "the seeds ran out during the measurement; use more of them"
            raise RuntimeError(msg)
        bare = timed(lambda: forwards(count), device) / count
        whole = timed(lambda: iterate(count), device) / count
        ratios.append(bare / whole)
        loop_seconds.append(whole)
        forward_seconds.append(bare)
    progress = loop.progress
    return {
        "pair": name,
        "shape": list(shape),
        "chains": chains,
        "device": device,
        "memory_format": memory_format,
        "slices": slices,
        "iterations_per_slice": count,
        "ratio": statistics.median(ratios),
        "ratio_quartiles": statistics.quantiles(ratios, n=4),
        "queries_per_second": chains * progress.occupancy / statistics.median(loop_seconds),
        "forward_images_per_second": chains / statistics.median(forward_seconds),
        "occupancy": progress.occupancy,
        "ended": progress.ended,
        "bytes_per_chain": loop.bytes_per_chain,
        "torch_threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", choices=sorted(NETWORKS), default=sorted(NETWORKS))
    parser.add_argument("--chains", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory-format", choices=("contiguous", "channels_last"), default="channels_last")
    parser.add_argument("--smoke", action="store_true", help="a few iterations: does it run?")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    slices, seconds = (3, 0.05) if options.smoke else (30, 0.5)
    chains = min(options.chains, 64) if options.smoke else options.chains
    rows = [measure(name, chains, options.device, slices, seconds, options.memory_format) for name in options.pairs]
    for row in rows:
        print(
            f"{row['pair']:<9} B={row['chains']:<6} loop / bare forward {row['ratio']:.3f}   "
            f"{row['queries_per_second']:,.0f} queries/s   occupancy {row['occupancy']:.3f}   "
            f"{row['bytes_per_chain']:,} bytes a chain"
        )
    if not options.smoke or options.out:
        record("search", {"rows": rows}, options.out)


if __name__ == "__main__":
    main()
