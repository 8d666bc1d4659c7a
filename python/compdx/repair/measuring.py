"""What is measured before and after a repair, and the pictures that it uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from compdx import api, attacks, methods
from compdx.findings import KINDS, Findings
from compdx.methods.base import Method
from compdx.model import Model, Pair
from compdx.pictures import Pictures
from compdx.repair.reporting import Change
from compdx.seeds import Seeds

BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The figures of one pair; ``None`` and empty where there was nothing to measure with."""

    findings: int
    accuracy: float | None
    unseen: int | None
    fgsm: Mapping[float, float]


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """What pairs are measured with; of every pair the same.

    Attributes:
        test: Labelled images for accuracy and attacks.
        unseen: Seeds of a search with ``method`` and the run seed ``seed``, shown on the screen when ``shown``.
    """

    test: Seeds | None
    unseen: Seeds | None
    method: Method | None
    seed: int
    shown: bool

    def measure(self, pair: Pair, pictures: Pictures) -> Figures:
        """The figures of a pair; ``pictures`` have the labels that it gives them."""
        unseen = None
        if self.unseen is not None and self.method is not None:
            found = api.search(pair, self.unseen, method=self.method, seed=self.seed, progress=self.shown)
            unseen = count_effective(pictures_of(found))
        return Figures(
            findings=count_effective(pictures),
            accuracy=None if self.test is None else accuracy(pair.compressed, self.test),
            unseen=unseen,
            fgsm={} if self.test is None else attacks.accuracy_under(pair.compressed, self.test),
        )

    def settings(self) -> dict[str, Any]:
        """What a report keeps of it, as JSON values."""
        method = None if self.method is None else {"name": self.method.name, "settings": self.method.settings()}
        return {"test": 0 if self.test is None else len(self.test), "method": method, "seed": self.seed}


def changes(before: Figures, after: Figures) -> dict[str, Any]:
    """The fields of a `RepairReport` that two measurements fill."""

    def change(name: str) -> Change | None:
        value = getattr(before, name)
        return None if value is None else Change(before=value, after=getattr(after, name))

    return {
        **{name: change(name) for name in ("findings", "accuracy", "unseen")},
        "fgsm": {epsilon: Change(before=before.fgsm[epsilon], after=after.fgsm[epsilon]) for epsilon in before.fgsm},
    }


def scores_of(model: Model, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The model's scores, float32 ``[N, K]`` on the CPU, of uint8 images."""
    parts = [model(images[first : first + BATCH]) for first in range(0, len(images), BATCH)]
    return np.concatenate([part if isinstance(part, np.ndarray) else part.cpu().numpy() for part in parts])


def accuracy(model: Model, seeds: Seeds) -> float:
    """Share (0..1) of labelled seeds that the model itself labels rightly."""
    return float((scores_of(model, seeds.images).argmax(1) == seeds.labels).mean())


def pictures_of(findings: Findings | Pictures) -> Pictures:
    """The pictures of a search; of a method that keeps none, its effective findings."""
    if isinstance(findings, Pictures):
        return findings
    if not isinstance(findings, Findings):
        msg = f"findings must be compdx.Findings or their pictures, got {type(findings).__name__}"
        raise TypeError(msg)
    if findings.pictures is not None:
        return findings.pictures
    rows = np.flatnonzero(np.array(findings.table["kind"].to_pylist(), object) == KINDS[0])
    columns: dict[str, Any] = {
        field.name: findings.table[field.name].to_numpy()[rows]
        for field in fields(Pictures)
        if field.name not in ("images", "already_deviating")
    }
    return Pictures(**columns, already_deviating=np.zeros(len(rows), np.bool_), images=findings.images[rows])


def count_effective(pictures: Pictures) -> int:
    """How many pictures are effective."""
    return int(pictures.effective.sum())


def joined(parts: Sequence[Pictures]) -> Pictures:
    """All pictures of at least one part, in order."""
    return Pictures(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Pictures)})


def method_of(findings: Findings | Pictures, method: str | Method | None) -> Method:
    """The settings of ``method``, or of the method that made the findings.

    Raises:
        ValueError: Neither is known.
    """
    if method is not None:
        return methods.resolve(method)
    known = findings.settings.get("method") if isinstance(findings, Findings) else None
    if known is None or known["name"] not in methods.METHODS:
        msg = "method must be given to search from unseen seeds: these findings do not say how they were found"
        raise ValueError(msg)
    found: Method = methods.METHODS[known["name"]](**known["settings"])
    return found


def check_labelled(name: str, seeds: Any, shape: tuple[int, int, int]) -> Seeds:
    """Seeds with labels, all known, of images of this shape; raises by the argument's name."""
    if not isinstance(seeds, Seeds):
        msg = f"{name} must be compdx.Seeds with labels, got {type(seeds).__name__}"
        raise TypeError(msg)
    if seeds.labels is None or (seeds.labels < 0).any():
        msg = f"{name} must have labels, all known, got {'none' if seeds.labels is None else 'some of -1'}"
        raise ValueError(msg)
    if seeds.shape != shape:
        msg = f"{name} must have the shape of the pictures, {shape}, got {seeds.shape}"
        raise ValueError(msg)
    return seeds
