"""One search from start to end: advance, take, commit, report. It knows no method by name and no screen."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa

from compdx import engine as engines
from compdx import ops
from compdx.engine import Engine, Numerics, calibrate
from compdx.findings import EFFECTIVE, EXHAUSTED, INVALID, KINDS, SEED, Findings, Outcomes, Summary, outcomes_to_table
from compdx.methods.base import Loop, Method, Progress
from compdx.model import Pair
from compdx.seeds import Seeds
from compdx.store import RunWriter, read_run, run_header, stored_header

# A part is committed when either is reached: few enough files, and little to search again after a kill.
PART_CHAINS = 1000
PART_SECONDS = 5.0
# What the timeline of a run says of each moment.
TIMELINE = ("seconds", "queries", "ended", "found", "already_deviating", "exhausted", "coverage")
# Most of the time that may go into checkpoints: thousands of chains on large images are gigabytes.
CHECKPOINT_SHARE = 0.05
# Slots of a method that takes gradients: a forward pass alone says little about its iteration.
WHITE_BOX_CHAINS = {"cpu": 128, "cuda": 8192}


@dataclass(frozen=True, kw_only=True)
class Event(Progress):
    """Where a search stands; all counts include what was done before a resume.

    ``seconds`` is the time spent searching. ``queries_per_second`` is the mean since this start, ``seconds_left``
    an estimate from the seeds that ended since (``None`` until one has). ``finished`` is true in the last event.
    ``fallback`` is why the iterations do not run as the engine that the device would have; ``None`` when they do.
    """

    seconds: float
    queries_per_second: float
    seconds_left: float | None
    finished: bool
    fallback: str | None = None

    @property
    def non_finite(self) -> int:
        """Chains that ended because a model returned NaN or infinity."""
        return self.ended - self.found - self.already_deviating - self.exhausted


def run(
    pair: Pair,
    seeds: Seeds,
    method: Method,
    *,
    seed: int,
    device: str,
    chains: int | None = None,
    threads: int | None = None,
    engine: str = "auto",
    compile: bool = False,
    numerics: Numerics | None = None,
    out: Path | None = None,
    resume: bool = False,
    listen: Callable[[Event], object] | None = None,
    interval: float = 0.5,
    commit_every: float = 30.0,
) -> Findings:
    """Search until every seed has ended; `compdx.search` explains the arguments it shares.

    With ``out``, ended chains are committed as they come, and the state of the others every ``commit_every`` seconds,
    always after the chains that ended before it. Whatever ends the search early (Ctrl-C, a model that raises, a full
    disk), both are committed once more before the error goes on; its notes say in which iteration it was raised. A
    first Ctrl-C waits for the end of the iteration, or of what a CUDA graph holds of them; a second one does not.

    Args:
        chains: Number of slots; ``None`` for that of a calibration (`compdx.engine.calibrate`), or the stored one of a
            run that is resumed.
        listen: Called with an `Event` at the start, every ``interval`` seconds and at the end. What it raises ends the
            search.
        interval: Seconds between events; also between looks at which chains have ended.
        commit_every: Seconds between checkpoints; more when writing one takes long.

    Raises:
        ValueError: ``device`` is not that of the pair, ``resume`` without ``out``, or an engine that cannot be had.
        FileExistsError, StoreError: See `RunWriter.create`.
        Exception: Whatever a model, the method or ``listen`` raises.
    """
    if device != pair.device:
        msg = f"device must be that of the pair, {pair.device!r}, got {device!r}"
        raise ValueError(msg)
    if resume and out is None:
        msg = "resume needs out, the directory of the run to continue"
        raise ValueError(msg)
    engines.check(engine, pair, method)
    asked = pair.compiled() if compile else pair
    with _held(numerics, pair) as held:
        calibration = None
        if chains is None:
            chains, calibration = _chains(pair, seeds, method, out if resume else None)
        header = run_header(
            method,
            seeds,
            run_seed=seed,
            chains=chains,
            device=device,
            pair=pair.describe(),
            versions={"compdx": str(ops.build_info()["version"])},
        )
        header |= {"engine": engine, "compile": compile, "numerics": held, "calibration": calibration}
        record: AbstractContextManager[RunWriter | None] = (
            nullcontext() if out is None else RunWriter.create(out, header, resume=resume)
        )
        with record as writer:
            if writer is not None and writer.summary is not None:
                return read_run(writer.directory).findings()
            extra: dict[str, Any] = {} if threads is None else {"threads": threads}
            if getattr(method, "white_box", False):
                extra["pair"] = pair
            loop = method.start(
                seeds,
                chains=chains,
                seed=seed,
                device=device,
                inputs=pair.inputs,
                outputs=(pair.original.outputs, pair.compressed.outputs),
                done=None if writer is None else writer.done.tolist(),
                state=None if writer is None or writer.restored is None else writer.restored.state,
                **extra,
            )
            search = _Search(loop, engines.start(engine, asked, loop), header, writer, listen)
            search.drive(interval, commit_every)
            return search.finish()


def _held(numerics: Numerics | None, pair: Pair) -> AbstractContextManager[dict[str, Any] | None]:
    """The settings of torch for the run, where torch computes."""
    models = (pair.original, pair.compressed)
    if numerics is None and pair.device == "cpu" and all(model.module is None for model in models):
        return nullcontext(None)
    return (numerics or Numerics()).held()


def _chains(pair: Pair, seeds: Seeds, method: Method, resumed: Path | None) -> tuple[int, dict[str, Any] | None]:
    """The number of slots where nobody gave one, and the measurement behind it; a run that goes on keeps its own."""
    stored = None if resumed is None else stored_header(resumed)
    if stored is not None:
        return int(stored["chains"]), stored.get("calibration")
    if getattr(method, "white_box", False):
        return min(len(seeds), WHITE_BOX_CHAINS[pair.device.partition(":")[0]]), None
    measured = calibrate(pair, seeds)
    return measured.chains, measured.to_json()


class _Search:
    """A loop under way, with what has ended so far and the figures of earlier starts."""

    def __init__(
        self,
        loop: Loop,
        engine: Engine,
        header: dict[str, Any],
        writer: RunWriter | None,
        listen: Callable[[Event], object] | None,
    ) -> None:
        self.loop, self.engine = loop, engine
        self.header, self.writer, self.listen = header, writer, listen
        self.seeds: int = header["seeds"]["count"]
        self.taken: list[Outcomes] = []  # not committed yet
        self.kept: list[pa.Table] = []  # committed, of a search that has no directory
        self.counts = np.zeros(len(KINDS), np.int64)
        self.earlier = dict.fromkeys(("seconds", "queries", "iterations"), 0.0)
        if writer is not None and len(writer.done):
            self.counts += list(read_run(writer.directory).findings().kinds.values())
        if writer is not None and writer.restored is not None:
            self.earlier |= writer.restored.counters
        self.ended_earlier = int(self.counts.sum())
        self.loop_before = loop.progress
        self.started = self.committed = time.perf_counter()

    def drive(self, interval: float, commit_every: float) -> None:
        """Iterate until no seed has work left, then commit everything."""
        loop, advance = self.loop, self.engine.advance
        with _held_interrupts() as interrupted, self.engine:
            try:
                self.report()
                next_look = self.started + interval
                next_checkpoint = self.started + (commit_every if self.writer is not None else math.inf)
                while loop.active:
                    advance()
                    now = time.perf_counter()
                    if interrupted():
                        raise KeyboardInterrupt
                    if now >= min(next_look, next_checkpoint):
                        self.take()
                        if now >= next_checkpoint:
                            self.checkpoint()
                            done = time.perf_counter()
                            next_checkpoint = done + max(commit_every, (done - now) / CHECKPOINT_SHARE)
                        elif sum(map(len, self.taken)) >= PART_CHAINS or now >= self.committed + PART_SECONDS:
                            self.commit()
                        self.report()
                        next_look = time.perf_counter() + interval
                self.take()
                self.commit()
                self.report(finished=True)
            except BaseException as error:
                self.rescue(error)
                raise

    def take(self) -> None:
        """Take the chains that have ended from the loop."""
        outcomes = self.loop.take()
        if len(outcomes):
            self.taken.append(outcomes)
            self.counts += np.bincount(outcomes.kind, minlength=len(KINDS))

    def commit(self) -> None:
        """Commit the chains that were taken."""
        if self.taken:
            outcomes = Outcomes.concatenate(self.taken)
            if self.writer is not None:
                self.writer.append(outcomes)
            else:
                self.kept.append(outcomes_to_table(outcomes, ops.TRACE_NAMES))
            self.taken.clear()
        self.committed = time.perf_counter()

    def checkpoint(self) -> None:
        """Commit the state of the chains, after those that ended before it: directly after a `take`."""
        self.commit()
        if self.writer is not None:
            self.writer.checkpoint(self.loop.state(), self.counters())

    def rescue(self, error: BaseException) -> None:
        """Keep what there is before the error goes on; a second error becomes a note of the first."""
        kept = ""
        try:
            if self.writer is not None:
                if self.engine.cut:
                    self.commit()  # a loop that was cut in two has no state worth keeping: the last checkpoint counts
                else:
                    self.take()
                    self.checkpoint()
                kept = f" and are in {self.writer.directory}, where the search can be resumed"
        except Exception as second:
            _note(error, f"what was found last could not be committed: {second}")
        _note(
            error,
            f"in iteration {self.engine.begun} since this start; "
            f"{self.counts.sum()} of {self.seeds} seeds had ended{kept}",
        )

    def counters(self) -> dict[str, float]:
        """The figures since the first start."""
        now, before = self.loop.progress, self.loop_before
        queries = self.earlier["queries"] + now.queries - before.queries
        iterations = self.earlier["iterations"] + now.iterations - before.iterations
        return {
            "seconds": self.earlier["seconds"] + time.perf_counter() - self.started,
            "queries": queries,
            "iterations": iterations,
            "occupancy": queries / (iterations * self.loop.chains) if iterations else 0.0,
        }

    def report(self, *, finished: bool = False) -> None:
        """Tell the listener and the timeline of the run where the search stands."""
        if self.listen is None and self.writer is None:
            return
        counters, ended = self.counters(), int(self.counts.sum())
        seconds = counters["seconds"] - self.earlier["seconds"]
        ended_now = ended - self.ended_earlier
        event = Event(
            seeds=self.seeds,
            ended=ended,
            found=int(self.counts[EFFECTIVE] + self.counts[INVALID]),
            already_deviating=int(self.counts[SEED]),
            exhausted=int(self.counts[EXHAUSTED]),
            queries=int(counters["queries"]),
            iterations=int(counters["iterations"]),
            occupancy=counters["occupancy"],
            coverage=self.loop.progress.coverage,
            seconds=counters["seconds"],
            queries_per_second=(counters["queries"] - self.earlier["queries"]) / max(seconds, 1e-9),
            seconds_left=seconds * (self.seeds - ended) / ended_now if ended_now else None,
            finished=finished,
            fallback=self.engine.fallback,
        )
        if self.writer is not None:
            self.writer.log({name: getattr(event, name) for name in TIMELINE})
        if self.listen is not None:
            self.listen(event)

    def finish(self) -> Findings:
        """All findings since the first start; a directory is read back, so that they are what is on disk."""
        counters = self.counters()
        if self.writer is not None:
            findings = read_run(self.writer.directory).findings()
        else:
            ended = pa.concat_tables(self.kept) if self.kept else outcomes_to_table(self.loop.take(), ops.TRACE_NAMES)
            summary = Summary.of(ended, seeds=self.seeds)
            findings = Findings(ended, settings=self.header, summary=summary, shape=self.loop.shape)
        engine = self.engine.description
        findings.summary = Summary.of(
            findings.ended,
            seeds=self.seeds,
            seconds=counters["seconds"],
            occupancy=counters["occupancy"],
            engine=engine if self.engine.fallback is None else f"{engine} ({self.engine.fallback})",
        )
        if self.writer is not None:
            self.writer.finish(findings.summary)
        return findings


@contextmanager
def _held_interrupts() -> Iterator[Callable[[], bool]]:
    """Hold Ctrl-C back until it is asked for, so that it cuts no ``tell`` in two; a second one is raised at once.

    Only where Ctrl-C means what it always does: in the main thread, under Python's own handler.
    """
    pressed = False

    def hold(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            signal.default_int_handler(number, frame)
        pressed = True

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    signal.signal(signal.SIGINT, hold)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _note(error: BaseException, text: str) -> None:
    # What add_note() of Python 3.11 does; there the traceback shows it.
    vars(error).setdefault("__notes__", []).append(text)
