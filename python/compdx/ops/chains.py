"""The memory of a search and its four steps: mutate, judge, harvest, refill."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from compdx import _core
from compdx.ops.backend import Host, backend_for
from compdx.ops.checks import as_array, check_seed, device_of, is_tensor, one_of, within
from compdx.ops.inputs import Layout, input_array, native_table, native_type, typed
from compdx.ops.operators import OPERATORS

_ONE_Q30 = 1 << 30

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

COUNTERS = np.dtype([("next", np.int64), ("ended", np.int64), ("active", np.int64), ("queries", np.int64)])


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What the arithmetic of a search needs to know (docs/arithmetic.md); validated here, once.

    ``shape``: (C, H, W). ``budget``: queries a seed, its own included. ``linf``: bound around the seed in grey levels
    or None. ``grid``: cells per unit of probability for ``coverage="hash"``. ``threshold``: squared distance for
    ``"nearest"``. ``capacity``: tags (a power of two) or states a chain remembers; None is 2 * budget tags, rounded up
    to a power of two within 16..65,536, or 64 states.
    """

    shape: tuple[int, int, int]
    seed: int = 0
    budget: int = 1000
    overflow: str = "clip"
    linf: int | None = None
    skip_identity: bool = True
    selection: str = "metropolis"
    acceptance: str = "margin"
    coverage: str = "hash"
    grid: int = 10
    threshold: float = 0.5
    capacity: int | None = None
    original_scores: str = "logits"
    compressed_scores: str = "logits"

    def __post_init__(self) -> None:
        check_seed(self.seed)
        one_of("overflow", self.overflow, ("clip", "wrap"))
        one_of("selection", self.selection, ("metropolis", "rank", "uniform"))
        one_of("acceptance", self.acceptance, ("margin", "improve", "change", "always", "never"))
        one_of("coverage", self.coverage, ("hash", "nearest"))
        one_of("original_scores", self.original_scores, ("logits", "probabilities"))
        one_of("compressed_scores", self.compressed_scores, ("logits", "probabilities"))
        within("budget", self.budget, 1, (1 << 32) - 2)
        within("grid", self.grid, 1, 1 << 15)
        if self.linf is not None:
            within("linf", self.linf, 0, 255)
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
        seeds: uint8 ``[S, C, H, W]``, NumPy; copied to the device.
        identities: uint64 ``[S]``, the identity of each seed.
        queue: int64 ``[Q]``, rows of ``seeds`` in the order in which they are loaded.
        count: number of slots.
        device: ``"cpu"`` or ``"cuda[:n]"``.
        threads, isa: CPU only; they change the speed, not the result.

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
    ) -> None:
        if np.dtype(CHAIN).itemsize != _core.CHAIN_BYTES or COUNTERS.itemsize != _core.COUNTER_BYTES:
            msg = "compdx._core does not belong to this version of compdx.ops; reinstall compdx"
            raise ImportError(msg)
        if seeds.dtype != np.uint8 or seeds.shape[1:] != rules.shape:
            msg = f"seeds: expected uint8 [S, {', '.join(map(str, rules.shape))}], got {seeds.dtype} {seeds.shape}"
            raise ValueError(msg)
        if queue.size and (queue.min() < 0 or queue.max() >= len(seeds)):
            msg = f"queue: expected rows of the {len(seeds)} seeds, got {queue.min()}..{queue.max()}"
            raise ValueError(msg)
        within("count", count, 1, 1 << 24)
        self.rules = rules
        self.count = count
        self._backend = backend_for(device, threads, isa)
        self._native_rules = rules.native()
        self._pitch = (math.prod(rules.shape) + 15) // 16 * 16
        self.ring_capacity = 2 * count  # an iteration can end every chain before the last one's have been drained
        self._seed_count = len(seeds)
        self._queue_length = len(queue)
        self._consumed = 0
        self._classes = 0
        backend = self._backend
        idle = np.zeros(count, CHAIN)
        idle["row"] = -1
        self._arrays: dict[str, Any] = {
            "chains": backend.put(idle),
            "images": backend.zeros((2, count, self._pitch), np.uint8),
            "traces": backend.zeros((count, rules.budget), np.uint8),
            "coverage": backend.zeros((count, rules.places if rules.coverage == "hash" else 0), np.uint32),
            "counters": backend.put(np.zeros(1, COUNTERS)),
            "seeds": backend.put(seeds),
            "identities": backend.put(np.asarray(identities, np.uint64)),
            "queue": backend.put(np.asarray(queue, np.int64)),
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
        """Counters as of now: ``next``, ``ended``, ``active``, ``queries``. Waits for the device on CUDA."""
        return _counters(self._backend.get(self._arrays["counters"]))

    def poll(self) -> dict[str, int]:
        """Counters of now (CPU) or of a recent iteration (CUDA): never waits for the device."""
        return _counters(self._backend.poll(self._arrays["counters"]))

    @property
    def records(self) -> npt.NDArray[Any]:
        """A copy of the chain records, structured as ``CHAIN``. Waits for the device on CUDA."""
        records: npt.NDArray[Any] = self._backend.get(self._arrays["chains"]).view(CHAIN).reshape(-1)
        return records

    def new_input(self, *, layout: str = "NCHW", dtype: str = "uint8") -> Any:
        """Return an array for ``mutate`` to write into: uint8, float32, or 16-bit patterns as uint16."""
        return input_array(self._backend, self.count, self.rules.shape, layout, dtype)

    def typed(self, array: Any, dtype: str) -> Any:
        """Return an array of ``new_input`` in the type that its device's library has for ``dtype``."""
        return typed(self._backend, array, dtype)

    def new_table(self, table: npt.NDArray[np.float32], dtype: str) -> Any:
        """Return a float32 ``[C, 256]`` table in the form ``mutate`` reads for inputs of ``dtype``."""
        return self._backend.put(native_table(table, self.rules.shape[0], dtype))

    def drain(self) -> dict[str, Any]:
        """Return the chains harvested since the last call: ``chains`` [M], ``images`` [M, C, H, W], ``traces`` (list of
        M).

        NumPy arrays that the caller owns. Waits for the device on CUDA.
        """
        ended = self.counters["ended"]
        places = np.arange(self._consumed, ended) % self.ring_capacity
        self._consumed = ended
        if isinstance(self._backend, Host):
            chains, images, traces = (
                self._arrays[name][places] for name in ("ring_chains", "ring_images", "ring_traces")
            )
        else:
            rows = self._backend.put(places)
            chains, images, traces = (
                self._backend.get(self._arrays[name][rows]) for name in ("ring_chains", "ring_images", "ring_traces")
            )
            chains = chains.view(CHAIN).reshape(-1)
        return {
            "chains": chains,
            "images": images,
            "traces": [trace[:step].copy() for trace, step in zip(traces, chains["step"], strict=True)],
        }

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return copies of what a later ``restore`` needs. Waits for the device on CUDA."""
        return {name: self._backend.get(self._arrays[name]) for name in ("chains", "images", "traces", "coverage")} | {
            "classes": np.array(self._classes)
        }

    def restore(self, state: Mapping[str, npt.NDArray[Any]], slots: npt.NDArray[np.int64]) -> None:
        """Load the chains in ``slots`` of a saved state into the first slots of this one."""
        classes = int(state["classes"])
        if classes:
            self._set_classes(classes)
        expected = self.state()
        for name in ("chains", "images", "traces", "coverage"):
            axis = 1 if name == "images" else 0
            saved = state[name].view(expected[name].dtype) if name == "chains" else state[name]
            wanted = [n for i, n in enumerate(expected[name].shape) if i != axis]
            if [n for i, n in enumerate(saved.shape) if i != axis] != wanted or saved.dtype != expected[name].dtype:
                expected_type = expected[name].dtype
                msg = (
                    f"state[{name!r}]: expected {expected_type} with extents {wanted}, got {saved.dtype} {saved.shape}"
                )
                raise ValueError(msg)
            array = expected[name]
            if axis == 0:
                array[: len(slots)] = saved[slots]
            else:
                array[:, : len(slots)] = saved[:, slots]
            self._arrays[name] = self._backend.put(array)
        self._bind()

    def _set_classes(self, classes: int) -> None:
        if self.rules.coverage == "nearest" and self._classes == 0:
            self._arrays["coverage"] = self._backend.zeros((self.count, self.rules.places, 2 * classes), np.uint16)
            self._bind()
        self._classes = classes

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
    row = array.view(COUNTERS).reshape(-1)[0]
    return {name: int(row[name]) for name in COUNTERS.names or ()}


def mutate(chains: Chains, out: Any, *, table: Any = None, layout: Layout = "NCHW", dtype: str = "uint8") -> None:
    """Write the next query of every working slot into ``out``: a mutant, or the seed itself for a new chain.

    ``out`` comes from ``chains.new_input(layout=, dtype=)`` and ``table`` from ``chains.new_table``; uint8 needs no
    table. Slots without work are left as they are. DFlare section 2 and 3; asynchronous on CUDA.
    """
    backend = chains._backend
    backend.call(
        "mutate",
        chains._slots,
        data=backend.view(out),
        table=(0, 0) if table is None else backend.view(table),
        type=native_type(dtype),
        layout=layout,
    )


def judge(chains: Chains, original: Any, compressed: Any) -> None:
    """Judge the scores of both models on what ``mutate`` wrote and take every working chain one step further.

    Scores: floating ``[count, K]``, any DLPack array on the device of ``chains``; converted to float32. K may not
    change between calls. Non-finite scores end their chain as a finding. Docs/arithmetic.md section 4; asynchronous on
    CUDA.
    """
    a = _scores("original", original, chains)
    b = _scores("compressed", compressed, chains)
    if a.shape != b.shape:
        msg = f"original, compressed: expected scores of one shape, got {tuple(a.shape)} and {tuple(b.shape)}"
        raise ValueError(msg)
    classes = int(a.shape[1])
    if chains._classes not in (0, classes):
        msg = f"scores: expected {chains._classes} classes as before, got {classes}"
        raise ValueError(msg)
    if chains._classes == 0:
        chains._set_classes(classes)
    backend = chains._backend
    backend.call("judge", chains._slots, original=backend.view(a), compressed=backend.view(b), classes=classes)


def _scores(name: str, value: Any, chains: Chains) -> Any:
    if is_tensor(value):
        value = value.detach().float().contiguous()  # NumPy cannot express bfloat16
    array = as_array(name, value)
    if device_of(array).split(":")[0] != chains.device.split(":")[0]:
        msg = f"{name}: expected scores on {chains.device}, got {device_of(array)}"
        raise ValueError(msg)
    if array.ndim != 2 or array.shape[0] != chains.count or array.shape[1] < 2:
        msg = f"{name}: expected scores [{chains.count}, K] with K >= 2, got {tuple(array.shape)}"
        raise ValueError(msg)
    if is_tensor(array):
        return array
    if array.dtype.kind != "f":
        msg = f"{name}: expected floating scores, got {array.dtype}"
        raise TypeError(msg)
    return np.ascontiguousarray(array, np.float32)


def harvest(chains: Chains) -> None:
    """Move ended chains into the ring that ``Chains.drain`` reads; a full ring parks them in their slots. Asynchronous
    on CUDA."""
    chains._backend.call("harvest", chains._slots, consumed=chains._consumed, threaded=False)


def refill(chains: Chains) -> None:
    """Load the next seeds of the queue into idle slots and count the work of the next iteration. Asynchronous on
    CUDA."""
    chains._backend.call("refill", chains._slots, threaded=False)
