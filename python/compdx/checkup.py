"""Does the pair do what its owner believes? Figures, and hints that rest on experiments."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from compdx.model import Layout, Model, Pair
from compdx.seeds import Seeds

Scores = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Images = npt.NDArray[np.uint8]

# An experiment asks about so many seeds: enough to tell wrong preprocessing from right, few enough to try a dozen.
EXPERIMENT_SEEDS = 256
# Images that are asked alone, to compare with the same images in a batch.
ALONE_SEEDS = 32
# A variant of the preprocessing is reported when it is better by this much and the two intervals are disjoint.
CLEAR_GAIN = 0.05
Z95 = 1.959963984540054

# What models are commonly fed; what is not said is `Inputs()`.
NORMALISATIONS: dict[str, dict[str, Any]] = {
    "inputs in 0..1 (no mean, no std)": {},
    "inputs in 0..255 (bounds=(0, 255))": {"bounds": (0.0, 255.0)},
    "inputs in -1..1 (mean=0.5, std=0.5)": {"mean": 0.5, "std": 0.5},
    "ImageNet's mean and std": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
}


@dataclass(frozen=True)
class Share:
    """``hits`` of ``total``, with Wilson's 95 % interval; all shares 0..1, NaN of nothing."""

    hits: int
    total: int

    @property
    def value(self) -> float:
        """The share itself."""
        return self.hits / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval (JASA 1927), ``(low, high)``."""
        if not self.total:
            return math.nan, math.nan
        n, p, z2 = self.total, self.value, Z95 * Z95
        centre = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)

    def to_dict(self) -> dict[str, float]:
        """The figures as JSON values."""
        low, high = self.interval
        return {"hits": self.hits, "total": self.total, "value": self.value, "low": low, "high": high}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % (95 %: {100 * low:.1f}..{100 * high:.1f}; {self.hits} of {self.total})"


@dataclass(frozen=True)
class Hint:
    """Something to look at: ``"error"`` makes findings meaningless, ``"warning"`` may be intended."""

    severity: Literal["error", "warning"]
    text: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.text}"


@dataclass(frozen=True, kw_only=True)
class ModelCheckup:
    """One model of the pair.

    ``accuracy`` is None without labels. ``score_range`` and ``input_range`` are (smallest, largest) finite values;
    ``looks_like`` says what the scores are by their values. ``batch_changes`` counts the labels that differ between an
    image asked alone and in a batch, ``batch_difference`` is the largest change of a score. ``repeatable``: the same
    batch twice gives the same bits.
    """

    name: str
    classes: int
    accuracy: Share | None
    input_range: tuple[float, float]
    score_range: tuple[float, float]
    non_finite: int
    declared: str
    looks_like: Literal["logits", "probabilities"]
    batch_changes: Share
    batch_difference: float
    repeatable: bool


@dataclass(frozen=True, kw_only=True)
class Flips:
    """Seeds with different labels, by which of the two labels is right."""

    right_to_wrong: int
    wrong_to_right: int
    wrong_to_other_wrong: int


@dataclass(frozen=True, kw_only=True)
class Checkup:
    """What `doctor` found; ``str()`` is a report. Figures that could not be measured are None: a problem says why."""

    seeds: int
    labelled: bool
    image_range: tuple[int, int]
    original: ModelCheckup | None
    compressed: ModelCheckup | None
    agreement: Share | None
    flips: Flips | None
    problems: list[Hint]

    @property
    def healthy(self) -> bool:
        """Whether there is no problem of severity ``"error"``."""
        return not any(hint.severity == "error" for hint in self.problems)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values; figures that are not finite become None."""
        document: dict[str, Any] = {
            "seeds": self.seeds,
            "labelled": self.labelled,
            "image_range": list(self.image_range),
            "agreement": None if self.agreement is None else self.agreement.to_dict(),
            "flips": None if self.flips is None else asdict(self.flips),
            "problems": [asdict(hint) for hint in self.problems],
        }
        for role, model in (("original", self.original), ("compressed", self.compressed)):
            document[role] = None
            if model is not None:
                shares = {"accuracy": model.accuracy, "batch_changes": model.batch_changes}
                document[role] = asdict(model) | {
                    name: None if share is None else share.to_dict() for name, share in shares.items()
                }
        finite: dict[str, Any] = _jsonable(document)
        return finite

    def __str__(self) -> str:
        labels = "with" if self.labelled else "without"
        lines = [f"seeds       {self.seeds} {labels} labels, grey levels {_range(self.image_range)}"]
        for role, model in (("original", self.original), ("compressed", self.compressed)):
            if model is None:
                lines.append(f"{role:<10}  could not be measured")
                continue
            accuracy = "" if model.accuracy is None else f", accuracy {model.accuracy}"
            lines.append(f"{role:<10}  {model.name}: {model.classes} classes{accuracy}")
            lines.append(
                f"{'':<10}  inputs {_range(model.input_range)}, scores {_range(model.score_range)} ({model.declared}), "
                f"{'repeatable' if model.repeatable else 'not repeatable'}; alone or in a batch: "
                f"{model.batch_changes.hits} of {model.batch_changes.total} labels change, "
                f"scores by up to {model.batch_difference:.2g}"
            )
        if self.agreement is not None:
            lines.append(f"agreement   {self.agreement}")
        if self.flips is not None:
            lines.append(
                f"flips       {self.flips.right_to_wrong} right to wrong, {self.flips.wrong_to_right} wrong to right, "
                f"{self.flips.wrong_to_other_wrong} wrong to another wrong"
            )
        return "\n".join([*lines, *(map(str, self.problems) if self.problems else ["no problems found"])])


def doctor(pair: Pair | tuple[Any, Any], seeds: Seeds | Any, *, limit: int = 2000, batch_size: int = 256) -> Checkup:
    """Check that both models do on the seeds what their owner believes.

    It measures the accuracy of both models (with labels), how often they agree, the ranges of images, inputs and
    scores, whether scores depend on the batch, and whether they repeat. It then tries what most often is wrong: layout,
    order of the channels, normalisation, inverted images, an offset of the classes. A variant is reported when its
    accuracy is higher by at least 5 points and the 95 % intervals are disjoint. Without labels none of these is tried.

    Args:
        pair: A `Pair`, or a tuple ``(original, compressed)`` of what `Pair` takes.
        seeds: `Seeds`, best with labels, or a uint8 array ``[N, C, H, W]``; a label of -1 is unknown.
        limit: Look at no more than so many, spread evenly; experiments look at 256.
        batch_size: Images a batch.

    Returns:
        A `Checkup`. A model that fails on its input is a problem in it, not an exception.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind or out of range.

    Nothing is random.
    """
    for name, value in (("limit", limit), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            msg = f"{name} must be a positive integer, got {value!r}"
            raise ValueError(msg)
    pair, seeds = Pair.of(pair), Seeds.of(seeds)
    seeds = seeds.select(_spread(len(seeds), limit))
    labels = seeds.labels
    if labels is not None and (labels < 0).all():
        labels = None

    problems = list(_image_hints(seeds.images))
    scores: dict[str, Scores] = {}
    checkups: dict[str, ModelCheckup] = {}
    for role, model in (("original", pair.original), ("compressed", pair.compressed)):
        title = f"{role} {model.name!r}"
        if model.training:
            text = f"{title} is in training mode: its scores depend on the batch and change between calls; call .eval()"
            problems.append(Hint("warning", text))
        examiner = _Examiner(model, title, seeds.images, labels, batch_size)
        try:
            scores[role], checkups[role] = examiner.measure()
        except Exception as error:  # a model that fails is what the owner wants to hear about
            problems.append(examiner.failure(error))
        else:
            problems += examiner.hints(scores[role], checkups[role])
    agreement, flips = None, None
    if len(scores) == 2:
        a, b = scores["original"], scores["compressed"]
        problems += _pair_hints(a, b, labels)
        if a.shape[1] == b.shape[1]:
            agreement, flips = _compare(a.argmax(axis=1), b.argmax(axis=1), labels)
    return Checkup(
        seeds=len(seeds),
        labelled=labels is not None,
        image_range=(int(seeds.images.min()), int(seeds.images.max())),
        original=checkups.get("original"),
        compressed=checkups.get("compressed"),
        agreement=agreement,
        flips=flips,
        problems=sorted(problems, key=lambda hint: hint.severity),
    )


class _Examiner:
    """Asks one model, as declared and in variants."""

    def __init__(self, model: Model, title: str, images: Images, labels: Labels | None, batch_size: int) -> None:
        self.title, self.images, self.labels, self.batch_size = title, images, labels, batch_size
        # What the scores are is judged here, by their values, and must not stop the examination.
        self.model = model.replace(outputs="logits")
        self.declared = model.outputs
        self.layout = model.inputs.layout
        self.other: Layout = "NCHW" if self.layout == "NHWC" else "NHWC"

    def measure(self) -> tuple[Scores, ModelCheckup]:
        """Scores of all images and the figures; whatever the model raises."""
        scores = self._ask(self.model, self.images)
        few = self.images[:ALONE_SEEDS]
        together = self._ask(self.model, few)
        alone = np.concatenate([self._ask(self.model, image[None]) for image in few])
        with np.errstate(invalid="ignore"):
            difference = np.abs(together - alone)
        finite = scores[np.isfinite(scores)]
        figures = ModelCheckup(
            name=self.model.name,
            classes=scores.shape[1],
            accuracy=None if self.labels is None else _accuracy(scores.argmax(axis=1), self.labels),
            input_range=self._input_range(),
            score_range=(float(finite.min()), float(finite.max())) if len(finite) else (math.nan, math.nan),
            non_finite=int((~np.isfinite(scores)).any(axis=1).sum()),
            declared=self.declared,
            looks_like=self._looks_like(few),
            batch_changes=Share(int((together.argmax(axis=1) != alone.argmax(axis=1)).sum()), len(few)),
            batch_difference=float(np.nanmax(difference, initial=0)),
            repeatable=together.tobytes() == self._ask(self.model, few).tobytes(),
        )
        return scores, figures

    def failure(self, error: Exception) -> Hint:
        """What to say of a model that raised this, whether it accepts the other layout included."""
        text = f"{self.title} fails on the seeds with layout={self.layout!r}: {type(error).__name__}: {error}"
        if self.model.memory_format == "contiguous" and not self._accepts(self.layout) and self._accepts(self.other):
            text += f"; it accepts layout={self.other!r}"
        return Hint("error", text)

    def _accepts(self, layout: Layout) -> bool:
        try:
            self._ask(self.model.replace(layout=layout), self.images[: self.batch_size])
        except Exception:  # whatever a model raises
            return False
        return True

    def hints(self, scores: Scores, figures: ModelCheckup) -> Iterator[Hint]:
        """What is odd about the model, the figures with it."""
        if figures.non_finite:
            yield Hint(
                "warning", f"{self.title} returns NaN or infinity on {figures.non_finite} of {len(scores)} seeds"
            )
        if figures.declared != figures.looks_like:
            # Scores taken for probabilities are clamped to 0..1; probabilities taken for logits only blur the search.
            yield Hint(
                "error" if figures.declared == "probabilities" else "warning",
                f"{self.title} is declared to return {figures.declared}, but its scores lie in "
                f'{_range(figures.score_range)} and look like {figures.looks_like}: use outputs="{figures.looks_like}"',
            )
        if figures.batch_changes.hits:
            yield Hint(
                "warning",
                f"{self.title}: {figures.batch_changes.hits} of {figures.batch_changes.total} labels change between an "
                "image alone and in a batch; findings may be batch-dependent",
            )
        if not figures.repeatable:
            yield Hint("warning", f"{self.title} gives other scores for the same batch; findings may be run-dependent")
        predicted = scores.argmax(axis=1)
        yield from self._constant(predicted)
        if self.labels is not None:
            yield from self._accuracy_hints(predicted, self.labels, figures.classes)

    def _constant(self, predicted: Labels) -> Iterator[Hint]:
        top = Share(int(np.bincount(predicted).max()), len(predicted))
        usual = 0.0 if self.labels is None else float(np.bincount(self.labels[self.labels >= 0]).max() / len(predicted))
        if top.total >= 20 and top.value > 0.95 and usual < 0.5:
            label = int(np.bincount(predicted).argmax())
            yield Hint("warning", f"{self.title} answers {label} for {top}")

    def _accuracy_hints(self, predicted: Labels, labels: Labels, classes: int) -> Iterator[Hint]:
        if labels.max() >= classes:
            yield Hint("error", f"the labels go up to {labels.max()}, but {self.title} has {classes} classes")
        known = np.flatnonzero(labels >= 0)
        rows = known[_spread(len(known), EXPERIMENT_SEEDS)]
        labels = labels[rows]
        declared = _accuracy(predicted[rows], labels)
        if declared.value > 1 - CLEAR_GAIN:
            return  # no variant could be clearly better
        tried = {
            "class_offset=1 (a background class first)": _accuracy(predicted[rows] - 1, labels),
            "labels that start at 0 (they start at 1)": _accuracy(predicted[rows] + 1, labels),
        }
        for name, ask in self._variants(self.images[rows]):
            try:
                tried[name] = _accuracy(ask().argmax(axis=1), labels)
            except Exception:  # a variant that the model does not accept is no candidate
                continue
        better = {name: share for name, share in tried.items() if _clearly_better(share, declared)}
        if better:
            best = max(better.values(), key=lambda share: share.hits)
            names = [name for name, share in better.items() if share.value >= best.interval[0]]
            yield Hint("error", f"{self.title}: accuracy {declared} as declared, but {best} with {' or '.join(names)}")
        elif declared.interval[0] <= 1 / classes:
            yield Hint("warning", f"{self.title}: accuracy {declared} is no better than chance, and no variant helps")

    def _variants(self, images: Images) -> Iterator[tuple[str, Callable[[], Scores]]]:
        """Other ways to feed the model, by name."""
        model, inputs, channels = self.model, self.model.inputs, images.shape[1]
        if channels == 3:
            yield "the channels reversed (RGB or BGR)", lambda: self._ask(model, images[:, ::-1])
        yield "inverted images (255 - x)", lambda: self._ask(model, 255 - images)
        if model.memory_format == "contiguous":
            yield f"layout={self.other!r}", lambda: self._ask(model.replace(layout=self.other), images)
        for name, settings in NORMALISATIONS.items():
            if channels != 3 and "ImageNet" in name:
                continue
            candidate = model.replace(**{"mean": None, "std": None, "bounds": (0.0, 1.0), **settings})
            if not np.allclose(candidate.inputs.table(channels), inputs.table(channels), rtol=1e-3, atol=1e-3):
                yield name, functools.partial(self._ask, candidate, images)

    def _ask(self, model: Model, images: Images) -> Scores:
        parts = []
        for start in range(0, len(images), self.batch_size):
            scores = model(np.ascontiguousarray(images[start : start + self.batch_size]))
            # A copy: a callable may return the same buffer every time.
            parts.append(np.array(scores if isinstance(scores, np.ndarray) else scores.cpu().numpy()))
        return np.concatenate(parts)

    def _input_range(self) -> tuple[float, float]:
        # The table rises with the grey level, so the extremes of each channel say it all.
        channels = np.arange(self.images.shape[1])
        table = self.model.inputs.table(len(channels))
        low, high = self.images.min(axis=(0, 2, 3)), self.images.max(axis=(0, 2, 3))
        return float(table[channels, low].min()), float(table[channels, high].max())

    def _looks_like(self, images: Images) -> Literal["logits", "probabilities"]:
        scores = self._ask(self.model.replace(class_offset=0), images).astype(np.float64)
        scores = scores[np.isfinite(scores).all(axis=1)]
        sums_to_one = len(scores) > 0 and bool(np.abs(scores.sum(axis=1) - 1).max() <= 1e-2)
        return "probabilities" if sums_to_one and scores.min() >= -1e-3 else "logits"


def _image_hints(images: Images) -> Iterator[Hint]:
    low, high = int(images.min()), int(images.max())
    if high <= 1:
        yield Hint("error", f"the grey levels are {low}..{high} of 0..255: were images of 0..1 converted to uint8?")
    elif high <= 32:
        yield Hint("warning", f"the grey levels are only {low}..{high} of 0..255: scale them, if that is not intended")
    elif low == high:
        yield Hint("warning", f"all images are the same flat grey, {low}")


def _pair_hints(a: Scores, b: Scores, labels: Labels | None) -> Iterator[Hint]:
    ours, theirs = a.argmax(axis=1), b.argmax(axis=1)
    if a.shape[1] != b.shape[1]:
        text = f"the original has {a.shape[1]} classes and the compressed model {b.shape[1]}"
        if abs(a.shape[1] - b.shape[1]) == 1:
            larger, smaller, role = (
                (ours, theirs, "original") if a.shape[1] > b.shape[1] else (theirs, ours, "compressed")
            )
            as_is, shifted = (Share(int((larger - n == smaller).sum()), len(larger)) for n in (0, 1))
            text += f": their labels agree on {as_is}, and with class_offset=1 for the {role} on {shifted}"
        yield Hint("error", text)
        return
    if a.tobytes() == b.tobytes():
        yield Hint("warning", f"both models return the same scores on all {len(a)} seeds, bit for bit: are they two?")
    for n in (-1, 1):
        shifted, as_is = (
            Share(int((theirs - n == ours).sum()), len(ours)),
            Share(int((theirs == ours).sum()), len(ours)),
        )
        if shifted.value > 0.5 and _clearly_better(shifted, as_is):
            text = f"the models agree on {as_is}, but on {shifted} with {-n:+d} added to the compressed one's labels"
            yield Hint("error", text)
            return
    if labels is not None:
        right, kept = _accuracy(ours, labels), _accuracy(theirs, labels)
        if right.value - kept.value > 0.2 and kept.interval[1] < right.interval[0]:
            text = f"the accuracy falls from {right} to {kept}: has the compressed model the same preprocessing?"
            yield Hint("warning", text)
    else:
        same = Share(int((theirs == ours).sum()), len(ours))
        if same.interval[1] < 0.8:
            yield Hint("warning", f"the models agree only on {same}: do both have the right preprocessing?")


def _compare(ours: Labels, theirs: Labels, labels: Labels | None) -> tuple[Share, Flips | None]:
    flipped = ours != theirs
    agreement = Share(int((~flipped).sum()), len(flipped))
    if labels is None:
        return agreement, None
    flipped = flipped & (labels >= 0)
    right, kept = ours == labels, theirs == labels
    return agreement, Flips(
        right_to_wrong=int((flipped & right).sum()),
        wrong_to_right=int((flipped & kept).sum()),
        wrong_to_other_wrong=int((flipped & ~right & ~kept).sum()),
    )


def _accuracy(predicted: Labels, labels: Labels) -> Share:
    known = labels >= 0
    return Share(int((predicted == labels)[known].sum()), int(known.sum()))


def _clearly_better(share: Share, declared: Share) -> bool:
    return share.value >= declared.value + CLEAR_GAIN and share.interval[0] > declared.interval[1]


def _spread(count: int, limit: int) -> Labels:
    """At most ``limit`` of ``count`` rows, spread evenly: sets are often sorted by class."""
    return np.linspace(0, count - 1, min(count, limit)).astype(np.int64)


def _range(limits: tuple[float, float]) -> str:
    return "..".join(f"{limit:.4g}" for limit in limits)


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
