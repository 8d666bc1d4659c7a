"""Ideas that may lower the queries per finding, each beside the search without it: queries, success, L2, intervals.

    python -m bench.ideas --data DIR [--pairs digits lenet5 resnet20 ...] [--seeds 100] [--repeats 5] [--budget 1000]

Pairs: the network of `compdx demo`, LeNet-5 on MNIST (trained here, or read from --lenet5) and the ResNet-20 for
CIFAR-10 that comes with compdx, each against its own int8 version; and, as a pair that hardly ever deviates, LeNet-5
against itself with weights in bfloat16. DIR holds `mnist/` and `cifar10/` as Parquet; without it, the pair is `digits`
alone. Ideas that are settings run in compdx. The others run in `Trial`, the same chain in NumPy with a switch for each
of them, and are compared with `Trial` without any; it draws other random numbers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import compdx
from bench.record import RESULTS, record
from compdx import compress, demo, ops, zoo
from compdx.training import Recipe

Array = np.ndarray
Scores = Callable[[Array], tuple[Array, Array]]
SAMPLE_SEED = 0  # which images are searched
CALIBRATION_IMAGES = 256
PRIOR_SEEDS = 50  # of their own, which are not searched
CHUNK = 256
PAIRS = ("digits", "lenet5", "resnet20", "lenet5-bfloat16")


# ---- pairs ----------------------------------------------------------------------------------------------------------


def load(name: str, data: Path | None, weights: Path | None) -> tuple[compdx.Pair, compdx.Seeds]:
    """A pair and the images to start from."""
    if name == "digits":
        training, test = zoo.read_data("digits")
        return demo.make_pair(training, epochs=8), test
    training, test = zoo.read_data(data / ("cifar10" if name == "resnet20" else "mnist"))
    if name == "resnet20":
        network = zoo.pretrained("resnet20-cifar10")
    elif weights is not None:
        network = zoo.load(weights)
    else:
        with tempfile.TemporaryDirectory() as out:
            network = zoo.train_network("lenet5", (training, test), out, recipe=Recipe(epochs=3))
    if name == "lenet5-bfloat16":
        small = compress.half(network.network).twin  # rounded weights; the arithmetic stays in float32
    else:
        small = compress.quantize(network.network, training.select(slice(CALIBRATION_IMAGES)), inputs=network.inputs)
    preprocessing = {"mean": network.inputs.mean, "std": network.inputs.std, "bounds": network.inputs.bounds}
    return compdx.Pair(network.model(), compdx.Model(small, name=f"{name} compressed", **preprocessing)), test


def in_chunks(pair: compdx.Pair) -> Scores:
    def scores(images: Array) -> tuple[Array, Array]:
        parts = [pair(images[i : i + CHUNK]) for i in range(0, len(images), CHUNK)]
        a, b = (np.concatenate([np.asarray(part[m]) for part in parts]) for m in (0, 1))
        return a, b

    return scores


def judged(scores: Scores, images: Array) -> tuple[Array, Array, Array]:
    """Labels of both models, and the smaller of their margins."""
    labels, margins = [], []
    for logits in scores(images):
        e = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        p = np.sort(e / e.sum(axis=1, keepdims=True), axis=1)
        labels.append(logits.argmax(axis=1))
        margins.append(p[:, -1] - p[:, -2])
    return labels[0], labels[1], np.minimum(*margins)


# ---- the chain in NumPy ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Idea:
    """Switches of `Trial`; all off is ``MCMC(bisect=0)``.

    Args:
        bisect: as in `compdx.MCMC`.
        halves: blends half the way, instead of where the margins say.
        anneal: the margin may grow by this times 0.9 ** step.
        restart: back to the seed after so many steps without acceptance.
        prior: operators start with the statistics of other seeds, scaled to so many mutants.
        repeat: probability that the operator of an accepted mutant is used again at once.
        follow: every change is scaled by the root of the margin, so that it shrinks towards the boundary.
        leap: the change of an accepted mutant is made once more before anything else is tried.
    """

    bisect: int = 0
    halves: bool = False
    anneal: float = 0.0
    restart: int = 0
    prior: int = 0
    repeat: float = 0.0
    follow: bool = False
    leap: bool = False


@dataclass(frozen=True)
class Runs:
    """How searches ended, ``[run seeds, seeds]``; l2 (pixels in 0..1) is NaN without a finding."""

    queries: Array
    found: Array
    effective: Array
    l2: Array


def towards(near: Array, far: Array, share: Array, rng: np.random.Generator) -> Array:
    """Images uint8 between near and far, rounded up or down at random."""
    way = (far.astype(np.float64) - near) * share.reshape(-1, 1, 1, 1)
    return np.clip(np.floor(near + way + rng.random(near.shape)), 0, 255).astype(np.uint8)


class Trial:
    """All chains of all run seeds in step."""

    def __init__(
        self, scores: Scores, seeds: compdx.Seeds, repeats: int, budget: int, idea: Idea, prior: Array
    ) -> None:
        self.scores, self.budget, self.idea = scores, budget, idea
        self.rng = np.random.default_rng(0)
        self.origin = np.tile(seeds.images, (repeats, 1, 1, 1))
        self.index = np.tile(seeds.indices, repeats)
        self.run_seed = np.repeat(np.arange(repeats), len(seeds))
        self.label, _, margin = (np.tile(values, repeats) for values in judged(scores, seeds.images))
        count = len(self.index)
        self.current, self.before, self.far = (self.origin.copy() for _ in range(3))
        self.margin, self.seed_margin, self.far_margin = margin.copy(), margin, np.zeros(count)
        self.blends, self.last, self.idle = np.zeros(count, int), np.full(count, -1), np.zeros(count, int)
        self.credit, self.total = np.tile(prior, (count, 1, 1)).transpose(1, 0, 2)
        self.queries, self.l2 = np.ones(count, int), np.full(count, np.nan)
        self.effective = np.zeros(count, bool)
        self.shape = (repeats, len(seeds))

    def run(self) -> Runs:
        active = np.arange(len(self.index))
        for step in range(1, self.budget):
            if not len(active):
                break
            active = self.step(active, step)
        found = ~np.isnan(self.l2)
        columns = (self.queries, found, self.effective, self.l2)
        return Runs(*(column.reshape(self.shape) for column in columns))

    def chosen(self, rows: Array) -> Array:
        """The next operator of every chain: Metropolis over the ranks of credit / total."""
        ratio = self.credit[rows] / np.maximum(self.total[rows], 1) + 1e-9 * self.rng.random((len(rows), 7))
        order = np.argsort(-ratio, axis=1)
        rank = np.take_along_axis(np.argsort(order, axis=1), np.maximum(self.last[rows], 0)[:, None], axis=1)
        weights = np.minimum(1.0, (6 / 7) ** (np.arange(7) - rank))
        weights[self.last[rows] < 0] = 1.0
        share = np.cumsum(weights, axis=1) / weights.sum(axis=1, keepdims=True)
        drawn = (self.rng.random((len(rows), 1)) > share[:, :-1]).sum(axis=1)
        operator = order[np.arange(len(rows)), drawn]
        again = (self.last[rows] >= 0) & (self.idle[rows] == 0) & (self.rng.random(len(rows)) < self.idea.repeat)
        return np.where(again, self.last[rows], operator)

    def mutants(self, rows: Array, operator: Array, step: int) -> Array:
        images = self.current[rows]
        for run_seed in np.unique(self.run_seed[rows]):
            for code, name in enumerate(ops.OPERATORS):
                here = (operator == code) & (self.run_seed[rows] == run_seed)
                if here.any():
                    draw = {"seed": int(run_seed), "index": self.index[rows[here]], "step": step}
                    images[here] = ops.apply(images[here], name, skip_identity=True, threads=1, **draw)
        if self.idea.follow:
            images = towards(self.current[rows], images, np.sqrt(np.maximum(self.margin[rows], 0.01)), self.rng)
        return images

    def step(self, active: Array, step: int) -> Array:
        idea = self.idea
        bisects = self.blends[active] > 0
        operator = np.where(bisects, 7, self.chosen(active))
        images = self.mutants(active, operator, step)
        leaps = ~bisects & idea.leap & (self.last[active] >= 0) & (self.idle[active] == 0)
        rows = active[leaps]
        operator[leaps] = self.last[rows]
        images[leaps] = np.clip(2 * self.current[rows].astype(int) - self.before[rows], 0, 255)
        rows = active[bisects]
        share = self.margin[rows] / np.maximum(self.margin[rows] + self.far_margin[rows], 1e-12)
        share = np.full(len(rows), 0.5) if idea.halves else np.clip(share, 1 / 16, 15 / 16)
        images[bisects] = towards(self.current[rows], self.far[rows], share, self.rng)

        a, b, margin = judged(self.scores, images)
        self.queries[active] += 1
        plain = ~bisects
        self.total[active[plain], operator[plain]] += 1
        ends = a != b
        rows = active[ends]
        self.effective[rows] = a[ends] == self.label[rows]
        difference = images[ends].astype(np.float64) - self.origin[rows]
        self.l2[rows] = np.sqrt((difference**2).sum(axis=(1, 2, 3))) / 255

        away = ~ends & (a != self.label[active]) & (idea.bisect > 0)
        near = ~ends & bisects & ~away
        fits = margin <= self.margin[active] + idea.anneal * 0.9**step
        accepted = ~ends & plain & ~away & fits
        far = active[away]
        self.far[far], self.far_margin[far] = images[away], margin[away]
        self.blends[active[bisects]] -= 1
        self.blends[active[away & plain]] = idea.bisect
        kept = near | accepted
        rows = active[kept]
        self.before[rows] = self.current[rows]
        self.current[rows], self.margin[rows] = images[kept], margin[kept]
        self.last[active[accepted]] = operator[accepted]
        credited = (accepted | away) & plain
        self.credit[active[credited], operator[credited]] += 1
        self.idle[active] = np.where(kept, 0, self.idle[active] + 1)
        if idea.restart:
            stuck = active[self.idle[active] >= idea.restart]
            self.current[stuck], self.margin[stuck] = self.origin[stuck], self.seed_margin[stuck]
            self.idle[stuck] = self.blends[stuck] = 0
        return active[~ends]


# ---- figures --------------------------------------------------------------------------------------------------------


def in_compdx(pair: compdx.Pair, seeds: compdx.Seeds, method: compdx.MCMC, repeats: int) -> Runs:
    """The same figures of `compdx.search`."""
    columns = []
    for run_seed in range(repeats):
        ended = compdx.search(pair, seeds, method=method, seed=run_seed, progress=False).ended
        kinds = np.array(ended["kind"].to_pylist())
        found = np.isin(kinds, ("effective", "invalid"))
        l2 = np.where(found, ended["l2"].to_numpy(zero_copy_only=False).astype(float), np.nan)
        columns.append((ended["queries"].to_numpy(), found, kinds == "effective", l2))
    return Runs(*(np.array(column) for column in zip(*columns, strict=True)))


def per_finding(runs: Runs, rows: Array) -> Array:
    """Queries per finding of samples of seeds ``[samples, seeds]``."""
    return runs.queries.sum(axis=0)[rows].sum(axis=1) / np.maximum(runs.found.sum(axis=0)[rows].sum(axis=1), 1)


def figures(runs: Runs, base: Runs) -> dict[str, Any]:
    """Queries (those of a search without a finding included), and their ratio to the base, paired by seed."""
    seeds = runs.queries.shape[1]
    every = np.arange(seeds)[None]
    samples = np.random.default_rng(0).integers(0, seeds, (4000, seeds))
    interval = np.quantile(per_finding(runs, samples), [0.025, 0.975])
    ratio = np.quantile(per_finding(runs, samples) / per_finding(base, samples), [0.025, 0.975])
    further = runs.l2 - base.l2  # NaN unless both found something
    further = further[:, ~np.isnan(further).all(axis=0)]
    resampled = np.random.default_rng(0).integers(0, further.shape[1], (1000, further.shape[1]))
    change = [np.nanmedian(further[:, rows]) for rows in resampled]
    return {
        "searches": int(runs.queries.size),
        "found": int(runs.found.sum()),
        "queries_per_finding": float(per_finding(runs, every)[0]),
        "queries_per_finding_95": interval.tolist(),
        "median_queries": float(np.median(runs.queries)),
        "ratio": float(per_finding(runs, every)[0] / per_finding(base, every)[0]),
        "ratio_95": ratio.tolist(),
        "median_l2": float(np.nanmedian(runs.l2)),
        "median_l2_change": float(np.nanmedian(further)),
        "median_l2_change_95": np.quantile(change, [0.025, 0.975]).tolist(),
        "effective_share": float(runs.effective.sum() / max(runs.found.sum(), 1)),
    }


def ranked(runs: Runs, margins: Array) -> dict[str, float]:
    """Queries for the first half of the findings: seeds in their order, and those of small margins first."""
    costs = {}
    for name, order in (("as they come", np.arange(len(margins))), ("by margin", np.argsort(margins, kind="stable"))):
        found, queries = runs.found[:, order].sum(axis=0).cumsum(), runs.queries[:, order].sum(axis=0).cumsum()
        half = int(np.searchsorted(found, found[-1] / 2))
        costs[name] = float(queries[half] / found[half])
    return costs


def settings(budget: int) -> dict[str, compdx.MCMC]:
    """The ideas that are settings; the first is the base of the others."""
    plain, default = compdx.MCMC(budget=budget, bisect=0), compdx.MCMC(budget=budget)
    return {
        "plain": plain,
        "bisect 12 (default)": default,
        "bisect 4": replace(default, bisect=4),
        "bisect 8": replace(default, bisect=8),
        "bisect 24": replace(default, bisect=24),
        "plain, identity draws": replace(plain, skip_identity=False),
        "plain, uniform choice": replace(plain, selection="uniform"),
        "plain, rank": replace(plain, selection="rank"),
        "plain, improve": replace(plain, acceptance="improve"),
        "bisect 12, uniform choice": replace(default, selection="uniform"),
        "bisect 12, improve": replace(default, acceptance="improve"),
        "bisect 12, always": replace(default, acceptance="always"),
    }


TRIALS = {
    "annealed acceptance": Idea(anneal=0.1),
    "restart after 20": Idea(restart=20),
    "prior of 50 mutants": Idea(prior=50),
    "operator repeated, p = 1/2": Idea(repeat=0.5),
    "change follows the margin": Idea(follow=True),
    "leap": Idea(leap=True),
}


def learned(scores: Scores, seeds: compdx.Seeds, budget: int, mutants: int) -> Array:
    """Credit and total of the operators over chains on other seeds, scaled to so many mutants: int ``[2, 7]``."""
    chains = Trial(scores, seeds, 1, budget, Idea(), np.zeros((2, 7), int))
    chains.run()
    credit, total = chains.credit.sum(axis=0), chains.total.sum(axis=0)
    return np.rint(np.stack([credit, total]) * (mutants / total.sum())).astype(int)


def compare(
    name: str,
    options: argparse.Namespace,
    count: int,
    repeats: int,
    budget: int,
    save: Callable[[dict[str, Any]], None],
) -> None:
    """All figures of one pair, saved after every idea."""
    pair, images = load(name, options.data, options.lenet5)
    scores = in_chunks(pair)
    order = np.random.default_rng(SAMPLE_SEED).permutation(len(images))[: 3 * (count + PRIOR_SEEDS)]
    a, b, _ = judged(scores, images.images[order])
    order = order[a == b]
    seeds, others = images.select(np.sort(order[:count])), images.select(order[count : count + PRIOR_SEEDS])
    sizes = {"seeds": len(seeds), "repeats": repeats, "budget": budget, "sample_seed": SAMPLE_SEED}
    report: dict[str, Any] = {"sizes": sizes, "settings": {}, "trials": {}}
    bases: dict[str, Runs] = {}

    def note(kind: str, what: str, base: str, runs: Runs) -> None:
        bases[what] = runs
        report[kind][what] = {"base": base, **figures(runs, bases[base])}
        show(name, what, report[kind][what])
        save(report)

    for what, method in settings(budget).items():
        if options.only is None or any(word in what for word in options.only) or what == "plain":
            note("settings", what, "plain", in_compdx(pair, seeds, method, repeats))
    if "bisect 12 (default)" in bases:
        report["ranked"] = ranked(bases["bisect 12 (default)"], judged(scores, seeds.images)[2])
        print(f"{name:<9} seeds in order, or of small margin first: {report['ranked']}", flush=True)
    for prefix, base in (("trial", Idea()), ("trial, bisect 12", Idea(bisect=12))):
        ideas = {prefix: base}
        if base.bisect:
            ideas |= {f"{prefix}, halves": replace(base, halves=True)}
        ideas |= {f"{prefix}, {what}": replace(idea, bisect=base.bisect) for what, idea in TRIALS.items()}
        for what, idea in ideas.items():
            if options.only is None or any(word in what for word in options.only) or what == prefix:
                prior = learned(scores, others, budget, idea.prior) if idea.prior else np.zeros((2, 7), int)
                note("trials", what, prefix, Trial(scores, seeds, repeats, budget, idea, prior).run())


def keep(path: Path | None, name: str, report: dict[str, Any]) -> None:
    """Write the record. The pairs are far apart in cost, so each may have a run of its own: it keeps the others."""
    if path is not None:
        others = json.loads(path.read_text(encoding="utf-8"))["pairs"] if path.exists() else {}
        record("ideas", {"pairs": others | {name: report}}, path)


def show(pair: str, name: str, row: dict[str, Any]) -> None:
    (low, high), (less, more) = row["queries_per_finding_95"], row["ratio_95"]
    print(
        f"{pair:<9} {name:<46} {row['found']}/{row['searches']}   queries/finding {row['queries_per_finding']:.1f} "
        f"({low:.1f}..{high:.1f})   x {row['ratio']:.2f} ({less:.2f}..{more:.2f})   "
        f"median {row['median_queries']:.0f}   L2 {row['median_l2']:.2f}   effective {row['effective_share']:.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="directory of mnist/ and cifar10/")
    parser.add_argument("--pairs", nargs="+", choices=PAIRS)
    parser.add_argument("--lenet5", type=Path, help="weights of a LeNet-5 (compdx train); default: it is trained here")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5, help="run seeds of every idea")
    parser.add_argument("--budget", type=int, default=1000)
    parser.add_argument("--only", nargs="+", help="only ideas with one of these words in their names")
    parser.add_argument("--smoke", action="store_true", help="digits, few seeds: does it run?")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    pairs = options.pairs or (PAIRS if options.data is not None else PAIRS[:1])
    count, repeats, budget = (6, 2, 40) if options.smoke else (options.seeds, options.repeats, options.budget)
    if options.smoke:
        pairs = PAIRS[:1]
    if options.data is None and set(pairs) - {"digits"}:
        parser.error("these pairs need --data")

    torch.set_num_threads(1)
    path = options.out or (None if options.smoke else RESULTS / "ideas.json")
    for name in pairs:
        compare(name, options, count, repeats, budget, partial(keep, path, name))


if __name__ == "__main__":
    main()
