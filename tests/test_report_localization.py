"""The page of a localization: what it says against the localization, and what it looks like in a browser."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import browser
from compdx.environments import Layer, Localization
from compdx.environments.layers import Effect, Error, Place
from compdx.environments.layers.localization import RESULT
from compdx.report import charts, wording
from test_report import HOSTILE, Page
from test_report_why import LONG, rows_of

pytest.importorskip("jinja2")

from compdx import report

MINUS = "\N{MINUS SIGN}"
INFINITE = Error(relative=math.inf, sqnr=-math.inf, cosine=0.0, rmse=math.inf, max_abs=math.inf)
NONE = Error(relative=0.0, sqnr=math.inf, cosine=1.0, rmse=0.0, max_abs=0.0)
SETTINGS = {
    "a": {"name": HOSTILE, "runtime": "torch"},
    "b": {"name": "other.onnx", "runtime": "onnxruntime"},
    "looked_at": {"a": 0, "b": 3},
    "reference": False,
    "chunk": 16,
    "groups": 1,
    "top": 10,
    "bisect": True,
}


def made(relative: float) -> Error:
    """A finite error of this size."""
    return Error(
        relative=relative, sqnr=-20 * math.log10(relative), cosine=0.987654, rmse=relative / 3, max_abs=2 * relative
    )


def layer(name: str, own: Error, drift: Error, *, parameters: Error | None = None, **values: Any) -> Layer:
    place = Place(name=name, kind="convolution", a=name, b=values.pop("b", name), covers=(name, "folded"))
    settings = {"bound": 2e-6, "contrast": None, "effect": None} | values
    return Layer(place=place, own=own, drift=drift, parameters=parameters, **settings)


def localization(layers: list[Layer], **changes: Any) -> Localization:
    found = Localization(
        layers=tuple(layers),
        first=layers[1].name,
        last=layers[1].name,
        scores=made(0.031),
        flips=np.array([3, 17]),
        controls=np.array([4, 20]),
        images=50,
        unpaired={"a": (HOSTILE, "dropout"), "b": ()},
        settings=SETTINGS,
    )
    return dataclasses.replace(found, **changes)


HARD = [
    layer("stem", NONE, NONE, contrast=1.0),
    layer(HOSTILE, made(0.02), made(0.02), parameters=made(0.01), contrast=2.5, effect=Effect(scores=0.3, labels=2)),
    layer(
        LONG, INFINITE, INFINITE, parameters=INFINITE, contrast=3.25, effect=Effect(scores=math.inf, labels=9), b="x"
    ),
    *(layer(f"layers.{k}.conv", made(3e-8 * (k + 1)), made(0.004), parameters=NONE, contrast=0.5) for k in range(60)),
]


def page_of(found: Localization, folder: Path) -> Page:
    folder.mkdir(exist_ok=True)
    found.save(folder / RESULT)
    path = report.write(folder)
    assert path == folder / "report.html"
    return Page(path)


@pytest.fixture(scope="module")
def hard(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Sixty layers and more, some with names that are long or are markup, one with nothing finite."""
    return page_of(localization(HARD), tmp_path_factory.mktemp("localization") / "hard")


# ---- on disk


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    found = localization(HARD)
    loaded = Localization.load(found.save(tmp_path / RESULT))
    assert loaded.to_json() == found.to_json()
    assert [one.own for one in loaded.layers] == [one.own for one in HARD]  # infinities with their signs
    assert [one.drift for one in loaded.layers] == [one.drift for one in HARD]
    assert [one.effect for one in loaded.layers] == [one.effect for one in HARD]
    assert [one.name for one in loaded.suspects] == [LONG, HOSTILE]
    assert str(loaded) == str(found)


@pytest.mark.parametrize("text", ["{", "[1]", "", '{"format": 2}', '{"format": 1, "layers": [{}]}'])
def test_a_damaged_file_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / RESULT).write_text(text)
    with pytest.raises(ValueError, match=r"localization\.json: not a localization"):
        report.write(tmp_path)


def test_names_are_of_runs(tmp_path: Path) -> None:
    localization(HARD).save(tmp_path / RESULT)
    with pytest.raises(ValueError, match="seeds and names must be None for the localization in"):
        report.write(tmp_path, names=["a"])


# ---- numbers


def test_numbers_of_many_sizes() -> None:
    values = [0, 2.44e-7, 0.00994, 0.01, 0.333, 12.3, 99.6, 1234, math.inf, -math.inf, -0.5, -1e-3, math.nan]
    told = [
        "0",
        "2.4·10⁻⁷",
        "9.9·10⁻³",
        "0.01",
        "0.33",
        "12",
        "1.0·10²",
        "1.2·10³",
        "∞",
        f"{MINUS}∞",
        f"{MINUS}0.5",
        f"{MINUS}1.0·10⁻³",
        "–",
    ]
    assert [wording.scientific(value) for value in values] == told


def test_an_axis_of_decades() -> None:
    axis = charts.decades("", [0.0, 3e-4, 0.02, math.inf])
    assert (axis.low, axis.high) == pytest.approx((1e-4, 0.1))
    assert [axis.write(value) for value in axis.ticks()] == ["10⁻⁴", "10⁻³", "10⁻²", "10⁻¹"]
    assert [axis.share(value) for value in (0, 1e-4, 1e-3, 0.1)] == pytest.approx([0, 0, 1 / 3, 1])
    wide = charts.decades("", [1e-16, 1e4])
    assert [wide.write(value) for value in wide.ticks()][:2] == ["10⁻¹⁷", "10⁻¹³"]
    assert len(wide.ticks()) <= charts.DECADES
    same = charts.decades("", [1e-3, 1e-3])
    assert same.low < 1e-3 <= same.high  # what is there has a column
    nothing = charts.decades("", [0.0])
    assert nothing.low < nothing.high


# ---- the page


def test_tables_are_those_of_the_localization(hard: Page) -> None:
    suspects = rows_of(hard.root.one("section", id="suspects").one("table"))
    assert suspects == [
        [f"{LONG} suspect · convolution, in B x", "∞ 2.0·10⁻⁶", f"∞ {MINUS}∞ dB", "0.00000 ∞", "∞ ∞"],
        [
            f"{' '.join(HOSTILE.split())} suspect · convolution",
            "0.02 2.0·10⁻⁶",
            "0.02 34.0 dB",
            "0.98765 0.04",
            "0.01 0.02",
        ],
    ]
    tables = hard.root.one("section", id="layers").all("table")
    rows = [row for table in tables for row in rows_of(table)]
    assert len(tables) == 2
    assert [row[0].split(" ")[0] for row in rows[3:]] == [f"layers.{k}.conv" for k in range(60)]
    assert rows[0] == ["stem convolution", "0 2.0·10⁻⁶", "0 ∞ dB", "1.00000 0", ""]
    assert rows[3] == ["layers.0.conv convolution", "3.0·10⁻⁸ 2.0·10⁻⁶", "4.0·10⁻³ 48.0 dB", "0.98765 8.0·10⁻³", "0 0"]
    assert [row[1:] for row in rows_of(hard.root.one("section", id="matters").one("table"))] == [
        ["∞", "9"],
        ["0.3", "2"],
    ]
    contrasts = rows_of(hard.root.one("section", id="flips").one("table"))
    assert [row[1] for row in contrasts] == ["3.25", "2.50", "1.00", *["0.50"] * 7]
    told = hard.root.one("section", id="flips").one("p").words
    assert told == (
        "Labels differ on 2 of 50 images: 3, 17. "
        "They are compared with 2 images of nearest margin whose labels do not differ."
    )


def test_charts_have_a_column_a_layer_on_one_scale(hard: Page) -> None:
    """From 10⁻⁸ to 1: six decades of the plot, and what is infinite fills it."""
    axis = charts.decades("", [3e-8, 0.02])
    for key, name in (("own", "own"), ("drift", "drift")):
        chart = hard.figure(key).one("svg", class_="chart")
        columns = [rect for rect in chart.all("rect") if "c-before" not in rect.attributes["class"]]
        columns.sort(key=lambda rect: float(rect.attributes["x"]) + float(rect.attributes["width"]) / 2)
        heights = [float(column.attributes["height"]) / charts.PLOT for column in columns]
        values = [getattr(one, name).relative for one in HARD]
        expected = [min(1.0, axis.share(value)) if math.isfinite(value) else 1.0 for value in values]
        np.testing.assert_allclose(heights, expected, atol=0.002)
        marked = [k for k, column in enumerate(columns) if column.attributes["class"] == charts.MARKED]
        assert marked == [1, 2]
    bounds = hard.figure("own").one("svg", class_="chart").all("rect", class_="c-before")
    assert len(bounds) == len(HARD) == len(hard.numbers("own")) == len(hard.numbers("drift"))
    np.testing.assert_allclose(
        [float(bound.attributes["height"]) / charts.PLOT for bound in bounds], axis.share(2e-6), atol=0.002
    )
    assert hard.numbers("own")[3] == ["layers.0.conv", "3.0·10⁻⁸", "2.0·10⁻⁶"]
    assert (
        "The largest is that of a_layer_name" in hard.figure("own").one("svg", class_="chart").attributes["aria-label"]
    )


CLEAN = [layer("a", NONE, NONE), layer("b", made(1e-7), made(1e-7))]
WRONG = [layer("a", NONE, NONE), layer("b", made(0.5), made(0.5)), layer("c", made(0.1), made(0.6))]


@pytest.mark.parametrize(
    ("layers", "changes", "sentence", "matters"),
    [
        (
            WRONG,
            {},
            "b is the first layer that matters, and explains all of the difference. 2 of 3 layers are suspects",
            "With all up to b computed by B and the rest by A, at least half of the labels that differ are there",
        ),
        (
            WRONG,
            {"last": "c", "flips": np.zeros(0, np.int64)},
            "b is the first layer that matters, and the last is c. 2 of 3 layers are suspects on 50 images.",
            "at least half of the difference of the scores is there, and with less computed by B not.",
        ),
        (
            WRONG[:2],
            {"first": None, "last": None, "settings": {**SETTINGS, "bisect": False}},
            "b makes the largest error of its own, 0.5 where rounding explains 2.0·10⁻⁶. 1 of 2 layers is a suspect",
            "The first layer that matters was not looked for.",
        ),
        (
            WRONG,
            {"first": None, "last": None},
            "b makes the largest error of its own",
            "The scores do not differ on the images on which A and B were spliced.",
        ),
        (
            CLEAN,
            {"first": None, "last": None},
            "No layer is a suspect: rounding explains what each of them computes on 50 images, "
            "though labels differ on 2 of them.",
            "Without a suspect there is nothing to look for.",
        ),
    ],
)
def test_sentences(layers: list[Layer], changes: dict[str, Any], sentence: str, matters: str, tmp_path: Path) -> None:
    page = page_of(localization(layers, **changes), tmp_path)
    assert page.root.one("h1").words.startswith(sentence)
    assert matters in page.root.one("section", id="matters").words
    empty = "No layer makes an error of its own that rounding does not explain."
    assert (empty in page.words) == (layers is CLEAN)


def test_controls_of_a_reference_and_none(tmp_path: Path) -> None:
    page = page_of(localization(WRONG, settings={**SETTINGS, "reference": True}), tmp_path)
    assert "compared with their references whose labels do not differ, 2 of them" in page.words
    page = page_of(localization(WRONG, controls=np.zeros(0, np.int64)), tmp_path)
    assert "There is none to compare them with." in page.words
    page = page_of(localization(WRONG, flips=np.zeros(0, np.int64), unpaired={"a": (), "b": ()}), tmp_path)
    assert "A and B give the same label on each of 50 images." in page.words
    assert not page.root.all("section", id="unpaired")


def test_hostile_names_stay_text(hard: Page) -> None:
    assert HOSTILE not in hard.source
    assert len(hard.root.all("script")) == 1
    assert HOSTILE in hard.root.one("h1").text
    assert "Only in A: 2 operations" in hard.root.one("section", id="unpaired").words
    (notice,) = hard.root.all("p", class_="notice")
    assert notice.words.startswith("B gives 3 images another label while its layers are looked at")


def test_a_real_fault_is_shown(tmp_path: Path) -> None:
    """One layer of a residual network disturbed; the command's file, the page's sentence."""
    pytest.importorskip("torch")
    from test_localization import images, localize, model, perturbed

    found = localize(model(), model(perturbed("4.conv1")), images(8))
    page = page_of(found, tmp_path)
    assert page.root.one("h1").words.startswith("4.conv1 is the first layer that matters, and explains all")
    assert json.loads((tmp_path / RESULT).read_text())["settings"]["bisect"] is True
    (suspect,) = rows_of(page.root.one("section", id="suspects").one("table"))
    assert suspect[0] == "4.conv1 suspect · convolution"
    assert suspect[1].startswith(wording.scientific(found.suspects[0].own.relative))


# ---- in a browser


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_it_fits_the_window_and_can_be_read(chromium: browser.Browser, hard: Page, width: int, dark: bool) -> None:
    browser.show_all(chromium, hard.path, width=width, dark=dark)
    browser.check_width(chromium, width)
    browser.check_contrasts(chromium)
