"""What mutate is measured against: the same operators, one image at a time, with OpenCV and NumPy on one core."""

from __future__ import annotations

import time

import cv2
import numpy as np

from bench import published

Array = np.ndarray


def opencv_loop(images: Array, rng: np.random.Generator, *, mean: float = 0.0, std: float = 1.0) -> Array:
    """One random operator, uniformly chosen, on each uint8 image of `[N, H, W, C]`; returns float32 model input."""
    inputs = np.empty(images.shape, np.float32)
    scale, shift = np.float32(1 / (255 * std)), np.float32(mean / std)
    for row, image in enumerate(images):
        operator = published.OPERATORS[rng.integers(len(published.OPERATORS))]
        np.multiply(operator(image, rng), scale, out=inputs[row])
        inputs[row] -= shift
    return inputs


def images_per_second(images: Array, *, seconds: float = 1.0, seed: int = 0) -> float:
    """Median rate of `opencv_loop` over passes that fill `seconds`, on one core."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        rng = np.random.default_rng(seed)
        opencv_loop(images, rng)
        rates: list[float] = []
        end = time.perf_counter() + seconds
        while not rates or time.perf_counter() < end:
            start = time.perf_counter()
            opencv_loop(images, rng)
            rates.append(len(images) / (time.perf_counter() - start))
        return float(np.median(rates))
    finally:
        cv2.setNumThreads(threads)
