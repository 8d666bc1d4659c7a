"""Pruning for some classes: do the synapses that slices rank lowest cost these classes less than other ones do?

    python -m bench.targeted --data CIFAR10 [--subsets 10] [--images 10000] [--tune-subsets 10] [--smoke]

The shipped ResNet-20 is pruned for random subsets of the classes: in every convolution and in the linear layer the same
share of the weights, those of the smallest scores, becomes zero. What counts is the accuracy on the test images of the
subset, with all ten logits competing. Every ranking is run plainly, with mean compensation of all pruned layers but
the first, and both again after one epoch of training on the first ``--tune-images`` training images of all classes; the
paper's code compensates its own networks only, not the baselines. Only slices know of the subset: the baselines prune
one network for all of them, and so do slices of all classes. Slices are the paper's, with a selection of inputs
(theta); other scores are variants. Intervals are 95 % bootstrap intervals over subsets of paired differences.

The record is written after every stage, in the last one after every sparsity. ``--smoke`` does a little of everything,
with scikit-learn's digits.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.record import named, record
from compdx import Inputs, Model, Seeds, compress, slicing, training, zoo
from compdx.training import Recipe
from compdx.zoo import digits

BASELINES: tuple[compress.ranking.By, ...] = ("weight", "channel", "random")
BOOTSTRAP = 10_000
TUNING = Recipe(epochs=1, batch_size=128, rate=0.01, schedule="constant", nesterov=False)

Scores = dict[str, npt.NDArray[Any]]
Longs = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A trained network with the images to slice, to tune and to test with, and the recipe for it."""

    model: Model
    inputs: Inputs
    train: Seeds
    test: Seeds
    recipe: Recipe

    @property
    def classes(self) -> int:
        return int(self.test.labels.max()) + 1

    @property
    def counts(self) -> Longs:
        """Test images of each class."""
        return np.bincount(self.test.labels, minlength=self.classes)


def from_cifar10(data: Path, images: int, device: str) -> Case:
    shipped = zoo.pretrained("resnet20-cifar10")
    shipped.network.to(device)
    train, test = zoo.read_data(data)
    return Case(
        model=shipped.model(), inputs=shipped.inputs, train=train, test=test.select(slice(images)), recipe=TUNING
    )


def from_digits(device: str) -> Case:
    train, test = digits.load()
    network = digits.train(train, epochs=4).to(device)
    recipe = Recipe(**{**TUNING.settings(), "batch_size": 32, "crop": 0, "flip": False})
    return Case(model=Model(network, mean=0.5, std=0.5), inputs=digits.INPUTS, train=train, test=test, recipe=recipe)


def draw_subsets(count: int, sizes: list[int], classes: int, seed: int) -> list[list[int]]:
    """Different random subsets of classes, of these sizes in turn."""
    rng, found = np.random.default_rng(seed), []
    for size in itertools.islice(itertools.cycle(sizes), 100 * count):
        subset = sorted(rng.choice(classes, size, replace=False).tolist())
        if subset not in found:
            found.append(subset)
        if len(found) == count:
            return found
    msg = f"{classes} classes have no {count} different subsets of sizes {sizes}"
    raise ValueError(msg)


def right(network: Any, case: Case, classes: Iterable[int]) -> Longs:
    """How many test images of each of these classes get their label, int64 ``[K]``; 0 for the others."""
    own = case.test.select(np.isin(case.test.labels, list(classes)))
    predicted = training.predict(network, own.images, case.inputs).argmax(1)
    return np.bincount(own.labels[predicted == own.labels], minlength=case.classes)


def of_subset(found: Longs, case: Case, subset: list[int]) -> float:
    return float(found[subset].sum() / case.counts[subset].sum())


class Table:
    """Accuracies on the target classes of every subset, by what was done."""

    def __init__(self, case: Case, subsets: list[list[int]], means: slicing.Profile) -> None:
        self.case, self.subsets, self.means = case, subsets, means
        self.rows: list[dict[str, Any]] = []

    def add(self, name: str, sparsity: float, scores: list[Scores], tune: Seeds | None = None) -> None:
        """Prune by one ranking for each subset, or by one for all, without and with compensation, and measure."""
        whole = [sorted(set(itertools.chain(*self.subsets)))] if len(scores) == 1 else self.subsets
        for compensated in (False, True):
            found, began = [], time.perf_counter()
            for classes, ranks in zip(whole, scores, strict=True):
                pruned = compress.prune(self.case.model.module, sparsity, scores=ranks)
                if compensated:
                    pruned = slicing.compensate(pruned, self.means)
                if tune is not None:
                    pruned = compress.finetune(pruned, tune, inputs=self.case.inputs, recipe=self.case.recipe)
                found.append(right(pruned.model, self.case, classes))
            found *= len(self.subsets) // len(found)
            values = [of_subset(one, self.case, subset) for one, subset in zip(found, self.subsets, strict=True)]
            row = {
                "ranking": name,
                "sparsity": sparsity,
                "compensated": compensated,
                "tuned": tune is not None,
                "mean": float(np.mean(values)),
                "accuracies": values,
                "seconds": time.perf_counter() - began,
            }
            self.rows.append(row)
            print(
                f"  {name:24}{sparsity:4.0%} {'compensated' if compensated else 'plain':12}"
                f"{'one epoch' if tune else '':10} {row['mean']:7.2%}   {row['seconds']:6.1f} s",
                flush=True,
            )

    def differences(self, against: str = "weight") -> list[dict[str, Any]]:
        """Every other ranking less this one, in points of accuracy, under the same conditions."""
        keys = ("sparsity", "compensated", "tuned")
        base = {tuple(row[k] for k in keys): row for row in self.rows if row["ranking"] == against}
        found = []
        for row in self.rows:
            other = base.get(tuple(row[k] for k in keys))
            if row["ranking"] != against and other is not None:
                paired = np.subtract(row["accuracies"], other["accuracies"])
                found.append(
                    {"ranking": row["ranking"], **{k: row[k] for k in keys}, "less": against, **interval(paired)}
                )
        return found


def interval(values: npt.NDArray[np.float64]) -> dict[str, Any]:
    """The mean of one value a subset, and its bootstrap interval."""
    rows = np.random.default_rng(0).integers(0, len(values), (BOOTSTRAP, len(values)))
    low, high = np.quantile(values[rows].mean(1), (0.025, 0.975))
    return {"mean": float(values.mean()), "interval": [float(low), float(high)]}


def weighted(case: Case, scores: Scores) -> Scores:
    """Scores times the magnitudes of their weights: ours, not the paper's."""
    size = compress.rank(case.model.module, "weight")
    return {name: array * size[name] for name, array in scores.items()}


def variants(
    case: Case, options: argparse.Namespace, means: slicing.Profile, found: slicing.ClassScores
) -> dict[str, Callable[..., Scores]]:
    """Other scores of a subset than those of the paper, by name."""
    kept = slicing.class_scores(case.model, means, case.train, per_class=options.per_class, theta=None)
    own = slicing.profile(case.model, case.train.select(slice(options.profile)), baseline="class")
    few = slicing.class_scores(case.model, own, case.train, per_class=options.few)
    return {
        "slice, signed": lambda subset: found.of(subset, "signed"),
        "slice, times |w|": lambda subset: weighted(case, found.of(subset)),
        "slice, theta off": kept.of,
        "slice, theta off, times |w|": lambda subset: weighted(case, kept.of(subset)),
        "slice, class means": few.of,
    }


def scores_of(case: Case, options: argparse.Namespace, means: slicing.Profile) -> slicing.ClassScores:
    """The scores of the paper, read from ``--scores`` if they are there, and else written there."""
    if options.scores is not None and options.scores.exists():
        kept = slicing.ClassScores.load(options.scores)
        wanted = {"weights": means.weights, "per_class": options.per_class, "profiled": means.images}
        if wanted.items() - kept.settings.items():
            msg = f"{options.scores} holds scores of {kept.settings}, but {wanted} was asked for"
            raise ValueError(msg)
        return kept
    found = slicing.class_scores(case.model, means, case.train, per_class=options.per_class)
    if options.scores is not None:
        found.save(options.scores)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--subsets", type=int, default=10)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 3, 4, 5, 6, 7, 8])
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    parser.add_argument("--images", type=int, default=10_000, help="test images")
    parser.add_argument("--profile", type=int, default=10_000, help="training images of the means")
    parser.add_argument("--per-class", type=int, default=1000, help="images of a class that are sliced")
    parser.add_argument("--scores", type=Path, default=None, help="file that keeps the scores of the slices")
    parser.add_argument("--tune-subsets", type=int, default=10, help="the first N subsets are trained further")
    parser.add_argument("--tune-sparsities", type=float, nargs="*", default=[0.5, 0.6, 0.7, 0.8])
    parser.add_argument("--tune-images", type=int, default=10_000)
    parser.add_argument("--variant-subsets", type=int, default=10, help="the first N subsets see other scores; 0: none")
    parser.add_argument("--variant-sparsities", type=float, nargs="+", default=[0.5, 0.6, 0.7, 0.8])
    parser.add_argument("--few", type=int, default=50, help="images of a class for the scores with means of classes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a little of everything, on digits: does it run?")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if options.data is None and not options.smoke:
        parser.error("--data is needed, except with --smoke")
    if options.smoke:
        options.subsets, options.sparsities, options.profile, options.per_class = 2, [0.5, 0.8], 300, 10
        options.tune_subsets, options.tune_sparsities, options.tune_images = 1, [0.8], 300
        options.variant_subsets, options.variant_sparsities, options.few = 1, [0.8], 2
    case = (
        from_digits(options.device)
        if options.data is None
        else from_cifar10(options.data, options.images, options.device)
    )
    subsets = draw_subsets(options.subsets, options.sizes, case.classes, options.seed)
    began = time.perf_counter()
    means = slicing.profile(case.model, case.train.select(slice(options.profile)))
    found = scores_of(case, options, means)
    print(f"{found} in {time.perf_counter() - began:.0f} s; subsets {subsets}", flush=True)
    whole = right(case.model.module, case, range(case.classes))
    settings = {key: value for key, value in vars(options).items() if key not in ("data", "out", "scores", "smoke")}
    payload: dict[str, Any] = {
        "settings": {**settings, "recipe": case.recipe.settings()},
        "images_sliced": found.counts.tolist(),
        "subsets": subsets,
        "original": [of_subset(whole, case, subset) for subset in subsets],
    }
    fixed = {name: [compress.rank(case.model.module, name, seed=options.seed)] for name in BASELINES}
    # How much of what slices gain is that they are of the subset, and how much that they are slices?
    fixed["slice, all classes"] = [found.of(range(case.classes))]

    def keep(stage: str, table: Table) -> None:
        payload[stage] = {"subsets": len(table.subsets), "rows": table.rows, "differences": table.differences()}
        for row in payload[stage]["differences"]:
            if row["ranking"].startswith("slice"):
                how = ("compensated" if row["compensated"] else "plain") + (", one epoch" if row["tuned"] else "")
                low, high = (100 * value for value in row["interval"])
                print(
                    f"  {row['ranking']:28} less weight at {row['sparsity']:.0%}, {how:24} "
                    f"{100 * row['mean']:+6.2f} ({low:+.2f} to {high:+.2f})"
                )
        if not options.smoke or options.out:
            record(named("targeted", options.device), payload, options.out)

    table = Table(case, subsets, means)
    for sparsity in options.sparsities:
        for name, scores in {"slice": [found.of(subset) for subset in subsets], **fixed}.items():
            table.add(name, sparsity, scores)
    keep("pruned", table)
    if options.variant_subsets:
        table = Table(case, subsets[: options.variant_subsets], means)
        others = variants(case, options, means, found)
        for sparsity in options.variant_sparsities:
            table.add("weight", sparsity, fixed["weight"])
            for name, of in {"slice": found.of, **others}.items():
                table.add(name, sparsity, [of(subset) for subset in table.subsets])
        keep("variants", table)
    if options.tune_sparsities:
        tune = case.train.select(slice(options.tune_images))
        table = Table(case, subsets[: options.tune_subsets], means)
        for sparsity in options.tune_sparsities:
            for name, scores in {**fixed, "slice": [found.of(subset) for subset in table.subsets]}.items():
                table.add(name, sparsity, scores, tune)
            keep("tuned", table)


if __name__ == "__main__":
    main()
