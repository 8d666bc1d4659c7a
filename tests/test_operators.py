"""The seven operators: native against oracle byte for byte, worked examples, and the laws that they must follow."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

import compdx.ops as ops
import oracle
from stubs import assert_bytes

SHAPES = [(1, 1, 1), (1, 1, 7), (1, 2, 2), (2, 5, 3), (1, 9, 1), (3, 17, 29), (1, 28, 28), (3, 32, 32)]
BIG = (3, 224, 224)
SIZES = {"pixel": range(10), "box": range(1, 6), "gaussian": (1, 3, 5, 7), "median": (1, 3, 5, 7)}
ISAS = ops.available_isas()


def pictures(shape: tuple[int, int, int], count: int = 8) -> np.ndarray:
    """All black, all white, an impulse, a ramp, a step between 0 and 255, then random bytes."""
    n = int(np.prod(shape))
    x = np.random.default_rng([count, *shape]).integers(0, 256, (count, n), dtype=np.uint8)
    x[0], x[1], x[2], x[3] = 0, 255, 0, np.arange(n) % 256
    x[2, n // 2] = 255
    x[4] = np.where(x[4] < 128, 0, 255)
    return x.reshape(count, *shape)


def expected(images: np.ndarray, operator: str, *, index=None, step=1, origin=None, **settings) -> np.ndarray:
    count = len(images)
    index = np.broadcast_to(np.arange(count) if index is None else index, count)
    step = np.broadcast_to(step, count)
    if origin is not None:
        origin = np.broadcast_to(origin, images.shape)
    return np.stack(
        [
            oracle.apply(
                images[i],
                operator,
                index=int(index[i]),
                step=int(step[i]),
                origin=None if origin is None else origin[i],
                **settings,
            )
            for i in range(count)
        ]
    )


def check(images: np.ndarray, operator: str, **settings) -> None:
    """Every instruction set and one or two threads against the oracle."""
    right = expected(images, operator, **settings)
    for isa in ISAS:
        for threads in (1, 2):
            mutants = ops.apply(images, operator, threads=threads, isa=isa, **settings)
            assert isinstance(mutants, np.ndarray)
            assert_bytes(mutants, right, f"{operator} {settings} isa={isa} threads={threads}")


# Native against oracle -----------------------------------------------------------------------------------------------


def test_operator_names():
    assert ops.OPERATORS == oracle.OPERATORS
    assert "scalar" in ISAS


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("operator", oracle.OPERATORS)
def test_native_equals_oracle(operator, shape):
    x = pictures(shape)
    places = np.array([0, 1, 2**31, 2**32 - 1, 2**32, 2**40 + 3, 2**56 - 1, 5])
    steps = np.array([1, 2, 3, 1000, 2**31, 2**32 - 1, 7, 1])
    for overflow in ("clip", "wrap"):
        check(x, operator, overflow=overflow)
        check(x, operator, overflow=overflow, seed=2**64 - 1, index=places, step=steps)
        check(x, operator, overflow=overflow, seed=99, step=12, linf=4, origin=x[::-1].copy())
    check(x, operator, seed=3, index=2**33 + 9, step=4, linf=0, origin=x[5:6].copy())
    check(x, operator, seed=17, skip_identity=True, linf=255, origin=x)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("operator", SIZES)
def test_native_equals_oracle_at_every_size(operator, shape):
    x = pictures(shape)
    for size in SIZES[operator]:
        check(x, operator, size=size, seed=4)


@pytest.mark.parametrize("operator", oracle.OPERATORS)
def test_native_equals_oracle_on_large_images(operator):
    x = pictures(BIG, 6)[3:]
    largest = max(SIZES[operator]) if operator in SIZES else None
    check(x[1:], operator, overflow="wrap", seed=8, size=largest)
    check(x[:1], operator, seed=9, linf=16, origin=x[1:2])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_native_blend_equals_oracle(shape):
    near = pictures(shape)
    for far, weight, seed in ((near[::-1].copy(), 1, 3), (near[2:3].copy(), 8, 2**64 - 1), (255 - near, 15, 0)):
        every = np.broadcast_to(far, near.shape)
        right = np.stack(
            [oracle.blend(near[i], every[i], weight, seed=seed, index=i, step=9) for i in range(len(near))]
        )
        for isa in ISAS:
            for threads in (1, 2):
                found = ops.blend(near, far, weight, seed=seed, step=9, isa=isa, threads=threads)
                assert_bytes(found, right, f"weight {weight} isa={isa} threads={threads}")


@pytest.mark.parametrize("weight", range(1, 16))
def test_blend_lies_between_and_is_right_on_average(weight):
    near, far = (v.astype(np.uint8).reshape(1, 1, 256, 256) for v in np.indices((256, 256)))
    draws = np.stack([ops.blend(near, far, weight, step=step)[0, 0] for step in range(1, 65)]).astype(float)
    a, b = near[0, 0].astype(float), far[0, 0].astype(float)
    exact = a + (b - a) * weight / 16
    assert (np.abs(draws - exact) < 1).all(), "one of the two neighbouring grey levels"
    assert (draws >= np.minimum(a, b)).all()
    assert (draws <= np.maximum(a, b)).all()
    share = exact - np.floor(exact)  # rounded up with this probability
    error = np.sqrt((share * (1 - share)).mean() / draws.size)
    assert abs((draws - exact).mean()) < 5 * error + 2.0**-16


@pytest.mark.parametrize("operator", oracle.OPERATORS)
def test_many_draws(operator):
    """Hundreds of draws of the parameters, some of which no small batch meets."""
    x = np.repeat(pictures((1, 6, 11))[5:6], 400, axis=0)
    for skip in (False, True):
        check(x, operator, seed=21, step=np.arange(1, 401), index=77, overflow="wrap", skip_identity=skip)


@pytest.mark.parametrize("operator", oracle.OPERATORS)
def test_torch_tensors(operator):
    torch = pytest.importorskip("torch", reason="torch tensors need torch")
    x = pictures((3, 17, 29))
    mutants = ops.apply(torch.from_numpy(x), operator, seed=6, linf=9, origin=torch.from_numpy(x[::-1].copy()))
    assert isinstance(mutants, torch.Tensor)
    assert mutants.dtype == torch.uint8
    assert_bytes(mutants.numpy(), expected(x, operator, seed=6, linf=9, origin=x[::-1]), operator)


@pytest.mark.parametrize("operator", oracle.OPERATORS)
def test_memory_layout_is_no_input(operator):
    """Strided, reversed and channels-last views give what their contiguous copies give, and stay as they are."""
    x = pictures((3, 34, 29), 16)
    for view in (x[::2, :, ::2, ::-1], np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1), x[:, ::-1]):
        before = view.copy()
        assert_bytes(ops.apply(view, operator, seed=2), expected(before, operator, seed=2), operator)
        np.testing.assert_array_equal(view, before)


@pytest.mark.parametrize("operator", oracle.OPERATORS)
def test_batch_is_no_input(operator):
    x = pictures((2, 5, 3), 30)
    whole = ops.apply(x, operator, seed=1)
    for i in range(30):
        assert_bytes(ops.apply(x[i : i + 1], operator, seed=1, index=i), whole[i : i + 1], f"{operator} image {i}")


def test_empty_batch():
    for operator in oracle.OPERATORS:
        assert ops.apply(np.zeros((0, 3, 4, 5), np.uint8), operator).shape == (0, 3, 4, 5)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [*SHAPES, BIG], ids=str)
@pytest.mark.parametrize("operator", oracle.OPERATORS)
def test_cuda_equals_cpu(operator, shape):
    import torch

    x = pictures(shape)
    settings = [
        {"overflow": "wrap", "seed": 2**64 - 1, "index": 2**40 + 3, "step": 2**32 - 1},
        {"seed": 12, "linf": 4, "origin": x[::-1].copy()},
        {"skip_identity": True},
        *({"size": size} for size in SIZES.get(operator, ())),
    ]
    for kw in settings:
        on_device = {k: torch.from_numpy(v).cuda() if isinstance(v, np.ndarray) else v for k, v in kw.items()}
        mutants = ops.apply(torch.from_numpy(x).cuda(), operator, **on_device)
        assert mutants.is_cuda
        assert_bytes(mutants.cpu().numpy(), ops.apply(x, operator, **kw), f"{operator} {kw}")


# Worked examples -----------------------------------------------------------------------------------------------------


def impulse() -> np.ndarray:
    x = np.zeros((1, 1, 5, 5), np.uint8)
    x[0, 0, 2, 2] = 255
    return x


def test_blurs_of_an_impulse():
    box3, box2, gauss3, median3 = np.zeros((4, 5, 5), int)
    box3[1:4, 1:4] = 28
    box2[2:4, 2:4] = 64
    gauss3[1:4, 1:4] = [[16, 32, 16], [32, 64, 32], [16, 32, 16]]
    for operator, size, answer in (("box", 3, box3), ("box", 2, box2), ("gaussian", 3, gauss3), ("median", 3, median3)):
        np.testing.assert_array_equal(ops.apply(impulse(), operator, size=size)[0, 0], answer)


def test_blurs_of_a_ramp():
    ramp = (10 * np.arange(25)).astype(np.uint8).reshape(1, 1, 5, 5)
    box = ops.apply(ramp, "box", size=3)[0, 0]
    median = ops.apply(ramp, "median", size=3)[0, 0]
    assert box[0].tolist() == [40, 43, 53, 63, 67]
    assert box[-1].tolist() == [173, 177, 187, 197, 200]
    assert median[0].tolist() == [10, 20, 30, 40, 40]
    assert median[-1].tolist() == [200, 200, 210, 220, 230]


def test_multiplicative_example():
    """m = 0.4 (the next Q16 number), v = 0 on 200: 280, which is 24 wrapped and 255 clipped; on 0: 0."""
    product = oracle.multiply(np.array([200, 0]), math.ceil(0.4 * 65536), 0, 0)
    assert product.tolist() == [280, 0]
    assert oracle.store(product, "wrap").tolist() == [24, 0]
    assert oracle.store(product, "clip").tolist() == [255, 0]


# Laws ----------------------------------------------------------------------------------------------------------------

# 99.9 % quantiles of the chi-square distribution by degrees of freedom.
CHI2 = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 8: 26.12, 9: 27.88, 15: 37.70}
BEYOND = 7.827e-4  # probability that the additive noise passes 1 on one side


def chi_square(counts, probabilities) -> float:
    counts, probabilities = np.asarray(counts, float), np.asarray(probabilities, float)
    ideal = probabilities / probabilities.sum() * counts.sum()
    return float(((counts - ideal) ** 2 / ideal).sum())


@pytest.mark.parametrize(
    ("value", "overflow", "law"),
    [
        (0, "wrap", {0: 1 - 2 * BEYOND, 1: BEYOND, 255: BEYOND}),
        (0, "clip", {0: 1 - BEYOND, 1: BEYOND}),
        (1, "wrap", {0: 0.5, 1: 0.5 - BEYOND, 2: BEYOND}),
        (100, "wrap", {98: BEYOND, 99: 0.5 - BEYOND, 100: 0.5 - BEYOND, 101: BEYOND}),
        (255, "wrap", {253: BEYOND, 254: 0.5 - BEYOND, 255: 0.5 - BEYOND, 0: BEYOND}),
        (255, "clip", {253: BEYOND, 254: 0.5 - BEYOND, 255: 0.5}),
    ],
)
def test_additive_law(value, overflow, law):
    x = np.full((1, 1, 300, 400), value, np.uint8)
    y = ops.apply(x, "additive", seed=11, index=value, overflow=overflow)
    counts = np.bincount(y.reshape(-1), minlength=256)
    assert set(np.flatnonzero(counts)) == set(law)
    assert chi_square(counts[list(law)], list(law.values())) < CHI2[len(law) - 1]


def test_multiplicative_parameters():
    w = oracle.words(3, 0, 1, oracle.PARAMETERS, 20_000)
    laws = np.array([oracle.multiplicative_law(int(w1), int(w2)) for w1, w2 in w[:, 1:3]]) / 65536
    mean, sigma = laws.T
    assert mean.min() >= -0.5
    assert mean.max() < 0.5
    assert sigma.min() >= 0
    assert sigma.max() < 0.05**0.5
    assert chi_square(np.histogram(mean, 16, (-0.5, 0.5))[0], np.ones(16)) < CHI2[15]
    assert chi_square(np.histogram(sigma**2, 16, (0, 0.05))[0], np.ones(16)) < CHI2[15]
    assert abs(np.corrcoef(mean, sigma)[0, 1]) < 0.03


def test_multiplicative_noise_is_normal():
    """All 65,536 variates at once: symmetric, and moments of the normal law; 16 bits cut its tail at 4.5."""
    z = oracle.normal(np.arange(65536)) / 4096
    np.testing.assert_array_equal(z[:32768], -z[32768:])
    assert (np.diff(z[:32768]) >= 0).all()
    assert abs((z**2).mean() - 1) < 2e-3
    assert abs((z**4).mean() - 3) < 3e-2
    assert 4 < z.max() < 4.5


def test_multiplicative_noise_in_images():
    """Mean and deviation of the ratios in native mutants follow the drawn law of each image."""
    x = np.full((200, 1, 50, 50), 100, np.uint8)
    y = ops.apply(x, "multiplicative", seed=13, overflow="clip").reshape(200, -1).astype(float)
    ratio = (y + 0.5) / 100  # truncation takes half a level on average
    drawn = [
        oracle.multiplicative_law(*(int(w) for w in oracle.words(13, i, 1, oracle.PARAMETERS)[0, 1:3]))
        for i in range(200)
    ]
    mean, sigma = np.array(drawn).T / 65536
    assert np.abs((ratio.mean(axis=1) - 1 - mean) / (sigma / 50 + 1e-3)).max() < 4
    wide = sigma > 0.05
    assert np.abs(ratio.std(axis=1)[wide] / sigma[wide] - 1).max() < 0.06
    assert wide.sum() > 100


def test_multiplicative_wraps_and_clips():
    x = np.full((200, 1, 8, 8), 200, np.uint8)
    clipped, wrapped = (ops.apply(x, "multiplicative", seed=14, overflow=o) for o in ("clip", "wrap"))
    over = clipped == 255
    np.testing.assert_array_equal(clipped[~over], wrapped[~over])
    assert over.any()
    assert wrapped[over].min() < 100
    assert not ops.apply(np.zeros_like(x), "multiplicative", overflow="wrap").any()


@pytest.mark.parametrize(("shape", "n"), [((1, 28, 28), 2), ((3, 32, 32), 7), ((3, 224, 224), 302)])
def test_salt_and_pepper_counts(shape, n):
    count = 200 if shape != BIG else 8
    x = np.full((count, *shape), 100, np.uint8)
    y = ops.apply(x, "salt_pepper", seed=15)
    values, total = np.unique(y, return_counts=True)
    assert values.tolist() == [0, 100, 255]
    salt, pepper = ((y == v).reshape(count, -1).sum(axis=1) for v in (255, 0))
    assert salt.max() <= n
    assert pepper.max() <= n
    # Positions are drawn with replacement: hardly any of the n is lost.
    assert total[0] > 0.99 * n * count
    assert total[2] > 0.98 * n * count


def test_salt_and_pepper_reaches_everywhere():
    y = ops.apply(np.full((4000, 1, 2, 5), 100, np.uint8), "salt_pepper", seed=16)
    pepper = (y == 0).reshape(4000, 10)
    assert (pepper.sum(axis=1) == 1).all()
    assert chi_square(pepper.sum(axis=0), np.ones(10)) < CHI2[9]


def test_pixel_changes_at_most_nine_values():
    x = np.zeros((4000, 1, 64, 64), np.uint8)
    for skip, fewest in ((False, 0), (True, 1)):
        y = ops.apply(x, "pixel", seed=18, skip_identity=skip).reshape(4000, -1)
        changed = (y != 0).sum(axis=1)
        assert changed.max() == 9
        # A new value is 0 with probability 1/256, and two of at most nine positions rarely meet.
        counts = np.bincount(changed, minlength=10)[fewest:]
        assert chi_square(counts, np.ones(10 - fewest)) < CHI2[9 - fewest] + 4
        assert counts.min() > 0
    values = np.bincount(y[y > 0] >> 4, minlength=16)
    assert chi_square(values, [15, *[16] * 15]) < CHI2[15]


@pytest.mark.parametrize("operator", ["box", "gaussian", "median"])
@pytest.mark.parametrize("skip", [False, True])
def test_sizes_of_blurs_are_uniform(operator, skip):
    picture = pictures((1, 7, 7))[5:6]
    sizes = [k for k in SIZES[operator] if k > 1 or not skip]
    forms = np.concatenate([ops.apply(picture, operator, size=k) for k in sizes]).reshape(len(sizes), -1)
    mutants = ops.apply(np.repeat(picture, 10_000, axis=0), operator, seed=19, skip_identity=skip).reshape(10_000, -1)
    hits = (mutants[:, None] == forms[None]).all(axis=2)
    assert (hits.sum(axis=1) == 1).all()
    assert chi_square(hits.sum(axis=0), np.ones(len(sizes))) < CHI2[len(sizes) - 1]


@pytest.mark.parametrize("operator", oracle.OPERATORS)
def test_linf_bound_holds(operator):
    seed = pictures((1, 12, 12))[5:6]
    far = 255 - seed
    for overflow in ("clip", "wrap"):
        for linf in (0, 1, 30):
            y = ops.apply(np.repeat(far, 50, axis=0), operator, linf=linf, origin=seed, overflow=overflow)
            distance = np.abs(y.astype(int) - seed)
            assert distance.max() == linf


def test_step_index_and_seed_move_the_draw():
    x = pictures((3, 16, 16))[5:6]
    draws = [
        ops.apply(x, "additive", seed=s, index=i, step=t) for s, i, t in ((0, 0, 1), (1, 0, 1), (0, 1, 1), (0, 0, 2))
    ]
    assert all((a != b).mean() > 0.3 for a, b in pairwise(draws))
