"""How a torch module is run in this process: compiled or not, in 16 bits by autocast, with a number of threads."""

from __future__ import annotations

import copy
import hashlib
import re
from functools import cache
from typing import Any

from compdx.environments.environment import Environment
from compdx.model import Model, import_optional, tensors_sha256
from compdx.runtimes.torch_export import held_threads

NEEDS = "an environment of torch"
MOST_SIZES = 256
"""Batch sizes that a module is compiled for; torch's own limit is 8, beyond which it silently runs uncompiled."""


def module_in(model: Model, environment: Environment) -> Any:
    """The model's module as it runs in an environment of ``"torch"``; the module itself where nothing is to be done."""
    module = model.module if model.device == environment.device else moved(model.module, environment.device)
    if environment.precision != "float32":
        module = autocast(module, environment)
    if environment.level not in (None, "eager"):
        module = _modules()["Compiled"](module, environment.level).eval()
    if environment.threads is not None:
        module = _modules()["Threads"](module, environment.threads).eval()
    return module


def twin_in(model: Model, environment: Environment) -> Any:
    """What gradients are taken through for a deployed file of the model: its module, in 16 bits where the file is."""
    twin = model.twin if model.device == environment.device else moved(model.twin, environment.device)
    return twin if environment.precision == "float32" else autocast(twin, environment)


def graph_sha256(module: Any) -> str:
    """SHA-256 of a module beside its weights: how it prints, its code where it was traced, tensors it has by itself."""
    torch = import_optional("torch", NEEDS)
    tensors = {
        f"{path}.{name}": value
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, torch.Tensor)
    }
    text = f"{module!r}\n{getattr(module, 'code', '')}\n{tensors_sha256(tensors)}"
    return hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", text).encode()).hexdigest()


def same_twin(a: Any, b: Any) -> bool:
    """Whether two twins are one module, at one precision."""
    kind = _modules()["Autocast"]
    if isinstance(a, kind) and isinstance(b, kind):
        return a.network is b.network and a.dtype == b.dtype
    return a is b


def autocast(module: Any, environment: Environment) -> Any:
    """The module under autocast, with float32 scores."""
    return _modules()["Autocast"](module, environment.device.partition(":")[0], environment.precision).eval()


def moved(module: Any, device: str) -> Any:
    """A copy of the module on another device."""
    return copy.deepcopy(module).to(device)


@cache
def _modules() -> dict[str, Any]:
    torch = import_optional("torch", NEEDS)

    class Wrapper(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, network: Any) -> None:
            super().__init__()
            self.network = network

        def train(self, mode: bool = True) -> Any:
            # An exported graph refuses train() and eval(), and a wrapper changes nothing in what it wraps.
            self.training = mode
            return self

    class Autocast(Wrapper):
        def __init__(self, network: Any, device: str, precision: str) -> None:
            super().__init__(network)
            self.device_type, self.dtype = device, getattr(torch, precision)

        def forward(self, x: Any) -> Any:
            with torch.autocast(self.device_type, self.dtype):
                scores = self.network(x)
            return scores.float()

    class Compiled(Wrapper):
        def __init__(self, network: Any, backend: str) -> None:
            super().__init__(network)
            self.compiled = [torch.compile(network, backend=backend, dynamic=False)]  # no second child module

        def forward(self, x: Any) -> Any:
            limits = {"recompile_limit": MOST_SIZES, "fail_on_recompile_limit_hit": True}
            with torch._dynamo.config.patch(limits):
                return self.compiled[0](x)

    class Threads(Wrapper):
        def __init__(self, network: Any, threads: int) -> None:
            super().__init__(network)
            self.threads = threads

        def forward(self, x: Any) -> Any:
            with held_threads(torch, self.threads):
                return self.network(x)

    return {"Autocast": Autocast, "Compiled": Compiled, "Threads": Threads}
