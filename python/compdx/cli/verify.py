"""``compdx verify``."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

import compdx
from compdx.cli import models
from compdx.cli import options as opt
from compdx.cli.answer import FOUND, NOTHING, Answer
from compdx.screen import Ticker
from compdx.verification import Verification


def command(
    run: opt.Run,
    original: opt.Original,
    compressed: opt.Compressed,
    device: opt.Device = None,
    threads: opt.Threads = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    bounds: opt.Bounds = None,
    layout: opt.Layout = None,
    outputs: opt.Outputs = None,
    class_offset: opt.Offset = None,
    original_option: opt.OriginalOption = None,
    compressed_option: opt.CompressedOption = None,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Ask about every finding of a run again and grade it. Exit code 1 when one is not stable."""
    with Answer("verify", as_json=as_json, debug=debug) as answer:
        preprocessing = opt.preprocessing(mean, std, bounds, layout, outputs, class_offset)
        pair = models.pair(
            original, compressed, preprocessing, device, threads, opt.own(original_option, compressed_option)
        )
        verification = compdx.verify(pair, run, progress=None if quiet else Ticker("images asked again"))
        answer.give(
            NOTHING if verification.all_stable else FOUND,
            data={"run": str(run), "grades": verification.counts, "findings": verification.table.to_pylist()},
            text="" if quiet else _told(verification),
        )


def _told(verification: Verification) -> RenderableType:
    table = Table(box=box.SIMPLE, title="not stable", title_justify="left")
    for name in ("seed", "grade", "reason"):
        table.add_column(name)
    unstable = [row for row in verification.table.to_pylist() if row["grade"] != "stable"]
    for row in unstable:
        table.add_row(str(row["seed_index"]), row["grade"], row["reason"])
    colour = "green" if verification.all_stable else "red"
    return Group(f"[bold {colour}]{verification}[/]", *([table] if unstable else []))
