"""`verify` grades what was found; each grade is provoked by a model that earns it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from compdx.findings import KINDS, Findings, Outcomes, Summary, outcomes_to_table
from compdx.model import Pair
from compdx.ops import OPERATORS
from compdx.verification import GRADES, POSITIONS, _batches, verify

SHAPE = (1, 3, 4)
LABEL = 1  # on record, of the original; the compressed model's is 0
ODD = 7  # the finding that a test is about


def make_findings(count: int = 20, **columns: Any) -> Findings:
    """Findings of effective deviations; image ``i`` carries ``i`` in its first pixel."""
    images = np.random.default_rng(0).integers(0, 256, (count, *SHAPE), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    values: dict[str, Any] = {
        "seed_index": np.arange(count),
        "kind": np.full(count, KINDS.index("effective")),
        "step": np.ones(count),
        "queries": np.full(count, 2),
        "seed_label": np.full(count, LABEL),
        "original_label": np.full(count, LABEL),
        "compressed_label": np.zeros(count),
        "original_confidence": np.full(count, 0.6),
        "compressed_confidence": np.full(count, 0.5),
    }
    values |= columns
    dtypes = {
        name: array.dtype
        for name, array in vars(Outcomes.empty(SHAPE)).items()
        if array is not None and name not in ("images", "traces")
    }
    filled = {name: np.asarray(values.get(name, np.zeros(count))).astype(dtype) for name, dtype in dtypes.items()}
    outcomes = Outcomes(**filled, images=images, traces=[np.zeros(1, np.uint8)] * count)
    table = outcomes_to_table(outcomes, OPERATORS)
    return Findings(table, settings={}, summary=Summary.of(table, seeds=count), shape=SHAPE)


class Labels:
    """A model that answers ``label(which, x)`` for the image numbers ``which`` of a batch; -1 stands for NaN."""

    def __init__(self, label: Callable[[Any, Any], Any]) -> None:
        self.label = label
        self.sizes: list[int] = []

    def __call__(self, x: Any) -> Any:
        self.sizes.append(len(x))
        which = np.rint(x[:, 0, 0, 0] * 255).astype(int)
        labels = np.broadcast_to(self.label(which, x), len(x))
        scores = np.zeros((len(x), 3), np.float32)
        scores[np.arange(len(x)), labels] = 1
        scores[labels < 0] = np.nan
        return scores


def always(label: int) -> Labels:
    return Labels(lambda _, x: np.full(len(x), label))


def odd(then: Callable[[Any], Any]) -> Labels:
    """The compressed model: label 0, but for image `ODD` what ``then`` says of the batch."""
    return Labels(lambda which, x: np.where(which == ODD, then(x), 0))


def grade_of(compressed: Any, findings: Findings | None = None, **settings: Any) -> str:
    """The grade of image `ODD`, after making sure that all others are stable."""
    findings = make_findings() if findings is None else findings
    verification = verify(Pair(always(LABEL), compressed), findings, **settings)
    others = [grade for row, grade in enumerate(verification.grades) if row != ODD]
    assert set(others) == {"stable"}
    return verification.grades[ODD]


def test_stable() -> None:
    verification = verify(Pair(always(LABEL), always(0)), make_findings())
    assert verification.all_stable
    assert verification.counts == {"stable": 20, "batch-dependent": 0, "run-dependent": 0, "gone": 0}
    assert str(verification) == "20 findings: 20 stable"
    assert verification.table.column_names == [
        "seed_index", "grade", "reason", "original_label", "compressed_label", "hash_ok"
    ]  # fmt: skip
    row = verification.table.slice(ODD, 1).to_pylist()[0]
    assert row == {
        "seed_index": ODD, "grade": "stable", "reason": "", "original_label": 1, "compressed_label": 0, "hash_ok": True
    }  # fmt: skip


def test_gone() -> None:
    assert grade_of(odd(lambda _: LABEL)) == "gone"


@pytest.mark.parametrize(
    "then",
    [
        lambda x: 0 if len(x) == 1 else LABEL,  # deviates only alone
        lambda x: LABEL if len(x) == 1 else 0,  # deviates only in company
        lambda x: 0 if len(x) == 1 else 2,  # deviates with another label
        lambda x: LABEL if len(x) == 64 else 0,  # only one size disagrees
        lambda _: 2,  # deviates everywhere, but not as the search saw it
        lambda x: -1 if len(x) == 8 else 0,  # not finite in a batch
    ],
)
def test_batch_dependent(then: Callable[[Any], Any]) -> None:
    assert grade_of(odd(then)) == "batch-dependent"


@pytest.mark.parametrize("position", [0, 4, 7])
def test_every_place_of_a_small_batch_is_tried(position: int) -> None:
    def label(which: Any, x: Any) -> Any:
        labels = np.zeros(len(x), int)
        if len(x) == 8 and which[position] == ODD:
            labels[position] = LABEL
        return labels

    assert grade_of(Labels(label)) == "batch-dependent"


def test_neighbours_matter() -> None:
    assert grade_of(odd(lambda x: LABEL if (np.rint(x[:, 0, 0, 0] * 255) == ODD + 1).any() else 0)) == "batch-dependent"


@pytest.mark.parametrize("count", [1, 5, 8, 64, 100, 1000])
def test_batches_are_full_and_cover_every_row_at_eight_places(count: int) -> None:
    for size in (8, 64):
        batches = _batches(count, [size])
        assert {len(batch) for batch in batches} == {size}
        places: list[set[int]] = [set() for _ in range(count)]
        for batch in batches:
            for place, row in enumerate(batch):
                places[row].add(place)
        assert min(map(len, places)) >= POSITIONS


def test_run_dependent() -> None:
    labels = iter([0, 0, 2])

    def label(which: Any, x: Any) -> Any:
        return np.full(1, next(labels)) if which.tolist() == [ODD] else np.zeros(len(x), int)

    assert grade_of(Labels(label)) == "run-dependent"


@pytest.mark.parametrize("finite_label", [0, -1])
def test_non_finite_is_stable_while_the_same_model_fails(finite_label: int) -> None:
    bits, labels = np.zeros(20), np.zeros(20)
    bits[ODD], labels[ODD] = 2, -1
    original = np.full(20, LABEL)
    original[ODD] = LABEL if finite_label == 0 else -1  # the search may not know the other model's label
    kind = np.full(20, KINDS.index("effective"))
    kind[ODD] = KINDS.index("non-finite")
    findings = make_findings(non_finite=bits, compressed_label=labels, original_label=original, kind=kind)
    assert grade_of(odd(lambda _: -1), findings) == "stable"
    assert grade_of(odd(lambda _: 0), findings) == "gone"
    assert grade_of(odd(lambda x: -1 if len(x) == 1 else 0), findings) == "batch-dependent"


def test_a_corrupt_image_is_gone_and_never_asked() -> None:
    findings = make_findings()
    images = findings.table["image"].to_pylist()
    images[ODD] = images[ODD - 1]  # a valid PNG, but another picture
    images[2]["bytes"] = images[2]["bytes"][:40]
    column = pa.array(images, findings.table.schema.field("image").type)
    table = findings.table.set_column(findings.table.schema.get_field_index("image"), "image", column)
    findings = Findings(table, settings={}, summary=findings.summary, shape=SHAPE)
    verification = verify(Pair(always(LABEL), always(0)), findings)
    rows = verification.table.to_pylist()
    assert [row["seed_index"] for row in rows if row["grade"] != "stable"] == [2, ODD]
    for row in (rows[2], rows[ODD]):
        assert row["grade"] == "gone"
        assert row["reason"].startswith("corrupt")
        assert not row["hash_ok"]
        assert row["original_label"] == -2
    assert str(verification) == "20 findings: 18 stable, 2 gone"


def test_the_stored_bytes_count_not_the_array_in_memory() -> None:
    findings = make_findings()
    findings.images[:] = 255
    assert verify(Pair(always(LABEL), odd(lambda _: 0)), findings).all_stable


def test_from_disk(tmp_path: Path) -> None:
    findings = make_findings()
    findings.save(tmp_path / "run")
    for path in (tmp_path / "run", str(tmp_path / "run")):
        assert verify((always(LABEL), always(0)), path).table == verify((always(LABEL), always(0)), findings).table


def test_nothing_to_verify() -> None:
    verification = verify(Pair(always(LABEL), always(0)), make_findings(0))
    assert verification.all_stable
    assert len(verification) == 0
    assert str(verification) == "0 findings: nothing to verify"
    assert tuple(verification.counts) == GRADES


def test_progress_reaches_the_end_and_counts_what_is_asked() -> None:
    seen: list[tuple[int, int]] = []
    model = always(LABEL)
    verify(Pair(model, always(0)), make_findings(), repeats=2, progress=lambda *where: seen.append(where))
    done, total = zip(*seen, strict=True)
    assert set(total) == {sum(model.sizes)}
    assert list(done) == np.cumsum(model.sizes).tolist()
    assert done[-1] == total[-1]
    assert model.sizes.count(1) == 2 * 20
    assert set(model.sizes) == {1, 8, 64}


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"repeats": 1}, "repeats"), ({"batch_sizes": (1,)}, "batch_sizes"), ({"repeats": True}, "repeats")],
)
def test_bad_settings(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        verify(Pair(always(1), always(0)), make_findings(1), **settings)


@pytest.mark.parametrize("findings", [3, None, np.zeros(3)])
def test_findings_of_another_kind_are_named(findings: Any) -> None:
    with pytest.raises(TypeError, match=r"findings must be compdx\.Findings or the path of a run, got "):
        verify(Pair(always(1), always(0)), findings)
    with pytest.raises(TypeError, match="batch_sizes must be a sequence of integers, got int"):
        verify(Pair(always(1), always(0)), make_findings(1), batch_sizes=8)  # type: ignore[arg-type]


def test_a_missing_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        verify(Pair(always(1), always(0)), tmp_path / "nowhere")
