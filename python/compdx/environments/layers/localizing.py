"""Where two variants of a network begin to differ, and whose fault it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from compdx.environments.layers.errors import Error, Sums, error
from compdx.environments.layers.graph import OUTPUT, Array, Network
from compdx.environments.layers.localization import Effect, Layer, Localization
from compdx.environments.layers.matching import BETWEEN, Place, match
from compdx.environments.layers.measuring import Rows, RowSums, SideBySide, parts
from compdx.environments.layers.opening import network_of
from compdx.environments.layers.splicing import Splices
from compdx.model import Model
from compdx.ops.checks import within
from compdx.seeds import Seeds

PROBED = 8
"""Images on which it is measured how a place passes on the rounding of what it takes."""


def localize(
    a: Any,
    b: Any,
    images: Any,
    *,
    reference: Any = None,
    chunk: int = 64,
    memory: int = 1 << 29,
    top: int = 10,
    bisect: bool = True,
) -> Localization:
    """Which layers of a variant ``b`` of a network compute something else than those of ``a``.

    Layers are paired by name, kind and shape across runtimes, with what a conversion folds into them. In one pass over
    chunks of the images, every place is measured twice: as both variants run, and with ``b`` given what ``a`` computed
    before it, so that a place which only inherits an error makes none. A place is a suspect when the error that it
    makes itself is more than rounding in float32 explains. That limit is no setting: it is measured, place by place,
    as what the place makes of inputs disturbed by a rounding, times the root of the number of products it adds up.

    Args:
        a, b: Models, or what ``Model(obj)`` takes: torch modules in eval mode, or ONNX files on ONNX Runtime.
        images: Seeds, or uint8 ``[N, C, H, W]``.
        reference: What flipped images are compared with, one image for each: the seeds of findings. ``None``: those
            of ``images`` whose label does not differ and whose margin between the first two classes is nearest.
        chunk: Images at a time.
        memory: Bytes that values may take at a time; where those of a chunk are more, the layers are looked at in
            groups, each with a pass of its own.
        top: Layers in the table, and suspects whose effect by itself is measured.
        bisect: Whether to find the first layer that matters, by running the first part in one variant and the rest in
            the other on up to ``chunk`` images: flipped ones first.

    Returns:
        The localization; its string is a short table.

    Raises:
        ModuleNotFoundError: A runtime's package is missing.
        TypeError, ValueError: An argument is of the wrong kind or out of range; a model cannot be looked into; the
            variants have nothing in common or score different numbers of classes.

    Taps of ONNX files keep apart what the runtime would fuse between two of them. Nothing is random: the disturbance
    is drawn from a fixed seed. DeltaNN (Louloudakis et al., ICSME 2023) compares maxima of activations between images.
    """
    models = tuple(one if isinstance(one, Model) else Model(one) for one in (a, b))
    for name, value, least in (("chunk", chunk, 1), ("memory", memory, 1), ("top", top, 1)):
        within(name, value, least, 1 << 62)
    rows = Seeds.of(images).images
    others = None if reference is None else Seeds.of(reference).images
    if others is not None and others.shape != rows.shape:
        msg = f"reference must have one image for each of images, {list(rows.shape)}, got {list(others.shape)}"
        raise ValueError(msg)
    networks = (network_of(models[0]), network_of(models[1]))
    for network in networks:
        network.look(rows[:1])
    matching = match(*networks)
    scored = _Scored(models, rows, chunk)
    both = SideBySide(networks, matching, chunk, memory)
    moved = [0, 0]

    def see(part: slice, returned: tuple[Array, Array]) -> None:
        for side, (model, scores) in enumerate(zip(models, returned, strict=True)):
            moved[side] += int((scores[:, model.class_offset :].argmax(1) != scored.labels[side][part]).sum())

    drift, own = both.measure(rows, see)
    controls, contrasts = _contrasts(both, scored, drift, others)
    bounds = both.bounds(rows[:PROBED])
    wrong = [p for p in range(len(own)) if own[p].relative > bounds[p]]
    suspects = [matching.places[p] for p in sorted(wrong, key=lambda p: -own[p].relative)]
    chosen = rows[scored.telling(chunk)]
    splices = Splices(
        *networks,
        matching,
        *(network.feed(chosen) for network in networks),
        offsets=(models[0].class_offset, models[1].class_offset),
    )
    effects = _effects(both, splices, suspects[:top])
    first, last = _ends(splices, suspects) if suspects and bisect else (None, None)
    return Localization(
        layers=tuple(
            Layer(
                place=place,
                drift=drift[p].error(),
                own=own[p],
                bound=bounds[p],
                parameters=_parameters(*networks, place),
                contrast=contrasts[p],
                effect=effects.get(place),
            )
            for p, place in enumerate(matching.places)
        ),
        first=first,
        last=last,
        scores=scored.error,
        flips=scored.flips,
        controls=controls,
        images=len(rows),
        unpaired=matching.unpaired,
        settings={
            "a": {"name": models[0].name, "runtime": networks[0].runtime},
            "b": {"name": models[1].name, "runtime": networks[1].runtime},
            "looked_at": {"a": moved[0], "b": moved[1]},
            "reference": others is not None,
            "chunk": chunk,
            "groups": len(both.groups),
            "top": top,
            "bisect": bisect,
        },
    )


class _Scored:
    """The labels and scores of both models on all images, as they are without anyone looking at their layers.

    Attributes:
        error: Of the scores.
        labels: int64 ``[2, N]``.
        flips: The rows whose labels differ.
    """

    def __init__(self, models: Sequence[Model], rows: Rows, chunk: int) -> None:
        self.models = models
        sums, labels, margins, far = Sums(), [], [], []
        for part in parts(len(rows), chunk):
            a, b = (_scores(model, rows[part]) for model in models)
            if a.shape != b.shape:
                msg = f"a and b must score the same classes, got K = {a.shape[1]} and K = {b.shape[1]}"
                raise ValueError(msg)
            far.append(sums.add(a, b))
            labels.append(np.stack([a.argmax(1), b.argmax(1)]))
            first_two = np.sort(a, axis=1)[:, -2:]
            margins.append(first_two[:, 1] - first_two[:, 0])
        self.error: Error = sums.error()
        self.labels = np.concatenate(labels, 1)
        self.margins, self._far = np.concatenate(margins), np.concatenate(far)
        self.flips = np.flatnonzero(self.labels[0] != self.labels[1])

    def telling(self, count: int) -> npt.NDArray[np.int64]:
        """The rows that tell most of a difference: those that flip, then those whose scores differ most."""
        same = self.labels[0] == self.labels[1]
        return np.lexsort((-self._far, same))[:count]

    def controls(self) -> npt.NDArray[np.int64]:
        """For every flipped row the one of nearest margin that does not flip, none of them twice."""
        free = list(np.flatnonzero(self.labels[0] == self.labels[1]))
        found = []
        for row in self.flips[: len(free)]:
            distances = np.abs(self.margins[free] - self.margins[row])
            found.append(free.pop(int(distances.argmin())))
        return np.array(sorted(found), np.int64)


def _contrasts(
    both: SideBySide, scored: _Scored, drift: list[RowSums], others: Rows | None
) -> tuple[npt.NDArray[np.int64], list[float | None]]:
    """The rows that flips are compared with, and by place the median drift on flips over that on these."""
    none: list[float | None] = [None] * len(drift)
    if others is None:
        controls = scored.controls()
        before = [sums.rows[controls] for sums in drift] if len(controls) else []
    else:
        labels = (
            [_scores(model, others[scored.flips]).argmax(1) for model in scored.models] if len(scored.flips) else []
        )
        controls = scored.flips[labels[0] == labels[1]] if labels else np.zeros(0, np.int64)
        before = [sums.rows for sums in both.measure(others[controls])[0]] if len(controls) else []
    if not before:
        return controls, none
    for p, (sums, control) in enumerate(zip(drift, before, strict=True)):
        base = float(np.median(control))
        ratio = float(np.median(sums.rows[scored.flips])) / base if 0 < base < math.inf else math.inf
        none[p] = ratio if math.isfinite(ratio) else None
    return controls, none


def _effects(both: SideBySide, splices: Splices, places: Sequence[Place]) -> dict[Place, Effect]:
    """What each of these places alone makes of the scores of the first network."""
    found = {}
    for place in places:
        plain, scores = splices.a_alone, splices.only(place, both.own_value(place, splices.xa, splices.xb))
        found[place] = Effect(
            scores=error(plain, scores).relative, labels=int((plain.argmax(1) != scores.argmax(1)).sum())
        )
    return found


def _ends(splices: Splices, suspects: Sequence[Place]) -> tuple[str | None, str | None]:
    """The names of the first and of the last place that matters."""
    base, whole = splices.a_alone, splices.b_alone
    flips = base.argmax(1) != whole.argmax(1)
    far = error(base, whole).relative

    def differs(scores: Array) -> bool:
        if flips.any():
            return bool(2 * (scores.argmax(1) != base.argmax(1))[flips].sum() >= flips.sum())
        return 2 * error(base, scores).relative >= far

    if far == 0:
        return None, None
    return _named(splices.first(differs), suspects), _named(splices.last(differs), suspects)


def _named(place: Place | None, suspects: Sequence[Place]) -> str:
    """The name of a place where networks were spliced: of what lies before it, if that is what is wrong with it."""
    if place is None:
        return next((one.name for one in suspects if one.kind == BETWEEN and not one.ports), OUTPUT)
    if place in suspects:
        return place.name
    before = [one.name for one in suspects if any(port.operation in place.covers for port in one.ports)]
    return before[0] if before else place.name


def _parameters(a: Network, b: Network, place: Place) -> Error | None:
    """The error of a place's parameters, with all that is folded into them in either network."""
    if place.heads is None:
        return None
    folded = []
    for network, head, value in zip((a, b), place.heads, (place.a, place.b), strict=True):
        operation = network.operations[head]
        if operation.kind == "normalization":
            scale, shift = network.affine(operation.operands[0], value)
            folded.append((scale, shift))
        elif operation.weighted:
            scale, shift = network.affine(head, value)
            weight = operation.parameters["weight"]
            bias = operation.parameters.get("bias", np.zeros(1, np.float32)) * scale + shift
            folded.append((weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), bias))
    if len(folded) != 2 or folded[0][0].shape != folded[1][0].shape:
        return None
    biases = np.broadcast_arrays(folded[0][1], folded[1][1])
    return error(*(np.concatenate([w.reshape(-1), c]) for (w, _), c in zip(folded, biases, strict=True)))


def _scores(model: Model, rows: Rows) -> Array:
    scores = model(rows)
    return np.asarray(scores.cpu() if hasattr(scores, "cpu") else scores)
