"""Write the small TFLite files of tests/data. Needs TensorFlow, which nothing else here does.

    python tools/make_tflite.py

The network is `tiny.weights()` of tests/tiny.py, [1, 10, 10, 2] to 5 logits: ``float`` as it is; ``fixed`` with a
reshape that is made for one image; ``int8`` and ``uint8`` quantized throughout, with inputs and outputs of that type.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import tiny  # noqa: E402


def network(*, fixed: bool) -> tf.types.experimental.ConcreteFunction:
    """The network on [1, 10, 10, 2]."""
    first, first_bias, second, second_bias, last, last_bias = map(tf.constant, tiny.weights())

    @tf.function(input_signature=[tf.TensorSpec([1, *tiny.SHAPE_NHWC], tf.float32, name="image")])
    def scores(image: tf.Tensor) -> tf.Tensor:
        x = tf.nn.relu(tf.nn.conv2d(image, tf.transpose(first, (2, 3, 1, 0)), 1, "VALID") + first_bias)
        x = tf.nn.relu(tf.nn.conv2d(x, tf.transpose(second, (2, 3, 1, 0)), 2, "VALID") + second_bias)
        x = tf.reduce_mean(tf.reshape(x, [1, 9, 8]), axis=1) if fixed else tf.reduce_mean(x, axis=(1, 2))
        return tf.matmul(x, last, transpose_b=True) + last_bias

    return scores.get_concrete_function()


def samples() -> Iterator[list[np.ndarray]]:
    """What the ranges of the quantized files are measured on."""
    for image in tiny.inputs(100):
        yield [image.transpose(1, 2, 0)[None]]


def converted(kind: str) -> bytes:
    """The file of this kind."""
    converter = tf.lite.TFLiteConverter.from_concrete_functions([network(fixed=kind == "fixed")])
    if kind in ("int8", "uint8"):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = samples
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.dtypes.as_dtype(kind)
    return converter.convert()


def main() -> None:
    for kind in ("float", "fixed", "int8", "uint8"):
        (ROOT / "tests" / "data" / f"tiny-{kind}.tflite").write_bytes(converted(kind))


if __name__ == "__main__":
    main()
