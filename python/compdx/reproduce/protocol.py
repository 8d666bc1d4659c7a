"""CompD's experiments from start to end: train, compress, search, classify, repair, search again, attack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from compdx import api, attacks, compress, repair, training, zoo
from compdx.compressed import Compressed, state_of
from compdx.findings import Findings
from compdx.methods.gradient import Gradient
from compdx.model import Inputs, Model, Pair, import_optional
from compdx.reproduce import published
from compdx.reproduce.stages import Stages
from compdx.seeds import Seeds
from compdx.training import Recipe
from compdx.zoo import files

CIFAR10 = Inputs(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
AMOUNT = 0.75
CALIBRATION = 512
# A repair may cost so much accuracy on the images that choose its checkpoint: the last epoch above that is taken.
TOLERANCE = 0.005
SEARCHES = {
    "plain": Gradient(),  # Algorithm 1
    "coverage": Gradient(coverage=True),  # Algorithm 2
    "margin": Gradient(score="margin"),  # ours
}


@dataclass(frozen=True, kw_only=True)
class Mending:
    """How a compressed network is repaired.

    Attributes:
        recipe: Of the training.
        pictures, images: Most pictures and training images that it uses; ``None`` for all.
    """

    recipe: Recipe
    pictures: int | None = None
    images: int | None = None


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large a study is.

    Attributes:
        seeds: Test images that are searched from.
        unseen: Other test images that the repaired model is searched from.
        again: So many of the seeds, which the repaired model is searched from once more.
        reported: Test images, none of them a seed, on which accuracies are reported.
        train, prune, quant: Recipes of the original and of the two compressions.
        repair: How each scheme, ``"prune"`` and ``"quant"``, is repaired.
        chains: Slots of a search.
    """

    seeds: int
    unseen: int
    again: int
    reported: int
    train: Recipe
    prune: Recipe
    quant: Recipe
    repair: dict[str, Mending]
    chains: int


_TUNE = Recipe(schedule="constant", nesterov=False)
SCALES = {
    # What two cores do in about half an hour with the network that comes with compdx.
    "small": Scale(
        seeds=1000,
        unseen=500,
        again=500,
        reported=2000,
        train=Recipe(epochs=44),
        prune=Recipe(epochs=8, rate=0.01, schedule="constant", erase=8, average=6),
        quant=Recipe(epochs=1, rate=2e-4, erase=8, weight_decay=1e-4),
        # A pruned network has little room: half of its pictures change their label, and learning too many of them at
        # once costs accuracy. The quantized one forgives more, but a step of it takes three times as long.
        repair={
            "prune": Mending(recipe=Recipe(epochs=3, rate=5e-3, erase=8), pictures=4000),
            "quant": Mending(recipe=Recipe(epochs=8, rate=2e-3, erase=8), pictures=10_000, images=10_000),
        },
        chains=125,
    ),
    # The paper's: section 5.1 and the published code.
    "paper": Scale(
        seeds=5000,
        unseen=2500,
        again=2500,
        reported=5000,
        train=Recipe(epochs=60, rate=0.1),
        prune=replace(_TUNE, epochs=20, rate=0.01),
        quant=replace(_TUNE, epochs=10, rate=1e-3, weight_decay=1e-4),
        repair=dict.fromkeys(("prune", "quant"), Mending(recipe=replace(_TUNE, epochs=50, rate=1e-3))),
        chains=1000,
    ),
}


@dataclass(kw_only=True, eq=False)
class Study:
    """One network, one scheme, one directory; every property is read from disk where it is there already.

    Attributes:
        model: Name of the network in the zoo.
        scheme: ``"prune"`` or ``"quant"``.
        scale: How large.
        data: ``(train, test)``, labelled.
        stages: The directory.
        seed: Run seed of training, repair, search and of the split of the test images.
        device: Where everything runs.
    """

    model: str
    scheme: str
    scale: Scale
    data: tuple[Seeds, Seeds]
    stages: Stages
    seed: int
    device: str
    inputs: Inputs = field(default=CIFAR10)

    @property
    def title(self) -> str:
        """Network and scheme, for people."""
        return f"{self.model} {self.scheme}"

    @cached_property
    def _split(self) -> tuple[Seeds, Seeds, Seeds]:
        """Seeds, unseen seeds and reported images: disjoint halves of the test images, in an order of the run seed.

        As in the paper, the unseen seeds are among the images on which accuracies are reported.
        """
        test, scale = self.data[1], self.scale
        need = scale.seeds + max(scale.reported, scale.unseen)
        if len(test) < need:
            msg = f"the study needs {need} test images, got {len(test)}"
            raise ValueError(msg)
        order = np.random.default_rng(self.seed).permutation(len(test))
        rest = order[scale.seeds :]
        return tuple(  # type: ignore[return-value]
            test.select(np.sort(rows)) for rows in (order[: scale.seeds], rest[: scale.unseen], rest[: scale.reported])
        )

    @property
    def mending(self) -> Mending:
        """How the network is repaired."""
        return self.scale.repair[self.scheme]

    @property
    def seeds(self) -> Seeds:
        """The images that are searched from."""
        return self._split[0]

    @property
    def unseen(self) -> Seeds:
        """The images that only the repaired model is tested with."""
        return self._split[1]

    @property
    def reported(self) -> Seeds:
        """The images on which accuracies are reported."""
        return self._split[2]

    @cached_property
    def train(self) -> tuple[Seeds, Seeds]:
        """Training images without, and those that choose the checkpoint of a repair: a tenth."""
        chooses = np.arange(len(self.data[0])) % 10 == 0
        return self.data[0].select(~chooses), self.data[0].select(chooses)

    @cached_property
    def original(self) -> Any:
        """The original network, in eval mode."""
        network = zoo.build(self.model, channels=self.seeds.shape[0], size=self.seeds.shape[1])

        def work() -> dict[str, Any]:
            if self.model == "resnet20":
                network.load_state_dict(zoo.pretrained("resnet20-cifar10").network.state_dict())
                self._save("original", network)
                return {"source": "shipped with compdx"}
            with _seeded(self.seed):
                fresh = zoo.build(self.model, channels=self.seeds.shape[0], size=self.seeds.shape[1]).to(self.device)
                images, labels = self._labelled(self.data[0])
                history = training.fit(fresh, images, labels, self.scale.train, inputs=self.inputs, seed=self.seed)
            self._save("original", fresh)
            return {"source": "trained", "epochs": [asdict(epoch) for epoch in history]}

        self.stages.run("1-original", work)
        self._load("original", network)
        return training.set_mode(network.to(self.device), training=False)

    @cached_property
    def compressed(self) -> Compressed:
        """The compressed network before repair."""
        if not self.stages.done("2-compressed"):

            def work() -> dict[str, Any]:
                made = self._compress(train=True)
                self._save("compressed", made.twin)
                return {"record": made.record}

            self.stages.run("2-compressed", work)
        return self._restored("compressed")

    @cached_property
    def repaired(self) -> Compressed:
        """The compressed network after repair."""

        def work() -> dict[str, Any]:
            mending = self.mending
            done = repair.finetune(
                self.pair,
                self.findings(self.best),
                train=self.train[0],
                holdout=self.train[1],
                recipe=mending.recipe,
                picture_limit=mending.pictures,
                train_limit=mending.images,
                tolerance=TOLERANCE,
                seed=self.seed,
                progress=False,
            )
            self._save("repaired", done.pair.compressed.twin)
            return {"report": done.report.to_json(), "epochs": [asdict(epoch) for epoch in done.history]}

        self.stages.run("5-repair", work)
        return self._restored("repaired")

    @property
    def pair(self) -> Pair:
        """Original and compressed."""
        return self._pair(self.compressed)

    @property
    def repaired_pair(self) -> Pair:
        """Original and repaired."""
        return self._pair(self.repaired)

    @property
    def best(self) -> str:
        """The search that findings for the repair come from: with neuron coverage where the paper has it."""
        return "coverage" if self.scheme == "prune" else "plain"

    def findings(self, name: str) -> Findings:
        """What a search of the seeds found; ``name`` is one of `SEARCHES`."""
        return self._search(name, self.pair, self.seeds, name)

    def run(self) -> dict[str, Any]:
        """Every stage; the figures of all tables."""
        scale, stages = self.scale, self.stages
        figures: dict[str, Any] = {
            "model": self.model,
            "scheme": self.scheme,
            "seed": self.seed,
            "scale": {"seeds": scale.seeds, "unseen": scale.unseen, "reported": scale.reported},
        }

        def compressed() -> dict[str, Any]:
            return {
                "original": self._accuracy(Model(self.original, **self._options())),
                "compressed": self._accuracy(self.pair.compressed),
                "record": self.compressed.record,
            }

        figures["accuracy"] = stages.run("3-accuracy", compressed)
        for name in ("plain", *(("coverage",) if self.scheme == "prune" else ()), "margin"):
            figures[name] = stages.run(f"4-search-{name}", partial(self._classes_of_seeds, name))

        def mended() -> dict[str, Any]:
            again = self.findings(self.best).pictures
            assert again is not None
            return {
                "accuracy": self._accuracy(self.repaired_pair.compressed),
                "effective": again.relabelled(self.repaired_pair).counts(),
            }

        _ = self.repaired
        figures["repaired"] = stages.run("6-repaired", mended)
        figures["unseen"] = stages.run("7-unseen", self._unseen)
        figures["again"] = stages.run("8-again", self._searched_again)
        figures["fgsm"] = stages.run(
            "9-fgsm",
            lambda: {
                name: self._fgsm(model)
                for name, model in (
                    ("original", self.pair.original),
                    ("before", self.pair.compressed),
                    ("after", self.repaired_pair.compressed),
                )
            },
        )
        return figures

    def _unseen(self) -> dict[str, Any]:
        """Pictures of unseen seeds: as the repaired model labels them (the paper's), and those of a fresh search."""
        found = self._search("unseen", self.pair, self.unseen, self.best)
        pictures = found.pictures
        assert pictures is not None
        return {
            "before": self._classes(found, self.unseen),
            "after": pictures.relabelled(self.repaired_pair).counts(),
            "fresh": self._classes(
                self._search("unseen-repaired", self.repaired_pair, self.unseen, self.best), self.unseen
            ),
        }

    def _searched_again(self) -> dict[str, Any]:
        """Effective pictures from the first seeds before the repair, and in a fresh search after it."""
        seeds = self.seeds.select(slice(self.scale.again))
        before = self.findings(self.best).pictures
        assert before is not None
        before = before.select(np.isin(before.seed_index, seeds.indices))
        found = self._search("again", self.repaired_pair, seeds, self.best)
        return {"seeds": len(seeds), "before": before.counts(), "after": self._classes(found, seeds)}

    def _compress(self, *, train: bool) -> Compressed:
        """Compress the original; without training the same structure, to load a trained state into."""
        options: dict[str, Any] = {"inputs": self.inputs}
        if train:
            recipe = self.scale.prune if self.scheme == "prune" else self.scale.quant
            # Not with the images that choose the checkpoint of a repair.
            options |= {"train": self.train[0], "recipe": recipe, "seed": self.seed}
        if self.scheme == "prune":
            return compress.prune(self.original, AMOUNT, **options)
        calibration = self.train[1].select(slice(CALIBRATION))
        return compress.quantize(self.original, calibration, mode="qat", **options)

    def _restored(self, name: str) -> Compressed:
        """A compressed network whose trained twin was saved."""
        record = self.stages.run("2-compressed", dict)["record"]
        made = self._compress(train=False)
        start = state_of(made.twin)
        self._load(name, made.twin)
        return replace(made.rebuilt(training.set_mode(made.twin, training=False)), record=record, start=start)

    def _options(self) -> dict[str, Any]:
        return {
            "mean": self.inputs.mean,
            "std": self.inputs.std,
            "memory_format": "channels_last",
            "device": self.device,
        }

    def _pair(self, compressed: Compressed) -> Pair:
        return Pair(Model(self.original, **self._options()), Model(compressed, **self._options()))

    def _search(self, name: str, pair: Pair, seeds: Seeds, search: str) -> Findings:
        return api.search(
            pair,
            seeds,
            method=SEARCHES[search],
            chains=min(self.scale.chains, len(seeds)),
            seed=self.seed,
            out=self.stages.directory / f"run-{name}",
            resume=True,
            progress=False,
        )

    def _classes_of_seeds(self, name: str) -> dict[str, Any]:
        return self._classes(self.findings(name), self.seeds)

    def _classes(self, findings: Findings, seeds: Seeds) -> dict[str, Any]:
        pictures = findings.pictures
        assert pictures is not None
        counts: dict[str, Any] = dict(pictures.counts())
        effective = pictures.select(pictures.effective)
        paired = seeds.images[seeds.locate(effective.seed_index)]
        unpaired = seeds.images[np.random.default_rng(0).integers(0, len(seeds), len(effective))]
        counts["l2"] = self._distance(effective.images, paired)
        counts["l2_unpaired"] = self._distance(effective.images, unpaired)
        counts["search_seconds"] = findings.summary.seconds
        return counts

    def _distance(self, images: Any, others: Any) -> float | None:
        """Mean of the paper's distance: the L2 norm in input units, divided by the number of values of an image."""
        if not len(images):
            return None
        table = self.inputs.table(images.shape[1])
        channel = np.arange(images.shape[1])[None, :, None, None]
        change = (table[channel, images] - table[channel, others]).reshape(len(images), -1)
        return float(np.linalg.norm(change, axis=1).mean() / change.shape[1])

    def _accuracy(self, model: Model) -> float:
        labels = np.concatenate(
            [
                np.asarray(_host(model(self.reported.images[first : first + 250]))).argmax(1)
                for first in range(0, len(self.reported), 250)
            ]
        )
        return float((labels == self.reported.labels).mean())

    def _fgsm(self, model: Model) -> dict[str, float]:
        found = attacks.accuracy_under(model, self.reported, epsilons=published.EPSILONS)
        return {str(epsilon): accuracy for epsilon, accuracy in found.items()}

    def _labelled(self, seeds: Seeds) -> tuple[Any, Any]:
        if seeds.labels is None:
            msg = "data must have labels to train with, got none"
            raise ValueError(msg)
        return seeds.images, seeds.labels

    def _save(self, name: str, network: Any) -> None:
        safetensors = import_optional("safetensors.torch", "a study", "torch")
        safetensors.save_file(files.stored(network, half=False), self.stages.directory / f"{name}{files.SUFFIX}")

    def _load(self, name: str, network: Any) -> None:
        files.restore(network, self.stages.directory / f"{name}{files.SUFFIX}")


def _host(scores: Any) -> Any:
    return scores if isinstance(scores, np.ndarray) else scores.cpu().numpy()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Let torch draw from this seed for the time being; its own state is left as it was."""
    torch = import_optional("torch", "a study")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
