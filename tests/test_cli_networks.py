"""The commands for reference networks, as a user meets them: train, compress, search by gradient, report, repair."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from compdx import Findings, slicing, zoo
from compdx.cli import app, models, search
from compdx.cli.epochs import Epochs
from compdx.methods.gradient import Gradient
from compdx.zoo import MeasuredEpoch, digits

TRAIN = ("train", "lenet1", "--data", "digits", "--epochs", "3", "--batch-size", "32", "--rate", "0.05")
ENVIRONMENT = {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}


def start(folder: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "compdx.cli", *arguments],
        cwd=folder,
        env=os.environ | ENVIRONMENT,
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def run(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in this process, which has loaded torch already."""
    kept = os.dup(1)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out, contextlib.redirect_stderr(io.StringIO()) as err:
        os.dup2(out.fileno(), 1)
        try:
            with in_folder(folder):
                code = app([*arguments], prog_name="compdx", standalone_mode=False)
        finally:
            os.dup2(kept, 1)
            os.close(kept)
        out.seek(0)
        return code, out.read(), err.getvalue()


@contextlib.contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """What ``contextlib.chdir`` is from Python 3.11 on."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def answer(folder: Path, *arguments: str) -> dict[str, Any]:
    """The JSON object of a command that did not fail."""
    code, out, err = run(folder, *arguments, "--json")
    assert code in (0, 1), err
    document: dict[str, Any] = json.loads(out)
    assert (document["command"], document["exit_code"]) == (arguments[0], code)
    return document


def error(folder: Path, *arguments: str) -> str:
    code, out, err = run(folder, *arguments)
    assert (code, out) == (2, ""), err
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if ": error: " in line]
    return line


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with digits.one_thread():
        yield


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a trained network, a pruned one and a run; tests only add to it."""
    folder = tmp_path_factory.mktemp("bench")
    answer(folder, *TRAIN, "--out", "net")
    answer(folder, "compress", "net", "--scheme", "prune", "--epochs", "0", "--amount", "0.5", "--out", "pruned")
    answer(folder, *SEARCH, "--out", "run")
    return folder


SEARCH = (
    *("search", "--original", "net", "--compressed", "pruned", "--seeds", "digits", "--limit", "60"),
    *("--method", "gradient", "--steps", "4", "--coverage", "--score", "confidence"),
)


def test_train_tells_what_it_wrote(bench: Path) -> None:
    code, out, err = run(bench, *TRAIN, "--out", "net", "--resume")
    assert code == 0, err
    assert re.search(r"accuracy +\d\d\.\d\d%\nof test images +599\nparameters +3,246\n", out)
    assert out.splitlines()[-1] == "The network: net/lenet1.safetensors"
    network = zoo.load(bench / "net" / "lenet1.safetensors")
    assert f"{network.about['accuracy']:.2%}" in out
    recipe = network.about["recipe"]
    assert (recipe["epochs"], recipe["batch_size"], recipe["rate"], recipe["flip"]) == (3, 32, 0.05, False)


def test_train_killed_by_ctrl_c_and_resumed(bench: Path) -> None:
    arguments = (*TRAIN[:-1], "0.02", "--epochs", "200", "--out", "stopped")
    process = start(bench, *arguments)
    log = bench / "stopped" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists() or log.read_text().count("\n") < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, ""), err
    assert "Traceback" not in err
    assert re.search(r"compdx: epoch 1/200, loss \d\.\d{4}, accuracy \d+\.\d%, test \d+\.\d\d%, \d+\.\d s\n", err)
    assert "the last whole epoch is in stopped. Resume with\n" in err
    assert err.splitlines()[-1].strip() == "compdx " + " ".join(arguments) + " --resume"
    assert "cannot be resumed with other settings: recipe changed" in error(
        bench, *TRAIN, "--out", "stopped", "--resume"
    )
    unfinished = error(bench, "compress", "stopped", "--scheme", "half", "--out", "nothing")
    assert "the training in stopped is not finished" in unfinished


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("alexnet", "--data", "digits"), "name must be one of 'lenet1'"),
        (("lenet1", "--data", "nowhere"), "data must be 'digits' or a directory"),
        (("lenet1", "--data", "digits", "--rate", "-1"), "rate must be positive, got -1.0"),
        (("lenet1", "--data", "digits", "--mean", "0.5"), "--mean and --std go together, got only --mean"),
        (("lenet1", "--data", "digits", "--from", "nowhere"), "--from must be a .safetensors file, the directory of a"),
        (("lenet1", "--data", "digits", "--precision", "int8"), "precision must be 'bfloat16' or 'float32'"),
    ],
)
def test_train_says_what_is_wrong(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in error(tmp_path, "train", *arguments, "--out", "net")
    assert not (tmp_path / "net").exists()


def test_compress_each_way(bench: Path) -> None:
    pruned = zoo.load_pair(bench / "pruned")
    assert pruned.compressed.record["pruned_sparsity"] == pytest.approx(0.5, abs=0.01)
    half = answer(bench, "compress", "net", "--scheme", "half", "--out", "half", "--data", "digits")
    assert half["record"]["bytes"] * 2 == half["record"]["original_bytes"]
    network = zoo.load(bench / "net" / "lenet1.safetensors")
    assert half["accuracy"]["original"] == network.about["accuracy"]
    tuned = answer(
        *(bench, "compress", "net/lenet1.safetensors", "--scheme", "prune", "--amount", "0.9"),
        *("--epochs", "2", "--data", "digits", "--out", "tuned", "--all-layers"),
    )
    assert list(tuned["record"]["layers"]) == ["0", "3", "7"]
    assert tuned["record"]["settings"]["recipe"]["flip"] is False
    assert tuned["record"]["trained"]["epochs"] == 2


def test_compress_for_some_classes(bench: Path) -> None:
    options = ("--data", "digits", "--images", "60", "--amount", "0.6", "--out")
    own = answer(
        bench, "compress", "net", "--scheme", "prune", "--for-classes", "3,5", "--epochs", "0", *options, "own"
    )
    assert own["classes"] == [3, 5]
    assert list(own["record"]["layers"]) == ["0", "3", "7"]
    for name, size in (("0", 100), ("3", 1200), ("7", 1920)):
        assert own["record"]["layers"][name] == int(0.6 * size) / size
    assert own["class_accuracy"].keys() == {"original", "compressed"}
    code, out, err = run(
        *(bench, "compress", "net", "--scheme", "prune", "--for-classes", "3,5", "--compensate", "--epochs", "1"),
        *(*options, "both"),
    )
    assert code == 0, err
    assert re.search(r"of the classes after +\d+\.\d\d%\n", out)
    pair = zoo.load_pair(bench / "both")
    assert list(pair.compressed.record["settings"]["shifts"]) == ["3", "7"]
    assert pair.compressed.record["trained"]["epochs"] == 1
    plain = answer(bench, "compress", "net", "--scheme", "prune", "--compensate", "--epochs", "0", *options, "plain")
    assert list(plain["record"]["settings"]["shifts"]) == ["3"]
    assert plain["classes"] is plain["class_accuracy"] is None


def test_protect_hides_what_slicing_puts_back(bench: Path) -> None:
    found = answer(
        *(bench, "protect", "net", "--for-classes", "3,5", "--data", "digits", "--images", "60", "--share", "0.3"),
        *("--attack", "100", "--epochs", "1", "--out", "guarded"),
    )
    assert found["hidden"] == 30 + 360 + 576
    assert list(found["accuracy"]) == ["network", "public", "attacker"]
    assert all(list(of) == ["target", "others", "all"] for of in found["accuracy"].values())
    whole, public = zoo.load(bench / "net" / "lenet1.safetensors"), zoo.load(bench / "guarded" / "public.safetensors")
    assert found["accuracy"]["network"]["all"] == whole.about["accuracy"]
    again = slicing.Hidden.load(bench / "guarded" / "hidden.safetensors").restore(public.network)
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert "--for-classes must be numbers of classes separated by commas, got 'x'" in error(
        bench, "protect", "net", "--for-classes", "x", "--data", "digits", "--out", "nothing"
    )
    code, out, err = run(
        bench, "protect", "net", "--for-classes", "3", "--data", "digits", "--images", "60", "--out", "g"
    )
    assert code == 0, err
    assert re.search(r"public: target, other and all classes +\d+\.\d\d%, \d+\.\d\d%, \d+\.\d\d%\n", out)


@pytest.mark.slow
def test_compress_to_int8(bench: Path) -> None:
    code, out, err = run(
        bench, "compress", "net", "--scheme", "quantize", "--data", "digits", "--calibration", "64", "--out", "int8"
    )
    assert code == 0, err
    assert re.search(r"accuracy after +\d\d\.\d\d%\n", out)
    assert len(zoo.load_pair(bench / "int8").calibration) == 64
    found = answer(
        *(bench, "search", "--original", "net", "--compressed", "int8", "--seeds", "digits", "--limit", "20"),
        *("--method", "gradient", "--budget", "2", "--out", "run-int8"),
    )
    assert found["pictures"]["pictures"] == 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("net", "--scheme", "zip"), "--scheme must be prune, quantize, qat, half, got 'zip'"),
        (("net", "--scheme", "quantize"), "--scheme quantize needs --data"),
        (("net", "--scheme", "prune"), "--scheme prune with --epochs above 0 needs --data"),
        (
            ("net", "--scheme", "half", "--compensate"),
            "--for-classes and --compensate are for --scheme prune, got 'half'",
        ),
        (
            ("net", "--scheme", "prune", "--epochs", "0", "--for-classes", "3"),
            "--scheme prune with --for-classes or --compensate needs --data",
        ),
        (
            *(
                (
                    "net",
                    "--scheme",
                    "prune",
                    "--epochs",
                    "0",
                    "--data",
                    "digits",
                    "--for-classes",
                    "3",
                    "--scope",
                    "global",
                ),
            ),
            "scores rank the single weights of each layer by itself",
        ),
        (("nowhere", "--scheme", "half"), "NETWORK must be a .safetensors file, the directory of a training or one of"),
        (("net", "--scheme", "half", "--out", "net"), "out must be a new or empty directory, but net holds something"),
    ],
)
def test_compress_says_what_is_wrong(bench: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in error(bench, "compress", "--out", "nothing", *arguments)
    assert not (bench / "nothing").exists()


def test_search_by_gradient(bench: Path) -> None:
    findings = Findings.load(bench / "run")
    settings = findings.settings["method"]
    assert settings["name"] == "gradient"
    changed = {"budget": 4, "coverage": True, "score": "confidence"}
    assert settings["settings"] == {**json.loads(json.dumps(Gradient().settings())), **changed}
    shown = answer(bench, "show", "run")
    assert shown["pictures"] == findings.pictures.counts()
    assert shown["pictures"]["pictures"] == 240
    assert shown["rows"]
    assert not {"image", "pictures"} & shown["rows"][0].keys()
    _, out, _ = run(bench, "show", "run")
    assert re.search(r"pictures +240\n *effective +\d+\n", out)
    verified = answer(bench, "verify", "run", "--original", "net", "--compressed", "pruned")
    assert verified["grades"]["stable"] == len(findings) > 0


def test_methods_take_their_own_options_only() -> None:
    settings = search.method_of("gradient", None, ["step=0.5"], coverage=True, score=None, stop="deviation")
    assert settings == Gradient(step=0.5, coverage=True, stop="deviation")
    with pytest.raises(ValueError, match="--coverage is for --method gradient, got --method mcmc"):
        search.method_of("mcmc", None, [], coverage=False)
    with pytest.raises(ValueError, match="stop must be one of 'never', 'deviation', got 'soon'"):
        search.method_of("gradient", None, [], stop="soon")


def test_stored_models_bring_their_own_preprocessing(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bench)
    file = models.model("--original", "net/lenet1.safetensors", {}, None)
    assert file.inputs.mean == zoo.load("net/lenet1.safetensors").inputs.mean
    assert models.model("--original", "net", {}, "cpu").describe() == file.describe()
    assert models.model("--compressed", "pruned", {}, None).compressed.record["scheme"] == "prune"
    with pytest.raises(ValueError, match="brings its own preprocessing; leave out --mean"):
        models.model("--original", "net", {"mean": 0.5}, None)


def test_report_is_a_page_in_the_run(bench: Path) -> None:
    written = answer(bench, "report", "run", "--seeds", "digits")
    assert written["page"] == "run/report.html"
    page = (bench / "run" / "report.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>")
    code, out, _ = run(bench, "report", "run", "--out", "elsewhere.html")
    assert (code, out) == (0, "The report: elsewhere.html\n")
    assert "nowhere" in error(bench, "report", "nowhere")


def test_slice_tells_what_made_the_models_differ(bench: Path) -> None:
    arguments = ("slice", "run", "--original", "net", "--compressed", "pruned", "--data", "digits", "--images", "100")
    told = answer(bench, *arguments, "--seeds", "digits", "--limit", "5", "--top", "2")
    findings = Findings.load(bench / "run").table.slice(0, 5).to_pylist()
    explanation = told["explanation"]
    for key in ("seed_index", "original_label", "compressed_label"):
        assert [row[key] for row in explanation["findings"]] == [row[key] for row in findings]
    assert explanation["layers"][:2] == ["0", "3"]
    assert explanation["weights"]["0"]["pruned"] > 0
    assert {"seed_error", "seed_drift"} <= explanation["mean"][0].keys()
    assert len(explanation["mean"]) == 2
    assert json.loads((bench / "run" / "explanation.json").read_text()) == explanation
    answer(bench, "report", "run", "--seeds", "digits", "--out", "why.html")
    page = (bench / "why.html").read_text(encoding="utf-8")
    assert (page.count("<summary>Why: layer "), page.count('<section id="why"')) == (len(explanation["findings"]), 1)
    code, out, _ = run(bench, *arguments, "--limit", "2", "--out", "why.json")
    assert code == 0
    assert out.startswith("2 findings, ")
    assert out.rstrip().endswith("All of it: why.json")
    assert len(json.loads((bench / "why.json").read_text())["findings"]) == 2


def test_repair_closes_the_loop(bench: Path) -> None:
    told = answer(
        *(bench, "repair", "run", "--compressed", "pruned", "--data", "digits", "--out", "mended"),
        *("--epochs", "2", "--rate", "0.01", "--test-limit", "100"),
    )
    assert told["report"]["findings"]["before"] == Findings.load(bench / "run").pictures.counts()["effective"]
    assert json.loads((bench / "run" / "repair.json").read_text()) == told["report"]
    before, after = (zoo.load_pair(bench / name).compressed for name in ("pruned", "mended"))
    assert after.record == before.record
    weights = [compressed.model.state_dict() for compressed in (before, after)]
    assert any(not torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    # What was pruned stays pruned.
    assert all(bool((weights[1][key][weights[0][key] == 0] == 0).all()) for key in ("0.weight", "3.weight"))
    again = answer(bench, *SEARCH[:3], "--compressed", "mended", *SEARCH[5:], "--out", "run-2")
    assert again["pictures"]["pictures"] == 240
    restarted = answer(
        *(bench, "repair", "run", "--compressed", "pruned", "--data", "digits", "--out", "restarted", "--restart"),
        *("--consistency", "1", "--label-weight", "0", "--epochs", "1", "--test-limit", "100"),
    )
    settings = restarted["report"]["settings"]
    assert (settings["restart"], settings["label_weight"], settings["consistency"]) == (True, 0.0, 1.0)
    assert "out must be a new or empty directory" in error(
        bench, "repair", "run", "--compressed", "pruned", "--data", "digits", "--out", "mended"
    )


def epoch(number: int) -> MeasuredEpoch:
    return MeasuredEpoch(epoch=number, loss=0.5, accuracy=0.75, rate=0.1, seconds=2.5, test_accuracy=0.8)


def test_plain_lines() -> None:
    stream = io.StringIO()
    with Epochs(3, stream=stream) as screen:
        for number in (1, 2):
            screen.tick(number * 10, 30)
            screen(epoch(number))
    assert stream.getvalue() == "".join(
        f"compdx: epoch {number}/3, loss 0.5000, accuracy 75.0%, test 80.00%, 2.5 s\n" for number in (1, 2)
    )
    with Epochs(3, quiet=True, stream=stream) as screen:
        screen(epoch(3))
    assert "3/3" not in stream.getvalue()


def test_live_line_on_a_terminal(tmp_path: Path) -> None:
    terminal, stderr = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "compdx.cli", *TRAIN, "--out", "net", "--json"],
        cwd=tmp_path,
        env=os.environ | ENVIRONMENT | {"TERM": "xterm-256color", "COLUMNS": "80"},
        stdout=subprocess.PIPE,
        stderr=stderr,
    )
    os.close(stderr)
    shown = b""
    while True:
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # what Linux says when the other side is closed
            break
        if not chunk:
            break
        shown += chunk
    os.close(terminal)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(out)["epochs"] == 3
    text = shown.decode()
    assert "\x1b[2K" in text, "lines are drawn over"
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn).strip() for drawn in re.split(r"\r|\n|\x1b\[2K", text)]
    lines = [line for line in lines if line]
    assert [line.split(",")[0] for line in lines if ", loss " in line] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert re.fullmatch(r"━+  epoch 3/3  \d:\d\d  done", lines[-1])
    assert max(map(len, lines)) <= 80
