"""`Inputs`, `Model` and `Pair`: what models are fed, what they may return, and what is said when they do not."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest

from compdx.model import Inputs, Model, Pair, import_optional

torch = pytest.importorskip("torch")

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 3, 6, 7), dtype=np.uint8)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def constant(value: Any, dtype: Any = np.float32) -> Any:
    """A callable that returns these rows whatever it is asked."""
    return lambda x: np.tile(np.asarray(value, dtype), (len(x), 1))


class Recorder:
    """A callable that keeps what it was given and scores two classes."""

    def __call__(self, x: Any) -> Any:
        self.x = x
        return np.zeros((len(x), 2), np.float32)


class TorchRecorder(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        self.x = x
        self.inference = torch.is_inference_mode_enabled()
        return torch.zeros(len(x), 2, dtype=x.dtype, device=x.device)


# ---- Inputs


def test_table_is_to_tensor_and_normalize_bit_for_bit() -> None:
    levels = torch.arange(256, dtype=torch.uint8).repeat(3, 1)
    expected = levels.to(torch.float32).div(255)
    expected = expected.sub_(torch.tensor(MEAN)[:, None]).div_(torch.tensor(STD)[:, None])
    assert Inputs(mean=MEAN, std=STD).table(3).tobytes() == expected.numpy().tobytes()


def test_table_maps_to_bounds_first() -> None:
    table = Inputs(mean=127.5, std=127.5, bounds=(0, 255)).table(2)
    assert table.shape == (2, 256)
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table[:, [0, 255]], [[-1, 1], [-1, 1]])


def test_equal_preprocessing_compares_equal_however_it_is_written() -> None:
    assert Inputs(mean=[0.5, 1], std=np.float32(2)) == Inputs(mean=(0.5, 1.0), std=2.0)
    assert hash(Inputs(mean=[0.5])) == hash(Inputs(mean=(0.5,)))


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"std": 0.0}, ValueError, "std must be positive, got 0.0"),
        ({"std": (1.0, -1.0)}, ValueError, "std must be positive"),
        ({"mean": float("nan")}, ValueError, "mean must be finite"),
        ({"mean": "grey"}, TypeError, "mean must be a number or one number per channel, got 'grey'"),
        ({"mean": ()}, ValueError, "mean must be"),
        ({"bounds": (1.0, 0.0)}, ValueError, "low < high"),
        ({"bounds": (0.0, 1.0, 2.0)}, ValueError, "bounds must be two numbers"),
        ({"layout": "CHW"}, ValueError, "layout must be one of 'NCHW', 'NHWC', got 'CHW'"),
        ({"dtype": "int8"}, ValueError, "dtype must be one of"),
    ],
)
def test_inputs_name_what_is_wrong(settings: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Inputs(**settings)


def test_table_wants_one_value_or_one_per_channel() -> None:
    with pytest.raises(ValueError, match=r"mean must have one value or one per channel \(1\), got 3"):
        Inputs(mean=MEAN).table(1)


# ---- what a model is fed


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_callable_gets_a_normalised_array_in_its_layout(layout: Any) -> None:
    recorder = Recorder()
    scores = Model(recorder, mean=MEAN, std=STD, layout=layout)(IMAGES)
    expected = (IMAGES / np.float32(255) - np.float32(MEAN)[:, None, None]) / np.float32(STD)[:, None, None]
    assert isinstance(recorder.x, np.ndarray)
    assert recorder.x.dtype == np.float32
    np.testing.assert_array_equal(recorder.x, expected if layout == "NCHW" else expected.transpose(0, 2, 3, 1))
    assert isinstance(scores, np.ndarray)
    assert scores.dtype == np.float32


def test_a_module_gets_a_tensor_under_inference_mode() -> None:
    module = TorchRecorder().eval()
    scores = Model(module, layout="NHWC")(IMAGES)
    assert module.inference
    assert tuple(module.x.shape) == (5, 6, 7, 3)
    assert isinstance(scores, np.ndarray)


def test_channels_last_is_a_view_of_nhwc_memory() -> None:
    module = TorchRecorder().eval()
    model = Model(module, memory_format="channels_last")
    assert model.inputs.layout == "NHWC"
    model(IMAGES)
    x = np.ascontiguousarray(IMAGES.transpose(0, 2, 3, 1), dtype=np.float32)
    model.forward(x)
    assert tuple(module.x.shape) == (5, 3, 6, 7)
    assert module.x.is_contiguous(memory_format=torch.channels_last)
    assert module.x.data_ptr() == x.ctypes.data
    assert model.replace(name="again").inputs == model.inputs


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_reaches_a_module_rounded_to_nearest(dtype: Any) -> None:
    module = TorchRecorder().eval()
    scores = Model(module, dtype=dtype, mean=0.5)(IMAGES)
    expected = torch.from_numpy(IMAGES / np.float32(255) - np.float32(0.5)).to(getattr(torch, dtype))
    assert module.x.dtype == getattr(torch, dtype)
    assert torch.equal(module.x, expected)
    assert scores.dtype == np.float32


def test_half_precision_reaches_a_callable_as_float16() -> None:
    recorder = Recorder()
    Model(recorder, dtype="float16")(IMAGES)
    np.testing.assert_array_equal(recorder.x, (IMAGES / np.float32(255)).astype(np.float16))


def test_read_only_input_is_fine() -> None:
    x = np.zeros((2, 1, 4, 4), np.float32)
    x.flags.writeable = False
    model = Model(torch.nn.Flatten().eval())
    for _ in range(2):
        assert model.forward(x).shape == (2, 16)


def test_a_model_that_writes_into_its_input_does_not_disturb_the_other() -> None:
    def greedy(x: Any) -> Any:
        x *= 0
        return np.zeros((len(x), 2), np.float32)

    second = Recorder()
    pair = Pair(greedy, second)
    for _ in range(3):
        x = np.ones((4, 1, 2, 2), np.float32)
        pair.forward(x)
        assert x.min() == 1
        assert second.x.min() == 1


def test_a_tensor_is_as_good_as_an_array() -> None:
    model = Model(torch.nn.Flatten().eval())
    np.testing.assert_array_equal(model(torch.from_numpy(IMAGES)), model(IMAGES))


def test_forward_names_a_wrong_dtype() -> None:
    with pytest.raises(TypeError, match=r"forward\(\) of model 'Recorder' takes float32 inputs.*got uint8"):
        Model(Recorder()).forward(IMAGES)


@pytest.mark.parametrize(
    ("images", "error"), [(IMAGES[0], ValueError), (IMAGES.astype(np.float32), TypeError), ("picture", ValueError)]
)
def test_images_are_checked(images: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="images"):
        Model(Recorder())(images)


# ---- what a model may return


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_scores_become_float32(dtype: Any) -> None:
    scores = Model(constant([1.5, -2.0], dtype))(IMAGES)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, [[1.5, -2.0]] * 5)


def test_class_offset_drops_the_first_columns() -> None:
    scores = Model(constant([9.0, 1.0, 2.0]), class_offset=1)(IMAGES)
    np.testing.assert_array_equal(scores, [[1.0, 2.0]] * 5)
    assert scores.flags.c_contiguous


def test_scores_that_are_not_finite_pass_through() -> None:
    row = [np.nan, np.inf, -np.inf]
    for outputs in ("logits", "probabilities"):
        np.testing.assert_array_equal(Model(constant(row), outputs=outputs)(IMAGES), [row] * 5)
    np.testing.assert_array_equal(Model(constant([1e300, 0.0], np.float64))(IMAGES), [[np.inf, 0.0]] * 5)


@pytest.mark.parametrize("row", [[0.2, 0.3], [1.4, -0.4], [3.0, 5.0]])
def test_declared_probabilities_are_checked_on_the_first_call(row: list[float]) -> None:
    with pytest.raises(ValueError, match=r"'net' is declared to return probabilities.*use outputs=\"logits\""):
        Model(constant(row), outputs="probabilities", name="net")(IMAGES)


def test_probabilities_count_the_background_class() -> None:
    scores = Model(constant([0.9, 0.06, 0.04]), outputs="probabilities", class_offset=1)(IMAGES)
    np.testing.assert_array_equal(scores, np.float32([[0.06, 0.04]] * 5))


@pytest.mark.parametrize(
    ("out", "error", "text"),
    [
        (lambda x: np.zeros(len(x), np.float32), ValueError, r"scores \[5, K\] with K >= 2, got \[5\]"),
        (lambda x: np.zeros((len(x), 1), np.float32), ValueError, r"got \[5, 1\]"),
        (lambda x: np.zeros((len(x) - 1, 3), np.float32), ValueError, r"got \[4, 3\]"),
        (lambda x: np.zeros((len(x), 3), np.int64), TypeError, r"floating scores \[N, K\], got int64 \[5, 3\]"),
        (lambda x: [np.zeros((len(x), 3))], TypeError, "got list of 1"),
        (lambda x: {"logits": x, "loss": x}, TypeError, "got dict of 2"),
        (lambda _: None, TypeError, "got NoneType"),
    ],
)
def test_bad_scores_are_named(out: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        Model(out, name="net")(IMAGES)
    assert "'net'" in str(caught.value)


def test_too_few_classes_after_the_offset() -> None:
    with pytest.raises(ValueError, match=r"K >= 2 after dropping 2, got \[5, 3\]"):
        Model(constant([1.0, 2.0, 3.0]), class_offset=2)(IMAGES)


# ---- what can be a model


@pytest.mark.parametrize("part", [False, True])
def test_training_mode_is_refused_with_a_hint(part: bool) -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout()).eval()
    (module[1] if part else module).train()
    with pytest.raises(ValueError, match=r"'Sequential' is in training mode.*\.eval\(\)"):
        Model(module)
    assert Model(module, allow_training=True).training


def export(module: Any) -> Any:
    return torch.export.export(module, (torch.zeros(2, 4),)).module()


def test_exported_modules_are_judged_by_their_operators() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout())
    quiet, noisy = export(net.eval()), export(net.train())
    assert quiet.training  # the flag that must not be believed
    assert not Model(quiet).training
    with pytest.raises(ValueError, match="move_exported_model_to_eval"):
        Model(noisy)


@pytest.mark.parametrize(
    ("obj", "settings", "error", "text"),
    [
        (3, {}, TypeError, "obj must be a torch module or a callable, got int"),
        (Recorder(), {"class_offset": -1}, ValueError, "class_offset"),
        (
            Recorder(),
            {"outputs": "labels"},
            ValueError,
            "outputs must be one of 'logits', 'probabilities', got 'labels'",
        ),
        (Recorder(), {"device": "gpu"}, ValueError, "device must be 'cpu', 'cuda' or 'cuda:<index>', got 'gpu'"),
        (Recorder(), {"dtype": "bfloat16"}, ValueError, "dtype='bfloat16' needs a torch module"),
        (Recorder(), {"memory_format": "channels_last"}, ValueError, "needs a torch module"),
        (torch.nn.Linear(1, 2).eval(), {"device": "cuda"}, ValueError, "parameters of model 'Linear' are on 'cpu'"),
    ],
)
def test_contradicting_settings_are_named(obj: Any, settings: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Model(obj, **settings)


def test_a_model_is_not_wrapped_twice() -> None:
    with pytest.raises(TypeError, match=r"compdx\.Model"):
        Model(Model(Recorder()))


def test_replace_keeps_what_is_not_named() -> None:
    model = Model(Recorder(), mean=0.5, layout="NHWC", class_offset=1, name="net", outputs="probabilities")
    other = model.replace(mean=None)
    assert other.inputs == Inputs(layout="NHWC")
    assert (other.name, other.class_offset, other.outputs) == ("net", 1, "probabilities")


def test_replace_with_another_object_keeps_the_settings_and_no_twin() -> None:
    twin, other = torch.nn.Linear(4, 3).eval(), Recorder()
    model = Model(torch.nn.Linear(4, 3).eval(), twin=twin, mean=0.5, name="net", outputs="probabilities")
    assert model.replace(name="again").twin is twin
    replaced = model.replace(other, class_offset=2)
    assert (replaced.inputs, replaced.name, replaced.outputs) == (model.inputs, "net", "probabilities")
    assert replaced.class_offset == 2
    with pytest.raises(TypeError, match="net"):
        _ = replaced.twin


def test_describe_is_json() -> None:
    about = json.loads(json.dumps(Pair(torch.nn.Linear(4, 3).eval(), Recorder()).describe()))
    assert about["original"]["parameters"] == 15
    assert about["original"]["bytes"] == 60
    assert about["original"]["torch"] == torch.__version__
    assert about["original"]["type"].endswith("Linear")
    assert about["compressed"]["parameters"] is None
    assert about["compressed"]["weights_sha256"] is None
    assert about["compressed"]["inputs"]["bounds"] == [0.0, 1.0]
    assert about["shared_inputs"] is True


def weights(module: Any) -> Any:
    return Model(module.eval()).describe()["weights_sha256"]


def test_weights_are_told_apart_by_name_type_shape_and_bytes() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.BatchNorm1d(2))
    before = weights(net)
    assert len(before) == 64
    assert weights(copy.deepcopy(net)) == before
    with torch.no_grad():
        net[0].weight.mul_(-1)
    assert weights(net) != before
    with torch.no_grad():
        net[0].weight.mul_(-1)
    assert weights(net) == before
    net[1].running_mean += 1
    assert weights(net) != before
    net[1].running_mean -= 1
    assert weights(net.to(torch.bfloat16)) != before
    zeros = [torch.nn.Linear(*shape, bias=False) for shape in ((2, 6), (6, 2), (3, 4))]
    for linear in zeros:
        torch.nn.init.zeros_(linear.weight)
    assert len({weights(linear) for linear in zeros}) == 3
    assert weights(torch.nn.ReLU()) is None


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")  # deprecated, and yet what users have
def test_weights_of_exported_and_packed_modules() -> None:
    nets = [torch.nn.Sequential(torch.nn.Linear(4, 2)).eval() for _ in range(2)]
    exported = [torch.export.export(net, (torch.zeros(2, 4),)).module() for net in nets]
    assert len({Model(module).describe()["weights_sha256"] for module in exported}) == 2
    packed = []
    for scale in (0.5, 0.25):
        module = torch.nn.Module()
        values = torch.quantize_per_tensor(torch.ones(3), scale, 0, torch.qint8)
        module.register_buffer("values", values)
        module.register_buffer("sparse", torch.eye(3).to_sparse())
        module.forward = lambda x: x
        packed.append(weights(module))
    assert packed[0] == packed[1], "the same values"
    module.values = torch.quantize_per_tensor(torch.ones(3) * 2, scale, 0, torch.qint8)
    assert weights(module) != packed[1]


def test_a_missing_package_is_named_with_the_line_that_brings_it() -> None:
    with pytest.raises(ModuleNotFoundError, match=r'quantization needs no_such: pip install "compdx\[demo\]"'):
        import_optional("no_such.part", "quantization", "demo")


# ---- Pair


def test_a_pair_normalises_once_when_both_want_the_same() -> None:
    a, b = Recorder(), Recorder()
    pair = Pair(Model(a, mean=0.5), Model(b, mean=[0.5]).replace(mean=0.5))
    assert pair.inputs == Inputs(mean=0.5)
    pair(IMAGES)  # each gets a copy, until it has shown that it does not write into it
    pair(IMAGES)
    assert a.x is b.x


def test_a_pair_with_different_inputs_normalises_for_each() -> None:
    a, b = Recorder(), Recorder()
    pair = Pair(Model(a), Model(b, layout="NHWC", bounds=(0, 255)))
    assert pair.inputs is None
    pair(IMAGES)
    np.testing.assert_array_equal(a.x, IMAGES / np.float32(255))
    np.testing.assert_array_equal(b.x, IMAGES.transpose(0, 2, 3, 1))
    with pytest.raises(ValueError, match=r"forward\(\) needs models that want the same input"):
        pair.forward(a.x)


def test_a_pair_names_both_models_when_the_classes_differ() -> None:
    pair = Pair(Model(constant([1.0, 2.0]), name="big"), Model(constant([1.0, 2.0, 3.0]), name="small"))
    with pytest.raises(ValueError, match=r"K = 2 from original 'big' and K = 3 from compressed 'small'"):
        pair(IMAGES)


def test_a_pair_is_on_one_device() -> None:
    with pytest.raises(ValueError, match=r"one device, got original 'Recorder' on 'cpu' and .* on 'cuda:0'"):
        Pair(Recorder(), Model(Recorder(), device="cuda"))


def test_pair_of() -> None:
    pair = Pair(Recorder(), Recorder())
    assert Pair.of(pair) is pair
    assert isinstance(Pair.of((Recorder(), Recorder())), Pair)
    with pytest.raises(TypeError, match="pair must be"):
        Pair.of([Recorder(), Recorder()])  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cuda_inputs_equal_those_of_the_cpu(dtype: Any) -> None:
    host, device = TorchRecorder().eval(), TorchRecorder().eval()
    Model(host, mean=MEAN, std=STD, dtype=dtype)(IMAGES)
    scores = Model(device, mean=MEAN, std=STD, dtype=dtype, device="cuda")(IMAGES)
    assert scores.is_cuda
    assert scores.dtype == torch.float32
    assert torch.equal(host.x, device.x.cpu())
