"""OpenVINO: ``.xml`` with its ``.bin``, and ``.onnx``."""

from __future__ import annotations

from typing import Any

from compdx.runtimes.base import Array, Refused, Runner, Runtime, Wanted, files_of, only_input, output_place
from compdx.runtimes.batches import Parts, agree

PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
NUMPY = {"f32": "float32", "f16": "float16", "f64": "float64", "bf16": "bfloat16"}
INTEGERS = {
    f"{letter}{bits}": f"{word}{bits}" for letter, word in (("i", "int"), ("u", "uint")) for bits in (8, 16, 32)
}


class OpenVino(Runner):
    """A compiled model on OpenVINO; its level is the hint of performance.

    On some CPUs OpenVINO computes in bfloat16 unless it is told otherwise: ``settings["precision"]`` says what it is.
    A file for a fixed batch is reshaped to a free one where that gives the same scores. ``options``: ``config`` with
    further properties, ``output``.
    """

    def _open(self, package: Any, wanted: Wanted) -> None:
        core = package.Core()
        model = core.read_model(self.path)
        only_input([node.any_name if node.names else "unnamed" for node in model.inputs])
        names = [node.any_name if node.names else str(place) for place, node in enumerate(model.outputs)]
        self._place = output_place(names, wanted.options)
        node, score = model.input(0), model.output(self._place)
        self.input_shape, self.input_dtype = extents(node.partial_shape), dtype_of(node.element_type)
        self.classes = extents(score.partial_shape)[-1]
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": (wanted.level or "latency").upper(),
            **dict(wanted.options.get("config", {})),
        }
        if wanted.precision is not None:
            config["INFERENCE_PRECISION_HINT"] = PRECISIONS[wanted.precision]
        if wanted.threads is not None:
            config["INFERENCE_NUM_THREADS"] = wanted.threads
        fixed = core.compile_model(model, "CPU", config)
        batch = self.input_shape[0]
        self.session = fixed
        if batch is not None:
            free = self._freed(package, core, model, config)
            if free is not None and self._same(free, fixed, batch):
                self.session, self.settings["batch"] = free, "free, reshaped"
            else:
                parts = Parts([self._ask(fixed)], batch)
                self.settings["batch"] = parts.description
        self._call = self._ask(self.session) if self.settings["batch"].startswith("free") else parts
        self.files = files_of(self.path)
        actual = dtype_of(self.session.get_property("INFERENCE_PRECISION_HINT"))
        if wanted.precision not in (None, actual):
            msg = f"on this CPU it would compute in {actual} instead of {wanted.precision}"
            raise Refused(msg)
        used = {key: self.session.get_property(key) for key in ("INFERENCE_NUM_THREADS", "NUM_STREAMS")}
        self.settings |= {
            "version": package.__version__,
            "level": str(self.session.get_property("PERFORMANCE_HINT")).lower(),
            "precision": actual,
            "threads": int(used["INFERENCE_NUM_THREADS"]),
            "streams": int(used["NUM_STREAMS"]),
            "output": names[self._place],
        }
        if wanted.options.get("config"):
            self.settings["config"] = {key: str(value) for key, value in wanted.options["config"].items()}

    def _run(self, x: Array) -> Array:
        return self._call(x)

    def _ask(self, compiled: Any) -> Any:
        request = compiled.create_infer_request()
        return lambda x: request.infer([x])[self._place]

    def _freed(self, package: Any, core: Any, model: Any, config: dict[str, Any]) -> Any:
        """The model compiled for any batch, None where its graph is made for one."""
        try:
            twin = model.clone()
            twin.reshape(package.PartialShape([-1, *self.input_shape[1:]]))
            return core.compile_model(twin, "CPU", config)
        except RuntimeError:
            return None

    def _same(self, free: Any, fixed: Any, batch: int) -> bool:
        """Whether the reshaped model gives the scores of the model as it is."""
        x = self._probe(2 * batch + 1)
        try:
            together = self._ask(free)(x)
        except RuntimeError:
            return False
        return agree(together, Parts([self._ask(fixed)], batch)(x))


def extents(shape: Any) -> tuple[int | None, ...]:
    """A partial shape as a tuple."""
    return tuple(extent.get_length() if extent.is_static else None for extent in shape)


def dtype_of(kind: Any) -> str:
    """An element type as NumPy calls it."""
    name = kind.get_type_name()
    return NUMPY.get(name) or INTEGERS.get(name, str(name))


OPENVINO = Runtime(
    name="openvino",
    package="openvino",
    extra="openvino",
    suffixes=(".xml", ".onnx"),
    levels=("latency", "throughput"),
    precisions=tuple(PRECISIONS),
    options=("config", "output"),
    runner=OpenVino,
)
