"""Hidden weights: which, how many, that they come back exactly, and what an attacker is measured by."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compdx import Model, Seeds, compress, slicing
from compdx.slicing import protection
from compdx.training import Recipe, accuracy, predict
from compdx.zoo import digits

pytest.importorskip("sklearn")

INPUTS = digits.INPUTS
FAST = Recipe(**{**protection.RECIPE.settings(), "epochs": 3, "batch_size": 32, "rate": 0.02, "precision": "float32"})


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    with digits.one_thread():
        yield


@pytest.fixture(scope="module")
def data() -> tuple[Seeds, Seeds]:
    return digits.load()


@pytest.fixture(scope="module")
def network(data: tuple[Seeds, Seeds]) -> Any:
    with digits.one_thread():
        return digits.train(data[0], epochs=4)


def weights(network: nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    kinds = (nn.Conv2d, nn.Linear)
    return {n: m.weight.detach().numpy().copy() for n, m in network.named_modules() if isinstance(m, kinds)}


@pytest.mark.parametrize("by", ["weight", "random", "slice"])
@pytest.mark.parametrize("share", [0.29, 0.5, 0.9])
def test_the_largest_are_hidden_exactly(network: Any, data: tuple[Seeds, Seeds], by: Any, share: float) -> None:
    if by == "slice":
        seeds = data[0].select(slice(60))
        model = Model(network, mean=0.5, std=0.5)
        found = slicing.class_scores(model, slicing.profile(model, seeds), seeds, classes=[3], per_class=3)
        scores: Any = found.of([3])
    else:
        scores = compress.rank(network, by)
    before = weights(network)
    public, hidden = slicing.protect(network, scores, share)
    assert not public.training
    for name, weight in weights(public).items():
        np.testing.assert_array_equal(weights(network)[name], before[name])
        count = round(share * 100) * weight.size // 100
        flat = scores[name].ravel().tolist()
        chosen = sorted(sorted(range(len(flat)), key=lambda i: -flat[i])[:count])  # a stable sort
        assert hidden.places[name].tolist() == chosen
        np.testing.assert_array_equal(hidden.values[name], before[name].ravel()[chosen])
        left = before[name].ravel().copy()
        left[chosen] = 0
        np.testing.assert_array_equal(weight.ravel(), left)
    assert len(hidden) == sum(round(share * 100) * weight.size // 100 for weight in before.values())


def test_both_parts_together_are_the_network(network: Any, tmp_path: Path) -> None:
    public, hidden = slicing.protect(network, compress.rank(network, "weight", layers=["3", "9"]))
    path = hidden.save(tmp_path / "hidden.safetensors")
    whole = slicing.Hidden.load(path).restore(public)
    for name, tensor in network.state_dict().items():
        assert torch.equal(whole.state_dict()[name], tensor), name
        changed = name in ("3.weight", "9.weight")
        assert torch.equal(public.state_dict()[name], tensor) != changed
    last = public.to(memory_format=torch.channels_last)
    assert torch.equal(hidden.restore(last)[3].weight, network[3].weight)


def test_an_attack_without_learning_leaves_the_public_network(network: Any, data: tuple[Seeds, Seeds]) -> None:
    """At a rate that changes nothing every epoch is the public network: counts against `accuracy`."""
    train, test = data
    public, _ = slicing.protect(network, compress.rank(network, "random"), 0.2)
    still = Recipe(**{**FAST.settings(), "epochs": 1, "rate": 1e-30})
    found = slicing.recover(public, network, train.select(slice(64)), test=test, inputs=INPUTS, recipe=still)
    assert found.right.shape == (2, 10)
    assert found.counts.tolist() == np.bincount(test.labels).tolist()
    np.testing.assert_array_equal(found.right[0], found.right[1])
    assert found.best() == accuracy(public, test, INPUTS)
    for classes in ([1], [0, 4, 7]):
        own = test.select(np.isin(test.labels, classes))
        assert found.best(classes) == pytest.approx(accuracy(public, own, INPUTS))


def test_the_average_of_an_attack_is_measured_too(network: Any, data: tuple[Seeds, Seeds]) -> None:
    train, test = data
    public, _ = slicing.protect(network, compress.rank(network, "weight"))
    recipe = Recipe(**{**FAST.settings(), "epochs": 2, "average": 2})
    found = slicing.recover(public, network, train.select(slice(128)), test=test, inputs=INPUTS, recipe=recipe)
    assert found.right.shape == (4, 10)
    assert found.accuracies()[-1] == accuracy(found.network, test, INPUTS)


def test_the_attacker_learns_what_the_victim_says(network: Any, data: tuple[Seeds, Seeds]) -> None:
    """Hidden weights are trained from zero, on the victim's labels and no others."""
    train, test = data
    public, hidden = slicing.protect(network, compress.rank(network, "random"), 0.5)
    before = {name: tensor.clone() for name, tensor in public.state_dict().items()}
    wrong = Seeds(train.images, (train.labels + 1) % 10)
    seen: list[int] = []
    found, from_arrays = (
        slicing.recover(
            public,
            network,
            transfer,
            test=test,
            inputs=INPUTS,
            recipe=FAST,
            listen=lambda epoch: seen.append(epoch.epoch),
        )
        for transfer in (wrong, train.images)
    )
    assert seen == [1, 2, 3] * 2
    assert len(found.right) == 4
    assert found.best() > found.accuracies()[0] + 0.05
    np.testing.assert_array_equal(found.right, from_arrays.right)
    for name, tensor in public.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for name, places in hidden.places.items():
        values = found.network.get_submodule(name).weight.detach().numpy().ravel()[places]
        assert (values != 0).mean() > 0.5
    # The last epoch is what is returned.
    labels = predict(found.network, test.images, INPUTS).argmax(1)
    assert int((labels == test.labels).sum()) == int(found.right[-1].sum())


def test_the_paper_is_the_default() -> None:
    recipe = protection.RECIPE
    assert (recipe.rate, recipe.momentum, recipe.epochs, recipe.batch_size) == (0.005, 0.5, 10, 256)
    assert (recipe.schedule, recipe.nesterov, recipe.weight_decay) == ("constant", False, 0.0)


def test_arguments_are_checked(network: Any, data: tuple[Seeds, Seeds]) -> None:
    ranks = compress.rank(network, "weight", layers=["9"])
    public, hidden = slicing.protect(network, ranks)
    train, test = data[0].select(slice(32)), data[1].select(slice(32))
    for share in (0, 1, True, "half"):
        with pytest.raises(ValueError, match="share must be a number between 0 and 1, got"):
            slicing.protect(network, ranks, share)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scores of layer '9' must be finite numbers of the shape"):
        slicing.protect(network, {"9": ranks["9"].T})
    with pytest.raises(TypeError, match="or a mapping of layers, got list"):
        slicing.protect(network, [1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layers must name modules of the model, got '9'"):
        hidden.restore(nn.Sequential(nn.Linear(2, 2)).eval())
    other = nn.Sequential(*(nn.Identity() for _ in range(9)), nn.Linear(2, 2)).eval()
    with pytest.raises(ValueError, match=r"network must be the public one, but its layer '9' has weights \[2, 2\]"):
        hidden.restore(other)
    large = nn.Sequential(*(nn.Identity() for _ in range(9)), nn.Linear(99, 99)).eval()
    with pytest.raises(ValueError, match="network must be the public one"):
        hidden.restore(large)
    with pytest.raises(ValueError, match="layer '9' must have float32 weights to be hidden"):
        slicing.protect(copy.deepcopy(network).bfloat16(), ranks)
    for changes, message in (
        ({"test": Seeds(test.images)}, "test must be compdx.Seeds with a label for every image, got"),
        ({"test": Seeds(test.images, test.labels + 5)}, "test must have labels of the 10 classes of public, got 14"),
    ):
        with pytest.raises(ValueError, match=message):
            slicing.recover(public, network, train, **{"test": test, "inputs": INPUTS, **changes})
    found = slicing.recover(public, network, train, test=test, inputs=INPUTS, recipe=FAST)
    with pytest.raises(ValueError, match="classes must be different ones of 0 to 9"):
        found.best([10])
