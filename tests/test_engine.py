"""The engines: the same search whoever runs its iterations, and what a run holds fixed. CUDA graphs are captured with a
stand-in for torch.cuda here; test_engine_gpu.py captures real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compdx
from compdx import Model, Numerics, Pair, Seeds, driver, engine, search
from compdx.engine import Eager, Graph, calibrate
from compdx.methods.mcmc import MCMCLoop
from compdx.store import read_run
from stubs import IntegerPair, collect, integer_modules, some_images
from stubs import assert_same as assert_same_outcomes

torch = pytest.importorskip("torch")

SHAPE = (1, 6, 6)
STUB = IntegerPair(SHAPE, 5)
METHOD = compdx.MCMC(budget=25)
RAW: dict[str, Any] = {"bounds": (0.0, 255.0)}


def make_pair(**compressed: Any) -> Pair:
    original, other = integer_modules(STUB)
    return Pair(Model(original, **RAW), Model(other, **(RAW | compressed)))


def make_seeds(count: int = 150) -> Seeds:
    return Seeds(some_images(count, SHAPE))


def start(pair: Pair, seeds: Seeds, chains: int = 24) -> MCMCLoop:
    return METHOD.start(seeds, chains=chains, seed=3, inputs=pair.inputs)


@pytest.fixture(scope="module")
def expected() -> Any:
    """What plain ask and tell find, with the stub that knows no torch."""
    loop = METHOD.start(make_seeds(), chains=24, seed=3)
    while loop.active:
        loop.tell(*STUB(loop.ask()))
    findings = loop.findings()
    assert set(findings.ended["kind"].to_pylist()) >= {"seed", "effective", "exhausted"}
    return findings


# Steps ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_is_a_tell_and_an_ask(dtype: Any) -> None:
    inputs = compdx.Inputs(bounds=(0.0, 255.0), dtype=dtype)
    seeds = make_seeds()
    one, two = (METHOD.start(seeds, chains=40, seed=5, inputs=inputs) for _ in range(2))
    asked = one.ask()
    two.ask()
    rng = np.random.default_rng(0)
    for _ in range(60):
        a = rng.normal(0, 4, (40, 5)).astype(np.float32)
        b = np.where(rng.random((40, 1)) < 0.9, a, -a)
        one.step(a, b)
        two.tell(a, b)
        assert np.array_equal(asked.view(np.uint8), two.ask().view(np.uint8))
        for name, array in one.state().items():
            assert np.array_equal(array, two.state()[name]), name
        assert one.progress == two.progress
        assert_same_outcomes(collect([one.take()]), collect([two.take()]))
    assert one.progress.ended == 150
    assert not one.active


def test_a_step_needs_an_ask() -> None:
    scores = np.zeros((24, 5), np.float32)
    with pytest.raises(RuntimeError, match=r"^step: expected a call of ask before it"):
        start(make_pair(), make_seeds()).step(scores, scores)


# Models that are bound -----------------------------------------------------------------------------------------------


def overwriting(x: Any) -> Any:
    out = x.reshape(len(x), -1)[:, :3] * 2
    x[:] = 7
    return out


BOUND: dict[str, Callable[[], Model]] = {
    "float32": lambda: Model(integer_modules(STUB)[0], **RAW),
    "float64": lambda: Model(torch.nn.Sequential(integer_modules(STUB)[0], Double()).eval()),
    "probabilities": lambda: Model(
        torch.nn.Sequential(integer_modules(STUB)[0], torch.nn.Softmax(1)).eval(), outputs="probabilities"
    ),
    "offset": lambda: Model(integer_modules(STUB)[0], class_offset=1),
    "channels last": lambda: Model(integer_modules(STUB)[0], memory_format="channels_last"),
    "half": lambda: Model(lambda x: x.astype(np.float32).reshape(len(x), -1)[:, :4], dtype="float16"),
    "bfloat16": lambda: Model(torch.nn.Flatten().eval(), dtype="bfloat16"),
    "overwrites its input": lambda: Model(overwriting),
    "strided": lambda: Model(lambda x: x.reshape(len(x), -1).T[:5].T),
}


class Double(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return x.double() / 3


@pytest.mark.parametrize("name", BOUND)
def test_a_bound_model_says_what_the_model_says(name: str) -> None:
    model, plain = BOUND[name](), BOUND[name]()
    images = some_images(50, SHAPE)
    table = model.inputs.table(1)
    held = compdx.ops.normalize(images[:10], table, layout=model.inputs.layout, dtype=model.inputs.dtype)
    score = model.bind(held)
    for part in range(5):
        x = compdx.ops.normalize(
            images[10 * part : 10 * part + 10], table, layout=model.inputs.layout, dtype=model.inputs.dtype
        )
        held[:] = x
        scores = score()
        assert np.array_equal(held, x), "the input is the search's"
        assert scores.dtype == np.float32
        assert scores.flags.c_contiguous
        assert np.array_equal(scores, plain.forward(x))


def test_a_bound_model_is_still_looked_at() -> None:
    answers = [np.zeros((4, 3), np.float32)] * 3 + [np.zeros((3, 3), np.float32)]
    scripted = iter(torch.from_numpy(answer) for answer in answers)

    class Scripted(torch.nn.Module):
        def forward(self, _: Any) -> Any:
            return next(scripted)

    score = Model(Scripted().eval()).bind(np.zeros((4, *SHAPE), np.float32))
    for _ in range(3):
        score()
    with pytest.raises(ValueError, match=r"must return scores \[4, K\] with K >= 2, got \[3, 3\]"):
        score()


# The eager engine ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [{}, {"layout": "NHWC"}], ids=["one input", "two inputs"])
def test_a_search_finds_what_ask_and_tell_find(compressed: dict[str, Any], expected: Any) -> None:
    pair = make_pair(**compressed)
    assert (pair.inputs is None) == bool(compressed)
    findings = search(pair, make_seeds(), method=METHOD, chains=24, seed=3, progress=False)
    assert findings.ended.equals(expected.ended)
    assert findings.summary.engine == "eager"
    assert findings.settings["engine"] == "auto"
    assert (findings.summary.queries, findings.summary.found) == (expected.summary.queries, expected.summary.found)


def test_models_that_disagree_on_the_classes_are_named() -> None:
    pair = Pair(
        Model(lambda x: np.zeros((len(x), 3)), name="three"), Model(lambda x: np.zeros((len(x), 4)), name="four")
    )
    with pytest.raises(ValueError, match="K = 3 from original 'three' and K = 4 from compressed 'four'"):
        search(pair, make_seeds(), chains=8, progress=False)


def test_modules_compiled_by_their_owner(expected: Any) -> None:
    modules = [torch.compile(module, backend="eager") for module in integer_modules(STUB)]
    pair = Pair(*(Model(module, **RAW) for module in modules))
    findings = search(pair, make_seeds(), method=METHOD, chains=24, seed=3, progress=False)
    assert findings.ended.equals(expected.ended)


def test_compile_compiles_both_models(expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile_with_eager(module: Any, **options: Any) -> Any:
        compiled.append((module, options))
        return original_compile(module, backend="eager", **options)

    original_compile = torch.compile
    monkeypatch.setattr(torch, "compile", compile_with_eager)
    pair = make_pair()
    findings = search(pair, make_seeds(), method=METHOD, chains=24, seed=3, progress=False, compile=True)
    assert compiled == [(pair.original.module, {"dynamic": False}), (pair.compressed.module, {"dynamic": False})]
    assert findings.ended.equals(expected.ended)
    assert findings.settings["compile"] is True
    assert findings.settings["pair"] == search(pair, make_seeds(1), progress=False).settings["pair"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of what torch's compiler imports
def test_compile_without_a_stand_in(expected: Any) -> None:
    findings = search(make_pair(), make_seeds(), method=METHOD, chains=24, seed=3, progress=False, compile=True)
    assert findings.ended.equals(expected.ended)


def test_compile_needs_modules() -> None:
    pair = Pair(Model(lambda x: x, name="plain"), Model(lambda x: x))
    with pytest.raises(TypeError, match="compile: expected torch modules, but model 'plain' is none"):
        search(pair, make_seeds(), compile=True, progress=False)


def test_engines_that_cannot_be_had(tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"engine": "warp"}, ValueError, "engine: expected one of 'auto', 'graph', 'eager', got 'warp'"),
        ({"engine": "graph"}, ValueError, "engine: 'graph' needs a pair on CUDA, got one on 'cpu'"),
        ({"compile": 1}, TypeError, "compile: expected True or False, got int"),
        ({"numerics": "tf32"}, TypeError, "numerics must be None or a compdx.Numerics, got str"),
    ]
    for options, error, text in wrong:
        with pytest.raises(error, match=text):
            search(make_pair(), make_seeds(), out=tmp_path / "run", progress=False, **options)
    assert not (tmp_path / "run").exists()


# Numerics ------------------------------------------------------------------------------------------------------------


def settings_of_torch() -> dict[str, Any]:
    cudnn = torch.backends.cudnn
    return {
        "matmul_precision": torch.get_float32_matmul_precision(),
        "convolution_tf32": cudnn.allow_tf32,
        "benchmark": cudnn.benchmark,
        "deterministic": cudnn.deterministic,
    }


@pytest.fixture
def torch_as_it_was() -> Iterator[None]:
    before = settings_of_torch()
    yield
    torch.set_float32_matmul_precision(before["matmul_precision"])
    for name in ("benchmark", "deterministic"):
        setattr(torch.backends.cudnn, name, before[name])
    torch.backends.cudnn.allow_tf32 = before["convolution_tf32"]


@pytest.mark.usefixtures("torch_as_it_was")
@pytest.mark.parametrize("user", [("highest", True, False, False), ("medium", False, True, True)])
def test_numerics_hold_and_are_given_back(user: tuple[Any, ...]) -> None:
    torch.set_float32_matmul_precision(user[0])
    cudnn = torch.backends.cudnn
    cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = user[1:]
    before = settings_of_torch()
    wanted = {"matmul_precision": "high", "convolution_tf32": False, "benchmark": True, "deterministic": False}
    for numerics, inside in (
        (Numerics(), before | {"benchmark": False, "deterministic": True}),
        (Numerics(**wanted), wanted),
        (
            Numerics(matmul_precision="highest"),
            before | {"matmul_precision": "highest", "benchmark": False, "deterministic": True},
        ),
    ):
        with numerics.held() as held:
            assert held == settings_of_torch() == inside
        assert settings_of_torch() == before
        with pytest.raises(ZeroDivisionError), numerics.held():
            raise ZeroDivisionError
        assert settings_of_torch() == before


@pytest.mark.usefixtures("torch_as_it_was")
@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="older than these settings")
def test_numerics_beside_the_newer_settings_of_torch() -> None:
    matmul, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    matmul.fp32_precision, convolutions.fp32_precision = "tf32", "ieee"  # from here on the older ones cannot be read
    with Numerics().held() as held:
        assert (held["matmul_precision"], held["convolution_tf32"]) == ("tf32", False)
    with Numerics(matmul_precision="highest", convolution_tf32=True).held() as held:
        assert (held["matmul_precision"], held["convolution_tf32"]) == ("highest", True)
    assert (matmul.fp32_precision, convolutions.fp32_precision) == ("tf32", "ieee")


@pytest.mark.usefixtures("torch_as_it_was")
def test_a_search_holds_its_numerics_and_records_them(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    original, compressed = integer_modules(STUB)
    original.register_forward_pre_hook(lambda *_: seen.append(settings_of_torch()))
    pair = Pair(Model(original, **RAW), Model(compressed, **RAW))
    torch.backends.cudnn.benchmark = True
    before = settings_of_torch()
    wanted = Numerics(matmul_precision="high", convolution_tf32=False)
    findings = search(
        pair, make_seeds(40), method=METHOD, chains=8, numerics=wanted, out=tmp_path / "run", progress=False
    )
    held = {"matmul_precision": "high", "convolution_tf32": False, "benchmark": False, "deterministic": True}
    assert len(seen) > 3
    assert all(settings == held for settings in seen)
    assert findings.settings["numerics"] == held
    assert settings_of_torch() == before
    with pytest.raises(ValueError, match=r"other settings: numerics\.matmul_precision is \"high\" there"):
        search(pair, make_seeds(40), method=METHOD, chains=8, out=tmp_path / "run", resume=True, progress=False)

    def broken(_: driver.Event) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        search(pair, make_seeds(40), chains=8, progress=broken)
    assert settings_of_torch() == before


def test_models_without_torch_have_no_numerics() -> None:
    zeros = Model(lambda x: np.zeros((len(x), 3)))
    assert search(Pair(zeros, zeros), make_seeds(2), budget=2, progress=False).settings["numerics"] is None


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        (
            {"matmul_precision": "tf32"},
            ValueError,
            "matmul_precision: expected one of 'highest', 'high', 'medium', got 'tf32'",
        ),
        ({"convolution_tf32": 1}, TypeError, "convolution_tf32: expected True or False, got int"),
        ({"benchmark": None}, TypeError, "benchmark: expected True or False, got NoneType"),
        ({"deterministic": "yes"}, TypeError, "deterministic: expected True or False, got str"),
    ],
)
def test_wrong_numerics(settings: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Numerics(**settings)


# Calibration ---------------------------------------------------------------------------------------------------------


class Timed:
    """A model that takes the seconds that ``cost`` says for a batch, on a clock of its own."""

    def __init__(self, cost: Callable[[int], float]) -> None:
        self.cost, self.now, self.batches = cost, 0.0, list[int]()

    def __call__(self, x: Any) -> Any:
        self.batches.append(len(x))
        self.now += self.cost(len(x))
        return np.zeros((len(x), 3), np.float32)

    def calibrate(self, seeds: int, **options: Any) -> engine.Calibration:
        pair = Pair(Model(self), Model(lambda x: np.zeros((len(x), 3), np.float32)))
        return calibrate(pair, make_seeds(seeds), clock=lambda: self.now, **options)


def test_the_smallest_batch_that_is_nearly_the_fastest() -> None:
    # Images a second by batch: 1/(0.01/b + 1e-4).
    found = Timed(lambda b: 0.01 + 1e-4 * b).calibrate(100_000, seconds=1e9)
    rates = dict(zip(found.batches, found.images_per_second, strict=True))
    assert rates == {b: pytest.approx(b / (0.01 + 1e-4 * b), abs=0.1) for b in (32, 64, 128, 256, 512, 1024, 2048)}
    assert (found.chains, found.stopped, found.most) == (1024, "gain", 2048)


def test_no_larger_batch_than_pays() -> None:
    found = Timed(lambda b: 1e-3 * b).calibrate(100_000)
    assert (found.batches, found.chains, found.stopped) == ((32, 64), 32, "gain")
    cliff = Timed(lambda b: 1e-5 * b if b <= 128 else 1e-4 * b)  # beyond a cache
    found = cliff.calibrate(100_000)
    assert found.chains == 32


def test_no_more_slots_than_a_quarter_of_the_seeds() -> None:
    def constant(_: int) -> float:
        return 1e-3

    for seeds, chains, batches in ((1, 1, ()), (32, 32, ()), (100, 32, ()), (400, 100, (32, 64, 100))):
        model = Timed(constant)
        found = model.calibrate(seeds)
        assert (found.chains, found.batches, found.stopped) == (chains, batches, "most"), seeds
        assert sorted(set(model.batches)) == list(batches)
    assert Timed(constant).calibrate(10**5).chains == 2048


@pytest.mark.parametrize("rate", [1e-4, 3e-3, 0.02, 0.5, 30.0])
def test_calibration_is_bounded(rate: float) -> None:
    model = Timed(lambda b: rate * b**0.5)
    found = model.calibrate(100_000)
    first = rate * 32**0.5
    assert model.now <= max(2.0, first), "only the first call may take longer"
    assert found.chains == max(found.batches), "as far as it was measured, larger was better"
    assert found.stopped in ("time", "most")


def test_calibration_stops_where_memory_ends() -> None:
    def cost(batch: int) -> float:
        if batch > 128:
            raise MemoryError
        return 1e-3

    found = Timed(cost).calibrate(100_000)
    assert (found.chains, found.stopped, found.batches) == (128, "memory", (32, 64, 128))

    def none(_: int) -> float:
        raise MemoryError

    with pytest.raises(MemoryError):
        Timed(none).calibrate(100_000)


def test_calibration_is_recorded_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: Any) -> None:
    measured = []

    def counted(pair: Pair, seeds: Seeds) -> engine.Calibration:
        found = calibrate(pair, seeds)
        measured.append(found)
        return found

    monkeypatch.setattr(driver, "calibrate", counted)
    out, pair, seeds = tmp_path / "run", make_pair(), make_seeds()

    def stop(event: driver.Event) -> None:
        if event.iterations >= 3:
            raise ZeroDivisionError

    options: dict[str, Any] = {"seed": 3, "device": "cpu", "out": out, "interval": 0.0}
    with pytest.raises(ZeroDivisionError):
        driver.run(pair, seeds, METHOD, listen=stop, **options)
    header = read_run(out).header
    assert header["chains"] == measured[0].chains
    assert header["calibration"] == measured[0].to_json()
    assert header["calibration"]["most"] == 150 // 4
    findings = driver.run(pair, seeds, METHOD, resume=True, **options)
    assert len(measured) == 1
    assert findings.settings == header
    assert findings.ended.equals(expected.ended)


def test_a_number_of_chains_skips_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "calibrate", None)
    findings = search(make_pair(), make_seeds(), method=METHOD, chains=9, progress=False)
    assert (findings.settings["chains"], findings.settings["calibration"]) == (9, None)


# The CUDA engine, with a stand-in for torch.cuda ---------------------------------------------------------------------


class FakeStream:
    def __init__(self, cuda: FakeCuda, name: str) -> None:
        self.cuda, self.name = cuda, name

    def wait_stream(self, other: FakeStream) -> None:
        self.cuda.note("wait", self.name, other.name)

    def synchronize(self) -> None:
        self.cuda.note("synchronize", self.name)
        self.cuda.run(len(self.cuda.queue))


class FakeEvent:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda, self.at = cuda, 0

    def record(self, _: FakeStream) -> None:
        self.at = len(self.cuda.queue)

    def synchronize(self) -> None:
        self.cuda.run(self.at)


class FakeGraph:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda, self.nodes = cuda, list[Callable[[], object]]()

    def replay(self) -> None:
        self.cuda.note("replay")
        self.cuda.queue.append(self.nodes)
        self.cuda.deepest = max(self.cuda.deepest, len(self.cuda.queue) - self.cuda.ran)


class FakeCuda:
    """A device that runs queued graphs as late as it may, and notes what is asked of it."""

    def __init__(self) -> None:
        self.log: list[tuple[str, ...]] = []
        self.queue: list[list[Callable[[], object]]] = []
        self.ran = self.deepest = self.streams = 0
        self.user = self.current = FakeStream(self, "user")
        self.capturing: FakeGraph | None = None
        self.mode = "default"

    def note(self, *what: str) -> None:
        self.log.append(what)

    def run(self, until: int) -> None:
        while self.ran < until:
            for node in self.queue[self.ran]:
                node()
            self.ran += 1

    def do(self, what: str, work: Callable[[], object]) -> None:
        """Work that is queued: within a capture it becomes a node."""
        self.note(what, self.current.name)
        if self.capturing is None:
            self.run(len(self.queue))
            work()
        else:
            self.capturing.nodes.append(work)

    def wait(self) -> None:
        """What a model does that looks at a value."""
        if self.mode == "error":
            msg = "called a synchronizing CUDA operation"
            raise RuntimeError(msg)
        if self.capturing is not None:
            msg = "operation not permitted when stream is capturing"
            raise RuntimeError(msg)

    def Stream(self, _: str) -> FakeStream:
        self.streams += 1
        return FakeStream(self, f"stream {self.streams}")

    def Event(self, *, blocking: bool) -> FakeEvent:
        assert blocking
        return FakeEvent(self)

    def CUDAGraph(self) -> FakeGraph:
        return FakeGraph(self)

    def current_stream(self, _: str) -> FakeStream:
        return self.current

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: FakeGraph, *, stream: FakeStream, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        self.note("capture", stream.name)
        with self.stream(stream):
            self.capturing = graph
            try:
                yield
            except RuntimeError as error:
                msg = "operation failed due to a previous error during capture"
                raise RuntimeError(msg) from error
            finally:
                self.capturing = None
                self.current = stream
        self.note("captured")

    def get_sync_debug_mode(self) -> str:
        return self.mode

    def set_sync_debug_mode(self, mode: str) -> None:
        self.note("mode", mode)
        self.mode = mode


class OnFake:
    """A loop or a pair of the CPU whose work goes through a `FakeCuda`."""

    def __init__(self, inner: Any, cuda: FakeCuda, waits: str | None = None) -> None:
        self.inner, self.cuda, self.waits = inner, cuda, waits

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    # of a loop

    def launch(self, a: Any, b: Any) -> None:
        self.cuda.do("step", lambda: self.inner.launch(a, b))

    def step(self, a: Any, b: Any) -> None:
        self.launch(a, b)
        self.inner.launched(1)

    def take(self) -> Any:
        self.cuda.run(len(self.cuda.queue))
        return self.inner.take()

    # of a pair

    def bind(self, x: Any) -> Any:
        def on_fake(name: str, score: Callable[[], Any]) -> Callable[[], Any]:
            held = np.zeros((len(x), STUB.classes), np.float32)

            def call() -> Any:
                if self.waits == name:
                    self.cuda.wait()
                self.cuda.do(name, lambda: np.copyto(held, score()))
                return held

            return call

        return tuple(map(on_fake, ("original", "compressed"), self.inner.bind(x)))


def make_graph(*, waits: str | None = None, strict: bool = False, chains: int = 24) -> tuple[FakeCuda, Graph, OnFake]:
    cuda, pair = FakeCuda(), make_pair()
    loop = OnFake(start(pair, make_seeds(), chains), cuda)
    return cuda, Graph(OnFake(pair, cuda, waits), loop, strict=strict, cuda=cuda), loop


def finish(running: Graph | Eager, loop: Any) -> Any:
    parts = []
    with running:
        while loop.active:
            running.advance()
            if running.begun % 3 == 0:
                parts.append(loop.take())
        parts.append(loop.take())
    return collect(parts)


def plain_outcomes() -> Any:
    loop = start(make_pair(), make_seeds())
    return finish(Eager(make_pair(), loop), loop)


@pytest.mark.parametrize(("small", "unrolled", "streams"), [(True, 32, 2), (False, 16, 1)])
def test_a_graph_finds_the_same(small: bool, unrolled: int, streams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not small:
        monkeypatch.setattr("compdx.engine.graph.SIZES", ((1, 64, 2), (1 << 20, 16, 1)))
    cuda, graph, loop = make_graph()
    assert_same_outcomes(finish(graph, loop), plain_outcomes())
    assert (graph.unrolled, graph.streams, graph.fallback) == (unrolled, streams, None)
    assert graph.description == f"graph of {unrolled} iterations, {streams} stream{'s' * (streams == 2)}"
    replays = cuda.log.count(("replay",))
    assert replays >= 2
    assert cuda.deepest <= 2, "no more may be queued"
    assert graph.begun == loop.progress.iterations == 3 + replays * unrolled
    eager = start(make_pair(), make_seeds())
    finish(Eager(make_pair(), eager), eager)
    assert loop.progress.queries == eager.progress.queries, "iterations beyond the end are no queries"
    assert loop.progress.occupancy == loop.progress.queries / (24 * loop.progress.iterations)


def test_the_order_of_a_capture() -> None:
    cuda, graph, loop = make_graph()
    with graph:
        for _ in range(3):
            graph.advance()
        warm_up = [
            ("wait", "stream 2", "stream 1"),
            ("compressed", "stream 2"),
            ("original", "stream 1"),
            ("wait", "stream 1", "stream 2"),
            ("step", "stream 1"),
        ]
        assert cuda.log == [("wait", "stream 1", "user"), *(3 * warm_up)]
        cuda.log.clear()
        graph.advance()
        probe = [
            call
            for name in ("original", "compressed")
            for call in (("mode", "error"), (name, "stream 1"), ("mode", "default"))
        ]
        assert cuda.log == [*probe, ("capture", "stream 1"), *(32 * warm_up), ("captured",), ("replay",)]
        assert cuda.current.name == "stream 1", "what reads the loop is in order with its work"
        assert loop.progress.iterations == 3 + 32
    assert cuda.current is cuda.user
    assert cuda.log[-1] == ("synchronize", "stream 1")


def test_an_error_is_not_covered_by_another() -> None:
    cuda, graph, _ = make_graph()
    with pytest.raises(ZeroDivisionError), graph:
        raise ZeroDivisionError
    assert ("synchronize", "stream 1") not in cuda.log
    assert cuda.current is cuda.user


@pytest.mark.parametrize("name", ["original", "compressed"])
def test_a_model_that_waits_runs_one_by_one(name: str) -> None:
    cuda, graph, loop = make_graph(waits=name)
    assert_same_outcomes(finish(graph, loop), plain_outcomes())
    assert graph.fallback == (
        "no CUDA graph: model 'Linear' waits for the device (called a synchronizing CUDA operation)"
    )
    assert graph.description == "eager"
    assert ("capture", "stream 1") not in cuda.log, "a broken capture can leave worse behind"
    assert cuda.mode == "default"


def test_a_capture_that_breaks_runs_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeCuda, "set_sync_debug_mode", lambda *_: None)  # not every wait is noticed
    cuda, graph, loop = make_graph(waits="compressed")
    assert_same_outcomes(finish(graph, loop), plain_outcomes())
    assert graph.fallback == "no CUDA graph: operation not permitted when stream is capturing"
    assert ("replay",) not in cuda.log


def test_a_graph_that_was_asked_for_raises() -> None:
    _, graph, loop = make_graph(waits="original", strict=True)
    reason = r"engine='graph': this search cannot be captured in a CUDA graph: model 'Linear' waits for the device"
    with pytest.raises(RuntimeError, match=reason):
        finish(graph, loop)
    assert not graph.cut
    assert loop.progress.iterations == 3


def test_long_iterations_are_not_unrolled_far() -> None:
    _, graph, _ = make_graph(chains=1 << 18)
    assert (graph.unrolled, graph.streams) == (4, 1)


def test_the_summary_and_the_screen_say_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = "no CUDA graph: model 'x' waits for the device"
    monkeypatch.setattr(engine, "start", lambda _, pair, loop: Eager(pair, loop, fallback=reason))
    out = tmp_path / "run"
    findings = search(make_pair(), make_seeds(), method=METHOD, chains=24, out=out)
    assert findings.summary.engine == f"eager ({reason})"
    run = read_run(out).summary
    assert run is not None
    assert run.engine == f"eager ({reason})"
    assert capsys.readouterr().err.count(f"compdx: iterations run one by one: {reason}\n") == 1


def test_methods_without_steps_run_one_by_one() -> None:
    class Plain:
        chains, shape = 4, SHAPE

    class OnCuda:
        device, inputs, forward = "cuda:0", compdx.Inputs(), None

    loop, pair = Plain(), OnCuda()
    found = engine.start("auto", pair, loop)  # type: ignore[arg-type]
    assert (found.description, found.fallback) == ("eager", "no CUDA graph: the method takes its steps on the host")
    assert engine.start("eager", pair, loop).fallback is None  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'graph' is for methods whose loops have step"):
        engine.start("graph", pair, loop)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'graph' is for methods whose steps need nothing of the host"):
        engine.check("graph", pair, compdx.Gradient())  # type: ignore[arg-type]
