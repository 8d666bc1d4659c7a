"""Re-ask every finding: alone, repeatedly, and among others in batches."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from compdx.findings import Findings
from compdx.model import Pair

GRADES = ("stable", "batch-dependent", "run-dependent", "gone")

STABLE, BATCH_DEPENDENT, RUN_DEPENDENT, GONE, CORRUPT = range(5)
VERDICTS = (
    ("stable", ""),
    ("batch-dependent", "the labels depend on the batch"),
    ("run-dependent", "asked alone again, a label changes"),
    ("gone", "the labels agree"),
    ("gone", "corrupt: the stored image does not match its hash"),
)

# Every finding is asked at so many places, spread evenly, of the batches of each size.
POSITIONS = 8

NON_FINITE, UNKNOWN = -1, -2

Bools = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int32]
"""One row an image: the label of the original and of the compressed model, -1 for scores that are not finite."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The grades of a set of findings.

    ``table`` has one row a finding, in their order: ``seed_index``, ``grade``, ``reason`` (empty when stable),
    ``original_label`` and ``compressed_label`` (asked alone; -1 for scores that are not finite, -2 for an image that
    could not be read), ``hash_ok``.
    """

    table: pa.Table

    @cached_property
    def grades(self) -> tuple[str, ...]:
        """The grade of every finding: ``stable``, ``batch-dependent``, ``run-dependent`` or ``gone``."""
        return tuple(self.table["grade"].to_pylist())

    @property
    def counts(self) -> dict[str, int]:
        """How many findings have each grade; every grade is a key."""
        count = Counter(self.grades)
        return {grade: count[grade] for grade in GRADES}

    @property
    def all_stable(self) -> bool:
        """Whether every finding is stable; true of no findings at all."""
        return self.counts["stable"] == len(self)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __str__(self) -> str:
        found = f"{len(self)} finding{'' if len(self) == 1 else 's'}"
        return f"{found}: " + (
            ", ".join(f"{n} {grade}" for grade, n in self.counts.items() if n) or "nothing to verify"
        )


def verify(
    pair: Pair | tuple[Any, Any],
    findings: Findings | str | os.PathLike[str],
    *,
    batch_sizes: Sequence[int] = (8, 64),
    repeats: int = 3,
    progress: Callable[[int, int], object] | None = None,
) -> Verification:
    """Ask both models about every finding again and grade it.

    Every image is decoded from the PNG that was stored, and its hash compared first. It is then asked alone
    ``repeats`` times, and in batches of other findings of each size, at 8 places spread evenly over the batch.

    * ``stable``: deviates, with the labels on record, every time.
    * ``batch-dependent``: whether it deviates, or with which labels, depends on the batch. The labels on record count
      as those of one more batch.
    * ``run-dependent``: asked alone several times, a model changes its label.
    * ``gone``: deviates nowhere; or the stored image is corrupt, and nothing can be asked.

    A ``non-finite`` finding deviates when the same models return scores that are not finite.

    Args:
        pair: A `Pair`, or a tuple ``(original, compressed)`` of what `Pair` takes.
        findings: `Findings`, or the path of saved ones.
        batch_sizes: Sizes of the batches, each at least 2.
        repeats: How often each image is asked alone, at least 2.
        progress: Called with the number of images asked so far and in all.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind or out of range.
        Exception: Whatever a model raises.

    Nothing is random. On CUDA the labels of every batch are waited for.
    """
    pair = Pair.of(pair)
    findings = _findings(findings)
    sizes = _check_sizes(batch_sizes)
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 2:
        msg = f"repeats must be an integer of at least 2, got {repeats!r}"
        raise ValueError(msg)

    images, readable = _read(findings)
    rows = np.flatnonzero(readable)
    recorded = _recorded(findings)[rows]
    batches = _batches(len(rows), sizes)
    ask = _Asker(pair, images, repeats * len(rows) + sum(map(len, batches)), progress)

    alone = np.stack([ask.alone() for _ in range(repeats)])
    first = alone[0]
    deviates = _deviates(first, recorded)
    varies = (alone != first).any(axis=(0, 2))
    elsewhere, moved = deviates.copy(), np.zeros(len(rows), dtype=np.bool_)
    for members in batches:
        labels = ask(members)
        np.logical_or.at(elsewhere, members, _deviates(labels, recorded[members]))
        np.logical_or.at(moved, members, (labels != first[members]).any(axis=1))
    moved |= ((first != recorded) & (recorded != UNKNOWN)).any(axis=1)

    verdicts = np.full(len(findings), CORRUPT)
    verdicts[rows] = np.select([varies, ~elsewhere, moved], [RUN_DEPENDENT, GONE, BATCH_DEPENDENT], STABLE)
    labels = np.full((len(findings), 2), UNKNOWN, dtype=np.int32)
    labels[rows] = first
    return Verification(
        table=pa.table(
            {
                "seed_index": findings.table["seed_index"],
                "grade": pa.array([VERDICTS[verdict][0] for verdict in verdicts], pa.string()),
                "reason": pa.array([VERDICTS[verdict][1] for verdict in verdicts], pa.string()),
                "original_label": labels[:, 0],
                "compressed_label": labels[:, 1],
                "hash_ok": readable,
            }
        )
    )


class _Asker:
    """Asks both models for the labels of images, and tells how far it has come."""

    def __init__(
        self, pair: Pair, images: npt.NDArray[np.uint8], total: int, progress: Callable[[int, int], object] | None
    ) -> None:
        self.pair, self.images = pair, images
        self.done, self.total, self.progress = 0, total, progress

    def __call__(self, members: Rows) -> Labels:
        labels = np.stack([_labels(scores) for scores in self.pair(self.images[members])], axis=1)
        self.done += len(members)
        if self.progress is not None:
            self.progress(self.done, self.total)
        return labels

    def alone(self) -> Labels:
        """The labels of every image, each asked in a batch of its own."""
        labels = np.empty((len(self.images), 2), dtype=np.int32)
        for row in range(len(self.images)):
            labels[row] = self(np.array([row]))
        return labels


def _batches(count: int, sizes: Sequence[int]) -> list[Rows]:
    """Full batches of neighbouring rows, cyclic, that start so densely that every row sits at 8 places of each size."""
    return [
        np.arange(start, start + size) % count for size in sizes for start in range(0, count, max(1, size // POSITIONS))
    ]


def _labels(scores: Any) -> Labels:
    if not isinstance(scores, np.ndarray):
        scores = scores.cpu().numpy()
    return np.where(np.isfinite(scores).all(axis=1), scores.argmax(axis=1), NON_FINITE).astype(np.int32)


def _deviates(labels: Labels, recorded: Labels) -> Bools:
    """Whether each row deviates as on record: by its labels, or by which model's scores are not finite."""
    non_finite = recorded == NON_FINITE
    different = (labels[:, 0] != labels[:, 1]) & (labels != NON_FINITE).all(axis=1)
    same_models = ((labels == NON_FINITE) == non_finite).all(axis=1)
    return cast("Bools", np.where(non_finite.any(axis=1), same_models, different))


def _recorded(findings: Findings) -> Labels:
    """The labels on record; ``UNKNOWN`` where a finding does not say, ``NON_FINITE`` where that is what was found."""
    who = np.array(findings.table["non_finite"].to_pylist(), dtype=object)
    columns = []
    for model in ("original", "compressed"):
        labels = findings.table[f"{model}_label"].to_numpy()
        columns.append(np.where(np.isin(who, (model, "both")), NON_FINITE, np.where(labels < 0, UNKNOWN, labels)))
    return np.stack(columns, axis=1).astype(np.int32)


def _read(findings: Findings) -> tuple[npt.NDArray[np.uint8], Bools]:
    """The images that match their hash, uint8 ``[M, C, H, W]``, and which rows of the table those are."""
    images = np.empty((len(findings), *findings.shape), dtype=np.uint8)
    readable = np.ones(len(findings), dtype=np.bool_)
    for row in range(len(findings)):
        try:
            # Decoded from the stored bytes, whatever was done to `findings.images` in memory.
            images[row] = findings.check_image(row)
        except ValueError:
            readable[row] = False
    return images[readable], readable


def _findings(findings: Findings | str | os.PathLike[str]) -> Findings:
    if isinstance(findings, Findings):
        return findings
    if isinstance(findings, (str, os.PathLike)):
        return Findings.load(Path(findings))
    msg = f"findings must be compdx.Findings or the path of a run, got {type(findings).__name__}"
    raise TypeError(msg)


def _check_sizes(batch_sizes: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(batch_sizes, Sequence):
        msg = f"batch_sizes must be a sequence of integers, got {type(batch_sizes).__name__}"
        raise TypeError(msg)
    sizes = tuple(batch_sizes)
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int) or size < 2:
            msg = f"batch_sizes must be integers of at least 2, got {size!r}"
            raise ValueError(msg)
    return sizes
