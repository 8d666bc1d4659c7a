"""A small network for real handwriting: scikit-learn's digits at 28x28, trained in seconds.

The data are the test set of Alpaydin and Kaynak (UCI, 1998): 1,797 digits of 8x8 pixels with 17 grey levels. They come
with scikit-learn, so nothing has to be downloaded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from compdx.model import Inputs, import_optional
from compdx.seeds import Seeds

SIZE = 28
CLASSES = 10
NEEDS = "the network for digits"
INPUTS = Inputs(mean=0.5, std=0.5)


def load() -> tuple[Seeds, Seeds]:
    """The digits as uint8 ``[N, 1, 28, 28]`` with labels: 1,198 to train with and 599 held out.

    Every third image is held out; the identity of a seed is its place in scikit-learn's set. Nothing is random.

    Raises:
        ModuleNotFoundError: scikit-learn is missing.
    """
    data = import_optional("sklearn.datasets", "the set of digits", "demo").load_digits()
    images = np.stack([_resize(image) for image in data.images])[:, None]
    seeds = Seeds(images, data.target.astype(np.int64), source="scikit-learn digits")
    held_out = np.arange(len(seeds)) % 3 == 0
    return seeds.select(~held_out), seeds.select(held_out)


def network() -> Any:
    """An untrained torch module of LeNet-5's size: two convolutions, two linear layers, 42,038 parameters.

    It takes float32 ``[N, 1, 28, 28]`` normalised by `INPUTS` and returns logits ``[N, 10]``.
    """
    nn = import_optional("torch", NEEDS).nn
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 5 * 5, 96),
        nn.ReLU(),
        nn.Linear(96, CLASSES),
    )


def train(seeds: Seeds | None = None, *, epochs: int = 12, batch_size: int = 32, seed: int = 0) -> Any:
    """Train `network` on the CPU and return it in eval mode.

    Args:
        seeds: Labelled images to train with; default the training part of `load`.
        epochs: Passes over them, at least 1; 12 reach 98 % on the held-out part.
        batch_size: Images a step.
        seed: Fixes initial weights and order; on one machine, the same seed gives the same weights. The caller's
            random state is left as it was.

    Raises:
        ModuleNotFoundError: torch is missing.
        ValueError: No labels, or no epoch.
    """
    torch = import_optional("torch", NEEDS)
    seeds = load()[0] if seeds is None else seeds
    if seeds.labels is None:
        msg = "seeds must have labels to train with, got none"
        raise ValueError(msg)
    if epochs < 1:
        msg = f"epochs must be at least 1, got {epochs}"
        raise ValueError(msg)
    x, y = torch.from_numpy(prepare(seeds.images)), torch.from_numpy(seeds.labels)
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network()
        steps = epochs * -(-len(x) // batch_size)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(batch_size):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
                schedule.step()
    return model.eval()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread for the time being.

    The network is so small that a second thread hardly helps; on a busy machine, where the two spin while they wait for
    each other, it is slower by a factor of ten.
    """
    torch = import_optional("torch", NEEDS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def prepare(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """What `network` is fed for uint8 images ``[N, 1, 28, 28]``: float32 of the same shape, normalised by `INPUTS`."""
    x: npt.NDArray[np.float32] = INPUTS.table(1)[0][images]
    return x


def batches(seeds: Seeds, size: int = 64) -> list[Any]:
    """The seeds as batches of network inputs: torch tensors, float32 ``[N, 1, 28, 28]``."""
    return list(import_optional("torch", NEEDS).from_numpy(prepare(seeds.images)).split(size))


def _resize(image: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    grey = Image.fromarray(np.rint(image * (255 / 16)).astype(np.uint8))
    return np.asarray(grey.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
