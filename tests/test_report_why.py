"""Why the models differ, on the page: what it says against the explanation, and what it looks like in a browser."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import browser
import compdx
from compdx import Model, slicing
from compdx.findings import Findings
from compdx.slicing.explanation import FILE, Explanation
from compdx.slicing.measures import Measures, Synapse, WeightChanges
from compdx.zoo import digits
from test_report import HOSTILE, Element, Page, make_outcomes, make_run, make_seeds

pytest.importorskip("jinja2")

from compdx import report

ARROW = "\N{RIGHTWARDS ARROW}"
LONG = "a_layer_name_without_any_space_" * 6


# ---- explanations


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, compdx.Seeds, Explanation]:
    """A network of digits, pruned; a search; its findings explained."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    train, test = digits.load()
    folder = tmp_path_factory.mktemp("why") / "run"
    with digits.one_thread():
        original = digits.train(train, epochs=2)
        pruned = copy.deepcopy(original)
        with torch.no_grad():
            for name, part in pruned.named_parameters():
                if name.endswith("weight"):
                    part[part.abs() < part.abs().flatten().quantile(0.6)] = 0
        options: dict[str, Any] = {"mean": digits.INPUTS.mean, "std": digits.INPUTS.std}
        pair = (Model(original, **options), Model(pruned, **options))
        seeds = test.select(slice(24))
        findings = compdx.search(pair, seeds, budget=60, chains=20, progress=False, out=folder)
        found = slicing.explain(pair, findings, seeds=seeds, data=train.select(slice(100)))
    assert len(found) > 10
    found.save(folder)
    return folder, seeds, found


@pytest.fixture(scope="module")
def page(real: tuple[Path, compdx.Seeds, Explanation]) -> Page:
    return Page(report.write(real[0], seeds=real[1]))


def made_up(findings: Findings, layers: tuple[str, ...]) -> Explanation:
    """An explanation of all findings with finite scores, of layers with any names; every third has no weights."""
    rng = np.random.default_rng(5)
    kept = np.array([kind != "non-finite" for kind in findings.table["kind"].to_pylist()])
    count, width = int(kept.sum()), len(layers)
    channels = {name: rng.random((count, 8)) * rng.random() for name in layers}

    def measured() -> Measures:
        rest = rng.random((3, count, width))
        return Measures(channels=channels, unweighted=channels, drift=9 * rest[0], lost=rest[1], inverted=rest[2])

    weights = {
        name: WeightChanges(
            pruned=np.full(8, 4000), inverted=np.full(8, 17), changed=np.zeros(8, np.int64), size=1_000_000
        )
        for place, name in enumerate(layers)
        if place % 3
    }
    synapse = Synapse(
        layer=layers[0], index=(7, 6, 2, 2), original=-0.125, compressed=-0.0, change="pruned", share=0.25
    )
    labels = [
        findings.table[f"{model}_label"].to_numpy()[kept].astype(np.int64) for model in ("original", "compressed")
    ]
    return Explanation(
        layers=layers,
        findings=measured(),
        seeds=measured(),
        synapses=((synapse,) * 3,) * count,
        where=tuple(rng.random((8, 4)).astype(np.float32) for _ in range(count)),
        weights=weights,
        original_labels=labels[0],
        compressed_labels=labels[1],
        seed_index=findings.table["seed_index"].to_numpy()[kept],
        unpaired={"original": (HOSTILE,), "compressed": ()},
        settings={"original": HOSTILE, "top": 5},
    )


@pytest.fixture(scope="module")
def hard(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Sixty layers, some with names that are long or are markup."""
    seeds = make_seeds(80)
    folder = make_run(tmp_path_factory.mktemp("why") / "hard", seeds, make_outcomes(seeds))
    layers = (HOSTILE, LONG, *(f"features.{k}.conv{k % 3}" for k in range(58)))
    made_up(Findings.load(folder), layers).save(folder)
    return Page(report.write(folder, seeds=seeds))


def rows_of(table: Element) -> list[list[str]]:
    """The cells of a table without its head."""
    return [[cell.words for cell in row.all() if cell.name in ("th", "td")] for row in table.one("tbody").all("tr")]


def percent(value: float) -> str:
    """As on the page; what is on disk has five digits."""
    value = float(f"{value:.5g}")
    return f"{100 * value:.1f} %" if value == 0 or value >= 0.0005 else "< 0.1 %"


def channels_of(row: dict[str, Any]) -> str:
    named = [str(entry["channel"]) for entry in row["channels"] if entry["error"] > 0]
    return f" channel{'s' if len(named) > 1 else ''} {', '.join(named)}" if named else ""


# ---- the page


def test_layers_are_those_of_the_explanation(page: Page, real: tuple[Path, compdx.Seeds, Explanation]) -> None:
    found = real[2]
    section = page.root.one("section", id="why")
    table, signatures = section.all("table", class_="layers")
    assert rows_of(table) == [
        [
            f"{row['layer']}{channels_of(row)} {found.weights[row['layer']].text()}",
            f"{percent(row['error'])} {percent(row['seed_error'])}",
            f"{percent(row['drift'])} {percent(row['seed_drift'])}",
            percent(row["lost"]),
            percent(row["inverted"]),
        ]
        for row in found.rows()
    ]
    assert f"{len(found)} explained findings, layer {found.ranked()[0]} makes the largest error" in section.words
    expected = [
        [
            f"{s.labels[0]} {ARROW} {s.labels[1]}",
            s.layer,
            ", ".join(map(str, s.channels)) or f"many, first {', '.join(map(str, s.top))}",
            str(len(s)),
        ]
        for s in found.signatures
    ]
    assert rows_of(signatures) == expected[:15]
    if len(expected) > 15:
        assert f"{len(expected) - 15} more signature" in section.words


def test_pictures_have_one_column_a_layer(page: Page, real: tuple[Path, compdx.Seeds, Explanation]) -> None:
    found = real[2]
    assert found.seeds is not None
    for name in ("error", "drift"):
        figure = page.figure(f"why-{name}")
        on_findings, on_seeds = (getattr(m, name).mean(0) for m in (found.findings, found.seeds))
        assert page.numbers(f"why-{name}") == [
            [layer, percent(a), percent(b)] for layer, a, b in zip(found.layers, on_findings, on_seeds, strict=True)
        ]
        chart = figure.one("svg", class_="chart")
        assert f"layer {found.layers[int(np.argmax(on_findings))]}: " in chart.attributes["aria-label"]
        for colour, values in (("c-accent", on_findings), ("c-before", on_seeds)):
            columns = chart.all("rect", class_=colour)
            assert [column.one("title").words.split(": ")[0] for column in columns] == list(found.layers)
            heights = np.array([float(column.attributes["height"]) for column in columns])
            np.testing.assert_allclose(heights / heights.max(), values / values.max(), atol=0.002)
            left = [float(column.attributes["x"]) for column in columns]
            assert left == sorted(left)


def test_cards_say_why(page: Page, real: tuple[Path, compdx.Seeds, Explanation]) -> None:
    found = real[2]
    assert found.seed_index is not None
    rows = {int(seed): row for row, seed in enumerate(found.seed_index)}
    assert len(page.cards) == len(rows)
    for card in page.cards:
        row = rows[int(card.attributes["data-seed"])]
        details = card.one("details", class_="why")
        layers, synapses = details.all("table")
        wanted = found.rows(row)
        assert rows_of(layers) == [
            [line["layer"] + channels_of(line), *(percent(line[k]) for k in ("error", "drift", "lost", "inverted"))]
            for line in wanted
        ]
        assert details.one("summary").words == f"Why: layer {wanted[0]['layer']}"
        places = [(synapse.index, synapse.change) for synapse in found.synapses[row]]
        assert [line[0] for line in rows_of(synapses)] == [f"{', '.join(map(str, k))} {how}" for k, how in places]
        chart = details.one("svg", class_="chart")
        for colour, values in (("c-accent", found.findings.error[row]), ("c-before", found.findings.error.mean(0))):
            shapes = re.findall(r"M[\d.]+ ([\d.]+)V([\d.]+)", chart.one("path", class_=colour).attributes["d"])
            heights = np.array([float(floor) - float(top) for floor, top in shapes])
            np.testing.assert_allclose(heights / heights.max(), values / values.max(), atol=0.004)


def test_pictures_of_where_it_happened(tmp_path: Path) -> None:
    """Grey where the layer is right, all colour where it errs most, and the place in words."""
    seeds = make_seeds(8, (3, 16, 16))
    folder = make_run(tmp_path / "run", seeds, make_outcomes(seeds))
    findings = Findings.load(folder)
    document = made_up(findings, ("a", "b")).to_json()
    values = np.zeros((4, 4), np.uint8)
    values[3, 0] = 255
    places = [{"shape": [4, 4], "values": base64.b64encode(values.tobytes()).decode()}, None]
    places += [{"shape": [4, 5], "values": "AAAA"}, {"shape": [4], "values": "AAAA"}, {"shape": "4", "values": "!"}]
    assert len(document["findings"]) >= len(places)
    for entry, where in zip(document["findings"], places, strict=False):
        entry["where"] = where
    del document["findings"][len(places) :]
    (folder / FILE).write_text(json.dumps(document))
    page = Page(report.write(folder))
    (shown,) = page.root.all("figure", class_="where")
    image = shown.one("img")
    assert image.attributes["alt"] == (
        "Where the layer errs: most at 12 % of the way from left to right and 88 % from top to bottom"
    )
    png = Image.open(io.BytesIO(base64.b64decode(image.attributes["src"].split(",")[1]))).convert("RGB")
    picture = np.asarray(png).astype(int)
    np.testing.assert_allclose(picture[15, 0], (255, 106, 0), atol=12)
    spread = picture.max(2) - picture.min(2)
    assert spread[:8, 8:].max() < 12 < 200 < spread[14:, :2].min()
    assert len(page.root.all("details", class_="why")) == len(places)


def test_without_an_explanation_no_section(real: tuple[Path, compdx.Seeds, Explanation], tmp_path: Path) -> None:
    folder, seeds, _ = real
    page = Page(report.write(Findings.load(folder), tmp_path / "page.html", seeds=seeds))
    assert not page.root.all("section", id="why")
    assert not page.root.all("details", class_="why")
    assert not [link for link in page.root.one("nav").all("a") if link.words == "Why"]


def test_an_explanation_of_other_findings_says_so(tmp_path: Path) -> None:
    seeds = make_seeds(40)
    folder = make_run(tmp_path / "run", seeds, make_outcomes(seeds))
    findings = Findings.load(folder)
    document = made_up(findings, ("a", "b")).to_json()
    whole = len(document["findings"])
    (folder / FILE).write_text(json.dumps(document))
    page = Page(report.write(folder))
    assert not page.root.one("section", id="why").all("p", class_="notice")
    assert len(page.root.all("details", class_="why")) == whole < len(page.cards)  # scores that are not finite: none

    del document["findings"][5:]
    document["findings"][0]["seed_index"] += 1
    document["findings"][1]["compressed_label"] += 5
    (folder / FILE).write_text(json.dumps(document))
    page = Page(report.write(folder))
    assert page.root.one("section", id="why").one("p", class_="notice").words == (
        f"The explanation has 3 of the {whole} findings of this run. "
        "2 of the 5 that were explained are not in this run: another seed or other labels."
    )
    shown = {int(card.attributes["data-seed"]) for card in page.cards if card.all("details", class_="why")}
    assert shown == {entry["seed_index"] for entry in document["findings"][2:]}


PARTS = ("layers", "unpaired", "weights", "by_layer", "mean", "findings", "signatures", "settings")


@pytest.mark.parametrize("value", ["gone", None, [3, "text", {"seed_index": [], "layer": 1}]])
@pytest.mark.parametrize("part", PARTS)
def test_any_part_may_be_missing_or_strange(part: str, value: Any, tmp_path: Path) -> None:
    seeds = make_seeds(8)
    folder = make_run(tmp_path / "run", seeds, make_outcomes(seeds))
    document = made_up(Findings.load(folder), ("a", "b")).to_json()
    assert set(document) == set(PARTS)
    document[part] = value
    if value == "gone":
        del document[part]
    (folder / FILE).write_text(json.dumps(document))
    page = Page(report.write(folder))
    names = [element.words for element in page.root.one("section", id="why").all("caption")]
    assert len(names) == (part != "mean" or bool(value and value != "gone")) + (part != "signatures")
    assert bool(page.root.all("figure", id="why-drift")) == (part not in ("layers", "by_layer"))
    assert bool(page.root.all("details", class_="why")) == (part != "findings")


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_damaged_explanation_is_named(text: str, tmp_path: Path) -> None:
    seeds = make_seeds(5)
    folder = make_run(tmp_path / "run", seeds, make_outcomes(seeds))
    (folder / FILE).write_text(text)
    with pytest.raises(ValueError, match=r"explanation\.json"):
        report.write(folder)


def test_hostile_names_of_layers_stay_text(hard: Page) -> None:
    assert HOSTILE not in hard.source
    assert len(hard.root.all("script")) == 1
    section = hard.root.one("section", id="why")
    assert hard.numbers("why-error")[0][0] == " ".join(HOSTILE.split())
    assert f"Not compared: only the original model has {HOSTILE}." in section.text
    assert len(hard.figure("why-error").one("svg", class_="chart").all("rect", class_="c-accent")) == 60


def test_names_of_many_layers_do_not_lie_on_each_other(hard: Page) -> None:
    chart = hard.figure("why-error").one("svg", class_="chart")
    turned = [text for text in chart.all("text") if "rotate" in text.attributes.get("transform", "")]
    places = sorted(float(text.attributes["transform"].split("(")[1].split()[0]) for text in turned)
    assert 10 < len(turned) < 60
    assert np.diff(places).min() >= 12.9
    highest = max(chart.all("rect", class_="c-accent"), key=lambda column: float(column.attributes["height"]))
    name = highest.one("title").words.split(": ")[0]
    assert name[-13:] in [text.words[-13:] for text in turned]


# ---- in a browser


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_it_fits_the_window_and_can_be_read(chromium: browser.Browser, hard: Page, width: int, dark: bool) -> None:
    browser.show_all(chromium, hard.path, width=width, dark=dark)
    browser.check_width(chromium, width)
    browser.check_contrasts(chromium)


@pytest.mark.parametrize("width", [390, 1280])
def test_tables_of_a_usual_network_need_no_scrolling(chromium: browser.Browser, page: Page, width: int) -> None:
    browser.show_all(chromium, page.path, width=width)
    wide = """[...document.querySelectorAll('.scroll')].filter((box) => box.scrollWidth > box.clientWidth)
        .map((box) => box.outerHTML.slice(0, 200))"""
    assert chromium.evaluate(wide) == []


def test_a_card_opens_in_its_place(chromium: browser.Browser, page: Page) -> None:
    """Pictures and charts have their sizes before they are seen: what lies above an opened card does not move."""
    chromium.open(page.path, width=390, height=800)
    above = "document.querySelector('.card .why').getBoundingClientRect().top"
    before = chromium.evaluate(above)
    chromium.evaluate("document.querySelector('.card .why').open = true")
    assert chromium.evaluate(above) == before
    size = chromium.evaluate("[...document.querySelectorAll('.card .why svg.chart')].map((s) => s.clientHeight)[0]")
    assert size > 80
