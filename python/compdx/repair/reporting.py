"""What a repair gives back: the repaired pair, and a report of what changed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compdx.compressed import Compressed
    from compdx.model import Pair
    from compdx.repair.finetuning import RepairEpoch

FILE = "repair.json"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One figure before and after a repair."""

    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class RepairReport:
    """What a repair changed. Pictures are counted as in the paper's tables: effective ones, not seeds.

    Attributes:
        findings: Effective pictures among those of the repair set.
        accuracy: Of the compressed model on the test images, 0..1; ``None`` where there were none.
        unseen: Effective pictures from seeds that the repair has not seen: those of fresh searches of the pair as it
            was and as it is, with the same method, budget and run seed; for a calibration, findings that were held
            out. ``None`` where there were none.
        unseen_seeds: How many seeds those are.
        fgsm: Accuracy (0..1) on the test images under `attacks.fgsm`, by epsilon in grey levels.
        settings: How the repair was made, as JSON values.
        rounds: Of an iterated repair, one mapping a round; see `repair.iterate`.
    """

    findings: Change
    accuracy: Change | None = None
    unseen: Change | None = None
    unseen_seeds: int = 0
    fgsm: Mapping[float, Change] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    rounds: Sequence[Mapping[str, Any]] = ()

    def __str__(self) -> str:
        rows = [("effective, repair set", self.findings, "{:,.0f}")]
        if self.unseen is not None:
            rows.append((f"effective, {self.unseen_seeds:,} unseen seeds", self.unseen, "{:,.0f}"))
        if self.accuracy is not None:
            rows.append(("accuracy", self.accuracy, "{:.2%}"))
        rows += [(f"accuracy, FGSM {epsilon:g}", change, "{:.2%}") for epsilon, change in self.fgsm.items()]
        width = max(len(name) for name, _, _ in rows)
        lines = [f"{'':<{width}}{'before':>10}{'after':>10}"]
        for name, change, style in rows:
            lines.append(f"{name:<{width}}{style.format(change.before):>10}{style.format(change.after):>10}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """A dict for JSON: ``accuracy``, ``findings``, ``unseen``, ``fgsm``, ``settings``, ``rounds``.

        ``None`` where nothing was measured.
        """
        return {
            "accuracy": _both(self.accuracy),
            "findings": _both(self.findings),
            "unseen": None if self.unseen is None else {**_both(self.unseen), "seeds": self.unseen_seeds},  # type: ignore[dict-item]
            "fgsm": [{"epsilon": epsilon, **_both(change)} for epsilon, change in self.fgsm.items()],  # type: ignore[dict-item]
            "settings": dict(self.settings),
            "rounds": [dict(entry) for entry in self.rounds],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> RepairReport:
        """The inverse of `to_json`; keys of later versions are passed over."""
        unseen = document["unseen"]
        return cls(
            findings=_change(document["findings"]),
            accuracy=None if document["accuracy"] is None else _change(document["accuracy"]),
            unseen=None if unseen is None else _change(unseen),
            unseen_seeds=0 if unseen is None else unseen["seeds"],
            fgsm={entry["epsilon"]: _change(entry) for entry in document["fgsm"]},
            settings=document["settings"],
            rounds=tuple(document["rounds"]),
        )

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write ``repair.json`` into a run directory, in place of an earlier one, and return its path.

        Raises:
            NotADirectoryError: There is no such directory.
        """
        folder = Path(directory)
        if not folder.is_dir():
            msg = f"directory must be the directory of a run, but {folder} is none"
            raise NotADirectoryError(msg)
        path = folder / FILE
        temporary = path.with_name(f"{FILE}.tmp")
        temporary.write_text(json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        temporary.replace(path)
        return path

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> RepairReport:
        """The report that `save` wrote into a run directory.

        Raises:
            FileNotFoundError: There is none.
        """
        return cls.from_json(json.loads((Path(directory) / FILE).read_text(encoding="utf-8")))


@dataclass(frozen=True, kw_only=True, eq=False)
class Repaired:
    """A repaired model.

    Attributes:
        pair: The original and the repaired model, with the settings that the compressed one had.
        compressed: The repaired `Compressed`; ``None`` where the compressed model was not made of one.
        report: What changed.
        history: The epochs of the training; empty for a calibration.
    """

    pair: Pair
    compressed: Compressed | None
    report: RepairReport
    history: Sequence[RepairEpoch] = ()


def _both(change: Change | None) -> dict[str, float] | None:
    return None if change is None else {"before": change.before, "after": change.after}


def _change(entry: Mapping[str, Any]) -> Change:
    return Change(before=entry["before"], after=entry["after"])
