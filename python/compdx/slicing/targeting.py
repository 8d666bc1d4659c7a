"""How much every synapse matters to every class, so that a set of classes can be pruned for or protected."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compdx.engine import Numerics
from compdx.model import import_optional
from compdx.ops.checks import within
from compdx.slicing import files
from compdx.slicing.contributions import Aggregate
from compdx.slicing.engine import Theta
from compdx.slicing.profiles import BATCH, Profile, labels_given
from compdx.slicing.slicer import slice
from compdx.slicing.subject import Subject, labels_of, parts

NEEDS = "slicing"
Longs = npt.NDArray[np.int64]
THETA = Theta()


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassScores:
    """Sums of the contributions of synapses over images of each class, by layer.

    Attributes:
        absolute: int32 ``[C, ...]``, a row of the shape of the weight for every class that was sliced, in their order:
            sums of |CONTRIB| of the images.
        signed: The same of CONTRIB.
        counts: int64 ``[K]``: how many images the sums are of; 0 for a class that was not sliced.
        settings: How they were made, as JSON values.
    """

    absolute: dict[str, npt.NDArray[np.int32]]
    signed: dict[str, npt.NDArray[np.int32]]
    counts: Longs
    settings: dict[str, Any]

    def __repr__(self) -> str:
        size = sum(scores[0].size for scores in self.absolute.values())
        return f"<ClassScores of {size:,} synapses for {len(self.classes)} classes: {int(self.counts.sum()):,} images>"

    @property
    def classes(self) -> list[int]:
        """Those that were sliced."""
        found: list[int] = np.flatnonzero(self.counts).tolist()
        return found

    def of(self, classes: Iterable[int], aggregate: Aggregate = "absolute") -> dict[str, Longs]:
        """The scores of a set of classes, by layer: sums over the classes; of ``"signed"`` ones the magnitude.

        Raises:
            ValueError: There is no class, one stands there twice, has no images or does not exist.
        """
        if aggregate not in ("signed", "absolute"):
            msg = f"aggregate must be 'signed' or 'absolute', got {aggregate!r}"
            raise ValueError(msg)
        chosen = check_classes(classes, len(self.counts))
        without = [label for label in chosen if not self.counts[label]]
        if without:
            msg = f"classes must have images that were sliced, but class {without[0]} has none"
            raise ValueError(msg)
        rows = np.searchsorted(self.classes, chosen)
        scores = self.absolute if aggregate == "absolute" else self.signed
        return {name: abs(array[rows].sum(0, dtype=np.int64)) for name, array in scores.items()}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the scores to a ``.safetensors`` file and return its path."""
        arrays = {f"{kind}/{k}": v for kind in ("absolute", "signed") for k, v in getattr(self, kind).items()}
        about = {"settings": self.settings, "order": list(self.absolute)}
        return files.write(path, "class scores", {**arrays, "counts": self.counts}, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ClassScores:
        """Read what `save` wrote; see `files.read` for the errors."""
        arrays, about = files.read(path, "class scores")
        with files.complete(path, "class scores"):
            absolute, signed = (
                {name: arrays[f"{kind}/{name}"] for name in about["order"]} for kind in ("absolute", "signed")
            )
            return cls(absolute=absolute, signed=signed, counts=arrays["counts"], settings=about["settings"])


def class_scores(
    model: Any,
    profile: Profile,
    data: Any,
    *,
    labels: Any = None,
    classes: Iterable[int] | None = None,
    per_class: int = 1000,
    theta: Theta | None = THETA,
    batch: int = BATCH,
) -> ClassScores:
    """How much every synapse contributed to every class, over images that the model classifies correctly.

    Every image is sliced for its class, and |CONTRIB| of the images is summed up by class.

    Args:
        model: The `Model` (or what ``Model(obj)`` takes) that was profiled. It is not changed.
        profile: Its baseline.
        data: `Seeds`, images uint8 ``[N, C, H, W]``, or float32 ``[N, ...]`` that is the model's input already.
        labels: int ``[N]``, -1 for unknown; default those of the seeds.
        classes: Those to look at; ``None`` for all.
        per_class: The first so many correctly classified images of a class are sliced.
        theta: Which inputs of a neuron count; default as in the paper. ``None`` for all takes a tenth of the time, but
            then nothing knows how large a weight is, and its scores are no good to prune by.
        batch: Images at a time.

    Raises:
        ModuleNotFoundError: torch is missing.
        TypeError, ValueError: See `slice`; there are no labels; no image of a class is classified correctly.

    Runs on the model's device. Nothing is random. Zhang et al., ESEC/FSE 2020, section 5.3; docs/methods.md.
    """
    within("per_class", per_class, 1, 1 << 20)
    within("batch", batch, 1, 1 << 20)
    subject = Subject(model)
    rows = subject.check(data, "data")
    wanted = labels_given(data, labels, len(rows), "class_scores")
    right = _classified(subject, rows, wanted, batch)
    chosen = range(right.shape[1]) if classes is None else check_classes(classes, right.shape[1])
    counts = np.zeros(right.shape[1], np.int64)
    sums: dict[str, dict[str, npt.NDArray[np.int32]]] = {"absolute": {}, "signed": {}}
    for row, label in enumerate(chosen):
        own = np.flatnonzero(right[:, label])[:per_class]
        counts[label] = len(own)
        if not len(own):
            msg = f"data must hold an image of class {label} that the model classifies correctly, got none"
            raise ValueError(msg)
        found = slice(subject.model, profile, rows[own], criterion=label, theta=theta, absolute=True, batch=batch)
        for name, layer in found.synapses.items():
            for kind, scores in sums.items():
                empty = np.zeros((len(chosen), *layer.signed.shape), np.int32)
                scores.setdefault(name, empty)[row] = layer.of("absolute" if kind == "absolute" else "signed")
    settings = {**found.settings, "per_class": per_class, "profiled": profile.images}
    return ClassScores(absolute=sums["absolute"], signed=sums["signed"], counts=counts, settings=settings)


def check_classes(classes: Iterable[int], count: int) -> list[int]:
    """Classes in their order.

    Raises:
        TypeError: One is no integer.
        ValueError: There is none, one stands there twice or does not exist.
    """
    array = np.asarray(list(classes))
    if array.size and array.dtype.kind not in "iu":
        msg = f"classes must be integers, got {array.dtype}"
        raise TypeError(msg)
    chosen: list[int] = sorted(array.tolist())
    if not chosen or len(set(chosen)) < len(chosen) or chosen[0] < 0 or chosen[-1] >= count:
        msg = f"classes must be different ones of 0 to {count - 1}, at least one, got {chosen}"
        raise ValueError(msg)
    return chosen


def _classified(subject: Subject, rows: Any, wanted: Longs, batch: int) -> npt.NDArray[np.bool_]:
    """Which images are of a class and get its label, bool ``[N, K]``."""
    torch = import_optional("torch", NEEDS)
    labels, classes = [], 0
    with torch.no_grad(), Numerics().held():
        for part in parts(len(rows), batch):
            scores = subject.scores(subject.trace.module(subject.feed(rows[part])))
            labels.append(labels_of(scores))
            classes = scores.shape[1]
    if wanted.max() >= classes:
        msg = f"labels must be below the model's {classes} classes, got {int(wanted.max())}"
        raise ValueError(msg)
    given = np.concatenate(labels)
    own: npt.NDArray[np.bool_] = (given[:, None] == np.arange(classes)) & (given == wanted)[:, None]
    return own
