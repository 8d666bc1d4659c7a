"""Labelled images to train with and to test on, from where people keep them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from compdx.seeds import Seeds
from compdx.zoo import digits

DIGITS = "digits"
HELD_OUT = 10


def read_data(source: str | os.PathLike[str], *, size: int | None = None) -> tuple[Seeds, Seeds]:
    """The training and the test images of a data set, uint8 ``[N, C, H, W]``, with labels 0..K-1.

    Args:
        source: One of

            * a directory in the layout of Hugging Face data sets: ``train.parquet`` and ``test.parquet``, or
              ``train-*.parquet`` and ``test-*.parquet``, in it or in its ``data/``;
            * a directory with the folders ``train/`` and ``test/``, each with a folder of images for every class;
            * a directory with a folder of images for every class: every tenth image, in sorted order of the paths, is
              held out for testing;
            * ``"digits"``: scikit-learn's handwritten digits at 28x28.
        size: Height and width to which the images of folders are resized.

    Nothing is random.

    Raises:
        ModuleNotFoundError: ``"digits"`` needs scikit-learn.
        FileNotFoundError: There is no such directory.
        ValueError: It holds none of these, the images have no labels, the two parts do not fit together, or ``size`` is
            given for images that do not come from folders.
    """
    if source == DIGITS:
        _no_resize(size, "the digits")
        return digits.load()
    folder = Path(source)
    if not folder.is_dir():
        msg = f"data must be {DIGITS!r} or a directory, but there is no directory {folder}"
        raise FileNotFoundError(msg)
    parts = [_parquet(folder, part) for part in ("train", "test")]
    if all(parts):
        _no_resize(size, "Parquet")
        train, test = (Seeds.from_parquet(files) for files in parts)
    elif any(parts):
        found, lacking = ("train", "test") if parts[0] else ("test", "train")
        msg = f"data must have both parts, but {folder} holds {found}*.parquet and no {lacking}*.parquet"
        raise ValueError(msg)
    elif (folder / "train").is_dir() and (folder / "test").is_dir():
        train, test = (Seeds.from_folder(folder / part, size=_square(size)) for part in ("train", "test"))
    else:
        seeds = Seeds.from_folder(folder, size=_square(size))
        held_out = np.arange(len(seeds)) % HELD_OUT == 0
        if held_out.all():
            msg = f"data must hold at least two images, found {len(seeds)} below {folder}"
            raise ValueError(msg)
        train, test = seeds.select(~held_out), seeds.select(held_out)
    _check(train, test)
    return train, test


def _parquet(folder: Path, part: str) -> list[Path]:
    for place in (folder, folder / "data"):
        whole = place / f"{part}.parquet"
        if whole.is_file():
            return [whole]
        shards = sorted(place.glob(f"{part}-*.parquet"))
        if shards:
            return shards
    return []


def _square(size: int | None) -> tuple[int, int] | None:
    return None if size is None else (size, size)


def _no_resize(size: int | None, what: str) -> None:
    if size is not None:
        msg = f"size is for images in folders, not for {what}; got {size}"
        raise ValueError(msg)


def _check(train: Seeds, test: Seeds) -> None:
    for part, seeds in (("train", train), ("test", test)):
        if seeds.labels is None or seeds.labels.min() < 0:
            msg = f"the {part} images must all have labels; the label is the folder of an image, or a column of Parquet"
            raise ValueError(msg)
    if train.shape != test.shape:
        msg = f"train and test images must have one shape, got {list(train.shape)} and {list(test.shape)}"
        raise ValueError(msg)
    if train.names != test.names:
        msg = f"train and test must have the same classes, got {train.names} and {test.names}"
        raise ValueError(msg)
