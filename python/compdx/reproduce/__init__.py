"""Published experiments, run again with compdx: CompD."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compdx.reproduce.protocol import SCALES, Mending, Scale, Study
from compdx.reproduce.stages import SETTINGS, Stages
from compdx.reproduce.tables import render
from compdx.seeds import Seeds
from compdx.training import Recipe

__all__ = ["SCALES", "Mending", "Scale", "Study", "compd", "open_study", "render", "scale_named"]


def compd(
    data: str | os.PathLike[str] | tuple[Seeds, Seeds],
    out: str | os.PathLike[str],
    *,
    model: str = "resnet20",
    scheme: str = "prune",
    scale: str | Scale = "small",
    seed: int = 0,
    device: str = "cpu",
    say: Callable[[str], object] | None = None,
) -> dict[str, Any]:
    """Run CompD's experiments on one network and one scheme, and write its tables beside the paper's.

    Train (or load) the original, compress it, search with and without neuron coverage, classify every picture, repair,
    search again and attack. Every stage leaves a file in ``out``; a call with the same arguments goes on where an
    earlier one was stopped.

    Args:
        data: A directory with ``train.parquet`` and ``test.parquet`` (CIFAR-10 in the Hugging Face layout), or
            ``(train, test)``.
        out: The directory of the study; ``tables.md`` and ``tables.json`` are its result.
        model: A network of `compdx.zoo`; ``"resnet20"`` takes the weights that come with compdx, others are trained.
        scheme: ``"prune"`` (L1, global, 75 %) or ``"quant"`` (int8 with quantization-aware training).
        scale: ``"small"`` (two cores), ``"paper"`` (the paper's protocol; wants a GPU) or a `Scale`.
        seed: Run seed of everything.
        device: Where networks run.
        say: Called with a line before and after each stage.

    Returns:
        The figures, as in ``tables.json``.

    Raises:
        ValueError: An argument is of the wrong kind, or ``out`` holds a study with other settings.
    """
    study = _study(data, Path(out), model, scheme, scale, seed, device, say)
    figures = study.run()
    (study.stages.directory / "tables.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (study.stages.directory / "tables.md").write_text(render(figures), encoding="utf-8")
    return figures


def open_study(out: str | os.PathLike[str], data: str | os.PathLike[str] | tuple[Seeds, Seeds]) -> Study:
    """The study in a directory, to work with its models and findings.

    Args:
        out: The directory.
        data: As for `compd`; the same images.

    Raises:
        FileNotFoundError: It is no study.
        ValueError: These are other images.
    """
    settings = json.loads((Path(out) / SETTINGS).read_text(encoding="utf-8"))
    scale = settings["scale"]
    for name in ("train", "prune", "quant"):
        scale[name] = Recipe(**scale[name])
    for scheme, mending in scale["repair"].items():
        scale["repair"][scheme] = Mending(**{**mending, "recipe": Recipe(**mending["recipe"])})
    return _study(
        data,
        Path(out),
        settings["model"],
        settings["scheme"],
        Scale(**scale),
        settings["seed"],
        settings["device"],
        None,
    )


def scale_named(name: str) -> Scale:
    """The scale of this name.

    Raises:
        ValueError: There is none.
    """
    if name not in SCALES:
        msg = f"scale must be one of {', '.join(map(repr, SCALES))} or a Scale, got {name!r}"
        raise ValueError(msg)
    return SCALES[name]


def _study(
    data: Any,
    out: Path,
    model: str,
    scheme: str,
    scale: str | Scale,
    seed: int,
    device: str,
    say: Callable[[str], object] | None,
) -> Study:
    if scheme not in ("prune", "quant"):
        msg = f"scheme must be 'prune' or 'quant', got {scheme!r}"
        raise ValueError(msg)
    if isinstance(scale, str):
        scale = scale_named(scale)
    if not isinstance(data, tuple):
        folder = Path(data)
        data = (Seeds.from_parquet(folder / "train.parquet"), Seeds.from_parquet(folder / "test.parquet"))
    settings = {
        "model": model,
        "scheme": scheme,
        "scale": asdict(scale),
        "seed": seed,
        "device": device,
        "fingerprints": [part.fingerprint for part in data],
    }
    stages = Stages.open(out, settings, say)
    return Study(model=model, scheme=scheme, scale=scale, data=data, stages=stages, seed=seed, device=device)
