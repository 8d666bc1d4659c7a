"""Black-box search by Markov chains over mutation operators: DFlare (Tian et al., TOSEM 2023)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from compdx import ops
from compdx.findings import EFFECTIVE, EXHAUSTED, INVALID, SEED, Findings, Outcomes
from compdx.methods.base import Progress
from compdx.seeds import Seeds

if TYPE_CHECKING:
    from compdx.model import Inputs

_ONE_Q30 = float(1 << 30)
_DEFAULT_CHAINS = 128
# On CUDA ended chains are read some dozens of iterations late.
_CUDA_RING = 8


@dataclass(frozen=True, kw_only=True)
class MCMC:
    """Settings of the black-box search; the published method with its choices named.

    Args:
        budget: queries a seed may cost, its own included.
        selection: law of the next operator: ``"metropolis"`` (the paper), ``"rank"`` (the published code, whose rank
            look-up always fails), ``"uniform"``.
        acceptance: which mutant replaces the current image: ``"margin"`` (the two best classes come no further apart,
            in the model where they are closest; DiffChaser's fitness), ``"improve"`` (difference of the confidences
            plus novelty does not fall; DFlare's paper), ``"change"`` (the difference moved by more than 0.001, or the
            state is new; DFlare's published code), ``"always"``, ``"never"``.
        bisect: queries, 0..255, that are spent between the current image and a mutant on which both models agree on
            another label than the seed's, each on a blend of the two that lies where the boundary should be; 0 puts
            such a mutant to the acceptance rule like any other, as paper and published code do.
        coverage: when an output state is new: ``"hash"`` (its cell of a grid has not been seen) or ``"nearest"``
            (squared distance to every seen state above ``threshold``: the published code).
        grid: cells per unit of probability, for ``"hash"``.
        threshold: squared L2 distance, for ``"nearest"``.
        capacity: tags or states that each chain remembers; None is enough for the budget (``compdx.ops.Rules``).
        overflow: ``"clip"`` saturates, ``"wrap"`` is modulo 256 (the published code).
        linf: bound around the seed image in grey levels, or None.
        skip_identity: never draw an operator that changes nothing (window of 1, no pixels); the published code does.

    Differences from the paper and its code: docs/methods.md. Randomness: docs/arithmetic.md section 1.
    """

    budget: int = 1000
    selection: str = "metropolis"
    acceptance: str = "margin"
    bisect: int = 12
    coverage: str = "hash"
    grid: int = 20
    threshold: float = 0.5
    capacity: int | None = None
    overflow: str = "clip"
    linf: int | None = None
    skip_identity: bool = True

    def __post_init__(self) -> None:
        ops.Rules(shape=(1, 1, 1), **self.settings())

    @classmethod
    def artifact(cls, *, budget: int = 1000) -> MCMC:
        """Return the settings of the published code (docs/methods.md)."""
        return cls(
            budget=budget,
            selection="rank",
            acceptance="change",
            bisect=0,
            coverage="nearest",
            overflow="wrap",
            skip_identity=False,
        )

    @property
    def name(self) -> str:
        """The name that ``search(method=...)`` knows it by."""
        return "mcmc"

    def settings(self) -> dict[str, Any]:
        """Return all settings as plain JSON values."""
        return asdict(self)

    def start(
        self,
        seeds: Seeds,
        *,
        chains: int | None = None,
        seed: int = 0,
        device: str = "cpu",
        inputs: Inputs | None = None,
        outputs: tuple[str, str] = ("logits", "logits"),
        done: Iterable[int] | None = None,
        state: Mapping[str, npt.NDArray[Any]] | None = None,
        threads: int | None = None,
        isa: str | None = None,
    ) -> MCMCLoop:
        """Start a search over ``seeds``, or restore one.

        Args:
            seeds: the images, uint8 ``[N, C, H, W]`` with their identities.
            chains: number of slots, which is the batch size of every ``ask``; default min(N, 128).
            seed: run seed, 0..2**64-1.
            device: ``"cpu"`` or ``"cuda[:n]"``; where the chains live and the scores come from.
            inputs: what the models want to be fed (``compdx.Inputs``); ``ask`` then returns that instead of uint8.
            outputs: ``"logits"`` or ``"probabilities"``, of the original and of the compressed model.
            done: identities of seeds that need no work; those that ended before a checkpoint must be among them.
            state: a checkpoint of an earlier loop over the same seeds with the same settings.
            threads, isa: CPU only; they change the speed, not the result.

        Raises TypeError or ValueError by the argument's name; RuntimeError when the device cannot be had.
        """
        seeds = Seeds.of(seeds)
        rules = ops.Rules(
            shape=seeds.shape, seed=seed, original_scores=outputs[0], compressed_scores=outputs[1], **self.settings()
        )
        slots = min(len(seeds), _DEFAULT_CHAINS) if chains is None else chains
        ops.checks.within("chains", slots, 1, 1 << 24)
        return MCMCLoop(
            self,
            rules,
            seeds,
            slots,
            device,
            inputs,
            set() if done is None else {int(index) for index in done},
            state,
            threads,
            isa,
        )


class MCMCLoop:
    """A search under way: ``ask``, score, ``tell`` while ``active``. Started by ``MCMC.start``."""

    def __init__(
        self,
        method: MCMC,
        rules: ops.Rules,
        seeds: Seeds,
        slots: int,
        device: str,
        inputs: Inputs | None,
        done: set[int],
        state: Mapping[str, npt.NDArray[Any]] | None,
        threads: int | None,
        isa: str | None,
    ) -> None:
        self._method = method
        self._rules = rules
        self._seeds = seeds
        in_flight = _in_flight(state, seeds, done, slots)
        busy = done | {int(index) for index in in_flight["seed_index"]}
        queue = np.array([row for row, index in enumerate(seeds.indices.tolist()) if index not in busy], np.int64)
        self._chains = ops.Chains(
            rules,
            seeds.images,
            identities=seeds.indices.astype(np.uint64),
            queue=queue,
            count=slots,
            device=device,
            threads=threads,
            isa=isa,
            ring=2 if device == "cpu" else _CUDA_RING,
        )
        self._total = len(queue) + len(in_flight)
        if state is not None:
            self._chains.restore(_with_rows(state, seeds), in_flight["slot"])
        ops.refill(self._chains)
        layout, dtype = ("NCHW", "uint8") if inputs is None else (inputs.layout, inputs.dtype)
        self._how: dict[str, Any] = {"layout": layout, "dtype": dtype}
        self._input = self._chains.new_input(layout=layout, dtype=dtype)
        if inputs is not None:
            self._how["table"] = self._chains.new_table(inputs.table(rules.shape[0]), dtype)
        self._ended: list[Outcomes] = []
        self._kept: list[Outcomes] = []
        self._asked = False
        self._iterations = 0
        self._counts = dict.fromkeys(("ended", "found", "already_deviating", "exhausted"), 0)
        self._counters = self._chains.counters

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of an image."""
        return self._rules.shape

    @property
    def chains(self) -> int:
        """Number of slots: the batch size of every ``ask``."""
        return self._chains.count

    @property
    def bytes_per_chain(self) -> int:
        """Memory that a slot takes on the device."""
        return self._chains.bytes_per_chain

    @property
    def active(self) -> bool:
        """Whether any seed still has work to do."""
        # Not "a slot is at work": on CUDA these counters are a few iterations old, and ended chains may fill all slots,
        # waiting for room in the ring, while the queue is not empty.
        return self._counters["ended"] < self._total

    @property
    def progress(self) -> Progress:
        """Counts so far."""
        asked = self._counters["queries"] - self._counters["active"]
        capacity = self._iterations * self.chains
        counts = self._counts
        return Progress(
            seeds=self._total,
            ended=counts["ended"],
            found=counts["found"],
            already_deviating=counts["already_deviating"],
            exhausted=counts["exhausted"],
            queries=asked,
            iterations=self._iterations,
            occupancy=asked / capacity if capacity else 0.0,
        )

    def ask(self) -> Any:
        """Return the next queries: uint8 ``[chains, C, H, W]``, or the models' input when started with ``inputs``.

        The same array every time, overwritten by the next ``ask``. Rows of idle slots hold old or no data; their scores
        are ignored. NumPy on the CPU. On CUDA a PyTorch tensor, written asynchronously on the current stream, on which
        the models must run too. Asking twice without ``tell`` gives the same queries.
        """
        ops.mutate(self._chains, self._input, **self._how)
        self._asked = True
        return self._chains.typed(self._input, self._how["dtype"])

    def tell(self, a: Any, b: Any) -> None:
        """Take the scores of the original and the compressed model on what ``ask`` returned.

        Floating ``[chains, K]`` each, K >= 2 and the same in every call, any DLPack array on the loop's device; NaN and
        infinity end their chain. Asynchronous on CUDA, but for reading ended chains when many have gathered.
        Raises TypeError or ValueError by the argument's name; RuntimeError when ``ask`` was not called before.
        """
        self._check_asked("tell")
        ops.judge(self._chains, a, b)
        ops.harvest(self._chains)
        ops.refill(self._chains)
        self._asked = False
        self.launched(1)

    def step(self, a: Any, b: Any) -> None:
        """Do what ``tell(a, b)`` and the next ``ask`` do, in one pass over the chains; the queries are where they were.

        Arguments and errors: those of ``tell``.
        """
        self.launch(a, b)
        self.launched(1)

    def launch(self, a: Any, b: Any) -> None:
        """Do the work of ``step`` without its books: `launched` keeps them.

        On CUDA, from the second call on, this only queues work on the current stream; a CUDA graph can capture it.
        """
        self._check_asked("step")
        ops.step(self._chains, a, b, self._input, **self._how)

    def launched(self, iterations: int) -> None:
        """Count iterations whose work was queued with ``launch`` or a graph of it, and read what has ended."""
        self._iterations += iterations
        self._counters = self._chains.poll()
        # Reading takes a while however little there is: the ring is given time to fill, not so much that chains wait.
        if self._counters["ended"] - self._counts["ended"] >= max(1, self._chains.ring_capacity // 4):
            self._drain(self._counters["ended"])

    def take(self) -> Outcomes:
        """Return the chains that ended since the last ``take``, in no order. Waits for the device on CUDA."""
        self._drain()
        self._counters = self._chains.counters
        outcomes = Outcomes.concatenate(self._ended) if self._ended else Outcomes.empty(self.shape)
        self._ended = []
        return outcomes

    def findings(self) -> Findings:
        """Return everything found so far. For loops without a driver: outcomes that ``take`` has given away are not in
        it."""
        self._kept.append(self.take())
        outcomes = Outcomes.concatenate(self._kept)
        self._kept = [outcomes]
        settings = {
            "method": {"name": self._method.name, "settings": self._method.settings()},
            "seed": self._rules.seed,
        }
        return Findings.of(outcomes, settings=settings, seeds=len(self._seeds), occupancy=self.progress.occupancy)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return a checkpoint: every array that ``MCMC.start(state=...)`` needs. Waits for the device on CUDA."""
        return self._chains.state()

    def _check_asked(self, name: str) -> None:
        if not self._asked:
            msg = f"{name}: expected a call of ask before it"
            raise RuntimeError(msg)

    def _drain(self, ended: int | None = None) -> None:
        drained = self._chains.drain(ended)
        chains = drained["chains"]
        if not len(chains):
            return
        self._counts["ended"] += len(chains)
        self._counts["found"] += int(np.sum((chains["kind"] == EFFECTIVE) | (chains["kind"] == INVALID)))
        self._counts["already_deviating"] += int(np.sum(chains["kind"] == SEED))
        self._counts["exhausted"] += int(np.sum(chains["kind"] == EXHAUSTED))
        self._ended.append(_outcomes(drained))


def _outcomes(drained: Mapping[str, Any]) -> Outcomes:
    chains = drained["chains"]
    unknown = (chains["non_finite"] & 1 != 0, chains["non_finite"] & 2 != 0)
    confidences = [
        np.where(mask, np.nan, chains[name] / _ONE_Q30)
        for mask, name in zip(unknown, ("original_confidence", "compressed_confidence"), strict=True)
    ]
    return Outcomes(
        seed_index=chains["seed_index"].astype(np.int64),
        kind=chains["kind"].copy(),
        step=chains["step"].copy(),
        queries=chains["step"] + np.uint32(1),
        accepted=chains["accepted"].copy(),
        states=chains["states"].copy(),
        seed_label=chains["seed_label"].copy(),
        original_label=chains["original_label"].copy(),
        compressed_label=chains["compressed_label"].copy(),
        original_confidence=confidences[0],
        compressed_confidence=confidences[1],
        non_finite=chains["non_finite"].copy(),
        l2_squared=chains["l2_squared"].copy(),
        linf=chains["linf"].copy(),
        images=np.where((chains["kind"] == EXHAUSTED)[:, None, None, None], np.uint8(0), drained["images"]),
        traces=drained["traces"],
    )


def _records(state: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return np.ascontiguousarray(state["chains"]).view(ops.CHAIN).reshape(-1)


def _in_flight(
    state: Mapping[str, npt.NDArray[Any]] | None, seeds: Seeds, done: set[int], slots: int
) -> npt.NDArray[Any]:
    """Slots and identities of the chains of a checkpoint that go on; those without a slot start again from their seeds.

    Raises ValueError when a chain belongs to no seed of this set: the checkpoint is of another search.
    """
    found: list[tuple[int, int]] = []
    if state is not None:
        known = set(seeds.indices.tolist())
        records = _records(state)
        for slot in np.flatnonzero((records["status"] == ops.FRESH) | (records["status"] == ops.ACTIVE)).tolist():
            index = int(records["seed_index"][slot])
            if index not in known:
                msg = f"state: expected chains of these seeds, got one of seed {index}"
                raise ValueError(msg)
            if index not in done and len(found) < slots:
                found.append((slot, index))
    return np.array(found, [("slot", np.int64), ("seed_index", np.int64)])


def _with_rows(state: Mapping[str, npt.NDArray[Any]], seeds: Seeds) -> dict[str, npt.NDArray[Any]]:
    """The checkpoint with each chain's row in this seed set, found by identity."""
    rows = {index: row for row, index in enumerate(seeds.indices.tolist())}
    records = _records(state).copy()
    for record in records:
        record["row"] = rows.get(int(record["seed_index"]), -1)
    return {**state, "chains": records}
