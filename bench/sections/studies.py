"""Sections about what is found: explanations, applications of slices, environments."""

from __future__ import annotations

from bench.sections import Part, Row, share


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
