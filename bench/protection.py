"""Hiding weights: what does an attacker get back who has the rest and asks the whole network for labels?

    python -m bench.protection --data CIFAR10 [--subsets 10] [--transfer 10000 20000] [--share 0.5] [--smoke]

Half of the weights of every layer of the shipped ResNet-20 are hidden: those of largest contribution to a random subset
of the classes, the largest ones, or random ones (without replacement; the paper's code draws with it and hides 39.3 %).
The attacker starts from the rest, with zeros for what is hidden, and trains all of it on training images that the whole
network labels. Told is the best accuracy of any epoch on the test images of the subset, of the other classes, and of
all. Only slices know of the subset, so the baselines are attacked once for all subsets.

The record is written after every attack. ``--smoke`` does a little of everything, with scikit-learn's digits.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from bench.record import named, record
from bench.targeted import Case, Scores, draw_subsets, from_cifar10, from_digits, interval, scores_of
from compdx import compress, slicing
from compdx.slicing import protection
from compdx.training import Recipe

BASELINES: tuple[compress.ranking.By, ...] = ("weight", "random")


def attack(case: Case, scores: Scores, share: float, transfer: int, recipe: Recipe, seed: int) -> slicing.Recovery:
    """Hide and attack."""
    public, _ = slicing.protect(case.model.module, scores, share)
    chosen = np.random.default_rng(seed).permutation(len(case.train))[:transfer]
    images = case.train.select(np.sort(chosen))
    return slicing.recover(
        public, case.model.module, images, test=case.test, inputs=case.inputs, recipe=recipe, seed=seed
    )


def told(found: slicing.Recovery, subset: list[int]) -> dict[str, float]:
    """What an attacker got of a subset, and of the rest."""
    others = sorted(set(range(len(found.counts))) - set(subset))
    return {
        "target": found.best(subset),
        "others": found.best(others),
        "all": found.best(),
        "target_before": float(found.accuracies(subset)[0]),
        "target_last": float(found.accuracies(subset)[-1]),
    }


def summary(rows: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Means over the subsets that every ranking has been attacked for, and slices less the others."""
    count = min(map(len, rows.values()))
    parts = ("target", "others", "all")
    means = {name: {part: float(np.mean([r[part] for r in of[:count]])) for part in parts} for name, of in rows.items()}
    less = {
        f"slice less {name}": {
            part: interval(np.array([a[part] - b[part] for a, b in zip(rows["slice"], of, strict=False)]))
            for part in parts
        }
        for name, of in rows.items()
        if name != "slice" and count
    }
    return {"subsets": count, "means": means, **less}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--subsets", type=int, default=10)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 3, 4, 5, 6, 7])
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--transfer", type=int, nargs="+", default=[10_000], help="images that the attacker trains on")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=10_000, help="test images")
    parser.add_argument("--profile", type=int, default=10_000, help="training images of the means")
    parser.add_argument("--per-class", type=int, default=1000, help="images of a class that are sliced")
    parser.add_argument("--scores", type=Path, default=None, help="file that keeps the scores of the slices")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a little of everything, on digits: does it run?")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if options.data is None and not options.smoke:
        parser.error("--data is needed, except with --smoke")
    if options.smoke:
        options.subsets, options.transfer, options.epochs = 2, [300], 1
        options.profile, options.per_class = 300, 5
    real = options.data is not None
    case = from_cifar10(options.data, options.images, options.device) if real else from_digits(options.device)
    changes = {"epochs": options.epochs} if real else {"epochs": options.epochs, "batch_size": 32}
    recipe = Recipe(**{**protection.RECIPE.settings(), **changes})
    subsets = draw_subsets(options.subsets, options.sizes, case.classes, options.seed)
    means = slicing.profile(case.model, case.train.select(slice(options.profile)))
    scores = scores_of(case, options, means)
    print(f"{scores}; subsets {subsets}", flush=True)
    settings = {key: value for key, value in vars(options).items() if key not in ("data", "out", "scores", "smoke")}
    payload: dict[str, Any] = {
        "settings": {**settings, "recipe": recipe.settings()},
        "images_sliced": scores.counts.tolist(),
        "subsets": subsets,
        "transfer": {},
    }
    for transfer in options.transfer:
        rows: dict[str, list[dict[str, float]]] = {"slice": []}

        def show(name: str, row: dict[str, float], subset: list[int]) -> None:
            print(
                f"  {name:8}target {row['target']:7.2%}   others {row['others']:7.2%}   all {row['all']:7.2%}"
                f"   {subset}",
                flush=True,
            )

        for name in BASELINES:
            ranks = compress.rank(case.model.module, name, seed=options.seed)
            found = attack(case, ranks, options.share, transfer, recipe, options.seed)
            rows[name] = [told(found, subset) for subset in subsets]
            for row, subset in zip(rows[name], subsets, strict=True):
                show(name, row, subset)
        for subset in subsets:
            found = attack(case, scores.of(subset), options.share, transfer, recipe, options.seed)
            rows["slice"].append(told(found, subset))
            show("slice", rows["slice"][-1], subset)
            payload["transfer"][str(transfer)] = {"summary": summary(rows), "rows": rows}
            if not options.smoke or options.out:
                record(named("protection", options.device), payload, options.out)
        print(f"  {transfer:,} images: {payload['transfer'][str(transfer)]['summary']['means']}")


if __name__ == "__main__":
    main()
