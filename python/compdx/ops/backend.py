"""Where arrays live and who computes on them: NumPy and threads on the CPU, PyTorch tensors and its stream on CUDA."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from compdx import _core


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


class Cuda:
    """Arrays on a CUDA device: PyTorch tensors, PyTorch's current stream."""

    def __init__(self, device: str) -> None:
        import torch  # PyTorch owns the memory of CUDA devices here

        if not build_info()["cuda_architectures"]:
            msg = f"device {device!r} was asked for, but this build of compdx has no CUDA kernels; build it with nvcc"
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
                event = self._torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record()
            self._polled = (pinned, event)
        return self._latest

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
    if device.split(":")[0] == "cuda":
        return Cuda(device)
    msg = f"device: expected 'cpu' or 'cuda[:n]', got {device!r}"
    raise ValueError(msg)
