"""What every kind of operation does with contributions: one table, `RULES`, and one function an entry.

A rule is given the operation as it ran, the contributions of its output neurons and the batch, and returns those of
its operands. Contributions are whole numbers in float32, of magnitudes below 2**24, where float32 is exact.
A new kind of operation is an entry here and its PyTorch names in `tracing`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from compdx.model import import_optional

if TYPE_CHECKING:
    from compdx.slicing.engine import Batch
    from compdx.slicing.tracing import Call

NEEDS = "slicing"
EXACT = 1 << 24
"""Float32 holds every whole number up to here."""

Back = Callable[["Call", Any, "Batch"], Sequence[Any]]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How contributions pass one kind of operation.

    Attributes:
        back: From the contributions of the output to those of the operands.
        compares: It takes the differences of operands and output to their means.
        keeps: It takes their values.
        arguments: Names of the arguments of PyTorch's function, in its order, with defaults; ``...`` for none. A rule
            finds them in ``Call.arguments``.
        refuses: From those arguments, before anything runs, to the reason why there is no rule for them.
    """

    back: Back
    compares: bool = False
    keeps: bool = False
    arguments: Mapping[str, Any] = field(default_factory=lambda: {"input": ...})
    refuses: Callable[[Mapping[str, Any]], str | None] | None = None


def _through(call: Call, c: Any, _: Batch) -> Sequence[Any]:
    """Monotone in one input: the whole number passes unchanged, as Δy · wΔx >= 0."""
    return [_narrowed(c, call.shapes[0], call)]


def _bent(call: Call, c: Any, batch: Batch) -> Sequence[Any]:
    """Not monotone everywhere: passes unchanged, or with SIGN(Δy · Δx) on request."""
    if batch.bent == "pass":
        return [c]
    operation = call.operation
    return [c * batch.sign(operation.name) * batch.sign(operation.operands[0])]


def _moved(call: Call, c: Any, _: Batch) -> Sequence[Any]:
    """Copies and leaves out, but computes nothing: contributions go back to where their neurons came from.

    That is the derivative of the move, which torch knows for every one of them.
    """
    torch = import_optional("torch", NEEDS)
    with torch.enable_grad():
        # One number in memory, seen as a tensor: a move does not look at values.
        source = torch.zeros((), device=c.device).expand(call.shapes[0]).requires_grad_()
        (back,) = torch.autograd.grad(call.apply(source), source, c)
    return [exact(back, call)]


def _concatenated(call: Call, c: Any, _: Batch) -> Sequence[Any]:
    axis = call.arguments["dim"]
    sizes = [shape[axis] for shape in call.shapes]
    if len(call.arguments["tensors"]) != len(sizes):
        msg = f"{call.operation.name!r} concatenates neurons with constants, which slicing does not know"
        raise ValueError(msg)
    return list(c.split(sizes, axis))


def _linear(call: Call, c: Any, batch: Batch) -> Sequence[Any]:
    """The local rule over the inputs of every output neuron; positions but the last axis are independent."""
    operation, weight = call.operation, call.arguments["weight"]
    x = batch.difference(operation.operands[0])
    g = batch.goal(operation.name, c)
    if batch.theta is None:
        back = batch.linear(x, g, call)
    else:
        rows = (len(x), -1)
        columns = x.reshape(*rows, x.shape[-1]).transpose(1, 2)[..., None]
        goals = g.reshape(*rows, g.shape[-1]).transpose(1, 2)[..., None]
        back = batch.weighted(columns, weight[..., None, None], goals, layer=call)
        back = back.squeeze(-1).transpose(1, 2).reshape(x.shape)
    return [back]


def _convolution(call: Call, c: Any, batch: Batch) -> Sequence[Any]:
    """The local rule over the taps of every output neuron; taps in the padding are none."""
    operation, given = call.operation, call.arguments
    weight = given["weight"]
    axes = weight.ndim - 2
    stride, dilation = _per_axis(given["stride"], axes), _per_axis(given["dilation"], axes)
    padding, lead = _padding(given["padding"], weight.shape[2:], dilation)
    x = batch.difference(operation.operands[0])
    g = _placed(batch.goal(operation.name, c), lead)
    back = batch.weighted(
        _plane(x, axes),
        _plane(weight, axes),
        _plane(g, axes),
        stride=_padded(stride, 1),
        padding=_padded(padding, 0),
        dilation=_padded(dilation, 1),
        groups=given["groups"],
        layer=call,
    )
    return [back.reshape(x.shape)]


def _average_pool(call: Call, c: Any, batch: Batch) -> Sequence[Any]:
    """The local rule with weights of 1; windows reach into the padding and, with ``ceil_mode``, beyond it."""
    given, x = call.arguments, batch.difference(call.operation.operands[0])
    axes = _axes(call)
    kernel = _per_axis(given["kernel_size"], axes)
    stride = _per_axis(given["stride"] or kernel, axes)
    return [_windows(call, c, batch, x, kernel, stride, _per_axis(given["padding"], axes))]


def _adaptive_average_pool(call: Call, c: Any, batch: Batch) -> Sequence[Any]:
    """As many windows as asked for, of equal size where the extents divide; else each by itself."""
    x = batch.difference(call.operation.operands[0])
    axes = _axes(call)
    extents, outputs = tuple(x.shape[-axes:]), tuple(c.shape[-axes:])
    if all(extent % output == 0 for extent, output in zip(extents, outputs, strict=True)):
        kernel = tuple(extent // output for extent, output in zip(extents, outputs, strict=True))
        return [_windows(call, c, batch, x, kernel, kernel, (0,) * axes)]
    torch = import_optional("torch", NEEDS)
    x, g = _plane(x, axes), _plane(batch.goal(call.operation.name, c), axes)
    back = torch.zeros(x.shape, device=c.device)
    for row, (top, bottom) in enumerate(_spans(x.shape[2], g.shape[2])):
        for column, (left, right) in enumerate(_spans(x.shape[3], g.shape[3])):
            window = x[:, :, top:bottom, left:right]
            part = _averaged(batch, window, g[:, :, row : row + 1, column : column + 1])
            back[:, :, top:bottom, left:right] += part
    return [back.reshape(call.shapes[0])]


def _mean(call: Call, c: Any, batch: Batch) -> Sequence[Any]:
    """The local rule with weights of 1 over whole axes, in the order of the memory."""
    x = batch.difference(call.operation.operands[0])
    given = call.arguments["dim"]
    axes = sorted(axis % x.ndim for axis in ([given] if isinstance(given, int) else given))
    if 0 in axes:
        msg = f"{call.operation.name!r} averages over the samples of a batch, which are not one network's neurons"
        raise ValueError(msg)
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    moved = x.permute(*kept, *axes)
    rows = moved.reshape(len(x), -1, 1, _product(moved.shape[len(kept) :]))
    g = batch.goal(call.operation.name, c).reshape(len(x), -1, 1, 1)
    back = _averaged(batch, rows, g).reshape(moved.shape)
    return [back.permute(*(place for place, _ in sorted(enumerate([*kept, *axes]), key=lambda pair: pair[1])))]


def _max_pool(call: Call, c: Any, batch: Batch) -> Sequence[Any]:
    """In full to every element that equals the maximum of its window: all ties, raw values."""
    torch = import_optional("torch", NEEDS)
    given, operation, axes = call.arguments, call.operation, _axes(call)
    kernel = _padded(_per_axis(given["kernel_size"], axes), 1)
    stride = _padded(_per_axis(given["stride"] or given["kernel_size"], axes), 1)
    padding = _padded(_per_axis(given["padding"], axes), 0)
    dilation = _padded(_per_axis(given["dilation"], axes), 1)
    x, y, c = (_plane(t, axes) for t in (batch.value(operation.operands[0]), batch.value(operation.name), c))
    reach = [  # from the first element of a window to the last window's last, with what hangs over at the end
        (outputs - 1) * step + (taps - 1) * apart + 1
        for outputs, step, taps, apart in zip(c.shape[2:], stride, kernel, dilation, strict=True)
    ]
    over = [max(0, r - p - extent) for r, p, extent in zip(reach, padding, x.shape[2:], strict=True)]
    around = (padding[1], over[1], padding[0], over[0])
    # NaN equals nothing, not even a maximum of minus infinity.
    wide = torch.nn.functional.pad(x.float(), around, value=float("nan"))
    back = torch.zeros(wide.shape, device=c.device)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            rows, columns = (
                slice(tap * apart, tap * apart + (outputs - 1) * step + 1, step)
                for tap, apart, outputs, step in zip((i, j), dilation, c.shape[2:], stride, strict=True)
            )
            back[:, :, rows, columns] += c * (wide[:, :, rows, columns] == y)
    inner = back[:, :, padding[0] :, padding[1] :][:, :, : x.shape[2], : x.shape[3]]
    return [exact(inner, call).reshape(call.shapes[0])]


def _added(call: Call, c: Any, batch: Batch) -> Sequence[Any]:
    return _sum(call, c, batch, (1.0, call.arguments["alpha"]))


def _subtracted(call: Call, c: Any, batch: Batch) -> Sequence[Any]:
    return _sum(call, c, batch, (1.0, -call.arguments["alpha"]))


def _sum(call: Call, c: Any, batch: Batch, weights: Sequence[float]) -> Sequence[Any]:
    """The local rule over two operands."""
    torch = import_optional("torch", NEEDS)
    g = batch.goal(call.operation.name, c)
    terms = [batch.difference(name).expand(g.shape) for name in call.operation.operands]
    if batch.theta is None:
        parts = [g * term if weight > 0 else -g * term for weight, term in zip(weights, terms, strict=True)]
    else:
        # Each pair of elements stands above each other: a kernel of two rows adds them.
        pairs = torch.stack([term.reshape(len(g), 1, -1) for term in terms], 2)
        kernel = torch.tensor(weights, device=c.device).reshape(1, 1, 2, 1)
        back = batch.weighted(pairs, kernel, g.reshape(len(g), 1, 1, -1))
        parts = [part.reshape(g.shape) for part in back[:, 0].unbind(1)]
    return [_narrowed(part, shape, call) for part, shape in zip(parts, call.shapes, strict=True)]


def _product_of_two(call: Call, c: Any, batch: Batch) -> Sequence[Any]:
    """Gates, experimental: Δ(ab) as a sum of two terms, Δa and Δb, each weighted with the other operand's value."""
    torch = import_optional("torch", NEEDS)
    names = call.operation.operands
    g = batch.goal(call.operation.name, c)
    terms = [batch.difference(name).expand(g.shape) for name in names]
    weights = [batch.value(name).float().expand(g.shape) for name in reversed(names)]
    if batch.theta is None:
        parts = [g * torch.sign(weight) * term for weight, term in zip(weights, terms, strict=True)]
    else:
        # Every neuron has weights of its own, so each is a group of its own.
        pairs, kernel = (torch.stack([t.reshape(-1) for t in two], 1) for two in (terms, weights))
        count = len(pairs)
        goals = g.reshape(1, count, 1, 1)
        back = batch.weighted(pairs.reshape(1, count, 2, 1), kernel.reshape(count, 1, 2, 1), goals, groups=count)
        parts = [part.reshape(g.shape) for part in back[0, :, :, 0].unbind(1)]
    return [_narrowed(part, shape, call) for part, shape in zip(parts, call.shapes, strict=True)]


def _refuse_padding_mode(given: Mapping[str, Any]) -> str | None:
    mode = given["padding_mode"]
    return None if mode == "zeros" else f"has padding_mode={mode!r}; only 'zeros' has a rule"


def _refuse_batch_statistics(given: Mapping[str, Any]) -> str | None:
    if given["training"] is True or (given["running_mean"] is None and given["running_var"] is None):
        return "uses the statistics of the batch, so that every sample depends on all others"
    return None


def _refuse_dropout(given: Mapping[str, Any]) -> str | None:
    return "drops at random" if given["training"] is True and given["p"] != 0 else None


def _refuse_indices(given: Mapping[str, Any]) -> str | None:
    return "returns indices" if given["return_indices"] else None


def _refuse_whole(given: Mapping[str, Any]) -> str | None:
    return "averages over the samples of a batch" if given["dim"] is None else None


def _refuse_no_weight(given: Mapping[str, Any]) -> str | None:
    return "has alpha=0, a weight that takes one operand away" if given["alpha"] == 0 else None


_POOL = {"input": ..., "kernel_size": ..., "stride": None, "padding": 0}
_TWO = {"input": ..., "other": ..., "alpha": 1}
_WEIGHTED = {"input": ..., "weight": ..., "bias": None}

RULES: dict[str, Rule] = {
    "linear": Rule(back=_linear, compares=True, arguments=_WEIGHTED),
    "convolution": Rule(
        back=_convolution,
        compares=True,
        arguments={**_WEIGHTED, "stride": 1, "padding": 0, "dilation": 1, "groups": 1, "padding_mode": "zeros"},
        refuses=_refuse_padding_mode,
    ),
    "normalization": Rule(
        back=_through,
        # Functions have their statistics in two orders, but always among the first.
        arguments={"input": ..., "running_mean": 0, "running_var": 0, "_3": 0, "_4": 0, "training": False},
        refuses=_refuse_batch_statistics,
    ),
    "scale": Rule(back=_through),
    "activation": Rule(back=_through),
    "bent activation": Rule(back=_bent, compares=True),
    "max pool": Rule(
        back=_max_pool,
        keeps=True,
        arguments={**_POOL, "dilation": 1, "ceil_mode": False, "return_indices": False},
        refuses=_refuse_indices,
    ),
    "average pool": Rule(back=_average_pool, compares=True, arguments=_POOL),
    "adaptive average pool": Rule(back=_adaptive_average_pool, compares=True),
    "mean": Rule(
        back=_mean, compares=True, arguments={"input": ..., "dim": None, "keepdim": False}, refuses=_refuse_whole
    ),
    "add": Rule(back=_added, compares=True, arguments=_TWO, refuses=_refuse_no_weight),
    "subtract": Rule(back=_subtracted, compares=True, arguments=_TWO, refuses=_refuse_no_weight),
    "multiply": Rule(back=_product_of_two, compares=True, keeps=True, arguments={"input": ..., "other": ...}),
    "divide": Rule(back=_through, arguments={"input": ..., "other": ...}),
    "concatenate": Rule(back=_concatenated, arguments={"tensors": ..., "dim": 0}),
    "move": Rule(back=_moved),
    "dropout": Rule(back=_through, arguments={"input": ..., "p": 0.5, "training": True}, refuses=_refuse_dropout),
    "identity": Rule(back=_through),
}


def exact(c: Any, call: Call) -> Any:
    """``c`` itself; ``ValueError`` where a whole number in it may have been rounded."""
    if c.numel() and float(c.abs().max()) >= EXACT:
        msg = f"contributions at {call.operation.name!r} reach 2**24, beyond which float32 is not exact"
        raise ValueError(msg)
    return c


def _narrowed(c: Any, shape: tuple[int, ...], call: Call) -> Any:
    """Contributions of an operand that was broadcast: the sum over its copies."""
    return c if tuple(c.shape) == shape else exact(c.sum_to_size(shape), call)


def _windows(
    call: Call, c: Any, batch: Batch, x: Any, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...]
) -> Any:
    """The local rule over windows with weights of 1, for every channel by itself."""
    axes = len(kernel)
    g = batch.goal(call.operation.name, c)
    # One more step of padding on both sides covers what ceil_mode lets hang over; the windows there get no goal.
    over = [
        (outputs - 1) * step + taps - extent - 2 * pad > 0
        for outputs, step, taps, extent, pad in zip(
            g.shape[-axes:], stride, kernel, x.shape[-axes:], padding, strict=True
        )
    ]
    lead = tuple(int(hangs) for hangs in over)
    padding = tuple(pad + step * hangs for pad, step, hangs in zip(padding, stride, lead, strict=True))
    outputs = tuple(
        (extent + 2 * pad - taps) // step + 1
        for extent, pad, taps, step in zip(x.shape[-axes:], padding, kernel, stride, strict=True)
    )
    g = _placed(g, lead, outputs)
    back = _averaged(
        batch, _plane(x, axes), _plane(g, axes), _padded(kernel, 1), _padded(stride, 1), _padded(padding, 0)
    )
    return back.reshape(call.shapes[0])


def _averaged(
    batch: Batch,
    x: Any,
    g: Any,
    kernel: tuple[int, ...] | None = None,
    stride: tuple[int, ...] = (1, 1),
    padding: tuple[int, ...] = (0, 0),
) -> Any:
    """The local rule with weights of 1 in windows of ``kernel``, default of all of ``x`` ``[B, C, H, W]``."""
    torch = import_optional("torch", NEEDS)
    if kernel is None and batch.theta is None:
        return x * g
    ones = torch.ones((1, 1, *(kernel or x.shape[2:])), device=x.device)
    channels = (x.shape[0] * x.shape[1], 1)
    back = batch.weighted(
        x.reshape(*channels, *x.shape[2:]), ones, g.reshape(*channels, *g.shape[2:]), stride=stride, padding=padding
    )
    return back.reshape(x.shape)


def _axes(call: Call) -> int:
    """How many axes of space an input ``[N, C, ...]`` has."""
    return len(call.shapes[0]) - 2


def _plane(x: Any, axes: int) -> Any:
    """``[N, C, L]`` as ``[N, C, 1, L]``."""
    return x.unsqueeze(-2) if axes == 1 else x


def _padded(numbers: tuple[int, ...], first: int) -> tuple[int, ...]:
    """One number an axis as two, for `_plane`."""
    return numbers if len(numbers) == 2 else (first, numbers[0])


def _per_axis(numbers: Any, axes: int) -> tuple[int, ...]:
    if isinstance(numbers, int):
        return (numbers,) * axes
    return tuple(numbers) * (axes if len(numbers) == 1 else 1)


def _padding(given: Any, kernel: Sequence[int], dilation: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding that is the same on both sides, and how many more outputs than asked for that gives in front."""
    if given == "valid":
        given = 0
    if given != "same":
        return _per_axis(given, len(kernel)), (0,) * len(kernel)
    total = [apart * (taps - 1) for apart, taps in zip(dilation, kernel, strict=True)]
    return tuple(t - t // 2 for t in total), tuple(t % 2 for t in total)


def _placed(g: Any, lead: tuple[int, ...], outputs: tuple[int, ...] | None = None) -> Any:
    """The goals of a larger grid of outputs, 0 for the ``lead`` of each axis and for what follows up to ``outputs``."""
    torch = import_optional("torch", NEEDS)
    extents = g.shape[-len(lead) :]
    behind = (
        [0] * len(lead)
        if outputs is None
        else [total - front - extent for total, front, extent in zip(outputs, lead, extents, strict=True)]
    )
    around = [number for pair in reversed(list(zip(lead, behind, strict=True))) for number in pair]
    return torch.nn.functional.pad(g, around) if any(around) else g


def _spans(extent: int, outputs: int) -> list[tuple[int, int]]:
    """First and last element of each window of adaptive pooling."""
    return [(i * extent // outputs, -(-(i + 1) * extent // outputs)) for i in range(outputs)]


def _product(numbers: Sequence[int]) -> int:
    result = 1
    for number in numbers:
        result *= number
    return result
