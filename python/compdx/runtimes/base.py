"""What all runtimes share: facts that are known without importing them, and the checks around every call."""

from __future__ import annotations

import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compdx.optional import import_optional

Array = npt.NDArray[Any]
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How a file is to be opened; None: what the runtime does when it is not told."""

    level: str | None = None
    precision: str | None = None
    threads: int | None = None
    device: str = "cpu"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Facts of a runtime.

    Attributes:
        name: What it is called.
        package: The module that has to be installed, and ``extra``: the extra of compdx that brings it.
        suffixes: Of the files that it opens. The first runtime that knows a suffix opens such files by default.
        levels: The names of its optimisation levels; empty where a file cannot be opened at another one.
        precisions: In what it can be told to compute.
        devices: Kinds of devices.
        options: What it takes in ``options`` beside these.
        runner: Makes the `Runner`.
    """

    name: str
    package: str
    extra: str
    suffixes: tuple[str, ...]
    levels: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ("float32",)
    devices: tuple[str, ...] = ("cpu",)
    options: tuple[str, ...] = ()
    runner: Callable[[Runtime, Path, Wanted], Runner]

    def load(self) -> Any:
        """Its package; ``ModuleNotFoundError`` with the ``pip install`` line when it is missing."""
        return import_optional(self.package, f"a model file for {self.name}", self.extra)

    def check(self, wanted: Wanted) -> None:
        """``ValueError`` for what this runtime does not have."""
        for what, value, known in (
            ("level", wanted.level, self.levels),
            ("precision", wanted.precision, self.precisions),
            ("device", wanted.device.partition(":")[0], self.devices),
            *(("options", key, self.options) for key in wanted.options),
        ):
            if value is not None and value not in known:
                names = ", ".join(map(repr, known))
                msg = f"{what} must be {f'one of {names}' if names else 'left out'} for {self.name}, got {value!r}"
                raise ValueError(msg)
        threads = wanted.threads
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            msg = f"threads must be a positive integer, got {threads!r}"
            raise ValueError(msg)


class Runner(ABC):
    """A deployed model file as a function: float32 ``[N, ...]`` in, float32 scores ``[N, K]`` out, both NumPy arrays.

    Attributes:
        runtime: The name of the runtime.
        path: The file, and ``files`` all files that the model consists of.
        input_shape: As the file declares it, batch first; None is free.
        input_dtype: The file's own, ``"float32"``, ``"uint8"``, ...
        classes: The number of scores of a row; None where the file leaves it open.
        settings: What is really used, as JSON values: runtime, version, level, precision, threads, device, batch and
            what else the runtime tells. None: the runtime decides and does not say. ``precision`` is ``"file"`` where
            nothing but the file decides. ``batch`` is ``"free"``, or how a file for a fixed number of images is given
            any number.
        session: The runtime's own object.

    What the file takes and returns in another dtype than float32 is converted: to and from integers by the file's own
    scale and zero point (``settings`` has them), to integers without these if the values are whole numbers. A Runner is
    for one thread at a time. Nothing is random.
    """

    runtime: str
    path: Path
    files: tuple[Path, ...]
    input_shape: tuple[int | None, ...]
    input_dtype: str
    classes: int | None
    settings: dict[str, Any]
    session: Any

    def __init__(self, facts: Runtime, path: Path, wanted: Wanted) -> None:
        self.runtime, self.path, self.files = facts.name, path, (path,)
        self._input_scale: Scale | None = None
        self._output_scale: Scale | None = None
        self.settings = {
            "runtime": facts.name,
            "version": None,
            "level": wanted.level,
            "precision": "file" if wanted.precision in (None, "float32") else wanted.precision,
            "threads": wanted.threads,
            "device": wanted.device,
            "batch": "free",
        }
        with self.failing("open"):
            self._open(self._load(facts), wanted)
        if self.input_dtype != "float32":
            self.settings["input_dtype"] = self.input_dtype
        for name, scale in (("input_scale", self._input_scale), ("output_scale", self._output_scale)):
            if scale is not None:
                self.settings[name] = scale.facts()

    def _load(self, facts: Runtime) -> Any:
        return facts.load()

    @abstractmethod
    def _open(self, package: Any, wanted: Wanted) -> None:
        """Set the attributes and complete ``settings``."""

    @abstractmethod
    def _run(self, x: Array) -> Array:
        """The scores of a batch in the file's own dtype, as the runtime returns them."""

    def __call__(self, x: Scores) -> Scores:
        """Scores ``[N, K]`` of inputs ``[N, ...]``, N >= 1.

        Raises:
            TypeError: ``x`` is no float32 array.
            ValueError: ``x`` has not the shape that the file declares, or the runtime fails.
        """
        self._check_input(x)
        fed = self._encode(x)
        with self.failing("run"):
            out = np.asarray(self._run(np.ascontiguousarray(fed)))
        if out.ndim != 2 or len(out) != len(x):
            msg = f"{self.path.name} must return scores [{len(x)}, K] for {len(x)} images, got {list(out.shape)}"
            raise ValueError(msg)
        if self._output_scale is not None:
            return self._output_scale.decode(out)
        if not (np.issubdtype(out.dtype, np.floating) or out.dtype.name == "bfloat16"):
            msg = f"{self.path.name} must return floating scores [N, K], got {out.dtype}"
            raise ValueError(msg)
        return out.astype(np.float32, copy=False)

    def fingerprint(self) -> str:
        """SHA-256 of the bytes of all ``files``, in hex."""
        return sha256(self.files)

    def __repr__(self) -> str:
        return f"Runner({str(self.path)!r}, runtime={self.runtime!r})"

    @contextmanager
    def failing(self, operation: str) -> Iterator[None]:
        """Whatever a runtime raises becomes a ``ValueError`` that names the file and what was tried."""
        try:
            yield
        except (ModuleNotFoundError, MemoryError):
            raise
        except Exception as error:
            known = isinstance(error, Refused)
            what = str(error).strip() if known else f"{type(error).__name__}: {str(error).strip()}"
            msg = f"{self.runtime} cannot {operation} {self.path}: {what}"
            raise ValueError(msg) from (None if known else error)

    def _probe(self, batch: int) -> Array:
        """Inputs in the file's own dtype to try it with, in 0..1 or all over an integer; the same at every call."""
        extents = [32 if extent is None else extent for extent in self.input_shape[1:]]
        x = np.random.default_rng(0).random((batch, *extents), dtype=np.float32)
        whole = self._input_scale is None and np.issubdtype(self.input_dtype, np.integer)
        return self._encode(np.rint(x * np.iinfo(self.input_dtype).max) if whole else x)

    def _check_input(self, x: Any) -> None:
        if not isinstance(x, np.ndarray) or x.dtype != np.float32:
            got = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
            msg = f"x must be a float32 NumPy array, got {got}"
            raise TypeError(msg)
        if len(x) == 0 or not fits(x.shape, self.input_shape):
            other = {"NHWC": (0, 2, 3, 1), "NCHW": (0, 3, 1, 2)}
            hints = [
                f'; it looks like a model for layout="{name}"'
                for name, axes in other.items()
                if x.ndim == 4 and fits(tuple(x.shape[axis] for axis in axes), self.input_shape)
            ]
            declared = ", ".join("N" if n is None else str(n) for n in (None, *self.input_shape[1:]))
            msg = f"{self.path.name} takes [{declared}], got {list(x.shape)}{''.join(hints)}"
            raise ValueError(msg)

    def _encode(self, x: Scores) -> Array:
        if self.input_dtype == "float32":
            return x
        if self._input_scale is not None:
            return self._input_scale.encode(x)
        dtype = np.dtype(self.input_dtype)
        if np.issubdtype(dtype, np.integer):
            limits = np.iinfo(dtype)
            if not (np.all(x == np.rint(x)) and x.min() >= limits.min and x.max() <= limits.max):
                msg = (
                    f"{self.path.name} takes {dtype} and declares no scale, so its inputs must be whole numbers from "
                    f"{limits.min} to {limits.max}, got {x.min():.6g}..{x.max():.6g}; grey levels as they are: "
                    "bounds=(0, 255)"
                )
                raise ValueError(msg)
        return x.astype(dtype)


class Refused(Exception):
    """A file that cannot be used, for a reason that needs no more than its message."""


@dataclass(frozen=True)
class Scale:
    """The affine quantization of one tensor: ``real = (integer - zero_point) * scale``."""

    dtype: str
    scale: float
    zero_point: int

    def facts(self) -> dict[str, Any]:
        """As JSON values."""
        return {"dtype": self.dtype, "scale": self.scale, "zero_point": self.zero_point}

    def encode(self, x: Scores) -> Array:
        """The nearest integer, halves away from zero as runtimes round, clamped to the dtype."""
        scaled = x.astype(np.float64) / self.scale
        limits = np.iinfo(self.dtype)
        whole = np.copysign(np.floor(np.abs(scaled) + 0.5), scaled) + self.zero_point
        encoded: Array = np.clip(whole, limits.min, limits.max).astype(self.dtype)
        return encoded

    def decode(self, out: Array) -> Scores:
        """The real numbers."""
        decoded: Scores = (out.astype(np.float32) - np.float32(self.zero_point)) * np.float32(self.scale)
        return decoded


def files_of(path: Path) -> tuple[Path, ...]:
    """The files that a model file consists of: the weights of ``.xml`` and large ones of ``.onnx`` lie beside it."""
    if path.suffix == ".onnx":
        return path, *external_data(path)
    beside = path.with_suffix(".bin")
    return (path, beside) if path.suffix == ".xml" and beside.is_file() else (path,)


def external_data(path: Path) -> list[Path]:
    """The files beside an ONNX file that hold its large tensors.

    Read from the bytes themselves, so that it needs no package: a location is the protocol buffer entry
    ``{key: "location", value: name}``, with the length of the name before it, seven bits a byte.
    """
    names = set()
    blob = path.read_bytes()
    for match in re.finditer(rb"\n\x08location\x12([\x80-\xff]?[\x00-\x7f])", blob):
        length = sum((byte & 127) << 7 * place for place, byte in enumerate(match[1]))
        name = blob[match.end() : match.end() + length]
        file = path.parent / name.decode("utf-8", "replace")
        if b"\0" not in name and file.is_file():
            names.add(file)
    return sorted(names)


def sha256(files: Iterable[Path]) -> str:
    """SHA-256 of the bytes of files, one after the other, in hex."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def fits(shape: Sequence[int], declared: Sequence[int | None]) -> bool:
    """Whether an input of this shape has the declared one, whatever its batch."""
    return len(shape) == len(declared) and all(
        wanted is None or n == wanted for n, wanted in zip(shape[1:], declared[1:], strict=True)
    )


def only_input(names: Sequence[str]) -> str:
    """The name of the only input of a model."""
    if len(names) != 1:
        msg = f"a classifier has one input, this has {len(names)}: {', '.join(names) or 'none'}"
        raise Refused(msg)
    return names[0]


def output_place(names: list[Any], wanted: Mapping[str, Any]) -> int:
    """Which output holds the scores: the one named in ``options["output"]``, else the first."""
    name = wanted.get("output", names[0] if names else None)
    if name not in names:
        msg = f"options['output'] must be one of {', '.join(map(repr, names))}, got {name!r}"
        raise Refused(msg)
    return names.index(name)


def as_path(path: str | os.PathLike[str]) -> Path:
    """An existing file."""
    place = Path(path)
    if not place.exists():
        msg = f"there is no model file {place}"
        raise FileNotFoundError(msg)
    return place
