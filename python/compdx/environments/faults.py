"""The classic faults of converters, put into a network on purpose: a test bench for whatever finds faults.

Every fault is one edit of a copy of a network's graph, at a place that a seed draws, and says which layer it is in.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from compdx.environments.layers.graph import INPUT, OUTPUT, Operation
from compdx.environments.layers.torch_graph import TorchNetwork
from compdx.model import Model, import_optional
from compdx.seeds import Seeds

NEEDS = "a fault"


@dataclass(frozen=True, kw_only=True, eq=False)
class Fault:
    """A fault that was put into a network.

    Attributes:
        name: A key of `FAULTS`.
        layer: Where, in the names that the network's graph has for its operations; ``"input"`` and ``"output"`` for
            what is done before the first and behind the last of them.
        change: What was done.
        model: The network with the fault; its module is a ``torch.fx.GraphModule``.
    """

    name: str
    layer: str
    change: str
    model: Model


class _Edit:
    """A copy of a network that is about to get a fault at one place.

    Attributes:
        torch: The package.
        graph: Of the copy; ``node`` is the one at the place.
        rng: For what is random in a fault.
    """

    def __init__(self, network: TorchNetwork, name: str, rng: Any) -> None:
        self.torch, self.rng = import_optional("torch", NEEDS), rng
        self._root = copy.deepcopy(network.module)
        for key, value in network.constants.items():
            setattr(self._root, key, value)
        self.graph = self.torch.fx.Graph()
        nodes: dict[Any, Any] = {}
        self.result = self.graph.graph_copy(network.graph, nodes)
        self.graph.output(self.result)
        self.node = self.result if name == OUTPUT else nodes[network.node_of[name]]

    @property
    def module(self) -> Any:
        """The module that the node calls."""
        return self._root.get_submodule(self.node.target)

    def behind(self, function: Any, *args: Any, **kwargs: Any) -> None:
        """Hand the value of the node through a function."""
        with self.graph.inserting_after(self.node):
            added = self.graph.call_function(function, (self.node, *args), kwargs)
        self.node.replace_all_uses_with(added, delete_user_cb=lambda user: user is not added)

    def before(self, function: Any, *args: Any) -> None:
        """Hand what the node takes first through a function."""
        taken = self.node.all_input_nodes[0]
        with self.graph.inserting_before(self.node):
            added = self.graph.call_function(function, (taken, *args))
        self.node.replace_input_with(taken, added)

    def instead(self, function: Any | None, **kwargs: Any) -> None:
        """Call a function on what the node takes first, or nothing at all, in place of the node."""
        taken = self.node.all_input_nodes[0]
        with self.graph.inserting_before(self.node):
            other = taken if function is None else self.graph.call_function(function, (taken,), kwargs)
        self.node.replace_all_uses_with(other)
        self.graph.erase_node(self.node)

    def weights(self, change: Callable[[Any], Any]) -> None:
        """Replace the weight of the node's module."""
        with self.torch.no_grad():
            self.module.weight.copy_(change(self.module.weight.clone()))

    def finished(self) -> Any:
        """The network with the fault, in eval mode."""
        self.graph.lint()
        return self.torch.fx.GraphModule(self._root, self.graph).eval()


def inject(model: Model, fault: str, image: Any, *, seed: int = 0) -> Fault | None:
    """Put a fault into a copy of a network.

    Args:
        model: A model of a torch module in eval mode that torch.fx can trace.
        fault: A key of `FAULTS`.
        image: Any image that the model takes, uint8 ``[1, C, H, W]``: for the shapes of its values.
        seed: Draws the place, and what is random in the fault.

    Returns:
        The fault; ``None`` where the network has no place for it.

    Raises:
        TypeError, ValueError: The model is no torch module, or cannot be traced; the fault is unknown.
    """
    if fault not in FAULTS:
        msg = f"fault must be one of {', '.join(map(repr, FAULTS))}, got {fault!r}"
        raise ValueError(msg)
    if model.module is None:
        msg = f"model must be one of a torch module to get a fault, got {model.name!r}"
        raise TypeError(msg)
    network = TorchNetwork(model)
    network.look(Seeds.of(image).images[:1])
    change, place, edit = FAULTS[fault]
    rng = np.random.default_rng([seed, *fault.encode()])
    names = [name for name in (INPUT, *network.operations, OUTPUT) if place(_At(network, name))]
    if not names:
        return None
    name = names[int(rng.integers(len(names)))]
    made = _Edit(network, name, rng)
    edit(made)
    return Fault(
        name=fault, layer=name, change=change, model=model.replace(made.finished(), name=f"{model.name}, {fault}")
    )


@dataclass(frozen=True)
class _At:
    """A place where a fault could be."""

    network: TorchNetwork
    name: str

    @property
    def operation(self) -> Operation | None:
        return self.network.operations.get(self.name)

    @property
    def module(self) -> Any:
        """The module that is called here; ``None`` for anything else."""
        node = self.network.node_of.get(self.name)
        return self.network.module.get_submodule(node.target) if node is not None and node.op == "call_module" else None

    @property
    def taken(self) -> tuple[int, ...]:
        """The shape of what is taken here."""
        return self.network.shapes[self.operation.operands[0]] if self.operation is not None else ()

    def is_kind(self, *kinds: str) -> bool:
        return self.operation is not None and self.operation.kind in kinds

    def is_module(self, *names: str) -> bool:
        return type(self.module).__name__ in names


def _weighted(at: _At) -> bool:
    return at.is_module("Conv2d", "Linear")


def _wide_kernel(at: _At) -> bool:
    return at.is_module("Conv2d") and max(at.module.kernel_size) > 1


def _relu(at: _At) -> bool:
    return at.operation is not None and at.operation.function == "relu"


def _flattens(at: _At) -> bool:
    if at.operation is None or at.operation.function not in ("flatten", "reshape") or len(at.taken) != 4:
        return False
    return len(at.network.shapes[at.name]) == 2 and at.taken[1] > 1 and max(at.taken[2:]) > 1


def _padded(at: _At) -> bool:
    return at.is_module("Conv2d") and not isinstance(at.module.padding, str) and min(at.module.padding) > 0


def _ceils(at: _At) -> bool:
    """Whether a pool's window would reach over the edge, and nothing behind it depends on how many there are."""
    if not at.is_module("MaxPool2d", "AvgPool2d") or at.module.ceil_mode:
        return False
    last = any(o.operands == (at.name,) and "adaptive" in o.function for o in at.network.operations.values())
    size, step = np.array(at.taken[2:]), np.broadcast_to(at.module.stride, 2)
    window = np.broadcast_to(at.module.kernel_size, 2)
    return last and bool(((size + 2 * np.broadcast_to(at.module.padding, 2) - window) % step).any())


def _rounded(weight: Any) -> Any:
    step = weight.abs().max() / 127
    return (weight / step).round() * step


def _asymmetric(edit: _Edit) -> None:
    """All of the padding that "same" needs, the odd pixel and one more of an even number behind the image."""
    module = edit.module
    rows, columns = module.padding
    both = (columns - 1, columns + 1, rows - 1, rows + 1) if max(module.stride) == 1 else (0, columns, 0, rows)
    module.padding = (0, 0)
    edit.before(edit.torch.nn.functional.pad, both)


def _perturb(edit: _Edit) -> None:
    generator = edit.torch.Generator().manual_seed(int(edit.rng.integers(1 << 31)))

    def noisy(weight: Any) -> Any:
        noise = edit.torch.randn(weight.shape, generator=generator).to(weight)
        return weight + 1e-2 * weight.square().mean().sqrt() * noise

    edit.weights(noisy)


def _pool_kind(edit: _Edit) -> None:
    module, functional = edit.module, edit.torch.nn.functional
    other = functional.avg_pool2d if type(module).__name__ == "MaxPool2d" else functional.max_pool2d
    edit.instead(other, kernel_size=module.kernel_size, stride=module.stride, padding=module.padding)


def _resize(edit: _Edit) -> None:
    if edit.node.op == "call_module":
        module = edit.module
        module.mode = "bilinear" if module.mode == "nearest" else "nearest"
        module.align_corners = None
    else:
        mode = "bilinear" if edit.node.kwargs.get("mode", "nearest") == "nearest" else "nearest"
        edit.node.kwargs = {**edit.node.kwargs, "mode": mode, "align_corners": None}


def _zero_bias(edit: _Edit) -> None:
    with edit.torch.no_grad():
        edit.module.bias.zero_()


def _set(name: str, value: Any) -> Callable[[_Edit], None]:
    return lambda edit: setattr(edit.module, name, value)


def _cast(kind: str) -> Callable[[_Edit], None]:
    return lambda edit: edit.weights(lambda weight: weight.to(getattr(edit.torch, kind)))


FAULTS: dict[str, tuple[str, Callable[[_At], bool], Callable[[_Edit], Any]]] = {
    "channel order": (
        "the channels of the image in reverse: BGR for RGB",
        lambda at: at.name == INPUT and at.network.shapes[INPUT][1] > 1,
        lambda edit: edit.behind(edit.torch.flip, [1]),
    ),
    "image transposed": (
        "height and width of the image swapped",
        lambda at: at.name == INPUT,
        lambda edit: edit.behind(edit.torch.transpose, 2, 3),
    ),
    "flatten order": (
        "pixels before channels where a value is flattened: NHWC for NCHW",
        _flattens,
        lambda edit: edit.before(edit.torch.permute, (0, 2, 3, 1)),
    ),
    "padding": ("the padding of a convolution not the same on both sides", _padded, _asymmetric),
    "epsilon": (
        "1e-3 for the epsilon of a batch normalization",
        lambda at: at.is_module("BatchNorm2d", "BatchNorm1d") and at.module.eps < 5e-4,
        _set("eps", 1e-3),
    ),
    "resize mode": ("bilinear for nearest, or the other way round", lambda at: at.is_kind("resize"), _resize),
    "label shift": (
        "every class where the next one should be",
        lambda at: at.name == OUTPUT,
        lambda edit: edit.behind(edit.torch.roll, 1, 1),
    ),
    "softmax added": (
        "a softmax behind the scores: one too many, or one for none",
        lambda at: at.name == OUTPUT,
        lambda edit: edit.behind(edit.torch.softmax, 1),
    ),
    "softmax missing": (
        "a softmax left out",
        lambda at: at.is_kind("softmax"),
        lambda edit: edit.instead(None),
    ),
    "float16 weights": ("the weights of a layer rounded to float16", _weighted, _cast("float16")),
    "bfloat16 weights": ("the weights of a layer rounded to bfloat16", _weighted, _cast("bfloat16")),
    "int8 weights": (
        "the weights of a layer rounded to 255 levels",
        _weighted,
        lambda edit: edit.weights(_rounded),
    ),
    "weights perturbed": ("noise of 1e-2 of their size on the weights of a layer", _weighted, _perturb),
    "activation dropped": ("a ReLU left out", _relu, lambda edit: edit.instead(None)),
    "activation capped": ("a ReLU that ends at 6", _relu, lambda edit: edit.instead(edit.torch.nn.functional.relu6)),
    "kernel flipped": (
        "a kernel turned by 180 degrees: convolution for correlation",
        _wide_kernel,
        lambda edit: edit.weights(lambda weight: weight.flip(2, 3)),
    ),
    "kernel transposed": (
        "height and width of a kernel swapped",
        lambda at: _wide_kernel(at) and at.module.kernel_size[0] == at.module.kernel_size[1],
        lambda edit: edit.weights(lambda weight: weight.transpose(2, 3)),
    ),
    "bias dropped": (
        "the bias of a layer or a normalization left out",
        lambda at: getattr(at.module, "bias", None) is not None,
        _zero_bias,
    ),
    "pool kind": (
        "an average where a maximum should be, or the other way round",
        lambda at: at.is_module("MaxPool2d", "AvgPool2d"),
        _pool_kind,
    ),
    "pool count": (
        "padding counted, or not, in the average of a pool",
        lambda at: at.is_module("AvgPool2d") and np.max(at.module.padding) > 0,
        lambda edit: setattr(edit.module, "count_include_pad", not edit.module.count_include_pad),
    ),
    "ceil mode": ("a last window of a pool that reaches over the edge", _ceils, _set("ceil_mode", True)),
}
"""By name: what is done, where it can be done, and the edit."""
