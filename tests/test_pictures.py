"""Pictures of a gradient search: classes, counts, what is kept on disk."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from compdx.findings import EXHAUSTED, Findings, Outcomes, Summary, outcomes_to_table
from compdx.ops import OPERATORS
from compdx.pictures import TRAIL, Pictures, Trail, trails_to_array

# (the original's label of the seed, of the picture, the compressed model's of the picture): the class of CompD.
TRUTH = (((3, 3, 5), "effective"), ((3, 4, 5), "invalid"), ((3, 4, 4), "invalid"), ((3, 3, 3), "valid"))


def pictures(rows: list[tuple[int, int, int]], *, seeds: list[int], already: list[bool]) -> Pictures:
    count = len(rows)
    labels = np.array(rows, np.int32)
    return Pictures(
        seed_index=np.array(seeds, np.int64),
        step=np.arange(1, count + 1, dtype=np.int32),
        seed_label=labels[:, 0].copy(),
        original_label=labels[:, 1].copy(),
        compressed_label=labels[:, 2].copy(),
        original_confidence=np.full(count, 0.5),
        compressed_confidence=np.full(count, 0.5),
        l2=np.ones(count),
        linf=np.ones(count, np.int16),
        already_deviating=np.array(already),
        images=np.zeros((count, 1, 2, 2), np.uint8),
    )


@pytest.mark.parametrize(("labels", "name"), TRUTH)
def test_every_picture_has_the_class_of_the_truth_table(labels: tuple[int, int, int], name: str) -> None:
    one = pictures([labels], seeds=[0], already=[False])
    assert [c for c in ("effective", "invalid", "valid") if getattr(one, c)[0]] == [name]
    assert one.strict[0] == (name == "effective")


def test_a_picture_of_a_seed_that_deviates_already_is_effective_but_not_strictly() -> None:
    one = pictures([(3, 3, 5)], seeds=[0], already=[True])
    assert one.effective[0]
    assert not one.strict[0]


def test_a_label_that_is_unknown_belongs_to_no_class() -> None:
    one = pictures([(3, -1, 5)], seeds=[0], already=[False])
    assert not (one.effective | one.invalid | one.valid | one.deviating)[0]
    assert one.counts()["non_finite"] == 1


def test_counts_add_up() -> None:
    rng = np.random.default_rng(0)
    rows = [tuple(row) for row in rng.integers(-1, 3, (500, 3)).tolist()]
    some = pictures(rows, seeds=(np.arange(500) // 10).tolist(), already=(rng.random(500) < 0.2).tolist())
    counts = some.counts()
    assert counts["effective"] + counts["invalid"] + counts["valid"] + counts["non_finite"] == 500
    # Counted again, one by one.
    finite = [row for row in rows if row[1] >= 0 and row[2] >= 0]
    assert counts["effective"] == sum(a == s and b != a for s, a, b in finite)
    assert counts["change_ori"] == sum(a != s and b != a for s, a, b in finite)
    assert counts["deviating"] == counts["effective"] + counts["change_ori"]
    assert counts["effective_seeds"] == len(
        {n // 10 for n, (s, a, b) in enumerate(rows) if a == s != b and b >= 0 <= a}
    )
    assert (some.kept == (some.effective | some.valid)).all()


def test_selecting_keeps_rows_together() -> None:
    some = pictures([row for row, _ in TRUTH], seeds=[0, 1, 2, 3], already=[False] * 4)
    chosen = some.select(np.array([2, 0]))
    assert chosen.seed_index.tolist() == [2, 0]
    assert chosen.compressed_label.tolist() == [4, 5]


def trail(images: np.ndarray) -> Trail:
    count = len(images)
    return Trail(
        step=np.arange(1, count + 1, dtype=np.int32),
        original_label=np.arange(count, dtype=np.int32),
        compressed_label=np.zeros(count, np.int32),
        original_confidence=np.linspace(0, 1, count),
        compressed_confidence=np.linspace(1, 0, count),
        l2=np.arange(count, dtype=np.float64),
        linf=np.arange(count, dtype=np.int16),
        images=images,
    )


def outcomes(trails: list[Trail | None]) -> Outcomes:
    count = len(trails)
    columns = {field.name: np.zeros(count) for field in dataclasses.fields(Outcomes)}
    types = {"kind": np.uint8, "non_finite": np.uint8, "linf": np.uint8, "seed_index": np.int64, "l2_squared": np.int64}
    for name in ("step", "queries", "accepted", "states"):
        types[name] = np.uint32
    for name in ("seed_label", "original_label", "compressed_label"):
        types[name] = np.int32
    columns = {name: value.astype(types.get(name, np.float64)) for name, value in columns.items()}
    columns |= {"kind": np.full(count, EXHAUSTED, np.uint8), "seed_index": np.arange(count)[::-1].astype(np.int64)}
    columns |= {"images": np.zeros((count, 3, 4, 5), np.uint8), "traces": [np.empty(0, np.uint8)] * count}
    return Outcomes(**{**columns, "trails": trails})


def findings(trails: list[Trail | None]) -> Findings:
    table = outcomes_to_table(outcomes(trails), OPERATORS)
    return Findings(table, settings={}, summary=Summary.of(table, seeds=len(trails)), shape=(3, 4, 5))


def test_pictures_come_back_from_disk_sorted_by_seed_and_step(tmp_path) -> None:
    rng = np.random.default_rng(1)
    trails = [trail(rng.integers(0, 256, (count, 3, 4, 5), dtype=np.uint8)) for count in (2, 3, 1)]
    findings(trails).save(tmp_path / "run")
    found = Findings.load(tmp_path / "run").pictures
    assert found.seed_index.tolist() == [0, 1, 1, 1, 2, 2]
    assert found.step.tolist() == [1, 1, 2, 3, 1, 2]
    expected = np.concatenate([part.images for part in reversed(trails)])
    assert np.array_equal(found.images, expected)
    assert found.linf.tolist() == [0, 0, 1, 2, 0, 1]


def test_a_method_that_keeps_none_has_no_pictures() -> None:
    assert findings([None, None]).pictures is None


def test_a_chain_without_pictures_adds_none() -> None:
    images = np.zeros((0, 3, 4, 5), np.uint8)
    assert len(findings([trail(images), None]).pictures) == 0


def test_changed_pixels_are_noticed() -> None:
    images = np.zeros((2, 3, 4, 5), np.uint8)
    row = trails_to_array([trail(images)]).to_pylist()[0]
    row["pixels"] = b"\x01" + row["pixels"][1:]
    table = outcomes_to_table(outcomes([trail(images)]), OPERATORS)
    place = table.schema.get_field_index("pictures")
    changed = table.set_column(place, table.schema.field(place), pa.array([row], TRAIL))
    with pytest.raises(ValueError, match="pictures of seed 0 do not match"):
        _ = Findings(changed, settings={}, summary=Summary.of(table, seeds=1), shape=(3, 4, 5)).pictures


def test_trails_must_be_as_many_as_chains() -> None:
    with pytest.raises(ValueError, match="trails must be as many as traces, 2, got 1"):
        dataclasses.replace(outcomes([None, None]), trails=[None])


def test_outcomes_keep_their_trails_when_joined_and_selected() -> None:
    one, two = trail(np.ones((1, 3, 4, 5), np.uint8)), trail(np.ones((2, 3, 4, 5), np.uint8))
    joined = Outcomes.concatenate([outcomes([one]), outcomes([None, two])])
    assert [t and len(t) for t in joined.trails] == [1, None, 2]
    assert [t and len(t) for t in joined.select([2, 0]).trails] == [2, 1]
