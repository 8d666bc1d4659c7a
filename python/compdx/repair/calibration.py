"""Repair without training the model (DFlare, section 4.4): a classifier on what the compressed model returns."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from compdx import ops
from compdx.findings import Findings
from compdx.model import Model, Pair, import_optional
from compdx.pictures import Pictures
from compdx.repair import measuring
from compdx.repair.reporting import Change, Repaired, RepairReport
from compdx.seeds import Seeds

NEEDS = "a calibration"
Classifier = Literal["mlp", "svm", "tree"]
HELD_OUT = 0.25
"""Share of the seeds whose pictures are held out."""


def calibrate(
    pair: Pair | tuple[Any, Any],
    findings: Findings | Pictures,
    *,
    train: Seeds,
    held_out: Findings | Pictures | None = None,
    test: Seeds | None = None,
    classifier: Classifier = "mlp",
    seed: int = 0,
) -> Repaired:
    """Put a scikit-learn classifier behind a compressed model that cannot be trained.

    The classifier sees the scores of the compressed model and learns the original's label, from the pictures on which
    the original keeps the seed's label and from training images. The paper does not say what its classifiers learn
    from; training images are added so that what was right stays right.

    Args:
        pair: A `Pair`, or a tuple of what it takes; any models. Neither is changed.
        findings: What a search of this pair found, or its pictures. Of a method that keeps no pictures, its effective
            findings are used.
        train: Images to learn from besides, as many as a user has; labels are not looked at.
        held_out: Findings from other seeds, for the report. Default: the pictures of a quarter of the seeds of
            ``findings``, drawn by ``seed``, which are then not learned from.
        test: Labelled images for the accuracies of the report.
        classifier: ``"mlp"`` (one hidden layer of 50, at most 5,000 iterations), ``"svm"`` (gamma 0.001) or ``"tree"``:
            the three of the paper's code.
        seed: Fixes the draw of seeds and the classifier, 0..2**32 - 1.

    Returns:
        The pair with the calibrated model, a callable that returns probabilities (0 and 1 with ``"svm"``); in the
        report, ``findings`` counts what was learned from and ``unseen`` what was held out. The classifier lives in
        memory only, as it could be stored as a pickle alone, which this package does not read: the same call makes it
        again.

    Raises:
        ModuleNotFoundError: scikit-learn is missing.
        TypeError, ValueError: An argument is of the wrong kind or out of range; there is nothing to learn from.
    """
    pair = Pair.of(pair)
    ops.checks.within("seed", seed, 0, (1 << 32) - 1)
    if classifier not in get_args(Classifier):
        msg = f"classifier must be one of {', '.join(map(repr, get_args(Classifier)))}, got {classifier!r}"
        raise ValueError(msg)
    for name, model in (("original", pair.original), ("compressed", pair.compressed)):
        if model.training:
            msg = f"the {name} model, {model.name!r}, must be in eval mode for a repair, got one in training mode"
            raise ValueError(msg)
    train = Seeds.of(train)
    test = None if test is None else measuring.check_labelled("test", test, train.shape)
    learned, held = _split(measuring.pictures_of(findings), held_out, seed)
    learned, held = learned.relabelled(pair), held.relabelled(pair)
    used = learned.select(learned.kept)
    if not len(used):
        msg = "findings must hold pictures on which the original keeps the seed's label, got none"
        raise ValueError(msg)

    images = np.concatenate([used.images, train.images])
    wanted, vectors = (measuring.scores_of(model, images) for model in (pair.original, pair.compressed))
    finite = np.isfinite(wanted).all(1) & np.isfinite(vectors).all(1)
    fitted = _untrained(classifier, seed).fit(vectors[finite], wanted[finite].argmax(1))
    inputs = pair.compressed.inputs
    calibrated = pair.compressed.replace(
        _Calibrated(pair.compressed, fitted, vectors.shape[1]),
        layout=inputs.layout,
        dtype="float32" if inputs.dtype == "bfloat16" else inputs.dtype,
        memory_format="contiguous",
        outputs="probabilities",
        class_offset=0,
        name=f"{pair.compressed.name} + {classifier}",
    )
    repaired = Pair(pair.original, calibrated)
    held_seeds = len(np.unique(held.seed_index))
    report = RepairReport(
        findings=_effective(learned, learned.relabelled(repaired)),
        unseen=_effective(held, held.relabelled(repaired)) if held_seeds else None,
        unseen_seeds=held_seeds,
        accuracy=None
        if test is None
        else Change(
            before=measuring.accuracy(pair.compressed, test), after=measuring.accuracy(repaired.compressed, test)
        ),
        settings={
            "repair": "calibrate",
            "classifier": classifier,
            "pictures": len(used),
            "effective": int(used.effective.sum()),
            "train": len(train),
            "seed": seed,
        },
    )
    return Repaired(pair=repaired, compressed=None, report=report)


class _Calibrated:
    """A classifier behind a model: from the model's input to probabilities ``[N, classes]``."""

    def __init__(self, model: Model, classifier: Any, classes: int) -> None:
        self._model, self._classifier, self._classes = model, classifier, classes

    def __call__(self, x: Any) -> Any:
        if self._model.inputs.dtype == "bfloat16":  # NumPy has no such type, so this is asked for in float32
            x = import_optional("torch", NEEDS).as_tensor(x).bfloat16()
        vectors = self._model.forward(x)
        if isinstance(vectors, np.ndarray):
            return self.probabilities(vectors)
        found = self.probabilities(vectors.cpu().numpy())
        return import_optional("torch", NEEDS).from_numpy(found).to(self._model.device)

    def probabilities(self, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Of every class, NaN where the model's scores are not finite."""
        finite = np.isfinite(vectors).all(1)
        found = np.zeros((len(vectors), self._classes), np.float32)
        found[~finite] = np.nan
        rows = np.flatnonzero(finite)
        if not len(rows):
            return found
        if hasattr(self._classifier, "predict_proba"):
            found[np.ix_(rows, self._classifier.classes_)] = self._classifier.predict_proba(vectors[rows])
        else:
            found[rows, self._classifier.predict(vectors[rows])] = 1
        return found


def _untrained(classifier: Classifier, seed: int) -> Any:
    if classifier == "mlp":
        networks = import_optional("sklearn.neural_network", NEEDS, "demo")
        return networks.MLPClassifier(hidden_layer_sizes=(50,), max_iter=5000, random_state=seed)
    if classifier == "svm":
        return import_optional("sklearn.svm", NEEDS, "demo").SVC(gamma=0.001)
    return import_optional("sklearn.tree", NEEDS, "demo").DecisionTreeClassifier(random_state=seed)


def _split(pictures: Pictures, held_out: Findings | Pictures | None, seed: int) -> tuple[Pictures, Pictures]:
    """The pictures to learn from and those to report on, of different seeds."""
    if held_out is not None:
        return pictures, measuring.pictures_of(held_out)
    seeds = np.unique(pictures.seed_index)
    chosen = np.random.default_rng(seed).permutation(seeds)[: int(HELD_OUT * len(seeds))]
    held = np.isin(pictures.seed_index, chosen)
    return pictures.select(~held), pictures.select(held)


def _effective(before: Pictures, after: Pictures) -> Change:
    return Change(before=measuring.count_effective(before), after=measuring.count_effective(after))
