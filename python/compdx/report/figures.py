"""Which figures a report has, and what each of them says in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from compdx.findings import EFFECTIVE, INVALID, KINDS, NON_FINITE, SEED
from compdx.ops import OPERATORS
from compdx.report import charts
from compdx.report.charts import Axis, Line, Stack
from compdx.report.wording import duration, label, number, percent, plural

if TYPE_CHECKING:
    from compdx.findings import Findings
    from compdx.pictures import Pictures

MOST_CLASSES = 20  # in the matrix; more cannot be read
MOST_ROWS = 20  # of a table of flips
TIME_BINS = 60
STEP_BINS = 25
SURE = 0.9  # a confidence
LOG_FROM = 40  # queries: above, the axis is logarithmic

_Moment = Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart with its words and its numbers.

    Attributes:
        key: Identifier in the page.
        title: What is drawn.
        note: What it shows, in a sentence or two; the chart's text alternative.
        svg: The chart.
        legend: Colour and name of each series, where there are several.
        columns, rows: The numbers as a table.
    """

    key: str
    title: str
    note: str
    svg: str
    legend: Sequence[tuple[str, str]] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


def of_findings(findings: Findings, names: Sequence[str] | None) -> list[Figure]:
    """Flips, queries, confidences and operators: what the table of findings tells; nothing where it is empty."""
    kinds = _kinds(findings)
    found = (kinds == EFFECTIVE) | (kinds == INVALID)
    figures: list[Figure | None] = []
    if (kinds != NON_FINITE).any():
        figures.append(flips(findings, kinds != NON_FINITE, names))
    if found.any():
        figures.append(queries(findings, found))
        figures += confidences(findings, found)
        figures.append(operators_credit(findings, found))
    return [figure for figure in figures if figure is not None]


def of_time(timeline: Sequence[_Moment]) -> list[Figure]:
    """Findings, coverage and throughput as the search went on; nothing from less than two moments."""
    moments = [moment for moment in timeline if isinstance(moment.get("seconds"), (int, float))]
    if len(moments) < 2 or not _series(moments, "seconds")[-1] > 0:
        return []
    figures = [progress(moments), throughput(moments)]
    if any(moment.get("coverage") is not None for moment in moments):
        figures.append(coverage(moments))
    return figures


def outcomes(findings: Findings) -> tuple[str, list[tuple[str, int]]]:
    """The bar of how all seeds ended, and the kinds with their numbers; seeds that have not ended are ``open``."""
    counts = findings.kinds
    parts = [(kind, count) for kind, count in counts.items() if count]
    left = findings.summary.seeds - sum(counts.values())
    if left > 0:
        parts.append(("open", left))
    words = ", ".join(f"{count:,} {kind}" for kind, count in parts) or "no seeds"
    return charts.strip(parts, label=f"How the seeds ended: {words}"), parts


def flips(findings: Findings, rows: npt.NDArray[np.bool_], names: Sequence[str] | None) -> Figure:
    """The matrix of labels: what the original says against what the compressed model says."""
    a, b = (findings.table[f"{model}_label"].to_numpy()[rows] for model in ("original", "compressed"))
    pairs = Counter(zip(a.tolist(), b.tolist(), strict=True))
    often = Counter(np.concatenate([a, b]).tolist())
    classes = sorted(code for code, _ in sorted(often.items(), key=lambda item: (-item[1], item[0]))[:MOST_CLASSES])
    if len(often) <= MOST_CLASSES and names is not None and len(names) <= MOST_CLASSES:
        classes = sorted({*classes, *range(len(names))})
    place = {code: k for k, code in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)), np.int64)
    for (one, other), count in pairs.items():
        if one in place and other in place:
            counts[place[one], place[other]] = count
    (one, other), most = min(pairs.items(), key=lambda item: (-item[1], item[0]))
    note = (
        f"The most frequent flip is from {label(one, names)} to {label(other, names)}: {most:,} of "
        f"{plural(len(a), 'finding')}. Class pairs that occur: {len(pairs):,}."
    )
    missing = len(a) - int(counts.sum())
    if missing:
        note += f" The matrix has the {len(classes)} most frequent of {len(often)} classes; {missing:,} lie outside it."
    ranked = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    table = [(label(i, names), label(j, names), f"{count:,}") for (i, j), count in ranked[:MOST_ROWS]]
    if len(ranked) > MOST_ROWS:
        rest = sum(count for _, count in ranked[MOST_ROWS:])
        table.append((plural(len(ranked) - MOST_ROWS, "other pair"), "", f"{rest:,}"))
    svg = charts.matrix(
        [label(code, names) for code in classes],
        counts,
        label=f"Matrix of flips. {note}",
        rows="label by the original",
        columns="label by the compressed model",
    )
    return Figure(
        key="flips",
        title="Flips by class pair",
        note=note,
        svg=svg,
        legend=[("q0", "none"), *((f"q{shade}", f"up to {top:,}") for shade, top in charts.shades(counts))],
        columns=("Original", "Compressed", "Findings"),
        rows=table,
    )


def queries(findings: Findings, found: npt.NDArray[np.bool_]) -> Figure:
    """Which share of the searched seeds had led to a finding after so many queries on one of them."""
    needed = np.sort(findings.table["step"].to_numpy()[found].astype(np.int64) + 1)
    kinds = _kinds(findings)
    searched = len(findings.ended) - int((kinds == SEED).sum())
    settings = (findings.settings.get("method") or {}).get("settings") or {}
    budget = settings.get("budget")  # of the gradient search: steps, the seed not counted
    reach = max(int(needed[-1]), int(findings.ended["queries"].to_numpy().max()))
    values, counts = np.unique(needed, return_counts=True)
    shares = np.cumsum(counts) / searched
    log = reach > LOG_FROM
    title = "queries on one seed (logarithmic)" if log else "queries on one seed"
    x = Axis(title=title, low=1, high=max(reach, 2), log=log, whole=True)
    y = Axis(title="share of seeds with a finding", low=0, high=1, percent=True)
    xs, ys = [1, *values.tolist(), reach], [0.0, *shares.tolist(), float(shares[-1])]
    half, most = (int(np.quantile(needed, share, method="inverted_cdf")) for share in (0.5, 0.9))
    note = (
        f"Half of the findings took {plural(half, 'query', 'queries')} or fewer, nine in ten {most:,} or fewer, "
        f"the longest {int(needed[-1]):,}."
    )
    if isinstance(budget, int) and budget >= reach:
        note += f" The budget is {budget:,} a seed."
    line = Line(xs=xs, ys=ys, colour="c-accent", step=True, fill=True)
    table = [
        (percent(share), f"{int(np.quantile(needed, share, method='inverted_cdf')):,}")
        for share in (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
    ]
    return Figure(
        key="queries",
        title="Queries to a finding",
        note=note,
        svg=charts.curves(x, y, [line], marks=[half], label=f"Share of seeds with a finding by queries. {note}"),
        columns=("Share of the findings", "Queries, at most"),
        rows=table,
    )


def confidences(findings: Findings, found: npt.NDArray[np.bool_]) -> list[Figure]:
    """How sure both models are of their labels, and how far apart; nothing where no confidence is known."""
    a, b = (
        findings.table[f"{model}_confidence"].to_numpy(zero_copy_only=False)[found].astype(np.float64)
        for model in ("original", "compressed")
    )
    known = np.isfinite(a) & np.isfinite(b)
    if not known.any():
        return []
    a, b = a[known], b[known]
    edges = np.linspace(0, 1, 21)
    counts = [np.histogram(values, edges)[0] for values in (a, b)]
    x = Axis(title="confidence in the own label", low=0, high=1, percent=True)
    y = charts.up_to("findings", float(max(map(np.max, counts))), whole=True)
    both = int(((a >= SURE) & (b >= SURE)).sum())
    note = (
        f"Median {percent(float(np.median(a)))} for the original, {percent(float(np.median(b)))} for the compressed "
        f"model. Both are at least {percent(SURE)} sure on {number(both) if both else 'none'} of the findings."
    )
    outlines = [
        Line(xs=np.repeat(edges, 2)[1:-1], ys=np.repeat(count, 2), colour=colour, fill=True, dot=False)
        for count, colour in zip(counts, ("c-original", "c-compressed"), strict=True)
    ]
    sure = Figure(
        key="confidences",
        title="Confidence of both models",
        note=note,
        svg=charts.curves(x, y, outlines, label=f"Histogram of the confidences on the findings. {note}"),
        legend=(("c-original", "original"), ("c-compressed", "compressed")),
        columns=("Confidence", "Original", "Compressed"),
        rows=_binned(edges, counts),
    )
    delta = b - a
    reach = min(charts.up_to("", float(max(np.abs(delta).max(), 0.001))).high, 1.0)
    edges = np.linspace(-reach, reach, 21)
    count = np.histogram(delta, edges)[0]
    x = Axis(title="confidence of the compressed − of the original", low=-reach, high=reach, percent=True)
    y = charts.up_to("findings", float(count.max()), whole=True)
    note = (
        f"The two confidences are {100 * float(np.median(np.abs(delta))):.2g} percentage points apart at the median. "
        f"The compressed model is the surer one on {percent(float((delta > 0).mean()))} of the findings."
    )
    apart = Figure(
        key="deltas",
        title="Difference of the confidences",
        note=note,
        svg=charts.histogram(
            x,
            y,
            edges,
            [Stack(values=count, colour="c-accent", name="findings")],
            label=f"Histogram of compressed minus original confidence. {note}",
        ),
        columns=("Compressed − original", "Findings"),
        rows=_binned(edges, [count]),
    )
    return [sure, apart]


def operators_credit(findings: Findings, found: npt.NDArray[np.bool_]) -> Figure | None:
    """How often each operator leads to a finding, and how often it is the last; None for methods without operators."""
    traces = [trace for trace, is_found in zip(findings.table["operators"].to_pylist(), found, strict=True) if is_found]
    last = Counter(trace[-1] for trace in traces if trace)
    before = Counter(name for trace in traces for name in (trace or [])[:-1])
    names = sorted({*last, *before}, key=lambda name: (-last[name] - before[name], name))
    if not names:
        return None
    names += [name for name in OPERATORS if name not in names]
    finals, earlier = ([count[name] for name in names] for count in (last, before))
    share = (finals[0] + earlier[0]) / (sum(finals) + sum(earlier))
    best = max(names, key=lambda name: (last[name], name))
    note = (
        f"Most frequent among the mutations that led to findings: {names[0]}, {percent(share)}. "
        f"Most frequent as the last step: {best}, in {last[best]:,} of {plural(len(traces), 'finding')}."
    )
    texts = [f"{a + b:,}" for a, b in zip(finals, earlier, strict=True)]
    return Figure(
        key="operators",
        title="Operators that led to findings",
        note=note,
        svg=charts.bars(
            names,
            [
                Stack(values=finals, colour="c-accent", name="last step"),
                Stack(values=earlier, colour="c-soft", name="accepted before"),
            ],
            texts,
            label=f"Operators by the number of mutations that led to a finding. {note}",
        ),
        legend=(("c-accent", "the last step"), ("c-soft", "accepted before it")),
        columns=("Operator", "Last step", "Accepted before"),
        rows=[(name, f"{last[name]:,}", f"{before[name]:,}") for name in names],
    )


def progress(moments: Sequence[_Moment]) -> Figure:
    """Seeds that ended and deviations found, over time."""
    seconds, ended, found = (_series(moments, name) for name in ("seconds", "ended", "found"))
    x, unit = _time_axis(float(seconds[-1]))
    y = charts.up_to("seeds", float(max(ended.max(), found.max(), 1)), whole=True)
    chosen = _thinned(len(moments))
    lines = [
        Line(xs=seconds[chosen] / unit, ys=values[chosen], colour=colour, fill=values is ended)
        for values, colour in ((ended, "c-before"), (found, "c-accent"))
    ]
    note = f"{number(found[-1])} found among {plural(int(ended[-1]), 'seed')} that ended, in {duration(seconds[-1])}."
    if found[-1]:
        first = float(seconds[np.argmax(found >= found[-1] / 2)])
        note += f" Half of the findings were there after {duration(first)}."
    rows = [(duration(seconds[k]), number(ended[k]), number(found[k])) for k in _thinned(len(moments), 12)]
    return Figure(
        key="progress",
        title="Findings over time",
        note=note,
        svg=charts.curves(x, y, lines, label=f"Seeds ended and findings over time. {note}"),
        legend=(("c-before", "seeds that ended"), ("c-accent", "findings")),
        columns=("Time", "Ended", "Found"),
        rows=rows,
    )


def throughput(moments: Sequence[_Moment]) -> Figure:
    """Queries a second in equal stretches of time."""
    seconds, done = (_series(moments, name) for name in ("seconds", "queries"))
    bins = max(1, min(TIME_BINS, len(moments) - 1))
    edges = np.linspace(0, seconds[-1], bins + 1)
    rates = np.diff(np.interp(edges, seconds, done)) * bins / seconds[-1]
    x, unit = _time_axis(float(seconds[-1]))
    y = charts.up_to("queries a second", float(rates.max(initial=1)))
    mean = done[-1] / seconds[-1]
    note = f"{number(done[-1])} queries in {duration(seconds[-1])}: {number(mean)} a second on average."
    line = Line(
        xs=np.repeat(edges / unit, 2)[1:-1],
        ys=np.repeat(rates, 2),
        colour="c-accent",
        fill=True,
        dot=False,
    )
    rows = [(f"{duration(edges[k])} to {duration(edges[k + 1])}", number(rates[k])) for k in _thinned(bins, 12)]
    return Figure(
        key="throughput",
        title="Throughput",
        note=note,
        svg=charts.curves(x, y, [line], label=f"Queries a second over time. {note}"),
        columns=("Time", "Queries a second"),
        rows=rows,
    )


def coverage(moments: Sequence[_Moment]) -> Figure:
    """The share of the compressed model's neurons that were positive on any image so far."""
    known = [moment for moment in moments if moment.get("coverage") is not None]
    done, shares = (_series(known, name) for name in ("queries", "coverage"))
    x = charts.up_to("queries", float(max(done[-1], 1)), whole=True)
    high = float(shares.max())
    y = charts.up_to("neurons covered", 1.0 if high > 0.5 else high, percent=True)
    note = (
        f"{percent(float(shares[-1]), 1)} of the compressed model's neurons were positive on at least one image, "
        f"after {number(done[-1])} queries."
    )
    chosen = _thinned(len(known))
    line = Line(xs=done[chosen], ys=shares[chosen], colour="c-accent", fill=True)
    return Figure(
        key="coverage",
        title="Growth of neuron coverage",
        note=note,
        svg=charts.curves(x, y, [line], label=f"Neuron coverage by queries. {note}"),
        columns=("Queries", "Covered"),
        rows=[(number(done[k]), percent(float(shares[k]), 1)) for k in _thinned(len(known), 12)],
    )


def pictures(given: Pictures) -> Figure:
    """The classes of the pictures of a gradient search, step by step."""
    low, high = int(given.step.min()), int(given.step.max())
    bins = min(STEP_BINS, high - low + 1)
    edges = np.round(np.linspace(low, high + 1, bins + 1)).astype(np.int64)
    masks = {
        "effective": given.strict,
        "seed": given.effective & ~given.strict,
        "invalid": given.invalid,
        "valid": given.valid,
        "non-finite": ~given.finite,
    }
    names = {
        "effective": "effective, strict count",
        "seed": "effective, the pair deviates on the seed",
        "invalid": "invalid",
        "valid": "valid",
        "non-finite": "non-finite",
    }
    counts = {key: np.histogram(given.step[mask], edges)[0] for key, mask in masks.items() if mask.any()}
    x = Axis(title="step", low=low - 0.5, high=high + 0.5, whole=True)
    y = charts.up_to("pictures", float(np.sum(list(counts.values()), axis=0).max()), whole=True)
    shares = counts.get("effective", np.zeros(bins)) + counts.get("seed", np.zeros(bins))
    best = int(np.argmax(shares))
    note = (
        f"Most effective pictures come from step {_span(edges, best)}: {number(shares[best])}."
        if shares.any()
        else "No picture is effective."
    )
    svg = charts.histogram(
        x,
        y,
        edges - 0.5,
        [Stack(values=values, colour=f"c-{key}", name=names[key]) for key, values in counts.items()],
        label=f"Classes of the pictures by step. {note}",
        gap=2.0,
    )
    return Figure(
        key="pictures",
        title="Classes by step",
        note=note,
        svg=svg,
        legend=[(f"c-{key}", names[key]) for key in counts],
        columns=("Step", *(names[key] for key in counts)),
        rows=[(_span(edges, k), *(f"{values[k]:,}" for values in counts.values())) for k in range(bins)],
    )


def _kinds(findings: Findings) -> npt.NDArray[np.int64]:
    return np.array([KINDS.index(kind) for kind in findings.table["kind"].to_pylist()], np.int64)


def _series(moments: Sequence[Any], name: str) -> npt.NDArray[np.float64]:
    return np.array([float(moment.get(name) or 0.0) for moment in moments])


def _thinned(count: int, most: int = 240) -> npt.NDArray[np.int64]:
    """At most so many of these places, evenly, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _time_axis(seconds: float) -> tuple[Axis, float]:
    """Seconds, or minutes or hours when there are at least three; and how many seconds one of them is."""
    unit, name = (3600.0, "hours") if seconds >= 3 * 3600 else (60.0, "minutes") if seconds >= 180 else (1.0, "seconds")
    return Axis(title=name, low=0, high=seconds / unit), unit


def _binned(edges: npt.NDArray[np.float64], counts: Sequence[npt.NDArray[np.int64]]) -> list[tuple[str, ...]]:
    spans = [f"{100 * a:.3g} to {100 * b:.3g} %".replace("-", "−") for a, b in pairwise(edges)]
    rows = [(span, *(f"{count[k]:,}" for count in counts)) for k, span in enumerate(spans)]
    return [row for k, row in enumerate(rows) if any(count[k] for count in counts)]


def _span(edges: npt.NDArray[np.int64], k: int) -> str:
    low, high = int(edges[k]), int(edges[k + 1]) - 1
    return f"{low}" if high <= low else f"{low} to {high}"
