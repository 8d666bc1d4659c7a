"""Sections about speed, memory and other tools."""

from __future__ import annotations

from bench import plots
from bench.sections import NOTHING, WHERE, Part, Row, count, milliseconds, place, ratio, share, size


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
