"""What a comparison of environments found: the environments, every pair of them, the matrix."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compdx.environments.difference import Difference
from compdx.environments.recording import write_json
from compdx.environments.significance import Latency
from compdx.environments.variants import Variant
from compdx.model import Pair

FORMAT = 1
RESULT = "comparison.json"
STABILITY = {
    "again": "the same call once more",
    "position": "the same batch, every image at another place in it",
    "batch": "a batch of another size",
    "alone": "a batch of one",
}
"""Ways to ask an environment about the same images twice, in which nothing should change."""
NON_FINITE = "a score is NaN or infinite"


@dataclass(frozen=True, kw_only=True, eq=False)
class Stability:
    """One environment asked about the same images in two ways.

    Attributes:
        way: One of `STABILITY`.
        images: How many.
        rows: int64, those whose label changed, or whose scores are finite in one way only.
        max_abs: The largest change of a score.
        batch: Images a call the second time.
    """

    way: str
    images: int
    rows: npt.NDArray[np.int64]
    max_abs: float
    batch: int

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {**vars(self), "rows": self.rows.tolist(), "flips": len(self.rows)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """One environment of a comparison.

    Attributes:
        name: What tables call it.
        reason: Why nothing was measured; None when it was.
        about: What is known of it, as JSON values: settings, conversions, versions, weights.
        accuracy: Share of right labels, where the classes are known.
        non_finite: Images with a score that is NaN or infinite.
        latency: Time of a call; None where it was not measured.
        stability: By way of `STABILITY`, those that were measured.
    """

    name: str
    reason: str | None = None
    about: dict[str, Any] = field(default_factory=dict)
    accuracy: float | None = None
    non_finite: int = 0
    latency: Latency | None = None
    stability: dict[str, Stability] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "name": self.name,
            "not_measured": self.reason,
            "about": self.about,
            "accuracy": self.accuracy,
            "non_finite": self.non_finite,
            "latency": None if self.latency is None else self.latency.to_json(),
            "stability": {way: found.to_json() for way, found in self.stability.items()},
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Measured:
        """What `to_json` gave."""
        latency = data["latency"]
        return cls(
            name=data["name"],
            reason=data["not_measured"],
            about=data["about"],
            accuracy=data["accuracy"],
            non_finite=data["non_finite"],
            latency=None if latency is None else Latency(seconds=tuple(latency["seconds"]), batch=latency["batch"]),
            stability={
                way: Stability(
                    way=way,
                    images=found["images"],
                    rows=np.asarray(found["rows"], np.int64),
                    max_abs=found["max_abs"],
                    batch=found["batch"],
                )
                for way, found in data["stability"].items()
            },
        )


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search between two environments.

    Attributes:
        a, b: Their names.
        method: Of the search.
        seeds: How many images it started from.
        found: On how many of them it found an image with different labels, seeds that differ by themselves included.
        queries: How often both were asked.
        run: Directory of the run, for ``compdx verify``, ``show`` and ``report``; None when it was not kept.
        reason: Why it was not done; None when it was.
    """

    a: str
    b: str
    method: str
    seeds: int = 0
    found: int = 0
    queries: int = 0
    run: str | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """What `compare` found.

    Attributes:
        environments: In the order in which they were given.
        pairs: Every pair of them, the earlier one as reference ``a``.
        images: How many were compared.
        settings: How, as JSON values.
        searches: What searches between environments found.
        variants: The variants themselves, by name, where the comparison was made in this process.
    """

    environments: tuple[Measured, ...]
    pairs: tuple[Difference, ...]
    images: int
    settings: dict[str, Any]
    searches: tuple[Search, ...] = ()
    variants: dict[str, Variant] = field(default_factory=dict, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the environments."""
        return tuple(one.name for one in self.environments)

    @property
    def differing(self) -> int:
        """Pairs of environments that differ in a label."""
        return sum(pair.differing > 0 for pair in self.pairs)

    @property
    def found(self) -> bool:
        """Whether any label differs: between environments, within one, or on an image that a search found."""
        unstable = any(len(way.rows) for one in self.environments for way in one.stability.values())
        return bool(self.differing or unstable or any(search.found for search in self.searches))

    @property
    def complete(self) -> bool:
        """Whether every environment, every pair and every search was measured, on all images."""
        reasons = [one.reason for one in self.environments]
        reasons += [pair.reason for pair in self.pairs] + [search.reason for search in self.searches]
        return all(reason is None for reason in reasons) and not any(one.non_finite for one in self.environments)

    @property
    def unmeasured(self) -> list[tuple[str, str]]:
        """What was not measured and why: environments, and pairs of two that were."""
        alone = {one.name: one.reason for one in self.environments if one.reason is not None}
        pairs = [one for one in self.pairs if one.reason is not None and not {one.a, one.b} & alone.keys()]
        return [*alone.items(), *((f"{one.a} – {one.b}", str(one.reason)) for one in pairs)]

    def difference(self, a: str, b: str) -> Difference:
        """The pair of two environments, by name; ``a`` is the one that was given earlier.

        Raises:
            KeyError: There is no such pair; of a pair in the other order the message says so.
        """
        for pair in self.pairs:
            if (pair.a, pair.b) == (a, b):
                return pair
        turned = any((pair.a, pair.b) == (b, a) for pair in self.pairs)
        hint = f"; there is one of {b!r} and {a!r}" if turned else f"; environments are {', '.join(self.names)}"
        msg = f"no pair of {a!r} and {b!r}{hint}"
        raise KeyError(msg)

    def pair(self, a: str, b: str) -> Pair:
        """Two environments as a `compdx.Pair`, to search and to verify.

        Raises:
            KeyError: No variant of this process has the name.
            NotMeasured: One of them cannot be had.
        """
        return self.variant(a).pair(self.variant(b))

    def variant(self, name: str) -> Variant:
        """An environment's variant; ``KeyError`` where this process has none of that name."""
        if name not in self.variants:
            known = ", ".join(self.variants) or "none, as this comparison was loaded"
            msg = f"no variant {name!r}; there are: {known}"
            raise KeyError(msg)
        return self.variants[name]

    def matrix(self, what: str = "differing") -> npt.NDArray[np.float64]:
        """A figure of every pair, float64 ``[E, E]``: symmetric, 0 on the diagonal, NaN for what was not measured.

        Args:
            what: ``"differing"``, images with different labels, ``"surprising"``, those of them whose margin is not
                below the threshold, ``"share"``, of all images, or ``"max_abs"``, the largest difference of a score.

        Raises:
            ValueError: ``what`` is none of these.
        """
        known = ("differing", "surprising", "share", "max_abs")
        if what not in known:
            msg = f"what must be one of {', '.join(map(repr, known))}, got {what!r}"
            raise ValueError(msg)
        place = {name: index for index, name in enumerate(self.names)}
        found = np.full((len(place), len(place)), np.nan)
        for one in self.environments:
            if one.reason is None:
                found[place[one.name], place[one.name]] = 0.0
        for pair in self.pairs:
            if pair.measured:
                value = getattr(pair.drift, what) if what == "max_abs" else getattr(pair, what)
                found[place[pair.a], place[pair.b]] = found[place[pair.b], place[pair.a]] = value
        return found

    def rows(self) -> list[dict[str, Any]]:
        """A table as dicts, one a pair: what of `Difference` is one number, None where it was not measured."""
        found = []
        for pair in self.pairs:
            low, high = pair.interval if pair.measured else (None, None)
            speed, drift, overlap = pair.speed, pair.drift, pair.overlap
            verdict = None if speed is None else speed.anova
            line: dict[str, Any] = {"a": pair.a, "b": pair.b, "not_measured": pair.reason}
            for name in ("images", "non_finite", "differing", "surprising", "share"):
                line[name] = getattr(pair, name) if pair.measured else None
            line |= {"share_low": low, "share_high": high, **{name: pair.flips.get(name) for name in _FLIPS}}
            line |= {name: None if overlap is None else getattr(overlap, name) for name in _OVERLAPS}
            line |= {name: None if drift is None else getattr(drift, name) for name in _DRIFTS}
            line["time_change"] = None if speed is None else speed.time_change
            line["speed_gain"] = None if speed is None else speed.speed_gain
            line["p"] = None if verdict is None else verdict.p
            found.append(line)
        return found

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "format": FORMAT,
            "images": self.images,
            "settings": self.settings,
            "environments": [one.to_json() for one in self.environments],
            "pairs": [pair.to_json() for pair in self.pairs],
            "searches": [vars(search) for search in self.searches],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Comparison:
        """What `to_json` gave; without variants."""
        if data.get("format") != FORMAT:
            msg = f"expected a comparison of format {FORMAT}, got {data.get('format')!r}"
            raise ValueError(msg)
        return cls(
            environments=tuple(Measured.from_json(one) for one in data["environments"]),
            pairs=tuple(Difference.from_json(pair) for pair in data["pairs"]),
            images=data["images"],
            settings=data["settings"],
            searches=tuple(Search(**search) for search in data["searches"]),
        )

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write ``comparison.json`` into a directory, and return its path."""
        path = Path(directory) / RESULT
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, self.to_json())
        return path

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Comparison:
        """The comparison in a directory.

        Raises:
            FileNotFoundError: There is none, or it is not finished.
            ValueError: The file holds something else.
        """
        path = Path(directory) / RESULT
        if not path.is_file():
            msg = f"{directory} holds no finished comparison: there is no {RESULT}"
            raise FileNotFoundError(msg)
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (KeyError, TypeError) as error:
            msg = f"{path}: not a comparison: {error!r}"
            raise ValueError(msg) from error

    def __str__(self) -> str:
        return "\n".join([*self._matrix_lines(), *self._remarks()])

    def _matrix_lines(self) -> list[str]:
        names = self.names
        width = max(len(name) for name in names) + len(str(len(names) - 1)) + 1
        cells = [["·" if i == j else count_text(v) for j, v in enumerate(row)] for i, row in enumerate(self.matrix())]
        column = max(4, *(len(cell) for row in cells for cell in row)) + 1
        head = " " * width + "".join(f"{index:>{column}}" for index in range(len(names)))
        lines = [f"Labels that differ, of {self.images:,} images", head]
        for index, (name, row) in enumerate(zip(names, cells, strict=True)):
            lines.append(f"{f'{index} {name}':<{width}}" + "".join(f"{cell:>{column}}" for cell in row))
        return lines

    def _remarks(self) -> list[str]:
        lines = [f"{name}: not measured: {reason}" for name, reason in self.unmeasured]
        for one in self.environments:
            if one.non_finite:
                lines.append(f"{one.name}: {one.non_finite:,} of {self.images:,} images left out: {NON_FINITE}")
            for way, found in one.stability.items():
                if len(found.rows):
                    lines.append(f"{one.name}: {len(found.rows):,} of {found.images:,} labels change: {STABILITY[way]}")
        for search in self.searches:
            told = f"{search.found:,} of {search.seeds:,} seeds" if search.reason is None else search.reason
            lines.append(f"search {search.a} – {search.b}: {told}")
        return lines


_FLIPS = ("right_to_wrong", "wrong_to_right", "wrong_to_wrong", "tie", "unlabelled")
_OVERLAPS = ("same", "jaccard", "footrule", "rbo_truncated", "rbo", "tau")
_DRIFTS = ("max_abs", "rmse", "sqnr_db", "cosine", "kl", "confidence")


def count_text(value: float) -> str:
    """A count as a cell of a matrix; a question mark where nothing was measured."""
    return "?" if math.isnan(value) else f"{int(value):,}"


def unique(names: Sequence[str]) -> list[str]:
    """The names, those that occur again with a number."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found
