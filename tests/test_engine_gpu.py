"""CUDA graphs of whole searches on a device: what they find is what the CPU finds, and the host waits for nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compdx
from compdx import Findings, Model, Pair, Seeds, driver, search
from compdx.engine import Graph, calibrate
from stubs import IntegerPair, integer_modules, some_images

pytestmark = pytest.mark.gpu

SHAPE = (1, 8, 8)
STUB = IntegerPair(SHAPE, 6)
METHOD = compdx.MCMC(budget=90)
RAW: dict[str, Any] = {"bounds": (0.0, 255.0)}
Wrap = Callable[[Any], Any]


def make_pair(device: str = "cuda", wrap: Wrap = lambda module: module, **compressed: Any) -> Pair:
    original, other = (module.to(device) for module in integer_modules(STUB))
    return Pair(Model(original, name="the original", **RAW), Model(wrap(other), **(RAW | compressed)))


def make_seeds(count: int = 3000) -> Seeds:
    return Seeds(some_images(count, SHAPE))


def find(pair: Pair, chains: int, **options: Any) -> Findings:
    return search(pair, make_seeds(), method=METHOD, chains=chains, seed=11, **({"progress": False} | options))


@pytest.fixture(scope="module")
def expected() -> Findings:
    """What the CPU finds."""
    findings = find(make_pair("cpu"), 100)
    assert set(findings.ended["kind"].to_pylist()) >= {"seed", "effective", "exhausted"}
    return findings


@contextmanager
def waits_are_errors() -> Iterator[None]:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def waiting(module: Any) -> Any:
    import torch

    class Waiting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: Any) -> Any:
            return self.inner(x) + 0 * x.sum().item()

    return Waiting().eval()


def synchronizing(module: Any) -> Any:
    """Waits in a way that PyTorch's mode does not see, so that the capture itself breaks."""
    import torch

    class Synchronizing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: Any) -> Any:
            torch.cuda.synchronize()
            return self.inner(x)

    return Synchronizing().eval()


@pytest.mark.parametrize("chains", [1, 64, 1000, 3000])
@pytest.mark.parametrize("engine", ["graph", "eager"])
def test_a_graph_finds_what_the_cpu_finds(engine: str, chains: int, expected: Findings) -> None:
    if chains == 1:
        seeds = make_seeds(20)
        findings, right = (
            search(make_pair(device), seeds, method=METHOD, chains=1, seed=11, engine=how, progress=False)
            for device, how in (("cuda", engine), ("cpu", "eager"))
        )
    else:
        findings, right = find(make_pair(), chains, engine=engine), expected
    assert findings.ended.equals(right.ended)
    assert findings.summary.queries == right.summary.queries
    assert (findings.summary.engine or "").startswith("graph of" if engine == "graph" else "eager")


@pytest.mark.parametrize("sizes", [((1, 64, 2), (1 << 30, 16, 1)), ((1 << 30, 5, 2),), ()], ids=["16", "5", "largest"])
def test_every_size_of_graph(sizes: tuple[Any, ...], expected: Findings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compdx.engine.graph.SIZES", sizes)
    assert find(make_pair(), 200, engine="graph").ended.equals(expected.ended)


def test_models_that_want_different_inputs_are_captured(expected: Findings) -> None:
    pair = make_pair(layout="NHWC")
    assert pair.inputs is None
    assert find(pair, 200, engine="graph").ended.equals(expected.ended)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of what torch's compiler imports
def test_compiled_modules_are_captured(expected: Findings) -> None:
    import torch

    assert find(make_pair(wrap=torch.compile), 200, engine="graph").ended.equals(expected.ended)
    assert find(make_pair(), 200, engine="graph", compile=True).ended.equals(expected.ended)


@pytest.mark.parametrize("wrap", [waiting, synchronizing])
def test_a_model_that_cannot_be_captured(wrap: Wrap, expected: Findings, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    findings = find(make_pair(wrap=wrap), 200, progress=True)
    assert findings.ended.equals(expected.ended)
    assert (findings.summary.engine or "").startswith("eager (no CUDA graph: ")
    assert "compdx: iterations run one by one: no CUDA graph: " in capsys.readouterr().err
    if wrap is waiting:
        assert "model 'Waiting' waits for the device" in (findings.summary.engine or "")
    with pytest.raises(RuntimeError, match="engine='graph': this search cannot be captured"):
        find(make_pair(wrap=wrap), 200, engine="graph")
    torch.randn(3, device="cuda").sum().item()  # the device and its random numbers are as they were


def test_a_replay_waits_for_nothing() -> None:
    pair = make_pair()
    same = Pair(pair.original, pair.original)  # nothing can be found, so nothing is to be read
    seeds = make_seeds(500)
    loop = compdx.MCMC(budget=5000, capacity=16).start(seeds, chains=500, device="cuda", inputs=same.inputs)
    with Graph(same, loop, strict=True) as graph:
        for _ in range(5):
            graph.advance()
        before = loop.progress.iterations
        with waits_are_errors():
            for _ in range(10):
                graph.advance()
        assert loop.progress.iterations == before + 10 * graph.unrolled
        assert not len(loop.take())
        assert loop.progress.queries == 500 * loop.progress.iterations
        assert loop.progress.occupancy == 1.0


def test_all_slots_work_until_the_queue_is_empty() -> None:
    """Reading what has ended late leaves no slot waiting for room."""
    seeds = make_seeds(20_000)
    pair = make_pair()
    loop = METHOD.start(seeds, chains=500, seed=11, device="cuda", inputs=pair.inputs)
    with Graph(pair, loop, strict=True) as graph:
        while loop.progress.ended < 15_000:
            graph.advance()
        loop.take()
        assert loop.progress.occupancy > 0.99


def test_a_run_goes_on_where_it_was_interrupted(expected: Findings, tmp_path: Path) -> None:
    def stop(event: driver.Event) -> None:
        if event.iterations > 100:
            raise ZeroDivisionError

    options: dict[str, Any] = {"chains": 150, "seed": 11, "device": "cuda:0", "out": tmp_path / "run", "interval": 0.0}
    with pytest.raises(ZeroDivisionError):
        driver.run(make_pair(), make_seeds(), METHOD, listen=stop, **options)
    findings = driver.run(make_pair(), make_seeds(), METHOD, resume=True, **options)
    assert findings.ended.equals(expected.ended)
    assert findings.summary.queries == expected.summary.queries


def test_inputs_can_be_normalised_within_a_graph() -> None:
    import torch

    images = torch.zeros((50, *SHAPE), dtype=torch.uint8, device="cuda")
    table = np.random.default_rng(0).normal(size=(1, 256)).astype(np.float32)
    feed = compdx.ops.Normalizer(images, table, dtype="bfloat16")
    feed()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = feed()
    images.copy_(torch.from_numpy(some_images(50, SHAPE)))
    graph.replay()
    assert torch.equal(out, compdx.ops.normalize(images, table, dtype="bfloat16"))


def test_calibration_on_a_device() -> None:
    found = calibrate(make_pair(), make_seeds(40_000))
    assert found.chains in found.batches
    assert found.most == 10_000
    assert found.batches[0] == 32
    assert min(found.images_per_second) > 0
