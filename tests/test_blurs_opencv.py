"""The three blurs against OpenCV: not one byte may differ."""

from __future__ import annotations

import numpy as np
import pytest

import compdx.ops as ops

cv2 = pytest.importorskip("cv2", reason="the reference of the blurs is OpenCV")

# (images, shape) for each kernel and window; the large images by tens, as OpenCV is the slow side here.
BATCHES = [
    (1000, (1, 28, 28)),
    (1000, (3, 32, 32)),
    (1000, (1, 17, 29)),
    (200, (3, 9, 65)),
    (200, (3, 7, 5)),
    (200, (3, 2, 2)),
    (200, (1, 1, 7)),
    (200, (1, 5, 1)),
    (20, (3, 224, 224)),
]


def images(count: int, shape: tuple[int, int, int]) -> np.ndarray:
    """A quarter each: any bytes, only 0 and 255, dark, nearly white."""
    rng = np.random.default_rng([count, *shape])
    x = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    x[1::4] = np.where(x[1::4] < 128, 0, 255)
    x[2::4] %= 6
    x[3::4] = 255 - x[3::4] % 6
    return x


def reference(image: np.ndarray, operator: str, size: int) -> np.ndarray:
    hwc = np.ascontiguousarray(np.moveaxis(image, 0, -1))
    blur = {
        "box": lambda x: cv2.blur(x, (size, size)),
        "gaussian": lambda x: cv2.GaussianBlur(x, (size, size), 0),
        "median": lambda x: cv2.medianBlur(x, size),
    }[operator]
    # OpenCV drops a channel axis of length 1.
    return np.moveaxis(blur(hwc).reshape(hwc.shape), -1, 0)


@pytest.mark.parametrize(
    ("operator", "size"),
    [("box", 2), ("box", 3), ("box", 4), ("box", 5)]
    + [(name, k) for name in ("gaussian", "median") for k in (3, 5, 7)],
)
def test_blur_equals_opencv(operator, size):
    for count, shape in BATCHES:
        x = images(count, shape)
        blurred = ops.apply(x, operator, size=size)
        wrong = sum(int((blurred[i] != reference(x[i], operator, size)).sum()) for i in range(count))
        assert wrong == 0, f"{wrong} of {x.size} bytes differ at {shape}"
