"""ONNX Runtime: ``.onnx``."""

from __future__ import annotations

from typing import Any

from compdx.runtimes.base import Array, Refused, Runner, Runtime, Wanted, files_of, only_input, output_place
from compdx.runtimes.batches import Call, Parts, usable_cpus

LEVELS = {
    "disable_all": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "layout": "ORT_ENABLE_LAYOUT",
    "all": "ORT_ENABLE_ALL",
}
DTYPES = {"float": "float32", "double": "float64"}


class OnnxRuntime(Runner):
    """An ``onnxruntime.InferenceSession``, ``level`` "all" if nothing else is said.

    ``options``: ``providers`` instead of the one of the device, ``config`` with session entries such as
    ``{"session.x64quantprecision": "1"}``, ``output``.
    """

    def _open(self, package: Any, wanted: Wanted) -> None:
        options = package.SessionOptions()
        level = wanted.level or "all"
        if not hasattr(package.GraphOptimizationLevel, LEVELS[level]):
            msg = f"level {level!r} needs a newer onnxruntime than {package.__version__}"
            raise Refused(msg)
        options.graph_optimization_level = getattr(package.GraphOptimizationLevel, LEVELS[level])
        config = dict(wanted.options.get("config", {}))
        for key, value in config.items():
            options.add_session_config_entry(key, str(value))
        providers = list(wanted.options.get("providers", [provider(wanted.device)]))
        names = [given if isinstance(given, str) else given[0] for given in providers]
        # What is not there, ONNX Runtime would replace by the CPU with no more than a warning.
        if missing := sorted(set(names) - set(package.get_available_providers())):
            msg = f"{', '.join(missing)} is not in this onnxruntime, which has {package.get_available_providers()}"
            raise Refused(msg)

        def start(threads: int | None) -> Any:
            options.intra_op_num_threads = threads or 0
            session = package.InferenceSession(str(self.path), options, providers=providers)
            # Nor does it say more where one is there and cannot start, for want of a library or a device.
            if missing := sorted(set(names) - set(session.get_providers())):
                msg = f"{', '.join(missing)} did not start; ONNX Runtime would compute on {session.get_providers()}"
                raise Refused(msg)
            return session

        session = start(wanted.threads)
        name = only_input([node.name for node in session.get_inputs()])
        node, outputs = session.get_inputs()[0], session.get_outputs()
        self.input_shape = tuple(extent if isinstance(extent, int) else None for extent in node.shape)
        self.input_dtype = dtype_of(node.type)
        score = outputs[output_place([output.name for output in outputs], wanted.options)]
        self.classes = score.shape[-1] if score.shape and isinstance(score.shape[-1], int) else None
        batch = self.input_shape[0] if self.input_shape else None
        workers = (wanted.threads or usable_cpus()) if batch == 1 and wanted.device == "cpu" else 1
        if workers > 1:  # so many images at a time, each in one thread
            session = start(1)
        self.session = session
        self._call: Call = lambda x: session.run([score.name], {name: x})[0]
        if batch is not None:
            parts = Parts([self._call] * workers, batch)
            self._call, self.settings["batch"] = parts, parts.description
        self.files = files_of(self.path)
        used = session.get_providers()
        self.settings |= {"version": package.__version__, "level": level, "providers": used, "output": score.name}
        if config:
            self.settings["config"] = {key: str(value) for key, value in config.items()}

    def _run(self, x: Array) -> Array:
        return self._call(x)


def provider(device: str) -> Any:
    """The execution provider of a device, with its settings."""
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return "CPUExecutionProvider"
    # float32 is float32: by default it would multiply in TF32, with ten bits of mantissa.
    return "CUDAExecutionProvider", {"device_id": int(index or 0), "use_tf32": 0}


def dtype_of(text: str) -> str:
    """``tensor(float)`` as NumPy calls it."""
    inner = text.removeprefix("tensor(").removesuffix(")")
    return DTYPES.get(inner, inner)


ONNX_RUNTIME = Runtime(
    name="onnxruntime",
    package="onnxruntime",
    extra="onnx",
    suffixes=(".onnx",),
    levels=tuple(LEVELS),
    devices=("cpu", "cuda"),
    options=("providers", "config", "output"),
    runner=OnnxRuntime,
)
