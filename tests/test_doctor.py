"""`doctor`: every hint is provoked by a pair that deserves it, and a healthy pair gets none."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from compdx.checkup import Checkup, Share, doctor
from compdx.model import Model, Pair
from compdx.seeds import Seeds

CLASSES = 10
RNG = np.random.default_rng(3)
# A class is a brightness of each channel, so that channels, inversion and normalisation all matter.
BRIGHTNESS = 20 + 22 * np.stack([np.arange(CLASSES), RNG.permutation(CLASSES), RNG.permutation(CLASSES)], axis=1)
PROTOTYPES = BRIGHTNESS[:, :, None, None] + RNG.integers(-20, 21, (CLASSES, 3, 8, 8))
LABELS = np.arange(300) % CLASSES
IMAGES = np.clip(PROTOTYPES[LABELS] + RNG.integers(-20, 21, (300, 3, 8, 8)), 0, 255).astype(np.uint8)
SEEDS = Seeds(IMAGES, LABELS)


def nearest(x: Any) -> Any:
    """Logits of a classifier that knows the prototypes; it wants ``[N, 3, 8, 8]`` in 0..1."""
    if x.shape[1:] != (3, 8, 8):
        msg = f"expected [N, 3, 8, 8], got {x.shape}"
        raise ValueError(msg)
    flat = x.reshape(len(x), -1)
    return -np.square(flat[:, None] - PROTOTYPES.reshape(CLASSES, -1) / np.float32(255)).sum(-1).astype(np.float32)


def coarse(x: Any) -> Any:
    """The compressed version: the same, with rounded logits."""
    return np.round(nearest(x))


def softmax(x: Any) -> Any:
    scores = np.exp(nearest(x))
    return scores / scores.sum(axis=1, keepdims=True)


def examine(original: Any, compressed: Any = coarse, seeds: Seeds = SEEDS, **settings: Any) -> Checkup:
    return doctor(Pair(original, compressed), seeds, **settings)


def hints(checkup: Checkup, severity: str, *parts: str) -> list[str]:
    """The texts of this severity that hold all parts."""
    texts = [hint.text for hint in checkup.problems if hint.severity == severity]
    return [text for text in texts if all(part in text for part in parts)]


def test_a_healthy_pair() -> None:
    checkup = examine(nearest)
    assert checkup.problems == []
    assert checkup.healthy
    assert checkup.original is not None
    assert checkup.original.accuracy == Share(300, 300)
    assert checkup.original.input_range == (0.0, 1.0)
    assert checkup.original.classes == CLASSES
    assert checkup.original.repeatable
    assert checkup.original.batch_changes == Share(0, 32)
    assert checkup.agreement == Share(300, 300)
    assert "no problems found" in str(checkup)
    assert "accuracy 100.0 % (95 %: 98.7..100.0; 300 of 300)" in str(checkup)


def test_wilson_interval() -> None:
    # Newcombe (Statistics in Medicine 1998), table I, method 3.
    for hits, total, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert Share(hits, total).interval == pytest.approx((low, high), abs=5e-5)
    assert all(math.isnan(limit) for limit in Share(0, 0).interval)


def test_flips_are_split_by_who_is_right() -> None:
    truth = np.array([0, 1, 2, 3, 4, -1] * 10)
    ours = np.array([0, 1, 2, 9, 9, 5] * 10)
    theirs = np.array([0, 8, 2, 3, 7, 6] * 10)
    images = np.repeat(np.arange(60, dtype=np.uint8)[:, None] * 4, 64, axis=1).reshape(60, 1, 8, 8)

    def answer(labels: Any) -> Callable[[Any], Any]:
        return lambda x: np.eye(CLASSES, dtype=np.float32)[labels[np.rint(x[:, 0, 0, 0] * 255 / 4).astype(int)]] * 5

    checkup = examine(answer(ours), answer(theirs), Seeds(images, truth))
    assert checkup.flips is not None
    assert checkup.flips.right_to_wrong == 10
    assert checkup.flips.wrong_to_right == 10
    assert checkup.flips.wrong_to_other_wrong == 10
    assert checkup.agreement == Share(20, 60)
    assert checkup.original is not None
    assert checkup.original.accuracy == Share(30, 50)


def test_without_labels_there_is_agreement_but_no_accuracy() -> None:
    for labels in (None, np.full(300, -1)):
        checkup = examine(nearest, seeds=Seeds(IMAGES, labels))
        assert not checkup.labelled
        assert checkup.flips is None
        assert checkup.original is not None
        assert checkup.original.accuracy is None
        assert checkup.agreement == Share(300, 300)
        assert checkup.problems == []


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (lambda x: nearest(x[:, ::-1]), "channels reversed"),
        (lambda x: nearest(1 - x), "inverted"),
        (lambda x: nearest(x / 255), "0..255"),
        (lambda x: nearest(x * 0.5 + 0.5), "mean=0.5, std=0.5"),
        (lambda x: nearest(x * np.float32([0.229, 0.224, 0.225])[:, None, None] + 0.45), "ImageNet"),
        (lambda x: nearest(x.reshape(len(x), 8, 8, 3).transpose(0, 3, 1, 2)), "layout='NHWC'"),
        (lambda x: np.roll(nearest(x), 1, axis=1), "class_offset=1"),
        (lambda x: np.roll(nearest(x), -1, axis=1), "start at 0"),
    ],
)
def test_a_wrong_declaration_is_named_with_its_figures(model: Any, name: str) -> None:
    checkup = examine(model, nearest)
    assert hints(checkup, "error", "original '<lambda>': accuracy", "as declared", name, "of 256")
    assert not hints(checkup, "error", "compressed 'nearest': accuracy")
    assert not checkup.healthy


def test_a_declaration_that_was_wrong_is_tried_away() -> None:
    for settings in ({"mean": 0.5, "std": 0.5}, {"bounds": (0, 255)}):
        checkup = examine(Model(nearest, name="net", **settings))
        assert hints(checkup, "error", "original 'net'", "inputs in 0..1")


def test_a_layout_that_fails() -> None:
    checkup = examine(Model(nearest, layout="NHWC", name="net"))
    assert hints(checkup, "error", "original 'net' fails", "(256, 8, 8, 3)", "layout='NHWC'", "accepts layout='NCHW'")
    assert checkup.original is None
    assert checkup.agreement is None
    assert checkup.compressed is not None
    assert "could not be measured" in str(checkup)


def test_a_model_that_fails_in_any_layout() -> None:
    def broken(_: Any) -> Any:
        msg = "out of order"
        raise RuntimeError(msg)

    checkup = examine(broken)
    [text] = hints(checkup, "error", "original 'broken' fails", "RuntimeError: out of order")
    assert "accepts" not in text


def test_different_numbers_of_classes() -> None:
    def background(x: Any) -> Any:
        return np.concatenate([np.full((len(x), 1), -1e6, np.float32), nearest(x)], axis=1)

    checkup = examine(nearest, background)
    assert hints(
        checkup, "error", "10 classes and the compressed model 11", "class_offset=1 for the compressed on 100.0 %"
    )
    assert hints(checkup, "error", "compressed 'background'", "class_offset=1 (a background class first)")
    assert examine(nearest, Model(background, class_offset=1)).healthy


def test_labels_beyond_the_classes() -> None:
    labels = LABELS.copy()
    labels[5] = CLASSES
    assert hints(examine(nearest, seeds=Seeds(IMAGES, labels)), "error", "the labels go up to 10", "has 10 classes")


def test_scores_that_are_not_what_was_declared() -> None:
    assert hints(examine(softmax), "warning", "'softmax' is declared to return logits", 'use outputs="probabilities"')
    wrong = Model(nearest, outputs="probabilities")
    assert hints(examine(wrong), "error", "declared to return probabilities", 'use outputs="logits"')
    assert examine(Model(softmax, outputs="probabilities")).problems == []


def test_scores_that_depend_on_the_batch() -> None:
    def centred(x: Any) -> Any:
        return nearest(x) - nearest(x).mean(axis=0)

    checkup = examine(centred)
    assert hints(checkup, "warning", "'centred'", "labels change", "batch-dependent")


def test_scores_that_do_not_repeat() -> None:
    rng = np.random.default_rng(0)
    checkup = examine(lambda x: nearest(x) + rng.normal(0, 1e-3, (len(x), 1)).astype(np.float32))
    assert hints(checkup, "warning", "other scores for the same batch", "run-dependent")


def test_training_mode() -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(192), torch.nn.Linear(192, CLASSES))
    pair = Pair(Model(module, allow_training=True), coarse)
    checkup = doctor(pair, SEEDS, limit=64)
    assert hints(checkup, "warning", "original 'Sequential' is in training mode", ".eval()")
    [text] = hints(checkup, "error", "original 'Sequential' fails", "more than 1 value per channel")
    assert "accepts" not in text


def test_a_constant_answer() -> None:
    constant = np.zeros(CLASSES, np.float32)
    constant[4] = 1e-3
    checkup = examine(lambda x: np.tile(constant, (len(x), 1)))
    assert hints(checkup, "warning", "answers 4 for 100.0 %")
    assert hints(checkup, "warning", "no better than chance")


def test_scores_that_are_not_finite() -> None:
    def fragile(x: Any) -> Any:
        scores = nearest(x)
        scores[x[:, 0, 0, 0] > 0.9] = np.nan
        return scores

    count = int((IMAGES[:, 0, 0, 0] > 0.9 * 255).sum())
    checkup = examine(fragile)
    assert hints(checkup, "warning", f"returns NaN or infinity on {count} of 300 seeds")
    json.dumps(checkup.to_dict(), allow_nan=False)


def test_a_pair_of_one_model() -> None:
    assert hints(examine(nearest, nearest), "warning", "bit for bit")


def test_a_compressed_model_that_lost_its_way() -> None:
    checkup = examine(nearest, lambda x: nearest(x)[:, [0, 2, 1, 4, 3, 6, 5, 8, 7, 9]])
    assert hints(checkup, "warning", "the accuracy falls from 100.0 %")
    checkup = examine(nearest, lambda x: nearest(x)[:, [0, 2, 1, 4, 3, 6, 5, 8, 7, 9]], Seeds(IMAGES))
    assert hints(checkup, "warning", "the models agree only on 20.0 %")


@pytest.mark.parametrize(("scale", "severity"), [(255, "error"), (16, "warning")])
def test_images_that_were_scaled(scale: int, severity: str) -> None:
    seeds = Seeds((IMAGES // scale).astype(np.uint8), LABELS)
    assert hints(examine(nearest, seeds=seeds), severity, f"0..{255 // scale} of 0..255")


def test_limit_spreads_over_sorted_seeds() -> None:
    order = np.argsort(LABELS, kind="stable")
    checkup = examine(nearest, seeds=Seeds(IMAGES[order], LABELS[order]), limit=50, batch_size=7)
    assert checkup.seeds == 50
    assert checkup.problems == []


def test_the_report_as_json() -> None:
    document = json.loads(json.dumps(examine(nearest).to_dict(), allow_nan=False))
    assert document["original"]["accuracy"]["hits"] == 300
    assert document["agreement"]["low"] == pytest.approx(0.98736, abs=1e-5)
    assert document["problems"] == []


@pytest.mark.parametrize("name", ["limit", "batch_size"])
def test_bad_settings(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a positive integer, got 0"):
        examine(nearest, **{name: 0})


def test_seeds_may_be_an_array() -> None:
    assert doctor(Pair(Model(nearest), Model(nearest)), IMAGES).seeds == len(IMAGES)
    with pytest.raises(TypeError, match=r"seeds must be compdx\.Seeds or a uint8 array .* got int"):
        doctor(Pair(Model(nearest), Model(nearest)), 3)
