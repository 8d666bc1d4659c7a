"""The baseline that activations are compared with: means over a profiling set (NNSlicer, section 3.1)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from compdx.engine import Numerics
from compdx.model import import_optional
from compdx.ops.checks import within
from compdx.seeds import Seeds
from compdx.slicing import files
from compdx.slicing.subject import Subject, labels_of, parts

NEEDS = "slicing"
BATCH = 32
Kind = Literal["dataset", "class"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Profile:
    """Means of the values that rules compare with: inputs and outputs of weighted sums, pools, sums and gates.

    Attributes:
        baseline: ``"dataset"``: one mean a neuron; ``"class"``: one of every class.
        means: float64 by the name of a value: of its shape without the batch, ``[K, ...]`` for classes. NaN where a
            class has no image.
        counts: int64 ``[]`` or ``[K]``: how many images the means are of.
        images: How many were looked at.
        weights: SHA-256 of the model's weights; slices of others are refused.
        inputs: The model's preprocessing, where images were given: slices of images by another are refused. None where
            the data were the model's input already.
    """

    baseline: Kind
    means: dict[str, npt.NDArray[np.float64]]
    counts: npt.NDArray[np.int64]
    images: int
    weights: str | None
    inputs: dict[str, Any] | None = None
    _bounds: dict[str, dict[str, tuple[Any, Any]]] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        neurons = sum(mean.size for mean in self.means.values()) // max(1, self.counts.size)
        return f"<Profile: {self.baseline} means of {neurons:,} neurons over {int(self.counts.sum()):,} images>"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the profile to a ``.safetensors`` file and return its path."""
        names = ("baseline", "images", "weights", "inputs")
        about = {name: getattr(self, name) for name in names}
        return files.write(
            path, "profile", {**{f"mean/{k}": v for k, v in self.means.items()}, "counts": self.counts}, about
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Profile:
        """Read what `save` wrote; see `files.read` for the errors."""
        arrays, about = files.read(path, "profile")
        with files.complete(path, "profile"):
            counts, means = arrays.pop("counts"), {key.removeprefix("mean/"): array for key, array in arrays.items()}
            return cls(means=means, counts=counts, **about)

    def bounds(self, name: str, device: str) -> tuple[Any, Any]:
        """The largest float32 numbers not above the means, and the smallest not below; kept for later calls.

        x > mean is x > the first, x < mean is x < the second: exactly, and without a float64 number per activation.
        """
        torch = import_optional("torch", NEEDS)
        placed = self._bounds.setdefault(device, {})
        if name not in placed:
            mean = torch.from_numpy(self.means[name]).to(device)
            near = mean.float()
            ends = [torch.full_like(near, end) for end in (-torch.inf, torch.inf)]
            placed[name] = (
                torch.where(near.double() > mean, torch.nextafter(near, ends[0]), near),
                torch.where(near.double() < mean, torch.nextafter(near, ends[1]), near),
            )
        return placed[name]


class Baseline:
    """A profile as one batch needs it: the means that every sample is compared with.

    Attributes:
        ready: Whether they are known; those of classes only after `choose`.
    """

    def __init__(self, profile: Profile, device: str) -> None:
        self._profile, self._device = profile, device
        self._rows: Any = None

    @property
    def ready(self) -> bool:
        return self._profile.baseline == "dataset" or self._rows is not None

    def choose(self, classes: npt.NDArray[np.int64]) -> None:
        """Compare the samples with the means of these classes, ``[B]``.

        Raises:
            ValueError: The profile has no image of one of them.
        """
        if self._profile.baseline == "dataset":
            return
        absent = sorted(set(classes.tolist()) & set(np.flatnonzero(self._profile.counts == 0).tolist()))
        if absent:
            msg = f"profile has no correctly classified image of class {absent[0]}, which a sample is compared with"
            raise ValueError(msg)
        self._rows = import_optional("torch", NEEDS).from_numpy(classes).to(self._device)

    def signs(self, name: str, x: Any) -> Any:
        """SIGN(Δ), int8 of the shape of ``x``: of the float64 number x - mean. 0 where ``x`` is NaN."""
        torch = import_optional("torch", NEEDS)
        low, high = (self._of_rows(bound) for bound in self._profile.bounds(name, self._device))
        return torch.gt(x, low).view(torch.int8).sub_(torch.lt(x, high).view(torch.int8))

    def differences(self, name: str, x: Any) -> Any:
        """Δ = float32(float64(x) - mean), of the shape of ``x``.

        Raises:
            ValueError: One is not finite.
        """
        torch = import_optional("torch", NEEDS)
        mean = self._of_rows(torch.from_numpy(self._profile.means[name]).to(self._device))
        difference = (x.double() - mean).float()
        if not bool(torch.isfinite(difference).all()):
            msg = f"value {name!r} holds activations that are not finite, among which nothing can be selected"
            raise ValueError(msg)
        return difference

    def _of_rows(self, array: Any) -> Any:
        return array if self._profile.baseline == "dataset" else array[self._rows]


def profile(model: Any, data: Any, *, baseline: Kind = "dataset", labels: Any = None, batch: int = BATCH) -> Profile:
    """Means of a model's activations over a set of images, in one pass.

    Args:
        model: A `Model`, or what ``Model(obj)`` takes: its torch module in eval mode, traceable by torch.fx. It is not
            changed.
        data: `Seeds`, images uint8 ``[N, C, H, W]``, or float32 ``[N, ...]`` that is the model's input already.
        baseline: ``"dataset"``: the mean over all images, as in the paper. ``"class"``: one for every class, over its
            images that the model classifies correctly, as in the published code; a sample is then compared with the
            mean of the class that the model gives it.
        labels: int ``[N]``, -1 for unknown; needed for ``"class"``, default those of the seeds.
        batch: Images at a time.

    Raises:
        ModuleNotFoundError: torch is missing.
        TypeError, ValueError: An argument is of the wrong kind or out of range; the model cannot be traced; there is no
            rule for one of its operations; an activation is not finite.

    Runs on the model's device. Nothing is random. Sums are in float64; their last bits depend on the batch size.
    Zhang et al., ESEC/FSE 2020; docs/methods.md.
    """
    if baseline not in get_args(Kind):
        msg = f"baseline must be 'dataset' or 'class', got {baseline!r}"
        raise ValueError(msg)
    within("batch", batch, 1, 1 << 20)
    subject = Subject(model)
    rows = subject.check(data, "data")
    wanted = labels_given(data, labels, len(rows), "baseline='class'") if baseline == "class" else None
    torch = import_optional("torch", NEEDS)
    sums: dict[str, Any] = {}
    counts: npt.NDArray[np.int64] = np.zeros((), np.int64)
    with torch.no_grad(), Numerics().held():
        for part in parts(len(rows), batch):
            values: dict[str, Any] = {}

            def see(name: str, x: Any, values: dict[str, Any] = values) -> None:
                if name in subject.trace.compared:
                    values[name] = x if wanted is not None else x.sum(0, dtype=torch.float64)

            returned, _ = subject.trace.run(subject.feed(rows[part]), see)
            scores = subject.scores(returned)
            if wanted is None:
                counts = counts + len(scores)
                for name, total in values.items():
                    sums[name] = total if name not in sums else sums[name].add_(total)
                continue
            classes = scores.shape[1]
            if wanted.max() >= classes:
                msg = f"labels must be below the model's {classes} classes, got {int(wanted.max())}"
                raise ValueError(msg)
            counts = counts if counts.ndim else np.zeros(classes, np.int64)
            right = np.where(labels_of(scores) == wanted[part], wanted[part], -1)
            for label in set(right.tolist()) - {-1}:
                chosen = torch.from_numpy(np.flatnonzero(right == label)).to(subject.model.device)
                counts[label] += len(chosen)
                for name, x in values.items():
                    if name not in sums:
                        sums[name] = torch.zeros((classes, *x.shape[1:]), dtype=torch.float64, device=x.device)
                    sums[name][label] += x[chosen].sum(0, dtype=torch.float64)
    if not counts.any():
        msg = "data must hold an image that the model classifies correctly, got none"
        raise ValueError(msg)
    with np.errstate(invalid="ignore"):
        means = {
            name: total.cpu().numpy() / counts.reshape(-1, *[1] * (total.ndim - 1) if counts.ndim else ())
            for name, total in sums.items()
        }
    for name, mean in means.items():
        if not np.isfinite(mean[counts > 0] if counts.ndim else mean).all():
            msg = f"the mean of value {name!r} of model {subject.model.name!r} is not finite"
            raise ValueError(msg)
    return Profile(
        baseline=baseline,
        means=means,
        counts=counts,
        images=len(rows),
        weights=subject.weights,
        inputs=subject.preprocessing(rows),
    )


def labels_given(data: Any, labels: Any, count: int, what: str) -> npt.NDArray[np.int64]:
    """The labels of images, int64 ``[N]``, -1 for unknown: those that were given, else those of the seeds.

    ``what`` needs them, in the words of the error.

    Raises:
        TypeError: They are no integers.
        ValueError: There are none, or not one for each image.
    """
    if labels is None and isinstance(data, Seeds):
        labels = data.labels
    if labels is None:
        msg = f"{what} needs the labels of the images; give labels= or Seeds that have them"
        raise ValueError(msg)
    array = np.asarray(labels)
    if array.dtype.kind not in "iu":
        msg = f"labels must be integers, got {array.dtype}"
        raise TypeError(msg)
    if array.shape != (count,) or array.min() < -1:
        msg = f"labels must be int [{count}] of -1 and above, got {array.shape} from {array.min()}"
        raise ValueError(msg)
    return array.astype(np.int64)
