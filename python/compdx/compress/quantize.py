"""Quantization by torchao."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from compdx.model import import_optional

MODULES = (
    "torch",
    "torchao.quantization.pt2e.quantize_pt2e",
    "torchao.quantization.pt2e.quantizer.x86_inductor_quantizer",
)


def int8(model: Any, calibration: Iterable[Any], *, example: Any = None, backend: str = "x86") -> Any:
    """Quantize a torch module to int8, after training and without any more of it (PT2E static quantization).

    Weights are quantized per channel and activations per tensor, with ranges observed on the calibration batches. The
    result computes in eager mode what the integer kernels compute, as quantize-dequantize steps around float operators;
    ``torch.compile`` turns those into integer kernels.

    Args:
        model: A torch module in eval mode, on the CPU. It is not changed.
        calibration: Float32 tensors ``[N, ...]``, as the model takes them (normalised); at least one, a few hundred
            images in all are plenty.
        example: A batch to trace the model with; default the first rows of the first calibration batch.
        backend: Whose default scheme is used; only ``"x86"``.

    Returns:
        An exported module that takes batches of any size. It is in eval mode for good: neither ``eval()`` nor
        ``train()`` can be called on it.

    Raises:
        ModuleNotFoundError: torch or torchao is missing.
        TypeError, ValueError: An argument is of the wrong kind; the module is in training mode.
    """
    if backend != "x86":
        msg = f"backend must be 'x86', got {backend!r}"
        raise ValueError(msg)
    with _third_party_noise():
        torch, pt2e, x86 = (import_optional(name, "quantization") for name in MODULES)

        if not isinstance(model, torch.nn.Module):
            msg = f"model must be a torch module, got {type(model).__name__}"
            raise TypeError(msg)
        if any(part.training for part in model.modules()):
            msg = "model must be in eval mode, got one in training mode; call .eval() first"
            raise ValueError(msg)
        batches = list(calibration)
        for batch in batches:
            if not isinstance(batch, torch.Tensor) or batch.dtype != torch.float32 or not len(batch):
                got = f"{batch.dtype} {list(batch.shape)}" if isinstance(batch, torch.Tensor) else type(batch).__name__
                msg = f"calibration must be float32 tensors of at least one row, got {got}"
                raise TypeError(msg)
        if not batches:
            msg = "calibration must hold at least one batch, got none"
            raise ValueError(msg)

        if example is None:
            # Of a batch of one, torch.export would conclude that the batch is always one.
            example = torch.cat([batches[0], batches[0]])[:2]
        dynamic = ({0: torch.export.Dim("batch", min=1)},)
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
        with torch.no_grad():
            exported = torch.export.export(model, (example,), dynamic_shapes=dynamic).module()
            prepared = pt2e.prepare_pt2e(exported, quantizer)
            for batch in batches:
                prepared(batch)
            return pt2e.convert_pt2e(prepared)


@contextlib.contextmanager
def _third_party_noise() -> Iterator[None]:
    """Keep out what no user of ours can act on, here and nowhere else.

    torch and torchao call interfaces that they themselves deprecate, and torchao logs every CUDA library that it
    cannot load on a machine without CUDA.
    """
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning, UserWarning):
                warnings.filterwarnings("ignore", category=category, module=r"torch(ao)?\b")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
