"""Trained networks as files: safetensors with all it takes to build and feed the network again, and no pickle."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from compdx.model import Inputs, Model, import_optional
from compdx.zoo.networks import build

NEEDS = "a network file"
SUFFIX = ".safetensors"
# What `build` and `Inputs` are called with; every file has these, each as JSON.
ARCHITECTURE = ("channels", "size", "classes")
PREPROCESSING = ("mean", "std", "bounds")


@dataclass(frozen=True, kw_only=True, eq=False)
class Pretrained:
    """A trained network with what it wants to be fed and what is known of it.

    Attributes:
        name: What it is called: the name of its file.
        network: The torch module, float32, in eval mode, on the CPU.
        inputs: Its preprocessing.
        about: ``network`` (a name that `build` takes), ``channels``, ``size``, ``classes``, ``mean``, ``std``,
            ``bounds``, and what it was saved with: of a network from `train_network` also ``accuracy`` (0..1, on its
            test images), ``recipe`` and ``seed``.
    """

    name: str
    network: Any
    inputs: Inputs
    about: dict[str, Any]

    def model(self, **settings: Any) -> Model:
        """The network as a `Model` with its preprocessing; ``settings`` are further keywords of `Model`."""
        preprocessing = {key: getattr(self.inputs, key) for key in PREPROCESSING}
        return Model(self.network, **{"name": self.name, **preprocessing, **settings})


def pretrained(name: str) -> Pretrained:
    """A network that comes with compdx.

    Args:
        name: ``"resnet20-cifar10"``: ResNet-20 (0.27 M parameters) for the ten classes of CIFAR-10.

    Raises:
        ModuleNotFoundError: torch or safetensors is missing.
        ValueError: No network of this name comes with compdx.
    """
    shipped = names()
    if name not in shipped:
        msg = f"name must be one of {', '.join(map(repr, shipped))}, got {name!r}"
        raise ValueError(msg)
    with resources.as_file(_weights() / f"{name}{SUFFIX}") as path:
        return load(path)


def names() -> list[str]:
    """The names of the networks that come with compdx."""
    folder = _weights()
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted(file.name.removesuffix(SUFFIX) for file in files if file.name.endswith(SUFFIX))


def save(
    network: Any,
    path: str | os.PathLike[str],
    *,
    name: str,
    inputs: Inputs,
    channels: int = 3,
    size: int = 32,
    classes: int = 10,
    half: bool = True,
    about: dict[str, Any] | None = None,
) -> Path:
    """Write a network of the zoo to one safetensors file, which is replaced in one step, and return its path.

    Args:
        network: What ``build(name, channels=..., size=..., classes=...)`` made, trained; it is not changed.
        path: The file, ending in ``.safetensors``.
        name, channels, size, classes: What `build` was called with.
        inputs: What the network is fed; layout and dtype are not kept, they are the choice of a `Model`.
        half: Store the weights of convolutions and linear layers as float16, everything else as it is.
        about: What else is to be known of the network: a dict of JSON values.

    Raises:
        ModuleNotFoundError: torch or safetensors is missing.
        ValueError: The network is none of this kind, ``path`` has another suffix, ``about`` holds a key that is taken,
            or a weight does not fit into float16.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        msg = f"path must end in {SUFFIX}, got {path}"
        raise ValueError(msg)
    known = {
        "network": name,
        **dict(zip(ARCHITECTURE, (channels, size, classes), strict=True)),
        **{key: getattr(inputs, key) for key in PREPROCESSING},
    }
    taken = sorted(known.keys() & (about or {}).keys())
    if taken:
        msg = f"about must not hold {', '.join(map(repr, taken))}, which the file has anyway"
        raise ValueError(msg)
    check_like(network, _blank(known))
    metadata = {key: json.dumps(value, allow_nan=False) for key, value in {**known, **(about or {})}.items()}
    safetensors = import_optional("safetensors.torch", NEEDS)
    temporary = path.with_name(path.name + ".tmp")
    # save_file would make a file that only its owner can read.
    temporary.write_bytes(safetensors.save(stored(network, half=half), metadata))
    temporary.replace(path)
    return path


def load(path: str | os.PathLike[str]) -> Pretrained:
    """Read what `save` wrote. Nothing pickled is loaded, and torch's random state is left as it was.

    Raises:
        ModuleNotFoundError: torch or safetensors is missing.
        FileNotFoundError: There is no such file.
        ValueError: It is no safetensors file, or not one of a network of the zoo.
    """
    path = Path(path)
    safetensors = import_optional("safetensors", NEEDS)
    if not path.is_file():
        msg = f"path must be a {SUFFIX} file, but there is no file {path}"
        raise FileNotFoundError(msg)
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except safetensors.SafetensorError as error:
        msg = f"{path}: not a readable safetensors file: {error}"
        raise ValueError(msg) from error
    missing = [key for key in ("network", *ARCHITECTURE, *PREPROCESSING) if key not in metadata]
    if missing:
        msg = f"{path}: not a network of the zoo: its metadata lack {', '.join(missing)}"
        raise ValueError(msg)
    try:
        about = {key: json.loads(metadata[key]) for key in sorted(metadata)}  # the file keeps no order
        network = _blank(about)
        network.load_state_dict(tensors)  # float16 becomes float32 again
        inputs = Inputs(**{key: about[key] for key in PREPROCESSING})
    except (ValueError, TypeError, RuntimeError) as error:
        msg = f"{path}: not a network of the zoo: {error}"
        raise ValueError(msg) from error
    return Pretrained(name=path.stem, network=network.eval(), inputs=inputs, about=about)


def stored(network: Any, *, half: bool) -> dict[str, Any]:
    """The tensors of a network as `save` stores them, on the CPU: ``half`` rounds those of two dimensions and more.

    Raises:
        ValueError: A weight does not fit into float16.
    """
    torch = import_optional("torch", NEEDS)
    tensors = {}
    for key, value in network.state_dict().items():
        # Cloned: safetensors refuses tensors that share memory, as the ranges of a fake-quantized network do.
        tensor = value.detach().cpu().contiguous().clone()
        if half and tensor.is_floating_point() and tensor.ndim > 1:
            tensor = tensor.half()
            if not torch.isfinite(tensor).all():
                msg = f"half needs weights that fit into float16, but those of {key} do not; pass half=False"
                raise ValueError(msg)
        tensors[key] = tensor
    return tensors


def restore(network: Any, path: Path) -> None:
    """Put what `stored` gave, read from a safetensors file, into a network of the same kind.

    Raises:
        safetensors.SafetensorError, RuntimeError: The file cannot be read, or has other keys or shapes.
    """
    safetensors = import_optional("safetensors.torch", NEEDS)
    tensors = OrderedDict(safetensors.load_file(path))
    # Modules ask for the version of what they are given; without one, observers take it for an old one and reset.
    tensors._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
    network.load_state_dict(tensors)


def _weights() -> Any:
    return resources.files("compdx.zoo") / "weights"


def _blank(about: dict[str, Any]) -> Any:
    """A network of this kind, whose weights are to be overwritten."""
    torch = import_optional("torch", NEEDS)
    with torch.random.fork_rng(devices=[]):
        return build(about["network"], **{key: about[key] for key in ARCHITECTURE})


def check_like(network: Any, model: Any, argument: str = "network") -> None:
    """Raise ``ValueError`` unless the network has the tensors of the model, by name and shape."""
    shapes, expected = ({key: list(t.shape) for key, t in m.state_dict().items()} for m in (network, model))
    for key in [*expected, *shapes]:
        if shapes.get(key) != expected.get(key):
            msg = (
                f"{argument} must be what build() makes with these arguments, which has {expected.get(key, 'nothing')} "
                f"at {key!r}, got {shapes.get(key, 'nothing')}"
            )
            raise ValueError(msg)
