"""The public search: `driver.run` with sensible sizes and a screen."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

from compdx import driver, methods
from compdx.engine import Numerics
from compdx.findings import Findings
from compdx.methods.base import Method
from compdx.model import Pair
from compdx.ops.checks import check_flag, check_seed, within
from compdx.screen import Screen
from compdx.seeds import Seeds

MOST_CHAINS = 1 << 24
MOST_THREADS = 4096

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
    threads: int | None = None,
    engine: str = "auto",
    compile: bool = False,
    numerics: Numerics | None = None,
    out: str | PathLike[str] | None = None,
    resume: bool = False,
    progress: bool | Listener = True,
) -> Findings:
    """Search for images on which the two models of ``pair`` give different labels.

    Args:
        pair: A `Pair`, or a tuple ``(original, compressed)`` of what `Pair` takes.
        seeds: `Seeds`, or a uint8 array ``[N, C, H, W]`` that is made into one.
        method: Name of a method (``"mcmc"``) or its settings (``MCMC(...)``).
        budget: Most queries spent on one seed, its own included, at least 1. ``None``: the method's own, 1,000 for
            ``"mcmc"``; a default number would silently override the one in ``MCMC(budget=...)``.
        chains: Number of slots, i.e. the batch size that both models always see. ``None``: a calibration of at most
            2 seconds on the CPU and 10 on CUDA measures both models at growing batches and takes the smallest that
            is within 5 % of the fastest; never more than a quarter of the seeds, but 32 where there are as many. It is
            recorded, and a resume takes the same number. Methods that take gradients: the number of seeds, at most
            128 on the CPU and 8,192 on CUDA. A number pins it, as a model that takes one batch size only needs.
        seed: Run seed, 0..2**64 - 1. With the same seed, seeds and models the findings are the same, whatever
            ``chains``, ``device``, interruptions and resumes (as long as the models' own scores are).
        device: Where the search runs: ``None`` or the device of the pair, ``"cpu"`` or ``"cuda[:i]"``.
        threads: CPU threads of the search's own work, a matter of speed alone; the models have their own. ``None``:
            the method's choice.
        engine: ``"auto"`` runs the iterations on CUDA as a graph of many, where both models can be captured, and one
            by one elsewhere; where a graph was to be expected, the summary and the screen say why there is none.
            ``"graph"`` raises then, ``"eager"`` never tries. A matter of speed alone.
        compile: Compile both models with ``torch.compile``, which takes a while and rounds differently: `verify` asks
            the models as they are, and may answer otherwise where a label hangs on the last bits.
        numerics: What torch's precision and its choice of kernels are while the search runs; ``None`` is `Numerics()`.
            Recorded with the run and needed again to resume it.
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
    pair, seeds = Pair.of(pair), Seeds.of(seeds)
    settings = methods.resolve(method, budget)
    device = _device(device, pair)
    directory = _directory(out)
    check_seed(seed)
    if threads is not None:
        within("threads", threads, 1, MOST_THREADS)
    if chains is not None:
        within("chains", chains, 1, MOST_CHAINS)
    check_flag("compile", compile)
    if numerics is not None and not isinstance(numerics, Numerics):
        msg = f"numerics must be None or a compdx.Numerics, got {type(numerics).__name__}"
        raise TypeError(msg)
    with _listener(progress) as listen:
        return driver.run(
            pair,
            seeds,
            settings,
            chains=chains,
            seed=seed,
            device=device,
            threads=threads,
            engine=engine,
            compile=compile,
            numerics=numerics,
            out=directory,
            resume=resume,
            listen=listen,
        )


def _device(device: str | None, pair: Pair) -> str:
    if device is None:
        return pair.device
    if not isinstance(device, str):
        msg = f"device must be None, 'cpu' or 'cuda[:index]', got {type(device).__name__}"
        raise TypeError(msg)
    return "cuda:0" if device == "cuda" else device


def _directory(out: str | PathLike[str] | None) -> Path | None:
    if out is None or isinstance(out, (str, PathLike)):
        return None if out is None else Path(out)
    msg = f"out must be None or the path of a directory, got {type(out).__name__}"
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
