"""Images as vectors: the contributions of a layer's synapses to every image by itself, or what the layer returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from compdx.engine import Numerics
from compdx.model import Model, import_optional
from compdx.slicing.engine import Theta
from compdx.slicing.profiles import Profile
from compdx.slicing.slicer import slice as slice_of
from compdx.slicing.subject import Subject, labels_of, parts

NEEDS = "slicing"
Outputs = Literal["label", "all"]
Labelled = tuple[npt.NDArray[Any], npt.NDArray[np.int64]]
AT_ONCE = 1 << 24
"""Entries of vectors that are taken at once, before they are narrowed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reader:
    """How images become vectors.

    Attributes:
        model: Whose.
        profile: The baseline of slices; ``None`` for the outputs of the layer instead.
        layer: Whose synapses, or whose outputs.
        criterion: Where slices start: at the label, or at all outputs alike.
        theta: As for `slice`.
        batch: Images at a time.
    """

    model: Model
    profile: Profile | None
    layer: str
    criterion: Outputs
    theta: Theta | None
    batch: int

    def read(self, images: Any, criterion: Any = None, classes: Any = None) -> Iterator[Labelled]:
        """Vectors and the model's labels of some images at a time; see `Detector.vectors`."""
        subject = Subject(self.model)
        rows = subject.check(images, "images")
        if self.profile is not None:
            return self._slices(self.profile, subject, rows, criterion, classes)
        if criterion is not None or classes is not None:
            msg = "criterion and classes are for slices, but the vectors are activations"
            raise ValueError(msg)
        return self._activations(subject, rows)

    def _slices(
        self, profile: Profile, subject: Subject, rows: Any, criterion: Any, classes: Any
    ) -> Iterator[Labelled]:
        outputs, size = self._extents(subject, rows)
        for part in parts(len(rows), max(self.batch, AT_ONCE // size)):
            start = criterion if np.ndim(criterion) == 0 else np.asarray(criterion)[part]
            if criterion is None and self.criterion == "all":
                start = np.ones((len(rows[part]), outputs), np.int64)
            found = slice_of(
                self.model,
                profile,
                rows[part],
                criterion=start,
                theta=self.theta,
                classes=classes if np.ndim(classes) == 0 else np.asarray(classes)[part],
                synapse_samples=[self.layer],
                down_to=self.layer,
                batch=self.batch,
            )
            samples = np.asarray(found.synapses[self.layer].samples)
            yield narrowed(samples.reshape(len(found), -1)), found.labels

    def _extents(self, subject: Subject, rows: Any) -> tuple[int, int]:
        """How many outputs the model has, and how many synapses the layer."""
        torch = import_optional("torch", NEEDS)
        with torch.no_grad(), Numerics().held():
            returned, calls = subject.trace.run(subject.feed(rows[:1]), lambda *_: None)
        (call,) = (call for call in calls if call.operation.layer == self.layer and "weight" in call.arguments)
        return subject.scores(returned).shape[1], call.arguments["weight"].numel()

    def _activations(self, subject: Subject, rows: Any) -> Iterator[Labelled]:
        torch = import_optional("torch", NEEDS)
        for part in parts(len(rows), self.batch):
            values: dict[str, Any] = {}
            with torch.no_grad(), Numerics().held():
                returned, _ = subject.trace.run(subject.feed(rows[part]), values.__setitem__)
            vectors = values[self.layer].flatten(1).float().cpu().numpy()
            yield vectors, labels_of(subject.scores(returned))


def chosen_layer(subject: Subject, name: str | None, *, synapses: bool) -> str:
    """The layer that a user means; the last convolution where none is named.

    Args:
        subject: The model.
        name: What was named.
        synapses: It must have weights and run once; else any operation will do.

    Raises:
        ValueError: There is no such layer.
    """
    layers = subject.trace.layers
    if name is None:
        convolutions = [o.layer if synapses else o.name for o in subject.trace.operations if o.kind == "convolution"]
        if not convolutions:
            msg = f"model {subject.model.name!r} has no convolution; give layer=, one of {', '.join(map(repr, layers))}"
            raise ValueError(msg)
        name = convolutions[-1]
    known = list(layers) if synapses else subject.trace.values
    if name not in known:
        msg = f"layer must be one of {', '.join(map(repr, known))}, got {name!r}"
        raise ValueError(msg)
    if synapses and layers[name] > 1:
        msg = f"layer {name!r} runs more than once, so that its synapses cannot be told by sample"
        raise ValueError(msg)
    return name


def narrowed(array: npt.NDArray[np.int32]) -> npt.NDArray[Any]:
    """The same numbers in the smallest of int8, int16 and int32 that holds them all."""
    low, high = int(array.min()), int(array.max())
    for kind in (np.int8, np.int16):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return array.astype(kind)
    return array
