"""How the report writes numbers, labels and dates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

NAME_LENGTH = 24
UNKNOWN = "–"
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | None, digits: int = 0) -> str:
    """With commas and so many digits behind the point; a dash when unknown."""
    return UNKNOWN if value is None or not math.isfinite(value) else f"{value:,.{digits}f}".replace("-", "−")


def power(exponent: int) -> str:
    """A power of ten: ``10⁻⁷``."""
    return f"10{str(exponent).translate(RAISED)}"


def scientific(value: float) -> str:
    """Two digits of what spans many powers of ten: ``0.33``, ``2.4·10⁻⁷``."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "∞" if value > 0 else "−∞" if value < 0 else UNKNOWN
    if 0.00995 <= abs(value) < 99.5:
        return f"{value:.2g}".replace("-", "−")
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits}·{power(int(exponent))}".replace("-", "−")


def percent(share: float | None, digits: int = 0) -> str:
    """A share, 0..1, in percent; what is nearly none or nearly all is not rounded to none or all."""
    if share is None or not math.isfinite(share):
        return UNKNOWN
    least = 10.0**-digits / 100
    if 0 < share < least / 2:
        return f"<\N{NARROW NO-BREAK SPACE}{number(100 * least, digits)}\N{NO-BREAK SPACE}%"
    if 1 - least / 2 < share < 1:
        return f">\N{NARROW NO-BREAK SPACE}{number(100 - 100 * least, digits)}\N{NO-BREAK SPACE}%"
    return f"{number(100 * share, digits)}\N{NO-BREAK SPACE}%"


def plural(count: int, one: str, many: str | None = None) -> str:
    """``1 query``, ``2 queries``."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def duration(seconds: float | None) -> str:
    """``0.4 s``, ``12.3 s``, ``4 min 10 s``, ``2 h 5 min``."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def moment(iso: object) -> str:
    """``2026-11-21 04:33 UTC``; text that is no date is given back."""
    try:
        when = datetime.fromisoformat(str(iso))
    except ValueError:
        return str(iso)
    if when.tzinfo is not None:
        when = when.astimezone(timezone.utc)
    return f"{when:%Y-%m-%d %H:%M} UTC"


def label(code: int, names: Sequence[str] | None) -> str:
    """The name of a class, else its number; shortened when it is very long."""
    if code < 0:
        return "unknown"
    name = str(code) if names is None or code >= len(names) else str(names[code])
    return shortened(name, NAME_LENGTH)


def shortened(text: str, length: int) -> str:
    """At most so many characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Values of JSON as lines: nested names are joined by dots, lists are written on one line."""
    if isinstance(value, Mapping):
        prefix = f"{name}." if name else ""
        return [line for key, inner in value.items() for line in flat(inner, f"{prefix}{key}")]
    if isinstance(value, (list, tuple)):
        return [(name, ", ".join(text for _, text in (line for item in value for line in flat(item))) or "none")]
    if value is None:
        return [(name, "none")] if name else []
    if isinstance(value, bool):
        return [(name, "yes" if value else "no")]
    return [(name, str(value))]
