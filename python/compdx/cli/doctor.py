"""``compdx doctor``."""

from __future__ import annotations

import compdx
from compdx.cli import models
from compdx.cli import options as opt
from compdx.cli.answer import FOUND, NOT_MEASURED, NOTHING, Answer


def command(
    original: opt.Original,
    compressed: opt.Compressed,
    seeds: opt.SeedsPath,
    limit: opt.Limit = None,
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
    debug: opt.Debug = False,
) -> None:
    """Check that the pair does what its owner believes, before any search. Exit code 1 when there are problems."""
    with Answer("doctor", as_json=as_json, debug=debug) as answer:
        preprocessing = opt.preprocessing(mean, std, bounds, layout, outputs, class_offset)
        pair = models.pair(
            original, compressed, preprocessing, device, threads, opt.own(original_option, compressed_option)
        )
        checkup = compdx.doctor(pair, models.seeds(seeds, limit))
        measured = checkup.original is not None and checkup.compressed is not None
        answer.give(
            (NOTHING if checkup.healthy else FOUND) if measured else NOT_MEASURED,
            data={"healthy": checkup.healthy, **checkup.to_dict()},
            text=str(checkup),
        )
