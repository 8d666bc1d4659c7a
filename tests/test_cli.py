"""The command line as a user meets it: in its own process, with model factories in the working directory."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import compdx
from compdx import Findings, screen
from compdx.cli import models as cli_models
from compdx.cli import options, search
from compdx.driver import Event
from compdx.store import done_seeds, read_run

FACTORIES = '''
import os
import time

import numpy as np

from compdx import Model

print("a line on stdout while importing")


class Net:
    """Integer sums, so that no score depends on the batch; the low bits of the sums are dropped."""

    def __init__(self, bits, classes=5):
        self.bits = bits
        self.weights = np.random.default_rng(0).integers(-9, 10, (16, classes))
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        if self.calls == int(os.environ.get("FAIL_AT", 0)):
            raise RuntimeError("out of cheese")
        time.sleep(float(os.environ.get("DELAY", 0)))
        sums = np.rint(x * 255).astype(np.int64).reshape(len(x), -1) @ self.weights
        return (sums >> self.bits << self.bits).astype(np.float32) / 256


class Same(Net):
    pass


def original():
    print("a line on stdout while loading")
    return Model(Net(0))


def compressed():
    return Model(Same(7))


def twin():
    return Model(Same(0))


def other():
    return Model(Same(9))


def ten_classes():
    return Model(Same(7, classes=10))


def bare():
    return Same(7)


def wide():
    return Same(7, classes=6)


def normalised():
    return lambda x: Net(0)(x * 0.5 + 0.5)


def broken():
    raise OSError("no weights in /nowhere")


not_callable = 3
'''


class Shell:
    """A working directory with factories, seeds and the command line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "nets.py").write_text(FACTORIES)
        images = np.random.default_rng(1).integers(0, 256, (40, 1, 4, 4), np.uint8)
        np.savez(folder / "seeds.npz", images=images, labels=np.zeros(40, np.int64))

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "compdx.cli", *arguments]
        environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"} | environment
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=pipe, stderr=pipe, text=True)

    def run(self, *arguments: str, **environment: str) -> Result:
        process = self.start(*arguments, **environment)
        stdout, stderr = process.communicate(timeout=120)
        return Result(process.returncode, stdout, stderr)

    def search(self, out: str, *more: str, compressed: str = "nets:compressed", **environment: str) -> Result:
        return self.run(*self.search_arguments(out, *more, compressed=compressed), **environment)

    def search_arguments(self, out: str, *more: str, compressed: str = "nets:compressed") -> tuple[str, ...]:
        return ("search", *models(compressed), "--seeds", "seeds.npz", "--out", out, *more)

    def ended(self, out: str) -> Any:
        return Findings.load(self.folder / out).ended


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def error(self) -> str:
        """The error: one line on stderr, and nothing on stdout."""
        assert self.code == 2, self.err
        assert self.out == ""
        assert "Traceback" not in self.err
        lines = [line for line in self.err.splitlines() if ": error: " in line]
        assert len(lines) == 1, self.err
        return lines[0]

    @property
    def json(self) -> dict[str, Any]:
        """The answer: one line on stdout, an object with the exit code."""
        assert self.out.count("\n") == 1, self.out + self.err
        answer: dict[str, Any] = json.loads(self.out)
        assert answer["exit_code"] == self.code
        return answer


def models(compressed: str = "nets:compressed") -> tuple[str, ...]:
    return ("--original", "nets:original", "--compressed", compressed)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shell, Result]:
    """A search that has found something, in ``run``; tests only read it."""
    shell = Shell(tmp_path_factory.mktemp("finished"))
    return shell, shell.search("run", "--json")


def test_search_that_finds(finished: tuple[Shell, Result]) -> None:
    shell, result = finished
    answer = result.json
    findings = Findings.load(shell.folder / "run")
    assert result.code == 1
    assert answer["command"] == "search"
    assert answer["out"] == "run"
    assert answer["findings"] == len(findings) == sum(answer["kinds"].values()) > 0
    assert answer["summary"] == findings.summary.to_json()
    assert "a line on stdout while loading" in result.err
    last = result.err.splitlines()[-1]
    assert re.fullmatch(
        r"compdx: 40/40 seeds, \d+ found, \d+ already deviating, \d+ exhausted, [\d,]+ queries/s, \d+% occupied, "
        r"\d:\d\d elapsed",
        last,
    )


def test_chains_and_engine(shell: Shell, finished: tuple[Shell, Result]) -> None:
    found = shell.search("pinned", "--json", "--chains", "8", "--engine", "eager", "--no-tf32")
    assert found.code == 1
    assert shell.ended("pinned").equals(finished[0].ended("run"))
    assert found.json["summary"]["engine"] == "eager"
    header = json.loads((shell.folder / "pinned" / "run.json").read_text())
    assert (header["chains"], header["calibration"], header["engine"]) == (8, None, "eager")
    assert header["numerics"]["matmul_precision"] == "highest"
    assert header["numerics"]["convolution_tf32"] is False
    measured = json.loads((finished[0].folder / "run" / "run.json").read_text())
    assert measured["chains"] == measured["calibration"]["chains"] == 32
    assert "--chains must be auto or a number, got 'many'" in shell.search("other", "--chains", "many").error
    assert "chains: expected 1..16777216, got 0" in shell.search("other", "--chains", "0").error
    assert "'graph' needs a pair on CUDA" in shell.search("other", "--engine", "graph").error


def test_verify_a_stable_run(finished: tuple[Shell, Result]) -> None:
    shell, found = finished
    result = shell.run("verify", "run", *models())
    assert (result.code, result.out) == (0, f"{found.json['findings']} findings: {found.json['findings']} stable\n")


def test_verify_with_another_model(finished: tuple[Shell, Result]) -> None:
    shell, found = finished
    result = shell.run("verify", "run", *models("nets:twin"), "--json")
    assert result.code == 1
    assert result.json["grades"] == {
        "stable": 0,
        "batch-dependent": 0,
        "run-dependent": 0,
        "gone": found.json["findings"],
    }
    assert len(result.json["findings"]) == found.json["findings"]


def test_show(finished: tuple[Shell, Result]) -> None:
    shell, found = finished
    result = shell.run("show", "run", "--out", "sheet.png", "--seeds", "seeds.npz", "--limit", "3")
    assert result.code == 0
    assert f"differ on {found.json['findings']} images" in result.out
    assert f"3 of {found.json['findings']} findings" in result.out
    assert "…" not in result.out
    with Image.open(shell.folder / "sheet.png") as sheet:
        assert min(sheet.size) > 50

    answer = shell.run("show", "run", "--json", "--limit", "2").json
    assert answer["finished"] is True
    assert len(answer["rows"]) == 2
    table = Findings.load(shell.folder / "run").table
    assert answer["rows"] == table.drop_columns(["image", "pictures"]).to_pylist()[:2]


def test_doctor(finished: tuple[Shell, Result]) -> None:
    shell, _ = finished
    arguments = ("doctor", *models(), "--seeds", "seeds.npz")
    text = shell.run(*arguments)
    assert text.code == 0
    assert text.out.split()[:4] == ["seeds", "40", "with", "labels,"]
    answer = shell.run(*arguments, "--json", "--limit", "20").json
    assert answer["healthy"] is True
    assert answer["seeds"] == 20
    different = shell.run("doctor", *models("nets:ten_classes"), "--seeds", "seeds.npz")
    assert different.code == 1
    assert "error: " in different.out
    failing = shell.run(*arguments, "--json", FAIL_AT="1")
    assert failing.code == 2
    assert failing.json["original"] is None


def test_equal_models(shell: Shell) -> None:
    result = shell.search("run", "--budget", "20", compressed="nets:twin")
    assert result.code == 0, result.err
    assert result.out.startswith("None within budget: no difference in 800 queries.\n")


def test_quiet_is_silent(shell: Shell) -> None:
    result = shell.search("run", "--quiet")
    assert result.code == 1
    assert "compdx" not in result.err
    assert result.out == ""


def test_settings_reach_the_run(shell: Shell) -> None:
    options = ("--method-option", "overflow=wrap", "--method-option", "linf=16", "--method-option", "acceptance=always")
    shell.search("run", *options, "--budget", "30", "--seed", "5", "--chains", "7", "--limit", "9")
    header = json.loads((shell.folder / "run" / "run.json").read_text())
    settings = header["method"]["settings"]
    assert (settings["overflow"], settings["linf"], settings["acceptance"]) == ("wrap", 16, "always")
    assert (settings["budget"], header["seed"], header["chains"]) == (30, 5, 7)
    assert header["seeds"]["count"] == 9


def test_bare_models_take_their_preprocessing_from_the_command_line(shell: Shell) -> None:
    models = ("--original", "nets:normalised", "--compressed", "nets:normalised", "--mean", "0.5", "--std", "0.5")
    result = shell.run("search", *models, "--seeds", "seeds.npz", "--out", "run", "--budget", "3")
    assert result.code == 0, result.err
    header = json.loads((shell.folder / "run" / "run.json").read_text())
    assert header["pair"]["original"]["inputs"]["mean"] == 0.5
    assert header["pair"]["original"]["name"] == "nets:normalised"


def test_bare_models_take_bounds_and_the_offset_of_the_classes(shell: Shell) -> None:
    models = ("--original", "nets:wide", "--compressed", "nets:wide", "--bounds", "-1,1", "--class-offset", "1")
    result = shell.run("search", *models, "--seeds", "seeds.npz", "--out", "run", "--budget", "3", "--threads", "2")
    assert result.code == 0, result.err
    original = json.loads((shell.folder / "run" / "run.json").read_text())["pair"]["original"]
    assert original["inputs"]["bounds"] == [-1.0, 1.0]
    assert original["class_offset"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--original", "nets:broken"), "--original nets:broken: OSError: no weights in /nowhere"),
        (("--compressed", "nets:ten_classes"), "must score the same classes"),
        (("--seeds", "nowhere"), "nowhere does not exist"),
        (("--method-option", "colour=red"), "--method-option must be KEY=VALUE with one of the keys budget, "),
    ],
)
def test_errors_are_one_line(shell: Shell, arguments: tuple[str, ...], message: str) -> None:
    result = shell.search("run", *arguments)
    assert message in result.error


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nets", "--original must be package.module:factory, got 'nets'"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("nets:no_such_name", "has no attribute 'no_such_name'"),
        ("nets:not_callable", "TypeError: 'int' object is not callable"),
        ("nets:original", "returns a compdx.Model, which brings its own preprocessing; leave out --mean"),
    ],
)
def test_wrong_factories(shell: Shell, monkeypatch: pytest.MonkeyPatch, target: str, message: str) -> None:
    monkeypatch.syspath_prepend(str(shell.folder))
    monkeypatch.chdir(shell.folder)
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    with pytest.raises(ValueError, match=re.escape(message)):
        cli_models.model("--original", target, {"mean": 0.5}, None)


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match="--mean must be a number"):
        options.preprocessing("a", None, None, None, None, None)
    with pytest.raises(ValueError, match=r"--bounds must be two numbers LO,HI, got '0\.\.1'"):
        options.preprocessing(None, None, "0..1", None, None, None)
    with pytest.raises(ValueError, match="overflow"):
        search.method_of("mcmc", None, ["overflow=red"])
    with pytest.raises(ValueError, match="'mcmc'"):
        search.method_of("magic", None, [])
    assert options.preprocessing("0.5,0.25,1", "2", "0,255", "NHWC", None, 0) == {
        "mean": (0.5, 0.25, 1.0),
        "std": 2.0,
        "bounds": (0.0, 255.0),
        "layout": "NHWC",
        "class_offset": 0,
    }


def test_version(shell: Shell) -> None:
    result = shell.run("--version")
    assert (result.code, result.out) == (0, f"compdx {compdx.__version__}\n")


def test_threads_reach_torch_and_the_search(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    monkeypatch.syspath_prepend(str(shell.folder))
    monkeypatch.chdir(shell.folder)
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(set_num_threads=threads.append, nn=types))
    monkeypatch.setattr(types, "Module", str, raising=False)  # no model here is one
    for wanted in (None, 3):
        cli_models.pair("nets:original", "nets:compressed", {}, None, wanted)
    assert threads == [3]


def test_errors_as_json_and_with_traceback(shell: Shell) -> None:
    result = shell.search("run", "--original", "nets:broken", "--json", "--debug")
    assert result.code == 2
    assert "no weights" in result.json["error"]
    assert "Traceback" in result.err


def test_usage_errors(shell: Shell) -> None:
    assert shell.run("search", "--out", "run").code == 2
    assert shell.run("no-such-command").code == 2


def test_no_run_to_read(shell: Shell) -> None:
    assert "seeds.npz" in shell.run("show", "seeds.npz").error
    assert "nowhere" in shell.run("verify", "nowhere", *models()).error


def test_an_existing_run_is_kept(finished: tuple[Shell, Result]) -> None:
    shell, _ = finished
    assert "already holds a run" in shell.search("run").error
    again = shell.search("run", "--resume", "--json")
    assert again.code == 1
    assert again.json["summary"] == finished[1].json["summary"]
    assert "cannot be resumed" in shell.search("run", "--resume", "--seed", "1").error


def test_a_model_that_raises_keeps_what_was_found(finished: tuple[Shell, Result], shell: Shell) -> None:
    result = shell.search("run", FAIL_AT="20")
    assert "RuntimeError: out of cheese; in iteration 20 since this start; " in result.error
    done = done_seeds(shell.folder / "run")
    assert f"{len(done)} of 40 seeds had ended and are in run" in result.error
    assert 0 < len(done) < 40
    unfinished = shell.run("show", "run", "--json").json
    assert unfinished["finished"] is False
    assert shell.search("run", "--resume").code == 1
    assert shell.ended("run").equals(finished[0].ended("run"))


def test_ctrl_c_then_resume(finished: tuple[Shell, Result], shell: Shell) -> None:
    arguments = shell.search_arguments("run", "--method-option", "linf=None")
    process = shell.start(*arguments, DELAY="0.2")
    wait_for(lambda: (shell.folder / "run" / "run.json").exists())
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert read_run(shell.folder / "run").counters["iterations"] > 0
    *_, resume = err.splitlines()
    assert resume.strip() == "compdx " + " ".join(arguments) + " --resume"
    assert shell.run(*resume.split()[1:]).code == 1
    assert shell.ended("run").equals(finished[0].ended("run"))


def test_sigkill_then_resume(shell: Shell) -> None:
    images = np.random.default_rng(2).integers(0, 256, (2500, 1, 4, 4), np.uint8)
    np.savez(shell.folder / "seeds.npz", images=images)
    arguments = shell.search_arguments("killed", "--budget", "40", "--chains", "256")
    process = shell.start(*arguments, DELAY="0.03")
    wait_for(lambda: any((shell.folder / "killed" / "parts").glob("*.parquet")))
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    done = done_seeds(shell.folder / "killed")
    assert 0 < len(done) < 2500
    assert shell.run(*arguments, "--resume").code == 1
    assert shell.search("whole", "--budget", "40", "--chains", "256").code == 1
    assert shell.ended("killed").equals(shell.ended("whole"))
    assert len(shell.ended("whole")) == 2500


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "nothing happened for a minute"
        time.sleep(0.05)


def test_live_lines_on_a_terminal(shell: Shell) -> None:
    terminal, stderr = pty.openpty()
    command = [sys.executable, "-m", "compdx.cli", *shell.search_arguments("run", "--json", "--budget", "60")]
    environment = os.environ | {"TERM": "xterm-256color", "DELAY": "0.01", "COLUMNS": "80"}
    process = subprocess.Popen(command, cwd=shell.folder, env=environment, stdout=subprocess.PIPE, stderr=stderr)
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
    assert process.returncode == 1
    assert json.loads(out)["summary"]["seeds"] == 40
    text = shown.decode()
    assert "\x1b[2K" in text, "lines are drawn over"
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn).strip() for drawn in re.split(r"\n|\x1b\[2K", text)]
    assert lines[-3].endswith("40/40 seeds  " + lines[-3].split()[-2] + "  done")
    assert " found · " in lines[-2]
    assert max(map(len, lines)) <= 80


def event(**changes: Any) -> Event:
    figures = {
        "seeds": 12345,
        "ended": 1000,
        "found": 900,
        "already_deviating": 60,
        "exhausted": 40,
        "queries": 10**6,
        "iterations": 2000,
        "occupancy": 0.975,
        "seconds": 83.4,
        "queries_per_second": 41234.5,
        "seconds_left": 3725.0,
        "finished": False,
    }
    return Event(**(figures | changes))


def test_plain_line() -> None:
    assert screen.line(event()) == (
        "1,000/12,345 seeds, 900 found, 60 already deviating, 40 exhausted, 41,234 queries/s, 98% occupied, "
        "1:23 elapsed, about 1:02:05 left"
    )
    assert "30 non-finite" in screen.line(event(found=870))
    assert screen.line(event(seconds_left=None)).endswith("time left unknown")
    assert screen.line(event(finished=True)).endswith("1:23 elapsed")


def test_plain_lines_are_limited_in_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(screen.time, "monotonic", lambda: now)
    stream = io.StringIO()
    with screen.Screen(stream) as show:
        for tenth in range(120):
            now = tenth / 10
            show(event(ended=tenth))
        show(event(ended=120, finished=True))
    lines = stream.getvalue().splitlines()
    assert [line.split("/")[0] for line in lines] == ["compdx: 50", "compdx: 100", "compdx: 120"]


def test_plain_lines_end_with_where_it_stopped() -> None:
    stream = io.StringIO()
    with screen.Screen(stream) as show:
        show(event())
        show(event())
    assert stream.getvalue() == f"compdx: {screen.line(event())}\n"


def test_ticker(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    monkeypatch.setattr(screen.time, "monotonic", lambda: now)
    tick = screen.Ticker("images asked again")
    for now in (1.0, 4.9, 5.0, 6.0, 10.5):
        tick(int(now * 1000), 20000)
    assert (
        capsys.readouterr().err == "compdx: 5,000/20,000 images asked again\ncompdx: 10,500/20,000 images asked again\n"
    )
