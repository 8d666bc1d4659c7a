"""Model inputs: pixels looked up in a table of their channel, in the layout and dtype a model wants."""

from __future__ import annotations

import sys
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from compdx.ops.backend import Backend, Cuda, backend_for
from compdx.ops.checks import as_images, device_of, one_of

Layout = Literal["NCHW", "NHWC"]
InputType = Literal["float32", "bfloat16", "float16"]


def normalize(
    images: Any,
    table: npt.NDArray[np.float32],
    *,
    layout: Layout = "NCHW",
    dtype: InputType = "float32",
    threads: int | None = None,
) -> Any:
    """Return model inputs: every value of every pixel looked up in its channel's table.

    ``images`` uint8 ``[N, C, H, W]``; ``table`` float32 ``[C, 256]``, rounded to nearest even for the 16-bit types. The
    result is ``[N, C, H, W]`` or, for ``layout="NHWC"``, ``[N, H, W, C]``: float32, or for ``"bfloat16"`` and
    ``"float16"`` the bit patterns as uint16 (NumPy has no bfloat16); on CUDA a tensor of that type. Asynchronous on
    CUDA.
    """
    array = as_images("images", images)
    backend = backend_for(device_of(array), threads)
    shape = (int(array.shape[1]), int(array.shape[2]), int(array.shape[3]))
    out = input_array(backend, int(array.shape[0]), shape, layout, dtype)
    entries = backend.put(native_table(table, shape[0], dtype))
    backend.call(
        "normalize",
        images=backend.view(array),
        count=int(array.shape[0]),
        shape=shape,
        data=backend.view(out),
        table=backend.view(entries),
        type=native_type(dtype),
        layout=layout,
    )
    return typed(backend, out, dtype)


def native_type(dtype: str) -> str:
    return {"uint8": "uint8", "float32": "float32"}.get(dtype, "half")


def native_table(table: npt.NDArray[np.float32], channels: int, dtype: str) -> npt.NDArray[Any]:
    table = np.asarray(table)
    if table.dtype != np.float32 or table.shape != (channels, 256):
        msg = f"table: expected float32 [{channels}, 256], got {table.dtype} {table.shape}"
        raise ValueError(msg)
    one_of("dtype", dtype, ("float32", "bfloat16", "float16"))
    if dtype == "float32":
        return np.ascontiguousarray(table)
    if dtype == "float16":
        return table.astype(np.float16).view(np.uint16)
    # Round to nearest even on the bits; NumPy has no bfloat16.
    bits = np.ascontiguousarray(table).view(np.uint32).astype(np.uint64)
    rounded: npt.NDArray[np.uint16] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded


def input_array(backend: Backend, count: int, shape: tuple[int, int, int], layout: str, dtype: str) -> Any:
    one_of("layout", layout, ("NCHW", "NHWC"))
    one_of("dtype", dtype, ("uint8", "float32", "bfloat16", "float16"))
    c, h, w = shape
    extents = (count, c, h, w) if layout == "NCHW" else (count, h, w, c)
    if isinstance(backend, Cuda) and native_type(dtype) == "half":
        return backend.zeros((*extents[:-1], extents[-1] * 2), np.uint8)
    return backend.zeros(extents, np.uint16 if native_type(dtype) == "half" else dtype)


def typed(backend: Backend, array: Any, dtype: str) -> Any:
    if isinstance(backend, Cuda) and native_type(dtype) == "half":
        return array.view(getattr(sys.modules["torch"], dtype))
    return array
