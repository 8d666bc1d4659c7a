"""The main job on real images, start to end: train, compress, check, search, verify, look."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compdx import api
from compdx.checkup import doctor
from compdx.compress import quantize
from compdx.findings import EXHAUSTED, KINDS, Findings
from compdx.model import Model, Pair
from compdx.seeds import Seeds
from compdx.verification import GRADES, Verification, verify
from compdx.zoo import digits

Echo = Callable[[str], object]

CALIBRATION_IMAGES = 256
# Fewer slots than seeds: as chains end at very different times, a slot is refilled three times and few stand idle.
CHAINS = 128


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo leaves: the findings, their grades, the path of the contact sheet, and the seconds it all took."""

    findings: Findings
    verification: Verification
    sheet: Path
    seconds: float


def run(
    out: str | os.PathLike[str],
    *,
    seeds: int = 500,
    budget: int = 1000,
    run_seed: int = 0,
    epochs: int = 8,
    threads: int | None = None,
    echo: Echo = print,
    progress: bool = True,
) -> DemoResult:
    """Find where a small network for digits and its int8 version differ.

    Args:
        out: Directory; gets the run in ``run`` and ``contact-sheet.png``. A run that was begun there with the same
            settings is continued.
        seeds: Number of held-out digits to start from, 1..599.
        budget: Most queries spent on one seed.
        run_seed: Fixes all randomness of the search; the training has its own.
        epochs: Passes over the training digits.
        threads: CPU threads of the search's own work; the networks are so small that one thread is best for them.
        echo: Called with every line of the report.
        progress: Show the progress of the search on stderr.

    Raises:
        ModuleNotFoundError: torch, torchao or scikit-learn is missing.
        ValueError: An argument is out of range.
    """
    started = time.perf_counter()
    out = Path(out)
    training, held_out = digits.load()
    if not 1 <= seeds <= len(held_out):
        msg = f"seeds must be in 1..{len(held_out)}, got {seeds}"
        raise ValueError(msg)
    chosen = held_out.select(slice(seeds))
    with digits.one_thread():
        pair = make_pair(training, epochs=epochs)
        echo(f"trained and quantized in {time.perf_counter() - started:.1f} s")
        checkup = doctor(pair, chosen)
        echo(f"original    accuracy {checkup.original.accuracy if checkup.original else 'not measured'}")
        echo(f"compressed  accuracy {checkup.compressed.accuracy if checkup.compressed else 'not measured'}")
        for hint in checkup.problems:
            echo(str(hint))

        findings = api.search(
            pair,
            chosen,
            budget=budget,
            chains=min(len(chosen), CHAINS),
            seed=run_seed,
            threads=threads,
            out=out / "run",
            resume=True,
            progress=progress,
        )
        verifying = time.perf_counter()
        verification = verify(pair, out / "run")
    for line in report(findings, verification):
        echo(line)
    echo(f"verified in {time.perf_counter() - verifying:.1f} s")
    sheet = out / "contact-sheet.png"
    findings.show(sheet, seeds=chosen)
    echo(f"findings    {out / 'run'}")
    echo(f"picture     {sheet}")
    seconds = time.perf_counter() - started
    echo(f"all of it   {seconds:.1f} s")
    return DemoResult(findings=findings, verification=verification, sheet=sheet, seconds=seconds)


def make_pair(training: Seeds, *, epochs: int) -> Pair:
    """The trained network and its int8 version, calibrated on images of the training set."""
    network = digits.train(training, epochs=epochs)
    small = quantize(network, training.select(slice(CALIBRATION_IMAGES)), inputs=digits.INPUTS)
    preprocessing: dict[str, Any] = {"mean": digits.INPUTS.mean, "std": digits.INPUTS.std}
    return Pair(
        Model(network, **preprocessing, name="digits"),
        Model(small, **preprocessing, name="digits int8"),
    )


def report(findings: Findings, verification: Verification) -> list[str]:
    """The table of the demo: the findings by kind and grade, and the figures of the search."""
    summary = findings.summary
    cells = Counter(zip(findings.table["kind"].to_pylist(), verification.grades, strict=True))
    lines = [f"{'kind':<11}{'findings':>9}" + "".join(f"{grade:>17}" for grade in GRADES)]
    for kind, count in findings.kinds.items():
        if count and kind != KINDS[EXHAUSTED]:
            lines.append(f"{kind:<11}{count:>9}" + "".join(f"{cells[kind, grade]:>17}" for grade in GRADES))
    lines.append(f"{'none':<11}{summary.exhausted:>9}  (budget spent)")
    lines.append(
        f"{summary.queries} queries in {summary.seconds:.1f} s: {summary.queries_per_second:,.0f} a second, "
        f"{summary.queries_per_finding:.1f} for each finding"
    )
    return lines
