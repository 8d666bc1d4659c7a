"""Runs on disk: docs/format.md pinned by golden files, and that nothing committed is lost, whenever a process dies."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from compdx.findings import Findings, Outcomes, Summary, one_row_a_seed, outcomes_to_table
from compdx.ops import OPERATORS
from compdx.seeds import Seeds
from compdx.store import RunWriter, StoreError, done_seeds, read_run, run_header
from make_golden import COUNT, GOLDEN, SHAPE, make_header, make_outcomes, write_golden

STATE = {"records": np.arange(24, dtype=np.uint8).reshape(3, 8), "next": np.array(5), "flags": np.array([True, False])}
COUNTERS = {"seconds": 1.5, "queries": 40.0, "iterations": 12.0, "occupancy": 0.875}

# A search in a nutshell: two seeds a part, a checkpoint after each, the summary at the end.
STRETCH = """
import sys
import numpy as np
from make_golden import make_header, make_outcomes
from compdx.findings import Summary, outcomes_to_table
from compdx.ops import OPERATORS
from compdx.store import RunWriter, read_run

def stretch(folder, count, told=lambda: None):
    with RunWriter.create(folder, make_header(count), resume=True) as writer:
        todo = np.setdiff1d(np.arange(count), writer.done)[::-1]
        for start in range(0, len(todo), 2):
            writer.append(make_outcomes(todo[start : start + 2].tolist()))
            told()
            writer.checkpoint({"next": np.array(start)}, {"seconds": 1.0})
            told()
        writer.finish(Summary.of(read_run(folder).findings().ended, seeds=count, seconds=2.0))
"""


def expected_table(count: int) -> pa.Table:
    return one_row_a_seed(outcomes_to_table(make_outcomes(list(range(count))), OPERATORS))


def run_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process that finds the modules of these tests."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run under way: two parts and a checkpoint."""
    with RunWriter.create(tmp_path / "run", make_header()) as writer:
        writer.append(make_outcomes([5, 0, 3]))
        writer.append(make_outcomes([6, 2]))
        writer.checkpoint(STATE, COUNTERS)
    return tmp_path / "run"


def parts(run: Path) -> list[Path]:
    return sorted((run / "parts").glob("part-*.parquet"))


def files(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}


class TestGolden:
    def test_finished(self) -> None:
        findings = Findings.load(GOLDEN / "finished")
        assert findings.table["seed_index"].to_pylist() == [0, 1, 3, 4, 5, 6]
        assert findings.table["kind"].to_pylist() == [
            "effective", "invalid", "seed", "non-finite", "effective", "invalid",
        ]  # fmt: skip
        assert findings.exhausted.tolist() == [2, 7]
        assert findings.shape == SHAPE
        assert (findings.images == make_outcomes([0, 1, 3, 4, 5, 6]).images).all()
        findings.check()
        row = findings.table.slice(5, 1).to_pylist()[0]
        image = row.pop("image")
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
            "l2": 0.15339299776947407,
            "linf": 6,
            "operators": ["additive", "pixel", "median"],
            "operator_steps": [1, 4, 7],
            "operator_codes": None,  # the run is older than this column
            "sha256": "00fe4c27a07ca7d88db7ae29ee01b9d53cb3a35fc7f64e76cfb37fd011458f4d",
            "accepted": 3,
            "states": 4,
            "non_finite": None,
            "pictures": None,
        }
        assert image["path"] == "seed-000006.png"
        assert np.asarray(Image.open(io.BytesIO(image["bytes"]))).tolist() == [
            [78, 85, 92, 99, 106],
            [113, 120, 127, 134, 141],
            [148, 155, 162, 169, 176],
            [183, 190, 197, 204, 211],
        ]
        assert findings.settings == make_header()
        assert findings.summary == Summary(
            seeds=8,
            found=4,
            already_deviating=1,
            exhausted=2,
            queries=40,
            seconds=2.0,
            queries_per_second=20.0,
            queries_per_finding=9.75,
            occupancy=findings.summary.occupancy,
            non_finite=1,
        )
        assert math.isnan(findings.summary.occupancy)

    def test_killed(self, tmp_path: Path) -> None:
        findings = Findings.load(GOLDEN / "killed")
        assert findings.table["seed_index"].to_pylist() == [0, 3, 5]
        assert findings.summary.seeds == COUNT
        assert (findings.summary.seconds, findings.summary.occupancy) == (0.5, 20 / 24)
        shutil.copytree(GOLDEN / "killed", tmp_path / "run")
        with RunWriter.create(tmp_path / "run", make_header(), resume=True) as writer:
            assert writer.done.tolist() == [0, 3, 5]
            assert writer.restored is not None
            assert writer.restored.state["records"].tolist() == list(range(8))
            assert writer.restored.parts == 1
        assert not list((tmp_path / "run").rglob("*.tmp"))

    def test_files_on_disk(self) -> None:
        """Read without compdx: the columns with their types and units, and the metadata of a part."""
        table = pq.read_table(GOLDEN / "finished" / "parts" / "part-000000.parquet")
        assert table.schema.metadata[b"compdx.format"] == b"1"
        assert json.loads(table.schema.metadata[b"compdx.shape"]) == [1, 4, 5]
        assert table.column_names == [
            "seed_index", "kind", "step", "queries", "seed_label", "original_label", "compressed_label",
            "original_confidence", "compressed_confidence", "l2", "linf", "operators", "operator_steps", "image",
            "sha256", "accepted", "states", "non_finite",
        ]  # fmt: skip
        assert table["seed_index"].to_pylist() == [5, 0, 3]
        assert pa.types.is_dictionary(table.schema.field("kind").type)
        assert json.loads((GOLDEN / "finished" / "run.json").read_text())["format"] == 1
        assert json.loads((GOLDEN / "finished" / "summary.json").read_text())["occupancy"] is None
        assert sorted(files(GOLDEN / "finished")) == [
            "parts/part-000000.parquet", "parts/part-000001.parquet", "run.json", "summary.json",
        ]  # fmt: skip
        with np.load(GOLDEN / "killed" / "checkpoint-000000.npz", allow_pickle=False) as archive:
            assert sorted(archive.files) == [
                "counter.iterations", "counter.occupancy", "counter.queries", "counter.seconds", "parts",
                "state.next", "state.records",
            ]  # fmt: skip

    def test_the_present_code_writes_the_same(self, tmp_path: Path) -> None:
        write_golden(tmp_path)
        for name in ("finished", "killed"):
            old, new = files(GOLDEN / name), files(tmp_path / name)
            assert sorted(new) == sorted(old)
            for file in old:
                if file.endswith(".json"):
                    assert json.loads(new[file]) == json.loads(old[file])
            a, b = Findings.load(GOLDEN / name), Findings.load(tmp_path / name)
            # PNG bytes may differ between compressors, pixels and hashes may not.
            apart = ["image", "operator_codes"]  # the golden runs are older than the codes
            assert b.ended.drop_columns(apart).equals(a.ended.drop_columns(apart))
            assert (b.images == a.images).all()


class TestRoundTrip:
    @pytest.mark.parametrize("shape", [SHAPE, (2, 3, 4), (3, 5, 4), (4, 5, 4)])
    def test_saved_findings_are_the_same(self, tmp_path: Path, shape: tuple[int, int, int]) -> None:
        table = outcomes_to_table(make_outcomes(list(range(12)), shape), OPERATORS)
        summary = Summary.of(table, seeds=12, seconds=3.0, occupancy=0.5)
        findings = Findings(table, settings=make_header(12, shape), summary=summary, shape=shape)
        findings.save(tmp_path / "a")
        loaded = Findings.load(tmp_path / "a")
        assert loaded.table.equals(findings.table)
        assert loaded.ended.equals(findings.ended)
        assert loaded.settings == findings.settings
        assert loaded.summary == summary
        assert loaded.shape == shape
        with pytest.raises(FileExistsError, match="already holds a run"):
            findings.save(tmp_path / "a")

    def test_findings_of_a_bare_loop(self, tmp_path: Path) -> None:
        """A loop without a driver knows no pair and no versions; no finding at all leaves no part."""
        for outcomes in (make_outcomes([0, 1]), Outcomes.empty(SHAPE)):
            table = outcomes_to_table(outcomes, OPERATORS)
            findings = Findings(table, settings={"seed": 3}, summary=Summary.of(table, seeds=2), shape=SHAPE)
            findings.save(tmp_path / str(len(outcomes)))
            loaded = Findings.load(tmp_path / str(len(outcomes)))
            assert loaded.table.equals(findings.table)
            assert loaded.shape == SHAPE
            assert loaded.settings == {"seed": 3, "seeds": {"count": 2, "shape": [1, 4, 5]}}

    def test_the_table_does_not_depend_on_the_parts(self, tmp_path: Path) -> None:
        order = np.random.default_rng(2).permutation(30)
        for name, cuts in (("one", 1), ("many", 11)):
            with RunWriter.create(tmp_path / name, make_header(30)) as writer:
                for piece in np.array_split(order if name == "one" else order[::-1], cuts):
                    writer.append(make_outcomes(piece.tolist()))
        assert len(parts(tmp_path / "many")) == 11
        assert Findings.load(tmp_path / "one").ended.equals(expected_table(30))
        assert Findings.load(tmp_path / "many").ended.equals(expected_table(30))

    def test_a_part_with_a_column_of_a_later_version(self, run: Path) -> None:
        table = pq.read_table(parts(run)[0])
        later = table.add_column(0, "mood", pa.array(["good"] * 3)).replace_schema_metadata(table.schema.metadata)
        pq.write_table(later, parts(run)[0])
        assert Findings.load(run).ended["seed_index"].to_pylist() == [0, 2, 3, 5, 6]

    def test_header(self) -> None:
        class Method:
            name = "mcmc"

            def settings(self) -> dict[str, Any]:
                return {"budget": 5}

        seeds = Seeds(np.zeros((2, *SHAPE), np.uint8), source="zeros")
        header = run_header(Method(), seeds, run_seed=3, chains=8, device="cpu", versions={"compdx": "9"})
        assert header["method"] == {"name": "mcmc", "settings": {"budget": 5}}
        assert header["seeds"] == {
            "fingerprint": seeds.fingerprint, "count": 2, "shape": [1, 4, 5], "source": "zeros",
        }  # fmt: skip
        assert (header["seed"], header["chains"], header["device"], header["pair"]) == (3, 8, "cpu", {})
        assert header["versions"]["compdx"] == "9"
        assert header["versions"]["numpy"] == np.__version__
        assert header["started"].endswith("+00:00")


class TestResume:
    def test_what_a_writer_knows(self, run: Path) -> None:
        with RunWriter.create(run, make_header(), resume=True) as writer:
            assert writer.done.tolist() == [0, 2, 3, 5, 6]
            assert writer.done.dtype == np.int64
            assert writer.summary is None
            assert writer.restored is not None
            assert writer.restored.parts == 2
            assert writer.restored.counters == COUNTERS
            assert writer.restored.state.keys() == STATE.keys()
            for name, array in STATE.items():
                assert writer.restored.state[name].dtype == array.dtype
                np.testing.assert_array_equal(writer.restored.state[name], array)
            writer.append(make_outcomes([1, 4, 7]))
        assert Findings.load(run).ended.equals(expected_table(8))
        assert done_seeds(run).tolist() == list(range(8))

    def test_a_new_run(self, tmp_path: Path) -> None:
        with RunWriter.create(tmp_path / "deep" / "run", make_header(), resume=True) as writer:
            assert len(writer.done) == 0
            assert writer.restored is None
            assert writer.header == make_header()
            writer.append(Outcomes.empty(SHAPE))
        assert parts(tmp_path / "deep" / "run") == []

    def test_a_finished_run(self, run: Path) -> None:
        summary = Summary.of(expected_table(8), seeds=8, seconds=1.0, occupancy=1.0)
        with RunWriter.create(run, make_header(), resume=True) as writer:
            writer.append(make_outcomes([1, 4, 7]))
            writer.finish(summary)
        assert not list(run.glob("checkpoint*"))
        with RunWriter.create(run, make_header(), resume=True) as writer:
            assert writer.summary == summary
            assert writer.restored is None

    def test_not_without_being_asked(self, run: Path) -> None:
        before = files(run)
        with pytest.raises(FileExistsError, match="already holds a run; resume=True continues it"):
            RunWriter.create(run, make_header())
        assert files(run) == before

    @pytest.mark.parametrize("resume", [False, True])
    def test_not_in_a_directory_with_other_things(self, tmp_path: Path, resume: bool) -> None:
        (tmp_path / "thesis.tex").touch()
        with pytest.raises(FileExistsError, match=r"holds thesis\.tex and no run\.json"):
            RunWriter.create(tmp_path, make_header(), resume=resume)

    def test_other_settings_are_named(self, run: Path) -> None:
        header = make_header()
        header["seed"] = 8
        header["method"]["settings"]["budget"] = 20
        header["method"]["settings"]["new"] = True
        header["seeds"]["fingerprint"] = "1" * 64
        with pytest.raises(ValueError, match="cannot be resumed with other settings") as caught:
            RunWriter.create(run, header, resume=True)
        text = str(caught.value)
        assert "seed is 7 there and 8 here" in text
        assert "method.settings.budget is 10 there and 20 here" in text
        assert "method.settings.new is null there and true here" in text
        assert "seeds.fingerprint is" in text
        assert "seeds.count" not in text

    def test_what_may_differ(self, run: Path) -> None:
        header = make_header()
        header |= {"versions": {"compdx": "0.2.0"}, "started": "2026-01-01T00:00:00+00:00"}
        header["seeds"]["source"] = "moved"
        header["method"]["settings"]["budget"] = np.int64(10).item()
        with RunWriter.create(run, header, resume=True) as writer:
            assert writer.header["versions"] == {"compdx": "0.1.0"}

    def test_one_writer_at_a_time(self, run: Path) -> None:
        with (
            RunWriter.create(run, make_header(), resume=True) as writer,
            pytest.raises(StoreError, match="is being written by another process"),
        ):
            RunWriter.create(run, make_header(), resume=True)
        writer.close()
        RunWriter.create(run, make_header(), resume=True).close()
        with pytest.raises(FileExistsError):  # a refusal gives the lock back
            RunWriter.create(run, make_header())
        RunWriter.create(run, make_header(), resume=True).close()

    def test_leftovers_are_removed(self, run: Path) -> None:
        for name in ("checkpoint-000001.npz.tmp", "parts/part-000002.parquet.tmp"):
            (run / name).write_bytes(b"half a fi")
        assert Findings.load(run).ended.num_rows == 5
        RunWriter.create(run, make_header(), resume=True).close()
        assert not list(run.rglob("*.tmp"))
        for leftover in ("run.json.tmp", "lock"):  # killed before the header was committed
            (run.parent / "new").mkdir(exist_ok=True)
            (run.parent / "new" / leftover).touch()
        RunWriter.create(run.parent / "new", make_header()).close()
        assert read_run(run.parent / "new").header == make_header()

    @pytest.mark.parametrize(
        ("header", "error", "words"),
        [
            ({}, ValueError, r"seeds.shape as \[C, H, W\], got None"),
            ({"seeds": {"shape": [1, 2], "count": 1}}, ValueError, r"got \[1, 2\]"),
            ({"seeds": {"shape": [1, 2, 3]}}, ValueError, "seeds.count"),
            ({**make_header(), "device": object()}, TypeError, "not JSON serializable"),
        ],
    )
    def test_bad_header(self, tmp_path: Path, header: dict[str, Any], error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=words):
            RunWriter.create(tmp_path / "run", header)
        assert not (tmp_path / "run").exists()

    def test_outcomes_of_another_shape(self, run: Path) -> None:
        with (
            RunWriter.create(run, make_header(), resume=True) as writer,
            pytest.raises(ValueError, match=r"the shape of the seeds, \(1, 4, 5\), got \(3, 4, 5\)"),
        ):
            writer.append(make_outcomes([1], (3, 4, 5)))


class TestCheckpoints:
    def test_two_generations(self, run: Path) -> None:
        with RunWriter.create(run, make_header(), resume=True) as writer:
            for number in range(3):
                writer.checkpoint({"next": np.array(number)}, {"seconds": float(number)})
        assert sorted(p.name for p in run.glob("*.npz")) == ["checkpoint-000002.npz", "checkpoint-000003.npz"]

    @pytest.mark.parametrize("size", [0, 1, 100, 700, -1])
    def test_a_torn_one_gives_way_to_the_one_before(self, run: Path, size: int) -> None:
        with RunWriter.create(run, make_header(), resume=True) as writer:
            writer.checkpoint({"next": np.array(9), "more": np.arange(99)}, {"seconds": 9.0})
        newest = run / "checkpoint-000001.npz"
        newest.write_bytes(newest.read_bytes()[:size])
        with RunWriter.create(run, make_header(), resume=True) as writer:
            assert writer.restored is not None
            assert writer.restored.counters == COUNTERS
            writer.checkpoint({"next": np.array(10)}, {"seconds": 10.0})
        assert Findings.load(run).summary.seconds == 10.0

    def test_flipped_bits_are_noticed(self, run: Path) -> None:
        path = run / "checkpoint-000000.npz"
        content = bytearray(path.read_bytes())
        content[content.index(STATE["records"].tobytes()) + 3] ^= 4
        path.write_bytes(content)
        with RunWriter.create(run, make_header(), resume=True) as writer:
            assert writer.restored is None
            assert writer.done.tolist() == [0, 2, 3, 5, 6]

    def test_one_whose_parts_are_gone_is_not_used(self, run: Path) -> None:
        """Its queue has passed over the seeds of the part that is gone, so they would never be searched."""
        parts(run)[1].unlink()
        with RunWriter.create(run, make_header(), resume=True) as writer:
            assert writer.done.tolist() == [0, 3, 5]
            assert writer.restored is None

    def test_pickles_are_neither_written_nor_read(self, run: Path) -> None:
        with (
            RunWriter.create(run, make_header(), resume=True) as writer,
            pytest.raises(TypeError, match=r"state\.next must be an array of numbers, got dtype object"),
        ):
            writer.checkpoint({"next": np.array([{}], dtype=object)}, {})
        np.savez(run / "checkpoint-000009.npz", parts=np.array([print], dtype=object))
        with RunWriter.create(run, make_header(), resume=True) as writer:
            assert writer.restored is not None
            assert writer.restored.counters == COUNTERS


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    """A bit of an image: nothing but a checksum can tell."""
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 6] ^= 16
    path.write_bytes(content)


def drop_column(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["step"]).replace_schema_metadata(table.schema.metadata), path)


def not_ours(path: Path) -> None:
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)


def later_format(path: Path) -> None:
    pq.write_table(pq.read_table(path).replace_schema_metadata({"compdx.format": "2"}), path)


class TestDamage:
    @pytest.mark.parametrize(
        ("damage", "words"),
        [
            (truncate, "cannot be read as a part"),
            (empty, "cannot be read as a part"),
            (flip, "cannot be read as a part"),
            (drop_column, "cannot be read as a part"),
            (not_ours, "names no format"),
            (later_format, "has format 2; this version of compdx reads formats up to 1"),
        ],
    )
    def test_a_corrupt_part(self, run: Path, damage: Callable[[Path], None], words: str) -> None:
        damage(parts(run)[0])
        for read in (read_run, Findings.load, done_seeds):
            with pytest.raises(StoreError, match=rf"part-000000\.parquet .*{words}"):
                read(run)
        with pytest.raises(StoreError, match=r"part-000000\.parquet"):
            RunWriter.create(run, make_header(), resume=True)
        rest = read_run(run, skip_corrupt=True)
        assert rest.corrupt == (parts(run)[0],)
        findings = Findings.load(run, skip_corrupt=True)
        assert findings.ended["seed_index"].to_pylist() == [2, 6]
        assert findings.summary.found == 1
        assert findings.summary.seeds == COUNT
        findings.check()

    def test_a_gap(self, run: Path) -> None:
        parts(run)[0].unlink()
        with pytest.raises(StoreError, match=r"part-000000\.parquet is missing, though later parts are there"):
            read_run(run)
        assert Findings.load(run, skip_corrupt=True).ended["seed_index"].to_pylist() == [2, 6]

    def test_other_files_are_named(self, run: Path) -> None:
        (run / "summary.json").write_text('{"seeds": 8}')
        with pytest.raises(StoreError, match=r"summary\.json cannot be read: 'found' is missing"):
            read_run(run)
        (run / "summary.json").unlink()
        for text, words in (
            ("{", "cannot be read"),
            ("[]", "must hold a JSON object, got list"),
            ("{}", "names no format"),
            ('{"format": 2}', "has format 2"),
            ('{"format": 1}', "seeds.shape"),
        ):
            (run / "run.json").write_text(text)
            with pytest.raises(StoreError, match=rf"run\.json .*{words}"):
                read_run(run)
        (run / "run.json").unlink()
        with pytest.raises(FileNotFoundError, match=r"is no run directory: it holds no run\.json"):
            read_run(run)


class TestFullDisk:
    def test_nothing_committed_is_touched(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with RunWriter.create(run, make_header(), resume=True) as writer:
            before = files(run)
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", full)
                with pytest.raises(
                    StoreError, match=r"part-000002\.parquet could not be written: No space left"
                ) as caught:
                    writer.append(make_outcomes([1, 4]))
                assert isinstance(caught.value.__cause__, OSError)
                with pytest.raises(StoreError, match=r"checkpoint-000001\.npz could not be written: No space left"):
                    writer.checkpoint(STATE, COUNTERS)
                with pytest.raises(StoreError, match=r"summary\.json could not be written: No space left"):
                    writer.finish(Summary.of(expected_table(8), seeds=8))
            assert files(run) == before
            writer.append(make_outcomes([1, 4, 7]))  # there is room again
        assert Findings.load(run).ended.equals(expected_table(8))

    def test_a_write_that_stops_half_way(self, tmp_path: Path) -> None:
        """The kernel refuses to let a file grow beyond 30 kB: the errors of real writes, in Parquet and in npz."""
        code = f"""{STRETCH}
import resource
from compdx.store import StoreError
with RunWriter.create(sys.argv[1], make_header(900, (3, 32, 32))) as writer:
    writer.append(make_outcomes(list(range(5)), (3, 32, 32)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))
    for act in (
        lambda: writer.append(make_outcomes(list(range(5, 900)), (3, 32, 32))),
        lambda: writer.checkpoint({{"a": np.zeros(100000)}}, {{}}),
    ):
        try:
            act()
        except StoreError as error:
            print(error)
    writer.append(make_outcomes([7, 8], (3, 32, 32)))
"""
        out, err = run_python(code, tmp_path / "run").communicate(timeout=60)
        lines = out.splitlines()
        assert len(lines) == 2, err
        assert lines[0].endswith("part-000001.parquet could not be written: File too large")
        assert lines[1].endswith("checkpoint-000000.npz could not be written: File too large")
        assert err == ""
        assert done_seeds(tmp_path / "run").tolist() == [0, 1, 2, 3, 4, 7, 8]
        assert not list((tmp_path / "run").rglob("*.tmp"))


class TestKilled:
    def test_before_every_step_of_every_commit(self, tmp_path: Path) -> None:
        """One process for each place: it dies right before its n-th fsync or rename. Then a stretch ends the run."""
        count = 6
        code = f"""{STRETCH}
import os, pathlib, signal
folder, count = sys.argv[1], int(sys.argv[2])
make_outcomes([0])
left = 0
def deadly(function):
    def wrapped(*arguments):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
    return wrapped
os.fsync, pathlib.Path.replace = deadly(os.fsync), deadly(pathlib.Path.replace)
for place in range(1, 100):
    child = os.fork()
    if child == 0:
        left = place
        stretch(f"{{folder}}/{{place}}", count)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
print(place)
"""
        out, err = run_python(code, tmp_path, count).communicate(timeout=120)
        assert err == ""
        places = int(out)
        assert (
            places == 4 + 3 * 7 + 1
        )  # the header, then three parts, three checkpoints and the summary; then none is left
        stretch = load_stretch()
        seen = set()
        for place in range(1, places + 1):
            run = tmp_path / str(place)
            if (run / "run.json").exists():
                ended = Findings.load(run).ended
                assert ended.equals(expected_table(count).filter(np.isin(range(count), ended["seed_index"].to_numpy())))
                seen.add(ended.num_rows)
            stretch(run, count)
            findings = Findings.load(run)
            assert findings.ended.equals(expected_table(count))
            assert findings.summary.found == 3
            assert not list(run.rglob("*.tmp"))
        assert seen == {0, 2, 4, 6}

    def test_from_outside_again_and_again(self, tmp_path: Path) -> None:
        code = f"""{STRETCH}
stretch(sys.argv[1], int(sys.argv[2]), told=lambda: print("committed", flush=True))
"""
        count, run = 120, tmp_path / "run"
        for commits in (1, 6, 15):
            process = run_python(code, run, count)
            assert process.stdout is not None
            for _ in range(commits):
                assert process.stdout.readline() == "committed\n"
            process.kill()
            process.communicate(timeout=60)
            ended = done_seeds(run)
            assert 0 < len(ended) < count
            assert Findings.load(run).ended["seed_index"].to_pylist() == ended.tolist()
        load_stretch()(run, count)
        assert Findings.load(run).ended.equals(expected_table(count))

    def test_between_a_part_and_its_checkpoint(self, run: Path) -> None:
        """The chains of the old checkpoint end again; what they say twice counts once."""
        with RunWriter.create(run, make_header(), resume=True) as writer:
            writer.append(make_outcomes([6, 1, 0, 4]))
            writer.append(make_outcomes([7, 6]))
        assert Findings.load(run).ended.equals(expected_table(8))
        assert done_seeds(run).tolist() == list(range(8))


def load_stretch() -> Callable[[Path, int], None]:
    names: dict[str, Any] = {}
    exec(STRETCH, names)
    stretch: Callable[[Path, int], None] = names["stretch"]
    return stretch
