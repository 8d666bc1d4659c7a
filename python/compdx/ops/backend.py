"""Where arrays live and who computes on them: NumPy and threads on the CPU, PyTorch tensors and its stream on CUDA."""

from __future__ import annotations

import os
import re
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt

from compdx import _core
from compdx.ops.checks import as_array, device_of, import_torch, is_tensor, one_of, type_name, within

# Threads start once and stay; more than any machine has cores is a mistake.
_MAX_THREADS = 4096

# Iterations that the host may be ahead of what it knows of a CUDA device.
_POLL_LAG = 8


def build_info() -> dict[str, str]:
    """Return version, compiler, flags, CUDA architectures (empty: built without CUDA), best instruction set here."""
    return dict(_core.build_info())


def available_isas() -> tuple[str, ...]:
    """Return the instruction sets that the CPU loops can use on this machine, best first."""
    return tuple(_core.available_isas())


def cuda_device_count() -> int:
    """Return the number of CUDA devices that compdx can use; 0 without a driver or without CUDA in the build."""
    return int(_core.cuda_device_count())


def default_threads() -> int:
    """Return PyTorch's thread count when PyTorch is loaded, else the number of CPUs this process may use."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Host:
    """Arrays in main memory: NumPy."""

    name = "cpu"
    asynchronous = False

    def __init__(self, threads: int | None, isa: str | None) -> None:
        if threads is not None:
            within("threads", threads, 1, _MAX_THREADS)
        if isa is not None:
            one_of("isa", isa, available_isas())
        self._how = {"threads": threads or default_threads(), "isa": isa or ""}

    def zeros(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Any:
        return np.zeros(shape, dtype)

    def put(self, array: npt.NDArray[Any]) -> Any:
        return np.ascontiguousarray(array)

    def send(self, array: npt.NDArray[Any]) -> Any:
        return self.put(array)

    def get(self, array: Any) -> npt.NDArray[Any]:
        return np.array(array)

    def view(self, array: Any) -> tuple[int, int]:
        return array.__array_interface__["data"][0], array.nbytes  # array.ctypes makes an object or two on the way

    def set_bytes(self, array: Any, place: int, value: np.generic) -> None:
        array.view(np.uint8).reshape(-1)[place : place + value.nbytes] = np.frombuffer(value.tobytes(), np.uint8)

    def poll(self, array: Any) -> npt.NDArray[Any]:
        return self.get(array)

    def aside(self) -> AbstractContextManager[None]:
        return nullcontext()

    def call(self, name: str, *args: Any, threaded: bool = True, **kwargs: Any) -> None:
        getattr(_core, f"cpu_{name}")(*args, **kwargs, **(self._how if threaded else {}))


# Of structured and wide unsigned types only the bytes matter on a device: they get a last axis of their bytes.
_TENSOR_TYPES = ("uint8", "uint16", "int32", "int64", "float32")


class Cuda:
    """Arrays on a CUDA device: PyTorch tensors, PyTorch's current stream."""

    asynchronous = True

    def __init__(self, device: str) -> None:
        if not build_info()["cuda_architectures"]:
            msg = f"device {device!r} was asked for, but this build of compdx has no CUDA kernels; build it with nvcc"
            raise RuntimeError(msg)
        torch = import_torch("device")
        if not torch.cuda.is_available():
            msg = f"device {device!r} was asked for, but PyTorch sees no CUDA device"
            raise RuntimeError(msg)
        index = int(device.partition(":")[2] or torch.cuda.current_device())
        if index >= torch.cuda.device_count():
            msg = f"device {device!r} was asked for, but PyTorch sees {torch.cuda.device_count()} CUDA devices"
            raise RuntimeError(msg)
        self._torch = torch
        self._device = torch.device("cuda", index)
        self._polled: deque[tuple[Any, Any]] = deque()  # copies under way to pinned memory, with their events
        self._latest: npt.NDArray[Any] | None = None
        self._side: Any = None
        self.name = f"cuda:{index}"  # as tensors write it, whatever device is current later

    def zeros(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Any:
        dtype = np.dtype(dtype)
        try:
            if dtype.name in _TENSOR_TYPES:
                return self._torch.zeros(shape, dtype=getattr(self._torch, dtype.name), device=self._device)
            return self._torch.zeros((*shape, dtype.itemsize), dtype=self._torch.uint8, device=self._device)
        except self._torch.cuda.OutOfMemoryError as error:
            raise MemoryError(str(error)) from error

    def put(self, array: npt.NDArray[Any]) -> Any:
        # What kernels read of a result may be dropped right after their launch: PyTorch's allocator gives the memory
        # to nobody but later work on the same stream.
        array = np.ascontiguousarray(array)
        if array.dtype.name not in _TENSOR_TYPES:
            array = array.view(np.uint8).reshape(*array.shape, array.dtype.itemsize)
        return self._torch.from_numpy(array.copy()).to(self._device)

    def send(self, array: npt.NDArray[Any]) -> Any:
        """Return the bytes of an array on the device, without waiting for it as ``put`` does."""
        flat = self._torch.from_numpy(np.array(array, order="C").reshape(-1).view(np.uint8))
        with self._torch.cuda.device(self._device):
            # PyTorch gives the pinned memory to nobody else until the copy is over.
            return flat.pin_memory().to(self._device, non_blocking=True)

    def get(self, array: Any) -> npt.NDArray[Any]:
        host: npt.NDArray[Any] = array.cpu().numpy()
        return host

    def set_bytes(self, array: Any, place: int, value: np.generic) -> None:
        """Overwrite a few bytes of an array in the order of the current stream, without waiting for it."""
        flat = array.view(self._torch.uint8).reshape(-1)
        flat[place : place + value.nbytes].copy_(self.send(np.array(value)), non_blocking=True)

    def poll(self, array: Any) -> npt.NDArray[Any]:
        """Return the newest copy that has arrived of the one small array that is polled, and ask for another.

        Waits only for one asked for ``_POLL_LAG`` calls ago, and in the first call, having nothing to return.
        """
        if self._latest is None:
            self._latest = self.get(array)
        while self._polled and (len(self._polled) >= _POLL_LAG or self._polled[0][1].query()):
            pinned, event = self._polled.popleft()
            event.synchronize()  # else the host would run ahead for as long as the launch queue is deep
            self._latest = pinned.numpy().copy()
        with self._torch.cuda.device(self._device):
            pinned = self._torch.empty(array.shape, dtype=array.dtype, pin_memory=True)
            pinned.copy_(array, non_blocking=True)
            event = self._torch.cuda.Event()
            event.record()
        self._polled.append((pinned, event))
        return self._latest

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Work on what is complete already, beside what the current stream has queued; only later work waits for it."""
        with self._torch.cuda.device(self._device):
            if self._side is None:
                self._side = self._torch.cuda.Stream()
            current = self._torch.cuda.current_stream()
            with self._torch.cuda.stream(self._side):
                yield
            current.wait_stream(self._side)

    def view(self, array: Any) -> tuple[int, int]:
        return array.data_ptr(), array.numel() * array.element_size()

    def call(self, name: str, *args: Any, threaded: bool = True, **kwargs: Any) -> None:  # noqa: ARG002
        with self._torch.cuda.device(self._device):
            stream = self._torch.cuda.current_stream().cuda_stream
            getattr(_core, f"cuda_{name}")(*args, **kwargs, stream=stream)


Backend = Host | Cuda


def backend_for(device: str, threads: int | None = None, isa: str | None = None) -> Backend:
    if device == "cpu":
        return Host(threads, isa)
    if isinstance(device, str) and re.fullmatch(r"cuda(:[0-9]{1,4})?", device):
        return Cuda(device)
    msg = f"device: expected 'cpu' or 'cuda[:n]', got {device!r}"
    raise ValueError(msg)


def active_rows(backend: Backend, active: Any, rows: int) -> Any:
    """The rows that take part, uint8 ``[rows]`` where the backend reads it, or None when all do."""
    if active is None:
        return None
    array = as_array("active", active)
    if type_name(array) not in ("uint8", "bool"):
        msg = f"active: expected uint8 or bool, got {type_name(array)}"
        raise TypeError(msg)
    if tuple(array.shape) != (rows,):
        msg = f"active: expected shape ({rows},), got {tuple(array.shape)}"
        raise ValueError(msg)
    if device_of(array) not in ("cpu", backend.name):
        msg = f"active: expected an array on {backend.name} or on the CPU, got {device_of(array)}"
        raise ValueError(msg)
    if is_tensor(array):
        return array.contiguous().view(sys.modules["torch"].uint8)
    return backend.send(np.ascontiguousarray(array).view(np.uint8))


def optional_view(backend: Backend, array: Any) -> tuple[int, int]:
    """The view of an array, or of nothing."""
    return (0, 0) if array is None else backend.view(array)
