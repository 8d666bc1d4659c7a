"""The settings of torch on which the bits of a model's scores depend: held for a run, recorded, and given back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from compdx.model import import_optional
from compdx.ops.checks import check_flag, one_of

PRECISIONS = ("highest", "high", "medium")


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """How torch computes while a search runs. It holds for the run, is recorded with it, and then is as it was before.

    Two kinds of settings, two kinds of defaults. Precision belongs to the model: a search is for the labels of the
    model as its owner runs it, on which `verify` and the owner's own code must agree with it. So by default it stays
    what the process has (torch's own: full float32 products of matrices, TF32 in cuDNN's convolutions). What picks
    among kernels of one precision says nothing about the model, and picking by timing changes bits from run to run; so
    by default cuDNN does not time its kernels, and takes deterministic ones only.

    The settings are torch's, so they hold for all threads of the process: searches that run beside each other should
    have the same.

    Args:
        matmul_precision: ``"highest"`` (float32), ``"high"`` (TF32 on CUDA, two bfloat16 on the CPU), ``"medium"``
            (bfloat16), as in ``torch.set_float32_matmul_precision``; None leaves what the process has.
        convolution_tf32: Whether cuDNN's float32 convolutions may round their inputs to TF32; None as above.
        benchmark: Whether cuDNN times its kernels and takes the fastest.
        deterministic: Whether cuDNN takes deterministic kernels only.

    Raises:
        TypeError, ValueError: By the argument's name.
    """

    matmul_precision: str | None = None
    convolution_tf32: bool | None = None
    benchmark: bool = False
    deterministic: bool = True

    def __post_init__(self) -> None:
        if self.matmul_precision is not None:
            one_of("matmul_precision", self.matmul_precision, PRECISIONS)
        if self.convolution_tf32 is not None:
            check_flag("convolution_tf32", self.convolution_tf32)
        check_flag("benchmark", self.benchmark)
        check_flag("deterministic", self.deterministic)

    @contextmanager
    def held(self) -> Iterator[dict[str, Any]]:
        """Set torch so and give the settings that now hold, as JSON values; set it back however the block ends."""
        torch = import_optional("torch", "numerics")
        before = _Settings(torch)
        try:
            cudnn = torch.backends.cudnn
            if self.matmul_precision is not None:
                torch.set_float32_matmul_precision(self.matmul_precision)
            if self.convolution_tf32 is not None:
                cudnn.allow_tf32 = self.convolution_tf32
            cudnn.benchmark, cudnn.deterministic = self.benchmark, self.deterministic
            yield _Settings(torch).described()
        finally:
            before.restore()


# Where torch 2.9 and later keep precisions, beside the older settings. A user who sets one of these makes reading the
# older setting an error, so that both are kept, and the newer put back last.
_NEWER = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul")


class _Settings:
    """All that `Numerics` may change, as it is now."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        cudnn = torch.backends.cudnn
        self._kernels = (cudnn.benchmark, cudnn.deterministic)
        self._matmul = _readable(torch.get_float32_matmul_precision)
        self._tf32 = _readable(lambda: cudnn.allow_tf32)
        self._newer = {name: getattr(self._place(name), "fp32_precision", None) for name in _NEWER}

    def described(self) -> dict[str, Any]:
        convolutions = self._newer["cudnn.conv"] == "tf32" if self._tf32 is None else self._tf32
        return {
            "matmul_precision": self._newer["cuda.matmul"] if self._matmul is None else self._matmul,
            "convolution_tf32": convolutions,
            "benchmark": self._kernels[0],
            "deterministic": self._kernels[1],
        }

    def restore(self) -> None:
        cudnn = self._torch.backends.cudnn
        cudnn.benchmark, cudnn.deterministic = self._kernels
        now = _Settings(self._torch)
        if self._matmul is not None and now._matmul != self._matmul:
            self._torch.set_float32_matmul_precision(self._matmul)
        if self._tf32 is not None and now._tf32 != self._tf32:
            cudnn.allow_tf32 = self._tf32
        for name, precision in self._newer.items():
            if precision is not None and self._place(name).fp32_precision != precision:
                self._place(name).fp32_precision = precision

    def _place(self, name: str) -> Any:
        place = self._torch.backends
        for part in name.split("."):
            place = getattr(place, part, None)
        return place


def _readable(setting: Any) -> Any:
    try:
        return setting()
    except RuntimeError:  # set through the newer interface
        return None
