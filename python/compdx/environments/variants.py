"""One model in many environments, with the same weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from typing import Any

from compdx import runtimes
from compdx.environments import torch_modes
from compdx.environments.child import Child
from compdx.environments.conversions import Chain, Converter, NotMeasured, sha256
from compdx.environments.environment import THREADS_BY_PROCESS, Environment
from compdx.model import Model, Pair
from compdx.ops.checks import check_shape

FED = ("mean", "std", "bounds", "layout", "outputs", "class_offset")
"""How a file is fed and read, where it is not as the model that it was made of."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Variant:
    """A model as it runs in one environment. It is opened when it is first asked.

    Attributes:
        name: What tables call it: the notation of its environment, or the name of the model.
        environment: Where it runs; None of a model that was brought as it is.
        chain: The conversions that led to its file, first to last.
        path: That file; None of a module in this process.
        reason: Why it cannot be had; None as far as is known.
        make: Opens it.
    """

    name: str
    environment: Environment | None
    chain: Chain = ()
    path: Path | None = None
    reason: str | None = None
    make: Callable[[], Model] | None = field(default=None, repr=False)

    @cached_property
    def model(self) -> Model:
        """The model, opened.

        Raises:
            NotMeasured: The environment cannot be had.
            Exception: What its runtime raises.
        """
        if self.make is None:
            raise NotMeasured(self.reason or "nothing is known of it")
        return self.make()

    @property
    def child(self) -> Child | None:
        """The process that the opened model runs in, where it has one of its own."""
        return next((found for found in vars(self.model).values() if isinstance(found, Child)), None)

    def pair(self, other: Variant) -> Pair:
        """This environment and another one as a `Pair` for `search` and `verify`, this one as the original.

        Raises:
            NotMeasured: One of them cannot be had.
        """
        return Pair(self.model, other.model)

    def describe(self) -> dict[str, Any]:
        """All that is known of the variant, as JSON values."""
        child, module = self.child, self.model.module
        return {
            "name": self.name,
            "environment": None if self.environment is None else self.environment.to_json(),
            "chain": [asdict(step) for step in self.chain],
            "file_sha256": None if self.path is None else sha256(self.path),
            "model": self.model.describe(),
            "graph_sha256": None if module is None else torch_modes.graph_sha256(module),
            "process": None if child is None else child.settings,
        }

    @classmethod
    def of(cls, subject: Variant | Model) -> Variant:
        """The variant itself, or a model as it is."""
        if isinstance(subject, Variant):
            return subject
        if isinstance(subject, Model):
            return cls(name=subject.name, environment=None, make=lambda: subject)
        msg = f"expected a compdx.environments.Variant or a compdx.Model, got {type(subject).__name__}"
        raise TypeError(msg)


def variants(
    model: Model | Any,
    environments: Iterable[Environment | str],
    directory: str | PathLike[str],
    *,
    shape: tuple[int, int, int] | None = None,
    files: Mapping[str, str | PathLike[str] | Mapping[str, Any]] | None = None,
) -> list[Variant]:
    """One model in every environment, with the same weights.

    A torch module runs in this process on ``"torch"``; for other runtimes it is exported with a free batch and
    converted: to ONNX by ``torch.onnx``, to OpenVINO and to TVM (Relax) from the exported program. A model file is
    converted by the runtimes that read its format: OpenVINO reads ONNX and TFLite, TVM reads ONNX. Weights stay
    float32. An environment with an ``isa``, and threads where a runtime fixes them when it starts, run in a process of
    their own.

    Args:
        model: A `Model`, or what ``Model(obj)`` takes. All variants are fed as it is.
        environments: Where to, as `Environment` or in its notation.
        directory: Where the files go. Files of an earlier call are taken when model, tool, version and options are
            the same.
        shape: ``(C, H, W)`` of the images; needed to export a torch module.
        files: Deployed files of the same model that were made elsewhere, by runtime: ``{"litert": "model.tflite"}``, or
            ``{"litert": {"path": "model.tflite", "layout": "NHWC"}}`` where the file wants something else than the
            model: any of `FED`, as for `Model`. Such a file has no twin.

    Returns:
        A `Variant` for each environment, in order. Variants of a torch module have it as twin, so that a gradient
        search can go through it; in 16 bits where the environment is.
        What cannot be had (no such package, no converter, a conversion that fails) has a ``reason``.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind; a notation is none.
    """
    model = model if isinstance(model, Model) else Model(model)
    wanted = [Environment.of(environment) for environment in environments]
    if shape is not None:
        check_shape(shape)
    given = {runtime: _given(runtime, file) for runtime, file in (files or {}).items()}
    converter = Converter(model, Path(directory), shape)
    return [_variant(model, environment, converter, given) for environment in wanted]


def _given(runtime: str, file: str | PathLike[str] | Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The path of a file that was made elsewhere, and how it is fed."""
    fed = {key: value for key, value in file.items() if key != "path"} if isinstance(file, Mapping) else {}
    unknown = sorted(fed.keys() - set(FED))
    if runtime not in runtimes.RUNTIMES or unknown or (isinstance(file, Mapping) and "path" not in file):
        kinds = f"names of runtimes with a path, or with 'path' and any of {', '.join(map(repr, FED))}"
        msg = f"files: expected {kinds}, got {runtime!r}: {file!r}"
        raise ValueError(msg)
    return Path(file["path"] if isinstance(file, Mapping) else file), fed


def _variant(
    model: Model,
    environment: Environment,
    converter: Converter,
    files: Mapping[str, tuple[Path, dict[str, Any]]],
) -> Variant:
    about: dict[str, Any] = {"name": str(environment), "environment": environment}
    inside = environment.runtime == "torch" and model.module is not None and "torch" not in files
    if inside and not environment.variables:
        return Variant(**about, make=partial(_module, model, environment))
    if environment.runtime in files:
        path, fed = files[environment.runtime]
        return Variant(**about, path=path, make=partial(_file, model, environment, path, environment.level, fed))
    try:
        path, chain = converter.file(environment.runtime, environment.level)
    except (NotMeasured, ModuleNotFoundError) as error:
        return Variant(**about, reason=str(error))
    # TVM has optimized when the file was made here.
    level = None if chain and environment.runtime == "tvm" else environment.level
    return Variant(**about, path=path, chain=chain, make=partial(_file, model, environment, path, level))


def _module(model: Model, environment: Environment) -> Model:
    """The module of a model as it runs in an environment of torch in this process."""
    module = torch_modes.module_in(model, environment)
    changes: dict[str, Any] = {"name": str(environment), "device": environment.device}
    if module is model.module:
        return model.replace(**changes)
    return model.replace(module, **changes, twin=torch_modes.twin_in(model, environment))


def _file(
    model: Model, environment: Environment, path: Path, level: str | None, fed: Mapping[str, Any] | None = None
) -> Model:
    """A file of the model as it runs in an environment, fed as the model where ``fed`` says nothing else."""
    settings: dict[str, Any] = {
        **dataclasses.asdict(model.inputs),
        "layout": "NCHW" if model.memory_format == "channels_last" else model.inputs.layout,
        "outputs": model.outputs,
        "class_offset": model.class_offset,
        "name": str(environment),
        **(fed or {}),
    }
    if not fed:
        with suppress(TypeError):  # a file without a twin has no gradients
            settings["twin"] = torch_modes.twin_in(model, environment)
    how: dict[str, Any] = {
        "runtime": environment.runtime,
        "level": level,
        "precision": environment.precision,
        "device": environment.device,
    }
    if not environment.variables:
        return Model(path, **settings, **how, threads=environment.threads)
    how["threads"] = None if environment.runtime in THREADS_BY_PROCESS else environment.threads
    return Model(Child(path, environment.variables, how), **settings, device=environment.device)
