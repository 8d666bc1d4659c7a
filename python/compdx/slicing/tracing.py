"""A network as a list of operations on values, read by torch.fx, and one forward pass through it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from compdx.model import import_optional
from compdx.slicing.rules import RULES

NEEDS = "slicing"
INPUT = "input"
"""The name of the value that a network is given."""

# What PyTorch calls an operation, and its kind: a key of rules.RULES. Functions stand for methods and for the operators
# of exported graphs as well, and for what works in place: `relu_` is `relu`.
_MODULES = {
    "linear": ("Linear",),
    "convolution": ("Conv1d", "Conv2d"),
    "normalization": ("BatchNorm1d", "BatchNorm2d", "SyncBatchNorm"),
    "activation": (
        *("ReLU", "ReLU6", "LeakyReLU", "Hardtanh", "Sigmoid", "Tanh", "Hardsigmoid", "ELU", "CELU", "SELU"),
        *("Softplus", "Softsign", "LogSigmoid"),
        *("FakeQuantize", "FusedMovingAvgObsFakeQuantize"),
    ),
    "bent activation": ("GELU", "SiLU", "Hardswish", "Mish"),
    "max pool": ("MaxPool1d", "MaxPool2d"),
    "average pool": ("AvgPool1d", "AvgPool2d"),
    "adaptive average pool": ("AdaptiveAvgPool1d", "AdaptiveAvgPool2d"),
    "move": (
        *("Flatten", "Unflatten", "ChannelShuffle", "PixelShuffle", "PixelUnshuffle"),
        *("ConstantPad1d", "ConstantPad2d", "ZeroPad1d", "ZeroPad2d"),
    ),
    "dropout": ("Dropout", "Dropout1d", "Dropout2d", "AlphaDropout", "FeatureAlphaDropout"),
    "identity": ("Identity",),
}
_FUNCTIONS = {
    "linear": ("linear",),
    "convolution": ("conv1d", "conv2d"),
    "normalization": ("batch_norm",),
    "activation": (
        *("relu", "relu6", "leaky_relu", "hardtanh", "sigmoid", "tanh", "hardsigmoid", "elu", "celu", "selu"),
        *("softplus", "softsign", "logsigmoid", "clamp_min", "neg"),
        *("quantize_per_tensor", "dequantize_per_tensor"),
    ),
    "bent activation": ("gelu", "silu", "hardswish", "mish"),
    "max pool": ("max_pool1d", "max_pool2d"),
    "average pool": ("avg_pool1d", "avg_pool2d"),
    "adaptive average pool": ("adaptive_avg_pool1d", "adaptive_avg_pool2d"),
    "mean": ("mean",),
    "add": ("add", "iadd"),
    "subtract": ("sub", "isub", "subtract"),
    "multiply": ("mul", "imul", "multiply"),
    "divide": ("div", "truediv", "itruediv", "divide"),
    "concatenate": ("cat", "concat", "concatenate"),
    "move": (
        *("flatten", "reshape", "view", "permute", "transpose", "movedim", "swapaxes", "squeeze", "unsqueeze"),
        *("unflatten", "getitem", "slice", "select", "narrow", "pad", "constant_pad_nd", "expand", "flip"),
        *("channel_shuffle", "pixel_shuffle", "pixel_unshuffle"),
    ),
    "dropout": ("dropout", "dropout1d", "dropout2d", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"),
    "identity": ("contiguous", "clone", "detach", "to", "_to_copy", "float", "half", "bfloat16", "type_as"),
}
MODULE_KINDS = {name: kind for kind, names in _MODULES.items() for name in names}
FUNCTION_KINDS = {name: kind for kind, names in _FUNCTIONS.items() for name in names}
# What asks a value for its shape and the like: the answer is no neuron.
_QUESTIONS = {"size", "dim", "ndimension", "numel", "len", "sym_size", "shape", "dtype", "device", "ndim"}
_HINTS = {
    name: "; slice on the logits, before it"
    for name in ("softmax", "log_softmax", "_softmax", "Softmax", "LogSoftmax", "Softmax2d")
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Operation:
    """One step of a network that takes neurons and gives neurons.

    Attributes:
        name: Where it stands in the model, and the name of the value it gives: the path of its module, or of the module
            that calls it and the name of its node. The second call of a module has ``#2`` behind it.
        layer: The name of what has its weights, without such a number.
        kind: A key of `rules.RULES`.
        function: What PyTorch calls the module or the function.
        operands: Names of the values it takes, in the order of its arguments.
        arguments: By the names of ``RULES[kind].arguments``; nodes of the graph among them.
        in_place: It overwrites its operand, of which it is given a copy.
        node: That of torch.fx.
    """

    name: str
    layer: str
    kind: str
    function: str
    operands: tuple[str, ...]
    arguments: Mapping[str, Any]
    in_place: bool
    node: Any


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """An operation as it ran on one batch.

    Attributes:
        operation: Which.
        arguments: With the values of this run; ``None`` in place of neurons.
        shapes: Of its operands.
        apply: The operation as a function of its operands.
    """

    operation: Operation
    arguments: Mapping[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    apply: Callable[..., Any]


class Trace:
    """The operations of a module in the order in which they run.

    Args:
        module: A torch module in eval mode that torch.fx can trace, with one input and one output. It is not changed.
        name: What messages call it.

    Attributes:
        operations: In the order of execution.
        whole: Whether these are all of the module's.
        output: The name of the value that the module returns.
        values: Names of all values, the input first.
        layers: Names of the layers with synapses, and how often each runs.
        compared: Names of the values that some rule compares with their means.
        kept: Names of the values that some rule looks at as they are.

    Raises:
        ValueError: The module cannot be traced, or there is no rule for one of its operations; says which and where.
    """

    def __init__(self, module: Any, name: str) -> None:
        self.module, self.name = module, name
        self._graph, self._constants = traced(module, name)
        self.operations: list[Operation] = []
        self._values: dict[Any, str] = {}
        self._names: dict[str, int] = {INPUT: 1}
        self._weights: dict[str, str] = {}
        # What nobody takes decides nothing, such as the guards of an exported graph; but it may overwrite something.
        for node in reversed(list(self._graph.nodes)):
            if not node.users and node.op.startswith("call_") and not self._in_place(node, "activation"):
                self._graph.erase_node(node)
        self._read()
        self.output = self._values[self._result]
        self._by_node = {operation.node: operation for operation in self.operations}
        self._last = {
            source: node for node in self._graph.nodes for source in node.all_input_nodes if source is not self._result
        }
        self.values = [INPUT, *(operation.name for operation in self.operations)]
        self.whole = True
        self._look()

    def down_to(self, layer: str) -> Trace:
        """The same network, looked at from its output down to the first run of a layer and no further."""
        first = next(place for place, operation in enumerate(self.operations) if operation.layer == layer)
        part = copy.copy(self)
        part.operations, part.whole = self.operations[first:], first == 0
        part._look()
        return part

    def _look(self) -> None:
        """Find out what the rules of the operations ask for."""
        self.layers = Counter(o.layer for o in self.operations if "weight" in RULES[o.kind].arguments)
        rules = [(operation, RULES[operation.kind]) for operation in self.operations]
        values = [(rule, {operation.name, *operation.operands}) for operation, rule in rules]
        self.compared = frozenset().union(*(names for rule, names in values if rule.compares))
        self.kept = frozenset().union(*(names for rule, names in values if rule.keeps))

    def run(self, x: Any, see: Callable[[str, Any], None]) -> tuple[Any, list[Call]]:
        """One forward pass: what the module returns for ``x``, and its operations as they ran.

        ``see`` is called with the name and the tensor of every value as soon as it is there. Nothing overwrites a value
        that was seen.
        """
        torch = import_optional("torch", NEEDS)
        known: dict[Any, Any] = {}
        calls = []
        for node in self._graph.nodes:
            if node.op == "output":
                break
            if node.op == "placeholder":
                known[node] = x if self._values.get(node) == INPUT else (node.args[0] if node.args else None)
                if self._values.get(node) == INPUT:
                    see(INPUT, x)
            elif node.op == "get_attr":
                known[node] = self._attribute(node.target)
            elif node in self._by_node:
                call = self._call(self._by_node[node], known)
                operands = [known[source] for source in self._operand_nodes(node)]
                if call.operation.in_place:
                    operands[0] = operands[0].clone()
                known[node] = call.apply(*operands)
                if not isinstance(known[node], torch.Tensor):
                    raise self._unsupported(node, f"returns a {type(known[node]).__name__} instead of a tensor")
                calls.append(call)
                see(call.operation.name, known[node])
            else:
                known[node] = self._execute(node, *replaced((node.args, node.kwargs), known.__getitem__))
            for source in node.all_input_nodes:
                if self._last.get(source) is node:
                    del known[source]
        return known[self._result], calls

    def _read(self) -> None:
        """Find the values, the operations on them and their kinds."""
        order = {node: number for number, node in enumerate(self._graph.nodes)}
        for node in self._graph.nodes:
            if node.op == "placeholder":
                if not self._values:
                    self._values[node] = INPUT
                elif not node.args:
                    msg = f"model {self.name!r} must take one input, but its forward() takes {node.target!r} as well"
                    raise ValueError(msg)
            elif node.op == "output":
                self._result = only(node.args[0])
                if self._values.get(self._result) is None:
                    msg = f"model {self.name!r} must return one tensor that depends on its input, got {node.args[0]}"
                    raise ValueError(msg)
            elif any(source in self._values for source in node.all_input_nodes) and not asks(node):
                operation = self._operation(node)
                if operation.in_place:
                    self._redirect(operation, order)
                self.operations.append(operation)

    def _operation(self, node: Any) -> Operation:
        called = self._called(node)
        kind = (MODULE_KINDS if node.op == "call_module" else FUNCTION_KINDS).get(called or "")
        if called is None or kind is None:
            raise self._unsupported(node, f"has no rule{_HINTS.get(called or '', '')}")
        arguments = self._arguments(node, kind)
        layer = self._layer(node)
        if "weight" in RULES[kind].arguments:
            # A module with two weights is two layers, the second by the name of its weight.
            weight = f"{layer}.weight" if node.op == "call_module" else path_of(arguments["weight"], self._values)
            layer = layer if weight == self._weights.setdefault(layer, weight) else weight
        # What one tensor is scaled or shifted by is a constant, whose difference to its mean is zero.
        operands = {name: arguments[name] for name in ("input", "other", "tensors") if name in arguments}
        neurons = [source for source in nodes(operands) if source in self._values]
        if kind in ("add", "subtract", "multiply") and len(neurons) == 1:
            kind = "scale"
        if kind == "divide":
            if len(neurons) != 1 or arguments["input"] is not neurons[0]:
                raise self._unsupported(node, "divides by what depends on the input")
            kind = "scale"
        refused = RULES[kind].refuses
        reason = refused(arguments) if refused is not None else None
        if len(neurons) != len(self._operand_nodes(node)):
            reason = "takes settings or weights that depend on the input"
        if reason is not None:
            raise self._unsupported(node, reason)
        self._names[layer] = self._names.get(layer, 0) + 1
        name = layer if self._names[layer] == 1 else f"{layer}#{self._names[layer]}"
        self._values[node] = name
        return Operation(
            name=name,
            layer=layer,
            kind=kind,
            function=called,
            operands=tuple(self._values[source] for source in neurons),
            arguments=arguments,
            in_place=self._in_place(node, kind),
            node=node,
        )

    def _arguments(self, node: Any, kind: str) -> dict[str, Any]:
        """What the rule wants to know, by name: the attributes of a module, or the arguments of a function."""
        wanted = RULES[kind].arguments
        found = {name: default for name, default in wanted.items() if default is not ...}
        if node.op == "call_module":
            module = self.module.get_submodule(node.target)
            found.update({name: getattr(module, name) for name in wanted if hasattr(module, name)})
            # The module itself knows its weights only when it runs: parametrizations make them anew.
            found = {name: _Weight(node.target, name) if name == "weight" else found[name] for name in found}
            found["input"] = only(node.args or tuple(node.kwargs.values()))
            return found
        names = list(wanted)
        if len(node.args) > len(names) and kind in ("mean", "add", "subtract", "multiply", "divide"):
            raise self._unsupported(node, f"takes {len(node.args)} arguments")
        found.update(zip(names, node.args, strict=False))
        named = {{"axis": "dim", "train": "training"}.get(name, name): value for name, value in node.kwargs.items()}
        found.update({name: value for name, value in named.items() if name in wanted})
        missing = [name for name in wanted if name not in found]
        if missing:
            raise self._unsupported(node, f"is called without {missing[0]}")
        return found

    def _called(self, node: Any) -> str | None:
        """PyTorch's own name of what a node calls; None for anything that is not PyTorch's."""
        if node.op == "call_module":
            module = self.module.get_submodule(node.target)
            parametrize = import_optional("torch.nn.utils.parametrize", NEEDS)
            kind = type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)
            return kind.__name__ if kind.__module__.split(".")[0] in ("torch", "torchao") else None
        if node.op == "call_method":
            return plain(node.target)
        schema = getattr(node.target, "_schema", None)
        if schema is not None:
            return plain(schema.name.split("::")[-1])
        home = getattr(node.target, "__module__", None) or "torch"
        return plain(node.target.__name__) if home.split(".")[0] in ("torch", "_operator") else None

    def _layer(self, node: Any) -> str:
        """The path of the module that a node is or that has its weights, else of its caller with the node's name."""
        if node.op == "call_module":
            return str(node.target)
        for source in node.all_input_nodes:
            owner = owner_of(source, self._values)
            if owner:
                return owner
        stack = list(node.meta.get("nn_module_stack", {}).values())
        path = str(stack[-1][0]) if stack else ""
        return f"{path}.{node.name}" if path else str(node.name)

    def _in_place(self, node: Any, kind: str) -> bool:
        if node.op == "call_module":
            return bool(getattr(self.module.get_submodule(node.target), "inplace", False))
        schema = getattr(node.target, "_schema", None)
        name = node.target if node.op == "call_method" else schema.name if schema else node.target.__name__
        if plain(name) != name or name in ("iadd", "isub", "imul", "itruediv"):
            return True
        flags = (*node.args[1:], node.kwargs.get("inplace")) if "activation" in kind else (node.kwargs.get("inplace"),)
        return any(flag is True for flag in flags)

    def _redirect(self, operation: Operation, order: Mapping[Any, int]) -> None:
        """Whoever takes the operand of an in-place operation later takes what it has become."""
        node = operation.node
        changed = self._operand_nodes(node)[0]

        def later(source: Any) -> bool:
            return any(order[user] > order[node] for user in source.users)

        views = self._memory(changed) - {changed, node}
        if any(later(view) for view in views):
            raise self._unsupported(node, "overwrites a tensor of which another view is used later")
        changed.replace_all_uses_with(node, delete_user_cb=lambda user: order[user] > order[node])

    def _memory(self, node: Any) -> set[Any]:
        """The values that may share memory with this one."""
        found, waiting = set(), [node]
        by_node = {operation.node: operation for operation in self.operations}
        shares = ("move", "identity", "dropout")
        while waiting:
            here = waiting.pop()
            if here in found:
                continue
            found.add(here)
            linked = [user for user in here.users if user in by_node and by_node[user].kind in shares]
            if here in by_node and by_node[here].kind in shares:
                linked += self._operand_nodes(here)
            waiting += linked
        return found

    def _operand_nodes(self, node: Any) -> list[Any]:
        """The nodes of the operands, as often as the operation takes them."""
        return [source for source in nodes((node.args, node.kwargs)) if source in self._values]

    def _call(self, operation: Operation, known: Mapping[Any, Any]) -> Call:
        node, neurons = operation.node, self._values

        def constant(source: Any) -> Any:
            return source if source in neurons else known[source]

        args, kwargs = replaced((node.args, node.kwargs), constant)

        def apply(*operands: Any) -> Any:
            left = iter(operands)
            return self._execute(node, *replaced((args, kwargs), lambda _: next(left)))

        values = replaced(dict(operation.arguments), lambda source: None if source in neurons else known[source])
        arguments = {
            name: getattr(self.module.get_submodule(value.path), value.name) if isinstance(value, _Weight) else value
            for name, value in values.items()
        }
        shapes = tuple(tuple(known[source].shape) for source in nodes(operation.arguments) if source in neurons)
        return Call(operation=operation, arguments=arguments, shapes=shapes, apply=apply)

    def _execute(self, node: Any, args: Any, kwargs: Any) -> Any:
        if node.op == "call_module":
            return self.module.get_submodule(node.target)(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        return node.target(*args, **kwargs)

    def _attribute(self, path: str) -> Any:
        if path in self._constants:
            return self._constants[path]
        owner, _, name = path.rpartition(".")
        return getattr(self.module.get_submodule(owner), name)

    def _unsupported(self, node: Any, reason: str) -> ValueError:
        what = type(self.module.get_submodule(node.target)).__name__ if node.op == "call_module" else node.target
        what = what if isinstance(what, str) else getattr(what, "__name__", str(what))
        msg = f"model {self.name!r} cannot be sliced: {what} at {self._layer(node)!r} {reason}"
        return ValueError(msg)


@dataclass(frozen=True)
class _Weight:
    """A parameter of a module, to be looked at when the module runs."""

    path: str
    name: str


def traced(module: Any, name: str) -> tuple[Any, dict[str, Any]]:
    """The graph of a module, and the tensors in it that are no parameter and no buffer."""
    fx = import_optional("torch.fx", NEEDS)
    if isinstance(module, fx.GraphModule):
        graph = fx.Graph()
        graph.output(graph.graph_copy(module.graph, {}))
        return graph, {}
    before = set(vars(module))
    try:
        graph = fx.Tracer().trace(module)
    except Exception as error:
        msg = f"model {name!r} cannot be traced by torch.fx: {error}"
        raise ValueError(msg) from error
    finally:
        # torch.fx keeps such tensors in the module; it is not ours to change.
        constants = {key: vars(module).pop(key) for key in set(vars(module)) - before}
    return graph, constants


def owner_of(node: Any, values: Mapping[Any, str]) -> str:
    """The path of the module that has the parameter at the bottom of a node; "" for the outermost, or none."""
    return path_of(node, values).rpartition(".")[0]


def path_of(node: Any, values: Mapping[Any, str]) -> str:
    """The path of the parameter at the bottom of a node, on the way of its first arguments; "" where there is none."""
    while node not in values:
        if node.op == "get_attr":
            return str(node.target)
        if not node.all_input_nodes:
            break
        node = node.all_input_nodes[0]
    return ""


def asks(node: Any) -> bool:
    """Whether a node asks a value for its shape or the like."""
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in _QUESTIONS
    schema = getattr(node.target, "_schema", None)
    name = schema.name.split("::")[-1] if schema is not None else getattr(node.target, "__name__", node.target)
    return node.op != "call_module" and name in _QUESTIONS


def plain(name: str) -> str:
    """The name of an operation without the mark of its in-place form."""
    return name[:-1] if name.endswith("_") and not name.startswith("_") else name


def only(values: Any) -> Any:
    """What a result of one part holds; anything else as it is."""
    while isinstance(values, (tuple, list)) and len(values) == 1:
        values = values[0]
    return values if not isinstance(values, (list, dict)) else tuple(values)


def nodes(tree: Any) -> Iterator[Any]:
    """Every node in a nest of arguments, as often as it stands there."""
    fx = import_optional("torch.fx", NEEDS)
    found: list[Any] = []
    fx.node.map_arg(tree, lambda node: found.append(node))
    yield from found


def replaced(tree: Any, value: Callable[[Any], Any]) -> Any:
    """A nest of arguments with a value in place of every node."""
    return import_optional("torch.fx", NEEDS).node.map_arg(tree, value)
