"""Attacks: FGSM against a plain loop and the step sizes of CompD's protocol, projected gradient descent likewise."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from compdx import Model, Seeds, attacks

torch = pytest.importorskip("torch")
nn = torch.nn

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CLASSES = 5


class Background(nn.Module):
    """Another network's scores behind that of a background class."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Any) -> Any:
        scores = self.network(x)
        return torch.cat([scores.amax(1, keepdim=True) + 1, scores], 1)


class ChannelsLast(nn.Module):
    """A network that takes [N, H, W, C]."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Any) -> Any:
        return self.network(x.permute(0, 3, 1, 2))


@pytest.fixture(scope="module")
def network() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * 5 * 5, CLASSES),
        )
        net[1].running_mean.uniform_(-1, 1)
        net[1].running_var.uniform_(0.5, 2)
    return net.eval()


@pytest.fixture(scope="module")
def images() -> Any:
    return np.random.default_rng(0).integers(0, 256, (23, 3, 12, 12), dtype=np.uint8)


@pytest.fixture(scope="module")
def labels(network: Any, images: Any) -> Any:
    """What the network says, but for every fourth image: those it gets wrong."""
    said = by_hand(network, images)[1].copy()
    said[::4] = (said[::4] + 1) % CLASSES
    return said


def by_hand(network: Any, images: Any, labels: Any = None, epsilon: float = 0.0) -> tuple[Any, Any]:
    """FGSM as the paper's script has it: one image at a time, the formula written out in NumPy."""
    inputs, said = [], []
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (MEAN, STD))
    for row, image in enumerate(images):
        x = (image.astype(np.float32) / 255 - mean) / std
        if labels is not None:
            leaf = torch.from_numpy(x)[None].clone().requires_grad_()
            torch.nn.functional.cross_entropy(network(leaf), torch.tensor([labels[row]])).backward()
            x = x + epsilon / 255 / std * np.sign(leaf.grad[0].numpy())
            x = np.clip(x, (0 - mean) / std, (1 - mean) / std).astype(np.float32)
        with torch.no_grad():
            said.append(int(network(torch.from_numpy(x)[None]).argmax()))
        inputs.append(x)
    return np.stack(inputs), np.array(said)


def test_fgsm_is_the_loop_of_the_paper(network: Any, images: Any, labels: Any) -> None:
    net = copy.deepcopy(network)
    for epsilon in (2, 8, 16):
        found = attacks.fgsm(Model(network, mean=MEAN, std=STD), images, labels, epsilon=epsilon, batch_size=7)
        inputs, said = by_hand(net, images, labels, epsilon)
        # A gradient of nearly zero may have either sign in a batch and alone.
        assert (np.abs(found.inputs - inputs) > 1e-5).mean() < 1e-3
        assert (found.labels_after == said).all()
        assert (found.labels_before == by_hand(net, images)[1]).all()
        right = [
            before == label == after for before, label, after in zip(*(found.labels_before, labels, said), strict=True)
        ]
        assert found.accuracy == pytest.approx(sum(right) / len(images))
    assert found.accuracy < 0.7  # else nothing was attacked


def test_fgsm_takes_the_steps_of_the_protocol() -> None:
    """CompD's section on FGSM: epsilon 2, 8 and 16 in normalised units, and the range that is clamped to."""

    class Sum(nn.Module):
        def forward(self, x: Any) -> Any:
            total = x.sum((1, 2, 3))
            return torch.stack([-total, total], 1)

    model = Model(Sum().eval(), mean=MEAN, std=STD)
    grey = np.full((1, 3, 4, 4), 128, np.uint8)
    plain = (128 / 255 - np.array(MEAN)) / np.array(STD)
    for epsilon, expected in (
        (2, (0.03877, 0.03933, 0.03902)),
        (8, (0.15508, 0.15733, 0.15608)),
        (16, (0.31016, 0.31467, 0.31216)),
    ):
        up = attacks.fgsm(model, grey, [0], epsilon=epsilon)
        down = attacks.fgsm(model, grey, [1], epsilon=epsilon)
        assert up.inputs[0, :, 0, 0] - plain == pytest.approx(expected, abs=1e-5)
        assert plain - down.inputs[0, :, 0, 0] == pytest.approx(expected, abs=1e-5)
        assert (up.images == 128 + epsilon).all()
        assert (down.images == 128 - epsilon).all()
    low, high = (attacks.fgsm(model, grey, [label], epsilon=255).inputs[0, :, 2, 2] for label in (1, 0))
    assert low == pytest.approx([-2.4291, -2.4183, -2.2214], abs=1e-4)
    assert high == pytest.approx([2.5141, 2.5968, 2.7537], abs=1e-4)


def test_other_bounds_scale_the_step() -> None:
    class Sum(nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.stack([-x.sum((1, 2, 3)), x.sum((1, 2, 3))], 1)

    found = attacks.fgsm(Model(Sum().eval(), bounds=(-1, 1)), np.full((1, 1, 2, 2), 100, np.uint8), [0], epsilon=10)
    assert found.inputs == pytest.approx(110 / 255 * 2 - 1, abs=1e-6)
    assert (found.images == 110).all()


def test_no_epsilon_is_no_attack(network: Any, images: Any, labels: Any) -> None:
    model = Model(network, mean=MEAN, std=STD)
    clean = float((model(images).argmax(1) == labels).mean())
    for attack in (attacks.fgsm, attacks.pgd):
        found = attack(model, images, labels, epsilon=0)
        assert found.accuracy == clean
        assert (found.images == images).all()
    assert 0 < clean < 1


def test_wrong_before_is_wrong() -> None:
    """An attack that happens to mend a label does not earn it."""

    class Step(nn.Module):
        def forward(self, x: Any) -> Any:
            over = x.mean((1, 2, 3)) - 0.5
            return torch.stack([over, -over], 1)

    model = Model(
        lambda x: np.stack([x.mean((1, 2, 3)) < 0.4, x.mean((1, 2, 3)) >= 0.4], 1).astype(np.float32),
        twin=Step().eval(),
    )
    found = attacks.fgsm(model, np.full((1, 1, 2, 2), 110, np.uint8), [0], epsilon=20)
    assert found.labels_before.tolist() == [1]
    assert found.labels_after.tolist() == [0]
    assert found.accuracy == 0


def test_gradient_of_the_twin_and_labels_of_the_model(network: Any, images: Any, labels: Any) -> None:
    asked = []

    def constant(x: Any) -> Any:
        asked.append(x.copy())
        return np.tile(np.eye(CLASSES, dtype=np.float32)[2], (len(x), 1))

    found = attacks.fgsm(Model(constant, mean=MEAN, std=STD, twin=network), images, labels, epsilon=8)
    expected = attacks.fgsm(Model(network, mean=MEAN, std=STD), images, labels, epsilon=8)
    assert (found.inputs == expected.inputs).all()
    assert (found.labels_after == 2).all()
    assert (asked[-1] == found.inputs).all()


def test_rounded_attacks_are_pictures(network: Any, images: Any, labels: Any) -> None:
    model = Model(network, mean=MEAN, std=STD)
    exact = attacks.fgsm(model, images, labels, epsilon=5)
    found = attacks.fgsm(model, images, labels, epsilon=5, rounded=True)
    change = found.images.astype(int) - images
    inside = (images >= 5) & (images <= 250)
    assert set(np.unique(change[inside])) <= {-5, 0, 5}
    assert np.abs(change).max() == 5
    assert (found.inputs == model.inputs.table(3)[np.arange(3)[:, None, None], found.images]).all()
    assert (found.labels_after == model(found.images).argmax(1)).all()
    assert (exact.images == found.images).all()
    assert (np.abs(exact.inputs - found.inputs) < 1e-5).all()


def variants(network: Any) -> dict[str, Model]:
    return {
        "channels_last": Model(network, mean=MEAN, std=STD, memory_format="channels_last"),
        "NHWC": Model(ChannelsLast(network).eval(), mean=MEAN, std=STD, layout="NHWC"),
        "probabilities": Model(
            nn.Sequential(network, nn.Softmax(1)).eval(), mean=MEAN, std=STD, outputs="probabilities"
        ),
        "class_offset": Model(Background(network).eval(), mean=MEAN, std=STD, class_offset=1),
    }


@pytest.mark.parametrize("name", ["channels_last", "NHWC", "probabilities", "class_offset"])
def test_every_kind_of_model(network: Any, images: Any, labels: Any, name: str) -> None:
    expected = attacks.fgsm(Model(network, mean=MEAN, std=STD), images, labels, epsilon=8)
    found = attacks.fgsm(variants(network)[name], images, labels, epsilon=8)
    if name == "class_offset":  # the background is no class, so it takes no part in the loss
        assert (found.inputs == expected.inputs).all()
    assert (np.abs(found.inputs - expected.inputs) > 1e-5).mean() < 1e-3
    assert (found.labels_after == expected.labels_after).all()


def test_half_precision_is_asked_in_its_own_type(network: Any, images: Any, labels: Any) -> None:
    small = copy.deepcopy(network).bfloat16()
    model = Model(small, mean=MEAN, std=STD, dtype="bfloat16")
    found = attacks.fgsm(model, images, labels, epsilon=8)
    with torch.inference_mode():
        said = small(torch.from_numpy(found.inputs).bfloat16()).float().argmax(1).numpy()
    assert (found.labels_after == said).all()
    assert (found.labels_before == model(images).argmax(1)).all()


def test_pgd_of_one_step_is_fgsm(network: Any, images: Any, labels: Any) -> None:
    model = Model(network, mean=MEAN, std=STD)
    expected = attacks.fgsm(model, images, labels, epsilon=6)
    found = attacks.pgd(model, images, labels, epsilon=6, step=6, steps=1)
    assert np.abs(found.inputs - expected.inputs).max() < 1e-6


def test_pgd_is_its_loop(network: Any, images: Any, labels: Any) -> None:
    model = Model(network, mean=MEAN, std=STD)
    found = attacks.pgd(model, images[:4], labels[:4], epsilon=8, step=3, steps=5, batch_size=4)
    net = copy.deepcopy(network)
    std = torch.tensor(STD)[:, None, None]
    table = torch.from_numpy(model.inputs.table(3))
    low, high = table[:, :1, None], table[:, -1:, None]
    origin = table[torch.arange(3)[:, None, None], torch.from_numpy(images[:4]).long()]
    x = origin.clone()
    for _ in range(5):
        x = x.detach().requires_grad_()
        nn.functional.cross_entropy(net(x), torch.from_numpy(labels[:4])).backward()
        x = x.detach() + 3 / 255 / std * x.grad.sign()
        x = torch.minimum(torch.maximum(x, origin - 8 / 255 / std), origin + 8 / 255 / std)
        x = torch.minimum(torch.maximum(x, low), high)
    assert np.mean(np.abs(found.inputs - x.numpy()) > 1e-4) < 5e-3


def test_pgd_stays_in_its_ball_and_raises_the_loss(network: Any, images: Any, labels: Any) -> None:
    model = Model(network, mean=MEAN, std=STD)
    for start in (False, True):
        found = attacks.pgd(model, images, labels, epsilon=8, random_start=start)
        level = 1 / 255 / np.array(STD)[:, None, None]
        table = model.inputs.table(3)
        origin = table[np.arange(3)[:, None, None], images]
        assert np.abs((found.inputs - origin) / level).max() <= 8 + 1e-3
        assert (found.inputs >= table[:, :1, None]).all()
        assert (found.inputs <= table[:, -1:, None]).all()
        one = attacks.fgsm(model, images, labels, epsilon=8)
        assert loss(network, found.inputs, labels) > loss(network, one.inputs, labels) > loss(network, origin, labels)


def loss(network: Any, inputs: Any, labels: Any) -> float:
    with torch.no_grad():
        scores = network(torch.from_numpy(inputs))
        return float(nn.functional.cross_entropy(scores, torch.from_numpy(labels)))


def test_a_random_start_depends_on_the_seed_alone(network: Any, images: Any, labels: Any) -> None:
    model = Model(network, mean=MEAN, std=STD)
    # Without a step, what is left is the start.
    settings = {"epsilon": 8, "step": 0, "steps": 1, "random_start": True}
    first = attacks.pgd(model, images, labels, **settings, seed=3)
    assert (attacks.pgd(model, images, labels, **settings, seed=3, batch_size=5).inputs == first.inputs).all()
    assert (attacks.pgd(model, images, labels, **settings, seed=4).inputs != first.inputs).any()
    origin = model.inputs.table(3)[np.arange(3)[:, None, None], images]
    moved = ((first.inputs - origin) * 255 * np.array(STD)[:, None, None])[(images > 8) & (images < 247)]
    assert np.abs(moved).max() <= 8 + 1e-3
    assert moved.mean() == pytest.approx(0, abs=4 * 8 / np.sqrt(3 * moved.size))  # uniform: std 8 / sqrt(3)
    assert moved.std() == pytest.approx(8 / np.sqrt(3), rel=0.05)


def test_accuracy_under_attack(network: Any, images: Any, labels: Any) -> None:
    model = Model(network, mean=MEAN, std=STD)
    seeds = Seeds(images, labels)
    found = attacks.accuracy_under(model, seeds, (0, 4, 16))
    assert list(found) == [0, 4, 16]
    assert found[4] == attacks.fgsm(model, images, labels, epsilon=4).accuracy
    assert found[0] > found[4] >= found[16]
    stronger = attacks.accuracy_under(model, seeds, (4,), "pgd")
    assert stronger == {4: attacks.pgd(model, images, labels, epsilon=4).accuracy}
    assert list(attacks.accuracy_under(model, seeds)) == [2, 8, 16]


def test_nothing_is_left_behind(network: Any, images: Any, labels: Any) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.random.get_rng_state()
    attacks.pgd(Model(network, mean=MEAN, std=STD), images, labels, epsilon=8, random_start=True)
    assert all((before[name] == value).all() for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert (torch.random.get_rng_state() == state).all()


def test_errors_name_the_argument(network: Any, images: Any, labels: Any) -> None:
    model = Model(network, mean=MEAN, std=STD)
    with pytest.raises(TypeError, match=r"model must be a compdx\.Model, got Sequential"):
        attacks.fgsm(network, images, labels, epsilon=1)
    with pytest.raises(TypeError, match="no torch module, so it has no gradients"):
        attacks.fgsm(Model(lambda x: x[:, :, 0, 0]), images, labels, epsilon=1)
    for epsilon in (-1, 256, float("nan")):
        with pytest.raises(ValueError, match=r"epsilon must be in 0\.\.255 grey levels"):
            attacks.fgsm(model, images, labels, epsilon=epsilon)
    with pytest.raises(TypeError, match="epsilon must be a number of grey levels, got str"):
        attacks.pgd(model, images, labels, epsilon="8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"labels must be as many as images, \[23\], got \[22\]"):
        attacks.fgsm(model, images, labels[1:], epsilon=1)
    with pytest.raises(TypeError, match="labels must be integers"):
        attacks.fgsm(model, images, labels.astype(float), epsilon=1)
    with pytest.raises(ValueError, match="labels must all be known, got -1"):
        attacks.fgsm(model, images, np.full(23, -1), epsilon=1)
    with pytest.raises(ValueError, match="labels must be below 5, the classes of model"):
        attacks.fgsm(model, images, np.full(23, 5), epsilon=1)
    with pytest.raises(ValueError, match="steps: expected"):
        attacks.pgd(model, images, labels, epsilon=1, steps=0)
    with pytest.raises(ValueError, match=r"attack must be one of 'fgsm', 'pgd', got 'cw'"):
        attacks.accuracy_under(model, Seeds(images, labels), attack="cw")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seeds must have labels"):
        attacks.accuracy_under(model, Seeds(images))
