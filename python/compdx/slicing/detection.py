"""Adversarial inputs by their slices (NNSlicer, section 5.1): a tree that reads the class from how synapses decided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from compdx.model import import_optional
from compdx.ops.checks import within
from compdx.seeds import Seeds
from compdx.slicing.engine import Theta
from compdx.slicing.profiles import BATCH, Profile
from compdx.slicing.subject import Subject
from compdx.slicing.vectors import Outputs, Reader, chosen_layer

NEEDS = "a detector"
EXTRA = "demo"
Features = Literal["slice", "activations"]
Classifier = Literal["tree", "forest"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Verdicts:
    """What a detector says of N images.

    Attributes:
        labels: int64 ``[N]``, the model's.
        classes: int64 ``[N]``, the detector's.
        trust: float64 ``[N]``, 0..1, the probability that the detector gives the model's label; that of a grown tree is
            0 or 1.
    """

    labels: npt.NDArray[np.int64]
    classes: npt.NDArray[np.int64]
    trust: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def flags(self) -> npt.NDArray[np.bool_]:
        """bool ``[N]``: the two do not agree, which is taken for an adversarial image."""
        return np.not_equal(self.labels, self.classes)


@dataclass(frozen=True, kw_only=True, eq=False)
class Detector:
    """A classifier from vectors to classes, learned from clean images; an image is flagged where the model disagrees.

    It lives in memory only, as scikit-learn's classifiers could be stored as a pickle alone, which this package does
    not read: the same call of `detector` makes it again.

    Attributes:
        reader: How images become vectors: the model, its layer, the baseline, the criterion, theta.
        classifier, seed: As given to `detector`.
        fitted: The classifier of scikit-learn.
        samples: How many images it learned from.
    """

    reader: Reader
    classifier: Classifier
    seed: int
    fitted: Any
    samples: int

    def __repr__(self) -> str:
        what = "outputs" if self.reader.profile is None else "slices"
        layer, model = self.reader.layer, self.reader.model.name
        return f"<Detector: {self.classifier} on {what} of {layer!r} of model {model!r}, {self.samples:,} images>"

    def vectors(
        self, images: Any, *, criterion: Any = None, classes: Any = None
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """What is judged: integers ``[N, synapses]`` or float32 ``[N, outputs]``; the model's labels int64 ``[N]``.

        Args:
            images: `Seeds`, images uint8 ``[N, C, H, W]``, or float32 ``[N, ...]`` that is the model's input already.
            criterion, classes: As for `slice`, for experiments: what would the vectors be, had the model said something
                else?
        """
        found = list(self.reader.read(images, criterion, classes))
        return np.concatenate([vectors for vectors, _ in found]), np.concatenate([labels for _, labels in found])

    def classify(self, vectors: npt.NDArray[Any], labels: npt.NDArray[np.int64]) -> Verdicts:
        """The verdicts on vectors of images to which the model gives these labels."""
        probabilities = np.asarray(self.fitted.predict_proba(vectors), np.float64)
        known = np.asarray(self.fitted.classes_, np.int64)
        trust = (probabilities * (known == labels[:, None])).sum(1)
        return Verdicts(labels=labels, classes=known[probabilities.argmax(1)], trust=trust)

    def judge(self, images: Any) -> Verdicts:
        """The verdicts on images: `Seeds`, uint8 ``[N, C, H, W]`` or float32 model inputs ``[N, ...]``.

        Raises:
            TypeError, ValueError: As for `slice`; among them, the model was changed since it was profiled.
        """
        found = [self.classify(vectors, labels) for vectors, labels in self.reader.read(images)]
        return Verdicts(
            labels=np.concatenate([part.labels for part in found]),
            classes=np.concatenate([part.classes for part in found]),
            trust=np.concatenate([part.trust for part in found]),
        )

    def flags(self, images: Any) -> npt.NDArray[np.bool_]:
        """bool ``[N]``: which of the images are taken for adversarial."""
        return self.judge(images).flags

    def predict(self, images: Any) -> npt.NDArray[np.int64]:
        """int64 ``[N]``: the detector's classes of the images."""
        return self.judge(images).classes

    def settings(self) -> dict[str, Any]:
        """How it was made, as JSON values."""
        reader = self.reader
        sliced = {} if reader.profile is None else {"baseline": reader.profile.baseline, "criterion": reader.criterion}
        return {
            "model": reader.model.name,
            "features": "activations" if reader.profile is None else "slice",
            "layer": reader.layer,
            **sliced,
            "theta": None if reader.theta is None else {"epsilon": reader.theta.epsilon, "beta": reader.theta.beta},
            "classifier": self.classifier,
            "images": self.samples,
            "seed": self.seed,
        }


def detector(
    model: Any,
    profile: Profile | None,
    train: Seeds,
    *,
    layer: str | None = None,
    features: Features = "slice",
    criterion: Outputs = "label",
    classifier: Classifier = "tree",
    theta: Theta | None = None,
    seed: int = 0,
    batch: int = BATCH,
) -> Detector:
    """Learn from clean images which class a vector belongs to; no adversarial image is needed.

    The vector of an image are the signed contributions of all synapses of one layer. The classifier learns the model's
    labels of those training images that it labels rightly; an image is flagged where it contradicts the model.

    Args:
        model: The `Model` (or what ``Model(obj)`` takes) that was profiled. It is not changed.
        profile: Its baseline, of the data set or of classes; ``None`` where ``features`` are activations.
        train: Labelled clean images; the paper takes 1,000 a class.
        layer: The layer; default the last convolution, as in the published code.
        features: ``"slice"``; or ``"activations"``, the outputs of the layer, which is the paper's FeatureMap.
        criterion: Where slices start: at the ``"label"`` that the model gives, as in the paper, or at ``"all"`` outputs
            alike. In the last layers a slice from one output shows which it was, so that the classifier repeats the
            model's label whatever the image; docs/methods.md has the figures.
        classifier: Of scikit-learn, else with its defaults: a ``"tree"``, as in the paper, or a ``"forest"`` of 100,
            whose `Verdicts.trust` are more than 0 and 1.
        theta: As for `slice`.
        seed: Of the classifier, 0..2**32 - 1; the same seed gives the same detector.
        batch: Images at a time, a matter of time and memory.

    Raises:
        ModuleNotFoundError: scikit-learn or torch is missing.
        TypeError, ValueError: An argument is of the wrong kind or out of range; there is no such layer, or it runs
            more than once; the model labels none of the images rightly.

    Slices run on the model's device, the classifier on the CPU; it sees float32, which holds the contributions of one
    image exactly. The vectors of all images are in memory together, at one byte a synapse where that holds them, and
    once more at four as the classifier learns. Zhang et al., ESEC/FSE 2020, section 5.1; docs/methods.md.
    """
    _check_choices(features=features, criterion=criterion, classifier=classifier)
    within("seed", seed, 0, (1 << 32) - 1)
    within("batch", batch, 1, 1 << 20)
    if not isinstance(train, Seeds):
        msg = f"train must be compdx.Seeds with labels, got {type(train).__name__}"
        raise TypeError(msg)
    if train.labels is None:
        msg = "train must have labels, as only images that the model labels rightly are learned from; got none"
        raise ValueError(msg)
    if features == "activations" and (profile is not None or theta is not None or criterion != "label"):
        msg = "features='activations' takes no profile (None), no theta and no criterion"
        raise ValueError(msg)
    if features == "slice" and not isinstance(profile, Profile):
        msg = f"profile must be a compdx.slicing.Profile for features='slice', got {type(profile).__name__}"
        raise TypeError(msg)
    fitted = _untrained(classifier, seed)
    subject = Subject(model)
    reader = Reader(
        model=subject.model,
        profile=profile,
        layer=chosen_layer(subject, layer, synapses=features == "slice"),
        criterion=criterion,
        theta=theta,
        batch=batch,
    )
    vectors, wanted, first = [], [], 0
    for found, labels in reader.read(train):
        right = labels == train.labels[first : first + len(labels)]
        vectors.append(found[right])
        wanted.append(labels[right])
        first += len(labels)
    samples = sum(map(len, wanted))
    if not samples:
        msg = f"train must hold an image that model {subject.model.name!r} labels rightly, got none"
        raise ValueError(msg)
    # Trees take float32, in which the contributions of one image, below 2**24, are exact.
    fitted.fit(np.concatenate(vectors), np.concatenate(wanted))
    return Detector(reader=reader, classifier=classifier, seed=seed, fitted=fitted, samples=samples)


def _check_choices(**given: str) -> None:
    known = {"features": Features, "criterion": Outputs, "classifier": Classifier}
    for name, value in given.items():
        choices = get_args(known[name])
        if value not in choices:
            msg = f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}"
            raise ValueError(msg)


def _untrained(classifier: Classifier, seed: int) -> Any:
    if classifier == "forest":
        return import_optional("sklearn.ensemble", NEEDS, EXTRA).RandomForestClassifier(random_state=seed)
    return import_optional("sklearn.tree", NEEDS, EXTRA).DecisionTreeClassifier(random_state=seed)
