"""Back-propagation of contributions: the signs of one batch, and the sums over all batches.

Without a selection (theta off) the local rule factorises, SIGN(CONTRIB · Δy · w · Δx) = g · s_W · s_X, so that it is
ordinary back-propagation with the signs of weights, differences and goals in their place. All numbers on the way are
whole and below 2**24, where float32 is exact. With a selection every output neuron keeps some of its inputs, which is
the native `ops.contributions`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from compdx import ops
from compdx.model import import_optional
from compdx.slicing.profiles import Baseline
from compdx.slicing.rules import EXACT, RULES
from compdx.slicing.tracing import Call, Trace

NEEDS = "slicing"
Bent = Literal["pass", "sign"]
Sums = tuple[Any, Any, int]
"""Contributions summed over a batch, signed and absolute, and the largest of the latter."""
LARGEST = 2**31 - 1
"""Of the sums of a slice, which are int32."""


@dataclass(frozen=True, kw_only=True)
class Theta:
    """Which inputs of a neuron count: the fewest of largest product whose signed sum comes near the whole sum.

    Of the products p = w · Δx of an output neuron, sorted by magnitude, the first k are kept whose sum differs from
    that of all by less than ``epsilon`` of it, and whoever is larger than ``1 - beta`` of the k-th. Where the sum is
    all but zero, nothing is kept. NNSlicer's published code; docs/arithmetic.md section 8 has the law to the bit.

    Args:
        epsilon: Above 0, the code's ``sum_precision_error``.
        beta: 0 to 1, the code's ``threshold_bar_ratio``.

    Raises:
        TypeError, ValueError: One of them is no such number.
    """

    epsilon: float = 0.2
    beta: float = 0.01

    def __post_init__(self) -> None:
        for name in ("epsilon", "beta"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                msg = f"{name} must be a number, got {type(value).__name__}"
                raise TypeError(msg)
        if not (self.epsilon > 0 and math.isfinite(self.epsilon)):
            msg = f"epsilon must be finite and above 0, got {self.epsilon}; theta=None keeps every input"
            raise ValueError(msg)
        if not 0 <= self.beta <= 1:
            msg = f"beta must be 0 to 1, got {self.beta}"
            raise ValueError(msg)


class Tally:
    """Sums of contributions over samples: int32, signed and, where wanted, absolute and of every sample.

    Args:
        shape: Of the neurons of a value, or of the weights of a layer.
        device: Where.
        absolute: Sum magnitudes as well, each sample by itself.
        samples: Keep every sample.
    """

    def __init__(self, shape: tuple[int, ...], device: Any, *, absolute: bool, samples: bool) -> None:
        torch = import_optional("torch", NEEDS)
        self.signed = torch.zeros(shape, dtype=torch.int32, device=device)
        self.absolute = torch.zeros_like(self.signed) if absolute else None
        self.samples: list[Any] | None = [] if samples else None
        self._most = 0

    def grow(self, most: int, name: str) -> None:
        """No magnitude grows by more than this now; ``ValueError`` where one may leave int32."""
        self._most += most
        if self._most > LARGEST and self.absolute is not None:  # not all have grown at the same place
            self._most = most + int(self.absolute.max())
        if self._most > LARGEST:
            msg = f"contributions of {name!r} may add up to more than {LARGEST:,} over the samples; slice fewer"
            raise ValueError(msg)

    @property
    def alone(self) -> bool:
        """Whether every sample has to be looked at by itself."""
        return self.absolute is not None or self.samples is not None


class Ledger:
    """What a slice adds up over its batches: contributions of neurons by value, of synapses by layer."""

    def __init__(self, *, absolute: bool, neurons: frozenset[str], synapses: frozenset[str]) -> None:
        self.neurons: dict[str, Tally] = {}
        self.synapses: dict[str, Tally] = {}
        self._signs: dict[str, Any] = {}
        self._absolute, self._neurons, self._synapses = absolute, neurons, synapses

    def add_neurons(self, name: str, c: Any, sums: Sums) -> None:
        """Add the contributions of one value, ``[B, ...]``, of which ``sums`` are those over the batch."""
        torch = import_optional("torch", NEEDS)
        if name not in self.neurons:
            shape = tuple(c.shape[1:])
            self.neurons[name] = Tally(shape, c.device, absolute=True, samples=name in self._neurons)
        tally = self.neurons[name]
        tally.grow(sums[2], name)
        tally.signed += sums[0]
        tally.absolute += sums[1]
        if tally.samples is not None:
            tally.samples.append(c.to(torch.int32).cpu())

    def of_layer(self, layer: Call, uses: int) -> Tally:
        """The tally of a layer's synapses, each of which is used so often now."""
        name, weight = layer.operation.layer, layer.arguments["weight"]
        if name not in self.synapses:
            samples = name in self._synapses
            self.synapses[name] = Tally(tuple(weight.shape), weight.device, absolute=self._absolute, samples=samples)
        self.synapses[name].grow(uses, name)
        return self.synapses[name]

    def signs(self, layer: Call) -> Any:
        """The signs of a layer's weights, float32; taken once for all batches."""
        name = layer.operation.layer
        if name not in self._signs:
            self._signs[name] = layer.arguments["weight"].detach().float().sign()
        return self._signs[name]

    def close(self) -> None:
        """Multiply the sums of g · s_X by the signs of the weights, which are those of all samples."""
        torch = import_optional("torch", NEEDS)
        for name, signs in self._signs.items():
            tally, signs = self.synapses[name], signs.to(torch.int8)
            tally.signed *= signs
            if tally.absolute is not None:
                tally.absolute *= signs.abs()
            if tally.samples is not None:
                tally.samples = [sample * signs.cpu() for sample in tally.samples]


class Batch:
    """The samples that go through a network together: what the rules know of them.

    Args:
        baseline: The means.
        theta: The selection, ``None`` for none.
        bent: What activations that are not monotone do.
        ledger: Where the contributions of synapses go.
        trace: Of the network; knows which values are asked for.
    """

    def __init__(self, baseline: Baseline, theta: Theta | None, bent: Bent, ledger: Ledger, trace: Trace) -> None:
        self.theta, self.bent = theta, bent
        self._baseline, self._ledger, self._trace = baseline, ledger, trace
        self._values: dict[str, Any] = {}
        self._differences: dict[str, Any] = {}

    def see(self, name: str, x: Any) -> None:
        """Remember what the rules will ask of a value: its differences now, if it is known to which means."""
        # Means are C-contiguous, and mixed layouts are slow in all that follows.
        x = x.contiguous()
        if name in self._trace.kept or (name in self._trace.compared and not self._baseline.ready):
            self._values[name] = x
        if name in self._trace.compared and self._baseline.ready:
            self._compare(name, x)

    def compare(self) -> None:
        """Take the differences that had to wait for the classes of the samples."""
        for name in [name for name in self._values if name in self._trace.compared and name not in self._differences]:
            self._compare(name, self._values[name] if name in self._trace.kept else self._values.pop(name))

    def _compare(self, name: str, x: Any) -> None:
        take = self._baseline.signs if self.theta is None else self._baseline.differences
        self._differences[name] = take(name, x)

    def forget(self, name: str) -> None:
        """All rules that look at a value are through."""
        self._values.pop(name, None)
        self._differences.pop(name, None)

    def value(self, name: str) -> Any:
        """The value itself, ``[B, ...]``."""
        return self._values[name]

    def difference(self, name: str) -> Any:
        """Δ of a value in float32; its signs in int8 when nothing is selected by magnitude."""
        return self._differences[name]

    def sign(self, name: str) -> Any:
        """The signs of Δ."""
        return self._differences[name] if self.theta is None else self._differences[name].sign()

    def goal(self, name: str, c: Any) -> Any:
        """g = SIGN(CONTRIB) · SIGN(Δy) of the neurons of an output, float32 -1, 0 or 1."""
        return c.sign().mul_(self.sign(name))

    def weighted(
        self,
        x: Any,
        weight: Any,
        g: Any,
        *,
        stride: tuple[int, ...] = (1, 1),
        padding: tuple[int, ...] = (0, 0),
        dilation: tuple[int, ...] = (1, 1),
        groups: int = 1,
        layer: Call | None = None,
    ) -> Any:
        """The local rule of a convolution: contributions of its input, and those of the weights of ``layer``.

        Args:
            x: Differences (or their signs) ``[B, C, H, W]``.
            weight: ``[O, C / groups, h, w]``.
            g: Goals ``[B, O, P, Q]``.
        """
        if self.theta is not None:
            geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
            return self._selected(self.theta, x, weight, g, geometry, layer)
        torch = import_optional("torch", NEEDS)
        _check_exact(layer, weight.shape[0] // groups * weight.shape[2] * weight.shape[3], g.shape[2] * g.shape[3])
        x, signs = x.float(), weight.sign() if layer is None else self._ledger.signs(layer).reshape(weight.shape)

        def gradients(rows: slice, wanted: tuple[bool, bool]) -> Any:
            return torch.ops.aten.convolution_backward(
                g[rows], x[rows], signs, None, stride, padding, dilation, False, (0, 0), groups, (*wanted, False)
            )

        if layer is None:
            return _whole(gradients(slice(None), (True, False))[0]).mul_(x)
        tally = self._ledger.of_layer(layer, g.shape[0] * g.shape[2] * g.shape[3])
        step = 1 if tally.alone else max(1, (EXACT - 1) // (g.shape[2] * g.shape[3]))
        if step >= len(x):
            back, found, _ = gradients(slice(None), (True, True))
            _add_synapses(tally, found)
        else:
            back = gradients(slice(None), (True, False))[0]
            for first in range(0, len(x), step):
                _add_synapses(tally, gradients(slice(first, first + step), (False, True))[1])
        return _whole(back).mul_(x)

    def linear(self, x: Any, g: Any, layer: Call) -> Any:
        """The same for a linear layer without a selection: differences ``[B, ..., I]``, goals ``[B, ..., O]``."""
        positions = g[0].numel() // g.shape[-1]
        _check_exact(layer, g.shape[-1], positions)
        signs, x = self._ledger.signs(layer), x.float()
        tally = self._ledger.of_layer(layer, len(g) * positions)
        step = 1 if tally.alone else max(1, (EXACT - 1) // positions)
        for first in range(0, len(x), step):
            rows = slice(first, first + step)
            _add_synapses(tally, g[rows].flatten(0, -2).T @ x[rows].flatten(0, -2))
        return _whole(g @ signs).mul_(x)

    def _selected(self, theta: Theta, x: Any, weight: Any, g: Any, geometry: dict[str, Any], layer: Call | None) -> Any:
        torch = import_optional("torch", NEEDS)
        weight = weight.detach().float().contiguous()
        inputs = torch.zeros(x.shape, dtype=torch.int32, device=x.device)
        sums = {"inputs": inputs}
        if layer is not None:
            tally = self._ledger.of_layer(layer, g.shape[0] * g.shape[2] * g.shape[3])
            sums["signed"] = tally.signed.view(weight.shape)
            if tally.absolute is not None:
                sums["absolute"] = tally.absolute.view(weight.shape)
            if tally.samples is not None:
                sums["samples"] = torch.zeros((len(x), *weight.shape), dtype=torch.int32, device=x.device)
                tally.samples.append(sums["samples"].view(len(x), *tally.signed.shape))
        ops.contributions(
            x.contiguous(),
            weight,
            g.to(torch.int8).contiguous(),
            **geometry,
            epsilon=theta.epsilon,
            beta=theta.beta,
            **sums,
        )
        return inputs.float()


def propagate(trace: Trace, calls: list[Call], start: Any, batch: Batch, ledger: Ledger) -> None:
    """Bring the contributions ``start`` of the output, float32 ``[B, K]``, back through all operations.

    Contributions from several consumers add. A neuron whose sum is 0 passes nothing on: its sign is 0.
    """
    found = {trace.output: start}
    sums: dict[int, tuple[Any, Sums]] = {}
    for call in reversed(calls[-len(trace.operations) :]):
        name = call.operation.name
        c = found.pop(name, None)
        if c is None:  # nothing that the output depends on
            batch.forget(name)
            continue
        ledger.add_neurons(name, c, _summed(c, sums))
        parts = RULES[call.operation.kind].back(call, c, batch)
        for operand, part in zip(call.operation.operands, parts, strict=True):
            found[operand] = part if operand not in found else _together(found[operand], part, operand)
        batch.forget(name)
    for name, c in found.items():
        if trace.whole:  # else what takes it before the part that was looked at is missing
            ledger.add_neurons(name, c, _summed(c, sums))
        batch.forget(name)


def _check_exact(layer: Call | None, fan_out: int, positions: int) -> None:
    """Raise ``ValueError`` where a sum of signs may reach 2**24."""
    name = "a pool" if layer is None else repr(layer.operation.name)
    for what, count in (("consumers of one input", fan_out), ("positions of one weight", positions)):
        if count >= EXACT:
            msg = f"{name} has {count:,} {what}; sums of 2**24 and more are not exact in float32"
            raise ValueError(msg)


def _whole(c: Any) -> Any:
    """``c`` itself, made sure to be whole numbers: no kernel may have computed it by transforms that round."""
    if c.is_cuda and not bool((c == c.round()).all()):
        msg = "a convolution of whole numbers came back with fractions; this device cannot slice exactly"
        raise RuntimeError(msg)
    return c


def _add_synapses(tally: Tally, found: Any) -> None:
    """Add g · s_X of some samples, of one if each counts by itself."""
    torch = import_optional("torch", NEEDS)
    whole = _whole(found).to(torch.int32).reshape(tally.signed.shape)
    tally.signed += whole
    if tally.absolute is not None:
        tally.absolute += whole.abs()
    if tally.samples is not None:
        tally.samples.append(whole[None].cpu())


def _together(first: Any, second: Any, name: str) -> Any:
    """Contributions from two consumers."""
    both = first + second
    if both.numel() and float(both.abs().max()) >= EXACT:
        msg = f"contributions of {name!r} reach 2**24, beyond which float32 is not exact"
        raise ValueError(msg)
    return both


def _summed(c: Any, known: dict[int, tuple[Any, Sums]]) -> Sums:
    """Sums over a batch; taken once for a tensor that passes several operations."""
    torch = import_optional("torch", NEEDS)
    if id(c) in known:
        return known[id(c)][1]
    absolute = c.abs().sum(0)
    most = float(absolute.max()) if c.numel() else 0.0
    if most < EXACT:  # then no partial sum was rounded
        sums = (c.sum(0).to(torch.int32), absolute.to(torch.int32), int(most))
    else:
        whole = c.to(torch.int64)
        magnitudes = whole.abs().sum(0)
        sums = (whole.sum(0), magnitudes, int(magnitudes.max()))
    known.clear()  # a tensor that went by is gone, and its number may be another's
    known[id(c)] = (c, sums)
    return sums
