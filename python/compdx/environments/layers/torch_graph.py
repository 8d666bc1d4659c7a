"""The values of a torch module, read by torch.fx."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from compdx.derivatives import as_input
from compdx.engine import Numerics
from compdx.environments.layers.graph import INPUT, Array, Network, Operation, Part, Port, Slot
from compdx.model import Model, import_optional, normalize
from compdx.slicing.tracing import FUNCTION_KINDS, MODULE_KINDS, asks, nodes, only, owner_of, plain, replaced, traced

NEEDS = "a look at layers"
# What this room calls by another name than the tables of slicing, or what these do not have.
_KINDS = {
    "adaptive average pool": "average pool",
    "mean": "average pool",
    "bent activation": "activation",
    "dropout": "identity",
}
_MORE = {
    **dict.fromkeys(("softmax", "log_softmax", "_softmax", "Softmax", "LogSoftmax", "Softmax2d"), "softmax"),
    **dict.fromkeys(("interpolate", "Upsample", "upsample_nearest2d", "upsample_bilinear2d"), "resize"),
    **dict.fromkeys(("roll", "index_select", "chunk", "split"), "move"),
    **dict.fromkeys(("PReLU", "prelu", "threshold", "Threshold"), "activation"),
}
_MIXES = ("add", "subtract", "multiply", "divide")


class TorchNetwork(Network):
    """A torch module.

    Args:
        model: A model of a torch module in eval mode that torch.fx can trace. The module is not changed.

    Attributes:
        graph: That of torch.fx.
        constants: The tensors in it that are no parameter and no buffer.
        value_of, node_of: From its nodes to the names of their values, and back.
        in_place: The nodes that overwrite what they take.

    Raises:
        ValueError: The module cannot be traced, or takes or returns more than one tensor.
    """

    runtime = "torch"

    def __init__(self, model: Model) -> None:
        self.model, self.name, self.module = model, model.name, model.module
        self.graph, self.constants = traced(self.module, self.name)
        self.operations: dict[str, Operation] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, Any] = {}
        self.value_of: dict[Any, str] = {}
        self.node_of: dict[str, Any] = {}
        self.in_place: set[Any] = set()
        self._read()

    def look(self, images: Array) -> None:
        """See `Network.look`."""
        part = _TorchPart(self, [INPUT], list(self.operations))
        for name, value in part.tensors({INPUT: self._tensor(INPUT, self.feed(images[:1]))}).items():
            if hasattr(value, "shape") and value.is_floating_point():
                self.shapes[name], self._dtypes[name] = tuple(value.shape), value.dtype

    def feed(self, images: Array) -> Array:
        """See `Network.feed`."""
        inputs = replace(self.model.inputs, layout="NCHW", dtype="float32")
        torch = import_optional("torch", NEEDS)
        x = torch.as_tensor(normalize(images, inputs, self.model.device))
        fed = as_input(self.model, x)
        self._dtypes[INPUT], self.shapes[INPUT] = fed.dtype, (1, *fed.shape[1:])
        return self._array(fed)

    def part(self, given: Collection[Slot], wanted: Sequence[str]) -> Part:
        """See `Network.part`."""
        return _TorchPart(self, given, wanted)

    def execute(self, node: Any, args: Any, kwargs: Any) -> Any:
        """What a node of the graph computes."""
        if node.op == "call_module":
            return self.module.get_submodule(node.target)(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        return node.target(*args, **kwargs)

    def attribute(self, path: str) -> Any:
        """A parameter, buffer or constant."""
        if path in self.constants:
            return self.constants[path]
        home, _, name = path.rpartition(".")
        return getattr(self.module.get_submodule(home), name)

    def sources(self, node: Any) -> list[Any]:
        """The nodes of the values that a node takes, as often as it takes them."""
        return [source for source in nodes((node.args, node.kwargs)) if source in self.value_of]

    def _tensor(self, value: str, array: Array) -> Any:
        torch = import_optional("torch", NEEDS)
        return torch.as_tensor(array).to(self.model.device, self._dtypes.get(value, torch.float32))

    @staticmethod
    def _array(tensor: Any) -> Array:
        return np.asarray(tensor.detach().float().cpu())

    def _read(self) -> None:
        # What nobody takes is of no interest, such as the guards of an exported graph; but it may overwrite something.
        for node in reversed(list(self.graph.nodes)):
            if not node.users and node.op.startswith("call_") and not self._in_place(node, "activation"):
                self.graph.erase_node(node)
        order = {node: number for number, node in enumerate(self.graph.nodes)}
        for node in self.graph.nodes:
            if node.op == "placeholder":
                if self.value_of and not node.args:
                    msg = f"model {self.name!r} must take one input, but its forward() takes {node.target!r} as well"
                    raise ValueError(msg)
                if not self.value_of:
                    self.value_of[node], self.node_of[INPUT] = INPUT, node
            elif node.op == "output":
                result = only(node.args[0])
                if self.value_of.get(result) is None:
                    msg = f"model {self.name!r} must return one tensor that depends on its input, got {node.args[0]}"
                    raise ValueError(msg)
                self.output = self.value_of[result]
            elif any(source in self.value_of for source in node.all_input_nodes) and not asks(node):
                self._add(node, order)

    def _add(self, node: Any, order: Mapping[Any, int]) -> None:
        taken = self.sources(node)
        kind, function = self._kind(node)
        if kind in _MIXES and len(set(taken)) == 1 and len(taken) == 1:
            kind = "scale"
        layer = self._layer(node)
        name, count = layer, 1
        while name in self.operations or name == INPUT:
            count += 1
            name = f"{layer}#{count}"
        self.operations[name] = Operation(
            name=name,
            layer=layer,
            kind=kind,
            function=function.lower(),
            operands=tuple(self.value_of[source] for source in taken),
            parameters=self._parameters(node, kind),
        )
        self.value_of[node], self.node_of[name] = name, node
        if self._in_place(node, kind):
            self.in_place.add(node)
            taken[0].replace_all_uses_with(node, delete_user_cb=lambda user: order[user] > order[node])

    def _kind(self, node: Any) -> tuple[str, str]:
        """The kind of an operation and its plain name."""
        if node.op == "call_module":
            module = self.module.get_submodule(node.target)
            parametrize = import_optional("torch.nn.utils.parametrize", NEEDS)
            name = (type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)).__name__
            kind = MODULE_KINDS.get(name)
        else:
            schema = getattr(node.target, "_schema", None)
            called = schema.name.split("::")[-1] if schema else getattr(node.target, "__name__", node.target)
            name = plain(called)
            kind = FUNCTION_KINDS.get(name)
        if "quantize" in name.lower():
            kind = "identity"
        kind = _MORE.get(name, name.lower()) if kind is None else kind
        return _KINDS.get(kind, kind), name

    def _layer(self, node: Any) -> str:
        if node.op == "call_module":
            return str(node.target)
        for source in node.all_input_nodes:
            home = owner_of(source, self.value_of)
            if home:
                return home
        stack = list(node.meta.get("nn_module_stack", {}).values())
        path = str(stack[-1][0]) if stack else ""
        return f"{path}.{node.name}" if path else str(node.name)

    def _parameters(self, node: Any, kind: str) -> dict[str, Array]:
        if kind in ("normalization", "identity", "move"):
            return {}
        if node.op == "call_module":
            module = self.module.get_submodule(node.target)
            found = [getattr(module, name, None) for name in ("weight", "bias")]
        elif kind in ("linear", "convolution"):
            found = [self._constant(argument) for argument in (*node.args[1:3], None)[:2]]
        else:
            return {}
        tensors = [None if one is None or not hasattr(one, "shape") else self._array(one) for one in found]
        return {name: one for name, one in zip(("weight", "bias"), tensors, strict=False) if one is not None}

    def _constant(self, argument: Any) -> Any:
        """The value of an argument that does not depend on the input; None where it does."""
        if not hasattr(argument, "all_input_nodes") or argument in self.value_of:
            return None
        if argument.op == "get_attr":
            return self.attribute(argument.target)
        args, kwargs = replaced((argument.args, argument.kwargs), self._constant)
        return self.execute(argument, args, kwargs)

    def _in_place(self, node: Any, kind: str) -> bool:
        if node.op == "call_module":
            return bool(getattr(self.module.get_submodule(node.target), "inplace", False))
        schema = getattr(node.target, "_schema", None)
        name = schema.name if schema else getattr(node.target, "__name__", node.target)
        if plain(name) != name or name in ("iadd", "isub", "imul", "itruediv"):
            return True
        flags = (*node.args[1:], node.kwargs.get("inplace")) if kind == "activation" else (node.kwargs.get("inplace"),)
        return any(flag is True for flag in flags)


def _filled(node: Any, values: Iterator[Any]) -> Any:
    """The arguments of a node, with values in place of the nodes among them."""
    return replaced((node.args, node.kwargs), lambda _: next(values))


class _TorchPart(Part):
    """The nodes that lead from given to wanted values."""

    def __init__(self, network: TorchNetwork, given: Collection[Slot], wanted: Sequence[str]) -> None:
        self._network, self._given, self._wanted = network, {*given, INPUT}, tuple(wanted)
        needs: dict[Slot, None] = {}
        run = set()
        waiting = [network.node_of[name] for name in wanted]
        while waiting:
            node = waiting.pop()
            if node in run:
                continue
            if network.value_of.get(node) == INPUT:
                needs[INPUT] = None
                continue
            run.add(node)
            for source, slot in self._taken(node):
                if slot is None:
                    waiting.append(source)
                else:
                    needs[slot] = None
        self._nodes = [node for node in network.graph.nodes if node in run]
        self._last = {source: node for node in self._nodes for source in node.all_input_nodes}
        self.needs = tuple(needs)

    def __call__(self, given: Mapping[Slot, Array]) -> dict[str, Array]:
        network = self._network
        tensors = {slot: network._tensor(self._value(slot), given[slot]) for slot in self.needs}
        return {name: network._array(value) for name, value in self.tensors(tensors).items()}

    def tensors(self, given: Mapping[Slot, Any]) -> dict[str, Any]:
        """The wanted values as the network has them."""
        torch, network = import_optional("torch", NEEDS), self._network
        wanted, found, known = set(self._wanted), {}, {}
        if INPUT in wanted:
            found[INPUT] = given[INPUT]
        with torch.no_grad(), Numerics().held():
            for node in self._nodes:
                if node.op == "get_attr":
                    known[node] = network.attribute(node.target)
                elif node.op == "placeholder":
                    known[node] = node.args[0]
                else:
                    values = [known[source] if slot is None else given[slot] for source, slot in self._taken(node)]
                    if node in network.in_place:
                        values[0] = values[0].clone()
                    known[node] = network.execute(node, *_filled(node, iter(values)))
                if network.value_of.get(node) in wanted:
                    found[network.value_of[node]] = known[node]
                for source in node.all_input_nodes:
                    if self._last.get(source) is node:
                        known.pop(source, None)
        return found

    def _taken(self, node: Any) -> Iterator[tuple[Any, Slot | None]]:
        """What a node takes, in the order of its arguments, each with the slot that gives it, if one does."""
        name = self._network.value_of.get(node)
        number = 0
        for source in nodes((node.args, node.kwargs)):
            slot: Slot | None = None
            if source in self._network.value_of:
                value = self._network.value_of[source]
                port = Port(name, number) if name is not None else None
                slot = port if port in self._given else value if value in self._given else None
                number += 1
            yield source, slot

    def _value(self, slot: Slot) -> str:
        """The value whose type a slot has."""
        return slot if isinstance(slot, str) else self._network.operations[slot.operation].operands[slot.number]
