"""The random numbers: known answers from outside, native against oracle, and goldens that pin every stream."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

import compdx.ops as ops
import oracle

# Random123, kat_vectors: philox4x32, 10 rounds.
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize("philox", [oracle.philox, ops.philox], ids=["oracle", "native"])
@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(philox, counter, key, answer):
    words = philox(np.array(key, np.uint32), np.array(counter, np.uint32))
    assert words.dtype == np.uint32
    assert words.tolist() == answer


def test_native_philox_equals_oracle_on_random_counters():
    rng = np.random.default_rng(1)
    counters = rng.integers(0, 2**32, (500, 3, 4), dtype=np.uint32)
    for key in rng.integers(0, 2**32, (4, 2), dtype=np.uint32):
        np.testing.assert_array_equal(ops.philox(key, counters), oracle.philox(key, counters))


def test_counter_fields_do_not_overlap():
    """Every coordinate moves the stream: seed, index (both halves), step, purpose and block are told apart."""
    base = {"seed": 5, "index": 7, "step": 3, "purpose": oracle.PIXELS}
    moved = [
        base,
        base | {"seed": 6},
        base | {"seed": 5 + 2**32},
        base | {"index": 8},
        base | {"index": 7 + 2**32},
        base | {"index": 7 + 2**55},
        base | {"step": 4},
        base | {"purpose": oracle.POSITIONS},
    ]
    blocks = [tuple(row) for at in moved for row in oracle.words(**at, blocks=3)]
    assert len(set(blocks)) == 3 * len(moved)


def golden_image() -> np.ndarray:
    return (np.arange(3 * 11 * 13) * 37 % 256).astype(np.uint8).reshape(1, 3, 11, 13)


# CRC-32 of the mutants of one fixed image; a change here moves a random stream and breaks every stored trace.
GOLDENS: dict[str, tuple[int, int, int]] = {
    "additive": (0xCDA1CDF8, 0x8EB3784B, 0x9142AEB2),
    "salt_pepper": (0xA858EB9C, 0x51AA09B7, 0x24F5DA84),
    "multiplicative": (0x8B032BAC, 0xFF2B10A7, 0xCA3F121D),
    "pixel": (0xF5A20A24, 0x5B731CF1, 0xB48F1AC5),
    "box": (0x77D715E9, 0xAD8836DE, 0xAD8836DE),
    "gaussian": (0x932E4D07, 0x932E4D07, 0x932E4D07),
    "median": (0x4D89FB8B, 0x4D89FB8B, 0x4D89FB8B),
}
PLACES = [(0, 0, 1), (0x0123456789ABCDEF, 41, 977), (2**64 - 1, 2**56 - 1, 2**32 - 1)]


@pytest.mark.parametrize("operator", oracle.OPERATORS)
def test_streams_do_not_move(operator):
    image = golden_image()
    for golden, (seed, index, step) in zip(GOLDENS[operator], PLACES, strict=True):
        mutant = ops.apply(image, operator, seed=seed, index=index, step=step, overflow="wrap", skip_identity=True)
        assert zlib.crc32(mutant.tobytes()) == golden, (operator, seed, index, step)
