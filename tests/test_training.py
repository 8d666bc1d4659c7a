"""The training loop against arithmetic written out by hand, and the promises it makes about resuming."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from compdx import Inputs, Seeds
from compdx.training import Batches, Epoch, Recipe, accuracy, fit, predict, set_mode

INPUTS = Inputs(mean=(0.5, 0.25), std=(0.5, 2.0))
PLAIN = Recipe(
    epochs=1, batch_size=8, rate=0.1, schedule="constant", weight_decay=0.0, crop=0, flip=False, precision="float32"
)
Array = npt.NDArray[Any]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def data(count: int = 8, shape: tuple[int, int, int] = (2, 5, 6)) -> tuple[Array, Array]:
    generator = np.random.default_rng(7)
    return generator.integers(0, 256, (count, *shape), np.uint8), generator.integers(0, 3, count)


def normalised(images: Array) -> Array:
    """In float64, from the definition."""
    mean, std = (np.array(values).reshape(1, 2, 1, 1) for values in (INPUTS.mean, INPUTS.std))
    return np.asarray((images / 255 - mean) / std)


def linear(features: int = 60, classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(features, classes))


def small() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))


def same(a: Any, b: Any) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def images_of(x: Any) -> Array:
    """The uint8 images that were normalised into this batch."""
    mean, std = (torch.tensor(values).reshape(1, 2, 1, 1) for values in (INPUTS.mean, INPUTS.std))
    return np.rint(((x * std + mean) * 255).numpy()).astype(np.uint8)


class TestBatches:
    def test_without_augmentation_each_image_comes_once_as_it_is(self) -> None:
        images, _ = data(23)
        batches = Batches(images, INPUTS, PLAIN, seed=3)
        assert len(batches) == 2
        seen = []
        for rows, x in batches.epoch(0):
            assert (x.shape, x.dtype) == ((8, 2, 5, 6), torch.float32)
            assert x.is_contiguous(memory_format=torch.channels_last)
            np.testing.assert_allclose(x.numpy(), normalised(images[rows]), atol=1e-6)
            seen += rows.tolist()
        assert len(set(seen)) == 16  # the last, smaller batch is left out

    def test_order_depends_on_seed_and_epoch_alone(self) -> None:
        images, _ = data(23)
        recipe = replace(PLAIN, crop=2, flip=True)

        def epoch(seed: int, number: int) -> list[bytes]:
            return [x.numpy().tobytes() for _, x in Batches(images, INPUTS, recipe, seed=seed).epoch(number)]

        assert epoch(3, 5) == epoch(3, 5)
        assert epoch(3, 5) != epoch(3, 6)
        assert epoch(3, 5) != epoch(4, 5)

    def test_fewer_images_than_a_batch_are_one_batch(self) -> None:
        images, _ = data(5)
        ((rows, x),) = Batches(images, INPUTS, PLAIN, seed=0).epoch(0)
        assert (sorted(rows.tolist()), len(x)) == ([0, 1, 2, 3, 4], 5)

    def test_augmented_images_are_shifts_and_mirrors_and_the_others_are_not_touched(self) -> None:
        images, _ = data(12)
        recipe = replace(PLAIN, batch_size=12, crop=2, flip=True)
        augmented = np.arange(12) % 3 != 0
        batches = Batches(images, INPUTS, recipe, seed=0, augmented=augmented)
        variants = {}  # by image: the bytes of each shift and mirror, found by slicing
        padded = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2)))
        for row in range(12):
            for down in range(5):
                for right in range(5):
                    cut = padded[row, :, down : down + 5, right : right + 6]
                    for mirrored in (False, True):
                        picture = cut[:, :, ::-1] if mirrored else cut
                        variants.setdefault((row, picture.tobytes()), (down, right, mirrored))
        drawn = []
        for number in range(60):
            for rows, x in batches.epoch(number):
                for row, picture in zip(rows, images_of(x), strict=True):
                    if augmented[row]:
                        drawn.append(variants[row, picture.tobytes()])
                    else:
                        np.testing.assert_array_equal(picture, images[row])
        # 480 draws: all 50 variants occur, each side is mirrored about half the time (six standard deviations).
        assert len(set(drawn)) == 50
        assert abs(sum(mirrored for *_, mirrored in drawn) - 240) < 66
        assert len({down for down, _, _ in drawn}) == len({right for _, right, _ in drawn}) == 5

    @pytest.mark.parametrize("side", [1, 2, 3, 4])
    def test_erased_squares_are_whole_but_for_the_border(self, side: int) -> None:
        images = np.zeros((12, 2, 9, 10), np.uint8)
        augmented = np.arange(12) % 3 != 0
        batches = Batches(images, INPUTS, replace(PLAIN, batch_size=12, erase=side), seed=0, augmented=augmented)
        sizes, covered = set(), np.zeros((9, 10), np.bool_)
        for number in range(60):
            for rows, x in batches.epoch(number):
                for row, picture in zip(rows, images_of(x), strict=True):
                    grey = picture == 128
                    assert set(np.unique(picture)) <= {0, 128}
                    assert (grey[0] == grey[1]).all()
                    if not augmented[row]:
                        assert not grey.any()
                        continue
                    down, right = grey[0].any(1), grey[0].any(0)
                    np.testing.assert_array_equal(grey[0], down[:, None] & right)
                    sizes.add((int(down.sum()), int(right.sum())))
                    covered |= grey[0]
        assert max(sizes) == (side, side)
        assert covered.all()


class TestFit:
    def test_two_steps_of_softmax_regression(self) -> None:
        """Nesterov's momentum, and decay of the weights but not of the biases, in float64 NumPy."""
        images, labels = data()
        network = linear()
        weight = network[1].weight.detach().double().numpy().copy()
        bias = network[1].bias.detach().double().numpy().copy()
        rate, momentum, decay = 0.1, 0.9, 0.01
        history = fit(network, images, labels, replace(PLAIN, epochs=2, weight_decay=decay), inputs=INPUTS)

        # The batch is the whole set, so its order does not matter.
        x, one_hot = normalised(images).reshape(8, -1), np.eye(3)[labels]
        velocity = [np.zeros_like(weight), np.zeros_like(bias)]
        losses = []
        for _ in range(2):
            scores = x @ weight.T + bias
            share = np.exp(scores - scores.max(1, keepdims=True))
            share /= share.sum(1, keepdims=True)
            losses.append(-np.log((share * one_hot).sum(1)).mean())
            error = (share - one_hot) / 8
            for values, gradient, speed in (
                (weight, error.T @ x + decay * weight, velocity[0]),
                (bias, error.sum(0), velocity[1]),
            ):
                speed *= momentum
                speed += gradient
                values -= rate * (gradient + momentum * speed)
        np.testing.assert_allclose(network[1].weight.detach().numpy(), weight, atol=2e-6)
        np.testing.assert_allclose(network[1].bias.detach().numpy(), bias, atol=2e-6)
        np.testing.assert_allclose([epoch.loss for epoch in history], losses, rtol=1e-5)
        assert [epoch.epoch for epoch in history] == [1, 2]

    def test_one_cycle_rises_to_its_peak_and_falls_to_nothing(self) -> None:
        images, labels = data()
        recipe = replace(PLAIN, epochs=20, schedule="one-cycle", rate=0.5, warmup=0.25)
        rates = [epoch.rate for epoch in fit(linear(), images, labels, recipe, inputs=INPUTS)]
        # Twenty steps, one an epoch: five up from 0.5 / 25 along half a cosine, then down along another.
        rise = 0.02 + 0.48 * (1 - np.cos(np.pi * np.arange(5) / 4)) / 2
        fall = 0.5 * (1 + np.cos(np.pi * np.arange(1, 16) / 15)) / 2
        np.testing.assert_allclose(rates, [*rise, *fall], atol=1e-5)

    @pytest.mark.parametrize("epochs", [1, 4, 20])
    def test_a_rise_of_one_step(self, epochs: int) -> None:
        images, labels = data()
        recipe = replace(PLAIN, epochs=epochs, schedule="one-cycle", warmup=1 / epochs if epochs > 1 else 0.5)
        assert len(fit(linear(), images, labels, recipe, inputs=INPUTS)) == epochs

    def test_average_of_the_last_epochs(self) -> None:
        images, labels = data(40)
        recipe = replace(PLAIN, epochs=5, average=3)
        kept: list[dict[str, Any]] = []
        network = small()
        fit(
            network,
            images,
            labels,
            recipe,
            inputs=INPUTS,
            listen=lambda _, state: kept.append(copy.deepcopy(state()["network"])),
        )
        plain = small()
        fit(plain, images, labels, replace(recipe, average=0), inputs=INPUTS)
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(parameter.detach(), torch.stack([k[name] for k in kept[2:]]).mean(0))
            assert torch.equal(dict(plain.named_parameters())[name], kept[4][name]), "averaging changes no epoch"
        # Batch normalisation has the mean statistics of the five batches, under the averaged weights of what is before.
        with torch.no_grad():
            batches = Batches(images, INPUTS, recipe, seed=0).epoch(5)
            outputs = [network[0](x) for _, x in batches]
        torch.testing.assert_close(network[1].running_mean, torch.stack([y.mean((0, 2, 3)) for y in outputs]).mean(0))
        torch.testing.assert_close(network[1].running_var, torch.stack([y.var((0, 2, 3)) for y in outputs]).mean(0))
        assert network.training

    @pytest.mark.parametrize("average", [0, 2, 4])
    def test_stopped_and_continued_is_the_same_bit_for_bit(self, average: int) -> None:
        images, labels = data(40)
        recipe = replace(
            PLAIN, epochs=5, schedule="one-cycle", crop=1, flip=True, average=average, precision="bfloat16"
        )
        whole = small()
        history = fit(whole, images, labels, recipe, inputs=INPUTS, seed=9)

        states: list[Any] = []

        def stop(epoch: Epoch, state: Any) -> bool:
            states.append(copy.deepcopy(state()))
            return epoch.epoch == 2

        first = fit(small(), images, labels, recipe, inputs=INPUTS, seed=9, listen=stop)
        other = small()
        nn.init.zeros_(other[0].weight)  # everything comes from the state
        ticks: list[tuple[int, int]] = []
        rest = fit(
            other,
            images,
            labels,
            recipe,
            inputs=INPUTS,
            seed=9,
            start=states[-1],
            tick=lambda *tick: ticks.append(tick),
        )
        assert same(whole, other)
        assert [e.loss for e in [*first, *rest]] == [e.loss for e in history]
        assert ticks == [(step, 25) for step in range(11, 26)]
        assert not same(whole, first_of(images, labels, recipe, seed=10))

    def test_a_loss_of_ones_own_gets_logits_rows_and_input(self) -> None:
        images, labels = data()
        targets = torch.from_numpy(labels)

        def loss(logits: Any, rows: Array, x: Any) -> Any:
            np.testing.assert_array_equal(images_of(x), images[rows])
            assert logits.dtype == torch.float32
            return nn.functional.cross_entropy(logits, targets[rows])

        usual, own = linear(), linear()
        fit(usual, images, labels, PLAIN, inputs=INPUTS)
        fit(own, images, labels, PLAIN, inputs=INPUTS, loss=loss)
        assert same(usual, own)

    def test_a_listener_may_measure(self) -> None:
        images, labels = data(40)
        network = small()
        modes: list[bool] = []
        network.register_forward_hook(lambda module, *_: modes.append(module.training))

        def measure(*_: Any) -> None:
            accuracy(set_mode(network, training=False), Seeds(images, labels), INPUTS)

        fit(network, images, labels, replace(PLAIN, epochs=2), inputs=INPUTS, listen=measure)
        assert modes == [True] * 5 + [False] + [True] * 5 + [False]

    @pytest.mark.parametrize(("precision", "dtype"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
    def test_precision_is_that_of_the_convolutions(self, precision: Any, dtype: Any) -> None:
        images, labels = data()
        network = small()
        seen: list[Any] = []
        network[0].register_forward_hook(lambda _m, _i, output: seen.append(output.dtype))
        fit(network, images, labels, replace(PLAIN, precision=precision), inputs=INPUTS)
        assert seen == [dtype]

    def test_a_loss_that_is_lost_is_an_error(self) -> None:
        images, labels = data()
        with pytest.raises(ValueError, match=r"the loss of epoch \d+ is (nan|inf); lower the learning rate"):
            fit(linear(), images, labels, replace(PLAIN, rate=1e38, epochs=4), inputs=INPUTS)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"labels": np.zeros(7, np.int64)}, r"labels must be 8 integers from 0 on, got int64 \[7\]"),
            ({"labels": np.full(8, -1)}, r"labels must be 8 integers from 0 on, .* from -1 on"),
            ({"labels": np.zeros(8)}, "labels must be 8 integers from 0 on, got float64"),
            ({"images": np.zeros((8, 5, 6), np.uint8)}, r"images must be uint8 \[N, C, H, W\]"),
            ({"images": np.zeros((8, 2, 5, 6), np.float32)}, r"images must be uint8 .* got float32"),
            ({"augmented": np.zeros(8, np.int64)}, "augmented must be 8 booleans, got int64"),
        ],
    )
    def test_what_does_not_fit_together(self, changes: dict[str, Any], message: str) -> None:
        images, labels = data()
        arguments = {"images": images, "labels": labels, **changes}
        with pytest.raises(ValueError, match=message):
            fit(linear(), recipe=PLAIN, inputs=INPUTS, **arguments)


def first_of(images: Array, labels: Array, recipe: Recipe, *, seed: int) -> Any:
    network = small()
    fit(network, images, labels, recipe, inputs=INPUTS, seed=seed)
    return network


def test_accuracy_and_predictions_against_a_product() -> None:
    images, labels = data(30)
    network = linear().eval()
    scores = normalised(images).reshape(30, -1) @ network[1].weight.detach().double().numpy().T
    scores += network[1].bias.detach().numpy()
    np.testing.assert_allclose(predict(network, images, INPUTS, batch_size=7), scores, atol=1e-5)
    assert accuracy(network, Seeds(images, labels), INPUTS) == (scores.argmax(1) == labels).mean()
    with pytest.raises(ValueError, match="seeds must have labels"):
        accuracy(network, Seeds(images), INPUTS)


def test_set_mode_of_plain_modules_and_exported_graphs() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))
    x = torch.ones(2, 3, 4)
    exported = torch.export.export(network, (x,)).module()
    for module in (network, exported):
        assert set_mode(module, training=False) is module
        assert bool((module(x) == 1).all())
        set_mode(module, training=True)
        assert not bool((module(x) == 1).all())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be an integer of at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size must be an integer"),
        ({"crop": -1}, "crop must be an integer of at least 0, got -1"),
        ({"epochs": 3, "average": 4}, "average must be at most the 3 epochs, got 4"),
        ({"rate": float("nan")}, "rate must be positive, got nan"),
        ({"warmup": 1.0}, "warmup must be at least 0 and less than 1, got 1.0"),
        ({"momentum": 1.0}, "momentum must be at least 0 and less than 1"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"momentum": 0.0}, "nesterov needs a momentum above 0"),
        ({"schedule": "step"}, "schedule must be 'one-cycle' or 'constant', got 'step'"),
        ({"precision": "float16"}, "precision must be 'bfloat16' or 'float32', got 'float16'"),
    ],
)
def test_recipes_that_are_none(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**changes)


def test_a_recipe_survives_json() -> None:
    recipe = Recipe(epochs=3, flip=False)
    assert Recipe(**recipe.settings()) == recipe
