"""Gradient attacks on one model: FGSM (CompD, section 5.5) and projected gradient descent, bounded in grey levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from compdx import ops
from compdx.derivatives import scores
from compdx.model import Model, import_optional
from compdx.seeds import Seeds

NEEDS = "an attack"
EPSILONS = (2, 8, 16)
BATCH = 128
# Of a step of projected gradient descent: so much of epsilon, spread over the steps, reaches every point of the ball.
REACH = 2.5

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Attacked:
    """What an attack made of N images.

    Attributes:
        inputs: float32 ``[N, C, H, W]``, what the model was asked about, in its input units.
        images: uint8 ``[N, C, H, W]``, the nearest pictures of ``inputs``; exactly these where the attack was rounded.
        labels: int64 ``[N]``, the true ones.
        labels_before, labels_after: int64 ``[N]``, the model's, of the images and of ``inputs``.
    """

    inputs: npt.NDArray[np.float32]
    images: Images
    labels: Labels
    labels_before: Labels
    labels_after: Labels

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def accuracy(self) -> float:
        """Share (0..1) of images that are labelled rightly before and after; one that was wrong before is wrong."""
        return float(((self.labels_before == self.labels) & (self.labels_after == self.labels)).mean())


def fgsm(
    model: Model, images: Any, labels: Any, *, epsilon: float, rounded: bool = False, batch_size: int = BATCH
) -> Attacked:
    """Move every value of an image by ``epsilon`` in the direction that raises the loss (fast gradient sign method).

    ``x' = clamp(x + epsilon / 255 * (hi - lo) / std * sign(d cross-entropy / d x))`` in the units of the model's input,
    clamped to what pictures can hold; ``hi``, ``lo`` and ``std`` are those of its `Inputs`. The gradient is that of
    ``model.twin``, the labels are those of the model itself, as in the paper (section 5.5; methods in docs/methods.md).

    Args:
        model: A `Model` with gradients.
        images: uint8 ``[N, C, H, W]``.
        labels: True labels, integers ``[N]``, 0..K-1.
        epsilon: Grey levels, 0..255.
        rounded: Attack with pictures: round ``x'`` to whole grey levels before the model is asked. The paper does not.
        batch_size: Images asked about at a time, a matter of memory and speed alone.

    Raises:
        ModuleNotFoundError: torch is missing.
        TypeError: The model has no gradients, or an argument is of the wrong kind.
        ValueError: An argument is out of range.

    Nothing is random. Runs on the device of the model and waits for it.
    """

    epsilon = _levels("epsilon", epsilon)

    def attack(target: _Target, x: Any, y: Any) -> Any:
        return target.clamp(x + epsilon * target.level * target.direction(x, y))

    return _run(attack, model, images, labels, rounded, batch_size)


def pgd(
    model: Model,
    images: Any,
    labels: Any,
    *,
    epsilon: float,
    step: float | None = None,
    steps: int = 10,
    random_start: bool = False,
    seed: int = 0,
    rounded: bool = False,
    batch_size: int = BATCH,
) -> Attacked:
    """Take several steps of `fgsm`, kept within ``epsilon`` of the image (projected gradient descent, Madry et al.).

    Args:
        model, images, labels, epsilon, rounded, batch_size: As for `fgsm`.
        step: Grey levels of a step; default ``2.5 * epsilon / steps``.
        steps: Number of steps, at least 1.
        random_start: Start at a uniformly random point within ``epsilon`` of the image.
        seed: Fixes that point, whatever ``batch_size``.

    Raises:
        ModuleNotFoundError, TypeError, ValueError: As for `fgsm`.

    Runs on the device of the model and waits for it.
    """
    ops.checks.within("steps", steps, 1, 1 << 20)
    ops.checks.check_seed(seed)
    epsilon = _levels("epsilon", epsilon)
    length = REACH * epsilon / steps if step is None else _levels("step", step)
    generator = np.random.default_rng(seed)

    def attack(target: _Target, x: Any, y: Any) -> Any:
        radius, moved = epsilon * target.level, x
        if random_start:
            noise = generator.uniform(-1, 1, tuple(x.shape)).astype(np.float32)
            moved = target.clamp(x + radius * target.torch.from_numpy(noise).to(x.device))
        for _ in range(steps):
            moved = moved + length * target.level * target.direction(moved, y)
            moved = target.clamp(moved.clamp(x - radius, x + radius))
        return moved

    return _run(attack, model, images, labels, rounded, batch_size)


ATTACKS: dict[str, Callable[..., Attacked]] = {"fgsm": fgsm, "pgd": pgd}


def accuracy_under(
    model: Model,
    seeds: Seeds,
    epsilons: Sequence[float] = EPSILONS,
    attack: Literal["fgsm", "pgd"] = "fgsm",
    *,
    batch_size: int = BATCH,
) -> dict[float, float]:
    """Accuracy (0..1) under an attack at each of ``epsilons`` (grey levels), by epsilon.

    Args:
        model: A `Model` with gradients.
        seeds: Labelled images.
        epsilons: Grey levels, 0..255.
        attack: ``"fgsm"`` or ``"pgd"`` with its default settings.
        batch_size: As for `fgsm`.

    Raises:
        ModuleNotFoundError, TypeError, ValueError: As for `fgsm`; ``seeds`` have no labels.
    """
    if attack not in ATTACKS:
        msg = f"attack must be one of {', '.join(map(repr, ATTACKS))}, got {attack!r}"
        raise ValueError(msg)
    if seeds.labels is None:
        msg = "seeds must have labels for an accuracy under attack, got none"
        raise ValueError(msg)
    run = ATTACKS[attack]
    return {
        epsilon: run(model, seeds.images, seeds.labels, epsilon=epsilon, batch_size=batch_size).accuracy
        for epsilon in epsilons
    }


def ask(model: Model, x: Any) -> Any:
    """Scores of the model itself, torch float32 ``[N, K]``, for its input as a torch tensor, float32 ``[N, C, H, W]``.

    Brings ``x`` into the layout and type that the model wants. No graph is kept.
    """
    torch = import_optional("torch", NEEDS)
    x = x.detach().to(getattr(torch, model.inputs.dtype))
    x = (x.permute(0, 2, 3, 1) if model.inputs.layout == "NHWC" else x).contiguous()
    if model.device == "cpu":
        x = x.numpy() if model.inputs.dtype == "float32" else x.view(torch.int16).numpy().view(np.uint16)
    found = model.forward(x)
    # Out of inference mode: what a loss is computed from must be an ordinary tensor.
    return torch.from_numpy(found) if isinstance(found, np.ndarray) else found.clone()


class _Target:
    """A model under attack; one grey level and the range of images in its input units, each ``[C, 1, 1]``."""

    def __init__(self, model: Model, channels: int) -> None:
        self.torch = torch = import_optional("torch", NEEDS)
        self.model = model
        table = model.inputs.table(channels)
        low, high = model.inputs.bounds
        std = np.broadcast_to(np.asarray(1.0 if model.inputs.std is None else model.inputs.std), channels)
        self.level, self.low, self.high = (
            torch.from_numpy(np.asarray(values, np.float32)).to(model.device)[:, None, None]
            for values in ((high - low) / 255 / std, table[:, 0], table[:, 255])
        )

    def direction(self, x: Any, y: Any) -> Any:
        """Sign of the gradient of the cross-entropy, row by row."""
        torch = self.torch
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            values = scores(self.model, x)
            if self.model.outputs == "probabilities":
                values = values.clamp_min(torch.finfo(torch.float32).tiny).log()
                loss = torch.nn.functional.nll_loss(values, y, reduction="sum")
            else:
                loss = torch.nn.functional.cross_entropy(values, y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x)
        return gradient.sign()

    def clamp(self, x: Any) -> Any:
        return x.clamp(self.low, self.high)

    def pictures(self, x: Any) -> Any:
        """The nearest pictures, uint8, of model inputs within the range of images."""
        levels = (x - self.low) / (self.high - self.low) * 255
        return levels.round().clamp(0, 255).to(self.torch.uint8)


def _run(
    attack: Callable[[_Target, Any, Any], Any],
    model: Model,
    images: Any,
    labels: Any,
    rounded: bool,
    batch_size: int,
) -> Attacked:
    if not isinstance(model, Model):
        msg = f"model must be a compdx.Model, got {type(model).__name__}"
        raise TypeError(msg)
    _ = model.twin  # a model without gradients is refused before any work
    images = Seeds.of(images).images
    ops.checks.check_flag("rounded", rounded)
    ops.checks.within("batch_size", batch_size, 1, 1 << 24)
    labels = _check_labels(labels, len(images))
    torch = import_optional("torch", NEEDS)
    target = _Target(model, images.shape[1])
    plain = model.inputs.table(images.shape[1])
    parts: list[tuple[Any, ...]] = []
    for first in range(0, len(images), batch_size):
        batch = images[first : first + batch_size]
        x = torch.from_numpy(ops.normalize(batch, plain, layout="NCHW", dtype="float32")).to(model.device)
        before = ask(model, x)
        y = torch.from_numpy(labels[first : first + batch_size]).to(model.device)
        if int(y.max()) >= before.shape[1]:
            msg = f"labels must be below {before.shape[1]}, the classes of model {model.name!r}, got {int(y.max())}"
            raise ValueError(msg)
        moved = attack(target, x, y)
        pictures = target.pictures(moved)
        if rounded:
            picture = pictures if model.device != "cpu" else pictures.numpy()
            moved = torch.as_tensor(ops.normalize(picture, plain, layout="NCHW", dtype="float32"))
        after = ask(model, moved)
        parts.append(tuple(t.cpu().numpy() for t in (moved, pictures, before.argmax(1), after.argmax(1))))
    inputs, pictures, labels_before, labels_after = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Attacked(
        inputs=inputs, images=pictures, labels=labels, labels_before=labels_before, labels_after=labels_after
    )


def _levels(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        msg = f"{name} must be a number of grey levels, got {type(value).__name__}"
        raise TypeError(msg)
    if not 0 <= value <= 255:
        msg = f"{name} must be in 0..255 grey levels, got {value}"
        raise ValueError(msg)
    return float(value)


def _check_labels(labels: Any, count: int) -> Labels:
    values = np.asarray(labels)
    if values.dtype.kind not in "iu":
        msg = f"labels must be integers [{count}], got {values.dtype}"
        raise TypeError(msg)
    if values.shape != (count,):
        msg = f"labels must be as many as images, [{count}], got {list(values.shape)}"
        raise ValueError(msg)
    if values.min() < 0:
        msg = f"labels must all be known, got {values.min()}"
        raise ValueError(msg)
    return values.astype(np.int64)
