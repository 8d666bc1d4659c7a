"""The gallery: findings with their seeds, what the mutation changed, and what both models say."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from compdx.contact import AMPLIFICATIONS
from compdx.findings import EXHAUSTED, KINDS
from compdx.report.reasons import Reason, Why
from compdx.report.wording import label, number, percent, plural

if TYPE_CHECKING:
    from compdx.findings import Findings
    from compdx.seeds import Seeds

SIDE = 128  # pixels; larger pictures are reduced to it
SMOOTH_FROM = 65  # pixels; smaller pictures are shown pixel by pixel
HEAT_SIDE, HEAT_SHADES = 64, 64  # pixels and colours of a picture of errors
HEAT = (255, 106, 0)  # the colour of an error
PICTURE_CHARACTERS = 3_500_000  # most that all pictures, and what explains them, may take in the page

_Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, eq=False)
class Origin:
    """The seed of a finding: its image, uint8 ``[C, H, W]``, and the label of the seed set, -1 unknown."""

    image: _Pixels
    label: int


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one model says of a picture."""

    model: str
    label: str
    confidence: str
    width: float  # of the bar, 0..100


@dataclass(frozen=True, kw_only=True)
class Card:
    """One finding.

    Attributes:
        seed, kind, flip: As in the table; ``flip`` is the two labels as ``3-8``.
        step, l2, delta: What the page sorts by; ``delta`` is the absolute difference of the confidences, 0..1.
        pictures: Title, text alternative and data URI of each picture.
        seed_label: Name of the label that the search compares with, and that of the seed set where it is another.
        answers: What the models say of the finding.
        facts: Queries and distances.
        trace: The operators that led here.
        sha256: Of the finding's bytes, as in the table.
        reason: Why the models differ on it; None where that was not explained.
        where: Text alternative and data URI of the picture of where it happened; None where that is not known.
    """

    seed: int
    kind: str
    flip: str
    step: int
    l2: float
    delta: float
    pictures: list[tuple[str, str, str]]
    seed_label: str
    answers: list[Answer]
    facts: str
    trace: str
    sha256: str
    reason: Reason | None
    where: tuple[str, str] | None


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The cards, and what the page says around them.

    Attributes:
        cards: Effective findings first, each kind by the size of the change.
        total: All findings of the run.
        kinds, flips: What can be chosen, as value, text and number of cards.
        note: Which findings are shown, and how.
        smooth: Whether the pictures are large enough to be scaled smoothly.
    """

    cards: list[Card]
    total: int
    kinds: list[tuple[str, str, int]]
    flips: list[tuple[str, str, int]]
    note: str
    smooth: bool


def gallery(
    findings: Findings, *, seeds: Seeds | None, names: Sequence[str] | None, limit: int, why: Why | None = None
) -> Gallery:
    """The gallery of at most ``limit`` findings, fewer where their pictures would make the page too large.

    Raises:
        ValueError: A stored image is damaged, or ``seeds`` are not those of the run.
    """
    table = findings.table.drop_columns(["image", "pictures"])
    order = _order(findings)[:limit]
    records = table.take(order).to_pylist() if order else []
    images = [findings.check_image(row) for row in order]
    origins: list[Origin | None] = [None] * len(order)
    if seeds is not None and order:
        places = seeds.locate([record["seed_index"] for record in records])
        truths = np.full(len(places), -1) if seeds.labels is None else seeds.labels[places]
        origins = [
            _origin(record, image, Origin(image=seeds.images[place], label=int(truth)))
            for record, image, place, truth in zip(records, images, places, truths, strict=True)
        ]
    factor = _amplification(
        [image.astype(np.int32) - origin.image for image, origin in zip(images, origins, strict=True) if origin]
    )
    cards: list[Card] = []
    room = PICTURE_CHARACTERS
    for record, image, origin in zip(records, images, origins, strict=True):
        card = _card(record, image, origin, factor, names, why)
        room -= sum(len(uri) for _, _, uri in card.pictures) + (card.reason.size if card.reason else 0)
        room -= len(card.where[1]) if card.where else 0
        if room < 0 and cards:
            break
        cards.append(card)
    cards.sort(key=lambda card: (KINDS.index(card.kind), card.l2, card.seed))
    flips = Counter(card.flip for card in cards)  # the most frequent first, then in the order of the cards
    texts = {card.flip: " → ".join(answer.label for answer in card.answers) for card in cards}
    kinds = Counter(card.kind for card in cards)
    return Gallery(
        cards=cards,
        total=len(findings),
        kinds=[(kind, kind, kinds[kind]) for kind in KINDS[:EXHAUSTED] if kinds[kind]],
        flips=[(flip, texts[flip], count) for flip, count in flips.most_common()],
        note=_note(findings, len(cards), factor if seeds is not None else None),
        smooth=max(findings.shape[1:]) >= SMOOTH_FROM,
    )


def _order(findings: Findings) -> list[int]:
    """Rows such that the first ones hold every kind and flip, of each those with the smallest change."""
    columns = ("kind", "original_label", "compressed_label", "l2", "seed_index")
    values = zip(*(findings.table[name].to_pylist() for name in columns), strict=True)
    rows = sorted((KINDS.index(kind), l2, seed, (kind, a, b), row) for row, (kind, a, b, l2, seed) in enumerate(values))
    seen: Counter[tuple[str, int, int]] = Counter()
    ranked = []
    for place, (_, _, _, group, row) in enumerate(rows):
        ranked.append((seen[group], place, row))
        seen[group] += 1
    return [row for _, _, row in sorted(ranked)]


def _origin(record: dict[str, Any], image: _Pixels, origin: Origin) -> Origin:
    """The seed of a finding, after a check that it is the one the search started from."""
    distance = int(np.abs(image.astype(np.int16) - origin.image).max())
    if distance != record["linf"]:
        msg = (
            f"seeds must be those of the run, but seed {record['seed_index']} is {distance} grey levels from its "
            f"finding, and the run says {record['linf']}"
        )
        raise ValueError(msg)
    return origin


def _amplification(differences: list[npt.NDArray[np.int32]]) -> int:
    """One factor for all, the largest that keeps nearly all of the differences within the grey levels."""
    usual = float(np.quantile(np.abs(np.stack(differences)), 0.9)) if differences else 0.0
    return next((factor for factor in AMPLIFICATIONS if usual * factor <= 128), AMPLIFICATIONS[-1])


def _card(
    record: dict[str, Any],
    image: _Pixels,
    origin: Origin | None,
    factor: int,
    names: Sequence[str] | None,
    why: Why | None,
) -> Card:
    seed, kind = record["seed_index"], record["kind"]
    answers = [_answer(record, model, names) for model in ("original", "compressed")]
    said = ", ".join(f"{answer.model} says {answer.label}" for answer in answers)
    of_seed = label(record["seed_label"], names)
    if origin is not None and origin.label not in (-1, record["seed_label"]):
        of_seed += f" (labelled {label(origin.label, names)})"
    pictures = [("Finding", f"Finding from seed {seed}: {said}", _data_uri(image))]
    if origin is not None:
        difference = image.astype(np.int32) - origin.image
        shown = np.clip(difference * factor + 128, 0, 255).astype(np.uint8)
        title = f"Difference ×{factor}" if factor > 1 else "Difference"
        pictures.insert(0, ("Seed", f"Seed {seed}, label {of_seed}", _data_uri(origin.image)))
        pictures.append((title, f"What changed, at most {record['linf']} grey levels", _data_uri(shown)))
    reason = None if why is None else why.reason(seed)
    known = [record[f"{model}_confidence"] for model in ("original", "compressed")]
    return Card(
        seed=seed,
        kind=kind,
        flip=f"{record['original_label']}-{record['compressed_label']}",
        step=record["step"],
        l2=record["l2"],
        delta=abs(known[0] - known[1]) if None not in known else 0.0,
        pictures=pictures,
        seed_label=of_seed,
        answers=answers,
        facts=f"step {record['step']:,} · L2 {number(record['l2'], 2)} · L∞ {record['linf']}",
        trace=" → ".join(record["operators"] or ()),
        sha256=record["sha256"],
        reason=reason,
        where=None if reason is None or reason.where is None else _heat(image, reason.where),
    )


def _answer(record: dict[str, Any], model: str, names: Sequence[str] | None) -> Answer:
    confidence = record[f"{model}_confidence"]
    if record["non_finite"] in (model, "both"):
        return Answer(model=model, label="not finite", confidence="", width=0.0)
    return Answer(
        model=model,
        label=label(record[f"{model}_label"], names),
        confidence="" if confidence is None else percent(confidence),
        width=0.0 if confidence is None else round(100 * confidence, 1),
    )


def _heat(image: _Pixels, where: _Pixels) -> tuple[str, str]:
    """Errors in colour over the picture in grey: where they are largest in words, and a data URI."""
    grey = _picture(image, HEAT_SIDE).convert("L")
    amount = Image.fromarray(where).resize(grey.size, Image.Resampling.BILINEAR)
    mixed = Image.composite(Image.new("RGB", grey.size, HEAT), grey.convert("RGB"), amount)
    down, across = (
        100 * (place + 0.5) / side
        for place, side in zip(np.unravel_index(where.argmax(), where.shape), where.shape, strict=True)
    )
    place = f"{across:.0f} % of the way from left to right and {down:.0f} % from top to bottom"
    return f"Where the layer errs: most at {place}", _png(mixed.quantize(HEAT_SHADES))


def _data_uri(image: _Pixels) -> str:
    return _png(_picture(image, SIDE))


def _picture(image: _Pixels, side: int) -> Image.Image:
    """The first three channels, or the first one where there are fewer; large pictures are reduced."""
    pixels = image[:3].transpose(1, 2, 0) if len(image) >= 3 else image[0]
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if max(picture.size) > side:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture


def _png(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _note(findings: Findings, shown: int, factor: int | None) -> str:
    total = len(findings)
    parts = []
    if shown < total:
        parts.append(
            f"{shown:,} of {plural(total, 'finding')} are shown: of every kind and class pair those with the smallest "
            f"change. The other {total - shown:,} are in the run."
        )
    elif total > 1:
        parts.append(f"All {total:,} findings are shown.")
    if factor is None:
        parts.append("The seeds were not given, so only the findings themselves are shown.")
    else:
        times = f", {factor} times amplified" if factor > 1 else ""
        parts.append(f"The difference is finding − seed around mid-grey{times}.")
    if max(findings.shape[1:]) > SIDE:
        parts.append(f"Pictures are reduced to {SIDE} pixels here.")
    return " ".join(parts)
