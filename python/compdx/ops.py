"""The native operators on arrays: one mutation operator, the four steps of a search, model inputs, random numbers.

Arrays may come from any library that speaks DLPack. On the CPU they are used in place when they are contiguous; on a CUDA device they
are PyTorch tensors on the current stream, every call is asynchronous, and nothing waits for the device unless its docstring says so.
This is the only module that imports the extension.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from compdx import _core

__all__ = [
    "CHAIN",
    "OPERATORS",
    "Chains",
    "Rules",
    "apply",
    "available_isas",
    "build_info",
    "cuda_device_count",
    "default_threads",
    "harvest",
    "judge",
    "mutate",
    "normalize",
    "philox",
    "refill",
]

OPERATORS = ("additive", "salt_pepper", "multiplicative", "pixel", "box", "gaussian", "median")

Layout = Literal["NCHW", "NHWC"]
InputType = Literal["float32", "bfloat16", "float16"]

_SIZES = {"pixel": range(10), "box": range(1, 6), "gaussian": (1, 3, 5, 7), "median": (1, 3, 5, 7)}
_MAX_INDEX = 1 << 56
_ONE_Q30 = 1 << 30

# csrc/core/chain.h
CHAIN = np.dtype(
    [
        ("seed_index", np.uint64),
        ("row", np.int64),
        ("step", np.uint32),
        ("accepted", np.uint32),
        ("states", np.uint32),
        ("best_delta", np.uint32),
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


def build_info() -> dict[str, str]:
    """Return version, compiler, flags, CUDA architectures (empty: built without CUDA) and the best instruction set here."""
    return dict(_core.build_info())


def available_isas() -> tuple[str, ...]:
    """Return the instruction sets that the CPU loops can use on this machine, best first."""
    return tuple(_core.available_isas())


def cuda_device_count() -> int:
    """Return the number of CUDA devices that the native kernels can use; 0 without a driver or without CUDA in the build."""
    return int(_core.cuda_device_count())


def default_threads() -> int:
    """Return PyTorch's thread count when PyTorch is loaded, else the number of CPUs this process may use."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# ---- arrays in and out -----------------------------------------------------------------------------------------------------------


class _Host:
    """Arrays in main memory: NumPy."""

    name = "cpu"

    def __init__(self, threads: int | None, isa: str | None) -> None:
        if threads is not None and threads < 1:
            msg = f"threads: expected at least 1, got {threads}"
            raise ValueError(msg)
        self._how = {"threads": threads or default_threads(), "isa": isa or ""}

    def zeros(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Any:
        return np.zeros(shape, dtype)

    def put(self, array: npt.NDArray[Any]) -> Any:
        return np.ascontiguousarray(array)

    def get(self, array: Any) -> npt.NDArray[Any]:
        return np.array(array)

    def view(self, array: Any) -> tuple[int, int]:
        return array.ctypes.data, array.nbytes

    def poll(self, array: Any) -> npt.NDArray[Any]:
        return self.get(array)

    def call(self, name: str, *args: Any, threaded: bool = True, **kwargs: Any) -> None:
        getattr(_core, f"cpu_{name}")(*args, **kwargs, **(self._how if threaded else {}))


class _Cuda:
    """Arrays on a CUDA device: PyTorch tensors, PyTorch's current stream."""

    def __init__(self, device: str) -> None:
        torch = sys.modules.get("torch")
        if torch is None:
            import torch  # a CUDA device was asked for, and PyTorch owns its memory
        if not hasattr(_core, "cuda_mutate"):
            msg = f"device {device!r} was asked for, but this build of compdx has no CUDA kernels (build it with nvcc on the PATH)"
            raise RuntimeError(msg)
        if not torch.cuda.is_available():
            msg = f"device {device!r} was asked for, but PyTorch sees no CUDA device"
            raise RuntimeError(msg)
        self._torch = torch
        self._device = torch.device(device)
        self._polled: tuple[Any, Any] | None = None  # a copy under way to pinned memory, and the event that ends it
        self._latest: npt.NDArray[Any] | None = None
        self.name = device

    def zeros(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Any:
        # Structured and unsigned types have no tensor type of their own; only their bytes matter.
        dtype = np.dtype(dtype)
        torch_type = {"uint8": "uint8", "float32": "float32", "int64": "int64"}.get(dtype.name)
        if torch_type is None:
            return self._torch.zeros((*shape, dtype.itemsize), dtype=self._torch.uint8, device=self._device)
        return self._torch.zeros(shape, dtype=getattr(self._torch, torch_type), device=self._device)

    def put(self, array: npt.NDArray[Any]) -> Any:
        array = np.ascontiguousarray(array)
        if array.dtype.name not in ("uint8", "float32", "int64"):
            array = array.view(np.uint8).reshape(*array.shape, array.dtype.itemsize)
        return self._torch.from_numpy(array.copy()).to(self._device)

    def get(self, array: Any) -> npt.NDArray[Any]:
        host: npt.NDArray[Any] = array.cpu().numpy()
        return host

    def poll(self, array: Any) -> npt.NDArray[Any]:
        """Return a recent copy of a small array without waiting; the first call waits, having nothing to return."""
        if self._latest is None:
            self._latest = self.get(array)
        if self._polled is not None and self._polled[1].query():
            self._latest = self._polled[0].numpy().copy()
            self._polled = None
        if self._polled is None:
            with self._torch.cuda.device(self._device):
                pinned = self._torch.empty(array.shape, dtype=array.dtype, pin_memory=True)
                pinned.copy_(array, non_blocking=True)
                event = self._torch.cuda.Event()
                event.record()
            self._polled = (pinned, event)
        return self._latest

    def view(self, array: Any) -> tuple[int, int]:
        return array.data_ptr(), array.numel() * array.element_size()

    def call(self, name: str, *args: Any, threaded: bool = True, **kwargs: Any) -> None:  # noqa: ARG002
        with self._torch.cuda.device(self._device):
            stream = self._torch.cuda.current_stream().cuda_stream
            getattr(_core, f"cuda_{name}")(*args, **kwargs, stream=stream)


_Backend = _Host | _Cuda


def _backend(device: str, threads: int | None = None, isa: str | None = None) -> _Backend:
    if device == "cpu":
        return _Host(threads, isa)
    if device.split(":")[0] == "cuda":
        return _Cuda(device)
    msg = f"device: expected 'cpu' or 'cuda[:n]', got {device!r}"
    raise ValueError(msg)


def _is_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _array(name: str, value: Any) -> Any:
    """Return a NumPy array (CPU) or a PyTorch tensor (CUDA) over the same memory where possible."""
    if isinstance(value, np.ndarray):
        return value
    if not hasattr(value, "__dlpack__"):
        msg = f"{name}: expected an array that speaks DLPack, got {type(value).__name__}"
        raise TypeError(msg)
    if _is_tensor(value):
        value = value.detach()
        return value if value.is_cuda else value.numpy()
    kind = int(value.__dlpack_device__()[0])
    if kind == 1:
        return np.from_dlpack(value)
    if kind == 2:
        import torch  # a CUDA array: PyTorch owns device memory here

        return torch.from_dlpack(value)
    msg = f"{name}: expected an array on the CPU or on CUDA, got DLPack device type {kind}"
    raise TypeError(msg)


def _device_of(array: Any) -> str:
    return str(array.device) if _is_tensor(array) else "cpu"


def _images(name: str, value: Any) -> Any:
    array = _array(name, value)
    if str(array.dtype).removeprefix("torch.") != "uint8":
        msg = f"{name}: expected uint8, got {str(array.dtype).removeprefix('torch.')}"
        raise TypeError(msg)
    if array.ndim != 4:
        msg = f"{name}: expected shape [N, C, H, W], got {tuple(array.shape)}"
        raise ValueError(msg)
    if min(array.shape[1:]) < 1:
        msg = f"{name}: expected images with at least one value, got shape {tuple(array.shape)}"
        raise ValueError(msg)
    return array.contiguous() if _is_tensor(array) else np.ascontiguousarray(array)


def _like(value: Any, array: Any) -> Any:
    """Return a result in the library of the argument it came from."""
    if _is_tensor(value) and not _is_tensor(array):
        return sys.modules["torch"].from_numpy(array)
    return array


def _per_image(name: str, value: Any, count: int, dtype: type[np.generic], limit: int) -> npt.NDArray[Any]:
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        msg = f"{name}: expected integers, got {array.dtype}"
        raise TypeError(msg)
    if array.ndim > 1 or (array.ndim == 1 and array.shape[0] != count):
        msg = f"{name}: expected an integer or shape [{count}], got {array.shape}"
        raise ValueError(msg)
    if array.size and (int(array.min()) < 0 or int(array.max()) >= limit):
        msg = f"{name}: expected values in 0..{limit - 1}, got {int(array.min())}..{int(array.max())}"
        raise ValueError(msg)
    return np.ascontiguousarray(np.broadcast_to(array.astype(dtype), (count,)))


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        msg = f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}"
        raise ValueError(msg)


# ---- stateless operators ---------------------------------------------------------------------------------------------------------


def philox(key: npt.ArrayLike, counter: npt.ArrayLike) -> npt.NDArray[np.uint32]:
    """Return Philox4x32-10 words uint32 ``[..., 4]`` for keys uint32 ``[..., 2]`` and counters uint32 ``[..., 4]``.

    The generator behind every random number of compdx (Salmon et al., SC 2011); CPU.
    """
    keys = np.asarray(key, dtype=np.uint32)
    counters = np.asarray(counter, dtype=np.uint32)
    if keys.shape[-1:] != (2,) or counters.shape[-1:] != (4,):
        msg = f"key, counter: expected shapes [..., 2] and [..., 4], got {keys.shape} and {counters.shape}"
        raise ValueError(msg)
    lead = np.broadcast_shapes(keys.shape[:-1], counters.shape[:-1])
    keys = np.ascontiguousarray(np.broadcast_to(keys, (*lead, 2)))
    counters = np.ascontiguousarray(np.broadcast_to(counters, (*lead, 4)))
    out = np.empty_like(counters)
    host = _Host(1, None)
    _core.philox(keys=host.view(keys), counters=host.view(counters), out=host.view(out), count=math.prod(lead))
    return out


def apply(
    images: Any,
    operator: str,
    *,
    size: int | None = None,
    seed: int = 0,
    index: Any = None,
    step: Any = 1,
    overflow: Literal["clip", "wrap"] = "clip",
    linf: int | None = None,
    origin: Any = None,
    skip_identity: bool = False,
    threads: int | None = None,
    isa: str | None = None,
) -> Any:
    """Return the images after one mutation operator (DFlare section 3; exact laws in docs/arithmetic.md section 2).

    Args:
        images: uint8 ``[N, C, H, W]``; any DLPack array, CPU or CUDA.
        operator: one of ``OPERATORS``.
        size: replaces the drawn window of ``box`` (1..5), ``gaussian`` and ``median`` (1, 3, 5, 7), or the drawn number of
            changed values of ``pixel`` (0..9). Not for the other operators.
        seed: run seed, 0..2**64-1.
        index: identity of each image, an integer or int64 ``[N]`` in 0..2**56-1; default 0..N-1.
        step: number of the mutant, an integer or int ``[N]`` in 0..2**32-1.
        overflow: ``"clip"`` saturates at 0 and 255; ``"wrap"`` is modulo 256, as in the published code.
        linf: largest difference from ``origin`` in grey levels (0..255); None: no bound.
        origin: seed images uint8 ``[N, C, H, W]`` or ``[1, C, H, W]``; needed with ``linf``.
        skip_identity: never draw a window of 1 or a change of no pixels.
        threads, isa: CPU only; they change the speed, not the result.

    Returns:
        uint8 ``[N, C, H, W]``, a new array of the caller's library on the same device.

    Randomness: a pure function of (seed, index, step), see docs/arithmetic.md section 1.
    Errors: TypeError or ValueError that name the argument.
    """
    array = _images("images", images)
    _one_of("operator", operator, OPERATORS)
    _one_of("overflow", overflow, ("clip", "wrap"))
    _check_seed(seed)
    if size is not None and size not in _SIZES.get(operator, ()):
        allowed = ", ".join(map(str, _SIZES.get(operator, ()))) or "none (this operator has no size)"
        msg = f"size: expected one of {allowed} for {operator!r}, got {size}"
        raise ValueError(msg)
    count = int(array.shape[0])
    backend = _backend(_device_of(array), threads, isa)
    indices = backend.put(_per_image("index", np.arange(count) if index is None else index, count, np.uint64, _MAX_INDEX))
    steps = backend.put(_per_image("step", step, count, np.uint32, 1 << 32))
    origins = array if linf is None else _origin(array, origin, linf)
    out = backend.zeros(tuple(array.shape), np.uint8)
    backend.call(
        "apply",
        operator=operator,
        size=-1 if size is None else size,
        seed=seed,
        shape=tuple(map(int, array.shape[1:])),
        overflow=overflow,
        linf=-1 if linf is None else linf,
        skip_identity=skip_identity,
        count=count,
        images=backend.view(array),
        indices=backend.view(indices),
        steps=backend.view(steps),
        origins=backend.view(origins),
        origin_count=int(origins.shape[0]),
        out=backend.view(out),
    )
    return _like(images, out)


def _origin(array: Any, origin: Any, linf: int) -> Any:
    if not 0 <= linf <= 255:
        msg = f"linf: expected 0..255 grey levels, got {linf}"
        raise ValueError(msg)
    if origin is None:
        msg = "origin: expected the seed images, which linf= is measured from; got None"
        raise ValueError(msg)
    origins = _images("origin", origin)
    if tuple(origins.shape[1:]) != tuple(array.shape[1:]) or origins.shape[0] not in (1, array.shape[0]):
        msg = f"origin: expected shape {tuple(array.shape)} or 1 image of it, got {tuple(origins.shape)}"
        raise ValueError(msg)
    if _device_of(origins) != _device_of(array):
        msg = f"origin: expected device {_device_of(array)}, got {_device_of(origins)}"
        raise ValueError(msg)
    return origins


def _check_seed(seed: int) -> None:
    if not isinstance(seed, int) or isinstance(seed, bool):
        msg = f"seed: expected an integer, got {type(seed).__name__}"
        raise TypeError(msg)
    if not 0 <= seed < 1 << 64:
        msg = f"seed: expected 0..2**64-1, got {seed}"
        raise ValueError(msg)


def normalize(
    images: Any,
    table: npt.NDArray[np.float32],
    *,
    layout: Layout = "NCHW",
    dtype: InputType = "float32",
    threads: int | None = None,
) -> Any:
    """Return model inputs: every value of every pixel looked up in its channel's table.

    ``images`` uint8 ``[N, C, H, W]``; ``table`` float32 ``[C, 256]``, rounded to nearest even for the 16-bit types. The result is
    ``[N, C, H, W]`` or, for ``layout="NHWC"``, ``[N, H, W, C]``: float32, or for ``"bfloat16"`` and ``"float16"`` the bit patterns as
    uint16 (NumPy has no bfloat16); on CUDA a tensor of that type. Asynchronous on CUDA.
    """
    array = _images("images", images)
    backend = _backend(_device_of(array), threads)
    shape = (int(array.shape[1]), int(array.shape[2]), int(array.shape[3]))
    out = _input_array(backend, int(array.shape[0]), shape, layout, dtype)
    native_table = backend.put(_native_table(table, shape[0], dtype))
    backend.call(
        "normalize",
        images=backend.view(array),
        count=int(array.shape[0]),
        shape=shape,
        data=backend.view(out),
        table=backend.view(native_table),
        type=_native_type(dtype),
        layout=layout,
    )
    return _typed(backend, out, dtype)


def _native_type(dtype: str) -> str:
    return {"uint8": "uint8", "float32": "float32"}.get(dtype, "half")


def _native_table(table: npt.NDArray[np.float32], channels: int, dtype: str) -> npt.NDArray[Any]:
    table = np.asarray(table)
    if table.dtype != np.float32 or table.shape != (channels, 256):
        msg = f"table: expected float32 [{channels}, 256], got {table.dtype} {table.shape}"
        raise ValueError(msg)
    _one_of("dtype", dtype, ("float32", "bfloat16", "float16"))
    if dtype == "float32":
        return np.ascontiguousarray(table)
    if dtype == "float16":
        return table.astype(np.float16).view(np.uint16)
    bits = np.ascontiguousarray(table).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)).astype(np.uint16)


def _input_array(backend: _Backend, count: int, shape: tuple[int, int, int], layout: str, dtype: str) -> Any:
    _one_of("layout", layout, ("NCHW", "NHWC"))
    _one_of("dtype", dtype, ("uint8", "float32", "bfloat16", "float16"))
    c, h, w = shape
    extents = (count, c, h, w) if layout == "NCHW" else (count, h, w, c)
    if isinstance(backend, _Cuda) and _native_type(dtype) == "half":
        return backend.zeros((*extents[:-1], extents[-1] * 2), np.uint8)
    return backend.zeros(extents, np.uint16 if _native_type(dtype) == "half" else dtype)


def _typed(backend: _Backend, array: Any, dtype: str) -> Any:
    if isinstance(backend, _Cuda) and _native_type(dtype) == "half":
        return array.view(getattr(sys.modules["torch"], dtype))
    return array


# ---- search ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What the arithmetic of a search needs to know (docs/arithmetic.md); validated here, once.

    ``shape``: (C, H, W). ``budget``: queries a seed, its own included. ``linf``: bound around the seed in grey levels or None.
    ``grid``: cells per unit of probability for ``coverage="hash"``. ``threshold``: squared distance for ``"nearest"``. ``capacity``: tags
    (a power of two) or states a chain remembers; None is 2 * budget tags, rounded up to a power of two within 16..65,536, or 64 states.
    """

    shape: tuple[int, int, int]
    seed: int = 0
    budget: int = 1000
    overflow: str = "clip"
    linf: int | None = None
    skip_identity: bool = False
    selection: str = "metropolis"
    acceptance: str = "improve"
    coverage: str = "hash"
    grid: int = 10
    threshold: float = 0.5
    capacity: int | None = None
    original_scores: str = "logits"
    compressed_scores: str = "logits"

    def __post_init__(self) -> None:
        _check_seed(self.seed)
        _one_of("overflow", self.overflow, ("clip", "wrap"))
        _one_of("selection", self.selection, ("metropolis", "rank", "uniform"))
        _one_of("acceptance", self.acceptance, ("improve", "change", "always", "never"))
        _one_of("coverage", self.coverage, ("hash", "nearest"))
        _one_of("original_scores", self.original_scores, ("logits", "probabilities"))
        _one_of("compressed_scores", self.compressed_scores, ("logits", "probabilities"))
        _within("budget", self.budget, 1, (1 << 32) - 2)
        _within("grid", self.grid, 1, 1 << 15)
        if self.linf is not None:
            _within("linf", self.linf, 0, 255)
        if not 0 < self.threshold <= 4:
            msg = f"threshold: expected a squared distance in (0, 4], got {self.threshold}"
            raise ValueError(msg)
        if self.capacity is not None:
            _within("capacity", self.capacity, 1, 1 << 24)
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


def _within(name: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        msg = f"{name}: expected an integer, got {type(value).__name__}"
        raise TypeError(msg)
    if not low <= value <= high:
        msg = f"{name}: expected {low}..{high}, got {value}"
        raise ValueError(msg)


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
        _within("count", count, 1, 1 << 24)
        self.rules = rules
        self.count = count
        self._backend = _backend(device, threads, isa)
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
        """Device memory a slot takes, its share of the ring included; coverage of ``nearest`` only once the first scores are in."""
        shared = ("seeds", "identities", "queue", "counters")
        return sum(self._backend.view(array)[1] for name, array in self._arrays.items() if name not in shared) // self.count

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
        return self._backend.get(self._arrays["chains"]).view(CHAIN).reshape(-1)

    def new_input(self, *, layout: str = "NCHW", dtype: str = "uint8") -> Any:
        """Return an array for ``mutate`` to write into: uint8, float32, or 16-bit patterns as uint16."""
        return _input_array(self._backend, self.count, self.rules.shape, layout, dtype)

    def new_table(self, table: npt.NDArray[np.float32], dtype: str) -> Any:
        """Return a float32 ``[C, 256]`` table in the form ``mutate`` reads for inputs of ``dtype``."""
        return self._backend.put(_native_table(table, self.rules.shape[0], dtype))

    def drain(self) -> dict[str, Any]:
        """Return the chains harvested since the last call: ``chains`` [M], ``images`` [M, C, H, W], ``traces`` (list of M).

        NumPy arrays that the caller owns. Waits for the device on CUDA.
        """
        ended = self.counters["ended"]
        places = np.arange(self._consumed, ended) % self.ring_capacity
        self._consumed = ended
        if isinstance(self._backend, _Host):
            chains, images, traces = (self._arrays[name][places] for name in ("ring_chains", "ring_images", "ring_traces"))
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
                msg = f"state[{name!r}]: expected {expected[name].dtype} with extents {wanted}, got {saved.dtype} {saved.shape}"
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

    ``out`` comes from ``chains.new_input(layout=, dtype=)`` and ``table`` from ``chains.new_table``; uint8 needs no table. Slots without
    work are left as they are. DFlare section 2 and 3; asynchronous on CUDA.
    """
    backend = chains._backend
    backend.call(
        "mutate",
        chains._slots,
        data=backend.view(out),
        table=(0, 0) if table is None else backend.view(table),
        type=_native_type(dtype),
        layout=layout,
    )


def judge(chains: Chains, original: Any, compressed: Any) -> None:
    """Judge the scores of both models on what ``mutate`` wrote and take every working chain one step further.

    Scores: floating ``[count, K]``, any DLPack array on the device of ``chains``; converted to float32. K may not change between calls.
    Non-finite scores end their chain as a finding. Docs/arithmetic.md section 4; asynchronous on CUDA.
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
    if _is_tensor(value):
        value = value.detach().float().contiguous()  # NumPy cannot express bfloat16
    array = _array(name, value)
    if _device_of(array).split(":")[0] != chains.device.split(":")[0]:
        msg = f"{name}: expected scores on {chains.device}, got {_device_of(array)}"
        raise ValueError(msg)
    if array.ndim != 2 or array.shape[0] != chains.count or array.shape[1] < 2:
        msg = f"{name}: expected scores [{chains.count}, K] with K >= 2, got {tuple(array.shape)}"
        raise ValueError(msg)
    if _is_tensor(array):
        return array
    if array.dtype.kind != "f":
        msg = f"{name}: expected floating scores, got {array.dtype}"
        raise TypeError(msg)
    return np.ascontiguousarray(array, np.float32)


def harvest(chains: Chains) -> None:
    """Move ended chains into the ring that ``Chains.drain`` reads; a full ring parks them in their slots. Asynchronous on CUDA."""
    chains._backend.call("harvest", chains._slots, consumed=chains._consumed, threaded=False)


def refill(chains: Chains) -> None:
    """Load the next seeds of the queue into idle slots and count the work of the next iteration. Asynchronous on CUDA."""
    chains._backend.call("refill", chains._slots, threaded=False)


