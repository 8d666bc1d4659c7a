"""Environments: the notation, conversions with the same weights, and comparisons against what is known of them."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import compdx
from compdx import Model, Pair, environments
from compdx.environments import Environment, NotMeasured
from compdx.environments.child import Child, ChildError
from compdx.environments.difference import margins_of, measure
from stubs import some_images

SHAPE = (1, 8, 8)
IMAGES = some_images(40, SHAPE)


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(64, 6)).eval()


@pytest.fixture(scope="module")
def model(network: nn.Module) -> Model:
    return Model(network, mean=0.4, std=0.3, name="tiny")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where conversions of the network lie: they are made once for all tests."""
    return tmp_path_factory.mktemp("files")


class Table:
    """A model that knows its scores by the first pixel of an image, and can be told to fail."""

    def __init__(self, scores: np.ndarray, offset: int = 0) -> None:
        self.scores = np.asarray(scores, np.float32)
        if offset:
            self.scores = np.concatenate([np.full((len(scores), offset), 99, np.float32), self.scores], 1)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.scores[np.rint(x[:, 0, 0, 0] * 255).astype(int)]


def numbered(count: int) -> np.ndarray:
    images = np.zeros((count, 1, 2, 2), np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return images


def table(scores: np.ndarray, name: str, **settings) -> Model:
    return Model(Table(scores, settings.get("class_offset", 0)), name=name, **settings)


# The notation


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("torch", {"runtime": "torch"}),
        ("onnxruntime:all:threads=1", {"runtime": "onnxruntime", "level": "all", "threads": 1}),
        ("torch:inductor", {"runtime": "torch", "level": "inductor"}),
        ("openvino:bfloat16:batch=8", {"runtime": "openvino", "precision": "bfloat16", "batch": 8}),
        ("tvm:0", {"runtime": "tvm", "level": "0"}),
        ("torch:cuda1", {"runtime": "torch", "device": "cuda:1"}),
        ("torch:isa=avx2", {"runtime": "torch", "isa": "avx2"}),
        (
            "torch:eager:cuda0:float16:threads=2:batch=4",
            {
                "runtime": "torch",
                "level": "eager",
                "device": "cuda:0",
                "precision": "float16",
                "threads": 2,
                "batch": 4,
            },
        ),
    ],
)
def test_notation_round_trip(text, settings):
    environment = Environment(**settings)
    assert Environment.parse(text) == environment
    assert str(environment) == text
    assert Environment.of(environment) is environment
    assert json.loads(json.dumps(environment.to_json())) == environment.to_json()


@pytest.mark.parametrize(
    ("text", "same"),
    [
        (" OpenVINO : f32 : threads=1 ", "openvino:threads=1"),
        ("torch:bf16", "torch:bfloat16"),
        ("torch:cuda", "torch:cuda0"),
        ("onnxruntime:threads=2:all", "onnxruntime:all:threads=2"),
        ("onnxruntime:level=basic:cpu", "onnxruntime:basic"),
    ],
)
def test_notation_becomes_canonical(text, same):
    assert str(Environment.parse(text)) == same


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tensorrt", "runtime: expected one of .*'onnxruntime'.*, got 'tensorrt'"),
        ("onnxruntime:inductor", "'inductor' is none of what onnxruntime knows: disable_all"),
        ("onnxruntime:all:basic", "level is given twice, as all and as basic"),
        ("onnxruntime:bf16", "precision of onnxruntime: expected one of 'float32', got 'bfloat16'"),
        ("openvino:cuda", "kind of device of openvino: expected one of 'cpu', got 'cuda'"),
        ("torch:threads=two", "threads: expected a number, got 'two'"),
        ("torch:threads=0", r"threads: expected 1\.\.4096, got 0"),
        ("onnxruntime:isa=avx2", "isa: expected None"),
        ("torch:isa=mmx", "isa: expected one of"),
    ],
)
def test_notation_that_is_none(text, message):
    with pytest.raises(ValueError, match=message):
        Environment.parse(text)


def test_an_environment_is_checked():
    with pytest.raises(TypeError, match="threads: expected an integer, got str"):
        Environment(runtime="torch", threads="2")
    with pytest.raises(TypeError, match="text: expected the notation"):
        Environment.parse(3)
    with pytest.raises(TypeError):
        Environment("torch")


# Comparisons of models whose scores are known


def test_labels_that_differ_are_told_apart():
    a = np.array([[3, 1, 0], [3, 1, 0], [1, 3, 0], [1, 3, 0], [2, 2, 0], [5, 4.9995, 0]], np.float32)
    b = np.array([[1, 3, 0], [3, 1, 0], [3, 1, 0], [0, 1, 3], [0, 3, 0], [5, 5.5, 0]], np.float32)
    found = environments.compare(
        [table(a, "a"), table(b, "b")], numbered(6), labels=[0, 0, 0, 0, 0, -1], batch=4, repeats=0, progress=False
    )
    (pair,) = found.pairs
    assert pair.rows.tolist() == [0, 2, 3, 4, 5]
    assert pair.labels.tolist() == [[0, 1], [1, 0], [1, 2], [0, 1], [0, 1]]
    # Right to wrong, wrong to right, wrong to another wrong one, two equal scores, and one whose class is unknown.
    assert pair.flips == dict.fromkeys(environments.difference.FLIPS, 1)
    assert pair.margins == pytest.approx([2, 2, 2, 0, 0.0005], abs=1e-6)
    assert (pair.images, pair.differing, pair.surprising, pair.close) == (6, 5, 3, 2)
    assert pair.share == pytest.approx(5 / 6)
    assert pair.interval == environments.wilson(5, 6)
    assert pair.accuracy == pytest.approx((3 / 5, 2 / 5))
    assert [one.accuracy for one in found.environments] == pytest.approx([3 / 5, 2 / 5])
    assert found.matrix().tolist() == [[0, 5], [5, 0]]
    assert found.matrix("surprising").tolist() == [[0, 3], [3, 0]]
    assert found.found
    assert found.complete


def test_a_variant_against_itself_is_all_zeros(model):
    found = environments.compare([model, model], IMAGES, batch=16, repeats=3, progress=False)
    assert found.names == ("tiny", "tiny (2)")
    row = found.rows()[0]
    assert [row[key] for key in ("differing", "surprising", "share", "max_abs", "rmse", "kl", "confidence")] == [0] * 7
    assert [row[key] for key in ("same", "jaccard", "footrule", "rbo", "tau", "cosine")] == [1, 1, 100, 1, 1, 1]
    assert row["rbo_truncated"] == pytest.approx(0.67232)
    assert row["sqnr_db"] == math.inf
    assert row["share_low"] == 0
    assert 0 < row["share_high"] < 0.1
    assert not found.found
    assert all(not len(way.rows) for one in found.environments for way in one.stability.values())


def test_label_spaces_meet_by_their_declared_offset():
    """A model of 1001 classes with a background class equals that of 1000; whatever its file or name is called."""
    scores = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    plain, shifted = table(scores, "keras_to_torch"), table(scores, "tf", class_offset=1)
    found = environments.compare([plain, shifted], numbered(8), repeats=0, progress=False)
    assert found.pairs[0].differing == 0
    assert found.pairs[0].drift.max_abs == 0
    undeclared = Model(Table(scores, 1), name="undeclared")
    refused = environments.compare([plain, undeclared], numbered(8), repeats=0, progress=False).pairs[0]
    assert not refused.measured
    assert refused.reason == "keras_to_torch scores 5 classes and undeclared 6; class_offset drops a background class"


def test_exchanged_classes_change_nothing():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 30, 7)).astype(np.float32)
    order = rng.permutation(7)
    rows = [
        environments.compare([table(x, "a"), table(y, "b")], numbered(30), repeats=0, progress=False).rows()[0]
        for x, y in ((a, b), (a[:, order], b[:, order]))
    ]
    assert rows[0] == pytest.approx(rows[1])
    assert rows[0]["differing"] > 0


def test_measures_are_means_over_the_images():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 50, 8))
    rows = np.arange(50)
    chunks = [(rows[k : k + 7], a[k : k + 7], b[k : k + 7]) for k in range(0, 50, 7)]
    found = measure(("a", "b"), ("logits", "logits"), chunks, labels=None, top=3, margin=0.1)
    first, second = (environments.ranking.top(side, 3) for side in (a, b))
    for name, function in (("jaccard", environments.ranking.jaccard), ("footrule", environments.ranking.footrule)):
        assert getattr(found.overlap, name) == pytest.approx(function(first, second).mean())
    for name, extrapolated in (("rbo", True), ("rbo_truncated", False)):
        expected = environments.ranking.rank_biased_overlap(first, second, extrapolated=extrapolated).mean()
        assert getattr(found.overlap, name) == pytest.approx(expected)
    assert found.overlap.tau == pytest.approx(environments.ranking.kendall_tau(first, second).mean())
    assert found.overlap.same == (first == second).all(1).mean()
    ordered = np.sort(a, axis=1)
    assert margins_of(a) == pytest.approx(ordered[:, -1] - ordered[:, -2])
    assert found.close == (ordered[:, -1] - ordered[:, -2] < 0.1).sum()
    assert found.flips["unlabelled"] == found.differing


def test_scores_that_are_not_finite_are_left_out_and_counted():
    a = np.array([[1, 2], [2, 1], [1, 2]], np.float32)
    b = np.array([[2, 1], [np.nan, 1], [1, 2]], np.float32)
    found = environments.compare([table(a, "a"), table(b, "b")], numbered(3), repeats=0, progress=False)
    pair = found.pairs[0]
    assert (pair.images, pair.non_finite, pair.rows.tolist()) == (2, 1, [0])
    assert [one.non_finite for one in found.environments] == [0, 1]
    assert "b: 1 of 3 images left out: a score is NaN or infinite" in str(found)
    # Where nothing differs on the others, it is not known that nothing differs.
    b = np.where(np.isnan(b), b, a)
    same = environments.compare([table(a, "a"), table(b, "b")], numbered(3), repeats=0, progress=False)
    assert not same.found
    assert not same.complete
    nothing = table(np.full((3, 2), np.inf, np.float32), "inf")
    refused = environments.compare([table(a, "a"), nothing], numbered(3), repeats=0, progress=False).pairs[0]
    assert refused.reason == "none of 3 images has finite scores in both"


def test_flips_within_one_environment_are_classes_of_their_own():
    """A model that looks at its batch: its size, the place in it, how often it was asked."""

    class Moody:
        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, x: np.ndarray) -> np.ndarray:
            self.calls += 1
            scores = np.tile(np.float32([0, 1]), (len(x), 1))
            number = np.rint(x[:, 0, 0, 0] * 255).astype(int)
            if len(x) == 1:
                scores[number == 1] = [2, 1]  # alone
            elif len(x) == 2:
                scores[number == 2] = [3, 1]  # in a batch of half the size
            elif number[0] != 0:
                scores[number == 3] = [4, 1]  # at another place
            elif self.calls > 1:
                scores[number == 0] = [5, 1]  # once more
            return scores

    found = environments.compare(
        [Model(Moody(), name="moody"), table(np.tile([0, 1], (4, 1)), "b")],
        numbered(4),
        batch=4,
        rechecked=4,
        repeats=0,
        progress=False,
    )
    stability = found.environments[0].stability
    assert {way: one.rows.tolist() for way, one in stability.items()} == {
        "again": [0],
        "position": [3],
        "batch": [2],
        "alone": [1],
    }
    assert [stability[way].max_abs for way in ("alone", "batch", "position", "again")] == [2, 3, 4, 5]
    assert [stability[way].batch for way in ("again", "position", "batch", "alone")] == [4, 4, 2, 1]
    assert found.pairs[0].differing == 0
    assert found.found
    assert "moody: 1 of 4 labels change: a batch of one" in str(found)


@pytest.mark.parametrize(("count", "batch", "moved"), [(6, 16, 6), (5, 4, 4), (8, 4, 8), (5, 1, None), (1, 4, None)])
def test_every_image_that_can_be_moved_is_moved(count, batch, moved):
    """Also in a call that is not full: all labels of a model change that come from the half in which an image is."""
    half = min(count, batch) / 2

    def halves(x: np.ndarray) -> np.ndarray:
        return np.stack([np.full(len(x), half - 0.5), np.arange(len(x))], 1).astype(np.float32)

    models = [Model(halves, name="place"), table(np.tile([0, 1], (count, 1)), "b")]
    found = environments.compare(models, numbered(count), batch=batch, rechecked=count, repeats=0, progress=False)
    stability = found.environments[0].stability
    if moved is None:
        assert "position" not in stability
    else:
        assert stability["position"].images == moved
        assert stability["position"].rows.tolist() == list(range(moved))


def test_scores_that_are_finite_one_way_only_are_not_stable():
    def alone(x: np.ndarray) -> np.ndarray:
        scores = np.tile(np.float32([0, 1]), (len(x), 1))
        number = np.rint(x[:, 0, 0, 0] * 255)
        scores[number == 2] = np.nan
        return scores * np.float32(np.nan) if len(x) == 1 else scores

    models = [Model(alone, name="alone"), table(np.tile([0, 1], (4, 1)), "b")]
    found = environments.compare(models, numbered(4), batch=4, rechecked=4, repeats=0, progress=False)
    stability = found.environments[0].stability
    assert stability["alone"].rows.tolist() == [0, 1, 3]  # 2 has no label in either way
    assert not len(stability["batch"].rows)
    assert found.found


def test_why_a_pair_was_not_measured_is_said(tmp_path):
    models = [table(np.tile([0, 1], (3, 1)), "two"), table(np.tile([0, 1, 2], (3, 1)), "three")]
    found = environments.compare(models, numbered(3), repeats=0, progress=False)
    (one,) = found.unmeasured
    assert one[0] == "two – three"
    assert "class_offset" in one[1]
    assert f"two – three: not measured: {one[1]}" in str(found)
    pytest.importorskip("jinja2")
    found.save(tmp_path)
    assert "class_offset" in compdx.report.write(tmp_path).read_text()


def test_a_page_of_labels_that_change_within_an_environment(tmp_path):
    pytest.importorskip("jinja2")

    def alone(x: np.ndarray) -> np.ndarray:
        return np.tile(np.float32([0, 1] if len(x) > 1 else [1, 0]), (len(x), 1))

    models = [Model(alone, name="alone"), table(np.tile([0, 1], (4, 1)), "b")]
    found = environments.compare(models, numbered(4), batch=4, rechecked=4, repeats=0, progress=False)
    found.save(tmp_path)
    page = compdx.report.write(tmp_path).read_text()
    assert "Labels change within an environment" in page
    assert "No label differs" not in page


def test_a_model_that_fails_ends_its_own_search_alone():
    class Tired:
        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, x: np.ndarray) -> np.ndarray:
            self.calls += 1
            if self.calls > 2:
                msg = "tired"
                raise RuntimeError(msg)
            return np.tile(np.float32([0, 1]), (len(x), 1))

    same = table(np.tile([0, 1], (256, 1)), "same")
    models = [same, Model(Tired(), name="tired"), table(np.tile([0, 1], (256, 1)), "too")]
    found = environments.compare(models, numbered(5), batch=8, rechecked=0, repeats=0, progress=False)
    tired, too = environments.search(found, numbered(5), budget=20, progress=False).searches
    assert tired.reason == "the search ended: tired"
    assert too.reason is None
    with pytest.raises(ValueError, match="seed"):
        environments.search(found, numbered(5), seed=-1, progress=False)


def test_an_environment_that_fails_is_not_measured_and_never_equal():
    def broken(x: np.ndarray) -> np.ndarray:
        if np.rint(x[:, 0, 0, 0] * 255).max() > 20:
            msg = "out of luck"
            raise MemoryError(msg)
        return np.tile(np.float32([0, 1]), (len(x), 1))

    same = table(np.tile([0, 1], (40, 1)), "same")
    found = environments.compare(
        [same, Model(broken, name="broken"), table(np.tile([0, 1], (40, 1)), "too")],
        numbered(40),
        batch=8,
        repeats=0,
        progress=False,
    )
    assert found.environments[1].reason == "at image 16, 8 at a time: MemoryError: out of luck"
    matrix = found.matrix()
    assert np.isnan(matrix[1]).all()
    assert matrix[0, 2] == 0
    assert [pair.measured for pair in found.pairs] == [False, True, False]
    assert not found.complete
    assert not found.found
    assert "broken: not measured: at image 16" in str(found)


def test_a_missing_runtime_is_not_measured(model, tmp_path, monkeypatch):
    for name in ("onnxruntime", "openvino", "tvm"):
        monkeypatch.setitem(sys.modules, name, None)
    wanted = ["torch", "onnxruntime", "openvino", "tvm", "keras", "litert"]
    made = environments.variants(model, wanted, tmp_path, shape=SHAPE)
    found = environments.compare(made, IMAGES, repeats=0, progress=False)
    reasons = [one.reason for one in found.environments]
    assert reasons[0] is None
    assert [next(name for name in wanted[1:] if name in str(reason)) for reason in reasons[1:]] == wanted[1:]
    assert np.isnan(found.matrix()[0, 1:]).all()
    with pytest.raises(NotMeasured, match="no converter to keras"):
        _ = made[4].model


def test_times_are_compared_with_both_signs(model):
    found = environments.compare([model, model], IMAGES, batch=8, rechecked=0, repeats=12, progress=False)
    speed, (a, b) = found.pairs[0].speed, (one.latency for one in found.environments)
    assert len(a.seconds) == len(b.seconds) == 12
    assert min(a.seconds) > 0
    assert a.quartiles[0] <= a.median <= a.quartiles[1]
    assert speed.time_change == pytest.approx(100 * (b.median - a.median) / a.median)
    assert speed.speed_gain == pytest.approx(a.median / b.median - 1)
    assert (speed.time_change > 0) == (speed.speed_gain < 0) or speed.time_change == 0
    assert speed.anova == environments.anova([s / 8 for s in a.seconds], [s / 8 for s in b.seconds])


def test_without_scipy_there_is_no_anova(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    speed = environments.compare([model, model], IMAGES, rechecked=0, repeats=2, progress=False).pairs[0].speed
    assert speed.anova is None
    assert speed.reason == 'an analysis of variance needs scipy: pip install "compdx[compare]"'


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"batch": 0}, ValueError, r"batch: expected 1\.\.4096, got 0"),
        ({"margin": -1.0}, ValueError, "margin must be a finite number of at least 0, got -1.0"),
        ({"labels": [0, 1]}, ValueError, r"labels: expected one class an image, shape \[40\], got \[2\]"),
        ({"labels": [-2] * 40}, ValueError, "labels: expected classes, or -1 where unknown, got -2"),
        ({"top": 0}, ValueError, "top: expected 1"),
        ({"progress": 3}, TypeError, "progress must be True, False or a callable"),
    ],
)
def test_compare_checks_its_arguments(model, change, error, message):
    with pytest.raises(error, match=message):
        environments.compare([model, model], IMAGES, **{"progress": False, **change})


def test_compare_needs_two(model):
    with pytest.raises(ValueError, match="at least two environments, got 1"):
        environments.compare([model], IMAGES)
    with pytest.raises(TypeError, match=r"expected a compdx\.environments\.Variant or a compdx\.Model, got str"):
        environments.compare(["torch", "onnxruntime"], IMAGES)


# On disk


def test_saved_and_loaded(model, tmp_path):
    other = table(np.zeros((256, 6)), "other")
    found = environments.compare(
        Pair(model, other), IMAGES, labels=np.arange(40) % 6, batch=16, repeats=2, directory=tmp_path, progress=False
    )
    loaded = environments.Comparison.load(tmp_path)
    assert loaded.to_json() == found.to_json()
    assert str(loaded) == str(found)
    assert loaded.rows() == found.rows()
    with pytest.raises(KeyError, match="this comparison was loaded"):
        loaded.pair("tiny", "other")
    with pytest.raises(KeyError, match="there is one of 'tiny' and 'other'"):
        loaded.difference("other", "tiny")
    with pytest.raises(FileNotFoundError, match="holds no finished comparison"):
        environments.Comparison.load(tmp_path / "none")
    (tmp_path / "comparison.json").write_text('{"format": 1}')
    with pytest.raises(ValueError, match="not a comparison"):
        environments.Comparison.load(tmp_path)


def test_a_killed_comparison_continues(tmp_path):
    """A process that dies in the middle; what it had committed is not asked again, and the result is that of one go."""
    script = textwrap.dedent(
        """
        import os, signal, sys
        import numpy as np
        from compdx import Model, environments
        limit, asked = int(sys.argv[2]), 0
        rng = np.random.default_rng(0)
        weights = rng.normal(size=(2, 16, 5)).astype(np.float32)
        def scorer(k):
            def score(x):
                global asked
                asked += 1
                if asked == limit:
                    os.kill(os.getpid(), signal.SIGKILL)
                return x.reshape(len(x), -1) @ weights[k]
            return Model(score, name=f"m{k}")
        images = rng.integers(0, 256, (100, 1, 4, 4), dtype=np.uint8)
        found = environments.compare([scorer(0), scorer(1)], images, batch=8, rechecked=16, repeats=0,
                                     directory=sys.argv[1], progress=False)
        print(asked)
        """
    )
    # The scores of a product depend on the batch, which is the same; one thread keeps it the same for any load.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

    def run(directory: Path, limit: int) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", script, str(directory), str(limit)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    whole = run(tmp_path / "whole", -1)
    assert whole.returncode == 0, whole.stderr
    killed = run(tmp_path / "killed", 40)  # among the second environment's scores
    assert killed.returncode == -signal.SIGKILL
    log = tmp_path / "killed" / "progress.jsonl"
    with log.open("a") as file:
        file.write('{"pass": "01-m1.scores", "ro')  # a line that was being written
    resumed = run(tmp_path / "killed", -1)
    assert resumed.returncode == 0, resumed.stderr
    # 39 calls were answered; the two models' first calls are asked once more, for what they write into their input.
    assert int(resumed.stdout) == int(whole.stdout) - 39
    first, second = (environments.Comparison.load(tmp_path / name).to_json() for name in ("whole", "killed"))
    assert first == second
    for path in sorted((tmp_path / "whole" / "scores").iterdir()):
        assert path.read_bytes() == (tmp_path / "killed" / "scores" / path.name).read_bytes()


def test_a_directory_is_continued_only_with_the_same(model, tmp_path):
    arguments = {"repeats": 0, "rechecked": 0, "directory": tmp_path, "progress": False}
    environments.compare([model, model], IMAGES, **arguments)
    environments.compare([model, model], IMAGES, **arguments)
    with pytest.raises(FileExistsError, match="holds a comparison already"):
        environments.compare([model, model], IMAGES, **arguments, resume=False)
    with pytest.raises(ValueError, match="with other settings: batch"):
        environments.compare([model, model], IMAGES, **arguments, batch=7)
    with pytest.raises(ValueError, match="with other settings: images"):
        environments.compare([model, model], IMAGES[::-1].copy(), **arguments)
    torch.manual_seed(1)
    other = Model(nn.Sequential(nn.Flatten(), nn.Linear(64, 6)).eval(), mean=0.4, std=0.3, name="tiny")
    with pytest.raises(ValueError, match="scores of another 'tiny'"):
        environments.compare([other, other], IMAGES, **arguments)
    same_weights = copy.deepcopy(model.module)
    same_weights[2] = nn.Sigmoid().eval()
    other = Model(same_weights, mean=0.4, std=0.3, name="tiny")
    assert other.describe()["weights_sha256"] == model.describe()["weights_sha256"]
    with pytest.raises(ValueError, match="scores of another 'tiny'"):
        environments.compare([other, other], IMAGES, **arguments)


def test_a_full_disk_is_not_an_environment_that_fails(model, tmp_path, monkeypatch):
    def commit(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("compdx.environments.recording.Recording.commit", commit)
    with pytest.raises(OSError, match="No space left"):
        environments.compare([model, model], IMAGES, directory=tmp_path, progress=False)


def test_progress_counts_all_images_of_all_ways(model):
    seen = []
    environments.compare(
        [model, model],
        IMAGES,
        batch=16,
        rechecked=16,
        repeats=0,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (2 * (40 + 4 * 16), 2 * (40 + 4 * 16))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


# Conversions


TORCH = ["torch", "torch:aot_eager", "torch:threads=1"]
ONNX = [f"onnxruntime:{level}" for level in compdx.runtimes.RUNTIMES["onnxruntime"].levels]


@pytest.mark.parametrize(
    "others",
    [
        pytest.param(TORCH[1:], id="torch"),
        pytest.param(ONNX, id="onnxruntime", marks=needs("onnxruntime", "onnxscript")),
        pytest.param(["openvino", "openvino:throughput:threads=1"], id="openvino", marks=needs("openvino")),
        pytest.param(["tvm:0", "tvm:3"], id="tvm", marks=[needs("tvm"), pytest.mark.slow]),
        pytest.param(["torch:inductor"], id="inductor", marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of torch.compile, about itself
def test_the_same_weights_give_the_same_labels(model, files, others):
    made = environments.variants(model, ["torch", *others], files, shape=SHAPE)
    found = environments.compare(made, IMAGES, batch=16, rechecked=16, repeats=0, progress=False)
    assert [one.reason for one in found.environments] == [None] * len(made)
    for pair in found.pairs:
        assert pair.surprising == 0
        assert pair.drift.max_abs < 1e-4
        assert not any(len(way.rows) for one in found.environments for way in one.stability.values())
    for variant in made[1:]:
        if variant.path is not None:
            assert variant.chain[-1].sha256 == environments.conversions.sha256(variant.path)
            assert len(variant.chain[0].source) == 64
            assert variant.model.twin is model.module


@pytest.mark.parametrize(
    "other", ["torch:bfloat16", pytest.param("openvino:bfloat16", marks=needs("openvino")), "torch:float16"]
)
def test_sixteen_bits_change_scores(model, files, other):
    made = environments.variants(model, ["torch", other], files, shape=SHAPE)
    pair = environments.compare(made, IMAGES, rechecked=0, repeats=0, progress=False).pairs[0]
    if other.startswith("openvino") and not pair.measured:
        assert "on this CPU it would compute in float32 instead of bfloat16" in pair.reason
        pytest.skip(pair.reason)
    assert 1e-5 < pair.drift.max_abs < 0.2
    assert pair.drift.scores == "logits"


@needs("openvino")
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_precision_is_what_was_asked_for_or_not_measured(model, files, precision):
    made = environments.variants(model, ["torch", f"openvino:{precision}"], files, shape=SHAPE)
    one = environments.compare(made, IMAGES, rechecked=0, repeats=0, progress=False).environments[1]
    if one.reason is None:
        assert one.about["model"]["runtime"]["precision"] == precision
    else:
        assert f"instead of {precision}" in one.reason


@needs("onnxruntime", "onnxscript", "openvino")
def test_an_onnx_file_is_the_model_too(model, files, tmp_path):
    (source,) = environments.variants(model, ["onnxruntime"], files, shape=SHAPE)
    file = Model(source.path, mean=0.4, std=0.3, name="file")
    made = environments.variants(file, ["onnxruntime:basic", "openvino", "torch"], tmp_path)
    assert made[0].path == source.path
    assert made[0].chain == ()
    assert made[1].chain[0].source == file.describe()["weights_sha256"]
    assert made[2].reason == "there is no converter from 'file' to torch"
    found = environments.compare([model, *made], IMAGES, repeats=0, rechecked=0, progress=False)
    assert found.difference("tiny", "openvino").drift.max_abs < 1e-4
    assert found.difference("tiny", "torch").reason.startswith("torch: there is no converter")


@pytest.mark.slow
def test_files_made_elsewhere_are_opened(model, files, tmp_path):
    (exported,) = environments.variants(model, ["torch:isa=avx2"], files, shape=SHAPE)
    (given,) = environments.variants(model, ["torch:eager"], tmp_path, files={"torch": exported.path})
    assert given.path == exported.path
    assert given.chain == ()
    assert np.abs(given.model(IMAGES) - model(IMAGES)).max() < 1e-5
    # What a process of its own opens is known by its bytes, too.
    moved = tmp_path / "moved.pt2"
    moved.write_bytes(exported.path.read_bytes())
    (inside,) = environments.variants(model, ["torch:isa=avx2"], tmp_path, files={"torch": moved})
    before = inside.describe()
    assert before["file_sha256"] == hashlib.sha256(moved.read_bytes()).hexdigest()
    moved.write_bytes(b"another")
    assert inside.describe() != before
    with pytest.raises(ValueError, match=r"files: expected names of runtimes with a path, .*, got 'coreml': 'x'"):
        environments.variants(model, ["torch"], tmp_path, files={"coreml": "x"})


@pytest.mark.slow
@needs("tvm")
def test_a_compiled_file_made_elsewhere_has_its_own_level(model, tmp_path):
    (tmp_path / "made.so").write_bytes(b"")
    (given,) = environments.variants(model, ["tvm:3"], tmp_path, files={"tvm": tmp_path / "made.so"})
    with pytest.raises(ValueError, match="the level of a compiled module was fixed"):
        _ = given.model


@needs("ai_edge_litert", "onnxruntime", "onnxscript")
def test_a_file_may_be_fed_otherwise_than_the_model(tmp_path):
    lite = Path(__file__).parent / "data" / "tiny-float.tflite"
    file = Model(lite, layout="NHWC")
    images = some_images(6, (file.runner.input_shape[3], *file.runner.input_shape[1:3]))

    class Same(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), file.runner.classes)

    model = Model(Same().eval(), mean=0.5, std=0.25, name="same")
    (wrong,) = environments.variants(model, ["litert"], tmp_path, files={"litert": lite})
    with pytest.raises(ValueError, match='looks like a model for layout="NHWC"'):
        wrong.model(images)
    fed = {"path": lite, "layout": "NHWC", "mean": 0.0, "std": 1.0}
    (right,) = environments.variants(model, ["litert:threads=1"], tmp_path, files={"litert": fed})
    np.testing.assert_allclose(right.model(images), file(images), rtol=1e-5, atol=1e-6)
    assert right.describe()["model"]["inputs"]["layout"] == "NHWC"
    for files in ({"litert": {"layout": "NHWC"}}, {"litert": {"path": lite, "size": 3}}, {"coreml": lite}):
        with pytest.raises(ValueError, match="files: expected names of runtimes with a path"):
            environments.variants(model, ["litert"], tmp_path, files=files)


def test_conversions_are_made_once_and_again_when_something_changed(model, tmp_path):
    def made() -> tuple[int, str]:
        (variant,) = environments.variants(model, ["torch:isa=avx2"], tmp_path, shape=SHAPE)
        return variant.path.stat().st_mtime_ns, variant.chain[0].sha256

    first = made()
    assert made() == first
    (tmp_path / "model.pt2").write_bytes(b"damaged")
    assert made()[0] != first[0]
    record = json.loads((tmp_path / "conversions.json").read_text())
    assert record["model.pt2"]["tool"] == "torch.export.export"
    assert record["model.pt2"]["version"] == torch.__version__


class Constants(nn.Module):
    """Tensors that are no part of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)
        self.plain = torch.ones(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale + self.plain


def test_tensors_outside_the_state_are_part_of_an_identity(tmp_path):
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Constants()).eval()
    arguments = {"repeats": 0, "rechecked": 0, "directory": tmp_path / "compared", "progress": False}

    def made() -> bytes:
        (variant,) = environments.variants(Model(network), ["torch:isa=avx2"], tmp_path, shape=SHAPE)
        return variant.path.read_bytes()

    before = made()
    environments.compare([Model(network, name="one"), Model(network, name="two")], IMAGES, **arguments)
    for name in ("scale", "plain"):
        setattr(network[3], name, getattr(network[3], name) + 1)
        assert made() != before
        before = made()
        with pytest.raises(ValueError, match="scores of another 'one'"):
            environments.compare([Model(network, name="one"), Model(network, name="two")], IMAGES, **arguments)


@pytest.mark.parametrize("change", ["images", "operation"])
def test_a_file_of_the_same_weights_is_not_taken_for_another_network(change, tmp_path):
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()

    def made(side: int) -> bytes:
        model = Model(network, mean=0.0, std=1.0)
        (variant,) = environments.variants(model, ["torch:isa=avx2"], tmp_path, shape=(1, side, side))
        return variant.path.read_bytes()

    first = made(8)
    if change == "operation":
        network[1] = nn.Sigmoid().eval()
    assert made(8 if change == "operation" else 9) != first


def test_a_module_without_a_shape_is_not_exported(model, tmp_path):
    (variant,) = environments.variants(model, ["torch:isa=avx2"], tmp_path)
    assert variant.reason.endswith("give shape=(C, H, W)")


# Processes of their own


@pytest.mark.slow
def test_instruction_sets_run_in_a_process_of_their_own(model, files):
    made = environments.variants(model, ["torch", "torch:isa=sse41"], files, shape=SHAPE)
    child = made[1].child
    assert child.settings["variables"] == {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    about = json.loads(json.dumps(made[1].describe()))
    assert about["environment"]["isa"] == "sse41"
    assert about["chain"][0]["file"] == "model.pt2"
    assert about["process"]["runtime"] == "torch"
    found = environments.compare(made, IMAGES, batch=16, rechecked=0, repeats=2, progress=False)
    assert found.complete
    assert found.pairs[0].surprising == 0
    assert found.pairs[0].drift.max_abs < 1e-4
    findings = compdx.search(found.pair(*found.names), IMAGES[:4], budget=20, progress=False)
    assert findings.summary.queries > 0
    # Both have the module as twin, and a difference from itself has no gradient.
    searched = environments.search(found, IMAGES, method="gradient", limit=3, progress=False)
    assert "one twin" in searched.searches[0].reason
    assert not searched.complete
    # The process dies under a comparison.
    os.kill(child._process.pid, signal.SIGKILL)
    again = environments.compare(made, IMAGES, rechecked=0, repeats=0, progress=False)
    assert "ended with signal 9" in again.environments[1].reason
    assert not again.pairs[0].measured


@pytest.mark.slow
def test_a_process_that_dies_ends_its_own_search_alone(model, network, files):
    rounded = copy.deepcopy(network).half().float()
    made = environments.variants(model, ["torch", "torch:isa=avx2"], files, shape=SHAPE)
    found = environments.compare(
        [*made, Model(rounded, mean=0.4, std=0.3, name="rounded")], IMAGES, repeats=0, progress=False
    )
    os.kill(made[1].child._process.pid, signal.SIGKILL)
    dead, alive = environments.search(found, IMAGES, limit=2, budget=20, progress=False).searches
    assert dead.reason.startswith("the search ended: the process of the model ended with signal 9")
    assert (dead.seeds, dead.found) == (0, 0)
    assert alive.reason is None
    assert alive.queries > 0


def test_a_process_imports_what_this_one_does(tmp_path, monkeypatch):
    """In the same order: what stands first here stands first there."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('the one of this folder')")
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(ChildError, match="the one of this folder"):
        Child(tmp_path / "model.onnx", {}, {"runtime": "onnxruntime"})


def test_what_a_process_cannot_open_it_says(tmp_path):
    with pytest.raises(ChildError, match="FileNotFoundError"):
        Child(tmp_path / "none.pt2", {}, {"runtime": "torch"})


# Search


def test_search_finds_what_the_images_do_not_show(network, tmp_path):
    rounded = nn.Sequential(*network[:-1], nn.Linear(64, 6)).eval()
    with torch.no_grad():
        rounded[-1].weight.copy_((network[-1].weight * 64).round() / 64)
        rounded[-1].bias.copy_(network[-1].bias)
    subjects = [Model(network, name="a"), Model(rounded, name="b")]
    found = environments.compare(subjects, IMAGES, repeats=0, rechecked=0, progress=False)
    agreeing = np.setdiff1d(np.arange(len(IMAGES)), found.pairs[0].rows)[:5]
    searched = environments.search(found, IMAGES, limit=5, directory=tmp_path, progress=False)
    (one,) = searched.searches
    assert (one.a, one.b, one.seeds, one.reason) == ("a", "b", 5, None)
    findings = compdx.Findings.load(one.run)
    assert one.found == len(findings) > 0
    assert set(findings.table["seed_index"].to_pylist()) <= set(agreeing.tolist())
    assert searched.found
    assert environments.Comparison.from_json(json.loads(json.dumps(searched.to_json()))).searches == searched.searches


def test_a_search_needs_an_image_on_which_both_agree():
    a = np.random.default_rng(4).normal(size=(5, 3)).astype(np.float32)
    found = environments.compare([table(a, "a"), table(-a, "b")], numbered(5), repeats=0, rechecked=0, progress=False)
    assert found.differing
    searched = environments.search(found, numbered(5), progress=False)
    assert searched.searches[0].reason == "not measured: the two differ on every image"


def test_a_gradient_goes_through_the_twin_of_a_file(model, files):
    other = "openvino:bfloat16" if find_spec("openvino") else "torch:bfloat16"
    made = environments.variants(model, ["torch", other], files, shape=SHAPE)
    found = environments.compare(made, IMAGES, repeats=0, rechecked=0, progress=False)
    (one,) = environments.search(found, IMAGES, method="gradient", limit=3, progress=False).searches
    assert one.reason is None
    assert one.queries == 3 * 11  # the seeds and ten pictures of each
    half = environments.variants(model, ["torch:bfloat16", "torch:bfloat16:threads=1"], files)
    found = environments.compare(half, IMAGES, repeats=0, rechecked=0, progress=False)
    (one,) = environments.search(found, IMAGES, method="gradient", progress=False).searches
    assert "one twin" in one.reason


# The command line and the page


def compdx_cli(*arguments: object, folder: Path) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "compdx.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_compare_on_the_command_line(files, model, tmp_path):
    """Exit codes: 0 no label differs, 2 that and not everything was measured, 1 found, on the images or by a search."""
    (exported,) = environments.variants(model, ["torch:isa=avx2"], files, shape=SHAPE)
    np.savez(tmp_path / "images.npz", images=IMAGES[:12], labels=np.zeros(12, np.int64))
    rest = ("--images", "images.npz", "--mean", "0.4", "--std", "0.3", "--rechecked", "4", "--repeats", "2", "--quiet")
    same = ("--env", "torch:eager", "--env", "torch:threads=1")
    code, out, err = compdx_cli("compare", exported.path, *same, *rest, "--json", "--out", "a", folder=tmp_path)
    assert code == 0, err
    answer = json.loads(out)
    assert (answer["exit_code"], answer["images"]) == (0, 12)
    assert answer["pairs"][0]["differing"] == 0
    assert answer["environments"][0]["accuracy"] is not None
    assert environments.Comparison.load(tmp_path / "a").names == ("torch:eager", "torch:threads=1")
    missing = (*same, "--env", "keras", "--no-labels", "--resume", "--out", "b")
    code, out, _ = compdx_cli("compare", exported.path, *missing, *rest[:-1], folder=tmp_path)
    assert code == 2
    assert "No label differs on 12 images in 1 pairs. Not everything could be measured." in out
    assert "keras: not measured: no converter to keras is known; give its file" in out
    search = ("--env", "torch", "--env", "torch:bfloat16", "--search", "--seeds", "4", "--budget", "300", "--out", "c")
    code, out, err = compdx_cli("compare", exported.path, *search, *rest, "--json", folder=tmp_path)
    assert code == 1, err
    (found,) = json.loads(out)["searches"]
    assert found["found"] > 0
    assert len(compdx.Findings.load(tmp_path / found["run"])) == found["found"]
    code, _, err = compdx_cli("compare", exported.path, "--env", "torch:fast", *rest, folder=tmp_path)
    assert code == 2
    assert "'fast' is none of what torch knows: eager" in err


def page_of(tmp_path: Path) -> str:
    pytest.importorskip("jinja2")
    rng = np.random.default_rng(5)
    scores = rng.normal(size=(60, 4)).astype(np.float32)
    close = scores + rng.normal(0, 0.4, scores.shape).astype(np.float32)

    def broken(_: np.ndarray) -> np.ndarray:
        msg = "<b>no luck</b>"
        raise RuntimeError(msg)

    subjects = [table(scores, "a"), table(scores, "same"), table(close, "<i>close</i>"), Model(broken, name="broken")]
    environments.compare(subjects, numbered(60), batch=8, repeats=2, directory=tmp_path, progress=False)
    return compdx.report.write(tmp_path).read_text(encoding="utf-8")


def test_the_page_of_a_comparison(tmp_path):
    page = page_of(tmp_path)
    found = environments.Comparison.load(tmp_path)
    assert "<i>close" not in page
    assert "<b>no luck" not in page
    assert "http" not in page.replace("http-equiv", "")
    differing = found.difference("a", "<i>close</i>").differing
    assert differing > 0
    assert f"<title>a – &lt;i&gt;close&lt;/i&gt;: {differing} different</title>" in page
    assert "<title>a – same: 0 different</title>" in page
    assert page.count("not measured</title>") == 7  # a row, a column, and where they meet
    with pytest.raises(ValueError, match="seeds and names must be None"):
        compdx.report.write(tmp_path, names=["a"])


def test_the_page_says_which_images_it_is_not_about(tmp_path):
    pytest.importorskip("jinja2")
    scores = np.random.default_rng(6).normal(size=(9, 4)).astype(np.float32)
    partial = scores.copy()
    partial[3] = np.nan
    for name, other in (("all", scores), ("some", partial)):
        subjects = [table(scores, "a"), table(other, "b")]
        environments.compare(subjects, numbered(9), batch=4, repeats=0, directory=tmp_path / name, progress=False)
        page = compdx.report.write(tmp_path / name).read_text(encoding="utf-8")
        assert ("those left out where a score is NaN or infinite" in page) == (name == "some")


def test_the_heat_map_has_every_cell():
    from compdx.report import environments as report

    counts = np.array([[0, 3, math.nan], [3, 0, 900], [math.nan, 900, 0]])
    svg = report.heat_map(["a", "b", "c"], counts, label="x")
    assert svg.count("<rect") == 9
    assert svg.count('class="unmeasured"') == 2
    assert svg.count('class="q6"') == 2
    assert svg.count('class="same"') == 3
    assert [report.shade_of(count, 900.0) for count in (0, 1, 900, math.nan)] == ["q0", "q1", "q6", "unmeasured"]
    many = [f"environment {k}" for k in range(40)]
    svg = report.heat_map(many, np.zeros((40, 40)), label="x")
    assert svg.count("<rect") == 1600
    width, height = map(float, svg.split('viewBox="0 0 ')[1].split('"')[0].split())
    assert width <= 340
    assert height < 400
