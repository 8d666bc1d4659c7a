"""Questions about CompD that one run cannot answer: does coverage help, which repair lowers what a new search finds?

    python -m bench.compd coverage [--study DIR --data DATA] [--seeds 1000] [--repeats 5]
    python -m bench.compd repair [--study DIR --data DATA] [--variants paper restart] [--repeats 3]
    python -m bench.compd iterate [--study DIR --data DATA] [--rounds 4] [--from-train 3000] [--repeats 3]
    python -m bench.compd tables --study DIR

``--study`` is a directory that ``compdx reproduce compd`` wrote, ``--data`` the data it was given; without them, and
with ``--smoke``, it is a pruned network for scikit-learn's digits. ``tables`` keeps the figures of the study itself as
a record. Intervals are 95 % bootstrap intervals over seeds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import compdx
from bench.record import record
from compdx import attacks, compress, repair, reproduce
from compdx.training import Recipe
from compdx.zoo import digits

BOOTSTRAP = 2000
EPSILON = 8
TOLERANCE = 0.005
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "consistency": {"consistency": 1.0},
    "strong consistency": {"consistency": 10.0},
    "restart with pictures": {"restart": True, "consistency": 1.0, "label_weight": 0.0},
    "restart": {"restart": True, "consistency": 1.0, "label_weight": 0.0, "temperature": 4.0, "picture_limit": 0},
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A pair with what a repair of it needs."""

    title: str
    pair: compdx.Pair
    seeds: compdx.Seeds
    unseen: compdx.Seeds
    reported: compdx.Seeds
    train: compdx.Seeds
    holdout: compdx.Seeds
    recipe: Recipe
    limits: dict[str, int | None]
    chains: int


def from_study(directory: Path, data: str) -> Case:
    study = reproduce.open_study(directory, data)
    mending = study.mending
    return Case(
        title=study.title,
        pair=study.pair,
        seeds=study.seeds,
        unseen=study.unseen,
        reported=study.reported,
        train=study.train[0],
        holdout=study.train[1],
        recipe=mending.recipe,
        limits={"picture_limit": mending.pictures, "train_limit": mending.images},
        chains=study.scale.chains,
    )


def from_digits(*, small: bool) -> Case:
    """scikit-learn's digits, their network pruned to a twentieth and trained on; ``small`` is for a smoke run."""
    train, test = digits.load()
    network = digits.train(train, epochs=2 if small else 12)
    recipe = Recipe(epochs=1 if small else 10, rate=0.01, schedule="constant", flip=False, crop=1, precision="float32")
    holds = np.arange(len(train)) % 10 == 0
    kept, holdout = train.select(~holds), train.select(holds)
    pruned = compress.prune(network, 0.95, layers="all", train=kept, inputs=digits.INPUTS, recipe=recipe)
    options: dict[str, Any] = {"mean": 0.5, "std": 0.5}
    seeds = 60 if small else 300
    return Case(
        title="digits pruned",
        pair=compdx.Pair(compdx.Model(network, **options), compdx.Model(pruned, **options)),
        seeds=test.select(slice(seeds)),
        unseen=test.select(slice(seeds, 90 if small else None)),
        reported=test.select(slice(seeds, None)),
        train=kept,
        holdout=holdout,
        recipe=recipe,
        limits={"picture_limit": 200, "train_limit": 200} if small else {},
        chains=30,
    )


def per_seed(findings: compdx.Findings, seeds: compdx.Seeds) -> npt.NDArray[np.int64]:
    """Strictly effective and effective pictures of every seed, int64 ``[N, 2]``."""
    pictures = findings.pictures
    rows = seeds.locate(pictures.seed_index)
    counts = np.zeros((len(seeds), 2), np.int64)
    for column, chosen in enumerate((pictures.strict, pictures.effective)):
        np.add.at(counts[:, column], rows[chosen], 1)
    return counts


def interval(values: npt.NDArray[Any]) -> list[float]:
    """The sum of one value a seed with its bootstrap interval."""
    rows = np.random.default_rng(0).integers(0, len(values), (BOOTSTRAP, len(values)))
    low, high = np.quantile(values[rows].sum(1), (0.025, 0.975))
    return [float(values.sum()), float(low), float(high)]


def coverage(case: Case, count: int, repeats: int, score: str, weights: list[float]) -> dict[str, Any]:
    """Algorithm 2 over run seeds against Algorithm 1, which has no randomness, on the same seeds."""
    seeds = case.seeds.select(slice(count))

    def run(seed: int, **settings: Any) -> npt.NDArray[np.int64]:
        method = compdx.Gradient(score=score, **settings)
        found = compdx.search(case.pair, seeds, method=method, chains=case.chains, seed=seed, progress=False)
        return per_seed(found, seeds)

    plain = run(0)
    rows = []
    print(f"Algorithm 1: effective {interval(plain[:, 1])}, strict {interval(plain[:, 0])}")
    for weight in weights:
        runs = np.stack([run(seed, coverage=True, weight=weight) for seed in range(repeats)])
        mean = runs.mean(0)
        rows.append(
            {
                "weight": weight,
                "effective": interval(mean[:, 1]),
                "strict": interval(mean[:, 0]),
                "effective_of_each_run": runs[:, :, 1].sum(1).tolist(),
                "effective_more_than_algorithm_1": interval(mean[:, 1] - plain[:, 1]),
                "strict_more_than_algorithm_1": interval(mean[:, 0] - plain[:, 0]),
            }
        )
        print(f"Algorithm 2, weight {weight:g}: {rows[-1]}")
    return {
        "pair": case.title,
        "seeds": len(seeds),
        "score": score,
        "run_seeds": repeats,
        "algorithm_1": {"effective": interval(plain[:, 1]), "strict": interval(plain[:, 0])},
        "algorithm_2": rows,
    }


class Yardstick:
    """What a case says of a repaired pair, beside the pair as it was."""

    def __init__(self, case: Case, count: int) -> None:
        self.case, self.method = case, compdx.Gradient()
        self.seeds = case.seeds.select(slice(count))
        self.found, self.unseen = self.search(case.pair, self.seeds), self.search(case.pair, case.unseen)
        self.before = {"findings": self.found.pictures.counts(), "unseen_pictures": self.unseen.pictures.counts()}
        self.before |= self.fresh(case.pair)
        print(f"before: {short(self.before)}", flush=True)

    def search(self, pair: compdx.Pair, images: compdx.Seeds) -> compdx.Findings:
        return compdx.search(pair, images, method=self.method, chains=self.case.chains, progress=False)

    def fresh(self, pair: compdx.Pair) -> dict[str, Any]:
        """Accuracies, and what new searches find."""
        reported = self.case.reported
        return {
            "accuracy": float((np.asarray(scores(pair.compressed, reported)).argmax(1) == reported.labels).mean()),
            "unseen": self.search(pair, self.case.unseen).pictures.counts(),
            "again": self.search(pair, self.seeds).pictures.counts(),
            "fgsm": attacks.accuracy_under(pair.compressed, reported, epsilons=(EPSILON,))[EPSILON],
        }

    def row(self, name: str, seed: int, repair_it: Callable[[], repair.Repaired]) -> dict[str, Any]:
        """One repair, timed and measured."""
        began = time.perf_counter()
        done = repair_it()
        seconds = time.perf_counter() - began
        left, left_unseen = (part.pictures.relabelled(done.pair).counts() for part in (self.found, self.unseen))
        row = {
            "variant": name,
            "seed": seed,
            "rounds": list(done.report.rounds),
            "findings": left,
            "unseen_pictures": left_unseen,
            **self.fresh(done.pair),
            "seconds": seconds,
        }
        print(f"{name}, run seed {seed}: {short(row)}", flush=True)
        return row

    def record(self, rows: list[dict[str, Any]], **facts: Any) -> dict[str, Any]:
        case = self.case
        return {
            "pair": case.title,
            "seeds": len(self.seeds),
            "unseen": len(case.unseen),
            "recipe": case.recipe.settings(),
            "limits": case.limits,
            **facts,
            "before": self.before,
            "after": rows,
        }


def options_of(case: Case, seed: int) -> dict[str, Any]:
    return {
        "train": case.train,
        "holdout": case.holdout,
        "recipe": case.recipe,
        "seed": seed,
        "tolerance": TOLERANCE,
        "progress": False,
        **case.limits,
    }


def mended(case: Case, variants: list[str], count: int, repeats: int) -> dict[str, Any]:
    """Each variant of a repair with the pictures of one search: what is left of them, and what fresh searches find."""
    yardstick = Yardstick(case, count)
    rows = []
    for variant in variants:
        for seed in range(repeats):
            options = options_of(case, seed) | VARIANTS[variant]
            rows.append(
                yardstick.row(variant, seed, lambda o=options: repair.finetune(case.pair, yardstick.found, **o))
            )
    return yardstick.record(rows, variants={name: VARIANTS[name] for name in variants})


def iterated(case: Case, count: int, repeats: int, rounds: int, from_train: int, weight: float) -> dict[str, Any]:
    """Search and repair in turn; from training images, all seeds of the yardstick are unseen."""
    yardstick = Yardstick(case, count)
    images = case.train.select(slice(from_train)) if from_train else yardstick.seeds
    rows = []
    for seed in range(repeats):
        options = options_of(case, seed) | {"rounds": rounds, "consistency": weight, "method": yardstick.method}
        rows.append(yardstick.row("iterated", seed, lambda o=options: repair.iterate(case.pair, images, **o)))
    return yardstick.record(rows, rounds=rounds, from_train=from_train, consistency=weight)


def scores(model: compdx.Model, seeds: compdx.Seeds) -> npt.NDArray[np.float32]:
    return np.concatenate([model(seeds.images[first : first + 250]) for first in range(0, len(seeds), 250)])


def short(row: dict[str, Any]) -> str:
    return (
        f"accuracy {row['accuracy']:.4f}, findings {row['findings']['effective']}, again {row['again']['effective']}, "
        f"unseen {row['unseen_pictures']['effective']}, unseen again {row['unseen']['effective']}, "
        f"FGSM {row['fgsm']:.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", nargs="?", choices=("coverage", "repair", "iterate", "tables"))
    parser.add_argument("--study", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=None)
    parser.add_argument("--score", choices=("logit", "margin", "confidence"), default="logit")
    parser.add_argument("--weights", type=float, nargs="+", default=[20.0])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=["paper", "consistency"])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument(
        "--from-train", type=int, default=3000, help="training images that `iterate` searches; 0: the seeds"
    )
    parser.add_argument("--consistency", type=float, default=1.0, help="its weight in `iterate`")
    parser.add_argument("--epochs", type=int, default=None, help="of each repair; default the study's")
    parser.add_argument("--rate", type=float, default=None, help="of each repair; default the study's")
    parser.add_argument("--schedule", choices=("one-cycle", "constant"), default=None, help="of its rate, likewise")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default=None, help="of its passes, likewise")
    parser.add_argument("--pictures", type=int, default=None, help="most in a repair; default the study's, 0: all")
    parser.add_argument("--images", type=int, default=None, help="most training images in a repair, likewise")
    parser.add_argument("--unseen", type=int, default=None, help="at most so many unseen seeds")
    parser.add_argument("--smoke", action="store_true", help="a small network, few seeds: does it run?")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if options.smoke:
        case = from_digits(small=True)
        print(coverage(case, 60, 2, "logit", [1.0])["pair"])
        print(mended(case, ["paper", "restart"], 60, 1)["pair"])
        print(iterated(case, 60, 1, 2, 60, 1.0)["pair"])
        return
    if options.question == "tables" and options.study is not None:
        figures = json.loads((options.study / "tables.json").read_text(encoding="utf-8"))
        settings = json.loads((options.study / "study.json").read_text(encoding="utf-8"))
        path = record(
            f"compd-{figures['model']}-{figures['scheme']}",
            {"figures": figures, "scale": settings["scale"]},
            options.out,
        )
        path.with_suffix(".md").write_text(reproduce.render(figures), encoding="utf-8")
        return
    if options.question in (None, "tables") or (options.study is None) != (options.data is None):
        parser.error("a question is needed, and --study with --data but for the digits; tables needs --study alone")
    case = from_digits(small=False) if options.study is None else from_study(options.study, options.data)
    changed = {
        name: value
        for name in ("epochs", "rate", "schedule", "precision")
        if (value := getattr(options, name)) is not None
    }
    limits = {"picture_limit": options.pictures, "train_limit": options.images}
    case = replace(
        case,
        recipe=replace(case.recipe, **changed),
        limits=case.limits | {name: value or None for name, value in limits.items() if value is not None},
    )
    if options.unseen is not None:
        case = replace(case, unseen=case.unseen.select(slice(options.unseen)))
    if options.question == "coverage":
        row = coverage(case, options.seeds, options.repeats or 5, options.score, options.weights)
        name = f"compd-coverage-{case.title}-{options.score}"
    elif options.question == "repair":
        row = mended(case, options.variants, options.seeds, options.repeats or 3)
        name = f"compd-{'repair' if 'paper' in options.variants else '-'.join(options.variants)}-{case.title}"
    else:
        row = iterated(
            case, options.seeds, options.repeats or 3, options.rounds, options.from_train, options.consistency
        )
        name = f"compd-iterate-{case.title}"
    record(name.replace(" ", "-"), row, options.out)


if __name__ == "__main__":
    main()
