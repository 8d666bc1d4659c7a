"""Sixteen-bit floating point: weights and arithmetic in bfloat16 or float16."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any, Literal

from compdx.compress.common import NEEDS, copied, figures, stored
from compdx.compressed import Compressed
from compdx.model import import_optional
from compdx.training import set_mode


def half(model: Any, dtype: Literal["bfloat16", "float16"] = "bfloat16") -> Compressed:
    """Run a torch module in 16-bit floating point.

    The model under test converts its float32 input, computes in ``dtype`` and returns float32 scores. The twin is a
    float32 copy with the weights rounded to ``dtype``: it has the model's weights and the gradients of exact
    arithmetic, which in 16 bits would vanish or overflow, and small steps of a training are not lost in rounding.

    Args:
        model: A torch module in eval mode with floating weights. It is not changed.
        dtype: ``"bfloat16"`` or ``"float16"``.

    Raises:
        ModuleNotFoundError: torch is missing.
        TypeError, ValueError: An argument is of the wrong kind; a weight is too large for ``dtype``.

    Nothing is random. Runs on the device of the module. Most CPUs have no arithmetic in float16 and are very slow
    at it.
    """
    if dtype not in ("bfloat16", "float16"):
        msg = f"dtype must be 'bfloat16' or 'float16', got {dtype!r}"
        raise ValueError(msg)
    torch = import_optional("torch", NEEDS)
    kind = getattr(torch, dtype)
    twin = copied(model).float()
    tensors = [item for item in (*twin.named_parameters(), *twin.named_buffers()) if item[1].is_floating_point()]
    with torch.no_grad():
        for name, tensor in tensors:
            rounded = tensor.to(kind).to(tensor.dtype)
            if bool((rounded.isinf() & tensor.isfinite()).any()):
                msg = f"model must fit into {dtype}, but {name} holds {float(tensor.abs().max()):.6g}"
                raise ValueError(msg)
            tensor.copy_(rounded)

    def convert(twin: Any) -> Any:
        network = set_mode(copy.deepcopy(twin), training=False)
        return _sixteen_bit()(network.to(kind), kind).eval()

    result = convert(twin)
    record = figures("half", {"dtype": dtype}, model, result.parameters(), stored(result))
    return Compressed(model=result, twin=set_mode(twin, training=False), record=record, convert=convert)


@cache
def _sixteen_bit() -> Any:
    torch = import_optional("torch", NEEDS)

    class SixteenBit(torch.nn.Module):  # type: ignore[misc, name-defined]
        """A network of 16-bit weights behind a float32 face."""

        def __init__(self, network: Any, dtype: Any) -> None:
            super().__init__()
            self.network, self.dtype = network, dtype

        def forward(self, x: Any) -> Any:
            return self.network(x.to(self.dtype)).float()

    return SixteenBit
