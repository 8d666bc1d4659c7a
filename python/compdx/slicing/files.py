"""Profiles and slices as safetensors: arrays, and what is to be known of them as JSON in the header."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compdx.model import import_optional

NEEDS = "a file of slicing"
SUFFIX = ".safetensors"
VERSION = 1


def write(path: str | os.PathLike[str], kind: str, arrays: dict[str, npt.NDArray[Any]], about: dict[str, Any]) -> Path:
    """Write a file, which is replaced in one step, and return its path; ``ValueError`` for another suffix."""
    path = Path(path)
    if path.suffix != SUFFIX:
        msg = f"path must end in {SUFFIX}, got {path}"
        raise ValueError(msg)
    numpy = import_optional("safetensors.numpy", NEEDS)
    header = {"compdx": kind, "version": VERSION, **about}
    metadata = {key: json.dumps(value, allow_nan=False) for key, value in header.items()}
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(numpy.save({key: np.ascontiguousarray(array) for key, array in arrays.items()}, metadata))
    temporary.replace(path)
    return path


@contextmanager
def complete(path: str | os.PathLike[str], kind: str) -> Iterator[None]:
    """What is missing in a file inside becomes a ``ValueError`` that names the file."""
    try:
        yield
    except (AttributeError, KeyError, TypeError) as error:
        msg = f"{path}: not a whole {kind}: {error!r}"
        raise ValueError(msg) from error


def read(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """The arrays and the header of a file that `write` wrote. Nothing pickled is loaded.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds something else, or is of another version.
    """
    path = Path(path)
    safetensors = import_optional("safetensors", NEEDS)
    if not path.is_file():
        msg = f"path must be a {SUFFIX} file, but there is no file {path}"
        raise FileNotFoundError(msg)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            about = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except (safetensors.SafetensorError, ValueError) as error:
        msg = f"{path}: not a readable safetensors file: {error}"
        raise ValueError(msg) from error
    found = (about.pop("compdx", None), about.pop("version", None))
    if found != (kind, VERSION):
        msg = f"{path}: expected a {kind} of version {VERSION}, got {found[0]} of version {found[1]}"
        raise ValueError(msg)
    return arrays, about
