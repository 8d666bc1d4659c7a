"""Model files through every runtime, against the same network in eager PyTorch."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import compdx
import tiny
from compdx import runtimes
from compdx.cli import models, options
from compdx.runtimes.base import Scale, external_data
from compdx.runtimes.batches import Parts

torch = pytest.importorskip("torch", reason="PyTorch computes what the runtimes are compared with")

DATA = Path(__file__).parent / "data"
TOLERANCE = 1e-4
Array = NDArray[Any]
Files = Callable[[str], Path]

pytestmark = [
    # What PyTorch and Keras say of themselves while they export, compile and save.
    pytest.mark.filterwarnings("ignore:.*treespec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


class Tiny(torch.nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self, *, nhwc: bool = False) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(tiny.CHANNELS, 6, 3)
        self.second = torch.nn.Conv2d(6, 8, 3, stride=2)
        self.last = torch.nn.Linear(8, tiny.CLASSES)
        self.nhwc = nhwc
        for parameter, value in zip(self.parameters(), tiny.weights(), strict=True):
            parameter.data = torch.from_numpy(value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 3, 1, 2) if self.nhwc else x
        return self.last(self.second(self.first(x).relu()).relu().mean((2, 3)))


def eager(x: Array) -> Array:
    with torch.inference_mode():
        return Tiny()(torch.from_numpy(x)).numpy()


def write_onnx(path: Path, batch: int | None, *, dtype: str = "float32") -> None:
    """The network in ONNX's own words; integers are cast to floats inside."""
    onnx = pytest.importorskip("onnx", reason="onnx writes the test's files: pip install 'compdx[onnx]'")
    from onnx import TensorProto, helper, numpy_helper

    names = ("w1", "b1", "w2", "b2", "w3", "b3")
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], strides=[2, 2]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["scores"], transB=1),
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    rows: Any = "n" if batch is None else batch
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", kind, [rows, *tiny.SHAPE])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [rows, tiny.CLASSES]),
            helper.make_tensor_value_info("f", TensorProto.FLOAT, [rows, 8]),
        ],
        [numpy_helper.from_array(value, name) for value, name in zip(tiny.weights(), names, strict=True)],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


def write_pt2(path: Path, batch: int | None) -> None:
    x = torch.from_numpy(tiny.inputs(batch or 3))
    free = ({0: torch.export.Dim("n", min=1)},) if batch is None else None
    torch.export.save(torch.export.export(Tiny().eval(), (x,), dynamic_shapes=free), path)


def import_keras() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        if "keras" not in sys.modules:
            patch.setenv("KERAS_BACKEND", "torch")
        return pytest.importorskip("keras", reason="keras is not installed: pip install 'compdx[keras]'")


def write_keras(path: Path, batch: int | None) -> None:
    keras = import_keras()
    layers = keras.layers
    image = keras.Input(shape=tiny.SHAPE_NHWC, batch_size=batch)
    x = layers.Conv2D(6, 3, activation="relu")(image)
    x = layers.Conv2D(8, 3, strides=2, activation="relu")(x)
    model = keras.Model(image, layers.Dense(tiny.CLASSES)(layers.GlobalAveragePooling2D()(x)))
    model.set_weights([value.transpose((2, 3, 1, 0) if value.ndim == 4 else None) for value in tiny.weights()])
    model.save(path)


def write_openvino(path: Path, batch: int | None) -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed: pip install 'compdx[openvino]'")
    write_onnx(path.with_suffix(".onnx"), batch)
    openvino.save_model(openvino.convert_model(path.with_suffix(".onnx")), path, compress_to_fp16=False)


def write_tvm(path: Path, batch: int | None) -> None:
    tvm = pytest.importorskip("tvm", reason="Apache TVM is not installed: pip install 'compdx[tvm]'")
    from tvm.relax.frontend.torch import from_exported_program

    write_pt2(path.with_suffix(".pt2"), batch)
    program = torch.export.load(path.with_suffix(".pt2"))
    module = from_exported_program(program, keep_params_as_input=False)
    tvm.compile(module, target=tvm.target.Target({"kind": "llvm"})).export_library(str(path))


WRITERS = {
    ".onnx": write_onnx,
    ".pt2": write_pt2,
    ".keras": write_keras,
    ".h5": write_keras,
    ".xml": write_openvino,
    ".so": write_tvm,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A file by name: ``free.onnx``, or ``three.onnx`` for a batch of three; made on first use."""
    directory = tmp_path_factory.mktemp("models")

    def file(name: str) -> Path:
        path = directory / name
        if path.suffix == ".tflite":
            made = DATA / f"tiny-{path.stem}.tflite"
            if not made.exists():
                pytest.skip("model files are in the repository, not in its source distribution; tools/make_tflite.py")
            return made
        if not path.exists():
            WRITERS[path.suffix](path, {"free": None, "one": 1, "three": 3}[path.stem])
        return path

    return file


def installed(name: str) -> None:
    """Skip the test where a runtime is missing."""
    if name == "keras":
        import_keras()
    facts = runtimes.RUNTIMES[name]
    pytest.importorskip(facts.package, reason=f"{name} is not installed: pip install 'compdx[{facts.extra}]'")


def opened(path: Path, runtime: str | None = None, **how: Any) -> runtimes.Runner:
    name = runtime or runtimes.of(path)
    installed(name)
    if name == "openvino":  # on some CPUs it would compute in bfloat16
        how.setdefault("precision", "float32")
    return runtimes.open(path, runtime=runtime, **how)


EVERY = [
    ("free.onnx", None),
    ("one.onnx", None),
    ("three.onnx", None),
    ("free.xml", None),
    ("one.xml", None),
    ("three.onnx", "openvino"),
    ("float.tflite", None),
    ("fixed.tflite", None),
    ("free.keras", None),
    ("three.h5", None),
    ("free.pt2", None),
    ("three.pt2", None),
    ("free.so", None),
    ("one.so", None),
    ("free.onnx", "tvm"),
]


@pytest.mark.parametrize(("name", "runtime"), EVERY)
def test_every_file_gives_the_scores_of_the_network(name: str, runtime: str | None, files: Files) -> None:
    runner = opened(files(name), runtime, threads=None if name.endswith((".so",)) else 1)
    nhwc = runner.runtime in ("keras", "litert")
    shape = tiny.SHAPE_NHWC if nhwc else tiny.SHAPE
    stated = {"free": None, "one": 1, "three": 3}.get(Path(name).stem, 1)
    assert runner.input_shape == (stated, *shape)
    assert runner.input_dtype == "float32"
    assert runner.classes == tiny.CLASSES
    assert json.loads(json.dumps(runner.settings)) == runner.settings
    assert runner.settings["runtime"] == (runtime or runtimes.of(name))
    assert runner.settings["version"]
    assert runner.settings["batch"].startswith("free") == (
        stated is None or name in ("one.xml", "float.tflite") or runtime == "openvino"
    )
    for count in (1, 3, 7):
        x = tiny.inputs(count, seed=count)
        scores = runner(x.transpose(0, 2, 3, 1) if nhwc else x)
        assert scores.dtype == np.float32
        assert scores.shape == (count, tiny.CLASSES)
        assert np.abs(scores - eager(x)).max() < TOLERANCE


@pytest.mark.parametrize(
    ("name", "runtime"), [("free.onnx", None), ("one.onnx", "openvino"), ("float.tflite", None), ("free.onnx", "tvm")]
)
def test_every_level_computes_the_same_function(name: str, runtime: str | None, files: Files) -> None:
    x = tiny.inputs(5)
    for level in runtimes.RUNTIMES[runtime or runtimes.of(name)].levels:
        runner = opened(files(name), runtime, level=level)
        assert runner.settings["level"] == level
        assert np.abs(runner(x.transpose(0, 2, 3, 1) if name.endswith("tflite") else x) - eager(x)).max() < TOLERANCE


@pytest.mark.slow
def test_compiled_exports_compute_the_same_function_for_all_batches(files: Files) -> None:
    for name, level in (("free.pt2", "aot_eager"), ("free.pt2", "inductor"), ("three.pt2", "inductor")):
        runner = opened(files(name), level=level)
        for count in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12):
            x = tiny.inputs(count)
            assert np.abs(runner(x) - eager(x)).max() < TOLERANCE


def test_reduced_precision_rounds_and_is_stated(files: Files) -> None:
    x = tiny.inputs(7)
    for name, precision in (("free.xml", "bfloat16"), ("free.pt2", "bfloat16"), ("free.pt2", "float16")):
        runner = opened(files(name), precision=precision)
        assert runner.settings["precision"] == precision
        error = np.abs(runner(x) - eager(x)).max()
        assert 1e-6 < error < 0.05


def test_torch_gets_its_threads_back(files: Files) -> None:
    before = torch.get_num_threads()
    seen = []
    runner = opened(files("free.pt2"), threads=before + 1)
    runner._module = lambda x: (
        [seen.append(torch.get_num_threads()), eager(x.numpy())] and torch.from_numpy(eager(x.numpy()))
    )
    runner(tiny.inputs(2))
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_a_provider_that_does_not_start_is_no_cpu(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    path = files("free.onnx")
    with pytest.raises(ValueError, match="CUDAExecutionProvider is not in this onnxruntime"):
        runtimes.open(path, device="cuda")
    # It says that it has one, and starts without.
    claimed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: claimed)
    with pytest.raises(ValueError, match="CUDAExecutionProvider did not start"):
        runtimes.open(path, device="cuda")


def test_what_the_file_alone_decides_is_not_called_float32(files: Files) -> None:
    for name in ("free.onnx", "int8.tflite"):
        assert opened(files(name), precision="float32").settings["precision"] == "file"


# Inputs and outputs that are integers


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_integer_inputs_and_outputs_go_by_the_scale_of_the_file(kind: str, files: Files) -> None:
    runner = opened(files(f"{kind}.tflite"))
    assert runner.input_dtype == kind
    given, returned = runner.settings["input_scale"], runner.settings["output_scale"]
    x = tiny.inputs(7)
    nhwc = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    scores = runner(nhwc)
    # Eight bits for images in 0..1 and for each layer.
    assert np.abs(scores - eager(x)).max() < 0.05 * np.ptp(eager(x))
    assert given["scale"] == pytest.approx(1 / 255, rel=0.01)
    # The same through the interpreter itself, one image at a time, quantized by the definition.
    interpreter = runner.session
    places = [interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]]
    for image, row in zip(nhwc, scores, strict=True):
        whole = np.floor(image.astype(np.float64) / given["scale"] + 0.5) + given["zero_point"]
        interpreter.set_tensor(
            places[0], np.clip(whole, *((-128, 127) if kind == "int8" else (0, 255)))[None].astype(kind)
        )
        interpreter.invoke()
        out = interpreter.get_tensor(places[1])[0].astype(np.float64)
        assert np.allclose((out - returned["zero_point"]) * returned["scale"], row, atol=1e-6)


def test_scale_rounds_halves_away_from_zero_and_clamps() -> None:
    scale = Scale("int8", 0.5, -3)
    x = np.array([0.25, -0.25, 0.2, 0.75, -100, 100, 62.25], np.float32)
    assert scale.encode(x).tolist() == [-2, -4, -3, -1, -128, 127, 122]
    assert scale.decode(np.array([-3, -4, 127], np.int8)).tolist() == [0.0, -0.5, 65.0]


def test_integers_without_a_scale_take_grey_levels_as_they_are(tmp_path: Path) -> None:
    write_onnx(tmp_path / "grey.onnx", None, dtype="uint8")
    runner = opened(tmp_path / "grey.onnx")
    images = np.random.default_rng(0).integers(0, 256, (7, *tiny.SHAPE), dtype=np.uint8)
    expected = eager(images.astype(np.float32))
    assert np.abs(runner(images.astype(np.float32)) - expected).max() < TOLERANCE * np.abs(expected).max()
    model = compdx.Model(tmp_path / "grey.onnx", bounds=(0, 255))
    assert np.array_equal(model(images), runner(images.astype(np.float32)))
    with pytest.raises(ValueError, match=r"must be whole numbers from 0 to 255, got .*bounds=\(0, 255\)"):
        compdx.Model(tmp_path / "grey.onnx")(images)


# What goes wrong


def test_inputs_in_the_wrong_layout_are_refused_by_name(files: Files) -> None:
    images = np.zeros((4, *tiny.SHAPE), np.uint8)
    for name, wrong, right in (("float.tflite", "NCHW", "NHWC"), ("free.onnx", "NHWC", "NCHW")):
        opened(files(name))
        with pytest.raises(ValueError, match=f'{name.partition(".")[0]}.* got .*layout="{right}"'):
            compdx.Model(files(name), layout=wrong)(images)
        assert compdx.Model(files(name), layout=right)(images).shape == (4, tiny.CLASSES)
    runner = opened(files("free.onnx"))
    with pytest.raises(ValueError, match=r"takes \[N, 2, 10, 10\], got \[1, 2, 9, 10\]$"):
        runner(np.zeros((1, 2, 9, 10), np.float32))
    with pytest.raises(ValueError, match=r"got \[0, 2, 10, 10\]"):
        runner(np.zeros((0, *tiny.SHAPE), np.float32))
    with pytest.raises(TypeError, match="x must be a float32 NumPy array, got float64"):
        runner(np.zeros((1, *tiny.SHAPE)))  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", sorted(runtimes.SUFFIXES))
def test_broken_files_are_named(suffix: str, tmp_path: Path) -> None:
    installed(runtimes.of(f"x{suffix}"))
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(b"this is no model" * 10)
    with pytest.raises(ValueError, match=rf"cannot open .*broken\{suffix}: "):
        runtimes.open(path)


def test_unknown_arguments_are_named(files: Files, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no model file .*absent\.onnx"):
        runtimes.open(tmp_path / "absent.onnx")
    with pytest.raises(ValueError, match=r"must end in one of \.onnx, .* got 'net\.bin'"):
        runtimes.of("net.bin")
    path = files("free.onnx")
    for wrong, message in (
        ({"runtime": "onnx"}, "runtime must be one of 'onnxruntime', .* got 'onnx'"),
        ({"level": "2"}, "level must be one of 'disable_all', .* for onnxruntime, got '2'"),
        ({"precision": "float16"}, "precision must be one of 'float32' for onnxruntime"),
        ({"device": "tpu"}, "device must be one of 'cpu', 'cuda' for onnxruntime, got 'tpu'"),
        ({"threads": 0}, "threads must be a positive integer, got 0"),
        ({"options": {"provider": 1}}, "options must be one of 'providers', 'config', 'output' for onnxruntime"),
    ):
        with pytest.raises(ValueError, match=message):
            runtimes.open(path, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="level must be left out for keras"):
        runtimes.open(path, runtime="keras", level="0")
    opened(path)
    for wrong, message in (
        ({"options": {"output": "labels"}}, r"options\['output'\] must be one of 'scores', 'f', got 'labels'"),
        ({"options": {"providers": ["TPUExecutionProvider"]}}, "TPUExecutionProvider is not in this onnxruntime"),
    ):
        with pytest.raises(ValueError, match=message):
            runtimes.open(path, **wrong)  # type: ignore[arg-type]


def test_another_output_can_hold_the_scores(files: Files) -> None:
    runner = opened(files("free.onnx"), options={"output": "f"})
    assert (runner.classes, runner.settings["output"]) == (8, "f")
    assert runner(tiny.inputs(2)).shape == (2, 8)


@pytest.mark.parametrize("name", sorted(runtimes.RUNTIMES))
def test_a_missing_package_is_named_with_its_extra(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = runtimes.RUNTIMES[name]
    path = tmp_path / f"net{facts.suffixes[0]}"
    path.write_bytes(b"")
    package = facts.package.partition(".")[0]

    def absent(module: str) -> Any:
        msg = f"No module named {module!r}"
        raise ModuleNotFoundError(msg, name=module)

    monkeypatch.setattr("compdx.optional.importlib.import_module", absent)
    with pytest.raises(ModuleNotFoundError, match=rf'needs {package}: pip install "compdx\[{facts.extra}\]"'):
        runtimes.open(path, runtime=name)


def test_extras_of_all_runtimes_exist() -> None:
    text = (DATA.parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    for facts in runtimes.RUNTIMES.values():
        assert f"\n{facts.extra} = [" in text


# Nothing of a file runs


def tampered(source: Path, target: Path, change: Callable[[str, bytes], bytes], **more: bytes) -> Path:
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as out:
        root = archive.namelist()[0].partition("/")[0]
        for name in archive.namelist():
            out.writestr(name, change(name, archive.read(name)))
        for name, content in more.items():
            out.writestr(f"{root}/{name}", content)
    return target


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_exports_that_would_run_something_are_refused(files: Files, tmp_path: Path) -> None:
    source, ran = files("free.pt2"), tmp_path / "ran"
    weapon = io.BytesIO()
    torch.save(Touch(ran), weapon)

    def pickled_weight(name: str, content: bytes) -> bytes:
        if name.endswith("weights_config.json"):
            return content.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
        return weapon.getvalue() if name.endswith("weight_0") else content

    def samples(name: str, content: bytes) -> bytes:
        return weapon.getvalue() if "sample_inputs" in name else content

    def node(_: str, content: bytes) -> bytes:
        return content.replace(b"torch.ops.aten.relu.default", b"torch.os.system", 1)

    def extent(name: str, content: bytes) -> bytes:
        text = f"__import__('pathlib').Path({str(ran)!r}).touch()"
        old = b"Symbol('s"
        place = content.find(old)
        if "models/" not in name or place < 0:
            return content
        end = content.index(b'"', place)
        return content[:place] + text.encode() + content[end:]

    def text(name: str, content: bytes) -> bytes:
        code = f"__import__('pathlib').Path({str(ran)!r}).touch()"
        harmful = json.dumps(f"Mod({code!r}, 7) + Symbol('s")[1:-1].encode()
        return content.replace(b"Symbol('s", harmful, 1) if "models/" in name else content

    def file(_: str, content: bytes) -> bytes:
        return content.replace(b"torch.ops.aten.relu.default", b"torch.ops.aten.from_file.default", 1)

    def region(_: str, content: bytes) -> bytes:
        return content.replace(b"torch.ops.aten.relu.default", b"torch.ops.higher_order.strict_mode", 1)

    def weight(name: str, content: bytes) -> bytes:
        code = f"""first") and exec("import pathlib;pathlib.Path({str(ran)!r}).touch()") or getattr(self, "first"""
        code = code.replace(".", "\\x2e")  # dots part the path of a weight
        documents = name.endswith(("model.json", "weights_config.json"))
        return content.replace(b'"first.weight"', json.dumps(f"{code}.weight").encode()) if documents else content

    def argument(_: str, content: bytes) -> bytes:
        return content.replace(b'"forward_arg_names": ["x"]', b'"forward_arg_names": ["x=print()"]')

    def keyword(_: str, content: bytes) -> bytes:
        old, new = (
            rb"\"builtins.dict\", \"context\": \"[]\"",
            rb"\"builtins.dict\", \"context\": \"[\\\"x=print()\\\"]\"",
        )
        return content.replace(old, new)

    def same(_: str, content: bytes) -> bytes:
        return content

    cases: list[tuple[Any, dict[str, bytes], str]] = [
        (pickled_weight, {}, "is pickled, and compdx loads no pickle"),
        (samples, {}, "holds more than tensors"),
        (node, {}, "calls 'torch.os.system', which is no operator"),
        (file, {}, "calls 'torch.ops.aten.from_file.default', which is no operator"),
        (region, {}, "calls 'torch.ops.higher_order.strict_mode', which is no operator"),
        (extent, {}, "which is no arithmetic"),
        (text, {}, "which is no arithmetic"),
        (weight, {}, "which is no name in a network"),
        (argument, {}, r"the name 'x=print\(\)', which is no name"),
        (keyword, {}, r"the name 'x=print\(\)', which is no name"),
        (same, {"data/aotinductor/model/code.so": b""}, "data/aotinductor/model/code.so, which an exported network"),
        (same, {"data/constants/custom_obj_0": pickle.dumps(Touch(ran))}, "custom_obj_0 is pickled"),
    ]
    for place, (change, more, message) in enumerate(cases):
        path = tampered(source, tmp_path / f"case{place}.pt2", change, **more)
        with pytest.raises(ValueError, match=message):
            runtimes.open(path)
    assert not ran.exists()
    # The changes are what is refused, not that the archive was written anew.
    runtimes.open(tampered(source, tmp_path / "same.pt2", same))
    # One of them, to see that they would have worked.
    torch.load(io.BytesIO(weapon.getvalue()), weights_only=False)
    assert ran.exists()


def test_an_archive_that_two_readers_read_differently(files: Files, tmp_path: Path) -> None:
    """With two lists of contents: Python takes the one before the end, torch the one that the end points to."""

    def parts(path: Path) -> tuple[bytes, bytes, int]:
        content = path.read_bytes()
        end = content.rindex(b"PK\5\6")
        count, size, start = struct.unpack("<HII", content[end + 10 : end + 20])
        return content[:start], content[start : start + size], count

    def moved(entries: bytes, by: int) -> bytes:
        found, place = bytearray(entries), 0
        while place < len(found):
            lengths = struct.unpack("<HHH", found[place + 28 : place + 34])
            (offset,) = struct.unpack("<I", found[place + 42 : place + 46])
            found[place + 42 : place + 46] = struct.pack("<I", offset + by)
            place += 46 + sum(lengths)
        return bytes(found)

    def other(_: str, content: bytes) -> bytes:
        return content.replace(b"aten.relu.default", b"aten.tanh.default", 1)

    sides = (other, lambda _, content: content)
    (hidden, hidden_list, count), (shown, shown_list, _) = (
        parts(tampered(files("free.pt2"), tmp_path / f"{place}.pt2", change)) for place, change in enumerate(sides)
    )
    pad = b"\0" * 4096
    before = pad + hidden
    whole = before + moved(hidden_list, len(pad))
    first = len(whole)
    whole += shown
    whole += moved(shown_list, first - (len(whole) - len(before)))
    whole += b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, count, count, len(hidden_list), len(before), 0)
    path = tmp_path / "two.pt2"
    path.write_bytes(whole)
    names = torch._C.PyTorchFileReader(str(path)).get_record("models/model.json")
    assert b"aten.tanh.default" in names  # what torch would have opened
    assert "tanh" not in runtimes.open(path).session.code


def test_keras_files_with_code_are_refused(tmp_path: Path) -> None:
    keras = import_keras()
    image = keras.Input(shape=tiny.SHAPE_NHWC)
    model = keras.Model(image, keras.layers.Lambda(lambda x: x[:, 0, 0] * 2)(image))
    for suffix in (".keras", ".h5"):
        model.save(tmp_path / f"code{suffix}")
        with pytest.raises(ValueError, match=r"cannot open .*(safe_mode|Lambda)"):
            runtimes.open(tmp_path / f"code{suffix}")


# Models


def test_a_file_is_a_model_with_its_identity(files: Files, tmp_path: Path) -> None:
    opened(files("free.onnx"))
    path = shutil.copy(files("free.onnx"), tmp_path / "net.onnx")
    model = compdx.Model(str(path), mean=0.5, std=0.25, level="basic", threads=1)
    images = np.random.default_rng(0).integers(0, 256, (3, *tiny.SHAPE), dtype=np.uint8)
    expected = eager(((images / np.float32(255) - np.float32(0.5)) / np.float32(0.25)).astype(np.float32))
    assert np.abs(model(images) - expected).max() < TOLERANCE
    about = model.describe()
    assert model.name == "net.onnx"
    assert about["runtime"] == model.runner.settings
    assert about["runtime"]["level"] == "basic"
    assert about["bytes"] == Path(path).stat().st_size
    assert compdx.Model(path).describe()["weights_sha256"] == about["weights_sha256"]
    assert model.replace(mean=None).runner is model.runner
    changed = bytearray(Path(path).read_bytes())
    place = changed.index(tiny.weights()[0].tobytes())
    changed[place] ^= 1
    (tmp_path / "other.onnx").write_bytes(changed)
    assert compdx.Model(tmp_path / "other.onnx").describe()["weights_sha256"] != about["weights_sha256"]
    for settings, message in (
        ({"dtype": "float16"}, "dtype must be 'float32' for the model file"),
        ({"device": "cuda"}, "cannot open .*CUDAExecutionProvider is not in this onnxruntime"),
    ):
        if settings.get("device") and compdx.ops.cuda_device_count():
            continue
        with pytest.raises(ValueError, match=message):
            compdx.Model(path, **settings)
    with pytest.raises(ValueError, match="level, threads is for model files, got Tiny"):
        compdx.Model(Tiny().eval(), level="basic", threads=1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "tvm"])
def test_weights_beside_an_onnx_file_belong_to_its_identity(runtime: str, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason="torch.onnx needs it: pip install 'compdx[onnx]'")
    path = tmp_path / "exported.onnx"
    x = torch.from_numpy(tiny.inputs(3))
    free = ({0: torch.export.Dim("n", min=1)},)
    torch.onnx.export(Tiny().eval(), (x,), path, dynamo=True, dynamic_shapes=free, verbose=False)
    assert external_data(path) == [tmp_path / "exported.onnx.data"]
    runner = opened(path, runtime=runtime)
    assert np.abs(runner(tiny.inputs(7)) - eager(tiny.inputs(7))).max() < TOLERANCE
    before = runner.fingerprint()
    data = tmp_path / "exported.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"\x01")
    assert runner.fingerprint() != before


@pytest.mark.parametrize("length", [5, 127, 128, 200])
def test_names_of_files_beside_an_onnx_file(length: int, tmp_path: Path) -> None:
    name = "w" * length
    (tmp_path / name).touch()
    size = bytes([length]) if length < 128 else bytes([length & 127 | 128, length >> 7])
    (tmp_path / "net.onnx").write_bytes(b"before\n\x08location\x12" + size + name.encode() + b"behind")
    assert external_data(tmp_path / "net.onnx") == [tmp_path / name]


def test_exports_in_training_mode_are_refused(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(200, 5))
    torch.export.save(torch.export.export(network.train(), (torch.zeros(2, 2, 10, 10),)), tmp_path / "train.pt2")
    with pytest.raises(ValueError, match="is in training mode"):
        compdx.Model(tmp_path / "train.pt2")


@pytest.mark.slow
def test_a_quantized_export_finds_its_operators_in_a_new_process(tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="torchao quantizes: pip install 'compdx[torch]'")
    x = tiny.inputs(7)
    quantized = compdx.compress.quantize(Tiny().eval(), [torch.from_numpy(tiny.inputs(32))]).model
    free = ({0: torch.export.Dim("n", min=1)},)
    torch.export.save(torch.export.export(quantized, (torch.from_numpy(x),), dynamic_shapes=free), tmp_path / "q.pt2")
    np.save(tmp_path / "x.npy", x)
    code = "import numpy, compdx; numpy.save('scores.npy', compdx.runtimes.open('q.pt2')(numpy.load('x.npy')))"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    with torch.inference_mode():
        expected = quantized(torch.from_numpy(x)).numpy()
    assert np.abs(np.load(tmp_path / "scores.npy") - expected).max() < TOLERANCE
    assert np.abs(expected - eager(x)).max() > TOLERANCE


@pytest.mark.gpu
def test_an_export_runs_on_cuda(files: Files) -> None:
    images = (255 * tiny.inputs(5)).astype(np.uint8)
    model = compdx.Model(files("free.pt2"), device="cuda")
    scores = model(torch.from_numpy(images).cuda())
    assert (model.device, str(scores.device), model.runner.settings["device"]) == ("cuda:0", "cuda:0", "cuda")
    assert np.abs(scores.cpu().numpy() - eager((images / np.float32(255)).astype(np.float32))).max() < 1e-2


def test_interpreters_of_their_own_serve_several_threads(files: Files) -> None:
    runner = opened(files("fixed.tflite"), threads=3)
    assert runner.settings["batch"] == "one image a call, 3 calls at a time"
    x = tiny.inputs(20)
    assert np.abs(runner(x.transpose(0, 2, 3, 1)) - eager(x)).max() < TOLERANCE


def test_two_runtimes_are_searched_verified_and_repaired(files: Files) -> None:
    opened(files("one.onnx"))
    opened(files("int8.tflite"))
    pytest.importorskip("sklearn", reason="scikit-learn calibrates: pip install 'compdx[demo]'")
    pair = compdx.Pair(
        compdx.Model(files("one.onnx"), threads=2), compdx.Model(files("int8.tflite"), layout="NHWC", threads=1)
    )
    images = (255 * tiny.inputs(24)).astype(np.uint8)
    findings = compdx.search(pair, images, budget=300, chains=8, progress=False)
    assert len(findings) >= 20
    assert compdx.verify(pair, findings).all_stable
    a, b = (model(findings.images).argmax(axis=1) for model in (pair.original, pair.compressed))
    table = findings.table.to_pydict()
    assert a.tolist() == table["original_label"]
    assert b.tolist() == table["compressed_label"]
    labels = pair.original(images).argmax(axis=1)
    repaired = compdx.repair.calibrate(pair, findings, train=compdx.Seeds(images, labels), classifier="tree")
    assert repaired.pair.compressed(images).shape == (24, tiny.CLASSES)


# The command line


def command(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and answer of a command of compdx."""
    done = subprocess.run(
        [sys.executable, "-m", "compdx.cli", *arguments, "--json"], capture_output=True, text=True, timeout=120
    )
    return done.returncode, json.loads(done.stdout)


@pytest.mark.slow
def test_the_command_line_takes_files(files: Files, tmp_path: Path) -> None:
    opened(files("free.onnx"))
    opened(files("uint8.tflite"))
    images = (255 * tiny.inputs(12)).astype(np.uint8)
    np.savez(tmp_path / "seeds.npz", images=images, labels=eager(images / np.float32(255)).argmax(axis=1))
    names = ("--original", str(files("free.onnx")), "--compressed", str(files("uint8.tflite")))
    own = ("--original-option", "level=basic", "--compressed-option", "layout=NHWC", "--threads", "1")
    seeds, run = ("--seeds", str(tmp_path / "seeds.npz")), tmp_path / "run"

    code, answer = command("search", *names, *own, *seeds, "--out", str(run), "--budget", "200", "--quiet")
    assert (code, answer["findings"]) == (1, 12)
    header = json.loads((run / "run.json").read_text(encoding="utf-8"))["pair"]
    assert (header["original"]["runtime"]["level"], header["original"]["runtime"]["threads"]) == ("basic", 1)
    assert header["compressed"]["inputs"]["layout"] == "NHWC"

    code, answer = command("verify", str(run), *names, *own, "--quiet")
    assert (code, answer["grades"]["stable"]) == (0, 12)

    code, answer = command("doctor", *names, *seeds)
    assert code == 2
    assert any("accepts layout='NHWC'" in problem["text"] for problem in answer["problems"])


@pytest.mark.slow
def test_the_published_pair_is_searched_from_its_files(data_sets: Path, tmp_path: Path) -> None:
    models = data_sets.parent / "peers" / "dflare"
    if not models.is_dir():
        pytest.skip("DFlare's model files belong in peers/dflare beside the data sets")
    installed("keras")
    opened(models / "lenet1-quan.lite")
    code, answer = command(
        *("search", "--original", str(models / "lenet1.h5"), "--compressed", str(models / "lenet1-quan.lite")),
        *("--seeds", str(data_sets / "mnist" / "test.parquet"), "--limit", "100", "--out", str(tmp_path / "run")),
        *("--layout", "NHWC", "--outputs", "probabilities", "--quiet"),
    )
    assert code == 1
    assert answer["findings"] >= 98
    assert answer["summary"]["already_deviating"] <= 2


def test_options_of_one_model_go_before_the_common_ones(files: Files) -> None:
    opened(files("free.onnx"))
    own = options.own(["mean=0.4,0.5", "class-offset=1", "level=basic"], None)
    assert own == ({"mean": (0.4, 0.5), "class_offset": 1, "level": "basic"}, {})
    path = str(files("free.onnx"))
    pair = models.pair(path, path, {"mean": 0.1, "std": 0.5}, None, 1, own)
    assert (pair.original.inputs.mean, pair.original.inputs.std, pair.compressed.inputs.mean) == ((0.4, 0.5), 0.5, 0.1)
    assert (pair.original.class_offset, pair.compressed.class_offset) == (1, 0)
    assert [model.runner.settings["level"] for model in (pair.original, pair.compressed)] == ["basic", "all"]
    for texts in (["size=3"], ["level"]):
        with pytest.raises(ValueError, match="--compressed-option must be KEY=VALUE with one of the keys mean, "):
            options.own(None, texts)


# Parts


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("size", [1, 4])
def test_parts_keep_the_order_and_drop_the_filling(workers: int, size: int) -> None:
    asked: list[int] = []

    def call(x: Array) -> Array:
        asked.append(len(x))
        return 2 * x

    for count in (1, 2, 4, 5, 12, 13):
        x = np.arange(2 * count).reshape(count, 2)
        assert np.array_equal(Parts([call] * workers, size)(x), 2 * x)
    assert set(asked) == {size}
