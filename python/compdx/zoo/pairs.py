"""A network of the zoo and its compressed version in one directory, without pickle: weights, settings, calibration."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from compdx import compress, training
from compdx.compress.common import FIXED
from compdx.compressed import Compressed, state_of
from compdx.model import Model, import_optional
from compdx.seeds import Seeds
from compdx.zoo import files
from compdx.zoo.files import Pretrained

RECORD = "compressed.json"
ORIGINAL = f"original{files.SUFFIX}"
TWIN = f"twin{files.SUFFIX}"
CALIBRATION = "calibration.npz"


@dataclass(frozen=True, kw_only=True, eq=False)
class CompressedPair:
    """A network of the zoo and what `compdx.compress` made of it.

    Attributes:
        original: The network.
        compressed: Its compressed version: pruned, quantized, or in 16 bits.
        calibration: The images that a quantization observed; ``None`` for other schemes.
    """

    original: Pretrained
    compressed: Compressed
    calibration: Seeds | None = None

    def model(self, **settings: Any) -> Model:
        """The compressed network as a `Model`; ``settings`` are further keywords of `Model`."""
        name = f"{self.compressed.record['scheme']} {self.original.name}"
        preprocessing = {key: getattr(self.original.inputs, key) for key in files.PREPROCESSING}
        return Model(self.compressed, **{"name": name, **preprocessing, **settings})

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write the pair to a new or empty directory, and return it.

        Raises:
            ModuleNotFoundError: torch or safetensors is missing.
            FileExistsError: The directory holds something.
            ValueError: Another scheme, or a quantization without its calibration images.
        """
        _base_of(self.compressed.record, self.calibration)
        folder = Path(directory)
        check_new(folder)
        folder.mkdir(parents=True, exist_ok=True)
        safetensors = import_optional("safetensors.torch", files.NEEDS)
        original, about = self.original, dict(self.original.about)
        arguments = {key: about.pop(key) for key in files.ARCHITECTURE}
        network = about.pop("network")
        about = {key: value for key, value in about.items() if key not in files.PREPROCESSING}
        files.save(
            original.network,
            folder / ORIGINAL,
            name=network,
            inputs=original.inputs,
            half=False,
            about=about,
            **arguments,
        )
        (folder / TWIN).write_bytes(safetensors.save(files.stored(self.compressed.twin, half=False)))
        if self.calibration is not None:
            np.savez_compressed(folder / CALIBRATION, images=self.calibration.images)
        # Last, as the mark of a whole directory.
        document = {"name": original.name, "record": self.compressed.record}
        (folder / RECORD).write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return folder


def load_pair(directory: str | os.PathLike[str], *, device: str = "cpu") -> CompressedPair:
    """Read what `CompressedPair.save` wrote; the compression is made anew around the stored weights.

    Args:
        directory: The directory.
        device: Where the networks are put.

    Raises:
        ModuleNotFoundError: torch, safetensors or what the scheme needs is missing.
        FileNotFoundError: There is no such directory.
        ValueError: Something in it cannot be read.
    """
    folder = Path(directory)
    if not (folder / RECORD).is_file():
        msg = f"directory must be one of a compressed network, but {folder} holds no {RECORD}"
        raise FileNotFoundError(msg)
    try:
        document = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        name, record = document["name"], document["record"]
        calibration = Seeds.from_npz(folder / CALIBRATION) if (folder / CALIBRATION).exists() else None
        make = _base_of(record, calibration)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        msg = f"{folder / RECORD}: not the record of a compressed network: {type(error).__name__}: {error}"
        raise ValueError(msg) from error
    original = replace(files.load(folder / ORIGINAL), name=name)
    training.set_mode(original.network.to(device), training=False)
    made = make(original)
    start = state_of(made.twin)
    try:
        files.restore(made.twin, folder / TWIN)
    except Exception as error:  # safetensors' own errors and torch's RuntimeError for other keys or shapes
        msg = f"{folder / TWIN}: not the weights of this compressed network: {error}"
        raise ValueError(msg) from error
    # Which weights a slice let stay is told by the stored masks alone.
    start |= {key: mask for key, mask in state_of(made.twin).items() if key.rpartition(".")[2] in FIXED}
    return CompressedPair(
        original=original,
        compressed=replace(made.rebuilt(made.twin), record=record, start=start),
        calibration=calibration,
    )


def check_new(folder: Path) -> None:
    """Raise ``FileExistsError`` unless the directory is new or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        msg = f"out must be a new or empty directory, but {folder} holds something"
        raise FileExistsError(msg)


def _base_of(record: dict[str, Any], calibration: Seeds | None) -> Any:
    """From a network to its compression as the record tells, without any training."""
    scheme, settings = record["scheme"], record["settings"]
    if scheme == "prune":
        options = {key: settings[key] for key in ("amount", "scope", "structured", "layers")}
        # Constants are stored with the twin; what is needed of them here is their place.
        places = {name: np.zeros(shape, np.float32) for name, shape in settings.get("shifts", {}).items()}
        return lambda base: compress.shifted(compress.prune(base.network, **options), places)
    if scheme == "half":
        return lambda base: compress.half(base.network, settings["dtype"])
    if scheme == "quantize" and calibration is not None:
        # The code of the paper quantizes what it has trained: to its twin that is quantization after training.
        mode = "qat" if settings["mode"] == "qat" else "post-training"
        return lambda base: compress.quantize(base.network, calibration, inputs=base.inputs, mode=mode)  # type: ignore[arg-type]
    without = " and no calibration images" if scheme == "quantize" else ""
    msg = f"compressed must be by prune, half or quantize, got {scheme!r}{without}"
    raise ValueError(msg)
