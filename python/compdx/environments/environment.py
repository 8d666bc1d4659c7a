"""Where a model runs: the settings that are not the model, and their short notation."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from compdx.ops.checks import integer, one_of, within
from compdx.runtimes import RUNTIMES

PRECISIONS = ("float32", "bfloat16", "float16")
MOST = 4096

# Instruction sets, least first: what caps PyTorch's own kernels, and what caps oneDNN.
ISAS: dict[str, tuple[str, str]] = {
    "sse41": ("default", "SSE41"),
    "avx2": ("avx2", "AVX2"),
    "avx2_vnni": ("avx2", "AVX2_VNNI"),
    "avx512": ("avx512", "AVX512_CORE"),
    "avx512_vnni": ("avx512", "AVX512_CORE_VNNI"),
    "avx512_bf16": ("avx512", "AVX512_CORE_BF16"),
}
# Runtimes whose kernels can be capped: PyTorch's ATen and oneDNN, and OpenVINO's oneDNN.
CAPPED = ("torch", "openvino")
# Runtimes whose number of threads is fixed when their library is first used.
THREADS_BY_PROCESS = {"tvm": "TVM_NUM_THREADS"}

_SHORT = {"f32": "float32", "fp32": "float32", "bf16": "bfloat16", "f16": "float16", "fp16": "float16"}
_NUMBERS = ("threads", "batch")
_DEVICE = re.compile(r"cpu|cuda\d*")
_PLACE = re.compile(r"cpu|cuda(:\d+)?")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A runtime and how it is told to run: all that should change nothing but the last bits of a model's scores.

    Args:
        runtime: One of `compdx.runtimes.RUNTIMES`: ``"torch"``, ``"onnxruntime"``, ``"openvino"``, ``"litert"``,
            ``"keras"`` or ``"tvm"``.
        level: What the runtime does to the model before it runs, in the runtime's own words (its ``levels``): graph
            optimizations of ONNX Runtime, the back end of ``torch.compile``, the performance mode of OpenVINO, the
            kernels of LiteRT, the optimization level that TVM builds with. ``None``: the runtime's default.
        device: ``"cpu"`` or ``"cuda[:i]"``.
        precision: Of the arithmetic: ``"float32"``, ``"bfloat16"`` or ``"float16"``. On torch a 16-bit precision is
            autocast. The file holds the same float32 weights.
        threads: CPU threads of the runtime, 1..4096. ``None``: its own choice.
        batch: Images in a call, 1..4096. ``None``: what `compare` is told.
        isa: The largest instruction set that ATen's and oneDNN's kernels may use, of `ISAS`, not MKL's; for ``"torch"``
            and ``"openvino"`` on the CPU. ``None``: what the machine has. It is read once a process, so the model runs
            in a process of its own.

    Raises:
        TypeError, ValueError: A setting is of the wrong kind or out of range, or the runtime does not know it.

    Whether the runtime is installed is not asked here.
    """

    runtime: str
    level: str | None = None
    device: str = "cpu"
    precision: str = "float32"
    threads: int | None = None
    batch: int | None = None
    isa: str | None = None

    def __post_init__(self) -> None:
        one_of("runtime", self.runtime, tuple(RUNTIMES))
        facts = RUNTIMES[self.runtime]
        if self.level is not None:
            one_of(f"level of {self.runtime}", self.level, facts.levels)
        if not isinstance(self.device, str) or not _PLACE.fullmatch(self.device):
            msg = f"device: expected 'cpu' or 'cuda[:index]', got {self.device!r}"
            raise ValueError(msg)
        if self.device == "cuda":
            object.__setattr__(self, "device", "cuda:0")
        one_of(f"kind of device of {self.runtime}", self.device.partition(":")[0], facts.devices)
        one_of(f"precision of {self.runtime}", self.precision, facts.precisions)
        for name in _NUMBERS:
            if getattr(self, name) is not None:
                within(name, getattr(self, name), 1, MOST)
        if self.isa is None:
            return
        one_of("isa", self.isa, tuple(ISAS))
        if self.runtime not in CAPPED or self.device != "cpu":
            msg = (
                f"isa: expected None, as only {' and '.join(CAPPED)} on the CPU have a cap, got {self.isa!r} for {self}"
            )
            raise ValueError(msg)

    @classmethod
    def parse(cls, text: str) -> Environment:
        """The environment of a short notation: the runtime, then what differs from its defaults, separated by colons.

        ``onnxruntime:all:threads=1``, ``torch:inductor``, ``torch:bfloat16``, ``openvino:bf16:batch=8``,
        ``torch:isa=avx2``, ``torch:cuda1``. A word is a level, a precision or a device; numbers and the instruction
        set are ``name=value``. The order behind the runtime is free, and ``str()`` writes the notation back.

        Raises:
            TypeError, ValueError: The text is none, or says something twice or unknown.
        """
        if not isinstance(text, str):
            msg = f"text: expected the notation of an environment, got {type(text).__name__}"
            raise TypeError(msg)
        runtime, *words = (word.strip().lower() for word in text.split(":"))
        one_of("runtime", runtime, tuple(RUNTIMES))
        found: dict[str, Any] = {}
        for word in words:
            name, value = _read(word, runtime, text)
            if name in found:
                msg = f"{text}: {name} is given twice, as {found[name]} and as {value}"
                raise ValueError(msg)
            found[name] = value
        return cls(runtime=runtime, **found)

    def __str__(self) -> str:
        words = [self.runtime]
        if self.level is not None:
            words.append(self.level)
        if self.device != "cpu":
            words.append(self.device.replace(":", ""))
        if self.precision != "float32":
            words.append(self.precision)
        words += [f"{name}={value}" for name in (*_NUMBERS, "isa") if (value := getattr(self, name)) is not None]
        return ":".join(words)

    @property
    def variables(self) -> dict[str, str]:
        """Variables of the process that the environment needs; with any, the model runs in a process of its own."""
        found = {}
        if self.isa is not None:
            found["ATEN_CPU_CAPABILITY"], found["ONEDNN_MAX_CPU_ISA"] = ISAS[self.isa]
        if self.threads is not None and self.runtime in THREADS_BY_PROCESS:
            found[THREADS_BY_PROCESS[self.runtime]] = str(self.threads)
        return found

    def replace(self, **changes: Any) -> Environment:
        """The same environment with other settings."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """All settings as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, environment: Environment | str) -> Environment:
        """The environment itself, or that of a short notation."""
        return environment if isinstance(environment, Environment) else cls.parse(environment)


def _read(word: str, runtime: str, text: str) -> tuple[str, Any]:
    """One word of the notation as a setting and its value."""
    name, equals, value = word.partition("=")
    if equals and name in _NUMBERS:
        if not value.isdecimal():
            msg = f"{text}: {name}: expected a number, got {value!r}"
            raise ValueError(msg)
        return name, integer(name, int(value))
    if equals and name in ("isa", "level", "precision"):
        return name, _SHORT.get(value, value)
    if not equals:
        if word in RUNTIMES[runtime].levels:
            return "level", word
        if _SHORT.get(word, word) in PRECISIONS:
            return "precision", _SHORT.get(word, word)
        if _DEVICE.fullmatch(word):
            index = word.removeprefix("cuda")
            return "device", word if word in ("cpu", "cuda") else f"cuda:{int(index)}"
    facts = RUNTIMES[runtime]
    known = [*facts.levels, *facts.precisions, *facts.devices, "threads=N", "batch=N", "isa=NAME"]
    msg = f"{text}: {word!r} is none of what {runtime} knows: {', '.join(known)}"
    raise ValueError(msg)
