"""Training: one loop for reference networks, for compressed models and for repair.

Images are uint8 until the step that needs them: cropped and flipped there, image by image, then normalised exactly as a
`Model` normalises them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from compdx import ops
from compdx.model import Inputs, import_optional
from compdx.seeds import Seeds

NEEDS = "training"
EVALUATION_BATCH = 256
GREY = 128
SCHEDULES = ("one-cycle", "constant")
PRECISIONS = ("bfloat16", "float32")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained: stochastic gradient descent with Nesterov momentum.

    Attributes:
        epochs: Passes over the images, at least 1.
        batch_size: Images a step, at least 1; the last batch of an epoch is left out when it is not full.
        rate: Learning rate, positive; the peak of ``one-cycle``.
        schedule: ``one-cycle`` (up from rate / 25 in the first part, down to zero along a cosine) or ``constant``.
        warmup: Share of the steps in which ``one-cycle`` rises, 0 <= warmup < 1.
        momentum: Of the optimizer, 0 <= momentum < 1.
        nesterov: Whether momentum is Nesterov's, which needs one above 0.
        weight_decay: At least 0; not applied to biases and normalisation.
        crop: Pixels of black border in which every image is shifted anew; 0 for none.
        flip: Whether every image is mirrored with probability 1/2.
        erase: Side of a grey square that hides a part of every image, at a random place; 0 for none.
        average: Last epochs whose weights, as each of them leaves them, are averaged to the result (stochastic weight
            averaging, Izmailov et al., 2018); batch normalisation then takes its statistics anew from the training
            images. 0 for none: the result is what the last epoch leaves.
        precision: ``bfloat16`` (autocast) or ``float32``.

    Raises:
        ValueError: A setting is out of its range.
    """

    epochs: int = 40
    batch_size: int = 128
    rate: float = 0.1
    schedule: Literal["one-cycle", "constant"] = "one-cycle"
    warmup: float = 0.15
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    crop: int = 4
    flip: bool = True
    erase: int = 0
    average: int = 0
    precision: Literal["bfloat16", "float32"] = "bfloat16"

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("crop", 0), ("erase", 0), ("average", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                msg = f"{name} must be an integer of at least {least}, got {value!r}"
                raise ValueError(msg)
        for name, fits, range_ in (
            ("rate", 0 < self.rate < math.inf, "positive"),
            ("warmup", 0 <= self.warmup < 1, "at least 0 and less than 1"),
            ("momentum", 0 <= self.momentum < 1, "at least 0 and less than 1"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "at least 0"),
        ):
            if not fits:
                msg = f"{name} must be {range_}, got {getattr(self, name)!r}"
                raise ValueError(msg)
        if self.average > self.epochs:
            msg = f"average must be at most the {self.epochs} epochs, got {self.average}"
            raise ValueError(msg)
        if self.nesterov and not self.momentum:
            msg = "nesterov needs a momentum above 0; set nesterov=False"
            raise ValueError(msg)
        for name, allowed in (("schedule", SCHEDULES), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                msg = f"{name} must be {' or '.join(map(repr, allowed))}, got {getattr(self, name)!r}"
                raise ValueError(msg)

    def settings(self) -> dict[str, Any]:
        """The recipe as JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch of training: mean loss and accuracy (0..1) over its batches, rate of its last step, seconds."""

    epoch: int
    loss: float
    accuracy: float
    rate: float
    seconds: float


class Batches:
    """Shuffled, augmented, normalised batches of labelled images.

    Args:
        images: uint8 ``[N, C, H, W]``.
        inputs: What the network is fed.
        augmented: bool ``[N]``, which images are cropped and flipped; default all of them.

    Order and augmentation are a function of ``(seed, epoch)``, so that a resumed training goes on as it would have.
    """

    def __init__(
        self,
        images: npt.NDArray[np.uint8],
        inputs: Inputs,
        recipe: Recipe,
        *,
        seed: int,
        augmented: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        border = recipe.crop
        padded = np.pad(images, ((0, 0), (0, 0), (border, border), (border, border)))
        # Every place an image can be shifted to, as a view: [N, C, 2 * border + 1, 2 * border + 1, H, W].
        self.windows = np.lib.stride_tricks.sliding_window_view(padded, images.shape[2:], axis=(2, 3))
        self.table = inputs.table(images.shape[1])
        self.recipe, self.seed = recipe, seed
        self.augmented = np.ones(len(images), np.bool_) if augmented is None else augmented

    def __len__(self) -> int:
        return max(1, len(self.windows) // self.recipe.batch_size)

    def epoch(self, number: int) -> Iterator[tuple[npt.NDArray[np.int64], Any]]:
        """Yield ``(rows, x)`` for every batch of an epoch: rows int64 ``[B]``, x float32, channels last."""
        torch = import_optional("torch", NEEDS)
        generator = np.random.default_rng((self.seed, number))
        order = generator.permutation(len(self.windows))
        for start in range(0, len(self) * self.recipe.batch_size, self.recipe.batch_size):
            rows = order[start : start + self.recipe.batch_size]
            x = ops.normalize(self.augment(rows, generator), self.table, layout="NHWC", dtype="float32")
            yield rows, torch.from_numpy(x).permute(0, 3, 1, 2)

    def augment(self, rows: npt.NDArray[np.int64], generator: np.random.Generator) -> npt.NDArray[np.uint8]:
        """These images, each shifted and mirrored by its own draw."""
        border, count, moved = self.recipe.crop, len(rows), self.augmented[rows]
        down, right = generator.integers(0, 2 * border + 1, (2, count))
        mirrored = (generator.random(count) < 0.5) & self.recipe.flip & moved
        down, right = np.where(moved, down, border), np.where(moved, right, border)
        cut: npt.NDArray[np.uint8] = self.windows[rows, :, down, right]
        cut[mirrored] = cut[mirrored, :, :, ::-1]
        if self.recipe.erase:
            _erase(cut, moved, self.recipe.erase, generator)
        return cut


Loss = Callable[[Any, npt.NDArray[np.int64], Any], Any]
"""From logits ``[B, K]``, the rows of the batch and the network's input to a scalar loss, which is minimised."""

Listener = Callable[[Epoch, Callable[[], dict[str, Any]]], "bool | None"]
"""Called after an epoch with a function that returns the state: live tensors, to be saved or copied at once."""


def fit(
    network: Any,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    recipe: Recipe,
    *,
    inputs: Inputs,
    seed: int = 0,
    augmented: npt.NDArray[np.bool_] | None = None,
    loss: Loss | None = None,
    start: dict[str, Any] | None = None,
    listen: Listener | None = None,
    tick: Callable[[int, int], object] | None = None,
) -> list[Epoch]:
    """Train a torch module in place; it is left in training mode.

    Args:
        network: Takes float32 ``[N, C, H, W]`` (channels last), returns logits ``[N, K]``.
        images: uint8 ``[N, C, H, W]``.
        labels: Integers ``[N]``, 0..K-1.
        recipe: How.
        inputs: What the network is fed; layout and dtype are not looked at.
        seed: Fixes order and augmentation. Dropout draws from torch's global state.
        augmented: bool ``[N]``, which images are cropped and flipped; default all.
        loss: From logits (float32), rows and input, the tensors on the network's device, to the loss; default
            cross-entropy with ``labels``.
        start: A state to go on from, as ``listen`` was given one.
        listen: Called after every epoch with an `Epoch` and a function that returns the state; returning True ends
            the training, without an average. It may bring the network into eval mode.
        tick: Called after every step with the steps done and those of the whole training.

    Returns:
        The epochs of this call.

    Raises:
        ModuleNotFoundError: torch is missing.
        ValueError: Images, labels and ``augmented`` do not fit together, or the loss is not finite.

    Runs on the device of the network's first parameter. On the CPU the same arguments, weights and number of threads
    give the same weights again, bit for bit, however often the training was stopped and continued.
    """
    torch = import_optional("torch", NEEDS)
    _check(images, labels, augmented)
    device = next(network.parameters()).device
    network.to(memory_format=torch.channels_last)
    targets = torch.from_numpy(np.ascontiguousarray(labels, np.int64)).to(device)
    batches = Batches(images, inputs, recipe, seed=seed, augmented=augmented)
    optimizer = torch.optim.SGD(
        _groups(network, recipe.weight_decay), lr=recipe.rate, momentum=recipe.momentum, nesterov=recipe.nesterov
    )
    total = recipe.epochs * len(batches)
    schedule = _schedule(optimizer, recipe, total)
    average = torch.optim.swa_utils.AveragedModel(network) if recipe.average else None
    done = 0
    if start is not None:
        done = int(start["epoch"])
        network.load_state_dict(start["network"])
        optimizer.load_state_dict(start["optimizer"])
        schedule.load_state_dict(start["schedule"])
        if average is not None:
            average.load_state_dict(start["average"])

    def state() -> dict[str, Any]:
        parts = {"network": network, "optimizer": optimizer, "schedule": schedule, "average": average}
        return {"epoch": done, **{key: part.state_dict() for key, part in parts.items() if part is not None}}

    def autocast() -> Any:
        return torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16")

    history: list[Epoch] = []
    while done < recipe.epochs:
        began, losses, right, count = time.perf_counter(), [], [], 0
        set_mode(network, training=True)
        for step, (rows, x) in enumerate(batches.epoch(done), start=done * len(batches) + 1):
            x, y = x.to(device), targets[torch.from_numpy(rows)]
            with autocast():
                logits = network(x).float()
            value = torch.nn.functional.cross_entropy(logits, y) if loss is None else loss(logits, rows, x)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            rate = float(schedule.get_last_lr()[0])
            schedule.step()
            losses.append(value.detach())
            right.append((logits.detach().argmax(1) == y).sum())
            count += len(rows)
            if tick is not None:
                tick(step, total)
        done += 1
        epoch = Epoch(
            epoch=done,
            loss=float(torch.stack(losses).mean()),
            accuracy=float(torch.stack(right).sum()) / count,
            rate=rate,
            seconds=time.perf_counter() - began,
        )
        if not math.isfinite(epoch.loss):
            msg = f"the loss of epoch {done} is {epoch.loss}; lower the learning rate, {recipe.rate}"
            raise ValueError(msg)
        if average is not None and done > recipe.epochs - recipe.average:
            average.update_parameters(network)
        history.append(epoch)
        if listen is not None and listen(epoch, state):
            return history
    if average is not None:
        network.load_state_dict(average.module.state_dict())
        with autocast():
            torch.optim.swa_utils.update_bn((x.to(device) for _, x in batches.epoch(recipe.epochs)), network)
    return history


def _check(
    images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], augmented: npt.NDArray[np.bool_] | None
) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        msg = f"images must be uint8 [N, C, H, W] with N >= 1, got {images.dtype} {list(images.shape)}"
        raise ValueError(msg)
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),) or labels.min() < 0:
        least = f" from {labels.min()} on" if labels.size else ""
        msg = f"labels must be {len(images)} integers from 0 on, got {labels.dtype} {list(labels.shape)}{least}"
        raise ValueError(msg)
    if augmented is not None and (augmented.dtype != np.bool_ or augmented.shape != (len(images),)):
        msg = f"augmented must be {len(images)} booleans, got {augmented.dtype} {list(augmented.shape)}"
        raise ValueError(msg)


def _schedule(optimizer: Any, recipe: Recipe, steps: int) -> Any:
    schedules = import_optional("torch", NEEDS).optim.lr_scheduler
    if recipe.schedule == "constant":
        return schedules.ConstantLR(optimizer, 1.0)
    # A rise of a single step is none, and torch would divide by its length.
    warmup = recipe.warmup if recipe.warmup * steps != 1 else 0.0
    return schedules.OneCycleLR(optimizer, recipe.rate, total_steps=steps, pct_start=warmup, cycle_momentum=False)


def accuracy(network: Any, seeds: Seeds, inputs: Inputs, *, batch_size: int = EVALUATION_BATCH) -> float:
    """Share of labelled seeds (0..1) that a torch module in eval mode labels rightly.

    Raises:
        ValueError: The seeds have no labels.
    """
    if seeds.labels is None:
        msg = "seeds must have labels for an accuracy, got none"
        raise ValueError(msg)
    predicted = predict(network, seeds.images, inputs, batch_size=batch_size).argmax(1)
    return float((predicted == seeds.labels).mean())


def predict(
    network: Any, images: npt.NDArray[np.uint8], inputs: Inputs, *, batch_size: int = EVALUATION_BATCH
) -> npt.NDArray[np.float32]:
    """Logits float32 ``[N, K]`` of a torch module in eval mode for uint8 images ``[N, C, H, W]``."""
    torch = import_optional("torch", NEEDS)
    device = next((tensor.device for tensor in network.parameters()), torch.device("cpu"))
    table, parts = inputs.table(images.shape[1]), []
    with torch.inference_mode():
        for first in range(0, len(images), batch_size):
            x = ops.normalize(images[first : first + batch_size], table, layout="NHWC", dtype="float32")
            parts.append(network(torch.from_numpy(x).permute(0, 3, 1, 2).to(device)).float().cpu().numpy())
    logits: npt.NDArray[np.float32] = np.concatenate(parts)
    return logits


def _erase(
    images: npt.NDArray[np.uint8], chosen: npt.NDArray[np.bool_], side: int, generator: np.random.Generator
) -> None:
    """Hide a square of each chosen image (DeVries and Taylor, 2017); at the border a part of it may lie outside."""
    height, width = images.shape[2:]
    centres = generator.integers(0, (height, width), (len(images), 2))
    down, right = np.arange(height) - centres[:, :1] + side // 2, np.arange(width) - centres[:, 1:] + side // 2
    rows, columns = (down >= 0) & (down < side), (right >= 0) & (right < side)
    hidden = rows[:, :, None] & columns[:, None, :] & chosen[:, None, None]
    np.copyto(images, np.uint8(GREY), where=hidden[:, None])


def _groups(network: Any, decay: float) -> list[dict[str, Any]]:
    """Weights of convolutions and linear layers decay; biases and normalisation do not."""
    decays = [p for p in network.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in network.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decays, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def set_mode(network: Any, *, training: bool) -> Any:
    """Bring a torch module into training or eval mode, exported graphs included, and return it."""
    if "train" in vars(network):  # torch.export puts a train() there that only raises
        pt2e = import_optional("torchao.quantization.pt2e", "the mode of an exported graph")
        move = pt2e.move_exported_model_to_train if training else pt2e.move_exported_model_to_eval
        move(network)
        return network
    return network.train(training)
