"""The contributions of a slice: native against brute force, worked examples, what must not matter, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import oracle_slicing
from compdx import _core, ops

NAMES = ("inputs", "signed", "absolute", "samples")
CASES = 240


def some_values(rng: np.random.Generator, shape: tuple[int, ...], kind: int) -> NDArray[np.float32]:
    """Ordinary numbers, numbers of few magnitudes, of all magnitudes, or of one; some of them zeros of either sign."""
    values = rng.normal(size=shape)
    if kind == 1:
        values = rng.integers(-3, 4, shape) / 2.0
    elif kind == 2:
        values *= 10.0 ** rng.integers(-38, 38, shape)
    elif kind == 3:
        values = rng.choice([-1.0, 1.0], shape)
    elif kind == 4:
        values *= 1e-38  # products underflow
    elif kind == 5:
        values *= 1e38  # and overflow
    values = np.clip(values, -3e38, 3e38)
    values[rng.random(shape) < rng.choice([0.0, 0.1, 0.6])] = rng.choice([0.0, -0.0])
    return values.astype(np.float32)


def some_case(number: int) -> tuple[tuple[Any, Any, Any], dict[str, Any]]:
    """Arrays and settings of a small operation: any kernel to 5 x 5, steps, groups, depthwise, linear, one tap."""
    rng = np.random.default_rng(number)
    pair = lambda low, high: tuple(map(int, rng.integers(low, high + 1, 2)))  # noqa: E731
    kernel, stride, padding, dilation, extent = pair(1, 5), pair(1, 3), pair(0, 3), pair(1, 2), pair(1, 7)
    if number % 5 == 0:  # a linear layer
        kernel, stride, padding, dilation, extent = (1, 1), (1, 1), (0, 0), (1, 1), (1, 1)
    groups = int(rng.choice([1, 1, 2, 3]))
    in_group, outputs = int(rng.integers(1, 5)), int(rng.integers(1, 4)) * groups
    if number % 7 == 0:  # depthwise
        groups, in_group, outputs = 4, 1, 4
    if number % 5 == 0:
        in_group = int(rng.choice([1, 2, 3, 70, 300]))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    extent = tuple(max(n, r - 2 * p) for n, r, p in zip(extent, reach, padding, strict=True))
    output = tuple((n + 2 * p - r) // s + 1 for n, p, r, s in zip(extent, padding, reach, stride, strict=True))
    batch = int(rng.integers(1, 4))
    arrays = (
        some_values(rng, (batch, groups * in_group, *extent), int(rng.integers(6))),
        some_values(rng, (outputs, in_group, *kernel), int(rng.integers(6))),
        rng.integers(-1, 2, (batch, outputs, *output)).astype(np.int8),
    )
    epsilon, beta = [(0.2, 0.01), (0.2, 0.0), (0.02, 0.3), (0.9, 1.0), (3.0, 0.01), (1e-9, 0.01)][number % 6]
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return arrays, {**how, "epsilon": epsilon, "beta": beta}


def from_zeros(delta: Any, weight: Any, sign: Any, **how: Any) -> dict[str, NDArray[np.int32]]:
    """All four results of the native operation."""
    found = {
        "inputs": np.zeros(delta.shape, np.int32),
        "signed": np.zeros(weight.shape, np.int32),
        "absolute": np.zeros(weight.shape, np.int32),
        "samples": np.zeros((len(delta), *weight.shape), np.int32),
    }
    ops.contributions(delta, weight, sign, **how, **found)
    return found


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in NAMES:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


# Brute force ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(CASES))
def test_equals_brute_force(number):
    arrays, how = some_case(number)
    expected = oracle_slicing.contributions(*arrays, **how)
    for isa in ops.available_isas():
        for threads in (1, 2, 5):
            assert_same(from_zeros(*arrays, **how, isa=isa, threads=threads), expected)


def test_the_cases_are_worth_something():
    """Neurons that keep nothing, one, some and all of their taps, one tap alone, ties, and underflow are all there."""
    seen = dict.fromkeys(("nothing", "one", "some", "all", "one tap", "cancelled", "ties", "underflow", "overflow"), 0)
    for number in range(0, CASES, 5):
        (delta, weight, sign), how = some_case(number)
        for b, o in np.argwhere(sign[:, :, 0, 0]):
            first = o // (len(weight) // how["groups"]) * weight.shape[1]
            deltas = delta[b, first : first + weight.shape[1], 0, 0]
            values = oracle_slicing.products_of(weight[o, :, 0, 0], deltas)
            kept = oracle_slicing.kept(values, how["epsilon"], how["beta"])
            seen["one tap"] += len(values) == 1
            if len(values) == 1:
                continue
            seen[
                "nothing" if not kept else "one" if len(kept) == 1 else "all" if len(kept) == len(values) else "some"
            ] += 1
            seen["cancelled"] += any(values) and not kept
            sizes = [abs(p) for p in values if p]
            seen["ties"] += len(set(sizes)) < len(sizes)
            seen["underflow"] += bool(
                np.any((np.array(values) == 0) & (weight[o, :, 0, 0] * deltas.astype(float) != 0))
            )
            seen["overflow"] += max(map(abs, values)) == oracle_slicing.LARGEST
    assert min(seen.values()) >= 5, seen


@pytest.mark.parametrize("taps", [(512, 3, 3), (4608, 1, 1), (7, 40, 40)], ids=str)
def test_many_taps(taps):
    rng = np.random.default_rng(3)
    delta = rng.standard_t(3, (2, *taps)).astype(np.float32)
    weight = rng.normal(size=(3, *taps)).astype(np.float32)
    delta[:, ::5] = 0.0
    weight[2] = np.sign(weight[2])
    delta[1] = np.sign(delta[1])
    sign = rng.choice(np.int8([-1, 1]), (2, 3, 1, 1))
    for epsilon in (0.2, 1e-3):
        expected = oracle_slicing.contributions(delta, weight, sign, epsilon=epsilon)
        assert expected["samples"].any()
        assert_same(from_zeros(delta, weight, sign, epsilon=epsilon), expected)


# Known answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("products", "kept"),
    [
        ([3, 0.5], {0}),
        ([1.5, -0.5], {0, 1}),
        ([3.5, -0.5], {0}),
        ([1, -1], set()),
        ([5, -4, 0.5], {0, 1, 2}),
        ([2, 2, 2, -1, 0.5], {0, 1, 2}),
        ([7], {0}),
        ([0, 0, 0], set()),
    ],
    ids=str,
)
@pytest.mark.parametrize("factor", [1.0, -1.0, 2.0**-100, 1e30, 0.3])
def test_examples(products, kept, factor):
    """The table of NNSlicer section 4, which no factor changes."""
    delta = np.float32([products]).reshape(1, -1, 1, 1)
    weight = np.full_like(delta, factor)
    found = from_zeros(delta, weight, np.ones((1, 1, 1, 1), np.int8))
    signs = np.sign(delta[0, :, 0, 0]) * np.sign(np.float32(factor))
    expected = [int(signs[i]) if i in kept else 0 for i in range(len(products))]
    assert found["inputs"].ravel().tolist() == expected
    assert found["samples"].ravel().tolist() == expected
    assert oracle_slicing.kept([float(p * np.float32(factor)) for p in delta.ravel()]) == kept


def test_one_tap_is_kept_though_its_product_underflows():
    tiny = np.full((1, 1, 1, 1), -1e-30, np.float32)
    assert (tiny * tiny).item() == 0.0
    found = from_zeros(tiny, -tiny, np.ones((1, 1, 1, 1), np.int8))
    assert [found[name].item() for name in NAMES] == [-1, -1, 1, -1]


@pytest.mark.parametrize(("small", "kept"), [(0.9, {0}), (-0.9, {0}), (1.1, set(range(11))), (-1.1, set(range(11)))])
@pytest.mark.parametrize("exponent", [0, -80, 127])
def test_integers_have_46_bits_and_lose_the_rest(small, kept, exponent):
    """Ten products of nearly a bit are nothing, of a little more they are ten bits, which epsilon does not let pass."""
    delta = np.float32([2.0**exponent] + [small * 2.0 ** (exponent - 45)] * 10).reshape(1, -1, 1, 1)
    one = np.ones_like(delta)
    found = from_zeros(delta, one, np.ones((1, 1, 1, 1), np.int8), epsilon=1e-13)
    assert set(np.flatnonzero(found["inputs"])) == kept
    assert oracle_slicing.kept(delta.ravel().astype(float).tolist(), 1e-13) == kept


def test_padding_is_no_tap():
    """The corner of a padded window has one input and keeps it; the padding neither counts nor is the smallest."""
    delta = np.ones((1, 1, 1, 2), np.float32)
    weight = np.float32([[[[5, 7, -6.5]]]])
    sign = np.int8([[[[1, 0, 0, 0]]]])
    found = from_zeros(delta, weight, sign, padding=(0, 2))
    assert found["inputs"].ravel().tolist() == [-1, 0]
    # 7 - 6.5 is less than either: nothing is kept. With the padding as a product of 0 both would be.
    found = from_zeros(delta, weight, np.int8([[[[0, 1, 0, 0]]]]), padding=(0, 2))
    assert found["inputs"].ravel().tolist() == [0, 0]


def test_window_in_the_padding_alone():
    found = from_zeros(
        np.ones((1, 1, 1, 1), np.float32),
        np.ones((1, 1, 1, 1), np.float32),
        np.ones((1, 1, 3, 3), np.int8),
        padding=(1, 1),
    )
    assert [found[name].item() for name in NAMES] == [1, 1, 1, 1]


def test_worked_example():
    """NNSlicer section 12: two layers, the selection on."""
    weights = [np.float32([[1, -1], [2, 1]]), np.float32([[1, -2], [-1, 1]])]
    deltas = [np.float32([1.5, 0.5]), np.float32([0.5, 3.5])]
    passed = [np.float32([1, 3.5]), np.float32([-6.5, 3])]
    contribution = np.int32([0, 1])
    expected = [([1, 0], [[0, 0], [1, 0]]), ([0, 1], [[0, 0], [0, 1]])]
    for layer in (1, 0):
        sign = (np.sign(contribution) * np.sign(passed[layer])).astype(np.int8).reshape(1, 2, 1, 1)
        weight = weights[layer].reshape(2, 2, 1, 1)
        found = from_zeros(deltas[layer].reshape(1, 2, 1, 1), weight, sign)
        contribution = found["inputs"].ravel()
        assert contribution.tolist() == expected[layer][0]
        assert found["samples"].reshape(2, 2).tolist() == expected[layer][1]


# What must not matter ------------------------------------------------------------------------------------------------


def test_results_are_added_and_each_is_optional():
    arrays, how = some_case(4)
    expected = from_zeros(*arrays, **how)
    assert any(expected[name].any() for name in NAMES)
    rng = np.random.default_rng(0)
    for wanted in range(16):
        names = [name for bit, name in enumerate(NAMES) if wanted >> bit & 1]
        before = {name: rng.integers(-1000, 1000, expected[name].shape, dtype=np.int32) for name in names}
        after = {name: array.copy() for name, array in before.items()}
        ops.contributions(*arrays, **how, **after)
        for name in names:
            np.testing.assert_array_equal(after[name] - before[name], expected[name])


@pytest.mark.parametrize("number", range(0, 60, 3))
def test_powers_of_two_change_nothing(number):
    rng = np.random.default_rng(number)
    (delta, weight, sign), how = some_case(number)
    delta = some_values(rng, delta.shape, 0)
    weight = some_values(rng, weight.shape, 0)
    found = from_zeros(delta, weight, sign, **how)
    assert_same(from_zeros(delta * np.float32(2**40), weight * np.float32(2**-70), sign, **how), found)
    negative = from_zeros(-delta, weight, sign, **how)
    assert_same({name: -negative[name] if name != "absolute" else negative[name] for name in NAMES}, found)


def test_samples_are_independent():
    (delta, weight, sign), how = some_case(3)
    delta, sign = np.tile(delta, (3, 1, 1, 1)), np.concatenate([sign, -sign, np.zeros_like(sign)])
    together = from_zeros(delta, weight, sign, **how)
    alone = [from_zeros(delta[i : i + 1], weight, sign[i : i + 1], **how) for i in range(len(delta))]
    assert together["samples"].any()
    for name in ("inputs", "samples"):
        np.testing.assert_array_equal(together[name], np.concatenate([one[name] for one in alone]))
    for name in ("signed", "absolute"):
        np.testing.assert_array_equal(together[name], sum(one[name] for one in alone))
    assert not from_zeros(delta[:0], weight, sign[:0], **how)["signed"].any()


def test_strides_in_memory_do_not_matter():
    (delta, weight, sign), how = some_case(8)
    expected = from_zeros(delta, weight, sign, **how)
    found = {name: np.zeros(expected[name].shape, np.int32) for name in NAMES}
    ops.contributions(*(np.asfortranarray(array) for array in (delta, weight, sign)), **how, **found)
    assert_same(found, expected)


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    arrays, how = some_case(8)
    expected = from_zeros(*arrays, **how)
    found = {name: torch.zeros(expected[name].shape, dtype=torch.int32) for name in NAMES}
    ops.contributions(*map(torch.from_numpy, arrays), **how, **found)
    assert_same({name: array.numpy() for name, array in found.items()}, expected)


# What is refused -----------------------------------------------------------------------------------------------------


def good() -> dict[str, Any]:
    return {
        "delta": np.ones((2, 4, 5, 6), np.float32),
        "weight": np.ones((6, 2, 3, 3), np.float32),
        "sign": np.ones((2, 6, 3, 4), np.int8),
        "groups": 2,
    }


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"delta": [1.0]}, TypeError, "delta: expected an array that speaks DLPack, got list"),
        ({"delta": np.ones((2, 4, 5, 6))}, TypeError, "delta: expected float32, got float64"),
        ({"delta": np.ones((4, 5, 6), np.float32)}, ValueError, "delta: expected four axes"),
        ({"delta": np.ones((2, 4, 0, 6), np.float32)}, ValueError, r"delta: expected 1\.\.2\*\*31-1 values"),
        ({"weight": np.ones((6, 2, 3, 3), np.float16)}, TypeError, "weight: expected float32, got float16"),
        ({"weight": np.ones((6, 3, 3, 3), np.float32)}, ValueError, r"weight: expected shape \[O, 4 / 2, kH, kW\]"),
        ({"weight": np.ones((5, 2, 3, 3), np.float32)}, ValueError, "weight: expected output channels .* groups=2"),
        (
            {"weight": np.ones((6, 2, 6, 3), np.float32)},
            ValueError,
            "weight: expected a window within .* of 5, got one of 6",
        ),
        ({"groups": 3}, ValueError, r"weight: expected shape \[O, 4 / 3, kH, kW\]"),
        ({"groups": 0}, ValueError, "groups: expected 1"),
        ({"groups": 2.0}, TypeError, "groups: expected an integer, got float"),
        ({"sign": np.ones((2, 6, 3, 4), np.int32)}, TypeError, "sign: expected int8, got int32"),
        (
            {"sign": np.ones((2, 6, 3, 5), np.int8)},
            ValueError,
            r"sign: expected shape \(2, 6, 3, 4\), got \(2, 6, 3, 5\)",
        ),
        ({"stride": 1}, TypeError, r"stride: expected \(vertical, horizontal\), got 1"),
        ({"stride": (1, 0)}, ValueError, "stride: expected 1"),
        ({"stride": (2, 2)}, ValueError, r"sign: expected shape \(2, 6, 2, 2\)"),
        ({"padding": (-1, 0)}, ValueError, "padding: expected 0"),
        ({"dilation": (1, 1.5)}, TypeError, "dilation: expected an integer, got float"),
        ({"epsilon": 0.0}, ValueError, r"epsilon: expected a finite number above 0, got 0\.0"),
        ({"epsilon": float("nan")}, ValueError, "epsilon: expected a finite number above 0, got nan"),
        ({"epsilon": "0.2"}, TypeError, "epsilon: expected a number, got str"),
        ({"beta": 1.5}, ValueError, r"beta: expected 0\.\.1, got 1\.5"),
        ({"beta": True}, TypeError, "beta: expected a number, got bool"),
        ({"inputs": np.zeros((2, 4, 5, 6), np.int64)}, TypeError, "inputs: expected int32, got int64"),
        ({"inputs": np.zeros((2, 4, 6, 5), np.int32)}, ValueError, r"inputs: expected shape \(2, 4, 5, 6\)"),
        ({"signed": np.zeros((6, 2, 3, 3), np.int32).T.copy().T}, ValueError, "signed: expected C-contiguous"),
        ({"absolute": np.zeros((2, 6, 2, 3, 3), np.int32)}, ValueError, r"absolute: expected shape \(6, 2, 3, 3\)"),
        ({"samples": np.zeros((6, 2, 3, 3), np.int32)}, ValueError, r"samples: expected shape \(2, 6, 2, 3, 3\)"),
        ({"samples": np.broadcast_to(np.int32(0), (2, 6, 2, 3, 3))}, ValueError, "samples: expected"),
        ({"threads": 0}, ValueError, r"threads: expected 1\.\.4096, got 0"),
        ({"isa": "mmx"}, ValueError, "isa: expected one of"),
    ],
    ids=str,
)
def test_refuses(changes, error, message):
    ops.contributions(**good())
    with pytest.raises(error, match=message):
        ops.contributions(**{**good(), **changes})


def test_refuses_too_many_taps():
    delta, sign = np.ones((1, 65536, 1, 1), np.float32), np.ones((1, 1, 1, 1), np.int8)
    with pytest.raises(ValueError, match="weight: expected at most 65535 weights an output channel"):
        ops.contributions(delta, delta, sign)
    most = np.ascontiguousarray(delta[:, :65535])
    found = from_zeros(most, most, sign)
    assert found["inputs"].sum() == 65535  # equal products are kept together


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": (3, 5)}, "an output as large as its windows make it"),
        ({"groups": 4}, "channels that fit the groups"),
        ({"stride": (0, 1)}, "stride in 1"),
        ({"padding": (1 << 29, 1)}, "padding in 0"),
        ({"delta": (2, 4, 1 << 20, 1 << 20)}, "input of less than 2.31 elements"),
        ({"weight": (6, 1 << 16, 3, 3), "delta": (2, 1 << 17, 5, 6)}, "at most 65535 weights"),
    ],
    ids=str,
)
def test_the_extension_checks_what_would_corrupt_memory(changes, message):
    extents = {
        "delta": (2, 4, 5, 6),
        "weight": (6, 2, 3, 3),
        "output": (3, 4),
        "stride": (1, 1),
        "padding": (0, 0),
        "dilation": (1, 1),
        "groups": 2,
    }
    nothing = dict.fromkeys(("delta", "weight", "sign", "inputs", "signed_sum", "absolute", "samples"), (0, 0))
    how = {"epsilon": 0.2, "beta": 0.01, "threads": 1, "isa": ""}
    with pytest.raises(ValueError, match="delta: expected at least 960 bytes, got 0"):
        _core.cpu_contributions(_core.Convolution(**extents), **nothing, **how)
    with pytest.raises(ValueError, match=message):
        _core.cpu_contributions(_core.Convolution(**{**extents, **changes}), **nothing, **how)


# On a GPU ------------------------------------------------------------------------------------------------------------


def on_cuda(delta: Any, weight: Any, sign: Any, **how: Any) -> dict[str, NDArray[np.int32]]:
    import torch

    shapes = (delta.shape, weight.shape, weight.shape, (len(delta), *weight.shape))
    found = {
        name: torch.zeros(shape, dtype=torch.int32, device="cuda") for name, shape in zip(NAMES, shapes, strict=True)
    }
    ops.contributions(*(torch.from_numpy(array).cuda() for array in (delta, weight, sign)), **how, **found)
    return {name: array.cpu().numpy() for name, array in found.items()}


@pytest.mark.gpu
@pytest.mark.parametrize("number", range(CASES))
def test_cuda_equals_the_cpu(number):
    arrays, how = some_case(number)
    assert_same(on_cuda(*arrays, **how), from_zeros(*arrays, **how))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("inputs", "outputs", "extent", "kernel", "stride"),
    [
        (3, 64, 32, 3, 1),
        (64, 64, 32, 3, 1),
        (64, 128, 32, 1, 2),
        (512, 512, 4, 3, 1),
        (512, 10, 1, 1, 1),
        (25088, 7, 1, 1, 1),
    ],
)
def test_cuda_equals_the_cpu_on_layers_of_networks(inputs, outputs, extent, kernel, stride):
    rng = np.random.default_rng(inputs)
    delta = rng.normal(size=(2, inputs, extent, extent)).astype(np.float32)
    weight = rng.normal(size=(outputs, inputs, kernel, kernel)).astype(np.float32)
    sign = rng.integers(-1, 2, (2, outputs, extent // stride, extent // stride)).astype(np.int8)
    how = {"stride": (stride, stride), "padding": (kernel // 2, kernel // 2)}
    if extent == 1:
        how["stride"], sign = (1, 1), np.ones((2, outputs, 1, 1), np.int8)
    assert_same(on_cuda(delta, weight, sign, **how), from_zeros(delta, weight, sign, **how))


@pytest.mark.gpu
def test_cuda_says_what_does_not_fit():
    delta = np.ones((1, 60000, 1, 1), np.float32)
    with pytest.raises(RuntimeError, match=r"contributions: .* 60000"):
        on_cuda(delta, delta, np.ones((1, 1, 1, 1), np.int8))
