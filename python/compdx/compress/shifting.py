"""Constants that a compressed model adds to what its layers compute: what the weights that are gone gave on average."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from compdx.compress.common import NEEDS, device_of
from compdx.compressed import Compressed
from compdx.model import import_optional

SHIFT = "shift"
"""The buffer of a layer that is added to its output."""


def shifted(compressed: Compressed, shifts: Mapping[str, Any]) -> Compressed:
    """The same compression with a constant added to the outputs of some layers, of the model and of its twin.

    The constants are buffers, named ``shift``, of the layers themselves, which a forward hook adds: names, classes and
    code of the modules stay as they are, and a training leaves the constants alone.

    Args:
        compressed: It is not changed.
        shifts: By the names of modules: finite arrays that broadcast to an output without its batch.

    Returns:
        A `Compressed` whose ``bytes`` count the constants and whose settings add ``shifts``, their shapes by layer.

    Raises:
        ModuleNotFoundError: torch is missing.
        ValueError: A layer does not exist or has such a constant already; an array is not finite.

    Runs on the devices of the layers. Nothing is random.
    """
    torch = import_optional("torch", NEEDS)
    modules, tested = (dict(network.named_modules()) for network in (compressed.twin, compressed.model))
    arrays = {}
    for name, values in shifts.items():
        if name not in modules or name not in tested:
            msg = f"shifts must name modules of the model and of its twin, got {name!r}"
            raise ValueError(msg)
        if hasattr(modules[name], SHIFT):
            msg = f"layer {name!r} must have no {SHIFT!r} of its own, but has one; it is added once only"
            raise ValueError(msg)
        arrays[name] = torch.as_tensor(np.asarray(values, np.float32)).clone()
        if not bool(torch.isfinite(arrays[name]).all()):
            msg = f"shifts of layer {name!r} must be finite"
            raise ValueError(msg)

    def convert(twin: Any) -> Any:
        bare = copy.deepcopy(twin)
        tensors = {name: _take(bare.get_submodule(name)) for name in arrays}
        return _put(compressed.convert(bare), tensors)

    twin = _put(copy.deepcopy(compressed.twin), arrays)
    record = dict(compressed.record)
    record["settings"] = {**record["settings"], "shifts": {name: list(array.shape) for name, array in arrays.items()}}
    record["bytes"] += sum(array.numel() * array.element_size() for array in arrays.values())
    start = compressed.start
    if start is not None:
        start = {**start, **{f"{name}.{SHIFT}": array.to(device_of(twin)) for name, array in arrays.items()}}
    return Compressed(model=convert(twin), twin=twin, record=record, convert=convert, start=start)


def _put(network: Any, tensors: dict[str, Any]) -> Any:
    """Let layers of a network add these constants, and return it."""
    for name, tensor in tensors.items():
        layer = network.get_submodule(name)
        layer.register_buffer(SHIFT, tensor.detach().clone().to(device_of(layer)))
        layer.register_forward_hook(_add)
    return network


def _take(layer: Any) -> Any:
    """Make a layer as it was without its constant, which is returned."""
    for key in [key for key, hook in layer._forward_hooks.items() if hook is _add]:
        del layer._forward_hooks[key]
    tensor = getattr(layer, SHIFT)
    delattr(layer, SHIFT)
    return tensor


def _add(layer: Any, _: Any, output: Any) -> Any:
    # Half a precision under autocast stays half a precision.
    return output + layer.shift.to(output.dtype)
