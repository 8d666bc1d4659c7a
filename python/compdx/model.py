"""Anything that maps images to class scores, with its preprocessing, and pairs of them."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from compdx import ops, runtimes
from compdx.compressed import Compressed
from compdx.inputs import CARRIER, Dtype, choose
from compdx.inputs import Inputs as Inputs
from compdx.inputs import Layout as Layout
from compdx.optional import import_optional as import_optional

Outputs = Literal["logits", "probabilities"]
MemoryFormat = Literal["contiguous", "channels_last"]
Array = Any
"""A NumPy array on the CPU, a torch tensor on CUDA."""


class Model:
    """A classifier under test, with the preprocessing it expects.

    Args:
        obj: A torch module, any callable, or a model file. It gets the normalised input and returns floating scores
            ``[N, K]``, K >= 2. A torch module is called under ``torch.inference_mode()`` with a tensor on its own
            device; any other callable gets a NumPy array on the CPU and a torch tensor on CUDA. A `Compressed` stands
            for its model and brings its twin. The path of a file is opened by `compdx.runtimes.open`.
        mean, std, bounds, dtype: See `Inputs`.
        layout: What ``obj`` gets: ``"NCHW"`` is ``[N, C, H, W]``, ``"NHWC"`` is ``[N, H, W, C]``.
        outputs: What the scores are, ``"logits"`` or ``"probabilities"``; probabilities are checked on the first call.
        class_offset: Number of leading score columns to drop, 1 for a model with a background class.
        device: Where the model runs, ``"cpu"`` or ``"cuda[:i]"`` (``"cuda"`` is ``"cuda:0"``). ``None``: the device of
            its first parameter or buffer, else ``"cpu"``.
        name: What messages call it. ``None``: the name of its type or function.
        memory_format: ``"channels_last"`` hands a torch module ``[N, C, H, W]`` that lies in memory as
            ``[N, H, W, C]``, without a copy.
        allow_training: Accept a module in training mode, whose scores depend on the batch and change between calls.
        twin: A torch module with the same input and output, in eval mode and on the same device, through which a
            white-box method takes gradients where ``obj`` has none. ``None``: ``obj`` itself.
        runtime, level, precision, threads: How a model file is opened, see `compdx.runtimes.open`; for files only.

    Attributes:
        compressed: The `Compressed` that the model was made of, or ``None``.
        runner: The `compdx.runtimes.Runner` of a model file, or ``None``. It computes on ``device``, from and to arrays
            in main memory.

    Raises:
        FileNotFoundError: There is no such model file.
        ModuleNotFoundError: The runtime of a model file is not installed.
        TypeError: ``obj`` cannot be called, ``twin`` is no torch module.
        ValueError: Settings contradict each other or the module; the module is in training mode; a file cannot be
            opened.

    Scores come back as float32, NumPy on the CPU and torch on CUDA; NaN and infinity pass through untouched. A model
    that writes into its input is noticed on the first call and given a copy from then on. Nothing is random. On CUDA
    the current stream is used, and only the first call waits for it.
    """

    def __init__(
        self,
        obj: Any,
        *,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        bounds: tuple[float, float] = (0.0, 1.0),
        layout: Layout = "NCHW",
        dtype: Dtype = "float32",
        outputs: Outputs = "logits",
        class_offset: int = 0,
        device: str | None = None,
        name: str | None = None,
        memory_format: MemoryFormat = "contiguous",
        allow_training: bool = False,
        twin: Any = None,
        runtime: str | None = None,
        level: str | None = None,
        precision: str | None = None,
        threads: int | None = None,
    ) -> None:
        opening = {"runtime": runtime, "level": level, "precision": precision, "threads": threads}
        if isinstance(obj, (str, os.PathLike)):
            obj = runtimes.open(obj, device=str(device or "cpu"), **opening)  # type: ignore[arg-type]
        elif given := [key for key, value in opening.items() if value is not None]:
            msg = f"{', '.join(given)} is for model files, got {type(obj).__name__}"
            raise ValueError(msg)
        self.runner = obj if isinstance(obj, runtimes.Runner) else None
        self.compressed = obj if isinstance(obj, Compressed) else None
        if isinstance(obj, Compressed):
            twin = obj.twin if twin is None else twin
            name = f"{obj.record['scheme']} {_name_of(obj.model)}" if name is None else name
            obj = obj.model
        if isinstance(obj, Model):
            msg = f"obj must be a torch module or a callable, got the compdx.Model {obj.name!r}; use its replace()"
            raise TypeError(msg)
        if not callable(obj):
            hint = "; pass its .module()" if type(obj).__name__ == "ExportedProgram" else ""
            msg = f"obj must be a torch module or a callable, got {type(obj).__name__}{hint}"
            raise TypeError(msg)
        if isinstance(class_offset, bool) or not isinstance(class_offset, int) or class_offset < 0:
            msg = f"class_offset must be a non-negative integer, got {class_offset!r}"
            raise ValueError(msg)
        self._obj = obj
        self._torch = _is_torch_module(obj)
        self.name: str = name if name is not None else _name_of(obj)
        self.outputs: Outputs = choose("outputs", outputs, ("logits", "probabilities"))
        self.class_offset = class_offset
        self.device = self._place(device)
        self.memory_format = self._check_format(memory_format, layout, dtype)
        self.inputs = Inputs(
            mean=mean,
            std=std,
            bounds=bounds,
            layout="NHWC" if memory_format == "channels_last" else layout,
            dtype=dtype,
        )
        self.allow_training = allow_training
        if self.training and not allow_training:
            msg = (
                f"model {self.name!r} is in training mode: its scores depend on the batch and change between calls. "
                "Call .eval() on it first (torchao.quantization.pt2e.move_exported_model_to_eval for an exported one), "
                "or pass allow_training=True to measure it as it is"
            )
            raise ValueError(msg)
        self._twin = self._check_twin(twin)
        self._writes_input: bool | None = None
        self._outputs_checked = outputs == "logits"
        self._usual: tuple[Any, ...] | None = None  # type, extents and device of scores that need no more looking at

    def __call__(self, images: Array) -> Array:
        """Scores of ``images`` (uint8 ``[N, C, H, W]``), float32 ``[N, K]``: normalise, then `forward`."""
        return self.forward(normalize(images, self.inputs, self.device))

    def forward(self, x: Array) -> Array:
        """Scores of ``x``, which already is the model input: what ``mutate`` and `ops.normalize` write for ``inputs``.

        Args:
            x: Float32, or the uint16 bit patterns of a 16-bit dtype; a torch tensor may have the 16-bit dtype itself.

        Returns:
            Float32 ``[N, K]``.

        Raises:
            TypeError, ValueError: ``x`` has another dtype, or the scores are not floating ``[N, K]``.
        """
        if self._writes_input is False:
            return self._run(x)
        # Both models of a pair share one input: what the first overwrites in place, the second would be asked about.
        own = x.copy() if isinstance(x, np.ndarray) else x.clone()
        scores = self._run(own)
        if self._writes_input is None:
            self._writes_input = not _same_bits(own, x)
        return scores

    def bind(self, x: Array) -> Callable[[], Array]:
        """`forward` for an input that stays where it is: the function returned scores what ``x`` holds at each call.

        What never changes is looked at in the first call only, so that a search pays for the model and little else.
        From the second call on, nothing waits for the device, which a CUDA graph needs.
        """
        argument: Any = None
        batch = len(x)

        def scores() -> Array:
            nonlocal argument
            if argument is not None:
                return self._ask(argument, batch)
            out = self.forward(x)
            if self._writes_input is False:
                argument = self._argument(x)
            return out

        return scores

    def compiled(self) -> Model:
        """The same model, its module compiled by ``torch.compile`` for one batch size; the first call takes long.

        Raises:
            TypeError: The model is no torch module.
        """
        if not self._torch:
            msg = f"compile: expected torch modules, but model {self.name!r} is none"
            raise TypeError(msg)
        twin = copy.copy(self)
        twin._obj = sys.modules["torch"].compile(self._obj, dynamic=False)
        twin._writes_input = twin._usual = None
        return twin

    @property
    def training(self) -> bool:
        """Whether any part of a torch module, or of that in a file, is in training mode; False for other callables."""
        if self.runner is not None:  # Keras tells its layers at every call, whatever torch's flag says
            return self.runner.runtime == "torch" and _in_training(self.runner.session)
        return self._torch and _in_training(self._obj)

    @property
    def module(self) -> Any:
        """The torch module that gives the labels; ``None`` for other callables."""
        return self._obj if self._torch else None

    @property
    def twin(self) -> Any:
        """The torch module through which gradients are taken: the ``twin`` that was given, else the model itself.

        Raises:
            TypeError: The model is no torch module and was given no twin.
        """
        if self._twin is not None:
            return self._twin
        if not self._torch:
            msg = f"model {self.name!r} is no torch module, so it has no gradients; give it a twin= that has"
            raise TypeError(msg)
        return self._obj

    def replace(self, obj: Any = None, /, **changes: Any) -> Model:
        """The same model with other settings, or another object with these settings; keywords as in the constructor.

        A twin that the constructor was given belongs to its model: another object comes without it.
        """
        channels_last = self.memory_format == "channels_last"
        settings: dict[str, Any] = {
            **dataclasses.asdict(self.inputs),
            "layout": "NCHW" if channels_last else self.inputs.layout,
            "outputs": self.outputs,
            "class_offset": self.class_offset,
            "device": self.device,
            "name": self.name,
            "memory_format": self.memory_format,
            "allow_training": self.allow_training,
        }
        if obj is None:
            obj, settings["twin"] = (self._obj if self.compressed is None else self.compressed), self._twin
        return Model(obj, **{**settings, **changes})

    def describe(self) -> dict[str, Any]:
        """All that is known of the model, as JSON values: name, type, size, weights, preprocessing, device, version.

        ``weights_sha256`` is None for a callable, and for a module whose ``state_dict()`` holds no tensor; of a model
        file it is that of its bytes, and ``runtime`` says how it runs.
        """
        kind = self._obj if hasattr(self._obj, "__qualname__") else type(self._obj)
        about: dict[str, Any] = {
            "name": self.name,
            "type": f"{kind.__module__}.{kind.__qualname__}",
            "device": self.device,
            "inputs": {**dataclasses.asdict(self.inputs), "memory_format": self.memory_format},
            "outputs": self.outputs,
            "class_offset": self.class_offset,
            "training": self.training,
            "parameters": None,
            "bytes": None,
            "weights_sha256": None,
            "torch": None,
        }
        if self.runner is not None:
            about["bytes"] = sum(file.stat().st_size for file in self.runner.files)
            about["weights_sha256"] = self.runner.fingerprint()
            about["runtime"] = self.runner.settings
        if self._torch:
            weights = list(self._obj.parameters())
            tensors = [*weights, *self._obj.buffers()]
            about["parameters"] = sum(tensor.numel() for tensor in weights)
            about["bytes"] = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            about["weights_sha256"] = weights_sha256(self._obj)
            about["torch"] = str(sys.modules["torch"].__version__)
        if self._twin is not None and self._twin is not self._obj:
            about["twin_sha256"] = weights_sha256(self._twin)
        if self.compressed is not None:
            about["compression"] = self.compressed.record
        return about

    def __repr__(self) -> str:
        return f"Model({self.name!r}, device={self.device!r}, outputs={self.outputs!r})"

    def _place(self, device: str | None) -> str:
        home = None
        if self._torch:
            tensor = next(iter(_tensors(self._obj)), None)
            home = None if tensor is None else str(tensor.device)
        elif self.runner is not None:
            home = _whole(self.runner.settings["device"])
        if device is None:
            return home or "cpu"
        wanted = _whole(str(device))
        kind, _, index = wanted.partition(":")
        if wanted != "cpu" and not (kind == "cuda" and index.isdigit()):
            msg = f"device must be 'cpu', 'cuda' or 'cuda:<index>', got {str(device)!r}"
            raise ValueError(msg)
        if home is not None and home != wanted:
            msg = f"device is {wanted!r}, but the parameters of model {self.name!r} are on {home!r}; move one of them"
            raise ValueError(msg)
        return wanted

    def _check_format(self, memory_format: MemoryFormat, layout: Layout, dtype: Dtype) -> MemoryFormat:
        choose("memory_format", memory_format, ("contiguous", "channels_last"))
        if memory_format == "channels_last":
            if not self._torch:
                msg = f"memory_format='channels_last' needs a torch module, got {self.name!r}; use layout='NHWC'"
                raise ValueError(msg)
            if layout != "NCHW":
                msg = f"memory_format='channels_last' is for modules that take [N, C, H, W]; layout is {layout!r}"
                raise ValueError(msg)
        if dtype != "float32" and self.runner is not None:
            msg = f"dtype must be 'float32' for the model file {self.name!r}, which converts its input itself"
            raise ValueError(msg)
        if dtype == "bfloat16" and not self._torch and self.device == "cpu":
            msg = f"dtype='bfloat16' needs a torch module: {self.name!r} gets NumPy arrays, which have no such type"
            raise ValueError(msg)
        return memory_format

    def _check_twin(self, twin: Any) -> Any:
        if twin is None:
            return None
        if not _is_torch_module(twin):
            msg = f"twin of model {self.name!r} must be a torch module, got {type(twin).__name__}"
            raise TypeError(msg)
        home = next((str(tensor.device) for tensor in _tensors(twin)), self.device)
        if home != self.device:
            msg = f"twin of model {self.name!r} must be on {self.device!r} like the model, got one on {home!r}"
            raise ValueError(msg)
        if _in_training(twin) and not self.allow_training:
            msg = f"twin of model {self.name!r} must be in eval mode, got one in training mode"
            raise ValueError(msg)
        return twin

    def _run(self, x: Array) -> Array:
        return self._ask(self._argument(x), len(x))

    def _argument(self, x: Array) -> Array:
        """What the model itself gets for the input ``x``: the same memory."""
        carrier, dtype = CARRIER[self.inputs.dtype], self.inputs.dtype
        if str(x.dtype).removeprefix("torch.") not in (carrier, dtype):
            msg = f"forward() of model {self.name!r} takes {dtype} inputs ({carrier} in NumPy), got {x.dtype}"
            raise TypeError(msg)
        if self._torch or self.device != "cpu":
            tensor = _as_tensor(import_optional("torch", "a model on CUDA"), x, dtype)
            return tensor.permute(0, 3, 1, 2) if self.memory_format == "channels_last" else tensor
        return x.view(np.float16) if dtype == "float16" else x

    def _ask(self, argument: Array, batch: int) -> Array:
        if self.runner is not None and self.device != "cpu":
            scores = sys.modules["torch"].from_numpy(self.runner(argument.cpu().numpy()))
            return self._scores(scores.to(self.device), batch)
        if self._torch or self.device != "cpu":
            with sys.modules["torch"].inference_mode():
                return self._scores(self._obj(argument), batch)
        return self._scores(self._obj(argument), batch)

    def _scores(self, out: Any, batch: int) -> Array:
        """Check what the model returned and bring it to float32 ``[N, K]``."""
        torch = sys.modules.get("torch")
        is_tensor = torch is not None and isinstance(out, torch.Tensor)
        scores: Array
        if is_tensor and self._usual == (batch, out.dtype, out.shape, out.device) and out.is_contiguous():
            scores = out.detach()
            return scores.numpy() if self.device == "cpu" else scores
        if out is None or isinstance(out, (tuple, list, dict, str)):
            size = f" of {len(out)}" if isinstance(out, (tuple, list, dict)) else ""
            msg = f"model {self.name!r} must return one array of scores [N, K], got {type(out).__name__}{size}"
            raise TypeError(msg)
        if is_tensor:
            if str(out.device) != self.device:
                msg = f"model {self.name!r} is declared on {self.device!r}, but returned scores on {str(out.device)!r}"
                raise ValueError(msg)
            floating = out.is_floating_point()
        else:
            if self.device != "cpu":
                msg = f"model {self.name!r} on {self.device!r} must return a torch tensor, got {type(out).__name__}"
                raise TypeError(msg)
            out = np.asarray(out)
            floating = np.issubdtype(out.dtype, np.floating) or out.dtype.name == "bfloat16"
        shape = tuple(out.shape)
        if not floating:
            msg = f"model {self.name!r} must return floating scores [N, K], got {out.dtype} {list(shape)}"
            raise TypeError(msg)
        if len(shape) != 2 or shape[0] != batch or shape[1] - self.class_offset < 2:
            dropped = f" after dropping {self.class_offset}" if self.class_offset else ""
            msg = f"model {self.name!r} must return scores [{batch}, K] with K >= 2{dropped}, got {list(shape)}"
            raise ValueError(msg)
        if is_tensor:
            scores = out.detach().float()
            scores = scores.numpy() if self.device == "cpu" else scores
        else:
            with np.errstate(over="ignore"):  # a float64 score beyond float32 becomes infinite and is reported as such
                scores = out.astype(np.float32, copy=False)
        if not self._outputs_checked:
            self._check_probabilities(scores)
        if is_tensor and str(out.dtype) == "torch.float32" and self._outputs_checked and not self.class_offset:
            self._usual = (batch, out.dtype, out.shape, out.device)
        scores = scores[:, self.class_offset :]
        return np.ascontiguousarray(scores) if isinstance(scores, np.ndarray) else scores.contiguous()

    def _check_probabilities(self, scores: Array) -> None:
        values = scores if isinstance(scores, np.ndarray) else scores.cpu().numpy()
        values = values[np.isfinite(values).all(axis=1)]
        if not len(values):
            return  # nothing to judge by; look again at the next call
        low, high, sums = values.min(), values.max(), values.sum(axis=1, dtype=np.float64)
        if low < -1e-3 or high > 1 + 1e-3 or np.abs(sums - 1).max() > 1e-2:
            msg = (
                f"model {self.name!r} is declared to return probabilities, but its scores lie in "
                f'[{low:.6g}, {high:.6g}] and its rows sum to {sums.min():.6g}..{sums.max():.6g}; use outputs="logits"'
            )
            raise ValueError(msg)
        self._outputs_checked = True


class Pair:
    """The original model and the compressed model under test, on one device.

    Args:
        original, compressed: Each a `Model`, or what ``Model(obj)`` takes.

    Attributes:
        original, compressed: The models.

    Raises:
        ValueError: The models are on different devices.
    """

    def __init__(self, original: Any, compressed: Any) -> None:
        self.original = original if isinstance(original, Model) else Model(original)
        self.compressed = compressed if isinstance(compressed, Model) else Model(compressed)
        if self.original.device != self.compressed.device:
            msg = (
                f"both models must be on one device, got original {self.original.name!r} on {self.original.device!r} "
                f"and compressed {self.compressed.name!r} on {self.compressed.device!r}"
            )
            raise ValueError(msg)

    @classmethod
    def of(cls, pair: Pair | tuple[Any, Any]) -> Pair:
        """``pair`` itself, or the pair of a tuple ``(original, compressed)``; ``TypeError`` for anything else."""
        if isinstance(pair, Pair):
            return pair
        if isinstance(pair, tuple) and len(pair) == 2:
            return cls(*pair)
        msg = f"pair must be a compdx.Pair or a tuple (original, compressed), got {type(pair).__name__}"
        raise TypeError(msg)

    @property
    def device(self) -> str:
        """The device of both models, ``"cpu"`` or ``"cuda:<index>"``."""
        return self.original.device

    @property
    def inputs(self) -> Inputs | None:
        """What both models want to be fed, None when they want different things."""
        return self.original.inputs if self.original.inputs == self.compressed.inputs else None

    def __call__(self, images: Array) -> tuple[Array, Array]:
        """Scores of both models for ``images`` (uint8 ``[N, C, H, W]``): float32 ``[N, K]`` each, original first."""
        if self.inputs is not None:
            return self.forward(normalize(images, self.inputs, self.device))
        return self.agree(self.original(images), self.compressed(images))

    def forward(self, x: Array) -> tuple[Array, Array]:
        """Scores of both models for ``x``, the input that both want; see `Model.forward`.

        Raises:
            ValueError: ``inputs`` is None, or the models score different numbers of classes.
        """
        if self.inputs is None:
            msg = (
                f"forward() needs models that want the same input, but {self.original.name!r} wants "
                f"{self.original.inputs} and {self.compressed.name!r} wants {self.compressed.inputs}; "
                "call the pair on uint8 images"
            )
            raise ValueError(msg)
        return self.agree(self.original.forward(x), self.compressed.forward(x))

    def bind(self, x: Array) -> tuple[Callable[[], Array], Callable[[], Array]]:
        """`Model.bind` of both models: the original's scores of what ``x`` holds, and the compressed model's.

        Args:
            x: The input that both want; uint8 images ``[N, C, H, W]`` where ``inputs`` is None.
        """
        if self.inputs is not None:
            return self.original.bind(x), self.compressed.bind(x)
        return _bind_images(self.original, x), _bind_images(self.compressed, x)

    def compiled(self) -> Pair:
        """The pair of both models compiled; see `Model.compiled`."""
        return Pair(self.original.compiled(), self.compressed.compiled())

    def describe(self) -> dict[str, Any]:
        """What is known of both models, as JSON values."""
        return {
            "original": self.original.describe(),
            "compressed": self.compressed.describe(),
            "device": self.device,
            "shared_inputs": self.inputs is not None,
        }

    def __repr__(self) -> str:
        return f"Pair(original={self.original!r}, compressed={self.compressed!r})"

    def agree(self, a: Array, b: Array) -> tuple[Array, Array]:
        """``(a, b)``, the scores of both models; ``ValueError`` when they are of different numbers of classes."""
        if a.shape[1] != b.shape[1]:
            msg = (
                f"both models must score the same classes, got K = {a.shape[1]} from original {self.original.name!r} "
                f"and K = {b.shape[1]} from compressed {self.compressed.name!r}; class_offset drops a background class"
            )
            raise ValueError(msg)
        return a, b


def normalize(images: Array, inputs: Inputs, device: str) -> Array:
    """The model input for ``images`` (uint8 ``[N, C, H, W]``) on ``device``; see `ops.normalize`."""
    on_cuda = str(getattr(images, "device", "cpu")).startswith("cuda")
    if device == "cpu" and on_cuda:
        msg = f"images are on {str(images.device)!r}, but the model is on 'cpu'; move one of them"
        raise ValueError(msg)
    if device != "cpu" and not on_cuda:
        torch = import_optional("torch", "a model on CUDA")
        images = torch.as_tensor(np.ascontiguousarray(images)).to(device)
    shape = tuple(getattr(images, "shape", ()))
    if len(shape) != 4:
        msg = f"images must be uint8 [N, C, H, W], got {type(images).__name__} of shape {list(shape)}"
        raise ValueError(msg)
    return ops.normalize(images, inputs.table(shape[1]), layout=inputs.layout, dtype=inputs.dtype)


def _bind_images(model: Model, images: Array) -> Callable[[], Array]:
    """`Model.bind` for uint8 images that stay where they are."""
    inputs = model.inputs
    feed = ops.Normalizer(images, inputs.table(images.shape[1]), layout=inputs.layout, dtype=inputs.dtype)
    score = model.bind(feed())

    def scores() -> Array:
        feed()
        return score()

    return scores


def _as_tensor(torch: Any, x: Array, dtype: Dtype) -> Any:
    """``x`` as a torch tensor of the model's dtype, without a copy where the memory may be shared."""
    if isinstance(x, np.ndarray):
        # torch warns of read-only memory, and older versions do not know uint16.
        x = x if x.flags.writeable else x.copy()
        x = torch.from_numpy(x if dtype == "float32" else x.view(np.int16))
    return x if dtype == "float32" or x.is_floating_point() else x.view(getattr(torch, dtype))


def _in_training(module: Any) -> bool:
    """Whether a part of ``module`` trains. An exported graph is judged by its operators: its flag means nothing."""
    if _is_exported(module):
        return any(_trains(node) for node in module.graph.nodes)
    # Frozen TorchScript modules have lost the attribute.
    return bool(getattr(module, "training", False)) or any(_in_training(child) for child in module.children())


def _is_exported(module: Any) -> bool:
    """Whether ``module`` comes from ``torch.export``: unlike those of ``torch.fx``, its nodes carry example values."""
    graph = getattr(module, "graph", None) if type(module).__name__.startswith("GraphModule") else None
    return graph is not None and any("val" in node.meta for node in graph.nodes)


def _trains(node: Any) -> bool:
    flag = {"aten.dropout.default": 2, "aten.batch_norm.default": 5}.get(str(node.target))
    return flag is not None and len(node.args) > flag and node.args[flag] is True


def _tensors(module: Any) -> Iterator[Any]:
    yield from module.parameters()
    yield from module.buffers()


def weights_sha256(module: Any) -> str | None:
    """That of the module's state, and of the buffers that are no part of it."""
    state = module.state_dict()
    return tensors_sha256({**state, **{name: one for name, one in module.named_buffers() if name not in state}})


def tensors_sha256(tensors: Mapping[str, Any]) -> str | None:
    """SHA-256 of the names, types, shapes and bytes of all tensors, None where there is none."""
    digest, none = hashlib.sha256(), True
    for name, tensor in _leaves("", tensors):
        none = False
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(sys.modules["torch"].uint8).numpy().data)
    return None if none else digest.hexdigest()


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The plain tensors on the CPU that a state is made of: quantized and packed ones are opened."""
    torch = sys.modules["torch"]
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(f"{name}.{key}", item)
    elif isinstance(value, (list, tuple)):
        for place, item in enumerate(value):
            yield from _leaves(f"{name}.{place}", item)
    elif hasattr(value, "__tensor_flatten__"):  # a tensor made of tensors, as torchao's are
        for inner in value.__tensor_flatten__()[0]:
            yield from _leaves(f"{name}.{inner}", getattr(value, inner))
    elif isinstance(value, torch.Tensor):
        value = value.detach()
        value = value.dequantize() if getattr(value, "is_quantized", False) else value
        value = value if value.layout == torch.strided else value.to_dense()
        yield name, value.cpu().contiguous()


def _is_torch_module(obj: Any) -> bool:
    # A torch module cannot exist before torch is imported, so nothing has to be imported to know.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(obj, torch.nn.Module)


def _same_bits(a: Array, b: Array) -> bool:
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a.view(np.uint8), b.view(np.uint8)))
    return bool((a == b).all())


def _whole(device: str) -> str:
    """The device with its index."""
    return "cuda:0" if device == "cuda" else device


def _name_of(obj: Any) -> str:
    if isinstance(obj, runtimes.Runner):
        return obj.path.name
    return str(getattr(obj, "__name__", None) or type(obj).__name__)
