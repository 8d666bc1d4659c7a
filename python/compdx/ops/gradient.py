"""The steps of a gradient search: the images move, their pictures are drawn, the models' answers are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from compdx.ops.backend import Backend, active_rows, backend_for, optional_view
from compdx.ops.checks import (
    as_array,
    as_images,
    as_memory,
    as_scores,
    check_flag,
    check_shape,
    device_of,
    import_torch,
    is_tensor,
    like,
    one_of,
    type_name,
)
from compdx.ops.inputs import native_table

_OUTPUTS = ("logits", "probabilities")
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True, eq=False)
class Descent:
    """How a gradient search moves its images (docs/arithmetic.md section 6); validated here, once.

    Args:
        shape: (C, H, W) of the images.
        table: float32 ``[C, 256]``, the model input of every grey level, as ``compdx.Inputs.table`` returns it: evenly
            spaced and increasing in every channel. It says what the units of everything here are.
        step: factor of the gradient, a finite number; CompD's code has 0.9.
        bound: ``[C]``, the largest change of a value in one step, finite and at least 0; None: no bound. CompD's
            constraint, which it sets to the variance of each channel.
        total: ``[C]``, the largest distance of a value from that of its seed, finite and at least 0; None: no bound.
        project: keep the images within the range of pictures, from the model input of level 0 to that of level 255.
        lattice: after every step the image becomes the model input of its picture. Its distance from where it was and
            from its seed may then exceed ``bound`` and ``total`` by half a grey level.

    Errors: TypeError or ValueError that name the argument.
    """

    shape: tuple[int, int, int]
    table: npt.NDArray[np.float32]
    step: float = 0.9
    bound: Any = None
    total: Any = None
    project: bool = True
    lattice: bool = False
    scale: npt.NDArray[np.float32] = field(init=False, repr=False)
    _placed: dict[str, dict[str, Any]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        check_shape(self.shape)
        if not isinstance(self.step, float | int | np.floating) or isinstance(self.step, bool):
            msg = f"step: expected a number, got {type(self.step).__name__}"
            raise TypeError(msg)
        if not abs(self.step) <= _LARGEST:
            msg = f"step: expected a finite number of float32, got {self.step}"
            raise ValueError(msg)
        check_flag("project", self.project)
        check_flag("lattice", self.lattice)
        table = native_table(self.table, self.shape[0], "float32").copy()
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "scale", _scale_of(table))
        for name in ("bound", "total"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _limits(name, getattr(self, name), self.shape[0]))

    def on(self, backend: Backend) -> dict[str, Any]:
        """The arrays of this descent where the backend reads them; brought there once."""
        if backend.name not in self._placed:
            arrays = {name: getattr(self, name) for name in ("table", "scale", "bound", "total")}
            self._placed[backend.name] = {
                name: None if array is None else backend.put(array) for name, array in arrays.items()
            }
        return self._placed[backend.name]


def _scale_of(table: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Grey levels a unit of model input, float32 ``[C]``, of a table whose levels are their own pictures."""
    if not np.isfinite(table).all() or not (np.diff(table.astype(np.float64)) > 0).all():
        msg = "table: expected finite values that increase in every channel"
        raise ValueError(msg)
    ends = table[:, [0, 255]].astype(np.float64)
    with np.errstate(over="ignore"):
        scale: npt.NDArray[np.float32] = (255 / (ends[:, 1] - ends[:, 0])).astype(np.float32)
        level = (table - table[:, :1]) * scale[:, None]
    if not (np.rint(np.clip(level, 0, 255)) == np.arange(256)).all():
        msg = "table: expected evenly spaced values, each of them nearest to its own grey level"
        raise ValueError(msg)
    return scale


def _limits(name: str, value: Any, channels: int) -> npt.NDArray[np.float32]:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        msg = f"{name}: expected numbers, got {array.dtype}"
        raise TypeError(msg)
    if array.shape != (channels,):
        msg = f"{name}: expected shape ({channels},), one number a channel, got {array.shape}"
        raise ValueError(msg)
    if not ((array >= 0) & (array <= _LARGEST)).all():
        msg = f"{name}: expected finite numbers of at least 0, got {array.tolist()}"
        raise ValueError(msg)
    return array.astype(np.float32)


def descend(
    descent: Descent,
    state: Any,
    gradient: Any,
    origin: Any,
    picture: Any,
    *,
    active: Any = None,
    threads: int | None = None,
    isa: str | None = None,
) -> tuple[Any, Any]:
    """Move every image one step against its gradient and draw its picture, in one pass over the memory.

    ``state`` changes by ``-step * gradient``, within ``bound``; then it is kept within ``total`` of the seed and, with
    ``project``, within the range of pictures. The picture is the nearest grey level. CompD sections 1, 3 and 4,
    docs/arithmetic.md section 6; a gradient that is not finite counts as 0.

    Args:
        descent: how images move.
        state: float32 ``[B, C, H, W]``, writable and C-contiguous: the model inputs, changed in place.
        gradient: float32 ``[B, C, H, W]``; copied when it is not C-contiguous.
        origin: uint8 ``[B, C, H, W]``, the seeds.
        picture: uint8 ``[B, C, H, W]``, writable and C-contiguous: overwritten.
        active: uint8 or bool ``[B]``, on the CPU or where ``state`` is; None is all. Rows of 0 are left as they are.
        threads, isa: CPU only; they change the speed, not the result.

    Returns:
        The distances of the pictures to the seeds in grey levels: squared Euclidean, int64 ``[B]``, and largest, uint8
        ``[B]``; 0 where not active. PyTorch tensors when ``state`` is one and for every library on CUDA, else NumPy.

    Randomness: none.
    Device: that of ``state``, where all other arrays must be; asynchronous on CUDA, on PyTorch's current stream, but
    for the first call of a ``descent`` on a device. The CPU and CUDA give the same bytes.
    Errors: TypeError or ValueError that name the argument.
    """
    if not isinstance(descent, Descent):
        msg = f"descent: expected Descent, got {type(descent).__name__}"
        raise TypeError(msg)
    array = as_array("state", state)
    device = device_of(array)
    if array.ndim != 4:
        msg = f"state: expected shape [B, {', '.join(map(str, descent.shape))}], got {tuple(array.shape)}"
        raise ValueError(msg)
    count = int(array.shape[0])
    shape = (count, *descent.shape)
    backend = backend_for(device, threads, isa)
    moved = as_memory("state", state, shape, ("float32",), device, written=True)
    drawn = as_memory("picture", picture, shape, ("uint8",), device, written=True)
    slope = _like_state("gradient", as_array("gradient", gradient), shape, "float32", device)
    seeds = _like_state("origin", as_images("origin", origin), shape, "uint8", device)
    rows = active_rows(backend, active, count)
    l2_squared, linf = backend.zeros((count,), np.int64), backend.zeros((count,), np.uint8)
    units: dict[str, Any] = {name: optional_view(backend, placed) for name, placed in descent.on(backend).items()}
    backend.call(
        "descend",
        shape=descent.shape,
        step=float(descent.step),
        project=descent.project,
        lattice=descent.lattice,
        count=count,
        active=optional_view(backend, rows),
        state=backend.view(moved),
        gradient=backend.view(slope),
        origin=backend.view(seeds),
        picture=backend.view(drawn),
        l2_squared=backend.view(l2_squared),
        linf=backend.view(linf),
        **units,
    )
    return like(state, l2_squared), like(state, linf)


def _like_state(name: str, array: Any, shape: tuple[int, ...], dtype: str, device: str) -> Any:
    if type_name(array) != dtype:
        msg = f"{name}: expected {dtype}, got {type_name(array)}"
        raise TypeError(msg)
    if tuple(array.shape) != shape:
        msg = f"{name}: expected shape {shape}, got {tuple(array.shape)}"
        raise ValueError(msg)
    if device_of(array) != device:
        msg = f"{name}: expected an array on {device}, got {device_of(array)}"
        raise ValueError(msg)
    return array.contiguous() if is_tensor(array) else np.require(array, requirements=["C", "A"])


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What both models say of each image, the original first.

    Attributes:
        labels: int32 ``[B, 2]``; -1 where the model's scores are not finite.
        confidences: uint32 ``[B, 2]``, the softmax of the label (or its probability) in 2**-30; 0 where not finite.
        non_finite: uint8 ``[B]``, bit 0 for the original, bit 1 for the compressed model.
    """

    labels: Any
    confidences: Any
    non_finite: Any


def verdicts(
    a: Any,
    b: Any,
    *,
    outputs: tuple[str, str] = ("logits", "logits"),
    threads: int | None = None,
    isa: str | None = None,
) -> Verdicts:
    """Return labels and confidences from the scores of both models, as the records of a search have them.

    Args:
        a, b: floating ``[B, K]``, K >= 2, of the original and of the compressed model; any DLPack array; converted to
            float32.
        outputs: ``"logits"`` or ``"probabilities"``, of each model.
        threads, isa: CPU only; they change the speed, not the result.

    Returns:
        New arrays: PyTorch tensors when ``a`` is one and for every library on CUDA, else NumPy.

    Randomness: none.
    Device: that of ``a``; asynchronous on CUDA, on PyTorch's current stream. The CPU and CUDA give the same bytes.
    Errors: TypeError or ValueError that name the argument. docs/arithmetic.md section 4.
    """
    if not isinstance(outputs, tuple) or len(outputs) != 2:
        msg = f"outputs: expected one name for each model, got {outputs!r}"
        raise TypeError(msg)
    for name in outputs:
        one_of("outputs", name, _OUTPUTS)
    device = device_of(as_array("a", a) if not is_tensor(a) else a)
    original = as_scores("a", a, device)
    compressed = as_scores("b", b, device, int(original.shape[0]))
    if original.shape != compressed.shape:
        msg = f"a, b: expected scores of one shape, got {tuple(original.shape)} and {tuple(compressed.shape)}"
        raise ValueError(msg)
    count, classes = map(int, original.shape)
    backend = backend_for(device, threads, isa)
    labels = backend.zeros((count, 2), np.int32)
    confidences = backend.zeros((count, 2), np.int32)  # of the same size; PyTorch does little with unsigned integers
    non_finite = backend.zeros((count,), np.uint8)
    backend.call(
        "verdicts",
        original=backend.view(original),
        compressed=backend.view(compressed),
        count=count,
        classes=classes,
        original_scores=outputs[0],
        compressed_scores=outputs[1],
        labels=backend.view(labels),
        confidences=backend.view(confidences),
        non_finite=backend.view(non_finite),
    )
    unsigned = confidences.view(np.uint32 if device == "cpu" else import_torch("a").uint32)
    return Verdicts(*(like(a, array) for array in (labels, unsigned, non_finite)))
