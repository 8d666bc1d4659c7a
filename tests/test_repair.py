"""Repair: what is trained on, what stays as it was, what the report says; every figure is counted again by hand."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from compdx import Model, Pair, Seeds, attacks, compress, repair, search, training
from compdx.compressed import Compressed
from compdx.methods.gradient import Gradient
from compdx.methods.mcmc import MCMC
from compdx.pictures import Pictures
from compdx.repair import Change, RepairReport, finetuning, measuring
from compdx.training import Recipe
from compdx.zoo import digits

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
nn = torch.nn

INPUTS = {"mean": digits.INPUTS.mean, "std": digits.INPUTS.std}
QUICK = replace(repair.RECIPE, epochs=3, rate=0.005, batch_size=64, crop=2, flip=False)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    with digits.one_thread():
        yield


@pytest.fixture(scope="module")
def data() -> tuple[Seeds, Seeds]:
    return digits.load()


@pytest.fixture(scope="module")
def train(data: Any) -> Seeds:
    return data[0].select(slice(600))


@pytest.fixture(scope="module")
def network(data: Any) -> Any:
    """A small network for digits with batch normalization, of about 98 %."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 12, 5, 2),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 24, 3, 2),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(24 * 5 * 5, 10),
        )
    recipe = Recipe(epochs=5, batch_size=64, crop=2, flip=False, precision="float32")
    training.fit(net, data[0].images, data[0].labels, recipe, inputs=digits.INPUTS)
    return net.to(memory_format=torch.contiguous_format).eval()


@pytest.fixture(scope="module")
def pruned(network: Any, train: Seeds) -> Compressed:
    recipe = replace(QUICK, rate=0.01)
    return compress.prune(network, 0.85, train=train, recipe=recipe, inputs=digits.INPUTS)


@pytest.fixture(scope="module")
def pair(network: Any, pruned: Compressed) -> Pair:
    return Pair(Model(network, **INPUTS, name="digits"), Model(pruned, **INPUTS, name="pruned digits"))


@pytest.fixture(scope="module")
def seeds(data: Any) -> Seeds:
    return data[1].select(slice(120))


@pytest.fixture(scope="module")
def findings(pair: Pair, seeds: Seeds) -> Any:
    return search(pair, seeds, method=Gradient(budget=8), progress=False)


@pytest.fixture(scope="module")
def mended(pair: Pair, findings: Any, train: Seeds, data: Any) -> Any:
    return repair.finetune(
        pair,
        findings,
        train=train,
        holdout=data[0].select(slice(600, 900)),
        unseen=data[1].select(slice(120, 180)),
        test=data[1].select(slice(300, 400)),
        recipe=QUICK,
        progress=False,
    )


def says(network: Any, images: Any) -> Any:
    """Labels by plain PyTorch, one image at a time."""
    with torch.no_grad():
        x = (torch.from_numpy(images).float() / 255 - 0.5) / 0.5
        return np.array([int(network(image[None]).argmax()) for image in x])


def state_of(network: Any) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in network.state_dict().items()}


class Spy:
    """Stands for `training.fit`: keeps what it was given, and trains nothing or as it should."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, train: bool = False) -> None:
        self.given: dict[str, Any] = {}
        self.fit = training.fit if train else None
        monkeypatch.setattr(finetuning.training, "fit", self)

    def __call__(self, network: Any, images: Any, labels: Any, recipe: Any, **options: Any) -> Any:
        self.given = {"network": network, "images": images, "labels": labels, "recipe": recipe, **options}
        if self.fit is not None:
            return self.fit(network, images, labels, recipe, **options)
        epoch = training.Epoch(epoch=1, loss=1.0, accuracy=1.0, rate=0.1, seconds=0.0)
        options["listen"](epoch, dict)
        return [epoch]


def test_the_repair_set_is_repaired(mended: Any, findings: Any, network: Any) -> None:
    pictures = findings.pictures
    kept = pictures.original_label == pictures.seed_label
    before = int((kept & (pictures.compressed_label != pictures.original_label)).sum())
    after = int((kept & (says(mended.compressed.model, pictures.images) != pictures.original_label)).sum())
    assert before >= 100
    assert after <= 0.4 * before
    assert mended.report.findings == Change(before=before, after=after)
    assert (says(network, pictures.images) == pictures.original_label).all()


def test_masks_are_kept(mended: Any, pruned: Compressed) -> None:
    for before, after in ((pruned.model, mended.compressed.model), (pruned.twin, mended.compressed.twin)):
        for place in (0, 3):
            old, new = before[place].weight, after[place].weight
            assert ((old == 0) == (new == 0)).all()
            assert (old != new).any()
    zeros = sum(int((pruned.model[place].weight == 0).sum()) for place in (0, 3))
    assert zeros == pytest.approx(0.85 * (12 * 25 + 24 * 12 * 9), abs=1)
    assert mended.pair.compressed.compressed is mended.compressed
    assert mended.pair.compressed.module is mended.compressed.model
    assert mended.pair.compressed.inputs == digits.INPUTS
    assert mended.pair.compressed.name == "pruned digits"


def test_the_report_counts_right(mended: Any, pair: Pair, pruned: Compressed, data: Any) -> None:
    report, test = mended.report, data[1].select(slice(300, 400))
    for when, model in (("before", pruned.model), ("after", mended.compressed.model)):
        assert getattr(report.accuracy, when) == (says(model, test.images) == test.labels).mean()
    assert sorted(report.fgsm) == [2, 8, 16]
    for epsilon, change in report.fgsm.items():
        for when, twin in (("before", pruned.twin), ("after", mended.compressed.twin)):
            x = ((torch.from_numpy(test.images).float() / 255 - 0.5) / 0.5).requires_grad_()
            loss = nn.functional.cross_entropy(twin(x), torch.from_numpy(test.labels), reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x)
            with torch.no_grad():
                attacked = twin((x + epsilon / 255 / 0.5 * gradient.sign()).clamp(-1, 1)).argmax(1).numpy()
                right = (attacked == test.labels) & (twin(x).argmax(1).numpy() == test.labels)
            assert getattr(change, when) == pytest.approx(right.mean(), abs=0.0101)  # one image may be on the edge
    unseen = data[1].select(slice(120, 180))
    for when, stage in (("before", pair), ("after", mended.pair)):
        found = search(stage, unseen, method=Gradient(budget=8), progress=False).pictures.counts()["effective"]
        assert getattr(report.unseen, when) == found
    assert report.unseen.before > report.unseen.after
    assert report.unseen_seeds == 60
    assert report.settings["method"]["settings"]["budget"] == 8


def test_the_holdout_chooses_the_epoch(mended: Any, pair: Pair, findings: Any, train: Seeds, data: Any) -> None:
    holdout = data[0].select(slice(600, 900))
    measured = (says(mended.compressed.model, holdout.images) == holdout.labels).mean()
    accuracies = [epoch.holdout for epoch in mended.history]
    assert measured == max(accuracies) == mended.report.settings["holdout_accuracy"]
    assert [epoch.epoch for epoch in mended.history] == [1, 2, 3]
    assert accuracies[mended.report.settings["epoch"] - 1] == measured
    # With a rate that destroys the model in the end, an earlier epoch is delivered, whatever epoch that is.
    for labels in (holdout.labels, (holdout.labels + 1) % 10):
        wild = repair.finetune(
            pair,
            findings,
            train=train,
            holdout=Seeds(holdout.images, labels),
            recipe=replace(QUICK, rate=0.15, epochs=4),
            train_limit=130,
            picture_limit=130,
            progress=False,
        )
        accuracies = [epoch.holdout for epoch in wild.history]
        assert (says(wild.compressed.model, holdout.images) == labels).mean() == max(accuracies)
        last = max(number for number, accuracy in enumerate(accuracies, 1) if accuracy == max(accuracies))
        assert wild.report.settings["epoch"] == last
        assert len(set(accuracies)) > 1


@pytest.mark.parametrize(("tolerance", "epoch"), [(0.0, 3), (0.015, 4), (0.025, 5), (0.1, 6)])
def test_a_later_epoch_that_is_hardly_worse(
    pair: Pair, findings: Any, train: Seeds, monkeypatch: Any, tolerance: float, epoch: int
) -> None:
    accuracies = [0.90, 0.91, 0.95, 0.94, 0.93, 0.86]
    asked = iter(accuracies)
    monkeypatch.setattr(measuring, "accuracy", lambda *_: next(asked))
    options = {"recipe": replace(QUICK, epochs=6), "train_limit": 64, "picture_limit": 64, "progress": False}
    done = repair.finetune(pair, findings, train=train, tolerance=tolerance, **options)
    assert done.report.settings["epoch"] == epoch
    assert done.report.settings["holdout_accuracy"] == accuracies[epoch - 1]


def test_nothing_of_the_user_changes(network: Any, pruned: Compressed, train: Seeds, findings: Any) -> None:
    own = Pair(Model(network, **INPUTS), Model(pruned, **INPUTS))
    modules = (network, pruned.model, pruned.twin)
    before, state = [state_of(module) for module in modules], torch.random.get_rng_state()
    gradients = [parameter.grad for module in modules for parameter in module.parameters()]
    options = {"train": train, "recipe": replace(QUICK, epochs=1), "picture_limit": 300, "progress": False}
    done = repair.finetune(own, findings, **options, test=train.select(slice(40)), unseen=train.select(slice(4)))
    assert [state_of(module) for module in modules] == before
    assert not any(part.training for module in modules for part in module.modules())
    assert not any(part.training for part in done.compressed.model.modules())
    assert (torch.random.get_rng_state() == state).all()
    assert [parameter.grad for module in modules for parameter in module.parameters()] == gradients
    again = repair.finetune(own, findings, **options)
    assert state_of(done.compressed.twin) == state_of(again.compressed.twin)
    other = repair.finetune(own, findings, **options, seed=1)
    assert state_of(done.compressed.twin) != state_of(other.compressed.twin)
    # Batch statistics follow the training: a model in eval mode would be fine-tuned otherwise.
    assert (done.compressed.twin[1].running_mean != pruned.twin[1].running_mean).any()


def test_what_is_trained_on(pair: Pair, findings: Any, train: Seeds, network: Any, monkeypatch: Any) -> None:
    """Effective and valid pictures as they are, with the original's labels; training images with the true ones."""
    pictures = findings.pictures
    # The label that a picture's file claims is not what counts, but whether the original keeps the seed's.
    odd = pictures.seed_label.copy()
    odd[::3] = (odd[::3] + 1) % 10
    pictures = replace(pictures, seed_label=odd)
    spy = Spy(monkeypatch)
    done = repair.finetune(pair, pictures, train=train, holdout=train, recipe=QUICK, progress=False)
    own = says(network, pictures.images)
    kept = own == odd
    assert (
        kept.sum()
        == len(kept)
        - len(kept[::3])
        - (says(network, findings.pictures.images) != findings.pictures.seed_label)[np.arange(len(kept)) % 3 > 0].sum()
    )
    assert (spy.given["images"] == np.concatenate([train.images, pictures.images[kept]])).all()
    assert (spy.given["labels"] == np.concatenate([train.labels, own[kept]])).all()
    assert (spy.given["augmented"] == np.repeat([True, False], [len(train), kept.sum()])).all()
    assert spy.given["recipe"] is QUICK
    # A checkpoint, which is measured in eval mode, leaves the network training.
    assert all(part.training for part in spy.given["network"].modules())
    assert done.report.settings["pictures"] == kept.sum()
    assert done.report.accuracy is None
    assert done.report.unseen is None


def test_a_tenth_of_train_is_held_out(pair: Pair, findings: Any, train: Seeds, monkeypatch: Any) -> None:
    spy = Spy(monkeypatch)
    done = repair.finetune(pair, findings, train=train, recipe=QUICK, picture_limit=1, progress=False)
    assert len(spy.given["images"]) == 540 + 1
    assert done.report.settings["holdout"] == 60
    held = train.select(np.arange(600) % 10 == 9)
    assert not {image.tobytes() for image in held.images} & {image.tobytes() for image in spy.given["images"][:-1]}


def test_limits(pair: Pair, findings: Any, train: Seeds, monkeypatch: Any) -> None:
    spy = Spy(monkeypatch)
    pictures = findings.pictures
    effective = int(pictures.effective.sum())
    options = {"train": train, "holdout": train, "recipe": QUICK, "progress": False}
    repair.finetune(pair, findings, **options, train_limit=50, picture_limit=effective + 20)
    known = {image.tobytes() for image in pictures.images[pictures.effective]}
    given = {image.tobytes() for image in spy.given["images"][50:]}
    assert len(spy.given["images"]) == 50 + effective + 20
    assert known <= given
    assert spy.given["augmented"].sum() == 50
    rows = {image.tobytes(): label for image, label in zip(train.images, train.labels, strict=True)}
    assert [rows[image.tobytes()] for image in spy.given["images"][:50]] == spy.given["labels"][:50].tolist()
    repair.finetune(pair, findings, **options, picture_limit=effective - 20)
    given = {image.tobytes() for image in spy.given["images"][len(train) :]}
    assert given < known
    assert len(spy.given["images"]) == len(train) + effective - 20
    done = repair.finetune(pair, findings, train=train, holdout=train, picture_limit=0, recipe=QUICK, progress=False)
    assert (spy.given["images"] == train.images).all()
    assert done.report.settings["pictures"] == 0


def test_the_loss_is_cross_entropy_and_divergence(pair: Pair, findings: Any, train: Seeds, monkeypatch: Any) -> None:
    """Against NumPy, with the original's scores of the very batch."""
    spy = Spy(monkeypatch)
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(5, 10)).astype(np.float32)
    x = generator.uniform(-1, 1, (5, 1, 28, 28)).astype(np.float32)
    rows = np.array([3, 0, 620, 601, 9])

    def log_softmax(values: Any) -> Any:
        values = values.astype(np.float64)
        return values - np.log(np.exp(values).sum(1, keepdims=True))

    with torch.no_grad():
        teacher = pair.original.module(torch.from_numpy(x)).numpy()
    for own, weight, temperature in ((1.0, 0.0, 2.0), (1.0, 0.7, 3.0), (0.0, 0.7, 3.0), (0.5, 0.7, 3.0)):
        options = {"consistency": weight, "temperature": temperature, "label_weight": own}
        options |= {"recipe": QUICK, "progress": False}
        repair.finetune(pair, findings, train=train, holdout=train, **options)
        labels = spy.given["labels"][rows]
        expected = -own * log_softmax(logits)[np.arange(5), labels].mean()
        wanted, soft = log_softmax(teacher / temperature), log_softmax(logits / temperature)
        expected += weight * temperature**2 * (np.exp(wanted) * (wanted - soft)).sum(1).mean()
        leaf = torch.from_numpy(logits).requires_grad_()
        found = spy.given["loss"](leaf, rows, torch.from_numpy(x))
        assert found.item() == pytest.approx(expected, rel=1e-5)
        found.backward()
        assert bool(leaf.grad.any())


def test_consistency_brings_the_soft_scores_closer(pair: Pair, findings: Any, train: Seeds) -> None:
    images = findings.pictures.images
    away = []
    for weight in (0.0, 1.0):
        done = repair.finetune(
            pair,
            findings,
            train=train,
            recipe=replace(QUICK, epochs=5, rate=0.01),
            tolerance=1.0,
            consistency=weight,
            picture_limit=300,
            progress=False,
        )
        a, b = (torch.from_numpy(np.asarray(scores) / 2).log_softmax(1) for scores in done.pair(images))
        away.append(float(nn.functional.kl_div(b, a, reduction="batchmean", log_target=True)))
    assert away[1] < 0.5 * away[0]


def test_a_restart_undoes_the_training(
    network: Any, pair: Pair, pruned: Compressed, findings: Any, train: Seeds
) -> None:
    """With steps that do nothing, all that is left is the original with the same weights gone."""
    done = repair.finetune(
        pair, findings, train=train, recipe=replace(QUICK, epochs=1, rate=1e-30), restart=True, progress=False
    )
    assert done.report.settings["restart"]
    state, trained = done.compressed.model.state_dict(), pruned.model.state_dict()
    for name, tensor in network.state_dict().items():
        if name.endswith("weight") and tensor.ndim == 4:
            assert torch.equal(state[name], torch.where(trained[name] == 0, 0.0, tensor)), name
        elif "running" not in name and "batches" not in name:
            assert torch.equal(state[name], tensor), name
    assert not torch.equal(trained["3.weight"], state["3.weight"])


def test_a_restart_can_be_the_best_already(pair: Pair, findings: Any, train: Seeds) -> None:
    recipe = replace(QUICK, epochs=1, rate=5.0)  # which ruins the network
    done = repair.finetune(pair, findings, train=train, recipe=recipe, restart=True, progress=False)
    assert done.report.settings["epoch"] == 0
    assert len(done.history) == 1
    assert done.report.settings["holdout_accuracy"] > done.history[0].holdout


def test_a_restarted_int8_network_is_that_of_quantization_alone(network: Any, train: Seeds, seeds: Seeds) -> None:
    few = train.select(slice(128))
    options = {"inputs": digits.INPUTS, "mode": "qat"}
    away = compress.quantize(network, few, train=train, recipe=replace(QUICK, rate=0.02), **options)
    plain = compress.quantize(network, few, **options)
    pair = Pair(Model(network, **INPUTS), Model(away, **INPUTS))
    found = search(pair, seeds, method=Gradient(budget=3), progress=False)
    recipe = replace(QUICK, epochs=1, rate=1e-30)
    done = repair.finetune(
        *(pair, found), train=train, recipe=recipe, restart=True, consistency=1.0, label_weight=0.0, progress=False
    )
    x = digits.INPUTS.table(1)[0][seeds.images].astype(np.float32)
    with torch.no_grad():
        wanted, got, was = (m(torch.from_numpy(x)) for m in (plain.model, done.compressed.model, away.model))
    # The one epoch has moved the ranges of the activations a little.
    assert float((wanted - got).abs().mean()) < 0.2 * float((wanted - was).abs().mean())


def test_patience_ends_the_training(pair: Pair, findings: Any, train: Seeds) -> None:
    told: list[Any] = []
    recipe = replace(QUICK, epochs=9, rate=1e-9)  # nothing gets better
    options = {"train": train, "recipe": recipe, "train_limit": 64, "picture_limit": 64}
    done = repair.finetune(pair, findings, **options, patience=2, progress=told.append)
    assert [epoch.epoch for epoch in done.history] == [1, 2, 3]
    assert told == list(done.history)
    assert done.report.settings["epochs"] == 3


@pytest.mark.parametrize("how", ["zeros", "masks"])
def test_a_plain_module_keeps_its_zeros(pair: Pair, pruned: Compressed, findings: Any, train: Seeds, how: str) -> None:
    network = copy.deepcopy(pruned.model)
    if how == "masks":  # as torch.nn.utils.prune leaves a module: with a weight that cannot be copied
        prune = nn.utils.prune
        for place in (0, 3):
            prune.custom_from_mask(network[place], "weight", network[place].weight != 0)
    own = Pair(pair.original, Model(network, **INPUTS))
    options = {"train": train, "recipe": QUICK, "picture_limit": 400, "progress": False}
    before = state_of(network)
    done = repair.finetune(own, findings, **options)
    assert done.compressed is None
    assert state_of(network) == before
    assert done.report.findings.after < 0.4 * done.report.findings.before
    new = done.pair.compressed.module
    says(new, train.images[:1])  # masks are applied when a module is called
    for place in (0, 3):
        assert ((new[place].weight == 0) == (network[place].weight == 0)).all()
        assert (new[place].weight != network[place].weight).any()
    assert list(new.state_dict()) == list(network.state_dict())
    if how == "zeros":
        free = repair.finetune(own, findings, **options, keep_zeros=False).pair.compressed.module
        assert (free[3].weight == 0).sum() < 10


def test_an_int8_model_is_repaired(network: Any, data: Any, train: Seeds, seeds: Seeds) -> None:
    """The twin is trained; verdict, checkpoint and report are those of the converted model."""
    pytest.importorskip("torchao")
    quantized = compress.quantize(network, train.select(slice(64)), inputs=digits.INPUTS)
    own = Pair(Model(network, **INPUTS), Model(quantized, **INPUTS))
    images = data[1].images[:200]
    found = Pictures(
        seed_index=np.arange(200),
        **{
            name: says(network, images).astype(np.int32)
            for name in ("seed_label", "original_label", "compressed_label")
        },
        step=np.ones(200, np.int32),
        original_confidence=np.ones(200),
        compressed_confidence=np.ones(200),
        l2=np.zeros(200),
        linf=np.zeros(200, np.int16),
        already_deviating=np.zeros(200, np.bool_),
        images=images,
    )
    done = repair.finetune(own, found, train=train, test=seeds, recipe=replace(QUICK, epochs=1), progress=False)
    scores = done.pair.compressed(seeds.images)
    assert (scores == np.asarray(Model(quantized.convert(done.compressed.twin), **INPUTS)(seeds.images))).all()
    assert done.report.accuracy.after == (scores.argmax(1) == seeds.labels).mean()
    assert done.report.findings.after == (done.pair.compressed(images).argmax(1) != found.original_label).sum()
    assert done.compressed.record == quantized.record


def test_a_background_class_is_no_class(network: Any, findings: Any, train: Seeds, monkeypatch: Any) -> None:
    class Background(nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Any) -> Any:
            scores = self.inner(x)
            return torch.cat([scores.new_full((len(x), 1), -3.0), scores], 1)

    compressed = Model(Background(copy.deepcopy(network)).eval(), **INPUTS, class_offset=1)
    own = Pair(Model(network, **INPUTS), compressed)
    spy = Spy(monkeypatch, train=True)
    options = {"train": train, "recipe": replace(QUICK, epochs=1, rate=1e-4), "picture_limit": 50, "progress": False}
    done = repair.finetune(own, findings, **options)
    # What the loop counts as right: had the labels not moved with the scores, it would be next to nothing.
    assert done.history[0].accuracy > 0.9
    assert done.history[0].holdout > 0.9
    assert spy.given["labels"].min() == 1
    assert done.pair.compressed.class_offset == 1


def test_findings_without_pictures(pair: Pair, data: Any, train: Seeds, monkeypatch: Any) -> None:
    """Of MCMC, effective findings are the repair set."""
    seeds = data[1].select(slice(60))
    found = search(pair, seeds, method=MCMC(budget=150), progress=False)
    assert found.pictures is None
    rows = [row for row, kind in enumerate(found.table["kind"].to_pylist()) if kind == "effective"]
    assert len(rows) >= 5
    spy = Spy(monkeypatch)
    done = repair.finetune(pair, found, train=train, holdout=train, unseen=seeds, recipe=QUICK, progress=False)
    assert (spy.given["images"][len(train) :] == found.images[rows]).all()
    assert (spy.given["labels"][len(train) :] == found.table["original_label"].to_numpy()[rows]).all()
    assert done.report.findings.before == len(rows)
    # Nothing was trained here, so the same search finds the same.
    assert done.report.unseen == Change(before=len(rows), after=len(rows))
    assert done.report.settings["method"] == {"name": "mcmc", "settings": MCMC(budget=150).settings()}


def test_iterate(pair: Pair, data: Any, train: Seeds) -> None:
    seeds, unseen = data[1].select(slice(40)), data[1].select(slice(120, 160))
    done = repair.iterate(
        pair,
        seeds,
        train=train,
        rounds=2,
        method=Gradient(budget=5),
        unseen=unseen,
        test=unseen,
        recipe=replace(QUICK, epochs=5),
        train_limit=200,
        consistency=1.0,
        progress=False,
    )
    first = search(pair, seeds, method=Gradient(budget=5), progress=False).pictures
    last = search(done.pair, seeds, method=Gradient(budget=5), progress=False).pictures
    one, two = done.report.rounds
    assert one["found"]["before"] == first.counts()["effective"] > 20
    assert one["found"]["after"] == two["found"]["before"]
    assert two["found"]["after"] == last.counts()["effective"] < 0.6 * one["found"]["before"]
    assert (one["pictures"], two["pictures"]) == (200, 400)
    assert done.report.findings.before >= one["found"]["before"]
    assert done.report.findings.after == two["remaining"]
    assert [epoch.epoch for epoch in done.history] == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5]
    for when, stage in (("before", pair), ("after", done.pair)):
        found = search(stage, unseen, method=Gradient(budget=5), progress=False).pictures.counts()["effective"]
        assert getattr(done.report.unseen, when) == found
    assert done.report.settings["rounds"] == 2
    assert done.report.accuracy.after == (says(done.compressed.model, unseen.images) == unseen.labels).mean()
    # The second round goes on from the first: its masks are the first ones.
    assert ((done.compressed.model[3].weight == 0) == (pair.compressed.module[3].weight == 0)).all()


@pytest.mark.parametrize("classifier", ["mlp", "svm", "tree"])
def test_calibrate(pair: Pair, findings: Any, train: Seeds, data: Any, classifier: Any) -> None:
    other = search(pair, data[1].select(slice(120, 240)), method=Gradient(budget=8), progress=False)
    test = data[1].select(slice(300, 400))
    done = repair.calibrate(pair, findings, train=train, held_out=other, test=test, classifier=classifier)
    model = done.pair.compressed
    scores = model(test.images)
    assert scores.sum(1) == pytest.approx(1, abs=1e-5)
    assert done.report.accuracy.after == (scores.argmax(1) == test.labels).mean()
    assert done.report.accuracy.before == (says(pair.compressed.module, test.images) == test.labels).mean()
    for change, pictures in ((done.report.findings, findings.pictures), (done.report.unseen, other.pictures)):
        kept = pictures.original_label == pictures.seed_label
        assert change.before == (kept & (pictures.compressed_label != pictures.original_label)).sum()
        assert change.after == (kept & (model(pictures.images).argmax(1) != pictures.original_label)).sum()
    assert done.report.findings.after < 0.6 * done.report.findings.before
    if classifier != "tree":  # a tree learns by heart
        assert done.report.unseen.after < 0.9 * done.report.unseen.before
    assert done.report.unseen_seeds == 120
    again = repair.calibrate(pair, findings, train=train, held_out=other, classifier=classifier)
    assert (again.pair.compressed(test.images) == scores).all()


def test_calibration_holds_seeds_out(pair: Pair, findings: Any, train: Seeds) -> None:
    done = repair.calibrate(pair, findings, train=train, classifier="svm", seed=5)
    assert done.report.unseen_seeds == 30
    assert done.report.settings["pictures"] <= 90 * 8
    together = done.report.findings.before + done.report.unseen.before
    assert together == findings.pictures.counts()["effective"]
    assert done.compressed is None


def test_calibration_of_any_callable(findings: Any, pair: Pair, train: Seeds) -> None:
    """NumPy models, and scores that are not finite: those stay so, so that a search can tell."""
    original, compressed = (copy.deepcopy(model.module) for model in (pair.original, pair.compressed))

    def numpy_model(network: Any) -> Any:
        def run(x: Any) -> Any:
            with torch.no_grad():
                scores = network(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
            scores[x.max((1, 2, 3)) < -0.99] = np.nan
            return scores

        return Model(run, **INPUTS, layout="NHWC")

    own = Pair(numpy_model(original), numpy_model(compressed))
    black = np.zeros((1, 1, 28, 28), np.uint8)
    images = np.concatenate([train.images[:200], black])
    done = repair.calibrate(own, findings, train=Seeds(images), classifier="mlp")
    assert done.report.findings.after < 0.4 * done.report.findings.before
    scores = done.pair.compressed(np.concatenate([black, train.images[:3]]))
    assert np.isnan(scores[0]).all()
    assert np.isfinite(scores[1:]).all()
    found = search(done.pair, train.select(slice(20)), method=MCMC(budget=20), progress=False)
    assert found.summary.queries > 0


def test_report_as_json_and_text(tmp_path: Any, mended: Any) -> None:
    report = mended.report
    report.save(tmp_path)
    document = json.loads((tmp_path / "repair.json").read_text())
    assert list(document) == ["accuracy", "findings", "unseen", "fgsm", "settings", "rounds"]
    assert document["findings"] == {"before": report.findings.before, "after": report.findings.after}
    assert set(document["unseen"]) == {"before", "after", "seeds"}
    assert [set(entry) for entry in document["fgsm"]] == [{"epsilon", "before", "after"}] * 3
    assert RepairReport.load(tmp_path).to_json() == document
    assert [path.name for path in tmp_path.iterdir()] == ["repair.json"]
    bare = RepairReport(findings=Change(before=1731, after=636), accuracy=Change(before=0.9278, after=0.9282))
    assert RepairReport.from_json(bare.to_json()) == bare
    assert str(bare).splitlines() == [
        "                         before     after",
        "effective, repair set     1,731       636",
        "accuracy                 92.78%    92.82%",
    ]
    with pytest.raises(NotADirectoryError, match="must be the directory of a run"):
        bare.save(tmp_path / "none")


def test_errors_name_what_is_wrong(pair: Pair, findings: Any, train: Seeds, network: Any) -> None:
    def finetune(own: Any = pair, found: Any = findings, **options: Any) -> None:
        repair.finetune(own, found, **{"train": train, "recipe": QUICK, "progress": False, **options})

    untrainable = Model(lambda x: x[:, 0, 0, :10], **INPUTS)
    with pytest.raises(TypeError, match=r"cannot be trained.*repair\.calibrate"):
        finetune((pair.original, untrainable))
    with pytest.raises(TypeError, match="cannot be trained"):
        finetune((pair.original, Model(lambda x: x[:, 0, 0, :10], **INPUTS, twin=network)))
    frozen = copy.deepcopy(network).requires_grad_(False)
    with pytest.raises(TypeError, match=r"must have float32 parameters that require gradients .*got none"):
        finetune((pair.original, Model(frozen, **INPUTS)))
    half = Model(copy.deepcopy(network).half(), **INPUTS, dtype="float16")
    with pytest.raises(TypeError, match=r"got torch\.float16"):
        finetune((pair.original, half))
    drifting = Model(copy.deepcopy(network).train(), **INPUTS, allow_training=True)
    with pytest.raises(ValueError, match="the original model, 'Sequential', must be in eval mode"):
        finetune((drifting, pair.compressed))
    with pytest.raises(ValueError, match="the compressed model, 'Sequential', must be in eval mode"):
        repair.calibrate((pair.original, drifting), findings, train=train)
    soft = Model(nn.Sequential(copy.deepcopy(network), nn.Softmax(1)).eval(), **INPUTS, outputs="probabilities")
    with pytest.raises(ValueError, match="must return logits to be trained"):
        finetune((pair.original, soft))
    other = Model(network, mean=0.4, std=0.5)
    with pytest.raises(ValueError, match="consistency needs models that want the same input"):
        finetune((other, pair.compressed), consistency=1.0)
    with pytest.raises(ValueError, match=r"recipe\.average must be 0"):
        finetune(recipe=replace(QUICK, average=1))
    with pytest.raises(TypeError, match="restart needs a model made of a Compressed"):
        finetune((pair.original, Model(network, **INPUTS)), restart=True)
    none = findings.pictures.select(findings.pictures.invalid)
    with pytest.raises(ValueError, match="findings must hold pictures on which the original keeps"):
        finetune(found=none)
    with pytest.raises(ValueError, match="findings must hold pictures on which the original keeps"):
        repair.calibrate(pair, none, train=train)
    with pytest.raises(TypeError, match=r"findings must be compdx\.Findings or their pictures, got list"):
        finetune(found=[])
    with pytest.raises(ValueError, match="train must have labels, all known, got none"):
        finetune(train=Seeds(train.images))
    with pytest.raises(ValueError, match=r"holdout must have the shape of the pictures, \(1, 28, 28\)"):
        finetune(holdout=Seeds(np.zeros((1, 1, 8, 8), np.uint8), [0]))
    with pytest.raises(TypeError, match=r"test must be compdx\.Seeds with labels, got ndarray"):
        finetune(test=train.images)
    with pytest.raises(ValueError, match="method must be given"):
        finetune(found=findings.pictures, unseen=train)
    for name, value in (("patience", 0), ("train_limit", 0), ("picture_limit", -1)):
        with pytest.raises(ValueError, match=f"{name}: expected {value + 1}"):
            finetune(**{name: value})
    for name, value in (("consistency", -1.0), ("temperature", 0.0), ("tolerance", 2.0), ("label_weight", 0.0)):
        with pytest.raises(ValueError, match=f"{name} must be (a|in)"):
            finetune(**{name: value})
    with pytest.raises(TypeError, match="progress must be True, False or a callable, got str"):
        finetune(progress="loud")
    with pytest.raises(TypeError, match=r"recipe must be a compdx\.training\.Recipe, got dict"):
        finetune(recipe={"epochs": 3})
    with pytest.raises(ValueError, match=r"classifier must be one of 'mlp', 'svm', 'tree', got 'forest'"):
        repair.calibrate(pair, findings, train=train, classifier="forest")  # type: ignore[arg-type]


def test_measuring_joins_pictures_in_order(findings: Any) -> None:
    pictures = findings.pictures
    both = measuring.joined([pictures.select(slice(3)), pictures.select(slice(10, 12))])
    assert (both.images == pictures.images[[0, 1, 2, 10, 11]]).all()
    assert (both.compressed_label == pictures.compressed_label[[0, 1, 2, 10, 11]]).all()
    assert attacks.EPSILONS == (2, 8, 16)
