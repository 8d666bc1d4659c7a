"""The public search: `driver.run` with sensible sizes and a screen."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

from compdx import driver, methods
from compdx.findings import Findings
from compdx.methods.base import Method
from compdx.model import Pair
from compdx.screen import Screen
from compdx.seeds import Seeds

CPU_CHAINS = 512
CUDA_CHAINS = 8192

Listener = Callable[[driver.Event], object]


def search(
    pair: Pair | tuple[Any, Any],
    seeds: Seeds | Any,
    *,
    method: str | Method = "mcmc",
    budget: int | None = None,
    chains: int | None = None,
    seed: int = 0,
    device: str | None = None,
    out: str | PathLike[str] | None = None,
    resume: bool = False,
    progress: bool | Listener = True,
) -> Findings:
    """Search for images on which the two models of ``pair`` give different labels.

    Args:
        pair: A `Pair`, or a tuple ``(original, compressed)`` of what `Pair` takes.
        seeds: `Seeds`, or a uint8 array ``[N, C, H, W]`` that is made into one.
        method: Name of a method (``"mcmc"``) or its settings (``MCMC(...)``).
        budget: Most queries spent on one seed, its own included, at least 1. ``None``: the method's own (1,000 for
            ``"mcmc"``).
        chains: Number of slots, i.e. the batch size that both models always see. ``None``: the number of seeds, at
            most 512 on the CPU and 8,192 on CUDA.
        seed: Run seed, 0..2**64 - 1. With the same seed, seeds and models the findings are the same, whatever
            ``chains``, ``device``, interruptions and resumes (as long as the models' own scores are).
        device: Where the search runs: ``None`` or the device of the pair, ``"cpu"`` or ``"cuda[:i]"``.
        out: Directory of the run. Findings are committed there as they come, with a checkpoint of the chains.
            ``None``: everything stays in memory.
        resume: Continue the run in ``out`` where it was left, with the same seeds, pair and settings. A run that
            does not exist yet is started.
        progress: ``True`` shows the progress on stderr, ``False`` nothing; a callable gets every `driver.Event`.

    Returns:
        All findings, sorted by seed index. With ``out`` they are read back from disk.

    Raises:
        TypeError, ValueError: An argument is of the wrong kind or out of range.
        FileExistsError: ``out`` holds a run and ``resume`` is false.
        Exception: Whatever a model raises, after everything found so far was committed.

    The search follows DFlare (Tian et al., TOSEM 2023); ``docs/methods.md`` lists the differences.
    """
    pair = _pair(pair)
    seeds = seeds if isinstance(seeds, Seeds) else Seeds(seeds)
    settings = methods.resolve(method, budget)
    device = pair.device if device is None else "cuda:0" if device == "cuda" else device
    if chains is None:
        chains = min(len(seeds), CUDA_CHAINS if device.startswith("cuda") else CPU_CHAINS)
    with _listener(progress) as listen:
        return driver.run(
            pair,
            seeds,
            settings,
            chains=chains,
            seed=seed,
            device=device,
            out=None if out is None else Path(out),
            resume=resume,
            listen=listen,
        )


def _pair(pair: Pair | tuple[Any, Any]) -> Pair:
    if isinstance(pair, Pair):
        return pair
    if isinstance(pair, tuple) and len(pair) == 2:
        return Pair(*pair)
    msg = f"pair must be a compdx.Pair or a tuple (original, compressed), got {type(pair).__name__}"
    raise TypeError(msg)


def _listener(progress: bool | Listener) -> AbstractContextManager[Listener | None]:
    if progress is True:
        return Screen()
    if progress is False:
        return nullcontext(None)
    if callable(progress):
        return nullcontext(progress)
    msg = f"progress must be True, False or a callable, got {type(progress).__name__}"
    raise TypeError(msg)
