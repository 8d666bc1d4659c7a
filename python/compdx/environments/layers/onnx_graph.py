"""The values of an ONNX file, read with onnx and computed by the runtime that the file is opened with."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from compdx.environments.layers.graph import INPUT, Array, Network, Operation, Part, Port, Slot
from compdx.model import Model, import_optional, normalize
from compdx.runtimes.onnxruntime import LEVELS
from compdx.runtimes.openvino import PRECISIONS

NEEDS = "a look at the layers of an ONNX file"
Run = Callable[[Mapping[str, Array], Sequence[str]], list[Array]]
Load = Callable[[Any], Run]
"""From a model of onnx to the function that computes its outputs."""

_KINDS = {
    "convolution": ("Conv",),
    "linear": ("Gemm", "MatMul"),
    "normalization": ("BatchNormalization",),
    "activation": (
        *("Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Elu", "Celu", "Selu"),
        *("Softplus", "Softsign", "Gelu", "Mish", "ThresholdedRelu", "Swish"),
    ),
    "max pool": ("MaxPool", "GlobalMaxPool"),
    "average pool": ("AveragePool", "GlobalAveragePool", "ReduceMean"),
    "add": ("Add", "Sum"),
    "subtract": ("Sub",),
    "multiply": ("Mul",),
    "divide": ("Div",),
    "concatenate": ("Concat",),
    "softmax": ("Softmax", "LogSoftmax"),
    "resize": ("Resize", "Upsample"),
    "move": (
        *("Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "Split", "Pad", "Expand"),
        *("DepthToSpace", "SpaceToDepth"),
    ),
    "identity": ("Identity", "Cast", "Dropout", "QuantizeLinear", "DequantizeLinear"),
}
KINDS = {name: kind for kind, names in _KINDS.items() for name in names}
_MIXES = ("add", "subtract", "multiply", "divide")
_QUESTIONS = ("Shape", "Size")
_GIVEN = "given of "


class OnnxNetwork(Network):
    """The network in an ONNX file, on any runtime that takes such files.

    A runtime may fuse operations between which nobody looks. To see a value is to keep what would be fused apart.

    Args:
        path: The file.
        load: What runs a model of onnx: `onnxruntime_at` or `openvino_at`.
        feed: What makes the network's input of images.
        name: What messages call it.
        runtime: Likewise.
        output: Of several outputs the one with the scores.

    Raises:
        ModuleNotFoundError: onnx is missing.
        ValueError: The network takes or returns more than one tensor.
    """

    def __init__(
        self,
        path: Path,
        load: Load,
        feed: Callable[[Array], Array],
        *,
        name: str,
        runtime: str = "onnxruntime",
        output: str | None = None,
    ) -> None:
        onnx = import_optional("onnx", NEEDS, "onnx")
        self.name, self.runtime, self._load, self._feed = name, runtime, load, feed
        model = onnx.load(path)
        self.model = onnx.inliner.inline_local_functions(model) if model.functions else model
        graph = self.model.graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        inputs = [value.name for value in graph.input if value.name not in self.constants]
        outputs = [value.name for value in graph.output]
        outputs = [output] if output in outputs else outputs
        if len(inputs) != 1 or len(outputs) != 1:
            msg = f"model {name!r} must have one input and one output, got {', '.join(inputs)} and {', '.join(outputs)}"
            raise ValueError(msg)
        self.input, self.output = inputs[0], outputs[0]
        declared = next(value for value in graph.input if value.name == self.input).type.tensor_type
        self.kind, self.batch = declared.elem_type, declared.shape.dim[0].dim_value or None
        self.maker = {output: node for node in graph.node for output in node.output if output}
        self.order = {id(node): number for number, node in enumerate(graph.node)}
        self.operations = {}
        self.shapes = {}
        self.types: dict[str, int] = {}
        self._read()

    def look(self, images: Array) -> None:
        """See `Network.look`."""
        onnx = import_optional("onnx", NEEDS, "onnx")
        x = self.feed(images[:1])
        self.shapes[INPUT] = x.shape
        self.types[INPUT] = self.kind
        part = _OnnxPart(self, [INPUT], list(self.operations))
        kinds = onnx.TensorProto
        for name, value in part.arrays({INPUT: x}).items():
            if value.dtype.kind == "f":
                self.shapes[name] = value.shape
                self.types[name] = kinds.FLOAT if value.dtype == np.float32 else kinds.FLOAT16
        for name in [name for name in self.operations if name not in self.shapes]:
            del self.operations[name]

    def feed(self, images: Array) -> Array:
        """See `Network.feed`."""
        return self._feed(images)

    def part(self, given: Collection[Slot], wanted: Sequence[str]) -> Part:
        """See `Network.part`."""
        return _OnnxPart(self, given, wanted)

    def load(self, model: Any) -> Run:
        """What computes the outputs of a model of onnx, here."""
        return self._load(model)

    def real(self, value: str) -> str:
        """The name that the file has for a value."""
        return self.input if value == INPUT else value

    def _read(self) -> None:
        depends = {self.input}
        for node in self.model.graph.node:
            taken = [value for value in node.input if value in depends]
            if not taken or node.op_type in _QUESTIONS:
                continue
            depends.update(output for output in node.output if output)
            kind = KINDS.get(node.op_type, node.op_type.lower())
            if kind in _MIXES and len(taken) == 1:
                kind = "scale"
            parameters = self._parameters(node, kind)
            for output in node.output:
                if output:
                    self.operations[output] = Operation(
                        name=output,
                        layer=self._layer(node),
                        kind=kind,
                        function=_function(node, self._number),
                        operands=tuple(INPUT if value == self.input else value for value in taken),
                        parameters=parameters,
                    )

    def _parameters(self, node: Any, kind: str) -> dict[str, Array]:
        if kind not in ("linear", "convolution", "convtranspose") or len(node.input) < 2:
            return {}
        found = {}
        for name, value in zip(("weight", "bias"), node.input[1:3], strict=False):
            constant = self._constant(value)
            if constant is not None:
                found[name] = constant.astype(np.float32)
        turned = node.op_type == "MatMul" or (node.op_type == "Gemm" and not _attribute(node, "transB", 0))
        if "weight" in found and turned:
            found["weight"] = found["weight"].swapaxes(-1, -2)
        return found

    def _constant(self, value: str) -> Array | None:
        """What a value is that does not depend on the input; None where it does."""
        onnx = import_optional("onnx", NEEDS, "onnx")
        if value in self.constants:
            return np.asarray(onnx.numpy_helper.to_array(self.constants[value]))
        maker = self.maker.get(value)
        if maker is not None and maker.op_type == "Constant":
            return np.asarray(onnx.numpy_helper.to_array(onnx.helper.get_attribute_value(maker.attribute[0])))
        if maker is None or any(self._depends(source) for source in maker.input):
            return None
        return _OnnxPart(self, [], [value]).arrays({})[value]

    def _number(self, value: str) -> float | None:
        constant = self._constant(value) if value else None
        return float(constant.reshape(-1)[0]) if constant is not None and constant.size == 1 else None

    def _depends(self, value: str) -> bool:
        waiting, seen = [value], set()
        while waiting:
            here = waiting.pop()
            if here == self.input:
                return True
            if here in self.maker and here not in seen:
                seen.add(here)
                waiting += self.maker[here].input
        return False

    def _layer(self, node: Any) -> str:
        """The path of a module: of the weights' name, of what the exporter noted, or of the node's name."""
        for value in node.input:
            if value in self.constants and re.fullmatch(r"[\w.]+\.weight", value):
                return str(value).removesuffix(".weight")
        for note in node.metadata_props:
            if note.key == "pkg.torch.onnx.name_scopes":
                return str([scope for scope in ast.literal_eval(note.value) if scope][-1])
        path = node.name.strip("/").split("/")
        return ".".join(path[:-1] if len(path) > 1 else path) or str(node.output[0])


class _OnnxPart(Part):
    """The nodes that lead from given to wanted values, as a model of their own."""

    def __init__(self, network: OnnxNetwork, given: Collection[Slot], wanted: Sequence[str]) -> None:
        onnx = import_optional("onnx", NEEDS, "onnx")
        self._network, self._given, self._wanted = network, {*given, INPUT}, tuple(wanted)
        needs: dict[Slot, None] = {}
        run: dict[int, Any] = {}
        constants: dict[str, Any] = {}
        waiting = [network.maker[name] for name in self._wanted]
        while waiting:
            node = waiting.pop()
            if id(node) in run:
                continue
            run[id(node)] = node
            for value, slot in self._taken(node):
                if slot is not None:
                    needs[slot] = None
                elif value in network.constants:
                    constants[value] = network.constants[value]
                elif value in network.maker:
                    waiting.append(network.maker[value])
        self.needs = tuple(needs)
        nodes = [self._rewired(run[key]) for key in sorted(run, key=network.order.__getitem__)]
        model = onnx.ModelProto()
        model.CopyFrom(network.model)
        model.ClearField("graph")
        model.ClearField("functions")
        model.graph.name = "part"
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(constants.values())
        model.graph.input.extend(self._declared(_slot_name(slot), self._value(slot)) for slot in self.needs)
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self._wanted)
        self._run: Run = network.load(model) if nodes else lambda _feeds, _wanted: []

    def __call__(self, given: Mapping[Slot, Array]) -> dict[str, Array]:
        return {name: value.astype(np.float32, copy=False) for name, value in self.arrays(given).items()}

    def arrays(self, given: Mapping[Slot, Array]) -> dict[str, Array]:
        """The wanted values in the types that the network has them in."""
        half = import_optional("onnx", NEEDS, "onnx").TensorProto.FLOAT16
        feeds = {}
        for slot in self.needs:
            kind = np.float16 if self._network.types.get(self._value(slot)) == half else np.float32
            feeds[_slot_name(slot)] = np.ascontiguousarray(given[slot], dtype=kind)
        rows = max((len(value) for value in feeds.values()), default=0)
        size = self._network.batch or rows
        if size == rows:
            return dict(zip(self._wanted, self._run(feeds, self._wanted), strict=True))
        # The file is for a fixed number of images: what is missing of the last ones is filled up and left out again.
        found = []
        for first in range(0, rows, size):
            picked = np.minimum(np.arange(first, first + size), rows - 1)
            found.append(self._run({name: value[picked] for name, value in feeds.items()}, self._wanted))
        joined = [np.concatenate(parts)[:rows] for parts in zip(*found, strict=True)]
        return dict(zip(self._wanted, joined, strict=True))

    def _taken(self, node: Any) -> list[tuple[str, Slot | None]]:
        """What a node takes, each with the slot that gives it, if one does."""
        found: list[tuple[str, Slot | None]] = []
        operations, number = self._network.operations, 0
        known = operations.get(node.output[0])
        for value in node.input:
            name = INPUT if value == self._network.input else value
            slot: Slot | None = name if name in self._given else None
            if known is not None and number < len(known.operands) and known.operands[number] == name:
                slot = Port(known.name, number) if Port(known.name, number) in self._given else slot
                number += 1
            found.append((value, slot))
        return found

    def _rewired(self, node: Any) -> Any:
        copied = type(node)()
        copied.CopyFrom(node)
        copied.input[:] = [value if slot is None else _slot_name(slot) for value, slot in self._taken(node)]
        return copied

    def _declared(self, name: str, value: str) -> Any:
        onnx = import_optional("onnx", NEEDS, "onnx")
        network = self._network
        shape = network.shapes.get(value)
        kind = network.types.get(value, onnx.TensorProto.FLOAT)
        sizes = None if shape is None else [None, *shape[1:]]
        return onnx.helper.make_tensor_value_info(name, kind, sizes)

    def _value(self, slot: Slot) -> str:
        return slot if isinstance(slot, str) else self._network.operations[slot.operation].operands[slot.number]


def onnxruntime_at(level: str = "all", threads: int | None = None) -> Load:
    """What runs models of onnx with ONNX Runtime on the CPU, at an optimization level, with so many threads."""
    ort = import_optional("onnxruntime", NEEDS, "onnx")

    def load(model: Any) -> Run:
        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, LEVELS[level])
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return lambda feeds, wanted: session.run(list(wanted), dict(feeds))

    return load


def openvino_at(level: str | None = None, precision: str | None = None, threads: int | None = None) -> Load:
    """What runs models of onnx with OpenVINO on the CPU, with these hints."""
    openvino = import_optional("openvino", NEEDS, "openvino")
    config: dict[str, Any] = {"PERFORMANCE_HINT": (level or "latency").upper()}
    if precision in PRECISIONS:
        config["INFERENCE_PRECISION_HINT"] = PRECISIONS[precision]
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads

    def load(model: Any) -> Run:
        core = openvino.Core()
        request = core.compile_model(core.read_model(model.SerializeToString()), "CPU", config).create_infer_request()

        def run(feeds: Mapping[str, Array], _wanted: Sequence[str]) -> list[Array]:
            found = request.infer(dict(feeds))
            return [np.array(found[place]) for place in range(len(found))]

        return run

    return load


def feeder(model: Model) -> Callable[[Array], Array]:
    """What makes the input of a model that is called with arrays."""
    inputs = replace(model.inputs, dtype="float32")
    return lambda images: np.asarray(normalize(images, inputs, "cpu"))


def _slot_name(slot: Slot) -> str:
    return f"{_GIVEN}{slot}" if isinstance(slot, str) else f"{_GIVEN}{slot.number} of {slot.operation}"


def _attribute(node: Any, name: str, default: int) -> int:
    return next((int(one.i) for one in node.attribute if one.name == name), default)


def _function(node: Any, number: Callable[[str], float | None]) -> str:
    """The name of an operation; what others have a name for is called by that."""
    if node.op_type == "Clip" and len(node.input) >= 3 and (number(node.input[1]), number(node.input[2])) == (0, 6):
        return "relu6"
    return str(node.op_type).lower()
