"""Slices of a ResNet-18 beside the bare convolutions that they are made of, and beside the published times.

    python -m bench.slicing [--device cuda] [--batch 32] [--smoke]

With everything kept, a slice is a forward pass and two gradients of every convolution on signs. Their floor is
measured in turns with it: the same three convolutions of every layer, in float32, exact, on random signs of the same
shapes, with nothing between. With a selection (theta of the paper's code) there is no such floor; its time stands by
itself.

The published times are those of the paper for its own networks, on its own machine: one sample by itself, and a sample
of a batch.
"""

from __future__ import annotations

import argparse
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from bench.networks import NETWORKS
from bench.record import named, record
from bench.timing import bar, seconds_of, spread, take_turns
from compdx import slicing
from compdx.slicing.tracing import Trace

PUBLISHED = {
    "ResNet10 (0.31 M weights, 16 M MAC)": {"alone": 40.0, "batched": 3.0},
    "ResNet18 (0.72 M weights, 36 M MAC)": {"alone": 550.0, "batched": 40.0},
}
"""Seconds a sample, NNSlicer section 5.4; sizes of the networks inferred from its code."""
GOAL = 0.060
"""Seconds a sample with everything kept, on two cores."""


def check() -> None:
    """The worked example: numbers that were found by hand."""
    network = torch.nn.Sequential(
        torch.nn.Linear(2, 2, bias=False), torch.nn.ReLU(), torch.nn.Linear(2, 2, bias=False)
    ).eval()
    network[0].weight.data = torch.tensor([[1.0, -1], [2, 1]])
    network[2].weight.data = torch.tensor([[1.0, -2], [-1, 1]])
    profile = slicing.profile(network, torch.eye(2))
    wanted = {None: ([0, 2], [[-1, 1], [1, 1]]), slicing.Theta(): ([1, 0], [[0, 0], [1, 0]])}
    for theta, (neurons, synapses) in wanted.items():
        found = slicing.slice(network, profile, torch.tensor([[2.0, 1]]), criterion=1, theta=theta)
        got = (found.neurons["input"].signed.tolist(), found.synapses["0"].signed.tolist())
        if got != (neurons, synapses):
            msg = f"the worked example with theta={theta} gives {got}"
            raise RuntimeError(msg)


class Floor:
    """Forward, input gradient and weight gradient of every layer of a network on random signs."""

    def __init__(self, network: torch.nn.Module, x: torch.Tensor) -> None:
        generator = torch.Generator().manual_seed(0)
        seen: dict[str, tuple[int, ...]] = {}
        trace = Trace(network, "network")
        with torch.no_grad():
            _, calls = trace.run(x, lambda name, value: seen.__setitem__(name, tuple(value.shape)))

        def signs(shape: tuple[int, ...]) -> torch.Tensor:
            return (torch.randint(0, 3, shape, generator=generator) - 1).float().to(x.device)

        self.layers = []
        self.multiplications = 0
        for call in calls:
            if call.operation.kind not in ("convolution", "linear"):
                continue
            given, outputs = call.arguments, seen[call.operation.name]
            shapes, linear = (call.shapes[0], tuple(given["weight"].shape), outputs), call.operation.kind == "linear"
            tensors = [signs(shape if not linear else (*shape, 1, 1)) for shape in shapes]
            settings = [(1, 1), (0, 0), (1, 1), 1]
            if not linear:
                settings = [given[name] for name in ("stride", "padding", "dilation", "groups")]
            self.layers.append((*tensors, *settings))
            self.multiplications += int(np.prod(outputs[1:]) * np.prod(shapes[1][1:]))

    def __call__(self) -> None:
        with torch.no_grad():
            for x, weight, g, stride, padding, dilation, groups in self.layers:
                functional.conv2d(x, weight, None, stride, padding, dilation, groups)
                torch.ops.aten.convolution_backward(
                    *(g, x, weight, None, stride, padding, dilation, False, (0, 0), groups, (True, True, False))
                )


def peak_megabytes() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024


def measure(name: str, device: str, batch: int, slices: int, seconds: float, selected: int) -> dict[str, Any]:
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    network = build().eval().to(device)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, *shape), dtype=np.uint8)
    profile = slicing.profile(network, rng.integers(0, 256, (batch, *shape), dtype=np.uint8), batch=batch)
    before = peak_megabytes()
    slicing.slice(network, profile, images, batch=batch)
    after = peak_megabytes()
    x = torch.from_numpy(images).float().to(device) / 255
    floor = Floor(network, x)

    def forward() -> None:
        with torch.no_grad():
            network(x)

    sides = {
        "slice": lambda: slicing.slice(network, profile, images, batch=batch),
        "floor": floor,
        "forward": forward,
        "absolute": lambda: slicing.slice(network, profile, images, batch=batch, absolute=True),
    }
    found = take_turns(sides, slices=slices, seconds=seconds, device=device)
    row: dict[str, Any] = {
        "network": name,
        "device": device,
        "batch": batch,
        "multiplications": floor.multiplications,
        "torch_threads": torch.get_num_threads(),
        "peak_megabytes": {"before": before, "after": after},
        "seconds_a_sample": {},
    }
    for side, values in found.items():
        row["seconds_a_sample"] |= spread(side, [value / batch for value in values])
    row |= spread("times_the_floor", [a / b for a, b in zip(found["slice"], found["floor"], strict=True)])
    few = images[:selected]
    theta = slicing.Theta()
    times = [
        seconds_of(lambda: slicing.slice(network, profile, few, theta=theta, batch=selected), device) / selected
        for _ in range(slices)
    ]
    row["selected"] = {"samples": selected, "epsilon": theta.epsilon, "beta": theta.beta, **spread("seconds", times)}
    return row


def show(row: dict[str, Any]) -> None:
    times = row["seconds_a_sample"]
    print(f"{row['network']}, {row['multiplications'] / 1e6:,.1f} M multiplications, {row['batch']} samples at a time")
    for side, what in (
        ("slice", "everything kept"),
        ("floor", "its three convolutions"),
        ("forward", "one forward pass"),
        ("absolute", "everything kept, absolute sums too"),
    ):
        print(f"  {what:36}{times[side] * 1e3:10,.2f} ms a sample")
    ratio = 1 / row["times_the_floor"]
    print(f"  {bar(ratio)} {row['times_the_floor']:.2f} times the floor")
    memory = row["peak_megabytes"]
    print(f"  peak memory {memory['before']:,.0f} MB before, {memory['after']:,.0f} MB after the first slice")
    print(f"  {'with a selection':36}{row['selected']['seconds'] * 1e3:10,.2f} ms a sample")
    for name, published in PUBLISHED.items():
        print(f"  published, {name}: {published['alone']:,.0f} s alone, {published['batched']:,.0f} s in a batch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=sorted(NETWORKS), default="resnet18")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--slices", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--selected", type=int, default=2, help="samples with a selection")
    parser.add_argument("--smoke", action="store_true", help="a small network, few samples: does it run?")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    check()
    smoke = options.smoke
    row = measure(
        "lenet5" if smoke else options.network,
        options.device,
        4 if smoke else options.batch,
        2 if smoke else options.slices,
        0.01 if smoke else options.seconds,
        1 if smoke else options.selected,
    )
    show(row)
    if not smoke or options.out:
        payload = {"published_seconds_a_sample": PUBLISHED, "goal_seconds_a_sample": GOAL, "measured": row}
        record(named("slicing", options.device), payload, options.out)


if __name__ == "__main__":
    main()
