"""Slices against a brute force over neurons and their inputs, and what must hold whatever the network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from brute_slicing import contributions, means, values
from random_networks import random_network, random_samples

from compdx import slicing


def compare(number: int, theta: tuple[float, float] | None) -> int:
    """Slice one random network; how many contributions other than 0 agreed with the brute force, all of them equal."""
    rng = np.random.default_rng([number, 5])
    network, steps, shape = random_network(rng)
    data, samples = random_samples(shape, 8, rng), random_samples(shape, 2, rng)
    labels = values(steps, samples)[-1].numpy().argmax(1)
    start = np.eye(3, dtype=np.int64)[labels]
    neurons, synapses = contributions(steps, means(steps, data), samples, start, theta)
    found = slicing.slice(
        network,
        slicing.profile(network, data),
        samples,
        theta=None if theta is None else slicing.Theta(epsilon=theta[0], beta=theta[1]),
        absolute=True,
        neuron_samples="all",
        synapse_samples="all",
    )
    agreed = 0
    expected = dict(zip(found.neurons, neurons, strict=True))
    for name, want in expected.items():
        layer = found.neurons[name]
        np.testing.assert_array_equal(layer.samples, want, err_msg=f"network {number}, neurons of {name}: {steps}")
        np.testing.assert_array_equal(layer.signed, want.sum(0))
        np.testing.assert_array_equal(layer.absolute, abs(want).sum(0))
        agreed += int((want != 0).sum())
    for name, want in zip(found.synapses, synapses.values(), strict=True):
        layer = found.synapses[name]
        np.testing.assert_array_equal(layer.samples, want, err_msg=f"network {number}, synapses of {name}")
        np.testing.assert_array_equal(layer.signed, want.sum(0))
        np.testing.assert_array_equal(layer.absolute, abs(want).sum(0))
        agreed += int((want != 0).sum())
    return agreed


# torch tells users of even kernels with padding="same" that it makes a copy.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")


@pytest.mark.parametrize("block", range(10))
def test_brute_force_everything_kept(block: int) -> None:
    agreed = [compare(number, None) for number in range(20 * block, 20 * block + 20)]
    assert np.median(agreed) > 20


@pytest.mark.parametrize("block", range(10))
def test_brute_force_with_a_selection(block: int) -> None:
    agreed = [compare(number, (0.2, 0.01)) for number in range(20 * block, 20 * block + 20)]
    assert np.median(agreed) > 10
