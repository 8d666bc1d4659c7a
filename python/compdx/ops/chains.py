"""The memory of a search and its four steps, mutate, judge, harvest, refill; and all four in one, step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from compdx import _core
from compdx.ops.backend import Backend, backend_for
from compdx.ops.checks import (
    as_integers,
    as_memory,
    as_scores,
    check_flag,
    check_seed,
    check_shape,
    one_of,
    within,
)
from compdx.ops.inputs import Layout, check_input, input_array, input_shape, native_table, native_type, typed
from compdx.ops.operators import MAX_INDEX, OPERATORS

_ONE_Q30 = 1 << 30
# More than any machine has: refused before an allocator may promise it.
_MAX_BYTES = 1 << 40

# What memory for each input type may be declared as.
_MEMORY_TYPES = {
    "uint8": ("uint8",),
    "float32": ("float32",),
    "bfloat16": ("uint16", "bfloat16"),
    "float16": ("uint16", "float16"),
}

# csrc/core/chain.h
CHAIN = np.dtype(
    [
        ("seed_index", np.uint64),
        ("row", np.int32),
        ("step", np.uint32),
        ("accepted", np.uint32),
        ("states", np.uint32),
        ("best_delta", np.uint32),
        ("best_margin", np.uint32),
        ("seed_label", np.int32),
        ("original_label", np.int32),
        ("compressed_label", np.int32),
        ("original_confidence", np.uint32),
        ("compressed_confidence", np.uint32),
        ("status", np.uint8),
        ("current", np.uint8),
        ("best_novel", np.uint8),
        ("last_operator", np.uint8),
        ("pending", np.uint8),
        ("kind", np.uint8),
        ("non_finite", np.uint8),
        ("linf", np.uint8),
        ("reserved", np.uint32),
        ("credit", np.uint32, len(OPERATORS)),
        ("total", np.uint32, len(OPERATORS)),
        ("l2_squared", np.int64),
    ]
)
IDLE, FRESH, ACTIVE, ENDED = range(4)
# What is in the place of l2_squared until the chain ends.
BISECTION = np.dtype([("far_margin", np.uint32), ("far", np.uint8), ("left", np.uint8), ("unused", np.uint16)])

_SAVED = ("chains", "images", "traces", "coverage")

# csrc/core/slots.h
_COUNTERS = ("next", "ended", "active", "queries", "consumed")
COUNTERS = np.dtype([(name, np.int64) for name in _COUNTERS])
_CONSUMED_AT = 8 * _COUNTERS.index("consumed")  # bytes


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What the arithmetic of a search needs to know (docs/arithmetic.md); validated here, once.

    Args:
        shape: (C, H, W) of the images.
        seed: run seed, 0..2**64-1; with it, all randomness of a search is fixed.
        budget: queries a seed may cost, its own included; 1..2**31-1.
        overflow: ``"clip"`` saturates at 0 and 255; ``"wrap"`` is modulo 256.
        linf: bound around the seed image, 0..255 grey levels, or None.
        skip_identity: never draw an operator that changes nothing.
        selection: law of the next operator: ``"metropolis"``, ``"rank"`` or ``"uniform"``; section 3.
        acceptance: ``"margin"``, ``"improve"``, ``"change"``, ``"always"`` or ``"never"``; section 4.
        bisect: blends that are tried after a mutant beyond the boundary, 0..255; section 4.
        coverage: when an output state is new: ``"hash"`` or ``"nearest"``; section 4.
        grid: cells per unit of probability for ``"hash"``, 1..32768.
        threshold: squared distance for ``"nearest"``, above 0 and below 4.
        capacity: tags (a power of two) or states that a chain remembers, at most 2**24; None is 2 * budget tags,
            rounded up to a power of two within 16..65,536, or 64 states.
        original_scores, compressed_scores: ``"logits"`` or ``"probabilities"``.

    Errors: TypeError or ValueError that name the argument.
    """

    shape: tuple[int, int, int]
    seed: int = 0
    budget: int = 1000
    overflow: str = "clip"
    linf: int | None = None
    skip_identity: bool = True
    selection: str = "metropolis"
    acceptance: str = "margin"
    bisect: int = 12
    coverage: str = "hash"
    grid: int = 20
    threshold: float = 0.5
    capacity: int | None = None
    original_scores: str = "logits"
    compressed_scores: str = "logits"

    def __post_init__(self) -> None:
        check_shape(self.shape)
        check_seed(self.seed)
        one_of("overflow", self.overflow, ("clip", "wrap"))
        one_of("selection", self.selection, ("metropolis", "rank", "uniform"))
        one_of("acceptance", self.acceptance, ("margin", "improve", "change", "always", "never"))
        one_of("coverage", self.coverage, ("hash", "nearest"))
        one_of("original_scores", self.original_scores, ("logits", "probabilities"))
        one_of("compressed_scores", self.compressed_scores, ("logits", "probabilities"))
        check_flag("skip_identity", self.skip_identity)
        within("budget", self.budget, 1, (1 << 31) - 1)
        within("bisect", self.bisect, 0, 255)
        within("grid", self.grid, 1, 1 << 15)
        if self.linf is not None:
            within("linf", self.linf, 0, 255)
        if not isinstance(self.threshold, float | int) or isinstance(self.threshold, bool):
            msg = f"threshold: expected a number, got {type(self.threshold).__name__}"
            raise TypeError(msg)
        if not 0 < self.threshold < 4:
            msg = f"threshold: expected a squared distance above 0 and below 4, got {self.threshold}"
            raise ValueError(msg)
        if self.capacity is not None:
            within("capacity", self.capacity, 1, 1 << 24)
            if self.coverage == "hash" and self.capacity & (self.capacity - 1):
                msg = f"capacity: expected a power of two for coverage='hash', got {self.capacity}"
                raise ValueError(msg)

    @property
    def places(self) -> int:
        """Tags or states that each chain has room for."""
        if self.capacity is not None:
            return self.capacity
        if self.coverage == "nearest":
            return 64
        return min(max(1 << (2 * self.budget - 1).bit_length(), 16), 1 << 16)

    @property
    def buffers(self) -> int:
        """Images that a slot holds: the current one, the mutant, and the far end of a bisection."""
        return 3 if self.bisect else 2

    def native(self) -> Any:
        return _core.Rules(
            seed=self.seed,
            shape=self.shape,
            budget=self.budget,
            overflow=self.overflow,
            linf=-1 if self.linf is None else self.linf,
            skip_identity=self.skip_identity,
            selection=self.selection,
            acceptance=self.acceptance,
            bisect=self.bisect,
            coverage=self.coverage,
            grid=self.grid,
            threshold_q30=math.floor(self.threshold * _ONE_Q30),
            capacity=self.places,
            original_scores=self.original_scores,
            compressed_scores=self.compressed_scores,
        )


class Chains:
    """The memory of a search: ``count`` slots with their chains, images, traces and coverage, the seeds and the queue.

    Args:
        rules: what the arithmetic needs to know.
        seeds: uint8 ``[S, C, H, W]``, NumPy; copied to CUDA devices, read in place on the CPU where contiguous.
        identities: integers ``[S]``, the identity of each seed, 0..2**56-1.
        queue: integers ``[Q]``, rows of ``seeds`` in the order in which they are loaded.
        count: number of slots, 1..2**24.
        device: ``"cpu"`` or ``"cuda[:n]"``; ``"cuda"`` is PyTorch's current device. All methods that return NumPy
            arrays wait for the device, ``poll`` does not.
        threads, isa: CPU only; they change the speed, not the result.
        ring: places for ended chains, 1..64 a slot. An iteration can end every chain before the last one's have been
            drained, so 2 let nobody wait on a host that drains after each; one that reads later needs more.

    Errors: TypeError or ValueError that name the argument; RuntimeError when the device cannot be had; MemoryError
    when the memory cannot.

    All slots start idle: call ``refill`` once before the first ``mutate``.
    """

    def __init__(
        self,
        rules: Rules,
        seeds: npt.NDArray[np.uint8],
        *,
        identities: npt.NDArray[np.uint64],
        queue: npt.NDArray[np.int64],
        count: int,
        device: str = "cpu",
        threads: int | None = None,
        isa: str | None = None,
        ring: int = 2,
    ) -> None:
        if np.dtype(CHAIN).itemsize != _core.CHAIN_BYTES or COUNTERS.itemsize != _core.COUNTER_BYTES:
            msg = "compdx._core does not belong to this version of compdx.ops; reinstall compdx"
            raise ImportError(msg)
        if not isinstance(rules, Rules):
            msg = f"rules: expected Rules, got {type(rules).__name__}"
            raise TypeError(msg)
        if not isinstance(seeds, np.ndarray) or seeds.dtype != np.uint8:
            msg = f"seeds: expected a NumPy array of uint8, got {getattr(seeds, 'dtype', type(seeds).__name__)}"
            raise TypeError(msg)
        if seeds.ndim != 4 or seeds.shape[1:] != rules.shape:
            msg = f"seeds: expected shape [S, {', '.join(map(str, rules.shape))}], got {seeds.shape}"
            raise ValueError(msg)
        identities = as_integers("identities", identities, MAX_INDEX).astype(np.uint64)
        if identities.shape != (len(seeds),):
            msg = f"identities: expected shape ({len(seeds)},), got {identities.shape}"
            raise ValueError(msg)
        queue = as_integers("queue", queue, len(seeds)).astype(np.int64)
        if queue.ndim != 1:
            msg = f"queue: expected shape [Q], got {queue.shape}"
            raise ValueError(msg)
        within("count", count, 1, 1 << 24)
        within("ring", ring, 1, 64)
        self.rules = rules
        self.count = count
        self._backend = backend_for(device, threads, isa)
        self._native_rules = rules.native()
        self._pitch = (math.prod(rules.shape) + 15) // 16 * 16
        self.ring_capacity = ring * count
        self._seed_count = len(seeds)
        self._queue_length = len(queue)
        # csrc/core/coverage.h: a tag for each place, then a bit for each.
        table = rules.places + (rules.places + 31) // 32 if rules.coverage == "hash" else 0
        per_chain = (1 + ring) * (CHAIN.itemsize + rules.budget) + rules.buffers * self._pitch + 4 * table
        per_chain += ring * math.prod(rules.shape)
        self._consumed = 0  # what the host has read; the counter of this name follows it on the device
        self._classes = 0
        backend = self._backend
        idle = np.zeros(count, CHAIN)
        idle["row"] = -1
        with self._affordable(per_chain):
            self._arrays: dict[str, Any] = {
                "chains": backend.put(idle),
                "images": backend.zeros((rules.buffers, count, self._pitch), np.uint8),
                "traces": backend.zeros((count, rules.budget), np.uint8),
                "coverage": backend.zeros((count, table), np.uint32),
                "counters": backend.put(np.zeros(1, COUNTERS)),
                "seeds": backend.put(seeds),
                "identities": backend.put(identities),
                "queue": backend.put(queue),
                "ring_chains": backend.zeros((self.ring_capacity,), CHAIN),
                "ring_images": backend.zeros((self.ring_capacity, *rules.shape), np.uint8),
                "ring_traces": backend.zeros((self.ring_capacity, rules.budget), np.uint8),
            }
        self._bind()

    @property
    def device(self) -> str:
        """Where the arrays are."""
        return self._backend.name

    @property
    def bytes_per_chain(self) -> int:
        """Device memory a slot takes, its share of the ring included; coverage of ``nearest`` only once the first
        scores are in."""
        shared = ("seeds", "identities", "queue", "counters")
        return (
            sum(self._backend.view(array)[1] for name, array in self._arrays.items() if name not in shared)
            // self.count
        )

    @property
    def counters(self) -> dict[str, int]:
        """Counters as of now: ``next``, ``ended``, ``active``, ``queries``, ``consumed``.

        Waits for the device on CUDA.
        """
        return _counters(self._backend.get(self._arrays["counters"]))

    def poll(self) -> dict[str, int]:
        """Counters of now (CPU) or of a recent iteration (CUDA): never waits for the device."""
        return _counters(self._backend.poll(self._arrays["counters"]))

    @property
    def records(self) -> npt.NDArray[Any]:
        """A copy of the chain records, structured as ``CHAIN``. Waits for the device on CUDA."""
        return self._host("chains")

    def new_input(self, *, layout: str = "NCHW", dtype: str = "uint8") -> Any:
        """Return an array for ``mutate`` to write into: uint8, float32, or 16-bit patterns as uint16."""
        return input_array(self._backend, self.count, self.rules.shape, layout, dtype)

    def typed(self, array: Any, dtype: str) -> Any:
        """Return an array of ``new_input`` in the type that its device's library has for ``dtype``."""
        return typed(self._backend, array, dtype)

    def new_table(self, table: npt.NDArray[np.float32], dtype: str) -> Any:
        """Return a float32 ``[C, 256]`` table in the form ``mutate`` reads for inputs of ``dtype``."""
        return self._backend.put(native_table(table, self.rules.shape[0], dtype))

    def drain(self, ended: int | None = None) -> dict[str, Any]:
        """Return the chains harvested since the last call: ``chains`` [M], ``images`` [M, C, H, W], ``traces`` (list of
        M).

        NumPy arrays that the caller owns. Waits for the device on CUDA; with ``ended``, a number that ``poll`` gave,
        only for the copies of the chains up to there, which go beside the work that is queued on the current stream.
        That what was read may be overwritten, the device learns in the order of the stream that copied it.
        """
        if ended is not None:
            with self._backend.aside():
                return self._drain(ended)
        return self._drain(self.counters["ended"])

    def _drain(self, ended: int) -> dict[str, Any]:
        places = self._backend.put(np.arange(self._consumed, ended) % self.ring_capacity)
        chains, images, traces = (self._host(name, places) for name in ("ring_chains", "ring_images", "ring_traces"))
        # Last: what could not be copied is still in the ring.
        self._consumed = ended
        self._backend.set_bytes(self._arrays["counters"], _CONSUMED_AT, np.int64(ended))
        return {
            "chains": chains,
            "images": images,
            "traces": [trace[:step].copy() for trace, step in zip(traces, chains["step"], strict=True)],
        }

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return copies of what a later ``restore`` needs, alike on all devices. Waits for the device on CUDA."""
        return {name: self._host(name) for name in _SAVED} | {"classes": np.array(self._classes)}

    def restore(self, state: Mapping[str, npt.NDArray[Any]], slots: npt.NDArray[np.int64]) -> None:
        """Load the chains in ``slots`` of a saved state into the first slots of this one.

        ``state`` is what ``state`` returned for the same rules, on any device; ``slots`` are rows of it, no more than
        ``count``, whose chains are under way on seeds of this set. TypeError or ValueError by the argument's name.
        """
        if missing := {*_SAVED, "classes"} - state.keys():
            msg = f"state: expected what Chains.state returns, but it has no {', '.join(sorted(missing))}"
            raise ValueError(msg)
        slots = as_integers("slots", slots, state["images"].shape[1])
        if slots.ndim != 1 or len(slots) > self.count:
            msg = f"slots: expected at most {self.count} rows of the saved state, got shape {slots.shape}"
            raise ValueError(msg)
        classes = int(state["classes"])
        if classes:
            self._set_classes(classes)
        restored = {}
        for name in _SAVED:
            array, saved = self._host(name), state[name]
            axis = 1 if name == "images" else 0
            wanted, got = ([n for i, n in enumerate(a.shape) if i != axis] for a in (array, saved))
            if got != wanted or saved.dtype != array.dtype:
                msg = f"state[{name!r}]: expected {array.dtype} with extents {wanted}, got {saved.dtype} {saved.shape}"
                raise ValueError(msg)
            array[(slice(None),) * axis + (slice(len(slots)),)] = saved.take(slots, axis)
            restored[name] = array
        self._check_records(restored["chains"][: len(slots)])
        self._arrays |= {name: self._backend.put(array) for name, array in restored.items()}
        self._bind()

    def _host(self, name: str, rows: Any = None) -> npt.NDArray[Any]:
        """A copy of an array in NumPy's own types, whatever the device keeps it as."""
        array = self._arrays[name] if rows is None else self._arrays[name][rows]
        copy = self._backend.get(array)
        if name in ("chains", "ring_chains"):
            dtype: np.dtype[Any] = CHAIN
        elif name == "coverage":
            dtype = np.dtype(np.uint32 if self.rules.coverage == "hash" else np.uint16)
        else:
            return copy
        if copy.dtype == dtype:
            return copy
        return np.ascontiguousarray(copy).view(dtype).reshape(copy.shape[:-1])

    def _check_records(self, records: npt.NDArray[Any]) -> None:
        """Native code follows what is in a record: a place among the seeds, a buffer, a step of the trace."""
        known = self._backend.get(self._arrays["identities"]).view(np.uint64).reshape(-1)
        row = records["row"]
        sound = (row >= 0) & (row < self._seed_count)
        sound &= known[np.where(sound, row, 0)] == records["seed_index"]
        sound &= (records["status"] == FRESH) | (records["status"] == ACTIVE)
        bisection = np.ascontiguousarray(records["l2_squared"]).view(BISECTION)
        last_buffer = self.rules.buffers - 1
        sound &= (records["current"] <= last_buffer) & (records["last_operator"] <= len(OPERATORS))
        sound &= (bisection["far"] <= 2) & (bisection["far"] != records["current"])
        sound &= 3 - records["current"] - bisection["far"] <= last_buffer  # the mutant's
        sound &= (bisection["left"] <= self.rules.bisect) & (
            (bisection["left"] == 0) | (bisection["far"] <= last_buffer)
        )
        sound &= (records["step"] < self.rules.budget) & (records["reserved"] == 0)
        if not sound.all():
            msg = f"state['chains']: expected chains under way on these seeds, but {int((~sound).sum())} are not"
            raise ValueError(msg)

    def _set_classes(self, classes: int) -> None:
        if self.rules.coverage == "nearest" and self._classes == 0:
            with self._affordable(4 * self.rules.places * classes):
                self._arrays["coverage"] = self._backend.zeros((self.count, self.rules.places, 2 * classes), np.uint16)
            self._bind()
        self._classes = classes

    @contextmanager
    def _affordable(self, per_chain: int) -> Iterator[None]:
        """Allocate so many bytes a chain, or say what to lower."""
        msg = (
            f"count: {self.count} chains with a budget of {self.rules.budget} and a capacity of {self.rules.places} "
            f"take {self.count * per_chain} bytes; lower count, budget or capacity"
        )
        if self.count * per_chain > _MAX_BYTES:
            raise ValueError(msg)
        try:
            yield
        except MemoryError as error:
            raise MemoryError(msg) from error

    def _bind(self) -> None:
        views = {name: self._backend.view(array) for name, array in self._arrays.items()}
        self._slots = _core.Slots(
            rules=self._native_rules,
            count=self.count,
            pitch=self._pitch,
            seed_count=self._seed_count,
            queue_length=self._queue_length,
            ring_capacity=self.ring_capacity,
            **views,
        )


def _counters(array: npt.NDArray[Any]) -> dict[str, int]:
    return dict(zip(_COUNTERS, array.view(np.int64).reshape(-1).tolist(), strict=True))


def mutate(chains: Chains, out: Any, *, table: Any = None, layout: Layout = "NCHW", dtype: str = "uint8") -> None:
    """Write the next query of every working slot into ``out``: a mutant, or the seed itself for a new chain.

    Rows of slots without work are left as they are. DFlare sections 2 and 3, docs/arithmetic.md sections 2 and 3.

    Args:
        chains: the search; its chains do not move until ``judge``.
        out: ``[count, C, H, W]``, or ``[count, H, W, C]`` for ``layout="NHWC"``, in the type of ``dtype``; any
            writable, C-contiguous DLPack array on the device of ``chains``, such as ``chains.new_input`` returns.
        table: what ``chains.new_table`` returned for this ``dtype``, ``[C, 256]``; None for uint8.
        layout: ``"NCHW"`` or ``"NHWC"``.
        dtype: ``"uint8"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``; the 16-bit types as such or as uint16 bit
            patterns.

    Randomness: Philox with the purposes choose, parameters, pixels and positions at (seed; index, step): a pure
    function of the run seed, the seed image's identity and the number of the mutant.
    Device: that of ``chains``; asynchronous on CUDA, on PyTorch's current stream.
    Errors: TypeError or ValueError that name the argument.
    """
    _backend_of(chains).call("mutate", chains._slots, **_input_arguments(chains, out, table, layout, dtype))


def judge(chains: Chains, original: Any, compressed: Any) -> None:
    """Judge the scores of both models on what ``mutate`` wrote and take every working chain one step further.

    DFlare sections 5 and 6, docs/arithmetic.md section 4.

    Args:
        chains: the search.
        original, compressed: floating ``[count, K]``, K >= 2, any DLPack array on the device of ``chains``; converted
            to float32. K may not change between calls. Non-finite scores end their chain as a finding.

    Randomness: none.
    Device: that of ``chains``; asynchronous on CUDA, on PyTorch's current stream.
    Errors: TypeError or ValueError that name the argument; MemoryError on the first call when ``"nearest"`` coverage
    does not fit.
    """
    backend = _backend_of(chains)
    a, b, classes = _both_scores(chains, original, compressed)
    backend.call("judge", chains._slots, original=backend.view(a), compressed=backend.view(b), classes=classes)


def harvest(chains: Chains) -> None:
    """Move ended chains into the ring that ``Chains.drain`` reads; a full ring parks them in their slots.

    Randomness: none.
    Device: that of ``chains``; asynchronous on CUDA, on PyTorch's current stream.
    Errors: TypeError that names the argument.
    """
    _backend_of(chains).call("harvest", chains._slots, threaded=False)


def refill(chains: Chains) -> None:
    """Load the next seeds of the queue into idle slots and count the work of the next iteration.

    Randomness: none; the queue is served in its order.
    Device: that of ``chains``; asynchronous on CUDA, on PyTorch's current stream.
    Errors: TypeError that names the argument.
    """
    _backend_of(chains).call("refill", chains._slots, threaded=False)


def step(
    chains: Chains,
    original: Any,
    compressed: Any,
    out: Any,
    *,
    table: Any = None,
    layout: Layout = "NCHW",
    dtype: str = "uint8",
) -> None:
    """Do everything between two queries in one call: ``judge``, ``harvest``, ``refill``, ``mutate``.

    Args:
        chains: the search.
        original, compressed: as ``judge`` takes them.
        out, table, layout, dtype: as ``mutate`` takes them.

    Randomness: that of ``mutate``.
    Device: that of ``chains``. On CUDA one kernel for images of up to 16,384 values with ``"hash"`` coverage, else the
    kernels of the four; asynchronous, on PyTorch's current stream. Nothing that changes from call to call comes from
    the host, so that a captured CUDA graph of some steps can be replayed. The one kernel gives slots and places in the
    ring to whoever comes first: which chain is where may differ from run to run, what becomes of it does not.
    Errors: those of ``judge`` and ``mutate``; then nothing has been done.
    """
    backend = _backend_of(chains)
    written = _input_arguments(chains, out, table, layout, dtype)
    a, b, classes = _both_scores(chains, original, compressed)
    backend.call(
        "step", chains._slots, original=backend.view(a), compressed=backend.view(b), classes=classes, **written
    )


def _input_arguments(chains: Chains, out: Any, table: Any, layout: str, dtype: str) -> dict[str, Any]:
    """The models' input as native code wants it; TypeError or ValueError by the argument's name."""
    backend = chains._backend
    check_input(layout, dtype)
    shape = input_shape(chains.count, chains.rules.shape, layout)
    out = as_memory("out", out, shape, _MEMORY_TYPES[dtype], chains.device, written=True)
    entries = (0, 0)
    if dtype != "uint8":
        if table is None:
            msg = f"table: expected what new_table returned for {dtype!r}, got None"
            raise ValueError(msg)
        types = _MEMORY_TYPES[dtype][:1]
        table = as_memory("table", table, (chains.rules.shape[0], 256), types, chains.device, written=False)
        entries = backend.view(table)
    elif table is not None:
        msg = "table: expected None for 'uint8', whose pixels are written as they are"
        raise ValueError(msg)
    return {"data": backend.view(out), "table": entries, "type": native_type(dtype), "layout": layout}


def _both_scores(chains: Chains, original: Any, compressed: Any) -> tuple[Any, Any, int]:
    """The scores as native code wants them, and the number of classes, which the first ones fix."""
    a = as_scores("original", original, chains.device, chains.count)
    b = as_scores("compressed", compressed, chains.device, chains.count)
    if a.shape != b.shape:
        msg = f"original, compressed: expected scores of one shape, got {tuple(a.shape)} and {tuple(b.shape)}"
        raise ValueError(msg)
    classes = int(a.shape[1])
    if chains._classes not in (0, classes):
        msg = f"original, compressed: expected {chains._classes} classes as before, got {classes}"
        raise ValueError(msg)
    if chains._classes == 0:
        chains._set_classes(classes)
    return a, b, classes


def _backend_of(chains: Chains) -> Backend:
    if not isinstance(chains, Chains):
        msg = f"chains: expected Chains, got {type(chains).__name__}"
        raise TypeError(msg)
    return chains._backend
