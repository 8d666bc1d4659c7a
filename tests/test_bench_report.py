"""The page of performance says what the records say, and nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SVG = "{http://www.w3.org/2000/svg}"

ABOUT = {
    "date": "2026-01-02",
    "machine": {"cpu": "A CPU", "cores": 3, "system": "Linux"},
    "versions": {"compdx": "9.8.7", "torch": "6.5.4"},
    "command": "python -m bench.search --smoke",
}


def report(page: Path, results: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.report", "--page", str(page), "--results", str(results), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def write(results: Path, name: str, payload: dict[str, Any]) -> None:
    (results / f"{name}.json").write_text(json.dumps({"bench": name, **ABOUT, **payload}))


def searched(chains: int, ratio: float) -> dict[str, Any]:
    return {
        "pair": "lenet5",
        "shape": [1, 28, 28],
        "chains": chains,
        "ratio": ratio,
        "ratio_quartiles": [ratio - 0.01, ratio, ratio + 0.02],
        "noise": 1.0,
        "noise_quartiles": [0.9, 1.0, 1.1],
        "queries_per_second": 12_345.6,
        "findings_per_second": 67.8,
        "occupancy": 0.995,
    }


def mutated(operator: str, share: float) -> dict[str, Any]:
    return {
        "what": "mutate",
        "operator": operator,
        "window": None,
        "output": "float32",
        "shape": [3, 32, 32],
        "isa": "avx2",
        "threads": 1,
        "items_per_second": 2_500_000.0,
        "bytes_per_second": 1e9,
        "share_of_copy": share,
    }


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the page, and an empty directory of records."""
    page, results = tmp_path / "performance.md", tmp_path / "results"
    shutil.copy(ROOT / "docs" / "performance.md", page)
    results.mkdir()
    return page, results


def test_the_page_is_what_the_records_say() -> None:
    result = report(ROOT / "docs" / "performance.md", ROOT / "bench" / "results", "--check")
    assert result.returncode == 0, result.stdout + result.stderr


def test_figures_come_from_the_record(place: tuple[Path, Path]) -> None:
    page, results = place
    write(results, "search", {"rows": [searched(64, 0.8125), searched(512, 0.9375)]})
    assert report(page, results).returncode == 0
    text = page.read_text()
    assert "| lenet5 | 1×28×28 | 512 | 0.938 (0.927–0.958) | 1.000 (0.900–1.100) | 12,346 | 67.8 | 99.5% |" in text
    assert "Measured on 2026-01-02 on A CPU, 3 cores, with compdx 9.8.7, torch 6.5.4 by" in text
    assert "`python -m bench.search --smoke`" in text


def test_what_was_not_measured_is_said(place: tuple[Path, Path]) -> None:
    page, results = place
    assert report(page, results).returncode == 0
    text = page.read_text()
    assert "Not measured yet on a CPU: `python -m bench.kernels`." in text
    assert "Not measured yet on a GPU, compiled: `bench/device.sh`." in text
    assert "Measured on" not in text


def test_a_peer_that_was_not_measured_is_no_row(place: tuple[Path, Path]) -> None:
    page, results = place
    reason = "not measured: foolbox cannot be imported"
    payload = {"attacks": {"pair": "p", "budget": 1, "rows": [{"tool": "foolbox", "not_measured": reason}]}}
    write(results, "peers", {"threads": 2, "published": "not measured: no keras", **payload})
    assert report(page, results).returncode == 0
    text = page.read_text()
    assert f"foolbox: {reason}." in text
    assert "published: not measured: no keras." in text
    assert "| foolbox" not in text


@pytest.mark.parametrize("spoil", ["figure", "plot", "stale"])
def test_check_fails_on_what_records_do_not_say(place: tuple[Path, Path], spoil: str) -> None:
    page, results = place
    write(results, "search", {"rows": [searched(64, 0.8125), searched(512, 0.9375)]})
    assert report(page, results, "--check").returncode == 1
    assert report(page, results).returncode == 0
    assert report(page, results, "--check").returncode == 0
    plot = page.parent / "performance" / "search.svg"
    if spoil == "figure":
        spoilt = page
        page.write_text(page.read_text().replace("12,346", "12,347", 1))
    elif spoil == "plot":
        spoilt = plot
        plot.unlink()
    else:
        spoilt = plot.with_name("old.svg")
        shutil.copy(plot, spoilt)
    before = spoilt.read_bytes() if spoilt.exists() else None
    result = report(page, results, "--check")
    assert result.returncode == 1
    assert str(spoilt) in result.stdout
    assert before == (spoilt.read_bytes() if spoilt.exists() else None)  # a check writes nothing
    assert report(page, results).returncode == 0
    assert report(page, results, "--check").returncode == 0


def test_words_outside_the_markers_stay(place: tuple[Path, Path]) -> None:
    page, results = place
    page.write_text("By hand.\n" + page.read_text() + "\nBy hand too.\n")
    assert report(page, results).returncode == 0
    assert page.read_text().startswith("By hand.\n")
    assert page.read_text().endswith("\nBy hand too.\n")


def test_a_page_without_a_place_is_refused(place: tuple[Path, Path]) -> None:
    page, results = place
    page.write_text(page.read_text().replace("<!-- /bench:scale -->", ""))
    result = report(page, results)
    assert result.returncode != 0
    assert "the page has places for" in result.stderr


def test_bars_are_as_long_as_their_values(place: tuple[Path, Path]) -> None:
    page, results = place
    write(results, "kernels", {"rows": [mutated("mix", 0.25), mutated("additive", 0.75)]})
    assert report(page, results).returncode == 0
    assert "| 3×32×32 | avx2, 1 core | 2.50 M | 25.0% |" in page.read_text()
    drawing = ElementTree.parse(page.parent / "performance" / "kernels.svg").getroot()
    bars = [float(bar.get("width", "")) for bar in drawing.iter(f"{SVG}rect") if bar.get("height") == "9.0"]
    assert len(bars) == 2
    assert bars[1] / bars[0] == pytest.approx(3, rel=1e-2)


def test_points_lie_where_their_values_are(place: tuple[Path, Path]) -> None:
    page, results = place
    write(results, "search", {"rows": [searched(64, 0.5), searched(256, 1.0), searched(1024, 0.75)]})
    assert report(page, results).returncode == 0
    drawing = ElementTree.parse(page.parent / "performance" / "search.svg").getroot()
    points = [(float(dot.get("cx", "")), float(dot.get("cy", ""))) for dot in drawing.iter(f"{SVG}circle")]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)  # 64 to 256 is as far as 256 to 1024
    assert y0 - y1 == pytest.approx(2 * (y2 - y1), abs=0.3)
    assert y1 < y2 < y0  # up is more


def timed(name: str, seconds: float) -> dict[str, Any]:
    return {name: seconds, f"{name}_quartiles": [seconds / 2, seconds, seconds * 2]}


def test_slices_beside_a_forward_pass(place: tuple[Path, Path]) -> None:
    page, results = place
    sides = {"forward": 0.004, "floor": 0.010, "slice": 0.016, "absolute": 0.020}
    measured = {
        "network": "resnet7",
        "multiplications": 12_345_678,
        "batch": 16,
        "seconds_a_sample": {key: value for name, s in sides.items() for key, value in timed(name, s).items()},
        "selected": {"samples": 3, "epsilon": 0.2, "beta": 0.01, **timed("seconds", 0.5)},
        "peak_megabytes": {"before": 100.4, "after": 222.2},
        **timed("times_the_floor", 1.6),
    }
    published = {"a network": {"alone": 40.0, "batched": 2.5}}
    write(results, "slicing", {"measured": measured, "published_seconds_a_sample": published})
    assert report(page, results).returncode == 0
    text = page.read_text()
    assert "resnet7, 12 M multiplications a sample, 16 samples at a time:" in text
    assert "| a slice, everything kept | 16.0 (8.0–32.0) | 4.0 |" in text
    assert "(ε 0.2, β 0.01), 3 samples at a time | 500.0 (250.0–1000.0) | 125.0 |" in text
    assert "takes 1.60 (0.80–3.20) times its floor" in text
    assert "100 MB before the first slice, 222 MB after it" in text
    assert "| a network | 40 s | 2.5 s |" in text


def test_explanations_of_every_kind_of_damage(place: tuple[Path, Path]) -> None:
    page, results = place
    names = ("layer_first", "channel_in_five", "single_layer_first", "single_channel_in_five", "layer_first_by_drift")
    rates = {"cases": 8, **{name: 0.1 * (place + 1) for place, name in enumerate(names)}}
    payload = {
        "goals": {"layer_first": 0.9, "channel_in_five": 0.8},
        "settings": {"cases": 8, "images": 5, "pool": 64, "baseline": 32, "seed": 0},
        "some damage": {"rates": {"all": rates, "none of this kind": {"cases": 0}}, "cases": []},
    }
    write(results, "explain", payload)
    assert report(page, results).returncode == 0
    text = page.read_text()
    assert "8 random cases, each explained on up to 5 findings among 64 images" in text
    assert "Some damage: how often the broken layer comes first" in text
    assert "| all | 8 | 10.0% | 20.0% | 30.0% | 40.0% | 50.0% |" in text
    assert "none of this kind" not in text


def part(value: float) -> dict[str, float]:
    return {"hits": 1, "total": 2, "value": value, "low": value / 2, "high": value + 0.1}


def test_detectors_and_what_is_given_away(place: tuple[Path, Path]) -> None:
    page, results = place
    other = {"recall_at_rate": {"0.1": 0.25}, "rate_at_recall_95": 0.75, "area": 0.5}
    slices = {
        "mean_recall": 0.5,
        "mean_equal_precision": 0.6,
        "false_positive_rate": part(0.2),
        "at_other_rates": other,
        "attacks": {"one": {"recall": part(0.5)}},
        "truth_given_away": {"mean_recall": 0.9},
        "wrong_class": part(0.8),
    }
    payload = {
        "goal": {"mean_recall": 0.95, "attacks": 8},
        "published": {"mean_recall": 1.0, "mean_precision": 0.83},
        "settings": {"images": 10, "train": 1000},
        "attacks": {"one": {"images": 7, "pictures": 6, "of": 10}},
        "detectors": {"slices": slices, "softmax": {"at_other_rates": other}},
    }
    write(results, "detection", payload)
    assert report(page, results).returncode == 0
    text = page.read_text()
    assert "learn from 1,000 training images. 10 clean test images, 1 attacks." in text
    assert "at least 8 attacks; not met." in text
    assert "| slices | 50.0% | 20.0% (10.0%–30.0%) | 60.0% | 25.0% | 75.0% | 0.500 |" in text
    assert "| softmax | – | – | – | 25.0% | 75.0% | 0.500 |" in text
    assert "| slices | 50.0% | 90.0% | – | 80.0% (40.0%–90.0%) |" in text
    assert "| one | 7 of 10 | 50.0% |" in text
    write(results, "detection", {**payload, "goal": {"mean_recall": 0.5, "attacks": 1}})
    assert report(page, results).returncode == 0
    assert "at least 1 attacks; met." in page.read_text()
    row = {"synapses": 1234, "clean_flagged": part(0.0), "seconds": 1.0}
    attack = {"recall": part(0.04), "truth_given_away": part(1.0)}
    settings = {"images": 10, "train": 2000}
    write(results, "detection-whole", {"settings": settings, "detectors": {"class": {**row, "PGD_8": attack}}})
    assert report(page, results).returncode == 0
    text = page.read_text()
    assert "| slices of all layers | clean images flagged (95 %) | PGD_8, recall | PGD_8 from the true class |" in text
    assert "| class, 1,234 synapses | 0.0% (0.0%–10.0%) | 4.0% (2.0%–14.0%) | 100.0% (50.0%–110.0%) |" in text


def test_pruning_and_protection_of_classes(place: tuple[Path, Path]) -> None:
    page, results = place
    row = {"ranking": "slice, |w|", "sparsity": 0.5, "compensated": True, "mean": 0.875}
    differences = [{**row, "mean": 0.02, "interval": [-0.01, 0.05]}, {**row, "ranking": "random", "interval": [0, 0]}]
    subsets = [[1, 2], [3, 4, 5]]
    targeted = {
        "settings": {"sizes": [2, 3], "images": 2000, "per_class": 10, "tune_images": 500},
        "subsets": subsets,
        "original": [0.8, 0.9],
        "tuned": {"subsets": 1, "rows": [row, {**row, "sparsity": 0.7}], "differences": differences},
    }
    write(results, "targeted", targeted)
    both = {"target": 0.25, "others": 0.5, "all": 0.4}
    protection = {
        "settings": {"sizes": [2, 3], "images": 300, "share": 0.5, "recipe": {"epochs": 4}},
        "subsets": subsets,
        "transfer": {
            "1000": {
                "rows": {"slice": [both], "random": [{**both, "target": 0.75}] * 2},
                "summary": {
                    "subsets": 1,
                    "means": {"slice": both},
                    "slice less random": {name: {"mean": -0.5, "interval": [-0.6, -0.4]} for name in both},
                },
            }
        },
    }
    write(results, "protection", protection)
    assert report(page, results).returncode == 0
    text = page.read_text()
    assert "2 random sets of 2 to 3 classes" in text
    assert "85.0% unpruned" in text
    assert "After one epoch on 500 images, 1 sets; accuracy in percent:" in text
    assert "| slice, \\|w\\| | compensated | 87.5 | 87.5 |" in text
    assert "| slice, \\|w\\| | compensated | +2.0 (-1.0 to +5.0) | – |" in text
    assert "The attacker trains on 1,000 images, 4 epochs" in text
    assert "| slice | 25.0% | 50.0% | 40.0% |" in text
    assert "| random | -50.0 (-60.0 to -40.0) |" in text
    assert "| 1, 2 | 25.0% | 75.0% |" in text
    assert "| 3, 4, 5 |" not in text


def test_environments_and_faults(place: tuple[Path, Path]) -> None:
    page, results = place
    flips = {"again": 0, "alone": 2}
    environments = [
        {"name": "torch", "accuracy": 0.75, "latency": {"median": 0.0123}, "flips_within": {"again": 0}},
        {"name": "int8", "accuracy": 0.5, "latency": None, "flips_within": flips},
    ]
    write(
        results,
        "environments",
        {
            "settings": {"images": 2000, "batch": 64, "repeats": 5, "seeds": 10, "budget": 1000},
            "summary": {
                **{"float32_pairs": 3, "float32_flips": 2, "surprising_flips_float32": 1, "float32_max_abs": 1.5e-5},
                "not_measured": {"keras": "no converter"},
                "matrix": [[0, 7], [7, None]],
                "environments": environments,
                "pairs": [{"a": "torch", "b": "int8", "differing": 7, "surprising": 6, "max_abs": 0.5}],
            },
            "costs": {"conversion_seconds": 12.3, "seconds": 1234.5, "peak_mib": 2000.4, "peak_mib_before": 900.0},
            "searches": [
                {"a": "torch", "b": "int8", "found": 9, "seeds": 10, "queries": 12345, "reason": None},
                {"a": "torch", "b": "bf16", "reason": "not measured: no"},
            ],
        },
    )
    rates = {"seen": 4, "nothing": {"one": 2}, "first": 0.75, "in_three": 1.0, "bisected": None, "first_by_drift": 0.5}
    network = {"rates": {"torch": rates, "onnxruntime": {**rates, "seen": 5}}, "identical": [{}, {}]}
    goals = {"first": 0.9, "in_three": 0.97, "false_suspects": 0}
    whole = {**rates, "false_suspects": 3}
    write(results, "localize", {"goals": goals, "settings": {"images": 16}, "all": whole, "networks": {"net": network}})
    assert report(page, results).returncode == 0
    text = page.read_text()
    assert "2,000 test images in 2 environments, batches of 64. The 3 pairs" in text
    assert "differ on 2 labels, 1 of them where the margin is at least 0.001" in text
    assert "at most 1.5e-05" in text
    assert "keras was not measured: no converter." in text
    assert "| torch | 75.00% | – | – | – | 12.3 | 0 |" in text
    assert "| int8 | 50.00% | 7 | 6 | 5.0e-01 | – | alone 2 |" in text
    assert "| 2 int8 | 7 | – |" in text
    assert "| torch | int8 | 9 of 10 | 12,345 |" in text
    assert "| torch | bf16 | not measured: no | – |" in text
    assert "4 faults that change something, 2 that do not, 16 images." in text
    assert "2 comparisons have 3 suspects (goal: 0)" in text
    assert "| net | onnxruntime | 5 | 75.0% | 100.0% | – | 50.0% |" in text


@pytest.mark.slow
def test_a_record_says_its_command_without_paths(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    pytest.importorskip("torch")
    out = tmp_path / "kernels.json"
    wanted = ["-m", "bench.kernels", "--smoke", "--shapes", "1x28x28", "--only", "normalise"]
    subprocess.run([sys.executable, *wanted, "--out", str(out)], cwd=ROOT, check=True, capture_output=True)
    record = json.loads(out.read_text())
    assert record["command"] == " ".join(["python", *wanted])
    assert str(tmp_path) not in out.read_text()
    assert {row["what"] for row in record["rows"]} == {"normalise"}
