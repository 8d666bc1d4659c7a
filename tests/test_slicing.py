"""Slices against a brute force over neurons and their inputs, and what must hold whatever the network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from brute_slicing import Step, contributions, means, values
from compdx import Inputs, Model, Seeds, compress, slicing, zoo
from compdx.slicing.rules import RULES
from compdx.slicing.tracing import Trace
from random_networks import random_network, random_samples

# torch tells users of even kernels with padding="same" that it makes a copy.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")

THETA = slicing.Theta(epsilon=0.2, beta=0.01)


def sliced(network: nn.Module, data: Any, samples: Any, **options: Any) -> slicing.Slice:
    """A slice whose baseline are the means over ``data``."""
    return slicing.slice(network, slicing.profile(network, data), samples, **options)


def assert_equal(a: slicing.Slice, b: slicing.Slice) -> None:
    """All numbers of two slices are the same."""
    for one, other in ((a.neurons, b.neurons), (a.synapses, b.synapses)):
        assert list(one) == list(other)
        for name in one:
            for part in ("signed", "absolute", "samples"):
                x, y = getattr(one[name], part), getattr(other[name], part)
                assert (x is None) == (y is None)
                if x is not None:
                    np.testing.assert_array_equal(x, y, err_msg=f"{name}.{part}")


def whole_numbers(*layers: nn.Module, seed: int = 0) -> nn.Sequential:
    """A network of small whole weights, whose float32 activations are exact whatever the order of their sums."""
    network = nn.Sequential(*layers).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data = torch.randint(-2, 3, parameter.shape, generator=generator).float()
    return network


def small(seed: int = 0) -> nn.Sequential:
    """A network of convolutions of whole numbers for ``[N, 2, 6, 6]``."""
    return whole_numbers(
        *(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 3, padding=1, groups=2),
            nn.ReLU(),
        ),
        *(nn.AvgPool2d(3), nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)),
        seed=seed,
    )


def images(count: int, seed: int = 1) -> torch.Tensor:
    return random_samples((2, 6, 6), count, np.random.default_rng(seed))


# Against the brute force


def compare(number: int, theta: slicing.Theta | None) -> int:
    """Slice a random network; how many contributions other than 0 agreed with the brute force, where all must."""
    rng = np.random.default_rng([number, 5])
    network, steps, shape = random_network(rng)
    data, samples = random_samples(shape, 8, rng), random_samples(shape, 2, rng)
    start = np.eye(3, dtype=np.int64)[values(steps, samples)[-1].numpy().argmax(1)]
    bounds = None if theta is None else (theta.epsilon, theta.beta)
    neurons, synapses = contributions(steps, means(steps, data), samples, start, bounds)
    options: dict[str, Any] = {"absolute": True, "neuron_samples": "all", "synapse_samples": "all"}
    found = sliced(network, data, samples, theta=theta, **options)
    agreed = 0
    for layers, wanted in ((found.neurons, neurons), (found.synapses, list(synapses.values()))):
        for (name, layer), want in zip(layers.items(), wanted, strict=True):
            np.testing.assert_array_equal(layer.samples, want, err_msg=f"network {number}, {name}: {steps}")
            np.testing.assert_array_equal(layer.signed, want.sum(0))
            np.testing.assert_array_equal(layer.absolute, abs(want).sum(0))
            agreed += int((want != 0).sum())
    return agreed


@pytest.mark.parametrize("block", range(10))
def test_brute_force_everything_kept(block: int) -> None:
    agreed = [compare(number, None) for number in range(20 * block, 20 * block + 20)]
    assert np.median(agreed) > 20


@pytest.mark.parametrize("block", range(10))
def test_brute_force_with_a_selection(block: int) -> None:
    agreed = [compare(number, THETA) for number in range(20 * block, 20 * block + 20)]
    assert np.median(agreed) > 10


def test_random_networks_have_every_kind_of_operation() -> None:
    networks = [random_network(np.random.default_rng([number, 5]))[0] for number in range(200)]
    kinds = {operation.kind for network in networks for operation in Trace(network, "random").operations}
    assert kinds == RULES.keys() - {"scale", "divide", "dropout", "identity"}


def test_brute_force_of_the_worked_example() -> None:
    """The brute force itself gives what was worked out by hand."""
    first, second = torch.tensor([[1.0, -1], [2, 1]]), torch.tensor([[1.0, -2], [-1, 1]])
    steps = [
        Step("linear", (0,), {"weight": first, "bias": None}),
        Step("function", (1,), {"call": torch.relu}),
        Step("linear", (2,), {"weight": second, "bias": None}),
    ]
    baseline = means(steps, torch.eye(2))
    neurons, synapses = contributions(steps, baseline, torch.tensor([[2.0, 1]]), np.array([[0, 1]]), (0.2, 0.01))
    assert [n.tolist() for n in neurons] == [[[1, 0]], [[0, 1]], [[0, 1]], [[0, 1]]]
    assert synapses[2].tolist() == [[[0, 0], [0, 1]]]
    assert synapses[0].tolist() == [[[0, 0], [1, 0]]]


# Worked examples, and what must not change anything


def worked_example() -> nn.Sequential:
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False)).eval()
    network[0].weight.data = torch.tensor([[1.0, -1], [2, 1]])
    network[2].weight.data = torch.tensor([[1.0, -2], [-1, 1]])
    return network


def test_worked_example() -> None:
    network = worked_example()
    profile = slicing.profile(network, torch.eye(2))
    assert {name: mean.tolist() for name, mean in profile.means.items()} == {
        "input": [0.5, 0.5],
        "0": [0, 1.5],
        "1": [0.5, 1.5],
        "2": [-2.5, 1],
    }
    found = slicing.slice(network, profile, torch.tensor([[2.0, 1]]), criterion=1)
    assert {name: layer.signed.tolist() for name, layer in found.neurons.items()} == {
        "input": [0, 2],  # the first cancels and leaves the slice, although its synapses stay
        "0": [-1, 1],
        "1": [-1, 1],
        "2": [0, 1],
    }
    assert {name: layer.signed.tolist() for name, layer in found.synapses.items()} == {
        "0": [[-1, 1], [1, 1]],
        "2": [[0, 0], [-1, 1]],
    }
    assert found.labels.tolist() == [1]
    assert (found.neurons["input"].count, found.neurons["input"].size, found.neurons["input"].share) == (1, 2, 0.5)
    assert (found.synapses.count, found.synapses.size) == (6, 8)


def test_worked_example_with_a_selection() -> None:
    found = sliced(worked_example(), torch.eye(2), torch.tensor([[2.0, 1]]), criterion=1, theta=THETA)
    assert [layer.signed.tolist() for layer in found.neurons.values()] == [[1, 0], [0, 1], [0, 1], [0, 1]]
    assert [layer.signed.tolist() for layer in found.synapses.values()] == [[[0, 0], [1, 0]], [[0, 0], [0, 1]]]


@pytest.mark.parametrize("name", ["lenet5", "resnet20"])
def test_sums_of_weighted_differences_are_the_differences_of_the_sums(name: str) -> None:
    """Fails when the means of an input and of an output are not of the same samples."""
    torch.manual_seed(0)
    network = zoo.build(name, channels=3, size=32).eval()
    generator = torch.Generator().manual_seed(1)
    profile = slicing.profile(network, torch.rand(7, 3, 32, 32, generator=generator), batch=3)
    trace, seen, checked = Trace(network, name), {}, 0
    with torch.no_grad():
        trace.run(torch.rand(2, 3, 32, 32, generator=generator), seen.__setitem__)
    for operation in trace.operations:
        if operation.kind not in ("linear", "convolution"):
            continue
        layer = copy.deepcopy(network.get_submodule(operation.layer)).double()
        layer.bias = None
        dx, dy = (
            seen[value].double() - torch.from_numpy(profile.means[value])
            for value in (operation.operands[0], operation.name)
        )
        with torch.no_grad():
            got = layer(dx)
            layer.weight.abs_()
            scale = layer(dx.abs())
        assert bool(((got - dy).abs() <= 1e-5 * scale).all()), operation.name
        checked += 1
    assert checked == {"lenet5": 5, "resnet20": 20}[name]


def test_samples_like_the_baseline_have_an_empty_slice() -> None:
    same = images(1).expand(8, 2, 6, 6)
    for theta in (None, THETA):
        found = sliced(small(), same, same[:3], theta=theta, absolute=True)
        inner = [layer for name, layer in found.neurons.items() if name != "9"]
        assert not any(layer.absolute.any() for layer in (*inner, *found.synapses.values()))
        assert found.neurons["9"].count == 1  # the criterion itself


@pytest.mark.parametrize("theta", [None, THETA])
def test_order_and_batches_change_nothing(theta: slicing.Theta | None) -> None:
    network, samples = small(), images(7, seed=3)
    profile = slicing.profile(network, images(8))
    options: dict[str, Any] = {"absolute": True, "neuron_samples": "all", "synapse_samples": ["0", "9"], "theta": theta}
    whole = slicing.slice(network, profile, samples, **options)
    assert_equal(whole, slicing.slice(network, profile, samples, batch=3, **options))
    order = [3, 0, 6, 1, 5, 2, 4]
    turned = slicing.slice(network, profile, samples[order], **options)
    for layers, others in ((whole.neurons, turned.neurons), (whole.synapses, turned.synapses)):
        for name, layer in layers.items():
            np.testing.assert_array_equal(layer.signed, others[name].signed)
            np.testing.assert_array_equal(layer.absolute, others[name].absolute)
            if layer.samples is not None:
                np.testing.assert_array_equal(layer.samples[order], others[name].samples)
    assert sum(layer.count for layer in whole.synapses.values()) > 50


@pytest.mark.parametrize("theta", [None, THETA])
def test_the_end_of_a_slice_is_that_of_the_whole(theta: slicing.Theta | None) -> None:
    """On random networks with branches, down to each of their layers; the profile may know more than is looked at."""
    shorter = 0
    for number in range(12):
        rng = np.random.default_rng([number, 9])
        network, _, shape = random_network(rng)
        data, samples = random_samples(shape, 8, rng), random_samples(shape, 3, rng)
        profile = slicing.profile(network, data)
        options: dict[str, Any] = {"absolute": True, "neuron_samples": "all", "theta": theta, "batch": 2}
        whole = slicing.slice(network, profile, samples, **options)
        for layer in whole.synapses:
            part = slicing.slice(network, profile, samples, down_to=layer, **{**options, "neuron_samples": ()})
            assert layer in part.synapses
            assert list(part.synapses) == list(whole.synapses)[-len(part.synapses) :]
            shorter += len(part.neurons) < len(whole.neurons)
            for layers, others in ((part.neurons, whole.neurons), (part.synapses, whole.synapses)):
                for name, found in layers.items():
                    np.testing.assert_array_equal(found.signed, others[name].signed)
                    np.testing.assert_array_equal(found.absolute, others[name].absolute)
    assert shorter > 12


@pytest.mark.parametrize("theta", [None, THETA])
def test_scales_of_layers_change_nothing(theta: slicing.Theta | None) -> None:
    network = small()
    wanted = sliced(network, images(8), images(3, seed=2), theta=theta)
    for first, second, factor in ((0, 3, 4.0), (3, 7, 0.5), (7, 9, 8.0)):
        scaled = copy.deepcopy(network)
        scaled[first].weight.data *= factor
        scaled[first].bias.data *= factor
        scaled[second].weight.data /= factor
        assert_equal(wanted, sliced(scaled, images(8), images(3, seed=2), theta=theta))


@pytest.mark.parametrize("theta", [None, THETA])
def test_the_sign_of_a_hidden_linear_neuron_changes_nothing_elsewhere(theta: slicing.Theta | None) -> None:
    network = whole_numbers(nn.Linear(5, 6), nn.Linear(6, 3), seed=4)
    rng = np.random.default_rng(0)
    data, samples = random_samples((5,), 8, rng), random_samples((5,), 4, rng)
    turned = copy.deepcopy(network)
    turned[0].weight.data[2] *= -1
    turned[0].bias.data[2] *= -1
    turned[1].weight.data[:, 2] *= -1
    assert_equal(sliced(network, data, samples, theta=theta), sliced(turned, data, samples, theta=theta))


def test_contributions_are_bounded() -> None:
    network = small()
    network[0].weight.data[1, 1] = 0
    found = sliced(network, images(8), images(5, seed=2), neuron_samples="all", synapse_samples="all", absolute=True)
    assert abs(found.neurons["input"].samples).max() <= 4 * 9
    assert abs(found.neurons["2"].samples).max() <= 2 * 9
    assert abs(found.neurons["6"].samples).max() <= 5
    assert abs(found.neurons["8"].samples).max() <= 1
    assert abs(found.synapses["0"].samples).max() <= 36
    assert set(np.unique(found.synapses["7"].samples)) == {-1, 0, 1}
    for name, layer in found.synapses.items():
        zero = (network.get_submodule(name).weight == 0).numpy()
        assert zero.any()
        assert not layer.absolute[zero].any()


def test_a_dead_branch_leaves_the_slice() -> None:
    network = small()
    network[9].weight.data[:, 1] = 0
    found = sliced(network, images(8), images(5, seed=2), absolute=True)
    assert not found.neurons["8"].absolute[1]
    assert not found.neurons["7"].absolute[1]
    assert not found.synapses["7"].absolute[1].any()
    assert found.synapses["7"].absolute.any()


def test_ties_of_a_maximum_all_get_everything() -> None:
    network = nn.Sequential(nn.MaxPool1d(4), nn.Flatten(), nn.Linear(1, 2, bias=False)).eval()
    network[2].weight.data = torch.tensor([[1.0], [1.0]])
    found = sliced(network, torch.zeros(1, 1, 4), torch.tensor([[[3.0, 1, 3, 2]]]), criterion=np.array([[1, 1]]))
    assert found.neurons["input"].signed.tolist() == [[2, 0, 2, 0]]


def test_average_pool_by_hand() -> None:
    network = nn.Sequential(nn.AvgPool1d(4), nn.Flatten(), nn.Linear(1, 3, bias=False)).eval()
    network[2].weight.data = torch.ones(3, 1)
    x = torch.tensor([[[1.0, -1, 2, -0.5]]])
    found = sliced(network, torch.cat([x, -x]), x, criterion=np.array([[1, 1, 1]]))
    assert found.neurons["0"].signed.tolist() == [[3]]
    assert found.neurons["input"].signed.tolist() == [[1, -1, 1, -1]]


# Criteria, baselines, options


def test_criteria_mean_the_same_however_they_are_given() -> None:
    network, samples = small(), images(6, seed=2)
    profile = slicing.profile(network, images(8))
    labels = network(samples).detach().numpy().argmax(1)
    assert len(set(labels.tolist())) > 1
    plain = slicing.slice(network, profile, samples)
    assert plain.labels.tolist() == labels.tolist()
    assert_equal(plain, slicing.slice(network, profile, samples, criterion=labels))
    assert_equal(plain, slicing.slice(network, profile, samples, criterion=np.eye(3, dtype=np.int64)[labels]))
    other = (labels + 1) % 3
    against = np.eye(3, dtype=np.int64)[labels] - np.eye(3, dtype=np.int64)[other]
    both = slicing.slice(network, profile, samples, contrast=other)
    assert_equal(both, slicing.slice(network, profile, samples, criterion=against))
    with pytest.raises(AssertionError):
        assert_equal(plain, both)
    first = slicing.slice(network, profile, samples, criterion=2)
    assert_equal(first, slicing.slice(network, profile, samples, criterion=[2] * 6))


def test_means_of_classes_are_those_of_what_is_classified_correctly() -> None:
    network, data = small(), images(40)
    predicted = network(data).detach().numpy().argmax(1)
    labels = np.where(np.arange(40) % 4 == 0, (predicted + 1) % 3, predicted)
    labels[5] = -1
    profile = slicing.profile(network, data, baseline="class", labels=labels, batch=7)
    right = labels == predicted
    assert profile.counts.tolist() == [int((right & (labels == c)).sum()) for c in range(3)]
    assert right.sum() < 40
    assert (profile.counts > 0).sum() > 1
    for label in np.flatnonzero(profile.counts):
        alone = slicing.profile(network, data[right & (labels == label)])
        for name, mean in alone.means.items():
            np.testing.assert_array_equal(profile.means[name][label], mean)


@pytest.mark.parametrize("theta", [None, THETA])
def test_samples_are_compared_with_the_means_of_their_class(theta: slicing.Theta | None) -> None:
    network, data, samples = small(), images(40), images(9, seed=2)
    labels = network(data).detach().numpy().argmax(1)
    profile = slicing.profile(network, data, baseline="class", labels=labels)
    found = slicing.slice(network, profile, samples, neuron_samples="all", theta=theta, batch=4)
    assert len(set(found.labels.tolist())) > 1
    for label in set(found.labels.tolist()):
        rows = np.flatnonzero(found.labels == label)
        alone = sliced(network, data[labels == label], samples[rows], neuron_samples="all", theta=theta)
        for name, layer in alone.neurons.items():
            np.testing.assert_array_equal(found.neurons[name].samples[rows], layer.samples)
    given = slicing.slice(network, profile, samples, classes=found.labels, neuron_samples="all", theta=theta)
    assert_equal(found, given)
    other = slicing.slice(network, profile, samples, classes=0, neuron_samples="all", theta=theta)
    rows = np.flatnonzero(found.labels != 0)
    assert (other.neurons["0"].samples[rows] != found.neurons["0"].samples[rows]).any()


def test_activations_that_are_not_monotone() -> None:
    """GELU falls to the left of -0.75: there an input above its mean gives an output below its own."""
    network = nn.Sequential(nn.Identity(), nn.GELU(), nn.Linear(2, 2, bias=False)).eval()
    network[2].weight.data = torch.eye(2)
    x = torch.tensor([[-1.0, 2.0]])
    options: dict[str, Any] = {"criterion": np.array([[1, 1]])}
    assert sliced(network, torch.tensor([[-3.0, 1.0]]), x, **options).neurons["0"].signed.tolist() == [1, 1]
    assert sliced(network, torch.tensor([[-3.0, 1.0]]), x, bent="sign", **options).neurons["0"].signed.tolist() == [
        -1,
        1,
    ]


def test_channels_are_sums_over_positions() -> None:
    found = sliced(small(), images(8), images(5, seed=2), absolute=True)
    layer = found.neurons["2"]
    assert layer.channels().tolist() == layer.signed.sum((1, 2)).tolist()
    assert layer.channels("absolute").tolist() == layer.absolute.sum((1, 2)).tolist()
    assert found.synapses["0"].channels().tolist() == found.synapses["0"].signed.sum((1, 2, 3)).tolist()
    assert found.synapses["0"].members.sum() == found.synapses["0"].count
    with pytest.raises(ValueError, match="absolute=True"):
        sliced(small(), images(8), images(1)).synapses["0"].channels("absolute")


# Networks as people write them


class Overwriting(nn.Module):
    """In-place operations of every kind, or the same without them."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.first, self.second = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.relu, self.last = nn.ReLU(inplace=in_place), nn.Linear(3, 3)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.first(x))
        y = self.relu(x)
        x = x if self.in_place else y  # what was overwritten is used once more
        y = self.second(y)
        if self.in_place:
            y += x
            y.relu_()
            functional.leaky_relu(y, 0.5, True)
            y.mul_(2)
        else:
            y = functional.leaky_relu(torch.relu(y + x), 0.5) * 2
        return self.last(torch.dropout(y, 0.5, False).mean((2, 3)) / 2)


@pytest.mark.parametrize("baseline", ["dataset", "class"])
def test_in_place_operations(baseline: str) -> None:
    whole_numbers(plain := Overwriting(False))
    written = Overwriting(True).eval()
    written.load_state_dict(plain.state_dict())
    data, samples = images(40), images(3, seed=2)
    labels = plain.eval()(data).detach().numpy().argmax(1)
    a, b = (
        slicing.slice(network, slicing.profile(network, data, baseline=baseline, labels=labels), samples)
        for network in (plain, written)
    )
    assert all((x.signed == y.signed).all() for x, y in zip(a.neurons.values(), b.neurons.values(), strict=True))
    for name in a.synapses:
        np.testing.assert_array_equal(a.synapses[name].signed, b.synapses[name].signed)
        assert a.synapses[name].count > 0


class Functions(nn.Module):
    """Weights in functions, a layer that runs twice, a constant, a shape, a parametrization."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 2, 3, 3))
        self.inner, self.gain = nn.Linear(4, 4), nn.Parameter(torch.zeros(4))
        self.shift = [torch.ones(4)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.adaptive_avg_pool2d(functional.conv2d(x, self.weight, stride=2), 1).view(x.size(0), -1)
        x = self.inner(torch.relu(self.inner(x)))
        return x * self.gain + self.shift[0]


class TwoWeights(nn.Module):
    """Two layers in one module, whose weights have one shape."""

    def __init__(self, *, names: tuple[str, str] = ("down", "up")) -> None:
        super().__init__()
        self.names = names
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.zeros(6, 6)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = (getattr(self, name) for name in self.names)
        return functional.linear(torch.relu(functional.linear(x, first)), second)


@pytest.mark.parametrize("theta", [None, THETA])
def test_a_module_with_two_weights_is_two_layers(theta: slicing.Theta | None) -> None:
    network = whole_numbers(nn.Flatten(), nn.Linear(8, 6), TwoWeights(), nn.Linear(6, 3), seed=4)
    plain = nn.Sequential(
        *(nn.Flatten(), nn.Linear(8, 6), nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 6, bias=False)),
        nn.Linear(6, 3),
    ).eval()
    for layer, tensors in ((1, network[1].state_dict()), (5, network[3].state_dict())):
        plain[layer].load_state_dict(tensors)
    plain[2].weight.data, plain[4].weight.data = network[2].down.data, network[2].up.data
    data, samples = (random_samples((2, 2, 2), count, np.random.default_rng(count)) for count in (8, 5))
    found, wanted = (sliced(net, data, samples, theta=theta, absolute=True) for net in (network, plain))
    assert list(found.synapses) == ["1", "2", "2.up", "3"]
    for layers, others in ((found.synapses, wanted.synapses), (found.neurons, wanted.neurons)):
        for one, other in zip(layers.values(), others.values(), strict=True):
            np.testing.assert_array_equal(one.signed, other.signed)
            np.testing.assert_array_equal(one.absolute, other.absolute)
    assert all(layer.count for layer in found.synapses.values())


def test_a_layer_called_input_is_not_the_input() -> None:
    def named(name: str) -> nn.Module:
        network = whole_numbers(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3), seed=2)
        made = nn.Sequential()
        for place, layer in enumerate(network):
            made.add_module(name if place == 0 else str(place), layer)
        return made.eval()

    found, wanted = (sliced(named(name), images(8), images(3, seed=2)) for name in ("input", "first"))
    assert list(found.neurons) == ["input", "input#2", *list(wanted.neurons)[2:]]
    for layers, others in ((found.synapses, wanted.synapses), (found.neurons, wanted.neurons)):
        for one, other in zip(layers.values(), others.values(), strict=True):
            np.testing.assert_array_equal(one.signed, other.signed)
    train = Seeds(np.random.default_rng(0).integers(0, 256, (40, 2, 6, 6), dtype=np.uint8), np.zeros(40, np.int64))
    model = Model(named("input"), mean=0.5, std=0.25)
    train = Seeds(train.images, model(train.images).argmax(1))
    pytest.importorskip("sklearn")
    detector = slicing.detector(model, slicing.profile(model, train), train, criterion="all")
    assert detector.settings()["layer"] == "input"
    assert len(detector.judge(train.images)) == 40


def test_sums_beyond_int32_are_refused() -> None:
    """Ties of overlapping pools multiply: seven of them make two million of one image."""
    pools = nn.Sequential(*(nn.MaxPool2d(3, 1, 1) for _ in range(7)), nn.Flatten(), nn.Linear(25, 2, bias=False)).eval()
    pools[-1].weight.data = torch.tensor([[1.0] * 25, [0.0] * 25])
    profile = slicing.profile(pools, torch.zeros(1, 1, 5, 5))

    def found(count: int) -> int:
        ones = torch.ones(1, 1, 5, 5).expand(count, 1, 5, 5)
        return int(slicing.slice(pools, profile, ones, criterion=0, batch=256).neurons["input"].absolute.max())

    one = found(1)
    most = (2**31 - 1) // one
    assert found(most) == most * one
    with pytest.raises(ValueError, match="may add up to more than 2,147,483,647 over the samples"):
        found(most + 1)


def test_a_profile_of_images_that_were_fed_otherwise_is_refused(tmp_path: Path) -> None:
    network = small()
    rows = np.random.default_rng(0).integers(0, 256, (4, 2, 6, 6), dtype=np.uint8)
    model = Model(network, mean=0.5, std=(0.25, 0.5))
    profile = slicing.profile(model, rows)
    path = profile.save(tmp_path / "profile.safetensors")
    for one in (profile, slicing.Profile.load(path)):
        assert_equal(slicing.slice(model, one, rows), slicing.slice(model, profile, rows))
        with pytest.raises(ValueError, match="profile must be of images fed as the model's are"):
            slicing.slice(Model(network, mean=0.5, std=0.25), one, rows)
        slicing.slice(Model(network, mean=0.1), one, images(4))  # the model's input already


def test_a_file_without_all_of_it_is_named(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    for kind, load in (
        ("profile", slicing.Profile.load),
        ("slice", slicing.Slice.load),
        ("class scores", slicing.ClassScores.load),
        ("hidden weights", slicing.Hidden.load),
    ):
        save_file({"mean/a": np.zeros(2)}, tmp_path / "part.safetensors", {"compdx": f'"{kind}"', "version": "1"})
        with pytest.raises(ValueError, match=rf"part.safetensors: not a whole {kind}"):
            load(tmp_path / "part.safetensors")


def test_functions_with_weights_and_layers_that_run_twice() -> None:
    whole_numbers(network := Functions())
    network.eval()
    attributes = set(vars(network))
    data, samples = images(8), images(4, seed=2)
    profile = slicing.profile(network, data)
    found = slicing.slice(network, profile, samples)
    assert set(vars(network)) == attributes
    assert list(found.synapses) == ["conv2d", "inner"]
    part = slicing.slice(network, profile, samples, down_to="inner")
    assert list(part.synapses) == ["inner"]
    np.testing.assert_array_equal(part.synapses["inner"].signed, found.synapses["inner"].signed)
    assert list(found.neurons)[:3] == ["input", "conv2d", "adaptive_avg_pool2d"]
    steps = [
        Step("conv", (0,), {"weight": network.weight.data, "bias": None, "stride": 2, "padding": 0, "dilation": 1}),
        Step("adaptive", (1,), {"size": 1, "space": 2}),
        Step("move", (2,), {"call": lambda x: x.flatten(1)}),
        Step("linear", (3,), {"weight": network.inner.weight.data, "bias": network.inner.bias.data}),
        Step("function", (4,), {"call": torch.relu}),
        Step("linear", (5,), {"weight": network.inner.weight.data, "bias": network.inner.bias.data}),
        Step("function", (6,), {"call": lambda x: x * network.gain.data}),
        Step("function", (7,), {"call": lambda x: x + network.shift[0]}),
    ]
    steps[0].settings.update(groups=1, space=2)
    start = np.eye(4, dtype=np.int64)[found.labels]
    neurons, synapses = contributions(steps, means(steps, data), samples, start)
    for (name, layer), want in zip(found.neurons.items(), neurons, strict=True):
        np.testing.assert_array_equal(layer.signed, want.sum(0), err_msg=name)
    np.testing.assert_array_equal(found.synapses["conv2d"].signed, synapses[0].sum(0))
    np.testing.assert_array_equal(found.synapses["inner"].signed, (synapses[3] + synapses[5]).sum(0))
    assert (synapses[3].sum(0) != 0).any()
    with pytest.raises(ValueError, match="layer 'inner' runs more than once"):
        slicing.slice(network, profile, samples, absolute=True)


def test_parametrized_weights_are_those_that_compute() -> None:
    network = small()
    masked = copy.deepcopy(network)
    mask = torch.ones_like(network[3].weight)
    mask[:, 0] = 0

    class Mask(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * mask

    nn.utils.parametrize.register_parametrization(masked[3], "weight", Mask())
    network[3].weight.data *= mask
    masked.eval()
    assert_equal(sliced(network, images(8), images(3, seed=2)), sliced(masked, images(8), images(3, seed=2)))


def test_an_exported_network_has_the_slice_and_the_names_of_its_module() -> None:
    torch.manual_seed(0)
    network = zoo.build("resnet20").eval()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    exported = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    a, b = sliced(network, x, x[:1]), sliced(exported, x, x[:1])
    assert list(a.synapses) == list(b.synapses)
    for name in a.synapses:
        np.testing.assert_array_equal(a.synapses[name].signed, b.synapses[name].signed)
    np.testing.assert_array_equal(a.neurons["input"].signed, b.neurons["input"].signed)


@pytest.mark.slow
def test_layers_of_an_int8_network_have_the_names_of_the_original() -> None:
    torch.manual_seed(0)
    network = zoo.build("resnet20").eval()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 3, 32, 32), dtype=np.uint8)
    quantized = compress.quantize(network, Seeds(pixels), inputs=Inputs())
    a, b = (sliced(Model(model), pixels, pixels[:1], criterion=3) for model in (network, quantized))
    assert list(a.synapses) == list(b.synapses)
    last = list(a.synapses)[-1]
    agreed = np.sign(a.synapses[last].signed[3]) == np.sign(b.synapses[last].signed[3])
    assert agreed.mean() > 0.75  # rounding turns differences that are nearly nothing
    assert b.synapses.share > 0.5


def test_models_are_fed_as_they_want() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 2, 6, 6), dtype=np.uint8)
    inputs = Inputs(mean=(0.5, 0.25), std=0.5)
    x = np.stack([inputs.table(2)[c][pixels[:, c]] for c in range(2)], 1)
    network = small()
    wanted = sliced(network, x, x[:3])
    model = Model(network, mean=(0.5, 0.25), std=0.5)
    assert_equal(wanted, sliced(model, pixels, pixels[:3]))
    assert_equal(wanted, sliced(model, Seeds(pixels), Seeds(pixels[:3])))
    assert_equal(wanted, sliced(model, torch.from_numpy(x), torch.from_numpy(x[:3])))
    last = sliced(model.replace(memory_format="channels_last"), pixels, pixels[:3])
    assert_equal(wanted, last)


def test_a_background_class_is_no_criterion() -> None:
    network, samples = small(), images(5, seed=2)
    model = Model(network, class_offset=1)
    labels = network(samples)[:, 1:].detach().numpy().argmax(1)
    found = sliced(model, images(8), samples)
    assert found.labels.tolist() == labels.tolist()
    assert_equal(found, sliced(network, images(8), samples, criterion=labels + 1))


def test_sixteen_bit_networks() -> None:
    network = small()
    wanted = sliced(network, images(8), images(3, seed=2))
    half = sliced(Model(small().to(torch.bfloat16), dtype="bfloat16"), images(8), images(3, seed=2))
    assert list(half.synapses) == list(wanted.synapses)
    np.testing.assert_array_equal(half.synapses["9"].signed.shape, wanted.synapses["9"].signed.shape)
    assert half.neurons["9"].signed.sum() == 3
    assert half.synapses.count > 50


def test_nothing_changes_the_model() -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                *(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Flatten()),
                nn.Linear(64, 3),
            )
            self.table = [torch.ones(1)]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x) + self.table[0]

    network = Normalised().eval()
    network.layers[0].weight.grad = torch.ones_like(network.layers[0].weight)
    before, attributes = copy.deepcopy(network.state_dict()), set(vars(network))
    samples = images(3, seed=2)
    kept = samples.clone()
    for options in ({}, {"theta": THETA}, {"absolute": True}):
        sliced(network, images(8), samples, **options)
    assert torch.equal(samples, kept)
    assert set(vars(network)) == attributes
    assert not any(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert bool((network.layers[0].weight.grad == 1).all())
    assert network.layers[5].weight.grad is None
    assert before.keys() == network.state_dict().keys()
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert torch.is_grad_enabled()


# Files


def test_profiles_and_slices_as_files(tmp_path: Path) -> None:
    network, data, samples = small(), images(40), images(4, seed=2)
    labels = network(data).detach().numpy().argmax(1)
    for baseline in ("dataset", "class"):
        profile = slicing.profile(network, data, baseline=baseline, labels=labels)
        again = slicing.Profile.load(profile.save(tmp_path / "profile.safetensors"))
        assert (again.baseline, again.images, again.weights) == (baseline, 40, profile.weights)
        np.testing.assert_array_equal(again.counts, profile.counts)
        options: dict[str, Any] = {"absolute": True, "synapse_samples": "all", "neuron_samples": ["6"]}
        found = slicing.slice(network, again, samples, **options)
        assert_equal(found, slicing.slice(network, profile, samples, **options))
        loaded = slicing.Slice.load(found.save(tmp_path / "slice.safetensors"))
        assert_equal(found, loaded)
        assert loaded.settings == found.settings
        assert loaded.labels.tolist() == found.labels.tolist()
        assert repr(loaded) == repr(found)
    with pytest.raises(ValueError, match="expected a slice of version 1, got profile"):
        slicing.Slice.load(tmp_path / "profile.safetensors")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        slicing.Profile.load(tmp_path / "nothing.safetensors")
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        profile.save(tmp_path / "profile.npz")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        slicing.Profile.load(tmp_path / "torn.safetensors")


# Errors


class Calls(nn.Module):
    """A function between two layers."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4))
        self.call, self.last = call, nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.call(self.inner(x)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: x.softmax(1), "softmax at 'softmax' has no rule; slice on the logits"),
        (lambda x: torch.fft.fft(x).real, "fft_fft at 'fft_fft' has no rule"),
        (lambda x: functional.dropout(x, 0.5), "dropout at 'dropout' drops at random"),
        (lambda x: 1 / x, "truediv at 'truediv' divides by what depends on the input"),
        (lambda x: functional.linear(x, x), "linear at 'linear' takes settings or weights that depend on the input"),
        (
            lambda x: functional.batch_norm(x, None, None, training=True),
            "'batch_norm' uses the statistics of the batch",
        ),
        (lambda x: x.mean(), "mean at 'mean' averages over the samples of a batch"),
        (lambda x: x.mean(0, keepdim=True), "'mean' averages over the samples"),
        (lambda x: torch.add(x, x, alpha=0), "add at 'add' has alpha=0"),
        (lambda x: x if x.sum() > 0 else -x, "cannot be traced by torch.fx"),
        (lambda x: torch.cat([x[:, :2], torch.ones(1, 2)], 1), "'cat' concatenates neurons with constants"),
        (nn.Softmax(1), "Softmax at 'call' has no rule; slice on the logits"),
        (nn.BatchNorm1d(4, track_running_stats=False), "BatchNorm1d at 'call' uses the statistics of the batch"),
        (nn.Sequential(nn.GroupNorm(2, 4)), "GroupNorm at 'call.0' has no rule"),
    ],
)
def test_what_has_no_rule_is_named_with_its_place(call: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"model 'Calls'|concatenates|averages") as error:
        sliced(Calls(call).eval(), torch.ones(1, 4), torch.ones(1, 4))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), "Conv2d at '0' has padding_mode='reflect'"),
        (nn.ConvTranspose2d(2, 4, 3), "ConvTranspose2d at '0' has no rule"),
        (nn.MaxPool2d(2, return_indices=True), "MaxPool2d at '0' returns indices"),
        (nn.LSTM(6, 6), "LSTM at '0' has no rule"),
    ],
)
def test_layers_without_a_rule(layer: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match="cannot be sliced") as error:
        slicing.profile(nn.Sequential(layer, nn.Flatten()).eval(), images(2))
    assert message in str(error.value)


def test_views_that_are_overwritten() -> None:
    class View(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x.flatten(1)
            y.relu_()
            return x.reshape(1, -1) + y

    with pytest.raises(ValueError, match="relu_ at 'relu_' overwrites a tensor of which another view is used later"):
        slicing.profile(View().eval(), torch.ones(1, 2, 2))


def test_arguments_are_checked() -> None:
    network, data = small(), images(4)
    profile = slicing.profile(network, data)
    with pytest.raises(TypeError, match=r"profile must be a compdx\.slicing\.Profile, got dict"):
        slicing.slice(network, {}, data)
    with pytest.raises(TypeError, match=r"theta must be a compdx\.slicing\.Theta or None, got float"):
        slicing.slice(network, profile, data, theta=0.2)
    with pytest.raises(ValueError, match="epsilon must be finite and above 0, got 0"):
        slicing.Theta(epsilon=0)
    with pytest.raises(ValueError, match="beta must be 0 to 1, got 2"):
        slicing.Theta(beta=2)
    with pytest.raises(TypeError, match="beta must be a number, got str"):
        slicing.Theta(beta="0")
    with pytest.raises(TypeError, match=r"inputs must be Seeds, uint8 images .*, got float64"):
        slicing.slice(network, profile, data.double())
    with pytest.raises(ValueError, match="at least one"):
        slicing.slice(network, profile, data[:0])
    with pytest.raises(ValueError, match="criterion must be classes of 0 to 2, got 3 to 3"):
        slicing.slice(network, profile, data, criterion=3)
    with pytest.raises(TypeError, match="criterion must be integers, got float64"):
        slicing.slice(network, profile, data, criterion=0.5)
    with pytest.raises(ValueError, match="criterion must be one class or one for each of 4 samples"):
        slicing.slice(network, profile, data, criterion=[0, 1])
    with pytest.raises(ValueError, match=r"criterion must be a class, int \[4\] or int \[4, 3\]"):
        slicing.slice(network, profile, data, criterion=np.full((4, 3), 2))
    with pytest.raises(ValueError, match="contrast must be a class other than that of the criterion"):
        slicing.slice(network, profile, data, criterion=1, contrast=1)
    with pytest.raises(ValueError, match="bent must be 'pass' or 'sign', got 'fold'"):
        slicing.slice(network, profile, data, bent="fold")
    with pytest.raises(ValueError, match="classes needs a profile with baseline='class'"):
        slicing.slice(network, profile, data, classes=0)
    with pytest.raises(ValueError, match="synapse_samples must be among '0', '3', '7', '9', got '1'"):
        slicing.slice(network, profile, data, synapse_samples=["1"])
    with pytest.raises(TypeError, match="neuron_samples must be a collection of names or 'all', got 'input'"):
        slicing.slice(network, profile, data, neuron_samples="input")
    with pytest.raises(ValueError, match="down_to must be one of '0', '3', '7', '9', got '1'"):
        slicing.slice(network, profile, data, down_to="1")
    with pytest.raises(ValueError, match="synapse_samples must be among '7', '9', got '3'"):
        slicing.slice(network, profile, data, down_to="7", synapse_samples=["3"])
    with pytest.raises(ValueError, match="batch: expected 1"):
        slicing.slice(network, profile, data, batch=0)
    with pytest.raises(
        ValueError, match="profile must be of model 'Sequential' as it is, but was made with other weights"
    ):
        slicing.slice(small(seed=1), profile, data)
    with pytest.raises(ValueError, match="has no mean of its value"):
        slicing.slice(nn.Sequential(nn.Flatten(), nn.Linear(72, 3), nn.Linear(3, 3)).eval(), profile, data)
    with pytest.raises(ValueError, match="in training mode"):
        slicing.slice(small().train(), profile, data)
    with pytest.raises(ValueError, match="baseline must be 'dataset' or 'class', got 'mean'"):
        slicing.profile(network, data, baseline="mean")
    with pytest.raises(ValueError, match="baseline='class' needs the labels"):
        slicing.profile(network, data, baseline="class")
    with pytest.raises(ValueError, match="labels must be below the model's 3 classes, got 3"):
        slicing.profile(network, data, baseline="class", labels=[3, 0, 0, 0])
    wrong = (network(data).detach().numpy().argmax(1) + 1) % 3
    with pytest.raises(ValueError, match="an image that the model classifies correctly, got none"):
        slicing.profile(network, data, baseline="class", labels=wrong)
    with pytest.raises(ValueError, match="scores that are not finite"):
        slicing.profile(network, torch.full_like(data, torch.inf))


def test_a_class_without_images_has_no_slice() -> None:
    network, data = small(), images(20)
    labels = network(data).detach().numpy().argmax(1)
    only = np.where(labels == labels[0], labels, -1)
    profile = slicing.profile(network, data, baseline="class", labels=only)
    other = int(labels[labels != labels[0]][0])
    with pytest.raises(ValueError, match=f"no correctly classified image of class {other}"):
        slicing.slice(network, profile, data)


@pytest.mark.gpu
@pytest.mark.parametrize("theta", [None, THETA])
def test_both_devices_give_the_same(theta: slicing.Theta | None) -> None:
    network, samples = small(), images(5, seed=2)
    options: dict[str, Any] = {"absolute": True, "neuron_samples": "all", "synapse_samples": "all", "theta": theta}
    wanted = sliced(network, images(8), samples, **options)
    assert_equal(wanted, sliced(small().cuda(), images(8), samples, **options))
