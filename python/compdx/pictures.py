"""Pictures: every picture that a gradient search drew, with its labels and its class (CompD, section 4)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from compdx import ops

Bools = npt.NDArray[np.bool_]

# One value a finding: the pictures of its chain as lists, their pixels one after another. Large: parts hold gigabytes.
TRAIL = pa.struct(
    {
        "step": pa.list_(pa.int32()),
        "original_label": pa.list_(pa.int32()),
        "compressed_label": pa.list_(pa.int32()),
        "original_confidence": pa.list_(pa.float64()),
        "compressed_confidence": pa.list_(pa.float64()),
        "l2": pa.list_(pa.float64()),
        "linf": pa.list_(pa.int16()),
        "pixels": pa.large_binary(),
        "sha256": pa.string(),
    }
)
_LISTS = ("step", "original_label", "compressed_label", "original_confidence", "compressed_confidence", "l2", "linf")
RELABEL_BATCH = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class Trail:
    """The pictures of one chain, in the order of their steps.

    Attributes:
        step: int32 ``[k]``, 1 for the first.
        original_label, compressed_label: int32 ``[k]``; -1 where the scores were not finite.
        original_confidence, compressed_confidence: float64 ``[k]``, 0..1; NaN unknown.
        l2: float64 ``[k]``, distance to the seed, pixels in 0..1.
        linf: int16 ``[k]``, largest change of a value in grey levels.
        images: uint8 ``[k, C, H, W]``.
    """

    step: npt.NDArray[np.int32]
    original_label: npt.NDArray[np.int32]
    compressed_label: npt.NDArray[np.int32]
    original_confidence: npt.NDArray[np.float64]
    compressed_confidence: npt.NDArray[np.float64]
    l2: npt.NDArray[np.float64]
    linf: npt.NDArray[np.int16]
    images: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.step)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """P pictures as columns, sorted by seed, then by step.

    Attributes:
        seed_index: int64 ``[P]``, identity of the seed.
        step: int32 ``[P]``, 1 for the first picture of a seed.
        seed_label: int32 ``[P]``, the original's label of the seed.
        original_label, compressed_label: int32 ``[P]``, labels of the picture; -1 where the scores were not finite.
        original_confidence, compressed_confidence: float64 ``[P]``, 0..1; NaN unknown.
        l2: float64 ``[P]``, distance to the picture's own seed, pixels in 0..1.
        linf: int16 ``[P]``, largest change of a value in grey levels.
        already_deviating: bool ``[P]``, the pair deviates on the seed itself.
        images: uint8 ``[P, C, H, W]``.
    """

    seed_index: npt.NDArray[np.int64]
    step: npt.NDArray[np.int32]
    seed_label: npt.NDArray[np.int32]
    original_label: npt.NDArray[np.int32]
    compressed_label: npt.NDArray[np.int32]
    original_confidence: npt.NDArray[np.float64]
    compressed_confidence: npt.NDArray[np.float64]
    l2: npt.NDArray[np.float64]
    linf: npt.NDArray[np.int16]
    already_deviating: Bools
    images: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.seed_index)

    def __repr__(self) -> str:
        counts = self.counts()
        classes = ", ".join(f"{counts[name]:,} {name}" for name in ("effective", "invalid", "valid"))
        return f"<Pictures: {len(self):,} of {counts['seeds']:,} seeds ({classes})>"

    @property
    def finite(self) -> Bools:
        """Both models returned finite scores."""
        return (self.original_label >= 0) & (self.compressed_label >= 0)

    @property
    def deviating(self) -> Bools:
        """The two labels differ."""
        return cast("Bools", self.finite & (self.original_label != self.compressed_label))

    @property
    def kept(self) -> Bools:
        """The original keeps the seed's label: effective or valid. These are the pictures that a repair uses."""
        return cast("Bools", self.finite & (self.original_label == self.seed_label))

    @property
    def effective(self) -> Bools:
        """The original keeps the seed's label, the compressed model has another: the count of the paper's tables."""
        return self.kept & self.deviating

    @property
    def strict(self) -> Bools:
        """Effective, and the two models agree on the seed: what the mutation itself did."""
        return self.effective & ~self.already_deviating

    @property
    def invalid(self) -> Bools:
        """The original's label changed, whatever the compressed model says."""
        return cast("Bools", self.finite & (self.original_label != self.seed_label))

    @property
    def valid(self) -> Bools:
        """Both models keep the seed's label."""
        return self.kept & ~self.deviating

    def counts(self) -> dict[str, int]:
        """How many pictures, and how many distinct seeds they come from; ``change_ori`` is invalid and deviating.

        ``effective`` + ``invalid`` + ``valid`` + ``non_finite`` = ``pictures``.
        """
        effective, strict = self.effective, self.strict
        return {
            "pictures": len(self),
            "seeds": _distinct(self.seed_index),
            "already_deviating_seeds": _distinct(self.seed_index[self.already_deviating]),
            "deviating": int(self.deviating.sum()),
            "effective": int(effective.sum()),
            "effective_seeds": _distinct(self.seed_index[effective]),
            "strict": int(strict.sum()),
            "strict_seeds": _distinct(self.seed_index[strict]),
            "invalid": int(self.invalid.sum()),
            "change_ori": int((self.invalid & self.deviating).sum()),
            "valid": int(self.valid.sum()),
            "non_finite": int((~self.finite).sum()),
        }

    def select(self, rows: Any) -> Pictures:
        """The pictures at these rows: integers, a boolean mask or a slice."""
        return Pictures(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def relabelled(self, pair: Any) -> Pictures:
        """The same pictures with the labels and confidences that this pair gives them now; the seeds are not asked.

        Args:
            pair: A `Pair`, called on uint8 images.
        """
        asked = [_ask(pair, self.images[first : first + RELABEL_BATCH]) for first in range(0, len(self), RELABEL_BATCH)]
        labels = np.concatenate([np.empty((0, 2), np.int32), *(labels for labels, _ in asked)])
        confidences = np.concatenate([np.empty((0, 2)), *(confidences for _, confidences in asked)])
        return replace(
            self,
            original_label=labels[:, 0].copy(),
            compressed_label=labels[:, 1].copy(),
            original_confidence=confidences[:, 0].copy(),
            compressed_confidence=confidences[:, 1].copy(),
        )

    @classmethod
    def of(
        cls,
        trails: pa.ChunkedArray,
        *,
        seed_index: npt.NDArray[np.int64],
        seed_label: npt.NDArray[np.int32],
        already_deviating: Bools,
        shape: tuple[int, int, int],
    ) -> Pictures:
        """The pictures of a column of trails; chains without one give none.

        Raises:
            ValueError: Pixels do not match their hash; names the seed.
        """
        rows: list[npt.NDArray[np.int64]] = []
        images: list[npt.NDArray[np.uint8]] = []
        columns: dict[str, list[list[Any]]] = {name: [] for name in _LISTS}
        for row, trail in enumerate(trails.to_pylist()):
            if trail is None:
                continue
            pixels = trail["pixels"]
            if hashlib.sha256(pixels).hexdigest() != trail["sha256"]:
                msg = f"the pictures of seed {seed_index[row]} do not match their SHA-256"
                raise ValueError(msg)
            images.append(np.frombuffer(pixels, np.uint8).reshape(len(trail["step"]), *shape))
            rows.append(np.full(len(trail["step"]), row))
            for name in _LISTS:
                columns[name].append(trail[name])
        where = np.concatenate([np.empty(0, np.int64), *rows])
        types = {"step": np.int32, "original_label": np.int32, "compressed_label": np.int32, "linf": np.int16}
        flat: dict[str, Any] = {
            name: np.array([value for part in parts for value in part], types.get(name, np.float64))
            for name, parts in columns.items()
        }
        return cls(
            seed_index=seed_index[where],
            seed_label=seed_label[where],
            already_deviating=already_deviating[where],
            images=np.concatenate([np.empty((0, *shape), np.uint8), *images]),
            **flat,
        )


def trails_to_array(trails: Sequence[Trail | None]) -> pa.Array:
    """Trails as values of `TRAIL`, null for chains without one."""
    rows: list[dict[str, Any] | None] = []
    for trail in trails:
        if trail is None:
            rows.append(None)
            continue
        pixels = np.ascontiguousarray(trail.images).tobytes()
        rows.append(
            {name: getattr(trail, name) for name in _LISTS}
            | {"pixels": pixels, "sha256": hashlib.sha256(pixels).hexdigest()}
        )
    return pa.array(rows, TRAIL)


def _ask(pair: Any, images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """Labels int32 ``[N, 2]`` and confidences float64 ``[N, 2]`` of both models."""
    a, b = pair(images)
    outputs = (pair.original.outputs, pair.compressed.outputs)
    verdicts = ops.verdicts(*(np.asarray(s if isinstance(s, np.ndarray) else s.cpu()) for s in (a, b)), outputs=outputs)
    return verdicts.labels, confidences_of(verdicts)


def confidences_of(verdicts: Any) -> npt.NDArray[np.float64]:
    """Confidences float64 ``[N, 2]`` in 0..1, NaN where the scores were not finite."""
    values = np.asarray(verdicts.confidences).astype(np.float64) / float(1 << 30)
    bits = np.asarray(verdicts.non_finite)[:, None] & np.array([1, 2], np.uint8)
    unknown: npt.NDArray[np.float64] = np.where(bits != 0, np.nan, values)
    return unknown


def _distinct(values: npt.NDArray[np.int64]) -> int:
    return len(np.unique(values))
