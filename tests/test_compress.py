"""Compression: what each scheme does to the weights, that twins train on, and that nobody's module is changed."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from compdx import compress, slicing
from compdx.compressed import Compressed
from compdx.model import Inputs, Model
from compdx.seeds import Seeds
from compdx.training import Recipe, accuracy, fit, set_mode
from compdx.zoo import digits, networks

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")
pytest.importorskip("sklearn")
nn = torch.nn

INPUTS = digits.INPUTS
# Plain digits must be neither cropped nor mirrored; momentum and decay are what masks have to stand up to.
SHORT = Recipe(
    epochs=2, batch_size=64, rate=0.02, schedule="constant", weight_decay=0.01, crop=0, flip=False, precision="float32"
)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    with digits.one_thread():
        yield


@pytest.fixture(scope="module")
def data() -> tuple[Seeds, Seeds]:
    return digits.load()


@pytest.fixture(scope="module")
def train(data: tuple[Seeds, Seeds]) -> Seeds:
    return data[0].select(slice(384))


@pytest.fixture(scope="module")
def network(data: tuple[Seeds, Seeds]) -> Any:
    return digits.train(data[0])


class Joined(nn.Module):  # type: ignore[misc, name-defined]
    """Convolutions with batch normalization before and behind, a residual sum, a concatenation, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(8, eps=1e-2, momentum=0.3)
        self.left = nn.Conv2d(8, 8, 3, 1, 1)
        self.before = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.bn(self.stem(x)))
        y = torch.relu(self.left(x) + x)
        x = torch.relu(self.before(torch.cat([x, y], 1)))
        x = nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.head(nn.functional.dropout(x, 0.25, self.training))


def joined(seed: int = 0) -> Any:
    """An untrained `Joined` in eval mode with statistics of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = Joined()
        for bn in (module.bn, module.before):
            bn.running_mean.normal_()
            bn.running_var.uniform_(0.5, 2)
            nn.init.uniform_(bn.weight, 0.5, 2)
            nn.init.normal_(bn.bias)
        return module.eval()


def residual() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return networks.build("resnet20", channels=1, size=28).eval()


def snapshot(module: Any) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_unchanged(module: Any, before: dict[str, Any]) -> None:
    after = module.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert torch.equal(tensor, after[name]), name


def batch(count: int = 8, seed: int = 0) -> Any:
    return torch.randn(count, 1, 28, 28, generator=torch.Generator().manual_seed(seed))


def input_gradient(module: Any, x: Any) -> Any:
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(module(x).max(1).values.sum(), x)
    return gradient


def scores(module: Any, x: Any) -> Any:
    with torch.no_grad():
        return module(x)


SCHEMES: dict[str, Callable[[Any, Seeds], Compressed]] = {
    "prune": lambda m, s: compress.prune(m, 0.5, train=s, recipe=SHORT, inputs=INPUTS),
    "prune structured": lambda m, _: compress.prune(m, 0.5, structured=True),
    "post-training": lambda m, s: compress.quantize(m, s, inputs=INPUTS),
    "qat": lambda m, s: compress.quantize(m, s, mode="qat", train=s, recipe=SHORT, inputs=INPUTS),
    "artifact": lambda m, s: compress.quantize(m, s, mode="artifact", train=s, recipe=SHORT, inputs=INPUTS),
    "distill": lambda m, s: compress.distill(m, joined(5), train=s, recipe=SHORT, inputs=INPUTS),
    "bfloat16": lambda m, _: compress.half(m),
    "float16": lambda m, _: compress.half(m, "float16"),
}


# ---- what holds for every scheme


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme(scheme: str, train: Seeds) -> None:
    """One body for all: the user's module stays, nothing is in training mode, gradients flow, training goes on."""
    original, few = joined(), train.select(slice(192))
    before, randomness = snapshot(original), torch.random.get_rng_state()
    made = SCHEMES[scheme](original, few)
    assert_unchanged(original, before)
    assert not any(part.training for part in original.modules())
    assert torch.equal(torch.random.get_rng_state(), randomness)

    model = Model(made, mean=INPUTS.mean, std=INPUTS.std)
    assert not model.training
    assert not Model(made.twin).training
    assert model.describe()["compression"] == made.record
    assert made.record["scheme"] == {"post-training": "quantize", "qat": "quantize", "artifact": "quantize"}.get(
        scheme, {"bfloat16": "half", "float16": "half"}.get(scheme, scheme.split()[0])
    )
    assert made.record["bytes"] < made.record["original_bytes"] or scheme == "distill"
    assert made.record["sparsity"] == made.record["zeros"] / made.record["parameters"]

    # A search must not change what it searches.
    x, twin, tested = batch(), snapshot(made.twin), snapshot(made.model)
    gradient = input_gradient(made.twin, x)
    assert gradient.isfinite().all()
    assert gradient.flatten(1).norm(dim=1).min() > 0
    expected = scores(made.model, x)
    assert expected.dtype == torch.float32
    assert_unchanged(made.twin, twin)
    assert_unchanged(made.model, tested)

    # Conversion is a function of the twin, and does not hold on to it.
    again = made.convert(made.twin)
    assert torch.equal(scores(again, x), expected)
    clone = copy.deepcopy(made.twin)
    fit(clone, few.images, few.labels, SHORT, inputs=INPUTS)
    set_mode(clone, training=False)
    assert_unchanged(made.twin, twin)
    rebuilt = made.rebuilt(clone)
    assert rebuilt.twin is clone
    assert rebuilt.record is made.record
    assert not Model(rebuilt).training
    further = scores(rebuilt.model, x)
    assert not torch.equal(further, expected)
    with torch.no_grad():
        for parameter in clone.parameters():
            parameter.zero_()
    assert torch.equal(scores(rebuilt.model, x), further)
    assert torch.equal(scores(made.model, x), expected)


@pytest.mark.parametrize("scheme", ["prune", "qat", "artifact", "distill"])
def test_training_repeats(scheme: str, train: Seeds) -> None:
    few = train.select(slice(128))
    one, same = (SCHEMES[scheme](joined(), few) for _ in range(2))
    assert one.record == same.record
    assert one.record["trained"]["epochs"] == SHORT.epochs
    assert torch.equal(scores(one.model, batch()), scores(same.model, batch()))


@pytest.mark.parametrize("build", [residual, lambda: networks.build("lenet5", channels=1, size=28).eval()])
@pytest.mark.parametrize("scheme", ["prune", "post-training", "bfloat16"])
def test_networks_of_the_zoo(build: Callable[[], Any], scheme: str, train: Seeds) -> None:
    network = build()
    few = train.select(slice(64))
    made = compress.prune(network, 0.5) if scheme == "prune" else SCHEMES[scheme](network, few)
    x = batch(4)
    assert scores(made.model, x).shape == (4, 10)
    assert not torch.equal(scores(made.model, x), scores(network, x))
    assert input_gradient(made.twin, x).isfinite().all()


# ---- pruning


def shares(made: Compressed) -> dict[str, float]:
    """Share of zeros in every weight with more than one dimension, counted here."""
    weights = {name.removesuffix(".weight"): p for name, p in made.model.named_parameters() if p.ndim > 1}
    return {name: float((weight == 0).double().mean()) for name, weight in weights.items()}


@pytest.mark.parametrize("amount", [0.1, 0.75, 0.9])
def test_global_pruning_removes_the_smallest_weights_of_all_layers(network: Any, amount: float) -> None:
    made = compress.prune(network, amount)
    old = {n: p.detach().numpy() for n, p in network.named_parameters()}
    new = {n: p.detach().numpy() for n, p in made.model.named_parameters()}
    convolutions = ["0.weight", "3.weight"]
    magnitudes = np.concatenate([np.abs(old[name]).ravel() for name in convolutions])
    count = round(amount * len(magnitudes))
    limit = np.sort(magnitudes)[count]
    for name in old:
        expected = old[name] * (np.abs(old[name]) >= limit) if name in convolutions else old[name]
        np.testing.assert_array_equal(new[name], expected)
    assert sum((new[name] == 0).sum() for name in convolutions) == count
    assert made.record["pruned_sparsity"] == count / len(magnitudes)
    assert made.record["layers"] == {name: shares(made)[name] for name in ("0", "3")}
    assert made.record["zeros"] == sum(int((value == 0).sum()) for value in new.values())
    assert made.record["layers"]["0"] != made.record["layers"]["3"]
    assert torch.equal(scores(made.twin, batch()), scores(made.model, batch()))


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("structured", [False, True])
def test_the_memory_format_does_not_matter(network: Any, scope: Any, structured: bool) -> None:
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    one, other = (compress.prune(n, 0.5, scope=scope, structured=structured) for n in (network, last))
    assert one.record == other.record
    assert_unchanged(one.model, snapshot(other.model))


def test_pruning_by_layer_takes_the_same_share_of_each(network: Any) -> None:
    made = compress.prune(network, 0.6, scope="layer", layers="all")
    for name, weight in network.named_parameters():
        if weight.ndim > 1:
            assert shares(made)[name.removesuffix(".weight")] == round(0.6 * weight.numel()) / weight.numel()
    only = compress.prune(network, 0.6, scope="layer", layers=["7"])
    assert {name for name, share in shares(only).items() if share} == {"7"}
    assert list(only.record["layers"]) == ["7"]


@pytest.mark.parametrize("amount", [0.29, 0.5, 0.7])
def test_scores_choose_exactly_what_goes(network: Any, amount: float) -> None:
    """Whole numbers with many ties: Python's sort, which is stable, is the reference."""
    rng = np.random.default_rng(0)
    given = {name: rng.integers(0, 4, network.get_submodule(name).weight.shape) for name in ("3", "9")}
    made = compress.prune(network, amount, scores=given)
    assert list(made.record["layers"]) == ["3", "9"]
    assert (made.record["settings"]["scope"], made.record["settings"]["scores"]) == ("layer", "mapping")
    for name, ranks in given.items():
        old, new = (m.get_submodule(name).weight.detach().numpy().ravel() for m in (network, made.model))
        flat = ranks.ravel().tolist()
        gone = set(sorted(range(len(flat)), key=flat.__getitem__)[: round(amount * 100) * len(flat) // 100])
        assert set(np.flatnonzero(new == 0).tolist()) == gone
        kept = np.array(sorted(set(range(len(flat))) - gone))
        np.testing.assert_array_equal(new[kept], old[kept])
    assert torch.equal(network[0].weight, made.model[0].weight)
    assert torch.equal(scores(made.twin, batch()), scores(made.model, batch()))
    tensors = {name: torch.from_numpy(ranks) for name, ranks in given.items()}
    assert_unchanged(compress.prune(network, amount, scores=tensors).model, snapshot(made.model))


@pytest.mark.parametrize("absolute", [False, True])
def test_a_slice_chooses_what_goes(network: Any, data: tuple[Seeds, Seeds], absolute: bool) -> None:
    x = torch.from_numpy(digits.prepare(data[0].images[:24]))
    found = slicing.slice(network, slicing.profile(network, x), x[:6], absolute=absolute)
    layers = {name: layer.absolute if absolute else abs(layer.signed) for name, layer in found.synapses.items()}
    made, wanted = (compress.prune(network, 0.6, scores=s) for s in (found, layers))
    assert list(made.record["layers"]) == ["0", "3", "7", "9"]
    assert made.record["settings"]["scores"] == "slice"
    assert_unchanged(made.model, snapshot(wanted.model))
    only = compress.prune(network, 0.6, scores=found, layers=["7"])
    assert [name for name, share in shares(only).items() if share] == ["7"]
    assert_unchanged(only.model.get_submodule("7"), snapshot(made.model.get_submodule("7")))


def test_scores_that_do_not_fit(network: Any) -> None:
    whole = {"9": np.zeros((10, 96))}
    for options, kind, message in (
        ({"scores": [1]}, TypeError, "scores must be a compdx.slicing.Slice or a mapping of layers, got list"),
        ({"scores": {"9": np.zeros((96, 10))}}, ValueError, r"scores of layer '9' must be finite .* got float64"),
        ({"scores": {"9": np.full((10, 96), np.nan)}}, ValueError, "scores of layer '9' must be finite"),
        ({"scores": whole, "layers": ["7", "9"]}, ValueError, "scores must have layer '7', which is to be pruned"),
        ({"scores": {"10": whole["9"]}}, ValueError, "layers must name modules of the model, got '10'"),
        ({"scores": whole, "scope": "global"}, ValueError, "scores rank the single weights of each layer by itself"),
        ({"scores": whole, "structured": True}, ValueError, "scores rank the single weights of each layer by itself"),
    ):
        with pytest.raises(kind, match=message):
            compress.prune(network, 0.5, **options)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_structured_pruning_removes_the_weakest_channels(network: Any, scope: Any) -> None:
    made = compress.prune(network, 0.5, scope=scope, structured=True)
    strengths, gone = [], []
    for name in ("0", "3"):
        old, new = network.get_submodule(name).weight, made.model.get_submodule(name).weight
        channels = (new == 0).flatten(1).all(1)
        assert torch.equal(new[~channels], old[~channels])
        assert not channels.all()
        strength = old.detach().abs().flatten(1).mean(1)
        strengths.append(strength)
        gone.append(channels)
        if scope == "layer":
            assert channels.sum() == len(channels) // 2
            assert strength[channels].max() < strength[~channels].min()
    if scope == "global":
        every, lost = torch.cat(strengths), torch.cat(gone)
        assert lost.sum() == round(0.5 * len(lost))
        strongest = torch.cat([s == s.max() for s in strengths])
        assert every[lost].max() < every[~lost & ~strongest].min()


def test_structured_pruning_leaves_every_layer_a_channel() -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    with torch.no_grad():
        module[0].weight.mul_(1e-3)
    made = compress.prune(module, 0.5, structured=True)
    assert made.record["layers"] == {"0": 0.75, "2": 0.25}
    with pytest.raises(ValueError, match="amount must leave every layer a channel: 7 of 8 channels in 2 layers"):
        compress.prune(module, 0.9, structured=True)


def test_masks_survive_training(network: Any, train: Seeds) -> None:
    made = compress.prune(network, 0.75, train=train, recipe=SHORT, inputs=INPUTS)
    plain = compress.prune(network, 0.75)

    def zeros(model: Any) -> dict[str, Any]:
        return {name: p == 0 for name, p in model.named_parameters() if name in ("0.weight", "3.weight")}

    pattern = zeros(plain.model)
    later = copy.deepcopy(made.twin)
    fit(later, train.images, train.labels, SHORT, inputs=INPUTS)
    copied = copy.deepcopy(later)  # with gradients in it, which is when torch.nn.utils.prune cannot be copied
    for model in (made.model, made.convert(later), made.convert(copied)):
        for name, places in zeros(model).items():
            assert torch.equal(places, pattern[name])
    changed = made.model.get_submodule("3").weight - plain.model.get_submodule("3").weight
    assert changed.abs().max() > 0
    assert made.record["pruned_sparsity"] == plain.record["pruned_sparsity"]
    assert made.record["settings"]["recipe"] == SHORT.settings()


def test_fine_tuning_brings_the_accuracy_back(network: Any, data: tuple[Seeds, Seeds], train: Seeds) -> None:
    before = compress.prune(network, 0.9)
    after = compress.prune(network, 0.9, train=train, recipe=SHORT, inputs=INPUTS)
    assert accuracy(after.model, data[1], INPUTS) > accuracy(before.model, data[1], INPUTS) + 0.02


def test_the_paper_is_the_default() -> None:
    recipe = compress.pruning.RECIPE
    assert (recipe.epochs, recipe.rate, recipe.momentum, recipe.weight_decay) == (20, 0.01, 0.9, 5e-4)
    assert (recipe.batch_size, recipe.crop, recipe.flip, recipe.schedule) == (128, 4, True, "constant")
    recipe = compress.quantization.RECIPE
    assert (recipe.epochs, recipe.rate, recipe.momentum, recipe.weight_decay) == (10, 0.001, 0.9, 1e-4)
    assert (recipe.batch_size, recipe.crop, recipe.flip, recipe.schedule) == (128, 4, True, "constant")


def test_a_pruned_model_can_be_stored_and_exported(network: Any, tmp_path: Any) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    made = compress.prune(network, 0.75)
    safetensors.save_file(made.model.state_dict(), tmp_path / "pruned.safetensors")
    empty = digits.network().eval()
    empty.load_state_dict(safetensors.load_file(tmp_path / "pruned.safetensors"))
    x = batch()
    assert torch.equal(scores(empty, x), scores(made.model, x))
    for module in (made.model, made.twin):
        exported = torch.export.export(module, (x,)).module()
        torch.testing.assert_close(scores(exported, x), scores(made.model, x))
    safetensors.save_file(made.twin.state_dict(), tmp_path / "twin.safetensors")


def test_the_size_of_a_pruned_model(network: Any) -> None:
    made = compress.prune(network, 0.75, layers=["7"])
    weights = 96 * 400
    assert made.record["original_bytes"] == 42_038 * 4
    assert made.record["bytes"] == (42_038 - weights) * 4 + weights // 4 * 4 + weights // 8
    structured = compress.prune(network, 0.75, layers=["7"], structured=True)
    assert structured.record["bytes"] == (42_038 - weights) * 4 + weights // 4 * 4 + 96 // 8
    slight = compress.prune(network, 0.01, layers=["7"])
    assert slight.record["bytes"] == slight.record["original_bytes"]


def test_schemes_can_follow_each_other(network: Any, train: Seeds) -> None:
    pruned = compress.prune(network, 0.75)
    both = compress.quantize(pruned.model, train, inputs=INPUTS)
    assert both.record["zeros"] >= pruned.record["zeros"]


# ---- quantization


def quantized(network: Any, train: Seeds, **settings: Any) -> Compressed:
    trained = {} if settings.get("mode") is None else {"train": train, "recipe": SHORT}
    return compress.quantize(network, train, inputs=INPUTS, **trained, **settings)


def test_int8_rounds_the_weights_and_keeps_the_accuracy(data: tuple[Seeds, Seeds], network: Any) -> None:
    training, held_out = data
    made = compress.quantize(network, digits.batches(training.select(slice(128))))
    small = made.model
    assert sum(buffer.dtype == torch.int8 for buffer in small.buffers()) == 4
    assert accuracy(small, held_out, INPUTS) > accuracy(network, held_out, INPUTS) - 0.02
    x = digits.batches(held_out, 33)[0]
    difference = (scores(small, x) - scores(network, x)).abs().max()
    assert 0 < difference < 2
    alone = torch.cat([scores(small, row[None]) for row in x])
    assert torch.equal(alone.argmax(1), scores(small, x).argmax(1))
    assert made.twin is not network
    assert torch.equal(scores(made.twin, x), scores(network, x))


def test_int8_weights_are_the_rounded_float_weights(network: Any, train: Seeds) -> None:
    made = quantized(network, train)
    integers = [buffer for buffer in made.model.buffers() if buffer.dtype == torch.int8]
    weights = [p.detach() for p in network.parameters() if p.ndim > 1]
    for weight in weights:
        scale = weight.abs().flatten(1).amax(1) / 127.5  # symmetric over -128..127
        expected = (weight / scale.reshape(-1, *[1] * (weight.ndim - 1))).round().clamp(-128, 127)
        (match,) = [found for found in integers if found.shape == weight.shape]
        assert (match - expected).abs().max() <= 1
        assert ((match - expected) != 0).float().mean() < 0.01
    floats = sum(p.numel() for p in network.parameters() if p.ndim == 1)
    assert made.record["parameters"] == 42_038
    channels = 6 + 16 + 96 + 10
    assert made.record["bytes"] == 42_038 - floats + 4 * floats + channels * (4 + 8)  # scales, zero points in int64


@pytest.mark.parametrize("mode", [None, "qat"])
@pytest.mark.parametrize(
    ("build", "most"),
    [(joined, 1000), (residual, 130), (lambda: networks.build("lenet5", channels=1, size=28).eval(), 1000)],
)
def test_int8_takes_batches_of_any_size(build: Callable[[], Any], most: int, mode: str | None, train: Seeds) -> None:
    settings = {} if mode is None else {"mode": mode, "train": train.select(slice(64)), "recipe": SHORT}
    made = compress.quantize(build(), [batch(1)], inputs=INPUTS, **settings)
    for count in (1, 2, 3, most):
        assert scores(made.model, batch(count)).shape == (count, 10)
        assert scores(made.twin, batch(count)).shape == (count, 10)


def test_functional_relus_are_fused_like_modules(train: Seeds) -> None:
    """Rounding before a ReLU and once more behind it costs accuracy and time; torchao does not see ``torch.relu``."""

    class Functional(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, layers: Any) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: Any) -> Any:
            for layer in self.layers:
                x = torch.relu(x) if isinstance(layer, nn.ReLU) else layer(x)
            return x

    module = digits.network().eval()
    one, other = quantized(module, train), quantized(Functional(module).eval(), train)
    assert torch.equal(scores(one.model, batch()), scores(other.model, batch()))


def test_the_twin_of_qat_rounds_as_int8_does(train: Seeds) -> None:
    """The paper's canary: with fake quantization, eval mode is not the float function."""
    original = joined()
    made = quantized(original, train, mode="qat")
    x = digits.batches(train)[0]
    twin, int8 = scores(made.twin, x), scores(made.model, x)
    torch.testing.assert_close(twin, int8, rtol=0, atol=1e-5)
    for part in made.twin.modules():
        if hasattr(part, "disable_fake_quant"):
            part.disable_fake_quant()
    assert (scores(made.twin, x) - twin).abs().max() > 1e-3


def test_qat_begins_with_the_float_function(train: Seeds) -> None:
    """Without training and without its rounding, the twin is the float model, epsilons of its own included."""
    original = joined()
    made = compress.quantize(original, train, mode="qat", inputs=INPUTS)
    assert made.record["trained"] is None
    x = digits.batches(train)[0]
    torch.testing.assert_close(scores(made.twin, x), scores(made.model, x), rtol=0, atol=1e-5)
    assert (scores(made.twin, x) - scores(original, x)).abs().max() > 1e-3
    for part in made.twin.modules():
        if hasattr(part, "disable_fake_quant"):
            part.disable_fake_quant()
    torch.testing.assert_close(scores(made.twin, x), scores(original, x), rtol=1e-4, atol=1e-5)


def test_qat_trains_in_training_mode_only(train: Seeds) -> None:
    made = quantized(joined(), train.select(slice(64)), mode="qat")
    twin, x = made.twin, batch()
    still = snapshot(twin)
    scores(twin, 9 * x)
    assert_unchanged(twin, still)
    assert torch.equal(scores(twin, x), scores(twin, x))
    set_mode(twin, training=True)
    assert twin.training
    assert Model(twin, allow_training=True).training
    assert not torch.equal(scores(twin, x), scores(twin, x))  # dropout
    changed = [name for name, value in twin.state_dict().items() if not torch.equal(value, still[name])]
    assert any(name.endswith("before.running_mean") for name in changed)
    assert any(name.endswith("max_val") for name in changed)
    set_mode(twin, training=False)
    assert not Model(twin).training


def test_qat_trains_under_autocast(train: Seeds) -> None:
    recipe = Recipe(epochs=1, batch_size=32, crop=0, flip=False, precision="bfloat16")
    made = compress.quantize(joined(), train, mode="qat", train=train.select(slice(64)), recipe=recipe, inputs=INPUTS)
    assert np.isfinite(made.record["trained"]["loss"])


def test_qat_trains_an_int8_model(data: tuple[Seeds, Seeds]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        original = digits.network().eval()
    recipe = dataclasses.replace(SHORT, epochs=4, batch_size=32)
    made = compress.quantize(original, data[0], mode="qat", train=data[0], recipe=recipe, inputs=INPUTS)
    assert accuracy(made.model, data[1], INPUTS) > 0.9


def test_the_twin_of_the_artifact_is_the_float_function(train: Seeds) -> None:
    """The other canary: observers alone round nothing, so the twin is the fine-tuned float model."""
    original = joined()
    made = quantized(original, train, mode="artifact")
    tuned = joined()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fit(tuned, train.images, train.labels, SHORT, inputs=INPUTS)
    torch.testing.assert_close(scores(made.twin, batch()), scores(tuned.eval(), batch()), rtol=0, atol=1e-5)
    assert (scores(made.model, batch()) - scores(made.twin, batch())).abs().max() > 1e-3


def test_calibration_by_seeds_is_calibration_by_their_batches(network: Any, train: Seeds) -> None:
    one = compress.quantize(network, train, inputs=INPUTS)
    other = compress.quantize(network, digits.batches(train, 256))
    assert torch.equal(scores(one.model, batch()), scores(other.model, batch()))
    assert one.record == other.record
    assert one.record["settings"]["calibration_images"] == len(train)


def test_nothing_of_the_float_weights_is_left(network: Any, train: Seeds) -> None:
    small = quantized(network, train).model
    assert not [p for p in small.parameters() if p.ndim > 1]
    assert Model(small).describe()["bytes"] < Model(network).describe()["bytes"] / 3


def test_int8_leaves_the_loggers_as_they_were(network: Any) -> None:
    logger = logging.getLogger("torchao")
    before = logger.level
    compress.quantize(network, [torch.zeros(1, 1, 28, 28)])
    assert logger.level == before


# ---- distillation


def test_a_distilled_student_agrees_with_its_teacher(network: Any, data: tuple[Seeds, Seeds]) -> None:
    training, held_out = data
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        student = networks.build("lenet1", channels=1, size=28)
    before = snapshot(student)
    recipe = Recipe(epochs=4, batch_size=64, rate=0.01, crop=0, flip=False, precision="float32")
    unlabelled = Seeds(training.images)
    made = compress.distill(network, student, train=unlabelled, inputs=INPUTS, recipe=recipe)
    assert_unchanged(student, before)
    assert student.training
    assert made.twin is made.model
    assert made.start is not None
    assert all(torch.equal(made.start[name], tensor) for name, tensor in student.state_dict().items())
    assert accuracy(made.model, held_out, INPUTS) > 0.85
    assert made.record["settings"]["alpha"] == 1.0
    assert made.record["original_parameters"] == 42_038
    assert made.record["parameters"] == sum(p.numel() for p in student.parameters())
    assert made.record["bytes"] == 4 * made.record["parameters"]


def test_the_loss_of_distillation(network: Any, train: Seeds) -> None:
    """One step with a rate of almost nothing: the recorded loss against the formula, in float64 NumPy."""
    student, count, t, alpha = joined(7), 64, 3.0, 0.7
    few = train.select(slice(count))
    recipe = Recipe(
        epochs=1, batch_size=count, rate=1e-30, schedule="constant", crop=0, flip=False, precision="float32"
    )
    student.eval()
    with_dropout_off = nn.Sequential(student)
    with_dropout_off[0].train = lambda _mode=True: student  # a student without any randomness, for the formula
    made = compress.distill(
        network, with_dropout_off, train=few, inputs=INPUTS, temperature=t, alpha=alpha, recipe=recipe
    )
    x = torch.from_numpy(digits.prepare(few.images))
    a, b = (scores(module, x).double().numpy() for module in (network, student))

    def log_softmax(z: Any) -> Any:
        return z - z.max(1, keepdims=True) - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True))

    p, q = log_softmax(a / t), log_softmax(b / t)
    soft = (np.exp(p) * (p - q)).sum(1).mean()
    hard = -log_softmax(b)[np.arange(count), few.labels].mean()
    assert made.record["trained"]["loss"] == pytest.approx(alpha * t**2 * soft + (1 - alpha) * hard, rel=1e-4)


# ---- sixteen bits


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_computes_in_its_dtype(network: Any, dtype: Any) -> None:
    made = compress.half(network, dtype)
    kind = getattr(torch, dtype)
    seen = []
    for part in made.model.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            part.register_forward_hook(lambda _, args, out: seen.append((args[0].dtype, out.dtype)))
    x = batch()
    out = scores(made.model, x)
    assert seen == [(kind, kind)] * 4
    assert {p.dtype for p in made.model.parameters()} == {kind}
    assert out.dtype == torch.float32
    assert not torch.equal(out, scores(network, x))
    torch.testing.assert_close(out, scores(network, x), rtol=0.1, atol=0.2 if dtype == "bfloat16" else 0.03)
    for name, weight in made.twin.named_parameters():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, network.get_parameter(name).to(kind).float())
    assert made.record["bytes"] * 2 == made.record["original_bytes"]
    assert Model(made).describe()["bytes"] == made.record["bytes"]


def test_half_refuses_what_would_overflow() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        module[1].weight[0, 0] = 1e5
    assert compress.half(module).model(torch.zeros(1, 4)).isfinite().all()
    with pytest.raises(ValueError, match=r"model must fit into float16, but 1.weight holds 100000"):
        compress.half(module, "float16")


# ---- errors

LINEAR = nn.Linear(4, 2).eval()
CONVOLUTION = nn.Conv2d(1, 2, 3).eval()
UNLABELLED = Seeds(np.zeros((2, 1, 8, 8), np.uint8))
HALF_LABELLED = Seeds(np.zeros((2, 1, 8, 8), np.uint8), [1, -1])
LABELLED = Seeds(np.zeros((2, 1, 8, 8), np.uint8), [1, 0])
PLAIN = Inputs()


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: compress.prune(len), TypeError, "model must be a torch module, got builtin_function_or_method"),
        (lambda: compress.half(nn.Linear(4, 2)), ValueError, "model must be in eval mode"),
        (lambda: compress.prune(CONVOLUTION, 1), ValueError, "amount must be between 0 and 1, got 1"),
        (lambda: compress.prune(CONVOLUTION, "most"), TypeError, "amount must be a number between 0 and 1, got str"),
        (lambda: compress.prune(CONVOLUTION, scope="all"), ValueError, "scope must be 'global' or 'layer', got 'all'"),
        (lambda: compress.prune(LINEAR), ValueError, "model must have 2D convolutions to prune, got none"),
        (lambda: compress.prune(LINEAR, layers=["fc"]), ValueError, "layers must name modules of the model, got 'fc'"),
        (lambda: compress.prune(LINEAR, layers=[]), ValueError, "layers must not be empty"),
        (lambda: compress.prune(LINEAR, layers="fc"), ValueError, "layers must be a list of names, 'all' or None"),
        (
            lambda: compress.prune(nn.Sequential(nn.ReLU()).eval(), layers=["0"]),
            ValueError,
            "layer '0' must have a weight of its own",
        ),
        (lambda: compress.prune(CONVOLUTION, recipe=SHORT), ValueError, "recipe needs train="),
        (lambda: compress.prune(CONVOLUTION, train=LABELLED.images), TypeError, "train must be compdx.Seeds, got nda"),
        (lambda: compress.prune(CONVOLUTION, train=UNLABELLED, inputs=PLAIN), ValueError, "train must have labels"),
        (
            lambda: compress.prune(CONVOLUTION, train=HALF_LABELLED, inputs=PLAIN),
            ValueError,
            "a label for every image, got 1 unknown",
        ),
        (lambda: compress.prune(CONVOLUTION, train=LABELLED), TypeError, "inputs must be the compdx.Inputs"),
        (
            lambda: compress.prune(CONVOLUTION, train=LABELLED, inputs=PLAIN, recipe=20),
            TypeError,
            "recipe must be a compdx.training.Recipe, got int",
        ),
        (lambda: compress.quantize(len, []), TypeError, "model must be a torch module"),
        (lambda: compress.quantize(nn.Linear(4, 2), []), ValueError, "training mode"),
        (lambda: compress.quantize(LINEAR, []), ValueError, "calibration must hold at least one batch"),
        (lambda: compress.quantize(LINEAR, [np.zeros((2, 4))]), TypeError, "got ndarray"),
        (lambda: compress.quantize(LINEAR, [torch.zeros(2, 4).double()]), TypeError, r"got torch.float64 \[2, 4\]"),
        (lambda: compress.quantize(LINEAR, [torch.zeros(2, 4)], backend="arm"), ValueError, "backend must be 'x86'"),
        (lambda: compress.quantize(LINEAR, [torch.zeros(2, 4)], mode="ptq"), ValueError, "mode must be one of 'post-t"),
        (
            lambda: compress.quantize(LINEAR, [torch.zeros(2, 4)], mode="artifact"),
            ValueError,
            "mode='artifact' needs train=",
        ),
        (
            lambda: compress.quantize(LINEAR, [torch.zeros(2, 4)], train=LABELLED, inputs=PLAIN),
            ValueError,
            "mode='post-training' takes no train=",
        ),
        (lambda: compress.quantize(CONVOLUTION, LABELLED), TypeError, "calibration by seeds needs inputs="),
        (lambda: compress.quantize(nn.ReLU().eval(), [torch.zeros(2, 4)]), ValueError, "none that torchao recognises"),
        (lambda: compress.half(LINEAR, "float8"), ValueError, "dtype must be 'bfloat16' or 'float16', got 'float8'"),
        (lambda: compress.distill(LINEAR, len, train=LABELLED, inputs=PLAIN), TypeError, "student must be a torch mod"),
        (lambda: compress.distill(LINEAR, LINEAR, train=None, inputs=PLAIN), TypeError, "train must be compdx.Seeds"),
        (
            lambda: compress.distill(LINEAR, LINEAR, train=LABELLED, inputs=PLAIN, temperature=0),
            ValueError,
            "temperature must be positive, got 0",
        ),
        (
            lambda: compress.distill(LINEAR, LINEAR, train=LABELLED, inputs=PLAIN, alpha=2),
            ValueError,
            "alpha must be in 0..1, got 2",
        ),
        (
            lambda: compress.distill(
                nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval(),
                nn.Sequential(nn.Flatten(), nn.Linear(64, 2)),
                train=LABELLED,
                inputs=PLAIN,
            ),
            ValueError,
            r"student must score the same classes as model, got \[2\] instead of \[3\] scores",
        ),
    ],
)
def test_errors_name_what_is_wrong(call: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()
