"""Quantization to int8 by torchao (PT2E): after training, in training, and as CompD's code does it."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, Literal

from compdx import ops
from compdx.compress.common import check_training, copied, device_of, figures, finetune
from compdx.compressed import Compressed, state_of
from compdx.model import Inputs, import_optional
from compdx.seeds import Seeds
from compdx.training import EVALUATION_BATCH, Listener, Recipe, set_mode

NEEDS = "quantization"
MODULES = (
    "torch",
    "torchao.quantization.pt2e.quantize_pt2e",
    "torchao.quantization.pt2e.quantizer.x86_inductor_quantizer",
)
MODES = ("post-training", "qat", "artifact")
RECIPE = Recipe(epochs=10, rate=0.001, schedule="constant", nesterov=False, weight_decay=1e-4, precision="float32")
"""Fine-tuning as in CompD's code. Float32: the eight bits of bfloat16's mantissa are those of int8 itself."""


def quantize(
    model: Any,
    calibration: Seeds | Iterable[Any],
    *,
    mode: Literal["post-training", "qat", "artifact"] = "post-training",
    train: Seeds | None = None,
    recipe: Recipe | None = None,
    inputs: Inputs | None = None,
    example: Any = None,
    backend: Literal["x86"] = "x86",
    seed: int = 0,
    listen: Listener | None = None,
) -> Compressed:
    """Quantize a torch module to int8.

    Weights are quantized per channel and activations per tensor; batch normalization after a convolution is folded into
    it first. The model under test computes in eager mode what the integer kernels compute, as quantize-dequantize steps
    around float operators, and takes batches of any size. It is in eval mode for good: neither ``eval()`` nor
    ``train()`` can be called on it.

    * ``"post-training"``: ranges are observed on the calibration images. The twin is the float model.
    * ``"qat"``: quantization-aware training. The twin rounds weights and activations as int8 does, and passes gradients
      straight through the rounding; it is fine-tuned with ``train``. In training mode it also tracks ranges, in eval
      mode it changes nothing. Folded batch normalization is not trained any more.
    * ``"artifact"``: what CompD's code does under the name of QAT: it fine-tunes the float model, which is the twin,
      and quantizes it after that; no rounding is seen in training or search.

    Args:
        model: A torch module in eval mode that ``torch.export`` can trace. It is not changed.
        calibration: Float32 tensors ``[N, ...]``, as the model takes them (normalised), or `Seeds` with ``inputs``; a
            few hundred images in all are plenty. They are kept for `Compressed.convert`.
        mode: See above.
        train: Labelled images to train with, for ``"qat"`` and ``"artifact"``. Without any, the twin of ``"qat"`` has
            the ranges of the calibration images and the weights of the model.
        recipe: How; default `RECIPE`.
        inputs: What the model is fed; needed with ``train`` and with seeds for calibration.
        example: A batch to trace the model with; default the first rows of the first calibration batch.
        backend: Whose default scheme is used; only ``"x86"``.
        seed: Fixes order, augmentation and dropout of the training. Nothing else is random.
        listen: Called after every epoch; see `training.fit`.

    Returns:
        A `Compressed`. ``bytes`` are those of the int8 weights with their scales, and of what stays in float32.

    Raises:
        ModuleNotFoundError: torch or torchao is missing.
        TypeError, ValueError: An argument is of the wrong kind; the module is in training mode, or has nothing to
            quantize.

    Runs on the device of the module. CompD (Li et al., 2023), section 4; ``"artifact"`` differs from its text.
    """
    if backend != "x86":
        msg = f"backend must be 'x86', got {backend!r}"
        raise ValueError(msg)
    if mode not in MODES:
        msg = f"mode must be one of {', '.join(map(repr, MODES))}, got {mode!r}"
        raise ValueError(msg)
    if (train is None) if mode == "artifact" else (train is not None and mode == "post-training"):
        msg = f"mode={mode!r} {'takes no' if train is not None else 'needs'} train=, seeds to train with"
        raise ValueError(msg)
    check_training(train, recipe, inputs)
    twin = copied(model)
    batches = _batches(calibration, inputs)
    if example is None:
        # Of a batch of one, torch.export would conclude that the batch is always one.
        example = batches[0].expand(2, *batches[0].shape[1:]) if len(batches[0]) == 1 else batches[0][:2]

    def convert(twin: Any) -> Any:
        if mode == "qat":
            return _converted(set_mode(copy.deepcopy(twin), training=False).graph)
        graph = _prepared(set_mode(copy.deepcopy(twin), training=False), example, training=False)
        _observe(graph, batches)
        return _converted(graph)

    settings: dict[str, Any] = {
        "mode": mode,
        "backend": backend,
        "calibration_images": sum(map(len, batches)),
        "recipe": None,
        "seed": seed,
    }
    if mode == "qat":
        graph = _prepared(twin, example, training=True)
        _observe(graph, batches)
        twin = _fake_quantized()(graph)
    trained, start = None, None
    if train is not None and inputs is not None:
        start = state_of(twin)
        recipe = recipe or RECIPE
        settings["recipe"] = recipe.settings()
        trained = finetune(twin, train, recipe, inputs=inputs, seed=seed, listen=listen)
    result = convert(twin)
    integers = [tensor for tensor in result.buffers() if not tensor.is_floating_point() and tensor.element_size() == 1]
    if not integers:
        msg = "model must have convolutions or linear layers to quantize, got none that torchao recognises"
        raise ValueError(msg)
    size = sum(tensor.numel() * tensor.element_size() for tensor in (*result.parameters(), *result.buffers()))
    record = figures("quantize", settings, model, [*result.parameters(), *integers], size)
    record["trained"] = trained
    return Compressed(model=result, twin=twin, record=record, convert=convert, start=start)


def _batches(calibration: Any, inputs: Inputs | None) -> list[Any]:
    """The calibration images as the model takes them, on the CPU."""
    torch = import_optional("torch", NEEDS)
    if isinstance(calibration, Seeds):
        if not isinstance(inputs, Inputs):
            msg = f"calibration by seeds needs inputs=, what the model is fed (compdx.Inputs), got {inputs!r}"
            raise TypeError(msg)
        table = inputs.table(calibration.shape[0])
        x = ops.normalize(calibration.images, table, layout=inputs.layout, dtype="float32")
        return list(torch.from_numpy(x).split(EVALUATION_BATCH))
    batches = list(calibration)
    for batch in batches:
        if not isinstance(batch, torch.Tensor) or batch.dtype != torch.float32 or not len(batch):
            got = f"{batch.dtype} {list(batch.shape)}" if isinstance(batch, torch.Tensor) else type(batch).__name__
            msg = f"calibration must be float32 tensors of at least one row, got {got}"
            raise TypeError(msg)
    if not batches:
        msg = "calibration must hold at least one batch, got none"
        raise ValueError(msg)
    return batches


def _prepared(network: Any, example: Any, *, training: bool) -> Any:
    """The network as a graph with observers (with fake quantization for training) where int8 begins and ends.

    `prepare_pt2e` for both: it folds batch normalization into convolutions. `prepare_qat_pt2e` would keep it, but with
    the default epsilon and momentum whatever the network's are, and takes half a minute to convert.
    """
    with _contained():
        torch, pt2e, x86 = (import_optional(name, NEEDS) for name in MODULES)
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(_training_config(x86) if training else x86.get_default_x86_inductor_quantization_config())
        shapes = ({0: torch.export.Dim("batch", min=1)},)
        with torch.no_grad():
            graph = torch.export.export(network, (example.to(device_of(network)),), dynamic_shapes=shapes).module()
            for node in graph.graph.nodes:
                # torch.relu is no nn.ReLU to torchao, which would round before it and once more behind it.
                if node.target in (torch.ops.aten.relu.default, torch.ops.aten.relu_.default):
                    node.meta["source_fn_stack"] = [(node.name, torch.nn.functional.relu)]
            return pt2e.prepare_pt2e(graph, quantizer)


def _training_config(x86: Any) -> Any:
    """torchao's scheme for training, without its fused kernel.

    The fused one rounds weights with scales of its own, not those that `convert_pt2e` takes, and writes them to its
    buffers in eval mode, too: twin and int8 model would differ, and a search would change the twin.
    """
    fakes, observers = (import_optional(f"torchao.quantization.pt2e.{n}", NEEDS) for n in ("fake_quantize", "observer"))
    config = x86.get_default_x86_inductor_quantization_config(is_qat=True)
    kinds = {
        "input_activation": observers.MovingAverageMinMaxObserver,
        "output_activation": observers.MovingAverageMinMaxObserver,
        "weight": observers.MovingAveragePerChannelMinMaxObserver,
    }
    specs = {
        part: dataclasses.replace(
            getattr(config, part),
            observer_or_fake_quant_ctr=fakes.FakeQuantize.with_args(observer=observer, eps=2**-12),
        )
        for part, observer in kinds.items()
    }
    return dataclasses.replace(config, **specs)


def _observe(graph: Any, batches: list[Any]) -> None:
    torch = import_optional("torch", NEEDS)
    with torch.no_grad():
        for batch in batches:
            graph(batch.to(device_of(graph)))


def _converted(graph: Any) -> Any:
    """The int8 model of a graph that has seen its ranges; the graph is used up."""
    with _contained():
        torch, pt2e, _ = (import_optional(name, NEEDS) for name in MODULES)
        # Where a batch normalization is left, convert_pt2e looks for those of prepare_qat_pt2e, for half a minute.
        # Under another name they are passed over; the function is the same.
        aten, plain = torch.ops.aten.batch_norm.default, torch.batch_norm
        _rename(graph, aten, plain)
        with torch.no_grad():
            result = pt2e.convert_pt2e(graph)
        _rename(result, plain, aten)
        # The float weights are still there, though nothing uses them.
        used = {node.target for node in result.graph.nodes if node.op == "get_attr"}
        for name in [*dict(result.named_parameters()), *dict(result.named_buffers())]:
            if name not in used:
                owner, _, leaf = name.rpartition(".")
                delattr(result.get_submodule(owner), leaf)
        return result


def _rename(graph: Any, old: Any, new: Any) -> None:
    for node in graph.graph.nodes:
        if node.target is old:
            node.target = new
    graph.recompile()


@cache
def _fake_quantized() -> Any:
    torch = import_optional("torch", NEEDS)
    flags = {torch.ops.aten.batch_norm.default: 5, torch.ops.aten.dropout.default: 2}

    class FakeQuantized(torch.nn.Module):  # type: ignore[misc, name-defined]
        """A graph with fake quantization that changes its mode like any other module.

        In eval mode its ranges stand still; so do the statistics of what batch normalization could not be folded.
        """

        def __init__(self, graph: Any) -> None:
            super().__init__()
            self.graph = graph
            self.train(False)

        def train(self, mode: bool = True) -> Any:
            self.training = mode
            for node in self.graph.graph.nodes:
                if node.target in flags:
                    node.update_arg(flags[node.target], mode)
            self.graph.recompile()
            for part in self.graph.modules():
                if hasattr(part, "enable_observer"):
                    part.enable_observer(mode)
            return self

        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            with _contained():
                return FakeQuantized(copy.deepcopy(self.graph, memo)).train(self.training)

        def forward(self, x: Any) -> Any:
            # The kernels of fake quantization know float32 only.
            with torch.autocast(x.device.type, enabled=False):
                return self.graph(x.float())

    return FakeQuantized


@contextlib.contextmanager
def _contained() -> Iterator[None]:
    """Keep in what torch and torchao do to the rest of the process, here and nowhere else.

    They call interfaces that they themselves deprecate, draw example inputs from the global random state, and log every
    CUDA library that cannot be loaded on a machine without CUDA.
    """
    torch = import_optional("torch", NEEDS)
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            for category in (DeprecationWarning, FutureWarning, UserWarning):
                warnings.filterwarnings("ignore", category=category, module=r"torch(ao)?\b")
            # Blamed on the module copy, which copies a graph.
            warnings.filterwarnings("ignore", category=FutureWarning, message=r".*LeafSpec")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
