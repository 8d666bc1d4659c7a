"""Does an explanation name what was broken? Single channels of a trained ResNet-20, damaged by hand at random.

    python -m bench.explain --data CIFAR10 [--cases 50] [--device cuda] [--smoke]

A case is one output channel of one layer, zeroed, rounded to two bits or with its signs flipped; the other network is
as it was, or has all its weights rounded to eight bits, so that every layer errs a little. Up to ``--images`` images on
which the damaged network deviates are explained; where it deviates on none, images without deviation are. Beside the
rank of the damaged layer and channel stands where they would be by drift alone, which is what plain comparison of
activations sees: the layers that inherit an error are as wrong as the one that made it.

``--data`` is a directory with ``train.parquet`` and ``test.parquet``; without it (``--smoke``) images are random.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bench.record import named, record
from bench.timing import bar
from compdx import Model, slicing, zoo

DAMAGES = ("zeroed", "two bits", "sign-flipped")
GOALS = {"layer_first": 0.90, "channel_in_five": 0.80}


def damage(weight: torch.Tensor, channel: int, how: str) -> None:
    """Break one output channel of a weight in place."""
    part = weight[channel]
    if how == "zeroed":
        part.zero_()
    elif how == "sign-flipped":
        part.neg_()
    else:  # -2, -1, 0, 1 times half of the largest weight
        step = part.abs().max() / 2
        part.copy_((part / step).round().clamp(-2, 1) * step)


def round_weights(network: nn.Module) -> None:
    """Round all weights to eight bits a tensor, in place."""
    for weight in weights_of(network).values():
        step = weight.abs().max() / 127
        weight.copy_((weight / step).round() * step)


def weights_of(network: nn.Module) -> dict[str, torch.Tensor]:
    kinds = (nn.Conv2d, nn.Linear)
    return {name: module.weight.data for name, module in network.named_modules() if isinstance(module, kinds)}


def labels_of(model: Model, images: np.ndarray) -> np.ndarray:
    return np.asarray(torch.as_tensor(model(images)).cpu()).argmax(1)


def case(
    original: Model,
    means: slicing.Profile,
    pool: np.ndarray,
    labels: np.ndarray,
    baseline: np.ndarray,
    rounded: bool,
    drawn: Any,
    few: int,
) -> dict[str, Any]:
    """Damage a channel, explain, and look at which place the explanation has it."""
    layer, channel, how = drawn
    network = copy.deepcopy(original.module)
    with torch.no_grad():
        if rounded:
            round_weights(network)
        damage(weights_of(network)[layer], channel, how)
    damaged = original.replace(network, name="damaged")
    deviating = np.flatnonzero(labels != labels_of(damaged, pool))
    chosen = pool[deviating[:few]] if len(deviating) else pool[:few]
    start = time.perf_counter()
    found = slicing.explain((original, damaged), chosen, profiles=(means, slicing.profile(damaged, baseline)))
    seconds = time.perf_counter() - start
    by_drift = [found.layers[place] for place in np.argsort(-found.findings.drift.mean(0), kind="stable")]
    alone = [
        (found.ranked(row)[0] == layer, channel in found.ranked_channels(layer, row)[:5]) for row in range(len(found))
    ]
    return {
        "layer": layer,
        "channel": channel,
        "damage": how,
        "deviations": len(deviating),
        "explained": len(found),
        "layer_rank": found.ranked().index(layer),
        "channel_rank": found.ranked_channels(layer).index(channel),
        "layer_rank_by_drift": by_drift.index(layer),
        "single_layer_first": float(np.mean([first for first, _ in alone])),
        "single_channel_in_five": float(np.mean([five for _, five in alone])),
        "seconds": seconds,
    }


def rates(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """The parts of the cases that are explained."""
    if not cases:
        return {"cases": 0}
    return {
        "cases": len(cases),
        "layer_first": float(np.mean([c["layer_rank"] == 0 for c in cases])),
        "channel_in_five": float(np.mean([c["channel_rank"] < 5 for c in cases])),
        "layer_first_by_drift": float(np.mean([c["layer_rank_by_drift"] == 0 for c in cases])),
        "single_layer_first": float(np.mean([c["single_layer_first"] for c in cases])),
        "single_channel_in_five": float(np.mean([c["single_channel_in_five"] for c in cases])),
    }


def show(title: str, found: dict[str, Any]) -> None:
    print(title)
    for name, row in found.items():
        if row["cases"]:
            print(
                f"  {name:28}{row['cases']:4} cases  {bar(row['layer_first'])} layer first {row['layer_first']:.0%}, "
                f"channel in five {row['channel_in_five']:.0%}; by drift {row['layer_first_by_drift']:.0%}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--images", type=int, default=8, help="findings of a case, at most")
    parser.add_argument("--pool", type=int, default=512, help="images that are searched for deviations")
    parser.add_argument("--baseline", type=int, default=256, help="images of the profiles")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="two cases: does it run?")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if options.data is None and not options.smoke:
        parser.error("--data is needed, except with --smoke")
    if options.smoke:
        options.cases, options.images, options.pool, options.baseline = 2, 2, 32, 16
    shipped = zoo.pretrained("resnet20-cifar10")
    shipped.network.to(options.device)
    original = shipped.model()
    rng = np.random.default_rng(options.seed)
    if options.data is None:
        train, pool = (rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8) for n in (options.baseline, options.pool))
    else:
        parts = zoo.read_data(options.data)
        train, pool = (part.images[:n] for part, n in zip(parts, (options.baseline, options.pool), strict=True))
    means, labels = slicing.profile(original, train), labels_of(original, pool)
    layers = list(weights_of(shipped.network).items())
    drawn = []
    for number in range(options.cases):
        layer, weight = layers[rng.integers(len(layers))]
        drawn.append((layer, int(rng.integers(len(weight))), DAMAGES[number % len(DAMAGES)]))
    results: dict[str, Any] = {}
    for title, rounded in (("damage alone", False), ("damage and weights of eight bits", True)):
        cases = [case(original, means, pool, labels, train, rounded, one, options.images) for one in drawn]
        groups = {
            "all": cases,
            **{how: [c for c in cases if c["damage"] == how] for how in DAMAGES},
            "with deviations": [c for c in cases if c["deviations"]],
            "without a deviation": [c for c in cases if not c["deviations"]],
        }
        results[title] = {"rates": {name: rates(group) for name, group in groups.items()}, "cases": cases}
        show(title, results[title]["rates"])
    if not options.smoke or options.out:
        settings = {key: getattr(options, key) for key in ("cases", "images", "pool", "baseline", "seed")}
        record(named("explain", options.device), {"goals": GOALS, "settings": settings, **results}, options.out)


if __name__ == "__main__":
    main()
