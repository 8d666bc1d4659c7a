"""Why a compressed model departs from its original: slices of both, and the error that each layer makes by itself.

An error early in a network is seen in every layer behind it. So each layer of the compressed model is also given what
the original computed before it; what comes out differs from the original's value by what this layer does wrong alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from compdx.engine import Numerics
from compdx.findings import Findings
from compdx.model import Pair, import_optional
from compdx.ops.checks import within
from compdx.seeds import Seeds
from compdx.slicing.contributions import Layers
from compdx.slicing.engine import Theta
from compdx.slicing.explanation import Explanation
from compdx.slicing.measures import CHANGES, Change, Measures, Synapse, WeightChanges
from compdx.slicing.pairing import Graph, Place, places
from compdx.slicing.profiles import BATCH, Baseline, Profile, profile
from compdx.slicing.slicer import slice as sliced
from compdx.slicing.subject import Subject, labels_of, parts
from compdx.slicing.tracing import INPUT, Call

NEEDS = "slicing"
GRID = 32
"""Places of a picture across and down at which an error is told."""
Labels = npt.NDArray[np.int64]
Detail = tuple[tuple[Synapse, ...], npt.NDArray[np.float32] | None]


def explain(
    pair: Pair | tuple[Any, Any],
    findings: Any,
    *,
    seeds: Any = None,
    data: Any = None,
    profiles: tuple[Profile, Profile] | None = None,
    theta: Theta | None = None,
    top: int = 5,
    batch: int = BATCH,
) -> Explanation:
    """Which layers, channels and synapses of a compressed model lost or inverted the original's decision on findings.

    Both models are sliced on every finding, and on its seed, for the class of the original at +1 and that of the
    compressed model, where it is another, at -1. Every layer of the compressed model then runs on what the original
    computed before it. What it does wrong there, weighted with the original's contributions, ranks layers and channels:
    a layer that only inherits an error makes none.

    Layers are compared that both models have by name, kind and shape of weights, together with the batch normalization
    behind them, so that int8 graphs with folded ones can be compared; and all operations between that take the same
    values. `Explanation.unpaired` names the layers that only one model has.

    Args:
        pair: A `Pair`, or a tuple ``(original, compressed)``.
        findings: `Findings` of a search, of which those with scores that are not finite are left out; or `Seeds`,
            images uint8 ``[N, C, H, W]``, or float32 ``[N, ...]`` that is the models' input already. They need not
            deviate.
        seeds: What the findings were made from: for `Findings` the seeds of the search, else one image a finding.
        data: Images for the profiles of both models, as `profile` takes them.
        profiles: Those of the original and of the compressed model, instead of ``data``.
        theta: Which inputs of a neuron count in the slices; ``None``: all.
        top: Layers, channels and synapses that tables show.
        batch: Findings at a time.

    Returns:
        The explanation; its string is a short report, `Explanation.to_json` all of it.

    Raises:
        ModuleNotFoundError: torch is missing.
        TypeError, ValueError: An argument is of the wrong kind or out of range; a model cannot be sliced; the models
            have no layer in common.

    Runs on the models' device. Nothing is random. NNSlicer (Zhang et al., ESEC/FSE 2020) has the slices, not the
    comparison; docs/methods.md.
    """
    pair = Pair.of(pair)
    within("top", top, 1, 1 << 20)
    within("batch", batch, 1, 1 << 20)
    images, starts, identities = _images(pair, findings, seeds)
    if (data is None) == (profiles is None):
        msg = "explain needs either data= to profile both models with, or profiles= of them"
        raise ValueError(msg)
    if profiles is None:
        profiles = (profile(pair.original, data, batch=batch), profile(pair.compressed, data, batch=batch))
    if len(profiles) != 2 or not all(isinstance(one, Profile) for one in profiles):
        msg = f"profiles must be those of the original and of the compressed model, got {profiles!r}"
        raise TypeError(msg)
    comparison = _Comparison(pair, profiles, theta, images[:1])
    found, labels, details = comparison.measure(images, None, top, batch)
    before = None if starts is None else comparison.measure(starts, labels, 0, batch)[0]
    kept = [
        place.name
        for place in comparison.places
        if place.layer is not None or any(m is not None and m.unweighted[place.name].any() for m in (found, before))
    ]
    return Explanation(
        layers=tuple(kept),
        findings=found.select(kept),
        seeds=None if before is None else before.select(kept),
        synapses=tuple(synapses for synapses, _ in details),
        where=tuple(where for _, where in details),
        weights=comparison.weight_changes(),
        original_labels=labels[0],
        compressed_labels=labels[1],
        seed_index=identities,
        unpaired=comparison.unpaired,
        settings={
            "original": pair.original.name,
            "compressed": pair.compressed.name,
            "baseline": [one.baseline for one in profiles],
            "theta": None if theta is None else {"epsilon": theta.epsilon, "beta": theta.beta},
            "top": top,
        },
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Ran:
    """A network as it ran on a batch."""

    calls: dict[str, Call]
    values: dict[str, Any]
    labels: Labels
    classes: int

    def graph(self) -> Graph:
        return Graph(list(self.calls.values()), {name: tuple(value.shape) for name, value in self.values.items()})


class _Comparison:
    """Both models with their profiles, and what they have in common.

    Args:
        pair: The models.
        profiles: Theirs.
        theta: The selection of the slices.
        example: An image, with which both run once.
    """

    def __init__(self, pair: Pair, profiles: tuple[Profile, Profile], theta: Theta | None, example: Any) -> None:
        self._subjects = (Subject(pair.original), Subject(pair.compressed))
        self._profiles, self._theta = profiles, theta
        self._ran = tuple(self._run(subject, example) for subject in self._subjects)
        graphs = tuple(ran.graph() for ran in self._ran)
        self.places = [place for place in places(*graphs) if self._has_mean(place.original)]
        both = [(place, place.layer) for place in self.places if place.layer is not None]
        if not both:
            msg = (
                f"pair must have layers in common, of one name and shape of weights; {pair.original.name!r} has "
                f"{', '.join(graphs[0].layers())} and {pair.compressed.name!r} {', '.join(graphs[1].layers())}"
            )
            raise ValueError(msg)
        common = ({place.name for place, _ in both}, {layer for _, layer in both})
        self.unpaired = {
            side: tuple(name for name in graph.layers() if name not in names)
            for side, graph, names in zip(("original", "compressed"), graphs, common, strict=True)
        }
        self._weights = {place.name: self._both_weights(place, layer) for place, layer in both}

    def measure(
        self, rows: Any, labels: tuple[Labels, Labels] | None, top: int, batch: int
    ) -> tuple[Measures, tuple[Labels, Labels], list[Detail]]:
        """What is measured on images, with the labels that both models give them unless they are given.

        With ``top`` also the details of the layer that comes first on each.
        """
        collected: list[tuple[Measures, tuple[Labels, Labels], list[Detail]]] = []
        for part in parts(len(rows), batch):
            given = None if labels is None else (labels[0][part], labels[1][part])
            collected.append(self._measure(rows[part], given, top))
        measures, both, details = zip(*collected, strict=True)
        classes = tuple(np.concatenate(side) for side in zip(*both, strict=True))
        return Measures.concatenate(measures), (classes[0], classes[1]), [row for part in details for row in part]

    def _measure(
        self, rows: Any, labels: tuple[Labels, Labels] | None, top: int
    ) -> tuple[Measures, tuple[Labels, Labels], list[Detail]]:
        torch = import_optional("torch", NEEDS)
        first, second = (self._run(subject, rows) for subject in self._subjects)
        labels = (first.labels, second.labels) if labels is None else labels
        contributions = self._slices(rows, labels, first.classes)
        channels, unweighted, drifts, lost, inverted, spread = {}, {}, [], [], [], {}
        with torch.no_grad(), Numerics().held():
            alone = self._alone(first, second)
            baseline = self._baseline(labels[0])
            for place in self.places:
                y = first.values[place.original].double()
                delta = self._difference(first, baseline, place.original).double().square()
                error = (alone[place.compressed].double() - y).square()
                drift = (second.values[place.compressed].double() - y).square()
                a, b = (_signs(side, name, y) for side, name in zip(contributions, _names(place), strict=True))
                weight = a.abs().double()
                whole, plain = (weight * delta).flatten(1).sum(1), delta.flatten(1).sum(1)
                wrong = weight * error
                spread[place.name] = _over_the_picture(wrong, place.channels) if top else None
                channels[place.name] = _ratio(_by_channel(wrong, place.channels), whole[:, None])
                unweighted[place.name] = _ratio(_by_channel(error, place.channels), plain[:, None])
                drifts.append(_ratio((weight * drift).flatten(1).sum(1), whole))
                total = weight.flatten(1).sum(1)
                lost.append(_ratio((weight * (b == 0)).flatten(1).sum(1), total))
                inverted.append(_ratio((weight * (a.sign() * b.sign() < 0)).flatten(1).sum(1), total))
            measures = Measures(
                channels=channels,
                unweighted=unweighted,
                drift=np.stack(drifts, 1),
                lost=np.stack(lost, 1),
                inverted=np.stack(inverted, 1),
            )
            details = self._details(first, baseline, contributions[0], measures, spread, top) if top else []
        return measures, labels, details

    def _run(self, subject: Subject, rows: Any) -> _Ran:
        torch = import_optional("torch", NEEDS)
        values: dict[str, Any] = {}
        with torch.no_grad(), Numerics().held():
            returned, calls = subject.trace.run(subject.feed(rows), values.__setitem__)
            scores = subject.scores(returned)
        return _Ran(
            calls={call.operation.name: call for call in calls},
            values=values,
            labels=labels_of(scores).astype(np.int64),
            classes=scores.shape[1],
        )

    def _slices(self, rows: Any, labels: tuple[Labels, Labels], classes: int) -> tuple[Layers, Layers]:
        """The neurons of both models that speak for the original's class against that of the compressed model."""
        identity = np.eye(classes, dtype=np.int64)
        criterion = np.where(
            (labels[0] == labels[1])[:, None], identity[labels[0]], identity[labels[0]] - identity[labels[1]]
        )
        found = []
        for side, (subject, means) in enumerate(zip(self._subjects, self._profiles, strict=True)):
            names = {_names(place)[side] for place in self.places}
            one = sliced(
                subject.model,
                means,
                rows,
                criterion=criterion,
                theta=self._theta,
                classes=labels[0] if means.baseline == "class" else None,
                neuron_samples=names,
                batch=len(rows),
            )
            found.append(one.neurons)
        return found[0], found[1]

    def _alone(self, first: _Ran, second: _Ran) -> dict[str, Any]:
        """The values of the compressed model at all places, each from what the original has at those before."""
        of = {place.compressed: place.original for place in self.places}
        known, found = {INPUT: second.values[INPUT]}, {}
        for name, call in second.calls.items():
            operands = [known[operand] for operand in call.operation.operands]
            if call.operation.in_place:
                operands[0] = operands[0].clone()
            known[name] = call.apply(*operands)
            if name in of:
                found[name] = known[name]
                known[name] = first.values[of[name]].to(found[name].dtype)
        return found

    def _baseline(self, labels: Labels) -> Baseline:
        baseline = Baseline(self._profiles[0], self._subjects[0].model.device)
        baseline.choose(labels)
        return baseline

    def _has_mean(self, value: str) -> bool:
        means, calls = self._profiles[0].means, self._ran[0].calls
        behind = calls[value].operation
        return value in means or (behind.kind == "normalization" and behind.operands[0] in means)

    def _difference(self, ran: _Ran, baseline: Baseline, value: str) -> Any:
        """Δ of a value of the original. Batch normalization is affine: its mean is that of its input, normalized."""
        if value in self._profiles[0].means:
            return baseline.differences(value, ran.values[value])
        call = ran.calls[value]
        x = ran.values[call.operation.operands[0]]
        mean = x - baseline.differences(call.operation.operands[0], x).to(x.dtype)
        return ran.values[value] - call.apply(mean)

    # Weights

    def _both_weights(self, place: Place, layer: str) -> tuple[Any, Any]:
        """The weights of a layer in both models, float32, with batch normalization where only one has it folded."""
        layers = (place.name, layer)
        behind = [value != name for value, name in zip(_names(place), layers, strict=True)]
        weights = []
        for ran, value, name, normalized in zip(self._ran, _names(place), layers, behind, strict=True):
            weight = ran.calls[name].arguments["weight"].detach().float()
            if normalized and not all(behind):
                zero = ran.values[name].new_zeros(ran.values[name].shape)
                scale = (ran.calls[value].apply(zero + 1) - ran.calls[value].apply(zero)).detach().float()
                scale = scale.flatten(2)[0, :, 0] if scale.ndim > 2 else scale[0]
                weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
            weights.append(weight)
        return weights[0], weights[1]

    def weight_changes(self) -> dict[str, WeightChanges]:
        """What compression did to the weights of every layer."""
        found = {}
        for name, (a, b) in self._weights.items():
            masks = _changes(a, b)
            counts = {change: masks[change].flatten(1).sum(1).cpu().numpy() for change in CHANGES}
            found[name] = WeightChanges(**counts, size=a[0].numel())
        return found

    def _details(
        self,
        ran: _Ran,
        baseline: Baseline,
        neurons: Layers,
        measures: Measures,
        spread: dict[str, Any],
        top: int,
    ) -> list[Detail]:
        """Of every image the first synapses in the layer that comes first for it, and where in the image it errs."""
        found: list[Detail] = []
        by_name = {place.name: place for place in self.places}
        for row in range(len(ran.labels)):
            place = by_name[measures.ranked(row)[0]]
            if place.layer is None:
                found.append(((), None))
                continue
            call = ran.calls[place.name]
            errors = spread[place.name] if call.operation.kind == "convolution" else None
            where = None if errors is None else errors[row].float().cpu().numpy()
            operand = call.operation.operands[0]
            delta = baseline.differences(operand, ran.values[operand])[row : row + 1].abs()
            c = _signs(neurons, place.original, ran.values[place.original])[row : row + 1].abs().float()
            found.append((_largest(place.name, call, delta, c, self._weights[place.name], top), where))
        return found


def _largest(name: str, call: Call, delta: Any, c: Any, weights: tuple[Any, Any], top: int) -> tuple[Synapse, ...]:
    """The synapses of one layer by their part in its error on one image."""
    torch = import_optional("torch", NEEDS)
    functional, given = torch.nn.functional, call.arguments
    a, b = weights
    apply: Callable[..., Any] = functional.linear
    geometry: Sequence[Any] = ()
    if call.operation.kind == "convolution":
        apply = functional.conv1d if a.ndim == 3 else functional.conv2d
        geometry = tuple(given[setting] for setting in ("stride", "padding", "dilation", "groups"))
    with torch.enable_grad():
        free = a.clone().requires_grad_()
        (reach,) = torch.autograd.grad(apply(delta.float(), free, None, *geometry), free, c)
    part = (reach * (b - a).abs()).flatten().double().cpu().numpy()
    if not part.any():
        return ()
    masks = {change: mask.flatten().cpu().numpy() for change, mask in _changes(a, b).items()}
    first = np.lexsort((np.arange(len(part)), -part))[:top]
    return tuple(
        Synapse(
            layer=name,
            index=tuple(int(i) for i in np.unravel_index(place, tuple(a.shape))),
            original=float(a.flatten()[place]),
            compressed=float(b.flatten()[place]),
            change=next(change for change in CHANGES if masks[change][place]),
            share=float(part[place] / part.sum()),
        )
        for place in first.tolist()
        if part[place] > 0
    )


def _changes(a: Any, b: Any) -> dict[Change, Any]:
    """Masks of weights by what happened to them."""
    pruned = (a != 0) & (b == 0)
    inverted = a.sign() * b.sign() < 0
    return {"pruned": pruned, "inverted": inverted, "changed": (a != b) & ~pruned & ~inverted}


def _images(pair: Pair, findings: Any, seeds: Any) -> tuple[Any, Any, Labels | None]:
    """The images of findings, those of their seeds, and the seeds' identities; the last two may be unknown."""
    if not isinstance(findings, Findings):
        subject = Subject(pair.original)
        images = subject.check(findings, "findings")
        identities = findings.indices if isinstance(findings, Seeds) else None
        starts = None if seeds is None else subject.check(seeds, "seeds")
        if starts is not None and tuple(starts.shape) != tuple(images.shape):
            msg = f"seeds must be one for each finding, {tuple(images.shape)}, got {tuple(starts.shape)}"
            raise ValueError(msg)
        return images, starts, identities
    finite = np.array([kind != "non-finite" for kind in findings.table["kind"].to_pylist()], dtype=bool)
    if not finite.any():
        msg = f"findings must hold one with finite scores, got {findings!r}"
        raise ValueError(msg)
    identities = findings.table["seed_index"].to_numpy()[finite]
    starts = None
    if seeds is not None:
        seeds = Seeds.of(seeds)
        starts = seeds.images[seeds.locate(identities)]
    return findings.images[finite], starts, identities


def _names(place: Place) -> tuple[str, str]:
    return place.original, place.compressed


def _signs(neurons: Layers, name: str, like: Any) -> Any:
    """The contributions of a value's neurons, of every sample; 0 where the output does not depend on it."""
    torch = import_optional("torch", NEEDS)
    if name not in neurons:
        return torch.zeros(like.shape, dtype=torch.int32, device=like.device)
    return torch.from_numpy(neurons[name].samples).to(like.device)


def _by_channel(t: Any, axis: int) -> Any:
    """Sums of each row over all but the channels, ``[B, C]``."""
    return t.movedim(axis, 1).flatten(2).sum(2) if t.ndim > 2 else t


def _over_the_picture(t: Any, axis: int) -> Any:
    """Sums over the channels at every position, ``[B, h, w]``, of neighbours the mean; None without positions."""
    torch = import_optional("torch", NEEDS)
    if t.ndim != 4:
        return None
    t = t.movedim(axis, 1).sum(1, keepdim=True)
    return torch.nn.functional.adaptive_avg_pool2d(t, [min(side, GRID) for side in t.shape[2:]])[:, 0]


def _ratio(a: Any, b: Any) -> npt.NDArray[np.float64]:
    """a / b on the CPU; 0 where b is."""
    torch = import_optional("torch", NEEDS)
    found: npt.NDArray[np.float64] = torch.where(b > 0, a / b, torch.zeros_like(a)).cpu().numpy()
    return found
