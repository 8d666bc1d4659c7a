"""Explanations: numbers by hand and by hooks, layers that only inherit, folded and int8 networks, random damage."""

from __future__ import annotations

import base64
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compdx
from compdx import Inputs, Model, Seeds, compress, slicing, zoo
from compdx.slicing.explanation import FILE, Explanation, read
from compdx.slicing.measures import Measures, WeightChanges
from compdx.zoo import digits

torch = pytest.importorskip("torch")
nn = torch.nn


class Block(nn.Module):  # type: ignore[misc, name-defined]
    """A shortcut over two convolutions with batch normalization."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Any) -> Any:
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + x)


def network(seed: int = 0) -> Any:
    """An untrained residual network for ``[N, 2, 8, 8]`` with statistics of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = nn.Sequential(
            *(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), Block(8), Block(8)),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 4)),
        )
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.3)
                part.running_var.uniform_(0.5, 2)
                nn.init.uniform_(part.weight, -2, 2)
                nn.init.normal_(part.bias)
        return module.eval()


def images(count: int, seed: int = 1) -> Any:
    return torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(seed))


def broken(original: Any, layer: str, channel: int, how: str = "sign-flipped") -> Any:
    """A copy in which one output channel of one layer was damaged."""
    copied = copy.deepcopy(original)
    with torch.no_grad():
        part = copied.get_submodule(layer).weight[channel]
        step = part.abs().max() / 2
        part.copy_({"zeroed": 0 * part, "sign-flipped": -part}.get(how, (part / step).round().clamp(-2, 1) * step))
    return copied


def explained(original: Any, compressed: Any, **options: Any) -> Explanation:
    return slicing.explain((original, compressed), images(5, seed=2), data=images(24), **options)


LAYERS = ["0", "4.conv1", "4.conv2", "5.conv1", "5.conv2", "8", "10"]


# What is measured


def test_a_layer_that_inherits_an_error_makes_none() -> None:
    found = explained(network(), broken(network(), "4.conv2", 3))
    assert list(found.layers) == LAYERS
    assert found.ranked()[0] == "4.conv2"
    assert found.ranked_channels("4.conv2")[0] == 3
    for place, layer in enumerate(LAYERS):
        errors = found.findings.channels[layer]
        if layer == "4.conv2":
            assert (errors[:, 3] > 0).all()
            assert not np.delete(errors, 3, 1).any()
            np.testing.assert_allclose(found.findings.drift[:, place], found.findings.error[:, place])
        else:
            assert not errors.any()
            assert not found.findings.unweighted[layer].any()
            assert bool((found.findings.drift[:, place] > 0).all()) == (place > 2)


def test_numbers_against_hooks_and_slices() -> None:
    """The error of a layer by hand: hooks on the original, and the damaged layers on what they saw there."""
    original = network()
    compressed = copy.deepcopy(original)
    with torch.no_grad():
        for parameter in compressed.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    x, data = images(5, seed=2), images(24)
    found = slicing.explain((original, compressed), x, data=data, batch=2)

    def watch(module: Any, rows: Any) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        hooks = [
            part.register_forward_hook(lambda _, inputs, y, name=name: seen.update({name: (inputs[0], y)}))
            for name, part in module.named_modules()
            if not isinstance(part, (nn.Sequential, Block))
        ]
        with torch.no_grad():
            seen["labels"] = module(rows).argmax(1).numpy()
        for hook in hooks:
            hook.remove()
        return seen

    a, b, means = watch(original, x), watch(compressed, x), watch(original, data)
    assert found.original_labels.tolist() == a["labels"].tolist()
    assert found.compressed_labels.tolist() == b["labels"].tolist()
    eye = np.eye(4, dtype=np.int64)
    criterion = eye[a["labels"]] - eye[b["labels"]] * (a["labels"] != b["labels"])[:, None]
    neurons = [
        slicing.slice(m, slicing.profile(m, data), x, criterion=criterion, neuron_samples="all").neurons
        for m in (original, compressed)
    ]
    ends = {"0": "1", "4.conv1": "4.bn1", "4.conv2": "4.bn2", "5.conv1": "5.bn1", "5.conv2": "5.bn2", "8": "8"}
    assert (found.original_labels != found.compressed_labels).any()
    for layer, end in ends.items():
        with torch.no_grad():
            y = compressed.get_submodule(layer)(a[layer][0])
            y = y if end == layer else compressed.get_submodule(end)(y)
        error = (y - a[end][1]).double().numpy() ** 2
        drift = (b[end][1] - a[end][1]).double().numpy() ** 2
        delta = (a[end][1] - means[end][1].mean(0)).double().numpy() ** 2
        signs = [side[end].samples for side in neurons]
        weight = np.abs(signs[0])
        space = tuple(range(2, error.ndim))
        whole = (weight * delta).reshape(5, -1).sum(1)
        place = found.layers.index(layer)
        options = {"rtol": 1e-3, "err_msg": layer}
        np.testing.assert_allclose(
            found.findings.channels[layer], (weight * error).sum(space) / whole[:, None], **options
        )
        plain = error.sum(space) / delta.reshape(5, -1).sum(1)[:, None]
        np.testing.assert_allclose(found.findings.unweighted[layer], plain, **options)
        np.testing.assert_allclose(
            found.findings.drift[:, place], (weight * drift).reshape(5, -1).sum(1) / whole, **options
        )
        total = weight.reshape(5, -1).sum(1)
        lost = (weight * (signs[1] == 0)).reshape(5, -1).sum(1) / total
        inverted = (weight * (signs[0] * signs[1] < 0)).reshape(5, -1).sum(1) / total
        np.testing.assert_allclose(found.findings.lost[:, place], lost)
        np.testing.assert_allclose(found.findings.inverted[:, place], inverted)


def test_nothing_is_found_in_equal_models() -> None:
    original = network()
    found = explained(original, copy.deepcopy(original), seeds=images(5, seed=3))
    assert list(found.layers) == LAYERS
    for measures in (found.findings, found.seeds):
        assert not any(m.any() for m in (measures.error, measures.drift, measures.lost, measures.inverted))
    assert found.ranked() == LAYERS
    assert found.synapses == ((),) * 5
    assert {str(w.text()) for w in found.weights.values()} >= {"all 576 weights as they were"}
    assert not any(signature.channels for signature in found.signatures)


def test_a_channel_that_decides_nothing_is_still_named() -> None:
    """Its contributions are 0, for its consumers have weights of 0: the error without contributions ranks it."""
    original = network()
    with torch.no_grad():
        original[10].weight[:, 7] = 0
    found = explained(original, broken(original, "8", 7, "zeroed"))
    assert not found.findings.error.any()
    assert found.ranked()[0] == "8"
    assert found.ranked_channels("8")[0] == 7
    assert {signature.channels for signature in found.signatures} == {(7,)}


def test_seeds_are_measured_for_the_classes_of_their_findings() -> None:
    original, compressed = network(), broken(network(), "4.conv1", 2)
    found = explained(original, compressed, seeds=images(5, seed=2))
    for name in ("drift", "lost", "inverted", "error"):
        np.testing.assert_array_equal(getattr(found.seeds, name), getattr(found.findings, name))
    other = explained(original, compressed, seeds=images(5, seed=4))
    assert (other.seeds.drift != other.findings.drift).any()
    np.testing.assert_array_equal(other.findings.drift, found.findings.drift)


@pytest.mark.parametrize("baseline", ["dataset", "class"])
@pytest.mark.parametrize("theta", [None, slicing.Theta()])
def test_options(baseline: Any, theta: Any) -> None:
    original, compressed = network(), broken(network(), "5.conv1", 4)
    data = images(80)
    with torch.no_grad():
        labels = [model(data).argmax(1).numpy() for model in (original, compressed)]
    rows = np.isin(labels[0], np.unique(labels[1][labels[0] == labels[1]]))
    profiles = tuple(
        slicing.profile(model, data, baseline=baseline, labels=labels[0]) for model in (original, compressed)
    )
    found = slicing.explain((original, compressed), data[rows][:6], profiles=profiles, theta=theta, top=2, batch=4)
    assert found.ranked()[0] == "5.conv1"
    assert found.ranked_channels("5.conv1")[0] == 4
    assert found.settings["baseline"] == [baseline, baseline]
    assert [len(line["channels"]) for line in found.rows()] == [2, 2]


# Weights and synapses


def test_what_happened_to_weights() -> None:
    original = network()
    compressed = copy.deepcopy(original)
    with torch.no_grad():
        original[8].weight[1, 5] = 0
        compressed[8].weight[0, :4] = 0
        compressed[8].weight[1, 5:] *= -1
        compressed[8].weight[2] *= 1.5
    found = explained(original, compressed).weights["8"]
    assert found.pruned.tolist() == [4, *[0] * 11]
    assert found.inverted.tolist() == [0, 26, *[0] * 10]
    assert found.changed.tolist() == [0, 1, 32, *[0] * 9]  # what was 0 before has no sign to lose
    assert found.text(0) == "4 pruned of 32 weights"
    assert found.text() == "4 pruned, 26 inverted, 33 changed of 384 weights"


def test_synapses_of_a_linear_layer_by_hand() -> None:
    original = network()
    compressed = copy.deepcopy(original)
    with torch.no_grad():
        compressed[10].weight += torch.linspace(-1, 1, 48).reshape(4, 12)
        compressed[10].weight[:, 3] = 0
    x, data = images(3, seed=2), images(24)
    found = slicing.explain((original, compressed), x, data=data, top=48)
    with torch.no_grad():
        delta = (original[:10](x) - original[:10](data).mean(0)).double().numpy()
    labels = list(zip(found.original_labels.tolist(), found.compressed_labels.tolist(), strict=True))
    change = (compressed[10].weight - original[10].weight).detach().double().numpy()
    for row, classes in enumerate(labels):
        parts = np.zeros((4, 12))
        parts[list(classes)] = np.abs(change[list(classes)] * delta[row])
        got = np.zeros((4, 12))
        for synapse in found.synapses[row]:
            got[synapse.index] = synapse.share
            assert synapse.change == ("pruned" if synapse.index[1] == 3 else synapse.change)
            assert synapse.compressed == compressed[10].weight[synapse.index].item()
        np.testing.assert_allclose(got, parts / parts.sum(), rtol=1e-3, atol=1e-9)


def test_synapses_of_a_convolution_are_those_of_the_damaged_channel() -> None:
    found = explained(network(), broken(network(), "4.conv1", 2))
    for synapses in found.synapses:
        assert len(synapses) == 5
        assert {(s.layer, s.index[0], s.change) for s in synapses} == {("4.conv1", 2, "inverted")}
        assert [s.share for s in synapses] == sorted((s.share for s in synapses), reverse=True)
        assert 0 < sum(s.share for s in synapses) < 1


# Networks whose operations differ


def folded(module: Any) -> Any:
    """The same function with batch normalization folded into the convolutions."""
    result, fuse = copy.deepcopy(module), torch.nn.utils.fusion.fuse_conv_bn_eval
    identity = nn.Identity().eval()
    result[0], result[1] = fuse(result[0], result[1]), identity
    for block in (result[4], result[5]):
        block.conv1, block.bn1 = fuse(block.conv1, block.bn1), identity
        block.conv2, block.bn2 = fuse(block.conv2, block.bn2), identity
    return result


def test_folded_normalization() -> None:
    original = network()
    found = explained(original, folded(original))
    assert list(found.layers)[:7] == LAYERS or set(LAYERS) <= set(found.layers)
    assert found.unpaired == {"original": (), "compressed": ()}
    assert found.findings.error.max() < 1e-9
    assert found.findings.drift.max() < 1e-9
    assert not any(weights.inverted.any() for weights in found.weights.values())  # although some scales are negative
    again = explained(original, folded(broken(original, "5.conv2", 6, "two bits")))
    assert again.ranked()[0] == "5.conv2"
    assert again.ranked_channels("5.conv2")[0] == 6
    assert again.findings.error[:, again.layers.index("5.conv2")].min() > 1e-6


def test_exported_networks_have_the_same_places() -> None:
    original, compressed = network(), broken(network(), "4.conv1", 2)
    batch = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(compressed, (images(2),), dynamic_shapes=batch).module()
    a, b = explained(original, compressed), explained(original, exported)
    assert a.layers == b.layers
    np.testing.assert_allclose(a.findings.error, b.findings.error, rtol=1e-6)
    np.testing.assert_allclose(a.findings.drift, b.findings.drift, rtol=1e-4, atol=1e-9)


def test_layers_of_one_model_only_are_named() -> None:
    original = network()
    other = copy.deepcopy(original)
    other[8], other[9] = nn.Linear(32, 6), nn.Sequential(nn.ReLU(), nn.Linear(6, 12))
    found = explained(original, other.eval())
    assert found.unpaired == {"original": ("8",), "compressed": ("8", "9.1")}
    assert "8" not in found.layers
    assert "only in the compressed model: 8, 9.1" in str(found)
    assert found.ranked()[0] == "10"  # what comes wrongly out of what cannot be compared is seen where it can again


def test_pruned_and_halved_networks() -> None:
    original = network()
    pruned = explained(original, Model(compress.prune(original, 0.5, layers=["4.conv2"])))
    assert pruned.ranked()[0] == "4.conv2"
    assert pruned.weights["4.conv2"].pruned.sum() == 288
    half = explained(original, Model(compress.half(original)))  # in a wrapper, so that its names are longer
    assert set(LAYERS) <= set(half.layers)
    assert half.unpaired == {"original": (), "compressed": ()}
    assert (half.findings.error[:, :5] > 0).all()
    assert np.median(half.findings.error) < 1e-3


@pytest.mark.slow
def test_int8_networks() -> None:
    shipped = zoo.pretrained("resnet20-cifar10")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 3, 32, 32), dtype=np.uint8)
    layer, channel = "6.conv1", 11
    damaged = broken(shipped.network, layer, channel)
    original = shipped.model()
    plain, wrong = (
        original.replace(compress.quantize(module, Seeds(pixels), inputs=shipped.inputs))
        for module in (shipped.network, damaged)
    )
    found = slicing.explain((original, plain), pixels[:4], data=pixels)
    assert found.unpaired == {"original": (), "compressed": ()}
    assert sum(name in found.weights for name in found.layers) == 20
    assert found.findings.error.max() < 0.05
    assert (found.findings.error[:, [n in found.weights for n in found.layers]] > 0).all()
    again = slicing.explain((original, wrong), pixels[:4], data=pixels)
    assert again.ranked()[0] == layer
    assert again.ranked_channels(layer)[0] == channel


# What comes back


def by_hand(errors: dict[str, Any], labels: list[list[int]], top: int = 3) -> Explanation:
    """An explanation of these errors ``[N, C]`` by layer."""
    channels = {name: np.asarray(part, dtype=np.float64) for name, part in errors.items()}
    count = len(labels)
    zero = np.zeros((count, len(channels)))
    return Explanation(
        layers=tuple(channels),
        findings=Measures(channels=channels, unweighted=channels, drift=zero, lost=zero, inverted=zero),
        seeds=None,
        synapses=((),) * count,
        where=(None,) * count,
        weights={"a": WeightChanges(pruned=np.array([1, 0]), inverted=np.zeros(2), changed=np.zeros(2), size=9)},
        original_labels=np.array(labels)[:, 0],
        compressed_labels=np.array(labels)[:, 1],
        seed_index=np.arange(count) + 10,
        unpaired={"original": (), "compressed": ()},
        settings={"top": top},
    )


def test_signatures_group_findings_of_one_cause() -> None:
    spread = [0.1] * 8
    found = by_hand(
        {
            "a": [[9, 1, *[0] * 6], [7, 0, 1, *[0] * 5], [0.1] * 8, [9, *[0] * 7], [4, 4, 3, *[0] * 5], [0] * 8],
            "b": [spread, spread, [0.2] * 8, spread, spread, [0] * 8],
        },
        [[3, 5], [3, 5], [3, 5], [3, 4], [3, 5], [1, 1]],
    )
    assert [(len(s), s.labels, s.layer, s.channels, s.rows) for s in found.signatures] == [
        (2, (3, 5), "a", (0,), (0, 1)),
        (1, (3, 5), "b", (), (2,)),  # a half takes four channels of eight
        (1, (3, 4), "a", (0,), (3,)),
        (1, (3, 5), "a", (0, 1), (4,)),
        (1, (1, 1), "a", (), (5,)),
    ]
    assert found.signatures[0].top == (0, 1, 2)
    assert str(found.signatures[0]) == "2 × 3 → 5: a, channel 0"
    assert [str(found.signatures[place]) for place in (1, 3, 4)] == [
        "1 × 3 → 5: b, many channels",
        "1 × 3 → 5: a, channels 0, 1",
        "1 × 1: a, many channels",
    ]
    assert found.ranked() == ["a", "b"]
    assert found.ranked(2) == ["b", "a"]
    assert "and 2 more signatures" in str(found)


def test_an_explanation_as_json_and_as_text() -> None:
    original, compressed = network(), broken(network(), "4.conv2", 3)
    found = explained(original, compressed, seeds=images(5, seed=3))
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert len(document["findings"]) == len(found) == 5
    assert sum(signature["count"] for signature in document["signatures"]) == 5
    assert sorted(row for s in document["signatures"] for row in s["findings"]) == list(range(5))
    first = document["findings"][0]["layers"][0]
    assert first["layer"] == "4.conv2"
    assert first["channels"][0]["channel"] == 3
    assert first["channels"][0]["error"] == first["error"] > 0
    assert first["seed_error"] > 0
    assert document["weights"]["4.conv2"] == {"size": 576, "pruned": 0, "inverted": 72, "changed": 0}
    text = str(found)
    assert text.splitlines()[2].startswith("4.conv2 ")
    assert "4.conv2, channel 3: 72 inverted of 72 weights" in text
    assert repr(found).startswith("<Explanation of 5 findings: 7 layers, ")
    for side, measures in (("", found.findings), ("seed_", found.seeds)):
        for name in ("error", "drift"):
            wanted = getattr(measures, name)
            np.testing.assert_allclose(document["by_layer"][side + name], wanted.mean(0), rtol=1e-4)
            if not side:
                rows = [finding["by_layer"][name] for finding in document["findings"]]
                np.testing.assert_allclose(rows, wanted, rtol=1e-4)


def test_where_a_layer_errs_by_hand() -> None:
    """The damaged layer on the original's input: its squared error at every position, weighted, over the channels."""
    original = network()
    compressed = broken(original, "4.conv2", 3)
    x, data = images(3, seed=2), images(24)
    found = slicing.explain((original, compressed), x, data=data, batch=2)
    with torch.no_grad():
        before = torch.nn.Sequential(*original[:4])(x)
        block, other = original[4], compressed[4]
        inside = torch.relu(block.bn1(block.conv1(before)))
        error = (other.bn2(other.conv2(inside)) - block.bn2(block.conv2(inside))).double().square().numpy()
        labels = [model(x).argmax(1).numpy() for model in (original, compressed)]
    eye = np.eye(4, dtype=np.int64)
    criterion = np.where((labels[0] == labels[1])[:, None], eye[labels[0]], eye[labels[0]] - eye[labels[1]])
    neurons = slicing.slice(
        original, slicing.profile(original, data), x, criterion=criterion, neuron_samples="all"
    ).neurons
    for row in range(3):
        assert found.ranked(row)[0] == "4.conv2"
        weights = np.abs(neurons["4.bn2"].samples[row].astype(np.float64))
        where = found.where[row]
        assert where is not None
        np.testing.assert_allclose(where, (weights * error[row]).sum(0), rtol=1e-4)
        told = found.to_json()["findings"][row]["where"]
        assert told["shape"] == [4, 4]
        values = np.frombuffer(base64.b64decode(told["values"]), np.uint8).reshape(4, 4)
        np.testing.assert_allclose(values, where / where.max() * 255, atol=0.51)


def test_large_layers_are_told_on_a_grid_and_linear_ones_not_at_all() -> None:
    module = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32, 3)
    ).eval()
    x = torch.randn(4, 1, 64, 48, generator=torch.Generator().manual_seed(4))
    found = slicing.explain((module, broken(module, "0", 1)), x[:1], data=x)
    where = found.where[0]
    assert where is not None
    assert where.shape == (32, 32)
    found = slicing.explain((module, broken(module, "4", 0)), x[:1], data=x)
    assert found.ranked(0)[0] == "4"
    assert found.where == (None,)
    assert found.to_json()["findings"][0]["where"] is None


def test_an_explanation_on_disk(tmp_path: Path) -> None:
    found = explained(network(), broken(network(), "4.conv2", 3))
    (tmp_path / FILE).write_text("an earlier one")
    assert found.save(tmp_path) == tmp_path / "explanation.json"
    assert read(tmp_path / FILE) == json.loads(json.dumps(found.to_json()))
    assert found.save(tmp_path, "other.json") == tmp_path / "other.json"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["explanation.json", "other.json"]
    with pytest.raises(NotADirectoryError, match=r"directory must be one that there is, got .*nowhere"):
        found.save(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        read(tmp_path / "nowhere.json")
    for text, words in (("{", "cannot be read"), ("[1]", "must hold a JSON object, got list")):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(ValueError, match=rf"explanation\.json {words}"):
            read(tmp_path / FILE)


def test_findings_of_a_search() -> None:
    pytest.importorskip("sklearn")
    train, test = digits.load()
    with digits.one_thread():
        original = digits.train(train, epochs=4)
        compressed = broken(original, "3", 5)
        options = {"mean": digits.INPUTS.mean, "std": digits.INPUTS.std}
        pair = (Model(original, **options), Model(compressed, **options))
        seeds = test.select(slice(60))
        findings = compdx.search(pair, seeds, budget=60, chains=20, progress=False)
        assert len(findings) > 3
        found = slicing.explain(pair, findings, seeds=seeds, data=train.select(slice(200)))
    kinds = findings.table["kind"].to_pylist()
    rows = [row for row, kind in enumerate(kinds) if kind != "non-finite"]
    assert found.seed_index.tolist() == findings.table["seed_index"].to_numpy()[rows].tolist()
    assert found.original_labels.tolist() == findings.table["original_label"].to_numpy()[rows].tolist()
    assert (found.original_labels != found.compressed_labels).all()
    assert found.ranked()[0] == "3"
    assert found.ranked_channels("3")[0] == 5
    assert found.seeds is not None


# Damage at random


@pytest.mark.slow
@pytest.mark.parametrize("rounded", [False, True])
def test_damaged_channels_are_found(rounded: bool) -> None:
    """The bar of the bench on fewer cases: with ``rounded``, every layer errs a little besides."""
    pytest.importorskip("sklearn")
    train, test = digits.load()
    with digits.one_thread():
        original = digits.train(train)
        data = torch.from_numpy(digits.prepare(train.images[:128]))
        pool = torch.from_numpy(digits.prepare(test.images[:256]))
        means = slicing.profile(original, data)
        rng, first, five, deviating = np.random.default_rng(0), 0, 0, 0
        for number in range(24):
            layer = ("0", "3", "7", "9")[rng.integers(4)]
            channel = int(rng.integers(len(original.get_submodule(layer).weight)))
            compressed = copy.deepcopy(original)
            with torch.no_grad():
                for parameter in compressed.parameters() if rounded else ():
                    step = parameter.abs().max() / 127
                    parameter.copy_((parameter / step).round() * step)
                compressed = broken(compressed, layer, channel, ("zeroed", "two bits", "sign-flipped")[number % 3])
                wrong = torch.nonzero(original(pool).argmax(1) != compressed(pool).argmax(1)).flatten()
            deviating += len(wrong) > 0
            chosen = pool[wrong[:6]] if len(wrong) else pool[:6]
            profiles = (means, slicing.profile(compressed, data))
            found = slicing.explain((original, compressed), chosen, profiles=profiles)
            first += found.ranked()[0] == layer
            five += channel in found.ranked_channels(layer)[:5]
    assert 6 <= deviating < 24  # both kinds of cases are among them
    assert first >= 0.9 * 24
    assert five >= 0.8 * 24


# Errors


def test_arguments_are_checked() -> None:
    original = network()
    pair, x = (original, copy.deepcopy(original)), images(3)
    means = slicing.profile(original, x)
    for options, kind, message in (
        ({}, ValueError, "explain needs either data= to profile both models with, or profiles= of them"),
        ({"data": x, "profiles": (means, means)}, ValueError, "explain needs either data="),
        ({"profiles": (means,)}, TypeError, "profiles must be those of the original and of the compressed model"),
        ({"data": x, "seeds": x[:2]}, ValueError, r"seeds must be one for each finding, \(3, 2, 8, 8\), got \(2, 2,"),
        ({"data": x, "top": 0}, ValueError, "top"),
        ({"data": x, "batch": 0}, ValueError, "batch"),
    ):
        with pytest.raises(kind, match=message):
            slicing.explain(pair, x, **options)
    with pytest.raises(TypeError, match="findings must be Seeds, uint8 images"):
        slicing.explain(pair, [1, 2], data=x)
    with pytest.raises(ValueError, match=r"layer must be one of '0', '4\.conv1'"):
        slicing.explain(pair, x, data=x).ranked_channels("nothing")
    other = nn.Sequential(nn.Flatten(), nn.Linear(128, 4)).eval()
    with pytest.raises(ValueError, match="pair must have layers in common, of one name and shape of weights"):
        slicing.explain((original, other), x, data=x)


def test_nothing_changes_the_models() -> None:
    original, compressed = network(), broken(network(), "4.conv2", 3)
    before = [copy.deepcopy(module.state_dict()) for module in (original, compressed)]
    explained(original, compressed, seeds=images(5))
    for module, state in zip((original, compressed), before, strict=True):
        assert all(torch.equal(state[key], value) for key, value in module.state_dict().items())
        assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())
        assert not any(part.training for part in module.modules())


def test_pictures_and_inputs_are_explained_alike() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 2, 8, 8), dtype=np.uint8)
    inputs = Inputs(mean=(0.5, 0.25), std=0.5)
    x = np.stack([inputs.table(2)[c][pixels[:, c]] for c in range(2)], 1)
    models = [Model(m, mean=(0.5, 0.25), std=0.5) for m in (network(), broken(network(), "0", 1))]
    a = slicing.explain(tuple(models), Seeds(pixels[:3], indices=[4, 2, 9]), data=pixels)
    b = slicing.explain(tuple(models), x[:3], data=x)
    assert a.seed_index.tolist() == [4, 2, 9]
    assert b.seed_index is None
    np.testing.assert_array_equal(a.findings.error, b.findings.error)
