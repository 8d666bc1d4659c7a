"""The search loop beside the bare forward passes of the same two models, in one process.

    python -m bench.search [--pairs lenet5 resnet20] [--chains 64 512] [--device cuda] [--compile] [--smoke]

Both sides use the same models, batch size, layout and input dtype, and compiled modules when ``--compile`` is given. On
CUDA the bare forwards are a replayed graph over an input that lies there already, the least that two models can cost;
``--eager`` calls them from Python instead. The sides take turns in short slices, forwards before and after every slice
of the loop: the figure is the median over slices of (time of the forwards) / (time of the loop), and the same of the
forwards before over those after is the noise. The networks have random weights, so their findings say how often slots
are refilled, not how good the search is.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import compdx
from bench.networks import NETWORKS, pair
from bench.record import named, record
from bench.timing import bar, captured, seconds_of, spread
from compdx import engine

# What two cores do in less than two minutes each, and what fits into a large GPU.
CPU_CHAINS = {
    "lenet1": (64, 256, 512, 1024),
    "lenet5": (64, 256, 512, 1024),
    "resnet20": (64, 256, 512),
    "resnet18": (64,),
    "resnet50": (64,),
}
CUDA_CHAINS = {
    "lenet1": (64, 1024, 8192, 65_536),
    "lenet5": (64, 1024, 8192, 65_536),
    "resnet20": (64, 1024, 8192, 65_536),
    "resnet18": (64, 1024, 8192),
    "resnet50": (64, 512),
}
SEED_PIXELS = 1 << 26


@dataclass(frozen=True)
class Plan:
    """How long one pair is measured at one batch size."""

    slices: int
    seconds: float  # a slice
    limit: float  # all slices together; at least three are measured


@dataclass
class Subject:
    """A pair with its seeds, started again whenever half of the seeds have been used up."""

    models: compdx.Pair
    images: np.ndarray
    chains: int
    budget: int = 1000
    outputs: tuple[str, str] = ("logits", "logits")

    def __post_init__(self) -> None:
        self.start()
        self.found = self.ended = 0

    def start(self) -> None:
        self.loop = compdx.MCMC(budget=self.budget).start(
            compdx.Seeds(self.images),
            chains=self.chains,
            seed=0,
            device=self.models.device,
            inputs=self.models.inputs,
            outputs=self.outputs,
        )
        self.engine = engine.start("auto", self.models, self.loop)

    def check(self) -> None:
        """The first queries are the seeds themselves, as the models want them."""
        inputs = self.models.inputs
        expected = compdx.ops.normalize(
            self.images[: self.chains],
            inputs.table(self.images.shape[1]),
            layout=inputs.layout,
            dtype=inputs.dtype,
            threads=1,
        )
        asked = self.loop.ask()
        if isinstance(asked, torch.Tensor):
            asked = (asked if inputs.dtype == "float32" else asked.view(torch.uint16)).cpu().numpy()
        if not np.array_equal(asked, expected):
            msg = "the loop does not feed the models what normalize makes of the seeds"
            raise RuntimeError(msg)

    def run(self, count: int) -> None:
        """At least so many iterations."""
        end = self.engine.begun + count
        with self.engine:
            while self.engine.begun < end:
                self.engine.advance()

    def timed(self, count: int) -> tuple[float, int]:
        """Seconds an iteration over at least ``count``, and how many those were."""
        before = self.engine.begun
        seconds = seconds_of(lambda: self.run(count), self.models.device)
        done = self.engine.begun - before
        return seconds / done, done

    def warm_up(self) -> None:
        """Past what is only done at first; on CUDA, past the capture of a graph."""
        self.run(1 if self.models.device == "cpu" else 5)

    def renew(self) -> None:
        """Between two slices: count what ended, and start over before idle slots would be measured."""
        self.loop.take()
        progress = self.loop.progress
        if 2 * progress.ended > len(self.images):
            self.found += progress.found
            self.ended += progress.ended
            self.start()
            self.warm_up()

    def totals(self) -> tuple[int, int]:
        """Chains that ended, and findings among them."""
        self.loop.take()
        progress = self.loop.progress
        return self.ended + progress.ended, self.found + progress.found


def beside_forward(subject: Subject, forwards: Callable[[int], Any], plan: Plan) -> dict[str, Any]:
    """The loop of ``subject`` beside ``forwards(count)``, the bare forward passes of its models."""
    device = subject.models.device
    subject.check()
    subject.warm_up()
    forwards(1)
    once = seconds_of(lambda: forwards(1), device)
    if once < plan.seconds:
        subject.run(3)
        once = seconds_of(lambda: forwards(3), device) / 3
    count = max(1, round(plan.seconds / max(once, 1e-6)))
    slices = min(plan.slices, max(3, int(plan.limit / (3 * max(count * once, plan.seconds)))))
    subject.renew()
    loop_seconds, before, after = [], [], []
    _, found = subject.totals()
    seconds = 0.0
    for _ in range(slices):
        if not subject.loop.active:
            msg = "the seeds ran out during a slice; use more of them"
            raise RuntimeError(msg)
        before.append(seconds_of(lambda: forwards(count), device) / count)
        each, done = subject.timed(count)
        loop_seconds.append(each)
        seconds += each * done
        after.append(seconds_of(lambda: forwards(count), device) / count)
        subject.renew()
    ended, found_after = subject.totals()
    bare = [(first + second) / 2 for first, second in zip(before, after, strict=True)]
    occupancy = subject.loop.progress.occupancy
    return {
        "chains": subject.chains,
        "device": device,
        "engine": subject.engine.description,
        "slices": slices,
        "iterations_per_slice": count,
        **spread("ratio", [limit / whole for limit, whole in zip(bare, loop_seconds, strict=True)]),
        **spread("noise", [first / second for first, second in zip(before, after, strict=True)]),
        **spread("queries_per_second", [subject.chains * occupancy / whole for whole in loop_seconds]),
        **spread("forward_images_per_second", [subject.chains / limit for limit in bare]),
        "findings_per_second": (found_after - found) / seconds,
        "occupancy": occupancy,
        "ended": ended,
        "bytes_per_chain": subject.loop.bytes_per_chain,
        "torch_threads": torch.get_num_threads(),
    }


def host_waits(subject: Subject, count: int) -> dict[str, float]:
    """How often an iteration makes the host wait for the device: as PyTorch warns, and as the CUDA runtime is called.

    The calls of the runtime are those of 2 * ``count`` iterations less those of ``count``, so that what the profiler
    itself waits for drops out.
    """
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        subject.run(count)
        torch.cuda.set_sync_debug_mode(mode)
    warned = sum("synchroniz" in str(warning.message) for warning in caught)

    def calls(iterations: int) -> int:
        kinds = (torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=kinds) as profile:
            subject.run(iterations)
        return sum(row.count for row in profile.key_averages() if row.key.startswith("cuda") and "Synchroni" in row.key)

    return {
        "iterations": count,
        "warnings_per_iteration": warned / count,
        "runtime_calls_per_iteration": (calls(2 * count) - calls(count)) / count,
    }


def measure(name: str, chains: int, options: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    original, compressed, shape = pair(name)
    dtype = getattr(torch, options.dtype)
    last = options.memory_format == "channels_last"
    form = torch.channels_last if last else torch.contiguous_format
    original, compressed = (
        module.to(options.device, dtype).to(memory_format=form) for module in (original, compressed)
    )
    compile_seconds = 0.0
    if options.compile:
        start = time.perf_counter()
        torch.compiler.reset()  # a graph for just this batch size, whatever was compiled before
        original, compressed = (torch.compile(module, dynamic=False) for module in (original, compressed))
        example = torch.zeros(chains, *shape, device=options.device, dtype=dtype).to(memory_format=form)
        with torch.inference_mode():
            original(example), compressed(example)
        compile_seconds = time.perf_counter() - start
    wanted: dict[str, Any] = {"mean": 0.5, "std": 0.25, "memory_format": options.memory_format, "dtype": options.dtype}
    models = compdx.Pair(compdx.Model(original, **wanted), compdx.Model(compressed, **wanted))
    count = max(4 * chains, min(1 << 16, SEED_PIXELS // math.prod(shape)))
    images = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
    subject = Subject(models, images, chains)

    # What the loop feeds the models, taken once: the same values in the same place in memory.
    static = torch.as_tensor(subject.loop.ask()).clone()
    if static.dtype == torch.uint16:
        static = static.view(dtype)
    if last:
        static = static.permute(0, 3, 1, 2)

    def both() -> None:
        with torch.inference_mode():
            original(static)
            compressed(static)

    once, launched = both, "calls"
    if options.device != "cpu" and not options.eager:
        once, launched = captured(both), "graph"

    def forwards(count: int) -> None:
        for _ in range(count):
            once()

    row = {
        "pair": name,
        "shape": list(shape),
        "memory_format": options.memory_format,
        "dtype": options.dtype,
        "compiled": options.compile,
        "forwards_launched_by": launched,
        **beside_forward(subject, forwards, plan),
    }
    if options.compile:
        row["compile_seconds"] = compile_seconds
    if options.device != "cpu":
        row["host_waits"] = host_waits(subject, 64)
        row["tf32"] = {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32}
    return row


def sizes(name: str, options: argparse.Namespace) -> list[int]:
    if options.smoke:
        return [16]
    if options.chains:
        return list(options.chains)
    return list((CPU_CHAINS if options.device == "cpu" else CUDA_CHAINS)[name])


def show(row: dict[str, Any]) -> None:
    if "not_measured" in row:
        print(f"{row['pair']:<9} B={row['chains']:<6} {row['not_measured']}", flush=True)
        return
    low, _, high = row["ratio_quartiles"]
    waits = f"   {row['host_waits']['runtime_calls_per_iteration']:.2f} waits" if "host_waits" in row else ""
    print(
        f"{row['pair']:<9} B={row['chains']:<6} {bar(row['ratio'])} loop / bare forward {row['ratio']:.3f} "
        f"({low:.3f}..{high:.3f}, forwards among themselves {row['noise']:.3f})   "
        f"{row['queries_per_second']:,.0f} queries/s   {row['findings_per_second']:,.1f} findings/s   "
        f"occupancy {row['occupancy']:.3f}{waits}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", choices=list(NETWORKS), default=None)
    parser.add_argument("--chains", nargs="+", type=int, default=None, help="batch sizes; default: by device and pair")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--memory-format", choices=("contiguous", "channels_last"), default="channels_last")
    parser.add_argument("--compile", action="store_true", help="torch.compile both models, on both sides")
    parser.add_argument("--eager", action="store_true", help="on CUDA: no graph for the bare forwards")
    parser.add_argument("--limit", type=float, default=25.0, help="seconds for one pair at one batch size")
    parser.add_argument("--smoke", action="store_true", help="a few iterations: does it run?")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    plan = Plan(21, 0.3, options.limit) if options.device == "cpu" else Plan(15, 0.05, options.limit)
    plan = Plan(3, 0.02, 1.0) if options.smoke else plan
    pairs = options.pairs or (["lenet1", "lenet5", "resnet20"] if options.smoke else list(NETWORKS))
    kind = named("search-compiled" if options.compile else "search", options.device)
    rows: list[dict[str, Any]] = []
    for name in pairs:
        for chains in sizes(name, options):
            try:
                rows.append(measure(name, chains, options, plan))
            except torch.cuda.OutOfMemoryError as error:
                reason = f"not measured: {str(error).splitlines()[0]}"
                rows.append({"pair": name, "chains": chains, "not_measured": reason})
                torch.cuda.empty_cache()
            show(rows[-1])
            if not options.smoke or options.out:
                complete = name == pairs[-1] and chains == sizes(name, options)[-1]
                record(kind, {"complete": complete, "rows": rows}, options.out)


if __name__ == "__main__":
    main()
