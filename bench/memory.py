"""10,000 seeds of MNIST at budget 1,000: memory, and the grade of every finding.

    python -m bench.memory --data DIR [--smoke]

DIR holds `mnist/train.parquet` and `mnist/test.parquet` in the Hugging Face layout. The pair is the demo's network,
trained on MNIST, and its int8 version by torchao. Each number of seeds runs in a process of its own, which reports its
peak resident memory before and after the search; the findings go to disk, are read back, replayed from their rows and
verified. Without --data, or with --smoke, scikit-learn's digits take the place of MNIST.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import compdx
from bench.record import record
from compdx.compress import quantize
from compdx.zoo import digits

SIZES = (1_000, 10_000)
SMOKE_SIZES = (20, 60)
BUDGET = 1000
CHAINS = 512


def peak_megabytes() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024


def load(data: Path | None, count: int) -> tuple[compdx.Seeds, compdx.Seeds]:
    if data is None:
        training, held_out = digits.load()
        return training, held_out.select(slice(count))
    training = compdx.Seeds.from_parquet(data / "mnist" / "train.parquet", limit=12_000)
    return training, compdx.Seeds.from_parquet(data / "mnist" / "test.parquet", limit=count)


def share(model: Any) -> float | None:
    """Accuracy of one model of a checkup; None when it could not be measured."""
    if model is None or model.accuracy is None:
        return None
    return float(model.accuracy.hits / model.accuracy.total)


def measure(data: Path | None, count: int, chains: int) -> dict[str, Any]:
    """One search in this process."""
    training, seeds = load(data, count)
    network = digits.train(training, epochs=2)
    small = quantize(network, training.select(slice(256)), inputs=digits.INPUTS)
    normalised = {"mean": digits.INPUTS.mean, "std": digits.INPUTS.std}
    pair = compdx.Pair(compdx.Model(network, **normalised), compdx.Model(small, **normalised))
    accuracy = compdx.doctor(pair, seeds)
    loop = compdx.MCMC(budget=BUDGET).start(seeds, chains=chains)
    before = peak_megabytes()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        findings = compdx.search(pair, seeds, budget=BUDGET, chains=chains, out=run, progress=False)
        after = peak_megabytes()
        grades = compdx.verify(pair, run).counts
        stored = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    sample = range(0, len(findings), max(1, len(findings) // 200))
    replayed = all((findings.replay(row, seeds) == findings.images[row]).all() for row in sample)
    if not replayed:
        msg = "a finding replayed from its row differs from its image"
        raise RuntimeError(msg)
    return {
        "seeds": len(seeds),
        "chains": chains,
        "budget": BUDGET,
        "bytes_per_chain": loop.bytes_per_chain,
        "peak_megabytes_before": before,
        "peak_megabytes_after": after,
        "run_bytes_on_disk": stored,
        "accuracy": share(accuracy.original),
        "accuracy_compressed": share(accuracy.compressed),
        "grades": grades,
        "replayed": len(sample),
        **findings.summary.to_json(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="directory of mnist/")
    parser.add_argument("--smoke", action="store_true", help="small and short: does it run?")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    data = None if options.smoke else options.data
    sizes = SIZES if data is not None else SMOKE_SIZES
    if options.one is not None:
        print(json.dumps(measure(data, options.one, min(CHAINS, options.one))))
        return
    rows = []
    for size in sizes:
        command = [sys.executable, "-m", "bench.memory", "--one", str(size)]
        command += ["--data", str(data)] if data is not None else []
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        row = json.loads(output.splitlines()[-1])
        rows.append(row)
        print(
            f"{row['seeds']:>6} seeds: peak {row['peak_megabytes_after']:,.0f} MB, "
            f"{row['peak_megabytes_after'] - row['peak_megabytes_before']:,.0f} MB of it for the search; "
            f"{row['bytes_per_chain']:,} bytes a chain; {row['found']} found, {row['already_deviating']} deviating as "
            f"they are, {row['exhausted']} exhausted, {row['queries_per_finding']:.1f} queries a finding, "
            f"{row['queries_per_second']:,.0f} queries/s; {row['grades']}"
        )
    if data is not None or options.out:
        record("memory", {"rows": rows}, options.out)


if __name__ == "__main__":
    main()
