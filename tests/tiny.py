"""A small network whose weights are numbers of a fixed generator, so that files made elsewhere hold the same ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CHANNELS, SIDE, CLASSES = 2, 10, 5
SHAPE = (CHANNELS, SIDE, SIDE)
SHAPE_NHWC = (SIDE, SIDE, CHANNELS)


def weights() -> list[NDArray[np.float32]]:
    """Two convolutions (3 x 3, the second with stride 2) and a linear layer, each with its bias, as torch has them."""
    rng = np.random.default_rng(173)  # of some hundred, the one whose classes differ most among `inputs`
    shapes = ((6, CHANNELS, 3, 3), (6,), (8, 6, 3, 3), (8,), (CLASSES, 8), (CLASSES,))
    return [rng.normal(0, 2 * np.prod(shape[1:]) ** -0.5, shape).astype(np.float32) for shape in shapes]


def inputs(count: int, seed: int = 0) -> NDArray[np.float32]:
    """Images in 0..1, ``[N, C, H, W]``: noise over planes of random brightness."""
    rng = np.random.default_rng(seed)
    planes, noise = rng.random((count, CHANNELS, 1, 1)), rng.random((count, *SHAPE))
    return (0.6 * planes + 0.4 * noise).astype(np.float32)
