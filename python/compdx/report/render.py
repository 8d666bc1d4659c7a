"""The page: what a run holds, put into the template."""

from __future__ import annotations

import base64
import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compdx import store
from compdx.findings import KINDS, Findings
from compdx.model import import_optional
from compdx.report import environments, figures, localization, reasons, repairs
from compdx.report.gallery import gallery
from compdx.report.wording import duration, flat, moment, number, percent, plural
from compdx.seeds import Seeds

NAME = "report.html"
TEMPLATES = Path(__file__).parent / "templates"
OTHERS: dict[str, tuple[str, str, Callable[[Path], dict[str, Any]]]] = {
    environments.RESULT: ("comparison of environments", "environments.html.j2", environments.content),
    localization.RESULT: ("localization", "localization.html.j2", localization.content),
}
"""Directories that are no runs, by the file they hold: what it is, its template, and what this needs."""

EXPLAINED = {
    "effective": "the original keeps the seed’s label, the compressed model does not",
    "invalid": "the labels differ, but the original’s label changed too",
    "seed": "the pair already deviates on the seed as it is",
    "non-finite": "a model returned NaN or infinity",
    "exhausted": "the budget was spent without a deviation",
    "open": "the search has not come to its end there",
}


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A key figure: its name, its value, and what it is made of."""

    name: str
    value: str
    note: str


def write(
    run: str | os.PathLike[str] | Findings,
    path: str | os.PathLike[str] | None = None,
    *,
    seeds: Seeds | None = None,
    names: Sequence[str] | None = None,
    limit: int = 200,
) -> Path:
    """Write the report of a run: one HTML file with all it needs inside, which asks no network for anything.

    The run may be unfinished. Its timeline (``progress.jsonl``), its explanation (``explanation.json``) and its repair
    (``repair.json``) are part of the report where the directory holds them. The findings that are shown are compared
    with their hashes first. Nothing is random.

    Args:
        run: A run directory, or findings, which have no timeline, no explanation and no repair; or the directory of a
            comparison of environments or of a localization, whose pages are others; where it holds both, of the first.
        path: The file, which is replaced when it exists; default ``report.html`` in the run directory.
        seeds: Seeds that hold those of the findings; a run knows only where they come from. Without them the gallery
            shows the findings alone.
        names: Class names; default those of ``seeds``.
        limit: Show at most so many findings, of every kind and class pair those with the smallest change. Of large
            pictures fewer are shown, so that the file stays below 5 MB; the page says how many there are.

    Returns:
        The path of the file.

    Raises:
        ModuleNotFoundError: Jinja is missing.
        FileNotFoundError: ``run`` is no run directory.
        StoreError: A file of the run cannot be read.
        TypeError, ValueError: An argument is not what it should be; ``seeds`` are not those of the run; an image is
            damaged.
    """
    _check(run, path, seeds, names, limit)
    jinja2 = import_optional("jinja2", "the report", "report")
    if not isinstance(run, Findings):
        for name, (what, template, content) in OTHERS.items():
            if (Path(run) / name).is_file():
                if seeds is not None or names is not None:
                    msg = f"seeds and names must be None for the {what} in {run}"
                    raise ValueError(msg)
                page = render(jinja2, template, **content(Path(run)))
                return _put(page, Path(run) / NAME if path is None else Path(path))
    if isinstance(run, Findings):
        findings, folder, finished = run, None, True
        timeline: list[dict[str, float | None]] = []
    else:
        folder = Path(run)
        record = store.read_run(folder)
        findings, finished = record.findings(), record.summary is not None
        timeline = store.read_timeline(folder)
    if seeds is not None and seeds.shape != findings.shape:
        msg = f"seeds must have the shape of the findings, {findings.shape}, got {seeds.shape}"
        raise ValueError(msg)
    names = seeds.names if names is None and seeds is not None else names
    why = None if folder is None else reasons.read(folder, findings, names)
    page = render(
        jinja2,
        "page.html.j2",
        run=findings,
        name="" if folder is None else folder.resolve().name,
        finished=finished,
        models=_model_names(findings.settings),
        tiles=_tiles(findings),
        outcomes=figures.outcomes(findings),
        explained=EXPLAINED,
        gallery=gallery(findings, seeds=seeds, names=names, limit=limit, why=why),
        why=why,
        figures=figures.of_findings(findings, names),
        time=figures.of_time(timeline),
        pictures=_pictures(findings),
        repair=None if folder is None else repairs.read(folder),
        facts=_facts(findings),
        settings=_settings(findings.settings),
    )
    return _put(page, (folder or Path()) / NAME if path is None else Path(path))


def _put(page: str, target: Path) -> Path:
    """Write the page, which is replaced in one step."""
    temporary = target.with_name(f"{target.name}.tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(target)
    return target


def _check(run: Any, path: Any, seeds: Any, names: Any, limit: Any) -> None:
    if not isinstance(run, (str, os.PathLike, Findings)):
        msg = f"run must be a run directory or compdx.Findings, got {type(run).__name__}"
        raise TypeError(msg)
    if path is None and isinstance(run, Findings):
        msg = "path must be given for findings, which have no directory to put the report into"
        raise ValueError(msg)
    if seeds is not None and not isinstance(seeds, Seeds):
        msg = f"seeds must be compdx.Seeds, got {type(seeds).__name__}"
        raise TypeError(msg)
    if isinstance(names, str):
        msg = f"names must be a sequence of class names, got the text {names!r}"
        raise TypeError(msg)
    if isinstance(limit, bool) or not isinstance(limit, int):
        msg = f"limit must be an integer, got {type(limit).__name__}"
        raise TypeError(msg)
    if limit < 1:
        msg = f"limit must be at least 1, got {limit}"
        raise ValueError(msg)


def render(jinja2: Any, template: str, **content: Any) -> str:
    """A page of these templates, with their style and script."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals.update(plural=plural, number=number, percent=percent)
    style, script = (environment.get_template(name).render().strip() for name in ("style.css.j2", "page.js.j2"))
    page: str = environment.get_template(template).render(
        style=style, script=script, style_hash=_hash(style), script_hash=_hash(script), **content
    )
    return page


def _hash(text: str) -> str:
    """A source of the page's content security policy: nothing but this very text is applied or run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _model_names(settings: Mapping[str, Any]) -> tuple[str, str]:
    """What the two models are called; a run may describe them by a name alone."""
    pair = _mapping(settings.get("pair"))

    def name(model: str) -> str:
        description = pair.get(model)
        found = description.get("name") if isinstance(description, dict) else description
        return str(found) if found else f"the {model} model"

    return name("original"), name("compressed")


def _tiles(findings: Findings) -> list[Tile]:
    summary, kinds = findings.summary, findings.kinds
    searched = len(findings.ended) - kinds["seed"]
    found = [f"{kinds[kind]:,} {kind}" for kind in KINDS[:2] if kinds[kind]]
    rate = summary.queries_per_second
    speed = f"{number(rate, int(rate < 10))} a second" if rate > 0 else "speed not known"
    return [
        Tile(name="Found", value=number(summary.found), note=", ".join(found) or "by the search"),
        Tile(
            name="Success",
            value=percent(summary.found / searched) if searched else "–",
            note=f"of {plural(searched, 'seed')} searched",
        ),
        Tile(
            name="Queries a finding",
            value=number(summary.queries_per_finding, 1),
            note="one query asks both models",
        ),
        Tile(name="Queries", value=number(summary.queries), note=speed),
        Tile(
            name="Time",
            value=duration(summary.seconds),
            note="not known" if math.isnan(summary.occupancy) else f"{percent(summary.occupancy)} of the slots at work",
        ),
        Tile(name="Already deviating", value=number(summary.already_deviating), note="seeds, not counted as found"),
    ]


def _pictures(findings: Findings) -> dict[str, Any] | None:
    """The classes of the pictures of a gradient search."""
    pictures = findings.pictures
    if pictures is None or not len(pictures):
        return None
    counts = pictures.counts()
    total = counts["pictures"]
    rows = [
        ("effective", "the original keeps the seed’s label, the compressed model does not", counts["effective"]),
        ("strict", "effective, and the two models agree on the seed", counts["strict"]),
        ("invalid", "the original’s label changed", counts["invalid"]),
        ("valid", "both models keep the seed’s label", counts["valid"]),
        ("non-finite", "a model returned NaN or infinity", counts["non_finite"]),
    ]
    return {
        "counts": counts,
        "rows": [
            (name, what, count, count / total) for name, what, count in rows if count or name in ("effective", "strict")
        ],
        "figure": figures.pictures(pictures),
    }


def _facts(findings: Findings) -> list[str]:
    """The line below the title: method, budget, seeds, date."""
    settings = findings.settings
    method, seeds = _mapping(settings.get("method")), _mapping(settings.get("seeds"))
    budget = _mapping(method.get("settings")).get("budget")
    shape = "×".join(map(str, findings.shape))
    facts = [
        f"method {method['name']}" if method.get("name") else "",
        f"budget {budget:,}" if isinstance(budget, int) else "",
        f"{plural(findings.summary.seeds, 'seed')} of {shape}",
        str(seeds.get("source") or ""),
        moment(settings["started"]) if settings.get("started") else "",
    ]
    return [fact for fact in facts if fact]


def _settings(settings: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Groups of settings as name and text, for people; what is not known by name goes into the group "Run"."""
    method = _mapping(settings.get("method"))
    pair = _mapping(settings.get("pair"))
    models = [(f"{key.capitalize()} model", pair.get(key)) for key in ("original", "compressed")]
    rest = {key: settings[key] for key in settings if key not in ("method", "seeds", "pair", "versions", "format")}
    rest |= {key: pair[key] for key in pair if key not in ("original", "compressed")}
    groups = [
        ("Run", rest),
        (f"Method {method.get('name', '')}".strip(), method.get("settings")),
        ("Seeds", settings.get("seeds")),
        *((name, value if isinstance(value, dict) else {"name": value}) for name, value in models if value),
        ("Versions", settings.get("versions")),
    ]
    return [(name, rows) for name, value in groups if (rows := list(flat(value)))]


def _mapping(value: Any) -> Mapping[str, Any]:
    """The value where it is a mapping; else an empty one, as settings may lack whatever a run has not written."""
    return value if isinstance(value, Mapping) else {}
