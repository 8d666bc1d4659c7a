"""What pruned synapses gave on average, put back as a constant: mean compensation."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt

from compdx.compress import shifted
from compdx.compressed import Compressed
from compdx.model import import_optional
from compdx.slicing.profiles import Profile
from compdx.slicing.subject import Subject
from compdx.slicing.tracing import Operation

NEEDS = "slicing"


def compensate(pruned: Compressed, profile: Profile, *, first: bool = False) -> Compressed:
    """Let every pruned layer give what the original's gave on average when it is given the average input.

    A layer then computes y = W'(x - x̄) + ȳ, with the pruned weights W' and the original's mean input x̄ and output ȳ at
    every position: its own output and the constant ȳ - W'x̄, which stays as it is in a training that follows.

    Args:
        pruned: What `compress.prune` returned. It is not changed.
        profile: Means of the original over a data set.
        first: Also the network's first layer, which the published code leaves out.

    Returns:
        A `Compressed` with these constants, a float32 for every output neuron of those layers; see `compress.shifted`.

    Raises:
        ModuleNotFoundError: torch is missing.
        TypeError, ValueError: An argument is of the wrong kind; the profile is of another network, the pruned one
            among them, or of classes; a layer runs more than once, or cannot be found in the trace.

    Runs on the device of the model. Nothing is random. Code of Zhang et al., ESEC/FSE 2020; docs/methods.md.
    """
    if not isinstance(pruned, Compressed) or pruned.record["scheme"] != "prune":
        what = f"scheme {pruned.record['scheme']!r}" if isinstance(pruned, Compressed) else type(pruned).__name__
        msg = f"pruned must be what compdx.compress.prune returns, got {what}"
        raise TypeError(msg)
    if not isinstance(profile, Profile) or profile.baseline != "dataset":
        what = "one of classes" if isinstance(profile, Profile) else type(profile).__name__
        msg = f"profile must be a compdx.slicing.Profile with baseline='dataset', got {what}"
        raise ValueError(msg)
    if profile.weights != pruned.record.get("original_sha256", profile.weights):
        msg = "profile must be of the original of the pruned network as it was pruned, but is of other weights"
        raise ValueError(msg)
    subject = Subject(pruned.model)
    every = list(subject.trace.layers)
    chosen = [name for name in (every if first else every[1:]) if name in pruned.record["settings"]["layers"]]
    operations = [_operation(subject, name) for name in chosen]
    return shifted(
        pruned, {o.layer: _constant(subject.trace.module.get_submodule(o.layer), profile, o) for o in operations}
    )


def _operation(subject: Subject, layer: str) -> Operation:
    """The one operation that a layer is."""
    found = [operation for operation in subject.trace.operations if operation.layer == layer]
    calls = [operation for operation in found if operation.kind in ("linear", "convolution")]
    if len(calls) != 1 or calls[0].node.op != "call_module":
        how = f"{len(calls)} times" if len(calls) != 1 else "as a function of its weights"
        msg = f"layer {layer!r} must run once, as a module, to be compensated, but runs {how}"
        raise ValueError(msg)
    return calls[0]


def _constant(layer: Any, profile: Profile, operation: Operation) -> npt.NDArray[np.float32]:
    """ȳ - W'x̄ of a layer, in float64 until it is rounded."""
    torch = import_optional("torch", NEEDS)
    missing = [name for name in (operation.operands[0], operation.name) if name not in profile.means]
    if missing:
        msg = f"profile must be of the original of the pruned network, but has no mean of its value {missing[0]!r}"
        raise ValueError(msg)
    x, y = (profile.means[name] for name in (operation.operands[0], operation.name))
    exact = copy.deepcopy(layer).cpu().double()
    with torch.no_grad():
        given = exact(torch.from_numpy(x)[None])[0].numpy()
    if given.shape != y.shape:
        msg = (
            f"profile must be of the original of the pruned network, but layer {operation.layer!r} gives {given.shape}"
        )
        raise ValueError(msg)
    difference: npt.NDArray[np.float32] = (y - given).astype(np.float32)
    return difference
