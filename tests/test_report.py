"""The report: what the page says against counts made here, and what it looks like in a browser."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import browser
from compdx.findings import (
    EFFECTIVE,
    EXHAUSTED,
    INVALID,
    KINDS,
    NON_FINITE,
    SEED,
    Findings,
    Outcomes,
    Summary,
    outcomes_to_table,
)
from compdx.ops import OPERATORS
from compdx.pictures import Trail
from compdx.report import charts, wording
from compdx.report.charts import Axis
from compdx.seeds import Seeds
from compdx.store import RunWriter

jinja2 = pytest.importorskip("jinja2")

from compdx import report  # noqa: E402

SHAPE = (3, 16, 16)
HOSTILE = '<script>document.title="broken"</script>"\'&<img src=x onerror=alert(1)>'
NAMES = ("cat", "dog", HOSTILE, "ship", "a class with quite a long name", "frog")
VOID = {"meta", "link", "img", "rect", "line", "path", "circle", "br", "hr", "input"}


# ---- runs with known content


def make_seeds(count: int, shape: tuple[int, int, int] = SHAPE) -> Seeds:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, len(NAMES), count)
    images = rng.integers(0, 256, (count, *shape)).astype(np.uint8)
    return Seeds(images, labels, indices=np.arange(count) * 3 + 7, source="made up", names=NAMES)


def make_outcomes(seeds: Seeds, kinds: tuple[int, ...] = tuple(range(len(KINDS))), trails: bool = False) -> Outcomes:
    """Ended chains whose images, distances, labels and traces fit each other."""
    count, classes = len(seeds), len(NAMES)
    rng = np.random.default_rng(2)
    kind = np.resize(np.array(kinds, np.uint8), count)
    rng.shuffle(kind)
    step = np.where(kind == SEED, 0, rng.integers(1, 60, count)).astype(np.uint32)
    change = rng.integers(-9, 10, seeds.images.shape)
    change[kind == SEED] = 0
    images = np.clip(seeds.images + change, 0, 255).astype(np.uint8)
    moved = images.astype(np.int64) - seeds.images
    original = rng.integers(0, classes, count).astype(np.int32)
    compressed = ((original + 1 + rng.integers(0, 2, count)) % classes).astype(np.int32)
    compressed[kind == EXHAUSTED] = original[kind == EXHAUSTED]
    compressed[kind == NON_FINITE] = -1
    return Outcomes(
        seed_index=seeds.indices,
        kind=kind,
        step=step,
        queries=step + np.uint32(1),
        accepted=np.zeros(count, np.uint32),
        states=np.zeros(count, np.uint32),
        seed_label=np.where(kind == INVALID, (original + 3) % classes, original).astype(np.int32),
        original_label=original,
        compressed_label=compressed,
        original_confidence=rng.random(count),
        compressed_confidence=np.where(kind == NON_FINITE, np.nan, rng.random(count)),
        non_finite=np.where(kind == NON_FINITE, 2, 0).astype(np.uint8),
        l2_squared=(moved**2).reshape(count, -1).sum(1),
        linf=np.abs(moved).reshape(count, -1).max(1).astype(np.uint8),
        images=images,
        traces=[
            (rng.integers(0, 7, n) | rng.integers(0, 2, n) << 3).astype(np.uint8)
            for n in (0 * step if trails else step)
        ],
        trails=[make_trail(rng, image) for image in images] if trails else None,
    )


def make_trail(rng: np.random.Generator, image: npt.NDArray[np.uint8], length: int = 6) -> Trail:
    labels = rng.integers(0, 2, (2, length)).astype(np.int32)
    return Trail(
        step=np.arange(1, length + 1, dtype=np.int32),
        original_label=labels[0],
        compressed_label=labels[1],
        original_confidence=rng.random(length),
        compressed_confidence=rng.random(length),
        l2=rng.random(length),
        linf=np.full(length, 3, np.int16),
        images=np.repeat(image[None], length, axis=0),
    )


def make_header(seeds: Seeds, **changes: Any) -> dict[str, Any]:
    return {
        "method": {"name": "mcmc", "settings": {"budget": 60, "overflow": "clip", "linf": None}},
        "seed": 7,
        "seeds": {
            "fingerprint": seeds.fingerprint,
            "count": len(seeds),
            "shape": list(seeds.shape),
            "source": seeds.source,
        },
        "pair": {"original": {"name": f"big {HOSTILE}", "inputs": {"mean": [0.5, 0.4]}}, "compressed": "small"},
        "chains": 4,
        "device": "cpu",
        "versions": {"compdx": "9.8.7"},
        "started": "2025-01-02T03:04:05+00:00",
    } | changes


def make_run(folder: Path, seeds: Seeds, outcomes: Outcomes, *, finish: bool = True, **changes: Any) -> Path:
    with RunWriter.create(folder, make_header(seeds, **changes)) as writer:
        writer.append(outcomes)
        if finish:
            table = outcomes_to_table(outcomes, OPERATORS)
            writer.finish(Summary.of(table, seeds=len(seeds), seconds=20.0, occupancy=0.9))
    return folder


def write_timeline(folder: Path, *, coverage: bool) -> None:
    moments = [
        {
            "seconds": second,
            "queries": 50 * second,
            "ended": 2 * second,
            "found": second,
            "already_deviating": 0,
            "exhausted": 0,
            "coverage": 0.5 + second / 80 if coverage else None,
        }
        for second in range(21)
    ]
    (folder / "progress.jsonl").write_text("".join(json.dumps(moment) + "\n" for moment in moments))


REPAIR = {
    "accuracy": {"before": 0.9012, "after": 0.9},
    "findings": {"before": 1290, "after": 312},
    "unseen": {"before": 1000, "after": 875, "seeds": 500},
    "fgsm": [{"epsilon": 2, "before": 0.71, "after": 0.72}, {"epsilon": 8.0, "before": 0.31, "after": 0.39}],
    "settings": {"recipe": {"rate": 0.001, "epochs": 5}, "repair": "iterate"},
    "rounds": [
        {"round": 1, "found": {"before": 1290, "after": 1100}},
        {"round": 2, "found": {"before": 1100, "after": 701}},
    ],
}


@pytest.fixture(scope="module")
def seeds() -> Seeds:
    return make_seeds(80)


@pytest.fixture(scope="module")
def outcomes(seeds: Seeds) -> Outcomes:
    return make_outcomes(seeds)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, seeds: Seeds, outcomes: Outcomes) -> Path:
    """A run with everything that a report can hold but the pictures of a gradient search."""
    folder = make_run(tmp_path_factory.mktemp("report") / "run", seeds, outcomes)
    write_timeline(folder, coverage=True)
    (folder / "repair.json").write_text(json.dumps(REPAIR))
    return folder


@pytest.fixture(scope="module")
def page(run: Path, seeds: Seeds) -> Page:
    path = report.write(run, seeds=seeds)
    assert path == run / "report.html"
    return Page(path)


# ---- pages


@dataclass(eq=False)
class Element:
    """An element with what is in it, texts included, in order."""

    name: str
    attributes: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    @property
    def words(self) -> str:
        return " ".join(self.text.replace("\N{NO-BREAK SPACE}", " ").replace("\N{NARROW NO-BREAK SPACE}", " ").split())

    def all(self, name: str = "", **attributes: str) -> list[Element]:
        """The elements inside with this name and these attributes; of a class, one of the words."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                fits = all(
                    value in child.attributes.get(key.strip("_"), "").split() for key, value in attributes.items()
                )
                found += ([child] if fits and name in ("", child.name) else []) + child.all(name, **attributes)
        return found

    def one(self, name: str = "", **attributes: str) -> Element:
        (element,) = self.all(name, **attributes)
        return element


class Page(HTMLParser):
    """A page as a tree; raises where an element is not closed or closed twice."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.source = path, path.read_text(encoding="utf-8")
        self.root = Element("", {})
        self._open = [self.root]
        self.feed(self.source)
        self.close()
        assert self._open == [self.root], f"<{self._open[-1].name}> is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(element)
        if tag not in VOID or (tag == "rect" and not self._closed_at_once()):
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open[-1].children.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().name == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)

    def _closed_at_once(self) -> bool:
        text = self.get_starttag_text()
        return text is not None and text.endswith("/>")

    @property
    def words(self) -> str:
        return self.root.words

    @property
    def cards(self) -> list[Element]:
        return self.root.all("li", class_="card")

    def figure(self, key: str) -> Element:
        return self.root.one("figure", id=key)

    def numbers(self, key: str) -> list[list[str]]:
        """The table of a figure without its head."""
        return [[cell.words for cell in row.all("td")] for row in self.figure(key).one("tbody").all("tr")]


def pixels(image: Element) -> npt.NDArray[np.uint8]:
    """The picture of an <img>, uint8 [C, H, W]."""
    head, data = image.attributes["src"].split(",", 1)
    assert head == "data:image/png;base64"
    array = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


# ---- the page


def test_the_page_needs_nothing_else(page: Page) -> None:
    elements = page.root.all()
    for element in elements:
        assert element.name not in ("iframe", "object", "embed", "base", "form") or element.attributes.get("id")
        for name in ("src", "href", "action", "srcset", "data", "xlink:href"):
            if name in element.attributes:
                assert element.attributes[name].startswith(("data:", "#")), element.attributes[name][:80]
        assert not [name for name in element.attributes if name.startswith("on") or name == "style"]
    style, script = page.root.one("style").text, page.root.one("script").text
    assert "url(" not in style
    assert "@import" not in style
    assert not [word for word in ("fetch", "XMLHttpRequest", "innerHTML", "eval(", "http") if word in script]


def test_the_policy_allows_this_style_and_this_script_alone(page: Page) -> None:
    (policy,) = (
        element.attributes["content"]
        for element in page.root.all("meta")
        if element.attributes.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert (rules["default-src"], rules["img-src"]) == ("'none'", "data:")
    for name in ("style", "script"):
        digest = hashlib.sha256(page.root.one(name).text.encode()).digest()
        assert rules[f"{name}-src"] == f"'sha256-{base64.b64encode(digest).decode()}'"


def test_hostile_names_stay_text(page: Page) -> None:
    assert len(page.root.all("script")) == 1
    assert not [image for image in page.root.all("img") if not image.attributes["src"].startswith("data:")]
    assert f"big {HOSTILE}" in page.root.one("h1").text
    assert HOSTILE not in page.source


def test_the_sentence_names_the_pair_and_what_was_found(page: Page, outcomes: Outcomes) -> None:
    found = int(np.isin(outcomes.kind, (EFFECTIVE, INVALID)).sum())
    assert page.root.one("h1").words == (
        f"{found} images were found on which big {HOSTILE} and small give different labels, "
        f"in {int(outcomes.queries.sum()):,} queries from 80 seeds; "
        f"on {int((outcomes.kind == SEED).sum())} seeds they differ without any search."
    )
    ended = {item.one("b").words for item in page.root.one("ul", class_="kinds").all("li")}
    counts = Counter(KINDS[code] for code in outcomes.kind)
    assert ended == {f"{count} {kind}" for kind, count in counts.items()}


def test_every_figure_has_a_title_and_words(page: Page) -> None:
    keys = [figure.attributes["id"] for figure in page.root.all("figure", class_="chart")]
    assert keys == [
        *("flips", "queries", "confidences", "deltas", "operators"),
        *("repair-counts", "repair-accuracy", "repair-rounds"),
        *("progress", "throughput", "coverage"),
    ]
    for figure in page.root.all("figure", class_="chart"):
        chart = figure.one("svg", class_="chart")
        assert chart.attributes["role"] == "img"
        assert len(chart.attributes["aria-label"]) > 40
        assert figure.one("h3").words
    for image in page.root.all("img"):
        assert image.attributes["alt"]
    for select in page.root.all("select"):
        assert select in [inner for label in page.root.all("label") for inner in label.all("select")]


def test_settings_and_versions(page: Page) -> None:
    groups = {
        details.one("summary").words: {
            pair.one("dt").words: pair.one("dd").words for pair in details.one("dl").all("div")
        }
        for details in page.root.one("section", id="settings").all("details")
    }
    assert groups["Versions"] == {"compdx": "9.8.7"}
    assert groups["Method mcmc"] == {"budget": "60", "overflow": "clip", "linf": "none"}
    assert groups["Original model"] == {"name": f"big {HOSTILE}", "inputs.mean": "0.5, 0.4"}
    assert groups["Compressed model"] == {"name": "small"}
    assert groups["Seeds"]["shape"] == "3, 16, 16"
    assert groups["Run"]["seed"] == "7"


# ---- the gallery


def test_cards_are_the_findings(page: Page, run: Path, seeds: Seeds) -> None:
    findings = Findings.load(run)
    rows = {row["seed_index"]: (row, k) for k, row in enumerate(findings.table.drop_columns("image").to_pylist())}
    assert sorted(int(card.attributes["data-seed"]) for card in page.cards) == sorted(rows)
    factor = None
    for card in page.cards:
        index = int(card.attributes["data-seed"])
        row, place = rows[index]
        labels = [row["original_label"], row["compressed_label"]]
        assert card.one("code").words == row["sha256"]
        assert (card.attributes["data-kind"], card.attributes["data-flip"]) == (row["kind"], "{}-{}".format(*labels))
        assert float(card.attributes["data-l2"]) == pytest.approx(row["l2"], abs=1e-4)
        seed, finding, difference = card.all("img")
        origin = seeds.images[seeds.locate(index)[0]]
        np.testing.assert_array_equal(pixels(seed), origin)
        np.testing.assert_array_equal(pixels(finding), findings.images[place])
        factor = factor or int(card.all("figcaption")[2].words.removeprefix("Difference \N{MULTIPLICATION SIGN}"))
        expected = 128 + factor * (findings.images[place].astype(int) - origin)
        np.testing.assert_array_equal(pixels(difference), np.clip(expected, 0, 255))
        said = {line.one("dt").words: [text.words for text in line.all("dd")] for line in card.one("dl").all("div")}
        assert said["original"][0] == wording.label(labels[0], NAMES)
        if row["kind"] == "non-finite":
            assert said["compressed"] == ["not finite", ""]
        else:
            assert said["compressed"][0] == wording.label(labels[1], NAMES)
            assert float(card.attributes["data-delta"]) == pytest.approx(
                abs(row["original_confidence"] - row["compressed_confidence"]), abs=1e-4
            )
        given = int(seeds.labels[seeds.locate(index)[0]]) if seeds.labels is not None else -1
        name = wording.label(row["seed_label"], NAMES)
        extra = "" if given == row["seed_label"] else f" (labelled {wording.label(given, NAMES)})"
        assert said["seed"] == [" ".join((name + extra).split())]
    assert factor == 8


def test_a_limit_leaves_out_the_larger_changes_and_says_so(run: Path, seeds: Seeds, tmp_path: Path) -> None:
    table = Findings.load(run).table.drop_columns("image").to_pylist()
    groups: dict[tuple[str, int, int], list[float]] = {}
    for row in table:
        groups.setdefault((row["kind"], row["original_label"], row["compressed_label"]), []).append(row["l2"])
    page = Page(report.write(run, tmp_path / "short.html", seeds=seeds, limit=len(groups)))
    assert f"{len(groups)} of {len(table)} findings are shown" in page.words
    assert f"The other {len(table) - len(groups)} are in the run." in page.words
    shown = {}
    for card in page.cards:
        a, b = card.attributes["data-flip"].split("-", 1)
        shown[card.attributes["data-kind"], int(a), int(b)] = float(card.attributes["data-l2"])
    assert shown == {group: pytest.approx(min(values), abs=1e-4) for group, values in groups.items()}


def test_without_seeds_the_findings_alone(run: Path, tmp_path: Path) -> None:
    page = Page(report.write(run, tmp_path / "alone.html", names=["zero", "one"]))
    assert {len(card.all("img")) for card in page.cards} == {1}
    assert "The seeds were not given" in page.words
    assert {"zero", "one", "2"} <= {text.words for text in page.root.all("dd")}


def test_large_pictures_are_reduced_and_the_file_stays_small(tmp_path: Path) -> None:
    seeds = make_seeds(60, (3, 200, 160))
    folder = make_run(tmp_path / "large", seeds, make_outcomes(seeds))
    page = Page(report.write(folder, seeds=seeds))
    assert page.path.stat().st_size < 5_000_000
    assert 5 <= len(page.cards) < 48
    assert pixels(page.cards[0].all("img")[0]).shape == (3, 128, 102)
    assert "Pictures are reduced to 128 pixels here." in page.words
    assert f"{len(page.cards)} of 48 findings are shown" in page.words


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_pictures_of_any_number_of_channels(channels: int, tmp_path: Path) -> None:
    seeds = make_seeds(5, (channels, 9, 7))
    page = Page(report.write(make_run(tmp_path / "run", seeds, make_outcomes(seeds)), seeds=seeds))
    shown = 1 if channels < 3 else 3
    np.testing.assert_array_equal(
        pixels(page.cards[0].all("img")[0]),
        seeds.images[seeds.locate(int(page.cards[0].attributes["data-seed"]))[0]][:shown],
    )


def test_other_seeds_are_refused(run: Path, seeds: Seeds, tmp_path: Path) -> None:
    other = Seeds(255 - seeds.images, indices=seeds.indices)
    with pytest.raises(ValueError, match="seeds must be those of the run, but seed"):
        report.write(run, tmp_path / "x.html", seeds=other)
    with pytest.raises(ValueError, match="seed"):
        report.write(run, tmp_path / "x.html", seeds=seeds.select(slice(3)))
    assert not list(tmp_path.iterdir())


# ---- the figures


def test_flips_are_counted(page: Page, outcomes: Outcomes) -> None:
    chosen = (outcomes.kind != EXHAUSTED) & (outcomes.kind != NON_FINITE)
    flips = Counter(zip(outcomes.original_label[chosen], outcomes.compressed_label[chosen], strict=True))
    expected = {(wording.label(a, NAMES), wording.label(b, NAMES)): count for (a, b), count in flips.items()}
    expected = {(" ".join(a.split()), " ".join(b.split())): count for (a, b), count in expected.items()}
    assert {(a, b): int(count) for a, b, count in page.numbers("flips")} == expected
    cells = [title.words for title in page.figure("flips").all("title")]
    assert len(cells) == len(NAMES) ** 2
    assert {cell.rsplit(": ", 1)[0]: int(cell.rsplit(": ", 1)[1]) for cell in cells if not cell.endswith(": 0")} == {
        f"{a} → {b}": count for (a, b), count in expected.items()
    }


def test_queries_to_a_finding(page: Page, outcomes: Outcomes) -> None:
    needed = sorted(int(n) for n in outcomes.queries[np.isin(outcomes.kind, (EFFECTIVE, INVALID))])
    table = dict(page.numbers("queries"))
    for share in (10, 25, 50, 75, 90, 100):
        least = next(n for n in needed if sum(m <= n for m in needed) >= share / 100 * len(needed))
        assert int(table[f"{share} %"]) == least
    assert f"Half of the findings took {table['50 %']} queries or fewer" in page.figure("queries").words


def test_the_gradient_search_is_counted_to_the_finding(tmp_path: Path, seeds: Seeds) -> None:
    outcomes = make_outcomes(seeds, trails=True)
    outcomes.queries[:] = 100  # every chain goes on to the end of its budget
    page = Page(report.write(make_run(tmp_path / "run", seeds, outcomes), seeds=seeds))
    found = np.isin(outcomes.kind, (EFFECTIVE, INVALID))
    assert int(dict(page.numbers("queries"))["100 %"]) == outcomes.step[found].max() + 1


def test_confidences_and_their_difference(page: Page, outcomes: Outcomes) -> None:
    found = np.isin(outcomes.kind, (EFFECTIVE, INVALID))
    a, b = outcomes.original_confidence[found], outcomes.compressed_confidence[found]
    table = {row[0]: (int(row[1]), int(row[2])) for row in page.numbers("confidences")}
    for low in range(0, 100, 5):
        inside = [int(((100 * x >= low) & (100 * x < low + 5)).sum()) for x in (a, b)]
        assert table.get(f"{low} to {low + 5} %", (0, 0)) == tuple(inside)
    assert sum(int(count) for _, count in page.numbers("deltas")) == found.sum()
    positive = sum(int(count) for span, count in page.numbers("deltas") if not span.startswith("\N{MINUS SIGN}"))
    assert positive == (b > a).sum()


def test_operators_are_credited_for_findings_alone(page: Page, outcomes: Outcomes) -> None:
    last, before = Counter[str](), Counter[str]()
    for trace, kind in zip(outcomes.traces, outcomes.kind, strict=True):
        if kind in (EFFECTIVE, INVALID):
            last[OPERATORS[trace[-1] & 7]] += 1
            before.update(OPERATORS[code & 7] for code in trace[:-1] if code & 8)
    assert {name: (int(a), int(b)) for name, a, b in page.numbers("operators")} == {
        name: (last[name], before[name]) for name in OPERATORS
    }


def test_time_and_coverage(page: Page, run: Path, tmp_path: Path) -> None:
    assert "1,000 queries in 20.0 s: 50 a second on average." in page.figure("throughput").words
    assert {rate for _, rate in page.numbers("throughput")} == {"50"}
    assert page.numbers("progress")[-1] == ["20.0 s", "40", "20"]
    assert page.numbers("coverage")[-1] == ["1,000", "75.0 %"]
    bare = make_run(tmp_path / "bare", make_seeds(5), make_outcomes(make_seeds(5)))
    write_timeline(bare, coverage=False)
    figures = [figure.attributes["id"] for figure in Page(report.write(bare)).root.all("figure", class_="chart")]
    assert "throughput" in figures
    assert "coverage" not in figures
    (bare / "progress.jsonl").write_text((run / "progress.jsonl").read_text().splitlines()[0])
    assert "No timeline is known" in Page(report.write(bare)).words


def test_classes_of_the_pictures(tmp_path: Path, seeds: Seeds) -> None:
    folder = make_run(tmp_path / "run", seeds, make_outcomes(seeds, trails=True))
    pictures = Findings.load(folder).pictures
    assert pictures is not None
    counts = pictures.counts()
    page = Page(report.write(folder, seeds=seeds))
    section = page.root.one("section", id="pictures")
    rows = {row.one("th").children[0]: row.all("td")[0].words for row in section.all("tbody")[0].all("tr")}
    assert rows == {name: f"{counts[name]:,}" for name in ("effective", "strict", "invalid", "valid")}
    assert (
        f"strict count, which leaves out seeds on which the pair already deviates, {counts['strict']}" in section.words
    )
    for step, strict, seed, invalid, valid in page.numbers("pictures"):
        here = pictures.step == int(step)
        assert int(strict) == (pictures.strict & here).sum()
        assert int(seed) == (pictures.effective & ~pictures.strict & here).sum()
        assert int(invalid) == (pictures.invalid & here).sum()
        assert int(valid) == (pictures.valid & here).sum()
    assert not page.root.all("figure", id="operators")


# ---- repair


def test_before_and_after_a_repair(page: Page) -> None:
    section = page.root.one("section", id="repair")
    rows = [[cell.words for cell in (row.one("th"), *row.all("td"))] for row in section.all("tbody")[0].all("tr")]
    assert rows == [
        ["Effective pictures in the repair set", "1,290", "312", "\N{MINUS SIGN}76 %"],
        ["Effective pictures from 500 unseen seeds", "1,000", "875", "\N{MINUS SIGN}12 %"],
        ["Accuracy", "90.12 %", "90.00 %", "\N{MINUS SIGN}0.12 points"],
        ["Accuracy under FGSM, ε = 2", "71.00 %", "72.00 %", "+1.00 points"],
        ["Accuracy under FGSM, ε = 8", "31.00 %", "39.00 %", "+8.00 points"],
    ]
    assert page.numbers("repair-rounds") == [["before", "1,290"], ["after round 1", "1,100"], ["after round 2", "701"]]
    settings = {pair.one("dt").words: pair.one("dd").words for pair in section.one("dl").all("div")}
    assert settings == {"recipe.rate": "0.001", "recipe.epochs": "5", "repair": "iterate"}


@pytest.mark.parametrize(
    "document",
    [
        *({key: value for key, value in REPAIR.items() if key != missing} for missing in REPAIR),
        dict.fromkeys(REPAIR),
        {"findings": {"before": 0, "after": 0}, "fgsm": [{"before": 0.5}, {"before": 0.5, "after": None}, 3]},
        {},
    ],
)
def test_any_part_of_a_repair_may_be_missing(document: dict[str, Any], tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", make_seeds(5), make_outcomes(make_seeds(5)))
    (folder / "repair.json").write_text(json.dumps(document))
    words = Page(report.write(folder)).root.one("section", id="repair").words
    assert ("no figures" in words) == (document.get("findings") is None and document.get("accuracy") is None)


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_damaged_repair_is_named(text: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", make_seeds(5), make_outcomes(make_seeds(5)))
    (folder / "repair.json").write_text(text)
    with pytest.raises(ValueError, match=r"repair\.json"):
        report.write(folder)


# ---- runs with little in them


@pytest.mark.parametrize("finish", [True, False])
def test_nothing_found(finish: bool, tmp_path: Path) -> None:
    seeds = make_seeds(6)
    page = Page(report.write(make_run(tmp_path / "run", seeds, make_outcomes(seeds, (EXHAUSTED,)), finish=finish)))
    assert page.root.one("h1").words.startswith(
        "No image was found on which" if finish else "No image has been found yet on which"
    )
    assert not page.cards
    assert not page.root.all("figure", class_="chart")
    assert "There is nothing to show" in page.root.one("section", id="findings").words
    assert ("The run is not finished" in page.words) is not finish


def test_no_seed_has_ended(tmp_path: Path) -> None:
    seeds = make_seeds(6)
    page = Page(report.write(make_run(tmp_path / "run", seeds, Outcomes.empty(SHAPE), finish=False), seeds=seeds))
    assert "6 open" in page.root.one("ul", class_="kinds").words
    assert "in 0 queries from 6 seeds." in page.root.one("h1").words


def test_seeds_that_deviate_and_models_that_break(tmp_path: Path) -> None:
    seeds = make_seeds(6)
    page = Page(report.write(make_run(tmp_path / "run", seeds, make_outcomes(seeds, (SEED, NON_FINITE))), seeds=seeds))
    assert page.root.one("h1").words.endswith("from 6 seeds; on 3 seeds they differ without any search.")
    assert [card.attributes["data-kind"] for card in page.cards] == ["seed"] * 3 + ["non-finite"] * 3
    assert [figure.attributes["id"] for figure in page.root.all("figure", class_="chart")] == ["flips"]


def test_many_classes_and_one_finding(tmp_path: Path) -> None:
    seeds = make_seeds(70)
    outcomes = make_outcomes(seeds, (EFFECTIVE,))
    outcomes.original_label[:] = np.arange(70)
    outcomes.compressed_label[:] = np.arange(70) + 1
    page = Page(report.write(make_run(tmp_path / "many", seeds, outcomes)))
    assert "The matrix has the 20 most frequent of 71 classes" in page.figure("flips").words
    assert len(page.figure("flips").all("title")) == 400
    assert page.numbers("flips")[-1] == ["50 other pairs", "", "50"]
    one = make_seeds(1)
    words = Page(report.write(make_run(tmp_path / "one", one, make_outcomes(one, (EFFECTIVE,))), seeds=one)).words
    assert "1 image was found on which" in words


def test_findings_without_a_directory(seeds: Seeds, outcomes: Outcomes, tmp_path: Path) -> None:
    table = outcomes_to_table(outcomes, OPERATORS)
    findings = Findings(table, settings={}, summary=Summary.of(table, seeds=len(seeds)), shape=SHAPE)
    page = Page(report.write(findings, tmp_path / "page.html", seeds=seeds))
    assert "the original model and the compressed model give different labels" in page.words
    assert "These findings come without settings." in page.words
    assert len(page.cards) == len(findings)


def test_a_run_of_the_first_format(tmp_path: Path) -> None:
    golden = Path(__file__).parent / "golden" / "finished"
    page = Page(report.write(golden, tmp_path / "golden.html"))
    assert len(page.cards) == len(Findings.load(golden))


# ---- errors


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"run": 3}, TypeError, "run must be a run directory or compdx.Findings, got int"),
        ({"run": "nowhere"}, FileNotFoundError, "nowhere is no run directory"),
        ({"seeds": "digits"}, TypeError, "seeds must be compdx.Seeds, got str"),
        ({"seeds": make_seeds(2, (1, 4, 4))}, ValueError, r"shape of the findings, \(3, 16, 16\), got \(1, 4, 4\)"),
        ({"names": "cats"}, TypeError, "names must be a sequence of class names, got the text 'cats'"),
        ({"limit": 0}, ValueError, "limit must be at least 1, got 0"),
        ({"limit": 2.5}, TypeError, "limit must be an integer, got float"),
    ],
)
def test_wrong_arguments(run: Path, tmp_path: Path, arguments: dict[str, Any], error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        report.write(**{"run": run, "path": tmp_path / "page.html", **arguments})
    assert not list(tmp_path.iterdir())


def test_findings_need_a_path(run: Path) -> None:
    with pytest.raises(ValueError, match="path must be given for findings"):
        report.write(Findings.load(run))


def test_a_damaged_image_is_not_shown(run: Path, tmp_path: Path) -> None:
    findings = Findings.load(run)
    hashes = ["0" * 64, *findings.table["sha256"].to_pylist()[1:]]
    table = findings.table.set_column(findings.table.schema.get_field_index("sha256"), "sha256", [hashes])
    damaged = Findings(table, settings={}, summary=findings.summary, shape=SHAPE)
    with pytest.raises(ValueError, match="must have the SHA-256 000"):
        report.write(damaged, tmp_path / "page.html")


def test_without_jinja_the_line_that_brings_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ModuleNotFoundError, match=r'the report needs jinja2: pip install "compdx\[report\]"'):
        report.write(run)


# ---- numbers in words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (wording.percent(0.5), "50 %"),
        (wording.percent(0.0), "0 %"),
        (wording.percent(0.9996), "> 99 %"),
        (wording.percent(0.0004, 1), "< 0.1 %"),
        (wording.percent(1.0), "100 %"),
        (wording.percent(float("nan")), "\N{EN DASH}"),
        (wording.number(-1234.5, 1), "\N{MINUS SIGN}1,234.5"),
        (wording.number(None), "\N{EN DASH}"),
        (wording.duration(59.94), "59.9 s"),
        (wording.duration(250), "4 min 10 s"),
        (wording.duration(7500), "2 h 5 min"),
        (wording.moment("2025-01-01T01:00:00+02:00"), "2024-12-31 23:00 UTC"),
        (wording.moment("yesterday"), "yesterday"),
        (wording.plural(1, "query", "queries"), "1 query"),
        (wording.label(-1, None), "unknown"),
        (wording.label(7, ["a"]), "7"),
    ],
)
def test_words(text: str, expected: str) -> None:
    assert text.replace("\N{NO-BREAK SPACE}", " ").replace("\N{NARROW NO-BREAK SPACE}", " ") == expected


@pytest.mark.parametrize(
    ("high", "whole"),
    [
        *((high, False) for high in (0, 1e-9, 0.004, 0.3, 1, 2, 7.1, 99.5, 101, 12345.6, 3.2e9)),
        *((high, True) for high in (0, 1, 2, 3, 4, 7, 10, 11, 99, 100, 101, 500, 12345, 1e6)),
    ],
)
def test_axes_end_on_a_round_value(high: float, whole: bool) -> None:
    axis = charts.up_to("", high, whole=whole)
    ticks = axis.ticks()
    assert high <= axis.high <= max(1.5 * high, 1.0 if whole or not high else 0.0)
    assert 2 <= len(ticks) <= 7
    assert ticks[0] == 0
    assert ticks[-1] == pytest.approx(axis.high)
    if whole:
        assert all(tick == round(tick) for tick in ticks)


def test_a_logarithmic_axis() -> None:
    axis = Axis(title="", low=1, high=200, log=True)
    assert axis.ticks() == [1, 10, 100]
    assert axis.share(1) == 0
    assert axis.share(200) == 1
    assert axis.share(10) == pytest.approx(np.log(10) / np.log(200))


# ---- in a browser

SIZES = [(375, 812), (1200, 900)]


@pytest.fixture(scope="module")
def gradient_page(tmp_path_factory: pytest.TempPathFactory, seeds: Seeds) -> Path:
    """Another method, long names without a space, nothing finished."""
    name = "a_name_without_any_space_" * 8
    folder = tmp_path_factory.mktemp("report") / "gradient"
    make_run(
        folder,
        seeds,
        make_outcomes(seeds, trails=True),
        finish=False,
        pair={"original": name, "compressed": {"name": name, "weights_sha256": "f" * 64}},
    )
    return report.write(folder, names=[f"{name}{k}" for k in range(len(NAMES))])


@pytest.fixture(params=["mcmc", "gradient"])
def shown(request: pytest.FixtureRequest, page: Page, gradient_page: Path) -> Path:
    return page.path if request.param == "mcmc" else gradient_page


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_it_opens_without_errors_and_without_the_network(
    chromium: browser.Browser, shown: Path, width: int, height: int
) -> None:
    chromium.open(shown, width=width, height=height)
    assert chromium.errors == []
    assert chromium.requests == [shown.resolve().as_uri()]
    assert chromium.evaluate("document.title") != "broken"
    broken = "[...document.images].filter((image) => image.complete && !image.naturalWidth).length"
    assert chromium.evaluate(broken) == 0


@pytest.mark.parametrize("width", [320, 375, 640, 800, 1200])
def test_nothing_is_wider_than_the_window(chromium: browser.Browser, shown: Path, width: int) -> None:
    browser.show_all(chromium, shown, width=width)
    browser.check_width(chromium, width)


@pytest.mark.parametrize("dark", [False, True])
def test_all_text_can_be_read(chromium: browser.Browser, shown: Path, dark: bool) -> None:
    browser.show_all(chromium, shown, dark=dark)
    browser.check_contrasts(chromium)


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb`` by WCAG 2.1."""
    levels = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    return float(
        np.where(levels <= 0.03928, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)
    )


def test_numbers_in_the_matrix_can_be_read_on_every_shade(page: Page) -> None:
    light, dark = page.root.one("style").text.split("@media screen and (prefers-color-scheme: dark)")
    for theme in (light, dark.split("}")[0]):
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", theme))
        for shade in range(1, charts.SHADES + 1):
            both = luminance(colours["on-low" if shade <= 3 else "on-high"]), luminance(colours[f"q{shade}"])
            assert (max(both) + 0.05) / (min(both) + 0.05) >= 4.5, (theme[:40], shade)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_light_and_dark(chromium: browser.Browser, page: Page, width: int, height: int) -> None:
    corners, inks = [], []
    for dark in (False, True):
        chromium.open(page.path, width=width, height=height, dark=dark)
        picture = chromium.screenshot()
        assert picture.size == (width, height)
        corners.append(sum(picture.getpixel((3, 3))))  # type: ignore[misc, arg-type]
        levels = np.asarray(picture.convert("L"))
        inks.append(int((np.abs(levels.astype(int) - int(levels[3, 3])) > 60).sum()))
    assert corners[0] > 3 * 220
    assert corners[1] < 3 * 40
    assert min(inks) > 4000, "a page without much on it"
    chromium.open(page.path, dark=True, media="print")
    assert chromium.screenshot().getpixel((3, 3)) == (255, 255, 255)
    assert chromium.evaluate("document.getElementById('controls').offsetHeight") == 0


CARDS = "[...document.querySelectorAll('#cards .card')].map((card) => ({...card.dataset}))"


def choose(chromium: browser.Browser, select: str, value: str) -> list[dict[str, str]]:
    """The cards after another choice, all pages of them."""
    chromium.evaluate(
        f"(() => {{ const select = document.getElementById({select!r}); select.value = {value!r};"
        "select.dispatchEvent(new Event('change')); const more = document.getElementById('more');"
        "while (!more.hidden) more.click(); })()"
    )
    cards: list[dict[str, str]] = chromium.evaluate(CARDS)
    return cards


def test_filter_and_order(chromium: browser.Browser, page: Page) -> None:
    expected = [
        {key.removeprefix("data-"): card.attributes[key] for key in card.attributes if key != "class"}
        for card in page.cards
    ]
    chromium.open(page.path)
    assert chromium.evaluate(CARDS) == expected[:24]
    assert chromium.evaluate("document.getElementById('count').textContent") == f"24 of {len(expected)} shown"
    for kind in ("effective", "non-finite"):
        assert choose(chromium, "kind", kind) == [card for card in expected if card["kind"] == kind]
    flip = expected[0]["flip"]
    assert choose(chromium, "kind", "") == expected
    assert choose(chromium, "flip", flip) == [card for card in expected if card["flip"] == flip]
    assert choose(chromium, "flip", "") == expected
    for order, sign in (("l2", 1), ("step", 1), ("-delta", -1), ("seed", 1)):
        key = order.removeprefix("-")
        assert choose(chromium, "order", order) == sorted(expected, key=lambda card: sign * float(card[key]))
    assert chromium.errors == []
    nothing = choose(chromium, "kind", "non-finite") and choose(chromium, "flip", flip)
    if not nothing:
        assert chromium.evaluate("document.getElementById('count').textContent").startswith("None is of this kind")


def test_by_keyboard(chromium: browser.Browser, page: Page) -> None:
    chromium.open(page.path)
    chromium.press("Tab", code=9)
    assert chromium.evaluate("document.activeElement.className") == "skip"
    chromium.evaluate("document.getElementById('more').focus()")
    chromium.press("Enter", code=13)
    assert len(chromium.evaluate(CARDS)) == 48
    assert chromium.evaluate("[...document.querySelectorAll('.card')].indexOf(document.activeElement)") == 24


def test_without_scripts_all_findings_can_be_reached(chromium: browser.Browser, page: Page) -> None:
    chromium.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        chromium.open(page.path)
        assert chromium.evaluate("document.querySelectorAll('.card').length") == len(page.cards)
        assert chromium.evaluate("document.querySelectorAll('#rest .card').length") == len(page.cards) - 24
        assert chromium.evaluate("document.getElementById('controls').offsetHeight") == 0
    finally:
        chromium.send("Emulation.setScriptExecutionDisabled", value=False)


def test_no_other_script_would_run(chromium: browser.Browser, page: Page) -> None:
    chromium.open(page.path)
    chromium.evaluate(
        "(() => { const script = document.createElement('script'); script.textContent = 'window.ran = 1';"
        "document.body.append(script); })()"
    )
    assert chromium.evaluate("window.ran === undefined")
    assert "Content Security Policy" in " ".join(chromium.errors)
