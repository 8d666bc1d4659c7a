"""The one place that imports an optional package."""

from __future__ import annotations

import importlib
from typing import Any


def import_optional(module: str, what: str, extra: str = "torch") -> Any:
    """A module that not everyone has installed; when it is missing, the error says what needs it and how to get it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        msg = f'{what} needs {module.split(".")[0]}: pip install "compdx[{extra}]"'
        raise ModuleNotFoundError(msg, name=error.name) from error
