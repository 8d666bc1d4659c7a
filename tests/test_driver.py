"""The driver with a small method of its own: wiring, order of commits, interrupts, errors, resume."""

from __future__ import annotations

import copy
import os
import signal
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compdx import Model, Pair, Seeds, driver, search
from compdx.findings import EXHAUSTED, KINDS, Findings, Outcomes
from compdx.methods.base import Progress
from compdx.model import Inputs
from compdx.store import RunWriter, StoreError, done_seeds, read_run

SHAPE = (1, 4, 4)


@dataclass(frozen=True, kw_only=True)
class Brighten:
    """A method whose k-th mutant is the seed, k grey levels brighter."""

    budget: int = 12
    name: str = "brighten"

    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def start(
        self,
        seeds: Seeds,
        *,
        chains: int | None = None,
        seed: int = 0,
        device: str = "cpu",
        inputs: Inputs | None = None,
        outputs: tuple[str, str] = ("logits", "logits"),
        done: Iterable[int] | None = None,
        state: Mapping[str, np.ndarray] | None = None,
    ) -> BrightenLoop:
        assert (device, outputs, seed) == ("cpu", ("logits", "logits"), 7)
        return BrightenLoop(self, seeds, chains or 4, inputs, set(done or ()), state)


class BrightenLoop:
    def __init__(
        self,
        method: Brighten,
        seeds: Seeds,
        chains: int,
        inputs: Inputs | None,
        done: set[int],
        state: Mapping[str, np.ndarray] | None,
    ) -> None:
        self.method, self.seeds, self.chains, self.inputs, self.shape = method, seeds, chains, inputs, seeds.shape
        self.slots: list[tuple[int, int] | None] = [None] * chains  # row and step
        self.left = [row for row in range(len(seeds)) if seeds.indices[row] not in done]
        if state is not None:
            for slot, (row, step) in enumerate(state["slots"].tolist()):
                if row in self.left:
                    self.left.remove(row)
                    self.slots[slot] = (row, step)
        self.ended: list[dict[str, Any]] = []
        self.queries = self.iterations = 0
        self.refill()

    def refill(self) -> None:
        for slot, chain in enumerate(self.slots):
            if chain is None and self.left:
                self.slots[slot] = (self.left.pop(0), 0)

    @property
    def active(self) -> bool:
        return any(chain is not None for chain in self.slots)

    @property
    def progress(self) -> Progress:
        # The driver counts what ended itself; a method may count from zero again after a resume.
        zeros = dict.fromkeys(("seeds", "ended", "found", "already_deviating", "exhausted"), 0)
        return Progress(**zeros, queries=self.queries, iterations=self.iterations, occupancy=0.0)

    def mutants(self) -> np.ndarray:
        images = np.zeros((self.chains, *self.shape), np.uint8)
        for slot, chain in enumerate(self.slots):
            if chain is not None:
                images[slot] = self.seeds.images[chain[0]] + np.uint8(chain[1])
        return images

    def ask(self) -> np.ndarray:
        images = self.mutants()
        if self.inputs is None:
            return images
        assert self.inputs.layout == "NCHW"
        return self.inputs.table(1)[0][images]

    def tell(self, a: np.ndarray, b: np.ndarray) -> None:
        self.iterations += 1
        labels = a.argmax(1), b.argmax(1)
        images = self.mutants()
        for slot, chain in enumerate(self.slots):
            if chain is None:
                continue
            row, step = chain
            self.queries += 1
            differ = bool(labels[0][slot] != labels[1][slot])
            if differ or step + 1 >= self.method.budget:
                kind = KINDS.index(("seed" if step == 0 else "effective") if differ else "exhausted")
                ends = {"row": row, "step": step, "kind": kind, "image": images[slot]}
                self.ended.append({**ends, "labels": [int(label[slot]) for label in labels]})
                self.slots[slot] = None
            else:
                self.slots[slot] = (row, step + 1)
        self.refill()

    def take(self) -> Outcomes:
        ended, self.ended = self.ended, []
        if not ended:
            return Outcomes.empty(self.shape)
        count, column = len(ended), {key: np.array([end[key] for end in ended]) for key in ended[0]}
        return Outcomes(
            seed_index=self.seeds.indices[column["row"]],
            kind=column["kind"].astype(np.uint8),
            step=column["step"].astype(np.uint32),
            queries=(column["step"] + 1).astype(np.uint32),
            accepted=column["step"].astype(np.uint32),
            states=np.zeros(count, np.uint32),
            seed_label=np.zeros(count, np.int32),
            original_label=column["labels"][:, 0].astype(np.int32),
            compressed_label=column["labels"][:, 1].astype(np.int32),
            original_confidence=np.full(count, 0.75),
            compressed_confidence=np.full(count, 0.5),
            non_finite=np.zeros(count, np.uint8),
            l2_squared=column["step"].astype(np.int64) ** 2 * 16,
            linf=column["step"].astype(np.uint8),
            images=column["image"],
            traces=[np.zeros(step, np.uint8) for step in column["step"]],
        )

    def findings(self) -> Findings:
        raise NotImplementedError

    def state(self) -> dict[str, np.ndarray]:
        return {"slots": np.array([chain or (-1, -1) for chain in self.slots], np.int64)}


def scores(x: np.ndarray, bits: int) -> np.ndarray:
    """Scores that are a pure function of each image, whatever the scale of the input."""
    levels = np.rint((x - x.min()) * 0 + x * 255).astype(np.int64).reshape(len(x), -1)
    sums = (levels * (np.arange(16) % 5 + 1)).sum(1)[:, None] * np.array([3, 5, 7]) % 61
    return (sums >> bits).astype(np.float32)


class Original:
    """The original model, which runs `fail` first at one of its calls."""

    def __init__(self, call: int = 0, fail: Callable[[], object] | None = None) -> None:
        self.call, self.fail, self.calls = call, fail, 0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.calls += 1
        if self.fail is not None and self.calls == self.call:
            self.fail()
        return scores(x, 3)


def compressed_model(x: np.ndarray) -> np.ndarray:
    return scores(x, 4)


def make_pair(call: int = 0, fail: Callable[[], object] | None = None, **compressed: Any) -> Pair:
    return Pair(Model(Original(call, fail)), Model(compressed_model, **compressed))


def broken() -> None:
    msg = "out of cheese"
    raise RuntimeError(msg)


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def seeds() -> Seeds:
    images = np.random.default_rng(3).integers(0, 200, (40, *SHAPE), np.uint8)
    return Seeds(images, indices=np.random.default_rng(4).permutation(1000)[:40])


def run(pair: Pair, seeds: Seeds, out: Path | None = None, **options: Any) -> Findings:
    settings = {"chains": 5, "seed": 7, "device": "cpu", "interval": 0.0} | options
    return driver.run(pair, seeds, Brighten(), out=out, **settings)


@pytest.fixture
def expected(seeds: Seeds) -> Findings:
    findings = run(make_pair(), seeds)
    kinds = set(findings.ended["kind"].to_pylist())
    assert {"seed", "effective", "exhausted"} <= kinds, "the stub must show every end"
    return findings


def assert_same(findings: Findings, expected: Findings) -> None:
    assert findings.ended.equals(expected.ended)
    clock = {"seconds", "queries_per_second", "occupancy"}
    for field in fields(findings.summary):
        if field.name not in clock:
            assert getattr(findings.summary, field.name) == getattr(expected.summary, field.name), field.name


def test_summary_counts_what_the_table_says(expected: Findings, seeds: Seeds) -> None:
    kinds = expected.ended["kind"].to_pylist()
    summary = expected.summary
    assert (summary.seeds, len(kinds)) == (40, 40)
    assert (summary.found, summary.already_deviating) == (kinds.count("effective"), kinds.count("seed"))
    assert summary.exhausted == kinds.count("exhausted")
    assert summary.queries == sum(expected.ended["queries"].to_pylist())
    assert summary.seconds > 0
    assert expected.ended["seed_index"].to_pylist() == sorted(seeds.indices)


def test_directory_and_memory_agree(expected: Findings, seeds: Seeds, tmp_path: Path) -> None:
    findings = run(make_pair(), seeds, tmp_path / "run")
    assert_same(findings, expected)
    assert read_run(tmp_path / "run").summary == findings.summary
    assert_same(Findings.load(tmp_path / "run"), expected)


def test_models_that_want_different_inputs_get_the_images(expected: Findings, seeds: Seeds) -> None:
    pair = make_pair(bounds=(0.0, 1.0), layout="NHWC")
    assert pair.inputs is None
    assert_same(run(pair, seeds), expected)


def test_occupancy_is_queries_by_slots_and_iterations(expected: Findings, seeds: Seeds) -> None:
    events: list[driver.Event] = []
    findings = run(make_pair(), seeds, listen=events.append, chains=64)
    assert_same(findings, expected)
    last = events[-1]
    assert last.queries == findings.summary.queries
    assert last.iterations == 12
    assert findings.summary.occupancy == last.queries / (64 * 12)


def test_events(seeds: Seeds, expected: Findings) -> None:
    events: list[driver.Event] = []
    run(make_pair(), seeds, listen=events.append)
    assert [event.finished for event in events] == [False] * (len(events) - 1) + [True]
    assert len(events) > 3
    assert events[0].ended == 0
    assert events[0].seconds_left is None
    for event in events:
        assert event.ended == event.found + event.already_deviating + event.exhausted
        assert event.non_finite == 0
    for name in ("ended", "found", "queries", "iterations", "seconds"):
        values = [getattr(event, name) for event in events]
        assert values == sorted(values), name
    last = events[-1]
    assert (last.seeds, last.ended, last.seconds_left) == (40, 40, 0.0)
    assert (last.found, last.already_deviating) == (expected.summary.found, expected.summary.already_deviating)


def test_events_are_limited_in_rate(seeds: Seeds) -> None:
    events: list[driver.Event] = []
    run(make_pair(), seeds, listen=events.append, interval=3600.0)
    assert len(events) == 2


def test_parts_hold_a_thousand_chains(tmp_path: Path) -> None:
    seeds = Seeds(np.random.default_rng(0).integers(0, 200, (2600, *SHAPE), np.uint8))
    run(make_pair(), seeds, tmp_path / "run", chains=250)
    parts = sorted((tmp_path / "run" / "parts").iterdir())
    assert 2 <= len(parts) <= 3
    assert len(done_seeds(tmp_path / "run")) == 2600


@pytest.mark.parametrize("call", [1, 2, 9, 30])
def test_a_model_that_raises_loses_nothing(seeds: Seeds, expected: Findings, tmp_path: Path, call: int) -> None:
    out = tmp_path / "run"
    with pytest.raises(RuntimeError, match="out of cheese") as caught:
        run(make_pair(call, broken), seeds, out)
    notes = "; ".join(caught.value.__notes__)
    assert f"in iteration {call} since this start" in notes
    assert str(out) in notes
    done = done_seeds(out)
    assert f"{len(done)} of 40 seeds had ended" in notes
    assert set(done.tolist()) < set(seeds.indices.tolist())
    assert_same(run(make_pair(), seeds, out, resume=True), expected)


def test_a_run_killed_again_and_again_ends_the_same(seeds: Seeds, expected: Findings, tmp_path: Path) -> None:
    out, seconds, starts = tmp_path / "run", [], 0
    while True:
        try:
            findings = run(make_pair(6, broken), seeds, out, resume=starts > 0, listen=None)
            break
        except RuntimeError:
            starts += 1
            seconds.append(read_run(out).counters["seconds"])
    assert starts > 5
    assert seconds == sorted(seconds)
    assert_same(findings, expected)
    assert findings.summary.seconds > seconds[-1]


def test_events_of_a_resumed_run_count_from_the_beginning(seeds: Seeds, expected: Findings, tmp_path: Path) -> None:
    before: list[driver.Event] = []
    with pytest.raises(RuntimeError):
        run(make_pair(30, broken), seeds, tmp_path / "run", listen=before.append)
    after: list[driver.Event] = []
    run(make_pair(), seeds, tmp_path / "run", resume=True, listen=after.append)
    assert after[0].ended >= before[-1].ended > 0
    assert after[0].iterations == 29
    assert after[0].seconds >= before[-1].seconds
    assert after[-1].queries == expected.summary.queries


def test_resume_without_a_checkpoint_starts_the_chains_afresh(seeds: Seeds, expected: Findings, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(RuntimeError):
        run(make_pair(30, broken), seeds, out)
    for checkpoint in out.glob("checkpoint-*"):
        checkpoint.unlink()
    assert len(done_seeds(out))
    assert_same(run(make_pair(), seeds, out, resume=True), expected)


def test_a_finished_run_is_read_back(seeds: Seeds, expected: Findings, tmp_path: Path) -> None:
    run(make_pair(), seeds, tmp_path / "run")
    untouched = make_pair(1, broken)
    assert_same(run(untouched, seeds, tmp_path / "run", resume=True), expected)


def test_an_existing_run_is_not_overwritten(seeds: Seeds, tmp_path: Path) -> None:
    run(make_pair(), seeds, tmp_path / "run")
    with pytest.raises(FileExistsError, match="resume"):
        run(make_pair(), seeds, tmp_path / "run")


def test_ctrl_c_waits_for_the_end_of_the_iteration(seeds: Seeds, expected: Findings, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(make_pair(9, press_ctrl_c), seeds, out)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert read_run(out).counters["iterations"] == 9
    assert_same(run(make_pair(), seeds, out, resume=True), expected)


def test_a_second_ctrl_c_does_not_wait(seeds: Seeds, expected: Findings, tmp_path: Path) -> None:
    def twice() -> None:
        press_ctrl_c()
        press_ctrl_c()

    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(make_pair(9, twice), seeds, out)
    assert read_run(out).counters["iterations"] == 8
    assert_same(run(make_pair(), seeds, out, resume=True), expected)


def test_a_handler_of_the_user_stays(seeds: Seeds, expected: Findings) -> None:
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        assert_same(run(make_pair(9, press_ctrl_c), seeds), expected)
    finally:
        signal.signal(signal.SIGINT, before)
    assert pressed == [signal.SIGINT]


def test_runs_in_a_thread(seeds: Seeds, expected: Findings) -> None:
    found: list[Findings] = []
    thread = threading.Thread(target=lambda: found.append(run(make_pair(), seeds)))
    thread.start()
    thread.join()
    assert_same(found[0], expected)


def test_a_listener_that_raises_ends_the_search(seeds: Seeds, expected: Findings, tmp_path: Path) -> None:
    def listen(event: driver.Event) -> None:
        if event.iterations == 10:
            broken()

    with pytest.raises(RuntimeError, match="cheese"):
        run(make_pair(), seeds, tmp_path / "run", listen=listen)
    assert_same(run(make_pair(), seeds, tmp_path / "run", resume=True), expected)


def test_parts_are_committed_before_checkpoints(
    seeds: Seeds, expected: Findings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, checkpoint = RunWriter.append, RunWriter.checkpoint
    appended: list[int] = []
    checkpoints = 0

    def record_append(self: RunWriter, outcomes: Outcomes) -> None:
        appended.extend(outcomes.seed_index.tolist())
        append(self, outcomes)

    def record_checkpoint(self: RunWriter, state: dict[str, np.ndarray], counters: dict[str, float]) -> None:
        nonlocal checkpoints
        checkpoints += 1
        # Seeds are handed out in order: each one that was begun is in a slot or has been committed, none in both.
        here = seeds.indices[[row for row, _ in state["slots"].tolist() if row >= 0]].tolist()
        begun = seeds.indices[: len(appended) + len(here)].tolist()
        assert sorted(appended + here) == sorted(begun)
        checkpoint(self, state, counters)

    monkeypatch.setattr(RunWriter, "append", record_append)
    monkeypatch.setattr(RunWriter, "checkpoint", record_checkpoint)
    monkeypatch.setattr(driver, "CHECKPOINT_SHARE", 1e9)
    assert_same(run(make_pair(), seeds, tmp_path / "run", commit_every=0.0), expected)
    assert checkpoints > 20
    assert len(appended) == 40


def test_a_full_disk_loses_nothing_committed(
    seeds: Seeds, expected: Findings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, appended = RunWriter.append, []

    def full(self: RunWriter, outcomes: Outcomes) -> None:
        if len(appended) == 3:
            msg = "part-000003.parquet could not be written: No space left on device"
            raise StoreError(msg)
        appended.append(len(outcomes))
        append(self, outcomes)

    monkeypatch.setattr(driver, "CHECKPOINT_SHARE", 1e9)
    monkeypatch.setattr(RunWriter, "append", full)
    with pytest.raises(StoreError, match="No space left") as caught:
        run(make_pair(), seeds, tmp_path / "run", commit_every=0.0)
    assert "could not be committed" in caught.value.__notes__[0]
    monkeypatch.undo()
    assert len(done_seeds(tmp_path / "run")) == sum(appended) > 0
    assert_same(run(make_pair(), seeds, tmp_path / "run", resume=True), expected)


def test_a_tell_that_was_cut_in_two_leaves_no_checkpoint(
    seeds: Seeds, expected: Findings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell = BrightenLoop.tell

    def half(self: BrightenLoop, a: np.ndarray, b: np.ndarray) -> None:
        if self.iterations == 12:
            self.slots[0] = None
            broken()
        tell(self, a, b)

    monkeypatch.setattr(BrightenLoop, "tell", half)
    with pytest.raises(RuntimeError):
        run(make_pair(), seeds, tmp_path / "run")
    assert read_run(tmp_path / "run").counters == {}
    monkeypatch.undo()
    assert_same(run(make_pair(), seeds, tmp_path / "run", resume=True), expected)


def test_bad_arguments(seeds: Seeds) -> None:
    with pytest.raises(ValueError, match="resume needs out"):
        run(make_pair(), seeds, resume=True)
    with pytest.raises(ValueError, match="device must be that of the pair, 'cpu', got 'cuda:0'"):
        run(make_pair(), seeds, device="cuda:0")


def test_search_takes_arrays_and_tuples(seeds: Seeds) -> None:
    events: list[driver.Event] = []
    pair = make_pair()
    whole = Seeds(seeds.images)
    findings = search(
        (pair.original, pair.compressed), seeds.images, method=Brighten(), seed=7, chains=40, progress=events.append
    )
    assert_same(findings, run(pair, whole))
    assert events[-1].finished
    assert findings.settings["chains"] == 40
    assert findings.settings["seeds"]["count"] == 40
    assert len(findings.exhausted) == findings.ended["kind"].to_pylist().count(KINDS[EXHAUSTED])


def test_search_shows_progress_on_stderr(seeds: Seeds, capsys: pytest.CaptureFixture[str]) -> None:
    search(make_pair(), seeds, method=Brighten(), seed=7)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("compdx: 40/40 seeds, ")
    search(make_pair(), seeds, method=Brighten(), seed=7, progress=False)
    assert capsys.readouterr() == ("", "")


def test_search_names_wrong_arguments(seeds: Seeds) -> None:
    with pytest.raises(TypeError, match="pair must be"):
        search(make_pair, seeds)  # type: ignore[arg-type]
    wrong: list[tuple[str, Any, type[Exception], str]] = [
        ("progress", "yes", TypeError, "progress must be"),
        ("method", 3, TypeError, r"method must be the name of a method or its settings, such as MCMC\(\), got int"),
        ("method", Brighten, TypeError, "got the class Brighten"),
        ("method", "magic", ValueError, "method must be one of 'mcmc'"),
        ("device", 3, TypeError, "device must be None, 'cpu' or"),
        ("chains", 0, ValueError, "^chains"),
        ("chains", 2.5, TypeError, "^chains"),
        ("seed", -1, ValueError, "^seed"),
        ("threads", 0, ValueError, "^threads"),
        ("out", 3, TypeError, "out must be None or the path of a directory, got int"),
    ]
    for name, value, error, text in wrong:
        arguments: dict[str, Any] = {"method": Brighten(), "seed": 7, name: value}
        with pytest.raises(error, match=text):
            search(make_pair(), seeds, **arguments)
    with pytest.raises(TypeError, match="seeds must be"):
        search(make_pair(), 3)


def test_threads_reach_a_method_only_when_asked_for(seeds: Seeds, monkeypatch: pytest.MonkeyPatch) -> None:
    start, asked = Brighten.start, []

    def watched(self: Brighten, seeds: Seeds, **settings: Any) -> BrightenLoop:
        asked.append(settings.pop("threads", "nothing said"))
        return start(self, seeds, **settings)

    monkeypatch.setattr(Brighten, "start", watched)
    search(make_pair(), seeds, method=Brighten(), seed=7, progress=False)
    search(make_pair(), seeds, method=Brighten(), seed=7, progress=False, threads=3)
    assert asked == ["nothing said", 3]


def test_a_run_is_not_resumed_with_other_weights(seeds: Seeds, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    nets = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval() for _ in range(3)]
    run(Pair(nets[0], nets[1]), seeds, tmp_path / "run")
    same = copy.deepcopy(nets[1])
    run(Pair(nets[0], same), seeds, tmp_path / "run", resume=True)
    with torch.no_grad():
        same[1].bias[2] += 1e-6
    with pytest.raises(ValueError, match=r"other settings: pair\.compressed\.weights_sha256 is "):
        run(Pair(nets[0], same), seeds, tmp_path / "run", resume=True)
