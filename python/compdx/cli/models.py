"""From what a user names on the command line to models, pairs, networks and seeds."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from compdx import runtimes, zoo
from compdx.cli.options import given
from compdx.model import Model, Pair
from compdx.seeds import Seeds
from compdx.seeds import load as load_seeds
from compdx.zoo import digits, files, pairs
from compdx.zoo.data import DIGITS
from compdx.zoo.train import RECORD


def pair(
    original: str,
    compressed: str,
    preprocessing: dict[str, Any],
    device: str | None,
    threads: int | None,
    own: tuple[dict[str, Any], dict[str, Any]] = ({}, {}),
) -> Pair:
    """The two models that the options name, on one device, with torch's threads set when it is in use.

    ``own`` holds settings of one of the models, which go before the common ones.
    """
    made = Pair(
        model("--original", original, {**preprocessing, **own[0]}, device, threads),
        model("--compressed", compressed, {**preprocessing, **own[1]}, device, threads),
    )
    set_threads(threads)
    return made


def set_threads(threads: int | None) -> None:
    """Let torch, where it is in use, have so many threads."""
    if threads is not None and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def model(option: str, target: str, settings: dict[str, Any], device: str | None, threads: int | None = None) -> Model:
    """The model that an option names; a model file and the bare module or callable of a factory get the settings."""
    if Path(target).suffix.lower() in runtimes.SUFFIXES:
        return Model(Path(target), device=device, **{**given(threads=threads), **settings})
    made = _stored(target, device) or _made(option, target)
    if not isinstance(made, Model):
        return Model(made, name=target, device=device, **settings)
    if settings:
        names = ", ".join(f"--{key.replace('_', '-')}" for key in settings)
        msg = f"{option} {target} returns a compdx.Model, which brings its own preprocessing; leave out {names}"
        raise ValueError(msg)
    return made


def network(option: str, target: str) -> zoo.Pretrained:
    """The network of the zoo that an option names: a file, the directory of a training, or one that is shipped."""
    path = _network_file(Path(target))
    if path is not None:
        return zoo.load(path)
    if target in zoo.names():
        return zoo.pretrained(target)
    names = ", ".join(zoo.names())
    msg = f"{option} must be a {files.SUFFIX} file, the directory of a training or one of {names}, got {target!r}"
    raise ValueError(msg)


def seeds(path: Path, limit: int | None) -> Seeds:
    """The seeds at a path, or the held-out digits."""
    found = digits.load()[1] if str(path) == DIGITS and not path.exists() else load_seeds(path)
    return found if limit is None else found.select(slice(limit))


def spread(found: Seeds, count: int) -> Seeds:
    """So many of the seeds, evenly spread over them: the first ones of a folder may be all of one class."""
    return found.select(np.linspace(0, len(found) - 1, min(count, len(found))).astype(np.int64))


def _stored(target: str, device: str | None) -> Model | None:
    """The model in a file or directory of compdx, or a shipped one; None when the target is none of these."""
    settings: dict[str, Any] = {"memory_format": "channels_last", "device": device}
    if (Path(target) / pairs.RECORD).is_file():
        return zoo.load_pair(target, device=device or "cpu").model(**settings)
    if _network_file(Path(target)) is None and target not in zoo.names():
        return None
    found = network("", target)
    found.network.to(device or "cpu")
    return found.model(**settings)


def _network_file(path: Path) -> Path | None:
    if path.suffix == files.SUFFIX:
        return path
    if not (path / RECORD).is_file():
        return None
    (only, *_) = [*sorted(path.glob(f"*{files.SUFFIX}")), None]
    if only is None:
        msg = f"the training in {path} is not finished; continue it with compdx train --resume"
        raise ValueError(msg)
    return only


def _made(option: str, target: str) -> Any:
    """What the factory returns that ``package.module:factory`` names."""
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        shipped = ", ".join(["a model file", "a network file or directory of compdx", *zoo.names()])
        msg = f"{option} must be package.module:factory, got {target!r}; or {shipped}"
        raise ValueError(msg)
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        factory = getattr(importlib.import_module(module_name), name)
        return factory if isinstance(factory, Model) else factory()
    except Exception as error:  # anything can go wrong in code that is not ours
        msg = f"{option} {target}: {type(error).__name__}: {error}"
        raise ValueError(msg) from error
