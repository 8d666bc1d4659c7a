"""Localization: errors by hand, one faulty layer and all behind it, ONNX files, memory, matching, cuts, the command."""

from __future__ import annotations

import copy
import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compdx import Model, runtimes
from compdx.environments import localize
from compdx.environments.layers import match, network_of
from compdx.environments.layers.errors import Sums, error
from compdx.environments.layers.graph import INPUT, Port
from compdx.environments.layers.splicing import Splices

torch = pytest.importorskip("torch")
nn = torch.nn


class Block(nn.Module):  # type: ignore[misc, name-defined]
    """A shortcut over two convolutions with batch normalization, and an addition in place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Any) -> Any:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        y += x
        return torch.relu(y)


def network(seed: int = 0, *, inplace: bool = False) -> Any:
    """An untrained residual network for ``[N, 2, 8, 8]`` with statistics of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = nn.Sequential(
            *(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=inplace), nn.MaxPool2d(2)),
            *(Block(8), Block(8), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 12), nn.ReLU()),
            nn.Linear(12, 4),
        )
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.3)
                part.running_var.uniform_(0.5, 2)
                nn.init.uniform_(part.weight, -2, 2)
                nn.init.normal_(part.bias)
        return module.eval()


def model(module: Any = None, **settings: Any) -> Model:
    return Model(network() if module is None else module, mean=0.5, std=0.25, **settings)


def images(count: int = 24, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 2, 8, 8), dtype=np.uint8)


def perturbed(layer: str, size: float = 1e-2) -> Any:
    """The network with noise on the weights of one layer."""
    module = network()
    weight = module.get_submodule(layer).weight
    with torch.no_grad():
        weight.add_(size * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
    return module


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network as exported by torch: batch normalization folded into the convolutions."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    return export(network(), tmp_path_factory.mktemp("onnx") / "network.onnx")


def export(module: Any, path: Path) -> Path:
    """An ONNX file of a network, for any number of images."""
    shapes = ({0: torch.export.Dim("n")},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(module, (torch.zeros(1, 2, 8, 8),), path, dynamo=True, dynamic_shapes=shapes)
    return path


def on_onnx(path: Path, level: str = "all") -> Model:
    return Model(path, mean=0.5, std=0.25, level=level, threads=1)


# Errors


def test_errors_by_hand() -> None:
    found = error(np.array([3.0, 4.0]), np.array([3.0, 4.5]))
    assert found.relative == pytest.approx(0.1)  # 0.5 of 5
    assert found.sqnr == pytest.approx(20.0)
    assert found.cosine == pytest.approx((9 + 18) / (5 * math.hypot(3, 4.5)))
    assert found.rmse == pytest.approx(0.5 / math.sqrt(2))
    assert found.max_abs == 0.5


def test_errors_of_the_same_of_nothing_and_of_infinity() -> None:
    a = np.array([1.0, np.nan, np.inf])
    same = error(a, a.copy())
    assert (same.relative, same.sqnr, same.cosine, same.max_abs) == (0, math.inf, 1, 0)
    assert error(np.zeros(2), np.ones(2)).relative == math.inf
    for wrong in (np.array([np.nan, np.nan, np.inf]), np.array([1, np.nan, 2.0]), np.array([1.0, np.nan, -np.inf])):
        assert error(a, wrong).relative == math.inf
    assert error(np.zeros(2), np.ones(2)).to_json()["relative"] is None


def test_sums_over_chunks_are_those_over_all() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 50, 3, 4)).astype(np.float32)
    whole, parts = Sums(), Sums()
    rows = whole.add(a, b)
    pieces = [parts.add(a[i : i + 7], b[i : i + 7]) for i in range(0, 50, 7)]
    np.testing.assert_array_equal(np.concatenate(pieces), rows)
    assert vars(parts.error()) == pytest.approx(vars(whole.error()), rel=1e-12)
    expected = np.linalg.norm((a.astype(float) - b).reshape(50, -1), axis=1) / np.linalg.norm(
        a.astype(float).reshape(50, -1), axis=1
    )
    np.testing.assert_allclose(rows, expected, rtol=1e-12)


# Torch and torch


def downstream(layer: str) -> set[str]:
    """The places behind a layer of the network, by hand."""
    order = ["0", "1", "2", "3", "4.conv1", "4.bn1", "4.relu", "4.conv2", "4.bn2", "4.add", "4.relu_1", "5.conv1"]
    order += ["5.bn1", "5.relu_2", "5.conv2", "5.bn2", "5.add_1", "5.relu_3", "6", "6 → 8", "8", "9", "10"]
    return set(order[order.index(layer) :])


@pytest.mark.parametrize("layer", ["0", "4.conv2", "5.conv1", "8"])
def test_a_perturbed_layer(layer: str) -> None:
    found = localize(model(), model(perturbed(layer)), images())
    assert [one.name for one in found.suspects] == [layer]
    assert (found.first, found.last) == (layer, layer)
    parameters = found.ranked_parameters()
    assert parameters[0].name == layer
    assert all(one.parameters is not None and one.parameters.relative == 0 for one in parameters[1:])
    behind = downstream(layer)
    for one in found.layers:
        if one.name in behind:
            assert one.drift.relative > 0, one.name
        else:
            assert one.drift.relative == 0, one.name
        assert (one.own.relative > 0) == (one.name == layer)
    before, after = (dict(part.named_parameters()) for part in (network(), perturbed(layer)))
    weight, changed = (part[f"{layer}.weight"].detach().numpy().astype(float) for part in (before, after))
    bias = before[f"{layer}.bias"].detach().numpy() if f"{layer}.bias" in before else np.zeros(1)
    norm = math.sqrt((weight**2).sum() + (bias**2).sum())
    assert parameters[0].parameters is not None
    assert parameters[0].parameters.relative == pytest.approx(np.linalg.norm(weight - changed) / norm, rel=1e-5)


def test_the_errors_are_those_of_hooks() -> None:
    a, b, x = network(), perturbed("4.conv2", 0.2), images()
    found = localize(model(a), model(b), x, chunk=5)
    fed = torch.from_numpy((x / np.float32(255) - np.float32(0.5)) / np.float32(0.25))
    seen: list[dict[str, Any]] = [{}, {}]
    for values, module in zip(seen, (a, b), strict=True):
        for name, part in module.named_modules():
            part.register_forward_hook(
                lambda _m, _i, out, name=name, values=values: values.update({name: out.detach().clone()})
            )
        with torch.no_grad():
            module(fed)
    for one in found.layers:
        if one.name in seen[0]:
            expected = error(*(values[one.name].numpy()[None] for values in seen))
            assert one.drift.relative == pytest.approx(expected.relative, rel=1e-4)
            assert one.drift.max_abs == pytest.approx(expected.max_abs, rel=1e-4)
            assert one.drift.cosine == pytest.approx(expected.cosine, rel=1e-6)
    scores = [part(fed).detach().numpy() for part in (a, b)]
    assert found.flips.tolist() == np.flatnonzero(scores[0].argmax(1) != scores[1].argmax(1)).tolist()


def test_chunks_and_groups_change_nothing() -> None:
    a, b, x = model(), model(perturbed("5.conv1", 0.3)), images(23)
    found = [
        localize(a, b, x, chunk=chunk, memory=memory) for chunk, memory in ((23, 1 << 30), (4, 1 << 30), (4, 40_000))
    ]
    assert found[0].settings["groups"] == 1
    assert found[2].settings["groups"] > 3
    for other in found[1:]:
        assert [one.name for one in other.suspects] == [one.name for one in found[0].suspects]
        assert other.flips.tolist() == found[0].flips.tolist()
        for one, two in zip(found[0].layers, other.layers, strict=True):
            assert one.drift.relative == pytest.approx(two.drift.relative, rel=1e-4, abs=1e-7)
            assert one.own.relative == pytest.approx(two.own.relative, rel=1e-4, abs=1e-7)
    again = localize(a, b, x, chunk=4, memory=40_000)
    assert again.to_json() == found[2].to_json()


def test_a_network_and_itself_have_no_suspects() -> None:
    found = localize(model(), model(copy.deepcopy(network())), images())
    assert not found.suspects
    assert found.first is found.last is None
    assert all(one.drift.relative == one.own.relative == 0 for one in found.layers)
    assert "0 suspects" in str(found)


def test_layers_that_work_in_place() -> None:
    found = localize(model(), model(network(inplace=True)), images())
    assert not found.suspects
    assert found.scores.relative == 0
    assert localize(model(network(inplace=True)), model(perturbed("4.conv1")), images()).first == "4.conv1"


def test_the_module_is_not_changed() -> None:
    module = network(inplace=True)
    before = {name: value.clone() for name, value in module.state_dict().items()}, set(vars(module))
    localize(model(module), model(perturbed("8")), images(4))
    assert set(vars(module)) == before[1]
    assert all(torch.equal(value, before[0][name]) for name, value in module.state_dict().items())


def test_preprocessing_is_named() -> None:
    found = localize(model(), Model(network(), mean=0.5, std=0.3), images())
    assert found.suspects[0].name == found.first == INPUT
    assert len(found.suspects) == 1


def test_two_faults_are_both_found() -> None:
    module = perturbed("4.conv1", 0.05)
    with torch.no_grad():
        module[10].weight.mul_(1.5)
    found = localize(model(), model(module), images(64))
    assert {one.name for one in found.suspects} == {"4.conv1", "10"}
    assert found.first in ("4.conv1", "10")
    assert found.last == "10"


def test_controls_are_the_nearest_margins_or_given() -> None:
    a, b, x = model(), model(perturbed("4.conv1", 3.0)), images(40)
    found = localize(a, b, x)
    assert len(found.flips) == 2
    scores = np.sort(a(x), axis=1)
    margins = scores[:, -1] - scores[:, -2]
    assert len(found.controls) == len(found.flips)
    assert not set(found.controls) & set(found.flips)
    free = np.setdiff1d(np.arange(40), found.flips)
    assert free[np.abs(margins[free] - margins[found.flips[0]]).argmin()] in found.controls
    given = localize(a, b, x, reference=images(40, seed=5))
    labels = [one(images(40, seed=5)).argmax(1) for one in (a, b)]
    assert given.controls.tolist() == [row for row in given.flips if labels[0][row] == labels[1][row]]
    assert given.layers[-1].contrast is not None


def test_json_rows_and_node_data(tmp_path: Path) -> None:
    found = localize(model(), model(perturbed("4.conv1")), images())
    saved = json.loads(found.save(tmp_path / "found.json").read_text())
    assert saved == found.to_json()
    assert saved["suspects"] == ["4.conv1"]
    assert found.rows(1)[0] == found.suspects[0].to_json()
    data = found.node_data("b")
    assert set(data) == {"results", "gradient"}
    assert data["results"]["4.conv1"] == {"value": found.suspects[0].own.relative}
    assert [stop["stop"] for stop in data["gradient"]] == [0, 1]
    assert found.node_data("a", "drift")["results"]["10"]["value"] > 0
    with pytest.raises(ValueError, match="side must be 'a' or 'b'"):
        found.node_data("c")  # type: ignore[arg-type]


def test_what_cannot_be_localized() -> None:
    with pytest.raises(ValueError, match="must be one whose layers can be looked at"):
        localize(model(), Model(lambda x: x.reshape(len(x), -1)[:, :4]), images())
    with pytest.raises(ValueError, match="have none of one shape of weights"):
        localize(model(), model(nn.Sequential(nn.Flatten(), nn.Linear(128, 4)).eval()), images())
    with pytest.raises(ValueError, match="reference must have one image for each"):
        localize(model(), model(), images(), reference=images(3))
    other = network()
    other[10] = nn.Linear(12, 3)
    with pytest.raises(ValueError, match=r"score the same classes, got K = 4 and K = 3"):
        localize(model(), model(other.eval()), images())


# Matching


def test_unpaired_operations_are_named() -> None:
    module = network()
    module[10] = nn.Sequential(nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 4)).eval()
    found = localize(model(), model(module), images())
    assert found.unpaired["a"] == ("10",)
    assert found.unpaired["b"] == ("10.0", "10.1", "10.2")
    assert found.suspects[0].name == "9 → output"
    assert {"10", "10.0", "10.1", "10.2", "output"} == set(found.suspects[0].place.covers)
    assert "only in b: 10.0, 10.1, 10.2" in str(found)


def test_a_wrapper_and_other_names() -> None:
    class Wrapper(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Any) -> Any:
            return self.inner(x)

    found = localize(model(), model(Wrapper().eval()), images())
    assert not found.suspects
    assert not any(found.unpaired.values())
    renamed = nn.Sequential(*(part for part in network()))
    renamed = nn.ModuleDict({"x": renamed})["x"]
    shuffled = nn.Sequential()
    for number, part in enumerate(renamed):
        shuffled.add_module(f"part{9 - number if number < 10 else number}", part)
    other = localize(model(), model(shuffled.eval()), images())
    assert not other.suspects
    assert not any(other.unpaired.values())


def test_a_part_runs_from_what_it_is_given() -> None:
    net = network_of(model())
    net.look(images(1))
    x = net.feed(images(3))
    all_values = net.values(x, list(net.operations))
    rest = net.part(["4.relu_1"], [net.output])
    assert rest.needs == ("4.relu_1",)
    given = {"4.relu_1": all_values["4.relu_1"]}
    np.testing.assert_array_equal(rest(given)[net.output], all_values[net.output])
    # One operand only: the addition takes another shortcut, the convolution before it does not.
    port = net.part([INPUT, Port("4.add", 1)], ["4.add", "4.bn2"])
    found = port({INPUT: x, Port("4.add", 1): np.zeros_like(all_values["3"])})
    np.testing.assert_array_equal(found["4.add"], all_values["4.bn2"])
    np.testing.assert_array_equal(found["4.bn2"], all_values["4.bn2"])


def test_cuts_by_all_places() -> None:
    """The halving finds what trying every cut finds."""
    nets = [network_of(one) for one in (model(), model(perturbed("5.conv2", 0.1)))]
    for net in nets:
        net.look(images(1))
    splices = Splices(*nets, match(*nets), *(net.feed(images(6)) for net in nets))
    base, whole = splices.a_alone, splices.b_alone
    assert not np.array_equal(base, whole)
    count = len(splices.places)
    np.testing.assert_array_equal(splices.b_first(count), whole)
    np.testing.assert_array_equal(splices.a_first(count), base)
    differs = [not np.array_equal(splices.b_first(cut), base) for cut in range(count + 1)]
    assert splices.places[differs.index(True) - 1].name == "5.conv2"
    found = splices.first(lambda scores: not np.array_equal(scores, base))
    assert found is not None
    assert found.name == "5.conv2"
    last = splices.last(lambda scores: not np.array_equal(scores, base))
    assert last is not None
    assert last.name == "5.conv2"


def test_a_runtime_that_shows_no_values_is_named() -> None:
    pytest.importorskip("ai_edge_litert")
    lite = Model(Path(__file__).parent / "data" / "tiny-float.tflite", layout="NHWC")
    with pytest.raises(ValueError, match=r"can be looked at, .* got tiny-float.tflite on litert"):
        localize(model(), lite, images())


def test_exported_files(tmp_path: Path) -> None:
    shapes, path = ({0: torch.export.Dim("n")},), tmp_path / "net.pt2"

    def on_torch(**settings: Any) -> Model:
        return Model(path, mean=0.5, std=0.25, **settings)

    torch.export.save(
        torch.export.export(perturbed("5.conv2"), (torch.zeros(2, 2, 8, 8),), dynamic_shapes=shapes), path
    )
    for a, b in ((model(), on_torch()), (on_torch(), model())):
        found = localize(a, b, images())
        assert [one.name for one in found.suspects] == [found.first] == ["5.conv2"]
        assert not any(found.unpaired.values())
    assert not localize(on_torch(), model(perturbed("5.conv2")), images()).suspects
    for settings in ({"level": "aot_eager"}, {"precision": "bfloat16"}):
        with pytest.raises(ValueError, match="must run eagerly, in float32 and with a free batch"):
            localize(model(), on_torch(**settings), images())
    torch.export.save(torch.export.export(network(), (torch.zeros(2, 2, 8, 8),)), path)
    with pytest.raises(ValueError, match="must run eagerly, in float32 and with a free batch"):
        localize(model(), on_torch(), images())


def test_an_exported_graph() -> None:
    shapes = ({0: torch.export.Dim("n")},)
    for module, suspects in ((network(), []), (perturbed("5.conv2"), ["5.conv2"])):
        exported = torch.export.export(module, (torch.zeros(2, 2, 8, 8),), dynamic_shapes=shapes).module()
        found = localize(model(), model(exported), images())
        assert [one.name for one in found.suspects] == suspects
        assert not any(found.unpaired.values())


# ONNX


@pytest.mark.parametrize("level", ["disable_all", "basic", "extended", "layout", "all"])
def test_identical_across_runtimes(onnx_file: Path, level: str) -> None:
    found = localize(model(), on_onnx(onnx_file, level), images(64))
    assert not found.suspects
    assert found.first is None
    assert not any(found.unpaired.values())
    assert 0 < max(one.own.relative for one in found.layers) < 1e-5
    folded = next(one for one in found.layers if one.name == "4.conv1")
    assert {"4.conv1", "4.bn1"} < set(folded.place.covers)
    assert all(one.parameters.relative < 1e-6 for one in found.layers if one.parameters is not None)
    assert found.settings["looked_at"] == {"a": 0, "b": 0}


@pytest.mark.parametrize("layer", ["4.conv2", "8"])
def test_a_perturbed_layer_across_runtimes(onnx_file: Path, layer: str) -> None:
    for a, b in ((model(perturbed(layer)), on_onnx(onnx_file)), (on_onnx(onnx_file), model(perturbed(layer)))):
        found = localize(a, b, images())
        assert len(found.suspects) == 1
        assert layer in found.suspects[0].place.covers
        assert found.ranked_parameters()[0].name == found.suspects[0].name == found.first == found.last


def test_onnx_and_itself(onnx_file: Path) -> None:
    found = localize(on_onnx(onnx_file), on_onnx(onnx_file), images())
    assert not found.suspects
    assert found.scores.relative == 0


def test_openvino(onnx_file: Path) -> None:
    pytest.importorskip("openvino")
    other = Model(onnx_file, mean=0.5, std=0.25, runtime="openvino", precision="float32")
    assert not localize(model(), other, images()).suspects
    assert localize(model(perturbed("4.conv2")), other, images()).first == "4.conv2"


def test_what_would_be_looked_at_on_other_terms(onnx_file: Path) -> None:
    runner = runtimes.open(onnx_file, options={"config": {"session.set_denormal_as_zero": "1"}})
    with pytest.raises(ValueError, match="must run on the CPU without config"):
        localize(on_onnx(onnx_file), Model(runner, mean=0.5, std=0.25), images())


def test_layers_paired_without_names(onnx_file: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(onnx_file)
    names: dict[str, str] = {}
    for node in graph.graph.node:
        del node.metadata_props[:]
        node.name = ""
        for kind in (node.input, node.output):
            kept = {graph.graph.input[0].name, graph.graph.output[0].name, ""}
            kind[:] = [one if one in kept else names.setdefault(one, f"t{len(names)}") for one in kind]
    for tensor in graph.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    del graph.graph.value_info[:]
    onnx.save(graph, tmp_path / "nameless.onnx")
    found = localize(model(), on_onnx(tmp_path / "nameless.onnx"), images())
    assert not found.suspects
    assert not any(found.unpaired.values())


def test_a_file_for_one_image(onnx_file: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(onnx_file)
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(graph, tmp_path / "one.onnx")
    one = on_onnx(tmp_path / "one.onnx")
    assert one.runner is not None
    assert one.runner.input_shape[0] == 1
    assert not localize(model(), one, images(5), chunk=3).suspects
    assert localize(model(perturbed("4.conv1")), one, images(5), chunk=3).first == "4.conv1"


# The command line


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("typer")
    from compdx.cli import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "made.py").write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nimport test_localization as t\n"
        "same = t.model\n\n\ndef wrong():\n    return t.model(t.perturbed('4.conv1'))\n",
        encoding="utf-8",
    )
    np.savez(tmp_path / "images.npz", images=images())

    def run(*arguments: str) -> tuple[int, str]:
        kept = os.dup(1)  # which a command keeps for its answer, and does not give back
        try:
            code = app(["localize", *arguments, "--images", "images.npz"], prog_name="compdx", standalone_mode=False)
        finally:
            os.dup2(kept, 1)
            os.close(kept)
        return code, capfd.readouterr().out

    code, out = run("made:same", "made:wrong", "--out", "out", "--json")
    assert code == 1
    assert json.loads(out)["localization"] == json.loads((tmp_path / "out" / "localization.json").read_text())
    assert json.loads(out)["localization"]["first"] == "4.conv1"
    assert "4.conv1" in json.loads((tmp_path / "out" / "nodes-b.json").read_text())["results"]
    code, out = run("made:same", "made:same")
    assert code == 0
    assert "0 suspects" in out
    assert run("made:same", "nothing")[0] == 2
