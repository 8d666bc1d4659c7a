"""White-box search by the gradients of both models: CompD (Li et al., ACML 2023), Algorithms 1 and 2."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from compdx import ops
from compdx.derivatives import SCORES, PairGradient
from compdx.findings import EFFECTIVE, EXHAUSTED, INVALID, NON_FINITE, SEED, Findings, Outcomes
from compdx.methods.base import Progress
from compdx.model import import_optional
from compdx.pictures import Trail, confidences_of
from compdx.seeds import Seeds

if TYPE_CHECKING:
    from compdx.model import Inputs, Pair

CONSTRAINTS = ("per_step", "total", "none")
STOPS = ("never", "deviation")
# The published constants, variances of CIFAR-10's channels in 0..1; for grey images that of MNIST.
VARIANCES = {3: (0.0608027, 0.05892733, 0.06850188), 1: (0.0949,)}
_DEFAULT_CHAINS = 128
_LARGEST_BUDGET = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """Settings of the white-box search; the defaults are the paper's intended method.

    Every seed is followed for ``budget`` steps. Each step moves the image, in the models' own input units, against the
    gradient of ``-(CS_o - CS_c)``, the scores of both models for the class that the original gives the image now. The
    picture of the image (rounded to 8 bits) is what both models are asked about.

    Args:
        budget: steps from each seed, and so pictures of it, 1 or more (the paper's p).
        step: length factor of a step (the published code's learning rate).
        score: CS: ``"logit"`` (the published code), ``"confidence"`` (softmax; the paper's text, whose gradient
            vanishes where a model is sure) or ``"margin"`` (the logit less the largest other one, which is what a
            label hangs on; ours).
        constraint: what ``variance`` bounds: ``"per_step"`` the change of each step (the paper), ``"total"`` the
            distance to the seed, ``"none"`` nothing (what the published code does, where the bound has no effect).
        variance: the bound in the models' input units, one number or one a channel; None is the published constants
            (for one channel 0.0949, MNIST's variance).
        project: keep the image within the range of pictures after every step; the published code does not.
        lattice: put the image itself, not only its picture, on the 256 levels.
        coverage: raise a neuron of the compressed model at every step (Algorithm 2): one that is positive in the
            original and not in the compressed model, uniform over layers, then over positions.
        weight: of that neuron in the loss (the paper's lambda).
        trials: draws before all neurons are looked through; a matter of speed alone.
        stop: ``"never"`` takes all steps from every seed and keeps every picture (the paper); ``"deviation"`` ends a
            seed at its first deviating picture, or on the seed itself.

    Needs torch modules, or models with a ``twin``. Differences from the paper and its code: docs/methods.md.
    Randomness: only for ``coverage``, docs/arithmetic.md.
    """

    budget: int = 10
    step: float = 0.9
    score: str = "logit"
    constraint: str = "per_step"
    variance: float | tuple[float, ...] | None = None
    project: bool = True
    lattice: bool = False
    coverage: bool = False
    weight: float = 20.0
    trials: int = 64
    stop: str = "never"

    def __post_init__(self) -> None:
        ops.checks.within("budget", self.budget, 1, _LARGEST_BUDGET)
        ops.checks.within("trials", self.trials, 0, 1 << 20)
        for name, value, allowed in (
            ("score", self.score, SCORES),
            ("constraint", self.constraint, CONSTRAINTS),
            ("stop", self.stop, STOPS),
        ):
            if value not in allowed:
                msg = f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}"
                raise ValueError(msg)
        if self.variance is not None:
            values = tuple(np.atleast_1d(np.asarray(self.variance, np.float64)).tolist())
            if not values or not all(np.isfinite(value) and value >= 0 for value in values):
                msg = f"variance must be one number of at least 0, or one a channel, got {self.variance!r}"
                raise ValueError(msg)
            object.__setattr__(self, "variance", values if len(values) > 1 else values[0])
        for name in ("step", "weight"):
            if not np.isfinite(getattr(self, name)):
                msg = f"{name} must be finite, got {getattr(self, name)!r}"
                raise ValueError(msg)

    @classmethod
    def artifact(cls, *, budget: int = 10, coverage: bool = False) -> Gradient:
        """Return the search as the published code does it: logits, steps without a bound, images without a range."""
        return cls(budget=budget, coverage=coverage, score="logit", constraint="none", project=False)

    @property
    def name(self) -> str:
        """The name that ``search(method=...)`` knows it by."""
        return "gradient"

    @property
    def white_box(self) -> bool:
        """It is started with the models themselves."""
        return True

    def settings(self) -> dict[str, Any]:
        """Return all settings as plain JSON values."""
        return asdict(self)

    def bounds(self, channels: int) -> npt.NDArray[np.float32]:
        """The variance bound of every channel, float32 ``[channels]``.

        Raises:
            ValueError: ``variance`` has neither one value nor one a channel, or must be given for these images.
        """
        variance = VARIANCES.get(channels) if self.variance is None else self.variance
        values = np.atleast_1d(np.asarray(() if variance is None else variance, np.float32))
        if len(values) not in (1, channels):
            got = "none" if self.variance is None else f"{len(values)}"
            msg = f"variance must have one value or one per channel ({channels}), got {got}"
            raise ValueError(msg)
        bounds: npt.NDArray[np.float32] = np.broadcast_to(values, (channels,)).copy()
        return bounds

    def start(
        self,
        seeds: Seeds,
        *,
        pair: Pair | None = None,
        chains: int | None = None,
        seed: int = 0,
        device: str = "cpu",
        inputs: Inputs | None = None,
        outputs: tuple[str, str] = ("logits", "logits"),
        done: Iterable[int] | None = None,
        state: Mapping[str, npt.NDArray[Any]] | None = None,
        threads: int | None = None,
    ) -> GradientLoop:
        """Start a search over ``seeds``, or restore one.

        Args:
            seeds: the images, uint8 ``[N, C, H, W]`` with their identities.
            pair: the models, for their gradients; it must be given.
            chains: number of slots, which is the batch size of every ``ask``; default min(N, 128).
            seed: run seed, 0..2**64-1.
            device: that of the pair.
            inputs: what the models want to be fed; ``ask`` then returns that instead of uint8.
            outputs: ``"logits"`` or ``"probabilities"``, of the original and of the compressed model.
            done: identities of seeds that need no work; those that ended before a checkpoint must be among them.
            state: a checkpoint of an earlier loop over the same seeds with the same settings.
            threads: CPU only; they change the speed, not the result.

        Raises TypeError or ValueError by the argument's name.
        """
        if pair is None:
            msg = "pair must be given to Gradient.start: the search needs the models' gradients"
            raise TypeError(msg)
        seeds = Seeds.of(seeds)
        slots = min(len(seeds), _DEFAULT_CHAINS) if chains is None else chains
        ops.checks.within("chains", slots, 1, 1 << 24)
        ops.checks.check_seed(seed)
        return GradientLoop(
            self,
            seeds,
            PairGradient(pair, score=self.score, weight=self.weight),
            slots=slots,
            run_seed=seed,
            device=device,
            inputs=inputs,
            outputs=outputs,
            done=set() if done is None else {int(index) for index in done},
            state=state,
            threads=threads,
        )


IDLE = -1


@dataclass
class _Slots:
    """What the host knows of every slot: the chain in it and what its pictures gave so far."""

    row: npt.NDArray[np.int64]  # of the seed; IDLE for none
    step: npt.NDArray[np.int64]  # of the picture that is asked about next; 0 is the seed
    seed_label: npt.NDArray[np.int32]
    already: npt.NDArray[np.bool_]
    labels: npt.NDArray[np.int32]  # [slots, budget + 1, 2]
    confidences: npt.NDArray[np.float64]  # [slots, budget + 1, 2]
    l2_squared: npt.NDArray[np.int64]  # [slots, budget + 1]
    linf: npt.NDArray[np.uint8]  # [slots, budget + 1]
    non_finite: npt.NDArray[np.uint8]

    @classmethod
    def empty(cls, slots: int, budget: int) -> _Slots:
        return cls(
            row=np.full(slots, IDLE, np.int64),
            step=np.zeros(slots, np.int64),
            seed_label=np.full(slots, -1, np.int32),
            already=np.zeros(slots, np.bool_),
            labels=np.full((slots, budget + 1, 2), -1, np.int32),
            confidences=np.full((slots, budget + 1, 2), np.nan),
            l2_squared=np.zeros((slots, budget + 1), np.int64),
            linf=np.zeros((slots, budget + 1), np.uint8),
            non_finite=np.zeros(slots, np.uint8),
        )

    @property
    def busy(self) -> npt.NDArray[np.bool_]:
        busy: npt.NDArray[np.bool_] = self.row != IDLE
        return busy


@dataclass
class _Counts:
    ended: int = 0
    found: int = 0
    already_deviating: int = 0
    exhausted: int = 0
    queries: int = 0
    iterations: int = 0
    outcomes: list[Outcomes] = field(default_factory=list)


class GradientLoop:
    """A search under way: ``ask``, score, ``tell`` while ``active``. Started by ``Gradient.start``."""

    def __init__(
        self,
        method: Gradient,
        seeds: Seeds,
        gradient: PairGradient,
        *,
        slots: int,
        run_seed: int,
        device: str,
        inputs: Inputs | None,
        outputs: tuple[str, str],
        done: set[int],
        state: Mapping[str, npt.NDArray[Any]] | None,
        threads: int | None,
    ) -> None:
        self._torch = torch = import_optional("torch", "a gradient search")
        self._method, self._seeds, self._gradient = method, seeds, gradient
        self._run_seed, self._inputs, self._outputs = run_seed, inputs, outputs
        self._threads: dict[str, Any] = {} if threads is None else {"threads": threads}
        self._device = device
        channels = seeds.shape[0]
        wanted = gradient.pair.original.inputs
        self._table = wanted.table(channels)
        bounds = method.bounds(channels)
        self._descent = ops.Descent(
            shape=seeds.shape,
            step=method.step,
            bound=bounds if method.constraint == "per_step" else None,
            total=bounds if method.constraint == "total" else None,
            project=method.project,
            lattice=method.lattice,
            table=self._table,
        )
        self._slots = _Slots.empty(slots, method.budget)
        images = (slots, *seeds.shape)
        self._origin = torch.zeros(images, dtype=torch.uint8, device=device)
        self._picture = torch.zeros(images, dtype=torch.uint8, device=device)
        self._state = torch.zeros(images, dtype=torch.float32, device=device)
        self._trail = torch.zeros((slots, method.budget, *seeds.shape), dtype=torch.uint8, device=device)
        self._covered: list[Any] | None = None
        self._counts = _Counts()
        self._kept: list[Outcomes] = []
        self._asked = False
        restored = self._restore(state, done) if state is not None else set()
        self._queue = deque(
            row for row, index in enumerate(seeds.indices.tolist()) if index not in done and index not in restored
        )
        self._total = len(self._queue) + len(restored)
        self._refill()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of an image."""
        return self._seeds.shape

    @property
    def chains(self) -> int:
        """Number of slots: the batch size of every ``ask``."""
        return len(self._slots.row)

    @property
    def active(self) -> bool:
        """Whether any seed still has work to do."""
        return self._counts.ended < self._total

    @property
    def progress(self) -> Progress:
        """Counts so far; ``coverage`` waits for the device on CUDA."""
        counts = self._counts
        capacity = counts.iterations * self.chains
        return Progress(
            seeds=self._total,
            ended=counts.ended,
            found=counts.found,
            already_deviating=counts.already_deviating,
            exhausted=counts.exhausted,
            queries=counts.queries,
            iterations=counts.iterations,
            occupancy=counts.queries / capacity if capacity else 0.0,
            coverage=self._coverage(),
        )

    def ask(self) -> Any:
        """Return the next pictures: uint8 ``[chains, C, H, W]``, or the models' input when started with ``inputs``.

        Rows of idle slots hold old or no data; their scores are ignored. NumPy on the CPU, a torch tensor on CUDA.
        Asking twice without ``tell`` gives the same pictures.
        """
        self._asked = True
        picture = self._picture if self._device != "cpu" else self._picture.numpy()
        if self._inputs is None:
            return picture
        return ops.normalize(picture, self._table, layout=self._inputs.layout, dtype=self._inputs.dtype)

    def tell(self, a: Any, b: Any) -> None:
        """Take the scores of the original and the compressed model on what ``ask`` returned, and take the next step.

        Floating ``[chains, K]`` each, K >= 2; NaN and infinity end their chain. Runs both models forward and backward;
        waits for the device on CUDA, for the labels.
        Raises TypeError or ValueError by the argument's name; RuntimeError when ``ask`` was not called before.
        """
        if not self._asked:
            msg = "tell: expected a call of ask before it"
            raise RuntimeError(msg)
        slots, counts = self._slots, self._counts
        verdicts = ops.verdicts(a, b, outputs=self._outputs)
        verdicts = ops.Verdicts(*(_on_host(getattr(verdicts, item.name)) for item in fields(verdicts)))
        busy = slots.busy
        rows = np.flatnonzero(busy)
        at = slots.step[rows]
        slots.labels[rows, at] = verdicts.labels[rows]
        slots.confidences[rows, at] = confidences_of(verdicts)[rows]
        slots.non_finite[rows] = verdicts.non_finite[rows]
        fresh = rows[at == 0]
        slots.seed_label[fresh] = verdicts.labels[fresh, 0]
        deviates = (verdicts.non_finite == 0) & (verdicts.labels[:, 0] != verdicts.labels[:, 1])
        slots.already[fresh] = deviates[fresh]
        counts.queries += len(rows)
        counts.iterations += 1
        self._asked = False

        ends = busy & ((slots.step >= self._method.budget) | (slots.non_finite != 0))
        if self._method.stop == "deviation":
            ends |= busy & deviates
        self._advance(busy & ~ends)
        if ends.any():
            self._end(np.flatnonzero(ends))
            self._refill()

    def take(self) -> Outcomes:
        """Return the chains that ended since the last ``take``, in no order, each with the trail of its pictures."""
        ended, self._counts.outcomes = self._counts.outcomes, []
        return Outcomes.concatenate(ended) if ended else Outcomes.empty(self.shape)

    def findings(self) -> Findings:
        """Return everything found so far. For loops without a driver: outcomes that ``take`` has given away are not in
        it."""
        self._kept.append(self.take())
        outcomes = Outcomes.concatenate(self._kept)
        self._kept = [outcomes]
        settings = {
            "method": {"name": self._method.name, "settings": self._method.settings()},
            "seed": self._run_seed,
        }
        return Findings.of(outcomes, settings=settings, seeds=len(self._seeds), occupancy=self.progress.occupancy)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return a checkpoint: every array that ``Gradient.start(state=...)`` needs. Waits for the device on CUDA."""
        slots = self._slots
        busy = slots.busy
        arrays = {f"slots.{item.name}": getattr(slots, item.name)[busy] for item in fields(slots) if item.name != "row"}
        arrays["seed_index"] = self._seeds.indices[slots.row[busy]]
        for name in ("_picture", "_state", "_trail"):
            arrays[name.removeprefix("_")] = _on_host(getattr(self, name))[busy].copy()
        for number, covered in enumerate(self._covered or ()):
            arrays[f"covered.{number}"] = _on_host(covered).copy()
        return arrays

    def _advance(self, going: npt.NDArray[np.bool_]) -> None:
        """Move the images of these slots one step and draw their pictures."""
        if not going.any():
            return
        slots, torch = self._slots, self._torch
        active = torch.from_numpy(going.astype(np.uint8)).to(self._device)
        identities = np.where(going, self._seeds.indices[slots.row], 0).astype(np.uint64)

        def choose(original: list[Any], compressed: list[Any]) -> tuple[Any, Any]:
            if self._covered is None:
                sizes = [layer[0].numel() for layer in compressed]
                self._covered = [torch.zeros(size, dtype=torch.uint8, device=self._device) for size in sizes]
            ops.cover(compressed, self._covered, active=active, **self._threads)
            layer, position = ops.select_neurons(
                original,
                compressed,
                seed=self._run_seed,
                identities=identities,
                steps=slots.step.astype(np.uint32),
                trials=self._method.trials,
                active=active,
                **self._threads,
            )
            return torch.as_tensor(layer).long(), torch.as_tensor(position)

        gradient = self._gradient(self._state, choose if self._method.coverage else None)
        l2_squared, linf = ops.descend(
            self._descent,
            self._state,
            gradient.contiguous(),
            self._origin,
            self._picture,
            active=active,
            **self._threads,
        )
        rows = np.flatnonzero(going)
        slots.step[rows] += 1
        at = slots.step[rows]
        slots.l2_squared[rows, at] = _on_host(l2_squared)[rows]
        slots.linf[rows, at] = _on_host(linf)[rows]
        places = torch.from_numpy(rows).to(self._device)
        self._trail[places, torch.from_numpy(at - 1).to(self._device)] = self._picture[places]

    def _refill(self) -> None:
        """Load the next seeds into idle slots."""
        free = np.flatnonzero(~self._slots.busy)[: len(self._queue)]
        if not len(free):
            return
        rows = np.array([self._queue.popleft() for _ in free])
        self._load(free, rows)
        slots = self._slots
        slots.row[free], slots.step[free], slots.seed_label[free] = rows, 0, -1
        slots.already[free], slots.non_finite[free] = False, 0
        slots.labels[free], slots.confidences[free] = -1, np.nan
        slots.l2_squared[free], slots.linf[free] = 0, 0

    def _load(self, places: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> None:
        """Put the seeds at these rows into these slots: origin, picture and state."""
        torch = self._torch
        where = torch.from_numpy(places).to(self._device)
        images = torch.from_numpy(self._seeds.images[rows]).to(self._device)
        self._origin[where] = images
        self._picture[where] = images
        pixels = images if self._device != "cpu" else images.numpy()
        self._state[where] = torch.as_tensor(ops.normalize(pixels, self._table, layout="NCHW", dtype="float32"))

    def _end(self, places: npt.NDArray[np.int64]) -> None:
        """Hand the chains in these slots over as outcomes and leave the slots idle."""
        slots, counts = self._slots, self._counts
        trail = _on_host(self._trail[self._torch.from_numpy(places).to(self._device)])
        columns: dict[str, list[Any]] = {name: [] for name in ("kind", "step", "images", "trails")}
        for place, pictures in zip(places.tolist(), trail, strict=True):
            taken = int(slots.step[place])
            kind, step = _verdict(slots, place, taken)
            columns["kind"].append(kind)
            columns["step"].append(step)
            columns["images"].append(pictures[step - 1] if step else self._seeds.images[slots.row[place]])
            columns["trails"].append(_trail(slots, place, pictures[:taken]))
        kinds, steps = np.array(columns["kind"], np.uint8), np.array(columns["step"])
        images = np.stack(columns["images"])
        images[kinds == EXHAUSTED] = 0
        counts.ended += len(places)
        counts.found += int(np.isin(kinds, (EFFECTIVE, INVALID)).sum())
        counts.already_deviating += int((kinds == SEED).sum())
        counts.exhausted += int((kinds == EXHAUSTED).sum())
        none = np.zeros(len(places), np.uint32)
        counts.outcomes.append(
            Outcomes(
                seed_index=self._seeds.indices[slots.row[places]],
                kind=kinds,
                step=steps.astype(np.uint32),
                queries=(slots.step[places] + 1).astype(np.uint32),
                accepted=none,
                states=none.copy(),
                seed_label=slots.seed_label[places],
                original_label=slots.labels[places, steps, 0],
                compressed_label=slots.labels[places, steps, 1],
                original_confidence=slots.confidences[places, steps, 0],
                compressed_confidence=slots.confidences[places, steps, 1],
                non_finite=slots.non_finite[places],
                l2_squared=slots.l2_squared[places, steps],
                linf=slots.linf[places, steps],
                images=images,
                traces=[np.empty(0, np.uint8) for _ in places],
                trails=columns["trails"],
            )
        )
        slots.row[places] = IDLE

    def _restore(self, state: Mapping[str, npt.NDArray[Any]], done: set[int]) -> set[int]:
        """Put the chains of a checkpoint into the first slots; those without a slot start again from their seeds."""
        known = {index: row for row, index in enumerate(self._seeds.indices.tolist())}
        indices = state["seed_index"].tolist()
        unknown = [index for index in indices if index not in known]
        if unknown:
            msg = f"state: expected chains of these seeds, got one of seed {unknown[0]}"
            raise ValueError(msg)
        chosen = [place for place, index in enumerate(indices) if index not in done][: self.chains]
        places = np.arange(len(chosen))
        rows = np.array([known[indices[place]] for place in chosen], np.int64)
        if len(chosen):
            self._load(places, rows)
            for name in ("picture", "state", "trail"):
                getattr(self, f"_{name}")[: len(chosen)] = self._torch.from_numpy(state[name][chosen]).to(self._device)
            for item in fields(self._slots):
                values = rows if item.name == "row" else state[f"slots.{item.name}"][chosen]
                getattr(self._slots, item.name)[: len(chosen)] = values
        layers = sum(name.startswith("covered.") for name in state)
        if layers:
            copies = (np.array(state[f"covered.{n}"]) for n in range(layers))
            self._covered = [self._torch.from_numpy(covered).to(self._device) for covered in copies]
        return {indices[place] for place in chosen}

    def _coverage(self) -> float | None:
        """Share of the compressed model's neurons that were positive on any image so far."""
        if not self._method.coverage:
            return None
        if self._covered is None:
            return 0.0
        return ops.count_covered(self._covered) / sum(len(covered) for covered in self._covered)


def _verdict(slots: _Slots, place: int, taken: int) -> tuple[int, int]:
    """The kind a chain ended as, and the step of the picture that stands for it.

    The first effective picture, else the first deviating one; a pair that deviates on the seed has found nothing.
    """
    if slots.non_finite[place]:
        return NON_FINITE, taken
    if slots.already[place]:
        return SEED, 0
    original, compressed = slots.labels[place, 1 : taken + 1].T
    deviating = original != compressed
    for kind, chosen in ((EFFECTIVE, deviating & (original == slots.seed_label[place])), (INVALID, deviating)):
        if chosen.any():
            return kind, int(chosen.argmax()) + 1
    return EXHAUSTED, taken


def _trail(slots: _Slots, place: int, images: npt.NDArray[np.uint8]) -> Trail:
    steps = np.arange(1, len(images) + 1)
    return Trail(
        step=steps.astype(np.int32),
        original_label=slots.labels[place, steps, 0],
        compressed_label=slots.labels[place, steps, 1],
        original_confidence=slots.confidences[place, steps, 0],
        compressed_confidence=slots.confidences[place, steps, 1],
        l2=np.sqrt(slots.l2_squared[place, steps].astype(np.float64)) / 255.0,
        linf=slots.linf[place, steps].astype(np.int16),
        images=images.copy(),
    )


def _on_host(array: Any) -> npt.NDArray[Any]:
    return array if isinstance(array, np.ndarray) else array.cpu().numpy()
