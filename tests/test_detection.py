"""Detectors against what the specification says of them: trees over slices, and verdicts by disagreement."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.tree import DecisionTreeClassifier
from torch import nn

from compdx import Model, Seeds, slicing
from compdx.cli import app
from compdx.slicing.vectors import narrowed
from compdx.zoo import digits


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with digits.one_thread():
        yield


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(digits.train(epochs=3), mean=0.5, std=0.5, name="digits")


TRAIN, TEST = (seeds.select(slice(count)) for seeds, count in zip(digits.load(), (240, 90), strict=True))


def profile_of(model: Model, baseline: str = "dataset") -> slicing.Profile:
    return slicing.profile(model, TRAIN, baseline=baseline)


def labels_of(model: Model, images: Any) -> np.ndarray:
    return np.asarray(model(images)).argmax(1)


def noisy(images: np.ndarray) -> np.ndarray:
    """Images on which a tree and a network are likely to differ."""
    noise = np.random.default_rng(3).integers(-90, 91, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("baseline", "criterion", "theta"),
    [("dataset", "label", None), ("class", "label", None), ("dataset", "all", slicing.Theta())],
)
def test_flags_are_those_of_a_tree_on_the_slices(
    model: Model, baseline: str, criterion: str, theta: slicing.Theta | None
) -> None:
    """Learned and asked again here, from one slice of all images at once."""
    profile, layer = profile_of(model, baseline), "3"
    detector = slicing.detector(model, profile, TRAIN, criterion=criterion, theta=theta, seed=4)
    images = np.concatenate([TEST.images, noisy(TEST.images)])

    def vectors(rows: np.ndarray) -> np.ndarray:
        start = np.ones((len(rows), 10), np.int64) if criterion == "all" else labels_of(model, rows)
        found = slicing.slice(model, profile, rows, criterion=start, theta=theta, synapse_samples=[layer])
        return found.synapses[layer].samples.reshape(len(rows), -1)

    labels = labels_of(model, TRAIN.images)
    right = labels == TRAIN.labels
    assert 0 < right.sum() < len(right)
    tree = DecisionTreeClassifier(random_state=4).fit(vectors(TRAIN.images)[right], labels[right])
    classes = tree.predict(vectors(images))

    assert detector.samples == right.sum()
    found, model_labels = detector.vectors(images)
    np.testing.assert_array_equal(found, vectors(images))
    np.testing.assert_array_equal(model_labels, labels_of(model, images))
    np.testing.assert_array_equal(detector.predict(images), classes)
    np.testing.assert_array_equal(detector.flags(images), classes != labels_of(model, images))
    verdicts = detector.judge(images)
    # A grown tree is sure of what it says.
    np.testing.assert_array_equal(verdicts.trust, np.where(verdicts.flags, 0, 1))
    # On clean images the flag rate is the error of the tree against the model's predictions.
    clean = slice(len(TEST))
    agreed = tree.score(vectors(TEST.images), labels_of(model, images[clean]))
    assert detector.flags(TEST).mean() == pytest.approx(1 - agreed)


def test_inputs_may_come_as_seeds_pictures_or_model_inputs(model: Model) -> None:
    detector = slicing.detector(model, profile_of(model), TRAIN, criterion="all")
    flags = detector.flags(TEST)
    assert flags.any()
    np.testing.assert_array_equal(detector.flags(TEST.images), flags)
    np.testing.assert_array_equal(detector.flags(digits.prepare(TEST.images)), flags)
    np.testing.assert_array_equal(detector.flags(torch.from_numpy(digits.prepare(TEST.images))), flags)


@pytest.mark.parametrize("features", ["slice", "activations"])
def test_pieces_change_nothing(model: Model, features: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is looked at together, also where labels are wrong in some piece only."""
    profile = profile_of(model) if features == "slice" else None
    options: dict[str, Any] = {"criterion": "all"} if features == "slice" else {}
    whole = slicing.detector(model, profile, TRAIN, features=features, **options)
    monkeypatch.setattr("compdx.slicing.vectors.AT_ONCE", 1)
    pieces = slicing.detector(model, profile, TRAIN, features=features, batch=7, **options)
    assert pieces.samples == whole.samples
    np.testing.assert_array_equal(pieces.predict(TEST), whole.predict(TEST))
    start = np.arange(len(TEST)) % 10
    if features == "slice":
        for given in ({"criterion": start}, {"criterion": 3}, {"criterion": np.eye(10, dtype=int)[start]}):
            np.testing.assert_array_equal(pieces.vectors(TEST, **given)[0], whole.vectors(TEST, **given)[0])


def test_a_seed_fixes_the_classifier(model: Model) -> None:
    profile = profile_of(model)
    trust = {}
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        trust[name] = slicing.detector(model, profile, TRAIN, classifier="forest", criterion="all", seed=seed).judge(
            TEST
        )
    np.testing.assert_array_equal(trust["one"].trust, trust["same"].trust)
    assert (trust["one"].trust != trust["other"].trust).any()
    assert ((trust["one"].trust > 0) & (trust["one"].trust < 1)).any()


def test_activations_are_the_outputs_of_the_layer(model: Model) -> None:
    """The paper's FeatureMap, by a hook."""
    detector = slicing.detector(model, None, TRAIN, features="activations")
    seen: list[torch.Tensor] = []
    hook = model.module[3].register_forward_hook(lambda *given: seen.append(given[2]))
    with torch.no_grad():
        model.module(torch.from_numpy(digits.prepare(TEST.images)))
    hook.remove()
    np.testing.assert_allclose(detector.vectors(TEST)[0], seen[0].flatten(1).numpy(), rtol=1e-4, atol=1e-5)
    assert detector.vectors(TEST)[0].dtype == np.float32
    other = slicing.detector(model, None, TRAIN, features="activations", layer="5")  # no weights, but outputs
    assert other.vectors(TEST)[0].shape == (len(TEST), 400)
    with pytest.raises(ValueError, match="the vectors are activations"):
        detector.vectors(TEST, criterion=1)


def test_a_slice_from_one_output_repeats_the_label(model: Model) -> None:
    """Only the row of that output decides in the last layer, so the tree reads where the slice was started."""
    detector = slicing.detector(model, profile_of(model), TRAIN, layer="9")
    labels = labels_of(model, TEST.images)
    assert detector.flags(TEST).mean() < 0.05
    wrong = (labels + 1 + np.random.default_rng(0).integers(0, 9, len(labels))) % 10
    verdicts = detector.classify(*detector.vectors(TEST, criterion=wrong))
    np.testing.assert_array_equal(verdicts.labels, labels)
    assert verdicts.flags.mean() > 0.9


def test_vectors_are_stored_as_small_as_they_are() -> None:
    for extreme, kind in ((127, "int8"), (128, "int16"), (32767, "int16"), (32768, "int32"), (2**24, "int32")):
        array = np.array([[0, extreme]], np.int32)
        assert narrowed(array).dtype == kind
        np.testing.assert_array_equal(narrowed(array), array)
        np.testing.assert_array_equal(narrowed(-array), -array)
    assert narrowed(np.array([[-128]], np.int32)).dtype == np.int8
    assert narrowed(np.array([[-129]], np.int32)).dtype == np.int16


def test_large_sums_are_not_wrapped() -> None:
    """A weight that is used at 400 positions contributes up to 400 times."""
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(400, 2, bias=False)).eval()
    network[0].weight.data.fill_(1.0)
    network[2].weight.data = torch.stack([torch.ones(400), -torch.ones(400)])
    images = np.stack([np.full((1, 20, 20), level, np.uint8) for level in (10, 30, 200, 250)])
    model = Model(network, mean=0.5, std=0.25)
    seeds = Seeds(images, [1, 1, 0, 0])
    detector = slicing.detector(model, slicing.profile(model, seeds), seeds)
    vectors, labels = detector.vectors(seeds)
    assert labels.tolist() == [1, 1, 0, 0]
    assert set(abs(vectors).ravel().tolist()) == {400}


def test_repr_and_settings(model: Model) -> None:
    detector = slicing.detector(model, profile_of(model), TRAIN, theta=slicing.Theta(), criterion="all", seed=9)
    settings = json.loads(json.dumps(detector.settings()))
    assert settings == {
        **{"model": "digits", "features": "slice", "layer": "3", "baseline": "dataset", "criterion": "all"},
        **{"theta": {"epsilon": 0.2, "beta": 0.01}, "classifier": "tree", "images": detector.samples, "seed": 9},
    }
    assert repr(detector).startswith("<Detector: tree on slices of '3' of model 'digits', 2")


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"layer": "2"}, ValueError, "layer must be one of '0', '3', '7', '9', got '2'"),
        ({"features": "pixels"}, ValueError, "features must be 'slice' or 'activations', got 'pixels'"),
        ({"criterion": 3}, ValueError, "criterion must be 'label' or 'all', got 3"),
        ({"classifier": "svm"}, ValueError, "classifier must be 'tree' or 'forest', got 'svm'"),
        ({"seed": -1}, ValueError, "seed"),
        ({"batch": 0}, ValueError, "batch"),
        ({"train": TRAIN.images}, TypeError, "train must be compdx.Seeds with labels, got ndarray"),
        ({"train": Seeds(TRAIN.images)}, ValueError, "train must have labels"),
        ({"train": Seeds(TRAIN.images, np.full(len(TRAIN), -1))}, ValueError, "labels rightly, got none"),
        ({"profile": None}, TypeError, "profile must be a compdx.slicing.Profile"),
        ({"features": "activations"}, ValueError, "takes no profile"),
        ({"features": "activations", "profile": None, "criterion": "all"}, ValueError, "takes no profile"),
        ({"theta": 0.2}, TypeError, "theta must be"),
    ],
)
def test_errors_name_the_argument(model: Model, changes: dict[str, Any], error: type[Exception], text: str) -> None:
    given = {"profile": profile_of(model), "train": TRAIN} | changes
    with pytest.raises(error, match=text):
        slicing.detector(model, given.pop("profile"), given.pop("train"), **given)


def test_layers_that_cannot_be_told_by_sample() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.layer(self.layer(x.flatten(1))))

    model = Model(Twice().eval())
    seeds = Seeds(np.random.default_rng(0).integers(0, 256, (8, 1, 2, 2), dtype=np.uint8), np.zeros(8, np.int64))
    profile = slicing.profile(model, seeds)
    with pytest.raises(ValueError, match="has no convolution; give layer=, one of 'layer', 'last'"):
        slicing.detector(model, profile, seeds)
    with pytest.raises(ValueError, match="'layer' runs more than once"):
        slicing.detector(model, profile, seeds, layer="layer")


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in this process."""
    kept = os.dup(1)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out, contextlib.redirect_stderr(io.StringIO()) as err:
        os.dup2(out.fileno(), 1)
        try:
            code = app([*arguments], prog_name="compdx", standalone_mode=False)
        finally:
            os.dup2(kept, 1)
            os.close(kept)
        out.seek(0)
        return code, out.read(), err.getvalue()


def test_detect_on_the_command_line(model: Model, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trained_digits.py").write_text(
        "import torch\nfrom compdx import Model\nfrom compdx.zoo import digits\n"
        "def make():\n    net = digits.network()\n    net.load_state_dict(torch.load('net.pt', weights_only=True))\n"
        "    return Model(net.eval(), mean=0.5, std=0.5)\n"
    )
    torch.save(model.module.state_dict(), tmp_path / "net.pt")
    images = noisy(TEST.images)
    np.savez(tmp_path / "images.npz", images=images)
    monkeypatch.chdir(tmp_path)
    arguments = ("detect", "--model", "trained_digits:make", "--data", "digits", "--seeds", "images.npz")
    arguments = (*arguments, "--images", "240", "--clean", "90")
    # Evenly spread over the data set, which may be in the order of its classes.
    train, clean = (
        part.select(np.linspace(0, len(part) - 1, n).astype(int))
        for part, n in zip(digits.load(), (240, 90), strict=True)
    )
    detector = slicing.detector(model, slicing.profile(model, train), train, criterion="all")
    verdicts = detector.judge(images)
    code, out, err = run(*arguments, "--json")
    assert code == 1, err
    told = json.loads(out)
    assert [row["seed_index"] for row in told["flagged"]] == np.flatnonzero(verdicts.flags).tolist()
    assert [row["class"] for row in told["flagged"]] == verdicts.classes[verdicts.flags].tolist()
    right = detector.judge(clean).labels == clean.labels
    assert told["clean_flagged"]["hits"] == int((detector.flags(clean) & right).sum())
    assert told["clean_flagged"]["total"] == int(right.sum())
    assert (told["images"], told["detector"]["images"]) == (90, detector.samples)
    code, out, err = run(*arguments, "--limit", "40")
    assert out.startswith(f"{int(verdicts.flags[:40].sum())} of 40 images flagged\n"), err
    code, out, err = run(*arguments, "--features", "activations", "--quiet")
    assert (code, out) == (1, ""), err
    code, out, err = run(*arguments, "--layer", "nowhere")
    assert code == 2
    assert "compdx detect: error: layer must be one of" in err
