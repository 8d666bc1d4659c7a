"""Search methods: one module each, all with the same ask/tell loop."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from compdx.methods.mcmc import MCMC

if TYPE_CHECKING:
    from compdx.methods.base import Method

METHODS: dict[str, Any] = {"mcmc": MCMC}


def resolve(method: str | Method, budget: int | None = None) -> Method:
    """Return the settings of a method given by name or as settings, with ``budget`` put in when it is not None."""
    if isinstance(method, str):
        if method not in METHODS:
            msg = f"method: expected one of {', '.join(map(repr, METHODS))} or a method's settings, got {method!r}"
            raise ValueError(msg)
        found: Method = METHODS[method]()
    else:
        found = method
    return found if budget is None else replace(found, budget=budget)  # type: ignore[type-var]
