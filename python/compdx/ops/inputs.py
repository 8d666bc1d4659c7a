"""Model inputs: pixels looked up in a table of their channel, in the layout and dtype a model wants."""

from __future__ import annotations

import sys
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from compdx.ops.backend import Backend, Cuda, backend_for
from compdx.ops.checks import as_array, as_images, as_memory, device_of, one_of, type_name

Layout = Literal["NCHW", "NHWC"]
InputType = Literal["float32", "bfloat16", "float16"]


_INPUT_TYPES = ("float32", "bfloat16", "float16")


def normalize(
    images: Any,
    table: npt.NDArray[np.float32],
    *,
    layout: Layout = "NCHW",
    dtype: InputType = "float32",
    threads: int | None = None,
) -> Any:
    """Return model inputs: every value of every pixel looked up in its channel's table.

    Args:
        images: uint8 ``[N, C, H, W]``; any DLPack array, CPU or CUDA.
        table: float32 ``[C, 256]`` on the CPU; rounded to nearest even for the 16-bit types.
        layout: ``"NCHW"`` for a result ``[N, C, H, W]``, ``"NHWC"`` for ``[N, H, W, C]``.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        threads: CPU only; changes the speed, not the result.

    Returns:
        A new array: NumPy on the CPU, 16-bit types as uint16 bit patterns (NumPy has no bfloat16); on CUDA a PyTorch
        tensor of the type asked for.

    Randomness: none.
    Device: that of ``images``; asynchronous on CUDA, on PyTorch's current stream.
    Errors: TypeError or ValueError that name the argument.
    """
    return Normalizer(as_images("images", images), table, layout=layout, dtype=dtype, threads=threads)()


class Normalizer:
    """`normalize` for images that stay where they are: each call reads the same memory and writes the same memory.

    Args:
        images: uint8 ``[N, C, H, W]``, C-contiguous, CPU or CUDA; held, and read at each call.
        table, layout, dtype, threads: See `normalize`.

    A call returns what `normalize` does, in the array of the call before. On CUDA it can be captured in a graph.
    Errors: TypeError or ValueError that name the argument.
    """

    def __init__(
        self,
        images: Any,
        table: npt.NDArray[np.float32],
        *,
        layout: Layout = "NCHW",
        dtype: InputType = "float32",
        threads: int | None = None,
    ) -> None:
        array = as_images("images", images)
        device = device_of(array)
        count, *shape = (int(extent) for extent in array.shape)
        self._images = as_memory("images", images, (count, *shape), ("uint8",), device, written=False)
        self._backend = backend_for(device, threads)
        self._out = input_array(self._backend, count, (shape[0], shape[1], shape[2]), layout, dtype)
        self._table = self._backend.put(native_table(table, shape[0], dtype))
        self._typed = typed(self._backend, self._out, dtype)
        self._call: dict[str, Any] = {
            "images": self._backend.view(self._images),
            "count": count,
            "shape": tuple(shape),
            "data": self._backend.view(self._out),
            "table": self._backend.view(self._table),
            "type": native_type(dtype),
            "layout": layout,
        }

    def __call__(self) -> Any:
        """Model inputs of what the images are now."""
        self._backend.call("normalize", **self._call)
        return self._typed


def native_type(dtype: str) -> str:
    return {"uint8": "uint8", "float32": "float32"}.get(dtype, "half")


def native_table(table: npt.NDArray[np.float32], channels: int, dtype: str) -> npt.NDArray[Any]:
    one_of("dtype", dtype, _INPUT_TYPES)
    table = as_array("table", table)
    if type_name(table) != "float32":
        msg = f"table: expected float32, got {type_name(table)}"
        raise TypeError(msg)
    if device_of(table) != "cpu" or tuple(table.shape) != (channels, 256):
        msg = f"table: expected shape ({channels}, 256) on the CPU, got {tuple(table.shape)} on {device_of(table)}"
        raise ValueError(msg)
    table = np.ascontiguousarray(table)
    if dtype == "float32":
        return table
    if dtype == "float16":
        return table.astype(np.float16).view(np.uint16)
    # Round to nearest even on the bits; NumPy has no bfloat16.
    bits = table.view(np.uint32).astype(np.uint64)
    rounded: npt.NDArray[np.uint16] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded


def check_input(layout: str, dtype: str) -> None:
    one_of("layout", layout, ("NCHW", "NHWC"))
    one_of("dtype", dtype, ("uint8", *_INPUT_TYPES))


def input_shape(count: int, shape: tuple[int, int, int], layout: str) -> tuple[int, int, int, int]:
    c, h, w = shape
    return (count, c, h, w) if layout == "NCHW" else (count, h, w, c)


def input_array(backend: Backend, count: int, shape: tuple[int, int, int], layout: str, dtype: str) -> Any:
    check_input(layout, dtype)
    return backend.zeros(input_shape(count, shape, layout), np.uint16 if native_type(dtype) == "half" else dtype)


def typed(backend: Backend, array: Any, dtype: str) -> Any:
    if isinstance(backend, Cuda) and native_type(dtype) == "half":
        return array.view(getattr(sys.modules["torch"], dtype))
    return array
