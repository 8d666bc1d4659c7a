"""The tables and plots of docs/performance.md, made of the records in bench/results.

    python -m bench.report [--check]

What stands between ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->`` is replaced; the plots are written to
docs/performance/. With --check nothing is written, and the exit status is 1 when the page or a plot is not what the
records say. A bench without a record is said to be not measured. Needs the standard library only.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import plots

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "bench" / "results"
MARKER = re.compile(r"(<!-- bench:([a-z]+) -->\n).*?(<!-- /bench:\2 -->)", re.DOTALL)
WHERE = {"": "on a CPU", "-cuda": "on a GPU"}
NOTHING = "–"

Row = dict[str, Any]


@dataclass
class Part:
    """What one record says: Markdown, and plots by file name."""

    words: list[str] = field(default_factory=list)
    images: dict[str, str] = field(default_factory=dict)

    def table(self, title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        rows = list(rows)
        if rows:
            lines = [header, ["---"] * len(header), *rows]
            self.words += [f"{title}:", "\n".join(f"| {' | '.join(cells)} |" for cells in lines)]

    def plot(self, name: str, title: str, svg: str) -> None:
        self.images[name] = svg
        self.words.append(f"![{title}](performance/{name})")


def count(value: float | None) -> str:
    """A rate: 1,465,613 as 1.47 M."""
    if value is None:
        return NOTHING
    for size, unit in ((1e9, " G"), (1e6, " M")):
        if value >= size:
            return f"{value / size:.2f}{unit}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def share(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1%}"


def ratio(row: Row, name: str, digits: int = 3) -> str:
    """A median with its quartiles."""
    if row.get(name) is None:
        return NOTHING
    low, _, high = row[f"{name}_quartiles"]
    return f"{row[name]:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def size(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def place(row: Row) -> str:
    if "isa" not in row:
        return "GPU"
    return f"{row['isa']}, {row['threads']} core{'s' if row['threads'] > 1 else ''}"


def kernels(record: Row, suffix: str) -> Part:  # noqa: ARG001 - all sections take the same arguments
    part, rows = Part(), record["rows"]
    mutants = [row for row in rows if row["what"] == "mutate"]
    mixes: dict[tuple[str, str], dict[str, Row]] = {}
    for row in mutants:
        if row["operator"] == "mix":
            mixes.setdefault((size(row["shape"]), place(row)), {})[row["output"]] = row
    part.table(
        "mutate, uniform mix of the seven operators; images a second by type of the model input",
        (
            "image",
            "where",
            "float32",
            "of a copy",
            "bfloat16",
            "of a copy",
            "uint8",
            "× OpenCV and NumPy",
            "× one core",
        ),
        (
            [
                *key,
                *(
                    cell
                    for output in ("float32", "bfloat16")
                    for cell in (
                        count(outputs.get(output, {}).get("items_per_second")),
                        share(outputs.get(output, {}).get("share_of_copy")),
                    )
                ),
                count(outputs.get("uint8", {}).get("items_per_second")),
                ratio(outputs.get("float32", {}), "ratio", 1),
                ratio(outputs.get("float32", {}), "times_one_core"),
            ]
            for key, outputs in mixes.items()
        ),
    )
    first = next((place(row) for row in mutants), "")
    alone = [row for row in mutants if row["output"] == "float32" and place(row) == first]
    shapes = list(dict.fromkeys(size(row["shape"]) for row in alone))
    draws: dict[str, dict[str, Row]] = {}
    for row in alone:
        window = f" {row['window']}" if row["window"] is not None else ""
        draws.setdefault(f"{row['operator']}{window}", {})[size(row["shape"])] = row
    part.table(
        f"mutate with float32 input, {first}, by operator and window; images a second, share of a copy",
        ("operator", *shapes),
        (
            [
                name,
                *(f"{count(by[shape]['items_per_second'])}, {share(by[shape]['share_of_copy'])}" for shape in shapes),
            ]
            for name, by in draws.items()
        ),
    )
    if draws:
        shares = {shape: [by[shape]["share_of_copy"] for by in draws.values()] for shape in shapes}
        title = f"mutate, float32 input, {first}"
        svg = plots.bars(title, list(draws), shares, x="share of the bandwidth of a copy")
        part.plot(f"{record['bench']}.svg", title, svg)
    part.table(
        "The other operations",
        ("operation", "of", "where", "a second", "GB/s", "of a copy"),
        (
            [
                row["what"] + (f", {row['output']}" if "output" in row else ""),
                f"{row['classes']} classes" if "classes" in row else size(row["shape"]),
                place(row),
                count(row["items_per_second"]),
                f"{row['bytes_per_second'] / 1e9:.2f}",
                share(row["share_of_copy"]),
            ]
            for row in rows
            if row["what"] in ("step", "judge", "normalise")
        ),
    )
    whole = [row for row in rows if row["what"] == "housekeeping"]
    part.table(
        "Shares of the loop's own time, chains ending every 36 queries",
        ("image", *(whole[0]["shares"] if whole else ())),
        ([size(row["shape"]), *(share(value) for value in row["shares"].values())] for row in whole),
    )
    return part


def search(record: Row, suffix: str) -> Part:
    part, rows = Part(), [row for row in record["rows"] if "not_measured" not in row]
    part.words += [
        f"{row['pair']}, {row['chains']:,} chains: {row['not_measured']}."
        for row in record["rows"]
        if "not_measured" in row
    ]
    waits = any("host_waits" in row for row in rows)
    part.table(
        "Time of the two bare forward passes over time of the loop (quartiles)",
        (
            *("pair", "image", "chains", "loop / forwards", "forwards among themselves", "queries/s", "findings/s"),
            *("occupancy", *(["waits of the host an iteration"] if waits else [])),
        ),
        (
            [
                row["pair"],
                size(row["shape"]),
                f"{row['chains']:,}",
                ratio(row, "ratio"),
                ratio(row, "noise"),
                count(row["queries_per_second"]),
                count(row.get("findings_per_second")),
                share(row["occupancy"]),
                *([f"{row['host_waits']['runtime_calls_per_iteration']:.2f}"] if waits else []),
            ]
            for row in rows
        ),
    )
    series: plots.Series = {}
    for row in rows:
        series.setdefault(row["pair"], []).append((row["chains"], row["ratio"]))
    compiled = "compiled" in record["bench"]
    title = f"loop / bare forward passes {WHERE[suffix]}{', compiled' if compiled else ''}"
    svg = plots.lines(title, series, x="chains", y="ratio", limit=1.0)
    part.plot(f"{record['bench']}.svg", title, svg)
    return part


def profile(record: Row, suffix: str) -> Part:
    part, rows = Part(), record["rows"]
    names = list(rows[0]["parts"])
    part.table(
        "Where the time of an iteration goes",
        ("pair", "chains", "µs an iteration", *names),
        (
            [
                row["pair"],
                f"{row['chains']:,}",
                f"{row['seconds'] * 1e6:,.0f}",
                *(share(row["parts"][name]["share"]) for name in names),
            ]
            for row in rows
        ),
    )
    title = f"Shares of an iteration {WHERE[suffix]}"
    stacks = {
        f"{row['pair']}, {row['chains']:,}": {name: max(0.0, row["parts"][name]["share"]) for name in names}
        for row in rows
    }
    part.plot(f"{record['bench']}.svg", title, plots.stacked(title, stacks, x="share of the iteration"))
    for row in rows:
        part.table(
            f"Longest kernels of {row['pair']}, {row['chains']:,} chains",
            ("kernel", "calls an iteration", "µs an iteration"),
            (
                [f"`{found['kernel'].replace('|', '¦')}`", f"{found['calls']:.1f}", f"{found['microseconds']:.1f}"]
                for found in row.get("kernels", ())
            ),
        )
    return part


def scale(record: Row, suffix: str) -> Part:
    part = Part()
    part.table(
        f"Slope of log y over log x through the {record['fitted']} largest sizes; 1 is linear growth, more than "
        f"{record['bound']} would fail the bench",
        ("growth", "slope"),
        ([name.replace("_", " "), f"{value:.2f}"] for name, value in record["slopes"].items()),
    )
    units = {"seeds": "seconds a search", "classes": "seconds an iteration", "pixels": "seconds an iteration"}
    for x, rows in record["sweeps"].items():
        memory = "megabytes" if "megabytes" in rows[0] else "bytes_per_chain"
        part.table(
            f"By {x}",
            (x, units[x], "MB" if memory == "megabytes" else "bytes a chain"),
            ([f"{row[x]:,}", f"{row['seconds']:.3g}", f"{row[memory]:,.0f}"] for row in rows),
        )
        title = f"{units[x]} by {x} {WHERE[suffix]}"
        series = {units[x]: [(row[x], row["seconds"]) for row in rows]}
        part.plot(f"{record['bench']}-{x}.svg", title, plots.lines(title, series, x=x, y="seconds", log_y=True))
    return part


def peers(record: Row, suffix: str) -> Part:  # noqa: ARG001
    part = Part()

    def rows_of(section: str) -> list[Row]:
        """Rows of a section that were measured; what was not is said."""
        found = record.get(section, [])
        if isinstance(found, str):
            part.words.append(f"{section}: {found}.")
            return []
        found = found["rows"] if isinstance(found, dict) else found
        part.words.extend(f"{row['tool']}: {row['not_measured']}." for row in found if "not_measured" in row)
        return [row for row in found if "not_measured" not in row]

    part.table(
        f"The published loop, image by image, and compdx on the same models, {record['threads']} threads",
        (
            *("pair", "published queries/s", "compdx queries/s", "×", "of the runtimes in batches"),
            *("published findings/s", "compdx findings/s", "×"),
        ),
        (
            [
                row["pair"],
                count(row["published"]["queries_per_second"]),
                count(row["in_batches"]["queries_per_second"]),
                f"{row['queries_ratio']:.1f}",
                ratio(row["in_batches"], "ratio"),
                count(row["published"]["findings_per_second"]),
                count(row["compdx"]["findings_per_second"]),
                f"{row['findings_ratio']:.1f}",
            ]
            for row in rows_of("published")
        ),
    )
    attacks = rows_of("attacks")
    about = record["attacks"] if attacks else {}
    part.table(
        f"Black-box attacks on the compressed model ({about.get('pair')}), about {about.get('budget')} queries a seed; "
        "effective: the labels differ and the original keeps the seed's",
        ("tool", "seeds", "effective", "invalid", "effective/s", "model runs for each", "median L2"),
        (
            [
                row["tool"],
                str(row["seeds"]),
                str(row["effective"]),
                str(row["invalid"]),
                count(row["effective_per_second"]),
                count(row["evaluations_per_effective"]),
                NOTHING if row["median_l2"] is None else f"{row['median_l2']:.2f}",
            ]
            for row in attacks
        ),
    )
    part.table(
        "The same search written plainly in PyTorch",
        ("pair", "chains", "plain queries/s", "compdx queries/s", "×", "plain findings/s", "compdx findings/s"),
        (
            [
                row["pair"],
                f"{row['chains']:,}",
                count(row["plain"]["queries_per_second"]),
                count(row["compdx"]["queries_per_second"]),
                ratio(row, "ratio", 2),
                count(row["plain"]["findings_per_second"]),
                count(row["compdx"]["findings_per_second"]),
            ]
            for row in rows_of("eager")
        ),
    )
    part.table(
        "Augmentation, float32 model input included",
        ("tool", "image", "images/s", "compdx is faster by"),
        (
            [row["tool"], size(row["shape"]), count(row["images_per_second"]), ratio(row, "slower", 1)]
            for row in rows_of("augmentation")
        ),
    )
    return part


def memory(record: Row, suffix: str) -> Part:  # noqa: ARG001
    part = Part()
    part.table(
        "Whole searches of MNIST seeds, each in a process of its own",
        ("seeds", "chains", "bytes a chain", "MB for the search", "found", "queries a finding", "graded stable"),
        (
            [
                f"{row['seeds']:,}",
                f"{row['chains']:,}",
                f"{row['bytes_per_chain']:,}",
                f"{row['peak_megabytes_after'] - row['peak_megabytes_before']:,.0f}",
                f"{row['found']:,}",
                f"{row['queries_per_finding']:.1f}",
                f"{row['grades']['stable']:,}",
            ]
            for row in record["rows"]
        ),
    )
    return part


def slicing(record: Row, suffix: str) -> Part:  # noqa: ARG001
    part, found = Part(), record["measured"]
    times, chosen = found["seconds_a_sample"], found["selected"]
    rows = {
        "one forward pass": ("forward", times),
        "the three convolutions of every layer on signs, the floor of a slice": ("floor", times),
        "a slice, everything kept": ("slice", times),
        "the same, with the absolute sums of the samples": ("absolute", times),
        f"a slice with the paper's selection (ε {chosen['epsilon']:g}, β {chosen['beta']:g}), "
        f"{chosen['samples']} samples at a time": ("seconds", chosen),
    }
    part.table(
        f"{found['network']}, {found['multiplications'] / 1e6:,.0f} M multiplications a sample, "
        f"{found['batch']} samples at a time",
        ("what", "ms a sample", "× one forward pass"),
        (
            [what, milliseconds(source, name), f"{source[name] / times['forward']:.1f}"]
            for what, (name, source) in rows.items()
        ),
    )
    memory = found["peak_megabytes"]
    part.words.append(
        f"The slice takes {ratio(found, 'times_the_floor', 2)} times its floor, in turns with it. Peak memory of the "
        f"process: {memory['before']:,.0f} MB before the first slice, {memory['after']:,.0f} MB after it."
    )
    part.table(
        "Published times of NNSlicer, on its authors' machine",
        ("network", "one sample by itself", "a sample of a batch"),
        (
            [name, f"{seconds['alone']:g} s", f"{seconds['batched']:g} s"]
            for name, seconds in record["published_seconds_a_sample"].items()
        ),
    )
    return part


def milliseconds(row: Row, name: str) -> str:
    """A median of seconds with its quartiles, as milliseconds."""
    scaled = {name: row[name] * 1e3, f"{name}_quartiles": [value * 1e3 for value in row[f"{name}_quartiles"]]}
    return ratio(scaled, name, 1)


def explain(record: Row, suffix: str) -> Part:  # noqa: ARG001
    part, settings = Part(), record["settings"]
    part.words.append(
        f"{settings['cases']} random cases, each explained on up to {settings['images']} findings among "
        f"{settings['pool']} images; profiles of {settings['baseline']} images. Goals: the layer first in "
        f"{record['goals']['layer_first']:.0%}, the channel among the first five in "
        f"{record['goals']['channel_in_five']:.0%}."
    )
    names = ("layer_first", "channel_in_five", "single_layer_first", "single_channel_in_five", "layer_first_by_drift")
    for what, found in record.items():
        if not (isinstance(found, dict) and "rates" in found):
            continue
        part.table(
            f"{what.capitalize()}: how often the broken layer comes first, and the broken channel among the first five",
            (
                *("cases", "number", "layer first", "channel in five"),
                *("of one finding: layer first", "channel in five", "layer of largest drift"),
            ),
            (
                [name, str(row["cases"]), *(share(row[rate]) for rate in names)]
                for name, row in found["rates"].items()
                if row["cases"]
            ),
        )
    return part


# Of every section: how its records become words, the records, and the devices.
SECTIONS: dict[str, tuple[Callable[[Row, str], Part], tuple[str, ...], tuple[str, ...]]] = {
    "search": (search, ("search", "search-compiled"), ("", "-cuda")),
    "profile": (profile, ("profile",), ("", "-cuda")),
    "kernels": (kernels, ("kernels",), ("", "-cuda")),
    "peers": (peers, ("peers",), ("", "-cuda")),
    "scale": (scale, ("scale",), ("", "-cuda")),
    "memory": (memory, ("memory",), ("",)),
    "slicing": (slicing, ("slicing",), ("", "-cuda")),
    "explain": (explain, ("explain",), ("",)),
}


def origin(record: Row) -> str:
    """Where and how a record was made, in a sentence."""
    machine, versions = record["machine"], record["versions"]
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['cores']} cores"
    used = ", ".join(f"{name} {versions[name]}" for name in ("compdx", "torch") if name in versions)
    command = f" by `{record['command']}`" if "command" in record else ""
    short = "" if record.get("complete", True) else " It was stopped before its end."
    return f"Measured on {record['date']} on {where}, with {used}{command}.{short}"


def section(name: str, results: Path) -> Part:
    """All that the records say for one section of the page."""
    write, records, suffixes = SECTIONS[name]
    whole = Part()
    for suffix in suffixes:
        for bench in records:
            path = results / f"{bench}{suffix}.json"
            if not path.exists():
                compiled = "compiled" in bench
                how = f"python -m bench.{name}{' --compile' if compiled else ''}" if not suffix else "bench/device.sh"
                whole.words.append(f"Not measured yet {WHERE[suffix]}{', compiled' if compiled else ''}: `{how}`.")
                continue
            record = json.loads(path.read_text(encoding="utf-8"))
            part = write(record, suffix)
            whole.words += [origin(record), *part.words]
            whole.images |= part.images
    return whole


def build(page: str, results: Path) -> tuple[str, dict[str, str]]:
    """The page with its sections filled in, and the plots by file name.

    Raises:
        ValueError: The page has no place for a section, or one for a section that there is not.
    """
    places = [match[2] for match in MARKER.finditer(page)]
    if sorted(places) != sorted(SECTIONS):
        msg = f"the page has places for {sorted(places)}, but the sections are {sorted(SECTIONS)}"
        raise ValueError(msg)
    parts = {name: section(name, results) for name in SECTIONS}
    filled = MARKER.sub(lambda match: match[1] + "\n\n".join(parts[match[2]].words) + "\n" + match[3], page)
    return filled, {name: svg for part in parts.values() for name, svg in part.images.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when something would change")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    page, images = build(options.page.read_text(encoding="utf-8"), options.results)
    folder = options.page.parent / "performance"
    wanted = {options.page: page, **{folder / name: svg for name, svg in images.items()}}
    stale = [path for path in sorted(folder.glob("*.svg")) if path not in wanted]
    changed = [path for path, words in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != words]
    if options.check:
        for path in [*changed, *stale]:
            print(f"{path}: not what the records say; run python -m bench.report")
        raise SystemExit(1 if changed or stale else 0)
    folder.mkdir(exist_ok=True)
    for path in stale:
        path.unlink()
    for path in changed:
        path.write_text(wanted[path], encoding="utf-8")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
