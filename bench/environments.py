"""One network in many environments: do labels stay, and does a search find where they do not?

    python -m bench.environments --data CIFAR10 --work DIR [--images 10000] [--seeds 100] [--smoke]

The shipped ResNet-20 runs on CIFAR-10's test images in every environment that is installed, with the same float32
weights; beside them stand bfloat16 and an int8 version, eager and compiled. The comparison goes through ``--work`` and
continues there. Then the float32 network is searched against each of the others from ``--seeds`` images on which both
agree. ``--data`` is a directory with ``train.parquet`` and ``test.parquet``; without it (``--smoke``) images are
random.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from bench.record import record
from bench.timing import bar
from compdx import Model, Seeds, compress, environments, zoo

REFERENCE = "torch"
SAME = (
    *(REFERENCE, "torch:inductor", "torch:isa=avx2"),
    *("onnxruntime:disable_all", "onnxruntime:basic", "onnxruntime:extended", "onnxruntime:all"),
    *("openvino", "tvm:3"),
)
FEWER_BITS = ("torch:bfloat16", "openvino:bfloat16")
INT8 = "int8"
GOALS = {"surprising_flips_float32": 0, "found_share": 0.95}


def peak_mib() -> float:
    """The most memory that this process and its children, each by itself, have had so far."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(kind).ru_maxrss for kind in kinds) / 1024


def int8(model: Model, calibration: np.ndarray) -> Model:
    """The network quantized after training; labels by its eager graph, gradients through the float network."""
    inputs = model.inputs
    quantized = compress.quantize(model.module, Seeds.of(calibration), inputs=inputs)
    return Model(quantized, name=INT8, mean=inputs.mean, std=inputs.std, bounds=inputs.bounds)


def data_of(options: argparse.Namespace) -> tuple[Seeds, np.ndarray]:
    """The images to compare, with labels, and those to calibrate int8 with."""
    if options.data is None:
        rng = np.random.default_rng(0)
        drawn = rng.integers(0, 256, (options.images + 32, 3, 32, 32), dtype=np.uint8)
        return Seeds(drawn[32:], rng.integers(0, 10, options.images)), drawn[:32]
    train, test = zoo.read_data(options.data)
    return test.select(slice(options.images)), train.images[:256]


def measured(
    subjects: list[Any], images: Seeds, options: argparse.Namespace, folder: Path
) -> tuple[environments.Comparison, dict[str, Any]]:
    """The comparison, and what it took."""
    before, start = peak_mib(), time.perf_counter()
    found = environments.compare(
        subjects,
        images,
        batch=options.batch,
        rechecked=options.rechecked,
        repeats=options.repeats,
        directory=folder / "compared",
        progress=not options.smoke,
    )
    costs = {
        "seconds": time.perf_counter() - start,
        "peak_mib": peak_mib(),
        "peak_mib_before": before,
        "scores_bytes": sum(file.stat().st_size for file in (folder / "compared" / "scores").iterdir()),
    }
    return found, costs


def summary(found: environments.Comparison) -> dict[str, Any]:
    """What the goals are about: flips between environments of the same float32 weights, and all counts."""
    same = [pair for pair in found.pairs if pair.measured and pair.a in SAME and pair.b in SAME]
    return {
        "float32_pairs": len(same),
        "float32_flips": sum(pair.differing for pair in same),
        "surprising_flips_float32": sum(pair.surprising for pair in same),
        "float32_max_abs": max((pair.drift.max_abs for pair in same if pair.drift), default=None),
        "not_measured": {one.name: one.reason for one in found.environments if one.reason is not None},
        "matrix": [[None if np.isnan(value) else int(value) for value in row] for row in found.matrix()],
        "environments": [
            {
                "name": one.name,
                "accuracy": one.accuracy,
                "latency": None if one.latency is None else one.latency.to_json(),
                "flips_within": {way: len(kept.rows) for way, kept in one.stability.items()},
                "max_abs_within": {way: kept.max_abs for way, kept in one.stability.items()},
            }
            for one in found.environments
        ],
        "pairs": found.rows(),
    }


def searched(found: environments.Comparison, images: Seeds, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Float32 against fewer bits, from images on which both agree."""
    names = [REFERENCE, *(name for name in (*FEWER_BITS, INT8, "int8 inductor") if name in found.names)]
    kept = dataclasses.replace(found, environments=tuple(one for one in found.environments if one.name in names))
    start = time.perf_counter()
    done = environments.search(
        kept, images, budget=options.budget, limit=options.seeds, seed=options.seed, progress=not options.smoke
    )
    seconds = time.perf_counter() - start
    rows = []
    for one in done.searches:
        share = one.found / one.seeds if one.seeds else None
        rows.append({**vars(one), "found_share": share, "seconds_of_all": seconds})
        told = (
            one.reason if share is None else f"{bar(share)} {one.found} of {one.seeds} seeds, {one.queries:,} queries"
        )
        print(f"  {one.a} – {one.b:24} {told}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--work", type=Path, default=None, help="where files and scores go; a temporary directory")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rechecked", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--budget", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="few images and environments: does it run?")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if options.data is None and not options.smoke:
        parser.error("--data is needed, except with --smoke")
    same = SAME
    if options.smoke:
        same = (REFERENCE, "torch:threads=1", "openvino")
        options.images, options.batch, options.rechecked, options.repeats = 48, 16, 16, 2
        options.seeds, options.budget = 2, 50
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as temporary:
        warnings.simplefilter("ignore")  # of the compilers, about themselves
        folder = Path(temporary) if options.work is None else options.work
        images, calibration = data_of(options)
        model = zoo.pretrained("resnet20-cifar10").model()
        start = time.perf_counter()
        subjects: list[Any] = environments.variants(model, [*same, *FEWER_BITS], folder / "files", shape=images.shape)
        conversion = time.perf_counter() - start
        subjects.append(int8(model, calibration))
        if not options.smoke:
            (compiled,) = environments.variants(subjects[-1], ["torch:inductor"], folder / "int8", shape=images.shape)
            subjects.append(compiled.model.replace(name="int8 inductor"))
        found, costs = measured(subjects, images, options, folder)
        print(found)
        results = {"summary": summary(found), "costs": {"conversion_seconds": conversion, **costs}}
        print(f"{costs['seconds']:.0f} s, at most {costs['peak_mib']:,.0f} MiB")
        results["searches"] = searched(found, images, options)
    if not options.smoke or options.out:
        keys = ("images", "batch", "rechecked", "repeats", "seeds", "budget", "seed")
        settings = {key: getattr(options, key) for key in keys}
        record("environments", {"goals": GOALS, "settings": settings, **results}, options.out)


if __name__ == "__main__":
    main()
