"""Run every environment on the same images, and compare them pair by pair."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compdx.environments.comparison import Comparison, Measured, Stability, unique
from compdx.environments.difference import Chunk, Difference, Rows, Speed, measure
from compdx.environments.recording import Recording, slug
from compdx.environments.significance import Anova, Latency, anova
from compdx.environments.variants import Variant
from compdx.model import Model, Pair, normalize
from compdx.ops.checks import as_integers, check_flag, within
from compdx.screen import Ticker
from compdx.seeds import Seeds

Listener = Callable[[int, int], object]
MOST = 4096
READ = 1024  # images of a chunk that pairs are compared by
WARM_UP = 2  # calls that are not timed


def compare(
    subjects: Iterable[Variant | Model] | Pair,
    images: Seeds | npt.NDArray[np.uint8],
    *,
    labels: Any = None,
    batch: int = 128,
    rechecked: int = 256,
    repeats: int = 20,
    top: int = 5,
    margin: float = 1e-3,
    directory: str | PathLike[str] | None = None,
    resume: bool = True,
    progress: bool | Listener = True,
) -> Comparison:
    """Run models on the same images, and compare every pair of them: labels, rankings, scores, time.

    Args:
        subjects: What `variants` returned, or models as they are, at least two; or a `Pair`.
        images: uint8 ``[N, C, H, W]``, or `Seeds`.
        labels: Right classes, integers ``[N]``, -1 where unknown; ``None``: those of the seeds, where they have any.
            They and all rankings are in the classes that remain when each model's ``class_offset`` is dropped.
        batch: Images in a call where an environment names no number, 1..4096. The last call is filled up, so that
            every image is seen in a batch of this size.
        rechecked: So many of the first images, at least, are asked about again in all ways of `STABILITY`: the same
            call once more, at another place in the batch, in a batch of another size, alone. 0 leaves it out.
        repeats: Timed calls of every environment, after two that are not timed; the environments take turns. 0 leaves
            it out, 1 gives no ANOVA.
        top: Length K of the rankings that are compared, 1 or more.
        margin: A flip where the reference's best score is less than this above its second is no surprise.
        directory: Where scores and results are kept; ``None``: in a temporary directory, scores are dropped.
        resume: Continue the comparison in ``directory``, if there is one, with the same settings.
        progress: ``True`` writes lines to stderr, ``False`` nothing; a callable gets images done and images in all.

    Returns:
        A `Comparison`. What an environment raises when it is opened or run, a process that dies included, becomes its
        ``reason``, and its pairs are not measured: never equal. A pair is not measured either when the two do not
        score the same number of classes.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind or out of range; ``directory`` holds a comparison with
            other settings, or of other models.
        FileExistsError: ``directory`` holds a comparison and ``resume`` is false.

    Memory holds the images and a chunk of scores; all scores are in files. Nothing is random. Times are of the forward
    call on an input that is ready, with its scores in main memory. Measures follow DeltaNN (Louloudakis et al., ICSME
    2023) where its code computes what it says; ``docs/environments.md`` lists the differences.
    """
    subjects = (subjects.original, subjects.compressed) if isinstance(subjects, Pair) else subjects
    chosen = [Variant.of(subject) for subject in subjects]
    if len(chosen) < 2:
        msg = f"subjects: expected at least two environments, got {len(chosen)}"
        raise ValueError(msg)
    seeds = Seeds.of(images)
    if not len(seeds):
        msg = "images: expected at least one, got none"
        raise ValueError(msg)
    truth = _labels(labels, seeds)
    within("batch", batch, 1, MOST)
    within("rechecked", rechecked, 0, 1 << 40)
    within("repeats", repeats, 0, 1 << 20)
    within("top", top, 1, 1 << 20)
    check_flag("resume", resume)
    if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not margin >= 0 or math.isinf(margin):
        msg = f"margin must be a finite number of at least 0, got {margin!r}"
        raise ValueError(msg)
    names = unique([variant.name for variant in chosen])
    settings = {
        "images": seeds.fingerprint,
        "shape": list(seeds.images.shape),
        "labels": None if truth is None else hashlib.sha256(truth.tobytes()).hexdigest(),
        "environments": names,
        "batch": batch,
        "rechecked": rechecked,
        "repeats": repeats,
        "top": top,
        "margin": float(margin),
    }
    with ExitStack() as stack:
        kept = directory is not None
        folder = Path(directory) if directory is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        recording = Recording(folder, settings, resume=resume)
        stack.callback(recording.close)
        work = [
            _Work(variant, name, slug(index, names), seeds.images, batch, rechecked)
            for index, (variant, name) in enumerate(zip(chosen, names, strict=True))
        ]
        _run(work, recording, repeats, _listener(progress))
        result = Comparison(
            environments=tuple(one.result(recording, truth, repeats) for one in work),
            pairs=tuple(_pairs(work, recording, truth, top, float(margin), repeats)),
            images=len(seeds),
            settings=settings,
            variants=dict(zip(names, chosen, strict=True)),
        )
        if kept:
            result.save(folder)
    return result


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """Images in the order in which they are asked about, and how many at a time."""

    way: str
    order: Rows
    batch: int


class _Work:
    """One environment of a comparison under way."""

    def __init__(
        self, variant: Variant, name: str, slug: str, images: npt.NDArray[np.uint8], batch: int, rechecked: int
    ) -> None:
        self.variant, self.name, self.slug, self._images = variant, name, slug, images
        asked = None if variant.environment is None else variant.environment.batch
        self.batch = batch if asked is None else asked
        self.reason = variant.reason
        self.about: dict[str, Any] = {}
        self.passes = list(_passes(len(images), self.batch, rechecked))

    @property
    def images(self) -> int:
        """How many are asked about in all passes."""
        return sum(len(one.order) for one in self.passes)

    def open(self, recording: Recording) -> None:
        """Open the model, and see that it is the one that was measured before."""
        with self.failing():
            # As they are read back: tuples become lists.
            self.about = json.loads(json.dumps(self.variant.describe()))
        if self.reason is None:
            identity = hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()
            recording.identify(self.name, identity)

    def run(self, recording: Recording, listen: Callable[[int], object]) -> None:
        """Ask about all images in all ways, from where the recording ends; ``listen`` is told of every image."""
        for one in self.passes:
            name = f"{self.slug}.{one.way}"
            start = recording.measured(name)
            listen(start)
            while self.reason is None and start < len(one.order):
                rows = one.order[start : start + one.batch]
                with self.failing(f"at image {int(rows[0]):,}, {one.batch} at a time: "):
                    scores, _ = self._forward(rows, one.batch)
                    recording.commit(name, len(one.order), start, scores[: len(rows)])
                    start += len(rows)
                    listen(len(rows))

    def time(self, recording: Recording, turn: int) -> None:
        """Time one call, unless the recording has that of this turn."""
        name = f"{self.slug}.time"
        if self.reason is None and len(recording.seconds(name)) <= turn:
            with self.failing("when it was timed: "):
                recording.time(name, self._forward(np.arange(min(self.batch, len(self._images))), self.batch)[1])

    def warm_up(self, recording: Recording, repeats: int) -> None:
        """Call it as it will be timed, unless it has been."""
        if self.reason is None and len(recording.seconds(f"{self.slug}.time")) < repeats:
            with self.failing("when it was warmed up: "):
                for _ in range(WARM_UP):
                    self._forward(np.arange(min(self.batch, len(self._images))), self.batch)

    def failing(self, where: str = "") -> _Failing:
        """Whatever is raised inside is the reason why the environment is not measured."""
        return _Failing(self, where)

    def _forward(self, rows: Rows, batch: int) -> tuple[npt.NDArray[np.float32], float]:
        """Scores of these images in a full batch, and the seconds of the call."""
        model, child = self.variant.model, self.variant.child
        full = np.resize(rows, batch)  # filled up from the start
        x = normalize(self._images[full], model.inputs, model.device)
        start = time.perf_counter()
        scores = model.forward(x)
        scores = scores if isinstance(scores, np.ndarray) else scores.cpu().numpy()
        return scores, time.perf_counter() - start if child is None else child.seconds

    def result(self, recording: Recording, truth: Rows | None, repeats: int) -> Measured:
        """What became of it."""
        if self.reason is not None:
            return Measured(name=self.name, reason=self.reason, about=self.about)
        scores = self.scores(recording)
        right = known = non_finite = 0
        for start in range(0, len(scores), READ):
            part = np.asarray(scores[start : start + READ])
            finite = np.isfinite(part).all(1)
            non_finite += int((~finite).sum())
            if truth is not None:
                valid = finite & (truth[start : start + READ] >= 0)
                known += int(valid.sum())
                right += int((part.argmax(1) == truth[start : start + READ])[valid].sum())
        return Measured(
            name=self.name,
            about=self.about,
            accuracy=right / known if known else None,
            non_finite=non_finite,
            latency=self.latency(recording) if repeats else None,
            stability={one.way: self._stability(recording, one) for one in self.passes[1:]},
        )

    def latency(self, recording: Recording) -> Latency | None:
        """What its calls took, None where none was timed."""
        seconds = recording.seconds(f"{self.slug}.time")
        return Latency(seconds=tuple(seconds), batch=self.batch) if seconds and self.reason is None else None

    def scores(self, recording: Recording) -> npt.NDArray[np.float32]:
        """Of all images in their order."""
        return recording.scores(f"{self.slug}.{self.passes[0].way}")

    def _stability(self, recording: Recording, one: _Pass) -> Stability:
        again = np.asarray(recording.scores(f"{self.slug}.{one.way}"))
        before = np.asarray(self.scores(recording)[one.order])
        finite, still = np.isfinite(before).all(1), np.isfinite(again).all(1)
        flipped = one.order[(finite != still) | (finite & still & (before.argmax(1) != again.argmax(1)))]
        with np.errstate(invalid="ignore"):  # infinity less infinity
            change = np.abs(before - again)
        changes = change[np.isfinite(change)]
        return Stability(
            way=one.way,
            images=len(one.order),
            rows=np.sort(flipped),
            max_abs=float(changes.max(initial=0.0)),
            batch=one.batch,
        )


class _Failing:
    """A context in which an error ends the measuring of one environment, and of no other; see `reason_of`."""

    def __init__(self, work: _Work, where: str) -> None:
        self._work, self._where = work, where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        reason = None if error is None else reason_of(error)
        if reason is not None:
            self._work.reason = self._where + reason
        return reason is not None


def reason_of(error: BaseException) -> str | None:
    """Why something was not measured; None for an error that is not the environment's doing, such as a full disk."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if not isinstance(error, Exception) or full:
        return None
    text = " ".join(str(error).split()) or "no message"
    told = isinstance(error, (ValueError, ModuleNotFoundError, RuntimeError))
    return text if told else f"{type(error).__name__}: {text}"


def _passes(images: int, batch: int, rechecked: int) -> Iterator[_Pass]:
    """All images once; then the first of them, in whole batches, in the ways of `STABILITY`."""
    yield _Pass(way="scores", order=np.arange(images), batch=batch)
    some = min(images, math.ceil(rechecked / batch) * batch)
    if not some:
        return
    order = np.arange(some)
    yield _Pass(way="again", order=order, batch=batch)
    # Each half a batch further on, among the same neighbours. One by itself fills its batch and has no other place.
    calls = [order[k : k + batch] for k in range(0, some, batch)]
    turned = [np.roll(call, len(call) // 2) for call in calls if len(call) > 1]
    if turned:
        yield _Pass(way="position", order=np.concatenate(turned), batch=batch)
    yield _Pass(way="batch", order=order, batch=batch // 2 if batch > 3 else 8)
    yield _Pass(way="alone", order=order, batch=1)


def _run(work: Sequence[_Work], recording: Recording, repeats: int, listen: Listener | None) -> None:
    """Measure what the recording has not: scores, one environment after the other, then times, in turns."""
    total, done = sum(one.images for one in work), 0

    def advance(images: int) -> None:
        nonlocal done
        done += images
        if listen is not None:
            listen(done, total)

    for one in work:
        one.open(recording)
        one.run(recording, advance)
    if repeats:
        for one in work:
            one.warm_up(recording, repeats)
    for turn, one in itertools.product(range(repeats), work):
        one.time(recording, turn)
    if listen is not None and done < total:
        listen(total, total)  # what could not be measured


def _pairs(
    work: Sequence[_Work], recording: Recording, truth: Rows | None, top: int, margin: float, repeats: int
) -> Iterator[Difference]:
    for a, b in itertools.combinations(work, 2):
        broken = [one for one in (a, b) if one.reason is not None]
        if broken:
            reasons = "; ".join(f"{one.name}: {one.reason}" for one in broken)
            yield Difference.not_measured(a.name, b.name, reasons)
            continue
        left, right = a.scores(recording), b.scores(recording)
        if left.shape[1] != right.shape[1]:
            reason = (
                f"{a.name} scores {left.shape[1]} classes and {b.name} {right.shape[1]}; "
                "class_offset drops a background class"
            )
            yield Difference.not_measured(a.name, b.name, reason)
            continue
        yield measure(
            (a.name, b.name),
            (a.variant.model.outputs, b.variant.model.outputs),
            _chunks(left, right),
            labels=truth,
            top=top,
            margin=margin,
            speed=_speed(a.latency(recording), b.latency(recording), repeats),
        )


def _chunks(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> Iterator[Chunk]:
    for start in range(0, len(a), READ):
        rows = slice(start, start + READ)
        yield np.arange(start, min(start + READ, len(a))), np.asarray(a[rows]), np.asarray(b[rows])


def _speed(a: Latency | None, b: Latency | None, repeats: int) -> Speed | None:
    if a is None or b is None:
        return None
    if repeats < 2:
        return Speed.of(a, b, None, "an ANOVA needs at least two times of each")
    per_image = [[seconds / one.batch for seconds in one.seconds] for one in (a, b)]
    verdict: Anova | None = None
    try:
        verdict, reason = anova(*per_image), None
    except ModuleNotFoundError as error:
        reason = str(error)
    return Speed.of(a, b, verdict, reason)


def _labels(labels: Any, seeds: Seeds) -> Rows | None:
    """The right classes, int64 ``[N]``; None where nothing is known."""
    given = seeds.labels if labels is None else labels
    if given is None:
        return None
    found = np.asarray(given)
    if found.dtype.kind in "iu" and found.size and int(found.min()) < -1:
        msg = f"labels: expected classes, or -1 where unknown, got {int(found.min())}"
        raise ValueError(msg)
    as_integers("labels", np.maximum(found, 0) if found.dtype.kind == "i" else found, 1 << 62)
    if found.shape != (len(seeds),):
        msg = f"labels: expected one class an image, shape [{len(seeds)}], got {list(found.shape)}"
        raise ValueError(msg)
    return found.astype(np.int64)


def _listener(progress: bool | Listener) -> Listener | None:
    if progress is True:
        return Ticker("images")
    if progress is False:
        return None
    if callable(progress):
        return progress
    msg = f"progress must be True, False or a callable, got {type(progress).__name__}"
    raise TypeError(msg)
