"""The network that is sliced, as it is held by a `Model`, and how images reach it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from compdx.derivatives import as_input
from compdx.model import Model, import_optional, normalize
from compdx.seeds import Seeds
from compdx.slicing.tracing import Trace

NEEDS = "slicing"


class Subject:
    """A model with the trace of its module: of the one that gives its labels, or of its twin where that is none.

    Args:
        model: A `Model`, or what ``Model(obj)`` takes.

    Raises:
        TypeError: It is no model, or one without a torch module.
        ValueError: It is in training mode, or cannot be traced.
    """

    def __init__(self, model: Any) -> None:
        self.model = model if isinstance(model, Model) else Model(model)
        if self.model.training:
            msg = f"model must be in eval mode to be sliced, got {self.model.name!r} in training mode"
            raise ValueError(msg)
        module = self.model.module
        self.trace = Trace(self.model.twin if module is None else module, self.model.name)

    @property
    def weights(self) -> str | None:
        """The SHA-256 of the weights."""
        about = self.model.describe()
        return about.get("twin_sha256") if self.model.module is None else about["weights_sha256"]

    def check(self, data: Any, argument: str) -> Any:
        """Seeds as their images; anything else as an array of images or of inputs.

        Raises:
            TypeError: It is neither uint8 nor float32.
            ValueError: It is empty.
        """
        rows = data.images if isinstance(data, Seeds) else data
        dtype = str(getattr(rows, "dtype", type(rows).__name__)).removeprefix("torch.")
        if dtype not in ("uint8", "float32"):
            msg = f"{argument} must be Seeds, uint8 images [N, C, H, W] or float32 model inputs [N, ...], got {dtype}"
            raise TypeError(msg)
        if len(rows.shape) < 2 or 0 in rows.shape or (dtype == "uint8" and len(rows.shape) != 4):
            msg = f"{argument} must be [N, C, H, W] images or [N, ...] inputs, at least one, got {tuple(rows.shape)}"
            raise ValueError(msg)
        return rows

    def preprocessing(self, rows: Any) -> dict[str, Any] | None:
        """What is done to images, as JSON values; None for what is the model's input already."""
        if str(rows.dtype).removeprefix("torch.") != "uint8":
            return None
        steps = {name: getattr(self.model.inputs, name) for name in ("mean", "std", "bounds")}
        found: dict[str, Any] = json.loads(json.dumps(steps))  # tuples as the lists that a file gives back
        return found

    def feed(self, rows: Any) -> Any:
        """The module's input for images, uint8 ``[N, C, H, W]``, or for what is the model's input already, float32."""
        torch = import_optional("torch", NEEDS)
        model = self.model
        if str(rows.dtype).removeprefix("torch.") == "uint8":
            rows = normalize(rows, replace(model.inputs, layout="NCHW", dtype="float32"), model.device)
        x = torch.from_numpy(np.ascontiguousarray(rows)) if isinstance(rows, np.ndarray) else rows.detach()
        return as_input(model, x.to(model.device))

    def scores(self, returned: Any) -> Any:
        """Scores float32 ``[N, K]`` of what the module returned.

        Raises:
            ValueError: They have another shape, or are not finite.
        """
        torch = import_optional("torch", NEEDS)
        if returned.ndim != 2 or returned.shape[1] - self.model.class_offset < 2:
            msg = f"model {self.model.name!r} must return scores [N, K] with K >= 2, got {list(returned.shape)}"
            raise ValueError(msg)
        scores = returned[:, self.model.class_offset :].float()
        if not bool(torch.isfinite(scores).all()):
            msg = f"model {self.model.name!r} returns scores that are not finite; such samples have no slice"
            raise ValueError(msg)
        return scores


def labels_of(scores: Any) -> Any:
    """The label of every row, int64 ``[N]`` on the CPU; the lowest of those that share the maximum."""
    return scores.cpu().numpy().argmax(1)


def parts(count: int, size: int) -> Iterator[slice]:
    """Rows 0 to ``count`` in batches."""
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))
