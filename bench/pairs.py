"""Model pairs and images for the benches: DFlare's own (Keras and TFLite files), and a stand-in that needs no file."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import compdx

# Keras reads it once, when it is first imported; TensorFlow is used where someone asks for it.
os.environ.setdefault("KERAS_BACKEND", "torch")

Array = np.ndarray
Batch = Callable[[Array], Array]  # float32 [N, H, W, C] -> probabilities float32 [N, K]


@dataclass(frozen=True)
class Peer:
    """Two plain callables and what they want to be fed: `(pixel / 255 * (hi - lo) + lo - mean) / std`, NHWC float32."""

    name: str
    original: Batch
    compressed: Batch
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    bounds: tuple[float, float]

    def inputs(self, images: Array) -> Array:
        """Model input of uint8 `[..., C]` images."""
        low, high = self.bounds
        scaled = images.astype(np.float32) * np.float32((high - low) / 255) + np.float32(low)
        if self.mean is not None:
            scaled -= np.asarray(self.mean, np.float32)
        if self.std is not None:
            scaled /= np.asarray(self.std, np.float32)
        return scaled


FILES = {
    "lenet1": {"data": "mnist", "mean": None, "std": None, "bounds": (0.0, 1.0)},
    "resnet": {
        "data": "cifar10",
        "mean": (125.307, 122.95, 113.865),
        "std": (62.9932, 62.0887, 66.7048),
        "bounds": (0.0, 255.0),
    },
}


def load_pair(name: str, directory: Path, *, threads: int = 1) -> Peer:
    """One of DFlare's pairs, `lenet1` or `resnet`, from `NAME.h5` and `NAME-quan.lite`."""
    facts = FILES[name]
    # Keras can be told a number of threads on PyTorch only.
    of_keras = threads if os.environ["KERAS_BACKEND"] == "torch" else None
    return Peer(
        name,
        compdx.runtimes.open(directory / f"{name}.h5", threads=of_keras),
        compdx.runtimes.open(directory / f"{name}-quan.lite", threads=threads),
        facts["mean"],
        facts["std"],
        facts["bounds"],
    )


def load_images(name: str, directory: Path) -> Array:
    """The test images that belong to a pair, uint8 `[N, C, H, W]`, from `mnist/` or `cifar10/test.parquet`."""
    return compdx.Seeds.from_parquet(directory / FILES[name]["data"] / "test.parquet").images


def small_pair() -> tuple[Peer, Array]:
    """Two linear softmax classifiers, one with coarse weights, and 200 smooth grey images: needs no file."""
    rng = np.random.default_rng(0)
    side, classes = 12, 10
    weights = rng.normal(0.0, 0.6, (side * side, classes)).astype(np.float32)
    coarse = np.round(weights * 4) / 4

    def softmax_of(matrix: Array) -> Batch:
        def predict(batch: Array) -> Array:
            scores = (batch.reshape(len(batch), -1) - 0.5) @ matrix
            exponents = np.exp(scores - scores.max(axis=1, keepdims=True))
            return exponents / exponents.sum(axis=1, keepdims=True)

        return predict

    waves = rng.uniform(0.2, 1.0, (200, 2, 1, 1)) * np.stack(np.meshgrid(np.arange(side), np.arange(side)))
    images = np.round(127.5 + 127.5 * np.sin(waves.sum(axis=1) + rng.uniform(0, 6, (200, 1, 1)))).astype(np.uint8)
    return Peer("small", softmax_of(weights), softmax_of(coarse), None, None, (0.0, 1.0)), images[:, None]


def agreeing(peer: Peer, images: Array, count: int, seed: int) -> Array:
    """Rows of `count` random images, ascending, on which the two models agree when asked one image at a time."""
    rows: list[int] = []
    for row in np.random.default_rng(seed).permutation(len(images)):
        batch = peer.inputs(np.moveaxis(images[row], 0, -1)[None])
        if int(peer.original(batch).argmax()) == int(peer.compressed(batch).argmax()):
            rows.append(int(row))
        if len(rows) == count:
            break
    return np.sort(np.asarray(rows, np.int64))
