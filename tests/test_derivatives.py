"""Gradients of a pair with respect to the image, and the pre-activations that are seen on the way."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from compdx import Model, Pair
from compdx.derivatives import PairGradient, check_taps, relu_inputs
from compdx.zoo.networks import build


class EveryRelu(nn.Module):
    """Each way that networks write a ReLU, once."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.module, self.in_place, self.six = nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(inplace=True)
        self.linear = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        functional = nn.functional
        y = self.module(self.conv(x))
        y = self.in_place(y - 0.1)
        y = functional.relu(y - 0.1)
        y = functional.relu(y - 0.1, inplace=True)
        y = torch.relu(input=y - 0.1)
        y = torch.relu_(y - 0.1)
        y = (y - 0.1).relu()
        y = (y - 0.1).relu_()
        y = functional.relu6(y - 0.1)
        y = self.six(y - 0.1)
        return self.linear(y.mean((2, 3)))


def test_every_way_to_write_a_relu_is_seen_once_and_before_it_acts() -> None:
    found: list[torch.Tensor] = []
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with relu_inputs(found):
        EveryRelu().eval()(x)
    assert len(found) == 10
    assert all((value < 0).any() for value in found)


@pytest.mark.parametrize(("name", "count"), [("lenet1", 2), ("resnet20", 19), ("resnet18", 17), ("densenet121", 120)])
def test_relus_of_residual_and_dense_networks(name: str, count: int) -> None:
    found: list[torch.Tensor] = []
    with relu_inputs(found), torch.no_grad():
        build(name).eval()(torch.zeros(1, 3, 32, 32))
    assert len(found) == count


def test_relus_of_an_exported_graph_are_seen() -> None:
    network = EveryRelu().eval()
    graph = torch.export.export(network, (torch.randn(2, 3, 8, 8),)).module()
    found: list[torch.Tensor] = []
    expected: list[torch.Tensor] = []
    x = torch.randn(2, 3, 8, 8)
    with relu_inputs(found):
        graph(x)
    with relu_inputs(expected):
        network(x)
    six = 2  # torch.export writes ReLU6 as hardtanh
    assert len(found) >= len(expected) - six
    for value, other in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(value, other)


def linear_pair(outputs: str = "logits") -> tuple[Pair, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(4, 12)).astype(np.float32) for _ in range(2)]
    modules = []
    for weight in weights:
        layer = nn.Linear(12, 4, bias=False)
        layer.weight.data = torch.from_numpy(weight)
        parts = [nn.Flatten(), layer, *([nn.Softmax(1)] if outputs == "probabilities" else [])]
        modules.append(nn.Sequential(*parts).eval())
    return Pair(*(Model(module, outputs=outputs) for module in modules)), *weights


def test_the_gradient_of_linear_models_is_the_difference_of_their_weights() -> None:
    pair, w, v = linear_pair()
    x = torch.rand(7, 3, 2, 2)
    gradient = PairGradient(pair, score="logit")(x).numpy().reshape(7, 12)
    label = (x.numpy().reshape(7, 12) @ w.T).argmax(1)
    np.testing.assert_allclose(gradient, -(w[label] - v[label]), rtol=1e-6)


def test_confidence_is_the_softmax_of_logits() -> None:
    pair, _, _ = linear_pair()
    already, _, _ = linear_pair("probabilities")
    x = torch.rand(5, 3, 2, 2)
    expected = PairGradient(already, score="confidence")(x)
    torch.testing.assert_close(PairGradient(pair, score="confidence")(x), expected)


def test_the_margin_is_that_of_the_label_to_the_next_class() -> None:
    pair, w, v = linear_pair()
    x = torch.rand(7, 3, 2, 2)
    flat = x.numpy().reshape(7, 12)
    label = (flat @ w.T).argmax(1)
    rows = np.arange(7)
    slopes = []
    for weight in (w, v):
        scores = flat @ weight.T
        scores[rows, label] = -np.inf
        slopes.append(weight[label] - weight[scores.argmax(1)])
    gradient = PairGradient(pair, score="margin")(x).numpy().reshape(7, 12)
    np.testing.assert_allclose(gradient, -(slopes[0] - slopes[1]), rtol=1e-5, atol=1e-6)


def test_the_chosen_neuron_is_raised() -> None:
    class Net(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale = scale

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.scale * (x - 0.5)).mean((2, 3))

    pair = Pair(Model(Net(1.0).eval()), Model(Net(3.0).eval()))
    x = torch.full((3, 3, 2, 2), 0.1)  # below every threshold: the scores have no gradient
    layer, position = torch.tensor([0, -1, 0]), torch.tensor([5, -1, 11])
    gradient = PairGradient(pair, score="logit", weight=20.0)(x, lambda *_: (layer, position)).flatten(1)
    expected = torch.zeros(3, 12)
    expected[0, 5] = expected[2, 11] = -20.0 * 3.0
    torch.testing.assert_close(gradient, expected)


def test_a_batch_is_as_its_rows() -> None:
    network = build("resnet20").eval()
    other = copy.deepcopy(network)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.05)
    gradient = PairGradient(Pair(Model(network), Model(other)))
    x = torch.rand(4, 3, 32, 32)
    together = gradient(x)
    for row in range(4):
        torch.testing.assert_close(together[row], gradient(x[row : row + 1])[0], rtol=1e-4, atol=1e-4)


def test_models_are_left_as_they_were() -> None:
    network = build("resnet20").eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    PairGradient(Pair(Model(network), Model(copy.deepcopy(network))))(torch.rand(2, 3, 32, 32))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in network.parameters())


def test_layouts_give_one_gradient() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    other = copy.deepcopy(network)
    other[0].weight.data *= 0.9

    class Last(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x.permute(0, 3, 1, 2))

    x = torch.rand(2, 3, 8, 8)
    expected = PairGradient(Pair(Model(network), Model(other)))(x)
    kept = {"memory_format": "channels_last"}
    torch.testing.assert_close(PairGradient(Pair(Model(network, **kept), Model(other, **kept)))(x), expected)
    last = Pair(Model(Last(network).eval(), layout="NHWC"), Model(Last(other).eval(), layout="NHWC"))
    torch.testing.assert_close(PairGradient(last)(x), expected)


def test_what_has_no_gradients_is_refused() -> None:
    pair, _, _ = linear_pair()
    blind = Model(lambda x: np.zeros((len(x), 4), np.float32), name="blind")
    with pytest.raises(TypeError, match="'blind' is no torch module"):
        PairGradient(Pair(pair.original, blind))
    twin = Model(lambda x: np.zeros((len(x), 4), np.float32), twin=pair.compressed.module)
    assert torch.equal(
        PairGradient(Pair(pair.original, twin))(torch.ones(1, 3, 2, 2)), PairGradient(pair)(torch.ones(1, 3, 2, 2))
    )
    with pytest.raises(ValueError, match="want the same input"):
        PairGradient(Pair(pair.original, pair.compressed.replace(mean=0.5)))
    with pytest.raises(ValueError, match="score='logit' needs logits"):
        PairGradient(linear_pair("probabilities")[0], score="logit")


def test_relus_that_do_not_pair_up_are_refused() -> None:
    one, two = torch.zeros(2, 3), torch.zeros(2, 4)
    with pytest.raises(ValueError, match="the compressed model runs none"):
        check_taps([one], [])
    with pytest.raises(ValueError, match="differ from number 1 on"):
        check_taps([one, one], [one, two])
    with pytest.raises(ValueError, match="differ from number 1 on"):
        check_taps([one, one], [one])
