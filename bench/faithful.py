"""compdx beside DFlare's published loop: is it the same search with the same settings, and a better one with its own?

    python -m bench.faithful --pairs DIR --data DIR [--seeds 100] [--budget 3000] [--repeats 5]

DIR of pairs holds DFlare's `lenet1.h5`, `lenet1-quan.lite`, `resnet.h5`, `resnet-quan.lite`; DIR of data holds
`mnist/test.parquet` and `cifar10/test.parquet`. Needs keras, torch, ai-edge-litert, opencv-python-headless and scipy.
Without --pairs, or with --smoke, two small NumPy models take their place, so that the path is exercised anywhere.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import compdx
from bench import published
from bench.pairs import FILES, Peer, agreeing, load_images, load_pair, small_pair
from bench.record import record

Array = np.ndarray
SAMPLE_SEED = 0  # which images are searched
RUN_SEED = 0
CHAINS = 32  # fewer than seeds, so that slots are refilled and the batch is not idle while the last chains end


@dataclass(frozen=True)
class Runs:
    """How searches ended: `steps` is -1 where the budget was spent; `l2` (pixels in 0..1) is of the findings only."""

    steps: Array
    queries: Array
    l2: Array
    effective: float
    seconds: float

    def figures(self) -> dict[str, Any]:
        found = self.steps > 0
        steps = self.steps[found]
        return {
            "searches": len(self.steps),
            "found": int(found.sum()),
            "mean_steps": float(steps.mean()),
            "median_steps": float(np.median(steps)),
            "max_steps": int(steps.max()),
            "queries_per_finding": float(self.queries.sum() / found.sum()),
            "queries_per_finding_95": interval(self.queries, found),
            "median_l2": float(np.median(self.l2)),
            "effective_share": self.effective,
            "queries_per_second": float(self.queries.sum() / self.seconds),
        }


def interval(queries: Array, found: Array) -> list[float]:
    """95 % bootstrap interval, over searches, of queries per finding."""
    rows = np.random.default_rng(0).integers(0, len(queries), (2000, len(queries)))
    ratios = queries[rows].sum(axis=1) / np.maximum(found[rows].sum(axis=1), 1)
    return [float(value) for value in np.quantile(ratios, [0.025, 0.975])]


def run_published(peer: Peer, images: Array, rows: Array, budget: int) -> Runs:
    """The published loop, one image after the other, one query at a time."""
    results, l2, effective = [], [], []
    start = time.perf_counter()
    for row in rows:
        seed_image = np.ascontiguousarray(np.moveaxis(images[row], 0, -1))
        result = published.search(
            lambda image: peer.original(peer.inputs(image)[None])[0],
            lambda image: peer.compressed(peer.inputs(image)[None])[0],
            seed_image,
            max_steps=budget - 1,
            rng=np.random.default_rng([RUN_SEED, int(row)]),
        )
        results.append(result)
    seconds = time.perf_counter() - start
    for row, result in zip(rows, results, strict=True):
        if result.image is not None:
            seed_image = np.moveaxis(images[row], 0, -1)
            l2.append(np.linalg.norm(result.image.astype(np.float64) - seed_image) / 255)
            labels = [int(peer.original(peer.inputs(image)[None]).argmax()) for image in (seed_image, result.image)]
            effective.append(labels[0] == labels[1])
    return Runs(
        np.array([result.steps for result in results]),
        np.array([result.queries for result in results]),
        np.array(l2),
        float(np.mean(effective)),
        seconds,
    )


def run_compdx(
    peer: Peer, images: Array, rows: Array, method: compdx.MCMC, run_seeds: range
) -> tuple[list[Runs], dict[str, int]]:
    """`compdx.search` once for each run seed, and how `compdx.verify` grades the findings of the first."""
    wanted: dict[str, Any] = {
        "mean": peer.mean,
        "std": peer.std,
        "bounds": peer.bounds,
        "layout": "NHWC",
        "outputs": "probabilities",
    }
    pair = compdx.Pair(
        compdx.Model(peer.original, name="original", **wanted),
        compdx.Model(peer.compressed, name="compressed", **wanted),
    )
    seeds = compdx.Seeds(images).select(rows)
    runs, grades = [], {}
    for run_seed in run_seeds:
        start = time.perf_counter()
        findings = compdx.search(pair, seeds, method=method, chains=CHAINS, seed=run_seed, progress=False)
        seconds = time.perf_counter() - start
        steps = findings.ended["step"].to_numpy().astype(np.int64)
        kinds = np.array(findings.ended["kind"].to_pylist())
        found = np.isin(kinds, ("effective", "invalid"))
        runs.append(
            Runs(
                np.where(found, steps, -1),
                findings.ended["queries"].to_numpy().astype(np.int64),
                findings.table["l2"].to_numpy(),
                float(np.mean(kinds[found] == "effective")),
                seconds,
            )
        )
        if run_seed == run_seeds[0]:
            grades = compdx.verify(pair, findings).counts
    return runs, grades


def pooled(runs: list[Runs]) -> Runs:
    return Runs(
        np.concatenate([run.steps for run in runs]),
        np.concatenate([run.queries for run in runs]),
        np.concatenate([run.l2 for run in runs]),
        float(np.average([run.effective for run in runs], weights=[len(run.l2) for run in runs])),
        sum(run.seconds for run in runs),
    )


def same_distribution(a: Runs, b: Runs, budget: int) -> dict[str, float]:
    """Two-sample Kolmogorov-Smirnov test of steps to success; a failure counts as longer than any success."""
    from scipy.stats import ks_2samp

    test = ks_2samp(*(np.where(runs.steps < 0, budget, runs.steps) for runs in (a, b)))
    return {"statistic": float(test.statistic), "p": float(test.pvalue)}


def methods(budget: int) -> dict[str, compdx.MCMC]:
    """The settings that are compared, by name."""
    artifact = compdx.MCMC.artifact(budget=budget)
    default = compdx.MCMC(budget=budget)
    return {
        "artifact": artifact,
        "default": default,
        "artifact, clip": replace(artifact, overflow="clip"),
        "default, no bisection": replace(default, bisect=0),
        "default, identity draws": replace(default, skip_identity=False),
        "default, wrap": replace(default, overflow="wrap"),
        "default, uniform choice": replace(default, selection="uniform"),
        **{f"improve, grid {grid}": replace(default, acceptance="improve", grid=grid) for grid in (5, 10, 20, 40)},
        "improve, nearest": replace(default, acceptance="improve", coverage="nearest"),
        "change": replace(default, acceptance="change"),
    }


def compare(peer: Peer, images: Array, count: int, budget: int, repeats: int, only: list[str] | None) -> dict[str, Any]:
    """All figures of one pair."""
    rows = agreeing(peer, images, count, SAMPLE_SEED)
    loop = run_published(peer, images, rows, budget)
    report: dict[str, Any] = {"published": loop.figures(), "settings": {}}
    show(peer.name, "published loop", report["published"])
    for name, method in methods(budget).items():
        if only is not None and name not in only:
            continue
        runs, grades = run_compdx(peer, images, rows, method, range(RUN_SEED, RUN_SEED + repeats))
        figures = {**pooled(runs).figures(), "grades": grades, "settings": method.settings()}
        report["settings"][name] = figures
        show(peer.name, name, figures)
        if name == "artifact":
            report["artifact_first_run"] = runs[0].figures()
            report["ks_first_run"] = same_distribution(loop, runs[0], budget)
            report["ks_all_runs"] = same_distribution(loop, pooled(runs), budget)
            print(f"{'':<10}KS against the published loop: {report['ks_first_run']}, all runs {report['ks_all_runs']}")
    return report


def show(pair: str, name: str, figures: dict[str, Any]) -> None:
    low, high = figures["queries_per_finding_95"]
    print(
        f"{pair:<9} {name:<28} {figures['found']}/{figures['searches']}   queries/finding "
        f"{figures['queries_per_finding']:.1f} ({low:.1f}..{high:.1f})   median step {figures['median_steps']:.1f}, "
        f"max {figures['max_steps']}   median L2 {figures['median_l2']:.2f}   "
        f"effective {figures['effective_share']:.2f}   {figures['queries_per_second']:,.0f} queries/s   "
        f"{figures.get('grades', '')}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, help="directory of DFlare's model files")
    parser.add_argument("--data", type=Path, help="directory of mnist/ and cifar10/")
    parser.add_argument("--names", nargs="+", choices=sorted(FILES), default=list(FILES))
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--budget", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=5, help="run seeds of every setting")
    parser.add_argument("--threads", type=int, default=1, help="threads of the models, on both sides")
    parser.add_argument("--settings", nargs="+", choices=sorted(methods(1)), help="only these settings; default all")
    parser.add_argument("--smoke", action="store_true", help="small models, few seeds: does it run?")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.pairs is not None and options.data is None:
        parser.error("--pairs needs --data")

    cv2.setNumThreads(1)
    small = options.smoke or options.pairs is None
    count, budget, repeats = (10, 300, 1) if small else (options.seeds, options.budget, options.repeats)
    reports = {}
    if small:
        peer, images = small_pair()
        reports[peer.name] = compare(peer, images, count, budget, repeats, options.settings)
    else:
        for name in options.names:
            peer = load_pair(name, options.pairs, threads=options.threads)
            images = load_images(name, options.data)
            reports[name] = compare(peer, images, count, budget, repeats, options.settings)
    if not small or options.out:
        sizes = {"seeds": count, "budget": budget, "repeats": repeats, "threads": options.threads}
        sizes |= {"sample_seed": SAMPLE_SEED, "run_seed": RUN_SEED}
        record("faithful", {"sizes": sizes, "pairs": reports}, options.out)


if __name__ == "__main__":
    main()
