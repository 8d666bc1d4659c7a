"""From one model to the file of every runtime: the same weights, and a record of every tool on the way."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compdx.model import Model, import_optional, tensors_sha256
from compdx.runtimes import RUNTIMES, base, tvm

RECORD = "conversions.json"


class NotMeasured(RuntimeError):
    """An environment cannot be had here; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One conversion.

    Attributes:
        tool: What converted, by the name of its function.
        version: Of its package.
        options: What it was told, as JSON values.
        source: SHA-256 of what it was given: a file, or of a torch module its weights and its graph for these images.
        file: Name of the file that it wrote.
        sha256: Of that file, with all files that belong to it.
    """

    tool: str
    version: str
    options: dict[str, Any] = field(default_factory=dict)
    source: str
    file: str
    sha256: str


Chain = tuple[Step, ...]


class Converter:
    """Makes the files of one model, each once; those of an earlier run in the directory are taken as they are.

    Args:
        model: A model of a torch module, or of a file.
        directory: Where the files go.
        shape: Of an image, ``(C, H, W)``; torch modules are exported for it.
    """

    def __init__(self, model: Model, directory: Path, shape: tuple[int, int, int] | None) -> None:
        self._model, self._directory, self._shape = model, directory, shape
        self._made: dict[str, tuple[Path, Chain]] = {}
        self._program: Any = None
        self._identity: str | None = None

    def file(self, runtime: str, level: str | None) -> tuple[Path, Chain]:
        """The model as a file of this runtime, and how it was made.

        Raises:
            NotMeasured: No conversion leads there, or it failed.
        """
        runner = self._model.runner
        if runner is not None and runtime == runner.runtime:
            return Path(runner.path), ()
        makers: dict[str, Callable[[], tuple[Path, Chain]]] = {
            "torch": self._exported,
            "onnxruntime": self._onnx,
            "openvino": self._openvino,
            "tvm": lambda: self._tvm(level or tvm.LEVEL),
        }
        if runtime not in makers:
            msg = f"no converter to {runtime} is known; give its file"
            raise NotMeasured(msg)
        RUNTIMES[runtime].load()  # before a conversion that nobody could run
        try:
            with quietly():
                return makers[runtime]()
        except (NotMeasured, ModuleNotFoundError):
            raise
        except Exception as error:  # converters raise whatever they like
            msg = f"conversion to {runtime} failed: {type(error).__name__}: {_first_line(error)}"
            raise NotMeasured(msg) from error

    def _exported(self) -> tuple[Path, Chain]:
        torch = self._torch("torch")
        return self._step(
            "model.pt2",
            ("torch.export.export", torch.__version__, {"batch": "dynamic"}),
            lambda path: torch.export.save(self._exported_program(), path),
        )

    def _onnx(self) -> tuple[Path, Chain]:
        torch = self._torch("onnxruntime")
        import_optional("onnxscript", "a conversion to ONNX", "onnx")
        options = {"dynamo": True, "dynamic": [0], "external_data": False, "optimize": True}

        def write(path: Path) -> None:
            torch.onnx.export(
                self._exported_program(),
                f=str(path),
                dynamo=True,
                external_data=False,
                optimize=True,
                verbose=False,
                input_names=["images"],
                output_names=["scores"],
            )

        return self._step("model.onnx", ("torch.onnx.export", torch.__version__, options), write)

    def _openvino(self) -> tuple[Path, Chain]:
        openvino = import_optional("openvino", "an environment of OpenVINO", "openvino")
        runner = self._model.runner
        # Its own default would round the weights to float16.
        options = {"compress_to_fp16": False}

        def write(path: Path) -> None:
            if runner is None:
                shape = [-1, *self._input_shape()[1:]]
                made = openvino.convert_model(self._exported_program(), input=openvino.PartialShape(shape))
            else:
                made = openvino.convert_model(str(runner.path))
            openvino.save_model(made, path, compress_to_fp16=False)

        if runner is not None and runner.runtime not in ("onnxruntime", "litert"):
            msg = f"OpenVINO does not read files of {runner.runtime}"
            raise NotMeasured(msg)
        version = importlib.metadata.version("openvino")
        return self._step("model.xml", ("openvino.convert_model", version, options), write)

    def _tvm(self, level: str) -> tuple[Path, Chain]:
        package = import_optional("tvm", "an environment of TVM", "tvm")
        runner = self._model.runner
        if runner is not None and runner.runtime != "onnxruntime":
            msg = f"TVM does not read files of {runner.runtime}"
            raise NotMeasured(msg)
        options = {"opt_level": int(level), "target": tvm.TARGET}

        def write(path: Path) -> None:
            if runner is None:
                module = tvm.from_exported_program(self._exported_program())
            else:
                module = tvm.from_onnx(runner.path)
            tvm.compiled(package, module, level).export_library(str(path))

        tool = "from_exported_program" if runner is None else "from_onnx"
        version = importlib.metadata.version("apache-tvm")
        return self._step(f"model-tvm-{level}.so", (f"tvm.relax.{tool}", version, options), write)

    def _torch(self, runtime: str) -> Any:
        """torch, for a model that is one of its modules."""
        if self._model.module is None:
            msg = f"there is no converter from {self._model.name!r} to {runtime}"
            raise NotMeasured(msg)
        return import_optional("torch", "a conversion")

    def _exported_program(self) -> Any:
        """The module as an exported program for batches of any size."""
        if self._program is None:
            torch = self._torch("an exported program")
            example = torch.zeros(self._input_shape(), device=self._model.device)
            dynamic = ({0: torch.export.Dim("batch")},)
            with torch.no_grad():
                self._program = torch.export.export(self._model.module, (example,), dynamic_shapes=dynamic)
        return self._program

    def _source(self) -> str:
        """What a file was made from: see `Step.source`."""
        if self._identity is None:
            self._identity = str(self._model.describe()["weights_sha256"])
            if self._model.module is not None:
                program = self._exported_program()
                constants = tensors_sha256(program.constants)
                text = f"{self._identity} {self._input_shape()} {program.graph_module.code} {constants}"
                self._identity = hashlib.sha256(text.encode()).hexdigest()
        return self._identity

    def _input_shape(self) -> tuple[int, int, int, int]:
        """Of two images, as the module takes them. Of one, torch would conclude that the batch is always one."""
        if self._model.inputs.dtype != "float32":
            msg = (
                f"only models with float32 inputs are converted, {self._model.name!r} takes {self._model.inputs.dtype}"
            )
            raise NotMeasured(msg)
        if self._shape is None:
            msg = "the shape of an image has to be known to export a torch module; give shape=(C, H, W)"
            raise NotMeasured(msg)
        channels, height, width = self._shape
        last = self._model.inputs.layout == "NHWC" and self._model.memory_format != "channels_last"
        return (2, height, width, channels) if last else (2, channels, height, width)

    def _step(
        self, name: str, tool: tuple[str, str, dict[str, Any]], write: Callable[[Path], None]
    ) -> tuple[Path, Chain]:
        """The file of one conversion, made now unless it is there."""
        if name in self._made:
            return self._made[name]
        path = self._directory / name
        called, version, options = tool
        step = self._recorded(name)
        wanted = (called, version, options, self._source())
        if step is None or (step.tool, step.version, step.options, step.source) != wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
            step = Step(
                tool=called, version=version, options=options, source=self._source(), file=name, sha256=sha256(path)
            )
            self._record(step)
        self._made[name] = path, (step,)
        return self._made[name]

    def _recorded(self, name: str) -> Step | None:
        """The step that wrote a file in the directory, if the file is still what it wrote."""
        record, path = self._directory / RECORD, self._directory / name
        if not record.is_file() or not path.is_file():
            return None
        steps = json.loads(record.read_text(encoding="utf-8"))
        step = Step(**steps[name]) if name in steps else None
        return step if step is not None and step.sha256 == sha256(path) else None

    def _record(self, step: Step) -> None:
        record = self._directory / RECORD
        steps = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
        temporary = record.with_name(f"{RECORD}.tmp")
        temporary.write_text(json.dumps({**steps, step.file: asdict(step)}, indent=1) + "\n", encoding="utf-8")
        temporary.replace(record)


def sha256(path: Path) -> str:
    """SHA-256 of the bytes of all files of a converted model, in hex."""
    return base.sha256(base.files_of(path))


@contextmanager
def quietly() -> Iterator[None]:
    """What converters warn of is between them and their libraries."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    """What an error says, without the pages that some converters write."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:500] if lines else "no message"
