"""Findings: the table of the ended chains, its images, replay, pictures; all against outcomes with known content."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from compdx import ops
from compdx.contact import contact_sheet
from compdx.findings import KINDS, SCHEMA, Findings, Outcomes, Summary, one_row_a_seed, outcomes_to_table
from compdx.ops import OPERATORS
from compdx.seeds import Seeds
from make_golden import SHAPE, make_header, make_outcomes

NOW = {"overflow": "clip", "linf": None, "skip_identity": False}


def make_findings(outcomes: Outcomes, **how: Any) -> Findings:
    table = outcomes_to_table(outcomes, OPERATORS)
    header = make_header(len(outcomes), outcomes.shape)
    header["method"]["settings"] |= how
    return Findings(table, settings=header, summary=Summary.of(table, seeds=len(outcomes)), shape=outcomes.shape)


class TestOutcomes:
    def test_concatenate_and_select(self) -> None:
        whole = make_outcomes([4, 9, 1, 12])
        again = Outcomes.concatenate([make_outcomes([4]), Outcomes.empty(SHAPE), make_outcomes([9, 1, 12])])
        turned = whole.select([3, 1])
        for field in fields(Outcomes):
            a, b, c = (getattr(outcomes, field.name) for outcomes in (whole, again, turned))
            if field.name == "traces":
                assert [t.tobytes() for t in a] == [t.tobytes() for t in b]
                assert [t.tobytes() for t in c] == [a[3].tobytes(), a[1].tobytes()]
            elif field.name == "trails":
                assert (a, b, c) == (None, None, None)
            else:
                np.testing.assert_array_equal(a, b)
                np.testing.assert_array_equal(c, a[[3, 1]])
        assert len(whole.select(whole.kind == 0)) == int((whole.kind == 0).sum())
        assert len(Outcomes.empty(SHAPE)) == 0

    @pytest.mark.parametrize(
        ("changes", "error", "words"),
        [
            (
                {"seed_index": np.zeros(2, np.int32)},
                TypeError,
                "seed_index must be a NumPy array of int64, got dtype int32",
            ),
            ({"l2_squared": [0, 0]}, TypeError, "l2_squared must be a NumPy array of int64, got list"),
            ({"linf": np.zeros(3, np.uint8)}, ValueError, r"linf must have rank 1 and 2 rows, got shape \(3,\)"),
            ({"images": np.zeros((2, 4, 5), np.uint8)}, ValueError, "images must have rank 4"),
            ({"kind": np.array([0, 5], np.uint8)}, ValueError, "kind must be below 5, got 5"),
            (
                {"step": np.array([1, 9], np.uint32)},
                ValueError,
                r"traces\[1\] must have a byte for each of the 9 steps",
            ),
        ],
    )
    def test_bad_columns(self, changes: dict[str, Any], error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=words):
            replace(make_outcomes([0, 1]), **changes)

    def test_exhausted_chains_need_no_trace(self) -> None:
        outcomes = make_outcomes([2])
        bare = replace(outcomes, traces=[np.empty(0, np.uint8)])
        assert outcomes_to_table(bare, OPERATORS).equals(outcomes_to_table(outcomes, OPERATORS))

    def test_parts_of_one_shape(self) -> None:
        with pytest.raises(ValueError, match="one shape, got no part"):
            Outcomes.concatenate([])
        with pytest.raises(ValueError, match="one shape"):
            Outcomes.concatenate([make_outcomes([0]), make_outcomes([1], (3, 4, 5))])


class TestTable:
    def test_a_row_of_each_kind(self) -> None:
        findings = make_findings(make_outcomes([8, 6, 5, 7, 9]))
        assert findings.table.schema.equals(SCHEMA)
        assert findings.table["seed_index"].to_pylist() == [5, 6, 8, 9]
        assert findings.table["kind"].to_pylist() == ["effective", "invalid", "seed", "non-finite"]
        assert findings.exhausted.tolist() == [7]
        assert findings.exhausted.dtype == np.int64
        assert len(findings) == 4
        assert repr(findings) == ("<Findings: 4 (1 effective, 1 invalid, 1 seed, 1 non-finite), 1 seeds exhausted>")
        row = findings.table.slice(1, 1).to_pylist()[0]
        image = row.pop("image")
        # Seven steps; steps 1, 4 and 7 are accepted, and the operators take turns.
        assert row == {
            "seed_index": 6,
            "kind": "invalid",
            "step": 7,
            "queries": 8,
            "seed_label": 6,
            "original_label": 8,
            "compressed_label": 7,
            "original_confidence": 0.6875,
            "compressed_confidence": 0.4375,
            "l2": math.sqrt(6 * 255) / 255,
            "linf": 6,
            "operators": ["additive", "pixel", "median"],
            "operator_steps": [1, 4, 7],
            "operator_codes": [8, 11, 14],
            "sha256": hashlib.sha256(make_outcomes([6]).images.tobytes()).hexdigest(),
            "accepted": 3,
            "states": 4,
            "non_finite": None,
            "pictures": None,
        }
        assert image["path"] == "seed-000006.png"
        assert (np.asarray(Image.open(io.BytesIO(image["bytes"]))) == make_outcomes([6]).images[0, 0]).all()

    def test_the_last_step_counts_though_it_was_not_accepted(self) -> None:
        row = make_findings(make_outcomes([10])).table.to_pylist()[0]  # two steps, the first one accepted
        assert row["operators"] == ["additive", "salt_pepper"]
        assert row["operator_steps"] == [1, 2]
        assert row["accepted"] == 1

    def test_what_is_unknown_is_null(self) -> None:
        ended = make_findings(make_outcomes([9, 7, 8])).ended.to_pylist()
        exhausted, seed, non_finite = ended
        assert non_finite["compressed_confidence"] is None
        assert non_finite["compressed_label"] == -1
        assert non_finite["non_finite"] == "compressed"
        for name in ("l2", "linf", "image", "sha256"):
            assert exhausted[name] is None
        assert exhausted["operators"] == exhausted["operator_steps"] == []
        assert seed["operators"] == seed["operator_steps"] == []
        assert seed["step"] == 0
        bits = replace(make_outcomes([9] * 4), non_finite=np.arange(4, dtype=np.uint8))
        names = outcomes_to_table(bits, OPERATORS)["non_finite"].to_pylist()
        assert names == [None, "original", "compressed", "both"]

    def test_neither_order_nor_parts_nor_repetition_change_it(self) -> None:
        indices = np.random.default_rng(1).permutation(60)
        whole = make_findings(make_outcomes(indices.tolist())).ended
        pieces = [outcomes_to_table(make_outcomes(p.tolist()), OPERATORS) for p in np.array_split(indices[::-1], 7)]
        again = one_row_a_seed(pa.concat_tables([*pieces, pieces[2]]))
        assert again.equals(whole)
        assert whole["seed_index"].to_pylist() == list(range(60))

    def test_of_a_repeated_seed_the_first_row_counts(self) -> None:
        twice = make_outcomes([5, 6, 5])
        twice = replace(twice, states=np.array([1, 2, 3], np.uint32))
        assert make_findings(twice).table["states"].to_pylist() == [1, 2]

    def test_images_beyond_one_array(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An Arrow array holds less than 2 GiB, so rows are gathered in blocks; here in blocks of 256 bytes."""
        table = outcomes_to_table(make_outcomes(np.random.default_rng(1).permutation(40).tolist()), OPERATORS)
        whole = one_row_a_seed(table)
        monkeypatch.setattr("compdx.findings._GATHER_BYTES_LOG2", 8)
        blocks = one_row_a_seed(table)
        assert blocks["image"].num_chunks > 3
        assert blocks.equals(whole)

    def test_nothing_found(self) -> None:
        for outcomes in (Outcomes.empty(SHAPE), make_outcomes([2, 7])):
            findings = make_findings(outcomes)
            assert len(findings) == 0
            assert findings.table.schema.equals(SCHEMA)
            assert findings.images.shape == (0, *SHAPE)
            assert len(findings.exhausted) == len(outcomes) == findings.kinds["exhausted"]
            findings.check()


class TestImages:
    @pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
    def test_every_channel_count_is_lossless(self, channels: int) -> None:
        outcomes = make_outcomes(list(range(10)), (channels, 7, 5))
        found = [k for k in range(10) if k % 5 != 2]
        findings = make_findings(outcomes)
        assert findings.images.dtype == np.uint8
        assert (findings.images == outcomes.images[found]).all()
        assert findings.images is findings.images
        findings.check()
        assert (findings.check_image(3) == findings.images[3]).all()
        stored = Image.open(io.BytesIO(findings.table["image"][0].as_py()["bytes"]))
        modes = {3: ("RGB", (5, 7)), 4: ("RGBA", (5, 7))}
        assert (stored.mode, stored.size) == modes.get(channels, ("L", (5, 7 * channels)))

    def test_check_finds_another_image(self) -> None:
        findings = make_findings(make_outcomes([0, 1]))
        hashes = findings.table["sha256"].to_pylist()
        place = SCHEMA.get_field_index("sha256")
        findings.table = findings.table.set_column(place, "sha256", pa.array(hashes[::-1]))
        with pytest.raises(ValueError, match=f"the image of seed 0 must have the SHA-256 {hashes[1]}, got {hashes[0]}"):
            findings.check()
        with pytest.raises(ValueError, match="the image of seed 1 must have"):
            findings.check_image(-1)
        with pytest.raises(IndexError):
            findings.check_image(2)

    @pytest.mark.parametrize("change", ["no image", "half", "size", "mode", "none"])
    def test_damaged_images_are_named(self, change: str) -> None:
        table = outcomes_to_table(make_outcomes([0, 1]), OPERATORS)
        rows = table["image"].to_pylist()
        buffer = io.BytesIO()
        Image.new("L" if change == "size" else "RGB", (9, 9) if change == "size" else (5, 4)).save(buffer, format="PNG")
        rows[1]["bytes"] = {
            "no image": b"no image",
            "half": rows[1]["bytes"][: len(rows[1]["bytes"]) // 2],
            "none": None,
        }.get(change, buffer.getvalue())
        place = SCHEMA.get_field_index("image")
        table = table.set_column(place, "image", pa.array(rows, SCHEMA.field("image").type))
        findings = Findings(table, settings={}, summary=Summary.of(table, seeds=2), shape=SHAPE)
        with pytest.raises(ValueError, match="the image of seed 1 "):
            findings.check()
        with pytest.raises(ValueError, match="the image of seed 1 "):
            _ = findings.images

    def test_export(self, tmp_path: Path) -> None:
        findings = make_findings(make_outcomes([5, 6, 7]))
        findings.export_images(tmp_path / "new" / "folder")
        with (tmp_path / "new" / "folder" / "index.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["file"] for row in rows] == ["seed-000005.png", "seed-000006.png"]
        assert rows[1]["operators"] == "additive pixel median"
        assert rows[1]["operator_steps"] == "1 4 7"
        assert rows[1]["non_finite"] == ""
        for row, image in zip(rows, findings.images, strict=True):
            pixels = np.asarray(Image.open(tmp_path / "new" / "folder" / row["file"]))
            assert (pixels == image[0]).all()
            assert hashlib.sha256(image.tobytes()).hexdigest() == row["sha256"]

    def test_stored_paths_are_not_followed(self, tmp_path: Path) -> None:
        table = outcomes_to_table(make_outcomes([5]), OPERATORS)
        rows = [{**table["image"][0].as_py(), "path": "../outside.png"}]
        table = table.set_column(SCHEMA.get_field_index("image"), "image", pa.array(rows, SCHEMA.field("image").type))
        findings = Findings(table, settings={}, summary=Summary.of(table, seeds=1), shape=SHAPE)
        findings.export_images(tmp_path / "in")
        assert sorted(p.name for p in tmp_path.rglob("*.png")) == ["seed-000005.png"]
        assert not (tmp_path / "outside.png").exists()


class TestReplay:
    @pytest.mark.parametrize("how", [NOW, {"overflow": "wrap", "linf": 9, "skip_identity": True}])
    def test_every_finding(self, how: dict[str, Any]) -> None:
        seeds = Seeds(np.random.default_rng(0).integers(0, 256, (5, 1, 9, 8), dtype=np.uint8), indices=[4, 8, 6, 9, 5])
        outcomes = make_outcomes(seeds.indices.tolist(), seeds.shape)
        images = seeds.images.copy()
        for row, (index, trace) in enumerate(zip(seeds.indices.tolist(), outcomes.traces, strict=True)):
            for step, code in enumerate(trace, start=1):
                if code & 8 or step == len(trace):
                    origin = seeds.images[row : row + 1]
                    operator = OPERATORS[code & 7]
                    images[row] = ops.apply(
                        images[row : row + 1], operator, seed=7, index=index, step=step, origin=origin, **how
                    )[0]
        findings = make_findings(replace(outcomes, images=images), **how)
        assert len(findings) == 5
        for row in range(5):
            image = findings.replay(row, seeds)
            assert image.dtype == np.uint8
            assert (image == findings.images[row]).all()
        at_seed = findings.table["kind"].to_pylist().index("seed")
        assert (findings.replay(at_seed, seeds) == seeds.images[seeds.locate(8)[0]]).all()
        assert (findings.replay(-1, seeds) == findings.images[-1]).all()
        # Written before there were bisections, and codes to tell them.
        nulls = pa.nulls(5, SCHEMA.field("operator_codes").type)
        findings.table = findings.table.set_column(SCHEMA.names.index("operator_codes"), "operator_codes", nulls)
        assert all((findings.replay(row, seeds) == findings.images[row]).all() for row in range(5))

    def test_through_a_bisection(self) -> None:
        """An operator, one that ends beyond the boundary, a blend on each side, and the last."""
        seeds = Seeds(np.random.default_rng(1).integers(0, 256, (1, 1, 9, 8), dtype=np.uint8), indices=[5])
        trace = np.array([0, 3 | 8, 1 | 16, 7 | 9 << 4 | 8, 2, 7 | 3 << 4, 7 | 15 << 4], np.uint8)
        draw = {"seed": 7, "index": 5}
        near = ops.apply(seeds.images, "pixel", step=2, skip_identity=False, **draw)
        far = ops.apply(near, "salt_pepper", step=3, **draw)
        near = ops.blend(near, far, 9, step=4, **draw)
        far = ops.blend(near, far, 3, step=6, **draw)
        image = ops.blend(near, far, 15, step=7, **draw)
        outcomes = make_outcomes([5], seeds.shape)
        steps = {"step": np.uint32([7]), "queries": np.uint32([8])}
        table = outcomes_to_table(replace(outcomes, images=image, traces=[trace], **steps), ops.TRACE_NAMES)
        row = table.to_pylist()[0]
        assert row["operators"] == ["pixel", "salt_pepper", "blend", "blend", "blend"]
        assert row["operator_steps"] == [2, 3, 4, 6, 7]
        assert row["operator_codes"] == [11, 17, 159, 55, 247]
        findings = Findings(table, settings=make_header(), summary=Summary.of(table, seeds=1), shape=seeds.shape)
        assert (findings.replay(0, seeds) == image[0]).all()

    def test_refused(self) -> None:
        findings = make_findings(make_outcomes([5, 6]))
        seeds = Seeds(np.zeros((1, *SHAPE), np.uint8), indices=[5])
        with pytest.raises(ValueError, match="seed 6 is not among its 1"):
            findings.replay(1, seeds)
        with pytest.raises(IndexError):
            findings.replay(2, seeds)
        with pytest.raises(ValueError, match=r"shape of the findings, \(1, 4, 5\), got \(1, 5, 4\)"):
            findings.replay(0, Seeds(np.zeros((1, 1, 5, 4), np.uint8), indices=[5]))
        del findings.settings["method"]["settings"]["linf"]
        with pytest.raises(ValueError, match="must hold 'linf' for a replay"):
            findings.replay(0, seeds)


class TestSummary:
    def test_figures(self) -> None:
        # Seeds 0..9 hold two of each kind; a chain of seed k takes k % 9 + 2 queries, one at its seed.
        table = outcomes_to_table(make_outcomes(list(range(10))), OPERATORS)
        summary = Summary.of(table, seeds=12, seconds=4.0, occupancy=0.75)
        queries = [1 if k % 5 == 3 else k % 9 + 2 for k in range(10)]
        assert summary == Summary(
            seeds=12,
            found=4,
            already_deviating=2,
            exhausted=2,
            queries=sum(queries),
            seconds=4.0,
            queries_per_second=sum(queries) / 4.0,
            queries_per_finding=(sum(queries) - 2) / 4,
            occupancy=0.75,
            non_finite=2,
        )
        assert Summary.from_json(summary.to_json()) == summary

    def test_unknown_figures(self) -> None:
        summary = Summary.of(outcomes_to_table(make_outcomes([2]), OPERATORS), seeds=1)
        for name in ("seconds", "queries_per_second", "queries_per_finding", "occupancy"):
            assert math.isnan(getattr(summary, name))
            assert summary.to_json()[name] is None
            assert math.isnan(getattr(Summary.from_json(summary.to_json()), name))

    def test_kinds(self) -> None:
        assert KINDS == ("effective", "invalid", "seed", "non-finite", "exhausted")


class TestContactSheet:
    def test_tiles_are_the_images(self, tmp_path: Path) -> None:
        """One finding: the three tiles are the seed, the mutant and eight times their difference around grey."""
        outcomes = make_outcomes([5], (1, 28, 28))
        pixels = outcomes.images[0, 0].astype(int)
        seed = np.clip(pixels - np.arange(28) % 5, 0, 255).astype(np.uint8)
        seeds = Seeds(seed[None, None], indices=[5])
        sheet = make_findings(outcomes).show(tmp_path / "sheet.png", seeds=seeds)
        assert (np.asarray(Image.open(tmp_path / "sheet.png")) == np.asarray(sheet)).all()
        canvas = np.asarray(sheet)
        difference = np.clip(8 * (pixels - seed) + 128, 0, 255)
        places = []
        for tile in (seed, pixels, difference):
            large = np.repeat(np.kron(tile, np.ones((4, 4)))[:, :, None], 3, axis=2).astype(np.uint8)
            windows = np.lib.stride_tricks.sliding_window_view(canvas[:, :, 0], (4, 112))
            rows, columns = np.nonzero((windows == large[:4, :, 0]).all(axis=(2, 3)))
            y, x = next(
                (y, x) for y, x in zip(rows, columns, strict=True) if (canvas[y : y + 112, x : x + 112] == large).all()
            )
            places.append((y, x))
        assert len({y for y, _ in places}) == 1
        assert [x for _, x in places] == sorted({x for _, x in places})

    def test_without_seeds_it_is_narrower(self) -> None:
        findings = make_findings(make_outcomes([0, 1, 3]))
        seeds = Seeds(make_outcomes([0, 1, 3]).images, indices=[0, 1, 3])
        assert findings.show().width < findings.show(seeds=seeds).width
        assert findings.show(limit=1).height < findings.show().height

    @pytest.mark.parametrize("shape", [(1, 1, 1), (2, 9, 4), (3, 300, 200), (4, 8, 8), (5, 8, 8)])
    def test_any_shape(self, shape: tuple[int, int, int]) -> None:
        outcomes = make_outcomes(list(range(20)), shape)
        seeds = Seeds(outcomes.images, names=["naïve", "a name that is much too long to be written"] * 5)
        sheet = make_findings(outcomes).show(seeds=seeds)
        assert sheet.mode == "RGB"
        assert sheet.getpixel((0, 0)) == (255, 255, 255)
        assert max(sheet.size) < 4000

    def test_no_finding(self) -> None:
        assert contact_sheet(make_findings(make_outcomes([2]))).width > 0

    def test_refused(self) -> None:
        findings = make_findings(make_outcomes([5]))
        with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
            findings.show(limit=0)
        with pytest.raises(ValueError, match="seed 5 is not among"):
            findings.show(seeds=Seeds(np.zeros((1, *SHAPE), np.uint8)))
        with pytest.raises(ValueError, match="seeds must have the shape of the findings"):
            findings.show(seeds=Seeds(np.zeros((1, 1, 2, 2), np.uint8), indices=[5]))
