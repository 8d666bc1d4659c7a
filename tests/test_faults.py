"""Faults: each changes what it says it changes and nothing else, at a place that the seed draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compdx import Model, zoo
from compdx.environments import FAULTS, inject, localize
from test_localization import images, model, network

torch = pytest.importorskip("torch")
nn = torch.nn
functional = nn.functional


class Resized(nn.Module):  # type: ignore[misc, name-defined]
    """What the other network has no place for: a resize, padded average pools, a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=2)
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.pool = nn.AvgPool2d(3, 2, padding=1)
        self.last = nn.MaxPool2d(3, 2)
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(6, 4)
        self.softmax = nn.Softmax(1)

    def forward(self, x: Any) -> Any:
        x = self.last(self.pool(torch.relu(self.conv(self.up(x)))))
        return self.softmax(self.fc(torch.flatten(self.mean(x), 1)))


def resized() -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Resized().eval()
    with torch.no_grad():  # activations beyond 6, where one may be capped
        for factor, parameters in ((16, network.conv.parameters()), (1 / 16, [network.fc.weight])):
            for parameter in parameters:
                parameter *= factor
    return Model(network, mean=0.5, std=0.25, outputs="probabilities")


def scores(one: Model, rows: np.ndarray) -> np.ndarray:
    return np.asarray(one(rows))


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_found_where_it_was_put(fault: str) -> None:
    put = False
    for original in (model(), resized()):
        made = inject(original, fault, images(1), seed=1)
        if made is None:
            continue
        rows = images()
        before = {name: value.clone() for name, value in original.module.state_dict().items()}
        found = localize(original, made.model.replace(outputs="logits"), rows)
        assert all(torch.equal(value, before[name]) for name, value in original.module.state_dict().items())
        if np.array_equal(scores(original, rows), scores(made.model.replace(outputs="logits"), rows)):
            assert not found.suspects
            continue
        put = True
        assert made.layer in found.suspects[0].place.covers, (made.layer, [one.name for one in found.suspects])
        assert len(found.suspects) == 1
        first = next(one for one in found.layers if one.name == found.first)
        assert made.layer in first.place.covers
        assert found.first == found.last
    assert put, f"{fault} changes nothing in any network"


def by_hand(fault: str, x: Any) -> Any:
    """The scores of the second network with a fault, in plain torch."""
    net = resized().module
    up = functional.interpolate(x, scale_factor=2, mode="bilinear" if fault == "resize mode" else "nearest")
    y = net.conv(up.flip(1) if fault == "channel order" else up.transpose(2, 3) if fault == "image transposed" else up)
    y = y.clamp(0, 6) if fault == "activation capped" else y if fault == "activation dropped" else y.relu()
    y = functional.avg_pool2d(y, 3, 2, 1, count_include_pad=fault != "pool count")
    y = functional.max_pool2d(y, 3, 2, ceil_mode=fault == "ceil mode")
    y = net.fc(y.mean((2, 3)))
    y = y if fault == "softmax missing" else y.softmax(1)
    y = y.roll(1, 1) if fault == "label shift" else y
    return y.softmax(1) if fault == "softmax added" else y


@pytest.mark.parametrize(
    "fault",
    [
        *("resize mode", "channel order", "image transposed", "activation capped", "activation dropped"),
        *("pool count", "ceil mode", "softmax missing", "label shift", "softmax added"),
    ],
)
def test_what_a_fault_does(fault: str) -> None:
    made = inject(resized(), fault, images(1))
    assert made is not None
    x = torch.from_numpy((images() / np.float32(255) - np.float32(0.5)) / np.float32(0.25))
    with torch.no_grad():
        np.testing.assert_allclose(made.model.module(x), by_hand(fault, x), rtol=1e-5, atol=1e-6)


def test_faults_in_weights() -> None:
    def weights(fault: str) -> tuple[Any, Any]:
        made = inject(model(), fault, images(1), seed=2)
        assert made is not None
        both = [one.requires_grad_(False).get_submodule(made.layer) for one in (network(), made.model.module)]
        return both[0], both[1]

    a, b = weights("kernel flipped")
    torch.testing.assert_close(b.weight, a.weight.rot90(2, (2, 3)), rtol=0, atol=0)
    a, b = weights("kernel transposed")
    torch.testing.assert_close(b.weight, a.weight.mT, rtol=0, atol=0)
    a, b = weights("bfloat16 weights")
    torch.testing.assert_close(b.weight, a.weight.bfloat16().float(), rtol=0, atol=0)
    a, b = weights("int8 weights")
    assert len(torch.unique(b.weight)) <= 255
    assert float((a.weight - b.weight).abs().max()) <= float(a.weight.abs().max()) / 254 * 1.0001
    a, b = weights("weights perturbed")
    size = float((a.weight - b.weight).norm() / a.weight.norm())
    assert 0.005 < size < 0.02
    a, b = weights("bias dropped")
    assert float(b.bias.abs().max()) == 0 < float(a.bias.abs().max())
    a, b = weights("epsilon")
    assert (a.eps, b.eps) == (1e-5, 1e-3)


def test_padding_shifts_the_image() -> None:
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 4)).eval()
    made = inject(model(conv), "padding", images(1))
    assert made is not None
    assert made.layer == "0"
    x = torch.randn(2, 2, 8, 8)
    expected = functional.conv2d(functional.pad(x, (0, 2, 0, 2)), conv[0].weight, conv[0].bias)
    with torch.no_grad():
        torch.testing.assert_close(made.model.module(x), conv[2](expected.flatten(1)))


def test_flatten_order() -> None:
    made = inject(model(), "flatten order", images(1))
    assert made is not None
    assert made.layer == "7"
    x = torch.randn(2, 2, 8, 8)
    with torch.no_grad():
        expected = network()[8:](network()[:7](x).permute(0, 2, 3, 1).flatten(1))
        torch.testing.assert_close(made.model.module(x), expected)


def test_the_seed_draws_the_place() -> None:
    drawn = [inject(model(), "weights perturbed", images(1), seed=seed) for seed in (*range(12), 0)]
    layers = [one.layer for one in drawn if one is not None]
    assert len(set(layers)) > 3
    assert layers[0] == layers[-1]
    assert drawn[0] is not None
    assert drawn[-1] is not None
    np.testing.assert_array_equal(scores(drawn[0].model, images()), scores(drawn[-1].model, images()))


def test_what_has_no_place_and_what_is_no_fault() -> None:
    assert inject(model(), "resize mode", images(1)) is None
    assert inject(Model(zoo.build("lenet1", channels=1, size=28).eval()), "channel order", _grey()) is None
    with pytest.raises(ValueError, match="fault must be one of 'channel order'"):
        inject(model(), "gremlins", images(1))
    with pytest.raises(TypeError, match="must be one of a torch module"):
        inject(Model(lambda x: x), "padding", images(1))


def _grey() -> np.ndarray:
    return np.zeros((1, 1, 28, 28), np.uint8)
