"""The five tables of CompD's paper with our figures beside the published ones, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compdx.reproduce import published

NONE = "-"


def render(figures: dict[str, Any]) -> str:
    """One page for one network and one scheme; ``figures`` are those of `Study.run`."""
    model, scheme = figures["model"], figures["scheme"]
    scale, best = figures["scale"], figures.get("coverage", figures["plain"])
    parts = [
        f"# CompD, {model}, {scheme}",
        f"{scale['seeds']:,} seeds, {scale['unseen']:,} unseen seeds, accuracies on {scale['reported']:,} images, run "
        f"seed {figures['seed']}. The paper's column is for its own network of this name; {NONE} where it has none.",
        _accuracies(figures, best),
        _classes(figures),
        _coverage(figures),
        _repair(figures, best),
        _fgsm(figures),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _accuracies(figures: dict[str, Any], best: dict[str, Any]) -> str:
    model, scheme, accuracy = figures["model"], figures["scheme"], figures["accuracy"]
    before = published.ACCURACY[scheme].get(model, (None, None))
    share = best["effective"] / best["pictures"]
    return _table(
        "Table 1. Accuracy and effective pictures",
        ("", "compdx", "paper"),
        [
            ("original accuracy", _percent(accuracy["original"]), _given(before[0])),
            ("compressed accuracy", _percent(accuracy["compressed"]), _given(before[1])),
            ("effective pictures", f"{best['effective']:,}", _given(published.EFFECTIVE[scheme].get(model))),
            ("share of all pictures", _percent(share), NONE),
            ("effective, strict count", f"{best['strict']:,}", NONE),
            ("distinct seeds (strict)", f"{best['effective_seeds']:,} ({best['strict_seeds']:,})", NONE),
        ],
    )


def _classes(figures: dict[str, Any]) -> str:
    names = ("pictures", "effective", "invalid", "change_ori", "valid", "non_finite", "already_deviating_seeds")
    searches = [(name, figures[name]) for name in ("plain", "coverage", "margin") if name in figures]
    rows: list[tuple[str, ...]] = [(name, *(f"{found[name]:,}" for _, found in searches)) for name in names]
    rows.append(("distance to the own seed", *(_distance(found["l2"]) for _, found in searches)))
    rows.append(("distance to another seed", *(_distance(found["l2_unpaired"]) for _, found in searches)))
    heads = {"plain": "Algorithm 1", "coverage": "Algorithm 2", "margin": "Algorithm 1, margins"}
    note = (
        "Scores are logits, as in the paper's code; margins are ours. Distances are L2 in input units over the number "
        "of values; the paper reports 0.0300 to 0.0306."
    )
    return _table("Classes of the pictures (figure 2)", ("", *(heads[n] for n, _ in searches)), rows) + f"\n\n{note}"


def _coverage(figures: dict[str, Any]) -> str:
    if "coverage" not in figures:
        return ""
    plain, coverage = figures["plain"]["effective"], figures["coverage"]["effective"]
    paper = published.COVERAGE.get(figures["model"], (None, None))
    return _table(
        "Table 2. Effective pictures without and with neuron coverage",
        ("", "compdx", "paper"),
        [
            ("without (Algorithm 1)", f"{plain:,}", _given(paper[0])),
            ("with (Algorithm 2)", f"{coverage:,}", _given(paper[1])),
        ],
    )


def _repair(figures: dict[str, Any], best: dict[str, Any]) -> str:
    paper = published.REPAIR[figures["scheme"]].get(figures["model"], {})
    none = (None, None)
    unseen, again = figures["unseen"], figures["again"]
    rows = [
        (
            "accuracy",
            _percent(figures["accuracy"]["compressed"]),
            _percent(figures["repaired"]["accuracy"]),
            *map(_given, paper.get("accuracy", none)),
        ),
        (
            "effective, repair set",
            f"{best['effective']:,}",
            f"{figures['repaired']['effective']['effective']:,}",
            *map(_given, paper.get("effective", none)),
        ),
        (
            "effective, pictures of unseen seeds",
            f"{unseen['before']['effective']:,}",
            f"{unseen['after']['effective']:,}",
            *map(_given, paper.get("unseen", none)),
        ),
        (
            "effective, fresh search of the unseen seeds",
            f"{unseen['before']['effective']:,}",
            f"{unseen['fresh']['effective']:,}",
            NONE,
            NONE,
        ),
        (
            f"effective, {again['seeds']:,} of the seeds searched again",
            f"{again['before']['effective']:,}",
            f"{again['after']['effective']:,}",
            NONE,
            NONE,
        ),
    ]
    return _table("Table 3. Repair", ("", "before", "after", "paper, before", "paper, after"), rows)


def _fgsm(figures: dict[str, Any]) -> str:
    found, model = figures["fgsm"], figures["model"]
    theirs = published.FGSM[figures["scheme"]].get(model, ((None,) * 3, (None,) * 3))
    original = published.FGSM_ORIGINAL.get(model, (None,) * 3)
    rows = []
    for title, ours, paper in (
        ("original (table 5)", found["original"], original),
        ("before repair", found["before"], theirs[0]),
        ("after repair", found["after"], theirs[1]),
    ):
        cells = (f"{_percent(ours[str(e)])} ({_given(p)})" for e, p in zip(published.EPSILONS, paper, strict=True))
        rows.append((title, *cells))
    heads = ("accuracy under FGSM (paper)", *(f"ε = {epsilon}" for epsilon in published.EPSILONS))
    return _table("Tables 4 and 5. FGSM", heads, rows)


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" | ".join(cells).join(("| ", " |")) for cells in (head, ["---", *("---:" for _ in head[1:])], *rows)]
    return "\n".join((f"## {title}", "", *lines))


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _distance(value: float | None) -> str:
    return NONE if value is None else f"{value:.5f}"


def _given(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"
