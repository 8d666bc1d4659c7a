"""Studies: stages that are done once, and the tables that come of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compdx
from compdx import reproduce, zoo
from compdx.reproduce import published
from compdx.reproduce.tables import render
from compdx.training import Recipe

ONE = Recipe(epochs=1, batch_size=32, rate=0.01, schedule="constant", precision="float32")
TINY = reproduce.Scale(
    seeds=30,
    unseen=10,
    again=10,
    reported=40,
    train=replace(ONE, epochs=6, rate=0.02),
    prune=ONE,
    quant=ONE,
    repair=dict.fromkeys(
        ("prune", "quant"), reproduce.Mending(recipe=replace(ONE, rate=0.001), pictures=100, images=100)
    ),
    chains=10,
)


def data(count: int, seed: int) -> compdx.Seeds:
    """Ten classes that a small network can learn: ten patterns under noise."""
    patterns = np.random.default_rng(0).integers(40, 216, (10, 3, 4, 4)).repeat(8, 2).repeat(8, 3)
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, count)
    noisy = patterns[labels] + rng.normal(0, 60, (count, 3, 32, 32))
    return compdx.Seeds(np.clip(noisy, 0, 255).astype(np.uint8), labels)


DATA = (data(640, 1), data(80, 2))


def run(out: Path, **changes: Any) -> dict[str, Any]:
    settings = {"model": "lenet1", "scheme": "prune", "scale": TINY, **changes}
    return reproduce.compd(DATA, out, **settings)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("study") / "prune"
    return out, run(out)


def test_every_table_has_its_figures(study: tuple[Path, dict[str, Any]]) -> None:
    out, figures = study
    assert json.loads((out / "tables.json").read_text()) == figures
    assert figures["accuracy"]["original"] > 0.5
    assert figures["accuracy"]["record"]["scheme"] == "prune"
    for name in ("plain", "coverage", "margin"):
        counts = figures[name]
        assert counts["pictures"] == 300
        assert counts["effective"] + counts["invalid"] + counts["valid"] == 300
    assert figures["unseen"]["before"]["pictures"] == figures["unseen"]["after"]["pictures"] == 100
    assert figures["again"]["before"]["pictures"] == 100
    assert {"original", "before", "after"} < set(figures["fgsm"])
    text = (out / "tables.md").read_text()
    for title in ("Table 1", "Table 2", "Table 3", "Tables 4 and 5"):
        assert f"## {title}" in text


def test_figures_are_those_of_the_models_on_disk(study: tuple[Path, dict[str, Any]]) -> None:
    out, figures = study
    again = reproduce.open_study(out, DATA)
    labels = np.asarray(again.pair.compressed(again.reported.images)).argmax(1)
    assert figures["accuracy"]["compressed"] == pytest.approx((labels == again.reported.labels).mean())
    weights = [p for name, p in again.pair.compressed.module.named_parameters() if p.ndim == 4]
    zeros = sum(int((w == 0).sum()) for w in weights)
    assert zeros == pytest.approx(0.75 * sum(w.numel() for w in weights), abs=1)
    pictures = again.findings("coverage").pictures
    assert pictures.counts()["effective"] == figures["coverage"]["effective"]
    mended = [p for name, p in again.repaired_pair.compressed.module.named_parameters() if p.ndim == 4]
    assert all(((a == 0) == (b == 0)).all() for a, b in zip(weights, mended, strict=True))
    assert any((a != b).any() for a, b in zip(weights, mended, strict=True))


def test_the_images_of_a_study_do_not_mix(study: tuple[Path, dict[str, Any]]) -> None:
    again = reproduce.open_study(study[0], DATA)
    seeds, unseen, reported = (set(part.indices.tolist()) for part in (again.seeds, again.unseen, again.reported))
    assert not seeds & (unseen | reported)
    assert unseen < reported
    train, chooses = again.train
    assert not set(train.indices.tolist()) & set(chooses.indices.tolist())


def test_a_study_goes_on_where_it_was_stopped(study: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, figures = study
    said: list[str] = []
    assert run(out, say=said.append) == figures
    assert said == []
    stopped = tmp_path / "stopped"

    class Stop(Exception):
        pass

    def stop(line: str) -> None:
        if line.startswith("5-repair"):
            raise Stop

    with pytest.raises(Stop):
        run(stopped, say=stop)
    assert not (stopped / "5-repair.json").exists()
    resumed = run(stopped, say=said.append)
    assert [line.partition(" ")[0].rstrip(":") for line in said[::2]] == [
        "5-repair", "6-repaired", "7-unseen", "8-again", "9-fgsm",
    ]  # fmt: skip

    def plain(document: Any) -> Any:
        if isinstance(document, dict):
            return {k: plain(v) for k, v in document.items() if not k.endswith("seconds")}
        return [plain(v) for v in document] if isinstance(document, list) else document

    assert plain(resumed) == plain(figures)


def test_a_study_with_other_settings_is_refused(study: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has other settings: seed is 0 there and 1 here"):
        run(study[0], seed=1)
    (tmp_path / "something").write_text("else")
    with pytest.raises(ValueError, match="holds something else"):
        run(tmp_path)
    with pytest.raises(ValueError, match="scheme must be"):
        run(tmp_path / "new", scheme="shrink")
    with pytest.raises(ValueError, match="scale must be"):
        run(tmp_path / "new", scale="large")
    with pytest.raises(ValueError, match="needs 240 test images, got 80"):
        run(tmp_path / "few", scale=replace(TINY, seeds=200))


@pytest.mark.slow
def test_quantization(tmp_path: Path) -> None:
    figures = run(tmp_path / "quant", scheme="quant")
    assert figures["accuracy"]["record"]["scheme"] == "quantize"
    assert "coverage" not in figures
    assert figures["repaired"]["accuracy"] > 0.5


def test_the_paper_stands_beside() -> None:
    names = ("pictures", "effective", "effective_seeds", "strict", "strict_seeds", "invalid", "change_ori", "valid")
    counts: dict[str, Any] = dict.fromkeys((*names, "non_finite", "already_deviating_seeds"), 1000)
    counts |= {"l2": 0.005, "l2_unpaired": None}
    figures = {
        "model": "vgg11",
        "scheme": "prune",
        "seed": 0,
        "scale": {"seeds": 5000, "unseen": 2500, "reported": 5000},
        "accuracy": {"original": 0.9, "compressed": 0.89},
        "plain": counts,
        "coverage": counts,
        "repaired": {"accuracy": 0.9, "effective": counts},
        "unseen": {"before": counts, "after": counts, "fresh": counts},
        "again": {"seeds": 10, "before": counts, "after": counts},
        "fgsm": {name: {"2": 0.5, "8": 0.4, "16": 0.3} for name in ("original", "before", "after")},
    }
    text = render(figures)
    for number in ("93.12", "92.78", "1,731", "1,636", "636", "829", "533", "57.90", "26.20", "59.26"):
        assert number in text


def test_published_numbers_are_for_the_networks_of_the_zoo() -> None:
    for table in (published.ACCURACY, published.EFFECTIVE, published.REPAIR, published.FGSM):
        assert {name for scheme in table.values() for name in scheme} == {"vgg11", "resnet18", "densenet121"}
        for name in table["prune"]:
            zoo.build(name)
