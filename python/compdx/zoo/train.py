"""The training of a reference network from start to end, in a directory: checkpoints, resume, log, weights."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compdx import ops, training
from compdx.model import Inputs, import_optional
from compdx.seeds import Seeds
from compdx.training import Epoch, Recipe
from compdx.zoo import files
from compdx.zoo.files import Pretrained
from compdx.zoo.networks import SIZES, build

NEEDS = "training"
RECORD = "train.json"
LOG = "log.jsonl"
CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True, kw_only=True)
class MeasuredEpoch(Epoch):
    """One epoch with the accuracy (0..1) on the test images after it."""

    test_accuracy: float


def train_network(
    name: str,
    data: tuple[Seeds, Seeds],
    out: str | os.PathLike[str],
    *,
    recipe: Recipe | None = None,
    inputs: Inputs | None = None,
    seed: int = 0,
    device: str = "cpu",
    half: bool = True,
    start: Pretrained | None = None,
    resume: bool = False,
    listen: Callable[[MeasuredEpoch], object] | None = None,
    tick: Callable[[int, int], object] | None = None,
) -> Pretrained:
    """Train a network of the zoo and measure it.

    The test images choose nothing: what the recipe leaves is the result, the last epoch's weights or an average.

    Args:
        name: A name that `build` takes.
        data: Images to train with and to test on, labelled 0..K-1; see `read_data`.
        out: Directory for ``NAME.safetensors``, ``train.json`` (settings, machine, versions, epochs, accuracy),
            ``log.jsonl`` (a line an epoch) and, until the training ends, ``checkpoint.pt``.
        recipe: How; default `default_recipe`.
        inputs: What the network is fed; default: mean and standard deviation of every channel of the training images,
            or what ``start`` is fed.
        seed: Fixes the initial weights, the order and the augmentation. The caller's random state is left as it was.
        device: ``"cpu"`` or ``"cuda[:index]"``.
        half: Store the weights of convolutions and linear layers as float16; the accuracy is that of what is stored.
        start: A trained network of this kind to go on from; default a fresh one.
        resume: Continue the training in ``out`` after its last whole epoch. One that does not exist yet is started.
        listen: Called after every epoch of this call.
        tick: Called after every step with the steps done and those of the whole training.

    Returns:
        What `load` reads from the file.

    Raises:
        ModuleNotFoundError: torch or safetensors is missing.
        FileExistsError: ``out`` holds a training and ``resume`` is false, or something else.
        ValueError: The images cannot be used, the training in ``out`` has other settings, or the loss is not finite.

    On the CPU, the same arguments and number of threads give the same weights again, bit for bit, also when the
    training was killed and resumed.
    """
    torch = import_optional("torch", NEEDS)
    train, test = data
    labels, classes = _check(train, test)
    recipe = default_recipe(train.shape[0]) if recipe is None else recipe
    if inputs is None:
        inputs = inputs_of(train) if start is None else start.inputs
    architecture = {"channels": train.shape[0], "size": train.shape[1], "classes": classes}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = build(name, **architecture)
    if start is not None:
        files.check_like(start.network, network, "start")
        network.load_state_dict(start.network.state_dict())
    network.to(device)

    folder = Path(out)
    weights = folder / f"{name}{files.SUFFIX}"
    settings = {
        "network": name,
        **architecture,
        "recipe": recipe.settings(),
        "inputs": {key: getattr(inputs, key) for key in files.PREPROCESSING},
        "seed": seed,
        "half": half,
        "start": None if start is None else start.model().describe()["weights_sha256"],
        "train": {"images": len(train), "sha256": _fingerprint(train)},
        "test": {"images": len(test), "sha256": _fingerprint(test)},
    }
    finished = _open(folder, settings, resume=resume)
    if finished:
        return files.load(weights)
    state, epochs = _read_checkpoint(folder / CHECKPOINT)
    log = folder / LOG
    # A kill between checkpoint and log leaves one of them an epoch behind; the checkpoint counts.
    log.write_text("".join(_line(asdict(epoch)) for epoch in epochs), encoding="utf-8")

    def after(epoch: Epoch, state: Callable[[], dict[str, Any]]) -> None:
        training.set_mode(network, training=False)
        measured = MeasuredEpoch(**asdict(epoch), test_accuracy=training.accuracy(network, test, inputs))
        epochs.append(measured)
        _write_checkpoint(folder / CHECKPOINT, state(), epochs)
        with log.open("a", encoding="utf-8") as stream:
            stream.write(_line(asdict(measured)))
        if listen is not None:
            listen(measured)

    training.fit(network, train.images, labels, recipe, inputs=inputs, seed=seed, start=state, listen=after, tick=tick)
    network.load_state_dict(files.stored(network, half=half))
    accuracy = training.accuracy(training.set_mode(network, training=False), test, inputs)
    about: dict[str, Any] = {"accuracy": accuracy, "recipe": recipe.settings(), "seed": seed}
    if train.names is not None:
        about["names"] = train.names
    files.save(network, weights, name=name, inputs=inputs, half=half, about=about, **architecture)
    _write_record(
        folder,
        {
            **settings,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "machine": machine(device),
            "versions": versions(),
            "seconds": sum(epoch.seconds for epoch in epochs),
            "accuracy": accuracy,
            "epochs": [asdict(epoch) for epoch in epochs],
            "finished": True,
        },
    )
    (folder / CHECKPOINT).unlink()
    return files.load(weights)


def default_recipe(channels: int) -> Recipe:
    """`Recipe` as it stands for colour images; grey ones, often digits or letters, are not mirrored and shift less."""
    return Recipe() if channels == 3 else Recipe(flip=False, crop=2)


def inputs_of(seeds: Seeds) -> Inputs:
    """Mean and standard deviation of every channel in 0..1, to four digits."""
    levels = np.arange(256) / 255
    moments = []
    for channel in range(seeds.shape[0]):
        share = np.bincount(seeds.images[:, channel].ravel(), minlength=256) / seeds.images[:, channel].size
        mean = float(share @ levels)
        moments.append((mean, float(share @ (levels - mean) ** 2) ** 0.5))
    return Inputs(
        mean=tuple(round(mean, 4) for mean, _ in moments),
        # A channel without contrast is left as it is.
        std=tuple(round(std, 4) or 1.0 for _, std in moments),
    )


def machine(device: str) -> dict[str, Any]:
    """The class of the machine, not its name: processor, cores that may be used, instruction set, GPU."""
    facts: dict[str, Any] = {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "isa": ops.build_info()["isa"],
        "system": platform.system(),
    }
    torch = import_optional("torch", NEEDS)
    if device != "cpu":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return {**facts, "threads": torch.get_num_threads()}


def versions() -> dict[str, str]:
    """Of Python, of compdx and of the libraries that the weights depend on."""
    torch = import_optional("torch", NEEDS)
    return {
        "python": platform.python_version(),
        "compdx": str(ops.build_info()["version"]),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _check(train: Seeds, test: Seeds) -> tuple[npt.NDArray[np.int64], int]:
    """The training labels and the number of classes, once it is sure that the images can be used."""
    if train.labels is None or test.labels is None or min(train.labels.min(), test.labels.min()) < 0:
        msg = "data must have labels 0..K-1 on all images, got some without"
        raise ValueError(msg)
    if train.shape != test.shape or train.shape[1] != train.shape[2] or train.shape[1] not in SIZES:
        sizes = " or ".join(f"{size}x{size}" for size in SIZES)
        msg = f"data must be images of {sizes}, got [C, H, W] = {list(train.shape)} and {list(test.shape)}"
        raise ValueError(msg)
    classes = len(train.names) if train.names is not None else int(train.labels.max()) + 1
    if classes < 2 or test.labels.max() >= classes:
        msg = f"data must have the same two or more classes in both parts, got {classes} in the training images"
        raise ValueError(msg)
    return train.labels, classes


def _fingerprint(seeds: Seeds) -> str:
    labels = np.asarray(seeds.labels, "<i8")
    return hashlib.sha256(seeds.fingerprint.encode() + labels.tobytes()).hexdigest()


def _open(folder: Path, settings: dict[str, Any], *, resume: bool) -> bool:
    """Start a training in the folder or make sure that the one there is this one; return whether it is finished."""
    record = folder / RECORD
    if not record.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            msg = f"out must be a new or empty directory or that of a training, but {folder} holds something else"
            raise FileExistsError(msg)
        folder.mkdir(parents=True, exist_ok=True)
        _write_record(folder, {**settings, "finished": False})
        return False
    if not resume:
        msg = f"{folder} already holds a training; continue it with resume, or choose another directory"
        raise FileExistsError(msg)
    there = json.loads(record.read_text(encoding="utf-8"))
    changed = [key for key, value in json.loads(json.dumps(settings)).items() if there.get(key) != value]
    if changed:
        msg = f"the training in {folder} cannot be resumed with other settings: {', '.join(changed)} changed"
        raise ValueError(msg)
    return bool(there["finished"])


def _read_checkpoint(path: Path) -> tuple[dict[str, Any] | None, list[MeasuredEpoch]]:
    if not path.exists():
        return None, []
    torch = import_optional("torch", NEEDS)
    try:
        # Tensors, numbers and texts only: the restricted reader runs nothing from the file.
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds on a damaged file
        msg = f"{path}: not a readable checkpoint; remove it to train from the start: {error}"
        raise ValueError(msg) from error
    return checkpoint["fit"], [MeasuredEpoch(**epoch) for epoch in checkpoint["epochs"]]


def _write_checkpoint(path: Path, state: dict[str, Any], epochs: list[MeasuredEpoch]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    torch = import_optional("torch", NEEDS)
    torch.save({"fit": state, "epochs": [asdict(epoch) for epoch in epochs]}, temporary)
    temporary.replace(path)


def _write_record(folder: Path, document: dict[str, Any]) -> None:
    temporary = folder / f"{RECORD}.tmp"
    temporary.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(folder / RECORD)


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values, allow_nan=False) + "\n"
