"""Search methods: one module each, all with the same ask/tell loop."""

from __future__ import annotations

from dataclasses import is_dataclass, replace
from typing import TYPE_CHECKING, Any

from compdx.methods.gradient import Gradient
from compdx.methods.mcmc import MCMC

if TYPE_CHECKING:
    from compdx.methods.base import Method

METHODS: dict[str, Any] = {"mcmc": MCMC, "gradient": Gradient}


def resolve(method: str | Method, budget: int | None = None) -> Method:
    """Return the settings of a method given by name or as settings, with ``budget`` put in when it is not None.

    Raises:
        TypeError, ValueError: ``method`` is neither a name nor settings, or ``budget`` is not what it takes.
    """
    if isinstance(method, str):
        if method not in METHODS:
            msg = f"method must be one of {', '.join(map(repr, METHODS))} or a method's settings, got {method!r}"
            raise ValueError(msg)
        found: Method = METHODS[method]()
    else:
        if isinstance(method, type) or not is_dataclass(method) or not hasattr(method, "start"):
            got = f"the class {method.__name__}" if isinstance(method, type) else type(method).__name__
            msg = f"method must be the name of a method or its settings, such as MCMC(), got {got}"
            raise TypeError(msg)
        found = method
    return found if budget is None else replace(found, budget=budget)  # type: ignore[type-var]
