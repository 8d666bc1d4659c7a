"""Where the time of an iteration goes: mutate, each model, judge, harvest and refill, and Python between them.

    python -m bench.profile [--pairs lenet5 resnet20] [--chains 512] [--device cuda] [--smoke]

The parts are those of one iteration taken apart by hand, each between two marks; the whole is the search's own
iteration, in turns with it. What the whole takes beyond its parts is the row "rest"; it is negative where the search
overlaps or joins what is apart here. On CUDA the marks are events on the stream, the parts lie in NVTX ranges for
Nsight, and the longest kernels are listed as PyTorch's profiler sees them.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

import compdx
from bench.networks import NETWORKS, pair
from bench.record import named, record
from bench.search import Subject
from bench.timing import Laps, bar, spread
from compdx import ops

PARTS = ("mutate", "original", "compressed", "judge", "harvest and refill", "poll")
KERNELS = 12


class Parts:
    """One iteration after the other, step by step, with a mark after each step."""

    def __init__(self, models: compdx.Pair, images: np.ndarray, chains: int) -> None:
        inputs = models.inputs
        self.models = models
        self.chains = ops.Chains(
            ops.Rules(shape=images.shape[1:]),
            images,
            identities=np.arange(len(images), dtype=np.uint64),
            queue=np.arange(len(images)),
            count=chains,
            device=models.device,
        )
        ops.refill(self.chains)
        self.how = {"layout": inputs.layout, "dtype": inputs.dtype}
        self.input = self.chains.new_input(**self.how)
        self.table = self.chains.new_table(inputs.table(images.shape[1]), inputs.dtype)
        self.drained = 0

    def run(self, count: int, laps: Laps) -> None:
        chains, models = self.chains, self.models
        for _ in range(count):
            laps.start()
            ops.mutate(chains, self.input, table=self.table, **self.how)
            x = chains.typed(self.input, self.how["dtype"])
            laps.lap("mutate")
            a = models.original.forward(x)
            laps.lap("original")
            b = models.compressed.forward(x)
            laps.lap("compressed")
            ops.judge(chains, a, b)
            laps.lap("judge")
            ops.harvest(chains)
            ops.refill(chains)
            laps.lap("harvest and refill")
            if chains.poll()["ended"] - self.drained >= max(1, chains.ring_capacity // 4):
                self.drained += len(chains.drain()["chains"])
            laps.lap("poll")


class Ranged(Laps):
    """Laps that are NVTX ranges too."""

    def start(self) -> None:
        torch.cuda.nvtx.range_push(PARTS[0])
        super().start()

    def lap(self, name: str) -> None:
        super().lap(name)
        torch.cuda.nvtx.range_pop()
        place = PARTS.index(name) + 1
        if place < len(PARTS):
            torch.cuda.nvtx.range_push(PARTS[place])


def kernels(subject: Subject, count: int) -> list[dict[str, Any]]:
    """The longest kernels of the search's own iterations, in microseconds an iteration."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        subject.run(count)
        torch.cuda.synchronize()
    rows = sorted(profile.key_averages(), key=lambda row: row.device_time_total, reverse=True)
    return [
        {"kernel": row.key[:120], "calls": row.count / count, "microseconds": row.device_time_total / count}
        for row in rows[:KERNELS]
        if row.device_time_total > 0
    ]


def measure(name: str, chains: int, device: str, slices: int, seconds: float) -> dict[str, Any]:
    original, compressed, shape = pair(name)
    wanted: dict[str, Any] = {"mean": 0.5, "std": 0.25, "memory_format": "channels_last"}
    models = compdx.Pair(
        *(
            compdx.Model(module.to(device).to(memory_format=torch.channels_last), **wanted)
            for module in (original, compressed)
        )
    )
    count = max(4 * chains, min(1 << 16, (1 << 26) // math.prod(shape)))
    images = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
    subject, parts = Subject(models, images, chains), Parts(models, images, chains)
    subject.check()
    subject.run(2)
    parts.run(2, Laps(device))
    if len(parts.chains.drain()["chains"]) + parts.drained != len(subject.loop.take()):
        msg = "the iteration taken apart is not that of the search: not as many chains have ended"
        raise RuntimeError(msg)
    parts.drained = parts.chains.counters["ended"]
    subject.warm_up()
    repeats = max(1, min(200, round(seconds / max(subject.timed(1)[0], 1e-6))))
    found: dict[str, list[float]] = {part: [] for part in ("iteration", *PARTS, "rest")}
    for _ in range(slices):
        laps = Laps(device) if device == "cpu" else Ranged(device)
        parts.run(repeats, laps)
        apart = {part: value / repeats for part, value in laps.totals().items()}
        whole, _ = subject.timed(repeats)
        for part, value in {**apart, "iteration": whole, "rest": whole - sum(apart.values())}.items():
            found[part].append(value)
        subject.renew()
        if parts.chains.counters["ended"] > count // 2:
            parts = Parts(models, images, chains)
    whole = spread("seconds", found["iteration"])["seconds"]
    row = {
        "pair": name,
        "shape": list(shape),
        "chains": chains,
        "device": device,
        "slices": slices,
        "iterations_per_slice": repeats,
        "torch_threads": torch.get_num_threads(),
        **spread("seconds", found.pop("iteration")),
        "parts": {
            part: {**spread("seconds", values), "share": spread("seconds", values)["seconds"] / whole}
            for part, values in found.items()
        },
    }
    if device != "cpu":
        row["kernels"] = kernels(subject, 20)
    return row


def show(row: dict[str, Any]) -> None:
    print(f"{row['pair']} B={row['chains']} on {row['device']}: {row['seconds'] * 1e6:,.0f} us an iteration")
    for part, figures in row["parts"].items():
        print(f"  {part:<20}{bar(figures['share'])} {figures['share']:7.1%} {figures['seconds'] * 1e6:12,.1f} us")
    for kernel in row.get("kernels", ()):
        print(f"  {kernel['microseconds']:10.1f} us {kernel['calls']:6.1f} calls   {kernel['kernel']}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", choices=list(NETWORKS), default=["lenet1", "lenet5", "resnet20"])
    parser.add_argument("--chains", nargs="+", type=int, default=None, help="default 512, on CUDA 1024 and 8192")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--smoke", action="store_true", help="a few iterations: does it run?")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    chains = options.chains or ([512] if options.device == "cpu" else [1024, 8192])
    if options.smoke:
        options.pairs, chains = options.pairs[:1], [16]
    slices, seconds = (2, 0.02) if options.smoke else (11, 0.3)
    rows = []
    for name in options.pairs:
        for count in chains:
            rows.append(measure(name, count, options.device, slices, seconds))
            show(rows[-1])
    if not options.smoke or options.out:
        record(named("profile", options.device), {"rows": rows}, options.out)


if __name__ == "__main__":
    main()
