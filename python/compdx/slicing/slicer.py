"""A slice of a network: profile, forward, backward (NNSlicer, section 3)."""

from __future__ import annotations

import builtins
from collections.abc import Collection
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from compdx.engine import Numerics
from compdx.model import import_optional
from compdx.ops.checks import check_flag, within
from compdx.slicing.contributions import Contributions, Layers, Slice
from compdx.slicing.engine import Batch, Bent, Ledger, Tally, Theta, propagate
from compdx.slicing.profiles import BATCH, Baseline, Profile
from compdx.slicing.subject import Subject, labels_of, parts
from compdx.slicing.tracing import Trace

NEEDS = "slicing"
Names = Collection[str] | Literal["all"]


def slice(
    model: Any,
    profile: Profile,
    inputs: Any,
    *,
    criterion: Any = None,
    contrast: Any = None,
    theta: Theta | None = None,
    classes: Any = None,
    absolute: bool = False,
    neuron_samples: Names = (),
    synapse_samples: Names = (),
    bent: Bent = "pass",
    down_to: str | None = None,
    batch: int = BATCH,
) -> Slice:
    """The neurons and synapses that contributed to a model's outputs on some samples, with their contributions.

    A neuron's contribution to its consumer is the sign of CONTRIB · Δy · w · Δx, where Δ is the difference to the
    profile's mean; CONTRIB of a neuron is the sum over its consumers, that of a synapse the sum over the positions at
    which it is used, and both are summed over the samples. docs/methods.md has the rule of every operation.

    Args:
        model: The `Model` (or what ``Model(obj)`` takes) that was profiled. It is not changed.
        profile: Its baseline.
        inputs: `Seeds`, images uint8 ``[N, C, H, W]``, or float32 ``[N, ...]`` that is the model's input already.
        criterion: The outputs that start at +1: ``None`` for the class that the model gives the sample, one class for
            all samples, int ``[N]`` one for each, or int ``[N, K]`` of -1, 0 and 1: where every output starts.
        contrast: A class, or one a sample, int ``[N]``, that starts at -1 besides.
        theta: Which inputs of a neuron count; ``None``: all.
        classes: int ``[N]``, the classes with whose means the samples are compared; only for a profile with
            ``baseline="class"``. Default: those that the model gives them.
        absolute: Sum the magnitudes of synapses as well, which takes every sample by itself and more time.
        neuron_samples, synapse_samples: Names of values and of layers whose contributions are kept for every sample;
            ``"all"`` for all. A layer with synapses takes four bytes a weight and sample.
        bent: What activations that are not monotone (GELU, SiLU, Hardswish, Mish) do: ``"pass"`` contributions
            unchanged, or multiply them with the ``"sign"`` of Δy · Δx.
        down_to: Name of a layer: the slice goes from the output to the first run of this layer, and has nothing of what
            lies before. ``None``: to the input.
        batch: Samples at a time. It changes time and memory, and the result as far as the model's own activations
            depend on it.

    Returns:
        The slice, on the CPU.

    Raises:
        ModuleNotFoundError: torch is missing.
        TypeError, ValueError: An argument is of the wrong kind or out of range; the profile is of another model; the
            model cannot be traced; there is no rule for one of its operations; sums would not be exact.

    Runs on the model's device; CPU and CUDA give the same numbers for the same activations. Nothing is random.
    Zhang et al., ESEC/FSE 2020, section 3; docs/methods.md.
    """
    if not isinstance(profile, Profile):
        msg = f"profile must be a compdx.slicing.Profile, got {type(profile).__name__}"
        raise TypeError(msg)
    if theta is not None and not isinstance(theta, Theta):
        msg = f"theta must be a compdx.slicing.Theta or None, got {type(theta).__name__}"
        raise TypeError(msg)
    if bent not in get_args(Bent):
        msg = f"bent must be 'pass' or 'sign', got {bent!r}"
        raise ValueError(msg)
    check_flag("absolute", absolute)
    within("batch", batch, 1, 1 << 20)
    subject = Subject(model)
    rows = subject.check(inputs, "inputs")
    _check_profile(subject, profile, rows)
    if classes is not None:
        if profile.baseline != "class":
            msg = "classes needs a profile with baseline='class', got one of the whole data set"
            raise ValueError(msg)
        classes = _per_sample("classes", classes, len(rows), len(profile.counts))
    trace = subject.trace if down_to is None else _tail(subject, down_to)
    ledger = _ledger(trace, absolute, neuron_samples, synapse_samples)
    torch = import_optional("torch", NEEDS)
    labels = []
    with torch.no_grad(), Numerics().held():
        for part in parts(len(rows), batch):
            baseline = Baseline(profile, subject.model.device)
            if classes is not None:
                baseline.choose(classes[part])
            state = Batch(baseline, theta, bent, ledger, trace)
            returned, calls = trace.run(subject.feed(rows[part]), state.see)
            scores = subject.scores(returned)
            labels.append(labels_of(scores))
            if not baseline.ready:
                baseline.choose(labels[-1])
            state.compare()
            start = torch.zeros(returned.shape, dtype=torch.float32)
            start[:, subject.model.class_offset :] = torch.from_numpy(
                _start(criterion, contrast, labels[-1], part, len(rows), scores.shape[1])
            )
            propagate(trace, calls, start.to(subject.model.device), state, ledger)
        ledger.close()
    return Slice(
        neurons=_layers(ledger.neurons, [name for name in trace.values if name in ledger.neurons]),
        synapses=_layers(ledger.synapses, [name for name in trace.layers if name in ledger.synapses]),
        labels=np.concatenate(labels),
        settings={
            "model": subject.model.name,
            "weights": profile.weights,
            "baseline": profile.baseline,
            "theta": None if theta is None else {"epsilon": theta.epsilon, "beta": theta.beta},
            "bent": bent,
        },
    )


def _check_profile(subject: Subject, profile: Profile, rows: Any) -> None:
    """Raise ``ValueError`` for the profile of another model, or of images that were fed otherwise."""
    fed = subject.preprocessing(rows)
    if None not in (fed, profile.inputs) and fed != profile.inputs:
        msg = f"profile must be of images fed as the model's are, {fed}, but is of images fed as {profile.inputs}"
        raise ValueError(msg)
    missing = sorted(subject.trace.compared - profile.means.keys())
    if missing:
        msg = f"profile must be of model {subject.model.name!r}, but has no mean of its value {missing[0]!r}"
        raise ValueError(msg)
    if profile.weights != subject.weights:
        msg = (
            f"profile must be of model {subject.model.name!r} as it is, but was made with other weights; profile again"
        )
        raise ValueError(msg)


def _tail(subject: Subject, layer: str) -> Trace:
    layers = subject.trace.layers
    if layer not in layers:
        msg = f"down_to must be one of {', '.join(map(repr, layers))}, got {layer!r}"
        raise ValueError(msg)
    return subject.trace.down_to(layer)


def _ledger(trace: Trace, absolute: bool, neurons: Names, synapses: Names) -> Ledger:
    layers = trace.layers
    wanted = {}
    for argument, names, known in (
        ("neuron_samples", neurons, trace.values),
        ("synapse_samples", synapses, layers),
    ):
        if isinstance(names, str) and names != "all":
            msg = f"{argument} must be a collection of names or 'all', got {names!r}"
            raise TypeError(msg)
        wanted[argument] = frozenset(known if names == "all" else names)
        unknown = sorted(wanted[argument] - set(known))
        if unknown:
            msg = f"{argument} must be among {', '.join(map(repr, known))}, got {unknown[0]!r}"
            raise ValueError(msg)
    shared = [name for name, calls in layers.items() if calls > 1 and (absolute or name in wanted["synapse_samples"])]
    if shared:
        msg = f"layer {shared[0]!r} runs more than once, so that its synapses cannot be told by sample; sums only"
        raise ValueError(msg)
    return Ledger(absolute=absolute, neurons=wanted["neuron_samples"], synapses=wanted["synapse_samples"])


def _start(
    criterion: Any, contrast: Any, labels: npt.NDArray[np.int64], part: builtins.slice, count: int, classes: int
) -> npt.NDArray[np.float32]:
    """CONTRIB of the outputs of a batch, ``[B, K]``."""
    start = np.zeros((len(labels), classes), np.float32)
    each = np.arange(len(labels))
    if np.ndim(criterion) == 2:
        array = np.asarray(criterion)
        if array.shape != (count, classes) or array.dtype.kind not in "iu" or not np.isin(array, (-1, 0, 1)).all():
            msg = f"criterion must be a class, int [{count}] or int [{count}, {classes}] of -1, 0 and 1, got {array!r}"
            raise ValueError(msg)
        start[:] = array[part]
    else:
        start[each, labels if criterion is None else _per_sample("criterion", criterion, count, classes)[part]] = 1
    if contrast is not None:
        against = _per_sample("contrast", contrast, count, classes)[part]
        if (start[each, against] != 0).any():
            msg = "contrast must be a class other than that of the criterion"
            raise ValueError(msg)
        start[each, against] = -1
    return start


def _per_sample(name: str, value: Any, count: int, classes: int) -> npt.NDArray[np.int64]:
    """A class for every sample, of one for all or one for each."""
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        msg = f"{name} must be integers, got {array.dtype}"
        raise TypeError(msg)
    if array.shape not in ((), (count,)):
        msg = f"{name} must be one class or one for each of {count} samples, got shape {array.shape}"
        raise ValueError(msg)
    if array.min() < 0 or array.max() >= classes:
        msg = f"{name} must be classes of 0 to {classes - 1}, got {array.min()} to {array.max()}"
        raise ValueError(msg)
    return np.broadcast_to(array, (count,)).astype(np.int64)


def _layers(tallies: dict[str, Tally], order: list[str]) -> Layers:
    torch = import_optional("torch", NEEDS)
    return Layers(
        {
            name: Contributions(
                signed=tally.signed.cpu().numpy(),
                absolute=None if tally.absolute is None else tally.absolute.cpu().numpy(),
                samples=None if tally.samples is None else torch.cat(tally.samples).cpu().numpy(),
            )
            for name, tally in ((name, tallies[name]) for name in order)
        }
    )
