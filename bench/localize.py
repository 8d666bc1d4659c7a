"""Does a localization name the layer that a fault was put into? The classic faults of converters, in three networks.

    python -m bench.localize --data CIFAR10 [--rounds 2] [--images 64] [--exporter script] [--smoke]

Every fault that a network has a place for is put into it, ``--rounds`` times at places drawn anew, and the network with
the fault is compared with the one without: both in torch, and the faulty one exported to ONNX and on ONNX Runtime. A
case is found when the first suspect (or one of the first three) covers the operation with the fault; where the scores
and all layers are the same to the bit on these images, or differ by no more than rounding, the fault changes nothing
that could be found, and is counted apart. Then each network without a fault, on ONNX Runtime at every level: any
suspect there is a false one.

ResNet-20 is the one that comes trained; LeNet-5 and VGG11 are trained for a short while here if there is ``--data``, a
directory with ``train.parquet`` and ``test.parquet``. Without it (``--smoke``) images are random and they are not.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.record import record
from bench.timing import bar
from compdx import Model, zoo
from compdx.environments import FAULTS, Fault, Localization, inject, localize

GOALS = {"first": 0.90, "in_three": 0.97, "false_suspects": 0}
LEVELS = ("disable_all", "basic", "extended", "layout", "all")
NETWORKS = ("resnet20", "lenet5", "vgg11")
SETTINGS = ("rounds", "images", "exporter", "train", "epochs", "seed")


def networks(options: argparse.Namespace, train: Any) -> Iterator[tuple[str, Model]]:
    """The three networks under test."""
    for name in NETWORKS[: 1 if options.smoke else None]:
        if name == "resnet20":
            yield name, zoo.pretrained("resnet20-cifar10").model()
            continue
        torch.manual_seed(options.seed)
        network = zoo.build(name)
        if train is not None:
            fit(network, train, options.epochs)
        yield name, Model(network.eval(), mean=0.5, std=0.25, name=name)


def fit(network: Any, train: Any, epochs: int) -> None:
    """A short training: activations and statistics that are not those of a random network."""
    x = (torch.from_numpy(train.images).float() / 255 - 0.5) / 0.25
    y = torch.from_numpy(train.labels)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    network.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without what the exporter prints."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def exported(model: Model, image: np.ndarray, path: Path, exporter: str) -> Path:
    """The model's network as an ONNX file."""
    x = torch.zeros((1, *image.shape[1:]))
    with quietly():
        if exporter == "dynamo":
            torch.onnx.export(model.module, (x,), path, dynamo=True, dynamic_shapes=({0: torch.export.Dim("n")},))
        else:
            wrapped, axes = torch.nn.Sequential(model.module), {"images": {0: "n"}}  # it takes no graph of torch.fx
            torch.onnx.export(wrapped.eval(), (x,), path, dynamo=False, input_names=["images"], dynamic_axes=axes)
    return path


def on_onnxruntime(path: Path, like: Model, level: str = "all") -> Model:
    """An ONNX file with the preprocessing of a torch model."""
    inputs = like.inputs
    return Model(
        path, mean=inputs.mean, std=inputs.std, bounds=inputs.bounds, runtime="onnxruntime", level=level, threads=1
    )


def case(fault: Fault, found: Localization, seconds: float) -> dict[str, Any]:
    """Where the localization has the layer with the fault."""
    ranks = [rank for rank, layer in enumerate(found.suspects) if fault.layer in layer.place.covers]
    nothing = not found.suspects and not len(found.flips) and found.scores.relative < 1e-5
    by_drift = sorted(found.layers, key=lambda layer: -layer.drift.relative)
    drifts = [rank for rank, layer in enumerate(by_drift) if fault.layer in layer.place.covers]
    first = next((layer for layer in found.layers if layer.name == found.first), None)
    return {
        "fault": fault.name,
        "layer": fault.layer,
        "flips": len(found.flips),
        "scores": found.scores.to_json()["relative"],
        "nothing": nothing,
        "rank": ranks[0] if ranks else None,
        "rank_by_drift": drifts[0] if drifts else None,
        "suspects": [layer.name for layer in found.suspects[:5]],
        "bisected": first is not None and fault.layer in first.place.covers,
        "alone": found.first == found.last,
        "seconds": seconds,
    }


def rates(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """The parts of the faults that change something."""
    seen = [one for one in cases if not one["nothing"]]
    rank = [len(FAULTS) if one["rank"] is None else one["rank"] for one in seen]
    return {
        "cases": len(cases),
        "nothing": dict(Counter(one["fault"] for one in cases if one["nothing"])),
        "seen": len(seen),
        "first": float(np.mean([r == 0 for r in rank])) if seen else None,
        "in_three": float(np.mean([r < 3 for r in rank])) if seen else None,
        "bisected": float(np.mean([one["bisected"] for one in seen])) if seen else None,
        "first_by_drift": float(np.mean([one["rank_by_drift"] == 0 for one in seen])) if seen else None,
    }


def timed(a: Model, b: Model, images: np.ndarray) -> tuple[Localization, float]:
    start = time.perf_counter()
    return localize(a, b, images), time.perf_counter() - start


def measure(name: str, model: Model, images: np.ndarray, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All faults of one network, in both pairs of runtimes, and the network without a fault."""
    found: dict[str, Any] = {"torch": [], "onnxruntime": [], "no place for": []}
    for fault in FAULTS:
        for turn in range(options.rounds):
            made = inject(model, fault, images[:1], seed=options.seed + turn)
            if made is None:
                found["no place for"].append(fault)
                break
            if made.layer in {one["layer"] for one in found["torch"] if one["fault"] == fault}:
                continue  # the same place once more
            found["torch"].append(case(made, *timed(model, made.model, images)))
            path = exported(made.model, images, folder / f"{name}.onnx", options.exporter)
            found["onnxruntime"].append(case(made, *timed(model, on_onnxruntime(path, model), images)))
    path = exported(model, images, folder / f"{name}.onnx", options.exporter)
    found["identical"] = []
    for level in LEVELS:
        clean, seconds = timed(model, on_onnxruntime(path, model, level), images)
        closest = max(layer.own.relative / layer.bound for layer in clean.layers)
        suspects = [layer.name for layer in clean.suspects]
        found["identical"].append({"level": level, "suspects": suspects, "closest": closest, "seconds": seconds})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--rounds", type=int, default=2, help="places that are drawn for every fault")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--exporter", choices=("dynamo", "script"), default="dynamo", help="of torch, to ONNX")
    parser.add_argument("--train", type=int, default=2000, help="images of the short trainings")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="one network, eight images: does it run?")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if options.data is None and not options.smoke:
        parser.error("--data is needed, except with --smoke")
    train = None
    if options.smoke:
        options.rounds, options.images = 1, 8
        images = np.random.default_rng(options.seed).integers(0, 256, (8, 3, 32, 32), dtype=np.uint8)
    else:
        train, test = zoo.read_data(options.data)
        train, images = train.select(slice(options.train)), test.images[: options.images]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in networks(options, train):
            results[name] = measure(name, model, images, options, Path(folder))
            results[name]["rates"] = {pair: rates(results[name][pair]) for pair in ("torch", "onnxruntime")}
            for pair, found in results[name]["rates"].items():
                show(f"{name}, torch and {pair}", found)
    cases = [one for name in results for pair in ("torch", "onnxruntime") for one in results[name][pair]]
    false = sum(len(one["suspects"]) for name in results for one in results[name]["identical"])
    total = {**rates(cases), "false_suspects": false}
    show("all", total)
    print(f"{false} suspects where nothing is wrong")
    for one in cases:
        if not one["nothing"] and one["rank"] != 0:
            print(f"  not first: {one['fault']} in {one['layer']}: rank {one['rank']}, suspects {one['suspects']}")
    if not options.smoke or options.out:
        settings = {key: getattr(options, key) for key in SETTINGS}
        record("localize", {"goals": GOALS, "settings": settings, "all": total, "networks": results}, options.out)


def show(title: str, found: dict[str, Any]) -> None:
    if found["seen"]:
        nothing = sum(found["nothing"].values())
        print(
            f"{title:28}{found['seen']:4} faults  {bar(found['first'])} first {found['first']:.0%}, in three "
            f"{found['in_three']:.0%}, bisected {found['bisected']:.0%}; by drift {found['first_by_drift']:.0%}; "
            f"{nothing} more that change nothing",
            flush=True,
        )


if __name__ == "__main__":
    main()
