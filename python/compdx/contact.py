"""The contact sheet: findings as one picture, each with its seed, mutant, difference and what the models say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from compdx.findings import KINDS

if TYPE_CHECKING:
    from compdx.findings import Findings
    from compdx.seeds import Seeds

AMPLIFICATIONS = (8, 4, 2, 1)  # the first that keeps nearly all of the differences within the grey levels

TILE = 112  # pixels; smaller images are enlarged to about this, larger ones reduced
GAP = 6
MARGIN = 28
COLUMN_GAP = 36
ROW_GAP = 18
TEXT_GAP = 16
TWO_COLUMNS_FROM = 5
NAME_LENGTH = 18

PAPER = (255, 255, 255)
INK = (28, 30, 34)
QUIET = (118, 124, 134)
FRAME = (208, 212, 218)
ALARM = (190, 40, 32)

_Pixels = npt.NDArray[np.uint8]
_Line = list[tuple[str, tuple[int, int, int], int]]  # runs of text, each with its colour and size


def contact_sheet(
    findings: Findings, *, seeds: Seeds | None = None, limit: int = 24, names: Sequence[str] | None = None
) -> Image.Image:
    """Draw findings: those that the search found first, then the others, each kind in the order of the table.

    The difference is mutant - seed around mid-grey, amplified by one of `AMPLIFICATIONS` for the whole sheet and
    clipped. Of images with two channels the first is drawn, of those with more than three the first three.

    Args:
        findings: What to draw.
        seeds: Seeds that hold those of the findings; without them only the mutants are drawn.
        limit: At most so many findings.
        names: Class names; default those of ``seeds``.

    Returns:
        An RGB picture, dark on light.

    Raises:
        ValueError: ``limit`` < 1, or ``seeds`` do not hold a seed or have another shape.
    """
    if limit < 1:
        msg = f"limit must be at least 1, got {limit}"
        raise ValueError(msg)
    if seeds is not None and seeds.shape != findings.shape:
        msg = f"seeds must have the shape of the findings, {findings.shape}, got {seeds.shape}"
        raise ValueError(msg)
    names = names if names is not None or seeds is None else seeds.names
    kinds = findings.table["kind"].to_pylist()
    rows = sorted(range(len(findings)), key=lambda row: (KINDS.index(kinds[row]), row))[:limit]
    records = findings.table.drop_columns(["image"]).take(rows).to_pylist() if rows else []

    mutants = findings.images[rows]
    columns, titles = [mutants], ["mutant"]
    if seeds is not None and rows:
        origins = seeds.images[seeds.locate([record["seed_index"] for record in records])]
        difference = mutants.astype(np.int32) - origins
        factor = _amplification(difference)
        columns = [origins, mutants, np.clip(difference * factor + 128, 0, 255).astype(np.uint8)]
        titles = ["seed", "mutant", f"difference x{factor}" if factor > 1 else "difference"]
    cells = [
        ([_tile(tile) for tile in tiles], _caption(record, names))
        for *tiles, record in zip(*columns, records, strict=True)
    ]
    shown = f"{len(findings)} findings" if len(rows) == len(findings) else f"{len(rows)} of {len(findings)} findings"
    return _layout(cells, titles, shown if len(findings) != 1 else "1 finding")


def _amplification(difference: npt.NDArray[np.int32]) -> int:
    usual = float(np.quantile(np.abs(difference), 0.9))
    return next((factor for factor in AMPLIFICATIONS if usual * factor <= 128), AMPLIFICATIONS[-1])


def _layout(cells: list[tuple[list[Image.Image], list[_Line]]], titles: list[str], heading: str) -> Image.Image:
    tile_width, tile_height = cells[0][0][0].size if cells else (TILE, TILE)
    text_width = max((_width(line) for _, caption in cells for line in caption), default=0)
    text_height = max((sum(_line_height(line) for line in caption) for _, caption in cells), default=0)
    pitch = tile_width + GAP
    cell_width = len(titles) * pitch - GAP + TEXT_GAP + text_width
    cell_height = max(tile_height, text_height)
    columns = 2 if len(cells) >= TWO_COLUMNS_FROM else 1
    lines = math.ceil(len(cells) / columns)
    top = MARGIN + 30
    first_row = top + 20
    width = max(2 * MARGIN + columns * cell_width + (columns - 1) * COLUMN_GAP, 2 * MARGIN + 240)
    height = first_row + lines * (cell_height + ROW_GAP) - ROW_GAP + MARGIN if cells else top + MARGIN

    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (MARGIN, MARGIN - 8), [(heading, INK, 18)])
    for place, (tiles, caption) in enumerate(cells):
        left = MARGIN + (place % columns) * (cell_width + COLUMN_GAP)
        upper = first_row + (place // columns) * (cell_height + ROW_GAP)
        for k, tile in enumerate(tiles):
            x = left + k * pitch
            sheet.paste(tile, (x, upper))
            draw.rectangle((x - 1, upper - 1, x + tile_width, upper + tile_height), outline=FRAME)
            if place < columns:
                _write(draw, (x, top), [(titles[k], QUIET, 12)])
        y = upper + max(0, tile_height - text_height) // 2
        for line in caption:
            _write(draw, (left + len(tiles) * pitch - GAP + TEXT_GAP, y), line)
            y += _line_height(line)
    return sheet


def _caption(record: dict[str, Any], names: Sequence[str] | None) -> list[_Line]:
    lines: list[_Line] = [[(f"seed {record['seed_index']}", INK, 14), (f"   {record['kind']}", QUIET, 12)]]
    for model, colour in (("original", INK), ("compressed", ALARM)):
        label, confidence = record[f"{model}_label"], record[f"{model}_confidence"]
        if record["non_finite"] in (model, "both"):
            answer = "not finite"
        else:
            answer = _name(label, names) + ("" if confidence is None else f" ({100 * confidence:.0f} %)")
        lines.append([(f"{model} ", QUIET, 13), (answer, colour, 13)])
    queries = f"{record['queries']} {'query' if record['queries'] == 1 else 'queries'}"
    lines.append([(f"{queries} · L2 {record['l2']:.2f} · Linf {record['linf']}", QUIET, 12)])
    return lines


def _name(label: int, names: Sequence[str] | None) -> str:
    if label < 0:
        return "unknown"
    name = str(label) if names is None or label >= len(names) else str(names[label])
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"


def _tile(image: _Pixels) -> Image.Image:
    """The image at the size of a tile: enlarged by whole pixels, or reduced when it is larger than a tile."""
    pixels = image[:3].transpose(1, 2, 0) if len(image) >= 3 else image[0]
    picture = Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")
    longest = max(picture.size)
    if longest > TILE:
        scale = TILE / longest
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        return picture.resize(size, Image.Resampling.LANCZOS)
    factor = max(1, round(TILE / longest))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _width(line: _Line) -> int:
    return math.ceil(sum(_font(size).getlength(text) for text, _, size in line))


def _line_height(line: _Line) -> int:
    return max(size for _, _, size in line) + 8


def _write(draw: ImageDraw.ImageDraw, place: tuple[float, float], line: _Line) -> None:
    """One line of text; its runs stand on one base line."""
    x, y = place
    base = y + max(size for _, _, size in line)
    for text, colour, size in line:
        draw.text((x, base), text, fill=colour, font=_font(size), anchor="ls")
        x += _font(size).getlength(text)
