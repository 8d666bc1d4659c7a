"""Repair by training (CompD, section 4.3): the compressed model learns the original's labels of the pictures found."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from compdx import ops, training
from compdx.attacks import ask
from compdx.findings import Findings
from compdx.methods.base import Method
from compdx.model import Model, Pair, import_optional
from compdx.pictures import Pictures
from compdx.repair import measuring
from compdx.repair.reporting import Repaired, RepairReport
from compdx.screen import Ticker
from compdx.seeds import Seeds
from compdx.training import Epoch, Recipe

NEEDS = "a repair"
# The paper's, but for its 50 epochs, which take hours without a GPU. In float32: the decisions to move are close.
RECIPE = Recipe(epochs=10, rate=0.001, schedule="constant", nesterov=False, precision="float32")
HOLDOUT = 10
"""One in so many training images chooses the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class RepairEpoch:
    """One epoch of a repair.

    Attributes:
        epoch: Its number, from 1.
        loss, accuracy: Means over its batches; accuracy (0..1) with respect to the labels that were trained.
        holdout: Accuracy (0..1) of the model under test, as it would be delivered now, on the holdout images.
        seconds: Spent training.
    """

    epoch: int
    loss: float
    accuracy: float
    holdout: float
    seconds: float


Progress = bool | Callable[[RepairEpoch], object]


def finetune(
    pair: Pair | tuple[Any, Any],
    findings: Findings | Pictures,
    *,
    train: Seeds,
    holdout: Seeds | None = None,
    unseen: Seeds | None = None,
    test: Seeds | None = None,
    recipe: Recipe = RECIPE,
    method: str | Method | None = None,
    patience: int | None = None,
    tolerance: float = 0.0,
    consistency: float = 0.0,
    temperature: float = 2.0,
    label_weight: float = 1.0,
    restart: bool = False,
    train_limit: int | None = None,
    picture_limit: int | None = None,
    keep_zeros: bool = True,
    seed: int = 0,
    progress: Progress = True,
) -> Repaired:
    """Train the compressed model of a pair on the pictures of a search and on training images, shuffled together.

    Of the pictures, those are used on which the original keeps the seed's label, effective and valid ones, with that
    label and as they are; the training images have their true labels and are cropped and flipped. Masks and fake
    quantization stay. The model that is returned is the one of the epoch with the best accuracy on ``holdout``, of
    equals the last; ``tolerance`` says what is equal.

    Args:
        pair: A `Pair`, or a tuple of what it takes. The compressed model is made of a `Compressed`, or is a torch
            module with float32 parameters that takes ``[N, C, H, W]``. Neither model is changed.
        findings: What a search of this pair found, or its pictures. Of a method that keeps no pictures, its effective
            findings are used.
        train: Labelled training images.
        holdout: Labelled images that choose the epoch; the report says nothing of them. Default: every tenth of
            ``train``, which is then not trained on.
        unseen: Seeds of a fresh search before and after, for the report.
        test: Labelled images for the accuracies of the report, plain and under FGSM.
        recipe: How to train. The default is the paper's recipe with 10 epochs in place of its 50. Its
            ``average`` must be 0.
        method: Of the fresh search; default that of ``findings``, with its budget.
        patience: End after so many epochs without a better accuracy on ``holdout``.
        tolerance: How far below the best accuracy on ``holdout``, 0..1, the last epoch may be that is returned. 0 is
            the paper; but where accuracies differ by chance alone, 0 may return a first epoch that mended little.
        consistency: Weight of a second term of the loss, ``temperature ** 2`` times the Kullback-Leibler divergence
            of the compressed model's soft scores from the original's, on pictures and training images. 0 is the paper.
        temperature: Softens both scores in that term, positive.
        label_weight: Weight of the first term, the cross-entropy with the labels. 0, with ``consistency``, trains
            towards the original's scores alone.
        restart: Start from where the compressed model's training once started, the original's own weights under the
            same compression (of a student, its own first weights), which undoes what that training has taken it away
            from the original. The start itself is then a candidate for what is returned, as epoch 0. It needs a
            `Compressed`. With ``label_weight=0``, ``consistency=1`` and ``picture_limit=0`` fresh searches find less
            afterwards; see docs/methods.md.
        train_limit: Most training images, drawn by ``seed``.
        picture_limit: Most pictures: effective ones first, the rest drawn by ``seed``; 0: none, training
            images alone.
        keep_zeros: Keep weights of a plain torch module that are zero at zero. A `Compressed` keeps its own.
        seed: Fixes all randomness: order, crops, flips, dropout, draws, fresh searches.
        progress: ``True`` shows the progress on stderr, ``False`` nothing; a callable gets every `RepairEpoch`.

    Raises:
        ModuleNotFoundError: torch is missing.
        TypeError: The compressed model cannot be trained, or not from its start, or an argument is of the wrong kind.
        ValueError: There is no picture to use, a model is in training mode, or an argument is out of range.

    Runs on the device of the pair. The published script labels pictures with the original in training mode and chooses
    the epoch on the images that it reports on; this does neither.
    """
    pair = Pair.of(pair)
    _check_pair(pair)
    if not isinstance(recipe, Recipe):
        msg = f"recipe must be a compdx.training.Recipe, got {type(recipe).__name__}"
        raise TypeError(msg)
    if recipe.average:
        msg = f"recipe.average must be 0, as the best epoch is returned, got {recipe.average}"
        raise ValueError(msg)
    tell = _listener(progress, recipe.epochs)
    _check_numbers(patience, tolerance, consistency, temperature, label_weight, train_limit, picture_limit)
    ops.checks.check_flag("restart", restart)
    ops.checks.check_seed(seed)
    if consistency and _units(pair.original) != _units(pair.compressed):
        msg = (
            "consistency needs models that want the same input, but "
            f"{pair.original.name!r} wants {pair.original.inputs} and {pair.compressed.name!r} wants "
            f"{pair.compressed.inputs}"
        )
        raise ValueError(msg)
    pictures = measuring.pictures_of(findings)
    shape: Any = pictures.images.shape[1:]
    train = measuring.check_labelled("train", train, shape)
    if holdout is None:
        held = np.arange(len(train)) % HOLDOUT == HOLDOUT - 1
        if not held.any():
            msg = f"train must have at least {HOLDOUT} images to hold one in {HOLDOUT} out, got {len(train)}"
            raise ValueError(msg)
        train, holdout = train.select(~held), train.select(held)
    holdout = measuring.check_labelled("holdout", holdout, shape)
    yardstick = measuring.Yardstick(
        test=None if test is None else measuring.check_labelled("test", test, shape),
        unseen=None if unseen is None else Seeds.of(unseen),
        method=None if unseen is None else measuring.method_of(findings, method),
        seed=seed,
        shown=progress is True,
    )
    network, rebuild = _trainee(pair.compressed, keep_zeros=keep_zeros, restart=restart)

    pictures = pictures.relabelled(pair)
    generator = np.random.default_rng((seed, 1))
    used = _limited(pictures.select(pictures.kept), picture_limit, generator)
    if not len(used) and picture_limit != 0:
        msg = "findings must hold pictures on which the original keeps the seed's label, got none"
        raise ValueError(msg)
    if train_limit is not None and train_limit < len(train):
        train = train.select(np.sort(generator.permutation(len(train))[:train_limit]))
    before = yardstick.measure(pair, pictures)

    listen = _Checkpoints(pair.compressed, network, rebuild, holdout, patience, tolerance, tell)
    if restart:
        listen.look(0)
    labels = np.concatenate([train.labels, used.original_label])
    with _seeded(pair.device, seed):
        training.fit(
            network,
            np.concatenate([train.images, used.images]),
            labels + pair.compressed.class_offset,
            recipe,
            inputs=pair.compressed.inputs,
            seed=seed,
            augmented=np.arange(len(labels)) < len(train),
            loss=_loss(pair, labels, consistency, temperature, label_weight),
            listen=listen,
        )
    repaired = Pair(pair.original, listen.chosen)
    after = yardstick.measure(repaired, pictures.relabelled(repaired))
    report = RepairReport(
        **measuring.changes(before, after),
        unseen_seeds=0 if unseen is None else len(unseen),
        settings={
            "repair": "finetune",
            "recipe": recipe.settings(),
            "train": len(train),
            "pictures": len(used),
            "effective": measuring.count_effective(used),
            "holdout": len(holdout),
            "holdout_accuracy": listen.chosen_accuracy,
            "epoch": listen.chosen_epoch,
            "epochs": len(listen.history),
            "patience": patience,
            "tolerance": tolerance,
            "consistency": consistency,
            "temperature": temperature,
            "label_weight": label_weight,
            "restart": restart,
            "train_limit": train_limit,
            "picture_limit": picture_limit,
            **yardstick.settings(),
        },
    )
    return Repaired(
        pair=repaired, compressed=repaired.compressed.compressed, report=report, history=tuple(listen.history)
    )


@contextmanager
def _seeded(device: str, seed: int) -> Iterator[None]:
    """Let dropout draw from ``seed`` on this device and the CPU, and leave the random state of all as it was."""
    torch = import_optional("torch", NEEDS)
    cuda = [int(device.partition(":")[2])] if device != "cpu" else []
    with torch.random.fork_rng(devices=cuda):
        torch.random.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


class _Checkpoints:
    """Listens to a training: measures every epoch on the holdout images and keeps the best model."""

    def __init__(
        self,
        model: Model,
        network: Any,
        rebuild: Callable[[Any], Any],
        holdout: Seeds,
        patience: int | None,
        tolerance: float,
        tell: Callable[[RepairEpoch], object],
    ) -> None:
        self._model, self._network, self._rebuild = model, network, rebuild
        self._holdout, self._tell = holdout, tell
        self._patience = math.inf if patience is None else patience
        self._tolerance = tolerance
        self._best, self._improved = -1.0, 0
        self.history: list[RepairEpoch] = []
        self.chosen, self.chosen_accuracy, self.chosen_epoch = model, -1.0, 0

    def look(self, epoch: int) -> float:
        """Measure the model as it is now, keep it where it is the best, and return its accuracy."""
        training.set_mode(self._network, training=False)
        candidate = self._model.replace(self._rebuild(_copy(self._network)))
        training.set_mode(self._network, training=True)
        accuracy = measuring.accuracy(candidate, self._holdout)
        if accuracy > self._best:
            self._best, self._improved = accuracy, epoch
        if accuracy >= self._best - self._tolerance:
            self.chosen, self.chosen_accuracy, self.chosen_epoch = candidate, accuracy, epoch
        return accuracy

    def __call__(self, epoch: Epoch, state: Callable[[], dict[str, Any]]) -> bool:  # noqa: ARG002
        accuracy = self.look(epoch.epoch)
        moment = RepairEpoch(
            epoch=epoch.epoch, loss=epoch.loss, accuracy=epoch.accuracy, holdout=accuracy, seconds=epoch.seconds
        )
        self.history.append(moment)
        self._tell(moment)
        return epoch.epoch - self._improved >= self._patience


def _trainee(model: Model, *, keep_zeros: bool, restart: bool) -> tuple[Any, Callable[[Any], Any]]:
    """A copy of what can be trained of a model, and what makes the object under test of it once it is trained."""
    torch = import_optional("torch", NEEDS)
    rebuild: Callable[[Any], Any]
    if model.compressed is not None:
        network, rebuild = _copy(model.compressed.twin), model.compressed.rebuilt
        if restart and model.compressed.start is not None:
            network.load_state_dict(model.compressed.start)
    elif restart:
        msg = f"restart needs a model made of a Compressed, which knows where it started, but {model.name!r} is none"
        raise TypeError(msg)
    else:
        # Exported graphs have a train() of their own, that refuses.
        if model.module is None or model.twin is not model.module or "train" in vars(model.module):
            msg = (
                f"model {model.name!r} cannot be trained: it is neither a plain torch module nor made of a Compressed, "
                "which the functions of compdx.compress return; repair.calibrate needs neither"
            )
            raise TypeError(msg)
        network, rebuild = _copy(model.module), _itself
        if keep_zeros:
            _pin_zeros(network)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not trained or any(parameter.dtype != torch.float32 for parameter in trained):
        got = ", ".join(sorted({str(parameter.dtype) for parameter in trained})) or "none"
        msg = f"model {model.name!r} must have float32 parameters that require gradients to be trained, got {got}"
        raise TypeError(msg)
    return network, rebuild


def _copy(network: Any) -> Any:
    """A deep copy of a torch module, pruned ones included."""
    torch = import_optional("torch", NEEDS)
    # torch.nn.utils.prune keeps masked weights as plain attributes with a graph, which deepcopy refuses.
    tensors = [v for module in network.modules() for v in vars(module).values() if isinstance(v, torch.Tensor)]
    return copy.deepcopy(network, {id(tensor): tensor.detach().clone() for tensor in tensors})


def _itself(network: Any) -> Any:
    return network


def _pin_zeros(network: Any) -> None:
    """Let weights that are exactly zero have no gradient: momentum and decay then leave them there."""
    for weight in network.parameters():
        if weight.requires_grad and weight.ndim > 1:
            weight.register_hook(partial(operator.mul, weight.detach() != 0))


def _loss(
    pair: Pair, labels: npt.NDArray[np.int64], consistency: float, temperature: float, label_weight: float
) -> training.Loss:
    """Cross-entropy with ``labels``, and how far the soft scores are from the original's, weighted."""
    torch = import_optional("torch", NEEDS)
    functional = torch.nn.functional
    targets = torch.from_numpy(labels).to(pair.device)
    original, offset = pair.original, pair.compressed.class_offset

    def loss(logits: Any, rows: npt.NDArray[np.int64], x: Any) -> Any:
        logits = logits[:, offset:]
        value = label_weight * functional.cross_entropy(logits, targets[torch.from_numpy(rows)])
        if consistency:
            wanted = ask(original, x)
            wanted = wanted.clamp_min(1e-30).log() if original.outputs == "probabilities" else wanted
            soft, wanted = ((scores / temperature).log_softmax(1) for scores in (logits, wanted))
            distance = functional.kl_div(soft, wanted, reduction="batchmean", log_target=True)
            value = value + consistency * temperature**2 * distance
        return value

    return loss


def _limited(pictures: Pictures, limit: int | None, generator: np.random.Generator) -> Pictures:
    """At most ``limit`` pictures: effective ones first, each kind in random order, then as they were."""
    if limit is None or limit >= len(pictures):
        return pictures
    order = generator.permutation(len(pictures))
    order = order[np.argsort(~pictures.effective[order], kind="stable")]
    return pictures.select(np.sort(order[:limit]))


def _units(model: Model) -> tuple[Any, ...]:
    return model.inputs.mean, model.inputs.std, model.inputs.bounds


def _check_pair(pair: Pair) -> None:
    for name, model in (("original", pair.original), ("compressed", pair.compressed)):
        if model.training:
            msg = f"the {name} model, {model.name!r}, must be in eval mode for a repair, got one in training mode"
            raise ValueError(msg)
    model = pair.compressed
    if model.outputs != "logits":
        msg = f"model {model.name!r} must return logits to be trained, got {model.outputs}"
        raise ValueError(msg)
    if model.inputs.layout == "NHWC" and model.memory_format != "channels_last":
        msg = f"model {model.name!r} must take [N, C, H, W] to be trained, got layout='NHWC'"
        raise ValueError(msg)


def _check_numbers(
    patience: int | None,
    tolerance: float,
    consistency: float,
    temperature: float,
    label_weight: float,
    train_limit: int | None,
    picture_limit: int | None,
) -> None:
    limits = {"patience": (patience, 1), "train_limit": (train_limit, 1), "picture_limit": (picture_limit, 0)}
    for name, (value, least) in limits.items():
        if value is not None:
            ops.checks.within(name, value, least, 1 << 40)
    if not 0 <= tolerance <= 1:
        msg = f"tolerance must be in 0..1, got {tolerance!r}"
        raise ValueError(msg)
    for name, weight in (("consistency", consistency), ("label_weight", label_weight)):
        if not (math.isfinite(weight) and weight >= 0):
            msg = f"{name} must be a number of at least 0, got {weight!r}"
            raise ValueError(msg)
    if not consistency and not label_weight:
        msg = "label_weight must be above 0 where consistency is 0: there would be nothing to learn"
        raise ValueError(msg)
    if not (math.isfinite(temperature) and temperature > 0):
        msg = f"temperature must be a positive number, got {temperature!r}"
        raise ValueError(msg)


def _listener(progress: Progress, epochs: int) -> Callable[[RepairEpoch], object]:
    if callable(progress):
        return progress
    if not isinstance(progress, bool):
        msg = f"progress must be True, False or a callable, got {type(progress).__name__}"
        raise TypeError(msg)
    if not progress:
        return lambda _: None
    ticker = Ticker("epochs of the repair")
    return lambda moment: ticker(moment.epoch, epochs)
