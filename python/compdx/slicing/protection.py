"""Protection of the classes that matter: the synapses that decide them are hidden, the rest may be public."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from compdx.compress.common import copied, finetune
from compdx.compress.ranking import by_layer, choose, lowest
from compdx.model import Inputs, import_optional
from compdx.seeds import Seeds
from compdx.slicing import files
from compdx.slicing.targeting import check_classes
from compdx.training import Epoch, Recipe, predict, set_mode

if TYPE_CHECKING:
    from compdx.slicing.contributions import Slice

NEEDS = "slicing"
RECIPE = Recipe(
    epochs=10,
    batch_size=256,
    rate=5e-3,
    schedule="constant",
    momentum=0.5,
    nesterov=False,
    weight_decay=0.0,
    crop=0,
    flip=False,
)
"""How the attacker of the published code trains; what it does to the images is not known, here it is nothing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Hidden:
    """The weights that were hidden, and where they belong.

    Attributes:
        places: By layer, int64 ``[n]``: flat indices into its weight, ascending.
        shapes: By layer, of that weight.
        values: By layer, ``[n]``: the weights.
    """

    places: dict[str, npt.NDArray[np.int64]]
    shapes: dict[str, tuple[int, ...]]
    values: dict[str, npt.NDArray[Any]]

    def __len__(self) -> int:
        return sum(map(len, self.places.values()))

    def restore(self, network: Any) -> Any:
        """A copy of the public network with the hidden weights put back.

        Raises:
            TypeError, ValueError: It is no torch module in eval mode, or has no such weights.
        """
        whole, torch = copied(network, "network"), import_optional("torch", NEEDS)
        choose(whole, list(self.places))
        for name, places in self.places.items():
            weight = whole.get_submodule(name).weight
            if tuple(weight.shape) != self.shapes[name]:
                msg = f"network must be the public one, but its layer {name!r} has weights {list(weight.shape)}"
                raise ValueError(msg)
            with torch.no_grad():
                flat = weight.detach().cpu().reshape(-1).clone()
                flat[torch.from_numpy(places)] = torch.from_numpy(self.values[name]).to(flat.dtype)
                weight.copy_(flat.reshape(weight.shape))
        return whole

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the hidden weights to a ``.safetensors`` file and return its path."""
        arrays: dict[str, npt.NDArray[Any]] = {f"places/{name}": array for name, array in self.places.items()}
        arrays |= {f"values/{name}": array for name, array in self.values.items()}
        return files.write(path, "hidden weights", arrays, {"shapes": self.shapes})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Hidden:
        """Read what `save` wrote; see `files.read` for the errors."""
        arrays, about = files.read(path, "hidden weights")
        with files.complete(path, "hidden weights"):
            shapes = {name: tuple(shape) for name, shape in about["shapes"].items()}
            places, values = ({name: arrays[f"{kind}/{name}"] for name in shapes} for kind in ("places", "values"))
            return cls(places=places, shapes=shapes, values=values)


def protect(model: Any, scores: Slice | Mapping[str, Any], share: float = 0.5) -> tuple[Any, Hidden]:
    """Hide the weights of largest scores: what can be published, with zeros in their places, and what is kept back.

    Args:
        model: A torch module in eval mode. It is not changed.
        scores: As for `compress.prune`: a `Slice`, what `ClassScores.of` gives for the classes to protect, or any
            mapping of layers such as that of `compress.rank`.
        share: Of every layer of N weights exactly ⌊``share`` · N⌋ are hidden, of equal scores those of the smallest
            index; between 0 and 1.

    Returns:
        The public network, a copy in eval mode, and the `Hidden` weights.

    Raises:
        ModuleNotFoundError: torch is missing.
        TypeError, ValueError: An argument is of the wrong kind; a layer does not exist or has no weight of its own.

    Nothing is random. Zhang et al., ESEC/FSE 2020, section 5.4; docs/methods.md.
    """
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
        msg = f"share must be a number between 0 and 1, got {share!r}"
        raise ValueError(msg)
    public, torch = copied(model), import_optional("torch", NEEDS)
    ranks = by_layer(scores)
    places, shapes, values = {}, {}, {}
    for name in choose(public, list(ranks)):
        weight = public.get_submodule(name).weight
        array = np.asarray(ranks[name])
        # Whole numbers stay exact as long as they have a sign to change.
        negative = -array.astype(np.int64 if array.dtype.kind in "iu" else np.float64)
        gone = (lowest(name, weight, negative, share) == 0).cpu().numpy()
        if weight.dtype != torch.float32:
            msg = f"layer {name!r} must have float32 weights to be hidden, got {weight.dtype}"
            raise ValueError(msg)
        places[name], shapes[name] = np.flatnonzero(gone), tuple(weight.shape)
        values[name] = weight.detach().cpu().numpy()[gone]
        with torch.no_grad():
            weight[torch.from_numpy(gone).to(weight.device)] = 0
    return public, Hidden(places=places, shapes=shapes, values=values)


@dataclass(frozen=True, kw_only=True, eq=False)
class Recovery:
    """What an attacker reached by training a public network.

    Attributes:
        network: As the training left it.
        right: int64 ``[epochs + 1, K]``: test images of each class that were labelled rightly, first by the public
            network as it is and then after every epoch; where the recipe averages weights, one row more for the
            average, which is the network then.
        counts: int64 ``[K]``: test images of each class.
        record: Of the training, as JSON values.
    """

    network: Any
    right: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    record: dict[str, Any]

    def accuracies(self, classes: Iterable[int] | None = None) -> npt.NDArray[np.float64]:
        """Accuracy (0..1) on the test images of some classes, or of all, float64, a row of ``right`` each."""
        chosen = list(range(len(self.counts))) if classes is None else check_classes(classes, len(self.counts))
        found: npt.NDArray[np.float64] = self.right[:, chosen].sum(1) / self.counts[chosen].sum()
        return found

    def best(self, classes: Iterable[int] | None = None) -> float:
        """The best of them: the attacker is granted the right moment to stop."""
        return float(self.accuracies(classes).max())


def recover(
    public: Any,
    victim: Any,
    transfer: Any,
    *,
    test: Seeds,
    inputs: Inputs,
    recipe: Recipe = RECIPE,
    seed: int = 0,
    listen: Callable[[Epoch], object] | None = None,
) -> Recovery:
    """Attack a protection: train the public network, zeros included, on images that the victim labels.

    Args:
        public: What the attacker has: a torch module in eval mode. It is not changed.
        victim: What the attacker can ask: the whole network, a torch module in eval mode.
        transfer: The attacker's images: `Seeds`, whose labels are not looked at, or uint8 ``[N, C, H, W]``.
        test: Labelled images that the attacker is measured on after every epoch, by their own labels.
        inputs: What both networks are fed.
        recipe: How the attacker trains.
        seed: Fixes order and augmentation.
        listen: Called after every epoch.

    Raises:
        ModuleNotFoundError: torch is missing.
        TypeError, ValueError: An argument is of the wrong kind; ``test`` has no labels; the loss is not finite.

    Runs on the devices of the networks. Zhang et al., ESEC/FSE 2020, section 5.4; docs/methods.md.
    """
    network, whole = copied(public, "public"), copied(victim, "victim")
    if not isinstance(test, Seeds) or test.labels is None or test.labels.min() < 0:
        msg = f"test must be compdx.Seeds with a label for every image, got {test!r}"
        raise ValueError(msg)
    labels = test.labels
    images = transfer.images if isinstance(transfer, Seeds) else transfer
    answers = predict(whole, images, inputs).argmax(1)
    right: list[npt.NDArray[np.int64]] = []

    def measure() -> None:
        scores = predict(set_mode(network, training=False), test.images, inputs)
        if labels.max() >= scores.shape[1]:
            msg = f"test must have labels of the {scores.shape[1]} classes of public, got {labels.max()}"
            raise ValueError(msg)
        own = labels[scores.argmax(1) == labels]
        right.append(np.bincount(own, minlength=scores.shape[1]))

    def after(epoch: Epoch, _: object) -> None:
        measure()
        if listen is not None:
            listen(epoch)

    measure()
    trained = finetune(network, Seeds(images, answers), recipe, inputs=inputs, seed=seed, listen=after)
    if recipe.average:
        measure()
    return Recovery(
        network=network,
        right=np.stack(right),
        counts=np.bincount(labels, minlength=right[0].size),
        record={"recipe": recipe.settings(), "seed": seed, "trained": trained},
    )
