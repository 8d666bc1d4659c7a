"""Sections about what is found: explanations, applications of slices, environments."""

from __future__ import annotations

from bench.sections import NOTHING, Part, Row, share

PARTS = ("target", "others", "all")
RATES = ("first", "in_three", "bisected", "first_by_drift")


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


def detection(record: Row, suffix: str) -> Part:  # noqa: ARG001
    if record["bench"] == "detection-whole":
        return whole_slices(record)
    part, settings, goal = Part(), record["settings"], record["goal"]
    known = {name: row for name, row in record["detectors"].items() if "mean_recall" in row}
    best = max(row["mean_recall"] for row in known.values())
    part.words.append(
        f"Detectors learn from {settings['train']:,} training images. {settings['images']} clean test images, "
        f"{len(record['attacks'])} attacks. Goal: a mean recall of {share(goal['mean_recall'])} over at least "
        f"{goal['attacks']} attacks; {'met' if best >= goal['mean_recall'] else 'not met'}. The paper reports "
        f"{share(record['published']['mean_recall'])} at a precision of {share(record['published']['mean_precision'])}."
    )
    part.table(
        "Recall is the mean over the attacks",
        (
            *("detector", "recall", "clean images flagged (95 %)", "precision for as many clean images"),
            *("recall at 10 % flagged", "flagged for a recall of 95 %", "area under the curve"),
        ),
        (
            [
                name,
                share(row.get("mean_recall")),
                interval(row["false_positive_rate"]) if "false_positive_rate" in row else NOTHING,
                share(row.get("mean_equal_precision")),
                share(row["at_other_rates"]["recall_at_rate"]["0.1"]),
                share(row["at_other_rates"]["rate_at_recall_95"]),
                f"{row['at_other_rates']['area']:.3f}",
            ]
            for name, row in record["detectors"].items()
        ),
    )
    part.table(
        "What the criterion tells: the same images, sliced as if their label were another one than the model's",
        (
            "detector",
            "as it is",
            "from the true class",
            "with the true class's means alone",
            "clean images as a wrong class",
        ),
        (
            [
                name,
                share(row["mean_recall"]),
                share(row["truth_given_away"]["mean_recall"]),
                share(row.get("truth_given_away_by_the_means_alone", {}).get("mean_recall")),
                interval(row["wrong_class"]),
            ]
            for name, row in known.items()
            if "truth_given_away" in row
        ),
    )
    part.table(
        "Recall of every attack",
        ("attack", "succeeds on", *known),
        (
            [
                name,
                f"{found['images']} of {found['of']}",
                *(share(row["attacks"].get(name, {}).get("recall", {}).get("value")) for row in known.values()),
            ]
            for name, found in record["attacks"].items()
        ),
    )
    return part


def whole_slices(record: Row) -> Part:
    part, settings = Part(), record["settings"]
    names = [name for row in record["detectors"].values() for name in row if isinstance(row[name], dict)]
    names = [name for name in dict.fromkeys(names) if name != "clean_flagged"]
    part.table(
        f"Trees over all layers' synapses, {settings['train']:,} training images, {settings['images']} clean ones",
        (
            *("slices of all layers", "clean images flagged (95 %)"),
            *(f"{name}{what}" for name in names for what in (", recall", " from the true class")),
        ),
        (
            [
                f"{name}, {row['synapses']:,} synapses",
                interval(row["clean_flagged"]),
                *(interval(row[one][what]) for one in names for what in ("recall", "truth_given_away")),
            ]
            for name, row in record["detectors"].items()
        ),
    )
    return part


def interval(row: Row) -> str:
    """A share with its interval."""
    return f"{row['value']:.1%} ({row['low']:.1%}–{row['high']:.1%})"


def points(row: Row) -> str:
    """A mean difference of accuracies with its interval, in points."""
    low, high = row["interval"]
    return f"{100 * row['mean']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def targeted(record: Row, suffix: str) -> Part:  # noqa: ARG001
    part, settings = Part(), record["settings"]
    original = sum(record["original"]) / len(record["original"])
    part.words.append(
        f"{len(record['subsets'])} random sets of {min(settings['sizes'])} to {max(settings['sizes'])} classes, "
        f"{settings['images']:,} test images, slices of {settings['per_class']} training images a class. Accuracy on "
        f"the target classes with all logits competing; {share(original)} unpruned."
    )
    titles = {
        "pruned": "Without training",
        "tuned": f"After one epoch on {settings['tune_images']:,} images",
        "variants": "Slices of other kinds, without training",
    }
    for stage, title in titles.items():
        if stage not in record:
            continue
        rows, compared = record[stage]["rows"], record[stage]["differences"]
        sparsities = sorted({row["sparsity"] for row in rows})
        lines: dict[tuple[str, bool], dict[float, str]] = {}
        for row in rows:
            how = row["ranking"], row["compensated"]
            lines.setdefault(how, {})[row["sparsity"]] = f"{100 * row['mean']:.1f}"
        less: dict[tuple[str, bool], dict[float, str]] = {}
        for row in compared:
            if row["ranking"].startswith("slice"):
                less.setdefault((row["ranking"], row["compensated"]), {})[row["sparsity"]] = points(row)
        header = ("by", "constants", *(f"{sparsity:.0%}" for sparsity in sparsities))
        for what, cells in (
            ("accuracy in percent", lines),
            ("points above those by weight, with 95 % intervals", less),
        ):
            part.table(
                f"{title}, {record[stage]['subsets']} sets; {what}",
                header,
                (
                    [name, "compensated" if constants else "none", *(row.get(s, NOTHING) for s in sparsities)]
                    for (name, constants), row in sorted(cells.items(), key=lambda item: item[0][1])
                ),
            )
    return part


def protection(record: Row, suffix: str) -> Part:  # noqa: ARG001
    part, settings = Part(), record["settings"]
    for transfer, found in record["transfer"].items():
        rows, summary = found["rows"], found["summary"]
        part.words.append(
            f"{summary['subsets']} sets of {min(settings['sizes'])} to {max(settings['sizes'])} classes; "
            f"{share(settings['share'])} of the weights of every layer are hidden. The attacker trains on "
            f"{int(transfer):,} images, {settings['recipe']['epochs']} epochs, and keeps the best of any of them; "
            f"{settings['images']:,} test images."
        )
        part.table(
            "The attacker's accuracy, means over the sets",
            ("hidden by", "on the protected classes", "on the others", "on all"),
            ([name, *(share(row[of]) for of in PARTS)] for name, row in summary["means"].items()),
        )
        part.table(
            "Slices less the others, points with 95 % intervals over the sets",
            ("less", "on the protected classes", "on the others", "on all"),
            (
                [name.removeprefix("slice less "), *(points(row[of]) for of in PARTS)]
                for name, row in summary.items()
                if name.startswith("slice less ")
            ),
        )
        part.table(
            "On the protected classes of every set",
            ("classes", *rows),
            (
                [", ".join(map(str, subset)), *(share(row["target"]) for row in of)]
                for subset, *of in zip(record["subsets"], *rows.values(), strict=False)  # one may be under way
            ),
        )
    return part


def environments(record: Row, suffix: str) -> Part:  # noqa: ARG001
    part, settings, summary, costs = Part(), record["settings"], record["summary"], record["costs"]
    measured = summary["environments"]
    first = measured[0]["name"]
    part.words.append(
        f"{settings['images']:,} test images in {len(measured)} environments, batches of {settings['batch']}. The "
        f"{summary['float32_pairs']} pairs of environments with the same float32 weights differ on "
        f"{summary['float32_flips']} labels, {summary['surprising_flips_float32']} of them where the margin is at "
        f"least 0.001; their scores differ by at most {summary['float32_max_abs']:.1e}. The comparison took "
        f"{costs['seconds']:,.0f} s and {costs['peak_mib']:,.0f} MiB, {costs['peak_mib_before']:,.0f} MiB of them "
        f"before it began; {costs['conversion_seconds']:,.0f} s went into conversions before."
    )
    part.words.extend(f"{name} was not measured: {reason}." for name, reason in summary["not_measured"].items())
    pairs = {row["b"]: row for row in summary["pairs"] if row["a"] == first}
    part.table(
        f"Each beside {first}; a call of {settings['batch']} images, medians of {settings['repeats']}",
        (
            *("environment", "accuracy", "labels that differ", "surprising", "largest difference of a score"),
            *("ms a call", "flips within"),
        ),
        (
            [
                row["name"],
                f"{row['accuracy']:.2%}",
                str(pairs[row["name"]]["differing"]) if row["name"] in pairs else NOTHING,
                str(pairs[row["name"]]["surprising"]) if row["name"] in pairs else NOTHING,
                f"{pairs[row['name']]['max_abs']:.1e}" if row["name"] in pairs else NOTHING,
                NOTHING if row["latency"] is None else f"{1e3 * row['latency']['median']:.1f}",
                ", ".join(f"{way} {flips}" for way, flips in row["flips_within"].items() if flips) or "0",
            ]
            for row in measured
            if row["name"] not in summary["not_measured"]
        ),
    )
    part.table(
        "Labels that differ, of all pairs",
        ("", *(str(place + 1) for place in range(len(measured)))),
        (
            [f"{place + 1} {row['name']}", *(NOTHING if value is None else str(value) for value in line)]
            for place, (row, line) in enumerate(zip(measured, summary["matrix"], strict=True))
        ),
    )
    part.table(
        f"Searches from {settings['seeds']} images on which both agree, at most {settings['budget']:,} queries each",
        ("between", "and", "found", "queries"),
        (
            [
                row["a"],
                row["b"],
                row["reason"] or f"{row['found']} of {row['seeds']}",
                NOTHING if row["reason"] else f"{row['queries']:,}",
            ]
            for row in record["searches"]
        ),
    )
    return part


def localize(record: Row, suffix: str) -> Part:  # noqa: ARG001
    part, goals, whole = Part(), record["goals"], record["all"]
    levels = sum(len(network["identical"]) for network in record["networks"].values())
    part.words.append(
        f"{whole['seen']} faults that change something, {sum(whole['nothing'].values())} that do not, "
        f"{record['settings']['images']} images. Goals: the faulty layer first in {goals['first']:.0%}, among the "
        f"first three in {goals['in_three']:.0%}. Where nothing is wrong, {levels} comparisons have "
        f"{whole['false_suspects']} suspects (goal: {goals['false_suspects']})."
    )
    rows = [("all", "both", whole)]
    rows += [
        (name, pair, found) for name, network in record["networks"].items() for pair, found in network["rates"].items()
    ]
    part.table(
        "How often the faulty layer is named",
        ("network", "the faulty one on", "faults", "first", "in three", "bisected", "first by drift"),
        (
            [
                name,
                pair,
                str(row["seen"]),
                *(share(row[rate]) for rate in RATES),
            ]
            for name, pair, row in rows
        ),
    )
    return part
