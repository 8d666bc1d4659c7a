"""Questions about CompD that one run cannot answer: does coverage help, which repair lowers what a new search finds?

    python -m bench.compd coverage --study DIR --data DATA [--seeds 1000] [--repeats 5]
    python -m bench.compd repair --study DIR --data DATA [--variants paper consistency] [--repeats 3]
    python -m bench.compd tables --study DIR

``--study`` is a directory that ``compdx reproduce compd`` wrote, ``--data`` the data it was given; ``tables`` keeps the
figures of the study itself as a record. Intervals are 95 %
bootstrap intervals over seeds. ``--smoke`` needs neither: a pruned network for scikit-learn's digits.
"""

from __future__ import annotations

import argparse
import json
import time
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
}
ROUNDS = {"iterated": {}, "iterated with consistency": {"consistency": 1.0}}


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


def from_digits() -> Case:
    train, test = digits.load()
    network = digits.train(train, epochs=2)
    pruned = compress.prune(network, 0.6, layers="all")
    options: dict[str, Any] = {"mean": 0.5, "std": 0.5}
    return Case(
        title="digits pruned",
        pair=compdx.Pair(compdx.Model(network, **options), compdx.Model(pruned, **options)),
        seeds=test.select(slice(0, 60)),
        unseen=test.select(slice(60, 90)),
        reported=test.select(slice(60, 120)),
        train=train.select(slice(0, 300)),
        holdout=train.select(slice(300, 360)),
        recipe=Recipe(epochs=1, rate=0.001, schedule="constant", flip=False, crop=1, precision="float32"),
        limits={"picture_limit": 200, "train_limit": 200},
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


def mended(case: Case, variants: list[str], count: int, repeats: int, rounds: int) -> dict[str, Any]:
    """Each variant of the repair: what is left of its pictures, and what fresh searches find."""
    seeds = case.seeds.select(slice(count))
    method = compdx.Gradient()

    def search(pair: compdx.Pair, images: compdx.Seeds) -> compdx.Findings:
        return compdx.search(pair, images, method=method, chains=case.chains, progress=False)

    def measure(pair: compdx.Pair) -> dict[str, Any]:
        reported = case.reported
        return {
            "accuracy": float((np.asarray(scores(pair.compressed, reported)).argmax(1) == reported.labels).mean()),
            "unseen": search(pair, case.unseen).pictures.counts(),
            "again": search(pair, seeds).pictures.counts(),
            "fgsm": attacks.accuracy_under(pair.compressed, reported, epsilons=(EPSILON,))[EPSILON],
        }

    found, unseen = search(case.pair, seeds), search(case.pair, case.unseen)
    before = {
        **measure(case.pair),
        "findings": found.pictures.counts(),
        "unseen_pictures": unseen.pictures.counts(),
    }
    print(f"before: {short(before)}")
    rows = []
    for variant in variants:
        for seed in range(repeats):
            began = time.perf_counter()
            options: dict[str, Any] = {
                "train": case.train,
                "holdout": case.holdout,
                "recipe": case.recipe,
                "seed": seed,
                "tolerance": TOLERANCE,
                "progress": False,
                **case.limits,
            }
            if variant in ROUNDS:
                done = repair.iterate(case.pair, seeds, rounds=rounds, method=method, **options, **ROUNDS[variant])
            else:
                done = repair.finetune(case.pair, found, **options, **VARIANTS[variant])
            left, left_unseen = (part.relabelled(done.pair).counts() for part in (found.pictures, unseen.pictures))
            row = {
                "variant": variant,
                "seed": seed,
                "rounds": list(done.report.rounds),
                "findings": left,
                "unseen_pictures": left_unseen,
                **measure(done.pair),
                "seconds": time.perf_counter() - began,
            }
            rows.append(row)
            print(f"{variant}, run seed {seed}: {short(row)}", flush=True)
    return {
        "pair": case.title,
        "seeds": len(seeds),
        "unseen": len(case.unseen),
        "recipe": case.recipe.settings(),
        "limits": case.limits,
        "before": before,
        "after": rows,
    }


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
    parser.add_argument("question", nargs="?", choices=("coverage", "repair", "tables"))
    parser.add_argument("--study", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=None)
    parser.add_argument("--score", choices=("logit", "margin", "confidence"), default="logit")
    parser.add_argument("--weights", type=float, nargs="+", default=[20.0])
    parser.add_argument("--variants", nargs="+", choices=[*VARIANTS, *ROUNDS], default=["paper", "consistency"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=None, help="of each repair; default the study's")
    parser.add_argument("--unseen", type=int, default=None, help="at most so many unseen seeds")
    parser.add_argument("--smoke", action="store_true", help="a small network, few seeds: does it run?")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if options.smoke:
        case = from_digits()
        print(coverage(case, 60, 2, "logit", [1.0])["pair"])
        print(mended(case, ["paper", "iterated with consistency"], 60, 1, 2)["pair"])
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
    if options.question is None or options.study is None or options.data is None:
        parser.error("a question, --study and --data are needed without --smoke")
    case = from_study(options.study, options.data)
    if options.epochs is not None:
        case = replace(case, recipe=replace(case.recipe, epochs=options.epochs))
    if options.unseen is not None:
        case = replace(case, unseen=case.unseen.select(slice(options.unseen)))
    if options.question == "coverage":
        row = coverage(case, options.seeds, options.repeats or 5, options.score, options.weights)
        name = f"compd-coverage-{case.title}-{options.score}"
    else:
        row = mended(case, options.variants, options.seeds, options.repeats or 3, options.rounds)
        name = f"compd-repair-{case.title}"
    record(name.replace(" ", "-"), row, options.out)


if __name__ == "__main__":
    main()
