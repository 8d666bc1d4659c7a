"""Search for images on which environments differ where the given ones show no difference."""

from __future__ import annotations

import dataclasses
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compdx import api, methods
from compdx.environments.comparing import reason_of
from compdx.environments.comparison import Comparison, Search
from compdx.environments.recording import slug
from compdx.environments.torch_modes import same_twin
from compdx.methods.base import Method
from compdx.model import Pair
from compdx.ops.checks import check_seed, within
from compdx.seeds import Seeds
from compdx.store import StoreError


def search(
    comparison: Comparison,
    images: Seeds | npt.NDArray[np.uint8],
    *,
    method: str | Method = "mcmc",
    budget: int | None = None,
    limit: int = 100,
    seed: int = 0,
    directory: str | PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Comparison:
    """Search between the first environment of a comparison and every other one.

    Args:
        comparison: What `compare` returned in this process.
        images: The images that were compared; the search starts from the first ``limit`` on which the two agree.
        method, budget, seed: As for `compdx.search`. ``"mcmc"`` looks at scores alone and suits all environments.
            ``"gradient"`` goes through the twins, and needs two that differ: two environments of one torch module in
            float32 have one twin, whose difference from itself has no gradient.
        limit: Images to start from, 1 or more.
        directory: Runs are kept there, one a pair; ``None``: in memory.
        resume: Continue the runs that are there.
        progress: Whether to show the progress on stderr.

    Returns:
        The comparison with its ``searches``. A pair that cannot be searched has a ``reason``, and so has one of which
        a model failed or a process died meanwhile; what was found before is in its run, if there is a ``directory``.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind or out of range.
        KeyError: The comparison was loaded, so there is nothing to ask.
        FileExistsError, StoreError: ``directory`` holds runs and ``resume`` is false, or cannot be written.
    """
    seeds = Seeds.of(images)
    check_seed(seed)
    within("limit", limit, 1, 1 << 40)
    settings = methods.resolve(method, budget)
    names = comparison.names
    found = []
    for index, name in enumerate(names[1:], 1):
        about: dict[str, Any] = {"a": names[0], "b": name, "method": settings.name}
        difference = comparison.difference(names[0], name)
        if difference.reason is not None:
            found.append(Search(**about, reason=f"not measured: {difference.reason}"))
            continue
        a, b = comparison.variant(names[0]), comparison.variant(name)
        try:
            pair = a.pair(b)
            reason = _refusal(pair, settings)
        except Exception as error:
            reason = reason_of(error)
            if reason is None:
                raise
        if reason is not None:
            found.append(Search(**about, reason=f"not measured: {reason}"))
            continue
        agreeing = np.setdiff1d(np.arange(len(seeds)), difference.rows)[:limit]
        if not len(agreeing):
            found.append(Search(**about, reason="not measured: the two differ on every image"))
            continue
        run = None if directory is None else Path(directory) / slug(index, names)
        try:
            findings = api.search(
                pair,
                seeds.select(agreeing),
                method=settings,
                seed=seed,
                out=run,
                resume=resume and run is not None,
                progress=progress,
            )
        except (FileExistsError, StoreError):
            raise
        except Exception as error:  # of one of the two; the others are searched
            reason = reason_of(error)
            if reason is None:
                raise
            found.append(Search(**about, reason=f"the search ended: {reason}", run=None if run is None else str(run)))
            continue
        found.append(
            Search(
                **about,
                seeds=len(agreeing),
                found=len(set(findings.table["seed_index"].to_pylist())),
                queries=int(findings.summary.queries),
                run=None if run is None else str(run),
            )
        )
    return dataclasses.replace(comparison, searches=tuple(found))


def _refusal(pair: Pair, settings: Method) -> str | None:
    """Why a method cannot tell two environments apart."""
    if not getattr(settings, "white_box", False):
        return None
    try:
        twins = pair.original.twin, pair.compressed.twin
    except TypeError as error:
        return str(error)
    if same_twin(*twins):
        return "both environments have one twin, and its difference from itself has no gradient; use method='mcmc'"
    return None
