"""Time and memory grow linearly: with the seeds of a search, the classes of its models, the pixels of an image.

    python -m bench.scale [--only seeds classes pixels] [--device cuda] [--smoke]

Seeds: whole searches of 100 to 1,000,000 images with a pair of linear classifiers that costs next to nothing, each in a
process of its own, which reports its peak memory before and after. Classes (2 to 21,000) and pixels (1x28x28 to
3x512x512): the loop's own time for an iteration and its memory a chain, with scores that lie there already.

The figure is the slope of log y over log x through the largest sizes; 1 is linear growth, less is what constants still
hide. A slope beyond the bound makes the exit status 1, after the record was written.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import compdx
from bench.memory import peak_megabytes
from bench.record import named, record
from bench.timing import bar, seconds_of, spread

SEEDS = (100, 1_000, 10_000, 100_000, 1_000_000)
CLASSES = (2, 10, 100, 1_000, 10_000, 21_000)
SHAPES = ((1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 128, 128), (3, 224, 224), (3, 512, 512))
SMOKE: dict[str, tuple[Any, ...]] = {"seeds": SEEDS[:2], "classes": CLASSES[:3], "pixels": SHAPES[:3]}
FULL: dict[str, tuple[Any, ...]] = {"seeds": SEEDS, "classes": CLASSES, "pixels": SHAPES}
SEED_SHAPE = (1, 16, 16)
SEED_CHAINS = 4096
BUDGET = 100
FITTED = 3  # the largest sizes
BOUND = 1.15  # of a slope: what three points on a shared machine may deviate from linear growth


def linear_pair(device: str) -> compdx.Pair:
    """Two linear classifiers, one with coarse weights, on which a seed costs some ten queries."""
    torch.manual_seed(0)
    networks = []
    for coarse in (False, True):
        layer = torch.nn.Linear(math.prod(SEED_SHAPE), 10)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(1)))
            layer.bias.zero_()
            if coarse:
                layer.weight.copy_((layer.weight * 2).round() / 2)
        networks.append(torch.nn.Sequential(torch.nn.Flatten(), layer).eval().to(device))
    return compdx.Pair(*(compdx.Model(network, mean=0.5, std=0.5) for network in networks))


def search_seeds(count: int, device: str) -> dict[str, Any]:
    """One whole search in this process."""
    pair = linear_pair(device)
    images = np.random.default_rng(0).integers(0, 256, (count, *SEED_SHAPE), dtype=np.uint8)
    seeds = compdx.Seeds(images)
    chains = min(SEED_CHAINS, count)
    compdx.search(pair, compdx.Seeds(images[:chains]), budget=8, chains=chains, progress=False)
    before = peak_megabytes()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    findings = compdx.search(pair, seeds, budget=BUDGET, chains=chains, progress=False)
    seconds = time.perf_counter() - start
    summary = findings.summary.to_json()
    if len(findings.ended) != count or summary["queries"] < count:
        msg = f"{len(findings.ended)} of {count} seeds ended"
        raise RuntimeError(msg)
    row = {
        "seeds": count,
        "shape": list(SEED_SHAPE),
        "chains": chains,
        "seconds": seconds,
        "megabytes": peak_megabytes() - before,
        "queries": summary["queries"],
        "found": summary["found"],
        "occupancy": summary["occupancy"],
    }
    if device != "cpu":
        row["device_megabytes"] = torch.cuda.max_memory_allocated() / (1 << 20)
    return row


def sweep_seeds(sizes: tuple[int, ...], device: str) -> list[dict[str, Any]]:
    rows = []
    for size in sizes:
        command = [sys.executable, "-m", "bench.scale", "--one", str(size), "--device", device]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows.append(json.loads(output.splitlines()[-1]))
        show("seeds", rows[-1])
    return rows


def iteration(shape: tuple[int, int, int], classes: int, chains: int, device: str, seconds: float) -> dict[str, Any]:
    """The loop's own time for an iteration: ask and tell, with scores that agree, so that every chain goes on."""
    images = np.random.default_rng(0).integers(0, 256, (4 * chains, *shape), dtype=np.uint8)
    loop = compdx.MCMC(budget=4000, capacity=2048).start(
        compdx.Seeds(images), chains=chains, device=device, inputs=compdx.Inputs(mean=0.5, std=0.25)
    )
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(chains, classes, generator=generator)
    a[:, 0] = a.max(dim=1).values + 1
    b = a + 0.2 * torch.rand(a.shape, generator=generator)
    sets = [(a.to(device), b.to(device)), (b.to(device), a.to(device))]
    if device == "cpu":
        sets = [(first.numpy(), second.numpy()) for first, second in sets]

    def run(count: int) -> None:
        for number in range(count):
            loop.ask()
            loop.tell(*sets[number % 2])

    run(2)
    count = max(1, min(200, round(seconds / seconds_of(lambda: run(1), device))))
    found = [seconds_of(lambda: run(count), device) / count for _ in range(7)]
    if len(loop.take()):
        msg = "chains ended although both models agree"
        raise RuntimeError(msg)
    return {"chains": chains, **spread("seconds", found), "bytes_per_chain": loop.bytes_per_chain}


def sweep_classes(sizes: tuple[int, ...], device: str, seconds: float) -> list[dict[str, Any]]:
    rows = []
    for classes in sizes:
        row = iteration((1, 28, 28), classes, 256, device, seconds)
        rows.append({"classes": classes, "shape": [1, 28, 28], **row})
        show("classes", rows[-1])
    return rows


def sweep_pixels(shapes: tuple[tuple[int, int, int], ...], device: str, seconds: float) -> list[dict[str, Any]]:
    rows = []
    for shape in shapes:
        row = iteration(shape, 10, 32, device, seconds)
        rows.append({"pixels": math.prod(shape), "shape": list(shape), **row})
        show("pixels", rows[-1])
    return rows


def slope(rows: list[dict[str, Any]], x: str, y: str) -> float:
    """Slope of log ``y`` over log ``x`` through the largest sizes, by least squares."""
    last = rows[-FITTED:]
    return float(np.polyfit(*(np.log([max(row[name], 1e-9) for row in last]) for name in (x, y)), 1)[0])


def show(x: str, row: dict[str, Any]) -> None:
    memory = f"{row['bytes_per_chain']:,} bytes a chain" if "bytes_per_chain" in row else f"{row['megabytes']:,.0f} MB"
    print(f"{x:<8} {row[x]:>10,}   {row['seconds']:12.6f} s   {memory}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(FULL), default=list(FULL))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--smoke", action="store_true", help="small and short: does it run?")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(search_seeds(options.one, options.device)))
        return
    sizes, seconds = (SMOKE, 0.01) if options.smoke else (FULL, 0.2)
    sweeps: dict[str, list[dict[str, Any]]] = {}
    for x in options.only:
        if x == "seeds":
            sweeps[x] = sweep_seeds(sizes[x], options.device)
        else:
            sweep = sweep_classes if x == "classes" else sweep_pixels
            sweeps[x] = sweep(sizes[x], options.device, seconds)
    slopes = {}
    for x, rows in sweeps.items():
        for y in ("seconds", "megabytes", "device_megabytes", "bytes_per_chain"):
            if y in rows[0]:
                slopes[f"{y} over {x}"] = slope(rows, x, y)
    for name, value in slopes.items():
        print(f"{name:<28} {bar(value)} slope {value:.2f}")
    if not options.smoke or options.out:
        payload = {"device": options.device, "fitted": FITTED, "bound": BOUND, "slopes": slopes, "sweeps": sweeps}
        record(named("scale", options.device), payload, options.out)
    if not options.smoke and (beyond := [name for name, value in slopes.items() if value > BOUND]):
        msg = f"grows faster than linearly: {', '.join(beyond)}"
        raise SystemExit(msg)


if __name__ == "__main__":
    main()
