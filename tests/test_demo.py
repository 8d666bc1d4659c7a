"""The demo, small, from training to the contact sheet; the network it trains and the quantization it uses."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from compdx import demo
from compdx.compress import quantize
from compdx.findings import Findings
from compdx.model import Model
from compdx.seeds import Seeds
from compdx.zoo import digits

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")
pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def data() -> tuple[Seeds, Seeds]:
    return digits.load()


@pytest.fixture(scope="module")
def network(data: tuple[Seeds, Seeds]) -> Any:
    return digits.train(data[0])


def accuracy(module: Any, seeds: Seeds) -> float:
    model = Model(module, mean=digits.INPUTS.mean, std=digits.INPUTS.std)
    return float((model(seeds.images).argmax(axis=1) == seeds.labels).mean())


# ---- the digits


def test_the_digits_are_split_for_good(data: tuple[Seeds, Seeds]) -> None:
    training, held_out = data
    assert (len(training), len(held_out)) == (1198, 599)
    assert training.shape == held_out.shape == (1, 28, 28)
    assert not np.intersect1d(training.indices, held_out.indices).size
    np.testing.assert_array_equal(np.union1d(training.indices, held_out.indices), np.arange(1797))
    assert held_out.images.min() == 0
    assert held_out.images.max() == 255
    assert held_out.labels is not None
    assert np.bincount(held_out.labels).min() >= 50


def test_training_reaches_97_percent_on_held_out_digits(data: tuple[Seeds, Seeds], network: Any) -> None:
    assert accuracy(network, data[1]) >= 0.97
    assert not network.training


def test_training_repeats_and_leaves_the_random_state_alone(data: tuple[Seeds, Seeds]) -> None:
    few = data[0].select(slice(200))
    torch.manual_seed(5)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    one, same, other = (digits.train(few, epochs=1, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_prepare_is_what_the_model_does(data: tuple[Seeds, Seeds], network: Any) -> None:
    images = data[1].images[:64]
    model = Model(network, mean=digits.INPUTS.mean, std=digits.INPUTS.std)
    np.testing.assert_array_equal(model(images), model.forward(digits.prepare(images)))


def test_training_needs_labels_and_an_epoch(data: tuple[Seeds, Seeds]) -> None:
    with pytest.raises(ValueError, match="seeds must have labels"):
        digits.train(Seeds(data[0].images))
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        digits.train(data[0], epochs=0)


# ---- int8


def test_int8_rounds_the_weights_and_keeps_the_accuracy(data: tuple[Seeds, Seeds], network: Any) -> None:
    training, held_out = data
    before = {name: value.clone() for name, value in network.state_dict().items()}
    small = quantize(network, digits.batches(training.select(slice(128)))).model
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert sum(buffer.dtype == torch.int8 for buffer in small.buffers()) == 4
    assert accuracy(small, held_out) > accuracy(network, held_out) - 0.02
    x = digits.batches(held_out, 33)[0]
    with torch.inference_mode():
        difference = (small(x) - network(x)).abs().max()
        alone = torch.cat([small(row[None]) for row in x])
    assert 0 < difference < 2
    assert torch.equal(alone.argmax(1), small(x).argmax(1))


def test_int8_leaves_the_loggers_as_they_were(network: Any) -> None:
    logger = logging.getLogger("torchao")
    before = logger.level
    quantize(network, [torch.zeros(1, 1, 28, 28)])
    assert logger.level == before


# ---- the demo


def test_demo_from_start_to_end(tmp_path: Path) -> None:
    lines: list[str] = []
    result = demo.run(tmp_path, seeds=40, budget=200, epochs=2, echo=lines.append)
    assert len(result.findings) > 0
    assert result.findings.summary.seeds == 40
    assert len(result.verification) == len(result.findings)
    # A label that one more image in the batch can turn is possible; most findings are facts.
    assert result.verification.counts["stable"] >= 0.9 * len(result.findings)
    assert result.verification.counts["gone"] == 0
    with Image.open(result.sheet) as sheet:
        assert min(sheet.size) > 100

    text = "\n".join(lines)
    for part in ("accuracy", "effective", "stable", "queries in", str(result.sheet)):
        assert part in text
    assert lines[-1] == f"all of it   {result.seconds:.1f} s"
    assert result.seconds > result.findings.summary.seconds

    loaded = Findings.load(tmp_path / "run")
    assert loaded.table == result.findings.table
    np.testing.assert_array_equal(result.findings.replay(0, digits.load()[1]), result.findings.images[0])

    again = demo.run(tmp_path, seeds=40, budget=200, epochs=2, echo=lines.append)
    assert again.findings.table == result.findings.table


def test_demo_from_the_command_line(tmp_path: Path) -> None:
    options = ("--seeds", "20", "--budget", "30", "--threads", "1", "--json", "--quiet")
    command = [sys.executable, "-m", "compdx", "demo", *options]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert "compdx" not in result.stderr
    answer = json.loads(result.stdout)
    findings = Findings.load(tmp_path / "demo" / "run")
    assert answer["out"] == "demo"
    assert answer["summary"] == findings.summary.to_json()
    assert sum(answer["kinds"].values()) == sum(answer["grades"].values()) == answer["findings"] == len(findings)
    assert answer["seconds"] > answer["summary"]["seconds"]
    assert (tmp_path / answer["sheet"]).exists()


@pytest.mark.parametrize("seeds", [0, 600])
def test_demo_has_so_many_seeds(tmp_path: Path, seeds: int) -> None:
    with pytest.raises(ValueError, match=rf"seeds must be in 1\.\.599, got {seeds}"):
        demo.run(tmp_path, seeds=seeds)
    assert not list(tmp_path.iterdir())
