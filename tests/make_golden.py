"""Write tests/golden, the runs that pin docs/format.md.

    python tests/make_golden.py

Only a change of the format is a reason to run it; the tests then say what moved.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from compdx.findings import EFFECTIVE, EXHAUSTED, INVALID, NON_FINITE, SEED, Outcomes, Summary, outcomes_to_table
from compdx.ops import OPERATORS
from compdx.store import RunWriter

GOLDEN = Path(__file__).resolve().parent / "golden"
SHAPE = (1, 4, 5)
COUNT = 8


def make_header(count: int = COUNT, shape: tuple[int, int, int] = SHAPE) -> dict[str, Any]:
    return {
        "method": {
            "name": "mcmc",
            "settings": {"budget": 10, "overflow": "clip", "linf": None, "skip_identity": False},
        },
        "seed": 7,
        "seeds": {"fingerprint": "0" * 64, "count": count, "shape": list(shape), "source": "made up"},
        "pair": {"original": "a", "compressed": "b"},
        "chains": 4,
        "device": "cpu",
        "versions": {"compdx": "0.1.0"},
        "started": "2025-01-01T00:00:00+00:00",
    }


def make_outcomes(indices: list[int], shape: tuple[int, int, int] = SHAPE) -> Outcomes:
    """Outcomes that depend on nothing but the identities of their seeds; five neighbouring seeds cover all kinds."""
    index = np.array(indices, dtype=np.int64)
    kind = np.array([EFFECTIVE, INVALID, EXHAUSTED, SEED, NON_FINITE], dtype=np.uint8)[index % 5]
    step = np.where(kind == SEED, 0, 1 + index % 9).astype(np.uint32)
    pixels = np.arange(math.prod(shape)).reshape(shape)
    images = ((pixels * 7 + 13 * index[:, None, None, None]) % 256).astype(np.uint8)
    # Every third mutant is accepted; the operators take turns.
    traces = [((np.arange(n) % 7) | ((np.arange(n) % 3 == 0) << 3)).astype(np.uint8) for n in step]
    bad = kind == NON_FINITE
    return Outcomes(
        seed_index=index,
        kind=kind,
        step=step,
        queries=step + np.uint32(1),
        accepted=np.array([(trace >> 3).sum() for trace in traces], dtype=np.uint32),
        states=np.minimum(step, 4).astype(np.uint32),
        seed_label=(index % 10).astype(np.int32),
        original_label=np.where(kind == INVALID, (index + 2) % 10, index % 10).astype(np.int32),
        compressed_label=np.where(bad, -1, np.where(kind == EXHAUSTED, index % 10, (index + 1) % 10)).astype(np.int32),
        original_confidence=0.5 + (index % 16) / 32,
        compressed_confidence=np.where(bad, np.nan, 0.25 + (index % 16) / 32),
        non_finite=np.where(bad, 2, 0).astype(np.uint8),
        l2_squared=(index % 100) * 255,
        linf=(index % 256).astype(np.uint8),
        images=images,
        traces=traces,
    )


def write_golden(folder: Path) -> None:
    """``finished``: two parts, the second of which repeats a seed; ``killed``: a part, a checkpoint, half a part."""
    summary = Summary.of(outcomes_to_table(make_outcomes(list(range(COUNT))), OPERATORS), seeds=COUNT, seconds=2.0)
    with RunWriter.create(folder / "finished", make_header()) as writer:
        writer.append(make_outcomes([5, 0, 3]))
        writer.append(make_outcomes([3, 7, 1, 2, 6, 4]))
        writer.finish(summary)
    with RunWriter.create(folder / "killed", make_header()) as writer:
        writer.append(make_outcomes([5, 0, 3]))
        counters = {"seconds": 0.5, "queries": 20.0, "iterations": 6.0, "occupancy": 20 / 24}
        writer.checkpoint({"records": np.arange(8, dtype=np.uint8), "next": np.array(4)}, counters)
    (folder / "killed" / "parts" / "part-000001.parquet.tmp").write_bytes(b"PAR1 and then the light went out")
    for run in ("finished", "killed"):
        (folder / run / "lock").unlink()


if __name__ == "__main__":
    shutil.rmtree(GOLDEN, ignore_errors=True)
    write_golden(GOLDEN)
