"""Scores of classes against a brute force, exact pruning by them, and constants against the formula they are for."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from brute_slicing import contributions, means, values
from compdx import Inputs, Model, Seeds, compress, slicing, zoo
from compdx.training import Recipe
from random_networks import random_network, random_samples

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")

THETA = slicing.Theta(epsilon=0.2, beta=0.01)
SHORT = Recipe(epochs=2, batch_size=16, rate=0.05, schedule="constant", crop=0, flip=False, precision="float32")


class Strided(nn.Module):  # type: ignore[misc]
    """Convolutions with padding, stride, groups and biases; the functional operations between them are nobody's."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem = nn.Conv2d(2, 4, 3, padding=1)
            self.norm = nn.BatchNorm2d(4)
            self.down = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
            self.head = nn.Linear(6, 3)
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)
        self.eval()

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(torch.relu(self.down(x)).mean((2, 3)))


def samples(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 2, 7, 7, generator=torch.Generator().manual_seed(seed))


def labelled(count: int, seed: int = 0) -> Seeds:
    rng = np.random.default_rng(seed)
    return Seeds(rng.integers(0, 256, (count, 2, 7, 7), dtype=np.uint8), rng.integers(0, 3, count))


def ranks(network: nn.Module, seed: int = 0) -> dict[str, Any]:
    return compress.rank(network, "random", seed=seed)


def seen(network: nn.Module, x: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Input and output of every convolution and linear layer, as hooks see them before any other hook."""
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    probe = copy.deepcopy(network)
    for name, module in probe.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(
                lambda _, given, output, name=name: found.update({name: (given[0].clone(), output.clone())})
            )
    with torch.no_grad():
        probe(x)
    return found


# Scores of classes


@pytest.mark.parametrize("theta", [None, THETA])
def test_scores_of_a_class_are_sums_over_its_images(theta: slicing.Theta | None) -> None:
    """Image by image, by loops over neurons; the images of a class are the first that the network has right."""
    for number in range(6):
        rng = np.random.default_rng([number, 11])
        network, steps, shape = random_network(rng)
        data, x = random_samples(shape, 8, rng), random_samples(shape, 9, rng)
        given = values(steps, x)[-1].numpy().argmax(1)
        labels = np.where(np.arange(9) % 4 == 1, (given + 1) % 3, given)
        labels[0] = -1
        found = slicing.class_scores(
            network,
            slicing.profile(network, data),
            x,
            labels=labels,
            classes=set(given[labels == given].tolist()),
            per_class=3,
            theta=theta,
            batch=2,
        )
        bounds = None if theta is None else (theta.epsilon, theta.beta)
        for label in range(3):
            rows = np.flatnonzero((labels == label) & (given == label))[:3]
            assert found.counts[label] == len(rows)
            assert (label in found.classes) == bool(len(rows))
            if not len(rows):
                continue
            row = found.classes.index(label)
            start = np.eye(3, dtype=np.int64)[given[rows]]
            _, synapses = contributions(steps, means(steps, data), x[rows], start, bounds)
            for scores, signed, want in zip(
                found.absolute.values(), found.signed.values(), synapses.values(), strict=True
            ):
                np.testing.assert_array_equal(scores[row], abs(want).sum(0))
                np.testing.assert_array_equal(signed[row], want.sum(0))


def test_scores_of_a_subset_are_those_of_its_classes_together(tmp_path: Path) -> None:
    network, x = Strided(), samples(200)
    with torch.no_grad():  # then every class is given to some
        network.head.bias -= network(x).mean(0)
    labels = network(x).argmax(1).numpy()
    assert set(labels) == {0, 1, 2}
    found = slicing.class_scores(network, slicing.profile(network, x), x, labels=labels, per_class=20)
    assert found.counts.tolist() == [min(20, int((labels == label).sum())) for label in range(3)]
    for name, array in found.of([2, 0]).items():
        assert array.dtype == np.int64
        np.testing.assert_array_equal(array, found.of([0])[name] + found.of([2])[name])
        np.testing.assert_array_equal(
            found.of({0, 2}, "signed")[name], abs(found.signed[name][0] + found.signed[name][2])
        )
    again = slicing.ClassScores.load(found.save(tmp_path / "scores.safetensors"))
    assert list(again.absolute) == list(found.absolute)
    assert again.settings == found.settings
    for one, other in (
        (found.absolute, again.absolute),
        (found.signed, again.signed),
        ({"": found.counts}, {"": again.counts}),
    ):
        for name, array in one.items():
            np.testing.assert_array_equal(array, other[name])


def test_arguments_of_scores_are_checked() -> None:
    network, x = Strided(), samples(8)
    profile = slicing.profile(network, x)
    labels = network(x).argmax(1).numpy()
    options: dict[str, Any] = {"labels": labels}
    for changes, kind, message in (
        ({"labels": None}, ValueError, "class_scores needs the labels of the images"),
        ({"labels": labels + 3}, ValueError, "labels must be below the model's 3 classes, got"),
        ({"classes": []}, ValueError, "classes must be different ones of 0 to 2, at least one, got"),
        ({"classes": [0, 0]}, ValueError, "classes must be different ones"),
        ({"classes": [3]}, ValueError, "classes must be different ones"),
        ({"classes": ["a"]}, TypeError, "classes must be integers, got <U1"),
        ({"per_class": 0}, ValueError, "per_class: expected 1..1048576, got 0"),
        ({"labels": (labels + 1) % 3}, ValueError, "data must hold an image of class 0 that the model classifies"),
    ):
        with pytest.raises(kind, match=message):
            slicing.class_scores(network, profile, x, **{**options, **changes})
    found = slicing.class_scores(network, profile, x, labels=labels, classes=[int(labels[0])])
    other = next(label for label in range(3) if label != labels[0])
    with pytest.raises(ValueError, match=f"classes must have images that were sliced, but class {other} has none"):
        found.of([int(labels[0]), other])
    with pytest.raises(ValueError, match="aggregate must be 'signed' or 'absolute', got 'sum'"):
        found.of([int(labels[0])], "sum")  # type: ignore[arg-type]


# Rankings and exact shares


def test_rankings_without_data() -> None:
    network = Strided()
    by = {kind: compress.rank(network, kind) for kind in ("weight", "channel", "random")}
    for name in ("stem", "down", "head"):
        weight = network.get_submodule(name).weight.detach().double().numpy()
        np.testing.assert_array_equal(by["weight"][name], abs(weight))
        for row, ranked in zip(weight, by["channel"][name], strict=True):
            np.testing.assert_allclose(ranked, abs(row).sum(), rtol=1e-12)
            assert (ranked == ranked.flat[0]).all()
        assert sorted(by["random"][name].ravel().tolist()) == list(range(weight.size))
    assert list(by["weight"]) == ["stem", "down", "head"]
    assert list(compress.rank(network, "weight", layers=None)) == ["stem", "down"]
    assert any((ranks(network, 1)[name] != by["random"][name]).any() for name in by["random"])
    with pytest.raises(ValueError, match="by must be one of 'weight', 'channel', 'random', got 'size'"):
        compress.rank(network, "size")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model must be a torch module, got list"):
        compress.rank([], "weight")


@pytest.mark.parametrize("by", ["weight", "channel", "random", "slice"])
def test_zeros_are_counted_exactly_and_nested(by: Any) -> None:
    network, x = Strided(), samples(64)
    labels = network(x).argmax(1).numpy()
    if by == "slice":
        own = {int(labels[0])}
        scores: Any = slicing.class_scores(
            network, slicing.profile(network, x), x, labels=labels, classes=own, theta=THETA
        ).of(own)
    else:
        scores = compress.rank(network, by)
    before: dict[str, set[int]] = {name: set() for name in scores}
    for tenths in range(1, 10):
        made = compress.prune(network, tenths / 10, scores=scores)
        for name in ("stem", "down", "head"):
            weight = made.model.get_submodule(name).weight.detach().numpy().ravel()
            gone = set(np.flatnonzero(weight == 0).tolist())
            assert len(gone) == tenths * weight.size // 10
            assert gone >= before[name]
            before[name] = gone


# Constants


def test_a_compensated_layer_computes_the_formula() -> None:
    """y = W'(x - mean x) + mean y, with convolutions that pad and stride, against torch's own without a bias."""
    network, data, x = Strided(), samples(50, 1), samples(5, 2)
    pruned = compress.prune(network, 0.6, scores=ranks(network))
    made = slicing.compensate(pruned, slicing.profile(network, data), first=True)
    average = {name: tuple(t.double().mean(0) for t in pair) for name, pair in seen(network, data).items()}
    functions = {
        "stem": lambda t, w: nn.functional.conv2d(t, w, padding=1),
        "down": lambda t, w: nn.functional.conv2d(t, w, stride=2, padding=1, groups=2),
        "head": lambda t, w: nn.functional.linear(t, w),
    }
    for name, (given, output) in seen(made.model, x).items():
        weight = pruned.model.get_submodule(name).weight.detach().double()
        mean_input, mean_output = average[name]
        want = functions[name](given.double() - mean_input, weight) + mean_output
        np.testing.assert_allclose(output.double(), want, atol=1e-5)
        assert (output.double() - functions[name](given.double(), weight)).abs().max() > 1e-2
    assert made.record["settings"]["shifts"] == {"stem": [4, 7, 7], "down": [6, 4, 4], "head": [3]}
    assert made.record["bytes"] == pruned.record["bytes"] + 4 * (4 * 49 + 6 * 16 + 3)


def test_the_first_layer_is_left_out() -> None:
    network, data = Strided(), samples(20)
    pruned = compress.prune(network, 0.6, scores=ranks(network))
    made = slicing.compensate(pruned, slicing.profile(network, data))
    assert list(made.record["settings"]["shifts"]) == ["down", "head"]
    for which in (made.model, made.twin):
        assert not hasattr(which.stem, "shift")
        assert which.down.shift.shape == (6, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(made.model(data), made.twin(data))


def test_the_first_layer_is_that_of_the_network() -> None:
    """Not the first of those that were pruned."""
    network, data = Strided(), samples(20)
    pruned = compress.prune(network, 0.6, scores=ranks(network), layers=["down", "head"])
    made = slicing.compensate(pruned, slicing.profile(network, data))
    assert list(made.record["settings"]["shifts"]) == ["down", "head"]


def test_nothing_pruned_is_nothing_to_make_up_for() -> None:
    network, x = Strided(), samples(20)
    made = slicing.compensate(compress.prune(network, 1e-6, scores=ranks(network)), slicing.profile(network, x))
    with torch.no_grad():
        torch.testing.assert_close(made.model(x), network(x), rtol=0, atol=1e-5)


def test_the_average_input_of_a_linear_network_gives_its_average_output() -> None:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 3)).eval()
    x = torch.randn(64, 6)
    pruned = compress.prune(network, 0.5, scores=ranks(network))
    made = slicing.compensate(pruned, slicing.profile(network, x), first=True)
    with torch.no_grad():
        torch.testing.assert_close(made.model(x.mean(0, keepdim=True)), network(x).mean(0, keepdim=True))
        # A linear network keeps its average output whatever the images are.
        torch.testing.assert_close(made.model(x).mean(0), network(x).mean(0))
        assert (pruned.model(x).mean(0) - network(x).mean(0)).abs().max() > 1e-2


def test_masks_and_constants_survive_a_training() -> None:
    network, train = Strided(), labelled(64)
    pruned = compress.prune(network, 0.6, scores=ranks(network))
    made = slicing.compensate(pruned, slicing.profile(network, samples(20)))
    before = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    tuned = compress.finetune(made, train, inputs=Inputs(), recipe=SHORT)
    assert tuned.record["trained"]["epochs"] == 2
    assert tuned.record["settings"]["recipe"] == SHORT.settings()
    for name, tensor in tuned.model.state_dict().items():
        torch.testing.assert_close(made.model.state_dict()[name], before[name], rtol=0, atol=0)
        if name.endswith("shift"):
            torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
        if name.removesuffix(".weight") in ("stem", "down", "head"):
            assert torch.equal(tensor == 0, before[name] == 0)
            assert not torch.equal(tensor, before[name])
    with torch.no_grad():
        torch.testing.assert_close(tuned.model(samples(5)), tuned.twin(samples(5)))
    assert not tuned.model.training


def test_training_later_is_training_at_once() -> None:
    network, train = Strided(), labelled(64)
    options: dict[str, Any] = {"inputs": Inputs(), "recipe": SHORT, "seed": 5}
    at_once = compress.prune(network, 0.6, train=train, **options)
    later = compress.finetune(compress.prune(network, 0.6), train, **options)
    for name, tensor in at_once.model.state_dict().items():
        assert torch.equal(tensor, later.model.state_dict()[name]), name
    counts = ("zeros", "sparsity")  # of all parameters: biases that were zero are trained
    assert {k: v for k, v in later.record.items() if k not in counts} == {
        k: v for k, v in at_once.record.items() if k not in counts
    }


def test_a_compensated_network_can_be_sliced_compensated_once_and_halved() -> None:
    network, x = Strided(), samples(20)
    profile = slicing.profile(network, x)
    made = slicing.compensate(compress.prune(network, 0.6, scores=ranks(network)), profile)
    found = slicing.slice(made.model, slicing.profile(made.model, x), x)
    assert [name for name in found.synapses] == ["stem", "down", "head"]
    assert Model(made).twin is not None
    with pytest.raises(ValueError, match="layer 'down' must have no 'shift' of its own, but has one"):
        slicing.compensate(made, profile)
    half = compress.half(made.model)
    with torch.no_grad():
        torch.testing.assert_close(half.model(x), made.model(x), rtol=0.1, atol=0.1)


class Twice(nn.Module):  # type: ignore[misc]
    """A layer that runs twice, or as a function of its weights."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.layer, self.how = nn.Linear(4, 4), nn.Linear(4, 4), how
        self.eval()

    def forward(self, x: Any) -> Any:
        x = self.first(x)
        if self.how == "twice":
            return self.layer(self.layer(x))
        return nn.functional.linear(x, self.layer.weight, self.layer.bias)


def copy_of(network: nn.Module) -> nn.Module:
    """A network of the same shapes."""
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.head.bias += 1
    return other


def test_what_cannot_be_compensated() -> None:
    network, x = Strided(), samples(20)
    pruned = compress.prune(network, 0.6, scores=ranks(network))
    profile = slicing.profile(network, x)
    classes = slicing.profile(network, x, baseline="class", labels=network(x).argmax(1).numpy())
    smaller = slicing.profile(network, x[:, :, :5, :5])
    for arguments, kind, message in (
        ((network, profile), TypeError, "pruned must be what compdx.compress.prune returns, got Strided"),
        ((compress.half(network), profile), TypeError, "returns, got scheme 'half'"),
        ((pruned, None), ValueError, "profile must be a compdx.slicing.Profile with baseline='dataset', got NoneType"),
        ((pruned, classes), ValueError, "got one of classes"),
        ((pruned, slicing.profile(pruned.model, x)), ValueError, "but is of other weights"),
        ((pruned, slicing.profile(copy_of(network), x)), ValueError, "but is of other weights"),
        ((pruned, slicing.profile(nn.Sequential(nn.Linear(7, 3)).eval(), x[:, 0, 0])), ValueError, "other weights"),
    ):
        with pytest.raises(kind, match=message):
            slicing.compensate(*arguments)  # type: ignore[arg-type]
    with torch.no_grad():  # a mean over positions takes images of any size, and so do constants of its own size
        assert slicing.compensate(pruned, smaller).model(x[:, :, :5, :5]).shape == (20, 3)
    for how, message in (("twice", "but runs 2 times"), ("function", "but runs as a function of its weights")):
        other = Twice(how)
        made = compress.prune(other, 0.5, scores=ranks(other))
        with pytest.raises(ValueError, match=message):
            slicing.compensate(made, slicing.profile(other, torch.randn(4, 4)))
    for other_scheme, name in ((pruned, "nowhere"), (compress.half(network), "head")):
        with pytest.raises(ValueError, match=f"shifts must name modules of the model and of its twin, got '{name}'"):
            compress.shifted(other_scheme, {name: np.zeros(3)})
    with pytest.raises(ValueError, match="shifts of layer 'head' must be finite"):
        compress.shifted(pruned, {"head": np.full(3, np.nan)})


def test_a_compensated_pair_as_files(tmp_path: Path) -> None:
    """Around stored weights the compression is made anew, constants included."""
    pytest.importorskip("sklearn")
    train, _ = zoo.read_data("digits")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = zoo.build("lenet1", channels=1, size=28).eval()
    inputs, path = Inputs(mean=0.5, std=0.5), tmp_path / "net.safetensors"
    original = zoo.load(zoo.save(network, path, name="lenet1", inputs=inputs, channels=1, size=28))
    model, images = original.model(), train.select(slice(60))
    profile = slicing.profile(model, images)
    pruned = slicing.compensate(compress.prune(original.network, 0.6, scores=ranks(original.network)), profile)
    recipe = Recipe(**{**SHORT.settings(), "epochs": 1})
    made = compress.finetune(pruned, images, inputs=inputs, recipe=recipe)
    zoo.CompressedPair(original=original, compressed=made).save(tmp_path / "pair")
    again = zoo.load_pair(tmp_path / "pair")
    assert again.compressed.record == made.record
    for which in ("model", "twin"):
        one, other = (getattr(c, which) for c in (made, again.compressed))
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name
    # Where the training started: the original's weights, but with the masks and constants of this one.
    for start in (made.start, again.compressed.start):
        assert start.keys() == pruned.twin.state_dict().keys()
        for name, tensor in pruned.twin.state_dict().items():
            assert torch.equal(start[name], tensor), name
    late = compress.prune(original.network, 0.6, train=images, inputs=inputs, recipe=recipe)
    assert {*compress.shifted(late, {"0": np.ones((1, 1, 1))}).start} == {*late.start, "0.shift"}
    x = torch.randn(4, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(made.model(x), again.compressed.model(x))
