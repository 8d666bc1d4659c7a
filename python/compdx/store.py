"""A run on disk: settings, append-only Parquet parts, checkpoints, summary. ``docs/format.md`` is its specification."""

from __future__ import annotations

import fcntl
import json
import math
import os
import platform
import re
import weakref
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import PIL
import pyarrow as pa
import pyarrow.parquet as pq

from compdx.findings import SCHEMA, Findings, Outcomes, Summary, one_row_a_seed, outcomes_to_table
from compdx.ops import TRACE_NAMES

if TYPE_CHECKING:
    from compdx.seeds import Seeds

FORMAT = 1
CHECKPOINTS_KEPT = 2

_HEADER = "run.json"
_SUMMARY = "summary.json"
_TIMELINE = "progress.jsonl"
_PARTS = "parts"
_LOCK = "lock"
_PART = re.compile(r"part-(\d{6,})\.parquet")
_CHECKPOINT = re.compile(r"checkpoint-(\d{6,})\.npz")
_TEMPORARY = ".tmp"
_LATER_COLUMNS = ("operator_codes", "pictures")  # null for parts that were written before there were such columns
_MAY_DIFFER = (
    "compdx",
    "versions",
    "started",
    "seeds.source",
    "engine",
    "calibration",
)  # on resume; all else in run.json decides what is found
_DAMAGED_CHECKPOINT = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError)


class StoreError(ValueError):
    """A file of a run cannot be read or written; the message names it."""


class MethodSettings(Protocol):
    """What `run_header` needs of a method."""

    @property
    def name(self) -> str: ...

    def settings(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """The chains of a run at one moment.

    Attributes:
        state: The arrays that the loop gave.
        counters: Seconds, queries, iterations, occupancy: the figures since the first start.
        parts: Number of parts that were committed before it.
    """

    state: dict[str, npt.NDArray[Any]]
    counters: dict[str, float]
    parts: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A run as it was read from disk.

    Attributes:
        header: What ``run.json`` holds.
        ended: The rows of all parts in the order of the parts; a seed may occur twice, then the first row counts.
        summary: What ``summary.json`` holds; ``None`` while the run is not finished.
        counters: Those of the newest checkpoint; empty without one.
        corrupt: Parts that were left out, only with ``skip_corrupt=True``.
    """

    header: dict[str, Any]
    ended: pa.Table
    summary: Summary | None
    counters: dict[str, float]
    corrupt: tuple[Path, ...]

    def findings(self) -> Findings:
        """The findings; their summary is computed from the rows when the run is not finished or parts were left out."""
        channels, height, width = self.header["seeds"]["shape"]
        ended = one_row_a_seed(self.ended)
        summary = self.summary
        if summary is None or self.corrupt:
            summary = Summary.of(
                ended,
                seeds=self.header["seeds"]["count"],
                seconds=summary.seconds if summary else self.counters.get("seconds", math.nan),
                occupancy=summary.occupancy if summary else self.counters.get("occupancy", math.nan),
            )
        return Findings(ended, settings=self.header, summary=summary, shape=(channels, height, width))


class RunWriter:
    """Writes a run directory; every file is committed whole or not at all.

    Get one from `create` and use it as a context manager: it holds a lock on the directory until it is closed, so that
    two processes cannot write one run.

    Attributes:
        directory: The run directory.
        header: What ``run.json`` holds.
        done: int64, sorted: seeds that had ended when the writer was created.
        restored: The newest readable checkpoint when the writer was created; ``None`` for a new run.
        summary: The summary of a run that is already finished, else ``None``.
    """

    def __init__(self, directory: Path, header: dict[str, Any], lock: _Lock) -> None:
        self.directory = directory
        self.header = header
        self.done = done_seeds(directory)
        self.summary = _read_summary(directory)
        self._parts = len(_numbered(directory / _PARTS, _PART))
        self.restored = _newest_checkpoint(directory, self._parts)
        self._lock = lock

    @classmethod
    def create(cls, directory: str | os.PathLike[str], header: Mapping[str, Any], *, resume: bool = False) -> RunWriter:
        """Start a run in an empty or new directory, or continue the one that is there.

        Args:
            directory: The run directory; made when it does not exist.
            header: What ``run.json`` will hold, see `run_header`; ``seeds.shape`` and ``seeds.count`` are required.
            resume: Continue the run when there is one; remove what a killed process left behind.

        Raises:
            FileExistsError: The directory holds a run and ``resume`` is false, or it holds something else.
            ValueError: The run there has other settings; names the fields that differ.
            StoreError: A file cannot be read or written, or another process is writing this run.
        """
        folder = Path(directory)
        document = _check_header(header)
        folder.mkdir(parents=True, exist_ok=True)
        lock = _Lock(folder)
        try:
            with _writing(folder / _PARTS):
                (folder / _PARTS).mkdir(exist_ok=True)
            if not (folder / _HEADER).exists():
                others = [p.name for p in sorted(folder.iterdir()) if not _is_leftover(p)]
                if others:
                    msg = f"out must be an empty or new directory, but {folder} holds {others[0]} and no {_HEADER}"
                    raise FileExistsError(msg)
                with _commit(folder / _HEADER) as file:
                    file.write(_to_json({"format": FORMAT, **document}))
                _sync(folder.absolute().parent)
            elif not resume:
                msg = f"{folder} already holds a run; resume=True continues it, another directory starts anew"
                raise FileExistsError(msg)
            stored = _read_header(folder)
            different = _differences(stored, document)
            if different:
                msg = f"the run in {folder} cannot be resumed with other settings: " + "; ".join(different)
                raise ValueError(msg)
            for leftover in (*folder.glob(f"*{_TEMPORARY}"), *folder.glob(f"{_PARTS}/*{_TEMPORARY}")):
                leftover.unlink()
            return cls(folder, stored, lock)
        except BaseException:
            lock.release()
            raise

    def append(self, outcomes: Outcomes) -> None:
        """Commit ended chains as the next part; nothing is written for no chains.

        Raises:
            ValueError: The images have another shape than the seeds of the run.
            StoreError: The part cannot be written; earlier parts are untouched and the call may be repeated.
        """
        expected = tuple(self.header["seeds"]["shape"])
        if outcomes.shape != expected:
            msg = f"outcomes must have images of the shape of the seeds, {expected}, got {outcomes.shape}"
            raise ValueError(msg)
        self.append_table(outcomes_to_table(outcomes, TRACE_NAMES))

    def append_table(self, table: pa.Table) -> None:
        """Commit rows of `compdx.findings.SCHEMA` as the next part; nothing is written for no rows."""
        if not table.num_rows:
            return
        shape = json.dumps(self.header["seeds"]["shape"])
        table = table.replace_schema_metadata({"compdx.format": str(FORMAT), "compdx.shape": shape})
        with _commit(self.directory / _PARTS / f"part-{self._parts:06d}.parquet") as file:
            pq.write_table(table, file, compression="zstd", write_page_checksum=True)
        self._parts += 1

    def checkpoint(self, state: Mapping[str, npt.NDArray[Any]], counters: Mapping[str, float]) -> None:
        """Commit the state of the chains; call it after the chains that ended before were appended.

        Args:
            state: Arrays by name.
            counters: Numbers by name: seconds, queries, iterations, occupancy.

        Raises:
            TypeError: An array holds objects.
            StoreError: It cannot be written; the earlier checkpoint is untouched.
        """
        arrays = {f"state.{name}": np.asarray(value) for name, value in state.items()}
        arrays |= {f"counter.{name}": np.asarray(value) for name, value in counters.items()}
        for name, array in arrays.items():
            if array.dtype.hasobject:
                msg = f"{name} must be an array of numbers, got dtype {array.dtype}"
                raise TypeError(msg)
        earlier = _numbered(self.directory, _CHECKPOINT)
        number = earlier[-1][0] + 1 if earlier else 0
        with _commit(self.directory / f"checkpoint-{number:06d}.npz") as file:
            np.savez(file, parts=np.int64(self._parts), **arrays)  # type: ignore[arg-type]
        for _, path in earlier[: len(earlier) + 1 - CHECKPOINTS_KEPT]:
            path.unlink()

    def log(self, moment: Mapping[str, float | None]) -> None:
        """Add a line to the timeline; it is for people, so it is not brought to the disk by force.

        Raises:
            StoreError: It cannot be written.
        """
        path = self.directory / _TIMELINE
        with _writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(moment), allow_nan=False) + "\n")

    def finish(self, summary: Summary) -> None:
        """Commit the summary, drop the checkpoints, which a finished run does not need, and close."""
        with _commit(self.directory / _SUMMARY) as file:
            file.write(_to_json(summary.to_json()))
        for _, path in _numbered(self.directory, _CHECKPOINT):
            path.unlink()
        self.close()

    def close(self) -> None:
        """Give the lock back; may be called more than once."""
        self._lock.release()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def run_header(
    method: MethodSettings,
    seeds: Seeds,
    *,
    run_seed: int,
    chains: int,
    device: str,
    pair: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What ``run.json`` says of a run: everything that decides what is found, and who wrote it when.

    Args:
        method: The settings object of the method.
        seeds: The seeds.
        run_seed: The integer that fixes all randomness.
        chains: Slots in the batch.
        device: Where the search runs.
        pair: Description of the two models.
        versions: Versions to record beside those of Python, NumPy, PyArrow and Pillow, by name.
    """
    known = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pyarrow": pa.__version__,
        "pillow": PIL.__version__,
    }
    return {
        "method": {"name": method.name, "settings": dict(method.settings())},
        "seed": run_seed,
        "seeds": {
            "fingerprint": seeds.fingerprint,
            "count": len(seeds),
            "shape": list(seeds.shape),
            "source": seeds.source,
        },
        "pair": dict(pair or {}),
        "chains": chains,
        "device": device,
        "versions": known | dict(versions or {}),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def stored_header(directory: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What ``run.json`` of a run directory holds; ``None`` where there is no run. Raises `StoreError`."""
    folder = Path(directory)
    return _read_header(folder) if (folder / _HEADER).exists() else None


def read_run(directory: str | os.PathLike[str], *, skip_corrupt: bool = False) -> Run:
    """Read a run directory, finished, running or killed; changes nothing in it.

    Args:
        directory: The run directory.
        skip_corrupt: Leave out parts that cannot be read, and say so in ``corrupt``, instead of raising.

    Raises:
        FileNotFoundError: It is no run directory.
        StoreError: A file cannot be read, or a later version wrote it; names the file.
    """
    folder = Path(directory)
    header = _read_header(folder)
    tables, corrupt = [_empty_table()], []
    for path in _part_paths(folder, gaps_allowed=skip_corrupt):
        try:
            tables.append(_read_part(path))
        except StoreError:
            if not skip_corrupt:
                raise
            corrupt.append(path)
    checkpoint = _newest_checkpoint(folder, len(tables) - 1 + len(corrupt))
    return Run(
        header=header,
        ended=pa.concat_tables(tables),
        summary=_read_summary(folder),
        counters=checkpoint.counters if checkpoint else {},
        corrupt=tuple(corrupt),
    )


def done_seeds(directory: str | os.PathLike[str]) -> npt.NDArray[np.int64]:
    """Identities of the seeds that have ended, int64, sorted; reads and so verifies every part, one at a time.

    Raises:
        StoreError: A part cannot be read; names the file.
    """
    parts = [_read_part(path)["seed_index"].to_numpy() for path in _part_paths(Path(directory), gaps_allowed=False)]
    return np.unique(np.concatenate([np.empty(0, np.int64), *parts]))


def read_timeline(directory: str | os.PathLike[str]) -> list[dict[str, float | None]]:
    """The moments of a run in the order of their seconds; a line that a killed process left unfinished is passed over.

    After a resume, moments that the new start went through again are those of the new start.
    """
    path = Path(directory) / _TIMELINE
    moments: list[dict[str, float | None]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            moment = json.loads(line)
        except ValueError:
            continue
        while moments and moments[-1]["seconds"] > moment["seconds"]:
            moments.pop()
        moments.append(moment)
    return moments


def write_run(directory: str | os.PathLike[str], findings: Findings) -> None:
    """Write findings as a finished run.

    Raises:
        FileExistsError: The directory is not empty.
        StoreError: A file cannot be written.
    """
    seeds = {"count": findings.summary.seeds, **findings.settings.get("seeds", {}), "shape": list(findings.shape)}
    with RunWriter.create(directory, {**findings.settings, "seeds": seeds}) as writer:
        writer.append_table(findings.ended)
        writer.finish(findings.summary)


class _Lock:
    """A lock on a run for this process; the kernel gives it back when the process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        path = folder / _LOCK
        with _writing(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self.release = weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.release()
            reason = (
                "is being written by another process" if isinstance(error, BlockingIOError) else f"has no lock: {error}"
            )
            msg = f"the run in {folder} {reason}"
            raise StoreError(msg) from error


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        msg = f"{path} could not be written: {error.strerror or error}"
        raise StoreError(msg) from error


@contextmanager
def _commit(path: Path) -> Iterator[IO[bytes]]:
    """Write a file so that it is on the disk whole, under its name, or not there at all."""
    temporary = path.with_name(path.name + _TEMPORARY)
    with _writing(path):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _sync(folder: Path) -> None:
    """Bring the names in a directory to the disk: without this a power cut may undo the rename of a complete file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_leftover(path: Path) -> bool:
    """Whether a process that was killed before it had committed the header can have left this."""
    if path.is_dir():
        return path.name == _PARTS and not any(path.iterdir())
    return path.name == _LOCK or path.name.endswith(_TEMPORARY)


def _numbered(folder: Path, pattern: re.Pattern[str]) -> list[tuple[int, Path]]:
    """The files of a numbered kind, by number."""
    matches = ((pattern.fullmatch(path.name), path) for path in (folder.iterdir() if folder.is_dir() else ()))
    return sorted((int(match[1]), path) for match, path in matches if match)


def _part_paths(folder: Path, *, gaps_allowed: bool) -> list[Path]:
    numbered = _numbered(folder / _PARTS, _PART)
    for place, (number, _) in enumerate(numbered):
        if number != place and not gaps_allowed:
            msg = f"{folder / _PARTS / f'part-{place:06d}.parquet'} is missing, though later parts are there"
            raise StoreError(msg)
    return [path for _, path in numbered]


def _empty_table() -> pa.Table:
    return SCHEMA.empty_table().set_column(1, "kind", pa.array([], pa.string()))


def _read_part(path: Path) -> pa.Table:
    """The rows of a part with the columns of SCHEMA, kinds as plain strings, checksums verified."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            _check_format(path, (file.schema_arrow.metadata or {}).get(b"compdx.format"))
            missing = [name for name in _LATER_COLUMNS if name not in file.schema_arrow.names]
            known = [name for name in SCHEMA.names if name not in missing]
            table = file.read(columns=known).replace_schema_metadata(None)
        for name in missing:
            table = table.append_column(name, pa.nulls(table.num_rows, SCHEMA.field(name).type))
        table = table.set_column(1, "kind", table["kind"].cast(pa.string()))
        return table.select(SCHEMA.names).cast(_empty_table().schema)
    except (pa.ArrowException, OSError, KeyError) as error:
        msg = f"{path} cannot be read as a part of a run: {error}"
        raise StoreError(msg) from error


def _check_format(path: Path, found: Any) -> None:
    try:
        number = int(found)
    except (TypeError, ValueError):
        msg = f"{path} was not written by compdx: it names no format"
        raise StoreError(msg) from None
    if number > FORMAT:
        msg = f"{path} has format {number}; this version of compdx reads formats up to {FORMAT}"
        raise StoreError(msg)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read: {error}"
        raise StoreError(msg) from error
    if not isinstance(document, dict):
        msg = f"{path} must hold a JSON object, got {type(document).__name__}"
        raise StoreError(msg)
    return document


def _read_header(folder: Path) -> dict[str, Any]:
    path = folder / _HEADER
    if not path.exists():
        msg = f"{folder} is no run directory: it holds no {_HEADER}"
        raise FileNotFoundError(msg)
    document = _read_json(path)
    _check_format(path, document.pop("format", None))
    try:
        return _check_header(document)
    except (TypeError, ValueError) as error:
        msg = f"{path} cannot be read: {error}"
        raise StoreError(msg) from error


def _read_summary(folder: Path) -> Summary | None:
    path = folder / _SUMMARY
    if not path.exists():
        return None
    document = _read_json(path)
    try:
        return Summary.from_json(document)
    except KeyError as error:
        msg = f"{path} cannot be read: {error} is missing"
        raise StoreError(msg) from error


def _newest_checkpoint(folder: Path, parts: int) -> Checkpoint | None:
    """The newest checkpoint that is whole and whose parts are all here.

    None is no loss: chains start again from their seeds and take the same way. But a checkpoint that counts parts which
    are gone would pass over their seeds, so it must not be used.
    """
    for _, path in reversed(_numbered(folder, _CHECKPOINT)):
        try:
            # Opened here, because np.load leaves a damaged file open.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays = dict(archive.items())
            checkpoint = Checkpoint(
                state={k.removeprefix("state."): v for k, v in arrays.items() if k.startswith("state.")},
                counters={k.removeprefix("counter."): v.item() for k, v in arrays.items() if k.startswith("counter.")},
                parts=int(arrays["parts"]),
            )
        except _DAMAGED_CHECKPOINT:
            continue
        if checkpoint.parts <= parts:
            return checkpoint
    return None


def _to_json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _check_header(header: Mapping[str, Any]) -> dict[str, Any]:
    """The header as JSON gives it back: tuples are lists, keys are strings."""
    document: dict[str, Any] = json.loads(_to_json(header))
    seeds = document.get("seeds")
    seeds = seeds if isinstance(seeds, dict) else {}
    shape = seeds.get("shape")
    if not isinstance(shape, list) or len(shape) != 3 or not all(isinstance(n, int) and n > 0 for n in shape):
        msg = f"header must give seeds.shape as [C, H, W], got {shape}"
        raise ValueError(msg)
    if not isinstance(seeds.get("count"), int):
        msg = f"header must give seeds.count, an integer, got {seeds.get('count')}"
        raise ValueError(msg)
    return document


def _differences(stored: Any, given: Any, name: str = "") -> list[str]:
    """The fields, with both values, in which two headers differ that must not."""
    if name in _MAY_DIFFER or stored == given:
        return []
    if isinstance(stored, dict) and isinstance(given, dict):
        prefix = f"{name}." if name else ""
        keys = [*stored, *(key for key in given if key not in stored)]
        return [line for k in keys for line in _differences(stored.get(k), given.get(k), prefix + k)]
    return [f"{name} is {json.dumps(stored)} there and {json.dumps(given)} here"]
